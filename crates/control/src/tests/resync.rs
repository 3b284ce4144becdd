//! Resynchronization as a normal path: its window, its start by hand, and what is never retried.

use super::*;
use crate::jobs::{JobFilter, Scenario};
use leeward_model::{Policy, ResyncWindow};
use leeward_wire::message::Stage;

const MINUTE_MS: i64 = 60_000;
const DAY_MINUTES: i64 = 24 * 60;

impl Pair {
    /// Sets a window that opens `opens_in` minutes from now and closes 60 minutes later.
    async fn window(&mut self, opens_in: i64) -> ResyncWindow {
        use crate::clock::Clock as _;
        let now = self.fleet.clock.now().wall.0.div_euclid(MINUTE_MS);
        let minute = |ahead: i64| u16::try_from((now + ahead).rem_euclid(DAY_MINUTES)).unwrap();
        let window = ResyncWindow::new(minute(opens_in), minute(opens_in + 60)).unwrap();
        let policy = Policy { resync_window: Some(window), ..Policy::default() };
        let spec = PolicySpec { policy, extra: serde_json::Value::Null };
        self.fleet.control.policy_put(self.vault, "gold", spec).await.unwrap();
        self.turns(4).await;
        window
    }

    async fn turns(&mut self, turns: usize) {
        for _ in 0..turns {
            self.fleet.turn().await;
        }
    }

    fn loses_change_map(&mut self) {
        let (source, item) = (self.source, self.item);
        self.fleet.host(source).lose_change_map(item);
    }

    fn generation(&mut self) -> u64 {
        let source = self.source;
        self.fleet.host(source).generation()
    }

    /// The change map is lost outside of the window, and the comparison waits.
    async fn waiting() -> (Pair, ResyncWindow) {
        let mut pair = Pair::protected().await;
        let window = pair.window(120).await;
        pair.loses_change_map();
        pair.turns(20).await;
        (pair, window)
    }
}

fn resyncs(view: &ItemView) -> bool {
    matches!(view.state.protection, Protection::Resynchronizing { .. })
}

/// F-154.
#[tokio::test]
async fn a_comparison_waits_for_its_window_says_so_and_goes_on_when_it_opens() {
    let (mut pair, window) = Pair::waiting().await;
    let view = pair.view().await;
    assert!(resyncs(&view));
    let said: Vec<_> = view.health.iter().map(|error| &error.problem).collect();
    let waits = said.iter().find(|problem| problem.code == Code::RESYNC_NEEDED.code).unwrap();
    assert!(waits.what.contains(&format!("its window {window} UTC")), "{waits}");
    assert!(waits.what.contains("by hand"), "{waits}");
    let points = pair.points().await.len();
    let generation = pair.generation();
    pair.turns(20).await;
    assert_eq!(pair.generation(), generation, "nothing changes while it waits");
    assert_eq!(pair.points().await.len(), points);

    pair.fleet.clock.skew_wall(121 * MINUTE_MS);
    pair.is_protected().await;

    assert_eq!(pair.generation(), generation + 1, "the window opened");
    assert!(pair.points().await.len() > points);
    assert_eq!(pair.view().await.health, []);
}

/// F-154.
#[tokio::test]
async fn a_comparison_that_is_under_way_when_its_window_closes_goes_on() {
    let (mut pair, _) = Pair::waiting().await;
    pair.fleet.clock.skew_wall(121 * MINUTE_MS);
    let copies = |view: &ItemView| view.copy.is_some_and(|copy| copy.done_bytes > 0);
    pair.until("the comparison is under way", copies).await;

    pair.fleet.clock.skew_wall(120 * MINUTE_MS);
    pair.is_protected().await;

    pair.loses_change_map();
    pair.turns(20).await;
    assert!(resyncs(&pair.view().await), "the next one waits again");
}

/// F-154.
#[tokio::test]
async fn a_resync_by_hand_starts_at_once_although_the_window_is_closed() {
    let (mut pair, _) = Pair::waiting().await;
    let control = pair.fleet.control.clone();

    let job = control.item_resync(pair.item).await.unwrap();
    pair.succeeds(job).await;
    pair.is_protected().await;

    let job = control.item_resync(pair.item).await.unwrap();
    assert_eq!(control.item_resync(pair.item).await.unwrap_err().kind, ErrorKind::Conflict);
    pair.succeeds(job).await;
    pair.is_protected().await;
}

/// F-154: what was asked for never waits.
#[tokio::test]
async fn a_first_copy_and_a_way_back_do_not_wait_for_the_window() {
    let mut pair = Pair::joined().await;
    pair.window(120).await;
    pair.enable().await;
    pair.is_protected().await;
    let job = pair.failover(Shutdown::First).await;
    pair.succeeds(job).await;
    let control = pair.fleet.control.clone();

    let cancel = control.item_failover_cancel(pair.item).await.unwrap();

    pair.succeeds(cancel).await;
    pair.is_protected().await;
}

/// F-155.
#[tokio::test]
async fn what_no_retry_can_mend_is_critical_at_once() {
    let mut pair = Pair::protected().await;
    let (source, item) = (pair.source, pair.item);
    for (code, critical) in
        [(Code::WRONG_CA, true), (Code::STORE_DAMAGED, true), (Code::STORE_NO_SPACE, false)]
    {
        pair.fleet.host(source).report_problem(item, code.problem("replication stopped"));
        pair.turns(1).await;

        let health = pair.view().await.health;
        let shown = health.iter().find(|error| error.problem.code == code.code).unwrap();
        assert_eq!(shown.level == crate::items::Level::Critical, critical, "{}", code.code);
    }
}

/// The way back of a failover compares, and shows it in a job. One that showed a comparison
/// before goes on to show this one: two would be refused, and the way back would not end before
/// the machine is compared.
#[tokio::test]
async fn a_failover_out_of_a_comparison_comes_back_while_that_is_still_shown() {
    let mut pair = Pair::protected().await;
    let source = pair.source;
    pair.fleet.host(source).copy_steps = 1_000_000;
    pair.loses_change_map();
    pair.until("the comparison", resyncs).await;
    let job = pair.failover(Shutdown::Leave).await;
    let starts = |view: &ItemView| view.instances.iter().any(|made| made.wanted == Stage::Running);
    pair.until("the machine is started", starts).await;

    pair.fleet.control.job_cancel(pair.vault, job).await.unwrap();

    assert_eq!(pair.finish(job).await.state, RunState::Cancelled);
    assert!(resyncs(&pair.view().await));
    let filter = JobFilter { scenarios: vec![Scenario::Resynchronize], ..JobFilter::default() };
    let shown = pair.fleet.control.job_list(pair.vault, &filter).await.unwrap();
    assert_eq!(shown.iter().filter(|job| job.ended.is_none()).count(), 1);
}
