//! Segments: header, footer and the scan of a segment that has no footer yet. Bytes only: files,
//! fsync and names are the store's.
//!
//! `header 4096 B | record * | footer entries | trailer 64 B`. Record numbers are LSN - first LSN:
//! within a segment LSNs have no gaps.

mod footer;
mod scan;

pub use footer::{
    FOOTER_BYTES_MAX, FOOTER_ENTRY_BYTES, FOOTER_TRAILER_BYTES, Footer, FooterEntry, FooterError,
    decode_footer, decode_sparse_footer, encode_footer, encode_sparse_footer, footer_len,
};
pub use scan::{Scan, ScanEnd, ScannedRecord, scan, scan_sparse};

use crate::{bytes_in::BytesIn, crc32c};
use leeward_model::{Epoch, ItemId, Lsn, SegmentId, TimelineId, UnixMillis, VaultId};
use thiserror::Error;

/// Bytes of a segment header: one disk block, so that the first record is aligned with it.
pub const SEGMENT_HEADER_BYTES: usize = 4096;
/// A segment is sealed when it has this many bytes (or is a minute old).
pub const SEGMENT_SEAL_BYTES: usize = 32 << 20;
/// Version of the segment format that this code writes, and the only one it reads.
pub const SEGMENT_VERSION: u16 = 1;

/// The first bytes of every segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"LWSEGMNT";
const FIELDS_BYTES: usize = 104;
const CRC_AT: usize = SEGMENT_HEADER_BYTES - 4;

/// What all records of a segment have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment's id, drawn at random by the sealer; its key is derived from it.
    pub segment: SegmentId,
    /// The item's vault.
    pub vault: VaultId,
    /// The item.
    pub item: ItemId,
    /// The timeline that the records belong to.
    pub timeline: TimelineId,
    /// The epoch in which the segment was opened.
    pub epoch: Epoch,
    /// Number of the data key that the segment key is derived from.
    pub key_version: u32,
    /// LSN of the first record, from 1.
    pub first_lsn: Lsn,
    /// When the sealer opened it, by the sealer's clock. For people.
    pub created_at: UnixMillis,
}

/// Why bytes are not a segment header.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SegmentError {
    /// Fewer bytes than a header has.
    #[error("a segment header has 4096 bytes, here are {found}")]
    Short {
        /// Bytes present.
        found: usize,
    },
    /// The magic is another.
    #[error("this is no segment: the magic is {found:02x?}")]
    Magic {
        /// The bytes found.
        found: [u8; 8],
    },
    /// Another version of the format.
    #[error("the segment has format version {found}, this program reads {SEGMENT_VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The header was changed after writing.
    #[error("the checksum of the segment header is {found:08x}, computed {computed:08x}")]
    Crc {
        /// In the header.
        found: u32,
        /// Over the header.
        computed: u32,
    },
    /// Bytes that have to be zero are not.
    #[error("byte {at} of the segment header has to be zero")]
    Padding {
        /// The first such byte.
        at: usize,
    },
    /// The first LSN is 0: LSNs begin at 1.
    #[error("the segment's first LSN is 0, LSNs begin at 1")]
    FirstLsn,
}

impl SegmentHeader {
    /// The header's bytes.
    ///
    /// # Panics
    /// When the first LSN is 0.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        assert_ne!(self.first_lsn, Lsn(0), "LSNs begin at 1");
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[0..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.key_version.to_le_bytes());
        out[16..32].copy_from_slice(&self.segment.to_bytes());
        out[32..48].copy_from_slice(&self.vault.to_bytes());
        out[48..64].copy_from_slice(&self.item.to_bytes());
        out[64..80].copy_from_slice(&self.timeline.to_bytes());
        out[80..88].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[88..96].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        out[96..104].copy_from_slice(&self.created_at.0.to_le_bytes());
        let crc = crc32c(&[&out[..CRC_AT]]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header from the first 4096 of `bytes`, which may be longer.
    ///
    /// # Errors
    /// See [`SegmentError`]. That the header is the writer's own is proved by the footer's MAC and
    /// by the records, which are sealed with its hash.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, SegmentError> {
        let short = SegmentError::Short { found: bytes.len() };
        let bytes: &[u8; SEGMENT_HEADER_BYTES] = bytes.first_chunk().ok_or(short)?;
        let mut fields = BytesIn(bytes);
        let whole = "the array has all fields";
        let magic = fields.array().expect(whole);
        if magic != SEGMENT_MAGIC {
            return Err(SegmentError::Magic { found: magic });
        }
        // The CRC comes first: a flipped bit of the version is damage, not another version.
        let found = bytes[CRC_AT..].try_into().map(u32::from_le_bytes).expect(whole);
        let computed = crc32c(&[&bytes[..CRC_AT]]);
        if found != computed {
            return Err(SegmentError::Crc { found, computed });
        }
        let version = fields.u16().expect(whole);
        if version != SEGMENT_VERSION {
            return Err(SegmentError::Version { found: version });
        }
        if let Some(at) = (10..12).chain(FIELDS_BYTES..CRC_AT).find(|at| bytes[*at] != 0) {
            return Err(SegmentError::Padding { at });
        }
        fields.take(2).expect(whole);
        let key_version = fields.u32().expect(whole);
        let header = SegmentHeader {
            segment: SegmentId::from_bytes(fields.array().expect(whole)),
            vault: VaultId::from_bytes(fields.array().expect(whole)),
            item: ItemId::from_bytes(fields.array().expect(whole)),
            timeline: TimelineId::from_bytes(fields.array().expect(whole)),
            epoch: Epoch(fields.u64().expect(whole)),
            key_version,
            first_lsn: Lsn(fields.u64().expect(whole)),
            created_at: UnixMillis(fields.i64().expect(whole)),
        };
        if header.first_lsn == Lsn(0) { Err(SegmentError::FirstLsn) } else { Ok(header) }
    }

    /// BLAKE3 of the encoded header: every record and the footer are bound to it.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }

    /// Number of the record with `lsn` within this segment, the nonce it is sealed under; none when
    /// `lsn` lies before the segment.
    pub fn record_number(&self, lsn: Lsn) -> Option<u64> {
        lsn.0.checked_sub(self.first_lsn.0)
    }
}
