//! Power cuts at every operation, lost files, and what a restart makes of them.

use super::*;
use crate::record::Hasher as _;
use crate::{crash_folder::CrashFolder, folder::DiskFolder, record::TestHasher};
use leeward_model::{Lsn, TimelineId};

const A: DiskNumber = DiskNumber(0);
const B: DiskNumber = DiskNumber(1);
const SIZE: u64 = 20 * EXTENT_BYTES;

fn at(lsn: u64) -> Position {
    Position { timeline: TimelineId::from_u128(7), lsn: Lsn(lsn) }
}

fn files(folder: &CrashFolder) -> HashFiles {
    HashFiles::new(Arc::new(folder.clone()), ItemId::from_u128(1))
}

fn record(value: u8) -> Record {
    Record::of(&vec![value; EXTENT_BYTES as usize], &TestHasher)
}

/// Generation `n` of what the target holds: every extent of disk A and some of B differ.
fn push_generation(files: &HashFiles, generation: u8) -> Result<(), HashError> {
    for extent in 0..20 {
        files.push(A, ExtentNumber(extent), &record(generation))?;
    }
    files.push(B, ExtentNumber(3), &record(generation))
}

fn assert_generation(files: &HashFiles, generation: u8, context: &str) {
    let want = record(generation);
    for extent in 0..20 {
        let got = files.record(A, ExtentNumber(extent)).unwrap();
        assert_eq!(got, want, "{context}: extent {extent}");
    }
    assert_eq!(files.record(B, ExtentNumber(3)).unwrap(), want, "{context}");
    assert_eq!(files.record(B, ExtentNumber(4)).unwrap(), Record::ZERO, "{context}");
}

/// Two generations are committed; says which position the target had when the power went.
fn two_commits(files: &HashFiles) -> u64 {
    let mut target = 1;
    let disks = [(A, SIZE), (B, SIZE)];
    for generation in 2..=3 {
        let sealed = push_generation(files, generation as u8)
            .and_then(|()| files.seal(at(generation), &disks));
        if sealed.is_err() {
            return target;
        }
        target = generation;
        if files.commit(at(generation)).is_err() {
            return target;
        }
    }
    target
}

fn at_generation_one() -> CrashFolder {
    let folder = CrashFolder::new();
    let files = files(&folder);
    files.rebuild(at(0), &[(A, SIZE), (B, SIZE)]).unwrap().finish().unwrap();
    push_generation(&files, 1).unwrap();
    files.seal(at(1), &[(A, SIZE), (B, SIZE)]).unwrap();
    files.commit(at(1)).unwrap();
    folder
}

/// The operations of one run without a cut, and that the harness reaches all of them.
fn operations_of_two_commits() -> (u64, u64) {
    let folder = at_generation_one();
    let files = files(&folder);
    assert_eq!(files.reconcile(at(1)).unwrap(), Trust::Trusted);
    let before = folder.operations();
    assert_eq!(two_commits(&files), 3);
    (before, folder.operations())
}

#[test]
fn a_power_cut_at_any_operation_leaves_the_files_valid_for_the_target() {
    let (before, after) = operations_of_two_commits();
    assert!(after - before > 50, "only {} operations", after - before);
    for cut in before..=after {
        for seed in 1..=12 {
            let folder = at_generation_one();
            let running = files(&folder);
            running.reconcile(at(1)).unwrap();
            folder.cut_after(cut);
            let target = two_commits(&running);

            let back = files(&folder.after_cut(seed));
            let trust = back.reconcile(at(target)).unwrap();

            let context = format!("cut {cut}, seed {seed}, target {target}");
            // Headers fit one sector, which is written or not: nothing is ever given up.
            assert_eq!(trust, Trust::Trusted, "{context}");
            assert_generation(&back, target as u8, &context);
        }
    }
}

#[test]
fn a_second_power_cut_while_the_journal_is_applied_again_does_no_harm() {
    let (before, after) = operations_of_two_commits();
    for cut in (before..=after).step_by(3) {
        for again in 0..40 {
            let folder = at_generation_one();
            let running = files(&folder);
            running.reconcile(at(1)).unwrap();
            folder.cut_after(cut);
            let target = two_commits(&running);
            let second = folder.after_cut(cut * 31 + again);
            second.cut_after(again);
            let _ = files(&second).reconcile(at(target));

            let back = files(&second.after_cut(again * 17 + cut));

            assert_eq!(back.reconcile(at(target)).unwrap(), Trust::Trusted, "cut {cut} {again}");
            assert_generation(&back, target as u8, &format!("cut {cut}, again {again}"));
        }
    }
}

#[test]
fn a_power_cut_during_a_rebuild_leaves_old_or_new_or_untrusted() {
    let rebuild = |files: &HashFiles| -> Result<(), HashError> {
        let mut rebuild = files.rebuild(at(1), &[(A, SIZE), (B, SIZE)])?;
        let leaf = TestHasher.extent(&vec![9; EXTENT_BYTES as usize]);
        for extent in 0..20 {
            rebuild.leaf(A, ExtentNumber(extent), leaf)?;
        }
        rebuild.finish()
    };
    let new = Record::from_leaf(TestHasher.extent(&vec![9; EXTENT_BYTES as usize]));
    let mut seen = [0; 3];
    for cut in 0..40 {
        for seed in 1..=20 {
            let folder = at_generation_one();
            let running = files(&folder);
            folder.cut_after(folder.operations() + cut);
            let _ = rebuild(&running);

            let back = files(&folder.after_cut(seed));
            let trust = back.reconcile(at(1)).unwrap();

            if trust != Trust::Trusted {
                seen[0] += 1;
                continue;
            }
            let first = back.record(A, ExtentNumber(0)).unwrap();
            if first == new {
                seen[1] += 1;
                for extent in 0..20 {
                    assert_eq!(back.record(A, ExtentNumber(extent)).unwrap(), new);
                }
                assert_eq!(back.record(B, ExtentNumber(3)).unwrap(), Record::ZERO);
            } else {
                seen[2] += 1;
                assert_generation(&back, 1, &format!("cut {cut}, seed {seed}"));
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn a_target_that_went_elsewhere_is_not_believed() {
    let folder = at_generation_one();
    for target in [at(0), at(2), Position { timeline: TimelineId::from_u128(8), lsn: Lsn(1) }] {
        let files = files(&folder);
        assert!(matches!(files.reconcile(target).unwrap(), Trust::Untrusted(_)), "{target:?}");
        assert!(matches!(files.record(A, ExtentNumber(0)), Err(HashError::Untrusted(_))));
    }
}

#[test]
fn after_a_power_cut_no_position_is_trusted_with_records_of_another() {
    let (before, after) = operations_of_two_commits();
    let mut trusted = 0;
    for cut in before..=after {
        for seed in 1..=12 {
            let folder = at_generation_one();
            let running = files(&folder);
            running.reconcile(at(1)).unwrap();
            folder.cut_after(cut);
            two_commits(&running);
            for position in 1..=3 {
                let back = files(&folder.after_cut(seed));
                if back.reconcile(at(position)).unwrap() == Trust::Trusted {
                    trusted += 1;
                    let context = format!("cut {cut}, seed {seed}, position {position}");
                    assert_generation(&back, position as u8, &context);
                }
            }
        }
    }
    assert!(trusted > 12 * (after - before), "{trusted}");
}

#[test]
fn an_old_journal_is_never_applied_over_something_newer() {
    let folder = at_generation_one();
    let running = files(&folder);
    running.reconcile(at(1)).unwrap();
    push_generation(&running, 2).unwrap();
    running.seal(at(2), &[(A, SIZE), (B, SIZE)]).unwrap();
    let journal = folder.open(JOURNAL).unwrap().unwrap();
    let mut old = vec![0; journal.len().unwrap() as usize];
    read_padded(&*journal, &mut old, 0).unwrap();
    running.commit(at(2)).unwrap();
    running.seal(at(3), &[(A, SIZE), (B, SIZE)]).unwrap();
    running.commit(at(3)).unwrap();

    // The file system brings the journal from 1 to 2 back, and so does the target with 2.
    folder.create(JOURNAL).unwrap().write_at(&old, 0).unwrap();

    assert!(matches!(files(&folder).reconcile(at(2)).unwrap(), Trust::Untrusted(_)));
    assert_eq!(files(&folder).reconcile(at(3)).unwrap(), Trust::Trusted);
}

#[test]
fn a_lost_or_damaged_or_foreign_file_is_noticed() {
    let lose = |folder: &CrashFolder| folder.remove(&file_name(B)).unwrap();
    let damage = |folder: &CrashFolder| {
        folder.open(&file_name(B)).unwrap().unwrap().write_at(&[1], 33).unwrap();
    };
    let cases: [&dyn Fn(&CrashFolder); 2] = [&lose, &damage];
    for case in cases {
        let folder = at_generation_one();
        case(&folder);
        assert!(matches!(files(&folder).reconcile(at(1)).unwrap(), Trust::Untrusted(_)));
    }
    let foreign = HashFiles::new(Arc::new(at_generation_one()), ItemId::from_u128(2));
    assert!(matches!(foreign.reconcile(at(1)).unwrap(), Trust::Untrusted(_)));
}

#[test]
fn a_shrunk_disk_drops_its_records_and_a_grown_one_is_zero_beyond() {
    let folder = at_generation_one();
    let files = files(&folder);
    files.reconcile(at(1)).unwrap();
    files.seal(at(2), &[(A, 5 * EXTENT_BYTES), (B, SIZE)]).unwrap();
    files.commit(at(2)).unwrap();
    files.seal(at(3), &[(A, SIZE), (B, SIZE)]).unwrap();
    files.commit(at(3)).unwrap();

    assert_eq!(files.record(A, ExtentNumber(4)).unwrap(), record(1));
    assert_eq!(files.record(A, ExtentNumber(5)).unwrap(), Record::ZERO);
    assert_eq!(files.next_nonzero(A, ExtentNumber(5)).unwrap(), None);
    assert_eq!(files.size(A), Some(SIZE));
}

#[test]
fn records_are_found_across_holes_of_a_real_file() {
    let folder = tempfile::tempdir().unwrap();
    let files = HashFiles::new(Arc::new(DiskFolder::new(folder.path())), ItemId::from_u128(1));
    let size = 1 << 40;
    let far = ExtentNumber(16_000_000);
    let mut rebuild = files.rebuild(at(1), &[(A, size)]).unwrap();
    rebuild.leaf(A, ExtentNumber(7), leeward_model::ExtentHash([7; 32])).unwrap();
    rebuild.leaf(A, far, leeward_model::ExtentHash([8; 32])).unwrap();
    rebuild.finish().unwrap();

    assert_eq!(files.next_nonzero(A, ExtentNumber(0)).unwrap(), Some(ExtentNumber(7)));
    assert_eq!(files.next_nonzero(A, ExtentNumber(8)).unwrap(), Some(far));
    assert_eq!(files.next_nonzero(A, ExtentNumber(far.0 + 1)).unwrap(), None);
}
