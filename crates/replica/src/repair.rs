//! Repair: what can be put right without guessing. A segment whose records are all good, here or
//! in a copy, is sealed anew under another id, and one manifest puts it in the place of the old
//! one. No blob is ever changed. What cannot be put right keeps its points from being read; they
//! can be taken off the list.

use crate::{
    Audit, ItemReader, ItemStore, StoreError,
    folder::ItemFolder,
    manifest::{Change, MarkerPlace, SegmentRange},
    random::draw_uuid,
    segments::{OpenSegment, record_end},
};
use leeward_model::{Change as BlockChange, Lsn, PointId, SegmentId, UnixMillis};
use leeward_wire::{
    record::RecordKind,
    seal::{Level, Sealer},
    segment::{SegmentHeader, scan},
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
    let mut records = scan(&bytes).ok()?;
    let mut last = Lsn(range.first.0 - 1);
    for record in records.by_ref() {
        let (head, stored) = (record.header_bytes, record.stored);
        match record.header.kind {
            RecordKind::Change => drop(opener.open_change(&record.header, head, stored).ok()?),
            RecordKind::Marker => drop(opener.open_marker(&record.header, head, stored).ok()?),
        }
        last = record.header.lsn;
    }
    let whole = records.valid_bytes() == bytes.len() && bytes.len() as u64 == range.bytes;
    (whole && last == range.last).then_some(Proved { header, bytes })
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
        let fresh = self.seal_anew(&folder, &good)?;
        let changes = self.replaced(&range, &fresh);
        self.commit(changes, now)?;
        let path = folder.segment_path(segment);
        folder.blobs.delete(&path)?;
        folder.blobs.sync_dir(&folder.path("segments"))?;
        Ok(true)
    }

    /// Writes the records of `good` to a new segment, durably.
    fn seal_anew(&self, folder: &ItemFolder, good: &Proved) -> Result<OpenSegment, StoreError> {
        let keys = folder.keys.newest();
        let header = SegmentHeader {
            segment: SegmentId::from(draw_uuid(folder.random.as_ref())),
            key_version: keys.version,
            ..good.header.clone()
        };
        let path = folder.segment_path(good.header.segment);
        let opener = folder.keys.opener(&path, &good.header)?;
        let mut sealer = Sealer::new(&keys.data, header.clone());
        let mut fresh = OpenSegment::create(folder, header)?;
        let damaged = |error: &dyn std::fmt::Display| StoreError::damaged(&path, error);
        for record in scan(&good.bytes).map_err(|error| damaged(&error))? {
            let (head, stored) = (record.header_bytes, record.stored);
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
            fresh.append(&sealed)?;
        }
        fresh.seal(folder)?;
        Ok(fresh)
    }

    /// The changes that put `fresh` in the place of `old`.
    fn replaced(&self, old: &SegmentRange, fresh: &OpenSegment) -> Vec<Change> {
        let range = fresh.range(old.last).expect("it holds the same records");
        let mut changes =
            vec![Change::SegmentDropped(old.segment), Change::SegmentCommitted(range)];
        let points = &self.reader.state().points;
        // Points are listed in the order of their commits: those behind a changed one follow it.
        let from = points.iter().position(|point| point.marker.segment == old.segment);
        let moved = &points[from.unwrap_or(points.len())..];
        changes.extend(moved.iter().map(|point| Change::PointRemoved(point.id)));
        changes.extend(moved.iter().cloned().map(|mut point| {
            if point.marker.segment == old.segment {
                let entry = fresh.entry(point.position.lsn).expect("its marker is in the segment");
                let offset = u64::from(entry.offset);
                let len = (record_end(entry) - offset) as u32;
                point.marker = MarkerPlace { segment: range.segment, offset, len };
            }
            Change::PointAdded(point)
        }));
        changes
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
