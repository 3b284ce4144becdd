//! What must hold at any time: of points, promises, machines, stale disks and shown figures.

use super::{SITES, SKEWS_MS, World, differs, fabric::image_of, ledger::Made, time::BEGIN_WALL_MS};
use leeward_control::jobs::{JobFilter, JobView, RunState, Scenario};
use leeward_fabric::{Fabric as _, MachineRef};
use leeward_model::{DiskNumber, InstanceId, MachineState, Site};

/// Steps between two heartbeats of the machine that must not stop.
const STEPS_BETWEEN_BEATS: u64 = 10;
/// What a heartbeat writes.
const BEAT_BYTES: usize = 4096;

impl World {
    /// Checks, quickly, some of what must hold at any time.
    pub async fn check_often(&mut self) {
        self.names_learn().await;
        self.check_rpo().await;
        self.check_stale().await;
        self.check_left().await;
        self.check_planned().await;
    }

    /// Checks all that must hold at any time.
    pub async fn check(&mut self) {
        self.check_often().await;
        if let Some(item) = self.item {
            for site in SITES {
                let place = self.ledger.place(site);
                match self.disk(site).item(item) {
                    Some(reader) => self.ledger.check_replica(place, &reader),
                    None if self.view().await.is_some() && self.ledger.has_promised(site) => {
                        let what = format!("I3: the replica at {site:?} cannot be opened");
                        self.ledger.violated(what);
                    }
                    None => {}
                }
            }
        }
        self.check_former();
        self.check_kept();
        for (instance, made) in self.ledger.instances() {
            self.check_instance(instance, &made).await;
        }
    }

    async fn check_instance(&self, id: InstanceId, Made { site, image, .. }: &Made) {
        let (machines, machine) = (self.machines(*site), MachineRef::Instance(id));
        let status = machines.instance_status(id).await;
        let whole = status.is_ok_and(|status| status.hydrated_percent == 100);
        let Some(disks) = machines.disks(&machine).filter(|_| whole) else { return };
        for (number, bytes) in image {
            if let Some(offset) = differs(&disks.content(*number), bytes) {
                let what = format!("I1: disk {number} of {machine} differs at byte {offset}");
                self.ledger.violated(what);
            }
        }
    }

    /// What a machine that does not run has on its disks stays as it is (decision 39), and so
    /// does the owner's own machine for as long as another stands for it.
    pub async fn check_stale(&mut self) {
        for site in SITES {
            let state = self.machines(site).machine_state(&self.owned(site)).await;
            let disks = self.machines(site).disks(&self.owned(site));
            match disks.filter(|_| matches!(state, Ok(MachineState::Off))) {
                Some(disks) => self.ledger.lies_still(site, image_of(&disks)),
                None => self.ledger.moved(site),
            }
        }
        let superseded = match self.is_swapped {
            true => self.ledger.is_superseded_left(),
            false => self.ledger.is_superseded(Site::Primary),
        };
        let image = superseded.then(|| image_of(&self.owners_disks));
        let before = std::mem::replace(&mut self.owners_image, image);
        if let (Some(before), Some(now)) = (before, &self.owners_image)
            && before != *now
        {
            self.ledger.violated("the owner's own disks were changed");
        }
    }

    /// A planned failover loses nothing (F-086).
    async fn check_planned(&mut self) {
        let Some(control) = self.server.clone() else { return };
        let filter = JobFilter { scenarios: vec![Scenario::PlannedFailover], ..Default::default() };
        let listed = control.job_list(self.vault, &filter).await;
        let ended = |job: &JobView| {
            let done = matches!(job.state, RunState::Succeeded | RunState::SucceededWithWarning);
            job.ended.filter(|_| done)
        };
        for job in listed.expect("the database works") {
            let Some(ended) = ended(&job) else { continue };
            if self.planned.insert(job.id) {
                let ms = ended.0 - BEGIN_WALL_MS - SKEWS_MS[2];
                self.ledger.nothing_lost(ms.unsigned_abs());
            }
        }
    }

    /// The active machine never stops while another direction is built up: it runs, and its guest
    /// writes and reads what it wrote.
    pub(super) async fn check_runs(&mut self) {
        let Some(site) = self.must_run else { return };
        self.beats += 1;
        if self.beats.is_multiple_of(STEPS_BETWEEN_BEATS) {
            let beat = self.beats.to_le_bytes().repeat(BEAT_BYTES / 8);
            self.write_at(DiskNumber(1), 0, &beat);
            let machine = self.owned(site);
            let read =
                self.machines(site).guest_read(&machine, DiskNumber(1), 0, BEAT_BYTES as u64);
            if read.ok().is_none_or(|read| read[..] != beat[..]) {
                let ms = self.time.ms();
                self.ledger.violated(format!("the active machine's guest stands still at {ms} ms"));
            }
        }
        if !self.is_running(site).await {
            self.must_run = None;
            let ms = self.time.ms();
            self.ledger.violated(format!("the active machine has stopped at {ms} ms"));
        }
    }

    /// Whether the protected machine runs at a site.
    pub async fn is_running(&self, site: Site) -> bool {
        let state = self.machines(site).machine_state(&self.owned(site)).await;
        matches!(state, Ok(MachineState::Running))
    }

    /// The RPO that is shown is never below the truth (I8).
    pub async fn check_rpo(&self) {
        let now = self.time.ms();
        let Some(view) = self.view().await else { return };
        let (Some(newest), Some(rpo)) = (view.newest, view.rpo_seconds) else { return };
        let Some(cut) = self.ledger.cut_ms(newest.cut_at) else { return };
        let truth = now.saturating_sub(cut);
        if rpo * 1000 < truth {
            self.ledger.violated(format!("I8: the RPO is shown as {rpo} s and is {truth} ms"));
        }
    }
}
