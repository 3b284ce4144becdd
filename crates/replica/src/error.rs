//! Why a replica store refuses, and the operator's code for each reason.

use crate::storage::StorageError;
use leeward_model::{Code, Epoch, ItemId, PointId, Problem};

/// Why something could not be done with a replica store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The blobs below could not be read or written.
    #[error("could not use the replica store: {0}")]
    Storage(#[from] StorageError),
    /// The folder is not this process's.
    #[error("the replica store is not ours: {why}")]
    Foreign {
        /// How that shows.
        why: String,
    },
    /// A key is missing or does not fit.
    #[error("cannot unlock {what}: {why}")]
    Key {
        /// What was to be unlocked.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// Bytes are not those that were written.
    #[error("{blob:?} is damaged: {why}")]
    Damaged {
        /// The blob.
        blob: String,
        /// How that shows.
        why: String,
    },
    /// The data come from an older epoch.
    #[error("data of epoch {epoch} are refused: the fence is at {fence}")]
    Fenced {
        /// Theirs.
        epoch: Epoch,
        /// Ours.
        fence: Epoch,
    },
    /// What was sent does not continue what is there.
    #[error("cannot take {what}: {why}")]
    Refused {
        /// What was offered.
        what: &'static str,
        /// Why it does not fit.
        why: String,
    },
    /// There is no such item in this store.
    #[error("there is no item {item} in this store")]
    NoItem {
        /// The item.
        item: ItemId,
    },
    /// There is no such point, or not any more.
    #[error("there is no recovery point {point}")]
    NoPoint {
        /// The point.
        point: PointId,
    },
    /// The place is not one whose data are kept.
    #[error("the data at {place} are not kept: no point and no pin needs them")]
    NotKept {
        /// Timeline and LSN.
        place: String,
    },
    /// Another writer made the next manifest.
    #[error("manifest {number} was written by somebody else")]
    Conflict {
        /// Its number.
        number: u64,
    },
    /// An earlier failure left it unknown what is durable; the item has to be opened again.
    #[error("the item takes nothing more until it is opened again: {why}")]
    Stale {
        /// The failure.
        why: String,
    },
}

impl StoreError {
    /// The operator's code.
    pub fn code(&self) -> Code {
        match self {
            StoreError::Storage(error) if error.is_no_space() => Code::STORE_NO_SPACE,
            StoreError::Storage(StorageError::Locked { .. } | StorageError::LeaseLost { .. }) => {
                Code::FOLDER_IN_USE
            }
            StoreError::Storage(_) | StoreError::Stale { .. } => Code::STORE_IO,
            StoreError::Foreign { .. } | StoreError::Conflict { .. } => Code::STORE_FOREIGN,
            StoreError::Key { .. } => Code::KEY_MISSING,
            StoreError::Damaged { .. } => Code::STORE_DAMAGED,
            StoreError::Fenced { .. } => Code::STORE_FENCED,
            StoreError::Refused { .. } => Code::BAD_REQUEST,
            StoreError::NoItem { .. } => Code::NOT_FOUND,
            StoreError::NoPoint { .. } | StoreError::NotKept { .. } => Code::NO_POINT,
        }
    }

    /// What the operator reads; `what` says what was tried on which object.
    pub fn problem(&self, what: impl Into<String>) -> Problem {
        let mut cause = self.to_string();
        // The store's own words name the blob only: what is below says why.
        let mut source = match self {
            StoreError::Storage(error) => std::error::Error::source(error),
            _ => None,
        };
        while let Some(below) = source {
            cause += &format!(": {below}");
            source = below.source();
        }
        self.code().because(what, cause)
    }

    /// Whether a blob is not there: a writer may have rewritten what it held.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, StoreError::Storage(StorageError::Absent { .. }))
    }

    pub(crate) fn damaged(blob: &str, why: impl ToString) -> StoreError {
        StoreError::Damaged { blob: blob.to_owned(), why: why.to_string() }
    }

    pub(crate) fn refused(what: &'static str, why: impl Into<String>) -> StoreError {
        StoreError::Refused { what, why: why.into() }
    }
}
