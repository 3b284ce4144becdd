//! A committed machine that a failover replaces. Nothing replicates it, so nothing syncs it.

use super::way_back::{is_kept, iso, stop_instance};
use crate::plan::RunPlan;
use crate::world::{Step, World, pending, warning};
use leeward_durable::{Moment, Outcome, StepError};
use leeward_model::{Code, InstanceId, MachineState, PointId, PointOrigin, Site, SourceState};
use leeward_wire::message::{KeepAs, Stage};
use serde::{Deserialize, Serialize};

/// How long its work may take to become a point before the failover goes on without.
const KEEP_WAIT_MS: u64 = 600_000;

/// Is what is known of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replaced {
    /// The site where it lives.
    pub(crate) site: Site,
    /// As what it runs; none once it was handed over: then it is its host's machine.
    pub(crate) instance: Option<InstanceId>,
    /// The point that keeps its work.
    pub(crate) keep: PointId,
}

impl Replaced {
    /// Stops an instance and keeps its work. A machine that was handed over can only be fenced,
    /// and is when the new one is about to start: until then a cancel need not start it again.
    pub(super) fn stop(self, world: &mut World, moment: &Moment) -> Step {
        let Some(id) = self.instance else {
            let why = "it runs until the new machine is about to start; its disks are kept";
            return Ok(Outcome::Skipped(why.to_owned()));
        };
        let keep = KeepAs {
            point: self.keep,
            name: format!("before-failover-{}", iso(&world.now)),
            origin: PointOrigin::BeforeChange,
        };
        let off = stop_instance(world, id, || keep)?;
        let host = world.instance_host(id).clone();
        let leaves = self.site != world.target_site();
        if leaves && !host.sight.connected {
            world.source_seen(SourceState::Unknown)?;
            let what = format!("host {} of the running machine is not connected", host.name);
            return Ok(warning(Code::SOURCE_AWAY, what));
        }
        if !off {
            return pending(format!("host {} to stop machine {id}", host.name));
        }
        if leaves {
            world.source_seen(world.confirmed_off(self.site))?;
        }
        if !is_kept(world, id) && moment.step_elapsed_ms() <= KEEP_WAIT_MS {
            return pending(format!("the work of machine {id} to be kept as a point"));
        }
        Ok(Outcome::Done)
    }

    /// Whether a machine that was handed over at `to`, where the new one is about to start, is
    /// off. Asks for it if need be.
    pub(super) fn is_stopped(self, world: &mut World, to: Site) -> Result<bool, StepError> {
        if self.instance.is_some() || self.site != to {
            return Ok(true);
        }
        match world.end(to)?.run {
            RunPlan::Unassigned => Ok(true),
            RunPlan::Fenced => Ok(world.is_fenced(to)),
            _ => {
                world.run_at(to, RunPlan::Fenced)?;
                Ok(false)
            }
        }
    }

    /// It writes the same timeline under the item's new epoch.
    pub(super) fn keep_branch(self, world: &mut World) -> Step {
        let item = world.item_mut()?;
        item.plan.fenced_at = None;
        if self.instance.is_none() {
            item.plan.branch.epoch = item.state.epoch;
        }
        Ok(Outcome::Done)
    }

    /// Lets it run again, if it was stopped.
    pub(super) fn run_again(self, world: &mut World) -> Step {
        let Some(id) = self.instance else {
            if world.end(self.site)?.run == RunPlan::Live {
                return Ok(Outcome::Done);
            }
            world.run_at(self.site, RunPlan::Live)?;
            let what = format!(
                "the machine on host {} was switched off and has its permit again: start it there",
                world.host(self.site).name
            );
            return Ok(warning(Code::START_FAILED, what));
        };
        world.instance_set(id, |plan| {
            plan.stage = Stage::Running;
            plan.permitted = true;
            plan.keep_as = None;
        })?;
        let host = world.instance_host(id).clone();
        if !host.sight.connected {
            let what = format!("host {} is away; it runs the machine when it is back", host.name);
            return Ok(warning(Code::ROLE_AWAY, what));
        }
        let seen = world.instance_answer(id);
        if seen.is_some_and(|seen| seen.machine == MachineState::Running) {
            return Ok(Outcome::Done);
        }
        pending(format!("host {} to run machine {id} again", host.name))
    }
}
