//! Tests of the protection states: rows of the table, and properties over random histories.

use super::*;
use crate::table::{sample_events, sample_items};
use proptest::prelude::*;

fn job() -> JobId {
    JobId::from_u128(1)
}

fn point(n: u128) -> PointId {
    PointId::from_u128(n)
}

fn machine(n: u128) -> InstanceId {
    InstanceId::from_u128(n)
}

fn protected() -> ProtectedItem {
    run(ProtectedItem::new(job()), &[Event::Prepared { job: job() }, Event::Seeded])
}

fn run(item: ProtectedItem, events: &[Event]) -> ProtectedItem {
    events.iter().fold(item, |item, event| item.apply(event).unwrap())
}

fn failover(choice: PointChoice) -> Event {
    Event::FailoverStarted { job: job(), choice, target: Site::Recovery }
}

fn failed_over() -> ProtectedItem {
    let events = [
        failover(PointChoice::Latest),
        Event::SourceFenced,
        Event::PointChosen { point: point(1) },
        Event::FailoverFinished { machine: machine(1) },
    ];
    run(protected(), &events)
}

/// F-105.
#[test]
fn failback_is_a_failover_in_the_other_direction() {
    let circle = |target| {
        [
            Event::FailoverStarted { job: job(), choice: PointChoice::Latest, target },
            Event::SourceFenced,
            Event::PointChosen { point: point(1) },
            Event::FailoverFinished { machine: machine(1) },
            Event::Committed,
            Event::ReprotectStarted { job: job() },
            Event::Seeded,
        ]
    };

    let away = run(protected(), &circle(Site::Recovery));
    let home = run(away.clone(), &circle(Site::Primary));

    assert_eq!(away.direction, Direction::ToPrimary);
    assert_eq!((home.direction, home.active), (Direction::ToRecovery, Site::Primary));
    assert_eq!(home.epoch, Epoch(5));
}

/// F-079.
#[test]
fn an_undone_failover_returns_where_it_came_from_with_a_new_epoch() {
    let before = protected();

    let after = run(
        before.clone(),
        &[
            failover(PointChoice::Latest),
            Event::SourceFenced,
            Event::SourceUnfenced { job: job() },
            Event::FailoverUndone { job: job() },
        ],
    );

    assert_eq!(after.protection, before.protection);
    assert_eq!(after.epoch, Epoch(before.epoch.0 + 2));
    assert_eq!(after.direction, before.direction);
}

#[test]
fn a_fenced_failover_cannot_be_undone_without_lifting_the_fence_once() {
    let fenced = run(protected(), &[failover(PointChoice::Latest), Event::SourceFenced]);
    let lifted = fenced.apply(&Event::SourceUnfenced { job: job() }).unwrap();

    assert!(fenced.apply(&Event::FailoverUndone { job: job() }).is_err());
    assert!(fenced.apply(&Event::SourceUnfenced { job: JobId::from_u128(2) }).is_err());
    assert!(lifted.apply(&Event::SourceUnfenced { job: job() }).is_err());
    assert!(lifted.apply(&Event::SourceFenced).is_err());
}

/// F-100.
#[test]
fn an_abandoned_change_of_point_keeps_the_machine_that_runs() {
    let before = failed_over();

    let after = run(
        before.clone(),
        &[Event::PointChanged { job: job(), to: point(2) }, Event::ChangeAbandoned],
    );

    assert_eq!(after, before);
}

/// F-101.
#[test]
fn commit_ends_the_change_of_point() {
    let committed = failed_over().apply(&Event::Committed).unwrap();

    assert!(committed.apply(&Event::PointChanged { job: job(), to: point(2) }).is_err());
    assert_eq!(committed.commit, Commit::Done);
}

#[test]
fn an_abandoned_failover_resynchronizes_under_a_new_epoch() {
    let before = failed_over();

    let after = before.apply(&Event::FailoverAbandoned { job: job() }).unwrap();

    assert!(matches!(after.protection, Protection::Resynchronizing { .. }));
    assert_eq!(after.epoch, before.epoch.next());
    assert_eq!((after.active, after.commit), (Site::Primary, Commit::Done));
}

#[test]
fn a_failover_after_a_commit_needs_a_retained_point() {
    let committed = failed_over().apply(&Event::Committed).unwrap();

    assert!(committed.apply(&failover(PointChoice::Latest)).is_err());
    assert!(committed.apply(&failover(PointChoice::Custom(point(1)))).is_ok());
}

/// F-109: the final point of a full copy is its first one, so an unplanned failover has none.
#[test]
fn while_reprotecting_only_a_failover_that_copies_everything_may_begin() {
    let committed = failed_over().apply(&Event::Committed).unwrap();
    let before = committed.apply(&Event::ReprotectStarted { job: job() }).unwrap();
    let full = Event::FullFailoverStarted { job: JobId::from_u128(2) };

    for choice in [PointChoice::Latest, PointChoice::LatestProcessed, PointChoice::Custom(point(1))]
    {
        assert!(before.apply(&failover(choice)).is_err(), "{choice:?}");
    }
    for item in [protected(), failed_over(), committed] {
        assert!(item.apply(&full).is_err(), "{item:?}");
    }
    let begun = before.apply(&full).unwrap();
    let undone = Event::FailoverUndone { job: JobId::from_u128(2) };
    assert_eq!(begun.apply(&undone).unwrap(), before);
    let fenced = run(begun, &[Event::SourceFenced, Event::PointChosen { point: point(2) }]);
    let home = fenced.apply(&Event::FailoverFinished { machine: machine(2) }).unwrap();
    assert_eq!((home.active, home.direction), (Site::Primary, Direction::ToPrimary));
    let back = fenced.apply(&Event::FailoverAbandoned { job: job() }).unwrap();
    assert!(matches!(back.protection, Protection::Resynchronizing { .. }));
    assert_eq!(back.active, Site::Recovery);
}

#[test]
fn a_failover_is_legal_in_every_test_state() {
    let base = protected();
    let tests = [
        TestState::None,
        TestState::Running { job: job() },
        TestState::Active { machine: machine(9) },
        TestState::CleaningUp { job: job(), machine: machine(9) },
    ];
    for test in tests {
        let item = ProtectedItem { test, ..base.clone() };

        let after = item.apply(&failover(PointChoice::Latest)).unwrap();

        assert_eq!(after.test, test, "the test machine is left alone");
    }
}

#[test]
fn the_table_in_the_manual_is_the_table_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protection-table.md");
    let table = crate::protection_table();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(golden, table, "run the test with UPDATE_GOLDEN=1 and read the difference");
}

proptest! {
    #[test]
    fn epochs_never_go_back_and_states_survive_storage(
        start in 0..sample_items().len(),
        picks in prop::collection::vec(0..sample_events().len(), 0..60),
    ) {
        let mut item = sample_items()[start].clone();
        for pick in picks {
            let before = item.clone();
            if let Ok(next) = item.apply(&sample_events()[pick]) {
                item = next;
            }
            prop_assert!(item.epoch >= before.epoch);
            let text = serde_json::to_string(&item).unwrap();
            prop_assert_eq!(&serde_json::from_str::<ProtectedItem>(&text).unwrap(), &item);
        }
    }

    #[test]
    fn the_active_site_changes_only_when_a_machine_started_or_was_abandoned(
        start in 0..sample_items().len(),
        pick in 0..sample_events().len(),
    ) {
        let item = &sample_items()[start];
        let event = &sample_events()[pick];
        if let Ok(next) = item.apply(event)
            && next.active != item.active
        {
            let started = matches!(event, Event::FailoverFinished { .. });
            let abandoned = matches!(event, Event::FailoverAbandoned { .. });
            prop_assert!(started || abandoned);
        }
    }
}
