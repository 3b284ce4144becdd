//! A replica store: its identity, its owner's lock, and the items in it.
//!
//! A store belongs to one owner (a host of a site) for good, and knows nothing of vaults but the
//! ids that its items carry.

use crate::{
    ItemKeys, ItemReader, ItemStore, RecipientKind, RecipientSecret, StoreError,
    folder::{ITEMS, ItemFolder, LABEL, item_path, read_whole},
    keyring::{KeyOwner, claimed_owner, hex, unhex},
    random::Random,
    storage::{BlobStore, Put, StorageError, StoreLock},
};
use leeward_model::{ItemId, VaultId};
use leeward_wire::keys::HashKey;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

const IDENTITY: &str = "store.json";
const KEY_FILE: &str = "store.key";
const LOCK: &str = "store.lock";
const FORMAT: u32 = 1;
const SMALL_BLOB_BYTES_MAX: usize = 64 << 10;

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    /// The store's id, drawn when it was made.
    pub store: Uuid,
    /// The host that owns it.
    pub owner: Uuid,
    /// Which config server's installation the owner acts for; grows when another adopts it.
    pub generation: u64,
}

#[derive(Serialize, Deserialize)]
struct IdentityBlob {
    format: u32,
    #[serde(flatten)]
    identity: StoreIdentity,
    key_file_recipient: String,
    recovery_recipient: String,
    /// Keyed hash over the fields above; its key comes from the key file.
    mac: String,
}

impl IdentityBlob {
    fn mac(&self, key: &[u8; 32]) -> String {
        let StoreIdentity { store, owner, generation } = self.identity;
        let text = format!(
            "{} {store} {owner} {generation} {} {}",
            self.format, self.key_file_recipient, self.recovery_recipient
        );
        blake3::keyed_hash(key, text.as_bytes()).to_hex().to_string()
    }

    fn recipients(&self) -> Option<[[u8; 32]; 2]> {
        let key = |text: &str| unhex(text)?.try_into().ok();
        Some([key(&self.key_file_recipient)?, key(&self.recovery_recipient)?])
    }
}

/// With what a store is unlocked.
#[derive(Clone, Debug)]
pub enum Unlock {
    /// With the key file beside it.
    KeyFile,
    /// With a secret that was printed or kept elsewhere.
    Secret(RecipientSecret),
}

/// See the module.
pub struct Store {
    blobs: Arc<dyn BlobStore>,
    random: Arc<dyn Random>,
    identity: StoreIdentity,
    recipients: [[u8; 32]; 2],
    secret: RecipientSecret,
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
        let taken = || StoreError::Foreign { why: "there is a store in this place".into() };
        if blobs.len(IDENTITY)?.is_some() || !blobs.list(ITEMS)?.is_empty() {
            return Err(taken());
        }
        let fresh = RecipientSecret::draw(RecipientKind::KeyFile, random);
        let text = format!("{}\n", fresh.to_text());
        let key_file = match blobs.put_new(KEY_FILE, text.as_bytes())? {
            Put::Created => fresh,
            Put::Exists => {
                // It may have been put by a process that ended before its name was durable.
                blobs.sync_dir("")?;
                read_key_file(blobs)?
            }
        };
        let recovery = RecipientSecret::draw(RecipientKind::Recovery, random);
        let mut blob = IdentityBlob {
            format: FORMAT,
            identity,
            key_file_recipient: hex(&key_file.public()),
            recovery_recipient: hex(&recovery.public()),
            mac: String::new(),
        };
        blob.mac = blob.mac(&key_file.identity_key());
        let json = serde_json::to_string_pretty(&blob).expect("the identity is plain JSON");
        match blobs.put_new(IDENTITY, format!("{json}\n").as_bytes())? {
            Put::Created => Ok(recovery),
            Put::Exists => Err(taken()),
        }
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
        let foreign = |why: &str| StoreError::Foreign { why: why.to_owned() };
        let bytes = match read_whole(blobs.as_ref(), IDENTITY, SMALL_BLOB_BYTES_MAX) {
            Err(StoreError::Storage(StorageError::Absent { .. })) => {
                return Err(foreign("there is no store in this place"));
            }
            read => read?,
        };
        let blob: IdentityBlob =
            serde_json::from_slice(&bytes).map_err(|error| StoreError::damaged(IDENTITY, error))?;
        if blob.format != FORMAT {
            return Err(foreign(&format!("it has format {}, not {FORMAT}", blob.format)));
        }
        if owner.is_some_and(|owner| owner != blob.identity.owner) {
            return Err(foreign(&format!("it belongs to {}", blob.identity.owner)));
        }
        let recipients = blob
            .recipients()
            .ok_or_else(|| StoreError::damaged(IDENTITY, "a recipient is misspelt"))?;
        let secret = match unlock {
            Unlock::KeyFile => read_key_file(blobs.as_ref())?,
            Unlock::Secret(secret) => secret.clone(),
        };
        if !recipients.contains(&secret.public()) {
            return Err(StoreError::Key {
                what: "the store".into(),
                why: "the key is not one of this store's two".into(),
            });
        }
        if secret.kind() == RecipientKind::KeyFile && blob.mac(&secret.identity_key()) != blob.mac {
            return Err(StoreError::damaged(IDENTITY, "its MAC does not fit"));
        }
        Ok(Store { blobs, random, identity: blob.identity, recipients, secret, lock: None })
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
        Ok(store)
    }

    /// Whose store it is.
    pub fn identity(&self) -> StoreIdentity {
        self.identity
    }

    /// Items whose keys exist, ascending.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn items(&self) -> Result<Vec<ItemId>, StoreError> {
        let mut items = Vec::new();
        for name in self.blobs.list(ITEMS)? {
            if let Ok(item) = name.parse::<ItemId>()
                && self.blobs.len(&item_path(item, "keys"))?.is_some()
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
        let path = item_path(item, "keys");
        let owner = KeyOwner { store: self.identity.store, vault, item };
        if self.blobs.len(&path)?.is_none() {
            let keys = ItemKeys::draw(hash.clone(), self.random.as_ref());
            let bytes = keys.wrap(&owner, &self.recipients, self.random.as_ref());
            self.blobs.put_new(&path, &bytes)?;
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
        self.blobs.sync_dir(&format!("{ITEMS}/{item}"))?;
        ItemStore::load(self.folder(item)?)
    }

    /// Opens an item for reading.
    ///
    /// # Errors
    /// [`StoreError::NoItem`], [`StoreError::Key`], [`StoreError::Damaged`].
    pub fn item_read(&self, item: ItemId) -> Result<ItemReader, StoreError> {
        ItemReader::load(self.folder(item)?)
    }

    /// Deletes an item: its data key first, so that nothing can be read from then on, whatever is
    /// left. Deleting again finishes what was left.
    ///
    /// # Errors
    /// [`StoreError::Storage`]; [`StoreError::Refused`] when this store was not opened for
    /// writing, or while a pin of the item exists.
    pub fn item_delete(&self, item: ItemId) -> Result<(), StoreError> {
        self.check_writer()?;
        let folder = format!("{ITEMS}/{item}");
        let keys = item_path(item, "keys");
        if self.blobs.len(&keys)?.is_some() {
            let pins = self.blobs.list(&item_path(item, "pins"))?;
            if !pins.is_empty() {
                let why = format!("{} pins hold its points", pins.len());
                return Err(StoreError::refused("the deletion of an item", why));
            }
        }
        self.blobs.delete(&keys)?;
        self.blobs.sync_dir(&folder)?;
        self.blobs.delete(&item_path(item, LABEL))?;
        for part in ["manifest", "segments", "layers", "pins", "unpinned", "kept", "evidence"] {
            let part = item_path(item, part);
            for name in self.blobs.list(&part)? {
                self.blobs.delete(&format!("{part}/{name}"))?;
            }
            self.blobs.delete(&part)?;
        }
        self.blobs.delete(&folder)?;
        Ok(self.blobs.sync_dir(ITEMS)?)
    }

    /// Bytes that may still be written below the store, when that is known.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.blobs.free_bytes()?)
    }

    fn check_writer(&self) -> Result<(), StoreError> {
        match self.lock {
            Some(_) => Ok(()),
            None => Err(StoreError::refused("a change", "the store was opened for reading")),
        }
    }

    fn folder(&self, item: ItemId) -> Result<Arc<ItemFolder>, StoreError> {
        let path = item_path(item, "keys");
        let bytes = match read_whole(self.blobs.as_ref(), &path, SMALL_BLOB_BYTES_MAX) {
            Err(StoreError::Storage(StorageError::Absent { .. })) => {
                return Err(StoreError::NoItem { item });
            }
            read => read?,
        };
        let key = |why: &str| StoreError::Key { what: format!("item {item}"), why: why.into() };
        let owner = claimed_owner(&bytes).ok_or_else(|| key("its keys blob is not whole"))?;
        if (owner.store, owner.item) != (self.identity.store, item) {
            return Err(key("its keys blob belongs to another item or store"));
        }
        let keys = ItemKeys::unwrap_with(&bytes, &owner, &self.secret)?;
        let generation = self.identity.generation;
        let (blobs, random) = (self.blobs.clone(), self.random.clone());
        Ok(Arc::new(ItemFolder::new(blobs, random, owner, keys, generation)))
    }
}

fn read_key_file(blobs: &dyn BlobStore) -> Result<RecipientSecret, StoreError> {
    let fail = |why: &str| StoreError::Key { what: "the store".into(), why: why.into() };
    let bytes = match read_whole(blobs, KEY_FILE, SMALL_BLOB_BYTES_MAX) {
        Err(StoreError::Storage(StorageError::Absent { .. })) => {
            return Err(fail("its key file is missing"));
        }
        read => read?,
    };
    let text = String::from_utf8(bytes).map_err(|_| fail("its key file is not text"))?;
    let secret = RecipientSecret::parse(&text)?;
    match secret.kind() {
        RecipientKind::KeyFile => Ok(secret),
        RecipientKind::Recovery => Err(fail("its key file holds the recovery secret")),
    }
}
