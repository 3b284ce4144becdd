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
