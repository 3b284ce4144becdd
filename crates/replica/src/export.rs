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
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::error!(%disk, %error, "could not serve a recovery point");
                Err(ExportError::new(Errno::IO, error.to_string()))
            }
            Err(error) => Err(ExportError::new(Errno::IO, error.to_string())),
        }
    }
}

#[async_trait]
impl Export for PointExport {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ExportError> {
        self.run(move |view, disk| view.read(disk, offset, len as usize)).await.map(Bytes::from)
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
