//! Commit: the failover is final. Points are kept for the policy's days.

use crate::events::Severity;
use crate::world::{Step, World};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible};
use leeward_model::Event;
use serde::{Deserialize, Serialize};

/// Is the job's memory: none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CommitFailover {}

impl Job for CommitFailover {
    type Context = World;
    const KIND: &'static str = "commit";
    const REVERSIBLE: &'static [Reversible<Self>] = &[];
    const FORWARD: &'static [Forward<Self>] = &[Forward::new("commit", Self::commit)];
    const ABANDON: &'static [Forward<Self>] = &[];
}

impl CommitFailover {
    fn commit(&mut self, world: &mut World, _: &Moment) -> Step {
        world.apply(Event::Committed)?;
        let text = format!("the failover of {} was committed", world.item()?.name);
        world.note("FailoverCommitted", Severity::Info, text);
        Ok(Outcome::Done)
    }
}
