//! Says what can be done with an item now, and where its machine is live. Changes nothing.

use super::{LiveAt, Operation};
use crate::jobs::{self, Scenario};
use crate::plan::RunPlan;
use crate::store::items::ItemRow;
use crate::store::jobs::{JobRow, Lane};
use crate::world::World;
use leeward_model::{Commit, MachineState, Protection, Site, SourceState, TestState};
use leeward_wire::message::{Purpose, Stage};

/// What can be done with an item now.
pub(super) fn allowed(row: &ItemRow, running: &[JobRow], world: &World) -> Vec<Operation> {
    use Operation as O;
    let runs = |lane| running.iter().any(|job| job.facts.lane == lane);
    let (testing, reversing) = (runs(Lane::Test), runs(Lane::Reverse));
    let disable = (!testing && !reversing).then_some(O::DisableProtection);
    let pending = (row.state.commit != Commit::Done).then_some(O::Commit);
    let mut allowed: Vec<_> = match &row.state.protection {
        _ if runs(Lane::Main) => Vec::new(),
        Protection::Protected => {
            let main = [O::UnplannedFailover, O::PlannedFailover, O::RepairReplication];
            let test = row.state.test == TestState::None && !testing;
            let test = test.then_some(O::TestFailover);
            main.into_iter().chain(disable).chain(test).chain(pending).collect()
        }
        Protection::Resynchronizing { .. } => {
            let main = [O::UnplannedFailover, O::RepairReplication];
            main.into_iter().chain(disable).chain(pending).collect()
        }
        Protection::FailedOver { .. } => {
            let back = (!row.plan.one_way).then_some(O::CancelFailover);
            let turn = [O::ReverseReplicate, O::PlannedFailover];
            let turn = turn.into_iter().filter(|_| world.policy.auto_reverse_planned);
            let main = [O::Commit, O::ChangePit, O::CompleteMigration];
            main.into_iter().chain(back).chain(turn).chain(disable).collect()
        }
        Protection::Committed { .. } if reversing => Vec::new(),
        Protection::Committed { .. } => {
            let main = [O::ReverseReplicate, O::PlannedFailover, O::CompleteMigration];
            main.into_iter().chain(retained(row, world)).chain(disable).chain(pending).collect()
        }
        Protection::Reprotecting { .. } => {
            retained(row, world).into_iter().chain(disable).chain(pending).collect()
        }
        Protection::InitialReplication { .. } => disable.into_iter().collect(),
        Protection::Enabling { .. }
        | Protection::FailingOver { .. }
        | Protection::ChangingPoint { .. }
        | Protection::Disabling { .. }
        | Protection::Removed => Vec::new(),
    };
    if matches!(row.state.protection, Protection::FailingOver { .. }) {
        allowed.push(O::CancelFailover);
        let waits = running.iter().any(|job| jobs::waits_to_complete(&jobs::job_view(job)));
        allowed.extend(waits.then_some(O::FinalizeFailback));
    }
    let planned = |job: &&JobRow| job.facts.scenario == Scenario::PlannedFailover;
    if allowed.is_empty() && running.iter().any(|job| planned(&job)) {
        // It waits for the reprotect that it began with.
        allowed.push(O::CancelFailover);
    }
    if matches!(row.state.test, TestState::Active { .. }) && !testing {
        allowed.push(O::TestFailoverCleanup);
    }
    allowed
}

/// A failover from a retained point, as long as a store is not known to be empty.
fn retained(row: &ItemRow, world: &World) -> Option<Operation> {
    let holds = [Site::Primary, Site::Recovery].into_iter().any(|site| {
        let seen = world.host(site).sight.item(row.id).and_then(|seen| seen.target.as_ref());
        row.plan.end(site).has_store() && seen.is_none_or(|seen| seen.points > 0)
    });
    holds.then_some(Operation::UnplannedFailover)
}

/// Whether a machine made by a failover runs at `site`; none when it cannot be told.
fn instance_runs(world: &World, site: Site) -> Option<bool> {
    let item = world.item.as_ref()?;
    let mut unknown = false;
    let made = item.plan.instances.iter();
    for plan in made.filter(|plan| plan.purpose == Purpose::Failover && plan.site == site) {
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

/// Whether the owner's machine of `site` runs; none when it cannot be told.
fn machine_runs(world: &World, site: Site) -> Option<bool> {
    let item = world.item.as_ref()?;
    let run = item.plan.end(site).run;
    let made = item.plan.instances.iter();
    let is_instance = made.clone().any(|plan| plan.site == site && plan.permitted);
    // Of a machine of which nothing is wanted it is not even known whether it is the item's.
    if run == RunPlan::Unassigned && (site != item.state.active || is_instance) {
        return Some(false);
    }
    let replicated = matches!(
        item.state.protection,
        Protection::Protected | Protection::Resynchronizing { .. } | Protection::FailingOver { .. }
    );
    // The side that receives was known to be off when replication towards it began.
    let known_off = match replicated && site == world.target_site() {
        true => true,
        false => matches!(item.state.source, SourceState::ConfirmedOff { .. }),
    };
    match world.machine_at(site) {
        MachineState::Running | MachineState::Paused => Some(true),
        MachineState::Off => Some(false),
        MachineState::Unknown if known_off && !run.permits() => Some(false),
        MachineState::Unknown => None,
    }
}

/// Whether anything of the item runs at `site`, and what says so.
fn runs(world: &World, site: Site) -> (Option<bool>, String) {
    let host = &world.host(site).name;
    let heard = world.host(site).sight.connected;
    match (instance_runs(world, site), machine_runs(world, site)) {
        (Some(true), _) => (Some(true), format!("a machine made from a point runs on host {host}")),
        (_, Some(true)) => (Some(true), format!("it runs on host {host}")),
        (Some(false), Some(false)) => {
            let text = match world.item.as_ref().map(|item| &item.state.source) {
                Some(SourceState::ConfirmedOff { by, .. }) if site == world.source_site() => {
                    format!("{by} confirmed it off")
                }
                _ if heard => format!("none runs on host {host}"),
                _ => format!("host {host} may not run one"),
            };
            (Some(false), text)
        }
        (None, _) | (_, None) => (None, format!("host {host} is not heard and may run it")),
    }
}

/// Where the machine is live, and what says so.
pub(crate) fn live_at(world: &World) -> (LiveAt, String) {
    if world.item.is_none() {
        return (LiveAt::Unknown, "the item is gone".to_owned());
    }
    let (primary, here) = runs(world, Site::Primary);
    let (recovery, there) = runs(world, Site::Recovery);
    let live = match (primary, recovery) {
        (Some(true), Some(true)) => LiveAt::Both,
        (Some(true), Some(false)) => LiveAt::Site(Site::Primary),
        (Some(false), Some(true)) => LiveAt::Site(Site::Recovery),
        (Some(false), Some(false)) => LiveAt::Nowhere,
        (None, _) | (_, None) => LiveAt::Unknown,
    };
    (live, format!("{here}; {there}"))
}
