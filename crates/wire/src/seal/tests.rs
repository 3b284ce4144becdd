//! Tests of [`super`] that need a sealer which breaks the rules; the others are in `tests/wire`.

use super::*;
use leeward_model::{
    BLOCK_BYTES, DiskNumber, Epoch, ExtentNumber, ItemId, SegmentId, TimelineId, UnixMillis,
    VaultId,
};

fn segment() -> SegmentHeader {
    SegmentHeader {
        segment: SegmentId::from_u128(1),
        vault: VaultId::from_u128(2),
        item: ItemId::from_u128(3),
        timeline: TimelineId::from_u128(4),
        epoch: Epoch(1),
        key_version: 1,
        first_lsn: Lsn(1),
        created_at: UnixMillis(0),
    }
}

const BLOCK: usize = BLOCK_BYTES as usize;

/// Seals `payload` as if it were the Zstandard form of one block, then opens it.
fn open_forged(payload: &[u8]) -> Result<Bytes, OpenError> {
    let key = DataKey::from_bytes([1; 32]);
    let mut record = vec![0; RECORD_HEADER_BYTES];
    record.extend_from_slice(payload);
    let header = RecordHeader {
        extent: ExtentNumber(0),
        disk: DiskNumber(0),
        mask: BlockMask(1),
        codec: Codec::Zstd,
        kind: RecordKind::Change,
        stored_len: (payload.len() + TAG_BYTES) as u32,
        lsn: Lsn(1),
        hash: ExtentHash([0; 32]),
    };
    let record = Sealer::new(&key, segment()).seal(header, record);
    let (header_bytes, stored) = record.split_first_chunk().unwrap();
    Opener::new(&key, &segment()).open_change(&header, header_bytes, stored)
}

#[test]
fn an_authentic_payload_that_decompresses_to_another_length_is_refused() {
    let expected = OpenError::Decompress { lsn: Lsn(1), expected: BLOCK };
    let frame = |len: usize| zstd::bulk::compress(&vec![7; len], 1).unwrap();
    // 64 MiB of equal bytes in a few KiB: of these no more than a block is ever written.
    let bomb = frame(64 << 20);
    assert!(bomb.len() <= BLOCK, "{} bytes", bomb.len());

    assert_eq!(open_forged(&frame(BLOCK)), Ok(Bytes::from(vec![7; BLOCK])));
    assert_eq!(open_forged(&frame(BLOCK - 1)), Err(expected.clone()));
    assert_eq!(open_forged(&frame(BLOCK + 1)), Err(expected.clone()));
    assert_eq!(open_forged(&bomb[..bomb.len().min(BLOCK - 1)]), Err(expected.clone()));
    assert_eq!(open_forged(b"no frame of zstd"), Err(expected));
}
