//! One item's part of a store: where its blobs are, its keys, and small signed notes.
//!
//! Holds no state of the item: that is in its manifests.

use crate::{
    StoreError,
    key_blobs::Keyring,
    keyring::{KeyOwner, hex, unhex},
    random::Random,
    storage::{BlobStore, Put, StorageError},
};
use leeward_model::{ItemId, LayerId, SegmentId};
use leeward_wire::keys::{MacKey, mac, mac_matches};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;

/// Longest note in bytes that is read; a picture is not a note.
const NOTE_BYTES_MAX: usize = 1 << 20;

/// Folder of all items.
pub(crate) const ITEMS: &str = "items";

/// Note with the name of an item that no config server knows.
pub(crate) const LABEL: &str = "label";

/// Path of `rest` in the folder of `item`.
pub(crate) fn item_path(item: ItemId, rest: &str) -> String {
    format!("{ITEMS}/{item}/{rest}")
}

/// See the module.
pub(crate) struct ItemFolder {
    pub(crate) blobs: Arc<dyn BlobStore>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) owner: KeyOwner,
    pub(crate) keys: Keyring,
    pub(crate) generation: u64,
    pub(crate) manifest_key: MacKey,
    pub(crate) layer_key: MacKey,
}

impl ItemFolder {
    pub(crate) fn new(
        blobs: Arc<dyn BlobStore>,
        random: Arc<dyn Random>,
        keys: Keyring,
        generation: u64,
    ) -> ItemFolder {
        let owner = keys.owner();
        let (manifest_key, layer_key) = (keys.manifest_key.clone(), keys.layer_key.clone());
        ItemFolder { blobs, random, owner, keys, generation, manifest_key, layer_key }
    }

    /// Path of `rest` in this item's folder.
    pub(crate) fn path(&self, rest: &str) -> String {
        item_path(self.owner.item, rest)
    }

    pub(crate) fn segment_path(&self, segment: SegmentId) -> String {
        self.path(&format!("segments/{segment}"))
    }

    pub(crate) fn layer_path(&self, layer: LayerId) -> String {
        self.path(&format!("layers/{layer}"))
    }

    /// Reads a whole blob of at most `limit` bytes.
    pub(crate) fn read_whole(&self, path: &str, limit: usize) -> Result<Vec<u8>, StoreError> {
        read_whole(self.blobs.as_ref(), path, limit)
    }

    /// The MAC of a note: over its path, so that one note cannot stand in for another.
    fn signed(path: &str, json: &str) -> Vec<u8> {
        [b"leeward note\0", path.as_bytes(), b"\0", json.as_bytes()].concat()
    }

    /// Puts `value` as a note, if there is none at `rest`.
    pub(crate) fn put_note<T: Serialize>(&self, rest: &str, value: &T) -> Result<Put, StoreError> {
        let path = self.path(rest);
        let json = serde_json::to_string(value).expect("notes have string keys only");
        let tag = hex(&mac(&self.manifest_key, &Self::signed(&path, &json)));
        Ok(self.blobs.put_new(&path, format!("{tag}\n{json}").as_bytes())?)
    }

    /// Reads a note; `None` when it is not there.
    pub(crate) fn note<T: DeserializeOwned>(&self, rest: &str) -> Result<Option<T>, StoreError> {
        let path = self.path(rest);
        let bytes = match self.read_whole(&path, NOTE_BYTES_MAX) {
            Err(StoreError::Storage(StorageError::Absent { .. })) => return Ok(None),
            read => read?,
        };
        let value = || {
            let (tag, json) = std::str::from_utf8(&bytes).ok()?.split_once('\n')?;
            let tag: [u8; 32] = unhex(tag)?.try_into().ok()?;
            // Only what `hex` writes: a note has one form.
            let plain = hex(&tag).as_bytes() == &bytes[..64];
            let fits = mac_matches(&self.manifest_key, &Self::signed(&path, json), &tag);
            if plain && fits { serde_json::from_str(json).ok() } else { None }
        };
        value().map(Some).ok_or_else(|| StoreError::damaged(&path, "its MAC does not fit"))
    }

    /// All notes directly in `folder`, with their names, ascending.
    pub(crate) fn notes<T: DeserializeOwned>(
        &self,
        folder: &str,
        suffix: &str,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let mut notes = Vec::new();
        for name in self.blobs.list(&self.path(folder))? {
            if name.ends_with(suffix)
                && let Some(note) = self.note(&format!("{folder}/{name}"))?
            {
                notes.push((name, note));
            }
        }
        Ok(notes)
    }

    /// Deletes a blob of this item, durably.
    pub(crate) fn delete(&self, rest: &str) -> Result<(), StoreError> {
        let path = self.path(rest);
        self.blobs.delete(&path)?;
        Ok(self.blobs.sync_dir(crate::storage::split(&path).0)?)
    }
}

/// Reads a whole blob of at most `limit` bytes.
pub(crate) fn read_whole(
    blobs: &dyn BlobStore,
    path: &str,
    limit: usize,
) -> Result<Vec<u8>, StoreError> {
    let bytes = blobs.read_whole(path, limit + 1)?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    Err(StoreError::damaged(path, "it is longer than any of its kind"))
}
