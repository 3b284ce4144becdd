//! Readiness: what would be in the way of a failover is told before it is needed.

use super::plans::Three;
use super::*;
use crate::items::Level;
use crate::readiness::{Check, ItemReadiness, Readiness, Subject};
use leeward_model::{NicSpec, UnixMillis};
use leeward_wire::capacity::HostCapacity;
use leeward_wire::message::{KitState, StoreRoom};

/// A host with this much memory for machines, and enough of everything else.
fn capacity(memory_mib: u64) -> Option<HostCapacity> {
    Some(HostCapacity {
        memory_mib: 1 << 20,
        memory_available_mib: memory_mib,
        cpus: 8,
        disk_free_bytes: Some(1 << 40),
        macs: vec!["52:54:00:00:00:01".to_owned()],
    })
}

async fn readiness(fleet: &Fleet, vault: VaultId) -> Readiness {
    fleet.control.readiness(vault).await.unwrap()
}

fn of<'a>(all: &'a Readiness, name: &str) -> &'a ItemReadiness {
    all.items.iter().find(|item| item.name == name).unwrap()
}

fn check<'a>(all: &'a Readiness, name: &str, subject: Subject) -> &'a Check {
    of(all, name).checks.iter().find(|check| check.subject == subject).unwrap()
}

fn names(missing: &[crate::readiness::NotFitting]) -> Vec<&str> {
    missing.iter().map(|one| one.name.as_str()).collect()
}

/// F-054, F-068: an item that was never tested says so, and is ready once a test has succeeded and
/// everything else that it needs is there.
#[tokio::test]
async fn an_item_is_ready_when_all_is_there_and_a_test_failover_has_proved_it() {
    let mut pair = Pair::protected().await;
    let before = readiness(&pair.fleet, pair.vault).await;
    assert_eq!(before.level, Level::Warning);
    assert_eq!(of(&before, "web01").last_proven, None);
    assert!(check(&before, "web01", Subject::Tested).text.contains("never tested"));
    let room = check(&before, "web01", Subject::Room);
    assert_eq!(room.level, Level::Warning, "unknown is not good: {room:?}");

    pair.fleet.host(TARGET).capacity = capacity(8192);
    pair.fleet.host(TARGET).kit = KitState::Tested { at: UnixMillis(1) };
    pair.fleet.turn().await;
    let control = pair.fleet.control.clone();
    let test = control.item_test_failover(pair.item, PointChoice::Latest).await.unwrap();
    pair.succeeds(test).await;
    let cleanup = control.item_test_cleanup(pair.item, "").await.unwrap();
    pair.succeeds(cleanup).await;
    pair.fleet.turn().await;

    let after = readiness(&pair.fleet, pair.vault).await;
    assert_eq!(of(&after, "web01").level, Level::Normal, "{after:#?}");
    assert!(of(&after, "web01").last_proven.is_some());
    assert_eq!((after.level, after.dependencies.len()), (Level::Normal, 0), "{after:#?}");

    pair.fleet.clock.advance(200 * 86_400_000);
    let late = readiness(&pair.fleet, pair.vault).await;
    assert_eq!(check(&late, "web01", Subject::Tested).level, Level::Warning);
    assert_eq!(check(&late, "web01", Subject::Host).level, Level::Critical, "nobody was heard");
    assert!(of(&late, "web01").level == Level::Critical);
}

/// All at once: those that would find no memory are named, and plans say which machines go first.
#[tokio::test]
async fn machines_that_would_not_start_beside_the_others_are_named_in_the_order_of_plans() {
    let mut three = Three::protected().await;
    // Each of the scripted machines has 256 MiB, and its process takes 128 more.
    three.fleet.host(TARGET).capacity = capacity(2 * 384 + 383);
    three.fleet.turn().await;
    let all = readiness(&three.fleet, three.vault).await;
    assert_eq!(names(&all.hosts[0].not_fitting), ["web01"], "by name: app01, db01, web01");
    assert_eq!(all.hosts[0].memory_needed_mib, 3 * 384);
    assert_eq!(check(&all, "web01", Subject::Room).level, Level::Critical);
    assert_eq!(check(&all, "db01", Subject::Room).level, Level::Normal);

    let mut planned = Three::planned().await;
    planned.fleet.host(TARGET).capacity = capacity(384);
    planned.fleet.turn().await;
    let all = readiness(&planned.fleet, planned.vault).await;
    let missing = names(&all.hosts[0].not_fitting);
    assert_eq!(missing, ["app01", "web01"], "db01 is in the first group");
    assert_eq!(names(&all.plans[0].not_fitting), missing);
    assert_eq!(all.plans[0].level, Level::Critical);
    assert_eq!(all.plans[0].not_ready, ["app01", "web01"]);
    planned.fleet.host(TARGET).capacity = capacity(3 * 384);
    planned.fleet.turn().await;
    let all = readiness(&planned.fleet, planned.vault).await;
    assert_eq!((all.hosts[0].not_fitting.len(), all.plans[0].not_ready.len()), (0, 0));
    assert_eq!(all.plans[0].level, Level::Warning, "the plan was never tested");
}

/// What runs on the recovery host already takes its memory, however little of it was touched yet.
#[tokio::test]
async fn memory_that_running_guests_may_still_touch_is_not_given_twice() {
    let mut pair = Pair::protected().await;
    pair.fleet.host(TARGET).capacity =
        Some(HostCapacity { memory_mib: 600, ..capacity(600).unwrap() });
    pair.fleet.turn().await;
    assert_eq!(readiness(&pair.fleet, pair.vault).await.hosts[0].not_fitting.len(), 0);

    pair.fleet.host(TARGET).machines = ScriptedHost::new(TARGET, "other", &["mail"]).machines;
    pair.fleet.turn().await;
    let all = readiness(&pair.fleet, pair.vault).await;
    assert_eq!(all.hosts[0].memory_room_mib, Some(600 - 384));
    assert_eq!(names(&all.hosts[0].not_fitting), ["web01"]);
}

/// F-121: what the way back needs is told while the machine is protected, not after the failover.
#[tokio::test]
async fn what_the_way_back_needs_is_told_before_anybody_leaves() {
    let mut pair = Pair::protected().await;
    let source = pair.source;
    let back = async |pair: &Pair| {
        let all = readiness(&pair.fleet, pair.vault).await;
        check(&all, "web01", Subject::WayBack).clone()
    };
    assert_eq!(back(&pair).await.level, Level::Normal);

    pair.fleet.host(source).store = StoreRoom::Absent;
    pair.fleet.turn().await;
    let found = back(&pair).await;
    assert_eq!(found.level, Level::Warning);
    assert!(found.text.contains("kvm-a has no store"), "{found:?}");
    pair.fleet.host(source).temper = Temper::CutOff;
    for _ in 0..8 {
        pair.fleet.turn().await;
    }
    assert!(back(&pair).await.text.contains("not connected"));
}

/// Whoever is needed for a failover and stands on what is to be failed over is named: the config
/// server inside a protected machine, and a machine that lives on the config server's own host.
#[tokio::test]
async fn what_the_config_server_stands_on_is_named_when_it_is_protected_itself() {
    let mut pair = Pair::protected().await;
    let source = pair.source;
    pair.fleet.host(TARGET).capacity = capacity(8192);
    let nic =
        |mac: &str| NicSpec { mac: mac.to_owned(), network: "user".to_owned(), address: None };
    pair.fleet.host(source).nics.insert("web01".to_owned(), vec![nic("52:54:00:00:00:02")]);
    pair.fleet.turn().await;
    assert!(readiness(&pair.fleet, pair.vault).await.dependencies.is_empty());

    pair.fleet.host(source).nics.insert("web01".to_owned(), vec![nic("52:54:00:00:00:01")]);
    pair.fleet.turn().await;
    let all = readiness(&pair.fleet, pair.vault).await;
    assert_eq!(all.dependencies[0].level, Level::Critical);
    assert!(all.dependencies[0].text.contains("inside the protected machine web01"), "{all:#?}");
    assert_eq!(all.level, Level::Critical);

    let away = Pair::failed_over().await;
    let all = readiness(&away.fleet, away.vault).await;
    assert!(all.dependencies[0].text.contains("config server's own host"), "{all:#?}");
    assert_eq!(check(&all, "web01", Subject::Point).level, Level::Critical, "not replicated");
}

/// Two machines with one hardware address do not work beside one another.
#[tokio::test]
async fn machines_with_one_hardware_address_are_named() {
    let mut three = Three::protected().await;
    let source = three.source;
    let nic =
        NicSpec { mac: "52:54:00:aa:00:01".to_owned(), network: "user".to_owned(), address: None };
    for name in ["web01", "db01"] {
        three.fleet.host(source).nics.insert(name.to_owned(), vec![nic.clone()]);
    }
    three.fleet.host(TARGET).capacity = capacity(8192);
    three.fleet.turn().await;

    let all = readiness(&three.fleet, three.vault).await;
    assert_eq!(
        all.hosts[0].warnings,
        ["web01 and db01 have the hardware address 52:54:00:aa:00:01"]
    );
}
