//! Rows of jobs: the engine's record and what operators see beside it.

use super::{Conn, StoreError, StoreResult, parse, query, text};
use crate::jobs::{Request, Scenario, TargetKind};
use leeward_durable::Record;
use leeward_model::{ItemId, JobId, VaultId};
use serde::{Deserialize, Serialize};

/// Which jobs of one item exclude one another: those of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Lane {
    /// It changes the protection state.
    Main,
    /// It works on the test machine.
    Test,
    /// It builds up the other direction; a failover from a point gives it up.
    Reverse,
    /// It only waits for what goes on anyhow, and shows its progress.
    Watch,
    /// It runs a recovery plan and has no item.
    Plan,
}

impl Lane {
    fn name(self) -> &'static str {
        match self {
            Lane::Main => "main",
            Lane::Test => "test",
            Lane::Reverse => "reverse",
            Lane::Watch => "watch",
            Lane::Plan => "plan",
        }
    }
}

/// Is a job's row.
#[derive(Clone, Debug)]
pub(crate) struct JobRow {
    pub(crate) facts: JobFacts,
    pub(crate) record: Record,
}

/// Is what does not change about a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JobFacts {
    pub(crate) id: JobId,
    pub(crate) vault: VaultId,
    pub(crate) item: Option<ItemId>,
    pub(crate) lane: Lane,
    pub(crate) scenario: Scenario,
    pub(crate) target_kind: TargetKind,
    pub(crate) target_id: String,
    pub(crate) target_name: String,
    pub(crate) comments: String,
    /// For a restart.
    pub(crate) request: Option<Request>,
    /// The job of the recovery plan that it is part of.
    #[serde(default)]
    pub(crate) parent: Option<JobId>,
}

const LOAD: &str = "load jobs";
/// How many of a plan's jobs are looked at for the times of its last runs.
const OF_PLAN_MAX: i64 = 100;

fn row((record, body): &(String, String)) -> StoreResult<JobRow> {
    Ok(JobRow { facts: parse(LOAD, body)?, record: Record::decode(record)? })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) async fn insert(conn: &mut Conn, job: &JobRow) -> StoreResult<()> {
    let sql = "INSERT INTO jobs \
               (id, vault, item, lane, created, ended, revision, record, body, parent, plan) \
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let plan = (job.facts.lane == Lane::Plan).then_some(&job.facts.target_id);
    let done = sqlx::query(sql)
        .bind(job.facts.id.to_string())
        .bind(job.facts.vault.to_string())
        .bind(job.facts.item.map(|item| item.to_string()))
        .bind(job.facts.lane.name())
        .bind(signed(job.record.created_ms))
        .bind(job.record.ended_ms.map(signed))
        .bind(signed(job.record.revision))
        .bind(job.record.encode())
        .bind(text(&job.facts))
        .bind(job.facts.parent.map(|parent| parent.to_string()))
        .bind(plan)
        .execute(conn)
        .await;
    query("save a new job", done).map(drop)
}

/// Stores a record if the row still has `revision`.
pub(crate) async fn update(
    conn: &mut Conn,
    job: JobId,
    revision: u64,
    record: &Record,
) -> StoreResult<()> {
    let sql = "UPDATE jobs SET ended = ?, revision = ?, record = ? WHERE id = ? AND revision = ?";
    let done = sqlx::query(sql)
        .bind(record.ended_ms.map(signed))
        .bind(signed(record.revision))
        .bind(record.encode())
        .bind(job.to_string())
        .bind(signed(revision))
        .execute(conn)
        .await;
    match query("save a job", done)?.rows_affected() {
        1 => Ok(()),
        _ => Err(StoreError::Lost { what: format!("job {job}") }),
    }
}

pub(crate) async fn find(conn: &mut Conn, job: JobId) -> StoreResult<Option<JobRow>> {
    let sql = "SELECT record, body FROM jobs WHERE id = ?";
    let found = query(LOAD, sqlx::query_as(sql).bind(job.to_string()).fetch_optional(conn).await)?;
    found.as_ref().map(row).transpose()
}

/// A vault's jobs, newest first.
pub(crate) async fn of_vault(conn: &mut Conn, vault: VaultId) -> StoreResult<Vec<JobRow>> {
    let sql = "SELECT record, body FROM jobs WHERE vault = ? ORDER BY created DESC, rowid DESC";
    let rows: Vec<_> =
        query(LOAD, sqlx::query_as(sql).bind(vault.to_string()).fetch_all(conn).await)?;
    rows.iter().map(row).collect()
}

/// An item's jobs that are not over.
pub(crate) async fn running(conn: &mut Conn, item: ItemId) -> StoreResult<Vec<JobRow>> {
    let sql = "SELECT record, body FROM jobs WHERE item = ? AND ended IS NULL ORDER BY created";
    let rows: Vec<_> =
        query(LOAD, sqlx::query_as(sql).bind(item.to_string()).fetch_all(conn).await)?;
    rows.iter().map(row).collect()
}

/// The item's job that only watches, if one is not over.
pub(crate) async fn watching(conn: &mut Conn, item: ItemId) -> StoreResult<Option<JobRow>> {
    let sql = "SELECT record, body FROM jobs WHERE item = ? AND lane = ? AND ended IS NULL";
    let asked = sqlx::query_as(sql).bind(item.to_string()).bind(Lane::Watch.name());
    let found = query(LOAD, asked.fetch_optional(conn).await)?;
    found.as_ref().map(row).transpose()
}

/// An item's newest job of the other direction, running or over.
pub(crate) async fn newest_reverse(conn: &mut Conn, item: ItemId) -> StoreResult<Option<JobRow>> {
    let sql = "SELECT record, body FROM jobs \
               WHERE item = ? AND lane = ? ORDER BY created DESC, rowid DESC LIMIT 1";
    let asked = sqlx::query_as(sql).bind(item.to_string()).bind(Lane::Reverse.name());
    let found = query(LOAD, asked.fetch_optional(conn).await)?;
    found.as_ref().map(row).transpose()
}

/// An item's jobs of the main lane that are over, newest first.
pub(crate) async fn ended_main(conn: &mut Conn, item: ItemId) -> StoreResult<Vec<JobRow>> {
    let sql = "SELECT record, body FROM jobs \
               WHERE item = ? AND lane = ? AND ended IS NOT NULL ORDER BY created DESC, rowid DESC";
    let asked = sqlx::query_as(sql).bind(item.to_string()).bind(Lane::Main.name());
    let rows: Vec<_> = query(LOAD, asked.fetch_all(conn).await)?;
    rows.iter().map(row).collect()
}

/// All jobs that are not over, oldest first.
pub(crate) async fn unfinished(conn: &mut Conn) -> StoreResult<Vec<JobId>> {
    let sql = "SELECT id FROM jobs WHERE ended IS NULL ORDER BY created, rowid";
    let ids: Vec<String> = query(LOAD, sqlx::query_scalar(sql).fetch_all(conn).await)?;
    Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
}

/// The jobs that are part of a plan's job, oldest first.
pub(crate) async fn of_parent(conn: &mut Conn, parent: JobId) -> StoreResult<Vec<JobRow>> {
    let sql = "SELECT record, body FROM jobs WHERE parent = ? ORDER BY created, rowid";
    let rows: Vec<_> =
        query(LOAD, sqlx::query_as(sql).bind(parent.to_string()).fetch_all(conn).await)?;
    rows.iter().map(row).collect()
}

/// The newest jobs of a plan, newest first.
pub(crate) async fn of_plan(conn: &mut Conn, plan: uuid::Uuid) -> StoreResult<Vec<JobRow>> {
    let sql = "SELECT record, body FROM jobs WHERE plan = ? \
               ORDER BY created DESC, rowid DESC LIMIT ?";
    let asked = sqlx::query_as(sql).bind(plan.to_string()).bind(OF_PLAN_MAX);
    let rows: Vec<_> = query(LOAD, asked.fetch_all(conn).await)?;
    rows.iter().map(row).collect()
}

/// The plan's job that is not over.
pub(crate) async fn running_plan(conn: &mut Conn, plan: uuid::Uuid) -> StoreResult<Option<JobRow>> {
    let sql = "SELECT record, body FROM jobs WHERE plan = ? AND ended IS NULL";
    let found = query(LOAD, sqlx::query_as(sql).bind(plan.to_string()).fetch_optional(conn).await)?;
    found.as_ref().map(row).transpose()
}
