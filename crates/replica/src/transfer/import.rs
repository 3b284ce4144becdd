//! Takes an exported item into a store: proves every byte of it, and makes its points visible with
//! one manifest, after everything else is durable.

use super::{
    About, HEADER_BYTES, Header, TransferProgress, damaged, head_mac, read_exact, segment_mac,
};
use crate::{
    ItemKeys, ItemStore, RecipientSecret, Store, StoreError,
    folder::ItemFolder,
    key_blobs,
    keyring::{KeyOwner, KeyStamp},
    manifest::{Change, ItemState, Manifest, SegmentRange},
    storage::Put,
};
use leeward_model::{ItemId, PointId, UnixMillis};
use leeward_wire::{
    keys::{MacKey, manifest_mac_key},
    record::RecordKind,
    segment::{FooterEntry, SegmentHeader, encode_footer, encode_sparse_footer, scan, scan_sparse},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

/// Longest blob of one wrapped key in bytes: one recipient has 208.
const KEY_BYTES_MAX: u16 = 256;

/// What was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The item.
    pub item: ItemId,
    /// Points that are new here.
    pub points: u64,
    /// Segments that are new here.
    pub segments: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// Everything before the segments, proved.
struct Head {
    header: Header,
    keys: BTreeMap<u32, ItemKeys>,
    manifest_key: MacKey,
    state: ItemState,
    changes: Vec<Change>,
    about: About,
}

impl Head {
    fn read(input: &mut dyn Read, secret: &RecipientSecret) -> Result<Head, StoreError> {
        let mut hasher = blake3::Hasher::new();
        let mut part = |input: &mut dyn Read, len: u64| {
            let bytes = read_exact(input, len)?;
            hasher.update(&bytes);
            Ok::<_, StoreError>(bytes)
        };
        let bytes = part(input, HEADER_BYTES as u64)?;
        let header = Header::decode(bytes.first_chunk().expect("so many were read"));
        let header = header.map_err(damaged)?;
        let mut keys = BTreeMap::new();
        for _ in 0..header.keys {
            let len = part(input, 2)?;
            let len = u16::from_le_bytes([len[0], len[1]]);
            if len > KEY_BYTES_MAX {
                return Err(damaged("a key of it is longer than any"));
            }
            let blob = part(input, len.into())?;
            let opened = ItemKeys::unwrap_with(&blob, &header.owner, secret)?;
            keys.insert(opened.version, opened);
        }
        let first = keys.get(&1).ok_or_else(|| damaged("its first data key is missing"))?;
        let manifest_key = manifest_mac_key(&first.data);
        let alike = keys.values().all(|key| key.hash == first.hash);
        if !alike || keys.len() != usize::from(header.keys) {
            return Err(damaged("its keys do not belong together"));
        }
        let manifest = part(input, header.manifest.into())?;
        let about = part(input, header.about.into())?;
        let expected = head_mac(&manifest_key, &hasher);
        let found = read_exact(input, 32)?;
        if found != expected {
            return Err(damaged("its MAC does not fit"));
        }
        let manifest = Manifest::decode(&manifest, &manifest_key).map_err(damaged)?;
        if (manifest.vault, manifest.item) != (header.owner.vault, header.owner.item) {
            return Err(damaged("its manifest is another item's"));
        }
        let about: About = serde_json::from_slice(&about).map_err(damaged)?;
        let mut state = ItemState::default();
        for change in &manifest.changes {
            state.apply(change).map_err(damaged)?;
        }
        Ok(Head { header, keys, manifest_key, state, changes: manifest.changes, about })
    }

    fn ranges(&self) -> Result<Vec<SegmentRange>, StoreError> {
        let range = |segment| self.state.segments.get(segment).copied();
        let ranges: Option<Vec<_>> = self.about.segments.iter().map(range).collect();
        ranges.ok_or_else(|| damaged("it carries a segment that it does not list"))
    }
}

impl Store {
    /// Takes an exported item from `input`; `secret` is the one that its export returned. When it
    /// returns, the points are listed and durable. An item that was not there before is gone again
    /// after an error; of one that was there nothing that was listed changed.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the stream is not whole; [`StoreError::Key`] when `secret`
    /// does not open it; [`StoreError::Refused`] when the item is here with another history, or
    /// when this store was not opened for writing; [`StoreError::Storage`].
    pub fn import(
        &self,
        input: &mut dyn Read,
        secret: &RecipientSecret,
        now: UnixMillis,
        progress: TransferProgress<'_>,
    ) -> Result<Imported, StoreError> {
        self.check_writer()?;
        let head = Head::read(input, secret)?;
        let item = head.header.owner.item;
        let fresh = key_blobs::list(self.blobs.as_ref(), item)?.is_empty();
        if fresh && head.about.since.is_some() {
            let why = "it continues a point of an item that is not in this store";
            return Err(StoreError::refused("an import", why));
        }
        let taken = self.take(&head, input, fresh, now, progress);
        if taken.is_err() && fresh {
            // Nothing of it was listed; a failure to delete it leaves an item without points.
            let cleared = self.item_destroy(item);
            if let Err(error) = cleared {
                tracing::warn!(%item, %error, "the remains of an import could not be deleted");
            }
        }
        taken
    }

    fn take(
        &self,
        head: &Head,
        input: &mut dyn Read,
        fresh: bool,
        now: UnixMillis,
        progress: TransferProgress<'_>,
    ) -> Result<Imported, StoreError> {
        if fresh {
            self.put_keys(head)?;
        }
        let mut item = self.item_open(head.header.owner.item)?;
        check_same_item(head, &item)?;
        let changes = new_changes(head, item.reader().state())?;
        let ranges = head.ranges()?;
        let total: u64 = ranges.iter().map(|range| range.bytes).sum();
        let (mut done, mut segments, mut bytes) = (0, 0, 0);
        for range in &ranges {
            let put = take_segment(head, range, &item.reader().folder, input)?;
            if put == Put::Created {
                segments += 1;
                bytes += range.bytes;
            }
            done += range.bytes;
            progress(done, total);
        }
        let mut more = [0];
        let read = input.read(&mut more).map_err(|error| super::stream_error("read", error))?;
        if read > 0 {
            return Err(damaged("there is something behind its end"));
        }
        let folder = item.reader().folder.clone();
        folder.blobs.sync_dir(&folder.path("segments"))?;
        let points = changes.iter().filter(|change| matches!(change, Change::PointAdded(_)));
        let points = points.count() as u64;
        if !changes.is_empty() {
            item.commit(changes, now)?;
        }
        if let Some(label) = &head.about.label {
            item.reader().set_label(label)?;
        }
        Ok(Imported { item: item.reader().item(), points, segments, bytes })
    }

    /// Wraps the keys of an export for this store's recipients; the item exists with the last one.
    fn put_keys(&self, head: &Head) -> Result<(), StoreError> {
        let KeyOwner { vault, item, .. } = head.header.owner;
        let owner = KeyOwner { store: self.identity().store, vault, item };
        let _lock = self.lock_keys()?;
        let recipients = self.identity.recipients();
        for (version, keys) in head.keys.iter().rev() {
            let stamp = match version {
                1 => KeyStamp::FIRST,
                _ => KeyStamp { version: *version, generation: self.key_generation() },
            };
            let bytes = keys.wrap(&owner, stamp, &recipients, self.random.as_ref());
            if self.blobs.put_new(&key_blobs::path(item, stamp), &bytes)? == Put::Exists {
                return Err(StoreError::refused("an import", "another process makes the item"));
            }
        }
        Ok(())
    }
}

/// Refuses an item of the same id that is another one, or whose keys went another way.
fn check_same_item(head: &Head, item: &ItemStore) -> Result<(), StoreError> {
    let refuse = |why: &str| Err(StoreError::refused("an import", why));
    let reader = item.reader();
    if reader.vault() != head.header.owner.vault {
        return refuse("the item is here under another vault");
    }
    for (version, keys) in &head.keys {
        match reader.folder.keys.keys(*version) {
            Some(here) if here == *keys => {}
            Some(_) => return refuse("the item is here with other data keys"),
            None => return refuse("the item has a new data key there: import it as a whole"),
        }
    }
    let here = reader.state();
    if here.branches.iter().any(|branch| head.state.branch(branch.timeline) != Some(branch)) {
        return refuse("the item is here with another history");
    }
    if let Some((point, place)) = head.about.since
        && here.point(point).is_none_or(|known| known.position != place)
    {
        return refuse("the item here has not the point that the export continues");
    }
    Ok(())
}

/// The changes of the export that this store has not, in an order in which they can be applied.
fn new_changes(head: &Head, here: &ItemState) -> Result<Vec<Change>, StoreError> {
    let refuse = |why: String| Err(StoreError::refused("an import", why));
    let carried: BTreeSet<_> = head.about.segments.iter().collect();
    let points = new_points(head, here);
    let mut changes = Vec::new();
    for change in &head.changes {
        let is_new = match change {
            Change::BranchOpened(branch) => here.branch(branch.timeline).is_none(),
            Change::HeadReached(place) => {
                here.heads.get(&place.timeline).is_none_or(|head| *head < place.lsn)
            }
            Change::BranchRetired(timeline) => !here.retired.contains(timeline),
            Change::FenceRaised(epoch) => *epoch > here.fence,
            Change::PointAdded(point) => points.contains(&point.id),
            Change::SegmentCommitted(range) => {
                let known = here.segments.get(&range.segment);
                if known.is_some_and(|known| known != range) {
                    let why = "has grown since: export the item without --since, into a new store";
                    return refuse(format!("segment {} {why}", range.segment));
                }
                let overlaps = |other: &&SegmentRange| {
                    other.timeline == range.timeline
                        && other.first <= range.last
                        && range.first <= other.last
                };
                let is_new = known.is_none() && carried.contains(&range.segment);
                if is_new && here.segments.values().any(|other| overlaps(&other)) {
                    return refuse("the item here was written to by itself".into());
                }
                is_new
            }
            Change::PointRemoved(_)
            | Change::SegmentDropped(_)
            | Change::LayerAdded(_)
            | Change::LayerDropped(_)
            | Change::BlobDropped(..)
            | Change::MarkerMoved(..) => {
                return Err(damaged("its manifest is not that of an export"));
            }
        };
        if is_new {
            changes.push(change.clone());
        }
    }
    Ok(changes)
}

/// Points that become listed: those behind the one that the export continues.
fn new_points(head: &Head, here: &ItemState) -> BTreeSet<PointId> {
    let mut ids = head.state.points.iter().map(|point| point.id);
    if let Some((since, _)) = head.about.since {
        ids.by_ref().find(|id| *id == since);
    }
    ids.filter(|id| here.point(*id).is_none()).collect()
}

/// Reads one segment, proves every record of it, and puts it with a footer.
fn take_segment(
    head: &Head,
    range: &SegmentRange,
    folder: &ItemFolder,
    input: &mut dyn Read,
) -> Result<Put, StoreError> {
    let path = folder.segment_path(range.segment);
    let wrong = |why: &str| damaged(format!("segment {}: {why}", range.segment));
    let len = read_exact(input, 8)?;
    if len != range.bytes.to_le_bytes() {
        return Err(wrong("its length is another than its manifest says"));
    }
    let mut bytes = read_exact(input, range.bytes)?;
    let tag = read_exact(input, 32)?;
    if tag != segment_mac(&head.manifest_key, &head.header.export, range.segment, &bytes) {
        return Err(wrong("its MAC does not fit"));
    }
    let header = SegmentHeader::decode(&bytes).map_err(|error| wrong(&error.to_string()))?;
    let names = (header.segment, header.vault, header.item, header.timeline, header.first_lsn);
    let owner = &folder.owner;
    if names != (range.segment, owner.vault, owner.item, range.timeline, range.first) {
        return Err(wrong("it is the segment of another place"));
    }
    let entries = prove(folder, &path, range, &header, &bytes).map_err(|why| wrong(&why))?;
    if entries.len() as u64 != range.records {
        return Err(wrong("its records are not those of its manifest"));
    }
    let key = folder.keys.footer(&path, &header)?;
    let encode = if range.is_whole() { encode_footer } else { encode_sparse_footer };
    bytes.extend_from_slice(&encode(&entries, &key, &header.hash()));
    let put = folder.blobs.put_new(&path, &bytes)?;
    if put == Put::Exists {
        let here = folder.blobs.read_at(&path, 0, range.bytes as usize)?;
        if here != bytes[..range.bytes as usize] {
            return Err(wrong("there is another one of its name in the store"));
        }
    }
    Ok(put)
}

/// Opens every record of a segment.
fn prove(
    folder: &ItemFolder,
    path: &str,
    range: &SegmentRange,
    header: &SegmentHeader,
    bytes: &[u8],
) -> Result<Vec<FooterEntry>, String> {
    let opener = folder.keys.opener(path, header).map_err(|error| error.to_string())?;
    let scanned = if range.is_whole() { scan(bytes) } else { scan_sparse(bytes) };
    let mut records = scanned.map_err(|error| error.to_string())?;
    let mut entries = Vec::new();
    for record in records.by_ref() {
        let (header, stored) = (&record.header, record.stored);
        match header.kind {
            RecordKind::Change => opener.open_change(header, record.header_bytes, stored).map(drop),
            RecordKind::Marker => opener.open_marker(header, record.header_bytes, stored).map(drop),
        }
        .map_err(|error| error.to_string())?;
        entries.push(FooterEntry::of(&record.header, record.offset));
    }
    if records.valid_bytes() != bytes.len() {
        return Err("something in it is no record".into());
    }
    Ok(entries)
}
