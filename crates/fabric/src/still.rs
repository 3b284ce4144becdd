//! What the change sources of machines that are off share: disks that nobody writes.

use async_trait::async_trait;
use bytes::Bytes;
use leeward_capture::{ByteRange, CaptureError, DiskReader};
use leeward_model::DiskNumber;
use std::sync::Arc;

/// Reads what the reader below reads and names nothing as written.
pub(crate) struct NamesNothing(pub Arc<dyn DiskReader>);

#[async_trait]
impl DiskReader for NamesNothing {
    async fn ranges(&self, _: DiskNumber) -> Result<Vec<ByteRange>, CaptureError> {
        Ok(Vec::new())
    }

    async fn read(&self, disk: DiskNumber, offset: u64, len: u64) -> Result<Bytes, CaptureError> {
        self.0.read(disk, offset, len).await
    }
}
