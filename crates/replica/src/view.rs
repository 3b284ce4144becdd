//! The disks of a machine as they were at a place of its history, read from the store's segments.
//!
//! A block is the newest version at or before the place, along the timelines. Every payload is
//! authenticated and every extent compared with the hash that the source took of it; what does not
//! fit is refused, never served. Opening costs by what no layer of the index has yet, neither by
//! the disks' size nor by the number of points; where blocks lie is read region by region.

mod extents;
mod regions;

pub use extents::ReadCounts;
pub(crate) use regions::Region;

use crate::{
    ItemReader, PointRecord, StoreError,
    folder::ItemFolder,
    layers::RegionKey,
    outline::Lists,
    reader::{open_marker, point_marker},
    segments::{read_record, record_end},
};
use bytes::Bytes;
use extents::ExtentCache;
use leeward_model::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, BlockMask, DiskEntry, DiskNumber, EXTENT_BYTES, ExtentHash,
    ExtentNumber, Lsn, MachineSpec, Marker, Position, SegmentId,
};
use leeward_wire::{
    data::ExtentBlockHashes,
    hash::{extent_and_block_hashes, extent_hash},
    record::{Codec, RECORD_HEADER_BYTES, RecordHeader, RecordKind},
};
use regions::Regions;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

/// One version of an extent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    segment: SegmentId,
    lsn: Lsn,
    pub(crate) extent: ExtentNumber,
    offset: u32,
    stored_len: u32,
    pub(crate) disk: DiskNumber,
    mask: BlockMask,
    /// Steps up the timelines from the view's own.
    rank: u16,
    codec: Codec,
}

/// A run of blocks that all hold data, or that all read as zero without taking space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: RunKind,
}

/// What a [`Run`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// May hold anything.
    Data,
    /// Reads as zero.
    Hole,
}

/// Most extents that [`View::fetch_ahead`] keeps: 64 MiB.
pub const EXTENTS_AHEAD_MAX: usize = extents::AHEAD_MAX;

/// What an extent without any data reads as.
static ZEROS: [u8; EXTENT_BYTES as usize] = [0; EXTENT_BYTES as usize];

/// See the module. Reads may come from any thread.
///
/// The place must stay pinned while the view is in use: else its data may go, and reads are then
/// refused. Whatever a writer merges or rewrites meanwhile, the view goes on.
pub struct View {
    folder: Arc<ItemFolder>,
    position: Position,
    marker: Option<Marker>,
    regions: Regions,
    zero_hash: ExtentHash,
    zero_block_hashes: ExtentBlockHashes,
    cache: ExtentCache,
}

impl View {
    /// Opens the disks at `position`: a listed point, a pinned place, or the head of a timeline
    /// that is still written.
    ///
    /// # Errors
    /// [`StoreError::NotKept`] for any other place; [`StoreError::Damaged`].
    pub fn open(reader: &ItemReader, position: Position) -> Result<View, StoreError> {
        reader.check_kept(position)?;
        let point = reader.state().point_at(position);
        View::open_at(reader.folder.clone(), reader.state(), position, point)
    }

    /// Opens the disks at a point that is listed.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_listed(
        folder: Arc<ItemFolder>,
        lists: &dyn Lists,
        point: &PointRecord,
    ) -> Result<View, StoreError> {
        View::open_at(folder, lists, point.position, Some(point))
    }

    fn open_at(
        folder: Arc<ItemFolder>,
        lists: &dyn Lists,
        position: Position,
        point: Option<&PointRecord>,
    ) -> Result<View, StoreError> {
        let regions = Regions::open(folder.clone(), lists, position)?;
        let marker = match point {
            Some(point) => match point_marker(&folder, point) {
                // Its segment may have been rewritten since.
                Err(error) if error.is_absent() => newest_marker(&folder, &regions)?,
                opened => Some(opened?),
            },
            None => newest_marker(&folder, &regions)?,
        };
        let (zero_hash, zero_block_hashes) = extent_and_block_hashes(&folder.keys.hash, &ZEROS);
        let cache = ExtentCache::default();
        Ok(View { folder, position, marker, regions, zero_hash, zero_block_hashes, cache })
    }

    /// The place.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The disks at the place; none before the first marker.
    pub fn disks(&self) -> &[DiskEntry] {
        self.marker.as_ref().map_or(&[], |marker| &marker.disks)
    }

    /// The machine at the place; none before the first marker.
    pub fn machine(&self) -> Option<&MachineSpec> {
        self.marker.as_ref().map(|marker| &marker.machine)
    }

    /// Reads `len` bytes at byte `offset` of a disk.
    ///
    /// # Errors
    /// [`StoreError::Refused`] beyond the disk's end or for an unknown disk;
    /// [`StoreError::Damaged`] names the segment whose bytes do not fit.
    pub fn read(&self, disk: DiskNumber, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        self.check_range(disk, offset, len as u64)?;
        if let Some((extent, within)) = one_extent(offset, len) {
            let whole = len == EXTENT_BYTES as usize;
            let bytes = match whole {
                true => self.whole_extent(disk, extent)?,
                false => self.extent(disk, extent)?,
            };
            return Ok(bytes.map_or_else(|| zeros(len), |bytes| bytes.slice(within)));
        }
        let mut out = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let extent = ExtentNumber::holding(at).expect("disks end below 256 TiB");
            let start = (at - extent.offset()) as usize;
            let take = (EXTENT_BYTES as usize - start).min(len - done);
            // Whoever takes a whole extent seldom comes back: it must not push out what others do.
            let bytes = match take == EXTENT_BYTES as usize {
                true => self.whole_extent(disk, extent)?,
                false => self.extent(disk, extent)?,
            };
            if let Some(bytes) = bytes {
                out[done..done + take].copy_from_slice(&bytes[start..start + take]);
            }
            done += take;
        }
        Ok(Bytes::from(out))
    }

    /// As [`Self::read`], if that takes no decoding and no waiting; never an error.
    pub fn read_kept(&self, disk: DiskNumber, offset: u64, len: usize) -> Option<Bytes> {
        let (extent, within) = one_extent(offset, len)?;
        self.check_range(disk, offset, len as u64).ok()?;
        let kept = self.cache.get((disk, extent))?;
        Some(kept.slice(within))
    }

    /// As [`Self::read`] within one extent, for whoever reads a disk once from end to end: what was
    /// decoded is not kept. `None` when nothing is stored there, and it reads as zero.
    ///
    /// # Errors
    /// As [`Self::read`]; [`StoreError::Refused`] also for what is not within one extent.
    pub fn read_once(
        &self,
        disk: DiskNumber,
        offset: u64,
        len: usize,
    ) -> Result<Option<Bytes>, StoreError> {
        self.check_range(disk, offset, len as u64)?;
        let Some((extent, within)) = one_extent(offset, len) else {
            return Err(StoreError::refused("a read", "it is not within one extent"));
        };
        let bytes = self.composed(disk, extent)?;
        Ok(bytes.map(|bytes| bytes.slice(within)))
    }

    /// Decodes an extent before it is asked for, and keeps it for as long as the view lives; at
    /// most [`EXTENTS_AHEAD_MAX`] of them. False when there is no room, or nothing to be kept: it
    /// is decoded already, reads as zero, or lies beyond the disk.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn fetch_ahead(&self, disk: DiskNumber, extent: ExtentNumber) -> Result<bool, StoreError> {
        let exists = self.check_range(disk, extent.offset(), 1).is_ok();
        if !exists || !self.cache.is_wanted_ahead((disk, extent)) {
            return Ok(false);
        }
        let Some(bytes) = self.composed(disk, extent)? else { return Ok(false) };
        self.cache.keep_ahead((disk, extent), bytes);
        Ok(true)
    }

    /// Whether a read takes one extent, of a store nearby, and it is known where that lies: tens of
    /// microseconds, unless a disk has to be waited for.
    pub(crate) fn is_quick(&self, disk: DiskNumber, offset: u64, len: usize) -> bool {
        one_extent(offset, len).is_some_and(|(extent, _)| {
            self.folder.blobs.is_near() && self.regions.is_kept(RegionKey::of(disk, extent))
        })
    }

    /// How many extents were found decoded, and how many had to be decoded.
    pub fn reads(&self) -> ReadCounts {
        self.cache.counts()
    }

    /// Tells data from holes in `len` bytes from byte `offset` of a disk, in order and without
    /// gaps, by whole blocks except at the ends. Neighbours differ in kind.
    ///
    /// # Errors
    /// As [`Self::read`], without the damage.
    pub fn status(&self, disk: DiskNumber, offset: u64, len: u64) -> Result<Vec<Run>, StoreError> {
        self.check_range(disk, offset, len)?;
        let end = offset + len;
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |len: u64, kind: RunKind| match runs.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.kind == kind => last.len += len,
            _ => runs.push(Run { len, kind }),
        };
        let mut at = offset;
        let first = ExtentNumber(u32::try_from(offset / EXTENT_BYTES).unwrap_or(u32::MAX));
        let last = u32::try_from(end.saturating_sub(1) / EXTENT_BYTES).unwrap_or(u32::MAX);
        let (from, to) =
            (RegionKey::of(disk, first), RegionKey::of(disk, ExtentNumber(last).max(first)));
        for key in self.regions.keys_between(disk, from.region, to.region) {
            let region = self.regions.region(key)?;
            let begin = region.partition_point(|version| version.extent < first);
            for versions in region[begin..].chunk_by(same_extent) {
                let extent = versions[0].extent;
                if extent.offset() >= end {
                    break;
                }
                let data = data_blocks(versions);
                for block in 0..BLOCKS_PER_EXTENT {
                    let from = extent.offset() + u64::from(block) * BLOCK_BYTES;
                    let (from, until) = (from.clamp(at, end), (from + BLOCK_BYTES).clamp(at, end));
                    add(from - at, RunKind::Hole);
                    let kind = if data.has(block) { RunKind::Data } else { RunKind::Hole };
                    add(until - from, kind);
                    at = until;
                }
            }
        }
        add(end - at, RunKind::Hole);
        Ok(runs)
    }

    /// Hash of an extent as its newest record has it; of zeros when there is none. The record's
    /// payload is not read, so this is for comparing, not for proving.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn leaf_hash(
        &self,
        disk: DiskNumber,
        extent: ExtentNumber,
    ) -> Result<ExtentHash, StoreError> {
        self.with_versions(disk, extent, |versions| match versions.first() {
            Some(newest) => self.newest_hash(newest),
            None => Ok(self.zero_hash),
        })
    }

    /// As [`Self::leaf_hash`], taken anew of what is stored: it is read and proved now, whatever
    /// was read before.
    ///
    /// # Errors
    /// As [`Self::block_hashes`].
    pub fn reread_hash(
        &self,
        disk: DiskNumber,
        extent: ExtentNumber,
    ) -> Result<ExtentHash, StoreError> {
        self.with_versions(disk, extent, |versions| match versions {
            [] => Ok(self.zero_hash),
            versions => Ok(extent_hash(&self.folder.keys.hash, &self.compose(versions)?)),
        })
    }

    /// Hashes of an extent's 16 blocks, as they read here; a block without data has the hash of
    /// 4096 zeros. Other than [`Self::leaf_hash`] it reads and proves the payloads, except where
    /// nothing is stored, which costs nothing.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn block_hashes(
        &self,
        disk: DiskNumber,
        extent: ExtentNumber,
    ) -> Result<ExtentBlockHashes, StoreError> {
        let Some(bytes) = self.extent(disk, extent)? else { return Ok(self.zero_block_hashes) };
        Ok(extent_and_block_hashes(&self.folder.keys.hash, &bytes).1)
    }

    /// The hash of every extent that is stored, as [`Self::leaf_hash`] says it, in order.
    pub fn leaves(
        &self,
    ) -> impl Iterator<Item = Result<(DiskNumber, ExtentNumber, ExtentHash), StoreError>> {
        self.regions.keys().into_iter().flat_map(|key| match self.leaves_of(key) {
            Ok(leaves) => leaves.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    fn leaves_of(
        &self,
        key: RegionKey,
    ) -> Result<Vec<(DiskNumber, ExtentNumber, ExtentHash)>, StoreError> {
        self.regions.with_region(key, |region| {
            let newest = region.chunk_by(same_extent).map(|versions| &versions[0]);
            newest.map(|v| Ok((v.disk, v.extent, self.newest_hash(v)?))).collect()
        })
    }

    /// Extents of a disk whose content differs from that in `other`, another view of the same item,
    /// ascending. Payloads are not read: what both took from one record is the same.
    ///
    /// # Errors
    /// As [`Self::leaf_hash`].
    pub fn differing_extents(
        &self,
        other: &View,
        disk: DiskNumber,
    ) -> Result<Vec<ExtentNumber>, StoreError> {
        let keys = |view: &View| view.regions.keys_between(disk, 0, u16::MAX);
        let mut regions = keys(self);
        regions.extend(keys(other));
        regions.sort_unstable();
        regions.dedup();
        let newest = |view: &View, key| -> Result<BTreeMap<ExtentNumber, (SegmentId, u64)>, _> {
            let region = view.regions.region(key)?;
            let newest = region.chunk_by(same_extent).map(|versions| &versions[0]);
            Ok::<_, StoreError>(newest.map(|v| (v.extent, view.record_key(v))).collect())
        };
        let mut differing = Vec::new();
        for key in regions {
            let (ours, theirs) = (newest(self, key)?, newest(other, key)?);
            let extents: BTreeSet<ExtentNumber> =
                ours.keys().chain(theirs.keys()).copied().collect();
            for extent in extents {
                if ours.get(&extent) != theirs.get(&extent)
                    && self.leaf_hash(disk, extent)? != other.leaf_hash(disk, extent)?
                {
                    differing.push(extent);
                }
            }
        }
        Ok(differing)
    }

    /// Hash over the disks' sizes and all extents that are not zero, in order, hexadecimal. The
    /// same for the same content, however it is stored, in every store of the item.
    ///
    /// # Errors
    /// As [`Self::leaf_hash`].
    pub fn content_hash(&self) -> Result<String, StoreError> {
        let mut hasher = blake3::Hasher::new();
        for disk in self.disks() {
            hasher.update(&disk.number.0.to_le_bytes()).update(&disk.size.to_le_bytes());
        }
        for leaf in self.leaves() {
            let (disk, extent, hash) = leaf?;
            if hash != self.zero_hash {
                hasher.update(&disk.0.to_le_bytes());
                hasher.update(&extent.0.to_le_bytes()).update(&hash.0);
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Reads and proves every extent that is stored; returns how many there are.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for the first that does not fit.
    pub fn verify(&self) -> Result<u64, StoreError> {
        let mut count = 0;
        for key in self.regions.keys() {
            count += self.regions.with_region(key, |region| {
                let mut extents = 0;
                for versions in region.chunk_by(same_extent) {
                    self.compose(versions)?;
                    extents += 1;
                }
                Ok(extents)
            })?;
        }
        Ok(count)
    }

    fn check_range(&self, disk: DiskNumber, offset: u64, len: u64) -> Result<(), StoreError> {
        let entry = self.disks().iter().find(|entry| entry.number == disk);
        let size = entry.map(|entry| entry.size);
        let fits = |size| offset.checked_add(len).is_some_and(|end| end <= size);
        if size.is_some_and(fits) {
            return Ok(());
        }
        let why = match size {
            Some(size) => format!("{len} bytes at {offset} of disk {disk} are beyond {size}"),
            None => format!("there is no disk {disk}"),
        };
        Err(StoreError::refused("a read", why))
    }

    /// Does `work` with the versions of an extent, newest first; none when it reads as zero.
    fn with_versions<T>(
        &self,
        disk: DiskNumber,
        extent: ExtentNumber,
        work: impl Fn(&[Version]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.regions.with_region(RegionKey::of(disk, extent), |region| {
            let begin = region.partition_point(|version| version.extent < extent);
            let end = begin + region[begin..].partition_point(|version| version.extent == extent);
            work(&region[begin..end])
        })
    }

    fn newest_hash(&self, newest: &Version) -> Result<ExtentHash, StoreError> {
        let path = &self.folder.segment_path(newest.segment);
        let offset = newest.offset.into();
        let bytes = self.folder.blobs.read_at(path, offset, RECORD_HEADER_BYTES)?;
        let header = bytes.first_chunk().map(RecordHeader::decode);
        match header {
            Some(Ok(header)) if is_version(&header, newest) => Ok(header.hash),
            _ => Err(StoreError::damaged(path, format!("the record at {offset} is another"))),
        }
    }

    /// Segments that an extent is put together from, that of its newest version first.
    pub(crate) fn segments_of(
        &self,
        disk: DiskNumber,
        extent: ExtentNumber,
    ) -> Result<Vec<SegmentId>, StoreError> {
        self.with_versions(disk, extent, |versions| {
            Ok(versions.iter().map(|version| version.segment).collect())
        })
    }

    /// The extent's bytes; `None` when it reads as zero.
    fn extent(&self, disk: DiskNumber, extent: ExtentNumber) -> Result<Option<Bytes>, StoreError> {
        if let Some(bytes) = self.cache.get((disk, extent)) {
            return Ok(Some(bytes));
        }
        let Some(bytes) = self.composed(disk, extent)? else { return Ok(None) };
        self.cache.keep((disk, extent), bytes.clone());
        Ok(Some(bytes))
    }

    /// As [`Self::extent`], without keeping what had to be decoded.
    fn whole_extent(
        &self,
        disk: DiskNumber,
        extent: ExtentNumber,
    ) -> Result<Option<Bytes>, StoreError> {
        if let Some(bytes) = self.cache.get((disk, extent)) {
            return Ok(Some(bytes));
        }
        let composed = self.composed(disk, extent)?;
        if composed.is_some() {
            self.cache.count_decoded();
        }
        Ok(composed)
    }

    /// As [`Self::extent`], past the cache.
    fn composed(
        &self,
        disk: DiskNumber,
        extent: ExtentNumber,
    ) -> Result<Option<Bytes>, StoreError> {
        self.with_versions(disk, extent, |versions| match versions {
            [] => Ok(None),
            versions => self.compose(versions).map(Some),
        })
    }

    /// Regions with stored extents, ascending.
    pub(crate) fn region_keys(&self) -> Vec<RegionKey> {
        self.regions.keys()
    }

    /// A region's versions: see [`same_extent`].
    pub(crate) fn region(&self, key: RegionKey) -> Result<Region, StoreError> {
        self.regions.region(key)
    }

    /// Where a version's record lies: its segment, and its offset there.
    pub(crate) fn record_key(&self, version: &Version) -> (SegmentId, u64) {
        (version.segment, version.offset.into())
    }

    /// Bytes of a version's record.
    pub(crate) fn record_len(&self, version: &Version) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(version.stored_len)
    }

    /// Puts an extent together from its versions, newest first, and proves the result.
    pub(crate) fn compose(&self, versions: &[Version]) -> Result<Bytes, StoreError> {
        let newest = &versions[0];
        let (hash, blocks) = self.open_version(newest)?;
        let composed = if newest.mask == BlockMask::ALL {
            blocks
        } else {
            let mut out = vec![0; EXTENT_BYTES as usize];
            let mut covered = BlockMask::NONE;
            lay(&mut out, &mut covered, newest.mask, &blocks);
            for version in &versions[1..] {
                let (_, blocks) = self.open_version(version)?;
                lay(&mut out, &mut covered, version.mask, &blocks);
            }
            Bytes::from(out)
        };
        let zero = newest.mask == BlockMask::ALL && newest.codec == Codec::Zero;
        let fits = match zero {
            // What a whole record of zeros opens to needs no hashing.
            true => hash == self.zero_hash,
            false => hash == extent_hash(&self.folder.keys.hash, &composed),
        };
        if fits {
            return Ok(composed);
        }
        let place = format!("extent {} of disk {}", newest.extent, newest.disk);
        let path = self.folder.segment_path(newest.segment);
        Err(StoreError::damaged(&path, format!("{place} is not what the source read")))
    }

    /// Reads and opens a version's record: the hash of the extent since it, and its blocks.
    fn open_version(&self, version: &Version) -> Result<(ExtentHash, Bytes), StoreError> {
        let segment = self.regions.segment(version.segment)?;
        let len = RECORD_HEADER_BYTES + version.stored_len as usize;
        let record = read_record(&self.folder, &segment.path, version.offset.into(), len)?;
        let damaged = |why: String| StoreError::damaged(&segment.path, why);
        if !is_version(&record.header, version) || record.header.codec != version.codec {
            return Err(damaged(format!("the record at {} is another", version.offset)));
        }
        let opened =
            segment.opener.open_change(&record.header, &record.header_bytes, &record.stored);
        let blocks = opened.map_err(|error| damaged(error.to_string()))?;
        Ok((record.header.hash, blocks))
    }
}

/// Lays a version's blocks where no newer version has any.
fn lay(out: &mut [u8], covered: &mut BlockMask, mask: BlockMask, blocks: &[u8]) {
    for (block, bytes) in mask.iter().zip(blocks.chunks(BLOCK_BYTES as usize)) {
        if !covered.has(block) {
            let at = block as usize * BLOCK_BYTES as usize;
            out[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    *covered = BlockMask(covered.0 | mask.0);
}

/// The extent that a read takes, and the read's place in it, when it takes only one.
fn one_extent(offset: u64, len: usize) -> Option<(ExtentNumber, Range<usize>)> {
    let extent = ExtentNumber::holding(offset)?;
    let start = usize::try_from(offset - extent.offset()).ok()?;
    let end = start.checked_add(len)?;
    (len > 0 && end <= EXTENT_BYTES as usize).then_some((extent, start..end))
}

fn zeros(len: usize) -> Bytes {
    Bytes::from_static(&ZEROS[..len])
}

/// Whether two neighbours in a region are versions of one extent.
pub(crate) fn same_extent(a: &Version, b: &Version) -> bool {
    a.extent == b.extent
}

/// Opens the newest marker before the place; none when there is none.
fn newest_marker(folder: &ItemFolder, regions: &Regions) -> Result<Option<Marker>, StoreError> {
    let Some(found) = regions.newest_marker()? else { return Ok(None) };
    let segment = regions.segment(found.segment)?;
    let len = record_end(&found.entry) - u64::from(found.entry.offset);
    open_marker(folder, &segment.header, found.entry.offset.into(), len as usize).map(Some)
}

fn is_version(header: &RecordHeader, version: &Version) -> bool {
    header.kind == RecordKind::Change
        && (header.disk, header.extent, header.mask, header.lsn)
            == (version.disk, version.extent, version.mask, version.lsn)
}

/// Blocks of an extent whose newest version is not zeros.
fn data_blocks(versions: &[Version]) -> BlockMask {
    let (mut covered, mut data) = (0_u16, 0_u16);
    for version in versions {
        if version.codec != Codec::Zero {
            data |= version.mask.0 & !covered;
        }
        covered |= version.mask.0;
    }
    BlockMask(data)
}
