//! How old the newest committed point is: by the config server's boot-time clock, rounded up.

use crate::Now;
use leeward_wire::message::NewestPoint;

/// Seconds since the cut of `newest`, never fewer than really passed; none when it is not known.
///
/// The stamp is never later than the cut, so the difference within one boot is an upper bound,
/// whatever any wall clock says. Over a reboot of the config server's machine only the wall clock
/// is left; it is corrected upwards by the time since the boot, which the point is older than.
pub fn rpo_seconds(newest: &NewestPoint, now: &Now) -> Option<u64> {
    let stamp = newest.cut_server.as_ref()?;
    let age_ms = if stamp.boot == now.boot {
        now.boottime_ms.checked_sub(stamp.ms)?
    } else {
        let wall = now.wall.0.saturating_sub(stamp.wall.0);
        u64::try_from(wall).unwrap_or(0).max(now.boottime_ms)
    };
    Some(age_ms.div_ceil(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::{Lsn, PointId, PointKind, Position, TimelineId, UnixMillis};
    use leeward_wire::message::ServerStamp;
    use proptest::prelude::*;

    fn newest(stamp: Option<ServerStamp>, wall: i64) -> NewestPoint {
        NewestPoint {
            point: PointId::from_u128(1),
            position: Position { timeline: TimelineId::from_u128(1), lsn: Lsn(1) },
            kind: PointKind::CrashConsistent,
            cut_at: UnixMillis(wall),
            cut_server: stamp,
            received_at: UnixMillis(wall),
        }
    }

    proptest! {
        #[test]
        fn rpo_is_never_below_the_truth_whatever_the_wall_clocks_say(
            cut_ms in 0u64..1_000_000_000,
            age_ms in 0u64..1_000_000_000,
            early_ms in 0u64..5_000,
            walls in any::<(i64, i64, i64)>(),
        ) {
            let boot = "b".to_owned();
            let stamp = ServerStamp {
                boot: boot.clone(),
                ms: cut_ms.saturating_sub(early_ms),
                wall: UnixMillis(walls.0),
            };
            let now = Now { wall: UnixMillis(walls.1), boottime_ms: cut_ms + age_ms, boot };

            let rpo = rpo_seconds(&newest(Some(stamp), walls.2), &now).unwrap();

            prop_assert!(rpo * 1000 >= age_ms);
            prop_assert!(rpo * 1000 < age_ms + early_ms + 1000);
        }
    }

    #[test]
    fn a_point_of_an_earlier_boot_is_at_least_as_old_as_this_boot() {
        let wall = UnixMillis(9_000_000);
        let stamp = ServerStamp { boot: "earlier".into(), ms: 5, wall };
        let now = Now { wall: UnixMillis(1_000), boottime_ms: 60_001, boot: "this".into() };

        assert_eq!(rpo_seconds(&newest(Some(stamp), 0), &now), Some(61));
    }

    #[test]
    fn without_a_stamp_the_rpo_is_unknown_and_not_zero() {
        let now = Now { wall: UnixMillis(0), boottime_ms: 1, boot: "b".into() };

        assert_eq!(rpo_seconds(&newest(None, 0), &now), None);
    }
}
