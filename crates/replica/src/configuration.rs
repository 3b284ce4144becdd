//! What a config server knows beside the points, sealed for the store's recipients: enough to
//! start another one with nothing but this store and a key. Numbered, put once, a few are kept.
//!
//! What is in it is the config server's business; here are only bytes, and which of them count.
//! Byte by byte: `docs/formats/store.md`.

use crate::{
    Store, StoreError,
    folder::read_whole,
    identity::Identity,
    keyring::{RECIPIENTS_MAX, RecipientSecret, unwrap_bytes, wrap_bytes},
    random::{Random, draw},
    storage::{BlobStore, Put, StorageError},
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

const FOLDER: &str = "config";
const MAGIC: [u8; 4] = *b"LWC1";
const VERSION: u16 = 1;
/// Magic, version, number of recipients, the store.
const HEADER_BYTES: usize = 24;
/// A recipient, a one-time key, the wrapped content key with its tag.
const ENTRY_BYTES: usize = 32 + 32 + 32 + 16;
/// Largest snapshot in bytes, before it is packed: some ten thousand items.
pub const CONFIGURATION_BYTES_MAX: usize = 64 << 20;
/// So many are kept: the newest counts, and one that does not open leaves those before it.
const KEPT: usize = 8;

/// Which snapshot: of which generation, and its number in it. Ordered by both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigurationStamp {
    /// Generation of the config server that wrote it.
    pub generation: u64,
    /// From 1, in each generation.
    pub number: u64,
}

impl ConfigurationStamp {
    fn path(self) -> String {
        format!("{FOLDER}/{:010}-{:012}", self.generation, self.number)
    }

    fn parse(name: &str) -> Option<ConfigurationStamp> {
        let (generation, number) = name.split_once('-')?;
        let found = ConfigurationStamp {
            generation: generation.parse().ok()?,
            number: number.parse().ok()?,
        };
        (found.path() == format!("{FOLDER}/{name}")).then_some(found)
    }
}

/// All snapshots, ascending.
fn list(blobs: &dyn BlobStore) -> Result<Vec<ConfigurationStamp>, StoreError> {
    let names = blobs.list(FOLDER)?;
    let mut stamps: Vec<_> =
        names.iter().filter_map(|name| ConfigurationStamp::parse(name)).collect();
    stamps.sort();
    Ok(stamps)
}

fn content_key(bytes: &[u8; 32]) -> LessSafeKey {
    let unbound = UnboundKey::new(&AES_256_GCM, bytes).expect("32 bytes are an AES-256 key");
    LessSafeKey::new(unbound)
}

/// Every content key seals one snapshot, so the nonce need not differ.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn seal(
    path: &str,
    plain: &[u8],
    identity: &Identity,
    random: &dyn Random,
) -> Result<Vec<u8>, StoreError> {
    let recipients = identity.recipients();
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(recipients.len() as u16).to_le_bytes());
    out.extend_from_slice(identity.identity.store.as_bytes());
    let header = out.clone();
    let mut key: [u8; 32] = draw(random);
    for recipient in &recipients {
        out.extend(wrap_bytes(&header, recipient, &key, random));
    }
    let mut sealed = zstd::bulk::compress(plain, 3)
        .map_err(|error| StoreError::refused("a configuration", error.to_string()))?;
    let aad = [header.as_slice(), path.as_bytes()].concat();
    content_key(&key)
        .seal_in_place_append_tag(zero_nonce(), Aad::from(aad), &mut sealed)
        .expect("a snapshot of bounded length can be sealed");
    key.fill(0);
    std::hint::black_box(&key);
    out.extend(sealed);
    Ok(out)
}

/// Opens a snapshot; never more than [`CONFIGURATION_BYTES_MAX`] comes out.
fn open(path: &str, bytes: &[u8], secret: &RecipientSecret) -> Result<Vec<u8>, StoreError> {
    let damaged = |why: &str| StoreError::damaged(path, why);
    let key_fail = |why: &str| StoreError::Key { what: path.to_owned(), why: why.to_owned() };
    let (header, rest) =
        bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(|| damaged("it is cut short"))?;
    let version = u16::from_le_bytes([header[4], header[5]]);
    let count = usize::from(u16::from_le_bytes([header[6], header[7]]));
    if header[..4] != MAGIC || version != VERSION {
        return Err(damaged("it has a form that this program does not read"));
    }
    if !(1..=RECIPIENTS_MAX).contains(&count) || rest.len() < count * ENTRY_BYTES {
        return Err(damaged("it is cut short"));
    }
    let (entries, sealed) = rest.split_at(count * ENTRY_BYTES);
    let public = secret.public();
    let entry = entries.chunks_exact(ENTRY_BYTES).find(|entry| entry[..32] == public);
    let entry = entry.ok_or_else(|| key_fail("it is not locked for this key"))?;
    let key = unwrap_bytes(header, entry, secret);
    let key = key.ok_or_else(|| key_fail("its wrapped key is damaged"))?;
    let aad = [header.as_slice(), path.as_bytes()].concat();
    let mut sealed = sealed.to_vec();
    let packed = content_key(&key)
        .open_in_place(zero_nonce(), Aad::from(aad), &mut sealed)
        .map_err(|_| damaged("its bytes are not those that were written"))?;
    zstd::bulk::decompress(packed, CONFIGURATION_BYTES_MAX)
        .map_err(|_| damaged("it is larger than any, or cannot be unpacked"))
}

impl Store {
    /// Keeps a config server's snapshot and lets go of all but the newest few; returns its stamp.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when this store was not opened for writing, or for one that is too
    /// large; [`StoreError::Storage`].
    pub fn configuration_put(
        &self,
        generation: u64,
        plain: &[u8],
    ) -> Result<ConfigurationStamp, StoreError> {
        self.check_writer()?;
        if plain.len() > CONFIGURATION_BYTES_MAX {
            return Err(StoreError::refused("a configuration", "it is larger than 64 MiB"));
        }
        let stamp = self.configuration_put_for(&self.identity, Some(generation), plain)?;
        self.configuration_prune()?;
        Ok(stamp)
    }

    /// Seals for the recipients of `identity` and puts behind all others of its generation, or of
    /// the newest one.
    fn configuration_put_for(
        &self,
        identity: &Identity,
        generation: Option<u64>,
        plain: &[u8],
    ) -> Result<ConfigurationStamp, StoreError> {
        loop {
            let listed = list(self.blobs.as_ref())?;
            let newest = listed.last().map_or(1, |stamp| stamp.generation);
            let generation = generation.unwrap_or(newest);
            let mine = listed.iter().filter(|stamp| stamp.generation == generation);
            let number = mine.map(|stamp| stamp.number).max().unwrap_or(0) + 1;
            let stamp = ConfigurationStamp { generation, number };
            let bytes = seal(&stamp.path(), plain, identity, self.random.as_ref())?;
            match self.blobs.put_new(&stamp.path(), &bytes)? {
                Put::Created => return Ok(stamp),
                // Another process of the same generation: one of us counts on.
                Put::Exists => {}
            }
        }
    }

    /// Deletes all but the newest few. What refuses to go now goes another time.
    fn configuration_prune(&self) -> Result<(), StoreError> {
        let blobs = self.blobs.as_ref();
        let listed = list(blobs)?;
        let gone = listed.len().saturating_sub(KEPT);
        for stamp in &listed[..gone] {
            if let Err(error) = blobs.delete(&stamp.path()) {
                tracing::debug!(%error, "an old configuration stays");
            }
        }
        if gone > 0 { Ok(blobs.sync_dir(FOLDER)?) } else { Ok(()) }
    }

    /// The newest snapshot that opens with what this store was opened with. None before the first.
    ///
    /// # Errors
    /// Those of the newest one, when none opens.
    pub fn configuration(&self) -> Result<Option<(ConfigurationStamp, Vec<u8>)>, StoreError> {
        let limit = CONFIGURATION_BYTES_MAX + (1 << 20);
        let mut first = None;
        for stamp in list(self.blobs.as_ref())?.into_iter().rev() {
            let path = stamp.path();
            let read = read_whole(self.blobs.as_ref(), &path, limit);
            match read.and_then(|bytes| open(&path, &bytes, &self.secret)) {
                Ok(plain) => return Ok(Some((stamp, plain))),
                // Its writer deletes old ones beside us.
                Err(StoreError::Storage(StorageError::Absent { .. })) => {}
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(None), Err)
    }

    /// Seals the newest snapshot anew for recipients that are about to count.
    ///
    /// # Errors
    /// Those of [`Self::configuration`] and of the store.
    pub(crate) fn configuration_for(&self, next: &Identity) -> Result<(), StoreError> {
        match self.configuration()? {
            Some((_, plain)) => self.configuration_put_for(next, None, &plain).map(drop),
            None => Ok(()),
        }
    }

    /// Deletes the snapshots that are sealed for recipients which do not count any more: all but
    /// the newest, which was sealed anew.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub(crate) fn configuration_forget(&self) -> Result<(), StoreError> {
        let blobs = self.blobs.as_ref();
        let mut listed = list(blobs)?;
        listed.pop();
        for stamp in &listed {
            blobs.delete(&stamp.path())?;
        }
        if listed.is_empty() { Ok(()) } else { Ok(blobs.sync_dir(FOLDER)?) }
    }
}
