//! Protected items: use cases, views, and `record`, the only writer of protection state.

mod record;
mod start;
mod view;

pub(crate) use record::record;
pub(crate) use view::live_at;

use crate::fabrics::fabric_row;
use crate::{Control, ControlError, error::Result, jobs::Scenario, store};
use leeward_model::{
    Branch, Epoch, FabricId, HostId, InstanceId, ItemId, JobId, MachineSpec, MachineState,
    PointChoice, PointId, Policy, Position, Problem, ProtectedItem, Site, UnixMillis, VaultId,
};
use leeward_wire::message::{
    CopyProgress, CycleFigures, DivergentNote, NewestPoint, ProbeResult, Purpose, Stage,
};
use serde::{Deserialize, Serialize};

/// What a caller sets of an item.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EnableSpec {
    /// Name of the policy; a mapping of the fabric must name it.
    pub policy: String,
    /// Id of the machine (protectable item), or its name.
    pub machine: String,
    /// Fields that only the API knows.
    pub extra: serde_json::Value,
}

/// Is an accepted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The item.
    pub item: ItemId,
    /// The job that does it.
    pub job: JobId,
}

/// Whether a failover shuts the source down first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shutdown {
    /// Shut it down; go on if that fails.
    First,
    /// Leave the source alone until the target starts.
    Leave,
}

/// Whether points outlive their item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepPoints {
    /// They stay in the store.
    Keep,
    /// They are deleted.
    Delete,
}

/// When a planned failover synchronizes (F-108, F-109).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncOption {
    /// Before the shutdown, while the machine runs: the least downtime.
    #[default]
    ForDownTime,
    /// Only after the shutdown, without comparing: the least work when most data differ.
    ForSynchronization,
}

/// Is what a planned failover is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSpec {
    /// The point; none is the final one, after which nothing was written.
    pub point: Option<PointChoice>,
    /// Whether the job waits for a person before it shuts the machine down (F-098).
    pub wait_to_complete: bool,
    /// When it synchronizes.
    pub sync: SyncOption,
}

/// Is what a reprotect is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReprotectSpec {
    /// Name of the host to replicate to; none is where the machine came from (F-111).
    pub host: Option<String>,
}

/// Why protection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisableReason {
    /// It is not wanted any more.
    Normal,
    /// The machine was migrated and never returns (F-005).
    MigrationComplete,
}

/// What can be done with an item, in the API's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the API's own words")]
pub enum Operation {
    TestFailover,
    TestFailoverCleanup,
    UnplannedFailover,
    CancelFailover,
    ChangePit,
    Commit,
    RepairReplication,
    DisableProtection,
    PlannedFailover,
    ReverseReplicate,
    FinalizeFailback,
    CompleteMigration,
}

/// How serious a health error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing.
    Normal,
    /// Look at it.
    Warning,
    /// Act now.
    Critical,
}

/// Is one thing that is wrong with an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthError {
    /// How serious.
    pub level: Level,
    /// What, why, and what to do.
    pub problem: Problem,
}

/// Where the machine is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "live", content = "site", rename_all = "kebab-case")]
pub enum LiveAt {
    /// At this site, and known to be off at the other.
    Site(Site),
    /// Confirmed off on both sides.
    Nowhere,
    /// It cannot be told.
    Unknown,
    /// On both sides.
    Both,
}

/// Is a machine made from one of the item's points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Its id.
    pub id: InstanceId,
    /// What it is for.
    pub purpose: Purpose,
    /// The point it started from.
    pub point: PointId,
    /// How far it is wanted.
    pub wanted: Stage,
    /// How far it is; none while the host is away or does not know it.
    pub stage: Option<Stage>,
    /// Its run state.
    pub machine: MachineState,
    /// Percent of its disks that no longer need the store.
    pub hydrated_percent: Option<f64>,
    /// When its guest was started, by its host's clock.
    pub guest_started_at: Option<UnixMillis>,
    /// What its probe showed.
    pub evidence: Option<ProbeResult>,
    /// The point that keeps its work.
    pub kept: Option<PointId>,
    /// What is wrong with it.
    pub problem: Option<Problem>,
    /// Where its serial console is, on its host, relative to the host's folder.
    pub console_path: String,
}

/// Is everything that is shown of an item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemView {
    /// Its id.
    pub id: ItemId,
    /// Its vault.
    pub vault: VaultId,
    /// Its name, spelt as at its creation.
    pub name: String,
    /// Fields that only the API knows.
    pub extra: serde_json::Value,
    /// Id of its machine (protectable item).
    pub machine_id: uuid::Uuid,
    /// Name of its machine.
    pub machine: String,
    /// Its machine as last seen, when it is known.
    pub spec: Option<MachineSpec>,
    /// Run state of the source machine; unknown while its host is away.
    pub source_machine: MachineState,
    /// Its protection state, direction, epoch, commit, test, active site, source state.
    pub state: ProtectedItem,
    /// The timeline that its source writes.
    pub branch: Branch,
    /// What can be done with it now.
    pub allowed: Vec<Operation>,
    /// What is wrong with it, worst first.
    pub health: Vec<HealthError>,
    /// Time since the cut of the newest committed point, in seconds; never less than the truth.
    pub rpo_seconds: Option<u64>,
    /// Where the machine is live.
    pub live_at: LiveAt,
    /// What that rests on, in words.
    pub live_evidence: String,
    /// Name of its policy.
    pub policy_name: String,
    /// Its policy.
    pub policy: Policy,
    /// The primary site's fabric.
    pub source_fabric: FabricId,
    /// Name of it.
    pub source_fabric_name: String,
    /// The recovery site's fabric.
    pub target_fabric: FabricId,
    /// Name of it.
    pub target_fabric_name: String,
    /// The primary host.
    pub source_host: HostId,
    /// Name of it.
    pub source_host_name: String,
    /// Whether it is connected.
    pub source_connected: bool,
    /// The recovery host.
    pub target_host: HostId,
    /// Name of it.
    pub target_host_name: String,
    /// Whether it is connected.
    pub target_connected: bool,
    /// The first copy or the comparison under way, with its estimate.
    pub copy: Option<CopyProgress>,
    /// Why a comparison is needed.
    pub resync_reason: Option<String>,
    /// The newest complete point of the line that is replicated.
    pub newest: Option<NewestPoint>,
    /// Number of points in the store.
    pub points: Option<u64>,
    /// The newest cycles, oldest first, at most 10; `pause_ms` is the guest's pause.
    pub cycles: Vec<CycleFigures>,
    /// Bytes sent since protection began.
    pub sent_bytes: Option<u64>,
    /// Bytes in the store.
    pub stored_bytes: Option<u64>,
    /// What a fenced source wrote after the last common point.
    pub divergent: Option<DivergentNote>,
    /// Machines made from its points.
    pub instances: Vec<InstanceView>,
    /// The job that changes its state now: scenario, job, begin.
    pub running: Option<(Scenario, JobId, UnixMillis)>,
    /// The test failover's or cleanup's job that runs now.
    pub running_test: Option<(Scenario, JobId, UnixMillis)>,
    /// When its last failover succeeded.
    pub last_failover: Option<UnixMillis>,
    /// When its last test failover succeeded.
    pub last_test: Option<UnixMillis>,
    /// Where the source was fenced: everything before it is in the replica.
    pub fenced_at: Option<Position>,
    /// Its epoch.
    pub epoch: Epoch,
}

impl Control {
    /// Finds an item by its source fabric's name and its own.
    ///
    /// # Errors
    /// NotFound.
    pub async fn item_get(&self, vault: VaultId, fabric: &str, name: &str) -> Result<ItemView> {
        let mut tx = self.store().read().await?;
        let fabric = fabric_row(&mut tx, vault, fabric).await?;
        let items = store::items::of_vault(&mut tx, vault).await?;
        let row = items
            .into_iter()
            .find(|item| item.fabric == fabric.id && item.name.eq_ignore_ascii_case(name));
        let row = row.ok_or_else(|| ControlError::not_found(format!("there is no item {name}")))?;
        self.item_show(&mut tx, row).await
    }

    /// Finds an item by id.
    ///
    /// # Errors
    /// NotFound.
    pub async fn item_find(&self, item: ItemId) -> Result<ItemView> {
        let mut tx = self.store().read().await?;
        let row = store::items::find(&mut tx, item).await?;
        let row = row.ok_or_else(|| ControlError::not_found(format!("there is no item {item}")))?;
        self.item_show(&mut tx, row).await
    }

    /// Lists the items of one source fabric or of all, by name.
    ///
    /// # Errors
    /// NotFound for the fabric.
    pub async fn item_list(&self, vault: VaultId, fabric: Option<&str>) -> Result<Vec<ItemView>> {
        let mut tx = self.store().read().await?;
        let fabric = match fabric {
            Some(name) => Some(fabric_row(&mut tx, vault, name).await?.id),
            None => None,
        };
        let mut views = Vec::new();
        for row in store::items::of_vault(&mut tx, vault).await? {
            if fabric.is_none_or(|fabric| fabric == row.fabric) {
                views.push(self.item_show(&mut tx, row).await?);
            }
        }
        Ok(views)
    }
}
