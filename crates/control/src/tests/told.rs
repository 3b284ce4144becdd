//! What operators are told: notes of hosts become events once, and so does where a machine is
//! live and which work was kept.

use super::*;
use crate::events::{EventView, Severity};
use leeward_model::UnixMillis;
use leeward_wire::message::{HostNote, NoteKind, StoreRoom};
use uuid::Uuid;

async fn events(pair: &Pair, name: &str) -> Vec<EventView> {
    let all = pair.fleet.control.event_list(pair.vault, 0, 1000).await.unwrap();
    all.into_iter().filter(|event| event.name == name).collect()
}

fn by_hand(pair: &Pair, id: u128, item: Option<ItemId>) -> HostNote {
    HostNote {
        id: Uuid::from_u128(id),
        at: UnixMillis(1_000),
        kind: NoteKind::StartedByHand,
        item: item.map(|_| pair.item),
        object: "web01".to_owned(),
        text: "machine web01 was started by hand without a permit".to_owned(),
    }
}

#[tokio::test]
async fn a_note_of_a_host_is_an_event_once_and_critical_where_the_machine_is_not_live() {
    let mut pair = Pair::protected().await;
    let control = pair.fleet.control.clone();
    let here = by_hand(&pair, 1, Some(pair.item));
    let stray = by_hand(&pair, 2, None);
    let both = vec![here.clone(), stray];
    let taken = control.host_notes(pair.source, both.clone()).await.unwrap();
    assert_eq!(taken, [Uuid::from_u128(1), Uuid::from_u128(2)]);
    // The receipt was lost, or the server was restarted before it: it comes again.
    pair.restart().await;
    let control = pair.fleet.control.clone();
    assert_eq!(control.host_notes(pair.source, both).await.unwrap(), taken);
    let seen = events(&pair, "MachineStartedByHand").await;
    assert_eq!(
        seen.iter().map(|one| one.severity).collect::<Vec<_>>(),
        [Severity::Warning, Severity::Critical]
    );
    let audited = pair.fleet.control.audit_list(0, 1000).await.unwrap();
    let audited = audited.iter().filter_map(|entry| entry.record.as_ref());
    let by_hand_entries = audited.filter(|record| record.action == "MachineStartedByHand");
    assert_eq!(by_hand_entries.count(), 2, "in the audit log too, once each");
    assert!(seen[0].text.contains("host kvm-a: machine web01"), "{}", seen[0].text);
    assert_eq!((seen[0].item, seen[0].at), (Some(pair.item), UnixMillis(1_000)));

    let job = pair.planned().await;
    pair.succeeds(job).await;
    let note = by_hand(&pair, 3, Some(pair.item));
    pair.fleet.control.host_notes(pair.source, vec![note]).await.unwrap();
    let seen = events(&pair, "MachineStartedByHand").await;
    assert_eq!(seen[2].severity, Severity::Critical, "it lives at the other site now");
}

#[tokio::test]
async fn where_a_machine_is_live_and_what_is_kept_of_it_is_told_once_each() {
    let mut pair = Pair::failed_over().await;
    let point = pair.points().await.last().unwrap().id;
    let job = pair.change_point(point).await.unwrap();
    pair.succeeds(job).await;
    for _ in 0..6 {
        pair.fleet.turn().await;
    }

    let live = events(&pair, "LiveAtChanged").await;
    let texts: Vec<_> = live.iter().map(|event| event.text.as_str()).collect();
    assert!(texts[0].starts_with("web01 is live at the primary site: "), "{texts:?}");
    assert!(texts.last().unwrap().starts_with("web01 is live at the recovery site: "), "{texts:?}");
    assert!(texts.windows(2).all(|pair| pair[0] != pair[1]), "told twice: {texts:?}");
    let kept = events(&pair, "WorkKept").await;
    let before: Vec<_> = kept.iter().filter(|one| one.text.contains("before-change-")).collect();
    assert_eq!(before.len(), 1, "{kept:?}");
}

/// An item whose points are older than its policy allows is an event when it begins and when it
/// has ended, not with every point; the age comes from when the host was last heard.
#[tokio::test]
async fn points_that_are_late_are_told_once_and_once_more_when_they_are_not() {
    let mut pair = Pair::protected().await;
    let source = pair.source;
    let policy = pair.view().await.policy;
    assert_eq!(events(&pair, "RpoExceeded").await.len(), 0);

    pair.fleet.host(source).temper = Temper::CutOff;
    pair.fleet.clock.advance(policy.rpo_threshold_seconds * 1000 - 60_000);
    pair.fleet.turn().await;
    assert_eq!(events(&pair, "RpoExceeded").await.len(), 0, "not yet");
    pair.fleet.clock.advance(61_000);
    for _ in 0..4 {
        pair.fleet.turn().await;
    }
    pair.restart().await;
    for _ in 0..4 {
        pair.fleet.turn().await;
    }
    let told = events(&pair, "RpoExceeded").await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].severity, Severity::Critical);
    let shown = pair.view().await.rpo_seconds.unwrap();
    assert!(shown > policy.rpo_threshold_seconds, "{shown}");
    assert_eq!(told[0].problem.as_ref().unwrap().code, Code::RPO_EXCEEDED.code);

    pair.fleet.host(source).temper = Temper::Obeys;
    for _ in 0..8 {
        pair.fleet.turn().await;
    }
    assert_eq!(events(&pair, "RpoMet").await.len(), 0, "not with the first point");
    pair.fleet.clock.advance(10 * 60_000);
    for _ in 0..8 {
        pair.fleet.turn().await;
    }
    assert_eq!(events(&pair, "RpoMet").await.len(), 1);
    let begun = events(&pair, "RpoExceeded").await.len();
    assert!(begun <= 2, "the silence of the test's own clock is told once at most: {begun}");
}

/// F-111: a store that cannot tell its room is a store.
#[tokio::test]
async fn a_reprotect_is_refused_without_a_store_and_not_for_a_room_that_is_unknown() {
    let mut pair = Pair::committed().await;
    let control = pair.fleet.control.clone();
    let source = pair.source;
    pair.fleet.host(source).store = StoreRoom::Absent;
    pair.fleet.turn().await;
    let refused = control.item_reprotect(pair.item, ReprotectSpec::default()).await.unwrap_err();
    assert_eq!(refused.problem.code, Code::NOT_POSSIBLE_NOW.code);
    assert!(refused.problem.what.contains("kvm-a has no store"), "{}", refused.problem);

    pair.fleet.host(source).store = StoreRoom::Unknown;
    pair.fleet.turn().await;
    let job = pair.reprotect().await;
    pair.succeeds(job).await;
}
