//! What the spool's files hold after any end, at any of their writes, and that they hold nothing
//! in plain.

use super::*;
use delta::{DeltaOpener, Next};
use leeward_capture::{CrashFolder, Record};
use leeward_model::{
    BLOCK_BYTES, BlockMask, Branch, Change, DiskNumber, Epoch, ExtentHash, ExtentNumber, Firmware,
    HostId, ItemId, Lsn, MachineSpec, PointId, PointKind, Probe, SegmentId, TimelineId, VaultId,
};
use leeward_wire::{
    keys::DataKey,
    seal::{Compression, PackedChange, QueueDepth},
    segment::SegmentHeader,
};

/// Deltas of the scenario.
const DELTAS: u64 = 3;
/// Power cuts at each operation, with other losses each.
const SEEDS: u64 = 6;
const SECRET: &[u8] = b"the guest's own words, in plain!";

fn at(lsn: u64) -> Position {
    Position { timeline: TimelineId::from_u128(5), lsn: Lsn(lsn) }
}

fn owner() -> SpoolOwner {
    SpoolOwner {
        item: ItemId::from_u128(1),
        epoch: Epoch(2),
        branch: Branch { timeline: TimelineId::from_u128(5), parent: None, epoch: Epoch(2) },
        target: HostId::from_u128(3),
        key_version: 1,
    }
}

fn seal() -> SpoolSeal {
    let header = SegmentHeader {
        segment: SegmentId::from_u128(0),
        vault: VaultId::from_u128(4),
        item: ItemId::from_u128(1),
        timeline: TimelineId::from_u128(5),
        epoch: Epoch(2),
        key_version: 1,
        first_lsn: Lsn(1),
        created_at: UnixMillis(0),
    };
    SpoolSeal { data_key: DataKey::from_bytes([9; 32]), header }
}

fn marker(point: u64) -> Marker {
    let machine = MachineSpec {
        name: "web01".into(),
        memory_mib: 32,
        cpus: 1,
        firmware: Firmware::Bios,
        disks: Vec::new(),
        nics: Vec::new(),
        display: false,
        probe: Probe { console_contains: None, console_must_not_contain: None, timeout_seconds: 1 },
    };
    let (point, kind) = (PointId::from_u128(u128::from(point)), PointKind::CrashConsistent);
    Marker { point, kind, cut_at: UnixMillis(7), disks: Vec::new(), machine }
}

fn record(number: u64, extent: u32) -> Record {
    Record::from_leaf(ExtentHash([(number * 16 + u64::from(extent)) as u8 + 1; 32]))
}

/// Writes delta `number`, of two extents.
fn write(spool: &Spool, number: u64) -> Result<(), SpoolError> {
    let mut writer = spool.write(&seal(), UnixMillis(1))?;
    for extent in 0..2 {
        let mut data = SECRET.repeat(BLOCK_BYTES as usize / SECRET.len());
        data[0] = number as u8;
        let change = Change {
            disk: DiskNumber(0),
            extent: ExtentNumber(extent),
            mask: BlockMask::NONE.with(3),
            data: data.into(),
            hash: ExtentHash([number as u8; 32]),
        };
        let raw = "raw".parse::<Compression>().unwrap();
        let packed = PackedChange::new(&change, raw, QueueDepth::default());
        writer.add(packed, &record(number, extent))?;
    }
    spool.add(writer, &marker(number), None, |_| Ok(()))
}

/// The numbers of the deltas that wait, as their markers tell, up to the first that is unusable.
fn waiting(spool: &Spool) -> Vec<u64> {
    let mut found = Vec::new();
    let _ = spool.each(|mut reader| {
        let opener = DeltaOpener::new(&seal().data_key, reader.header());
        let mut records = Vec::new();
        loop {
            match reader.next_part()? {
                Next::Changes(changes) => {
                    for change in &changes {
                        opener.change(change)?;
                    }
                    records.extend(changes.iter().map(|change| change.record));
                }
                Next::End(end) => {
                    let number = opener.marker(&end)?.point.as_u128() as u64;
                    assert_eq!(records, [record(number, 0), record(number, 1)]);
                    found.push(number);
                    return Ok(());
                }
            }
        }
    });
    found
}

/// What happened before the power went.
#[derive(Default)]
struct Seen {
    begun: bool,
    /// Deltas that are said to wait.
    added: u64,
    /// Deltas that the target has, as far as the spool was told.
    done: u64,
    /// The target was asked for one more, after so many operations.
    asked: Option<u64>,
}

/// The place of the target once it has `done` deltas.
fn place(done: u64) -> Position {
    at(10 + 5 * done)
}

/// The scenario: deltas are written, then forwarded; ends at the first error.
fn live(folder: &CrashFolder) -> Seen {
    let mut seen = Seen::default();
    let mut run = || -> Result<(), SpoolError> {
        let spool = Spool::load(Arc::new(folder.clone()), SpoolRoom::new(1 << 30, None))?;
        spool.begin(owner(), place(0), None)?;
        seen.begun = true;
        for number in 1..=DELTAS {
            write(&spool, number)?;
            seen.added = number;
        }
        for done in 1..=DELTAS {
            let asked = Asked { at: place(done), whole: true };
            spool.asks(asked)?;
            seen.asked = Some(folder.operations());
            spool.committed(asked)?;
            (seen.done, seen.asked) = (done, None);
        }
        Ok(())
    };
    // Without power the scenario ends somewhere; where, `seen` tells.
    let _ = run();
    seen
}

/// F-015, E3: power is cut at every write of the spool. What was said to wait waits, in order,
/// right on top of what the store has, whether or not it did what it was asked last.
#[test]
fn a_power_cut_at_any_write_leaves_what_waits_in_order_and_nothing_else() {
    let whole = CrashFolder::new();
    assert_eq!(live(&whole).done, DELTAS);
    let mut states = 0;
    for operations in 0..whole.operations() {
        let folder = CrashFolder::new();
        folder.cut_after(operations);
        let seen = live(&folder);
        let targets = match seen.asked {
            None => vec![seen.done],
            // What is noted after the answer is noted of a target that did it.
            Some(at) if at < operations => vec![seen.done + 1],
            Some(_) => vec![seen.done, seen.done + 1],
        };
        for (seed, done) in (0..SEEDS).flat_map(|seed| targets.iter().map(move |d| (seed, *d))) {
            let left = folder.after_cut(seed * 7919 + operations);
            let room = SpoolRoom::new(1 << 30, None);
            let spool = Spool::load(Arc::new(left), room.clone()).unwrap();

            let meets = spool.meets(&owner(), place(done)).unwrap();

            assert!(meets || !seen.begun, "at {operations}, seed {seed}");
            if meets {
                let found = waiting(&spool);
                let expected: Vec<_> = (done + 1..=DELTAS).collect();
                assert!(expected.starts_with(&found), "{found:?} at {operations}, seed {seed}");
                let said = seen.added.saturating_sub(done) as usize;
                assert!(found.len() >= said, "{found:?} of {} at {operations}", seen.added);
            }
            assert!(!spool.meets(&owner(), at(99)).unwrap(), "a store that is elsewhere");
            spool.clear().unwrap();
            assert_eq!((spool.is_empty(), room.used()), (true, 0));
            states += 1;
        }
    }
    println!("PROOF E3 spool-states={states}");
}

/// F-015: what waits is sealed.
#[test]
fn nothing_that_waits_lies_in_plain_and_another_key_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = || Arc::new(leeward_capture::DiskFolder::new(folder.path()));
    let spool = Spool::load(disk(), SpoolRoom::new(1 << 30, None)).unwrap();
    spool.begin(owner(), at(1), None).unwrap();

    write(&spool, 1).unwrap();

    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|part| part == SECRET));
    }
    assert_eq!(waiting(&spool), [1]);
    let mut reader = spool.first().unwrap().unwrap();
    let other = DeltaOpener::new(&DataKey::from_bytes([8; 32]), reader.header());
    let Next::Changes(changes) = reader.next_part().unwrap() else { panic!("it has changes") };
    assert!(other.change(&changes[0]).is_err());
}

/// F-015: a spool of another epoch, branch, store or key is of no use.
#[test]
fn what_waits_for_somebody_else_is_not_gone_on_with() {
    let spool = Spool::load(Arc::new(CrashFolder::new()), SpoolRoom::new(1 << 30, None)).unwrap();
    spool.begin(owner(), at(4), Some(at(6))).unwrap();
    write(&spool, 1).unwrap();

    let others = [
        SpoolOwner { epoch: Epoch(3), ..owner() },
        SpoolOwner { target: HostId::from_u128(4), ..owner() },
        SpoolOwner { key_version: 2, ..owner() },
    ];
    for other in others {
        assert!(!spool.meets(&other, at(4)).unwrap());
    }
    assert!(!spool.meets(&owner(), at(5)).unwrap());
    assert!(spool.meets(&owner(), at(6)).unwrap(), "the store did what it was asked last");
    assert_eq!(spool.figures().points, 1, "and what waits is right on top of that, too");
    assert!(!spool.meets(&owner(), at(4)).unwrap(), "a store never goes back");
}

/// F-015, F-150: a delta for which there is no room leaves room and files as they were.
#[test]
fn a_delta_without_room_leaves_nothing() {
    let room = SpoolRoom::new(12_000, None);
    let folder = CrashFolder::new();
    let spool = Spool::load(Arc::new(folder.clone()), room.clone()).unwrap();
    spool.begin(owner(), at(1), None).unwrap();

    let refused = write(&spool, 1);

    assert!(matches!(refused, Err(SpoolError::NoRoom(_))), "{refused:?}");
    spool.drop_unfinished();
    assert_eq!((room.used(), spool.is_empty()), (0, true));
    assert!(folder.names().unwrap().iter().all(|name| !name.starts_with("delta")));
}

/// E9: any bit of a delta may flip; it is never taken for another delta.
#[test]
fn a_flipped_bit_makes_a_delta_unusable() {
    let folder = CrashFolder::new();
    let spool = Spool::load(Arc::new(folder.clone()), SpoolRoom::new(1 << 30, None)).unwrap();
    spool.begin(owner(), at(1), None).unwrap();
    write(&spool, 1).unwrap();
    let file = folder.open(&name_of(1)).unwrap().unwrap();
    let len = file.len().unwrap();

    for place in (0..len).step_by(97).chain(len - 40..len) {
        let mut byte = [0];
        file.read_at(&mut byte, place).unwrap();
        file.write_at(&[byte[0] ^ 1 << (place % 8)], place).unwrap();

        assert!(spool.first().is_err(), "byte {place}");

        file.write_at(&byte, place).unwrap();
    }
    assert_eq!(waiting(&spool), [1]);
    file.set_len(len - 1).unwrap();
    assert!(spool.first().is_err());
}
