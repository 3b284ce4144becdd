//! What is wanted of the hosts for one item: stored with the item, turned into assignments.

use crate::items::{LiveAt, ResyncTrust, TargetSettings};
use leeward_model::{
    Branch, Epoch, HostId, InstanceId, JobId, MachineChanges, PointId, Position, Site, TimelineId,
    UnixMillis,
};
use leeward_wire::message::{KeepAs, Purpose, Stage};
use serde::{Deserialize, Serialize};

/// Is the desired state of an item at its hosts. Which end is the source says its direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) primary: End,
    pub(crate) recovery: End,
    /// Hosts that were an end before: a machine that stayed there stays fenced.
    #[serde(default)]
    pub(crate) left: Vec<Left>,
    /// The timeline that the live machine writes. Its parent is where unchanged data lie in the
    /// target's store, which after a seed is not what the machine descends from.
    pub(crate) branch: Branch,
    /// What the live machine's data descend from: points up to there are points of its line.
    pub(crate) history: Option<Position>,
    /// Number of the newest request to compare the whole machine.
    pub(crate) resync: u64,
    /// The newest of these requests that trusts no hash that was taken before.
    #[serde(default)]
    pub(crate) resync_full: u64,
    /// Whether a comparison that nobody asked for has to wait for the policy's window.
    #[serde(default)]
    pub(crate) resync_waits: bool,
    /// Machines made from points; stopped ones keep their work.
    pub(crate) instances: Vec<InstancePlan>,
    /// The machine of the last failover, by the id it had as an instance.
    #[serde(default)]
    pub(crate) live: Option<InstanceId>,
    /// Newest point of the source's timeline when a failover's fence was durable.
    pub(crate) fenced_at: Option<(PointId, Position)>,
    /// Whether the source machine ran when the last failover began, so that a way back starts it.
    pub(crate) source_ran: bool,
    /// Whether a planned failover waits for points: they are cut as often as possible.
    #[serde(default)]
    pub(crate) hurry: bool,
    /// Whether the last failover left a machine that nothing replicated: none replicates back.
    #[serde(default)]
    pub(crate) one_way: bool,
    /// What operators were told of last.
    #[serde(default)]
    pub(crate) told: Told,
}

/// Is what operators were told of, so that each is told once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Where the machine is live: one of the sites, or both.
    pub(crate) live: Option<LiveAt>,
    /// Kept points, the newest last; at most [`TOLD_POINTS_MAX`].
    pub(crate) points: Vec<PointId>,
    /// Since when its points are told to be older than its policy allows.
    #[serde(default)]
    pub(crate) late_since: Option<UnixMillis>,
}

/// Far more than can be kept between two looks; an older one is not seen again.
pub(crate) const TOLD_POINTS_MAX: usize = 32;

/// Is what an item has at one of its sites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) host: HostId,
    /// Name of the machine there.
    pub(crate) machine: String,
    pub(crate) run: RunPlan,
    pub(crate) replica: TargetRun,
    /// The assignment's generation that first had `run`.
    pub(crate) run_since: u64,
    /// The assignment's generation that first had `replica`.
    pub(crate) replica_since: u64,
    /// The place in this end's own store that its machine started from.
    pub(crate) base: Option<Position>,
    /// The same of the machine before, which a way back returns to.
    #[serde(default)]
    pub(crate) former_base: Option<Position>,
    /// Whether a machine was left here that must stay off unless something else is wanted of it.
    pub(crate) stale: bool,
    /// Timelines of this end's own store whose copies were given up.
    #[serde(default)]
    pub(crate) given_up: Vec<TimelineId>,
    /// What an interrupted reprotect has brought into this end's own store.
    #[serde(default)]
    pub(crate) half: Option<Half>,
    /// When the machine that was left here was stopped whose disks were sealed last.
    #[serde(default)]
    pub(crate) sealed: Option<UnixMillis>,
    /// What was set of the machines that are made here.
    #[serde(default)]
    pub(crate) settings: TargetSettings,
}

/// Is a copy that was given up before it was whole, and that the next reprotect goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Half {
    /// Its timeline.
    pub(crate) branch: Branch,
    pub(crate) of: HalfOf,
    /// Once the store takes nothing below this epoch nothing more comes to it.
    pub(crate) ended: Epoch,
    /// When it was given up, in milliseconds by the config server's wall clock.
    pub(crate) since_ms: u64,
}

/// Is what a [`Half`] copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HalfOf {
    /// The disks of the machine that was left.
    OldDisks,
    /// The live machine.
    LiveMachine,
}

/// Is a machine on a host that is no end of the item any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    pub(crate) host: HostId,
    pub(crate) machine: String,
    pub(crate) site: Site,
    /// Whether it was known to be off when it was left, or since.
    #[serde(default)]
    pub(crate) off: bool,
    /// What an interrupted reprotect has brought into that host's store: kept until the copy on
    /// another host is whole, because the item may come back.
    #[serde(default)]
    pub(crate) half: Option<Half>,
    /// Timelines of that store whose copies were given up.
    #[serde(default)]
    pub(crate) given_up: Vec<TimelineId>,
    /// Whether that store may hold points of the item.
    #[serde(default)]
    pub(crate) replica: bool,
    /// The assignment's generation that first wanted these points deleted.
    #[serde(default)]
    pub(crate) delete_since: Option<u64>,
}

impl Left {
    /// Gives the half-made copy up for good.
    pub(crate) fn forget_half(&mut self) {
        self.given_up.extend(self.half.take().map(|half| half.branch.timeline));
    }
}

/// What the machine of an end shall do. Only `Replicate` and `Live` carry a start permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "run", rename_all = "kebab-case")]
pub(crate) enum RunPlan {
    /// Nothing: there is none, or it is an instance still.
    Unassigned,
    /// Run as its owner likes, and replicate.
    Replicate {
        /// The job that stopped it and wants it started again.
        start: Option<JobId>,
    },
    /// Shut down and send the last delta.
    ShutDown {
        job: JobId,
        timeout_ms: u64,
        power_off: bool,
        /// Whether everything is copied then, if the change map does not reach back to a point.
        #[serde(default)]
        copy: bool,
        /// Whether the job does not go on without the final point.
        #[serde(default)]
        needs_point: bool,
    },
    /// Never run again.
    Fenced,
    /// Never run again; its disks become a point of this end's own store.
    Seed { job: JobId, timeline: TimelineId, base: Option<Position> },
    /// Run as its owner likes; nothing replicates it.
    Live {
        /// The job that stopped it and wants it started again.
        #[serde(default)]
        start: Option<JobId>,
    },
    /// Protection ended.
    Release,
    /// Never run again; protection ended.
    Leave,
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
    /// The site whose host makes it, from a point of its own store.
    pub(crate) site: Site,
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
    /// How it differs from the point's own description: as it was wanted when it was planned.
    #[serde(default)]
    pub(crate) changes: MachineChanges,
}

/// The other of two sites.
pub(crate) fn other(site: Site) -> Site {
    match site {
        Site::Primary => Site::Recovery,
        Site::Recovery => Site::Primary,
    }
}

impl RunPlan {
    /// Whether the machine may run by it.
    pub(crate) fn permits(self) -> bool {
        matches!(self, RunPlan::Replicate { .. } | RunPlan::Live { .. })
    }
}

impl End {
    /// An end of which nothing is wanted yet.
    pub(crate) fn new(host: HostId, machine: String) -> End {
        End {
            host,
            machine,
            run: RunPlan::Unassigned,
            replica: TargetRun::Unassigned,
            run_since: 0,
            replica_since: 0,
            base: None,
            former_base: None,
            stale: false,
            given_up: Vec::new(),
            half: None,
            sealed: None,
            settings: TargetSettings::default(),
        }
    }

    /// What is wanted of its machine when nothing else is.
    pub(crate) fn rest(&self) -> RunPlan {
        if self.stale { RunPlan::Fenced } else { RunPlan::Unassigned }
    }

    /// Gives the half-made copy up for good: its store lets go of what only that needs.
    pub(crate) fn forget_half(&mut self) {
        self.given_up.extend(self.half.take().map(|half| half.branch.timeline));
    }

    /// Whether its store has, or may have, points of the item.
    pub(crate) fn has_store(&self) -> bool {
        matches!(self.replica, TargetRun::Receive | TargetRun::Hold)
    }
}

impl Plan {
    /// Asks for a comparison of the whole machine that goes by no more than `trust` says.
    pub(crate) fn resync_asked(&mut self, trust: ResyncTrust) {
        self.resync += 1;
        if trust == ResyncTrust::Nothing {
            self.resync_full = self.resync;
        }
    }

    /// A plan of which nothing is wanted yet.
    pub(crate) fn new(primary: End, recovery: End, branch: Branch) -> Plan {
        Plan {
            primary,
            recovery,
            left: Vec::new(),
            branch,
            history: None,
            resync: 0,
            resync_full: 0,
            resync_waits: false,
            instances: Vec::new(),
            live: None,
            fenced_at: None,
            source_ran: true,
            hurry: false,
            one_way: false,
            told: Told::default(),
        }
    }

    pub(crate) fn end(&self, site: Site) -> &End {
        match site {
            Site::Primary => &self.primary,
            Site::Recovery => &self.recovery,
        }
    }

    pub(crate) fn end_mut(&mut self, site: Site) -> &mut End {
        match site {
            Site::Primary => &mut self.primary,
            Site::Recovery => &mut self.recovery,
        }
    }

    /// The hosts that have something to do for the item.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = HostId> {
        let left = self.left.iter().map(|left| left.host);
        [self.primary.host, self.recovery.host].into_iter().chain(left)
    }

    /// Counts who may run as the protected machine. More than one would split its data.
    pub(crate) fn writers(&self) -> usize {
        let machines = [&self.primary, &self.recovery].into_iter().filter(|end| end.run.permits());
        let instances = self.instances.iter();
        machines.count()
            + instances.filter(|i| i.permitted && i.purpose == Purpose::Failover).count()
    }

    pub(crate) fn instance(&self, id: InstanceId) -> Option<&InstancePlan> {
        self.instances.iter().find(|instance| instance.id == id)
    }

    pub(crate) fn instance_mut(&mut self, id: InstanceId) -> Option<&mut InstancePlan> {
        self.instances.iter_mut().find(|instance| instance.id == id)
    }

    /// Whether `position` is on the line that the live machine continues.
    pub(crate) fn on_line(&self, position: Position) -> bool {
        position.timeline == self.branch.timeline
            || self
                .history
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
