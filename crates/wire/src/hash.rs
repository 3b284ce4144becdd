//! Keyed hashes of extents and blocks. Keyed, so that the store's owner cannot test guesses about
//! the plaintext. Keeps no hash: see the source's and the store's hash files.

use crate::keys::HashKey;
// Hidden in the crate's documentation: see `block_hashes`, whose test compares it with the rest.
use blake3::{IncrementCounter, platform::Platform};
use leeward_model::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, ExtentHash};

/// Bytes of a block hash.
pub const BLOCK_HASH_BYTES: usize = 16;
const BLOCKS: usize = BLOCKS_PER_EXTENT as usize;
// BLAKE3's tree: chunks of 1 KiB, chaining values of 32 bytes, flags of its compression function.
const CHUNK_BYTES: usize = 1024;
const CHUNKS: usize = BLOCK_BYTES as usize / CHUNK_BYTES;
const CV_BYTES: usize = 32;
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;
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

/// The [`block_hash`] of each of an extent's 16 blocks, at the cost of hashing the extent once:
/// BLAKE3 compresses as many inputs side by side as the processor has lanes, and one block of four
/// chunks would fill only four of them (measured: 2.7 GiB/s one by one, 6.5 GiB/s together).
///
/// # Panics
/// When `extent` is not 64 KiB long.
pub fn block_hashes(key: &HashKey, extent: &[u8]) -> [[u8; BLOCK_HASH_BYTES]; BLOCKS] {
    assert_eq!(extent.len() as u64, EXTENT_BYTES, "block hashes are of one whole extent");
    let (words, platform) = (words_of(key.block_key()), Platform::detect());
    // Chaining values: of the block's chunks, then of their pairs, then of the block.
    let mut chunks = [[0_u8; CV_BYTES * CHUNKS]; BLOCKS];
    let mut out = [0_u8; CV_BYTES * BLOCKS];
    for chunk in 0..CHUNKS {
        let input = |block: usize| {
            let at = block * BLOCK_BYTES as usize + chunk * CHUNK_BYTES;
            extent[at..].first_chunk::<CHUNK_BYTES>().expect("it lies in the extent")
        };
        let inputs: [&[u8; CHUNK_BYTES]; BLOCKS] = std::array::from_fn(input);
        let (start, end, no) = (CHUNK_START, CHUNK_END, IncrementCounter::No);
        platform.hash_many(&inputs, &words, chunk as u64, no, KEYED_HASH, start, end, &mut out);
        for (chunks, value) in chunks.iter_mut().zip(out.as_chunks::<CV_BYTES>().0) {
            chunks[chunk * CV_BYTES..][..CV_BYTES].copy_from_slice(value);
        }
    }
    let mut pairs = [[0_u8; 2 * CV_BYTES]; BLOCKS];
    for half in 0..2 {
        let input = |block: usize| &chunks[block].as_chunks::<{ 2 * CV_BYTES }>().0[half];
        let inputs: [&[u8; 2 * CV_BYTES]; BLOCKS] = std::array::from_fn(input);
        parents(&platform, &inputs, &words, PARENT | KEYED_HASH, &mut out);
        for (pair, value) in pairs.iter_mut().zip(out.as_chunks::<CV_BYTES>().0) {
            pair[half * CV_BYTES..][..CV_BYTES].copy_from_slice(value);
        }
    }
    parents(&platform, &pairs.each_ref(), &words, PARENT | KEYED_HASH | ROOT, &mut out);
    let hashes = out.as_chunks::<CV_BYTES>().0;
    std::array::from_fn(|block| *hashes[block].first_chunk().expect("16 of 32 bytes"))
}

fn parents(
    platform: &Platform,
    inputs: &[&[u8; 2 * CV_BYTES]],
    key: &[u32; 8],
    flags: u8,
    out: &mut [u8],
) {
    platform.hash_many(inputs, key, 0, IncrementCounter::No, flags, 0, 0, out);
}

fn words_of(key: &[u8; 32]) -> [u32; 8] {
    let bytes = key.as_chunks::<4>().0;
    std::array::from_fn(|word| u32::from_le_bytes(bytes[word]))
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

    proptest::proptest! {
        #[test]
        fn block_hashes_together_are_those_one_by_one(seed in 0_u64.., key in 0_u8..) {
            let key = HashKey::from_bytes([key; 32]);
            let mut extent = vec![0; ZEROS.len()];
            let mut noise = blake3::Hasher::new();
            let rest = &mut extent[BLOCK_BYTES as usize..];
            noise.update(&seed.to_le_bytes()).finalize_xof().fill(rest);

            let one_by_one: Vec<_> =
                extent.chunks(BLOCK_BYTES as usize).map(|block| block_hash(&key, block)).collect();

            proptest::prop_assert_eq!(&block_hashes(&key, &extent)[..], &one_by_one[..]);
        }
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
