//! The plaintext of markers.

use crate::samples::{any_marker, cases, machine, marker};
use leeward_model::{DiskEntry, DiskNumber, MachineSpec, Marker};
use leeward_wire::marker::{
    MARKER_BYTES_MAX, MARKER_DISKS_MAX, MarkerError, check_marker, decode_marker, encode_marker,
};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn a_marker_comes_back_as_it_was(marker in any_marker()) {
        let encoded = encode_marker(&marker).unwrap();

        prop_assert_eq!(decode_marker(&encoded), Ok(marker));
    }

    #[test]
    fn arbitrary_bytes_are_no_marker(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(decode_marker(&bytes).is_err());
    }

    #[test]
    fn a_changed_marker_never_panics(
        marker in any_marker(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut encoded = encode_marker(&marker).unwrap();
        for (at, byte) in changes {
            let at = at.index(encoded.len());
            encoded[at] = byte;
        }

        // Whatever still decodes is a marker that can be written again.
        if let Ok(decoded) = decode_marker(&encoded) {
            prop_assert_eq!(check_marker(&decoded), Ok(()));
        }
    }
}

#[test]
fn a_marker_cut_short_or_followed_by_bytes_is_refused() {
    let encoded = encode_marker(&marker()).unwrap();
    for length in 0..encoded.len() {
        assert_eq!(decode_marker(&encoded[..length]), Err(MarkerError::Short), "{length} bytes");
    }
    let more = [&encoded[..], &[0]].concat();
    assert_eq!(decode_marker(&more), Err(MarkerError::Trailing { count: 1 }));
}

#[test]
fn a_marker_out_of_bounds_is_refused_before_it_is_sealed() {
    let disk = |number, id: String| DiskEntry {
        number: DiskNumber(number),
        id,
        serial: String::new(),
        size: 0,
        block_bytes: 512,
    };
    let with = |disks| Marker { disks, ..marker() };
    let too_long = |field, found, max| Err(MarkerError::TooLong { field, found, max });
    let fat = MachineSpec { name: "x".repeat(1 << 20), ..machine() };
    let fat = check_marker(&Marker { machine: fat, ..marker() });

    assert_eq!(check_marker(&with(vec![disk(0, "x".repeat(255))])), Ok(()));
    let long = check_marker(&with(vec![disk(0, "x".repeat(256))]));
    assert_eq!(long, too_long("disk id", 256, 255));
    let many = check_marker(&with(vec![disk(0, String::new()); MARKER_DISKS_MAX + 1]));
    assert_eq!(many, too_long("disk table", MARKER_DISKS_MAX + 1, MARKER_DISKS_MAX));
    let number = check_marker(&with(vec![disk(u16::MAX, String::new())]));
    assert_eq!(number, Err(MarkerError::Field { field: "disk number", value: 65_535 }));
    assert!(matches!(fat, Err(MarkerError::TooLong { max: MARKER_BYTES_MAX, .. })));
}

#[test]
fn a_marker_of_another_version_or_with_unknown_parts_is_refused() {
    let encoded = encode_marker(&marker()).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut bytes = encoded.clone();
        bytes[at] = byte;
        decode_marker(&bytes)
    };

    assert_eq!(changed(0, 2), Err(MarkerError::Version { found: 2 }));
    assert_eq!(changed(2, 9), Err(MarkerError::Field { field: "kind", value: 9 }));
    assert_eq!(changed(3, 1), Err(MarkerError::Field { field: "reserved byte", value: 1 }));
    assert_eq!(changed(40, 1), Err(MarkerError::Field { field: "firmware hash", value: 1 }));
}
