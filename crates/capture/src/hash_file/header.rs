//! The 4 KiB header of a hash file: to bytes and back. Its meaning is the parent module's.

use crate::pending::{array, get_position, get_u64, put_position};
use leeward_model::{DiskNumber, ItemId, Position};

/// Bytes before the first record.
pub(super) const HEADER_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"LWHASHF\n";
const VERSION: u16 = 1;
/// The used part is within one 512-byte sector; its checksum stands right after it.
const USED_BYTES: usize = 96;

/// What the records behind a header are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderState {
    /// Exactly what the target has at the label.
    Valid,
    /// Between the label and `next`: only the journal that leads there can finish them.
    Applying {
        /// The label after the journal.
        next: Position,
    },
    /// A rebuild has not finished.
    Building,
}

/// What a hash file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) item: ItemId,
    pub(super) disk: DiskNumber,
    /// Number of disks, hence of files, that have this label together.
    pub(super) disks: u16,
    /// The disk's size in bytes.
    pub(super) size: u64,
    pub(super) label: Position,
    pub(super) state: HeaderState,
}

impl Header {
    pub(super) fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let (state, next): (u16, _) = match self.state {
            HeaderState::Valid => (0, None),
            HeaderState::Applying { next } => (1, Some(next)),
            HeaderState::Building => (2, None),
        };
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.disk.0.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.disks.to_le_bytes());
        bytes[14..16].copy_from_slice(&state.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.item.to_bytes());
        bytes[32..40].copy_from_slice(&self.size.to_le_bytes());
        put_position(&mut bytes[40..64], Some(self.label));
        put_position(&mut bytes[64..88], next);
        let checksum = blake3::hash(&bytes[..USED_BYTES]);
        bytes[USED_BYTES..USED_BYTES + 32].copy_from_slice(checksum.as_bytes());
        bytes
    }

    /// Reads the form of [`Self::to_bytes`]; `None` when torn, foreign or of another version.
    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let stored: [u8; 32] = array(bytes, USED_BYTES);
        let sound = blake3::hash(&bytes[..USED_BYTES]) == blake3::Hash::from_bytes(stored);
        if !sound || bytes[..8] != *MAGIC || bytes[8..10] != VERSION.to_le_bytes() {
            return None;
        }
        let state = match u16::from_le_bytes(array(bytes, 14)) {
            0 => HeaderState::Valid,
            1 => HeaderState::Applying { next: get_position(&bytes[64..88]) },
            2 => HeaderState::Building,
            _ => return None,
        };
        Some(Header {
            item: ItemId::from_bytes(array(bytes, 16)),
            disk: DiskNumber(u16::from_le_bytes(array(bytes, 10))),
            disks: u16::from_le_bytes(array(bytes, 12)),
            size: get_u64(bytes, 32),
            label: get_position(&bytes[40..64]),
            state,
        })
    }
}
