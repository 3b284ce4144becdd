//! Waits for the first point of the other direction. A cancel gives the reprotect up. A planned
//! failover that copies everything may come between: it is waited for, as it may be undone.

use super::reprotect::give_up;
use crate::world::{Step, World, pending};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible};
use leeward_model::{FailoverOrigin, InstanceId, JobId, Protection};
use serde::{Deserialize, Serialize};

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FinalizeReprotect {
    /// The job that the item's state belongs to.
    pub(crate) reprotect: JobId,
    /// The live machine, by the id it had as an instance.
    pub(crate) machine: InstanceId,
}

impl Job for FinalizeReprotect {
    type Context = World;
    const KIND: &'static str = "finalize-reprotect";
    const REVERSIBLE: &'static [Reversible<Self>] =
        &[Reversible::new("wait-for-first-point", Self::wait, Self::give_up)];
    const FORWARD: &'static [Forward<Self>] = &[];
    const ABANDON: &'static [Forward<Self>] = &[];
}

impl FinalizeReprotect {
    fn is_ours(&self, world: &World) -> bool {
        matches!(world.item.as_ref().map(|item| &item.state.protection),
            Some(Protection::Reprotecting { job }) if *job == self.reprotect)
    }

    /// Whether a failover is under way that returns to our state when it is undone.
    fn is_left(&self, world: &World) -> bool {
        matches!(world.item.as_ref().map(|item| &item.state.protection),
            Some(Protection::FailingOver { from: FailoverOrigin::Reprotecting { job }, .. })
                if *job == self.reprotect)
    }

    fn wait(&mut self, world: &mut World, _: &Moment) -> Step {
        if self.is_ours(world) {
            return pending("the first recovery point of the other direction");
        }
        if self.is_left(world) {
            return pending("the planned failover, which copies everything");
        }
        match world.item.as_ref().map(|item| &item.state.protection) {
            Some(Protection::Committed { .. } | Protection::Disabling { .. }) | None => {
                Ok(Outcome::Skipped("the reprotect was given up".to_owned()))
            }
            Some(_) => Ok(Outcome::Done),
        }
    }

    fn give_up(&mut self, world: &mut World, _: &Moment) -> Step {
        if self.is_left(world) {
            return pending("the planned failover to end, or to be undone");
        }
        if !self.is_ours(world) {
            return Ok(Outcome::Skipped("the item is protected, or ends".to_owned()));
        }
        give_up(world, self.machine)?;
        Ok(Outcome::Done)
    }
}
