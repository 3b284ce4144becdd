//! A replica store: its identity, its owner's lock, and the items in it.
//!
//! A store belongs to one owner (a host of a site) for good, and knows nothing of vaults but the
//! ids that its items carry.

use crate::{
    ItemKeys, ItemReader, ItemStore, RecipientKind, RecipientSecret, StoreError, StoreIdentity,
    folder::{ITEMS, ItemFolder, LABEL, item_path},
    identity::{self, IDENTITY, Identity, KEY_FILE},
    key_blobs::{self, Keyring},
    keyring::{KeyOwner, KeyStamp},
    random::Random,
    storage::{BlobStore, Put, StorageError, StoreLock},
};
use leeward_model::{ItemId, VaultId};
use leeward_wire::keys::HashKey;
use std::{io, sync::Arc};
use uuid::Uuid;

pub(crate) const LOCK: &str = "store.lock";
/// Held by whoever puts keys, beside the owner's lock or without it.
pub(crate) const KEYS_LOCK: &str = "keys.lock";
/// So often the identity is read again when it was replaced while a store was being opened.
const OPENS_MAX: usize = 4;

/// Folders of an item, beside its keys.
const PARTS: [&str; 9] = [
    "manifest",
    "segments",
    "layers",
    "pins",
    "unpinned",
    "served",
    "serve-ended",
    "kept",
    "evidence",
];

/// With what a store is unlocked.
#[derive(Clone, Debug)]
pub enum Unlock {
    /// With the key file beside it.
    KeyFile,
    /// With a secret that was printed or kept elsewhere.
    Secret(RecipientSecret),
}

/// What the destruction of an item deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Blobs of wrapped keys, deleted durably before anything else.
    pub keys: u64,
    /// Other blobs: segments, manifests, notes.
    pub blobs: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// See the module.
pub struct Store {
    pub(crate) blobs: Arc<dyn BlobStore>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) identity: Identity,
    pub(crate) secret: RecipientSecret,
    lock: Option<StoreLock>,
}

impl Store {
    /// Makes a store in an empty place and returns the secret of its recovery recipient, which is
    /// kept nowhere: it has to be shown now.
    ///
    /// A store that was half made before is finished, with a new recovery secret.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when there is a store already, whoever owns it.
    pub fn init(
        blobs: &dyn BlobStore,
        identity: StoreIdentity,
        random: &dyn Random,
    ) -> Result<RecipientSecret, StoreError> {
        check_no_store(blobs)?;
        let fresh = RecipientSecret::draw(RecipientKind::KeyFile, random);
        let text = format!("{}\n", fresh.to_text());
        let key_file = match blobs.put_new(KEY_FILE, text.as_bytes())? {
            Put::Created => fresh,
            Put::Exists => {
                // It may have been put by a process that ended before its name was durable.
                blobs.sync_dir("")?;
                identity::read_key_file(blobs, KEY_FILE)?
            }
        };
        put_identity(blobs, identity, &key_file, random)
    }

    /// As [`Self::init`], for a place that others can read: the secret of the key file recipient is
    /// not put there but given to `keep`, as text, before anything is put.
    ///
    /// # Errors
    /// As [`Self::init`]; [`StoreError::Storage`] when `keep` fails, and nothing was put.
    pub fn init_apart(
        blobs: &dyn BlobStore,
        identity: StoreIdentity,
        random: &dyn Random,
        keep: &dyn Fn(&str) -> io::Result<()>,
    ) -> Result<RecipientSecret, StoreError> {
        check_no_store(blobs)?;
        let key_file = RecipientSecret::draw(RecipientKind::KeyFile, random);
        keep(&key_file.to_text()).map_err(|source| StorageError::Io {
            action: "keep the key file of",
            name: identity.store.to_string(),
            source,
        })?;
        put_identity(blobs, identity, &key_file, random)
    }

    /// What a store says of itself, without any proof: enough to look for its key.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when there is none; [`StoreError::Damaged`].
    pub fn claimed_identity(blobs: &dyn BlobStore) -> Result<StoreIdentity, StoreError> {
        Ok(identity::newest(blobs)?.identity)
    }

    /// Whether there is a store.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn exists(blobs: &dyn BlobStore) -> Result<bool, StoreError> {
        Ok(blobs.len(IDENTITY)?.is_some())
    }

    /// Opens a store for reading; takes no lock.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when there is none, or it is not `owner`'s; [`StoreError::Key`]
    /// when it does not unlock, before any item is touched.
    pub fn open(
        blobs: Arc<dyn BlobStore>,
        owner: Option<Uuid>,
        unlock: &Unlock,
        random: Arc<dyn Random>,
    ) -> Result<Store, StoreError> {
        let mut found = identity::newest(blobs.as_ref())?;
        for _ in 1..OPENS_MAX {
            let opened = unlocked(blobs.as_ref(), &found, owner, unlock);
            let newest = identity::newest(blobs.as_ref())?;
            // Another process changed the recipients: a failure may be for that alone.
            if opened.is_ok() || newest == found {
                break;
            }
            found = newest;
        }
        let secret = unlocked(blobs.as_ref(), &found, owner, unlock)?;
        Ok(Store { blobs, random, identity: found, secret, lock: None })
    }

    /// Opens a store for writing: takes the owner's lock.
    ///
    /// # Errors
    /// As [`Self::open`]; [`StorageError::Locked`] when another process writes it.
    pub fn open_writer(
        blobs: Arc<dyn BlobStore>,
        owner: Uuid,
        unlock: &Unlock,
        random: Arc<dyn Random>,
    ) -> Result<Store, StoreError> {
        let mut store = Store::open(blobs, Some(owner), unlock, random)?;
        store.lock = Some(store.blobs.lock(LOCK)?);
        // What an ended predecessor put may not have a durable name yet.
        store.blobs.sync_dir("")?;
        store.blobs.sync_dir(ITEMS)?;
        store.finish_rekey()?;
        Ok(store)
    }

    /// Whose store it is.
    pub fn identity(&self) -> StoreIdentity {
        self.identity.identity
    }

    /// Generation of its recipients: 1 for those that it was made with, one more with every
    /// change of the key file or of the recovery recipients.
    pub fn key_generation(&self) -> u32 {
        self.identity.key_generation
    }

    /// Fingerprints of the recipients: the key file's, then those of the recovery keys.
    pub fn recipients(&self) -> Vec<String> {
        self.identity.recipients().iter().map(RecipientSecret::fingerprint_of).collect()
    }

    /// Items whose keys exist, ascending.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn items(&self) -> Result<Vec<ItemId>, StoreError> {
        let mut items = Vec::new();
        for name in self.blobs.list(ITEMS)? {
            if let Ok(item) = name.parse::<ItemId>()
                && !key_blobs::list(self.blobs.as_ref(), item)?.is_empty()
            {
                items.push(item);
            }
        }
        Ok(items)
    }

    /// Makes room for an item; with the hash key that it has in another store, if there is one.
    /// An item that is there already stays as it is.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when this store was not opened for writing, or when the item is
    /// there under another vault or with another hash key.
    pub fn item_create(
        &self,
        vault: VaultId,
        item: ItemId,
        hash: Option<HashKey>,
    ) -> Result<ItemStore, StoreError> {
        self.check_writer()?;
        let owner = KeyOwner { store: self.identity().store, vault, item };
        if key_blobs::list(self.blobs.as_ref(), item)?.is_empty() {
            let (recipients, first) = (self.identity.recipients(), KeyStamp::FIRST);
            let keys = ItemKeys::draw(hash.clone(), self.random.as_ref());
            let bytes = keys.wrap(&owner, first, &recipients, self.random.as_ref());
            self.blobs.put_new(&key_blobs::path(item, first), &bytes)?;
        }
        let opened = self.item_open(item)?;
        let reader = opened.reader();
        let same_vault = reader.folder.owner.vault == vault;
        if !same_vault || hash.is_some_and(|hash| hash != reader.keys().hash) {
            let why = "it is there under another vault or with another hash key";
            return Err(StoreError::refused("an item", why));
        }
        Ok(opened)
    }

    /// Opens an item for writing. The caller sees to it that there is one writer of an item.
    ///
    /// # Errors
    /// [`StoreError::NoItem`], [`StoreError::Key`], [`StoreError::Damaged`];
    /// [`StoreError::Refused`] when this store was not opened for writing.
    pub fn item_open(&self, item: ItemId) -> Result<ItemStore, StoreError> {
        self.check_writer()?;
        key_blobs::sync(self.blobs.as_ref(), item)?;
        ItemStore::load(self.folder(item)?)
    }

    /// Opens an item for reading.
    ///
    /// # Errors
    /// [`StoreError::NoItem`], [`StoreError::Key`], [`StoreError::Damaged`].
    pub fn item_read(&self, item: ItemId) -> Result<ItemReader, StoreError> {
        ItemReader::load(self.folder(item)?)
    }

    /// Deletes an item: its data keys first, all of them, so that nothing can be read from then
    /// on, whatever is left. Deleting again finishes what was left.
    ///
    /// # Errors
    /// [`StoreError::Storage`]; [`StoreError::Refused`] when this store was not opened for
    /// writing, or while a pin of the item exists.
    pub fn item_delete(&self, item: ItemId) -> Result<Destroyed, StoreError> {
        let keys = key_blobs::list(self.blobs.as_ref(), item)?;
        let pins = self.blobs.list(&item_path(item, "pins"))?;
        if !keys.is_empty() && !pins.is_empty() {
            let why = format!("{} pins hold its points", pins.len());
            return Err(StoreError::refused("the deletion of an item", why));
        }
        self.item_destroy(item)
    }

    /// As [`Self::item_delete`], whatever pins there are.
    ///
    /// # Errors
    /// [`StoreError::Storage`]; [`StoreError::Refused`] when this store was not opened for writing.
    pub fn item_destroy(&self, item: ItemId) -> Result<Destroyed, StoreError> {
        self.check_writer()?;
        let _keys = self.lock_keys()?;
        let (blobs, folder) = (self.blobs.as_ref(), format!("{ITEMS}/{item}"));
        let keys = key_blobs::list(blobs, item)?;
        key_blobs::delete(blobs, item, &keys)?;
        // Also when there were none: a predecessor may have ended before its deletion was durable.
        key_blobs::sync(blobs, item)?;
        let mut destroyed = Destroyed { keys: keys.len() as u64, ..Destroyed::default() };
        key_blobs::delete_folder(blobs, item)?;
        blobs.delete(&item_path(item, LABEL))?;
        for part in PARTS {
            let part = item_path(item, part);
            for name in blobs.list(&part)? {
                let path = format!("{part}/{name}");
                destroyed.blobs += 1;
                destroyed.bytes += blobs.len(&path)?.unwrap_or(0);
                blobs.delete(&path)?;
            }
            blobs.delete(&part)?;
        }
        blobs.delete(&folder)?;
        blobs.sync_dir(ITEMS)?;
        Ok(destroyed)
    }

    /// Bytes that may still be written below the store, when that is known.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.blobs.free_bytes()?)
    }

    pub(crate) fn check_writer(&self) -> Result<(), StoreError> {
        match self.lock {
            Some(_) => Ok(()),
            None => Err(StoreError::refused("a change", "the store was opened for reading")),
        }
    }

    /// The secret that signs identities and notes: what this store was unlocked with, if that is
    /// it, as for a store that does not keep its key file itself, or else its key file.
    ///
    /// # Errors
    /// [`StoreError::Key`].
    pub(crate) fn key_file_secret(&self) -> Result<RecipientSecret, StoreError> {
        if self.secret.public() == self.identity.key_file_recipient {
            return Ok(self.secret.clone());
        }
        self.identity.read_key_file(self.blobs.as_ref())
    }

    /// What this store was opened with.
    pub fn unlocked_with(&self) -> &RecipientSecret {
        &self.secret
    }

    /// Whether its key file is beside it, and is its own.
    pub fn has_key_file(&self) -> bool {
        let found = self.identity.read_key_file(self.blobs.as_ref());
        found.is_ok_and(|secret| secret.public() == self.identity.key_file_recipient)
    }

    /// Keeps every other process from putting or deleting keys.
    pub(crate) fn lock_keys(&self) -> Result<StoreLock, StoreError> {
        Ok(self.blobs.lock(KEYS_LOCK)?)
    }

    pub(crate) fn keyring(&self, item: ItemId) -> Result<Keyring, StoreError> {
        Keyring::load(self.blobs.clone(), self.identity().store, item, self.secret.clone())
    }

    pub(crate) fn folder(&self, item: ItemId) -> Result<Arc<ItemFolder>, StoreError> {
        let keys = self.keyring(item)?;
        let generation = self.identity().generation;
        let (blobs, random) = (self.blobs.clone(), self.random.clone());
        Ok(Arc::new(ItemFolder::new(blobs, random, keys, generation)))
    }
}

fn check_no_store(blobs: &dyn BlobStore) -> Result<(), StoreError> {
    if blobs.len(IDENTITY)?.is_some() || !blobs.list(ITEMS)?.is_empty() {
        return Err(taken());
    }
    Ok(())
}

fn taken() -> StoreError {
    StoreError::Foreign { why: "there is a store in this place".into() }
}

/// Makes the store by saying whose it is; returns its recovery secret.
fn put_identity(
    blobs: &dyn BlobStore,
    identity: StoreIdentity,
    key_file: &RecipientSecret,
    random: &dyn Random,
) -> Result<RecipientSecret, StoreError> {
    let recovery = RecipientSecret::draw(RecipientKind::Recovery, random);
    match Identity::first(identity, key_file, &recovery).put(blobs)? {
        Put::Created => Ok(recovery),
        Put::Exists => Err(taken()),
    }
}

/// The secret that `unlock` stands for, if it opens `found` and the store is `owner`'s.
fn unlocked(
    blobs: &dyn BlobStore,
    found: &Identity,
    owner: Option<Uuid>,
    unlock: &Unlock,
) -> Result<RecipientSecret, StoreError> {
    if owner.is_some_and(|owner| owner != found.identity.owner) {
        let why = format!("it belongs to {}", found.identity.owner);
        return Err(StoreError::Foreign { why });
    }
    let secret = match unlock {
        Unlock::KeyFile => found.read_key_file(blobs)?,
        Unlock::Secret(secret) => secret.clone(),
    };
    found.check(&secret)?;
    Ok(secret)
}
