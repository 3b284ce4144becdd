//! Rows of hosts: who they are, their last boot, and the generation of their assignment.

use super::{Conn, StoreResult, parse, parse_all, query, text};
use leeward_model::{FabricId, HostId};
use serde::{Deserialize, Serialize};

/// Is a host's row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostRow {
    pub(crate) id: HostId,
    pub(crate) name: String,
    /// Boot id at its last hello; permits are for this boot. Empty before the first.
    pub(crate) boot: String,
    pub(crate) data_address: Option<String>,
    /// Ids of its newest notes that are events already.
    #[serde(default)]
    pub(crate) notes_taken: Vec<uuid::Uuid>,
    /// Kept in a column of its own.
    #[serde(skip)]
    pub(crate) generation: u64,
}

const LOAD: &str = "load hosts";

pub(crate) async fn save(conn: &mut Conn, row: &HostRow) -> StoreResult<()> {
    let sql = "INSERT INTO hosts (id, generation, body) VALUES (?, 1, ?) \
               ON CONFLICT (id) DO UPDATE SET body = excluded.body";
    let saved = sqlx::query(sql).bind(row.id.to_string()).bind(text(row)).execute(conn).await;
    query("save a host", saved).map(drop)
}

pub(crate) async fn find(conn: &mut Conn, host: HostId) -> StoreResult<Option<HostRow>> {
    let sql = "SELECT generation, body FROM hosts WHERE id = ?";
    let row: Option<(i64, String)> =
        query(LOAD, sqlx::query_as(sql).bind(host.to_string()).fetch_optional(conn).await)?;
    row.map(|(generation, body)| {
        let generation = generation.unsigned_abs();
        parse::<HostRow>(LOAD, &body).map(|row| HostRow { generation, ..row })
    })
    .transpose()
}

/// The hosts of a fabric by name. Their generation is not loaded.
pub(crate) async fn of_fabric(conn: &mut Conn, fabric: FabricId) -> StoreResult<Vec<HostRow>> {
    let sql = "SELECT body FROM hosts JOIN fabric_hosts ON host = id WHERE fabric = ?";
    let rows = sqlx::query_scalar(sql).bind(fabric.to_string()).fetch_all(conn).await;
    let mut hosts: Vec<HostRow> = parse_all(LOAD, &query(LOAD, rows)?)?;
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(hosts)
}

/// The fabrics that a host is a member of.
pub(crate) async fn fabrics(conn: &mut Conn, host: HostId) -> StoreResult<Vec<FabricId>> {
    let sql = "SELECT fabric FROM fabric_hosts WHERE host = ?";
    let ids: Vec<String> =
        query(LOAD, sqlx::query_scalar(sql).bind(host.to_string()).fetch_all(conn).await)?;
    Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
}

pub(crate) async fn join(conn: &mut Conn, fabric: FabricId, host: HostId) -> StoreResult<()> {
    let sql = "INSERT INTO fabric_hosts (fabric, host) VALUES (?, ?) ON CONFLICT DO NOTHING";
    let done = sqlx::query(sql).bind(fabric.to_string()).bind(host.to_string()).execute(conn).await;
    query("add a host to a fabric", done).map(drop)
}

/// Takes a host out of a fabric, with the machines found there.
pub(crate) async fn leave(conn: &mut Conn, fabric: FabricId, host: HostId) -> StoreResult<()> {
    let all = [
        "DELETE FROM machines WHERE fabric = ? AND host = ?",
        "DELETE FROM fabric_hosts WHERE fabric = ? AND host = ?",
    ];
    for sql in all {
        let ids = (fabric.to_string(), host.to_string());
        let done = sqlx::query(sql).bind(ids.0).bind(ids.1).execute(&mut *conn).await;
        query("take a host out of a fabric", done)?;
    }
    Ok(())
}

/// Raises the generation of a host's assignment.
pub(crate) async fn bump(conn: &mut Conn, host: HostId) -> StoreResult<()> {
    let sql = "UPDATE hosts SET generation = generation + 1 WHERE id = ?";
    let done = sqlx::query(sql).bind(host.to_string()).execute(conn).await;
    query("raise the generation of a host", done).map(drop)
}

/// Raises the generation of every host's assignment by `count`.
pub(crate) async fn skip_generations(conn: &mut Conn, count: i64) -> StoreResult<()> {
    let sql = "UPDATE hosts SET generation = generation + ?";
    query("raise generations", sqlx::query(sql).bind(count).execute(conn).await).map(drop)
}
