//! What is wanted of the hosts for one item: stored with the item, turned into assignments.

use leeward_model::{Branch, HostId, InstanceId, JobId, PointId, Position, TimelineId};
use leeward_wire::message::{KeepAs, Purpose, Stage};
use serde::{Deserialize, Serialize};

/// Is the desired state of an item at its hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) source: SourcePlan,
    pub(crate) target: TargetPlan,
    /// Machines made from points, all at the target; stopped ones keep their work.
    pub(crate) instances: Vec<InstancePlan>,
    /// Newest point of the source's timeline when a failover's fence was durable.
    pub(crate) fenced_at: Option<(PointId, Position)>,
    /// Whether the source machine ran when the last failover began, so that a way back starts it.
    pub(crate) source_ran: bool,
}

/// Is what the source host shall do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourcePlan {
    pub(crate) host: HostId,
    /// The timeline that the source's writes are.
    pub(crate) branch: Branch,
    pub(crate) run: RunPlan,
    /// Number of the newest request to compare the whole machine.
    pub(crate) resync: u64,
    /// The assignment's generation that first had `run`.
    pub(crate) since: u64,
}

/// What the source machine shall do. Only `Replicate` carries a start permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "run", rename_all = "kebab-case")]
pub(crate) enum RunPlan {
    /// Nothing yet.
    Unassigned,
    /// Run as its owner likes, and replicate.
    Replicate {
        /// The job that stopped it and wants it started again.
        start: Option<JobId>,
    },
    /// Shut down and send the last delta.
    ShutDown { job: JobId, timeout_ms: u64 },
    /// Never run again.
    Fenced,
    /// Protection ended.
    Release,
}

/// Is what the target host shall do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TargetPlan {
    pub(crate) host: HostId,
    pub(crate) wanted: TargetRun,
    /// The assignment's generation that first had `wanted`.
    pub(crate) since: u64,
}

/// What the replica shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TargetRun {
    /// Nothing yet.
    Unassigned,
    /// Take data.
    Receive,
    /// Keep what is there.
    Hold,
    /// Be deleted.
    Delete,
}

/// Is a machine made from a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstancePlan {
    pub(crate) id: InstanceId,
    pub(crate) purpose: Purpose,
    pub(crate) point: PointId,
    pub(crate) position: Position,
    pub(crate) timeline: TimelineId,
    pub(crate) stage: Stage,
    /// Whether it holds a start permit.
    pub(crate) permitted: bool,
    pub(crate) probe: bool,
    pub(crate) keep_as: Option<KeepAs>,
    /// The assignment's generation that first had `stage`.
    pub(crate) since: u64,
}

impl Plan {
    /// Counts who may run as the protected machine. More than one would split its data.
    pub(crate) fn writers(&self) -> usize {
        let source = matches!(self.source.run, RunPlan::Replicate { .. });
        let instances = self.instances.iter();
        usize::from(source)
            + instances.filter(|i| i.permitted && i.purpose == Purpose::Failover).count()
    }

    pub(crate) fn instance(&self, id: InstanceId) -> Option<&InstancePlan> {
        self.instances.iter().find(|instance| instance.id == id)
    }

    pub(crate) fn instance_mut(&mut self, id: InstanceId) -> Option<&mut InstancePlan> {
        self.instances.iter_mut().find(|instance| instance.id == id)
    }

    /// Whether `position` is on the line that the source continues.
    pub(crate) fn on_line(&self, position: Position) -> bool {
        let branch = self.source.branch;
        position.timeline == branch.timeline
            || branch
                .parent
                .is_some_and(|p| p.timeline == position.timeline && position.lsn <= p.lsn)
    }
}

/// Orders stages on the way up; a stopped machine is past running.
pub(crate) fn rank(stage: Stage) -> u8 {
    match stage {
        Stage::Absent => 0,
        Stage::Overlay => 1,
        Stage::Prepared => 2,
        Stage::Running => 3,
        Stage::Stopped => 4,
        Stage::HandedOver => 5,
    }
}
