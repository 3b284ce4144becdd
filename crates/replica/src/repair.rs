//! Repair: what can be put right without guessing. A segment whose records are all good, here or
//! in a copy, is sealed anew under another id, and one manifest puts it in the place of the old
//! one. No blob is ever changed. What cannot be put right keeps its points from being read; they
//! can be taken off the list.

use crate::{
    Audit, ItemReader, ItemStore, StoreError,
    folder::ItemFolder,
    manifest::{Change, MarkerPlace, SegmentRange},
    random::draw_uuid,
    segments::record_end,
};
use leeward_model::{Change as BlockChange, LayerId, Lsn, PointId, SegmentId, UnixMillis};
use leeward_wire::{
    record::{RecordHeader, RecordKind},
    seal::{Level, Sealer},
    segment::{
        FooterEntry, SEGMENT_HEADER_BYTES, Scan, SegmentError, SegmentHeader, encode_footer,
        encode_sparse_footer, scan, scan_sparse,
    },
};
use std::collections::BTreeSet;

/// The level for every record.
const LEVEL: Level = Level::Zstd(1);

/// Where the good records of a damaged segment are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoodRecords {
    /// In the segment itself: only its footer is damaged.
    Here,
    /// In a copy of it.
    InCopy,
    /// Nowhere that is known.
    Nowhere,
}

/// A damaged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedSegment {
    /// The segment.
    pub segment: SegmentId,
    /// Where its records can be had.
    pub records: GoodRecords,
}

/// What a repair would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairPlan {
    /// Damaged segments, ascending.
    pub segments: Vec<DamagedSegment>,
    /// Damaged layers of the index: what they say is read from the segments' own indexes instead.
    pub layers: Vec<LayerId>,
    /// Points that stay damaged after every segment is put right that can be.
    pub lost_points: Vec<PointId>,
    /// Damaged blobs that are not segments: manifests, notes, pictures.
    pub other_blobs: Vec<String>,
}

/// Asks for a copy of a segment, by its path below the store; none when there is none.
pub type CopyOf<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

/// Bytes of a segment, and the header that was proved with them.
struct Proved {
    header: SegmentHeader,
    bytes: Vec<u8>,
}

impl ItemReader {
    /// Works out what can be put right of what `audit` found. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn repair_plan(&self, audit: &Audit, copy: CopyOf<'_>) -> Result<RepairPlan, StoreError> {
        let mut plan = RepairPlan::default();
        let mut seen = BTreeSet::new();
        let mut lost = BTreeSet::new();
        for damage in &audit.damages {
            let layer = damage.blob.rsplit_once("/layers/");
            let layer = layer.and_then(|(_, name)| name.parse::<LayerId>().ok());
            if let Some(layer) = layer.filter(|layer| self.state().layers.contains_key(layer)) {
                plan.layers.push(layer);
                continue;
            }
            let named = damage.blob.rsplit_once("/segments/");
            let id = named.and_then(|(_, name)| name.parse::<SegmentId>().ok());
            let range = id.and_then(|id| self.state().segments.get(&id));
            let Some(range) = range else {
                plan.other_blobs.push(damage.blob.clone());
                lost.extend(damage.points.iter().copied());
                continue;
            };
            if seen.insert(range.segment) {
                let records = self.good_records(range, copy)?;
                plan.segments.push(DamagedSegment { segment: range.segment, records });
            }
            let found = plan.segments.iter().find(|known| known.segment == range.segment);
            if found.is_some_and(|known| known.records == GoodRecords::Nowhere) {
                lost.extend(damage.points.iter().copied());
            }
        }
        let listed = lost.into_iter().filter(|id| self.state().point(*id).is_some());
        plan.lost_points = listed.collect();
        plan.segments.sort_by_key(|known| known.segment);
        plan.layers.sort_unstable();
        plan.layers.dedup();
        Ok(plan)
    }

    fn good_records(
        &self,
        range: &SegmentRange,
        copy: CopyOf<'_>,
    ) -> Result<GoodRecords, StoreError> {
        if own(&self.folder, range)?.is_some() {
            return Ok(GoodRecords::Here);
        }
        match copied(&self.folder, range, copy) {
            Some(_) => Ok(GoodRecords::InCopy),
            None => Ok(GoodRecords::Nowhere),
        }
    }
}

/// The segment's own records, if all are good.
fn own(folder: &ItemFolder, range: &SegmentRange) -> Result<Option<Proved>, StoreError> {
    let path = folder.segment_path(range.segment);
    if folder.blobs.len(&path)?.is_none_or(|len| len < range.bytes) {
        return Ok(None);
    }
    let len = usize::try_from(range.bytes).expect("segments fit in memory");
    Ok(proved(folder, range, folder.blobs.read_at(&path, 0, len)?))
}

fn copied(folder: &ItemFolder, range: &SegmentRange, copy: CopyOf<'_>) -> Option<Proved> {
    proved(folder, range, copy(&folder.segment_path(range.segment))?)
}

/// Opens every record of the range in `bytes`.
fn proved(folder: &ItemFolder, range: &SegmentRange, mut bytes: Vec<u8>) -> Option<Proved> {
    bytes.truncate(usize::try_from(range.bytes).ok()?);
    let header = SegmentHeader::decode(&bytes).ok()?;
    let (owner, path) = (&folder.owner, folder.segment_path(range.segment));
    let names = (header.segment, header.vault, header.item, header.timeline, header.first_lsn);
    if names != (range.segment, owner.vault, owner.item, range.timeline, range.first) {
        return None;
    }
    let opener = folder.keys.opener(&path, &header).ok()?;
    let mut records = scanned(range, &bytes).ok()?;
    let (mut last, mut count) = (Lsn(range.first.0 - 1), 0);
    for record in records.by_ref() {
        let (head, stored) = (record.header_bytes, record.stored);
        match record.header.kind {
            RecordKind::Change => drop(opener.open_change(&record.header, head, stored).ok()?),
            RecordKind::Marker => drop(opener.open_marker(&record.header, head, stored).ok()?),
        }
        (last, count) = (record.header.lsn, count + 1);
    }
    let whole = records.valid_bytes() == bytes.len() && bytes.len() as u64 == range.bytes;
    (whole && last == range.last && count == range.records).then_some(Proved { header, bytes })
}

fn scanned<'a>(range: &SegmentRange, bytes: &'a [u8]) -> Result<Scan<'a>, SegmentError> {
    if range.is_whole() { scan(bytes) } else { scan_sparse(bytes) }
}

impl ItemStore {
    /// Puts a damaged segment right: from its own records when they are good, else from a copy.
    /// Returns false when neither is good, and nothing was changed.
    ///
    /// # Errors
    /// [`StoreError::Refused`] while a pin of the item exists: what was opened under it reads the
    /// old segment. [`StoreError::Storage`], after which the old segment counts or the new one.
    pub fn repair_segment(
        &mut self,
        segment: SegmentId,
        copy: CopyOf<'_>,
        now: UnixMillis,
    ) -> Result<bool, StoreError> {
        self.check_stale()?;
        let folder = self.reader.folder.clone();
        let Some(range) = self.reader.state().segments.get(&segment).copied() else {
            return Err(StoreError::refused("a repair", "there is no such segment"));
        };
        if !self.reader.pins()?.is_empty() {
            let why = "pins hold points of the item; end what uses them";
            return Err(StoreError::refused("a repair", why));
        }
        let Some(good) = own(&folder, &range)?.or_else(|| copied(&folder, &range, copy)) else {
            return Ok(false);
        };
        let (fresh, entries) = self.seal_anew(&folder, &range, &good)?;
        let changes = self.replaced(&range, fresh, &entries);
        self.commit(changes, now)?;
        let path = folder.segment_path(segment);
        folder.blobs.delete(&path)?;
        folder.blobs.sync_dir(&folder.path("segments"))?;
        Ok(true)
    }

    /// Writes the records of `good` to a new segment, durably.
    fn seal_anew(
        &self,
        folder: &ItemFolder,
        range: &SegmentRange,
        good: &Proved,
    ) -> Result<(SegmentRange, Vec<FooterEntry>), StoreError> {
        let keys = folder.keys.newest();
        let segment = SegmentId::from(draw_uuid(folder.random.as_ref()));
        let header = SegmentHeader { segment, key_version: keys.version, ..good.header.clone() };
        let path = folder.segment_path(good.header.segment);
        let opener = folder.keys.opener(&path, &good.header)?;
        let mut sealer = Sealer::new(&keys.data, header.clone());
        let fresh = folder.segment_path(segment);
        let mut appender = folder.blobs.create_new(&fresh)?;
        appender.append(&header.encode())?;
        let (mut at, mut entries) = (SEGMENT_HEADER_BYTES, Vec::new());
        let damaged = |error: &dyn std::fmt::Display| StoreError::damaged(&path, error);
        for record in scanned(range, &good.bytes).map_err(|error| damaged(&error))? {
            let (head, stored) = (record.header_bytes, record.stored);
            sealer.leave_out_before(record.header.lsn);
            let sealed = match record.header.kind {
                RecordKind::Change => {
                    let data = opener.open_change(&record.header, head, stored);
                    let change = BlockChange {
                        disk: record.header.disk,
                        extent: record.header.extent,
                        mask: record.header.mask,
                        data: data.map_err(|error| damaged(&error))?,
                        hash: record.header.hash,
                    };
                    sealer.seal_change(record.header.lsn, &change, LEVEL)
                }
                RecordKind::Marker => {
                    let marker = opener.open_marker(&record.header, head, stored);
                    let marker = marker.map_err(|error| damaged(&error))?;
                    sealer.seal_marker(record.header.lsn, &marker)
                }
            };
            let head = sealed.first_chunk().map(RecordHeader::decode);
            let Some(Ok(head)) = head else { unreachable!("a sealer makes whole records") };
            entries.push(FooterEntry::of(&head, at as u32));
            at += sealed.len();
            appender.append(&sealed)?;
        }
        let key = folder.keys.footer(&fresh, &header)?;
        let encode = if range.is_whole() { encode_footer } else { encode_sparse_footer };
        appender.append(&encode(&entries, &key, &header.hash()))?;
        appender.finish()?;
        folder.blobs.sync_dir(&folder.path("segments"))?;
        Ok((SegmentRange { segment, bytes: at as u64, ..*range }, entries))
    }

    /// The changes that put `fresh` in the place of `old`. The timeline's layers go: the
    /// next upkeep makes them anew.
    fn replaced(
        &self,
        old: &SegmentRange,
        fresh: SegmentRange,
        entries: &[FooterEntry],
    ) -> Vec<Change> {
        let state = self.reader.state();
        // All of the timeline, so that none is missing between two.
        let stale = state.layers.values().filter(|layer| layer.timeline == old.timeline);
        let mut changes: Vec<_> = stale.map(|layer| Change::LayerDropped(layer.layer)).collect();
        changes.extend([Change::SegmentDropped(old.segment), Change::SegmentCommitted(fresh)]);
        let moved = state.points.iter().filter(|point| point.marker.segment == old.segment);
        changes.extend(moved.filter_map(|point| {
            let entry = entries.iter().find(|entry| entry.lsn == point.position.lsn)?;
            let offset = u64::from(entry.offset);
            let len = (record_end(entry) - offset) as u32;
            let place = MarkerPlace { segment: fresh.segment, offset, len };
            Some(Change::MarkerMoved(point.id, place))
        }));
        changes
    }

    /// Takes layers of the index out of use, durably; the next upkeep makes them anew. Returns how
    /// many were in use.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn drop_layers(&mut self, layers: &[LayerId], now: UnixMillis) -> Result<u64, StoreError> {
        self.check_stale()?;
        let known = &self.reader.state().layers;
        let changes: Vec<_> = (layers.iter().filter(|layer| known.contains_key(layer)))
            .map(|layer| Change::LayerDropped(*layer))
            .collect();
        let dropped = changes.len() as u64;
        if dropped > 0 {
            self.commit(changes, now)?;
        }
        Ok(dropped)
    }

    /// Takes points off the list, durably; their data go with the next collection.
    ///
    /// # Errors
    /// [`StoreError::NoPoint`]; [`StoreError::Refused`] for a pinned one; nothing was changed.
    pub fn drop_points(&mut self, points: &[PointId], now: UnixMillis) -> Result<(), StoreError> {
        self.check_stale()?;
        let pins = self.reader.pins()?;
        for point in points {
            if self.reader.state().point(*point).is_none() {
                return Err(StoreError::NoPoint { point: *point });
            }
            if pins.iter().any(|pin| pin.point == *point) {
                return Err(StoreError::refused("a repair", format!("point {point} is pinned")));
            }
        }
        if points.is_empty() {
            return Ok(());
        }
        self.commit(points.iter().map(|point| Change::PointRemoved(*point)).collect(), now)
    }
}
