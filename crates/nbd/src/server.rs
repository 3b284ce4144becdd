//! NBD server: serves a fixed set of exports on a unix socket or on any stream.
//!
//! Requests of one connection are served concurrently within [`Limits`], and their replies are
//! sent one after the other. Connections share nothing but the exports, so that a slow export or
//! a client that does not read delays nobody else. It does not create or remove socket files.

mod connection;
mod export;
mod handshake;
mod request;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::protocol::{EXPORT_BYTES_MAX, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, WireError};

pub use export::{Allocation, BlockSizes, Export, ExportError, ExportExtent, HoleRule};

/// Bounds on what clients can make a server hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once; one more is closed as soon as it is accepted.
    pub connections_max: usize,
    /// Requests of one connection that are served at once; further ones wait in the socket.
    pub requests_in_flight_max: usize,
    /// Bytes of reads and writes of one connection held at once; at least the largest payload.
    pub bytes_in_flight_max: u32,
    /// Time a client has to negotiate; then its connection is closed.
    pub handshake_deadline: Duration,
}

impl Default for Limits {
    /// 16 connections of 64 requests and 64 MiB each: QEMU opens one connection for a disk and
    /// keeps 16 requests in flight, `nbdcopy` four connections of 64.
    fn default() -> Self {
        Limits {
            connections_max: 16,
            requests_in_flight_max: 64,
            bytes_in_flight_max: 2 * PAYLOAD_BYTES_MAX,
            handshake_deadline: Duration::from_secs(10),
        }
    }
}

/// Why an export could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddExportError {
    /// The name is too long, holds a NUL, or is taken.
    #[error("cannot export {name:?}: the name is too long, holds a NUL or is taken")]
    Name {
        /// The name.
        name: String,
    },
    /// The size is above the limit or not a multiple of the minimum block size.
    #[error("cannot export {name:?}: {size} bytes do not fit blocks of {minimum} bytes")]
    Size {
        /// The name.
        name: String,
        /// Size of the export in bytes.
        size: u64,
        /// Minimum block size in bytes.
        minimum: u32,
    },
    /// The block sizes are not powers of two in order, or out of bounds.
    #[error("cannot export {name:?}: block sizes {sizes:?} are not valid")]
    BlockSizes {
        /// The name.
        name: String,
        /// The sizes.
        sizes: BlockSizes,
    },
}

/// Why a connection ended otherwise than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The stream failed or ended in the middle of a message.
    #[error("could not {doing} an NBD client")]
    Io {
        /// "read from" or "write to".
        doing: &'static str,
        /// What the stream said.
        source: io::Error,
    },
    /// The client broke the protocol.
    #[error("an NBD client broke the protocol")]
    Protocol(#[from] WireError),
    /// The client did not negotiate in time.
    #[error("an NBD client did not negotiate within {0:?}")]
    HandshakeDeadline(Duration),
    /// The client asked, by the option that cannot be refused, for an export there is not.
    #[error("an NBD client asked for the unknown export {name:?}")]
    UnknownExport {
        /// The name asked for.
        name: String,
    },
}

/// A registered export.
struct Entry {
    export: Arc<dyn Export>,
    description: String,
}

type Exports = BTreeMap<String, Entry>;

/// A set of exports, ready to be served.
pub struct Server {
    exports: Exports,
    limits: Limits,
}

impl Server {
    /// Makes a server without exports. Limits below what one request needs are raised.
    pub fn new(limits: Limits) -> Self {
        let limits = Limits {
            requests_in_flight_max: limits.requests_in_flight_max.max(1),
            bytes_in_flight_max: limits.bytes_in_flight_max.max(PAYLOAD_BYTES_MAX),
            ..limits
        };
        Server { exports: Exports::new(), limits }
    }

    /// Adds an export. The empty name is the one a client gets that names none.
    ///
    /// # Errors
    /// [`AddExportError`]; the set stays as it was.
    pub fn add(
        &mut self,
        name: &str,
        description: &str,
        export: Arc<dyn Export>,
    ) -> Result<(), AddExportError> {
        let text_is_bad = |text: &str| text.len() > STRING_BYTES_MAX || text.contains('\0');
        if text_is_bad(name) || text_is_bad(description) || self.exports.contains_key(name) {
            return Err(AddExportError::Name { name: name.to_owned() });
        }
        let (sizes, size) = (export.block_sizes(), export.size());
        if !sizes.are_valid() {
            return Err(AddExportError::BlockSizes { name: name.to_owned(), sizes });
        }
        if size > EXPORT_BYTES_MAX || !size.is_multiple_of(sizes.minimum.into()) {
            let (name, minimum) = (name.to_owned(), sizes.minimum);
            return Err(AddExportError::Size { name, size, minimum });
        }
        let description = description.to_owned();
        self.exports.insert(name.to_owned(), Entry { export, description });
        Ok(())
    }

    /// Serves on `listener` until [`RunningServer::shutdown`]. Must be called inside a runtime.
    ///
    /// The socket file belongs to the caller, who removes it after shutdown.
    pub fn start(self, listener: UnixListener) -> RunningServer {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept_all(Arc::new(self), listener, stopped));
        RunningServer { stop, task: Some(task) }
    }

    /// Serves one stream until the client leaves or `stop` becomes true (or its sender is gone).
    ///
    /// After that no request is read any more, those read are finished and answered, and the
    /// stream is closed. Dropping the future cuts requests off in the middle.
    ///
    /// # Errors
    /// [`ConnectionError`] when the client broke the protocol or went away in mid-message; writes
    /// it got an answer for have been done.
    pub async fn serve_stream<S>(
        &self,
        stream: S,
        stop: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        connection::serve(&self.exports, &self.limits, stream, stop).await
    }
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownOutcome {
    /// Every request that had been read was finished and answered.
    Finished,
    /// The deadline passed and the rest was cut off.
    CutOff,
}

/// A server at work. Dropping it cuts everything off.
pub struct RunningServer {
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl RunningServer {
    /// Stops accepting, finishes the requests in flight, closes all connections.
    pub async fn shutdown(mut self, deadline: Duration) -> ShutdownOutcome {
        self.stop.send_replace(true);
        let mut task = self.task.take().expect("only shutdown takes the task, and once");
        if tokio::time::timeout(deadline, &mut task).await.is_ok() {
            return ShutdownOutcome::Finished;
        }
        task.abort();
        let _ = task.await; // It ends as cancelled, which is what was asked for.
        ShutdownOutcome::CutOff
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Waits until `stop` says so or its sender is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await; // Fails when the sender is gone: the same to us.
}

async fn accept_all(server: Arc<Server>, listener: UnixListener, stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut stopping = stop.clone();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(_) if connections.len() >= server.limits.connections_max => {
                    tracing::warn!(max = connections.len(), "closed an NBD connection too many");
                }
                Ok((stream, _)) => {
                    let (server, stop) = (server.clone(), stop.clone());
                    connections.spawn(async move {
                        if let Err(error) = server.serve_stream(stream, stop).await {
                            tracing::info!(error = &error as &dyn std::error::Error,
                                "NBD connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept an NBD connection");
                    // Out of descriptors or memory: another try at once would only spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
