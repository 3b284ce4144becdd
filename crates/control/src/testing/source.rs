//! What a scripted host does with the machine of an item that lives, or lived, on it.

use leeward_model::{
    Branch, Code, Epoch, HostId, ItemId, JobId, MachineState, PointId, PointKind, Problem,
};
use leeward_wire::message::{
    CapturePhase, CopyProgress, DivergentNote, Seeded, ShutdownOutcome, SourceDuty, SourceObserved,
    SourceRun,
};

/// Steps that a full copy or comparison takes.
pub const COPY_STEPS: u64 = 2;

#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) duty: SourceDuty,
    pub(super) copying: u64,
    /// How many steps a copy takes.
    steps: u64,
    resync_done: u64,
    pub(super) copied: bool,
    shutdown: Option<(JobId, ShutdownOutcome)>,
    pub(super) final_wanted: bool,
    pub(super) started: Option<JobId>,
    pub(super) divergent: Option<DivergentNote>,
    pub(super) seeded: Option<(JobId, Result<Seeded, Problem>)>,
    pub(super) resync_reason: Option<String>,
    pub(super) problem: Option<Problem>,
}

/// Is what a source sends in one step: the changes up to one cut.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) item: ItemId,
    pub(super) target: HostId,
    pub(super) branch: Branch,
    pub(super) kind: PointKind,
    /// What the machine had written at the cut.
    pub(super) data: u64,
}

impl Source {
    pub(super) fn new(duty: &SourceDuty, steps: u64) -> Source {
        Source {
            duty: duty.clone(),
            copying: steps,
            steps,
            resync_done: duty.resync,
            copied: false,
            shutdown: None,
            final_wanted: false,
            started: None,
            divergent: None,
            seeded: None,
            resync_reason: None,
            problem: None,
        }
    }

    /// Takes a duty. A machine that was not replicated before is compared as a whole.
    pub(super) fn told(&mut self, wanted: &SourceDuty, steps: u64) {
        let replicated =
            matches!(self.duty.run, SourceRun::Replicate { .. } | SourceRun::ShutDown { .. });
        if wanted.resync > self.duty.resync || !replicated {
            (self.copying, self.steps) = (steps, steps);
        }
        self.duty = wanted.clone();
    }

    /// Whether it has to be compared and may not begin.
    pub(super) fn waits(&self) -> bool {
        let asked = self.duty.resync > self.resync_done;
        let begun = self.copying < self.steps;
        self.resync_reason.is_some() && !asked && !begun && !self.duty.resync_allowed
    }

    /// One step of copying or comparing.
    pub(super) fn copy(&mut self) {
        if !self.waits() {
            self.copying = self.copying.saturating_sub(1);
        }
        self.copied |= self.copying == 0;
    }

    /// The machine is gone: nothing runs, and there are no disks to read.
    pub(super) fn no_machine(&mut self) {
        if let SourceRun::Seed { job, .. } = self.duty.run {
            self.seeded = Some((job, Ok(Seeded::Nothing)));
        }
    }

    /// Whether the seed of `job` is stored.
    pub(super) fn is_seeded(&self, job: JobId) -> bool {
        self.seeded.as_ref().is_some_and(|(by, seeded)| *by == job && seeded.is_ok())
    }

    /// One step of a shutdown; says whether the guest is off. What was never copied is copied
    /// now, if that is wanted.
    pub(super) fn shut_down(&mut self, job: JobId, ignores: bool, copy: bool) -> bool {
        let before = self.shutdown.take().filter(|(by, _)| *by == job);
        let (outcome, off) = match before.map(|(_, outcome)| outcome) {
            None => (ShutdownOutcome::InProgress, false),
            Some(_) if ignores => {
                let what = format!("{} did not shut down", self.duty.machine);
                let problem = Code::SHUTDOWN_FAILED.problem(what);
                (ShutdownOutcome::Failed { problem }, false)
            }
            Some(ShutdownOutcome::InProgress) if self.copying > 0 && copy => {
                self.copying -= 1;
                (ShutdownOutcome::InProgress, true)
            }
            Some(ShutdownOutcome::InProgress) if self.copying > 0 => {
                (ShutdownOutcome::Done { point: None }, true)
            }
            Some(outcome) => {
                self.final_wanted |= outcome == ShutdownOutcome::InProgress;
                (outcome, true)
            }
        };
        self.shutdown = Some((job, outcome));
        off
    }

    /// Whether the machine is started now for `job`: once.
    pub(super) fn starts(&mut self, job: Option<JobId>) -> bool {
        let now = job.is_some() && job != self.started;
        self.started = job.or(self.started);
        now
    }

    /// Hears whether its point was taken.
    pub(super) fn acknowledged(&mut self, sent: &Sent, point: Option<PointId>) {
        if point.is_some() {
            self.resync_done = self.duty.resync;
            self.resync_reason = None;
        }
        if sent.kind == PointKind::Final {
            self.final_wanted = false;
            if let Some((_, outcome)) = &mut self.shutdown {
                *outcome = ShutdownOutcome::Done { point };
            }
        }
    }

    pub(super) fn observe(&self, runs: bool, epoch: Epoch) -> SourceObserved {
        let progress = CopyProgress {
            done_bytes: self.steps.saturating_sub(self.copying) << 20,
            total_bytes: self.steps << 20,
            sent_bytes: 0,
            seconds_left: Some(self.copying),
        };
        SourceObserved {
            machine: if runs { MachineState::Running } else { MachineState::Off },
            epoch,
            timeline: self.duty.branch.timeline,
            phase: match self.duty.run {
                SourceRun::Fenced | SourceRun::Seed { .. } => CapturePhase::Fenced,
                SourceRun::Release | SourceRun::Leave => CapturePhase::Released,
                SourceRun::Live { .. } => CapturePhase::Idle,
                _ if self.waits() => CapturePhase::Paused,
                _ if self.copying > 0 => CapturePhase::Copying(progress),
                _ => CapturePhase::Delta,
            },
            resync_done: self.resync_done,
            resync_reason: self.resync_reason.clone(),
            shutdown: self.shutdown.clone(),
            started: self.started.map(|job| (job, Ok(()))),
            divergent: self.divergent.clone(),
            seeded: self.seeded.clone(),
            cycles: Vec::new(),
            sent_bytes: 0,
            audit: None,
            problem: self.problem.clone(),
            spool: None,
        }
    }
}
