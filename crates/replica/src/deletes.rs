//! Deleting blobs: some time after the manifest that dropped them, so that a reader who knows only
//! the state before it can finish. What waits survives a restart, as manifests say when they
//! dropped what.

use crate::{
    ItemStore, StoreError,
    folder::ItemFolder,
    manifest::{BlobId, ItemState},
};
use leeward_model::{LayerId, SegmentId, UnixMillis};
use std::collections::BTreeMap;

/// Dropped blobs that are still there, and when they were dropped. What no manifest ever named is
/// deleted: an ended writer left it, and it was never committed.
pub(crate) fn leftovers(
    folder: &ItemFolder,
    state: &ItemState,
) -> Result<BTreeMap<BlobId, UnixMillis>, StoreError> {
    let mut waiting = BTreeMap::new();
    let mut sort = |part: &str, id: &dyn Fn(&str) -> Option<BlobId>| -> Result<(), StoreError> {
        let path = folder.path(part);
        for name in folder.blobs.list(&path)? {
            let id = id(&name);
            if id.is_some_and(|id| is_named(state, id)) {
                continue;
            }
            match id.and_then(|id| Some((id, state.dropped.get(&id)?))) {
                Some((id, at)) => drop(waiting.insert(id, *at)),
                None => folder.blobs.delete(&format!("{path}/{name}"))?,
            }
        }
        Ok(())
    };
    sort("segments", &|name| name.parse::<SegmentId>().ok().map(BlobId::Segment))?;
    sort("layers", &|name| name.parse::<LayerId>().ok().map(BlobId::Layer))?;
    Ok(waiting)
}

fn is_named(state: &ItemState, id: BlobId) -> bool {
    match id {
        BlobId::Segment(id) => state.segments.contains_key(&id),
        BlobId::Layer(id) => state.layers.contains_key(&id),
    }
}

impl ItemStore {
    /// Deletes dropped blobs whose time is over.
    ///
    /// # Errors
    /// [`StoreError::Storage`]; what is left is deleted by the next call.
    pub(crate) fn delete_due(&mut self, now: UnixMillis) -> Result<(), StoreError> {
        let grace = i64::try_from(self.upkeep.grace_ms).unwrap_or(i64::MAX);
        let folder = self.reader.folder.clone();
        // The store's clock never goes back: neither do the stamps of its manifests.
        let now = now.max(self.reader.log.stamped_at());
        let due = |at: &UnixMillis| at.0.saturating_add(grace) <= now.0;
        let due: Vec<BlobId> =
            self.waiting.iter().filter(|(_, at)| due(at)).map(|(id, _)| *id).collect();
        for id in due {
            folder.blobs.delete(&match id {
                BlobId::Segment(id) => folder.segment_path(id),
                BlobId::Layer(id) => folder.layer_path(id),
            })?;
            self.waiting.remove(&id);
        }
        Ok(())
    }
}
