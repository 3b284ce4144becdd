//! QEMU on this machine, without libvirt: machines as folders, capture by QMP, instances on
//! overlays.
//!
//! Everything that must be found again after a crash is in QEMU itself or in the run folder; a
//! [`QemuFabric`] holds only connections.

mod arguments;
mod bitmap_files;
mod bitmaps;
mod blocks;
mod capture;
mod description;
mod instance;
mod machine;
mod overlay;
mod owned;
mod reader;
mod scratch;
mod settle;
mod still;
mod vm;

use crate::accelerator::Accelerator;
use crate::fabric::{
    ExportAnswers, Fabric, FabricError, FencedChanges, InstancePlan, InstanceStatus, MachineRef,
    Shutdown, Still,
};
use crate::qmp::Link;
use async_trait::async_trait;
use capture::QemuCapture;
use leeward_capture::ChangeSource;
use leeward_model::{DiscoveredMachine, DiskFormat, DiskNumber, InstanceId, ItemId, MachineState};
use scratch::Scratch;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vm::Vm;

/// How QEMU is used here.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// Folder of the owner's machines.
    pub machines: PathBuf,
    /// Folder of sockets, marks and scratch files. At most 60 bytes, for the sockets' sake; it
    /// may be empty after a boot of the host.
    pub run: PathBuf,
    /// How guests run; see [`crate::accelerator::probe`].
    pub accelerator: Accelerator,
    /// QEMU's program.
    pub program: String,
    /// The program that reads the disks of machines that are off.
    pub storage_daemon: String,
    /// Cap of a disk's scratch space in bytes; by default 10 % of the disk, at least 64 MiB.
    pub scratch_bytes_max: Option<u64>,
    /// Cap of hydration for each disk, in bytes a second; 0 for none.
    pub hydration_bytes_per_second: u64,
}

impl QemuConfig {
    /// The usual settings.
    pub fn new(machines: PathBuf, run: PathBuf, accelerator: Accelerator) -> Self {
        QemuConfig {
            machines,
            run,
            accelerator,
            program: "qemu-system-x86_64".into(),
            storage_daemon: "qemu-storage-daemon".into(),
            scratch_bytes_max: None,
            hydration_bytes_per_second: 0,
        }
    }
}

/// QEMU machines of this host.
pub struct QemuFabric {
    config: QemuConfig,
    links: Mutex<HashMap<PathBuf, Arc<Link>>>,
}

impl QemuFabric {
    /// A fabric over the folders of `config`; looks at nothing yet.
    pub fn new(config: QemuConfig) -> Self {
        QemuFabric { config, links: Mutex::default() }
    }

    /// The file that the machine's serial console is written to.
    ///
    /// # Errors
    /// [`FabricError::Unknown`].
    pub fn console_path(&self, machine: &MachineRef) -> Result<PathBuf, FabricError> {
        Ok(self.vm(machine)?.console)
    }

    /// The one connection that this process has to the QEMU at `socket`.
    fn link(&self, socket: PathBuf) -> Arc<Link> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.entry(socket.clone()).or_insert_with(|| Arc::new(Link::new(socket))).clone()
    }

    fn vm(&self, machine: &MachineRef) -> Result<Vm, FabricError> {
        match machine {
            MachineRef::Owned(name) => Ok(self.owned_vm(&self.owned(name)?)),
            MachineRef::Instance(id) => Ok(self.instance_vm(&self.plan(*id)?)),
        }
    }

    fn change_source(&self, machine: &MachineRef) -> Result<QemuCapture, FabricError> {
        let vm = self.vm(machine)?;
        let formats: BTreeMap<DiskNumber, DiskFormat> = match machine {
            MachineRef::Owned(name) => settle::formats(&self.owned(name)?),
            MachineRef::Instance(_) => {
                vm.disks.iter().map(|disk| (disk.number, DiskFormat::Qcow2)).collect()
            }
        };
        let scratch = Scratch::new(vm.run.clone(), self.config.scratch_bytes_max);
        Ok(QemuCapture::new(vm, formats, scratch))
    }
}

#[async_trait]
impl Fabric for QemuFabric {
    async fn discover(&self) -> Result<Vec<DiscoveredMachine>, FabricError> {
        self.discovered().await
    }

    async fn autostart(&self) -> Result<Vec<String>, FabricError> {
        let machines = self.list()?.into_iter().filter(|machine| machine.autostart);
        Ok(machines.map(|machine| machine.spec.name).collect())
    }

    async fn instances(&self) -> Result<Vec<InstanceId>, FabricError> {
        self.planned()
    }

    async fn machine_state(&self, machine: &MachineRef) -> Result<MachineState, FabricError> {
        Ok(self.vm(machine)?.state().await)
    }

    async fn machine_start(&self, name: &str) -> Result<(), FabricError> {
        self.start_owned(name).await
    }

    async fn machine_shutdown(
        &self,
        machine: &MachineRef,
        timeout: Duration,
    ) -> Result<Shutdown, FabricError> {
        self.vm(machine)?.shutdown(timeout).await
    }

    async fn machine_quit(&self, machine: &MachineRef) -> Result<(), FabricError> {
        let vm = self.vm(machine)?;
        match self.instance_of(machine)? {
            None => vm.quit().await,
            Some(id) => match self.status(id).await {
                Ok(status) if status.hydrated_percent == 100 => vm.quit().await,
                // While its export is away, quitting would hang: it is killed at once.
                Ok(_) | Err(_) => vm.kill().await,
            },
        }
    }

    async fn machine_fence(&self, machine: &MachineRef) -> Result<FencedChanges, FabricError> {
        let capture = self.change_source(machine)?;
        self.vm(machine)?.fence(&capture).await
    }

    async fn machine_halt(&self, machine: &MachineRef) -> Result<(), FabricError> {
        self.vm(machine)?.halt().await
    }

    async fn machine_guest_off(&self, machine: &MachineRef) -> Result<bool, FabricError> {
        self.vm(machine)?.guest_off().await
    }

    async fn machine_claim(&self, name: &str, item: ItemId) -> Result<(), FabricError> {
        self.claim(name, item)
    }

    async fn machine_claimed(&self, name: &str) -> Result<Option<ItemId>, FabricError> {
        self.claimed(name)
    }

    async fn machine_disclaim(&self, name: &str) -> Result<(), FabricError> {
        self.disclaim(name)
    }

    async fn machine_forget_changes(&self, name: &str) -> Result<(), FabricError> {
        self.forget_changes(name).await
    }

    async fn still(&self, name: &str) -> Result<Still, FabricError> {
        self.open_still(name).await
    }

    async fn capture(&self, machine: &MachineRef) -> Result<Box<dyn ChangeSource>, FabricError> {
        let capture = self.change_source(machine)?;
        match self.machine_state(machine).await? {
            MachineState::Running | MachineState::Paused => Ok(Box::new(capture)),
            MachineState::Off => {
                Err(FabricError::Off { machine: machine.clone(), what: "capture" })
            }
            MachineState::Unknown => {
                Err(self.vm(machine)?.failed("capture", "its state is not known"))
            }
        }
    }

    async fn machine_screenshot(&self, machine: &MachineRef) -> Result<Vec<u8>, FabricError> {
        self.vm(machine)?.screenshot().await
    }

    async fn console_tail(
        &self,
        machine: &MachineRef,
        bytes_max: u64,
    ) -> Result<Vec<u8>, FabricError> {
        self.vm(machine)?.console_tail(bytes_max)
    }

    async fn overlay_create(&self, plan: &InstancePlan) -> Result<(), FabricError> {
        self.create_overlays(plan).await
    }

    async fn instance_prepare(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.prepare(instance).await
    }

    async fn instance_run(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.run(instance).await
    }

    async fn instance_status(&self, instance: InstanceId) -> Result<InstanceStatus, FabricError> {
        self.status(instance).await
    }

    async fn instance_tend(
        &self,
        instance: InstanceId,
        export: ExportAnswers,
    ) -> Result<InstanceStatus, FabricError> {
        self.tend(instance, export).await
    }

    async fn instance_kill(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.instance_vm(&self.plan(instance)?).kill().await
    }

    async fn instance_settle(
        &self,
        instance: InstanceId,
        name: &str,
        item: ItemId,
    ) -> Result<(), FabricError> {
        self.settle(instance, name, item).await
    }

    async fn instance_unsettle(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.unsettle(instance)
    }

    async fn instance_hand_over(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.hand_over(instance).await
    }

    async fn instance_delete(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.delete(instance).await
    }
}
