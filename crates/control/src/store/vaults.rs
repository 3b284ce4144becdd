//! Rows of vaults.

use super::{Conn, StoreResult, found, parse_all, query, text};
use crate::vaults::{VaultKey, VaultSpec};
use leeward_model::{FabricId, VaultId};
use serde::{Deserialize, Serialize};

/// Is a vault's row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VaultRow {
    pub(crate) id: VaultId,
    pub(crate) key: VaultKey,
    pub(crate) spec: VaultSpec,
    pub(crate) recovery_fabric: FabricId,
}

const LOAD: &str = "load vaults";

pub(crate) async fn save(conn: &mut Conn, row: &VaultRow) -> StoreResult<()> {
    let sql = "INSERT INTO vaults (id, subscription, resource_group, name, body) \
               VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body";
    let saved = sqlx::query(sql)
        .bind(row.id.to_string())
        .bind(&row.key.subscription)
        .bind(&row.key.resource_group)
        .bind(&row.key.name)
        .bind(text(row))
        .execute(conn)
        .await;
    query("save a vault", saved).map(drop)
}

pub(crate) async fn find(conn: &mut Conn, key: &VaultKey) -> StoreResult<Option<VaultRow>> {
    let sql = "SELECT body FROM vaults WHERE subscription = ? AND resource_group = ? AND name = ?";
    let rows = sqlx::query_scalar(sql)
        .bind(&key.subscription)
        .bind(&key.resource_group)
        .bind(&key.name)
        .fetch_all(conn)
        .await;
    found(LOAD, rows)
}

pub(crate) async fn list(conn: &mut Conn, subscription: &str) -> StoreResult<Vec<VaultRow>> {
    let sql = "SELECT body FROM vaults WHERE subscription = ? ORDER BY name";
    parse_all(LOAD, &query(LOAD, sqlx::query_scalar(sql).bind(subscription).fetch_all(conn).await)?)
}

/// Removes a vault that has no items, with all that lies in it.
pub(crate) async fn remove(conn: &mut Conn, vault: VaultId) -> StoreResult<()> {
    let of_fabrics = [
        "DELETE FROM registration_keys WHERE fabric IN (SELECT id FROM fabrics WHERE vault = ?)",
        "DELETE FROM machines WHERE fabric IN (SELECT id FROM fabrics WHERE vault = ?)",
        "DELETE FROM mappings WHERE vault = ?",
        "DELETE FROM fabric_hosts WHERE fabric IN (SELECT id FROM fabrics WHERE vault = ?)",
        "DELETE FROM policies WHERE vault = ?",
        "DELETE FROM plans WHERE vault = ?",
        "DELETE FROM fabrics WHERE vault = ?",
        "DELETE FROM vaults WHERE id = ?",
    ];
    for sql in of_fabrics {
        let done = sqlx::query(sql).bind(vault.to_string()).execute(&mut *conn).await;
        query("remove a vault", done)?;
    }
    Ok(())
}

/// Every vault of every subscription, by name.
pub(crate) async fn all(conn: &mut Conn) -> StoreResult<Vec<VaultRow>> {
    let sql = "SELECT body FROM vaults ORDER BY name, id";
    parse_all(LOAD, &query(LOAD, sqlx::query_scalar(sql).fetch_all(conn).await)?)
}

/// Their ids.
pub(crate) async fn all_ids(conn: &mut Conn) -> StoreResult<Vec<VaultId>> {
    let ids =
        query(LOAD, sqlx::query_scalar("SELECT id FROM vaults ORDER BY id").fetch_all(conn).await);
    let ids: Vec<String> = ids?;
    Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
}
