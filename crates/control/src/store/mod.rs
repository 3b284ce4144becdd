//! The config server's own database: SQLite, one file a noun. Decides nothing.

pub(crate) mod audit_log;
pub(crate) mod events;
pub(crate) mod fabrics;
pub(crate) mod hosts;
pub(crate) mod items;
pub(crate) mod jobs;
pub(crate) mod keys;
pub(crate) mod machines;
pub(crate) mod plans;
pub(crate) mod policies;
pub(crate) mod resource_mappings;
pub(crate) mod snapshot;
pub(crate) mod vaults;
mod write;

pub(crate) use write::{Asked, Write, commit};

use crate::error::ControlError;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, SqliteConnection, Transaction};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Migrations in their order; the database's `user_version` counts those that have run.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/sqlite/0001_init.sql"),
    include_str!("migrations/sqlite/0002_ends.sql"),
    include_str!("migrations/sqlite/0003_plans.sql"),
    include_str!("migrations/sqlite/0004_resource_mappings.sql"),
    include_str!("migrations/sqlite/0005_audit_log.sql"),
];
/// Connections that only read. Each costs a file handle and a page cache of 2 MiB at most.
const READERS_MAX: u32 = 4;

/// What a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A power cut: `synchronous=FULL`.
    PowerCut,
    /// The end of the process only; for tests that have no power cut.
    ProcessEnd,
}

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be opened.
    #[error("could not open the database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// A newer program made it.
    #[error(
        "database {path} has schema {found}, this program knows up to {known}: \
         use the newer program that wrote it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest that this program knows.
        known: usize,
    },
    /// A statement failed.
    #[error("could not {what}")]
    Query {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// A stored value cannot be read.
    #[error("could not read a stored value to {what}")]
    Malformed {
        /// What was tried.
        what: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Somebody else changed the row since it was read.
    #[error("{what} changed since it was read")]
    Lost {
        /// The row.
        what: String,
    },
    /// A stored job record cannot be read.
    #[error("could not read the record of a job")]
    Record(#[from] leeward_durable::DecodeError),
}

impl From<StoreError> for ControlError {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        ControlError::internal(error.to_string(), &cause.unwrap_or_default())
    }
}

type StoreResult<T> = Result<T, StoreError>;
/// Is a connection, within a transaction or not.
pub(crate) type Conn = SqliteConnection;

/// Is the database. Clones are one.
#[derive(Clone)]
pub struct Store {
    /// One connection: writers queue here, so that a transaction never loses a race.
    writer: SqlitePool,
    readers: SqlitePool,
    /// The request whose changes are made through this clone.
    asked: Option<Arc<Asked>>,
}

impl Store {
    /// Opens or makes the database `path` and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Newer`] leaves the file as it was.
    pub async fn open(path: &Path, durability: Durability) -> Result<Store, StoreError> {
        let store = Store::open_empty(path, durability).await?;
        migrate(&store.writer, path).await?;
        Ok(store)
    }

    /// As [`Self::open`], with the schema that the file has: none, if it was not there.
    pub(crate) async fn open_empty(
        path: &Path,
        durability: Durability,
    ) -> Result<Store, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let synchronous = match durability {
            Durability::PowerCut => SqliteSynchronous::Full,
            Durability::ProcessEnd => SqliteSynchronous::Off,
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        // A connection to a file does not go away by itself: asking it first costs a round trip.
        let pool = || SqlitePoolOptions::new().test_before_acquire(false);
        let writer = pool().max_connections(1);
        let writer = writer.connect_with(options.clone()).await.map_err(open)?;
        let readers = pool().max_connections(READERS_MAX);
        let readers = readers.connect_lazy_with(options.read_only(true));
        Ok(Store { writer, readers, asked: None })
    }

    /// Begins the one write transaction. Dropping it undoes it.
    pub(crate) async fn begin(&self) -> StoreResult<Write> {
        let begun = self.writer.begin_with("BEGIN IMMEDIATE").await;
        Write::new(query("begin a transaction", begun)?, self.asked.clone()).await
    }

    /// The same database; the first change made through it takes the request into the audit log.
    pub(crate) fn asked_by(&self, asked: Arc<Asked>) -> Store {
        Store { asked: Some(asked), ..self.clone() }
    }

    /// The request whose changes are made through this clone.
    pub(crate) fn asked(&self) -> Option<&Asked> {
        self.asked.as_deref()
    }

    /// Begins a transaction that sees one state and changes nothing.
    pub(crate) async fn read(&self) -> StoreResult<Transaction<'static, Sqlite>> {
        query("begin a reading transaction", self.readers.begin().await)
    }

    /// Whether a transaction is open or waits for a connection that is.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_in_use(&self) -> bool {
        [&self.writer, &self.readers].iter().any(|pool| pool.size() as usize > pool.num_idle())
    }

    /// Copies the whole database as it is to a new file.
    #[cfg(test)]
    pub(crate) async fn copy_to(&self, path: &Path) {
        let sql = format!("VACUUM INTO '{}'", path.display());
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&self.writer).await;
        done.expect("a folder of the test's own");
    }

    /// Runs statements of a test's own, behind the program's back.
    #[cfg(test)]
    pub(crate) async fn execute(&self, sql: &str) {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&self.writer).await.expect("the test's own statement");
    }

    /// Closes all connections; everything committed is in the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

async fn migrate(pool: &SqlitePool, path: &Path) -> StoreResult<()> {
    let what = "bring the schema up to date";
    let mut tx = query(what, pool.begin_with("BEGIN IMMEDIATE").await)?;
    let found: i64 =
        query(what, sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *tx).await)?;
    let done = usize::try_from(found).unwrap_or(usize::MAX);
    if done > MIGRATIONS.len() {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: MIGRATIONS.len() });
    }
    for migration in &MIGRATIONS[done..] {
        query(what, sqlx::raw_sql(*migration).execute(&mut *tx).await)?;
    }
    let version = format!("PRAGMA user_version = {}", MIGRATIONS.len());
    query(what, sqlx::raw_sql(sqlx::AssertSqlSafe(version)).execute(&mut *tx).await)?;
    query(what, tx.commit().await)
}

/// Names what a failed statement was for.
fn query<T>(what: &'static str, result: Result<T, sqlx::Error>) -> StoreResult<T> {
    result.map_err(|source| StoreError::Query { what, source })
}

fn parse<T: DeserializeOwned>(what: &'static str, text: &str) -> StoreResult<T> {
    serde_json::from_str(text).map_err(|source| StoreError::Malformed { what, source })
}

fn parse_all<T: DeserializeOwned>(what: &'static str, texts: &[String]) -> StoreResult<Vec<T>> {
    texts.iter().map(|text| parse(what, text)).collect()
}

/// The one row that was asked for, if it is there.
fn found<T: DeserializeOwned>(
    what: &'static str,
    texts: Result<Vec<String>, sqlx::Error>,
) -> StoreResult<Option<T>> {
    Ok(parse_all(what, &query(what, texts)?)?.pop())
}

fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("rows have only string keys and plain values")
}
