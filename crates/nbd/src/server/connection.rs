//! One connection: negotiation, then requests served concurrently with replies in turn.
//!
//! Three parties: the loop that reads requests, one task for each request that may wait, and one
//! future that writes their replies. What is answered without waiting is written by the loop that
//! read it: handing it over costs more than the answer. Every request holds permits from before
//! its data is read until its reply is written, so that neither requests nor unsent replies can
//! pile up.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::buf::Chain;
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::export::{Export, ExportError};
use super::handshake::{BASE_ALLOCATION_ID, Session, negotiate, read_failed, write_failed};
use super::request::{Access, Action, Durable, Replies, check, descriptors};
use super::{ConnectionError, Exports, Limits, stopped};
use crate::protocol::transmission::{Chunk, REQUEST_LEN, Request, SimpleReply};
use crate::protocol::{CHUNK_DONE, Errno, PAYLOAD_BYTES_MAX, WireError, command};

/// Negotiates, then serves until the client leaves, fails, or `stop` says so.
pub(super) async fn serve<S>(
    exports: &Exports,
    limits: &Limits,
    stream: S,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let deadline = limits.handshake_deadline;
    let negotiated = tokio::select! {
        biased;
        () = stopped(&mut stop) => return Ok(()),
        done = timeout(deadline, negotiate(exports, &mut reader, &mut writer)) => done,
    };
    let Some(session) = negotiated.map_err(|_| ConnectionError::HandshakeDeadline(deadline))??
    else {
        return Ok(());
    };
    let (replies, outgoing) = mpsc::unbounded_channel(); // Bounded by the permits.
    let receiver = Receiver {
        reader,
        requests: Arc::new(Semaphore::new(limits.requests_in_flight_max)),
        bytes: Arc::new(Semaphore::new(limits.bytes_in_flight_max as usize)),
    };
    let writer = Mutex::new(Writer { stream: writer, begun: None });
    let writing = write_replies(&writer, outgoing);
    tokio::pin!(writing);
    let reading = read_requests(receiver, Arc::new(session), &writer, replies, stop);
    tokio::pin!(reading);
    tokio::select! {
        biased;
        read = &mut reading => {
            // All requests are done, and with them the last sender of replies.
            let written = writing.await;
            read.and(written)
        }
        // Writing ends first only when it failed. What was begun is finished all the same, and the
        // loop reads nothing more once it sees that replies go nowhere.
        written = &mut writing => {
            let _ = reading.await; // The writer's error is the cause of whatever it says.
            written
        }
    }
}

/// A reply on its way, with what it holds back until it is written.
struct Outgoing {
    bytes: Chain<Bytes, Bytes>,
    _permits: Permits,
}

struct Permits {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// A reply to be written; none asks to write the rest of the one that was begun.
type Turn = Option<Outgoing>;

/// The side of the stream that replies go to.
struct Writer<W> {
    stream: W,
    /// What is being written: nothing else goes before its end.
    begun: Option<Outgoing>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes what was begun to its end. Dropped on the way, it goes on from there when called
    /// again.
    async fn finish(&mut self) -> Result<(), ConnectionError> {
        if let Some(reply) = &mut self.begun {
            self.stream.write_all_buf(&mut reply.bytes).await.map_err(write_failed)?;
            self.stream.flush().await.map_err(write_failed)?;
            self.begun = None;
        }
        Ok(())
    }
}

async fn write_replies<W: AsyncWrite + Unpin>(
    writer: &Mutex<Writer<W>>,
    mut outgoing: mpsc::UnboundedReceiver<Turn>,
) -> Result<(), ConnectionError> {
    while let Some(turn) = outgoing.recv().await {
        let mut writer = writer.lock().await;
        writer.finish().await?;
        writer.begun = turn;
        writer.finish().await?;
    }
    // The client may have closed its side already, which is no failure: all is said.
    let _ = writer.lock().await.stream.shutdown().await;
    Ok(())
}

/// A request with its data and what it may hold.
struct Incoming {
    request: Request,
    data: Bytes,
    permits: Permits,
}

struct Receiver<R> {
    reader: R,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// Receives a request; `None` when the client left.
    async fn next(&mut self) -> Result<Option<Incoming>, ConnectionError> {
        let mut header = [0; REQUEST_LEN];
        match self.reader.read(&mut header[..1]).await.map_err(read_failed)? {
            0 => return Ok(None), // The end between two requests: rude, but nothing is lost.
            _ => self.reader.read_exact(&mut header[1..]).await.map_err(read_failed)?,
        };
        let request = Request::decode(&header)?;
        let len = match request.command {
            command::DISC => return Ok(None),
            command::READ | command::WRITE => request.len,
            _ => 0,
        };
        if request.command == command::WRITE && len > PAYLOAD_BYTES_MAX {
            let (len, limit) = (len.into(), PAYLOAD_BYTES_MAX.into());
            return Err(WireError::TooLong { message: "a write", len, limit }.into());
        }
        // A longer read is going to be refused, so it holds nothing.
        let held = if len > PAYLOAD_BYTES_MAX { 0 } else { len };
        let open = "the semaphores are never closed";
        let permits = Permits {
            _request: self.requests.clone().acquire_owned().await.expect(open),
            _bytes: self.bytes.clone().acquire_many_owned(held).await.expect(open),
        };
        let mut data = BytesMut::new();
        if request.command == command::WRITE {
            data.resize(len as usize, 0);
            self.reader.read_exact(&mut data).await.map_err(read_failed)?;
        }
        Ok(Some(Incoming { request, data: data.freeze(), permits }))
    }
}

/// Reads requests and has each served, by a task of its own unless the answer is there at once;
/// returns when all have finished.
async fn read_requests<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut receiver: Receiver<R>,
    session: Arc<Session>,
    writer: &Mutex<Writer<W>>,
    replies: mpsc::UnboundedSender<Turn>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ConnectionError> {
    let mut tasks = JoinSet::new();
    let (stopped, closed) = (stopped(&mut stop), replies.closed());
    tokio::pin!(stopped, closed);
    let outcome = loop {
        let received = tokio::select! {
            biased;
            () = &mut stopped => break Ok(()),
            () = &mut closed => break Ok(()), // The writer failed and tells why.
            received = receiver.next() => received,
        };
        let Incoming { request, data, permits } = match received {
            Ok(Some(incoming)) => incoming,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        while tasks.try_join_next().is_some() {}
        let answer = Answer {
            cookie: request.cookie,
            is_read: request.command == command::READ,
            replies: session.rules.replies,
            to: replies.clone(),
            permits: Some(permits),
        };
        let done = match check(&request, &session.rules) {
            Err((errno, problem)) => Err(ExportError::new(errno, problem)),
            Ok(action) => match at_once(&session, action) {
                Some(done) => Ok(done),
                None => {
                    tasks.spawn(answer_later(session.clone(), action, data, answer));
                    continue;
                }
            },
        };
        if let Err(error) = answer_now(answer, done, writer).await {
            break Err(error);
        }
    };
    while tasks.join_next().await.is_some() {}
    outcome
}

async fn answer_later(session: Arc<Session>, action: Action, data: Bytes, answer: Answer) {
    let done = perform(&session, action, data).await;
    if let Err(error) = &done {
        let export = &session.name;
        tracing::debug!(export, %error, ?action, "NBD request failed");
    }
    answer.send(done);
}

/// Writes the answer here as far as the stream takes it at once: whoever reads requests must not
/// wait for a client that reads no replies before it has sent them all.
async fn answer_now<W: AsyncWrite + Unpin>(
    mut answer: Answer,
    done: Result<Chunk, ExportError>,
    writer: &Mutex<Writer<W>>,
) -> Result<(), ConnectionError> {
    let Some(mut writer) = writer.try_lock().ok().filter(|writer| writer.begun.is_none()) else {
        answer.send(done);
        return Ok(());
    };
    writer.begun = answer.reply(done);
    let mut finish = pin!(writer.finish());
    match poll_fn(|context| Poll::Ready(finish.as_mut().poll(context))).await {
        Poll::Ready(written) => return written,
        Poll::Pending => answer.write_rest(),
    }
    Ok(())
}

/// The answer to a read that needs no task of its own.
fn at_once(session: &Session, action: Action) -> Option<Chunk> {
    let Action::Read { offset, len } = action else { return None };
    let data = session.export.read_at_once(offset, len)?;
    (data.len() == len as usize).then_some(Chunk::Data { offset, data })
}

async fn perform(session: &Session, action: Action, data: Bytes) -> Result<Chunk, ExportError> {
    let export = &*session.export;
    let durable = match action {
        Action::Nothing => return Ok(Chunk::None),
        Action::Read { offset, len } => {
            let data = export.read(offset, len).await?;
            if data.len() != len as usize {
                let words = format!("the export gave {} bytes instead of {len}", data.len());
                return Err(ExportError::new(Errno::IO, words));
            }
            return Ok(Chunk::Data { offset, data });
        }
        Action::Status { offset, len, extents } => {
            let told = export.status(offset, len).await?;
            let extents = descriptors(&told, len, extents);
            return Ok(Chunk::Status { context: BASE_ALLOCATION_ID, extents });
        }
        Action::Flush => Durable::BeforeReply,
        Action::Write { offset, durable } => {
            export.write(offset, data).await?;
            durable
        }
        Action::Trim { offset, len, durable } => {
            export.trim(offset, len).await?;
            durable
        }
        Action::WriteZeroes { offset, len, hole, durable } => {
            export.write_zeroes(offset, len, hole).await?;
            durable
        }
    };
    if durable == Durable::BeforeReply && session.rules.access == Access::ReadWrite {
        Export::flush(export).await?;
    }
    Ok(Chunk::None)
}

/// The duty to answer one request. Dropped unanswered, as when an export panics, it says EIO: a
/// request without a reply would hang the client for ever.
struct Answer {
    cookie: u64,
    is_read: bool,
    replies: Replies,
    to: mpsc::UnboundedSender<Turn>,
    permits: Option<Permits>,
}

impl Answer {
    fn send(mut self, outcome: Result<Chunk, ExportError>) {
        self.send_once(outcome);
    }

    fn send_once(&mut self, outcome: Result<Chunk, ExportError>) {
        if let Some(reply) = self.reply(outcome) {
            // Nobody listens when the connection is lost; the client learns from that.
            let _ = self.to.send(Some(reply));
        }
    }

    /// Has the rest of a reply written that was begun.
    fn write_rest(self) {
        let _ = self.to.send(None); // As above.
    }

    /// The reply; `None` when it was taken before.
    fn reply(&mut self, outcome: Result<Chunk, ExportError>) -> Option<Outgoing> {
        let _permits = self.permits.take()?;
        let (head, data) = match self.replies {
            Replies::Simple => self.simple(outcome),
            Replies::Structured => self.structured(outcome),
        };
        Some(Outgoing { bytes: head.chain(data), _permits })
    }

    fn simple(&self, outcome: Result<Chunk, ExportError>) -> (Bytes, Bytes) {
        let (error, data) = match outcome {
            Ok(Chunk::Data { data, .. }) => (None, data),
            Ok(_) => (None, Bytes::new()),
            Err(error) => (Some(error.errno), Bytes::new()),
        };
        (Bytes::copy_from_slice(&SimpleReply { error, cookie: self.cookie }.encode()), data)
    }

    fn structured(&self, outcome: Result<Chunk, ExportError>) -> (Bytes, Bytes) {
        match outcome {
            Ok(Chunk::None) if !self.is_read => self.simple(Ok(Chunk::None)),
            Ok(chunk) => chunk.encode(self.cookie, CHUNK_DONE),
            Err(ExportError { errno, message }) => {
                let chunk = Chunk::Error { errno, message, offset: None };
                chunk.encode(self.cookie, CHUNK_DONE)
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.permits.is_some() {
            tracing::error!(cookie = self.cookie, "an export did not finish a request");
            let words = "the export did not finish the request";
            self.send_once(Err(ExportError::new(Errno::IO, words)));
        }
    }
}
