//! The plaintext of a marker record: point, cut, disk table, machine. Sealing is in
//! [`crate::seal`].

use crate::{
    bytes_in::{BytesIn, Short},
    record::{MARKER_PAYLOAD_MAX, TAG_BYTES},
};
use leeward_model::{DiskEntry, DiskNumber, Marker, PointId, PointKind, UnixMillis};
use std::str::from_utf8;
use thiserror::Error;

/// Version of the marker's form.
pub const MARKER_VERSION: u16 = 1;
/// The most bytes of an encoded marker.
pub const MARKER_BYTES_MAX: usize = MARKER_PAYLOAD_MAX - TAG_BYTES;
/// The most disks of a marker. Far more than a machine can have.
pub const MARKER_DISKS_MAX: usize = 1024;
/// The most bytes of a disk's id or serial in a marker.
pub const MARKER_TEXT_MAX: usize = 255;

const TAG_MACHINE: u16 = 1;

/// Why a marker cannot be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MarkerError {
    /// The bytes end inside a field.
    #[error("the marker ends inside a field")]
    Short,
    /// Bytes follow the marker's end.
    #[error("{count} bytes follow the marker's end")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// Another version of the form.
    #[error("the marker has version {found}, this program reads {MARKER_VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// A field has a value that no writer writes.
    #[error("the marker's {field} cannot be {value}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A part is longer than a marker allows.
    #[error("the marker's {field} has {found} bytes or entries, at most {max} are allowed")]
    TooLong {
        /// Name of the part.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The most.
        max: usize,
    },
    /// A disk's id or serial is not UTF-8.
    #[error("the {field} of a disk in the marker is not UTF-8")]
    Text {
        /// Name of the field.
        field: &'static str,
    },
    /// The machine's JSON does not parse.
    #[error("the marker's machine description does not parse: {reason}")]
    Machine {
        /// The parser's words.
        reason: String,
    },
}

impl From<Short> for MarkerError {
    fn from(_: Short) -> MarkerError {
        MarkerError::Short
    }
}

/// Checks that a marker can be encoded: its texts and tables are within bounds.
///
/// # Errors
/// [`MarkerError::TooLong`], and [`MarkerError::Field`] for a disk number that no disk may have.
pub fn check_marker(marker: &Marker) -> Result<(), MarkerError> {
    encode_marker(marker).map(drop)
}

/// The marker's bytes.
///
/// # Errors
/// As [`check_marker`].
pub fn encode_marker(marker: &Marker) -> Result<Vec<u8>, MarkerError> {
    let disks = marker.disks.len();
    check_len("disk table", disks, MARKER_DISKS_MAX)?;
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(&MARKER_VERSION.to_le_bytes());
    out.extend_from_slice(&[kind_byte(marker.kind), 0]);
    out.extend_from_slice(&marker.point.to_bytes());
    out.extend_from_slice(&marker.cut_at.0.to_le_bytes());
    // A machine with SeaBIOS has no variables to hash: zeros. UEFI gets its hash with its issue.
    out.extend_from_slice(&[0; 32]);
    out.extend_from_slice(&(disks as u32).to_le_bytes());
    for disk in &marker.disks {
        encode_disk(disk, &mut out)?;
    }
    let machine = serde_json::to_vec(&marker.machine).expect("a plain struct serializes");
    out.extend_from_slice(&TAG_MACHINE.to_le_bytes());
    out.extend_from_slice(&u32::try_from(machine.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&machine);
    check_len("encoding", out.len(), MARKER_BYTES_MAX)?;
    Ok(out)
}

/// Reads a marker.
///
/// # Errors
/// See [`MarkerError`]. Reads no more and allocates no more than `bytes` are long, but for the
/// fixed part of the disk table's entries.
pub fn decode_marker(bytes: &[u8]) -> Result<Marker, MarkerError> {
    check_len("encoding", bytes.len(), MARKER_BYTES_MAX)?;
    let mut fields = BytesIn(bytes);
    let version = fields.u16()?;
    if version != MARKER_VERSION {
        return Err(MarkerError::Version { found: version });
    }
    let kind = fields.u8()?;
    let kind = kind_from(kind).ok_or(bad("kind", kind))?;
    zero("reserved byte", fields.u8()?)?;
    let point = PointId::from_bytes(fields.array()?);
    let cut_at = UnixMillis(fields.i64()?);
    for byte in fields.array::<32>()? {
        zero("firmware hash", byte)?;
    }
    let count = fields.u32()? as usize;
    check_len("disk table", count, MARKER_DISKS_MAX)?;
    let mut disks: Vec<DiskEntry> = Vec::new();
    for _ in 0..count {
        disks.push(decode_disk(&mut fields)?);
    }
    let tag = fields.u16()?;
    if tag != TAG_MACHINE {
        return Err(bad("part", tag));
    }
    let length = fields.u32()? as usize;
    let machine = serde_json::from_slice(fields.take(length)?)
        .map_err(|error| MarkerError::Machine { reason: error.to_string() })?;
    if !fields.0.is_empty() {
        return Err(MarkerError::Trailing { count: fields.0.len() });
    }
    Ok(Marker { point, kind, cut_at, disks, machine })
}

fn encode_disk(disk: &DiskEntry, out: &mut Vec<u8>) -> Result<(), MarkerError> {
    if disk.number.0 == u16::MAX {
        return Err(bad("disk number", disk.number.0));
    }
    out.extend_from_slice(&disk.number.0.to_le_bytes());
    out.extend_from_slice(&disk.size.to_le_bytes());
    out.extend_from_slice(&disk.block_bytes.to_le_bytes());
    for (field, text) in [("disk id", &disk.id), ("disk serial", &disk.serial)] {
        check_len(field, text.len(), MARKER_TEXT_MAX)?;
        out.push(text.len() as u8);
        out.extend_from_slice(text.as_bytes());
    }
    Ok(())
}

fn decode_disk(fields: &mut BytesIn<'_>) -> Result<DiskEntry, MarkerError> {
    let number = DiskNumber(fields.u16()?);
    if number.0 == u16::MAX {
        return Err(bad("disk number", number.0));
    }
    let size = fields.u64()?;
    let block_bytes = fields.u32()?;
    let mut text = |field| {
        let length = fields.u8()?;
        let bytes = fields.take(length.into())?;
        from_utf8(bytes).map(str::to_owned).map_err(|_| MarkerError::Text { field })
    };
    let (id, serial) = (text("id")?, text("serial")?);
    Ok(DiskEntry { number, id, serial, size, block_bytes })
}

fn kind_byte(kind: PointKind) -> u8 {
    match kind {
        PointKind::CrashConsistent => 1,
        PointKind::Final => 2,
        PointKind::ApplicationConsistent => 3,
    }
}

fn kind_from(byte: u8) -> Option<PointKind> {
    match byte {
        1 => Some(PointKind::CrashConsistent),
        2 => Some(PointKind::Final),
        3 => Some(PointKind::ApplicationConsistent),
        _ => None,
    }
}

fn bad(field: &'static str, value: impl Into<u64>) -> MarkerError {
    MarkerError::Field { field, value: value.into() }
}

fn zero(field: &'static str, byte: u8) -> Result<(), MarkerError> {
    if byte == 0 { Ok(()) } else { Err(bad(field, byte)) }
}

fn check_len(field: &'static str, found: usize, max: usize) -> Result<(), MarkerError> {
    if found <= max { Ok(()) } else { Err(MarkerError::TooLong { field, found, max }) }
}
