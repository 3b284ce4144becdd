//! Failures, back-off, polls and what a step is told about its time.

use super::*;
use crate::{BACKOFF_DEFAULT_MS, Next, Question, Wake, advance};

/// Advances by hand at `now_ms` without a world.
fn advance_at(record: Record, site: &mut Site, now_ms: u64) -> crate::Advance {
    registry().advance(record, site, now_ms).unwrap()
}

/// Proves F-156: 1, 2, 4, 8, 10, then every 30 minutes; anew after a success.
#[test]
fn a_transient_failure_backs_off_by_the_published_ladder() {
    let mut record = failover(&[("check", &[Act::Transient; 8]), ("point", &[Act::Transient])]);
    let mut site = Site::default();
    let mut now_ms = 5_000;
    let mut minutes = Vec::new();

    for _ in 0..8 {
        let advance = advance_at(record, &mut site, now_ms);
        let Next::RetryAt(at_ms) = advance.next else { panic!("{:?}", advance.next) };
        let early = advance_at(advance.record.clone(), &mut site, at_ms - 1);
        assert!(!early.changed && early.record == advance.record, "nothing runs before its time");
        minutes.push((at_ms - now_ms) / 60_000);
        (record, now_ms) = (advance.record, at_ms);
    }

    assert_eq!(minutes, [1, 2, 4, 8, 10, 30, 30, 30]);
    record = advance_at(record, &mut site, now_ms).record;
    assert_eq!((log(&record, "check").attempts, site.moments_of("check").len()), (9, 9));
    assert_eq!(log(&record, "check").problem, None);
    let advance = advance_at(record, &mut site, now_ms);
    assert_eq!(advance.next, Next::RetryAt(now_ms + BACKOFF_DEFAULT_MS[0]));
}

#[test]
fn a_clock_that_went_back_does_not_prolong_a_back_off() {
    let record = failover(&[("check", &[Act::Transient])]);
    let mut site = Site::default();
    let backing_off = advance_at(record, &mut site, 1_000_000_000).record;

    let advance = advance_at(backing_off, &mut site, 2_000);

    assert_eq!(advance.record.phase, Phase::Reversible { next: 1 });
}

#[test]
fn a_kind_may_have_its_own_ladder_and_limit() {
    let mut record = enable(&[("check", &[Act::Transient; 9])]);
    let mut site = Site::default();
    let mut delays = Vec::new();
    for _ in 0..4 {
        let advance = advance_at(record, &mut site, 100_000);
        record = advance.record;
        if let Wake::Retry { not_before_ms, delay_ms } = record.wake {
            delays.push(delay_ms);
            record.wake = Wake::Now;
            assert_eq!(not_before_ms, 100_000 + delay_ms);
        }
    }

    assert_eq!(delays, [10, 20, 20], "three retries, the fourth failure is permanent");
    let reason = Reason::Failed(problem("check"));
    assert_eq!(record.phase, Phase::Undoing { left: 1, reason });
    assert_eq!(log(&record, "check").state, StepState::Failed);
}

#[test]
fn too_many_transient_failures_after_the_point_of_no_return_ask_a_person() {
    let ended = run_with(&enable(&[("copy", &[Act::Transient; 9])]), &Script::default());

    assert_eq!(ended.record.phase, Phase::Forward { next: 1 });
    assert_eq!(ended.record.question(), Some(&Question::Failed(problem("copy"))));
    assert_eq!(log(&ended.record, "copy").attempts, 4);
    let answered = Script { answers: vec![crate::Answer::Retry], ..Script::default() };
    let ended = run_with(&enable(&[("copy", &[Act::Transient; 9])]), &answered);
    assert_eq!(log(&ended.record, "copy").attempts, 8, "an answer grants all retries anew");
}

#[test]
fn pending_counts_no_attempt_and_an_unchanged_poll_needs_no_store() {
    let record = failover(&[]);
    let mut site = Site::default();
    let mut record = advance_at(record, &mut site, 10).record;
    record = advance_at(record, &mut site, 20).record;
    let first = advance_at(record, &mut site, 30);
    assert!(first.changed);
    assert_eq!(first.next, Next::PollAt(280));
    assert_eq!(log(&first.record, "machine").state, StepState::InProgress);
    let message = log(&first.record, "machine").message.as_deref();
    assert_eq!(message, Some("the machine to exist"));

    let poked = advance_at(first.record.clone(), &mut site, 40);

    assert!(!poked.changed);
    assert_eq!((poked.next, poked.record.revision), (Next::PollAt(290), first.record.revision));
    site.settle(0);
    let done = advance_at(poked.record, &mut site, 500);
    assert!(done.changed);
    let step = log(&done.record, "machine");
    assert_eq!((step.attempts, step.started_ms, step.ended_ms), (1, Some(30), Some(500)));
    let last = site.moments_of("machine")[2];
    assert_eq!((last.attempt, last.step_elapsed_ms()), (1, 470));
}

#[test]
fn a_step_knows_when_it_and_its_attempt_started() {
    let acts: &[Act] = &[Act::Pend, Act::Transient, Act::Pend, Act::Permanent];
    let record = enable(&[("relate", acts)]);
    let mut site = Site::default();
    let mut record = advance_at(record, &mut site, 10).record;
    for now_ms in [100, 200, 300, 400] {
        record = advance_at(record, &mut site, now_ms).record;
    }
    crate::answer(&mut record, crate::Answer::Retry).unwrap();
    record = advance_at(record, &mut site, 900).record;

    let times: Vec<_> = (site.moments_of("relate").iter())
        .map(|m| (m.now_ms, m.step_started_ms, m.attempt_started_ms, m.attempt))
        .collect();
    let expected = [
        (100, 100, 100, 1),
        (200, 100, 100, 1),
        (300, 100, 300, 2),
        (400, 100, 300, 2),
        (900, 900, 900, 3),
    ];
    assert_eq!(times, expected);
    assert_eq!(record.phase, Phase::Forward { next: 1 });
}

#[test]
fn skips_and_warnings_go_on_and_stay_in_the_log() {
    let record = failover(&[("check", &[Act::Skip]), ("record", &[Act::Warn])]);

    let ended = run_with(&record, &Script::default());

    assert_eq!(ended.record.phase, Phase::Succeeded);
    assert!(ended.record.ended_ms.unwrap() > ended.record.created_ms);
    let check = log(&ended.record, "check");
    assert_eq!(check.state, StepState::Skipped);
    assert_eq!(check.message.as_deref(), Some("check is not needed"));
    assert_eq!(log(&ended.record, "record").state, StepState::SucceededWithWarning);
    assert_eq!(ended.record.warnings().collect::<Vec<_>>(), [&problem("record")]);
}

/// Proves F-075 for the engine: every step is listed before it runs, then with its times.
#[test]
fn every_step_is_listed_from_the_start() {
    let record = failover(&[]);

    assert!(states(&record).iter().all(|state| *state == StepState::NotStarted));
    let names: Vec<_> = record.log.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["check", "point", "machine", "start", "record", "stop", "resync"]);
    let end = run_with(&record, &Script::default()).record;
    assert!(end.log[..5].iter().all(|step| step.started_ms <= step.ended_ms));
    assert!(end.log[5..].iter().all(|step| step.state == StepState::NotStarted));
}

#[test]
fn kinds_may_leave_lists_empty() {
    let commit = create(&Commit::default(), 0).unwrap();
    assert_eq!(run_with(&commit, &Script::default()).record.phase, Phase::Succeeded);
    let cancel = Script::default().cancelled_before(0);
    let ended = run_with(&commit, &cancel);
    assert_eq!((ended.record.phase, ended.calls), (cancelled(), vec![]));
    let probe = create(&Probe::default(), 0).unwrap();
    assert_eq!(run_with(&probe, &Script::default()).record.phase, Phase::Succeeded);
}

#[test]
fn what_a_failing_step_noted_is_there_for_its_undo() {
    let record = failover(&[("check", &[Act::Permanent])]);

    let advance = advance::<Failover>(record, &mut Site::default(), 0).unwrap();

    let memory: Failover = serde_json::from_value(advance.record.job).unwrap();
    assert_eq!(memory.0.used["check"], 1);
}

#[test]
fn a_problem_prints_as_an_operator_reads_it() {
    let text = problem("start").to_string();

    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "LW-9999: could not do start");
    assert_eq!(lines[1], "  cause: the script says so");
    assert_eq!(lines[3], "  do:    read the script");
}
