//! The server's side of fixed newstyle negotiation, up to the choice of an export.
//!
//! Does not bound its own time: connection does, for the whole of it.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::export::Export;
use super::request::{Access, Replies, Rules, Status};
use super::{ConnectionError, Entry, Exports};
use crate::protocol::negotiation::{
    ExportRequest, Info, ListedExport, MetaContext, MetaContextRequest, OPTION_HEADER_LEN,
    OptionHeader, decode_option_header, encode_greeting, encode_option_reply,
};
use crate::protocol::{
    BASE_ALLOCATION, OPTION_BYTES_MAX, WireError, client_flags, handshake_flags, info, option,
    reply, text, transmission_flags,
};

/// Number of `base:allocation` in block status replies.
pub(super) const BASE_ALLOCATION_ID: u32 = 1;

/// Longest option that is skipped politely; after a longer one the connection is closed.
const SKIPPED_BYTES_MAX: u32 = 1024 * 1024;

/// What negotiation settled.
pub(super) struct Session {
    pub name: String,
    pub export: Arc<dyn Export>,
    pub rules: Rules,
}

pub(super) fn read_failed(source: std::io::Error) -> ConnectionError {
    ConnectionError::Io { doing: "read from", source }
}

pub(super) fn write_failed(source: std::io::Error) -> ConnectionError {
    ConnectionError::Io { doing: "write to", source }
}

fn wrong(message: &'static str, problem: String) -> ConnectionError {
    ConnectionError::Protocol(WireError::Value { message, problem })
}

/// Negotiates. `None` when the client left by its own wish.
pub(super) async fn negotiate<R, W>(
    exports: &Exports,
    reader: &mut R,
    writer: &mut W,
) -> Result<Option<Session>, ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let offered = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
    writer.write_all(&encode_greeting(offered)).await.map_err(write_failed)?;
    writer.flush().await.map_err(write_failed)?;
    let flags = reader.read_u32().await.map_err(read_failed)?;
    if flags & !(client_flags::FIXED_NEWSTYLE | client_flags::NO_ZEROES) != 0 {
        return Err(wrong("the client flags", format!("{flags:#x} was not offered")));
    }
    let mut haggling =
        Haggling { exports, reader, writer, flags, replies: Replies::Simple, contexts_of: None };
    loop {
        match haggling.next_option().await? {
            Next::Again => {}
            Next::Left => return Ok(None),
            Next::Begin(session) => return Ok(Some(session)),
        }
    }
}

enum Next {
    Again,
    Left,
    Begin(Session),
}

struct Haggling<'a, R, W> {
    exports: &'a Exports,
    reader: &'a mut R,
    writer: &'a mut W,
    flags: u32,
    replies: Replies,
    /// The export for which `base:allocation` is chosen.
    contexts_of: Option<String>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Haggling<'_, R, W> {
    async fn next_option(&mut self) -> Result<Next, ConnectionError> {
        let mut header = [0; OPTION_HEADER_LEN];
        match self.reader.read_exact(&mut header).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Ok(Next::Left); // Leaving between options is how probes say good-bye.
            }
            done => done.map_err(read_failed)?,
        };
        let OptionHeader { option, len } = decode_option_header(&header)?;
        let fixed = self.flags & client_flags::FIXED_NEWSTYLE != 0;
        if !fixed && option != option::EXPORT_NAME {
            return Err(wrong("an option", format!("{option} needs fixed newstyle")));
        }
        let Some(data) = self.option_data(option, len).await? else {
            return Ok(Next::Again);
        };
        match option {
            option::EXPORT_NAME => return self.export_name(&data).await.map(Next::Begin),
            option::ABORT => {
                // A client may be gone without waiting for the answer.
                let _ = self.answer(option, reply::ACK, &[]).await;
                return Ok(Next::Left);
            }
            option::LIST => self.list(&data).await?,
            option::GO | option::INFO => {
                if let Some(session) = self.go(option, &data).await? {
                    return Ok(Next::Begin(session));
                }
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.replies = Replies::Structured;
                self.answer(option, reply::ACK, &[]).await?;
            }
            option::STRUCTURED_REPLY => self.invalid(option, "no data is allowed").await?,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, &data).await?;
            }
            _ => self.answer(option, reply::ERR_UNSUP, &[]).await?,
        }
        Ok(Next::Again)
    }

    /// Reads the data of an option; `None` when it was too long, skipped, and refused.
    async fn option_data(
        &mut self,
        option: u32,
        len: u32,
    ) -> Result<Option<Vec<u8>>, ConnectionError> {
        if len as usize <= OPTION_BYTES_MAX {
            let mut data = vec![0; len as usize];
            self.reader.read_exact(&mut data).await.map_err(read_failed)?;
            return Ok(Some(data));
        }
        if len > SKIPPED_BYTES_MAX || option == option::EXPORT_NAME {
            let (len, limit) = (len.into(), OPTION_BYTES_MAX as u64);
            return Err(WireError::TooLong { message: "an option", len, limit }.into());
        }
        let mut data = (&mut *self.reader).take(len.into());
        let skipped = tokio::io::copy(&mut data, &mut tokio::io::sink()).await;
        if skipped.map_err(read_failed)? != u64::from(len) {
            return Err(read_failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.answer(option, reply::ERR_TOO_BIG, &[]).await?;
        Ok(None)
    }

    async fn answer(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<(), ConnectionError> {
        let bytes = encode_option_reply(option, kind, data);
        self.writer.write_all(&bytes).await.map_err(write_failed)?;
        self.writer.flush().await.map_err(write_failed)
    }

    async fn invalid(&mut self, option: u32, problem: &str) -> Result<(), ConnectionError> {
        self.answer(option, reply::ERR_INVALID, problem.as_bytes()).await
    }

    async fn unknown(&mut self, option: u32) -> Result<(), ConnectionError> {
        self.answer(option, reply::ERR_UNKNOWN, b"there is no export of this name").await
    }

    async fn list(&mut self, data: &[u8]) -> Result<(), ConnectionError> {
        if !data.is_empty() {
            return self.invalid(option::LIST, "no data is allowed").await;
        }
        let exports = self.exports;
        for (name, entry) in exports {
            let (name, description) = (name.clone(), entry.description.clone());
            let listed = ListedExport { name, description }.encode();
            self.answer(option::LIST, reply::SERVER, &listed).await?;
        }
        self.answer(option::LIST, reply::ACK, &[]).await
    }

    async fn export_name(&mut self, data: &[u8]) -> Result<Session, ConnectionError> {
        let name = text("the name of an export", data)?;
        let exports = self.exports;
        let Some(entry) = exports.get(&name) else {
            return Err(ConnectionError::UnknownExport { name });
        };
        let session = self.session(name, entry);
        let mut out = session.rules.size.to_be_bytes().to_vec();
        out.extend_from_slice(&transmission_flags(&session.rules).to_be_bytes());
        if self.flags & client_flags::NO_ZEROES == 0 {
            out.extend_from_slice(&[0; 124]);
        }
        self.writer.write_all(&out).await.map_err(write_failed)?;
        self.writer.flush().await.map_err(write_failed)?;
        Ok(session)
    }

    async fn go(&mut self, option: u32, data: &[u8]) -> Result<Option<Session>, ConnectionError> {
        let request = match ExportRequest::decode(data) {
            Ok(request) => request,
            Err(error) => return self.invalid(option, &error.to_string()).await.map(|()| None),
        };
        let exports = self.exports;
        let Some(entry) = exports.get(&request.name) else {
            return self.unknown(option).await.map(|()| None);
        };
        let session = self.session(request.name.clone(), entry);
        let blocks = session.rules.blocks;
        if blocks.minimum > 1 && !request.wanted.contains(&info::BLOCK_SIZE) {
            let words = b"ask for the block sizes: unaligned requests are refused";
            let refused = self.answer(option, reply::ERR_BLOCK_SIZE_REQD, words).await;
            return refused.map(|()| None);
        }
        let (size, flags) = (session.rules.size, transmission_flags(&session.rules));
        let mut infos = vec![
            Info::Export { size, flags },
            Info::BlockSize {
                minimum: blocks.minimum,
                preferred: blocks.preferred,
                maximum: blocks.maximum,
            },
        ];
        if request.wanted.contains(&info::NAME) {
            infos.push(Info::Name(request.name));
        }
        if request.wanted.contains(&info::DESCRIPTION) && !entry.description.is_empty() {
            infos.push(Info::Description(entry.description.clone()));
        }
        for info in infos {
            self.answer(option, reply::INFO, &info.encode()).await?;
        }
        self.answer(option, reply::ACK, &[]).await?;
        Ok((option == option::GO).then_some(session))
    }

    async fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<(), ConnectionError> {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.contexts_of = None; // Even a choice that fails replaces the one before.
        }
        if self.replies == Replies::Simple {
            return self.invalid(option, "negotiate structured replies first").await;
        }
        let MetaContextRequest { export, queries } = match MetaContextRequest::decode(data) {
            Ok(request) => request,
            Err(error) => return self.invalid(option, &error.to_string()).await,
        };
        if !self.exports.contains_key(&export) {
            return self.unknown(option).await;
        }
        let everything = !set && (queries.is_empty() || queries.iter().any(|q| q == "base:"));
        if everything || queries.iter().any(|query| query == BASE_ALLOCATION) {
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            let context = MetaContext { id, name: BASE_ALLOCATION.into() };
            self.answer(option, reply::META_CONTEXT, &context.encode()).await?;
            if set {
                self.contexts_of = Some(export);
            }
        }
        self.answer(option, reply::ACK, &[]).await
    }

    fn session(&self, name: String, entry: &Entry) -> Session {
        let export = entry.export.clone();
        // Contexts chosen for another export do not count for this one.
        let status = match &self.contexts_of {
            Some(chosen) if *chosen == name => Status::Available,
            _ => Status::Unavailable,
        };
        let rules = Rules {
            size: export.size(),
            access: Access::of(&*export),
            blocks: export.block_sizes(),
            replies: self.replies,
            status,
        };
        Session { name, export, rules }
    }
}

fn transmission_flags(rules: &Rules) -> u16 {
    use transmission_flags::*;
    let access = match rules.access {
        Access::ReadOnly => READ_ONLY | CAN_MULTI_CONN,
        Access::ReadWrite => SEND_TRIM | SEND_WRITE_ZEROES,
    };
    let replies = match rules.replies {
        Replies::Simple => 0,
        Replies::Structured => SEND_DF,
    };
    HAS_FLAGS | SEND_FLUSH | SEND_FUA | access | replies
}
