//! Failover: shut the source down, fence it, start a machine from a point. Direction is data.

use super::recovery_plan::{TURN, await_turn};
use super::replaced::Replaced;
use super::way_back::{self, HasWayBack, WayBack, start_source};
use crate::events::Severity;
use crate::items::{Shutdown, changes_of, name_beside};
use crate::plan::{InstancePlan, RunPlan, TargetRun};
use crate::world::{Step, World, engine_problem, pending, permanent, warning};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, StepError, nothing};
use leeward_model::{
    Code, Epoch, Event, Fence, InstanceId, JobId, MachineState, PointId, Position, Protection,
    Site, SourceState, TimelineId,
};
use leeward_wire::message::{Purpose, ShutdownOutcome, Stage};
use serde::{Deserialize, Serialize};

/// How long a target that is away may take to come back before a job that needs it is refused.
const TARGET_WAIT_MS: u64 = 10_000;
/// What a host may need over the guest's own time before a shutdown counts as failed: it tries the
/// last delta for 30 s while its link is away, and an attempt takes up to 30 s to fail.
const SHUTDOWN_GRACE_MS: u64 = 75_000;
/// How long the last delta of a source that is off may take to become a point at the target.
const DELTA_WAIT_MS: u64 = 120_000;
/// How long a source that was left running may take to stop when the target is about to start.
const FENCE_WAIT_MS: u64 = 15_000;
/// After this a machine that cannot be made fails the step; its host has tried many times by then.
const INSTANCE_WAIT_MS: u64 = 600_000;

/// What was asked for, with the place of a chosen point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Chosen {
    /// Everything received, then the newest complete point.
    Latest,
    /// The newest point that is complete when the job begins.
    Processed,
    /// This one, of the store of this site.
    Point(PointId, Position, Site),
}

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failover {
    pub(crate) way_back: WayBack,
    pub(crate) choice: Chosen,
    pub(crate) shutdown: Shutdown,
    /// Timeline of the new machine's writes.
    pub(crate) timeline: TimelineId,
    /// The request to shut the source down, once this job has made it.
    pub(crate) asked: Option<JobId>,
    pub(crate) final_point: Option<PointId>,
    pub(crate) newest: Option<(PointId, Position)>,
    pub(crate) point: Option<(PointId, Position)>,
}

/// A job that fails over.
pub(crate) trait FailsOver: HasWayBack {
    /// Its memory of it.
    fn core(&mut self) -> &mut Failover;
}

impl HasWayBack for Failover {
    fn way_back(&mut self) -> &mut WayBack {
        &mut self.way_back
    }
}

impl FailsOver for Failover {
    fn core(&mut self) -> &mut Failover {
        self
    }
}

impl Job for Failover {
    type Context = World;
    const KIND: &'static str = "failover";
    const REVERSIBLE: &'static [Reversible<Self>] = &[
        Reversible::new("check", Self::check, Self::undo_all),
        Reversible::new("shut-down-source", Self::shut_down, Self::start_again),
        Reversible::new("final-delta", Self::final_delta, nothing),
        Reversible::new("fence", Self::fence, Self::unfence),
        Reversible::new("choose-point", Self::choose_point, nothing),
        Reversible::new("build-overlay", Self::build_overlay, Self::drop_machine),
        Reversible::new("prepare-machine", Self::prepare, Self::drop_machine),
        Reversible::new(TURN, |_, world, _| await_turn(world), nothing),
    ];
    const FORWARD: &'static [Forward<Self>] =
        &[Forward::new("start-machine", Self::start_machine), Forward::new("record", Self::record)];
    const ABANDON: &'static [Forward<Self>] = &way_back::steps::<Self>();
}

/// Waits a moment for the target, then refuses: nothing has been done yet.
pub(crate) fn need_target(world: &World, moment: &Moment) -> Result<Option<Outcome>, StepError> {
    // Below the first epoch the host has not read its replica yet: it knows of no point.
    if world.target_now().is_some_and(|seen| seen.fence > Epoch(0)) {
        return Ok(None);
    }
    let what = format!("target host {} does not report the replica", world.target().name);
    if moment.step_elapsed_ms() > TARGET_WAIT_MS {
        return Err(permanent(Code::TARGET_AWAY, what));
    }
    pending(what).map(Some)
}

/// The point that a choice means now; none while there is no complete point.
pub(crate) fn point_of(world: &World, choice: Chosen) -> Option<(PointId, Position)> {
    match choice {
        Chosen::Point(point, position, _) => Some((point, position)),
        Chosen::Latest | Chosen::Processed => {
            world.newest().map(|newest| (newest.point, newest.position))
        }
    }
}

/// Whether a step that waits for a machine to be made may fail now.
pub(crate) fn gives_up(moment: &Moment) -> bool {
    moment.attempt_elapsed_ms() > INSTANCE_WAIT_MS
}

/// Adds a machine to the plan of the site that has the point, once. What is set and mapped counts
/// as it is now; `test_network` is what the request for a test machine says.
pub(crate) fn add_instance(
    world: &mut World,
    id: InstanceId,
    (purpose, site): (Purpose, Site),
    point: (PointId, Position),
    timeline: TimelineId,
    test_network: Option<&str>,
) -> Result<(), StepError> {
    let since = world.host(site).generation + 1;
    let changes = changes_of(world, (purpose, site), test_network);
    let plan = &mut world.item_mut()?.plan;
    if plan.instance(id).is_none() {
        plan.instances.push(InstancePlan {
            id,
            site,
            purpose,
            point: point.0,
            position: point.1,
            timeline,
            stage: Stage::Overlay,
            permitted: false,
            probe: true,
            keep_as: None,
            since,
            changes,
        });
    }
    Ok(())
}

/// Undoes a machine that never held a permit. A host that is away deletes it when it is back.
pub(crate) fn undo_instance(world: &mut World, id: InstanceId) -> Step {
    let host = world.instance_host(id).clone();
    if world.item.is_none() || world.instance_drop(id)? {
        return Ok(Outcome::Done);
    }
    if !host.sight.connected {
        return Ok(Outcome::Skipped("its host is away; it deletes the machine later".into()));
    }
    pending(format!("host {} to delete machine {id}", host.name))
}

/// Another name for the machine at `site`, where none of the item's was ever and its host has one
/// of that name, which is somebody else's. It may have been made after the item was enabled.
fn rename(world: &mut World, site: Site) -> Result<(), StepError> {
    let item = world.item_mut()?;
    let beside = name_beside(&item.machine, item.id);
    let end = item.plan.end_mut(site);
    if !end.stale && end.run == RunPlan::Unassigned {
        end.machine = beside;
    }
    Ok(())
}

impl Failover {
    fn replaced(&self) -> Option<Replaced> {
        self.way_back.replaced
    }

    pub(super) fn check(&mut self, world: &mut World, moment: &Moment) -> Step {
        if let Some(wait) = need_target(world, moment)? {
            return Ok(wait);
        }
        if self.replaced().is_some() {
            return Ok(Outcome::Done);
        }
        let Some(newest) = world.newest().map(|newest| (newest.point, newest.position)) else {
            return Err(permanent(Code::NO_POINT, "the replica has no complete recovery point"));
        };
        self.newest = Some(newest);
        if self.choice == Chosen::Processed {
            self.point = Some(newest);
        }
        Self::look_at_source(world)?;
        Ok(Outcome::Done)
    }

    /// Notes whether the source runs, so that a way back starts it again.
    pub(super) fn look_at_source(world: &mut World) -> Result<(), StepError> {
        let machine = world.source_machine();
        world.item_mut()?.plan.source_ran = machine != MachineState::Off;
        // A machine that its owner switched off holds a permit and may be started any time.
        world.source_seen(match machine {
            MachineState::Running | MachineState::Paused => SourceState::Running,
            MachineState::Off | MachineState::Unknown => SourceState::Unknown,
        })
    }

    /// The last undo: the item returns to where it came from.
    pub(super) fn undo_all(&mut self, world: &mut World, _: &Moment) -> Step {
        if world.failing_over(self.way_back.job) {
            world.item_mut()?.plan.hurry = false;
            world.apply(Event::FailoverUndone { job: self.way_back.job })?;
            let name = world.item()?.name.clone();
            world.note("FailoverUndone", Severity::Info, format!("failover of {name} was undone"));
        }
        Ok(Outcome::Done)
    }

    fn shut_down(&mut self, world: &mut World, moment: &Moment) -> Step {
        if let Some(replaced) = self.replaced() {
            return replaced.stop(world, moment);
        }
        if self.shutdown == Shutdown::Leave {
            return Ok(Outcome::Skipped("the request leaves the source alone".to_owned()));
        }
        let host = world.source().name.clone();
        if !world.source().sight.connected {
            world.source_seen(SourceState::Unknown)?;
            let what = format!("source host {host} is not connected");
            return Ok(warning(Code::SOURCE_AWAY, what));
        }
        let timeout_ms = world.policy.shutdown_timeout_seconds.saturating_mul(1000);
        let by = *self.asked.get_or_insert(self.way_back.job);
        let (job, power_off, copy, needs_point) = (by, false, false, false);
        world.source_run(RunPlan::ShutDown { job, timeout_ms, power_off, copy, needs_point })?;
        let seen = world.source_now().and_then(|seen| seen.shutdown.clone());
        match seen.filter(|(job, _)| *job == by).map(|(_, outcome)| outcome) {
            Some(ShutdownOutcome::Done { point }) => {
                self.final_point = point;
                world.source_seen(world.confirmed_off(world.source_site()))?;
                Ok(Outcome::Done)
            }
            Some(ShutdownOutcome::Failed { problem }) => {
                world.source_seen(SourceState::Running)?;
                Ok(Outcome::DoneWithWarning(engine_problem(problem)))
            }
            Some(ShutdownOutcome::InProgress)
                if world.source_machine() == MachineState::Off
                    || moment.step_elapsed_ms() <= timeout_ms + SHUTDOWN_GRACE_MS =>
            {
                pending(format!("host {host} to shut the machine down"))
            }
            None if moment.step_elapsed_ms() <= timeout_ms + SHUTDOWN_GRACE_MS => {
                pending(format!("host {host} to begin the shutdown"))
            }
            Some(ShutdownOutcome::InProgress) | None => {
                world.source_seen(SourceState::Running)?;
                let what = format!("host {host} did not finish the shutdown");
                Ok(warning(Code::SHUTDOWN_FAILED, what))
            }
        }
    }

    pub(super) fn start_again(&mut self, world: &mut World, moment: &Moment) -> Step {
        if let Some(replaced) = self.replaced() {
            return replaced.run_again(world, self.way_back.job, moment);
        }
        match self.asked {
            Some(job) => start_source(world, job, moment),
            None => Ok(Outcome::Done),
        }
    }

    fn final_delta(&mut self, world: &mut World, moment: &Moment) -> Step {
        if self.replaced().is_some() {
            return Ok(Outcome::Skipped("nothing replicates the machine".to_owned()));
        }
        let off = matches!(world.state()?.source, SourceState::ConfirmedOff { .. });
        let Some(point) = self.final_point else {
            return Ok(match off {
                true => warning(Code::SHUTDOWN_FAILED, "the last delta could not be taken"),
                false => Outcome::Skipped("the source was not shut down".to_owned()),
            });
        };
        if world.newest().is_some_and(|newest| newest.point == point) {
            return Ok(Outcome::Done);
        }
        if moment.step_elapsed_ms() > DELTA_WAIT_MS {
            let what = format!("the final point {point} did not arrive at the target");
            return Ok(warning(Code::STEP_TIMED_OUT, what));
        }
        pending(format!("the final point {point} at the target"))
    }

    pub(super) fn fence(&mut self, world: &mut World, _: &Moment) -> Step {
        if matches!(world.state()?.protection, Protection::FailingOver { fence: Fence::Open, .. }) {
            world.apply(Event::SourceFenced)?;
            world.target_run(TargetRun::Hold)?;
        }
        let epoch = world.state()?.epoch;
        let durable = world.target_now().is_some_and(|seen| seen.fence >= epoch);
        if !durable || !world.target_answered() {
            return pending(format!("host {} to make the fence durable", world.target().name));
        }
        if self.replaced().is_none() {
            self.newest = world.newest().map(|n| (n.point, n.position)).or(self.newest);
        }
        world.item_mut()?.plan.fenced_at = self.newest;
        Ok(Outcome::Done)
    }

    /// The source may write again, on a new timeline that starts where the old one was fenced.
    pub(super) fn unfence(&mut self, world: &mut World, _: &Moment) -> Step {
        let job = self.way_back.job;
        let epoch = world.state()?.epoch;
        let Protection::FailingOver { fence: Fence::Fenced { .. }, .. } = world.state()?.protection
        else {
            return Ok(Outcome::Done);
        };
        if let Some(replaced) = self.replaced() {
            world.apply(Event::SourceUnfenced { job })?;
            return replaced.keep_branch(world);
        }
        let durable =
            world.target_answered() && world.target_now().is_some_and(|seen| seen.fence >= epoch);
        if !durable && world.target().sight.connected {
            // What the target took before its fence is only known once the fence is durable.
            return pending(format!("host {} to make the fence durable", world.target().name));
        }
        let newest = world.newest().map(|newest| (newest.point, newest.position));
        let plan = &mut world.item_mut()?.plan;
        if durable && newest.is_some() {
            plan.fenced_at = newest;
        } else {
            // The target may hold more than is known here: only a comparison makes it sure.
            plan.fenced_at = plan.fenced_at.or(self.newest);
            plan.resync += 1;
        }
        world.apply(Event::SourceUnfenced { job })?;
        world.open_branch(self.way_back.timeline)?;
        world.item_mut()?.plan.fenced_at = None;
        world.target_run(TargetRun::Receive)?;
        Ok(Outcome::Done)
    }

    pub(super) fn choose_point(&mut self, world: &mut World, _: &Moment) -> Step {
        let point = match self.choice {
            Chosen::Latest => world.item()?.plan.fenced_at.or(self.newest),
            Chosen::Processed => self.point,
            Chosen::Point(point, position, _) => Some((point, position)),
        };
        let Some(point) = point else {
            return Err(permanent(Code::NO_POINT, "the replica has no complete recovery point"));
        };
        self.point = Some(point);
        world.apply(Event::PointChosen { point: point.0 })?;
        Ok(Outcome::Done)
    }

    pub(super) fn build_overlay(&mut self, world: &mut World, moment: &Moment) -> Step {
        let point = self.point.ok_or_else(|| permanent(Code::NO_POINT, "no point was chosen"))?;
        let id = self.way_back.instance;
        let to = world.target_site();
        let made = &world.item()?.plan.instances;
        let taken = world.host(to).has_machine(&world.end(to)?.machine);
        if taken && !made.iter().any(|plan| plan.site == to && plan.purpose == Purpose::Failover) {
            rename(world, to)?;
        }
        let what = (Purpose::Failover, to);
        add_instance(world, id, what, point, self.timeline, None)?;
        world.instance_reach(id, Stage::Overlay, gives_up(moment))
    }

    pub(super) fn prepare(&mut self, world: &mut World, moment: &Moment) -> Step {
        world.instance_reach(self.way_back.instance, Stage::Prepared, gives_up(moment))
    }

    pub(super) fn drop_machine(&mut self, world: &mut World, _: &Moment) -> Step {
        undo_instance(world, self.way_back.instance)
    }

    fn start_machine(&mut self, world: &mut World, moment: &Moment) -> Step {
        self.start(world, moment, false)
    }

    /// The source loses its permit before the target gets its own, in one transaction at most.
    /// With `sure` nothing starts before somebody has confirmed that the source is off.
    pub(super) fn start(&mut self, world: &mut World, moment: &Moment, sure: bool) -> Step {
        let (to, from) = (world.target_site(), world.source_site());
        let id = self.way_back.instance;
        let permitted = world.item()?.plan.instance(id).is_some_and(|plan| plan.permitted);
        if let Some(replaced) = self.replaced()
            && !replaced.is_stopped(world, to)?
        {
            return pending(format!("host {} to stop the old machine", world.target().name));
        }
        if world.end(from)?.run.permits() {
            self.may_run(world)?;
        }
        if world.end(from)?.run != RunPlan::Unassigned {
            world.item_mut()?.plan.end_mut(from).stale = true;
            world.run_at(from, RunPlan::Fenced)?;
        }
        if world.source_is_off() {
            world.source_seen(world.confirmed_off(from))?;
        }
        if !permitted && world.end(to)?.run == RunPlan::Fenced && !world.is_fenced(to) {
            return pending(format!("host {} to stop its old machine", world.target().name));
        }
        let off = matches!(world.state()?.source, SourceState::ConfirmedOff { .. });
        let away = !world.source().sight.connected;
        let given_up = !sure && (away || moment.step_elapsed_ms() > FENCE_WAIT_MS);
        if !off && !permitted && !given_up {
            return pending(format!("host {} to stop the old machine", world.source().name));
        }
        if !off && away {
            world.source_seen(SourceState::Unknown)?;
        }
        // From its first start on it is its host's machine of the end's name.
        world.run_at(to, RunPlan::Unassigned)?;
        let problem = world.instance_answer(id).and_then(|seen| seen.problem.as_ref());
        if problem.is_some_and(|problem| problem.code == Code::MACHINE_FOREIGN.code) {
            rename(world, to)?;
        }
        world.instance_reach(id, Stage::Running, gives_up(moment))
    }

    /// The source held its permit until now: nobody has confirmed that it is off. What is known
    /// may be of the machine that was left at the target before, when nothing replicates this one.
    fn may_run(&self, world: &mut World) -> Result<(), StepError> {
        let machine = world.source_machine();
        if self.replaced().is_some() {
            world.item_mut()?.plan.source_ran = machine != MachineState::Off;
        }
        world.source_seen(match machine {
            MachineState::Running | MachineState::Paused => SourceState::Running,
            MachineState::Off | MachineState::Unknown => SourceState::Unknown,
        })
    }

    pub(super) fn record(&mut self, world: &mut World, _: &Moment) -> Step {
        let machine = self.way_back.instance;
        let to = world.target_site();
        world.apply(Event::FailoverFinished { machine })?;
        let now = world.now.wall;
        let one_way = self.replaced().is_some();
        let item = world.item_mut()?;
        item.last_failover = Some(now);
        let end = item.plan.end_mut(to);
        end.former_base = end.base;
        end.base = self.point.map(|(_, position)| position);
        item.plan.hurry = false;
        item.plan.one_way = one_way;
        item.plan.live = Some(machine);
        let name = item.name.clone();
        let off = matches!(item.state.source, SourceState::ConfirmedOff { .. });
        world.note("FailoverFinished", Severity::Info, format!("{name} was failed over"));
        if off {
            return Ok(Outcome::Done);
        }
        let what = format!("the old machine of {name} was not confirmed off");
        world.note("BothMayBeLive", Severity::Critical, what.clone());
        Ok(warning(Code::BOTH_MAY_BE_LIVE, what))
    }
}
