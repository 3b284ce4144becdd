//! Rules that hold at all times: who is refused what, and what figures may never say.

use super::*;
use crate::testing::STEP_MS;

#[tokio::test]
async fn a_second_job_on_a_busy_item_is_refused_with_the_id_of_the_first() {
    let mut pair = Pair::protected().await;
    let first = pair.failover(Shutdown::First).await;
    let control = pair.fleet.control.clone();

    let second = control.item_failover(pair.item, PointChoice::Latest, Shutdown::First).await;
    let disable = control.item_disable(pair.item, KeepPoints::Keep, DisableReason::Normal).await;

    for refused in [second.unwrap_err(), disable.unwrap_err()] {
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert_eq!(refused.problem.code, Code::ITEM_BUSY.code);
        assert!(refused.problem.what.contains(&first.to_string()));
    }
    pair.succeeds(first).await;
}

#[tokio::test]
async fn a_running_test_failover_does_not_hold_up_a_failover() {
    let mut pair = Pair::protected().await;
    let control = pair.fleet.control.clone();
    let test = control.item_test_failover(pair.item, PointChoice::Latest).await.unwrap();
    pair.fleet.turn().await;

    let failover = pair.failover(Shutdown::First).await;
    pair.succeeds(failover).await;
    pair.succeeds(test).await;

    let cleanup = control.item_test_cleanup(pair.item, "").await.unwrap();
    pair.succeeds(cleanup).await;
    assert_eq!(pair.live().len(), 1);
}

#[tokio::test]
async fn a_registration_key_serves_once_and_not_after_its_time() {
    let pair = Pair::joined().await;
    let control = &pair.fleet.control;
    let ttl = Duration::from_secs(60);
    let join = || JoinRequest { name: "kvm-b".to_owned(), data_address: None };
    let key = control.registration_key_create(pair.vault, "site-a", ttl, "ab12").await.unwrap();
    assert!(key.starts_with("lwk1.ab12."));

    let wrong = control.registration_key_redeem("lwk1.ab12.00", join()).await.unwrap_err();
    control.registration_key_redeem(&key, join()).await.unwrap();
    let reused = control.registration_key_redeem(&key, join()).await.unwrap_err();
    let late = control.registration_key_create(pair.vault, "site-a", ttl, "ab12").await.unwrap();
    pair.fleet.clock.advance(60_000);
    let expired = control.registration_key_redeem(&late, join()).await.unwrap_err();

    for refused in [wrong, reused, expired] {
        assert_eq!(refused.kind, ErrorKind::Forbidden);
        assert_eq!(refused.problem.code, Code::WRONG_KEY.code);
    }
}

#[tokio::test]
async fn the_rpo_grows_while_the_source_is_away_and_ignores_the_wall_clock() {
    let mut pair = Pair::protected().await;
    let source = pair.source;
    pair.fleet.host(source).temper = Temper::CutOff;
    pair.fleet.clock.skew_wall(-3_600_000);

    for turn in 1u64..=8 {
        pair.fleet.turn().await;
        let rpo = pair.view().await.rpo_seconds.unwrap();
        assert!(rpo * 1000 >= turn * STEP_MS, "{rpo} s after {turn} turns");
        assert!(rpo * 1000 <= turn * STEP_MS + 2_000);
    }
    let before = pair.view().await.rpo_seconds.unwrap();
    pair.restart().await;
    assert!(pair.view().await.rpo_seconds.unwrap() >= before, "a restart forgets no age");
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sqlite");
    let store = crate::Store::open(&path, crate::Durability::PowerCut).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    sqlx::query("PRAGMA user_version = 99").execute(&mut *tx).await.unwrap();
    crate::store::commit(tx).await.unwrap();
    store.close().await;

    let refused = crate::Store::open(&path, crate::Durability::PowerCut).await;

    assert!(matches!(refused, Err(crate::StoreError::Newer { found: 99, .. })));
}

#[tokio::test]
async fn an_item_of_the_first_schema_is_read_as_one_with_two_ends() {
    let mut pair = Pair::protected().await;
    let before = pair.view().await;
    let mut tx = pair.fleet.control.store().begin().await.unwrap();
    for sql in [
        "UPDATE items SET body = json_remove(json_set(body, \
         '$.plan.source', json_object('host', body ->> '$.plan.primary.host', \
         'branch', body -> '$.plan.branch', 'run', body -> '$.plan.primary.run', \
         'resync', 0, 'since', 7), \
         '$.plan.target', json_object('host', body ->> '$.plan.recovery.host', \
         'wanted', 'receive', 'since', 6)), \
         '$.plan.primary', '$.plan.recovery', '$.plan.branch', '$.plan.history', \
         '$.plan.resync')",
        "DROP TABLE migrated",
        "DROP TABLE plans",
        "DROP TABLE audit_log",
        "DROP TABLE resource_mappings",
        "DROP INDEX jobs_one_a_member",
        "DROP INDEX jobs_by_plan",
        "DROP INDEX jobs_one_a_plan",
        "ALTER TABLE jobs DROP COLUMN parent",
        "ALTER TABLE jobs DROP COLUMN plan",
        "PRAGMA user_version = 1",
    ] {
        sqlx::query(sql).execute(&mut *tx).await.unwrap();
    }
    crate::store::commit(tx).await.unwrap();
    pair.restart().await;

    let view = pair.view().await;
    assert_eq!(view.branch, before.branch);
    assert_eq!(view.ends[0].run, RunView::Replicate);
    pair.is_protected().await;
    let job = pair.failover(Shutdown::First).await;
    pair.succeeds(job).await;
}

#[tokio::test]
async fn an_unknown_point_is_refused_before_anything_happens() {
    let mut pair = Pair::protected().await;
    let control = pair.fleet.control.clone();
    let choice = PointChoice::Custom(PointId::from_u128(5));

    let asked = control.item_failover(pair.item, choice, Shutdown::First);
    let refused = pair.fleet.during(asked).await.unwrap_err();

    assert_eq!(refused.problem.code, Code::NO_POINT.code);
    assert_eq!(pair.view().await.state.protection, Protection::Protected);
}

#[tokio::test]
async fn points_of_a_host_that_is_away_are_unavailable_and_not_absent() {
    let mut pair = Pair::protected().await;
    pair.fleet.host(TARGET).temper = Temper::CutOff;
    pair.until("silence is noticed", |view| !view.target_connected).await;

    let refused = pair.fleet.control.point_list(pair.item, 0, 10).await.unwrap_err();

    assert_eq!(refused.kind, ErrorKind::Unavailable);
    assert_eq!(refused.problem.code, Code::ROLE_AWAY.code);
}

/// F-093.
#[tokio::test]
async fn a_failover_without_its_target_host_is_refused_with_no_side_effect() {
    let mut pair = Pair::protected().await;
    pair.fleet.host(TARGET).temper = Temper::CutOff;
    pair.until("silence is noticed", |view| !view.target_connected).await;

    let job = pair.failover(Shutdown::First).await;
    let view = pair.finish(job).await;

    assert_eq!(view.state, RunState::Failed);
    assert_eq!(view.errors.last().unwrap().code, Code::TARGET_AWAY.code);
    assert_eq!(pair.view().await.state.protection, Protection::Protected);
    assert_eq!(pair.live(), ["web01"]);
}

#[tokio::test]
async fn a_cancel_waits_for_a_person_when_nobody_can_confirm_that_the_target_is_off() {
    let mut pair = Pair::failed_over().await;
    let control = pair.fleet.control.clone();
    pair.fleet.host(TARGET).temper = Temper::Dead;
    pair.until("silence is noticed", |view| !view.target_connected).await;

    let job = control.item_failover_cancel(pair.item).await.unwrap();
    let view = pair.finish(job).await;
    assert_eq!(view.state, RunState::Suspended);
    assert!(view.question.unwrap().contains("off"));
    assert!(pair.live().is_empty(), "the source is not started before the answer");

    let answer = crate::jobs::JobAnswer::Reply("I pulled its plug".to_owned());
    control.job_resume(pair.vault, job, answer).await.unwrap();
    let view = pair.finish(job).await;

    assert_eq!(view.state, RunState::SucceededWithWarning);
    assert_eq!(pair.live(), ["web01"]);
}

#[tokio::test]
async fn reconcilers_change_nothing_the_second_time() {
    let pair = Pair::failed_over().await;
    pair.fleet.control.tick().await.unwrap();

    let turn = pair.fleet.control.tick().await.unwrap();

    assert_eq!(turn, crate::Turn::default());
}

#[tokio::test]
async fn a_failed_job_is_started_again_with_the_same_request() {
    let mut pair = Pair::protected().await;
    pair.fleet.host(TARGET).temper = Temper::CutOff;
    pair.until("silence is noticed", |view| !view.target_connected).await;
    let job = pair.failover(Shutdown::First).await;
    pair.finish(job).await;
    pair.fleet.host(TARGET).temper = Temper::Obeys;
    pair.until("the target is back", |view| view.target_connected).await;

    let again = pair.fleet.control.job_restart(pair.vault, job).await.unwrap();

    pair.succeeds(again).await;
}
