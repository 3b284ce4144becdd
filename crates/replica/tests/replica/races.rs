//! Two processes on one store, with the second one's work placed into the middle of a call of the
//! first.

use crate::world::{ITEM, SeededRandom, World, retention};
use leeward_model::UnixMillis;
use leeward_replica::{
    Store, StoreError, Unlock, View,
    storage::{Appender, BlobStore, CrashDisk, Put, StorageError, StoreLock},
};
use std::sync::{Arc, Mutex};

type Work = Box<dyn FnOnce() + Send>;

/// When the first pin is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    BeforeThePut,
    AfterThePut,
}

/// Passes everything on; does `work` once, beside the first pin that is put.
struct Interrupted {
    inner: CrashDisk,
    moment: Moment,
    work: Mutex<Option<Work>>,
}

impl Interrupted {
    fn at(&self, moment: Moment, name: &str) {
        if name.contains("/pins/") && moment == self.moment {
            let work = self.work.lock().unwrap().take();
            work.into_iter().for_each(|work| work());
        }
    }
}

impl BlobStore for Interrupted {
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError> {
        self.inner.create_new(name)
    }
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.at(Moment::BeforeThePut, name);
        let put = self.inner.put_new(name, bytes);
        self.at(Moment::AfterThePut, name);
        put
    }
    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        self.inner.read_at(name, offset, len)
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

/// Pins the older of two points while the writer expires it at `moment`.
fn pin_while_expiring(moment: Moment) -> bool {
    let (disk, mut world) = World::on_crash_disk(3);
    let old = world.reader().newest_point().unwrap().clone();
    world.seal().unwrap();
    for _ in 0..40 {
        world.append().unwrap();
    }
    world.commit_point().unwrap();
    let world = Arc::new(Mutex::new(world));
    let writer = world.clone();
    let work: Work = Box::new(move || {
        let mut world = writer.lock().unwrap();
        world.item().expire(UnixMillis(i64::MAX), &retention()).unwrap();
    });
    let inner = disk.clone();
    let blobs = Arc::new(Interrupted { inner, moment, work: Mutex::new(Some(work)) });
    let random = SeededRandom::new(50);
    let store = Store::open(blobs, None, &Unlock::KeyFile, random).unwrap();
    let mut reader = store.item_read(ITEM).unwrap();

    match reader.pin(old.id, "export", "serving", UnixMillis(1)) {
        Ok(_) => {
            View::open(&reader, old.position).unwrap().verify().unwrap();
            let world = world.lock().unwrap();
            crate::world::check_place(&reader, &world.model, old.position).unwrap();
            true
        }
        Err(StoreError::NoPoint { .. }) => {
            assert!(reader.pins().unwrap().is_empty(), "a refused pin stays behind");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// I10: of a pin and an expiry at the same time one gives way, whichever comes first.
#[test]
fn a_pin_that_is_put_while_its_point_expires_is_refused_or_holds_everything() {
    assert!(!pin_while_expiring(Moment::BeforeThePut), "the point went before it was pinned");
    assert!(pin_while_expiring(Moment::AfterThePut), "the expiry saw the pin");
}
