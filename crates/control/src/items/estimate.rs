//! What bringing a machine home would cost, with both options of a planned failover, and which one
//! to propose. Pure: figures in, figures out. Nothing is promised: what the link or the disks do
//! meanwhile is not known.

use super::SyncOption;
use crate::store::items::ItemRow;
use crate::world::World;
use leeward_model::{DiskUse, MachineSpec, Protection};
use leeward_wire::message::{CycleFigures, Purpose};
use serde::{Deserialize, Serialize};

/// Bytes that a link carries in a second when none was measured: a gigabit link, less its framing.
const LINK_BYTES_PER_SECOND: u64 = 100_000_000;
/// Bytes that a comparison reads and hashes in a second: what a good disk gives without a pause.
const COMPARE_BYTES_PER_SECOND: u64 = 400_000_000;
/// Seconds in which a guest shuts down, its last changes are sent and it starts elsewhere.
const SWITCH_SECONDS: u64 = 30;
/// A recovery point that sent less tells of its own overhead, not of the link.
const MEASURED_BYTES_MIN: u64 = 1 << 20;

/// What one option would cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncEstimate {
    /// The option.
    pub option: SyncOption,
    /// Bytes of blocks to be sent, before compression.
    pub bytes: u64,
    /// Seconds from the request until the machine runs at the other site.
    pub seconds: u64,
    /// Seconds of these in which it is off.
    pub downtime_seconds: u64,
    /// What the figures rest on, in words.
    pub basis: String,
}

/// Both options and the one that finishes sooner; of two that are as quick, and when it is not
/// known what changed, the one with the smaller downtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSync {
    /// The option that is proposed.
    pub proposed: SyncOption,
    /// Synchronized beforehand, and copied whole while it is off, in this order.
    pub options: [SyncEstimate; 2],
}

/// What the estimate rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// Bytes of the disks, whatever they hold.
    size: u64,
    /// What the live disks hold.
    disk_use: Option<DiskUse>,
    /// Bytes that the machine that was left wrote on its own; they differ as well.
    divergent: u64,
    /// Whether there are old disks to compare with, as far as is known.
    old_disks: bool,
    /// Bytes that the link carried in a second.
    measured: Option<u64>,
}

/// The estimate for a machine that nothing replicates; none in any other state, or while nothing
/// is known of its disks.
pub(super) fn data_sync(
    world: &World,
    row: &ItemRow,
    spec: Option<&MachineSpec>,
) -> Option<DataSync> {
    match row.state.protection {
        Protection::FailedOver { .. } | Protection::Committed { .. } => {}
        Protection::Enabling { .. }
        | Protection::InitialReplication { .. }
        | Protection::Protected
        | Protection::Resynchronizing { .. }
        | Protection::FailingOver { .. }
        | Protection::ChangingPoint { .. }
        | Protection::Reprotecting { .. }
        | Protection::Disabling { .. }
        | Protection::Removed => return None,
    }
    let left = world.source_site();
    let live = row.plan.instances.iter().find(|plan| {
        plan.purpose == Purpose::Failover && plan.site == row.state.active && plan.permitted
    });
    let disk_use = live.and_then(|plan| world.instance_now(plan.id)?.disk_use);
    let size = spec.into_iter().flat_map(|spec| &spec.disks).map(|disk| disk.size).sum();
    if disk_use.is_none() && size == 0 {
        return None;
    }
    let seen = world.host(left).sight.item(row.id).and_then(|seen| seen.source.as_ref());
    let divergent = seen.and_then(|seen| seen.divergent.as_ref()?.dirty_bytes).unwrap_or(0);
    let gone = world.host(left).sight.observed.as_ref().is_some_and(|seen| {
        // One with an obstacle lacks an image, or cannot be read.
        let mut whole = seen.machines.iter().filter(|machine| machine.obstacles.is_empty());
        !whole.any(|machine| machine.spec.name == row.plan.end(left).machine)
    });
    let measured = seen.and_then(|seen| rate(&seen.cycles));
    let old_disks = row.plan.end(left).stale && !gone;
    Some(estimate(&Known { size, disk_use, divergent, old_disks, measured }))
}

/// Bytes a second that the newest recovery points were sent with.
fn rate(cycles: &[CycleFigures]) -> Option<u64> {
    let told = cycles.iter().filter(|cycle| cycle.sent_bytes >= MEASURED_BYTES_MIN);
    let (bytes, ms) = told
        .fold((0_u64, 0.0), |(bytes, ms), cycle| (bytes + cycle.sent_bytes, ms + cycle.cycle_ms));
    (bytes > 0 && ms > 0.0).then(|| (bytes as f64 * 1e3 / ms) as u64).filter(|rate| *rate > 0)
}

fn estimate(known: &Known) -> DataSync {
    let rate = known.measured.unwrap_or(LINK_BYTES_PER_SECOND);
    let link = match known.measured {
        Some(rate) => format!("{rate} bytes/s as measured with its last recovery points"),
        None => format!("{rate} bytes/s assumed: nothing was measured"),
    };
    let (allocated, held) = match known.disk_use {
        Some(seen) => (seen.allocated_bytes, "what its disks hold"),
        None => (known.size, "the size of its disks, as it is not known what they hold"),
    };
    let copying = allocated.div_ceil(rate);
    let whole = SyncEstimate {
        option: SyncOption::ForSynchronization,
        bytes: allocated,
        seconds: copying + SWITCH_SECONDS,
        downtime_seconds: copying + SWITCH_SECONDS,
        basis: format!("{held}; {link}"),
    };
    let changed = known.disk_use.and_then(|seen| seen.changed_bytes);
    let (bytes, comparing, differs) = match (known.old_disks, changed) {
        (false, _) => (allocated, 0, format!("{held}, as there are no old disks")),
        (true, Some(changed)) => (
            changed.saturating_add(known.divergent).min(allocated),
            2 * allocated.div_ceil(COMPARE_BYTES_PER_SECOND),
            "what changed on either side since the failover".to_owned(),
        ),
        (true, None) => (
            allocated,
            2 * allocated.div_ceil(COMPARE_BYTES_PER_SECOND),
            format!("{held}, as it is not known what changed: at most that"),
        ),
    };
    let synchronized = SyncEstimate {
        option: SyncOption::ForDownTime,
        bytes,
        seconds: comparing + bytes.div_ceil(rate) + SWITCH_SECONDS,
        downtime_seconds: SWITCH_SECONDS,
        basis: format!("{differs}; {link}"),
    };
    // Without knowing what changed nobody is sent into the long downtime.
    let is_told = changed.is_some() || !known.old_disks;
    let key = |one: &SyncEstimate| (one.seconds, one.downtime_seconds);
    let proposed = match is_told && key(&whole) < key(&synchronized) {
        true => whole.option,
        false => synchronized.option,
    };
    DataSync { proposed, options: [synchronized, whole] }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn known(changed: Option<u64>, old_disks: bool) -> Known {
        let disk_use = Some(DiskUse { allocated_bytes: 40 * GIB, changed_bytes: changed });
        Known { size: 100 * GIB, disk_use, divergent: 0, old_disks, measured: None }
    }

    /// F-108, F-109.
    #[test]
    fn the_option_that_is_through_sooner_is_proposed_and_the_smaller_downtime_at_a_tie() {
        use SyncOption::{ForDownTime, ForSynchronization};
        for (known, proposed, bytes) in [
            (known(Some(GIB), true), ForDownTime, [1, 40]),
            // Nearly all of it changed: reading and hashing both sides is not worth it.
            (known(Some(39 * GIB), true), ForSynchronization, [39, 40]),
            (known(None, true), ForDownTime, [40, 40]),
            (known(Some(GIB), false), ForDownTime, [40, 40]),
            (Known { divergent: 5 * GIB, ..known(Some(GIB), true) }, ForDownTime, [6, 40]),
            (Known { disk_use: None, ..known(None, false) }, ForDownTime, [100, 100]),
        ] {
            let found = estimate(&known);

            assert_eq!(found.proposed, proposed, "{known:?}");
            assert_eq!(found.options.clone().map(|one| one.bytes / GIB), bytes, "{known:?}");
            let [synchronized, whole] = &found.options;
            assert_eq!((synchronized.option, whole.option), (ForDownTime, ForSynchronization));
            assert_eq!(synchronized.downtime_seconds, SWITCH_SECONDS);
            assert_eq!(whole.downtime_seconds, whole.seconds, "it is off all the time");
        }
    }

    #[test]
    fn a_measured_rate_counts_and_small_points_measure_nothing() {
        let cycle = |sent_bytes, cycle_ms| CycleFigures {
            pause_ms: 0.0,
            cycle_ms,
            dirty_bytes: sent_bytes,
            sent_bytes,
        };
        assert_eq!(rate(&[cycle(4096, 500.0)]), None);
        let measured = rate(&[cycle(4096, 500.0), cycle(10_000_000, 1000.0)]);
        assert_eq!(measured, Some(10_000_000));

        let slow = estimate(&Known { measured, ..known(Some(GIB), true) });

        assert_eq!(slow.options[1].seconds, (40 * GIB).div_ceil(10_000_000) + SWITCH_SECONDS);
        assert!(slow.options[0].basis.contains("measured"));
    }
}
