//! An audit in small parts, for a store that is in use: a segment at a time, at whatever rate the
//! caller likes. Other than [`super::Audit`] it says nothing of points; it says which extents of
//! the newest place cannot be read, because those can be had again from the source.

use super::{Damage, segment};
use crate::{ItemReader, StoreError, View, view::same_extent};
use leeward_model::{DiskNumber, ExtentNumber, SegmentId};
use leeward_wire::record::RecordKind;
use std::collections::BTreeSet;

/// What came of reading one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes read.
    pub bytes: u64,
    /// What is bad in it; its `points` are not looked for.
    pub damages: Vec<Damage>,
    /// Extents that cannot be read at the place that was asked for, ascending.
    pub unreadable: Vec<(DiskNumber, ExtentNumber)>,
}

impl ItemReader {
    /// The committed segments and their bytes, ascending by id: the parts of a round.
    pub fn scrub_parts(&self) -> Vec<(SegmentId, u64)> {
        let ranges = self.state().segments.values();
        let mut parts: Vec<_> = ranges.map(|range| (range.segment, range.bytes)).collect();
        parts.sort_unstable();
        parts
    }

    /// Reads and proves every record of `segment`, and every extent at `head` whose newest version
    /// lies in it. A segment that was let go meanwhile is no damage: it is not there any more.
    ///
    /// # Errors
    /// [`StoreError::Storage`] when the store cannot be read at all.
    pub fn scrub_segment(
        &mut self,
        segment: SegmentId,
        head: Option<&View>,
    ) -> Result<Scrubbed, StoreError> {
        let range = |reader: &ItemReader| {
            reader.state().segments.values().find(|range| range.segment == segment).cloned()
        };
        let Some(known) = range(self) else { return Ok(Scrubbed::default()) };
        let mut extents = BTreeSet::new();
        let audited = segment::audit(&self.folder, &known, &mut |entry| {
            if entry.kind == RecordKind::Change {
                extents.insert((entry.disk, entry.extent));
            }
        })?;
        let mut found = Scrubbed { bytes: audited.bytes, ..Scrubbed::default() };
        if !audited.damages.is_empty() {
            self.refresh()?;
            if range(self).is_none() {
                return Ok(found);
            }
            found.damages = audited.damages;
            // Which records were there is not known any more: whoever needs the segment is tried.
            if let Some(head) = head {
                extents.extend(head.extents_in(segment)?);
            }
        }
        let Some(head) = head else { return Ok(found) };
        for (disk, extent) in extents {
            let segments = head.segments_of(disk, extent)?;
            let newest = segments.first() == Some(&segment);
            let is_needed = newest || (!found.damages.is_empty() && segments.contains(&segment));
            if is_needed && !head.is_readable(disk, extent)? {
                found.unreadable.push((disk, extent));
            }
        }
        Ok(found)
    }
}

impl View {
    /// Whether an extent can be read and is what the source read: by the store's bytes, not by
    /// what was read before.
    ///
    /// # Errors
    /// [`StoreError::Storage`], and those of a place that is not kept any more.
    pub fn is_readable(&self, disk: DiskNumber, extent: ExtentNumber) -> Result<bool, StoreError> {
        match self.reread_hash(disk, extent) {
            Ok(_) => Ok(true),
            Err(StoreError::Damaged { .. }) => Ok(false),
            // With its manifest and without its blob: it is lost.
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Extents that are put together from something in `segment`.
    fn extents_in(
        &self,
        segment: SegmentId,
    ) -> Result<Vec<(DiskNumber, ExtentNumber)>, StoreError> {
        let mut found = Vec::new();
        for key in self.region_keys() {
            let region = self.region(key)?;
            let of_extents = region.chunk_by(same_extent);
            let needing = of_extents.filter(|versions| {
                versions.iter().any(|version| self.record_key(version).0 == segment)
            });
            found.extend(needing.map(|versions| (versions[0].disk, versions[0].extent)));
        }
        Ok(found)
    }
}
