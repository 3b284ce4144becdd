//! Prints every state × event pair of the protection states, for the manual and its golden test.

use crate::{
    Commit, Event, FailoverOrigin, Fence, InstanceId, JobId, PointChoice, PointId, ProtectedItem,
    Protection, Site, SourceState, TestState,
};
use std::fmt::Write as _;

const JOB: JobId = JobId::from_u128(1);
const POINT: PointId = PointId::from_u128(1);
const MACHINE: InstanceId = InstanceId::from_u128(1);

/// One item in every state, the variants of failing over and of the test failover among them.
pub(crate) fn sample_items() -> Vec<ProtectedItem> {
    let item = |protection| ProtectedItem { protection, ..ProtectedItem::new(JOB) };
    let failing = |choice, point, from, fence| {
        let target = Site::Recovery;
        item(Protection::FailingOver { job: JOB, choice, point, target, from, fence })
    };
    let before = crate::Direction::ToRecovery;
    let mut items = vec![
        item(Protection::Enabling { job: JOB }),
        item(Protection::InitialReplication { job: JOB }),
        item(Protection::Protected),
        item(Protection::Resynchronizing { job: JOB, reason: "asked for".into() }),
        failing(PointChoice::Latest, None, FailoverOrigin::Protected, Fence::Open),
        failing(PointChoice::Latest, None, FailoverOrigin::Protected, Fence::Fenced { before }),
        failing(
            PointChoice::Latest,
            Some(POINT),
            FailoverOrigin::Protected,
            Fence::Fenced { before },
        ),
        failing(PointChoice::Latest, Some(POINT), FailoverOrigin::Protected, Fence::Lifted),
        item(Protection::FailedOver { point: POINT, machine: MACHINE }),
        item(Protection::ChangingPoint { job: JOB, from: POINT, machine: MACHINE, to: POINT }),
        item(Protection::Committed { machine: MACHINE }),
        item(Protection::Reprotecting { job: JOB }),
        item(Protection::Disabling { job: JOB }),
        item(Protection::Removed),
    ];
    items[8].commit = Commit::Pending { point: POINT };
    items[9].commit = Commit::Pending { point: POINT };
    for test in [
        TestState::Running { job: JOB },
        TestState::Active { machine: MACHINE },
        TestState::CleaningUp { job: JOB, machine: MACHINE },
    ] {
        items.push(ProtectedItem { test, ..item(Protection::Protected) });
    }
    for protection in [
        Protection::Reprotecting { job: JOB },
        Protection::Protected,
        Protection::Committed { machine: MACHINE },
    ] {
        items.push(ProtectedItem { commit: Commit::Pending { point: POINT }, ..item(protection) });
    }
    let from = FailoverOrigin::Committed { machine: MACHINE };
    let choice = PointChoice::Custom(POINT);
    items.push(failing(choice, Some(POINT), from, Fence::Fenced { before }));
    for fence in [Fence::Open, Fence::Fenced { before }] {
        let from = FailoverOrigin::Reprotecting { job: JOB };
        items.push(failing(PointChoice::Latest, None, from, fence));
    }
    items
}

/// One event of every kind.
pub(crate) fn sample_events() -> Vec<Event> {
    let reason = "asked for".to_owned();
    vec![
        Event::Prepared { job: JOB },
        Event::PrepareFailed,
        Event::Seeded,
        Event::ResyncNeeded { job: JOB, reason },
        Event::FailoverStarted { job: JOB, choice: PointChoice::Latest, target: Site::Recovery },
        Event::FailoverStarted {
            job: JOB,
            choice: PointChoice::Custom(POINT),
            target: Site::Recovery,
        },
        Event::FullFailoverStarted { job: JOB },
        Event::PointChosen { point: POINT },
        Event::SourceFenced,
        Event::SourceUnfenced { job: JOB },
        Event::FailoverUndone { job: JOB },
        Event::FailoverFinished { machine: MACHINE },
        Event::FailoverAbandoned { job: JOB },
        Event::PointChanged { job: JOB, to: POINT },
        Event::ChangeFinished { machine: MACHINE },
        Event::ChangeAbandoned,
        Event::Committed,
        Event::ReverseStarted { job: JOB },
        Event::ReprotectStarted { job: JOB },
        Event::ReprotectAbandoned { machine: MACHINE },
        Event::DisableStarted { job: JOB },
        Event::DisableFinished,
        Event::TestStarted { job: JOB },
        Event::TestReady { machine: MACHINE },
        Event::TestUndone,
        Event::TestCleanupStarted { job: JOB },
        Event::TestCleaned,
        Event::SourceSeen { source: SourceState::Unknown },
    ]
}

fn label(item: &ProtectedItem) -> String {
    let mut text = item.protection.name();
    if let Protection::FailingOver { point, fence, from, .. } = &item.protection {
        let fence = match fence {
            Fence::Open => "open",
            Fence::Fenced { .. } => "fenced",
            Fence::Lifted => "lifted",
        };
        let known = if point.is_some() { "point known" } else { "point not known" };
        let from = match from {
            FailoverOrigin::Protected | FailoverOrigin::Resynchronizing { .. } => "",
            FailoverOrigin::Committed { .. } => ", from committed",
            FailoverOrigin::Reprotecting { .. } => ", from reprotecting",
        };
        let _ = write!(text, " ({fence}, {known}{from})");
    }
    match item.test {
        TestState::None => {}
        TestState::Running { .. } => text.push_str(" + test running"),
        TestState::Active { .. } => text.push_str(" + test active"),
        TestState::CleaningUp { .. } => text.push_str(" + test cleaning up"),
    }
    if item.commit != Commit::Done {
        text.push_str(" + commit pending");
    }
    text
}

fn event_label(event: &Event) -> String {
    match event {
        Event::FailoverStarted { choice: PointChoice::Custom(_), .. } => {
            format!("{} (a point)", event.name())
        }
        Event::FailoverStarted { .. } => format!("{} (latest)", event.name()),
        _ => event.name(),
    }
}

/// The protection table in Markdown: for every state, the events that it allows and where they
/// lead. What is not listed is refused.
pub fn protection_table() -> String {
    let mut text = String::from(
        "# Protection table\n\nWritten by the code (`leeward-model`, `protection_table`); a test \
         keeps it so. Every pair of state and event that is not listed is refused with the state \
         unchanged. `source-seen` only notes what is known of the machine that was left.\n\n\
         | state | event | next state | epoch | direction | runs at |\n|---|---|---|---|---|---|\n",
    );
    for item in sample_items() {
        for event in sample_events() {
            if matches!(event, Event::SourceSeen { .. }) {
                continue;
            }
            if let Ok(next) = item.apply(&event) {
                let epoch = next.epoch.0 - item.epoch.0;
                let turned = if next.direction == item.direction { "same" } else { "turned" };
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | +{epoch} | {turned} | {:?} |",
                    label(&item),
                    event_label(&event),
                    label(&next),
                    next.active,
                );
            }
        }
    }
    text
}
