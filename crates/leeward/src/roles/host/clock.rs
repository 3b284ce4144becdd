//! The config server's clock as this host knows it, and this host's own clocks.
//!
//! An event's server time is taken from the newest tick: the tick's stamp plus the time since it
//! arrived. The tick was on its way for some time, so the result is never later than the truth,
//! and an RPO computed from it is never lower than the truth (invariant I8). Wall clocks play no
//! part: they may be hours off.

use leeward_model::UnixMillis;
use leeward_wire::message::ServerStamp;
use std::{
    sync::{Arc, Mutex},
    time::SystemTime,
};
use tokio::time::Instant;

/// The newest tick and when it arrived.
#[derive(Default)]
pub struct ServerClock {
    newest: Mutex<Option<(ServerStamp, Instant)>>,
}

impl ServerClock {
    /// Takes a tick that arrived at `at`.
    pub fn ticked(&self, stamp: ServerStamp, at: Instant) {
        *self.newest.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((stamp, at));
    }

    /// The server's time at `event`, or `None` before the first tick.
    pub fn at(&self, event: Instant) -> Option<ServerStamp> {
        let newest = self.newest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (stamp, arrived) = newest.as_ref()?;
        let since = event.saturating_duration_since(*arrived).as_millis() as u64;
        let before = arrived.saturating_duration_since(event).as_millis() as u64;
        Some(ServerStamp {
            boot: stamp.boot.clone(),
            ms: (stamp.ms + since).saturating_sub(before),
            wall: UnixMillis(stamp.wall.0 + since as i64 - before as i64),
        })
    }
}

/// A host's wall clock. Nothing is ordered by it; it may be hours off.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> UnixMillis + Send + Sync>);

impl WallClock {
    /// The machine's own.
    pub fn system() -> Self {
        WallClock::new(wall_now)
    }

    /// One that tells what `now` says.
    pub fn new(now: impl Fn() -> UnixMillis + Send + Sync + 'static) -> Self {
        WallClock(Arc::new(now))
    }

    /// The present time.
    pub fn now(&self) -> UnixMillis {
        (self.0)()
    }
}

/// This machine's wall clock.
pub fn wall_now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(since.as_millis() as i64)
}

/// A wall time as it stands in names: `20261121T030405Z`.
pub fn stamp(time: UnixMillis) -> String {
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(time) => time.strftime("%Y%m%dT%H%M%SZ").to_string(),
        Err(_) => time.0.to_string(),
    }
}

/// This host's boot id.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Milliseconds since this machine's boot.
pub fn boottime_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_event_is_never_placed_later_than_it_was() {
        let clock = ServerClock::default();
        let sent = Instant::now();
        let on_its_way = Duration::from_millis(40);
        let stamp = ServerStamp { boot: "b".into(), ms: 1_000, wall: UnixMillis(0) };
        clock.ticked(stamp, sent + on_its_way);

        let event = sent + Duration::from_millis(500);

        let truth = 1_000 + 500;
        let placed = clock.at(event).unwrap().ms;
        assert!(placed <= truth, "{placed}");
        assert_eq!(placed, truth - 40);
    }

    #[test]
    fn an_event_before_the_newest_tick_is_placed_before_it() {
        let clock = ServerClock::default();
        let arrived = Instant::now() + Duration::from_secs(10);
        clock.ticked(ServerStamp { boot: "b".into(), ms: 9_000, wall: UnixMillis(0) }, arrived);

        let placed = clock.at(arrived - Duration::from_secs(2)).unwrap().ms;

        assert_eq!(placed, 7_000);
    }
}
