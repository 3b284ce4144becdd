//! Keys and what is derived from them. Does not keep, wrap or draw keys: see the store's key file.

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    hkdf::{HKDF_SHA256, Salt},
};
use leeward_model::SegmentId;
use std::fmt;

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;

// HKDF labels. Each stands for one use; a label is never given a second meaning.
const SEGMENT_AEAD: &[u8] = b"leeward v1 segment aead key";
const FOOTER_MAC: &[u8] = b"leeward v1 segment footer mac key";
const MANIFEST_MAC: &[u8] = b"leeward v1 manifest mac key";
const HINT_MAC: &[u8] = b"leeward v1 hint mac key";
const LAYER_MAC: &[u8] = b"leeward v1 layer mac key";
// BLAKE3 context of the hash of an extent and of its blocks, which are branches of one tree.
const EXTENT_HASH: &str = "leeward 2026-11 v1 extent hash key";

/// 32 secret bytes. Overwritten on drop as far as safe code can: moved copies are out of reach.
#[derive(Clone)]
struct Secret([u8; KEY_BYTES]);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // The compiler must take the zeros for used, so it cannot leave the fill out.
        std::hint::black_box(&self.0);
    }
}

impl PartialEq for Secret {
    /// Takes the same time whatever differs.
    fn eq(&self, other: &Secret) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for Secret {}

/// The data key of one item in one store: everything sealed or authenticated there hangs on it.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey(Secret);

impl DataKey {
    /// Wraps 32 bytes that the caller drew from the system's generator, or unwrapped.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> DataKey {
        DataKey(Secret(bytes))
    }
    /// The key's bytes, for wrapping and for the session that hands it to the sealer.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0.0
    }
    fn derive(&self, label: &[u8], context: &[u8]) -> Secret {
        let mut out = Secret([0; KEY_BYTES]);
        Salt::new(HKDF_SHA256, b"leeward")
            .extract(self.expose())
            .expand(&[label, context], HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut out.0))
            .expect("HKDF-SHA-256 yields 32 bytes");
        out
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(hidden)")
    }
}

/// The hash key of one item: the same in every store of the item, never rotated, so that hashes
/// stay comparable over sites.
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey {
    root: Secret,
    extent: Secret,
}

impl HashKey {
    /// Wraps 32 bytes that the caller drew from the system's generator, or unwrapped.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> HashKey {
        let extent = Secret(blake3::derive_key(EXTENT_HASH, &bytes));
        HashKey { root: Secret(bytes), extent }
    }
    /// The key's bytes, for wrapping and for the session that hands it to the sealer.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.root.0
    }
    pub(crate) fn extent_key(&self) -> &[u8; KEY_BYTES] {
        &self.extent.0
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(hidden)")
    }
}

/// What one segment's records are sealed with.
#[derive(Clone)]
pub struct SegmentKeys {
    aead: Secret,
}

impl SegmentKeys {
    /// The keys of `segment`. Two segments never share one, as their ids are random.
    pub fn derive(key: &DataKey, segment: SegmentId) -> SegmentKeys {
        SegmentKeys { aead: key.derive(SEGMENT_AEAD, &segment.to_bytes()) }
    }
    pub(crate) fn aead(&self) -> &[u8; KEY_BYTES] {
        &self.aead.0
    }
}

impl fmt::Debug for SegmentKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SegmentKeys(hidden)")
    }
}

/// A key for [`mac`], of one use.
#[derive(Clone)]
pub struct MacKey(Secret);

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(hidden)")
    }
}

/// The key that authenticates segment footers.
pub fn footer_mac_key(key: &DataKey) -> MacKey {
    MacKey(key.derive(FOOTER_MAC, &[]))
}

/// The key that authenticates manifests.
pub fn manifest_mac_key(key: &DataKey) -> MacKey {
    MacKey(key.derive(MANIFEST_MAC, &[]))
}

/// The key that authenticates `manifest/hint` and other hints.
pub fn hint_mac_key(key: &DataKey) -> MacKey {
    MacKey(key.derive(HINT_MAC, &[]))
}

/// The key that authenticates the layers of the index.
pub fn layer_mac_key(key: &DataKey) -> MacKey {
    MacKey(key.derive(LAYER_MAC, &[]))
}

/// Keyed BLAKE3 of `bytes`.
pub fn mac(key: &MacKey, bytes: &[u8]) -> [u8; 32] {
    mac_parts(key, &[bytes])
}

/// Whether `found` is the MAC of `bytes`; takes the same time wherever they differ.
pub fn mac_matches(key: &MacKey, bytes: &[u8], found: &[u8; 32]) -> bool {
    tags_equal(&mac(key, bytes), found)
}

/// The MAC of `parts`, one after another. The caller sees to it that the cuts are unambiguous.
pub fn mac_parts(key: &MacKey, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&key.0.0);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Whether `found` is the MAC of `parts`; takes the same time wherever they differ.
pub fn mac_parts_match(key: &MacKey, parts: &[&[u8]], found: &[u8; 32]) -> bool {
    tags_equal(&mac_parts(key, parts), found)
}

/// Compares two MACs in constant time.
pub(crate) fn tags_equal(left: &[u8; 32], right: &[u8; 32]) -> bool {
    verify_slices_are_equal(left, right).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_derived_key_is_another_one() {
        let key = DataKey::from_bytes([7; 32]);
        let hash = HashKey::from_bytes([7; 32]);
        let first = SegmentKeys::derive(&key, SegmentId::from_u128(1));
        let second = SegmentKeys::derive(&key, SegmentId::from_u128(2));
        let all = [
            *key.expose(),
            *first.aead(),
            *second.aead(),
            footer_mac_key(&key).0.0,
            manifest_mac_key(&key).0.0,
            hint_mac_key(&key).0.0,
            layer_mac_key(&key).0.0,
            *hash.extent_key(),
        ];

        let distinct: std::collections::HashSet<_> = all.iter().collect();

        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn a_segment_key_depends_on_the_data_key() {
        let segment = SegmentId::from_u128(1);
        let one = SegmentKeys::derive(&DataKey::from_bytes([1; 32]), segment);
        let two = SegmentKeys::derive(&DataKey::from_bytes([2; 32]), segment);

        assert_ne!(one.aead(), two.aead());
    }

    #[test]
    fn no_key_shows_itself_in_a_log() {
        let key = DataKey::from_bytes([0xab; 32]);
        let hash = HashKey::from_bytes([0xab; 32]);
        let segment = SegmentKeys::derive(&key, SegmentId::from_u128(1));
        let mac = footer_mac_key(&key);

        let shown = format!("{key:?} {hash:?} {segment:?} {mac:?}");

        let all_hidden =
            "DataKey(hidden) HashKey(hidden) SegmentKeys(hidden) MacKey(hidden)".to_owned();
        assert_eq!(shown, all_hidden);
    }

    #[test]
    fn a_mac_matches_its_own_bytes_and_key_only() {
        let key = footer_mac_key(&DataKey::from_bytes([1; 32]));
        let other = manifest_mac_key(&DataKey::from_bytes([1; 32]));
        let tag = mac(&key, b"text");

        assert!(mac_matches(&key, b"text", &tag));
        assert!(!mac_matches(&key, b"texT", &tag));
        assert!(!mac_matches(&other, b"text", &tag));
        for bit in 0..256 {
            let mut wrong = tag;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!mac_matches(&key, b"text", &wrong), "bit {bit}");
        }
    }
}
