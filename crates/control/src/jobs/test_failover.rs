//! Test failover: a machine from a point beside protection, in a network with no way out unless
//! another one was asked for.

use super::failover::{Chosen, add_instance, gives_up, need_target, point_of, undo_instance};
use super::recovery_plan::{TURN, await_turn};
use crate::events::Severity;
use crate::world::{Step, World, pending, permanent, warning};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, nothing};
use leeward_model::{
    Code, Event, InstanceId, JobId, PointId, Position, Site, TestState, TimelineId,
};
use leeward_wire::message::{Purpose, Stage};
use serde::{Deserialize, Serialize};

/// After this a probe that shows nothing counts as failed; hosts end theirs much earlier.
const PROBE_WAIT_MS: u64 = 900_000;

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TestFailover {
    pub(crate) job: JobId,
    pub(crate) choice: Chosen,
    pub(crate) instance: InstanceId,
    /// Whose store has the point, and whose host makes the machine.
    pub(crate) site: Site,
    pub(crate) timeline: TimelineId,
    pub(crate) point: Option<(PointId, Position)>,
    /// The network that was asked for; none: as it is set for the item.
    #[serde(default)]
    pub(crate) network: Option<String>,
}

impl Job for TestFailover {
    type Context = World;
    const KIND: &'static str = "test-failover";
    const REVERSIBLE: &'static [Reversible<Self>] = &[
        Reversible::new("check", Self::check, Self::undo_all),
        Reversible::new("choose-point", Self::choose_point, nothing),
        Reversible::new("build-overlay", Self::build_overlay, Self::drop_machine),
        Reversible::new("prepare-machine", Self::prepare, Self::drop_machine),
        Reversible::new(TURN, |_, world, _| await_turn(world), nothing),
        Reversible::new("start-machine", Self::start_machine, Self::drop_machine),
        Reversible::new("probe-machine", Self::probe, nothing),
    ];
    const FORWARD: &'static [Forward<Self>] = &[Forward::new("record", Self::record)];
    const ABANDON: &'static [Forward<Self>] = &[];
}

impl TestFailover {
    fn check(&mut self, world: &mut World, moment: &Moment) -> Step {
        Ok(need_target(world, moment)?.unwrap_or(Outcome::Done))
    }

    fn undo_all(&mut self, world: &mut World, _: &Moment) -> Step {
        let ours = matches!(world.item.as_ref().map(|item| item.state.test),
            Some(TestState::Running { job }) if job == self.job);
        if ours {
            world.apply(Event::TestUndone)?;
        }
        Ok(Outcome::Done)
    }

    fn choose_point(&mut self, world: &mut World, moment: &Moment) -> Step {
        if let Some(wait) = need_target(world, moment)? {
            return Ok(wait);
        }
        if let Chosen::Point(.., site) = self.choice {
            self.site = site;
        }
        self.point = point_of(world, self.choice).or(self.point);
        match self.point {
            Some(_) => Ok(Outcome::Done),
            None => Err(permanent(Code::NO_POINT, "the replica has no complete recovery point")),
        }
    }

    fn build_overlay(&mut self, world: &mut World, moment: &Moment) -> Step {
        let point = self.point.ok_or_else(|| permanent(Code::NO_POINT, "no point was chosen"))?;
        let what = (Purpose::Test, self.site);
        let network = self.network.as_deref();
        add_instance(world, self.instance, what, point, self.timeline, network)?;
        world.instance_reach(self.instance, Stage::Overlay, gives_up(moment))
    }

    fn prepare(&mut self, world: &mut World, moment: &Moment) -> Step {
        world.instance_reach(self.instance, Stage::Prepared, gives_up(moment))
    }

    fn start_machine(&mut self, world: &mut World, moment: &Moment) -> Step {
        world.instance_reach(self.instance, Stage::Running, gives_up(moment))
    }

    fn probe(&mut self, world: &mut World, moment: &Moment) -> Step {
        let evidence = world.instance_now(self.instance).and_then(|seen| seen.evidence.clone());
        match evidence {
            Some(result) if result.passed => Ok(Outcome::Done),
            Some(result) => {
                let seen = format!("{}: {}", result.evidence.probe, result.evidence.seen);
                Ok(warning(Code::PROBE_FAILED, seen))
            }
            None if moment.step_elapsed_ms() > PROBE_WAIT_MS => {
                Ok(warning(Code::PROBE_FAILED, "the probe did not end"))
            }
            None => pending("the probe of the test machine"),
        }
    }

    fn drop_machine(&mut self, world: &mut World, _: &Moment) -> Step {
        undo_instance(world, self.instance)
    }

    fn record(&mut self, world: &mut World, _: &Moment) -> Step {
        world.apply(Event::TestReady { machine: self.instance })?;
        let now = world.now.wall;
        let item = world.item_mut()?;
        item.last_test = Some(now);
        let text = format!("the test machine of {} runs; clean it up when done", item.name);
        world.note("TestFailoverReady", Severity::Info, text);
        Ok(Outcome::Done)
    }
}
