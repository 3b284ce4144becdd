//! Rows of registration keys: hashes only.

use super::{Conn, StoreResult, query};
use leeward_model::{FabricId, UnixMillis};

pub(crate) async fn save(
    conn: &mut Conn,
    hash: &str,
    fabric: FabricId,
    expires: UnixMillis,
) -> StoreResult<()> {
    let sql = "INSERT INTO registration_keys (hash, fabric, expires) VALUES (?, ?, ?)";
    let done =
        sqlx::query(sql).bind(hash).bind(fabric.to_string()).bind(expires.0).execute(conn).await;
    query("save a registration key", done).map(drop)
}

/// Deletes the key and returns its fabric if it was there and has not expired at `now`.
pub(crate) async fn take(
    conn: &mut Conn,
    hash: &str,
    now: UnixMillis,
) -> StoreResult<Option<FabricId>> {
    let what = "use up a registration key";
    let sql = "DELETE FROM registration_keys WHERE hash = ? RETURNING fabric, expires";
    let row: Option<(String, i64)> =
        query(what, sqlx::query_as(sql).bind(hash).fetch_optional(&mut *conn).await)?;
    let gone = "DELETE FROM registration_keys WHERE expires <= ?";
    query(what, sqlx::query(gone).bind(now.0).execute(conn).await)?;
    Ok(row.filter(|(_, expires)| *expires > now.0).and_then(|(fabric, _)| fabric.parse().ok()))
}
