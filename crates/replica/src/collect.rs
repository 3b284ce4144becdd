//! Which segments nothing needs any more. Decides only; deleting is the writer's.
//!
//! A record is needed when a read at any kept place takes a block from it. A segment is let go
//! when none of its records is needed; segments are never rewritten.

use crate::{ItemReader, StoreError, manifest::ItemState, segments::read_index};
use leeward_model::{BlockMask, Lsn, Position, SegmentId, TimelineId};
use leeward_wire::record::RecordKind;
use std::collections::{BTreeMap, BTreeSet};

/// One version of an extent (or, under the marker's own place, one marker).
#[derive(Clone, Copy)]
struct Version {
    lsn: Lsn,
    mask: BlockMask,
    segment: SegmentId,
}

/// Versions of one extent by timeline, ascending by LSN.
type Versions = BTreeMap<TimelineId, Vec<Version>>;

/// The segments that no kept place needs.
pub(crate) fn droppable(reader: &ItemReader) -> Result<Vec<SegmentId>, StoreError> {
    let state = reader.state();
    let mut roots: BTreeMap<TimelineId, BTreeSet<Lsn>> = BTreeMap::new();
    for root in reader.roots()? {
        // A place at the very start of a timeline is a place of its parent.
        if let Some(place) = state.chain(root).first() {
            roots.entry(place.timeline).or_default().insert(place.lsn);
        }
    }
    let mut extents: BTreeMap<(u16, u32), Versions> = BTreeMap::new();
    for range in state.segments.values() {
        for entry in read_index(&reader.folder, range)?.entries {
            // The newest marker carries the disk table: it is needed as a whole.
            let mask = match entry.kind {
                RecordKind::Change => entry.mask,
                RecordKind::Marker => BlockMask::ALL,
            };
            let versions = extents.entry((entry.disk.0, entry.extent.0)).or_default();
            let version = Version { lsn: entry.lsn, mask, segment: range.segment };
            versions.entry(range.timeline).or_default().push(version);
        }
    }
    let mut live = BTreeSet::new();
    for mut versions in extents.into_values() {
        versions.values_mut().for_each(|versions| versions.sort_by_key(|version| version.lsn));
        for (timeline, roots) in &roots {
            mark_timeline(state, &versions, *timeline, roots, &mut live);
        }
    }
    Ok(state.segments.keys().copied().filter(|segment| !live.contains(segment)).collect())
}

/// Marks what roots on one timeline need of one extent. Roots between two versions read the same,
/// so one of them stands for all.
fn mark_timeline(
    state: &ItemState,
    versions: &Versions,
    timeline: TimelineId,
    roots: &BTreeSet<Lsn>,
    live: &mut BTreeSet<SegmentId>,
) {
    let own = versions.get(&timeline).map_or(&[][..], Vec::as_slice);
    let mut from = Lsn(0);
    for until in own.iter().map(|version| version.lsn).chain([Lsn(u64::MAX)]) {
        if let Some(root) = roots.range(from..until).next() {
            mark(state, versions, Position { timeline, lsn: *root }, live);
        }
        from = until;
    }
}

/// Marks the segments that a read of the extent at `place` takes blocks from.
fn mark(state: &ItemState, versions: &Versions, place: Position, live: &mut BTreeSet<SegmentId>) {
    let mut covered = BlockMask::NONE;
    for place in state.chain(place) {
        let own = versions.get(&place.timeline).map_or(&[][..], Vec::as_slice);
        let below = own.partition_point(|version| version.lsn <= place.lsn);
        for version in own[..below].iter().rev() {
            if covered == BlockMask::ALL {
                return;
            }
            live.insert(version.segment);
            covered = BlockMask(covered.0 | version.mask.0);
        }
    }
}
