//! Rows of events for operators and of the journal of protection states.

use super::{Conn, StoreResult, parse, query, text};
use crate::events::EventView;
use leeward_model::{Event, ItemId, UnixMillis, VaultId};

/// Events that are kept at least, over all vaults: some 50 MB of text.
const EVENTS_MAX: i64 = 100_000;

pub(crate) async fn append(conn: &mut Conn, vault: VaultId, event: &EventView) -> StoreResult<()> {
    let sql = "INSERT INTO events (vault, body) VALUES (?, ?)";
    let done = sqlx::query(sql).bind(vault.to_string()).bind(text(event)).execute(&mut *conn).await;
    query("append an event", done)?;
    let old = "DELETE FROM events WHERE vault = ? AND seq <= (SELECT MAX(seq) FROM events) - ?";
    let done = sqlx::query(old).bind(vault.to_string()).bind(EVENTS_MAX).execute(conn).await;
    query("forget old events", done).map(drop)
}

/// Events after `after`, oldest first.
pub(crate) async fn list(
    conn: &mut Conn,
    vault: VaultId,
    after: u64,
    limit: u64,
) -> StoreResult<Vec<EventView>> {
    let what = "load events";
    let sql = "SELECT seq, body FROM events WHERE vault = ? AND seq > ? ORDER BY seq LIMIT ?";
    let rows: Vec<(i64, String)> = query(
        what,
        sqlx::query_as(sql)
            .bind(vault.to_string())
            .bind(i64::try_from(after).unwrap_or(i64::MAX))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(conn)
            .await,
    )?;
    let event = |(seq, body): &(i64, String)| {
        let seq = seq.unsigned_abs();
        parse::<EventView>(what, body).map(|event| EventView { seq, ..event })
    };
    rows.iter().map(event).collect()
}

/// Appends what was applied to an item when it got `version`.
pub(crate) async fn journal(
    conn: &mut Conn,
    item: ItemId,
    version: u64,
    at: UnixMillis,
    events: &[Event],
) -> StoreResult<()> {
    let sql = "INSERT INTO protection_events (item, version, number, at, body) \
               VALUES (?, ?, ?, ?, ?)";
    for (number, event) in events.iter().enumerate() {
        let done = sqlx::query(sql)
            .bind(item.to_string())
            .bind(i64::try_from(version).unwrap_or(i64::MAX))
            .bind(i64::try_from(number).unwrap_or(i64::MAX))
            .bind(at.0)
            .bind(text(event))
            .execute(&mut *conn)
            .await;
        query("append to the journal of an item", done)?;
    }
    Ok(())
}
