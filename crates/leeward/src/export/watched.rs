//! An export whose reads are watched: they are noted for the next boot set, and whoever fetches
//! ahead waits while one of them is under way. Changes nothing of what is served.

use super::boot_set::{Place, Recorder};
use async_trait::async_trait;
use bytes::Bytes;
use leeward_model::DiskNumber;
use leeward_nbd::server::{Export, ExportError, ExportExtent};
use leeward_replica::{PointExport, View};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::Notify;

/// Knows whether a read is under way.
#[derive(Default)]
pub struct Gate {
    reading: AtomicUsize,
    free: Notify,
}

struct Reading<'a>(&'a Gate);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if self.0.reading.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.free.notify_waiters();
        }
    }
}

impl Gate {
    fn enter(&self) -> Reading<'_> {
        self.reading.fetch_add(1, Ordering::SeqCst);
        Reading(self)
    }

    /// Waits until no read is under way.
    async fn free(&self) {
        loop {
            let free = self.free.notified();
            tokio::pin!(free);
            // Before the look, so that an end between the two is not missed.
            free.as_mut().enable();
            if self.reading.load(Ordering::SeqCst) == 0 {
                return;
            }
            free.await;
        }
    }
}

/// See the module.
pub struct Watched {
    inner: PointExport,
    disk: DiskNumber,
    gate: Arc<Gate>,
    recorder: Option<Arc<Recorder>>,
}

impl Watched {
    /// Watches `inner`, which serves `disk`.
    pub fn new(
        inner: PointExport,
        disk: DiskNumber,
        gate: Arc<Gate>,
        recorder: Option<Arc<Recorder>>,
    ) -> Watched {
        Watched { inner, disk, gate, recorder }
    }

    fn note(&self, offset: u64, len: u32) {
        if let Some(recorder) = &self.recorder {
            recorder.note(self.disk, offset, len);
        }
    }
}

#[async_trait]
impl Export for Watched {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn read_at_once(&self, offset: u64, len: u32) -> Option<Bytes> {
        let read = self.inner.read_at_once(offset, len)?;
        self.note(offset, len);
        Some(read)
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ExportError> {
        let _reading = self.gate.enter();
        self.note(offset, len);
        self.inner.read(offset, len).await
    }

    async fn status(&self, offset: u64, len: u32) -> Result<Vec<ExportExtent>, ExportError> {
        let _reading = self.gate.enter();
        self.inner.status(offset, len).await
    }
}

/// Fetches the places ahead, one at a time and only while no read is under way; returns how many
/// are decoded then. What cannot be read is left out: whoever needs it is told.
pub async fn fetch_ahead(view: Arc<View>, gate: Arc<Gate>, places: Vec<Place>) -> usize {
    let mut fetched = 0;
    for (disk, extent) in places {
        gate.free().await;
        let view = Arc::clone(&view);
        let done = tokio::task::spawn_blocking(move || view.fetch_ahead(disk, extent)).await;
        match done {
            Ok(Ok(kept)) => fetched += usize::from(kept),
            Ok(Err(error)) => tracing::debug!(%disk, %extent, %error, "not fetched ahead"),
            Err(error) => tracing::debug!(%error, "not fetched ahead"),
        }
    }
    fetched
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::Future, pin::Pin};

    async fn is_done(work: Pin<&mut impl Future<Output = ()>>) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = std::future::ready(()) => false,
        }
    }

    /// Guest reads first.
    #[tokio::test]
    async fn nobody_passes_the_gate_while_a_read_is_under_way() {
        let gate = Gate::default();
        let (first, second) = (gate.enter(), gate.enter());
        let mut free = std::pin::pin!(gate.free());
        assert!(!is_done(free.as_mut()).await);
        drop(first);
        assert!(!is_done(free.as_mut()).await);
        drop(second);
        assert!(is_done(free.as_mut()).await);
        gate.free().await;
    }
}
