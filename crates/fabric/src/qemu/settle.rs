//! Instances that become an owner's machine: settling, taking it back, handing over; and the marks
//! that tell whose machine it is.
//!
//! The steps on files are in `description`; the running QEMU is never touched by a settling.

use super::QemuFabric;
use super::description::{self, Step};
use super::vm::{CHANGE, Vm};
use super::{blocks, instance};
use crate::fabric::{FabricError, InstancePlan, MachineRef};
use crate::image;
use crate::machine_toml::{self, Machine};
use crate::process;
use leeward_model::{Code, DiskFormat, DiskNumber, InstanceId, ItemId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// In the folder of an instance's overlays: which instance's it is.
const HOLDS: &str = ".leeward-instance";

#[derive(Serialize, Deserialize)]
struct Holds {
    instance: InstanceId,
}

/// Notes that `folder` holds the overlays of `instance`.
pub(super) fn note_holder(folder: &Path, instance: InstanceId) -> io::Result<()> {
    process::write_json(&folder.join(HOLDS), &Holds { instance }).map_err(io::Error::other)
}

/// How far an instance has become an owner's machine.
pub(super) enum Settled {
    /// Not at all.
    No,
    /// The machine's description names its disks, or is about to; this can be taken back.
    Yes(PathBuf),
    /// For good.
    HandedOver,
}

impl QemuFabric {
    fn owned_folder(&self, name: &str) -> Result<PathBuf, FabricError> {
        let unknown = |_| FabricError::Unknown(MachineRef::Owned(name.into()));
        machine_toml::check_name("the machine's name", name).map_err(unknown)?;
        Ok(self.config.machines.join(name))
    }

    /// The folder of a machine that has a description.
    fn described_folder(&self, name: &str) -> Result<PathBuf, FabricError> {
        let folder = self.owned_folder(name)?;
        match description::description(&folder).exists() {
            true => Ok(folder),
            false => Err(FabricError::Unknown(MachineRef::Owned(name.into()))),
        }
    }

    pub(super) fn claimed(&self, name: &str) -> Result<Option<ItemId>, FabricError> {
        let folder = self.described_folder(name)?;
        description::claimed(&folder).map_err(|error| file(name, "read the mark", error))
    }

    pub(super) fn claim(&self, name: &str, item: ItemId) -> Result<(), FabricError> {
        match self.claimed(name)? {
            Some(other) if other != item => Err(foreign(name, Some(other))),
            Some(_) => Ok(()),
            None => description::claim(&self.owned_folder(name)?, item)
                .map_err(|error| file(name, "write the mark", error)),
        }
    }

    pub(super) fn disclaim(&self, name: &str) -> Result<(), FabricError> {
        match self.owned_folder(name) {
            Ok(folder) => {
                description::disclaim(&folder).map_err(|error| file(name, "remove the mark", error))
            }
            Err(_) => Ok(()), // No machine has such a name.
        }
    }

    /// The instance that an owner's machine is, while it is still listed as one.
    pub(super) fn instance_of(
        &self,
        machine: &MachineRef,
    ) -> Result<Option<InstanceId>, FabricError> {
        let instance = match machine {
            MachineRef::Instance(id) => return Ok(Some(*id)),
            MachineRef::Owned(name) => self.owned(name)?.instance,
        };
        Ok(instance.filter(|id| self.plan(*id).is_ok()))
    }

    pub(super) fn settled(&self, instance: InstanceId) -> Result<Settled, FabricError> {
        let entries = match fs::read_dir(&self.config.machines) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Settled::No),
            entries => entries.map_err(|source| FabricError::List { source })?,
        };
        for entry in entries {
            let folder = entry.map_err(|source| FabricError::List { source })?.path();
            if description::before(&folder, instance).exists() {
                return Ok(Settled::Yes(folder));
            }
        }
        let is_it = |machine: &Machine| machine.instance == Some(instance);
        Ok(if self.list()?.iter().any(is_it) { Settled::HandedOver } else { Settled::No })
    }

    pub(super) async fn settle(
        &self,
        instance: InstanceId,
        name: &str,
        item: ItemId,
    ) -> Result<(), FabricError> {
        let plan = self.plan(instance)?;
        let folder = self.owned_folder(name)?;
        let path = description::description(&folder);
        let former = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(file(name, "read the description", error)),
        };
        if former.is_some() {
            let claimed = self.claimed(name)?;
            if claimed != Some(item) {
                return Err(foreign(name, claimed));
            }
            let present = self.owned(name)?;
            if present.instance == Some(instance) {
                return Ok(());
            }
            // Under a new description nobody would find its process again.
            let vm = self.owned_vm(&present);
            match vm.process().await {
                Ok(None) => {}
                Ok(Some(_)) => return Err(vm.not_off("the machine that it shall replace runs")),
                Err(reason) => return Err(vm.not_off(reason)),
            }
        }
        let overlays = absolute_overlays(&plan).map_err(|error| file(name, "find", error))?;
        let former = former.as_deref();
        let made = (&plan.spec, &plan.changes);
        let text = machine_toml::settled_text((name, &folder), former, made, &overlays, instance);
        let text = text.map_err(|what| FabricError::Unusable {
            machine: MachineRef::Owned(name.into()),
            code: Box::new(Code::MACHINE_INVALID),
            what,
        })?;
        for step in description::settling(&folder, item, text) {
            let what = match step {
                Step::MakeFolder => "make the folder",
                Step::Claim(_) => "write the mark",
                Step::KeepFormer => "keep the former description",
                Step::Replace(_) => "replace the description",
            };
            step.run(&folder, instance).map_err(|error| file(name, what, error))?;
        }
        tracing::info!(name, %instance, "the instance is the machine now");
        Ok(())
    }

    pub(super) fn unsettle(&self, instance: InstanceId) -> Result<(), FabricError> {
        let folder = match self.settled(instance)? {
            Settled::Yes(folder) => folder,
            Settled::No => return Ok(()),
            Settled::HandedOver => {
                return Err(FabricError::Unknown(MachineRef::Instance(instance)));
            }
        };
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |what| move |error| file(&name, what, error);
        let read = |path: &Path| match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        };
        let look = || -> io::Result<_> {
            let present = read(&description::description(&folder))?;
            Ok((present, read(&description::before(&folder, instance))?.unwrap_or_default()))
        };
        let (present, kept) = look().map_err(failed.clone()("read the descriptions"))?;
        let is_its_own = present.as_deref().is_none_or(|text| is_of(&folder, text, instance));
        if is_its_own {
            description::restore(&folder, instance).map_err(failed("restore the description"))
        } else if present.as_deref() == Some(&kept) {
            // It was interrupted before it replaced anything.
            description::forget_unfinished(&folder, instance).map_err(failed("forget a copy"))
        } else {
            Ok(()) // A later instance's.
        }
    }

    pub(super) async fn hand_over(&self, instance: InstanceId) -> Result<(), FabricError> {
        let planned = match self.plan(instance) {
            Ok(plan) => Some(plan),
            Err(FabricError::Unknown(_)) => None,
            Err(error) => return Err(error),
        };
        let unknown = || FabricError::Unknown(MachineRef::Instance(instance));
        let refused = |reason: &str| FabricError::Hypervisor {
            machine: MachineRef::Instance(instance),
            what: "hand over",
            reason: reason.into(),
        };
        let folder = match self.settled(instance)? {
            Settled::Yes(folder) => folder,
            Settled::HandedOver => return self.forget_plan(instance),
            Settled::No if planned.is_none() => return Err(unknown()),
            Settled::No => return Err(refused("it has not settled")),
        };
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let machine = self.owned(&name)?;
        if machine.instance != Some(instance) {
            return Err(refused("the machine's description is not its own"));
        }
        let hydrated = match &planned {
            Some(_) => self.status(instance).await?.hydrated_percent == 100,
            None => !leans_on_a_point(&machine),
        };
        if !hydrated {
            return Err(refused("it still needs its point"));
        }
        let vm = self.owned_vm(&machine);
        forget_since_failover(&vm).await?;
        self.let_go_of_former(&machine, instance).await?;
        self.forget_plan(instance)
    }

    /// Ends the possibility to take a settling back: from here on the instance is handed over.
    async fn let_go_of_former(
        &self,
        machine: &Machine,
        instance: InstanceId,
    ) -> Result<(), FabricError> {
        let (name, folder) = (&machine.spec.name, &machine.folder);
        let kept = description::before(folder, instance);
        let text = fs::read_to_string(&kept);
        let text = text.map_err(|error| file(name, "read the former description", error))?;
        let earlier = machine_toml::parse(name, folder, &text).ok();
        let Some((earlier, id)) = earlier.and_then(|found| found.instance.map(|id| (found, id)))
        else {
            let ended = match text.is_empty() {
                true => description::remove(&kept),
                false => fs::rename(&kept, description::former(folder, instance))
                    .and_then(|()| process::sync_folder_of(&kept)),
            };
            return ended.map_err(|error| file(name, "put the former description away", error));
        };
        if matches!(self.settled(id)?, Settled::No) && self.plan(id).is_err() {
            let vm = self.owned_vm(&earlier);
            match vm.process().await {
                Ok(None) => {}
                Ok(Some(_)) => return Err(vm.not_off("its earlier process still exists")),
                Err(reason) => return Err(vm.not_off(reason)),
            }
            vm.end_still().await?;
            self.delete_overlays(&earlier, id)
                .map_err(|error| file(name, "delete the earlier overlays", error))?;
            remove_folder(&vm.run).map_err(|error| file(name, "delete a run folder", error))?;
        }
        description::remove(&kept)
            .map_err(|error| file(name, "remove the former description", error))
    }

    /// Deletes the overlays that `earlier` names, if they are the instance's and in its folder, and
    /// no machine of this host names them.
    fn delete_overlays(&self, earlier: &Machine, id: InstanceId) -> io::Result<()> {
        let machines = self.list().map_err(io::Error::other)?;
        let used: Vec<image::FileIdentity> = machines
            .iter()
            .flat_map(|machine| &machine.spec.disks)
            .filter_map(|disk| {
                Some(image::inspect(Path::new(&disk.path), disk.format).ok()?.identity)
            })
            .collect();
        for disk in &earlier.spec.disks {
            let path = Path::new(&disk.path);
            let Some(folder) = path.parent() else { continue };
            let holds: Option<Holds> =
                process::read_json(&folder.join(HOLDS)).map_err(io::Error::other)?;
            let is_ours = holds.is_some_and(|holds| holds.instance == id)
                && path.file_name() == Some(&instance::overlay_file(disk.number));
            let Ok(image) = image::inspect(path, disk.format) else { continue };
            if !is_ours || used.contains(&image.identity) {
                tracing::warn!(path = %disk.path, "a disk of an earlier machine was left alone");
                continue;
            }
            description::remove(path)?;
            tracing::info!(path = %disk.path, "an earlier instance's overlay was deleted");
        }
        Ok(())
    }

    fn forget_plan(&self, instance: InstanceId) -> Result<(), FabricError> {
        let path = self.plan_path(instance);
        description::remove(&path).map_err(|source| FabricError::File {
            machine: MachineRef::Instance(instance),
            what: "forget the plan".into(),
            source,
        })
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether any disk of a machine leans on a recovery point.
pub(super) fn leans_on_a_point(machine: &Machine) -> bool {
    let leans = |disk: &leeward_model::DiskSpec| {
        image::inspect(Path::new(&disk.path), disk.format)
            .is_ok_and(|image| image.backing.is_some())
    };
    machine.instance.is_some() && machine.spec.disks.iter().any(leans)
}

fn is_of(folder: &Path, text: &[u8], instance: InstanceId) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let text = String::from_utf8_lossy(text);
    machine_toml::parse(&name, folder, &text)
        .is_ok_and(|machine| machine.instance == Some(instance))
}

fn absolute_overlays(plan: &InstancePlan) -> io::Result<BTreeMap<DiskNumber, PathBuf>> {
    let folder = fs::canonicalize(&plan.folder)?;
    let path = |number| (number, folder.join(instance::overlay_file(number)));
    Ok(plan.disks.iter().map(|disk| path(disk.number)).collect())
}

/// Takes away what only an instance needs. A machine that is off keeps it, which costs nothing.
async fn forget_since_failover(vm: &Vm) -> Result<(), FabricError> {
    let living = vm.process().await.map_err(|reason| vm.failed("hand over", reason))?;
    if living.is_none() {
        return Ok(());
    }
    let remove = async {
        let qmp = vm.qmp().await?;
        let nodes = blocks::nodes(&qmp).await?;
        let has = |number: DiskNumber| {
            let node = nodes.iter().find(|node| node.name == blocks::format_node(number));
            node.is_some_and(|node| node.bitmaps.iter().any(|b| b.name == instance::SINCE_FAILOVER))
        };
        let numbers = vm.disks.iter().map(|disk| disk.number).filter(|number| has(*number));
        let remove = |number| blocks::bitmap_action("remove", number, instance::SINCE_FAILOVER);
        tokio::time::timeout(CHANGE, blocks::transaction(&qmp, numbers.map(remove).collect()))
            .await
            .unwrap_or(Ok(())) // Left behind, it costs nothing.
    };
    remove.await.map_err(|error| vm.failed("hand over", error))
}

/// Formats of the disks of an owner's machine, by number.
pub(super) fn formats(machine: &Machine) -> BTreeMap<DiskNumber, DiskFormat> {
    machine.spec.disks.iter().map(|disk| (disk.number, disk.format)).collect()
}

fn file(name: &str, what: &str, source: io::Error) -> FabricError {
    FabricError::File { machine: MachineRef::Owned(name.into()), what: what.into(), source }
}

fn foreign(name: &str, claimed: Option<ItemId>) -> FabricError {
    let owner = claimed.map_or_else(|| "its owner".to_owned(), |item| format!("item {item}"));
    FabricError::Foreign { machine: MachineRef::Owned(name.into()), owner }
}
