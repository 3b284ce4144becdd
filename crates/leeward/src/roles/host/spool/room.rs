//! The room that the spools of a host may take together: a cap, and a reserve of the file system
//! that is never touched. Counts bytes; does not know what they are.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Bytes of the file system that no spool takes: guests' images may lie on the same one, and a
/// guest without space stops.
pub const RESERVE_BYTES: u64 = 1 << 30;
/// Most bytes of all spools of a host when nothing else is said.
pub const SPOOL_BYTES: u64 = 8 << 30;

/// How much room the points may take that wait for their store, for the command line.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct SpoolOptions {
    /// Bytes that points may take together that were cut while their store could not take them;
    /// 0 keeps none: changes are then noted by bitmap alone.
    #[arg(long, value_name = "BYTES", default_value_t = SPOOL_BYTES)]
    pub spool_bytes: u64,
}

/// The room is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The cap is reached.
    #[error("the spool has its {0} bytes")]
    Cap(u64),
    /// The file system's reserve is reached.
    #[error("the file system of the spool has less than {RESERVE_BYTES} bytes left beside it")]
    Reserve,
}

/// See the module. Clones share.
#[derive(Clone, Debug)]
pub struct SpoolRoom(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cap: u64,
    /// Where the file system is looked at; none where there is none, as in a double.
    folder: Option<PathBuf>,
    used: Mutex<u64>,
    /// The file system is said to be full.
    full: AtomicBool,
}

impl SpoolRoom {
    /// Room for `cap` bytes, 0 for no spool, in the file system of `folder`.
    pub fn new(cap: u64, folder: Option<&Path>) -> SpoolRoom {
        let (folder, used, full) =
            (folder.map(Path::to_owned), Mutex::new(0), AtomicBool::default());
        SpoolRoom(Arc::new(Shared { cap, folder, used, full }))
    }

    /// No spool.
    pub fn off() -> SpoolRoom {
        SpoolRoom::new(0, None)
    }

    /// Whether there may be a spool.
    pub fn is_on(&self) -> bool {
        self.0.cap > 0
    }

    /// Bytes that it may have.
    pub fn cap(&self) -> u64 {
        self.0.cap
    }

    fn used_mut<T>(&self, change: impl FnOnce(&mut u64) -> T) -> T {
        change(&mut self.0.used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes taken now.
    pub fn used(&self) -> u64 {
        self.used_mut(|used| *used)
    }

    /// Lets the file system count as full, for tests.
    pub fn set_full(&self, full: bool) {
        self.0.full.store(full, Ordering::Relaxed);
    }

    fn has_reserve(&self, bytes: u64) -> bool {
        if self.0.full.load(Ordering::Relaxed) {
            return false;
        }
        let Some(folder) = &self.0.folder else { return true };
        // What cannot be told is not held against it: a write then says so.
        let Ok(seen) = rustix::fs::statvfs(folder) else { return true };
        seen.f_bavail.saturating_mul(seen.f_frsize) >= RESERVE_BYTES.saturating_add(bytes)
    }

    /// Takes room for `bytes` before they are written.
    ///
    /// # Errors
    /// When there is none; nothing is taken then.
    pub fn take(&self, bytes: u64) -> Result<(), NoRoom> {
        if !self.has_reserve(bytes) {
            return Err(NoRoom::Reserve);
        }
        let cap = self.0.cap;
        self.used_mut(|used| match used.checked_add(bytes).filter(|sum| *sum <= cap) {
            Some(sum) => {
                *used = sum;
                Ok(())
            }
            None => Err(NoRoom::Cap(cap)),
        })
    }

    /// Counts what lies there already, also beyond the cap.
    pub(super) fn count(&self, bytes: u64) {
        self.used_mut(|used| *used = used.saturating_add(bytes));
    }

    /// Gives room back.
    pub(super) fn give(&self, bytes: u64) {
        self.used_mut(|used| *used = used.saturating_sub(bytes));
    }

    /// Whether what was full may be tried again: half of it is free. A cut that finds no room has
    /// been read for nothing, so it is not tried for a few bytes.
    pub fn is_roomy(&self) -> bool {
        self.has_reserve(RESERVE_BYTES.min(self.0.cap) / 2) && self.used() <= self.0.cap / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-015, F-150: the cap holds over all spools of a host.
    #[test]
    fn no_more_is_taken_than_the_cap_and_what_is_given_back_can_be_taken_again() {
        let room = SpoolRoom::new(100, None);
        let other = room.clone();
        room.take(60).unwrap();

        assert_eq!(other.take(41), Err(NoRoom::Cap(100)));
        other.take(40).unwrap();
        assert_eq!((room.used(), room.is_roomy()), (100, false));

        room.give(60);
        assert!(room.is_roomy());
        room.set_full(true);
        assert_eq!(room.take(1), Err(NoRoom::Reserve));
        assert!(!room.is_roomy());
    }

    /// F-150.
    #[test]
    fn a_file_system_without_its_reserve_gives_no_room() {
        let room = SpoolRoom::new(u64::MAX / 2, Some(Path::new("/")));

        assert_eq!(room.take(u64::MAX / 4), Err(NoRoom::Reserve));
    }
}
