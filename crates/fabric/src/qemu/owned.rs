//! Owners' machines: found in their folders, started, or adopted when their owner started them.

use super::QemuFabric;
use super::arguments::{self, Begin, DiskImage, Launch, Networks, OnError};
use super::settle::leans_on_a_point;
use super::vm::{CHANGE, Guest, QUICK, Vm};
use crate::fabric::{FabricError, MachineRef};
use crate::machine_toml::{self, Machine};
use leeward_model::{DiscoveredMachine, DiskEntry, DiskSpec};
use serde_json::json;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Longest part of a machine's name in its run folder's name, in bytes: a socket's path is short.
const RUN_NAME_BYTES_MAX: usize = 24;

impl QemuFabric {
    pub(super) fn list(&self) -> Result<Vec<Machine>, FabricError> {
        machine_toml::discover(&self.config.machines)
            .map_err(|error| FabricError::List { source: std::io::Error::other(error) })
    }

    pub(super) async fn discovered(&self) -> Result<Vec<DiscoveredMachine>, FabricError> {
        let mut found = Vec::new();
        for machine in self.list()? {
            let state = self.owned_vm(&machine).state().await;
            let obstacles = machine.obstacles.iter();
            let obstacles =
                obstacles.map(|found| format!("{}: {}", found.code.code, found.what)).collect();
            found.push(DiscoveredMachine { spec: machine.spec, state, obstacles });
        }
        Ok(found)
    }

    pub(super) fn owned(&self, name: &str) -> Result<Machine, FabricError> {
        let mut machines = self.list()?.into_iter();
        let machine = machines.find(|machine| machine.spec.name == name);
        machine.ok_or_else(|| FabricError::Unknown(MachineRef::Owned(name.into())))
    }

    pub(super) fn owned_vm(&self, machine: &Machine) -> Vm {
        let run = match machine.instance {
            Some(instance) => self.instance_run_folder(instance),
            None => self.config.run.join(run_name(&machine.spec.name)),
        };
        let socket = machine.qmp.clone().unwrap_or_else(|| run.join("q"));
        // An instance's console lies beside its overlays.
        let overlay = machine.spec.disks.first().filter(|_| machine.instance.is_some());
        let overlays = overlay.and_then(|disk| Path::new(&disk.path).parent());
        Vm {
            machine: MachineRef::Owned(machine.spec.name.clone()),
            link: self.link(socket),
            console: overlays.unwrap_or(&run).join("console.log"),
            disks: machine.spec.disks.iter().map(disk_entry).collect(),
            run,
        }
    }

    /// Starts a machine, or lets it go on after its guest was shut down.
    pub(super) async fn start_owned(&self, name: &str) -> Result<(), FabricError> {
        let machine = self.owned(name)?;
        let vm = self.owned_vm(&machine);
        if let Some(instance) = machine.instance
            && self.plan(instance).is_ok()
        {
            self.prepare(instance).await?;
            return self.run(instance).await;
        }
        let unknown = |reason: String| vm.failed("start", reason);
        if let Some(process) = vm.process().await.map_err(unknown)? {
            if vm.is_fenced(&process)? {
                return Err(FabricError::Fenced(vm.machine.clone()));
            }
            return go_on(&vm).await;
        }
        if let Some(first) = machine.obstacles.first() {
            let words: Vec<&str> = machine.obstacles.iter().map(|o| o.what.as_str()).collect();
            let (machine, code) = (vm.machine.clone(), Box::new(first.code));
            return Err(FabricError::Unusable { machine, code, what: words.join("; ") });
        }
        if leans_on_a_point(&machine) {
            let reason = "its disks need their recovery point: prepare its instance first".into();
            return Err(FabricError::Start { machine: vm.machine, reason });
        }
        vm.forget_fence()?;
        let disks: Vec<DiskImage> = machine.spec.disks.iter().map(image).collect();
        let launch = Launch {
            spec: &machine.spec,
            accelerator: self.config.accelerator,
            disks: &disks,
            channels: &machine.channels,
            qmp: vm.link.socket(),
            console: &vm.console,
            on_error: OnError::AsUsual,
            networks: Networks::AsDescribed,
            begin: Begin::Running,
        };
        vm.spawn(&self.config.program, &arguments::arguments(&launch)).await
    }
}

async fn go_on(vm: &Vm) -> Result<(), FabricError> {
    let failed = |error: crate::qmp::QmpError| vm.failed("let go on", error);
    vm.forget_halt()?;
    match vm.guest().await.map_err(failed)? {
        Guest::Running => return Ok(()),
        Guest::Shutdown => {
            vm.call("system_reset", json!({}), QUICK).await.map_err(failed)?;
        }
        Guest::IoError | Guest::Paused => {}
    }
    vm.call("cont", json!({}), CHANGE).await.map(|_| ()).map_err(failed)
}

fn disk_entry(disk: &DiskSpec) -> DiskEntry {
    DiskEntry {
        number: disk.number,
        id: disk.id.clone(),
        serial: disk.serial.clone(),
        size: disk.size,
        block_bytes: disk.block_bytes,
    }
}

fn image(disk: &DiskSpec) -> DiskImage {
    let path = PathBuf::from(&disk.path);
    DiskImage {
        number: disk.number,
        serial: disk.serial.clone(),
        format: disk.format,
        is_device: is_block_device(&path),
        path,
    }
}

fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// Name of a machine's run folder: the machine's, cut and told apart by a hash if it is long.
fn run_name(name: &str) -> String {
    if name.len() <= RUN_NAME_BYTES_MAX {
        return format!("m-{name}");
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3) // FNV-1a
    });
    let head: String = name.chars().take(7).collect();
    format!("m-{head}~{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_folders_of_long_names_are_short_and_differ() {
        let (a, b) = ("x".repeat(63) + "a", "x".repeat(63) + "b");

        assert!(run_name(&a).len() <= RUN_NAME_BYTES_MAX + 2);
        assert_ne!(run_name(&a), run_name(&b));
        assert_eq!(run_name("web01"), "m-web01");
    }
}
