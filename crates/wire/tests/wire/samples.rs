//! Fixed keys, headers, changes and markers, and strategies for arbitrary ones.

use bytes::Bytes;
use leeward_model::{
    BlockMask, Change, DiskEntry, DiskFormat, DiskNumber, DiskSpec, Epoch, ExtentHash,
    ExtentNumber, Firmware, ItemId, Lsn, MachineSpec, Marker, NicSpec, PointId, PointKind, Probe,
    SegmentId, TimelineId, UnixMillis, VaultId,
};
use leeward_wire::{
    keys::{DataKey, HashKey},
    record::{RECORD_HEADER_BYTES, RecordHeader},
    seal::{Level, Sealer},
    segment::{FooterEntry, SEGMENT_HEADER_BYTES, SegmentHeader},
};
use proptest::prelude::*;

/// Proptest with `cases` cases; a failure prints its input and writes no file.
pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

pub fn data_key() -> DataKey {
    DataKey::from_bytes(std::array::from_fn(|at| at as u8))
}

pub fn hash_key() -> HashKey {
    HashKey::from_bytes(std::array::from_fn(|at| 0x80 | at as u8))
}

pub fn header() -> SegmentHeader {
    SegmentHeader {
        segment: SegmentId::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        vault: VaultId::from_u128(0x1112_1314_1516_1718_191a_1b1c_1d1e_1f20),
        item: ItemId::from_u128(0x2122_2324_2526_2728_292a_2b2c_2d2e_2f30),
        timeline: TimelineId::from_u128(0x3132_3334_3536_3738_393a_3b3c_3d3e_3f40),
        epoch: Epoch(0x41),
        key_version: 0x42,
        first_lsn: Lsn(1000),
        created_at: UnixMillis(1_763_700_000_123),
    }
}

/// A change of `mask` whose blocks are filled with `fill`, the block's index added.
pub fn change(mask: u16, fill: u8) -> Change {
    let mask = BlockMask(mask);
    let data: Vec<u8> = mask.iter().flat_map(|block| [fill + block as u8; 4096]).collect();
    Change {
        disk: DiskNumber(1),
        extent: ExtentNumber(0x0001_0203),
        mask,
        data: Bytes::from(data),
        hash: ExtentHash([0xab; 32]),
    }
}

/// A block that does not compress.
pub fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

pub fn machine() -> MachineSpec {
    MachineSpec {
        name: "web01".into(),
        memory_mib: 512,
        cpus: 2,
        firmware: Firmware::Bios,
        disks: vec![DiskSpec {
            number: DiskNumber(0),
            id: "root".into(),
            serial: "lw-root".into(),
            size: 1 << 30,
            block_bytes: 512,
            format: DiskFormat::Qcow2,
            path: "root.qcow2".into(),
        }],
        nics: vec![NicSpec {
            mac: "52:54:00:00:00:01".into(),
            network: "user".into(),
            address: None,
        }],
        display: true,
        probe: Probe {
            console_contains: Some("ok".into()),
            console_must_not_contain: None,
            timeout_seconds: 60,
        },
    }
}

pub fn marker() -> Marker {
    let disk = |number, id: &str, serial: &str, size, block_bytes| DiskEntry {
        number: DiskNumber(number),
        id: id.into(),
        serial: serial.into(),
        size,
        block_bytes,
    };
    Marker {
        point: PointId::from_u128(0x5152_5354_5556_5758_595a_5b5c_5d5e_5f60),
        kind: PointKind::CrashConsistent,
        cut_at: UnixMillis(1_763_700_001_456),
        disks: vec![
            disk(0, "root", "lw-root", 1 << 30, 512),
            disk(7, "data", "lw-data", (5 << 30) + 512, 4096),
        ],
        machine: machine(),
    }
}

/// A segment of changes and a marker: its bytes without footer, and the footer's entries.
pub struct Segment {
    pub bytes: Vec<u8>,
    pub entries: Vec<FooterEntry>,
}

impl Segment {
    pub fn begin(header: &SegmentHeader) -> Segment {
        Segment { bytes: header.encode().to_vec(), entries: Vec::new() }
    }

    pub fn append(&mut self, record: &[u8]) {
        let (header, _) = split(record);
        self.entries.push(FooterEntry::of(&header, self.bytes.len() as u32));
        self.bytes.extend_from_slice(record);
    }

    pub fn sample() -> Segment {
        let mut sealer = Sealer::new(&data_key(), header());
        let mut segment = Segment::begin(&header());
        for (at, (mask, extent)) in [(0b11, 9), (0b1, 3), (0b100, 9)].into_iter().enumerate() {
            let change = Change { extent: ExtentNumber(extent), ..change(mask, at as u8 + 1) };
            let record = sealer.seal_change(sealer.next_lsn(), &change, Level::Zstd(1));
            segment.append(&record);
        }
        let record = sealer.seal_marker(sealer.next_lsn(), &marker());
        segment.append(&record);
        assert_eq!(segment.entries[0].offset as usize, SEGMENT_HEADER_BYTES);
        segment
    }
}

/// A record's header and stored payload.
pub fn split(record: &[u8]) -> (RecordHeader, &[u8]) {
    let bytes: &[u8; RECORD_HEADER_BYTES] = record.first_chunk().expect("a whole record");
    let header = RecordHeader::decode(bytes).expect("a record of ours");
    (header, &record[RECORD_HEADER_BYTES..])
}

/// The record with the CRC that its bytes call for: what a forger without the key can do.
pub fn with_fixed_crc(mut record: Vec<u8>) -> Vec<u8> {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&record[..58]);
    digest.update(&record[62..]);
    record[58..62].copy_from_slice(&(digest.finalize() as u32).to_le_bytes());
    record
}

pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Contents of blocks: zeros, one value, noise.
fn block() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![0; 4096]),
        any::<u8>().prop_map(|fill| vec![fill; 4096]),
        any::<u8>().prop_map(|seed| noise(seed, 4096)),
    ]
}

pub fn any_change() -> impl Strategy<Value = Change> {
    let place = (0..u16::MAX, any::<u32>(), 1..=u16::MAX, any::<[u8; 32]>());
    (place, proptest::collection::vec(block(), 16)).prop_map(
        |((disk, extent, mask, hash), blocks)| {
            let count = mask.count_ones() as usize;
            let data = blocks[..count].concat();
            let data = if data.iter().all(|byte| *byte == 0) { Vec::new() } else { data };
            Change {
                disk: DiskNumber(disk),
                extent: ExtentNumber(extent),
                mask: BlockMask(mask),
                data: Bytes::from(data),
                hash: ExtentHash(hash),
            }
        },
    )
}

pub fn any_level() -> impl Strategy<Value = Level> {
    prop_oneof![Just(Level::Raw), prop::sample::select(vec![-7, -5, 1, 3]).prop_map(Level::Zstd)]
}

pub fn any_header() -> impl Strategy<Value = SegmentHeader> {
    let ids = (any::<u128>(), any::<u128>(), any::<u128>(), any::<u128>());
    (ids, any::<u64>(), any::<u32>(), 1..u64::MAX - 1000, any::<i64>()).prop_map(
        |((segment, vault, item, timeline), epoch, key_version, first, created)| SegmentHeader {
            segment: SegmentId::from_u128(segment),
            vault: VaultId::from_u128(vault),
            item: ItemId::from_u128(item),
            timeline: TimelineId::from_u128(timeline),
            epoch: Epoch(epoch),
            key_version,
            first_lsn: Lsn(first),
            created_at: UnixMillis(created),
        },
    )
}

pub fn any_marker() -> impl Strategy<Value = Marker> {
    let kind = prop::sample::select(vec![
        PointKind::CrashConsistent,
        PointKind::Final,
        PointKind::ApplicationConsistent,
    ]);
    let disk = (0..u16::MAX, ".{0,60}", ".{0,20}", any::<u64>(), any::<u32>()).prop_map(
        |(number, id, serial, size, block_bytes)| DiskEntry {
            number: DiskNumber(number),
            id,
            serial,
            size,
            block_bytes,
        },
    );
    let disks = proptest::collection::vec(disk, 0..5);
    (any::<u128>(), kind, any::<i64>(), disks, ".{0,20}").prop_map(
        |(point, kind, cut_at, disks, name)| Marker {
            point: PointId::from_u128(point),
            kind,
            cut_at: UnixMillis(cut_at),
            disks,
            machine: MachineSpec { name, ..machine() },
        },
    )
}
