//! The form of the three files, and the judgement whether they are one moment of one machine.
//!
//! Reads only; what a running ledger adds is in `ledger.rs`.

use std::fs::File;
use std::io::{self, Read};

use crate::{Failure, Paths, failed, read_whole, wall_ns};

/// One slot of a log. 64 bytes divide a sector, so a record never straddles two.
pub(crate) const RECORD_BYTES: usize = 64;
/// A log is a ring of this many slots (4 MiB): neither the disk nor the check grows without end.
pub(crate) const LOG_RECORDS: u64 = 65_536;
pub(crate) const PAGE_BYTES: usize = 4096;
/// 1 GiB: a larger table would make the check at boot take minutes.
pub(crate) const PAGES_MAX: u32 = 262_144;
pub(crate) const MAGIC: [u8; 7] = *b"LWLEDG1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

/// One record; integers are little-endian on disk, the checksum is over the first 60 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) side: Side,
    /// Counts from 1, without a gap.
    pub(crate) seq: u64,
    /// Nanoseconds since 1970 by the guest's clock, read just before the record was written.
    pub(crate) wall_ns: u64,
    /// The table page of this step; log A names it before it is written.
    pub(crate) page: u32,
    /// Checksum of that page; zero in log A.
    pub(crate) page_crc: u32,
    /// Which start of the ledger wrote it, from 1.
    pub(crate) boot: u32,
}

impl Record {
    pub(crate) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0u8; RECORD_BYTES];
        bytes[..7].copy_from_slice(&MAGIC);
        bytes[7] = match self.side {
            Side::A => b'A',
            Side::B => b'B',
        };
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.wall_ns.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.page.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.page_crc.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.boot.to_le_bytes());
        let crc = crc32(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` for anything that [`Record::encode`] cannot have made.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != RECORD_BYTES || bytes[..7] != MAGIC {
            return None;
        }
        let side = match bytes[7] {
            b'A' => Side::A,
            b'B' => Side::B,
            _ => return None,
        };
        let seq = u64_at(bytes, 8);
        let intact = u32_at(bytes, 60) == crc32(&bytes[..60]) && seq > 0;
        intact.then(|| Self {
            side,
            seq,
            wall_ns: u64_at(bytes, 16),
            page: u32_at(bytes, 24),
            page_crc: u32_at(bytes, 28),
            boot: u32_at(bytes, 32),
        })
    }
}

/// Makes the page of step `seq`: stamp, own number, noise that does not compress, checksum.
pub(crate) fn page_bytes(record: &Record, noise: &mut Noise) -> [u8; PAGE_BYTES] {
    let mut bytes = [0u8; PAGE_BYTES];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&noise.next().to_le_bytes());
    }
    bytes[..8].copy_from_slice(&record.seq.to_le_bytes());
    bytes[8..12].copy_from_slice(&record.page.to_le_bytes());
    let crc = crc32(&bytes[..PAGE_BYTES - 4]);
    bytes[PAGE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has eight bytes"))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice has four bytes"))
}

pub(crate) fn log_offset(seq: u64) -> u64 {
    seq % LOG_RECORDS * RECORD_BYTES as u64
}

/// The records of one log and what is wrong with it.
pub(crate) struct LogScan {
    pub(crate) slots: Vec<Option<Record>>,
    /// Newest number; 0 when there is no record.
    pub(crate) last: u64,
    /// Slots that hold neither their record nor nothing.
    pub(crate) bad: u64,
    /// Slots whose record is missing or of an earlier round of the ring.
    pub(crate) gaps: u64,
    /// Bytes of an unfinished write where the next record belongs: legal after a crash.
    pub(crate) torn_bytes: u64,
}

impl LogScan {
    pub(crate) fn of(bytes: &[u8], side: Side) -> Self {
        let slots: Vec<Option<Record>> = bytes
            .chunks(RECORD_BYTES)
            .enumerate()
            .map(|(slot, chunk)| {
                let record = Record::decode(chunk)?;
                (record.side == side && record.seq % LOG_RECORDS == slot as u64).then_some(record)
            })
            .collect();
        let last = slots.iter().flatten().map(|r| r.seq).max().unwrap_or(0);
        let mut scan = Self { slots, last, bad: 0, gaps: 0, torn_bytes: 0 };
        for (slot, chunk) in bytes.chunks(RECORD_BYTES).enumerate() {
            scan.check_slot(slot as u64, chunk);
        }
        let present = scan.slots.len() as u64;
        scan.gaps += (present..LOG_RECORDS).filter(|slot| scan.due(*slot).is_some()).count() as u64;
        scan
    }

    /// The number that slot `slot` must hold, given the newest one.
    fn due(&self, slot: u64) -> Option<u64> {
        let behind = (self.last % LOG_RECORDS + LOG_RECORDS - slot) % LOG_RECORDS;
        self.last.checked_sub(behind).filter(|seq| *seq > 0)
    }

    fn check_slot(&mut self, slot: u64, chunk: &[u8]) {
        if slot >= LOG_RECORDS {
            self.bad += 1;
            return;
        }
        let due = self.due(slot);
        let next_write_goes_here = slot == (self.last + 1) % LOG_RECORDS;
        let empty = chunk.iter().all(|byte| *byte == 0);
        match (self.slots[slot as usize], due) {
            (Some(record), Some(due)) if record.seq == due => {}
            (Some(_), _) => self.gaps += 1,
            (None, None) if empty => {}
            (None, _) if next_write_goes_here => self.torn_bytes += chunk.len() as u64,
            (None, Some(_)) if empty => self.gaps += 1,
            (None, _) => self.bad += 1,
        }
    }

    pub(crate) fn record(&self, seq: u64) -> Option<&Record> {
        let slot = self.slots.get((seq % LOG_RECORDS) as usize)?;
        slot.as_ref().filter(|record| record.seq == seq)
    }

    pub(crate) fn newest(&self) -> Option<&Record> {
        self.record(self.last)
    }

    /// Oldest number still in the ring; 0 when there is none.
    fn first(&self) -> u64 {
        if self.last == 0 { 0 } else { (self.last + 1).saturating_sub(LOG_RECORDS).max(1) }
    }
}

/// What the three files say. All counters but `torn_bytes` and `pages` are zero in a good copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) first: u64,
    pub(crate) last_a: u64,
    pub(crate) last_b: u64,
    pub(crate) bad: u64,
    pub(crate) gaps: u64,
    pub(crate) torn_bytes: u64,
    pub(crate) pages: u64,
    pub(crate) bad_pages: u64,
    pub(crate) lost_pages: u64,
    pub(crate) future_pages: u64,
    /// Time of the newest record that is on both disks.
    pub(crate) last_wall_ns: u64,
    /// Starts of the ledger so far, by the newest record.
    pub(crate) boot_count: u32,
}

impl Verdict {
    /// Empty logs are ok here: disks never booted hold no contradiction.
    pub(crate) fn ok(&self) -> bool {
        let faults = self.bad + self.gaps + self.bad_pages + self.lost_pages + self.future_pages;
        faults == 0 && matches!(self.last_a.checked_sub(self.last_b), Some(0 | 1))
    }

    /// `uptime_s`: seconds since the judged machine's kernel started, 0 where none runs.
    pub(crate) fn json(&self, ok: bool, uptime_s: f64) -> String {
        format!(
            "{{\"ok\":{ok},\"first\":{},\"last_a\":{},\"last_b\":{},\"bad\":{},\"gaps\":{},\
             \"torn_bytes\":{},\"pages\":{},\"bad_pages\":{},\"lost_pages\":{},\
             \"future_pages\":{},\"last_wall_ns\":{},\"boot_count\":{},\
             \"uptime_s\":{uptime_s:.2}}}",
            self.first,
            self.last_a,
            self.last_b,
            self.bad,
            self.gaps,
            self.torn_bytes,
            self.pages,
            self.bad_pages,
            self.lost_pages,
            self.future_pages,
            self.last_wall_ns,
            self.boot_count,
        )
    }
}

/// A verdict, and the step that was under way: log A has it, log B does not.
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    pub(crate) unfinished: Option<Record>,
}

pub(crate) fn judge_files(paths: &Paths) -> Result<Judgement, Failure> {
    let (a, b) = (read_whole(&paths.log_a)?, read_whole(&paths.log_b)?);
    let mut judge = Judge::new(LogScan::of(&a, Side::A), LogScan::of(&b, Side::B));
    // Page by page: a large table must not have to fit into a small guest's memory.
    let mut page = 0u32;
    if paths.table.exists() {
        let mut table = io::BufReader::with_capacity(
            64 * PAGE_BYTES,
            File::open(&paths.table).map_err(failed("open", &paths.table))?,
        );
        loop {
            let mut bytes = Vec::with_capacity(PAGE_BYTES);
            let mut one = table.by_ref().take(PAGE_BYTES as u64);
            one.read_to_end(&mut bytes).map_err(failed("read", &paths.table))?;
            if bytes.is_empty() {
                break;
            }
            bytes.resize(PAGE_BYTES, 0);
            judge.check_page(page, &bytes);
            page += 1;
        }
    }
    Ok(judge.finish(page))
}

pub(crate) struct Judge {
    a: LogScan,
    b: LogScan,
    /// Per page, the newest number that log B says is on it.
    promised: Vec<u64>,
    verdict: Verdict,
}

impl Judge {
    pub(crate) fn new(a: LogScan, b: LogScan) -> Self {
        let mut verdict = Verdict {
            first: b.first(),
            last_a: a.last,
            last_b: b.last,
            bad: a.bad + b.bad,
            gaps: a.gaps + b.gaps,
            torn_bytes: a.torn_bytes + b.torn_bytes,
            last_wall_ns: b.newest().map_or(0, |r| r.wall_ns),
            boot_count: a.newest().into_iter().chain(b.newest()).map(|r| r.boot).max().unwrap_or(0),
            ..Verdict::default()
        };
        let mut promised: Vec<u64> = Vec::new();
        for record in b.slots.iter().flatten() {
            // The two logs of one machine tell the same story; of two moments they may not.
            if a.record(record.seq).is_some_and(|other| other.page != record.page) {
                verdict.bad += 1;
            }
            if record.page >= PAGES_MAX {
                verdict.bad += 1;
                continue;
            }
            let page = record.page as usize;
            if promised.len() <= page {
                promised.resize(page + 1, 0);
            }
            promised[page] = promised[page].max(record.seq);
        }
        Self { a, b, promised, verdict }
    }

    fn unfinished(&self) -> Option<&Record> {
        (self.a.last == self.b.last + 1).then(|| self.a.newest()).flatten()
    }

    pub(crate) fn check_page(&mut self, page: u32, bytes: &[u8]) {
        let promised = self.promised.get(page as usize).copied().unwrap_or(0);
        if bytes.iter().all(|byte| *byte == 0) {
            self.verdict.lost_pages += u64::from(promised > 0);
            return;
        }
        self.verdict.pages += 1;
        let (seq, crc) = (u64_at(bytes, 0), u32_at(bytes, PAGE_BYTES - 4));
        let being_written = self.unfinished().filter(|record| record.page == page).copied();
        if crc != crc32(&bytes[..PAGE_BYTES - 4]) {
            match being_written {
                Some(_) => self.verdict.torn_bytes += PAGE_BYTES as u64,
                None => self.verdict.bad_pages += 1,
            }
            return;
        }
        self.verdict.lost_pages += u64::from(seq < promised);
        self.verdict.future_pages += u64::from(seq > self.a.last);
        let known_to_b = seq >= self.b.first() && seq <= self.b.last;
        let owned = match self.b.record(seq) {
            Some(record) => record.page == page && record.page_crc == crc,
            None => !known_to_b && (seq != self.a.last || being_written.is_some()),
        };
        if seq == 0 || u32_at(bytes, 8) != page || (!owned && seq <= self.a.last) {
            self.verdict.bad_pages += 1;
        }
    }

    pub(crate) fn finish(mut self, pages_present: u32) -> Judgement {
        let beyond = self.promised.iter().skip(pages_present as usize);
        self.verdict.lost_pages += beyond.filter(|seq| **seq > 0).count() as u64;
        Judgement { unfinished: self.unfinished().copied(), verdict: self.verdict }
    }
}

/// Numbers that look random and do not compress (xorshift64*); not for secrets.
pub(crate) struct Noise(u64);

impl Noise {
    /// The clock is noise enough; the system's generator would stop an early boot for a second.
    pub(crate) fn from_clock() -> Self {
        Self(wall_ns() | 1)
    }

    #[cfg(test)]
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// Eight tables: a boot under emulation checks the ledger about five times faster than with one.
static CRC_TABLES: [[u32; 256]; 8] = crc_tables();

const fn crc_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut entry = 0;
    while entry < 256 {
        let mut crc = entry as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][entry] = crc;
        entry += 1;
    }
    let mut table = 1;
    while table < 8 {
        entry = 0;
        while entry < 256 {
            let before = tables[table - 1][entry];
            tables[table][entry] = before >> 8 ^ tables[0][(before & 255) as usize];
            entry += 1;
        }
        table += 1;
    }
    tables
}

/// CRC-32 as in Ethernet and zip.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let low = crc ^ u32_at(word, 0);
        let mixed = u64::from(u32_at(word, 4)) << 32 | u64::from(low);
        crc = (0..8)
            .fold(0, |sum, byte| sum ^ CRC_TABLES[7 - byte][(mixed >> (8 * byte) & 255) as usize]);
    }
    for byte in words.remainder() {
        crc = crc >> 8 ^ CRC_TABLES[0][((crc ^ u32::from(*byte)) & 255) as usize];
    }
    !crc
}
