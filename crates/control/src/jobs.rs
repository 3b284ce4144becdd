//! Jobs as operators see and steer them. The kinds of jobs are the modules below.

mod cancel_failover;
mod change_point;
mod cleanup_test;
mod commit;
mod complete_migration;
mod disable;
mod enable_protection;
mod failover;
mod finalize_protection;
mod finalize_reprotect;
mod left_behind;
mod plan_actions;
pub(crate) mod plan_tasks;
mod planned_failover;
pub(crate) mod recovery_plan;
mod replaced;
pub(crate) mod reprotect;
mod resync;
mod start;
mod test_failover;
mod view;
mod way_back;

/// The memories of the kinds, for those who start jobs.
pub(crate) mod kinds {
    pub(crate) use super::cancel_failover::CancelFailover;
    pub(crate) use super::change_point::ChangePoint;
    pub(crate) use super::cleanup_test::CleanupTest;
    pub(crate) use super::commit::CommitFailover;
    pub(crate) use super::complete_migration::CompleteMigration;
    pub(crate) use super::disable::DisableProtection;
    pub(crate) use super::enable_protection::EnableProtection;
    pub(crate) use super::failover::{Chosen, Failover};
    pub(crate) use super::left_behind::LeftBehind;
    pub(crate) use super::plan_actions::{RunAction, TakenBack};
    pub(crate) use super::planned_failover::PlannedFailover;
    pub(crate) use super::recovery_plan::{Member, Progress, RecoveryPlan, RunGroup};
    pub(crate) use super::replaced::Replaced;
    pub(crate) use super::reprotect::Reprotect;
    pub(crate) use super::resync::Resync;
    pub(crate) use super::test_failover::TestFailover;
    pub(crate) use super::way_back::WayBack;
}

pub use plan_tasks::{GroupTask, PartTask, PlanPart};
pub(crate) use start::NewJob;
pub(crate) use start::Request;
pub(crate) use view::{view as job_view, waits_to_complete};

use crate::store::{self, Conn, jobs::JobRow};
use crate::world::World;
use crate::{Control, ControlError, error::Result};
use leeward_durable::{Answer, Registry, request_cancel};
use leeward_model::{Code, ItemId, JobId, Problem, UnixMillis, VaultId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The scenario of a job, by the name that the API gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the API's own words")]
pub enum Scenario {
    EnableProtection,
    PrimaryIrCompletion,
    TestFailover,
    TestFailoverCleanup,
    UnplannedFailover,
    CancelFailover,
    ChangePit,
    CommitFailover,
    DisableProtection,
    PlannedFailover,
    ReverseReplication,
    SecondaryIrCompletion,
    CompleteMigration,
    Resynchronize,
    CreateSite,
    DeleteSite,
    AddProtectionProfile,
    UpdateProtectionProfile,
    DeleteProtectionProfile,
    PairClouds,
    UnpairClouds,
    RegisterDra,
    UnregisterDra,
    SaveRecoveryPlan,
    DeleteRecoveryPlan,
    MapNetworks,
    UnmapNetworks,
    MapStorage,
    UnmapStorage,
    UpdateVmProperties,
    ExportJobs,
}

/// State of a job or a task, in the API's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the API's own words")]
pub enum RunState {
    NotStarted,
    InProgress,
    Succeeded,
    /// Done with a warning: `Succeeded` with the description `CompletedWithInformation`.
    SucceededWithWarning,
    Failed,
    /// A cancel was asked for and runs.
    Cancelling,
    Cancelled,
    /// It waits for a person.
    Suspended,
    /// A task that had nothing to do: `Other`, description `Skipped`.
    Skipped,
}

/// Is a task: one step of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskView {
    /// The API's name of the step, `VmFailover`; unique in the job.
    pub name: String,
    /// For people.
    pub friendly_name: String,
    /// Its state.
    pub state: RunState,
    /// When it began.
    pub started: Option<UnixMillis>,
    /// When it ended.
    pub ended: Option<UnixMillis>,
    /// What it waits for, or why it was skipped.
    pub message: Option<String>,
    /// Its warning or failure.
    pub problem: Option<Problem>,
    /// Of a task that is a group of a recovery plan: the group.
    pub group: Option<GroupTask>,
}

/// What can be done with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the API's own words")]
pub enum JobAction {
    Cancel,
    Restart,
    Resume,
}

/// What sort of object a job works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the API's own words")]
pub enum TargetKind {
    ProtectionEntity,
    ProtectionProfile,
    Server,
    Fabric,
    RecoveryPlan,
}

/// Is a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// Its vault.
    pub vault: VaultId,
    /// Its scenario.
    pub scenario: Scenario,
    /// Its state.
    pub state: RunState,
    /// When it was made.
    pub started: UnixMillis,
    /// When it ended.
    pub ended: Option<UnixMillis>,
    /// Its tasks, all from the start.
    pub tasks: Vec<TaskView>,
    /// Failures and warnings, in the order of the tasks.
    pub errors: Vec<Problem>,
    /// What can be done with it now.
    pub allowed: Vec<JobAction>,
    /// What it asks a person, while it is suspended.
    pub question: Option<String>,
    /// The item.
    pub item: Option<ItemId>,
    /// Sort of its object.
    pub target_kind: TargetKind,
    /// Id of its object in text.
    pub target_id: String,
    /// Name of its object.
    pub target_name: String,
    /// What the operator said about it.
    pub comments: String,
    /// The recovery plan's job that it is part of.
    pub parent: Option<JobId>,
}

/// Which jobs to list. Empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// In one of these states.
    pub states: Vec<RunState>,
    /// Of one of these scenarios.
    pub scenarios: Vec<Scenario>,
    /// Of this item.
    pub item: Option<ItemId>,
    /// Begun at or after this time.
    pub since: Option<UnixMillis>,
    /// Begun at or before this time.
    pub until: Option<UnixMillis>,
}

/// What a person answers a suspended job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobAnswer {
    /// Try the step again.
    Retry,
    /// Go on, with this text; for a stop that could not be confirmed it means: it is off.
    Reply(String),
    /// Give the job up.
    Abandon,
}

/// Is an instant operation that the API shows as a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstantJob {
    /// Its scenario.
    pub scenario: Scenario,
    /// Sort of its object.
    pub target_kind: TargetKind,
    /// Id of its object in text.
    pub target_id: String,
    /// Name of its object.
    pub target_name: String,
}

/// All kinds of jobs.
pub(crate) fn registry() -> Registry<World> {
    Registry::new()
        .with::<cancel_failover::CancelFailover>()
        .with::<change_point::ChangePoint>()
        .with::<cleanup_test::CleanupTest>()
        .with::<commit::CommitFailover>()
        .with::<disable::DisableProtection>()
        .with::<enable_protection::EnableProtection>()
        .with::<failover::Failover>()
        .with::<finalize_protection::FinalizeProtection>()
        .with::<complete_migration::CompleteMigration>()
        .with::<finalize_reprotect::FinalizeReprotect>()
        .with::<planned_failover::PlannedFailover>()
        .with::<recovery_plan::RecoveryPlan>()
        .with::<reprotect::Reprotect>()
        .with::<resync::Resync>()
        .with::<test_failover::TestFailover>()
        .with::<start::Instant>()
}

/// Starts a job that shows a comparison which is already asked for, once it can be shown.
pub(crate) use resync::{can_be_shown as resync_can_be_shown, spawn as spawn_resync};

fn no_such_job(job: JobId) -> ControlError {
    ControlError::not_found(format!("there is no job {job}"))
}

impl Control {
    /// Finds a job.
    pub async fn job_get(&self, vault: VaultId, job: JobId) -> Result<JobView> {
        let mut tx = self.store().read().await?;
        let row = store::jobs::find(&mut tx, job).await?;
        let row = row.filter(|row| row.facts.vault == vault).ok_or_else(|| no_such_job(job))?;
        job_show(&mut tx, &row).await
    }

    /// Lists jobs, newest first.
    pub async fn job_list(&self, vault: VaultId, filter: &JobFilter) -> Result<Vec<JobView>> {
        let mut tx = self.store().read().await?;
        let rows = store::jobs::of_vault(&mut tx, vault).await?;
        Ok(rows.iter().map(view::view).filter(|job| filter.fits(job)).collect())
    }

    /// Asks a job to go back. Always accepted; of a finished job, a no-op.
    pub async fn job_cancel(&self, vault: VaultId, job: JobId) -> Result<JobView> {
        self.job_change(vault, job, |row| {
            request_cancel(&mut row.record);
            Ok(())
        })
        .await
    }

    /// Answers a suspended job, or (Retry) ends its back-off.
    ///
    /// # Errors
    /// Conflict when it asks nothing, or cannot be given up.
    pub async fn job_resume(
        &self,
        vault: VaultId,
        job: JobId,
        answer: JobAnswer,
    ) -> Result<JobView> {
        let answer = match answer {
            JobAnswer::Retry => Answer::Retry,
            JobAnswer::Reply(text) => Answer::Reply(text),
            JobAnswer::Abandon => Answer::Abandon,
        };
        self.job_change(vault, job, |row| {
            leeward_durable::answer(&mut row.record, answer)
                .map_err(|error| ControlError::not_now(error.to_string()))
        })
        .await
    }

    async fn job_change(
        &self,
        vault: VaultId,
        job: JobId,
        change: impl FnOnce(&mut JobRow) -> Result<()>,
    ) -> Result<JobView> {
        self.check_in_charge()?;
        let mut tx = self.store().begin().await?;
        let row = store::jobs::find(&mut tx, job).await?;
        let mut row = row.filter(|row| row.facts.vault == vault).ok_or_else(|| no_such_job(job))?;
        let revision = row.record.revision;
        change(&mut row)?;
        if row.record.revision != revision {
            store::jobs::update(&mut tx, job, revision, &row.record).await?;
        }
        let view = job_show(&mut tx, &row).await?;
        store::commit(tx).await?;
        self.poke();
        Ok(view)
    }

    /// Starts a failed or cancelled job anew, with the same request, as a new job.
    ///
    /// # Errors
    /// Conflict when the job did not fail; otherwise those of the request.
    pub async fn job_restart(&self, vault: VaultId, job: JobId) -> Result<JobId> {
        let view = self.job_get(vault, job).await?;
        if !view.allowed.contains(&JobAction::Restart) {
            return Err(ControlError::not_now(format!("job {job} cannot be started again")));
        }
        let mut tx = self.store().read().await?;
        let row = store::jobs::find(&mut tx, job).await?.ok_or_else(|| no_such_job(job))?;
        drop(tx);
        if let Some(Request::Plan { ask }) = row.facts.request {
            return self.plan_repeat(vault, &row.facts.target_id, ask).await;
        }
        let (Some(request), Some(item)) = (row.facts.request, row.facts.item) else {
            return Err(ControlError::not_supported(format!("job {job} has no request to repeat")));
        };
        self.request_repeat(vault, item, request).await
    }

    /// Number of jobs that are not over, by scenario and state.
    pub(crate) async fn jobs_running(&self) -> Result<BTreeMap<(String, String), u64>> {
        let mut tx = self.store().read().await?;
        let mut counts = BTreeMap::new();
        for job in store::jobs::unfinished(&mut tx).await? {
            let Some(row) = store::jobs::find(&mut tx, job).await? else { continue };
            let view = job_view(&row);
            let words = (format!("{:?}", view.scenario), format!("{:?}", view.state));
            *counts.entry(words).or_default() += 1;
        }
        Ok(counts)
    }

    /// Notes an operation that is already done as a succeeded job.
    pub async fn job_note(&self, vault: VaultId, instant: InstantJob) -> Result<JobId> {
        let id = self.new_id();
        let row = start::instant(id, vault, instant, self.now().wall_ms())?;
        let mut tx = self.store().begin().await?;
        store::jobs::insert(&mut tx, &row).await?;
        store::commit(tx).await?;
        self.counters().job(&job_view(&row));
        Ok(id)
    }
}

/// A job with the tasks of all that is part of it.
async fn job_show(conn: &mut Conn, row: &JobRow) -> Result<JobView> {
    let view = view::view(row);
    if row.record.kind != recovery_plan::KIND {
        return Ok(view);
    }
    let parts = store::jobs::of_parent(conn, row.facts.id).await?;
    Ok(plan_tasks::with_groups(view, row, &parts))
}

impl JobFilter {
    fn fits(&self, job: &JobView) -> bool {
        (self.states.is_empty() || self.states.contains(&job.state))
            && (self.scenarios.is_empty() || self.scenarios.contains(&job.scenario))
            && (self.item.is_none() || self.item == job.item)
            && self.since.is_none_or(|since| job.started >= since)
            && self.until.is_none_or(|until| job.started <= until)
    }
}

/// The refusal when another job of the lane runs.
pub(crate) fn busy(item: &str, running: &JobRow) -> ControlError {
    let what = format!(
        "item {item} is busy: job {} ({:?}) is at work on it",
        running.facts.id, running.facts.scenario
    );
    ControlError::new(crate::ErrorKind::Conflict, Code::ITEM_BUSY, what)
}
