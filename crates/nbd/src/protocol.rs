//! Constants of the NBD protocol, its errors, and the pure encoders and decoders of its messages.
//!
//! Nothing here does input or output. All integers on the wire are big-endian. Decoders accept any
//! bytes without panicking and never allocate more than a constant times what they were given.

pub mod negotiation;
pub mod transmission;

use std::fmt;

/// First eight bytes a server sends.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes a newstyle server sends, and the start of every option of a client.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every request in the transmission phase.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Longest name, query or message in bytes; the protocol's own limit. Longer ones are refused.
pub const STRING_BYTES_MAX: usize = 4096;
/// Longest data of one option or option reply, in bytes. 64 KiB: a dozen names of the greatest
/// length; longer data is skipped by the server and an error in the client.
pub const OPTION_BYTES_MAX: usize = 64 * 1024;
/// Longest data of one read or write in bytes: the protocol's portable maximum.
pub const PAYLOAD_BYTES_MAX: u32 = 32 * 1024 * 1024;
/// Longest payload of a chunk that is not data. 8 MiB: a million block status descriptors, eight
/// times what QEMU sends at once; a longer chunk is an error in the client.
pub const META_CHUNK_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Largest export in bytes: offsets stay within what file systems and QEMU can address.
pub const EXPORT_BYTES_MAX: u64 = i64::MAX as u64;

/// Handshake flags, sent by the server.
pub mod handshake_flags {
    /// The server speaks fixed newstyle.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The server can leave out the 124 zero bytes after `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Client flags, the answer to the handshake flags.
pub mod client_flags {
    /// The client speaks fixed newstyle.
    pub const FIXED_NEWSTYLE: u32 = 1 << 0;
    /// The client wants no 124 zero bytes after `EXPORT_NAME`.
    pub const NO_ZEROES: u32 = 1 << 1;
}

/// Options a client may send while negotiating.
pub mod option {
    /// Choose an export and begin, without a way to report an error.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Begin TLS.
    pub const STARTTLS: u32 = 5;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export and begin.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in every reply type that is an error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// The option is known but forbidden here.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// The option's data is wrong.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is going away.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The client must ask for the block sizes first.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Kinds of information about an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod transmission_flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA command flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF command flag works.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one and the same cache.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Commands of the transmission phase.
pub mod command {
    /// Read data.
    pub const READ: u16 = 0;
    /// Write data.
    pub const WRITE: u16 = 1;
    /// End the session.
    pub const DISC: u16 = 2;
    /// Make every answered write durable.
    pub const FLUSH: u16 = 3;
    /// Forget data.
    pub const TRIM: u16 = 4;
    /// Write zeroes without sending them.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask for extents of the chosen metadata contexts.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flags {
    /// Answer only when the change is durable.
    pub const FUA: u16 = 1 << 0;
    /// `WRITE_ZEROES` must keep the space allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Answer a read with one data chunk.
    pub const DF: u16 = 1 << 2;
    /// Answer a block status with one extent, inside the request.
    pub const REQ_ONE: u16 = 1 << 3;
}

/// Kinds of chunks of a structured reply.
pub mod chunk_kind {
    /// Nothing; ends a reply.
    pub const NONE: u16 = 0;
    /// Data at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every kind that is an error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// The request failed.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// The request failed at an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Flag of a chunk: the last one of its reply.
pub const CHUNK_DONE: u16 = 1;

/// Flag of an extent of `base:allocation`: not allocated.
pub const STATE_HOLE: u32 = 1;
/// Flag of an extent of `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u32 = 2;
/// Flag of an extent of `qemu:dirty-bitmap:NAME`: changed.
pub const STATE_DIRTY: u32 = 1;

/// Name of the metadata context that tells which extents are allocated.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// An error number as NBD transmits it; it equals the Linux errno of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub u32);

impl Errno {
    /// Not permitted; a write to a read-only export.
    pub const PERM: Errno = Errno(1);
    /// Input or output failed.
    pub const IO: Errno = Errno(5);
    /// Out of memory.
    pub const NOMEM: Errno = Errno(12);
    /// The request makes no sense.
    pub const INVAL: Errno = Errno(22);
    /// No space, or a write beyond the end.
    pub const NOSPC: Errno = Errno(28);
    /// The answer would be too large.
    pub const OVERFLOW: Errno = Errno(75);
    /// Not supported.
    pub const NOTSUP: Errno = Errno(95);
    /// The server is going away.
    pub const SHUTDOWN: Errno = Errno(108);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Errno::PERM => "EPERM",
            Errno::IO => "EIO",
            Errno::NOMEM => "ENOMEM",
            Errno::INVAL => "EINVAL",
            Errno::NOSPC => "ENOSPC",
            Errno::OVERFLOW => "EOVERFLOW",
            Errno::NOTSUP => "ENOTSUP",
            Errno::SHUTDOWN => "ESHUTDOWN",
            Errno(number) => return write!(f, "errno {number}"),
        };
        f.write_str(name)
    }
}

/// Bytes that are not the message they should be; the other side broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A message began with another number than it must.
    #[error("{message} begins with {found:#x}, which is not its magic number")]
    Magic {
        /// What was expected.
        message: &'static str,
        /// The number found.
        found: u64,
    },
    /// A message ended too early or went on too long.
    #[error("{message} has a wrong length")]
    Length {
        /// What was decoded.
        message: &'static str,
    },
    /// A length exceeds the limit for it.
    #[error("{message} announces {len} bytes, more than the limit of {limit}")]
    TooLong {
        /// What was decoded.
        message: &'static str,
        /// The announced length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A string is not UTF-8 or holds a NUL.
    #[error("{message} holds a string that is not valid")]
    Text {
        /// What was decoded.
        message: &'static str,
    },
    /// A value is not allowed where it stands.
    #[error("{message}: {problem}")]
    Value {
        /// What was decoded.
        message: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Takes fields off the front of a message; every method fails rather than read past the end.
pub(crate) struct Fields<'a> {
    message: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Fields { message, rest: bytes }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        match self.rest.split_at_checked(len) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(WireError::Length { message: self.message }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let message = self.message;
        self.take(N)?.try_into().map_err(|_| WireError::Length { message })
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes a string whose length in bytes stands before it as 32 bits.
    pub(crate) fn text32(&mut self) -> Result<String, WireError> {
        let len = self.u32()?;
        let bytes = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        text(self.message, bytes)
    }

    /// Takes all that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn end(&self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Length { message: self.message }) }
    }
}

/// Checks a string of the protocol: UTF-8, no NUL, at most [`STRING_BYTES_MAX`] bytes.
///
/// # Errors
/// [`WireError::TooLong`] or [`WireError::Text`].
pub fn text(message: &'static str, bytes: &[u8]) -> Result<String, WireError> {
    if bytes.len() > STRING_BYTES_MAX {
        let (len, limit) = (bytes.len() as u64, STRING_BYTES_MAX as u64);
        return Err(WireError::TooLong { message, len, limit });
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(WireError::Text { message }),
    }
}

/// Cuts `message` to the longest prefix that fits a string of the protocol and is without NUL.
pub fn clip(message: &str) -> &str {
    let message = message.split('\0').next().unwrap_or("");
    let mut end = message.len().min(STRING_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}
