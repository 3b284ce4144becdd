//! Recovery plans: which machines go together and in which order (F-055, F-160). Here they are
//! made, changed and shown; `start` starts their jobs, `requests` carries out what those ask for.

mod actions;
mod check;
mod outside;
mod requests;
mod start;

pub use actions::{Act, Action, DnsUpdate, KeyAlgorithm, RETRIES, Secret, TIMEOUT_S, What};
pub use check::{GroupInput, ItemRef, PlanInput};
pub(crate) use outside::{ActKey, ActionAsk, Actions, Running};
pub use outside::{ActionEnd, ActionFacts, ActionMachine, ActionRun, ActionRunner, Task};
pub(crate) use requests::Refusals;
pub use start::PlanAsk;

use crate::jobs::{RunState, Scenario, plan_tasks};
use crate::store::{self, Conn, items::ItemRow, jobs::JobRow, plans::PlanRow};
use crate::vaults::check_name;
use crate::{Control, ControlError, ErrorKind, error::Result};
use leeward_model::{
    Code, Event, FabricId, ItemId, JobId, PointChoice, Protection, TestState, UnixMillis, VaultId,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a group of a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupKind {
    /// All machines as they are shut down: comes first, names none.
    Shutdown,
    /// All machines as they are failed over: comes second, names none.
    Failover,
    /// Machines that are started together, after those of the group before.
    Boot,
}

/// What a plan can do with its machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "as the operations of a protected item")]
pub enum Verb {
    TestFailover,
    TestCleanup,
    PlannedFailover,
    UnplannedFailover,
    Commit,
    CancelFailover,
    Reprotect,
}

impl Verb {
    /// All of them, in the order in which they are offered.
    pub const ALL: [Verb; 7] = [
        Verb::TestFailover,
        Verb::TestCleanup,
        Verb::PlannedFailover,
        Verb::UnplannedFailover,
        Verb::Commit,
        Verb::CancelFailover,
        Verb::Reprotect,
    ];

    /// Whether it makes machines, which start in the order of the groups.
    pub fn boots(self) -> bool {
        matches!(self, Verb::TestFailover | Verb::PlannedFailover | Verb::UnplannedFailover)
    }

    /// The scenario of its job.
    pub fn scenario(self) -> Scenario {
        match self {
            Verb::TestFailover => Scenario::TestFailover,
            Verb::TestCleanup => Scenario::TestFailoverCleanup,
            Verb::PlannedFailover => Scenario::PlannedFailover,
            Verb::UnplannedFailover => Scenario::UnplannedFailover,
            Verb::Commit => Scenario::CommitFailover,
            Verb::CancelFailover => Scenario::CancelFailover,
            Verb::Reprotect => Scenario::ReverseReplication,
        }
    }
}

/// Is a group of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What it is.
    pub kind: GroupKind,
    /// Its machines; none but in a boot group.
    pub items: Vec<ItemId>,
    /// What is done before it.
    pub before: Vec<Action>,
    /// What is done after it.
    pub after: Vec<Action>,
}

/// Is a machine of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    /// The item.
    pub item: ItemId,
    /// Its name.
    pub name: String,
    /// Its primary site's fabric.
    pub fabric: FabricId,
    /// Name of it.
    pub fabric_name: String,
    /// Id of its machine (protectable item).
    pub machine: Uuid,
}

/// Is a recovery plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// Its id.
    pub id: Uuid,
    /// Its vault.
    pub vault: VaultId,
    /// Its name, spelt as at its creation.
    pub name: String,
    /// The primary site's fabric.
    pub primary: FabricId,
    /// Name of it; empty when it is gone.
    pub primary_name: String,
    /// The recovery site's fabric.
    pub recovery: FabricId,
    /// Name of it; empty when it is gone.
    pub recovery_name: String,
    /// Its groups: Shutdown, Failover, then the boot groups.
    pub groups: Vec<Group>,
    /// Its machines, in the order of the groups.
    pub members: Vec<MemberView>,
    /// Fields that only the API knows.
    pub extra: serde_json::Value,
    /// What can be done with it now: what can be done with one of its machines at least.
    pub allowed: Vec<Verb>,
    /// Its job that runs: scenario, job, begin.
    pub running: Option<(Scenario, JobId, UnixMillis)>,
    /// State of that job, or else of its last one.
    pub last_state: Option<RunState>,
    /// When its last test failover succeeded, in whole or in part.
    pub last_test: Option<UnixMillis>,
    /// The same of a planned failover.
    pub last_planned: Option<UnixMillis>,
    /// The same of an unplanned failover.
    pub last_unplanned: Option<UnixMillis>,
}

/// A plan by name, or the refusal.
pub(crate) async fn plan_row(conn: &mut Conn, vault: VaultId, name: &str) -> Result<PlanRow> {
    let row = store::plans::find(conn, vault, name).await?;
    row.ok_or_else(|| ControlError::not_found(format!("there is no recovery plan {name}")))
}

/// The refusal while a job runs the plan.
fn busy(plan: &PlanRow, running: &JobRow) -> ControlError {
    let what = format!(
        "recovery plan {} is busy: job {} ({:?}) runs it",
        plan.name, running.facts.id, running.facts.scenario
    );
    ControlError::new(ErrorKind::Conflict, Code::ITEM_BUSY, what)
}

/// Refuses while a job runs the plan.
async fn refuse_busy(conn: &mut Conn, plan: &PlanRow) -> Result<()> {
    match store::jobs::running_plan(conn, plan.id).await? {
        Some(running) => Err(busy(plan, &running)),
        None => Ok(()),
    }
}

/// The items of a plan, in the order of its groups.
async fn member_rows(conn: &mut Conn, plan: &PlanRow) -> Result<Vec<ItemRow>> {
    let mut rows = Vec::new();
    for item in plan.items() {
        rows.extend(store::items::find(conn, item).await?);
    }
    Ok(rows)
}

/// Whether something can be done with an item as far as its state goes.
fn fits(verb: Verb, item: &ItemRow, auto_reverse: bool) -> bool {
    let (state, job) = (&item.state, JobId::from_u128(0));
    let turns = match state.protection {
        Protection::Committed { .. } => true,
        Protection::FailedOver { .. } => auto_reverse,
        _ => false,
    };
    match verb {
        Verb::TestFailover => state.apply(&Event::TestStarted { job }).is_ok(),
        Verb::TestCleanup => matches!(state.test, TestState::Active { .. }),
        Verb::PlannedFailover => turns || state.protection == Protection::Protected,
        Verb::UnplannedFailover => {
            let (choice, target) = (PointChoice::Latest, item.target_site());
            let committed = matches!(state.protection, Protection::Committed { .. });
            !committed && state.apply(&Event::FailoverStarted { job, choice, target }).is_ok()
        }
        Verb::Commit => state.apply(&Event::Committed).is_ok(),
        Verb::CancelFailover => {
            matches!(state.protection, Protection::FailedOver { .. }) && !item.plan.one_way
        }
        Verb::Reprotect => turns,
    }
}

/// Whether an item's policy reverses by itself, which lets it turn before the commit.
async fn auto_reverse(conn: &mut Conn, item: &ItemRow) -> Result<bool> {
    let policy = store::policies::find(conn, item.vault, &item.policy).await?;
    Ok(policy.is_some_and(|row| row.spec.policy.auto_reverse_planned))
}

fn millis(ms: u64) -> UnixMillis {
    UnixMillis(i64::try_from(ms).unwrap_or(i64::MAX))
}

async fn fabric_name(conn: &mut Conn, fabric: FabricId) -> Result<String> {
    let row = store::fabrics::by_id(conn, fabric).await?;
    Ok(row.map(|row| row.name).unwrap_or_default())
}

/// What can be done with a plan that no job runs.
async fn allowed(conn: &mut Conn, items: &[ItemRow]) -> Result<Vec<Verb>> {
    let mut allowed = Vec::new();
    for verb in Verb::ALL {
        for item in items {
            if fits(verb, item, auto_reverse(conn, item).await?) {
                allowed.push(verb);
                break;
            }
        }
    }
    Ok(allowed)
}

async fn show(conn: &mut Conn, row: PlanRow) -> Result<PlanView> {
    let items = member_rows(conn, &row).await?;
    let jobs = store::jobs::of_plan(conn, row.id).await?;
    let running = jobs.iter().find(|job| job.record.ended_ms.is_none());
    let fails_over = |job: &JobRow| {
        matches!(job.facts.scenario, Scenario::PlannedFailover | Scenario::UnplannedFailover)
    };
    let allowed = match running {
        Some(job) if fails_over(job) => vec![Verb::CancelFailover],
        Some(_) => Vec::new(),
        None => allowed(conn, &items).await?,
    };
    let mut members = Vec::new();
    for item in items {
        members.push(MemberView {
            item: item.id,
            fabric: item.fabric,
            fabric_name: fabric_name(conn, item.fabric).await?,
            machine: item.machine_id,
            name: item.name,
        });
    }
    let last = |scenario| {
        let done = jobs.iter().find(|job| {
            job.facts.scenario == scenario && job.record.phase == leeward_durable::Phase::Succeeded
        });
        done.and_then(|job| job.record.ended_ms).map(millis)
    };
    Ok(PlanView {
        id: row.id,
        vault: row.vault,
        primary: row.primary,
        primary_name: fabric_name(conn, row.primary).await?,
        recovery: row.recovery,
        recovery_name: fabric_name(conn, row.recovery).await?,
        members,
        extra: row.extra,
        allowed,
        running: running
            .map(|job| (job.facts.scenario, job.facts.id, millis(job.record.created_ms))),
        last_state: jobs.first().map(|job| plan_tasks::state(&job.record)),
        last_test: last(Scenario::TestFailover),
        last_planned: last(Scenario::PlannedFailover),
        last_unplanned: last(Scenario::UnplannedFailover),
        groups: row.groups,
        name: row.name,
    })
}

impl Control {
    /// Makes or replaces a plan. The groups Shutdown and Failover are added in front when they
    /// are missing.
    ///
    /// # Errors
    /// BadRequest for groups that no plan can have; NotFound for a fabric or an item; Conflict
    /// while a job runs the plan.
    pub async fn plan_put(&self, vault: VaultId, name: &str, input: PlanInput) -> Result<PlanView> {
        check_name("recovery plan", name)?;
        let mut tx = self.store().begin().await?;
        let known = store::plans::find(&mut tx, vault, name).await?;
        if let Some(known) = &known {
            refuse_busy(&mut tx, known).await?;
        }
        let (primary, recovery) = check::fabrics(&mut tx, vault, &input).await?;
        let before = known.as_ref().map_or(&[][..], |row| &row.groups);
        let sites = (primary, recovery);
        let groups = check::groups(&mut tx, vault, sites, input.groups, before).await?;
        let row = PlanRow {
            id: known.as_ref().map_or_else(|| self.new_id(), |row| row.id),
            vault,
            name: known.map_or_else(|| name.to_owned(), |row| row.name),
            primary,
            recovery,
            groups,
            extra: input.extra,
        };
        store::plans::save(&mut tx, &row).await?;
        let view = show(&mut tx, row).await?;
        store::commit(tx).await?;
        Ok(view)
    }

    /// Replaces all groups of a plan.
    ///
    /// # Errors
    /// As [`Self::plan_put`]; NotFound for the plan.
    pub async fn plan_groups(
        &self,
        vault: VaultId,
        name: &str,
        groups: Vec<GroupInput>,
    ) -> Result<PlanView> {
        let mut tx = self.store().begin().await?;
        let mut row = plan_row(&mut tx, vault, name).await?;
        refuse_busy(&mut tx, &row).await?;
        let sites = (row.primary, row.recovery);
        row.groups = check::groups(&mut tx, vault, sites, groups, &row.groups).await?;
        store::plans::save(&mut tx, &row).await?;
        let view = show(&mut tx, row).await?;
        store::commit(tx).await?;
        Ok(view)
    }

    /// Finds a plan.
    ///
    /// # Errors
    /// NotFound.
    pub async fn plan_get(&self, vault: VaultId, name: &str) -> Result<PlanView> {
        let mut tx = self.store().read().await?;
        let row = plan_row(&mut tx, vault, name).await?;
        show(&mut tx, row).await
    }

    /// Lists a vault's plans by name.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub async fn plan_list(&self, vault: VaultId) -> Result<Vec<PlanView>> {
        let mut tx = self.store().read().await?;
        let mut views = Vec::new();
        for row in store::plans::list(&mut tx, vault).await? {
            views.push(show(&mut tx, row).await?);
        }
        Ok(views)
    }

    /// Removes a plan; its machines stay as they are.
    ///
    /// # Errors
    /// NotFound; Conflict while a job runs it.
    pub async fn plan_delete(&self, vault: VaultId, name: &str) -> Result<()> {
        let mut tx = self.store().begin().await?;
        let row = plan_row(&mut tx, vault, name).await?;
        refuse_busy(&mut tx, &row).await?;
        store::plans::remove(&mut tx, row.id).await?;
        store::commit(tx).await?;
        Ok(())
    }
}
