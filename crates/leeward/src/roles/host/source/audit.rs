//! The comparison of a running machine with its replica that nobody asked for: a part at a time,
//! for ever. It reads the frozen view of a cut whose point the store has just committed, and asks
//! the store for the hashes of exactly that point. So whatever the guest writes meanwhile is in
//! neither, and a difference is one that should not be.
//!
//! What differs is sent again at once, whole, as the beginning of the next point's delta. Nothing
//! is decided here about a replica that differs a lot: that is a resync.

use super::{Goes, SourceError, SourceWork, SourceWorker};
use crate::{
    audit_pace::Allowance,
    roles::host::notes,
    sealing::{Differing, KeyedHasher},
};
use leeward_capture::{DiskReader, Found, Workers, audit_extents};
use leeward_model::{
    Code, DiskEntry, DiskNumber, EXTENT_BYTES, ExtentHash, ExtentNumber, HostId, Problem,
    TimelineId,
};
use leeward_wire::{
    audit::{AuditSeen, EXTENT_UNREADABLE},
    data::HashesRequest,
    message::{HostNote, NoteKind, SourceDuty, SourceRun},
    seal::QueueDepth,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The most that is compared at one cut, in bytes: the store is asked for its hashes at once.
const SLICE_BYTES_MAX: u64 = 128 << 20;
/// Extents that are read at a time.
const READ_EXTENTS: u32 = 16;
/// A cut is kept open for this long at most: its scratch space is bounded, and the next is due.
const SLICE_TIME_MAX: Duration = Duration::from_millis(500);
/// Between two parts at least: each costs the store a look at its index.
const EVERY: Duration = Duration::from_secs(4);
/// Extents that one part sends again at most, 4 MiB. More wait for the next point.
const REPAIRS_MAX: usize = 64;
/// How often the state is kept on disk in the middle of a round.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// Where the audit is, kept over restarts: lost, a round begins anew.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditState {
    /// The replica that it is about: another one is another audit.
    replica: Option<(HostId, TimelineId)>,
    /// The next place.
    disk: u16,
    extent: u64,
    /// Whether the round that is under way found something.
    found: bool,
    /// What is shown.
    pub(super) seen: AuditSeen,
}

/// How much may be read, and when the last part and the last writing of the state were.
#[derive(Default)]
pub(super) struct AuditRun {
    allowance: Allowance,
    last: Option<Instant>,
    kept: Option<Instant>,
}

/// The machine at a cut whose point is committed.
pub(super) struct Frozen {
    pub(super) reader: Arc<dyn DiskReader>,
    pub(super) disks: Vec<DiskEntry>,
}

/// What is to be compared next.
struct Part {
    disk: DiskEntry,
    first: ExtentNumber,
    count: u32,
}

impl Part {
    fn len(&self) -> u64 {
        let wanted = u64::from(self.count) * EXTENT_BYTES;
        wanted.min(self.disk.size.saturating_sub(self.first.offset()))
    }
}

/// What reads and hashes.
struct Eyes<'a> {
    frozen: &'a Frozen,
    hasher: Arc<KeyedHasher>,
    workers: Workers,
}

impl Eyes<'_> {
    /// Reads a few extents and compares them; none when they cannot be read at this cut any more.
    async fn compare(
        &self,
        (disk, first): (&DiskEntry, ExtentNumber),
        leaves: &[ExtentHash],
    ) -> Option<Vec<Found>> {
        let (number, from) = (disk.number, first.offset());
        let len = (leaves.len() as u64 * EXTENT_BYTES).min(disk.size.checked_sub(from)?);
        let content = match self.frozen.reader.read(number, from, len).await {
            Ok(content) if content.len() as u64 == len => content,
            Ok(_) => return None,
            Err(error) => {
                tracing::debug!(%error, "the audit of this cut ends here");
                return None;
            }
        };
        let (leaves, hasher) = (leaves.to_vec(), Arc::clone(&self.hasher));
        let work = move || audit_extents((number, first), &content, &leaves, &*hasher);
        self.workers.run(work).await
    }
}

impl SourceWorker {
    /// Whether a part may be compared at this cut. Not while a job wants something of the machine,
    /// nor before a comparison of everything is through, nor when points take half of their
    /// interval already.
    pub(super) fn may_audit(&self, work: &SourceWork, begun: Instant) -> bool {
        let goes_out = self.open.as_ref().is_some_and(|open| open.goes == Goes::Out && open.mapped);
        let replicates = matches!(work.duty.run, SourceRun::Replicate { .. });
        let asked = work.duty.resync > self.state.resync_done || self.needed.is_some();
        let interval = Duration::from_millis(work.duty.point_interval_ms);
        goes_out
            && replicates
            && !self.comparing
            && !asked
            && self.host.audit.bytes_per_second > 0
            && begun.elapsed() < interval / 2
            && self.audit.last.is_none_or(|last| last.elapsed() >= EVERY)
            && self.is_still(work)
    }

    /// Whether the config server wants nothing else by now.
    fn is_still(&self, work: &SourceWork) -> bool {
        let allowed = work.duty.resync_allowed;
        self.host.source_duty(self.item).is_none_or(|now| {
            // Whether a comparison may begin is nothing to an audit.
            SourceDuty { resync_allowed: allowed, ..now } == work.duty
        })
    }

    /// Compares a part of the machine, and sends again what differs.
    ///
    /// # Errors
    /// Those of the store's end and of the hash files. That the machine cannot be read here only
    /// ends the part: the point is made.
    pub(super) async fn audit_part(
        &mut self,
        work: &SourceWork,
        frozen: &Frozen,
    ) -> Result<(), SourceError> {
        let passed = self.audit.last.map_or(EVERY, |last| last.elapsed());
        self.audit.last = Some(Instant::now());
        let allowed = self.audit.allowance.grow(self.host.audit, passed, SLICE_BYTES_MAX);
        self.audit_begin(work, &frozen.disks);
        let until = Instant::now() + SLICE_TIME_MAX;
        let mut room = REPAIRS_MAX;
        let mut repaired = self.repair_damaged(work, frozen, &mut room).await?;
        let mut sent = repaired.len();
        let mut left = allowed.max(EXTENT_BYTES);
        while left > 0 && room > 0 && Instant::now() < until && self.is_still(work) {
            let Some(part) = self.next_part(&frozen.disks, left) else {
                self.round_ends(work);
                break;
            };
            let (done, found) = self.compare(frozen, &part, until, &mut room).await?;
            let (unreadable, differing): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(_, leaf)| *leaf == EXTENT_UNREADABLE);
            // The committed point is not repaired by what was sent just now: the next one is.
            for (found, _) in unreadable {
                if repaired.insert((found.change.disk, found.change.extent)) {
                    self.repair(work, &part.disk, found).await?;
                    sent += 1;
                }
            }
            let differing = differing.into_iter().map(|(found, _)| found).collect();
            sent += self.send_again(work, differing).await?;
            let bytes = (u64::from(done) * EXTENT_BYTES).min(part.len());
            self.audit.allowance.spend(bytes);
            left = left.saturating_sub(bytes);
            let state = &mut self.state.audit;
            state.extent = u64::from(part.first.0) + u64::from(done);
            state.seen.done_bytes += bytes;
            if done < part.count {
                break;
            }
        }
        if sent > 0 {
            self.commit_progress(false).await?;
        }
        self.audit_shown()
    }

    /// Takes up the round, or begins one for another replica or other disks.
    fn audit_begin(&mut self, work: &SourceWork, disks: &[DiskEntry]) {
        let replica = Some((work.duty.target_host, work.duty.branch.timeline));
        if self.state.audit.replica != replica {
            self.state.audit = AuditState { replica, ..AuditState::default() };
        }
        self.state.audit.seen.total_bytes = disks.iter().map(|disk| disk.size).sum();
    }

    /// The next part of at most `bytes`, by disk numbers; none when the round is through.
    fn next_part(&mut self, disks: &[DiskEntry], bytes: u64) -> Option<Part> {
        let mut disks: Vec<&DiskEntry> = disks.iter().collect();
        disks.sort_by_key(|disk| disk.number);
        let state = &mut self.state.audit;
        for disk in disks {
            if disk.number.0 < state.disk {
                continue;
            }
            if disk.number.0 > state.disk {
                (state.disk, state.extent) = (disk.number.0, 0);
            }
            let extents = disk.size.div_ceil(EXTENT_BYTES);
            if state.extent < extents {
                let count = bytes.div_ceil(EXTENT_BYTES).min(extents - state.extent);
                let first = ExtentNumber(u32::try_from(state.extent).ok()?);
                return Some(Part { disk: disk.clone(), first, count: count as u32 });
            }
        }
        None
    }

    /// The round is through: what an earlier one found is over when this one found nothing.
    fn round_ends(&mut self, work: &SourceWork) {
        let state = &mut self.state.audit;
        state.seen.round_ended_at = Some(self.host.wall.now());
        state.seen.done_bytes = 0;
        (state.disk, state.extent) = (0, 0);
        if !std::mem::take(&mut state.found) && state.seen.problem.take().is_some() {
            let name = &work.duty.machine;
            let text = format!("a whole comparison of {name} with its replica found nothing more");
            self.note(work, NoteKind::AuditRepaired, text);
            self.audit.kept = None;
        }
    }

    /// Compares a part: how many of its extents were looked at, and what differs from which leaf.
    async fn compare(
        &mut self,
        frozen: &Frozen,
        part: &Part,
        until: Instant,
        room: &mut usize,
    ) -> Result<(u32, Vec<(Found, ExtentHash)>), SourceError> {
        let open = self.open.as_mut().expect("an audit needs an open session");
        let (disk, hasher) = (part.disk.number, Arc::clone(&open.link.hasher));
        let eyes = Eyes { frozen, hasher, workers: self.host.sealing.workers.clone() };
        let request = HashesRequest { disk, first_extent: part.first, count: part.count };
        let leaves = open.link.hashes(request).await?;
        let (mut done, mut found) = (0_u32, Vec::new());
        for leaves in leaves.chunks(READ_EXTENTS as usize) {
            let first = ExtentNumber(part.first.0 + done);
            let place = (&part.disk, first);
            let Some(more) = eyes.compare(place, leaves).await else { break };
            *room = room.saturating_sub(more.len());
            found.extend(more.into_iter().map(|found| {
                let leaf = leaves[(found.change.extent.0 - first.0) as usize];
                (found, leaf)
            }));
            done += leaves.len() as u32;
            if *room == 0 || Instant::now() >= until {
                break;
            }
        }
        Ok((done, found))
    }

    /// Sends the extents again that the store says it cannot read, and says which these were.
    async fn repair_damaged(
        &mut self,
        work: &SourceWork,
        frozen: &Frozen,
        room: &mut usize,
    ) -> Result<BTreeSet<(DiskNumber, ExtentNumber)>, SourceError> {
        let open = self.open.as_mut().expect("an audit needs an open session");
        let (hasher, workers) = (Arc::clone(&open.link.hasher), self.host.sealing.workers.clone());
        let eyes = Eyes { frozen, hasher, workers };
        let damaged = open.link.damaged().await?;
        let mut repaired = BTreeSet::new();
        for (number, extent) in damaged.into_iter().take(*room) {
            let Some(disk) = frozen.disks.iter().find(|disk| disk.number == number) else {
                continue;
            };
            let place = (disk, extent);
            let Some(found) = eyes.compare(place, &[EXTENT_UNREADABLE]).await else { break };
            for found in found {
                self.repair(work, disk, found).await?;
            }
            *room -= 1;
            repaired.insert((number, extent));
        }
        Ok(repaired)
    }

    /// Sends an extent again whose record in the store is damaged. The store's own audit tells of
    /// the damage (LW-0402): the machine's bytes are what they should be.
    async fn repair(
        &mut self,
        work: &SourceWork,
        disk: &DiskEntry,
        found: Found,
    ) -> Result<(), SourceError> {
        let extent = found.change.extent;
        self.send_found(ready(self, vec![found])).await?;
        tracing::warn!(
            item = %self.item,
            "extent {extent} of disk {} of {} cannot be read in its replica; it is sent again from \
             the machine",
            disk.id, work.duty.machine
        );
        Ok(())
    }

    /// Sends what differs again, and says so.
    async fn send_again(
        &mut self,
        work: &SourceWork,
        found: Vec<Found>,
    ) -> Result<usize, SourceError> {
        let Some(first) = found.first() else { return Ok(0) };
        let (disk, extent, count) = (first.change.disk, first.change.extent, found.len());
        self.send_found(ready(self, found)).await?;
        let what = format!(
            "{count} extents of {} differed from its replica although nothing was written there, \
             the first is extent {extent} of disk {disk}",
            work.duty.machine
        );
        let problem: Problem = Code::REPLICA_DIFFERED.problem(what);
        tracing::warn!(item = %self.item, code = %problem.code, "{}", problem.what);
        let text = format!("{}: {}; {}", problem.code, problem.what, problem.now);
        // Once a round: more of the same is counted.
        if !std::mem::replace(&mut self.state.audit.found, true) {
            self.note(work, NoteKind::AuditFound, text);
        }
        let state = &mut self.state.audit;
        state.seen.differences += count as u64;
        state.seen.problem = Some(problem);
        self.audit.kept = None;
        Ok(count)
    }

    fn note(&self, work: &SourceWork, kind: NoteKind, text: String) {
        let note = HostNote {
            id: uuid::Uuid::new_v4(),
            at: self.host.wall.now(),
            kind,
            item: Some(self.item),
            object: work.duty.machine.clone(),
            text,
        };
        if let Err(error) = notes::note_add(&self.host.folder, &note) {
            tracing::warn!(item = %self.item, %error, "could not note what the audit found");
        }
    }

    /// Puts the audit on the board, and now and then on disk.
    fn audit_shown(&mut self) -> Result<(), SourceError> {
        let seen = self.state.audit.seen.clone();
        self.show(|board| board.audit = Some(seen));
        if self.audit.kept.is_none_or(|kept| kept.elapsed() >= KEEP_EVERY) {
            self.state.store(&self.host.item_folder(self.item))?;
            self.audit.kept = Some(Instant::now());
        }
        Ok(())
    }
}

/// Packs what differs, whole.
fn ready(worker: &SourceWorker, found: Vec<Found>) -> Vec<Differing> {
    let open = worker.open.as_ref().expect("an audit needs an open session");
    let sealing = &worker.host.sealing;
    let pack = |found| sealing.ready(found, None, &*open.link.hasher, QueueDepth::default());
    found.into_iter().map(|found| Differing::Ready(pack(found))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_state_from_before_there_was_one_is_at_the_beginning() {
        let state: AuditState = serde_json::from_str("{}").unwrap();
        assert_eq!(state, AuditState::default());
        let disk = DiskEntry {
            number: DiskNumber(0),
            id: "a".into(),
            serial: String::new(),
            size: EXTENT_BYTES + 4096,
            block_bytes: 512,
        };
        let part = Part { disk, first: ExtentNumber(1), count: 1 };
        assert_eq!(part.len(), 4096);
    }
}
