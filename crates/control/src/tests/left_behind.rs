//! What ends protection while a machine that was left may still run, and names that others took.

use super::*;
use crate::jobs::{JobAnswer, TaskView};

/// Failed over with the source host cut off: its machine runs on, and nobody could stop it.
async fn unsure() -> Pair {
    let mut pair = Pair::protected().await;
    let source = pair.source;
    pair.fleet.host(source).temper = Temper::CutOff;
    pair.until("silence is noticed", |view| !view.source_connected).await;
    let job = pair.failover(Shutdown::First).await;
    assert_eq!(pair.finish(job).await.state, RunState::SucceededWithWarning);
    assert_eq!(pair.live().len(), 2);
    pair
}

async fn ends(pair: &Pair, reason: DisableReason) -> JobId {
    pair.fleet.control.item_disable(pair.item, KeepPoints::Keep, reason).await.unwrap()
}

async fn asks(pair: &mut Pair, job: JobId) {
    let view = pair.finish(job).await;
    assert_eq!(view.state, RunState::Suspended, "{view:#?}");
    let question = view.question.unwrap();
    assert!(question.contains("host kvm-a") && question.contains("go-on"), "{question}");
    assert!(matches!(pair.view().await.state.protection, Protection::FailedOver { .. }));
}

fn waits(view: &JobView) -> &TaskView {
    view.tasks.iter().find(|task| task.name == "VmOldMachineOff").unwrap()
}

const REASONS: [DisableReason; 2] = [DisableReason::Normal, DisableReason::MigrationComplete];

/// F-005. Found by seed 23.
#[tokio::test]
async fn protection_ends_by_itself_once_the_host_that_was_left_has_stopped_the_old_machine() {
    for reason in REASONS {
        let mut pair = unsure().await;
        let job = ends(&pair, reason).await;
        asks(&mut pair, job).await;
        pair.restart().await;
        asks(&mut pair, job).await;

        let source = pair.source;
        pair.fleet.host(source).temper = Temper::Obeys;
        pair.fleet.turn().await;
        pair.fleet.until(TURNS_MAX, "the job ends", ended(pair.vault, job)).await;

        let view = pair.job(job).await;
        assert_eq!((view.state, waits(&view).state), (RunState::Succeeded, RunState::Succeeded));
        pair.fleet.turn().await;
        assert!(!pair.fleet.host(source).machines["web01"].runs, "it was fenced first");
        assert!(pair.fleet.host(TARGET).machines["web01"].runs);
    }
}

fn ended(vault: VaultId, job: JobId) -> impl AsyncFn(&Fleet) -> bool {
    async move |fleet| fleet.control.job_get(vault, job).await.unwrap().ended.is_some()
}

#[tokio::test]
async fn protection_ends_although_the_old_machine_may_run_only_when_a_person_insists() {
    let answers: [&[JobAnswer]; 2] =
        [&[JobAnswer::Retry, JobAnswer::Retry], &[JobAnswer::Reply("go-on".to_owned())]];
    for (reason, answers) in REASONS.into_iter().zip(answers) {
        let mut pair = unsure().await;
        let job = ends(&pair, reason).await;
        for answer in answers {
            asks(&mut pair, job).await;
            pair.fleet.control.job_resume(pair.vault, job, answer.clone()).await.unwrap();
            pair.fleet.turn().await;
        }

        let view = pair.finish(job).await;
        assert_eq!(view.state, RunState::SucceededWithWarning);
        let problem = waits(&view).problem.as_ref().unwrap();
        assert_eq!(problem.code, Code::BOTH_MAY_BE_LIVE.code);
        assert_eq!(pair.fleet.control.item_list(pair.vault, None).await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn a_cancel_leaves_protection_as_it_is_and_the_old_machine_fenced() {
    for reason in REASONS {
        let mut pair = unsure().await;
        let job = ends(&pair, reason).await;
        asks(&mut pair, job).await;

        pair.fleet.control.job_cancel(pair.vault, job).await.unwrap();

        assert_eq!(pair.finish(job).await.state, RunState::Cancelled);
        let source = pair.source;
        pair.fleet.host(source).temper = Temper::Obeys;
        pair.until("it is fenced", |view| view.live_at == LiveAt::Site(Site::Recovery)).await;
        assert_eq!(pair.live().len(), 1);
        let job = ends(&pair, reason).await;
        pair.succeeds(job).await;
    }
}

/// F-111: the host that was left is no end any more.
#[tokio::test]
async fn a_machine_on_a_host_that_was_left_for_another_is_waited_for_as_well() {
    let mut pair = unsure().await;
    pair.commit().await;
    pair.another_host().await;
    let control = pair.fleet.control.clone();
    let spec = ReprotectSpec { host: Some("kvm-b".to_owned()), ..ReprotectSpec::default() };
    let job = control.item_reprotect(pair.item, spec).await.unwrap();
    pair.succeeds(job).await;
    pair.is_protected().await;

    let job = ends(&pair, DisableReason::Normal).await;
    let view = pair.finish(job).await;
    assert_eq!(view.state, RunState::Suspended, "{view:#?}");
    assert!(view.question.unwrap().contains("host kvm-a"));
    assert_eq!(pair.view().await.state.protection, Protection::Protected);
    let source = pair.source;
    pair.fleet.host(source).temper = Temper::Obeys;
    pair.fleet.turn().await;
    pair.fleet.until(TURNS_MAX, "the job ends", ended(pair.vault, job)).await;

    assert_eq!(pair.job(job).await.state, RunState::Succeeded);
    assert!(!pair.fleet.host(source).machines["web01"].runs);
}

/// Found by seed 1798: the name was free when the item was enabled.
#[tokio::test]
async fn a_name_that_was_taken_since_is_not_waited_for() {
    for early in [true, false] {
        let mut pair = Pair::protected().await;
        let mut job = None;
        if !early {
            job = Some(pair.failover(Shutdown::First).await);
            pair.until("it is made", |view| !view.instances.is_empty()).await;
        }
        pair.fleet.host(TARGET).own_machine("web01");
        pair.fleet.turn().await;
        let job = match job {
            Some(job) => job,
            None => pair.failover(Shutdown::First).await,
        };

        pair.succeeds(job).await;

        let name = pair.view().await.ends[1].machine.clone();
        assert_eq!(name, format!("web01-{}", &pair.item.to_string()[..8]));
        assert_eq!(pair.live().len(), 1);
        pair.commit().await;
        let job = pair.reprotect().await;
        pair.succeeds(job).await;
        pair.is_protected().await;
        assert_eq!(pair.live(), [name]);
    }
}

/// Found by seed 69: the machine was left running, and its host is slow to stop it.
#[tokio::test]
async fn a_failover_back_to_a_machine_that_was_left_running_waits_until_it_is_stopped() {
    let mut pair = Pair::reversed().await;
    pair.fleet.host(TARGET).temper = Temper::CutOff;
    pair.until("silence is noticed", |view| !view.target_connected).await;
    let home = pair.failover(Shutdown::Leave).await;
    assert_eq!(pair.finish(home).await.state, RunState::SucceededWithWarning);
    pair.commit().await;
    assert_eq!(pair.live().len(), 2);
    let host = pair.fleet.host(TARGET);
    (host.temper, host.busy) = (Temper::Obeys, true);
    pair.until("it is back", |view| view.target_connected).await;
    let points = pair.points().await;
    let there = points.iter().find(|point| point.held_at == Site::Recovery).unwrap().id;

    let job = pair.retained(there).await.unwrap();
    for _ in 0..20 {
        pair.fleet.turn().await;
    }
    let waiting = pair.job(job).await;
    let says = |text: &String| text == "host recovery-host to stop its old machine";
    assert!(waiting.tasks.iter().any(|t| t.message.as_ref().is_some_and(says)), "{waiting:#?}");
    pair.fleet.host(TARGET).busy = false;

    pair.succeeds(job).await;
    assert_eq!(pair.view().await.live_at, LiveAt::Site(Site::Recovery));
    assert_eq!(pair.live().len(), 1);
}
