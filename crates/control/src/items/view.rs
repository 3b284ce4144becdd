//! Shows an item: everything that is stored of it and everything that its hosts see.

use super::{InstanceView, ItemView, LiveAt, Operation};
use crate::error::Result;
use crate::plan::InstancePlan;
use crate::store::jobs::{JobRow, Lane};
use crate::store::{self, Conn, items::ItemRow};
use crate::world::World;
use crate::{Control, ControlError, health, jobs::Scenario};
use leeward_model::{
    FabricId, JobId, MachineSpec, MachineState, Protection, Site, SourceState, TestState,
    UnixMillis,
};
use leeward_wire::message::{
    CapturePhase, CopyProgress, NewestPoint, Purpose, SourceObserved, Stage,
};

impl Control {
    /// Shows a stored item.
    pub(crate) async fn item_show(&self, conn: &mut Conn, row: ItemRow) -> Result<ItemView> {
        let stored = Stored {
            running: store::jobs::running(conn, row.id).await?,
            spec: store::machines::find(conn, row.machine_id).await?.map(|machine| machine.spec),
            source_fabric_name: fabric_name(conn, row.fabric).await?,
            target_fabric_name: fabric_name(conn, row.target_fabric).await?,
            newest: store::machines::newest(conn, row.id).await?,
        };
        let world = self.world_of(conn, row.clone()).await?;
        Ok(show(row, stored, &world))
    }
}

/// Is what is stored beside an item's row.
struct Stored {
    running: Vec<JobRow>,
    spec: Option<MachineSpec>,
    source_fabric_name: String,
    target_fabric_name: String,
    newest: Option<NewestPoint>,
}

fn copy_of(seen: &SourceObserved) -> Option<CopyProgress> {
    match seen.phase {
        CapturePhase::Copying(progress) => Some(progress),
        CapturePhase::Idle
        | CapturePhase::Delta
        | CapturePhase::Paused
        | CapturePhase::Fenced
        | CapturePhase::Released => None,
    }
}

/// Whether points are due, so that their age means something.
fn is_replicating(state: &Protection) -> bool {
    matches!(
        state,
        Protection::InitialReplication { .. }
            | Protection::Protected
            | Protection::Resynchronizing { .. }
            | Protection::FailingOver { .. }
    )
}

fn show(row: ItemRow, stored: Stored, world: &World) -> ItemView {
    // A host that is away told the truth when it was last heard; it only gets older.
    let target = world.target.sight.item(row.id).and_then(|seen| seen.target.as_ref());
    let source = world.source.sight.item(row.id).and_then(|seen| seen.source.as_ref());
    let newest = target.and_then(|seen| seen.newest.clone()).or(stored.newest);
    let newest = newest.filter(|newest| row.plan.on_line(newest.position));
    let rpo = newest.as_ref().filter(|_| is_replicating(&row.state.protection));
    let rpo_seconds = rpo.and_then(|newest| crate::rpo::rpo_seconds(newest, &world.now));
    let (live_at, live_evidence) = live_at(world);
    let connected_source = world.source_now();
    ItemView {
        id: row.id,
        vault: row.vault,
        name: row.name.clone(),
        extra: row.extra.clone(),
        machine_id: row.machine_id,
        machine: row.machine.clone(),
        spec: stored.spec,
        source_machine: world.source_machine(),
        state: row.state.clone(),
        branch: row.plan.source.branch,
        allowed: allowed(&row, &stored.running),
        health: health::of_item(world, rpo_seconds),
        rpo_seconds,
        live_at,
        live_evidence,
        policy_name: row.policy.clone(),
        policy: world.policy.clone(),
        source_fabric: row.fabric,
        source_fabric_name: stored.source_fabric_name,
        target_fabric: row.target_fabric,
        target_fabric_name: stored.target_fabric_name,
        source_host: world.source.id,
        source_host_name: world.source.name.clone(),
        source_connected: world.source.sight.connected,
        target_host: world.target.id,
        target_host_name: world.target.name.clone(),
        target_connected: world.target.sight.connected,
        copy: connected_source.and_then(copy_of),
        resync_reason: connected_source.and_then(|seen| seen.resync_reason.clone()),
        newest,
        points: target.map(|seen| seen.points),
        cycles: source.map(|seen| seen.cycles.clone()).unwrap_or_default(),
        sent_bytes: source.map(|seen| seen.sent_bytes),
        stored_bytes: target.map(|seen| seen.stored_bytes),
        divergent: source.and_then(|seen| seen.divergent.clone()),
        instances: row.plan.instances.iter().map(|plan| instance(world, plan)).collect(),
        running: running_in(&stored.running, Lane::Main),
        running_test: running_in(&stored.running, Lane::Test),
        last_failover: row.last_failover,
        last_test: row.last_test,
        fenced_at: row.plan.fenced_at.map(|(_, position)| position),
        epoch: row.state.epoch,
    }
}

async fn fabric_name(conn: &mut Conn, fabric: FabricId) -> Result<String> {
    let row = store::fabrics::by_id(conn, fabric).await?;
    let row = row.ok_or_else(|| ControlError::not_found(format!("there is no fabric {fabric}")))?;
    Ok(row.name)
}

fn running_in(running: &[JobRow], lane: Lane) -> Option<(Scenario, JobId, UnixMillis)> {
    let row = running.iter().find(|row| row.facts.lane == lane)?;
    let began = UnixMillis(i64::try_from(row.record.created_ms).unwrap_or(i64::MAX));
    Some((row.facts.scenario, row.facts.id, began))
}

fn instance(world: &World, plan: &InstancePlan) -> InstanceView {
    let seen = world.instance_now(plan.id);
    let off = if plan.stage == Stage::Absent { MachineState::Off } else { MachineState::Unknown };
    InstanceView {
        id: plan.id,
        purpose: plan.purpose,
        point: plan.point,
        wanted: plan.stage,
        stage: seen.map(|seen| seen.stage),
        machine: seen.map_or(off, |seen| seen.machine),
        hydrated_percent: seen.and_then(|seen| seen.hydrated_percent),
        guest_started_at: seen.and_then(|seen| seen.guest_started_at),
        evidence: seen.and_then(|seen| seen.evidence.clone()),
        kept: seen.and_then(|seen| seen.kept),
        problem: seen.and_then(|seen| seen.problem.clone()),
        console_path: format!("instances/{}/console.log", plan.id),
    }
}

/// What can be done with an item now.
fn allowed(row: &ItemRow, running: &[JobRow]) -> Vec<Operation> {
    let busy = running.iter().any(|job| job.facts.lane == Lane::Main);
    let testing = running.iter().any(|job| job.facts.lane == Lane::Test);
    let mut allowed = match &row.state.protection {
        _ if busy => Vec::new(),
        Protection::Protected => {
            let main = [Operation::UnplannedFailover, Operation::RepairReplication];
            let disable = (!testing).then_some(Operation::DisableProtection);
            let test = row.state.test == TestState::None && !testing;
            let test = test.then_some(Operation::TestFailover);
            main.into_iter().chain(disable).chain(test).collect()
        }
        Protection::Resynchronizing { .. } => vec![
            Operation::UnplannedFailover,
            Operation::RepairReplication,
            Operation::DisableProtection,
        ],
        Protection::FailedOver { .. } => vec![
            Operation::Commit,
            Operation::ChangePit,
            Operation::CancelFailover,
            Operation::DisableProtection,
        ],
        Protection::InitialReplication { .. } | Protection::Committed { .. } => {
            vec![Operation::DisableProtection]
        }
        Protection::Enabling { .. }
        | Protection::FailingOver { .. }
        | Protection::ChangingPoint { .. }
        | Protection::Reprotecting { .. }
        | Protection::Disabling { .. }
        | Protection::Removed => Vec::new(),
    };
    if matches!(row.state.protection, Protection::FailingOver { .. }) {
        allowed.push(Operation::CancelFailover);
    }
    if matches!(row.state.test, TestState::Active { .. }) && !testing {
        allowed.push(Operation::TestFailoverCleanup);
    }
    allowed
}

/// Whether a machine made by a failover runs; none when it cannot be told.
fn target_runs(world: &World) -> Option<bool> {
    let item = world.item.as_ref()?;
    let mut unknown = false;
    for plan in item.plan.instances.iter().filter(|plan| plan.purpose == Purpose::Failover) {
        match world.instance_now(plan.id) {
            Some(seen) if seen.machine == MachineState::Off => {}
            // Its processors stand still until its permit comes.
            Some(seen) if seen.stage != Stage::Running && !plan.permitted => {}
            Some(_) => return Some(true),
            // One that never held a permit, or whose stop a job has confirmed, cannot run.
            None => unknown |= plan.permitted,
        }
    }
    (!unknown).then_some(false)
}

/// Where the machine is live, and what says so.
pub(crate) fn live_at(world: &World) -> (LiveAt, String) {
    let Some(item) = &world.item else { return (LiveAt::Unknown, "the item is gone".to_owned()) };
    let (here, there) = (&world.source.name, &world.target.name);
    let off = matches!(item.state.source, SourceState::ConfirmedOff { .. });
    let source = match world.source_machine() {
        MachineState::Running | MachineState::Paused => Some(true),
        MachineState::Off => Some(false),
        MachineState::Unknown if off => Some(false),
        MachineState::Unknown => None,
    };
    let left = match (&item.state.source, source) {
        (SourceState::ConfirmedOff { by, .. }, Some(false)) => format!("{by} confirmed it off"),
        (_, Some(true)) => format!("it runs on host {here}"),
        (_, Some(false)) => format!("host {here} says that it is off"),
        (_, None) => format!("host {here} is not heard"),
    };
    let target = target_runs(world);
    let right = match target {
        Some(true) => format!("a machine made from a point runs on host {there}"),
        Some(false) => format!("none runs on host {there}"),
        None => format!("host {there} is not heard and may run one"),
    };
    let live = match (source, target) {
        (Some(true), Some(true)) => LiveAt::Both,
        (Some(true), Some(false)) => LiveAt::Site(Site::Primary),
        (Some(false), Some(true)) => LiveAt::Site(Site::Recovery),
        (Some(false), Some(false)) => LiveAt::Nowhere,
        (None, _) | (_, None) => LiveAt::Unknown,
    };
    (live, format!("{left}; {right}"))
}
