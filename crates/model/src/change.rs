//! What a change source yields and every later stage passes on: changed blocks and markers.

use crate::{
    BlockMask, DiskEntry, DiskNumber, ExtentNumber, MachineSpec, PointId, PointKind, UnixMillis,
};

/// Keyed BLAKE3 of a whole 64 KiB extent; a short last extent is padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExtentHash(pub [u8; 32]);

impl std::fmt::Debug for ExtentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExtentHash({:02x}{:02x}{:02x}…)", self.0[0], self.0[1], self.0[2])
    }
}

/// One extent of one disk, as it is at the cut, reduced to the blocks that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The disk.
    pub disk: DiskNumber,
    /// The extent.
    pub extent: ExtentNumber,
    /// The blocks that `data` carries; never empty.
    pub mask: BlockMask,
    /// The named blocks one after another, `mask.bytes()` long; empty when all of them are zero.
    pub data: bytes::Bytes,
    /// Hash of the whole extent after this change.
    pub hash: ExtentHash,
}

/// A consistency marker: everything before it in the log is the state at one cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The recovery point that the marker makes.
    pub point: PointId,
    /// How the point was cut.
    pub kind: PointKind,
    /// When it was cut, by the source's wall clock.
    pub cut_at: UnixMillis,
    /// The item's disks at the cut.
    pub disks: Vec<DiskEntry>,
    /// The machine at the cut, so that the store alone is enough to start it.
    pub machine: MachineSpec,
}

/// Consecutive changes of one item's log, and the marker that ends them if they are complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeBatch {
    /// Changes in log order. Within one batch an extent appears at most once.
    pub changes: Vec<Change>,
    /// Present when the item's disks are consistent after `changes`.
    pub marker: Option<Marker>,
}
