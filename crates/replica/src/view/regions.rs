//! What a view knows of where its blocks lie, a region of 4 GiB at a time: read when it is asked
//! for, kept within a bound, and read again from the item's present state when a writer has merged
//! or rewritten what it pointed to.

use super::Version;
use crate::{
    ItemReader, StoreError,
    folder::ItemFolder,
    layers::{IndexEntry, RegionKey, TimelineIndex, layer_of},
    manifest::ItemState,
    outline::Lists,
    storage::StorageError,
};
use leeward_model::{BlockMask, DiskNumber, LayerId, Position, SegmentId};
use leeward_wire::{
    record::RecordKind,
    seal::Opener,
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
};
use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

/// Versions kept in memory, of the regions used last: 48 bytes each, 48 MiB. A full region of
/// 4 GiB has 65 536 when nothing of it was written twice. One region is kept whatever its size.
const CACHED_VERSIONS_MAX: usize = 1 << 20;
/// Segments whose keys are kept, about a kilobyte each.
const OPENERS_MAX: usize = 4096;
/// How often one call reads the item's state anew because a blob is gone or damaged.
const REOPENS_MAX: usize = 8;

/// One region's versions: by extent, newest first, only those that a read needs.
pub(crate) type Region = Arc<[Version]>;

/// The index as of one state of the item.
struct Opened {
    /// The place's own timeline first, then its parents.
    chain: Vec<TimelineIndex>,
    regions: BTreeSet<RegionKey>,
    /// Damaged layers, whose segments' footers are read in their place.
    without: BTreeSet<LayerId>,
}

impl Opened {
    fn build(
        folder: &ItemFolder,
        lists: &dyn Lists,
        position: Position,
        without: &BTreeSet<LayerId>,
    ) -> Result<Opened, StoreError> {
        let places = lists.small().chain(position).into_iter();
        let chain = places.map(|place| TimelineIndex::open(folder, lists, place, without));
        let chain: Vec<TimelineIndex> = chain.collect::<Result<_, _>>()?;
        let mut regions = BTreeSet::new();
        chain.iter().for_each(|index| index.regions(&mut regions));
        Ok(Opened { chain, regions, without: without.clone() })
    }

    /// As [`Self::build`], without any layer that is damaged.
    fn build_around(
        folder: &ItemFolder,
        state: &ItemState,
        position: Position,
        mut without: BTreeSet<LayerId>,
    ) -> Result<Opened, StoreError> {
        loop {
            match Opened::build(folder, state, position, &without) {
                Ok(opened) => return Ok(opened),
                Err(error) => match layer_of(&error) {
                    Some(layer) if without.insert(layer) => {
                        tracing::warn!(%error, "a layer is left out: footers are read instead");
                    }
                    Some(_) | None => return Err(error),
                },
            }
        }
    }

    fn region(&self, folder: &ItemFolder, key: RegionKey) -> Result<Vec<Version>, StoreError> {
        let mut versions = Vec::new();
        for (rank, index) in (0..).zip(&self.chain) {
            let entries = index.load(folder, key)?;
            let changes = entries.iter().filter(|found| found.entry.kind == RecordKind::Change);
            versions.extend(changes.map(|found| version(found, rank)));
        }
        versions.sort_by_key(|v: &Version| (v.extent, v.rank, Reverse(v.lsn)));
        prune(&mut versions);
        Ok(versions)
    }

    /// The newest marker on the chain.
    fn newest_marker(&self, folder: &ItemFolder) -> Result<Option<IndexEntry>, StoreError> {
        for index in &self.chain {
            let entries = index.load(folder, RegionKey::MARKERS)?;
            if let Some(newest) = entries.into_iter().max_by_key(|found| found.entry.lsn) {
                return Ok(Some(newest));
            }
        }
        Ok(None)
    }
}

#[derive(Default)]
struct Cache {
    regions: HashMap<RegionKey, Region>,
    order: VecDeque<RegionKey>,
    versions: usize,
}

/// A segment whose records can be opened.
pub(crate) struct ViewSegment {
    pub(super) path: String,
    pub(super) header: SegmentHeader,
    pub(super) opener: Opener,
}

/// See the module.
pub(super) struct Regions {
    folder: Arc<ItemFolder>,
    position: Position,
    current: RwLock<Arc<Opened>>,
    cache: Mutex<Cache>,
    segments: Mutex<HashMap<SegmentId, Arc<ViewSegment>>>,
}

impl Regions {
    pub(super) fn open(
        folder: Arc<ItemFolder>,
        lists: &dyn Lists,
        position: Position,
    ) -> Result<Regions, StoreError> {
        let opened = match Opened::build(&folder, lists, position, &BTreeSet::new()) {
            // The reader's state may be older than a merge.
            Err(error) if layer_of(&error).is_some() => {
                let fresh = ItemReader::load(folder.clone())?;
                fresh.check_kept(position)?;
                Opened::build_around(&folder, fresh.state(), position, BTreeSet::new())
            }
            built => built,
        }?;
        let current = RwLock::new(Arc::new(opened));
        let (cache, segments) = (Mutex::default(), Mutex::default());
        Ok(Regions { folder, position, current, cache, segments })
    }

    /// Regions that have versions, ascending.
    pub(super) fn keys(&self) -> Vec<RegionKey> {
        let opened = self.opened();
        let markers = |key: &&RegionKey| **key != RegionKey::MARKERS;
        opened.regions.iter().filter(markers).copied().collect()
    }

    /// Regions of one disk from one to another that have versions.
    pub(super) fn keys_between(&self, disk: DiskNumber, from: u16, to: u16) -> Vec<RegionKey> {
        let key = |region| RegionKey { disk, region };
        let opened = self.opened();
        opened.regions.range(key(from)..=key(to)).copied().collect()
    }

    /// Whether a region's versions are in memory, or there are none.
    pub(super) fn is_kept(&self, key: RegionKey) -> bool {
        lock(&self.cache).regions.contains_key(&key) || !self.opened().regions.contains(&key)
    }

    /// The versions of a region.
    pub(super) fn region(&self, key: RegionKey) -> Result<Region, StoreError> {
        if let Some(known) = lock(&self.cache).regions.get(&key) {
            return Ok(known.clone());
        }
        let mut opened = self.opened();
        if !opened.regions.contains(&key) {
            return Ok(Arc::new([]));
        }
        let mut reopens = 0;
        loop {
            match opened.region(&self.folder, key) {
                Ok(versions) => return Ok(self.keep(key, versions.into(), &opened)),
                Err(error) if layer_of(&error).is_some() && reopens < REOPENS_MAX => {
                    opened = self.reopen(&opened, &error)?;
                    reopens += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Does `work` with the versions of a region; once more when a segment of them is gone, which
    /// a writer may have rewritten.
    pub(super) fn with_region<T>(
        &self,
        key: RegionKey,
        work: impl Fn(&[Version]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let opened = self.opened();
        match work(&self.region(key)?) {
            Err(error @ StoreError::Storage(StorageError::Absent { .. })) => {
                self.reopen(&opened, &error)?;
                work(&self.region(key)?)
            }
            done => done,
        }
    }

    pub(super) fn newest_marker(&self) -> Result<Option<IndexEntry>, StoreError> {
        let mut opened = self.opened();
        for _ in 0..REOPENS_MAX {
            match opened.newest_marker(&self.folder) {
                Err(error) if layer_of(&error).is_some() => {
                    opened = self.reopen(&opened, &error)?;
                }
                found => return found,
            }
        }
        opened.newest_marker(&self.folder)
    }

    /// The segment, with its key.
    pub(super) fn segment(&self, id: SegmentId) -> Result<Arc<ViewSegment>, StoreError> {
        if let Some(known) = lock(&self.segments).get(&id) {
            return Ok(known.clone());
        }
        let path = self.folder.segment_path(id);
        let head = self.folder.blobs.read_at(&path, 0, SEGMENT_HEADER_BYTES)?;
        let header =
            SegmentHeader::decode(&head).map_err(|error| StoreError::damaged(&path, error))?;
        let owner = &self.folder.owner;
        if (header.segment, header.vault, header.item) != (id, owner.vault, owner.item) {
            return Err(StoreError::damaged(&path, "it is the segment of another place"));
        }
        let opener = self.folder.keys.opener(&path, &header)?;
        let segment = Arc::new(ViewSegment { path, header, opener });
        let mut segments = lock(&self.segments);
        if segments.len() >= OPENERS_MAX {
            segments.clear();
        }
        segments.insert(id, segment.clone());
        Ok(segment)
    }

    fn opened(&self) -> Arc<Opened> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the item's present state, because of what was found in the one that `old` is of.
    fn reopen(&self, old: &Arc<Opened>, error: &StoreError) -> Result<Arc<Opened>, StoreError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current, old) {
            return Ok(current.clone());
        }
        let fresh = ItemReader::load(self.folder.clone())?;
        fresh.check_kept(self.position)?;
        let mut without = old.without.clone();
        if let (StoreError::Damaged { .. }, Some(layer)) = (error, layer_of(error)) {
            tracing::warn!(%error, "a layer is left out: footers are read instead");
            without.insert(layer);
        }
        let opened = Opened::build_around(&self.folder, fresh.state(), self.position, without)?;
        *current = Arc::new(opened);
        *lock(&self.cache) = Cache::default();
        lock(&self.segments).clear();
        Ok(current.clone())
    }

    fn keep(&self, key: RegionKey, region: Region, of: &Arc<Opened>) -> Region {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current, of) {
            return region;
        }
        let mut cache = lock(&self.cache);
        if cache.regions.insert(key, region.clone()).is_none() {
            cache.order.push_back(key);
            cache.versions += region.len();
        }
        while cache.versions > CACHED_VERSIONS_MAX && cache.order.len() > 1 {
            let Some(oldest) = cache.order.pop_front() else { break };
            let gone = cache.regions.remove(&oldest).map_or(0, |region| region.len());
            cache.versions -= gone;
        }
        region
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn version(found: &IndexEntry, rank: u16) -> Version {
    let IndexEntry { segment, entry } = *found;
    Version {
        segment,
        lsn: entry.lsn,
        extent: entry.extent,
        offset: entry.offset,
        stored_len: entry.stored_len,
        disk: entry.disk,
        mask: entry.mask,
        rank,
        codec: entry.codec,
    }
}

/// Leaves out versions whose blocks are all in newer ones.
fn prune(versions: &mut Vec<Version>) {
    let mut extent = None;
    let mut covered = BlockMask::NONE;
    versions.retain(|version| {
        if extent != Some(version.extent) {
            extent = Some(version.extent);
            covered = BlockMask::NONE;
        }
        let needed = version.mask.0 & !covered.0 != 0;
        covered = BlockMask(covered.0 | version.mask.0);
        needed
    });
}
