//! What it takes to open one point of an item, without its lists: the small things whole, points
//! and segments looked up in pages that are read when they are asked for. So the number of points
//! does not show.
//!
//! Made of a hint, of the outline that was put beside the checkpoint before it, and of the few
//! manifests after it. All of that says nothing that the manifests do not say: whoever finds it
//! missing or damaged reads those instead. Writers never use it.

mod format;

use crate::{
    StoreError,
    folder::ItemFolder,
    hint::{self, Hint},
    manifest::{
        CHECKPOINT_EVERY, Change, ItemState, Manifest, ManifestKind, MarkerPlace, PointRecord,
        SegmentRange, codec::HEADER_BYTES,
    },
    manifest_log::read_manifest,
    storage::StorageError,
};
use format::{Head, RangeKey};
use leeward_model::{Lsn, PointId, SegmentId, TimelineId};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Most manifests after the hint that are read one by one. The writer replaces the hint with every
/// commit, so there are more only where hints were lost.
const MANIFESTS_MAX: u64 = 32;
/// Outlines that stay: a reader may be about to read the one before the newest.
const KEPT: u64 = 2;

/// The lists that opening a view asks: of a whole state, or of an outline.
pub(crate) trait Lists {
    /// Timelines, their heads, layers; its points and segments may be few of all.
    fn small(&self) -> &ItemState;

    /// The committed ranges of a timeline that begin at `first` to `last`, ascending.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    fn ranges_between(
        &self,
        timeline: TimelineId,
        first: Lsn,
        last: Lsn,
    ) -> Result<Vec<SegmentRange>, StoreError>;
}

impl Lists for ItemState {
    fn small(&self) -> &ItemState {
        self
    }

    fn ranges_between(
        &self,
        timeline: TimelineId,
        first: Lsn,
        last: Lsn,
    ) -> Result<Vec<SegmentRange>, StoreError> {
        Ok(self.ranges(timeline, first, last).copied().collect())
    }
}

/// See the module.
pub(crate) struct Outline {
    folder: Arc<ItemFolder>,
    /// Of the checkpoint; none before the first.
    head: Option<Head>,
    /// Everything but what only the pages have.
    small: ItemState,
    /// Points of the pages that were removed since.
    removed: BTreeSet<PointId>,
    /// Markers of points of the pages that were moved since.
    moved: BTreeMap<PointId, MarkerPlace>,
    /// Segments of the pages that were dropped since.
    dropped: BTreeSet<SegmentId>,
}

/// Puts the outline of a checkpoint that was just committed. A failure costs time only, and the
/// commit is done: so it is logged here.
pub(crate) fn put(
    folder: &ItemFolder,
    header: &[u8; HEADER_BYTES],
    number: u64,
    state: &ItemState,
) {
    let bytes = format::encode(folder, header, state);
    let put = folder.blobs.put_new(&format::path(folder, number), &bytes);
    let oldest = number.saturating_sub((KEPT - 1) * CHECKPOINT_EVERY);
    let tidied: Result<(), _> = put.and_then(|_| {
        let names = folder.blobs.list(&folder.path("manifest"))?;
        let mut old = names.iter().filter(|name| {
            name.strip_prefix(format::PREFIX)
                .is_some_and(|number| number.parse::<u64>().is_ok_and(|number| number < oldest))
        });
        old.try_for_each(|name| folder.blobs.delete(&folder.path(&format!("manifest/{name}"))))
    });
    if let Err(error) = tidied {
        tracing::warn!(%error, "the outline of a checkpoint was not put");
    }
}

/// Whether there is an outline of a checkpoint.
///
/// # Errors
/// [`StoreError::Storage`].
pub(crate) fn is_put(folder: &ItemFolder, number: u64) -> Result<bool, StoreError> {
    Ok(folder.blobs.len(&format::path(folder, number))?.is_some())
}

/// Puts the outline of the newest checkpoint where it is missing or damaged, and deletes all
/// others.
///
/// # Errors
/// [`StoreError::Storage`].
pub(crate) fn heal(
    folder: &ItemFolder,
    header: &[u8; HEADER_BYTES],
    number: u64,
    state: &ItemState,
) -> Result<(), StoreError> {
    let mine = format::path(folder, number);
    for name in folder.blobs.list(&folder.path("manifest"))? {
        let path = folder.path(&format!("manifest/{name}"));
        if name.starts_with(format::PREFIX) && path != mine {
            folder.blobs.delete(&path)?;
        }
    }
    if is_put(folder, number)? && audit(folder, header, number, state)?.is_err() {
        folder.blobs.delete(&mine)?;
    }
    if !is_put(folder, number)? {
        put(folder, header, number, state);
    }
    Ok(())
}

/// Says whether the outline of a checkpoint, if there is one, is what its state makes: good or not.
///
/// # Errors
/// [`StoreError::Storage`].
pub(crate) fn audit(
    folder: &ItemFolder,
    header: &[u8; HEADER_BYTES],
    number: u64,
    state: &ItemState,
) -> Result<Result<(), StoreError>, StoreError> {
    let path = format::path(folder, number);
    let expected = format::encode(folder, header, state);
    match folder.blobs.read_whole(&path, expected.len() + 1) {
        Ok(bytes) if bytes != expected => {
            let why = "it is not what its checkpoint makes; it is an index, and no point needs it";
            Ok(Err(StoreError::damaged(&path, why)))
        }
        Ok(_) | Err(StorageError::Absent { .. }) => Ok(Ok(())),
        Err(error) => Err(error.into()),
    }
}

impl Outline {
    /// The newest state, as far as hint and outline say it; `None` when they do not.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`]: what this reads may be read otherwise.
    pub(crate) fn open(folder: &Arc<ItemFolder>) -> Result<Option<Outline>, StoreError> {
        let Some(Hint { base, header, link, changes }) = hint::read(folder)? else {
            return Ok(None);
        };
        let head = (base > 0).then(|| format::read_head(folder, base)).transpose()?;
        let mut outline = Outline {
            folder: folder.clone(),
            head,
            small: ItemState::default(),
            removed: BTreeSet::new(),
            moved: BTreeMap::new(),
            dropped: BTreeSet::new(),
        };
        let small =
            outline.head.as_mut().map_or_else(Vec::new, |head| std::mem::take(&mut head.small));
        let fits = small.iter().chain(&changes).try_for_each(|change| outline.take(change));
        fits.map_err(|why| StoreError::damaged(&hint::path(folder), why))?;
        let newest = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
        Ok(outline.catch_up(newest, link)?.then_some(outline))
    }

    /// Takes the manifests after the hint; false when there are too many, or a checkpoint.
    fn catch_up(&mut self, newest: u64, mut link: [u8; 32]) -> Result<bool, StoreError> {
        for number in newest + 1..=newest + MANIFESTS_MAX {
            let Some((manifest, tag)) = read_manifest(&self.folder, number)? else {
                return Ok(true);
            };
            let Manifest { kind, predecessor, changes, .. } = manifest;
            if kind != ManifestKind::Delta || predecessor != link {
                return Ok(false);
            }
            let path = self.folder.path(&format!("manifest/{number:016}"));
            let fits = changes.iter().try_for_each(|change| self.take(change));
            fits.map_err(|why| StoreError::damaged(&path, why))?;
            link = tag;
        }
        Ok(false)
    }

    /// Takes one change. What concerns the pages is noted beside them, unchecked: their writer
    /// checked it, and the MAC says that it was he.
    fn take(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::PointRemoved(id) if self.small.point(*id).is_none() => {
                self.removed.insert(*id);
                Ok(())
            }
            Change::MarkerMoved(id, marker) if self.small.point(*id).is_none() => {
                self.moved.insert(*id, *marker);
                Ok(())
            }
            Change::SegmentDropped(id) if !self.small.segments.contains_key(id) => {
                self.dropped.insert(*id);
                Ok(())
            }
            Change::SegmentDropped(id) => {
                // The pages may have it too, when it only grew since.
                self.dropped.insert(*id);
                self.small.apply(change)
            }
            other => self.small.apply(other),
        }
    }

    /// A point of the pages as it is now.
    fn present(&self, mut point: PointRecord) -> Option<PointRecord> {
        if let Some(marker) = self.moved.get(&point.id) {
            point.marker = *marker;
        }
        (!self.removed.contains(&point.id)).then_some(point)
    }

    /// The point that was committed last.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`], as of the other lookups.
    pub(crate) fn newest_point(&self) -> Result<Option<PointRecord>, StoreError> {
        if let Some(newest) = self.small.points.last() {
            return Ok(Some(newest.clone()));
        }
        let Some(head) = &self.head else { return Ok(None) };
        for page in head.points.iter().rev() {
            let points = head.points_of(&self.folder, page)?;
            if let Some(newest) = points.into_iter().rev().find_map(|point| self.present(point)) {
                return Ok(Some(newest));
            }
        }
        Ok(None)
    }

    /// The point of this id.
    pub(crate) fn point(&self, id: PointId) -> Result<Option<PointRecord>, StoreError> {
        if let Some(point) = self.small.point(id) {
            return Ok(Some(point.clone()));
        }
        let Some(head) = &self.head else { return Ok(None) };
        let Some(number) = head.number_of(&self.folder, id)? else { return Ok(None) };
        let after = head.points.partition_point(|page| page.first <= number);
        let Some(page) = after.checked_sub(1).map(|at| &head.points[at]) else { return Ok(None) };
        let points = head.points_of(&self.folder, page)?;
        let found = points.into_iter().nth((number - page.first) as usize);
        Ok(found.filter(|point| point.id == id).and_then(|point| self.present(point)))
    }

    /// Number of points that are listed.
    pub(crate) fn points_len(&self) -> u64 {
        let pages = self.head.as_ref().map_or(0, Head::points_len);
        (pages + self.small.points.len() as u64).saturating_sub(self.removed.len() as u64)
    }
}

impl Lists for Outline {
    fn small(&self) -> &ItemState {
        &self.small
    }

    fn ranges_between(
        &self,
        timeline: TimelineId,
        first: Lsn,
        last: Lsn,
    ) -> Result<Vec<SegmentRange>, StoreError> {
        let last = last.max(first);
        let mut found: BTreeMap<Lsn, SegmentRange> = BTreeMap::new();
        if let Some(head) = &self.head {
            let (low, high): (RangeKey, RangeKey) = ((timeline, first), (timeline, last));
            let begin = head.ranges.partition_point(|page| page.first <= low).saturating_sub(1);
            let pages = head.ranges[begin..].iter().take_while(|page| page.first <= high);
            for page in pages {
                let ranges = head.ranges_of(&self.folder, page)?.into_iter();
                let mine = ranges.filter(|range| {
                    (low..=high).contains(&(range.timeline, range.first))
                        && !self.dropped.contains(&range.segment)
                });
                found.extend(mine.map(|range| (range.first, range)));
            }
        }
        let newer = self.small.ranges(timeline, first, last);
        found.extend(newer.map(|range| (range.first, *range)));
        Ok(found.into_values().collect())
    }
}
