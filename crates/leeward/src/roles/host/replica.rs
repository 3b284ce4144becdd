//! One worker for each item whose replica this host holds: keeps it as the duty says, and shows its
//! figures. Taking a source's data is `target`'s part.

use super::{Host, site_store::SiteStore, target};
use leeward_model::ItemId;
use leeward_wire::message::{ItemDuty, TargetDuty};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How often old points are let go.
const EXPIRE_EVERY: Duration = Duration::from_secs(30);
/// How often the store's figures are read when nothing is committed.
const FIGURES_EVERY: Duration = Duration::from_secs(5);

impl Host {
    /// Reads the item's replica anew for the board.
    pub async fn replica_changed(&self, item: ItemId) {
        let Some(store) = &self.store else { return };
        match store.figures(item).await {
            Ok(figures) => self.board.target(item, |seen| {
                if let Some(seen) = seen {
                    (seen.fence, seen.newest) = (figures.fence, figures.newest);
                    (seen.stored_bytes, seen.points) = (figures.stored_bytes, figures.points);
                }
            }),
            Err(error) => {
                let problem = error.problem(format!("the replica of item {item} cannot be read"));
                self.board.target(item, |seen| {
                    if let Some(seen) = seen {
                        seen.problem = Some(problem);
                    }
                });
            }
        }
    }
}

/// Keeps an item's replica as its duty says: fence, retention, deletion, figures.
pub async fn run(
    host: Arc<Host>,
    store: Arc<SiteStore>,
    item: ItemId,
    mut work: watch::Receiver<Option<ItemDuty>>,
) {
    let mut expired = tokio::time::Instant::now();
    loop {
        let Some(duty) = work.borrow_and_update().clone() else {
            host.board.target(item, |seen| *seen = None);
            return;
        };
        host.board.target(item, |seen| {
            seen.get_or_insert_with(target::target_blank);
        });
        let Some(target) = duty.target else { return };
        let outcome = keep_replica(&host, &store, item, &target, duty.vault).await;
        if let Err(error) = outcome {
            let problem = error.problem(format!("the replica of item {item} could not be kept"));
            host.board.target(item, |seen| {
                if let Some(seen) = seen {
                    seen.problem = Some(problem);
                }
            });
        }
        if expired.elapsed() >= EXPIRE_EVERY && !target.delete {
            expired = tokio::time::Instant::now();
            if let Err(error) = store.expire(item, target.retention_seconds).await {
                tracing::warn!(%item, %error, "could not let old points go");
            }
        }
        let _ = tokio::time::timeout(FIGURES_EVERY, work.changed()).await;
    }
}

async fn keep_replica(
    host: &Host,
    store: &Arc<SiteStore>,
    item: ItemId,
    target: &TargetDuty,
    vault: leeward_model::VaultId,
) -> Result<(), leeward_replica::StoreError> {
    if target.delete {
        store.destroy(item).await?;
        host.board.target(item, |seen| {
            if let Some(seen) = seen {
                seen.deleted = true;
            }
        });
        return Ok(());
    }
    store.ensure(vault, item).await?;
    store.fence(item, target.fence).await?;
    host.replica_changed(item).await;
    Ok(())
}
