//! Whose store it is and for whom its keys are wrapped: `store.json`, and the numbered identities
//! that replace it when recipients change. The newest one counts; each is put once.
//!
//! What the recipients can open is in `keyring` and `key_blobs`; changing them is in `rekey`.

use crate::{
    RecipientKind, RecipientSecret, StoreError,
    folder::read_whole,
    keyring::{RECIPIENTS_MAX, hex, unhex},
    storage::{BlobStore, Put, StorageError},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The first identity.
pub(crate) const IDENTITY: &str = "store.json";
/// Folder of all others.
const FOLDER: &str = "identity";
/// The first key file.
pub(crate) const KEY_FILE: &str = "store.key";
const FORMAT_FIRST: u32 = 1;
const FORMAT_NUMBERED: u32 = 2;
const BYTES_MAX: usize = 64 << 10;

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

/// The form of `store.json`.
#[derive(Serialize, Deserialize)]
struct FirstBlob {
    format: u32,
    #[serde(flatten)]
    identity: StoreIdentity,
    key_file_recipient: String,
    recovery_recipient: String,
    /// Keyed hash over the fields above; its key comes from the key file.
    mac: String,
}

/// The form of all others.
#[derive(Serialize, Deserialize)]
struct NumberedBlob {
    format: u32,
    #[serde(flatten)]
    identity: StoreIdentity,
    key_generation: u32,
    key_file: String,
    key_file_recipient: String,
    recovery_recipients: Vec<String>,
    /// As in the first form.
    mac: String,
}

#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
}

/// A store's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) identity: StoreIdentity,
    /// Grows by one with every change of recipients; 1 for those that the store was made with.
    pub(crate) key_generation: u32,
    /// Name of the key file.
    pub(crate) key_file: String,
    pub(crate) key_file_recipient: [u8; 32],
    pub(crate) recovery_recipients: Vec<[u8; 32]>,
    mac: String,
}

/// Name of the key file that a change to key generation `generation` makes.
pub(crate) fn key_file_name(generation: u32) -> String {
    format!("{KEY_FILE}.{generation:010}")
}

fn name(generation: u32) -> String {
    format!("{FOLDER}/{generation:010}")
}

impl Identity {
    /// The first identity of a store.
    pub(crate) fn first(
        identity: StoreIdentity,
        key_file: &RecipientSecret,
        recovery: &RecipientSecret,
    ) -> Identity {
        Identity {
            identity,
            key_generation: 1,
            key_file: KEY_FILE.to_owned(),
            key_file_recipient: key_file.public(),
            recovery_recipients: vec![recovery.public()],
            mac: String::new(),
        }
        .signed(key_file)
    }

    /// With the MAC under `key_file`, which must be the secret of its key file.
    pub(crate) fn signed(mut self, key_file: &RecipientSecret) -> Identity {
        assert_eq!(self.key_file_recipient, key_file.public(), "the key file signs");
        self.mac = self.computed_mac(key_file);
        self
    }

    /// All recipients: the key file's first.
    pub(crate) fn recipients(&self) -> Vec<[u8; 32]> {
        [self.key_file_recipient].into_iter().chain(self.recovery_recipients.clone()).collect()
    }

    fn computed_mac(&self, key_file: &RecipientSecret) -> String {
        let StoreIdentity { store, owner, generation } = self.identity;
        let file = hex(&self.key_file_recipient);
        let recovery: Vec<_> = self.recovery_recipients.iter().map(|key| hex(key)).collect();
        let recovery = recovery.join(" ");
        let text = match self.key_generation {
            1 => format!("{FORMAT_FIRST} {store} {owner} {generation} {file} {recovery}"),
            keys => format!(
                "{FORMAT_NUMBERED} {store} {owner} {generation} {keys} {} {file} {recovery}",
                self.key_file
            ),
        };
        blake3::keyed_hash(&key_file.identity_key(), text.as_bytes()).to_hex().to_string()
    }

    /// Checks that `secret` is one of its recipients', and, if it is the key file's, its MAC.
    ///
    /// # Errors
    /// [`StoreError::Key`], [`StoreError::Damaged`].
    pub(crate) fn check(&self, secret: &RecipientSecret) -> Result<(), StoreError> {
        if !self.recipients().contains(&secret.public()) {
            return Err(StoreError::Key {
                what: "the store".into(),
                why: "the key is not one of those that it is locked for".into(),
            });
        }
        if secret.public() == self.key_file_recipient && self.computed_mac(secret) != self.mac {
            return Err(StoreError::damaged(&self.blob_name(), "its MAC does not fit"));
        }
        Ok(())
    }

    fn blob_name(&self) -> String {
        if self.key_generation == 1 { IDENTITY.to_owned() } else { name(self.key_generation) }
    }

    /// Puts it, unless there is one of its number.
    pub(crate) fn put(&self, blobs: &dyn BlobStore) -> Result<Put, StoreError> {
        let recovery: Vec<_> = self.recovery_recipients.iter().map(|key| hex(key)).collect();
        let json = if self.key_generation == 1 {
            serde_json::to_string_pretty(&FirstBlob {
                format: FORMAT_FIRST,
                identity: self.identity,
                key_file_recipient: hex(&self.key_file_recipient),
                recovery_recipient: recovery.concat(),
                mac: self.mac.clone(),
            })
        } else {
            serde_json::to_string_pretty(&NumberedBlob {
                format: FORMAT_NUMBERED,
                identity: self.identity,
                key_generation: self.key_generation,
                key_file: self.key_file.clone(),
                key_file_recipient: hex(&self.key_file_recipient),
                recovery_recipients: recovery,
                mac: self.mac.clone(),
            })
        };
        let json = json.expect("the identity is plain JSON");
        Ok(blobs.put_new(&self.blob_name(), format!("{json}\n").as_bytes())?)
    }

    /// Makes durable that it is there, and its key file.
    pub(crate) fn sync(&self, blobs: &dyn BlobStore) -> Result<(), StoreError> {
        blobs.sync_dir(FOLDER)?;
        Ok(blobs.sync_dir("")?)
    }

    /// Reads the secret of its key file.
    ///
    /// # Errors
    /// [`StoreError::Key`] when the file is missing or holds something else.
    pub(crate) fn read_key_file(
        &self,
        blobs: &dyn BlobStore,
    ) -> Result<RecipientSecret, StoreError> {
        read_key_file(blobs, &self.key_file)
    }
}

/// The identity that counts, and nothing of which is proved yet.
///
/// # Errors
/// [`StoreError::Foreign`] when there is no store, or one of another format.
pub(crate) fn newest(blobs: &dyn BlobStore) -> Result<Identity, StoreError> {
    let numbers = blobs.list(FOLDER)?;
    let numbers = numbers.iter().filter_map(|text| text.parse::<u32>().ok());
    let newest = numbers.filter(|number| *number > 1).max();
    let path = newest.map_or_else(|| IDENTITY.to_owned(), name);
    let foreign = |why: String| StoreError::Foreign { why };
    let bytes = match read_whole(blobs, &path, BYTES_MAX) {
        Err(StoreError::Storage(StorageError::Absent { .. })) => {
            return Err(foreign("there is no store in this place".into()));
        }
        read => read?,
    };
    let damaged = |error: serde_json::Error| StoreError::damaged(&path, error);
    let AnyFormat { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
    let misspelt = || StoreError::damaged(&path, "a recipient is misspelt");
    match (format, newest) {
        (FORMAT_FIRST, None) => {
            let blob: FirstBlob = serde_json::from_slice(&bytes).map_err(damaged)?;
            Ok(Identity {
                identity: blob.identity,
                key_generation: 1,
                key_file: KEY_FILE.to_owned(),
                key_file_recipient: recipient(&blob.key_file_recipient).ok_or_else(misspelt)?,
                recovery_recipients: vec![
                    recipient(&blob.recovery_recipient).ok_or_else(misspelt)?,
                ],
                mac: blob.mac,
            })
        }
        (FORMAT_NUMBERED, Some(number)) => {
            let blob: NumberedBlob = serde_json::from_slice(&bytes).map_err(damaged)?;
            numbered(blob, number).ok_or_else(misspelt)
        }
        _ => Err(foreign(format!("{path} has format {format}, which this program does not read"))),
    }
}

fn numbered(blob: NumberedBlob, number: u32) -> Option<Identity> {
    let texts = blob.recovery_recipients.iter();
    let recovery = texts.map(|text| recipient(text)).collect::<Option<Vec<_>>>()?;
    // A name that a change of keys writes: never one that leads to another blob of the store.
    let own = (1..=number).any(|made| match made {
        1 => blob.key_file == KEY_FILE,
        made => blob.key_file == key_file_name(made),
    });
    let whole = blob.key_generation == number && own && recovery.len() < RECIPIENTS_MAX;
    Some(Identity {
        identity: blob.identity,
        key_generation: number,
        key_file: blob.key_file,
        key_file_recipient: recipient(&blob.key_file_recipient)?,
        recovery_recipients: recovery,
        mac: blob.mac,
    })
    .filter(|_| whole)
}

fn recipient(text: &str) -> Option<[u8; 32]> {
    unhex(text)?.try_into().ok()
}

/// Reads a key file.
///
/// # Errors
/// [`StoreError::Key`].
pub(crate) fn read_key_file(
    blobs: &dyn BlobStore,
    name: &str,
) -> Result<RecipientSecret, StoreError> {
    let fail = |why: &str| StoreError::Key { what: "the store".into(), why: why.into() };
    let bytes = match read_whole(blobs, name, BYTES_MAX) {
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

/// Key files that the store does not use: of a change of recipients that was not finished.
pub(crate) fn other_key_files(
    blobs: &dyn BlobStore,
    current: &str,
) -> Result<Vec<String>, StoreError> {
    let mut names = blobs.list("")?;
    let numbered = format!("{KEY_FILE}.");
    names.retain(|name| (name == KEY_FILE || name.starts_with(&numbered)) && name != current);
    Ok(names)
}
