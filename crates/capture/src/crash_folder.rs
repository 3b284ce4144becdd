//! A double of [`Folder`] in memory whose power can be cut between any two operations.
//!
//! After a cut, of every operation that was not synced any subset may have happened, data writes
//! torn at 512 bytes; creations and removals count only after the folder's own sync.

use crate::folder::{Folder, FolderFile};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

// The unit in which disks write or do not write.
const SECTOR: usize = 512;

#[derive(Clone)]
enum Unsynced {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

#[derive(Default)]
struct Machine {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    operations: u64,
    cut_at: Option<u64>,
}

impl Machine {
    /// Counts one changing operation; fails it and all later ones once the power is gone.
    fn step(&mut self) -> io::Result<()> {
        if self.cut_at.is_some_and(|at| self.operations >= at) {
            return Err(io::Error::other("the power is cut"));
        }
        self.operations += 1;
        Ok(())
    }
}

/// A folder in memory that can lose power. Clones share it.
#[derive(Clone, Default)]
pub struct CrashFolder {
    machine: Arc<Mutex<Machine>>,
}

struct CrashFile {
    machine: Arc<Mutex<Machine>>,
    index: usize,
}

fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// xorshift64*: enough for choosing what a cut loses.
fn draw(seed: &mut u64) -> u64 {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    seed.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Redoes a random subset of what was not synced, sector by sector.
fn torn(content: &Content, seed: &mut u64) -> Vec<u8> {
    let mut left = content.durable.clone();
    // One cut in three loses nothing or everything: the extremes must be likely.
    let odds = draw(seed) % 3;
    for operation in &content.unsynced {
        match operation {
            Unsynced::SetLen(len) if odds == 2 || (odds == 1 && draw(seed).is_multiple_of(2)) => {
                left.resize(*len, 0);
            }
            Unsynced::SetLen(_) => {}
            Unsynced::Write { at, bytes } => {
                let mut done = 0;
                while done < bytes.len() {
                    let sector_end = ((at + done) / SECTOR + 1) * SECTOR - at;
                    let end = sector_end.min(bytes.len());
                    if odds == 2 || (odds == 1 && draw(seed).is_multiple_of(2)) {
                        put(&mut left, at + done, &bytes[done..end]);
                    }
                    done = end;
                }
            }
        }
    }
    left
}

impl CrashFolder {
    /// An empty folder with its power on.
    pub fn new() -> CrashFolder {
        CrashFolder::default()
    }

    /// Changing operations so far: a number for [`Self::cut_after`].
    pub fn operations(&self) -> u64 {
        lock(&self.machine).operations
    }

    /// Cuts the power after `operations` changing operations, counted from the beginning.
    pub fn cut_after(&self, operations: u64) {
        lock(&self.machine).cut_at = Some(operations);
    }

    /// The folder after the power came back; `seed` chooses what of the unsynced is lost.
    pub fn after_cut(&self, seed: u64) -> CrashFolder {
        let machine = lock(&self.machine);
        let mut seed = seed | 1;
        draw(&mut seed);
        let mut left = Machine::default();
        // A name that only one of the two tables has may or may not be there.
        let mut names = machine.durable_names.clone();
        for name in machine.names.keys().chain(machine.durable_names.keys()) {
            if draw(&mut seed).is_multiple_of(2) {
                match machine.names.get(name) {
                    Some(index) => names.insert(name.clone(), *index),
                    None => names.remove(name),
                };
            }
        }
        for (name, index) in names {
            let now = torn(&machine.files[index], &mut seed);
            left.names.insert(name, left.files.len());
            left.files.push(Content { durable: now.clone(), now, unsynced: Vec::new() });
        }
        left.durable_names = left.names.clone();
        CrashFolder { machine: Arc::new(Mutex::new(left)) }
    }

    fn file(&self, index: usize) -> Arc<dyn FolderFile> {
        Arc::new(CrashFile { machine: Arc::clone(&self.machine), index })
    }
}

impl Folder for CrashFolder {
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FolderFile>>> {
        let index = lock(&self.machine).names.get(name).copied();
        Ok(index.map(|index| self.file(index)))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn FolderFile>> {
        let existing = self.open(name)?;
        if let Some(file) = existing {
            file.set_len(0)?;
            return Ok(file);
        }
        let mut machine = lock(&self.machine);
        machine.step()?;
        let index = machine.files.len();
        machine.files.push(Content::default());
        machine.names.insert(name.to_owned(), index);
        drop(machine);
        Ok(self.file(index))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut machine = lock(&self.machine);
        machine.step()?;
        machine.names.remove(name);
        Ok(())
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.machine).names.keys().cloned().collect())
    }
    fn sync(&self) -> io::Result<()> {
        let mut machine = lock(&self.machine);
        machine.step()?;
        machine.durable_names = machine.names.clone();
        Ok(())
    }
}

impl FolderFile for CrashFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let machine = lock(&self.machine);
        let content = &machine.files[self.index].now;
        let from = content.len().min(offset as usize);
        let count = buffer.len().min(content.len() - from);
        buffer[..count].copy_from_slice(&content[from..from + count]);
        Ok(count)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut machine = lock(&self.machine);
        machine.step()?;
        let content = &mut machine.files[self.index];
        put(&mut content.now, offset as usize, bytes);
        content.unsynced.push(Unsynced::Write { at: offset as usize, bytes: bytes.to_vec() });
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut machine = lock(&self.machine);
        machine.step()?;
        let content = &mut machine.files[self.index];
        content.now.resize(len as usize, 0);
        content.unsynced.push(Unsynced::SetLen(len as usize));
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.machine).files[self.index].now.len() as u64)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let machine = lock(&self.machine);
        let content = &machine.files[self.index].now;
        let rest = content.get(offset as usize..).unwrap_or_default();
        Ok(rest.iter().position(|byte| *byte != 0).map(|index| offset + index as u64))
    }
    fn sync(&self) -> io::Result<()> {
        let mut machine = lock(&self.machine);
        machine.step()?;
        let content = &mut machine.files[self.index];
        content.durable.clone_from(&content.now);
        content.unsynced.clear();
        Ok(())
    }
}
