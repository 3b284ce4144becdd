//! The world's time: it stands almost still unless the world steps, and it passes at the pace at
//! which threads that no timer knows of (the database's) can follow.

use leeward_control::{Clock, Now};
use leeward_model::UnixMillis;
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// What passes in the world with each step.
pub const STEP: Duration = Duration::from_millis(20);
/// What passes, outside and in the world, while the database is at work.
const AT_WORK: Duration = Duration::from_millis(1);
/// How often the database is looked at in a step, at most: a transaction may wait for another.
const AT_WORK_LOOKS_MAX: usize = 8;
/// Wall time at the world's beginning.
pub(super) const BEGIN_WALL_MS: i64 = 1_790_000_000_000;
/// Boot time of the config server at the world's beginning, in milliseconds.
const BEGIN_BOOT_MS: u64 = 1_000_000;

/// Lets one step pass, and then the database do what it has begun; `at_work` says whether there
/// is anything.
///
/// The runtime knows when its tasks and its blocking tasks have nothing left to do: only then its
/// time jumps to the next timer. Of the database's threads it does not know. So it may jump within
/// a step alone; between two steps it passes as outside, by next to nothing.
pub async fn pass(at_work: impl Fn() -> bool) {
    tokio::time::pause();
    tokio::time::sleep(STEP).await;
    tokio::time::resume();
    for _ in 0..AT_WORK_LOOKS_MAX {
        if !at_work() {
            return;
        }
        tokio::time::sleep(AT_WORK).await;
    }
}

/// The time since the world began, and the clocks of its machines.
#[derive(Clone, Copy, Debug)]
pub struct WorldTime {
    begin: Instant,
}

impl WorldTime {
    /// It begins now.
    pub fn begin() -> WorldTime {
        WorldTime { begin: Instant::now() }
    }

    /// Milliseconds since the beginning.
    pub fn ms(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }
}

/// The config server's clocks.
pub struct ServerTime {
    time: WorldTime,
    skew_ms: i64,
}

impl ServerTime {
    /// A server whose wall clock is `skew_ms` ahead.
    pub fn new(time: WorldTime, skew_ms: i64) -> ServerTime {
        ServerTime { time, skew_ms }
    }
}

impl Clock for ServerTime {
    fn now(&self) -> Now {
        let ms = self.time.ms();
        Now {
            wall: UnixMillis(BEGIN_WALL_MS + ms as i64 + self.skew_ms),
            boottime_ms: BEGIN_BOOT_MS + ms,
            boot: "boot-of-the-config-server".to_owned(),
        }
    }
}

/// A site's wall clock. No two readings are equal, so that a cut is known by its time.
#[derive(Clone)]
pub struct SiteWall {
    time: WorldTime,
    skew_ms: i64,
    last: Arc<AtomicI64>,
}

impl SiteWall {
    /// A wall clock that is `skew_ms` ahead.
    pub fn new(time: WorldTime, skew_ms: i64) -> SiteWall {
        SiteWall { time, skew_ms, last: Arc::default() }
    }

    /// Reads it.
    pub fn read(&self) -> UnixMillis {
        let now = BEGIN_WALL_MS + self.time.ms() as i64 + self.skew_ms;
        let before = self.last.load(Ordering::Relaxed);
        let now = now.max(before + 1);
        self.last.store(now, Ordering::Relaxed);
        UnixMillis(now)
    }

    /// The newest reading.
    pub fn last(&self) -> UnixMillis {
        UnixMillis(self.last.load(Ordering::Relaxed))
    }
}
