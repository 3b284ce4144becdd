//! One worker for each machine that is made from a recovery point here: it brings the machine to
//! the stage that its duty names, tends it while it runs, probes it, and keeps its work.

mod probe;
mod settled;

use super::{
    Host,
    exports::{BootSetUse, ExportPlan},
    permits,
    site_store::{KeptWork, SiteStore},
};
use crate::export::boot_set;
use leeward_fabric::{ExportAnswers, FabricError, InstanceDisk, InstancePlan, IoStop, MachineRef};
use leeward_model::{
    Code, DiskNumber, DiskUse, Epoch, InstanceId, ItemId, MachineSpec, MachineState, Problem,
    StartPermit, UnixMillis,
};
use leeward_wire::message::{InstanceDuty, InstanceObserved, ProbeResult, Purpose, Stage};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How often a running machine is looked at.
const TEND: Duration = Duration::from_millis(500);
/// How often what its disks hold is looked at anew.
const DISK_USE_LOOK: Duration = Duration::from_secs(5);
/// How often its console is looked at while a probe runs.
const PROBE_LOOK: Duration = Duration::from_millis(100);
/// How often it is looked whether the machine's fence is lifted.
const FENCE_LOOK: Duration = Duration::from_millis(100);
/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What a worker has to do.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceWork {
    /// Number of this change of work; the host waits for it to be acted on.
    pub turn: u64,
    /// The item.
    pub item: ItemId,
    /// Its name for people.
    pub name: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// The duty.
    pub duty: InstanceDuty,
}

impl InstanceWork {
    /// Whether both ask for the same.
    pub fn same(&self, other: &InstanceWork) -> bool {
        (self.item, &self.name, self.epoch, &self.duty)
            == (other.item, &other.name, other.epoch, &other.duty)
    }
}

/// What is kept about an instance over restarts of this process, in `instance.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// Its disks need the export no more.
    hydrated: bool,
    qemu_started_at: Option<UnixMillis>,
    guest_started_at: Option<UnixMillis>,
    evidence: Option<ProbeResult>,
    /// The point that keeps its work.
    point: Option<leeward_model::PointId>,
    /// It is being handed over: what the fabric does not know any more is the machine's own.
    handing_over: bool,
}

/// Whether a machine was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Started {
    /// It runs.
    Yes,
    /// The machine that it will be is just being fenced.
    NotYet,
}

struct Worker {
    host: Arc<Host>,
    store: Arc<SiteStore>,
    item: ItemId,
    instance: InstanceId,
    kept: Kept,
    probing: Option<Instant>,
    /// The probe's verdict and when it was reached; the picture follows.
    verdict: Option<((bool, String), Instant)>,
    /// What its disks hold, and when that was looked at.
    disk_use: Option<(Instant, DiskUse)>,
}

/// Runs the worker of an instance until its work is taken away.
pub async fn run(
    host: Arc<Host>,
    store: Arc<SiteStore>,
    item: ItemId,
    instance: InstanceId,
    mut work: watch::Receiver<Option<InstanceWork>>,
) {
    let folder = host.instance_folder(instance);
    let kept = std::fs::read(folder.join("instance.json")).unwrap_or_default();
    let kept = serde_json::from_slice(&kept).unwrap_or_default();
    let mut worker =
        Worker { host, store, item, instance, kept, probing: None, verdict: None, disk_use: None };
    loop {
        let Some(now) = work.borrow_and_update().clone() else {
            worker.host.board.instance(item, instance, None);
            return;
        };
        let pause = match worker.reach(&now).await {
            Ok(pause) => pause,
            Err(problem) => {
                let Problem { code, what, cause, .. } = &problem;
                tracing::warn!(%item, %instance, %code, %cause, "{what}");
                worker.show_problem(&now, problem).await;
                Some(RETRY)
            }
        };
        worker.host.instance_taken(instance, now.turn);
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

fn store_problem(what: &str) -> impl FnOnce(std::io::Error) -> Problem {
    let what = what.to_owned();
    move |error| Code::STORE_IO.because(what, error.to_string())
}

/// What was asked of an instance that is not there is done.
fn known(step: Result<(), FabricError>) -> Result<(), Problem> {
    match step {
        Ok(()) | Err(FabricError::Unknown(_)) => Ok(()),
        Err(error) => Err(error.problem()),
    }
}

impl Worker {
    async fn reach(&mut self, work: &InstanceWork) -> Result<Option<Duration>, Problem> {
        match work.duty.stage {
            Stage::Absent => self.remove(work).await,
            Stage::Overlay => {
                self.overlay(work).await?;
                self.show(work, Stage::Overlay, MachineState::Off, None);
                Ok(None)
            }
            Stage::Prepared => {
                let status = self.status().await;
                if status.is_some_and(|state| state == MachineState::Running) {
                    // It ran before: a machine that may have written is never prepared anew.
                    self.show(work, Stage::Running, MachineState::Running, None);
                    return Ok(Some(TEND));
                }
                self.overlay(work).await?;
                self.prepare().await?;
                self.show(work, Stage::Prepared, MachineState::Paused, None);
                Ok(None)
            }
            Stage::Running => self.running(work).await,
            Stage::Stopped => self.stopped(work).await,
            Stage::HandedOver => self.handed_over(work).await,
        }
    }

    fn plan(&self, work: &InstanceWork, spec: MachineSpec) -> InstancePlan {
        let socket = self.export_plan(work).socket;
        let disks = spec.disks.iter().map(|disk| InstanceDisk {
            number: disk.number,
            size: disk.size,
            socket: socket.clone(),
            export: export_name(disk.number),
        });
        InstancePlan {
            instance: self.instance,
            folder: self.host.instance_folder(self.instance),
            disks: disks.collect(),
            spec,
            changes: work.duty.changes.clone(),
            isolated: work.duty.purpose == Purpose::Test
                && work.duty.changes.test_network.is_none(),
            settle_as: work.duty.settle_as.clone(),
        }
    }

    fn export_plan(&self, work: &InstanceWork) -> ExportPlan {
        ExportPlan {
            item: self.item,
            point: work.duty.point,
            socket: self.host.export_socket(self.instance),
            folder: self.host.instance_folder(self.instance),
            boot_set: boot_set::path(&self.host.folder, self.item),
            boot_set_use: match work.duty.purpose {
                Purpose::Test => BootSetUse::Record,
                Purpose::Failover => BootSetUse::Keep,
            },
        }
    }

    async fn overlay(&mut self, work: &InstanceWork) -> Result<(), Problem> {
        let why = match work.duty.purpose {
            Purpose::Test => "a test machine runs from it",
            Purpose::Failover => "a failed-over machine runs from it",
        };
        let point = work.duty.point;
        self.store.pin(self.item, self.pin_name(), point, why).await?;
        let (info, spec) = self.store.point(self.item, point).await?.ok_or_else(|| {
            Code::NO_POINT.problem(format!("point {point} of {} is not in the store", work.name))
        })?;
        if !self.store.is_sealed(self.item, point).await? {
            let what = format!("starting {} from kept work ({})", work.name, info.name);
            return Err(Code::NOT_SUPPORTED.problem(what));
        }
        if !self.kept.hydrated {
            let plan = self.export_plan(work);
            self.host.exports.start(&plan).await.map_err(|error| {
                let what = format!("the export of {} could not be started", work.name);
                Code::INSTANCE_FAILED.because(what, error.to_string())
            })?;
        }
        let home = self.home(work).await?;
        let plan = self.plan(work, work.duty.changes.apply(spec, home.as_ref()));
        self.host.fabric.overlay_create(&plan).await.map_err(|error| error.problem())
    }

    /// What this host has of the machine that the instance will be.
    async fn home(&self, work: &InstanceWork) -> Result<Option<MachineSpec>, Problem> {
        let Some(name) = &work.duty.settle_as else { return Ok(None) };
        let all = self.host.fabric.discover().await.map_err(|error| error.problem())?;
        Ok(all.into_iter().find(|found| found.spec.name == *name).map(|found| found.spec))
    }

    fn pin_name(&self) -> String {
        format!("instance-{}", self.instance)
    }

    async fn prepare(&mut self) -> Result<(), Problem> {
        let prepared = self.host.fabric.instance_prepare(self.instance).await;
        prepared.map_err(|error| error.problem())?;
        if self.kept.qemu_started_at.is_none() {
            self.kept.qemu_started_at = Some(self.host.wall.now());
            self.save()?;
        }
        Ok(())
    }

    fn save(&self) -> Result<(), Problem> {
        let folder = self.host.instance_folder(self.instance);
        let bytes = serde_json::to_vec_pretty(&self.kept).expect("plain values serialize");
        std::fs::create_dir_all(&folder)
            .and_then(|()| crate::folder::write_whole(&folder.join("instance.json"), &bytes))
            .map_err(store_problem("the instance's own file could not be written"))
    }

    async fn status(&self) -> Option<MachineState> {
        match self.host.fabric.machine_state(&MachineRef::Instance(self.instance)).await {
            Ok(state) => Some(state),
            Err(FabricError::Unknown(_)) => None,
            Err(_) => Some(MachineState::Unknown),
        }
    }

    async fn running(&mut self, work: &InstanceWork) -> Result<Option<Duration>, Problem> {
        let state = self.status().await;
        let begun = self.kept.guest_started_at.is_some();
        // Without a permit it is only looked after: whoever may start it does so by its name.
        if let Some(permit) = &work.duty.permit
            && !(begun && state == Some(MachineState::Running))
            && self.start(work, permit, state).await? == Started::NotYet
        {
            return Ok(Some(FENCE_LOOK));
        }
        if work.duty.permit.is_none() && !begun {
            let stage = if state.is_some() { Stage::Overlay } else { Stage::Absent };
            self.show(work, stage, state.unwrap_or(MachineState::Off), None);
            return Ok(Some(TEND));
        }
        self.tend_settled(work).await
    }

    /// Starts the guest, for the first time or after this host's or the machine's own end.
    async fn start(
        &mut self,
        work: &InstanceWork,
        permit: &StartPermit,
        state: Option<MachineState>,
    ) -> Result<Started, Problem> {
        let plan = self.export_plan(work);
        let away = !self.kept.hydrated && !self.host.exports.answers(&plan).await;
        if state == Some(MachineState::Paused) && self.kept.guest_started_at.is_some() {
            // It stopped by itself or its guest is off: tending decides, not starting.
            return Ok(Started::Yes);
        }
        let machine = self.instance.to_string();
        permits::permit_allows(&self.host.permit_check(), permit, self.item, &machine, work.epoch)?;
        if self.still_fenced(work)? {
            return Ok(Started::NotYet);
        }
        if away || state.is_none() || state == Some(MachineState::Off) {
            self.overlay(work).await?;
            self.prepare().await?;
        }
        if let Some(point) = self.kept.point.take() {
            // Its work goes on: what was kept of it is not a point any more.
            self.store.kept_remove(self.item, point).await?;
            self.save()?;
        }
        permits::permit_store(&self.host.folder, permit)
            .map_err(store_problem("the start permit could not be kept"))?;
        self.settle(work).await?;
        self.host.fabric.instance_run(self.instance).await.map_err(|error| error.problem())?;
        self.kept.guest_started_at = Some(self.host.wall.now());
        self.save()?;
        Ok(Started::Yes)
    }

    async fn tend(&mut self, work: &InstanceWork) -> Result<Option<Duration>, Problem> {
        let plan = self.export_plan(work);
        let mut answers = ExportAnswers::Yes;
        if !self.kept.hydrated && !self.host.exports.answers(&plan).await {
            // Brought back first: while it is away the machine may only be looked at.
            answers = match self.host.exports.start(&plan).await {
                Ok(()) => ExportAnswers::Yes,
                Err(error) => {
                    let instance = self.instance;
                    tracing::warn!(%instance, %error, "could not bring the export back");
                    ExportAnswers::No
                }
            };
        }
        let status = self.host.fabric.instance_tend(self.instance, answers).await;
        let status = status.map_err(|error| error.problem())?;
        if status.hydrated_percent == 100 && !self.kept.hydrated {
            self.hydrated(&plan).await?;
        }
        let problem = match status.io_stop {
            Some(IoStop::NoSpace) => {
                let what = format!("{} stopped: its overlay's file system is full", work.name);
                Some(Code::STORE_NO_SPACE.problem(what))
            }
            Some(IoStop::Backing) => {
                let what = format!("{} waits for its export to come back", work.name);
                Some(Code::INSTANCE_FAILED.problem(what))
            }
            None => None,
        };
        // Before it holds all its data its images say nothing of what the machine has.
        let disk_use = status.disk_use.filter(|_| status.hydrated_percent == 100);
        let disk_use = self.disk_use_kept(disk_use);
        let percent = f64::from(status.hydrated_percent);
        self.show_running(work, status.state, (percent, disk_use), problem);
        if work.duty.probe && self.kept.evidence.is_none() {
            self.probe(work).await?;
            return Ok(Some(PROBE_LOOK));
        }
        Ok(Some(TEND))
    }

    /// The machine holds all its data itself: the export ends and the point is free again.
    async fn hydrated(&mut self, plan: &ExportPlan) -> Result<(), Problem> {
        self.kept.hydrated = true;
        self.save()?;
        let ended = self.host.exports.stop(plan).await;
        ended.map_err(store_problem("the export could not be ended"))?;
        self.store.unpin(self.item, self.pin_name()).await
    }

    async fn stopped(&mut self, work: &InstanceWork) -> Result<Option<Duration>, Problem> {
        if self.is_handed_over().await {
            self.show(work, Stage::HandedOver, MachineState::Unknown, None);
            return Ok(None);
        }
        known(self.host.fabric.instance_kill(self.instance).await)?;
        permits::permit_forget(&self.host.folder, &self.instance.to_string());
        self.unsettle().await?;
        if let Some(keep) = &work.duty.keep_as
            && self.kept.point != Some(keep.point)
            && self.kept.guest_started_at.is_some()
        {
            let folder = self.host.instance_folder(self.instance);
            let (base, spec) = self
                .store
                .point(self.item, work.duty.point)
                .await?
                .ok_or_else(|| Code::NO_POINT.problem("the machine's own point is gone"))?;
            let work_kept = KeptWork {
                keep: keep.clone(),
                timeline: work.duty.timeline,
                base: base.position,
                overlays: overlay_paths(&folder, &spec),
                kept_at: self.host.wall.now(),
                spec,
            };
            self.store.kept_add(self.item, work_kept).await?;
            self.kept.point = Some(keep.point);
            self.save()?;
        }
        // An overlay that still leans on its point is worth nothing without it: the pin stays.
        let plan = self.export_plan(work);
        let ended = self.host.exports.stop(&plan).await;
        ended.map_err(store_problem("the export could not be ended"))?;
        self.show(work, Stage::Stopped, MachineState::Off, None);
        Ok(None)
    }

    async fn remove(&mut self, work: &InstanceWork) -> Result<Option<Duration>, Problem> {
        if self.is_handed_over().await {
            // Its files are the machine's own disks: there is nothing left to delete.
            self.show(work, Stage::Absent, MachineState::Off, None);
            return Ok(None);
        }
        known(self.host.fabric.instance_kill(self.instance).await)?;
        self.unsettle().await?;
        known(self.host.fabric.instance_delete(self.instance).await)?;
        permits::permit_forget(&self.host.folder, &self.instance.to_string());
        let ended = self.host.exports.stop(&self.export_plan(work)).await;
        ended.map_err(store_problem("the export could not be ended"))?;
        self.store.unpin(self.item, self.pin_name()).await?;
        match std::fs::remove_dir_all(self.host.instance_folder(self.instance)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(store_problem("the instance's folder could not be deleted")(error));
            }
            _ => {}
        }
        self.kept = Kept::default();
        self.show(work, Stage::Absent, MachineState::Off, None);
        Ok(None)
    }

    fn seen(&self, stage: Stage, machine: MachineState) -> InstanceObserved {
        InstanceObserved {
            instance: self.instance,
            stage,
            machine,
            hydrated_percent: None,
            qemu_started_at: self.kept.qemu_started_at,
            guest_started_at: self.kept.guest_started_at,
            evidence: self.kept.evidence.clone(),
            kept: self.kept.point,
            disk_use: None,
            problem: None,
        }
    }

    /// What its disks hold, not newer than need be: every change of it is told at once.
    fn disk_use_kept(&mut self, seen: Option<DiskUse>) -> Option<DiskUse> {
        let now = Instant::now();
        if let Some((at, kept)) = self.disk_use
            && now < at + DISK_USE_LOOK
        {
            return Some(kept);
        }
        self.disk_use = seen.map(|seen| (now, seen));
        seen
    }

    fn show(
        &self,
        work: &InstanceWork,
        stage: Stage,
        machine: MachineState,
        problem: Option<Problem>,
    ) {
        let seen = InstanceObserved { problem, ..self.seen(stage, machine) };
        self.host.board.instance(work.item, self.instance, Some(seen));
    }

    fn show_running(
        &self,
        work: &InstanceWork,
        machine: MachineState,
        (percent, disk_use): (f64, Option<DiskUse>),
        problem: Option<Problem>,
    ) {
        let hydrated_percent = Some(percent);
        let seen = self.seen(Stage::Running, machine);
        let seen = InstanceObserved { hydrated_percent, disk_use, problem, ..seen };
        self.host.board.instance(work.item, self.instance, Some(seen));
    }

    async fn show_problem(&self, work: &InstanceWork, problem: Problem) {
        let machine = self.status().await.unwrap_or(MachineState::Off);
        let before = self.host.board.instance_seen(work.item, self.instance);
        let stage = before.map_or(Stage::Absent, |seen| seen.stage);
        self.show(work, stage, machine, Some(problem));
    }
}

/// The export's name of a disk.
pub fn export_name(disk: DiskNumber) -> String {
    format!("disk-{disk}")
}

fn overlay_paths(folder: &std::path::Path, spec: &MachineSpec) -> Vec<(DiskNumber, PathBuf)> {
    let path = |disk: &leeward_model::DiskSpec| {
        (disk.number, folder.join(format!("disk-{}.qcow2", disk.number)))
    };
    spec.disks.iter().map(path).collect()
}
