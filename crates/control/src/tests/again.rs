//! A reprotect that was given up and is asked for again: it goes on with what the first one has
//! brought, as long as that is worth something. What is sent is the hosts' business.

use super::*;
use crate::plan::{End, HalfOf};
use leeward_model::{Lsn, Position};

impl Pair {
    /// The end of the primary site.
    async fn primary(&self) -> End {
        let mut tx = self.fleet.control.store().read().await.unwrap();
        let row = crate::store::items::find(&mut tx, self.item).await.unwrap().unwrap();
        row.plan.primary
    }

    /// A reprotect was given up while the live machine was copied, which had come to this place.
    async fn half_copied() -> (Pair, Position) {
        let mut pair = Pair::committed().await;
        pair.fleet.host(TARGET).copy_steps = 1000;
        let job = pair.reprotect().await;
        pair.until("it copies", |view| view.copy.is_some()).await;
        let branch = pair.view().await.branch;
        let lsn = Lsn(branch.parent.unwrap().lsn.0 + 7);
        let place = Position { timeline: branch.timeline, lsn };
        let (source, item) = (pair.source, pair.item);
        pair.fleet.host(source).copied(item, place);
        pair.is_given_up(job).await;
        (pair, place)
    }

    /// Cancels what is left of a reprotect.
    async fn is_given_up(&mut self, job: JobId) {
        let filter = crate::jobs::JobFilter::default();
        let control = self.fleet.control.clone();
        let running = control.job_list(self.vault, &filter).await.unwrap();
        for running in running.iter().filter(|job| job.ended.is_none()) {
            control.job_cancel(self.vault, running.id).await.unwrap();
        }
        self.finish(job).await;
        let given_up =
            |view: &ItemView| matches!(view.state.protection, Protection::Committed { .. });
        self.until("it is given up", given_up).await;
    }

    /// Reprotects to the end; says whether the old disks were read, and what was built on.
    async fn again(&mut self) -> (bool, Option<Position>) {
        self.fleet.host(TARGET).copy_steps = crate::testing::COPY_STEPS;
        let job = self.reprotect().await;
        let view = self.succeeds(job).await;
        let seed = view.tasks.iter().find(|task| task.name == "VmPrepareForReverseReplication");
        let read = seed.unwrap().state == RunState::Succeeded;
        let parent = self.view().await.branch.parent;
        self.is_protected().await;
        assert_eq!(self.primary().await.half, None, "it is whole now");
        (read, parent)
    }
}

/// F-079, F-112.
#[tokio::test]
async fn a_reprotect_that_is_asked_for_again_goes_on_with_the_copy_of_the_first_one() {
    let (mut pair, place) = Pair::half_copied().await;
    let end = pair.primary().await;
    assert_eq!(end.given_up, [], "its store keeps what is there");
    assert_eq!(end.half.map(|half| half.of), Some(HalfOf::LiveMachine));

    let (read, parent) = pair.again().await;

    assert_eq!((read, parent), (false, Some(place)));
}

/// F-079: also when it is given up again before anything more came.
#[tokio::test]
async fn a_reprotect_that_is_given_up_again_and_again_loses_nothing_that_came() {
    let (mut pair, place) = Pair::half_copied().await;
    for turns in [0, 1, 2, 3, 4, 6, 8] {
        pair.fleet.host(TARGET).copy_steps = 1000;
        let job = pair.reprotect().await;
        for _ in 0..turns {
            pair.fleet.turn().await;
        }
        pair.is_given_up(job).await;
    }

    assert_eq!(pair.again().await, (false, Some(place)));
}

/// Decision 16: what the old machine wrote on its own is sealed before anything is built on it.
#[tokio::test]
async fn old_disks_that_were_written_after_they_were_sealed_are_sealed_again() {
    let (mut pair, place) = Pair::half_copied().await;
    let source = pair.source;
    pair.fleet.host(source).machines.get_mut("web01").unwrap().runs = true;
    pair.fleet.turn().await;

    let (read, parent) = pair.again().await;

    assert!(read && parent.is_some_and(|parent| parent != place), "{parent:?}");
}

/// F-079: a seed that was begun is gone on with.
#[tokio::test]
async fn a_reprotect_that_was_given_up_while_old_disks_were_read_reads_on() {
    let mut pair = Pair::committed().await;
    let source = pair.source;
    pair.fleet.host(source).seed_problem = Some(Code::STORE_NO_SPACE.problem("no room"));
    let job = pair.reprotect().await;
    pair.until("the seed", |view| view.ends[0].run == RunView::Seed).await;
    pair.is_given_up(job).await;
    let half = pair.primary().await.half.unwrap();
    assert_eq!(half.of, HalfOf::OldDisks);
    let place = Position { timeline: half.branch.timeline, lsn: Lsn(9) };
    let item = pair.item;
    pair.fleet.host(source).copied(item, place);

    let job = pair.reprotect().await;
    pair.until("the seed", |view| view.ends[0].run == RunView::Seed).await;

    let run = pair.primary().await.run;
    let base = match run {
        crate::plan::RunPlan::Seed { base, .. } => base,
        other => panic!("{other:?}"),
    };
    assert_eq!(base, Some(place));
    pair.fleet.host(source).seed_problem = None;
    pair.succeeds(job).await;
    pair.is_protected().await;
}

/// F-079: a host that does not say how far it came costs time, and nothing else.
#[tokio::test]
async fn a_half_made_copy_of_which_nobody_knows_is_made_anew() {
    let (mut pair, place) = Pair::half_copied().await;
    let (source, item) = (pair.source, pair.item);
    let timeline = crate::clock::new_id(&*pair.fleet.draw);
    pair.fleet.host(source).copied(item, Position { timeline, ..place });

    let (read, parent) = pair.again().await;

    assert!(read && parent.is_some_and(|parent| parent != place), "{parent:?}");
}

/// F-079: nothing goes on with it once the machine is another one, so its store need not keep it.
#[tokio::test]
async fn a_half_made_copy_is_let_go_when_the_machine_fails_over_from_a_point() {
    let (mut pair, place) = Pair::half_copied().await;
    let points = pair.points().await;
    let point = points.iter().find(|point| point.held_at == Site::Recovery).unwrap().id;

    let failover = pair.retained(point).await.unwrap();

    let end = pair.primary().await;
    assert_eq!((end.half, end.given_up), (None, vec![place.timeline]));
    pair.finish(failover).await;
}

/// F-079: it does not lie in the store for ever.
#[tokio::test]
async fn a_half_made_copy_is_let_go_when_nobody_goes_on_with_it_for_long() {
    let (mut pair, place) = Pair::half_copied().await;
    let keep_ms = leeward_model::Policy::default().keep_after_commit_seconds * 1000;
    let keep_ms = i64::try_from(keep_ms).unwrap();
    pair.fleet.clock.skew_wall(keep_ms - 3_600_000);
    pair.fleet.turn().await;
    assert!(pair.primary().await.half.is_some());

    pair.fleet.clock.skew_wall(keep_ms + 3_600_000);
    pair.fleet.turn().await;

    let end = pair.primary().await;
    assert_eq!((end.half, end.given_up), (None, vec![place.timeline]));
}

/// F-111: it stays while the item may come back to that host, and no longer.
#[tokio::test]
async fn a_half_made_copy_on_a_host_that_was_left_goes_once_that_on_the_other_host_is_whole() {
    let (mut pair, place) = Pair::half_copied().await;
    let (source, item, control) = (pair.source, pair.item, pair.fleet.control.clone());
    pair.another_host().await;
    pair.fleet.host(TARGET).copy_steps = 40;
    let spec = ReprotectSpec { host: Some("kvm-b".to_owned()), ..ReprotectSpec::default() };
    let job = control.item_reprotect(item, spec).await.unwrap();
    pair.until("it copies", |view| view.copy.is_some()).await;
    for _ in 0..4 {
        pair.fleet.turn().await;
    }
    assert_eq!(pair.fleet.host(source).retired(item), [], "it may yet be wanted");

    pair.succeeds(job).await;
    pair.is_protected().await;
    pair.fleet.turn().await;
    pair.fleet.turn().await;

    assert_eq!(pair.fleet.host(source).retired(item), [place.timeline]);
}

/// F-111, F-079: nobody goes on with it for as long as points are kept.
#[tokio::test]
async fn a_half_made_copy_on_a_host_that_was_left_goes_after_the_days_of_kept_points() {
    let (mut pair, place) = Pair::half_copied().await;
    let (source, item, control) = (pair.source, pair.item, pair.fleet.control.clone());
    pair.another_host().await;
    pair.fleet.host(TARGET).copy_steps = 1000;
    let spec = ReprotectSpec { host: Some("kvm-b".to_owned()), ..ReprotectSpec::default() };
    let job = control.item_reprotect(item, spec).await.unwrap();
    pair.until("it copies", |view| view.copy.is_some()).await;
    pair.is_given_up(job).await;
    let keep_ms = leeward_model::Policy::default().keep_after_commit_seconds * 1000;
    pair.fleet.clock.skew_wall(i64::try_from(keep_ms).unwrap() - 3_600_000);
    pair.fleet.turn().await;
    assert_eq!(pair.fleet.host(source).retired(item), []);

    pair.fleet.clock.skew_wall(i64::try_from(keep_ms).unwrap() + 3_600_000);
    pair.fleet.turn().await;
    pair.fleet.turn().await;

    assert_eq!(pair.fleet.host(source).retired(item), [place.timeline]);
    assert_eq!(pair.primary().await.half, None);
}
