//! The order of work of a pass over one disk: runs of extents to read, runs that are zero.
//!
//! No reading and no hashing; it only asks the hash files where the target has data.

use super::PassKind;
use crate::{ahead::KnownExtents, hash_file::HashError, source::ByteRange};
use leeward_model::{DiskEntry, DiskNumber, EXTENT_BYTES, ExtentNumber};
use std::sync::Arc;

// 1 MiB a read: larger reads gain nothing on any disk we know.
const EXTENTS_PER_READ: u64 = 16;
// Planned at a time: 64 MiB of disk, so that changing threads costs nothing next to it.
const WORKS_PER_STEP: usize = 64;

/// Where the content of a run comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// From the reader.
    Read,
    /// It is zero and is not read.
    Zero,
}

/// Consecutive extents of one disk, at most 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) disk: DiskNumber,
    pub(super) first: ExtentNumber,
    pub(super) count: u32,
    pub(super) content: Content,
}

/// Half-open run of extent numbers.
type Run = (u64, u64);

/// What is left to do on one disk.
pub(super) struct Plan {
    disk: DiskNumber,
    size: u64,
    hashes: Arc<dyn KnownExtents>,
    kind: PassKind,
    /// To be read: ascending, disjoint, not touching.
    runs: Vec<Run>,
    next_run: usize,
    /// The first extent that no work covers yet.
    at: u64,
    /// The last search of the hash file: from where, and what it found. Commits during a pass
    /// only change records of extents that the plan has left behind.
    searched: Option<(u64, Option<u64>)>,
}

impl Plan {
    /// Whole extents around `ranges`; in a delta also the disk's end where it moved since the
    /// last point: nobody tracked what lies beyond an old end, or what a shrunk last extent lost.
    pub(super) fn new(
        disk: &DiskEntry,
        ranges: &[ByteRange],
        hashes: Arc<dyn KnownExtents>,
        kind: PassKind,
    ) -> Plan {
        let extents = disk.size.div_ceil(EXTENT_BYTES);
        let cover = |range: &ByteRange| {
            let end = range.end().div_ceil(EXTENT_BYTES).min(extents);
            (range.offset / EXTENT_BYTES, end)
        };
        let mut runs: Vec<Run> = ranges.iter().filter(|range| range.len > 0).map(cover).collect();
        let known = hashes.size(disk.number).unwrap_or(0);
        if kind == PassKind::Delta && known != disk.size {
            runs.push((known.min(disk.size) / EXTENT_BYTES, extents));
        }
        let runs = merged(runs);
        Plan {
            disk: disk.number,
            size: disk.size,
            hashes,
            kind,
            runs,
            next_run: 0,
            at: 0,
            searched: None,
        }
    }

    /// Size of the disk in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes to be read, in whole extents.
    pub(super) fn bytes(&self) -> u64 {
        self.runs.iter().map(|(from, to)| (to - from) * EXTENT_BYTES).sum()
    }

    /// The next runs in ascending order; none when the disk is done.
    pub(super) fn next_works(&mut self) -> Result<Vec<Work>, HashError> {
        let mut works = Vec::with_capacity(WORKS_PER_STEP);
        while works.len() < WORKS_PER_STEP {
            let Some(work) = self.next_work()? else { break };
            works.push(work);
        }
        Ok(works)
    }

    fn next_work(&mut self) -> Result<Option<Work>, HashError> {
        let run = self.runs.get(self.next_run).copied();
        if let Some(extent) = self.next_zeroed(run.map(|(from, _)| from))? {
            self.at = extent + 1;
            return Ok(Some(self.work(extent, 1, Content::Zero)));
        }
        let Some((from, to)) = run else { return Ok(None) };
        let first = self.at.max(from);
        let count = (to - first).min(EXTENTS_PER_READ);
        self.at = first + count;
        if self.at == to {
            self.next_run += 1;
        }
        Ok(Some(self.work(first, count, Content::Read)))
    }

    /// The next extent before `until` that is zero now and is not at the target: outside the
    /// ranges of a full pass, or beyond the end of a shrunk disk.
    fn next_zeroed(&mut self, until: Option<u64>) -> Result<Option<u64>, HashError> {
        let from = match self.kind {
            PassKind::Full => self.at,
            PassKind::Delta => self.at.max(self.size.div_ceil(EXTENT_BYTES)),
        };
        if until.is_some_and(|until| from >= until) {
            return Ok(None);
        }
        let found = match self.searched {
            Some((start, found)) if start <= from && found.is_none_or(|at| at >= from) => found,
            _ => {
                let Ok(first) = u32::try_from(from) else { return Ok(None) };
                let found = self.hashes.next_nonzero(self.disk, ExtentNumber(first))?;
                found.map(|extent| u64::from(extent.0))
            }
        };
        self.searched = Some((from, found));
        Ok(found.filter(|extent| until.is_none_or(|until| *extent < until)))
    }

    fn work(&self, first: u64, count: u64, content: Content) -> Work {
        let first = ExtentNumber(u32::try_from(first).expect("disks end below 2^32 extents"));
        let count = u32::try_from(count).expect("at most 16");
        Work { disk: self.disk, first, count, content }
    }
}

fn merged(mut runs: Vec<Run>) -> Vec<Run> {
    runs.retain(|(from, to)| from < to);
    runs.sort_unstable();
    let mut merged: Vec<Run> = Vec::with_capacity(runs.len());
    for (from, to) in runs {
        match merged.last_mut() {
            Some((_, end)) if from <= *end => *end = to.max(*end),
            _ => merged.push((from, to)),
        }
    }
    merged
}
