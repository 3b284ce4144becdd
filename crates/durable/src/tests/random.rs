//! Random interleavings of transitions, cancels, answers and crashes keep the invariants (I6).

use proptest::prelude::*;

use super::*;
use crate::testing::DriveError;
use crate::{Answer, CancelEffect, Next};

#[derive(Clone, Debug)]
enum Op {
    Advance(Fate, Calls),
    /// Sets the clock to when the job is due.
    Wait,
    Cancel,
    Answer(Answer),
}

fn op() -> impl Strategy<Value = Op> {
    let fate =
        prop_oneof![4 => Just(Fate::Lands), 1 => Just(Fate::Lost), 1 => Just(Fate::LandsThenDies)];
    let calls = prop_oneof![Just(Calls::Once), Just(Calls::Twice)];
    let answer = prop_oneof![
        4 => Just(Answer::Retry),
        2 => Just(Answer::Reply("go on".into())),
        1 => Just(Answer::Abandon),
    ];
    prop_oneof![
        12 => (fate, calls).prop_map(|(fate, calls)| Op::Advance(fate, calls)),
        6 => Just(Op::Wait),
        1 => Just(Op::Cancel),
        3 => answer.prop_map(Op::Answer),
    ]
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => Just(Act::Pend),
        3 => Just(Act::Transient),
        1 => Just(Act::Permanent),
        2 => Just(Act::Ask),
        1 => Just(Act::Skip),
        1 => Just(Act::Warn),
    ];
    prop::collection::vec(act, 0..3)
}

/// What any step or undo of any kind does, by name; most do nothing special.
fn memory() -> impl Strategy<Value = Memory> {
    let names = [
        "check",
        "point",
        "machine",
        "start",
        "record",
        "stop",
        "resync",
        "relate",
        "copy",
        "prune",
        "keep",
        "look",
        "undo check",
        "undo point",
        "undo machine",
        "undo look",
    ];
    let entry = (prop::sample::select(names.to_vec()), acts());
    prop::collection::vec(entry, 0..8).prop_map(|entries| {
        let script = entries.into_iter().map(|(name, acts)| (name.to_owned(), acts)).collect();
        Memory { script, used: BTreeMap::new() }
    })
}

fn record() -> impl Strategy<Value = Record> {
    (0..6, memory()).prop_map(|(kind, memory)| {
        match kind {
            0 => create(&Enable(memory), 1_000),
            1 => create(&Commit(memory), 1_000),
            2 => create(&Probe(memory), 1_000),
            _ => create(&Failover(memory), 1_000),
        }
        .unwrap()
    })
}

/// Checks that the functions were called in an order the rules allow.
fn check_order(calls: &[Place], record: &Record) {
    let mut order = calls.to_vec();
    order.dedup();
    let of = |list, action| -> Vec<usize> {
        let these = order.iter().filter(|place| (place.list, place.action) == (list, action));
        these.map(|place| place.index).collect()
    };
    let (runs, undos) = (of(List::Reversible, Action::Run), of(List::Reversible, Action::Undo));
    let (forward, abandon) = (of(List::Forward, Action::Run), of(List::Abandon, Action::Run));
    let key = |place: &Place| match (place.list, place.action) {
        (List::Reversible, Action::Run) => 0,
        (List::Reversible, Action::Undo) | (List::Forward, _) => 1,
        (List::Abandon, _) => 2,
    };
    let ascending = |these: &[usize]| these.iter().copied().eq(0..these.len());

    assert!(order.is_sorted_by_key(key), "{order:?}");
    assert!(ascending(&runs) && ascending(&forward) && ascending(&abandon), "{order:?}");
    assert!(forward.is_empty() || undos.is_empty(), "never undone after Forward: {order:?}");
    assert!(forward.is_empty() || runs.len() == record.len(List::Reversible), "{order:?}");
    assert!(abandon.is_empty() || (!forward.is_empty() && record.cancel_requested), "{order:?}");
    assert!(undos.windows(2).all(|pair| pair[0] == pair[1] + 1), "in reverse: {order:?}");
    if let Some(first) = undos.first() {
        assert!((runs.len().max(1) - 1..=runs.len()).contains(first), "from the last: {order:?}");
    }
}

fn check_record(before: &Record, after: &Record) {
    assert_eq!(after.revision > before.revision, after != before, "{before:?} {after:?}");
    assert!(after.revision >= before.revision && after.cancel_requested >= before.cancel_requested);
    assert!(!before.phase.is_final() || before == after, "the end is the end");
    assert_eq!(after.phase.is_final(), after.ended_ms.is_some());
    let complete = |step: &StepLog| {
        use StepState::{Skipped, Succeeded, SucceededWithWarning};
        matches!(step.state, Skipped | Succeeded | SucceededWithWarning)
    };
    let reversible = |step: &&StepLog| step.list == List::Reversible;
    match after.phase {
        Phase::Forward { .. } | Phase::Abandoning { .. } | Phase::Abandoned { .. } => {
            assert!(after.log.iter().filter(reversible).all(complete), "{after:?}");
        }
        Phase::Succeeded => {
            let abandon = |step: &StepLog| step.list == List::Abandon;
            assert!(after.log.iter().all(|step| abandon(step) || complete(step)), "{after:?}");
        }
        Phase::RolledBack { .. } => {
            let gone = [StepState::Undone, StepState::NotStarted];
            assert!(after.log.iter().all(|step| gone.contains(&step.state)), "{after:?}");
        }
        Phase::Reversible { .. } | Phase::Undoing { .. } => {}
    }
}

fn check_end(record: &Record, world: &Site, effects: &[CancelEffect]) {
    match &record.phase {
        Phase::Succeeded => assert!(!effects.contains(&CancelEffect::Undoes)),
        Phase::RolledBack { .. } => assert!(world.is_empty(), "{world:?}"),
        Phase::Abandoned { reason } => {
            assert_eq!(reason, &Reason::Cancelled);
            let kept = world.facts.contains("resync") || world.facts.contains("keep");
            assert!(kept && !world.facts.contains("start"), "{world:?}");
        }
        phase => panic!("{phase:?} is no end"),
    }
    if effects.contains(&CancelEffect::Undoes) {
        assert_eq!(record.phase, cancelled());
    }
    if effects.contains(&CancelEffect::Abandons) {
        assert_eq!(record.phase, abandoned());
    }
    if effects.contains(&CancelEffect::GoesOn) {
        assert_eq!(record.phase, Phase::Succeeded);
    }
}

fn apply(driver: &mut Driver<'_, Site>, op: &Op, effects: &mut Vec<CancelEffect>) {
    match op {
        Op::Advance(fate, calls) => {
            driver.advance(*fate, *calls).unwrap();
        }
        Op::Wait => {
            let next = driver.record().unwrap().next();
            driver.wait_for(next);
        }
        Op::Cancel => effects.push(driver.cancel().unwrap()),
        Op::Answer(given) => match driver.answer(given.clone()) {
            Ok(()) | Err(DriveError::Answer(_)) => {}
            Err(other) => panic!("{other}"),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_interleaving_keeps_the_rules_and_then_ends(
        record in record(),
        ops in prop::collection::vec(op(), 0..60),
    ) {
        let registry = registry();
        let mut driver = Driver::new(&registry, Site::default(), &record);
        let mut effects = Vec::new();
        for op in &ops {
            let before = driver.record().unwrap();
            apply(&mut driver, op, &mut effects);
            let after = driver.record().unwrap();
            check_record(&before, &after);
            check_order(driver.calls(), &after);
        }

        // With patience and an operator who says Retry every job comes to an end.
        for _ in 0..200 {
            let before = driver.record().unwrap();
            match before.next() {
                Next::Finished => break,
                Next::WaitingForOperator => driver.answer(Answer::Retry).unwrap(),
                next => {
                    driver.wait_for(next);
                    driver.advance(Fate::Lands, Calls::Once).unwrap();
                }
            }
            check_record(&before, &driver.record().unwrap());
        }

        let end = driver.record().unwrap();
        check_order(driver.calls(), &end);
        check_end(&end, &driver.world, &effects);
    }

    #[test]
    fn arbitrary_text_is_refused_without_a_panic(text in "\\PC{0,200}", cut in 0usize..2_000) {
        let whole = failover(&[("check", &[Act::Ask])]).encode();
        let cut = cut % whole.len();
        prop_assert!(Record::decode(&text).is_err());
        prop_assert!(Record::decode(&whole[..cut]).is_err());
    }
}
