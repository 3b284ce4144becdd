//! Serves one disk of a view over NBD, read-only. Knows no sockets: the NBD server does.

use crate::{RunKind, StoreError, View};
use async_trait::async_trait;
use bytes::Bytes;
use leeward_model::DiskNumber;
use leeward_nbd::{
    protocol::Errno,
    server::{Allocation, Export, ExportError, ExportExtent},
};
use std::sync::Arc;
use tokio::{runtime::RuntimeFlavor, sync::Semaphore};

/// One disk of a recovery point.
#[derive(Clone)]
pub struct PointExport {
    view: Arc<View>,
    disk: DiskNumber,
    size: u64,
}

impl PointExport {
    /// Serves `disk` of `view`.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the view has no such disk.
    pub fn new(view: Arc<View>, disk: DiskNumber) -> Result<PointExport, StoreError> {
        let entry = view.disks().iter().find(|entry| entry.number == disk);
        let size = entry.map(|entry| entry.size);
        match size {
            Some(size) => Ok(PointExport { view, disk, size }),
            None => Err(StoreError::refused("an export", format!("there is no disk {disk}"))),
        }
    }

    /// Runs store work where it may block.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&View, DiskNumber) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ExportError> {
        let (view, disk) = (self.view.clone(), self.disk);
        let done = tokio::task::spawn_blocking(move || work(&view, disk)).await;
        match done {
            Ok(done) => done.map_err(|error| self.told(&error)),
            Err(error) => Err(ExportError::new(Errno::IO, error.to_string())),
        }
    }

    fn told(&self, error: &StoreError) -> ExportError {
        tracing::error!(disk = %self.disk, %error, "could not serve a recovery point");
        ExportError::new(Errno::IO, error.to_string())
    }

    /// Reads on the thread that asks, if that is quick: waking another one and being woken takes
    /// longer than a decoding. `None` when it would not be quick, or all other threads that serve
    /// could be busy with the same.
    fn read_here(&self, offset: u64, len: u32) -> Option<Result<Bytes, ExportError>> {
        if !self.view.is_quick(self.disk, offset, len as usize) || !has_other_workers() {
            return None;
        }
        let _only = READING_HERE.try_acquire().ok()?;
        let read = self.view.read(self.disk, offset, len as usize);
        Some(read.map_err(|error| self.told(&error)))
    }
}

/// One read at a time may hold up a thread that serves connections.
static READING_HERE: Semaphore = Semaphore::const_new(1);

/// Whether another thread goes on serving while this one reads.
fn has_other_workers() -> bool {
    let handle = tokio::runtime::Handle::current();
    handle.runtime_flavor() == RuntimeFlavor::MultiThread && handle.metrics().num_workers() > 1
}

#[async_trait]
impl Export for PointExport {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at_once(&self, offset: u64, len: u32) -> Option<Bytes> {
        self.view.read_kept(self.disk, offset, len as usize)
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ExportError> {
        if let Some(read) = self.read_here(offset, len) {
            return read;
        }
        self.run(move |view, disk| view.read(disk, offset, len as usize)).await
    }

    async fn status(&self, offset: u64, len: u32) -> Result<Vec<ExportExtent>, ExportError> {
        let runs = self.run(move |view, disk| view.status(disk, offset, len.into())).await?;
        let extents = runs.iter().map(|run| ExportExtent {
            len: run.len,
            allocation: match run.kind {
                RunKind::Data => Allocation::Data,
                RunKind::Hole => Allocation::Hole,
            },
        });
        Ok(extents.collect())
    }
}
