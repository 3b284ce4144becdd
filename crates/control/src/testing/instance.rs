//! Machines that a scripted host makes from points.

use super::host::{ScriptedItem, point};
use crate::Now;
use leeward_model::{
    Evidence, HostId, InstanceId, MachineState, PointId, PointKind, Position, UnixMillis,
};
use leeward_wire::message::{InstanceDuty, InstanceObserved, ItemDuty, ProbeResult, Stage};

/// Is a machine made from a point.
#[derive(Clone, Debug)]
pub struct Instance {
    pub(super) duty: InstanceDuty,
    stage: Stage,
    /// Whether its guest runs.
    pub runs: bool,
    started: bool,
    kept: Option<PointId>,
}

/// Moves an item's machines one step towards their duties.
pub(super) fn instances_step(
    known: &mut ScriptedItem,
    duty: &ItemDuty,
    host: (HostId, &str),
    now: &Now,
) {
    for wanted in &duty.instances {
        let made = known.instances.entry(wanted.instance).or_insert_with(|| Instance {
            duty: wanted.clone(),
            stage: Stage::Absent,
            runs: false,
            started: false,
            kept: None,
        });
        made.duty = wanted.clone();
        if let Some(permit) = &wanted.permit {
            assert_eq!(permit.terms.machine, wanted.instance.to_string());
            assert_eq!((permit.terms.host, permit.terms.host_boot.as_str()), host);
            assert_eq!(permit.terms.epoch, duty.epoch);
        }
        let kept_before = made.kept;
        made.step();
        if let (None, Some(keep)) = (kept_before, made.kept)
            && let Some(target) = &mut known.target
        {
            let wanted = made.duty.keep_as.as_ref().expect("kept as it was told");
            let timeline = made.duty.timeline;
            let lsn = made.duty.position.lsn.next();
            let place = Position { timeline, lsn };
            let kind = PointKind::CrashConsistent;
            let mut kept = point(keep, place, kind, wanted.origin.clone(), now);
            kept.name.clone_from(&wanted.name);
            target.keep(kept);
        }
    }
    let wanted = |id: &InstanceId| duty.instances.iter().any(|duty| duty.instance == *id);
    known.instances.retain(|id, made| wanted(id) || made.stage != Stage::Absent);
}

impl Instance {
    /// One stage a step; a guest runs only with a permit.
    fn step(&mut self) {
        match (self.stage, self.duty.stage) {
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
            (Stage::HandedOver, _) => {}
            (_, Stage::HandedOver) => self.stage = Stage::HandedOver,
            (_, Stage::Overlay | Stage::Prepared) => {}
        }
    }

    pub(super) fn observe(&self, instance: InstanceId) -> InstanceObserved {
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
            hydrated_percent: self.runs.then_some(100.0),
            qemu_started_at: self.started.then_some(UnixMillis(0)),
            guest_started_at: self.started.then_some(UnixMillis(0)),
            evidence: self.runs.then_some(ProbeResult { passed: true, evidence }),
            kept: self.kept,
            problem: None,
        }
    }
}
