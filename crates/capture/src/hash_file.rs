//! The source's hash files: what the target holds, extent by extent, and for which position.
//!
//! One file per disk and one journal per item; layout in `docs/formats/hash-file.md`. A power cut
//! at any moment leaves them valid for their label, or repairable from the journal, or untrusted:
//! never silently wrong. Does not talk to the target and does not read disks.
//!
//! Order of durable steps:
//! 1. `push`, `seal`: the journal is written and fsynced, its folder too. Then, not before, the
//!    caller asks the target to commit.
//! 2. `commit`, after the target has answered: every header says *applying*, fsync; the records
//!    are written, fsync; every header gets the new label, fsync.
//!
//! The journal names the label that it starts from, so an old one can never be applied twice over
//! something newer; applying is idempotent, so a cut in the middle only repeats it.

mod header;
mod rebuild;

use crate::{
    ahead::Doubt,
    folder::{Folder, FolderFile, read_padded},
    pending::{DISKS_MAX, DiskSize, JOURNAL, Journal, JournalWriter, SealKind},
    record::{RECORD_BYTES, Record},
};
use header::{HEADER_BYTES, Header, HeaderState};
use leeward_model::{DiskNumber, EXTENT_BYTES, ExtentNumber, ItemId, Position};
pub use rebuild::Rebuild;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

/// Most records of one [`HashFiles::records`]: 288 KiB.
const RECORDS_MAX: u32 = 1024;

/// Why the hash files could not be used.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// A file operation failed. What is on disk is judged anew by [`HashFiles::reconcile`].
    #[error("could not {what} of item {item}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The item.
        item: ItemId,
        /// The cause.
        source: io::Error,
    },
    /// They were not reconciled or rebuilt, or an earlier failure left them in between.
    #[error("the hash files of item {0} are not trusted")]
    Untrusted(ItemId),
    /// A sealed journal waits for the target's answer.
    #[error("item {0} has a delta in flight")]
    InFlight(ItemId),
    /// The target committed something that was not sealed here.
    #[error("no delta of item {0} was sealed for that position")]
    NotSealed(ItemId),
    /// More disks than an item can have.
    #[error("an item cannot have more than {DISKS_MAX} disks")]
    TooManyDisks,
}

/// Whether the hash files describe the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// They are exactly what the target holds at the position asked for.
    Trusted,
    /// They are not; why, in words. They must be rebuilt from the target's leaf hashes.
    Untrusted(String),
}

enum InFlight {
    Nothing,
    Writing(Box<JournalWriter>),
    Sealed(Position),
}

struct DiskFile {
    file: Arc<dyn FolderFile>,
    size: u64,
    /// False for a disk that comes with the delta in flight.
    at_target: bool,
}

struct State {
    label: Option<Position>,
    disks: BTreeMap<DiskNumber, DiskFile>,
    in_flight: InFlight,
}

/// The hash files of one item.
///
/// All calls block on files: run them off the async threads. Safe to share between threads.
pub struct HashFiles {
    folder: Arc<dyn Folder>,
    item: ItemId,
    state: Mutex<State>,
}

pub(crate) fn file_name(disk: DiskNumber) -> String {
    format!("disk-{disk}.hashes")
}

fn disk_of(name: &str) -> Option<DiskNumber> {
    let number = name.strip_prefix("disk-")?.strip_suffix(".hashes")?;
    number.parse().ok().map(DiskNumber)
}

fn record_at(extent: ExtentNumber) -> u64 {
    HEADER_BYTES as u64 + u64::from(extent.0) * RECORD_BYTES as u64
}

fn file_bytes(size: u64) -> u64 {
    HEADER_BYTES as u64 + size.div_ceil(EXTENT_BYTES) * RECORD_BYTES as u64
}

impl HashFiles {
    /// The hash files in `folder`, which belongs to `item` alone. Untrusted until
    /// [`Self::reconcile`] says otherwise or [`Self::rebuild`] finished.
    pub fn new(folder: Arc<dyn Folder>, item: ItemId) -> HashFiles {
        let state = State { label: None, disks: BTreeMap::new(), in_flight: InFlight::Nothing };
        HashFiles { folder, item, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }

    fn io(&self, what: &'static str) -> impl FnOnce(io::Error) -> HashError {
        let item = self.item;
        move |source| HashError::Io { what, item, source }
    }

    /// Judges what is on disk against `target`, the newest position that the target committed,
    /// and finishes or discards the delta that was in flight.
    ///
    /// # Errors
    /// File errors only; the files stay untrusted then.
    pub fn reconcile(&self, target: Position) -> Result<Trust, HashError> {
        self.reconcile_in(&mut self.lock(), target)
    }

    fn reconcile_in(&self, state: &mut State, target: Position) -> Result<Trust, HashError> {
        state.label = None;
        state.in_flight = InFlight::Nothing;
        let files = self.load().map_err(self.io("read the hash files"))?;
        if let Some(disks) = whole_set(&files, target) {
            self.discard(&files, &disks).map_err(self.io("remove old hash files"))?;
            state.disks = opened(files, &disks);
            state.label = Some(target);
            return Ok(Trust::Trusted);
        }
        let journal = match self.folder.open(JOURNAL).map_err(self.io("open the journal"))? {
            Some(file) => Journal::read(file, self.item).map_err(self.io("read the journal"))?,
            None => None,
        };
        let Some(journal) = journal.filter(|journal| journal.next == target) else {
            return Ok(Trust::Untrusted(describe(&files, target)));
        };
        if !applies(&journal, &files) {
            return Ok(Trust::Untrusted("the journal does not fit the hash files".into()));
        }
        self.apply(&journal, &files).map_err(self.io("apply the journal"))?;
        state.disks = opened(files, &journal.disks);
        state.label = Some(target);
        Ok(Trust::Trusted)
    }

    /// The position that the files are valid for, once trusted.
    pub fn label(&self) -> Option<Position> {
        self.lock().label
    }

    /// How many disks the target has.
    pub fn disks(&self) -> usize {
        self.lock().disks.len()
    }

    /// Size in bytes of `disk` at the target's last point, or as it was rebuilt; `None` for a
    /// disk that the target does not have, 0 for one that only came with progress since.
    pub fn size(&self, disk: DiskNumber) -> Option<u64> {
        self.lock().disks.get(&disk).map(|entry| entry.size)
    }

    /// Whether trusted and nothing is in flight, so that a pass may start: a comparison with what
    /// the target held *before* a delta in flight would suppress a block that was changed back.
    pub fn settled(&self) -> Result<(), HashError> {
        let state = self.lock();
        match (&state.label, &state.in_flight) {
            (None, _) => Err(HashError::Untrusted(self.item)),
            (Some(_), InFlight::Nothing) => Ok(()),
            (Some(_), InFlight::Writing(_) | InFlight::Sealed(_)) => {
                Err(HashError::InFlight(self.item))
            }
        }
    }

    /// Whether they say what the target holds, whatever is in flight.
    pub(crate) fn trusted(&self) -> Result<(), HashError> {
        self.lock().label.map(drop).ok_or(HashError::Untrusted(self.item))
    }

    /// The error of a file that stands beside these.
    pub(crate) fn failed(&self, what: &'static str, source: io::Error) -> HashError {
        self.io(what)(source)
    }

    /// Names every extent of the delta in flight, when the target may have been asked to commit
    /// it: then nothing tells whether the target has its former or its new version.
    ///
    /// # Errors
    /// File errors, also those of `each`.
    pub fn doubt(
        &self,
        mut each: impl FnMut(DiskNumber, ExtentNumber) -> io::Result<()>,
    ) -> Result<Option<Doubt>, HashError> {
        let state = self.lock();
        let InFlight::Sealed(next) = state.in_flight else { return Ok(None) };
        let mut read = || {
            let file = self.folder.open(JOURNAL)?.ok_or(io::ErrorKind::NotFound)?;
            let journal = Journal::read(file, self.item)?.ok_or(io::ErrorKind::InvalidData)?;
            journal.for_each(|disk, extent, _| each(disk, extent))
        };
        read().map_err(self.io("read the journal"))?;
        Ok(Some(Doubt { next }))
    }

    fn file(&self, disk: DiskNumber) -> Result<Option<Arc<dyn FolderFile>>, HashError> {
        let state = self.lock();
        state.label.ok_or(HashError::Untrusted(self.item))?;
        Ok(state.disks.get(&disk).map(|entry| Arc::clone(&entry.file)))
    }

    /// What the target has of `extent`: zero beyond its end and for a disk that it never had.
    pub fn record(&self, disk: DiskNumber, extent: ExtentNumber) -> Result<Record, HashError> {
        let Some(file) = self.file(disk)? else { return Ok(Record::ZERO) };
        let mut bytes = [0; RECORD_BYTES];
        read_padded(&*file, &mut bytes, record_at(extent)).map_err(self.io("read a hash file"))?;
        Ok(Record::from_bytes(&bytes))
    }

    /// As [`Self::record`], of `count` extents from `first` on, at most 1024, with one read.
    pub fn records(
        &self,
        disk: DiskNumber,
        first: ExtentNumber,
        count: u32,
    ) -> Result<Vec<Record>, HashError> {
        let count = count.min(RECORDS_MAX) as usize;
        let Some(file) = self.file(disk)? else { return Ok(vec![Record::ZERO; count]) };
        let mut bytes = vec![0; count * RECORD_BYTES];
        read_padded(&*file, &mut bytes, record_at(first)).map_err(self.io("read a hash file"))?;
        Ok(bytes.as_chunks().0.iter().map(Record::from_bytes).collect())
    }

    /// The first extent at or after `from` that does not read zero at the target.
    pub fn next_nonzero(
        &self,
        disk: DiskNumber,
        from: ExtentNumber,
    ) -> Result<Option<ExtentNumber>, HashError> {
        let Some(file) = self.file(disk)? else { return Ok(None) };
        find_nonzero(&*file, from).map_err(self.io("search a hash file"))
    }

    /// Notes that the delta in flight makes `extent` into `record`. A later push of the same
    /// extent wins. Nothing changes before [`Self::commit`].
    ///
    /// # Errors
    /// [`HashError::InFlight`] between `seal` and `commit`: keep it and push it afterwards.
    pub fn push(
        &self,
        disk: DiskNumber,
        extent: ExtentNumber,
        record: &Record,
    ) -> Result<(), HashError> {
        let mut state = self.lock();
        let pushed = self.writer(&mut state)?.push(disk, extent, record);
        if pushed.is_err() {
            state.in_flight = InFlight::Nothing;
        }
        pushed.map_err(self.io("write the journal"))
    }

    fn writer<'a>(&self, state: &'a mut State) -> Result<&'a mut JournalWriter, HashError> {
        let base = state.label.ok_or(HashError::Untrusted(self.item))?;
        if matches!(state.in_flight, InFlight::Nothing) {
            let file = self.folder.create(JOURNAL).map_err(self.io("create the journal"))?;
            let writer = JournalWriter::new(file, self.item, base);
            state.in_flight = InFlight::Writing(Box::new(writer));
        }
        match &mut state.in_flight {
            InFlight::Writing(writer) => Ok(writer),
            InFlight::Nothing | InFlight::Sealed(_) => Err(HashError::InFlight(self.item)),
        }
    }

    /// Makes the journal durable for the commit of a point. Only after this may the target be
    /// asked to commit `next`.
    ///
    /// `disks` are all disks of the point and their sizes at its cut.
    pub fn seal(&self, next: Position, disks: &[DiskSize]) -> Result<(), HashError> {
        self.seal_in(&mut self.lock(), next, SealKind::Point, disks)
    }

    /// As [`Self::seal`], for a commit that is not a point: progress within a pass. Sizes stay
    /// those of the last point, so that what lies beyond still counts as never read.
    pub fn seal_progress(&self, next: Position) -> Result<(), HashError> {
        let mut state = self.lock();
        let pushed = self.writer(&mut state)?.disks.clone();
        let at_target = state.disks.iter().filter(|(_, entry)| entry.at_target);
        let mut disks: BTreeMap<_, _> =
            at_target.map(|(disk, entry)| (*disk, entry.size)).collect();
        for disk in pushed {
            disks.entry(disk).or_insert(0);
        }
        let disks: Vec<_> = disks.into_iter().collect();
        self.seal_in(&mut state, next, SealKind::Progress, &disks)
    }

    fn seal_in(
        &self,
        state: &mut State,
        next: Position,
        kind: SealKind,
        disks: &[DiskSize],
    ) -> Result<(), HashError> {
        if disks.len() > DISKS_MAX {
            return Err(HashError::TooManyDisks);
        }
        self.writer(state)?;
        let InFlight::Writing(writer) = std::mem::replace(&mut state.in_flight, InFlight::Nothing)
        else {
            return Err(HashError::InFlight(self.item));
        };
        let base = state.label.ok_or(HashError::Untrusted(self.item))?;
        for (disk, _) in disks {
            let known = state.disks.get(disk).is_some_and(|entry| entry.at_target);
            if !known {
                let file = self.join(*disk, base, next).map_err(self.io("add a hash file"))?;
                state.disks.insert(*disk, DiskFile { file, size: 0, at_target: false });
            }
        }
        let sealed = writer.seal(next, kind, disks).and_then(|()| self.folder.sync());
        sealed.map_err(self.io("make the journal durable"))?;
        state.in_flight = InFlight::Sealed(next);
        Ok(())
    }

    /// A file for a disk that the target does not have yet: it counts from `next` on.
    fn join(
        &self,
        disk: DiskNumber,
        base: Position,
        next: Position,
    ) -> io::Result<Arc<dyn FolderFile>> {
        let file = self.folder.create(&file_name(disk))?;
        let state = HeaderState::Applying { next };
        let header = Header { item: self.item, disk, disks: 0, size: 0, label: base, state };
        file.write_at(&header.to_bytes(), 0)?;
        file.sync()?;
        Ok(file)
    }

    /// Applies the sealed delta after the target committed it as `at`.
    ///
    /// # Errors
    /// After a file error the files are untrusted until the next [`Self::reconcile`].
    pub fn commit(&self, at: Position) -> Result<(), HashError> {
        let mut state = self.lock();
        if !matches!(state.in_flight, InFlight::Sealed(next) if next == at) {
            return Err(HashError::NotSealed(self.item));
        }
        // The lock is held throughout: a pass that goes on meanwhile waits instead of failing.
        match self.reconcile_in(&mut state, at)? {
            Trust::Trusted => Ok(()),
            Trust::Untrusted(_) => Err(HashError::Untrusted(self.item)),
        }
    }

    /// Forgets the delta in flight. Only for one that the target cannot have committed: when that
    /// is not known, call [`Self::reconcile`] with the target's position instead.
    pub fn abandon(&self) {
        self.lock().in_flight = InFlight::Nothing;
    }

    /// Starts anew for a target at `label` with these disks, all of which read zero until
    /// [`Rebuild::leaf`] says otherwise. Nothing is trusted before [`Rebuild::finish`].
    pub fn rebuild(&self, label: Position, disks: &[DiskSize]) -> Result<Rebuild<'_>, HashError> {
        if disks.len() > DISKS_MAX {
            return Err(HashError::TooManyDisks);
        }
        let mut state = self.lock();
        state.label = None;
        state.in_flight = InFlight::Nothing;
        state.disks.clear();
        drop(state);
        Rebuild::start(self, label, disks).map_err(self.io("start new hash files"))
    }

    fn load(&self) -> io::Result<BTreeMap<DiskNumber, Loaded>> {
        let mut files = BTreeMap::new();
        for disk in self.folder.names()?.iter().filter_map(|name| disk_of(name)) {
            let Some(file) = self.folder.open(&file_name(disk))? else { continue };
            let mut bytes = [0; HEADER_BYTES];
            read_padded(&*file, &mut bytes, 0)?;
            let header = Header::from_bytes(&bytes)
                .filter(|header| header.item == self.item && header.disk == disk);
            files.insert(disk, Loaded { file, header });
        }
        Ok(files)
    }

    /// Removes the files of disks that are gone, so that none can come back with an old label.
    fn discard(&self, files: &BTreeMap<DiskNumber, Loaded>, disks: &[DiskSize]) -> io::Result<()> {
        for disk in files.keys() {
            if !disks.iter().any(|(kept, _)| kept == disk) {
                self.folder.remove(&file_name(*disk))?;
            }
        }
        Ok(())
    }

    fn apply(&self, journal: &Journal, files: &BTreeMap<DiskNumber, Loaded>) -> io::Result<()> {
        let next = journal.next;
        let mut open = BTreeMap::new();
        for (disk, size) in &journal.disks {
            let loaded = files.get(disk).ok_or(io::ErrorKind::NotFound)?;
            if loaded.is_valid_for(next).is_none() {
                let header = Header {
                    item: self.item,
                    disk: *disk,
                    disks: journal.disks.len() as u16,
                    size: *size,
                    label: journal.base,
                    state: HeaderState::Applying { next },
                };
                loaded.file.write_at(&header.to_bytes(), 0)?;
                loaded.file.sync()?;
                open.insert(*disk, (header, &loaded.file));
            }
        }
        let point = journal.kind == SealKind::Point;
        for (header, file) in open.values() {
            if point {
                file.set_len(file_bytes(header.size))?;
            }
        }
        journal.for_each(|disk, extent, record| match open.get(&disk) {
            Some((header, file)) if !point || extent.offset() < header.size => {
                file.write_at(record, record_at(extent))
            }
            _ => Ok(()),
        })?;
        for (_, file) in open.values() {
            file.sync()?;
        }
        for (header, file) in open.values() {
            let header = Header { label: next, state: HeaderState::Valid, ..header.clone() };
            file.write_at(&header.to_bytes(), 0)?;
            file.sync()?;
        }
        self.discard(files, &journal.disks)
    }
}

/// A hash file as found; without header when that is torn or foreign.
struct Loaded {
    file: Arc<dyn FolderFile>,
    header: Option<Header>,
}

impl Loaded {
    fn is_valid_for(&self, label: Position) -> Option<&Header> {
        let header = self.header.as_ref()?;
        (header.state == HeaderState::Valid && header.label == label).then_some(header)
    }
}

/// The disks of the set that is valid for `target`, when all of its files are there.
fn whole_set(files: &BTreeMap<DiskNumber, Loaded>, target: Position) -> Option<Vec<DiskSize>> {
    let valid: Vec<_> = files.values().filter_map(|file| file.is_valid_for(target)).collect();
    let whole =
        !valid.is_empty() && valid.iter().all(|header| usize::from(header.disks) == valid.len());
    whole.then(|| valid.iter().map(|header| (header.disk, header.size)).collect())
}

/// Whether every disk's file is at the journal's start, on its way, or already at its end.
fn applies(journal: &Journal, files: &BTreeMap<DiskNumber, Loaded>) -> bool {
    journal.disks.iter().all(|(disk, size)| {
        let Some(header) = files.get(disk).and_then(|loaded| loaded.header.as_ref()) else {
            return false;
        };
        match header.state {
            HeaderState::Valid => {
                header.label == journal.base
                    || (header.label == journal.next && header.size == *size)
            }
            HeaderState::Applying { next } => header.label == journal.base && next == journal.next,
            HeaderState::Building => false,
        }
    })
}

fn describe(files: &BTreeMap<DiskNumber, Loaded>, target: Position) -> String {
    let Position { timeline, lsn } = target;
    if files.is_empty() {
        return "there are no hash files".into();
    }
    if files.values().any(|file| file.header.is_none()) {
        return "a hash file's header is damaged".into();
    }
    format!("the hash files are not those of position {lsn} on timeline {timeline}")
}

fn opened(
    mut files: BTreeMap<DiskNumber, Loaded>,
    disks: &[DiskSize],
) -> BTreeMap<DiskNumber, DiskFile> {
    let open = |(disk, size): &DiskSize| {
        let loaded = files.remove(disk)?;
        Some((*disk, DiskFile { file: loaded.file, size: *size, at_target: true }))
    };
    disks.iter().filter_map(open).collect()
}

fn find_nonzero(file: &dyn FolderFile, from: ExtentNumber) -> io::Result<Option<ExtentNumber>> {
    let records = file.len()?.saturating_sub(HEADER_BYTES as u64) / RECORD_BYTES as u64;
    let extents = records.min(1 << 32);
    // 256 records are 72 KiB: one read of a densely filled file serves 16 MiB of disk.
    let mut buffer = vec![0; 256 * RECORD_BYTES];
    let mut extent = u64::from(from.0);
    while extent < extents {
        let at = HEADER_BYTES as u64 + extent * RECORD_BYTES as u64;
        let Some(data) = file.next_data(at)? else { return Ok(None) };
        extent = (data.max(at) - HEADER_BYTES as u64) / RECORD_BYTES as u64;
        let at = HEADER_BYTES as u64 + extent * RECORD_BYTES as u64;
        read_padded(file, &mut buffer, at)?;
        let found = buffer
            .chunks_exact(RECORD_BYTES)
            .position(|record| record.iter().any(|byte| *byte != 0));
        if let Some(index) = found {
            let found = extent + index as u64;
            return Ok((found < extents).then_some(ExtentNumber(found as u32)));
        }
        extent += 256;
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
