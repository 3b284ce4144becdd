//! Stores of every format version stay readable, and today's code writes version 1 byte by byte as
//! it always did. `UPDATE_GOLDEN=store-vN` writes files anew: only for a new version.

use crate::world::{EAGER, OWNER, SeededRandom, World, check_contents};
use leeward_model::UnixMillis;
use leeward_replica::{
    Store, Unlock,
    manifest::{Change, ItemState, Manifest, ManifestKind},
    model::ModelItem,
    storage::CrashDisk,
};
use leeward_wire::keys::{DataKey, manifest_mac_key};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

fn folder(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

/// The store that the golden files hold.
fn make() -> (BTreeMap<String, Vec<u8>>, ModelItem) {
    let (disk, mut world) = World::on_crash_disk(2026);
    world.append().unwrap();
    world.commit_point().unwrap();
    world.seal().unwrap();
    world.raise_fence().unwrap();
    world.branch_off().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.add_kept().unwrap();
    world.pin_newest().unwrap();
    world.expire().unwrap();
    let model = world.model.clone();
    drop(world);
    (disk.blobs(), model)
}

pub fn load(folder: &Path, prefix: &str, blobs: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            load(&entry.path(), &format!("{name}/"), blobs);
        } else {
            blobs.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
}

/// A store with what came later: layers, a segment that was written anew, an unpinned point.
fn make_layered() -> (BTreeMap<String, Vec<u8>>, ModelItem) {
    let (disk, mut world) = World::on_crash_disk(2027);
    world.set_upkeep(leeward_replica::Upkeep { rewrite_below_percent: 0, ..EAGER });
    for _ in 0..4 {
        for _ in 0..30 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
        world.pin_newest().unwrap();
        world.index().unwrap();
    }
    let (pin, _) = world.pins.pop().unwrap();
    world.reader().take_off_pin(pin, "person ada", "read", UnixMillis(9)).unwrap();
    world.set_upkeep(EAGER);
    let now = world.tick();
    world.item().collect(now).unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.check_contents().unwrap();
    let segments = world.reader().state().segments.values();
    assert!(segments.filter(|range| !range.is_whole()).count() > 0, "nothing was written anew");
    let model = world.model.clone();
    drop(world);
    (disk.blobs(), model)
}

#[test]
fn a_store_of_version_1_reads_as_on_the_day_it_was_written() {
    check_golden("store-v1", make());
}

#[test]
fn a_store_with_layers_reads_as_on_the_day_it_was_written() {
    check_golden("store-v2", make_layered());
}

fn check_golden(name: &str, made: (BTreeMap<String, Vec<u8>>, ModelItem)) {
    let (made, model) = made;
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|which| which == name) {
        for (blob, bytes) in &made {
            let path = folder(name).join(blob);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    let mut golden = BTreeMap::new();
    load(&folder(name), "", &mut golden);

    let disk = Arc::new(CrashDisk::holding(golden.clone()));
    let random = SeededRandom::new(1);
    let store = Store::open(disk, Some(OWNER), &Unlock::KeyFile, random).unwrap();
    let reader = store.item_read(crate::world::ITEM).unwrap();

    assert_eq!(reader.state().points.len(), model.points.len());
    check_contents(&reader, &model).unwrap();
    assert_eq!(reader.audit(&|_, _| ()).unwrap().damages, []);
    // Segments, and so what points into them, may differ with the version of the compressor;
    // everything else may not.
    let depends = |name: &str| name.contains("/segments/") || name.contains("/layers/");
    for (name, bytes) in made.iter().filter(|(name, _)| !depends(name)) {
        assert_eq!(golden.get(name), Some(bytes), "{name} is written differently");
    }
    assert_eq!(golden.len(), made.len());
}

/// A version that this program does not know is refused by name, before any of it is believed.
#[test]
fn a_manifest_of_a_later_version_is_refused() {
    let (_, world) = World::on_crash_disk(3);
    let key = manifest_mac_key(&DataKey::from_bytes([1; 32]));
    let manifest = Manifest {
        kind: ManifestKind::Checkpoint,
        number: 256,
        vault: crate::world::VAULT,
        item: crate::world::ITEM,
        generation: 3,
        writer: [4; 16],
        predecessor: [5; 32],
        stamped_at: UnixMillis(-1),
        changes: world.reader().state().as_changes(),
    };
    let with_version = |version: u8| {
        let mut bytes = manifest.encode(&key);
        bytes.truncate(bytes.len() - 32);
        bytes[4] = version;
        let tag = leeward_wire::keys::mac(&key, &bytes);
        bytes.extend_from_slice(&tag);
        Manifest::decode(&bytes, &key)
    };

    assert!(with_version(1).is_ok() && with_version(2).is_ok());
    assert!(with_version(3).unwrap_err().contains("version 3"));
}

/// The offsets of `docs/formats/store.md`.
#[test]
fn a_manifest_has_its_fields_where_the_document_says() {
    let (blobs, _) = make();
    let (name, bytes) = blobs.iter().rfind(|(name, _)| name.contains("/manifest/")).unwrap();
    let number: u64 = name.rsplit('/').next().unwrap().parse().unwrap();

    assert_eq!(bytes[0..4], *b"LWM1");
    assert_eq!(bytes[4..8], [1, 0, 0, 0]);
    assert_eq!(bytes[8..16], number.to_le_bytes());
    assert_eq!(bytes[16..32], crate::world::VAULT.to_bytes());
    assert_eq!(bytes[32..48], crate::world::ITEM.to_bytes());
    assert_eq!(bytes[48..56], 1_u64.to_le_bytes());
    let body = u32::from_le_bytes(bytes[116..120].try_into().unwrap());
    assert_eq!(bytes.len(), 120 + body as usize + 32);
}

proptest! {
    #[test]
    fn no_bytes_make_the_manifest_decoder_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        cut in 0..400_usize,
    ) {
        let key = manifest_mac_key(&DataKey::from_bytes([1; 32]));
        prop_assert!(Manifest::decode(&bytes, &key).is_err());
        // Bytes with a right MAC reach the fields.
        let mut signed = b"LWM1\x01\x00\x00\x00".to_vec();
        signed.extend_from_slice(&bytes);
        signed.truncate(cut);
        let tag = leeward_wire::keys::mac(&key, &signed);
        signed.extend_from_slice(&tag);
        let _ = Manifest::decode(&signed, &key);
    }
}

#[test]
fn a_checkpoint_makes_the_same_state_as_all_deltas_before_it() {
    let (disk, mut world) = World::on_crash_disk(3);
    world.append().unwrap();
    world.commit_point().unwrap();
    world.branch_off().unwrap();
    world.commit_point().unwrap();
    world.raise_fence().unwrap();
    world.item().expire(UnixMillis(i64::MAX), &crate::world::retention()).unwrap();
    let state = world.reader().state().clone();
    drop(disk);

    let mut again = ItemState::default();
    for change in state.as_changes() {
        again.apply(&change).unwrap();
    }

    assert_eq!(again, state);
    let key = manifest_mac_key(&DataKey::from_bytes([1; 32]));
    let manifest = Manifest {
        kind: ManifestKind::Checkpoint,
        number: 256,
        vault: crate::world::VAULT,
        item: crate::world::ITEM,
        generation: 3,
        writer: [4; 16],
        predecessor: [5; 32],
        stamped_at: UnixMillis(-1),
        changes: state.as_changes(),
    };
    let decoded = Manifest::decode(&manifest.encode(&key), &key).unwrap();
    assert_eq!(decoded, manifest);
    let fence = |change: &Change| matches!(change, Change::FenceRaised(_));
    assert!(decoded.changes.iter().any(fence));
}
