//! Timelines that are filled and have no point yet: what they hold, and how they go.

use crate::world::{ITEM, World, check_place, retention};
use leeward_model::{Position, Site, TimelineId, UnixMillis};
use leeward_replica::{Expired, StoreError, View, storage::BlobStore as _, storage::CrashDisk};

/// A seed point S on the first timeline, a newer point on another one that shares nothing with
/// it, and a copy that stands on S: progress in two segments, no point. Returns S.
fn half_made(seed: u64) -> (CrashDisk, World, Position) {
    let (disk, mut world) = World::on_crash_disk(seed);
    let seed_place = world.place(world.received);
    world.seal().unwrap();
    world.open_branch(None).unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.seal().unwrap();
    world.open_branch(Some(seed_place)).unwrap();
    for _ in 0..2 {
        world.append().unwrap();
        world.seal().unwrap();
        world.commit_progress().unwrap();
    }
    (disk, world, seed_place)
}

fn expire_all(world: &mut World) -> Expired {
    let expired = world.item().expire(UnixMillis(i64::MAX), &retention()).unwrap();
    for point in &expired.points {
        world.model.points.remove(point);
    }
    expired
}

fn segments_on(world: &World, timeline: TimelineId) -> usize {
    let segments = world.reader().state().segments.values();
    segments.filter(|range| range.timeline == timeline).count()
}

fn check_head(world: &World) {
    check_place(world.reader(), &world.model, world.place(world.received)).unwrap();
}

#[test]
fn a_half_made_copy_is_no_point_and_not_the_newest() {
    let (_, world, _) = half_made(30);
    let newest = world.reader().newest_point().unwrap();
    assert_ne!(newest.position.timeline, world.branch.timeline);

    let page = world.reader().points(0, 10, Site::Recovery).unwrap();

    assert_eq!(page.total, 2);
    assert!(page.points.iter().all(|info| info.position.timeline != world.branch.timeline));
}

#[test]
fn expiry_keeps_what_a_half_made_copy_holds_and_stands_on_until_its_first_point_reads_right() {
    let (_, mut world, seed_place) = half_made(31);
    let (half, segments) = (world.branch.timeline, segments_on(&world, seed_place.timeline));

    let expired = expire_all(&mut world);

    assert_eq!(expired.points.len(), 1, "S is listed no more");
    assert!(View::open(world.reader(), seed_place).is_err());
    assert_eq!(expired.segments, [], "the copy needs them all");
    assert_eq!(segments_on(&world, seed_place.timeline), segments);
    check_head(&world);
    world.append().unwrap();
    world.commit_point().unwrap();
    world.check_contents().unwrap();
    let expired = expire_all(&mut world);
    assert_eq!(expired.points.len(), 1, "the other timeline's");
    assert_eq!(world.reader().newest_point().unwrap().position.timeline, half);
    world.check_contents().unwrap();
}

#[test]
fn a_copy_without_one_record_yet_keeps_what_it_stands_on() {
    let (_, mut world) = World::on_crash_disk(32);
    let seed_place = world.place(world.received);
    world.open_branch(None).unwrap();
    world.commit_point().unwrap();
    world.open_branch(Some(seed_place)).unwrap();

    assert_eq!(expire_all(&mut world).points.len(), 1);

    assert!(world.reader().is_kept(world.place(seed_place.lsn)).unwrap());
    check_head(&world);
    world.append().unwrap();
    world.commit_point().unwrap();
    world.check_contents().unwrap();
}

#[test]
fn a_half_made_copy_goes_on_after_expiry_and_a_restart() {
    let (_, mut world, _) = half_made(33);
    expire_all(&mut world);

    world.restart().unwrap();

    check_head(&world);
    expire_all(&mut world);
    world.append().unwrap();
    world.commit_point().unwrap();
    world.check_contents().unwrap();
}

#[test]
fn a_half_made_copy_does_not_keep_other_timelines_points_from_expiring() {
    let (_, mut world, _) = half_made(34);
    let other = world.reader().newest_point().unwrap().position;
    world.commit_point().unwrap();
    let place = world.place(world.received);
    world.open_branch(Some(place)).unwrap();
    world.append().unwrap();
    world.sync().unwrap();
    world.commit_progress().unwrap();

    let expired = expire_all(&mut world);

    assert_eq!(expired.points.len(), 2);
    assert_eq!(segments_on(&world, other.timeline), 0, "nothing stands on that");
    world.check_contents().unwrap();
    check_head(&world);
}

#[test]
fn a_retired_copy_frees_its_bytes_and_those_it_alone_stood_on() {
    let (disk, mut world, seed_place) = half_made(35);
    let other = world.reader().newest_point().unwrap().position.timeline;
    expire_all(&mut world);
    world.append().unwrap();
    let (half, now) = (world.branch.timeline, world.tick());
    let before = world.reader().stored_bytes().unwrap();

    let freed = world.item().retire_branch(half, now).unwrap();

    assert_eq!(freed.len(), 3, "one of S, two of the copy");
    assert_eq!((segments_on(&world, half), segments_on(&world, seed_place.timeline)), (0, 0));
    assert_eq!(segments_on(&world, other), 1);
    let left = disk.list(&format!("items/{ITEM}/segments")).unwrap();
    assert_eq!(left.len(), 1, "the open segment of the copy is gone as well: {left:?}");
    assert!(world.reader().stored_bytes().unwrap() < before);
    world.check_contents().unwrap();
    world.restart().unwrap();
    world.check_contents().unwrap();
}

#[test]
fn a_retired_timeline_takes_nothing_more_and_its_points_stay() {
    let (_, mut world) = World::on_crash_disk(36);
    let point = world.reader().newest_point().unwrap().position;
    world.append().unwrap();
    world.sync().unwrap();
    world.commit_progress().unwrap();
    let (head, now) = (world.place(world.received), world.tick());
    assert!(world.reader().is_kept(head).unwrap());

    world.item().retire_branch(head.timeline, now).unwrap();
    let again = world.item().retire_branch(head.timeline, now).unwrap();

    assert_eq!(again, []);
    assert!(!world.reader().is_kept(head).unwrap());
    assert!(world.reader().is_kept(point).unwrap());
    world.check_contents().unwrap();
    world.sealer = None;
    assert!(matches!(world.append(), Err(StoreError::Refused { .. })));
    world.open_branch(Some(point)).unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.check_contents().unwrap();
}

#[test]
fn an_unknown_timeline_cannot_be_retired() {
    let (_, mut world) = World::on_crash_disk(37);

    let refused = world.item().retire_branch(TimelineId::from_u128(5), UnixMillis(0));

    assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
}

/// What a source does whose seed is gone: it asks, and copies everything without a parent.
#[test]
fn a_place_that_is_kept_no_more_is_known_as_such_and_cannot_be_a_parent() {
    let (_, mut world, seed_place) = half_made(38);
    assert!(world.reader().is_kept(seed_place).unwrap());
    let between = Position { lsn: leeward_model::Lsn(2), ..seed_place };
    assert!(!world.reader().is_kept(between).unwrap());
    let elsewhere = Position { timeline: TimelineId::from_u128(5), ..seed_place };
    assert!(!world.reader().is_kept(elsewhere).unwrap(), "not in this store at all");
    expire_all(&mut world);

    assert!(!world.reader().is_kept(seed_place).unwrap());
    let refused = world.open_branch(Some(seed_place));
    assert!(matches!(refused, Err(StoreError::NotKept { .. })), "{refused:?}");

    world.open_branch(None).unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.check_contents().unwrap();
}
