//! What operators ask for in random histories, and how patiently they wait for it.

use super::{SITES, World, settle::STEPS_MAX};
use leeward_control::{
    items::{PlannedSpec, ReprotectSpec, Shutdown, SyncOption},
    jobs::{JobAnswer, RunState},
};
use leeward_model::{Branch, Epoch, JobId, PointChoice, PointId, PointOrigin, Protection, Site};
use leeward_replica::{StoreError, storage::Seeded};
use leeward_wire::segment::SegmentHeader;

/// Steps for which somebody waits for a job, at most; then other things happen beside it.
const PATIENCE_STEPS: u64 = 1_500;
/// Steps between two writes of the guests while somebody waits.
const STEPS_BETWEEN_WRITES: u64 = 50;

/// What replication is, as far as a test failover must not touch it (I7).
async fn replication(world: &World) -> Option<(Protection, Epoch, Branch, Site)> {
    let view = world.view().await?;
    Some((view.state.protection, view.epoch, view.branch, view.state.active))
}

impl World {
    pub(super) async fn test_failover(&mut self, random: &mut Seeded) {
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

    pub(super) async fn cleanup(&mut self, random: &mut Seeded) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let started = self.ask(async move { control.item_test_cleanup(item, "").await });
        if let Ok(job) = started.await {
            self.attend(job, random).await;
        }
    }

    pub(super) async fn failover(
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

    pub(super) async fn planned_failover(
        &mut self,
        random: &mut Seeded,
        wait_to_complete: bool,
        cancel: Option<u64>,
    ) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let sync = match random.below(3) {
            0 => SyncOption::ForSynchronization,
            _ => SyncOption::ForDownTime,
        };
        let spec = PlannedSpec { wait_to_complete, sync, ..PlannedSpec::default() };
        let started = self.ask(async move { control.item_planned_failover(item, spec).await });
        let Ok(job) = started.await else { return };
        self.cancel_after(job, cancel).await;
        if wait_to_complete && cancel.is_none() {
            self.attend(job, random).await;
            let asks = self.job(job).await.state == RunState::Suspended;
            self.write(random);
            if asks {
                let answer = [JobAnswer::Retry, JobAnswer::Reply("power-off".to_owned())];
                let answer = answer[random.below(2) as usize].clone();
                let resumed = self.control().job_resume(self.vault, job, answer).await;
                resumed.expect("it asked, and nobody else answers");
            }
        }
        self.attend(job, random).await;
    }

    pub(super) async fn reprotect(&mut self, random: &mut Seeded, cancel: Option<u64>) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let spec = ReprotectSpec::default();
        let started = self.ask(async move { control.item_reprotect(item, spec).await });
        let Ok(job) = started.await else { return };
        self.cancel_after(job, cancel).await;
        self.attend(job, random).await;
    }

    /// Builds the other direction up and waits until it is.
    pub async fn reprotect_wholly(&mut self, random: &mut Seeded) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let started = control.item_reprotect(item, ReprotectSpec::default()).await;
        let job = self.finish(started.expect("the world is ready for it")).await;
        if !matches!(job.state, RunState::Succeeded | RunState::SucceededWithWarning) {
            self.ledger.violated(format!("it ended as {:?}: {:?}", job.state, job.errors));
        }
        let protected = async |world: &World| {
            let view = world.view().await;
            view.is_some_and(|view| view.state.protection == Protection::Protected)
        };
        self.write(random);
        self.until("the other direction is protected", STEPS_MAX, protected).await;
    }

    /// The host of the active machine loses its power, and whatever point there is must do.
    pub(super) async fn second_disaster(&mut self, random: &mut Seeded) {
        let (Some(site), Some(point)) = (self.active().await, self.point(random).await) else {
            return;
        };
        self.power_cut(site, random).await;
        self.failover(random, PointChoice::Custom(point), Shutdown::Leave, None).await;
        self.wait(random.below(3_000)).await;
        self.heal().await;
    }

    /// Waits for a job, with guests that write: until it is over or asks something, or for a
    /// while, or not at all.
    pub(super) async fn attend(&mut self, job: JobId, random: &mut Seeded) {
        let steps = match random.below(3) {
            0 => random.below(200),
            _ => PATIENCE_STEPS,
        };
        let over = async |world: &World| {
            let view = world.job(job).await;
            view.ended.is_some() || view.state == RunState::Suspended
        };
        for _ in 0..steps.div_ceil(STEPS_BETWEEN_WRITES) {
            if self.reaches(STEPS_BETWEEN_WRITES as usize, over).await {
                return;
            }
            self.write(random);
        }
    }

    pub(super) async fn cancel_after(&mut self, job: JobId, after: Option<u64>) {
        if let Some(after) = after {
            self.wait(after).await;
            let cancelled = self.control().job_cancel(self.vault, job).await;
            cancelled.expect("a cancel is always accepted");
        }
    }

    /// One of the replicated points.
    pub(super) async fn point(&mut self, random: &mut Seeded) -> Option<PointId> {
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

    pub(super) async fn change_point(&mut self, random: &mut Seeded, cancel: Option<u64>) {
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

    pub(super) async fn failover_cancel(&mut self, random: &mut Seeded) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let started = self.ask(async move { control.item_failover_cancel(item).await });
        if let Ok(job) = started.await {
            self.attend(job, random).await;
        }
    }

    pub(super) async fn commit(&mut self, random: &mut Seeded) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        let started = self.ask(async move { control.item_commit(item).await });
        if let Ok(job) = started.await {
            self.attend(job, random).await;
        }
    }

    pub(super) async fn resync(&mut self) {
        let (control, Some(item)) = (self.control(), self.item) else { return };
        // Refused, or watched by the settling: it may take long.
        let _ = self.ask(async move { control.item_resync(item).await }).await;
    }

    /// A session that passed its checks just before the fence brings frames just after it.
    pub(super) async fn late_frames(&mut self) {
        for site in SITES {
            self.late_frames_at(site).await;
        }
    }

    async fn late_frames_at(&mut self, site: Site) {
        let (Some(item), Some(store)) = (self.item, self.store(site)) else { return };
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
                key_version: reader.keys().version,
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
