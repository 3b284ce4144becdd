//! Manifests: what an item's part of a store is made of, and the form of each change of it.
//!
//! Pure: bytes to changes to state and back. Which manifests exist, and committing another one,
//! is in `manifest_log`. Byte by byte: `docs/formats/store.md`.

pub(crate) mod codec;

use leeward_model::{
    Branch, Epoch, ItemId, LayerId, Lsn, PointId, PointKind, PointOrigin, Position, SegmentId,
    TimelineId, UnixMillis, VaultId,
};
use leeward_wire::message::ServerStamp;
use std::collections::{BTreeMap, BTreeSet};

/// Every so many manifests the whole state is written, so that opening reads at most this many.
pub const CHECKPOINT_EVERY: u64 = 256;
/// Largest manifest in bytes that is read: a checkpoint of some 400,000 points.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Where a marker record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkerPlace {
    /// The segment.
    pub segment: SegmentId,
    /// Offset of the record's header in the segment, in bytes.
    pub offset: u64,
    /// Length of the record in bytes, header included.
    pub len: u32,
}

/// A recovery point as a manifest holds it; disks and machine are in its marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRecord {
    /// Its id.
    pub id: PointId,
    /// Its place.
    pub position: Position,
    /// How it was cut.
    pub kind: PointKind,
    /// Why it exists.
    pub origin: PointOrigin,
    /// Its name; empty for replicated points, and only for these.
    pub name: String,
    /// When it was cut, by the source's clock.
    pub cut_at: UnixMillis,
    /// When the store had it, by the store's clock.
    pub received_at: UnixMillis,
    /// Source clock minus store clock, in milliseconds, as measured by the store.
    pub clock_offset_ms: i64,
    /// When it was cut, by the config server's clock.
    pub cut_server: Option<ServerStamp>,
    /// Its marker.
    pub marker: MarkerPlace,
}

/// A run of one timeline's log in one segment. Bytes beyond it do not exist for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRange {
    /// The segment.
    pub segment: SegmentId,
    /// The timeline.
    pub timeline: TimelineId,
    /// LSN of its first record.
    pub first: Lsn,
    /// LSN of its last record.
    pub last: Lsn,
    /// Bytes of the segment up to the end of the last record, header included.
    pub bytes: u64,
    /// Number of its records: every LSN from first to last, unless it was rewritten without those
    /// that nothing needed.
    pub records: u64,
}

impl SegmentRange {
    /// Number of LSNs from the first to the last.
    pub fn span(&self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// Whether it has every record from the first to the last.
    pub fn is_whole(&self) -> bool {
        self.records == self.span()
    }
}

/// A part of the index: where the records of a run of one timeline's log lie, merged and sorted.
/// Says nothing that the segments do not say themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRecord {
    /// The layer.
    pub layer: LayerId,
    /// The timeline.
    pub timeline: TimelineId,
    /// First LSN of the run.
    pub first: Lsn,
    /// Last LSN of the run.
    pub last: Lsn,
    /// Bytes of the blob.
    pub bytes: u64,
    /// Bytes of its head, at its end.
    pub head_bytes: u32,
    /// Number of records that it indexes: those that something needed when it was made.
    pub records: u64,
}

/// A blob that an item may do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlobId {
    /// A segment.
    Segment(SegmentId),
    /// A layer.
    Layer(LayerId),
}

/// One change of an item's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A timeline was opened.
    BranchOpened(Branch),
    /// A segment's range begins to exist, or grows.
    SegmentCommitted(SegmentRange),
    /// Nothing of a lower epoch is taken any more.
    FenceRaised(Epoch),
    /// A recovery point exists.
    PointAdded(PointRecord),
    /// A recovery point is no longer listed.
    PointRemoved(PointId),
    /// A segment is no longer needed; its blob may be gone.
    SegmentDropped(SegmentId),
    /// A timeline is never written again.
    BranchRetired(TimelineId),
    /// A timeline is committed up to here. Follows from the ranges while their segments exist;
    /// checkpoints write it.
    HeadReached(Position),
    /// A layer stands for the index of its run's segments.
    LayerAdded(LayerRecord),
    /// A layer is no longer used; its blob may be gone.
    LayerDropped(LayerId),
    /// A blob was dropped at this time by the store's clock, and may be there still. Follows from
    /// the manifest that dropped it; checkpoints write it.
    BlobDropped(BlobId, UnixMillis),
    /// A point's marker lies elsewhere, as its segment was rewritten.
    MarkerMoved(PointId, MarkerPlace),
}

/// What all manifests up to one add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemState {
    /// Timelines, in the order in which they were opened.
    pub branches: Vec<Branch>,
    /// Timelines that are never written again.
    pub retired: BTreeSet<TimelineId>,
    /// Newest committed LSN of each timeline that has one.
    pub heads: BTreeMap<TimelineId, Lsn>,
    /// Segments with committed data.
    pub segments: BTreeMap<SegmentId, SegmentRange>,
    /// The index's layers; their runs do not overlap.
    pub layers: BTreeMap<LayerId, LayerRecord>,
    /// Dropped blobs that may still be there, and when they were dropped.
    pub dropped: BTreeMap<BlobId, UnixMillis>,
    /// The lowest epoch that is taken.
    pub fence: Epoch,
    /// Points, in the order of their commits.
    pub points: Vec<PointRecord>,
    order: Order,
}

/// What finds points and segments fast: a store may list tens of thousands of them. Follows from
/// the lists, so it is not compared.
#[derive(Clone, Debug, Default)]
struct Order {
    /// A number of every point, ascending as `points` are, and the next one.
    numbers: Vec<u64>,
    next: u64,
    /// The points' numbers.
    points: BTreeMap<PointId, u64>,
    /// The points at each place.
    places: BTreeSet<(TimelineId, Lsn, PointId)>,
    /// Segments by the begin of their ranges.
    segments: BTreeMap<(TimelineId, Lsn), SegmentId>,
}

/// One addition to be undone.
pub(crate) enum Undo {
    /// A range that began or grew, and the timeline's head before it.
    Range {
        /// The segment.
        segment: SegmentId,
        /// Its timeline.
        timeline: TimelineId,
        /// The range as it was.
        old: Option<SegmentRange>,
        /// The timeline's head as it was.
        head: Option<Lsn>,
    },
    /// A point that was added.
    Point(PointId),
}

/// How to get back to an earlier state.
pub(crate) enum Before {
    /// Step by step, the last first.
    Steps(Vec<Undo>),
    /// To this one.
    Whole(Box<ItemState>),
}

impl PartialEq for Order {
    fn eq(&self, _: &Order) -> bool {
        true
    }
}

impl Eq for Order {}

impl ItemState {
    /// The timeline's branch.
    pub fn branch(&self, timeline: TimelineId) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.timeline == timeline)
    }

    /// The point of this id.
    pub fn point(&self, id: PointId) -> Option<&PointRecord> {
        self.points.get(self.point_index(id)?)
    }

    fn point_index(&self, id: PointId) -> Option<usize> {
        self.order.numbers.binary_search(self.order.points.get(&id)?).ok()
    }

    /// A point that lies at a place.
    pub fn point_at(&self, place: Position) -> Option<&PointRecord> {
        let here = |id| (place.timeline, place.lsn, id);
        let (low, high) = (PointId::from_u128(0), PointId::from_u128(u128::MAX));
        let found = self.order.places.range(here(low)..=here(high)).next()?;
        self.point(found.2)
    }

    /// The committed ranges of a timeline that begin at `first` to `last`, ascending.
    pub fn ranges(
        &self,
        timeline: TimelineId,
        first: Lsn,
        last: Lsn,
    ) -> impl DoubleEndedIterator<Item = &SegmentRange> {
        let last = last.max(first);
        let ids = self.order.segments.range((timeline, first)..=(timeline, last));
        ids.filter_map(|(_, id)| self.segments.get(id))
    }

    /// The layers of a timeline, ascending.
    pub fn layers_of(&self, timeline: TimelineId) -> Vec<LayerRecord> {
        let mine = self.layers.values().filter(|layer| layer.timeline == timeline);
        let mut mine: Vec<LayerRecord> = mine.copied().collect();
        mine.sort_by_key(|layer| layer.first);
        mine
    }

    /// The newest place of a timeline: its own head, or where it leaves its parent.
    pub fn head(&self, timeline: TimelineId) -> Option<Lsn> {
        let branch = self.branch(timeline)?;
        let start = branch.parent.map_or(Lsn(0), |parent| parent.lsn);
        Some(self.heads.get(&timeline).copied().unwrap_or(start))
    }

    /// The places whose data a read at `position` may need, newest first: the position itself,
    /// then where its timeline leaves its parent, and so on. Empty for an unknown timeline.
    pub fn chain(&self, position: Position) -> Vec<Position> {
        let mut chain = Vec::new();
        let mut next = Some(position);
        while let Some(place) = next {
            let Some(branch) = self.branch(place.timeline) else { break };
            let start = branch.parent.map_or(Lsn(0), |parent| parent.lsn);
            // A place at or before the branch's start is a place of the parent.
            if place.lsn > start {
                chain.push(place);
            }
            next = branch.parent.map(|parent| Position {
                lsn: parent.lsn.min(place.lsn),
                timeline: parent.timeline,
            });
        }
        chain
    }

    /// Takes one change.
    ///
    /// # Errors
    /// Says why the change does not fit the state; the state is then as before.
    pub fn apply(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::BranchOpened(branch) => self.open_branch(branch),
            Change::SegmentCommitted(range) => self.commit_segment(range),
            Change::FenceRaised(epoch) if *epoch < self.fence => {
                Err(format!("the fence cannot go back from {} to {epoch}", self.fence))
            }
            Change::FenceRaised(epoch) => {
                self.fence = *epoch;
                Ok(())
            }
            Change::PointAdded(point) => {
                if self.order.points.contains_key(&point.id) {
                    return Err(format!("point {} exists already", point.id));
                }
                self.add_point(point);
                Ok(())
            }
            Change::PointRemoved(id) => self.remove_point(*id),
            Change::SegmentDropped(id) => {
                let range = self.segments.remove(id).ok_or_else(|| format!("no segment {id}"))?;
                self.order.segments.remove(&(range.timeline, range.first));
                Ok(())
            }
            Change::LayerAdded(layer) => self.add_layer(layer),
            Change::LayerDropped(id) => {
                self.layers.remove(id).map(|_| ()).ok_or_else(|| format!("no layer {id}"))
            }
            Change::BlobDropped(blob, at) => {
                self.dropped.insert(*blob, *at);
                Ok(())
            }
            Change::MarkerMoved(id, marker) => {
                let index = self.point_index(*id).ok_or_else(|| format!("no point {id}"))?;
                self.points[index].marker = *marker;
                Ok(())
            }
            Change::BranchRetired(timeline) => {
                self.branch(*timeline).ok_or_else(|| format!("no timeline {timeline}"))?;
                self.retired.insert(*timeline);
                Ok(())
            }
            Change::HeadReached(place) => {
                self.branch(place.timeline).ok_or_else(|| format!("no {}", place.timeline))?;
                let head = self.heads.entry(place.timeline).or_insert(place.lsn);
                *head = (*head).max(place.lsn);
                Ok(())
            }
        }
    }

    /// The state that a checkpoint's changes make of nothing, all at once: opening waits for it.
    ///
    /// # Errors
    /// Says which change does not fit the others.
    pub fn of_checkpoint(changes: Vec<Change>) -> Result<ItemState, String> {
        let mut state = ItemState::default();
        let (mut points, mut ranges) = (Vec::new(), Vec::new());
        for change in changes {
            match change {
                Change::PointAdded(point) => points.push(point),
                Change::SegmentCommitted(range) => ranges.push(range),
                other => state.apply(&other)?,
            }
        }
        // Maps are built from sorted lists in one go.
        let count = (points.len(), ranges.len());
        for range in &ranges {
            state.check_range(range)?;
            let head = state.heads.entry(range.timeline).or_insert(range.last);
            *head = (*head).max(range.last);
        }
        let begins = ranges.iter().map(|range| ((range.timeline, range.first), range.segment));
        state.order.segments = begins.collect();
        state.segments = ranges.into_iter().map(|range| (range.segment, range)).collect();
        let numbered = points.iter().zip(0..);
        state.order.points = numbered.map(|(point, number)| (point.id, number)).collect();
        state.order.places =
            points.iter().map(|p| (p.position.timeline, p.position.lsn, p.id)).collect();
        state.order.next = count.0 as u64;
        state.order.numbers = (0..state.order.next).collect();
        state.points = points;
        let distinct = (state.order.points.len(), state.order.segments.len());
        if distinct == count && state.segments.len() == count.1 {
            Ok(state)
        } else {
            Err("a point or a segment is there twice".into())
        }
    }

    /// What it takes to undo `changes`: little when they only add, as those of every point do.
    pub(crate) fn before(&self, changes: &[Change]) -> Before {
        let mut steps = Vec::new();
        for change in changes {
            match change {
                Change::SegmentCommitted(range) => steps.push(Undo::Range {
                    segment: range.segment,
                    timeline: range.timeline,
                    old: self.segments.get(&range.segment).copied(),
                    head: self.heads.get(&range.timeline).copied(),
                }),
                Change::PointAdded(point) if self.point(point.id).is_none() => {
                    steps.push(Undo::Point(point.id));
                }
                _ => return Before::Whole(Box::new(self.clone())),
            }
        }
        Before::Steps(steps)
    }

    /// Undoes the changes that [`Self::before`] was asked about.
    pub(crate) fn restore(&mut self, before: Before) {
        let steps = match before {
            Before::Whole(state) => return *self = *state,
            Before::Steps(steps) => steps,
        };
        for step in steps.into_iter().rev() {
            match step {
                Undo::Point(id) => drop(self.remove_point(id)),
                Undo::Range { segment, timeline, old, head } => {
                    match (self.segments.remove(&segment), old) {
                        (_, Some(old)) => drop(self.segments.insert(segment, old)),
                        (Some(new), None) => {
                            self.order.segments.remove(&(new.timeline, new.first));
                        }
                        (None, None) => {}
                    }
                    match head {
                        Some(head) => self.heads.insert(timeline, head),
                        None => self.heads.remove(&timeline),
                    };
                }
            }
        }
    }

    /// Takes one change of a manifest that was stamped at this time by the store's clock.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_at(&mut self, change: &Change, stamped_at: UnixMillis) -> Result<(), String> {
        self.apply(change)?;
        match change {
            Change::SegmentDropped(id) => self.dropped.insert(BlobId::Segment(*id), stamped_at),
            Change::LayerDropped(id) => self.dropped.insert(BlobId::Layer(*id), stamped_at),
            _ => None,
        };
        Ok(())
    }

    fn add_point(&mut self, point: &PointRecord) {
        let number = self.order.next;
        self.order.next += 1;
        self.order.numbers.push(number);
        self.order.points.insert(point.id, number);
        let Position { timeline, lsn } = point.position;
        self.order.places.insert((timeline, lsn, point.id));
        self.points.push(point.clone());
    }

    fn remove_point(&mut self, id: PointId) -> Result<(), String> {
        let index = self.point_index(id).ok_or_else(|| format!("no point {id}"))?;
        let Position { timeline, lsn } = self.points.remove(index).position;
        self.order.numbers.remove(index);
        self.order.points.remove(&id);
        self.order.places.remove(&(timeline, lsn, id));
        Ok(())
    }

    fn add_layer(&mut self, layer: &LayerRecord) -> Result<(), String> {
        let LayerRecord { timeline, first, last, .. } = *layer;
        self.branch(timeline).ok_or_else(|| format!("no timeline {timeline}"))?;
        let overlaps = |other: &LayerRecord| {
            other.timeline == timeline && other.first <= last && first <= other.last
        };
        if first > last || self.layers.values().any(overlaps) {
            return Err(format!("layer {} cannot run from {first} to {last}", layer.layer));
        }
        self.layers.insert(layer.layer, *layer);
        Ok(())
    }

    fn open_branch(&mut self, branch: &Branch) -> Result<(), String> {
        if self.branch(branch.timeline).is_some() {
            return Err(format!("timeline {} is open already", branch.timeline));
        }
        // A parent that this store does not have is another store's: a whole copy follows then.
        if let Some(parent) = branch.parent
            && self.head(parent.timeline).is_some_and(|head| head < parent.lsn)
        {
            return Err(format!(
                "timeline {} starts at {} of {}, which is not committed",
                branch.timeline, parent.lsn, parent.timeline
            ));
        }
        self.branches.push(*branch);
        Ok(())
    }

    fn check_range(&self, range: &SegmentRange) -> Result<(), String> {
        let SegmentRange { segment, timeline, first, last, .. } = *range;
        let branch = self.branch(timeline).ok_or_else(|| format!("no timeline {timeline}"))?;
        let start = branch.parent.map_or(Lsn(0), |parent| parent.lsn);
        let records = 1..=last.0.saturating_sub(first.0) + 1;
        if first > last || first <= start || !records.contains(&range.records) {
            return Err(format!("segment {segment} cannot range from {first} to {last}"));
        }
        Ok(())
    }

    fn commit_segment(&mut self, range: &SegmentRange) -> Result<(), String> {
        let SegmentRange { segment, timeline, first, last, .. } = *range;
        self.check_range(range)?;
        if let Some(old) = self.segments.get(&segment)
            && (old.timeline != timeline || old.first != first || old.last > last)
        {
            return Err(format!("the range of segment {segment} does not continue its old one"));
        }
        let begins = self.order.segments.insert((timeline, first), segment);
        if begins.is_some_and(|other| other != segment) {
            self.order.segments.extend(begins.map(|other| ((timeline, first), other)));
            return Err(format!("another segment than {segment} begins at {first}"));
        }
        self.segments.insert(segment, *range);
        let head = self.heads.entry(timeline).or_insert(last);
        *head = (*head).max(last);
        Ok(())
    }

    /// The changes that make this state out of an empty one, but for what comes with every point
    /// (points, segments) and what only writers ask for (dropped blobs).
    pub(crate) fn small_changes(&self) -> Vec<Change> {
        let all = self.as_changes().into_iter();
        all.filter(|change| match change {
            Change::SegmentCommitted(_) | Change::PointAdded(_) | Change::BlobDropped(..) => false,
            Change::BranchOpened(_)
            | Change::FenceRaised(_)
            | Change::PointRemoved(_)
            | Change::SegmentDropped(_)
            | Change::BranchRetired(_)
            | Change::HeadReached(_)
            | Change::LayerAdded(_)
            | Change::LayerDropped(_)
            | Change::MarkerMoved(..) => true,
        })
        .collect()
    }

    /// The changes that make this state out of an empty one: a checkpoint's.
    pub fn as_changes(&self) -> Vec<Change> {
        // Heads stand between the branches: a branch is checked against its parent's head.
        let branches = self.branches.iter().flat_map(|branch| {
            let timeline = branch.timeline;
            let head = self.heads.get(&timeline).map(|lsn| Position { timeline, lsn: *lsn });
            [Some(Change::BranchOpened(*branch)), head.map(Change::HeadReached)]
        });
        let retired = self.retired.iter().copied().map(Change::BranchRetired);
        let segments = self.segments.values().copied().map(Change::SegmentCommitted);
        let points = self.points.iter().cloned().map(Change::PointAdded);
        let fence = [Change::FenceRaised(self.fence)];
        let layers = self.layers.values().copied().map(Change::LayerAdded);
        let dropped = self.dropped.iter().map(|(blob, at)| Change::BlobDropped(*blob, *at));
        let branches = branches.flatten();
        let lists = branches.chain(retired).chain(segments).chain(fence).chain(points);
        lists.chain(layers).chain(dropped).collect()
    }
}

/// Whether a manifest stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestKind {
    /// Changes of the state before it.
    Delta = 0,
    /// The whole state.
    Checkpoint = 1,
}

/// A decoded manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whether it stands alone.
    pub kind: ManifestKind,
    /// Its number, from 1.
    pub number: u64,
    /// The vault.
    pub vault: VaultId,
    /// The item.
    pub item: ItemId,
    /// Generation of the store: which owner wrote it.
    pub generation: u64,
    /// Drawn by each writer when it opens the item.
    pub writer: [u8; 16],
    /// Keyed hash of all bytes of the manifest before it; zeros for number 1.
    pub predecessor: [u8; 32],
    /// A time by the store's clock, not after the commit; for deleting old manifests only.
    pub stamped_at: UnixMillis,
    /// What changed; for a checkpoint, from nothing.
    pub changes: Vec<Change>,
}
