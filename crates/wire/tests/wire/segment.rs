//! Segment headers, footers and the scan without a key.

use crate::samples::{Segment, any_change, any_header, any_level, cases, change, data_key, header};
use leeward_model::{BlockMask, DiskNumber, ExtentNumber, Lsn};
use leeward_wire::{
    keys::footer_mac_key,
    record::{RECORD_HEADER_BYTES, RecordError, RecordHeader},
    seal::{Level, Opener, Sealer},
    segment::{
        FOOTER_TRAILER_BYTES, FooterEntry, FooterError, SEGMENT_HEADER_BYTES, ScanEnd,
        SegmentError, SegmentHeader, decode_footer, encode_footer, footer_len, scan,
    },
};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_segment_header_comes_back_as_it_was(header in any_header()) {
        prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn footer_and_scan_name_the_records_that_were_written(
        header in any_header(),
        changes in proptest::collection::vec((any_change(), any_level()), 1..12),
    ) {
        let mut sealer = Sealer::new(&data_key(), header.clone());
        let mut segment = Segment::begin(&header);
        for (change, level) in &changes {
            let record = sealer.seal_change(sealer.next_lsn(), change, *level);
            segment.append(&record);
        }
        let key = footer_mac_key(&data_key());
        let footer = encode_footer(&segment.entries, &key, &header.hash());

        let mut found = scan(&segment.bytes).unwrap();
        let scanned: Vec<_> = found.by_ref().collect();
        let mut file = segment.bytes.clone();
        file.extend_from_slice(&footer);
        let tail = &file[file.len() - footer.len() - 1..];
        let decoded = decode_footer(tail, file.len() as u64, &key, &header.hash()).unwrap();

        let entries: Vec<_> =
            scanned.iter().map(|record| FooterEntry::of(&record.header, record.offset)).collect();
        prop_assert_eq!(&entries, &segment.entries);
        prop_assert_eq!(found.end(), Some(&ScanEnd::Clean));
        prop_assert_eq!(found.valid_bytes(), segment.bytes.len());
        prop_assert_eq!(found.next_lsn(), sealer.next_lsn());
        prop_assert_eq!(decoded.last_lsn.next(), sealer.next_lsn());
        prop_assert_eq!(decoded.records_end as usize, segment.bytes.len());
        let mut sorted = segment.entries.clone();
        sorted.sort_by_key(FooterEntry::sort_key);
        prop_assert_eq!(decoded.entries, sorted);
        let opener = Opener::new(&data_key(), &header);
        for record in scanned {
            prop_assert!(
                opener.open_change(&record.header, record.header_bytes, record.stored).is_ok()
            );
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_a_decoder(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let key = footer_mac_key(&data_key());
        let hash = header().hash();
        prop_assert!(SegmentHeader::decode(&bytes).is_err());
        prop_assert!(decode_footer(&bytes, bytes.len() as u64, &key, &hash).is_err());
        prop_assert!(scan(&bytes).is_err());
        if let Some(trailer) = bytes.first_chunk() {
            prop_assert!(footer_len(trailer).is_err());
        }
        if let Some(record) = bytes.first_chunk() {
            prop_assert!(RecordHeader::decode(record).is_err());
        }
        let mut record = bytes.clone();
        record.splice(..record.len().min(4), *b"LWR1");
        if let Some(Ok(header)) = record.first_chunk().map(RecordHeader::decode) {
            prop_assert!(header.record_len() >= RECORD_HEADER_BYTES);
        }
        // Behind a good header, as a store finds them after a crash.
        let mut segment = header().encode().to_vec();
        segment.extend_from_slice(&record);
        prop_assert_eq!(scan(&segment).unwrap().count(), 0);
        segment.truncate(SEGMENT_HEADER_BYTES);
        segment.extend_from_slice(&bytes);
        prop_assert_eq!(scan(&segment).unwrap().count(), 0);
    }

    #[test]
    fn an_arbitrary_record_header_that_decodes_encodes_to_itself(
        mut bytes in any::<[[u8; 32]; 2]>().prop_map(|halves| halves.concat()),
        codec in 0..3_u8,
        marker in any::<bool>(),
    ) {
        bytes[0..4].copy_from_slice(b"LWR1");
        bytes[12..14].copy_from_slice(&[codec, u8::from(marker)]);
        if marker {
            bytes[4..10].fill(0xff);
            bytes[10..12].fill(0);
        }
        let mask = BlockMask(u16::from_le_bytes([bytes[10], bytes[11]]));
        let stored = match codec {
            0 if !marker => mask.bytes() as u32 + 16,
            1 => 16,
            _ => 17,
        };
        bytes[14..18].copy_from_slice(&stored.to_le_bytes());
        bytes[58..64].fill(0);

        let decoded = RecordHeader::decode(bytes.first_chunk().unwrap());

        match decoded {
            Ok(header) => prop_assert_eq!(&header.encode_without_crc()[..], &bytes[..]),
            Err(error) => prop_assert!(
                mask == BlockMask::NONE || bytes[8..10] == [0xff; 2] || (marker && codec != 0),
                "{}", error
            ),
        }
    }
}

#[test]
fn a_segment_cut_at_any_byte_keeps_its_whole_records() {
    let segment = Segment::sample();
    let ends: Vec<usize> = (segment.entries.iter())
        .map(|entry| entry.offset as usize + RECORD_HEADER_BYTES + entry.stored_len as usize)
        .collect();
    for length in 0..=segment.bytes.len() {
        let found = scan(&segment.bytes[..length]);
        if length < SEGMENT_HEADER_BYTES {
            assert_eq!(found.unwrap_err(), SegmentError::Short { found: length });
            continue;
        }
        let mut found = found.unwrap();
        let whole = ends.iter().filter(|end| **end <= length).count();

        assert_eq!(found.by_ref().count(), whole, "{length} bytes");
        let valid = if whole == 0 { SEGMENT_HEADER_BYTES } else { ends[whole - 1] };
        assert_eq!(found.valid_bytes(), valid, "{length} bytes");
        let end = if valid == length { ScanEnd::Clean } else { ScanEnd::Torn };
        assert_eq!(found.end(), Some(&end), "{length} bytes");
    }
}

#[test]
fn a_scan_says_why_it_ended() {
    let segment = Segment::sample();
    let end = |bytes: &[u8]| {
        let mut found = scan(bytes).unwrap();
        (found.by_ref().count(), found.end().cloned().unwrap())
    };
    let followed_by = |tail: &[u8]| end(&[&segment.bytes[..], tail].concat());
    let second = segment.entries[1].offset as usize;
    let footer = encode_footer(&segment.entries, &footer_mac_key(&data_key()), &header().hash());

    assert_eq!(followed_by(&[0; 30]), (4, ScanEnd::Unwritten));
    assert_eq!(followed_by(&[0; 9000]), (4, ScanEnd::Unwritten));
    assert_eq!(followed_by(&[1; 30]), (4, ScanEnd::Torn));
    let magic = ScanEnd::Record(RecordError::Magic { found: [1; 4] });
    assert_eq!(followed_by(&[1; 64]), (4, magic));
    assert!(matches!(followed_by(&footer), (4, ScanEnd::Record(RecordError::Magic { .. }))));
    let again = &segment.bytes[SEGMENT_HEADER_BYTES..second];
    let sequence = ScanEnd::Sequence { expected: Lsn(1004), found: Lsn(1000) };
    assert_eq!(followed_by(again), (4, sequence));
    let mut broken = segment.bytes.clone();
    broken[second + 70] ^= 1;
    assert!(matches!(end(&broken), (1, ScanEnd::Record(RecordError::Crc { .. }))));
}

#[test]
fn a_segment_of_another_version_is_refused_by_name() {
    let mut bytes = header().encode();
    bytes[8] = 2;
    let crc = crate::samples::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
    bytes[SEGMENT_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());

    assert_eq!(SegmentHeader::decode(&bytes), Err(SegmentError::Version { found: 2 }));
}

#[test]
fn a_segment_that_was_not_sealed_has_no_footer() {
    let segment = Segment::sample();
    let trailer = segment.bytes.last_chunk::<FOOTER_TRAILER_BYTES>().unwrap();

    assert_eq!(footer_len(trailer), Err(FooterError::Absent));
}

#[test]
fn footer_entries_are_sorted_by_disk_extent_and_lsn() {
    let mut sealer = Sealer::new(&data_key(), header());
    let mut segment = Segment::begin(&header());
    for (disk, extent) in [(2, 1), (1, 9), (1, 2), (1, 9), (0, 70_000)] {
        let mut change = change(1, 1);
        (change.disk, change.extent) = (DiskNumber(disk), ExtentNumber(extent));
        let record = sealer.seal_change(sealer.next_lsn(), &change, Level::Raw);
        segment.append(&record);
    }
    let key = footer_mac_key(&data_key());
    let footer = encode_footer(&segment.entries, &key, &header().hash());
    let file_len = (segment.bytes.len() + footer.len()) as u64;

    let decoded = decode_footer(&footer, file_len, &key, &header().hash()).unwrap();

    let order: Vec<_> =
        decoded.entries.iter().map(|entry| (entry.disk.0, entry.extent.0, entry.lsn.0)).collect();
    let expected = [(0, 70_000, 1004), (1, 2, 1002), (1, 9, 1001), (1, 9, 1003), (2, 1, 1000)];
    assert_eq!(order, expected);
}

#[test]
#[should_panic(expected = "records lie one behind another")]
fn a_footer_with_a_record_left_out_is_our_mistake() {
    let mut segment = Segment::sample();
    segment.entries.remove(1);

    encode_footer(&segment.entries, &footer_mac_key(&data_key()), &header().hash());
}

#[test]
fn a_record_number_counts_from_the_first_lsn() {
    assert_eq!(header().record_number(Lsn(1000)), Some(0));
    assert_eq!(header().record_number(Lsn(1003)), Some(3));
    assert_eq!(header().record_number(Lsn(999)), None);
}
