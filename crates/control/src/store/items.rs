//! Rows of protected items: state, plan, version. Written by `items::record` alone.

use super::{Conn, StoreError, StoreResult, parse, query, text};
use crate::plan::Plan;
use leeward_model::{
    FabricId, HostId, ItemId, ProtectedItem, Protection, Site, UnixMillis, VaultId,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Is an item's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ItemRow {
    pub(crate) id: ItemId,
    pub(crate) vault: VaultId,
    pub(crate) fabric: FabricId,
    pub(crate) target_fabric: FabricId,
    pub(crate) name: String,
    pub(crate) policy: String,
    pub(crate) machine_id: Uuid,
    pub(crate) machine: String,
    pub(crate) extra: serde_json::Value,
    pub(crate) state: ProtectedItem,
    pub(crate) plan: Plan,
    pub(crate) last_failover: Option<UnixMillis>,
    pub(crate) last_test: Option<UnixMillis>,
    /// Kept in a column of its own; 0 before the row is stored.
    #[serde(skip)]
    pub(crate) version: u64,
}

impl ItemRow {
    /// The site that receives, or that a running failover goes to.
    pub(crate) fn target_site(&self) -> Site {
        match self.state.protection {
            Protection::FailingOver { target, .. } => target,
            _ => self.state.direction.target(),
        }
    }

    /// The other site: the one that the machine writes at, or is leaving.
    pub(crate) fn source_site(&self) -> Site {
        crate::plan::other(self.target_site())
    }
}

const LOAD: &str = "load items";

fn row((version, body): &(i64, String)) -> StoreResult<ItemRow> {
    let version = version.unsigned_abs();
    parse::<ItemRow>(LOAD, body).map(|row| ItemRow { version, ..row })
}

pub(crate) async fn insert(conn: &mut Conn, item: &ItemRow) -> StoreResult<()> {
    let sql = "INSERT INTO items \
               (id, vault, fabric, name, source_host, target_host, machine, version, body) \
               VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?)";
    let done = sqlx::query(sql)
        .bind(item.id.to_string())
        .bind(item.vault.to_string())
        .bind(item.fabric.to_string())
        .bind(&item.name)
        .bind(item.plan.primary.host.to_string())
        .bind(item.plan.recovery.host.to_string())
        .bind(item.machine_id.to_string())
        .bind(text(item))
        .execute(conn)
        .await;
    query("save a new item", done).map(drop)
}

/// Stores `item` if its row still has `item.version`; the row then has the next version.
pub(crate) async fn update(conn: &mut Conn, item: &ItemRow) -> StoreResult<()> {
    let sql = "UPDATE items SET version = version + 1, source_host = ?, target_host = ?, body = ? \
               WHERE id = ? AND version = ?";
    let done = sqlx::query(sql)
        .bind(item.plan.primary.host.to_string())
        .bind(item.plan.recovery.host.to_string())
        .bind(text(item))
        .bind(item.id.to_string())
        .bind(i64::try_from(item.version).unwrap_or(i64::MAX))
        .execute(conn)
        .await;
    expect_one(item, query("save an item", done)?.rows_affected())
}

/// Deletes `item` if its row still has `item.version`.
pub(crate) async fn delete(conn: &mut Conn, item: &ItemRow) -> StoreResult<()> {
    let sql = "DELETE FROM items WHERE id = ? AND version = ?";
    let done = sqlx::query(sql)
        .bind(item.id.to_string())
        .bind(i64::try_from(item.version).unwrap_or(i64::MAX))
        .execute(conn)
        .await;
    expect_one(item, query("delete an item", done)?.rows_affected())
}

fn expect_one(item: &ItemRow, rows: u64) -> StoreResult<()> {
    if rows == 1 { Ok(()) } else { Err(StoreError::Lost { what: format!("item {}", item.name) }) }
}

pub(crate) async fn find(conn: &mut Conn, item: ItemId) -> StoreResult<Option<ItemRow>> {
    let sql = "SELECT version, body FROM items WHERE id = ?";
    let found = query(LOAD, sqlx::query_as(sql).bind(item.to_string()).fetch_optional(conn).await)?;
    found.as_ref().map(row).transpose()
}

/// The items of a vault by name.
pub(crate) async fn of_vault(conn: &mut Conn, vault: VaultId) -> StoreResult<Vec<ItemRow>> {
    let sql = "SELECT version, body FROM items WHERE vault = ? ORDER BY name";
    let rows: Vec<_> =
        query(LOAD, sqlx::query_as(sql).bind(vault.to_string()).fetch_all(conn).await)?;
    rows.iter().map(row).collect()
}

/// The items that a host is an end of, or that left a machine there.
pub(crate) async fn of_host(conn: &mut Conn, host: HostId) -> StoreResult<Vec<ItemRow>> {
    let sql = "SELECT version, body FROM items WHERE ?1 IN (source_host, target_host) OR EXISTS \
               (SELECT 1 FROM json_each(body, '$.plan.left') WHERE value ->> 'host' = ?1) \
               ORDER BY id";
    let rows: Vec<_> =
        query(LOAD, sqlx::query_as(sql).bind(host.to_string()).fetch_all(conn).await)?;
    rows.iter().map(row).collect()
}

pub(crate) async fn all_ids(conn: &mut Conn) -> StoreResult<Vec<ItemId>> {
    let sql = "SELECT id FROM items ORDER BY id";
    let ids: Vec<String> = query(LOAD, sqlx::query_scalar(sql).fetch_all(conn).await)?;
    Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
}

/// Notes that an item ended because its migration is complete.
pub(crate) async fn note_migrated(
    conn: &mut Conn,
    item: &ItemRow,
    at: UnixMillis,
) -> StoreResult<()> {
    let sql = "INSERT INTO migrated (item, fabric, name, at) VALUES (?, ?, ?, ?) \
               ON CONFLICT (item) DO NOTHING";
    let done = sqlx::query(sql)
        .bind(item.id.to_string())
        .bind(item.fabric.to_string())
        .bind(&item.name)
        .bind(at.0)
        .execute(conn)
        .await;
    query("note a migration", done).map(drop)
}

/// Name of an item that ended because its migration is complete.
pub(crate) async fn migrated(conn: &mut Conn, item: ItemId) -> StoreResult<Option<String>> {
    let sql = "SELECT name FROM migrated WHERE item = ?";
    query(LOAD, sqlx::query_scalar(sql).bind(item.to_string()).fetch_optional(conn).await)
}

/// The same by the item's fabric and name, as it was spelt.
pub(crate) async fn migrated_name(
    conn: &mut Conn,
    fabric: FabricId,
    name: &str,
) -> StoreResult<Option<String>> {
    let sql = "SELECT name FROM migrated WHERE fabric = ? AND name = ? ORDER BY at DESC LIMIT 1";
    let found = sqlx::query_scalar(sql).bind(fabric.to_string()).bind(name);
    query(LOAD, found.fetch_optional(conn).await)
}
