//! The audit of one committed segment: its header, its footer, and every record in its range.

use super::{Damage, DiskPart};
use crate::{StoreError, folder::ItemFolder, manifest::SegmentRange, segments::record_end};
use leeward_model::{EXTENT_BYTES, Lsn, TimelineId};
use leeward_wire::{
    keys::MacKey,
    record::{RECORD_HEADER_BYTES, RecordHeader, RecordKind},
    seal::Opener,
    segment::{
        FOOTER_BYTES_MAX, FOOTER_TRAILER_BYTES, FooterEntry, SEGMENT_HEADER_BYTES, SegmentHeader,
        decode_footer, decode_sparse_footer, footer_len, scan, scan_sparse,
    },
};

/// What the audit of a segment found.
pub(super) struct SegmentAudit {
    pub(super) timeline: TimelineId,
    pub(super) first: Lsn,
    /// Records that open.
    pub(super) records: u64,
    /// Bytes read.
    pub(super) bytes: u64,
    /// The segment's blob.
    path: String,
    /// Ascending by offset; the points that need them are not known here.
    pub(super) damages: Vec<Damage>,
}

impl SegmentAudit {
    /// Whether nothing of the segment can be read.
    pub(super) fn is_unusable(&self) -> bool {
        self.damages.iter().any(|damage| damage.bytes.is_none())
    }

    /// Where the damage begins that the record at `offset` lies in, if it does.
    pub(super) fn bad_at(&self, offset: u64) -> Option<u64> {
        let spans = self.damages.iter().filter_map(|damage| damage.bytes);
        let mut holding = spans.filter(|(from, len)| (*from..from + len).contains(&offset));
        holding.next().map(|(from, _)| from)
    }

    fn bad(&mut self, bytes: Option<(u64, u64)>, part: Option<DiskPart>, why: String) {
        let (blob, points) = (self.path.clone(), Vec::new());
        self.damages.push(Damage { blob, bytes, why, part, points });
    }
}

/// Audits the segment of `range`; `opened` is told of every record that opens.
///
/// # Errors
/// [`StoreError::Storage`].
pub(super) fn audit(
    folder: &ItemFolder,
    range: &SegmentRange,
    opened: &mut dyn FnMut(&FooterEntry),
) -> Result<SegmentAudit, StoreError> {
    let path = folder.segment_path(range.segment);
    let mut found = SegmentAudit {
        timeline: range.timeline,
        first: range.first,
        records: 0,
        bytes: 0,
        path: path.clone(),
        damages: Vec::new(),
    };
    let len = folder.blobs.len(&path)?;
    let Some(len) = len.filter(|len| *len >= range.bytes) else {
        let why = match len {
            None => "it is missing".to_owned(),
            Some(len) => format!("it has {len} bytes, its manifest says {}", range.bytes),
        };
        found.bad(None, None, why);
        return Ok(found);
    };
    let longest = range.bytes + FOOTER_BYTES_MAX as u64;
    let bytes = folder.blobs.read_at(&path, 0, len.min(longest) as usize)?;
    found.bytes = bytes.len() as u64;
    let header = match SegmentHeader::decode(&bytes) {
        Ok(header) if belongs(folder, range, &header) => header,
        Ok(_) => {
            found.bad(None, None, "it is the segment of another place".into());
            return Ok(found);
        }
        Err(error) => {
            found.bad(None, None, error.to_string());
            return Ok(found);
        }
    };
    let (footer_key, opener) = match keys(folder, &path, &header) {
        Ok(keys) => keys,
        Err(StoreError::Damaged { why, .. }) => {
            found.bad(None, None, why);
            return Ok(found);
        }
        Err(error) => return Err(error),
    };
    let footer = footer(&footer_key, &bytes, range, &header);
    let entries = match footer {
        Footer::Good(entries) => entries,
        Footer::Bad(why) => {
            found.bad(Some((range.bytes, len - range.bytes)), None, why);
            scanned(&bytes, range)
        }
        Footer::None => scanned(&bytes, range),
    };
    records(&opener, range, (&bytes, &entries), &mut found, opened);
    Ok(found)
}

/// What proves the segment's footer and opens its records.
fn keys(
    folder: &ItemFolder,
    path: &str,
    header: &SegmentHeader,
) -> Result<(MacKey, Opener), StoreError> {
    Ok((folder.keys.footer(path, header)?, folder.keys.opener(path, header)?))
}

fn belongs(folder: &ItemFolder, range: &SegmentRange, header: &SegmentHeader) -> bool {
    let names = (header.segment, header.vault, header.item, header.timeline, header.first_lsn);
    let owner = &folder.owner;
    names == (range.segment, owner.vault, owner.item, range.timeline, range.first)
}

enum Footer {
    Good(Vec<FooterEntry>),
    Bad(String),
    /// The segment was never sealed: what follows its range, if anything, are records that no
    /// manifest names, or what a power cut left of them.
    None,
}

fn footer(key: &MacKey, bytes: &[u8], range: &SegmentRange, header: &SegmentHeader) -> Footer {
    let tail = &bytes[range.bytes as usize..];
    let trailer = bytes.last_chunk::<FOOTER_TRAILER_BYTES>();
    let length = trailer.and_then(|trailer| footer_len(trailer).ok());
    if let Some(length) = length
        && let Some(begin) = bytes.len().checked_sub(length)
    {
        let whole = bytes.len() as u64;
        let decode = if range.is_whole() { decode_footer } else { decode_sparse_footer };
        return match decode(&bytes[begin..], whole, key, &header.hash()) {
            Ok(footer) => Footer::Good(footer.entries),
            Err(error) => Footer::Bad(error.to_string()),
        };
    }
    match tail.first_chunk::<RECORD_HEADER_BYTES>() {
        Some(next) if next.iter().any(|byte| *byte != 0) && RecordHeader::decode(next).is_err() => {
            Footer::Bad("what follows the last record is neither a footer nor a record".into())
        }
        Some(_) | None => Footer::None,
    }
}

/// The records that can be found without a footer, up to the first that is damaged.
fn scanned(bytes: &[u8], range: &SegmentRange) -> Vec<FooterEntry> {
    let scan = if range.is_whole() { scan } else { scan_sparse };
    let Ok(records) = scan(&bytes[..range.bytes as usize]) else { return Vec::new() };
    records.map(|record| FooterEntry::of(&record.header, record.offset)).collect()
}

/// Opens every record of the range, in the order of the file.
fn records(
    opener: &Opener,
    range: &SegmentRange,
    (bytes, entries): (&[u8], &[FooterEntry]),
    found: &mut SegmentAudit,
    opened: &mut dyn FnMut(&FooterEntry),
) {
    let mut entries: Vec<_> = entries.iter().filter(|entry| entry.lsn <= range.last).collect();
    entries.sort_unstable_by_key(|entry| entry.offset);
    let mut at = SEGMENT_HEADER_BYTES as u64;
    for entry in entries {
        let (from, end) = (u64::from(entry.offset), record_end(entry));
        if from != at || end > range.bytes {
            break;
        }
        at = end;
        match open(opener, entry, &bytes[from as usize..end as usize]) {
            Ok(()) => {
                found.records += 1;
                opened(entry);
            }
            Err(why) => found.bad(Some((from, end - from)), part(entry), why),
        }
    }
    if at < range.bytes {
        let why = "its records cannot be told apart from here on".to_owned();
        found.bad(Some((at, range.bytes - at)), None, why);
    }
}

/// The part of the disk between the first and the last block that a record carries.
fn part(entry: &FooterEntry) -> Option<DiskPart> {
    let len = EXTENT_BYTES;
    let is_change = entry.kind == RecordKind::Change;
    is_change.then(|| DiskPart { disk: entry.disk, offset: entry.extent.offset(), len })
}

fn open(opener: &Opener, entry: &FooterEntry, record: &[u8]) -> Result<(), String> {
    let (header_bytes, stored) =
        record.split_first_chunk::<RECORD_HEADER_BYTES>().ok_or("it is shorter than a header")?;
    let header = RecordHeader::decode(header_bytes).map_err(|error| error.to_string())?;
    if FooterEntry::of(&header, entry.offset) != *entry {
        return Err("the footer describes another record".into());
    }
    let opened = match header.kind {
        RecordKind::Change => opener.open_change(&header, header_bytes, stored).map(drop),
        RecordKind::Marker => opener.open_marker(&header, header_bytes, stored).map(drop),
    };
    opened.map_err(|error| error.to_string())
}
