//! How fast this host may send to stores: one bucket for every limit, shared by all items whose
//! policies have it, in turns of equal size. The bucket itself is pure: the time is an argument.
//!
//! Counts sealed bytes, as they go over the wire. What is within this host is not counted, nor is
//! the last delta of a failover, which everybody waits for.

use super::clock::WallClock;
use leeward_model::Bandwidth;
use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::time::Instant;

/// Bytes of an item's turn: a record is at most about as large, so nobody sends more than that
/// ahead of the others, whether its records are large or small.
const TURN_BYTES: u64 = 64 << 10;
/// What was not used may be made up for, this long.
const BURST: Duration = Duration::from_millis(200);

/// Hands out bytes at a rate. Whoever asks first is served first; as nobody asks again before it
/// was served, all get the same share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// From when on there is something to hand out.
    free_at: Duration,
    /// The latest time that was seen.
    seen: Duration,
}

impl Bucket {
    /// Takes `bytes` at `rate` bytes a second; returns how long to wait before they are sent.
    ///
    /// `now` is since whatever. When it jumps ahead, at most the burst is gained; when it jumps
    /// back, what is owed stays what it was.
    pub fn take(&mut self, now: Duration, bytes: u64, rate: u64) -> Duration {
        if now < self.seen {
            self.free_at = self.free_at.saturating_sub(self.seen - now);
        }
        self.seen = now;
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let cost = Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        let begin = self.free_at.max(now.saturating_sub(BURST));
        self.free_at = begin.saturating_add(cost);
        begin.saturating_sub(now)
    }
}

/// The bucket of one limit.
#[derive(Debug)]
struct Shared {
    bandwidth: Bandwidth,
    /// The bucket's time counts from here.
    began: Instant,
    bucket: Mutex<Bucket>,
}

/// The buckets of a host.
#[derive(Debug, Default)]
pub struct Paces(Mutex<Vec<Weak<Shared>>>);

impl Paces {
    /// What one item sends by; none without a limit.
    pub fn pace(&self, bandwidth: Option<&Bandwidth>, wall: &WallClock) -> Option<Pace> {
        let bandwidth = bandwidth.filter(|bandwidth| !bandwidth.is_unlimited())?;
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|bucket| bucket.strong_count() > 0);
        let known = buckets.iter().filter_map(Weak::upgrade);
        let mut known = known.filter(|shared| shared.bandwidth == *bandwidth);
        let shared = known.next();
        drop(known);
        let shared = shared.unwrap_or_else(|| {
            let (bandwidth, began) = (bandwidth.clone(), Instant::now());
            let shared = Arc::new(Shared { bandwidth, began, bucket: Mutex::default() });
            buckets.push(Arc::downgrade(&shared));
            shared
        });
        Some(Pace { shared, wall: wall.clone(), left: 0 })
    }
}

/// What one session sends by.
pub struct Pace {
    shared: Arc<Shared>,
    wall: WallClock,
    /// Bytes of its turn that it has not sent yet.
    left: u64,
}

impl Pace {
    fn take(&self, rate: u64) -> Duration {
        let mut bucket = self.shared.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(self.shared.began.elapsed(), TURN_BYTES, rate)
    }

    /// Waits until `bytes` may be sent.
    pub async fn wait(&mut self, bytes: u64) {
        while self.left < bytes {
            let Some(rate) = self.shared.bandwidth.at(self.wall.now()) else {
                self.left = 0;
                return;
            };
            let wait = self.take(rate);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            self.left += TURN_BYTES;
        }
        self.left -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::UnixMillis;
    use std::sync::atomic::{AtomicU64, Ordering};

    const RATE: u64 = 1 << 20;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Bytes handed out until `end`, by one who always wants more, and when that was.
    fn drain(bucket: &mut Bucket, mut now: Duration, end: Duration) -> u64 {
        let mut bytes = 0;
        while now < end {
            now += bucket.take(now, TURN_BYTES, RATE);
            bytes += TURN_BYTES;
        }
        bytes
    }

    /// F-046: never more than the rate, and one burst.
    #[test]
    fn a_bucket_hands_out_its_rate_and_little_is_saved_up() {
        let mut bucket = Bucket::default();
        let burst = (RATE as f64 * BURST.as_secs_f64()) as u64;

        let first = drain(&mut bucket, Duration::ZERO, seconds(10.0));
        assert!((10 * RATE..=10 * RATE + TURN_BYTES).contains(&first), "{first}");

        // Nothing was wanted for an hour: that is no hour's worth.
        let later = drain(&mut bucket, seconds(3610.0), seconds(3611.0));
        assert!(later <= RATE + burst + 2 * TURN_BYTES, "{later}");
    }

    /// F-046: clock jumps.
    #[test]
    fn a_clock_that_jumps_neither_opens_the_bucket_nor_shuts_it_for_long() {
        let mut bucket = Bucket::default();
        drain(&mut bucket, seconds(5_000.0), seconds(5_001.0));
        let owed = bucket.take(seconds(5_001.0), TURN_BYTES, RATE);

        let after = bucket.take(seconds(1.0), TURN_BYTES, RATE);

        let turn = seconds(TURN_BYTES as f64 / RATE as f64);
        assert!(after <= owed + turn + turn, "{after:?} after {owed:?}");
        let most = RATE + (RATE as f64 * BURST.as_secs_f64()) as u64 + 2 * TURN_BYTES;
        let bytes = drain(&mut bucket, seconds(2.0), seconds(3.0));
        assert!((RATE / 2..=most).contains(&bytes), "{bytes}");
        // And ahead, by a year.
        let bytes = drain(&mut bucket, seconds(31_536_000.0), seconds(31_536_001.0));
        assert!(bytes <= most, "{bytes}");
    }

    /// F-046: one large copy and one small delta share what there is, whatever the size of their
    /// records: the small one is through within about twice the time that it needs alone.
    #[test]
    fn a_small_delta_beside_a_huge_copy_gets_its_half() {
        let builder = || tokio::runtime::Builder::new_current_thread();
        let runtime = builder().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let paces = Arc::new(Paces::default());
            let limit: Bandwidth = RATE.to_string().parse().unwrap();
            let wall = WallClock::new(|| UnixMillis(0));
            let huge_sent = Arc::new(AtomicU64::new(0));
            let mut huge = Vec::new();
            for _ in 0..3 {
                let mut pace = paces.pace(Some(&limit), &wall).unwrap();
                let sent = Arc::clone(&huge_sent);
                huge.push(tokio::spawn(async move {
                    loop {
                        pace.wait(TURN_BYTES + 80).await;
                        sent.fetch_add(TURN_BYTES + 80, Ordering::Relaxed);
                    }
                }));
            }
            tokio::time::sleep(seconds(2.0)).await;
            let (begun, before) = (Instant::now(), huge_sent.load(Ordering::Relaxed));
            let mut small = paces.pace(Some(&limit), &wall).unwrap();

            // 1 MiB in records of 2 KiB.
            for _ in 0..512 {
                small.wait(2 << 10).await;
            }

            let took = begun.elapsed().as_secs_f64();
            assert!((3.0..5.0).contains(&took), "a quarter of the rate: {took} s");
            let others = huge_sent.load(Ordering::Relaxed) - before;
            let shared = others as f64 + (1 << 20) as f64;
            assert!(shared <= took * RATE as f64 * 1.1, "{shared} bytes in {took} s");
            huge.into_iter().for_each(|task| task.abort());
        });
    }

    #[test]
    fn without_a_limit_nothing_is_paced() {
        let wall = WallClock::new(|| UnixMillis(0));
        let paces = Paces::default();

        assert!(paces.pace(None, &wall).is_none());
        assert!(paces.pace(Some(&Bandwidth::default()), &wall).is_none());
        let paced = paces.pace(Some(&"none; daily 01:00-02:00=70000".parse().unwrap()), &wall);
        assert!(paced.is_some());
    }
}
