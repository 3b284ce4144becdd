//! Little-endian fields out of a byte slice, without a panic on any input.

use leeward_model::{Epoch, LayerId, Lsn, PointId, SegmentId, TimelineId, UnixMillis};

/// What is left of a slice. Every method answers `None` when too little is.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
    pub(crate) fn lsn(&mut self) -> Option<Lsn> {
        self.u64().map(Lsn)
    }
    pub(crate) fn epoch(&mut self) -> Option<Epoch> {
        self.u64().map(Epoch)
    }
    pub(crate) fn time(&mut self) -> Option<UnixMillis> {
        self.i64().map(UnixMillis)
    }
    pub(crate) fn timeline(&mut self) -> Option<TimelineId> {
        self.array().map(TimelineId::from_bytes)
    }
    pub(crate) fn segment(&mut self) -> Option<SegmentId> {
        self.array().map(SegmentId::from_bytes)
    }
    pub(crate) fn layer(&mut self) -> Option<LayerId> {
        self.array().map(LayerId::from_bytes)
    }
    pub(crate) fn point(&mut self) -> Option<PointId> {
        self.array().map(PointId::from_bytes)
    }
    /// Text with a 16-bit length before it.
    pub(crate) fn text(&mut self) -> Option<String> {
        let len = self.u16()?;
        String::from_utf8(self.take(len.into())?.to_vec()).ok()
    }
}

/// Appends text with a 16-bit length before it; what is beyond 65,535 bytes is left out.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&(end as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}
