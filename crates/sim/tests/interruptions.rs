//! Every interruption at every step of every list of every kind of job, with the product's own
//! roles on both sides, and what holds when the world is at rest again.
//!
//! The steps come from the config server's own registry: a new one cannot escape.

use leeward_control::{
    ControlError,
    items::{DisableReason, KeepPoints, PlannedSpec, ReprotectSpec, Shutdown, SyncOption},
    jobs::RunState,
    plans::{GroupInput, GroupKind, ItemRef, PlanAsk, PlanInput, Verb},
    testing::steps::steps,
};
use leeward_durable::{Action, List, Place, testing::StepId};
use leeward_model::{JobId, PointChoice, Protection, Site};
use leeward_replica::storage::Seeded;
use leeward_sim::world::{Mistakes, Strike, World, crowd::crowd, link::LinkState, simulate};

/// What interrupts a job when it is about to call a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// The config server dies.
    KillServer,
    /// The role of a site's host dies.
    KillRole(Site),
    /// The host of a site loses its power and boots again.
    Reboot(Site),
    /// A person cancels the job, twice.
    Cancel,
    /// The link between the sites is cut.
    CutLink,
    /// The disk of a site's store is full.
    FillDisk(Site),
}

/// What falls on every job.
const BLOWS: [Blow; 5] = [
    Blow::KillServer,
    Blow::KillRole(Site::Recovery),
    Blow::KillRole(Site::Primary),
    Blow::Cancel,
    Blow::CutLink,
];
/// What falls besides on jobs that move a whole machine or turn the direction.
const BLOWS_MORE: [Blow; 4] = [
    Blow::Reboot(Site::Recovery),
    Blow::Reboot(Site::Primary),
    Blow::FillDisk(Site::Recovery),
    Blow::FillDisk(Site::Primary),
];
/// For how long a dead role stays dead, in milliseconds.
const DEAD_MS: u64 = 1_000;
/// For how long the link is cut and a disk is full, in milliseconds: longer than the silence that
/// is noticed.
const CUT_MS: u64 = 5_000;
/// Steps of the world within which a job comes to any of its steps.
const STEPS_MAX: usize = 3_000;
/// How often the live machine writes between a commit and a reprotect.
const WRITES: usize = 6;

/// Which way the machine goes, or is replicated, when a job begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the primary site.
    Out,
    /// To it.
    Home,
    /// To it, from a machine that nothing replicates (F-108).
    Straight,
    /// The same with all of it copied while it is off (F-109).
    Whole,
}

/// A step, the way of its job, and what falls on it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    step: StepId,
    way: Way,
    blow: Blow,
}

/// Every blow that is due at a step.
fn cases(step: &StepId) -> Vec<Case> {
    let (ways, more) = match step.kind {
        "planned-failover" => (vec![Way::Out, Way::Home, Way::Straight, Way::Whole], true),
        // The way of the machine that it protects.
        "reprotect" | "finalize-reprotect" => (vec![Way::Home], true),
        "complete-migration" => (vec![Way::Home], false),
        "resync" => (vec![Way::Out], true),
        _ => (vec![Way::Out], false),
    };
    let blows = BLOWS.iter().chain(BLOWS_MORE.iter().filter(|_| more));
    let case = |(way, blow): (&Way, &Blow)| Case { step: step.clone(), way: *way, blow: *blow };
    ways.iter().flat_map(|way| blows.clone().map(move |blow| (way, blow))).map(case).collect()
}

/// A cancel that leads a job to its undos, or to its way back.
fn lead(all: &[StepId], step: &StepId) -> Option<Place> {
    let last = |list| {
        let runs = all.iter().filter(|other| {
            let place = other.place;
            other.kind == step.kind && place.list == list && place.action == Action::Run
        });
        runs.map(|other| other.place).max_by_key(|place| place.index)
    };
    match (step.place.list, step.place.action) {
        (List::Abandon, _) => last(List::Forward),
        (_, Action::Undo) => last(List::Reversible),
        (_, Action::Run) => None,
    }
}

async fn done(world: &mut World, random: &mut Seeded, started: Result<JobId, ControlError>) {
    let ended = world.finish(started.expect("the world is ready for it")).await;
    let well = matches!(ended.state, RunState::Succeeded | RunState::SucceededWithWarning);
    assert!(well, "{:?} ends as {:?}: {:?}", ended.scenario, ended.state, ended.errors);
    world.write(random);
}

/// Fails over and makes it final.
async fn committed(world: &mut World, random: &mut Seeded) {
    let (control, item) = (world.control(), world.item.expect("it was protected just now"));
    let failover = control.item_failover(item, PointChoice::Latest, Shutdown::First).await;
    done(world, random, failover).await;
    done(world, random, control.item_commit(item).await).await;
}

/// Makes the plan `all` of the one machine.
async fn plan(world: &World) {
    let view = world.view().await.expect("it was protected just now");
    let items = vec![ItemRef::Id(view.id)];
    let boot = GroupInput { kind: GroupKind::Boot, items, before: vec![], after: vec![] };
    let input = PlanInput {
        primary: view.source_fabric_name,
        recovery: view.target_fabric_name,
        groups: vec![boot],
        extra: serde_json::Value::Null,
    };
    let made = world.control().plan_put(world.vault, "all", input).await;
    made.expect("the item is protected between these sites");
}

/// A world in which a job of the kind can begin.
async fn base(kind: &str, way: Way) -> World {
    let mut world = World::new(Mistakes::default()).await;
    let random = &mut Seeded::new(7);
    world.write(random);
    if matches!(kind, "enable-protection" | "finalize-protection") {
        return world;
    }
    world.protect(random).await;
    world.write(random);
    world.wait(2_500).await;
    let (control, item) = (world.control(), world.item.expect("it was protected just now"));
    if way != Way::Out {
        committed(&mut world, random).await;
    }
    match kind {
        "cleanup-test" => {
            let test = control.item_test_failover(item, PointChoice::Latest).await;
            done(&mut world, random, test).await;
        }
        "change-point" | "cancel-failover" | "commit" => {
            let failover = control.item_failover(item, PointChoice::Latest, Shutdown::First).await;
            done(&mut world, random, failover).await;
        }
        "planned-failover" if way == Way::Home => {
            world.reprotect_wholly(random).await;
            world.write(random);
            world.wait(2_500).await;
        }
        "recovery-plan" => plan(&world).await,
        "reprotect" | "finalize-reprotect" => (0..WRITES).for_each(|_| world.write(random)),
        "planned-failover" | "failover" | "test-failover" | "disable-protection" | "resync"
        | "complete-migration" => {}
        other => panic!("no scenario for job kind {other}"),
    }
    world.check_often().await;
    world
}

/// Starts a job of the kind; none when it will be started by another one.
async fn start(world: &mut World, kind: &str, way: Way) -> Option<JobId> {
    if matches!(kind, "enable-protection" | "finalize-protection") {
        let enabling = world.enable().await;
        return enabling.filter(|_| kind == "enable-protection");
    }
    let (control, item) = (world.control(), world.item.expect("it was protected before"));
    let started = match kind {
        "failover" => control.item_failover(item, PointChoice::Latest, Shutdown::First).await,
        "planned-failover" => {
            let sync = match way {
                Way::Whole => SyncOption::ForSynchronization,
                Way::Out | Way::Home | Way::Straight => SyncOption::ForDownTime,
            };
            let spec = PlannedSpec { sync, ..PlannedSpec::default() };
            control.item_planned_failover(item, spec).await
        }
        "reprotect" | "finalize-reprotect" => {
            control.item_reprotect(item, ReprotectSpec::default()).await
        }
        "recovery-plan" => {
            let ask = PlanAsk::new(Verb::UnplannedFailover);
            control.plan_start(world.vault, "all", ask).await
        }
        "test-failover" => control.item_test_failover(item, PointChoice::Latest).await,
        "cleanup-test" => control.item_test_cleanup(item, "").await,
        "cancel-failover" => control.item_failover_cancel(item).await,
        "commit" => control.item_commit(item).await,
        "resync" => control.item_resync(item).await,
        "disable-protection" => {
            world.ledger.may_delete();
            control.item_disable(item, KeepPoints::Delete, DisableReason::Normal).await
        }
        "complete-migration" => {
            world.ledger.may_delete();
            control.item_disable(item, KeepPoints::Delete, DisableReason::MigrationComplete).await
        }
        "change-point" => {
            let asked = control.clone();
            let points = world.ask(async move { asked.point_list(item, 0, 100).await }).await;
            let oldest = points.expect("the store is asked").points.last().map(|point| point.id);
            let (asked, point) = (control.clone(), oldest.expect("it is protected"));
            world.ask(async move { asked.item_change_point(item, point).await }).await
        }
        other => panic!("no scenario for job kind {other}"),
    };
    Some(started.expect("the world is ready for it"))
}

async fn halt_at(world: &mut World, kind: &str, place: Place) -> Option<JobId> {
    world.halted = None;
    world.strike = Some(Strike { kind: kind.to_owned(), place });
    for _ in 0..STEPS_MAX {
        if let Some(at) = &world.halted {
            return Some(at.job);
        }
        world.step().await;
    }
    None
}

async fn strike(world: &mut World, job: JobId, blow: Blow, place: Place) {
    world.strike = None;
    let mut random = Seeded::new(place.index as u64);
    match blow {
        Blow::KillServer => world.server_kill().await,
        Blow::KillRole(site) => world.role_kill(site).await,
        Blow::Reboot(site) => {
            if world.must_run == Some(site) {
                world.must_run = None;
            }
            world.power_cut(site, &mut random).await;
        }
        Blow::Cancel => {
            for _ in 0..2 {
                let cancelled = world.control().job_cancel(world.vault, job).await;
                cancelled.expect("a cancel is always accepted");
            }
        }
        Blow::CutLink => world.link_set(match place.index % 2 {
            0 => LinkState::Hangs,
            _ => LinkState::Refuses,
        }),
        Blow::FillDisk(site) => world.disk(site).set_full(true),
    }
    world.halted = None;
    world.write(&mut random);
    let long = matches!(blow, Blow::CutLink | Blow::FillDisk(_));
    world.wait(if long { CUT_MS } else { DEAD_MS }).await;
    world.write(&mut random);
    world.check_often().await;
    world.heal().await;
}

/// How a job may end.
fn ends_well(state: RunState, blow: Blow, led: bool) -> bool {
    match state {
        RunState::Succeeded | RunState::SucceededWithWarning => true,
        RunState::Cancelled => led || blow == Blow::Cancel,
        RunState::Suspended => true,
        _ => false,
    }
}

/// Lets one blow fall at one step; returns what was violated.
async fn interrupt(all: &[StepId], case: &Case) -> Vec<String> {
    let Case { step, way, blow } = case;
    let blow = *blow;
    let mut world = base(step.kind, *way).await;
    // The active machine never stops while the other direction is built up.
    world.must_run = step.kind.ends_with("reprotect").then_some(Site::Recovery);
    let lead = lead(all, step);
    world.strike = Some(Strike { kind: step.kind.to_owned(), place: lead.unwrap_or(step.place) });
    start(&mut world, step.kind, *way).await;
    if let Some(lead) = lead {
        let Some(job) = halt_at(&mut world, step.kind, lead).await else {
            return vec!["it never came to where it is led from".to_owned()];
        };
        world.control().job_cancel(world.vault, job).await.expect("a cancel is always accepted");
    }
    let Some(job) = halt_at(&mut world, step.kind, step.place).await else {
        return vec!["it never came there".to_owned()];
    };
    strike(&mut world, job, blow, step.place).await;
    // A host that boots again starts what it may; its owner starts the rest.
    if matches!(blow, Blow::Reboot(_)) {
        world.wait(DEAD_MS).await;
        world.owner_cares().await;
    }
    let ended = world.finish(job).await;
    if !ends_well(ended.state, blow, lead.is_some()) {
        world.ledger.violated(format!("it ended as {:?}: {:?}", ended.state, ended.errors));
    }
    world.settle().await;
    if world.view().await.is_none() && step.kind == "complete-migration" {
        let old = world.is_running(Site::Primary).await;
        if old || !world.is_running(Site::Recovery).await {
            world.ledger.violated("the migrated machine does not run alone");
        }
    } else if world.view().await.is_none() {
        world.ledger.replica_ended();
        world.protect(&mut Seeded::new(1)).await;
        let state = world.view().await.map(|view| view.state.protection);
        if state != Some(Protection::Protected) {
            world.ledger.violated(format!("protected again it is {state:?}"));
        }
    }
    world.ledger.violations()
}

/// F-079, F-108, F-109, F-112.
#[test]
fn every_job_survives_every_interruption_at_every_step() {
    let all = steps();
    let only = std::env::var("LEEWARD_KIND").ok();
    let wanted = |step: &&StepId| only.as_ref().is_none_or(|kind| kind == step.kind);
    let due: Vec<Case> = all.iter().filter(wanted).flat_map(cases).collect();
    let begun = std::time::Instant::now();

    let work = |case: Case| {
        let wrong = simulate(interrupt(&all, &case));
        (case, wrong)
    };
    let done = crowd(due.clone(), work, |_| false);

    let never = |wrong: &[String]| wrong.iter().any(|what| what.starts_with("it never came"));
    let struck: Vec<&Case> =
        done.iter().filter(|(_, wrong)| !never(wrong)).map(|(case, _)| case).collect();
    let missing: Vec<_> = due.iter().filter(|case| !struck.contains(case)).collect();
    let wrong: Vec<String> = done
        .iter()
        .filter(|(_, wrong)| !wrong.is_empty())
        .map(|(Case { step, way, blow }, wrong)| {
            let (kind, place, name) = (step.kind, step.place, step.name);
            let wrong = wrong.join("\n    ");
            format!("{kind} {way:?} {place:?} {name} {blow:?}:\n    {wrong}")
        })
        .collect();
    let took = begun.elapsed().as_secs_f64();
    eprintln!("{} interruptions in {took:.0} s", done.len());
    println!("PROOF E1 interruptions_in_a_whole_world={}", done.len());
    assert!(wrong.is_empty(), "{} went wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(missing.is_empty(), "these were never interrupted: {missing:?}");
}
