//! An audit: reads and proves every byte that an item consists of, and names each that is bad, the
//! part of the disk that it holds and the points that need it. It changes nothing and mends
//! nothing.
//!
//! A record is proved by its seal, an extent at a place by the hash that the source took of it.
//! What no manifest names, as the tail that a power cut left, does not belong to the item.

mod scrub;
mod segment;

use crate::{
    ItemReader, StoreError, View, evidence,
    layers::{Layer, layer_of},
    manifest::SegmentRange,
    view::{Version, same_extent},
};
use leeward_model::{BLOCK_BYTES, DiskNumber, PointId, Position, SegmentId, Verification};
pub use scrub::Scrubbed;
use segment::SegmentAudit;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskPart {
    /// The disk.
    pub disk: DiskNumber,
    /// Its first byte.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// Bytes that are not those that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The blob, by its path below the store.
    pub blob: String,
    /// First byte and length in the blob; none when the whole of it cannot be used.
    pub bytes: Option<(u64, u64)>,
    /// How it shows.
    pub why: String,
    /// The part of a disk whose data it held, when it held any.
    pub part: Option<DiskPart>,
    /// Listed points and kept work that cannot be read whole because of it, ascending.
    pub points: Vec<PointId>,
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Manifests proved.
    pub manifests: u64,
    /// Segments read.
    pub segments: u64,
    /// Layers of the index proved. A damaged one costs time only, no point.
    pub layers: u64,
    /// Records opened.
    pub records: u64,
    /// Bytes of segments read.
    pub bytes: u64,
    /// Points and kept work looked at.
    pub points: u64,
    /// Extents put together and compared with their hash, each version once.
    pub extents: u64,
    /// Pins, kept work, evidence and pictures proved.
    pub notes: u64,
    /// What is bad; empty when every byte is good.
    pub damages: Vec<Damage>,
}

/// Told how many of how many bytes of segments are read. Called from several threads.
pub type AuditProgress<'a> = &'a (dyn Fn(u64, u64) + Sync);

impl ItemReader {
    /// Audits the item as this reader knows it; refresh it before.
    ///
    /// Segments that are deleted meanwhile, because a writer lets a point go, count as damaged:
    /// audit again, or keep the writer away.
    ///
    /// # Errors
    /// [`StoreError::Storage`] when the store cannot be read at all. Damage is not an error.
    pub fn audit(&self, progress: AuditProgress<'_>) -> Result<Audit, StoreError> {
        let mut audit = Audit::default();
        self.audit_manifests(&mut audit)?;
        self.audit_notes(&mut audit)?;
        let segments = self.audit_segments(progress)?;
        for found in segments.values() {
            audit.segments += 1;
            audit.records += found.records;
            audit.bytes += found.bytes;
        }
        self.audit_layers(&mut audit)?;
        self.audit_places(&segments, &mut audit)?;
        Ok(audit)
    }

    fn audit_layers(&self, audit: &mut Audit) -> Result<(), StoreError> {
        for record in self.state().layers.values() {
            let proved = Layer::open(&self.folder, record);
            match proved.and_then(|layer| layer.audit(&self.folder)) {
                Ok(()) => audit.layers += 1,
                Err(error) if layer_of(&error).is_some() => {
                    let why = match error {
                        StoreError::Damaged { why, .. } => why,
                        _ => "it is missing".to_owned(),
                    };
                    let why = format!("{why}; it is an index, and no point needs it");
                    let error = StoreError::damaged(&self.folder.layer_path(record.layer), why);
                    audit.damages.push(whole_blob(error, Vec::new()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn audit_manifests(&self, audit: &mut Audit) -> Result<(), StoreError> {
        let (good, bad) = self.log.audit()?;
        audit.manifests = good;
        audit.damages.extend(bad.into_iter().map(|error| whole_blob(error, Vec::new())));
        Ok(())
    }

    fn audit_notes(&self, audit: &mut Audit) -> Result<(), StoreError> {
        match self.label() {
            Ok(label) => audit.notes += u64::from(label.is_some()),
            Err(error @ StoreError::Damaged { .. }) => {
                audit.damages.push(whole_blob(error, Vec::new()));
            }
            Err(error) => return Err(error),
        }
        for (part, suffix) in [
            ("pins", ""),
            ("unpinned", ""),
            ("served", ""),
            ("serve-ended", ""),
            ("kept", ".json"),
            ("evidence", ".json"),
        ] {
            for name in self.folder.blobs.list(&self.folder.path(part))? {
                if !name.ends_with(suffix) {
                    continue;
                }
                match self.folder.note::<serde_json::Value>(&format!("{part}/{name}")) {
                    Ok(_) => audit.notes += 1,
                    Err(error @ StoreError::Damaged { .. }) => {
                        audit.damages.push(whole_blob(error, Vec::new()));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        self.audit_pictures(audit)
    }

    fn audit_pictures(&self, audit: &mut Audit) -> Result<(), StoreError> {
        let names = evidence::names(&self.folder)?;
        for name in names.iter().filter(|name| name.ends_with(".json")) {
            let Ok(Some(seen)) = evidence::of_note(&self.folder, name) else { continue };
            let (Verification::Verified(seen) | Verification::Failed(seen)) = seen else {
                continue;
            };
            let (Some(picture), Some(hash)) = (seen.picture, seen.picture_hash) else { continue };
            let path = self.folder.path(&format!("evidence/{picture}.png"));
            match evidence::picture(&self.folder, &picture)? {
                Some(bytes) if blake3::hash(&bytes).to_hex().as_str() == hash => audit.notes += 1,
                Some(_) => audit.damages.push(whole_blob(
                    StoreError::damaged(&path, "it is not the picture that was taken"),
                    Vec::new(),
                )),
                None => audit
                    .damages
                    .push(whole_blob(StoreError::damaged(&path, "it is missing"), Vec::new())),
            }
        }
        Ok(())
    }

    /// Audits every committed segment, on all processors.
    fn audit_segments(
        &self,
        progress: AuditProgress<'_>,
    ) -> Result<BTreeMap<SegmentId, SegmentAudit>, StoreError> {
        let ranges: Vec<&SegmentRange> = self.state().segments.values().collect();
        let total = ranges.iter().map(|range| range.bytes).sum();
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let found = Mutex::new(BTreeMap::new());
        let work = || -> Result<(), StoreError> {
            while let Some(range) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
                let audit = segment::audit(&self.folder, range, &mut |_| {})?;
                found.lock().unwrap_or_else(PoisonError::into_inner).insert(range.segment, audit);
                progress(done.fetch_add(range.bytes, Ordering::Relaxed) + range.bytes, total);
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts together every extent at every place that is kept.
    fn audit_places(
        &self,
        segments: &BTreeMap<SegmentId, SegmentAudit>,
        audit: &mut Audit,
    ) -> Result<(), StoreError> {
        let mut places: Vec<(Position, BTreeSet<PointId>)> = Vec::new();
        let points = self.state().points.iter().map(|point| (point.position, point.id));
        let kept: Vec<_> = self.kept().unwrap_or_default();
        for (place, point) in points.chain(kept.iter().map(|work| (work.position, work.id))) {
            audit.points += 1;
            match places.iter_mut().find(|(known, _)| *known == place) {
                Some((_, points)) => drop(points.insert(point)),
                None => places.push((place, BTreeSet::from([point]))),
            }
        }
        let roots = match self.roots() {
            Ok(roots) => roots,
            // A note that cannot be read is among the damages already.
            Err(StoreError::Damaged { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        for place in roots {
            if !places.iter().any(|(known, _)| *known == place) {
                places.push((place, BTreeSet::new()));
            }
        }
        let mut composed = Composed::default();
        for (place, points) in places {
            composed.place(self, place, &points, segments)?;
        }
        audit.extents = composed.good.len() as u64;
        let mut needed = composed.needed;
        for (segment, found) in segments {
            for damage in &found.damages {
                let at = damage.bytes.map_or(0, |(offset, _)| offset);
                let points = needed.remove(&(*segment, at)).unwrap_or_default();
                let points = points.into_iter().collect();
                audit.damages.push(Damage { points, ..damage.clone() });
            }
        }
        for (key, mut damage) in composed.bad {
            damage.points = needed.remove(&key).unwrap_or_default().into_iter().collect();
            audit.damages.push(damage);
        }
        audit.damages.extend(composed.closed.into_values());
        Ok(())
    }
}

/// Where a record lies: its segment and its offset there.
type RecordKey = (SegmentId, u64);

/// What putting extents together showed.
#[derive(Default)]
struct Composed {
    /// Newest versions whose extents are as their hashes say.
    good: HashSet<RecordKey>,
    /// Newest versions whose extents are not, though each of their records opens.
    bad: HashMap<RecordKey, Damage>,
    /// The points that need a bad record.
    needed: HashMap<RecordKey, BTreeSet<PointId>>,
    /// Places that cannot be opened at all, by the blob that is in the way.
    closed: BTreeMap<String, Damage>,
}

impl Composed {
    fn place(
        &mut self,
        reader: &ItemReader,
        place: Position,
        points: &BTreeSet<PointId>,
        segments: &BTreeMap<SegmentId, SegmentAudit>,
    ) -> Result<(), StoreError> {
        for (id, found) in segments {
            let reaches =
                |link: &Position| link.timeline == found.timeline && found.first <= link.lsn;
            if found.is_unusable() && reader.state().chain(place).iter().any(reaches) {
                self.need((*id, 0), points);
            }
        }
        for point in points {
            let marker = reader.state().point(*point).map(|record| record.marker);
            let bad = marker.and_then(|at| bad_record(segments, (at.segment, at.offset)));
            if let Some(bad) = bad {
                self.need(bad, &BTreeSet::from([*point]));
            }
        }
        let view = match View::open(reader, place) {
            Ok(view) => view,
            Err(StoreError::Damaged { blob, why }) => {
                self.closed(segments, blob, why, points);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for key in view.region_keys() {
            for versions in view.region(key)?.chunk_by(same_extent) {
                self.extent(&view, versions, points, segments)?;
            }
        }
        Ok(())
    }

    fn need(&mut self, bad: RecordKey, points: &BTreeSet<PointId>) {
        self.needed.entry(bad).or_default().extend(points);
    }

    /// Notes that a place cannot be opened because of `blob`.
    fn closed(
        &mut self,
        segments: &BTreeMap<SegmentId, SegmentAudit>,
        blob: String,
        why: String,
        points: &BTreeSet<PointId>,
    ) {
        let id: Option<SegmentId> = blob.rsplit('/').next().and_then(|name| name.parse().ok());
        let known = id.and_then(|id| Some((id, segments.get(&id)?)));
        match known.filter(|(_, found)| !found.damages.is_empty()) {
            // The segment's own audit says what is wrong with it.
            Some((id, found)) => {
                for damage in &found.damages {
                    self.need((id, damage.bytes.map_or(0, |(offset, _)| offset)), points);
                }
            }
            None => {
                let fresh = Damage { blob, bytes: None, why, part: None, points: Vec::new() };
                let known = self.closed.entry(fresh.blob.clone()).or_insert(fresh);
                let all: BTreeSet<_> = known.points.iter().chain(points).copied().collect();
                known.points = all.into_iter().collect();
            }
        }
    }

    fn extent(
        &mut self,
        view: &View,
        versions: &[Version],
        points: &BTreeSet<PointId>,
        segments: &BTreeMap<SegmentId, SegmentAudit>,
    ) -> Result<(), StoreError> {
        let newest = view.record_key(&versions[0]);
        let keys = versions.iter().map(|version| view.record_key(version));
        let damaged: Vec<_> = keys.filter_map(|key| bad_record(segments, key)).collect();
        for key in &damaged {
            self.need(*key, points);
        }
        if !damaged.is_empty() || self.good.contains(&newest) {
            return Ok(());
        }
        if self.bad.contains_key(&newest) {
            self.need(newest, points);
            return Ok(());
        }
        match view.compose(versions) {
            Ok(_) => drop(self.good.insert(newest)),
            Err(StoreError::Damaged { blob, why }) => {
                let version = &versions[0];
                let part = DiskPart {
                    disk: version.disk,
                    offset: version.extent.offset(),
                    len: u64::from(leeward_model::BLOCKS_PER_EXTENT) * BLOCK_BYTES,
                };
                let bytes = Some((newest.1, view.record_len(version)));
                let damage = Damage { blob, bytes, why, part: Some(part), points: Vec::new() };
                self.bad.insert(newest, damage);
                self.need(newest, points);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The damage that a record lies in: its segment, and where the damage begins.
fn bad_record(segments: &BTreeMap<SegmentId, SegmentAudit>, key: RecordKey) -> Option<RecordKey> {
    Some((key.0, segments.get(&key.0)?.bad_at(key.1)?))
}

/// A blob of which nothing can be used.
fn whole_blob(error: StoreError, points: Vec<PointId>) -> Damage {
    let (blob, why) = match error {
        StoreError::Damaged { blob, why } => (blob, why),
        other => (String::new(), other.to_string()),
    };
    Damage { blob, bytes: None, why, part: None, points }
}
