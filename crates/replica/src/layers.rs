//! Layers: the index of a run of one timeline's log, merged, sorted and cut by regions of 4 GiB, so
//! that a view reads what it is asked for and not a footer for every segment ever written.
//!
//! A layer is an index and nothing else: without it the footers say the same, only slower. Which
//! layers an item has is in its manifests; when they are made is in `upkeep`.

mod format;
mod index;

pub(crate) use format::{Layer, LayerWriter, Live};
pub(crate) use index::{TimelineIndex, uncovered};

use crate::{StoreError, storage::StorageError};
use leeward_model::{DiskNumber, ExtentNumber, LayerId, SegmentId};
use leeward_wire::{
    record::{MARKER_DISK, MARKER_EXTENT},
    segment::FooterEntry,
};

/// Extents of a region: 65 536 of 64 KiB are 4 GiB.
const REGION_EXTENTS_LOG2: u32 = 16;

/// 4 GiB of one disk; ordered as records are, by disk and then by extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RegionKey {
    pub(crate) disk: DiskNumber,
    pub(crate) region: u16,
}

impl RegionKey {
    /// Where markers are: no disk has this number.
    pub(crate) const MARKERS: RegionKey =
        RegionKey { disk: MARKER_DISK, region: (MARKER_EXTENT.0 >> REGION_EXTENTS_LOG2) as u16 };

    /// The region of an extent.
    pub(crate) fn of(disk: DiskNumber, extent: ExtentNumber) -> RegionKey {
        RegionKey { disk, region: (extent.0 >> REGION_EXTENTS_LOG2) as u16 }
    }
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) segment: SegmentId,
    pub(crate) entry: FooterEntry,
}

impl IndexEntry {
    pub(crate) fn region(&self) -> RegionKey {
        RegionKey::of(self.entry.disk, self.entry.extent)
    }
}

/// The layer that an error is about: it is damaged or not there.
pub(crate) fn layer_of(error: &StoreError) -> Option<LayerId> {
    let path = match error {
        StoreError::Damaged { blob, .. } => blob,
        StoreError::Storage(StorageError::Absent { name }) => name,
        _ => return None,
    };
    let (folder, name) = path.rsplit_once('/')?;
    if folder.ends_with("/layers") { name.parse().ok() } else { None }
}
