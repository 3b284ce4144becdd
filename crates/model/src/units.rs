//! Units: sizes, positions and versions as types of their own, so that two cannot be swapped.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The finest unit of change, of zero detection and of transfer, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// The unit of hashing, sealing and indexing, in bytes. BLAKE3 costs a third per byte at this
/// size of what it costs at 4 KiB, and a larger unit gains nothing more (measured).
pub const EXTENT_BYTES: u64 = 65_536;
/// Blocks in an extent; also the number of bits in a [`BlockMask`].
pub const BLOCKS_PER_EXTENT: u32 = 16;

macro_rules! number {
    ($($(#[$doc:meta])* $name:ident($inner:ty))*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize,
            Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

number! {
    /// Position in one protected item's log, over all its disks; the first record has 1, and a
    /// timeline has no gaps. A new timeline starts at its parent's position + 1.
    Lsn(u64)
    /// Who may write. It only grows; stores and hosts refuse what comes with a lower one.
    Epoch(u64)
    /// Number of a disk within its item. Never reused, also after the disk is gone.
    DiskNumber(u16)
    /// Number of a 64 KiB extent on its disk: byte offset / [`EXTENT_BYTES`].
    ExtentNumber(u32)
    /// Wall time in milliseconds since 1970-01-01 UTC. For people, never for ordering.
    UnixMillis(i64)
}

impl Lsn {
    /// The position after this one.
    pub const fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

impl Epoch {
    /// The next epoch.
    pub const fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl ExtentNumber {
    /// Byte offset of the extent's first byte on its disk.
    pub const fn offset(self) -> u64 {
        self.0 as u64 * EXTENT_BYTES
    }
    /// The extent that holds byte `offset`, or `None` beyond 2^32 extents (256 TiB).
    pub fn holding(offset: u64) -> Option<ExtentNumber> {
        u32::try_from(offset / EXTENT_BYTES).ok().map(ExtentNumber)
    }
}

/// Which of an extent's 16 blocks a record carries; bit 0 is the block with the lowest offset.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockMask(pub u16);

impl BlockMask {
    /// All 16 blocks.
    pub const ALL: BlockMask = BlockMask(u16::MAX);
    /// No block.
    pub const NONE: BlockMask = BlockMask(0);

    /// Number of blocks named.
    pub const fn blocks(self) -> u32 {
        self.0.count_ones()
    }
    /// Bytes that a record with this mask carries before compression.
    pub const fn bytes(self) -> u64 {
        self.blocks() as u64 * BLOCK_BYTES
    }
    /// Whether block `index` (0 to 15) is named.
    pub const fn has(self, index: u32) -> bool {
        self.0 >> index & 1 == 1
    }
    /// This mask with block `index` (0 to 15) named as well.
    #[must_use]
    pub const fn with(self, index: u32) -> BlockMask {
        BlockMask(self.0 | 1 << index)
    }
    /// The named blocks' indices, ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..BLOCKS_PER_EXTENT).filter(move |index| self.has(*index))
    }
}

impl fmt::Debug for BlockMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockMask({:016b})", self.0)
    }
}
