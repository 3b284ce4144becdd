//! How hard a payload is compressed: a pure function of how deep the queues around the sealers
//! are and of a probe of the payload's first or last block. And the compressing itself, which
//! knows no key.
//!
//! Measured on one core (Zen 5), 64 KiB of files: level -7 packs 1.2 GiB/s to 1/1.8, level 1
//! 0.86 GiB/s to 1/2.2, level 3 0.6 GiB/s to 1/2.4; level 2 costs more than 1 and gains nothing.

use crate::{
    hash::{ZEROS, is_zero},
    record::{Codec, RECORD_HEADER_BYTES, TAG_BYTES},
};
use leeward_model::{BLOCK_BYTES, BlockMask, Change, DiskNumber, ExtentHash, ExtentNumber};
use std::{cell::RefCell, fmt, str::FromStr};
use zstd::bulk::Compressor;

/// The level of the probe of a record's first block.
const PROBE_LEVEL: i32 = -7;
/// Compression that saves less than one part in this many is not worth the reader's time: 5 %.
const GAIN_PART: usize = 20;
const BLOCK: usize = BLOCK_BYTES as usize;

/// How hard a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Not at all.
    Raw,
    /// Zstandard at this level (-7, -5, 1, 3); stored raw all the same when that saves below 5 %.
    Zstd(i32),
}

/// How full the queues before and behind the sealers are, in batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// Batches that wait for a sealer: many when the processor is what limits.
    pub waiting: usize,
    /// Batches that were sealed and wait to be taken: many when the link or the store limits.
    pub ready: usize,
    /// Batches that may be under way at once.
    pub room: usize,
}

/// What a quick compression of one of a payload's blocks gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Bytes before.
    pub raw: usize,
    /// Bytes after.
    pub packed: usize,
}

impl Probe {
    /// Whether it saves 5 % or more.
    pub fn saves(self) -> bool {
        self.packed <= worthwhile(self.raw)
    }
}

/// Most bytes that `raw` bytes may be packed to for it to be worth the reader's time.
fn worthwhile(raw: usize) -> usize {
    raw - raw / GAIN_PART
}

/// What decides about levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// By the depth of the queues: 1 while all keep up; -5, then -7, while batches wait for a
    /// processor; 3 while they wait for the link.
    Adaptive,
    /// Always this one: what is stored does not depend on how fast machines are.
    Fixed(Level),
}

impl Compression {
    /// The level for a payload.
    pub fn level(self, depth: QueueDepth, probe: Probe) -> Level {
        if !probe.saves() {
            return Level::Raw;
        }
        match self {
            Compression::Fixed(level) => level,
            Compression::Adaptive => level(depth),
        }
    }
}

/// The level that the queues ask for.
fn level(depth: QueueDepth) -> Level {
    let QueueDepth { waiting, ready, room } = depth;
    // A queue behind the sealers comes first: with it, packing harder costs nobody any time.
    if room > 0 && 2 * ready >= room {
        Level::Zstd(3)
    } else if room > 0 && 4 * waiting >= 3 * room {
        Level::Zstd(-7)
    } else if room > 0 && 2 * waiting >= room {
        Level::Zstd(-5)
    } else {
        Level::Zstd(1)
    }
}

impl Default for Compression {
    /// Level 1.
    fn default() -> Compression {
        Compression::Fixed(Level::Zstd(1))
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Compression, String> {
        match text {
            "adaptive" => Ok(Compression::Adaptive),
            "raw" => Ok(Compression::Fixed(Level::Raw)),
            "-7" => Ok(Compression::Fixed(Level::Zstd(-7))),
            "-5" => Ok(Compression::Fixed(Level::Zstd(-5))),
            "1" => Ok(Compression::Fixed(Level::Zstd(1))),
            "3" => Ok(Compression::Fixed(Level::Zstd(3))),
            _ => Err("it is adaptive, raw, -7, -5, 1 or 3".to_owned()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::Adaptive => f.write_str("adaptive"),
            Compression::Fixed(Level::Raw) => f.write_str("raw"),
            Compression::Fixed(Level::Zstd(level)) => level.fmt(f),
        }
    }
}

/// A change in the form in which it is stored, not sealed yet: whoever numbers the records does
/// that, in their order. Packing is what costs; it is done on any thread, in any order.
pub struct PackedChange {
    pub(crate) disk: DiskNumber,
    pub(crate) extent: ExtentNumber,
    pub(crate) mask: BlockMask,
    pub(crate) hash: ExtentHash,
    pub(crate) codec: Codec,
    /// Room for the record's header, then the payload; capacity for the tag.
    pub(crate) record: Vec<u8>,
    pub(crate) raw_len: usize,
}

impl PackedChange {
    /// Bytes of the change's data, before packing; zeros count nothing.
    pub fn raw_len(&self) -> usize {
        self.raw_len
    }

    /// Packs a change.
    ///
    /// # Panics
    /// When `change.data` is neither empty nor `change.mask.bytes()` long, or the mask is empty.
    pub fn new(change: &Change, compression: Compression, depth: QueueDepth) -> PackedChange {
        assert_ne!(change.mask, BlockMask::NONE, "a change carries blocks");
        let data = &change.data[..];
        let expected = change.mask.bytes() as usize;
        assert!(data.is_empty() || data.len() == expected, "data are those of the mask's blocks");
        let (codec, record) =
            PACKER.with_borrow_mut(|packer| packer.pack(data, compression, depth));
        let Change { disk, extent, mask, hash, .. } = *change;
        PackedChange { disk, extent, mask, hash, codec, record, raw_len: data.len() }
    }
}

impl fmt::Debug for PackedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PackedChange { disk, extent, mask, codec, .. } = self;
        let mut shown = f.debug_struct("PackedChange");
        shown.field("disk", disk).field("extent", extent).field("mask", mask);
        shown.field("codec", codec).finish_non_exhaustive()
    }
}

/// What packing needs; some hundred KiB, one a thread, not one a record.
struct Packer {
    compressor: Compressor<'static>,
    /// The level that `compressor` is set to.
    level: i32,
    probe: Compressor<'static>,
    /// Room for a compressed extent.
    scratch: Vec<u8>,
}

thread_local! {
    static PACKER: RefCell<Packer> = RefCell::new(Packer::new());
}

impl Packer {
    fn new() -> Packer {
        let compressor = |level| Compressor::new(level).expect("zstd has memory for a context");
        Packer {
            compressor: compressor(1),
            level: 1,
            probe: compressor(PROBE_LEVEL),
            scratch: vec![0; zstd::zstd_safe::compress_bound(ZEROS.len())],
        }
    }

    fn pack(
        &mut self,
        data: &[u8],
        compression: Compression,
        depth: QueueDepth,
    ) -> (Codec, Vec<u8>) {
        let room = |payload: usize| {
            let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + payload + TAG_BYTES);
            record.resize(RECORD_HEADER_BYTES, 0);
            record
        };
        if is_zero(data) {
            return (Codec::Zero, room(0));
        }
        if let Some(len) = self.compress(data, compression, depth) {
            let mut record = room(len);
            record.extend_from_slice(&self.scratch[..len]);
            return (Codec::Zstd, record);
        }
        let mut record = room(data.len());
        record.extend_from_slice(data);
        (Codec::Raw, record)
    }

    /// Writes one Zstandard frame of `data` to the scratch and returns its length; none when it
    /// saves too little, which a probe of its first and its last block foretells. `data` are whole
    /// blocks.
    fn compress(
        &mut self,
        data: &[u8],
        compression: Compression,
        depth: QueueDepth,
    ) -> Option<usize> {
        if compression == Compression::Fixed(Level::Raw) {
            return None;
        }
        // The scratch holds whatever zstd makes of an extent: a call that runs out of room would
        // leave its context in the middle of a frame.
        let room = "the scratch has room for every result";
        // Where a file ends inside an extent, its end tells nothing about its beginning: what the
        // first block does not promise the last one may. One of both misses 1 % of what could be
        // saved on files, the first one alone 4 %. A single block tells more than its probe.
        let mut probe = Probe { raw: BLOCK, packed: if data.len() > BLOCK { BLOCK } else { 0 } };
        for at in [0, data.len() - BLOCK] {
            if !probe.saves() {
                let block = &data[at..at + BLOCK];
                let packed = self.probe.compress_to_buffer(block, &mut self.scratch[..]);
                probe.packed = packed.expect(room);
            }
        }
        let Level::Zstd(level) = compression.level(depth, probe) else { return None };
        if level != self.level {
            self.compressor.set_compression_level(level).expect("zstd clamps the level");
            self.level = level;
        }
        let len = self.compressor.compress_to_buffer(data, &mut self.scratch[..]).expect(room);
        (len <= worthwhile(data.len())).then_some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: Probe = Probe { raw: BLOCK, packed: BLOCK / 2 };

    fn depth(waiting: usize, ready: usize) -> QueueDepth {
        QueueDepth { waiting, ready, room: 32 }
    }

    /// How much work a level is.
    fn effort(level: Level) -> i32 {
        match level {
            Level::Raw => -100,
            Level::Zstd(level) => level,
        }
    }

    #[test]
    fn levels_follow_what_limits() {
        let level = |waiting, ready| Compression::Adaptive.level(depth(waiting, ready), GOOD);

        assert_eq!(level(0, 0), Level::Zstd(1));
        assert_eq!(level(15, 3), Level::Zstd(1));
        assert_eq!(level(16, 0), Level::Zstd(-5));
        assert_eq!(level(24, 0), Level::Zstd(-7));
        assert_eq!(level(0, 16), Level::Zstd(3));
        let (incompressible, none) = (Probe { raw: 4096, packed: 3893 }, QueueDepth::default());
        assert_eq!(Compression::Adaptive.level(depth(0, 16), incompressible), Level::Raw);
        assert_eq!(Compression::Adaptive.level(none, GOOD), Level::Zstd(1));
    }

    #[test]
    fn words_are_read_as_they_are_shown() {
        for word in ["adaptive", "raw", "-7", "-5", "1", "3"] {
            assert_eq!(word.parse::<Compression>().map(|read| read.to_string()), Ok(word.into()));
        }
        assert!("2".parse::<Compression>().is_err());
    }

    proptest! {
        #[test]
        fn a_longer_wait_for_a_sealer_never_packs_harder(
            ready in 0_usize..40, less in 0_usize..40, more in 0_usize..40, room in 0_usize..40,
        ) {
            let depth = |waiting| QueueDepth { waiting, ready, room };
            let at = |waiting| Compression::Adaptive.level(depth(waiting), GOOD);
            let (less, more) = (less.min(more), less.max(more));
            prop_assert!(effort(at(more)) <= effort(at(less)));
        }

        #[test]
        fn a_longer_wait_for_the_link_never_packs_less(
            waiting in 0_usize..40, less in 0_usize..40, more in 0_usize..40, room in 0_usize..40,
        ) {
            let depth = |ready| QueueDepth { waiting, ready, room };
            let at = |ready| Compression::Adaptive.level(depth(ready), GOOD);
            let (less, more) = (less.min(more), less.max(more));
            prop_assert!(effort(at(more)) >= effort(at(less)));
        }

        #[test]
        fn below_five_percent_everything_is_raw(
            waiting in 0_usize..40, ready in 0_usize..40, packed in 3893_usize..5000,
        ) {
            let depth = QueueDepth { waiting, ready, room: 32 };
            let probe = Probe { raw: BLOCK, packed };
            prop_assert_eq!(Compression::Adaptive.level(depth, probe), Level::Raw);
            prop_assert_eq!(Compression::default().level(depth, probe), Level::Raw);
        }
    }

    #[test]
    fn a_probe_that_does_not_compress_stores_the_record_raw() {
        let mut packer = Packer::new();
        let mut noise = vec![0; BLOCK];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut first_noise = noise.clone();
        first_noise.resize(2 * BLOCK, 7);
        let mut ends_noise = first_noise.clone();
        ends_noise.extend_from_slice(&noise);
        let mut first_text = vec![7; 2 * BLOCK];
        first_text.extend_from_slice(&noise);
        let mut compress = |data: &[u8]| {
            packer.compress(data, Compression::Fixed(Level::Zstd(3)), QueueDepth::default())
        };

        assert_eq!(compress(&noise), None);
        assert!(compress(&first_noise).is_some_and(|len| len < 2 * BLOCK));
        assert_eq!(compress(&ends_noise), None);
        assert!(compress(&first_text).is_some_and(|len| len < 2 * BLOCK));
        assert!(compress(&first_text[..BLOCK]).is_some_and(|len| len < 100));
    }
}
