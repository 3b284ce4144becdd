//! Machines made from recovery points: QEMU on overlays, and hydration behind the running guest.
//!
//! While an instance's export is away, its QEMU is only asked questions: commands that drain its
//! disks would hang with it.

use super::QemuFabric;
use super::arguments::{self, Begin, DiskImage, Launch, Networks, OnError};
use super::blocks::{self, format_node};
use super::overlay;
use super::settle::{self, Settled};
use super::vm::{CHANGE, Guest, QUICK, Vm};
use crate::fabric::{ExportAnswers, FabricError, InstancePlan, InstanceStatus, IoStop, MachineRef};
use crate::machine_toml::Channel;
use crate::process;
use crate::qmp::{Qmp, QmpError, QmpEvent};
use leeward_model::{DiskEntry, DiskFormat, DiskNumber, DiskUse, InstanceId, MachineState};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The bitmap that names everything the guest wrote since its first instruction.
pub(super) const SINCE_FAILOVER: &str = "lw-since-failover";

fn stream_job(disk: DiskNumber) -> String {
    format!("lw-hydrate-{disk}")
}

/// Name of the file of a disk's overlay.
pub(super) fn overlay_file(disk: DiskNumber) -> OsString {
    format!("disk-{disk}.qcow2").into()
}

fn overlay_path(plan: &InstancePlan, disk: DiskNumber) -> PathBuf {
    plan.folder.join(overlay_file(disk))
}

/// Exists once the guest may have run: from then on the bitmap cannot be made any more.
fn begun_path(plan: &InstancePlan) -> PathBuf {
    plan.folder.join("begun")
}

impl QemuFabric {
    pub(super) fn instance_run_folder(&self, instance: InstanceId) -> PathBuf {
        self.config.run.join(format!("i-{:032x}", instance.as_u128()))
    }

    pub(super) fn plan_path(&self, instance: InstanceId) -> PathBuf {
        self.instance_run_folder(instance).join("plan.json")
    }

    pub(super) fn planned(&self) -> Result<Vec<InstanceId>, FabricError> {
        let entries = match std::fs::read_dir(&self.config.run) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| FabricError::List { source })?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(|source| FabricError::List { source })?.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix("i-"));
            let id = id.and_then(|id| u128::from_str_radix(id, 16).ok());
            let id = id.map(InstanceId::from_u128);
            found.extend(id.filter(|id| self.plan_path(*id).exists()));
        }
        found.sort();
        Ok(found)
    }

    pub(super) fn plan(&self, instance: InstanceId) -> Result<InstancePlan, FabricError> {
        let machine = MachineRef::Instance(instance);
        match process::read_json(&self.plan_path(instance)) {
            Ok(Some(plan)) => Ok(plan),
            Ok(None) => Err(FabricError::Unknown(machine)),
            Err(error) => {
                let reason = error.to_string();
                Err(FabricError::Hypervisor { machine, what: "read the plan of", reason })
            }
        }
    }

    pub(super) fn instance_vm(&self, plan: &InstancePlan) -> Vm {
        let run = self.instance_run_folder(plan.instance);
        let entry = |disk: &crate::fabric::InstanceDisk| {
            let described = plan.spec.disks.iter().find(|spec| spec.number == disk.number);
            DiskEntry {
                number: disk.number,
                id: described.map_or_else(|| disk.number.to_string(), |spec| spec.id.clone()),
                serial: described.map_or_else(String::new, |spec| spec.serial.clone()),
                size: disk.size,
                block_bytes: described.map_or(512, |spec| spec.block_bytes),
            }
        };
        Vm {
            machine: MachineRef::Instance(plan.instance),
            link: self.link(run.join("q")),
            console: plan.folder.join("console.log"),
            disks: plan.disks.iter().map(entry).collect(),
            run,
        }
    }

    pub(super) async fn create_overlays(&self, plan: &InstancePlan) -> Result<(), FabricError> {
        let vm = self.instance_vm(plan);
        if matches!(self.settled(plan.instance)?, Settled::HandedOver) {
            return Err(FabricError::Unknown(vm.machine));
        }
        let make = |folder: &Path| -> io::Result<()> {
            std::fs::create_dir_all(folder)?;
            process::sync_folder_of(folder)
        };
        make(&plan.folder).map_err(|error| vm.file("make the folder", error))?;
        make(&vm.run).map_err(|error| vm.file("make the run folder", error))?;
        settle::note_holder(&plan.folder, plan.instance)
            .map_err(|error| vm.file("mark the folder", error))?;
        for disk in &plan.disks {
            let made = overlay::create(&overlay_path(plan, disk.number), disk).await;
            made.map_err(|error| vm.failed("make an overlay for", error))?;
        }
        let kept = process::write_json(&self.plan_path(plan.instance), plan);
        kept.map_err(|error| vm.failed("keep the plan of", error))
    }

    pub(super) async fn prepare(&self, instance: InstanceId) -> Result<(), FabricError> {
        let plan = self.plan(instance)?;
        let vm = self.instance_vm(&plan);
        let living = vm.process().await.map_err(|reason| vm.failed("prepare", reason))?;
        match living {
            Some(process) if vm.is_fenced(&process)? => {
                return Err(FabricError::Fenced(vm.machine.clone()));
            }
            Some(_) => {}
            None => {
                vm.forget_fence()?;
                self.start_standing_still(&plan, &vm).await?;
            }
        }
        if begun_path(&plan).exists() {
            return Ok(());
        }
        let add = async {
            let qmp = vm.qmp().await?;
            let nodes = blocks::nodes(&qmp).await?;
            let lacks = |disk: &&crate::fabric::InstanceDisk| {
                let node = nodes.iter().find(|node| node.name == format_node(disk.number));
                node.is_some_and(|node| node.bitmaps.iter().all(|b| b.name != SINCE_FAILOVER))
            };
            let action = |disk: &crate::fabric::InstanceDisk| {
                json!({"type": "block-dirty-bitmap-add",
                       "data": {"node": format_node(disk.number), "name": SINCE_FAILOVER,
                                "persistent": true, "granularity": 65_536}})
            };
            let actions = plan.disks.iter().filter(lacks).map(action).collect();
            blocks::transaction(&qmp, actions).await
        };
        add.await.map_err(|error: QmpError| vm.failed("prepare", error))
    }

    async fn start_standing_still(&self, plan: &InstancePlan, vm: &Vm) -> Result<(), FabricError> {
        let image = |disk: &DiskEntry| DiskImage {
            number: disk.number,
            serial: disk.serial.clone(),
            format: DiskFormat::Qcow2,
            path: overlay_path(plan, disk.number),
            is_device: false,
        };
        let disks: Vec<DiskImage> = vm.disks.iter().map(image).collect();
        let channels = self.channels(plan).await?;
        let launch = Launch {
            spec: &plan.spec,
            accelerator: self.config.accelerator,
            disks: &disks,
            channels: &channels,
            qmp: vm.link.socket(),
            console: &vm.console,
            on_error: OnError::Stop,
            networks: if plan.isolated { Networks::Isolated } else { Networks::AsDescribed },
            begin: Begin::StandingStill,
        };
        vm.spawn(&self.config.program, &arguments::arguments(&launch)).await
    }

    /// The channels of the machine that it will settle as. While that one runs they are its own.
    async fn channels(&self, plan: &InstancePlan) -> Result<Vec<Channel>, FabricError> {
        let Some(name) = &plan.settle_as else { return Ok(Vec::new()) };
        let machine = match self.owned(name) {
            Err(FabricError::Unknown(_)) => return Ok(Vec::new()),
            machine => machine?,
        };
        match self.owned_vm(&machine).state().await {
            MachineState::Off => Ok(machine.channels),
            MachineState::Running | MachineState::Paused | MachineState::Unknown => Ok(Vec::new()),
        }
    }

    pub(super) async fn run(&self, instance: InstanceId) -> Result<(), FabricError> {
        let plan = self.plan(instance)?;
        let vm = self.instance_vm(&plan);
        let living = vm.process().await.map_err(|reason| vm.failed("run", reason))?;
        let Some(process) = living else {
            return Err(FabricError::Off { machine: vm.machine.clone(), what: "run" });
        };
        if vm.is_fenced(&process)? {
            return Err(FabricError::Fenced(vm.machine.clone()));
        }
        vm.forget_halt()?;
        let begun = process::write_json(&begun_path(&plan), &json!({}));
        begun.map_err(|error| vm.failed("note the start of", error))?;
        let go = async {
            match vm.guest().await? {
                Guest::Running => {}
                Guest::Shutdown => {
                    vm.call("system_reset", json!({}), QUICK).await?;
                    vm.call("cont", json!({}), CHANGE).await?;
                }
                Guest::IoError | Guest::Paused => {
                    vm.call("cont", json!({}), CHANGE).await?;
                }
            }
            self.hydrate(&vm).await
        };
        go.await.map_err(|error: QmpError| vm.failed("run", error))
    }

    /// Starts or resumes the stream of every disk that still has something below it.
    async fn hydrate(&self, vm: &Vm) -> Result<(), QmpError> {
        let qmp = vm.qmp().await?;
        let jobs = qmp.call("query-block-jobs", json!({}), QUICK).await?;
        let nodes = blocks::nodes(&qmp).await?;
        for disk in &vm.disks {
            let (id, node) = (stream_job(disk.number), format_node(disk.number));
            let job = jobs.as_array().into_iter().flatten().find(|job| job["device"] == *id);
            let known = nodes.iter().find(|known| known.name == node);
            match job {
                Some(job) if job["status"] == "paused" => {
                    match qmp.call("block-job-resume", json!({"device": id}), CHANGE).await {
                        // It stood still for a drain only, not for an error.
                        Err(error) if error.refused_with("not paused") => {}
                        answer => {
                            answer?;
                        }
                    }
                }
                Some(_) => {}
                None if known.is_some_and(|node| node.has_backing) => {
                    let arguments = json!({
                        "job-id": id,
                        "device": node,
                        "filter-node-name": format!("lw-stream-{}", disk.number),
                        "on-error": "stop",
                        "speed": self.config.hydration_bytes_per_second,
                        "auto-dismiss": true,
                        // See `streams_end`.
                        "auto-finalize": false,
                    });
                    qmp.call("block-stream", arguments, CHANGE).await?;
                }
                None => {}
            }
        }
        Ok(())
    }

    pub(super) async fn status(&self, instance: InstanceId) -> Result<InstanceStatus, FabricError> {
        let plan = self.plan(instance)?;
        let vm = self.instance_vm(&plan);
        let state = vm.state().await;
        let still = InstanceStatus {
            state,
            io_stop: None,
            guest_off: false,
            hydrated_percent: 0,
            disk_use: None,
        };
        match state {
            MachineState::Off => {
                let hydrated_percent = hydrated_while_off(&plan);
                return Ok(InstanceStatus { hydrated_percent, ..still });
            }
            MachineState::Unknown => return Ok(still),
            MachineState::Running | MachineState::Paused => {}
        }
        let look = async {
            let qmp = vm.qmp().await?;
            let guest = vm.guest().await?;
            let devices = qmp.call("query-block", json!({}), QUICK).await?;
            let mut jobs = qmp.call("query-block-jobs", json!({}), QUICK).await?;
            if !pending(&jobs).is_empty() {
                jobs = streams_end(&qmp, &vm.disks, &jobs).await?;
            }
            let nodes = blocks::nodes(&qmp).await?;
            Ok(InstanceStatus {
                // Of one look with the rest: it may have stopped since the first.
                state: match guest {
                    Guest::Running => MachineState::Running,
                    Guest::Shutdown | Guest::IoError | Guest::Paused => MachineState::Paused,
                },
                io_stop: (guest == Guest::IoError)
                    .then(|| why_stopped(&qmp.recent_events(), &devices)),
                guest_off: guest == Guest::Shutdown,
                hydrated_percent: hydrated(&vm.disks, &jobs, &nodes),
                disk_use: disk_use(&vm.disks, &nodes),
            })
        };
        look.await.map_err(|error: QmpError| vm.failed("look at", error))
    }

    pub(super) async fn tend(
        &self,
        instance: InstanceId,
        export: ExportAnswers,
    ) -> Result<InstanceStatus, FabricError> {
        let before = self.status(instance).await?;
        let hydrated = before.hydrated_percent == 100;
        let vm = self.instance_vm(&self.plan(instance)?);
        let living = vm.process().await.map_err(|reason| vm.failed("tend", reason))?;
        let Some(process) = living else { return Ok(before) };
        if (export == ExportAnswers::No && !hydrated)
            || vm.is_fenced(&process)?
            || vm.is_halted(&process)?
            || !begun_path(&self.plan(instance)?).exists()
        {
            return Ok(before);
        }
        let failed = |error: QmpError| vm.failed("tend", error);
        if before.io_stop == Some(IoStop::Backing) {
            vm.call("cont", json!({}), CHANGE).await.map_err(failed)?;
            tracing::info!(machine = %vm.machine, "its export is back and it goes on");
        }
        if !hydrated && before.state != MachineState::Unknown {
            self.hydrate(&vm).await.map_err(failed)?;
        }
        self.status(instance).await
    }

    pub(super) async fn delete(&self, instance: InstanceId) -> Result<(), FabricError> {
        let plan = match self.plan(instance) {
            // What it named as its disks is nobody's any more; what was handed over is another's.
            Err(FabricError::Unknown(_)) => return self.unsettle(instance),
            plan => plan?,
        };
        let vm = self.instance_vm(&plan);
        match vm.process().await {
            Ok(None) => {}
            Ok(Some(_)) => return Err(vm.not_off("it must be killed before it is deleted")),
            Err(reason) => return Err(vm.not_off(reason)),
        }
        self.unsettle(instance)?;
        // The plan goes last: until then the rest can be found and deleted again.
        for folder in [&plan.folder, &vm.run] {
            match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(vm.file("delete the folder", error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Why a guest stopped. A full file system needs a person, so it wins.
///
/// The events since it last ran tell. They are missing when nobody was connected; then the
/// devices' state does, which keeps the first error of the process's life for ever (QEMU 7.2):
/// taken for the other kind, a guest is let go on once in vain, and the event is seen.
fn why_stopped(events: &[QmpEvent], devices: &Value) -> IoStop {
    let since = events.iter().rev().take_while(|event| event.name != "RESUME");
    let stops =
        since.filter(|event| event.name == "BLOCK_IO_ERROR" && event.data["action"] == "stop");
    let causes: Vec<bool> = stops.map(|event| event.data["nospace"] == true).collect();
    let mut devices = devices.as_array().into_iter().flatten();
    let is_full = match causes.is_empty() {
        false => causes.contains(&true),
        true => devices.any(|device| device["io-status"] == "nospace"),
    };
    if is_full { IoStop::NoSpace } else { IoStop::Backing }
}

/// The streams that have read everything and wait to be told to end.
fn pending(jobs: &Value) -> Vec<String> {
    let jobs = jobs.as_array().into_iter().flatten();
    let pending = jobs.filter(|job| job["status"] == "pending");
    pending.filter_map(|job| Some(job["device"].as_str()?.to_owned())).collect()
}

/// Ends the streams that have read everything; returns the jobs that are left.
///
/// QEMU keeps the maps of an overlay's clusters in memory, and the end of a stream writes into its
/// head that it leans on nothing: a kill right behind that would leave an image of zeros that
/// passes for whole. So what was streamed is on disk first, and the new head before anybody hears
/// of it, who may let the point go.
async fn streams_end(qmp: &Qmp, disks: &[DiskEntry], jobs: &Value) -> Result<Value, QmpError> {
    let ending = pending(jobs);
    flush(qmp, disks).await?;
    for id in &ending {
        let before = qmp.events_now();
        qmp.call("job-finalize", json!({"id": id}), CHANGE).await?;
        let is_gone = |event: &QmpEvent| {
            let (name, status) = (event.name.as_str(), &event.data["status"]);
            name == "JOB_STATUS_CHANGE" && event.data["id"] == **id && status == "null"
        };
        match qmp.wait_event(&format!("the end of {id}"), before, is_gone, CHANGE).await {
            // Whether it has ended is told by the list below.
            Ok(_) | Err(QmpError::NoEvent { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    flush(qmp, disks).await?;
    qmp.call("query-block-jobs", json!({}), QUICK).await
}

/// Puts everything that the disks' nodes hold in memory on disk: a reopen does that and says when
/// it could not. Each top node keeps the node below it.
async fn flush(qmp: &Qmp, disks: &[DiskEntry]) -> Result<(), QmpError> {
    let nodes = blocks::nodes(qmp).await?;
    let below = |disk: &DiskEntry| {
        let filter = blocks::filter_node(disk.number);
        match nodes.iter().any(|node| node.name == filter) {
            true => (disk.number, filter),
            false => (disk.number, format_node(disk.number)),
        }
    };
    blocks::reopen_tops(qmp, disks.iter().map(below)).await
}

/// Percent of the disks' bytes that are in the overlays; 100 only when nothing is below any.
fn hydrated(disks: &[DiskEntry], jobs: &Value, nodes: &[blocks::Node]) -> u8 {
    let (mut have, mut all, mut whole) = (0_u128, 0_u128, true);
    for disk in disks {
        let node = nodes.iter().find(|node| node.name == format_node(disk.number));
        let size = u128::from(disk.size);
        all += size;
        if node.is_some_and(|node| !node.has_backing) {
            have += size;
            continue;
        }
        whole = false;
        let id = stream_job(disk.number);
        let job = jobs.as_array().into_iter().flatten().find(|job| job["device"] == *id);
        let number = |field: &str| u128::from(job.and_then(|job| job[field].as_u64()).unwrap_or(0));
        have += (size * number("offset")).checked_div(number("len")).unwrap_or(0).min(size);
    }
    match whole {
        true => 100,
        false => (have * 100 / all.max(1)).min(99) as u8,
    }
}

/// What the overlays take and their maps since the failover name; none when a disk is not seen.
fn disk_use(disks: &[DiskEntry], nodes: &[blocks::Node]) -> Option<DiskUse> {
    let mut all = DiskUse { allocated_bytes: 0, changed_bytes: Some(0) };
    for disk in disks {
        let node = nodes.iter().find(|node| node.name == format_node(disk.number))?;
        let map = node.bitmaps.iter().find(|map| map.name == SINCE_FAILOVER && !map.inconsistent);
        all.allocated_bytes += node.allocated.min(disk.size);
        all.changed_bytes = all.changed_bytes.zip(map).map(|(bytes, map)| bytes + map.bytes);
    }
    Some(all)
}

fn hydrated_while_off(plan: &InstancePlan) -> u8 {
    let holds_all = |disk: &crate::fabric::InstanceDisk| {
        crate::image::inspect(&overlay_path(plan, disk.number), DiskFormat::Qcow2)
            .is_ok_and(|image| image.backing.is_none())
    };
    if plan.disks.iter().all(holds_all) { 100 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(number: u16, size: u64) -> DiskEntry {
        let (id, serial) = (String::new(), String::new());
        DiskEntry { number: DiskNumber(number), id, serial, size, block_bytes: 512 }
    }

    fn node(number: u16, below: u8) -> blocks::Node {
        let (name, has_backing) = (format_node(DiskNumber(number)), below > 0);
        blocks::Node { name, size: 0, allocated: 0, has_backing, bitmaps: Vec::new() }
    }

    #[test]
    fn hydration_counts_bytes_over_all_disks_and_is_whole_only_without_anything_below() {
        let disks = [disk(0, 300), disk(1, 100)];
        let jobs = json!([{"device": "lw-hydrate-0", "offset": 50, "len": 100}]);
        let done = json!([{"device": "lw-hydrate-0", "offset": 100, "len": 100}]);

        assert_eq!(hydrated(&disks, &json!([]), &[node(0, 1), node(1, 1)]), 0);
        assert_eq!(hydrated(&disks, &jobs, &[node(0, 1), node(1, 0)]), 62);
        assert_eq!(hydrated(&disks, &done, &[node(0, 1), node(1, 0)]), 99, "the job has not ended");
        assert_eq!(hydrated(&disks, &json!([]), &[node(0, 0), node(1, 0)]), 100);
    }

    #[test]
    fn a_full_file_system_is_told_from_an_export_that_was_away() {
        let event = |name: &str, nospace: bool| {
            let data = json!({"action": "stop", "nospace": nospace});
            QmpEvent { name: name.into(), data }
        };
        let error = |nospace| event("BLOCK_IO_ERROR", nospace);
        let stuck = json!([{"io-status": "ok"}, {"io-status": "failed"}]);
        let full = json!([{"io-status": "failed"}, {"io-status": "nospace"}]);

        assert_eq!(why_stopped(&[], &stuck), IoStop::Backing);
        assert_eq!(why_stopped(&[], &full), IoStop::NoSpace);
        assert_eq!(why_stopped(&[error(true)], &stuck), IoStop::NoSpace);
        assert_eq!(why_stopped(&[error(true), error(false)], &stuck), IoStop::NoSpace);
        let resumed = [error(true), event("RESUME", false), error(false)];
        assert_eq!(why_stopped(&resumed, &full), IoStop::Backing);
    }
}
