//! Rows of policies.

use super::{Conn, StoreResult, found, parse_all, query, text};
use crate::policies::PolicySpec;
use leeward_model::VaultId;
use serde::{Deserialize, Serialize};

/// Is a policy's row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PolicyRow {
    pub(crate) vault: VaultId,
    pub(crate) name: String,
    pub(crate) spec: PolicySpec,
}

const LOAD: &str = "load policies";

pub(crate) async fn save(conn: &mut Conn, row: &PolicyRow) -> StoreResult<()> {
    let sql = "INSERT INTO policies (vault, name, body) VALUES (?, ?, ?) \
               ON CONFLICT (vault, name) DO UPDATE SET body = excluded.body";
    let saved = sqlx::query(sql)
        .bind(row.vault.to_string())
        .bind(&row.name)
        .bind(text(row))
        .execute(conn)
        .await;
    query("save a policy", saved).map(drop)
}

pub(crate) async fn find(
    conn: &mut Conn,
    vault: VaultId,
    name: &str,
) -> StoreResult<Option<PolicyRow>> {
    let sql = "SELECT body FROM policies WHERE vault = ? AND name = ?";
    let rows = sqlx::query_scalar(sql).bind(vault.to_string()).bind(name).fetch_all(conn).await;
    found(LOAD, rows)
}

pub(crate) async fn list(conn: &mut Conn, vault: VaultId) -> StoreResult<Vec<PolicyRow>> {
    let sql = "SELECT body FROM policies WHERE vault = ? ORDER BY name";
    let rows = sqlx::query_scalar(sql).bind(vault.to_string()).fetch_all(conn).await;
    parse_all(LOAD, &query(LOAD, rows)?)
}

pub(crate) async fn remove(conn: &mut Conn, vault: VaultId, name: &str) -> StoreResult<()> {
    let sql = "DELETE FROM policies WHERE vault = ? AND name = ?";
    let done = sqlx::query(sql).bind(vault.to_string()).bind(name).execute(conn).await;
    query("remove a policy", done).map(drop)
}
