//! The client's side of fixed newstyle negotiation.
//!
//! Does not bound its own time: its callers do, for the whole of it. Does not fall back to the
//! option that cannot be refused: every server of the last years knows `GO`.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Closed, ConnectOptions, NegotiateError};
use crate::protocol::negotiation::{
    ExportRequest, GREETING_LEN, Info, ListedExport, MetaContext, MetaContextRequest,
    OPTION_REPLY_HEADER_LEN, decode_greeting, decode_option_reply_header, encode_option,
};
use crate::protocol::{
    EXPORT_BYTES_MAX, OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, WireError,
    client_flags, handshake_flags, info, option, reply,
};

/// Replies to one option; more of them is a server that never comes to an end.
const REPLIES_MAX: usize = 4096;

/// The form of replies that was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replies {
    Simple,
    Structured,
}

/// What negotiation told about an export.
#[derive(Debug, Clone)]
pub struct ExportDetails {
    /// Its name, as asked for.
    pub name: Arc<str>,
    /// Size in bytes.
    pub size: u64,
    /// Of [`crate::protocol::transmission_flags`].
    pub flags: u16,
    /// Offsets and lengths must be multiples of it. In bytes, a power of two.
    pub block_minimum: u32,
    /// Offsets and lengths should be multiples of it. In bytes.
    pub block_preferred: u32,
    /// Longest data of one read or write, at most 32 MiB. In bytes.
    pub block_maximum: u32,
    /// The negotiated metadata contexts.
    pub contexts: Vec<MetaContext>,
    pub(super) replies: Replies,
}

/// Turns an error of a stream into the reason for which a connection is no more.
pub(super) fn closed_by(error: &io::Error) -> Closed {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Closed::ByServer,
        kind => Closed::Stream { kind, message: error.to_string() },
    }
}

fn stream_failed(error: io::Error) -> NegotiateError {
    closed_by(&error).into()
}

fn protocol(error: WireError) -> NegotiateError {
    Closed::Protocol(error).into()
}

fn wrong(problem: impl Into<String>) -> NegotiateError {
    let message = "negotiation";
    protocol(WireError::Value { message, problem: problem.into() })
}

/// One reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

struct Haggling<'a, R, W> {
    reader: &'a mut R,
    writer: &'a mut W,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Haggling<'_, R, W> {
    async fn greet(&mut self) -> Result<(), NegotiateError> {
        let mut greeting = [0; GREETING_LEN];
        self.reader.read_exact(&mut greeting).await.map_err(stream_failed)?;
        let offered = decode_greeting(&greeting).map_err(protocol)?;
        if offered & handshake_flags::FIXED_NEWSTYLE == 0 {
            return Err(NegotiateError::Unfit("the server is too old for fixed newstyle".into()));
        }
        let mut flags = client_flags::FIXED_NEWSTYLE;
        if offered & handshake_flags::NO_ZEROES != 0 {
            flags |= client_flags::NO_ZEROES;
        }
        self.send(&flags.to_be_bytes()).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), NegotiateError> {
        self.writer.write_all(bytes).await.map_err(stream_failed)?;
        self.writer.flush().await.map_err(stream_failed)
    }

    /// Sends an option and collects the replies before the final one, which must be an ACK.
    async fn option(&mut self, option: u32, data: &[u8]) -> Result<Vec<Reply>, NegotiateError> {
        if data.len() > OPTION_BYTES_MAX {
            return Err(NegotiateError::Unfit("too many or too long names".into()));
        }
        self.send(&encode_option(option, data)).await?;
        let mut replies = Vec::new();
        while replies.len() < REPLIES_MAX {
            let reply = self.reply(option).await?;
            match reply.kind {
                reply::ACK => return Ok(replies),
                kind if kind & reply::ERROR_BIT != 0 => {
                    let message = String::from_utf8_lossy(&reply.data).into_owned();
                    return Err(NegotiateError::Refused { option, kind, message });
                }
                _ => replies.push(reply),
            }
        }
        Err(wrong("too many replies to one option"))
    }

    async fn reply(&mut self, option: u32) -> Result<Reply, NegotiateError> {
        let mut header = [0; OPTION_REPLY_HEADER_LEN];
        self.reader.read_exact(&mut header).await.map_err(stream_failed)?;
        let header = decode_option_reply_header(&header).map_err(protocol)?;
        if header.option != option {
            return Err(wrong(format!("a reply to option {}, not {option}", header.option)));
        }
        let mut data = vec![0; header.len as usize];
        self.reader.read_exact(&mut data).await.map_err(stream_failed)?;
        Ok(Reply { kind: header.kind, data })
    }

    async fn structured_replies(&mut self) -> Result<Replies, NegotiateError> {
        match self.option(option::STRUCTURED_REPLY, &[]).await {
            Ok(_) => Ok(Replies::Structured),
            Err(NegotiateError::Refused { .. }) => Ok(Replies::Simple),
            Err(error) => Err(error),
        }
    }

    async fn contexts(
        &mut self,
        options: &ConnectOptions,
    ) -> Result<Vec<MetaContext>, NegotiateError> {
        let (export, queries) = (options.export.clone(), options.contexts.clone());
        let request = MetaContextRequest { export, queries }.encode();
        let mut contexts: Vec<MetaContext> = Vec::new();
        for reply in self.option(option::SET_META_CONTEXT, &request).await? {
            if reply.kind != reply::META_CONTEXT {
                return Err(wrong("a reply that tells no metadata context"));
            }
            let context = MetaContext::decode(&reply.data).map_err(protocol)?;
            let told = |known: &MetaContext| known.id == context.id || known.name == context.name;
            if contexts.iter().any(told) {
                return Err(wrong("a metadata context told twice"));
            }
            contexts.push(context);
        }
        let missing = |name: &&String| !contexts.iter().any(|context| context.name == **name);
        if let Some(name) = options.contexts.iter().find(missing) {
            return Err(NegotiateError::Context { name: name.clone() });
        }
        Ok(contexts)
    }

    async fn go(&mut self, name: &str) -> Result<Vec<Info>, NegotiateError> {
        let request = ExportRequest { name: name.to_owned(), wanted: vec![info::BLOCK_SIZE] };
        let mut infos = Vec::new();
        for reply in self.option(option::GO, &request.encode()).await? {
            if reply.kind == reply::INFO {
                infos.push(Info::decode(&reply.data).map_err(protocol)?);
            }
        }
        Ok(infos)
    }
}

/// Negotiates an export.
pub(super) async fn negotiate<R, W>(
    reader: &mut R,
    writer: &mut W,
    options: &ConnectOptions,
) -> Result<ExportDetails, NegotiateError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let names = options.contexts.iter().chain([&options.export]);
    if names.clone().any(|name| name.len() > STRING_BYTES_MAX || name.contains('\0')) {
        return Err(NegotiateError::Unfit("a name is too long or holds a NUL".into()));
    }
    let mut haggling = Haggling { reader, writer };
    haggling.greet().await?;
    let replies = haggling.structured_replies().await?;
    let contexts = match (options.contexts.first(), replies) {
        (None, _) => Vec::new(),
        (Some(_), Replies::Structured) => haggling.contexts(options).await?,
        (Some(name), Replies::Simple) => {
            return Err(NegotiateError::Context { name: name.clone() });
        }
    };
    let infos = haggling.go(&options.export).await?;
    details(options, replies, contexts, &infos)
}

fn details(
    options: &ConnectOptions,
    replies: Replies,
    contexts: Vec<MetaContext>,
    infos: &[Info],
) -> Result<ExportDetails, NegotiateError> {
    let export = infos.iter().find_map(|info| match info {
        Info::Export { size, flags } => Some((*size, *flags)),
        _ => None,
    });
    let Some((size, flags)) = export else { return Err(wrong("the size was not told")) };
    let sizes = infos.iter().find_map(|info| match info {
        Info::BlockSize { minimum, preferred, maximum } => Some((*minimum, *preferred, *maximum)),
        _ => None,
    });
    let (minimum, preferred, maximum) = sizes.unwrap_or((1, 4096, PAYLOAD_BYTES_MAX));
    if size > EXPORT_BYTES_MAX || !minimum.is_power_of_two() || minimum > 65_536 {
        return Err(wrong(format!("{size} bytes in blocks of {minimum} make no sense")));
    }
    let maximum = maximum.min(PAYLOAD_BYTES_MAX) / minimum * minimum;
    if maximum == 0 {
        return Err(wrong("the maximum block size is below the minimum"));
    }
    Ok(ExportDetails {
        name: options.export.as_str().into(),
        size,
        flags,
        block_minimum: minimum,
        block_preferred: preferred.clamp(minimum, maximum),
        block_maximum: maximum,
        contexts,
        replies,
    })
}

/// Lists the exports of a server and leaves.
pub(super) async fn list<S>(mut stream: S) -> Result<Vec<ListedExport>, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let mut haggling = Haggling { reader: &mut reader, writer: &mut writer };
    haggling.greet().await?;
    let mut exports = Vec::new();
    for reply in haggling.option(option::LIST, &[]).await? {
        if reply.kind == reply::SERVER {
            exports.push(ListedExport::decode(&reply.data).map_err(protocol)?);
        }
    }
    // Some servers close without an answer to this; the list is complete either way.
    let _ = haggling.option(option::ABORT, &[]).await;
    Ok(exports)
}
