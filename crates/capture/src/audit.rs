//! Comparing a part of a machine with what its target says it holds, and with nothing else: no hash
//! file is believed here, as it is part of what is audited.

use crate::{
    pass::{Found, compare_all},
    record::{Hasher, Record},
};
use leeward_model::{DiskNumber, ExtentHash, ExtentNumber};

/// The extents from `first` on whose content is not what the target holds by its `leaves`, of which
/// all zero stands for an extent that reads as zero. `content` is that of the first `leaves.len()`
/// extents; what it lacks at the disk's end is zero.
///
/// What is returned names every block of an extent that the target has: of one that should not
/// differ at all nobody knows which blocks do.
pub fn audit_extents(
    place: (DiskNumber, ExtentNumber),
    content: &[u8],
    leaves: &[ExtentHash],
    hasher: &dyn Hasher,
) -> Vec<Found> {
    let known: Vec<Record> = leaves.iter().copied().map(Record::from_leaf).collect();
    let mut found = Vec::new();
    compare_all(place, content, &known, hasher, &mut found);
    found.iter_mut().for_each(|found| found.blocks_known = true);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TestHasher;
    use leeward_model::{BlockMask, EXTENT_BYTES};

    const EXTENT: usize = EXTENT_BYTES as usize;
    const PLACE: (DiskNumber, ExtentNumber) = (DiskNumber(1), ExtentNumber(7));

    fn leaf(content: &[u8]) -> ExtentHash {
        let mut padded = content.to_vec();
        padded.resize(EXTENT, 0);
        TestHasher.extent(&padded)
    }

    #[test]
    fn equal_extents_short_ones_and_zeros_in_either_form_are_no_difference() {
        let mut content = vec![1; EXTENT];
        content.extend(vec![0; 2 * EXTENT]);
        content.extend(vec![2; 4096]);
        let absent = ExtentHash([0; 32]);
        let leaves =
            [leaf(&content[..EXTENT]), absent, leaf(&[0; EXTENT]), leaf(&content[3 * EXTENT..])];

        assert_eq!(audit_extents(PLACE, &content, &leaves, &TestHasher), []);
    }

    #[test]
    fn what_differs_is_named_whole_with_the_hash_of_the_source() {
        let content = vec![1; EXTENT];

        let found = audit_extents(PLACE, &content, &[leaf(&[3; EXTENT])], &TestHasher);

        assert_eq!(found.len(), 1);
        assert_eq!((found[0].change.disk, found[0].change.extent), PLACE);
        assert_eq!(found[0].change.mask, BlockMask::ALL);
        assert_eq!(found[0].change.data[..], content);
        assert_eq!(found[0].change.hash, leaf(&content));
        assert!(found[0].blocks_known);
    }

    #[test]
    fn zeros_where_the_target_has_data_and_data_where_it_has_none_differ() {
        let absent = ExtentHash([0; 32]);
        let zeros = audit_extents(PLACE, &[0; EXTENT], &[leaf(&[3; EXTENT])], &TestHasher);
        assert_eq!((zeros.len(), zeros[0].change.data.len()), (1, 0));
        assert_eq!(zeros[0].change.mask, BlockMask::ALL);

        let data = audit_extents(PLACE, &[5; EXTENT], &[absent], &TestHasher);
        assert_eq!((data.len(), data[0].change.data.len()), (1, EXTENT));
    }
}
