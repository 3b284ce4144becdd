//! The keys of an item, wrapped for the store's key file and for its recovery recipients.
//!
//! Wrapping is X25519 with a one-time key, HKDF-SHA-256 and AES-256-GCM. Plain keys are held in
//! memory only. Where the blobs lie is in `key_blobs`; what the keys are used for is the business
//! of `leeward_wire::keys`.

use crate::{
    StoreError,
    fields::Fields,
    random::{Random, draw},
};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
    hkdf::{HKDF_SHA256, Salt},
};
use leeward_model::{ItemId, VaultId};
use leeward_wire::keys::{DataKey, HashKey};
use std::fmt;
use uuid::Uuid;

const MAGIC: [u8; 4] = *b"LWK1";
/// The first form: data key version 1, as it is when the item is made.
const FORMAT_FIRST: u16 = 1;
/// The second form: says which data key version it is, and of which recipients.
const FORMAT_STAMPED: u16 = 2;
const FIRST_HEADER_BYTES: usize = 56;
const STAMPED_HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 32 + 32 + 64 + 16;
/// Most recipients of an item's keys: the key file and so many recovery recipients less one.
pub(crate) const RECIPIENTS_MAX: usize = 16;
const WRAP_LABEL: &[u8] = b"leeward v1 item key wrap";
const CONFIGURATION_LABEL: &[u8] = b"leeward v1 configuration key wrap";
const STORE_MAC_CONTEXT: &str = "leeward 2026-11 v1 store identity mac key";

/// Which kind of recipient of a store a secret is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipientKind {
    /// The key file beside the store.
    KeyFile,
    /// The secret that was shown once.
    Recovery,
}

impl RecipientKind {
    fn prefix(self) -> &'static str {
        match self {
            RecipientKind::KeyFile => "leeward-store-key-1",
            RecipientKind::Recovery => "leeward-recovery-1",
        }
    }
}

/// A secret that unlocks a store: of its key file or of the recovery recipient.
#[derive(Clone)]
pub struct RecipientSecret {
    kind: RecipientKind,
    bytes: [u8; 32],
}

impl fmt::Debug for RecipientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecipientSecret({:?}, hidden)", self.kind)
    }
}

impl Drop for RecipientSecret {
    fn drop(&mut self) {
        self.bytes.fill(0);
        std::hint::black_box(&self.bytes);
    }
}

impl RecipientSecret {
    pub(crate) fn draw(kind: RecipientKind, random: &dyn Random) -> RecipientSecret {
        RecipientSecret { kind, bytes: draw(random) }
    }

    /// Which recipient it belongs to.
    pub fn kind(&self) -> RecipientKind {
        self.kind
    }

    /// The form that is kept in the key file or printed: prefix, 8 groups of 8 hexadecimal
    /// digits, and a group that finds misspellings.
    pub fn to_text(&self) -> String {
        let mut text = self.kind.prefix().to_owned();
        for group in self.bytes.chunks(4).map(hex).chain([hex(&checksum(&self.bytes))]) {
            text.push('-');
            text.push_str(&group);
        }
        text
    }

    /// Reads [`Self::to_text`]; spaces and line ends anywhere do no harm.
    ///
    /// # Errors
    /// [`StoreError::Key`] when it is misspelt.
    pub fn parse(text: &str) -> Result<RecipientSecret, StoreError> {
        let fail = |why: &str| StoreError::Key { what: "the store".into(), why: why.into() };
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let known = [RecipientKind::KeyFile, RecipientKind::Recovery];
        let found = known.iter().find_map(|kind| Some((*kind, text.strip_prefix(kind.prefix())?)));
        let (kind, groups) = found.ok_or_else(|| fail("this is no store key"))?;
        let bytes = unhex(&groups.replace('-', "")).ok_or_else(|| fail("the key is misspelt"))?;
        let (key, sum) = bytes.split_first_chunk::<32>().ok_or_else(|| fail("the key is short"))?;
        if checksum(key) != sum {
            return Err(fail("the key is misspelt: its last group does not fit"));
        }
        Ok(RecipientSecret { kind, bytes: *key })
    }

    /// What data are wrapped for.
    pub(crate) fn public(&self) -> [u8; 32] {
        let public = self.private().compute_public_key().expect("X25519 has a public half");
        public.as_ref().try_into().expect("an X25519 public key has 32 bytes")
    }

    /// Tells the recipient from others, and nothing of the secret: 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        RecipientSecret::fingerprint_of(&self.public())
    }

    pub(crate) fn fingerprint_of(recipient: &[u8; 32]) -> String {
        hex(&blake3::hash(recipient).as_bytes()[..8])
    }

    /// Key of the MAC over the store's identity.
    pub(crate) fn identity_key(&self) -> [u8; 32] {
        blake3::derive_key(STORE_MAC_CONTEXT, &self.bytes)
    }

    fn private(&self) -> PrivateKey {
        PrivateKey::from_private_key(&X25519, &self.bytes).expect("32 bytes are an X25519 key")
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

fn checksum(key: &[u8; 32]) -> [u8; 4] {
    *blake3::hash(key).as_bytes().first_chunk().expect("4 of 32 bytes")
}

/// One version of the keys of an item in one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemKeys {
    /// Number of the data key, from 1.
    pub version: u32,
    /// Seals and authenticates; this store's alone, but for what was imported.
    pub data: DataKey,
    /// Hashes extents; the same in every store of the item.
    pub hash: HashKey,
}

/// Whose keys they are; authenticated with them, so that a file cannot stand in for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyOwner {
    /// The store.
    pub store: Uuid,
    /// The vault.
    pub vault: VaultId,
    /// The item.
    pub item: ItemId,
}

/// Which data key a blob of keys holds, and for whose recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyStamp {
    /// Number of the data key.
    pub(crate) version: u32,
    /// Generation of the store's recipients; 0 in the first form, which does not say it.
    pub(crate) generation: u32,
}

impl KeyStamp {
    /// The stamp of the blob that an item is made with.
    pub(crate) const FIRST: KeyStamp = KeyStamp { version: 1, generation: 0 };
}

impl KeyOwner {
    fn header(&self, stamp: KeyStamp, recipients: usize) -> Vec<u8> {
        let first = stamp == KeyStamp::FIRST;
        let format = if first { FORMAT_FIRST } else { FORMAT_STAMPED };
        let mut header = Vec::with_capacity(STAMPED_HEADER_BYTES);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&format.to_le_bytes());
        header.extend_from_slice(&(recipients as u16).to_le_bytes());
        header.extend_from_slice(self.store.as_bytes());
        header.extend_from_slice(&self.vault.to_bytes());
        header.extend_from_slice(&self.item.to_bytes());
        if !first {
            header.extend_from_slice(&stamp.version.to_le_bytes());
            header.extend_from_slice(&stamp.generation.to_le_bytes());
        }
        header
    }
}

impl ItemKeys {
    /// Draws a first data key, and a hash key unless the item has one from another store.
    pub(crate) fn draw(hash: Option<HashKey>, random: &dyn Random) -> ItemKeys {
        ItemKeys {
            version: 1,
            data: DataKey::from_bytes(draw(random)),
            hash: hash.unwrap_or_else(|| HashKey::from_bytes(draw(random))),
        }
    }

    /// Draws data key `version` of an item whose hash key is `hash`.
    pub(crate) fn draw_version(version: u32, hash: &HashKey, random: &dyn Random) -> ItemKeys {
        ItemKeys { version, ..ItemKeys::draw(Some(hash.clone()), random) }
    }

    /// The bytes of a blob of keys: one entry for each recipient.
    ///
    /// `stamp.version` must be this version's.
    pub(crate) fn wrap(
        &self,
        owner: &KeyOwner,
        stamp: KeyStamp,
        recipients: &[[u8; 32]],
        random: &dyn Random,
    ) -> Vec<u8> {
        assert_eq!(stamp.version, self.version, "a blob is named by the version it holds");
        assert!((1..=RECIPIENTS_MAX).contains(&recipients.len()), "recipients are counted before");
        let header = owner.header(stamp, recipients.len());
        let mut out = header.clone();
        for recipient in recipients {
            let once = RecipientSecret::draw(RecipientKind::KeyFile, random);
            let ephemeral = once.public();
            let mut sealed = [self.data.expose().as_slice(), self.hash.expose()].concat();
            let key = wrap_key(WRAP_LABEL, &once, recipient, &ephemeral, recipient);
            key.expect("a fresh key agrees with any recipient of ours")
                .seal_in_place_append_tag(
                    zero_nonce(),
                    Aad::from(aad(&header, recipient)),
                    &mut sealed,
                )
                .expect("64 bytes can be sealed");
            out.extend_from_slice(recipient);
            out.extend_from_slice(&ephemeral);
            out.extend_from_slice(&sealed);
        }
        out
    }

    /// Opens a blob of keys with the secret of any of its recipients.
    ///
    /// # Errors
    /// [`StoreError::Key`] when no entry is for `secret`, or the entry does not open: the blob is
    /// damaged or belongs to another item.
    pub fn unwrap_with(
        bytes: &[u8],
        owner: &KeyOwner,
        secret: &RecipientSecret,
    ) -> Result<ItemKeys, StoreError> {
        let fail =
            |why: &str| StoreError::Key { what: format!("item {}", owner.item), why: why.into() };
        let claim = claim(bytes).ok_or_else(|| fail("its keys blob is not whole"))?;
        if claim.owner != *owner {
            return Err(fail("its keys blob belongs to another item or store"));
        }
        let header = owner.header(claim.stamp, claim.recipients);
        let public = secret.public();
        let mut entries = bytes[header.len()..].chunks_exact(ENTRY_BYTES);
        let entry = entries.find(|entry| entry[..32] == public);
        let entry = entry.ok_or_else(|| fail("it is not locked for this key"))?;
        let mut sealed = entry[64..].to_vec();
        let key = wrap_key(WRAP_LABEL, secret, &entry[32..64], &entry[32..64], &public)
            .ok_or_else(|| fail("its wrapped key is damaged"))?;
        let plain = key
            .open_in_place(zero_nonce(), Aad::from(aad(&header, &public)), &mut sealed)
            .map_err(|_| fail("its wrapped key is damaged"))?;
        let (data, hash) = plain.split_at(32);
        let array = |bytes: &[u8]| bytes.try_into().expect("the wrapped keys have 32 bytes each");
        let keys = ItemKeys {
            version: claim.stamp.version,
            data: DataKey::from_bytes(array(data)),
            hash: HashKey::from_bytes(array(hash)),
        };
        sealed.fill(0);
        Ok(keys)
    }
}

/// What the header of a blob of keys says; proven only by opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyClaim {
    pub(crate) owner: KeyOwner,
    pub(crate) stamp: KeyStamp,
    recipients: usize,
}

/// Reads the header of a blob of keys; none when it has not the form of one.
pub(crate) fn claim(bytes: &[u8]) -> Option<KeyClaim> {
    let mut fields = Fields(bytes);
    let (magic, format, count) = (fields.array::<4>()?, fields.u16()?, fields.u16()?);
    let owner = KeyOwner {
        store: Uuid::from_bytes(fields.array()?),
        vault: VaultId::from_bytes(fields.array()?),
        item: ItemId::from_bytes(fields.array()?),
    };
    let (stamp, header) = match format {
        FORMAT_FIRST => (KeyStamp::FIRST, FIRST_HEADER_BYTES),
        FORMAT_STAMPED => {
            let stamp = KeyStamp { version: fields.u32()?, generation: fields.u32()? };
            (stamp, STAMPED_HEADER_BYTES)
        }
        _ => return None,
    };
    let recipients = usize::from(count);
    let whole = bytes.len() == header + recipients * ENTRY_BYTES;
    // The second form says its stamp, and has none that stands for the first.
    let stamped = format == FORMAT_FIRST || (stamp.version > 0 && stamp.generation > 0);
    (magic == MAGIC && stamped && recipients <= RECIPIENTS_MAX && whole).then_some(KeyClaim {
        owner,
        stamp,
        recipients,
    })
}

fn aad(header: &[u8], recipient: &[u8; 32]) -> Vec<u8> {
    [header, recipient].concat()
}

/// Every wrapping key is used for one message, so the nonce need not differ.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// An entry of a blob that is sealed with `key` and is no item's: the recipient, a one-time key,
/// and `key` wrapped for the recipient, bound to `header`.
pub(crate) fn wrap_bytes(
    header: &[u8],
    recipient: &[u8; 32],
    key: &[u8; 32],
    random: &dyn Random,
) -> Vec<u8> {
    let once = RecipientSecret::draw(RecipientKind::KeyFile, random);
    let ephemeral = once.public();
    let mut sealed = key.to_vec();
    wrap_key(CONFIGURATION_LABEL, &once, recipient, &ephemeral, recipient)
        .expect("a fresh key agrees with any recipient of ours")
        .seal_in_place_append_tag(zero_nonce(), Aad::from(aad(header, recipient)), &mut sealed)
        .expect("32 bytes can be sealed");
    [recipient.as_slice(), &ephemeral, &sealed].concat()
}

/// The key in an entry of [`wrap_bytes`]; none when it does not open.
pub(crate) fn unwrap_bytes(
    header: &[u8],
    entry: &[u8],
    secret: &RecipientSecret,
) -> Option<[u8; 32]> {
    let public = secret.public();
    let (ephemeral, sealed) = (entry.get(32..64)?, entry.get(64..)?);
    let mut sealed = sealed.to_vec();
    let key = wrap_key(CONFIGURATION_LABEL, secret, ephemeral, ephemeral, &public)?;
    let plain = key.open_in_place(zero_nonce(), Aad::from(aad(header, &public)), &mut sealed);
    plain.ok()?.try_into().ok().map(|plain: &mut [u8; 32]| *plain)
}

fn wrap_key(
    label: &'static [u8],
    mine: &RecipientSecret,
    peer: &[u8],
    ephemeral: &[u8],
    recipient: &[u8; 32],
) -> Option<LessSafeKey> {
    let peer = UnparsedPublicKey::new(&X25519, peer);
    agree(&mine.private(), peer, (), |shared| {
        let salt = [ephemeral, recipient].concat();
        let secret = Salt::new(HKDF_SHA256, &salt).extract(shared);
        let mut key = [0; 32];
        secret.expand(&[label], HKDF_SHA256).and_then(|okm| okm.fill(&mut key)).map_err(|_| ())?;
        let unbound = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| ())?;
        key.fill(0);
        Ok(LessSafeKey::new(unbound))
    })
    .ok()
}
