//! Finalize protection: waits for the first point; from then on the item is protected (F-097).

use crate::world::{Step, World, pending};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, nothing};
use leeward_model::{MachineState, Protection};
use serde::{Deserialize, Serialize};

/// Is the job's memory: none. A cancel ends the watching; the copy itself goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FinalizeProtection {}

impl Job for FinalizeProtection {
    type Context = World;
    const KIND: &'static str = "finalize-protection";
    const REVERSIBLE: &'static [Reversible<Self>] =
        &[Reversible::new("wait-for-first-point", Self::wait, nothing)];
    const FORWARD: &'static [Forward<Self>] = &[];
    const ABANDON: &'static [Forward<Self>] = &[];
}

impl FinalizeProtection {
    fn wait(&mut self, world: &mut World, _: &Moment) -> Step {
        match world.item.as_ref().map(|item| &item.state.protection) {
            Some(Protection::InitialReplication { .. }) => pending(waited_for(world)),
            Some(Protection::Disabling { .. }) | None => {
                Ok(Outcome::Skipped("protection has ended".to_owned()))
            }
            Some(_) => Ok(Outcome::Done),
        }
    }
}

/// What keeps the first point from being made, as far as the source's host can be seen.
fn waited_for(world: &World) -> String {
    let host = &world.source().name;
    let sight = world.source_now();
    match sight.map(|seen| seen.machine) {
        Some(MachineState::Off) => {
            format!("the machine on host {host} to be started: it is off, and makes no points")
        }
        Some(_) => "the first recovery point".to_owned(),
        None => format!("host {host}, which is not connected"),
    }
}
