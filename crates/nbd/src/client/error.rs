//! Errors of the client: what was tried, why it failed, and what may work instead.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::protocol::{Errno, WireError};

/// A request in words, for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    pub(super) what: &'static str,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) export: Arc<str>,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tried { what, offset, len, export } = self;
        write!(f, "{what} {len} bytes at {offset} of NBD export {export:?}")
    }
}

/// Why a connection is no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// [`super::Client::disconnect`] was called.
    #[error("the client disconnected")]
    Disconnected,
    /// The server closed it.
    #[error("the server closed the connection")]
    ByServer,
    /// The stream failed.
    #[error("the stream failed: {message}")]
    Stream {
        /// Kind of the error.
        kind: io::ErrorKind,
        /// Its text.
        message: String,
    },
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] WireError),
    /// A call was not answered in time.
    #[error("no answer within {deadline:?} to: {tried}")]
    TimedOut {
        /// The call.
        tried: Tried,
        /// Its deadline.
        deadline: Duration,
    },
}

/// What may work after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same again on the same connection.
    SameConnection,
    /// The same again on a new connection.
    NewConnection,
    /// Nothing: the request itself is at fault.
    Never,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Could not reach the server's socket.
    #[error("could not connect to the NBD server at {path}")]
    Connect {
        /// The socket.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// Negotiation failed.
    #[error("could not negotiate NBD export {export:?}")]
    Negotiate {
        /// The export.
        export: String,
        /// Why.
        source: NegotiateError,
    },
    /// The server answered with an error; the connection goes on.
    #[error("could not {tried}: {errno}: {message}")]
    Refused {
        /// The call.
        tried: Tried,
        /// The error number.
        errno: Errno,
        /// The server's words; may be empty.
        message: String,
    },
    /// The connection is no more.
    #[error("could not {tried}")]
    Closed {
        /// The call.
        tried: Tried,
        /// Why.
        source: Closed,
    },
    /// The call makes no sense for this export and was not sent.
    #[error("cannot {tried}: {problem}")]
    Invalid {
        /// The call.
        tried: Tried,
        /// What is wrong.
        problem: &'static str,
    },
}

impl ClientError {
    /// Tells what may work after this error.
    pub fn retry(&self) -> Retry {
        match self {
            ClientError::Connect { .. } | ClientError::Closed { .. } => Retry::NewConnection,
            ClientError::Negotiate { source, .. } => match source {
                NegotiateError::Closed(_) | NegotiateError::Deadline(_) => Retry::NewConnection,
                NegotiateError::Refused { .. } | NegotiateError::Context { .. } => Retry::Never,
                NegotiateError::Unfit(_) => Retry::Never,
            },
            ClientError::Refused { errno: Errno::IO | Errno::NOMEM | Errno::NOSPC, .. } => {
                Retry::SameConnection
            }
            ClientError::Refused { errno: Errno::SHUTDOWN, .. } => Retry::NewConnection,
            ClientError::Refused { .. } | ClientError::Invalid { .. } => Retry::Never,
        }
    }
}

/// Why negotiation failed.
#[derive(Debug, thiserror::Error)]
pub enum NegotiateError {
    /// The stream ended or the server broke the protocol.
    #[error("the connection was lost")]
    Closed(#[from] Closed),
    /// It took too long.
    #[error("it took longer than {0:?}")]
    Deadline(Duration),
    /// The server refused an option.
    #[error("the server refused option {option}: error {kind:#x}: {message}")]
    Refused {
        /// Of [`crate::protocol::option`].
        option: u32,
        /// Of [`crate::protocol::reply`].
        kind: u32,
        /// The server's words; may be empty.
        message: String,
    },
    /// The server does not know a metadata context.
    #[error("the server has no metadata context {name:?}")]
    Context {
        /// The context.
        name: String,
    },
    /// What was asked for, or the server, does not fit this client.
    #[error("{0}")]
    Unfit(String),
}
