//! A pass over a machine's disks: reads, compares with the hash files, yields what to send.
//!
//! Does not send, does not write hash files, and does not decide when a pass is due. The caller
//! pushes each [`Found::record`] into the hash files' journal and commits it with the target.

mod plan;

use crate::{
    hash_file::{HashError, HashFiles},
    record::{Difference, Hasher, Record, compare, kept_blocks, still_differing},
    source::{CaptureError, DiskReader},
};
use bytes::Bytes;
use leeward_model::{BlockMask, Change, DiskEntry, DiskNumber, EXTENT_BYTES, ExtentNumber};
use plan::{Content, Plan, Work};
use std::{collections::VecDeque, sync::Arc};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const EXTENT: usize = EXTENT_BYTES as usize;
// 4 reads of 1 MiB: one arrives while one is hashed, one is asked for and one is on its way; more
// only takes memory, because hashing (7 GiB/s a core) is not slower than the disk.
const READS_IN_FLIGHT: usize = 4;
// Batches that wait for the consumer; each holds at most 1 MiB of data.
const BATCHES_WAITING: usize = 2;
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
    /// What the target has; settled ([`HashFiles::settled`]) before the pass.
    pub hashes: Arc<HashFiles>,
    /// The item's keyed hash functions.
    pub hasher: Arc<dyn Hasher>,
    /// Which extents are looked at.
    pub kind: PassKind,
    /// Ends the pass early, which then says [`PassError::Cancelled`].
    pub cancel: CancellationToken,
}

/// An extent that differs, and what the hash file has to say once the target has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What to send.
    pub change: Change,
    /// The extent's new record, for [`HashFiles::push`].
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
pub struct PassBatch {
    /// Differing extents; never empty. Over a pass an extent appears at most once.
    pub found: Vec<Found>,
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

enum Step {
    Batch(PassBatch),
    Failed(PassError),
    Done(PassProgress),
}

/// A running pass. Dropped, it stops.
pub struct Pass {
    steps: mpsc::Receiver<Step>,
    cancel: CancellationToken,
    progress: PassProgress,
}

/// Told of progress, also while nothing is found. Called on the pass's task; must not block.
pub type ProgressCallback = Arc<dyn Fn(PassProgress) + Send + Sync>;

impl Pass {
    /// Starts a pass on the current Tokio runtime.
    pub fn start(input: PassInput, progress: ProgressCallback) -> Pass {
        // A child: dropping this pass must not end whatever else hangs on the caller's token.
        let cancel = input.cancel.child_token();
        let (sender, steps) = mpsc::channel(BATCHES_WAITING);
        let token = cancel.clone();
        tokio::spawn(async move {
            let running = Running::new(input, sender.clone(), progress);
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
        Pass { steps, cancel, progress: PassProgress::default() }
    }

    /// The next batch; `None` when the pass is complete, and only then.
    pub async fn next(&mut self) -> Result<Option<PassBatch>, PassError> {
        match self.steps.recv().await {
            Some(Step::Batch(batch)) => {
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

impl Drop for Pass {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

type Task = JoinHandle<Result<Vec<Found>, PassError>>;

/// Reads and comparisons under way, oldest first; aborted when dropped.
struct InFlight(VecDeque<(u64, Task)>);

impl Drop for InFlight {
    fn drop(&mut self) {
        for (_, task) in &self.0 {
            task.abort();
        }
    }
}

struct Running {
    input: PassInput,
    sender: mpsc::Sender<Step>,
    callback: ProgressCallback,
    progress: PassProgress,
    in_flight: InFlight,
}

impl Running {
    fn new(input: PassInput, sender: mpsc::Sender<Step>, callback: ProgressCallback) -> Running {
        let in_flight = InFlight(VecDeque::with_capacity(READS_IN_FLIGHT));
        Running { input, sender, callback, progress: PassProgress::default(), in_flight }
    }

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
                for work in works {
                    self.add(work, plan.size()).await?;
                }
            }
        }
        while !self.in_flight.0.is_empty() {
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

    async fn add(&mut self, work: Work, size: u64) -> Result<(), PassError> {
        if self.in_flight.0.len() >= READS_IN_FLIGHT {
            self.collect().await?;
        }
        let bytes = match work.content {
            Content::Read => u64::from(work.count) * EXTENT_BYTES,
            Content::Zero => 0,
        };
        let reader = Arc::clone(&self.input.reader);
        let hashes = Arc::clone(&self.input.hashes);
        let hasher = Arc::clone(&self.input.hasher);
        let task = tokio::spawn(async move {
            let content = match work.content {
                Content::Read => read(&*reader, &work, size).await?,
                Content::Zero => Bytes::new(),
            };
            blocking(move || compare_all(&work, &content, &hashes, &*hasher)).await?
        });
        self.in_flight.0.push_back((bytes, task));
        Ok(())
    }

    /// Waits for the oldest read and passes on what it found.
    async fn collect(&mut self) -> Result<(), PassError> {
        // Stays in the queue while waited for, so that a cancelled pass aborts it as well.
        let Some((bytes, task)) = self.in_flight.0.front_mut() else { return Ok(()) };
        let bytes = *bytes;
        let outcome = task.await;
        self.in_flight.0.pop_front();
        let found = outcome.map_err(|_| PassError::Stopped)??;
        self.progress.done_bytes += bytes;
        self.progress.sent_bytes +=
            found.iter().map(|found| found.change.data.len() as u64).sum::<u64>();
        (self.callback)(self.progress);
        if found.is_empty() {
            return Ok(());
        }
        let batch = PassBatch { found, progress: self.progress };
        self.sender.send(Step::Batch(batch)).await.map_err(|_| PassError::Cancelled)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PassError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| PassError::Stopped)
}

async fn read(reader: &dyn DiskReader, work: &Work, size: u64) -> Result<Bytes, PassError> {
    let offset = work.first.offset();
    let wanted = (u64::from(work.count) * EXTENT_BYTES).min(size - offset);
    let bytes = reader.read(work.disk, offset, wanted).await?;
    let got = bytes.len() as u64;
    if got != wanted {
        return Err(PassError::ShortRead { disk: work.disk, offset, wanted, got });
    }
    Ok(bytes)
}

/// Compares every extent of `work`; what `content` lacks is zero.
fn compare_all(
    work: &Work,
    content: &[u8],
    hashes: &HashFiles,
    hasher: &dyn Hasher,
) -> Result<Vec<Found>, PassError> {
    let mut padded = vec![0; EXTENT];
    let mut found = Vec::new();
    for index in 0..work.count {
        let extent = ExtentNumber(work.first.0 + index);
        let from = content.len().min(index as usize * EXTENT);
        let to = content.len().min(from + EXTENT);
        let bytes = if to - from == EXTENT {
            &content[from..to]
        } else {
            padded.fill(0);
            padded[..to - from].copy_from_slice(&content[from..to]);
            &padded
        };
        let known = hashes.record(work.disk, extent)?;
        let Some(difference) = compare(bytes, &known, hasher) else { continue };
        let change = Change {
            disk: work.disk,
            extent,
            mask: difference.mask,
            data: difference.data,
            hash: difference.hash,
        };
        let Difference { record, blocks_known, .. } = difference;
        found.push(Found { change, record, blocks_known });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
