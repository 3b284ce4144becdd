//! Rows of fabrics and of the mappings between their containers.

use super::{Conn, StoreResult, found, parse_all, query, text};
use crate::fabrics::FabricKind;
use leeward_model::{FabricId, VaultId};
use serde::{Deserialize, Serialize};

/// Is a fabric's row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FabricRow {
    pub(crate) id: FabricId,
    pub(crate) vault: VaultId,
    pub(crate) name: String,
    pub(crate) kind: FabricKind,
    pub(crate) extra: serde_json::Value,
}

/// Is a mapping's row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MappingRow {
    pub(crate) vault: VaultId,
    pub(crate) name: String,
    pub(crate) source: FabricId,
    pub(crate) target: FabricId,
    pub(crate) policy: String,
    pub(crate) extra: serde_json::Value,
}

const LOAD: &str = "load fabrics";
const MAPPINGS: &str = "load mappings";

pub(crate) async fn save(conn: &mut Conn, row: &FabricRow) -> StoreResult<()> {
    let sql = "INSERT INTO fabrics (id, vault, name, body) VALUES (?, ?, ?, ?) \
               ON CONFLICT (id) DO UPDATE SET body = excluded.body";
    let saved = sqlx::query(sql)
        .bind(row.id.to_string())
        .bind(row.vault.to_string())
        .bind(&row.name)
        .bind(text(row))
        .execute(conn)
        .await;
    query("save a fabric", saved).map(drop)
}

pub(crate) async fn list(conn: &mut Conn, vault: VaultId) -> StoreResult<Vec<FabricRow>> {
    let sql = "SELECT body FROM fabrics WHERE vault = ? ORDER BY name";
    let rows = sqlx::query_scalar(sql).bind(vault.to_string()).fetch_all(conn).await;
    parse_all(LOAD, &query(LOAD, rows)?)
}

pub(crate) async fn find(
    conn: &mut Conn,
    vault: VaultId,
    name: &str,
) -> StoreResult<Option<FabricRow>> {
    let sql = "SELECT body FROM fabrics WHERE vault = ? AND name = ?";
    let rows = sqlx::query_scalar(sql).bind(vault.to_string()).bind(name).fetch_all(conn).await;
    found(LOAD, rows)
}

/// Removes a fabric without items and mappings, with its machines and its hosts' membership.
pub(crate) async fn remove(conn: &mut Conn, fabric: FabricId) -> StoreResult<()> {
    let all = [
        "DELETE FROM registration_keys WHERE fabric = ?",
        "DELETE FROM machines WHERE fabric = ?",
        "DELETE FROM fabric_hosts WHERE fabric = ?",
        "DELETE FROM fabrics WHERE id = ?",
    ];
    for sql in all {
        let done = sqlx::query(sql).bind(fabric.to_string()).execute(&mut *conn).await;
        query("remove a fabric", done)?;
    }
    Ok(())
}

pub(crate) async fn mapping_save(conn: &mut Conn, row: &MappingRow) -> StoreResult<()> {
    let sql = "INSERT INTO mappings (vault, fabric, name, body) VALUES (?, ?, ?, ?) \
               ON CONFLICT (fabric, name) DO UPDATE SET body = excluded.body";
    let saved = sqlx::query(sql)
        .bind(row.vault.to_string())
        .bind(row.source.to_string())
        .bind(&row.name)
        .bind(text(row))
        .execute(conn)
        .await;
    query("save a mapping", saved).map(drop)
}

pub(crate) async fn mappings(conn: &mut Conn, vault: VaultId) -> StoreResult<Vec<MappingRow>> {
    let sql = "SELECT body FROM mappings WHERE vault = ? ORDER BY name";
    let rows = sqlx::query_scalar(sql).bind(vault.to_string()).fetch_all(conn).await;
    parse_all(MAPPINGS, &query(MAPPINGS, rows)?)
}

pub(crate) async fn mapping_remove(
    conn: &mut Conn,
    source: FabricId,
    name: &str,
) -> StoreResult<()> {
    let sql = "DELETE FROM mappings WHERE fabric = ? AND name = ?";
    let done = sqlx::query(sql).bind(source.to_string()).bind(name).execute(conn).await;
    query("remove a mapping", done).map(drop)
}

pub(crate) async fn by_id(conn: &mut Conn, fabric: FabricId) -> StoreResult<Option<FabricRow>> {
    let sql = "SELECT body FROM fabrics WHERE id = ?";
    let rows = sqlx::query_scalar(sql).bind(fabric.to_string()).fetch_all(conn).await;
    found(LOAD, rows)
}
