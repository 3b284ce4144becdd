//! Counts the bytes of blocks that are sent and stored, exactly: what crossed a connection and what
//! of it no store had committed when that ended; what was written to a store and what of it no
//! manifest names. It changes nothing.

use leeward_replica::ItemReader;
use leeward_wire::{
    frame::{Decoder, Kind},
    record::{RECORD_HEADER_BYTES, RecordHeader, RecordKind},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bytes of blocks, before compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// All of them.
    pub all: u64,
    /// Those of them that were never committed.
    pub lost: u64,
}

/// Bytes of the blocks that a record carries; none for a marker, and for what is no record.
fn block_bytes(record: &[u8]) -> u64 {
    let head = record.first_chunk::<RECORD_HEADER_BYTES>();
    let header = head.and_then(|head| RecordHeader::decode(head).ok());
    let change = header.filter(|header| header.kind == RecordKind::Change);
    change.map_or(0, |header| header.raw_len() as u64)
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What crossed the connections of a link.
#[derive(Clone, Default)]
pub(super) struct Crossings(Arc<Mutex<Blocks>>);

impl Crossings {
    pub(super) fn so_far(&self) -> Blocks {
        *locked(&self.0)
    }

    /// Both ends of a new connection.
    pub(super) fn connection(&self) -> [CrossingEnd; 2] {
        let crossing = Arc::new(Crossing { total: self.clone(), uncommitted: Mutex::default() });
        [(); 2].map(|()| CrossingEnd { crossing: Arc::clone(&crossing), frames: Decoder::new() })
    }
}

/// A connection. What crossed it and was not committed is lost with it.
struct Crossing {
    total: Crossings,
    uncommitted: Mutex<u64>,
}

impl Drop for Crossing {
    fn drop(&mut self) {
        locked(&self.total.0).lost += *locked(&self.uncommitted);
    }
}

/// One end of a connection.
pub(super) struct CrossingEnd {
    crossing: Arc<Crossing>,
    frames: Decoder,
}

impl CrossingEnd {
    /// Notes what this end wrote.
    pub(super) fn wrote(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
        while let Ok(Some(frame)) = self.frames.pop() {
            match frame.kind {
                Kind::Record => {
                    let bytes = block_bytes(&frame.payload);
                    locked(&self.crossing.total.0).all += bytes;
                    *locked(&self.crossing.uncommitted) += bytes;
                }
                // A source sends nothing while it waits for this.
                Kind::Committed => *locked(&self.crossing.uncommitted) = 0,
                _ => {}
            }
        }
    }
}

/// Where each record of a segment ends, in bytes from its start, and the bytes of its blocks.
type Records = Vec<(u64, u64)>;

/// What was written to the segments of a disk, by their names.
#[derive(Clone, Default)]
pub(super) struct Segments(Arc<Mutex<BTreeMap<String, Records>>>);

impl Segments {
    /// Notes that a record, or anything else, was appended to the file `path` and ends there.
    pub(super) fn appended(&self, path: &str, bytes: &[u8], end: u64) {
        let blocks = block_bytes(bytes);
        if let Some((_, name)) = path.rsplit_once("/segments/")
            && blocks > 0
        {
            locked(&self.0).entry(name.to_owned()).or_default().push((end, blocks));
        }
    }

    /// All that was written, and what of it the item's manifests do not name.
    pub(super) fn so_far(&self, item: Option<&ItemReader>) -> Blocks {
        let committed: BTreeMap<String, u64> = item
            .into_iter()
            .flat_map(|item| item.state().segments.values())
            .map(|range| (range.segment.to_string(), range.bytes))
            .collect();
        let mut blocks = Blocks::default();
        for (name, records) in &*locked(&self.0) {
            let end = committed.get(name).copied().unwrap_or(0);
            for (at, bytes) in records {
                blocks.all += bytes;
                blocks.lost += if *at > end { *bytes } else { 0 };
            }
        }
        blocks
    }
}
