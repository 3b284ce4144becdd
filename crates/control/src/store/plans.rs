//! Rows of recovery plans. What may stand in them is decided in `plans`.

use super::{Conn, StoreResult, found, parse_all, query, text};
use crate::plans::Group;
use leeward_model::{FabricId, ItemId, VaultId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Is a recovery plan's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanRow {
    pub(crate) id: Uuid,
    pub(crate) vault: VaultId,
    pub(crate) name: String,
    pub(crate) primary: FabricId,
    pub(crate) recovery: FabricId,
    /// Shutdown, Failover, then the boot groups in their order.
    pub(crate) groups: Vec<Group>,
    /// Fields that only the API knows.
    pub(crate) extra: serde_json::Value,
}

impl PlanRow {
    /// Its items in the order of its groups.
    pub(crate) fn items(&self) -> impl Iterator<Item = ItemId> + '_ {
        self.groups.iter().flat_map(|group| group.items.iter().copied())
    }
}

const LOAD: &str = "load recovery plans";

pub(crate) async fn save(conn: &mut Conn, row: &PlanRow) -> StoreResult<()> {
    let sql = "INSERT INTO plans (id, vault, name, body) VALUES (?, ?, ?, ?) \
               ON CONFLICT (id) DO UPDATE SET body = excluded.body";
    let saved = sqlx::query(sql)
        .bind(row.id.to_string())
        .bind(row.vault.to_string())
        .bind(&row.name)
        .bind(text(row))
        .execute(conn)
        .await;
    query("save a recovery plan", saved).map(drop)
}

pub(crate) async fn find(
    conn: &mut Conn,
    vault: VaultId,
    name: &str,
) -> StoreResult<Option<PlanRow>> {
    let sql = "SELECT body FROM plans WHERE vault = ? AND name = ?";
    let rows = sqlx::query_scalar(sql).bind(vault.to_string()).bind(name).fetch_all(conn).await;
    found(LOAD, rows)
}

pub(crate) async fn by_id(conn: &mut Conn, plan: Uuid) -> StoreResult<Option<PlanRow>> {
    let sql = "SELECT body FROM plans WHERE id = ?";
    let rows = sqlx::query_scalar(sql).bind(plan.to_string()).fetch_all(conn).await;
    found(LOAD, rows)
}

/// A vault's plans by name.
pub(crate) async fn list(conn: &mut Conn, vault: VaultId) -> StoreResult<Vec<PlanRow>> {
    let sql = "SELECT body FROM plans WHERE vault = ? ORDER BY name";
    let rows = sqlx::query_scalar(sql).bind(vault.to_string()).fetch_all(conn).await;
    parse_all(LOAD, &query(LOAD, rows)?)
}

pub(crate) async fn remove(conn: &mut Conn, plan: Uuid) -> StoreResult<()> {
    let sql = "DELETE FROM plans WHERE id = ?";
    let done = sqlx::query(sql).bind(plan.to_string()).execute(conn).await;
    query("remove a recovery plan", done).map(drop)
}

/// Takes an item out of all plans of its vault, and names those that had it.
pub(crate) async fn leave(
    conn: &mut Conn,
    vault: VaultId,
    item: ItemId,
) -> StoreResult<Vec<String>> {
    let mut left = Vec::new();
    for mut row in list(conn, vault).await? {
        if row.items().any(|member| member == item) {
            row.groups.iter_mut().for_each(|group| group.items.retain(|one| *one != item));
            save(conn, &row).await?;
            left.push(row.name);
        }
    }
    Ok(left)
}
