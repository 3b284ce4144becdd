//! The bytes of an outline: a head, then pages of points, of their ids in order, and of segment
//! ranges. Written whole, read page by page; every page has its MAC in the head.

use crate::{
    StoreError,
    fields::Fields,
    folder::ItemFolder,
    manifest::{
        Change, ItemState, PointRecord, SegmentRange,
        codec::{HEADER_BYTES, decode_change, decode_point, encode_change, encode_point},
    },
};
use leeward_model::{Lsn, PointId, TimelineId};
use leeward_wire::keys::{mac_parts, mac_parts_match};

const MAGIC: [u8; 4] = *b"LWO1";
const VERSION: u16 = 1;
const MAC_BYTES: usize = 32;
/// Say in the MACs what they are of: the key is that of the manifests.
const HEAD_CONTEXT: &[u8] = b"leeward outline head\0";
const PAGE_CONTEXT: &[u8] = b"leeward outline page\0";
/// Where the head's length stands.
const LEN_AT: usize = 8 + HEADER_BYTES;
/// Read at first: more than the head of most items.
const FIRST_READ_BYTES: usize = 32 << 10;
/// Longest head in bytes that is believed: some ten million points.
const HEAD_BYTES_MAX: usize = 64 << 20;
/// Entries of a page: 8 to 20 KiB, which is what one lookup reads and proves.
const POINTS_A_PAGE: usize = 64;
const IDS_A_PAGE: usize = 512;
const RANGES_A_PAGE: usize = 256;
const ID_BYTES: usize = 20;
/// Longest page in bytes that is believed: 64 points with the longest names.
const PAGE_BYTES_MAX: u32 = 16 << 20;

/// Order of the ranges, and of their pages.
pub(super) type RangeKey = (TimelineId, Lsn);

/// Where a page lies, and what it begins with.
#[derive(Clone, Debug)]
pub(super) struct Page<K> {
    pub(super) first: K,
    pub(super) entries: u32,
    /// Place in the order of all pages, which its MAC is over.
    number: u32,
    offset: u64,
    len: u32,
    mac: [u8; MAC_BYTES],
}

/// An outline's head.
pub(super) struct Head {
    path: String,
    /// The checkpoint.
    pub(super) number: u64,
    /// Everything but points and segments.
    pub(super) small: Vec<Change>,
    /// By the number of the first point.
    pub(super) points: Vec<Page<u64>>,
    pub(super) ids: Vec<Page<PointId>>,
    pub(super) ranges: Vec<Page<RangeKey>>,
}

/// What an outline's name begins with, before its checkpoint's number.
pub(super) const PREFIX: &str = "outline-";

/// Path of the outline of a checkpoint.
pub(super) fn path(folder: &ItemFolder, number: u64) -> String {
    folder.path(&format!("manifest/{PREFIX}{number:016}"))
}

struct Writer<'a> {
    folder: &'a ItemFolder,
    number: u64,
    table: Vec<u8>,
    pages: Vec<u8>,
    count: u32,
}

impl Writer<'_> {
    fn push(&mut self, entries: usize, page: &[u8]) {
        let context = page_context(self.number, self.count);
        let mac = mac_parts(&self.folder.manifest_key, &[PAGE_CONTEXT, &context, page]);
        self.table.extend_from_slice(&(entries as u32).to_le_bytes());
        self.table.extend_from_slice(&(self.pages.len() as u64).to_le_bytes());
        self.table.extend_from_slice(&(page.len() as u32).to_le_bytes());
        self.table.extend_from_slice(&mac);
        self.pages.extend_from_slice(page);
        self.count += 1;
    }
}

/// The outline of a checkpoint: of its header and its state.
pub(super) fn encode(
    folder: &ItemFolder,
    header: &[u8; HEADER_BYTES],
    state: &ItemState,
) -> Vec<u8> {
    let number = number_of(header);
    let (table, pages) = (Vec::new(), Vec::new());
    let mut writer = Writer { folder, number, table, pages, count: 0 };
    let mut counts = [0_u32; 3];
    for (page, points) in state.points.chunks(POINTS_A_PAGE).enumerate() {
        let mut bytes = Vec::new();
        points.iter().for_each(|point| encode_point(point, &mut bytes));
        writer.table.extend_from_slice(&((page * POINTS_A_PAGE) as u64).to_le_bytes());
        writer.push(points.len(), &bytes);
        counts[0] += 1;
    }
    let mut ids: Vec<(PointId, u32)> = state.points.iter().map(|p| p.id).zip(0..).collect();
    ids.sort_unstable();
    for ids in ids.chunks(IDS_A_PAGE) {
        let mut bytes = Vec::new();
        for (id, at) in ids {
            bytes.extend_from_slice(&id.to_bytes());
            bytes.extend_from_slice(&at.to_le_bytes());
        }
        writer.table.extend_from_slice(&ids[0].0.to_bytes());
        writer.push(ids.len(), &bytes);
        counts[1] += 1;
    }
    let mut ranges: Vec<&SegmentRange> = state.segments.values().collect();
    ranges.sort_unstable_by_key(|range| (range.timeline, range.first));
    for ranges in ranges.chunks(RANGES_A_PAGE) {
        let mut bytes = Vec::new();
        for range in ranges {
            encode_change(&Change::SegmentCommitted(**range), &mut bytes);
        }
        writer.table.extend_from_slice(&ranges[0].timeline.to_bytes());
        writer.table.extend_from_slice(&ranges[0].first.0.to_le_bytes());
        writer.push(ranges.len(), &bytes);
        counts[2] += 1;
    }
    finish(&writer, header, &counts, state)
}

fn finish(
    writer: &Writer<'_>,
    header: &[u8; HEADER_BYTES],
    counts: &[u32; 3],
    state: &ItemState,
) -> Vec<u8> {
    let mut small = Vec::new();
    for change in state.small_changes() {
        encode_change(&change, &mut small);
    }
    let mut out = Vec::with_capacity(writer.pages.len() + writer.table.len() + 1024);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(header);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(small.len() as u32).to_le_bytes());
    out.extend_from_slice(&small);
    counts.iter().for_each(|count| out.extend_from_slice(&count.to_le_bytes()));
    out.extend_from_slice(&writer.table);
    let len = (out.len() + MAC_BYTES) as u32;
    out[LEN_AT..LEN_AT + 4].copy_from_slice(&len.to_le_bytes());
    let tag = mac_parts(&writer.folder.manifest_key, &[HEAD_CONTEXT, &out]);
    out.extend_from_slice(&tag);
    out.extend_from_slice(&writer.pages);
    out
}

fn number_of(header: &[u8; HEADER_BYTES]) -> u64 {
    u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"))
}

fn page_context(number: u64, page: u32) -> [u8; 12] {
    let mut out = [0; 12];
    out[..8].copy_from_slice(&number.to_le_bytes());
    out[8..].copy_from_slice(&page.to_le_bytes());
    out
}

/// Reads the head of a checkpoint's outline.
///
/// # Errors
/// [`StoreError::Damaged`]; [`StoreError::Storage`], also when there is none.
pub(super) fn read_head(folder: &ItemFolder, number: u64) -> Result<Head, StoreError> {
    let path = path(folder, number);
    let mut bytes = folder.blobs.read_at(&path, 0, FIRST_READ_BYTES)?;
    let damaged = |why: &str| StoreError::damaged(&path, why);
    let len = bytes.get(LEN_AT..LEN_AT + 4).and_then(|len| len.try_into().ok());
    let len = len.map_or(0, u32::from_le_bytes) as usize;
    if !(LEN_AT..=HEAD_BYTES_MAX).contains(&len) {
        return Err(damaged("its head's length does not fit"));
    }
    if len > bytes.len() {
        bytes = folder.blobs.read_at(&path, 0, len)?;
    }
    let head = bytes.get(..len).and_then(<[u8]>::split_last_chunk::<MAC_BYTES>);
    let Some((signed, tag)) = head else { return Err(damaged("it is shorter than its head")) };
    if !mac_parts_match(&folder.manifest_key, &[HEAD_CONTEXT, signed], tag) {
        return Err(damaged("the MAC of its head does not fit"));
    }
    let head = decode_head(signed, len as u64, path.clone());
    let mine = |head: &Head| {
        head.number == number && signed[8 + 32..8 + 48] == folder.owner.item.to_bytes()
    };
    head.filter(mine).ok_or_else(|| damaged("its head's fields do not fit"))
}

fn decode_head(signed: &[u8], pages_at: u64, path: String) -> Option<Head> {
    let mut fields = Fields(signed);
    if fields.array()? != MAGIC || fields.u16()? != VERSION || fields.u16()? != 0 {
        return None;
    }
    let number = number_of(&fields.array()?);
    fields.u32()?;
    let small_bytes = fields.u32()? as usize;
    let mut changes = Fields(fields.take(small_bytes)?);
    let mut small = Vec::new();
    while !changes.0.is_empty() {
        small.push(decode_change(&mut changes)?);
    }
    let counts = [fields.u32()?, fields.u32()?, fields.u32()?];
    let mut table = Table { fields, pages_at, number: 0 };
    let points = table.take(counts[0], |fields| fields.u64())?;
    let ids = table.take(counts[1], |fields| fields.point())?;
    let ranges = table.take(counts[2], |fields| Some((fields.timeline()?, fields.lsn()?)))?;
    let whole = table.fields.0.is_empty();
    whole.then_some(Head { path, number, small, points, ids, ranges })
}

struct Table<'a> {
    fields: Fields<'a>,
    pages_at: u64,
    number: u32,
}

impl Table<'_> {
    fn take<K>(
        &mut self,
        count: u32,
        first: impl Fn(&mut Fields<'_>) -> Option<K>,
    ) -> Option<Vec<Page<K>>> {
        let mut pages = Vec::new();
        for _ in 0..count {
            let first = first(&mut self.fields)?;
            let fields = &mut self.fields;
            let (entries, offset, len) = (fields.u32()?, fields.u64()?, fields.u32()?);
            if len > PAGE_BYTES_MAX {
                return None;
            }
            let offset = self.pages_at.checked_add(offset)?;
            let mac = fields.array()?;
            pages.push(Page { first, entries, number: self.number, offset, len, mac });
            self.number += 1;
        }
        Some(pages)
    }
}

impl Head {
    /// Reads and proves one page.
    fn bytes<K>(&self, folder: &ItemFolder, page: &Page<K>) -> Result<Vec<u8>, StoreError> {
        let bytes = folder.blobs.read_at(&self.path, page.offset, page.len as usize)?;
        let context = page_context(self.number, page.number);
        let parts = [PAGE_CONTEXT, &context, &bytes[..]];
        if mac_parts_match(&folder.manifest_key, &parts, &page.mac) {
            return Ok(bytes);
        }
        Err(self.damaged(page))
    }

    fn damaged<K>(&self, page: &Page<K>) -> StoreError {
        StoreError::damaged(&self.path, format!("page {} does not fit", page.number))
    }

    /// Number of all points.
    pub(super) fn points_len(&self) -> u64 {
        self.points.last().map_or(0, |page| page.first + u64::from(page.entries))
    }

    /// The points of a page, in the order of their commits.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`], as the others here.
    pub(super) fn points_of(
        &self,
        folder: &ItemFolder,
        page: &Page<u64>,
    ) -> Result<Vec<PointRecord>, StoreError> {
        let bytes = self.bytes(folder, page)?;
        let mut fields = Fields(&bytes);
        let points = (0..page.entries).map(|_| decode_point(&mut fields)).collect();
        Option::ok_or_else(points, || self.damaged(page))
    }

    /// The number of the point of this id.
    pub(super) fn number_of(
        &self,
        folder: &ItemFolder,
        id: PointId,
    ) -> Result<Option<u64>, StoreError> {
        let after = self.ids.partition_point(|page| page.first <= id);
        let Some(page) = after.checked_sub(1).map(|at| &self.ids[at]) else { return Ok(None) };
        let bytes = self.bytes(folder, page)?;
        let (entries, _) = bytes.as_chunks::<ID_BYTES>();
        let id = id.to_bytes();
        let found = entries.binary_search_by(|entry| entry[..16].cmp(&id));
        let number = |at: usize| entries[at][16..].try_into().map(u32::from_le_bytes).ok();
        Ok(found.ok().and_then(number).map(u64::from))
    }

    /// The ranges of a page, by timeline and first LSN.
    pub(super) fn ranges_of(
        &self,
        folder: &ItemFolder,
        page: &Page<RangeKey>,
    ) -> Result<Vec<SegmentRange>, StoreError> {
        let bytes = self.bytes(folder, page)?;
        let mut fields = Fields(&bytes);
        let ranges = (0..page.entries).map(|_| match decode_change(&mut fields)? {
            Change::SegmentCommitted(range) => Some(range),
            _ => None,
        });
        ranges.collect::<Option<_>>().ok_or_else(|| self.damaged(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The MAC keeps foreign bytes out; what has it must not make the decoder panic either.
        #[test]
        fn no_bytes_make_the_decoder_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            small in 0_u32..40,
            counts in prop::array::uniform3(0_u32..4),
        ) {
            let _ = decode_head(&bytes, 0, String::new());
            // Past the fields that have one value only.
            let begin = [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 2]].concat();
            let mut head = [&begin[..], &[0; HEADER_BYTES]].concat();
            head.extend_from_slice(&[0; 4]);
            head.extend_from_slice(&small.to_le_bytes());
            head.extend_from_slice(&bytes);
            let _ = decode_head(&head, 0, String::new());
            head.truncate(LEN_AT + 4);
            head.extend_from_slice(&0_u32.to_le_bytes());
            counts.iter().for_each(|count| head.extend_from_slice(&count.to_le_bytes()));
            head.extend_from_slice(&bytes);
            if let Some(decoded) = decode_head(&head, u64::MAX - 5, String::new()) {
                prop_assert!(decoded.points.iter().all(|page| page.len <= PAGE_BYTES_MAX));
            }
        }
    }
}
