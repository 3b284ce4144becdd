//! Records that sessions have brought and that are not durable yet: how much of them each session
//! may hold in memory, so that all together stay within what the process has for it.
//!
//! A session reads nothing more while it makes records durable, so what it holds is what is counted
//! here, and one frame. It holds [`SESSION_BYTES_OWN`] whatever the others do, and its share of the
//! process's memory beyond that. Where that is at its end it makes durable what it has: it never
//! waits for another session, so none can stop it. A session whose source stands still is asked for
//! what it holds beyond its share once another one finds no room.

use bytes::Bytes;
use leeward_capture::{Pool, Share, Taken};
use leeward_wire::record::RECORD_BYTES_MAX;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;

/// Bytes of records that every session may hold whatever the others do: the largest record, so that
/// each is taken. Half of what a process may take for an active disk.
pub const SESSION_BYTES_OWN: u64 = RECORD_BYTES_MAX as u64;
/// Most bytes of records that a session holds before it makes them durable: more at once does not
/// make a flush cheaper for each.
pub const SESSION_BYTES_MAX: u64 = 8 << 20;

/// See the module. Clones share.
#[derive(Clone, Debug)]
pub struct Intake(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    memory: Pool,
    seats: Mutex<BTreeMap<u64, Arc<Asked>>>,
    next: AtomicU64,
    /// Bytes of records in all seats, and being made durable.
    held: AtomicU64,
}

/// How a session is asked for what it holds.
#[derive(Debug)]
struct Asked {
    share: Arc<Share>,
    word: Notify,
}

impl Shared {
    fn seats(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Asked>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intake {
    /// Takes of `memory`, in bytes, what sessions hold beyond their own.
    pub fn new(memory: Pool) -> Intake {
        let (seats, next, held) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        Intake(Arc::new(Shared { memory, seats, next, held }))
    }

    /// Bytes of records that all sessions hold now.
    pub fn bytes(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }

    /// The seat of a new session.
    pub fn seat(&self) -> Seat {
        let share = self.0.memory.share();
        let asked = Arc::new(Asked { share, word: Notify::new() });
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.seats().insert(number, Arc::clone(&asked));
        let (records, bytes, beyond) = (Vec::new(), 0, Vec::new());
        Seat { shared: Arc::clone(&self.0), number, asked, records, bytes, beyond }
    }
}

/// What one session holds.
#[derive(Debug)]
pub struct Seat {
    shared: Arc<Shared>,
    number: u64,
    asked: Arc<Asked>,
    records: Vec<Bytes>,
    bytes: u64,
    /// What it has of the memory of all.
    beyond: Vec<Taken>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        drop(self.take());
        self.shared.seats().remove(&self.number);
    }
}

impl Seat {
    /// Takes a record. A seat that is empty takes every record.
    ///
    /// # Errors
    /// The record, when there is no room for it beside what is held: that has to be made durable
    /// first.
    pub fn push(&mut self, record: Bytes) -> Result<(), Bytes> {
        let after = self.bytes + record.len() as u64;
        if !self.records.is_empty() && after > SESSION_BYTES_OWN {
            match self.asked.share.take(after - SESSION_BYTES_OWN.max(self.bytes)) {
                Some(taken) => self.beyond.push(taken),
                None => {
                    self.ask_greedy();
                    return Err(record);
                }
            }
        }
        self.bytes = after;
        self.shared.held.fetch_add(record.len() as u64, Ordering::Relaxed);
        self.records.push(record);
        Ok(())
    }

    /// Bytes of records that it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it holds as much as a session ever does.
    pub fn is_full(&self) -> bool {
        self.bytes >= SESSION_BYTES_MAX
    }

    /// Hands out what it holds, to be made durable.
    pub fn take(&mut self) -> Held {
        let (shared, bytes) = (Arc::clone(&self.shared), std::mem::take(&mut self.bytes));
        let (records, beyond) =
            (std::mem::take(&mut self.records), std::mem::take(&mut self.beyond));
        Held { records, shared, bytes, _beyond: beyond }
    }

    /// Waits until others need what this session holds beyond its share. Safe to drop.
    pub async fn asked(&self) {
        loop {
            self.asked.word.notified().await;
            // It may have been made durable, or others may have done with theirs, since.
            if self.asked.share.is_greedy() {
                return;
            }
        }
    }

    /// Asks those that hold more than is left: they took it when there was more.
    fn ask_greedy(&self) {
        for (number, other) in &*self.shared.seats() {
            if *number != self.number && other.share.is_greedy() {
                other.word.notify_one();
            }
        }
    }
}

/// What a session held; counts until it is dropped, also when its session is not there any more.
#[derive(Debug)]
pub struct Held {
    /// The records, in order.
    pub records: Vec<Bytes>,
    shared: Arc<Shared>,
    bytes: u64,
    _beyond: Vec<Taken>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 64 << 20;
    const RECORD: usize = 48 << 10;

    fn intake(bytes: u64) -> Intake {
        Intake::new(Pool::new(bytes))
    }

    fn record() -> Bytes {
        Bytes::from_static(&[7; RECORD])
    }

    /// Takes records until the session has to make them durable.
    fn fill(seat: &mut Seat) {
        while !seat.is_full() && seat.push(record()).is_ok() {}
    }

    /// F-046: few sessions hold 8 MiB each, 200 hold less, and together never more than the bound.
    #[test]
    fn all_sessions_together_hold_no_more_than_the_memory_and_their_own() {
        let intake = intake(MEMORY);
        let mut few: Vec<Seat> = (0..3).map(|_| intake.seat()).collect();
        few.iter_mut().for_each(fill);
        assert!(few.iter().all(Seat::is_full));
        drop(few);

        let mut many: Vec<Seat> = (0..200).map(|_| intake.seat()).collect();
        many.iter_mut().for_each(fill);
        let held: u64 = many.iter().map(Seat::bytes).sum();
        assert!(held <= MEMORY + 200 * SESSION_BYTES_OWN, "{held} bytes are held");
        let least = many.iter().map(Seat::bytes).min().unwrap();
        assert!(least + RECORD as u64 > SESSION_BYTES_OWN, "one holds only {least} bytes");
    }

    /// F-046: sessions that go on get the same, whoever came first.
    #[test]
    fn sessions_that_take_in_turns_hold_about_the_same() {
        let intake = intake(MEMORY);
        let mut seats: Vec<Seat> = (0..100).map(|_| intake.seat()).collect();
        fill(&mut seats[0]);
        let (mut most, mut durable) = (vec![0; seats.len()], vec![0; seats.len()]);
        for _ in 0..400 {
            for (number, seat) in seats.iter_mut().enumerate() {
                if let Err(refused) = seat.push(record()) {
                    durable[number] += seat.take().records.len();
                    seat.push(refused).unwrap();
                }
                most[number] = most[number].max(seat.bytes());
            }
        }
        let (least, all) = (most[1..].iter().min().unwrap(), most[1..].iter().max().unwrap());
        assert!(*least > SESSION_BYTES_OWN + MEMORY / 200, "one never held more than {least}");
        assert!(all < &(least * 2), "one held {all} bytes, another one {least}");
        assert!(durable.iter().all(|records| *records > 300), "{durable:?}");
    }

    /// F-046: a source that stands still does not keep for its session what others need.
    #[tokio::test]
    async fn a_session_that_stands_still_is_asked_for_what_others_need() {
        let intake = intake(16 << 20);
        let mut still = intake.seat();
        fill(&mut still);
        assert!(still.is_full(), "it was alone");
        let mut others: Vec<Seat> = (0..8).map(|_| intake.seat()).collect();
        others.iter_mut().for_each(fill);

        still.asked().await;

        let before: u64 = others.iter().map(Seat::bytes).sum();
        drop(still.take());
        others.iter_mut().for_each(fill);
        let after: u64 = others.iter().map(Seat::bytes).sum();
        assert!(after >= before + (3 << 20), "{before} and {after} bytes");
        let asked = tokio::time::timeout(std::time::Duration::ZERO, still.asked()).await;
        assert!(asked.is_err(), "it has given all there was");
    }

    /// What is being made durable for a session that has ended is in memory all the same.
    #[test]
    fn what_is_being_made_durable_counts_until_that_is_done() {
        let intake = intake(MEMORY);
        let mut seat = intake.seat();
        fill(&mut seat);
        let held = seat.take();
        drop(seat);
        assert!(intake.0.memory.free() < MEMORY && intake.bytes() > 7 << 20);
        drop(held);
        assert_eq!((intake.0.memory.free(), intake.bytes()), (MEMORY, 0));
    }

    /// Whatever sessions do: the bound holds, an empty seat takes every record, and every one gets
    /// on without any other.
    #[test]
    fn no_order_of_things_breaks_the_bound() {
        let intake = intake(4 << 20);
        let mut seats: Vec<Seat> = (0..12).map(|_| intake.seat()).collect();
        let largest = Bytes::from(vec![0; RECORD_BYTES_MAX]);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let seat = &mut seats[(state % 12) as usize];
            let len = match state >> 8 & 3 {
                0 => RECORD_BYTES_MAX,
                _ => (state >> 16) as usize % (128 << 10) + 1,
            };
            if state >> 56 < 8 {
                drop(seat.take());
            } else if let Err(refused) = seat.push(largest.slice(..len)) {
                drop(seat.take());
                seat.push(refused).unwrap();
            }
            let held: u64 = seats.iter().map(Seat::bytes).sum();
            assert!(held <= (4 << 20) + 12 * SESSION_BYTES_OWN, "{held} bytes are held");
            assert_eq!(intake.bytes(), held);
        }
        drop(seats);
        assert_eq!(intake.0.memory.free(), 4 << 20);
    }
}
