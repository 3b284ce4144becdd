//! A blob store that says how many bytes are free as a test wants it, and takes them all.

use super::{Appender, BlobStore, Put, StorageError, StoreLock};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Passes every call on, but answers itself how much room there is.
pub struct RoomStore {
    inner: Arc<dyn BlobStore>,
    free: Arc<AtomicU64>,
}

impl RoomStore {
    /// Wraps `inner`; `free` are the free bytes, now and whenever it is changed.
    pub fn new(inner: Arc<dyn BlobStore>, free: Arc<AtomicU64>) -> RoomStore {
        RoomStore { inner, free }
    }
}

impl BlobStore for RoomStore {
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError> {
        self.inner.create_new(name)
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.inner.put_new(name, bytes)
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        self.inner.read_at(name, offset, len)
    }

    fn len(&self, name: &str) -> Result<Option<u64>, StorageError> {
        self.inner.len(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        self.inner.list(folder)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.inner.delete(name)
    }

    fn sync_dir(&self, folder: &str) -> Result<(), StorageError> {
        self.inner.sync_dir(folder)
    }

    fn lock(&self, name: &str) -> Result<StoreLock, StorageError> {
        self.inner.lock(name)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        Ok(Some(self.free.load(Ordering::SeqCst)))
    }
}
