//! Machines that a scripted host makes from points. With their first start they settle as the
//! host's machine of a name, until they are stopped or handed over.

use super::host::{Machine, ScriptedItem};
use super::target::point;
use crate::Now;
use leeward_model::{
    Code, DiskUse, Evidence, HostId, InstanceId, ItemId, MachineState, PointId, PointKind,
    Position, Problem, UnixMillis,
};
use leeward_wire::message::{InstanceDuty, InstanceObserved, ItemDuty, ProbeResult, Stage};
use std::collections::BTreeMap;

/// What the disks of every machine that runs here hold: an eighth of it is new.
const DISK_USE: DiskUse = DiskUse { allocated_bytes: 8 << 30, changed_bytes: Some(1 << 30) };

/// Is a machine made from a point.
#[derive(Clone, Debug)]
pub struct Instance {
    pub(super) duty: InstanceDuty,
    stage: Stage,
    /// Whether its guest runs.
    pub runs: bool,
    /// What it has written, on top of what the point had.
    pub data: u64,
    started: bool,
    kept: Option<PointId>,
    /// Why its guest was not started.
    problem: Option<Problem>,
}

/// Moves an item's machines one step towards their duties.
pub(super) fn instances_step(
    known: &mut ScriptedItem,
    duty: &ItemDuty,
    host: (HostId, &str),
    machines: &mut BTreeMap<String, Machine>,
    now: &Now,
) {
    for wanted in &duty.instances {
        let made = known.instances.entry(wanted.instance).or_insert_with(|| Instance {
            duty: wanted.clone(),
            stage: Stage::Absent,
            runs: false,
            data: 0,
            started: false,
            kept: None,
            problem: None,
        });
        made.duty = wanted.clone();
        if let Some(permit) = &wanted.permit {
            assert_eq!(permit.terms.machine, wanted.instance.to_string());
            assert_eq!((permit.terms.host, permit.terms.host_boot.as_str()), host);
            assert_eq!(permit.terms.epoch, duty.epoch);
        }
        let (kept_before, stage_before) = (made.kept, made.stage);
        made.step();
        if stage_before == Stage::Absent && made.stage == Stage::Overlay {
            let store = known.target.as_ref().expect("a host that makes machines has a store");
            made.data = store.data(wanted.point);
        }
        made.data += u64::from(made.runs);
        made.name_machine(machines, duty.item);
        if let (None, Some(keep)) = (kept_before, made.kept)
            && let Some(target) = &mut known.target
        {
            let wanted = made.duty.keep_as.as_ref().expect("kept as it was told");
            let timeline = made.duty.timeline;
            let lsn = made.duty.position.lsn.next();
            let place = Position { timeline, lsn };
            let what = (PointKind::CrashConsistent, wanted.origin.clone());
            let mut kept = point(keep, place, what, target.site(), now);
            kept.name.clone_from(&wanted.name);
            target.keep(kept, made.data);
        }
    }
    let wanted = |id: &InstanceId| duty.instances.iter().any(|duty| duty.instance == *id);
    known
        .instances
        .retain(|id, made| wanted(id) || !matches!(made.stage, Stage::Absent | Stage::HandedOver));
}

impl Instance {
    /// What it was told to be.
    pub fn duty(&self) -> &InstanceDuty {
        &self.duty
    }

    /// One stage a step; a guest runs only with a permit.
    fn step(&mut self) {
        match (self.stage, self.duty.stage) {
            (Stage::HandedOver, wanted) => {
                assert_eq!(wanted, Stage::HandedOver, "it is an instance no longer");
            }
            (_, Stage::Absent) => {
                self.stage = Stage::Absent;
                self.runs = false;
            }
            (Stage::Absent, _) => self.stage = Stage::Overlay,
            (Stage::Overlay, Stage::Prepared | Stage::Running) => self.stage = Stage::Prepared,
            (Stage::Prepared | Stage::Stopped | Stage::Running, Stage::Running) => {
                assert!(self.duty.permit.is_some(), "no guest runs without a permit");
                self.stage = Stage::Running;
                (self.runs, self.started, self.kept) = (true, true, None);
            }
            (Stage::Stopped, Stage::Stopped) => {
                if self.started && self.kept.is_none() {
                    self.kept = self.duty.keep_as.as_ref().map(|keep| keep.point);
                }
            }
            (_, Stage::Stopped) => {
                self.stage = Stage::Stopped;
                self.runs = false;
            }
            (before, Stage::HandedOver) => {
                assert_eq!(before, Stage::Running, "only what runs is handed over");
                self.stage = Stage::HandedOver;
            }
            (_, Stage::Overlay | Stage::Prepared) => {}
        }
    }

    /// Settles, or takes it back, or becomes the host's machine for good.
    fn name_machine(&mut self, machines: &mut BTreeMap<String, Machine>, item: ItemId) {
        let Some(name) = self.duty.settle_as.clone() else { return };
        let id = self.duty.instance;
        let settled = machines.get(&name).is_some_and(|machine| machine.settled == Some(id));
        self.problem = None;
        match self.stage {
            Stage::Running if machines.get(&name).is_some_and(|m| m.item != Some(item)) => {
                let what = format!("{name} is another machine");
                self.problem = Some(Code::MACHINE_FOREIGN.problem(what));
                (self.stage, self.runs) = (Stage::Prepared, false);
            }
            Stage::Running if !settled => {
                let made = !machines.contains_key(&name);
                let machine = machines.entry(name).or_default();
                assert!(!machine.runs, "the former machine still runs");
                (machine.item, machine.settled) = (Some(item), Some(id));
                machine.made |= made;
            }
            Stage::HandedOver if settled => {
                let machine = machines.get_mut(&name).expect("it is settled");
                *machine = Machine {
                    runs: std::mem::take(&mut self.runs),
                    item: Some(item),
                    data: self.data,
                    settled: None,
                    made: false,
                };
            }
            Stage::Stopped | Stage::Absent if settled => {
                let machine = machines.get_mut(&name).expect("it is settled");
                machine.settled = None;
                if machine.made {
                    machines.remove(&name);
                }
            }
            _ => {}
        }
    }

    pub(super) fn observe(&self, instance: InstanceId, hydrated: f64) -> InstanceObserved {
        let evidence = Evidence {
            booted_at: UnixMillis(0),
            took_ms: 1,
            probe: "console".to_owned(),
            seen: "ready".to_owned(),
            picture: None,
            picture_hash: None,
            content_hash: None,
        };
        InstanceObserved {
            instance,
            stage: self.stage,
            machine: match (self.stage, self.runs) {
                (_, true) => MachineState::Running,
                (Stage::Prepared, false) => MachineState::Paused,
                (_, false) => MachineState::Off,
            },
            hydrated_percent: self.runs.then_some(hydrated),
            qemu_started_at: self.started.then_some(UnixMillis(0)),
            guest_started_at: self.started.then_some(UnixMillis(0)),
            evidence: self.runs.then_some(ProbeResult { passed: true, evidence }),
            kept: self.kept,
            disk_use: self.runs.then_some(DISK_USE),
            problem: self.problem.clone(),
        }
    }
}
