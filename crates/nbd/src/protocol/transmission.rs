//! Messages of the transmission phase: requests, simple replies, and chunks of structured replies.
//!
//! Pure encoders and decoders. A reader takes [`REPLY_PREFIX_LEN`] bytes, learns from
//! [`ReplyHeader::rest_len`] how many more belong to the header, then decodes the whole header.

use bytes::{Buf, BufMut, Bytes};

use super::{
    CHUNK_MAGIC, Errno, Fields, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, WireError, chunk_kind, clip,
};

/// Bytes of a request without its data.
pub const REQUEST_LEN: usize = 28;
/// Bytes from which the kind of a reply is known.
pub const REPLY_PREFIX_LEN: usize = 4;
/// Bytes of a simple reply without its data.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of the header of a chunk.
pub const CHUNK_HEADER_LEN: usize = 20;

/// A request without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Of [`super::command_flags`], or bits we do not know.
    pub flags: u16,
    /// Of [`super::command`], or a number we do not know.
    pub command: u16,
    /// Chosen by the client; comes back in the reply.
    pub cookie: u64,
    /// First byte of the export concerned. Not checked against anything.
    pub offset: u64,
    /// Bytes concerned; a write is followed by as many.
    pub len: u32,
}

impl Request {
    /// Encodes the request.
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut out = [0; REQUEST_LEN];
        let mut cursor = &mut out[..];
        cursor.put_u32(REQUEST_MAGIC);
        cursor.put_u16(self.flags);
        cursor.put_u16(self.command);
        cursor.put_u64(self.cookie);
        cursor.put_u64(self.offset);
        cursor.put_u32(self.len);
        out
    }

    /// Decodes a request.
    ///
    /// # Errors
    /// [`WireError::Magic`] when the client lost the thread; nothing after it can be understood.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new("a request", bytes);
        let magic = fields.u32()?;
        if magic != REQUEST_MAGIC {
            return Err(WireError::Magic { message: "a request", found: magic.into() });
        }
        let request = Request {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        };
        fields.end()?;
        Ok(request)
    }
}

/// A simple reply without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReply {
    /// The error, or `None` when the request succeeded.
    pub error: Option<Errno>,
    /// The request it answers.
    pub cookie: u64,
}

impl SimpleReply {
    /// Encodes the reply.
    pub fn encode(&self) -> [u8; SIMPLE_REPLY_LEN] {
        let mut out = [0; SIMPLE_REPLY_LEN];
        let mut cursor = &mut out[..];
        cursor.put_u32(SIMPLE_REPLY_MAGIC);
        cursor.put_u32(self.error.map_or(0, |errno| errno.0));
        cursor.put_u64(self.cookie);
        out
    }
}

/// The header of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`super::CHUNK_DONE`], or bits we do not know.
    pub flags: u16,
    /// Of [`super::chunk_kind`], or a number we do not know.
    pub kind: u16,
    /// The request it answers.
    pub cookie: u64,
    /// Bytes of payload that follow. Not checked against any limit.
    pub len: u32,
}

impl ChunkHeader {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; CHUNK_HEADER_LEN] {
        let mut out = [0; CHUNK_HEADER_LEN];
        let mut cursor = &mut out[..];
        cursor.put_u32(CHUNK_MAGIC);
        cursor.put_u16(self.flags);
        cursor.put_u16(self.kind);
        cursor.put_u64(self.cookie);
        cursor.put_u32(self.len);
        out
    }
}

/// The header of any reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply; data follows when it answers a read and has no error.
    Simple(SimpleReply),
    /// A chunk of a structured reply; its payload follows.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Tells from the first four bytes how many more belong to the header.
    ///
    /// # Errors
    /// [`WireError::Magic`] when it is no reply.
    pub fn rest_len(prefix: [u8; REPLY_PREFIX_LEN]) -> Result<usize, WireError> {
        match u32::from_be_bytes(prefix) {
            SIMPLE_REPLY_MAGIC => Ok(SIMPLE_REPLY_LEN - REPLY_PREFIX_LEN),
            CHUNK_MAGIC => Ok(CHUNK_HEADER_LEN - REPLY_PREFIX_LEN),
            found => Err(WireError::Magic { message: "a reply", found: found.into() }),
        }
    }

    /// Decodes the whole header.
    ///
    /// # Errors
    /// Any [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new("a reply", bytes);
        let header = match fields.u32()? {
            SIMPLE_REPLY_MAGIC => {
                let error = fields.u32()?;
                let error = (error != 0).then_some(Errno(error));
                ReplyHeader::Simple(SimpleReply { error, cookie: fields.u64()? })
            }
            CHUNK_MAGIC => ReplyHeader::Chunk(ChunkHeader {
                flags: fields.u16()?,
                kind: fields.u16()?,
                cookie: fields.u64()?,
                len: fields.u32()?,
            }),
            found => return Err(WireError::Magic { message: "a reply", found: found.into() }),
        };
        fields.end()?;
        Ok(header)
    }
}

/// One extent of a block status chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Length in bytes, not zero.
    pub len: u32,
    /// Meaning depends on the metadata context.
    pub flags: u32,
}

/// A decoded payload of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing.
    None,
    /// Data of a read.
    Data {
        /// Offset in the export in bytes.
        offset: u64,
        /// The data, not empty.
        data: Bytes,
    },
    /// Zeroes of a read.
    Hole {
        /// Offset in the export in bytes.
        offset: u64,
        /// Length in bytes, not zero.
        len: u32,
    },
    /// Extents from the offset of the request on.
    Status {
        /// Number of the metadata context.
        context: u32,
        /// At least one extent.
        extents: Vec<Descriptor>,
    },
    /// The request failed.
    Error {
        /// Why; never zero.
        errno: Errno,
        /// Text for people; may be empty.
        message: String,
        /// Where, in bytes of the export, when the server says so.
        offset: Option<u64>,
    },
}

impl Chunk {
    /// Number of the kind of this chunk.
    pub fn kind(&self) -> u16 {
        match self {
            Chunk::None => chunk_kind::NONE,
            Chunk::Data { .. } => chunk_kind::OFFSET_DATA,
            Chunk::Hole { .. } => chunk_kind::OFFSET_HOLE,
            Chunk::Status { .. } => chunk_kind::BLOCK_STATUS,
            Chunk::Error { offset: None, .. } => chunk_kind::ERROR,
            Chunk::Error { offset: Some(_), .. } => chunk_kind::ERROR_OFFSET,
        }
    }

    /// Encodes header and payload; the data of a read comes apart, so that it is not copied.
    ///
    /// # Panics
    /// When the payload is longer than 32 bits can tell; senders bound it far below.
    pub fn encode(&self, cookie: u64, flags: u16) -> (Bytes, Bytes) {
        let mut payload = Vec::new();
        let mut tail = Bytes::new();
        match self {
            Chunk::None => {}
            Chunk::Data { offset, data } => {
                payload.put_u64(*offset);
                tail = data.clone();
            }
            Chunk::Hole { offset, len } => {
                payload.put_u64(*offset);
                payload.put_u32(*len);
            }
            Chunk::Status { context, extents } => {
                payload.put_u32(*context);
                for extent in extents {
                    payload.put_u32(extent.len);
                    payload.put_u32(extent.flags);
                }
            }
            Chunk::Error { errno, message, offset } => {
                let message = clip(message);
                payload.put_u32(errno.0);
                payload.put_u16(message.len() as u16);
                payload.put_slice(message.as_bytes());
                offset.iter().for_each(|offset| payload.put_u64(*offset));
            }
        }
        let len = u32::try_from(payload.len() + tail.len()).expect("senders bound a chunk");
        let header = ChunkHeader { flags, kind: self.kind(), cookie, len };
        let mut out = Vec::with_capacity(CHUNK_HEADER_LEN + payload.len());
        out.put_slice(&header.encode());
        out.put_slice(&payload);
        (Bytes::from(out), tail)
    }

    /// Decodes a payload of the given kind. Errors of unknown kinds decode as [`Chunk::Error`].
    ///
    /// # Errors
    /// Any [`WireError`]: wrong lengths, empty extents or data, an error that is none, other kinds.
    pub fn decode(kind: u16, mut payload: Bytes) -> Result<Self, WireError> {
        match kind {
            chunk_kind::NONE if payload.is_empty() => Ok(Chunk::None),
            chunk_kind::NONE => Err(WireError::Length { message: "an empty chunk" }),
            chunk_kind::OFFSET_DATA if payload.len() > 8 => {
                Ok(Chunk::Data { offset: payload.get_u64(), data: payload })
            }
            chunk_kind::OFFSET_DATA => Err(WireError::Length { message: "a data chunk" }),
            chunk_kind::OFFSET_HOLE => decode_hole(&payload),
            chunk_kind::BLOCK_STATUS => decode_status(&payload),
            kind if kind & chunk_kind::ERROR_BIT != 0 => decode_error(kind, &payload),
            kind => {
                let problem = format!("kind {kind} is not known");
                Err(WireError::Value { message: "a chunk", problem })
            }
        }
    }
}

fn decode_hole(payload: &[u8]) -> Result<Chunk, WireError> {
    let message = "a hole chunk";
    let mut fields = Fields::new(message, payload);
    let (offset, len) = (fields.u64()?, fields.u32()?);
    fields.end()?;
    if len == 0 {
        return Err(WireError::Value { message, problem: "its length is zero".into() });
    }
    Ok(Chunk::Hole { offset, len })
}

fn decode_status(payload: &[u8]) -> Result<Chunk, WireError> {
    let message = "a block status chunk";
    let mut fields = Fields::new(message, payload);
    let context = fields.u32()?;
    let (descriptors, remainder) = fields.rest().as_chunks::<8>();
    if descriptors.is_empty() || !remainder.is_empty() {
        return Err(WireError::Length { message });
    }
    let mut extents = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        let mut fields = Fields::new(message, descriptor);
        let extent = Descriptor { len: fields.u32()?, flags: fields.u32()? };
        if extent.len == 0 {
            return Err(WireError::Value { message, problem: "an extent is empty".into() });
        }
        extents.push(extent);
    }
    Ok(Chunk::Status { context, extents })
}

fn decode_error(kind: u16, payload: &[u8]) -> Result<Chunk, WireError> {
    let message = "an error chunk";
    let mut fields = Fields::new(message, payload);
    let errno = Errno(fields.u32()?);
    let len = fields.u16()?;
    // The text is for people only: one that is not UTF-8 must not hide the error itself.
    let words = String::from_utf8_lossy(fields.take(len.into())?);
    let words = clip(&words).to_owned();
    let offset = match kind {
        chunk_kind::ERROR_OFFSET => Some(fields.u64()?),
        _ => None,
    };
    if kind == chunk_kind::ERROR || kind == chunk_kind::ERROR_OFFSET {
        fields.end()?;
    }
    if errno.0 == 0 {
        return Err(WireError::Value { message, problem: "its error is zero".into() });
    }
    Ok(Chunk::Error { errno, message: words, offset })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::CHUNK_DONE;

    fn chunk() -> impl Strategy<Value = Chunk> {
        let extent =
            (1..=u32::MAX, any::<u32>()).prop_map(|(len, flags)| Descriptor { len, flags });
        prop_oneof![
            Just(Chunk::None),
            (any::<u64>(), prop::collection::vec(any::<u8>(), 1..64))
                .prop_map(|(offset, data)| Chunk::Data { offset, data: data.into() }),
            (any::<u64>(), 1..=u32::MAX).prop_map(|(offset, len)| Chunk::Hole { offset, len }),
            (any::<u32>(), prop::collection::vec(extent, 1..8))
                .prop_map(|(context, extents)| Chunk::Status { context, extents }),
            (1..=u32::MAX, "[^\0]{0,30}", any::<Option<u64>>()).prop_map(
                |(errno, message, offset)| Chunk::Error { errno: Errno(errno), message, offset }
            ),
        ]
    }

    proptest! {
        #[test]
        fn every_request_and_reply_survives_encoding_and_decoding(
            flags: u16, command: u16, cookie: u64, offset: u64, len: u32, chunk in chunk(),
        ) {
            let request = Request { flags, command, cookie, offset, len };
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));

            let simple = SimpleReply { error: (len != 0).then_some(Errno(len)), cookie };
            let header = ReplyHeader::decode(&simple.encode());
            prop_assert_eq!(header, Ok(ReplyHeader::Simple(simple)));

            let (head, tail) = chunk.encode(cookie, CHUNK_DONE);
            let bytes = [head, tail].concat();
            let rest = ReplyHeader::rest_len(bytes[..4].try_into().unwrap()).unwrap();
            let (header, payload) = bytes.split_at(REPLY_PREFIX_LEN + rest);
            let Ok(ReplyHeader::Chunk(header)) = ReplyHeader::decode(header) else {
                panic!("a chunk begins with a chunk header")
            };
            prop_assert_eq!((header.cookie, header.flags), (cookie, CHUNK_DONE));
            prop_assert_eq!(header.len as usize, payload.len());
            let payload = Bytes::copy_from_slice(payload);
            prop_assert_eq!(Chunk::decode(header.kind, payload), Ok(chunk));
        }

        #[test]
        fn arbitrary_bytes_never_panic_a_transmission_decoder(
            kind in prop_oneof![0..8u16, Just(0x8001), Just(0x8002), any::<u16>()],
            bytes in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = Request::decode(&bytes);
            let _ = ReplyHeader::decode(&bytes);
            let _ = Chunk::decode(kind, Bytes::from(bytes));
        }
    }

    #[test]
    fn empty_extents_holes_and_data_are_refused() {
        let status = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3];
        assert!(Chunk::decode(chunk_kind::BLOCK_STATUS, Bytes::copy_from_slice(&status)).is_err());
        assert!(Chunk::decode(chunk_kind::BLOCK_STATUS, Bytes::from_static(&[0; 4])).is_err());
        assert!(Chunk::decode(chunk_kind::OFFSET_HOLE, Bytes::from_static(&[0; 12])).is_err());
        assert!(Chunk::decode(chunk_kind::OFFSET_DATA, Bytes::from_static(&[0; 8])).is_err());
        assert!(Chunk::decode(chunk_kind::ERROR, Bytes::from_static(&[0; 6])).is_err());
    }

    #[test]
    fn a_long_error_text_is_cut_and_still_decodes() {
        let message = "é".repeat(5000);
        let chunk = Chunk::Error { errno: Errno::IO, message, offset: None };

        let (head, _) = chunk.encode(1, CHUNK_DONE);
        let decoded = Chunk::decode(chunk_kind::ERROR, head.slice(CHUNK_HEADER_LEN..));

        let Ok(Chunk::Error { message, .. }) = decoded else { panic!("it is an error chunk") };
        assert_eq!(message.len(), 4096);
    }
}
