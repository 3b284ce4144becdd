//! Layers of the index: what they save, and that nobody can tell them from the footers.

use crate::world::{AT_ONCE, EAGER, ITEM, OWNER, SeededRandom, World, check_contents, check_place};
use leeward_model::{Site, UnixMillis};
use leeward_replica::{
    ItemReader, Store, StoreError, Unlock, Upkeep, View,
    storage::{Appender, BlobStore, CrashDisk, Put, StorageError, StoreLock},
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

fn reader_of(blobs: Arc<dyn BlobStore>) -> Result<ItemReader, StoreError> {
    let store = Store::open(blobs, Some(OWNER), &Unlock::KeyFile, SeededRandom::new(1))?;
    store.item_read(ITEM)
}

/// A history of so many segments, each with one point, with layers as by default.
fn history(points: usize) -> (CrashDisk, World) {
    let (disk, mut world) = World::on_crash_disk(61);
    for _ in 1..points {
        world.append().unwrap();
        world.commit_point().unwrap();
        world.seal().unwrap();
        let now = UnixMillis(world.now);
        world.item().merge_layers(now).unwrap();
    }
    (disk, world)
}

fn layers_of(disk: &CrashDisk) -> Vec<String> {
    disk.blobs().into_keys().filter(|name| name.contains("/layers/")).collect()
}

#[test]
fn layers_stay_few_and_cover_all_but_the_newest_segments() {
    let (disk, mut world) = history(200);
    let now = UnixMillis(world.now);
    world.item().expire(now, &crate::world::retention_of(u64::MAX)).unwrap();

    let state = world.reader().state();
    // The first two extents may be written over.
    assert!(state.segments.len() > 150, "{} segments", state.segments.len());
    assert!((1..=8).contains(&state.layers.len()), "{} layers", state.layers.len());
    let covered = state.layers.values().map(|layer| layer.last).max().unwrap();
    let tail = state.segments.values().filter(|range| range.last > covered).count();
    assert!(tail < 8, "{tail} segments are in no layer");
    assert_eq!(layers_of(&disk).len(), state.layers.len(), "what was merged is gone");
    world.check_contents().unwrap();
    world.restart().unwrap();
    world.check_contents().unwrap();
}

#[test]
fn an_open_view_goes_on_while_layers_are_merged_and_segments_go() {
    let (_, mut world) = World::on_crash_disk(62);
    world.set_upkeep(EAGER);
    world.append().unwrap();
    world.commit_point().unwrap();
    let point = world.place(world.received);
    world.pin_newest().unwrap();
    world.index().unwrap();
    let old = world.reader().clone();
    let view = View::open(&old, point).unwrap();
    for _ in 0..6 {
        for _ in 0..10 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
        world.index().unwrap();
        world.expire().unwrap();
    }
    assert!(old.state().layers.keys().all(|id| !world.reader().state().layers.contains_key(id)));

    let whole = view.verify().unwrap();

    assert!(whole > 0);
    check_place(world.reader(), &world.model, point).unwrap();
    for extent in 0..crate::world::EXTENTS {
        let (disk, extent) = (leeward_model::DiskNumber(0), leeward_model::ExtentNumber(extent));
        let read = view.read(disk, extent.offset(), 65_536).unwrap();
        assert_eq!(read, world.model.extent(point, disk, extent));
    }
    // A reader that knows only the old state opens the place all the same.
    check_place(&old, &world.model, point).unwrap();
}

/// E9 for layers: any flipped bit is found by the audit, costs no point, and is mended.
#[test]
fn a_damaged_layer_is_named_read_around_and_made_anew() {
    let (disk, mut world) = World::on_crash_disk(63);
    world.set_upkeep(EAGER);
    for _ in 0..4 {
        world.append().unwrap();
        world.commit_point().unwrap();
        world.index().unwrap();
    }
    let now = UnixMillis(world.now);
    world.item().expire(now, &crate::world::retention_of(u64::MAX)).unwrap();
    let model = world.model.clone();
    drop(world);
    let blobs = disk.blobs();
    let name = layers_of(&disk).pop().unwrap();
    let bits = blobs[&name].len() * 8;
    for bit in (0..bits).step_by(7) {
        let disk = CrashDisk::holding(blobs.clone());
        disk.flip(&name, bit);

        let reader = reader_of(Arc::new(disk.clone())).unwrap();
        check_contents(&reader, &model).unwrap_or_else(|why| panic!("bit {bit}: {why}"));
        let audit = reader.audit(&|_, _| ()).unwrap();

        assert_eq!(audit.damages.len(), 1, "bit {bit}: {audit:?}");
        assert_eq!((&audit.damages[0].blob, audit.damages[0].points.len()), (&name, 0));
        if bit % 5 == 0 {
            let mut world = World::bare(Arc::new(disk.clone()), 64).unwrap();
            world.set_upkeep(EAGER);
            world.item().collect(UnixMillis(i64::MAX)).unwrap();
            world.item().merge_layers(UnixMillis(i64::MAX)).unwrap();
            let layers = world.item().layers();
            assert!(!layers.is_empty() && !layers.iter().any(|id| name.contains(&id.to_string())));
            assert_eq!(world.reader().audit(&|_, _| ()).unwrap().damages, []);
            check_contents(world.reader(), &model).unwrap();
        }
    }
}

#[test]
fn a_missing_layer_is_read_around() {
    let (disk, mut world) = World::on_crash_disk(65);
    world.set_upkeep(EAGER);
    world.append().unwrap();
    world.commit_point().unwrap();
    world.index().unwrap();
    for name in layers_of(&disk) {
        disk.delete(&name).unwrap();
    }

    world.check_contents().unwrap();
    let audit = world.reader().audit(&|_, _| ()).unwrap();

    assert_eq!(audit.damages.len(), 1);
    assert!(audit.damages[0].why.contains("missing"), "{audit:?}");
}

/// A reader that knows only the state before a drop can finish: blobs wait, also over a restart.
#[test]
fn dropped_blobs_wait_for_their_time_and_a_restart_does_not_forget_them() {
    let (disk, mut world) = World::on_crash_disk(66);
    world.set_upkeep(Upkeep { grace_ms: 10_000, ..EAGER });
    let old = world.reader().clone();
    let place = world.place(world.received);
    for _ in 0..2 {
        for _ in 0..40 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
        world.index().unwrap();
    }
    let now = UnixMillis(world.now + 2_000);
    let expired = world.item().expire(now, &crate::world::retention_of(1)).unwrap();
    for point in &expired.points {
        world.model.points.remove(point);
    }
    let path = format!("items/{ITEM}/segments/{}", expired.segments[0]);
    let layers = layers_of(&disk).len();

    assert!(disk.len(&path).unwrap().is_some(), "deleted at once");
    assert!(layers > world.reader().state().layers.len(), "merged layers wait as well");
    assert!(world.reader().space().unwrap().waiting_bytes > 0);
    // Whoever knows only the old state still reads the point that went.
    check_place(&old, &world.model, place).unwrap();
    world.restart().unwrap();
    assert!(disk.len(&path).unwrap().is_some(), "deleted by the restart");
    let early = UnixMillis(now.0 + 9_000);
    world.item().expire(early, &crate::world::retention_of(u64::MAX)).unwrap();
    assert!(disk.len(&path).unwrap().is_some(), "deleted too early");
    let late = UnixMillis(now.0 + 10_000);
    world.item().expire(late, &crate::world::retention_of(u64::MAX)).unwrap();
    assert_eq!(disk.len(&path).unwrap(), None);
    assert_eq!(layers_of(&disk).len(), world.reader().state().layers.len());
    assert_eq!(world.reader().space().unwrap().waiting_bytes, 0);
    world.check_contents().unwrap();
}

#[test]
fn a_layer_holds_only_what_something_needs() {
    let (_, mut world) = World::on_crash_disk(67);
    world.set_upkeep(EAGER);
    for _ in 0..30 {
        for _ in 0..8 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
        world.index().unwrap();
        world.expire().unwrap();
        world.check_contents().unwrap();
    }

    let records: u64 = world.reader().state().layers.values().map(|layer| layer.records).sum();

    // Four extents at a few points, and their markers, of 240 changes.
    assert!(records < 120, "{records} records are in layers");
}

/// Passes everything on and counts what is read.
struct Counting {
    inner: CrashDisk,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl BlobStore for Counting {
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError> {
        self.inner.create_new(name)
    }
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.inner.put_new(name, bytes)
    }
    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        let bytes = self.inner.read_at(name, offset, len)?;
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(bytes)
    }
    fn len(&self, name: &str) -> Result<Option<u64>, StorageError> {
        self.inner.len(name)
    }
    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        self.inner.list(folder)
    }
    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.inner.delete(name)
    }
    fn sync_dir(&self, folder: &str) -> Result<(), StorageError> {
        self.inner.sync_dir(folder)
    }
    fn lock(&self, name: &str) -> Result<StoreLock, StorageError> {
        self.inner.lock(name)
    }
    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        self.inner.free_bytes()
    }
}

/// Reads of blobs, and bytes, that opening the newest point and reading a block of it take.
fn cost(points: usize) -> (u64, u64) {
    let (disk, world) = history(points);
    assert_eq!(world.reader().points(0, 1, Site::Recovery).unwrap().total as usize, points);
    drop(world);
    let blobs =
        Arc::new(Counting { inner: disk, reads: AtomicU64::new(0), bytes: AtomicU64::new(0) });
    let reader = reader_of(blobs.clone()).unwrap();
    let place = reader.newest_point().unwrap().position;
    let counted = || (blobs.reads.load(Ordering::SeqCst), blobs.bytes.load(Ordering::SeqCst));
    let before = counted();
    let view = View::open(&reader, place).unwrap();
    view.read(leeward_model::DiskNumber(0), 0, 4096).unwrap();
    let after = counted();
    (after.0 - before.0, after.1 - before.1)
}

/// Points at scale: neither the number of points nor that of segments shows in what opening takes.
#[test]
fn opening_a_point_reads_a_bounded_number_of_blobs_whatever_the_number_of_points() {
    let (few, _) = cost(7);
    let (many, bytes) = cost(700);

    // Of at most 7 footers 3 reads each, of 8 layers head and region, the marker and its header,
    // and up to a few versions of the extent with their headers.
    println!("7 points: {few} reads; 700 points: {many} reads of {bytes} bytes");
    assert!(many <= 21 + 16 + 2 + 32, "{many} reads");
    assert!(bytes < 1 << 20, "{bytes} bytes");
}

#[test]
fn layers_of_a_timeline_that_ended_become_one() {
    let (_, mut world) = World::on_crash_disk(68);
    world.set_upkeep(Upkeep { layers_max: 8, rebuild_records_min: 1 << 40, ..EAGER });
    for _ in 0..3 {
        for _ in 0..9 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
    }
    world.index().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.index().unwrap();
    let ended = world.branch.timeline;
    assert_eq!(world.reader().state().layers_of(ended).len(), 2);
    world.branch_off().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();

    world.index().unwrap();

    assert_eq!(world.reader().state().layers_of(ended).len(), 1);
    world.check_contents().unwrap();
    assert_eq!(world.upkeep.grace_ms, AT_ONCE.grace_ms);
}

/// A store whose segments hold little that is needed, and what its points hold: two extents that
/// stay, among many versions of others that do not.
fn sparse(upkeep: Upkeep) -> (CrashDisk, World) {
    let (disk, mut world) = World::on_crash_disk(70);
    world.set_upkeep(Upkeep { rewrite_below_percent: 0, ..upkeep });
    for _ in 0..4 {
        for _ in 0..30 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
        world.pin_newest().unwrap();
        world.index().unwrap();
    }
    world.set_upkeep(upkeep);
    (disk, world)
}

/// Garbage collection by live bytes: the bytes go, the points stay, also for whoever reads them.
#[test]
fn a_segment_that_holds_little_is_written_anew_and_no_reader_can_tell() {
    let (disk, mut world) = sparse(EAGER);
    let points = world.reader().state().points.clone();
    let before = world.reader().state().segments.clone();
    let bytes = world.reader().stored_bytes().unwrap();
    let view = View::open(world.reader(), points[2].position).unwrap();
    let old = world.reader().clone();

    let now = world.tick();
    let gone = world.item().collect(now).unwrap();
    let again = world.item().collect(now).unwrap();

    let after = world.reader().state().clone();
    assert!(!gone.is_empty() && again.is_empty(), "{gone:?}, then {again:?}");
    assert!(after.segments.keys().all(|id| !gone.contains(id)), "an old id lives on");
    assert!(after.segments.values().any(|range| !range.is_whole() && range.records > 1));
    let left = world.reader().stored_bytes().unwrap();
    assert!(left * 3 < bytes * 2, "{left} of {bytes} bytes are left");
    for range in after.segments.values() {
        let known = before.values().find(|old| old.segment == range.segment);
        assert!(known.is_none_or(|known| known == range), "a segment changed under its id");
    }
    view.verify().unwrap();
    check_contents(&old, &world.model).unwrap();
    world.check_contents().unwrap();
    assert_eq!(world.reader().points(0, 100, Site::Recovery).unwrap().points.len(), points.len());
    assert_eq!(world.reader().audit(&|_, _| ()).unwrap().damages, []);
    let space = world.reader().space().unwrap();
    let records: u64 = after.segments.values().map(|range| range.bytes - 4096).sum();
    assert!(space.live_bytes * 2 >= records, "{space:?} of {records} bytes of records");
    world.restart().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.check_contents().unwrap();
    drop(disk);
}

/// Without their layers, and without their footers, such segments are read by a scan.
#[test]
fn a_segment_that_was_written_anew_needs_neither_layer_nor_footer() {
    let (disk, mut world) = sparse(EAGER);
    let now = world.tick();
    world.item().collect(now).unwrap();
    for name in layers_of(&disk) {
        disk.delete(&name).unwrap();
    }
    world.check_contents().unwrap();
    let blobs = disk.blobs();
    for name in blobs.keys().filter(|name| name.contains("/segments/")) {
        disk.flip(name, blobs[name].len() * 8 - 9);
    }

    world.check_contents().unwrap();

    let audit = world.reader().audit(&|_, _| ()).unwrap();
    assert!(audit.damages.iter().any(|damage| damage.blob.contains("/segments/")), "{audit:?}");
    assert!(audit.damages.iter().all(|damage| damage.points.is_empty()), "{audit:?}");
}

#[test]
fn a_damaged_record_keeps_its_segment_and_nothing_else_from_being_collected() {
    let (disk, mut world) = sparse(EAGER);
    let blobs = disk.blobs();
    let name = blobs.keys().find(|name| name.contains("/segments/")).unwrap();
    let range = world.reader().state().segments.values().next().unwrap();
    assert!(name.contains(&range.segment.to_string()));
    let kept = range.segment;
    for byte in 4096..range.bytes as usize {
        disk.flip(name, byte * 8);
    }

    let now = world.tick();
    let gone = world.item().collect(now).unwrap();

    assert!(!gone.is_empty() && !gone.contains(&kept), "{gone:?}");
    assert!(world.reader().state().segments.contains_key(&kept));
}
