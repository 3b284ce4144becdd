//! What a server needs from a disk: the [`Export`] trait and its values.

use async_trait::async_trait;
use bytes::Bytes;

use crate::protocol::{Errno, PAYLOAD_BYTES_MAX, STATE_HOLE, STATE_ZERO};

/// Why an export could not do what a client asked; the client gets both fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{errno}: {message}")]
pub struct ExportError {
    /// The error number. Guests see it as the errno of their request.
    pub errno: Errno,
    /// Text for people.
    pub message: String,
}

impl ExportError {
    /// Makes an error.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        ExportError { errno, message: message.into() }
    }
}

/// Sizes in bytes that requests must keep to. All are powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of it: 1 to 65,536.
    pub minimum: u32,
    /// Offsets and lengths should be multiples of it: at least 512 and the minimum.
    pub preferred: u32,
    /// Longest data of one read or write: at least the preferred size, at most 32 MiB.
    pub maximum: u32,
}

impl Default for BlockSizes {
    fn default() -> Self {
        BlockSizes { minimum: 1, preferred: 4096, maximum: PAYLOAD_BYTES_MAX }
    }
}

impl BlockSizes {
    pub(super) fn are_valid(&self) -> bool {
        let BlockSizes { minimum, preferred, maximum } = *self;
        [minimum, preferred, maximum].iter().all(|size| size.is_power_of_two())
            && minimum <= 65_536
            && preferred >= 512
            && minimum <= preferred
            && preferred <= maximum
            && maximum <= PAYLOAD_BYTES_MAX
    }
}

/// Whether an extent holds data. When in doubt, it is [`Allocation::Data`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// May hold anything.
    Data,
    /// Takes up space and reads as zeroes.
    Zero,
    /// Takes up no space and reads as zeroes.
    Hole,
}

impl Allocation {
    pub(super) fn flags(self) -> u32 {
        match self {
            Allocation::Data => 0,
            Allocation::Zero => STATE_ZERO,
            Allocation::Hole => STATE_HOLE | STATE_ZERO,
        }
    }
}

/// One extent of [`Export::status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportExtent {
    /// Length in bytes.
    pub len: u64,
    /// What it holds.
    pub allocation: Allocation,
}

/// Whether zeroes may be written by giving space back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoleRule {
    /// The space may be given back.
    MayPunch,
    /// The space must stay allocated, so that later writes find it.
    KeepAllocated,
}

fn cannot_write() -> ExportError {
    ExportError::new(Errno::PERM, "this export does not take writes")
}

/// A disk that can be served.
///
/// The server checks every request before it calls: ranges lie within [`Export::size`], do not
/// overflow, are not empty, keep to the block sizes, and nothing that writes reaches a read-only
/// export. Calls come concurrently, also for overlapping ranges. A call that panics is answered
/// with EIO. No call is cut off in the middle except by a shutdown whose deadline passed.
///
/// When a connection is lost, its calls in flight still run to their end, and a client may have
/// reconnected meanwhile: its newer write to the same place can then come before the older one.
/// An export that takes writes from clients which reconnect must order them itself; the server
/// cannot know which connections belong together.
#[async_trait]
pub trait Export: Send + Sync + 'static {
    /// Size in bytes; must not change while served.
    fn size(&self) -> u64;

    /// Whether writes are refused; must not change while served.
    fn read_only(&self) -> bool;

    /// Sizes requests must keep to; must not change while served.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::default()
    }

    /// The bytes of a read that takes no waiting and hardly any time, for example because they are
    /// in memory. The server asks before it calls [`Export::read`] elsewhere; a panic here ends the
    /// connection. `None`, or another length, means that [`Export::read`] is to be called.
    fn read_at_once(&self, _offset: u64, _len: u32) -> Option<Bytes> {
        None
    }

    /// Reads exactly `len` bytes. Anything but `len` bytes is answered with EIO.
    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ExportError>;

    /// Writes all of `data`. It needs to be durable only after [`Export::flush`].
    async fn write(&self, _offset: u64, _data: Bytes) -> Result<(), ExportError> {
        Err(cannot_write())
    }

    /// Makes everything durable whose write has returned before this call. Not called on a
    /// read-only export; fails unless implemented, because silence would lose data.
    async fn flush(&self) -> Result<(), ExportError> {
        Err(cannot_write())
    }

    /// Forgets a range; what it reads as afterwards is up to the export.
    async fn trim(&self, _offset: u64, _len: u32) -> Result<(), ExportError> {
        Err(cannot_write())
    }

    /// Makes a range read as zeroes.
    async fn write_zeroes(&self, _: u64, _len: u32, _: HoleRule) -> Result<(), ExportError> {
        Err(cannot_write())
    }

    /// Tells the extents from `offset` on, in order and without gaps, for `base:allocation`.
    ///
    /// May stop before `offset + len`; what goes beyond is cut off. No extents, or an empty one,
    /// count as data up to the end of the range. Lengths should be multiples of the minimum block.
    async fn status(&self, _offset: u64, len: u32) -> Result<Vec<ExportExtent>, ExportError> {
        Ok(vec![ExportExtent { len: len.into(), allocation: Allocation::Data }])
    }
}
