//! Points of what a left machine wrote: sealed like any other, with an origin and a name.

use crate::world::{ITEM, VAULT, World, retention};
use leeward_model::{PointOrigin, Site, UnixMillis};
use leeward_nbd::server::Export as _;
use leeward_replica::{
    PointExport, StoreError, View,
    manifest::{Change, Manifest, ManifestKind},
};
use leeward_wire::keys::{DataKey, manifest_mac_key};
use std::sync::Arc;

const NAME: &str = "divergent-2026-11-21T03:04:05Z";

/// A point of a left machine on a timeline of its own, behind a replicated one.
fn seeded(seed: u64) -> (World, leeward_model::PointId) {
    let (_, mut world) = World::on_crash_disk(seed);
    world.branch_off().unwrap();
    world.append().unwrap();
    let point = world.commit_divergent(NAME).unwrap();
    (world, point)
}

#[test]
fn a_divergent_point_is_listed_with_its_origin_and_name_also_after_a_restart() {
    let (mut world, point) = seeded(20);
    world.restart().unwrap();

    let page = world.reader().points(0, 10, Site::Primary).unwrap();

    let shown: Vec<_> = page.points.iter().map(|info| (&info.origin, info.name.as_str())).collect();
    assert_eq!(shown, [(&PointOrigin::Divergent, NAME), (&PointOrigin::Replicated, "")]);
    assert_eq!(page.points[0].id, point);
    assert_eq!(world.reader().newest_point().unwrap().id, point);
}

#[test]
fn a_divergent_point_can_be_viewed_exported_pinned_and_started_from() {
    let (mut world, point) = seeded(21);
    let place = world.reader().position_of(point).unwrap();
    world.check_contents().unwrap();
    let view = Arc::new(View::open(world.reader(), place).unwrap());
    let export = PointExport::new(view, leeward_model::DiskNumber(0)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let served = runtime.block_on(export.read(0, 65_536)).unwrap();
    let (disk, extent) = (leeward_model::DiskNumber(0), leeward_model::ExtentNumber(0));
    assert_eq!(served[..], world.model.extent(place, disk, extent));
    world.pin_newest().unwrap();
    assert_eq!(world.reader().pins().unwrap()[0].point, point);

    world.open_branch(Some(place)).unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();

    world.check_contents().unwrap();
}

#[test]
fn a_divergent_point_expires_like_any_other() {
    let (mut world, point) = seeded(22);
    world.branch_off().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();

    let expired = world.item().expire(UnixMillis(i64::MAX), &retention()).unwrap();

    assert!(expired.points.contains(&point));
    world.check_contents().unwrap();
    assert!(matches!(world.reader().position_of(point), Err(StoreError::NoPoint { .. })));
}

#[test]
fn a_name_that_does_not_go_with_its_origin_is_refused_and_nothing_is_committed() {
    let (_, mut world) = World::on_crash_disk(23);
    world.append_marker().unwrap();
    world.sync().unwrap();
    let place = world.place(world.received);
    let long = "x".repeat(256);
    let wrong = [
        (PointOrigin::Replicated, Some(NAME)),
        (PointOrigin::Divergent, None),
        (PointOrigin::Divergent, Some("")),
        (PointOrigin::Divergent, Some(long.as_str())),
        (PointOrigin::BeforeChange, None),
    ];
    for (origin, name) in wrong {
        let receipt = world.receipt_of(origin, name);
        let refused = world.item().commit_point(place, &receipt);
        assert!(matches!(refused, Err(StoreError::Refused { .. })), "{receipt:?}: {refused:?}");
    }
    assert_eq!(world.reader().state().points.len(), 1);

    let receipt = world.receipt_of(PointOrigin::Divergent, Some(&long[1..]));
    world.item().commit_point(place, &receipt).unwrap();
}

#[test]
fn origin_and_name_come_back_from_the_manifest_as_they_were() {
    let (world, point) = seeded(24);
    let divergent = world.reader().state().point(point).unwrap().clone();
    let kept = leeward_replica::PointRecord {
        origin: PointOrigin::BeforeChange,
        name: "before-change-ä".into(),
        ..divergent.clone()
    };
    let key = manifest_mac_key(&DataKey::from_bytes([1; 32]));
    let manifest = Manifest {
        kind: ManifestKind::Delta,
        number: 7,
        vault: VAULT,
        item: ITEM,
        generation: 1,
        writer: [4; 16],
        predecessor: [5; 32],
        stamped_at: UnixMillis(9),
        changes: vec![Change::PointAdded(divergent), Change::PointAdded(kept)],
    };

    assert_eq!(Manifest::decode(&manifest.encode(&key), &key).unwrap(), manifest);
}
