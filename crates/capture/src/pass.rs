//! A pass over a machine's disks: reads, compares with the hash files, yields what to send.
//!
//! Does not send, does not write hash files, and does not decide when a pass is due. The caller
//! pushes each [`Found::record`] into the hash files' journal and commits it with the target.

mod plan;

use crate::{
    ahead::KnownExtents,
    hash_file::HashError,
    record::{Difference, Hasher, Record, compare, kept_blocks, still_differing},
    source::{BlockingRead, CaptureError, DiskReader},
    workers::{BatchRoom, BatchRooms, Lane, Workers},
};
use bytes::Bytes;
use leeward_model::{BlockMask, Change, DiskEntry, DiskNumber, EXTENT_BYTES, ExtentNumber};
use plan::{Content, Plan, Work, group_len};
use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const EXTENT: usize = EXTENT_BYTES as usize;
/// Batches of at most 1 MiB that a pass has under way: enough that the workers do not stand still
/// while the consumer waits for a flush of the store.
const BATCHES_UNDER_WAY: usize = 32;
/// Bytes that a worker reads at a time where it reads by itself: they are hashed and packed while
/// they lie in the processor's own cache, whose half they take.
const READ_BYTES: usize = 256 << 10;
/// Runs of extents that one worker takes at a time: as many as one batch has extents where it reads
/// by itself, few where the reads of several batches are to be under way together.
const WORKS_PER_BATCH: usize = 16;
const WORKS_PER_REMOTE_BATCH: usize = 4;
/// Disks of 2^32 extents, 256 TiB: what an extent number can name.
const DISK_BYTES_MAX: u64 = (1 << 32) * EXTENT_BYTES;

/// Which extents a pass looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PassKind {
    /// The ranges are all that may differ from zero: what lies outside is zero and is sent as
    /// zero where the target has data.
    Full,
    /// The ranges are what was written: what lies outside is as the target has it.
    Delta,
}

/// What a pass works on.
pub struct PassInput {
    /// Reads the machine.
    pub reader: Arc<dyn DiskReader>,
    /// The disks to look at, with their sizes as the reader sees them.
    pub disks: Vec<DiskEntry>,
    /// What the target has; settled before the pass.
    pub hashes: Arc<dyn KnownExtents>,
    /// The item's keyed hash functions.
    pub hasher: Arc<dyn Hasher>,
    /// Which extents are looked at.
    pub kind: PassKind,
    /// What hashes, and does the caller's part of the work.
    pub workers: Workers,
    /// Ends the pass early, which then says [`PassError::Cancelled`].
    pub cancel: CancellationToken,
}

/// An extent that differs, and what the hash file has to say once the target has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What to send.
    pub change: Change,
    /// The extent's new record, for [`crate::HashFiles::push`].
    pub record: Record,
    /// Whether the change names only blocks that may differ. Not so where the hash file knows
    /// only the extent's leaf hash: then it names all 16, and [`Found::recut`] may drop some.
    pub blocks_known: bool,
}

impl Found {
    /// Leaves out the blocks that the target has already, by the keyed hashes of the extent's 16
    /// blocks there; that of a zero block is of 4096 zeros. Hash and record stay as they are.
    ///
    /// `None` when no block differs: then nothing is to be sent, and the record, taken before,
    /// may be pushed all the same, as the target holds what it says.
    pub fn recut(self, target_blocks: &[[u8; 16]; 16], hasher: &dyn Hasher) -> Option<Found> {
        let Found { change, record, .. } = self;
        let mask = still_differing(change.mask, &record, target_blocks, hasher);
        if mask == BlockMask::NONE {
            return None;
        }
        let data = kept_blocks(&change.data, change.mask, mask);
        Some(Found { change: Change { mask, data, ..change }, record, blocks_known: true })
    }
}

/// How far a pass is. Sizes in bytes, over all disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassProgress {
    /// Looked at, in whole extents.
    pub done_bytes: u64,
    /// To be sent, before compression; zeros count nothing.
    pub sent_bytes: u64,
    /// To be looked at. Extents that are zero without reading count in neither.
    pub total_bytes: u64,
}

/// Some of what a pass found: at most 1 MiB of data, in ascending order, one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassBatch<T = Vec<Found>> {
    /// Differing extents, never none, or what the caller's part of the work made of them. Over a
    /// pass an extent appears at most once.
    pub found: T,
    /// How far the pass is with this batch.
    pub progress: PassProgress,
}

/// Why a pass ended early. Nothing that it yielded is wrong; it is only not all.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The machine could not be read.
    #[error("could not read the machine")]
    Capture(#[from] CaptureError),
    /// The hash files could not be used.
    #[error("could not use the hash files")]
    Hashes(#[from] HashError),
    /// The reader gave another number of bytes than it was asked for.
    #[error("a read of {wanted} bytes at {offset} of disk {disk} gave {got}")]
    ShortRead {
        /// The disk.
        disk: DiskNumber,
        /// Byte offset of the read.
        offset: u64,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes given.
        got: u64,
    },
    /// The disk has more than 2^32 extents.
    #[error("disk {0} is larger than 256 TiB")]
    TooLarge(DiskNumber),
    /// The pass was told to end.
    #[error("the pass was cancelled")]
    Cancelled,
    /// The pass's task ended without a word: it panicked, or the runtime is shutting down.
    #[error("the pass stopped before its end")]
    Stopped,
}

/// How full a pass's queues are, in batches, when the caller's part of the work begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassDepth {
    /// Of all passes of the process, waiting for a worker.
    pub waiting: usize,
    /// Of this pass, done and waiting to be taken.
    pub ready: usize,
    /// Most that this pass has under way.
    pub room: usize,
}

/// The caller's part of the work on a batch, done where its bytes still lie in the cache: on the
/// workers, in any order. What it returns is taken in the order of the disk.
pub type PassFinish<T> = Arc<dyn Fn(Vec<Found>, PassDepth) -> T + Send + Sync>;

enum Step<T> {
    Batch(PassBatch<T>, BatchRoom),
    Failed(PassError),
    Done(PassProgress),
}

/// A running pass. Dropped, it stops.
pub struct Pass<T = Vec<Found>> {
    steps: mpsc::Receiver<Step<T>>,
    ready: Arc<AtomicUsize>,
    cancel: CancellationToken,
    progress: PassProgress,
}

/// Told of progress, also while nothing is found. Called on the pass's task; must not block.
pub type ProgressCallback = Arc<dyn Fn(PassProgress) + Send + Sync>;

impl Pass {
    /// Starts a pass on the current Tokio runtime.
    pub fn start(input: PassInput, progress: ProgressCallback) -> Pass {
        Pass::start_with(input, progress, Arc::new(|found, _| found))
    }
}

impl<T: Send + 'static> Pass<T> {
    /// Starts a pass on the current Tokio runtime, whose workers also do `finish`.
    pub fn start_with(
        input: PassInput,
        progress: ProgressCallback,
        finish: PassFinish<T>,
    ) -> Pass<T> {
        // A child: dropping this pass must not end whatever else hangs on the caller's token.
        let cancel = input.cancel.child_token();
        // One: what is done waits where it is counted.
        let (sender, steps) = mpsc::channel(1);
        let token = cancel.clone();
        let ready = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ready);
        tokio::spawn(async move {
            let (lane, rooms) = (input.workers.lane(), input.workers.batch_rooms());
            let running = Running {
                input,
                lane,
                sender: sender.clone(),
                callback: progress,
                finish,
                ready: counted,
                progress: PassProgress::default(),
                rooms,
                in_flight: VecDeque::with_capacity(BATCHES_UNDER_WAY),
            };
            let last = tokio::select! {
                biased;
                () = token.cancelled() => Step::Failed(PassError::Cancelled),
                outcome = running.run() => match outcome {
                    Ok(progress) => Step::Done(progress),
                    Err(error) => Step::Failed(error),
                },
            };
            // A closed channel means that nobody waits for the end any more.
            let _ = sender.send(last).await;
        });
        Pass { steps, ready, cancel, progress: PassProgress::default() }
    }

    /// The next batch; `None` when the pass is complete, and only then.
    pub async fn next(&mut self) -> Result<Option<PassBatch<T>>, PassError> {
        match self.steps.recv().await {
            Some(Step::Batch(batch, room)) => {
                drop(room);
                self.ready.fetch_sub(1, Ordering::Relaxed);
                self.progress = batch.progress;
                Ok(Some(batch))
            }
            Some(Step::Done(progress)) => {
                self.progress = progress;
                Ok(None)
            }
            Some(Step::Failed(error)) => Err(error),
            None => Err(PassError::Stopped),
        }
    }

    /// How far the pass was with the last batch taken.
    pub fn progress(&self) -> PassProgress {
        self.progress
    }
}

impl<T> Drop for Pass<T> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// What a worker made of a piece of work; nothing when all of it was equal.
struct Worked<T> {
    made: Option<T>,
    sent_bytes: u64,
}

type Outcome<T> = Result<Worked<T>, PassError>;

/// Work that was handed over.
enum Task<T> {
    /// To a task, which reads first.
    Reading(JoinHandle<Outcome<T>>),
    /// To a worker, which also reads.
    Queued(oneshot::Receiver<Outcome<T>>),
}

impl<T> Task<T> {
    /// Waits for its end. Dropped on the way, it can be called again.
    async fn done(&mut self) -> Outcome<T> {
        match self {
            Task::Reading(task) => task.await.map_err(|_| PassError::Stopped)?,
            Task::Queued(done) => done.await.map_err(|_| PassError::Stopped)?,
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        match self {
            Task::Reading(task) => task.abort(),
            // Nobody waits for it any more, by which the worker leaves it out.
            Task::Queued(_) => {}
        }
    }
}

/// A piece of work under way.
struct UnderWay<T> {
    bytes: u64,
    task: Task<T>,
    room: BatchRoom,
}

struct Running<T> {
    input: PassInput,
    sender: mpsc::Sender<Step<T>>,
    callback: ProgressCallback,
    finish: PassFinish<T>,
    /// Batches that are done and were not taken yet.
    ready: Arc<AtomicUsize>,
    progress: PassProgress,
    /// Its place among the passes that take turns.
    lane: Lane,
    /// The batches that it may have under way.
    rooms: BatchRooms,
    /// Reads and comparisons under way, oldest first; aborted when dropped.
    in_flight: VecDeque<UnderWay<T>>,
}

impl<T: Send + 'static> Running<T> {
    async fn run(mut self) -> Result<PassProgress, PassError> {
        self.input.hashes.settled()?;
        for mut plan in self.plans().await? {
            loop {
                // Planning looks for records in the hash file: off the async threads.
                let (back, works) = blocking(move || {
                    let works = plan.next_works();
                    (plan, works)
                })
                .await?;
                plan = back;
                let works = works?;
                if works.is_empty() {
                    break;
                }
                let mut rest = &works[..];
                while let Some(first) = rest.first() {
                    let most = match self.input.reader.blocking(first.disk) {
                        Some(_) => WORKS_PER_BATCH,
                        None => WORKS_PER_REMOTE_BATCH,
                    };
                    let (group, more) = rest.split_at(group_len(rest, most));
                    self.add(group, plan.size()).await?;
                    rest = more;
                }
            }
        }
        while !self.in_flight.is_empty() {
            self.collect().await?;
        }
        Ok(self.progress)
    }

    async fn plans(&mut self) -> Result<Vec<Plan>, PassError> {
        let mut plans = Vec::new();
        for disk in &self.input.disks {
            if disk.size > DISK_BYTES_MAX {
                return Err(PassError::TooLarge(disk.number));
            }
            let ranges = self.input.reader.ranges(disk.number).await?;
            let hashes = Arc::clone(&self.input.hashes);
            let plan = Plan::new(disk, &ranges, hashes, self.input.kind);
            self.progress.total_bytes += plan.bytes();
            plans.push(plan);
        }
        Ok(plans)
    }

    /// Leave for one more batch: the pass's own come first.
    async fn room(&mut self) -> Result<BatchRoom, PassError> {
        loop {
            let under_way = self.in_flight.len();
            if under_way < BATCHES_UNDER_WAY
                && let Some(room) = self.rooms.take()
            {
                return Ok(room);
            }
            if under_way == 0 {
                // All of its own wait for the consumer.
                return self.rooms.own().await.ok_or(PassError::Stopped);
            }
            self.collect().await?;
        }
    }

    /// Has some runs of one disk looked at, as one batch.
    async fn add(&mut self, group: &[Work], size: u64) -> Result<(), PassError> {
        let room = self.room().await?;
        let len = |work: &Work| match work.content {
            Content::Read => (u64::from(work.count) * EXTENT_BYTES).min(size - work.first.offset()),
            Content::Zero => 0,
        };
        let works: Vec<(Work, u64)> = group.iter().map(|work| (*work, len(work))).collect();
        let bytes = works.iter().map(|(_, len)| len.next_multiple_of(EXTENT_BYTES)).sum();
        let reader = Arc::clone(&self.input.reader);
        let (workers, lane) = (self.input.workers.clone(), self.lane);
        let here = reader.blocking(group[0].disk);
        if let Some(here) = &here {
            for (work, len) in works.iter().filter(|(_, len)| *len > 0) {
                here.announce(work.first.offset(), *len);
            }
        }
        let job = Job {
            hashes: Arc::clone(&self.input.hashes),
            hasher: Arc::clone(&self.input.hasher),
            finish: Arc::clone(&self.finish),
            ready: Arc::clone(&self.ready),
            workers: workers.clone(),
        };
        let task = match here {
            Some(here) => {
                let run = move || job.read_and_run(&*here, &works);
                Task::Queued(workers.start_in(lane, run))
            }
            None => Task::Reading(tokio::spawn(async move {
                let mut contents = Vec::with_capacity(works.len());
                for (work, len) in &works {
                    contents.push(match len {
                        0 => Bytes::new(),
                        len => read(&*reader, work, *len).await?,
                    });
                }
                let run = move || job.run(&works, &contents);
                workers.run_in(lane, run).await.ok_or(PassError::Stopped)?
            })),
        };
        self.in_flight.push_back(UnderWay { bytes, task, room });
        Ok(())
    }

    /// Waits for the oldest read and passes on what it found.
    async fn collect(&mut self) -> Result<(), PassError> {
        // Stays in the queue while waited for, so that a cancelled pass aborts it as well.
        let Some(oldest) = self.in_flight.front_mut() else { return Ok(()) };
        let outcome = oldest.task.done().await;
        let Some(UnderWay { bytes, room, .. }) = self.in_flight.pop_front() else {
            return Ok(());
        };
        let Worked { made, sent_bytes } = outcome?;
        self.progress.done_bytes += bytes;
        self.progress.sent_bytes += sent_bytes;
        (self.callback)(self.progress);
        let Some(found) = made else { return Ok(()) };
        let batch = PassBatch { found, progress: self.progress };
        self.sender.send(Step::Batch(batch, room)).await.map_err(|_| PassError::Cancelled)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PassError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| PassError::Stopped)
}

async fn read(reader: &dyn DiskReader, work: &Work, wanted: u64) -> Result<Bytes, PassError> {
    let offset = work.first.offset();
    let bytes = reader.read(work.disk, offset, wanted).await?;
    let got = bytes.len() as u64;
    if got != wanted {
        return Err(PassError::ShortRead { disk: work.disk, offset, wanted, got });
    }
    Ok(bytes)
}

thread_local! {
    /// What a worker reads into.
    static CONTENT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a worker needs for one batch.
struct Job<T> {
    hashes: Arc<dyn KnownExtents>,
    hasher: Arc<dyn Hasher>,
    finish: PassFinish<T>,
    ready: Arc<AtomicUsize>,
    workers: Workers,
}

impl<T> Job<T> {
    /// Runs and their lengths in bytes, read piece by piece; a run of no length is zero.
    fn read_and_run(
        self,
        reader: &dyn BlockingRead,
        works: &[(Work, u64)],
    ) -> Result<Worked<T>, PassError> {
        let mut found = Vec::new();
        CONTENT.with_borrow_mut(|content| {
            content.resize(READ_BYTES, 0);
            for (work, len) in works {
                for (part, known) in (0..).zip(self.known(work)?.chunks(READ_BYTES / EXTENT)) {
                    let from = part * READ_BYTES as u64;
                    let wanted = READ_BYTES.min(len.saturating_sub(from) as usize);
                    let content = &mut content[..wanted];
                    if wanted > 0 {
                        reader.read_into(content, work.first.offset() + from)?;
                    }
                    let first = ExtentNumber(work.first.0 + (from / EXTENT_BYTES) as u32);
                    compare_all((work.disk, first), content, known, &*self.hasher, &mut found);
                }
            }
            Ok::<_, PassError>(())
        })?;
        Ok(self.finished(found))
    }

    /// Runs whose contents were read before.
    fn run(self, works: &[(Work, u64)], contents: &[Bytes]) -> Result<Worked<T>, PassError> {
        let mut found = Vec::new();
        for ((work, _), content) in works.iter().zip(contents) {
            let known = self.known(work)?;
            let first = (work.disk, work.first);
            compare_all(first, content, &known, &*self.hasher, &mut found);
        }
        Ok(self.finished(found))
    }

    fn known(&self, work: &Work) -> Result<Vec<Record>, PassError> {
        let Work { disk, first, count, .. } = *work;
        Ok(self.hashes.records(disk, first, count)?)
    }

    fn finished(self, found: Vec<Found>) -> Worked<T> {
        let sent_bytes = found.iter().map(|found| found.change.data.len() as u64).sum();
        if found.is_empty() {
            return Worked { made: None, sent_bytes };
        }
        let depth = PassDepth {
            waiting: self.workers.waiting(),
            ready: self.ready.load(Ordering::Relaxed),
            room: BATCHES_UNDER_WAY,
        };
        let made = Some((self.finish)(found, depth));
        self.ready.fetch_add(1, Ordering::Relaxed);
        Worked { made, sent_bytes }
    }
}

/// Compares the extents from `first` on with what the target has of them; what `content` lacks is
/// zero.
pub(crate) fn compare_all(
    (disk, first): (DiskNumber, ExtentNumber),
    content: &[u8],
    known: &[Record],
    hasher: &dyn Hasher,
    found: &mut Vec<Found>,
) {
    let mut padded = Vec::new();
    for (index, known) in (0..).zip(known) {
        let extent = ExtentNumber(first.0 + index);
        let from = content.len().min(index as usize * EXTENT);
        let to = content.len().min(from + EXTENT);
        let bytes = if to - from == EXTENT {
            &content[from..to]
        } else {
            padded.clear();
            padded.extend_from_slice(&content[from..to]);
            padded.resize(EXTENT, 0);
            &padded
        };
        let Some(difference) = compare(bytes, known, hasher) else { continue };
        let Difference { mask, data, hash, record, blocks_known } = difference;
        let change = Change { disk, extent, mask, data, hash };
        found.push(Found { change, record, blocks_known });
    }
}

#[cfg(test)]
mod tests;
