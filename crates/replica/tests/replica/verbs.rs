//! E4 for every verb of the store tool that writes, and for those that only read: the Nth call to
//! the storage fails, for N = 1, 2, 3 … until the verb runs without a fault. Nothing panics, no
//! wrong byte is served, and afterwards the store opens, verifies, and the verb can be done again.

use crate::{
    world::{EAGER, ITEM, SeededRandom, check_contents, init, open_writer, retention_of},
    worn::{LATER, exported, footer_damaged, reader, sparse, worn},
};
use leeward_model::DiskNumber;
use leeward_replica::{
    KitTest, NewKeys, RecipientSecret, Served, ServedAs, ServingProcess, Store, StoreError, Unlock,
    model::ModelItem,
    storage::{BlobStore, CrashDisk, Fault, FaultyStore, Seeded},
};
use std::sync::Arc;
use uuid::Uuid;

type Blobs = Arc<dyn BlobStore>;
/// What a verb does with a store; the number is what its ids are drawn from.
type Verb<'a> = &'a dyn Fn(Blobs, u64) -> Result<(), StoreError>;

const FAULTS: [Fault; 5] =
    [Fault::Error, Fault::NoSpace, Fault::ShortWrite, Fault::Interrupted, Fault::LostReply];

fn open_reader(blobs: Blobs, seed: u64) -> Result<Store, StoreError> {
    Store::open(blobs, None, &Unlock::KeyFile, SeededRandom::new(seed))
}

/// Lets points go, and frees what only they needed: segments are written anew, layers merged.
fn prune(blobs: Blobs, seed: u64) -> Result<(), StoreError> {
    let store = open_writer(blobs, seed)?;
    let mut item = store.item_open(ITEM)?;
    item.set_upkeep(EAGER);
    item.merge_layers(LATER)?;
    item.expire(LATER, &retention_of(0))?;
    item.collect(LATER)?;
    Ok(())
}

/// Layers alone.
fn index(blobs: Blobs, seed: u64) -> Result<(), StoreError> {
    let store = open_writer(blobs, seed)?;
    let mut item = store.item_open(ITEM)?;
    let layers = item.layers();
    item.drop_layers(&layers, LATER)?;
    item.set_upkeep(EAGER);
    item.merge_layers(LATER)?;
    Ok(())
}

fn rotate(blobs: Blobs, seed: u64) -> Result<(), StoreError> {
    open_reader(blobs, seed)?.item_rotate(ITEM).map(drop)
}

fn rekey(blobs: Blobs, seed: u64) -> Result<(), StoreError> {
    let mut store = open_writer(blobs, seed)?;
    for what in [NewKeys::Both, NewKeys::AnotherRecovery] {
        let begun = store.rekey_begin(what)?;
        store.rekey_finish(begun)?;
    }
    Ok(())
}

fn repair(blobs: Blobs, seed: u64) -> Result<(), StoreError> {
    let store = open_writer(blobs, seed)?;
    let mut item = store.item_open(ITEM)?;
    let audit = item.reader().audit(&|_, _| {})?;
    let plan = item.reader().repair_plan(&audit, &|_| None)?;
    for damaged in &plan.segments {
        item.repair_segment(damaged.segment, &|_| None, LATER)?;
    }
    item.drop_layers(&plan.layers, LATER)?;
    Ok(())
}

/// Marks of people and processes: a pin, a name, a tested kit, a point that is served by hand.
fn notes(blobs: Blobs, seed: u64) -> Result<(), StoreError> {
    let store = open_reader(blobs, seed)?;
    let mut item = store.item_read(ITEM)?;
    let point = item.newest_point().map(|point| point.id).unwrap();
    let pin = item.pin(point, "verbs", "a test", LATER)?;
    let machine = String::from("here");
    let process = ServingProcess {
        boot: machine.clone(),
        user: machine.clone(),
        machine,
        pid: 1,
        start_ticks: 1,
    };
    let (id, disk, served_as, since) = (Uuid::nil(), DiskNumber(0), ServedAs::Writable, LATER);
    let hand = store.point_read(ITEM)?;
    let served = hand.serve_begins(Served { id, point, disk, served_as, process, since })?;
    hand.serve_ends(&served, LATER, "it was ended")?;
    item.unpin(pin.id)?;
    item.set_label("web01")?;
    let (kit, points) = (Uuid::from_u128(1), 1);
    store.kit_tested(&KitTest { kit, created_at: LATER, tested_at: LATER, points })
}

fn export(blobs: Blobs, seed: u64) -> Result<(), StoreError> {
    let item = open_reader(blobs, seed)?.item_read(ITEM)?;
    item.export(None, LATER, &mut Vec::new(), &mut |_, _| {}).map(drop)
}

/// Everything that reads: audit, the scrub of a store in use, points.
fn look(blobs: Blobs, seed: u64) -> Result<(), StoreError> {
    let mut item = open_reader(blobs, seed)?.item_read(ITEM)?;
    assert_eq!(item.audit(&|_, _| {})?.damages, [], "an error of the disk is no damage");
    for (segment, _) in item.scrub_parts() {
        let found = item.scrub_segment(segment, None)?;
        assert_eq!(found.damages, [], "an error of the disk is no damage");
    }
    item.points(0, 100, leeward_model::Site::Recovery).map(drop)
}

/// A store that a verb left behind must open, hold what the model says wherever it lists a point,
/// and be without damage.
fn check(disk: &CrashDisk, model: &ModelItem) -> Result<(), String> {
    let store = open_writer(Arc::new(disk.clone()), 3).map_err(|error| error.to_string())?;
    let item = store.item_open(ITEM).map_err(|error| error.to_string())?;
    if item.reader().newest_point().is_none() {
        return Err("every point is gone".into());
    }
    let audit = item.reader().audit(&|_, _| {}).map_err(|error| error.to_string())?;
    if !audit.damages.is_empty() {
        return Err(format!("{:?}", audit.damages));
    }
    check_contents(item.reader(), model)
}

/// Runs `verb` on copies of `base` with each of its calls failing in turn; `after` judges what is
/// left, also after a power cut. Returns how many calls it has.
fn each_call(
    name: &str,
    fault: Fault,
    base: &CrashDisk,
    verb: Verb<'_>,
    after: &dyn Fn(&CrashDisk) -> Result<(), String>,
) -> u64 {
    let blobs = base.blobs();
    for nth in 1..100_000 {
        let disk = CrashDisk::holding(blobs.clone());
        let faulty = Arc::new(FaultyStore::new(Arc::new(disk.clone()), nth, fault));
        let outcome = verb(faulty.clone(), 31);
        let at = || format!("{name}, {fault:?} at call {nth}");
        if let Err(error) = &outcome {
            assert!(error.code().code.starts_with("LW-"), "{}: {error}", at());
        }
        let cut = disk.after_power_cut(disk.steps(), 3, &mut Seeded::new(nth));
        for state in cut.iter().chain([&disk]) {
            after(state).unwrap_or_else(|why| panic!("{}: {why}", at()));
        }
        if faulty.calls() < nth {
            outcome.unwrap_or_else(|error| panic!("{name} without a fault: {error}"));
            return nth - 1;
        }
        verb(Arc::new(disk), 77).unwrap_or_else(|error| panic!("{}, again: {error}", at()));
    }
    panic!("{name} never ran without a fault");
}

fn proof(name: &str, fault: Fault, calls: u64) {
    println!("PROOF E4 verb={name} fault={fault:?} failed_calls={calls}");
    assert!(calls > 3, "{name} has only {calls} calls");
}

/// E4: what changes a store in place.
#[test]
fn no_verb_that_writes_loses_a_point_or_a_byte_whichever_of_its_calls_fails() {
    let (base, model) = worn();
    let verbs: [(&str, Verb<'_>); 5] = [
        ("prune", &prune),
        ("index", &index),
        ("rotate", &rotate),
        ("rekey", &rekey),
        ("notes", &notes),
    ];
    for (name, verb) in verbs {
        for fault in FAULTS {
            proof(name, fault, each_call(name, fault, &base, verb, &|disk| check(disk, &model)));
        }
    }
}

/// E4: whatever a repair comes to, the next one ends it, and no wrong byte is served in between.
#[test]
fn a_repair_that_fails_at_any_call_is_ended_by_the_next() {
    let (base, model) = worn();
    for range in sparse(&base) {
        footer_damaged(&base, &range);
    }
    let after = |disk: &CrashDisk| {
        let read = check_contents(&reader(disk), &model);
        if read.as_ref().is_err_and(|why| why.contains("wrong bytes")) {
            return read;
        }
        repair(Arc::new(disk.clone()), 77).map_err(|error| error.to_string())?;
        check(disk, &model)
    };
    for fault in FAULTS {
        proof("repair", fault, each_call("repair", fault, &base, &repair, &after));
    }
}

/// E4: an import is there whole or not at all, and can be made again.
#[test]
fn an_import_that_fails_at_any_call_leaves_nothing_or_everything() {
    let (from, model) = worn();
    let (bytes, secret) = exported(&from);
    let base = CrashDisk::new();
    init(&base);
    let base = CrashDisk::holding(base.blobs());
    let import = |blobs: Blobs, seed: u64| import(blobs, seed, (&bytes, &secret));
    let after = |disk: &CrashDisk| {
        let store = open_writer(Arc::new(disk.clone()), 3).map_err(|error| error.to_string())?;
        let items = store.items().map_err(|error| error.to_string())?;
        if items.is_empty() {
            return Ok(());
        }
        // Begun and not ended: without points, and the next import ends it.
        let reader = store.item_read(ITEM).map_err(|error| error.to_string())?;
        check_contents(&reader, &model)
    };
    for fault in FAULTS {
        proof("import", fault, each_call("import", fault, &base, &import, &after));
    }
}

fn import(
    blobs: Blobs,
    seed: u64,
    (bytes, secret): (&[u8], &RecipientSecret),
) -> Result<(), StoreError> {
    let store = open_writer(blobs, seed)?;
    store.import(&mut &bytes[..], secret, LATER, &mut |_, _| {}).map(drop)
}

/// E4: who only reads says what failed, and changes nothing.
#[test]
fn reading_verbs_say_what_failed_and_change_nothing() {
    let (base, model) = worn();
    let before = base.blobs();
    let after = |disk: &CrashDisk| match disk.blobs() == before {
        true => check(disk, &model),
        false => Err("the store was changed".into()),
    };
    for (name, verb) in [("export", &export as Verb<'_>), ("look", &look)] {
        for fault in FAULTS {
            proof(name, fault, each_call(name, fault, &base, verb, &after));
        }
    }
}
