//! Frames: how messages are cut from the byte stream of a session. Knows kinds and lengths, not
//! what is in them: see [`crate::data`] and [`crate::message`].

use crate::{
    bytes_in::BytesIn,
    crc32c,
    record::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES, TAG_BYTES},
    segment::SEGMENT_HEADER_BYTES,
};
use bytes::{Bytes, BytesMut};
use std::fmt;
use thiserror::Error;

/// Bytes before every payload.
pub const FRAME_HEADER_BYTES: usize = 16;
/// The first bytes of every frame; the digit is the version of the frame's form.
pub const FRAME_MAGIC: [u8; 4] = *b"LWF1";

/// The most bytes of a control message. The largest is an answer with a picture: 8 MiB of PNG in
/// base64.
const CONTROL_MAX: usize = 16 << 20;
/// The most bytes of a rare JSON message.
const JSON_MAX: usize = 64 << 10;
/// The most extents that one [`Kind::HashesRequest`] asks for: 4 GiB of disk, 2 MiB of hashes.
pub const HASHES_MAX: u32 = 65_536;
/// The most extents that one [`Kind::BlockHashesRequest`] names: 256 MiB of disk, 1 MiB of hashes.
pub const BLOCK_HASHES_MAX: u32 = 4_096;
/// Bytes of an extent's block hashes: 16 bytes for each of its 16 blocks.
pub const BLOCK_HASHES_BYTES: usize = 16 * 16;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $min:expr, $max:expr;)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Kind {$(
            $(#[$doc])*
            $name = $number,
        )*}

        impl Kind {
            /// Every kind, ascending.
            pub const ALL: &[Kind] = &[$(Kind::$name),*];

            fn from_number(number: u16) -> Option<Kind> {
                match number {
                    $($number => Some(Kind::$name),)*
                    _ => None,
                }
            }

            /// The fewest bytes of a payload of this kind.
            pub const fn payload_min(self) -> usize {
                match self { $(Kind::$name => $min,)* }
            }

            /// The most bytes of a payload of this kind; a longer frame ends the session before
            /// its payload is read.
            pub const fn payload_max(self) -> usize {
                match self { $(Kind::$name => $max,)* }
            }
        }
    };
}

kinds! {
    /// JSON of [`crate::message::ToHost`] or [`crate::message::ToServer`].
    Control = 1, 2, CONTROL_MAX;
    /// First frame of a data session, from the end that dialled: JSON.
    DataHello = 16, 2, JSON_MAX;
    /// The store's end takes the session: JSON.
    DataWelcome = 17, 2, JSON_MAX;
    /// The store's end refuses the session and closes it: JSON of a problem.
    DataRefused = 18, 2, JSON_MAX;
    /// The records that follow belong to this new segment: its header.
    SegmentOpen = 19, SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES;
    /// One sealed record.
    Record = 20, RECORD_HEADER_BYTES + TAG_BYTES, RECORD_BYTES_MAX;
    /// Everything up to an LSN is to be made durable, and a point if asked: JSON.
    Commit = 21, 2, JSON_MAX;
    /// What is durable, and the window: 16 bytes.
    Ack = 22, 16, 16;
    /// A commit is done: JSON.
    Committed = 23, 2, JSON_MAX;
    /// Asks for extent hashes of the newest durable state: 12 bytes.
    HashesRequest = 24, 12, 12;
    /// The hashes: 12 bytes and 32 for each.
    Hashes = 25, 12 + 32, 12 + 32 * HASHES_MAX as usize;
    /// To be answered by a pong with the same 8 bytes.
    Ping = 26, 8, 8;
    /// The answer to a ping.
    Pong = 27, 8, 8;
    /// Asks for the block hashes of some extents: 8 bytes and 4 for each.
    BlockHashesRequest = 28, 8 + 4, 8 + 4 * BLOCK_HASHES_MAX as usize;
    /// The block hashes: 8 bytes and 256 for each extent.
    BlockHashes = 29, 8 + BLOCK_HASHES_BYTES, 8 + BLOCK_HASHES_BYTES * BLOCK_HASHES_MAX as usize;
    /// What an end says of the item's hash key: JSON.
    HashKey = 30, 2, JSON_MAX;
    /// What is said of the store's stored bytes: JSON.
    Audit = 31, 2, JSON_MAX;
    /// A host asks to be taken into the fabric: JSON.
    JoinRequest = 32, 2, JSON_MAX;
    /// The answer to a join request: JSON.
    JoinAnswer = 33, 2, JSON_MAX;
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} ({})", *self as u16)
    }
}

/// A frame that came in whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its payload, within the kind's bounds.
    pub payload: Bytes,
}

/// Why the peer's bytes are not frames. The session ends: there is no way back into step.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The peer speaks HTTP.
    #[error("the peer speaks HTTP, this port takes Leeward sessions")]
    Http,
    /// The peer speaks TLS inside the session.
    #[error("the peer sends a TLS record where a frame has to begin")]
    Tls,
    /// The magic is another.
    #[error("no frame begins with {found:02x?}")]
    Magic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// A kind that this version does not know.
    #[error("frames of kind {number} are unknown")]
    Kind {
        /// Its number.
        number: u16,
    },
    /// Flags that this version does not know.
    #[error("the flags {flags:04x} of a {kind} frame are unknown")]
    Flags {
        /// The frame's kind.
        kind: Kind,
        /// The flags.
        flags: u16,
    },
    /// A payload outside its kind's bounds.
    #[error("a {kind} frame cannot have a payload of {length} bytes")]
    Length {
        /// The frame's kind.
        kind: Kind,
        /// Bytes announced.
        length: u32,
    },
    /// The frame was changed on its way.
    #[error("the checksum of a {kind} frame is {found:08x}, computed {computed:08x}")]
    Crc {
        /// The frame's kind.
        kind: Kind,
        /// In the header.
        found: u32,
        /// Over header and payload.
        computed: u32,
    },
}

/// The header to be sent before `payload`: lets a large payload go out without a copy.
///
/// # Panics
/// When the payload is outside its kind's bounds.
pub fn encode_header(kind: Kind, payload: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    let length = payload.len();
    let allowed = kind.payload_min()..=kind.payload_max();
    assert!(allowed.contains(&length), "a {kind} frame has {allowed:?} bytes, not {length}");
    let mut out = [0; FRAME_HEADER_BYTES];
    out[0..4].copy_from_slice(&FRAME_MAGIC);
    out[4..6].copy_from_slice(&(kind as u16).to_le_bytes());
    out[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    let crc = crc32c(&[&out[..12], payload]);
    out[12..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// A whole frame.
///
/// # Panics
/// As [`encode_header`].
pub fn encode(kind: Kind, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(FRAME_HEADER_BYTES + payload.len());
    out.extend_from_slice(&encode_header(kind, payload));
    out.extend_from_slice(payload);
    out.freeze()
}

/// Cuts frames from bytes as they come in.
///
/// Holds at most what was pushed and not popped: the caller pops until none is left before it
/// pushes again, then that is below one frame and one push.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    failed: Option<FrameError>,
}

impl Decoder {
    /// A decoder at the begin of a stream.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes bytes that came in.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame; none when more bytes are needed.
    ///
    /// # Errors
    /// See [`FrameError`]; once failed it stays so.
    pub fn pop(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.read().inspect_err(|error| {
            self.buffer = BytesMut::new();
            self.failed = Some(error.clone());
        })
    }

    /// Whether the stream could end here: no frame is half here.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    fn read(&mut self) -> Result<Option<Frame>, FrameError> {
        check_begin(&self.buffer)?;
        let Some(header) = self.buffer.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let (kind, length) = read_header(header)?;
        let whole = FRAME_HEADER_BYTES + length as usize;
        if self.buffer.len() < whole {
            self.buffer.reserve(whole - self.buffer.len());
            return Ok(None);
        }
        let frame = self.buffer.split_to(whole).freeze();
        let found = BytesIn(&frame[12..16]).u32().expect("4 bytes");
        let computed = crc32c(&[&frame[..12], &frame[FRAME_HEADER_BYTES..]]);
        if found != computed {
            return Err(FrameError::Crc { kind, found, computed });
        }
        Ok(Some(Frame { kind, payload: frame.slice(FRAME_HEADER_BYTES..) }))
    }
}

/// Refuses a stream by its first bytes, also when they are fewer than a header.
fn check_begin(bytes: &[u8]) -> Result<(), FrameError> {
    const HTTP: [&[u8; 4]; 9] =
        [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"PRI ", b"HTTP"];
    let Some(found) = bytes.first_chunk::<4>() else {
        return Ok(());
    };
    match found {
        found if *found == FRAME_MAGIC => Ok(()),
        found if HTTP.contains(&found) => Err(FrameError::Http),
        // A TLS record: alert or handshake, then the record version 3.x.
        [0x15 | 0x16, 3, 0..=4, _] => Err(FrameError::Tls),
        found => Err(FrameError::Magic { found: *found }),
    }
}

fn read_header(header: &[u8; FRAME_HEADER_BYTES]) -> Result<(Kind, u32), FrameError> {
    let mut fields = BytesIn(&header[4..]);
    let whole = "the array has all fields";
    let number = fields.u16().expect(whole);
    let kind = Kind::from_number(number).ok_or(FrameError::Kind { number })?;
    let flags = fields.u16().expect(whole);
    if flags != 0 {
        return Err(FrameError::Flags { kind, flags });
    }
    let length = fields.u32().expect(whole);
    if (length as usize) < kind.payload_min() || length as usize > kind.payload_max() {
        return Err(FrameError::Length { kind, length });
    }
    Ok((kind, length))
}
