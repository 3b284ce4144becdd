//! One scripted host: source, target and maker of machines, without disks or guests.

use super::instance::{Instance, instances_step};
use crate::clock::{Draw, Now, new_id};
use crate::{Control, HostSession};
use leeward_model::{
    Branch, Code, DiscoveredMachine, Epoch, Firmware, HostId, InstanceId, ItemId, JobId, Lsn,
    MachineSpec, MachineState, PointId, PointInfo, PointKind, PointOrigin, Position, Probe,
    Problem, Site, Verification,
};
use leeward_wire::message::{
    Answer, Assignment, CapturePhase, CopyProgress, DivergentNote, HostHello, ItemDuty,
    ItemObserved, NewestPoint, Observed, Purpose, Query, ServerStamp, ShutdownOutcome, SourceDuty,
    SourceObserved, SourceRun, TargetDuty, TargetObserved,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Steps that a full copy or comparison takes.
const COPY_STEPS: u64 = 2;

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

/// Is a host.
#[derive(Debug)]
pub struct ScriptedHost {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// How it behaves.
    pub temper: Temper,
    /// Its machines: name and whether they run.
    pub machines: BTreeMap<String, bool>,
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
    source: Option<Source>,
    pub(super) target: Option<Target>,
    /// Machines made from points.
    pub instances: BTreeMap<InstanceId, Instance>,
}

#[derive(Clone, Debug)]
struct Source {
    duty: SourceDuty,
    copying: u64,
    resync_done: u64,
    copied: bool,
    shutdown: Option<(JobId, ShutdownOutcome)>,
    final_wanted: bool,
    started: Option<JobId>,
    divergent: Option<DivergentNote>,
    resync_reason: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Target {
    duty: TargetDuty,
    fence: Epoch,
    points: Vec<(PointInfo, Option<ServerStamp>)>,
    deleted: bool,
}

/// Is what a source sends in one step: the changes up to one cut.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    item: ItemId,
    pub(super) target: HostId,
    branch: Branch,
    epoch: Epoch,
    kind: PointKind,
}

impl ScriptedHost {
    /// A host with running machines of these names.
    pub fn new(id: HostId, name: &str, machines: &[&str]) -> Self {
        ScriptedHost {
            id,
            name: name.to_owned(),
            temper: Temper::Obeys,
            machines: machines.iter().map(|name| ((*name).to_owned(), true)).collect(),
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
        let Some(known) = self.items.get(&item) else { return Vec::new() };
        let own = known.source.as_ref().map(|source| source.duty.machine.clone());
        let own = own.filter(|name| self.machines.get(name) == Some(&true));
        let made = known
            .instances
            .iter()
            .filter(|(_, made)| made.runs && made.duty.purpose == Purpose::Failover)
            .map(|(id, _)| id.to_string());
        own.into_iter().chain(made).collect()
    }

    /// Makes the source find that its change map is lost.
    pub fn lose_change_map(&mut self, item: ItemId) {
        let source = self.items.get_mut(&item).and_then(|known| known.source.as_mut());
        let source = source.expect("the test names an item of this host");
        source.resync_reason = Some("the change map was lost".to_owned());
        source.copying = COPY_STEPS;
    }

    /// Boots anew: nothing runs, and what it was assigned counts only once it is asked for again.
    pub fn reboot(&mut self) {
        self.boots += 1;
        self.session = None;
        self.assignment = Arc::default();
        self.machines.values_mut().for_each(|runs| *runs = false);
        for made in self.items.values_mut().flat_map(|known| known.instances.values_mut()) {
            made.runs = false;
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
            self.source_step(&mut known, duty, draw, now);
            target_step(&mut known, duty);
            instances_step(&mut known, duty, (self.id, &self.boot()), now);
            self.items.insert(duty.item, known);
        }
        let assigned = |item: &ItemId| assignment.duties.iter().any(|duty| duty.item == *item);
        for (item, known) in &mut self.items {
            if !assigned(item) {
                known.source = None;
                known.target = known.target.take().filter(|target| !target.deleted);
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
        let source = known.source.get_or_insert_with(|| Source {
            duty: wanted.clone(),
            copying: COPY_STEPS,
            resync_done: wanted.resync,
            copied: false,
            shutdown: None,
            final_wanted: false,
            started: None,
            divergent: None,
            resync_reason: None,
        });
        if wanted.resync > source.duty.resync {
            source.copying = COPY_STEPS;
        }
        source.duty = wanted.clone();
        let boot = self.boot();
        let runs = self.machines.get_mut(&wanted.machine).expect("it was found on this host");
        match &wanted.run {
            SourceRun::Replicate { permit, start } => {
                let permit = permit.as_ref().expect("a source that may run has a permit");
                assert_eq!((permit.terms.host, &permit.terms.host_boot), (self.id, &boot));
                assert_eq!(permit.terms.epoch, wanted.branch.epoch);
                if let Some(job) = start
                    && source.started != Some(*job)
                {
                    *runs = true;
                    source.started = Some(*job);
                }
                source.copying = source.copying.saturating_sub(1);
                source.copied |= source.copying == 0;
            }
            SourceRun::ShutDown { job, .. } => {
                let ignores = self.temper == Temper::GuestIgnoresShutdown;
                *runs &= !source.shut_down(*job, ignores);
            }
            SourceRun::Live { .. } => {}
            SourceRun::Fenced | SourceRun::Seed { .. } => {
                if *runs {
                    *runs = false;
                    source.divergent = Some(DivergentNote {
                        point: new_id(draw),
                        name: "divergent".to_owned(),
                        dirty_bytes: Some(4096),
                        stopped_at: now.wall,
                    });
                }
            }
            SourceRun::Release => source.copied = false,
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
                    epoch: source.duty.branch.epoch,
                    kind: ready(source)?,
                })
            })
            .collect()
    }

    /// Takes a point, unless the fence, the duty or the link forbids it.
    pub(super) fn receive(&mut self, sent: &Sent, draw: &dyn Draw, now: &Now) -> Option<PointId> {
        if !self.reachable() {
            return None;
        }
        let target = self.items.get_mut(&sent.item)?.target.as_mut()?;
        let takes = target.duty.receive
            && sent.epoch >= target.fence
            && target.duty.branch.timeline == sent.branch.timeline;
        if !takes {
            return None;
        }
        let timeline = sent.branch.timeline;
        let on_it = target.points.iter().filter(|(point, _)| point.position.timeline == timeline);
        let newest = on_it.map(|(point, _)| point.position.lsn).max();
        let parent = sent.branch.parent.map_or(Lsn(0), |parent| parent.lsn);
        let lsn = newest.unwrap_or(parent).next();
        let id = new_id(draw);
        let origin = PointOrigin::Replicated;
        let point = point(id, Position { timeline, lsn }, sent.kind, origin, now);
        target.points.push((point, Some(now.stamp())));
        Some(id)
    }

    pub(super) fn acknowledged(&mut self, sent: &Sent, point: Option<PointId>) {
        let Some(source) = self.items.get_mut(&sent.item).and_then(|known| known.source.as_mut())
        else {
            return;
        };
        if point.is_some() {
            source.resync_done = source.duty.resync;
            source.resync_reason = None;
        }
        if sent.kind == PointKind::Final {
            source.final_wanted = false;
            if let Some((_, outcome)) = &mut source.shutdown {
                *outcome = ShutdownOutcome::Done { point };
            }
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
            machines: self.machines.iter().map(|(name, runs)| machine(name, *runs)).collect(),
            items: self.items.iter().map(|(id, known)| self.observe(*id, known)).collect(),
            store_free_bytes: Some(1 << 40),
            accelerator: "tcg".to_owned(),
        };
        control.host_observed(self.id, session.number, seen).await.expect("the database works");
    }

    fn observe(&self, item: ItemId, known: &ScriptedItem) -> ItemObserved {
        ItemObserved {
            item,
            source: known.source.as_ref().map(|source| {
                let runs = self.machines.get(&source.duty.machine) == Some(&true);
                source.observe(runs, now_epoch(&self.assignment, item))
            }),
            target: known.target.as_ref().map(Target::observe),
            instances: known.instances.iter().map(|(id, made)| made.observe(*id)).collect(),
        }
    }
}

fn now_epoch(assignment: &Assignment, item: ItemId) -> Epoch {
    let duty = assignment.duties.iter().find(|duty| duty.item == item);
    duty.map_or(Epoch(0), |duty| duty.epoch)
}

fn target_step(known: &mut ScriptedItem, duty: &ItemDuty) {
    let Some(wanted) = &duty.target else { return };
    let target = known.target.get_or_insert_with(|| Target {
        duty: wanted.clone(),
        fence: wanted.fence,
        points: Vec::new(),
        deleted: false,
    });
    assert!(wanted.fence >= target.fence, "a fence never falls");
    target.duty = wanted.clone();
    target.fence = wanted.fence;
    if wanted.delete {
        target.points.clear();
        target.deleted = true;
    }
}

impl Source {
    /// One step of a shutdown; says whether the guest is off.
    fn shut_down(&mut self, job: JobId, ignores: bool) -> bool {
        let before = self.shutdown.take().filter(|(by, _)| *by == job);
        let (outcome, off) = match before.map(|(_, outcome)| outcome) {
            None => (ShutdownOutcome::InProgress, false),
            Some(_) if ignores => {
                let what = format!("{} did not shut down", self.duty.machine);
                let problem = Code::SHUTDOWN_FAILED.problem(what);
                (ShutdownOutcome::Failed { problem }, false)
            }
            Some(outcome) => {
                self.final_wanted |= outcome == ShutdownOutcome::InProgress;
                (outcome, true)
            }
        };
        self.shutdown = Some((job, outcome));
        off
    }

    fn observe(&self, runs: bool, epoch: Epoch) -> SourceObserved {
        let progress = CopyProgress {
            done_bytes: COPY_STEPS.saturating_sub(self.copying) << 20,
            total_bytes: COPY_STEPS << 20,
            sent_bytes: 0,
            seconds_left: Some(self.copying),
        };
        SourceObserved {
            machine: if runs { MachineState::Running } else { MachineState::Off },
            epoch,
            timeline: self.duty.branch.timeline,
            phase: match self.duty.run {
                SourceRun::Fenced | SourceRun::Seed { .. } => CapturePhase::Fenced,
                SourceRun::Release => CapturePhase::Released,
                _ if self.copying > 0 => CapturePhase::Copying(progress),
                _ => CapturePhase::Delta,
            },
            resync_done: self.resync_done,
            resync_reason: self.resync_reason.clone(),
            shutdown: self.shutdown.clone(),
            started: self.started.map(|job| (job, Ok(()))),
            divergent: self.divergent.clone(),
            seeded: None,
            cycles: Vec::new(),
            sent_bytes: 0,
            problem: None,
        }
    }
}

impl Target {
    /// Lists the work of a stopped machine.
    pub(super) fn keep(&mut self, point: PointInfo) {
        self.points.push((point, None));
    }

    fn observe(&self) -> TargetObserved {
        let newest = self.points.iter().max_by_key(|(point, _)| point.received_at);
        TargetObserved {
            fence: self.fence,
            connected: true,
            newest: newest.map(|(point, stamp)| NewestPoint {
                point: point.id,
                position: point.position,
                kind: point.kind,
                cut_at: point.cut_at,
                cut_server: stamp.clone(),
                received_at: point.received_at,
            }),
            durable: newest.map(|(point, _)| point.position),
            stored_bytes: 0,
            points: self.points.len() as u64,
            problem: None,
            deleted: self.deleted,
        }
    }
}

fn answer(items: &BTreeMap<ItemId, ScriptedItem>, query: &Query) -> Result<Answer, Problem> {
    let points = |item: &ItemId| {
        let target = items.get(item).and_then(|known| known.target.as_ref());
        target.map(|target| &target.points).ok_or_else(|| Code::NOT_FOUND.problem("no replica"))
    };
    match query {
        Query::Points { item, skip, limit } => {
            let points = points(item)?;
            let page = points.iter().rev().skip(usize::try_from(*skip).unwrap_or(usize::MAX));
            let page = page.take(usize::try_from(*limit).unwrap_or(usize::MAX));
            let points_page = page.map(|(point, _)| point.clone()).collect();
            Ok(Answer::Points { points: points_page, total: points.len() as u64 })
        }
        Query::Point { item, point } => {
            let found = points(item)?.iter().find(|(known, _)| known.id == *point);
            let point = found.map(|(point, _)| Box::new(point.clone()));
            Ok(Answer::Point { point, machine: None })
        }
        Query::Picture { .. } => Ok(Answer::Picture { base64: "iVBORw==".to_owned() }),
    }
}

pub(super) fn point(
    id: PointId,
    position: Position,
    kind: PointKind,
    origin: PointOrigin,
    now: &Now,
) -> PointInfo {
    PointInfo {
        id,
        name: String::new(),
        position,
        kind,
        origin,
        cut_at: now.wall,
        received_at: now.wall,
        held_at: Site::Recovery,
        disks: Vec::new(),
        pinned_by: Vec::new(),
        verification: Verification::Untested,
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
            nics: Vec::new(),
            display: false,
            probe: Probe::default(),
        },
        state: if runs { MachineState::Running } else { MachineState::Off },
        obstacles: Vec::new(),
    }
}
