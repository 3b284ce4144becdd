//! A blob store that fails its Nth call, for tests of what follows an I/O error.

use super::{Appender, BlobStore, Put, StorageError, StoreLock};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO, and nothing was done.
    Error,
    /// ENOSPC, and nothing was done.
    NoSpace,
    /// Half of the bytes were written; else as [`Fault::Error`].
    ShortWrite,
    /// EINTR, and nothing was done.
    Interrupted,
    /// EIO is answered although everything was done: a lost acknowledgement.
    LostReply,
}

/// Passes every call on, except the Nth.
pub struct FaultyStore {
    inner: Arc<dyn BlobStore>,
    plan: Arc<Plan>,
}

struct Plan {
    calls: AtomicU64,
    nth: u64,
    fault: Fault,
}

impl Plan {
    /// The fault, when this call is the one.
    fn next(&self) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        (call == self.nth).then_some(self.fault)
    }

    fn run<T>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let error = |kind: io::Error| {
            Err(StorageError::Io {
                action: "do the planned call on",
                name: name.into(),
                source: kind,
            })
        };
        match self.next() {
            None => work(),
            Some(Fault::Error | Fault::ShortWrite) => error(io::Error::from_raw_os_error(5)),
            Some(Fault::NoSpace) => error(io::Error::from_raw_os_error(28)),
            Some(Fault::Interrupted) => error(io::Error::from_raw_os_error(4)),
            Some(Fault::LostReply) => {
                work()?;
                error(io::Error::from_raw_os_error(5))
            }
        }
    }
}

impl FaultyStore {
    /// Wraps `inner`; call number `nth`, counted from 1 over all methods, fails with `fault`.
    pub fn new(inner: Arc<dyn BlobStore>, nth: u64, fault: Fault) -> FaultyStore {
        FaultyStore { inner, plan: Arc::new(Plan { calls: AtomicU64::new(0), nth, fault }) }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.plan.calls.load(Ordering::Relaxed)
    }
}

impl BlobStore for FaultyStore {
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError> {
        let inner = self.plan.run(name, || self.inner.create_new(name))?;
        let plan = self.plan.clone();
        Ok(Box::new(FaultyAppender { inner, plan, name: name.to_owned(), poisoned: false }))
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.plan.run(name, || self.inner.put_new(name, bytes))
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        self.plan.run(name, || self.inner.read_at(name, offset, len))
    }

    fn len(&self, name: &str) -> Result<Option<u64>, StorageError> {
        self.plan.run(name, || self.inner.len(name))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        self.plan.run(folder, || self.inner.list(folder))
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.plan.run(name, || self.inner.delete(name))
    }

    fn sync_dir(&self, folder: &str) -> Result<(), StorageError> {
        self.plan.run(folder, || self.inner.sync_dir(folder))
    }

    fn lock(&self, name: &str) -> Result<StoreLock, StorageError> {
        self.plan.run(name, || self.inner.lock(name))
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        self.plan.run("", || self.inner.free_bytes())
    }
}

struct FaultyAppender {
    inner: Box<dyn Appender>,
    plan: Arc<Plan>,
    name: String,
    poisoned: bool,
}

impl FaultyAppender {
    fn checked(
        &mut self,
        work: impl FnOnce(&mut dyn Appender, &Plan) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        if self.poisoned {
            return Err(StorageError::Poisoned { name: self.name.clone() });
        }
        let done = work(self.inner.as_mut(), &self.plan);
        self.poisoned = done.is_err();
        done
    }
}

impl Appender for FaultyAppender {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let name = self.name.clone();
        self.checked(|inner, plan| {
            let short = plan.fault == Fault::ShortWrite
                && plan.calls.load(Ordering::Relaxed) + 1 == plan.nth;
            if short {
                inner.append(&bytes[..bytes.len() / 2])?;
            }
            plan.run(&name, || inner.append(bytes))
        })
    }

    fn sync_data(&mut self) -> Result<(), StorageError> {
        let name = self.name.clone();
        self.checked(|inner, plan| plan.run(&name, || inner.sync_data()))
    }
}
