//! Starts operations on items: each is one transaction that checks, notes and makes the job.

use super::{EnableSpec, ResyncTrust, Shutdown, Started};
use crate::error::Result;
use crate::fabrics::fabric_row;
use crate::jobs::kinds::{
    CancelFailover, ChangePoint, Chosen, CleanupTest, CommitFailover, EnableProtection, Failover,
    Replaced, Resync, TestFailover, WayBack,
};
use crate::jobs::{NewJob, Request, Scenario, reprotect};
use crate::networks::Resource;
use crate::plan::{End, Plan, other};
use crate::policies::policy_row;
use crate::store::{self, Conn, hosts::HostRow, items::ItemRow, jobs::Lane};
use crate::vaults::check_name;
use crate::world::{HostFacts, World};
use crate::{Control, ControlError, ErrorKind, items::record::Running};
use leeward_durable::{Job, StepError};
use leeward_model::{
    Branch, Code, Event, InstanceId, ItemId, JobId, PointChoice, PointId, ProtectedItem,
    Protection, TestState, VaultId,
};
use leeward_wire::message::{CapturePhase, Stage};

/// Applies what a request starts with. That it does not fit is the caller's error, not ours.
pub(super) fn begin(world: &mut World, event: &Event) -> Result<()> {
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

pub(super) fn item(world: &World) -> Result<&ItemRow> {
    world.item.as_ref().ok_or_else(|| ControlError::not_found("the item is gone"))
}

pub(super) fn start<J: Job<Context = World>>(
    world: &mut World,
    new: NewJob,
    memory: &J,
) -> Result<JobId> {
    let id = new.id;
    world
        .start_job(new, memory)
        .map_err(|error| ControlError::internal("could not make a job", &error))?;
    Ok(id)
}

fn no_point(what: impl Into<String>) -> ControlError {
    ControlError::new(ErrorKind::NotFound, Code::NO_POINT, what)
}

/// The host of a mapping's target that takes the replica: one that can be dialled, if there is.
async fn target_host(conn: &mut Conn, fabric: leeward_model::FabricId) -> Result<HostRow> {
    let hosts = store::hosts::of_fabric(conn, fabric).await?;
    let dialled = hosts.iter().position(|host| host.data_address.is_some()).unwrap_or(0);
    hosts.into_iter().nth(dialled).ok_or_else(|| {
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
        self.check_in_charge()?;
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
        let target = self.host_facts(&mut tx, target.id).await?;
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
            extra: spec.extra.clone(),
            plan: Plan::new(
                End::new(machine.host, machine.name.clone()),
                End::new(target.id, machine_name(&target, &machine.name, id)),
                branch,
            ),
            machine: machine.name,
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

    /// Starts a test machine from a point, in the network that is set for the item's tests: one
    /// with no way out unless another one is (F-091).
    ///
    /// # Errors
    /// As [`Self::item_test_failover_in`].
    pub async fn item_test_failover(&self, id: ItemId, choice: PointChoice) -> Result<JobId> {
        self.item_test_failover_in(id, choice, None).await
    }

    /// Starts a test machine from a point, with all its cards in a network of its host.
    ///
    /// # Errors
    /// Conflict while another job runs or the item is not protected; NotFound with `NO_POINT`, and
    /// for the network.
    pub async fn item_test_failover_in(
        &self,
        id: ItemId,
        choice: PointChoice,
        network: Option<String>,
    ) -> Result<JobId> {
        let network = match network {
            Some(name) => Some(Resource::Network.find(&name)?.to_owned()),
            None => None,
        };
        let chosen = self.chosen(id, choice).await?;
        self.item_change(id, |world, running| {
            running.refuse(&item(world)?.name, &[Lane::Main, Lane::Test])?;
            let job = world.new_id();
            begin(world, &Event::TestStarted { job })?;
            let memory = TestFailover {
                job,
                choice: chosen,
                instance: world.new_id(),
                site: world.target_site(),
                timeline: world.new_id(),
                point: None,
                network: network.clone(),
            };
            let request = Request::TestFailover { choice, network };
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

    /// Fails over (F-070). A chosen point decides where to: the site whose store has it.
    ///
    /// From a committed item, and from one that is being reprotected, only a retained point will
    /// do; a reprotect is given up with the request.
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
            running.refuse(&item(world)?.name, &[Lane::Main])?;
            let job = world.new_id();
            let replaced = replaced(world, running, chosen)?;
            let usual = world.target_site();
            let target = match chosen {
                Chosen::Point(.., site) => site,
                Chosen::Latest | Chosen::Processed => usual,
            };
            if replaced.is_none() && target != usual {
                let what = "the point is in the store of the site where the machine runs, which \
                            is replicated: choose a point of the other site";
                return Err(ControlError::not_now(format!("{}: {what}", item(world)?.name)));
            }
            begin(world, &Event::FailoverStarted { job, choice, target })?;
            let mut memory = failover(world, job, chosen, shutdown);
            memory.way_back.replaced = replaced;
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
        let running = store::jobs::running(&mut tx, id).await?;
        drop(tx);
        // One that waits for its reprotect has not changed the state yet.
        let planned = running.iter().find(|job| job.facts.scenario == Scenario::PlannedFailover);
        let job = match row.as_ref().map(|row| &row.state.protection) {
            Some(Protection::FailingOver { job, .. }) => Some(*job),
            _ => planned.map(|job| job.facts.id),
        };
        if let Some((row, job)) = row.zip(job) {
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
            if row.plan.one_way {
                let what = format!(
                    "nothing replicated {} before its last failover, so nothing can be resumed: \
                     change its recovery point instead",
                    row.name
                );
                return Err(ControlError::not_now(what));
            }
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
        let Chosen::Point(point, position, site) =
            self.chosen(id, PointChoice::Custom(point)).await?
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
            if site != row.state.active {
                let what = "the point is in the other site's store: cancel the failover, or commit \
                            it and fail over to that point";
                return Err(ControlError::not_now(format!("{}: {what}", row.name)));
            }
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
    /// Conflict unless the item is protected or resynchronizing, and while another job runs. One
    /// that waits, for its window or for its next attempt, is begun at once and its job returned.
    pub async fn item_resync(&self, id: ItemId) -> Result<JobId> {
        self.resync_asked(id, ResyncTrust::Hashes).await
    }

    /// As [`Self::item_resync`], and no hash that either end has kept is trusted: the store reads
    /// and hashes anew all that it holds of the item's line.
    ///
    /// # Errors
    /// As [`Self::item_resync`].
    pub async fn item_resync_full(&self, id: ItemId) -> Result<JobId> {
        self.resync_asked(id, ResyncTrust::Nothing).await
    }

    async fn resync_asked(&self, id: ItemId, trust: ResyncTrust) -> Result<JobId> {
        self.item_change(id, move |world, running| {
            let paused = world.source_now().is_some_and(|seen| seen.phase == CapturePhase::Paused);
            let row = item(world)?;
            let resyncs = matches!(row.state.protection, Protection::Resynchronizing { .. });
            let watches =
                running.0.iter().find(|row| row.facts.scenario == Scenario::Resynchronize);
            if let Some(job) = watches.filter(|_| paused && resyncs) {
                running.refuse(&row.name, &[Lane::Main])?;
                let job = job.facts.id;
                if let Some(row) = &mut world.item {
                    row.plan.resync_asked(trust);
                }
                return Ok(job);
            }
            let row = item(world)?;
            running.refuse(&row.name, &[Lane::Main, Lane::Watch])?;
            let state = &row.state.protection;
            if !matches!(state, Protection::Protected | Protection::Resynchronizing { .. }) {
                let what = format!("{} is {}: it cannot be compared", row.name, state.name());
                return Err(ControlError::not_now(what));
            }
            let job = world.new_id();
            let request = match trust {
                ResyncTrust::Hashes => Request::Resync,
                ResyncTrust::Nothing => Request::ResyncFull,
            };
            let new = NewJob::asked(job, Lane::Watch, Scenario::Resynchronize, request);
            start(world, new, &Resync { job, ask: true, trust })
        })
        .await
    }

    /// A choice with the place of a chosen point, which its host is asked for.
    async fn chosen(&self, item: ItemId, choice: PointChoice) -> Result<Chosen> {
        match choice {
            PointChoice::Latest => Ok(Chosen::Latest),
            PointChoice::LatestProcessed => Ok(Chosen::Processed),
            PointChoice::Custom(point) => match self.point_get(item, point).await {
                Ok(view) => {
                    let point = view.point;
                    Ok(Chosen::Point(point.id, point.position, point.held_at))
                }
                Err(error) if error.kind == ErrorKind::NotFound => {
                    Err(no_point(format!("there is no recovery point {point}")))
                }
                Err(error) => Err(error),
            },
        }
    }
}

/// The name of an item's machine on a host: its own, or another one if that is taken there.
pub(super) fn machine_name(host: &HostFacts, machine: &str, item: ItemId) -> String {
    match host.has_machine(machine) {
        true => name_beside(machine, item),
        false => machine.to_owned(),
    }
}

/// The name of an item's machine beside another one of its own name.
pub(crate) fn name_beside(machine: &str, item: ItemId) -> String {
    format!("{machine}-{}", &item.to_string()[..8])
}

/// The live machine that nothing replicates, if that is the case; a reprotect is given up.
fn replaced(world: &mut World, running: &Running, chosen: Chosen) -> Result<Option<Replaced>> {
    let row = item(world)?;
    let machine = match row.state.protection {
        Protection::Committed { machine } => machine,
        Protection::Reprotecting { .. } => row
            .plan
            .live
            .ok_or_else(|| ControlError::internal("no machine to go back to", &row.name))?,
        _ => return Ok(None),
    };
    if !matches!(chosen, Chosen::Point(..)) {
        let what = format!(
            "{} is {}: there is no newest point. Choose one of the retained points of either site",
            row.name,
            row.state.protection.name()
        );
        return Err(ControlError::not_now(what));
    }
    if matches!(row.state.protection, Protection::Reprotecting { .. }) {
        let jobs = running.0.iter().filter(|row| row.facts.lane == Lane::Reverse);
        world.cancels.extend(jobs.map(|row| row.facts.id));
        reprotect::give_up(world, machine).map_err(|error| refused(&error))?;
    }
    if let Some(row) = &mut world.item {
        // Nothing goes on with it: the machine will be another one.
        let left = other(row.state.active);
        row.plan.end_mut(left).forget_half();
    }
    let row = item(world)?;
    let plan = row.plan.instance(machine).filter(|plan| plan.stage != Stage::HandedOver);
    let instance = plan.map(|plan| plan.id);
    Ok(Some(Replaced { site: row.state.active, instance, keep: world.new_id() }))
}

/// A step's error as the answer to a request.
pub(super) fn refused(error: &StepError) -> ControlError {
    ControlError::internal("could not change the item", error)
}

/// The memory of a failover.
pub(super) fn failover(world: &World, job: JobId, choice: Chosen, shutdown: Shutdown) -> Failover {
    Failover {
        way_back: way_back(world, job, world.new_id()),
        choice,
        shutdown,
        timeline: world.new_id(),
        asked: None,
        final_point: None,
        newest: None,
        point: None,
    }
}

pub(super) fn way_back(world: &World, job: JobId, instance: InstanceId) -> WayBack {
    let (timeline, keep) = (world.new_id(), world.new_id());
    WayBack { job, instance, timeline, keep, off_by_word: false, replaced: None }
}
