//! Changes cut anew by the hashes of the blocks that the target has.

use super::*;
use crate::record::Record;

const BLOCK: usize = BLOCK_BYTES as usize;

/// An extent whose blocks are filled with these bytes.
fn extent(fills: [u8; 16]) -> Vec<u8> {
    fills.iter().flat_map(|fill| [*fill; BLOCK]).collect()
}

fn block_hashes(extent: &[u8]) -> [[u8; 16]; 16] {
    TestHasher.extent_and_blocks(extent).1
}

/// What a pass finds of an extent of which the hash file knows `known`.
fn find(extent: &[u8], known: &Record) -> Option<Found> {
    let Difference { mask, data, hash, record, blocks_known } =
        compare(extent, known, &TestHasher)?;
    let change = Change { disk: A, extent: ExtentNumber(0), mask, data, hash };
    Some(Found { change, record, blocks_known })
}

fn leaf(extent: &[u8]) -> Record {
    Record::from_leaf(TestHasher.extent(extent))
}

#[test]
fn only_an_extent_known_by_its_leaf_alone_has_unknown_blocks() {
    let (new, old) = (extent([1; 16]), extent([2; 16]));

    assert!(!find(&new, &leaf(&old)).unwrap().blocks_known);
    assert!(find(&new, &Record::of(&old, &TestHasher)).unwrap().blocks_known);
    assert!(find(&new, &Record::ZERO).unwrap().blocks_known, "zero blocks are known to be zero");
    let cut = find(&new, &leaf(&old)).unwrap().recut(&block_hashes(&old), &TestHasher);
    assert!(cut.unwrap().blocks_known);
}

#[test]
fn zeros_over_data_name_the_blocks_that_hold_data_and_carry_no_bytes() {
    let mut fills = [0; 16];
    (fills[2], fills[9]) = (7, 8);
    let old = extent(fills);

    let found = find(&extent([0; 16]), &leaf(&old)).unwrap();
    let cut = found.recut(&block_hashes(&old), &TestHasher).unwrap();

    assert_eq!(cut.change.mask, BlockMask::NONE.with(2).with(9));
    assert!(cut.change.data.is_empty());
    assert!(cut.record.is_zero());
}

#[test]
fn blocks_that_became_zero_carry_no_bytes_though_the_extent_holds_data() {
    let (old, mut fills) = (extent([5; 16]), [5; 16]);
    fills[4] = 0;

    let found = find(&extent(fills), &leaf(&old)).unwrap();
    let cut = found.recut(&block_hashes(&old), &TestHasher).unwrap();

    assert_eq!((cut.change.mask, cut.change.data.len()), (BlockMask::NONE.with(4), 0));
}

#[test]
fn nothing_is_left_to_send_when_the_target_has_every_block() {
    let content = extent([5; 16]);
    let found = find(&content, &leaf(&extent([6; 16]))).unwrap();

    assert_eq!(found.recut(&block_hashes(&content), &TestHasher), None);
}

proptest! {
    #![proptest_config(config())]

    /// Applied at the target, what is left makes exactly the source's extent, and it names exactly
    /// the blocks that differ.
    #[test]
    fn what_is_left_of_a_change_makes_the_sources_extent(
        old in prop::array::uniform16(0..3_u8),
        new in prop::array::uniform16(0..3_u8),
    ) {
        let (held, content) = (extent(old), extent(new));
        let Some(found) = find(&content, &leaf(&held)) else {
            prop_assert_eq!(old, new);
            return Ok(());
        };
        let cut = found.clone().recut(&block_hashes(&held), &TestHasher);

        let differ = (0..16).filter(|at| old[*at as usize] != new[*at as usize]);
        let expected = differ.fold(BlockMask::NONE, BlockMask::with);
        let named = cut.as_ref().map_or(BlockMask::NONE, |cut| cut.change.mask);
        prop_assert_eq!(named, expected);
        let mut applied = held;
        if let Some(cut) = cut {
            prop_assert_eq!((cut.change.hash, cut.record), (found.change.hash, found.record));
            let data = &cut.change.data;
            prop_assert!(data.is_empty() || data.len() == named.blocks() as usize * BLOCK);
            for (nth, at) in named.iter().enumerate() {
                let block = &mut applied[at as usize * BLOCK..][..BLOCK];
                match data.len() {
                    0 => block.fill(0),
                    _ => block.copy_from_slice(&data[nth * BLOCK..][..BLOCK]),
                }
            }
        }
        prop_assert!(applied == content);
    }
}
