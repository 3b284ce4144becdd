//! Reads the records of a segment that has no footer, without a key: after a crash, or while it
//! still grows. Proves that records are whole, not who wrote them.

use crate::{
    hash::is_zero,
    record::{RECORD_HEADER_BYTES, RecordError, RecordHeader, check_crc},
    segment::{SEGMENT_HEADER_BYTES, SegmentError, SegmentHeader, footer::LsnOrder},
};
use leeward_model::Lsn;
use std::fmt;

/// A whole record found by a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScannedRecord<'a> {
    /// Byte offset of its header in the segment file.
    pub offset: u32,
    /// Its header.
    pub header: RecordHeader,
    /// The header's bytes.
    pub header_bytes: &'a [u8; RECORD_HEADER_BYTES],
    /// The stored payload with its tag.
    pub stored: &'a [u8],
}

/// Why a scan ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// The bytes end behind a record.
    Clean,
    /// Only zeros follow: space that was never written.
    Unwritten,
    /// The bytes end inside a record.
    Torn,
    /// What follows is no record, or a damaged one.
    Record(RecordError),
    /// A whole record follows, but not the next of this log.
    Sequence {
        /// The LSN that had to follow.
        expected: Lsn,
        /// The one found.
        found: Lsn,
    },
}

impl fmt::Display for ScanEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScanEnd::Clean => f.write_str("the bytes end behind a record"),
            ScanEnd::Unwritten => f.write_str("only zeros follow"),
            ScanEnd::Torn => f.write_str("the bytes end inside a record"),
            ScanEnd::Record(error) => error.fmt(f),
            ScanEnd::Sequence { expected, found } => {
                write!(f, "record {found} follows where {expected} had to")
            }
        }
    }
}

/// Iterator over the whole records from a segment's begin; see [`scan`].
#[derive(Clone, Debug)]
pub struct Scan<'a> {
    header: SegmentHeader,
    bytes: &'a [u8],
    at: usize,
    next: Lsn,
    order: LsnOrder,
    end: Option<ScanEnd>,
}

/// Scans a segment from its first byte. `segment` is the file, or as much of it as is there; of a
/// sealed one, the part before the footer.
///
/// # Errors
/// When the segment header itself cannot be read.
pub fn scan(segment: &[u8]) -> Result<Scan<'_>, SegmentError> {
    begin(segment, LsnOrder::Row)
}

/// As [`scan`], for a segment that was written anew: LSNs ascend, with gaps.
///
/// # Errors
/// As [`scan`].
pub fn scan_sparse(segment: &[u8]) -> Result<Scan<'_>, SegmentError> {
    begin(segment, LsnOrder::Ascending)
}

fn begin(segment: &[u8], order: LsnOrder) -> Result<Scan<'_>, SegmentError> {
    let header = SegmentHeader::decode(segment)?;
    let next = header.first_lsn;
    Ok(Scan { header, bytes: segment, at: SEGMENT_HEADER_BYTES, next, order, end: None })
}

impl<'a> Scan<'a> {
    /// The segment's header.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Bytes of the segment up to the end of the last record that was returned.
    pub fn valid_bytes(&self) -> usize {
        self.at
    }

    /// The LSN that the next record has to have.
    pub fn next_lsn(&self) -> Lsn {
        self.next
    }

    /// Why the scan ended; none before the iterator has returned none.
    pub fn end(&self) -> Option<&ScanEnd> {
        self.end.as_ref()
    }

    fn read(&self) -> Result<ScannedRecord<'a>, ScanEnd> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return Err(ScanEnd::Clean);
        }
        let Some(header_bytes) = rest.first_chunk::<RECORD_HEADER_BYTES>() else {
            return Err(if is_zero(rest) { ScanEnd::Unwritten } else { ScanEnd::Torn });
        };
        if is_zero(header_bytes) && is_zero(rest) {
            return Err(ScanEnd::Unwritten);
        }
        let header = RecordHeader::decode(header_bytes).map_err(ScanEnd::Record)?;
        let stored = rest.get(RECORD_HEADER_BYTES..header.record_len()).ok_or(ScanEnd::Torn)?;
        check_crc(header_bytes, stored).map_err(ScanEnd::Record)?;
        if !self.order.allows(self.next, header.lsn) {
            return Err(ScanEnd::Sequence { expected: self.next, found: header.lsn });
        }
        // A segment of 4 GiB does not exist; what lies beyond is not read.
        let offset = u32::try_from(self.at).map_err(|_| ScanEnd::Torn)?;
        Ok(ScannedRecord { offset, header, header_bytes, stored })
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = ScannedRecord<'a>;

    fn next(&mut self) -> Option<ScannedRecord<'a>> {
        if self.end.is_some() {
            return None;
        }
        match self.read() {
            Ok(record) => {
                self.at += record.header.record_len();
                self.next = record.header.lsn.next();
                Some(record)
            }
            Err(end) => {
                self.end = Some(end);
                None
            }
        }
    }
}
