//! Keyed hashes of extents and blocks. Keyed, so that the store's owner cannot test guesses about
//! the plaintext. Keeps no hash: see the source's and the store's hash files.

use crate::{data::ExtentBlockHashes, keys::HashKey};
// Hidden in the crate's documentation: a test compares what is made with it with what is public.
use blake3::{IncrementCounter, platform::Platform};
use leeward_model::{BLOCK_BYTES, EXTENT_BYTES, ExtentHash};

/// Bytes of a block hash.
pub const BLOCK_HASH_BYTES: usize = 16;
// BLAKE3's tree: chunks of 1 KiB, chaining values of 32 bytes, flags of its compression function.
const CHUNK_BYTES: usize = 1024;
const CHUNKS: usize = EXTENT_BYTES as usize / CHUNK_BYTES;
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

/// The hash of an extent and those of its 16 blocks, at the cost of the first: BLAKE3 is a tree,
/// and a block's hash is the first half of the value of its branch. It tells which blocks of a
/// differing extent differ; the extent's own hash is what proves the result. Equal blocks at two
/// places of an extent have different hashes.
///
/// # Panics
/// When `extent` is not 64 KiB long.
pub fn extent_and_block_hashes(key: &HashKey, extent: &[u8]) -> (ExtentHash, ExtentBlockHashes) {
    assert_eq!(extent.len() as u64, EXTENT_BYTES, "block hashes are of one whole extent");
    let tree = Tree { platform: Platform::detect(), key: words_of(key.extent_key()) };
    // Level by level, so that the processor has an input for each of its lanes.
    let (mut chunks, mut halves) = ([0; 64 * CV_BYTES], [0; 32 * CV_BYTES]);
    tree.chunks(extent, &mut chunks);
    tree.parents::<32>(&chunks, &mut halves, 0);
    let (mut blocks, mut eighths, mut quarters, mut two, mut root) = (
        [0; 16 * CV_BYTES],
        [0; 8 * CV_BYTES],
        [0; 4 * CV_BYTES],
        [0; 2 * CV_BYTES],
        [0; CV_BYTES],
    );
    tree.parents::<16>(&halves, &mut blocks, 0);
    tree.parents::<8>(&blocks, &mut eighths, 0);
    tree.parents::<4>(&eighths, &mut quarters, 0);
    tree.parents::<2>(&quarters, &mut two, 0);
    tree.parents::<1>(&two, &mut root, ROOT);
    let values = blocks.as_chunks::<CV_BYTES>().0;
    let first_half = |block: usize| *values[block].first_chunk().expect("16 of 32 bytes");
    (ExtentHash(root), std::array::from_fn(first_half))
}

/// What BLAKE3's tree is made with.
struct Tree {
    platform: Platform,
    key: [u32; 8],
}

impl Tree {
    /// The values of an extent's chunks.
    fn chunks(&self, extent: &[u8], out: &mut [u8]) {
        let (chunks, _) = extent.as_chunks::<CHUNK_BYTES>();
        let inputs: [&[u8; CHUNK_BYTES]; CHUNKS] = std::array::from_fn(|chunk| &chunks[chunk]);
        let (counted, start, end) = (IncrementCounter::Yes, CHUNK_START, CHUNK_END);
        self.platform.hash_many(&inputs, &self.key, 0, counted, KEYED_HASH, start, end, out);
    }

    /// The values of `N` nodes above pairs of `below`.
    fn parents<const N: usize>(&self, below: &[u8], out: &mut [u8], root: u8) {
        let (pairs, _) = below.as_chunks::<{ 2 * CV_BYTES }>();
        let inputs: [&[u8; 2 * CV_BYTES]; N] = std::array::from_fn(|pair| &pairs[pair]);
        let flags = KEYED_HASH | PARENT | root;
        self.platform.hash_many(&inputs, &self.key, 0, IncrementCounter::No, flags, 0, 0, out);
    }
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
    use blake3::hazmat::HasherExt;

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
        let extent = vec![5; ZEROS.len()];
        let (hash, blocks) = extent_and_block_hashes(&key(), &extent);
        let (other_hash, other_blocks) = extent_and_block_hashes(&other, &extent);
        let (_, six) = extent_and_block_hashes(&key(), &vec![6; ZEROS.len()]);

        assert_ne!(hash, other_hash);
        for block in 0..16 {
            assert_ne!(blocks[block], other_blocks[block]);
            assert_ne!(blocks[block], six[block]);
            assert_ne!(blocks[block], hash.0[..16]);
            assert!(blocks[..block].iter().all(|before| *before != blocks[block]));
        }
    }

    proptest::proptest! {
        /// By what is public in BLAKE3, which knows no lanes.
        #[test]
        fn both_hashes_at_once_are_those_of_blake3(seed in 0_u64.., key in 0_u8..) {
            let key = HashKey::from_bytes([key; 32]);
            let mut extent = vec![0; ZEROS.len()];
            let mut noise = blake3::Hasher::new();
            let rest = &mut extent[BLOCK_BYTES as usize..];
            noise.update(&seed.to_le_bytes()).finalize_xof().fill(rest);

            let (hash, blocks) = extent_and_block_hashes(&key, &extent);

            proptest::prop_assert_eq!(hash, extent_hash(&key, &extent));
            let branch = |(block, bytes): (u64, &[u8])| {
                let mut branch = blake3::Hasher::new_keyed(key.extent_key());
                branch.set_input_offset(block * BLOCK_BYTES).update(bytes);
                branch.finalize_non_root()[..16].to_vec()
            };
            let one_by_one: Vec<_> =
                (0..).zip(extent.chunks(BLOCK_BYTES as usize)).map(branch).collect();
            proptest::prop_assert_eq!(blocks.map(|block| block.to_vec()).to_vec(), one_by_one);
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
