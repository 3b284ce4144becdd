//! How many bytes a second replication may send, and when: a limit for all times and windows of the
//! week with their own. Does not count bytes and does not wait.

use crate::{ResyncWindow, UnixMillis};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The lowest limit, in bytes a second: an extent of 64 KiB is then a second on its way. With less
/// a session would be taken for dead.
pub const BANDWIDTH_MIN: u64 = 64 << 10;
/// The most windows of a schedule.
pub const BANDWIDTH_WINDOWS_MAX: usize = 32;
const DAY_NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// Where no limit is.
const UNLIMITED: &str = "none";

/// Days of the week, Monday first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Days(u8);

impl Days {
    /// Every day.
    pub const ALL: Days = Days(0x7f);

    /// Whether the day is one of them whose number since 1970-01-01, a Thursday, is `day`.
    fn has(self, day: i64) -> bool {
        self.0 >> (day + 3).rem_euclid(7) & 1 == 1
    }
}

/// A part of some days of the week, in UTC, and the limit then. One over midnight belongs to the
/// day on which it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandwidthWindow {
    /// The days.
    pub days: Days,
    /// The part of them.
    pub time: ResyncWindow,
    /// Bytes a second; none for no limit.
    pub limit: Option<u64>,
}

/// What replication may send: see the module. All items of a host whose policies have the same one
/// share it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bandwidth {
    /// Bytes a second outside the windows; none for no limit.
    pub limit: Option<u64>,
    /// Of those that are open, the first counts.
    pub windows: Vec<BandwidthWindow>,
}

/// The text is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBandwidth {
    /// It has another form.
    #[error(
        "it is BYTES or none, then any number of `; DAYS HH:MM-HH:MM=BYTES` in UTC, where DAYS are \
         daily, or days and ranges as in mon-fri,sun"
    )]
    Form,
    /// It is so low that nothing would work.
    #[error("{0} bytes a second are too few: {BANDWIDTH_MIN} is the lowest limit")]
    TooLow(u64),
    /// There are too many windows.
    #[error("there may be {BANDWIDTH_WINDOWS_MAX} windows at most")]
    TooMany,
}

impl Bandwidth {
    /// The limit at a time; none when there is none.
    pub fn at(&self, now: UnixMillis) -> Option<u64> {
        let open = |window: &&BandwidthWindow| {
            window.time.began_on(now).is_some_and(|day| window.days.has(day))
        };
        self.windows.iter().find(open).map_or(self.limit, |window| window.limit)
    }

    /// Whether it never limits anything.
    pub fn is_unlimited(&self) -> bool {
        self.limit.is_none() && self.windows.iter().all(|window| window.limit.is_none())
    }
}

fn limit(text: &str) -> Result<Option<u64>, NoBandwidth> {
    if text.eq_ignore_ascii_case(UNLIMITED) {
        return Ok(None);
    }
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = text.parse::<u64>().ok().filter(|_| plain).ok_or(NoBandwidth::Form)?;
    if bytes < BANDWIDTH_MIN { Err(NoBandwidth::TooLow(bytes)) } else { Ok(Some(bytes)) }
}

fn limit_text(limit: Option<u64>) -> String {
    limit.map_or(UNLIMITED.to_owned(), |bytes| bytes.to_string())
}

impl FromStr for Days {
    type Err = NoBandwidth;

    fn from_str(text: &str) -> Result<Days, NoBandwidth> {
        if text.eq_ignore_ascii_case("daily") {
            return Ok(Days::ALL);
        }
        let day = |name: &str| {
            let found = DAY_NAMES.iter().position(|known| known.eq_ignore_ascii_case(name));
            found.ok_or(NoBandwidth::Form)
        };
        let mut days = 0;
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (day(from)?, day(to)?);
            // Over the end of the week as well: sat-mon.
            let count = (to + 7 - from) % 7 + 1;
            (0..count).for_each(|step| days |= 1 << ((from + step) % 7));
        }
        Ok(Days(days))
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Days::ALL {
            return f.write_str("daily");
        }
        let named = (0..7).filter(|day| self.0 >> day & 1 == 1).map(|day| DAY_NAMES[day]);
        f.write_str(&named.collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Bandwidth {
    type Err = NoBandwidth;

    fn from_str(text: &str) -> Result<Bandwidth, NoBandwidth> {
        let mut parts = text.split(';').map(str::trim);
        let mut bandwidth =
            Bandwidth { limit: limit(parts.next().unwrap_or_default())?, windows: Vec::new() };
        for part in parts {
            let (when, bytes) = part.split_once('=').ok_or(NoBandwidth::Form)?;
            let (days, time) = when.trim().split_once(' ').ok_or(NoBandwidth::Form)?;
            let time = time.trim().parse().map_err(|_| NoBandwidth::Form)?;
            let window = BandwidthWindow { days: days.parse()?, time, limit: limit(bytes.trim())? };
            bandwidth.windows.push(window);
        }
        match bandwidth.windows.len() > BANDWIDTH_WINDOWS_MAX {
            true => Err(NoBandwidth::TooMany),
            false => Ok(bandwidth),
        }
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&limit_text(self.limit))?;
        for BandwidthWindow { days, time, limit } in &self.windows {
            write!(f, "; {days} {time}={}", limit_text(*limit))?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Bandwidth {
    type Error = NoBandwidth;

    fn try_from(text: String) -> Result<Bandwidth, NoBandwidth> {
        text.parse()
    }
}

impl From<Bandwidth> for String {
    fn from(bandwidth: Bandwidth) -> String {
        bandwidth.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;
    /// A Monday, 2026-11-23, at midnight.
    const MONDAY: i64 = 20_780 * DAY;

    fn at(day: i64, hours: i64) -> UnixMillis {
        UnixMillis(MONDAY + day * DAY + hours * 3_600_000)
    }

    /// F-046: bandwidth limits by the day of the week and the time of the day.
    #[test]
    fn the_first_open_window_counts_and_a_night_belongs_to_the_day_it_begins_on() {
        let text =
            "none; mon-fri 08:00-18:00=2000000; fri 22:00-06:00=none; daily 20:00-06:00=90000";
        let bandwidth: Bandwidth = text.parse().unwrap();

        for (day, hours, limit) in [
            (0, 7, None),
            (0, 8, Some(2_000_000)),
            (4, 17, Some(2_000_000)),
            (5, 12, None),
            (0, 21, Some(90_000)),
            (4, 21, Some(90_000)),
            (4, 22, None),
            (5, 5, None),
            (5, 6, None),
            (6, 5, Some(90_000)),
            (-7, 8, Some(2_000_000)),
        ] {
            assert_eq!(bandwidth.at(at(day, hours)), limit, "day {day} at {hours}");
        }
        assert_eq!(bandwidth.at(UnixMillis(9 * 3_600_000)), Some(2_000_000), "a Thursday");
        assert!(!bandwidth.is_unlimited() && Bandwidth::default().is_unlimited());
    }

    #[test]
    fn a_limit_is_written_as_it_is_read() {
        for text in ["none", "65536", "100000; sat,sun 00:00-23:59=none; daily 01:00-02:00=70000"] {
            let bandwidth: Bandwidth = text.parse().unwrap();
            assert_eq!(bandwidth.to_string(), text);
        }
        let over: Bandwidth = "none; sat-mon 01:00-02:00=70000".parse().unwrap();
        assert_eq!(over.to_string(), "none; mon,sat,sun 01:00-02:00=70000");
        for (text, error) in [
            ("", NoBandwidth::Form),
            ("10M", NoBandwidth::Form),
            ("+70000", NoBandwidth::Form),
            ("65535", NoBandwidth::TooLow(65_535)),
            ("0", NoBandwidth::TooLow(0)),
            ("none;", NoBandwidth::Form),
            ("none; mon 08:00-18:00", NoBandwidth::Form),
            ("none; may 08:00-18:00=70000", NoBandwidth::Form),
            ("none; mon 8:00-18:00=70000", NoBandwidth::Form),
        ] {
            assert_eq!(text.parse::<Bandwidth>(), Err(error), "{text}");
        }
        let many = format!("none{}", "; mon 08:00-18:00=70000".repeat(33));
        assert_eq!(many.parse::<Bandwidth>(), Err(NoBandwidth::TooMany));
    }
}
