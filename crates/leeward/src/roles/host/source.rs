//! One worker for each protected machine of this host: copies it, cuts recovery points, shuts it
//! down, fences it, as the item's duty says.
//!
//! Whatever fails, the worker drops its session and its capture and begins anew: the change map
//! in QEMU, the hash files and the store's newest position are enough to go on without a full
//! copy. A guest's write never waits for anything here.

mod ahead;
mod audit;
mod copy;
mod cycle;
mod forward;
mod idle;
mod ladder;
mod owner;
mod power;
mod resync;
mod seed;
mod state;
mod still_point;
mod tries;

use super::{
    Host,
    board::source_blank,
    data_link::{DataLink, LinkError, StoreEnd},
    permits,
    spool::Spool,
};
use audit::AuditRun;
use copy::Basis;
use idle::Fence;
use ladder::{Barren, Failure, Pace};
use leeward_capture::{
    Attached, CaptureError, ChangeSource, DiskFolder, HashError, HashFiles, LiveRead, PassError,
    Retry,
};
use leeward_fabric::{FabricError, MachineRef};
use leeward_model::{
    Branch, Code, Epoch, HostId, ItemId, JobId, MachineSpec, MachineState, Problem, StartPermit,
    VaultId,
};
use leeward_wire::message::{CapturePhase, SourceDuty, SourceObserved, SourceRun};
use owner::Whose;
use power::{LastData, Off};
use state::SourceState;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tries::Fault;

/// How long a worker waits before it tries again what failed.
const RETRY: Duration = Duration::from_secs(2);
/// How often a machine that is off is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What the worker has to do.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceWork {
    /// The item.
    pub item: ItemId,
    /// Its vault.
    pub vault: VaultId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The duty.
    pub duty: SourceDuty,
}

/// Why the worker could not go on.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("the replica store cannot be used")]
    Link(#[from] LinkError),
    #[error("the machine cannot be captured")]
    Capture(#[from] CaptureError),
    #[error("the machine could not be read")]
    Pass(#[from] PassError),
    #[error("the hash files cannot be used")]
    Hashes(#[from] HashError),
    #[error("the machine could not be handled")]
    Fabric(#[from] FabricError),
    #[error("the host's own files could not be used")]
    Files(#[from] std::io::Error),
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The duty changed; not a failure.
    #[error("the duty changed")]
    Changed,
}

impl SourceError {
    /// Whether the store could not be reached, or not any more.
    fn is_of_link(&self) -> bool {
        match self {
            SourceError::Link(LinkError::Refused(_) | LinkError::Replaced) => false,
            SourceError::Link(_) => true,
            SourceError::Capture(_)
            | SourceError::Pass(_)
            | SourceError::Hashes(_)
            | SourceError::Fabric(_)
            | SourceError::Files(_)
            | SourceError::Problem(_)
            | SourceError::Changed => false,
        }
    }

    /// Whether points may wait for a store that this happened to: it cannot be reached, or has no
    /// space or a disk that fails.
    fn lets_wait(&self) -> bool {
        match self {
            SourceError::Link(LinkError::Refused(problem)) => {
                [Code::STORE_NO_SPACE, Code::STORE_IO].iter().any(|code| code.code == problem.code)
            }
            error => error.is_of_link(),
        }
    }

    /// Whether it lies with the link, the space or a disk: later attempts are the ladder's. What
    /// lies with the machine is seen by looking at the machine.
    fn may_pass(&self) -> bool {
        match self {
            SourceError::Link(LinkError::Replaced) => false,
            SourceError::Link(_) | SourceError::Hashes(_) | SourceError::Files(_) => true,
            SourceError::Capture(error) | SourceError::Pass(PassError::Capture(error)) => {
                error.retry() == Retry::Later
            }
            SourceError::Pass(_) => true,
            SourceError::Fabric(_) | SourceError::Problem(_) | SourceError::Changed => false,
        }
    }

    /// What it means for another try of a final point.
    fn fault(&self, problem: &Problem) -> Fault {
        match self {
            _ if problem.is_final() => Fault::Final,
            // The store dialled again, or still has the session that broke.
            SourceError::Link(_) => Fault::Passing,
            _ if self.may_pass() => Fault::Passing,
            _ => Fault::Other,
        }
    }

    fn problem(&self, host: &Host, work: &SourceWork) -> Problem {
        let machine = &work.duty.machine;
        let cause = || {
            let mut text = self.to_string();
            let mut next = std::error::Error::source(self);
            while let Some(source) = next {
                text = format!("{text}: {source}");
                next = source.source();
            }
            text
        };
        match self {
            SourceError::Link(error) => error.problem(&StoreEnd::of(host, work)),
            SourceError::Fabric(error) => error.problem(),
            SourceError::Problem(problem) => (**problem).clone(),
            SourceError::Files(error) => Code::STORE_IO
                .because(format!("replication of {machine} pauses"), error.to_string()),
            SourceError::Capture(_)
            | SourceError::Pass(_)
            | SourceError::Hashes(_)
            | SourceError::Changed => Code::CAPTURE_FAILED
                .because(format!("no recovery point of {machine} could be cut"), cause()),
        }
    }
}

/// What a session is opened for: the epoch, the branch, and the store.
type Key = (Epoch, Branch, HostId, Option<String>);

/// Where the data of a session go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    /// To the item's replica: counted as sent.
    Out,
    /// Into this host's own store, to be compared with later.
    Within,
}

/// What is open while points are being made.
struct Open {
    link: DataLink,
    source: Box<dyn ChangeSource>,
    hashes: Arc<HashFiles>,
    spec: MachineSpec,
    key: Key,
    goes: Goes,
    /// Whether the change map reaches back to the newest point.
    mapped: bool,
    /// The resync for which the store took all its hashes anew in this session; 0 for none.
    reread_for: u64,
    last_cut: Option<Instant>,
}

/// The worker.
pub struct SourceWorker {
    host: Arc<Host>,
    item: ItemId,
    state: SourceState,
    open: Option<Open>,
    /// The job that asked the guest to shut down, and until when that may still happen although
    /// the job was cancelled.
    asked_off: Option<(JobId, Instant)>,
    /// The last cut's snapshot broke: what was written is read live before the next cut.
    live_first: bool,
    /// Points are cut although the store is away or slow.
    ahead: Option<ahead::Ahead>,
    /// Where they wait; none when this host has no spool.
    spool: Option<Arc<Spool>>,
    /// The change map reaches back beyond the newest point: its size says nothing of the delta.
    map_is_older: bool,
    /// The machine is marked as the item's.
    claimed: bool,
    /// Why source and target have to be compared, once that is known; with the session it was
    /// found in, because another replica knows nothing of it.
    needed: Option<(Key, String)>,
    /// A first copy or a comparison is under way, or failed and is to go on, up to its point.
    comparing: bool,
    /// When failed attempts are made again.
    pace: Pace,
    barren: Barren,
    /// How much the audit may read, and when it did last.
    audit: AuditRun,
}

/// The item's spool; none when this host has none, or it cannot be used.
async fn spool_load(host: &Arc<Host>, item: ItemId) -> Option<Arc<Spool>> {
    let (folder, room) = (host.item_folder(item).join("spool"), host.spool.clone());
    let load = move || {
        if !room.is_on() {
            return match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(None),
            };
        }
        std::fs::create_dir_all(&folder)?;
        Spool::load(Arc::new(DiskFolder::new(folder)), room).map(Some)
    };
    match tokio::task::spawn_blocking(load).await {
        Ok(Ok(spool)) => spool.map(Arc::new),
        Ok(Err(error)) => {
            tracing::warn!(%item, %error, "there is no spool: changes are noted by bitmap alone");
            None
        }
        Err(_) => None,
    }
}

/// Runs the worker of `item` until its work is taken away.
pub async fn run(host: Arc<Host>, item: ItemId, mut work: watch::Receiver<Option<SourceWork>>) {
    let state = SourceState::load(&host.item_folder(item));
    let mut worker = SourceWorker {
        host: Arc::clone(&host),
        item,
        state,
        open: None,
        asked_off: None,
        live_first: false,
        ahead: None,
        spool: spool_load(&host, item).await,
        map_is_older: false,
        claimed: false,
        needed: None,
        comparing: false,
        pace: Pace::default(),
        barren: Barren::default(),
        audit: AuditRun::default(),
    };
    let mut before = None;
    loop {
        let Some(now) = work.borrow_and_update().clone() else {
            worker.host.board.source(item, |seen| *seen = None);
            return;
        };
        if before.as_ref() != Some(&now) {
            worker.pace.duty_changed(Instant::now());
            worker.comparing = false;
            before = Some(now.clone());
        }
        worker.begin(&now);
        let fenced = ordered_off(work.clone(), &now.duty.run);
        let outcome = tokio::select! {
            outcome = worker.act(&now, &mut work) => outcome,
            () = fenced => {
                tracing::info!(%item, "what was going on is dropped: the machine is to be off");
                Err(SourceError::Changed)
            }
        };
        let pause = match outcome {
            Ok(pause) => pause,
            Err(SourceError::Changed) => continue,
            Err(error) => Some(worker.failed(&now, &error)),
        };
        match pause {
            Some(pause) => {
                let _ = tokio::time::timeout(pause, work.changed()).await;
            }
            None => {
                if work.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Whether the machine is to be off, and stay off.
fn fences(run: &SourceRun) -> bool {
    matches!(run, SourceRun::Fenced | SourceRun::Seed { .. } | SourceRun::Leave)
}

/// Returns when the duty becomes one that wants the machine off at once, if `now` is not one.
/// Whatever goes on then is dropped where it stands, as if the process had ended: it may wait for
/// a store, and a second machine may run meanwhile.
async fn ordered_off(mut work: watch::Receiver<Option<SourceWork>>, now: &SourceRun) {
    let ordered =
        |work: &Option<SourceWork>| work.as_ref().is_some_and(|work| fences(&work.duty.run));
    if fences(now) || work.wait_for(ordered).await.is_err() {
        std::future::pending().await
    }
}

impl SourceWorker {
    /// Shows what failed and gives everything up; returns how long to wait.
    fn failed(&mut self, work: &SourceWork, error: &SourceError) -> Duration {
        (self.open, self.ahead) = (None, None);
        let problem = error.problem(&self.host, work);
        let Problem { code, what, cause, .. } = &problem;
        tracing::warn!(item = %self.item, %code, %cause, "{what}");
        if matches!(work.duty.run, SourceRun::Replicate { .. }) {
            let failure = match problem.is_final() {
                true => Failure::Final,
                false if !self.comparing => Failure::Soon,
                false if error.is_of_link() => Failure::Link,
                false if error.may_pass() => Failure::Comparing,
                false => Failure::Soon,
            };
            self.pace.failed(failure, Instant::now());
        }
        self.show(|seen| {
            if !matches!(seen.phase, CapturePhase::Fenced | CapturePhase::Released) {
                seen.phase = CapturePhase::Paused;
            }
            seen.problem = Some(problem);
        });
        RETRY
    }

    fn show(&self, change: impl FnOnce(&mut SourceObserved)) {
        self.host.board.source(self.item, |seen| {
            if let Some(seen) = seen {
                change(seen);
            }
        });
    }

    /// Puts the entry on the board when the duty begins or changes its epoch or timeline.
    fn begin(&mut self, work: &SourceWork) {
        let (epoch, timeline) = (work.epoch, work.duty.branch.timeline);
        let state = &self.state;
        self.host.board.source(self.item, |seen| {
            let seen = seen.get_or_insert_with(|| source_blank(timeline, epoch));
            (seen.epoch, seen.timeline) = (epoch, timeline);
            (seen.resync_done, seen.sent_bytes) = (state.resync_done, state.sent_bytes);
            seen.divergent.clone_from(&state.divergent);
            // What was said of a former fence is no answer to the next: the machine may be started
            // in between.
            if seen.phase == CapturePhase::Fenced && !fences(&work.duty.run) {
                seen.phase = CapturePhase::Idle;
            }
            if let Some((job, _)) = &seen.shutdown
                && !matches!(&work.duty.run, SourceRun::ShutDown { job: now, .. } if now == job)
            {
                seen.shutdown = None;
            }
            if let Some((job, _)) = &seen.seeded
                && !matches!(&work.duty.run, SourceRun::Seed { job: now, .. } if now == job)
            {
                seen.seeded = None;
            }
        });
        if self.open.as_ref().is_some_and(|open| open.key != Self::key(work)) {
            self.open = None;
        }
        if let Some(open) = self.open.as_mut().filter(|open| open.goes == Goes::Out) {
            open.link.pace_set(&self.host, work);
        }
        if self.ahead.as_ref().is_some_and(|ahead| ahead.key != Self::key(work)) {
            self.ahead = None;
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.bandwidth_set(&work.duty.bandwidth);
        }
    }

    /// Does what the duty says; returns how long to wait before it is looked at again, or `None`
    /// to wait for a change.
    async fn act(
        &mut self,
        work: &SourceWork,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<Duration>, SourceError> {
        if !matches!(work.duty.run, SourceRun::Replicate { .. }) {
            self.ahead = None;
            self.spool_clear().await;
        }
        match &work.duty.run {
            SourceRun::Replicate { permit, start } => {
                self.replicate(work, permit.as_ref(), *start, changes).await
            }
            SourceRun::ShutDown { job, timeout_ms, power_off, copy, needs_point } => {
                let off = match power_off {
                    true => Off::Halt,
                    false => Off::Ask(Duration::from_millis(*timeout_ms)),
                };
                let last = match (copy, needs_point) {
                    (true, _) => LastData::Copied,
                    (false, true) => LastData::Needed,
                    (false, false) => LastData::Wished,
                };
                self.shut_down(work, *job, (off, last), changes).await
            }
            SourceRun::Fenced => {
                // Looked at again: its owner may start it by hand, or bring it back.
                self.fence(work).await.map(|_| Some(LOOK))
            }
            SourceRun::Seed { job, base } => {
                let whose = self.fence(work).await?;
                self.seed(work, *job, *base, whose, changes).await
            }
            SourceRun::Live { permit, start } => self.live(work, permit.as_ref(), *start).await,
            SourceRun::Release => self.release(work, Fence::Lifted).await,
            SourceRun::Leave => {
                self.fence(work).await?;
                self.release(work, Fence::Kept).await
            }
        }
    }

    fn machine(work: &SourceWork) -> MachineRef {
        MachineRef::Owned(work.duty.machine.clone())
    }

    /// Where points wait for the store.
    fn spool_folder(&self) -> PathBuf {
        self.host.item_folder(self.item).join("spool")
    }

    /// The hash files of the replication.
    fn hash_folder(&self) -> PathBuf {
        self.host.item_folder(self.item).join("hashes")
    }

    fn key(work: &SourceWork) -> Key {
        let duty = &work.duty;
        (work.epoch, duty.branch, duty.target_host, duty.target_address.clone())
    }

    /// The machine's run state; a machine that is not there is off.
    async fn machine_state(&mut self, work: &SourceWork) -> Result<MachineState, FabricError> {
        match self.host.fabric.machine_state(&Self::machine(work)).await {
            Err(FabricError::Unknown(_)) => Ok(MachineState::Off),
            state => state,
        }
    }

    /// Takes up the machine as one that lives here: it may be started with this permit, and
    /// nothing of an earlier leaving counts any more.
    fn belongs_here(
        &mut self,
        work: &SourceWork,
        permit: Option<&StartPermit>,
    ) -> Result<(), SourceError> {
        permits::fence_lift(&self.host.folder, &work.duty.machine)?;
        if let Some(permit) = permit {
            permits::permit_store(&self.host.folder, permit)?;
        }
        if self.state.came_back() {
            self.state.store(&self.host.item_folder(self.item))?;
            self.show(|seen| seen.divergent = None);
        }
        Ok(())
    }

    async fn replicate(
        &mut self,
        work: &SourceWork,
        permit: Option<&StartPermit>,
        start: Option<JobId>,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<Duration>, SourceError> {
        self.claim(work).await?;
        self.belongs_here(work, permit)?;
        // A shutdown that was cancelled may still end the guest after the job is over.
        let owed = self
            .asked_off
            .filter(|(job, until)| self.state.started == Some(*job) && Instant::now() < *until);
        if let Some(job) = start.or(owed.map(|(job, _)| job)) {
            self.start_again(work, permit, job).await?;
        }
        let machine = self.host.fabric.machine_state(&Self::machine(work)).await?;
        self.show(|seen| seen.machine = machine);
        if !matches!(machine, MachineState::Running | MachineState::Paused) {
            (self.open, self.ahead) = (None, None);
            self.pace.succeeded();
            self.comparing = false;
            self.show(|seen| seen.phase = CapturePhase::Idle);
            return Ok(Some(LOOK));
        }
        if self.guest_went_off(work, machine).await? {
            self.switched_off(work, changes).await?;
            return Ok(Some(LOOK));
        }
        if self.ahead.is_some() {
            self.points_ahead(work, changes).await?;
            return Ok(Some(Duration::ZERO));
        }
        if self.is_held(work).await || self.waits(work) {
            return Ok(Some(LOOK));
        }
        if self.distrusts(work) {
            self.open = None;
        }
        self.open(work).await?;
        self.forward_left(work, changes).await?;
        if self.open.is_none() {
            return Ok(Some(Duration::ZERO));
        }
        if let Some(reason) = self.comparison(work) {
            if self.waits(work) {
                return Ok(Some(LOOK));
            }
            self.comparing = true;
            self.copy_everything(work, reason, changes).await?;
        } else if self.live_first {
            self.live_pass(work, LiveRead::Dirty, changes).await?;
        }
        self.live_first = false;
        self.points(work, changes).await?;
        Ok(Some(Duration::ZERO))
    }

    /// Opens session, hash files and capture, unless they are open for this work already.
    async fn open(&mut self, work: &SourceWork) -> Result<(), SourceError> {
        if self.open.is_some() {
            return Ok(());
        }
        let mut link = DataLink::open(&self.host, work, work.duty.branch).await?;
        let name = &work.duty.machine;
        let found = self.host.fabric.discover().await?;
        let spec = found.into_iter().map(|machine| machine.spec).find(|spec| spec.name == *name);
        let Some(spec) = spec else {
            return Err(FabricError::Unknown(Self::machine(work)).into());
        };
        let reread_for = self.reread_wanted(work);
        let basis = if reread_for > 0 { Basis::Nothing } else { Basis::Hashes };
        let hashes = self.trusted_hashes(&mut link, &spec, self.hash_folder(), basis).await?;
        self.show(|seen| seen.problem = None);
        let mut source = self.host.fabric.capture(&Self::machine(work)).await?;
        let base = link.newest_point.map(|(_, position)| position);
        let attached = source.attach(base).await?;
        let mapped = matches!(attached, Attached::Continues);
        if let Attached::NeedsFullRead(reason) = attached {
            self.needs(work, reason);
        }
        self.tell_resized(&hashes, &spec);
        let (key, goes) = (Self::key(work), Goes::Out);
        let last_cut = None;
        #[rustfmt::skip]
        let open = Open { link, source, hashes, spec, key, goes, mapped, reread_for, last_cut };
        self.open = Some(open);
        Ok(())
    }

    /// Says which disks have another size than the target knows; the next point has the new one.
    fn tell_resized(&self, hashes: &HashFiles, spec: &MachineSpec) {
        for disk in &spec.disks {
            let Some(before) = hashes.size(disk.number).filter(|size| *size != disk.size) else {
                continue;
            };
            let (name, id, now) = (&spec.name, &disk.id, disk.size);
            let what = format!("disk {id} of {name} has {now} bytes, it had {before}");
            let problem = Code::DISK_RESIZED.problem(what);
            tracing::warn!(item = %self.item, code = %problem.code, "{}", problem.what);
            self.show(|seen| seen.problem = Some(problem));
        }
    }
}
