//! The 64-byte header before every sealed payload, and its checksum. Sealing and opening payloads
//! is in [`crate::seal`].

use crate::{bytes_in::BytesIn, crc32c};
use leeward_model::{BlockMask, DiskNumber, EXTENT_BYTES, ExtentHash, ExtentNumber, Lsn};
use thiserror::Error;

/// Bytes of a record header.
pub const RECORD_HEADER_BYTES: usize = 64;
/// Bytes of the AEAD tag that ends every stored payload.
pub const TAG_BYTES: usize = 16;
/// The most bytes stored for a change: a whole extent that did not compress, and its tag.
pub const RECORD_PAYLOAD_MAX: usize = EXTENT_BYTES as usize + TAG_BYTES;
/// The most bytes stored for a marker, with its tag. A marker of a machine with 100 disks is below
/// 64 KiB; the rest is room for firmware variables.
pub const MARKER_PAYLOAD_MAX: usize = 1 << 20;
/// The most bytes of any record with its header.
pub const RECORD_BYTES_MAX: usize = RECORD_HEADER_BYTES + MARKER_PAYLOAD_MAX;

/// The first bytes of every record.
pub const RECORD_MAGIC: [u8; 4] = *b"LWR1";
const FLAG_MARKER: u8 = 1;
const CRC_AT: usize = 58;
const RESERVED_AT: usize = 62;
/// Disk number of a marker; no disk ever gets it.
pub const MARKER_DISK: DiskNumber = DiskNumber(u16::MAX);
/// Extent number of a marker.
pub const MARKER_EXTENT: ExtentNumber = ExtentNumber(u32::MAX);

/// How a payload was encoded before it was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// All zeros: nothing but the tag is stored.
    Zero = 1,
    /// One Zstandard frame.
    Zstd = 2,
}

impl Codec {
    pub(crate) fn from_byte(byte: u8) -> Option<Codec> {
        match byte {
            0 => Some(Codec::Raw),
            1 => Some(Codec::Zero),
            2 => Some(Codec::Zstd),
            _ => None,
        }
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// Blocks of one extent.
    Change,
    /// A consistency marker.
    Marker,
}

impl RecordKind {
    pub(crate) fn flags(self) -> u8 {
        match self {
            RecordKind::Change => 0,
            RecordKind::Marker => FLAG_MARKER,
        }
    }
    pub(crate) fn from_flags(flags: u8) -> Option<RecordKind> {
        match flags {
            0 => Some(RecordKind::Change),
            FLAG_MARKER => Some(RecordKind::Marker),
            _ => None,
        }
    }
}

/// A decoded record header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The extent; [`MARKER_EXTENT`] for a marker.
    pub extent: ExtentNumber,
    /// The disk; [`MARKER_DISK`] for a marker.
    pub disk: DiskNumber,
    /// The blocks carried: at least one, none for a marker.
    pub mask: BlockMask,
    /// How the payload is encoded.
    pub codec: Codec,
    /// Change or marker (the header's flags).
    pub kind: RecordKind,
    /// Bytes that follow the header, with the 16 of the tag.
    pub stored_len: u32,
    /// Place in the item's log, from 1.
    pub lsn: Lsn,
    /// Hash of the whole extent after this record; zeros for a marker.
    pub hash: ExtentHash,
}

/// Why 64 bytes are not a record header, or a record is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The magic is another.
    #[error("no record begins here: the magic is {found:02x?}")]
    Magic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// A field has a value that no writer writes.
    #[error("the record header's {field} cannot be {value}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Header or payload were changed after writing.
    #[error("the checksum of record {lsn} is {found:08x}, computed {computed:08x}")]
    Crc {
        /// The record's place as its header has it.
        lsn: Lsn,
        /// In the header.
        found: u32,
        /// Over header and payload.
        computed: u32,
    },
}

impl RecordHeader {
    /// Reads a header and checks that its fields fit one another. Does not check the CRC: that
    /// needs the payload, see [`check_crc`].
    ///
    /// # Errors
    /// [`RecordError::Magic`], [`RecordError::Field`].
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<RecordHeader, RecordError> {
        let mut fields = BytesIn(bytes);
        let whole = "the array has all fields";
        let magic: [u8; 4] = fields.array().expect(whole);
        if magic != RECORD_MAGIC {
            return Err(RecordError::Magic { found: magic });
        }
        let extent = ExtentNumber(fields.u32().expect(whole));
        let disk = DiskNumber(fields.u16().expect(whole));
        let mask = BlockMask(fields.u16().expect(whole));
        let (codec, flags) = (fields.u8().expect(whole), fields.u8().expect(whole));
        let codec = Codec::from_byte(codec).ok_or(field("codec", codec))?;
        let kind = RecordKind::from_flags(flags).ok_or(field("flags", flags))?;
        let stored_len = fields.u32().expect(whole);
        let lsn = Lsn(fields.u64().expect(whole));
        let hash = ExtentHash(fields.array().expect(whole));
        let reserved = u16::from_le_bytes([bytes[RESERVED_AT], bytes[RESERVED_AT + 1]]);
        let header = RecordHeader { extent, disk, mask, codec, kind, stored_len, lsn, hash };
        header.check()?;
        if reserved != 0 {
            return Err(field("reserved field", reserved));
        }
        Ok(header)
    }

    /// Bytes of the payload before compression: those of the mask's blocks; for a marker, of its
    /// encoding.
    pub fn raw_len(&self) -> usize {
        match self.kind {
            RecordKind::Change => self.mask.bytes() as usize,
            RecordKind::Marker => self.stored_len as usize - TAG_BYTES,
        }
    }

    /// Bytes of the whole record, header and payload.
    pub fn record_len(&self) -> usize {
        RECORD_HEADER_BYTES + self.stored_len as usize
    }

    /// The header with a CRC of zero: the form that is authenticated.
    ///
    /// # Panics
    /// When the fields do not fit one another: only a header that can be read is written.
    pub fn encode_without_crc(&self) -> [u8; RECORD_HEADER_BYTES] {
        self.check().expect("only a header that can be read is written");
        let mut out = [0; RECORD_HEADER_BYTES];
        out[0..4].copy_from_slice(&RECORD_MAGIC);
        out[4..8].copy_from_slice(&self.extent.0.to_le_bytes());
        out[8..10].copy_from_slice(&self.disk.0.to_le_bytes());
        out[10..12].copy_from_slice(&self.mask.0.to_le_bytes());
        out[12] = self.codec as u8;
        out[13] = self.kind.flags();
        out[14..18].copy_from_slice(&self.stored_len.to_le_bytes());
        out[18..26].copy_from_slice(&self.lsn.0.to_le_bytes());
        out[26..58].copy_from_slice(&self.hash.0);
        out
    }

    fn check(&self) -> Result<(), RecordError> {
        // The highest number is refused so that every record's LSN has a next one.
        if self.lsn.0 == 0 || self.lsn.0 == u64::MAX {
            return Err(field("LSN", self.lsn.0));
        }
        check_shape(self.disk, self.extent, self.mask, self.kind)?;
        check_length(self.mask, self.codec, self.kind, self.stored_len)
    }
}

fn field(field: &'static str, value: impl Into<u64>) -> RecordError {
    RecordError::Field { field, value: value.into() }
}

/// Checks that a place and a mask are those of a change or of a marker.
pub(crate) fn check_shape(
    disk: DiskNumber,
    extent: ExtentNumber,
    mask: BlockMask,
    kind: RecordKind,
) -> Result<(), RecordError> {
    match kind {
        RecordKind::Change if disk == MARKER_DISK => Err(field("disk of a change", disk.0)),
        RecordKind::Change if mask == BlockMask::NONE => Err(field("mask of a change", 0_u8)),
        RecordKind::Marker if disk != MARKER_DISK => Err(field("disk of a marker", disk.0)),
        RecordKind::Marker if extent != MARKER_EXTENT => Err(field("extent of a marker", extent.0)),
        RecordKind::Marker if mask != BlockMask::NONE => Err(field("mask of a marker", mask.0)),
        RecordKind::Change | RecordKind::Marker => Ok(()),
    }
}

/// Checks that a stored length is one that the codec can yield.
pub(crate) fn check_length(
    mask: BlockMask,
    codec: Codec,
    kind: RecordKind,
    stored_len: u32,
) -> Result<(), RecordError> {
    let tag = TAG_BYTES as u64;
    let (stored, raw) = (u64::from(stored_len), mask.bytes());
    let fits = match (kind, codec) {
        (RecordKind::Change, Codec::Raw) => stored == raw + tag,
        (RecordKind::Change, Codec::Zero) => stored == tag,
        (RecordKind::Change, Codec::Zstd) => stored > tag && stored < raw + tag,
        (RecordKind::Marker, Codec::Raw) => stored > tag && stored <= MARKER_PAYLOAD_MAX as u64,
        (RecordKind::Marker, codec) => return Err(field("codec of a marker", codec as u8)),
    };
    if fits { Ok(()) } else { Err(field("stored length", stored_len)) }
}

/// The header with the CRC of zero that the authenticated form has.
pub(crate) fn without_crc(bytes: &[u8; RECORD_HEADER_BYTES]) -> [u8; RECORD_HEADER_BYTES] {
    let mut out = *bytes;
    out[CRC_AT..RESERVED_AT].fill(0);
    out
}

/// CRC-32C over the 60 header bytes beside the CRC, then the stored payload.
pub(crate) fn record_crc(header: &[u8; RECORD_HEADER_BYTES], stored: &[u8]) -> u32 {
    crc32c(&[&header[..CRC_AT], &header[RESERVED_AT..], stored])
}

/// Writes the CRC into a header: the last thing done to a record.
pub(crate) fn put_crc(header: &mut [u8; RECORD_HEADER_BYTES], stored: &[u8]) {
    let crc = record_crc(header, stored);
    header[CRC_AT..RESERVED_AT].copy_from_slice(&crc.to_le_bytes());
}

/// Checks the CRC of a record. Needs no key; proves that nothing broke, not who wrote it.
///
/// # Errors
/// [`RecordError::Crc`].
pub fn check_crc(header: &[u8; RECORD_HEADER_BYTES], stored: &[u8]) -> Result<(), RecordError> {
    let found = header[CRC_AT..RESERVED_AT].try_into().map(u32::from_le_bytes).expect("4 bytes");
    let computed = record_crc(header, stored);
    if found == computed {
        return Ok(());
    }
    let lsn = Lsn(header[18..26].try_into().map(u64::from_le_bytes).expect("8 bytes"));
    Err(RecordError::Crc { lsn, found, computed })
}
