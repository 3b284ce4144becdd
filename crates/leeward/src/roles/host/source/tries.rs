//! How often and for how long a final point is tried. Pure: the time is an argument, nothing here
//! waits.

use std::time::Duration;
use tokio::time::Instant;

/// For how long the last data of a guest that is off are tried while what fails may pass, from the
/// first failure on: the failover waits for it, and goes on without them.
const WISHED_FOR: Duration = Duration::from_secs(30);
/// The same when the failover does not go on without them: then a person is asked, of whom there
/// may be none awake, and the machine is down meanwhile. Most links are back by then.
const NEEDED_FOR: Duration = Duration::from_secs(120);
/// The pause after the first failure; each is twice the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// The longest pause: so long the machine may be down for nothing.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Tries when nothing says that it may pass.
const TRIES_OTHER: u32 = 3;

/// What a failure of a try means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The link, a session, a disk, the store's space: it may pass.
    Passing,
    /// Nobody knows.
    Other,
    /// The same again cannot work before somebody changes something.
    Final,
}

/// The tries of one final point.
#[derive(Debug)]
pub struct Tries {
    limit: Duration,
    pause: Duration,
    failed: u32,
    first: Option<Instant>,
}

impl Tries {
    /// Of a point that the failover can do without.
    pub fn wished() -> Tries {
        Tries { limit: WISHED_FOR, pause: PAUSE_FIRST, failed: 0, first: None }
    }

    /// Of a point that it cannot do without.
    pub fn needed() -> Tries {
        Tries { limit: NEEDED_FOR, ..Tries::wished() }
    }

    /// How many failed.
    pub fn failures(&self) -> u32 {
        self.failed
    }

    /// Notes a failure; returns the pause before the next try, or none when there is to be none.
    pub fn failed(&mut self, fault: Fault, now: Instant) -> Option<Duration> {
        self.failed += 1;
        let first = *self.first.get_or_insert(now);
        let again = match fault {
            Fault::Passing => now < first + self.limit,
            Fault::Other => self.failed < TRIES_OTHER,
            Fault::Final => false,
        };
        let pause = self.pause;
        self.pause = (2 * pause).min(PAUSE_MAX);
        again.then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it takes until there is no next try, when each fails at once.
    fn lasts(mut tries: Tries, fault: Fault) -> (u32, Duration) {
        let (begun, mut passed) = (Instant::now(), Duration::ZERO);
        while let Some(pause) = tries.failed(fault, begun + passed) {
            assert!(pause <= PAUSE_MAX);
            passed += pause;
        }
        (tries.failures(), passed)
    }

    /// F-086.
    #[test]
    fn what_may_pass_is_tried_at_growing_intervals_until_its_time_is_over() {
        let mut tries = Tries::wished();
        let begun = Instant::now();
        let first: Vec<_> = (0..6).filter_map(|_| tries.failed(Fault::Passing, begun)).collect();
        assert_eq!(
            first.iter().map(Duration::as_millis).collect::<Vec<_>>(),
            [200, 400, 800, 1600, 2000, 2000]
        );

        for (tries, limit) in [(Tries::wished(), WISHED_FOR), (Tries::needed(), NEEDED_FOR)] {
            let (_, passed) = lasts(tries, Fault::Passing);
            assert!((limit..limit + PAUSE_MAX).contains(&passed), "{passed:?}");
        }
    }

    /// F-086: an attempt that takes long to fail is not the last one for that.
    #[test]
    fn the_time_begins_with_the_first_failure() {
        let (mut tries, begun) = (Tries::wished(), Instant::now());

        assert!(tries.failed(Fault::Passing, begun + 10 * WISHED_FOR).is_some());
    }

    /// F-155.
    #[test]
    fn what_cannot_work_is_not_tried_again_and_what_nobody_knows_a_few_times() {
        assert_eq!(lasts(Tries::needed(), Fault::Final).0, 1);
        assert_eq!(lasts(Tries::needed(), Fault::Other).0, TRIES_OTHER);
    }
}
