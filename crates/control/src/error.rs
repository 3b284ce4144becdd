//! Why the config server refused or could not do something. HTTP codes are chosen in `api`.

use leeward_model::{Code, Problem};

/// What sort of refusal it is; the API maps each to one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong.
    BadRequest,
    /// The named object does not exist.
    NotFound,
    /// The object's state, or another job, does not allow it now.
    Conflict,
    /// Somebody who is needed is away; may work later.
    Unavailable,
    /// The caller may not do it.
    Forbidden,
    /// An error of our own.
    Internal,
    /// Leeward does not have it yet.
    NotSupported,
}

/// Is a refusal as an operator reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", problem.code, problem.what)]
pub struct ControlError {
    /// The sort.
    pub kind: ErrorKind,
    /// What the operator reads.
    pub problem: Box<Problem>,
}

/// Is the result of every service function.
pub type Result<T> = std::result::Result<T, ControlError>;

impl ControlError {
    /// Makes a refusal of one kind and code; `what` says what happened to which object.
    pub fn new(kind: ErrorKind, code: Code, what: impl Into<String>) -> Self {
        ControlError { kind, problem: Box::new(code.problem(what)) }
    }
    /// The request is wrong: `what` names the field and what is allowed.
    pub fn bad_request(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadRequest, Code::BAD_REQUEST, what)
    }
    /// There is no such object.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, Code::NOT_FOUND, what)
    }
    /// The state does not allow it.
    pub fn not_now(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, Code::NOT_POSSIBLE_NOW, what)
    }
    /// Leeward does not have it yet.
    pub fn not_supported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotSupported, Code::NOT_SUPPORTED, what)
    }
    /// An error of our own; `error` goes to the log, not to the caller.
    pub fn internal(what: impl Into<String>, error: &dyn std::fmt::Display) -> Self {
        let what = what.into();
        tracing::error!(%error, "{what}");
        Self::new(ErrorKind::Internal, Code::INTERNAL, what)
    }
}
