//! Making recovery points: cut, send what changed, mark, wait for the store's commit, let go.

use super::{
    Goes, SourceError, SourceWork, SourceWorker,
    ahead::Why,
    audit::Frozen,
    copy::{Uncommitted, applied, changed, seal},
    ladder::Barren,
};
use crate::roles::host::Host;
use leeward_capture::{Cut, CutEnd, PassInput, PassKind, Retry};
use leeward_model::{
    DiskEntry, MachineSpec, MachineState, Marker, PointId, PointKind, Position, UnixMillis,
};
use leeward_wire::{
    data::Commit,
    message::{CapturePhase, CycleFigures, ServerStamp},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// How often a guest is looked at that may switch itself off: by its own doing, or for a shutdown
/// that was cancelled.
pub(super) const OFF_LOOK: Duration = Duration::from_millis(250);
/// A link is not called slow for a point that took less, however short the interval is.
const SLOW_MIN: Duration = Duration::from_secs(5);
/// Cycles shown on the board.
const CYCLES_SHOWN: usize = 10;

/// When a cut was made, by every clock that wants to know.
pub(super) struct CutTime {
    pub(super) wall: UnixMillis,
    pub(super) server: Option<ServerStamp>,
    pub(super) begun: Instant,
}

impl CutTime {
    /// Read before the cut: a point is never shown newer than it is.
    pub(super) fn now(host: &Host, goes: Goes) -> CutTime {
        let server = match goes {
            Goes::Out => host.clock.at(Instant::now()),
            // What an old machine left is of no use for an RPO, whenever it is sealed.
            Goes::Within => None,
        };
        CutTime { wall: host.wall.now(), server, begun: Instant::now() }
    }
}

/// The marker of a new point. The description of the machine is as old as the session; a disk may
/// have grown since.
pub(super) fn marker_of(
    spec: &MachineSpec,
    disks: &[DiskEntry],
    kind: PointKind,
    cut_at: UnixMillis,
) -> Marker {
    let point = PointId::from(uuid::Uuid::new_v4());
    let mut machine = spec.clone();
    for disk in &mut machine.disks {
        let at_cut = disks.iter().find(|entry| entry.number == disk.number);
        disk.size = at_cut.map_or(disk.size, |entry| entry.size);
    }
    Marker { point, kind, cut_at, disks: disks.to_vec(), machine }
}

impl SourceWorker {
    /// Makes points at the policy's interval until the duty changes or something fails.
    pub(super) async fn points(
        &mut self,
        work: &SourceWork,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<(), SourceError> {
        let interval = Duration::from_millis(work.duty.point_interval_ms);
        loop {
            if changed(work, changes) {
                return Err(SourceError::Changed);
            }
            // The cut that ends a comparison has read everything already.
            if !self.comparing && !self.map_is_older && self.exceeds(work).await? {
                return Ok(());
            }
            match self.cycle(work, PointKind::CrashConsistent).await {
                Ok(_) => {}
                Err(SourceError::Capture(error)) if error.retry() == Retry::LivePass => {
                    // What was sent of the broken cut and not committed must never be: the hash
                    // files do not have it, so a block that was changed back meanwhile would be
                    // taken for unchanged. A new session drops it.
                    tracing::info!(item = %self.item, "the snapshot broke; reading the live disks");
                    (self.open, self.live_first) = (None, true);
                    return Ok(());
                }
                Err(error) => return self.lost(work, error).await,
            }
            self.caught_up(work)?;
            self.comparing = false;
            self.pace.succeeded();
            self.barren = Barren::default();
            let last = self.open.as_ref().and_then(|open| open.last_cut);
            let slow = interval.max(SLOW_MIN);
            if last.is_some_and(|last| last.elapsed() > slow)
                && (self.go_ahead(work, Why::Slow).await || self.open.is_none())
            {
                return Ok(());
            }
            let next = last.unwrap_or_else(Instant::now) + interval;
            while Instant::now() < next {
                if self.went_off(work).await? {
                    return Ok(());
                }
                let wake = next.min(Instant::now() + OFF_LOOK);
                let open = self.open.as_mut().expect("a cycle leaves the session open");
                tokio::select! {
                    () = tokio::time::sleep_until(wake) => {}
                    _ = changes.changed() => return Err(SourceError::Changed),
                    error = open.link.ended() => return self.lost(work, error.into()).await,
                }
            }
        }
    }

    /// Goes on without the store when it was lost, and if that is possible.
    async fn lost(&mut self, work: &SourceWork, error: SourceError) -> Result<(), SourceError> {
        if error.lets_wait() && self.go_ahead(work, Why::Away).await {
            let problem = error.problem(&self.host, work);
            self.show(|seen| seen.problem = Some(problem));
            return Ok(());
        }
        Err(error)
    }

    /// Whether the machine or its guest has just gone off.
    pub(super) async fn went_off(&mut self, work: &SourceWork) -> Result<bool, SourceError> {
        let state = self.host.fabric.machine_state(&Self::machine(work)).await?;
        match self.asked_off {
            // For a shutdown that was cancelled: whoever comes next starts it again.
            Some((_, until)) if Instant::now() < until => Ok(state != MachineState::Running),
            _ => {
                self.asked_off = None;
                Ok(state == MachineState::Off || self.guest_went_off(work, state).await?)
            }
        }
    }

    /// After a point the change map reaches back to it, and a resync that was asked for is done.
    pub(super) fn caught_up(&mut self, work: &SourceWork) -> Result<(), SourceError> {
        if let Some(open) = &mut self.open {
            open.mapped = true;
        }
        self.show(|seen| {
            seen.phase = CapturePhase::Delta;
            (seen.resync_reason, seen.problem) = (None, None);
        });
        if work.duty.resync > self.state.resync_done {
            self.state.resync_done = work.duty.resync;
            self.state.store(&self.host.item_folder(self.item))?;
            self.show(|seen| seen.resync_done = work.duty.resync);
        }
        Ok(())
    }

    /// Makes one recovery point.
    pub(super) async fn cycle(
        &mut self,
        work: &SourceWork,
        kind: PointKind,
    ) -> Result<(PointId, Position), SourceError> {
        let open = self.open.as_mut().expect("a cycle needs an open session");
        let time = CutTime::now(&self.host, open.goes);
        open.last_cut = Some(time.begun);
        let cut = open.source.cut().await?;
        let (pause, dirty_bytes) = (cut.pause, cut.dirty_bytes);
        let (reader, disks) = (Arc::clone(&cut.reader), open.source.disks());
        let frozen = Frozen { reader, disks };
        let result = self.send_cut(work, kind, cut, &time).await;
        let open = self.open.as_mut().expect("only the caller closes the session");
        let (point, position, sent_bytes) = match result {
            Ok(done) => done,
            Err(error) => {
                drop(frozen);
                if !error.is_of_link() {
                    // Else the store may have committed it, and that is not to be forgotten.
                    open.hashes.abandon();
                }
                // What it says is lost beside the first error; the next attach closes it anyway.
                let _ = open.source.close_cut(CutEnd::Abandoned).await;
                return Err(error);
            }
        };
        let figures = CycleFigures {
            pause_ms: pause.as_secs_f64() * 1e3,
            cycle_ms: time.begun.elapsed().as_secs_f64() * 1e3,
            dirty_bytes,
            sent_bytes,
        };
        let audited = match kind == PointKind::CrashConsistent && self.may_audit(work, time.begun) {
            true => self.audit_part(work, &frozen).await,
            false => Ok(()),
        };
        // The point is made, whatever the audit met.
        drop(frozen);
        let open = self.open.as_mut().expect("only the caller closes the session");
        open.source.close_cut(CutEnd::Committed(position)).await?;
        self.map_is_older = false;
        audited?;
        if self.open.as_ref().is_some_and(|open| open.goes == Goes::Within) {
            return Ok((point, position));
        }
        self.needed = None;
        let sent = self.state.sent_bytes;
        self.show(|seen| {
            seen.cycles.push(figures);
            let extra = seen.cycles.len().saturating_sub(CYCLES_SHOWN);
            seen.cycles.drain(..extra);
            seen.sent_bytes = sent;
        });
        Ok((point, position))
    }

    async fn send_cut(
        &mut self,
        work: &SourceWork,
        kind: PointKind,
        cut: Cut,
        time: &CutTime,
    ) -> Result<(PointId, Position, u64), SourceError> {
        let open = self.open.as_mut().expect("a cut needs an open session");
        let disks = open.source.disks();
        let input = PassInput {
            reader: cut.reader,
            disks: disks.clone(),
            hashes: open.hashes.clone(),
            hasher: open.link.hasher.clone(),
            kind: PassKind::Delta,
            workers: self.host.sealing.workers.clone(),
            cancel: CancellationToken::new(),
        };
        let mut pass = self.host.sealing.start(input, Arc::new(|_| {}));
        let before = self.state.sent_bytes;
        let mut uncommitted = Uncommitted::nothing();
        loop {
            let batch = match pass.next().await {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                // The differ wraps what the machine said: the caller decides by it.
                Err(leeward_capture::PassError::Capture(error)) => return Err(error.into()),
                Err(error) => return Err(error.into()),
            };
            let found = batch.found.len();
            let bytes = self.send_found(batch.found).await?;
            if uncommitted.add(found, bytes) {
                // A long delta that is interrupted goes on from there; the point comes at its end.
                self.commit_progress(false).await?;
                uncommitted = Uncommitted::nothing();
            }
        }
        let open = self.open.as_mut().expect("sending leaves the session open");
        let marker = marker_of(&open.spec, &disks, kind, time.wall);
        let point = marker.point;
        let timeline = work.duty.branch.timeline;
        let next = Position { timeline, lsn: open.link.next_lsn() };
        seal(&open.hashes, next, &disks).await?;
        let lsn = open.link.send_marker(&marker).await?;
        let commit =
            Commit { lsn, point: true, cut_server: time.server.clone(), final_progress: false };
        let position = open.link.commit(commit).await?;
        open.link.newest_point = Some((point, position));
        applied(&open.hashes, position).await?;
        Ok((point, position, self.state.sent_bytes - before))
    }
}
