//! Crashes and cancels at every step of every list of every kind of job, and what holds after.

use super::*;
use leeward_durable::testing::{StepId, enumerate};
use leeward_durable::{Action, List, Phase, Place};

/// What interrupts a job when it is about to call a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// The config server dies before the call.
    Crash,
    /// The call lands, then the config server dies.
    CallThenCrash,
    /// A person cancels before the call.
    Cancel,
    /// The call lands, then a person cancels, and the config server dies at once.
    CallThenCancelThenCrash,
}

const BLOWS: [Blow; 4] =
    [Blow::Crash, Blow::CallThenCrash, Blow::Cancel, Blow::CallThenCancelThenCrash];

/// Where a scenario starts from. Its first word is the kind of its job.
async fn base(scenario: &str) -> Option<Pair> {
    match scenario {
        "enable-protection" | "finalize-protection" => Some(Pair::joined().await),
        "failover" | "test-failover" | "disable-protection" | "resync" | "planned-failover" => {
            Some(Pair::protected().await)
        }
        "cleanup-test" => Some(Pair::tested().await),
        "change-point"
        | "cancel-failover"
        | "commit"
        | "complete-migration"
        | "disable-protection failed over" => Some(Pair::failed_over().await),
        "reprotect"
        | "finalize-reprotect"
        | "failover from committed"
        | "planned-failover straight"
        | "planned-failover full" => Some(Pair::committed().await),
        "planned-failover home" | "failover home" | "disable-protection away" => {
            Some(Pair::reversed().await)
        }
        "cancel-failover home" => {
            let mut pair = Pair::reversed().await;
            let job = pair.planned().await;
            pair.succeeds(job).await;
            Some(pair)
        }
        "failover from the other site" => {
            let mut pair = Pair::reversed().await;
            let job = pair.planned().await;
            pair.succeeds(job).await;
            pair.commit().await;
            Some(pair)
        }
        "recovery-plan"
        | "recovery-plan planned"
        | "recovery-plan test"
        | "recovery-plan actions" => Some(in_a_plan(scenario).await),
        // It is over when it is made.
        "instant" => None,
        other => panic!("no scenario {other}"),
    }
}

/// Two machines are protected and are groups of the plan `all`, the pair's own the second.
async fn in_a_plan(scenario: &str) -> Pair {
    use crate::plans::{GroupInput, GroupKind, ItemRef, PlanInput};
    let mut pair = Pair::protected().await;
    let spec = EnableSpec {
        policy: "gold".to_owned(),
        machine: "db01".to_owned(),
        extra: serde_json::Value::Null,
    };
    let control = pair.fleet.control.clone();
    let other = control.item_enable(pair.vault, "site-a", "db01", spec).await.unwrap().item;
    let there = async |fleet: &Fleet| {
        fleet.control.item_find(other).await.unwrap().state.protection == Protection::Protected
    };
    pair.fleet.until(TURNS_MAX, "the other one is protected", there).await;
    let boot = |item| GroupInput {
        kind: GroupKind::Boot,
        items: vec![ItemRef::Id(item)],
        before: Vec::new(),
        after: Vec::new(),
    };
    let mut groups = vec![boot(other), boot(pair.item)];
    if scenario == "recovery-plan actions" {
        super::plan_actions::add_to_groups(&mut groups);
    }
    let input = PlanInput {
        primary: "site-a".to_owned(),
        recovery: "recovery-site".to_owned(),
        groups,
        extra: serde_json::Value::Null,
    };
    control.plan_put(pair.vault, "all", input).await.unwrap();
    pair
}

fn kind_of(scenario: &str) -> &str {
    scenario.split(' ').next().expect("a scenario has a name")
}

/// A job that was started by another one.
async fn started_by(pair: &mut Pair, first: JobId, wanted: crate::jobs::Scenario) -> JobId {
    pair.finish(first).await;
    let jobs = pair.fleet.control.job_list(pair.vault, &crate::jobs::JobFilter::default()).await;
    jobs.unwrap().iter().find(|job| job.scenario == wanted).unwrap().id
}

/// Starts the job.
async fn start(pair: &mut Pair, scenario: &str) -> JobId {
    use crate::jobs::Scenario;
    let (control, item) = (pair.fleet.control.clone(), pair.item);
    match scenario {
        "enable-protection" => pair.enable().await,
        "finalize-protection" => {
            let enable = pair.enable().await;
            started_by(pair, enable, Scenario::PrimaryIrCompletion).await
        }
        "finalize-reprotect" => {
            let first = pair.reprotect().await;
            started_by(pair, first, Scenario::SecondaryIrCompletion).await
        }
        "failover" | "failover home" => pair.failover(Shutdown::First).await,
        "planned-failover" | "planned-failover home" => pair.planned().await,
        "planned-failover straight" => pair.straight(SyncOption::ForDownTime).await,
        "planned-failover full" => pair.straight(SyncOption::ForSynchronization).await,
        "reprotect" => pair.reprotect().await,
        "failover from committed" => {
            let point = pair.points().await[2].id;
            pair.retained(point).await.unwrap()
        }
        "failover from the other site" => {
            let points = pair.points().await;
            let there = |point: &&leeward_model::PointInfo| point.held_at == Site::Recovery;
            let point = points.iter().find(there).unwrap().id;
            pair.retained(point).await.unwrap()
        }
        "test-failover" => control.item_test_failover(item, PointChoice::Latest).await.unwrap(),
        "disable-protection" | "disable-protection away" | "disable-protection failed over" => {
            control.item_disable(item, KeepPoints::Delete, DisableReason::Normal).await.unwrap()
        }
        "complete-migration" => control
            .item_disable(item, KeepPoints::Delete, DisableReason::MigrationComplete)
            .await
            .unwrap(),
        "recovery-plan"
        | "recovery-plan planned"
        | "recovery-plan test"
        | "recovery-plan actions" => {
            use crate::plans::{PlanAsk, Verb};
            let verb = match scenario {
                "recovery-plan planned" | "recovery-plan actions" => Verb::PlannedFailover,
                "recovery-plan test" => Verb::TestFailover,
                _ => Verb::UnplannedFailover,
            };
            control.plan_start(pair.vault, "all", PlanAsk::new(verb)).await.unwrap()
        }
        "resync" => control.item_resync(item).await.unwrap(),
        "cleanup-test" => control.item_test_cleanup(item, "").await.unwrap(),
        "cancel-failover" | "cancel-failover home" => {
            control.item_failover_cancel(item).await.unwrap()
        }
        "commit" => control.item_commit(item).await.unwrap(),
        "change-point" => {
            let point = pair.points().await[2].id;
            pair.change_point(point).await.unwrap()
        }
        other => panic!("no scenario {other}"),
    }
}

/// A cancel that leads a job back, so that it comes to its undos or its ABANDON list.
#[derive(Clone, Copy, Debug)]
struct Lead {
    place: Place,
    /// Whether the step there is called first, so that there is more to take back.
    called: bool,
}

/// The cancels that lead a job to `place`; one that is none when it goes there by itself.
fn leads_to(kind: &str, steps: &[StepId], place: Place) -> Vec<Option<Lead>> {
    let count = |list| {
        let runs = steps.iter().filter(|step| step.place.action == Action::Run);
        runs.filter(|step| step.kind == kind && step.place.list == list).count()
    };
    let run = |list, index| Place { list, index, action: Action::Run };
    match (place.list, place.action) {
        (List::Abandon, _) => vec![
            Some(Lead { place: run(List::Forward, 0), called: true }),
            Some(Lead { place: run(List::Forward, count(List::Forward) - 1), called: false }),
        ],
        (_, Action::Undo) => {
            let place = run(List::Reversible, count(List::Reversible) - 1);
            let before = Some(Lead { place, called: false });
            let after = (count(List::Forward) > 0).then_some(Some(Lead { place, called: true }));
            std::iter::once(before).chain(after).collect()
        }
        (_, Action::Run) => vec![None],
    }
}

/// Whether the next transition only takes note of a cancel.
fn turns_back(record: &leeward_durable::Record) -> bool {
    let abandon = record.log.iter().any(|step| step.list == List::Abandon);
    record.cancel_requested
        && match record.phase {
            Phase::Reversible { .. } => true,
            Phase::Forward { .. } => abandon,
            _ => false,
        }
}

async fn record(pair: &Pair, job: JobId) -> leeward_durable::Record {
    let mut tx = pair.fleet.control.store().read().await.unwrap();
    crate::store::jobs::find(&mut tx, job).await.unwrap().unwrap().record
}

async fn cancel(pair: &Pair, job: JobId) {
    pair.fleet.control.job_cancel(pair.vault, job).await.unwrap();
}

async fn reconcile(pair: &Pair) {
    let mut tx = pair.fleet.control.store().read().await.unwrap();
    let items = crate::store::items::all_ids(&mut tx).await.unwrap();
    drop(tx);
    for item in items {
        pair.fleet.control.item_reconcile(item).await.ok();
    }
}

/// Takes the turn of the item's other jobs: one may wait for another.
async fn others_go_on(pair: &Pair, job: JobId) {
    let mut tx = pair.fleet.control.store().read().await.unwrap();
    let jobs = crate::store::jobs::unfinished(&mut tx).await.unwrap();
    drop(tx);
    for other in jobs.into_iter().filter(|other| *other != job) {
        let go_on = Some(leeward_durable::Next::Continue);
        while pair.fleet.control.job_advance(other).await.unwrap() == go_on {}
    }
}

/// Runs the job to its end with one blow at `place`, and says whether the blow fell.
async fn run(pair: &mut Pair, job: JobId, place: Place, lead: Option<Lead>, blow: Blow) -> bool {
    let (mut fell, mut led) = (false, lead.is_none());
    let kind = record(pair, job).await.kind;
    let never_stops = ["reprotect", "finalize-reprotect"].contains(&kind.as_str());
    for _ in 0..TURNS_MAX {
        pair.fleet.step().await;
        assert!(pair.live().len() <= 1, "two machines run: {:?}", pair.live());
        if never_stops {
            assert_eq!(pair.live().len(), 1, "the live machine stopped");
        }
        reconcile(pair).await;
        others_go_on(pair, job).await;
        loop {
            let now = record(pair, job).await;
            if now.phase.is_final() {
                return fell;
            }
            let here = now.current().filter(|_| !turns_back(&now));
            if let Some(lead) = lead.filter(|lead| !led && here == Some(lead.place)) {
                led = true;
                if lead.called {
                    pair.fleet.control.job_advance(job).await.unwrap();
                }
                cancel(pair, job).await;
                continue;
            }
            if led && !fell && here == Some(place) {
                fell = true;
                if matches!(blow, Blow::CallThenCrash | Blow::CallThenCancelThenCrash) {
                    pair.fleet.control.job_advance(job).await.unwrap();
                }
                if matches!(blow, Blow::Cancel | Blow::CallThenCancelThenCrash) {
                    cancel(pair, job).await;
                    cancel(pair, job).await;
                }
                if blow != Blow::Cancel {
                    pair.restart().await;
                    break;
                }
                continue;
            }
            match pair.fleet.control.job_advance(job).await.unwrap() {
                Some(leeward_durable::Next::Continue) => {}
                _ => break,
            }
        }
    }
    panic!("{place:?} {blow:?}: job does not end: {:#?}", pair.job(job).await);
}

/// The machine goes on where it was, protected, and points are made.
async fn is_protected_at(pair: &mut Pair, site: Site) {
    pair.is_protected().await;
    let before = pair.view().await.newest.unwrap().point;
    pair.until("a new point", |v| v.newest.as_ref().is_some_and(|n| n.point != before)).await;
    assert_eq!(pair.live(), ["web01"]);
    let view = pair.view().await;
    assert_eq!((view.state.active, view.live_at), (site, LiveAt::Site(site)));
    let item = pair.item;
    assert_eq!(pair.host_at(site).await.live(item), ["web01"]);
}

async fn is_gone(pair: &mut Pair) {
    let gone = pair.fleet.control.item_find(pair.item).await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound);
    for _ in 0..3 {
        pair.fleet.turn().await;
    }
    assert!(pair.fleet.hosts.iter().all(|host| host.items.is_empty()));
}

/// What must hold of both machines once a plan's job is over: neither has a job that goes on, each
/// runs once, and where the plan says; of a cancelled one, where its own job came to.
async fn check_plan(pair: &mut Pair, scenario: &str, job: JobId, went: bool) {
    let all = pair.fleet.control.job_list(pair.vault, &crate::jobs::JobFilter::default()).await;
    let parts: Vec<_> = all.unwrap().into_iter().filter(|one| one.parent == Some(job)).collect();
    assert!(parts.iter().all(|part| part.ended.is_some()), "{parts:#?}");
    assert!(!went || parts.len() == 2, "each machine has one job: {parts:#?}");
    let items: Vec<_> = pair.fleet.control.item_list(pair.vault, None).await.unwrap();
    let own = pair.item;
    let mut gone = Vec::new();
    for item in items {
        let part = parts.iter().find(|part| part.item == Some(item.id));
        let done = part.is_some_and(|part| {
            matches!(part.state, RunState::Succeeded | RunState::SucceededWithWarning)
        });
        assert!(done || !went, "{parts:#?}");
        let away = done && scenario != "recovery-plan test";
        pair.item = item.id;
        if away {
            let failed_over =
                |view: &ItemView| matches!(view.state.protection, Protection::FailedOver { .. });
            pair.until("failed over", failed_over).await;
        } else {
            pair.is_protected().await;
        }
        gone.extend(away.then(|| item.name.clone()));
        let site = if away { Site::Recovery } else { Site::Primary };
        pair.until("live there", |view| view.live_at == LiveAt::Site(site)).await;
        assert_eq!(pair.live().len(), 1);
        let tested = matches!(pair.view().await.state.test, TestState::Active { .. });
        assert_eq!(tested, done && scenario == "recovery-plan test");
    }
    pair.item = own;
    if scenario == "recovery-plan actions" {
        super::plan_actions::check_what_stays(&pair.fleet.actions, &gone);
    }
}

/// What must hold once the job is over, however it went.
async fn check(pair: &mut Pair, scenario: &str, job: JobId) {
    let state = pair.job(job).await.state;
    let went = matches!(state, RunState::Succeeded | RunState::SucceededWithWarning);
    let back = state == RunState::Cancelled;
    assert!(went || back, "{:#?}", pair.job(job).await);
    if kind_of(scenario) == "recovery-plan" {
        return check_plan(pair, scenario, job, went).await;
    }
    match (scenario, went) {
        ("disable-protection", true) | ("enable-protection", false) => {
            is_gone(pair).await;
            let again = pair.enable().await;
            assert_eq!(pair.finish(again).await.state, RunState::Succeeded);
        }
        ("disable-protection away" | "disable-protection failed over", true) => {
            is_gone(pair).await;
            assert!(pair.fleet.host(TARGET).machines["web01"].runs, "it is its owner's");
            let source = pair.source;
            assert!(!pair.fleet.host(source).machines["web01"].runs, "the old one stays off");
        }
        ("complete-migration", true) => {
            let gone = pair.fleet.control.item_find(pair.item).await.unwrap_err();
            assert_eq!(gone.problem.code, Code::MIGRATED.code);
            is_gone(pair).await;
            assert!(pair.fleet.host(TARGET).machines["web01"].runs);
        }
        ("failover" | "planned-failover" | "change-point" | "commit", true)
        | ("planned-failover straight" | "planned-failover full", true)
        | ("failover home" | "planned-failover home" | "failover from committed", true)
        | ("failover from the other site", true)
        | ("cancel-failover" | "change-point" | "commit" | "complete-migration", false)
        | ("cancel-failover home" | "failover from committed", false)
        | ("failover from the other site" | "disable-protection failed over", false) => {
            let view = pair.view().await;
            let machine = match view.state.protection {
                Protection::FailedOver { machine, .. } | Protection::Committed { machine } => {
                    machine
                }
                other => panic!("{scenario} left the item {other:?}"),
            };
            assert_eq!(pair.live(), [machine.to_string()]);
            let home = ["home", "straight", "full"].iter().any(|word| scenario.ends_with(word))
                || (scenario == "failover from the other site" && !went);
            let site = if home { Site::Primary } else { Site::Recovery };
            assert_eq!((view.state.active, view.live_at), (site, LiveAt::Site(site)));
        }
        ("reprotect" | "finalize-reprotect", false) => {
            let view = pair.view().await;
            if view.state.protection != Protection::Protected {
                let committed = matches!(view.state.protection, Protection::Committed { .. });
                assert!(committed, "{:?}", view.state.protection);
                let again = pair.reprotect().await;
                pair.succeeds(again).await;
            }
            is_protected_at(pair, Site::Recovery).await;
        }
        ("reprotect" | "finalize-reprotect" | "cancel-failover home", true)
        | ("planned-failover straight" | "planned-failover full", false)
        | ("failover home" | "planned-failover home" | "disable-protection away", false) => {
            is_protected_at(pair, Site::Recovery).await;
        }
        _ => {
            is_protected_at(pair, Site::Primary).await;
            let tested = matches!(pair.view().await.state.test, TestState::Active { .. });
            let wanted =
                matches!((scenario, went), ("test-failover", true) | ("cleanup-test", false));
            assert_eq!(tested, wanted);
        }
    }
}

async fn every_place_of(scenarios: &[&str]) {
    let registry = crate::jobs::registry();
    let steps = enumerate(&registry);
    let mut survived = 0;
    for scenario in scenarios {
        let kind = kind_of(scenario);
        let base = base(scenario).await.expect("a kind with steps");
        for step in steps.iter().filter(|step| step.kind == kind) {
            let leads = leads_to(kind, &steps, step.place);
            let cases = leads.iter().flat_map(|lead| BLOWS.map(|blow| (*lead, blow)));
            for (lead, blow) in cases {
                eprintln!("{scenario}: {:?} {} after {lead:?}: {blow:?}", step.place, step.name);
                let mut pair = base.fork().await;
                pair.fleet.step().await;
                let job = start(&mut pair, scenario).await;
                let fell = run(&mut pair, job, step.place, lead, blow).await;
                assert!(fell, "{scenario} never came to {step:?}");
                check(&mut pair, scenario, job).await;
                survived += 1;
            }
        }
    }
    println!("PROOF E1 crashes_and_cancels={survived} scenarios={}", scenarios.len());
}

/// F-079.
#[tokio::test]
async fn a_failover_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["failover"]).await;
}

/// F-079, F-105.
#[tokio::test]
async fn a_failover_home_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["failover home", "cancel-failover home"]).await;
}

/// F-086.
#[tokio::test]
async fn a_planned_failover_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["planned-failover"]).await;
}

/// F-086, F-105.
#[tokio::test]
async fn a_planned_failover_home_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["planned-failover home"]).await;
}

/// F-108, F-109, F-112: straight from a committed failover, with both options.
#[tokio::test]
async fn a_planned_failover_from_committed_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["planned-failover straight", "planned-failover full"]).await;
}

/// F-112: the live machine never stops.
#[tokio::test]
async fn a_reprotect_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["reprotect", "finalize-reprotect"]).await;
}

#[tokio::test]
async fn a_failover_from_a_retained_point_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["failover from committed", "failover from the other site"]).await;
}

#[tokio::test]
async fn the_end_of_an_item_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&[
        "disable-protection away",
        "disable-protection failed over",
        "complete-migration",
    ])
    .await;
}

/// F-055, F-074, F-160.
#[tokio::test]
async fn a_recovery_plan_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["recovery-plan", "recovery-plan planned", "recovery-plan test"]).await;
}

/// F-100.
#[tokio::test]
async fn a_change_of_point_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["change-point"]).await;
}

#[tokio::test]
async fn all_other_jobs_survive_a_crash_and_a_cancel_at_every_step() {
    let registry = crate::jobs::registry();
    let apart = [
        "change-point",
        "complete-migration",
        "failover",
        "finalize-reprotect",
        "instant",
        "planned-failover",
        "recovery-plan",
        "reprotect",
    ];
    let others: Vec<_> = registry.kinds().filter(|kind| !apart.contains(kind)).collect();

    every_place_of(&others).await;
}

/// F-161: with an action of each kind at each place.
#[tokio::test]
async fn a_recovery_plan_with_actions_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["recovery-plan actions"]).await;
}
