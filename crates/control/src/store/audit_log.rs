//! Rows of the audit log and the chain of their hashes. What is written into it is not decided
//! here. Byte by byte: `docs/formats/audit-log.md`.

use super::{Conn, StoreResult, query, text};
use crate::audit_log::AuditRecord;

/// Entries that are kept: some 80 MB of text. The oldest go then, and the log says where it begins.
pub(crate) const ENTRIES_MAX: u64 = 200_000;
/// Separates these hashes from all others that are made with the same function.
const CONTEXT: &str = "leeward 2026-11 audit log entry v1";
const LOAD: &str = "read the audit log";

/// Is a row as it is stored, understood or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuditRow {
    pub(crate) number: i64,
    pub(crate) body: String,
    /// Hexadecimal.
    pub(crate) hash: String,
}

type Columns = (i64, String, String);

fn row((number, body, hash): Columns) -> AuditRow {
    AuditRow { number, body, hash }
}

/// The hash of an entry behind one whose hash is `before`; of the first one that is empty.
pub(crate) fn link(number: i64, before: &str, body: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&number.to_le_bytes());
    hasher.update(before.as_bytes());
    hasher.update(body.as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// The newest entry.
pub(crate) async fn head(conn: &mut Conn) -> StoreResult<Option<AuditRow>> {
    let sql = "SELECT number, body, hash FROM audit_log ORDER BY number DESC LIMIT 1";
    let found: Option<Columns> = query(LOAD, sqlx::query_as(sql).fetch_optional(conn).await)?;
    Ok(found.map(row))
}

/// Appends an entry behind the newest, whatever that is: a log that somebody broke goes on.
pub(crate) async fn append(conn: &mut Conn, record: &AuditRecord) -> StoreResult<()> {
    let head = head(conn).await?;
    let number = head.as_ref().map_or(0, |head| head.number).saturating_add(1);
    let before = head.map(|head| head.hash).unwrap_or_default();
    let body = text(record);
    let hash = link(number, &before, &body);
    let sql = "INSERT INTO audit_log (number, body, hash) VALUES (?, ?, ?)";
    let done = sqlx::query(sql).bind(number).bind(&body).bind(&hash).execute(&mut *conn).await;
    query("append to the audit log", done)?;
    let old = "DELETE FROM audit_log WHERE number <= ?";
    let last = number.saturating_sub(i64::try_from(ENTRIES_MAX).unwrap_or(i64::MAX));
    query("drop the oldest audit entries", sqlx::query(old).bind(last).execute(conn).await)
        .map(drop)
}

/// Entries after number `after`, oldest first.
pub(crate) async fn list(conn: &mut Conn, after: i64, limit: u64) -> StoreResult<Vec<AuditRow>> {
    let sql = "SELECT number, body, hash FROM audit_log WHERE number > ? ORDER BY number LIMIT ?";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows: Vec<Columns> =
        query(LOAD, sqlx::query_as(sql).bind(after).bind(limit).fetch_all(conn).await)?;
    Ok(rows.into_iter().map(row).collect())
}
