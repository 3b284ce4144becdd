//! Disable protection, with or without keeping the points. Once begun it goes through.

use super::enable_protection::{delete_replica, release_source};
use crate::events::Severity;
use crate::items::KeepPoints;
use crate::world::{Step, World, pending};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible};
use leeward_model::{Event, JobId, Protection, Site};
use leeward_wire::message::{Purpose, Stage};
use serde::{Deserialize, Serialize};

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DisableProtection {
    pub(crate) job: JobId,
    pub(crate) keep: KeepPoints,
}

impl Job for DisableProtection {
    type Context = World;
    const KIND: &'static str = "disable-protection";
    const REVERSIBLE: &'static [Reversible<Self>] = &[];
    const FORWARD: &'static [Forward<Self>] = &[
        Forward::new("begin", Self::begin),
        Forward::new("release-source", Self::release),
        Forward::new("remove-machines", Self::remove_machines),
        Forward::new("delete-replica", Self::delete_replica),
        Forward::new("record", Self::record),
    ];
    const ABANDON: &'static [Forward<Self>] = &[];
}

impl DisableProtection {
    fn begin(&mut self, world: &mut World, _: &Moment) -> Step {
        if !matches!(world.state()?.protection, Protection::Disabling { .. }) {
            world.apply(Event::DisableStarted { job: self.job })?;
        }
        Ok(Outcome::Done)
    }

    fn release(&mut self, world: &mut World, _: &Moment) -> Step {
        if world.state()?.active != Site::Primary {
            // Released, the old machine could be started beside the one that is live.
            return Ok(Outcome::Skipped("the old machine stays fenced".to_owned()));
        }
        release_source(world)
    }

    /// Test machines go; a stopped machine's kept work goes with the points.
    fn remove_machines(&mut self, world: &mut World, _: &Moment) -> Step {
        let keep = self.keep;
        let doomed: Vec<_> = (world.item()?.plan.instances.iter())
            .filter(|plan| {
                let work = plan.stage == Stage::Stopped || plan.stage == Stage::Absent;
                plan.purpose == Purpose::Test || (work && keep == KeepPoints::Delete)
            })
            .map(|plan| plan.id)
            .collect();
        let mut left = 0;
        for id in doomed {
            left += usize::from(!world.instance_drop(id)?);
        }
        match left {
            0 => Ok(Outcome::Done),
            _ => pending(format!("host {} to delete {left} machines", world.target.name)),
        }
    }

    fn delete_replica(&mut self, world: &mut World, _: &Moment) -> Step {
        match self.keep {
            KeepPoints::Keep => Ok(Outcome::Skipped("the points are kept".to_owned())),
            KeepPoints::Delete if !world.target.sight.connected => {
                pending(format!("host {}, which holds the replica", world.target.name))
            }
            KeepPoints::Delete => delete_replica(world),
        }
    }

    fn record(&mut self, world: &mut World, _: &Moment) -> Step {
        let text = format!("protection of {} has ended", world.item()?.name);
        world.note("ProtectionEnded", Severity::Info, text);
        world.apply(Event::DisableFinished)?;
        Ok(Outcome::Done)
    }
}
