//! The double's operations: what [`Fabric`] promises, on machines in memory.

use super::{Instance, Machine, MemoryFabric, MemoryWorld, OnShutdown, Run, end};
use crate::fabric::{
    ExportAnswers, Fabric, FabricError, FencedChanges, FencedDisk, InstanceDisk, InstancePlan,
    InstanceStatus, IoStop, MachineRef, Shutdown, Still,
};
use async_trait::async_trait;
use leeward_capture::{CaptureError, ChangeSource, CutEnd, LiveRead, MemoryMachine};
use leeward_model::{Code, DiscoveredMachine, InstanceId, ItemId, MachineSpec, MachineState};
use std::collections::BTreeMap;
use std::time::Duration;

fn kill(found: &mut Machine, machine: &MachineRef) -> Result<(), FabricError> {
    if found.unkillable && found.run != Run::Off {
        let reason = "it does not end".into();
        return Err(FabricError::NotConfirmedOff { machine: machine.clone(), reason });
    }
    end(found);
    Ok(())
}

/// Refuses what needs an answer of a process that gives none.
fn answers(found: &Machine, machine: &MachineRef, what: &'static str) -> Result<(), FabricError> {
    match (found.run, found.silent) {
        (Run::Off, _) => Err(FabricError::Off { machine: machine.clone(), what }),
        (_, true) => {
            let reason = "it does not answer".into();
            Err(FabricError::Hypervisor { machine: machine.clone(), what, reason })
        }
        (_, false) => Ok(()),
    }
}

fn start(found: &mut Machine, machine: &MachineRef, run: Run) -> Result<(), FabricError> {
    if found.start_fails {
        let reason = "told to fail".into();
        return Err(FabricError::Start { machine: machine.clone(), reason });
    }
    found.fenced = None;
    found.run = run;
    // A process of its own: whoever read the disks of the machine that was off reads no more.
    found.disks.restart();
    Ok(())
}

/// Refuses to start an instance whose point cannot be read.
fn leans_on_nothing_that_is_away(
    found: &Machine,
    machine: &MachineRef,
    world: &MemoryWorld,
) -> Result<(), FabricError> {
    let Some(instance) = &found.instance else { return Ok(()) };
    let away = |disk: &InstanceDisk| world.backing(&disk.socket, &disk.export).is_none();
    if found.hydrated_percent() < 100 && instance.plan.disks.iter().any(away) {
        let reason = "its export does not answer".into();
        return Err(FabricError::Start { machine: machine.clone(), reason });
    }
    Ok(())
}

/// What changes when the guest is let go on.
fn begin(found: &mut Machine) {
    found.halted = false;
    if let Some(instance) = &mut found.instance {
        instance.begun = true;
        instance.io_stop = None;
    }
}

/// What the change map of a machine that stands still names.
async fn note_changes(disks: &MemoryMachine) -> FencedChanges {
    let mut source = disks.clone();
    let noted = async {
        source.dirty_bytes().await?;
        source.close_live().await?;
        source.close_cut(CutEnd::Abandoned).await?;
        let reader = source.open_live(LiveRead::Dirty).await?;
        let mut noted = Vec::new();
        for disk in source.disks() {
            let ranges = reader.ranges(disk.number).await?;
            let ranges = ranges.iter().map(|range| (range.offset, range.len)).collect();
            noted.push(FencedDisk { disk: disk.number, ranges });
        }
        source.close_live().await?;
        Ok::<_, CaptureError>(noted)
    };
    noted.await.map_or(FencedChanges::Unknown, |disks| FencedChanges::Noted { disks })
}

#[async_trait]
impl Fabric for MemoryFabric {
    async fn discover(&self) -> Result<Vec<DiscoveredMachine>, FabricError> {
        let machines = self.lock();
        let discovered = |(name, found): (String, &Machine)| DiscoveredMachine {
            spec: MachineSpec { name, ..found.spec.clone() },
            state: found.state(),
            obstacles: Vec::new(),
        };
        Ok(machines.owned().into_iter().map(discovered).collect())
    }

    async fn autostart(&self) -> Result<Vec<String>, FabricError> {
        let machines = self.lock();
        let wanted = machines.owned().into_iter().filter(|(_, found)| found.autostart);
        Ok(wanted.map(|(name, _)| name).collect())
    }

    async fn instances(&self) -> Result<Vec<InstanceId>, FabricError> {
        let machines = self.lock();
        let plans = machines.all.values().filter_map(|found| found.instance.as_ref());
        Ok(plans.map(|instance| instance.plan.instance).collect())
    }

    async fn machine_state(&self, machine: &MachineRef) -> Result<MachineState, FabricError> {
        self.with(machine, |found| Ok(found.state()))
    }

    async fn machine_start(&self, name: &str) -> Result<(), FabricError> {
        let machine = MachineRef::Owned(name.into());
        let world = self.world.clone();
        self.with(&machine, |found| match found.run {
            Run::Running => Ok(()),
            Run::Off => {
                leans_on_nothing_that_is_away(found, &machine, &world)?;
                start(found, &machine, Run::Running)?;
                begin(found);
                Ok(())
            }
            Run::Paused | Run::GuestOff => {
                if found.fenced.is_some() {
                    return Err(FabricError::Fenced(machine.clone()));
                }
                answers(found, &machine, "start")?;
                found.run = Run::Running;
                begin(found);
                Ok(())
            }
        })
    }

    async fn machine_shutdown(
        &self,
        machine: &MachineRef,
        timeout: Duration,
    ) -> Result<Shutdown, FabricError> {
        let asked = self.with(machine, |found| match found.run {
            Run::Off | Run::GuestOff => Ok(None),
            Run::Paused if found.halted => Ok(None),
            Run::Running | Run::Paused => {
                answers(found, machine, "shut down")?;
                Ok(Some(found.on_shutdown))
            }
        })?;
        let patience = match asked {
            None => return Ok(Shutdown::Done),
            Some(OnShutdown::Obeys) => Duration::ZERO,
            Some(OnShutdown::After(delay)) => delay,
            Some(OnShutdown::Ignores) => Duration::MAX,
        };
        if patience > timeout {
            tokio::time::sleep(timeout).await;
            return Ok(Shutdown::NotInTime);
        }
        tokio::time::sleep(patience).await;
        self.with(machine, |found| {
            if found.run != Run::Off {
                found.run = Run::GuestOff;
            }
            Ok(Shutdown::Done)
        })
    }

    async fn machine_quit(&self, machine: &MachineRef) -> Result<(), FabricError> {
        self.with(machine, |found| kill(found, machine))
    }

    async fn machine_fence(&self, machine: &MachineRef) -> Result<FencedChanges, FabricError> {
        let disks = self.with(machine, |found| match (found.run, found.silent) {
            (Run::Off, _) => Ok(Err(found.fenced.clone().unwrap_or(FencedChanges::Unknown))),
            (_, true) => {
                kill(found, machine)?;
                found.fenced = Some(FencedChanges::Unknown);
                Ok(Err(FencedChanges::Unknown))
            }
            (_, false) => {
                found.run = Run::Paused;
                found.fenced = Some(FencedChanges::Unknown);
                Ok(Ok(found.disks.clone()))
            }
        })?;
        let changes = match disks {
            Err(known) => return Ok(known),
            Ok(disks) => note_changes(&disks).await,
        };
        self.with(machine, |found| {
            found.fenced = Some(changes.clone());
            kill(found, machine)
        })?;
        Ok(changes)
    }

    async fn machine_halt(&self, machine: &MachineRef) -> Result<(), FabricError> {
        self.with(machine, |found| {
            if found.run == Run::Off {
                return Ok(());
            }
            answers(found, machine, "halt")?;
            if found.run == Run::Running {
                found.run = Run::Paused;
            }
            found.halted = true;
            Ok(())
        })
    }

    async fn machine_guest_off(&self, machine: &MachineRef) -> Result<bool, FabricError> {
        self.with(machine, |found| {
            if found.run == Run::Off {
                return Ok(false);
            }
            answers(found, machine, "look at")?;
            Ok(found.run == Run::GuestOff)
        })
    }

    async fn machine_claim(&self, name: &str, item: ItemId) -> Result<(), FabricError> {
        self.claim(name, item)
    }

    async fn machine_claimed(&self, name: &str) -> Result<Option<ItemId>, FabricError> {
        self.claimed(name)
    }

    async fn machine_disclaim(&self, name: &str) -> Result<(), FabricError> {
        self.lock().claims.remove(name);
        Ok(())
    }

    async fn machine_forget_changes(&self, name: &str) -> Result<(), FabricError> {
        let machine = MachineRef::Owned(name.to_owned());
        if self.machine_state(&machine).await? != MachineState::Off {
            let (what, reason) = ("take the change maps of", "it is not off".to_owned());
            return Err(FabricError::Hypervisor { machine, what, reason });
        }
        let mut disks = self.with(&machine, |found| Ok(found.disks.clone()))?;
        let failed = |error: leeward_capture::CaptureError| FabricError::Hypervisor {
            machine: machine.clone(),
            what: "take the change maps of",
            reason: error.to_string(),
        };
        disks.detach().await.map_err(failed)
    }

    async fn still(&self, name: &str) -> Result<Still, FabricError> {
        self.open_still(name).await
    }

    async fn capture(&self, machine: &MachineRef) -> Result<Box<dyn ChangeSource>, FabricError> {
        let world = self.world.clone();
        self.with(machine, |found| {
            answers(found, machine, "capture")?;
            // Filled before tracking begins, so that only what the guest writes is dirty.
            let filled = found.fill_all(&world);
            let what = "read the point below the disks".to_owned();
            let failed = |source| FabricError::File { machine: machine.clone(), what, source };
            filled.map_err(failed)?;
            Ok(Box::new(found.disks.clone()) as Box<dyn ChangeSource>)
        })
    }

    async fn machine_screenshot(&self, machine: &MachineRef) -> Result<Vec<u8>, FabricError> {
        self.with(machine, |found| {
            answers(found, machine, "picture")?;
            Ok(b"\x89PNG\r\n\x1a\n".to_vec())
        })
    }

    async fn console_tail(
        &self,
        machine: &MachineRef,
        bytes_max: u64,
    ) -> Result<Vec<u8>, FabricError> {
        self.with(machine, |found| {
            let start = found.console.len().saturating_sub(bytes_max as usize);
            Ok(found.console[start..].to_vec())
        })
    }

    async fn overlay_create(&self, plan: &InstancePlan) -> Result<(), FabricError> {
        let machine = MachineRef::Instance(plan.instance);
        let mut machines = self.lock();
        if machines.handed_over.contains(&plan.instance) {
            return Err(FabricError::Unknown(machine));
        }
        if let Some(found) = machines.get(&machine) {
            let same = found.instance.as_ref().is_some_and(|known| known.plan == *plan);
            let what = "it was made of something else".into();
            let code = Box::new(Code::INSTANCE_FAILED);
            return same.then_some(()).ok_or(FabricError::Unusable { machine, code, what });
        }
        let instance =
            Instance { plan: plan.clone(), held: BTreeMap::new(), begun: false, io_stop: None };
        machines.all.insert(machine, Machine::new(plan.spec.clone(), Some(instance)));
        Ok(())
    }

    async fn instance_prepare(&self, instance: InstanceId) -> Result<(), FabricError> {
        let machine = MachineRef::Instance(instance);
        let world = self.world.clone();
        self.with(&machine, |found| match found.run {
            Run::Off => {
                leans_on_nothing_that_is_away(found, &machine, &world)?;
                start(found, &machine, Run::Paused)
            }
            Run::Running | Run::Paused | Run::GuestOff if found.fenced.is_some() => {
                Err(FabricError::Fenced(machine.clone()))
            }
            Run::Running | Run::Paused | Run::GuestOff => Ok(()),
        })
    }

    async fn instance_run(&self, instance: InstanceId) -> Result<(), FabricError> {
        let machine = MachineRef::Instance(instance);
        self.with(&machine, |found| {
            answers(found, &machine, "run")?;
            if found.fenced.is_some() {
                return Err(FabricError::Fenced(machine.clone()));
            }
            found.run = Run::Running;
            begin(found);
            Ok(())
        })
    }

    async fn instance_status(&self, instance: InstanceId) -> Result<InstanceStatus, FabricError> {
        self.with(&MachineRef::Instance(instance), |found| {
            Ok(InstanceStatus {
                state: found.state(),
                io_stop: found.instance.as_ref().and_then(|instance| instance.io_stop),
                guest_off: found.run == Run::GuestOff,
                hydrated_percent: found.hydrated_percent(),
                disk_use: None,
            })
        })
    }

    async fn instance_tend(
        &self,
        instance: InstanceId,
        export: ExportAnswers,
    ) -> Result<InstanceStatus, FabricError> {
        let world = self.world.clone();
        self.with(&MachineRef::Instance(instance), |found| {
            let Some(known) = &mut found.instance else { return Ok(()) };
            let tended = export == ExportAnswers::Yes && known.begun && !found.silent;
            if tended && !found.halted && found.fenced.is_none() && found.run != Run::Off {
                if known.io_stop == Some(IoStop::Backing) {
                    known.io_stop = None;
                    found.run = Run::Running;
                }
                // All at once: how quickly it goes is nobody's business here.
                let _ = found.fill_all(&world);
            }
            Ok(())
        })?;
        self.instance_status(instance).await
    }

    async fn instance_kill(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.machine_quit(&MachineRef::Instance(instance)).await
    }

    async fn instance_settle(
        &self,
        instance: InstanceId,
        name: &str,
        item: ItemId,
    ) -> Result<(), FabricError> {
        self.settle(instance, name, item)
    }

    async fn instance_unsettle(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.unsettle(instance)
    }

    async fn instance_hand_over(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.hand_over(instance)
    }

    async fn instance_delete(&self, instance: InstanceId) -> Result<(), FabricError> {
        let machine = MachineRef::Instance(instance);
        if self.lock().get(&machine).is_some_and(|found| found.run != Run::Off) {
            let reason = "it must be killed before it is deleted".into();
            return Err(FabricError::NotConfirmedOff { machine, reason });
        }
        self.unsettle(instance)?;
        self.lock().all.remove(&machine);
        Ok(())
    }
}
