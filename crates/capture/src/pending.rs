//! The journal of a delta in flight: what the hash files become once the target commits it.
//!
//! Layout in `docs/formats/hash-file.md`. Whether it applies is [`crate::hash_file`]'s decision.

use crate::{
    folder::{FolderFile, read_padded},
    record::{RECORD_BYTES, Record},
};
use leeward_model::{DiskNumber, ExtentNumber, ItemId, Lsn, Position, TimelineId};
use std::{collections::BTreeSet, io, sync::Arc};

/// Name of the journal in the item's folder.
pub(crate) const JOURNAL: &str = "pending";

const MAGIC: &[u8; 8] = b"LWPENDI\n";
const END_MAGIC: &[u8; 8] = b"LWPENDE\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 8 + RECORD_BYTES;
const TRAILER_BYTES: usize = 56;
const DISK_BYTES: usize = 16;
const DIGEST_BYTES: usize = 32;
// 256 entries are 74 KiB: few system calls, little memory.
const BUFFER_BYTES: usize = 256 * ENTRY_BYTES;
/// Disks of one item; more than any hypervisor gives a machine.
pub(crate) const DISKS_MAX: usize = 1024;

/// A disk and its size in bytes.
pub(crate) type DiskSize = (DiskNumber, u64);

/// What a commit makes of the disks' sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SealKind {
    /// A point: the sizes are the disks' at its cut, and nothing lies beyond them.
    Point = 0,
    /// Progress within a pass: the sizes stay those of the last point.
    Progress = 1,
}

pub(crate) fn put_position(bytes: &mut [u8], position: Option<Position>) {
    let (timeline, lsn) = match position {
        Some(at) => (at.timeline.to_bytes(), at.lsn.0),
        None => ([0; 16], 0),
    };
    bytes[..16].copy_from_slice(&timeline);
    bytes[16..24].copy_from_slice(&lsn.to_le_bytes());
}

pub(crate) fn get_position(bytes: &[u8]) -> Position {
    Position { timeline: TimelineId::from_bytes(array(bytes, 0)), lsn: Lsn(get_u64(bytes, 16)) }
}

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

/// Appends entries; nothing in it counts before `seal` returned.
pub(crate) struct JournalWriter {
    file: Arc<dyn FolderFile>,
    digest: blake3::Hasher,
    buffer: Vec<u8>,
    written: u64,
    entries: u64,
    /// Disks that have entries.
    pub(crate) disks: BTreeSet<DiskNumber>,
}

impl JournalWriter {
    /// Starts a journal in `file`, which is empty.
    pub(crate) fn new(file: Arc<dyn FolderFile>, item: ItemId, base: Position) -> JournalWriter {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..32].copy_from_slice(&item.to_bytes());
        put_position(&mut header[32..56], Some(base));
        JournalWriter {
            file,
            digest: blake3::Hasher::new(),
            buffer: header.to_vec(),
            written: 0,
            entries: 0,
            disks: BTreeSet::new(),
        }
    }

    pub(crate) fn push(
        &mut self,
        disk: DiskNumber,
        extent: ExtentNumber,
        record: &Record,
    ) -> io::Result<()> {
        self.buffer.extend_from_slice(&disk.0.to_le_bytes());
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer.extend_from_slice(&extent.0.to_le_bytes());
        self.buffer.extend_from_slice(&record.to_bytes());
        self.entries += 1;
        self.disks.insert(disk);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.digest.update(&self.buffer);
        self.file.write_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Names the label that the entries lead to and makes the journal durable.
    pub(crate) fn seal(
        mut self,
        next: Position,
        kind: SealKind,
        disks: &[DiskSize],
    ) -> io::Result<()> {
        for (disk, size) in disks {
            let mut entry = [0; DISK_BYTES];
            entry[..2].copy_from_slice(&disk.0.to_le_bytes());
            entry[8..].copy_from_slice(&size.to_le_bytes());
            self.buffer.extend_from_slice(&entry);
        }
        let mut trailer = [0; TRAILER_BYTES];
        trailer[..8].copy_from_slice(END_MAGIC);
        put_position(&mut trailer[8..32], Some(next));
        trailer[32..40].copy_from_slice(&self.entries.to_le_bytes());
        trailer[40..48].copy_from_slice(&(disks.len() as u64).to_le_bytes());
        trailer[48..56].copy_from_slice(&(kind as u64).to_le_bytes());
        self.buffer.extend_from_slice(&trailer);
        self.flush()?;
        self.file.write_at(self.digest.finalize().as_bytes(), self.written)?;
        self.file.sync()
    }
}

/// A complete journal.
pub(crate) struct Journal {
    file: Arc<dyn FolderFile>,
    pub(crate) base: Position,
    pub(crate) next: Position,
    pub(crate) kind: SealKind,
    pub(crate) disks: Vec<DiskSize>,
    entries: u64,
}

impl Journal {
    /// Reads the journal in `file`; `None` when it is not whole or not `item`'s.
    pub(crate) fn read(file: Arc<dyn FolderFile>, item: ItemId) -> io::Result<Option<Journal>> {
        let len = file.len()?;
        let least = (HEADER_BYTES + TRAILER_BYTES + DIGEST_BYTES) as u64;
        if len < least || !digest_holds(&*file, len - DIGEST_BYTES as u64)? {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        read_padded(&*file, &mut header, 0)?;
        let mut trailer = [0; TRAILER_BYTES];
        let trailer_at = len - (DIGEST_BYTES + TRAILER_BYTES) as u64;
        read_padded(&*file, &mut trailer, trailer_at)?;
        let entries = get_u64(&trailer, 32);
        let disk_count = get_u64(&trailer, 40);
        let lengths_agree = entries.checked_mul(ENTRY_BYTES as u64).is_some_and(|bytes| {
            disk_count <= DISKS_MAX as u64
                && trailer_at.checked_sub(HEADER_BYTES as u64 + disk_count * DISK_BYTES as u64)
                    == Some(bytes)
        });
        let ours = header[..8] == *MAGIC
            && header[8..12] == VERSION.to_le_bytes()
            && header[16..32] == item.to_bytes()
            && trailer[..8] == *END_MAGIC;
        let kind = match get_u64(&trailer, 48) {
            0 => SealKind::Point,
            1 => SealKind::Progress,
            _ => return Ok(None),
        };
        if !ours || !lengths_agree {
            return Ok(None);
        }
        let mut table = vec![0; disk_count as usize * DISK_BYTES];
        let table_at = trailer_at - table.len() as u64;
        read_padded(&*file, &mut table, table_at)?;
        let disks = table
            .chunks_exact(DISK_BYTES)
            .map(|entry| (DiskNumber(get_u16(entry, 0)), get_u64(entry, 8)))
            .collect();
        let (base, next) = (get_position(&header[32..56]), get_position(&trailer[8..32]));
        Ok(Some(Journal { file, base, next, kind, disks, entries }))
    }

    /// Calls `apply` with every entry, in the order in which they were pushed.
    pub(crate) fn for_each(
        &self,
        mut apply: impl FnMut(DiskNumber, ExtentNumber, &[u8; RECORD_BYTES]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut at = HEADER_BYTES as u64;
        let end = at + self.entries * ENTRY_BYTES as u64;
        while at < end {
            let len = BUFFER_BYTES.min((end - at) as usize);
            read_padded(&*self.file, &mut buffer[..len], at)?;
            for entry in buffer[..len].chunks_exact(ENTRY_BYTES) {
                let extent = ExtentNumber(u32::from_le_bytes(array(entry, 4)));
                apply(DiskNumber(get_u16(entry, 0)), extent, &array(entry, 8))?;
            }
            at += len as u64;
        }
        Ok(())
    }
}

fn digest_holds(file: &dyn FolderFile, end: u64) -> io::Result<bool> {
    let mut digest = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    while at < end {
        let len = BUFFER_BYTES.min((end - at) as usize);
        if read_padded(file, &mut buffer[..len], at)? < len {
            return Ok(false);
        }
        digest.update(&buffer[..len]);
        at += len as u64;
    }
    let mut stored = [0; DIGEST_BYTES];
    read_padded(file, &mut stored, end)?;
    Ok(digest.finalize() == blake3::Hash::from_bytes(stored))
}
