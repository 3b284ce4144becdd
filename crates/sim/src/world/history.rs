//! Random histories: what operators, guests and misfortune may do, drawn from one seed.
//!
//! Threads outside the world's time (the database's, the store's) may order things differently
//! from run to run: a seed fixes what is done and when, not every interleaving.

use super::{
    FIRST_DISK_BYTES, MACHINE, Mistakes, SECOND_DISK_BYTES, World, crowd::crowd, link::LinkState,
    owned,
};
use leeward_control::{
    items::{DisableReason, KeepPoints, Shutdown},
    jobs::{JobFilter, RunState, Scenario},
};
use leeward_fabric::{MachineRef, memory::OnShutdown};
use leeward_model::{
    Branch, DiskNumber, Epoch, PointChoice, PointId, PointOrigin, Protection, Site, TestState,
};
use leeward_replica::{
    StoreError,
    storage::{LostSync, Seeded},
};
use leeward_wire::segment::SegmentHeader;

/// How many things happen in a history.
const LENGTH: u64 = 14;
/// Steps for which somebody waits for a job, at most; then other things happen beside it.
const PATIENCE_STEPS: u64 = 1_500;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The live guest writes, in several places.
    Write,
    /// The live guest discards.
    Trim,
    /// Nothing, for a while.
    Wait,
    /// A test failover, to its end.
    TestFailover,
    /// The test machine is removed.
    Cleanup,
    /// A failover.
    Failover(Shutdown),
    /// A failover whose job is cancelled on its way.
    FailoverAndCancel,
    /// A failover to one of the points.
    FailoverToPoint,
    /// A change of recovery point.
    ChangePoint,
    /// A change of recovery point whose job is cancelled on its way.
    ChangePointAndCancel,
    /// The failover is taken back.
    FailoverCancel,
    /// The failover is made final.
    Commit,
    /// A comparison.
    Resync,
    /// Protection ends and begins anew.
    DisableAndEnable,
    /// The config server dies and comes back.
    KillServer,
    /// The primary host's role dies and comes back.
    KillPrimary,
    /// The recovery host's role dies and comes back.
    KillRecovery,
    /// The recovery host loses its power.
    PowerCut,
    /// The link is cut for a while.
    CutLink(LinkState),
    /// Every role that is dead comes back, and the link.
    Heal,
    /// The link breaks while a cut is being sent, and comes back.
    BreakAtCut,
    /// The snapshot of the next cut is full before it is read.
    BreakSnapshot,
    /// The machine's disk cannot be read, once.
    FailRead,
    /// The owner's machine ends and is started again.
    RestartMachine,
    /// A disk of the machine grows.
    Grow,
    /// The guest does not shut down when it is asked to.
    GuestGoesDeaf,
    /// Frames of an epoch that has ended reach the store.
    LateFrames,
}

const COMMON: &[Deed] = &[
    Deed::Write,
    Deed::Write,
    Deed::Trim,
    Deed::Wait,
    Deed::TestFailover,
    Deed::Cleanup,
    Deed::Failover(Shutdown::First),
    Deed::Failover(Shutdown::First),
    Deed::Failover(Shutdown::Leave),
    Deed::FailoverAndCancel,
    Deed::FailoverToPoint,
    Deed::ChangePoint,
    Deed::ChangePointAndCancel,
    Deed::FailoverCancel,
    Deed::FailoverCancel,
    Deed::FailoverCancel,
    Deed::Commit,
    Deed::Resync,
    Deed::DisableAndEnable,
    Deed::KillServer,
    Deed::KillPrimary,
    Deed::KillRecovery,
    Deed::PowerCut,
    Deed::PowerCut,
    Deed::CutLink(LinkState::Hangs),
    Deed::CutLink(LinkState::Refuses),
    Deed::CutLink(LinkState::Refuses),
    Deed::Heal,
    Deed::BreakAtCut,
    Deed::BreakAtCut,
    Deed::BreakSnapshot,
    Deed::FailRead,
    Deed::RestartMachine,
    Deed::Grow,
    Deed::GuestGoesDeaf,
    Deed::LateFrames,
];

/// What came of a history.
#[derive(Clone, Debug)]
pub struct Told {
    /// What happened, in order, with the world's time in milliseconds.
    pub deeds: Vec<(u64, Deed)>,
    /// What was violated.
    pub violations: Vec<String>,
    /// Points whose every byte was compared.
    pub points_checked: u64,
    /// The jobs that ran, and how they ended.
    pub jobs: Vec<(Scenario, RunState)>,
}

/// Lives through the history of `seed`.
pub async fn live(seed: u64, mistakes: Mistakes) -> Told {
    let mut random = Seeded::new(seed);
    let mut world = World::new(mistakes).await;
    let mut deeds = Vec::new();
    world.write(&mut random);
    world.protect(&mut random).await;
    for _ in 0..LENGTH {
        let deed = COMMON[random.below(COMMON.len() as u64) as usize];
        deeds.push((world.time.ms(), deed));
        world.enact(deed, &mut random).await;
        world.write(&mut random);
        let pause = random.below(1_500);
        world.wait(pause).await;
        world.check_rpo().await;
        if !world.ledger.violations().is_empty() {
            break;
        }
    }
    world.settle().await;
    let (violations, points_checked) = (world.ledger.violations(), world.ledger.points_checked());
    let control = world.control();
    let listed = control.job_list(world.vault, &JobFilter::default()).await;
    let jobs = listed.expect("the database works");
    let jobs = jobs.iter().map(|job| (job.scenario, job.state)).collect();
    Told { deeds, violations, points_checked, jobs }
}

/// What replication is, as far as a test failover must not touch it (I7).
async fn replication(world: &World) -> Option<(Protection, Epoch, Branch, Site)> {
    let view = world.view().await?;
    Some((view.state.protection, view.epoch, view.branch, view.state.active))
}

impl World {
    /// Protects the machine and waits until it is.
    pub async fn protect(&mut self, random: &mut Seeded) {
        if self.enable().await.is_none() {
            return;
        }
        self.mistake().await;
        let protected = async |world: &World| {
            let view = world.view().await;
            view.is_some_and(|view| view.state.protection == Protection::Protected)
        };
        let steps = 300 + random.below(100) as usize;
        self.reaches(steps, protected).await;
    }

    /// Makes the store wrong, where that was asked for.
    pub async fn mistake(&mut self) {
        let (Some(item), Some(store), Some(mutation)) =
            (self.item, self.store(), self.mistakes.store)
        else {
            return;
        };
        for _ in 0..100 {
            let set = store.with(item, move |item| {
                item.set_mutation(mutation);
                Ok(())
            });
            if set.await.is_ok() {
                return;
            }
            self.step().await;
        }
    }

    /// Does one thing. Requests that the state does not allow are refused, and that is that.
    pub async fn enact(&mut self, deed: Deed, random: &mut Seeded) {
        match deed {
            Deed::Write => (0..8).for_each(|_| self.write(random)),
            Deed::Trim => self.trim(random),
            Deed::Wait => self.wait(500 + random.below(4_000)).await,
            Deed::TestFailover => self.test_failover(random).await,
            Deed::Cleanup => self.cleanup(random).await,
            Deed::Failover(shutdown) => {
                self.failover(random, PointChoice::Latest, shutdown, None).await;
            }
            Deed::FailoverAndCancel => {
                let after = random.below(1_200);
                self.failover(random, PointChoice::Latest, Shutdown::First, Some(after)).await;
            }
            Deed::FailoverToPoint => {
                if let Some(point) = self.point(random).await {
                    let choice = PointChoice::Custom(point);
                    self.failover(random, choice, Shutdown::First, None).await;
                }
            }
            Deed::ChangePoint => self.change_point(random, None).await,
            Deed::ChangePointAndCancel => {
                let after = random.below(800);
                self.change_point(random, Some(after)).await;
            }
            Deed::FailoverCancel => self.failover_cancel(random).await,
            Deed::Commit => self.commit(random).await,
            Deed::Resync => self.resync().await,
            Deed::DisableAndEnable => self.disable_and_enable(random).await,
            Deed::KillServer | Deed::KillPrimary | Deed::KillRecovery | Deed::PowerCut => {
                self.kill(deed, random).await;
            }
            Deed::CutLink(state) => {
                self.link_set(state);
                self.wait(500 + random.below(6_000)).await;
                self.write(random);
                if random.below(2) == 0 {
                    self.link_set(LinkState::Open);
                }
            }
            Deed::Heal => self.heal().await,
            Deed::BreakAtCut => {
                self.link_breaks_at_cut();
                self.wait(2_500).await;
                self.link_set(LinkState::Open);
                self.wait(2_500).await;
            }
            Deed::BreakSnapshot | Deed::FailRead => {
                let Some(disks) = self.primary_machines().disks(&owned()) else { return };
                let reads = random.below(8);
                match deed {
                    Deed::FailRead => disks.fail_read_after(reads),
                    _ => disks.break_snapshot_after(reads),
                }
            }
            Deed::RestartMachine => self.restart_machine(random).await,
            Deed::Grow => self.grow(),
            Deed::GuestGoesDeaf => {
                self.primary_machines().set_on_shutdown(&owned(), OnShutdown::Ignores);
            }
            Deed::LateFrames => self.late_frames().await,
        }
    }

    async fn kill(&mut self, deed: Deed, random: &mut Seeded) {
        let away = random.below(4_000);
        match deed {
            Deed::KillServer => self.server_kill().await,
            Deed::KillPrimary => self.primary_kill().await,
            Deed::PowerCut => {
                let disk = self.disk().now();
                if self.mistakes.skip_a_flush {
                    disk.lose_sync(LostSync { nth: disk.syncs() + random.below(8) as usize });
                }
                self.wait(random.below(3_000)).await;
                self.recovery_power_cut(random).await;
            }
            _ => self.recovery_kill().await,
        }
        self.wait(away).await;
        self.write(random);
        if deed == Deed::KillServer || random.below(2) == 0 {
            self.heal().await;
            self.mistake().await;
        }
    }

    /// The guest of every machine that runs writes a little.
    pub fn write(&self, random: &mut Seeded) {
        for _ in 0..3 {
            let number = random.below(2) as u16;
            let size = [FIRST_DISK_BYTES, SECOND_DISK_BYTES][usize::from(number)];
            let blocks = 1 + random.below(6);
            let offset = random.below(size / 4096 - blocks) * 4096;
            let pattern = random.next_u64().to_le_bytes();
            let bytes: Vec<u8> =
                pattern.iter().copied().cycle().take(blocks as usize * 4096).collect();
            self.write_at(DiskNumber(number), offset, &bytes);
        }
    }

    /// The guest of every machine that runs writes these bytes.
    pub fn write_at(&self, disk: DiskNumber, offset: u64, bytes: &[u8]) {
        // A guest that does not run writes nothing.
        let _ = self.primary_machines().guest_write(&owned(), disk, offset, bytes);
        for instance in self.ledger.instances().into_keys() {
            let machine = MachineRef::Instance(instance);
            let wrote = self.recovery_machines().guest_write(&machine, disk, offset, bytes);
            if wrote.is_ok() {
                self.ledger.instance_wrote(instance, disk, offset, bytes);
            }
        }
    }

    fn trim(&self, random: &mut Seeded) {
        let machines = self.primary_machines();
        let runs = self.all_machines().writers(MACHINE) > 0
            && machines.guest_read(&owned(), DiskNumber(1), 0, 512).is_ok();
        if let Some(disks) = machines.disks(&owned()).filter(|_| runs) {
            let len = (1 + random.below(2)) * 65_536;
            disks.discard(DiskNumber(1), random.below(2) * 65_536, len);
        }
    }

    async fn test_failover(&mut self, random: &mut Seeded) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let before = replication(self).await;
        let started =
            self.ask(async move { control.item_test_failover(item, PointChoice::Latest).await });
        let Ok(job) = started.await else { return };
        self.attend(job, random).await;
        let after = replication(self).await;
        let quiet = matches!(&before, Some((Protection::Protected, ..)));
        let resyncs = matches!(&after, Some((Protection::Resynchronizing { .. }, ..)));
        if quiet && !resyncs && before != after {
            let what = format!("I7: a test failover changed {before:?} to {after:?}");
            self.ledger.violated(what);
        }
    }

    async fn cleanup(&mut self, random: &mut Seeded) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let started = self.ask(async move { control.item_test_cleanup(item, "").await });
        if let Ok(job) = started.await {
            self.attend(job, random).await;
        }
    }

    async fn failover(
        &mut self,
        random: &mut Seeded,
        choice: PointChoice,
        shutdown: Shutdown,
        cancel: Option<u64>,
    ) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let started =
            self.ask(async move { control.item_failover(item, choice, shutdown).await }).await;
        let Ok(job) = started else { return };
        self.cancel_after(job, cancel).await;
        self.attend(job, random).await;
    }

    /// Waits for a job: until it is over, or for a while, or not at all.
    async fn attend(&mut self, job: leeward_model::JobId, random: &mut Seeded) {
        let steps = match random.below(3) {
            0 => random.below(200),
            _ => PATIENCE_STEPS,
        };
        let over = async |world: &World| world.job(job).await.ended.is_some();
        self.reaches(steps as usize, over).await;
    }

    async fn cancel_after(&mut self, job: leeward_model::JobId, after: Option<u64>) {
        if let Some(after) = after {
            self.wait(after).await;
            let cancelled = self.control().job_cancel(self.vault, job).await;
            cancelled.expect("a cancel is always accepted");
        }
    }

    /// One of the replicated points.
    async fn point(&mut self, random: &mut Seeded) -> Option<PointId> {
        let (control, item) = (self.control(), self.item?);
        let page = self.ask(async move { control.point_list(item, 0, 1000).await }).await.ok()?;
        let points: Vec<PointId> = page
            .points
            .iter()
            .filter(|point| point.origin == PointOrigin::Replicated)
            .map(|point| point.id)
            .collect();
        if points.is_empty() {
            return None;
        }
        Some(points[random.below(points.len() as u64) as usize])
    }

    async fn change_point(&mut self, random: &mut Seeded, cancel: Option<u64>) {
        let failed_over = self.view().await.map(|view| view.state.protection);
        if !matches!(failed_over, Some(Protection::FailedOver { .. })) {
            return;
        }
        let (control, Some(point)) = (self.control(), self.point(random).await) else { return };
        let Some(item) = self.item else { return };
        let started = self.ask(async move { control.item_change_point(item, point).await });
        let Ok(job) = started.await else { return };
        self.cancel_after(job, cancel).await;
        self.attend(job, random).await;
    }

    async fn failover_cancel(&mut self, random: &mut Seeded) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let started = self.ask(async move { control.item_failover_cancel(item).await });
        if let Ok(job) = started.await {
            self.attend(job, random).await;
        }
    }

    async fn commit(&mut self, random: &mut Seeded) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let started = self.ask(async move { control.item_commit(item).await });
        if let Ok(job) = started.await {
            self.attend(job, random).await;
        }
    }

    async fn resync(&mut self) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        // Refused, or watched by the settling: it may take long.
        let _ = self.ask(async move { control.item_resync(item).await }).await;
    }

    async fn disable_and_enable(&mut self, random: &mut Seeded) {
        let Some(view) = self.view().await else { return };
        let plain = view.state.active == Site::Primary && view.state.test == TestState::None;
        if !plain {
            // Ended while it is live elsewhere, the machine would be nobody's.
            return;
        }
        let (control, item) = (self.control(), view.id);
        self.ledger.may_delete();
        let started = self
            .ask(async move {
                control.item_disable(item, KeepPoints::Delete, DisableReason::Normal).await
            })
            .await;
        let Ok(job) = started else { return };
        self.attend(job, random).await;
        if self.view().await.is_none() {
            self.ledger.replica_ended();
            self.protect(random).await;
        }
    }

    async fn restart_machine(&mut self, random: &mut Seeded) {
        if !self.is_live_at_primary().await || !self.jobs_running().await.is_empty() {
            return;
        }
        self.primary_machines().kill_process(&owned());
        self.wait(random.below(3_000)).await;
        self.owner_cares().await;
    }

    /// The second disk of the machine, if it runs, grows by a little over an extent.
    pub fn grow(&self) {
        let runs = self.primary_machines().guest_read(&owned(), DiskNumber(1), 0, 512).is_ok();
        if let Some(disks) = self.primary_machines().disks(&owned()).filter(|_| runs) {
            let size = disks.content(DiskNumber(1)).len() as u64;
            disks.resize(DiskNumber(1), size + 65_536 + 4_096);
        }
    }

    /// A session that passed its checks just before the fence brings frames just after it.
    async fn late_frames(&mut self) {
        let (Some(item), Some(store)) = (self.item, self.store()) else { return };
        let vault = self.vault;
        let tried = store.with(item, move |item| {
            let reader = item.reader();
            let fence = reader.fence();
            let old = reader.branches().iter().rev().find(|branch| branch.epoch < fence).copied();
            let Some(branch) = old else { return Ok(None) };
            let Some(last) = reader.committed(branch.timeline) else { return Ok(None) };
            let header = SegmentHeader {
                segment: leeward_model::SegmentId::from(uuid::Uuid::new_v4()),
                vault,
                item: reader.item(),
                timeline: branch.timeline,
                epoch: branch.epoch,
                key_version: 1,
                first_lsn: last.next(),
                created_at: leeward_model::UnixMillis(0),
            };
            match item.begin_segment(&header) {
                Ok(()) => Ok(Some((branch.epoch, fence))),
                Err(StoreError::Fenced { .. } | StoreError::Refused { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        });
        if let Ok(Some((epoch, fence))) = tried.await {
            let what = format!("I5: data of epoch {epoch} were taken behind the fence {fence}");
            self.ledger.violated(what);
        }
    }
}

/// Lives through the histories of `seeds`, each in a world of its own, until `enough` of them
/// violated something. Returns what came of each.
pub fn live_all(
    seeds: impl IntoIterator<Item = u64>,
    mistakes: impl Fn(u64) -> Mistakes + Sync,
    enough: usize,
) -> Vec<(u64, Told)> {
    let live_one = |seed| (seed, super::simulate(live(seed, mistakes(seed))));
    crowd(seeds, live_one, |told: &[(u64, Told)]| {
        told.iter().filter(|(_, told)| !told.violations.is_empty()).count() >= enough
    })
}
