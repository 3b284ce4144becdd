//! Tests of the judge and the picture: `rustc --test ledger.rs && ./ledger`.

use std::time::Duration;

use super::judge::{
    Judge, Judgement, LOG_RECORDS, LogScan, Noise, PAGE_BYTES, Record, Side, crc32, log_offset,
    page_bytes, u32_at,
};
use super::screen::{civil_time, picture};
use super::{Options, Shared, answer};

const PAGES: u32 = 8;

/// Three files in memory, written in the ledger's own order.
#[derive(Clone)]
struct Disks {
    log_a: Vec<u8>,
    log_b: Vec<u8>,
    table: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Written {
    LogA,
    Page,
    LogB,
}

impl Disks {
    fn with_steps(count: u64) -> Self {
        let table = vec![0; PAGES as usize * PAGE_BYTES];
        let mut disks = Self { log_a: Vec::new(), log_b: Vec::new(), table };
        for seq in 1..=count {
            disks.step(seq, Written::LogB);
        }
        disks
    }

    /// Writes step `seq` up to and including `until`.
    fn step(&mut self, seq: u64, until: Written) {
        let page = (seq % u64::from(PAGES)) as u32;
        let mut record = Record { side: Side::A, seq, wall_ns: seq, page, page_crc: 0, boot: 1 };
        put_at(&mut self.log_a, log_offset(seq) as usize, &record.encode());
        let bytes = page_bytes(&record, &mut Noise::from_seed(seq));
        if until >= Written::Page {
            put_at(&mut self.table, page as usize * PAGE_BYTES, &bytes);
        }
        if until >= Written::LogB {
            record.side = Side::B;
            record.page_crc = u32_at(&bytes, PAGE_BYTES - 4);
            put_at(&mut self.log_b, log_offset(seq) as usize, &record.encode());
        }
    }

    fn judge(&self) -> Judgement {
        let a = LogScan::of(&self.log_a, Side::A);
        let mut judge = Judge::new(a, LogScan::of(&self.log_b, Side::B));
        for (page, bytes) in self.table.chunks(PAGE_BYTES).enumerate() {
            judge.check_page(page as u32, bytes);
        }
        judge.finish(PAGES)
    }
}

fn put_at(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn the_checksum_is_the_common_crc_32() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    assert_eq!(crc32(b""), 0);
}

#[test]
fn a_record_survives_its_form_and_any_flipped_bit_is_seen() {
    let record = Record { side: Side::B, seq: 9, wall_ns: 8, page: 7, page_crc: 6, boot: 5 };
    let bytes = record.encode();
    assert_eq!(Record::decode(&bytes), Some(record));

    // The zero bytes between the fields and the checksum are covered as well.
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Record::decode(&damaged), None, "bit {bit}");
    }
}

#[test]
fn a_stop_after_any_write_leaves_one_moment() {
    for until in [Written::LogA, Written::Page, Written::LogB] {
        let mut disks = Disks::with_steps(40);
        disks.step(41, until);

        let judgement = disks.judge();

        assert!(judgement.verdict.ok(), "{:?}", judgement.verdict);
        assert_eq!(judgement.verdict.last_a, 41);
        assert_eq!(judgement.unfinished.is_some(), until != Written::LogB);
    }
}

#[test]
fn the_ring_overwrites_its_oldest_record_only() {
    for count in [LOG_RECORDS - 1, LOG_RECORDS, LOG_RECORDS + 1, LOG_RECORDS + 500] {
        let verdict = Disks::with_steps(count).judge().verdict;

        assert!(verdict.ok(), "{verdict:?}");
        assert_eq!(verdict.first, (count + 1).saturating_sub(LOG_RECORDS).max(1));
    }
}

#[test]
fn disks_of_two_moments_are_refused() {
    let (older, newer) = (Disks::with_steps(40), Disks::with_steps(45));
    let boot_behind = Disks { log_a: older.log_a.clone(), ..newer.clone() };
    let data_behind = Disks { log_a: newer.log_a.clone(), ..older.clone() };
    let table_behind = Disks { table: older.table, ..newer.clone() };

    assert!(boot_behind.judge().verdict.future_pages > 0);
    assert!(!data_behind.judge().verdict.ok());
    assert!(table_behind.judge().verdict.lost_pages > 0);
}

#[test]
fn a_zeroed_or_moved_page_is_refused() {
    let good = Disks::with_steps(40);
    let mut zeroed = good.clone();
    zeroed.table[..PAGE_BYTES].fill(0);
    let mut moved = good.clone();
    moved.table.copy_within(..PAGE_BYTES, PAGE_BYTES);
    let mut shorn = good;
    shorn.table[PAGE_BYTES + 2000] ^= 1;

    assert_eq!(zeroed.judge().verdict.lost_pages, 1);
    assert!(moved.judge().verdict.bad_pages > 0);
    assert_eq!(shorn.judge().verdict.bad_pages, 1);
}

#[test]
fn a_page_torn_while_it_was_written_is_legal_and_no_other_is() {
    let mut disks = Disks::with_steps(40);
    disks.step(41, Written::LogA);
    let page = 41 % PAGES as usize * PAGE_BYTES;
    disks.table[page..page + 512].fill(0xEE);
    assert!(disks.judge().verdict.ok());

    disks.step(41, Written::LogB);
    disks.table[page..page + 512].fill(0xEE);
    assert_eq!(disks.judge().verdict.bad_pages, 1);
}

#[test]
fn a_hole_in_a_log_is_refused_and_a_torn_tail_is_not() {
    let mut hole = Disks::with_steps(40);
    hole.log_b[20 * 64..21 * 64].fill(0);
    assert_eq!(hole.judge().verdict.gaps, 1);

    let mut tail = Disks::with_steps(40);
    tail.log_a.extend_from_slice(&[7; 30]);
    let verdict = tail.judge().verdict;
    assert!(verdict.ok());
    assert_eq!(verdict.torn_bytes, 30);

    let mut garbage = Disks::with_steps(40);
    garbage.log_a[20 * 64 + 10] ^= 1;
    assert_eq!(garbage.judge().verdict.bad, 1);
}

#[test]
fn the_port_pauses_resumes_and_names_what_it_does_not_know() {
    let verdict = Disks::with_steps(40).judge().verdict;
    let shared = Shared::new(&verdict, "{}".into(), Duration::ZERO);

    let paused = answer("pause delay=700 id=12", &shared);
    assert!(paused.contains("\"paused\":true") && paused.contains("\"delay_us\":700"), "{paused}");
    assert!(paused.starts_with("{\"id\":12,\"error\":\"\",\"seq_a\":40,\"seq_b\":40"), "{paused}");
    assert!(answer("resume", &shared).contains("\"paused\":false"));
    assert!(answer("dance", &shared).contains("known: state"));
}

#[test]
fn two_records_give_two_pictures_and_one_gives_one() {
    let at = |steps| {
        let verdict = Disks::with_steps(steps).judge().verdict;
        let shared = Shared::new(&verdict, String::new(), Duration::ZERO);
        picture(&shared.lock())
    };

    assert_eq!(at(40), at(40));
    assert_ne!(at(40), at(41));
}

#[test]
fn the_calendar_knows_leap_days() {
    assert_eq!(civil_time(0), "1970-01-01 00:00:00.000");
    assert_eq!(civil_time(951_782_399_999_000_000), "2000-02-28 23:59:59.999");
    assert_eq!(civil_time(951_782_400_000_000_000), "2000-02-29 00:00:00.000");
    assert_eq!(civil_time(1_767_225_599_000_000_000), "2025-12-31 23:59:59.000");
}

#[test]
fn the_kernel_command_line_sets_delay_and_size() {
    let options = Options::parse("console=ttyS0 ledger.delay_us=250 ledger.pages=0 quiet");

    assert_eq!(options.delay, Duration::from_micros(250));
    assert_eq!(options.pages, 1);
}
