//! What a view keeps decoded, and what it says of that; every way of reading gives the same bytes.

use crate::world::{DISK_BYTES, DISKS, EXTENTS, World};
use leeward_model::{DiskNumber, EXTENT_BYTES, ExtentNumber};
use leeward_replica::{ReadCounts, StoreError, View};

/// A view of the newest of some points, and an extent that holds data there.
fn view() -> (World, View, DiskNumber, ExtentNumber) {
    let (_, mut world) = World::on_crash_disk(41);
    for _ in 0..20 {
        world.append().unwrap();
    }
    world.commit_point().unwrap();
    let newest = world.reader().newest_point().unwrap().position;
    let view = View::open(world.reader(), newest).unwrap();
    let all = (0..DISKS).flat_map(|disk| (0..EXTENTS).map(move |extent| (disk, extent)));
    let data = |(disk, extent): &(u16, u32)| {
        let bytes = world.model.extent(newest, DiskNumber(*disk), ExtentNumber(*extent));
        bytes.iter().any(|byte| *byte != 0)
    };
    let (disk, extent) = all.into_iter().find(data).expect("something was written");
    (world, view, DiskNumber(disk), ExtentNumber(extent))
}

#[test]
fn a_part_that_was_read_keeps_its_extent_decoded_and_a_whole_one_does_not() {
    let (_, view, disk, extent) = view();
    let at = extent.offset() + 4096;
    assert_eq!(view.read_kept(disk, at, 4096), None, "nothing is decoded yet");

    let whole = view.read(disk, extent.offset(), EXTENT_BYTES as usize).unwrap();
    assert_eq!(view.reads(), ReadCounts { decoded: 1, ..ReadCounts::default() });
    assert_eq!(view.read_kept(disk, at, 4096), None, "a whole extent is not kept");

    let part = view.read(disk, at, 4096).unwrap();
    assert_eq!(view.reads().decoded, 2);
    assert_eq!(view.read_kept(disk, at, 4096), Some(part.clone()));
    assert_eq!(view.read(disk, at, 4096).unwrap(), part);
    assert_eq!(view.reads(), ReadCounts { decoded: 2, kept: 2, ahead: 0 });
    assert_eq!(part, whole[4096..8192]);
    assert!((view.reads().hit_percent() - 50.0).abs() < 1e-9);
}

#[test]
fn what_was_fetched_ahead_is_found_decoded_and_counted_apart() {
    let (_, view, disk, extent) = view();
    assert!(view.fetch_ahead(disk, extent).unwrap());
    assert!(!view.fetch_ahead(disk, extent).unwrap(), "it is decoded already");
    assert!(!view.fetch_ahead(disk, ExtentNumber(EXTENTS)).unwrap(), "beyond the disk");
    assert!(!view.fetch_ahead(DiskNumber(DISKS), extent).unwrap(), "no such disk");
    assert_eq!(view.reads(), ReadCounts::default(), "nobody has read yet");

    let read = view.read(disk, extent.offset(), 512).unwrap();

    assert_eq!(view.reads(), ReadCounts { ahead: 1, ..ReadCounts::default() });
    let once = view.read_once(disk, extent.offset(), 512).unwrap();
    assert_eq!(once, Some(read));
}

#[test]
fn every_way_of_reading_gives_the_bytes_of_the_point() {
    let (world, view, _, _) = view();
    let place = view.position();
    for disk in (0..DISKS).map(DiskNumber) {
        let mut expected = Vec::new();
        for extent in (0..EXTENTS).map(ExtentNumber) {
            let bytes = world.model.extent(place, disk, extent);
            let once = view.read_once(disk, extent.offset(), EXTENT_BYTES as usize).unwrap();
            assert!(once.as_deref().unwrap_or(&[0; EXTENT_BYTES as usize]) == bytes);
            for (offset, len) in [(0, 1), (4095, 2), (61_440, 4096), (1, 65_535), (0, 65_536)] {
                let read = view.read(disk, extent.offset() + offset as u64, len).unwrap();
                assert!(read == bytes[offset..offset + len], "{len} at {offset}");
            }
            expected.extend_from_slice(&bytes);
        }
        assert!(view.read(disk, 0, DISK_BYTES as usize).unwrap() == expected);
        let across = view.read(disk, EXTENT_BYTES - 3, 6).unwrap();
        assert_eq!(across, expected[EXTENT_BYTES as usize - 3..][..6]);
        assert_eq!(view.read(disk, 7, 0).unwrap(), [][..]);
    }
}

#[test]
fn reads_beyond_the_disk_are_refused_in_every_way() {
    let (_, view, disk, _) = view();
    let refused = |error: StoreError| matches!(error, StoreError::Refused { .. });
    for (offset, len) in [(DISK_BYTES - 1, 2), (DISK_BYTES, 1), (u64::MAX, 2)] {
        assert!(refused(view.read(disk, offset, len).unwrap_err()), "{len} at {offset}");
        assert!(refused(view.read_once(disk, offset, len).unwrap_err()));
        assert_eq!(view.read_kept(disk, offset, len), None);
    }
    assert!(refused(view.read_once(disk, EXTENT_BYTES - 1, 2).unwrap_err()), "two extents");
    assert!(refused(view.read(DiskNumber(DISKS), 0, 1).unwrap_err()));
}
