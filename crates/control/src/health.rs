//! What is wrong with an item, from what is stored and what its hosts see. Changes nothing.

use crate::items::{HealthError, Level, LiveAt, live_at};
use crate::world::World;
use leeward_model::{Code, Problem, Protection, ResyncWindow, Site, SourceState};
use leeward_wire::message::{CapturePhase, ServedPoint};

/// Everything that is wrong with the item of `world`, worst first.
pub(crate) fn of_item(world: &World, rpo_seconds: Option<u64>) -> Vec<HealthError> {
    let Some(item) = &world.item else { return Vec::new() };
    let mut found = Vec::new();
    let mut add = |level, problem: Problem| found.push(HealthError { level, problem });
    let failed_over = matches!(
        item.state.protection,
        Protection::FailedOver { .. }
            | Protection::ChangingPoint { .. }
            | Protection::Committed { .. }
    );
    let off = matches!(item.state.source, SourceState::ConfirmedOff { .. });
    let both = live_at(world).0 == LiveAt::Both;
    if both || (failed_over && !off) {
        let what = format!("{} was failed over; the old machine is not known to be off", item.name);
        add(Level::Critical, Code::BOTH_MAY_BE_LIVE.problem(what));
    }
    let noted = [Site::Primary, Site::Recovery].map(|site| world.machine_now(site));
    for note in noted.iter().flatten().filter_map(|seen| seen.divergent.as_ref()) {
        let what = format!("{}: what it wrote is kept as point {}", item.name, note.name);
        add(Level::Warning, Code::STALE_MACHINE_FENCED.problem(what));
    }
    let replicating = is_replicating(&item.state.protection);
    if !world.target().sight.connected {
        let what = format!("target host {} is not connected", world.target().name);
        add(Level::Critical, Code::TARGET_AWAY.problem(what));
    }
    if replicating && !world.source().sight.connected {
        let what = format!("source host {} of {} is not connected", world.source().name, item.name);
        add(Level::Critical, Code::ROLE_AWAY.problem(what));
    }
    if let Protection::Resynchronizing { reason, .. } = &item.state.protection {
        let name = &item.name;
        let what = match waits_for(world) {
            Some(window) => format!(
                "the resynchronization of {name} waits for its window {window} UTC, or for a \
                 resync by hand; changes are noted"
            ),
            None => format!("{name} is resynchronizing"),
        };
        add(Level::Warning, Code::RESYNC_NEEDED.because(what, reason.clone()));
    }
    if let Some(problem) = rpo_excess(world, rpo_seconds) {
        add(Level::Critical, problem);
    }
    let source_problem = world.source_now().and_then(|seen| seen.problem.as_ref());
    // That a comparison waits is said above, with the window that the host does not know.
    let said = |problem: &&Problem| {
        problem.code == Code::RESYNC_NEEDED.code
            && matches!(item.state.protection, Protection::Resynchronizing { .. })
    };
    if replicating && let Some(problem) = source_problem.filter(|problem| !said(problem)) {
        let level = if problem.is_final() { Level::Critical } else { Level::Warning };
        add(level, problem.clone());
    }
    found.extend(foreign(world, replicating));
    of_replicas_and_instances(world, &mut found);
    found.sort_by_key(|error| std::cmp::Reverse(error.level));
    found
}

/// Whether points are due.
pub(crate) fn is_replicating(state: &Protection) -> bool {
    matches!(
        state,
        Protection::Protected
            | Protection::Resynchronizing { .. }
            | Protection::InitialReplication { .. }
            | Protection::Reprotecting { .. }
    )
}

/// That the newest point of a replicated item is older than its policy allows, if it is.
pub(crate) fn rpo_excess(world: &World, rpo_seconds: Option<u64>) -> Option<Problem> {
    let item = world.item.as_ref().filter(|item| is_replicating(&item.state.protection))?;
    let threshold = world.policy.rpo_threshold_seconds;
    let rpo = rpo_seconds.filter(|rpo| *rpo > threshold)?;
    let what = format!("the newest point of {} is {rpo} s old, wanted {threshold}", item.name);
    Some(Code::RPO_EXCEEDED.problem(what))
}

/// What is wrong with the replicas, with the seed, and with machines made from points.
fn of_replicas_and_instances(world: &World, found: &mut Vec<HealthError>) {
    let mut add = |level, problem: Problem| found.push(HealthError { level, problem });
    for site in [Site::Primary, Site::Recovery] {
        let seen = world.replica_now(site).and_then(|seen| seen.problem.as_ref());
        if let Some(problem) = seen {
            let level = if site == world.target_site() { Level::Critical } else { Level::Warning };
            add(level, problem.clone());
        }
    }
    of_audits(world, &mut add);
    if let Some((_, Err(problem))) =
        world.machine_now(world.target_site()).and_then(|seen| seen.seeded.clone())
    {
        add(Level::Warning, problem);
    }
    for plan in world.item.iter().flat_map(|item| &item.plan.instances) {
        if let Some(problem) = world.instance_now(plan.id).and_then(|seen| seen.problem.as_ref()) {
            add(Level::Warning, problem.clone());
        }
    }
}

/// What the audits found that nobody asked for, until they find nothing more: bytes that changed by
/// themselves are damage, whether they were repaired or not.
fn of_audits(world: &World, add: &mut impl FnMut(Level, Problem)) {
    for site in [Site::Primary, Site::Recovery] {
        let compared = world.machine_now(site).and_then(|seen| seen.audit.as_ref());
        let stored = world.replica_now(site).and_then(|seen| seen.audit.as_ref());
        let found = compared.into_iter().chain(stored).filter_map(|audit| audit.problem.clone());
        found.for_each(|problem| add(Level::Critical, problem));
        for served in world.replica_now(site).iter().flat_map(|seen| &seen.served) {
            if served.writable {
                add(Level::Warning, served_writable(world, site, served));
            }
        }
    }
}

/// A machine may run from a point that is served for writing: by hand, and nobody fences it.
fn served_writable(world: &World, site: Site, served: &ServedPoint) -> Problem {
    let host = &world.host(site).name;
    let name = world.item.as_ref().map_or("an item", |item| item.name.as_str());
    let what = format!(
        "a writable serve of point {} of {name} is open in the store of host {host}, by {}",
        served.point, served.who
    );
    Code::SERVED_WRITABLE.problem(what)
}

/// The window that a comparison waits for, if it does.
fn waits_for(world: &World) -> Option<ResyncWindow> {
    let waits = world.item.as_ref().is_some_and(|item| item.plan.resync_waits);
    let paused = world.source_now().is_some_and(|seen| seen.phase == CapturePhase::Paused);
    world.policy.resync_window.filter(|_| waits && paused)
}

/// What an end says that has another machine by the name of the item's. A replicating source
/// says so among its other problems.
fn foreign(world: &World, replicating: bool) -> impl Iterator<Item = HealthError> + '_ {
    let said = replicating.then(|| world.source_site());
    let ends = [Site::Primary, Site::Recovery].into_iter().filter(move |site| Some(*site) != said);
    let ends = ends.filter_map(|site| world.machine_now(site));
    let problems = ends.filter_map(|seen| seen.problem.clone());
    let foreign = problems.filter(|problem| problem.code == Code::MACHINE_FOREIGN.code);
    foreign.map(|problem| HealthError { level: Level::Warning, problem })
}
