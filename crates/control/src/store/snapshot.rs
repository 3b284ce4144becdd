//! The configuration as one value: what another config server needs to go on. No points, and of
//! what is over only the jobs that later ones look back at. Decides nothing.

use super::{Conn, MIGRATIONS, StoreError, StoreResult, query};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Version of the form of a snapshot.
const FORMAT: u32 = 1;
/// Ended jobs that are kept: those that reprotects and views look back at are far fewer.
const JOBS: &str = "WHERE ended IS NULL OR rowid IN (SELECT rowid FROM jobs \
                    WHERE lane IN ('main', 'reverse') ORDER BY created DESC, rowid DESC LIMIT 500)";
/// Newest entries of the audit log: what another server goes on behind, and what tells this one
/// that entries of its own database are gone.
const AUDIT: &str = "WHERE number > (SELECT MAX(number) FROM audit_log) - 256";
/// Name of the audit log's table.
const AUDIT_LOG: &str = "audit_log";
/// Tables with their columns, in the order in which their rows refer to one another.
const TABLES: &[(&str, &[&str], &str)] = &[
    ("vaults", &["id", "subscription", "resource_group", "name", "body"], ""),
    ("fabrics", &["id", "vault", "name", "body"], ""),
    ("hosts", &["id", "generation", "body"], ""),
    ("fabric_hosts", &["fabric", "host"], ""),
    ("policies", &["vault", "name", "body"], ""),
    ("mappings", &["vault", "fabric", "name", "body"], ""),
    (
        "resource_mappings",
        &["vault", "kind", "fabric", "object", "name", "target", "target_object"],
        "",
    ),
    ("machines", &["id", "fabric", "host", "name", "body"], ""),
    (
        "items",
        &[
            "id",
            "vault",
            "fabric",
            "name",
            "source_host",
            "target_host",
            "machine",
            "version",
            "body",
        ],
        "",
    ),
    (
        "jobs",
        &[
            "id", "vault", "item", "lane", "created", "ended", "revision", "record", "body",
            "parent", "plan",
        ],
        JOBS,
    ),
    ("plans", &["id", "vault", "name", "body"], ""),
    ("migrated", &["item", "fabric", "name", "at"], ""),
    (AUDIT_LOG, &["number", "body", "hash"], AUDIT),
];

#[derive(Serialize, Deserialize)]
struct Snapshot {
    format: u32,
    /// Of the database that it is of: how many migrations had run.
    schema: usize,
    tables: BTreeMap<String, Table>,
}

/// A table as it was under the snapshot's schema.
#[derive(Default, Serialize, Deserialize)]
struct Table {
    columns: Vec<String>,
    /// Each row its columns in their order.
    rows: Vec<Vec<Value>>,
}

/// The configuration as it is in this transaction, as JSON. Equal ones are equal bytes.
pub(crate) async fn dump(conn: &mut Conn) -> StoreResult<Vec<u8>> {
    let what = "copy the configuration";
    let mut tables = BTreeMap::new();
    for (table, columns, filter) in TABLES {
        let names = columns.join(", ");
        let sql = format!("SELECT json_array({names}) FROM {table} {filter} ORDER BY {names}");
        let rows: Vec<String> =
            query(what, sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *conn).await)?;
        let rows = rows.iter().map(|row| serde_json::from_str(row));
        let rows = rows.collect::<Result<Vec<Vec<Value>>, _>>();
        let rows = rows.map_err(|source| StoreError::Malformed { what, source })?;
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        tables.insert((*table).to_owned(), Table { columns, rows });
    }
    let snapshot = Snapshot { format: FORMAT, schema: MIGRATIONS.len(), tables };
    Ok(serde_json::to_vec(&snapshot).expect("rows are plain values"))
}

/// Number and hash of the audit log's entries in a snapshot, ascending.
///
/// # Errors
/// [`StoreError::Malformed`] when it is none.
pub(crate) fn audit_entries(bytes: &[u8]) -> StoreResult<Vec<(i64, String)>> {
    let malformed = |source| StoreError::Malformed { what: "read a kept configuration", source };
    let snapshot: Snapshot = serde_json::from_slice(bytes).map_err(malformed)?;
    let rows = snapshot.tables.get(AUDIT_LOG).map(|table| table.rows.as_slice());
    let entry = |row: &Vec<Value>| Some((row.first()?.as_i64()?, row.get(2)?.as_str()?.to_owned()));
    Ok(rows.unwrap_or_default().iter().filter_map(entry).collect())
}

/// Fills an empty database with a snapshot: first the schema that it is of, then its rows, then
/// whatever has changed in the schema since.
///
/// # Errors
/// [`StoreError::Malformed`] when it is none, or one of a newer program.
pub(crate) async fn load(conn: &mut Conn, bytes: &[u8]) -> StoreResult<()> {
    let what = "take over the configuration";
    let malformed = |source| StoreError::Malformed { what, source };
    let refuse = |why: String| malformed(serde::de::Error::custom(why));
    let snapshot: Snapshot = serde_json::from_slice(bytes).map_err(malformed)?;
    if snapshot.format != FORMAT || snapshot.schema > MIGRATIONS.len() {
        let (format, schema) = (snapshot.format, snapshot.schema);
        return Err(refuse(format!("a newer program wrote it: format {format}, schema {schema}")));
    }
    for migration in &MIGRATIONS[..snapshot.schema] {
        query(what, sqlx::raw_sql(*migration).execute(&mut *conn).await)?;
    }
    let mut tables = snapshot.tables;
    for (table, known, _) in TABLES {
        let Table { columns, rows } = tables.remove(*table).unwrap_or_default();
        if let Some(column) = columns.iter().find(|column| !known.contains(&column.as_str())) {
            return Err(refuse(format!("table {table} has an unknown column {column}")));
        }
        let marks = vec!["?"; columns.len()].join(", ");
        let sql = format!("INSERT INTO {table} ({}) VALUES ({marks})", columns.join(", "));
        for row in &rows {
            if row.len() != columns.len() {
                return Err(refuse(format!("a row of {table} has {} columns", row.len())));
            }
            let mut insert = sqlx::query(sqlx::AssertSqlSafe(sql.clone()));
            for value in row {
                insert = match value {
                    Value::Null => insert.bind(None::<String>),
                    Value::String(text) => insert.bind(text.as_str()),
                    Value::Number(number) => insert.bind(number.as_i64()),
                    Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                        return Err(refuse(format!("a row of {table} holds {value}")));
                    }
                };
            }
            query(what, insert.execute(&mut *conn).await)?;
        }
    }
    for migration in &MIGRATIONS[snapshot.schema..] {
        query(what, sqlx::raw_sql(*migration).execute(&mut *conn).await)?;
    }
    let version = format!("PRAGMA user_version = {}", MIGRATIONS.len());
    query(what, sqlx::raw_sql(sqlx::AssertSqlSafe(version)).execute(&mut *conn).await).map(drop)
}
