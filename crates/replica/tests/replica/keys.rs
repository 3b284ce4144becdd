//! Data keys that are rotated, recipients that change, items whose keys are destroyed: at every
//! step of each, also when the power is cut there.

use crate::world::{ITEM, OWNER, SeededRandom, VAULT, World, check_contents, init, open_writer};
use leeward_model::Code;
use leeward_replica::{
    NewKeys, RecipientSecret, Store, StoreError, Unlock,
    model::ModelItem,
    storage::{BlobStore, CrashDisk, Seeded},
};
use leeward_wire::segment::SegmentHeader;
use std::{collections::BTreeSet, sync::Arc};

fn open(disk: &CrashDisk, unlock: &Unlock) -> Result<Store, StoreError> {
    Store::open(Arc::new(disk.clone()), Some(OWNER), unlock, SeededRandom::new(3))
}

/// Whether `unlock` opens the store of `disk` and every place of its item reads as in `model`.
fn reads(disk: &CrashDisk, unlock: &Unlock, model: &ModelItem) -> Result<(), String> {
    let store = open(disk, unlock).map_err(|error| error.to_string())?;
    let reader = store.item_read(ITEM).map_err(|error| error.to_string())?;
    check_contents(&reader, model)
}

/// Numbers of the data keys that the item's segments are sealed with.
fn versions(disk: &CrashDisk) -> BTreeSet<u32> {
    let blobs = disk.blobs();
    let segments = blobs.iter().filter(|(name, _)| name.contains("/segments/"));
    segments.map(|(_, bytes)| SegmentHeader::decode(bytes).unwrap().key_version).collect()
}

fn more(world: &mut World) {
    world.lose_session();
    world.item().reader_mut().refresh_keys().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
}

/// F-159: what was sealed with an older data key stays readable, what comes is sealed with the
/// newest, also for a reader that was open all the time.
#[test]
fn a_rotated_data_key_leaves_old_points_readable() {
    let (disk, mut world) = World::on_crash_disk(21);
    let rotator = open(&disk, &Unlock::KeyFile).unwrap();
    let mut before = rotator.item_read(ITEM).unwrap();

    for version in 2..=4 {
        assert_eq!(rotator.item_rotate(ITEM).unwrap(), version);
        more(&mut world);
        before.refresh().unwrap();
        check_contents(&before, &world.model).unwrap();
    }

    assert_eq!(versions(&disk), BTreeSet::from([1, 2, 3, 4]));
    assert_eq!(before.key_versions(), [1, 2, 3, 4]);
    reads(&disk, &Unlock::KeyFile, &world.model).unwrap();
    let audit = before.audit(&|_, _| {}).unwrap();
    assert_eq!(audit.damages, []);
}

/// A session that began before a rotation goes on; one that missed two has to begin anew.
#[test]
fn a_sealer_may_be_one_rotation_late_and_not_two() {
    let (disk, mut world) = World::on_crash_disk(22);
    let rotator = open(&disk, &Unlock::KeyFile).unwrap();

    rotator.item_rotate(ITEM).unwrap();
    world.begin().unwrap();
    assert_eq!(world.sealer.as_ref().unwrap().header().key_version, 1);
    rotator.item_rotate(ITEM).unwrap();
    world.item().reader_mut().refresh_keys().unwrap();
    let mut late = world.sealer.as_ref().unwrap().header().clone();
    late.segment = leeward_model::SegmentId::from_u128(0xface);
    let refused = world.item().begin_segment(&late);

    assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
    more(&mut world);
    assert!(versions(&disk).contains(&3));
}

/// A data key that is lost closes what was sealed with it, is named by an audit, and nothing else.
#[test]
fn without_its_blob_a_data_key_opens_nothing_and_the_others_do() {
    let (disk, mut world) = World::on_crash_disk(23);
    let old = world.reader().newest_point().unwrap().position;
    world.store.as_ref().unwrap().item_rotate(ITEM).unwrap();
    more(&mut world);
    let mut blobs = disk.blobs();
    blobs.retain(|name, _| !name.contains("/keyring/"));
    let disk = CrashDisk::holding(blobs);

    let reader = open(&disk, &Unlock::KeyFile).unwrap().item_read(ITEM).unwrap();
    let new = reader.newest_point().unwrap().position;

    crate::world::check_place(&reader, &world.model, old).unwrap();
    let closed = leeward_replica::View::open(&reader, new).err().unwrap();
    assert_eq!(closed.code(), Code::STORE_DAMAGED);
    let audit = reader.audit(&|_, _| {}).unwrap();
    assert!(audit.damages.iter().any(|damage| damage.why.contains("data key 2")), "{audit:?}");
}

/// A blob of keys counts under its own name only.
#[test]
fn a_wrapped_key_under_another_name_is_refused() {
    let (disk, world) = World::on_crash_disk(24);
    let store = world.store.as_ref().unwrap();
    store.item_rotate(ITEM).unwrap();
    store.item_rotate(ITEM).unwrap();
    let mut blobs = disk.blobs();
    let names: Vec<_> = blobs.keys().filter(|name| name.contains("/keyring/")).cloned().collect();
    let (second, third) = (blobs[&names[0]].clone(), blobs[&names[1]].clone());
    blobs.insert(names[0].clone(), third);
    blobs.insert(names[1].clone(), second);

    let swapped = CrashDisk::holding(blobs);
    let reader = open(&swapped, &Unlock::KeyFile).unwrap().item_read(ITEM).unwrap();

    assert_eq!(reader.key_versions(), [1]);
}

/// What a store is unlocked with before and after a change of recipients.
struct Change {
    disk: CrashDisk,
    model: ModelItem,
    before: [Unlock; 2],
    after: [Unlock; 2],
    /// Steps of the disk at which the change began and ended.
    steps: (usize, usize),
}

fn key_file(disk: &CrashDisk) -> Unlock {
    let blobs = disk.blobs();
    let files: Vec<_> = blobs.keys().filter(|name| name.starts_with("store.key")).collect();
    let newest = files.last().unwrap().as_str();
    let text = String::from_utf8(blobs[newest].clone()).unwrap();
    Unlock::Secret(RecipientSecret::parse(&text).unwrap())
}

/// A store with two data keys whose recipients are changed.
fn change(what: NewKeys) -> Change {
    let disk = CrashDisk::new();
    let recovery = init(&disk);
    let mut world = World::bare(Arc::new(disk.clone()), 31).unwrap();
    world.open_branch(None).unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.store.as_ref().unwrap().item_rotate(ITEM).unwrap();
    more(&mut world);
    let model = world.model.clone();
    drop(world);
    let disk = CrashDisk::holding(disk.blobs());
    let before = [key_file(&disk), Unlock::Secret(recovery.clone())];
    let mut store = open_writer(Arc::new(disk.clone()), 32).unwrap();
    let begun = disk.steps();

    let rekey = store.rekey_begin(what).unwrap();
    let fresh = rekey.recovery().cloned().unwrap_or(recovery);
    let report = store.rekey_finish(rekey).unwrap();

    assert_eq!((report.key_generation, report.items, report.keys), (2, 1, 2));
    let (steps, after) = ((begun, disk.steps()), [key_file(&disk), Unlock::Secret(fresh)]);
    Change { disk, model, before, after, steps }
}

fn public(unlock: &Unlock) -> String {
    match unlock {
        Unlock::Secret(secret) => secret.fingerprint(),
        Unlock::KeyFile => unreachable!("secrets only"),
    }
}

/// F-159: new recipients open everything, those that were replaced nothing.
#[test]
fn changed_recipients_open_everything_and_former_ones_nothing() {
    let all = [NewKeys::Recovery, NewKeys::AnotherRecovery, NewKeys::KeyFile, NewKeys::Both];
    for what in all {
        let Change { disk, model, before, after, .. } = change(what);
        let kept: Vec<String> = open(&disk, &Unlock::KeyFile).unwrap().recipients();

        for unlock in after.iter().chain([&Unlock::KeyFile]) {
            reads(&disk, unlock, &model).unwrap();
        }
        for unlock in &before {
            let opened = reads(&disk, unlock, &model).is_ok();
            assert_eq!(opened, kept.contains(&public(unlock)), "{what:?}");
        }
        let replaced = match what {
            NewKeys::Recovery | NewKeys::KeyFile => 1,
            NewKeys::AnotherRecovery => 0,
            NewKeys::Both => 2,
        };
        let gone = before.iter().filter(|unlock| !kept.contains(&public(unlock)));
        assert_eq!(gone.count(), replaced, "{what:?}");
    }
}

/// Not even the blobs that were there before help a former recipient: the identity names it no
/// more, and what was wrapped for it is deleted.
#[test]
fn nothing_in_the_store_is_wrapped_for_a_former_recipient() {
    let Change { disk, before, .. } = change(NewKeys::Both);
    for unlock in before {
        let Unlock::Secret(secret) = unlock else { unreachable!("secrets only") };
        for (name, bytes) in disk.blobs() {
            let owner = leeward_replica::KeyOwner {
                store: crate::world::identity().store,
                vault: VAULT,
                item: ITEM,
            };
            let opened = leeward_replica::ItemKeys::unwrap_with(&bytes, &owner, &secret);
            assert!(opened.is_err(), "{name} opens");
        }
    }
}

/// E3 for a change of recipients: cut anywhere, all old secrets open everything or all new ones
/// do, and the next writer can go on and change them again.
#[test]
fn a_change_of_recipients_survives_a_power_cut_at_every_step() {
    let (mut states, mut old, mut new) = (0, 0, 0);
    for what in [NewKeys::Recovery, NewKeys::AnotherRecovery, NewKeys::KeyFile, NewKeys::Both] {
        let Change { disk, model, before, after, steps } = change(what);
        for cut in steps.0..=steps.1 {
            for state in disk.after_power_cut(cut, 6, &mut Seeded::new(cut as u64)) {
                states += 1;
                let at = format!("{what:?} cut at {cut}");
                let opens = |unlocks: &[Unlock]| {
                    unlocks.iter().all(|unlock| reads(&state, unlock, &model).is_ok())
                };
                let (with_old, with_new) = (opens(&before), opens(&after));
                assert!(with_old || with_new, "{at}: neither opens");
                assert!(cut < steps.1 || with_new, "{at}: it was finished");
                old += u32::from(with_old);
                new += u32::from(with_new);
                reads(&state, &Unlock::KeyFile, &model).unwrap_or_else(|why| panic!("{at}: {why}"));

                let mut store = open_writer(Arc::new(state.clone()), 40).unwrap();
                let again = store.rekey_begin(NewKeys::Both).unwrap();
                let secret = Unlock::Secret(again.recovery().unwrap().clone());
                store.rekey_finish(again).unwrap();
                reads(&state, &Unlock::KeyFile, &model).unwrap();
                reads(&state, &secret, &model).unwrap();
                let files = state.blobs();
                let files = files.keys().filter(|name| name.starts_with("store.key")).count();
                assert_eq!(files, 1, "{at}: key files are left");
            }
        }
    }
    println!("{states} crash states, the old secrets open {old}, the new ones {new}");
    assert!(old > 20 && new > 20, "the cuts lie on one side: {old}, {new}");
}

/// A process that ends between any two calls, without a power cut, and one that comes after it.
#[test]
fn a_change_of_recipients_that_was_only_prepared_changes_nothing() {
    let (disk, world) = World::on_crash_disk(33);
    let model = world.model.clone();
    drop(world);
    let store = open_writer(Arc::new(disk.clone()), 34).unwrap();
    drop(store.rekey_begin(NewKeys::Both).unwrap());
    drop(store);

    reads(&disk, &Unlock::KeyFile, &model).unwrap();
    let store = open_writer(Arc::new(disk.clone()), 35).unwrap();
    assert_eq!(store.key_generation(), 1);
    let files: Vec<_> = disk.blobs().into_keys().filter(|n| n.starts_with("store.key")).collect();
    assert_eq!(files, ["store.key"], "the next writer cleans up");
}

#[test]
fn keys_are_changed_by_one_process_at_a_time() {
    let (disk, mut world) = World::on_crash_disk(36);
    let rotator = open(&disk, &Unlock::KeyFile).unwrap();
    let refused = rotator.rekey_begin(NewKeys::Both).err().unwrap();
    assert!(matches!(refused, StoreError::Refused { .. }), "it holds no lock");
    world.item = None;
    let mut store = world.store.take().unwrap();

    let rekey = store.rekey_begin(NewKeys::Both).unwrap();
    assert_eq!(rotator.item_rotate(ITEM).unwrap_err().code(), Code::FOLDER_IN_USE);
    store.rekey_finish(rekey).unwrap();
    let stale = rotator.item_rotate(ITEM).unwrap_err();

    assert!(matches!(stale, StoreError::Refused { .. }), "{stale}");
    assert_eq!(open(&disk, &Unlock::KeyFile).unwrap().item_rotate(ITEM).unwrap(), 2);
    assert_eq!(
        store.item_create(VAULT, crate::keys::other(), None).unwrap().reader().keys().version,
        1
    );
}

fn other() -> leeward_model::ItemId {
    leeward_model::ItemId::from_u128(0x18)
}

/// F-158, E9: with a copy of every other blob and both secrets, a destroyed item stays closed.
#[test]
fn a_destroyed_item_cannot_be_opened_from_a_copy_of_its_segments() {
    let Change { disk, model, after, .. } = change(NewKeys::Recovery);
    let copy = disk.blobs();
    let store = open_writer(Arc::new(disk.clone()), 51).unwrap();
    let begun = disk.steps();

    let destroyed = store.item_destroy(ITEM).unwrap();

    assert_eq!(destroyed.keys, 2);
    assert!(destroyed.blobs > 3 && destroyed.bytes > 8192, "{destroyed:?}");
    let mut left = disk.blobs();
    let wrapped = |name: &str| name.ends_with("/keys") || name.contains("/keyring/");
    for (name, bytes) in &copy {
        if !wrapped(name) {
            left.entry(name.clone()).or_insert_with(|| bytes.clone());
        }
    }
    let restored = CrashDisk::holding(left);
    for unlock in after.iter().chain([&Unlock::KeyFile]) {
        let opened = open(&restored, unlock).unwrap().item_read(ITEM).err().unwrap();
        assert!(matches!(opened, StoreError::NoItem { .. }), "{opened}");
        // Another item's keys, and new ones of this item, do not help either.
        let writer = open_writer(Arc::new(restored.clone()), 52).unwrap();
        drop(writer.item_create(VAULT, other(), None).unwrap());
        assert!(reads(&restored, unlock, &model).is_err());
    }
    // While any key is there, all data are: the keys go first.
    for cut in begun..=disk.steps() {
        for state in disk.after_power_cut(cut, 6, &mut Seeded::new(cut as u64)) {
            let blobs = state.blobs();
            let keys = blobs.keys().any(|name| wrapped(name));
            let whole = copy.keys().all(|name| wrapped(name) || blobs.contains_key(name));
            assert!(!keys || whole, "cut at {cut}: data went before their keys");
            let store = open_writer(Arc::new(state.clone()), 53).unwrap();
            store.item_destroy(ITEM).unwrap();
            assert!(state.list("items").unwrap().is_empty(), "cut at {cut}");
        }
    }
}

/// The forms of `keyring/V-G` and `identity/G` stay as they are. `UPDATE_GOLDEN=1` writes the files
/// anew: only for a new version.
#[test]
fn a_store_whose_keys_changed_reads_as_on_the_day_it_was_written() {
    let Change { disk, model, .. } = change(NewKeys::Both);
    let made = disk.blobs();
    let folder =
        std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/store-keys-v1"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for (name, bytes) in &made {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    let mut golden = std::collections::BTreeMap::new();
    crate::golden::load(folder, "", &mut golden);

    let golden_disk = CrashDisk::holding(golden.clone());

    reads(&golden_disk, &Unlock::KeyFile, &model).unwrap();
    // Segments may differ with the version of the compressor; everything else may not.
    for (name, bytes) in made.iter().filter(|(name, _)| !name.contains("/segments/")) {
        assert_eq!(golden.get(name), Some(bytes), "{name} is written differently");
    }
    assert_eq!(golden.len(), made.len());
}
