//! What a source knows of the target while deltas that it sealed wait to be sent: the hash files,
//! with what the waiting deltas make of them laid over.
//!
//! Not durable and not trusted after a restart: it is made anew from the deltas that wait. What
//! lies over is kept in files, as the hash files are, and of it only one bit an extent in memory:
//! 2 MiB for a TiB.

use crate::{
    folder::{Folder, FolderFile, read_padded},
    hash_file::{HashError, HashFiles},
    record::{RECORD_BYTES, Record},
};
use leeward_model::{DiskNumber, ExtentNumber, Position};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What a pass asks about the target.
pub trait KnownExtents: Send + Sync {
    /// Whether a pass may start.
    ///
    /// # Errors
    /// When what is known is not trusted, or would suppress a block that was changed back.
    fn settled(&self) -> Result<(), HashError>;

    /// Size in bytes of `disk` as the target has it; `None` for a disk that it does not have.
    fn size(&self, disk: DiskNumber) -> Option<u64>;

    /// What the target has of `count` extents from `first` on, at most 1024.
    ///
    /// # Errors
    /// File errors.
    fn records(
        &self,
        disk: DiskNumber,
        first: ExtentNumber,
        count: u32,
    ) -> Result<Vec<Record>, HashError>;

    /// The first extent at or after `from` that may not read zero at the target.
    ///
    /// # Errors
    /// File errors.
    fn next_nonzero(
        &self,
        disk: DiskNumber,
        from: ExtentNumber,
    ) -> Result<Option<ExtentNumber>, HashError>;
}

impl KnownExtents for HashFiles {
    fn settled(&self) -> Result<(), HashError> {
        HashFiles::settled(self)
    }
    fn size(&self, disk: DiskNumber) -> Option<u64> {
        HashFiles::size(self, disk)
    }
    fn records(
        &self,
        disk: DiskNumber,
        first: ExtentNumber,
        count: u32,
    ) -> Result<Vec<Record>, HashError> {
        HashFiles::records(self, disk, first, count)
    }
    fn next_nonzero(
        &self,
        disk: DiskNumber,
        from: ExtentNumber,
    ) -> Result<Option<ExtentNumber>, HashError> {
        HashFiles::next_nonzero(self, disk, from)
    }
}

/// What lies over one disk's hash file.
struct Over {
    file: Arc<dyn FolderFile>,
    /// One bit an extent: whether the file has its record. Grows as needed.
    held: Vec<u64>,
}

impl Over {
    fn has(&self, extent: u64) -> bool {
        self.held.get((extent / 64) as usize).is_some_and(|word| word >> (extent % 64) & 1 == 1)
    }

    fn set(&mut self, extent: u64) {
        let word = (extent / 64) as usize;
        if self.held.len() <= word {
            self.held.resize(word + 1, 0);
        }
        self.held[word] |= 1 << (extent % 64);
    }

    /// The first extent at or after `from` that it has.
    fn next(&self, from: u64) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let mut bits = self.held.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.held.get(word)?;
        }
        Some(word as u64 * 64 + u64::from(bits.trailing_zeros()))
    }
}

/// See the module. All calls block on files.
pub struct AheadHashes {
    hashes: Arc<HashFiles>,
    folder: Arc<dyn Folder>,
    over: Mutex<BTreeMap<DiskNumber, Over>>,
}

fn record_at(extent: ExtentNumber) -> u64 {
    u64::from(extent.0) * RECORD_BYTES as u64
}

impl AheadHashes {
    /// Nothing lies over `hashes` yet. Files are made in `folder`, in place of those of an earlier
    /// life.
    pub fn new(hashes: Arc<HashFiles>, folder: Arc<dyn Folder>) -> AheadHashes {
        AheadHashes { hashes, folder, over: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DiskNumber, Over>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hash files below.
    pub fn hashes(&self) -> &Arc<HashFiles> {
        &self.hashes
    }

    /// Lays a record over: a delta that waits makes `extent` into it.
    ///
    /// # Errors
    /// File errors; then this is not to be used any more.
    pub fn put(&self, disk: DiskNumber, extent: ExtentNumber, record: &Record) -> io::Result<()> {
        let mut over = self.lock();
        let over = match over.entry(disk) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let file = self.folder.create(&format!("ahead-{disk}"))?;
                entry.insert(Over { file, held: Vec::new() })
            }
        };
        over.file.write_at(&record.to_bytes(), record_at(extent))?;
        over.set(u64::from(extent.0));
        Ok(())
    }

    /// Notes that the target may have either of two versions of `extent`: whatever it holds then,
    /// all of its blocks are sent.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn put_unknown(&self, disk: DiskNumber, extent: ExtentNumber) -> io::Result<()> {
        self.put(disk, extent, &Record::UNKNOWN)
    }

    /// What lies over some of `records`, those of the extents from `first` on.
    fn lay_over(
        &self,
        disk: DiskNumber,
        first: ExtentNumber,
        records: &mut [Record],
    ) -> io::Result<()> {
        let over = self.lock();
        let Some(over) = over.get(&disk) else { return Ok(()) };
        for (index, record) in records.iter_mut().enumerate() {
            let extent = u64::from(first.0) + index as u64;
            if over.has(extent) {
                let mut bytes = [0; RECORD_BYTES];
                let at = record_at(ExtentNumber(first.0 + index as u32));
                read_padded(&*over.file, &mut bytes, at)?;
                *record = Record::from_bytes(&bytes);
            }
        }
        Ok(())
    }
}

impl KnownExtents for AheadHashes {
    /// What is in flight to the target is among what lies over, so it suppresses nothing wrongly.
    fn settled(&self) -> Result<(), HashError> {
        self.hashes.trusted()
    }

    fn size(&self, disk: DiskNumber) -> Option<u64> {
        self.hashes.size(disk)
    }

    fn records(
        &self,
        disk: DiskNumber,
        first: ExtentNumber,
        count: u32,
    ) -> Result<Vec<Record>, HashError> {
        // In this order: what lies over is never taken off, so a record that the target gets
        // meanwhile was seen to lie over, or was read below before.
        let mut records = self.hashes.records(disk, first, count)?;
        let laid = self.lay_over(disk, first, &mut records);
        laid.map_err(|source| self.hashes.failed("read what waits", source))?;
        Ok(records)
    }

    fn next_nonzero(
        &self,
        disk: DiskNumber,
        from: ExtentNumber,
    ) -> Result<Option<ExtentNumber>, HashError> {
        let below = self.hashes.next_nonzero(disk, from)?;
        let over = self.lock().get(&disk).and_then(|over| over.next(u64::from(from.0)));
        let over = over.and_then(|extent| u32::try_from(extent).ok()).map(ExtentNumber);
        Ok(match (below, over) {
            (Some(below), Some(over)) => Some(below.min(over)),
            (below, over) => below.or(over),
        })
    }
}

/// A delta of which it is not known whether the target committed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The place that the target has then.
    pub next: Position,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CrashFolder, TestHasher, Trust};
    use leeward_model::{EXTENT_BYTES, ItemId, Lsn, TimelineId};

    const DISK: DiskNumber = DiskNumber(3);

    fn at(lsn: u64) -> Position {
        Position { timeline: TimelineId::from_u128(9), lsn: Lsn(lsn) }
    }

    fn record(byte: u8) -> Record {
        Record::of(&vec![byte; EXTENT_BYTES as usize], &TestHasher)
    }

    fn files() -> Arc<HashFiles> {
        let folder: Arc<dyn Folder> = Arc::new(CrashFolder::new());
        let hashes = Arc::new(HashFiles::new(folder, ItemId::from_u128(1)));
        let mut rebuild = hashes.rebuild(at(5), &[(DISK, 100 * EXTENT_BYTES)]).unwrap();
        rebuild.leaf(DISK, ExtentNumber(40), leeward_model::ExtentHash([7; 32])).unwrap();
        rebuild.finish().unwrap();
        hashes
    }

    fn ahead(hashes: &Arc<HashFiles>) -> AheadHashes {
        AheadHashes::new(Arc::clone(hashes), Arc::new(CrashFolder::new()))
    }

    /// F-015: what waits to be sent counts as what the target has.
    #[test]
    fn the_newest_waiting_record_lies_over_the_hash_file() {
        let hashes = files();
        let ahead = ahead(&hashes);
        ahead.put(DISK, ExtentNumber(70), &record(1)).unwrap();
        ahead.put(DISK, ExtentNumber(70), &record(2)).unwrap();
        ahead.put(DISK, ExtentNumber(40), &Record::ZERO).unwrap();

        let known = ahead.records(DISK, ExtentNumber(39), 33).unwrap();

        assert_eq!((known[1], known[31]), (Record::ZERO, record(2)));
        assert!(known[0].is_zero() && known[30].is_zero() && known[32].is_zero());
        assert_eq!(hashes.record(DISK, ExtentNumber(70)).unwrap(), Record::ZERO);
        let next = |from| ahead.next_nonzero(DISK, ExtentNumber(from)).unwrap();
        // One that became zero may be named: looking at it once more is right.
        assert_eq!(next(0), Some(ExtentNumber(40)));
        assert_eq!(next(41), Some(ExtentNumber(70)));
        assert_eq!(next(71), None);
        assert_eq!(next(1_000_000), None);
    }

    /// F-015: a delta that the target may have or not is neither trusted nor forgotten.
    #[test]
    fn what_was_in_flight_is_named_and_all_its_blocks_differ_from_anything() {
        let hashes = files();
        hashes.push(DISK, ExtentNumber(9), &record(1)).unwrap();
        assert_eq!(hashes.doubt(|_, _| panic!("nothing was sealed")).unwrap(), None);
        hashes.seal(at(8), &[(DISK, 100 * EXTENT_BYTES)]).unwrap();
        let ahead = ahead(&hashes);

        let doubt = hashes.doubt(|disk, extent| ahead.put_unknown(disk, extent)).unwrap();

        assert_eq!(doubt, Some(Doubt { next: at(8) }));
        assert!(ahead.settled().is_ok() && hashes.settled().is_err());
        let known = ahead.records(DISK, ExtentNumber(9), 1).unwrap()[0];
        for content in [vec![0; EXTENT_BYTES as usize], vec![1; EXTENT_BYTES as usize]] {
            let found = crate::record::compare(&content, &known, &TestHasher).unwrap();
            assert_eq!(found.mask, leeward_model::BlockMask::ALL);
        }
        assert_eq!(hashes.reconcile(at(8)).unwrap(), Trust::Trusted);
    }
}
