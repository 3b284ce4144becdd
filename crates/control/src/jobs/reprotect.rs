//! Reprotect: the machine that was failed over is replicated the other way. The machine that was
//! left is fenced, its disks become the base, and the live machine never stops.

use super::enable_protection::need_hosts;
use super::finalize_reprotect::FinalizeReprotect;
use super::{NewJob, Scenario};
use crate::events::Severity;
use crate::items::ResyncTrust;
use crate::plan::{Half, HalfOf, RunPlan, TargetRun, other};
use crate::store::jobs::Lane;
use crate::world::{Step, World, pending};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, StepError, nothing};
use leeward_model::{
    Branch, Code, Event, FailoverOrigin, InstanceId, JobId, MachineState, Position, Protection,
    TimelineId,
};
use leeward_wire::message::{Seeded, Stage};
use serde::{Deserialize, Serialize};

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reprotect {
    pub(crate) job: JobId,
    /// The live machine, by the id it had as an instance.
    pub(crate) machine: InstanceId,
    /// Timeline of the old disks' seed.
    pub(crate) seed: TimelineId,
    /// The live machine's new timeline.
    pub(crate) timeline: TimelineId,
    /// What the seed came to: a place to build on, or nothing.
    pub(crate) parent: Option<Position>,
    /// Whether everything is sent, without a comparison with the old disks (F-109).
    #[serde(default)]
    pub(crate) full: bool,
    /// What the comparison goes by with what the target's store has.
    #[serde(default)]
    pub(crate) trust: ResyncTrust,
    /// What an earlier reprotect has brought into the target's store before it was given up.
    #[serde(default)]
    pub(crate) goes_on: Option<GoesOn>,
}

/// Is the place that a reprotect goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GoesOn {
    of: HalfOf,
    at: Position,
}

/// How long the target's host may take to say how far an earlier reprotect came. Without its word
/// all is read and compared anew, which costs time and bytes but nothing else.
const HALF_WAIT_MS: u64 = 15_000;

impl Job for Reprotect {
    type Context = World;
    const KIND: &'static str = "reprotect";
    const REVERSIBLE: &'static [Reversible<Self>] = &[
        Reversible::new("check", Self::check, Self::give_up),
        Reversible::new("hand-over", Self::hand_over, nothing),
        Reversible::new("fence-left-machine", Self::fence_left, nothing),
        Reversible::new("seed", Self::seed, nothing),
    ];
    const FORWARD: &'static [Forward<Self>] = &[
        Forward::new("start-replication", Self::start_replication),
        Forward::new("record", Self::record),
    ];
    const ABANDON: &'static [Forward<Self>] = &[Forward::new("give-up", Self::give_up)];
}

/// The event that begins a reprotect, from the item's state.
pub(crate) fn begins(world: &World, job: JobId) -> Option<(Event, InstanceId)> {
    match world.item.as_ref()?.state.protection {
        Protection::Committed { machine } => Some((Event::ReprotectStarted { job }, machine)),
        Protection::FailedOver { machine, .. } => Some((Event::ReverseStarted { job }, machine)),
        _ => None,
    }
}

/// A job that reprotects `machine`. The event that begins it has been applied.
pub(crate) fn new_job(world: &mut World, job: JobId, machine: InstanceId) -> Reprotect {
    if let Some(item) = &mut world.item {
        let active = item.state.active;
        if matches!(item.plan.end(active).run, RunPlan::Live { .. }) {
            item.plan.branch.epoch = item.state.epoch;
        }
        // A new timeline in that store ends the former ones by itself.
        item.plan.end_mut(other(active)).given_up.clear();
    }
    let (seed, timeline) = (world.new_id(), world.new_id());
    let (parent, goes_on, trust) = (None, None, ResyncTrust::default());
    Reprotect { job, machine, seed, timeline, parent, full: false, trust, goes_on }
}

/// Goes on with the other direction after a failover, because the policy says so (F-084).
pub(super) fn reverse(world: &mut World) -> Result<(), StepError> {
    let job = world.new_id();
    let Some((event, machine)) = begins(world, job) else { return Ok(()) };
    world.apply(event)?;
    let memory = new_job(world, job, machine);
    world.start_job(NewJob::of_item(job, Lane::Reverse, Scenario::ReverseReplication), &memory)
}

/// Turns the direction back. The live machine is not touched: it is its host's, replicated no
/// more, or still the instance that it was.
pub(crate) fn give_up(world: &mut World, machine: InstanceId) -> Result<(), StepError> {
    let active = world.state()?.active;
    let left = other(active);
    let was_off = matches!(world.end(active)?.run, RunPlan::Replicate { .. });
    let epoch = world.state()?.epoch;
    let begun = match world.end(left)?.run {
        RunPlan::Seed { timeline, base, .. } => {
            let branch = Branch { timeline, parent: base, epoch };
            Some((HalfOf::OldDisks, branch))
        }
        _ if was_off => Some((HalfOf::LiveMachine, world.item()?.plan.branch)),
        _ => None,
    };
    world.apply(Event::ReprotectAbandoned { machine })?;
    let ended = world.state()?.epoch;
    if let Some((of, branch)) = begun {
        // What it stands on of an earlier one is kept with it.
        let since_ms = world.now.wall_ms();
        let end = world.item_mut()?.plan.end_mut(left);
        end.half = Some(Half { branch, of, ended, since_ms });
    }
    if world.end(left)?.has_store() {
        world.replica_at(left, TargetRun::Hold)?;
    }
    world.rest_at(left)?;
    if was_off {
        // Replication began only after the machine that was left was known to be off.
        world.source_seen(world.confirmed_off(left))?;
        world.run_at(active, RunPlan::Live { start: None })?;
    }
    let item = world.item_mut()?;
    item.plan.branch.epoch = item.state.epoch;
    let name = item.name.clone();
    world.note("ReprotectAbandoned", Severity::Info, format!("reprotect of {name} was given up"));
    Ok(())
}

impl Reprotect {
    /// Whether the item's state is still this job's: a failover from a point gives it up at once.
    fn is_ours(&self, world: &World) -> bool {
        matches!(world.item.as_ref().map(|item| &item.state.protection),
            Some(Protection::Reprotecting { job }) if *job == self.job)
    }

    fn given_up() -> Step {
        Ok(Outcome::Skipped("the reprotect was given up".to_owned()))
    }

    fn check(&mut self, world: &mut World, moment: &Moment) -> Step {
        if !self.is_ours(world) {
            return Self::given_up();
        }
        if let Some(wait) = need_hosts(world, moment)? {
            return Ok(wait);
        }
        let waiting_for = match world.item()?.plan.instance(self.machine) {
            Some(_) => hydrated(world, self.machine).err(),
            None if world.source_machine() == MachineState::Running => None,
            None => Some(format!("the machine on host {} to run", world.source().name)),
        };
        match waiting_for {
            Some(waiting_for) => pending(waiting_for),
            None => self.look_back(world, moment),
        }
    }

    /// Finds out how far an earlier reprotect came that was given up. Its store must take nothing
    /// more for it, or it would not be the end of it.
    fn look_back(&mut self, world: &World, moment: &Moment) -> Step {
        let left = world.target_site();
        let Some(Half { branch, of, ended, .. }) = world.end(left)?.half else {
            return Ok(Outcome::Done);
        };
        let answered = world.replica_answered(left);
        let seen = world.replica_now(left).filter(|seen| answered && seen.fence >= ended);
        let Some(seen) = seen else {
            if moment.step_elapsed_ms() > HALF_WAIT_MS {
                return Ok(Outcome::Done);
            }
            let host = &world.host(left).name;
            return pending(format!("host {host} to say how far the earlier reprotect came"));
        };
        let of_it = |at: &Position| at.timeline == branch.timeline || Some(*at) == branch.parent;
        self.goes_on = seen.durable.filter(of_it).map(|at| GoesOn { of, at });
        Ok(Outcome::Done)
    }

    /// The place that the copy of the live machine came to, if it can be gone on with: what the
    /// old machine left is sealed below it, unless nobody wants it.
    fn copied_to(&self, world: &World) -> Result<Option<Position>, StepError> {
        let left = world.target_site();
        let end = world.end(left)?;
        let stopped = world.machine_now(left).and_then(|seen| seen.divergent.as_ref());
        let sealed = self.full || !end.stale || end.sealed == stopped.map(|note| note.stopped_at);
        let copied = self.goes_on.filter(|half| half.of == HalfOf::LiveMachine && sealed);
        Ok(copied.map(|half| half.at))
    }

    /// The last undo, and the way out later on.
    fn give_up(&mut self, world: &mut World, _: &Moment) -> Step {
        if !self.is_ours(world) {
            return Self::given_up();
        }
        give_up(world, self.machine)?;
        Ok(Outcome::Done)
    }

    fn hand_over(&mut self, world: &mut World, _: &Moment) -> Step {
        if !self.is_ours(world) {
            return Self::given_up();
        }
        hand_over(world, self.machine)
    }

    fn fence_left(&mut self, world: &mut World, _: &Moment) -> Step {
        if !self.is_ours(world) {
            return Self::given_up();
        }
        let left = world.target_site();
        if !world.end(left)?.stale {
            return Ok(Outcome::Skipped("no machine was left there".to_owned()));
        }
        world.run_at(left, RunPlan::Fenced)?;
        if world.is_fenced(left) {
            return Ok(Outcome::Done);
        }
        pending(format!("host {} to confirm that the old machine is off", world.host(left).name))
    }

    fn seed(&mut self, world: &mut World, _: &Moment) -> Step {
        if !self.is_ours(world) {
            return Self::given_up();
        }
        let left = world.target_site();
        self.parent = self.copied_to(world)?;
        if self.parent.is_some() {
            let why = "an earlier reprotect got further: it is gone on with";
            return Ok(Outcome::Skipped(why.to_owned()));
        }
        if !world.end(left)?.stale {
            return Ok(Outcome::Skipped("there are no old disks: all is sent".to_owned()));
        }
        if self.full {
            return Ok(Outcome::Skipped("a full copy was asked for: all is sent".to_owned()));
        }
        let begun = self.goes_on.filter(|half| half.of == HalfOf::OldDisks);
        let base = begun.map(|half| half.at).or(world.end(left)?.base);
        world.run_at(left, RunPlan::Seed { job: self.job, timeline: self.seed, base })?;
        world.replica_at(left, TargetRun::Receive)?;
        let host = world.host(left).name.clone();
        let seen = world.machine_now(left);
        let stopped = seen.and_then(|seen| Some(seen.divergent.as_ref()?.stopped_at));
        let seeded = seen.and_then(|seen| seen.seeded.clone());
        let seeded = seeded.filter(|(job, _)| *job == self.job).map(|(_, seeded)| seeded);
        if matches!(seeded, Some(Ok(_))) {
            world.item_mut()?.plan.end_mut(left).sealed = stopped;
        }
        match seeded {
            Some(Ok(Seeded::Stored { position, .. })) => {
                self.parent = Some(position);
                Ok(Outcome::Done)
            }
            Some(Ok(Seeded::Nothing)) => {
                self.parent = None;
                Ok(Outcome::Skipped("the old disks are gone: all is sent".to_owned()))
            }
            Some(Err(problem)) => pending(format!("host {host}, which tries again: {problem}")),
            None => pending(format!("host {host} to read the old disks")),
        }
    }

    fn start_replication(&mut self, world: &mut World, _: &Moment) -> Step {
        if !self.is_ours(world) {
            return Self::given_up();
        }
        let (from, to) = (world.source_site(), world.target_site());
        let epoch = world.state()?.epoch;
        let plan = &mut world.item_mut()?.plan;
        // Once: this step is looked at until the host has begun.
        if self.trust == ResyncTrust::Nothing && plan.branch.timeline != self.timeline {
            plan.resync_asked(self.trust);
        }
        plan.branch = Branch { timeline: self.timeline, parent: self.parent, epoch };
        plan.fenced_at = None;
        plan.one_way = false;
        // A new timeline in that store ends the former ones by itself.
        plan.end_mut(to).half = None;
        world.rest_at(to)?;
        world.replica_at(to, TargetRun::Receive)?;
        world.run_at(from, RunPlan::Replicate { start: None })?;
        if !world.replica_answered(to) || world.target_now().is_none_or(|seen| seen.fence < epoch) {
            return pending(format!("host {} to take data", world.target().name));
        }
        let seen = world.source_now().filter(|_| world.source_answered());
        if seen.is_some_and(|seen| seen.timeline == self.timeline) {
            return Ok(Outcome::Done);
        }
        pending(format!("host {} to begin with the machine", world.source().name))
    }

    /// Why there is nothing to watch any more, if there is not: this may have waited for long.
    fn is_over(&self, world: &World) -> Option<&'static str> {
        match &world.item.as_ref()?.state.protection {
            Protection::Reprotecting { job } if *job == self.job => None,
            Protection::FailingOver { from: FailoverOrigin::Reprotecting { job }, .. }
                if *job == self.job =>
            {
                None
            }
            Protection::Protected
            | Protection::Resynchronizing { .. }
            | Protection::FailingOver {
                from: FailoverOrigin::Protected | FailoverOrigin::Resynchronizing { .. },
                ..
            } => Some("the first recovery point of the other direction was there already"),
            Protection::Disabling { .. } | Protection::Removed => Some("protection ends"),
            Protection::Reprotecting { .. }
            | Protection::FailingOver { .. }
            | Protection::FailedOver { .. }
            | Protection::ChangingPoint { .. }
            | Protection::Committed { .. }
            | Protection::Enabling { .. }
            | Protection::InitialReplication { .. } => Some("the reprotect was given up"),
        }
    }

    fn record(&mut self, world: &mut World, _: &Moment) -> Step {
        if let Some(why) = self.is_over(world) {
            return Ok(Outcome::Skipped(why.to_owned()));
        }
        if let Some(watch) = &world.watch {
            return pending(format!("job {}, which watched the former direction", watch.facts.id));
        }
        let (id, machine) = (world.new_id(), self.machine);
        let text = format!("{} is being protected the other way", world.item()?.name);
        world.note("ReverseReplicationStarted", Severity::Info, text);
        let new = NewJob::of_item(id, Lane::Watch, Scenario::SecondaryIrCompletion);
        world.start_job(new, &FinalizeReprotect { reprotect: self.job, machine })?;
        Ok(Outcome::Done)
    }
}

/// Whether a failed-over machine runs and holds all its data; else what is waited for.
pub(super) fn hydrated(world: &World, id: InstanceId) -> Result<(), String> {
    let host = &world.instance_host(id).name;
    let seen = world.instance_now(id);
    let Some(seen) = seen.filter(|seen| seen.machine == MachineState::Running) else {
        return Err(format!("the machine on host {host} to run"));
    };
    match seen.hydrated_percent.unwrap_or(0.0) {
        percent if percent >= 100.0 => Ok(()),
        percent => {
            let what = format!("it holds {percent:.0} % of its data on host {host}");
            Err(Code::STILL_HYDRATING.problem(what).to_string())
        }
    }
}

/// Makes an instance its host's machine: the one permit passes to the other in one transaction.
pub(super) fn hand_over(world: &mut World, id: InstanceId) -> Step {
    let Some(plan) = world.item()?.plan.instance(id) else { return Ok(Outcome::Done) };
    let (site, timeline, position) = (plan.site, plan.timeline, plan.position);
    if plan.stage != Stage::HandedOver {
        world.instance_set(id, |plan| {
            plan.stage = Stage::HandedOver;
            plan.permitted = false;
        })?;
        world.run_at(site, RunPlan::Live { start: None })?;
        let item = world.item_mut()?;
        item.plan.branch = Branch { timeline, parent: None, epoch: item.state.epoch };
        item.plan.history = Some(position);
    }
    let host = world.host(site).name.clone();
    let answer = world.instance_answer(id);
    if let Some(problem) = answer.and_then(|seen| seen.problem.as_ref()) {
        return pending(format!("host {host}, which tries again: {problem}"));
    }
    if !world.run_answered(site) || answer.is_some_and(|seen| seen.stage != Stage::HandedOver) {
        return pending(format!("host {host} to take the machine over as its own"));
    }
    world.item_mut()?.plan.instances.retain(|plan| plan.id != id);
    Ok(Outcome::Done)
}
