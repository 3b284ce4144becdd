//! An item has one job at a time that watches: who starts another one waits until the former is
//! over, however late that ends.

use super::*;
use crate::jobs::{JobFilter, Scenario};
use crate::store;
use leeward_durable::Next;
use leeward_model::Policy;

/// Steps that a copy takes which goes on while something is looked at.
const LONG_COPY: u64 = 40;

impl Pair {
    /// A turn in which the job `held` is not looked at.
    async fn turn_without(&mut self, held: JobId) {
        self.fleet.step().await;
        let control = self.fleet.control.clone();
        let mut tx = control.store().read().await.unwrap();
        let jobs = store::jobs::unfinished(&mut tx).await.unwrap();
        drop(tx);
        control.item_reconcile(self.item).await.unwrap();
        for job in jobs.into_iter().filter(|job| *job != held) {
            while control.job_advance(job).await.unwrap() == Some(Next::Continue) {}
        }
    }

    /// Takes turns without `held` until the job is over, or waits for what is named.
    async fn goes_without(&mut self, held: JobId, job: JobId, waits_for: Option<JobId>) {
        for _ in 0..TURNS_MAX {
            let view = self.job(job).await;
            let mut messages = view.tasks.iter().filter_map(|task| task.message.clone());
            let name = waits_for.map(|job| job.to_string());
            let waits = name.is_some_and(|name| messages.any(|text| text.contains(&name)));
            if waits || (waits_for.is_none() && view.ended.is_some()) {
                return;
            }
            assert!(view.ended.is_none(), "it did not wait: {view:#?}");
            self.turn_without(held).await;
        }
        panic!("it does not come there: {:#?}", self.job(job).await);
    }

    async fn watches(&self) -> Vec<JobView> {
        let watch = [Scenario::Resynchronize, Scenario::SecondaryIrCompletion];
        let filter = JobFilter { scenarios: watch.to_vec(), ..JobFilter::default() };
        let jobs = self.fleet.control.job_list(self.vault, &filter).await.unwrap();
        jobs.into_iter().filter(|job| job.ended.is_none()).collect()
    }

    /// Failed over and committed out of a comparison whose job has not noticed.
    async fn watched() -> (Pair, JobId) {
        let mut pair = Pair::protected().await;
        let (source, item) = (pair.source, pair.item);
        pair.fleet.host(source).copy_steps = 1_000_000;
        pair.fleet.host(source).lose_change_map(item);
        let resyncs =
            |view: &ItemView| matches!(view.state.protection, Protection::Resynchronizing { .. });
        pair.until("the comparison", resyncs).await;
        pair.fleet.host(source).copy_steps = crate::testing::COPY_STEPS;
        let watch = pair.watches().await[0].id;
        let job = pair.failover(Shutdown::Leave).await;
        pair.goes_without(watch, job, None).await;
        let commit = pair.fleet.control.item_commit(item).await.unwrap();
        pair.goes_without(watch, commit, None).await;
        (pair, watch)
    }
}

/// F-131: two watches would be refused, and the reprotect would never end.
#[tokio::test]
async fn a_reprotect_waits_for_the_job_that_watched_the_former_direction() {
    let (mut pair, watch) = Pair::watched().await;
    pair.fleet.host(TARGET).copy_steps = LONG_COPY;

    let job = pair.reprotect().await;
    pair.goes_without(watch, job, Some(watch)).await;

    for _ in 0..8 {
        pair.turn_without(watch).await;
    }
    assert_eq!(pair.job(job).await.state, RunState::InProgress);
    let watches = pair.watches().await;
    assert_eq!(watches.iter().map(|job| job.id).collect::<Vec<_>>(), [watch]);
    pair.succeeds(job).await;
    assert!(pair.job(watch).await.ended.is_some());
    pair.is_protected().await;
    assert_eq!(pair.watches().await.len(), 0);
}

/// F-131: the first point of the other direction comes while it waits for that job: it was not
/// given up.
#[tokio::test]
async fn a_reprotect_that_waited_until_the_item_was_protected_says_so() {
    let (mut pair, watch) = Pair::watched().await;
    let job = pair.reprotect().await;
    pair.goes_without(watch, job, Some(watch)).await;
    for _ in 0..TURNS_MAX {
        if pair.view().await.state.protection == Protection::Protected {
            break;
        }
        pair.turn_without(watch).await;
    }

    pair.goes_without(watch, job, None).await;

    let view = pair.job(job).await;
    assert_eq!(view.state, RunState::Succeeded, "{view:#?}");
    let last = view.tasks.last().unwrap();
    assert_eq!(last.state, RunState::Skipped, "{last:?}");
    let message = last.message.clone().unwrap();
    assert!(message.contains("first recovery point"), "{message}");
}

/// F-084: the reprotect of before is not over when the machine has gone home already, as it waited
/// for a watch; the next one begins when it is.
#[tokio::test]
async fn an_auto_reverse_waits_for_the_reprotect_before_it() {
    let (mut pair, watch) = Pair::watched().await;
    let policy = Policy { auto_reverse_planned: true, ..Policy::default() };
    let spec = PolicySpec { policy, extra: serde_json::Value::Null };
    pair.fleet.control.policy_put(pair.vault, "gold", spec).await.unwrap();
    let former = pair.reprotect().await;
    pair.goes_without(watch, former, Some(watch)).await;
    for _ in 0..TURNS_MAX {
        if pair.view().await.state.protection == Protection::Protected {
            break;
        }
        pair.turn_without(former).await;
    }

    let job = pair.planned().await;
    pair.goes_without(former, job, Some(former)).await;

    for _ in 0..8 {
        pair.turn_without(former).await;
    }
    assert_eq!(pair.job(job).await.state, RunState::InProgress);
    assert_eq!(pair.job(former).await.state, RunState::InProgress);
    assert_eq!(pair.fleet.host(TARGET).live(pair.item), [] as [String; 0], "it has gone home");
    pair.succeeds(job).await;
    assert!(pair.job(former).await.ended.is_some());
    pair.is_protected().await;
    assert_eq!(pair.view().await.live_at, LiveAt::Site(Site::Primary));
}

/// F-084: the reprotect that an auto reverse begins waits as any other does.
#[tokio::test]
async fn a_reprotect_of_an_auto_reverse_waits_for_a_watch() {
    let (mut pair, watch) = Pair::watched().await;
    let policy = Policy { auto_reverse_planned: true, ..Policy::default() };
    let spec = PolicySpec { policy, extra: serde_json::Value::Null };
    pair.fleet.control.policy_put(pair.vault, "gold", spec).await.unwrap();
    let former = pair.reprotect().await;
    for _ in 0..TURNS_MAX {
        if pair.view().await.state.protection == Protection::Protected {
            break;
        }
        pair.turn_without(watch).await;
    }
    let source = pair.source;
    pair.fleet.host(source).copy_steps = LONG_COPY;

    let job = pair.planned().await;
    pair.goes_without(watch, job, None).await;
    let filter =
        JobFilter { scenarios: vec![Scenario::ReverseReplication], ..JobFilter::default() };
    let jobs = pair.fleet.control.job_list(pair.vault, &filter).await.unwrap();
    let reverse = jobs.iter().find(|job| job.id != former).expect("it goes on by itself").id;
    pair.goes_without(watch, reverse, Some(watch)).await;

    for _ in 0..8 {
        pair.turn_without(watch).await;
    }
    assert_eq!(pair.job(reverse).await.state, RunState::InProgress);
    pair.succeeds(reverse).await;
    pair.is_protected().await;
}
