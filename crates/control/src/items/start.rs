//! Starts operations on items: each is one transaction that checks, notes and makes the job.

use super::{DisableReason, EnableSpec, KeepPoints, PlannedSpec, ReprotectSpec, Shutdown, Started};
use crate::error::Result;
use crate::fabrics::fabric_row;
use crate::jobs::kinds::{
    CancelFailover, ChangePoint, Chosen, CleanupTest, CommitFailover, DisableProtection,
    EnableProtection, Failover, Resync, TestFailover, WayBack,
};
use crate::jobs::{NewJob, Request, Scenario};
use crate::plan::{Plan, RunPlan, SourcePlan, TargetPlan, TargetRun};
use crate::policies::policy_row;
use crate::store::{self, Conn, hosts::HostRow, items::ItemRow, jobs::Lane};
use crate::vaults::check_name;
use crate::world::World;
use crate::{Control, ControlError, ErrorKind};
use leeward_durable::Job;
use leeward_model::{
    Branch, Code, Event, InstanceId, ItemId, JobId, PointChoice, PointId, ProtectedItem,
    Protection, Site, TestState, VaultId,
};
use leeward_wire::message::Purpose;

/// Applies what a request starts with. That it does not fit is the caller's error, not ours.
fn begin(world: &mut World, event: &Event) -> Result<()> {
    let item = item(world)?;
    let possible = item
        .state
        .apply(event)
        .map_err(|illegal| ControlError::not_now(format!("{}: {illegal}", item.name)))?;
    if let Some(item) = &mut world.item {
        item.state = possible;
    }
    world.events.push(event.clone());
    Ok(())
}

fn item(world: &World) -> Result<&ItemRow> {
    world.item.as_ref().ok_or_else(|| ControlError::not_found("the item is gone"))
}

fn start<J: Job<Context = World>>(world: &mut World, new: NewJob, memory: &J) -> Result<JobId> {
    let id = new.id;
    world
        .start_job(new, memory)
        .map_err(|error| ControlError::internal("could not make a job", &error))?;
    Ok(id)
}

fn no_point(what: impl Into<String>) -> ControlError {
    ControlError::new(ErrorKind::NotFound, Code::NO_POINT, what)
}

/// The first host of a mapping's target that has a store.
async fn target_host(conn: &mut Conn, fabric: leeward_model::FabricId) -> Result<HostRow> {
    let hosts = store::hosts::of_fabric(conn, fabric).await?;
    hosts.into_iter().find(|host| host.data_address.is_some()).ok_or_else(|| {
        let what = "the target site has no host with a store";
        ControlError::new(ErrorKind::Conflict, Code::TARGET_AWAY, what)
    })
}

impl Control {
    /// Starts protecting a machine (F-096).
    ///
    /// # Errors
    /// NotFound for the fabric, policy or machine; Conflict with `NAME_TAKEN` when the name or the
    /// machine is in use; BadRequest when no mapping of the fabric names the policy.
    pub async fn item_enable(
        &self,
        vault: VaultId,
        fabric: &str,
        name: &str,
        spec: EnableSpec,
    ) -> Result<Started> {
        check_name("item", name)?;
        let machine = self.machine_get(vault, fabric, &spec.machine).await?;
        let mut tx = self.store().begin().await?;
        let source = fabric_row(&mut tx, vault, fabric).await?;
        let policy = policy_row(&mut tx, vault, &spec.policy).await?;
        let mappings = store::fabrics::mappings(&mut tx, vault).await?;
        let mapping = mappings.iter().find(|mapping| {
            mapping.source == source.id && mapping.policy.eq_ignore_ascii_case(&policy.name)
        });
        let mapping = mapping.ok_or_else(|| {
            let policy = &policy.name;
            ControlError::bad_request(format!("no mapping of {fabric} has the policy {policy}"))
        })?;
        for known in store::items::of_vault(&mut tx, vault).await? {
            let named = known.fabric == source.id && known.name.eq_ignore_ascii_case(name);
            if named || known.machine_id == machine.id {
                let what = format!("item {} protects machine {}", known.name, known.machine);
                return Err(ControlError::new(ErrorKind::Conflict, Code::NAME_TAKEN, what));
            }
        }
        let target = target_host(&mut tx, mapping.target).await?;
        let (id, job) = (self.new_id(), self.new_id());
        let state = ProtectedItem::new(job);
        let branch = Branch { timeline: self.new_id(), parent: None, epoch: state.epoch };
        let row = ItemRow {
            id,
            vault,
            fabric: source.id,
            target_fabric: mapping.target,
            name: name.to_owned(),
            policy: policy.name,
            machine_id: machine.id,
            machine: machine.name,
            extra: spec.extra.clone(),
            plan: Plan {
                source: SourcePlan {
                    host: machine.host,
                    branch,
                    run: RunPlan::Unassigned,
                    resync: 0,
                    since: 0,
                },
                target: TargetPlan { host: target.id, wanted: TargetRun::Unassigned, since: 0 },
                instances: Vec::new(),
                fenced_at: None,
                source_ran: true,
            },
            state,
            last_failover: None,
            last_test: None,
            version: 0,
        };
        let mut world = self.world_of(&mut tx, row).await?;
        let (fabric, name) = (fabric.to_owned(), name.to_owned());
        let request = Request::Enable { fabric, name, spec };
        let new = NewJob::asked(job, Lane::Main, Scenario::EnableProtection, request);
        start(&mut world, new, &EnableProtection { job })?;
        let hosts = super::record(&mut tx, None, &world).await?;
        store::commit(tx).await?;
        self.publish(&hosts).await?;
        self.poke();
        Ok(Started { item: id, job })
    }

    /// Ends protection.
    ///
    /// # Errors
    /// Conflict while another job runs, or while a machine runs from the points to be deleted.
    pub async fn item_disable(
        &self,
        id: ItemId,
        keep: KeepPoints,
        reason: DisableReason,
    ) -> Result<JobId> {
        if reason == DisableReason::MigrationComplete {
            let what = "ending protection as a finished migration";
            return Err(ControlError::not_supported(what));
        }
        self.item_change(id, |world, running| {
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Main, Lane::Test])?;
            let job = world.new_id();
            row.state
                .apply(&Event::DisableStarted { job })
                .map_err(|illegal| ControlError::not_now(format!("{}: {illegal}", row.name)))?;
            if let RunPlan::Replicate { start: Some(owed) } = row.plan.source.run {
                let seen = world.source_now().and_then(|seen| seen.started.as_ref());
                let started = seen.is_some_and(|(job, done)| *job == owed && done.is_ok());
                if !started {
                    // A released machine is its owner's: nobody would start it any more.
                    let what = format!(
                        "the machine of {} was shut down by a job and waits for host {} to start \
                         it again",
                        row.name, world.source.name
                    );
                    return Err(ControlError::not_now(what));
                }
            }
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
            let request = Request::Disable { keep };
            let new = NewJob::asked(job, Lane::Main, Scenario::DisableProtection, request);
            start(world, new, &DisableProtection { job, keep })
        })
        .await
    }

    /// Forgets an item without its hosts: not supported yet.
    ///
    /// # Errors
    /// NotSupported.
    pub async fn item_purge(&self, item: ItemId) -> Result<JobId> {
        Err(ControlError::not_supported(format!("item {item} cannot be purged, only disabled")))
    }

    /// Starts a test machine from a point, in a network with no way out (F-091).
    ///
    /// # Errors
    /// Conflict while another job runs or the item is not protected; NotFound with `NO_POINT`.
    pub async fn item_test_failover(&self, id: ItemId, choice: PointChoice) -> Result<JobId> {
        let chosen = self.chosen(id, choice).await?;
        self.item_change(id, |world, running| {
            running.refuse(&item(world)?.name, &[Lane::Main, Lane::Test])?;
            let job = world.new_id();
            begin(world, &Event::TestStarted { job })?;
            let memory = TestFailover {
                job,
                choice: chosen,
                instance: world.new_id(),
                timeline: world.new_id(),
                point: None,
            };
            let request = Request::TestFailover { choice };
            start(world, NewJob::asked(job, Lane::Test, Scenario::TestFailover, request), &memory)
        })
        .await
    }

    /// Removes the test machine.
    ///
    /// # Errors
    /// Conflict when there is none, or a test job runs.
    pub async fn item_test_cleanup(&self, id: ItemId, comments: &str) -> Result<JobId> {
        self.item_change(id, |world, running| {
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Test])?;
            let TestState::Active { machine } = row.state.test else {
                return Err(ControlError::not_now(format!("{} has no test machine", row.name)));
            };
            let job = world.new_id();
            let comments = comments.to_owned();
            let request = Request::Cleanup { comments: comments.clone() };
            let new = NewJob::asked(job, Lane::Test, Scenario::TestFailoverCleanup, request);
            start(world, NewJob { comments, ..new }, &CleanupTest { job, instance: machine })
        })
        .await
    }

    /// Fails over (F-070).
    ///
    /// # Errors
    /// Conflict while another job runs or the state does not allow it; NotFound with `NO_POINT`
    /// when a chosen point is not there; Unavailable when its host cannot be asked.
    pub async fn item_failover(
        &self,
        id: ItemId,
        choice: PointChoice,
        shutdown: Shutdown,
    ) -> Result<JobId> {
        let chosen = self.chosen(id, choice).await?;
        self.item_change(id, |world, running| {
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Main])?;
            if matches!(row.state.protection, Protection::Committed { .. }) {
                let what = "failover from a retained point after the commit";
                return Err(ControlError::not_supported(what));
            }
            let job = world.new_id();
            begin(world, &Event::FailoverStarted { job, choice, target: Site::Recovery })?;
            let memory = Failover {
                way_back: way_back(world, job, world.new_id()),
                choice: chosen,
                shutdown,
                timeline: world.new_id(),
                asked: false,
                final_point: None,
                newest: None,
                point: None,
            };
            let request = Request::Failover { choice, shutdown };
            let new = NewJob::asked(job, Lane::Main, Scenario::UnplannedFailover, request);
            start(world, new, &memory)
        })
        .await
    }

    /// Takes a failover back: of a running one its job is cancelled, else one is started.
    ///
    /// # Errors
    /// Conflict when there is no failover, or it is committed, or another job runs.
    pub async fn item_failover_cancel(&self, id: ItemId) -> Result<JobId> {
        let mut tx = self.store().read().await?;
        let row = store::items::find(&mut tx, id).await?;
        drop(tx);
        if let Some(row) = row
            && let Protection::FailingOver { job, .. } = row.state.protection
        {
            return Ok(self.job_cancel(row.vault, job).await?.id);
        }
        self.item_change(id, |world, running| {
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Main])?;
            let Protection::FailedOver { machine, .. } = row.state.protection else {
                let state = row.state.protection.name();
                let what = format!("{} is {state}: there is no failover to cancel", row.name);
                return Err(ControlError::not_now(what));
            };
            let job = world.new_id();
            let memory = CancelFailover { way_back: way_back(world, job, machine) };
            let request = Request::CancelFailover;
            let new = NewJob::asked(job, Lane::Main, Scenario::CancelFailover, request);
            start(world, new, &memory)
        })
        .await
    }

    /// Moves a failed-over machine to another point; its work is kept as a point (F-100).
    ///
    /// # Errors
    /// As [`Self::item_failover`].
    pub async fn item_change_point(&self, id: ItemId, point: PointId) -> Result<JobId> {
        let Chosen::Point(point, position) = self.chosen(id, PointChoice::Custom(point)).await?
        else {
            return Err(no_point("no point was named"));
        };
        self.item_change(id, |world, running| {
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Main])?;
            let Protection::FailedOver { machine, .. } = row.state.protection else {
                let state = row.state.protection.name();
                let what = format!("{} is {state}: its point cannot be changed", row.name);
                return Err(ControlError::not_now(what));
            };
            let job = world.new_id();
            begin(world, &Event::PointChanged { job, to: point })?;
            let memory = ChangePoint {
                job,
                old: machine,
                new: world.new_id(),
                timeline: world.new_id(),
                to: (point, position),
                keep: world.new_id(),
                keep_new: world.new_id(),
            };
            let request = Request::ChangePoint { point };
            start(world, NewJob::asked(job, Lane::Main, Scenario::ChangePit, request), &memory)
        })
        .await
    }

    /// Makes a failover final (F-101, but points are kept for the policy's days).
    ///
    /// # Errors
    /// Conflict when there is nothing to commit, or another job runs.
    pub async fn item_commit(&self, id: ItemId) -> Result<JobId> {
        self.item_change(id, |world, running| {
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Main])?;
            row.state
                .apply(&Event::Committed)
                .map_err(|illegal| ControlError::not_now(format!("{}: {illegal}", row.name)))?;
            let new = world.new_id();
            let new = NewJob::asked(new, Lane::Main, Scenario::CommitFailover, Request::Commit);
            start(world, new, &CommitFailover {})
        })
        .await
    }

    /// Compares source and target and sends what differs.
    ///
    /// # Errors
    /// Conflict unless the item is protected or resynchronizing, and while another job runs.
    pub async fn item_resync(&self, id: ItemId) -> Result<JobId> {
        self.item_change(id, |world, running| {
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Main, Lane::Watch])?;
            let state = &row.state.protection;
            if !matches!(state, Protection::Protected | Protection::Resynchronizing { .. }) {
                let what = format!("{} is {}: it cannot be compared", row.name, state.name());
                return Err(ControlError::not_now(what));
            }
            let job = world.new_id();
            let new = NewJob::asked(job, Lane::Watch, Scenario::Resynchronize, Request::Resync);
            start(world, new, &Resync { job, ask: true })
        })
        .await
    }

    /// Not supported yet.
    ///
    /// # Errors
    /// NotSupported.
    pub async fn item_planned_failover(&self, item: ItemId, spec: PlannedSpec) -> Result<JobId> {
        Err(ControlError::not_supported(format!("planned failover of item {item}: {spec:?}")))
    }

    /// Not supported yet.
    ///
    /// # Errors
    /// NotSupported.
    pub async fn item_reprotect(&self, item: ItemId, spec: ReprotectSpec) -> Result<JobId> {
        Err(ControlError::not_supported(format!("reprotect of item {item}: {spec:?}")))
    }

    /// A choice with the place of a chosen point, which its host is asked for.
    async fn chosen(&self, item: ItemId, choice: PointChoice) -> Result<Chosen> {
        match choice {
            PointChoice::Latest => Ok(Chosen::Latest),
            PointChoice::LatestProcessed => Ok(Chosen::Processed),
            PointChoice::Custom(point) => match self.point_get(item, point).await {
                Ok(view) => Ok(Chosen::Point(view.point.id, view.point.position)),
                Err(error) if error.kind == ErrorKind::NotFound => {
                    Err(no_point(format!("there is no recovery point {point}")))
                }
                Err(error) => Err(error),
            },
        }
    }
}

fn way_back(world: &World, job: JobId, instance: InstanceId) -> WayBack {
    let (timeline, keep) = (world.new_id(), world.new_id());
    WayBack { job, instance, timeline, keep, off_by_word: false }
}
