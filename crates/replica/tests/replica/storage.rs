//! The contract of every blob store, and what the local one adds.

use leeward_replica::storage::{
    BlobStore, CrashDisk, Fault, FaultyStore, LeaseTimes, LocalStore, ObjectBlobs, Put, Seeded,
    StorageError, Takeover,
};
use std::sync::Arc;

fn contract(blobs: &dyn BlobStore) {
    assert_eq!(blobs.len("a/b").unwrap(), None);
    assert!(blobs.list("a").unwrap().is_empty());
    assert!(matches!(blobs.read_at("a/b", 0, 1), Err(StorageError::Absent { .. })));

    let mut appender = blobs.create_new("a/b").unwrap();
    appender.append(b"hello ").unwrap();
    appender.append(b"world").unwrap();
    appender.sync_data().unwrap();
    blobs.sync_dir("a").unwrap();
    assert!(matches!(blobs.create_new("a/b"), Err(StorageError::Exists { .. })));
    assert_eq!(blobs.put_new("a/b", b"other").unwrap(), Put::Exists);
    assert_eq!(blobs.len("a/b").unwrap(), Some(11));
    assert_eq!(blobs.read_at("a/b", 6, 100).unwrap(), b"world");
    assert_eq!(blobs.read_at("a/b", 600, 1).unwrap(), b"");

    assert_eq!(blobs.put_new("a/c/d", b"whole").unwrap(), Put::Created);
    assert_eq!(blobs.put_new("top", b"").unwrap(), Put::Created);
    assert_eq!(blobs.list("a").unwrap(), ["b", "c"]);
    assert_eq!(blobs.read_at("a/c/d", 0, 10).unwrap(), b"whole");

    blobs.delete("a/b").unwrap();
    blobs.delete("a/b").unwrap();
    assert_eq!(blobs.len("a/b").unwrap(), None);
    assert!(blobs.read_at("a/b", 0, 1).is_err());
    for name in ["", "/etc", "a/../b", "a//b", ".hidden", "a/.x", "a b", &"x".repeat(300)] {
        assert!(matches!(blobs.put_new(name, b""), Err(StorageError::Name { .. })), "{name:?}");
    }

    let lock = blobs.lock("lock").unwrap();
    assert!(matches!(blobs.lock("lock"), Err(StorageError::Locked { .. })));
    drop(lock);
    blobs.lock("lock").unwrap();
}

#[test]
fn every_blob_store_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    contract(&LocalStore::open(folder.path()).unwrap());
    contract(&CrashDisk::new());
    let memory = Arc::new(object_store::memory::InMemory::new());
    let (times, takeover) = (LeaseTimes::USUAL, Takeover::WhenStale);
    contract(&ObjectBlobs::over(memory, false, times, takeover).unwrap());
    contract(&FaultyStore::new(Arc::new(CrashDisk::new()), 0, Fault::Error));
}

#[test]
fn the_local_store_leaves_no_temporary_file_and_no_probe() {
    let folder = tempfile::tempdir().unwrap();
    let local = LocalStore::open(folder.path()).unwrap();
    local.put_new("x", b"1").unwrap();
    local.put_new("x", b"2").unwrap();

    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();

    assert_eq!(names, ["x"]);
}

#[test]
fn of_two_that_create_the_same_blob_at_once_one_wins_whole() {
    let folder = tempfile::tempdir().unwrap();
    let local = LocalStore::open(folder.path()).unwrap();
    for round in 0..50 {
        let name = format!("manifest/{round}");
        let put = |fill: u8| local.put_new(&name, &[fill; 3000]).unwrap();

        let (one, two) = std::thread::scope(|scope| {
            let (one, two) = (scope.spawn(|| put(1)), scope.spawn(|| put(2)));
            (one.join().unwrap(), two.join().unwrap())
        });

        assert!((one == Put::Created) != (two == Put::Created));
        let winner = if one == Put::Created { 1 } else { 2 };
        assert_eq!(local.read_at(&name, 0, 4000).unwrap(), [winner; 3000]);
    }
}

#[test]
fn the_crash_disk_loses_what_was_not_flushed_and_nothing_else() {
    let disk = CrashDisk::new();
    let mut appender = disk.create_new("f/a").unwrap();
    appender.append(&[1; 2000]).unwrap();
    appender.sync_data().unwrap();
    disk.sync_dir("f").unwrap();
    appender.append(&[2; 2000]).unwrap();
    disk.create_new("f/b").unwrap();

    let states = disk.after_power_cut(disk.steps(), 64, &mut Seeded::new(1));

    let (mut torn, mut without, mut with) = (0, 0, 0);
    for state in &states {
        let blobs = state.blobs();
        let a = &blobs["f/a"];
        assert_eq!(a[..2000], [1; 2000]);
        assert!(a[2000..].iter().all(|byte| [0, 2].contains(byte)));
        torn += u32::from(a[2000..].contains(&0));
        if blobs.contains_key("f/b") { with += 1 } else { without += 1 }
    }
    assert!(torn > 0 && with > 0 && without > 0, "{torn} {with} {without}");
}

#[test]
fn after_a_failed_flush_a_blob_takes_nothing_more() {
    let faulty = FaultyStore::new(Arc::new(CrashDisk::new()), 3, Fault::Error);
    let mut appender = faulty.create_new("a").unwrap();
    appender.append(b"1").unwrap();
    assert!(matches!(appender.sync_data(), Err(StorageError::Io { .. })));

    assert!(matches!(appender.sync_data(), Err(StorageError::Poisoned { .. })));
    assert!(matches!(appender.append(b"2"), Err(StorageError::Poisoned { .. })));
}

#[test]
fn a_full_disk_is_told_from_a_broken_one() {
    for (fault, full) in [(Fault::NoSpace, true), (Fault::Error, false)] {
        let faulty = FaultyStore::new(Arc::new(CrashDisk::new()), 1, fault);
        let error = faulty.put_new("a", b"").unwrap_err();
        assert_eq!(error.is_no_space(), full);
    }
}
