//! I/O errors: the Nth call fails, for N = 1, 2, 3 … until a whole story runs without a fault.

use crate::world::{EAGER, ITEM, World, check_contents, init, open_writer};
use leeward_replica::{
    StoreError,
    model::ModelItem,
    storage::{CrashDisk, Fault, FaultyStore, Seeded},
};
use std::sync::Arc;

/// Does everything a store can do; the model says what was acknowledged when a call fails.
fn story(world: &mut World) -> Result<(), StoreError> {
    world.open_branch(None)?;
    world.append()?;
    world.append()?;
    world.sync()?;
    world.commit_progress()?;
    world.append()?;
    world.commit_point()?;
    world.seal()?;
    world.add_kept()?;
    world.pin_newest()?;
    world.raise_fence()?;
    world.branch_off()?;
    for _ in 0..6 {
        world.append()?;
    }
    world.commit_point()?;
    world.commit_point()?;
    world.expire()?;
    world.index()?;
    world.append()?;
    world.commit_point()?;
    world.index()?;
    world.expire()?;
    world.check_contents().map_err(|why| StoreError::Stale { why })
}

/// What must be there after a fault: everything acknowledged. One more operation may be there too.
fn check(disk: &CrashDisk, model: &ModelItem) -> Result<(), String> {
    let store = open_writer(Arc::new(disk.clone()), 3).map_err(|error| error.to_string())?;
    let item = store.item_open(ITEM).map_err(|error| error.to_string())?;
    let state = item.reader().state();
    if state.fence < model.fence {
        return Err("the fence went back".into());
    }
    for branch in &model.branches {
        let committed = item.reader().committed(branch.timeline);
        if committed.is_none_or(|committed| committed < model.head(branch.timeline)) {
            return Err(format!("{committed:?} of timeline {} is committed", branch.timeline));
        }
    }
    // A call that failed may have let points go or added one; those that are listed must be right.
    let mut known = model.clone();
    known.branches = item.reader().branches().to_vec();
    for (id, place) in &model.points {
        let newest = model.points.values().all(|other| other.lsn <= place.lsn);
        if newest && state.point(*id).is_none() && state.points.is_empty() {
            return Err(format!("point {id} is lost"));
        }
    }
    check_contents(item.reader(), &known)
}

fn run(fault: Fault) -> u64 {
    for nth in 1..10_000 {
        let disk = CrashDisk::new();
        init(&disk);
        let faulty = Arc::new(FaultyStore::new(Arc::new(disk.clone()), nth, fault));
        let world = World::bare(faulty.clone(), 21);
        let (outcome, model) = match world {
            Err(error) => (Err(error), ModelItem::default()),
            Ok(mut world) => {
                world.set_upkeep(EAGER);
                (story(&mut world), world.model.clone())
            }
        };
        if faulty.calls() < nth {
            outcome.expect("a story without a fault has no error");
            return nth;
        }
        if let Err(error) = &outcome {
            assert!(error.code().code.starts_with("LW-"), "{error}");
        }
        let cut = disk.after_power_cut(disk.steps(), 3, &mut Seeded::new(nth));
        for state in cut.iter().chain([&disk]) {
            if model.branches.is_empty() {
                continue;
            }
            check(state, &model).unwrap_or_else(|why| panic!("{fault:?} at {nth}: {why}"));
        }
    }
    panic!("the story never ran without a fault");
}

/// E4.
#[test]
fn no_failing_call_loses_acknowledged_data_or_yields_wrong_bytes() {
    for fault in [Fault::Error, Fault::NoSpace, Fault::ShortWrite, Fault::LostReply] {
        let calls = run(fault);
        println!("PROOF E4 fault={fault:?} failed_calls={}", calls - 1);
        assert!(calls > 50, "the story has only {calls} calls");
    }
}

/// A failed flush is never tried again, and nothing is acknowledged after it.
#[test]
fn a_failed_flush_poisons_the_writer_until_the_item_is_opened_again() {
    let mut poisoned = 0;
    for nth in 1..200 {
        let disk = CrashDisk::new();
        init(&disk);
        let faulty = Arc::new(FaultyStore::new(Arc::new(disk), nth, Fault::Error));
        let Ok(mut world) = World::bare(faulty.clone(), 4) else { continue };
        if world.open_branch(None).is_err() || world.append().is_err() {
            continue;
        }
        if world.sync().is_err() {
            let calls = faulty.calls();
            let again = world.item().sync();
            assert!(matches!(again, Err(StoreError::Stale { .. })), "{again:?}");
            assert_eq!(faulty.calls(), calls, "nothing is tried again");
            world.restart().unwrap();
            world.append().unwrap();
            world.commit_point().unwrap();
            world.check_contents().unwrap();
            poisoned += 1;
        }
    }
    assert_eq!(poisoned, 2, "the flush of the data and that of the name");
}
