//! A site's disk, which loses what was not flushed and can be full, and the exports that read it.

use super::{
    ledger::Ledger,
    tally::{Blocks, Segments},
};
use async_trait::async_trait;
use leeward::roles::host::exports::{ExportLauncher, ExportPlan};
use leeward_fabric::memory::{Backing, MemoryWorld};
use leeward_model::{DiskNumber, Site};
use leeward_replica::{
    ItemReader, Store, SystemRandom, Unlock, View,
    storage::{Appender, BlobStore, CrashDisk, Put, Seeded, StorageError, StoreLock},
};
use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// States that a power cut may leave and one of which is drawn.
const CUT_STATES: usize = 6;

/// The disk as it is now. Readers that are processes of their own see every change of it.
#[derive(Clone, Default)]
pub struct SiteDisk {
    now: Arc<Mutex<CrashDisk>>,
    space: Arc<Space>,
    segments: Segments,
}

impl SiteDisk {
    /// The blocks that were written to its segments so far, and those of them that no manifest of
    /// the item names: they were not committed, or have been let go since.
    pub fn written(&self, item: leeward_model::ItemId) -> Blocks {
        self.segments.so_far(self.item(item).as_ref())
    }

    /// The disk for a process that begins now. What an ended process still does is not on it.
    pub fn now(&self) -> CrashDisk {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, CrashDisk> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::now`], and nothing more can be written while the disk is full.
    pub fn process(&self) -> Arc<dyn BlobStore> {
        let (space, segments) = (Arc::clone(&self.space), self.segments.clone());
        Arc::new(ProcessDisk { inner: self.now(), space, segments })
    }

    /// Lets the disk be full, or gives it space again.
    pub fn set_full(&self, full: bool) {
        self.space.full.store(full, Ordering::Relaxed);
    }

    /// How often something could not be written so far because the disk was full.
    pub fn refusals(&self) -> u64 {
        self.space.refusals.load(Ordering::Relaxed)
    }

    /// The process that writes it is killed.
    pub fn kill(&self) {
        let mut now = self.lock();
        *now = now.after_kill(now.steps());
    }

    /// The disk is replaced by an empty one.
    pub fn replace(&self) {
        *self.lock() = CrashDisk::new();
    }

    /// The power is cut.
    pub fn power_cut(&self, random: &mut Seeded) {
        let mut now = self.lock();
        let mut states = now.after_power_cut(now.steps(), CUT_STATES, random);
        let drawn = random.below(states.len() as u64) as usize;
        *now = states.swap_remove(drawn);
    }

    /// Opens an item's replica for reading, as another process does; none when it is not there.
    pub fn item(&self, item: leeward_model::ItemId) -> Option<ItemReader> {
        let blobs: Arc<dyn BlobStore> = Arc::new(self.clone());
        let store = Store::open(blobs, None, &Unlock::KeyFile, Arc::new(SystemRandom)).ok()?;
        store.item_read(item).ok()
    }
}

impl BlobStore for SiteDisk {
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError> {
        self.now().create_new(name)
    }
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.now().put_new(name, bytes)
    }
    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        self.now().read_at(name, offset, len)
    }
    fn len(&self, name: &str) -> Result<Option<u64>, StorageError> {
        self.now().len(name)
    }
    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        self.now().list(folder)
    }
    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.now().delete(name)
    }
    fn sync_dir(&self, folder: &str) -> Result<(), StorageError> {
        self.now().sync_dir(folder)
    }
    fn lock(&self, name: &str) -> Result<StoreLock, StorageError> {
        self.now().lock(name)
    }
    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        self.now().free_bytes()
    }
}

/// The disk as one process has it.
struct ProcessDisk {
    inner: CrashDisk,
    space: Arc<Space>,
    segments: Segments,
}

/// Whether there is any.
#[derive(Default)]
struct Space {
    full: AtomicBool,
    refusals: AtomicU64,
}

impl Space {
    fn check(&self, name: &str) -> Result<(), StorageError> {
        if !self.full.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.refusals.fetch_add(1, Ordering::Relaxed);
        let source = io::Error::from(io::ErrorKind::StorageFull);
        Err(StorageError::Io { action: "write", name: name.to_owned(), source })
    }
}

impl BlobStore for ProcessDisk {
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError> {
        self.space.check(name)?;
        let (inner, space) = (self.inner.create_new(name)?, Arc::clone(&self.space));
        let (name, segments) = (name.to_owned(), self.segments.clone());
        Ok(Box::new(ProcessAppender { inner, space, segments, name, end: 0, poisoned: false }))
    }
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.space.check(name)?;
        self.inner.put_new(name, bytes)
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
        match self.space.full.load(Ordering::Relaxed) {
            true => Ok(Some(0)),
            false => Ok(Some(SPACE_BYTES)),
        }
    }
}

struct ProcessAppender {
    inner: Box<dyn Appender>,
    space: Arc<Space>,
    segments: Segments,
    name: String,
    /// Where the next bytes go.
    end: u64,
    poisoned: bool,
}

impl Appender for ProcessAppender {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        if self.poisoned {
            return Err(StorageError::Poisoned { name: self.name.clone() });
        }
        let space = self.space.check(&self.name);
        self.poisoned = space.is_err();
        space?;
        self.end += bytes.len() as u64;
        self.segments.appended(&self.name, bytes, self.end);
        self.inner.append(bytes)
    }
    fn sync_data(&mut self) -> Result<(), StorageError> {
        match self.poisoned {
            true => Err(StorageError::Poisoned { name: self.name.clone() }),
            false => self.inner.sync_data(),
        }
    }
}

/// What a disk that is not full has left, in bytes.
const SPACE_BYTES: u64 = 1 << 40;

type Served = BTreeMap<PathBuf, Vec<String>>;

/// Serves points to instances: the exports live on when the role dies, and die with the power.
#[derive(Clone)]
pub struct WorldExports {
    site: Site,
    disk: SiteDisk,
    world: Arc<MemoryWorld>,
    ledger: Ledger,
    served: Arc<Mutex<Served>>,
}

impl WorldExports {
    /// Exports of points on `disk`, which is a site's.
    pub fn new(
        site: Site,
        disk: SiteDisk,
        world: Arc<MemoryWorld>,
        ledger: Ledger,
    ) -> WorldExports {
        WorldExports { site, disk, world, ledger, served: Arc::default() }
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all of them, as a power cut does.
    pub fn end_all(&self) {
        for (socket, exports) in std::mem::take(&mut *self.served()) {
            exports.iter().for_each(|export| self.world.stop_serving(&socket, export));
        }
    }

    fn serve(&self, plan: &ExportPlan) -> Result<(), String> {
        let mut reader = self.disk.item(plan.item).ok_or("there is no replica")?;
        reader.refresh().map_err(|error| error.to_string())?;
        let at = reader.position_of(plan.point).map_err(|error| error.to_string())?;
        let view = View::open(&reader, at).map_err(|error| error.to_string())?;
        let point = reader.point(plan.point, self.site).map_err(|error| error.to_string())?;
        if let Some((info, _)) = point {
            self.ledger.exported(&plan.socket, info.cut_at);
        }
        let disks: Vec<DiskNumber> = view.disks().iter().map(|disk| disk.number).collect();
        let view = Arc::new(view);
        for number in disks {
            let (view, export) = (Arc::clone(&view), format!("disk-{number}"));
            let backing: Backing = Arc::new(move |disk, offset, len| {
                let read = view.read(disk, offset, len as usize);
                read.map_err(|error| io::Error::other(error.to_string()))
            });
            self.world.serve(&plan.socket, &export, backing);
            self.served().entry(plan.socket.clone()).or_default().push(export);
        }
        Ok(())
    }
}

#[async_trait]
impl ExportLauncher for WorldExports {
    async fn start(&self, plan: &ExportPlan) -> io::Result<()> {
        if self.answers(plan).await {
            return Ok(());
        }
        self.serve(plan).map_err(io::Error::other)
    }

    async fn answers(&self, plan: &ExportPlan) -> bool {
        self.served().contains_key(&plan.socket)
    }

    async fn stop(&self, plan: &ExportPlan) -> io::Result<()> {
        for export in self.served().remove(&plan.socket).unwrap_or_default() {
            self.world.stop_serving(&plan.socket, &export);
        }
        Ok(())
    }
}
