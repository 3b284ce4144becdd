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

/// Where a kind of job starts from.
async fn base(kind: &str) -> Option<Pair> {
    match kind {
        "enable-protection" | "finalize-protection" => Some(Pair::joined().await),
        "failover" | "test-failover" | "disable-protection" | "resync" => {
            Some(Pair::protected().await)
        }
        "cleanup-test" => Some(Pair::tested().await),
        "change-point" | "cancel-failover" | "commit" => Some(Pair::failed_over().await),
        // It is over when it is made.
        "instant" => None,
        other => panic!("no scenario for job kind {other}"),
    }
}

/// Starts the job.
async fn start(pair: &mut Pair, kind: &str) -> JobId {
    let (control, item) = (pair.fleet.control.clone(), pair.item);
    match kind {
        "enable-protection" => pair.enable().await,
        "finalize-protection" => {
            let enable = pair.enable().await;
            pair.finish(enable).await;
            let jobs = control.job_list(pair.vault, &crate::jobs::JobFilter::default()).await;
            let wanted = crate::jobs::Scenario::PrimaryIrCompletion;
            jobs.unwrap().iter().find(|job| job.scenario == wanted).unwrap().id
        }
        "failover" => pair.failover(Shutdown::First).await,
        "test-failover" => control.item_test_failover(item, PointChoice::Latest).await.unwrap(),
        "disable-protection" => {
            control.item_disable(item, KeepPoints::Delete, DisableReason::Normal).await.unwrap()
        }
        "resync" => control.item_resync(item).await.unwrap(),
        "cleanup-test" => control.item_test_cleanup(item, "").await.unwrap(),
        "cancel-failover" => control.item_failover_cancel(item).await.unwrap(),
        "commit" => control.item_commit(item).await.unwrap(),
        "change-point" => {
            let point = pair.points().await[2].id;
            pair.change_point(point).await.unwrap()
        }
        other => panic!("no scenario for job kind {other}"),
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

/// Runs the job to its end with one blow at `place`, and says whether the blow fell.
async fn run(pair: &mut Pair, job: JobId, place: Place, lead: Option<Lead>, blow: Blow) -> bool {
    let (mut fell, mut led) = (false, lead.is_none());
    for _ in 0..TURNS_MAX {
        pair.fleet.step().await;
        assert!(pair.live().len() <= 1, "two machines run: {:?}", pair.live());
        pair.fleet.control.item_reconcile(pair.item).await.ok();
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

/// What must hold once the job is over, however it went.
async fn check(pair: &mut Pair, kind: &str, job: JobId) {
    let state = pair.job(job).await.state;
    let went = matches!(state, RunState::Succeeded | RunState::SucceededWithWarning);
    let back = state == RunState::Cancelled;
    assert!(went || back, "{:#?}", pair.job(job).await);
    match (kind, went) {
        ("disable-protection", true) | ("enable-protection", false) => {
            let gone = pair.fleet.control.item_find(pair.item).await.unwrap_err();
            assert_eq!(gone.kind, ErrorKind::NotFound);
            for _ in 0..3 {
                pair.fleet.turn().await;
            }
            assert!(pair.fleet.hosts.iter().all(|host| host.items.is_empty()));
            let again = pair.enable().await;
            assert_eq!(pair.finish(again).await.state, RunState::Succeeded);
        }
        ("failover" | "change-point" | "commit", true)
        | ("cancel-failover" | "change-point" | "commit", false) => {
            let view = pair.view().await;
            let machine = match view.state.protection {
                Protection::FailedOver { machine, .. } | Protection::Committed { machine } => {
                    machine
                }
                other => panic!("{kind} left the item {other:?}"),
            };
            assert_eq!(pair.live(), [machine.to_string()]);
        }
        _ => {
            pair.until("protected", |v| v.state.protection == Protection::Protected).await;
            let before = pair.view().await.newest.unwrap().point;
            pair.until("a new point", |v| v.newest.as_ref().unwrap().point != before).await;
            assert_eq!(pair.live(), ["web01"]);
            assert_eq!(pair.view().await.state.active, Site::Primary);
            let tested = matches!(pair.view().await.state.test, TestState::Active { .. });
            let wanted = matches!((kind, went), ("test-failover", true) | ("cleanup-test", false));
            assert_eq!(tested, wanted);
        }
    }
}

async fn every_place_of(kinds: &[&str]) {
    let registry = crate::jobs::registry();
    let steps = enumerate(&registry);
    for kind in kinds {
        let base = base(kind).await.expect("a kind with steps");
        for step in steps.iter().filter(|step| step.kind == *kind) {
            let leads = leads_to(kind, &steps, step.place);
            let cases = leads.iter().flat_map(|lead| BLOWS.map(|blow| (*lead, blow)));
            for (lead, blow) in cases {
                eprintln!("{kind} {:?} {} after {lead:?}: {blow:?}", step.place, step.name);
                let mut pair = base.fork().await;
                pair.fleet.step().await;
                let job = start(&mut pair, kind).await;
                let fell = run(&mut pair, job, step.place, lead, blow).await;
                assert!(fell, "{kind} never came to {step:?}");
                check(&mut pair, kind, job).await;
            }
        }
    }
}

/// F-079.
#[tokio::test]
async fn a_failover_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["failover"]).await;
}

/// F-100.
#[tokio::test]
async fn a_change_of_point_survives_a_crash_and_a_cancel_at_every_step() {
    every_place_of(&["change-point"]).await;
}

#[tokio::test]
async fn all_other_jobs_survive_a_crash_and_a_cancel_at_every_step() {
    let registry = crate::jobs::registry();
    let apart = ["failover", "change-point", "instant"];
    let others: Vec<_> = registry.kinds().filter(|kind| !apart.contains(kind)).collect();

    every_place_of(&others).await;
}
