//! Finalize protection: waits for the first point; from then on the item is protected (F-097).

use crate::world::{Step, World, pending};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, nothing};
use leeward_model::Protection;
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
            Some(Protection::InitialReplication { .. }) => pending("the first recovery point"),
            Some(Protection::Disabling { .. }) | None => {
                Ok(Outcome::Skipped("protection has ended".to_owned()))
            }
            Some(_) => Ok(Outcome::Done),
        }
    }
}
