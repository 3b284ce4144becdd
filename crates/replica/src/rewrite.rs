//! Writes segments anew that hold little that is needed. Every record keeps its LSN, its blocks and
//! its hash, so nothing that reads can tell; it is opened and sealed again in a segment of a new
//! id, never under an old one.
//!
//! First the new segment, then the layers that point into it, then one manifest that names both
//! and drops what they stand for; the old blobs go later.

use crate::{
    ItemStore, StoreError,
    collect::{Tally, Walk},
    folder::ItemFolder,
    manifest::{Change, MarkerPlace, SegmentRange},
    random::draw,
    segments::{read_header, read_record, record_end},
};
use leeward_model::{Change as Blocks, Lsn, SegmentId, TimelineId, UnixMillis};
use leeward_wire::{
    record::{Codec, RecordHeader, RecordKind},
    seal::{Level, Opener, Sealer},
    segment::{FooterEntry, SEGMENT_HEADER_BYTES, SEGMENT_SEAL_BYTES, encode_sparse_footer},
};
use std::collections::{BTreeMap, BTreeSet};

/// Needed bytes that one call writes anew at most.
const REWRITTEN_BYTES_MAX: u64 = 2 * SEGMENT_SEAL_BYTES as u64;

/// Records that lie elsewhere now: by their old segment and their LSN.
pub(crate) type Moved = BTreeMap<(SegmentId, Lsn), (SegmentId, FooterEntry)>;

/// What a rewriting came to.
#[derive(Default)]
pub(crate) struct Rewritten {
    pub(crate) moved: Moved,
    pub(crate) gone: Vec<SegmentId>,
    pub(crate) made: Vec<SegmentRange>,
    pub(crate) timelines: BTreeSet<TimelineId>,
}

impl Rewritten {
    /// The changes that name the new segments, once the layers do.
    pub(crate) fn changes(&self, store: &ItemStore) -> Vec<Change> {
        let gone = self.gone.iter().copied().map(Change::SegmentDropped);
        let made = self.made.iter().copied().map(Change::SegmentCommitted);
        let points = store.reader.state().points.iter();
        let markers = points.filter_map(|point| {
            let (segment, entry) = self.moved.get(&(point.marker.segment, point.position.lsn))?;
            let len = record_end(entry) - u64::from(entry.offset);
            let (offset, len) = (entry.offset.into(), u32::try_from(len).ok()?);
            Some(Change::MarkerMoved(point.id, MarkerPlace { segment: *segment, offset, len }))
        });
        gone.chain(made).chain(markers).collect()
    }
}

impl ItemStore {
    /// Writes anew what holds too little; nothing names the result yet.
    ///
    /// # Errors
    /// [`StoreError::Storage`]. A segment with a damaged record stays as it is.
    pub(crate) fn rewrite(&self, tally: &Tally, now: UnixMillis) -> Result<Rewritten, StoreError> {
        let mut rewritten = Rewritten::default();
        let runs = self.runs(tally);
        if runs.is_empty() {
            return Ok(rewritten);
        }
        let folder = &self.reader.folder;
        let mut needed: BTreeMap<SegmentId, Vec<FooterEntry>> =
            runs.iter().flatten().map(|range| (range.segment, Vec::new())).collect();
        Walk::of_item(&self.reader)?.each(folder, |_, _, entries, marks| {
            for (found, _) in entries.iter().zip(marks).filter(|(_, needed)| **needed) {
                if let Some(of) = needed.get_mut(&found.segment) {
                    of.push(found.entry);
                }
            }
            Ok(())
        })?;
        for run in runs {
            let records = run.iter().flat_map(|range| {
                let mine = needed.remove(&range.segment).unwrap_or_default();
                mine.into_iter().map(|entry| (range.segment, entry))
            });
            let mut records: Vec<_> = records.collect();
            records.sort_by_key(|(_, entry)| entry.lsn);
            match write(folder, &run, &records, now) {
                Ok((made, moved)) => {
                    rewritten.gone.extend(run.iter().map(|range| range.segment));
                    rewritten.timelines.insert(made.timeline);
                    rewritten.made.push(made);
                    rewritten.moved.extend(moved);
                }
                // The audit's business: what is good must not wait for what is not.
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::warn!(%error, "a damaged segment stays as it is");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(rewritten)
    }

    /// Segments that hold too little, in runs of neighbours that become one segment each. Only
    /// what is in layers is looked at: these are made anew to point to the new places.
    fn runs(&self, tally: &Tally) -> Vec<Vec<SegmentRange>> {
        let state = self.reader.state();
        let busy: BTreeSet<SegmentId> =
            self.pending.iter().map(|open| open.header.segment).collect();
        let live =
            |range: &SegmentRange| tally.segments.get(&range.segment).map_or(0, |live| live.bytes);
        let whole = |range: &SegmentRange| range.bytes - SEGMENT_HEADER_BYTES as u64;
        let (mut runs, mut kept, mut gain) = (Vec::<Vec<SegmentRange>>::new(), 0, 0);
        for branch in &state.branches {
            let layers = state.layers_of(branch.timeline);
            let reached = layers.last().map_or(Lsn(0), |layer| layer.last);
            let (mut run, mut bytes) = (Vec::new(), 0);
            for range in state.ranges(branch.timeline, Lsn(0), reached) {
                let live = live(range);
                let sparse = live * 100 < self.upkeep.rewrite_below_percent * whole(range);
                let fits = bytes + live <= SEGMENT_SEAL_BYTES as u64;
                if !sparse || !fits || live == 0 {
                    // A segment that nothing needs goes as a whole and parts no neighbours.
                    let between = live == 0 && !busy.contains(&range.segment);
                    if !between {
                        runs.extend((!run.is_empty()).then(|| std::mem::take(&mut run)));
                        bytes = 0;
                    }
                }
                if sparse && live > 0 && !busy.contains(&range.segment) {
                    if kept + live > REWRITTEN_BYTES_MAX {
                        break;
                    }
                    kept += live;
                    bytes += live;
                    gain += whole(range) - live;
                    run.push(*range);
                }
            }
            runs.extend((!run.is_empty()).then_some(run));
        }
        if gain < self.upkeep.rewrite_gain_min.max(1) { Vec::new() } else { runs }
    }
}

/// Seals records of neighbouring segments again, in the order of their LSNs, in a new one.
fn write(
    folder: &ItemFolder,
    run: &[SegmentRange],
    records: &[(SegmentId, FooterEntry)],
    now: UnixMillis,
) -> Result<(SegmentRange, Moved), StoreError> {
    let (mut openers, mut moved) = (BTreeMap::new(), Moved::new());
    let mut newest = None;
    for range in run {
        let header = read_header(folder, range)?;
        openers.insert(
            range.segment,
            folder.keys.opener(&folder.segment_path(range.segment), &header)?,
        );
        newest = Some(header);
    }
    let first = records.first().map(|(_, entry)| entry.lsn);
    let (Some(newest), Some(first_lsn)) = (newest, first) else {
        unreachable!("a run has segments, and these hold what is needed")
    };
    let segment = SegmentId::from_bytes(draw(folder.random.as_ref()));
    let mut header = newest;
    let keys = folder.keys.newest();
    (header.segment, header.first_lsn, header.created_at) = (segment, first_lsn, now);
    header.key_version = keys.version;
    let mut sealer = Sealer::new(&keys.data, header.clone());
    let path = folder.segment_path(segment);
    let mut appender = folder.blobs.create_new(&path)?;
    appender.append(&header.encode())?;
    let mut at = SEGMENT_HEADER_BYTES as u64;
    let mut entries: Vec<FooterEntry> = Vec::with_capacity(records.len());
    for (old, entry) in records {
        sealer.leave_out_before(entry.lsn);
        let bytes = reseal(folder, *old, entry, &openers[old], &mut sealer)?;
        let offset = u32::try_from(at).expect("a segment is below 4 GiB");
        let sealed = bytes.first_chunk().map(RecordHeader::decode);
        let Some(Ok(sealed)) = sealed else { unreachable!("a sealer makes whole records") };
        let fresh = FooterEntry::of(&sealed, offset);
        appender.append(&bytes)?;
        at += bytes.len() as u64;
        moved.insert((*old, entry.lsn), (segment, fresh));
        entries.push(fresh);
    }
    let footer_key = folder.keys.footer(&path, &header)?;
    appender.append(&encode_sparse_footer(&entries, &footer_key, &header.hash()))?;
    appender.finish()?;
    folder.blobs.sync_dir(&folder.path("segments"))?;
    let last = entries.last().map_or(first_lsn, |entry| entry.lsn);
    let (timeline, records) = (header.timeline, entries.len() as u64);
    let made = SegmentRange { segment, timeline, first: first_lsn, last, bytes: at, records };
    Ok((made, moved))
}

/// Opens one record and seals it under the new segment.
fn reseal(
    folder: &ItemFolder,
    old: SegmentId,
    entry: &FooterEntry,
    opener: &Opener,
    sealer: &mut Sealer,
) -> Result<bytes::Bytes, StoreError> {
    let path = folder.segment_path(old);
    let len = record_end(entry) - u64::from(entry.offset);
    let record = read_record(folder, &path, entry.offset.into(), len as usize)?;
    let header = &record.header;
    if FooterEntry::of(header, entry.offset) != *entry {
        let why = format!("the record at {} is another", entry.offset);
        return Err(StoreError::damaged(&path, why));
    }
    let damaged = |error| StoreError::damaged(&path, error);
    match entry.kind {
        RecordKind::Change => {
            let opened = opener.open_change(header, &record.header_bytes, &record.stored);
            let (disk, extent, mask, hash) = (header.disk, header.extent, header.mask, header.hash);
            let blocks = Blocks { disk, extent, mask, data: opened.map_err(damaged)?, hash };
            let level = if entry.codec == Codec::Raw { Level::Raw } else { Level::Zstd(1) };
            Ok(sealer.seal_change(entry.lsn, &blocks, level))
        }
        RecordKind::Marker => {
            let opened = opener.open_marker(header, &record.header_bytes, &record.stored);
            Ok(sealer.seal_marker(entry.lsn, &opened.map_err(damaged)?))
        }
    }
}
