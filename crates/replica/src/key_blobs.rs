//! Where the keys of an item lie, wrapped, and the keys of all their versions once opened.
//!
//! An item has data keys 1 to n. Each is a blob that is put once and never changed; a change of
//! the store's recipients puts all of them anew and deletes the former ones. How they are wrapped
//! is in `keyring`; who the recipients are is in `identity`.

use crate::{
    ItemKeys, RecipientSecret, StoreError,
    folder::{item_path, read_whole},
    keyring::{KeyOwner, KeyStamp, claim},
    storage::{BlobStore, StorageError},
};
use leeward_model::ItemId;
use leeward_wire::{
    keys::{DataKey, HashKey, MacKey, footer_mac_key, layer_mac_key, manifest_mac_key},
    seal::Opener,
    segment::SegmentHeader,
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};
use uuid::Uuid;

/// Largest blob of keys in bytes: 16 recipients have 2,368.
const KEYS_BYTES_MAX: usize = 4096;
/// Most data keys of one item. A rotation a day reaches it after eleven years.
pub(crate) const VERSIONS_MAX: u32 = 4096;
/// So often a list of blobs is read again when one of them went away meanwhile.
const LOADS_MAX: usize = 4;
/// The blob that an item is made with.
const FIRST: &str = "keys";
/// Folder of all other blobs of keys.
const FOLDER: &str = "keyring";

/// Path of a blob of keys.
pub(crate) fn path(item: ItemId, stamp: KeyStamp) -> String {
    match stamp {
        KeyStamp::FIRST => item_path(item, FIRST),
        KeyStamp { version, generation } => {
            item_path(item, &format!("{FOLDER}/{version:010}-{generation:010}"))
        }
    }
}

/// The blobs of keys that an item has, ascending; none when there is no such item.
pub(crate) fn list(blobs: &dyn BlobStore, item: ItemId) -> Result<Vec<KeyStamp>, StoreError> {
    let mut stamps = Vec::new();
    if blobs.len(&item_path(item, FIRST))?.is_some() {
        stamps.push(KeyStamp::FIRST);
    }
    for name in blobs.list(&item_path(item, FOLDER))? {
        let numbers = name.split_once('-');
        let stamp = numbers.and_then(|(version, generation)| {
            Some(KeyStamp { version: version.parse().ok()?, generation: generation.parse().ok()? })
        });
        // A name that we do not write is nobody's key.
        stamps.extend(stamp.filter(|stamp| path(item, *stamp).ends_with(&name)));
    }
    stamps.sort_unstable();
    Ok(stamps)
}

/// Makes durable which blobs of keys an item has.
pub(crate) fn sync(blobs: &dyn BlobStore, item: ItemId) -> Result<(), StoreError> {
    blobs.sync_dir(&item_path(item, FOLDER))?;
    Ok(blobs.sync_dir(item_path(item, "").trim_end_matches('/'))?)
}

/// Deletes blobs of keys, durably.
pub(crate) fn delete(
    blobs: &dyn BlobStore,
    item: ItemId,
    stamps: &[KeyStamp],
) -> Result<(), StoreError> {
    for stamp in stamps {
        blobs.delete(&path(item, *stamp))?;
    }
    if stamps.is_empty() { Ok(()) } else { sync(blobs, item) }
}

/// Deletes the folder of the blobs, which must be empty.
pub(crate) fn delete_folder(blobs: &dyn BlobStore, item: ItemId) -> Result<(), StoreError> {
    Ok(blobs.delete(&item_path(item, FOLDER))?)
}

/// The blobs that nobody needs while the store's recipients are those of `generation`: what a
/// change of recipients replaced, and what one that was not finished put.
pub(crate) fn superseded(stamps: &[KeyStamp], generation: u32) -> Vec<KeyStamp> {
    let current = |version| stamps.contains(&KeyStamp { version, generation });
    let gone = |stamp: &&KeyStamp| {
        stamp.generation > generation || (stamp.generation < generation && current(stamp.version))
    };
    stamps.iter().filter(gone).copied().collect()
}

/// What is derived from one data key.
#[derive(Clone)]
struct Version {
    data: DataKey,
    footer: MacKey,
}

impl Version {
    fn of(keys: ItemKeys) -> Version {
        Version { footer: footer_mac_key(&keys.data), data: keys.data }
    }
}

/// The opened keys of one item. Another version that was put meanwhile is found when something
/// asks for it.
pub(crate) struct Keyring {
    blobs: Arc<dyn BlobStore>,
    owner: KeyOwner,
    secret: RecipientSecret,
    /// The item's hash key.
    pub(crate) hash: HashKey,
    /// Authenticates manifests and notes: version 1's for good, as they are one chain.
    pub(crate) manifest_key: MacKey,
    /// Of the index layers' MACs, of the first version as well.
    pub(crate) layer_key: MacKey,
    versions: RwLock<BTreeMap<u32, Version>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Keyring {
    /// Opens the keys of `item` in store `store` with `secret`.
    ///
    /// A version other than the first that does not open is left out: what was sealed with it
    /// cannot be read, everything else can.
    ///
    /// # Errors
    /// [`StoreError::NoItem`]; [`StoreError::Key`] when the first version does not open.
    pub(crate) fn load(
        blobs: Arc<dyn BlobStore>,
        store: Uuid,
        item: ItemId,
        secret: RecipientSecret,
    ) -> Result<Keyring, StoreError> {
        let (owner, mut all) = open_all(blobs.as_ref(), store, item, &secret)?;
        let first = all.remove(&1).unwrap_or_else(|| {
            let why = "the blob of its first data key is missing".to_owned();
            Err(StoreError::Key { what: format!("item {item}"), why })
        })?;
        let hash = first.hash.clone();
        let (manifest_key, layer_key) = (manifest_mac_key(&first.data), layer_mac_key(&first.data));
        let mut versions = BTreeMap::from([(1, Version::of(first))]);
        for (number, keys) in all {
            match keys {
                Ok(keys) if keys.hash == hash => drop(versions.insert(number, Version::of(keys))),
                Ok(_) => tracing::warn!(%item, number, "a data key belongs to another hash key"),
                Err(error) => tracing::warn!(%item, number, %error, "a data key does not open"),
            }
        }
        let versions = RwLock::new(versions);
        Ok(Keyring { blobs, owner, secret, hash, manifest_key, layer_key, versions })
    }

    /// Whose keys they are.
    pub(crate) fn owner(&self) -> KeyOwner {
        self.owner
    }

    /// Takes the versions that were put since.
    ///
    /// # Errors
    /// [`StoreError::Storage`]; [`StoreError::NoItem`] when the item was destroyed.
    pub(crate) fn refresh(&self) -> Result<(), StoreError> {
        let listed = list(self.blobs.as_ref(), self.owner.item)?;
        if listed.is_empty() {
            return Err(StoreError::NoItem { item: self.owner.item });
        }
        if listed.iter().all(|stamp| self.known(stamp.version).is_some()) {
            return Ok(());
        }
        let (_, all) =
            open_all(self.blobs.as_ref(), self.owner.store, self.owner.item, &self.secret)?;
        let mut versions = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        for (number, keys) in all {
            if let Ok(keys) = keys
                && keys.hash == self.hash
            {
                versions.entry(number).or_insert_with(|| Version::of(keys));
            }
        }
        Ok(())
    }

    /// Number of every version that is open, ascending.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        versions.keys().copied().collect()
    }

    /// The keys that new segments are sealed with.
    pub(crate) fn newest(&self) -> ItemKeys {
        let number = *self.numbers().last().expect("the first version is always there");
        self.keys(number).expect("a version is never taken out")
    }

    /// The keys of a version, if it is open.
    pub(crate) fn keys(&self, version: u32) -> Option<ItemKeys> {
        let known = self.known(version)?;
        Some(ItemKeys { version, data: known.data, hash: self.hash.clone() })
    }

    /// Whether a segment may begin under `version`: the newest, or the one before it, under which
    /// a session that began before the rotation still seals. Older ones are for reading only.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub(crate) fn takes(&self, version: u32) -> Result<bool, StoreError> {
        if self.known(version).is_none() {
            self.refresh()?;
        }
        Ok(self.numbers().iter().rev().take(2).any(|known| *known == version))
    }

    /// What opens the records of a segment.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when its data key is not there.
    pub(crate) fn opener(&self, path: &str, header: &SegmentHeader) -> Result<Opener, StoreError> {
        Ok(Opener::new(&self.version(path, header)?.data, header))
    }

    /// The key of the footer's MAC of a segment.
    ///
    /// # Errors
    /// As [`Self::opener`].
    pub(crate) fn footer(&self, path: &str, header: &SegmentHeader) -> Result<MacKey, StoreError> {
        Ok(self.version(path, header)?.footer)
    }

    fn version(&self, path: &str, header: &SegmentHeader) -> Result<Version, StoreError> {
        let number = header.key_version;
        if let Some(known) = self.known(number) {
            return Ok(known);
        }
        match self.refresh() {
            Ok(()) => {}
            Err(StoreError::Storage(error)) => return Err(error.into()),
            Err(error) => return Err(StoreError::damaged(path, error)),
        }
        let why = || format!("it is sealed with data key {number}, which is not there");
        self.known(number).ok_or_else(|| StoreError::damaged(path, why()))
    }

    fn known(&self, version: u32) -> Option<Version> {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        versions.get(&version).cloned()
    }
}

type Opened = (KeyOwner, BTreeMap<u32, Result<ItemKeys, StoreError>>);

/// Opens every version of an item's keys.
fn open_all(
    blobs: &dyn BlobStore,
    store: Uuid,
    item: ItemId,
    secret: &RecipientSecret,
) -> Result<Opened, StoreError> {
    let mut stamps = list(blobs, item)?;
    for _ in 1..LOADS_MAX {
        match open_listed(blobs, (store, item), &stamps, secret) {
            // Another process changes the recipients.
            Err(StoreError::Storage(StorageError::Absent { .. })) => stamps = list(blobs, item)?,
            opened => return opened,
        }
    }
    open_listed(blobs, (store, item), &stamps, secret)
}

fn open_listed(
    blobs: &dyn BlobStore,
    (store, item): (Uuid, ItemId),
    stamps: &[KeyStamp],
    secret: &RecipientSecret,
) -> Result<Opened, StoreError> {
    let mut opened: Option<KeyOwner> = None;
    let mut all = BTreeMap::new();
    // The newest recipients first: an entry is replaced only while it does not open.
    for stamp in stamps.iter().rev() {
        if matches!(all.get(&stamp.version), Some(Ok(_))) {
            continue;
        }
        let bytes = read_whole(blobs, &path(item, *stamp), KEYS_BYTES_MAX);
        let keys = match bytes {
            Err(error @ StoreError::Storage(_)) => return Err(error),
            read => read.and_then(|bytes| open_blob(&bytes, (store, item), *stamp, secret)),
        };
        match keys {
            Ok((owner, keys)) if opened.is_none_or(|known| known == owner) => {
                opened = Some(owner);
                all.insert(stamp.version, Ok(keys));
            }
            Ok(_) => {
                let why = "its keys blobs are of two vaults".to_owned();
                all.insert(
                    stamp.version,
                    Err(StoreError::Key { what: format!("item {item}"), why }),
                );
            }
            Err(error) => drop(all.entry(stamp.version).or_insert(Err(error))),
        }
    }
    let Some(owner) = opened else {
        let first = all.into_values().next();
        return Err(first.and_then(Result::err).unwrap_or(StoreError::NoItem { item }));
    };
    Ok((owner, all))
}

fn open_blob(
    bytes: &[u8],
    (store, item): (Uuid, ItemId),
    stamp: KeyStamp,
    secret: &RecipientSecret,
) -> Result<(KeyOwner, ItemKeys), StoreError> {
    let key = |why: &str| StoreError::Key { what: format!("item {item}"), why: why.into() };
    let claimed = claim(bytes).ok_or_else(|| key("its keys blob is not whole"))?;
    if (claimed.owner.store, claimed.owner.item) != (store, item) {
        return Err(key("its keys blob belongs to another item or store"));
    }
    if claimed.stamp != stamp {
        return Err(key("its keys blob has the name of another"));
    }
    Ok((claimed.owner, ItemKeys::unwrap_with(bytes, &claimed.owner, secret)?))
}
