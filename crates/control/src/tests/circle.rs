//! Out and home again, and once more: nothing is lost and the end is the beginning.

use super::*;

/// One failover, commit and reprotect. Nothing that was written may be missing afterwards.
async fn half_a_circle(pair: &mut Pair, planned: bool) {
    let from = pair.view().await.state.active;
    let job = match planned {
        true => pair.planned().await,
        false => pair.failover(Shutdown::First).await,
    };
    pair.succeeds(job).await;
    let left = pair.host_at(from).await.machines["web01"].data;
    assert!(pair.data() >= left, "{} of {left} writes are there", pair.data());
    let view = pair.view().await;
    assert_ne!(view.state.active, from);
    assert_eq!(view.live_at, LiveAt::Site(view.state.active));
    assert_eq!(view.health, []);
    pair.commit().await;
    assert!(pair.view().await.allowed.contains(&Operation::ReverseReplicate));
    let job = pair.reprotect().await;
    pair.succeeds(job).await;
    pair.is_protected().await;
    assert_eq!(pair.live(), ["web01"]);
}

/// F-086, F-105, F-131.
#[tokio::test]
async fn a_machine_goes_out_and_comes_home_by_every_sort_of_failover() {
    let mut pair = Pair::protected().await;
    for (out, home) in [(true, true), (false, true), (true, false), (false, false)] {
        let before = pair.data();
        half_a_circle(&mut pair, out).await;
        let view = pair.view().await;
        assert_eq!(view.ends.clone().map(|end| end.run), [RunView::Fenced, RunView::Replicate]);
        assert!(view.rpo_seconds.is_some(), "points are due in this direction too");
        half_a_circle(&mut pair, home).await;

        let view = pair.view().await;
        assert_eq!(view.live_at, LiveAt::Site(Site::Primary));
        assert_eq!(view.ends.clone().map(|end| end.run), [RunView::Replicate, RunView::Fenced]);
        assert_eq!(view.instances, [], "there is only the owner's machine");
        assert!(pair.data() > before);
    }
}

/// F-086.
#[tokio::test]
async fn a_hundred_planned_failovers_back_and_forth_lose_nothing() {
    let mut pair = Pair::protected().await;
    for _ in 0..50 {
        half_a_circle(&mut pair, true).await;
        half_a_circle(&mut pair, true).await;
    }
    assert_eq!(pair.view().await.live_at, LiveAt::Site(Site::Primary));
}

#[tokio::test]
async fn points_of_both_stores_are_listed_by_time_and_each_names_its_site() {
    let mut pair = Pair::reversed().await;
    pair.fleet.turn().await;

    let all = pair.points().await;
    let sites: std::collections::BTreeSet<_> =
        all.iter().map(|point| format!("{:?}", point.held_at)).collect();
    assert_eq!(sites.len(), 2);
    assert!(all.windows(2).all(|pair| pair[0].received_at >= pair[1].received_at));
    let control = pair.fleet.control.clone();
    let page = pair.fleet.during(control.point_list(pair.item, 2, 3)).await.unwrap();
    let ids = |points: &[leeward_model::PointInfo]| points.iter().map(|p| p.id).collect::<Vec<_>>();
    assert_eq!(ids(&page.points), ids(&all[2..5]));
    assert_eq!(page.total, all.len() as u64);

    let source = pair.source;
    pair.fleet.host(source).temper = Temper::CutOff;
    pair.until("silence is noticed", |view| !view.source_connected).await;
    let half = pair.fleet.during(control.point_list(pair.item, 0, 1000)).await.unwrap();
    assert!(half.points.iter().all(|point| point.held_at == Site::Recovery));
    assert_eq!(half.missing, ["kvm-a"]);
}

/// F-084.
#[tokio::test]
async fn a_policy_may_protect_the_machine_in_reverse_by_itself_and_commit_stays_possible() {
    let mut pair = Pair::protected().await;
    let policy = leeward_model::Policy { auto_reverse_planned: true, ..Default::default() };
    let spec = PolicySpec { policy, ..PolicySpec::default() };
    pair.fleet.control.policy_put(pair.vault, "gold", spec).await.unwrap();

    let job = pair.planned().await;
    pair.succeeds(job).await;
    pair.is_protected().await;

    let view = pair.view().await;
    assert_eq!(view.live_at, LiveAt::Site(Site::Recovery));
    assert!(view.allowed.contains(&Operation::Commit));
    pair.commit().await;
    let view = pair.view().await;
    assert_eq!(view.state.protection, Protection::Protected);
    assert_eq!(view.state.commit, leeward_model::Commit::Done);
}
