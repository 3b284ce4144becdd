//! Rows of mappings between networks, and between storage, of two fabrics. They go with either
//! fabric. What may be mapped is decided in `networks` and `api`.

use super::{Conn, StoreResult, query};
use leeward_model::{FabricId, VaultId};

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// A network.
    Network,
    /// A class of storage.
    Storage,
}

impl Mapped {
    fn word(self) -> &'static str {
        match self {
            Mapped::Network => "network",
            Mapped::Storage => "storage",
        }
    }
}

/// Is a mapping of one object of a fabric to one of another fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceMappingRow {
    pub(crate) vault: VaultId,
    pub(crate) kind: Mapped,
    pub(crate) fabric: FabricId,
    pub(crate) object: String,
    pub(crate) name: String,
    pub(crate) target: FabricId,
    pub(crate) target_object: String,
}

/// Makes a mapping, or changes where the one of this name leads.
pub(crate) async fn save(conn: &mut Conn, row: &ResourceMappingRow) -> StoreResult<()> {
    let sql = "INSERT INTO resource_mappings \
               (vault, kind, fabric, object, name, target, target_object) \
               VALUES (?, ?, ?, ?, ?, ?, ?) \
               ON CONFLICT (kind, fabric, object, name) DO UPDATE \
               SET target = excluded.target, target_object = excluded.target_object";
    let saved = sqlx::query(sql)
        .bind(row.vault.to_string())
        .bind(row.kind.word())
        .bind(row.fabric.to_string())
        .bind(&row.object)
        .bind(&row.name)
        .bind(row.target.to_string())
        .bind(&row.target_object)
        .execute(conn)
        .await;
    query("save a mapping of networks or storage", saved).map(drop)
}

/// The mappings of a vault, by fabric, object and name.
pub(crate) async fn of_vault(
    conn: &mut Conn,
    vault: VaultId,
    kind: Mapped,
) -> StoreResult<Vec<ResourceMappingRow>> {
    const LOAD: &str = "load mappings of networks or storage";
    type Row = (String, String, String, String, String);
    let sql = "SELECT fabric, object, name, target, target_object FROM resource_mappings \
               WHERE vault = ? AND kind = ? ORDER BY fabric, object, name";
    let found = sqlx::query_as(sql).bind(vault.to_string()).bind(kind.word());
    let rows: Vec<Row> = query(LOAD, found.fetch_all(conn).await)?;
    let rows = rows.into_iter().filter_map(|(fabric, object, name, target, target_object)| {
        let (fabric, target) = (fabric.parse().ok()?, target.parse().ok()?);
        Some(ResourceMappingRow { vault, kind, fabric, object, name, target, target_object })
    });
    Ok(rows.collect())
}

pub(crate) async fn remove(conn: &mut Conn, row: &ResourceMappingRow) -> StoreResult<()> {
    let sql = "DELETE FROM resource_mappings \
               WHERE kind = ? AND fabric = ? AND object = ? AND name = ?";
    let done = sqlx::query(sql)
        .bind(row.kind.word())
        .bind(row.fabric.to_string())
        .bind(&row.object)
        .bind(&row.name)
        .execute(conn)
        .await;
    query("remove a mapping of networks or storage", done).map(drop)
}
