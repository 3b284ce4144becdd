//! Golden files: the exact bytes of format version 1, under fixed keys. They only change when a
//! format does, and then the old files stay beside the new. `UPDATE_GOLDEN=1` writes them.

use crate::{
    data::{control, every_message},
    samples::{Segment, change, data_key, hash_key, header, marker, split},
};
use bytes::Bytes;
use leeward_model::{Change, Lsn};
use leeward_wire::{
    data::DataMessage,
    frame::Decoder,
    hash::{extent_and_block_hashes, extent_hash, zero_extent_hash},
    keys::{footer_mac_key, hint_mac_key, mac, manifest_mac_key},
    marker::{decode_marker, encode_marker},
    record::{Codec, RECORD_HEADER_BYTES},
    seal::{Level, Opener, Sealer},
    segment::{SegmentHeader, decode_footer, encode_footer},
};
use std::{fmt::Write as _, fs, path::PathBuf};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"))
}

fn to_hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(out, "{byte:02x}").expect("a string takes all");
        }
        out.push('\n');
    }
    out
}

fn read(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(path(name))
        .unwrap_or_else(|error| panic!("could not read golden file {name}: {error}"));
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| std::str::from_utf8(pair).map(|pair| u8::from_str_radix(pair, 16));
    digits.chunks(2).map(|pair| byte(pair).expect("ASCII").expect("two digits")).collect()
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1")
}

/// Compares `bytes` with the golden file, or writes it; returns the file's bytes.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    if updating() {
        fs::write(path(name), to_hex(bytes)).expect("the folder is writable");
    }
    let expected = read(name);
    assert!(bytes == expected, "{name} is not what the golden file has:\n{}", to_hex(bytes));
    expected
}

#[test]
fn hashes_and_macs_are_those_of_version_1() {
    let block = [0x5a; 4096];
    let parts = [
        extent_hash(&hash_key(), &block).0,
        zero_extent_hash(&hash_key()).0,
        mac(&footer_mac_key(&data_key()), b"golden"),
        mac(&manifest_mac_key(&data_key()), b"golden"),
        mac(&hint_mac_key(&data_key()), b"golden"),
    ];

    let extent = [&block[..], &vec![0; 65_536 - block.len()]].concat();
    let (_, blocks) = extent_and_block_hashes(&hash_key(), &extent);

    golden("hashes", &[&parts.concat()[..], &blocks.concat()].concat());
}

#[test]
fn a_segment_header_is_that_of_version_1() {
    let file = golden("segment-header", &header().encode());

    assert_eq!(SegmentHeader::decode(&file), Ok(header()));
    golden("segment-header-hash", &header().hash());
}

#[test]
fn records_are_those_of_version_1() {
    let mut sealer = Sealer::new(&data_key(), header());
    let empty = Change { data: Bytes::new(), ..change(0x8001, 0) };

    let raw = sealer.seal_change(Lsn(1000), &change(0b10, 0x30), Level::Raw);
    let zero = sealer.seal_change(Lsn(1001), &empty, Level::Zstd(1));
    let marker_record = sealer.seal_marker(Lsn(1002), &marker());

    golden("record-raw", &raw);
    golden("record-zero", &zero);
    let record = golden("record-marker", &marker_record);
    let (record_header, stored) = split(&record);
    let opened = Opener::new(&data_key(), &header()).open_marker(
        &record_header,
        record.first_chunk().unwrap(),
        stored,
    );
    assert_eq!(opened, Ok(marker()));
}

#[test]
fn a_compressed_record_of_version_1_opens() {
    // Other versions of zstd compress to other bytes, so this file is opened and not compared.
    let change = change(0xffff, 0x30);
    if updating() {
        let record =
            Sealer::new(&data_key(), header()).seal_change(Lsn(1000), &change, Level::Zstd(1));
        fs::write(path("record-zstd"), to_hex(&record)).expect("the folder is writable");
    }
    let record = read("record-zstd");
    let (record_header, stored) = split(&record);

    let opened = Opener::new(&data_key(), &header()).open_change(
        &record_header,
        record.first_chunk().unwrap(),
        stored,
    );

    assert_eq!(record_header.codec, Codec::Zstd);
    assert!(stored.len() < 1000 && record.len() == RECORD_HEADER_BYTES + stored.len());
    assert_eq!(opened, Ok(change.data));
}

#[test]
fn a_marker_is_that_of_version_1() {
    let file = golden("marker", &encode_marker(&marker()).unwrap());

    assert_eq!(decode_marker(&file), Ok(marker()));
}

#[test]
fn a_footer_is_that_of_version_1() {
    // Raw and zero records, so that the lengths do not hang on the version of zstd.
    let mut sealer = Sealer::new(&data_key(), header());
    let mut segment = Segment::begin(&header());
    for mask in [0b11, 0b1] {
        let record = sealer.seal_change(sealer.next_lsn(), &change(mask, 1), Level::Raw);
        segment.append(&record);
    }
    let record = sealer.seal_marker(sealer.next_lsn(), &marker());
    segment.append(&record);
    let key = footer_mac_key(&data_key());

    let file = golden("footer", &encode_footer(&segment.entries, &key, &header().hash()));

    let file_len = (segment.bytes.len() + file.len()) as u64;
    let footer = decode_footer(&file, file_len, &key, &header().hash()).unwrap();
    assert_eq!(footer.entries.len(), 3);
    assert_eq!(footer.last_lsn, Lsn(1002));
}

#[test]
fn frames_are_those_of_version_1() {
    golden("frame-control", &control().1);
    for (name, message) in every_message() {
        let file = golden(&format!("frame-{name}"), &message.to_frame());

        let mut decoder = Decoder::new();
        decoder.push(&file);
        let frame = decoder.pop().unwrap().unwrap();
        assert_eq!(DataMessage::from_frame(frame), Ok(message), "{name}");
    }
}
