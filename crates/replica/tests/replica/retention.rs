//! What expiry lets go and what it never does.

use crate::world::{World, kept, retention};
use leeward_model::{Epoch, PointId, UnixMillis};
use leeward_replica::{
    PointReceipt, Retention, StoreError, Thinning, ThinningStep, View, storage::BlobStore as _,
};
use leeward_wire::message::ServerStamp;

#[test]
fn old_points_go_and_the_newest_stays_whatever_its_age() {
    let (_, mut world) = World::on_crash_disk(1);
    let old = world.reader().newest_point().unwrap().id;
    world.append().unwrap();
    let newest = world.commit_point().unwrap();

    let expired = world.item().expire(UnixMillis(i64::MAX), &retention()).unwrap();

    assert_eq!(expired.points, [old]);
    assert_eq!(world.reader().newest_point().unwrap().id, newest);
}

/// F-065.
#[test]
fn nothing_goes_before_its_time_or_while_points_are_kept_until_a_date() {
    let (_, mut world) = World::on_crash_disk(1);
    world.commit_point().unwrap();
    let young = Retention { keep_ms: 1_000_000_000, thinning: None, keep_until: None };
    let held = Retention {
        keep_ms: 0,
        thinning: None,
        keep_until: Some(UnixMillis(world.now + 1_000_000)),
    };
    let now = UnixMillis(world.now + 500_000);

    assert_eq!(world.item().expire(now, &young).unwrap().points, []);
    assert_eq!(world.item().expire(now, &held).unwrap().points, []);
}

#[test]
fn a_pinned_point_outlives_its_retention_and_goes_when_it_is_unpinned() {
    let (_, mut world) = World::on_crash_disk(2);
    let first = world.reader().newest_point().unwrap().clone();
    world.pin_newest().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();

    let expired = world.item().expire(UnixMillis(i64::MAX), &retention()).unwrap();
    assert_eq!(expired.points, []);
    View::open(world.reader(), first.position).unwrap().verify().unwrap();

    let (pin, _) = world.pins[0];
    world.reader().unpin(pin).unwrap();
    let expired = world.item().expire(UnixMillis(i64::MAX), &retention()).unwrap();
    assert_eq!(expired.points, [first.id]);
    let refused = View::open(world.reader(), first.position);
    assert!(matches!(refused, Err(StoreError::NotKept { .. })));
}

/// The race that pins are made for: the point went between the listing and the pin.
#[test]
fn a_pin_on_a_point_that_has_just_gone_is_refused_and_leaves_nothing() {
    let (_, mut world) = World::on_crash_disk(3);
    let mut other = world.reader().clone();
    let old = world.reader().newest_point().unwrap().id;
    world.append().unwrap();
    world.commit_point().unwrap();
    world.item().expire(UnixMillis(i64::MAX), &retention()).unwrap();

    let refused = other.pin(old, "export", "serving", UnixMillis(1));

    assert!(matches!(refused, Err(StoreError::NoPoint { .. })));
    assert!(world.reader().pins().unwrap().is_empty());
}

#[test]
fn segments_are_deleted_once_nothing_needs_them_and_not_before() {
    let (disk, mut world) = World::on_crash_disk(4);
    let mut deleted = 0;
    for _ in 0..30 {
        for _ in 0..8 {
            world.append().unwrap();
        }
        world.seal().unwrap();
        world.commit_point().unwrap();
        world.seal().unwrap();
        let now = world.tick();
        let expired = world.item().expire(now, &retention()).unwrap();
        deleted += expired.segments.len();
        world.check_contents().unwrap();
        for segment in &expired.segments {
            let path = format!("items/{}/segments/{segment}", crate::world::ITEM);
            assert_eq!(disk.len(&path).unwrap(), None);
        }
    }

    assert!(deleted > 20, "only {deleted} segments were collected");
}

#[test]
fn a_damaged_pin_stops_collection_instead_of_being_ignored() {
    let (disk, mut world) = World::on_crash_disk(5);
    world.pin_newest().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    let pin = disk.blobs().into_keys().find(|name| name.contains("/pins/")).unwrap();
    disk.flip(&pin, 700);
    let segments = world.reader().state().segments.len();

    let refused = world.item().expire(UnixMillis(i64::MAX), &retention());

    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    assert_eq!(world.reader().state().segments.len(), segments);
}

/// Kept work holds the data it sits on, until its own retention ends.
#[test]
fn kept_work_holds_its_base_until_it_expires() {
    let (_, mut world) = World::on_crash_disk(6);
    let base = world.reader().newest_point().unwrap().position;
    let (id, late) = (PointId::from_u128(500), UnixMillis(world.now + 100_000));
    world.item().add_kept(&kept(id, base, late)).unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();

    let expired = world.item().expire(UnixMillis(late.0 + 500), &retention()).unwrap();
    assert_eq!((expired.points.len(), expired.kept.len()), (1, 0));
    View::open(world.reader(), base).unwrap().verify().unwrap();

    let expired = world.item().expire(UnixMillis(late.0 + 5_000), &retention()).unwrap();
    assert_eq!(expired.kept[0].id, id);
    assert!(View::open(world.reader(), base).is_err());
}

/// Decision 13 in reverse: an abandoned change of point runs its machine on the kept overlay again.
#[test]
fn kept_work_whose_machine_runs_again_is_taken_off_the_list() {
    let (_, mut world) = World::on_crash_disk(6);
    let base = world.reader().newest_point().unwrap().position;
    let id = PointId::from_u128(500);
    world.item().add_kept(&kept(id, base, UnixMillis(0))).unwrap();

    world.item().remove_kept(id).unwrap();
    world.item().remove_kept(id).unwrap();

    assert!(world.reader().kept().unwrap().is_empty());
    assert!(matches!(world.reader().position_of(id), Err(StoreError::NoPoint { .. })));
}

#[test]
fn kept_work_cannot_sit_on_data_that_are_gone() {
    let (_, mut world) = World::on_crash_disk(6);
    let mut place = world.reader().newest_point().unwrap().position;
    place.lsn.0 -= 1;

    let refused = world.item().add_kept(&kept(PointId::from_u128(1), place, UnixMillis(0)));

    assert!(matches!(refused, Err(StoreError::NotKept { .. })), "{refused:?}");
}

#[test]
fn an_ended_timeline_takes_nothing_more() {
    let (_, mut world) = World::on_crash_disk(7);
    let old = world.branch;
    world.branch_off().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.item().expire(UnixMillis(i64::MAX), &retention()).unwrap();
    world.check_contents().unwrap();

    world.branch = old;
    world.received = world.reader().committed(old.timeline).unwrap();
    world.sealer = None;

    assert!(matches!(world.append(), Err(StoreError::Refused { .. })));
}

/// What a dry run says is what the run then does, and saying it changes nothing.
#[test]
fn what_would_expire_is_what_expires() {
    let (disk, mut world) = World::on_crash_disk(10);
    for _ in 0..5 {
        for _ in 0..12 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
        world.seal().unwrap();
    }
    let now = UnixMillis(world.now);
    let (before, stored) = (disk.blobs(), world.reader().stored_bytes().unwrap());

    let plan = world.reader().expiring(now, &retention()).unwrap();
    assert!(disk.blobs() == before, "looking changed the store");
    let expired = world.item().expire(now, &retention()).unwrap();

    assert!(!plan.points.is_empty() && plan.bytes > 0);
    assert_eq!(plan.points, expired.points);
    assert_eq!(plan.segments as usize, expired.segments.len());
    assert!(stored - world.reader().stored_bytes().unwrap() > 0);
}

/// With a point every 30 seconds, the 512 manifests that always stay are a few hours old.
#[test]
fn old_manifests_are_trimmed_where_points_come_fast_too() {
    let (disk, mut world) = World::on_crash_disk(8);
    let begun = world.now;
    for epoch in 1..=4_000_i64 {
        let now = UnixMillis(begun + epoch * 30_000);
        world.item().raise_fence(Epoch(epoch as u64), now).unwrap();
    }
    let now = UnixMillis(begun + 4_000 * 30_000);

    world.item().expire(now, &crate::world::retention_of(u64::MAX)).unwrap();

    let left = disk.list(&format!("items/{}/manifest", crate::world::ITEM)).unwrap().len();
    assert!((2_880..3_400).contains(&left), "{left} manifests are left of one day's 2880");
}

#[test]
fn old_manifests_are_trimmed_below_a_checkpoint_and_the_state_stays() {
    let (disk, mut world) = World::on_crash_disk(8);
    for epoch in 1..=1_100 {
        let now = UnixMillis(world.now);
        world.item().raise_fence(Epoch(epoch), now).unwrap();
    }
    let folder = format!("items/{}/manifest", crate::world::ITEM);
    let before = disk.list(&folder).unwrap().len();
    let soon = UnixMillis(world.now + 3_600_000);
    let later = UnixMillis(world.now + 2 * 86_400_000);

    world.item().expire(soon, &retention()).unwrap();
    assert!(disk.list(&folder).unwrap().len() >= before, "younger than a day");
    world.item().expire(later, &retention()).unwrap();
    let left = disk.list(&folder).unwrap();

    assert!(left.len() >= 512 && left.len() < 800, "{} manifests are left", left.len());
    let state = world.reader().state().clone();
    world.epoch = Epoch(1_100);
    world.restart().unwrap();
    assert_eq!(world.reader().state(), &state);
    world.commit_point().unwrap();
}

/// Retention by thinning: the points between go, and what is left reads right.
#[test]
fn points_are_thinned_out_and_pinned_named_and_newest_ones_stay() {
    let (_, mut world) = World::on_crash_disk(9);
    let begun = world.now;
    let mut points = Vec::new();
    for number in 0..40 {
        world.append().unwrap();
        // Two of every three minutes have a point at their begin and one 20 s later.
        world.now = begun + 60_000 * (number / 2) + 20_000 * (number % 2);
        points.push(world.commit_point().unwrap());
        if number == 11 {
            world.pin_newest().unwrap();
        }
    }
    world.commit_divergent("divergent-here").unwrap();
    let now = UnixMillis(begun + 20 * 60_000);
    let step = |after_ms, minutes: u64| ThinningStep { after_ms, every_ms: minutes * 60_000 };
    let thinning = Thinning::new(vec![step(300_000, 1), step(900_000, 5)]).unwrap();
    let retention =
        Retention { keep_ms: 1_000_000_000, thinning: Some(thinning), keep_until: None };

    let gone = world.item().expire(now, &retention).unwrap().points;
    let again = world.item().expire(now, &retention).unwrap().points;

    assert_eq!(again, [], "a second run finds nothing more");
    assert!(gone.len() > 10, "only {} points went", gone.len());
    assert!(!gone.contains(&points[11]), "a pinned point went");
    for recent in &points[31..] {
        assert!(!gone.contains(recent), "a point of the last minutes went");
    }
    for point in &gone {
        world.model.points.remove(point);
    }
    world.check_contents().unwrap();
    let held = Retention { keep_until: Some(UnixMillis(now.0 + 1)), ..retention };
    assert_eq!(world.item().expire(now, &held).unwrap().points, []);
}

/// F-015, F-047: points that waited at the source come together, with the source's clock years off
/// in their markers; they are thinned by the config server's stamps of their cuts.
#[test]
fn points_that_came_together_are_thinned_by_when_the_server_says_they_were_cut() {
    let (_, mut world) = World::on_crash_disk(10);
    let came = world.now;
    for number in 0..60_u64 {
        world.append().unwrap();
        let point = world.append_marker().unwrap();
        world.now = came;
        let stamp = ServerStamp {
            boot: "the server's".into(),
            ms: 5_000 + number * 20_000,
            wall: UnixMillis(0),
        };
        let receipt = PointReceipt { cut_server: Some(stamp), ..world.receipt() };
        world.commit_marker(point, &receipt).unwrap();
    }
    let step = |after_ms, minutes: u64| ThinningStep { after_ms, every_ms: minutes * 60_000 };
    let thinning = Thinning::new(vec![step(300_000, 1), step(3_600_000, 10)]).unwrap();
    let retention =
        Retention { keep_ms: 1_000_000_000, thinning: Some(thinning), keep_until: None };
    let before = world.reader().state().points.len();
    let mut left_after = |ms: i64| {
        let now = UnixMillis(came + ms);
        for point in world.item().expire(now, &retention).unwrap().points {
            world.model.points.remove(&point);
        }
        world.check_contents().unwrap();
        world.reader().state().points.len()
    };

    assert_eq!(left_after(290_000), before, "none is old enough");
    // The world's first point and the newest one are on no slot's account.
    assert_eq!(left_after(500_000), 20 + 2);
    assert_eq!(left_after(3_600_000 + 700_000), 2 + 2);
}
