//! The store over objects: parts and wholes, the lease, and E6, what a bad road does.

use crate::{
    rough::{Road, RoughObjects},
    world::{ITEM, World, check_contents, init, open_writer, seed},
};
use leeward_replica::{
    Store, Unlock,
    storage::{
        Appender, Backing, BlobStore, LeaseTimes, ObjectBlobs, Put, Seeded, StorageError,
        StoreLock, Takeover,
    },
};
use object_store::{ObjectStoreExt as _, memory::InMemory, path::Path};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Never renewed within a test, and never in anybody's way.
const LOOSE: LeaseTimes = LeaseTimes {
    renew: Duration::from_secs(86_400),
    lost: Duration::from_secs(86_400),
    stale: Duration::ZERO,
};

fn over(backing: Arc<dyn Backing>) -> ObjectBlobs {
    ObjectBlobs::over(backing, true, LOOSE, Takeover::WhenStale).unwrap()
}

fn noise(len: usize) -> Vec<u8> {
    let mut seeded = Seeded::new(5);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&seeded.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Names of all objects, without the prefix.
fn objects(memory: &InMemory, folder: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let prefix = Path::from(format!("test/{folder}"));
    let listed =
        runtime.block_on(object_store::ObjectStore::list_with_delimiter(memory, Some(&prefix)));
    let listed = listed.unwrap();
    let names = listed.objects.iter().map(|meta| meta.location.filename().unwrap().to_owned());
    names.collect()
}

fn write(blobs: &ObjectBlobs, name: &str, pieces: &[&[u8]]) -> Box<dyn Appender> {
    let mut appender = blobs.create_new(name).unwrap();
    for piece in pieces {
        appender.append(piece).unwrap();
        appender.sync_data().unwrap();
    }
    appender
}

/// What a flush promised is there for every reader, before and after the blob is one object.
#[test]
fn a_flushed_part_is_readable_while_the_blob_is_open_and_after() {
    let memory = Arc::new(InMemory::new());
    let (blobs, reader) = (over(memory.clone()), over(memory.clone()));
    let mut appender = write(&blobs, "s/a", &[b"one ", b"two "]);

    assert_eq!(reader.read_at("s/a", 2, 4).unwrap(), b"e tw");
    assert_eq!(reader.len("s/a").unwrap(), Some(8));
    assert_eq!(reader.list("s").unwrap(), ["a"], "parts are listed as their blob");
    assert_eq!(reader.put_new("s/b", b"x").unwrap(), Put::Created);
    appender.append(b"three").unwrap();
    assert_eq!(reader.len("s/a").unwrap(), Some(8), "what is not flushed is not there");
    appender.sync_data().unwrap();
    assert_eq!(reader.read_at("s/a", 0, 100).unwrap(), b"one two three");
    assert_eq!(objects(&memory, "s/a.parts").len(), 3);

    appender.append(b"!").unwrap();
    appender.finish().unwrap();

    assert_eq!(reader.read_at("s/a", 0, 100).unwrap(), b"one two three!");
    assert!(objects(&memory, "s/a.parts").is_empty());
    assert_eq!(objects(&memory, "s"), ["a", "b"]);
    assert!(matches!(appender.append(b"more"), Err(StorageError::Poisoned { .. })));
    blobs.delete("s/a").unwrap();
    assert_eq!(reader.len("s/a").unwrap(), None);
}

#[test]
fn an_appender_that_is_dropped_leaves_one_object_and_a_killed_one_its_parts() {
    let memory = Arc::new(InMemory::new());
    let blobs = over(memory.clone());
    drop(write(&blobs, "s/dropped", &[b"one", b"two"]));
    drop(write(&blobs, "s/nothing", &[]));
    // A killed process runs no destructor.
    std::mem::forget(write(&blobs, "s/killed", &[b"one", b"two"]));

    let later = over(memory.clone());
    assert_eq!(objects(&memory, "s"), ["dropped"]);
    assert_eq!(later.list("s").unwrap(), ["dropped", "killed"]);
    for name in ["s/dropped", "s/killed"] {
        assert_eq!(later.read_at(name, 1, 100).unwrap(), b"netwo");
        assert!(matches!(later.create_new(name), Err(StorageError::Exists { .. })));
        later.delete(name).unwrap();
        assert!(matches!(later.read_at(name, 0, 1), Err(StorageError::Absent { .. })));
    }
    assert!(later.list("s").unwrap().is_empty());
}

/// A crash after the whole and before the last part was deleted; and one within a deletion.
#[test]
fn the_whole_counts_more_than_its_parts_and_a_blob_without_its_first_part_is_gone() {
    let memory = Arc::new(InMemory::new());
    let blobs = over(memory.clone());
    std::mem::forget(write(&blobs, "s/a", &[b"one", b"two"]));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let put = |name: &str, bytes: &'static [u8]| {
        runtime.block_on(memory.put(&Path::from(name), bytes.into())).unwrap();
    };
    put("test/s/a", b"onetwo and more");
    let reader = over(memory.clone());

    assert_eq!(reader.len("s/a").unwrap(), Some(15));
    assert_eq!(reader.list("s").unwrap(), ["a"]);
    reader.delete("s/a").unwrap();
    assert!(reader.list("s").unwrap().is_empty());

    put("test/s/b.parts/0000000000000003", b"two");
    assert_eq!(reader.len("s/b").unwrap(), None);
    assert_eq!(reader.list("s").unwrap(), ["b"], "so that somebody deletes it");
    reader.delete("s/b").unwrap();
    assert!(reader.list("s").unwrap().is_empty());
}

/// A long blob is put in several parts, on a good road and on a bad one.
#[test]
fn a_long_blob_comes_back_byte_by_byte_over_a_bad_road() {
    let bytes = noise(21 << 20);
    for (faults, flushed) in [(0, false), (0, true), (20, true), (20, false)] {
        let memory = Arc::new(InMemory::new());
        let road = Road { faults, ..Road::default() };
        let rough = RoughObjects::new(memory.clone(), road, seed("long blob"));
        let blobs = over(rough);
        let mut appender = blobs.create_new("s/long").unwrap();
        for piece in bytes.chunks(777_777) {
            appender.append(piece).unwrap();
            if flushed {
                appender.sync_data().unwrap();
            }
        }
        appender.finish().unwrap();
        drop(appender);

        let reader = over(memory.clone());
        assert_eq!(reader.len("s/long").unwrap(), Some(bytes.len() as u64));
        assert!(reader.read_at("s/long", 0, bytes.len()).unwrap() == bytes);
        assert_eq!(reader.read_at("s/long", 8 << 20, 5000).unwrap(), bytes[8 << 20..][..5000]);
        if faults == 0 {
            assert_eq!(objects(&memory, "s"), ["long"]);
            assert!(objects(&memory, "s/long.parts").is_empty());
        }
    }
}

#[test]
fn a_server_that_overwrites_is_refused() {
    let road = Road { overwrites: true, ..Road::default() };
    let rough = RoughObjects::new(Arc::new(InMemory::new()), road, 1);

    let opened = ObjectBlobs::over(rough, true, LOOSE, Takeover::WhenStale);

    let error = opened.unwrap_err();
    assert!(matches!(error, StorageError::NotEnforced { .. }), "{error}");
}

fn real(memory: &Arc<InMemory>, times: LeaseTimes, takeover: Takeover) -> ObjectBlobs {
    ObjectBlobs::over(memory.clone(), false, times, takeover).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lost(blobs: &ObjectBlobs, name: &str) -> bool {
    matches!(blobs.put_new(name, b"x"), Err(StorageError::LeaseLost { .. }))
}

/// Two writers.
#[test]
fn a_holder_whose_lock_was_taken_writes_nothing_more() {
    let memory = Arc::new(InMemory::new());
    let times = LeaseTimes { renew: Duration::from_millis(10), ..LeaseTimes::USUAL };
    let first = real(&memory, times, Takeover::WhenStale);
    let _held: StoreLock = first.lock("store.lock").unwrap();
    first.put_new("a", b"1").unwrap();

    let second = real(&memory, times, Takeover::WhenStale);
    let error = second.lock("store.lock").err().unwrap();
    assert!(matches!(error, StorageError::Locked { .. }));
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    let third = real(&memory, times, Takeover::Forced);
    let taken = third.lock("store.lock").unwrap();

    let mut n = 0;
    until("the end of the first lock", || {
        n += 1;
        lost(&first, &format!("n/{n}"))
    });
    third.put_new("b", b"1").unwrap();
    drop(taken);
    assert!(lost(&first, "c"), "also when nobody holds the lock any more");
    drop(second.lock("store.lock").unwrap());
    assert!(lost(&first, "d"));
}

#[test]
fn a_silent_holder_stops_by_itself_and_its_lock_becomes_free() {
    let memory = Arc::new(InMemory::new());
    let hour = Duration::from_secs(3600);
    let silent = LeaseTimes { renew: hour, lost: Duration::from_millis(50), stale: hour };
    let first = real(&memory, silent, Takeover::WhenStale);
    let held = first.lock("store.lock").unwrap();
    std::mem::forget(held);
    let mut n = 0;
    until("the end of the lock", || {
        n += 1;
        lost(&first, &format!("n/{n}"))
    });

    let impatient = LeaseTimes { stale: Duration::from_millis(100), ..silent };
    let second = real(&memory, impatient, Takeover::WhenStale);
    until("a free lock", || second.lock("store.lock").map(std::mem::forget).is_ok());
}

fn steps(world: &mut World, random: &mut Seeded, count: usize) -> Result<(), String> {
    for _ in 0..count {
        let done = match random.below(20) {
            0..8 => world.append().map(drop),
            8..10 => world.sync(),
            10..14 => world.commit_point().map(drop),
            14 => world.seal(),
            15 => world.commit_progress(),
            16 => world.expire(),
            17 => world.pin_newest(),
            18 => world.branch_off(),
            _ => world.restart(),
        };
        done.map_err(|error| format!("{}", error.problem("a step")))?;
    }
    Ok(())
}

fn check_clean(memory: &Arc<InMemory>, world: &World) {
    let blobs = Arc::new(over(memory.clone()));
    let store = Store::open(blobs, None, &Unlock::KeyFile, crate::world::SeededRandom::new(1));
    let reader = store.unwrap().item_read(ITEM).unwrap();
    check_contents(&reader, &world.model).unwrap();
    let audit = reader.audit(&|_, _| {}).unwrap();
    assert!(audit.damages.is_empty(), "{:?}", audit.damages);
    for (id, place) in &world.model.points {
        let found = reader.state().point(*id).map(|point| point.position);
        assert_eq!(found, Some(*place), "a point is lost or another one");
    }
}

/// E6: one request in five meets a fault, and nobody above notices.
#[test]
fn over_a_bad_road_nothing_is_lost_and_nothing_wrong_is_served() {
    let first = seed("bad road");
    let rounds = if std::env::var_os("LONG").is_some() { 2_000 } else { 25 };
    let mut met = std::collections::BTreeMap::new();
    for round in 0..rounds {
        let seed = first + round;
        let memory = Arc::new(InMemory::new());
        let road = Road { faults: 20, ..Road::default() };
        let rough = RoughObjects::new(memory.clone(), road, seed);
        let blobs = Arc::new(over(rough.clone()));
        let mut world = World::new(blobs, seed);

        let done = steps(&mut world, &mut Seeded::new(seed), 60);

        done.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        world.check_contents().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        check_clean(&memory, &world);
        for (mishap, count) in rough.mishaps.lock().unwrap().iter() {
            *met.entry(*mishap).or_insert(0) += count;
        }
    }
    println!("{met:?}");
    let faults: u64 = met.values().sum();
    println!("PROOF E6 histories={rounds} faults_met={faults} of_requests=20% seeds_from={first}");
    assert_eq!(met.len(), 6, "every kind of fault happens");
}

/// E6: the store is away for a day. What was not acknowledged is sent again.
#[test]
fn after_a_day_without_the_store_everything_goes_on() {
    let first = seed("day away");
    for round in 0..5 {
        let seed = first + round;
        let memory = Arc::new(InMemory::new());
        let road = Road { faults: 5, ..Road::default() };
        let rough = RoughObjects::new(memory.clone(), road, seed);
        let blobs = Arc::new(over(rough.clone()));
        let mut world = World::new(blobs, seed);
        let mut random = Seeded::new(seed);
        steps(&mut world, &mut random, 20).unwrap();

        rough.leave_for(Duration::from_secs(86_400));
        let mut failures = 0;
        while let Err(error) = world.append().and_then(|_| world.commit_point()) {
            assert!(!error.to_string().is_empty());
            failures += 1;
            assert!(failures < 5_000, "seed {seed}: it never came back");
            // As a host does: what is not committed is given up, the item is opened again.
            while world.restart().is_err() {
                failures += 1;
            }
        }

        assert!(failures > 400, "a day of three minutes each: {failures}");
        world.check_contents().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        steps(&mut world, &mut random, 20).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        rough.calm_down();
        check_clean(&memory, &world);
    }
    println!("PROOF E6 outages=5 simulated_hours_each=24 seeds_from={first}");
}

/// The store opens again on what a process left that was killed at any moment.
#[test]
fn a_killed_writer_leaves_a_store_that_goes_on() {
    let memory = Arc::new(InMemory::new());
    let blobs = over(memory.clone());
    init(&blobs);
    let mut world = World::bare(Arc::new(blobs), 7).unwrap();
    world.open_branch(None).unwrap();
    world.append().unwrap();
    let point = world.commit_point().unwrap();
    world.append().unwrap();
    world.sync().unwrap();
    let model = world.model.clone();
    std::mem::forget(world.item.take());
    std::mem::forget(world.store.take());

    let later = Arc::new(over(memory.clone()));
    let store = open_writer(later, 9).unwrap();
    let item = store.item_open(ITEM).unwrap();

    assert_eq!(item.reader().newest_point().unwrap().id, point);
    check_contents(item.reader(), &model).unwrap();
}
