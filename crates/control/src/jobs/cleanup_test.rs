//! Removes the machine of a test failover. Points, evidence and replication stay as they are.

use crate::events::Severity;
use crate::world::{Step, World, pending};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible};
use leeward_model::{Event, InstanceId, JobId, TestState};
use serde::{Deserialize, Serialize};

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CleanupTest {
    pub(crate) job: JobId,
    pub(crate) instance: InstanceId,
}

impl Job for CleanupTest {
    type Context = World;
    const KIND: &'static str = "cleanup-test";
    const REVERSIBLE: &'static [Reversible<Self>] = &[];
    const FORWARD: &'static [Forward<Self>] = &[
        Forward::new("begin", Self::begin),
        Forward::new("remove-machine", Self::remove_machine),
        Forward::new("record", Self::record),
    ];
    const ABANDON: &'static [Forward<Self>] = &[];
}

impl CleanupTest {
    fn begin(&mut self, world: &mut World, _: &Moment) -> Step {
        if !matches!(world.state()?.test, TestState::CleaningUp { .. }) {
            world.apply(Event::TestCleanupStarted { job: self.job })?;
        }
        Ok(Outcome::Done)
    }

    fn remove_machine(&mut self, world: &mut World, _: &Moment) -> Step {
        if world.instance_drop(self.instance)? {
            return Ok(Outcome::Done);
        }
        pending(format!(
            "host {} to delete the test machine",
            world.instance_host(self.instance).name
        ))
    }

    fn record(&mut self, world: &mut World, _: &Moment) -> Step {
        world.apply(Event::TestCleaned)?;
        let text = format!("the test machine of {} was removed", world.item()?.name);
        world.note("TestFailoverCleaned", Severity::Info, text);
        Ok(Outcome::Done)
    }
}
