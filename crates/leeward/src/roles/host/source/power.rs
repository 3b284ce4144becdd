//! Switching a protected machine off and on: for a job, or because its guest did so by itself.

use super::{SourceError, SourceWork, SourceWorker, Whose};
use crate::roles::host::permits;
use leeward_fabric::{MachineRef, Shutdown};
use leeward_model::{Code, JobId, MachineState, PointId, PointKind, StartPermit};
use leeward_wire::message::{CapturePhase, ShutdownOutcome};
use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// Tries of the final delta after a shutdown before the failover goes on without it.
pub(super) const FINAL_DELTA_TRIES: u32 = 3;

/// How a machine is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Off {
    /// The guest is asked and may take so long.
    Ask(Duration),
    /// Its processors are stopped where they stand.
    Halt,
}

/// What becomes of the last data when the change map does not reach back to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmapped {
    /// Everything is copied from the guest that is off, however long that takes.
    Copy,
    /// There is no final point.
    Leave,
}

impl SourceWorker {
    /// Starts the machine for a job that had it shut down and was undone, or is abandoned.
    pub(super) async fn start_again(
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

    /// Switches the machine off for a job and takes its last delta as a final point. Whatever
    /// interrupts that, the guest stays off and its process keeps its disks open.
    pub(super) async fn shut_down(
        &mut self,
        work: &SourceWork,
        job: JobId,
        (off, unmapped): (Off, Unmapped),
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<Duration>, SourceError> {
        if let Some((done, point)) = self.state.shut_down
            && done == job
            && !matches!(self.whose(work).await?, Whose::Other(_))
        {
            let machine = self.host.fabric.machine_state(&Self::machine(work)).await?;
            self.report_shutdown(job, ShutdownOutcome::Done { point });
            self.show(|seen| seen.machine = machine);
            return Ok(None);
        }
        if let Whose::Other(problem) = self.whose(work).await? {
            (self.open, self.claimed) = (None, false);
            self.show_foreign(&problem);
            self.show(|seen| seen.phase = CapturePhase::Idle);
            self.report_shutdown(job, ShutdownOutcome::Done { point: None });
            return Ok(None);
        }
        self.report_shutdown(job, ShutdownOutcome::InProgress);
        let machine = Self::machine(work);
        // Asked again after an earlier request had it off: only its last data are wanted. By which
        // job that was is no matter, nor whether its point was made: nothing says that the machine
        // was not run in between, so its disks are compared. Once it lives here again, as its
        // duty says, the earlier request is forgotten.
        let again = self.state.shut_down.is_some()
            && self.host.fabric.machine_state(&machine).await? == MachineState::Off;
        if again {
            self.show(|seen| seen.machine = MachineState::Off);
            let point = self.still_point(work, changes).await?;
            return self.is_off(work, job, point);
        }
        match off {
            Off::Halt => self.host.fabric.machine_halt(&machine).await?,
            Off::Ask(limit) => {
                self.asked_off = Some((job, Instant::now() + limit));
                let outcome = tokio::select! {
                    outcome = self.host.fabric.machine_shutdown(&machine, limit) => outcome?,
                    _ = changes.changed() => return Err(SourceError::Changed),
                };
                if outcome == Shutdown::NotInTime {
                    let (name, seconds) = (&work.duty.machine, limit.as_secs());
                    let what = format!("{name} did not shut down in {seconds} s");
                    let problem = Code::SHUTDOWN_FAILED.problem(what);
                    self.report_shutdown(job, ShutdownOutcome::Failed { problem });
                    return Ok(None);
                }
            }
        }
        self.asked_off = None;
        let point = match unmapped {
            Unmapped::Copy => self.copied_point(work, &machine, changes).await?,
            Unmapped::Leave => self.final_point(work, &machine).await,
        };
        self.host.fabric.machine_quit(&machine).await?;
        self.is_off(work, job, point)
    }

    /// Notes and reports that the machine is off for `job`, and the point that holds its last data.
    fn is_off(
        &mut self,
        work: &SourceWork,
        job: JobId,
        point: Option<PointId>,
    ) -> Result<Option<Duration>, SourceError> {
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
        // One delta with everything is there sooner than all that wait, one after another.
        self.ahead = None;
        self.spool_clear().await;
        for attempt in 1..=FINAL_DELTA_TRIES {
            let taken = match self.open(work).await {
                Ok(()) if self.open.as_ref().is_some_and(|open| open.mapped) => {
                    self.hurry();
                    self.cycle(work, PointKind::Final).await
                }
                Ok(()) => return None,
                Err(error) => Err(error),
            };
            match taken {
                Ok((point, _)) => return Some(point),
                Err(error) => {
                    self.open = None;
                    let cause = error.problem(&self.host, work).cause;
                    let item = self.item;
                    tracing::warn!(%item, attempt, %cause, "could not take the final delta");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        None
    }

    /// Lets what is sent now go without a limit: a machine that is off waits for it.
    pub(super) fn hurry(&mut self) {
        if let Some(open) = &mut self.open {
            open.link.pace_lift();
        }
    }

    /// As [`Self::final_point`], after a copy of everything where that is needed. What fails is
    /// tried again by the worker: without this point the failover would have nothing.
    async fn copied_point(
        &mut self,
        work: &SourceWork,
        machine: &MachineRef,
        changes: &watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<PointId>, SourceError> {
        let state = self.host.fabric.machine_state(machine).await?;
        self.show(|seen| seen.machine = state);
        if state == MachineState::Off {
            return Ok(None);
        }
        self.open(work).await?;
        self.hurry();
        if let Some(reason) = self.comparison(work) {
            self.copy_everything(work, reason, changes).await?;
        }
        let (point, _) = self.cycle(work, PointKind::Final).await?;
        self.caught_up(work)?;
        Ok(Some(point))
    }

    /// Whether the guest has switched itself off by its own or its owner's doing.
    pub(super) async fn guest_went_off(
        &mut self,
        work: &SourceWork,
        state: MachineState,
    ) -> Result<bool, SourceError> {
        // While a cancelled shutdown may still end it, it is that job's doing.
        let jobs = self.asked_off.is_some_and(|(_, until)| Instant::now() < until);
        if jobs || state != MachineState::Paused {
            return Ok(false);
        }
        Ok(self.host.fabric.machine_guest_off(&Self::machine(work)).await?)
    }

    /// Ends the process of a machine whose guest switched itself off, after a last point. Nobody
    /// but its owner starts it again.
    pub(super) async fn switched_off(&mut self, work: &SourceWork) -> Result<(), SourceError> {
        let machine = Self::machine(work);
        let point = self.final_point(work, &machine).await;
        self.host.fabric.machine_quit(&machine).await?;
        self.open = None;
        let (item, name) = (self.item, &work.duty.machine);
        tracing::info!(%item, ?point, "the guest of {name} switched itself off");
        self.show(|seen| (seen.machine, seen.phase) = (MachineState::Off, CapturePhase::Idle));
        Ok(())
    }
}
