//! The whole life of an item, step by step, as an operator sees it.

use super::*;

/// F-096, F-097, F-091, F-070, F-093, F-100, F-101, F-102.
#[tokio::test]
async fn a_machine_is_protected_tested_failed_over_moved_between_points_and_committed() {
    let mut pair = Pair::joined().await;
    let enable = pair.enable().await;
    pair.succeeds(enable).await;
    pair.until("protected", |view| view.state.protection == Protection::Protected).await;
    assert_eq!(pair.view().await.live_at, LiveAt::Site(Site::Primary));

    let control = pair.fleet.control.clone();
    let test = control.item_test_failover(pair.item, PointChoice::Latest).await.unwrap();
    pair.succeeds(test).await;
    let view = pair.view().await;
    assert!(matches!(view.state.test, TestState::Active { .. }));
    assert!(view.allowed.contains(&Operation::TestFailoverCleanup));
    assert_eq!(pair.live(), ["web01"]);
    let cleanup = control.item_test_cleanup(pair.item, "looks good").await.unwrap();
    assert_eq!(pair.succeeds(cleanup).await.comments, "looks good");
    assert_eq!(pair.view().await.state.test, TestState::None);
    assert!(pair.view().await.instances.is_empty());

    let failover = pair.failover(Shutdown::First).await;
    pair.succeeds(failover).await;
    let view = pair.view().await;
    assert!(matches!(view.state.protection, Protection::FailedOver { .. }));
    assert!(matches!(view.state.source, SourceState::ConfirmedOff { .. }));
    assert_eq!(view.live_at, LiveAt::Site(Site::Recovery));
    assert_eq!(view.health, []);
    assert_eq!(pair.live().len(), 1);

    let points = pair.points().await;
    let earlier = points[3].id;
    let change = pair.change_point(earlier).await.unwrap();
    pair.succeeds(change).await;
    let kept = pair.points().await.into_iter().find(|p| p.name.starts_with("before-change-"));
    let back = pair.change_point(kept.unwrap().id).await.unwrap();
    pair.succeeds(back).await;
    assert_eq!(pair.live().len(), 1);

    let commit = control.item_commit(pair.item).await.unwrap();
    pair.succeeds(commit).await;
    assert!(matches!(pair.view().await.state.protection, Protection::Committed { .. }));
    assert!(pair.points().await.len() > 3, "points outlive the commit");
}

/// F-079: cancelled in every phase, also after it has finished.
#[tokio::test]
async fn a_finished_failover_is_taken_back_and_replication_resumes() {
    let mut pair = Pair::failed_over().await;
    let control = pair.fleet.control.clone();

    let cancel = control.item_failover_cancel(pair.item).await.unwrap();
    pair.succeeds(cancel).await;
    pair.until("protected again", |view| view.state.protection == Protection::Protected).await;

    assert_eq!(pair.live(), ["web01"]);
    assert!(pair.points().await.iter().any(|point| point.name.starts_with("abandoned-")));
    let view = pair.view().await;
    assert_eq!(view.newest.unwrap().position.timeline, view.branch.timeline);
    assert!(view.branch.parent.is_some());
}

/// F-070: the failover goes on without the source and says what that means.
#[tokio::test]
async fn a_dead_source_host_does_not_hold_up_a_failover_and_its_machine_is_fenced_when_back() {
    let mut pair = Pair::protected().await;
    let source = pair.source;
    pair.fleet.host(source).temper = Temper::CutOff;
    pair.until("silence is noticed", |view| !view.source_connected).await;

    let job = pair.failover(Shutdown::First).await;
    let view = pair.finish(job).await;

    assert_eq!(view.state, RunState::SucceededWithWarning);
    assert_eq!(view.tasks[1].state, RunState::Skipped);
    let item = pair.view().await;
    assert_eq!(item.state.source, SourceState::Unknown);
    assert_eq!(item.live_at, LiveAt::Unknown);
    assert_eq!(item.health[0].problem.code, Code::BOTH_MAY_BE_LIVE.code);
    assert_eq!(pair.live().len(), 2, "the machine that was cut off runs on");

    pair.fleet.host(source).temper = Temper::Obeys;
    pair.until("the stale machine is fenced", |view| {
        matches!(view.state.source, SourceState::ConfirmedOff { .. })
    })
    .await;
    assert_eq!(pair.live().len(), 1);
    let item = pair.view().await;
    assert!(item.divergent.is_some());
    assert!(!item.health.iter().any(|e| e.problem.code == Code::BOTH_MAY_BE_LIVE.code));
}

/// F-070.
#[tokio::test]
async fn a_guest_that_ignores_the_shutdown_is_stopped_before_the_target_starts() {
    let mut pair = Pair::protected().await;
    let source = pair.source;
    pair.fleet.host(source).temper = Temper::GuestIgnoresShutdown;

    let job = pair.failover(Shutdown::First).await;
    for _ in 0..TURNS_MAX {
        pair.fleet.turn().await;
        assert!(pair.live().len() <= 1, "two machines run");
        if pair.job(job).await.ended.is_some() {
            break;
        }
    }

    let view = pair.job(job).await;
    assert_eq!(view.state, RunState::SucceededWithWarning);
    assert_eq!(view.errors[0].code, Code::SHUTDOWN_FAILED.code);
    assert!(matches!(pair.view().await.state.source, SourceState::ConfirmedOff { .. }));
}

#[tokio::test]
async fn a_lost_change_map_starts_a_resynchronization_that_ends_by_itself() {
    let mut pair = Pair::protected().await;
    let (source, item) = (pair.source, pair.item);

    pair.fleet.host(source).lose_change_map(item);
    pair.until("resynchronizing", |view| {
        matches!(view.state.protection, Protection::Resynchronizing { .. })
    })
    .await;
    pair.until("protected", |view| view.state.protection == Protection::Protected).await;

    let jobs = pair.fleet.control.job_list(pair.vault, &crate::jobs::JobFilter::default()).await;
    let jobs = jobs.unwrap();
    assert!(jobs.iter().any(|job| job.scenario == crate::jobs::Scenario::Resynchronize));
}

#[tokio::test]
async fn protection_ends_with_or_without_its_points() {
    for keep in [KeepPoints::Keep, KeepPoints::Delete] {
        let mut pair = Pair::protected().await;
        let control = pair.fleet.control.clone();

        let job = control.item_disable(pair.item, keep, DisableReason::Normal).await.unwrap();
        pair.succeeds(job).await;

        let gone = control.item_find(pair.item).await.unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NotFound);
        pair.fleet.turn().await;
        pair.fleet.turn().await;
        let left = pair.fleet.host(TARGET).items.len();
        assert_eq!(left, usize::from(keep == KeepPoints::Keep));
        let again = pair.enable().await;
        pair.succeeds(again).await;
    }
}

/// F-079: the recovery site dies in the middle of a failover; production comes back without it.
#[tokio::test]
async fn a_cancel_starts_the_source_again_also_when_the_target_has_died() {
    for turns in 1..8 {
        let mut pair = Pair::protected().await;
        let job = pair.failover(Shutdown::First).await;
        for _ in 0..turns {
            pair.fleet.turn().await;
        }
        let view = pair.view().await;
        if !matches!(view.state.protection, Protection::FailingOver { .. })
            || view
                .instances
                .iter()
                .any(|made| made.wanted == leeward_wire::message::Stage::Running)
        {
            break;
        }
        pair.fleet.host(TARGET).temper = Temper::Dead;
        pair.fleet.control.job_cancel(pair.vault, job).await.unwrap();

        assert_eq!(pair.finish(job).await.state, RunState::Cancelled, "after {turns} turns");
        assert_eq!(pair.live(), ["web01"]);
        pair.fleet.host(TARGET).temper = Temper::Obeys;
        pair.until("protected", |v| v.state.protection == Protection::Protected).await;
        let point = pair.view().await.newest.map(|newest| newest.point);
        let newer =
            |v: &ItemView| v.newest.is_some() && v.newest.as_ref().map(|n| n.point) != point;
        pair.until("a new point", newer).await;
        pair.until("protected", |v| v.state.protection == Protection::Protected).await;
        pair.until("no machine is left", |view| view.instances.is_empty()).await;
        assert_eq!(pair.live(), ["web01"]);
    }
}

#[tokio::test]
async fn a_source_that_is_left_alone_runs_until_the_target_is_about_to_start() {
    let mut pair = Pair::protected().await;

    let job = pair.failover(Shutdown::Leave).await;
    for _ in 0..TURNS_MAX {
        pair.fleet.turn().await;
        assert!(pair.live().len() <= 1, "two machines run");
        if pair.job(job).await.ended.is_some() {
            break;
        }
    }

    let view = pair.job(job).await;
    assert_eq!(view.state, RunState::Succeeded);
    assert_eq!(view.tasks[1].state, RunState::Skipped);
}

/// F-070.
#[tokio::test]
async fn a_source_host_that_dies_while_it_shuts_the_guest_down_does_not_hold_up_the_failover() {
    let mut pair = Pair::protected().await;
    let source = pair.source;
    let job = pair.failover(Shutdown::First).await;
    pair.fleet.turn().await;
    pair.fleet.host(source).temper = Temper::Dead;

    let view = pair.finish(job).await;

    assert_eq!(view.state, RunState::SucceededWithWarning);
    assert_eq!(view.errors[0].code, Code::SOURCE_AWAY.code);
    assert_eq!(pair.live().len(), 1);
    assert_eq!(pair.view().await.state.active, Site::Recovery);
}

#[tokio::test]
async fn a_host_that_has_booted_anew_gets_new_permits_and_the_machines_run_again() {
    let mut pair = Pair::failed_over().await;
    let source = pair.source;

    pair.fleet.host(TARGET).reboot();
    pair.fleet.host(source).reboot();
    assert!(pair.live().is_empty());
    for _ in 0..4 {
        pair.fleet.turn().await;
    }

    assert_eq!(pair.live().len(), 1);
    assert_eq!(pair.view().await.live_at, LiveAt::Site(Site::Recovery));
}
