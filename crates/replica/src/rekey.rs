//! New keys: another data key for an item, and other recipients for a whole store.
//!
//! Neither ever changes a blob that is there. A data key is put beside the older ones, which stay.
//! A change of recipients puts every wrapped key anew, then the next identity, which is the moment
//! from which the new recipients count, then deletes what was for the old ones. Cut anywhere, the
//! store opens with the old secrets or with the new ones, and the next writer finishes the rest.

use crate::{
    ItemKeys, RecipientKind, RecipientSecret, Store, StoreError,
    identity::{self, Identity},
    key_blobs::{self, VERSIONS_MAX},
    keyring::{KeyStamp, RECIPIENTS_MAX},
    storage::{Put, StorageError, StoreLock},
};
use leeward_model::ItemId;
use std::io;

/// Which recipients of a store are to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewKeys {
    /// A new recovery key in place of all that there are.
    Recovery,
    /// One more recovery key.
    AnotherRecovery,
    /// A new key file in place of the one there is.
    KeyFile,
    /// A new recovery key and a new key file.
    Both,
}

/// A change of recipients that was prepared. The store still opens as before.
pub struct Rekey {
    next: Identity,
    recovery: Option<RecipientSecret>,
    key_file: Option<RecipientSecret>,
    _lock: StoreLock,
}

impl Rekey {
    /// The new recovery secret, if there is one. It is kept nowhere: it has to be kept durably
    /// before the change is finished.
    pub fn recovery(&self) -> Option<&RecipientSecret> {
        self.recovery.as_ref()
    }
}

/// What a change of recipients did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RekeyReport {
    /// Generation of the recipients from now on.
    pub key_generation: u32,
    /// Items whose keys were wrapped anew.
    pub items: u64,
    /// Wrapped keys that were put.
    pub keys: u64,
}

impl Store {
    /// Gives an item another data key and returns its number. New segments are sealed with it,
    /// older ones stay readable. A process that has the item open, on this host or another, takes
    /// it when its next session begins.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when another process changes keys, or the recipients have changed
    /// since this store was opened, or there are too many data keys; [`StoreError::Key`] when the
    /// keys that there are do not open.
    pub fn item_rotate(&self, item: ItemId) -> Result<u32, StoreError> {
        let refuse = |why: &str| Err(StoreError::refused("a new data key", why));
        let _lock = self.lock_keys()?;
        if identity::newest(self.blobs.as_ref())? != self.identity {
            return refuse("the store's recipients changed; open it again");
        }
        let keyring = self.keyring(item)?;
        let listed = key_blobs::list(self.blobs.as_ref(), item)?;
        let newest = listed.last().map_or(0, |stamp| stamp.version);
        if newest >= VERSIONS_MAX {
            return refuse("it has as many as an item may have");
        }
        let keys = ItemKeys::draw_version(newest + 1, &keyring.hash, self.random.as_ref());
        let stamp = KeyStamp { version: keys.version, generation: self.identity.key_generation };
        let recipients = self.identity.recipients();
        let bytes = keys.wrap(&keyring.owner(), stamp, &recipients, self.random.as_ref());
        match self.blobs.put_new(&key_blobs::path(item, stamp), &bytes)? {
            Put::Created => Ok(keys.version),
            Put::Exists => refuse("another process made one at the same time"),
        }
    }

    /// Prepares a change of recipients: draws the secrets, and puts the new key file if there is
    /// to be one. What an earlier change left unfinished is deleted. Nothing counts yet.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when this store was not opened for writing or has as many
    /// recipients as it may; [`StoreError::Key`] when the key file stays, but is missing.
    pub fn rekey_begin(&self, what: NewKeys) -> Result<Rekey, StoreError> {
        self.prepare(what, &|name, text| match self.blobs.put_new(name, text.as_bytes())? {
            Put::Created => Ok(()),
            Put::Exists => {
                let why = "another process put it at the same time";
                Err(StoreError::refused("a new key file", why))
            }
        })
    }

    /// As [`Self::rekey_begin`], for a place that others can read: the secret of a new key file is
    /// not put there but given to `keep`, as text, which returns once it is durable.
    ///
    /// # Errors
    /// As [`Self::rekey_begin`]; [`StoreError::Storage`] when `keep` fails.
    pub fn rekey_begin_apart(
        &self,
        what: NewKeys,
        keep: &dyn Fn(&str) -> io::Result<()>,
    ) -> Result<Rekey, StoreError> {
        self.prepare(what, &|_, text| {
            let name = self.identity().store.to_string();
            let action = "keep the key file of";
            keep(text).map_err(|source| StorageError::Io { action, name, source }.into())
        })
    }

    /// `keep` takes the name and the text of a new key file.
    fn prepare(
        &self,
        what: NewKeys,
        keep: &dyn Fn(&str, &str) -> Result<(), StoreError>,
    ) -> Result<Rekey, StoreError> {
        self.check_writer()?;
        let lock = self.lock_keys()?;
        self.finish_locked()?;
        let random = self.random.as_ref();
        let mut next = self.identity.clone();
        next.key_generation += 1;
        let drawn = |kind| RecipientSecret::draw(kind, random);
        let recovery = match what {
            NewKeys::Recovery | NewKeys::AnotherRecovery | NewKeys::Both => {
                Some(drawn(RecipientKind::Recovery))
            }
            NewKeys::KeyFile => None,
        };
        if let Some(recovery) = &recovery {
            if what != NewKeys::AnotherRecovery {
                next.recovery_recipients.clear();
            }
            next.recovery_recipients.push(recovery.public());
        }
        if next.recipients().len() > RECIPIENTS_MAX {
            let why = format!("a store has at most {RECIPIENTS_MAX} recipients");
            return Err(StoreError::refused("another recovery key", why));
        }
        let key_file = match what {
            NewKeys::KeyFile | NewKeys::Both => {
                let fresh = drawn(RecipientKind::KeyFile);
                next.key_file = identity::key_file_name(next.key_generation);
                next.key_file_recipient = fresh.public();
                keep(&next.key_file, &format!("{}\n", fresh.to_text()))?;
                Some(fresh)
            }
            NewKeys::Recovery | NewKeys::AnotherRecovery => None,
        };
        let signer = match &key_file {
            Some(fresh) => fresh.clone(),
            None => self.key_file_secret()?,
        };
        Ok(Rekey { next: next.signed(&signer), recovery, key_file, _lock: lock })
    }

    /// Makes the prepared recipients count. When it returns, the former ones that are not among
    /// them open nothing any more.
    ///
    /// # Errors
    /// [`StoreError::Key`] when a key of an item does not open: it would be lost, so nothing was
    /// changed. [`StoreError::Storage`]: open the store again to see which recipients count.
    pub fn rekey_finish(&mut self, rekey: Rekey) -> Result<RekeyReport, StoreError> {
        let Rekey { next, recovery, key_file, _lock } = rekey;
        let items = self.items()?;
        let mut keys = 0;
        for item in &items {
            keys += self.wrap_anew(*item, &next)?;
        }
        // Before they count: whoever has only the new keys must find a config server's knowledge.
        let sealed = self.configuration_for(&next);
        if let Err(error) = &sealed {
            tracing::warn!(%error, "the configuration was not sealed for the new keys");
        }
        if next.put(self.blobs.as_ref())? == Put::Exists {
            let why = "another process changed them at the same time".to_owned();
            return Err(StoreError::Stale { why });
        }
        self.identity = next;
        if !self.identity.recipients().contains(&self.secret.public()) {
            let open = key_file.or(recovery);
            self.secret = open.expect("whoever is left out was replaced by one of these");
        }
        self.finish_locked()?;
        if sealed.is_ok() {
            self.configuration_forget()?;
        }
        let key_generation = self.identity.key_generation;
        Ok(RekeyReport { key_generation, items: items.len() as u64, keys })
    }

    /// Wraps every data key of an item for the recipients of `next`; returns how many.
    fn wrap_anew(&self, item: ItemId, next: &Identity) -> Result<u64, StoreError> {
        let keyring = self.keyring(item)?;
        let recipients = next.recipients();
        let listed = key_blobs::list(self.blobs.as_ref(), item)?;
        let mut versions: Vec<u32> = listed.iter().map(|stamp| stamp.version).collect();
        versions.dedup();
        for version in &versions {
            let keys = keyring.keys(*version).ok_or_else(|| StoreError::Key {
                what: format!("data key {version} of item {item}"),
                why: "its blob is damaged, and it would be lost with the former keys".into(),
            })?;
            let stamp = KeyStamp { version: *version, generation: next.key_generation };
            let bytes = keys.wrap(&keyring.owner(), stamp, &recipients, self.random.as_ref());
            if self.blobs.put_new(&key_blobs::path(item, stamp), &bytes)? == Put::Exists {
                let why = "another process wrapped keys at the same time".to_owned();
                return Err(StoreError::Stale { why });
            }
        }
        Ok(versions.len() as u64)
    }

    /// Deletes what a change of recipients left: wrapped keys and key files that do not count.
    pub(crate) fn finish_rekey(&self) -> Result<(), StoreError> {
        let other = identity::other_key_files(self.blobs.as_ref(), &self.identity.key_file)?;
        if self.identity.key_generation == 1 && other.is_empty() {
            return Ok(());
        }
        let _lock = self.lock_keys()?;
        self.finish_locked()
    }

    fn finish_locked(&self) -> Result<(), StoreError> {
        let blobs = self.blobs.as_ref();
        for item in self.items()? {
            let listed = key_blobs::list(blobs, item)?;
            let gone = key_blobs::superseded(&listed, self.identity.key_generation);
            if !gone.is_empty() {
                // What stays may be there without a durable name, put by a process that ended.
                self.identity.sync(blobs)?;
                key_blobs::sync(blobs, item)?;
            }
            key_blobs::delete(blobs, item, &gone)?;
        }
        let files = identity::other_key_files(blobs, &self.identity.key_file)?;
        if !files.is_empty() {
            self.identity.sync(blobs)?;
        }
        for name in &files {
            blobs.delete(name)?;
        }
        if files.is_empty() { Ok(()) } else { Ok(blobs.sync_dir("")?) }
    }
}
