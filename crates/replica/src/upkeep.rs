//! Keeps an item's index small: makes layers of segments, merges layers, and makes them anew once
//! most of what they name is needed no more. Changes nothing that anybody reads.
//!
//! Each step puts a layer, then the manifest that names it; what it stands for goes later. A layer
//! that turns out to be damaged is dropped: the next step makes another one from the footers.

use crate::{
    ItemStore, StoreError,
    collect::{Tally, Walk, needed_places},
    layers::{IndexEntry, Layer, LayerWriter, TimelineIndex, layer_of, uncovered},
    manifest::{Change, ItemState, LayerRecord, SegmentRange},
    rewrite::Moved,
};
use leeward_model::{LayerId, Lsn, Position, SegmentId, TimelineId, UnixMillis};
use std::collections::BTreeSet;

/// Segments with so many records altogether become a layer whatever their number: a view reads all
/// of a footer, a quarter of a megabyte here.
const TAIL_RECORDS_MAX: u64 = 8_192;
/// Records of segments that one new layer takes in at most, all in memory at once: 48 MiB.
const MERGED_RECORDS_MAX: u64 = 1 << 20;
/// Layers that one call makes at most, so that the item's writer is not away for long.
const MERGES_MAX: usize = 4;

/// When the index is worked on, and how long dropped blobs stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// So many sealed segments of the timeline that is written become a layer; two of any other.
    pub layer_after: usize,
    /// No timeline has more layers than this; a layer is merged with the one before it as well
    /// while that has at most twice as many records.
    pub layers_max: usize,
    /// A timeline's layers of at least so many records are made anew when less than half of them
    /// are needed.
    pub rebuild_records_min: u64,
    /// A segment is written anew without what is not needed when less than so many of a hundred
    /// bytes are.
    pub rewrite_below_percent: u64,
    /// Segments are written anew when that frees at least so many bytes altogether.
    pub rewrite_gain_min: u64,
    /// Dropped blobs stay so long, in milliseconds by the store's clock, for readers that know
    /// only the state before.
    pub grace_ms: u64,
}

impl Default for Upkeep {
    /// Layers of 8 segments, at most 8 of a timeline; segments below a half; an hour.
    fn default() -> Upkeep {
        Upkeep {
            layer_after: 8,
            layers_max: 8,
            rebuild_records_min: 4096,
            rewrite_below_percent: 50,
            rewrite_gain_min: 1 << 20,
            grace_ms: 3_600_000,
        }
    }
}

/// Layers and segments that become one layer.
struct Merge {
    timeline: TimelineId,
    first: Lsn,
    last: Lsn,
    layers: Vec<LayerRecord>,
    ranges: Vec<SegmentRange>,
}

impl ItemStore {
    /// Sets when the index is worked on, from now on.
    pub fn set_upkeep(&mut self, upkeep: Upkeep) {
        self.upkeep = upkeep;
    }

    /// Makes and merges layers where they are due; returns how many were made. Called by
    /// [`Self::expire`].
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a pin or a segment cannot be read; [`StoreError::Storage`].
    pub fn merge_layers(&mut self, now: UnixMillis) -> Result<usize, StoreError> {
        self.check_stale()?;
        let mut made = 0;
        while made < MERGES_MAX {
            let Some(merge) = self.next_merge() else { break };
            match self.merge(&merge) {
                Ok(layer) => {
                    let gone = merge.layers.iter().map(|layer| Change::LayerDropped(layer.layer));
                    let changes = gone.chain([Change::LayerAdded(layer)]).collect();
                    self.commit(changes, now)?;
                    made += 1;
                }
                Err(error) => self.drop_layer(&error, now)?.ok_or(error)?,
            }
        }
        Ok(made)
    }

    /// Drops the layer that an error is about; `None` when it is about something else.
    pub(crate) fn drop_layer(
        &mut self,
        error: &StoreError,
        now: UnixMillis,
    ) -> Result<Option<()>, StoreError> {
        let layers = &self.reader.state().layers;
        let Some(layer) = layer_of(error).filter(|layer| layers.contains_key(layer)) else {
            return Ok(None);
        };
        tracing::warn!(%error, "a layer is dropped: it is made anew from the footers");
        self.commit(vec![Change::LayerDropped(layer)], now).map(Some)
    }

    fn next_merge(&self) -> Option<Merge> {
        let state = self.reader.state();
        let busy: BTreeSet<SegmentId> =
            self.pending.iter().map(|open| open.header.segment).collect();
        let written = state.branches.last().map(|branch| branch.timeline);
        state.branches.iter().find_map(|branch| {
            let timeline = branch.timeline;
            let layers = state.layers_of(timeline);
            let place = Position { timeline, lsn: Lsn(u64::MAX - 1) };
            let waiting = uncovered(state, place, &layers).into_iter().copied();
            let waiting = waiting.take_while(|range| !busy.contains(&range.segment));
            let is_written = written == Some(timeline);
            self.merge_of(timeline, layers, waiting.collect(), is_written)
        })
    }

    fn merge_of(
        &self,
        timeline: TimelineId,
        layers: Vec<LayerRecord>,
        mut ranges: Vec<SegmentRange>,
        is_written: bool,
    ) -> Option<Merge> {
        let after = self.upkeep.layer_after;
        let after = if is_written { after } else { after.min(2) };
        let many = ranges.iter().map(|range| range.records).sum::<u64>() >= TAIL_RECORDS_MAX;
        if ranges.len() < after.max(1) && !many {
            // Nothing comes to a timeline that is not written: one layer is best there.
            let (first, last) = (layers.first()?.first, layers.last()?.last);
            let many = !is_written && layers.len() > 1;
            let ranges = Vec::new();
            return many.then_some(Merge { timeline, first, last, layers, ranges });
        }
        let mut records = 0;
        ranges.retain(|range| {
            records += range.records;
            records <= MERGED_RECORDS_MAX || records == range.records
        });
        let mut records: u64 = ranges.iter().map(|range| range.records).sum();
        let (mut first, last) = (ranges.first()?.first, ranges.last()?.last);
        let before: Vec<&LayerRecord> = layers.iter().filter(|layer| layer.last < first).collect();
        let among = layers.iter().filter(|layer| layer.last >= first && layer.first <= last);
        let mut taken: Vec<LayerRecord> = among.copied().collect();
        let later = layers.iter().filter(|layer| layer.first > last).count();
        let mut left = before.len();
        for layer in before.iter().rev() {
            let crowded = left + later + 1 > self.upkeep.layers_max.max(1);
            if !crowded && is_written && layer.records > 2 * records {
                break;
            }
            records += layer.records;
            first = layer.first;
            left -= 1;
            taken.push(**layer);
        }
        taken.sort_by_key(|layer| layer.first);
        Some(Merge { timeline, first, last, layers: taken, ranges })
    }

    /// Writes the layer of a merge, without what nothing needs as far as it can tell: places beyond
    /// its end need what its end does.
    fn merge(&self, merge: &Merge) -> Result<LayerRecord, StoreError> {
        let Merge { timeline, first, last, layers, ranges } = merge;
        let folder = &self.reader.folder;
        let mut places =
            needed_places(&self.reader)?.remove(timeline).unwrap_or_default().split_off(first);
        if let Some(beyond) = places.pop_last() {
            places.retain(|place| place < last);
            places.insert(beyond.min(*last));
        }
        let index = TimelineIndex::of(folder, *timeline, *last, layers, ranges.iter())?;
        let walk = Walk::of_part(index, places);
        let mut writer = LayerWriter::create(folder, *timeline, *first, *last)?;
        walk.each(folder, |key, _, entries, needed| {
            let kept = entries.iter().zip(needed).filter(|(_, needed)| **needed);
            let kept: Vec<_> = kept.map(|(found, _)| *found).collect();
            writer.push(key, &kept)
        })?;
        writer.finish()
    }

    /// Counts what is needed; damaged layers are dropped on the way.
    pub(crate) fn tally(&mut self, now: UnixMillis) -> Result<Tally, StoreError> {
        loop {
            let walk = Walk::of_item(&self.reader);
            let state = self.reader.state();
            let folder = &self.reader.folder;
            let tally = walk.and_then(|walk| {
                // Of a layer's bytes the accounts are read by nobody else here.
                for record in state.layers.values() {
                    Layer::open(folder, record)?.accounts(folder)?;
                }
                walk.tally(folder, state)
            });
            match tally {
                Err(error) => self.drop_layer(&error, now)?.ok_or(error)?,
                counted => return counted,
            }
        }
    }

    /// Timelines whose layers name more that is not needed than what is.
    pub(crate) fn bloated(&self, tally: &Tally) -> BTreeSet<TimelineId> {
        let state = self.reader.state();
        let is_bloated = |timeline: &TimelineId| {
            let layers = state.layers_of(*timeline);
            let records: u64 = layers.iter().map(|layer| layer.records).sum();
            let needed = tally.layered.get(timeline).copied().unwrap_or(0);
            records >= self.upkeep.rebuild_records_min.max(1) && needed * 2 < records
        };
        let all = state.branches.iter().map(|branch| branch.timeline);
        all.filter(is_bloated).collect()
    }

    /// Writes one layer for each of these timelines with nothing but what is needed, in place of
    /// all that it has; returns the changes that name them.
    /// Records that were `moved` are named at their new places.
    pub(crate) fn rebuild(
        &self,
        timelines: &BTreeSet<TimelineId>,
        moved: &Moved,
    ) -> Result<Vec<Change>, StoreError> {
        if timelines.is_empty() {
            return Ok(Vec::new());
        }
        let folder = &self.reader.folder;
        let state = self.reader.state();
        let walk = Walk::of_item(&self.reader)?;
        let mut changes = Vec::new();
        for timeline in timelines {
            let Some((first, last)) = reach(state, *timeline) else { continue };
            let mut writer = LayerWriter::create(folder, *timeline, first, last)?;
            walk.each(folder, |key, index, entries, needed| {
                if index.timeline != *timeline {
                    return Ok(());
                }
                let kept = entries
                    .iter()
                    .zip(needed)
                    .filter(|(found, needed)| **needed && found.entry.lsn <= last);
                let kept =
                    kept.map(|(found, _)| match moved.get(&(found.segment, found.entry.lsn)) {
                        Some((segment, entry)) => IndexEntry { segment: *segment, entry: *entry },
                        None => *found,
                    });
                writer.push(key, &kept.collect::<Vec<_>>())
            })?;
            let gone = state.layers_of(*timeline);
            changes.extend(gone.iter().map(|layer| Change::LayerDropped(layer.layer)));
            changes.push(Change::LayerAdded(writer.finish()?));
        }
        Ok(changes)
    }

    /// Layers that the item has; for tests and figures.
    pub fn layers(&self) -> Vec<LayerId> {
        self.reader.state().layers.keys().copied().collect()
    }
}

/// From the first LSN that a timeline's layers cover to the last.
fn reach(state: &ItemState, timeline: TimelineId) -> Option<(Lsn, Lsn)> {
    let layers = state.layers_of(timeline);
    Some((layers.first()?.first, layers.last()?.last))
}
