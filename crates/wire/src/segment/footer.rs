//! The index at the end of a sealed segment, found from the file's last 64 bytes alone.

use crate::{
    bytes_in::BytesIn,
    crc32c,
    keys::{MacKey, mac_parts, tags_equal},
    record::{Codec, RECORD_HEADER_BYTES, RecordHeader, RecordKind, check_length, check_shape},
    segment::SEGMENT_HEADER_BYTES,
};
use bytes::Bytes;
use leeward_model::{BlockMask, DiskNumber, ExtentNumber, Lsn};
use thiserror::Error;

/// Bytes of one footer entry.
pub const FOOTER_ENTRY_BYTES: usize = 28;
/// Bytes of the trailer, the last of a sealed segment.
pub const FOOTER_TRAILER_BYTES: usize = 64;
/// The longest footer, entries and trailer. 32 MiB of the shortest records, 80 bytes each, need
/// 11.2 MiB of entries.
pub const FOOTER_BYTES_MAX: usize = 16 << 20;

/// The first bytes of every trailer.
const TRAILER_MAGIC: [u8; 8] = *b"LWFOOTER";
const MAC_AT: usize = 24;
const RESERVED_AT: usize = 56;
const CRC_AT: usize = 60;

/// Where one record lies and what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterEntry {
    /// The disk.
    pub disk: DiskNumber,
    /// The extent.
    pub extent: ExtentNumber,
    /// The blocks carried.
    pub mask: BlockMask,
    /// How the payload is encoded.
    pub codec: Codec,
    /// Change or marker.
    pub kind: RecordKind,
    /// Place in the item's log.
    pub lsn: Lsn,
    /// Byte offset of the record's header in the segment file.
    pub offset: u32,
    /// Bytes stored after the header, with the tag.
    pub stored_len: u32,
}

impl FooterEntry {
    /// The entry of the record that lies at `offset`.
    pub fn of(record: &RecordHeader, offset: u32) -> FooterEntry {
        let RecordHeader { extent, disk, mask, codec, kind, stored_len, lsn, .. } = *record;
        FooterEntry { disk, extent, mask, codec, kind, lsn, offset, stored_len }
    }

    /// What entries are sorted by.
    pub fn sort_key(&self) -> (DiskNumber, ExtentNumber, Lsn) {
        (self.disk, self.extent, self.lsn)
    }

    /// Byte offset behind the record.
    fn end(&self) -> u64 {
        u64::from(self.offset) + RECORD_HEADER_BYTES as u64 + u64::from(self.stored_len)
    }

    /// The entry's bytes, as a footer has them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.disk.0.to_le_bytes());
        out.extend_from_slice(&self.mask.0.to_le_bytes());
        out.extend_from_slice(&self.extent.0.to_le_bytes());
        out.extend_from_slice(&self.lsn.0.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.stored_len.to_le_bytes());
        out.extend_from_slice(&[self.codec as u8, self.kind.flags(), 0, 0]);
    }

    /// Reads [`Self::encode`]; none when a field has a value that no writer writes.
    pub fn decode(bytes: &[u8; FOOTER_ENTRY_BYTES]) -> Option<FooterEntry> {
        let mut fields = BytesIn(bytes);
        let disk = DiskNumber(fields.u16().ok()?);
        let mask = BlockMask(fields.u16().ok()?);
        let extent = ExtentNumber(fields.u32().ok()?);
        let lsn = Lsn(fields.u64().ok()?);
        let (offset, stored_len) = (fields.u32().ok()?, fields.u32().ok()?);
        let codec = Codec::from_byte(fields.u8().ok()?)?;
        let kind = RecordKind::from_flags(fields.u8().ok()?)?;
        check_shape(disk, extent, mask, kind).ok()?;
        check_length(mask, codec, kind, stored_len).ok()?;
        let entry = FooterEntry { disk, extent, mask, codec, kind, lsn, offset, stored_len };
        let whole = fields.u16().ok()? == 0 && lsn != Lsn(0) && lsn != Lsn(u64::MAX);
        whole.then_some(entry)
    }
}

/// A decoded footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The segment's records, sorted by (disk, extent, LSN); never empty.
    pub entries: Vec<FooterEntry>,
    /// LSN of the last record.
    pub last_lsn: Lsn,
    /// Byte offset of the footer: the end of the records.
    pub records_end: u32,
}

/// Why bytes are not the footer of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FooterError {
    /// No trailer ends here: the segment was not sealed, or its end is damaged.
    #[error("the segment ends without a footer")]
    Absent,
    /// A length that cannot be.
    #[error("the footer of {count} entries cannot have {length} bytes")]
    Length {
        /// As the trailer has it.
        length: u32,
        /// Entries, as the trailer has them.
        count: u32,
    },
    /// Fewer bytes were given than the footer has.
    #[error("the footer has {length} bytes, here are {found}")]
    Short {
        /// As the trailer has it.
        length: usize,
        /// Bytes present.
        found: usize,
    },
    /// The footer was changed after writing.
    #[error("the checksum of the footer is {found:08x}, computed {computed:08x}")]
    Crc {
        /// In the trailer.
        found: u32,
        /// Over the footer.
        computed: u32,
    },
    /// The footer was not written under this key for this segment.
    #[error("the footer's MAC is wrong: another key, another segment, or forged")]
    Mac,
    /// An entry has a value that no writer writes, or is out of order.
    #[error("entry {index} of the footer is malformed or out of order")]
    Entry {
        /// Its index.
        index: usize,
    },
    /// The records do not lie one behind another with LSNs in a row.
    #[error("the footer's records leave a gap or overlap at byte {offset}, record {lsn}")]
    Gap {
        /// Offset of the entry that does not join.
        offset: u32,
        /// Its LSN.
        lsn: Lsn,
    },
}

/// Which LSNs the records of a segment have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LsnOrder {
    /// Every one from the first to the last: as a source seals them.
    Row,
    /// Ascending, with gaps: as a store leaves them that writes a segment anew.
    Ascending,
}

impl LsnOrder {
    /// Whether `found` may come where `next` comes in a row.
    pub(super) fn allows(self, next: Lsn, found: Lsn) -> bool {
        match self {
            LsnOrder::Row => found == next,
            LsnOrder::Ascending => found >= next,
        }
    }
}

/// The footer of a segment with these records, in any order: entries, then the trailer.
///
/// `header_hash` is [`super::SegmentHeader::hash`] of the segment.
///
/// # Panics
/// When there is no entry, or the records do not fill the bytes from the header to the footer with
/// LSNs in a row: such a segment is the writer's mistake.
pub fn encode_footer(entries: &[FooterEntry], key: &MacKey, header_hash: &[u8; 32]) -> Bytes {
    encode(entries, key, header_hash, LsnOrder::Row)
}

/// As [`encode_footer`], for a segment that was written anew: LSNs ascend, with gaps.
///
/// # Panics
/// As [`encode_footer`].
pub fn encode_sparse_footer(
    entries: &[FooterEntry],
    key: &MacKey,
    header_hash: &[u8; 32],
) -> Bytes {
    encode(entries, key, header_hash, LsnOrder::Ascending)
}

fn encode(entries: &[FooterEntry], key: &MacKey, header_hash: &[u8; 32], order: LsnOrder) -> Bytes {
    let mut sorted = entries.to_vec();
    sorted.sort_by_key(FooterEntry::sort_key);
    let end = entries.iter().map(FooterEntry::end).max().expect("a sealed segment has records");
    let records_end = u32::try_from(end).expect("a segment is below 4 GiB");
    let last_lsn =
        check_tiling(&sorted, records_end, order).expect("records lie one behind another");

    let length = sorted.len() * FOOTER_ENTRY_BYTES + FOOTER_TRAILER_BYTES;
    assert!(length <= FOOTER_BYTES_MAX, "a segment is sealed before its footer is too long");
    let mut out = Vec::with_capacity(length);
    for entry in &sorted {
        entry.encode(&mut out);
    }
    out.extend_from_slice(&TRAILER_MAGIC);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&(sorted.len() as u32).to_le_bytes());
    out.extend_from_slice(&last_lsn.0.to_le_bytes());
    let mac = mac_parts(key, &[header_hash, &out]);
    out.extend_from_slice(&mac);
    out.extend_from_slice(&[0; CRC_AT - RESERVED_AT]);
    let crc = crc32c(&[&out]);
    out.extend_from_slice(&crc.to_le_bytes());
    Bytes::from(out)
}

/// Bytes of the whole footer, from the file's last [`FOOTER_TRAILER_BYTES`]. The bytes are not
/// proved yet: the result is at most [`FOOTER_BYTES_MAX`], nothing more.
///
/// # Errors
/// [`FooterError::Absent`], [`FooterError::Length`].
pub fn footer_len(trailer: &[u8; FOOTER_TRAILER_BYTES]) -> Result<usize, FooterError> {
    let mut fields = BytesIn(trailer);
    let whole = "the array has all fields";
    if fields.array() != Ok(TRAILER_MAGIC) {
        return Err(FooterError::Absent);
    }
    let (length, count) = (fields.u32().expect(whole), fields.u32().expect(whole));
    let expected = u64::from(count) * FOOTER_ENTRY_BYTES as u64 + FOOTER_TRAILER_BYTES as u64;
    if count == 0 || u64::from(length) != expected || expected > FOOTER_BYTES_MAX as u64 {
        return Err(FooterError::Length { length, count });
    }
    Ok(length as usize)
}

/// Reads and proves a footer. `tail` ends where the segment file ends and may begin before the
/// footer; `file_len` is the length of the file in bytes.
///
/// # Errors
/// See [`FooterError`]. Beyond CRC and MAC, the entries are checked to be sorted, and to name
/// records that fill the file from the header to the footer with LSNs in a row.
pub fn decode_footer(
    tail: &[u8],
    file_len: u64,
    key: &MacKey,
    header_hash: &[u8; 32],
) -> Result<Footer, FooterError> {
    decode(tail, file_len, key, header_hash, LsnOrder::Row)
}

/// As [`decode_footer`], for a segment that was written anew: LSNs ascend, with gaps. How many
/// records there are is the caller's to know.
///
/// # Errors
/// As [`decode_footer`].
pub fn decode_sparse_footer(
    tail: &[u8],
    file_len: u64,
    key: &MacKey,
    header_hash: &[u8; 32],
) -> Result<Footer, FooterError> {
    decode(tail, file_len, key, header_hash, LsnOrder::Ascending)
}

fn decode(
    tail: &[u8],
    file_len: u64,
    key: &MacKey,
    header_hash: &[u8; 32],
    order: LsnOrder,
) -> Result<Footer, FooterError> {
    let trailer = tail.last_chunk().ok_or(FooterError::Absent)?;
    let length = footer_len(trailer)?;
    let begin = tail.len().checked_sub(length);
    let begin = begin.ok_or(FooterError::Short { length, found: tail.len() })?;
    let footer = &tail[begin..];
    check_authentic(footer, key, header_hash)?;
    let records_end = file_len
        .checked_sub(length as u64)
        .and_then(|end| u32::try_from(end).ok())
        .ok_or(FooterError::Short { length, found: file_len as usize })?;

    let (entries, trailer) = footer.split_at(length - FOOTER_TRAILER_BYTES);
    let (chunks, _) = entries.as_chunks::<FOOTER_ENTRY_BYTES>();
    let mut decoded: Vec<FooterEntry> = Vec::with_capacity(chunks.len());
    for (index, chunk) in chunks.iter().enumerate() {
        let entry = FooterEntry::decode(chunk).ok_or(FooterError::Entry { index })?;
        if decoded.last().is_some_and(|last| last.sort_key() >= entry.sort_key()) {
            return Err(FooterError::Entry { index });
        }
        decoded.push(entry);
    }
    let last_lsn = check_tiling(&decoded, records_end, order)?;
    let named = trailer[16..24].try_into().map(u64::from_le_bytes).expect("8 bytes");
    if named != last_lsn.0 {
        return Err(FooterError::Gap { offset: records_end, lsn: Lsn(named) });
    }
    Ok(Footer { entries: decoded, last_lsn, records_end })
}

fn check_authentic(footer: &[u8], key: &MacKey, header_hash: &[u8; 32]) -> Result<(), FooterError> {
    let (entries, trailer) = footer.split_at(footer.len() - FOOTER_TRAILER_BYTES);
    let found = trailer[CRC_AT..].try_into().map(u32::from_le_bytes).expect("4 bytes");
    let computed = crc32c(&[&footer[..footer.len() - 4]]);
    if found != computed {
        return Err(FooterError::Crc { found, computed });
    }
    let mac = mac_parts(key, &[header_hash, entries, &trailer[..MAC_AT]]);
    let named = trailer[MAC_AT..RESERVED_AT].try_into().expect("32 bytes");
    let reserved = &trailer[RESERVED_AT..CRC_AT];
    // The reserved bytes stand outside the MAC, so they are held to what a writer writes.
    if tags_equal(&mac, &named) && reserved == [0; CRC_AT - RESERVED_AT] {
        Ok(())
    } else {
        Err(FooterError::Mac)
    }
}

/// Checks that the records fill header to footer with LSNs in order; returns the last LSN.
fn check_tiling(
    entries: &[FooterEntry],
    records_end: u32,
    order: LsnOrder,
) -> Result<Lsn, FooterError> {
    let mut placed: Vec<&FooterEntry> = entries.iter().collect();
    placed.sort_by_key(|entry| entry.offset);
    let mut offset = SEGMENT_HEADER_BYTES as u64;
    let mut last: Option<Lsn> = None;
    for entry in placed {
        let next = |last: Lsn| last.0.checked_add(1).map(Lsn);
        let follows =
            last.is_none_or(|last| next(last).is_some_and(|next| order.allows(next, entry.lsn)));
        if u64::from(entry.offset) != offset || !follows {
            return Err(FooterError::Gap { offset: entry.offset, lsn: entry.lsn });
        }
        offset = entry.end();
        last = Some(entry.lsn);
    }
    match last {
        Some(last) if offset == u64::from(records_end) => Ok(last),
        last => Err(FooterError::Gap { offset: records_end, lsn: last.unwrap_or_default() }),
    }
}
