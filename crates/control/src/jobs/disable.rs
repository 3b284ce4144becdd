//! Disable protection, with or without keeping the points. Once begun it goes through; it begins
//! when the machine that was left is known to be off.

use super::enable_protection::{delete_replica, release_machine};
use super::left_behind::LeftBehind;
use super::reprotect::{hand_over, hydrated};
use crate::events::Severity;
use crate::items::{AwayHosts, KeepPoints};
use crate::plan::{Left, RunPlan, TargetRun, other};
use crate::world::{Step, World, pending, warning};
use leeward_durable::{Forward, Job, Moment, Outcome, Reversible, StepError, nothing};
use leeward_model::{Code, Event, JobId, Protection, Site};
use leeward_wire::message::{Purpose, Stage};
use serde::{Deserialize, Serialize};

/// Is the job's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DisableProtection {
    pub(crate) job: JobId,
    pub(crate) keep: KeepPoints,
    #[serde(default)]
    pub(crate) left: LeftBehind,
    #[serde(default)]
    pub(crate) away: AwayHosts,
}

impl Job for DisableProtection {
    type Context = World;
    const KIND: &'static str = "disable-protection";
    const REVERSIBLE: &'static [Reversible<Self>] =
        &[Reversible::new("old-machine-off", Self::old_machine_off, nothing)];
    const FORWARD: &'static [Forward<Self>] = &[
        Forward::new("begin", Self::begin),
        Forward::new("hand-over", Self::hand_over),
        Forward::new("release-source", Self::release),
        Forward::new("remove-machines", Self::remove_machines),
        Forward::new("delete-replica", Self::delete_replicas),
        Forward::new("record", Self::record),
    ];
    const ABANDON: &'static [Forward<Self>] = &[];
}

impl DisableProtection {
    /// A cancel leaves protection as it is: nothing has begun.
    pub(super) fn old_machine_off(&mut self, world: &mut World, moment: &Moment) -> Step {
        match self.away {
            AwayHosts::Wait => self.left.wait(world, moment),
            AwayHosts::GoOn => LeftBehind::go_on(world),
        }
    }

    /// Whether the host of `site` is not waited for.
    fn forgets(&self, world: &World, site: Site) -> bool {
        self.away == AwayHosts::GoOn && !world.host(site).sight.connected
    }

    pub(super) fn begin(&mut self, world: &mut World, _: &Moment) -> Step {
        if !matches!(world.state()?.protection, Protection::Disabling { .. }) {
            world.apply(Event::DisableStarted { job: self.job })?;
        }
        for site in [Site::Primary, Site::Recovery] {
            world.item_mut()?.plan.end_mut(site).forget_half();
        }
        world.item_mut()?.plan.left.iter_mut().for_each(Left::forget_half);
        Ok(Outcome::Done)
    }

    /// A failed-over machine that holds all its data becomes its host's own, and so its owner's.
    fn hand_over(&mut self, world: &mut World, _: &Moment) -> Step {
        let plan = &world.item()?.plan;
        let Some(made) = plan.live.and_then(|id| plan.instance(id)) else {
            return Ok(Outcome::Skipped("it is its host's own machine".to_owned()));
        };
        let (id, begun) = (made.id, made.stage == Stage::HandedOver);
        let ready = made.permitted && hydrated(world, id).is_ok();
        if (!begun && !ready) || !world.instance_host(id).sight.connected {
            return Ok(Outcome::Skipped("the machine still needs its points".to_owned()));
        }
        hand_over(world, id)
    }

    /// The live machine is its owner's again. One that was left stays fenced: it could be started
    /// beside the live one.
    fn release(&mut self, world: &mut World, _: &Moment) -> Step {
        let left = release_left(world)?;
        if matches!(left, Outcome::Pending { .. }) {
            return Ok(left);
        }
        let active = world.state()?.active;
        if !world.end(active)?.run.permits() && active != Site::Primary {
            return Ok(Outcome::Skipped(
                "the machine runs on; the old one stays fenced".to_owned(),
            ));
        }
        release_machine(world, active)
    }

    /// Test machines go; a stopped machine's kept work goes with the points.
    pub(super) fn remove_machines(&mut self, world: &mut World, _: &Moment) -> Step {
        let keep = self.keep;
        let doomed: Vec<_> = (world.item()?.plan.instances.iter())
            .filter(|plan| {
                let work = plan.stage == Stage::Stopped || plan.stage == Stage::Absent;
                plan.purpose == Purpose::Test || (work && keep == KeepPoints::Delete)
            })
            .map(|plan| (plan.id, plan.site))
            .collect();
        let mut left = 0;
        for (id, site) in doomed {
            let is_gone = world.instance_drop(id)? || self.forgets(world, site);
            left += usize::from(!is_gone);
        }
        match left {
            0 => Ok(Outcome::Done),
            _ => pending(format!("the hosts to delete {left} machines")),
        }
    }

    pub(super) fn delete_replicas(&mut self, world: &mut World, _: &Moment) -> Step {
        if self.keep == KeepPoints::Keep {
            return Ok(Outcome::Skipped("the points are kept".to_owned()));
        }
        let to = world.target_site();
        for site in [to, other(to)] {
            if world.end(site)?.replica == TargetRun::Unassigned {
                continue;
            }
            if self.forgets(world, site) {
                continue;
            }
            if !world.host(site).sight.connected {
                let name = &world.host(site).name;
                return pending(format!("host {name}, which holds a replica"));
            }
            let outcome = delete_replica(world, site)?;
            if matches!(outcome, Outcome::Pending { .. }) {
                return Ok(outcome);
            }
        }
        delete_left(world, self.away)
    }

    fn record(&mut self, world: &mut World, _: &Moment) -> Step {
        let text = format!("protection of {} has ended", world.item()?.name);
        world.note("ProtectionEnded", Severity::Info, text);
        let forgotten = self.forgotten(world)?;
        world.apply(Event::DisableFinished)?;
        if forgotten.is_empty() {
            return Ok(Outcome::Done);
        }
        let hosts = forgotten.join(" and ");
        let what = format!("the item was forgotten while host {hosts} was away");
        Ok(warning(Code::FORGOTTEN, what))
    }

    /// Hosts that were not waited for, by name.
    fn forgotten(&self, world: &World) -> Result<Vec<String>, StepError> {
        let mut names = Vec::new();
        for site in [Site::Primary, Site::Recovery] {
            let end = world.end(site)?;
            let holds = end.run != RunPlan::Unassigned || end.replica != TargetRun::Unassigned;
            if holds && self.forgets(world, site) {
                names.push(world.host(site).name.clone());
            }
        }
        names.dedup();
        Ok(names)
    }
}

/// Nothing of us stays with the machine that was left, once it is known to be off, but its host's
/// word that it is not to be started.
pub(super) fn release_left(world: &mut World) -> Step {
    let left = other(world.state()?.active);
    let begun = world.end(left)?.run == RunPlan::Leave;
    if !begun && !world.is_fenced(left) {
        return Ok(Outcome::Skipped("no machine is known to be off there".to_owned()));
    }
    release_machine(world, left)
}

/// Deletes the points on hosts that were ends once and were left for others.
fn delete_left(world: &mut World, away: AwayHosts) -> Step {
    let generations: Vec<_> = world.left.iter().map(|host| (host.id, host.generation)).collect();
    for left in world.item_mut()?.plan.left.iter_mut().filter(|left| left.replica) {
        let known = generations.iter().find(|(host, _)| *host == left.host);
        if let (None, Some((_, generation))) = (left.delete_since, known) {
            left.delete_since = Some(generation + 1);
        }
    }
    let item = world.item()?;
    for left in item.plan.left.iter().filter(|left| left.replica) {
        let Some(host) = world.left.iter().find(|host| host.id == left.host) else { continue };
        let seen = host.sight.item(item.id).and_then(|seen| seen.target.as_ref());
        let answered = left.delete_since.is_some_and(|since| host.answered() >= since);
        let gone = host.sight.connected && answered && seen.is_none_or(|seen| seen.deleted);
        if !gone && (away == AwayHosts::Wait || host.sight.connected) {
            return pending(format!("host {}, which was left, to delete its points", host.name));
        }
    }
    Ok(Outcome::Done)
}
