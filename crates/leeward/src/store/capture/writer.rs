//! The writing end of a capture: seals what a pass found into segments of the store, commits
//! progress, and makes the point.

use crate::roles::host::clock::wall_now;
use crate::sealing::Ready;
use bytes::Bytes;
use leeward_capture::{HashError, HashFiles};
use leeward_model::{ItemId, Lsn, Marker, PointOrigin, Position, SegmentId, UnixMillis};
use leeward_replica::{ItemStore, PointReceipt, StoreError};
use leeward_wire::{
    seal::Sealer,
    segment::{SEGMENT_SEAL_BYTES, SegmentHeader},
};
use uuid::Uuid;

/// Progress is committed after so many bytes of records, so that an interrupted capture goes on
/// from there.
const PROGRESS_BYTES: u64 = 32 << 20;

/// Why something could not be written.
pub(super) enum WriteError {
    /// The store refused or failed.
    Store(StoreError),
    /// The hash files failed.
    Hashes(HashError),
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        WriteError::Store(error)
    }
}

impl From<HashError> for WriteError {
    fn from(error: HashError) -> Self {
        WriteError::Hashes(error)
    }
}

/// See the module.
pub(super) struct Writer {
    item: ItemStore,
    base: Position,
    next: Lsn,
    created_at: UnixMillis,
    sealer: Option<(Sealer, u64)>,
    /// Bytes of records since the last commit.
    pending: u64,
    changed: u64,
    sent: u64,
}

impl Writer {
    /// Goes on behind `base`.
    pub(super) fn new(item: ItemStore, base: Position, now: UnixMillis) -> Writer {
        let next = base.lsn.next();
        let (created_at, sealer) = (now, None);
        Writer { item, base, next, created_at, sealer, pending: 0, changed: 0, sent: 0 }
    }

    /// The item.
    pub(super) fn item(&self) -> ItemId {
        self.item.reader().item()
    }

    /// Bytes of the blocks that were stored, before compression, and of their records.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.changed, self.sent)
    }

    /// Stores what a pass found, in order: here every record gets its number, once.
    pub(super) fn take(&mut self, found: Vec<Ready>, hashes: &HashFiles) -> Result<(), WriteError> {
        // Sealed and not appended yet: what is found together is written together.
        let mut records: Vec<Bytes> = Vec::with_capacity(found.len());
        for ready in found {
            hashes.push(ready.disk, ready.extent, &ready.record)?;
            let Some(packed) = ready.packed else { continue };
            if self.is_full(&records) {
                self.append(&std::mem::take(&mut records))?;
            }
            let lsn = Lsn(self.next.0 + records.len() as u64);
            self.changed += packed.raw_len() as u64;
            records.push(self.sealer(lsn)?.seal_packed(lsn, packed));
        }
        self.append(&records)?;
        if self.pending >= PROGRESS_BYTES {
            self.commit_progress(hashes)?;
        }
        Ok(())
    }

    /// Whether the segment ends with `records`, which are to be appended to it.
    fn is_full(&self, records: &[Bytes]) -> bool {
        let more: usize = records.iter().map(Bytes::len).sum();
        self.sealer
            .as_ref()
            .is_some_and(|(_, bytes)| bytes + more as u64 >= SEGMENT_SEAL_BYTES as u64)
    }

    fn sealer(&mut self, lsn: Lsn) -> Result<&mut Sealer, StoreError> {
        if self.sealer.as_ref().is_none_or(|(_, bytes)| *bytes >= SEGMENT_SEAL_BYTES as u64) {
            let reader = self.item.reader();
            let branch = reader.branches().last().copied();
            let epoch = branch.map(|branch| branch.epoch).unwrap_or_default();
            let header = SegmentHeader {
                segment: SegmentId::from(Uuid::new_v4()),
                vault: reader.vault(),
                item: reader.item(),
                timeline: self.base.timeline,
                epoch: epoch.max(reader.fence()),
                key_version: reader.keys().version,
                first_lsn: lsn,
                created_at: self.created_at,
            };
            let sealer = Sealer::new(&reader.keys().data, header.clone());
            self.item.begin_segment(&header)?;
            self.sealer = Some((sealer, 0));
        }
        let (sealer, _) = self.sealer.as_mut().expect("opened above when it was not there");
        Ok(sealer)
    }

    fn append(&mut self, records: &[Bytes]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let parts: Vec<&[u8]> = records.iter().map(|record| &record[..]).collect();
        self.next = self.item.append_all(&parts)?.next();
        let len = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        if let Some((_, bytes)) = &mut self.sealer {
            *bytes += len;
        }
        self.pending += len;
        self.sent += len;
        Ok(())
    }

    fn commit_progress(&mut self, hashes: &HashFiles) -> Result<(), WriteError> {
        let at = Position { timeline: self.base.timeline, lsn: Lsn(self.next.0 - 1) };
        hashes.seal_progress(at)?;
        self.item.sync()?;
        self.item.commit_progress(at.timeline, at.lsn, wall_now())?;
        hashes.commit(at)?;
        self.pending = 0;
        Ok(())
    }

    /// Settles the hash files, so that another pass may begin: it has to compare with what the
    /// store holds by then.
    pub(super) fn settle(&mut self, hashes: &HashFiles) -> Result<(), WriteError> {
        if self.pending > 0 {
            return self.commit_progress(hashes);
        }
        // What was noted without a record is in the store already; noting it again costs little.
        hashes.abandon();
        Ok(())
    }

    /// Makes the point; it is durable when this returns.
    pub(super) fn finish(&mut self, hashes: &HashFiles, marker: &Marker) -> Result<(), WriteError> {
        let lsn = self.next;
        let at = Position { timeline: self.base.timeline, lsn };
        let sizes: Vec<_> = marker.disks.iter().map(|disk| (disk.number, disk.size)).collect();
        hashes.seal(at, &sizes)?;
        let record = self.sealer(lsn)?.seal_marker(lsn, marker);
        self.append(&[record])?;
        self.item.seal()?;
        self.item.sync()?;
        let receipt = PointReceipt {
            origin: PointOrigin::Replicated,
            name: None,
            cut_server: None,
            received_at: wall_now(),
            clock_offset_ms: Some(0),
        };
        self.item.commit_point(at, &receipt)?;
        Ok(hashes.commit(at)?)
    }
}
