//! Flipped bits and swapped blobs: detected or harmless, never served.

use crate::world::{ITEM, OWNER, SeededRandom, World, check_contents, open_writer, seed};
use leeward_model::{Code, ItemId, PointId, Site};
use leeward_replica::{
    Audit, Damage, Store, StoreError, Unlock,
    model::ModelItem,
    storage::{BlobStore as _, CrashDisk, Put, Seeded},
};
use leeward_wire::{record::RECORD_HEADER_BYTES, segment::ScannedRecord};
use std::{collections::BTreeMap, sync::Arc};

/// A small store with sealed and open segments, two timelines, kept work, a pin and evidence.
fn small_store() -> (BTreeMap<String, Vec<u8>>, ModelItem) {
    let (disk, mut world) = World::on_crash_disk(31);
    world.append().unwrap();
    world.seal().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.branch_off().unwrap();
    world.append().unwrap();
    world.commit_point().unwrap();
    world.add_kept().unwrap();
    world.pin_newest().unwrap();
    world.check_contents().unwrap();
    let model = world.model.clone();
    drop(world);
    (disk.blobs(), model)
}

/// Reads everything there is. `Ok` only when all of it is as the model says.
fn read_all(disk: CrashDisk, model: &ModelItem) -> Result<(), StoreError> {
    let random = SeededRandom::new(1);
    let store = Store::open(Arc::new(disk), Some(OWNER), &Unlock::KeyFile, random)?;
    let reader = store.item_read(ITEM)?;
    let page = reader.points(0, 100, Site::Recovery)?;
    let listed = model.points.len() + model.kept.len();
    assert_eq!(page.total as usize, listed, "a point vanished or came without an error");
    assert_eq!(reader.pins()?.len(), 1);
    let mut places: Vec<_> = page.points.iter().map(|point| point.position).collect();
    places.sort_by_key(|place| (place.timeline, place.lsn));
    places.dedup();
    for place in places {
        leeward_replica::View::open(&reader, place)?.verify()?;
    }
    check_contents(&reader, model).map_err(|why| StoreError::Stale { why })
}

/// Whether the flip was detected. Panics when wrong bytes were served.
fn flip_is_detected(
    blobs: &BTreeMap<String, Vec<u8>>,
    model: &ModelItem,
    name: &str,
    bit: usize,
) -> bool {
    let disk = CrashDisk::holding(blobs.clone());
    disk.flip(name, bit);
    match read_all(disk, model) {
        Ok(()) => false,
        Err(StoreError::Stale { why }) => panic!("bit {bit} of {name}: served: {why}"),
        Err(error) => {
            let known = [Code::STORE_DAMAGED, Code::KEY_MISSING, Code::STORE_FOREIGN];
            assert!(known.contains(&error.code()), "bit {bit} of {name}: {error}");
            true
        }
    }
}

/// E9, I9.
#[test]
fn a_flipped_bit_anywhere_is_detected_or_harmless_and_never_served() {
    let (blobs, model) = small_store();
    let mut random = Seeded::new(seed("bit flips"));
    let (mut flips, mut detected) = (0, 0);
    for (name, bytes) in &blobs {
        let bits = bytes.len() * 8;
        let segment = name.contains("/segments/");
        // Of a segment: every bit of the header's fields and its checksum, of the first record's
        // header, and of the footer's end; of the rest a sample. Of anything else every bit.
        let all: Vec<usize> = if segment {
            let dense = (0..104 * 8).step_by(3).chain(4092 * 8..(4096 + 64) * 8);
            let footer = bits.saturating_sub(64 * 8)..bits;
            let sample = (0..150).map(|_| random.below(bits as u64) as usize);
            dense.chain(footer).chain(sample).filter(|bit| *bit < bits).collect()
        } else {
            (0..bits).collect()
        };
        for bit in all {
            flips += 1;
            let found = flip_is_detected(&blobs, &model, name, bit);
            detected += u64::from(found);
            let manifest = name.contains("/manifest/") || name.contains("/pins/");
            assert!(found || !(manifest || name.contains("/kept/")), "bit {bit} of {name}");
        }
    }
    println!("PROOF E9 flipped_bits={flips} detected={detected} served=0");
    assert!(flips > 5_000 && detected > flips / 2, "{detected} of {flips}");
}

#[test]
fn blobs_that_are_swapped_or_renamed_are_refused() {
    let (blobs, model) = small_store();
    let of =
        |part: &str| -> Vec<&String> { blobs.keys().filter(|name| name.contains(part)).collect() };
    for part in ["/manifest/", "/segments/"] {
        let names = of(part);
        for pair in names.windows(2) {
            let mut swapped = blobs.clone();
            swapped.insert(pair[0].clone(), blobs[pair[1]].clone());
            swapped.insert(pair[1].clone(), blobs[pair[0]].clone());

            let error = read_all(CrashDisk::holding(swapped), &model).unwrap_err();

            assert_eq!(error.code(), Code::STORE_DAMAGED, "{part}: {error}");
        }
    }
    let note = of("/kept/")[0];
    let mut renamed = blobs.clone();
    let bytes = renamed.remove(note).unwrap();
    renamed.insert(note.replace("/kept/", "/kept/0"), bytes);
    let error = read_all(CrashDisk::holding(renamed), &model).unwrap_err();
    assert_eq!(error.code(), Code::STORE_DAMAGED, "{error}");
}

#[test]
fn the_keys_of_another_item_are_refused() {
    let (disk, world) = World::on_crash_disk(8);
    let other = ItemId::from_u128(99);
    let store = world.store.as_ref().unwrap();
    drop(store.item_create(crate::world::VAULT, other, None).unwrap());
    let mut blobs = disk.blobs();
    let theirs = blobs[&format!("items/{other}/keys")].clone();
    blobs.insert(format!("items/{ITEM}/keys"), theirs);

    let store = open_writer(Arc::new(CrashDisk::holding(blobs)), 1).unwrap();

    assert!(matches!(store.item_read(ITEM), Err(StoreError::Key { .. })));
}

#[test]
fn a_manifest_of_somebody_else_is_a_conflict_and_not_overwritten() {
    let (disk, mut world) = World::on_crash_disk(8);
    let newest = disk.list(&format!("items/{ITEM}/manifest")).unwrap().len() as u64;
    let next = format!("items/{ITEM}/manifest/{:016}", newest + 1);
    assert_eq!(disk.put_new(&next, b"theirs").unwrap(), Put::Created);

    let refused = world.raise_fence();

    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    assert_eq!(disk.blobs()[&next], b"theirs");
    assert!(matches!(world.sync(), Err(StoreError::Stale { .. })));
}

/// I9: authentic records that do not make what the source read are refused all the same.
#[test]
fn an_extent_that_is_not_what_the_source_hashed_is_refused() {
    let (_, mut world) = World::on_crash_disk(8);
    world.begin().unwrap();
    let (lsn, mut change) = world.next_change();
    change.hash.0[7] ^= 1;
    let level = leeward_wire::seal::Level::Raw;
    let record = world.sealer.as_mut().unwrap().seal_change(lsn, &change, level);
    world.item().append(&record).unwrap();
    world.received = lsn;
    world.commit_point().unwrap();
    let place = world.place(world.received);
    let view = leeward_replica::View::open(world.reader(), place).unwrap();

    let error = view.read(change.disk, change.extent.offset(), 1).unwrap_err();

    assert_eq!(error.code(), Code::STORE_DAMAGED);
    assert!(error.to_string().contains("/segments/"), "{error} names no segment");
    assert_eq!(view.verify().unwrap_err().code(), Code::STORE_DAMAGED);
}

/// What an audit says of the item, or that it cannot even be opened.
fn audit(disk: CrashDisk) -> Result<Audit, StoreError> {
    let store = Store::open(Arc::new(disk), Some(OWNER), &Unlock::KeyFile, SeededRandom::new(1))?;
    store.item_read(ITEM)?.audit(&|_, _| ())
}

#[test]
fn an_audit_of_a_good_store_finds_nothing_and_has_read_everything() {
    let (blobs, model) = small_store();

    let audit = audit(CrashDisk::holding(blobs.clone())).unwrap();

    assert_eq!(audit.damages, []);
    let of = |part: &str| blobs.keys().filter(|name| name.contains(part)).count() as u64;
    assert_eq!(audit.manifests, of("/manifest/"));
    assert_eq!(audit.segments, of("/segments/"));
    assert_eq!(audit.notes, of("/pins/") + of("/kept/") + of("/evidence/"));
    assert_eq!(audit.points as usize, model.points.len() + model.kept.len());
    assert!(audit.records > 0 && audit.extents > 0, "{audit:?}");
}

/// E9: the audit names every bit that is wrong, at its place, and the points that need it.
#[test]
fn an_audit_names_the_flipped_byte_and_the_points_that_it_touches() {
    let (blobs, model) = small_store();
    let mut random = Seeded::new(seed("audited flips"));
    let (mut flips, mut named) = (0, 0);
    for (name, bytes) in blobs.iter().filter(|(name, _)| name.starts_with("items/")) {
        // The entry of the recovery recipient can only be proved with its secret.
        let bits = if name.ends_with("/keys") { (56 + 144) * 8 } else { bytes.len() * 8 };
        for _ in 0..120 {
            let bit = random.below(bits as u64) as usize;
            let disk = CrashDisk::holding(blobs.clone());
            disk.flip(name, bit);
            flips += 1;
            let audit = match audit(disk.clone()) {
                Ok(audit) => audit,
                // Without its keys and its newest manifests there is no item to be audited.
                Err(error) => {
                    let needed = name.ends_with("/keys") || name.contains("/manifest/");
                    assert!(needed, "bit {bit} of {name}: {error}");
                    continue;
                }
            };
            assert!(!audit.damages.is_empty(), "bit {bit} of {name} is not found");
            let holds = |damage: &&Damage| {
                let at = bit as u64 / 8;
                damage.blob == *name
                    && damage.bytes.is_none_or(|(from, len)| (from..from + len).contains(&at))
            };
            let damage = audit.damages.iter().find(holds);
            let damage = damage.unwrap_or_else(|| panic!("bit {bit} of {name}: {audit:?}"));
            named += 1;
            let broken = broken_points(disk, &model);
            let missing: Vec<_> = broken.iter().filter(|id| !damage.points.contains(id)).collect();
            assert!(missing.is_empty(), "bit {bit} of {name}: {missing:?} in {damage:?}");
        }
    }
    println!("{flips} bits flipped, {named} named with their byte, the others at opening");
}

/// The listed points whose disks cannot be read whole.
fn broken_points(disk: CrashDisk, model: &ModelItem) -> Vec<PointId> {
    let random = SeededRandom::new(1);
    let store = Store::open(Arc::new(disk), Some(OWNER), &Unlock::KeyFile, random).unwrap();
    let reader = store.item_read(ITEM).unwrap();
    let good = |place| leeward_replica::View::open(&reader, place).and_then(|view| view.verify());
    let points = reader.state().points.clone();
    assert_eq!(points.len(), model.points.len());
    points.iter().filter(|point| good(point.position).is_err()).map(|point| point.id).collect()
}

/// Where the payloads of the committed records lie: the blob, the first byte, the length.
fn payloads(blobs: &BTreeMap<String, Vec<u8>>) -> Vec<(String, usize, usize)> {
    let segments = blobs.iter().filter(|(name, _)| name.contains("/segments/"));
    let places = segments.flat_map(|(name, bytes)| {
        let records = leeward_wire::segment::scan(bytes).unwrap();
        let place = |record: ScannedRecord<'_>| {
            let begin = record.offset as usize + RECORD_HEADER_BYTES;
            (name.clone(), begin, record.header.record_len() - RECORD_HEADER_BYTES)
        };
        records.map(place).collect::<Vec<_>>()
    });
    places.collect()
}

/// E9, I9: 10,000 bits of payload. A record that any point needs is refused whichever bit of it is
/// wrong; one that no point needs is never read.
#[test]
fn no_flipped_bit_of_a_payload_is_ever_served() {
    const FLIPS: u64 = 10_000;
    let (blobs, model) = small_store();
    let mut random = Seeded::new(seed("flipped payloads"));
    let disk = CrashDisk::holding(blobs.clone());
    let payloads = payloads(&blobs);
    // Of every record: flips that were refused, and that changed nothing.
    let mut found = vec![(0_u64, 0_u64); payloads.len()];
    for _ in 0..FLIPS {
        let at = random.below(payloads.len() as u64) as usize;
        let (name, begin, len) = &payloads[at];
        let bit = begin * 8 + random.below(*len as u64 * 8) as usize;
        disk.flip(name, bit);
        match read_all(disk.clone(), &model) {
            Ok(()) => found[at].1 += 1,
            Err(StoreError::Stale { why }) if why.contains("wrong bytes") => {
                panic!("bit {bit} of {name}: served: {why}")
            }
            Err(_) => found[at].0 += 1,
        }
        disk.flip(name, bit);
    }
    read_all(disk, &model).unwrap();
    let refused: u64 = found.iter().map(|(refused, _)| refused).sum();
    println!("PROOF E9 payload_flips={FLIPS} refused={refused} served=0");
    assert!(found.iter().all(|(refused, harmless)| *refused == 0 || *harmless == 0), "{found:?}");
    assert!(refused > FLIPS / 2, "{found:?}");
}

/// E9: a blob that is gone, or as it was at an earlier time, is missed.
#[test]
fn blobs_that_are_lost_or_rolled_back_are_missed() {
    let (blobs, model) = small_store();
    let newest = blobs.keys().rfind(|name| name.contains("/manifest/")).unwrap();
    // What the last commit added is not known to have been, and neither are notes: they are in no
    // manifest. Whoever replicates compares its own place with the store's.
    let unknown = |name: &str| {
        name == newest || ["/pins/", "/kept/", "/evidence/"].iter().any(|part| name.contains(part))
    };
    let mut missed = 0;
    for (name, bytes) in blobs.iter().filter(|(name, _)| !unknown(name)) {
        let mut earlier = vec![None];
        // A segment grows: these are the lengths that it had when its records came.
        if name.contains("/segments/") {
            let records = leeward_wire::segment::scan(bytes).unwrap();
            earlier.extend(records.map(|record| Some(record.offset as usize)));
        }
        for length in earlier {
            let mut rolled = blobs.clone();
            match length {
                Some(length) => rolled.get_mut(name).unwrap().truncate(length),
                None => drop(rolled.remove(name)),
            }
            match read_all(CrashDisk::holding(rolled), &model) {
                Ok(()) => panic!("{name} at {length:?} is not missed"),
                Err(StoreError::Stale { why }) => panic!("{name} at {length:?}: served: {why}"),
                Err(_) => missed += 1,
            }
        }
    }
    println!("PROOF E9 lost_or_rolled_back={missed} missed={missed}");
    assert!(missed > 10, "{missed}");
}
