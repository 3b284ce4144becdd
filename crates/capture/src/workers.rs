//! The processors and the memory that passes of one process share: how many threads hash and pack
//! at once, and how many batches may be under way. Does not know what the work is.
//!
//! Bound of the memory, whatever the number of passes: [`BATCHES_MAX`] batches of at most 1 MiB,
//! [`BATCHES_OWN`] more for every pass and one in the hands of its consumer, and 2 MiB of buffers
//! for every worker.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Batches of 1 MiB that all passes of a process may have under way together, beyond their own:
/// 64 MiB, a quarter of what a process may take. At the limit a pass goes on with its own.
pub const BATCHES_MAX: usize = 64;
/// Batches that every pass may have under way whatever the others have: one is read while one is
/// taken, so no pass ever stands still for want of room.
pub const BATCHES_OWN: usize = 2;

/// See the module. Clones share.
#[derive(Clone, Debug)]
pub struct Workers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    count: usize,
    processors: Arc<Semaphore>,
    batches: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Leave for a batch; taken back when dropped.
#[derive(Debug)]
pub(crate) struct BatchRoom {
    _permit: OwnedSemaphorePermit,
}

impl BatchRoom {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> BatchRoom {
        BatchRoom { _permit: permit }
    }
}

/// Counts as waiting until dropped, so that a cancelled wait does not count for ever.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// So many threads at once; `None` takes one for every processor.
    pub fn new(count: Option<NonZeroUsize>) -> Workers {
        let count = count.or_else(|| std::thread::available_parallelism().ok());
        let count = count.map_or(1, NonZeroUsize::get);
        Workers(Arc::new(Shared {
            count,
            processors: Arc::new(Semaphore::new(count)),
            batches: Arc::new(Semaphore::new(BATCHES_MAX)),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// How many threads work at once.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// Pieces of work that wait for a thread now.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Runs `work`, which may block on files, when a thread is free for it; in the order of the
    /// calls. `None` when it panicked or the runtime is shutting down.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let shared = &self.0;
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&shared.waiting);
        let processor = Arc::clone(&shared.processors).acquire_owned().await.ok()?;
        drop(waiting);
        let run = move || {
            // Given back when the work is over, also if nobody waits for it any more.
            let _processor = processor;
            work()
        };
        tokio::task::spawn_blocking(run).await.ok()
    }

    /// Room for one more batch, if there is.
    pub(crate) fn batch_room(&self) -> Option<BatchRoom> {
        Arc::clone(&self.0.batches).try_acquire_owned().ok().map(BatchRoom::new)
    }
}

impl Default for Workers {
    /// One thread for every processor.
    fn default() -> Workers {
        Workers::new(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-046: a first copy takes no more of the processors than its setting says.
    #[test]
    fn never_more_threads_work_than_were_allowed() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build();
        let (working, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        runtime.unwrap().block_on(async {
            let workers = Workers::new(NonZeroUsize::new(2));
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..64 {
                let (workers, working, most) = (workers.clone(), working.clone(), most.clone());
                tasks.spawn(async move {
                    let work = move || {
                        most.fetch_max(
                            working.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                        std::thread::yield_now();
                        working.fetch_sub(1, Ordering::SeqCst);
                    };
                    workers.run(work).await.unwrap();
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            assert_eq!(workers.waiting(), 0);
        });
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
    }

    #[test]
    fn room_for_batches_ends_and_comes_back() {
        let workers = Workers::new(NonZeroUsize::new(1));
        let taken: Vec<_> = std::iter::from_fn(|| workers.batch_room()).collect();
        assert_eq!(taken.len(), BATCHES_MAX);
        drop(taken);
        assert!(workers.batch_room().is_some());
    }
}
