//! Crashes, repeats and cancels at every transition. Not random: see random.

use super::*;
use crate::testing::{Coverage, cancel_everywhere, crash_everywhere, enumerate};
use crate::{Answer, CancelEffect};

const ALL_DONE: &[&str] = &["check", "point", "record", "start"];

fn scripts() -> Vec<Script> {
    let twice = Script { calls: Calls::Twice, ..Script::default() };
    vec![Script::default(), twice]
}

/// Proves I5: no effect happens twice visibly.
#[test]
fn a_crash_at_any_write_lost_or_landed_does_not_change_the_result() {
    let record = failover(&[("point", &[Act::Transient]), ("start", &[Act::Pend])]);
    for script in scripts() {
        let mut whole = None;

        crash_everywhere(&registry(), &Site::default(), &record, &script, |script, ended| {
            assert!(ended.world.has(ALL_DONE), "{script:?}");
            assert_eq!(ended.world.made, 1, "{script:?}");
            let whole = whole.get_or_insert_with(|| ended.clone());
            assert_eq!(ended.record.phase, Phase::Succeeded, "{script:?}");
            assert_eq!(ended.world.visible(), whole.world.visible(), "{script:?}");
            assert_eq!(ended.calls, whole.calls, "{script:?}");
            assert_eq!(states(&ended.record), states(&whole.record), "{script:?}");
            assert_eq!(ended.record.job, whole.record.job, "{script:?}");
        })
        .unwrap();

        assert!(whole.unwrap().transitions > 5);
    }
}

#[test]
fn a_failure_of_any_reversible_step_leaves_nothing_behind_even_with_crashes() {
    for step in Failover::REVERSIBLE {
        let record = failover(&[(step.name, &[Act::Permanent])]);
        for script in scripts() {
            crash_everywhere(&registry(), &Site::default(), &record, &script, |script, ended| {
                let reason = Reason::Failed(problem(step.name));
                assert_eq!(ended.record.phase, Phase::RolledBack { reason }, "{script:?}");
                assert!(ended.world.is_empty(), "{} {script:?} {:?}", step.name, ended.world);
            })
            .unwrap();
        }
    }
}

/// Proves F-079 for the engine: a cancel at every step, with a crash at every write.
#[test]
fn a_cancel_before_any_transition_leaves_a_clean_site_or_abandons_even_with_crashes() {
    let record = failover(&[("start", &[Act::Pend, Act::Transient])]);
    let ends = |script: &Script| {
        let before = *script.cancel_before.first().unwrap();
        let whole = run_with(&record, &Script { calls: script.calls, ..Script::default() });
        let forward_began = whole.calls[..before].iter().any(|place| place.list == List::Forward);
        (before == whole.transitions, forward_began)
    };
    for script in scripts() {
        let mut cancels = Vec::new();
        cancel_everywhere(&registry(), &Site::default(), &record, &script, |script, _| {
            cancels.push(script.clone());
        })
        .unwrap();
        for script in cancels {
            let (too_late, forward_began) = ends(&script);
            crash_everywhere(&registry(), &Site::default(), &record, &script, |script, ended| {
                if too_late {
                    assert_eq!(ended.record.phase, Phase::Succeeded, "{script:?}");
                } else if forward_began {
                    assert_eq!(ended.record.phase, abandoned(), "{script:?}");
                    assert!(ended.world.has(&["resync"]), "{script:?} {:?}", ended.world);
                } else {
                    assert_eq!(ended.record.phase, cancelled(), "{script:?}");
                    assert!(ended.world.is_empty(), "{script:?} {:?}", ended.world);
                }
            })
            .unwrap();
        }
    }
}

/// Proves F-112 for the engine: whatever had run, the way out ends in the same state.
#[test]
fn abandon_is_correct_after_every_prefix_of_forward() {
    for prefix in 0..Failover::FORWARD.len() {
        for act in [Act::Pend, Act::Transient, Act::Permanent, Act::Ask] {
            let record = failover(&[(Failover::FORWARD[prefix].name, &[act, act])]);
            let registry = registry();
            let mut driver = Driver::new(&registry, Site::default(), &record);
            drive_to(&mut driver, at(List::Forward, prefix));
            step(&mut driver);

            assert_eq!(driver.cancel().unwrap(), CancelEffect::Abandons);
            let end = drive_to_end(&mut driver);

            assert_eq!(end.phase, abandoned(), "{prefix} {act:?}");
            assert!(driver.world.has(&["resync"]), "{prefix} {act:?} {:?}", driver.world);
            let state = end.log[3 + prefix].state;
            let failed = act == Act::Permanent;
            let expected = if failed { StepState::Failed } else { StepState::Cancelled };
            assert_eq!(state, expected, "{prefix} {act:?}");
            assert!(end.log[3 + prefix].ended_ms.is_some());
        }
    }
}

#[test]
fn an_undo_and_a_way_out_that_fail_and_wait_survive_a_crash_at_any_write() {
    let hard: &[Act] = &[Act::Transient, Act::Pend, Act::Permanent, Act::Ask, Act::Warn];
    let answers = vec![Answer::Retry, Answer::Reply("go".into())];
    let undoing = failover(&[("machine", &[Act::Permanent]), ("undo point", hard)]);
    let script = Script { answers: answers.clone(), ..Script::default() };
    crash_everywhere(&registry(), &Site::default(), &undoing, &script, |script, ended| {
        assert!(matches!(ended.record.phase, Phase::RolledBack { .. }), "{script:?}");
        assert!(ended.world.is_empty(), "{script:?}");
        assert_eq!(ended.record.warnings().count(), 1, "{script:?}");
    })
    .unwrap();

    let abandoning = failover(&[("record", &[Act::Ask]), ("stop", hard)]);
    let answers = [vec![Answer::Abandon], answers].concat();
    let script = Script { answers, ..Script::default() };
    crash_everywhere(&registry(), &Site::default(), &abandoning, &script, |script, ended| {
        assert_eq!(ended.record.phase, abandoned(), "{script:?}");
        assert!(ended.world.has(&["resync"]), "{script:?}");
    })
    .unwrap();
}

#[test]
fn cancels_and_failures_cover_every_function_and_a_new_step_would_show() {
    let registry = registry();
    let mut coverage = Coverage::default();
    let records = [
        failover(&[]),
        enable(&[]),
        create(&Commit::default(), 1_000).unwrap(),
        create(&Probe::default(), 1_000).unwrap(),
    ];
    for record in &records[..3] {
        let start = Script::default();
        cancel_everywhere(&registry, &Site::default(), record, &start, |_, ended| {
            coverage.add(&ended);
        })
        .unwrap();
    }
    // `keep` needs a cancel after `prune` has begun, and it ends at once.
    let stuck = Commit(Memory::doing(&[("prune", &[Act::Pend])]));
    let stuck = create(&stuck, 1_000).unwrap();
    let script = Script::default().cancelled_before(1);
    coverage.add(&run(&registry, &Site::default(), &stuck, &script).unwrap());

    let missing: Vec<_> = coverage.missing(&registry).iter().map(|step| step.name).collect();
    assert_eq!(missing, ["look", "look"], "the run and the undo of the kind not run yet");
    assert_eq!(enumerate(&registry).len(), 10 + 4 + 2 + 2);
    let start = Script::default();
    cancel_everywhere(&registry, &Site::default(), &records[3], &start, |_, ended| {
        coverage.add(&ended);
    })
    .unwrap();
    assert!(coverage.missing(&registry).is_empty(), "{:?}", coverage.missing(&registry));
}
