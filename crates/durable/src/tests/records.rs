//! The stored form: round trips, the golden file, and records that must be refused.

use std::error::Error;

use super::*;
use crate::{DecodeError, EngineError, FORMAT, Next, advance};

#[derive(Serialize, Deserialize)]
struct Renamed(Memory);

impl Job for Renamed {
    type Context = Site;
    const KIND: &'static str = "failover";
    const REVERSIBLE: &'static [Reversible<Self>] = &[reversible!("check"), reversible!("fence")];
    const FORWARD: &'static [Forward<Self>] = &[forward!("start")];
    const ABANDON: &'static [Forward<Self>] = &[];
}

/// Every record of a run with failures, waits, a cancel and an undo.
fn history() -> Vec<Record> {
    let registry = registry();
    let acts: &[Act] = &[Act::Ask, Act::Transient, Act::Pend];
    let record =
        failover(&[("point", acts), ("check", &[Act::Warn]), ("start", &[Act::Permanent])]);
    let mut driver = Driver::new(&registry, Site::default(), &record);
    let mut all = vec![record];
    let mut cancels = 0;
    while all.last().unwrap().next() != Next::Finished {
        if all.last().unwrap().next() == Next::WaitingForOperator {
            match all.last().unwrap().phase {
                Phase::Forward { .. } => {
                    driver.cancel().unwrap();
                    cancels += 1;
                }
                _ => driver.answer(crate::Answer::Reply("7".into())).unwrap(),
            }
        } else {
            step(&mut driver);
        }
        all.push(driver.record().unwrap());
        assert!(all.len() < 50, "the job goes round in circles");
    }
    assert_eq!((cancels, &all.last().unwrap().phase), (1, &abandoned()));
    all
}

/// Every record of a run that fails and is undone, with a back-off and a question on the way.
fn rolled_back() -> Vec<Record> {
    let registry = registry();
    let undo: &[Act] = &[Act::Transient, Act::Permanent, Act::Warn];
    let record =
        failover(&[("check", &[Act::Skip]), ("point", &[Act::Permanent]), ("undo point", undo)]);
    let mut driver = Driver::new(&registry, Site::default(), &record);
    let mut all = vec![record];
    while all.last().unwrap().next() != Next::Finished {
        match all.last().unwrap().next() {
            Next::WaitingForOperator => driver.answer(crate::Answer::Retry).unwrap(),
            _ => step(&mut driver),
        }
        all.push(driver.record().unwrap());
        assert!(all.len() < 50, "the job goes round in circles");
    }
    assert!(matches!(all.last().unwrap().phase, Phase::RolledBack { reason: Reason::Failed(_) }));
    all
}

#[test]
fn every_record_of_a_job_survives_its_stored_form_and_grows_its_revision() {
    for history in [history(), rolled_back()] {
        for record in &history {
            assert_eq!(&Record::decode(&record.encode()).unwrap(), record);
            assert!(!record.encode().contains('\n'));
        }
        let revisions: Vec<_> = history.iter().map(|record| record.revision).collect();
        assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    }
}

#[test]
fn the_stored_form_of_format_1_stays_readable() {
    let golden = include_str!("../../golden/record-1.jsonl");

    assert_eq!(golden.lines().count(), 22);
    for line in golden.lines() {
        let record = Record::decode(line).unwrap();
        assert_eq!(record.encode(), line, "a new stored form needs a new format number");
    }
}

#[test]
fn a_record_of_another_format_is_refused_by_name() {
    let mut record = failover(&[]);
    record.format = FORMAT + 6;

    let refused = advance::<Failover>(record.clone(), &mut Site::default(), 0).unwrap_err();
    assert!(matches!(&refused, EngineError::UnknownFormat { found: 7, .. }));
    let text = refused.to_string();
    assert!(text.contains("failover") && text.contains("format 7"), "{text}");

    let refused = Record::decode(&record.encode()).unwrap_err();
    assert!(matches!(refused, DecodeError::UnknownFormat { found: 7 }), "{refused}");
    let future = r#"{"format":9,"anything":["else"]}"#;
    assert!(matches!(Record::decode(future), Err(DecodeError::UnknownFormat { found: 9 })));
    assert!(matches!(Record::decode("{}"), Err(DecodeError::Malformed(_))));
}

#[test]
fn a_record_of_an_unknown_kind_is_refused_by_name() {
    let mut record = failover(&[]);
    record.kind = "teleport".into();
    let mut site = Site::default();

    let refused = registry().advance(record.clone(), &mut site, 0).unwrap_err().to_string();
    let known = "commit, enable, failover, probe";
    assert_eq!(refused, format!("job kind teleport is unknown, known are: {known}"));
    let refused = advance::<Failover>(record, &mut site, 0).unwrap_err().to_string();
    assert!(refused.contains("teleport") && refused.contains("failover"), "{refused}");
    assert_eq!(site, Site::default());
}

#[test]
fn a_record_of_other_steps_is_refused_with_both_lists_and_runs_nothing() {
    let record = failover(&[]);
    let mut site = Site::default();

    let refused = advance::<Renamed>(record, &mut site, 0).unwrap_err();

    let text = refused.to_string();
    for name in ["reversible/point", "reversible/fence", "abandon/resync", "forward/start"] {
        assert!(text.contains(name), "{text}");
    }
    assert!(matches!(refused, EngineError::OtherSteps { kind: "failover", .. }));
    assert_eq!(site, Site::default());
}

#[test]
fn a_record_whose_steps_moved_between_lists_or_changed_order_is_refused() {
    let mut moved = failover(&[]);
    moved.log[2].list = List::Forward;
    let mut swapped = failover(&[]);
    swapped.log.swap(0, 1);
    let mut shorter = failover(&[]);
    shorter.log.pop();
    for record in [moved, swapped, shorter] {
        let refused = advance::<Failover>(record, &mut Site::default(), 0).unwrap_err();
        assert!(matches!(refused, EngineError::OtherSteps { .. }), "{refused}");
    }
}

#[test]
fn a_record_that_points_outside_its_lists_is_refused() {
    let reason = Reason::Cancelled;
    let phases = [
        Phase::Reversible { next: 4 },
        Phase::Forward { next: 2 },
        Phase::Undoing { left: 4, reason: reason.clone() },
        Phase::Undoing { left: 0, reason: reason.clone() },
        Phase::Abandoning { next: 2, reason },
    ];
    for phase in phases {
        let record = Record { phase, ..failover(&[]) };
        let refused = advance::<Failover>(record, &mut Site::default(), 0).unwrap_err();
        assert!(matches!(refused, EngineError::NoSuchStep { .. }), "{refused}");
    }
}

#[test]
fn a_memory_that_cannot_be_read_is_refused_with_its_cause() {
    let record = Record { job: serde_json::json!({"script": 3}), ..failover(&[]) };

    let refused = advance::<Failover>(record, &mut Site::default(), 0).unwrap_err();

    assert_eq!(refused.to_string(), "could not read the memory of job failover");
    assert!(refused.source().is_some());
}

#[test]
#[should_panic(expected = "two job kinds are named failover")]
fn a_kind_is_registered_only_once() {
    let _ = Registry::new().with::<Failover>().with::<Renamed>();
}

#[derive(Serialize, Deserialize)]
struct Stutter(Memory);

impl Job for Stutter {
    type Context = Site;
    const KIND: &'static str = "stutter";
    const REVERSIBLE: &'static [Reversible<Self>] = &[reversible!("check")];
    const FORWARD: &'static [Forward<Self>] = &[forward!("check"), forward!("check")];
    const ABANDON: &'static [Forward<Self>] = &[];
}

#[test]
#[should_panic(expected = "job stutter has two steps forward/check")]
fn step_names_are_unique_within_a_list() {
    let _ = Registry::new().with::<Stutter>();
}
