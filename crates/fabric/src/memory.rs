//! Machines in memory, for tests of whatever drives a fabric. Disks are bytes, change maps are
//! true, and the world counts which machines of an item run at the same time.
//!
//! It is no hypervisor: nothing here says how QEMU behaves. Clones of a [`MemoryFabric`] are the
//! same host, seen by another role process.

mod operations;
mod settle;

use crate::fabric::{FabricError, FencedChanges, InstancePlan, IoStop, MachineRef};
use bytes::Bytes;
use leeward_capture::MemoryMachine;
use leeward_model::{DiskNumber, EXTENT_BYTES, InstanceId, ItemId, MachineSpec, MachineState};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Reads a recovery point for an instance: disk, offset and length in bytes.
pub type Backing = Arc<dyn Fn(DiskNumber, u64, u64) -> io::Result<Bytes> + Send + Sync>;

/// What all hosts of a test share: exports, and who runs.
#[derive(Default)]
pub struct MemoryWorld {
    state: Mutex<WorldState>,
}

#[derive(Default)]
struct WorldState {
    hosts: u64,
    backings: BTreeMap<(PathBuf, String), Backing>,
    running: BTreeMap<String, BTreeSet<(u64, MachineRef)>>,
    most: BTreeMap<String, usize>,
}

impl MemoryWorld {
    /// An empty world.
    pub fn new() -> Arc<MemoryWorld> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, WorldState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a point at a socket under an export name, in place of what was served there.
    pub fn serve(&self, socket: &Path, export: &str, backing: Backing) {
        self.lock().backings.insert((socket.into(), export.into()), backing);
    }

    /// Ends an export.
    pub fn stop_serving(&self, socket: &Path, export: &str) {
        self.lock().backings.remove(&(socket.into(), export.into()));
    }

    /// How many machines of that name run now, on all hosts; isolated ones do not count.
    pub fn writers(&self, name: &str) -> usize {
        self.lock().running.get(name).map_or(0, BTreeSet::len)
    }

    /// The most that ever ran at the same instant.
    pub fn writers_most(&self, name: &str) -> usize {
        self.lock().most.get(name).copied().unwrap_or(0)
    }

    fn backing(&self, socket: &Path, export: &str) -> Option<Backing> {
        self.lock().backings.get(&(socket.into(), export.into())).cloned()
    }

    fn note(&self, host: u64, machine: &MachineRef, name: &str, runs: bool) {
        let mut state = self.lock();
        let running = state.running.entry(name.into()).or_default();
        let who = (host, machine.clone());
        match runs {
            true => running.insert(who),
            false => running.remove(&who),
        };
        let now = running.len();
        let most = state.most.entry(name.into()).or_default();
        *most = (*most).max(now);
    }
}

/// What a machine does when it is asked to shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnShutdown {
    /// It does so at once.
    #[default]
    Obeys,
    /// It does so after this long.
    After(Duration),
    /// It does not.
    Ignores,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    Off,
    Running,
    Paused,
    GuestOff,
}

struct Machine {
    spec: MachineSpec,
    disks: MemoryMachine,
    run: Run,
    autostart: bool,
    silent: bool,
    unkillable: bool,
    start_fails: bool,
    on_shutdown: OnShutdown,
    console: Vec<u8>,
    fenced: Option<FencedChanges>,
    instance: Option<Instance>,
    /// Stands still because it was told to.
    halted: bool,
}

struct Instance {
    plan: InstancePlan,
    /// Extents that the overlay holds.
    held: BTreeMap<DiskNumber, BTreeSet<u64>>,
    begun: bool,
    io_stop: Option<IoStop>,
}

impl Machine {
    fn new(spec: MachineSpec, instance: Option<Instance>) -> Machine {
        let disks = MemoryMachine::new();
        let sizes: Vec<(DiskNumber, u64)> = match &instance {
            Some(instance) => instance.plan.disks.iter().map(|d| (d.number, d.size)).collect(),
            None => spec.disks.iter().map(|d| (d.number, d.size)).collect(),
        };
        sizes.into_iter().for_each(|(number, size)| disks.add_disk(number, size));
        Machine {
            spec,
            disks,
            run: Run::Off,
            autostart: false,
            silent: false,
            unkillable: false,
            start_fails: false,
            on_shutdown: OnShutdown::default(),
            console: Vec::new(),
            fenced: None,
            instance,
            halted: false,
        }
    }

    fn state(&self) -> MachineState {
        match self.run {
            Run::Off => MachineState::Off,
            _ if self.silent => MachineState::Unknown,
            Run::Running => MachineState::Running,
            Run::Paused | Run::GuestOff => MachineState::Paused,
        }
    }

    /// Fills the extents that a range touches from the point below.
    fn fill(&mut self, world: &MemoryWorld, at: (DiskNumber, u64, u64)) -> io::Result<()> {
        let (number, offset, len) = at;
        let Some(instance) = &mut self.instance else { return Ok(()) };
        let disk = instance.plan.disks.iter().find(|disk| disk.number == number);
        let disk = disk.ok_or(io::ErrorKind::NotFound)?;
        let held = instance.held.entry(number).or_default();
        for extent in offset / EXTENT_BYTES..(offset + len).div_ceil(EXTENT_BYTES) {
            if held.contains(&extent) {
                continue;
            }
            let start = extent * EXTENT_BYTES;
            let part = EXTENT_BYTES.min(disk.size - start);
            let backing = world.backing(&disk.socket, &disk.export);
            let backing = backing.ok_or(io::ErrorKind::NotConnected)?;
            self.disks.write(number, start, &backing(number, start, part)?);
            held.insert(extent);
        }
        Ok(())
    }

    fn fill_all(&mut self, world: &MemoryWorld) -> io::Result<()> {
        let plan = self.instance.as_ref().map(|instance| instance.plan.disks.clone());
        for disk in plan.unwrap_or_default() {
            self.fill(world, (disk.number, 0, disk.size))?;
        }
        Ok(())
    }

    fn hydrated_percent(&self) -> u8 {
        let Some(instance) = &self.instance else { return 100 };
        let extents = |size: u64| size.div_ceil(EXTENT_BYTES);
        let all: u64 = instance.plan.disks.iter().map(|disk| extents(disk.size)).sum();
        let held: usize = instance.held.values().map(BTreeSet::len).sum();
        (held as u64 * 100 / all.max(1)) as u8
    }
}

/// Everything a host has.
#[derive(Default)]
struct Machines {
    all: BTreeMap<MachineRef, Machine>,
    /// Names of owner's machines that are instances.
    settled: BTreeMap<String, InstanceId>,
    /// What those names were before.
    former: BTreeMap<InstanceId, Former>,
    /// Instances that are owner's machines for good.
    handed_over: BTreeSet<InstanceId>,
    claims: BTreeMap<String, ItemId>,
}

/// What an owner's machine was before an instance settled as it.
enum Former {
    /// There was none.
    None,
    /// Disks of its own, or those of an instance that was handed over.
    Machine(Box<Machine>),
    /// An instance that is still one.
    Instance(InstanceId),
}

impl Machines {
    /// The one name under which a machine is kept.
    fn key(&self, machine: &MachineRef) -> MachineRef {
        let instance = match machine {
            MachineRef::Owned(name) => self.settled.get(name),
            MachineRef::Instance(_) => None,
        };
        instance.map_or_else(|| machine.clone(), |id| MachineRef::Instance(*id))
    }

    fn get(&self, machine: &MachineRef) -> Option<&Machine> {
        self.all.get(&self.key(machine))
    }
}

/// A host in memory.
#[derive(Clone)]
pub struct MemoryFabric {
    world: Arc<MemoryWorld>,
    host: u64,
    machines: Arc<Mutex<Machines>>,
}

impl MemoryFabric {
    /// A host without machines.
    pub fn new(world: Arc<MemoryWorld>) -> MemoryFabric {
        let host = {
            let mut state = world.lock();
            state.hosts += 1;
            state.hosts
        };
        MemoryFabric { world, host, machines: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a machine, then tells the world whether it runs.
    fn with<T>(
        &self,
        machine: &MachineRef,
        work: impl FnOnce(&mut Machine) -> Result<T, FabricError>,
    ) -> Result<T, FabricError> {
        let mut machines = self.lock();
        let key = machines.key(machine);
        let found = machines.all.get_mut(&key);
        let found = found.ok_or_else(|| FabricError::Unknown(machine.clone()))?;
        let result = work(found);
        self.tell(&key, found);
        result
    }

    fn tell(&self, machine: &MachineRef, found: &Machine) {
        let isolated = found.instance.as_ref().is_some_and(|instance| instance.plan.isolated);
        if !isolated {
            let runs = found.run == Run::Running;
            self.world.note(self.host, machine, &found.spec.name, runs);
        }
    }

    /// Does something to a machine that the test knows to exist.
    fn poke(&self, machine: &MachineRef, work: impl FnOnce(&mut Machine)) {
        let poked = self.with(machine, |found| {
            work(found);
            Ok(())
        });
        poked.expect("the test named a machine that the host has");
    }

    /// Adds an owner's machine, off, with disks that read zero.
    pub fn add_machine(&self, spec: MachineSpec) -> MachineRef {
        let machine = MachineRef::Owned(spec.name.clone());
        self.lock().all.insert(machine.clone(), Machine::new(spec, None));
        machine
    }

    /// Sets whether the owner wants the machine started with the host.
    pub fn set_autostart(&self, machine: &MachineRef, autostart: bool) {
        self.poke(machine, |found| found.autostart = autostart);
    }

    /// Lets the machine's process answer nothing, or answer again. Its guest runs on.
    pub fn set_silent(&self, machine: &MachineRef, silent: bool) {
        self.poke(machine, |found| found.silent = silent);
    }

    /// Lets the end of the machine's process not be confirmed, as when it hangs in the kernel.
    pub fn set_unkillable(&self, machine: &MachineRef, unkillable: bool) {
        self.poke(machine, |found| found.unkillable = unkillable);
    }

    /// Lets starts of the machine fail.
    pub fn set_start_fails(&self, machine: &MachineRef, fails: bool) {
        self.poke(machine, |found| found.start_fails = fails);
    }

    /// Sets what the guest does when it is asked to shut down.
    pub fn set_on_shutdown(&self, machine: &MachineRef, on_shutdown: OnShutdown) {
        self.poke(machine, |found| found.on_shutdown = on_shutdown);
    }

    /// Lets the machine's guest switch itself off. Its process goes on.
    pub fn guest_switches_off(&self, machine: &MachineRef) {
        self.poke(machine, |found| {
            if found.run != Run::Off {
                found.run = Run::GuestOff;
            }
        });
    }

    /// Ends the machine's process, as a crash of it does.
    pub fn kill_process(&self, machine: &MachineRef) {
        self.poke(machine, end);
    }

    /// Lets the instance's overlay run out of space.
    pub fn fill_overlay_disk(&self, machine: &MachineRef) {
        self.poke(machine, |found| stop(found, IoStop::NoSpace));
    }

    /// Cuts the host's power: every machine is off; disks, overlays and plans stay.
    pub fn power_cut(&self) {
        let all: Vec<MachineRef> = self.lock().all.keys().cloned().collect();
        all.iter().for_each(|machine| self.poke(machine, end));
    }

    /// A line on the machine's serial console.
    pub fn say(&self, machine: &MachineRef, line: &str) {
        self.poke(machine, |found| found.console.extend(format!("{line}\n").bytes()));
    }

    /// The machine's disks, for faults and for a look at their content.
    pub fn disks(&self, machine: &MachineRef) -> Option<MemoryMachine> {
        self.lock().get(machine).map(|found| found.disks.clone())
    }

    /// A write of the machine's guest.
    ///
    /// # Errors
    /// When the guest does not run, or stops because its point cannot be read.
    pub fn guest_write(
        &self,
        machine: &MachineRef,
        disk: DiskNumber,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), FabricError> {
        let world = self.world.clone();
        self.with(machine, |found| {
            guest_access(found, &world, machine, (disk, offset, bytes.len() as u64))?;
            found.disks.write(disk, offset, bytes);
            Ok(())
        })
    }

    /// A read of the machine's guest.
    ///
    /// # Errors
    /// As [`Self::guest_write`].
    pub fn guest_read(
        &self,
        machine: &MachineRef,
        disk: DiskNumber,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, FabricError> {
        let world = self.world.clone();
        self.with(machine, |found| {
            guest_access(found, &world, machine, (disk, offset, len))?;
            let content = found.disks.content(disk);
            Ok(content[offset as usize..(offset + len) as usize].to_vec())
        })
    }
}

fn guest_access(
    found: &mut Machine,
    world: &MemoryWorld,
    machine: &MachineRef,
    at: (DiskNumber, u64, u64),
) -> Result<(), FabricError> {
    if found.run != Run::Running {
        return Err(FabricError::Off { machine: machine.clone(), what: "use the disks of" });
    }
    found.fill(world, at).map_err(|source| {
        stop(found, IoStop::Backing);
        let what = "read the point below the disks".into();
        FabricError::File { machine: machine.clone(), what, source }
    })
}

fn stop(found: &mut Machine, why: IoStop) {
    if let Some(instance) = &mut found.instance {
        instance.io_stop = Some(why);
        found.run = Run::Paused;
    }
}

fn end(found: &mut Machine) {
    found.halted = false;
    if found.run != Run::Off {
        found.run = Run::Off;
        found.disks.restart();
    }
    if let Some(instance) = &mut found.instance {
        instance.io_stop = None;
    }
}
