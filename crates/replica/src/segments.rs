//! Segments of one item: writing one, and reading the index and the records of committed ones.
//!
//! Payloads pass through unopened here. A segment is never opened again for appending.

use crate::{StoreError, folder::ItemFolder, manifest::SegmentRange, storage::Appender};
use bytes::Bytes;
use leeward_model::Lsn;
use leeward_wire::{
    record::{RECORD_HEADER_BYTES, RecordHeader, check_crc},
    segment::{
        FOOTER_TRAILER_BYTES, FooterEntry, SEGMENT_HEADER_BYTES, SEGMENT_SEAL_BYTES, SegmentHeader,
        decode_footer, decode_sparse_footer, encode_footer, footer_len, scan, scan_sparse,
    },
};

/// A segment is refused further records beyond this many bytes: the sealer has to begin another.
/// Twice the size at which sealers do, so that neither side needs to count exactly.
const SEGMENT_BYTES_MAX: u64 = 2 * SEGMENT_SEAL_BYTES as u64;

/// A segment that this process receives.
pub(crate) struct OpenSegment {
    pub(crate) header: SegmentHeader,
    /// `None` once it is sealed or abandoned.
    appender: Option<Box<dyn Appender>>,
    /// In the order of LSNs.
    entries: Vec<FooterEntry>,
    /// Records after this one are not taken any more: the source sends them again elsewhere.
    limit: Option<Lsn>,
    synced: usize,
    bytes: u64,
    named: bool,
}

impl OpenSegment {
    /// Creates the segment's blob and writes its header; nothing is durable yet.
    pub(crate) fn create(folder: &ItemFolder, header: SegmentHeader) -> Result<Self, StoreError> {
        let mut appender = folder.blobs.create_new(&folder.segment_path(header.segment))?;
        appender.append(&header.encode())?;
        Ok(OpenSegment {
            header,
            appender: Some(appender),
            entries: Vec::new(),
            limit: None,
            synced: 0,
            bytes: SEGMENT_HEADER_BYTES as u64,
            named: false,
        })
    }

    /// LSN of the newest record, or the one before the first.
    pub(crate) fn last(&self) -> Lsn {
        let received = Lsn(self.header.first_lsn.0 - 1 + self.entries.len() as u64);
        self.limit.map_or(received, |limit| limit.min(received))
    }

    /// LSN up to which the segment is durable.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.header.first_lsn.0 - 1 + self.synced as u64).min(self.last())
    }

    pub(crate) fn is_open(&self) -> bool {
        self.appender.is_some()
    }

    /// Takes whole records if they are the next ones: all of them, or none.
    pub(crate) fn append(&mut self, records: &[&[u8]]) -> Result<Lsn, StoreError> {
        let (mut next, mut at, mut entries) = (self.last().next(), self.bytes, Vec::new());
        for record in records {
            entries.push(self.check_next(record, next, at)?);
            next = next.next();
            at += record.len() as u64;
        }
        let Some(appender) = &mut self.appender else {
            let why = format!("segment {} is sealed", self.header.segment);
            return Err(StoreError::refused("a record", why));
        };
        appender.append_all(records)?;
        self.bytes = at;
        self.entries.append(&mut entries);
        Ok(Lsn(next.0 - 1))
    }

    /// The entry of a record that is to stand at `at`, if it is whole and `next`.
    fn check_next(&self, record: &[u8], next: Lsn, at: u64) -> Result<FooterEntry, StoreError> {
        let refuse = |why: String| StoreError::refused("a record", why);
        if self.appender.is_none() {
            return Err(refuse(format!("segment {} is sealed", self.header.segment)));
        }
        let (header_bytes, stored) = record
            .split_first_chunk::<RECORD_HEADER_BYTES>()
            .ok_or_else(|| refuse("it is shorter than a header".into()))?;
        let header = RecordHeader::decode(header_bytes).map_err(|e| refuse(e.to_string()))?;
        if header.record_len() != record.len() {
            return Err(refuse(format!("it has {} bytes, not its own length", record.len())));
        }
        check_crc(header_bytes, stored).map_err(|error| refuse(error.to_string()))?;
        if header.lsn != next {
            return Err(refuse(format!("record {} cannot follow: {next} is due", header.lsn)));
        }
        if at + record.len() as u64 > SEGMENT_BYTES_MAX {
            return Err(refuse(format!("segment {} is full", self.header.segment)));
        }
        let offset = u32::try_from(at).expect("a segment is below 4 GiB");
        Ok(FooterEntry::of(&header, offset))
    }

    /// Makes all records durable, and the segment's name the first time.
    pub(crate) fn sync(&mut self, folder: &ItemFolder) -> Result<(), StoreError> {
        let Some(appender) = &mut self.appender else { return Ok(()) };
        if self.synced == self.entries.len() && self.named {
            return Ok(());
        }
        appender.sync_data()?;
        if !self.named {
            folder.blobs.sync_dir(&folder.path("segments"))?;
            self.named = true;
        }
        self.synced = self.entries.len();
        Ok(())
    }

    /// Writes the footer and makes everything durable; the segment takes nothing more.
    pub(crate) fn seal(&mut self, folder: &ItemFolder) -> Result<(), StoreError> {
        if let Some(appender) = &mut self.appender
            && !self.entries.is_empty()
        {
            let hash = self.header.hash();
            let path = folder.segment_path(self.header.segment);
            let key = folder.keys.footer(&path, &self.header)?;
            appender.append(&encode_footer(&self.entries, &key, &hash))?;
            appender.finish()?;
            if !self.named {
                folder.blobs.sync_dir(&folder.path("segments"))?;
                self.named = true;
            }
            self.synced = self.entries.len();
        }
        self.appender = None;
        Ok(())
    }

    /// Forgets the records from `first` on, and takes no more: they come again in another segment.
    pub(crate) fn cut_before(&mut self, first: Lsn) {
        self.limit = Some(Lsn(first.0 - 1).min(self.last()));
    }

    /// The entry of `lsn`, if the segment has it.
    pub(crate) fn entry(&self, lsn: Lsn) -> Option<&FooterEntry> {
        let index = lsn.0.checked_sub(self.header.first_lsn.0)?;
        if lsn > self.last() {
            return None;
        }
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// The range that a commit up to `lsn` gives this segment; `None` when it is not in it.
    pub(crate) fn range(&self, lsn: Lsn) -> Option<SegmentRange> {
        let last = self.last().min(lsn);
        let entry = self.entry(last)?;
        Some(SegmentRange {
            segment: self.header.segment,
            timeline: self.header.timeline,
            first: self.header.first_lsn,
            last,
            bytes: record_end(entry),
            records: last.0 - self.header.first_lsn.0 + 1,
        })
    }
}

/// Byte offset behind a record.
pub(crate) fn record_end(entry: &FooterEntry) -> u64 {
    u64::from(entry.offset) + RECORD_HEADER_BYTES as u64 + u64::from(entry.stored_len)
}

/// A committed segment's header and the records in its range.
pub(crate) struct SegmentIndex {
    pub(crate) header: SegmentHeader,
    pub(crate) entries: Vec<FooterEntry>,
}

/// Reads the index of a committed range: from the footer when there is one, else by a scan.
pub(crate) fn read_index(
    folder: &ItemFolder,
    range: &SegmentRange,
) -> Result<SegmentIndex, StoreError> {
    let path = folder.segment_path(range.segment);
    let damaged = |why: String| StoreError::damaged(&path, why);
    let missing = || damaged("it is missing or shorter than its manifest says".into());
    let len = folder.blobs.len(&path)?.ok_or_else(missing)?;
    if len < range.bytes || range.bytes > SEGMENT_BYTES_MAX {
        return Err(missing());
    }
    let header = read_header(folder, range)?;
    let mut entries = match read_footer(folder, range, len, &header)? {
        Some(entries) => entries,
        None => scan_range(folder, &path, range)?,
    };
    entries.retain(|entry| entry.lsn <= range.last);
    let newest = entries.iter().max_by_key(|entry| entry.lsn);
    let whole = entries.len() as u64 == range.records;
    if !whole || newest.is_none_or(|newest| record_end(newest) != range.bytes) {
        return Err(damaged("its records are not those of its manifest".into()));
    }
    Ok(SegmentIndex { header, entries })
}

/// Reads a committed segment's header, and checks that it is the range's.
pub(crate) fn read_header(
    folder: &ItemFolder,
    range: &SegmentRange,
) -> Result<SegmentHeader, StoreError> {
    let path = folder.segment_path(range.segment);
    let head = folder.blobs.read_at(&path, 0, SEGMENT_HEADER_BYTES)?;
    let header = SegmentHeader::decode(&head).map_err(|error| StoreError::damaged(&path, error))?;
    let owner = &folder.owner;
    let names = (header.segment, header.vault, header.item, header.timeline, header.first_lsn);
    if names == (range.segment, owner.vault, owner.item, range.timeline, range.first) {
        Ok(header)
    } else {
        Err(StoreError::damaged(&path, "it is the segment of another place"))
    }
}

/// The footer's entries; `None` when there is no good footer, which only costs a scan.
fn read_footer(
    folder: &ItemFolder,
    range: &SegmentRange,
    len: u64,
    header: &SegmentHeader,
) -> Result<Option<Vec<FooterEntry>>, StoreError> {
    let path = &folder.segment_path(range.segment);
    let Some(at) = len.checked_sub(FOOTER_TRAILER_BYTES as u64) else { return Ok(None) };
    let trailer = folder.blobs.read_at(path, at, FOOTER_TRAILER_BYTES)?;
    let Some(length) = trailer.first_chunk().and_then(|trailer| footer_len(trailer).ok()) else {
        return Ok(None);
    };
    let Some(begin) = len.checked_sub(length as u64) else { return Ok(None) };
    let tail = folder.blobs.read_at(path, begin, length)?;
    let decode = if range.is_whole() { decode_footer } else { decode_sparse_footer };
    let key = folder.keys.footer(path, header)?;
    let footer = decode(&tail, len, &key, &header.hash());
    Ok(footer.ok().map(|footer| footer.entries))
}

fn scan_range(
    folder: &ItemFolder,
    path: &str,
    range: &SegmentRange,
) -> Result<Vec<FooterEntry>, StoreError> {
    let len = usize::try_from(range.bytes).expect("segments fit in memory");
    let bytes = folder.blobs.read_at(path, 0, len)?;
    let scanned = if range.is_whole() { scan(&bytes) } else { scan_sparse(&bytes) };
    let mut records = scanned.map_err(|error| StoreError::damaged(path, error.to_string()))?;
    let entries: Vec<FooterEntry> =
        records.by_ref().map(|record| FooterEntry::of(&record.header, record.offset)).collect();
    match records.end() {
        Some(end) if records.valid_bytes() < len => Err(StoreError::damaged(path, end)),
        _ => Ok(entries),
    }
}

/// A record's bytes, not proved yet.
pub(crate) struct RawRecord {
    pub(crate) header: RecordHeader,
    pub(crate) header_bytes: [u8; RECORD_HEADER_BYTES],
    pub(crate) stored: Bytes,
}

/// Reads one record of `len` bytes at `offset` of the segment at `path`.
pub(crate) fn read_record(
    folder: &ItemFolder,
    path: &str,
    offset: u64,
    len: usize,
) -> Result<RawRecord, StoreError> {
    let bytes = Bytes::from(folder.blobs.read_at(path, offset, len)?);
    let damaged = |why: String| StoreError::damaged(path, why);
    let header_bytes = *bytes
        .first_chunk::<RECORD_HEADER_BYTES>()
        .ok_or_else(|| damaged(format!("it ends inside the record at {offset}")))?;
    let header = RecordHeader::decode(&header_bytes).map_err(|error| damaged(error.to_string()))?;
    if header.record_len() != bytes.len() {
        return Err(damaged(format!("the record at {offset} has another length")));
    }
    Ok(RawRecord { header, header_bytes, stored: bytes.slice(RECORD_HEADER_BYTES..) })
}
