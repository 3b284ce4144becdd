//! A worn item: segments that were written anew and have gaps, layers above them, several
//! timelines. What repair, export and import make of it.

use crate::world::{EAGER, ITEM, SeededRandom, World, check_contents, init, open_writer};
use leeward_model::{LayerId, SegmentId, UnixMillis};
use leeward_replica::{
    GoodRecords, ItemReader, RecipientSecret, Store, Unlock,
    manifest::SegmentRange,
    model::ModelItem,
    storage::{BlobStore as _, CrashDisk},
};
use std::sync::Arc;

/// A time after everything that the world did.
pub const LATER: UnixMillis = UnixMillis(900_000_000);

/// The item, all of it durable, and what must be there.
pub fn worn() -> (CrashDisk, ModelItem) {
    let (disk, mut world) = World::on_crash_disk(91);
    world.set_upkeep(EAGER);
    for round in 0..6 {
        for _ in 0..5 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
        world.index().unwrap();
        world.expire().unwrap();
        if round == 3 {
            world.branch_off().unwrap();
        }
    }
    world.append().unwrap();
    world.commit_point().unwrap();
    world.check_contents().unwrap();
    let model = world.model.clone();
    (world.item, world.store) = (None, None);
    (CrashDisk::holding(disk.blobs()), model)
}

pub fn reader(disk: &CrashDisk) -> ItemReader {
    let blobs = Arc::new(disk.clone());
    let store = Store::open(blobs, None, &Unlock::KeyFile, SeededRandom::new(5)).unwrap();
    store.item_read(ITEM).unwrap()
}

/// Segments that were written anew without what nothing needed.
pub fn sparse(disk: &CrashDisk) -> Vec<SegmentRange> {
    let reader = reader(disk);
    let found: Vec<_> =
        reader.state().segments.values().filter(|range| !range.is_whole()).copied().collect();
    assert!(!found.is_empty(), "nothing was written anew");
    found
}

pub fn segment_name(segment: SegmentId) -> String {
    format!("items/{ITEM}/segments/{segment}")
}

/// Flips a bit of a segment's footer: its records stay good.
pub fn footer_damaged(disk: &CrashDisk, range: &SegmentRange) {
    let name = segment_name(range.segment);
    let len = disk.len(&name).unwrap().unwrap();
    assert!(len > range.bytes, "a segment that was written anew has a footer");
    disk.flip(&name, (range.bytes as usize + 8) * 8);
}

/// What is left of the damage after a repair with `copy`, which has to be good.
fn repaired(disk: &CrashDisk, copy: &CrashDisk, expected: GoodRecords) {
    let store = open_writer(Arc::new(disk.clone()), 7).unwrap();
    let mut item = store.item_open(ITEM).unwrap();
    let copy_of = |path: &str| copy.blobs().get(path).cloned();
    let audit = item.reader().audit(&|_, _| {}).unwrap();
    assert!(!audit.damages.is_empty(), "nothing is damaged");
    let plan = item.reader().repair_plan(&audit, &copy_of).unwrap();
    assert_eq!(plan.lost_points, []);
    for damaged in &plan.segments {
        assert_eq!(damaged.records, expected);
        assert!(item.repair_segment(damaged.segment, &copy_of, LATER).unwrap());
    }
    item.drop_layers(&plan.layers, LATER).unwrap();
}

fn assert_good(disk: &CrashDisk, model: &ModelItem) {
    let reader = reader(disk);
    assert_eq!(reader.audit(&|_, _| {}).unwrap().damages, []);
    check_contents(&reader, model).unwrap();
}

/// F-159: a segment with gaps is mended from its own records when only its footer is damaged, and
/// from a copy when a record is; points and layers above it stay right, and no gap is filled.
#[test]
fn a_segment_that_was_written_anew_is_repaired_from_its_records_and_from_a_copy() {
    let (good, model) = worn();
    let copy = CrashDisk::holding(good.blobs());
    for range in sparse(&good) {
        let disk = CrashDisk::holding(good.blobs());
        footer_damaged(&disk, &range);
        repaired(&disk, &CrashDisk::new(), GoodRecords::Here);
        assert_good(&disk, &model);
        let fresh = sparse(&disk).into_iter().find(|found| found.first == range.first).unwrap();
        assert_eq!((fresh.last, fresh.records), (range.last, range.records), "the gaps stay");
        assert_ne!(fresh.segment, range.segment, "nothing is sealed twice under one id");

        let disk = CrashDisk::holding(good.blobs());
        disk.flip(&segment_name(range.segment), (range.bytes as usize - 4) * 8);
        repaired(&disk, &copy, GoodRecords::InCopy);
        assert_good(&disk, &model);
        // And everything goes on: upkeep, points, another opening.
        let store = open_writer(Arc::new(disk.clone()), 8).unwrap();
        let mut item = store.item_open(ITEM).unwrap();
        item.set_upkeep(EAGER);
        item.merge_layers(LATER).unwrap();
        item.collect(LATER).unwrap();
        drop((item, store));
        assert_good(&disk, &model);
    }
}

/// What `export` writes of the item, and the secret that opens it.
pub fn exported(disk: &CrashDisk) -> (Vec<u8>, RecipientSecret) {
    let mut out = Vec::new();
    let done = reader(disk).export(None, LATER, &mut out, &mut |_, _| {});
    (out, done.unwrap().1)
}

/// An item with gaps in its segments goes to another store and reads there as it does here; what
/// is damaged on the way is refused.
#[test]
fn an_item_with_segments_that_were_written_anew_is_imported_whole() {
    let (disk, model) = worn();
    let (bytes, secret) = exported(&disk);
    let other = CrashDisk::new();
    init(&other);
    {
        let store = open_writer(Arc::new(other.clone()), 9).unwrap();
        let done = store.import(&mut bytes.as_slice(), &secret, LATER, &mut |_, _| {}).unwrap();
        assert_eq!(done.segments, reader(&disk).state().segments.len() as u64);
    }
    assert_good(&other, &model);
    let gaps = |disk: &CrashDisk| -> Vec<_> {
        sparse(disk).iter().map(|range| (range.first, range.last, range.records)).collect()
    };
    assert_eq!(gaps(&other), gaps(&disk));

    for at in (0..bytes.len()).step_by(bytes.len() / 50) {
        let (mut damaged, other) = (bytes.clone(), CrashDisk::new());
        damaged[at] ^= 1;
        init(&other);
        let store = open_writer(Arc::new(other.clone()), 9).unwrap();
        let done = store.import(&mut damaged.as_slice(), &secret, LATER, &mut |_, _| {});
        assert!(done.is_err(), "byte {at} of {} was taken", bytes.len());
        assert_eq!(store.items().unwrap(), [], "something was left of a refused import");
    }
}

/// Damaged layers are taken out of use: everything reads as before, and the next upkeep makes them
/// anew.
#[test]
fn damaged_layers_are_dropped_and_made_anew() {
    let (good, model) = worn();
    let names: Vec<String> =
        good.blobs().into_keys().filter(|name| name.contains("/layers/")).collect();
    assert!(!names.is_empty(), "there are no layers");
    for name in names {
        let disk = CrashDisk::holding(good.blobs());
        let layer: LayerId = name.rsplit_once('/').unwrap().1.parse().unwrap();
        let half = disk.len(&name).unwrap().unwrap() as usize / 2;
        disk.flip(&name, half * 8);
        let store = open_writer(Arc::new(disk.clone()), 7).unwrap();
        let mut item = store.item_open(ITEM).unwrap();
        check_contents(item.reader(), &model).unwrap();
        let audit = item.reader().audit(&|_, _| {}).unwrap();
        let plan = item.reader().repair_plan(&audit, &|_| None).unwrap();
        assert_eq!((plan.layers.as_slice(), plan.segments.len()), ([layer].as_slice(), 0));

        assert_eq!(item.drop_layers(&plan.layers, LATER).unwrap(), 1);
        assert_eq!(item.drop_layers(&plan.layers, LATER).unwrap(), 0, "it is out of use already");
        check_contents(item.reader(), &model).unwrap();
        assert!(!item.layers().contains(&layer));
        item.set_upkeep(EAGER);
        assert!(item.merge_layers(LATER).unwrap() > 0, "no layer was made anew");
        drop((item, store));
        assert_good(&disk, &model);
    }
}
