//! Cancels and answers: when they are accepted and what they lead to.

use super::*;
use crate::{Answer, AnswerError, CancelEffect, Next, Question, answer, request_cancel};

fn accepts_no_answer(record: &Record) {
    for given in [Answer::Retry, Answer::Reply("yes".into()), Answer::Abandon] {
        let mut asked = record.clone();
        let refused = answer(&mut asked, given).unwrap_err();
        assert!(matches!(refused, AnswerError::NotWaiting { .. }), "{refused}");
        assert_eq!(&asked, record);
    }
}

#[test]
fn a_second_cancel_changes_nothing_at_any_transition() {
    let record = failover(&[("start", &[Act::Pend])]);
    let once = |at| run_with(&record, &Script::default().cancelled_before(at));
    let transitions = run_with(&record, &Script::default()).transitions;
    for first in 0..=transitions {
        let reference = once(first);
        for second in first..=reference.transitions {
            let twice = Script::default().cancelled_before(first).cancelled_before(second);
            assert_eq!(run_with(&record, &twice), reference, "{first} {second}");
        }
    }
    let mut asked = record.clone();
    request_cancel(&mut asked);
    let first = asked.clone();
    assert_eq!(request_cancel(&mut asked), CancelEffect::Undoes);
    assert_eq!(asked, first);
}

#[test]
fn a_cancel_is_accepted_while_a_step_is_pending_backs_off_or_waits() {
    for (index, step) in Failover::REVERSIBLE.iter().enumerate() {
        for act in [Act::Pend, Act::Transient, Act::Ask] {
            let record = failover(&[(step.name, &[act; 99])]);
            let registry = registry();
            let mut driver = Driver::new(&registry, Site::default(), &record);
            drive_to(&mut driver, at(List::Reversible, index));
            super::step(&mut driver);
            assert_ne!(driver.record().unwrap().next(), Next::Continue, "it hangs at the step");

            assert_eq!(driver.cancel().unwrap(), CancelEffect::Undoes);

            assert_eq!(driver.record().unwrap().next(), Next::Continue, "due at once");
            accepts_no_answer(&driver.record().unwrap());
            let end = drive_to_end(&mut driver);
            assert_eq!(end.phase, cancelled());
            assert!(driver.world.is_empty(), "{act:?} {:?}", driver.world);
            assert_eq!(end.log[index].state, StepState::Undone);
            assert!(end.log[index + 1..].iter().all(|s| s.state == StepState::NotStarted));
        }
    }
}

#[test]
fn a_cancel_before_the_first_call_of_forward_still_undoes() {
    let record = failover(&[]);
    let registry = registry();
    let mut driver = Driver::new(&registry, Site::default(), &record);
    drive_to(&mut driver, at(List::Forward, 0));
    assert_eq!(driver.record().unwrap().phase, Phase::Reversible { next: 3 });

    driver.cancel().unwrap();

    let end = drive_to_end(&mut driver);
    assert_eq!(end.phase, cancelled());
    assert!(driver.world.is_empty());
    let undone: Vec<_> = driver.calls().iter().filter(|p| p.action == Action::Undo).collect();
    let mut order: Vec<_> = undone.iter().map(|place| place.index).collect();
    order.dedup();
    assert_eq!(order, [2, 1, 0], "in reverse");
}

#[test]
fn a_cancel_without_a_way_out_is_remembered_and_the_job_goes_on() {
    let record = enable(&[("relate", &[Act::Pend]), ("copy", &[Act::Permanent])]);
    let registry = registry();
    let mut driver = Driver::new(&registry, Site::default(), &record);
    step(&mut driver);
    step(&mut driver);

    assert_eq!(driver.cancel().unwrap(), CancelEffect::GoesOn);
    assert_eq!(driver.cancel().unwrap(), CancelEffect::GoesOn);

    let waiting = drive_to_end(&mut driver);
    assert!(waiting.cancel_requested);
    assert_eq!(waiting.next(), Next::WaitingForOperator);
    let refused = answer(&mut waiting.clone(), Answer::Abandon).unwrap_err();
    assert!(matches!(refused, AnswerError::CannotAbandon { .. }), "{refused}");
    driver.answer(Answer::Retry).unwrap();
    assert_eq!(drive_to_end(&mut driver).phase, Phase::Succeeded);
    assert!(driver.world.moments_of("copy").iter().all(|moment| moment.cancel_requested));
}

#[test]
fn a_cancel_while_going_back_or_after_the_end_changes_nothing() {
    let undoing = failover(&[("check", &[Act::Permanent]), ("undo check", &[Act::Permanent])]);
    let abandoning = failover(&[("start", &[Act::Permanent]), ("stop", &[Act::Permanent])]);
    let abandon = Script { answers: vec![Answer::Abandon], ..Script::default() };
    let ends = [
        (run_with(&undoing, &Script::default()).record, CancelEffect::GoingBack),
        (run_with(&abandoning, &abandon).record, CancelEffect::GoingBack),
        (run_with(&failover(&[]), &Script::default()).record, CancelEffect::Finished),
    ];
    for (record, effect) in ends {
        let mut asked = record.clone();
        assert_eq!(request_cancel(&mut asked), effect);
        assert_eq!(asked, record);
        if effect == CancelEffect::GoingBack {
            assert_eq!(record.next(), Next::WaitingForOperator, "a failed way back asks a person");
            let refused = answer(&mut asked, Answer::Abandon).unwrap_err();
            assert!(matches!(refused, AnswerError::CannotAbandon { .. }), "{refused}");
            assert_eq!(asked, record);
        } else {
            accepts_no_answer(&record);
        }
    }
}

/// Proves F-099 for the engine: a retry goes on where the job failed and does not start over.
#[test]
fn a_permanent_failure_after_the_point_of_no_return_waits_and_retry_continues() {
    for step in Failover::FORWARD {
        let record = failover(&[(step.name, &[Act::Permanent])]);
        let waiting = run_with(&record, &Script::default());
        assert_eq!(waiting.record.question(), Some(&Question::Failed(problem(step.name))));
        assert_eq!(log(&waiting.record, step.name).state, StepState::Failed);
        assert!(waiting.world.real.contains("machine"), "nothing was undone");

        let retried = Script { answers: vec![Answer::Retry], ..Script::default() };
        let ended = run_with(&record, &retried);

        assert_eq!(ended.record.phase, Phase::Succeeded);
        assert_eq!(log(&ended.record, step.name).attempts, 2);
        assert_eq!(ended.world.moments_of("check").len(), 1);
        let abandon = Script { answers: vec![Answer::Abandon], ..Script::default() };
        let ended = run_with(&record, &abandon);
        assert_eq!(ended.record.phase, abandoned());
        assert!(ended.world.has(&["resync"]));
    }
}

/// Proves F-098 for the engine: a job may wait for input and survives a restart meanwhile.
#[test]
fn a_step_that_asks_runs_again_only_with_an_answer_and_gets_its_text() {
    let record = failover(&[("point", &[Act::Ask, Act::Pend])]);
    let registry = registry();
    let mut driver = Driver::new(&registry, Site::default(), &record);
    let waiting = drive_to_end(&mut driver);
    assert_eq!(waiting.question(), Some(&Question::Asked("point?".into())));
    assert_eq!(log(&waiting, "point").state, StepState::Waiting);
    driver.advance(Fate::LandsThenDies, Calls::Once).unwrap();
    assert_eq!(driver.record().unwrap(), waiting, "it goes on waiting");

    driver.answer(Answer::Reply("latest".into())).unwrap();

    accepts_no_answer(&driver.record().unwrap());
    assert_eq!(drive_to_end(&mut driver).phase, Phase::Succeeded);
    let moments = driver.world.moments_of("point");
    let replies: Vec<_> = moments.iter().map(|moment| moment.reply.as_deref()).collect();
    assert_eq!(replies, [None, Some("latest"), Some("latest")], "also after a poll");
    assert!(moments.iter().all(|moment| moment.attempt == 1), "a question is no failure");
    assert!(driver.world.moments_of("machine").iter().all(|moment| moment.reply.is_none()));
}

#[test]
fn retry_ends_a_back_off_early_and_only_retry_does() {
    let record = failover(&[("check", &[Act::Transient])]);
    let registry = registry();
    let mut driver = Driver::new(&registry, Site::default(), &record);
    driver.advance(Fate::Lands, Calls::Once).unwrap();
    assert!(driver.answer(Answer::Abandon).is_err());
    assert!(matches!(driver.record().unwrap().next(), Next::RetryAt(_)));

    driver.answer(Answer::Retry).unwrap();

    driver.advance(Fate::Lands, Calls::Once).unwrap();
    assert_eq!(driver.record().unwrap().phase, Phase::Reversible { next: 1 });
}

#[test]
fn a_running_or_pending_job_refuses_answers() {
    accepts_no_answer(&failover(&[]));
    let registry = registry();
    let mut driver = Driver::new(&registry, Site::default(), &failover(&[("check", &[Act::Pend])]));
    driver.advance(Fate::Lands, Calls::Once).unwrap();
    accepts_no_answer(&driver.record().unwrap());
}

#[test]
fn a_step_that_asks_and_looks_goes_on_by_itself_and_hears_an_answer_once() {
    let record = failover(&[("check", &[Act::Look, Act::Look]), ("point", &[Act::Look; 3])]);
    let registry = registry();
    let mut driver = Driver::new(&registry, Site::default(), &record);
    let asked = drive_to_end(&mut driver);
    assert_eq!(asked.question(), Some(&Question::Asked("check?".into())));
    step(&mut driver);
    let looked = driver.record().unwrap();
    assert_eq!((looked.waiting, looked.log), (asked.waiting, asked.log), "it asks on");

    step(&mut driver);
    let asked = drive_to_end(&mut driver);
    assert_eq!(asked.question(), Some(&Question::Asked("point?".into())), "nobody answered");
    driver.answer(Answer::Retry).unwrap();
    step(&mut driver);
    assert_eq!(driver.record().unwrap().next(), Next::WaitingForOperator, "it asks once more");
    step(&mut driver);
    step(&mut driver);

    assert_eq!(drive_to_end(&mut driver).phase, Phase::Succeeded);
    let moments = driver.world.moments_of("point");
    let answered: Vec<bool> = moments.iter().map(|moment| moment.answered).collect();
    assert_eq!(answered, [false, true, false, false]);
}

#[test]
fn a_step_that_asked_and_finds_something_else_to_wait_for_asks_no_more() {
    for act in [Act::Pend, Act::Transient] {
        let record = failover(&[("check", &[Act::Look, act])]);
        let registry = registry();
        let mut driver = Driver::new(&registry, Site::default(), &record);
        drive_to_end(&mut driver);
        step(&mut driver);

        assert_eq!(driver.record().unwrap().question(), None);
        assert_eq!(drive_to_end(&mut driver).phase, Phase::Succeeded);
    }
}
