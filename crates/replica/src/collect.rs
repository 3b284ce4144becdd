//! What is still needed: goes through the index region by region and marks the records that a read
//! at any kept place takes a block from. Decides nothing; what follows is the writer's.
//!
//! Only the versions of one region of 4 GiB are in memory at a time.

use crate::{
    ItemReader, StoreError,
    folder::ItemFolder,
    layers::{IndexEntry, Live, RegionKey, TimelineIndex},
    manifest::ItemState,
};
use leeward_model::{BlockMask, Lsn, Position, SegmentId, TimelineId};
use leeward_wire::record::RecordKind;
use std::collections::{BTreeMap, BTreeSet};

/// The kept places of one timeline.
struct Rooted {
    /// Index of the timeline.
    own: usize,
    places: BTreeSet<Lsn>,
    /// Where a read goes on below the timeline's start: timelines, and the places on them.
    above: Vec<(usize, Lsn)>,
}

/// See the module.
pub(crate) struct Walk {
    timelines: Vec<TimelineIndex>,
    roots: Vec<Rooted>,
}

/// What became of a region that was shown.
type Seen = Result<(), StoreError>;

/// What a walk counted.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) segments: BTreeMap<SegmentId, Live>,
    /// Needed records up to the place that the layers of a timeline reach.
    pub(crate) layered: BTreeMap<TimelineId, u64>,
}

/// Every place that a read at a kept place comes by, by timeline.
pub(crate) fn needed_places(
    reader: &ItemReader,
) -> Result<BTreeMap<TimelineId, BTreeSet<Lsn>>, StoreError> {
    let mut places: BTreeMap<TimelineId, BTreeSet<Lsn>> = BTreeMap::new();
    for root in reader.roots()? {
        for place in reader.state().chain(root) {
            places.entry(place.timeline).or_default().insert(place.lsn);
        }
    }
    Ok(places)
}

impl Walk {
    /// All of an item, up to its newest committed places.
    ///
    /// # Errors
    /// Those of [`TimelineIndex::open`]; [`StoreError::Damaged`] for a pin that cannot be read.
    pub(crate) fn of_item(reader: &ItemReader) -> Result<Walk, StoreError> {
        let state = reader.state();
        let (mut timelines, mut numbers) = (Vec::new(), BTreeMap::new());
        for branch in &state.branches {
            let place = Position { timeline: branch.timeline, lsn: Lsn(u64::MAX - 1) };
            let without = BTreeSet::new();
            numbers.insert(branch.timeline, timelines.len());
            timelines.push(TimelineIndex::open(&reader.folder, state, place, &without)?);
        }
        let mut places: BTreeMap<TimelineId, BTreeSet<Lsn>> = BTreeMap::new();
        for root in reader.roots()? {
            // A place at the very start of a timeline is a place of its parent.
            if let Some(place) = state.chain(root).first() {
                places.entry(place.timeline).or_default().insert(place.lsn);
            }
        }
        let roots = places.into_iter().filter_map(|(timeline, places)| {
            let above = above(state, timeline).into_iter();
            let above = above.filter_map(|at| Some((*numbers.get(&at.timeline)?, at.lsn)));
            Some(Rooted { own: *numbers.get(&timeline)?, places, above: above.collect() })
        });
        let roots = roots.collect();
        Ok(Walk { timelines, roots })
    }

    /// A part of one timeline's index, and the places up to its end that something needs.
    pub(crate) fn of_part(index: TimelineIndex, places: BTreeSet<Lsn>) -> Walk {
        let roots = vec![Rooted { own: 0, places, above: Vec::new() }];
        Walk { timelines: vec![index], roots }
    }

    /// Shows every region of every timeline, in order: its entries, and which of them are needed.
    ///
    /// # Errors
    /// Those of the index and of `see`.
    pub(crate) fn each(
        &self,
        folder: &ItemFolder,
        mut see: impl FnMut(RegionKey, &TimelineIndex, &[IndexEntry], &[bool]) -> Seen,
    ) -> Result<(), StoreError> {
        let mut regions = BTreeSet::new();
        self.timelines.iter().for_each(|index| index.regions(&mut regions));
        for key in regions {
            let loaded: Vec<Vec<IndexEntry>> = self
                .timelines
                .iter()
                .map(|index| index.load(folder, key))
                .collect::<Result<_, _>>()?;
            let needed = self.mark_region(&loaded);
            for ((index, entries), needed) in self.timelines.iter().zip(&loaded).zip(&needed) {
                if !entries.is_empty() {
                    see(key, index, entries, needed)?;
                }
            }
        }
        Ok(())
    }

    /// Counts what is needed.
    ///
    /// # Errors
    /// Those of the index.
    pub(crate) fn tally(
        &self,
        folder: &ItemFolder,
        state: &ItemState,
    ) -> Result<Tally, StoreError> {
        let mut tally = Tally::default();
        let reached = |timeline| state.layers_of(timeline).last().map_or(Lsn(0), |top| top.last);
        let reached: BTreeMap<TimelineId, Lsn> =
            self.timelines.iter().map(|index| (index.timeline, reached(index.timeline))).collect();
        self.each(folder, |_, index, entries, needed| {
            let layered = tally.layered.entry(index.timeline).or_default();
            for (found, _) in entries.iter().zip(needed).filter(|(_, needed)| **needed) {
                tally.segments.entry(found.segment).or_default().add(&found.entry);
                *layered += u64::from(found.entry.lsn <= reached[&index.timeline]);
            }
            Ok(())
        })?;
        Ok(tally)
    }

    fn mark_region(&self, loaded: &[Vec<IndexEntry>]) -> Vec<Vec<bool>> {
        let mut needed: Vec<Vec<bool>> =
            loaded.iter().map(|entries| vec![false; entries.len()]).collect();
        let mut spans = vec![(0, 0); loaded.len()];
        loop {
            let next = loaded.iter().zip(&spans).filter_map(|(entries, (_, end))| {
                entries.get(*end).map(|found| found.entry.extent)
            });
            let Some(extent) = next.min() else { return needed };
            for (entries, span) in loaded.iter().zip(&mut spans) {
                let begin = span.1;
                let count = entries[begin..].iter();
                let count = count.take_while(|found| found.entry.extent == extent).count();
                *span = (begin, begin + count);
            }
            for root in &self.roots {
                mark_timeline(root, loaded, &spans, &mut needed);
            }
        }
    }
}

/// Where a read of a timeline goes on below its start.
fn above(state: &ItemState, timeline: TimelineId) -> Vec<Position> {
    let start = state.branch(timeline).and_then(|branch| branch.parent);
    start.map_or_else(Vec::new, |start| state.chain(start))
}

/// Marks what kept places on one timeline need of one extent. Places between two versions read the
/// same, so one of them stands for all.
fn mark_timeline(
    root: &Rooted,
    loaded: &[Vec<IndexEntry>],
    spans: &[(usize, usize)],
    needed: &mut [Vec<bool>],
) {
    let (begin, end) = spans[root.own];
    let own = &loaded[root.own][begin..end];
    let mut from = Lsn(0);
    for until in own.iter().map(|found| found.entry.lsn).chain([Lsn(u64::MAX)]) {
        if let Some(place) = root.places.range(from..until).next() {
            let mut covered = BlockMask::NONE;
            for (timeline, lsn) in [(root.own, *place)].iter().chain(&root.above) {
                mark(
                    &loaded[*timeline],
                    spans[*timeline],
                    *lsn,
                    &mut needed[*timeline],
                    &mut covered,
                );
                if covered == BlockMask::ALL {
                    break;
                }
            }
        }
        from = until;
    }
}

/// Marks the versions of one timeline that a read at `lsn` takes blocks from.
fn mark(
    entries: &[IndexEntry],
    (begin, end): (usize, usize),
    lsn: Lsn,
    needed: &mut [bool],
    covered: &mut BlockMask,
) {
    let own = &entries[begin..end];
    let below = own.partition_point(|found| found.entry.lsn <= lsn);
    for (at, found) in own[..below].iter().enumerate().rev() {
        // The newest marker carries the disk table: it is needed as a whole.
        let mask = match found.entry.kind {
            RecordKind::Change => found.entry.mask,
            RecordKind::Marker => BlockMask::ALL,
        };
        needed[begin + at] |= mask.0 & !covered.0 != 0;
        *covered = BlockMask(covered.0 | mask.0);
        if *covered == BlockMask::ALL {
            return;
        }
    }
}
