//! A disk of a point with an overlay of its own: what is written lies in a file beside the store,
//! by blocks of 4 KiB, and is read from there. The point, and the store, never change.
//!
//! The overlay is of one process: which blocks it holds is known in memory only, and the file has
//! no name. When the process ends, what was written is gone.

use super::{Failure, file_problem};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use leeward_nbd::{
    protocol::Errno,
    server::{Allocation, Export, ExportError, ExportExtent, HoleRule},
};
use std::{
    fs::File,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};
use tokio::sync::Mutex;

/// The unit of what the overlay holds, in bytes.
const BLOCK: u64 = 4096;

/// Which blocks the overlay holds, a bit each.
struct Held(Vec<u64>);

impl Held {
    fn of(size: u64) -> Held {
        Held(vec![0; size.div_ceil(BLOCK).div_ceil(64) as usize])
    }

    fn has(&self, block: u64) -> bool {
        self.0[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    fn add(&mut self, block: u64) {
        self.0[(block / 64) as usize] |= 1 << (block % 64);
    }

    /// The blocks from `block` on, before `end`, that are held alike: whether, and their end.
    fn run(&self, block: u64, end: u64) -> (bool, u64) {
        let held = self.has(block);
        let until = (block..end).find(|next| self.has(*next) != held);
        (held, until.unwrap_or(end))
    }
}

/// See the module.
pub(super) struct Overlay<E> {
    below: E,
    size: u64,
    file: Arc<File>,
    held: RwLock<Held>,
    /// One write at a time: two to parts of one block must not lose one another.
    writing: Mutex<()>,
}

impl<E: Export> Overlay<E> {
    /// An empty overlay over `below`, in a file without a name in `folder`.
    ///
    /// # Errors
    /// When the folder takes no file.
    pub(super) fn new(below: E, folder: &Path) -> Result<Overlay<E>, Failure> {
        let what = || format!("no overlay could be made in {}", folder.display());
        let size = below.size();
        let made = nameless(folder).and_then(|file| file.set_len(size).map(|()| file));
        let file = Arc::new(made.map_err(|error| file_problem(what(), &error))?);
        let held = RwLock::new(Held::of(size));
        Ok(Overlay { below, size, file, held, writing: Mutex::default() })
    }

    fn run(&self, at: u64, end: u64) -> (bool, u64) {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let (is_held, until) = held.run(at / BLOCK, end.div_ceil(BLOCK));
        (is_held, (until * BLOCK).min(end))
    }

    async fn read_held(&self, at: u64, len: usize) -> Result<Bytes, ExportError> {
        let file = Arc::clone(&self.file);
        on_file(move || {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at)?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    async fn put(&self, at: u64, bytes: Bytes) -> Result<(), ExportError> {
        let file = Arc::clone(&self.file);
        on_file(move || file.write_all_at(&bytes, at)).await
    }

    /// Brings the block that holds `at` in whole, unless it is held.
    async fn fill(&self, at: u64) -> Result<(), ExportError> {
        let start = at - at % BLOCK;
        let end = (start + BLOCK).min(self.size);
        if self.run(start, end).0 {
            return Ok(());
        }
        let below = self.below.read(start, (end - start) as u32).await?;
        self.put(start, below).await
    }
}

/// A file of this process alone, that ends with it.
fn nameless(folder: &Path) -> std::io::Result<File> {
    let path = folder.join(format!(".leeward-overlay-{}", uuid::Uuid::new_v4()));
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

async fn on_file<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ExportError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            ExportError::new(Errno::NOSPC, error.to_string())
        }
        _ => ExportError::new(Errno::IO, error.to_string()),
    })
}

#[async_trait]
impl<E: Export> Export for Overlay<E> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ExportError> {
        let end = offset + u64::from(len);
        let mut out = BytesMut::with_capacity(len as usize);
        let mut at = offset;
        while at < end {
            let (is_held, until) = self.run(at, end);
            let part = match is_held {
                true => self.read_held(at, (until - at) as usize).await?,
                false => self.below.read(at, (until - at) as u32).await?,
            };
            out.extend_from_slice(&part);
            at = until;
        }
        Ok(out.freeze())
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        let end = offset + data.len() as u64;
        let _writing = self.writing.lock().await;
        // What lies beside it in its first and its last block.
        if !offset.is_multiple_of(BLOCK) {
            self.fill(offset).await?;
        }
        if !end.is_multiple_of(BLOCK) && end != self.size {
            self.fill(end - 1).await?;
        }
        self.put(offset, data).await?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        (offset / BLOCK..end.div_ceil(BLOCK)).for_each(|block| held.add(block));
        Ok(())
    }

    async fn flush(&self) -> Result<(), ExportError> {
        let file = Arc::clone(&self.file);
        on_file(move || file.sync_data()).await
    }

    async fn trim(&self, _: u64, _: u32) -> Result<(), ExportError> {
        // A trimmed block may read as it did.
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u32, _: HoleRule) -> Result<(), ExportError> {
        self.write(offset, Bytes::from(vec![0; len as usize])).await
    }

    async fn status(&self, offset: u64, len: u32) -> Result<Vec<ExportExtent>, ExportError> {
        let (is_held, until) = self.run(offset, offset + u64::from(len));
        match is_held {
            true => Ok(vec![ExportExtent { len: until - offset, allocation: Allocation::Data }]),
            false => self.below.status(offset, (until - offset) as u32).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that has byte `i % 251` at place `i` and cannot be written.
    struct Below(u64);

    #[async_trait]
    impl Export for Below {
        fn size(&self) -> u64 {
            self.0
        }
        fn read_only(&self) -> bool {
            true
        }
        async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ExportError> {
            Ok((offset..offset + u64::from(len)).map(|at| (at % 251) as u8).collect())
        }
    }

    const SIZE: u64 = 10 * BLOCK + 512;

    /// Numbers that are the same in every run.
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *state >> 33
    }

    /// Whatever is written where: what is read is what a plain file would have.
    #[tokio::test]
    async fn an_overlay_reads_as_a_file_that_was_written_the_same() {
        let folder = tempfile::tempdir().unwrap();
        for seed in 0..40 {
            let (state, overlay) = (&mut (seed + 1), Overlay::new(Below(SIZE), folder.path()));
            let overlay = overlay.unwrap();
            let mut plain: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
            for _ in 0..12 {
                let at = next(state) % SIZE;
                let len = (1 + next(state) % (3 * BLOCK)).min(SIZE - at) as usize;
                let byte = next(state) as u8;
                match next(state) % 4 {
                    0 => {
                        let zeros = overlay.write_zeroes(at, len as u32, HoleRule::MayPunch);
                        zeros.await.unwrap();
                        plain[at as usize..at as usize + len].fill(0);
                    }
                    _ => {
                        overlay.write(at, vec![byte; len].into()).await.unwrap();
                        plain[at as usize..at as usize + len].fill(byte);
                    }
                }
            }
            overlay.flush().await.unwrap();
            let mut at = 0;
            while at < SIZE {
                let told = overlay.status(at, (SIZE - at) as u32).await.unwrap();
                assert!(told.iter().all(|extent| extent.len > 0), "seed {seed}");
                at += told.iter().map(|extent| extent.len).sum::<u64>();
            }
            assert_eq!(overlay.read(0, SIZE as u32).await.unwrap()[..], plain[..], "seed {seed}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a file was left");
    }
}
