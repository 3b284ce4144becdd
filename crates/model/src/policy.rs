//! Replication policies.

use crate::{Bandwidth, UnixMillis};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// The shortest interval between recovery points.
pub const POINT_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The longest interval between recovery points.
pub const POINT_INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// The share of a machine's disks, in percent, that a delta may carry when nothing else is said.
pub const RESYNC_THRESHOLD_PERCENT: u8 = 50;
const DAY_MINUTES: u16 = 24 * 60;

/// The part of every day in which a comparison of source and target may begin by itself, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResyncWindow {
    from_minute: u16,
    to_minute: u16,
}

/// The text is no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a window is HH:MM-HH:MM in UTC, with two different times of the day")]
pub struct NoWindow;

impl ResyncWindow {
    /// The window from a minute of the day, 0 to 1439, up to but without another one. It wraps
    /// over midnight when the end is the earlier of both.
    ///
    /// # Errors
    /// When a minute is none of the day, or both are the same.
    pub fn new(from_minute: u16, to_minute: u16) -> Result<ResyncWindow, NoWindow> {
        let fits = from_minute < DAY_MINUTES && to_minute < DAY_MINUTES;
        if fits && from_minute != to_minute {
            Ok(ResyncWindow { from_minute, to_minute })
        } else {
            Err(NoWindow)
        }
    }

    /// Whether it is open at `at`.
    pub fn contains(self, at: UnixMillis) -> bool {
        self.began_on(at).is_some()
    }

    /// The day, by its number since 1970, on which the window began that is open at `at`.
    pub(crate) fn began_on(self, at: UnixMillis) -> Option<i64> {
        let minutes = at.0.div_euclid(60_000);
        let length = i64::from(DAY_MINUTES);
        let (day, minute) = (minutes.div_euclid(length), minutes.rem_euclid(length));
        let (from, to) = (i64::from(self.from_minute), i64::from(self.to_minute));
        match from < to {
            true => (from..to).contains(&minute).then_some(day),
            false if minute >= from => Some(day),
            false => (minute < to).then_some(day - 1),
        }
    }
}

impl fmt::Display for ResyncWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from_minute, self.to_minute);
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl FromStr for ResyncWindow {
    type Err = NoWindow;

    fn from_str(text: &str) -> Result<ResyncWindow, NoWindow> {
        let minute = |time: &str| {
            let (hours, minutes) = time.split_once(':').ok_or(NoWindow)?;
            let number = |digits: &str, limit: u16| {
                let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
                let value = digits.parse::<u16>().ok().filter(|value| plain && *value < limit);
                value.ok_or(NoWindow)
            };
            Ok(number(hours, 24)? * 60 + number(minutes, 60)?)
        };
        let (from, to) = text.split_once('-').ok_or(NoWindow)?;
        ResyncWindow::new(minute(from)?, minute(to)?)
    }
}

impl TryFrom<String> for ResyncWindow {
    type Error = NoWindow;

    fn try_from(text: String) -> Result<ResyncWindow, NoWindow> {
        text.parse()
    }
}

impl From<ResyncWindow> for String {
    fn from(window: ResyncWindow) -> String {
        window.to_string()
    }
}

/// What an item's owner wants of its replication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Time between recovery points, in milliseconds: 1 s to 1 h.
    pub point_interval_ms: u64,
    /// How long points are kept, in seconds.
    pub retention_seconds: u64,
    /// An RPO above this, in seconds, is a health error.
    pub rpo_threshold_seconds: u64,
    /// How long points are kept after a commit, in seconds.
    pub keep_after_commit_seconds: u64,
    /// How long a guest may take to shut down before a failover goes on without it, in seconds.
    pub shutdown_timeout_seconds: u64,
    /// Whether a planned failover goes on to protect the machine in the other direction (F-084).
    /// It does so by itself after a planned failover, and makes a reprotect before the commit
    /// legal. Off unless it is asked for.
    #[serde(default)]
    pub auto_reverse_planned: bool,
    /// More changed bytes than this share of all disks, in percent, 1 to 100, are no delta any
    /// more: source and target are compared instead (F-152).
    #[serde(default = "resync_threshold_percent")]
    pub resync_threshold_percent: u8,
    /// When a comparison that has become necessary may begin by itself; none means at any time
    /// (F-154).
    #[serde(default)]
    pub resync_window: Option<ResyncWindow>,
    /// How many bytes a second may be sent, and when (F-046). All items of a host whose policies
    /// say the same share it.
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

fn resync_threshold_percent() -> u8 {
    RESYNC_THRESHOLD_PERCENT
}

impl Default for Policy {
    /// 5 min points kept for 24 h, RPO threshold 15 min, 7 days after commit, 2 min to shut down,
    /// no automatic reverse, comparison above 50 % of the disks and at any time.
    fn default() -> Self {
        Policy {
            point_interval_ms: 300_000,
            retention_seconds: 86_400,
            rpo_threshold_seconds: 900,
            keep_after_commit_seconds: 7 * 86_400,
            shutdown_timeout_seconds: 120,
            auto_reverse_planned: false,
            resync_threshold_percent: RESYNC_THRESHOLD_PERCENT,
            resync_window: None,
            bandwidth: Bandwidth::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64, minutes: i64) -> UnixMillis {
        UnixMillis(20_000 * 86_400_000 + (hours * 60 + minutes) * 60_000 + 59_999)
    }

    /// F-154.
    #[test]
    fn a_window_may_wrap_over_midnight() {
        let night: ResyncWindow = "18:30-06:30".parse().unwrap();
        let noon: ResyncWindow = "11:00-13:00".parse().unwrap();

        for (hours, minutes, in_night, in_noon) in [
            (18, 29, false, false),
            (18, 30, true, false),
            (0, 0, true, false),
            (6, 29, true, false),
            (6, 30, false, false),
            (11, 0, false, true),
            (12, 59, false, true),
            (13, 0, false, false),
        ] {
            assert_eq!(night.contains(at(hours, minutes)), in_night, "{hours}:{minutes}");
            assert_eq!(noon.contains(at(hours, minutes)), in_noon, "{hours}:{minutes}");
        }
        assert!(night.contains(UnixMillis(-1)), "the minute before 1970");
    }

    #[test]
    fn a_window_is_written_as_it_is_read() {
        for text in ["18:30-06:30", "00:00-23:59"] {
            assert_eq!(text.parse::<ResyncWindow>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "18:30",
            "24:00-06:00",
            "18:60-06:00",
            "8:30-9:30",
            "+8:30-09:30",
            "06:00-06:00",
            "18:30-06:30-07:00",
        ] {
            assert_eq!(text.parse::<ResyncWindow>(), Err(NoWindow), "{text}");
        }
    }

    #[test]
    fn a_policy_that_was_stored_before_has_the_defaults() {
        let mut stored = serde_json::to_value(Policy::default()).unwrap();
        for member in ["resync_threshold_percent", "resync_window", "bandwidth"] {
            assert!(stored.as_object_mut().unwrap().remove(member).is_some());
        }
        assert_eq!(serde_json::from_value::<Policy>(stored).unwrap(), Policy::default());
    }
}
