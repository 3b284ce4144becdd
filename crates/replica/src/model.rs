//! The oracle: what a store has to be, in maps, without segments, manifests or files.
//!
//! Obviously right rather than fast. It says what is acknowledged and what every block holds.

use leeward_model::{
    BLOCK_BYTES, BlockMask, Branch, DiskNumber, EXTENT_BYTES, Epoch, ExtentNumber, Lsn, PointId,
    Position, TimelineId,
};
use std::collections::BTreeMap;

/// What a record of the model carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRecord {
    /// Blocks of one extent; each is filled with one byte.
    Change {
        /// The disk.
        disk: DiskNumber,
        /// The extent.
        extent: ExtentNumber,
        /// The blocks.
        mask: BlockMask,
        /// What fills them.
        fill: u8,
    },
    /// A marker.
    Marker {
        /// Its point.
        point: PointId,
    },
}

/// The whole truth about one item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelItem {
    /// Timelines, in the order in which they were opened.
    pub branches: Vec<Branch>,
    /// The lowest epoch that is taken.
    pub fence: Epoch,
    /// Everything ever received, by place; what was received again replaces what was there.
    pub records: BTreeMap<(TimelineId, Lsn), ModelRecord>,
    /// Newest committed LSN of each timeline.
    pub committed: BTreeMap<TimelineId, Lsn>,
    /// Listed points.
    pub points: BTreeMap<PointId, Position>,
    /// Listed kept work, and the place it sits on.
    pub kept: BTreeMap<PointId, Position>,
    /// Pins: how often each point is pinned.
    pub pins: BTreeMap<PointId, usize>,
}

impl ModelItem {
    /// The timeline's branch.
    pub fn branch(&self, timeline: TimelineId) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.timeline == timeline)
    }

    /// Newest committed place of a timeline, or its start.
    pub fn head(&self, timeline: TimelineId) -> Lsn {
        let branch = self.branch(timeline);
        let start = branch.and_then(|branch| branch.parent).map_or(Lsn(0), |parent| parent.lsn);
        self.committed.get(&timeline).copied().unwrap_or(start)
    }

    /// Commits everything up to a place.
    pub fn commit(&mut self, place: Position) {
        let head = self.committed.entry(place.timeline).or_insert(place.lsn);
        *head = (*head).max(place.lsn);
    }

    /// Forgets what was received on a timeline from `lsn` on.
    pub fn forget_from(&mut self, timeline: TimelineId, lsn: Lsn) {
        self.records.retain(|(other, at), _| *other != timeline || *at < lsn);
    }

    /// What one block holds at a place: the byte that fills it, 0 when nothing was written.
    pub fn block(&self, place: Position, disk: DiskNumber, extent: ExtentNumber, at: u32) -> u8 {
        let mut place = Some(place);
        while let Some(Position { timeline, lsn }) = place {
            let start = self.branch(timeline).and_then(|branch| branch.parent);
            let own = self.records.range((timeline, Lsn(0))..=(timeline, lsn)).rev();
            for (_, record) in own {
                match record {
                    ModelRecord::Change { disk: d, extent: e, mask, fill }
                        if (*d, *e) == (disk, extent) && mask.has(at) =>
                    {
                        return *fill;
                    }
                    ModelRecord::Change { .. } | ModelRecord::Marker { .. } => {}
                }
            }
            place = start.map(|parent| Position { lsn: parent.lsn.min(lsn), ..parent });
        }
        0
    }

    /// A whole extent at a place.
    pub fn extent(&self, place: Position, disk: DiskNumber, extent: ExtentNumber) -> Vec<u8> {
        let blocks = (EXTENT_BYTES / BLOCK_BYTES) as u32;
        let fill = |at| self.block(place, disk, extent, at);
        (0..blocks).flat_map(|at| [fill(at); BLOCK_BYTES as usize]).collect()
    }
}
