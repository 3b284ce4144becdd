//! Opening one point by hint and outline, without the item's lists: it says what the lists say, and
//! a hint or an outline that is lost, damaged, old or of another history is left aside.

use crate::world::{
    EAGER, EXTENTS, ITEM, OWNER, SeededRandom, VAULT, World, check_contents, machine, retention_of,
};
use leeward_model::{DiskNumber, ExtentNumber, PointId};
use leeward_replica::{
    ItemReader, PointReader, Store, StoreError, Unlock, Upkeep,
    storage::{LocalStore, Seeded},
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// A world on a real folder: only folders have hints.
fn on_folder(seed: u64) -> (TempDir, World) {
    let folder = tempfile::tempdir().unwrap();
    let local = Arc::new(LocalStore::open(folder.path()).unwrap());
    (folder, World::new(local, seed))
}

fn reading(folder: &Path) -> Store {
    let blobs = Arc::new(LocalStore::open_reading(folder));
    Store::open(blobs, Some(OWNER), &Unlock::KeyFile, SeededRandom::new(5)).unwrap()
}

fn one_point(folder: &Path) -> PointReader {
    reading(folder).point_read(ITEM).unwrap()
}

fn manifests(folder: &Path) -> PathBuf {
    folder.join(format!("items/{ITEM}/manifest"))
}

fn hint(folder: &Path) -> PathBuf {
    manifests(folder).join("hint")
}

fn outlines(folder: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(manifests(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = names.filter(|path| name_of(path).starts_with("outline-")).collect();
    names.sort();
    names
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Manifests there are, by the highest number.
fn newest(folder: &Path) -> u64 {
    let names = fs::read_dir(manifests(folder)).unwrap();
    names.filter_map(|entry| name_of(&entry.unwrap().path()).parse().ok()).max().unwrap()
}

/// Whether `found` says of every one of `points` what the lists of `known` say.
fn check(found: &mut PointReader, known: &ItemReader, points: &BTreeSet<PointId>) {
    let state = known.state();
    assert_eq!(found.newest_point().unwrap().as_ref(), known.newest_point());
    assert_eq!(found.points_len(), state.points.len() as u64);
    for id in points {
        assert_eq!(found.point(*id).unwrap().as_ref(), state.point(*id), "{id}");
    }
}

/// Whether a point's disks read as through the lists.
fn check_view(found: &mut PointReader, known: &ItemReader, id: PointId) {
    let Some(point) = found.point(id).unwrap() else { return };
    let expected = leeward_replica::View::open(known, point.position).unwrap();
    let view = found.view(&point).unwrap();
    assert_eq!(view.disks(), expected.disks());
    assert_eq!(view.content_hash().unwrap(), expected.content_hash().unwrap());
    for extent in (0..EXTENTS).map(ExtentNumber) {
        let read = |view: &leeward_replica::View| {
            view.read(DiskNumber(0), extent.offset(), 65_536).unwrap()
        };
        assert_eq!(read(&view), read(&expected));
    }
}

/// So many commits of all kinds; returns all points that were ever made.
fn live(
    world: &mut World,
    random: &mut Seeded,
    commits: usize,
    mut look: impl FnMut(&World, &BTreeSet<PointId>),
) -> BTreeSet<PointId> {
    let mut points: BTreeSet<PointId> = world.model.points.keys().copied().collect();
    for commit in 0..commits {
        match random.below(16) {
            0 => world.branch_off().unwrap(),
            1 => drop(world.index().unwrap()),
            2 => {
                let now = world.tick();
                let expired = world.item().expire(now, &retention_of(40_000)).unwrap();
                for point in &expired.points {
                    world.model.points.remove(point);
                }
            }
            3 => world.seal().unwrap(),
            _ => {
                world.append().unwrap();
                points.insert(world.commit_point().unwrap());
            }
        }
        if commit % 7 == 0 {
            look(world, &points);
        }
    }
    points
}

/// F-046: 10,000 points are found as fast as two because nothing lists them.
#[test]
fn one_point_is_found_as_from_the_lists_whatever_happened_since_the_checkpoint() {
    let (folder, mut world) = on_folder(31);
    world.set_upkeep(Upkeep { rewrite_below_percent: 60, ..EAGER });
    let mut random = Seeded::new(crate::world::seed("outline"));
    let mut outlined = 0;
    live(&mut world, &mut random, 700, |world, points| {
        let mut found = one_point(folder.path());
        outlined += u32::from(found.is_outlined());
        check(&mut found, world.reader(), points);
        for id in points.iter().rev().step_by(points.len().div_ceil(3)) {
            check_view(&mut found, world.reader(), *id);
        }
    });
    let looks = 700_u32.div_ceil(7);
    assert!(newest(folder.path()) > 2 * 256, "two checkpoints are not behind it");
    assert_eq!(outlined, looks, "every time without the lists");
    assert_eq!(outlines(folder.path()).len(), 2, "those of old checkpoints are deleted");
    let mut whole = one_point(folder.path());
    assert_eq!(whole.whole().unwrap().state(), world.reader().state());
    check_contents(&reading(folder.path()).item_read(ITEM).unwrap(), &world.model).unwrap();
    let point = whole.newest_point().unwrap().unwrap();
    assert_eq!(whole.machine(&point).unwrap(), machine());
}

/// A folder with a checkpoint behind it, all points it had, and its state.
fn small() -> (TempDir, World, BTreeSet<PointId>) {
    let (folder, mut world) = on_folder(32);
    let mut random = Seeded::new(9);
    let mut points = BTreeSet::new();
    while newest(folder.path()) < 256 + 9 {
        points.extend(live(&mut world, &mut random, 20, |_, _| ()));
    }
    (folder, world, points)
}

/// E9.
#[test]
fn a_flipped_bit_of_a_hint_or_an_outline_is_named_and_never_served() {
    let (folder, world, points) = small();
    let mut random = Seeded::new(crate::world::seed("outline flips"));
    let [outline] = &outlines(folder.path())[..] else { panic!("one outline") };
    let (mut flips, mut aside) = (0, 0);
    for path in [&hint(folder.path()), outline] {
        let good = fs::read(path).unwrap();
        let head = (0..200 * 8).step_by(5);
        let all = head.chain((0..120).map(|_| random.below(good.len() as u64 * 8) as usize));
        for bit in all {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(path, &bad).unwrap();

            let mut found = one_point(folder.path());
            check(&mut found, world.reader(), &points);

            flips += 1;
            aside += u32::from(!found.is_outlined());
            if bit % 16 == 0 {
                let reader = reading(folder.path()).item_read(ITEM).unwrap();
                let audit = reader.audit(&|_, _| ()).unwrap();
                let named = audit.damages.iter().any(|damage| path.ends_with(&damage.blob));
                assert!(named, "bit {bit} of {} is not named", path.display());
            }
        }
        fs::write(path, &good).unwrap();
    }
    // Pages of ranges are not read by these lookups; everything else is.
    assert!(aside * 10 > flips * 8, "{aside} of {flips}");
    println!("PROOF E9 flipped_bits={flips} detected={aside} served=0");
    assert!(one_point(folder.path()).is_outlined(), "all is as it was");
}

#[test]
fn a_lost_torn_or_old_hint_costs_time_only() {
    let (folder, mut world, mut points) = small();
    let path = hint(folder.path());
    let old = fs::read(&path).unwrap();
    for len in [0, 7, 40, old.len() - 1] {
        fs::write(&path, &old[..len]).unwrap();
        let mut found = one_point(folder.path());
        assert!(!found.is_outlined(), "{len} bytes are no hint");
        check(&mut found, world.reader(), &points);
    }
    fs::remove_file(&path).unwrap();
    check(&mut one_point(folder.path()), world.reader(), &points);

    // A few commits behind: what came since is read from the manifests.
    points.insert(world.commit_point().unwrap());
    let gone = *points.first().unwrap();
    points.insert(world.commit_point().unwrap());
    fs::write(&path, &old).unwrap();
    let mut found = one_point(folder.path());
    assert!(found.is_outlined());
    check(&mut found, world.reader(), &points);
    assert_eq!(found.point(gone).unwrap().as_ref(), world.reader().state().point(gone));

    // Far behind: the lists are read.
    for _ in 0..40 {
        points.insert(world.commit_point().unwrap());
    }
    fs::write(&path, &old).unwrap();
    let mut found = one_point(folder.path());
    assert!(!found.is_outlined());
    check(&mut found, world.reader(), &points);
    let reader = reading(folder.path()).item_read(ITEM).unwrap();
    assert_eq!(reader.state(), world.reader().state(), "the lists begin at an old hint too");
}

#[test]
fn a_hint_of_another_history_of_the_item_is_left_aside() {
    let (folder, mut world, _) = small();
    let before = tempfile::tempdir().unwrap();
    copy(folder.path(), before.path());
    world.commit_point().unwrap();
    let theirs = fs::read(hint(folder.path())).unwrap();
    // The store as it was, gone on with by another writer: the same numbers, other contents.
    let local = Arc::new(LocalStore::open(before.path()).unwrap());
    let mut other = World::bare(local, 77).unwrap();
    other.open_branch(None).unwrap();
    while newest(before.path()) < newest(folder.path()) {
        other.append().unwrap();
        other.commit_point().unwrap();
    }
    fs::write(hint(before.path()), theirs).unwrap();

    let mut found = one_point(before.path());

    assert!(!found.is_outlined());
    assert_eq!(found.newest_point().unwrap().as_ref(), other.reader().newest_point());
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

#[test]
fn a_writer_puts_right_what_readers_leave_aside() {
    let (folder, mut world, points) = small();
    let [outline] = &outlines(folder.path())[..] else { panic!("one outline") };
    let good = fs::read(outline).unwrap();
    for spoil in [0, 1, 2] {
        fs::remove_file(hint(folder.path())).unwrap();
        match spoil {
            0 => fs::remove_file(outline).unwrap(),
            1 => fs::write(outline, &good[..good.len() - 1]).unwrap(),
            _ => {
                fs::write(manifests(folder.path()).join("outline-0000000000000000"), b"x").unwrap()
            }
        }
        world.restart().unwrap();
        assert_eq!(fs::read(outline).unwrap(), good);
        assert_eq!(outlines(folder.path()).len(), 1);
        let mut found = one_point(folder.path());
        assert!(found.is_outlined());
        check(&mut found, world.reader(), &points);
    }
    let audit = world.reader().audit(&|_, _| ()).unwrap();
    assert_eq!(audit.damages, []);
}

#[test]
fn a_pin_of_a_point_that_is_looked_up_holds_it() {
    let (folder, mut world, points) = small();
    let mut found = one_point(folder.path());
    let newest = found.newest_point().unwrap().unwrap();
    let now = world.tick();

    let pin = found.pin(newest.id, "test", "read", now).unwrap();

    assert!(found.is_outlined());
    assert_eq!(world.reader().pins().unwrap(), std::slice::from_ref(&pin));
    let listed = |id: &PointId| world.reader().state().point(*id).is_none();
    let gone = points.iter().copied().find(listed).expect("some expired");
    let refused = found.pin(gone, "test", "read", now);
    assert!(matches!(refused, Err(StoreError::NoPoint { .. })), "{refused:?}");
    assert_eq!(world.reader().pins().unwrap().len(), 1, "nothing stays pinned");
    found.unpin(pin.id).unwrap();
    assert_eq!(world.reader().pins().unwrap(), []);
}

/// The folder of a destroyed item is gone, hint and outline with it.
#[test]
fn a_destroyed_item_leaves_no_hint() {
    let (folder, mut world, _) = small();
    world.item = None;
    world.store.as_ref().unwrap().item_destroy(ITEM).unwrap();
    assert!(!folder.path().join(format!("items/{ITEM}")).exists());
    let again = world.store.as_ref().unwrap().item_create(VAULT, ITEM, None).unwrap();
    assert_eq!(again.reader().newest_point(), None);
}
