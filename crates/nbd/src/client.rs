//! NBD client: a cloneable handle on one connection, with several requests in flight.
//!
//! Every call has a deadline. A connection on which a call timed out, or whose server broke the
//! protocol, is closed for all handles; the client never reconnects by itself. Ranges are checked
//! before anything is sent.

mod assembly;
mod error;
mod handshake;
mod transport;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::protocol::negotiation::ListedExport;
use crate::protocol::transmission::{Descriptor, Request};
use crate::protocol::{PAYLOAD_BYTES_MAX, command, command_flags, transmission_flags};
use assembly::{Answer, Expected};
pub use error::{ClientError, Closed, NegotiateError, Retry, Tried};
pub use handshake::ExportDetails;
use transport::{Connection, Order};

/// Bytes of reads and writes in flight on one connection. 64 MiB: two of the longest requests.
const BYTES_IN_FLIGHT_MAX: u32 = 2 * PAYLOAD_BYTES_MAX;
/// Requests in flight on one connection; what libnbd uses at most by default, and QEMU accepts.
const REQUESTS_IN_FLIGHT_MAX: usize = 64;
/// Range of one block status request in bytes: servers differ in what they take above 2 GiB.
const STATUS_BYTES_MAX: u64 = 1 << 30;
/// Most extents that [`Client::map_all`] returns; 96 MiB. A larger map must be walked.
pub const MAP_EXTENTS_MAX: usize = 4 * 1024 * 1024;

/// What to negotiate.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Name of the export.
    pub export: String,
    /// Metadata contexts, such as `base:allocation` or `qemu:dirty-bitmap:NAME`. All must exist.
    pub contexts: Vec<String>,
    /// Time for the whole of connecting, and for each call from sending to the last byte of its
    /// reply. Calls beyond the bounds in flight wait their turn, which does not count.
    pub call_deadline: Duration,
}

/// When a change must be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After the next flush.
    AtFlush,
    /// Before the call returns.
    BeforeReply,
}

/// A part of an export that has the same state throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, not zero.
    pub len: u64,
    /// Meaning depends on the metadata context; see the `STATE_` constants of the protocol.
    pub flags: u32,
}

/// A handle on a connection. Clones share it; the last one to go closes it.
#[derive(Clone)]
pub struct Client {
    connection: Arc<Connection>,
    details: Arc<ExportDetails>,
    deadline: Duration,
}

/// Connects to a unix socket and negotiates.
///
/// # Errors
/// [`ClientError::Connect`] or [`ClientError::Negotiate`].
pub async fn connect_unix(path: &Path, options: ConnectOptions) -> Result<Client, ClientError> {
    Client::connect(unix_stream(path, options.call_deadline).await?, options).await
}

/// Lists the exports of the server at a unix socket.
///
/// # Errors
/// As [`connect_unix`].
pub async fn list_unix(path: &Path, deadline: Duration) -> Result<Vec<ListedExport>, ClientError> {
    let stream = unix_stream(path, deadline).await?;
    let listed = timeout(deadline, handshake::list(stream)).await;
    listed
        .unwrap_or(Err(NegotiateError::Deadline(deadline)))
        .map_err(|source| ClientError::Negotiate { export: String::new(), source })
}

async fn unix_stream(path: &Path, deadline: Duration) -> Result<UnixStream, ClientError> {
    // A full backlog blocks a connect for ever.
    let connected = timeout(deadline, UnixStream::connect(path)).await;
    let connected = connected.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
    let path = path.display().to_string();
    connected.map_err(|source| ClientError::Connect { path, source })
}

impl Client {
    /// Negotiates on a fresh stream to a server.
    ///
    /// # Errors
    /// [`ClientError::Negotiate`].
    pub async fn connect<S>(stream: S, options: ConnectOptions) -> Result<Client, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let deadline = options.call_deadline;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let negotiated =
            timeout(deadline, handshake::negotiate(&mut reader, &mut writer, &options)).await;
        let details = negotiated
            .unwrap_or(Err(NegotiateError::Deadline(deadline)))
            .map_err(|source| ClientError::Negotiate { export: options.export.clone(), source })?;
        let (requests, bytes) = (REQUESTS_IN_FLIGHT_MAX, BYTES_IN_FLIGHT_MAX);
        let connection = Connection::start(reader, writer, details.replies, requests, bytes);
        Ok(Client { connection: Arc::new(connection), details: Arc::new(details), deadline })
    }

    /// What negotiation told about the export.
    pub fn details(&self) -> &ExportDetails {
        &self.details
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.details.size
    }

    /// Reads `len` bytes, at most [`ExportDetails::block_maximum`].
    ///
    /// # Errors
    /// Any of [`ClientError`] but those of connecting.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ClientError> {
        let tried = self.tried("read", offset, len.into());
        self.check(&tried, len > self.details.block_maximum)?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let expected = Expected::read(offset, len);
        let request = Request { flags: 0, command: command::READ, cookie: 0, offset, len };
        match self.call(tried, request, Bytes::new(), expected).await? {
            Answer::Data(data) => Ok(data),
            Answer::Done | Answer::Status(_) => unreachable!("a read is answered with data"),
        }
    }

    /// Asks for the extents of `context` from `offset` on; at least one, in order, without gaps.
    ///
    /// Asks the server once and for at most 1 GiB; the answer may end anywhere before
    /// `offset + len`, never after. [`Client::map`] goes on from there.
    ///
    /// # Errors
    /// Any of [`ClientError`] but those of connecting.
    pub async fn block_status(
        &self,
        offset: u64,
        len: u64,
        context: &str,
    ) -> Result<Vec<Extent>, ClientError> {
        let tried = self.tried("query block status of", offset, len);
        self.check(&tried, false)?;
        let ids: Vec<u32> = self.details.contexts.iter().map(|context| context.id).collect();
        let Some(chosen) = self.details.contexts.iter().find(|known| known.name == context) else {
            return Err(ClientError::Invalid { tried, problem: "the context was not negotiated" });
        };
        if len == 0 {
            return Err(ClientError::Invalid { tried, problem: "the range is empty" });
        }
        let len = len.min(STATUS_BYTES_MAX) as u32; // At most 1 GiB, so it fits.
        let expected = Expected::status(ids, len);
        let request = Request { flags: 0, command: command::BLOCK_STATUS, cookie: 0, offset, len };
        let Answer::Status(status) = self.call(tried, request, Bytes::new(), expected).await?
        else {
            unreachable!("a block status is answered with extents")
        };
        let found = status.into_iter().find(|(id, _)| *id == chosen.id);
        let (_, extents) = found.expect("the assembly has every negotiated context");
        Ok(placed(offset, &extents))
    }

    /// Walks over the extents of `context` from the first byte to the last.
    pub fn map(&self, context: &str) -> MapWalk {
        MapWalk { client: self.clone(), context: context.to_owned(), offset: 0, ready: Vec::new() }
    }

    /// Collects the extents of `context` over the whole export, neighbours of one state merged.
    ///
    /// # Errors
    /// Any of [`ClientError`] but those of connecting; [`ClientError::Invalid`] when there are
    /// more than [`MAP_EXTENTS_MAX`].
    pub async fn map_all(&self, context: &str) -> Result<Vec<Extent>, ClientError> {
        let mut walk = self.map(context);
        let mut out: Vec<Extent> = Vec::new();
        while let Some(extent) = walk.next().await? {
            let full = out.len() == MAP_EXTENTS_MAX;
            match out.last_mut() {
                Some(last) if last.flags == extent.flags => last.len += extent.len,
                _ if full => {
                    let tried = self.tried("map", 0, self.size());
                    let problem = "it has too many extents to hold at once";
                    return Err(ClientError::Invalid { tried, problem });
                }
                _ => out.push(extent),
            }
        }
        Ok(out)
    }

    /// Writes `data`, at most [`ExportDetails::block_maximum`] bytes.
    ///
    /// # Errors
    /// Any of [`ClientError`] but those of connecting. After [`ClientError::Closed`] the data may
    /// have been written, in whole or in part, or not.
    pub async fn write(
        &self,
        offset: u64,
        data: Bytes,
        durability: Durability,
    ) -> Result<(), ClientError> {
        let tried = self.tried("write", offset, data.len() as u64);
        self.check(&tried, data.len() > self.details.block_maximum as usize)?;
        let flags = self.change_flags(&tried, 0, durability)?;
        if data.is_empty() {
            return Ok(());
        }
        let len = data.len() as u32; // At most the maximum, so it fits.
        let request = Request { flags, command: command::WRITE, cookie: 0, offset, len };
        self.call(tried, request, data, Expected::done()).await.map(|_| ())
    }

    /// Makes every write durable that has returned before.
    ///
    /// # Errors
    /// Any of [`ClientError`] but those of connecting.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let tried = self.tried("flush", 0, 0);
        self.require(&tried, transmission_flags::SEND_FLUSH)?;
        let request = Request { flags: 0, command: command::FLUSH, cookie: 0, offset: 0, len: 0 };
        self.call(tried, request, Bytes::new(), Expected::done()).await.map(|_| ())
    }

    /// Tells the server that a range is not needed any more.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn trim(&self, offset: u64, len: u32) -> Result<(), ClientError> {
        let tried = self.tried("trim", offset, len.into());
        self.require(&tried, transmission_flags::SEND_TRIM)?;
        self.change(tried, Request { flags: 0, command: command::TRIM, cookie: 0, offset, len })
            .await
    }

    /// Makes a range read as zeroes; the server may give its space back.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u32,
        durability: Durability,
    ) -> Result<(), ClientError> {
        let tried = self.tried("zero", offset, len.into());
        self.require(&tried, transmission_flags::SEND_WRITE_ZEROES)?;
        let flags = self.change_flags(&tried, 0, durability)?;
        self.change(
            tried,
            Request { flags, command: command::WRITE_ZEROES, cookie: 0, offset, len },
        )
        .await
    }

    /// Says good-bye and closes the connection for all clones. Calls in flight fail, so wait for
    /// them first. Nothing is flushed.
    pub async fn disconnect(self) {
        self.connection.disconnect(self.deadline).await;
    }

    async fn change(&self, tried: Tried, request: Request) -> Result<(), ClientError> {
        self.check(&tried, false)?;
        self.change_flags(&tried, request.flags, Durability::AtFlush)?;
        if request.len == 0 {
            return Ok(());
        }
        self.call(tried, request, Bytes::new(), Expected::done()).await.map(|_| ())
    }

    fn change_flags(
        &self,
        tried: &Tried,
        flags: u16,
        durability: Durability,
    ) -> Result<u16, ClientError> {
        if self.details.flags & transmission_flags::READ_ONLY != 0 {
            let problem = "the export is read-only";
            return Err(ClientError::Invalid { tried: tried.clone(), problem });
        }
        match durability {
            Durability::AtFlush => Ok(flags),
            Durability::BeforeReply => {
                self.require(tried, transmission_flags::SEND_FUA)?;
                Ok(flags | command_flags::FUA)
            }
        }
    }

    fn require(&self, tried: &Tried, flag: u16) -> Result<(), ClientError> {
        if self.details.flags & flag == 0 {
            let problem = "the server does not offer it";
            return Err(ClientError::Invalid { tried: tried.clone(), problem });
        }
        Ok(())
    }

    fn tried(&self, what: &'static str, offset: u64, len: u64) -> Tried {
        Tried { what, offset, len, export: self.details.name.clone() }
    }

    fn check(&self, tried: &Tried, too_long: bool) -> Result<(), ClientError> {
        let invalid = |problem| Err(ClientError::Invalid { tried: tried.clone(), problem });
        let (minimum, end) = (self.details.block_minimum, tried.offset.checked_add(tried.len));
        if end.is_none_or(|end| end > self.size()) {
            return invalid("it is beyond the end");
        }
        if !tried.offset.is_multiple_of(minimum.into()) || !tried.len.is_multiple_of(minimum.into())
        {
            return invalid("it is not aligned to the minimum block size");
        }
        if too_long {
            return invalid("it is longer than the maximum block size");
        }
        Ok(())
    }

    async fn call(
        &self,
        tried: Tried,
        request: Request,
        data: Bytes,
        expected: Expected,
    ) -> Result<Answer, ClientError> {
        let order = Order { request, data, expected };
        match self.connection.call(order, self.deadline, &tried).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err((errno, message))) => Err(ClientError::Refused { tried, errno, message }),
            Err(source) => Err(ClientError::Closed { tried, source }),
        }
    }
}

fn placed(mut offset: u64, extents: &[Descriptor]) -> Vec<Extent> {
    let place = |extent: &Descriptor| {
        let placed = Extent { offset, len: extent.len.into(), flags: extent.flags };
        offset += placed.len;
        placed
    };
    extents.iter().map(place).collect()
}

/// A walk over the extents of an export, in order and without gaps; see [`Client::map`].
pub struct MapWalk {
    client: Client,
    context: String,
    offset: u64,
    /// Extents of the last answer, the next one last.
    ready: Vec<Extent>,
}

impl MapWalk {
    /// Takes the next extent; `None` after the last byte.
    ///
    /// # Errors
    /// As [`Client::block_status`]; the next call tries the same place again.
    pub async fn next(&mut self) -> Result<Option<Extent>, ClientError> {
        if self.ready.is_empty() && self.offset < self.client.size() {
            let rest = self.client.size() - self.offset;
            let mut extents = self.client.block_status(self.offset, rest, &self.context).await?;
            let last = extents.last().expect("an answer has at least one extent");
            self.offset = last.offset + last.len;
            extents.reverse();
            self.ready = extents;
        }
        Ok(self.ready.pop())
    }
}
