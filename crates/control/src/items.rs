//! Protected items: use cases, views, and `record`, the only writer of protection state.

mod estimate;
mod live;
mod record;
mod settings;
mod start;
mod turn;
mod view;

pub use estimate::{DataSync, SyncEstimate};
pub(crate) use live::live_at;
pub(crate) use record::{no_item, record};
pub(crate) use settings::changes_of;
pub use settings::{Change, NicSettings, NicUpdate, SettingsUpdate, TargetSettings, TargetView};
pub(crate) use start::name_beside;

use crate::fabrics::fabric_row;
use crate::{Control, ControlError, ErrorKind, error::Result, jobs::Scenario, store};
use leeward_model::{
    Branch, Code, Epoch, FabricId, HostId, InstanceId, ItemId, JobId, MachineSpec, MachineState,
    PointChoice, PointId, Policy, Position, Problem, ProtectedItem, Site, UnixMillis, VaultId,
};
use leeward_wire::audit::AuditSeen;
use leeward_wire::message::{
    CopyProgress, CycleFigures, DivergentNote, NewestPoint, ProbeResult, Purpose, ServedPoint,
    SpoolSeen, Stage,
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

/// Why protection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisableReason {
    /// It is no longer wanted.
    #[default]
    Normal,
    /// The machine stays where it was failed over to and never returns (F-005). The old one is
    /// left off and is not deleted.
    MigrationComplete,
}

/// Whether hosts that are away hold up the end of protection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AwayHosts {
    /// The job waits for them.
    #[default]
    Wait,
    /// It goes on without them: what they hold of the item stays until somebody deletes it there.
    GoOn,
}

/// What a planned failover sends before the machine is shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncOption {
    /// What differs, while the machine runs; the rest while it is down.
    #[default]
    ForDownTime,
    /// Nothing: all of it is sent while the machine is down. Of a machine that is not replicated
    /// that is everything, without a comparison with what the other site has (F-109).
    ForSynchronization,
}

/// How to fail over without losing anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSpec {
    /// Which point; none means the final one, which is what all but a chosen point mean.
    pub point: Option<PointChoice>,
    /// Wait for a person's word, with the machine running, before it is shut down (F-098, F-110).
    pub wait_to_complete: bool,
    /// What is sent before.
    pub sync: SyncOption,
    /// Id or name of the host to go to, of a machine that is not replicated: none means the one
    /// that was left (F-111).
    #[serde(default)]
    pub host: Option<String>,
}

/// How to protect a failed-over machine in the other direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReprotectSpec {
    /// Id or name of the host to go to; none means the one that was left (F-111).
    pub host: Option<String>,
    /// What the comparison goes by with what the other site's store has.
    #[serde(default)]
    pub trust: ResyncTrust,
}

/// What a comparison that was asked for goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResyncTrust {
    /// The hashes that both ends keep of what was replicated.
    #[default]
    Hashes,
    /// Nothing: the store reads and hashes anew all that it holds of the item's line.
    Nothing,
}

/// What is wanted of the machine at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunView {
    /// Nothing: there is none, or it is made from a point and not handed over yet.
    None,
    /// It is replicated.
    Replicate,
    /// It is being shut down.
    ShutDown,
    /// It stays off.
    Fenced,
    /// It stays off, and its disks are read for the way back.
    Seed,
    /// It lives there, and nothing replicates it.
    Live,
    /// It is given back to its owner.
    Release,
}

/// Is what an item has at one of its sites.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndView {
    /// The site.
    pub site: Site,
    /// The host.
    pub host: HostId,
    /// Name of it.
    pub host_name: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Name of the machine there.
    pub machine: String,
    /// What is wanted of it.
    pub run: RunView,
    /// Its run state; unknown while the host is away.
    pub machine_state: MachineState,
    /// The newest point of this site's own store, on any timeline.
    pub newest: Option<NewestPoint>,
    /// Number of points in this site's own store.
    pub points: Option<u64>,
    /// Bytes in this site's own store.
    pub stored_bytes: Option<u64>,
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
    /// The site whose host makes it.
    pub site: Site,
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
    /// Points that wait at the source until the store takes them, while any may.
    pub spool: Option<SpoolSeen>,
    /// Bytes in the store.
    pub stored_bytes: Option<u64>,
    /// The comparison of the machine with its replica that always goes on.
    pub audit: Option<AuditSeen>,
    /// The reading of the replica's own bytes that always goes on.
    pub store_audit: Option<AuditSeen>,
    /// Points that are served from the target's store by hand.
    pub served: Vec<ServedPoint>,
    /// What a fenced source wrote after the last common point.
    pub divergent: Option<DivergentNote>,
    /// What it has at the primary and at the recovery site, in this order. The fields above that
    /// speak of a source and a target host mean the primary and the recovery host all the same.
    pub ends: [EndView; 2],
    /// The machine that the next failover would make.
    pub target: TargetView,
    /// What bringing it home would cost, while nothing replicates it and that can be told.
    pub data_sync: Option<DataSync>,
    /// Machines made from its points.
    pub instances: Vec<InstanceView>,
    /// The job that changes its state now: scenario, job, begin.
    pub running: Option<(Scenario, JobId, UnixMillis)>,
    /// The test failover's or cleanup's job that runs now.
    pub running_test: Option<(Scenario, JobId, UnixMillis)>,
    /// Whether the machine is where it is by a planned failover; false when it never failed over,
    /// or is replicated again since.
    pub planned: bool,
    /// When its last failover succeeded.
    pub last_failover: Option<UnixMillis>,
    /// When its last test failover succeeded.
    pub last_test: Option<UnixMillis>,
    /// Where the source was fenced: everything before it is in the replica.
    pub fenced_at: Option<Position>,
    /// Its epoch.
    pub epoch: Epoch,
}

/// The refusal when the item has ended because its migration was completed (F-005).
fn migrated(name: &str) -> ControlError {
    let what = format!("{name} was migrated for good: the item has ended");
    ControlError::new(ErrorKind::NotFound, Code::MIGRATED, what)
}

impl Control {
    /// Finds an item by its source fabric's name and its own.
    ///
    /// # Errors
    /// NotFound, with `MIGRATED` when its migration was completed.
    pub async fn item_get(&self, vault: VaultId, fabric: &str, name: &str) -> Result<ItemView> {
        let mut tx = self.store().read().await?;
        let fabric = fabric_row(&mut tx, vault, fabric).await?;
        let items = store::items::of_vault(&mut tx, vault).await?;
        let row = items
            .into_iter()
            .find(|item| item.fabric == fabric.id && item.name.eq_ignore_ascii_case(name));
        let Some(row) = row else {
            let known = store::items::migrated_name(&mut tx, fabric.id, name).await?;
            return Err(match known {
                Some(name) => migrated(&name),
                None => ControlError::not_found(format!("there is no item {name}")),
            });
        };
        self.item_show(&mut tx, row).await
    }

    /// Finds an item by id.
    ///
    /// # Errors
    /// NotFound, with `MIGRATED` when its migration was completed.
    pub async fn item_find(&self, item: ItemId) -> Result<ItemView> {
        let mut tx = self.store().read().await?;
        let Some(row) = store::items::find(&mut tx, item).await? else {
            return Err(no_item(&mut tx, item).await);
        };
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
