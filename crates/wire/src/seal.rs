//! Seals changes and markers into records, and opens them: AES-256-GCM and checksum around what
//! [`crate::codec`] packed. Does not number records by itself beyond checking that the caller
//! leaves no gap and repeats none.

pub use crate::codec::{Compression, Level, PackedChange, QueueDepth};
use crate::{
    hash::ZEROS,
    keys::{DataKey, SegmentKeys},
    marker::{MarkerError, decode_marker, encode_marker},
    record::{
        Codec, MARKER_DISK, MARKER_EXTENT, RECORD_HEADER_BYTES, RecordError, RecordHeader,
        RecordKind, TAG_BYTES, check_crc, put_crc, without_crc,
    },
    segment::SegmentHeader,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::Bytes;
use leeward_model::{BlockMask, Change, ExtentHash, Lsn, Marker};
use std::{cell::RefCell, fmt};
use thiserror::Error;
use zstd::bulk::Decompressor;

/// Seals the records of one segment, in the order of their LSNs.
pub struct Sealer {
    key: LessSafeKey,
    header: SegmentHeader,
    header_hash: [u8; 32],
    next: Lsn,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("header", &self.header).field("next", &self.next).finish()
    }
}

fn aead_key(key: &DataKey, header: &SegmentHeader) -> LessSafeKey {
    let keys = SegmentKeys::derive(key, header.segment);
    let key = UnboundKey::new(&AES_256_GCM, keys.aead()).expect("a key of 32 bytes");
    LessSafeKey::new(key)
}

/// The record's number in the segment, as 96 bits little-endian.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// What a payload is bound to: its segment's header and its own.
fn associated(header_hash: &[u8; 32], record: &[u8; RECORD_HEADER_BYTES]) -> Aad<[u8; 96]> {
    let mut bytes = [0; 32 + RECORD_HEADER_BYTES];
    bytes[..32].copy_from_slice(header_hash);
    bytes[32..].copy_from_slice(&without_crc(record));
    Aad::from(bytes)
}

impl Sealer {
    /// A sealer for a new segment.
    ///
    /// The segment's id must be fresh from the random generator: a second sealer for the same id
    /// and data key would seal other plaintext under the same nonces. After a restart, and after a
    /// broken session, draw a new id.
    pub fn new(key: &DataKey, header: SegmentHeader) -> Sealer {
        let (key, header_hash) = (aead_key(key, &header), header.hash());
        Sealer { key, header_hash, next: header.first_lsn, header }
    }

    /// The header of the segment.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The LSN that the next record has to have.
    pub fn next_lsn(&self) -> Lsn {
        self.next
    }

    /// Leaves out the numbers before `lsn`: they are never sealed in this segment. Only for a
    /// segment that is written anew without the records that nothing needs.
    ///
    /// # Panics
    /// When a number from `lsn` on was sealed already.
    pub fn leave_out_before(&mut self, lsn: Lsn) {
        assert!(lsn >= self.next, "no number is sealed twice");
        self.next = lsn;
    }

    /// Seals a change as the whole record: header, payload, tag.
    ///
    /// # Panics
    /// When `lsn` is not the next one (a number is never sealed twice), or when `change.data` is
    /// neither empty nor `change.mask.bytes()` long, or the mask is empty.
    pub fn seal_change(&mut self, lsn: Lsn, change: &Change, level: Level) -> Bytes {
        let packed = PackedChange::new(change, Compression::Fixed(level), QueueDepth::default());
        self.seal_packed(lsn, packed)
    }

    /// Seals a change that was packed before, as the whole record.
    ///
    /// # Panics
    /// When `lsn` is not the next one.
    pub fn seal_packed(&mut self, lsn: Lsn, packed: PackedChange) -> Bytes {
        let PackedChange { disk, extent, mask, hash, codec, record, .. } = packed;
        let header = RecordHeader {
            extent,
            disk,
            mask,
            codec,
            kind: RecordKind::Change,
            stored_len: (record.len() - RECORD_HEADER_BYTES + TAG_BYTES) as u32,
            lsn,
            hash,
        };
        self.seal(header, record)
    }

    /// Seals a marker as the whole record.
    ///
    /// # Panics
    /// When `lsn` is not the next one, or when the marker cannot be encoded: check it with
    /// [`crate::marker::check_marker`] where its parts enter the program.
    pub fn seal_marker(&mut self, lsn: Lsn, marker: &Marker) -> Bytes {
        let encoded = encode_marker(marker).expect("the marker was checked where it was made");
        let header = RecordHeader {
            extent: MARKER_EXTENT,
            disk: MARKER_DISK,
            mask: BlockMask::NONE,
            codec: Codec::Raw,
            kind: RecordKind::Marker,
            stored_len: (encoded.len() + TAG_BYTES) as u32,
            lsn,
            hash: ExtentHash([0; 32]),
        };
        let mut record = Vec::with_capacity(header.record_len());
        record.resize(RECORD_HEADER_BYTES, 0);
        record.extend_from_slice(&encoded);
        self.seal(header, record)
    }

    fn seal(&mut self, header: RecordHeader, mut record: Vec<u8>) -> Bytes {
        assert_eq!(header.lsn, self.next, "every number of a segment is sealed once, in order");
        self.next = header.lsn.next();
        let number = self.header.record_number(header.lsn).expect("it begins at the first LSN");
        let mut encoded = header.encode_without_crc();
        let aad = associated(&self.header_hash, &encoded);
        let payload = &mut record[RECORD_HEADER_BYTES..];
        let tag = self.key.seal_in_place_separate_tag(nonce(number), aad, payload);
        record.extend_from_slice(tag.expect("a record is far below AES-GCM's limit").as_ref());
        put_crc(&mut encoded, &record[RECORD_HEADER_BYTES..]);
        record[..RECORD_HEADER_BYTES].copy_from_slice(&encoded);
        Bytes::from(record)
    }
}

/// Why a record cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Header or payload are damaged.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The decoded header is not that of the bytes, or is of the other kind of record.
    #[error("the header given for record {lsn} is not that of its bytes or its kind")]
    Header {
        /// The record.
        lsn: Lsn,
    },
    /// The payload has another length than the header says.
    #[error("record {lsn} has {found} stored bytes, its header says {expected}")]
    Length {
        /// The record.
        lsn: Lsn,
        /// By the header.
        expected: u32,
        /// Bytes given.
        found: usize,
    },
    /// The record's LSN lies before the segment.
    #[error("record {lsn} cannot be in a segment that begins at {first}")]
    Place {
        /// The record.
        lsn: Lsn,
        /// The segment's first.
        first: Lsn,
    },
    /// Not sealed under this key, for this segment and number, with this header.
    #[error("record {lsn} does not authenticate: another key, another place, or forged")]
    Authentication {
        /// The record.
        lsn: Lsn,
    },
    /// The authentic payload does not decompress to the length that the mask says.
    #[error("record {lsn} does not decompress to {expected} bytes")]
    Decompress {
        /// The record.
        lsn: Lsn,
        /// Bytes of the mask's blocks.
        expected: usize,
    },
    /// The authentic payload is no marker.
    #[error("could not decode the marker of record {lsn}")]
    Marker {
        /// The record.
        lsn: Lsn,
        /// Why.
        source: MarkerError,
    },
}

/// Opens the records of one segment, in any order, from any thread.
pub struct Opener {
    key: LessSafeKey,
    header_hash: [u8; 32],
    first_lsn: Lsn,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("first_lsn", &self.first_lsn).finish_non_exhaustive()
    }
}

/// What unpacking needs. A context is 95 KiB: one a thread, not one a record.
struct Unpacking {
    /// What was decrypted and is still packed.
    plain: Vec<u8>,
    decompressor: Decompressor<'static>,
}

thread_local! {
    static UNPACKING: RefCell<Unpacking> = RefCell::new(Unpacking {
        plain: Vec::new(),
        decompressor: Decompressor::new().expect("zstd has memory for a context"),
    });
}

impl Opener {
    /// An opener for the segment with this header.
    pub fn new(key: &DataKey, header: &SegmentHeader) -> Opener {
        Opener {
            key: aead_key(key, header),
            header_hash: header.hash(),
            first_lsn: header.first_lsn,
        }
    }

    /// Opens a change: the blocks of its mask one after another, `header.mask.bytes()` bytes, with
    /// zeros expanded.
    ///
    /// `header` is the decoded `header_bytes`; `stored` the payload with its tag. The extent's hash
    /// is not checked, as the other blocks of the extent are elsewhere.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing of an unauthentic payload is returned.
    pub fn open_change(
        &self,
        header: &RecordHeader,
        header_bytes: &[u8; RECORD_HEADER_BYTES],
        stored: &[u8],
    ) -> Result<Bytes, OpenError> {
        let kind = RecordKind::Change;
        let expected = header.raw_len();
        if header.codec != Codec::Zstd {
            let mut plain = Vec::new();
            self.open(kind, header, header_bytes, stored, &mut plain)?;
            return Ok(match header.codec {
                Codec::Zero => Bytes::from_static(&ZEROS[..expected]),
                Codec::Raw | Codec::Zstd => Bytes::from(plain),
            });
        }
        UNPACKING.with_borrow_mut(|Unpacking { plain, decompressor }| {
            self.open(kind, header, header_bytes, stored, plain)?;
            // Not filled with zeros first: zstd writes to the spare room, and never beyond it.
            let mut out = Vec::with_capacity(expected);
            match decompressor.decompress_to_buffer(&plain[..], &mut out) {
                Ok(len) if len == expected => Ok(Bytes::from(out)),
                _ => Err(OpenError::Decompress { lsn: header.lsn, expected }),
            }
        })
    }

    /// Opens a change only as far as its packed form, to be sealed anew elsewhere. Arguments as for
    /// [`Self::open_change`].
    ///
    /// # Errors
    /// See [`OpenError`]; what the payload decompresses to is not looked at.
    pub fn open_packed(
        &self,
        header: &RecordHeader,
        header_bytes: &[u8; RECORD_HEADER_BYTES],
        stored: &[u8],
    ) -> Result<PackedChange, OpenError> {
        let mut plain = Vec::new();
        self.open(RecordKind::Change, header, header_bytes, stored, &mut plain)?;
        let RecordHeader { disk, extent, mask, hash, codec, .. } = *header;
        let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + plain.len() + TAG_BYTES);
        record.resize(RECORD_HEADER_BYTES, 0);
        record.extend_from_slice(&plain);
        let raw_len = if codec == Codec::Zero { 0 } else { header.raw_len() };
        Ok(PackedChange { disk, extent, mask, hash, codec, record, raw_len })
    }

    /// Opens a marker. Arguments as for [`Self::open_change`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_marker(
        &self,
        header: &RecordHeader,
        header_bytes: &[u8; RECORD_HEADER_BYTES],
        stored: &[u8],
    ) -> Result<Marker, OpenError> {
        let mut plain = Vec::new();
        self.open(RecordKind::Marker, header, header_bytes, stored, &mut plain)?;
        decode_marker(&plain).map_err(|source| OpenError::Marker { lsn: header.lsn, source })
    }

    fn open(
        &self,
        kind: RecordKind,
        header: &RecordHeader,
        header_bytes: &[u8; RECORD_HEADER_BYTES],
        stored: &[u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let lsn = header.lsn;
        let decoded = RecordHeader::decode(header_bytes)?;
        if decoded != *header || decoded.kind != kind {
            return Err(OpenError::Header { lsn });
        }
        if stored.len() != header.stored_len as usize {
            let expected = header.stored_len;
            return Err(OpenError::Length { lsn, expected, found: stored.len() });
        }
        check_crc(header_bytes, stored)?;
        let first = self.first_lsn;
        let number = lsn.0.checked_sub(first.0).ok_or(OpenError::Place { lsn, first })?;
        let (sealed, tag) = stored.split_at(stored.len() - TAG_BYTES);
        let aad = associated(&self.header_hash, header_bytes);
        plain.resize(sealed.len(), 0);
        self.key
            .open_separate_gather(nonce(number), aad, sealed, tag, plain)
            .map_err(|_| OpenError::Authentication { lsn })
    }
}

#[cfg(test)]
mod tests;
