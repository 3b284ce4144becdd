//! One worker for each item whose replica this host holds: keeps it as the duty says, and shows its
//! figures. Taking a source's data is `target`'s part.

use super::{Host, hash_key, site_store::SiteStore, target};
use leeward_model::ItemId;
use leeward_replica::StoreError;
use leeward_wire::message::{ItemDuty, TargetDuty};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How often old points are let go.
const EXPIRE_EVERY: Duration = Duration::from_secs(30);
/// How often the store's figures are read when nothing is committed.
const FIGURES_EVERY: Duration = Duration::from_secs(5);
/// How often the hash key is offered to a store that cannot ask for it, once it was offered.
const OFFER_EVERY: Duration = Duration::from_secs(30);

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
    let mut expired = Instant::now();
    let mut offered = None;
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
            expired = Instant::now();
            match store.expire(item, target.retention_seconds).await {
                // A part that waits for its hash key has no points.
                Ok(_) | Err(StoreError::NoItem { .. }) => {}
                Err(error) => tracing::warn!(%item, %error, "could not let old points go"),
            }
        }
        tokio::select! {
            () = offer_key(&host, &store, item, &target, &mut offered) => {}
            _ = work.changed() => {
                // Seen again at the top of the loop.
                work.mark_changed();
            }
        }
        let _ = tokio::time::timeout(FIGURES_EVERY, work.changed()).await;
    }
}

/// Offers the item's hash key to the other store while that may wait for it and cannot dial: again
/// and again, because it may lose what it got before it was durable there.
async fn offer_key(
    host: &Host,
    store: &Arc<SiteStore>,
    item: ItemId,
    target: &TargetDuty,
    offered: &mut Option<Instant>,
) {
    let other = target.other_store.as_ref().filter(|other| other.waits && !target.delete);
    let Some(address) = other.and_then(|other| other.address.as_deref()) else {
        *offered = None;
        return;
    };
    if offered.is_some_and(|at| at.elapsed() < OFFER_EVERY) {
        return;
    }
    let Ok(Some(hash_key)) = store.hash_key(item).await else { return };
    match hash_key::offer(host, item, hash_key, address).await {
        Ok(()) => *offered = Some(Instant::now()),
        Err(error) => {
            let what = format!("the hash key of item {item} could not be offered at {address}");
            let problem = error.problem(what);
            tracing::warn!(%item, code = %problem.code, cause = %problem.cause, "{}", problem.what);
        }
    }
}

async fn keep_replica(
    host: &Host,
    store: &Arc<SiteStore>,
    item: ItemId,
    target: &TargetDuty,
    vault: leeward_model::VaultId,
) -> Result<(), StoreError> {
    if target.delete {
        store.destroy(item).await?;
        host.board.target(item, |seen| {
            if let Some(seen) = seen {
                seen.deleted = true;
            }
        });
        return Ok(());
    }
    let has_part = store.hash_key(item).await?.is_some();
    if !has_part && target.other_store.is_some() {
        // It is made with the other store's hash key, by the first session or seed.
        return Ok(());
    }
    store.ensure(vault, item, None).await?;
    store.fence(item, target.fence).await?;
    host.replica_changed(item).await;
    Ok(())
}
