//! Starts what turns an item round or ends it: planned failover, reprotect, disable.

use super::estimate;
use super::start::{begin, failover, item, machine_name, refused, start};
use super::{
    AwayHosts, DisableReason, KeepPoints, PlannedSpec, ReprotectSpec, Shutdown, SyncOption,
};
use crate::error::Result;
use crate::jobs::kinds::{
    Chosen, CompleteMigration, DisableProtection, LeftBehind, PlannedFailover, Reprotect,
};
use crate::jobs::{NewJob, Request, Scenario, reprotect};
use crate::plan::{End, Left, RunPlan, TargetRun, other};
use crate::store::{self, Conn, items::ItemRow, jobs::Lane};
use crate::world::{HostFacts, World};
use crate::{Control, ControlError, ErrorKind, items::record::Running};
use leeward_model::{
    Code, Event, InstanceId, ItemId, JobId, PointChoice, Protection, Site, SourceState, TestState,
};
use leeward_wire::message::{Purpose, StoreRoom};

impl Control {
    /// Fails over without losing anything: the machine is synchronized while it runs, shut down,
    /// and started at the other site from its final point (F-086, F-108). Out or home.
    ///
    /// # Errors
    /// Conflict while another job runs, or unless the item is protected, or can be reprotected,
    /// with which the job begins then; BadRequest for a chosen point.
    pub async fn item_planned_failover(&self, id: ItemId, spec: PlannedSpec) -> Result<JobId> {
        if matches!(spec.point, Some(PointChoice::Custom(_))) {
            let what = "a planned failover starts from its final point: use a failover for another";
            return Err(ControlError::bad_request(what));
        }
        let to = match &spec.host {
            Some(name) => Some(self.reprotect_host(id, name).await?),
            None => None,
        };
        self.item_change(id, |world, running| {
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Main])?;
            let refuse = |what: &str| {
                let state = row.state.protection.name();
                Err(ControlError::not_now(format!("{} is {state}: {what}", row.name)))
            };
            let full = spec.sync == SyncOption::ForSynchronization;
            let comments = estimate::data_sync(world, row, None)
                .map(|found| format!("{:?}; proposed was {:?}", spec.sync, found.proposed))
                .unwrap_or_default();
            let (job, mut reprotect) = (world.new_id(), None);
            match row.state.protection {
                Protection::Protected => {
                    is_there(row, to.as_ref(), world.target())?;
                    let (choice, target) = (PointChoice::Latest, world.target_site());
                    begin(world, &Event::FailoverStarted { job, choice, target })?;
                }
                Protection::Committed { .. } | Protection::FailedOver { .. } => {
                    reprotect = Some(turn(world, running, to, full)?);
                }
                Protection::Reprotecting { .. } | Protection::Resynchronizing { .. } => {
                    return refuse("wait until it is protected");
                }
                _ => return refuse("it cannot be failed over now"),
            }
            if let Some(memory) = &reprotect {
                let id = memory.job;
                let new = NewJob::of_item(id, Lane::Reverse, Scenario::ReverseReplication);
                start(world, new, memory)?;
            }
            let memory = PlannedFailover {
                failover: failover(world, job, Chosen::Latest, Shutdown::First),
                wait_to_complete: spec.wait_to_complete,
                asked_to_complete: false,
                began: None,
                before: None,
                power_off: false,
                asked_again: false,
                reprotect: reprotect.map(|memory| memory.job),
                full,
                copied_ms: 0,
                last_data: None,
            };
            let request = Request::PlannedFailover { spec };
            let new = NewJob::asked(job, Lane::Main, Scenario::PlannedFailover, request);
            start(world, NewJob { comments, ..new }, &memory)
        })
        .await
    }

    /// Replicates a failed-over machine the other way (F-131 to F-133).
    ///
    /// # Errors
    /// Conflict while another job runs, before the commit (unless the policy reverses by itself),
    /// and for a host that is the live side or has no store; NotFound for a host that is not in
    /// the site.
    pub async fn item_reprotect(&self, id: ItemId, spec: ReprotectSpec) -> Result<JobId> {
        let to = match &spec.host {
            Some(name) => Some(self.reprotect_host(id, name).await?),
            None => None,
        };
        self.item_change(id, |world, running| {
            let memory = Reprotect { trust: spec.trust, ..turn(world, running, to, false)? };
            let (job, request) = (memory.job, Request::Reprotect { spec });
            let new = NewJob::asked(job, Lane::Reverse, Scenario::ReverseReplication, request);
            start(world, new, &memory)
        })
        .await
    }

    /// The host that a reprotect was asked to go to, which must be of the site that was left.
    async fn reprotect_host(&self, id: ItemId, name: &str) -> Result<HostFacts> {
        let mut tx = self.store().read().await?;
        let Some(row) = store::items::find(&mut tx, id).await? else {
            return Err(super::no_item(&mut tx, id).await);
        };
        let fabric = match row.state.active {
            Site::Primary => row.target_fabric,
            Site::Recovery => row.fabric,
        };
        let hosts = store::hosts::of_fabric(&mut tx, fabric).await?;
        let found = hosts.iter().find(|host| {
            host.name.eq_ignore_ascii_case(name) || host.id.to_string().eq_ignore_ascii_case(name)
        });
        if let Some(found) = found {
            return self.host_facts(&mut tx, found.id).await;
        }
        let live = self.live_host(&mut tx, &row).await?;
        if live.name.eq_ignore_ascii_case(name) || live.id.to_string() == name {
            return Err(live_side(&row, &live));
        }
        Err(ControlError::not_found(format!("the site that was left has no host {name}")))
    }

    async fn live_host(&self, conn: &mut Conn, row: &ItemRow) -> Result<HostFacts> {
        self.host_facts(conn, row.plan.end(row.state.active).host).await
    }

    /// Ends protection, or completes a migration.
    ///
    /// # Errors
    /// Conflict while another job runs, while a machine runs from the points to be deleted, or,
    /// for a migration, unless the item is failed over or committed.
    pub async fn item_disable(
        &self,
        id: ItemId,
        keep: KeepPoints,
        reason: DisableReason,
    ) -> Result<JobId> {
        self.item_end(id, keep, reason, AwayHosts::Wait).await
    }

    /// Ends protection and deletes the points, and waits for no host that is away: what such a host
    /// has of the item stays there.
    ///
    /// # Errors
    /// As [`Self::item_disable`].
    pub async fn item_purge(&self, id: ItemId) -> Result<JobId> {
        self.item_end(id, KeepPoints::Delete, DisableReason::Normal, AwayHosts::GoOn).await
    }

    pub(crate) async fn item_end(
        &self,
        id: ItemId,
        keep: KeepPoints,
        reason: DisableReason,
        away: AwayHosts,
    ) -> Result<JobId> {
        self.item_change(id, |world, running| {
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Main, Lane::Test, Lane::Reverse])?;
            let job = world.new_id();
            row.state
                .apply(&Event::DisableStarted { job })
                .map_err(|illegal| ControlError::not_now(format!("{}: {illegal}", row.name)))?;
            let request = Request::Disable { keep, reason, away };
            if reason == DisableReason::MigrationComplete {
                let machine = migrated_machine(row)?;
                let new = NewJob::asked(job, Lane::Main, Scenario::CompleteMigration, request);
                let disable = DisableProtection { job, keep, left: LeftBehind::default(), away };
                return start(world, new, &CompleteMigration { disable, machine });
            }
            owes_no_start(world, row)?;
            let reads = row.plan.instances.iter().find(|plan| {
                let seen = world.instance_now(plan.id);
                let whole = seen.and_then(|seen| seen.hydrated_percent).unwrap_or(0.0) >= 100.0;
                plan.purpose == Purpose::Failover && plan.permitted && !whole
            });
            if let Some(plan) = reads.filter(|_| keep == KeepPoints::Delete) {
                let what = format!(
                    "machine {} of {} still reads its disks from the points: keep them, or wait",
                    plan.id, row.name
                );
                return Err(ControlError::not_now(what));
            }
            let new = NewJob::asked(job, Lane::Main, Scenario::DisableProtection, request);
            let left = LeftBehind::default();
            start(world, new, &DisableProtection { job, keep, left, away })
        })
        .await
    }
}

/// A released machine is its owner's: nobody would start it any more.
fn owes_no_start(world: &World, row: &ItemRow) -> Result<()> {
    if let RunPlan::Replicate { start: Some(owed) } = row.plan.end(row.source_site()).run {
        let seen = world.source_now().and_then(|seen| seen.started.as_ref());
        let started = seen.is_some_and(|(job, done)| *job == owed && done.is_ok());
        if !started {
            let what = format!(
                "the machine of {} was shut down by a job and waits for host {} to start it again",
                row.name,
                world.source().name
            );
            return Err(ControlError::not_now(what));
        }
    }
    Ok(())
}

fn migrated_machine(row: &ItemRow) -> Result<InstanceId> {
    match row.state.protection {
        Protection::FailedOver { machine, .. } | Protection::Committed { machine } => Ok(machine),
        _ => {
            let state = row.state.protection.name();
            let what = format!("{} is {state}: fail it over first", row.name);
            Err(ControlError::not_now(what))
        }
    }
}

/// Begins with a reprotect, to the host `to` if one was named. With `full` nothing is compared.
fn turn(
    world: &mut World,
    running: &Running,
    to: Option<HostFacts>,
    full: bool,
) -> Result<Reprotect> {
    let row = item(world)?;
    running.refuse(&row.name, &[Lane::Main, Lane::Reverse])?;
    let state = row.state.protection.name();
    match row.state.protection {
        Protection::Committed { .. } => {}
        Protection::FailedOver { .. } if world.policy.auto_reverse_planned => {}
        Protection::FailedOver { .. } => {
            let what = format!("{} is {state}: commit the failover first", row.name);
            return Err(ControlError::not_now(what));
        }
        _ => {
            let what = format!("{} is {state}: it cannot be reprotected", row.name);
            return Err(ControlError::not_now(what));
        }
    }
    go_to(world, to)?;
    let job = world.new_id();
    let Some((event, machine)) = reprotect::begins(world, job) else {
        return Err(ControlError::not_now("the item cannot be reprotected"));
    };
    begin(world, &event)?;
    Ok(Reprotect { full, ..reprotect::new_job(world, job, machine) })
}

/// The replica of an item that is replicated already lies on one host; no other can be named.
fn is_there(row: &ItemRow, to: Option<&HostFacts>, target: &HostFacts) -> Result<()> {
    match to {
        Some(host) if host.id != target.id => Err(ControlError::not_now(format!(
            "the replica of {} is on host {}: reprotect to host {} first, then fail over",
            row.name, target.name, host.name
        ))),
        Some(_) | None => Ok(()),
    }
}

fn live_side(row: &ItemRow, host: &HostFacts) -> ControlError {
    let what = format!("{} lives on host {}: choose one of the other site", row.name, host.name);
    ControlError::not_now(what)
}

/// Checks the host that a reprotect goes to, and makes it the end that was left if it is new.
fn go_to(world: &mut World, to: Option<HostFacts>) -> Result<()> {
    let row = item(world)?;
    let active = row.state.active;
    let left = other(active);
    let host = to.unwrap_or_else(|| world.host(left).clone());
    if host.id == row.plan.end(active).host {
        return Err(live_side(row, &host));
    }
    if host.sight.observed.as_ref().is_some_and(|seen| seen.store == StoreRoom::Absent) {
        let what = format!("host {} has no store", host.name);
        return Err(ControlError::not_now(what));
    }
    if host.id == row.plan.end(left).host {
        return Ok(());
    }
    if host.sight.observed.is_none() {
        let what = format!("host {} is not connected", host.name);
        return Err(ControlError::new(ErrorKind::Conflict, Code::TARGET_AWAY, what));
    }
    let tested = row.plan.instances.iter();
    if tested.clone().any(|plan| plan.site == left && plan.purpose == Purpose::Test)
        && row.state.test != TestState::None
    {
        return Err(ControlError::not_now(format!("{}: clean up its test machine", row.name)));
    }
    move_end(world, left, host)
}

/// The end at `site` is on another host from now on. What was left on the former one stays fenced
/// there, with the points of its store. A half-made copy goes once that on the new host is whole.
fn move_end(world: &mut World, site: Site, host: HostFacts) -> Result<()> {
    let Some(row) = &mut world.item else { return Ok(()) };
    let name = machine_name(&host, &row.machine, row.id);
    let former = row.plan.end(site).clone();
    let off = matches!(row.state.source, SourceState::ConfirmedOff { .. });
    let mut unsure = false;
    let plan = &mut row.plan;
    let mut end = End::new(host.id, name);
    end.settings = former.settings.clone();
    if let Some(known) = plan.left.iter().position(|left| left.host == host.id) {
        let known = plan.left.remove(known);
        (end.machine, unsure) = (known.machine, !known.off);
        end.stale = true;
        end.run = end.rest();
    }
    let End { host: was, machine, stale, half, given_up, replica, .. } = former;
    let replica = replica != TargetRun::Unassigned;
    if stale || half.is_some() || !given_up.is_empty() || replica {
        let (off, delete_since) = (off || !stale, None);
        plan.left.push(Left {
            host: was,
            machine,
            site,
            off,
            half,
            given_up,
            replica,
            delete_since,
        });
    }
    plan.instances.retain(|plan| plan.site != site);
    *plan.end_mut(site) = end;
    match site {
        Site::Primary => world.primary = host,
        Site::Recovery => world.recovery = host,
    }
    // What the host before said of its machine says nothing of this one.
    match unsure {
        true => world.source_seen(SourceState::Unknown).map_err(|error| refused(&error)),
        false => Ok(()),
    }
}
