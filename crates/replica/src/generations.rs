//! Which config server is in charge of a store: a note for each that ever was, numbered, put once.
//!
//! The one with the highest number counts. Whoever puts the next one has adopted the store; how a
//! server that finds a higher number than its own behaves is its own business.

use crate::{
    Store, StoreError,
    folder::read_whole,
    keyring::{hex, unhex},
    storage::{BlobStore, Put},
};
use leeward_model::UnixMillis;
use serde::{Deserialize, Serialize};

const FOLDER: &str = "generation";
const NOTE_BYTES_MAX: usize = 16 << 10;

/// A config server's word that it is in charge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// From 1; the highest counts.
    pub number: u64,
    /// Which machine it runs on, for people.
    pub by: String,
    /// When it took over, by its own clock.
    pub at: UnixMillis,
    /// Fingerprint of its CA's certificate.
    pub authority: String,
    /// Where other sites reach it.
    pub address: String,
    /// Drawn for this note: two servers never put the same one.
    pub nonce: uuid::Uuid,
}

/// The newest generation as the store says it, without any proof: enough to step back.
///
/// # Errors
/// [`StoreError::Damaged`] when the newest note cannot be read; [`StoreError::Storage`].
pub(crate) fn newest(blobs: &dyn BlobStore) -> Result<Option<Generation>, StoreError> {
    let names = blobs.list(FOLDER)?;
    let Some(name) = names.iter().filter(|name| number_of(name).is_some()).max() else {
        return Ok(None);
    };
    let path = format!("{FOLDER}/{name}");
    let bytes = read_whole(blobs, &path, NOTE_BYTES_MAX)?;
    let note = std::str::from_utf8(&bytes).ok().and_then(|text| text.split_once('\n'));
    let note = note.and_then(|(_, json)| serde_json::from_str::<Generation>(json).ok());
    note.filter(|note| number_of(name) == Some(note.number))
        .map(Some)
        .ok_or_else(|| StoreError::damaged(&path, "it is no note of a generation"))
}

fn number_of(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number| name == file_name(*number))
}

fn file_name(number: u64) -> String {
    format!("{number:010}")
}

fn tag(key: &[u8; 32], path: &str, json: &str) -> blake3::Hash {
    let text = [b"leeward generation\0", path.as_bytes(), b"\0", json.as_bytes()].concat();
    blake3::keyed_hash(key, &text)
}

impl Store {
    /// The newest generation as a store says it, without a key.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn claimed_generation(blobs: &dyn BlobStore) -> Result<Option<Generation>, StoreError> {
        newest(blobs)
    }

    /// The newest generation. Its MAC is not asked for: who steps back needs no proof, and a new
    /// key file does not unsay who was in charge.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn generation(&self) -> Result<Option<Generation>, StoreError> {
        newest(self.blobs.as_ref())
    }

    /// Whether the present key file signed the note of generation `number`.
    ///
    /// # Errors
    /// [`StoreError::Key`], [`StoreError::Storage`].
    pub fn generation_is_signed(&self, number: u64) -> Result<bool, StoreError> {
        let path = format!("{FOLDER}/{}", file_name(number));
        let bytes = read_whole(self.blobs.as_ref(), &path, NOTE_BYTES_MAX)?;
        let key = self.key_file_secret()?.identity_key();
        let signed = || {
            let (found, json) = std::str::from_utf8(&bytes).ok()?.split_once('\n')?;
            let found: [u8; 32] = unhex(found)?.try_into().ok()?;
            Some(blake3::Hash::from_bytes(found) == tag(&key, &path, json))
        };
        Ok(signed().unwrap_or(false))
    }

    /// Puts a generation, unless there is one of its number.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when this store was not opened for writing; [`StoreError::Storage`].
    pub fn generation_put(&self, generation: &Generation) -> Result<Put, StoreError> {
        self.check_writer()?;
        let path = format!("{FOLDER}/{}", file_name(generation.number));
        let json = serde_json::to_string(generation).expect("the note is plain JSON");
        // Who has only a recovery key, of a store that does not keep its key file, signs with that.
        let signer = self.key_file_secret().unwrap_or_else(|_| self.secret.clone());
        let key = signer.identity_key();
        let tag = hex(tag(&key, &path, &json).as_bytes());
        Ok(self.blobs.put_new(&path, format!("{tag}\n{json}").as_bytes())?)
    }
}
