//! What the config server and the hosts tell one another. JSON inside control frames.
//!
//! Roles ask, they are never called: a host gets the whole desired state (an [`Assignment`] with a
//! generation, never a difference) and returns the whole observed state. After any crash both
//! sides just send the whole again. Queries only read.

use crate::audit::AuditSeen;
use crate::capacity::HostCapacity;
use leeward_model::{
    Bandwidth, Branch, DiscoveredMachine, DiskUse, Epoch, Evidence, HostId, InstanceId, ItemId,
    JobId, MachineChanges, MachineSpec, MachineState, PointId, PointInfo, PointKind, Position,
    Problem, Site, StartPermit, TimelineId, UnixMillis, VaultId,
};
use serde::{Deserialize, Serialize};

/// The protocol version of this build; the hello names the range that an end speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// How often a host and the config server say that they live, in milliseconds.
pub const HEARTBEAT_MS: u64 = 500;
/// A host that was silent for this long, in milliseconds, is taken as dead: six heartbeats.
pub const SILENCE_MS: u64 = 3_000;

/// Points do not age until a failover is committed: a century, in seconds.
pub const RETENTION_FROZEN_SECONDS: u64 = 100 * 365 * 86_400;
/// Most notes of a host in one message; more come after these were taken.
pub const NOTES_MAX: usize = 32;

/// From the config server to a host, on the control session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToHost {
    /// Answer to the hello.
    Welcome {
        /// The version that both will speak.
        version: u16,
        /// Ed25519 public key that start permits are signed with, hexadecimal.
        permit_key: String,
    },
    /// The server refuses the session and closes it.
    Refused {
        /// Why.
        problem: Problem,
    },
    /// The desired state, whole.
    Assignment(Box<Assignment>),
    /// The server's clock; sent every [`HEARTBEAT_MS`].
    Tick(ServerStamp),
    /// A question.
    Query {
        /// Number of the question within the session.
        id: u64,
        /// The question.
        query: Query,
    },
    /// These notes are events now: the host forgets them.
    NotesTaken {
        /// Their ids.
        ids: Vec<uuid::Uuid>,
    },
}

/// From a host to the config server, on the control session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToServer {
    /// The first message.
    Hello(HostHello),
    /// The observed state, whole; sent on every change and every [`HEARTBEAT_MS`].
    Observed(Box<Observed>),
    /// The answer to a question.
    Answer {
        /// Number of the question.
        id: u64,
        /// The answer, or why there is none.
        answer: Result<Answer, Problem>,
    },
    /// What happened on the host and is to be an event; at most [`NOTES_MAX`], oldest first. Sent
    /// again until it is taken.
    Notes {
        /// The oldest ones, at most [`NOTES_MAX`].
        notes: Vec<HostNote>,
    },
}

/// Something that happened on a host, perhaps while nobody listened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNote {
    /// Its id, drawn by the host: taken once.
    pub id: uuid::Uuid,
    /// When, by the host's clock.
    pub at: UnixMillis,
    /// What kind of thing.
    pub kind: NoteKind,
    /// The item, if it is about one.
    pub item: Option<ItemId>,
    /// The machine or the item, for people.
    pub object: String,
    /// One sentence.
    pub text: String,
}

/// What a [`HostNote`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// A person started a protected machine without a start permit.
    StartedByHand,
    /// Recovery points that were kept came to the end of their time.
    PointsRemoved,
    /// An audit found bytes that are not what they have to be.
    AuditFound,
    /// What an audit had found is repaired.
    AuditRepaired,
    /// Somebody serves a point of the host's store for writing, by hand.
    ServedWritable,
    /// And serves it no more.
    ServeEnded,
}

/// Who a host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHello {
    /// The lowest protocol version it speaks.
    pub version_min: u16,
    /// The highest.
    pub version_max: u16,
    /// Its id; must be the one in its certificate.
    pub host: HostId,
    /// Its name for people.
    pub name: String,
    /// Its boot id.
    pub boot: String,
    /// Version of the program, for people.
    pub program: String,
}

/// A time by the config server's boot-time clock. Stamps of different boots cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStamp {
    /// Boot id of the config server's machine.
    pub boot: String,
    /// Milliseconds since that boot (CLOCK_BOOTTIME).
    pub ms: u64,
    /// The server's wall time at the stamp, for measuring the offset of a host's clock.
    pub wall: UnixMillis,
}

/// The whole desired state of one host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Grows with every change of this host's assignment; kept over restarts of the server.
    pub generation: u64,
    /// What it has to do, an entry an item.
    pub duties: Vec<ItemDuty>,
}

/// What a host has to do for one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemDuty {
    /// The item.
    pub item: ItemId,
    /// Its vault.
    pub vault: VaultId,
    /// Its name for people.
    pub name: String,
    /// Its epoch: whatever comes with a lower one is refused.
    pub epoch: Epoch,
    /// Present when the host holds the machine that is replicated (or was, and is fenced).
    pub source: Option<SourceDuty>,
    /// Present when the host holds the item's replica.
    pub target: Option<TargetDuty>,
    /// Machines to be made from recovery points here.
    pub instances: Vec<InstanceDuty>,
}

/// What the source host does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceDuty {
    /// Name of the machine on this host.
    pub machine: String,
    /// The site this host stands for.
    pub site: Site,
    /// The timeline that the machine writes.
    pub branch: Branch,
    /// The host that holds the replica.
    pub target_host: HostId,
    /// Where that host is dialled, `address:port`. None when it is this very host, or when it
    /// cannot be dialled: then it dials this one.
    pub target_address: Option<String>,
    /// Time between recovery points, in milliseconds.
    pub point_interval_ms: u64,
    /// What is wanted of the machine and its replication.
    pub run: SourceRun,
    /// Asks for a comparison of the whole machine; a number not seen before starts one.
    pub resync: u64,
    /// More changed bytes than this share of all disks, in percent, are compared, not cut.
    #[serde(default = "resync_threshold_percent")]
    pub resync_threshold_percent: u8,
    /// The newest such request that trusts no hash that was taken before: the store reads and
    /// hashes anew all that it holds of the branch, and all of it is compared.
    #[serde(default)]
    pub resync_full: u64,
    /// Whether a comparison that nobody asked for by number may begin now. One under way goes on.
    #[serde(default = "yes")]
    pub resync_allowed: bool,
    /// How many bytes a second may be sent, and when.
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

fn resync_threshold_percent() -> u8 {
    leeward_model::RESYNC_THRESHOLD_PERCENT
}

fn yes() -> bool {
    true
}

/// What is wanted of the source machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "run", rename_all = "kebab-case")]
pub enum SourceRun {
    /// Replicate; the machine's run state is its owner's business.
    Replicate {
        /// Present when the machine is protected by a permit: it may be started with this one.
        permit: Option<StartPermit>,
        /// Start the machine if it is off: a job had shut it down and was undone.
        start: Option<JobId>,
    },
    /// Shut the guest down, take the last delta as a final point, leave it off.
    ShutDown {
        /// The job that asks; a report names it.
        job: JobId,
        /// How long the guest may take, in milliseconds.
        timeout_ms: u64,
        /// Do not ask the guest: stop its processors where they stand, as a power switch does.
        /// What it has written is still in the final point.
        #[serde(default)]
        power_off: bool,
        /// Whether everything is copied, with the guest off, when the change map does not reach
        /// back to a point. Else there is no final point then.
        #[serde(default)]
        copy: bool,
        /// Whether the job does not go on without the final point. Then, while the link is away,
        /// it is tried for longer, and the machine's process stays so that it can be tried again.
        #[serde(default)]
        needs_point: bool,
    },
    /// The machine was failed over: stop it at once, note what it wrote, end it, never start it.
    Fenced,
    /// As [`Self::Fenced`]; then its disks are read where they lie, opened read-only, and sealed
    /// into this host's own store as a point of the duty's branch: what a reprotect compares with.
    Seed {
        /// The job that asks; the report names it.
        job: JobId,
        /// The place in this host's own store that the machine started from, if it did: what is
        /// unchanged since is not stored again.
        base: Option<Position>,
    },
    /// The machine lives here and nothing replicates it; it may be started with this permit.
    Live {
        /// The permit.
        permit: Option<StartPermit>,
        /// Start the machine if it is off: a job had switched it off and was undone.
        #[serde(default)]
        start: Option<JobId>,
    },
    /// Protection ended: take the capture off the machine and give the autostart back.
    Release,
    /// As [`Self::Fenced`], but protection ended elsewhere: then nothing of us stays with the
    /// machine but the word that it is not to be started.
    Leave,
}

/// What the target host does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetDuty {
    /// The site this host stands for.
    pub site: Site,
    /// The host whose data are taken.
    pub source_host: HostId,
    /// Where that host is dialled for its data; none when it dials this one.
    #[serde(default)]
    pub source_address: Option<String>,
    /// The timeline whose data are taken.
    pub branch: Branch,
    /// Nothing of a lower epoch is taken; the observed fence says when this is durable.
    pub fence: Epoch,
    /// Whether data are taken at all; off while the item is failed over.
    pub receive: bool,
    /// How long points are kept, in seconds.
    pub retention_seconds: u64,
    /// Delete the item's replica: protection was ended without keeping points.
    pub delete: bool,
    /// The item's store at its other end, if there is or may be one: then the hash key of a part
    /// that this store has not made yet comes from there. None: this store is the first.
    #[serde(default)]
    pub other_store: Option<OtherStore>,
    /// Timelines that are not gone on with: what only their heads need goes, points stay.
    #[serde(default)]
    pub retired: Vec<TimelineId>,
}

/// The item's store at the other end, seen from this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherStore {
    /// Its host.
    pub host: HostId,
    /// Where that host is dialled; none when it cannot be: then it dials this one.
    pub address: Option<String>,
    /// Whether it may wait for the hash key and cannot dial this host: then it is dialled and
    /// offered it.
    pub waits: bool,
}

/// How far a machine that is made from a recovery point has to be, or is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Nothing of it exists; its files and its pin are deleted.
    Absent,
    /// The point is pinned, its export serves, the overlays exist.
    Overlay,
    /// QEMU runs with its CPUs stopped; bitmaps are in place.
    Prepared,
    /// The guest runs.
    Running,
    /// The guest was stopped for good; its overlays are kept as a point.
    Stopped,
    /// It is its host's machine now, by the name it settled as: it holds all its data, needs no
    /// point, and is handled by that name alone. Its files stay, it is an instance no longer.
    HandedOver,
}

/// What a machine made from a point is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A test failover: a network with no way out, deleted at cleanup.
    Test,
    /// A failover.
    Failover,
}

/// A machine to be made from a recovery point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceDuty {
    /// Its id, chosen by the job.
    pub instance: InstanceId,
    /// What it is for.
    pub purpose: Purpose,
    /// The point it starts from.
    pub point: PointId,
    /// Place of that point.
    pub position: Position,
    /// The timeline that its own writes will be.
    pub timeline: TimelineId,
    /// How far it has to be.
    pub stage: Stage,
    /// Needed for [`Stage::Running`].
    pub permit: Option<StartPermit>,
    /// Whether it is to be probed once it runs.
    pub probe: bool,
    /// With [`Stage::Stopped`]: under which name and origin its work is kept.
    pub keep_as: Option<KeepAs>,
    /// The host's machine that it becomes with its first start: that machine's description then
    /// names its disks, and names the former ones again when it is stopped or deleted.
    #[serde(default)]
    pub settle_as: Option<String>,
    /// How it differs from the point's own description.
    #[serde(default)]
    pub changes: MachineChanges,
}

/// How the work of a stopped machine is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAs {
    /// The point's id, chosen by the job.
    pub point: PointId,
    /// The point's name, for example `before-change-2026-11-21T03:04:05Z`.
    pub name: String,
    /// Why it exists.
    pub origin: leeward_model::PointOrigin,
}

/// The whole observed state of one host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Generation of the assignment that this state answers.
    pub generation: u64,
    /// The host's boot id.
    pub boot: String,
    /// The host's wall clock.
    pub wall: UnixMillis,
    /// Machines found on it.
    pub machines: Vec<DiscoveredMachine>,
    /// Its items, one entry each; items that are no longer assigned and leave nothing are absent.
    pub items: Vec<ItemObserved>,
    /// Its replica store.
    #[serde(default)]
    pub store: StoreRoom,
    /// Whether a recovery kit opens that store.
    #[serde(default)]
    pub kit: KitState,
    /// Its accelerator: `kvm` or `tcg`.
    pub accelerator: String,
    /// What it has for machines; none from a host of a version that does not tell.
    #[serde(default)]
    pub capacity: Option<HostCapacity>,
}

/// What a host knows of the room in its replica store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "room", content = "bytes", rename_all = "kebab-case")]
pub enum StoreRoom {
    /// It has no store.
    Absent,
    /// It has one, and cannot tell.
    #[default]
    Unknown,
    /// So many bytes are free.
    Free(u64),
}

impl StoreRoom {
    /// Free bytes, when they are known.
    pub fn free_bytes(self) -> Option<u64> {
        match self {
            StoreRoom::Free(bytes) => Some(bytes),
            StoreRoom::Absent | StoreRoom::Unknown => None,
        }
    }
}

/// What a host knows of the recovery kit of its replica store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kit", rename_all = "kebab-case")]
pub enum KitState {
    /// It cannot tell, or is of a version that does not.
    #[default]
    Unknown,
    /// Its store holds no item, or it has none.
    NotNeeded,
    /// No kit was tested since the store's recipients changed last.
    Untested,
    /// One was.
    Tested {
        /// When, by the clock of the machine on which it was tested.
        at: UnixMillis,
    },
}

/// What a host sees of one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemObserved {
    /// The item.
    pub item: ItemId,
    /// As source.
    pub source: Option<SourceObserved>,
    /// As target.
    pub target: Option<TargetObserved>,
    /// Machines made from its points, also those that are no longer assigned.
    pub instances: Vec<InstanceObserved>,
}

/// What the capture is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum CapturePhase {
    /// Not started yet, or the machine is off.
    Idle,
    /// The whole machine is read (first copy or comparison).
    Copying(CopyProgress),
    /// Deltas flow.
    Delta,
    /// Nothing flows; the problem says why. Changes are noted.
    Paused,
    /// The machine was fenced and is off.
    Fenced,
    /// The capture was taken off.
    Released,
}

impl CapturePhase {
    /// How far the reading of the whole machine is, while that goes on.
    pub fn copying(&self) -> Option<CopyProgress> {
        match self {
            CapturePhase::Copying(progress) => Some(*progress),
            CapturePhase::Idle
            | CapturePhase::Delta
            | CapturePhase::Paused
            | CapturePhase::Fenced
            | CapturePhase::Released => None,
        }
    }
}

/// Progress of reading a whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Bytes read and compared or found to be holes.
    pub done_bytes: u64,
    /// Bytes of all disks.
    pub total_bytes: u64,
    /// Bytes of blocks that had to be sent, before compression.
    pub sent_bytes: u64,
    /// Seconds to the end at the present rate, when it is known.
    pub seconds_left: Option<u64>,
}

/// Figures of one cycle from cut to commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CycleFigures {
    /// Milliseconds that the guest's I/O was held for the cut.
    pub pause_ms: f64,
    /// Milliseconds from the cut to the target's commit.
    pub cycle_ms: f64,
    /// Bytes that the bitmaps reported.
    pub dirty_bytes: u64,
    /// Bytes of blocks that were sent, before compression.
    pub sent_bytes: u64,
}

/// Outcome of a requested shutdown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum ShutdownOutcome {
    /// The guest is being asked.
    InProgress,
    /// It is off, and `point` holds everything it wrote.
    Done {
        /// The final point; none when the last delta could not be taken.
        point: Option<PointId>,
    },
    /// It is still running.
    Failed {
        /// Why.
        problem: Problem,
    },
}

/// What a fenced machine wrote after the last common point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DivergentNote {
    /// The point's id.
    pub point: PointId,
    /// Its name.
    pub name: String,
    /// Bytes that its bitmaps reported; none when the bitmaps were lost.
    pub dirty_bytes: Option<u64>,
    /// When the machine was stopped, by its host's clock.
    pub stopped_at: UnixMillis,
}

/// What came of a [`SourceRun::Seed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "seed", rename_all = "kebab-case")]
pub enum Seeded {
    /// The disks as they lie are a point of this host's own store.
    Stored {
        /// The point.
        point: PointId,
        /// Its place: what replication compares with and builds on.
        position: Position,
    },
    /// There is nothing to build on: the machine or its disks are gone, or are another machine's.
    Nothing,
}

/// What the source host sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceObserved {
    /// The machine.
    pub machine: MachineState,
    /// The epoch that the host acts under.
    pub epoch: Epoch,
    /// The timeline that it writes.
    pub timeline: TimelineId,
    /// The capture.
    pub phase: CapturePhase,
    /// Number of the newest resync request that is complete.
    pub resync_done: u64,
    /// Why a comparison is needed or under way, when it is.
    pub resync_reason: Option<String>,
    /// The requested shutdown, by job.
    pub shutdown: Option<(JobId, ShutdownOutcome)>,
    /// The requested start, by job: done, or the problem.
    pub started: Option<(JobId, Result<(), Problem>)>,
    /// The divergent point, when the machine was fenced.
    pub divergent: Option<DivergentNote>,
    /// The seed that was asked for, by job: what came of it, or why it does not go on.
    #[serde(default)]
    pub seeded: Option<(JobId, Result<Seeded, Problem>)>,
    /// The newest cycles, oldest first, at most 10.
    pub cycles: Vec<CycleFigures>,
    /// Bytes of blocks sent since protection began, before compression.
    pub sent_bytes: u64,
    /// The comparison of the machine with its replica that always goes on; none before its first
    /// part.
    #[serde(default)]
    pub audit: Option<AuditSeen>,
    /// What is wrong.
    pub problem: Option<Problem>,
    /// The points that wait for the store, while any may.
    #[serde(default)]
    pub spool: Option<SpoolSeen>,
}

/// What waits in a source's spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolSeen {
    /// Points that were cut and are not in the store yet.
    pub points: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that the spools of the host may take together.
    pub room_bytes: u64,
    /// No points are cut: there is no room, or a disk has another size. Changes are noted.
    pub map_only: bool,
}

/// A point that somebody serves from the store by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedPoint {
    /// The note's id.
    pub id: uuid::Uuid,
    /// The point.
    pub point: PointId,
    /// Who: user, process and machine.
    pub who: String,
    /// Since when, by that machine's clock.
    pub since: UnixMillis,
    /// Whether it can be written, into an overlay of its own: then a machine may run from it.
    pub writable: bool,
}

/// The newest point of a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewestPoint {
    /// Its id.
    pub point: PointId,
    /// Its place.
    pub position: Position,
    /// Its kind.
    pub kind: PointKind,
    /// When it was cut, by the source's wall clock.
    pub cut_at: UnixMillis,
    /// When it was cut, by the config server's clock: never later than the truth.
    pub cut_server: Option<ServerStamp>,
    /// When the store had it, by the target's wall clock.
    pub received_at: UnixMillis,
}

/// What the target host sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetObserved {
    /// The lowest epoch that the store takes, durable.
    pub fence: Epoch,
    /// Whether a source is connected.
    pub connected: bool,
    /// The newest complete point on any timeline.
    pub newest: Option<NewestPoint>,
    /// The newest durable place of the current timeline.
    pub durable: Option<Position>,
    /// Bytes in the item's part of the store.
    pub stored_bytes: u64,
    /// Number of points.
    pub points: u64,
    /// The reading of what is stored that always goes on; none before its first part.
    #[serde(default)]
    pub audit: Option<AuditSeen>,
    /// Points that are served by hand from this store.
    #[serde(default)]
    pub served: Vec<ServedPoint>,
    /// What is wrong.
    pub problem: Option<Problem>,
    /// The replica was deleted as asked.
    pub deleted: bool,
}

/// What a host sees of a machine made from a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceObserved {
    /// Its id.
    pub instance: InstanceId,
    /// How far it is.
    pub stage: Stage,
    /// Its run state.
    pub machine: MachineState,
    /// Percent of its disks that no longer need the store; none before it runs.
    pub hydrated_percent: Option<f64>,
    /// When its QEMU was started, by the host's clock.
    pub qemu_started_at: Option<UnixMillis>,
    /// When its guest was started, by the host's clock.
    pub guest_started_at: Option<UnixMillis>,
    /// What the probe showed.
    pub evidence: Option<ProbeResult>,
    /// The point that keeps its work, once it is stopped.
    pub kept: Option<PointId>,
    /// What its disks hold, while it runs and that is known; refreshed every few seconds.
    #[serde(default)]
    pub disk_use: Option<DiskUse>,
    /// What is wrong; the host tries again by itself.
    pub problem: Option<Problem>,
}

/// Outcome of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// Whether the probe passed.
    pub passed: bool,
    /// What was seen.
    pub evidence: Evidence,
}

/// A question of the config server. It changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "query", rename_all = "kebab-case")]
pub enum Query {
    /// The item's points, newest first.
    Points {
        /// The item.
        item: ItemId,
        /// Leave out this many of the newest.
        skip: u64,
        /// At most this many, 1 to 1000.
        limit: u64,
    },
    /// One point.
    Point {
        /// The item.
        item: ItemId,
        /// The point.
        point: PointId,
    },
    /// A picture named by a point's evidence.
    Picture {
        /// The item.
        item: ItemId,
        /// Its name.
        name: String,
    },
}

impl Query {
    /// The item that is asked about.
    pub fn item(&self) -> ItemId {
        match self {
            Query::Points { item, .. }
            | Query::Point { item, .. }
            | Query::Picture { item, .. } => *item,
        }
    }
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Query::Points`].
    Points {
        /// The page.
        points: Vec<PointInfo>,
        /// Number of all points.
        total: u64,
    },
    /// To [`Query::Point`].
    Point {
        /// The point.
        point: Option<Box<PointInfo>>,
        /// The machine at the cut.
        machine: Option<Box<MachineSpec>>,
    },
    /// To [`Query::Picture`]: PNG bytes in base64.
    Picture {
        /// The bytes.
        base64: String,
    },
}
