//! What every sealer of this process shares: the threads, and how hard is packed. Captures by hand
//! and the replication of running machines use the same code; numbering and encrypting stay with
//! the one owner of a segment, in order.

use leeward_capture::{
    Found, Hasher, MEMORY_BYTES, Pass, PassDepth, PassFinish, PassInput, ProgressCallback, Record,
    Workers,
};
use leeward_model::{DiskNumber, ExtentHash, ExtentNumber};
use leeward_wire::{
    data::ExtentBlockHashes,
    hash,
    keys::HashKey,
    seal::{Compression, PackedChange, QueueDepth},
};
use std::{num::NonZeroUsize, sync::Arc};

/// How this process seals. Clones share the threads.
#[derive(Clone, Debug, Default)]
pub struct Sealing {
    /// The threads that hash and pack.
    pub workers: Workers,
    /// What decides how hard.
    pub compression: Compression,
}

/// How much of the processors and of the memory sealing may take, for the command line.
#[derive(Clone, Debug, clap::Args)]
pub struct SealingOptions {
    /// Threads that hash and compress at once [default: one a processor].
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// Memory that data under way take together, from machines and to the replica store, beyond 2
    /// MiB for each machine that is read and 1 MiB for each that is received.
    #[arg(long, value_name = "BYTES", default_value_t = MEMORY_BYTES)]
    buffer_bytes: u64,
    /// How hard data are compressed: raw, -7, -5, 1 or 3 (Zstandard's levels), or adaptive, which
    /// goes down when the processors are the limit and up when the link is. What does not shrink
    /// by 5 % is always stored raw.
    #[arg(long, value_name = "LEVEL", allow_hyphen_values = true)]
    compression: Option<Compression>,
}

impl SealingOptions {
    /// What was asked for, or `compression`.
    pub fn or(&self, compression: Compression) -> Sealing {
        let compression = self.compression.unwrap_or(compression);
        let workers = Workers::with_memory(self.workers, self.buffer_bytes);
        Sealing { workers, compression }
    }
}

impl Default for SealingOptions {
    /// As the command line without any of them.
    fn default() -> SealingOptions {
        SealingOptions { workers: None, buffer_bytes: MEMORY_BYTES, compression: None }
    }
}

/// A differing extent, packed for the target.
#[derive(Debug)]
pub struct Ready {
    /// The disk.
    pub disk: DiskNumber,
    /// The extent.
    pub extent: ExtentNumber,
    /// What the hash file has to say once the target has it.
    pub record: Record,
    /// What is to be sealed; nothing when the target turned out to have every block.
    pub packed: Option<PackedChange>,
}

/// A differing extent as a pass hands it to whoever sends it.
#[derive(Debug)]
pub enum Differing {
    /// It can be sealed.
    Ready(Ready),
    /// The target's hashes of its blocks have to be asked for first.
    Unknown(Found),
}

impl Differing {
    /// The extent, when the target has to be asked about it.
    pub fn unknown(&self) -> Option<&Found> {
        match self {
            Differing::Ready(_) => None,
            Differing::Unknown(found) => Some(found),
        }
    }
}

impl Sealing {
    /// Packs one extent that a pass found, and of it only blocks that are not in `known`, the
    /// target's hashes of its blocks, when they had to be asked for.
    pub fn ready(
        &self,
        found: Found,
        known: Option<&ExtentBlockHashes>,
        hasher: &dyn Hasher,
        depth: QueueDepth,
    ) -> Ready {
        let (disk, extent, record) = (found.change.disk, found.change.extent, found.record);
        let found = match known {
            Some(known) => found.recut(known, hasher),
            None => Some(found),
        };
        let pack = |found: Found| PackedChange::new(&found.change, self.compression, depth);
        Ready { disk, extent, record, packed: found.map(pack) }
    }

    /// Starts a pass whose workers pack what they find, except where blocks are not known.
    pub fn start(&self, input: PassInput, progress: ProgressCallback) -> Pass<Vec<Differing>> {
        let (sealing, hasher) = (self.clone(), Arc::clone(&input.hasher));
        let finish: PassFinish<Vec<Differing>> = Arc::new(move |found, depth| {
            let ready = |found: Found| match found.blocks_known {
                true => Differing::Ready(sealing.ready(found, None, &*hasher, queue_depth(depth))),
                false => Differing::Unknown(found),
            };
            found.into_iter().map(ready).collect()
        });
        Pass::start_with(input, progress, finish)
    }
}

/// The depth of a pass's queues as the codec asks for it.
pub fn queue_depth(depth: PassDepth) -> QueueDepth {
    let PassDepth { waiting, ready, room } = depth;
    QueueDepth { waiting, ready, room }
}

/// The keyed hashes of an item, for the capture.
pub struct KeyedHasher(HashKey);

impl KeyedHasher {
    /// The hash functions under `key`.
    pub fn new(key: HashKey) -> KeyedHasher {
        KeyedHasher(key)
    }
}

impl Hasher for KeyedHasher {
    fn extent(&self, bytes: &[u8]) -> ExtentHash {
        hash::extent_hash(&self.0, bytes)
    }
    fn extent_and_blocks(&self, bytes: &[u8]) -> (ExtentHash, ExtentBlockHashes) {
        hash::extent_and_block_hashes(&self.0, bytes)
    }
}
