//! The way back from a started target: shared by failover's ABANDON and the cancel of a failover.

use super::{replaced::Replaced, resync};
use crate::plan::{RunPlan, TargetRun};
use crate::world::{HostFacts, Step, World, engine_problem, pending, warning};
use leeward_durable::{Forward, Job, Moment, Outcome};
use leeward_model::{
    Code, Event, InstanceId, JobId, MachineState, PointId, PointOrigin, Protection, SourceState,
    TimelineId,
};
use leeward_wire::message::{KeepAs, Stage};
use serde::{Deserialize, Serialize};

/// How long the target may be away before a person is asked whether the machine is off.
const STOP_WAIT_MS: u64 = 60_000;
/// How long a stopped machine's work may take to become a point: it is only a record and a pin.
const KEEP_WAIT_MS: u64 = 600_000;
/// How long a source may fail to start before the job ends with a warning; its host goes on.
pub(super) const START_WAIT_MS: u64 = 120_000;

/// Is the memory of the way back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WayBack {
    pub(crate) job: JobId,
    pub(crate) instance: InstanceId,
    /// The source's new timeline.
    pub(crate) timeline: TimelineId,
    /// The point that keeps the target's work.
    pub(crate) keep: PointId,
    /// Whether a person, not the host, said that the machine is off.
    pub(crate) off_by_word: bool,
    /// The machine that lived before and was not replicated, if that is what was replaced.
    pub(crate) replaced: Option<Replaced>,
}

/// A job that has a way back.
pub(crate) trait HasWayBack: Job<Context = World> {
    /// Its memory of it.
    fn way_back(&mut self) -> &mut WayBack;
}

/// The steps, in order. Correct after any prefix of a failover's FORWARD list.
pub(crate) const fn steps<J: HasWayBack>() -> [Forward<J>; 5] {
    [
        Forward::new("stop-machine", |job, world, moment| job.way_back().stop(world, moment)),
        Forward::new("keep-work", |job, world, moment| job.way_back().keep(world, moment)),
        Forward::new("raise-epoch", |job, world, _| job.way_back().raise(world)),
        Forward::new("start-source", |job, world, moment| job.way_back().start(world, moment)),
        Forward::new("resync", |job, world, _| job.way_back().resync(world)),
    ]
}

/// `2026-11-21T03:04:05Z`, for names of points.
pub(crate) fn iso(now: &crate::Now) -> String {
    let time = jiff::Timestamp::from_second(now.wall.0.div_euclid(1000));
    time.map_or_else(|_| now.wall.0.to_string(), |time| time.to_string())
}

/// Stops a machine for good and keeps its work. Done once its host confirms that it is off.
pub(crate) fn stop_instance(
    world: &mut World,
    id: InstanceId,
    keep: impl FnOnce() -> KeepAs,
) -> Result<bool, leeward_durable::StepError> {
    world.instance_set(id, |plan| {
        plan.permitted = false;
        if plan.stage != Stage::Stopped {
            plan.stage = Stage::Stopped;
            plan.keep_as = Some(keep());
        }
    })?;
    if world.item()?.plan.instance(id).is_none() {
        return Ok(true);
    }
    Ok(world
        .instance_answer(id)
        .is_some_and(|seen| seen.stage == Stage::Stopped && seen.machine == MachineState::Off))
}

/// Whether a stopped machine's work is kept, or there is none.
pub(crate) fn is_kept(world: &World, id: InstanceId) -> bool {
    world
        .instance_answer(id)
        .is_some_and(|seen| seen.kept.is_some() || seen.guest_started_at.is_none())
}

impl WayBack {
    fn stop(&mut self, world: &mut World, moment: &Moment) -> Step {
        let keep = KeepAs {
            point: self.keep,
            name: format!("abandoned-{}", iso(&world.now)),
            origin: PointOrigin::Divergent,
        };
        if stop_instance(world, self.instance, || keep)? {
            return Ok(Outcome::Done);
        }
        let host = world.instance_host(self.instance).clone();
        if let Some(words) = &moment.reply {
            self.off_by_word = true;
            let what = format!("an operator says that {} is off: {words}", self.instance);
            return Ok(warning(Code::STOP_NOT_CONFIRMED, what));
        }
        let HostFacts { name: host, sight, .. } = host;
        if !sight.connected && moment.step_elapsed_ms() > STOP_WAIT_MS {
            let question = format!(
                "host {host} is away, so nobody can confirm that machine {} is off. Make sure of \
                 it, then answer; the source is not started before",
                self.instance
            );
            return Ok(Outcome::WaitForOperator { question });
        }
        pending(format!("host {host} to confirm that machine {} is off", self.instance))
    }

    fn keep(&mut self, world: &mut World, moment: &Moment) -> Step {
        if world.item()?.plan.instance(self.instance).is_none() || is_kept(world, self.instance) {
            return Ok(Outcome::Done);
        }
        if self.off_by_word {
            let why = "the host is away; it keeps the machine's disks when it is back";
            return Ok(Outcome::Skipped(why.to_owned()));
        }
        if moment.step_elapsed_ms() > KEEP_WAIT_MS {
            let what = format!("the work of machine {} was not sealed in time", self.instance);
            return Ok(warning(Code::STEP_TIMED_OUT, what));
        }
        pending(format!("the work of machine {} to be kept as a point", self.instance))
    }

    /// The item's next epoch, a new timeline for the source, a receiving replica. The end that is
    /// left again has the machine that it had before.
    fn raise(&mut self, world: &mut World) -> Step {
        let to = world.target_site();
        world.rest_at(to)?;
        if matches!(world.state()?.protection, Protection::FailedOver { .. }) {
            let end = world.item_mut()?.plan.end_mut(to);
            end.base = end.former_base;
        }
        match world.state()?.protection {
            Protection::Resynchronizing { job, .. } if job == self.job => {}
            _ => world.apply(Event::FailoverAbandoned { job: self.job })?,
        }
        if let Some(replaced) = self.replaced {
            return replaced.keep_branch(world);
        }
        world.open_branch(self.timeline)?;
        world.target_run(TargetRun::Receive)?;
        let plan = &mut world.item_mut()?.plan;
        plan.fenced_at = None;
        plan.hurry = false;
        plan.resync += 1;
        Ok(Outcome::Done)
    }

    fn start(&mut self, world: &mut World, moment: &Moment) -> Step {
        match self.replaced {
            Some(replaced) => replaced.run_again(world, self.job, moment),
            None => start_source(world, self.job, moment),
        }
    }

    fn resync(&mut self, world: &mut World) -> Step {
        if self.replaced.is_some() {
            return Ok(Outcome::Skipped("nothing replicates the machine".to_owned()));
        }
        resync::spawn(world)
    }
}

/// Lets the source machine run again and waits until it does, if it ran before.
pub(crate) fn start_source(world: &mut World, job: JobId, moment: &Moment) -> Step {
    let ran = world.item()?.plan.source_ran;
    if !matches!(world.end(world.source_site())?.run, RunPlan::Replicate { .. }) {
        world.source_run(RunPlan::Replicate { start: ran.then_some(job) })?;
    }
    let host = world.source().name.clone();
    if !world.source().sight.connected {
        world.source_seen(SourceState::Unknown)?;
        let what = format!("host {host} is away; it starts the machine when it is back");
        return Ok(warning(Code::ROLE_AWAY, what));
    }
    if !ran {
        return Ok(Outcome::Skipped("the machine was off before the failover".to_owned()));
    }
    let seen = world.source_now().filter(|_| world.source_answered());
    let started = seen.and_then(|seen| seen.started.clone()).filter(|(by, _)| *by == job);
    match started {
        Some((_, Ok(()))) => {
            world.source_seen(SourceState::Running)?;
            world.source_run(RunPlan::Replicate { start: None })?;
            Ok(Outcome::Done)
        }
        Some((_, Err(problem))) if moment.step_elapsed_ms() > START_WAIT_MS => {
            Ok(Outcome::DoneWithWarning(engine_problem(problem)))
        }
        Some((_, Err(problem))) => pending(format!("host {host}, which tries again: {problem}")),
        None => pending(format!("host {host} to start the machine again")),
    }
}
