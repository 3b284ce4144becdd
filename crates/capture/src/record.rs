//! What the source knows of one extent at the target, and which blocks therefore have to be sent.
//!
//! Pure: bytes in, a record and a mask out. Where records are kept is [`crate::hash_file`]'s part.

use bytes::Bytes;
use leeward_model::{BLOCK_BYTES, BLOCKS_PER_EXTENT, BlockMask, EXTENT_BYTES, ExtentHash};

const BLOCK: usize = BLOCK_BYTES as usize;
const EXTENT: usize = EXTENT_BYTES as usize;
const BLOCKS: usize = BLOCKS_PER_EXTENT as usize;
/// Bytes of a record in a hash file: the leaf hash and 16 block hashes.
pub const RECORD_BYTES: usize = 32 + 16 * BLOCKS;

/// The item's keyed hash functions. The key never passes through this crate.
pub trait Hasher: Send + Sync {
    /// Keyed BLAKE3 of a whole extent, 64 KiB.
    fn extent(&self, bytes: &[u8]) -> ExtentHash;
    /// [`Self::extent`], and the keyed 128-bit hash of each of the extent's blocks: of the bytes
    /// and of their place in the extent. Never all zero in practice (2^-128). Both cost no more
    /// than the first.
    fn extent_and_blocks(&self, bytes: &[u8]) -> (ExtentHash, [[u8; 16]; BLOCKS]);
}

/// One extent as the target has it.
///
/// All zero: the target reads zero there. Leaf set and every block hash zero: the blocks are not
/// known one by one, as after a rebuild from the target's leaf hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Record {
    leaf: ExtentHash,
    blocks: [[u8; 16]; BLOCKS],
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

impl Record {
    /// The target reads zero there.
    pub const ZERO: Record = Record { leaf: ExtentHash([0; 32]), blocks: [[0; 16]; BLOCKS] };

    /// The target may have one of several versions: no content is taken to be equal to it, so all
    /// blocks are sent. No hash function is known to yield this leaf.
    pub const UNKNOWN: Record = Record::from_leaf(ExtentHash([0xff; 32]));

    /// A record of which only the leaf hash is known.
    pub const fn from_leaf(leaf: ExtentHash) -> Record {
        Record { leaf, blocks: [[0; 16]; BLOCKS] }
    }

    /// The record of an extent's content, 64 KiB.
    pub fn of(extent: &[u8], hasher: &dyn Hasher) -> Record {
        if is_zero(extent) {
            return Record::ZERO;
        }
        let (leaf, blocks) = hasher.extent_and_blocks(extent);
        Record { leaf, blocks }
    }

    /// Whether the target reads zero there.
    pub fn is_zero(&self) -> bool {
        *self == Record::ZERO
    }

    fn blocks_unknown(&self) -> bool {
        self.blocks == [[0; 16]; BLOCKS] && !self.is_zero()
    }

    /// As it stands in files.
    pub fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..32].copy_from_slice(&self.leaf.0);
        bytes[32..].copy_from_slice(self.blocks.as_flattened());
        bytes
    }

    /// Reads the form of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Record {
        let mut record = Record::ZERO;
        record.leaf.0.copy_from_slice(&bytes[..32]);
        record.blocks.as_flattened_mut().copy_from_slice(&bytes[32..]);
        record
    }
}

/// What has to be sent of one extent.
pub(crate) struct Difference {
    pub(crate) mask: BlockMask,
    /// The named blocks; empty when all of them are zero.
    pub(crate) data: Bytes,
    pub(crate) hash: ExtentHash,
    pub(crate) record: Record,
    /// Whether the mask names only what may differ, not all blocks for want of knowledge.
    pub(crate) blocks_known: bool,
}

/// Compares an extent's content with what the target has; `None` when they are equal.
///
/// `extent` is 64 KiB, a short last one padded with zeros.
pub(crate) fn compare(extent: &[u8], known: &Record, hasher: &dyn Hasher) -> Option<Difference> {
    assert_eq!(extent.len(), EXTENT, "the caller pads extents");
    let zero = is_zero(extent);
    if zero && known.is_zero() {
        return None;
    }
    let (hash, blocks) = hasher.extent_and_blocks(extent);
    if hash == known.leaf {
        return None;
    }
    let record = if zero { Record::ZERO } else { Record { leaf: hash, blocks } };
    let mask = differing_blocks(extent, known, &blocks);
    let (data, blocks_known) = (named_blocks(extent, mask), !known.blocks_unknown());
    Some(Difference { mask, data, hash, record, blocks_known })
}

/// Those blocks of `mask` whose hash in `record`, their extent's new one, is not the target's.
pub(crate) fn still_differing(
    mask: BlockMask,
    record: &Record,
    target: &[[u8; 16]; BLOCKS],
    hasher: &dyn Hasher,
) -> BlockMask {
    // A record of zeros has no hashes of its blocks; the target always has.
    let zeros = record.is_zero().then(|| hasher.extent_and_blocks(&vec![0; EXTENT]).1);
    let blocks = zeros.as_ref().unwrap_or(&record.blocks);
    let differs = |index: &u32| blocks[*index as usize] != target[*index as usize];
    mask.iter().filter(differs).fold(BlockMask::NONE, BlockMask::with)
}

/// The bytes of `kept`, some of the blocks that `mask` names, out of the bytes of all of these.
pub(crate) fn kept_blocks(data: &Bytes, mask: BlockMask, kept: BlockMask) -> Bytes {
    if data.is_empty() || mask == kept {
        return data.clone();
    }
    assert_eq!(data.len(), mask.blocks() as usize * BLOCK, "a change has the blocks it names");
    let named = mask.iter().zip(data.chunks(BLOCK));
    let blocks: Vec<&[u8]> =
        named.filter(|(index, _)| kept.has(*index)).map(|(_, block)| block).collect();
    // Nothing but zeros is sent without bytes, as in a change that was cut so at first.
    if blocks.iter().all(|block| is_zero(block)) { Bytes::new() } else { blocks.concat().into() }
}

/// Blocks of `extent`, whose hashes are `blocks`, that are not as the target has them.
fn differing_blocks(extent: &[u8], known: &Record, blocks: &[[u8; 16]; BLOCKS]) -> BlockMask {
    let mut mask = BlockMask::NONE;
    for (index, block) in (0..BLOCKS_PER_EXTENT).zip(extent.chunks(BLOCK)) {
        let at = index as usize;
        let same = if known.is_zero() {
            is_zero(block)
        } else if known.blocks_unknown() {
            false
        } else {
            known.blocks[at] == blocks[at]
        };
        if !same {
            mask = mask.with(index);
        }
    }
    // The leaves differ, so something does. When no block hash says what, the record is damaged:
    // sending everything is right whatever the target has.
    if mask == BlockMask::NONE { BlockMask::ALL } else { mask }
}

fn named_blocks(extent: &[u8], mask: BlockMask) -> Bytes {
    let blocks = || mask.iter().map(|index| &extent[index as usize * BLOCK..][..BLOCK]);
    if blocks().all(is_zero) {
        return Bytes::new();
    }
    let mut data = Vec::with_capacity(mask.blocks() as usize * BLOCK);
    blocks().for_each(|block| data.extend_from_slice(block));
    data.into()
}

/// Whether every byte is zero. Words first: the compiler makes vector code of it.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// A double of the item's hash functions: keyed BLAKE3 with a key that everybody knows.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Copy, Debug, Default)]
pub struct TestHasher;

#[cfg(any(test, feature = "testing"))]
impl Hasher for TestHasher {
    fn extent(&self, bytes: &[u8]) -> ExtentHash {
        ExtentHash(*blake3::keyed_hash(&[0x11; 32], bytes).as_bytes())
    }
    fn extent_and_blocks(&self, bytes: &[u8]) -> (ExtentHash, [[u8; 16]; BLOCKS]) {
        let block = |index: usize| {
            let mut hasher = blake3::Hasher::new_keyed(&[0x22; 32]);
            hasher.update(&bytes[index * BLOCK..][..BLOCK]).update(&[index as u8]);
            *hasher.finalize().as_bytes().first_chunk().expect("16 of 32 bytes")
        };
        (self.extent(bytes), std::array::from_fn(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent_with(blocks: &[(usize, u8)]) -> Vec<u8> {
        let mut extent = vec![0; EXTENT];
        for (index, value) in blocks {
            extent[index * BLOCK..][..BLOCK].fill(*value);
        }
        extent
    }

    #[test]
    fn an_equal_extent_is_suppressed_and_a_changed_block_is_named() {
        let before = extent_with(&[(0, 1), (3, 3)]);
        let known = Record::of(&before, &TestHasher);
        let after = extent_with(&[(0, 1), (3, 4)]);

        let found = compare(&after, &known, &TestHasher).unwrap();

        assert!(compare(&before, &known, &TestHasher).is_none());
        assert_eq!(found.mask, BlockMask::NONE.with(3));
        assert_eq!(found.data[..], [4; BLOCK]);
        assert_eq!(found.hash, TestHasher.extent(&after));
    }

    #[test]
    fn zeros_over_data_name_only_the_blocks_that_held_data_and_carry_no_bytes() {
        let known = Record::of(&extent_with(&[(2, 1), (9, 3)]), &TestHasher);

        let found = compare(&extent_with(&[]), &known, &TestHasher).unwrap();

        assert_eq!(found.mask, BlockMask::NONE.with(2).with(9));
        assert!(found.data.is_empty());
        assert!(found.record.is_zero());
    }

    #[test]
    fn a_record_with_unknown_blocks_sends_all_of_them_only_when_the_leaf_differs() {
        let before = extent_with(&[(2, 1)]);
        let known = Record::from_leaf(TestHasher.extent(&before));

        assert!(compare(&before, &known, &TestHasher).is_none());
        let found = compare(&extent_with(&[(2, 2)]), &known, &TestHasher).unwrap();
        assert_eq!((found.mask, found.data.len()), (BlockMask::ALL, EXTENT));
    }

    #[test]
    fn a_damaged_leaf_with_sound_blocks_sends_everything() {
        let content = extent_with(&[(2, 1)]);
        let mut known = Record::of(&content, &TestHasher);
        known.leaf.0[0] ^= 1;

        assert_eq!(compare(&content, &known, &TestHasher).unwrap().mask, BlockMask::ALL);
    }

    #[test]
    fn a_zero_extent_whose_leaf_the_target_stores_is_suppressed() {
        let zeros = extent_with(&[]);
        let known = Record::from_leaf(TestHasher.extent(&zeros));

        assert!(compare(&zeros, &known, &TestHasher).is_none());
    }
}
