//! The double's instances that become an owner's machine, its marks, and its disks at rest.

use super::{Former, Machine, Machines, MemoryFabric, Run};
use crate::fabric::{FabricError, MachineRef, Still};
use crate::still::NamesNothing;
use async_trait::async_trait;
use leeward_capture::{
    Attached, CaptureError, ChangeSource, Cut, CutEnd, DiskReader, LiveRead, MemoryMachine,
};
use leeward_model::{DiskEntry, InstanceId, ItemId, MachineSpec, Position};
use std::sync::Arc;
use std::time::Duration;

impl Machines {
    /// The owner's machines by name; an instance that settled is one.
    pub(super) fn owned(&self) -> Vec<(String, &Machine)> {
        let named = self.all.iter().filter_map(|(key, found)| match key {
            MachineRef::Owned(name) => Some((name.clone(), found)),
            MachineRef::Instance(_) => None,
        });
        let settled = self.settled.iter().filter_map(|(name, id)| {
            Some((name.clone(), self.all.get(&MachineRef::Instance(*id))?))
        });
        let mut owned: Vec<_> = named.chain(settled).collect();
        owned.sort_by(|a, b| a.0.cmp(&b.0));
        owned
    }

    fn name_of(&self, instance: InstanceId) -> Option<String> {
        let is_it = |(_, id): &(&String, &InstanceId)| **id == instance;
        self.settled.iter().find(is_it).map(|(name, _)| name.clone())
    }
}

fn foreign(name: &str, claimed: Option<&ItemId>) -> FabricError {
    let owner = claimed.map_or_else(|| "its owner".to_owned(), |item| format!("item {item}"));
    FabricError::Foreign { machine: MachineRef::Owned(name.into()), owner }
}

impl MemoryFabric {
    pub(super) fn claimed(&self, name: &str) -> Result<Option<ItemId>, FabricError> {
        let machines = self.lock();
        let machine = MachineRef::Owned(name.into());
        match machines.get(&machine) {
            Some(_) => Ok(machines.claims.get(name).copied()),
            None => Err(FabricError::Unknown(machine)),
        }
    }

    pub(super) fn claim(&self, name: &str, item: ItemId) -> Result<(), FabricError> {
        match self.claimed(name)? {
            Some(other) if other != item => Err(foreign(name, Some(&other))),
            Some(_) | None => {
                self.lock().claims.insert(name.into(), item);
                Ok(())
            }
        }
    }

    pub(super) fn settle(
        &self,
        instance: InstanceId,
        name: &str,
        item: ItemId,
    ) -> Result<(), FabricError> {
        let (machine, owned) = (MachineRef::Instance(instance), MachineRef::Owned(name.into()));
        let mut machines = self.lock();
        if !machines.all.contains_key(&machine) {
            return Err(FabricError::Unknown(machine));
        }
        let present = machines.get(&owned);
        if let Some(present) = present {
            if machines.claims.get(name) != Some(&item) {
                return Err(foreign(name, machines.claims.get(name)));
            }
            if machines.settled.get(name) == Some(&instance) {
                return Ok(());
            }
            if present.run != Run::Off {
                let reason = "the machine that it shall replace runs".into();
                return Err(FabricError::NotConfirmedOff { machine: owned, reason });
            }
        }
        let autostart = present.is_some_and(|present| present.autostart);
        let former = match machines.settled.insert(name.into(), instance) {
            Some(earlier) => Former::Instance(earlier),
            None => match machines.all.remove(&owned) {
                Some(found) => Former::Machine(Box::new(found)),
                None => Former::None,
            },
        };
        machines.former.insert(instance, former);
        machines.claims.insert(name.into(), item);
        if let Some(found) = machines.all.get_mut(&machine) {
            found.autostart = autostart;
        }
        Ok(())
    }

    pub(super) fn unsettle(&self, instance: InstanceId) -> Result<(), FabricError> {
        let mut machines = self.lock();
        if machines.handed_over.contains(&instance) {
            return Err(FabricError::Unknown(MachineRef::Instance(instance)));
        }
        let Some(name) = machines.name_of(instance) else { return Ok(()) };
        if let Some(found) = machines.all.get_mut(&MachineRef::Instance(instance)) {
            found.autostart = false;
        }
        machines.settled.remove(&name);
        match machines.former.remove(&instance) {
            Some(Former::Machine(found)) => {
                machines.all.insert(MachineRef::Owned(name), *found);
            }
            Some(Former::Instance(earlier)) => {
                machines.settled.insert(name, earlier);
            }
            Some(Former::None) | None => {
                machines.claims.remove(&name);
            }
        }
        Ok(())
    }

    pub(super) fn hand_over(&self, instance: InstanceId) -> Result<(), FabricError> {
        let machine = MachineRef::Instance(instance);
        let mut machines = self.lock();
        if machines.handed_over.contains(&instance) {
            return Ok(());
        }
        let name = machines.name_of(instance);
        let found = machines.all.get(&machine);
        let found = found.ok_or_else(|| FabricError::Unknown(machine.clone()))?;
        let refused = |reason: &str| FabricError::Hypervisor {
            machine: machine.clone(),
            what: "hand over",
            reason: reason.into(),
        };
        let name = name.ok_or_else(|| refused("it has not settled"))?;
        if found.hydrated_percent() < 100 {
            return Err(refused("it still needs its point"));
        }
        machines.settled.remove(&name);
        machines.former.remove(&instance);
        machines.handed_over.insert(instance);
        let owned = MachineRef::Owned(name.clone());
        if let Some(mut found) = machines.all.remove(&machine) {
            // It goes on under its other name: at no instant are there two.
            self.world.note(self.host, &machine, &found.spec.name, false);
            found.instance = None;
            found.spec.name = name;
            self.tell(&owned, &found);
            machines.all.insert(owned, found);
        }
        Ok(())
    }

    pub(super) async fn open_still(&self, name: &str) -> Result<Still, FabricError> {
        let machine = MachineRef::Owned(name.into());
        let world = self.world.clone();
        let (spec, disks) = self.with(&machine, |found| {
            let refused = |reason: String| FabricError::Hypervisor {
                machine: machine.clone(),
                what: "read the disks of",
                reason,
            };
            if found.run != Run::Off {
                return Err(refused("it is not off".into()));
            }
            found.fill_all(&world).map_err(|error| refused(error.to_string()))?;
            Ok((found.spec.clone(), found.disks.clone()))
        })?;
        let source = StillSource::open(disks).await;
        let source = source.map_err(|error| FabricError::Hypervisor {
            machine: machine.clone(),
            what: "read the disks of",
            reason: error.to_string(),
        })?;
        let mut spec = MachineSpec { name: name.into(), ..spec };
        spec.disks.retain(|disk| source.disks.iter().any(|entry| entry.number == disk.number));
        if spec.disks.is_empty() {
            return Err(FabricError::Unknown(machine));
        }
        for disk in &mut spec.disks {
            let entry = source.disks.iter().find(|entry| entry.number == disk.number);
            disk.size = entry.map_or(disk.size, |entry| entry.size);
        }
        Ok(Still { spec, source: Box::new(source) })
    }
}

/// Reads the disks of one machine that is off, until it is started.
struct StillSource {
    disks: Vec<DiskEntry>,
    reader: Option<Arc<dyn DiskReader>>,
}

impl StillSource {
    async fn open(mut machine: MemoryMachine) -> Result<StillSource, CaptureError> {
        // The machine is off, so there is no change map that this could disturb.
        machine.attach(None).await?;
        let reader = machine.open_live(LiveRead::Everything).await?;
        let mut disks = Vec::new();
        for disk in machine.disks() {
            match reader.ranges(disk.number).await {
                Ok(_) => disks.push(disk),
                Err(CaptureError::Refused { .. }) => {} // Its image is missing.
                Err(error) => return Err(error),
            }
        }
        machine.detach().await?;
        Ok(StillSource { disks, reader: Some(reader) })
    }

    fn reader(&self) -> Result<Arc<dyn DiskReader>, CaptureError> {
        self.reader.clone().ok_or(CaptureError::MachineGone)
    }
}

#[async_trait]
impl ChangeSource for StillSource {
    fn disks(&self) -> Vec<DiskEntry> {
        self.disks.clone()
    }

    async fn attach(&mut self, _: Option<Position>) -> Result<Attached, CaptureError> {
        Ok(Attached::NeedsFullRead("the machine is off".into()))
    }

    async fn open_live(&mut self, which: LiveRead) -> Result<Arc<dyn DiskReader>, CaptureError> {
        let reader = self.reader()?;
        Ok(match which {
            LiveRead::Everything => reader,
            LiveRead::Dirty => Arc::new(NamesNothing(reader)),
        })
    }

    async fn close_live(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    async fn dirty_bytes(&mut self) -> Result<u64, CaptureError> {
        Ok(0)
    }

    async fn cut(&mut self) -> Result<Cut, CaptureError> {
        let reader = Arc::new(NamesNothing(self.reader()?));
        Ok(Cut { reader, pause: Duration::ZERO, dirty_bytes: 0 })
    }

    async fn close_cut(&mut self, _: CutEnd) -> Result<(), CaptureError> {
        Ok(())
    }

    async fn detach(&mut self) -> Result<(), CaptureError> {
        self.reader = None;
        Ok(())
    }
}
