//! Where a replica store keeps its bytes: named blobs that are appended to once or put whole.
//!
//! It knows names and bytes, not segments or manifests. Names are relative, with `/` between
//! folders; folders come into being with their first blob. Durability is the caller's: see each
//! method for what is durable when it returns.

#[cfg(feature = "testing")]
mod crash;
#[cfg(feature = "testing")]
mod faulty;
mod local;
mod object;
#[cfg(feature = "testing")]
mod room;

#[cfg(feature = "testing")]
pub use crash::{CrashDisk, LostSync, Seeded};
#[cfg(feature = "testing")]
pub use faulty::{Fault, FaultyStore};
pub use local::LocalStore;
#[cfg(feature = "testing")]
pub use object::Backing;
pub use object::{
    AskError, ConnectError, History, Keeps, LeaseTimes, LockError, LockProof, Lost, ObjectBlobs,
    ObjectPlace, Takeover,
};
#[cfg(feature = "testing")]
pub use room::RoomStore;

use std::{any::Any, io};

/// Longest name of a blob in bytes, folders included: far below what any file system takes.
pub const NAME_BYTES_MAX: usize = 200;

/// Why a blob could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The system below refused.
    #[error("could not {action} {name:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which blob or folder.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// There is a blob of this name already.
    #[error("{name:?} exists already")]
    Exists {
        /// The blob.
        name: String,
    },
    /// There is no blob of this name.
    #[error("there is no {name:?}")]
    Absent {
        /// The blob.
        name: String,
    },
    /// An earlier write or flush of this blob failed; what it holds is not known any more.
    #[error("{name:?} takes nothing more: an earlier write or flush of it failed")]
    Poisoned {
        /// The blob.
        name: String,
    },
    /// Another process holds the lock.
    #[error("{name:?} is locked by {holder}")]
    Locked {
        /// The lock.
        name: String,
        /// By whom, as far as that is known.
        holder: String,
    },
    /// This process held the lock, and it was taken away or could not be renewed in time.
    #[error("{name:?} was not written: this process does not hold the lock any more")]
    LeaseLost {
        /// What was to be written.
        name: String,
    },
    /// The name is not one that a store uses.
    #[error("{name:?} is not a name of a blob")]
    Name {
        /// The name.
        name: String,
    },
    /// What is below does not refuse to create what exists.
    #[error("{name:?} does not enforce create-if-absent, so two writers could both win")]
    NotEnforced {
        /// The folder or bucket.
        name: String,
    },
}

impl StorageError {
    /// Whether the cause is a full file system or quota.
    pub fn is_no_space(&self) -> bool {
        match self {
            StorageError::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            StorageError::Exists { .. }
            | StorageError::Absent { .. }
            | StorageError::Poisoned { .. }
            | StorageError::Locked { .. }
            | StorageError::LeaseLost { .. }
            | StorageError::Name { .. }
            | StorageError::NotEnforced { .. } => false,
        }
    }
}

/// Outcome of [`BlobStore::put_new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The blob is there and durable.
    Created,
    /// A blob of this name was there before; nothing was changed.
    Exists,
}

/// A blob that is being appended to. There is at most one of these for a blob, ever: a blob is
/// never opened again for appending.
pub trait Appender: Send {
    /// Appends all of `bytes`; durable only after [`Self::sync_data`].
    ///
    /// # Errors
    /// [`StorageError::Io`]; from then on everything answers [`StorageError::Poisoned`].
    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError>;

    /// Appends all of `parts`, one after another, as one of [`Self::append`].
    ///
    /// # Errors
    /// As [`Self::append`].
    fn append_all(&mut self, parts: &[&[u8]]) -> Result<(), StorageError> {
        parts.iter().try_for_each(|part| self.append(part))
    }

    /// Makes durable what was appended, not the blob's name: see [`BlobStore::sync_dir`].
    ///
    /// # Errors
    /// [`StorageError::Io`]; a failed flush is never tried again, from then on everything answers
    /// [`StorageError::Poisoned`].
    fn sync_data(&mut self) -> Result<(), StorageError>;

    /// Makes durable what was appended; nothing more will be.
    ///
    /// # Errors
    /// As [`Self::sync_data`].
    fn finish(&mut self) -> Result<(), StorageError> {
        self.sync_data()
    }
}

/// What keeps the lock of [`BlobStore::lock`] while it lives.
pub type StoreLock = Box<dyn Any + Send + Sync>;

/// A place for blobs.
pub trait BlobStore: Send + Sync {
    /// Creates an empty blob to be appended to. Its name is durable after [`Self::sync_dir`].
    ///
    /// # Errors
    /// [`StorageError::Exists`] when there is one.
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError>;

    /// Puts a whole blob if there is none of this name, at once for every reader, and durably.
    ///
    /// # Errors
    /// [`StorageError::Io`]: whether the blob is there, and whether durably, is then not known.
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError>;

    /// Reads up to `len` bytes from `offset`; fewer only at the blob's end.
    ///
    /// # Errors
    /// [`StorageError::Absent`] when there is no such blob.
    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, StorageError>;

    /// Reads a blob that was put whole, at most `max` bytes of it.
    ///
    /// # Errors
    /// [`StorageError::Absent`] when there is no such blob.
    fn read_whole(&self, name: &str, max: usize) -> Result<Vec<u8>, StorageError> {
        let len = self.len(name)?.ok_or_else(|| StorageError::Absent { name: name.to_owned() })?;
        self.read_at(name, 0, usize::try_from(len).map_or(max, |len| len.min(max)))
    }

    /// Says which blobs will be read whole next, each once: a store far away may fetch them
    /// together. They never change once they are there.
    fn read_ahead(&self, names: &[String]) {
        let _ = names;
    }

    /// Replaces a hint: a small blob that readers may find in any earlier state or not at all, at
    /// once for each of them. Never durable. A place that has none takes it and does nothing.
    ///
    /// # Errors
    /// [`StorageError::Io`]; what was there before is there still.
    fn replace_hint(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let _ = (name, bytes);
        Ok(())
    }

    /// Reads a hint, at most `max` bytes of it; `None` when there is none.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn read_hint(&self, name: &str, max: usize) -> Result<Option<Vec<u8>>, StorageError> {
        let _ = (name, max);
        Ok(None)
    }

    /// Length in bytes, `None` when there is no such blob.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn len(&self, name: &str) -> Result<Option<u64>, StorageError>;

    /// Names of blobs and folders directly in `folder`, ascending; none when it does not exist.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError>;

    /// Deletes a blob or an empty folder; durable after [`Self::sync_dir`]. Absent is fine.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn delete(&self, name: &str) -> Result<(), StorageError>;

    /// Makes durable which names are in `folder`.
    ///
    /// # Errors
    /// [`StorageError::Io`]: nothing that rests on these names may be acknowledged.
    fn sync_dir(&self, folder: &str) -> Result<(), StorageError>;

    /// Takes the exclusive lock `name`, over all processes, until the result is dropped.
    ///
    /// # Errors
    /// [`StorageError::Locked`] when it is taken.
    fn lock(&self, name: &str) -> Result<StoreLock, StorageError>;

    /// Whether reads mostly take no longer than a file in the page cache does, so that waiting for
    /// one may cost less than handing it to another thread.
    fn is_near(&self) -> bool {
        false
    }

    /// Bytes that may still be written, when that is known.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn free_bytes(&self) -> Result<Option<u64>, StorageError>;
}

/// Splits a name into its folder (empty for the store's own) and the last part.
pub(crate) fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

/// Refuses names that could leave the store's folder or that no store writes.
fn check_name(name: &str) -> Result<(), StorageError> {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    if name.len() <= NAME_BYTES_MAX && name.split('/').all(plain) {
        Ok(())
    } else {
        Err(StorageError::Name { name: name.to_owned() })
    }
}
