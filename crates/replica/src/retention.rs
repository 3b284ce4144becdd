//! What a writer lets go: points and kept work that are too old, and segments that nothing needs.
//!
//! Nothing listed, pinned or running from the store loses a byte: see `collect` for what is needed.

#[cfg(feature = "testing")]
use crate::Mutation;
use crate::{
    ItemReader, ItemStore, KeptRecord, PointRecord, StoreError,
    collect::Walk,
    evidence, kept,
    manifest::Change,
    thinning::{Candidate, CutClock, CutTime, Thinning, Worth, thinned_out},
};
use leeward_model::{
    PointId, PointKind, PointOrigin, SegmentId, TimelineId, UnixMillis, Verification,
};
use leeward_wire::segment::SEGMENT_HEADER_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// How long points are kept, and how close together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Points older than this go, in milliseconds since they were received.
    pub keep_ms: u64,
    /// How points are thinned out before that; none keeps all of them.
    pub thinning: Option<Thinning>,
    /// Until then, by the store's clock, no point goes at all.
    pub keep_until: Option<UnixMillis>,
}

/// An index of at most so many records is gone through whenever something was let go: 128 MiB.
const COLLECT_RECORDS_CHEAP: u64 = 4 << 20;
/// A larger one at most this often, in milliseconds: once an hour.
const COLLECT_EVERY_MS: i64 = 3_600_000;

/// What [`ItemStore::expire`] let go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Points that are no longer listed.
    pub points: Vec<PointId>,
    /// Kept work that is no longer listed; its files are the caller's to delete.
    pub kept: Vec<KeptRecord>,
    /// Segments that nothing needs any more; their blobs stay for [`crate::Upkeep::grace_ms`].
    pub segments: Vec<SegmentId>,
}

impl ItemStore {
    /// Lets points and kept work go that are older than `retention`, and deletes segments that
    /// nothing listed or pinned needs. The newest point and pinned ones stay whatever their age.
    ///
    /// Deletion follows only after the manifest that says so is durable.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a pin or a segment cannot be read: nothing more is deleted.
    pub fn expire(
        &mut self,
        now: UnixMillis,
        retention: &Retention,
    ) -> Result<Expired, StoreError> {
        self.check_stale()?;
        if retention.keep_until.is_some_and(|until| now < until) {
            return Ok(Expired::default());
        }
        let pins = self.reader.pins()?;
        let pinned: BTreeSet<PointId> = pins.iter().map(|pin| pin.point).collect();
        let points = self.reader.points_due(now, retention, &pinned)?;
        if !points.is_empty() {
            self.commit(points.iter().copied().map(Change::PointRemoved).collect(), now)?;
        }
        let folder = self.reader.folder.clone();
        let mut expired = Expired { points, ..Expired::default() };
        for record in self.reader.kept()? {
            if retention.is_over(record.received_at, now) && !pinned.contains(&record.id) {
                kept::delete(&folder, record.id)?;
                expired.kept.push(record);
            }
        }
        let forgotten = expired.kept.iter().map(|record| &record.id).chain(&expired.points);
        for point in forgotten {
            evidence::delete(&folder, *point)?;
        }
        self.merge_layers(now)?;
        let pins: BTreeSet<Uuid> = pins.iter().map(|pin| pin.id).collect();
        let unpinned = self.pins_seen.as_ref().is_none_or(|seen| !seen.is_subset(&pins));
        self.collect_due |= unpinned || !expired.points.is_empty() || !expired.kept.is_empty();
        if self.collect_due && self.may_collect(now) {
            expired.segments = self.collect(now)?;
        }
        self.pins_seen = Some(pins);
        self.delete_due(now)?;
        self.reader.log.trim(now)?;
        Ok(expired)
    }

    /// Whether going through the whole index is cheap, or was not done for long.
    fn may_collect(&self, now: UnixMillis) -> bool {
        let state = self.reader.state();
        let layered: u64 = state.layers.values().map(|layer| layer.records).sum();
        let rested = |at: UnixMillis| at.0.saturating_add(COLLECT_EVERY_MS) <= now.0;
        layered <= COLLECT_RECORDS_CHEAP || self.collected_at.is_none_or(rested)
    }

    /// Drops segments that no point, pin, kept work or written timeline needs.
    ///
    /// # Errors
    /// As [`Self::expire`].
    pub fn collect(&mut self, now: UnixMillis) -> Result<Vec<SegmentId>, StoreError> {
        self.check_stale()?;
        let retired = self.ended_branches()?;
        if !retired.is_empty() {
            self.commit(retired.into_iter().map(Change::BranchRetired).collect(), now)?;
        }
        // Pins are listed here, after the removal of points is durable: see `pins`.
        let tally = self.tally(now)?;
        let needed = |id: &SegmentId| tally.segments.contains_key(id);
        let all = self.reader.state().segments.keys().copied();
        let mut dropped: Vec<SegmentId> = all.filter(|id| !needed(id)).collect();
        #[cfg(feature = "testing")]
        if self.mutation == Some(Mutation::CollectTooMuch) {
            dropped = self.reader.state().segments.keys().copied().collect();
        }
        let busy = |id: &SegmentId| self.pending.iter().any(|open| open.header.segment == *id);
        dropped.retain(|id| !busy(id));
        let rewritten = self.rewrite(&tally, now)?;
        let mut bloated = self.bloated(&tally);
        bloated.extend(&rewritten.timelines);
        let mut changes: Vec<Change> =
            dropped.iter().copied().map(Change::SegmentDropped).collect();
        changes.extend(rewritten.changes(self));
        changes.extend(self.rebuild(&bloated, &rewritten.moved)?);
        if !changes.is_empty() {
            self.commit(changes, now)?;
        }
        dropped.extend(&rewritten.gone);
        (self.collect_due, self.collected_at) = (false, Some(now));
        self.delete_due(now)?;
        Ok(dropped)
    }

    /// Ends a timeline for good, as of a copy that is not gone on with: it takes nothing more, and
    /// what only its head needed is deleted, also what was never committed. Its points, their
    /// pins and kept work stay. Returns the committed segments that went; again it finishes what
    /// a crash left.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for an unknown timeline; as [`Self::expire`].
    pub fn retire_branch(
        &mut self,
        timeline: TimelineId,
        now: UnixMillis,
    ) -> Result<Vec<SegmentId>, StoreError> {
        self.check_stale()?;
        if !self.reader.state().retired.contains(&timeline) {
            self.commit(vec![Change::BranchRetired(timeline)], now)?;
        }
        let mut ended = Vec::new();
        self.pending.retain(|open| {
            let stays = open.header.timeline != timeline;
            if !stays {
                ended.push(open.header.segment);
            }
            stays
        });
        let folder = self.reader.folder.clone();
        for id in ended.iter().filter(|id| !self.reader.state().segments.contains_key(id)) {
            folder.blobs.delete(&folder.segment_path(*id))?;
        }
        self.collect(now)
    }

    /// Timelines that nobody can write or read at their heads any more: others were opened since,
    /// and no point, pin or kept work lies on them.
    fn ended_branches(&self) -> Result<Vec<TimelineId>, StoreError> {
        let state = self.reader.state();
        let mut needed: BTreeSet<TimelineId> =
            state.points.iter().map(|point| point.position.timeline).collect();
        needed.extend(self.reader.pins()?.iter().map(|pin| pin.position.timeline));
        needed.extend(self.reader.kept()?.iter().map(|record| record.position.timeline));
        needed.extend(self.pending.iter().map(|segment| segment.header.timeline));
        needed.extend(state.branches.last().map(|branch| branch.timeline));
        needed.extend(&state.retired);
        let all = state.branches.iter().map(|branch| branch.timeline);
        Ok(all.filter(|timeline| !needed.contains(timeline)).collect())
    }
}

impl Retention {
    /// Whether what was received at this time is too old.
    fn is_over(&self, received_at: UnixMillis, now: UnixMillis) -> bool {
        let keep = i64::try_from(self.keep_ms).unwrap_or(i64::MAX);
        received_at.0.saturating_add(keep) < now.0
    }
}

/// What a retention would let go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiring {
    /// Points that would not be listed any more, in the order of their commits.
    pub points: Vec<PointId>,
    /// Kept work that would not.
    pub kept: Vec<KeptRecord>,
    /// Segments that would go as a whole.
    pub segments: u64,
    /// Bytes of those, and of the records in the others that nothing would need any more: these
    /// become free when their segments are written anew.
    pub bytes: u64,
}

impl ItemReader {
    /// Says what [`ItemStore::expire`] would let go now. Changes nothing.
    ///
    /// # Errors
    /// As [`ItemStore::expire`].
    pub fn expiring(&self, now: UnixMillis, retention: &Retention) -> Result<Expiring, StoreError> {
        if retention.keep_until.is_some_and(|until| now < until) {
            return Ok(Expiring::default());
        }
        let pinned: BTreeSet<PointId> = self.pins()?.iter().map(|pin| pin.point).collect();
        let points = self.points_due(now, retention, &pinned)?;
        let mut kept = self.kept()?;
        kept.retain(|work| retention.is_over(work.received_at, now) && !pinned.contains(&work.id));
        let mut after = self.clone();
        after.log.forget_points(&points);
        let tally = Walk::of_item(&after)?.tally(&self.folder, after.state())?;
        let (mut segments, mut bytes) = (0, 0);
        for range in self.state().segments.values() {
            let live = tally.segments.get(&range.segment).map_or(0, |live| live.bytes);
            segments += u64::from(live == 0);
            let head = if live == 0 { 0 } else { SEGMENT_HEADER_BYTES as u64 };
            bytes += range.bytes - head - live;
        }
        Ok(Expiring { points, kept, segments, bytes })
    }

    /// The points that go now: those that are too old, then those that are thinned out.
    fn points_due(
        &self,
        now: UnixMillis,
        retention: &Retention,
        pinned: &BTreeSet<PointId>,
    ) -> Result<Vec<PointId>, StoreError> {
        let newest = self.newest_point().map(|point| point.id);
        let gone = self.state().points.iter().filter(|point| {
            retention.is_over(point.received_at, now)
                && !pinned.contains(&point.id)
                && Some(point.id) != newest
        });
        let mut points: Vec<PointId> = gone.map(|point| point.id).collect();
        if let Some(thinning) = &retention.thinning {
            points.extend(self.thinned_out(now, thinning, &points, pinned)?);
        }
        Ok(points)
    }

    /// The points that a history without `gone` does without. The newest point, the newest that
    /// is verified, pinned ones and named ones are exempt.
    fn thinned_out(
        &self,
        now: UnixMillis,
        thinning: &Thinning,
        gone: &[PointId],
        pinned: &BTreeSet<PointId>,
    ) -> Result<Vec<PointId>, StoreError> {
        let gone: BTreeSet<&PointId> = gone.iter().collect();
        let points = &self.state().points;
        let tested = evidence::of_all(&self.folder)?;
        let is_verified =
            |point: &&PointRecord| matches!(tested.get(&point.id), Some(Verification::Verified(_)));
        let newest = points.last().map(|point| point.id);
        let verified = points.iter().rev().find(is_verified).map(|point| point.id);
        let mut boots = BTreeMap::new();
        let candidate = |point: &PointRecord| Candidate {
            id: point.id,
            cut: cut_time(point, &mut boots),
            received_at: point.received_at,
            worth: worth(point, &tested),
            exempt: pinned.contains(&point.id)
                || point.origin != PointOrigin::Replicated
                || [newest, verified].contains(&Some(point.id)),
        };
        let left = points.iter().filter(|point| !gone.contains(&point.id));
        let candidates: Vec<Candidate> = left.map(candidate).collect();
        Ok(thinned_out(&candidates, now, thinning))
    }
}

/// When a point was cut, by a clock that is not its source's; `boots` numbers those of the server.
fn cut_time(point: &PointRecord, boots: &mut BTreeMap<String, u32>) -> CutTime {
    let Some(stamp) = &point.cut_server else {
        return CutTime { clock: CutClock::Store, at_ms: point.received_at.0 };
    };
    let next = boots.len() as u32;
    let boot = *boots.entry(stamp.boot.clone()).or_insert(next);
    let at_ms = i64::try_from(stamp.ms).unwrap_or(i64::MAX);
    CutTime { clock: CutClock::Server(boot), at_ms }
}

fn worth(point: &PointRecord, tested: &BTreeMap<PointId, Verification>) -> Worth {
    match (point.kind, tested.get(&point.id)) {
        (_, Some(Verification::Failed(_))) => Worth::Failed,
        (PointKind::Final | PointKind::ApplicationConsistent, _) => Worth::Consistent,
        (PointKind::CrashConsistent, Some(Verification::Verified(_))) => Worth::Verified,
        (PointKind::CrashConsistent, Some(Verification::Untested) | None) => Worth::Plain,
    }
}
