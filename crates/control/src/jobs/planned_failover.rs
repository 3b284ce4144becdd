//! Planned failover: a failover that does not go on without the source's confirmed end and its
//! final point. Out or home makes no difference to it.

use super::failover::{Failover, FailsOver};
use super::way_back::{self, HasWayBack, WayBack};
use crate::plan::RunPlan;
use crate::world::{Step, World, pending, permanent};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, nothing};
use leeward_model::{Code, JobId, MachineState, Position, SourceState};
use leeward_wire::message::{CapturePhase, ShutdownOutcome};
use serde::{Deserialize, Serialize};

/// How long the source host may be away before the job is refused: nothing was done yet.
const SOURCE_WAIT_MS: u64 = 10_000;
/// How long a machine that is off may take to run: what it has written cannot be sent before.
const OFF_WAIT_MS: u64 = 15_000;
/// What a host may need over the guest's own time before a person is asked.
const SHUTDOWN_GRACE_MS: u64 = 30_000;
/// How long the last delta may take to become a point at the target before a person is asked.
const DELTA_WAIT_MS: u64 = 120_000;
/// What a person answers to have the machine switched off instead of shut down.
const POWER_OFF: &str = "power-off";

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PlannedFailover {
    pub(crate) failover: Failover,
    /// Whether a person says when the machine is shut down.
    pub(crate) wait_to_complete: bool,
    /// Whether that person was asked.
    pub(crate) asked_to_complete: bool,
    /// When the job began, by the boot-time clock of that boot of the config server.
    pub(crate) began: Option<(String, u64)>,
    /// The newest point when the job began.
    pub(crate) before: Option<Position>,
    /// Whether the machine is switched off instead of shut down.
    pub(crate) power_off: bool,
    /// Whether a person was asked about a source that is not off.
    pub(crate) asked_again: bool,
}

impl HasWayBack for PlannedFailover {
    fn way_back(&mut self) -> &mut WayBack {
        &mut self.failover.way_back
    }
}

impl FailsOver for PlannedFailover {
    fn core(&mut self) -> &mut Failover {
        &mut self.failover
    }
}

impl Job for PlannedFailover {
    type Context = World;
    const KIND: &'static str = "planned-failover";
    const REVERSIBLE: &'static [Reversible<Self>] = &[
        Reversible::new("check", Self::check, |job, world, moment| {
            job.core().undo_all(world, moment)
        }),
        Reversible::new("synchronize", Self::synchronize, Self::no_hurry),
        Reversible::new("complete", Self::complete, nothing),
        Reversible::new("shut-down-source", Self::shut_down, |job, world, moment| {
            job.core().start_again(world, moment)
        }),
        Reversible::new("final-delta", Self::final_delta, nothing),
        Reversible::new(
            "fence",
            |job, world, moment| job.core().fence(world, moment),
            |job, world, moment| job.core().unfence(world, moment),
        ),
        Reversible::new(
            "choose-point",
            |job, world, moment| job.core().choose_point(world, moment),
            nothing,
        ),
        Reversible::new(
            "build-overlay",
            |job, world, moment| job.core().build_overlay(world, moment),
            |job, world, moment| job.core().drop_machine(world, moment),
        ),
        Reversible::new(
            "prepare-machine",
            |job, world, moment| job.core().prepare(world, moment),
            |job, world, moment| job.core().drop_machine(world, moment),
        ),
    ];
    const FORWARD: &'static [Forward<Self>] = &[
        Forward::new("start-machine", |job, world, moment| job.core().start(world, moment, true)),
        Forward::new("record", Self::record),
    ];
    const ABANDON: &'static [Forward<Self>] = &way_back::steps::<Self>();
}

/// Whether the source host reads the whole machine.
fn compares(world: &World) -> bool {
    world.source_now().is_some_and(|seen| matches!(seen.phase, CapturePhase::Copying(_)))
}

impl PlannedFailover {
    fn check(&mut self, world: &mut World, moment: &Moment) -> Step {
        if !world.source().sight.connected {
            let what = format!("source host {} is not connected", world.source().name);
            if moment.step_elapsed_ms() > SOURCE_WAIT_MS {
                return Err(permanent(Code::ROLE_AWAY, what));
            }
            return pending(what);
        }
        let outcome = self.failover.check(world, moment)?;
        if outcome == Outcome::Done {
            self.began.get_or_insert((world.now.boot.clone(), world.now.boottime_ms));
            self.before = self.failover.newest.map(|(_, position)| position);
        }
        Ok(outcome)
    }

    /// Phase 1: a point that was cut after the job began is at the target; the machine runs on.
    fn synchronize(&mut self, world: &mut World, moment: &Moment) -> Step {
        world.item_mut()?.plan.hurry = true;
        let newest = world.newest();
        let synchronized = newest.is_some_and(|newest| match (&newest.cut_server, &self.began) {
            (Some(cut), Some((boot, ms))) if cut.boot == *boot => cut.ms >= *ms,
            _ => Some(newest.position) != self.before,
        });
        if synchronized {
            return Ok(Outcome::Done);
        }
        if world.source_machine() == MachineState::Off && moment.step_elapsed_ms() > OFF_WAIT_MS {
            let question = format!(
                "the machine on host {} is off, so nothing can be synchronized. Start it, then \
                 resume the job; or cancel it",
                world.source().name
            );
            return Ok(Outcome::WaitForOperator { question });
        }
        pending("a recovery point that is cut after the job began")
    }

    fn no_hurry(&mut self, world: &mut World, _: &Moment) -> Step {
        if let Some(item) = &mut world.item {
            item.plan.hurry = false;
        }
        Ok(Outcome::Done)
    }

    /// F-098, F-110.
    fn complete(&mut self, world: &mut World, _: &Moment) -> Step {
        if !self.wait_to_complete {
            return Ok(Outcome::Skipped("nobody asked to be asked".to_owned()));
        }
        if self.asked_to_complete {
            return Ok(Outcome::Done);
        }
        self.asked_to_complete = true;
        let name = &world.item()?.name;
        let question = format!(
            "Complete failover: {name} is synchronized and runs on; resume this job to shut it \
             down and start it at the other site"
        );
        Ok(Outcome::WaitForOperator { question })
    }

    /// Asks a person what to do about a source that is not off.
    fn ask(&mut self, what: &str) -> Step {
        self.asked_again = true;
        let question = format!(
            "{}: {what}. Resume the job to try again, resume it with the comment {POWER_OFF} to \
             switch the machine off, or cancel it: the machine then goes on where it ran",
            Code::SOURCE_NOT_OFF.code
        );
        Ok(Outcome::WaitForOperator { question })
    }

    /// After an answer the source is asked anew: an answer to the former request says nothing.
    fn ask_anew(&mut self, world: &World, moment: &Moment) {
        if std::mem::take(&mut self.asked_again) {
            self.power_off = moment.reply.as_deref().map(str::trim) == Some(POWER_OFF);
            self.failover.asked = Some(world.new_id());
            self.failover.final_point = None;
        }
    }

    fn shut_down(&mut self, world: &mut World, moment: &Moment) -> Step {
        self.ask_anew(world, moment);
        let by: JobId = *self.failover.asked.get_or_insert(self.failover.way_back.job);
        let timeout_ms = world.policy.shutdown_timeout_seconds.saturating_mul(1000);
        world.source_run(RunPlan::ShutDown { job: by, timeout_ms, power_off: self.power_off })?;
        let host = world.source().name.clone();
        let late = moment.step_elapsed_ms() > timeout_ms + SHUTDOWN_GRACE_MS;
        let seen = world.source_now().and_then(|seen| seen.shutdown.clone());
        match seen.filter(|(job, _)| *job == by).map(|(_, outcome)| outcome) {
            Some(ShutdownOutcome::Done { point: Some(point) }) => {
                self.failover.final_point = Some(point);
                world.source_seen(world.confirmed_off(world.source_site()))?;
                Ok(Outcome::Done)
            }
            Some(ShutdownOutcome::Done { point: None }) => self.ask(&format!(
                "host {host} has shut it down but could not take its last data, which lie on \
                     its disks still"
            )),
            Some(ShutdownOutcome::Failed { problem }) => {
                world.source_seen(SourceState::Running)?;
                self.ask(&problem.what)
            }
            // It is off: only its last data are on the way, by comparison after a retry.
            Some(ShutdownOutcome::InProgress)
                if world.source_machine() == MachineState::Off && (!late || compares(world)) =>
            {
                pending(format!("the last data from host {host}"))
            }
            Some(ShutdownOutcome::InProgress) | None if late => {
                self.ask(&format!("host {host} did not confirm that it is off"))
            }
            Some(ShutdownOutcome::InProgress) | None => {
                pending(format!("host {host} to shut the machine down"))
            }
        }
    }

    fn final_delta(&mut self, world: &mut World, moment: &Moment) -> Step {
        let point = self.failover.final_point;
        let point = point.ok_or_else(|| permanent(Code::NO_POINT, "there is no final point"))?;
        if world.newest().is_some_and(|newest| newest.point == point) {
            return Ok(Outcome::Done);
        }
        if moment.step_elapsed_ms() > DELTA_WAIT_MS {
            let question = format!(
                "the machine is off, but its final point {point} did not arrive at host {}. \
                 Resume the job to wait on, or cancel it: the machine is then started again",
                world.target().name
            );
            return Ok(Outcome::WaitForOperator { question });
        }
        pending(format!("the final point {point} at the target"))
    }

    fn record(&mut self, world: &mut World, moment: &Moment) -> Step {
        let outcome = self.failover.record(world, moment)?;
        if world.policy.auto_reverse_planned {
            super::reprotect::reverse(world)?;
        }
        Ok(outcome)
    }
}
