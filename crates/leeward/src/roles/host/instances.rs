//! One worker for each machine that is made from a recovery point here: it brings the machine to
//! the stage that its duty names, tends it while it runs, probes it, and keeps its work.

use super::{
    Host,
    exports::ExportPlan,
    permits,
    site_store::{KeptWork, SiteStore},
};
use leeward_fabric::{ExportAnswers, FabricError, InstanceDisk, InstancePlan, IoStop, MachineRef};
use leeward_model::{
    Code, DiskNumber, Epoch, InstanceId, ItemId, MachineSpec, MachineState, Problem, UnixMillis,
};
use leeward_wire::message::{InstanceDuty, InstanceObserved, ProbeResult, Purpose, Stage};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How often a running machine is looked at.
const TEND: Duration = Duration::from_millis(500);
/// How often its console is looked at while a probe runs.
const PROBE_LOOK: Duration = Duration::from_millis(100);
/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a probe waits when the machine does not say: a slow boot under emulation.
const PROBE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// How long a machine without a probe runs before its test counts as over.
const NO_PROBE_WAIT: Duration = Duration::from_secs(20);
/// From the probe's verdict to the picture: the display shows what the console said a little
/// later, and a picture of half of it proves less.
const PICTURE_SETTLE: Duration = Duration::from_millis(1_500);
/// How much of the console a probe reads.
const CONSOLE_BYTES: u64 = 256 << 10;
/// The longest line that is kept as evidence.
const SEEN_BYTES_MAX: usize = 4096;

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
    let mut worker = Worker { host, store, item, instance, kept, probing: None, verdict: None };
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
            Stage::Stopped | Stage::HandedOver => self.stopped(work).await,
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
            isolated: work.duty.purpose == Purpose::Test,
            settle_as: work.duty.settle_as.clone(),
        }
    }

    fn export_plan(&self, work: &InstanceWork) -> ExportPlan {
        ExportPlan {
            item: self.item,
            point: work.duty.point,
            socket: self.host.export_socket(self.instance),
            folder: self.host.instance_folder(self.instance),
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
        if info.origin != leeward_model::PointOrigin::Replicated {
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
        let plan = self.plan(work, spec);
        self.host.fabric.overlay_create(&plan).await.map_err(|error| error.problem())
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
        if self.kept.guest_started_at.is_none() || state != Some(MachineState::Running) {
            self.start(work, state).await?;
        }
        self.tend(work).await
    }

    /// Starts the guest, for the first time or after this host's or the machine's own end.
    async fn start(
        &mut self,
        work: &InstanceWork,
        state: Option<MachineState>,
    ) -> Result<(), Problem> {
        let plan = self.export_plan(work);
        let away = !self.kept.hydrated && !self.host.exports.answers(&plan).await;
        if state == Some(MachineState::Paused) && self.kept.guest_started_at.is_some() {
            // It stopped by itself or its guest is off: tending decides, not starting.
            return Ok(());
        }
        let machine = self.instance.to_string();
        let Some(permit) = &work.duty.permit else {
            return Err(Code::NO_PERMIT.problem(format!("instance {machine} was not started")));
        };
        permits::permit_allows(&self.host.permit_check(), permit, self.item, &machine, work.epoch)?;
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
        self.host.fabric.instance_run(self.instance).await.map_err(|error| error.problem())?;
        self.kept.guest_started_at = Some(self.host.wall.now());
        self.save()
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
        self.show_running(work, status.state, f64::from(status.hydrated_percent), problem);
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
        let killed = self.host.fabric.instance_kill(self.instance).await;
        match killed {
            Ok(()) | Err(FabricError::Unknown(_)) => {}
            Err(error) => return Err(error.problem()),
        }
        permits::permit_forget(&self.host.folder, &self.instance.to_string());
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
        for step in [
            self.host.fabric.instance_kill(self.instance).await,
            self.host.fabric.instance_delete(self.instance).await,
        ] {
            match step {
                Ok(()) | Err(FabricError::Unknown(_)) => {}
                Err(error) => return Err(error.problem()),
            }
        }
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

    /// Looks whether the machine has shown what its probe asks for.
    async fn probe(&mut self, work: &InstanceWork) -> Result<(), Problem> {
        let Some((_, spec)) = self.store.point(self.item, work.duty.point).await? else {
            return Ok(());
        };
        let begun = *self.probing.get_or_insert_with(Instant::now);
        let machine = MachineRef::Instance(self.instance);
        let wanted = spec.probe.console_contains.as_deref().filter(|text| !text.is_empty());
        if self.verdict.is_none() {
            let tail = self.host.fabric.console_tail(&machine, CONSOLE_BYTES).await;
            let console = tail.map_err(|error| error.problem())?;
            let limit = match (spec.probe.timeout_seconds, wanted) {
                (_, None) => NO_PROBE_WAIT,
                (0, Some(_)) => PROBE_TIMEOUT_DEFAULT,
                (seconds, Some(_)) => Duration::from_secs(u64::from(seconds)),
            };
            let late = || match wanted {
                Some(_) => (false, format!("not seen within {} s", limit.as_secs())),
                None => (false, "machine.toml names no probe: look at the display".to_owned()),
            };
            let late = || (begun.elapsed() > limit).then(late);
            let verdict = judge(&spec, &String::from_utf8_lossy(&console)).or_else(late);
            self.verdict = verdict.map(|verdict| (verdict, Instant::now()));
        }
        let verdict = match &self.verdict {
            Some((verdict, reached)) if reached.elapsed() >= PICTURE_SETTLE => verdict.clone(),
            _ => return Ok(()),
        };
        let started = self.kept.guest_started_at.unwrap_or_else(|| self.host.wall.now());
        let probe = match wanted {
            Some(text) => format!("the console shows “{text}”"),
            None => "none".to_owned(),
        };
        let evidence = leeward_model::Evidence {
            booted_at: started,
            took_ms: (self.host.wall.now().0 - started.0).max(0) as u64,
            probe,
            seen: verdict.1,
            picture: None,
            picture_hash: None,
            content_hash: None,
        };
        let mut result = ProbeResult { passed: verdict.0, evidence };
        if wanted.is_some() {
            // Without a probe nothing was proved, for or against the point.
            let picture = self.picture(&spec).await;
            let point = work.duty.point;
            result = self.store.verified(self.item, point, result, picture).await?;
        }
        self.kept.evidence = Some(result);
        self.save()
    }

    /// A picture of the machine's display, when it has one and can be asked.
    async fn picture(&self, spec: &MachineSpec) -> Option<Vec<u8>> {
        let machine = MachineRef::Instance(self.instance);
        if !spec.display || self.status().await != Some(MachineState::Running) {
            return None;
        }
        match self.host.fabric.machine_screenshot(&machine).await {
            Ok(picture) => Some(picture),
            Err(error) => {
                tracing::warn!(instance = %self.instance, %error, "could not take a picture");
                None
            }
        }
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
            problem: None,
        }
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
        percent: f64,
        problem: Option<Problem>,
    ) {
        let hydrated_percent = Some(percent);
        let seen = self.seen(Stage::Running, machine);
        let seen = InstanceObserved { hydrated_percent, problem, ..seen };
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

/// The probe's verdict on a console, once there is one.
fn judge(spec: &MachineSpec, console: &str) -> Option<(bool, String)> {
    let wanted = spec.probe.console_contains.as_deref().filter(|text| !text.is_empty())?;
    let line = console.lines().find(|line| line.contains(wanted))?;
    let unwanted = spec.probe.console_must_not_contain.as_deref();
    let passed = unwanted.is_none_or(|text| text.is_empty() || !line.contains(text));
    let line = line.trim();
    let end = (0..=line.len().min(SEEN_BYTES_MAX)).rev().find(|at| line.is_char_boundary(*at));
    Some((passed, line[..end.unwrap_or(0)].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::{Firmware, Probe};

    fn spec(contains: &str, not: &str) -> MachineSpec {
        MachineSpec {
            name: "m".into(),
            memory_mib: 64,
            cpus: 1,
            firmware: Firmware::Bios,
            disks: Vec::new(),
            nics: Vec::new(),
            display: false,
            probe: Probe {
                console_contains: Some(contains.into()),
                console_must_not_contain: Some(not.into()),
                timeout_seconds: 1,
            },
        }
    }

    #[test]
    fn a_probe_passes_only_on_the_line_it_asks_for() {
        let console = "booting\nLEDGER {\"ok\":true,\"last\":7}\n";

        assert_eq!(judge(&spec("READY", ""), console), None);
        let (passed, seen) = judge(&spec("LEDGER {", "\"ok\":false"), console).unwrap();
        assert!(passed);
        assert_eq!(seen, "LEDGER {\"ok\":true,\"last\":7}");
        let broken = console.replace("true", "false");
        assert!(!judge(&spec("LEDGER {", "\"ok\":false"), &broken).unwrap().0);
    }
}
