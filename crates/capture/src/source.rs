//! What a change source is: the traits that a fabric implements for one running machine.
//!
//! Only the contract. How a hypervisor tracks writes is that fabric's business; what becomes of
//! the bytes is [`crate::pass`]'s.

use async_trait::async_trait;
use bytes::Bytes;
use leeward_model::{DiskEntry, DiskNumber, Position};
use std::{io, sync::Arc, time::Duration};

/// A run of bytes on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Bytes from the start of the disk.
    pub offset: u64,
    /// Length in bytes; never 0.
    pub len: u64,
}

impl ByteRange {
    /// The first byte after the range.
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Reads the content of a machine's disks, live or at a cut.
#[async_trait]
pub trait DiskReader: Send + Sync {
    /// Ranges of `disk` that may differ from zero (live read of everything) or that were written
    /// (a cut, a live read of dirty blocks); ascending, disjoint, aligned to `BLOCK_BYTES` except
    /// at the disk's end.
    async fn ranges(&self, disk: DiskNumber) -> Result<Vec<ByteRange>, CaptureError>;

    /// Reads `len` bytes at `offset`; never beyond the disk's end.
    ///
    /// # Errors
    /// [`CaptureError::SnapshotBroken`] when this reader's snapshot no longer exists.
    async fn read(&self, disk: DiskNumber, offset: u64, len: u64) -> Result<Bytes, CaptureError>;

    /// A way to read `disk` on the thread that works on the bytes, where there is one: into a
    /// buffer that is used again and again, without a change of threads. It reads what
    /// [`Self::read`] reads.
    fn blocking(&self, disk: DiskNumber) -> Option<Arc<dyn BlockingRead>> {
        let _ = disk;
        None
    }
}

/// Reads a disk on the caller's thread.
pub trait BlockingRead: Send + Sync {
    /// Says that a part will be read soon. Only a hint; returns at once.
    fn announce(&self, offset: u64, len: u64);

    /// Fills `buffer` from `offset`; never beyond the disk's end.
    ///
    /// # Errors
    /// As [`DiskReader::read`].
    fn read_into(&self, buffer: &mut [u8], offset: u64) -> Result<(), CaptureError>;
}

/// What a live read covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LiveRead {
    /// Every block that may differ from zero: the first copy, or a comparison of everything.
    Everything,
    /// The blocks written since the base or the last committed cut.
    Dirty,
}

/// What attaching to a machine found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// The change map covers everything since `base`.
    Continues,
    /// It does not: the whole machine must be compared; why, in words.
    NeedsFullRead(String),
}

/// The machine at one instant, consistent over all its disks.
pub struct Cut {
    /// Reads the machine as it was at the cut; its ranges are the blocks written since the base.
    pub reader: Arc<dyn DiskReader>,
    /// For how long the guest's writes stood still.
    pub pause: Duration,
    /// Bytes that the ranges of all disks cover.
    pub dirty_bytes: u64,
}

/// What became of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CutEnd {
    /// The target committed it as this position: its change map may be dropped.
    Committed(Position),
    /// It did not: what the cut named counts as written again in the next one.
    Abandoned,
}

/// One running machine whose writes are tracked.
///
/// Live reads happen on the running machine with the change map on, so anything written meanwhile
/// is in the next cut. Calls are in order: `attach`, then live reads or cuts (never both open at
/// once, never two of one), then `detach`. After any error the source is still in a state from
/// which `close_live`, `close_cut` and `detach` work; they may be called when nothing is open.
#[async_trait]
pub trait ChangeSource: Send {
    /// The machine's disks with their present sizes; while a cut is open, with those at the cut.
    ///
    /// A disk that grew need not be in the change map beyond its old end: a pass reads that. Bytes
    /// cut off by a shrink that came back by a later growth count as written.
    fn disks(&self) -> Vec<DiskEntry>;

    /// Finds or creates the change map.
    ///
    /// `base` is the newest committed point's position that this machine's content descends from;
    /// none when there is no such point. Anything left of an earlier cut is closed as abandoned.
    async fn attach(&mut self, base: Option<Position>) -> Result<Attached, CaptureError>;

    /// Opens the running machine for reading.
    async fn open_live(&mut self, which: LiveRead) -> Result<Arc<dyn DiskReader>, CaptureError>;

    /// Ends a live read. The change map stays as it is: what was dirty still is.
    async fn close_live(&mut self) -> Result<(), CaptureError>;

    /// Bytes that a cut would name now.
    async fn dirty_bytes(&mut self) -> Result<u64, CaptureError>;

    /// Cuts the machine at one instant, over all its disks, and starts a new change map there.
    ///
    /// The cut's content stays readable until `close_cut` or until its scratch space is full,
    /// which never delays the guest and shows as [`CaptureError::SnapshotBroken`].
    async fn cut(&mut self) -> Result<Cut, CaptureError>;

    /// Ends the cut. Only `CutEnd::Committed` lets go of the changes that it named.
    async fn close_cut(&mut self, end: CutEnd) -> Result<(), CaptureError>;

    /// Removes everything that tracking added to the machine, change map included.
    async fn detach(&mut self) -> Result<(), CaptureError>;
}

/// What a caller may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same again after a pause may work.
    Later,
    /// Abandon the cut, then run a live pass of the dirty blocks before the next one.
    LivePass,
    /// The same again cannot work until a person or another part of the program changes something.
    Never,
}

/// Why a machine could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The machine's process ended or does not answer any more.
    #[error("the machine is gone")]
    MachineGone,
    /// The cut's scratch space was full before the cut was read: only a live pass can go on.
    #[error("the snapshot broke because its scratch space was full")]
    SnapshotBroken,
    /// The machine or its hypervisor said no.
    #[error("could not {what}: {detail}")]
    Refused {
        /// What was tried on what, as a verb phrase.
        what: String,
        /// The answer, in the answerer's words.
        detail: String,
    },
    /// Reading or writing failed.
    #[error("could not {what}")]
    Io {
        /// What was tried on what, as a verb phrase.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// No answer within the deadline.
    #[error("could not {what} before its deadline")]
    Timeout {
        /// What was tried on what, as a verb phrase.
        what: String,
    },
}

impl CaptureError {
    /// What the caller may do about it.
    pub const fn retry(&self) -> Retry {
        match self {
            CaptureError::MachineGone | CaptureError::Refused { .. } => Retry::Never,
            CaptureError::SnapshotBroken => Retry::LivePass,
            CaptureError::Io { .. } | CaptureError::Timeout { .. } => Retry::Later,
        }
    }
}
