//! The processors and the memory that passes of one process share: how many threads hash and pack
//! at once, and how many batches may be under way. Does not know what the work is.
//!
//! Bound of the memory, whatever the number of passes: [`MEMORY_BYTES`], or what was set, for all
//! of them; [`BATCHES_OWN`] batches more for every pass and one in the hands of its consumer; and 2
//! MiB of buffers for every worker. A pass that stands still keeps no more than its share.

use crate::share::{Pool, Share, Taken};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Most bytes of a batch.
pub const BATCH_BYTES: u64 = 1 << 20;
/// Memory that all passes of a process, and whoever else takes of it, have together, beyond what is
/// their own, when nothing else was set: a quarter of what a process may take.
pub const MEMORY_BYTES: u64 = 64 << 20;
/// Batches that every pass may have under way whatever the others have: it is read while the one
/// before it is in the consumer's hands, so no pass ever stands still for want of room.
pub const BATCHES_OWN: usize = 1;

/// See the module. Clones share.
#[derive(Clone, Debug)]
pub struct Workers(Arc<Shared>);

struct Shared {
    count: usize,
    turns: Mutex<Turns>,
    lanes: AtomicU64,
    memory: Pool,
    waiting: AtomicUsize,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("count", &self.count).finish_non_exhaustive()
    }
}

/// One of those that take turns: a pass, or whoever has work besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane(u64);

/// A piece of work that waits for its turn.
type Work = Box<dyn FnOnce() + Send>;

/// Whose turn it is. Pieces of work are of about one size, so that turns are shares.
struct Turns {
    /// Threads that nobody has.
    free: usize,
    /// What waits, in the order of each lane. Nothing waits while a thread is free.
    lanes: BTreeMap<Lane, VecDeque<Work>>,
    /// Lanes that have something waiting, in the order of their turns.
    order: VecDeque<Lane>,
}

impl Turns {
    /// Takes the next work of the lane whose turn it is.
    fn next(&mut self) -> Option<Work> {
        let lane = self.order.pop_front()?;
        let queue = self.lanes.get_mut(&lane)?;
        let next = queue.pop_front();
        match queue.is_empty() {
            true => drop(self.lanes.remove(&lane)),
            false => self.order.push_back(lane),
        }
        next
    }
}

impl Shared {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that was taken; given back when nothing waits, or when dropped.
struct Thread(Option<Arc<Shared>>);

impl Thread {
    /// Works as long as something waits: going on by itself costs less than waking another thread.
    fn work(mut self, first: Work) {
        let mut next = Some(first);
        while let Some(work) = next {
            // A panic ends that work alone. Whoever waits for it learns it by what it dropped.
            let _ = catch_unwind(AssertUnwindSafe(work));
            next = self.next();
        }
    }

    fn next(&mut self) -> Option<Work> {
        let shared = self.0.take()?;
        let mut turns = shared.turns();
        let next = turns.next();
        match next {
            None => turns.free += 1,
            Some(_) => {
                drop(turns);
                self.0 = Some(shared);
            }
        }
        next
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        let mut turns = shared.turns();
        turns.free += 1;
        // It never began: the runtime is shutting down. The last one drops what would wait on.
        let last = turns.free == shared.count;
        let left = if last { std::mem::take(&mut turns.lanes) } else { BTreeMap::new() };
        if last {
            turns.order.clear();
        }
        drop(turns);
        drop(left);
    }
}

/// Leave for a batch; taken back when dropped.
#[derive(Debug)]
pub(crate) struct BatchRoom {
    _own: Option<OwnedSemaphorePermit>,
    _shared: Option<Taken>,
}

/// Leave for the batches of one pass: its own, and its share of the memory of all.
#[derive(Debug)]
pub(crate) struct BatchRooms {
    own: Arc<Semaphore>,
    shared: Arc<Share>,
}

impl BatchRooms {
    /// Room for one more batch, if there is; the pass's own comes first.
    pub(crate) fn take(&self) -> Option<BatchRoom> {
        if let Ok(own) = Arc::clone(&self.own).try_acquire_owned() {
            return Some(BatchRoom { _own: Some(own), _shared: None });
        }
        let shared = self.shared.take(BATCH_BYTES)?;
        Some(BatchRoom { _own: None, _shared: Some(shared) })
    }

    /// Waits for the pass's own room.
    pub(crate) async fn own(&self) -> Option<BatchRoom> {
        let own = Arc::clone(&self.own).acquire_owned().await.ok()?;
        Some(BatchRoom { _own: Some(own), _shared: None })
    }
}

/// Counts as waiting until dropped, so that work that is never begun does not count for ever.
struct Waiting(Arc<Shared>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// So many threads at once; `None` takes one for every processor.
    pub fn new(count: Option<NonZeroUsize>) -> Workers {
        Workers::with_memory(count, MEMORY_BYTES)
    }

    /// As [`Self::new`], with so many bytes of memory in place of [`MEMORY_BYTES`].
    pub fn with_memory(count: Option<NonZeroUsize>, bytes: u64) -> Workers {
        let count = count.or_else(|| std::thread::available_parallelism().ok());
        let count = count.map_or(1, NonZeroUsize::get);
        Workers(Arc::new(Shared {
            count,
            turns: Mutex::new(Turns {
                free: count,
                lanes: BTreeMap::new(),
                order: VecDeque::new(),
            }),
            lanes: AtomicU64::new(0),
            memory: Pool::new(bytes),
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

    /// A lane of its own for somebody new.
    pub fn lane(&self) -> Lane {
        Lane(self.0.lanes.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs `work`, which may block on files, when a thread is free for it. `None` when it panicked
    /// or the runtime is shutting down.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.run_in(self.lane(), work).await
    }

    /// As [`Self::run`], in the order of the calls of `lane`. Lanes take turns: one that has much
    /// waiting takes no more of the threads than one that has little.
    pub async fn run_in<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.start_in(lane, work).await.ok()
    }

    /// As [`Self::run_in`], and takes its place at once, not when it is waited for. Given up, the
    /// work is left out unless it was begun. Must be called inside a runtime.
    pub(crate) fn start_in<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let shared = &self.0;
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(Arc::clone(shared));
        let (sender, done) = oneshot::channel();
        let work: Work = Box::new(move || {
            drop(waiting);
            if !sender.is_closed() {
                // Whoever waited may have left meanwhile.
                let _ = sender.send(work());
            }
        });
        let mut turns = shared.turns();
        if turns.free > 0 {
            turns.free -= 1;
            drop(turns);
            let thread = Thread(Some(Arc::clone(shared)));
            drop(tokio::task::spawn_blocking(move || thread.work(work)));
            return done;
        }
        let queue = turns.lanes.entry(lane).or_default();
        queue.push_back(work);
        if queue.len() == 1 {
            turns.order.push_back(lane);
        }
        done
    }

    /// The memory that the passes share, in bytes; others may take of it as well.
    pub fn memory(&self) -> &Pool {
        &self.0.memory
    }

    /// Room for the batches of somebody new.
    pub(crate) fn batch_rooms(&self) -> BatchRooms {
        BatchRooms { own: Arc::new(Semaphore::new(BATCHES_OWN)), shared: self.memory().share() }
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

    /// F-046: a first copy of a huge disk has much waiting; a small delta is through after its own
    /// turns, not after all that waited before it came.
    #[test]
    fn one_with_much_to_do_leaves_every_other_turn_to_one_with_little() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let workers = Workers::new(NonZeroUsize::new(1));
            let done = Arc::new(Mutex::new(Vec::new()));
            let (held, hold) = std::sync::mpsc::channel::<()>();
            let busy = tokio::spawn({
                let workers = workers.clone();
                async move { workers.run(move || hold.recv()).await }
            });
            let mut tasks = tokio::task::JoinSet::new();
            let (huge, small) = (workers.lane(), workers.lane());
            for (lane, pieces) in [(huge, 64), (small, 4)] {
                for _ in 0..pieces {
                    let (workers, done) = (workers.clone(), Arc::clone(&done));
                    tasks.spawn(async move {
                        let work = move || done.lock().unwrap().push(lane);
                        workers.run_in(lane, work).await.unwrap();
                    });
                }
            }
            while workers.waiting() < 68 {
                tokio::task::yield_now().await;
            }
            // One that gives up while it waits leaves its turn to the next.
            let gone = tokio::spawn({
                let workers = workers.clone();
                async move { workers.run_in(small, || ()).await }
            });
            while workers.waiting() < 69 {
                tokio::task::yield_now().await;
            }
            gone.abort();
            held.send(()).unwrap();
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            busy.await.unwrap();

            let done = done.lock().unwrap();
            let last = done.iter().rposition(|lane| *lane == small).unwrap();
            assert!(last <= 8, "the small one was through after {last} pieces");
            assert_eq!((done.len(), workers.waiting()), (68, 0));
        });
    }

    /// Batches of 1 MiB that all passes together have room for: 64 MiB.
    const BATCHES_MAX: usize = 64;

    #[test]
    fn a_panic_ends_its_own_work_and_its_thread_goes_on_with_what_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let workers = Workers::new(NonZeroUsize::new(1));
            let lane = workers.lane();
            let bad = workers.start_in(lane, || panic!("a test's"));
            let good = workers.start_in(lane, || 5);

            assert!(bad.await.is_err());
            assert_eq!(good.await, Ok(5));
            assert_eq!(workers.run(|| 6).await, Some(6));
        });
    }

    #[test]
    fn what_waits_when_the_runtime_ends_is_given_up_and_the_threads_come_back() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (workers, ended) = (Workers::new(NonZeroUsize::new(1)), runtime());
        let handle = ended.handle().clone();
        drop(ended);
        let _entered = handle.enter();
        let first = workers.start_in(workers.lane(), || 1);
        let second = workers.start_in(workers.lane(), || 2);

        runtime().block_on(async {
            assert!(first.await.is_err() && second.await.is_err());
            assert_eq!((workers.waiting(), workers.run(|| 3).await), (0, Some(3)));
        });
    }

    #[test]
    fn room_for_batches_ends_and_comes_back() {
        let workers = Workers::new(NonZeroUsize::new(1));
        let mut passes = Vec::new();
        let mut taken = Vec::new();
        for _ in 0..2 * BATCHES_MAX {
            let rooms = workers.batch_rooms();
            let own: Vec<_> = (0..BATCHES_OWN).map(|_| rooms.take().unwrap()).collect();
            taken.extend(std::iter::from_fn(|| rooms.take()));
            passes.push((rooms, own));
        }
        assert_eq!(taken.len(), BATCHES_MAX);
        drop(taken);
        assert!(passes[0].0.take().is_some());
    }

    /// F-046: a pass whose consumer stands still holds what it has; the next one still gets more
    /// than its own.
    #[test]
    fn a_pass_that_nobody_takes_from_keeps_no_more_than_its_share() {
        let workers = Workers::new(NonZeroUsize::new(1));
        let still = workers.batch_rooms();
        let held: Vec<_> = std::iter::from_fn(|| still.take()).collect();
        assert_eq!(held.len(), BATCHES_OWN + BATCHES_MAX / 2);

        let next = workers.batch_rooms();
        let taken: Vec<_> = std::iter::from_fn(|| next.take()).collect();

        assert_eq!(taken.len(), BATCHES_OWN + BATCHES_MAX / 4);
    }
}
