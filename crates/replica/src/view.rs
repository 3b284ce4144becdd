//! The disks of a machine as they were at a place of its history, read from the store's segments.
//!
//! A block is the newest version at or before the place, along the timelines. Every payload is
//! authenticated and every extent compared with the hash that the source took of it; what does not
//! fit is refused, never served. Opening costs by the records stored, not by the disks' size.

use crate::{
    ItemReader, StoreError,
    folder::ItemFolder,
    reader::open_marker,
    segments::{read_index, read_record, record_end},
};
use leeward_model::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, BlockMask, DiskEntry, DiskNumber, EXTENT_BYTES, ExtentHash,
    ExtentNumber, Lsn, MachineSpec, Marker, Position, SegmentId,
};
use leeward_wire::{
    data::ExtentBlockHashes,
    hash::{BLOCK_HASH_BYTES, block_hash, extent_hash, zero_extent_hash},
    record::{Codec, RECORD_HEADER_BYTES, RecordHeader, RecordKind},
    seal::Opener,
    segment::{FooterEntry, SegmentHeader},
};
use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

/// Extents kept decoded: 16 MiB. Sequential reads of less than an extent then open it once.
const CACHED_EXTENTS_MAX: usize = 256;

/// One version of an extent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    pub(crate) disk: DiskNumber,
    pub(crate) extent: ExtentNumber,
    mask: BlockMask,
    codec: Codec,
    /// Steps up the timelines from the view's own.
    rank: u16,
    /// Index into the view's segments.
    segment: u32,
    lsn: Lsn,
    offset: u32,
    stored_len: u32,
}

struct ViewSegment {
    id: SegmentId,
    path: String,
    opener: Opener,
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

type Extent = Arc<[u8]>;

#[derive(Default)]
struct Cache {
    extents: HashMap<(DiskNumber, ExtentNumber), Extent>,
    order: VecDeque<(DiskNumber, ExtentNumber)>,
}

/// See the module. Reads may come from any thread.
///
/// The place must stay pinned while the view is in use: else its segments may be deleted, and
/// reads are then refused.
pub struct View {
    folder: Arc<ItemFolder>,
    position: Position,
    marker: Option<Marker>,
    segments: Vec<ViewSegment>,
    /// Sorted by disk, extent, then newest first; only what a read needs.
    index: Vec<Version>,
    zero_hash: ExtentHash,
    zero_block_hash: [u8; BLOCK_HASH_BYTES],
    cache: Mutex<Cache>,
}

impl View {
    /// Opens the disks at `position`: a listed point, a pinned place, or the head of a timeline
    /// that is still written.
    ///
    /// # Errors
    /// [`StoreError::NotKept`] for any other place; [`StoreError::Damaged`].
    pub fn open(reader: &ItemReader, position: Position) -> Result<View, StoreError> {
        reader.check_kept(position)?;
        let folder = reader.folder.clone();
        let state = reader.state();
        let (mut segments, mut index) = (Vec::new(), Vec::new());
        let mut newest: Option<(u16, Lsn, SegmentHeader, FooterEntry)> = None;
        for (rank, place) in (0..).zip(state.chain(position)) {
            let mine = state
                .segments
                .values()
                .filter(|range| range.timeline == place.timeline && range.first <= place.lsn);
            for range in mine {
                let found = read_index(&folder, range)?;
                let segment = u32::try_from(segments.len()).expect("segments can be counted");
                for entry in found.entries.iter().filter(|entry| entry.lsn <= place.lsn) {
                    match entry.kind {
                        RecordKind::Change => index.push(version(entry, rank, segment)),
                        RecordKind::Marker => {
                            let older = |(known, lsn, ..): &(u16, Lsn, _, _)| {
                                *known > rank || (*known == rank && *lsn < entry.lsn)
                            };
                            if newest.as_ref().is_none_or(older) {
                                newest = Some((rank, entry.lsn, found.header.clone(), *entry));
                            }
                        }
                    }
                }
                let path = folder.segment_path(range.segment);
                let opener = folder.keys.opener(&path, &found.header)?;
                segments.push(ViewSegment { id: range.segment, path, opener });
            }
        }
        let open = |(_, _, header, entry): (u16, Lsn, SegmentHeader, FooterEntry)| {
            let len = record_end(&entry) - u64::from(entry.offset);
            open_marker(&folder, &header, entry.offset.into(), len as usize)
        };
        let marker = newest.map(open).transpose()?;
        index.sort_unstable_by_key(|v| (v.disk, v.extent, v.rank, Reverse(v.lsn)));
        prune(&mut index);
        let zero_hash = zero_extent_hash(&folder.keys.hash);
        let zero_block_hash = block_hash(&folder.keys.hash, &[0; BLOCK_BYTES as usize]);
        let cache = Mutex::default();
        Ok(View { folder, position, marker, segments, index, zero_hash, zero_block_hash, cache })
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
    pub fn read(&self, disk: DiskNumber, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        self.check_range(disk, offset, len as u64)?;
        let mut out = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let extent = ExtentNumber::holding(at).expect("disks end below 256 TiB");
            let start = (at - extent.offset()) as usize;
            let take = (EXTENT_BYTES as usize - start).min(len - done);
            if let Some(bytes) = self.extent(disk, extent)? {
                out[done..done + take].copy_from_slice(&bytes[start..start + take]);
            }
            done += take;
        }
        Ok(out)
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
        let begin = self.index.partition_point(|v| (v.disk, v.extent) < (disk, first));
        for versions in
            self.index[begin..].chunk_by(|a, b| (a.disk, a.extent) == (b.disk, b.extent))
        {
            let extent = versions[0].extent;
            if versions[0].disk != disk || extent.offset() >= end {
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
        match self.versions(disk, extent).first() {
            Some(newest) => self.newest_hash(newest),
            None => Ok(self.zero_hash),
        }
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
        let mut hashes = [self.zero_block_hash; BLOCKS_PER_EXTENT as usize];
        let data = data_blocks(self.versions(disk, extent));
        let Some(bytes) = self.extent(disk, extent)? else { return Ok(hashes) };
        for block in data.iter() {
            let at = block as usize * BLOCK_BYTES as usize;
            let bytes = &bytes[at..at + BLOCK_BYTES as usize];
            hashes[block as usize] = block_hash(&self.folder.keys.hash, bytes);
        }
        Ok(hashes)
    }

    /// The hash of every extent that is stored, as [`Self::leaf_hash`] says it, in order.
    pub fn leaves(
        &self,
    ) -> impl Iterator<Item = Result<(DiskNumber, ExtentNumber, ExtentHash), StoreError>> {
        self.extents().map(|versions| {
            let newest = &versions[0];
            Ok((newest.disk, newest.extent, self.newest_hash(newest)?))
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
        let of = |view: &View| -> BTreeSet<ExtentNumber> {
            let begin = view.index.partition_point(|version| version.disk < disk);
            let end = view.index.partition_point(|version| version.disk <= disk);
            view.index[begin..end].iter().map(|version| version.extent).collect()
        };
        let newest = |view: &View, extent| {
            view.versions(disk, extent).first().map(|version| view.record_key(version))
        };
        let mut differing = Vec::new();
        for extent in of(self).union(&of(other)).copied() {
            if newest(self, extent) != newest(other, extent)
                && self.leaf_hash(disk, extent)? != other.leaf_hash(disk, extent)?
            {
                differing.push(extent);
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
        for versions in self.extents() {
            let newest = &versions[0];
            let hash = self.newest_hash(newest)?;
            if hash != self.zero_hash {
                hasher.update(&newest.disk.0.to_le_bytes());
                hasher.update(&newest.extent.0.to_le_bytes()).update(&hash.0);
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
        for versions in self.extents() {
            self.compose(versions)?;
            count += 1;
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

    fn versions(&self, disk: DiskNumber, extent: ExtentNumber) -> &[Version] {
        let key = |version: &Version| (version.disk, version.extent);
        let begin = self.index.partition_point(|version| key(version) < (disk, extent));
        let rest = &self.index[begin..];
        &rest[..rest.partition_point(|version| key(version) == (disk, extent))]
    }

    fn newest_hash(&self, newest: &Version) -> Result<ExtentHash, StoreError> {
        let path = &self.segments[newest.segment as usize].path;
        let offset = newest.offset.into();
        let bytes = self.folder.blobs.read_at(path, offset, RECORD_HEADER_BYTES)?;
        let header = bytes.first_chunk().map(RecordHeader::decode);
        match header {
            Some(Ok(header)) if is_version(&header, newest) => Ok(header.hash),
            _ => Err(StoreError::damaged(path, format!("the record at {offset} is another"))),
        }
    }

    /// The extent's bytes; `None` when it reads as zero.
    fn extent(&self, disk: DiskNumber, extent: ExtentNumber) -> Result<Option<Extent>, StoreError> {
        let versions = self.versions(disk, extent);
        if versions.is_empty() {
            return Ok(None);
        }
        let locked = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = locked().extents.get(&(disk, extent)) {
            return Ok(Some(bytes.clone()));
        }
        let bytes: Extent = self.compose(versions)?.into();
        let mut cache = locked();
        if cache.extents.insert((disk, extent), bytes.clone()).is_none() {
            cache.order.push_back((disk, extent));
        }
        if cache.order.len() > CACHED_EXTENTS_MAX
            && let Some(oldest) = cache.order.pop_front()
        {
            cache.extents.remove(&oldest);
        }
        Ok(Some(bytes))
    }

    /// The versions of each stored extent, newest first, in the order of disks and extents.
    pub(crate) fn extents(&self) -> impl Iterator<Item = &[Version]> {
        self.index.chunk_by(|a, b| (a.disk, a.extent) == (b.disk, b.extent))
    }

    /// Where a version's record lies: its segment, and its offset there.
    pub(crate) fn record_key(&self, version: &Version) -> (SegmentId, u64) {
        (self.segments[version.segment as usize].id, version.offset.into())
    }

    /// Bytes of a version's record.
    pub(crate) fn record_len(&self, version: &Version) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(version.stored_len)
    }

    /// Puts an extent together from its versions, newest first, and proves the result.
    pub(crate) fn compose(&self, versions: &[Version]) -> Result<Vec<u8>, StoreError> {
        let mut out = vec![0; EXTENT_BYTES as usize];
        let mut covered = BlockMask::NONE;
        let mut expected = None;
        for version in versions {
            let segment = &self.segments[version.segment as usize];
            let len = RECORD_HEADER_BYTES + version.stored_len as usize;
            let record = read_record(&self.folder, &segment.path, version.offset.into(), len)?;
            let damaged = |why: String| StoreError::damaged(&segment.path, why);
            if !is_version(&record.header, version) {
                return Err(damaged(format!("the record at {} is another", version.offset)));
            }
            let opened =
                segment.opener.open_change(&record.header, &record.header_bytes, &record.stored);
            let blocks = opened.map_err(|error| damaged(error.to_string()))?;
            for (block, bytes) in version.mask.iter().zip(blocks.chunks(BLOCK_BYTES as usize)) {
                if !covered.has(block) {
                    let at = block as usize * BLOCK_BYTES as usize;
                    out[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
            covered = BlockMask(covered.0 | version.mask.0);
            expected = expected.or(Some((record.header.hash, &segment.path)));
        }
        match expected {
            Some((hash, path)) if extent_hash(&self.folder.keys.hash, &out) != hash => {
                let newest = &versions[0];
                let place = format!("extent {} of disk {}", newest.extent, newest.disk);
                Err(StoreError::damaged(path, format!("{place} is not what the source read")))
            }
            _ => Ok(out),
        }
    }
}

fn version(entry: &FooterEntry, rank: u16, segment: u32) -> Version {
    let FooterEntry { disk, extent, mask, codec, lsn, offset, stored_len, .. } = *entry;
    Version { disk, extent, mask, codec, rank, segment, lsn, offset, stored_len }
}

fn is_version(header: &RecordHeader, version: &Version) -> bool {
    header.kind == RecordKind::Change
        && (header.disk, header.extent, header.mask, header.lsn)
            == (version.disk, version.extent, version.mask, version.lsn)
}

/// Leaves out versions whose blocks are all in newer ones.
fn prune(index: &mut Vec<Version>) {
    let mut extent = None;
    let mut covered = BlockMask::NONE;
    index.retain(|version| {
        if extent != Some((version.disk, version.extent)) {
            extent = Some((version.disk, version.extent));
            covered = BlockMask::NONE;
        }
        let needed = version.mask.0 & !covered.0 != 0 || covered == BlockMask::NONE;
        covered = BlockMask(covered.0 | version.mask.0);
        needed
    });
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
