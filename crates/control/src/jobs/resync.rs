//! Resynchronize: asks for a comparison of the whole machine and shows how it goes.

use super::{NewJob, Scenario};
use crate::items::ResyncTrust;
use crate::plan::RunPlan;
use crate::store::jobs::Lane;
use crate::world::{Step, World, pending};
use leeward_durable::{Forward, Job, Moment, Outcome, Phase, Reversible, nothing};
use leeward_model::{Event, JobId, Protection};
use serde::{Deserialize, Serialize};

/// Is the job's memory. A cancel ends the watching; the comparison itself goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Resync {
    pub(crate) job: JobId,
    /// Whether the comparison is still to be asked for.
    pub(crate) ask: bool,
    /// What it goes by.
    #[serde(default)]
    pub(crate) trust: ResyncTrust,
}

impl Job for Resync {
    type Context = World;
    const KIND: &'static str = "resync";
    const REVERSIBLE: &'static [Reversible<Self>] = &[
        Reversible::new("request", Self::request, nothing),
        Reversible::new("compare", Self::compare, nothing),
    ];
    const FORWARD: &'static [Forward<Self>] = &[];
    const ABANDON: &'static [Forward<Self>] = &[];
}

/// Whether a job that shows a comparison can begin now, or need not, as one goes on to show it.
/// Any other watch is over with what it watched, and ends at its next look.
pub(crate) fn can_be_shown(world: &World) -> bool {
    world.watch.is_none() || shows(world).is_some()
}

/// The job that shows comparisons, unless it was asked to end.
fn shows(world: &World) -> Option<JobId> {
    let watch = world.watch.as_ref()?;
    let stays = matches!(watch.record.phase, Phase::Reversible { .. });
    let stays = stays && !watch.record.cancel_requested;
    (watch.facts.scenario == Scenario::Resynchronize && stays).then_some(watch.facts.id)
}

/// Starts a job that shows a comparison which is already asked for, if none does.
pub(crate) fn spawn(world: &mut World) -> Step {
    if let Some(job) = shows(world) {
        return Ok(Outcome::Skipped(format!("job {job} shows it already")));
    }
    if let Some(watch) = &world.watch {
        return pending(format!("job {} to end", watch.facts.id));
    }
    let job = world.new_id();
    let memory = Resync { job, ask: false, trust: ResyncTrust::default() };
    world.start_job(NewJob::of_item(job, Lane::Watch, Scenario::Resynchronize), &memory)?;
    Ok(Outcome::Done)
}

impl Resync {
    fn request(&mut self, world: &mut World, _: &Moment) -> Step {
        if !self.ask {
            return Ok(Outcome::Skipped("it is asked for already".to_owned()));
        }
        self.ask = false;
        if world.state()?.protection == Protection::Protected {
            let reason = "asked for".to_owned();
            world.apply(Event::ResyncNeeded { job: self.job, reason })?;
        }
        if matches!(world.end(world.source_site())?.run, RunPlan::Replicate { .. }) {
            world.item_mut()?.plan.resync_asked(self.trust);
        }
        Ok(Outcome::Done)
    }

    fn compare(&mut self, world: &mut World, _: &Moment) -> Step {
        let Some(item) = &world.item else {
            return Ok(Outcome::Skipped("protection has ended".to_owned()));
        };
        match item.state.protection {
            Protection::Protected => Ok(Outcome::Done),
            Protection::Resynchronizing { .. } | Protection::FailingOver { .. } => {
                pending("the comparison of source and target")
            }
            Protection::Enabling { .. }
            | Protection::InitialReplication { .. }
            | Protection::FailedOver { .. }
            | Protection::ChangingPoint { .. }
            | Protection::Committed { .. }
            | Protection::Reprotecting { .. }
            | Protection::Disabling { .. }
            | Protection::Removed => {
                Ok(Outcome::Skipped(format!("the item is {}", item.state.protection.name())))
            }
        }
    }
}
