//! What a timeline holds as committed last, for a source that asks for its hashes.

use leeward_model::{DiskNumber, ExtentHash, ExtentNumber, Lsn, Position, TimelineId};
use leeward_replica::{ItemStore, StoreError, View};
use leeward_wire::{
    audit::EXTENT_UNREADABLE,
    data::ExtentBlockHashes,
    hash::{EXTENT_ABSENT, zero_extent_hash},
};
use std::sync::Arc;

/// A view of a timeline's newest committed place. Cheap to clone.
#[derive(Clone)]
pub struct HeadView {
    view: Arc<View>,
    zero: ExtentHash,
}

impl HeadView {
    /// Opens the view, or returns `held` when nothing was committed since: opening costs by the
    /// records stored.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(
        store: &ItemStore,
        timeline: TimelineId,
        held: Option<HeadView>,
    ) -> Result<HeadView, StoreError> {
        let reader = store.reader();
        let at = Position { timeline, lsn: reader.committed(timeline).unwrap_or(Lsn(0)) };
        if let Some(held) = held.filter(|held| held.view.position() == at) {
            return Ok(held);
        }
        let zero = zero_extent_hash(&reader.keys().hash);
        Ok(HeadView { view: Arc::new(View::open(reader, at)?), zero })
    }

    /// The hashes of `count` extents, [`EXTENT_ABSENT`] for those that read as zero and
    /// [`EXTENT_UNREADABLE`] for those whose record is damaged: the source sends these.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn leaves(
        &self,
        disk: DiskNumber,
        first: ExtentNumber,
        count: u32,
    ) -> Result<Vec<ExtentHash>, StoreError> {
        self.hashes((disk, first), count, View::leaf_hash).await
    }

    /// As [`Self::leaves`], taken anew of what is stored: [`EXTENT_UNREADABLE`] for what cannot be
    /// read.
    ///
    /// # Errors
    /// Those of the store, without the damage.
    pub async fn reread(
        &self,
        disk: DiskNumber,
        first: ExtentNumber,
        count: u32,
    ) -> Result<Vec<ExtentHash>, StoreError> {
        self.hashes((disk, first), count, View::reread_hash).await
    }

    async fn hashes(
        &self,
        (disk, first): (DiskNumber, ExtentNumber),
        count: u32,
        hash: fn(&View, DiskNumber, ExtentNumber) -> Result<ExtentHash, StoreError>,
    ) -> Result<Vec<ExtentHash>, StoreError> {
        let this = self.clone();
        off_thread(move || {
            let extents = (0..count).map(|index| ExtentNumber(first.0.saturating_add(index)));
            let leaf = |extent| match hash(&this.view, disk, extent) {
                Ok(leaf) if leaf == this.zero => Ok(EXTENT_ABSENT),
                Err(StoreError::Damaged { .. }) => Ok(EXTENT_UNREADABLE),
                leaf => leaf,
            };
            extents.map(leaf).collect()
        })
        .await
    }

    /// The hashes of each extent's blocks; of an extent that cannot be read those of nothing, so
    /// that the source sends all of it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn blocks(
        &self,
        disk: DiskNumber,
        extents: Vec<ExtentNumber>,
    ) -> Result<Vec<ExtentBlockHashes>, StoreError> {
        let this = self.clone();
        off_thread(move || {
            let blocks = |extent| match this.view.block_hashes(disk, extent) {
                Err(StoreError::Damaged { .. }) => Ok([[0xff; 16]; 16]),
                blocks => blocks,
            };
            extents.into_iter().map(blocks).collect()
        })
        .await
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError::Stale { why: error.to_string() }))
}
