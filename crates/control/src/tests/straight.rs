//! Planned failovers of a machine that nothing replicates yet: with both options of what is sent
//! before the machine is off.

use super::*;
use crate::jobs::{JobAnswer, JobFilter, Scenario};

const BOTH: [SyncOption; 2] = [SyncOption::ForDownTime, SyncOption::ForSynchronization];

fn task<'a>(view: &'a JobView, name: &str) -> &'a crate::jobs::TaskView {
    view.tasks.iter().find(|task| task.name == name).unwrap()
}

/// The newest job of a scenario.
async fn newest(pair: &Pair, scenario: Scenario) -> JobView {
    let jobs = pair.fleet.control.job_list(pair.vault, &JobFilter::default()).await.unwrap();
    jobs.into_iter().find(|job| job.scenario == scenario).unwrap()
}

async fn is_reprotected(pair: &mut Pair) {
    pair.is_protected().await;
    let view = pair.view().await;
    assert_eq!((view.state.active, view.live_at), (Site::Recovery, LiveAt::Site(Site::Recovery)));
    assert_eq!(pair.live(), ["web01"]);
}

/// F-108, F-109, F-110.
#[tokio::test]
async fn a_committed_machine_comes_home_by_one_request_with_either_option_and_loses_nothing() {
    for sync in BOTH {
        let mut pair = Pair::committed().await;
        assert!(pair.view().await.allowed.contains(&Operation::PlannedFailover));
        let job = pair.straight(sync).await;
        let view = pair.succeeds(job).await;

        let left = pair.fleet.host(TARGET).machines["web01"].data;
        assert!(pair.data() >= left, "{} of {left} writes are there", pair.data());
        assert_eq!(pair.view().await.live_at, LiveAt::Site(Site::Primary));
        let full = sync == SyncOption::ForSynchronization;
        let skips = |name| task(&view, name).state == RunState::Skipped;
        assert!(!skips("VmReverseReplication"));
        assert_eq!(skips("VmSynchronizeBeforeShutdown"), full);
        let reprotect = newest(&pair, Scenario::ReverseReplication).await;
        let seed = task(&reprotect, "VmPrepareForReverseReplication");
        assert_eq!(seed.state == RunState::Skipped, full, "{seed:#?}");
        pair.commit().await;
        let job = pair.reprotect().await;
        pair.succeeds(job).await;
        pair.is_protected().await;
    }
}

/// F-109: the machine is off while all of it is copied, however long that takes.
#[tokio::test]
async fn a_full_copy_shows_its_figures_and_asks_nobody_while_it_goes_on() {
    let mut pair = Pair::committed().await;
    pair.fleet.host(TARGET).copy_steps = 1000;
    let job = pair.straight(SyncOption::ForSynchronization).await;
    pair.until("it is off", |view| view.live_at == LiveAt::Nowhere).await;

    for _ in 0..TURNS_MAX {
        pair.fleet.turn().await;
    }
    let view = pair.job(job).await;
    assert_eq!(view.state, RunState::InProgress);
    let message = task(&view, "VmShutdownVmOnPrimary").message.clone().unwrap();
    assert!(message.contains("bytes") && message.contains("s left"), "{message}");

    pair.fleet.control.job_cancel(pair.vault, job).await.unwrap();
    assert_eq!(pair.finish(job).await.state, RunState::Cancelled);
    assert!(matches!(pair.view().await.state.protection, Protection::Reprotecting { .. }));
    assert_eq!(pair.live(), ["web01"]);
    // Its watch was waiting and goes on.
    assert_eq!(newest(&pair, Scenario::SecondaryIrCompletion).await.state, RunState::InProgress);
}

/// F-109: of a machine that is replicated nothing is sent before it is off.
#[tokio::test]
async fn a_protected_machine_is_not_synchronized_beforehand_when_nobody_wants_it() {
    let mut pair = Pair::protected().await;
    let job = pair.straight(SyncOption::ForSynchronization).await;
    let view = pair.succeeds(job).await;

    assert_eq!(task(&view, "VmReverseReplication").state, RunState::Skipped);
    assert_eq!(task(&view, "VmSynchronizeBeforeShutdown").state, RunState::Skipped);
    let source = pair.source;
    assert!(pair.data() >= pair.fleet.host(source).machines["web01"].data);
}

/// F-098, F-110.
#[tokio::test]
async fn either_option_waits_for_a_word_when_asked_to_while_the_machine_runs_on() {
    for sync in BOTH {
        let mut pair = Pair::committed().await;
        let control = pair.fleet.control.clone();
        let spec = PlannedSpec { wait_to_complete: true, sync, ..PlannedSpec::default() };
        let job = control.item_planned_failover(pair.item, spec).await.unwrap();
        assert_eq!(pair.finish(job).await.state, RunState::Suspended);
        let before = pair.data();
        pair.restart().await;
        for _ in 0..6 {
            pair.fleet.turn().await;
        }
        assert!(pair.data() > before, "the machine runs on");

        pair.fleet.control.job_resume(pair.vault, job, JobAnswer::Retry).await.unwrap();
        pair.succeeds(job).await;
        let left = pair.fleet.host(TARGET).machines["web01"].data;
        assert!(pair.data() >= left);
    }
}

/// F-079: the reprotect that it began with is worth keeping.
#[tokio::test]
async fn a_cancel_before_the_failover_leaves_the_item_protected_the_other_way() {
    for sync in BOTH {
        for by_item in [true, false] {
            let mut pair = Pair::committed().await;
            let control = pair.fleet.control.clone();
            let job = pair.straight(sync).await;
            pair.fleet.turn().await;
            assert!(pair.view().await.allowed.contains(&Operation::CancelFailover));

            match by_item {
                true => assert_eq!(control.item_failover_cancel(pair.item).await.unwrap(), job),
                false => drop(control.job_cancel(pair.vault, job).await.unwrap()),
            }

            let view = pair.finish(job).await;
            assert_eq!(view.state, RunState::Cancelled);
            let message = task(&view, "VmReverseReplication").message.clone().unwrap();
            assert!(message.contains("goes on"), "{message}");
            is_reprotected(&mut pair).await;
        }
    }
}

#[tokio::test]
async fn a_reprotect_that_is_given_up_fails_the_planned_failover_with_the_reason() {
    for (sync, later) in [(BOTH[0], false), (BOTH[0], true), (BOTH[1], false)] {
        let mut pair = Pair::committed().await;
        let job = pair.straight(sync).await;
        let scenario = match later {
            true => {
                pair.fleet.host(TARGET).copy_steps = 1000;
                pair.until("it copies", |view| view.copy.is_some()).await;
                Scenario::SecondaryIrCompletion
            }
            false => Scenario::ReverseReplication,
        };
        let reprotect = newest(&pair, scenario).await.id;

        pair.fleet.control.job_cancel(pair.vault, reprotect).await.unwrap();

        let view = pair.finish(job).await;
        assert_eq!(view.state, RunState::Failed);
        assert_eq!(view.errors[0].code, Code::REPROTECT_GIVEN_UP.code);
        assert!(matches!(pair.view().await.state.protection, Protection::Committed { .. }));
        assert_eq!(pair.live().len(), 1);
    }
    let mut pair = Pair::committed().await;
    let source = pair.source;
    pair.fleet.host(source).temper = Temper::Dead;
    pair.until("silence is noticed", |view| !view.source_connected).await;
    let job = pair.straight(SyncOption::ForDownTime).await;
    let view = pair.finish(job).await;
    assert_eq!(view.state, RunState::Failed);
    assert_eq!(view.errors[0].code, Code::TARGET_AWAY.code, "it says what the reprotect says");
}

/// An unplanned failover has nothing to start from before the first point, or takes another one.
#[tokio::test]
async fn an_unplanned_failover_is_refused_while_the_planned_one_holds_the_item() {
    let mut pair = Pair::committed().await;
    let point = pair.points().await[0].id;
    let job = pair.straight(SyncOption::ForSynchronization).await;
    pair.until("it is off", |view| view.live_at == LiveAt::Nowhere).await;

    let retained = pair.retained(point).await.unwrap_err();
    let latest = pair.fleet.control.item_failover(pair.item, PointChoice::Latest, Shutdown::First);
    let latest = latest.await.unwrap_err();

    assert_eq!(retained.problem.code, Code::ITEM_BUSY.code);
    assert_eq!(latest.problem.code, Code::ITEM_BUSY.code);
    pair.succeeds(job).await;
}

/// F-111: home to a host that never had the machine.
#[tokio::test]
async fn a_planned_failover_may_go_to_another_host_with_either_option() {
    for sync in BOTH {
        let mut pair = Pair::committed().await;
        let other = pair.another_host().await;
        let control = pair.fleet.control.clone();
        let host = Some("kvm-b".to_owned());
        let spec = PlannedSpec { sync, host, ..PlannedSpec::default() };

        let job = control.item_planned_failover(pair.item, spec).await.unwrap();

        pair.succeeds(job).await;
        assert_eq!(pair.fleet.host(other).live(pair.item).len(), 1);
        assert_eq!(pair.live().len(), 1);
        assert_eq!(pair.view().await.live_at, LiveAt::Site(Site::Primary));
    }
}

/// F-108, F-109: what it costs is shown while nothing replicates the machine, and the job says
/// what was proposed.
#[tokio::test]
async fn both_options_are_estimated_until_the_machine_is_replicated() {
    let mut pair = Pair::failed_over().await;
    let early = pair.view().await.data_sync;
    pair.commit().await;
    let found = pair.view().await.data_sync.unwrap();
    assert_eq!(early, Some(found.clone()));
    assert_eq!(found.options.clone().map(|one| one.bytes >> 30), [1, 8]);
    assert_eq!(found.proposed, SyncOption::ForDownTime);

    let source = pair.source;
    pair.fleet.host(source).machines.remove("web01");
    pair.fleet.turn().await;
    let gone = pair.view().await.data_sync.unwrap();
    assert_eq!(gone.options.map(|one| one.bytes >> 30), [8, 8]);

    let job = pair.straight(SyncOption::ForSynchronization).await;
    assert_eq!(pair.job(job).await.comments, "ForSynchronization; proposed was ForDownTime");
    assert_eq!(pair.view().await.data_sync, None);
    pair.succeeds(job).await;
}
