//! The replication protocol and the forms that data have at rest: frames, messages, sealed records,
//! segments. Sans-I/O: bytes in, bytes out. It opens no file and no socket, reads no clock and
//! draws no randomness; segment ids and times are arguments.
//!
//! Byte by byte: `docs/formats/segment.md` (what is stored) and `docs/formats/wire.md` (what is
//! sent).

pub mod audit;
mod bytes_in;
pub mod capacity;
pub mod codec;
pub mod credits;
pub mod data;
pub mod frame;
pub mod hash;
pub mod keys;
pub mod marker;
pub mod message;
pub mod record;
pub mod seal;
pub mod segment;

/// CRC-32C over `parts`, one after another.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}
