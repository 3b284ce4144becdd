//! Keyed hashes of extents and blocks. Keyed, so that the store's owner cannot test guesses about
//! the plaintext. Keeps no hash: see the source's and the store's hash files.

use crate::keys::HashKey;
use leeward_model::{BLOCK_BYTES, EXTENT_BYTES, ExtentHash};

/// Bytes of a block hash.
pub const BLOCK_HASH_BYTES: usize = 16;
/// In a list of hashes: nothing is stored for this extent, it reads as zero.
pub const EXTENT_ABSENT: ExtentHash = ExtentHash([0; 32]);

/// As many zero bytes as an extent has.
pub(crate) static ZEROS: [u8; EXTENT_BYTES as usize] = [0; EXTENT_BYTES as usize];

/// Hash of an extent: keyed BLAKE3 of its bytes, padded with zeros to 64 KiB.
///
/// # Panics
/// When `bytes` are more than an extent.
pub fn extent_hash(key: &HashKey, bytes: &[u8]) -> ExtentHash {
    let padding = ZEROS.len().checked_sub(bytes.len()).expect("an extent is at most 64 KiB");
    let mut hasher = blake3::Hasher::new_keyed(key.extent_key());
    hasher.update(bytes).update(&ZEROS[..padding]);
    ExtentHash(*hasher.finalize().as_bytes())
}

/// Hash of an extent of zeros. Costs as much as any other extent: keep it.
pub fn zero_extent_hash(key: &HashKey) -> ExtentHash {
    extent_hash(key, &[])
}

/// Hash of a block of 4096 bytes: the first half of keyed BLAKE3 under a key of its own. Tells
/// which blocks of a differing extent differ; the extent's own hash is what proves the result.
///
/// # Panics
/// When `block` is not 4096 bytes long.
pub fn block_hash(key: &HashKey, block: &[u8]) -> [u8; BLOCK_HASH_BYTES] {
    assert_eq!(block.len() as u64, BLOCK_BYTES, "a block hash is of one whole block");
    let hash = blake3::keyed_hash(key.block_key(), block);
    *hash.as_bytes().first_chunk().expect("16 of 32 bytes")
}

/// Whether all of `bytes` are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // By comparing with zeros a block at a time: memcmp is much faster than a loop over bytes.
    bytes.chunks(BLOCK_BYTES as usize).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> HashKey {
        HashKey::from_bytes([3; 32])
    }

    #[test]
    fn a_short_last_extent_hashes_like_its_padded_form() {
        let mut padded = vec![0; ZEROS.len()];
        padded[..1000].fill(9);

        assert_eq!(extent_hash(&key(), &padded[..1000]), extent_hash(&key(), &padded));
        assert_eq!(extent_hash(&key(), &padded[..1536]), extent_hash(&key(), &padded));
    }

    #[test]
    fn an_extent_of_zeros_has_the_zero_hash_and_it_is_not_the_mark_for_absent() {
        assert_eq!(extent_hash(&key(), &ZEROS), zero_extent_hash(&key()));
        assert_ne!(zero_extent_hash(&key()), EXTENT_ABSENT);
    }

    #[test]
    fn hashes_depend_on_key_and_content() {
        let other = HashKey::from_bytes([4; 32]);
        let block = [5_u8; 4096];

        assert_ne!(extent_hash(&key(), &block), extent_hash(&other, &block));
        assert_ne!(block_hash(&key(), &block), block_hash(&other, &block));
        assert_ne!(block_hash(&key(), &block), block_hash(&key(), &[6; 4096]));
        assert_ne!(block_hash(&key(), &block)[..], extent_hash(&key(), &block).0[..16]);
    }

    #[test]
    fn one_byte_anywhere_makes_bytes_not_zero() {
        for at in [0, 1, 4095, 4096, 8191, 9999] {
            let mut bytes = vec![0; 10_000];
            assert!(is_zero(&bytes));
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "at {at}");
        }
    }
}
