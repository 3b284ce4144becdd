//! Reading a whole machine while it runs: first copy, comparison, and what a broken snapshot
//! leaves. No recovery point comes of it; the first cut after it makes one.

use super::{Goes, SourceError, SourceWork, SourceWorker};
use crate::{
    roles::host::data_link::DataLink,
    sealing::{Differing, Ready, Sealing},
};
use leeward_capture::{DiskFolder, HashFiles, LiveRead, PassInput, PassKind, PassProgress, Trust};
use leeward_model::{DiskEntry, DiskNumber, EXTENT_BYTES, ExtentNumber, MachineSpec, Position};
use leeward_wire::{
    audit::REREAD_MAX,
    data::{BlockHashesRequest, Commit, ExtentBlockHashes, HashesRequest},
    frame::{BLOCK_HASHES_MAX, HASHES_MAX},
    hash::EXTENT_ABSENT,
    message::{CapturePhase, CopyProgress, SourceDuty, SourceRun},
    seal::QueueDepth,
};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Progress is committed after this many bytes of records' data, so that an interrupted copy goes
/// on from there.
const PROGRESS_BYTES: u64 = 32 << 20;
/// And after this time.
const PROGRESS_TIME: Duration = Duration::from_secs(5);
/// What was sent since the store committed something: records of a point that is not whole yet, of
/// which an interruption is to cost little.
pub(super) struct Uncommitted {
    pending: u64,
    since: Instant,
}

impl Uncommitted {
    /// Nothing, from now on.
    pub(super) fn nothing() -> Uncommitted {
        Uncommitted { pending: 0, since: Instant::now() }
    }

    /// Counts `changes` with that many `bytes`, and says whether a commit is due.
    pub(super) fn add(&mut self, changes: usize, bytes: u64) -> bool {
        // A change of all-zero blocks carries no bytes but must be committed all the same.
        self.pending += bytes + changes as u64;
        self.pending >= PROGRESS_BYTES || self.since.elapsed() >= PROGRESS_TIME
    }

    fn is_nothing(&self) -> bool {
        self.pending == 0
    }
}

/// What a comparison goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    /// Hashes that were taken when the data were sent, by either end.
    Hashes,
    /// What the store reads from its disk and hashes now.
    Nothing,
}

/// Live passes over what was written meanwhile, before the first cut, at most: each is shorter
/// than the one before unless the guest writes faster than the link, which no pass can mend.
const DIRTY_PASSES_MAX: u32 = 5;
/// A delta below this is left to the cut.
const DIRTY_BYTES_SMALL: u64 = 32 << 20;

impl SourceWorker {
    /// The item's hash files in `folder`, agreeing with the store: from disk, or rebuilt from its
    /// hashes. They are judged by the store's position, and a timeline lies in one store only: so
    /// those of one store never pass for another's.
    pub(super) async fn trusted_hashes(
        &mut self,
        link: &mut DataLink,
        spec: &MachineSpec,
        folder: PathBuf,
        basis: Basis,
    ) -> Result<Arc<HashFiles>, SourceError> {
        std::fs::create_dir_all(&folder)?;
        let hashes = Arc::new(HashFiles::new(Arc::new(DiskFolder::new(folder)), self.item));
        let base = link.base;
        let judged = Arc::clone(&hashes);
        let trust = match (basis, link.is_blank) {
            (Basis::Nothing, _) => Trust::Untrusted("nothing is to be trusted".to_owned()),
            // A store that was lost has the same hash key and timeline, but no data at the label.
            (Basis::Hashes, true) => {
                Trust::Untrusted("the store has nothing of the item's branch".to_owned())
            }
            (Basis::Hashes, false) => blocking(move || judged.reconcile(base)).await?,
        };
        if let Trust::Untrusted(reason) = trust {
            tracing::info!(item = %self.item, %reason, "rebuilding the hash files from the store");
            rebuild(link, &hashes, base, (spec, basis)).await?;
        }
        Ok(hashes)
    }

    /// Copies or compares the whole running machine, then what it wrote meanwhile.
    pub(super) async fn copy_everything(
        &mut self,
        work: &SourceWork,
        reason: Option<String>,
        changes: &watch::Receiver<Option<SourceWork>>,
    ) -> Result<(), SourceError> {
        if reason.is_some() {
            self.show(|seen| seen.resync_reason = reason);
        }
        self.live_pass(work, LiveRead::Everything, changes).await?;
        for _ in 0..DIRTY_PASSES_MAX {
            let open = self.open.as_mut().expect("copying needs an open session");
            if open.source.dirty_bytes().await? <= DIRTY_BYTES_SMALL {
                break;
            }
            self.live_pass(work, LiveRead::Dirty, changes).await?;
        }
        Ok(())
    }

    /// Reads the running machine without a snapshot and sends what differs.
    pub(super) async fn live_pass(
        &mut self,
        work: &SourceWork,
        which: LiveRead,
        changes: &watch::Receiver<Option<SourceWork>>,
    ) -> Result<(), SourceError> {
        let result = self.live_pass_inner(work, which, changes).await;
        if let Some(open) = &mut self.open {
            let closed = open.source.close_live().await;
            result?;
            closed?;
            return Ok(());
        }
        result
    }

    async fn live_pass_inner(
        &mut self,
        work: &SourceWork,
        which: LiveRead,
        changes: &watch::Receiver<Option<SourceWork>>,
    ) -> Result<(), SourceError> {
        let begun = Instant::now();
        let open = self.open.as_mut().expect("a pass needs an open session");
        let reader = open.source.open_live(which).await?;
        let disks = open.source.disks();
        let kind = match which {
            LiveRead::Everything => PassKind::Full,
            LiveRead::Dirty => PassKind::Delta,
        };
        let input = PassInput {
            reader,
            disks: disks.clone(),
            hashes: open.hashes.clone(),
            hasher: open.link.hasher.clone(),
            kind,
            workers: self.host.sealing.workers.clone(),
            cancel: CancellationToken::new(),
        };
        let board = Arc::clone(&self.host);
        let (item, total) = (self.item, disks.iter().map(|disk| disk.size).sum());
        // What is sent is less than what the pass found: blocks that the store has are left out.
        let sent = Arc::new(AtomicU64::new(0));
        let sent_so_far = Arc::clone(&sent);
        let progress = move |progress: PassProgress| {
            let sent_bytes = sent_so_far.load(Ordering::Relaxed);
            let progress = PassProgress { sent_bytes, ..progress };
            board.board.source(item, |seen| {
                if let Some(seen) = seen {
                    seen.phase = CapturePhase::Copying(shown(progress, total, begun));
                }
            });
        };
        let mut pass = self.host.sealing.start(input, Arc::new(progress));
        let mut uncommitted = Uncommitted::nothing();
        while let Some(batch) = pass.next().await? {
            if changed(work, changes) {
                if !uncommitted.is_nothing() && shuts_down(work, changes) {
                    // The copy goes on once the machine is off: nothing is to be sent twice.
                    self.commit_progress(false).await?;
                }
                return Err(SourceError::Changed);
            }
            let found = batch.found.len();
            let bytes = self.send_found(batch.found).await?;
            sent.fetch_add(bytes, Ordering::Relaxed);
            if uncommitted.add(found, bytes) {
                self.commit_progress(false).await?;
                uncommitted = Uncommitted::nothing();
            }
        }
        if !uncommitted.is_nothing() {
            self.commit_progress(true).await?;
        }
        Ok(())
    }

    /// Sends what a pass found and notes it in the hash files' journal; returns the bytes of the
    /// blocks that were sent. `found` is of one disk.
    pub(super) async fn send_found(&mut self, found: Vec<Differing>) -> Result<u64, SourceError> {
        let open = self.open.as_mut().expect("sending needs an open session");
        let mut bytes = 0;
        for ready in all_ready(&mut open.link, &self.host.sealing, found).await? {
            open.hashes.push(ready.disk, ready.extent, &ready.record)?;
            if let Some(packed) = ready.packed {
                bytes += packed.raw_len() as u64;
                open.link.send(packed).await?;
            }
        }
        if open.goes == Goes::Out {
            self.state.sent_bytes += bytes;
        }
        Ok(bytes)
    }

    /// Commits what was sent so far. The change map stays as it is, so it covers everything in
    /// which the machine may differ from the store, also when no point comes of it.
    pub(super) async fn commit_progress(&mut self, last: bool) -> Result<(), SourceError> {
        let open = self.open.as_mut().expect("committing needs an open session");
        let lsn = leeward_model::Lsn(open.link.next_lsn().0 - 1);
        let timeline = open.key.1.timeline;
        let (hashes, next) = (Arc::clone(&open.hashes), Position { timeline, lsn });
        blocking(move || hashes.seal_progress(next)).await?;
        let commit = Commit { lsn, point: false, cut_server: None, final_progress: last };
        let at = open.link.commit(commit).await?;
        applied(&open.hashes, at).await?;
        self.state.store(&self.host.item_folder(self.item))?;
        let sent = self.state.sent_bytes;
        self.show(|seen| seen.sent_bytes = sent);
        Ok(())
    }
}

/// Packs the rest of what a pass found, in the order in which it was found: extents of which only
/// the whole was compared, as after a rebuild from the store's hashes. With the store's hashes of
/// their blocks only those that differ are sent.
async fn all_ready(
    link: &mut DataLink,
    sealing: &Sealing,
    found: Vec<Differing>,
) -> Result<Vec<Ready>, SourceError> {
    let unknown = || found.iter().filter_map(Differing::unknown);
    let extents: Vec<_> = unknown().map(|found| found.change.extent).collect();
    let disk = unknown().map(|found| found.change.disk).next();
    let mut known: Vec<ExtentBlockHashes> = Vec::with_capacity(extents.len());
    for part in extents.chunks(BLOCK_HASHES_MAX as usize) {
        let Some(disk) = disk else { break };
        let request = BlockHashesRequest { disk, extents: part.to_vec() };
        known.extend(link.block_hashes(request).await?);
    }
    let (packer, hasher) = (sealing.clone(), Arc::clone(&link.hasher));
    let rest = move || {
        let mut known = known.iter();
        let ready = |found| match found {
            Differing::Ready(ready) => ready,
            Differing::Unknown(found) => {
                let known = known.next().expect("the store answers for every extent");
                packer.ready(found, Some(known), &*hasher, QueueDepth::default())
            }
        };
        found.into_iter().map(ready).collect()
    };
    if extents.is_empty() {
        // Nothing is left to pack: that needs no other thread.
        return Ok(rest());
    }
    let packed = sealing.workers.run(rest).await;
    packed.ok_or_else(|| SourceError::from(leeward_capture::PassError::Stopped))
}

/// Whether the work is another one now, in a way that ends what is being done.
pub(super) fn changed(work: &SourceWork, changes: &watch::Receiver<Option<SourceWork>>) -> bool {
    let now = changes.borrow();
    let Some(now) = now.as_ref() else { return true };
    // What is under way goes on when its window closes.
    let duty = SourceDuty { resync_allowed: work.duty.resync_allowed, ..now.duty.clone() };
    SourceWork { duty, ..now.clone() } != *work
}

/// Whether the machine of the same branch is now to be shut down, and nothing else changed. Only
/// then there is time for the store: a fence has none.
fn shuts_down(work: &SourceWork, changes: &watch::Receiver<Option<SourceWork>>) -> bool {
    changes.borrow().as_ref().is_some_and(|now| {
        matches!(now.duty.run, SourceRun::ShutDown { .. })
            && SourceWorker::key(now) == SourceWorker::key(work)
    })
}

/// Makes the journal of the delta in flight durable.
pub(super) async fn seal(
    hashes: &Arc<HashFiles>,
    next: Position,
    disks: &[DiskEntry],
) -> Result<(), SourceError> {
    let hashes = Arc::clone(hashes);
    let sizes: Vec<_> = disks.iter().map(|disk| (disk.number, disk.size)).collect();
    blocking(move || hashes.seal(next, &sizes)).await
}

/// Applies the delta in flight after the store committed it.
pub(super) async fn applied(hashes: &Arc<HashFiles>, at: Position) -> Result<(), SourceError> {
    let hashes = Arc::clone(hashes);
    blocking(move || hashes.commit(at)).await
}

/// Runs file work off the async threads.
async fn blocking<T, F>(work: F) -> Result<T, SourceError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, leeward_capture::HashError> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| std::io::Error::other(error.to_string()))??)
}

async fn rebuild(
    link: &mut DataLink,
    hashes: &Arc<HashFiles>,
    base: Position,
    (spec, basis): (&MachineSpec, Basis),
) -> Result<(), SourceError> {
    let most = match basis {
        Basis::Hashes => HASHES_MAX,
        Basis::Nothing => REREAD_MAX,
    };
    let sizes: Vec<_> = spec.disks.iter().map(|disk| (disk.number, disk.size)).collect();
    let mut leaves: Vec<(DiskNumber, ExtentNumber, Vec<leeward_model::ExtentHash>)> = Vec::new();
    for (disk, size) in &sizes {
        let extents = size.div_ceil(EXTENT_BYTES);
        let mut first = 0;
        while first < extents {
            let count = (extents - first).min(u64::from(most)) as u32;
            let first_extent = ExtentNumber(first as u32);
            let request = HashesRequest { disk: *disk, first_extent, count };
            let answer = match basis {
                Basis::Hashes => link.hashes(request).await?,
                Basis::Nothing => link.reread(request).await?,
            };
            if answer.iter().any(|leaf| *leaf != EXTENT_ABSENT) {
                leaves.push((*disk, first_extent, answer));
            }
            first += u64::from(count);
        }
    }
    let hashes = Arc::clone(hashes);
    blocking(move || {
        let mut rebuild = hashes.rebuild(base, &sizes)?;
        for (disk, first, answer) in leaves {
            for (index, leaf) in answer.into_iter().enumerate() {
                if leaf != EXTENT_ABSENT {
                    rebuild.leaf(disk, ExtentNumber(first.0 + index as u32), leaf)?;
                }
            }
        }
        rebuild.finish()
    })
    .await
}

fn shown(progress: PassProgress, total: u64, begun: Instant) -> CopyProgress {
    let holes = total.saturating_sub(progress.total_bytes);
    let left = progress.total_bytes.saturating_sub(progress.done_bytes);
    let seconds = begun.elapsed().as_secs_f64();
    let seconds_left = (progress.done_bytes > 0)
        .then(|| (left as f64 * seconds / progress.done_bytes as f64).ceil() as u64);
    CopyProgress {
        done_bytes: holes + progress.done_bytes,
        total_bytes: total.max(progress.total_bytes),
        sent_bytes: progress.sent_bytes,
        seconds_left,
    }
}
