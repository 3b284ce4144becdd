//! Deliberate mistakes in a change source, to prove that a test harness sees them.
//!
//! Wraps any source. Never in a product: the feature `testing` only.

use crate::source::{
    Attached, ByteRange, CaptureError, ChangeSource, Cut, CutEnd, DiskReader, LiveRead,
};
use async_trait::async_trait;
use bytes::Bytes;
use leeward_model::{BLOCK_BYTES, DiskEntry, DiskNumber, EXTENT_BYTES, Lsn, Position, TimelineId};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// Every cut leaves out the first extent that it should name.
    DropOneDirtyBit,
    /// An abandoned cut lets go of its changes as if it had been committed.
    ClearBitmapsEarly,
    /// A comparison of everything leaves out the first extent that may differ from zero.
    SkipOneExtent,
    /// Cuts give disk 0's content for disk 1 and the other way round, where both have it.
    SwapTwoDisks,
}

/// A source that makes one mistake.
pub struct MutantSource<S> {
    inner: S,
    mutation: Mutation,
    base: Position,
}

impl<S: ChangeSource> MutantSource<S> {
    /// Wraps `inner`.
    pub fn new(inner: S, mutation: Mutation) -> MutantSource<S> {
        let base = Position { timeline: TimelineId::from_u128(0), lsn: Lsn(0) };
        MutantSource { inner, mutation, base }
    }

    fn mutant(&self, inner: Arc<dyn DiskReader>) -> Arc<dyn DiskReader> {
        let disks = self.inner.disks();
        let bit_dropped = AtomicBool::new(false);
        Arc::new(MutantReader { inner, mutation: self.mutation, disks, bit_dropped })
    }
}

struct MutantReader {
    inner: Arc<dyn DiskReader>,
    mutation: Mutation,
    disks: Vec<DiskEntry>,
    bit_dropped: AtomicBool,
}

impl MutantReader {
    fn swapped(&self, disk: DiskNumber, end: u64) -> DiskNumber {
        let other = match disk {
            DiskNumber(0) => DiskNumber(1),
            DiskNumber(1) => DiskNumber(0),
            DiskNumber(_) => return disk,
        };
        let fits = self.disks.iter().any(|entry| entry.number == other && entry.size >= end);
        if fits { other } else { disk }
    }
}

#[async_trait]
impl DiskReader for MutantReader {
    async fn ranges(&self, disk: DiskNumber) -> Result<Vec<ByteRange>, CaptureError> {
        let mut ranges = self.inner.ranges(disk).await?;
        let drops = matches!(self.mutation, Mutation::DropOneDirtyBit | Mutation::SkipOneExtent);
        let drops = drops && !ranges.is_empty();
        if drops && !self.bit_dropped.swap(true, Ordering::SeqCst) {
            let first = ranges.remove(0);
            let gap_end = (first.offset / EXTENT_BYTES + 1) * EXTENT_BYTES;
            if first.end() > gap_end {
                ranges.insert(0, ByteRange { offset: gap_end, len: first.end() - gap_end });
            }
        }
        debug_assert!(ranges.iter().all(|range| range.offset.is_multiple_of(BLOCK_BYTES)));
        Ok(ranges)
    }

    async fn read(&self, disk: DiskNumber, offset: u64, len: u64) -> Result<Bytes, CaptureError> {
        let disk = match self.mutation {
            Mutation::SwapTwoDisks => self.swapped(disk, offset + len),
            Mutation::DropOneDirtyBit | Mutation::SkipOneExtent | Mutation::ClearBitmapsEarly => {
                disk
            }
        };
        self.inner.read(disk, offset, len).await
    }
}

#[async_trait]
impl<S: ChangeSource> ChangeSource for MutantSource<S> {
    fn disks(&self) -> Vec<DiskEntry> {
        self.inner.disks()
    }
    async fn attach(&mut self, base: Option<Position>) -> Result<Attached, CaptureError> {
        self.base = base.unwrap_or(self.base);
        self.inner.attach(base).await
    }
    async fn open_live(&mut self, which: LiveRead) -> Result<Arc<dyn DiskReader>, CaptureError> {
        let reader = self.inner.open_live(which).await?;
        match (self.mutation, which) {
            (Mutation::SkipOneExtent, LiveRead::Everything) => Ok(self.mutant(reader)),
            _ => Ok(reader),
        }
    }
    async fn close_live(&mut self) -> Result<(), CaptureError> {
        self.inner.close_live().await
    }
    async fn dirty_bytes(&mut self) -> Result<u64, CaptureError> {
        self.inner.dirty_bytes().await
    }
    async fn cut(&mut self) -> Result<Cut, CaptureError> {
        let cut = self.inner.cut().await?;
        if self.mutation == Mutation::SkipOneExtent {
            return Ok(cut);
        }
        Ok(Cut { reader: self.mutant(cut.reader), ..cut })
    }
    async fn close_cut(&mut self, end: CutEnd) -> Result<(), CaptureError> {
        let end = match (end, self.mutation) {
            (CutEnd::Abandoned, Mutation::ClearBitmapsEarly) => CutEnd::Committed(self.base),
            (CutEnd::Committed(at), _) => {
                self.base = at;
                end
            }
            (
                CutEnd::Abandoned,
                Mutation::DropOneDirtyBit | Mutation::SkipOneExtent | Mutation::SwapTwoDisks,
            ) => end,
        };
        self.inner.close_cut(end).await
    }
    async fn detach(&mut self) -> Result<(), CaptureError> {
        self.inner.detach().await
    }
}
