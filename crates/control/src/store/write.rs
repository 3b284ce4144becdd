//! The one write transaction, and the request in whose name it changes something: that is in the
//! audit log with the change or not at all.

use super::{Conn, StoreResult, audit_log, query};
use crate::audit_log::{AuditOutcome, AuditRecord};
use sqlx::{Sqlite, Transaction};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Most jobs of one transaction that its audit entry names.
const JOBS_MAX: i64 = 16;

/// Is a request that may change something.
#[derive(Debug)]
pub(crate) struct Asked {
    record: AuditRecord,
    /// Whether a change that it made is stored, and it with the change.
    changed: Mutex<bool>,
}

impl Asked {
    pub(crate) fn new(record: AuditRecord) -> Asked {
        Asked { record, changed: Mutex::default() }
    }

    /// Who asks for what, before anything came of it.
    pub(crate) fn record(&self) -> &AuditRecord {
        &self.record
    }

    pub(crate) fn has_changed(&self) -> bool {
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is a write transaction. Dropping it undoes it.
pub(crate) struct Write {
    tx: Transaction<'static, Sqlite>,
    /// The request that is not in the log yet, and the last job before its change.
    asked: Option<(Arc<Asked>, i64)>,
}

impl Write {
    pub(super) async fn new(
        mut tx: Transaction<'static, Sqlite>,
        asked: Option<Arc<Asked>>,
    ) -> StoreResult<Write> {
        let Some(asked) = asked.filter(|asked| !asked.has_changed()) else {
            return Ok(Write { tx, asked: None });
        };
        let sql = "SELECT COALESCE(MAX(rowid), 0) FROM jobs";
        let last = sqlx::query_scalar(sql).fetch_one(&mut *tx).await;
        let last = query("look for the newest job", last)?;
        Ok(Write { tx, asked: Some((asked, last)) })
    }
}

impl Deref for Write {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.tx
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.tx
    }
}

/// Ends a write transaction.
pub(crate) async fn commit(write: Write) -> StoreResult<()> {
    let Write { mut tx, asked } = write;
    if let Some((asked, last)) = &asked {
        let jobs = jobs_since(&mut tx, *last).await?;
        let outcome = AuditOutcome::Changed;
        let record = AuditRecord { jobs, outcome, ..asked.record.clone() };
        audit_log::append(&mut tx, &record).await?;
    }
    query("commit a transaction", tx.commit().await)?;
    if let Some((asked, _)) = asked {
        *asked.changed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
    Ok(())
}

/// Ids of jobs that this transaction made: jobs are never deleted, so their rows only grow.
async fn jobs_since(conn: &mut Conn, last: i64) -> StoreResult<Vec<String>> {
    let sql = "SELECT id FROM jobs WHERE rowid > ? ORDER BY rowid LIMIT ?";
    let found = sqlx::query_scalar(sql).bind(last).bind(JOBS_MAX).fetch_all(conn).await;
    query("find new jobs", found)
}
