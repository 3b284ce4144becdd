//! Enable protection: checks, makes the replica at the target, starts replication (F-096).

use super::{NewJob, Scenario, finalize_protection::FinalizeProtection};
use crate::events::Severity;
use crate::plan::{RunPlan, TargetRun};
use crate::store::jobs::Lane;
use crate::world::{Step, World, pending, permanent};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, StepError};
use leeward_model::{Code, Event, JobId, Protection, Site};
use leeward_wire::message::CapturePhase;
use serde::{Deserialize, Serialize};

/// How long hosts that are away may take to come back before the job is refused.
const HOSTS_WAIT_MS: u64 = 10_000;

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EnableProtection {
    pub(crate) job: JobId,
}

impl Job for EnableProtection {
    type Context = World;
    const KIND: &'static str = "enable-protection";
    const REVERSIBLE: &'static [Reversible<Self>] = &[
        Reversible::new("check", Self::check, Self::undo_all),
        Reversible::new("create-replica", Self::create_replica, Self::delete_replica),
        Reversible::new("start-replication", Self::start_replication, Self::release),
    ];
    const FORWARD: &'static [Forward<Self>] = &[Forward::new("record", Self::record)];
    const ABANDON: &'static [Forward<Self>] = &[];
}

/// Waits a moment for both hosts, then refuses: nothing has been done yet.
pub(super) fn need_hosts(world: &World, moment: &Moment) -> Result<Option<Outcome>, StepError> {
    for (host, code) in [(world.source(), Code::ROLE_AWAY), (world.target(), Code::TARGET_AWAY)] {
        if host.sight.connected && host.sight.observed.is_some() {
            continue;
        }
        let what = format!("host {} is not connected", host.name);
        if moment.step_elapsed_ms() > HOSTS_WAIT_MS {
            return Err(permanent(code, what));
        }
        return pending(what).map(Some);
    }
    Ok(None)
}

impl EnableProtection {
    fn check(&mut self, world: &mut World, moment: &Moment) -> Step {
        if let Some(wait) = need_hosts(world, moment)? {
            return Ok(wait);
        }
        if world.target().data_address.is_none() && world.source().data_address.is_none() {
            let what =
                format!("neither host {} nor its source can be dialled", world.target().name);
            return Err(permanent(Code::TARGET_AWAY, what));
        }
        let item = world.item()?;
        let machines = world.source().sight.observed.as_ref().map(|seen| &seen.machines);
        let machine = machines.and_then(|all| all.iter().find(|m| m.spec.name == item.machine));
        match machine {
            None => Err(permanent(
                Code::MACHINE_UNKNOWN,
                format!("host {} has no machine {}", world.source().name, item.machine),
            )),
            Some(machine) => match machine.obstacles.first() {
                Some(first) => {
                    let code = Code::parse(first).map_or(Code::MACHINE_INVALID, |(code, _)| code);
                    let what = format!("{}: {}", item.machine, machine.obstacles.join("; "));
                    Err(permanent(code, what))
                }
                None => Ok(Outcome::Done),
            },
        }
    }

    fn undo_all(&mut self, world: &mut World, _: &Moment) -> Step {
        if matches!(world.item.as_ref().map(|item| &item.state.protection),
            Some(Protection::Enabling { job }) if *job == self.job)
        {
            world.apply(Event::PrepareFailed)?;
        }
        Ok(Outcome::Done)
    }

    fn create_replica(&mut self, world: &mut World, _: &Moment) -> Step {
        world.target_run(TargetRun::Receive)?;
        let epoch = world.state()?.epoch;
        if world.target_answered() && world.target_now().is_some_and(|seen| seen.fence >= epoch) {
            return Ok(Outcome::Done);
        }
        pending(format!("host {} to make the replica", world.target().name))
    }

    fn delete_replica(&mut self, world: &mut World, _: &Moment) -> Step {
        delete_replica(world, world.target_site())
    }

    fn start_replication(&mut self, world: &mut World, _: &Moment) -> Step {
        world.source_run(RunPlan::Replicate { start: None })?;
        let timeline = world.item()?.plan.branch.timeline;
        if world.source_answered()
            && world.source_now().is_some_and(|seen| seen.timeline == timeline)
        {
            return Ok(Outcome::Done);
        }
        pending(format!("host {} to begin with the machine", world.source().name))
    }

    fn release(&mut self, world: &mut World, _: &Moment) -> Step {
        release_machine(world, world.source_site())
    }

    fn record(&mut self, world: &mut World, _: &Moment) -> Step {
        let job = world.new_id();
        world.apply(Event::Prepared { job })?;
        let text = format!("the first copy of {} has begun", world.item()?.name);
        world.note("ReplicationStarted", Severity::Info, text);
        let new = NewJob::of_item(job, Lane::Watch, Scenario::PrimaryIrCompletion);
        world.start_job(new, &FinalizeProtection {})?;
        Ok(Outcome::Done)
    }
}

/// Takes the capture off the machine of `site`; one that was left is still not to be started. A
/// host that is away does it when it is back.
pub(crate) fn release_machine(world: &mut World, site: Site) -> Step {
    if world.end(site)?.run == RunPlan::Unassigned {
        return Ok(Outcome::Done);
    }
    let gone = match world.end(site)?.run {
        RunPlan::Fenced | RunPlan::Seed { .. } | RunPlan::Leave => RunPlan::Leave,
        _ => RunPlan::Release,
    };
    world.run_at(site, gone)?;
    let host = world.host(site);
    if !host.sight.connected {
        return Ok(Outcome::Skipped("its host is away; it lets go when it is back".to_owned()));
    }
    let released = world.machine_now(site).is_none_or(|seen| seen.phase == CapturePhase::Released);
    match released && world.run_answered(site) {
        true => Ok(Outcome::Done),
        false => pending(format!("host {} to let go of the machine", host.name)),
    }
}

/// Deletes a replica. A host that is away does it when it is back and finds it unassigned.
pub(crate) fn delete_replica(world: &mut World, site: Site) -> Result<Outcome, StepError> {
    if world.end(site)?.replica == TargetRun::Unassigned {
        return Ok(Outcome::Done);
    }
    world.replica_at(site, TargetRun::Delete)?;
    let host = world.host(site);
    if !host.sight.connected {
        return Ok(Outcome::Skipped("its host is away; an empty replica stays".to_owned()));
    }
    let deleted = world.replica_now(site).is_none_or(|seen| seen.deleted);
    match deleted && world.replica_answered(site) {
        true => Ok(Outcome::Done),
        false => pending(format!("host {} to delete the replica", host.name)),
    }
}
