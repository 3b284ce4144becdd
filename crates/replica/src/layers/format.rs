//! The bytes of a layer: sections of entries, then the head that finds and proves them. Writes one
//! from front to back, reads the head whole and any section by itself.

use super::{IndexEntry, RegionKey};
use crate::{
    StoreError, fields::Fields, folder::ItemFolder, manifest::LayerRecord, random::draw,
    storage::Appender,
};
use leeward_model::{DiskNumber, LayerId, Lsn, SegmentId, TimelineId};
use leeward_wire::{
    keys::{mac, mac_matches, mac_parts, mac_parts_match},
    segment::{FOOTER_ENTRY_BYTES, FooterEntry},
};
use std::collections::{BTreeMap, HashMap};

const MAGIC: [u8; 4] = *b"LWL1";
const VERSION: u16 = 1;
const MAC_BYTES: usize = 32;
const SEGMENT_BYTES: usize = 16;
/// An entry: its segment's number in the section, then the entry of that segment's footer.
const ENTRY_BYTES: usize = 4 + FOOTER_ENTRY_BYTES;
const ACCOUNT_BYTES: usize = 32;
const SECTION_BYTES: usize = 52;
/// Longest head in bytes: the sections of some 1.3 PiB.
const HEAD_BYTES_MAX: u32 = 16 << 20;

/// Records of a segment that something needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) records: u64,
    /// With their headers.
    pub(crate) bytes: u64,
}

impl Live {
    pub(crate) fn add(&mut self, entry: &FooterEntry) {
        self.records += 1;
        self.bytes += crate::segments::record_end(entry) - u64::from(entry.offset);
    }
}

/// Where a region's entries lie.
#[derive(Clone, Copy, Debug)]
struct Section {
    key: RegionKey,
    segments: u32,
    entries: u32,
    offset: u64,
    mac: [u8; MAC_BYTES],
}

impl Section {
    fn len(&self) -> u64 {
        u64::from(self.segments) * SEGMENT_BYTES as u64
            + u64::from(self.entries) * ENTRY_BYTES as u64
    }
}

/// What a section's MAC is over, beside its bytes: its layer and its place there.
fn context(layer: LayerId, key: RegionKey) -> [u8; 20] {
    let mut out = [0; 20];
    out[..16].copy_from_slice(&layer.to_bytes());
    out[16..18].copy_from_slice(&key.disk.0.to_le_bytes());
    out[18..].copy_from_slice(&key.region.to_le_bytes());
    out
}

/// The accounts' MAC is under a place that no section has: they come before all of these.
fn accounts_context(layer: LayerId) -> Vec<u8> {
    [&layer.to_bytes()[..], b"accounts"].concat()
}

/// Writes one layer. Nothing names it before its manifest: one that was not finished is deleted
/// when the item is opened again.
pub(crate) struct LayerWriter<'a> {
    folder: &'a ItemFolder,
    layer: LayerId,
    timeline: TimelineId,
    first: Lsn,
    last: Lsn,
    appender: Box<dyn Appender>,
    at: u64,
    sections: Vec<Section>,
    accounts: BTreeMap<SegmentId, Live>,
    records: u64,
}

impl<'a> LayerWriter<'a> {
    /// Begins a layer of a new id.
    pub(crate) fn create(
        folder: &'a ItemFolder,
        timeline: TimelineId,
        first: Lsn,
        last: Lsn,
    ) -> Result<LayerWriter<'a>, StoreError> {
        let layer = LayerId::from_bytes(draw(folder.random.as_ref()));
        let appender = folder.blobs.create_new(&folder.layer_path(layer))?;
        Ok(LayerWriter {
            folder,
            layer,
            timeline,
            first,
            last,
            appender,
            at: 0,
            sections: Vec::new(),
            accounts: BTreeMap::new(),
            records: 0,
        })
    }

    /// Adds a region, sorted by extent and LSN; regions come in their order.
    pub(crate) fn push(
        &mut self,
        key: RegionKey,
        entries: &[IndexEntry],
    ) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let (mut numbers, mut segments) = (HashMap::new(), Vec::new());
        let mut body = Vec::with_capacity(entries.len() * ENTRY_BYTES);
        for IndexEntry { segment, entry } in entries {
            let number = *numbers.entry(*segment).or_insert_with(|| {
                segments.extend_from_slice(&segment.to_bytes());
                (segments.len() / SEGMENT_BYTES - 1) as u32
            });
            body.extend_from_slice(&number.to_le_bytes());
            entry.encode(&mut body);
            self.accounts.entry(*segment).or_default().add(entry);
        }
        segments.extend_from_slice(&body);
        let mac = mac_parts(&self.folder.layer_key, &[&context(self.layer, key), &segments]);
        let (count, entries) = (numbers.len() as u32, entries.len() as u32);
        self.sections.push(Section { key, segments: count, entries, offset: self.at, mac });
        self.records += u64::from(entries);
        self.append(&segments)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.appender.append(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Writes accounts and head, and makes the layer and its name durable.
    pub(crate) fn finish(mut self) -> Result<LayerRecord, StoreError> {
        let mut accounts = Vec::with_capacity(self.accounts.len() * ACCOUNT_BYTES);
        for (segment, live) in &self.accounts {
            accounts.extend_from_slice(&segment.to_bytes());
            accounts.extend_from_slice(&live.records.to_le_bytes());
            accounts.extend_from_slice(&live.bytes.to_le_bytes());
        }
        let key = &self.folder.layer_key;
        let accounts_mac = mac_parts(key, &[&accounts_context(self.layer), &accounts]);
        let mut head = Vec::with_capacity(256 + self.sections.len() * SECTION_BYTES);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&[0; 2]);
        let owner = &self.folder.owner;
        let ids = [self.layer.to_bytes(), owner.vault.to_bytes(), owner.item.to_bytes()];
        head.extend_from_slice(ids.as_flattened());
        head.extend_from_slice(&self.timeline.to_bytes());
        for number in [self.first.0, self.last.0, self.records] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        head.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        head.extend_from_slice(&(self.accounts.len() as u32).to_le_bytes());
        head.extend_from_slice(&accounts_mac);
        for section in &self.sections {
            head.extend_from_slice(&section.key.disk.0.to_le_bytes());
            head.extend_from_slice(&section.key.region.to_le_bytes());
            head.extend_from_slice(&section.segments.to_le_bytes());
            head.extend_from_slice(&section.entries.to_le_bytes());
            head.extend_from_slice(&section.offset.to_le_bytes());
            head.extend_from_slice(&section.mac);
        }
        let tag = mac(key, &head);
        head.extend_from_slice(&tag);
        self.append(&accounts)?;
        self.append(&head)?;
        self.appender.finish()?;
        self.folder.blobs.sync_dir(&self.folder.path("layers"))?;
        Ok(LayerRecord {
            layer: self.layer,
            timeline: self.timeline,
            first: self.first,
            last: self.last,
            bytes: self.at,
            head_bytes: head.len() as u32,
            records: self.records,
        })
    }
}

/// A layer's head; its sections are read when they are asked for.
pub(crate) struct Layer {
    pub(crate) record: LayerRecord,
    path: String,
    sections: Vec<Section>,
    accounts: u32,
    accounts_mac: [u8; MAC_BYTES],
}

impl Layer {
    /// Reads and proves the head.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] and an absent blob name the layer: see
    /// [`super::layer_of`].
    pub(crate) fn open(folder: &ItemFolder, record: &LayerRecord) -> Result<Layer, StoreError> {
        let path = folder.layer_path(record.layer);
        let damaged = |why: &str| StoreError::damaged(&path, why);
        let at = record.bytes.checked_sub(record.head_bytes.into());
        let at = at.filter(|_| record.head_bytes <= HEAD_BYTES_MAX);
        let at = at.ok_or_else(|| damaged("its head cannot be so long"))?;
        let bytes = folder.blobs.read_at(&path, at, record.head_bytes as usize)?;
        if bytes.len() != record.head_bytes as usize {
            return Err(damaged("it is shorter than its manifest says"));
        }
        let (signed, tag) = bytes
            .split_last_chunk::<MAC_BYTES>()
            .ok_or_else(|| damaged("its head is shorter than a MAC"))?;
        if !mac_matches(&folder.layer_key, signed, tag) {
            return Err(damaged("the MAC of its head does not fit"));
        }
        let head = decode_head(&mut Fields(signed), folder, record, at);
        let (sections, accounts, accounts_mac) =
            head.ok_or_else(|| damaged("its head does not fit its manifest"))?;
        Ok(Layer { record: *record, path, sections, accounts, accounts_mac })
    }

    /// The regions that it has entries in, ascending.
    pub(crate) fn regions(&self) -> impl Iterator<Item = RegionKey> {
        self.sections.iter().map(|section| section.key)
    }

    /// Reads and proves the entries of a region, by extent and LSN.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn load(
        &self,
        folder: &ItemFolder,
        key: RegionKey,
    ) -> Result<Vec<IndexEntry>, StoreError> {
        let Ok(found) = self.sections.binary_search_by_key(&key, |section| section.key) else {
            return Ok(Vec::new());
        };
        let section = &self.sections[found];
        let what = context(self.record.layer, key);
        let bytes = self.proved(folder, section.offset, section.len(), &what, &section.mac)?;
        let entries = decode_section(&bytes, section, &self.record);
        entries.ok_or_else(|| StoreError::damaged(&self.path, "an entry of it is malformed"))
    }

    /// The live records of every segment that it refers to, as of when it was made.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn accounts(
        &self,
        folder: &ItemFolder,
    ) -> Result<BTreeMap<SegmentId, Live>, StoreError> {
        let len = u64::from(self.accounts) * ACCOUNT_BYTES as u64;
        let at = self.record.bytes - u64::from(self.record.head_bytes) - len;
        let what = accounts_context(self.record.layer);
        let bytes = self.proved(folder, at, len, &what, &self.accounts_mac)?;
        let mut fields = Fields(&bytes);
        let mut accounts = BTreeMap::new();
        while let (Some(segment), Some(records), Some(bytes)) =
            (fields.segment(), fields.u64(), fields.u64())
        {
            accounts.insert(segment, Live { records, bytes });
        }
        Ok(accounts)
    }

    fn proved(
        &self,
        folder: &ItemFolder,
        offset: u64,
        len: u64,
        context: &[u8],
        tag: &[u8; MAC_BYTES],
    ) -> Result<Vec<u8>, StoreError> {
        let damaged = |why: &str| StoreError::damaged(&self.path, why);
        let len = usize::try_from(len).map_err(|_| damaged("a region is too large"))?;
        let bytes = folder.blobs.read_at(&self.path, offset, len)?;
        if bytes.len() != len || !mac_parts_match(&folder.layer_key, &[context, &bytes], tag) {
            return Err(damaged(&format!("the MAC of its bytes at {offset} does not fit")));
        }
        Ok(bytes)
    }

    /// Proves every byte.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn audit(&self, folder: &ItemFolder) -> Result<(), StoreError> {
        let len = folder.blobs.len(&self.path)?;
        if len != Some(self.record.bytes) {
            let why = format!("it has {} bytes", len.unwrap_or_default());
            return Err(StoreError::damaged(&self.path, why));
        }
        for key in self.regions() {
            self.load(folder, key)?;
        }
        self.accounts(folder).map(drop)
    }
}

type Head = (Vec<Section>, u32, [u8; MAC_BYTES]);

/// The head's fields, when they are those of the manifest; `end` is the offset of the head.
fn decode_head(
    fields: &mut Fields<'_>,
    folder: &ItemFolder,
    record: &LayerRecord,
    end: u64,
) -> Option<Head> {
    if (fields.array::<4>()?, fields.u16()?, fields.u16()?) != (MAGIC, VERSION, 0) {
        return None;
    }
    let ids: [[u8; 16]; 4] = [fields.array()?, fields.array()?, fields.array()?, fields.array()?];
    let owner = &folder.owner;
    let ours = [
        record.layer.to_bytes(),
        owner.vault.to_bytes(),
        owner.item.to_bytes(),
        record.timeline.to_bytes(),
    ];
    let run = (fields.lsn()?, fields.lsn()?, fields.u64()?);
    if ids != ours || run != (record.first, record.last, record.records) {
        return None;
    }
    let (count, accounts) = (fields.u32()?, fields.u32()?);
    let accounts_mac = fields.array()?;
    if fields.0.len() != (count as usize).checked_mul(SECTION_BYTES)? {
        return None;
    }
    let mut sections: Vec<Section> = Vec::with_capacity(count as usize);
    let mut offset = 0;
    for _ in 0..count {
        let section = Section {
            key: RegionKey { disk: DiskNumber(fields.u16()?), region: fields.u16()? },
            segments: fields.u32()?,
            entries: fields.u32()?,
            offset: fields.u64()?,
            mac: fields.array()?,
        };
        let follows = sections.last().is_none_or(|last| last.key < section.key);
        if !follows || section.offset != offset {
            return None;
        }
        offset += section.len();
        sections.push(section);
    }
    let fits = offset + u64::from(accounts) * ACCOUNT_BYTES as u64 == end;
    fits.then_some((sections, accounts, accounts_mac))
}

fn decode_section(
    bytes: &[u8],
    section: &Section,
    record: &LayerRecord,
) -> Option<Vec<IndexEntry>> {
    let (segments, body) = bytes.split_at_checked(section.segments as usize * SEGMENT_BYTES)?;
    let (segments, _) = segments.as_chunks::<SEGMENT_BYTES>();
    let (chunks, _) = body.as_chunks::<ENTRY_BYTES>();
    let mut entries: Vec<IndexEntry> = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let (number, entry) = chunk.split_first_chunk::<4>()?;
        let segment = segments.get(u32::from_le_bytes(*number) as usize)?;
        let entry = FooterEntry::decode(entry.try_into().ok()?)?;
        let segment = SegmentId::from_bytes(*segment);
        let entry = IndexEntry { segment, entry };
        let (extent, lsn) = (entry.entry.extent, entry.entry.lsn);
        let follows =
            entries.last().is_none_or(|last| (last.entry.extent, last.entry.lsn) < (extent, lsn));
        let inside = (record.first..=record.last).contains(&lsn);
        if !follows || !inside || entry.region() != section.key {
            return None;
        }
        entries.push(entry);
    }
    Some(entries)
}
