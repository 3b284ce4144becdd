//! QMP client: one connection to one QEMU, every call with a deadline.
//!
//! It knows the protocol (a JSON object a line) and no command. It never reconnects by itself:
//! [`Link`] does, for callers that share one QEMU, because QEMU talks to one client at a time.

mod message;

pub use message::{Line, LineCutter, QmpMessage};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

/// Events kept for waiters; the oldest are dropped first. A cut over 16 disks makes about 100.
const EVENTS_MAX: usize = 1024;
/// Calls that may wait to be sent; further callers wait for a place, within their deadline.
const CALLS_QUEUED_MAX: usize = 64;
/// Longest path of a unix socket, in bytes (`sun_path` without its NUL).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why QEMU did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket cannot be named.
    #[error("cannot use the socket {}: its path is longer than 107 bytes", .0.display())]
    PathTooLong(PathBuf),
    /// Nobody listens, or the file is not there.
    #[error("could not connect to QEMU at {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU did not greet: it hangs, or another client is connected.
    #[error("QEMU at {} did not greet; is another client connected?", .0.display())]
    NoGreeting(PathBuf),
    /// QEMU said no.
    #[error("QEMU refused {command}: {class}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// No answer in time. The connection is closed.
    #[error("QEMU did not answer {command} within {deadline:?}")]
    Deadline {
        /// The command.
        command: String,
        /// The deadline.
        deadline: Duration,
    },
    /// The event did not come in time.
    #[error("QEMU did not tell {what} within {deadline:?}")]
    NoEvent {
        /// What was waited for.
        what: String,
        /// The deadline.
        deadline: Duration,
    },
    /// The connection ended; the command may or may not have been done.
    #[error("the connection to QEMU ended at {0}")]
    Closed(String),
}

impl QmpError {
    /// Whether QEMU refused a command whose words contain `words`.
    pub fn refused_with(&self, words: &str) -> bool {
        matches!(self, QmpError::Refused { description, .. } if description.contains(words))
    }
}

/// Something that QEMU told by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// Its name, for example `SHUTDOWN`.
    pub name: String,
    /// Its data; null when it has none.
    pub data: Value,
}

/// A place in the stream of events; see [`Qmp::events_now`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventMark(u64);

/// A handle on a connection; clones share it. The last one to go closes it.
#[derive(Clone)]
pub struct Qmp {
    calls: mpsc::Sender<Order>,
    shared: Arc<Shared>,
}

enum Order {
    Call { line: Vec<u8>, id: u64, reply: oneshot::Sender<Reply> },
    Close,
}

type Reply = Result<Value, (String, String)>;

/// What the owner task and the handles share.
struct Shared {
    inbox: Mutex<Inbox>,
    progress: watch::Sender<Progress>,
    peer: Option<u32>,
    version: (u32, u32),
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<(u64, QmpEvent)>,
    last_id: u64,
}

#[derive(Clone, Copy)]
struct Progress {
    events: u64,
    closed: bool,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Qmp {
    /// Connects, takes the greeting and leaves the negotiation mode, all within `deadline`.
    ///
    /// # Errors
    /// [`QmpError::Connect`], [`QmpError::NoGreeting`], [`QmpError::PathTooLong`].
    pub async fn connect(socket: &Path, deadline: Duration) -> Result<Qmp, QmpError> {
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(QmpError::PathTooLong(socket.into()));
        }
        let end = Instant::now() + deadline;
        let connected = timeout_at(end, UnixStream::connect(socket)).await;
        let connected = connected.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        let stream =
            connected.map_err(|source| QmpError::Connect { socket: socket.into(), source })?;
        let peer = stream.peer_cred().ok().and_then(|cred| cred.pid());
        let (read, write) = stream.into_split();
        let mut lines = Lines::new(read);
        let version = match timeout_at(end, lines.next()).await {
            Ok(Some(QmpMessage::Greeting { version })) => version,
            _ => return Err(QmpError::NoGreeting(socket.into())),
        };
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            progress: watch::Sender::new(Progress { events: 0, closed: false }),
            peer: peer.and_then(|pid| u32::try_from(pid).ok()),
            version,
        });
        let (calls, orders) = mpsc::channel(CALLS_QUEUED_MAX);
        tokio::spawn(own(lines, write, orders, shared.clone()));
        let qmp = Qmp { calls, shared };
        let rest = end.saturating_duration_since(Instant::now());
        qmp.call("qmp_capabilities", json!({}), rest).await?;
        Ok(qmp)
    }

    /// The process that listens on the socket, when the system tells it.
    pub fn peer_pid(&self) -> Option<u32> {
        self.shared.peer
    }

    /// QEMU's version, major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.shared.version
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.progress.borrow().closed
    }

    /// Sends a command and waits for its answer. A call that is not answered within `deadline`
    /// closes the connection for all handles: what QEMU does later is not known.
    ///
    /// # Errors
    /// [`QmpError::Refused`], [`QmpError::Deadline`], [`QmpError::Closed`].
    pub async fn call(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let id = {
            let mut inbox = self.shared.inbox();
            inbox.last_id += 1;
            inbox.last_id
        };
        let message = json!({"execute": command, "arguments": arguments, "id": id});
        let line = format!("{message}\n").into_bytes();
        let exchange = async {
            let order = Order::Call { line, id, reply };
            let closed = || QmpError::Closed(command.into());
            self.calls.send(order).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())
        };
        match timeout(deadline, exchange).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err((class, description)))) => {
                Err(QmpError::Refused { command: command.into(), class, description })
            }
            Ok(Err(closed)) => Err(closed),
            Err(_) => {
                self.close();
                Err(QmpError::Deadline { command: command.into(), deadline })
            }
        }
    }

    /// Closes the connection for all handles. QEMU then takes another client.
    pub fn close(&self) {
        // A full queue means that the owner is stuck in writing, which has a deadline of its own.
        let _ = self.calls.try_send(Order::Close);
    }

    /// The place in the stream of events after everything that has arrived.
    pub fn events_now(&self) -> EventMark {
        EventMark(self.shared.progress.borrow().events)
    }

    /// The newest events of this connection, oldest first, at most 1024.
    pub fn recent_events(&self) -> Vec<QmpEvent> {
        self.shared.inbox().events.iter().map(|(_, event)| event.clone()).collect()
    }

    /// Waits for the first event after `since` that `wanted` accepts.
    ///
    /// # Errors
    /// [`QmpError::NoEvent`] after `deadline`, also when the event was among more than 1024 that
    /// came in between; [`QmpError::Closed`].
    pub async fn wait_event(
        &self,
        what: &str,
        since: EventMark,
        wanted: impl Fn(&QmpEvent) -> bool,
        deadline: Duration,
    ) -> Result<QmpEvent, QmpError> {
        let end = Instant::now() + deadline;
        let mut progress = self.shared.progress.subscribe();
        loop {
            let closed = progress.borrow_and_update().closed;
            let found = {
                let inbox = self.shared.inbox();
                let mut later = inbox.events.iter().filter(|(number, _)| *number > since.0);
                later.find(|(_, event)| wanted(event)).map(|(_, event)| event.clone())
            };
            if let Some(event) = found {
                return Ok(event);
            }
            if closed {
                return Err(QmpError::Closed(format!("the wait for {what}")));
            }
            if timeout_at(end, progress.changed()).await.is_err() {
                return Err(QmpError::NoEvent { what: what.into(), deadline });
            }
        }
    }
}

/// Reads the stream's messages. Cancelling `next` loses nothing.
struct Lines {
    read: OwnedReadHalf,
    cutter: LineCutter,
}

impl Lines {
    fn new(read: OwnedReadHalf) -> Self {
        Lines { read, cutter: LineCutter::default() }
    }

    /// The next message; none when the stream ended or is not QMP.
    async fn next(&mut self) -> Option<QmpMessage> {
        loop {
            match self.cutter.cut() {
                Line::Message(message) => return Some(message),
                Line::Broken => return None,
                Line::More => {}
            }
            match self.read.read_buf(self.cutter.buffer()).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

/// Owns the connection until it ends or every handle is gone.
async fn own(
    mut lines: Lines,
    mut write: OwnedWriteHalf,
    mut orders: mpsc::Receiver<Order>,
    shared: Arc<Shared>,
) {
    // QEMU reads its monitor at once; one that does not for this long hangs.
    const WRITE_DEADLINE: Duration = Duration::from_secs(10);
    let mut waiting: HashMap<u64, oneshot::Sender<Reply>> = HashMap::new();
    loop {
        tokio::select! {
            message = lines.next() => match message {
                Some(message) => take(message, &mut waiting, &shared),
                None => break,
            },
            order = orders.recv() => match order {
                Some(Order::Call { line, id, reply }) => {
                    waiting.retain(|_, waiter| !waiter.is_closed());
                    waiting.insert(id, reply);
                    let written = timeout(WRITE_DEADLINE, write.write_all(&line)).await;
                    if !matches!(written, Ok(Ok(()))) {
                        break;
                    }
                }
                Some(Order::Close) | None => break,
            },
        }
    }
    shared.progress.send_modify(|progress| progress.closed = true);
}

fn take(message: QmpMessage, waiting: &mut HashMap<u64, oneshot::Sender<Reply>>, shared: &Shared) {
    match message {
        QmpMessage::Event(event) => {
            let mut inbox = shared.inbox();
            let number = shared.progress.borrow().events + 1;
            if inbox.events.len() == EVENTS_MAX {
                inbox.events.pop_front();
            }
            inbox.events.push_back((number, event));
            drop(inbox);
            shared.progress.send_modify(|progress| progress.events = number);
        }
        QmpMessage::Answer { id, reply } => match id.and_then(|id| waiting.remove(&id)) {
            // The caller may have given up.
            Some(waiter) => drop(waiter.send(reply)),
            None => tracing::debug!(?id, ?reply, "QEMU answered nobody"),
        },
        QmpMessage::Greeting { .. } => tracing::debug!("QEMU greeted again"),
    }
}

/// The one connection to one QEMU that everybody in this process shares; made when needed.
pub struct Link {
    socket: PathBuf,
    current: tokio::sync::Mutex<Option<Qmp>>,
}

impl Link {
    /// A link to the QEMU that listens, or will listen, at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Link { socket, current: tokio::sync::Mutex::new(None) }
    }

    /// Where QEMU listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The connection, made anew if the last one ended.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub async fn qmp(&self, deadline: Duration) -> Result<Qmp, QmpError> {
        // The lock is held while connecting on purpose: QEMU greets one client at a time.
        let mut current = self.current.lock().await;
        if let Some(qmp) = current.as_ref().filter(|qmp| !qmp.is_closed()) {
            return Ok(qmp.clone());
        }
        *current = None;
        let qmp = Qmp::connect(&self.socket, deadline).await?;
        *current = Some(qmp.clone());
        Ok(qmp)
    }
}

#[cfg(test)]
mod tests;
