//! One worker for each protected machine of this host: copies it, cuts recovery points, shuts it
//! down, fences it, as the item's duty says.
//!
//! Whatever fails, the worker drops its session and its capture and begins anew: the change map
//! in QEMU, the hash files and the store's newest position are enough to go on without a full
//! copy. A guest's write never waits for anything here.

mod copy;
mod cycle;
mod state;

use super::{
    Host,
    board::source_blank,
    data_link::{DataLink, LinkError},
    permits,
};
use leeward_capture::{
    Attached, CaptureError, ChangeSource, HashError, HashFiles, LiveRead, PassError,
};
use leeward_fabric::{FabricError, MachineRef, Shutdown};
use leeward_model::{
    Code, Epoch, ItemId, JobId, MachineSpec, MachineState, PointId, PointKind, Problem,
    StartPermit, VaultId,
};
use leeward_wire::message::{
    CapturePhase, DivergentNote, ShutdownOutcome, SourceDuty, SourceObserved, SourceRun,
};
use state::SourceState;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How long a worker waits before it tries again what failed.
const RETRY: Duration = Duration::from_secs(2);
/// How often a machine that is off is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Tries of the final delta after a shutdown before the failover goes on without it.
const FINAL_DELTA_TRIES: u32 = 3;

/// What the worker has to do.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceWork {
    /// The item.
    pub item: ItemId,
    /// Its vault.
    pub vault: VaultId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The duty.
    pub duty: SourceDuty,
}

/// Why the worker could not go on.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("the replica store cannot be used")]
    Link(#[from] LinkError),
    #[error("the machine cannot be captured")]
    Capture(#[from] CaptureError),
    #[error("the machine could not be read")]
    Pass(#[from] PassError),
    #[error("the hash files cannot be used")]
    Hashes(#[from] HashError),
    #[error("the machine could not be handled")]
    Fabric(#[from] FabricError),
    #[error("the host's own files could not be used")]
    Files(#[from] std::io::Error),
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The duty changed; not a failure.
    #[error("the duty changed")]
    Changed,
}

impl SourceError {
    fn problem(&self, work: &SourceWork) -> Problem {
        let machine = &work.duty.machine;
        let cause = || {
            let mut text = self.to_string();
            let mut next = std::error::Error::source(self);
            while let Some(source) = next {
                text = format!("{text}: {source}");
                next = source.source();
            }
            text
        };
        match self {
            SourceError::Link(error) => {
                error.problem(work.duty.target_address.as_deref().unwrap_or("this host"))
            }
            SourceError::Fabric(error) => error.problem(),
            SourceError::Problem(problem) => (**problem).clone(),
            SourceError::Files(error) => Code::STORE_IO
                .because(format!("replication of {machine} pauses"), error.to_string()),
            SourceError::Capture(_)
            | SourceError::Pass(_)
            | SourceError::Hashes(_)
            | SourceError::Changed => Code::CAPTURE_FAILED
                .because(format!("no recovery point of {machine} could be cut"), cause()),
        }
    }
}

/// What is open while points are being made.
struct Open {
    link: DataLink,
    source: Box<dyn ChangeSource>,
    hashes: Arc<HashFiles>,
    spec: MachineSpec,
    /// The branch and epoch that the session was opened for.
    key: (Epoch, leeward_model::Branch, Option<String>),
    /// Whether the change map reaches back to the newest point.
    mapped: bool,
    last_cut: Option<Instant>,
}

/// The worker.
pub struct SourceWorker {
    host: Arc<Host>,
    item: ItemId,
    state: SourceState,
    open: Option<Open>,
    /// The job that asked the guest to shut down, and until when that may still happen although
    /// the job was cancelled.
    asked_off: Option<(JobId, Instant)>,
    /// The last cut's snapshot broke: what was written is read live before the next cut.
    live_first: bool,
}

/// Runs the worker of `item` until its work is taken away.
pub async fn run(host: Arc<Host>, item: ItemId, mut work: watch::Receiver<Option<SourceWork>>) {
    let state = SourceState::load(&host.item_folder(item));
    let mut worker =
        SourceWorker { host, item, state, open: None, asked_off: None, live_first: false };
    loop {
        let Some(now) = work.borrow_and_update().clone() else {
            worker.host.board.source(item, |seen| *seen = None);
            return;
        };
        worker.begin(&now);
        let outcome = worker.act(&now, &mut work).await;
        let pause = match outcome {
            Ok(pause) => pause,
            Err(SourceError::Changed) => continue,
            Err(error) => {
                worker.open = None;
                let problem = error.problem(&now);
                let Problem { code, what, cause, .. } = &problem;
                tracing::warn!(%item, %code, %cause, "{what}");
                worker.show(|seen| {
                    if !matches!(seen.phase, CapturePhase::Fenced | CapturePhase::Released) {
                        seen.phase = CapturePhase::Paused;
                    }
                    seen.problem = Some(problem);
                });
                Some(RETRY)
            }
        };
        match pause {
            Some(pause) => {
                let _ = tokio::time::timeout(pause, work.changed()).await;
            }
            None => {
                if work.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

impl SourceWorker {
    fn show(&self, change: impl FnOnce(&mut SourceObserved)) {
        self.host.board.source(self.item, |seen| {
            if let Some(seen) = seen {
                change(seen);
            }
        });
    }

    /// Puts the entry on the board when the duty begins or changes its epoch or timeline.
    fn begin(&mut self, work: &SourceWork) {
        let (epoch, timeline) = (work.epoch, work.duty.branch.timeline);
        let state = &self.state;
        self.host.board.source(self.item, |seen| {
            let seen = seen.get_or_insert_with(|| source_blank(timeline, epoch));
            (seen.epoch, seen.timeline) = (epoch, timeline);
            (seen.resync_done, seen.sent_bytes) = (state.resync_done, state.sent_bytes);
            seen.divergent.clone_from(&state.divergent);
            if let Some((job, _)) = &seen.shutdown
                && !matches!(&work.duty.run, SourceRun::ShutDown { job: now, .. } if now == job)
            {
                seen.shutdown = None;
            }
        });
        let key = (work.epoch, work.duty.branch, work.duty.target_address.clone());
        if self.open.as_ref().is_some_and(|open| open.key != key) {
            self.open = None;
        }
    }

    /// Does what the duty says; returns how long to wait before it is looked at again, or `None`
    /// to wait for a change.
    async fn act(
        &mut self,
        work: &SourceWork,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<Duration>, SourceError> {
        match &work.duty.run {
            SourceRun::Replicate { permit, start } => {
                self.replicate(work, permit.as_ref(), *start, changes).await
            }
            SourceRun::ShutDown { job, timeout_ms, .. } => {
                let limit = Duration::from_millis(*timeout_ms);
                self.shut_down(work, *job, limit, changes).await
            }
            SourceRun::Fenced | SourceRun::Seed { .. } => self.fence(work).await,
            SourceRun::Live { .. } => Ok(None),
            SourceRun::Release => self.release(work).await,
        }
    }

    pub(super) fn machine(work: &SourceWork) -> MachineRef {
        MachineRef::Owned(work.duty.machine.clone())
    }

    async fn replicate(
        &mut self,
        work: &SourceWork,
        permit: Option<&StartPermit>,
        start: Option<JobId>,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<Duration>, SourceError> {
        permits::fence_lift(&self.host.folder, &work.duty.machine)?;
        if let Some(permit) = permit {
            permits::permit_store(&self.host.folder, permit)?;
        }
        if self.state.shut_down.take().is_some() || self.state.divergent.take().is_some() {
            self.state.store(&self.host.item_folder(self.item))?;
            self.show(|seen| seen.divergent = None);
        }
        // A shutdown that was cancelled may still end the guest after the job is over.
        let owed = self
            .asked_off
            .filter(|(job, until)| self.state.started == Some(*job) && Instant::now() < *until);
        if let Some(job) = start.or(owed.map(|(job, _)| job)) {
            self.start_again(work, permit, job).await?;
        }
        let machine = self.host.fabric.machine_state(&Self::machine(work)).await?;
        self.show(|seen| seen.machine = machine);
        if !matches!(machine, MachineState::Running | MachineState::Paused) {
            self.open = None;
            self.show(|seen| seen.phase = CapturePhase::Idle);
            return Ok(Some(LOOK));
        }
        self.open(work).await?;
        let wanted = work.duty.resync > self.state.resync_done;
        let open = self.open.as_ref().expect("opened above");
        if wanted || !open.mapped || open.link.newest_point.is_none() {
            let reason = wanted.then(|| "asked for".to_owned());
            self.copy_everything(work, reason, changes).await?;
        } else if self.live_first {
            self.live_pass(work, LiveRead::Dirty, changes).await?;
        }
        self.live_first = false;
        self.points(work, changes).await?;
        Ok(Some(Duration::ZERO))
    }

    /// Starts the machine for a job that had it shut down and was undone, or is abandoned.
    async fn start_again(
        &mut self,
        work: &SourceWork,
        permit: Option<&StartPermit>,
        job: JobId,
    ) -> Result<(), SourceError> {
        let machine = Self::machine(work);
        let state = self.host.fabric.machine_state(&machine).await?;
        // A guest that was asked before the cancel may switch itself off after it.
        let asked = |(by, until): (JobId, Instant)| by == job && Instant::now() < until;
        let slow = self.asked_off.is_some_and(asked) && state != MachineState::Running;
        if self.state.started == Some(job) && !slow {
            // Started once for this job, also when its owner has switched it off since.
            self.show(|seen| seen.started = Some((job, Ok(()))));
            return Ok(());
        }
        let outcome = if state == MachineState::Running {
            Ok(())
        } else {
            let name = &work.duty.machine;
            let allowed = match permit {
                Some(permit) => {
                    let check = self.host.permit_check();
                    permits::permit_allows(&check, permit, work.item, name, work.epoch)
                }
                None => Err(Code::NO_PERMIT.problem(format!("machine {name} was not started"))),
            };
            match allowed {
                Ok(()) => {
                    self.open = None;
                    self.host.fabric.machine_start(name).await.map_err(|error| error.problem())
                }
                Err(problem) => Err(problem),
            }
        };
        if outcome.is_ok() {
            self.state.started = Some(job);
            self.state.store(&self.host.item_folder(self.item))?;
        }
        self.show(|seen| seen.started = Some((job, outcome.clone())));
        outcome.map_err(|problem| SourceError::Problem(Box::new(problem)))
    }

    /// Opens session, hash files and capture, unless they are open for this work already.
    async fn open(&mut self, work: &SourceWork) -> Result<(), SourceError> {
        if self.open.is_some() {
            return Ok(());
        }
        let mut link = DataLink::open(&self.host, work).await?;
        let name = &work.duty.machine;
        let found = self.host.fabric.discover().await?;
        let spec = found.into_iter().map(|machine| machine.spec).find(|spec| spec.name == *name);
        let Some(spec) = spec else {
            return Err(FabricError::Unknown(Self::machine(work)).into());
        };
        let hashes = self.trusted_hashes(&mut link, &spec).await?;
        self.show(|seen| seen.problem = None);
        let mut source = self.host.fabric.capture(&Self::machine(work)).await?;
        let base = link.newest_point.map(|(_, position)| position);
        let attached = source.attach(base).await?;
        let mapped = matches!(attached, Attached::Continues);
        if let Attached::NeedsFullRead(reason) = attached {
            self.show(|seen| seen.resync_reason = Some(reason));
        }
        self.tell_resized(&hashes, &spec);
        let key = (work.epoch, work.duty.branch, work.duty.target_address.clone());
        self.open = Some(Open { link, source, hashes, spec, key, mapped, last_cut: None });
        Ok(())
    }

    /// Says which disks have another size than the target knows; the next point has the new one.
    fn tell_resized(&self, hashes: &HashFiles, spec: &MachineSpec) {
        for disk in &spec.disks {
            let Some(before) = hashes.size(disk.number).filter(|size| *size != disk.size) else {
                continue;
            };
            let (name, id, now) = (&spec.name, &disk.id, disk.size);
            let what = format!("disk {id} of {name} has {now} bytes, it had {before}");
            let problem = Code::DISK_RESIZED.problem(what);
            tracing::warn!(item = %self.item, code = %problem.code, "{}", problem.what);
            self.show(|seen| seen.problem = Some(problem));
        }
    }

    async fn shut_down(
        &mut self,
        work: &SourceWork,
        job: JobId,
        limit: Duration,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<Duration>, SourceError> {
        if let Some((done, point)) = self.state.shut_down
            && done == job
        {
            let machine = self.host.fabric.machine_state(&Self::machine(work)).await?;
            self.report_shutdown(job, ShutdownOutcome::Done { point });
            self.show(|seen| seen.machine = machine);
            return Ok(None);
        }
        self.report_shutdown(job, ShutdownOutcome::InProgress);
        let machine = Self::machine(work);
        self.asked_off = Some((job, Instant::now() + limit));
        let outcome = tokio::select! {
            outcome = self.host.fabric.machine_shutdown(&machine, limit) => outcome?,
            _ = changes.changed() => return Err(SourceError::Changed),
        };
        match outcome {
            Shutdown::Done => self.asked_off = None,
            Shutdown::NotInTime => {
                let what =
                    format!("{} did not shut down in {} s", work.duty.machine, limit.as_secs());
                let problem = Code::SHUTDOWN_FAILED.problem(what);
                self.report_shutdown(job, ShutdownOutcome::Failed { problem });
                return Ok(None);
            }
        }
        let point = self.final_point(work, &machine).await;
        self.host.fabric.machine_quit(&machine).await?;
        permits::permit_forget(&self.host.folder, &work.duty.machine);
        self.open = None;
        self.state.shut_down = Some((job, point));
        self.state.store(&self.host.item_folder(self.item))?;
        self.show(|seen| (seen.machine, seen.phase) = (MachineState::Off, CapturePhase::Idle));
        self.report_shutdown(job, ShutdownOutcome::Done { point });
        Ok(None)
    }

    fn report_shutdown(&self, job: JobId, outcome: ShutdownOutcome) {
        self.show(|seen| seen.shutdown = Some((job, outcome)));
    }

    /// Takes the last delta of a guest that is off. Without it the failover uses the newest point.
    async fn final_point(&mut self, work: &SourceWork, machine: &MachineRef) -> Option<PointId> {
        let state = self.host.fabric.machine_state(machine).await;
        if matches!(state, Ok(MachineState::Off)) {
            return None;
        }
        for attempt in 1..=FINAL_DELTA_TRIES {
            let taken = match self.open(work).await {
                Ok(()) if self.open.as_ref().is_some_and(|open| open.mapped) => {
                    self.cycle(work, PointKind::Final).await
                }
                Ok(()) => return None,
                Err(error) => Err(error),
            };
            match taken {
                Ok(point) => return Some(point),
                Err(error) => {
                    self.open = None;
                    let cause = error.problem(work).cause;
                    let item = self.item;
                    tracing::warn!(%item, attempt, %cause, "could not take the final delta");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        None
    }

    /// Makes sure that a machine that was failed over does not write, and notes what it wrote.
    async fn fence(&mut self, work: &SourceWork) -> Result<Option<Duration>, SourceError> {
        self.open = None;
        permits::permit_forget(&self.host.folder, &work.duty.machine);
        permits::fence_note(&self.host.folder, &work.duty.machine)?;
        let machine = Self::machine(work);
        let before = self.host.fabric.machine_state(&machine).await?;
        let changes = self.host.fabric.machine_fence(&machine).await?;
        let stopped_at = self.host.wall.now();
        self.host.fabric.machine_quit(&machine).await?;
        // A machine that was shut down and drained has nothing that the point does not have.
        let drained = matches!(self.state.shut_down, Some((_, Some(_))));
        if self.state.divergent.is_none() && !drained {
            let name = format!("divergent-{}", super::clock::stamp(stopped_at));
            let point = PointId::from(uuid::Uuid::new_v4());
            let dirty_bytes = changes.dirty_bytes();
            self.state.divergent = Some(DivergentNote { point, name, dirty_bytes, stopped_at });
            self.state.store(&self.host.item_folder(self.item))?;
            if before != MachineState::Off {
                let code = Code::STALE_MACHINE_FENCED.code;
                let (item, name) = (self.item, &work.duty.machine);
                tracing::warn!(%item, code, "{name} was running and is fenced");
            }
        }
        let note = self.state.divergent.clone();
        self.show(|seen| {
            (seen.machine, seen.phase) = (MachineState::Off, CapturePhase::Fenced);
            (seen.divergent, seen.problem, seen.shutdown) = (note, None, None);
        });
        // Looked at again: its owner may start it by hand.
        Ok(Some(LOOK))
    }

    async fn release(&mut self, work: &SourceWork) -> Result<Option<Duration>, SourceError> {
        let machine = Self::machine(work);
        let state = self.host.fabric.machine_state(&machine).await?;
        self.open = None;
        if matches!(state, MachineState::Running | MachineState::Paused) {
            self.host.fabric.capture(&machine).await?.detach().await?;
        }
        permits::permit_forget(&self.host.folder, &work.duty.machine);
        match std::fs::remove_dir_all(self.host.item_folder(self.item)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.state = SourceState::default();
        self.show(|seen| (seen.machine, seen.phase) = (state, CapturePhase::Released));
        Ok(None)
    }
}
