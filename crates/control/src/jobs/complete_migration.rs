//! Complete migration: the machine stays where it was failed over to and the item ends. The old
//! machine is left off for ever, and nothing of it is deleted (F-005).

use super::disable::{DisableProtection, release_left};
use super::enable_protection::release_machine;
use super::reprotect::{hand_over, hydrated};
use crate::events::Severity;
use crate::world::{Step, World, pending};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, nothing};
use leeward_model::{Event, InstanceId};
use serde::{Deserialize, Serialize};

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CompleteMigration {
    pub(crate) disable: DisableProtection,
    /// The machine that stays.
    pub(crate) machine: InstanceId,
}

impl Job for CompleteMigration {
    type Context = World;
    const KIND: &'static str = "complete-migration";
    const REVERSIBLE: &'static [Reversible<Self>] = &[
        Reversible::new("wait-for-data", Self::wait, nothing),
        Reversible::new(
            "old-machine-off",
            |job, world, moment| job.disable.old_machine_off(world, moment),
            nothing,
        ),
    ];
    const FORWARD: &'static [Forward<Self>] = &[
        Forward::new("begin", |job, world, moment| job.disable.begin(world, moment)),
        Forward::new("hand-over", |job, world, _| hand_over(world, job.machine)),
        Forward::new("release-machine", |_, world, _| match release_left(world)? {
            left @ Outcome::Pending { .. } => Ok(left),
            _ => release_machine(world, world.state()?.active),
        }),
        Forward::new("remove-machines", |job, world, moment| {
            job.disable.remove_machines(world, moment)
        }),
        Forward::new("delete-replica", |job, world, moment| {
            job.disable.delete_replicas(world, moment)
        }),
        Forward::new("record", Self::record),
    ];
    const ABANDON: &'static [Forward<Self>] = &[];
}

impl CompleteMigration {
    fn wait(&mut self, world: &mut World, _: &Moment) -> Step {
        if world.item()?.plan.instance(self.machine).is_none() {
            return Ok(Outcome::Done);
        }
        match hydrated(world, self.machine) {
            Ok(()) => Ok(Outcome::Done),
            Err(waiting_for) => pending(waiting_for),
        }
    }

    fn record(&mut self, world: &mut World, _: &Moment) -> Step {
        let name = world.item()?.name.clone();
        let text = format!("the migration of {name} is complete; its old machine stays off");
        world.note("MigrationCompleted", Severity::Info, text);
        world.migrated = true;
        world.apply(Event::DisableFinished)?;
        Ok(Outcome::Done)
    }
}
