//! Which recovery kits were tested: a note of the store for each test. What a kit is, is the
//! command's business; here is only that one opened this store, and with which recipients.

use crate::{Store, StoreError, folder::read_whole, keyring::hex, storage::Put};
use leeward_model::UnixMillis;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const FOLDER: &str = "kits";
const NOTE_BYTES_MAX: usize = 16 << 10;

/// A test of a recovery kit that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitTest {
    /// The kit.
    pub kit: Uuid,
    /// When it was made, by the clock of the machine that made it.
    pub created_at: UnixMillis,
    /// When it was tested, by the clock of the machine that tested it.
    pub tested_at: UnixMillis,
    /// Points that it listed.
    pub points: u64,
}

#[derive(Serialize, Deserialize)]
struct KitNote {
    key_generation: u32,
    #[serde(flatten)]
    test: KitTest,
}

impl Store {
    /// Notes that a kit with the present recipients' secret opened this store. Takes no lock.
    ///
    /// # Errors
    /// [`StoreError::Key`] when the key file, which signs the note, cannot be read;
    /// [`StoreError::Storage`].
    pub fn kit_tested(&self, test: &KitTest) -> Result<(), StoreError> {
        let signer = self.key_file_secret()?;
        let key_generation = self.key_generation();
        let time = test.tested_at.0.max(0);
        let path = format!("{FOLDER}/{key_generation:010}-{time:016}-{}", test.kit);
        let json = serde_json::to_string(&KitNote { key_generation, test: *test })
            .expect("the note is plain JSON");
        let tag = hex(&Self::kit_mac(&signer.identity_key(), &path, &json));
        match self.blobs.put_new(&path, format!("{tag}\n{json}").as_bytes())? {
            Put::Created | Put::Exists => Ok(()),
        }
    }

    /// The newest test of a kit since the recipients changed last; none if no kit was tested.
    ///
    /// # Errors
    /// [`StoreError::Key`], [`StoreError::Storage`].
    pub fn kit_test(&self) -> Result<Option<KitTest>, StoreError> {
        let prefix = format!("{:010}-", self.key_generation());
        let names = self.blobs.list(FOLDER)?;
        let mut mine = names.iter().rev().filter(|name| name.starts_with(&prefix)).peekable();
        if mine.peek().is_none() {
            return Ok(None);
        }
        let key = self.key_file_secret()?.identity_key();
        for name in mine {
            let path = format!("{FOLDER}/{name}");
            let bytes = read_whole(self.blobs.as_ref(), &path, NOTE_BYTES_MAX)?;
            // A note that is not ours proves nothing; an older one may.
            if let Some(note) = read_note(&bytes, &key, &path)
                && note.key_generation == self.key_generation()
            {
                return Ok(Some(note.test));
            }
        }
        Ok(None)
    }

    fn kit_mac(key: &[u8; 32], path: &str, json: &str) -> [u8; 32] {
        let text = [b"leeward kit test\0", path.as_bytes(), b"\0", json.as_bytes()].concat();
        *blake3::keyed_hash(key, &text).as_bytes()
    }
}

fn read_note(bytes: &[u8], key: &[u8; 32], path: &str) -> Option<KitNote> {
    let (tag, json) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
    let found = crate::keyring::unhex(tag)?.try_into().ok()?;
    // Compared in constant time.
    let fits = blake3::Hash::from_bytes(Store::kit_mac(key, path, json))
        == blake3::Hash::from_bytes(found);
    if fits { serde_json::from_str(json).ok() } else { None }
}
