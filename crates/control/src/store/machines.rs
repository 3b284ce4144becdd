//! Rows of machines found on hosts, and what is remembered of the newest points.

use super::{Conn, StoreResult, found, parse, parse_all, query, text};
use leeward_model::{FabricId, HostId, ItemId, MachineSpec};
use leeward_wire::message::NewestPoint;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Is a machine's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MachineRow {
    pub(crate) id: Uuid,
    pub(crate) fabric: FabricId,
    pub(crate) host: HostId,
    pub(crate) spec: MachineSpec,
    pub(crate) obstacles: Vec<String>,
}

const LOAD: &str = "load machines";

pub(crate) async fn save(conn: &mut Conn, row: &MachineRow) -> StoreResult<()> {
    let sql = "INSERT INTO machines (id, fabric, host, name, body) VALUES (?, ?, ?, ?, ?) \
               ON CONFLICT (id) DO UPDATE SET body = excluded.body";
    let saved = sqlx::query(sql)
        .bind(row.id.to_string())
        .bind(row.fabric.to_string())
        .bind(row.host.to_string())
        .bind(&row.spec.name)
        .bind(text(row))
        .execute(conn)
        .await;
    query("save a machine", saved).map(drop)
}

pub(crate) async fn of_fabric(conn: &mut Conn, fabric: FabricId) -> StoreResult<Vec<MachineRow>> {
    let sql = "SELECT body FROM machines WHERE fabric = ? ORDER BY host, name";
    let rows = sqlx::query_scalar(sql).bind(fabric.to_string()).fetch_all(conn).await;
    parse_all(LOAD, &query(LOAD, rows)?)
}

pub(crate) async fn find(conn: &mut Conn, id: Uuid) -> StoreResult<Option<MachineRow>> {
    let sql = "SELECT body FROM machines WHERE id = ?";
    let rows = sqlx::query_scalar(sql).bind(id.to_string()).fetch_all(conn).await;
    found(LOAD, rows)
}

/// Removes machines that are gone from their host, unless an item protects them.
pub(crate) async fn remove_unprotected(conn: &mut Conn, id: Uuid) -> StoreResult<()> {
    let sql = "DELETE FROM machines WHERE id = ? AND id NOT IN (SELECT machine FROM items)";
    let done = sqlx::query(sql).bind(id.to_string()).execute(conn).await;
    query("remove a machine", done).map(drop)
}

pub(crate) async fn newest_save(
    conn: &mut Conn,
    item: ItemId,
    newest: &NewestPoint,
) -> StoreResult<()> {
    let sql = "INSERT INTO newest_points (item, body) VALUES (?, ?) \
               ON CONFLICT (item) DO UPDATE SET body = excluded.body";
    let done = sqlx::query(sql).bind(item.to_string()).bind(text(newest)).execute(conn).await;
    query("note a newest point", done).map(drop)
}

pub(crate) async fn newest(conn: &mut Conn, item: ItemId) -> StoreResult<Option<NewestPoint>> {
    let what = "load the newest point of an item";
    let sql = "SELECT body FROM newest_points WHERE item = ?";
    let body: Option<String> =
        query(what, sqlx::query_scalar(sql).bind(item.to_string()).fetch_optional(conn).await)?;
    body.map(|body| parse(what, &body)).transpose()
}
