//! Every interruption at every step of every list of every kind of job, with the product's own
//! roles on both sides, and what holds when the world is at rest again.
//!
//! The steps come from the config server's own registry: a new one cannot escape.

use leeward_control::{
    items::{DisableReason, KeepPoints, Shutdown},
    jobs::RunState,
    testing::steps::steps,
};
use leeward_durable::{Action, List, Place, testing::StepId};
use leeward_model::{JobId, PointChoice, Protection};
use leeward_replica::storage::Seeded;
use leeward_sim::world::{Mistakes, Strike, World, crowd::crowd, link::LinkState, simulate};
use std::collections::BTreeSet;

/// What interrupts a job when it is about to call a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    /// The config server dies.
    KillServer,
    /// The recovery host's role dies.
    KillTarget,
    /// The primary host's role dies.
    KillSource,
    /// A person cancels the job, twice.
    Cancel,
    /// The link between the sites is cut.
    CutLink,
}

const BLOWS: [Blow; 5] =
    [Blow::KillServer, Blow::KillTarget, Blow::KillSource, Blow::Cancel, Blow::CutLink];
/// For how long a dead role stays dead, in milliseconds.
const DEAD_MS: u64 = 1_000;
/// For how long the link is cut, in milliseconds: longer than the silence that is noticed.
const CUT_MS: u64 = 5_000;
/// Steps of the world within which a job comes to any of its steps.
const STEPS_MAX: usize = 3_000;

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

/// A world in which a job of the kind can begin.
async fn base(kind: &str) -> World {
    let mut world = World::new(Mistakes::default()).await;
    let mut random = Seeded::new(7);
    world.write(&mut random);
    if matches!(kind, "enable-protection" | "finalize-protection") {
        return world;
    }
    world.protect(&mut random).await;
    world.write(&mut random);
    world.wait(2_500).await;
    let (control, item) = (world.control(), world.item.expect("it was protected just now"));
    let before = match kind {
        "cleanup-test" => Some(control.item_test_failover(item, PointChoice::Latest).await),
        "change-point" | "cancel-failover" | "commit" => {
            Some(control.item_failover(item, PointChoice::Latest, Shutdown::First).await)
        }
        "failover" | "test-failover" | "disable-protection" | "resync" => None,
        other => panic!("no scenario for job kind {other}"),
    };
    if let Some(job) = before {
        world.finish(job.expect("the world is ready for it")).await;
        world.write(&mut random);
    }
    world
}

/// Starts a job of the kind; none when it will be started by another one.
async fn start(world: &mut World, kind: &str) -> Option<JobId> {
    if matches!(kind, "enable-protection" | "finalize-protection") {
        let enabling = world.enable().await;
        return enabling.filter(|_| kind == "enable-protection");
    }
    let (control, item) = (world.control(), world.item.expect("it was protected before"));
    let started = match kind {
        "failover" => control.item_failover(item, PointChoice::Latest, Shutdown::First).await,
        "test-failover" => control.item_test_failover(item, PointChoice::Latest).await,
        "cleanup-test" => control.item_test_cleanup(item, "").await,
        "cancel-failover" => control.item_failover_cancel(item).await,
        "commit" => control.item_commit(item).await,
        "resync" => control.item_resync(item).await,
        "disable-protection" => {
            world.ledger.may_delete();
            control.item_disable(item, KeepPoints::Delete, DisableReason::Normal).await
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
        Blow::KillTarget => world.recovery_kill().await,
        Blow::KillSource => world.primary_kill().await,
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
    }
    world.halted = None;
    world.write(&mut random);
    world.wait(if blow == Blow::CutLink { CUT_MS } else { DEAD_MS }).await;
    world.write(&mut random);
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
async fn interrupt(all: &[StepId], step: &StepId, blow: Blow) -> Vec<String> {
    let mut world = base(step.kind).await;
    let lead = lead(all, step);
    world.strike = Some(Strike { kind: step.kind.to_owned(), place: lead.unwrap_or(step.place) });
    start(&mut world, step.kind).await;
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
    let ended = world.finish(job).await;
    if !ends_well(ended.state, blow, lead.is_some()) {
        world.ledger.violated(format!("it ended as {:?}: {:?}", ended.state, ended.errors));
    }
    world.settle().await;
    if world.view().await.is_none() {
        world.ledger.replica_ended();
        world.protect(&mut Seeded::new(1)).await;
        let state = world.view().await.map(|view| view.state.protection);
        if state != Some(Protection::Protected) {
            world.ledger.violated(format!("protected again it is {state:?}"));
        }
    }
    world.ledger.violations()
}

/// F-079, F-112.
#[test]
fn every_job_survives_every_interruption_at_every_step() {
    let all = steps();
    let only = std::env::var("LEEWARD_KIND").ok();
    let wanted = |step: &&StepId| only.as_ref().is_none_or(|kind| kind == step.kind);
    let chosen: Vec<&StepId> = all.iter().filter(wanted).collect();
    let cases = chosen.iter().flat_map(|step| BLOWS.map(|blow| (*step, blow)));
    let begun = std::time::Instant::now();

    let work =
        |(step, blow): (&StepId, Blow)| (step.clone(), blow, simulate(interrupt(&all, step, blow)));
    let done = crowd(cases, work, |_| false);

    let never = |wrong: &[String]| wrong.iter().any(|what| what.starts_with("it never came"));
    let struck: BTreeSet<_> = done
        .iter()
        .filter(|(_, _, wrong)| !never(wrong))
        .map(|(step, blow, _)| (step.clone(), *blow))
        .collect();
    let missing: Vec<_> = chosen
        .iter()
        .flat_map(|step| BLOWS.map(|blow| ((*step).clone(), blow)))
        .filter(|case| !struck.contains(case))
        .collect();
    let wrong: Vec<String> = done
        .iter()
        .filter(|(_, _, wrong)| !wrong.is_empty())
        .map(|(step, blow, wrong)| {
            format!(
                "{} {:?} {} {blow:?}:\n    {}",
                step.kind,
                step.place,
                step.name,
                wrong.join("\n    ")
            )
        })
        .collect();
    let took = begun.elapsed().as_secs_f64();
    eprintln!("{} steps, {} interruptions in {took:.0} s", chosen.len(), done.len());
    assert!(wrong.is_empty(), "{} went wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(missing.is_empty(), "these were never interrupted: {missing:?}");
}
