//! Switching a protected machine off and on: for a job, or because its guest did so by itself.

use super::{SourceError, SourceWork, SourceWorker, Whose, copy::changed, tries::Tries};
use crate::roles::host::permits;
use leeward_fabric::{MachineRef, Shutdown};
use leeward_model::{Code, JobId, MachineState, PointId, PointKind, StartPermit};
use leeward_wire::message::{CapturePhase, ShutdownOutcome, SourceRun};
use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// How a machine is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Off {
    /// The guest is asked and may take so long.
    Ask(Duration),
    /// Its processors are stopped where they stand.
    Halt,
}

/// How much the last data are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastData {
    /// The job goes on without them when they cannot be had soon.
    Wished,
    /// It does not: while they cannot be sent, the machine's process stays, which knows them.
    Needed,
    /// As before; and where the change map does not reach back to a point, everything is copied
    /// from the guest that is off, however long that takes.
    Copied,
}

impl LastData {
    pub(super) fn tries(self) -> Tries {
        match self {
            LastData::Wished => Tries::wished(),
            LastData::Needed | LastData::Copied => Tries::needed(),
        }
    }
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
        (off, last): (Off, LastData),
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
            let point = self.still_point(work, last.tries(), changes).await?;
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
        let taken = match last {
            LastData::Copied => self.copied_point(work, &machine, changes).await,
            LastData::Needed | LastData::Wished => {
                self.final_point(work, &machine, last.tries(), changes).await
            }
        };
        let point = match (taken, last) {
            (Err(SourceError::Changed), _) => return Err(SourceError::Changed),
            (Err(_), LastData::Wished) => None,
            (Err(error), _) => {
                let problem = error.problem(&self.host, work);
                if last == LastData::Copied && !problem.is_final() {
                    return Err(error);
                }
                // Its process stays: whoever asks again needs no more than what is missing.
                self.report_shutdown(job, ShutdownOutcome::Failed { problem });
                return Ok(None);
            }
            (Ok(point), _) => point,
        };
        let job = asks_now(work, (job, point), changes)?;
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

    /// Takes the last delta of a guest that is off; none when nothing says what it is. A try goes
    /// on from what the one before had committed.
    async fn final_point(
        &mut self,
        work: &SourceWork,
        machine: &MachineRef,
        mut tries: Tries,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<PointId>, SourceError> {
        // One delta with everything is there sooner than all that wait, one after another.
        self.ahead = None;
        self.spool_clear().await;
        loop {
            if let Ok(state) = self.host.fabric.machine_state(machine).await {
                self.show(|seen| seen.machine = state);
                if state == MachineState::Off {
                    return Ok(None);
                }
            }
            let taken = match self.open(work).await {
                Ok(()) if self.open.as_ref().is_some_and(|open| open.mapped) => {
                    self.hurry();
                    self.cycle(work, PointKind::Final).await
                }
                Ok(()) => return Ok(None),
                Err(error) => Err(error),
            };
            match taken {
                Ok((point, _)) => return Ok(Some(point)),
                Err(error) => self.try_again(work, error, &mut tries, changes).await?,
            }
        }
    }

    /// Waits for the next try of a final point.
    ///
    /// # Errors
    /// `error` itself when there is to be none; `Changed` as soon as the duty changes.
    pub(super) async fn try_again(
        &mut self,
        work: &SourceWork,
        error: SourceError,
        tries: &mut Tries,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<(), SourceError> {
        self.open = None;
        let problem = error.problem(&self.host, work);
        let pause = tries.failed(error.fault(&problem), Instant::now());
        let (item, attempt, name) = (self.item, tries.failures(), &work.duty.machine);
        let cause = &problem.cause;
        tracing::warn!(%item, attempt, %cause, "could not take the last data of {name}");
        // So that a person who waits, or is asked, sees why.
        self.show(|seen| seen.problem = Some(problem));
        let Some(pause) = pause else { return Err(error) };
        let end = Instant::now() + pause;
        loop {
            if changed(work, changes) {
                return Err(SourceError::Changed);
            }
            tokio::select! {
                () = tokio::time::sleep_until(end) => return Ok(()),
                told = changes.changed() => told.map_err(|_| SourceError::Changed)?,
            }
        }
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
    pub(super) async fn switched_off(
        &mut self,
        work: &SourceWork,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<(), SourceError> {
        let machine = Self::machine(work);
        let point = match self.final_point(work, &machine, Tries::wished(), changes).await {
            Err(SourceError::Changed) => return Err(SourceError::Changed),
            taken => taken.ok().flatten(),
        };
        self.host.fabric.machine_quit(&machine).await?;
        self.open = None;
        let (item, name) = (self.item, &work.duty.machine);
        tracing::info!(%item, ?point, "the guest of {name} switched itself off");
        self.show(|seen| (seen.machine, seen.phase) = (MachineState::Off, CapturePhase::Idle));
        Ok(())
    }
}

/// The job that wants the machine off now that its last data are as they are. Another one that
/// asked in the meantime may have the point; without one it tries itself.
fn asks_now(
    work: &SourceWork,
    (job, point): (JobId, Option<PointId>),
    changes: &watch::Receiver<Option<SourceWork>>,
) -> Result<JobId, SourceError> {
    if !changed(work, changes) {
        return Ok(job);
    }
    let now = changes.borrow();
    let same = now.as_ref().filter(|now| SourceWorker::key(now) == SourceWorker::key(work));
    match same.map(|now| &now.duty.run) {
        Some(SourceRun::ShutDown { job, .. }) if point.is_some() => Ok(*job),
        Some(_) | None => Err(SourceError::Changed),
    }
}
