//! One delta that waits in the spool: a file of sealed records, each with what the hash file has to
//! say of it, and the point's marker. Layout in `docs/formats/spool.md`.
//!
//! A file counts only when it is whole: its digest, the last thing written, covers every byte.
//! Nothing in it is plaintext: the hashes are keyed, all else is sealed under a segment id of its
//! own, drawn for this file and never used again.

use bytes::Bytes;
use leeward_capture::{Folder, FolderFile, RECORD_BYTES, Record};
use leeward_model::{DiskNumber, ExtentNumber, Lsn, Marker, SegmentId, UnixMillis};
use leeward_wire::{
    keys::DataKey,
    message::ServerStamp,
    record::{RECORD_HEADER_BYTES, RecordHeader, RecordKind},
    seal::{Opener, PackedChange, Sealer},
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
};
use serde::{Deserialize, Serialize};
use std::{io, sync::Arc};

use super::room::{NoRoom, SpoolRoom};

const MAGIC: &[u8; 8] = b"LWSPOOL\n";
const VERSION: u32 = 1;
/// Magic, version, four zeros.
const PREFIX_BYTES: usize = 16;
const DIGEST_BYTES: usize = 32;
/// Bytes that are written and read at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Bytes of the note at the end, at most.
const NOTE_BYTES_MAX: usize = 64 << 10;

/// What is needed to seal a delta; in memory only.
#[derive(Clone, Debug)]
pub struct SpoolSeal {
    /// The store's data key.
    pub data_key: DataKey,
    /// The header of the item's segments; id, first LSN and time are each file's own.
    pub header: SegmentHeader,
}

/// What is said of a delta beside its records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaNote {
    /// The chain of deltas that it belongs to.
    pub chain: uuid::Uuid,
    /// Its number.
    pub number: u64,
    /// When it was cut, by the source's wall clock.
    pub cut_at: UnixMillis,
    /// When it was cut, by the config server's clock.
    pub cut_server: Option<ServerStamp>,
    /// Bytes of its blocks, before compression.
    pub raw_bytes: u64,
}

/// Why a delta could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// There is no room for it.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The file system failed.
    #[error("the spool could not be written")]
    Files(#[from] io::Error),
    /// It was written, and could not be taken note of.
    #[error("what was written to the spool could not be read again")]
    Lost(#[source] UnusableError),
}

/// Why a delta that waits cannot be used. Nothing is lost by it: what it says is read again.
#[derive(Debug, thiserror::Error)]
pub enum UnusableError {
    /// The file system failed.
    #[error("the spool could not be read")]
    Files(#[from] io::Error),
    /// The file is not whole, or not what was written.
    #[error("a delta of the spool is damaged: {0}")]
    Damaged(&'static str),
}

/// A delta that is being written.
pub struct DeltaWriter {
    file: Arc<dyn FolderFile>,
    room: SpoolRoom,
    sealer: Sealer,
    digest: blake3::Hasher,
    buffer: Vec<u8>,
    written: u64,
    /// Bytes of room that were taken and are not handed over.
    taken: u64,
    raw_bytes: u64,
}

impl Drop for DeltaWriter {
    fn drop(&mut self) {
        self.room.give(self.taken);
    }
}

impl DeltaWriter {
    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn new(
        folder: &dyn Folder,
        name: &str,
        seal: &SpoolSeal,
        room: SpoolRoom,
        now: UnixMillis,
    ) -> Result<DeltaWriter, SpoolError> {
        let header = SegmentHeader {
            segment: SegmentId::from(uuid::Uuid::new_v4()),
            first_lsn: Lsn(1),
            created_at: now,
            ..seal.header.clone()
        };
        let mut buffer = Vec::with_capacity(BUFFER_BYTES + (64 << 10));
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&VERSION.to_le_bytes());
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&header.encode());
        let (file, sealer) = (folder.create(name)?, Sealer::new(&seal.data_key, header));
        let digest = blake3::Hasher::new();
        Ok(DeltaWriter { file, room, sealer, digest, buffer, written: 0, taken: 0, raw_bytes: 0 })
    }

    /// Seals a change and adds it, with the record that the hash file gets once the target has it.
    ///
    /// # Errors
    /// When there is no room, or the file system failed: then the delta is to be dropped.
    pub fn add(&mut self, packed: PackedChange, record: &Record) -> Result<(), SpoolError> {
        self.raw_bytes += packed.raw_len() as u64;
        let sealed = self.sealer.seal_packed(self.sealer.next_lsn(), packed);
        self.buffer.extend_from_slice(&sealed);
        self.buffer.extend_from_slice(&record.to_bytes());
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), SpoolError> {
        let len = self.buffer.len() as u64;
        self.room.take(len)?;
        self.taken += len;
        self.digest.update(&self.buffer);
        self.file.write_at(&self.buffer, self.written)?;
        self.written += len;
        self.buffer.clear();
        Ok(())
    }

    /// Adds the marker and makes the file whole and durable; returns its length in bytes, whose
    /// room is the caller's from now on.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub(super) fn finish(
        mut self,
        marker: &Marker,
        (chain, number): (uuid::Uuid, u64),
        cut_server: Option<ServerStamp>,
    ) -> Result<u64, SpoolError> {
        let sealed = self.sealer.seal_marker(self.sealer.next_lsn(), marker);
        self.buffer.extend_from_slice(&sealed);
        let (cut_at, raw_bytes) = (marker.cut_at, self.raw_bytes);
        let note = DeltaNote { chain, number, cut_at, cut_server, raw_bytes };
        let text = serde_json::to_vec(&note).map_err(io::Error::from)?;
        self.buffer.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&text);
        self.flush()?;
        let digest = *self.digest.finalize().as_bytes();
        self.buffer.extend_from_slice(&digest);
        self.flush()?;
        self.file.sync()?;
        self.taken = 0;
        Ok(self.written)
    }
}

/// A change of a delta that waits.
pub struct Waiting {
    header: RecordHeader,
    header_bytes: [u8; RECORD_HEADER_BYTES],
    stored: Bytes,
    /// What the hash file has to say once the target has it.
    pub record: Record,
}

impl Waiting {
    /// The disk.
    pub fn disk(&self) -> DiskNumber {
        self.header.disk
    }

    /// The extent.
    pub fn extent(&self) -> ExtentNumber {
        self.header.extent
    }
}

/// Reads a delta that waits, front to back.
pub struct DeltaReader {
    file: Arc<dyn FolderFile>,
    header: SegmentHeader,
    /// Where the next record is.
    at: u64,
    /// Where the digest is.
    end: u64,
}

/// What comes next of a delta.
pub enum Next {
    /// Changes, of at most some MiB.
    Changes(Vec<Waiting>),
    /// The end: the marker's record and what is said beside.
    End(Box<EndOfDelta>),
}

/// The end of a delta.
pub struct EndOfDelta {
    header: RecordHeader,
    header_bytes: [u8; RECORD_HEADER_BYTES],
    stored: Bytes,
    /// What is said beside the records.
    pub note: DeltaNote,
}

fn read_exact(file: &dyn FolderFile, buffer: &mut [u8], at: u64) -> Result<(), UnusableError> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64)? {
            0 => return Err(UnusableError::Damaged("it ends early")),
            count => done += count,
        }
    }
    Ok(())
}

fn check_digest(file: &dyn FolderFile, end: u64) -> Result<(), UnusableError> {
    let mut digest = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    while at < end {
        let part = &mut buffer[..BUFFER_BYTES.min((end - at) as usize)];
        read_exact(file, part, at)?;
        digest.update(part);
        at += part.len() as u64;
    }
    let mut stored = [0; DIGEST_BYTES];
    read_exact(file, &mut stored, end)?;
    match digest.finalize() == blake3::Hash::from_bytes(stored) {
        true => Ok(()),
        false => Err(UnusableError::Damaged("its digest is another")),
    }
}

impl DeltaReader {
    /// Opens a file and checks that it is whole. Every byte is read.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    pub fn open(file: Arc<dyn FolderFile>) -> Result<DeltaReader, UnusableError> {
        let least = (PREFIX_BYTES + SEGMENT_HEADER_BYTES + DIGEST_BYTES) as u64;
        let len = file.len()?;
        if len < least {
            return Err(UnusableError::Damaged("it is too short"));
        }
        let end = len - DIGEST_BYTES as u64;
        check_digest(&*file, end)?;
        let mut head = vec![0; PREFIX_BYTES + SEGMENT_HEADER_BYTES];
        read_exact(&*file, &mut head, 0)?;
        let (prefix, header) = head.split_at(PREFIX_BYTES);
        if prefix[..8] != *MAGIC || prefix[8..12] != VERSION.to_le_bytes() {
            return Err(UnusableError::Damaged("it is no delta, or of another version"));
        }
        let header = SegmentHeader::decode(header)
            .map_err(|_| UnusableError::Damaged("its segment header is none"))?;
        Ok(DeltaReader { file, header, at: head.len() as u64, end })
    }

    /// What its records are sealed as.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], UnusableError> {
        let mut bytes = [0; N];
        self.take_into(&mut bytes)?;
        Ok(bytes)
    }

    fn take_into(&mut self, bytes: &mut [u8]) -> Result<(), UnusableError> {
        if self.end - self.at < bytes.len() as u64 {
            return Err(UnusableError::Damaged("a record goes beyond its end"));
        }
        read_exact(&*self.file, bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// The next changes, or the end, after which there is nothing more.
    ///
    /// # Errors
    /// When the file is not what was written.
    pub fn next_part(&mut self) -> Result<Next, UnusableError> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        while bytes < BUFFER_BYTES {
            let begin = self.at;
            let header_bytes = self.take::<RECORD_HEADER_BYTES>()?;
            let header = RecordHeader::decode(&header_bytes)
                .map_err(|_| UnusableError::Damaged("a record has no valid header"))?;
            if header.kind == RecordKind::Marker && !changes.is_empty() {
                self.at = begin;
                break;
            }
            let mut stored = vec![0; header.stored_len as usize];
            self.take_into(&mut stored)?;
            let stored = Bytes::from(stored);
            if header.kind == RecordKind::Marker {
                let note = self.note()?;
                let end = EndOfDelta { header, header_bytes, stored, note };
                return Ok(Next::End(Box::new(end)));
            }
            bytes += stored.len();
            let record = Record::from_bytes(&self.take::<RECORD_BYTES>()?);
            changes.push(Waiting { header, header_bytes, stored, record });
        }
        Ok(Next::Changes(changes))
    }

    fn note(&mut self) -> Result<DeltaNote, UnusableError> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        if len > NOTE_BYTES_MAX || len as u64 != self.end - self.at {
            return Err(UnusableError::Damaged("its note has another length"));
        }
        let mut text = vec![0; len];
        self.take_into(&mut text)?;
        serde_json::from_slice(&text).map_err(|_| UnusableError::Damaged("its note is none"))
    }
}

/// Opens the records of one delta.
pub struct DeltaOpener(Opener);

impl DeltaOpener {
    /// An opener for the delta whose reader has `header`.
    pub fn new(data_key: &DataKey, header: &SegmentHeader) -> DeltaOpener {
        DeltaOpener(Opener::new(data_key, header))
    }

    /// The change, packed as it was before it was sealed.
    ///
    /// # Errors
    /// When it was sealed under another key.
    pub fn change(&self, waiting: &Waiting) -> Result<PackedChange, UnusableError> {
        let opened = self.0.open_packed(&waiting.header, &waiting.header_bytes, &waiting.stored);
        opened.map_err(|_| UnusableError::Damaged("a record does not open"))
    }

    /// The marker.
    ///
    /// # Errors
    /// When it was sealed under another key.
    pub fn marker(&self, end: &EndOfDelta) -> Result<Marker, UnusableError> {
        let opened = self.0.open_marker(&end.header, &end.header_bytes, &end.stored);
        opened.map_err(|_| UnusableError::Damaged("the marker does not open"))
    }
}
