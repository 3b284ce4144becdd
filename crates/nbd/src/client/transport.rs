//! One connection in the transmission phase: a task that writes requests and one that reads
//! replies, with a table of what is expected between them.
//!
//! Knows nothing of ranges or exports. Whatever ends the connection ends every call on it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::assembly::{Expected, Outcome};
use super::handshake::{Replies, closed_by};
use super::{Closed, Tried};
use crate::protocol::transmission::{Chunk, ChunkHeader, ReplyHeader, Request, SimpleReply};
use crate::protocol::{CHUNK_DONE, WireError, command};

/// A request to be sent; its cookie is chosen here.
pub(super) struct Order {
    pub request: Request,
    pub data: Bytes,
    pub expected: Expected,
}

/// What is expected of the server, with what it holds back until it has come.
struct Pending {
    expected: Expected,
    answer: oneshot::Sender<Outcome>,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

enum State {
    Open { pending: HashMap<u64, Pending>, next_cookie: u64 },
    Closed(Closed),
}

/// What handle and tasks share. No lock is held while anything waits.
struct Shared {
    state: Mutex<State>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection unless it is; every waiting call then finds the first reason.
    fn close(&self, reason: Closed) {
        let mut state = self.lock();
        if matches!(*state, State::Open { .. }) {
            *state = State::Closed(reason);
        }
        drop(state);
        self.requests.close();
        self.bytes.close();
    }

    fn reason(&self) -> Closed {
        match &*self.lock() {
            State::Closed(reason) => reason.clone(),
            State::Open { .. } => Closed::ByServer,
        }
    }
}

type Outgoing = (Bytes, Bytes);

/// The handle's side of a connection. Dropping it closes the stream.
pub(super) struct Connection {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Outgoing>, // Bounded by the permits.
    reader: AbortHandle,
    writer: AbortHandle,
    ended: tokio::sync::watch::Receiver<()>,
}

impl Connection {
    pub(super) fn start<R, W>(
        reader: R,
        writer: W,
        replies: Replies,
        requests_max: usize,
        bytes_max: u32,
    ) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Open { pending: HashMap::new(), next_cookie: 1 }),
            requests: Arc::new(Semaphore::new(requests_max)),
            bytes: Arc::new(Semaphore::new(bytes_max as usize)),
        });
        let (requests, outgoing) = mpsc::unbounded_channel();
        let (end, ended) = tokio::sync::watch::channel(());
        let (read, write) = (shared.clone(), shared.clone());
        let writing = tokio::spawn(async move {
            if let Err(reason) = write_requests(writer, outgoing).await {
                write.close(reason);
            }
        });
        let writer = writing.abort_handle();
        let stop_writing = writing.abort_handle();
        let reading = tokio::spawn(async move {
            let reader = BufReader::with_capacity(64 * 1024, reader);
            let reason = read_replies(reader, replies, &read).await;
            read.close(reason);
            stop_writing.abort(); // With both halves gone the stream is closed.
            drop(end);
        });
        let reader = reading.abort_handle();
        Connection { shared, requests, reader, writer, ended }
    }

    /// Sends a request and waits for its answer, at most `deadline` from the sending on.
    pub(super) async fn call(
        &self,
        order: Order,
        deadline: Duration,
        tried: &Tried,
    ) -> Result<Outcome, Closed> {
        let answer = self.send(order).await?;
        match timeout(deadline, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(self.shared.reason()),
            Err(_) => {
                self.close(Closed::TimedOut { tried: tried.clone(), deadline });
                Err(self.shared.reason())
            }
        }
    }

    async fn send(&self, order: Order) -> Result<oneshot::Receiver<Outcome>, Closed> {
        let Order { mut request, data, expected } = order;
        let held = match request.command {
            command::READ | command::WRITE => request.len,
            _ => 0,
        };
        let (requests, bytes) = (self.shared.requests.clone(), self.shared.bytes.clone());
        let closed = |_| self.shared.reason();
        let permits = (
            requests.acquire_owned().await.map_err(closed)?,
            bytes.acquire_many_owned(held).await.map_err(closed)?,
        );
        let (answer, answered) = oneshot::channel();
        let mut state = self.shared.lock();
        let State::Open { pending, next_cookie } = &mut *state else {
            drop(state);
            return Err(self.shared.reason());
        };
        request.cookie = *next_cookie;
        *next_cookie += 1; // Cannot come round: 2^64 requests outlast every machine.
        pending.insert(request.cookie, Pending { expected, answer, _permits: permits });
        // When the writer is gone, so is the connection, and the answer never comes.
        let _ = self.requests.send((Bytes::copy_from_slice(&request.encode()), data));
        Ok(answered)
    }

    fn close(&self, reason: Closed) {
        self.shared.close(reason);
        self.reader.abort();
        self.writer.abort();
    }

    /// Says good-bye, waits until the server has closed its side or `deadline`, and closes.
    pub(super) async fn disconnect(&self, deadline: Duration) {
        self.shared.close(Closed::Disconnected);
        let request = Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, len: 0 };
        let _ = self.requests.send((Bytes::copy_from_slice(&request.encode()), Bytes::new()));
        let mut ended = self.ended.clone();
        let _ = timeout(deadline, ended.changed()).await; // Fails as soon as the reader ends.
        self.close(Closed::Disconnected);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close(Closed::Disconnected);
    }
}

async fn write_requests<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
) -> Result<(), Closed> {
    while let Some((head, data)) = outgoing.recv().await {
        let mut bytes = head.chain(data);
        writer.write_all_buf(&mut bytes).await.map_err(|error| closed_by(&error))?;
        writer.flush().await.map_err(|error| closed_by(&error))?;
    }
    Ok(())
}

/// Reads replies until the connection ends; returns why it did.
async fn read_replies<R: AsyncRead + Unpin>(
    mut reader: R,
    replies: Replies,
    to: &Shared,
) -> Closed {
    loop {
        if let Err(reason) = read_reply(&mut reader, replies, to).await {
            return reason;
        }
    }
}

async fn read_reply<R: AsyncRead + Unpin>(
    reader: &mut R,
    replies: Replies,
    to: &Shared,
) -> Result<(), Closed> {
    let mut header = [0; 20];
    read_exact(reader, &mut header[..4]).await?;
    let prefix = [header[0], header[1], header[2], header[3]];
    let len = 4 + ReplyHeader::rest_len(prefix)?;
    read_exact(reader, &mut header[4..len]).await?;
    match ReplyHeader::decode(&header[..len])? {
        ReplyHeader::Simple(reply) => simple_reply(reader, replies, to, reply).await,
        ReplyHeader::Chunk(chunk) => structured_chunk(reader, replies, to, chunk).await,
    }
}

async fn read_exact<R: AsyncRead + Unpin>(reader: &mut R, out: &mut [u8]) -> Result<(), Closed> {
    reader.read_exact(out).await.map(|_| ()).map_err(|error| closed_by(&error))
}

fn wrong(problem: impl Into<String>) -> WireError {
    WireError::Value { message: "a reply", problem: problem.into() }
}

/// Calls `with` on the table and what is expected under `cookie`.
fn on_pending<T>(
    to: &Shared,
    cookie: u64,
    with: impl FnOnce(&mut HashMap<u64, Pending>) -> Result<T, WireError>,
) -> Result<T, Closed> {
    match &mut *to.lock() {
        State::Closed(reason) => Err(reason.clone()),
        State::Open { pending, .. } if pending.contains_key(&cookie) => Ok(with(pending)?),
        State::Open { .. } => Err(wrong(format!("request {cookie} is not waiting")).into()),
    }
}

fn answer(
    pending: &mut HashMap<u64, Pending>,
    cookie: u64,
    conclude: impl FnOnce(Expected) -> Result<Outcome, WireError>,
) -> Result<(), WireError> {
    if let Some(Pending { expected, answer, .. }) = pending.remove(&cookie) {
        // The caller may have lost interest; the permits are free again either way.
        let _ = answer.send(conclude(expected)?);
    }
    Ok(())
}

async fn simple_reply<R: AsyncRead + Unpin>(
    reader: &mut R,
    replies: Replies,
    to: &Shared,
    SimpleReply { error, cookie }: SimpleReply,
) -> Result<(), Closed> {
    let len = on_pending(to, cookie, |pending| match (error, &pending[&cookie].expected) {
        (Some(_), _) => Ok(0),
        // With structured replies, data must not come in a simple one: its end would be a guess.
        (None, expected) if replies == Replies::Structured && expected.simple_len() > 0 => {
            Err(wrong("a simple reply to a read after structured ones were negotiated"))
        }
        (None, expected) => Ok(expected.simple_len()),
    })?;
    let mut data = BytesMut::zeroed(len as usize);
    read_exact(reader, &mut data).await?;
    let data = data.freeze();
    on_pending(to, cookie, |pending| {
        answer(pending, cookie, |expected| expected.simple(error, data))
    })
}

async fn structured_chunk<R: AsyncRead + Unpin>(
    reader: &mut R,
    replies: Replies,
    to: &Shared,
    ChunkHeader { flags, kind, cookie, len }: ChunkHeader,
) -> Result<(), Closed> {
    if replies == Replies::Simple {
        return Err(wrong("a structured reply that was not negotiated").into());
    }
    let limit = on_pending(to, cookie, |all| Ok(all[&cookie].expected.payload_max(kind)))?;
    if len > limit {
        let (len, limit) = (len.into(), limit.into());
        return Err(WireError::TooLong { message: "a chunk", len, limit }.into());
    }
    let mut payload = BytesMut::zeroed(len as usize);
    read_exact(reader, &mut payload).await?;
    let chunk = Chunk::decode(kind, payload.freeze())?;
    if chunk == Chunk::None && flags & CHUNK_DONE == 0 {
        return Err(wrong("an empty chunk that ends nothing").into());
    }
    on_pending(to, cookie, |pending| {
        if let Some(waiting) = pending.get_mut(&cookie) {
            waiting.expected.add(chunk)?;
        }
        if flags & CHUNK_DONE != 0 {
            answer(pending, cookie, Expected::finish)?;
        }
        Ok(())
    })
}
