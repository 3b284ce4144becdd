//! E9: flipped bits, swapped records, wrong keys. Everything is detected, nothing is served.

use crate::samples::{Segment, change, crc32c, data_key, header, marker, with_fixed_crc};
use bytes::Bytes;
use leeward_model::{Epoch, Lsn, SegmentId};
use leeward_wire::{
    keys::{DataKey, footer_mac_key, mac, manifest_mac_key},
    record::{RECORD_HEADER_BYTES, RecordHeader},
    seal::{Level, OpenError, Opener, Sealer},
    segment::{
        FOOTER_ENTRY_BYTES, FOOTER_TRAILER_BYTES, FooterError, SEGMENT_HEADER_BYTES, SegmentHeader,
        decode_footer, encode_footer, scan,
    },
};

/// Opens a record of any kind as a reader does that knows nothing but its bytes.
fn open(opener: &Opener, record: &[u8]) -> Result<Bytes, OpenError> {
    let bytes: &[u8; RECORD_HEADER_BYTES] = record.first_chunk().expect("64 bytes");
    let header = RecordHeader::decode(bytes)?;
    opener.open_change(&header, bytes, &record[RECORD_HEADER_BYTES..])
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[bit / 8] ^= 1 << (bit % 8);
    out
}

fn records() -> Vec<Bytes> {
    let mut sealer = Sealer::new(&data_key(), header());
    vec![
        sealer.seal_change(Lsn(1000), &change(0b1, 1), Level::Raw),
        sealer.seal_change(Lsn(1001), &change(0b1, 2), Level::Raw),
        sealer.seal_change(Lsn(1002), &change(0xffff, 3), Level::Zstd(1)),
    ]
}

#[test]
fn every_flipped_bit_of_a_segment_header_is_detected() {
    let good = header().encode();
    for bit in 0..SEGMENT_HEADER_BYTES * 8 {
        assert!(SegmentHeader::decode(&flipped(&good, bit)).is_err(), "bit {bit}");
    }
}

#[test]
fn a_segment_header_forged_with_its_checksum_opens_nothing() {
    let good = header().encode();
    let record = &records()[0];
    let key = footer_mac_key(&data_key());
    let segment = Segment::sample();
    let footer = encode_footer(&segment.entries, &key, &header().hash());
    let file_len = (segment.bytes.len() + footer.len()) as u64;
    let mut decoded = 0;
    for bit in 0..(SEGMENT_HEADER_BYTES - 4) * 8 {
        let mut forged = flipped(&good, bit);
        let crc = crc32c(&forged[..SEGMENT_HEADER_BYTES - 4]);
        forged[SEGMENT_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());

        if let Ok(forged) = SegmentHeader::decode(&forged) {
            decoded += 1;
            assert!(open(&Opener::new(&data_key(), &forged), record).is_err(), "bit {bit}");
            let found = decode_footer(&footer, file_len, &key, &forged.hash());
            assert_eq!(found, Err(FooterError::Mac), "bit {bit}");
        }
    }
    // Ids, epoch, key version, LSN and time, in bits; padding, magic and version never decode.
    assert_eq!(decoded, (104 - 12) * 8);
}

#[test]
fn every_flipped_bit_of_a_footer_is_detected() {
    let segment = Segment::sample();
    let key = footer_mac_key(&data_key());
    let hash = header().hash();
    let footer = encode_footer(&segment.entries, &key, &hash);
    let file_len = (segment.bytes.len() + footer.len()) as u64;
    assert!(decode_footer(&footer, file_len, &key, &hash).is_ok());
    for bit in 0..footer.len() * 8 {
        let mut forged = flipped(&footer, bit);
        let found = decode_footer(&forged, file_len, &key, &hash);
        assert!(found.is_err(), "bit {bit}");

        let crc_at = forged.len() - 4;
        let crc = crc32c(&forged[..crc_at]);
        forged[crc_at..].copy_from_slice(&crc.to_le_bytes());
        let found = decode_footer(&forged, file_len, &key, &hash);
        assert!(found.is_err() || bit / 8 >= crc_at, "bit {bit} with its checksum forged");
    }
}

#[test]
fn a_footer_counts_only_under_its_key_and_at_its_place() {
    let segment = Segment::sample();
    let key = footer_mac_key(&data_key());
    let hash = header().hash();
    let footer = encode_footer(&segment.entries, &key, &hash);
    let file_len = (segment.bytes.len() + footer.len()) as u64;
    let other_use = manifest_mac_key(&data_key());
    let other_key = footer_mac_key(&DataKey::from_bytes([9; 32]));

    for key in [other_use, other_key] {
        assert_eq!(decode_footer(&footer, file_len, &key, &hash), Err(FooterError::Mac));
    }
    for wrong in [file_len - 1, file_len + 1, 0, u64::MAX] {
        assert!(decode_footer(&footer, wrong, &key, &hash).is_err(), "length {wrong}");
    }
}

#[test]
fn an_authentic_footer_that_a_writer_got_wrong_is_refused() {
    let segment = Segment::sample();
    let key = footer_mac_key(&data_key());
    let hash = header().hash();
    let good = encode_footer(&segment.entries, &key, &hash).to_vec();
    let file_len = (segment.bytes.len() + good.len()) as u64;
    let trailer = good.len() - FOOTER_TRAILER_BYTES;
    let sealed = |change: &dyn Fn(&mut [u8])| {
        let mut footer = good.clone();
        change(&mut footer);
        let tag = mac(&key, &[&hash[..], &footer[..trailer + 24]].concat());
        footer[trailer + 24..trailer + 56].copy_from_slice(&tag);
        let crc = crc32c(&footer[..trailer + 60]);
        footer[trailer + 60..].copy_from_slice(&crc.to_le_bytes());
        decode_footer(&footer, file_len, &key, &hash)
    };

    let unchanged = sealed(&|_| {});
    let unsorted = sealed(&|footer| footer[..2 * FOOTER_ENTRY_BYTES].rotate_left(28));
    let twice = sealed(&|footer| footer.copy_within(..FOOTER_ENTRY_BYTES, FOOTER_ENTRY_BYTES));
    let moved = sealed(&|footer| footer[16] ^= 1);
    let codec = sealed(&|footer| footer[24] = 3);
    let last_lsn = sealed(&|footer| footer[trailer + 16] ^= 1);

    assert_eq!(unchanged.map(|footer| footer.entries.len()), Ok(4));
    assert_eq!(unsorted, Err(FooterError::Entry { index: 1 }));
    assert_eq!(twice, Err(FooterError::Entry { index: 1 }));
    assert!(matches!(moved, Err(FooterError::Gap { .. })), "{moved:?}");
    assert_eq!(codec, Err(FooterError::Entry { index: 0 }));
    assert!(matches!(last_lsn, Err(FooterError::Gap { .. })), "{last_lsn:?}");
}

#[test]
fn every_flipped_bit_of_a_record_is_detected() {
    let opener = Opener::new(&data_key(), &header());
    for record in records() {
        let expected = open(&opener, &record).unwrap();
        // All of the header, all of short payloads, every 97th bit of long ones.
        let payload = (RECORD_HEADER_BYTES * 8..record.len() * 8).step_by(if record.len() < 1000 {
            1
        } else {
            97
        });
        for bit in (0..RECORD_HEADER_BYTES * 8).chain(payload) {
            assert!(open(&opener, &flipped(&record, bit)).is_err(), "bit {bit}");
        }
        assert_eq!(open(&opener, &record), Ok(expected));
    }
}

#[test]
fn a_record_forged_with_its_checksum_does_not_open() {
    let opener = Opener::new(&data_key(), &header());
    for record in records() {
        let crc = 58 * 8..62 * 8;
        let payload = (RECORD_HEADER_BYTES * 8..record.len() * 8).step_by(if record.len() < 1000 {
            1
        } else {
            97
        });
        for bit in (0..RECORD_HEADER_BYTES * 8).chain(payload) {
            let forged = with_fixed_crc(flipped(&record, bit));

            let opened = open(&opener, &forged);

            // With the CRC's own bits flipped and then computed again, it is the record itself.
            assert_eq!(opened.is_ok(), crc.contains(&bit), "bit {bit}");
        }
    }
}

#[test]
fn every_flipped_bit_of_a_marker_is_detected() {
    let record = Sealer::new(&data_key(), header()).seal_marker(Lsn(1000), &marker());
    let opener = Opener::new(&data_key(), &header());
    let open = |record: &[u8]| {
        let bytes = record.first_chunk().expect("64 bytes");
        let header = RecordHeader::decode(bytes)?;
        opener.open_marker(&header, bytes, &record[RECORD_HEADER_BYTES..])
    };
    assert_eq!(open(&record), Ok(marker()));
    for bit in 0..record.len() * 8 {
        let forged = flipped(&record, bit);
        assert!(open(&forged).is_err(), "bit {bit}");
        let fixed = open(&with_fixed_crc(forged)).is_ok();
        assert_eq!(fixed, (58 * 8..62 * 8).contains(&bit), "bit {bit} with its checksum forged");
    }
}

#[test]
fn a_record_of_another_segment_is_refused() {
    let record = &records()[0];
    let others = [
        SegmentHeader { segment: SegmentId::from_u128(77), ..header() },
        // The same segment key, another header: only the AAD tells.
        SegmentHeader { epoch: Epoch(0x40), ..header() },
        SegmentHeader { key_version: 1, ..header() },
    ];
    for other in others {
        let opened = open(&Opener::new(&data_key(), &other), record);

        assert_eq!(opened, Err(OpenError::Authentication { lsn: Lsn(1000) }));
    }
}

#[test]
fn records_swapped_within_a_segment_are_refused() {
    let opener = Opener::new(&data_key(), &header());
    let records = records();
    let [first, second] = [&records[0], &records[1]];
    // The first record under the second's number, and the second's payload in the first's place.
    let mut renumbered = first.to_vec();
    renumbered[18..26].copy_from_slice(&1001_u64.to_le_bytes());
    let mut exchanged = first[..RECORD_HEADER_BYTES].to_vec();
    exchanged.extend_from_slice(&second[RECORD_HEADER_BYTES..]);

    let renumbered = open(&opener, &with_fixed_crc(renumbered));
    let exchanged = open(&opener, &with_fixed_crc(exchanged));
    let mut reordered = header().encode().to_vec();
    reordered.extend_from_slice(second);
    reordered.extend_from_slice(first);

    assert_eq!(renumbered, Err(OpenError::Authentication { lsn: Lsn(1001) }));
    assert_eq!(exchanged, Err(OpenError::Authentication { lsn: Lsn(1000) }));
    assert_eq!(scan(&reordered).unwrap().count(), 0);
}

#[test]
fn a_record_before_its_segment_is_refused() {
    let opener = Opener::new(&data_key(), &SegmentHeader { first_lsn: Lsn(1001), ..header() });

    let opened = open(&opener, &records()[0]);

    assert_eq!(opened, Err(OpenError::Place { lsn: Lsn(1000), first: Lsn(1001) }));
}

#[test]
fn another_data_key_opens_nothing() {
    let opener = Opener::new(&DataKey::from_bytes([9; 32]), &header());
    for (record, lsn) in records().iter().zip(1000..) {
        let opened = open(&opener, record);

        assert_eq!(opened, Err(OpenError::Authentication { lsn: Lsn(lsn) }));
    }
}

#[test]
fn a_scan_takes_no_damaged_record_and_nothing_behind_it() {
    let segment = Segment::sample();
    let second = segment.entries[1].offset as usize;
    let third = segment.entries[2].offset as usize;
    for bit in second * 8..third * 8 {
        let forged = flipped(&segment.bytes, bit);

        let mut scan = scan(&forged).unwrap();
        let found = scan.by_ref().count();

        assert_eq!((found, scan.valid_bytes()), (1, second), "bit {bit}: {:?}", scan.end());
    }
}
