//! A blob store in memory that knows what was not flushed, and every state a power cut may leave.
//!
//! A call is recorded as the primitive steps a file system would take. A cut may fall before any
//! step; of the writes that were not flushed until then any subset survives, whole or in single
//! sectors, and so does any subset of names made, renamed or removed without a flush of their
//! folder. Folders themselves are taken as durable: the local back end flushes them on creation.

use super::{Appender, BlobStore, Put, StorageError, StoreLock, check_name, split};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What a disk writes as a whole, in bytes.
const SECTOR_BYTES: usize = 512;
/// Up to this many open decisions all outcomes are tried, above it they are drawn.
const EXHAUSTIVE_DECISIONS_MAX: usize = 5;

/// A seeded source of numbers for tests (SplitMix64). Not for keys.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// A flush that the disk acknowledges and does not do: shows that the harness would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostSync {
    /// Which flush, counted from 0 over all flushes of blobs and folders.
    pub nth: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Create { name: String, inode: usize },
    Write { inode: usize, offset: usize, bytes: Arc<[u8]> },
    Rename { from: String, to: String, inode: usize },
    Unlink { name: String },
    SyncData { inode: usize },
    SyncDir { folder: String },
}

#[derive(Default)]
struct Inner {
    names: BTreeMap<String, usize>,
    inodes: Vec<Vec<u8>>,
    /// What was durable when the recording began.
    base: BTreeMap<String, Vec<u8>>,
    steps: Vec<Step>,
    locks: BTreeSet<String>,
    syncs: usize,
    lost_sync: Option<LostSync>,
    temporary: u64,
}

/// See the module. Clones share one disk.
#[derive(Clone, Default)]
pub struct CrashDisk {
    inner: Arc<Mutex<Inner>>,
}

/// What a disk holds at a cut: what is durable, and what may or may not be.
struct Cut {
    names: BTreeMap<String, usize>,
    inodes: Vec<Vec<u8>>,
    writes: Vec<(usize, usize, Arc<[u8]>)>,
    entries: Vec<Step>,
}

/// The fate of one unflushed write.
#[derive(Clone, Copy)]
enum Fate {
    Lost,
    Whole,
    /// The sectors whose bit is set (by sector number modulo 64).
    Torn(u64),
}

impl CrashDisk {
    /// An empty disk.
    pub fn new() -> CrashDisk {
        CrashDisk::default()
    }

    /// A disk that holds `blobs`, all of them durable.
    pub fn holding(blobs: BTreeMap<String, Vec<u8>>) -> CrashDisk {
        let disk = CrashDisk::new();
        {
            let mut inner = disk.inner();
            for (name, bytes) in &blobs {
                inner.inodes.push(bytes.clone());
                let inode = inner.inodes.len() - 1;
                inner.names.insert(name.clone(), inode);
            }
            inner.base = blobs;
        }
        disk
    }

    /// Acknowledges flush `lost` without doing it.
    pub fn lose_sync(&self, lost: LostSync) {
        self.inner().lost_sync = Some(lost);
    }

    /// Flushes so far.
    pub fn syncs(&self) -> usize {
        self.inner().syncs
    }

    /// Steps so far: a cut may fall at any number up to this.
    pub fn steps(&self) -> usize {
        self.inner().steps.len()
    }

    /// What readers see now.
    pub fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.inner();
        let read = |(name, inode): (&String, &usize)| (name.clone(), inner.inodes[*inode].clone());
        inner.names.iter().map(read).collect()
    }

    /// Flips bit `bit` of the blob; for tests of damage.
    pub fn flip(&self, name: &str, bit: usize) {
        let mut inner = self.inner();
        let inode = inner.names[name];
        inner.inodes[inode][bit / 8] ^= 1 << (bit % 8);
    }

    /// Disks as a power cut after `steps` steps may leave them, at most `limit`: every outcome
    /// when few writes are open, else a sample. Nothing survives in the first, everything in the
    /// second.
    pub fn after_power_cut(
        &self,
        steps: usize,
        limit: usize,
        random: &mut Seeded,
    ) -> Vec<CrashDisk> {
        let cut = self.inner().cut(steps);
        let open = cut.writes.len() + cut.entries.len();
        let mut states = Vec::new();
        if open == 0 {
            return vec![cut.state(&[], &[])];
        }
        let fates = |bits: u64| -> (Vec<Fate>, Vec<bool>) {
            let survives = |index: usize| bits >> (index % 64) & 1 == 1;
            let writes = 0..cut.writes.len();
            let fate = |index| if survives(index) { Fate::Whole } else { Fate::Lost };
            (writes.map(fate).collect(), (cut.writes.len()..open).map(survives).collect())
        };
        let mut add = |(writes, entries): (Vec<Fate>, Vec<bool>)| {
            states.push(cut.state(&writes, &entries));
        };
        add(fates(0));
        add(fates(u64::MAX));
        if open <= EXHAUSTIVE_DECISIONS_MAX {
            for bits in 1..(1 << open) - 1 {
                add(fates(bits));
            }
        }
        let drawn = limit.saturating_sub(states.len());
        for _ in 0..drawn {
            let (mut writes, entries) = fates(random.next_u64());
            for fate in &mut writes {
                if random.below(3) == 0 {
                    *fate = Fate::Torn(random.next_u64());
                }
            }
            states.push(cut.state(&writes, &entries));
        }
        states.truncate(limit);
        states
    }

    /// The disk as a process finds it whose predecessor was killed after `steps` steps: all of them
    /// are visible, and what was not flushed still is not.
    pub fn after_kill(&self, steps: usize) -> CrashDisk {
        let old = self.inner();
        let cut = old.cut(steps);
        let mut new = Inner { names: cut.names, inodes: cut.inodes, ..Inner::default() };
        for (inode, offset, bytes) in &cut.writes {
            write_into(&mut new.inodes[*inode], *offset, bytes);
        }
        cut.entries.iter().for_each(|entry| apply_entry(&mut new.names, entry));
        new.base.clone_from(&old.base);
        new.steps = old.steps[..steps].to_vec();
        new.temporary = old.temporary;
        CrashDisk { inner: Arc::new(Mutex::new(new)) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_into(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

fn apply_entry(names: &mut BTreeMap<String, usize>, step: &Step) {
    match step {
        Step::Create { name, inode } => {
            names.insert(name.clone(), *inode);
        }
        Step::Rename { from, to, inode } => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        Step::Unlink { name } => {
            names.remove(name);
        }
        Step::Write { .. } | Step::SyncData { .. } | Step::SyncDir { .. } => {}
    }
}

fn folder_of(step: &Step) -> &str {
    match step {
        Step::Create { name, .. } | Step::Unlink { name } => split(name).0,
        Step::Rename { to, .. } => split(to).0,
        Step::Write { .. } | Step::SyncData { .. } | Step::SyncDir { .. } => "",
    }
}

impl Cut {
    fn state(&self, writes: &[Fate], entries: &[bool]) -> CrashDisk {
        let mut inodes = self.inodes.clone();
        for ((inode, offset, bytes), fate) in self.writes.iter().zip(writes) {
            match fate {
                Fate::Lost => {}
                Fate::Whole => write_into(&mut inodes[*inode], *offset, bytes),
                Fate::Torn(sectors) => tear(&mut inodes[*inode], *offset, bytes, *sectors),
            }
        }
        let mut names = self.names.clone();
        for (step, survives) in self.entries.iter().zip(entries) {
            if *survives {
                apply_entry(&mut names, step);
            }
        }
        CrashDisk::holding(
            names.into_iter().map(|(name, inode)| (name, inodes[inode].clone())).collect(),
        )
    }
}

/// Writes the chosen sectors of `data`, cut where the disk's sectors end.
fn tear(bytes: &mut Vec<u8>, offset: usize, data: &[u8], sectors: u64) {
    let mut start = 0;
    while start < data.len() {
        let sector = (offset + start) / SECTOR_BYTES;
        let end = ((sector + 1) * SECTOR_BYTES - offset).min(data.len());
        if sectors >> (sector % 64) & 1 == 1 {
            write_into(bytes, offset + start, &data[start..end]);
        }
        start = end;
    }
}

impl Inner {
    fn cut(&self, steps: usize) -> Cut {
        let mut cut = Cut {
            names: BTreeMap::new(),
            inodes: vec![Vec::new(); self.inodes.len()],
            writes: Vec::new(),
            entries: Vec::new(),
        };
        for (inode, (name, bytes)) in self.base.iter().enumerate() {
            cut.names.insert(name.clone(), inode);
            cut.inodes[inode] = bytes.clone();
        }
        for step in &self.steps[..steps] {
            match step {
                Step::Write { inode, offset, bytes } => {
                    cut.writes.push((*inode, *offset, bytes.clone()));
                }
                Step::SyncData { inode: synced } => {
                    for (inode, offset, bytes) in &cut.writes {
                        if inode == synced {
                            write_into(&mut cut.inodes[*inode], *offset, bytes);
                        }
                    }
                    cut.writes.retain(|(inode, ..)| inode != synced);
                }
                Step::SyncDir { folder } => {
                    for entry in cut.entries.iter().filter(|entry| folder_of(entry) == folder) {
                        apply_entry(&mut cut.names, entry);
                    }
                    cut.entries.retain(|entry| folder_of(entry) != folder);
                }
                entry => cut.entries.push(entry.clone()),
            }
        }
        cut
    }

    fn create(&mut self, name: &str) -> usize {
        self.inodes.push(Vec::new());
        let inode = self.inodes.len() - 1;
        self.names.insert(name.to_owned(), inode);
        self.steps.push(Step::Create { name: name.to_owned(), inode });
        inode
    }

    fn write(&mut self, inode: usize, bytes: &[u8]) {
        let offset = self.inodes[inode].len();
        self.inodes[inode].extend_from_slice(bytes);
        self.steps.push(Step::Write { inode, offset, bytes: bytes.into() });
    }

    fn sync(&mut self, step: Step) {
        let nth = self.syncs;
        self.syncs += 1;
        if self.lost_sync != Some(LostSync { nth }) {
            self.steps.push(step);
        }
    }
}

impl BlobStore for CrashDisk {
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError> {
        check_name(name)?;
        let mut inner = self.inner();
        if inner.names.contains_key(name) {
            return Err(StorageError::Exists { name: name.to_owned() });
        }
        let inode = inner.create(name);
        Ok(Box::new(CrashAppender { disk: self.clone(), inode }))
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        check_name(name)?;
        let mut inner = self.inner();
        let (folder, _) = split(name);
        let number = inner.temporary;
        inner.temporary += 1;
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let temporary = format!("{prefix}.new-{number}");
        let inode = inner.create(&temporary);
        inner.write(inode, bytes);
        inner.sync(Step::SyncData { inode });
        if inner.names.contains_key(name) {
            inner.names.remove(&temporary);
            inner.steps.push(Step::Unlink { name: temporary });
            return Ok(Put::Exists);
        }
        inner.names.remove(&temporary);
        inner.names.insert(name.to_owned(), inode);
        inner.steps.push(Step::Rename { from: temporary, to: name.to_owned(), inode });
        inner.sync(Step::SyncDir { folder: folder.to_owned() });
        Ok(Put::Created)
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        check_name(name)?;
        let inner = self.inner();
        let Some(inode) = inner.names.get(name) else {
            return Err(StorageError::Absent { name: name.to_owned() });
        };
        let bytes = &inner.inodes[*inode];
        let start = usize::try_from(offset).map_or(bytes.len(), |start| start.min(bytes.len()));
        Ok(bytes[start..start.saturating_add(len).min(bytes.len())].to_vec())
    }

    fn len(&self, name: &str) -> Result<Option<u64>, StorageError> {
        check_name(name)?;
        let inner = self.inner();
        Ok(inner.names.get(name).map(|inode| inner.inodes[*inode].len() as u64))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let inner = self.inner();
        let below = inner.names.keys().filter_map(|name| name.strip_prefix(&prefix));
        let direct = below.filter_map(|name| name.split('/').next());
        let listed: BTreeSet<&str> = direct.filter(|name| !name.starts_with('.')).collect();
        Ok(listed.into_iter().map(str::to_owned).collect())
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        check_name(name)?;
        let mut inner = self.inner();
        if inner.names.remove(name).is_some() {
            inner.steps.push(Step::Unlink { name: name.to_owned() });
        }
        Ok(())
    }

    fn sync_dir(&self, folder: &str) -> Result<(), StorageError> {
        self.inner().sync(Step::SyncDir { folder: folder.to_owned() });
        Ok(())
    }

    fn lock(&self, name: &str) -> Result<StoreLock, StorageError> {
        let mut inner = self.inner();
        if !inner.locks.insert(name.to_owned()) {
            let holder = "another process".into();
            return Err(StorageError::Locked { name: name.to_owned(), holder });
        }
        Ok(Box::new(CrashLock { disk: self.clone(), name: name.to_owned() }))
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        Ok(None)
    }
}

struct CrashLock {
    disk: CrashDisk,
    name: String,
}

impl Drop for CrashLock {
    fn drop(&mut self) {
        self.disk.inner().locks.remove(&self.name);
    }
}

struct CrashAppender {
    disk: CrashDisk,
    inode: usize,
}

impl Appender for CrashAppender {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.disk.inner().write(self.inode, bytes);
        Ok(())
    }

    fn sync_data(&mut self) -> Result<(), StorageError> {
        self.disk.inner().sync(Step::SyncData { inode: self.inode });
        Ok(())
    }
}
