//! Planned failover: a failover that does not go on without the source's confirmed end and its
//! final point. Out or home makes no difference to it. A machine that nothing replicates is
//! replicated the other way first, by a reprotect of its own.

use super::failover::{Failover, FailsOver, need_target};
use super::recovery_plan::{TURN, await_turn};
use super::way_back::{self, HasWayBack, WayBack};
use crate::plan::RunPlan;
use crate::world::{Step, World, pending, permanent};
use leeward_durable::{
    Forward, Job, Moment, Outcome, Phase, Reason, Reversible, StepError, nothing,
};
use leeward_model::{
    Code, Event, FailoverOrigin, JobId, MachineState, PointChoice, Position, Problem, Protection,
    SourceState,
};
use leeward_wire::message::{CopyProgress, ShutdownOutcome};
use serde::{Deserialize, Serialize};

/// How long the source host may be away before the job is refused: nothing was done yet.
const SOURCE_WAIT_MS: u64 = 10_000;
/// How long a machine that is off may take to run: what it has written cannot be sent before.
const OFF_WAIT_MS: u64 = 15_000;
/// What a host may need over the guest's own time before a person is asked.
const SHUTDOWN_GRACE_MS: u64 = 30_000;
/// How long the last delta may take to become a point at the target before a person is asked.
const DELTA_WAIT_MS: u64 = 120_000;
/// How long a guest that is off may wait for its last data to be sent, without a byte of them being
/// committed, before a person is asked. Its host says so itself, earlier, as long as it is heard:
/// it tries for two minutes, and an attempt takes up to half a minute to fail.
const LAST_DATA_WAIT_MS: u64 = 180_000;
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
    /// The reprotect that it began with, of a machine that nothing replicated.
    #[serde(default)]
    pub(crate) reprotect: Option<JobId>,
    /// Whether nothing is sent before the machine is off (F-109).
    #[serde(default)]
    pub(crate) full: bool,
    /// When the host was last seen copying the machine that is off; 0 when never.
    #[serde(default)]
    pub(crate) copied_ms: u64,
    /// Of a guest that is off: the bytes that its host had sent, and since when it is so many.
    #[serde(default)]
    pub(crate) last_data: Option<(u64, u64)>,
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
        Reversible::new("reprotect", Self::reprotect, Self::undo_all),
        Reversible::new("check", Self::check, nothing),
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
        Reversible::new(TURN, |_, world, _| await_turn(world), nothing),
    ];
    const FORWARD: &'static [Forward<Self>] = &[
        Forward::new("start-machine", |job, world, moment| job.core().start(world, moment, true)),
        Forward::new("record", Self::record),
    ];
    const ABANDON: &'static [Forward<Self>] = &way_back::steps::<Self>();
}

impl PlannedFailover {
    /// Waits for the reprotect that it began with; only then the failover begins. Synchronized
    /// beforehand it needs the item protected. Else it is enough that replication has begun.
    fn reprotect(&mut self, world: &mut World, _: &Moment) -> Step {
        let Some(reprotect) = self.reprotect else {
            let why = "it is replicated to the other site already";
            return Ok(Outcome::Skipped(why.to_owned()));
        };
        if let Some(waiting_for) = reversing(world, reprotect)? {
            return pending(waiting_for);
        }
        let job = self.failover.way_back.job;
        match world.state()?.protection {
            Protection::Protected => {
                let (choice, target) = (PointChoice::Latest, world.target_site());
                world.apply(Event::FailoverStarted { job, choice, target })?;
                Ok(Outcome::Done)
            }
            Protection::Reprotecting { .. } if self.full => {
                world.apply(Event::FullFailoverStarted { job })?;
                Ok(Outcome::Done)
            }
            Protection::Reprotecting { .. } | Protection::Resynchronizing { .. } => {
                pending(match copying(world) {
                    Some(progress) => {
                        format!("the machine to be protected the other way: {}", figures(progress))
                    }
                    None => "the machine to be protected the other way".to_owned(),
                })
            }
            Protection::Enabling { .. }
            | Protection::InitialReplication { .. }
            | Protection::FailingOver { .. }
            | Protection::FailedOver { .. }
            | Protection::ChangingPoint { .. }
            | Protection::Committed { .. }
            | Protection::Disabling { .. }
            | Protection::Removed => Err(given_up(reprotect)),
        }
    }

    /// The last undo. A reprotect is not taken back: the machine has the more points for it.
    fn undo_all(&mut self, world: &mut World, moment: &Moment) -> Step {
        let begun = world.failing_over(self.failover.way_back.job);
        self.failover.undo_all(world, moment)?;
        match self.reprotect {
            Some(job) if !begun => Ok(Outcome::Skipped(format!(
                "nothing to take back: reprotect {job} goes on if it can, and protects the \
                 machine the other way"
            ))),
            _ => Ok(Outcome::Done),
        }
    }

    fn check(&mut self, world: &mut World, moment: &Moment) -> Step {
        if !world.source().sight.connected {
            let what = format!("source host {} is not connected", world.source().name);
            if moment.step_elapsed_ms() > SOURCE_WAIT_MS {
                return Err(permanent(Code::ROLE_AWAY, what));
            }
            return pending(what);
        }
        if copies_everything(world) {
            if let Some(wait) = need_target(world, moment)? {
                return Ok(wait);
            }
            Failover::look_at_source(world)?;
            return Ok(Outcome::Done);
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
        if self.full {
            let why = "nothing is sent beforehand: all is sent while the machine is off";
            return Ok(Outcome::Skipped(why.to_owned()));
        }
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
            self.last_data = None;
        }
    }

    fn shut_down(&mut self, world: &mut World, moment: &Moment) -> Step {
        self.ask_anew(world, moment);
        let by: JobId = *self.failover.asked.get_or_insert(self.failover.way_back.job);
        let timeout_ms = world.policy.shutdown_timeout_seconds.saturating_mul(1000);
        let (job, power_off, copy, needs_point) = (by, self.power_off, self.full, true);
        world.source_run(RunPlan::ShutDown { job, timeout_ms, power_off, copy, needs_point })?;
        let host = world.source().name.clone();
        let late = self.is_late(world, timeout_ms + SHUTDOWN_GRACE_MS, moment);
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
            Some(ShutdownOutcome::Failed { problem }) if is_guest_off(world) => {
                self.ask(&unsent(&host, Some(&problem)))
            }
            Some(ShutdownOutcome::Failed { problem }) => {
                world.source_seen(SourceState::Running)?;
                self.ask(&problem.what)
            }
            Some(ShutdownOutcome::InProgress) if copy && is_guest_off(world) => {
                self.copied_ms = moment.now_ms;
                pending(copies(world, &host))
            }
            // Only its last data are on the way, by comparison if its process is gone.
            Some(ShutdownOutcome::InProgress)
                if is_guest_off(world) && (!late || copying(world).is_some()) =>
            {
                pending(copies(world, &host))
            }
            Some(ShutdownOutcome::InProgress) if is_guest_off(world) => {
                let problem = world.source_now().and_then(|seen| seen.problem.clone());
                self.ask(&unsent(&host, problem.as_ref()))
            }
            Some(ShutdownOutcome::InProgress) | None if late => {
                self.ask(&format!("host {host} did not confirm that it is off"))
            }
            Some(ShutdownOutcome::InProgress) | None => {
                pending(format!("host {host} to shut the machine down"))
            }
        }
    }

    /// Whether the host has had its time, which begins anew while it copies; once the guest is
    /// off, whether nothing has come of its last data for too long.
    fn is_late(&mut self, world: &World, limit_ms: u64, moment: &Moment) -> bool {
        if is_guest_off(world) {
            let sent = world.source_now().map_or(0, |seen| seen.sent_bytes);
            let before = self.last_data.filter(|(bytes, _)| *bytes == sent);
            let (_, since_ms) = *self.last_data.insert(before.unwrap_or((sent, moment.now_ms)));
            return moment.now_ms.saturating_sub(since_ms) > LAST_DATA_WAIT_MS;
        }
        self.last_data = None;
        let since_copy = moment.now_ms.saturating_sub(self.copied_ms);
        moment.step_elapsed_ms().min(since_copy) > limit_ms
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
        let reverses = world.policy.auto_reverse_planned;
        let former = world.reverse.as_ref().filter(|row| !row.record.phase.is_final());
        if let Some(former) = former.filter(|_| reverses) {
            // The replication that it began with is over, and so is what it has left to do.
            return pending(format!("reprotect {} to end", former.facts.id));
        }
        let outcome = self.failover.record(world, moment)?;
        if reverses {
            super::reprotect::reverse(world)?;
        }
        Ok(outcome)
    }
}

/// What the reprotect is waiting for; none once it is through.
fn reversing(world: &World, job: JobId) -> Result<Option<String>, StepError> {
    let found = world.reverse.as_ref().filter(|row| row.facts.id == job);
    let record = &found.ok_or_else(|| given_up(job))?.record;
    match &record.phase {
        Phase::Succeeded => Ok(None),
        Phase::RolledBack { reason: Reason::Failed(problem) }
        | Phase::Abandoned { reason: Reason::Failed(problem) } => {
            Err(StepError::Permanent(problem.clone()))
        }
        Phase::RolledBack { reason: Reason::Cancelled }
        | Phase::Abandoned { reason: Reason::Cancelled } => Err(given_up(job)),
        Phase::Reversible { .. }
        | Phase::Forward { .. }
        | Phase::Undoing { .. }
        | Phase::Abandoning { .. } => {
            let step = record.current_log().and_then(|step| step.message.as_deref());
            Ok(Some(format!("reprotect {job}: {}", step.unwrap_or("it begins"))))
        }
    }
}

fn given_up(reprotect: JobId) -> StepError {
    let what = format!("reprotect {reprotect} was given up, so there is nothing to fail over to");
    permanent(Code::REPROTECT_GIVEN_UP, what)
}

/// Whether there is no point of the source's line yet, because all of it comes with the final one.
fn copies_everything(world: &World) -> bool {
    matches!(
        world.item.as_ref().map(|item| &item.state.protection),
        Some(Protection::FailingOver { from: FailoverOrigin::Reprotecting { .. }, .. })
    )
}

/// How far the source host is with reading the whole machine, while it does.
fn copying(world: &World) -> Option<CopyProgress> {
    world.source_now()?.phase.copying()
}

fn figures(progress: CopyProgress) -> String {
    let CopyProgress { done_bytes, total_bytes, seconds_left, .. } = progress;
    let left = seconds_left.map(|left| format!(", {left} s left")).unwrap_or_default();
    format!("{done_bytes} of {total_bytes} bytes{left}")
}

/// Whether the guest no longer runs, as its host says: only its data are on the way.
fn is_guest_off(world: &World) -> bool {
    matches!(world.source_machine(), MachineState::Off | MachineState::Paused)
}

/// That the guest is off and its last data are not there, with what its host says of it.
fn unsent(host: &str, problem: Option<&Problem>) -> String {
    let why = problem.map(|problem| format!(" ({}: {})", problem.what, problem.cause));
    let why = why.unwrap_or_default();
    format!("its guest is off, but host {host} could not send its last data{why}")
}

/// What a host does that copies a machine which is off, with what holds it up.
fn copies(world: &World, host: &str) -> String {
    if let Some(progress) = copying(world) {
        return format!("host {host} to copy the machine, which is off: {}", figures(progress));
    }
    match world.source_now().and_then(|seen| seen.problem.as_ref()) {
        Some(problem) => format!("host {host}, which tries again: {problem}"),
        None => format!("the last data from host {host}"),
    }
}
