//! One scripted host: source, target and maker of machines, without disks or guests.
//!
//! Data are a number that grows with every step in which a machine runs.

use super::instance::{Instance, instances_step};
use super::source::{COPY_STEPS, Sent, Source};
use super::target::{Target, answer, target_step};
use crate::clock::{Draw, Now, new_id};
use crate::{Control, HostSession};
use leeward_model::{
    DiscoveredMachine, Epoch, Firmware, HostId, InstanceId, ItemId, MachineSpec, MachineState,
    NicSpec, PointId, PointKind, Position, Probe,
};
use leeward_wire::capacity::HostCapacity;
use leeward_wire::message::{
    Assignment, DivergentNote, HostHello, ItemDuty, ItemObserved, KitState, Observed, OtherStore,
    Purpose, SourceRun, StoreRoom,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Hardware address of the one network card of `web01`.
pub const NIC: &str = "52:54:00:00:00:0a";

/// How a host behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    /// It does what it is told.
    Obeys,
    /// Its guests do not shut down.
    GuestIgnoresShutdown,
    /// Its link to the config server and to other hosts is cut; its machines run on.
    CutOff,
    /// It is dead: nothing runs, nothing answers.
    Dead,
}

/// Is an owner's machine on a host.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Whether it runs.
    pub runs: bool,
    /// The item that it is marked for.
    pub(super) item: Option<ItemId>,
    /// What it has written so far.
    pub data: u64,
    /// The instance that goes by its name now.
    pub(super) settled: Option<InstanceId>,
    /// Whether it exists only because an instance settled.
    pub(super) made: bool,
}

/// Is a host.
#[derive(Debug)]
pub struct ScriptedHost {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// How it behaves.
    pub temper: Temper,
    /// Percent of their data that the machines made here hold, while they run.
    pub hydrated_percent: f64,
    /// How many steps a full copy or comparison takes that begins from now on.
    pub copy_steps: u64,
    /// Why its old disks cannot be sealed, if they cannot.
    pub seed_problem: Option<leeward_model::Problem>,
    /// Whether it is still at work on what it was told before of its machines.
    pub busy: bool,
    /// The room in its store.
    pub store: StoreRoom,
    /// What it knows of its store's recovery kit.
    pub kit: KitState,
    /// What it has for machines, if it tells.
    pub capacity: Option<HostCapacity>,
    /// Network cards of machines that have others than one, by the machine's name.
    pub nics: BTreeMap<String, Vec<NicSpec>>,
    /// Its machines by name.
    pub machines: BTreeMap<String, Machine>,
    /// What it knows of items.
    pub items: BTreeMap<ItemId, ScriptedItem>,
    pub(super) session: Option<HostSession>,
    /// How often it has booted.
    boots: u32,
    assignment: Arc<Assignment>,
}

/// Is what a host knows of an item.
#[derive(Clone, Debug, Default)]
pub struct ScriptedItem {
    pub(super) source: Option<Source>,
    pub(super) target: Option<Target>,
    /// Machines made from points.
    pub instances: BTreeMap<InstanceId, Instance>,
}

fn running() -> Machine {
    Machine { runs: true, ..Machine::default() }
}

impl ScriptedHost {
    /// A host with running machines of these names.
    pub fn new(id: HostId, name: &str, machines: &[&str]) -> Self {
        ScriptedHost {
            id,
            name: name.to_owned(),
            temper: Temper::Obeys,
            hydrated_percent: 100.0,
            copy_steps: COPY_STEPS,
            seed_problem: None,
            busy: false,
            store: StoreRoom::Free(1 << 40),
            kit: KitState::Unknown,
            capacity: None,
            nics: BTreeMap::new(),
            machines: machines.iter().map(|name| ((*name).to_owned(), running())).collect(),
            items: BTreeMap::new(),
            session: None,
            boots: 1,
            assignment: Arc::default(),
        }
    }

    pub(super) fn without_session(&self) -> Self {
        ScriptedHost {
            id: self.id,
            name: self.name.clone(),
            temper: self.temper,
            hydrated_percent: self.hydrated_percent,
            copy_steps: self.copy_steps,
            seed_problem: self.seed_problem.clone(),
            busy: self.busy,
            store: self.store,
            kit: self.kit,
            capacity: self.capacity.clone(),
            nics: self.nics.clone(),
            machines: self.machines.clone(),
            items: self.items.clone(),
            session: None,
            boots: self.boots,
            assignment: self.assignment.clone(),
        }
    }

    /// Its machines that run as the protected one of `item`: its own and those of failovers.
    pub fn live(&self, item: ItemId) -> Vec<String> {
        if self.temper == Temper::Dead {
            return Vec::new();
        }
        let own = self.machines.iter().filter(|(_, m)| m.runs && m.item == Some(item));
        let own = own.map(|(name, _)| name.clone());
        let made = self.items.get(&item).into_iter().flat_map(|known| &known.instances);
        let made = made
            .filter(|(_, made)| made.runs && made.duty.purpose == Purpose::Failover)
            .map(|(id, _)| id.to_string());
        own.chain(made).collect()
    }

    /// What its live machine of `item` has written so far.
    ///
    /// # Panics
    /// When none runs here.
    pub fn data(&self, item: ItemId) -> u64 {
        let own = self.machines.values().find(|m| m.runs && m.item == Some(item));
        let made = self.items.get(&item).into_iter().flat_map(|known| known.instances.values());
        let mut made = made.filter(|made| made.runs && made.duty.purpose == Purpose::Failover);
        own.map(|machine| machine.data)
            .or_else(|| made.next().map(|made| made.data))
            .expect("the test knows where the machine is live")
    }

    /// Its owner makes a machine, which is off.
    pub fn own_machine(&mut self, name: &str) {
        self.machines.insert(name.to_owned(), Machine::default());
    }

    /// Makes the source find that its change map is lost.
    pub fn lose_change_map(&mut self, item: ItemId) {
        let source = self.items.get_mut(&item).and_then(|known| known.source.as_mut());
        let source = source.expect("the test names an item of this host");
        source.resync_reason = Some("the change map was lost".to_owned());
        source.copying = self.copy_steps;
    }

    /// Makes the source report a problem of its replication.
    pub fn report_problem(&mut self, item: ItemId, problem: leeward_model::Problem) {
        let source = self.items.get_mut(&item).and_then(|known| known.source.as_mut());
        source.expect("the test names an item of this host").problem = Some(problem);
    }

    /// Lets the copy that its store takes be as far as `place`, without a point.
    pub fn copied(&mut self, item: ItemId, place: Position) {
        let target = self.items.get_mut(&item).and_then(|known| known.target.as_mut());
        target.expect("the test names an item of this host").copied(place);
    }

    /// What it was told of the item's other store, in the assignment that it holds.
    pub fn other_store(&self, item: ItemId) -> Option<OtherStore> {
        let duty = self.assignment.duties.iter().find(|duty| duty.item == item)?;
        duty.target.as_ref()?.other_store.clone()
    }

    /// The copies that its store was told to let go of.
    pub fn retired(&self, item: ItemId) -> Vec<leeward_model::TimelineId> {
        let duty = self.assignment.duties.iter().find(|duty| duty.item == item);
        let target = duty.and_then(|duty| duty.target.as_ref());
        target.map(|target| target.retired.clone()).unwrap_or_default()
    }

    /// The generation of the assignment that it holds.
    pub fn generation(&self) -> u64 {
        self.assignment.generation
    }

    /// Boots anew: nothing runs, and what it was assigned counts only once it is asked for again.
    pub fn reboot(&mut self) {
        self.boots += 1;
        self.session = None;
        self.assignment = Arc::default();
        self.machines.values_mut().for_each(|machine| machine.runs = false);
        for made in self.items.values_mut().flat_map(|known| known.instances.values_mut()) {
            made.runs = false;
        }
    }

    /// Another machine takes its place, with its store and nothing else of it.
    pub fn replaced(&mut self) {
        self.reboot();
        self.machines.clear();
        for known in self.items.values_mut() {
            known.source = None;
            known.instances.clear();
        }
    }

    fn boot(&self) -> String {
        format!("boot-{}-of-{}", self.boots, self.name)
    }

    fn reachable(&self) -> bool {
        matches!(self.temper, Temper::Obeys | Temper::GuestIgnoresShutdown)
    }

    pub(super) async fn connect(&mut self, control: &Control) {
        if !self.reachable() || self.session.is_some() {
            return;
        }
        let hello = HostHello {
            version_min: 1,
            version_max: 1,
            host: self.id,
            name: self.name.clone(),
            boot: self.boot(),
            program: "scripted".to_owned(),
        };
        self.session = control.host_hello(&hello).await.ok();
    }

    /// Moves one step towards the assignment.
    pub(super) fn converge(&mut self, draw: &dyn Draw, now: &Now) {
        if self.temper == Temper::Dead {
            return;
        }
        if self.reachable()
            && let Some(session) = &self.session
        {
            let held = session.assignments.borrow().clone();
            if held.generation > 0 {
                self.assignment = held;
            }
        }
        let assignment = self.assignment.clone();
        if assignment.generation == 0 {
            // It knows nothing yet, and so it changes nothing.
            return;
        }
        for duty in &assignment.duties {
            let mut known = self.items.remove(&duty.item).unwrap_or_default();
            target_step(&mut known, duty);
            let host = (self.id, self.boot());
            instances_step(&mut known, duty, (host.0, &host.1), &mut self.machines, now);
            // A machine that was handed over just now is its host's already.
            if !self.busy {
                self.source_step(&mut known, duty, draw, now);
            }
            self.items.insert(duty.item, known);
        }
        self.machines.values_mut().filter(|m| m.runs).for_each(|machine| machine.data += 1);
        let assigned = |item: &ItemId| assignment.duties.iter().any(|duty| duty.item == *item);
        for (item, known) in &mut self.items {
            if !assigned(item) {
                known.source = None;
                known.target = known.target.take().filter(|target| !target.is_deleted());
            }
        }
        self.items.retain(|item, known| {
            assigned(item) || known.target.is_some() || !known.instances.is_empty()
        });
    }

    fn source_step(
        &mut self,
        known: &mut ScriptedItem,
        duty: &ItemDuty,
        draw: &dyn Draw,
        now: &Now,
    ) {
        let Some(wanted) = &duty.source else {
            known.source = None;
            return;
        };
        let source = known.source.get_or_insert_with(|| Source::new(wanted, self.copy_steps));
        source.told(wanted, self.copy_steps);
        let boot = self.boot();
        let Some(machine) = self.machines.get_mut(&wanted.machine) else {
            assert!(
                matches!(wanted.run, SourceRun::Fenced | SourceRun::Seed { .. } | SourceRun::Leave),
                "it was found on this host"
            );
            source.no_machine();
            return;
        };
        assert!(machine.item.is_none_or(|item| item == duty.item), "another item's machine");
        assert_eq!(machine.settled, None, "{wanted:?}: an instance goes by that name");
        machine.item = Some(duty.item);
        let permitted = |permit: &Option<leeward_model::StartPermit>| {
            let permit = permit.as_ref().expect("a machine that may run has a permit");
            assert_eq!((permit.terms.host, &permit.terms.host_boot), (self.id, &boot));
            assert_eq!(permit.terms.epoch, wanted.branch.epoch);
            assert_eq!(permit.terms.machine, wanted.machine);
        };
        match &wanted.run {
            SourceRun::Replicate { permit, start } => {
                permitted(permit);
                machine.runs |= source.starts(*start);
                source.copy();
            }
            SourceRun::ShutDown { job, power_off, copy, .. } => {
                let ignores = self.temper == Temper::GuestIgnoresShutdown && !power_off;
                machine.runs &= !source.shut_down(*job, ignores, *copy);
            }
            SourceRun::Live { permit, start } => {
                permitted(permit);
                machine.runs |= source.starts(*start);
            }
            SourceRun::Fenced => fence(machine, source, draw, now),
            SourceRun::Seed { job, .. } => {
                fence(machine, source, draw, now);
                assert_eq!(wanted.target_host, self.id, "a seed goes to the host's own store");
                let own = known.target.as_mut().filter(|own| own.takes(&wanted.branch));
                if let Some(problem) = &self.seed_problem {
                    source.seeded = Some((*job, Err(problem.clone())));
                } else if let Some(own) = own.filter(|_| !source.is_seeded(*job)) {
                    let seeded = own.seed(&wanted.branch, machine.data, draw, now);
                    source.seeded = Some((*job, Ok(seeded)));
                }
            }
            SourceRun::Leave => {
                fence(machine, source, draw, now);
                machine.item = None;
            }
            SourceRun::Release => {
                source.copied = false;
                machine.item = None;
            }
        }
    }

    /// What its sources have ready to send.
    pub(super) fn sends(&self) -> Vec<Sent> {
        if !self.reachable() {
            return Vec::new();
        }
        let ready = |source: &Source| match source.duty.run {
            SourceRun::Replicate { .. } if source.copying == 0 => Some(PointKind::CrashConsistent),
            SourceRun::ShutDown { .. } if source.final_wanted => Some(PointKind::Final),
            _ => None,
        };
        let items =
            self.items.iter().filter_map(|(item, known)| Some((item, known.source.as_ref()?)));
        items
            .filter_map(|(item, source)| {
                Some(Sent {
                    item: *item,
                    target: source.duty.target_host,
                    branch: source.duty.branch,
                    kind: ready(source)?,
                    data: self.machines.get(&source.duty.machine)?.data,
                })
            })
            .collect()
    }

    /// Takes a point, unless the fence, the duty or the link forbids it.
    pub(super) fn receive(&mut self, sent: &Sent, draw: &dyn Draw, now: &Now) -> Option<PointId> {
        if !self.reachable() {
            return None;
        }
        self.items.get_mut(&sent.item)?.target.as_mut()?.receive(sent, draw, now)
    }

    pub(super) fn acknowledged(&mut self, sent: &Sent, point: Option<PointId>) {
        if let Some(known) = self.items.get_mut(&sent.item)
            && let Some(source) = &mut known.source
        {
            source.acknowledged(sent, point);
        }
    }

    /// Answers the questions that wait.
    pub fn answer(&mut self) {
        let Some(session) = &mut self.session else { return };
        while let Ok(asked) = session.queries.try_recv() {
            let reply = answer(&self.items, &asked.query);
            // Whoever asked may have given up by now.
            let _ = asked.reply.send(reply);
        }
    }

    pub(super) async fn report(&mut self, control: &Control, now: &Now) {
        let Some(session) = &self.session else { return };
        if self.temper == Temper::Dead || self.temper == Temper::CutOff {
            return;
        }
        let seen = Observed {
            generation: self.assignment.generation,
            boot: self.boot(),
            wall: now.wall,
            machines: self.machines.iter().map(|(name, own)| self.discovered(name, own)).collect(),
            items: self.items.iter().map(|(id, known)| self.observe(*id, known)).collect(),
            store: self.store,
            kit: self.kit,
            accelerator: "tcg".to_owned(),
            capacity: self.capacity.clone(),
        };
        control.host_observed(self.id, session.number, seen).await.expect("the database works");
    }

    fn discovered(&self, name: &str, own: &Machine) -> DiscoveredMachine {
        let settled = own
            .settled
            .and_then(|id| self.items.values().find_map(|known| known.instances.get(&id)));
        let mut found = machine(name, settled.map_or(own.runs, |made| made.runs));
        if let Some(nics) = self.nics.get(name) {
            found.spec.nics.clone_from(nics);
        }
        found
    }

    fn observe(&self, item: ItemId, known: &ScriptedItem) -> ItemObserved {
        ItemObserved {
            item,
            source: known.source.as_ref().map(|source| {
                let runs = self.machines.get(&source.duty.machine).is_some_and(|m| m.runs);
                source.observe(runs, now_epoch(&self.assignment, item))
            }),
            target: known.target.as_ref().map(Target::observe),
            instances: known
                .instances
                .iter()
                .map(|(id, made)| made.observe(*id, self.hydrated_percent))
                .collect(),
        }
    }
}

fn now_epoch(assignment: &Assignment, item: ItemId) -> Epoch {
    let duty = assignment.duties.iter().find(|duty| duty.item == item);
    duty.map_or(Epoch(0), |duty| duty.epoch)
}

/// Stops a machine that must not run, and notes what it wrote.
fn fence(machine: &mut Machine, source: &mut Source, draw: &dyn Draw, now: &Now) {
    if machine.runs {
        machine.runs = false;
        source.divergent = Some(DivergentNote {
            point: new_id(draw),
            name: "divergent".to_owned(),
            dirty_bytes: Some(4096),
            stopped_at: now.wall,
        });
    }
}

/// The hardware address of a machine's card: [`NIC`] for `web01`, another for every other name.
fn mac(name: &str) -> String {
    match name {
        "web01" => NIC.to_owned(),
        _ => format!("52:54:00:00:01:{:02x}", name.bytes().fold(0, u8::wrapping_add)),
    }
}

fn machine(name: &str, runs: bool) -> DiscoveredMachine {
    DiscoveredMachine {
        spec: MachineSpec {
            name: name.to_owned(),
            memory_mib: 256,
            cpus: 1,
            firmware: Firmware::Bios,
            disks: Vec::new(),
            nics: vec![NicSpec { mac: mac(name), network: "user".to_owned(), address: None }],
            display: false,
            probe: Probe::default(),
        },
        state: if runs { MachineState::Running } else { MachineState::Off },
        obstacles: Vec::new(),
    }
}
