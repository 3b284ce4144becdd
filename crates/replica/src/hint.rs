//! The hint: which manifest was the newest, and what changed since the checkpoint before it. One
//! small file that the writer replaces with every commit, so that a reader need not list and read
//! up to 255 manifests. Byte by byte: `docs/formats/store.md`.
//!
//! It is worth nothing by itself: it counts only while the manifest that it names is there and is
//! the one it was made of. Lost, torn, old or foreign, it is left aside.

use crate::{
    StoreError,
    fields::Fields,
    folder::ItemFolder,
    manifest::{
        Change,
        codec::{HEADER_BYTES, decode_change},
    },
    storage::StorageError,
};
use leeward_wire::keys::{mac_parts, mac_parts_match};

const MAGIC: [u8; 4] = *b"LWH1";
const VERSION: u16 = 1;
const MAC_BYTES: usize = 32;
/// Says in the MAC what it is of: the key is that of the manifests.
const CONTEXT: &[u8] = b"leeward hint\0";
/// Most bytes of changes that a hint takes: some 1000 points. Where more changed since the
/// checkpoint, the hint stays as it is, and readers read the manifests after it.
pub(crate) const CHANGES_BYTES_MAX: usize = 256 << 10;
/// More bytes than any hint has.
const HINT_BYTES_MAX: usize = CHANGES_BYTES_MAX + 1024;

/// See the module.
pub(crate) struct Hint {
    /// The checkpoint that the changes begin at; 0 for none.
    pub(crate) base: u64,
    /// The newest manifest's header: names it.
    pub(crate) header: [u8; HEADER_BYTES],
    /// MAC of the newest manifest: the one after it has it as its predecessor.
    pub(crate) link: [u8; MAC_BYTES],
    /// What changed from the base to the newest.
    pub(crate) changes: Vec<Change>,
}

/// Path of an item's hint.
pub(crate) fn path(folder: &ItemFolder) -> String {
    folder.path("manifest/hint")
}

/// Replaces the hint. It is not made durable, and a failure costs time only: so it is logged here.
pub(crate) fn put(
    folder: &ItemFolder,
    base: u64,
    newest: (&[u8; HEADER_BYTES], &[u8; MAC_BYTES]),
    changes: &[u8],
) {
    let mut out = Vec::with_capacity(changes.len() + 256);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&base.to_le_bytes());
    out.extend_from_slice(newest.0);
    out.extend_from_slice(newest.1);
    out.extend_from_slice(changes);
    let tag = mac_parts(&folder.manifest_key, &[CONTEXT, &out]);
    out.extend_from_slice(&tag);
    if let Err(error) = folder.blobs.replace_hint(&path(folder), &out) {
        tracing::warn!(%error, "the hint of the newest manifest was not written");
    }
}

/// Proves the hint, if there is one; one of an earlier manifest is fine.
///
/// # Errors
/// [`StoreError::Damaged`], [`StoreError::Storage`].
pub(crate) fn audit(folder: &ItemFolder) -> Result<(), StoreError> {
    let path = path(folder);
    match folder.blobs.read_hint(&path, HINT_BYTES_MAX)? {
        Some(bytes) if decode(folder, &bytes).is_none() => {
            let why = "its MAC does not fit; it is a hint, and the next commit replaces it";
            Err(StoreError::damaged(&path, why))
        }
        Some(_) | None => Ok(()),
    }
}

/// The hint, if there is one that counts.
///
/// # Errors
/// [`StoreError::Storage`] when the store cannot be read.
pub(crate) fn read(folder: &ItemFolder) -> Result<Option<Hint>, StoreError> {
    let Some(bytes) = folder.blobs.read_hint(&path(folder), HINT_BYTES_MAX)? else {
        return Ok(None);
    };
    let Some(hint) = decode(folder, &bytes) else {
        tracing::warn!(item = %folder.owner.item, "the hint does not fit and is left aside");
        return Ok(None);
    };
    let newest = folder.path(&format!("manifest/{:016}", hint.newest()));
    match folder.blobs.read_at(&newest, 0, HEADER_BYTES) {
        Ok(header) => Ok(Some(hint).filter(|hint| header == hint.header)),
        Err(StorageError::Absent { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Hint {
    /// Number of the newest manifest.
    pub(crate) fn newest(&self) -> u64 {
        u64::from_le_bytes(self.header[8..16].try_into().expect("eight bytes"))
    }
}

fn decode(folder: &ItemFolder, bytes: &[u8]) -> Option<Hint> {
    let (signed, tag) = bytes.split_last_chunk::<MAC_BYTES>()?;
    if !mac_parts_match(&folder.manifest_key, &[CONTEXT, signed], tag) {
        return None;
    }
    let mut fields = Fields(signed);
    let known = fields.array()? == MAGIC && fields.u16()? == VERSION && fields.u16()? == 0;
    let (base, header, link) = (fields.u64()?, fields.array::<HEADER_BYTES>()?, fields.array()?);
    let mine = header[32..48] == folder.owner.item.to_bytes();
    let mut changes = Vec::new();
    while !fields.0.is_empty() {
        changes.push(decode_change(&mut fields)?);
    }
    let hint = Hint { base, header, link, changes };
    (known && mine && base <= hint.newest()).then_some(hint)
}
