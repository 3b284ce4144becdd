//! Messages of the handshake: greeting, options, and replies to options.
//!
//! Pure encoders and decoders; who may send what, and when, is for client and server to know.

use bytes::BufMut;

use super::{
    Fields, NBD_MAGIC, OPTION_BYTES_MAX, OPTION_MAGIC, OPTION_REPLY_MAGIC, WireError, info, text,
};

/// Bytes of the server's greeting.
pub const GREETING_LEN: usize = 18;
/// Bytes of the header of an option.
pub const OPTION_HEADER_LEN: usize = 16;
/// Bytes of the header of a reply to an option.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;

/// Encodes the server's greeting with its handshake flags.
pub fn encode_greeting(flags: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(GREETING_LEN);
    out.put_u64(NBD_MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16(flags);
    out
}

/// Decodes the server's greeting into its handshake flags.
///
/// # Errors
/// [`WireError::Magic`] for anything but newstyle; an oldstyle server differs in the second magic.
pub fn decode_greeting(bytes: &[u8]) -> Result<u16, WireError> {
    let mut fields = Fields::new("the greeting", bytes);
    for magic in [NBD_MAGIC, OPTION_MAGIC] {
        let found = fields.u64()?;
        if found != magic {
            return Err(WireError::Magic { message: "the greeting", found });
        }
    }
    let flags = fields.u16()?;
    fields.end()?;
    Ok(flags)
}

/// The header of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// One of [`super::option`], or a number we do not know.
    pub option: u32,
    /// Bytes of data that follow. Not checked against any limit.
    pub len: u32,
}

/// Encodes an option with its data.
///
/// # Panics
/// When `data` is longer than [`OPTION_BYTES_MAX`].
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    assert!(data.len() <= OPTION_BYTES_MAX, "an option's data is bounded by its sender");
    let mut out = Vec::with_capacity(OPTION_HEADER_LEN + data.len());
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
    out
}

/// Decodes the header of an option.
///
/// # Errors
/// [`WireError::Magic`] when the client lost the thread; nothing after it can be understood.
pub fn decode_option_header(bytes: &[u8]) -> Result<OptionHeader, WireError> {
    let mut fields = Fields::new("an option", bytes);
    let found = fields.u64()?;
    if found != OPTION_MAGIC {
        return Err(WireError::Magic { message: "an option", found });
    }
    let header = OptionHeader { option: fields.u32()?, len: fields.u32()? };
    fields.end()?;
    Ok(header)
}

/// The header of a reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option it answers.
    pub option: u32,
    /// One of [`super::reply`], or a number we do not know.
    pub kind: u32,
    /// Bytes of data that follow, at most [`OPTION_BYTES_MAX`].
    pub len: u32,
}

/// Encodes a reply to an option with its data.
///
/// # Panics
/// When `data` is longer than [`OPTION_BYTES_MAX`].
pub fn encode_option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    assert!(data.len() <= OPTION_BYTES_MAX, "a reply's data is bounded by its sender");
    let mut out = Vec::with_capacity(OPTION_REPLY_HEADER_LEN + data.len());
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
    out
}

/// Decodes the header of a reply to an option.
///
/// # Errors
/// [`WireError::Magic`], or [`WireError::TooLong`] above [`OPTION_BYTES_MAX`].
pub fn decode_option_reply_header(bytes: &[u8]) -> Result<OptionReplyHeader, WireError> {
    let message = "a reply to an option";
    let mut fields = Fields::new(message, bytes);
    let found = fields.u64()?;
    if found != OPTION_REPLY_MAGIC {
        return Err(WireError::Magic { message, found });
    }
    let header =
        OptionReplyHeader { option: fields.u32()?, kind: fields.u32()?, len: fields.u32()? };
    fields.end()?;
    if header.len as usize > OPTION_BYTES_MAX {
        let (len, limit) = (u64::from(header.len), OPTION_BYTES_MAX as u64);
        return Err(WireError::TooLong { message, len, limit });
    }
    Ok(header)
}

fn put_text32(out: &mut Vec<u8>, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

/// Data of `GO` and `INFO`: which export, and which information about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRequest {
    /// Name of the export.
    pub name: String,
    /// Kinds of information wanted, of [`super::info`].
    pub wanted: Vec<u16>,
}

impl ExportRequest {
    /// Encodes the data of the option.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text32(&mut out, &self.name);
        out.put_u16(self.wanted.len() as u16);
        self.wanted.iter().for_each(|kind| out.put_u16(*kind));
        out
    }

    /// Decodes the data of the option.
    ///
    /// # Errors
    /// Any [`WireError`]; the server answers "invalid" and goes on.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new("the choice of an export", bytes);
        let name = fields.text32()?;
        let count = fields.u16()?;
        let wanted = (0..count).map(|_| fields.u16()).collect::<Result<_, _>>()?;
        fields.end()?;
        Ok(ExportRequest { name, wanted })
    }
}

/// Data of `SET_META_CONTEXT` and `LIST_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextRequest {
    /// Name of the export.
    pub export: String,
    /// Names of contexts, or patterns only the server understands.
    pub queries: Vec<String>,
}

impl MetaContextRequest {
    /// Encodes the data of the option.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text32(&mut out, &self.export);
        out.put_u32(self.queries.len() as u32);
        self.queries.iter().for_each(|query| put_text32(&mut out, query));
        out
    }

    /// Decodes the data of the option.
    ///
    /// # Errors
    /// Any [`WireError`]; the server answers "invalid" and goes on.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new("the choice of metadata contexts", bytes);
        let export = fields.text32()?;
        let count = fields.u32()?;
        let mut queries = Vec::new(); // Grows with what really arrived, not with `count`.
        for _ in 0..count {
            queries.push(fields.text32()?);
        }
        fields.end()?;
        Ok(MetaContextRequest { export, queries })
    }
}

/// Data of a `META_CONTEXT` reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContext {
    /// Number that stands for the context in block status chunks.
    pub id: u32,
    /// Name of the context.
    pub name: String,
}

impl MetaContext {
    /// Encodes the data of the reply.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32(self.id);
        out.put_slice(self.name.as_bytes());
        out
    }

    /// Decodes the data of the reply.
    ///
    /// # Errors
    /// Any [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new("a metadata context", bytes);
        let id = fields.u32()?;
        Ok(MetaContext { id, name: text("a metadata context", fields.rest())? })
    }
}

/// Data of a `SERVER` reply: one export of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedExport {
    /// Name of the export.
    pub name: String,
    /// Text for people; often empty.
    pub description: String,
}

impl ListedExport {
    /// Encodes the data of the reply.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text32(&mut out, &self.name);
        out.put_slice(self.description.as_bytes());
        out
    }

    /// Decodes the data of the reply.
    ///
    /// # Errors
    /// Any [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new("a listed export", bytes);
        let name = fields.text32()?;
        Ok(ListedExport { name, description: text("a listed export", fields.rest())? })
    }
}

/// Data of an `INFO` reply: one piece of information about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// Size in bytes, and transmission flags.
    Export {
        /// Size in bytes.
        size: u64,
        /// Of [`super::transmission_flags`].
        flags: u16,
    },
    /// Canonical name.
    Name(String),
    /// Text for people.
    Description(String),
    /// Sizes in bytes that requests should keep to.
    BlockSize {
        /// Offsets and lengths must be multiples of it.
        minimum: u32,
        /// Offsets and lengths should be multiples of it.
        preferred: u32,
        /// Longest data of one read or write.
        maximum: u32,
    },
    /// A kind we do not know.
    Other(u16),
}

impl Info {
    /// Encodes the data of the reply.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Info::Export { size, flags } => {
                out.put_u16(info::EXPORT);
                out.put_u64(*size);
                out.put_u16(*flags);
            }
            Info::Name(name) => {
                out.put_u16(info::NAME);
                out.put_slice(name.as_bytes());
            }
            Info::Description(words) => {
                out.put_u16(info::DESCRIPTION);
                out.put_slice(words.as_bytes());
            }
            Info::BlockSize { minimum, preferred, maximum } => {
                out.put_u16(info::BLOCK_SIZE);
                [minimum, preferred, maximum].iter().for_each(|size| out.put_u32(**size));
            }
            Info::Other(kind) => out.put_u16(*kind),
        }
        out
    }

    /// Decodes the data of the reply. The data of unknown kinds is dropped.
    ///
    /// # Errors
    /// Any [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let message = "information about an export";
        let mut fields = Fields::new(message, bytes);
        let decoded = match fields.u16()? {
            info::EXPORT => Info::Export { size: fields.u64()?, flags: fields.u16()? },
            info::NAME => Info::Name(text(message, fields.rest())?),
            info::DESCRIPTION => Info::Description(text(message, fields.rest())?),
            info::BLOCK_SIZE => Info::BlockSize {
                minimum: fields.u32()?,
                preferred: fields.u32()?,
                maximum: fields.u32()?,
            },
            kind => {
                fields.rest();
                Info::Other(kind)
            }
        };
        fields.end()?;
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        "[^\0]{0,40}"
    }

    proptest! {
        #[test]
        fn every_option_message_survives_encoding_and_decoding(
            name in name(),
            wanted in prop::collection::vec(any::<u16>(), 0..8),
            queries in prop::collection::vec("[^\0]{0,20}", 0..8),
            id: u32, size: u64, flags: u16,
        ) {
            let choice = ExportRequest { name: name.clone(), wanted };
            prop_assert_eq!(ExportRequest::decode(&choice.encode()), Ok(choice));
            let contexts = MetaContextRequest { export: name.clone(), queries };
            prop_assert_eq!(MetaContextRequest::decode(&contexts.encode()), Ok(contexts));
            let context = MetaContext { id, name: name.clone() };
            prop_assert_eq!(MetaContext::decode(&context.encode()), Ok(context));
            let listed = ListedExport { name: name.clone(), description: name.clone() };
            prop_assert_eq!(ListedExport::decode(&listed.encode()), Ok(listed));
            for info in [
                Info::Export { size, flags },
                Info::Name(name.clone()),
                Info::Description(name.clone()),
                Info::BlockSize { minimum: 1, preferred: id, maximum: id },
                Info::Other(flags.max(4)),
            ] {
                prop_assert_eq!(Info::decode(&info.encode()), Ok(info));
            }
            prop_assert_eq!(decode_greeting(&encode_greeting(flags)), Ok(flags));
            let option = encode_option(id, name.as_bytes());
            let header = OptionHeader { option: id, len: name.len() as u32 };
            prop_assert_eq!(decode_option_header(&option[..OPTION_HEADER_LEN]), Ok(header));
            let reply = encode_option_reply(id, id, name.as_bytes());
            let header = OptionReplyHeader { option: id, kind: id, len: name.len() as u32 };
            let decoded = decode_option_reply_header(&reply[..OPTION_REPLY_HEADER_LEN]);
            prop_assert_eq!(decoded, Ok(header));
        }

        #[test]
        fn arbitrary_bytes_never_panic_an_option_decoder(
            bytes in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = decode_greeting(&bytes);
            let _ = decode_option_header(&bytes);
            let _ = decode_option_reply_header(&bytes);
            let _ = ExportRequest::decode(&bytes);
            let _ = MetaContextRequest::decode(&bytes);
            let _ = MetaContext::decode(&bytes);
            let _ = ListedExport::decode(&bytes);
            let _ = Info::decode(&bytes);
        }
    }

    #[test]
    fn a_count_that_the_data_cannot_hold_is_refused_at_once() {
        let mut bytes = MetaContextRequest { export: "a".into(), queries: vec![] }.encode();
        bytes[5..9].copy_from_slice(&u32::MAX.to_be_bytes());

        let decoded = MetaContextRequest::decode(&bytes);

        assert!(matches!(decoded, Err(WireError::Length { .. })));
    }

    #[test]
    fn names_with_nul_or_above_the_limit_are_refused() {
        assert!(matches!(text("a name", b"a\0b"), Err(WireError::Text { .. })));
        assert!(matches!(text("a name", &[b'a'; 4097]), Err(WireError::TooLong { .. })));
        assert!(text("a name", &[b'a'; 4096]).is_ok());
    }
}
