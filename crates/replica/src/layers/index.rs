//! The whole index of one timeline up to a place: its layers, and the footers of what no layer
//! has yet. Reads; decides nothing.

use super::{IndexEntry, Layer, RegionKey};
use crate::{
    StoreError,
    folder::ItemFolder,
    manifest::{ItemState, LayerRecord, SegmentRange},
    outline::Lists,
    segments::read_index,
};
use leeward_model::{LayerId, Lsn, Position, TimelineId};
use std::collections::BTreeSet;

/// See the module.
pub(crate) struct TimelineIndex {
    pub(crate) timeline: TimelineId,
    /// Nothing beyond this is known here.
    pub(crate) until: Lsn,
    layers: Vec<Layer>,
    /// Sorted by disk, extent and LSN.
    tail: Vec<IndexEntry>,
}

impl TimelineIndex {
    /// Opens the index up to `place`, without the layers in `without`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]; an error that [`super::layer_of`] knows goes away without that
    /// layer.
    pub(crate) fn open(
        folder: &ItemFolder,
        lists: &dyn Lists,
        place: Position,
        without: &BTreeSet<LayerId>,
    ) -> Result<TimelineIndex, StoreError> {
        let mut records = lists.small().layers_of(place.timeline);
        records.retain(|layer| layer.first <= place.lsn && !without.contains(&layer.layer));
        let mut ranges = Vec::new();
        for (first, last) in gaps(place, &records) {
            ranges.extend(lists.ranges_between(place.timeline, first, last)?);
        }
        TimelineIndex::of(folder, place.timeline, place.lsn, &records, ranges.iter())
    }

    /// Opens the index of these layers and ranges, up to `until`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn of<'a>(
        folder: &ItemFolder,
        timeline: TimelineId,
        until: Lsn,
        layers: &[LayerRecord],
        ranges: impl Iterator<Item = &'a SegmentRange>,
    ) -> Result<TimelineIndex, StoreError> {
        let layers = layers.iter().map(|record| Layer::open(folder, record));
        let layers = layers.collect::<Result<_, _>>()?;
        let mut tail = Vec::new();
        for range in ranges {
            let entries = read_index(folder, range)?.entries;
            let known = entries.into_iter().filter(|entry| entry.lsn <= until);
            tail.extend(known.map(|entry| IndexEntry { segment: range.segment, entry }));
        }
        tail.sort_by_key(|indexed| indexed.entry.sort_key());
        Ok(TimelineIndex { timeline, until, layers, tail })
    }

    /// The regions that have entries.
    pub(crate) fn regions(&self, out: &mut BTreeSet<RegionKey>) {
        out.extend(self.layers.iter().flat_map(Layer::regions));
        out.extend(self.tail.iter().map(IndexEntry::region));
    }

    /// A region's entries, by extent and LSN.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn load(
        &self,
        folder: &ItemFolder,
        key: RegionKey,
    ) -> Result<Vec<IndexEntry>, StoreError> {
        let begin = self.tail.partition_point(|entry| entry.region() < key);
        let end = self.tail.partition_point(|entry| entry.region() <= key);
        let mut entries = Vec::new();
        for layer in &self.layers {
            let more = layer.load(folder, key)?;
            if entries.is_empty() { entries = more } else { entries.extend(more) }
        }
        entries.extend_from_slice(&self.tail[begin..end]);
        // What a layer holds is sorted already, which the sort makes use of.
        entries.sort_by_key(|indexed| (indexed.entry.extent, indexed.entry.lsn));
        entries.retain(|indexed| indexed.entry.lsn <= self.until);
        Ok(entries)
    }
}

/// The ranges up to `place` that none of `layers` has, ascending; the layers are ascending too.
pub(crate) fn uncovered<'a>(
    state: &'a ItemState,
    place: Position,
    layers: &[LayerRecord],
) -> Vec<&'a SegmentRange> {
    let gaps = gaps(place, layers).into_iter();
    gaps.flat_map(|(first, last)| state.ranges(place.timeline, first, last)).collect()
}

/// The runs of LSNs up to `place` that none of `layers` has, ascending.
fn gaps(place: Position, layers: &[LayerRecord]) -> Vec<(Lsn, Lsn)> {
    let mut gaps = Vec::new();
    let mut from = Lsn(0);
    for layer in layers {
        if from < layer.first {
            gaps.push((from, Lsn(layer.first.0 - 1)));
        }
        from = layer.last.next();
    }
    if from <= place.lsn {
        gaps.push((from, place.lsn));
    }
    gaps
}
