//! What a host needs of the world its machines live in, and what can go wrong there.
//!
//! Only the contract; `tests/contract.rs` is the suite that every implementation passes.

use async_trait::async_trait;
use leeward_capture::{ByteRange, ChangeSource};
use leeward_model::{
    Code, DiscoveredMachine, DiskNumber, DiskUse, InstanceId, ItemId, MachineChanges, MachineSpec,
    MachineState, Problem,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A machine on this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineRef {
    /// One that its owner described, by name.
    Owned(String),
    /// One made from a recovery point.
    Instance(InstanceId),
}

impl fmt::Display for MachineRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MachineRef::Owned(name) => write!(f, "machine {name}"),
            MachineRef::Instance(id) => write!(f, "instance {id}"),
        }
    }
}

/// A disk of a machine that is made from a recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceDisk {
    /// Its number.
    pub number: DiskNumber,
    /// Its size in bytes.
    pub size: u64,
    /// The unix socket at which the export of the point listens; at most 107 bytes.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
}

/// How a machine is made from a recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePlan {
    /// Its id.
    pub instance: InstanceId,
    /// Folder of its overlays, console and logs; made when absent, deleted with the instance.
    pub folder: PathBuf,
    /// What to start, as it is changed. The disks' paths and formats are those of their old host
    /// and not used.
    pub spec: MachineSpec,
    /// How `spec` was made of the point's own description: what of it was set stays so in the
    /// description of the machine that it settles as.
    #[serde(default)]
    pub changes: MachineChanges,
    /// Its disks, one for each of `spec`.
    pub disks: Vec<InstanceDisk>,
    /// Whether all its networks have no way out, whatever `spec` says.
    pub isolated: bool,
    /// The owner's machine that it will settle as: the channels of that machine's description are
    /// the instance's too, from its start on.
    #[serde(default)]
    pub settle_as: Option<String>,
}

/// Outcome of asking a guest to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// The guest is off. Its changes can still be captured until the machine is quit.
    Done,
    /// It has not reacted in time and still runs.
    NotInTime,
}

/// Changes of a disk that were noted when its machine was fenced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedDisk {
    /// The disk.
    pub disk: DiskNumber,
    /// Offset and length in bytes of what was written since the last committed point; ascending,
    /// disjoint.
    pub ranges: Vec<(u64, u64)>,
}

/// What is known about a fenced machine's changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "changes", rename_all = "kebab-case")]
pub enum FencedChanges {
    /// They were noted.
    Noted {
        /// For each disk.
        disks: Vec<FencedDisk>,
    },
    /// They were not: it was killed, was off, or was not captured. Comparing finds them.
    Unknown,
}

impl FencedChanges {
    /// Bytes that the noted ranges cover; none when nothing was noted.
    pub fn dirty_bytes(&self) -> Option<u64> {
        match self {
            FencedChanges::Noted { disks } => {
                Some(disks.iter().flat_map(|disk| &disk.ranges).map(|(_, len)| len).sum())
            }
            FencedChanges::Unknown => None,
        }
    }

    /// The noted ranges of a disk.
    pub fn ranges(&self, number: DiskNumber) -> Option<Vec<ByteRange>> {
        let FencedChanges::Noted { disks } = self else { return None };
        let disk = disks.iter().find(|disk| disk.disk == number)?;
        let ranges =
            disk.ranges.iter().map(|(offset, len)| ByteRange { offset: *offset, len: *len });
        Some(ranges.collect())
    }
}

/// Why a machine stopped by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoStop {
    /// Its overlay's file system is full. It goes on by [`Fabric::instance_run`] only.
    NoSpace,
    /// Its disk could not be read or written, most likely because its export was away.
    Backing,
}

/// What a machine made from a recovery point is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceStatus {
    /// Its run state.
    pub state: MachineState,
    /// Why it stopped by itself, if it did.
    pub io_stop: Option<IoStop>,
    /// Whether the guest switched itself off.
    pub guest_off: bool,
    /// How much of its disks it holds itself, in percent; at 100 it needs no export.
    pub hydrated_percent: u8,
    /// What its disks hold; none while that cannot be told.
    pub disk_use: Option<DiskUse>,
}

/// Whether the export that a machine runs from answers now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportAnswers {
    /// It was asked just now and answered.
    Yes,
    /// It did not, or was not asked: the machine is only looked at.
    No,
}

/// The disks of a machine that is off.
pub struct Still {
    /// The machine as it is described.
    pub spec: MachineSpec,
    /// Reads its disks; see [`Fabric::still`].
    pub source: Box<dyn ChangeSource>,
}

/// What can go wrong with machines.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// There is no such machine.
    #[error("there is no {0} on this host")]
    Unknown(MachineRef),
    /// Its description or its disks cannot be used.
    #[error("cannot use {machine}: {what}")]
    Unusable {
        /// The machine.
        machine: MachineRef,
        /// The first obstacle's code.
        code: Box<Code>,
        /// The obstacles in words.
        what: String,
    },
    /// There is another machine of this name.
    #[error("{machine} on this host belongs to {owner}")]
    Foreign {
        /// The machine.
        machine: MachineRef,
        /// Whose it is: its owner's, or another item's.
        owner: String,
    },
    /// It was fenced and its old process may not go on.
    #[error("cannot let {0} go on: it was fenced")]
    Fenced(MachineRef),
    /// It is off, and what was asked needs it running.
    #[error("cannot {what} {machine}: it is off")]
    Off {
        /// The machine.
        machine: MachineRef,
        /// What was tried, as a verb.
        what: &'static str,
    },
    /// It could not be started.
    #[error("could not start {machine}: {reason}")]
    Start {
        /// The machine.
        machine: MachineRef,
        /// What it said, or what went wrong.
        reason: String,
    },
    /// It did not do what it was asked.
    #[error("could not {what} {machine}: {reason}")]
    Hypervisor {
        /// The machine.
        machine: MachineRef,
        /// What was tried, as a verb.
        what: &'static str,
        /// What it said, or that it did not answer.
        reason: String,
    },
    /// Its end could not be confirmed: it may still run.
    #[error("could not confirm that {machine} is off: {reason}")]
    NotConfirmedOff {
        /// The machine.
        machine: MachineRef,
        /// Why.
        reason: String,
    },
    /// A file of it could not be read or written.
    #[error("could not {what} of {machine}")]
    File {
        /// The machine.
        machine: MachineRef,
        /// What was tried, as a verb phrase.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The host's machines could not be listed.
    #[error("could not list the machines")]
    List {
        /// What the system said.
        source: io::Error,
    },
}

impl FabricError {
    /// The operator's code of this error.
    pub fn code(&self) -> Code {
        match self {
            FabricError::Unknown(_) => Code::MACHINE_UNKNOWN,
            FabricError::Unusable { code, .. } => **code,
            FabricError::Fenced(_) => Code::NO_PERMIT,
            FabricError::Foreign { .. } => Code::MACHINE_FOREIGN,
            FabricError::Off { .. } | FabricError::Hypervisor { .. } => Code::QMP_FAILED,
            FabricError::Start { machine: MachineRef::Owned(_), .. } => Code::START_FAILED,
            FabricError::Start { machine: MachineRef::Instance(_), .. } => Code::INSTANCE_FAILED,
            FabricError::NotConfirmedOff { .. } => Code::STOP_NOT_CONFIRMED,
            FabricError::File { machine: MachineRef::Owned(_), .. } => Code::MACHINE_INVALID,
            FabricError::File { machine: MachineRef::Instance(_), .. } => Code::INSTANCE_FAILED,
            FabricError::List { .. } => Code::MACHINE_INVALID,
        }
    }

    /// The error as an operator reads it.
    pub fn problem(&self) -> Problem {
        let what = self.to_string();
        match std::error::Error::source(self) {
            Some(source) => self.code().because(what, source.to_string()),
            None => self.code().problem(what),
        }
    }
}

/// The world a host's machines live in.
///
/// Every operation may be repeated: asked for what is already so, it does nothing. Machines run
/// on when the value is dropped and when its process is killed; a new value finds them again.
/// Operations on one machine must not run at the same time, except looking at it.
#[async_trait]
pub trait Fabric: Send + Sync {
    /// Lists the owner's machines with their run states and obstacles, by name.
    async fn discover(&self) -> Result<Vec<DiscoveredMachine>, FabricError>;

    /// Names of the machines that their owner wants started with the host.
    async fn autostart(&self) -> Result<Vec<String>, FabricError>;

    /// The instances that have been planned here and not deleted.
    async fn instances(&self) -> Result<Vec<InstanceId>, FabricError>;

    /// A machine's run state; [`MachineState::Unknown`] when it could not be found out.
    async fn machine_state(&self, machine: &MachineRef) -> Result<MachineState, FabricError>;

    /// Starts an owner's machine, or lets it go on after its guest was shut down.
    ///
    /// # Errors
    /// [`FabricError::Unusable`], [`FabricError::Start`]; [`FabricError::Fenced`] while the
    /// process that was fenced still exists.
    async fn machine_start(&self, name: &str) -> Result<(), FabricError>;

    /// Asks the guest to shut down and waits for it, at most `timeout`.
    ///
    /// After [`Shutdown::Done`] the machine's process still exists, so that the last changes can
    /// be captured; [`Self::machine_quit`] ends it. A machine that is off is done.
    async fn machine_shutdown(
        &self,
        machine: &MachineRef,
        timeout: Duration,
    ) -> Result<Shutdown, FabricError>;

    /// Ends the machine's process at once, by force if need be, and confirms it.
    ///
    /// # Errors
    /// [`FabricError::NotConfirmedOff`]: it may still run.
    async fn machine_quit(&self, machine: &MachineRef) -> Result<(), FabricError>;

    /// Stops a machine that must not write any more: within 2 s its guest stands still or is
    /// killed, and it never goes on. Its changes are noted if that is possible.
    ///
    /// Repeated after a crash it returns what the first call noted.
    ///
    /// # Errors
    /// [`FabricError::NotConfirmedOff`]: it may still run.
    async fn machine_fence(&self, machine: &MachineRef) -> Result<FencedChanges, FabricError>;

    /// Stops the guest's processors where they stand, as a power switch does. The machine's
    /// process still exists, so that the last changes can be captured, as after
    /// [`Self::machine_shutdown`]. A machine that is off is done.
    async fn machine_halt(&self, machine: &MachineRef) -> Result<(), FabricError>;

    /// Whether the guest switched itself off while the machine's process still exists, so that the
    /// last changes can be captured. A machine that was halted, or is off, is none of that.
    ///
    /// # Errors
    /// [`FabricError::Unknown`]; [`FabricError::Hypervisor`] when it does not answer.
    async fn machine_guest_off(&self, machine: &MachineRef) -> Result<bool, FabricError>;

    /// Marks an owner's machine as the one that `item` protects. The mark stays with the machine's
    /// description, so that another machine of the same name is told apart.
    ///
    /// # Errors
    /// [`FabricError::Foreign`] when it is marked for another item; [`FabricError::Unknown`].
    async fn machine_claim(&self, name: &str, item: ItemId) -> Result<(), FabricError>;

    /// The item that the machine is marked for.
    ///
    /// # Errors
    /// [`FabricError::Unknown`].
    async fn machine_claimed(&self, name: &str) -> Result<Option<ItemId>, FabricError>;

    /// Takes the mark off; a machine that is gone has none.
    async fn machine_disclaim(&self, name: &str) -> Result<(), FabricError>;

    /// Takes our change maps out of the images of an owner's machine that is off, so that nothing
    /// of us stays in them. An image that is gone has none; nothing else of an image is touched.
    ///
    /// # Errors
    /// [`FabricError::Unknown`]; [`FabricError::Hypervisor`] while it runs, or when an image is
    /// open elsewhere or damaged: the others are done all the same.
    async fn machine_forget_changes(&self, name: &str) -> Result<(), FabricError>;

    /// The disks of an owner's machine that is off, as a change source whose disks never change:
    /// attaching asks for a full read, a cut names nothing. They are opened read-only and nothing
    /// of them or beside them is written. A disk that is not there is left out.
    ///
    /// # Errors
    /// [`FabricError::Unknown`]; [`FabricError::Hypervisor`] while it runs or cannot be read.
    async fn still(&self, name: &str) -> Result<Still, FabricError>;

    /// The machine's change source, not attached yet. It must be running or paused.
    async fn capture(&self, machine: &MachineRef) -> Result<Box<dyn ChangeSource>, FabricError>;

    /// A picture of the machine's display as PNG. Not while the machine's export is away.
    async fn machine_screenshot(&self, machine: &MachineRef) -> Result<Vec<u8>, FabricError>;

    /// The last `bytes_max` bytes of the machine's serial console.
    async fn console_tail(
        &self,
        machine: &MachineRef,
        bytes_max: u64,
    ) -> Result<Vec<u8>, FabricError>;

    /// Makes the instance's overlays, durable, and remembers the plan. Overlays of the same plan
    /// that exist are kept with what was written to them.
    async fn overlay_create(&self, plan: &InstancePlan) -> Result<(), FabricError>;

    /// Starts the instance's process with the guest standing still. Nothing is written.
    async fn instance_prepare(&self, instance: InstanceId) -> Result<(), FabricError>;

    /// Lets the guest run, also after it stopped for want of space, and starts hydration.
    async fn instance_run(&self, instance: InstanceId) -> Result<(), FabricError>;

    /// What the instance is doing.
    async fn instance_status(&self, instance: InstanceId) -> Result<InstanceStatus, FabricError>;

    /// Lets a guest go on that stopped because its export was away, and hydration as well. To be
    /// called every second or so. With [`ExportAnswers::No`] it only looks.
    async fn instance_tend(
        &self,
        instance: InstanceId,
        export: ExportAnswers,
    ) -> Result<InstanceStatus, FabricError>;

    /// Kills the instance's process and confirms it. Its overlays stay.
    ///
    /// # Errors
    /// [`FabricError::NotConfirmedOff`]: it may still run.
    async fn instance_kill(&self, instance: InstanceId) -> Result<(), FabricError>;

    /// Makes the instance the owner's machine `name`: from now on that machine's description names
    /// the instance's disks, and asking for either is asking for the same machine. The description
    /// changes in one step, and the former one is kept beside it. A machine of that name that does
    /// not exist yet is made. Works while the instance runs.
    ///
    /// # Errors
    /// [`FabricError::Foreign`] when there is such a machine and it is not `item`'s.
    async fn instance_settle(
        &self,
        instance: InstanceId,
        name: &str,
        item: ItemId,
    ) -> Result<(), FabricError>;

    /// Takes [`Self::instance_settle`] back: the description is the former one again, or gone if
    /// there was none. An instance that did not settle, or whose description was replaced by a
    /// later instance's, is left alone.
    async fn instance_unsettle(&self, instance: InstanceId) -> Result<(), FabricError>;

    /// Ends the instance as such after it has settled: its files are the machine's own, it is
    /// listed and remembered as an instance no longer. Overlays of an earlier instance that the
    /// former description named are deleted with that description; an owner's own disks never are.
    ///
    /// # Errors
    /// [`FabricError::Hypervisor`] when it has not settled or still needs its point.
    async fn instance_hand_over(&self, instance: InstanceId) -> Result<(), FabricError>;

    /// Deletes the instance's folder and everything that is remembered of it. It must be killed.
    async fn instance_delete(&self, instance: InstanceId) -> Result<(), FabricError>;
}
