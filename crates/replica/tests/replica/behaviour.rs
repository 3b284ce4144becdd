//! What a store does, one sentence a test.

use crate::world::{
    DISK_BYTES, ITEM, OWNER, SeededRandom, VAULT, World, check_place, disk_table, identity, init,
    kept, machine, open_writer,
};
use leeward_model::{
    BlockMask, Branch, Change, Code, DiskNumber, Epoch, Evidence, ExtentNumber, ItemId, Lsn,
    PointId, PointOrigin, Position, SegmentId, Site, TimelineId, UnixMillis, Verification,
};
use leeward_nbd::server::{Allocation, Export as _};
use leeward_replica::{
    ItemStore, PointExport, RecipientSecret, RunKind, Store, StoreError, TestOutcome, Unlock, View,
    storage::{BlobStore, CrashDisk, LocalStore},
};
use leeward_wire::{
    hash::extent_hash,
    seal::{Level, Sealer},
    segment::SegmentHeader,
};
use std::{sync::Arc, time::Instant};
use uuid::Uuid;

fn header(item: &ItemStore, branch: &Branch, first_lsn: Lsn, segment: u128) -> SegmentHeader {
    SegmentHeader {
        segment: SegmentId::from_u128(segment),
        vault: VAULT,
        item: item.reader().item(),
        timeline: branch.timeline,
        epoch: branch.epoch,
        key_version: 1,
        first_lsn,
        created_at: UnixMillis(0),
    }
}

fn whole(item: &ItemStore, disk: u16, extent: u32, fill: u8) -> Change {
    let data = bytes::Bytes::from(vec![fill; 65_536]);
    let hash = extent_hash(&item.reader().keys().hash, &data);
    let (disk, extent) = (DiskNumber(disk), ExtentNumber(extent));
    Change { disk, extent, mask: BlockMask::ALL, data, hash }
}

#[test]
fn data_of_an_older_epoch_are_refused_at_every_door() {
    let (_, mut world) = World::on_crash_disk(1);
    world.append().unwrap();
    world.sync().unwrap();
    let (place, receipt) = (world.place(world.received), world.receipt());
    let stale = world.sealer.take().unwrap();
    let (lsn, change) = world.next_change();
    let mut stale = stale;
    let record = stale.seal_change(lsn, &change, Level::Raw);
    world.item().raise_fence(Epoch(5), UnixMillis(0)).unwrap();

    let fenced = world.item().append(&record);
    assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "a record: {fenced:?}");
    let fenced = world.item().commit_point(place, &receipt);
    assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "a commit: {fenced:?}");
    let fenced = world.item().commit_progress(place.timeline, place.lsn, UnixMillis(0));
    assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "progress: {fenced:?}");
    let fenced = world.begin();
    assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "a segment");
    let fenced = world.branch_off();
    assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "a timeline");
    assert_eq!(fenced.unwrap_err().code(), Code::STORE_FENCED);
}

#[test]
fn a_lower_fence_changes_nothing() {
    let (_, mut world) = World::on_crash_disk(1);
    world.item().raise_fence(Epoch(7), UnixMillis(0)).unwrap();

    world.item().raise_fence(Epoch(3), UnixMillis(0)).unwrap();

    assert_eq!(world.reader().fence(), Epoch(7));
}

#[test]
fn an_unfinished_delta_is_dropped_whole_at_a_restart_and_progress_is_not() {
    let (_, mut world) = World::on_crash_disk(2);
    world.append().unwrap();
    world.append().unwrap();
    world.sync().unwrap();
    world.commit_progress().unwrap();
    let reached = world.received;
    world.append().unwrap();
    world.sync().unwrap();

    world.restart().unwrap();

    let timeline = world.branch.timeline;
    assert_eq!(world.reader().committed(timeline), Some(reached));
    assert_eq!(world.item().durable(), Some(Position { timeline, lsn: reached }));
    world.append().unwrap();
    world.commit_point().unwrap();
    world.check_contents().unwrap();
}

#[test]
fn a_point_that_is_committed_twice_is_one_point() {
    let (_, mut world) = World::on_crash_disk(3);
    world.commit_point().unwrap();
    let (place, receipt) = (world.place(world.received), world.receipt());

    let again = world.item().commit_point(place, &receipt).unwrap();

    assert_eq!(Some(&again), world.reader().newest_point());
    assert_eq!(world.reader().state().points.len(), 2);
    world.restart().unwrap();
    assert_eq!(world.item().commit_point(place, &receipt).unwrap(), again);
}

#[test]
fn only_a_durable_marker_makes_a_point() {
    let (_, mut world) = World::on_crash_disk(3);
    let change = world.append().unwrap();
    world.append_marker().unwrap();
    let (marker, receipt) = (world.place(world.received), world.receipt());
    let early = world.item().commit_point(marker, &receipt);
    assert!(matches!(early, Err(StoreError::Refused { .. })), "{early:?}");

    world.sync().unwrap();

    let place = world.place(change);
    assert!(world.item().commit_point(place, &receipt).is_err(), "a change is no marker");
    let beyond = world.place(Lsn(world.received.0 + 1));
    assert!(world.item().commit_point(beyond, &receipt).is_err());
    world.item().commit_point(marker, &receipt).unwrap();
}

#[test]
fn a_record_that_is_damaged_or_not_the_next_is_refused_and_changes_nothing() {
    let (_, mut world) = World::on_crash_disk(4);
    world.begin().unwrap();
    let (lsn, change) = world.next_change();
    let record = world.sealer.as_mut().unwrap().seal_change(lsn, &change, Level::Raw);
    for at in [0, 5, 20, 63, 64, record.len() - 1] {
        let mut damaged = record.to_vec();
        damaged[at] ^= 0x10;
        let refused = world.item().append(&damaged);
        assert!(matches!(refused, Err(StoreError::Refused { .. })), "{at}: {refused:?}");
    }
    assert!(world.item().append(&record[..50]).is_err());

    world.item().append(&record).unwrap();

    assert!(world.item().append(&record).is_err(), "twice");
    world.received = lsn;
    world.commit_point().unwrap();
    world.check_contents().unwrap();
}

#[test]
fn a_segment_must_continue_the_log_of_its_own_item() {
    let (_, mut world) = World::on_crash_disk(5);
    let branch = world.branch;
    let due = world.received.next();
    let good = header(world.item.as_ref().unwrap(), &branch, due, 0xfee);
    let mut bad: Vec<SegmentHeader> = vec![good.clone(); 5];
    bad[0].item = ItemId::from_u128(1);
    bad[1].timeline = TimelineId::from_u128(1);
    bad[2].first_lsn = Lsn(due.0 + 1);
    bad[3].first_lsn = Lsn(due.0 - 1);
    bad[4].key_version = 2;

    for header in &bad {
        let refused = world.item().begin_segment(header);
        assert!(matches!(refused, Err(StoreError::Refused { .. })), "{header:?}");
    }
    world.item().begin_segment(&good).unwrap();
    let again = world.item().begin_segment(&good);
    assert!(again.is_err(), "a segment id is used once");
}

#[test]
fn a_timeline_is_opened_once_and_only_from_a_place_that_is_kept() {
    let (_, mut world) = World::on_crash_disk(6);
    let branch = world.branch;
    world.item().open_branch(branch, UnixMillis(0)).unwrap();
    assert_eq!(world.reader().branches().len(), 1);

    let other = Branch { parent: Some(world.place(Lsn(1))), ..branch };
    assert!(world.item().open_branch(other, UnixMillis(0)).is_err(), "same id, other start");
    let timeline = TimelineId::from_u128(5);
    let between = Branch { timeline, parent: Some(world.place(Lsn(2))), epoch: Epoch(0) };
    assert!(world.item().open_branch(between, UnixMillis(0)).is_err(), "no point there");
}

/// The other store of an item takes a whole copy under a timeline whose parent it does not have.
#[test]
fn a_timeline_whose_parent_is_in_another_store_begins_with_zeros() {
    let (_, mut world) = World::on_crash_disk(6);
    let elsewhere = Position { timeline: TimelineId::from_u128(0xe15e), lsn: Lsn(40) };

    world.open_branch(Some(elsewhere)).unwrap();
    assert_eq!(world.append().unwrap(), Lsn(41));
    world.commit_point().unwrap();

    world.check_contents().unwrap();
}

#[test]
fn a_foreign_folder_is_refused_and_left_alone() {
    let disk = CrashDisk::new();
    init(&disk);
    let before = disk.blobs();
    let blobs: Arc<dyn BlobStore> = Arc::new(disk.clone());
    let (other, random) = (Uuid::from_u128(0xbad), SeededRandom::new(1));

    let opened = Store::open_writer(blobs.clone(), other, &Unlock::KeyFile, random.clone());
    let error = opened.err().unwrap();
    assert_eq!(error.code(), Code::STORE_FOREIGN);
    let again = Store::init(&disk, identity(), random.as_ref()).unwrap_err();
    assert_eq!(again.code(), Code::STORE_FOREIGN);

    assert_eq!(disk.blobs(), before);
}

#[test]
fn a_second_writer_is_refused_and_readers_are_not() {
    let (disk, world) = World::on_crash_disk(7);
    let blobs: Arc<dyn BlobStore> = Arc::new(disk);

    let second = open_writer(blobs.clone(), 1).err().unwrap();
    assert_eq!(second.code(), Code::FOLDER_IN_USE);
    let reader = Store::open(blobs.clone(), None, &Unlock::KeyFile, SeededRandom::new(1)).unwrap();
    assert_eq!(reader.items().unwrap(), [ITEM]);
    let item = reader.item_read(ITEM).unwrap();
    View::open(&item, item.newest_point().unwrap().position).unwrap().verify().unwrap();
    assert!(reader.item_open(ITEM).is_err(), "a reader does not write");

    drop(world);
    open_writer(blobs, 1).unwrap();
}

#[test]
fn a_wrong_or_missing_key_is_refused_before_anything_is_read_or_written() {
    let (disk, world) = World::on_crash_disk(8);
    drop(world);
    let other = CrashDisk::new();
    let stranger = Store::init(&other, identity(), SeededRandom::new(99).as_ref()).unwrap();
    let mut blobs = disk.blobs();
    blobs.insert("store.key".into(), other.blobs()["store.key"].clone());
    let wrong = CrashDisk::holding(blobs.clone());
    blobs.remove("store.key");
    let missing = CrashDisk::holding(blobs);

    for disk in [wrong, missing] {
        let error = open_writer(Arc::new(disk.clone()), 1).err().unwrap();
        assert_eq!(error.code(), Code::KEY_MISSING);
        assert_eq!(disk.steps(), 0, "nothing was written");
    }
    let unlock = Unlock::Secret(stranger);
    let opened = Store::open(Arc::new(disk), None, &unlock, SeededRandom::new(1));
    assert_eq!(opened.err().unwrap().code(), Code::KEY_MISSING);
}

#[test]
fn the_recovery_secret_opens_every_item_without_the_key_file() {
    let disk = CrashDisk::new();
    let secret = init(&disk);
    let blobs: Arc<dyn BlobStore> = Arc::new(disk.clone());
    let store = open_writer(blobs, 5).unwrap();
    let keys = store.item_create(VAULT, ITEM, None).unwrap().reader().keys().clone();
    let mut left = disk.blobs();
    left.remove("store.key");

    let printed = secret.to_text().replace('-', "-\n ");
    let unlock = Unlock::Secret(RecipientSecret::parse(&printed).unwrap());
    let blobs = Arc::new(CrashDisk::holding(left));
    let adopted = Store::open(blobs, None, &unlock, SeededRandom::new(6)).unwrap();

    assert_eq!(adopted.item_read(ITEM).unwrap().keys(), &keys);
    let misspelt = secret.to_text().replacen('a', "b", 1);
    assert!(RecipientSecret::parse(&misspelt).is_err());
}

/// Decision 27: the hash key goes along, the data key does not.
#[test]
fn another_store_of_the_item_gets_the_same_hash_key_and_its_own_data_key() {
    let (_, here) = World::on_crash_disk(9);
    let there = CrashDisk::new();
    Store::init(&there, identity(), SeededRandom::new(40).as_ref()).unwrap();
    let store = open_writer(Arc::new(there), 41).unwrap();
    let ours = here.reader().keys().clone();

    let theirs = store.item_create(VAULT, ITEM, Some(ours.hash.clone())).unwrap();
    assert_eq!(theirs.reader().keys().hash, ours.hash);
    assert_ne!(theirs.reader().keys().data, ours.data);
    drop(theirs);

    let other = leeward_wire::keys::HashKey::from_bytes([1; 32]);
    assert!(store.item_create(VAULT, ITEM, Some(other)).is_err());
}

#[test]
fn a_deleted_item_leaves_nothing_and_its_key_goes_first() {
    let (disk, mut world) = World::on_crash_disk(10);
    world.pin_newest().unwrap();
    let store = world.store.take().unwrap();
    assert!(store.item_delete(ITEM).is_err(), "a pin holds it");
    world.reader().unpin(world.pins[0].0).unwrap();
    world.item = None;
    let before = disk.steps();

    store.item_delete(ITEM).unwrap();
    store.item_delete(ITEM).unwrap();

    assert!(disk.blobs().keys().all(|name| name.starts_with("store.")));
    assert!(store.items().unwrap().is_empty());
    let mut random = leeward_replica::storage::Seeded::new(1);
    for cut in before + 3..disk.steps() {
        for state in disk.after_power_cut(cut, 4, &mut random) {
            let keys = format!("items/{ITEM}/keys");
            assert!(!state.blobs().contains_key(&keys), "data outlive their key's deletion");
        }
    }
}

#[test]
fn a_listing_of_twenty_thousand_points_loads_quickly() {
    use leeward_replica::manifest::{Change as Step, ItemState};
    let (_, world) = World::on_crash_disk(11);
    let record = world.reader().newest_point().unwrap().clone();
    let mut state = world.reader().state().clone();
    for number in 0..20_000 {
        let id = PointId::from_u128(1 << 90 | number);
        let point = leeward_replica::PointRecord { id, ..record.clone() };
        state.apply(&Step::PointAdded(point)).unwrap();
    }
    let begun = Instant::now();

    let mut again = ItemState::default();
    for change in state.as_changes() {
        again.apply(&change).unwrap();
    }

    assert_eq!(again, state);
    assert!(begun.elapsed().as_millis() < 1_000, "took {:?}", begun.elapsed());
    assert!(again.apply(&Step::PointAdded(record)).is_err(), "an id is used once");
}

#[test]
fn points_are_listed_newest_first_in_pages_with_their_disks_and_pins() {
    let (_, mut world) = World::on_crash_disk(11);
    for _ in 0..4 {
        world.append().unwrap();
        world.commit_point().unwrap();
    }
    world.pin_newest().unwrap();
    world.add_kept().unwrap();

    let page = world.reader().points(0, 100, Site::Recovery).unwrap();
    assert_eq!(page.total, 6);
    assert!(page.points.windows(2).all(|pair| pair[0].received_at >= pair[1].received_at));
    assert_eq!(page.points[0].origin, PointOrigin::BeforeChange);
    assert_eq!(page.points[1].pinned_by, ["test: because"]);
    assert_eq!(page.points[1].disks, disk_table());
    let part = world.reader().points(2, 3, Site::Recovery).unwrap();
    assert_eq!(part.points, page.points[2..5]);

    let (info, spec) = world.reader().point(page.points[1].id, Site::Primary).unwrap().unwrap();
    assert_eq!((info.held_at, spec), (Site::Primary, Some(machine())));
    assert!(world.reader().point(PointId::from_u128(9), Site::Primary).unwrap().is_none());
}

#[test]
fn kept_work_is_put_once_and_never_changed() {
    let (_, mut world) = World::on_crash_disk(12);
    let place = world.reader().newest_point().unwrap().position;
    let record = kept(PointId::from_u128(7), place, UnixMillis(5));
    world.item().add_kept(&record).unwrap();
    world.item().add_kept(&record).unwrap();

    let mut other = record.clone();
    other.name = "another".into();
    assert!(world.item().add_kept(&other).is_err());

    assert_eq!(world.reader().kept().unwrap(), [record]);
}

fn evidence(booted_at: i64) -> Evidence {
    Evidence {
        booted_at: UnixMillis(booted_at),
        took_ms: 5,
        probe: "console".into(),
        seen: "LEDGER 17 ok".into(),
        picture: None,
        picture_hash: None,
        content_hash: None,
    }
}

#[test]
fn the_newest_test_of_a_point_counts_and_older_ones_do_not_hide_it() {
    let (_, mut world) = World::on_crash_disk(13);
    let point = world.reader().newest_point().unwrap().id;
    let reader = world.reader().clone();
    let shown = || reader.point(point, Site::Recovery).unwrap().unwrap().0.verification;
    assert_eq!(shown(), Verification::Untested);

    let passed = TestOutcome::Passed;
    let put = reader.put_evidence(point, passed, evidence(50), Some(b"a picture")).unwrap();
    reader.put_evidence(point, TestOutcome::Failed, evidence(40), None).unwrap();

    assert_eq!(shown(), Verification::Verified(put.clone()));
    let picture = reader.picture(put.picture.as_ref().unwrap()).unwrap().unwrap();
    assert_eq!(picture, b"a picture");
    assert_eq!(put.picture_hash.unwrap(), blake3::hash(&picture).to_hex().to_string());
    assert_eq!(reader.picture("../../store.key").unwrap(), None);

    reader.put_evidence(point, TestOutcome::Failed, evidence(60), None).unwrap();
    assert!(matches!(shown(), Verification::Failed(_)));
    world.restart().unwrap();
}

#[test]
fn a_view_tells_data_from_holes_and_zeros_written_are_holes() {
    let (_, mut world) = World::on_crash_disk(14);
    world.branch_off().unwrap();
    let branch = world.branch;
    world.begin().unwrap();
    let keys = world.reader().keys().clone();
    let mut lsn = world.received;
    let mut sealer = world.sealer.take().unwrap();
    let mut changes = Vec::new();
    for extent in 0..2 {
        changes.push(whole(world.item.as_ref().unwrap(), 0, extent, 0));
        changes.push(whole(world.item.as_ref().unwrap(), 1, extent, 0));
    }
    let mut partial = whole(world.item.as_ref().unwrap(), 0, 1, 0);
    partial.mask = BlockMask(0b110);
    partial.data = bytes::Bytes::from(vec![7; 8192]);
    let mut bytes = vec![0; 65_536];
    bytes[4096..3 * 4096].fill(7);
    partial.hash = extent_hash(&keys.hash, &bytes);
    changes.push(partial);
    for change in &changes {
        lsn = lsn.next();
        let record = sealer.seal_change(lsn, change, Level::Zstd(1));
        world.item().append(&record).unwrap();
    }
    world.sealer = Some(sealer);
    world.received = lsn;
    world.commit_point().unwrap();
    let place = Position { timeline: branch.timeline, lsn: world.received };
    let view = View::open(world.reader(), place).unwrap();

    let runs = view.status(DiskNumber(0), 0, DISK_BYTES).unwrap();
    let runs: Vec<_> = runs.iter().map(|run| (run.len, run.kind)).collect();
    let (hole, data) = (RunKind::Hole, RunKind::Data);
    assert_eq!(runs, [(65_536 + 4096, hole), (8192, data), (65_536 - 3 * 4096, hole)]);
    let part = view.status(DiskNumber(0), 65_536 + 4096 + 100, 300).unwrap();
    assert_eq!((part.len(), part[0].len, part[0].kind), (1, 300, data));
    let other = view.status(DiskNumber(1), 1, 99).unwrap();
    assert_eq!((other.len(), other[0].len, other[0].kind), (1, 99, hole));
    assert_eq!(view.read(DiskNumber(0), 65_536 + 4095, 3).unwrap()[..], [0, 7, 7]);
    assert_eq!(view.leaf_hash(DiskNumber(0), ExtentNumber(1)).unwrap(), changes[4].hash);
    assert_eq!(view.leaf_hash(DiskNumber(1), ExtentNumber(0)).unwrap(), changes[1].hash);
    assert!(view.read(DiskNumber(0), DISK_BYTES - 1, 2).is_err(), "beyond the end");
    assert!(view.read(DiskNumber(9), 0, 1).is_err(), "no such disk");
}

#[test]
fn the_content_hash_depends_on_content_and_not_on_how_it_is_stored() {
    let hash_of = |extents: &[(u16, u32, u8)], seal: bool| {
        let (_, mut world) = World::on_crash_disk(15);
        let elsewhere = Position { timeline: TimelineId::from_u128(0xe15e), lsn: Lsn(9) };
        world.open_branch(Some(elsewhere)).unwrap();
        for (disk, extent, fill) in extents {
            if world.sealer.is_none() {
                world.begin().unwrap();
            }
            let lsn = world.received.next();
            let change = whole(world.item.as_ref().unwrap(), *disk, *extent, *fill);
            let record = world.sealer.as_mut().unwrap().seal_change(lsn, &change, Level::Raw);
            world.item().append(&record).unwrap();
            world.received = lsn;
            if seal {
                world.seal().unwrap();
            }
        }
        world.commit_point().unwrap();
        let view = View::open(world.reader(), world.place(world.received)).unwrap();
        view.content_hash().unwrap()
    };
    let one = hash_of(&[(0, 0, 1), (1, 1, 2)], false);

    assert_eq!(hash_of(&[(1, 1, 2), (0, 0, 9), (0, 0, 1), (0, 1, 0)], true), one);
    assert_ne!(hash_of(&[(1, 1, 2), (0, 0, 9)], true), one);
}

#[test]
fn a_point_is_served_over_nbd_read_only() {
    let (_, mut world) = World::on_crash_disk(16);
    world.append().unwrap();
    world.commit_point().unwrap();
    let place = world.place(world.received);
    let view = Arc::new(View::open(world.reader(), place).unwrap());
    let export = PointExport::new(view.clone(), DiskNumber(1)).unwrap();
    assert!(PointExport::new(view, DiskNumber(5)).is_err());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();

    runtime.block_on(async {
        assert_eq!((export.size(), export.read_only()), (DISK_BYTES, true));
        let mut served = Vec::new();
        for extent in 0..2 {
            served.extend_from_slice(&export.read(extent * 65_536, 65_536).await.unwrap());
        }
        let expected: Vec<u8> = (0..2)
            .flat_map(|extent| world.model.extent(place, DiskNumber(1), ExtentNumber(extent)))
            .collect();
        assert_eq!(served, expected);
        let status = export.status(0, DISK_BYTES as u32).await.unwrap();
        assert_eq!(status.iter().map(|extent| extent.len).sum::<u64>(), DISK_BYTES);
        let mut at = 0;
        for extent in status {
            let bytes = &expected[at..at + extent.len as usize];
            let zero = bytes.iter().all(|byte| *byte == 0);
            assert!(zero || extent.allocation == Allocation::Data);
            at += extent.len as usize;
        }
        assert!(export.write(0, bytes::Bytes::from_static(b"no")).await.is_err());
    });
}

/// A reader that opened the item earlier sees later commits by galloping, over a checkpoint too.
#[test]
fn a_reader_catches_up_with_many_commits() {
    let (_, mut world) = World::on_crash_disk(17);
    let mut reader = world.reader().clone();
    for epoch in 1..=300 {
        world.item().raise_fence(Epoch(epoch), UnixMillis(0)).unwrap();
        if [1, 2, 5, 100].contains(&epoch) {
            reader.refresh().unwrap();
            assert_eq!(reader.state(), world.reader().state());
        }
    }

    reader.refresh().unwrap();

    assert_eq!(reader.state(), world.reader().state());
}

#[test]
fn the_whole_life_works_on_a_real_folder() {
    let folder = tempfile::tempdir().unwrap();
    let local = Arc::new(LocalStore::open(folder.path().join("store")).unwrap());
    let mut world = World::new(local, 18);
    for _ in 0..3 {
        for _ in 0..5 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
        world.seal().unwrap();
        world.branch_off().unwrap();
    }
    world.pin_newest().unwrap();
    world.add_kept().unwrap();
    world.restart().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.expire().unwrap();

    world.check_contents().unwrap();
    assert!(world.reader().stored_bytes().unwrap() > 4096);
    assert!(world.store.as_ref().unwrap().free_bytes().unwrap().unwrap() > 0);
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.path().join("store").join(name);
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("store.key"), mode("items")), (0o600, 0o700));
    let reading = Arc::new(LocalStore::open_reading(folder.path().join("store")));
    let random = SeededRandom::new(3);
    let store = Store::open(reading, Some(OWNER), &Unlock::KeyFile, random).unwrap();
    let reader = store.item_read(ITEM).unwrap();
    check_place(&reader, &world.model, reader.newest_point().unwrap().position).unwrap();
}

/// Opening a view costs by the records, and 100,000 of them are opened in well under a second.
#[test]
fn a_view_over_a_hundred_thousand_records_opens_quickly() {
    let disk = CrashDisk::new();
    init(&disk);
    let store = open_writer(Arc::new(disk), 19).unwrap();
    let mut item = store.item_create(VAULT, ITEM, None).unwrap();
    let timeline = TimelineId::from_u128(1);
    let branch = Branch { timeline, parent: None, epoch: Epoch(0) };
    item.open_branch(branch, UnixMillis(0)).unwrap();
    let zero = extent_hash(&item.reader().keys().hash, &[]);
    let mut lsn = Lsn(0);
    for segment in 0..10 {
        let header = header(&item, &branch, lsn.next(), segment + 1);
        item.begin_segment(&header).unwrap();
        let mut sealer = Sealer::new(&item.reader().keys().data.clone(), header);
        for index in 0..10_000 {
            lsn = lsn.next();
            let extent = ExtentNumber((index * 7919 + segment as u32) % 60_000);
            let (disk, mask, data) = (DiskNumber(0), BlockMask(1), bytes::Bytes::new());
            let change = Change { disk, extent, mask, data, hash: zero };
            item.append(&sealer.seal_change(lsn, &change, Level::Raw)).unwrap();
        }
        item.sync().unwrap();
    }
    item.commit_progress(timeline, lsn, UnixMillis(0)).unwrap();
    item.seal().unwrap();

    let begun = Instant::now();
    let view = View::open(item.reader(), Position { timeline, lsn }).unwrap();
    let took = begun.elapsed();

    println!("a view over 100,000 records opened in {took:?}");
    assert!(took.as_millis() < 600, "200 ms on a quiet machine, three times that on a busy one");
    assert_eq!(view.leaf_hash(DiskNumber(0), ExtentNumber(0)).unwrap(), zero);
}
