//! Change of recovery point before the commit. The running machine's work is kept as a point.

use super::failover::{add_instance, gives_up, need_target, undo_instance};
use super::way_back::{is_kept, iso, stop_instance};
use crate::events::Severity;
use crate::world::{Step, World, engine_problem, pending};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, StepError, nothing};
use leeward_model::{
    Event, InstanceId, JobId, MachineState, PointId, PointOrigin, Position, Protection, TimelineId,
};
use leeward_wire::message::{KeepAs, Purpose, Stage};
use serde::{Deserialize, Serialize};

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChangePoint {
    pub(crate) job: JobId,
    /// The machine that runs.
    pub(crate) old: InstanceId,
    /// The machine that shall run.
    pub(crate) new: InstanceId,
    pub(crate) timeline: TimelineId,
    pub(crate) to: (PointId, Position),
    /// Keeps the old machine's work.
    pub(crate) keep: PointId,
    /// Keeps the new machine's work if the change is abandoned.
    pub(crate) keep_new: PointId,
}

impl Job for ChangePoint {
    type Context = World;
    const KIND: &'static str = "change-point";
    const REVERSIBLE: &'static [Reversible<Self>] = &[
        Reversible::new("check", Self::check, Self::undo_all),
        Reversible::new("build-overlay", Self::build_overlay, Self::drop_machine),
        Reversible::new("stop-machine", Self::stop_old, Self::run_old),
        Reversible::new("keep-work", Self::keep_work, nothing),
    ];
    const FORWARD: &'static [Forward<Self>] =
        &[Forward::new("start-machine", Self::start_new), Forward::new("record", Self::record)];
    const ABANDON: &'static [Forward<Self>] = &[
        Forward::new("stop-new-machine", Self::stop_new),
        Forward::new("keep-new-work", Self::keep_new_work),
        Forward::new("start-old-machine", Self::run_old),
        Forward::new("record-return", Self::undo_all),
    ];
}

impl ChangePoint {
    fn changing(&self, world: &World) -> bool {
        matches!(world.item.as_ref().map(|item| &item.state.protection),
            Some(Protection::ChangingPoint { job, .. }) if *job == self.job)
    }

    fn check(&mut self, world: &mut World, moment: &Moment) -> Step {
        Ok(need_target(world, moment)?.unwrap_or(Outcome::Done))
    }

    fn undo_all(&mut self, world: &mut World, _: &Moment) -> Step {
        if self.changing(world) {
            world.apply(Event::ChangeAbandoned)?;
        }
        Ok(Outcome::Done)
    }

    fn build_overlay(&mut self, world: &mut World, moment: &Moment) -> Step {
        let what = (Purpose::Failover, world.target_site());
        add_instance(world, self.new, what, self.to, self.timeline, None)?;
        world.instance_reach(self.new, Stage::Overlay, gives_up(moment))
    }

    fn drop_machine(&mut self, world: &mut World, _: &Moment) -> Step {
        undo_instance(world, self.new)
    }

    fn stop_old(&mut self, world: &mut World, _: &Moment) -> Step {
        let keep = KeepAs {
            point: self.keep,
            name: format!("before-change-{}", iso(&world.now)),
            origin: PointOrigin::BeforeChange,
        };
        if stop_instance(world, self.old, || keep)? {
            return Ok(Outcome::Done);
        }
        pending(format!("host {} to stop machine {}", world.target().name, self.old))
    }

    /// Runs the old machine again on its own overlay, if this job had stopped it.
    fn run_old(&mut self, world: &mut World, _: &Moment) -> Step {
        world.instance_set(self.old, |plan| {
            plan.stage = Stage::Running;
            plan.permitted = true;
            plan.keep_as = None;
        })?;
        let seen = world.instance_answer(self.old);
        if seen.is_some_and(|seen| seen.machine == MachineState::Running) {
            return Ok(Outcome::Done);
        }
        pending(format!("host {} to run machine {} again", world.target().name, self.old))
    }

    fn keep_work(&mut self, world: &mut World, moment: &Moment) -> Step {
        if is_kept(world, self.old) {
            return Ok(Outcome::Done);
        }
        let problem = world.instance_answer(self.old).and_then(|seen| seen.problem.clone());
        if let Some(problem) = problem.filter(|_| gives_up(moment)) {
            return Err(StepError::Permanent(engine_problem(problem)));
        }
        pending(format!("the work of machine {} to be kept as a point", self.old))
    }

    fn start_new(&mut self, world: &mut World, moment: &Moment) -> Step {
        world.instance_reach(self.new, Stage::Running, gives_up(moment))
    }

    fn record(&mut self, world: &mut World, _: &Moment) -> Step {
        world.apply(Event::ChangeFinished { machine: self.new })?;
        let to = world.target_site();
        let plan = &mut world.item_mut()?.plan;
        plan.end_mut(to).base = Some(self.to.1);
        plan.live = Some(self.new);
        let name = world.item()?.name.clone();
        let text = format!("{name} runs from point {}", self.to.0);
        world.note("PointChanged", Severity::Info, text);
        Ok(Outcome::Done)
    }

    fn stop_new(&mut self, world: &mut World, moment: &Moment) -> Step {
        let keep = KeepAs {
            point: self.keep_new,
            name: format!("abandoned-{}", iso(&world.now)),
            origin: PointOrigin::Divergent,
        };
        let host = world.target().name.clone();
        if stop_instance(world, self.new, || keep)? || moment.reply.is_some() {
            return Ok(Outcome::Done);
        }
        pending(format!("host {host} to confirm that machine {} is off", self.new))
    }

    fn keep_new_work(&mut self, world: &mut World, _: &Moment) -> Step {
        if is_kept(world, self.new) {
            return Ok(Outcome::Done);
        }
        pending(format!("the work of machine {} to be kept as a point", self.new))
    }
}
