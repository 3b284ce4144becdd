//! One worker for each item whose replica this host holds: keeps it as the duty says, and shows its
//! figures. Taking a source's data is `target`'s part.

use super::{
    Host,
    by_hand::ByHand,
    hash_key, notes,
    site_store::{LetGo, SiteStore},
    store_audit::StoreAudit,
    target,
};
use leeward_model::{ItemId, TimelineId};
use leeward_replica::StoreError;
use leeward_wire::message::{HostNote, ItemDuty, NoteKind, TargetDuty};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How often old points are let go.
const EXPIRE_EVERY: Duration = Duration::from_secs(30);
/// How often it is told that points were let go, at most.
const TELL_EVERY: Duration = Duration::from_secs(3600);
/// How often the store's figures are read when nothing is committed.
const FIGURES_EVERY: Duration = Duration::from_secs(5);
/// How often the hash key is offered to a store that cannot ask for it, once it was offered.
const OFFER_EVERY: Duration = Duration::from_secs(30);

impl Host {
    /// Reads the item's replica anew for the board.
    pub async fn replica_changed(&self, item: ItemId) {
        let Some(store) = &self.store else { return };
        let branch = self.target_duty(item).map(|duty| duty.branch);
        let unread = format!("the replica of item {item} cannot be read");
        match store.figures(item, branch).await {
            Ok(figures) => {
                self.board.target(item, |seen| {
                    if let Some(seen) = seen {
                        (seen.fence, seen.newest) = (figures.fence, figures.newest);
                        seen.durable = figures.durable;
                        (seen.stored_bytes, seen.points) = (figures.stored_bytes, figures.points);
                        seen.served = figures.served;
                    }
                });
                self.board.target_mended(item, &unread);
            }
            Err(error) => self.board.target_fails(item, error.problem(unread)),
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
    let (mut ended, mut removed) = (BTreeSet::new(), Removed::default());
    let (mut audit, mut hand) = (StoreAudit::new(&host, item), ByHand::default());
    loop {
        let Some(duty) = work.borrow_and_update().clone() else {
            host.board.target(item, |seen| *seen = None);
            return;
        };
        host.board.target(item, |seen| {
            seen.get_or_insert_with(target::target_blank);
        });
        let Some(target) = duty.target.clone() else { return };
        let mut outcome = keep_replica(&host, &store, item, &target, duty.vault).await;
        if outcome.is_ok() && !target.delete {
            outcome = retire(&host, &store, item, &target, &mut ended).await;
        }
        let unkept = format!("the replica of item {item} could not be kept");
        match outcome {
            Ok(()) => host.board.target_mended(item, &unkept),
            Err(error) => host.board.target_fails(item, error.problem(unkept)),
        }
        if expired.elapsed() >= EXPIRE_EVERY && !target.delete {
            expired = Instant::now();
            match store.expire(item, target.retention_seconds).await {
                Ok(gone) => removed.tell(&host, item, &duty.name, &target, gone),
                // A part that waits for its hash key has no points.
                Err(StoreError::NoItem { .. }) => {}
                Err(error) => tracing::warn!(%item, %error, "could not let old points go"),
            }
        }
        hand.tell(&host, item, &duty.name);
        if !target.delete {
            audit.part(&host, &store, &duty).await;
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
        crate::export::boot_set::forget(&host.folder, item);
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

/// Ends the timelines that the duty names, each once in the life of this process; again after a
/// failure.
async fn retire(
    host: &Host,
    store: &Arc<SiteStore>,
    item: ItemId,
    target: &TargetDuty,
    ended: &mut BTreeSet<TimelineId>,
) -> Result<(), StoreError> {
    for timeline in &target.retired {
        if ended.contains(timeline) {
            continue;
        }
        match store.retire(item, *timeline).await {
            Ok(true) => {
                tracing::info!(%item, %timeline, "a copy that was given up was deleted");
                host.replica_changed(item).await;
            }
            // A part that waits for its hash key has no timelines.
            Ok(false) | Err(StoreError::NoItem { .. }) => {}
            Err(error) => return Err(error),
        }
        ended.insert(*timeline);
    }
    Ok(())
}

/// Points that were let go and of which nobody was told yet.
#[derive(Default)]
struct Removed {
    points: usize,
    told: Option<tokio::time::Instant>,
}

impl Removed {
    /// Tells of named points at once, and of points that nobody adds to any more, as after a
    /// commit, at once and then by the hour. Of a running replication points go all the time.
    fn tell(&mut self, host: &Host, item: ItemId, name: &str, target: &TargetDuty, gone: LetGo) {
        if !target.receive {
            self.points += gone.unnamed;
        }
        let due = self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        let points = if due { std::mem::take(&mut self.points) } else { 0 };
        if points == 0 && gone.named.is_empty() {
            return;
        }
        if points > 0 {
            self.told = Some(tokio::time::Instant::now());
        }
        let mut what = gone.named;
        if points > 0 {
            what.push(format!("{points} recovery points"));
        }
        let note = HostNote {
            id: uuid::Uuid::new_v4(),
            at: host.wall.now(),
            kind: NoteKind::PointsRemoved,
            item: Some(item),
            object: name.to_owned(),
            text: format!("the time of these points of {name} was over: {}", what.join(", ")),
        };
        if let Err(error) = notes::note_add(&host.folder, &note) {
            tracing::warn!(%item, %error, "could not note that points were let go");
        }
    }
}
