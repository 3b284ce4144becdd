//! Sealing and opening: round trips, codecs, order, nonces.

use crate::samples::{
    any_change, any_header, any_level, any_marker, cases, change, data_key, header, marker, noise,
    split,
};
use bytes::Bytes;
use leeward_model::{BlockMask, Change, Lsn};
use leeward_wire::{
    record::{Codec, RECORD_HEADER_BYTES, RecordKind, TAG_BYTES, check_crc},
    seal::{Level, OpenError, Opener, Sealer},
};
use proptest::prelude::*;

fn header_bytes(record: &[u8]) -> &[u8; RECORD_HEADER_BYTES] {
    record.first_chunk().expect("a whole record")
}

fn seal_one(change: &Change, level: Level) -> Bytes {
    Sealer::new(&data_key(), header()).seal_change(Lsn(1000), change, level)
}

fn codec_of(change: &Change, level: Level) -> Codec {
    split(&seal_one(change, level)).0.codec
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn what_was_sealed_opens_to_the_same_bytes(
        segment in any_header(),
        changes in proptest::collection::vec((any_change(), any_level()), 1..4),
    ) {
        let mut sealer = Sealer::new(&data_key(), segment.clone());
        let opener = Opener::new(&data_key(), &segment);
        for (change, level) in &changes {
            let lsn = sealer.next_lsn();
            let record = sealer.seal_change(lsn, change, *level);

            let (header, stored) = split(&record);
            let opened = opener.open_change(&header, header_bytes(&record), stored).unwrap();

            prop_assert_eq!(header.lsn, lsn);
            prop_assert_eq!((header.disk, header.extent), (change.disk, change.extent));
            prop_assert_eq!((header.mask, header.hash), (change.mask, change.hash));
            prop_assert_eq!(header.record_len(), record.len());
            prop_assert_eq!(header.raw_len(), opened.len());
            prop_assert_eq!(header.codec == Codec::Zero, change.data.is_empty());
            let expected = vec![0; change.mask.bytes() as usize];
            let expected = if change.data.is_empty() { &expected } else { &change.data[..] };
            prop_assert!(opened == expected, "the bytes differ");
        }
    }

    #[test]
    fn a_sealed_marker_opens_to_the_same_marker(segment in any_header(), marker in any_marker()) {
        let record = Sealer::new(&data_key(), segment.clone())
            .seal_marker(segment.first_lsn, &marker);

        let (header, stored) = split(&record);
        let opened = Opener::new(&data_key(), &segment)
            .open_marker(&header, header_bytes(&record), stored);

        prop_assert_eq!(header.kind, RecordKind::Marker);
        prop_assert_eq!(opened, Ok(marker));
    }
}

#[test]
fn the_codec_follows_what_the_data_gain() {
    let noisy = |blocks: usize| Change {
        mask: BlockMask((1_u32 << blocks).wrapping_sub(1) as u16),
        data: Bytes::from(noise(1, blocks * 4096)),
        ..change(1, 1)
    };
    let zeros = Change { data: Bytes::from(vec![0; 4096]), ..change(1, 1) };
    let empty = Change { data: Bytes::new(), ..change(0xffff, 1) };

    assert_eq!(codec_of(&change(0xffff, 1), Level::Zstd(1)), Codec::Zstd);
    assert_eq!(codec_of(&change(0xffff, 1), Level::Raw), Codec::Raw);
    assert_eq!(codec_of(&noisy(1), Level::Zstd(3)), Codec::Raw);
    assert_eq!(codec_of(&noisy(16), Level::Zstd(3)), Codec::Raw);
    assert_eq!(codec_of(&zeros, Level::Raw), Codec::Zero);
    assert_eq!(codec_of(&empty, Level::Zstd(1)), Codec::Zero);
}

#[test]
fn data_that_gain_less_than_a_twentieth_are_stored_raw() {
    // Noise with a compressible tail: 4096 - 160 bytes of noise gain 3.8 %, - 400 gain 9.6 %.
    let tail = |len: usize| {
        let mut data = noise(2, 4096);
        data[4096 - len..].fill(1);
        Change { data: Bytes::from(data), ..change(1, 1) }
    };

    assert_eq!(codec_of(&tail(160), Level::Zstd(3)), Codec::Raw);
    assert_eq!(codec_of(&tail(400), Level::Zstd(3)), Codec::Zstd);
}

#[test]
fn a_record_of_zeros_is_a_header_and_a_tag() {
    let empty = Change { data: Bytes::new(), ..change(0xffff, 1) };

    assert_eq!(seal_one(&empty, Level::Raw).len(), RECORD_HEADER_BYTES + TAG_BYTES);
}

#[test]
#[should_panic(expected = "every number of a segment is sealed once, in order")]
fn a_number_is_never_sealed_twice() {
    let mut sealer = Sealer::new(&data_key(), header());
    sealer.seal_change(Lsn(1000), &change(1, 1), Level::Raw);

    sealer.seal_change(Lsn(1000), &change(1, 2), Level::Raw);
}

#[test]
#[should_panic(expected = "every number of a segment is sealed once, in order")]
fn a_number_is_never_left_out() {
    let mut sealer = Sealer::new(&data_key(), header());

    sealer.seal_marker(Lsn(1001), &marker());
}

#[test]
#[should_panic(expected = "data are those of the mask's blocks")]
fn data_of_another_length_than_the_mask_are_our_mistake() {
    let wrong = Change { mask: BlockMask(0b11), ..change(1, 1) };

    seal_one(&wrong, Level::Raw);
}

#[test]
fn equal_plaintext_never_makes_equal_ciphertext() {
    let mut sealer = Sealer::new(&data_key(), header());
    let mut seen = std::collections::HashSet::new();
    for number in 0..100 {
        let record = sealer.seal_change(Lsn(1000 + number), &change(1, 1), Level::Raw);
        // Without the tag: that differs by the header alone, also under a repeated nonce.
        let ciphertext = record.slice(RECORD_HEADER_BYTES..record.len() - TAG_BYTES);
        assert!(seen.insert(ciphertext), "record {number}");
    }
}

#[test]
fn a_record_checks_wherever_it_lies() {
    let record = seal_one(&change(0b111, 1), Level::Raw);
    for offset in 0..80 {
        let mut place = vec![0xee; offset];
        place.extend_from_slice(&record);

        let copy = &place[offset..];
        let (_, stored) = split(copy);

        assert_eq!(check_crc(header_bytes(copy), stored), Ok(()), "at {offset}");
    }
}

#[test]
fn the_two_kinds_of_record_are_not_taken_for_each_other() {
    let mut sealer = Sealer::new(&data_key(), header());
    let opener = Opener::new(&data_key(), &header());
    let change = sealer.seal_change(Lsn(1000), &change(1, 1), Level::Raw);
    let marker = sealer.seal_marker(Lsn(1001), &marker());

    let (header, stored) = split(&change);
    let as_marker = opener.open_marker(&header, header_bytes(&change), stored);
    let (header, stored) = split(&marker);
    let as_change = opener.open_change(&header, header_bytes(&marker), stored);

    assert_eq!(as_marker, Err(OpenError::Header { lsn: Lsn(1000) }));
    assert_eq!(as_change, Err(OpenError::Header { lsn: Lsn(1001) }));
}

#[test]
fn a_stored_payload_of_another_length_is_refused() {
    let record = seal_one(&change(1, 1), Level::Raw);
    let (header, stored) = split(&record);
    let opener = Opener::new(&data_key(), &crate::samples::header());
    for length in [0, 1, 15, 16, stored.len() - 1] {
        let opened = opener.open_change(&header, header_bytes(&record), &stored[..length]);

        let expected = header.stored_len;
        assert_eq!(opened, Err(OpenError::Length { lsn: header.lsn, expected, found: length }));
    }
}
