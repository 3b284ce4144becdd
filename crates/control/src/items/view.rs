//! Shows an item: everything that is stored of it and everything that its hosts see.

use super::estimate;
use super::live::{allowed, live_at};
use super::{EndView, InstanceView, ItemView, RunView};
use crate::error::Result;
use crate::plan::{InstancePlan, RunPlan};
use crate::store::jobs::{JobRow, Lane};
use crate::store::{self, Conn, items::ItemRow};
use crate::world::World;
use crate::{Control, ControlError, health, jobs::Scenario};
use leeward_model::{FabricId, JobId, MachineSpec, MachineState, Protection, Site, UnixMillis};
use leeward_wire::message::{NewestPoint, Stage};

impl Control {
    /// Seconds since the cut of an item's newest point, replicated or not; none when unknown.
    pub(crate) fn item_point_age(&self, item: &ItemView) -> Option<u64> {
        crate::rpo::rpo_seconds(item.newest.as_ref()?, &self.now())
    }

    /// Shows a stored item.
    pub(crate) async fn item_show(&self, conn: &mut Conn, row: ItemRow) -> Result<ItemView> {
        let stored = Stored {
            running: store::jobs::running(conn, row.id).await?,
            spec: store::machines::find(conn, row.machine_id).await?.map(|machine| machine.spec),
            source_fabric_name: fabric_name(conn, row.fabric).await?,
            target_fabric_name: fabric_name(conn, row.target_fabric).await?,
            newest: store::machines::newest(conn, row.id).await?,
            planned: was_planned(conn, &row).await?,
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
    planned: bool,
}

/// Whether the failover that the item's state speaks of was a planned one.
async fn was_planned(conn: &mut Conn, row: &ItemRow) -> Result<bool> {
    let after = matches!(
        row.state.protection,
        Protection::FailedOver { .. }
            | Protection::ChangingPoint { .. }
            | Protection::Committed { .. }
    );
    if !after {
        return Ok(false);
    }
    let ended = store::jobs::ended_main(conn, row.id).await?;
    let last = ended.iter().find(|job| {
        let scenario = job.facts.scenario;
        matches!(scenario, Scenario::PlannedFailover | Scenario::UnplannedFailover)
            && job.record.phase == leeward_durable::Phase::Succeeded
    });
    Ok(last.is_some_and(|job| job.facts.scenario == Scenario::PlannedFailover))
}

/// Whether points are due, so that their age means something.
fn is_replicating(state: &Protection) -> bool {
    matches!(
        state,
        Protection::InitialReplication { .. }
            | Protection::Protected
            | Protection::Resynchronizing { .. }
            | Protection::Reprotecting { .. }
            | Protection::FailingOver { .. }
    )
}

fn show(row: ItemRow, stored: Stored, world: &World) -> ItemView {
    // A host that is away told the truth when it was last heard; it only gets older.
    let target = world.target().sight.item(row.id).and_then(|seen| seen.target.as_ref());
    let source = world.source().sight.item(row.id).and_then(|seen| seen.source.as_ref());
    let newest = target.and_then(|seen| seen.newest.clone()).or(stored.newest);
    let newest = newest.filter(|newest| row.plan.on_line(newest.position));
    let rpo = newest.as_ref().filter(|_| is_replicating(&row.state.protection));
    let rpo_seconds = rpo.and_then(|newest| crate::rpo::rpo_seconds(newest, &world.now));
    let (live_at, live_evidence) = live_at(world);
    let connected_source = world.source_now();
    let target_machine = super::settings::target_view(world, &row, stored.spec.as_ref());
    let data_sync = estimate::data_sync(world, &row, stored.spec.as_ref());
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
        branch: row.plan.branch,
        allowed: allowed(&row, &stored.running, world),
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
        source_host: world.primary.id,
        source_host_name: world.primary.name.clone(),
        source_connected: world.primary.sight.connected,
        target_host: world.recovery.id,
        target_host_name: world.recovery.name.clone(),
        target_connected: world.recovery.sight.connected,
        copy: connected_source.and_then(|seen| seen.phase.copying()),
        resync_reason: connected_source.and_then(|seen| seen.resync_reason.clone()),
        newest,
        points: target.map(|seen| seen.points),
        cycles: source.map(|seen| seen.cycles.clone()).unwrap_or_default(),
        sent_bytes: source.map(|seen| seen.sent_bytes),
        spool: connected_source.and_then(|seen| seen.spool),
        stored_bytes: target.map(|seen| seen.stored_bytes),
        audit: source.and_then(|seen| seen.audit.clone()),
        store_audit: target.and_then(|seen| seen.audit.clone()),
        served: target.map(|seen| seen.served.clone()).unwrap_or_default(),
        divergent: divergent(world),
        data_sync,
        target: target_machine,
        ends: [end(world, &row, Site::Primary), end(world, &row, Site::Recovery)],
        instances: row.plan.instances.iter().map(|plan| instance(world, plan)).collect(),
        running: running_in(&stored.running, Lane::Main)
            .or_else(|| running_in(&stored.running, Lane::Reverse)),
        running_test: running_in(&stored.running, Lane::Test),
        planned: stored.planned,
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

/// What a fenced machine wrote on its own, of the site that was left last.
fn divergent(world: &World) -> Option<leeward_wire::message::DivergentNote> {
    let item = world.item.as_ref()?;
    let at = |site| {
        let seen = world.host(site).sight.item(item.id)?;
        seen.source.as_ref()?.divergent.clone()
    };
    at(world.source_site()).or_else(|| at(world.target_site()))
}

fn end(world: &World, row: &ItemRow, site: Site) -> EndView {
    let (end, host) = (row.plan.end(site), world.host(site));
    // A store that is away still has what it had when it was last heard.
    let replica = host.sight.item(row.id).and_then(|seen| seen.target.as_ref());
    EndView {
        site,
        host: host.id,
        host_name: host.name.clone(),
        connected: host.sight.connected,
        machine: end.machine.clone(),
        run: match end.run {
            RunPlan::Unassigned => RunView::None,
            RunPlan::Replicate { .. } => RunView::Replicate,
            RunPlan::ShutDown { .. } => RunView::ShutDown,
            RunPlan::Fenced => RunView::Fenced,
            RunPlan::Seed { .. } => RunView::Seed,
            RunPlan::Live { .. } => RunView::Live,
            RunPlan::Release | RunPlan::Leave => RunView::Release,
        },
        machine_state: world.machine_at(site),
        newest: replica.and_then(|seen| seen.newest.clone()),
        points: replica.map(|seen| seen.points),
        stored_bytes: replica.map(|seen| seen.stored_bytes),
    }
}

fn instance(world: &World, plan: &InstancePlan) -> InstanceView {
    let seen = world.instance_now(plan.id);
    let off = if plan.stage == Stage::Absent { MachineState::Off } else { MachineState::Unknown };
    InstanceView {
        id: plan.id,
        site: plan.site,
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
