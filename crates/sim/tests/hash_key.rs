//! One hash key per item over sites, time and lost disks, in the simulated world (decision 27).

use leeward_control::items::{PlannedSpec, ReprotectSpec};
use leeward_model::{DiskNumber, EXTENT_BYTES, ExtentNumber, ItemId, Protection, Site};
use leeward_replica::{ItemKeys, ItemReader, View, storage::Seeded};
use leeward_sim::world::{FIRST_DISK_BYTES, Mistakes, World, history::Stale, simulate};

/// Steps of the world within which a state comes about that nothing hinders.
const STEPS_MAX: usize = 5_000;
const DISK: DiskNumber = DiskNumber(0);

fn item(world: &World) -> ItemId {
    world.item.expect("it is protected")
}

fn reader(world: &World, site: Site) -> ItemReader {
    let mut reader = world.disk(site).item(item(world)).expect("the site has a replica");
    reader.refresh().expect("it can be read");
    reader
}

fn keys(world: &World, site: Site) -> ItemKeys {
    reader(world, site).keys().clone()
}

/// The machine goes to the other site, for good.
async fn moves(world: &mut World) {
    let (control, item) = (world.control(), item(world));
    let job = control.item_planned_failover(item, PlannedSpec::default()).await;
    world.finish(job.expect("it is protected")).await;
    let job = control.item_commit(item).await.expect("it was failed over");
    world.finish(job).await;
}

fn assert_shared(world: &World, first: &ItemKeys) {
    let [primary, recovery] = [Site::Primary, Site::Recovery].map(|site| keys(world, site));
    assert!(primary.hash == first.hash, "another hash key at the primary site");
    assert!(recovery.hash == first.hash, "another hash key at the recovery site");
    assert!(primary.data != recovery.data, "two stores have one data key");
}

/// Extents of the first disk that both stores' newest points have alike, not zero, by the bytes
/// themselves; their hashes have to be the same.
fn compared(world: &World) -> usize {
    let views = [Site::Primary, Site::Recovery].map(|site| {
        let reader = reader(world, site);
        let newest = reader.state().points.last().expect("it has points").position;
        View::open(&reader, newest).expect("its data are kept")
    });
    let [there, here] = &views;
    let same = |extent: &u64| {
        let [there, here] = [there, here].map(|view| {
            let whole = (FIRST_DISK_BYTES - extent * EXTENT_BYTES).min(EXTENT_BYTES);
            view.read(DISK, extent * EXTENT_BYTES, whole as usize).expect("it can be read")
        });
        there == here && there.iter().any(|byte| *byte != 0)
    };
    let alike: Vec<u64> = (0..FIRST_DISK_BYTES.div_ceil(EXTENT_BYTES)).filter(same).collect();
    for extent in &alike {
        let leaf = |view: &View| view.leaf_hash(DISK, ExtentNumber(*extent as u32)).expect("read");
        assert_eq!(leaf(there), leaf(here), "extent {extent}");
    }
    alike.len()
}

/// Protected, with its first store at the recovery site.
async fn protected(random: &mut Seeded) -> (World, ItemKeys) {
    let mut world = World::new(Mistakes::default()).await;
    world.write_at(DISK, 0, &[0x5a; 3 * EXTENT_BYTES as usize]);
    world.protect(random).await;
    let first = keys(&world, Site::Recovery);
    (world, first)
}

/// F-105, F-133: out, home and out again; the old disks as they were left, or gone, so that there
/// is no seed (F-140).
#[test]
fn both_stores_have_one_hash_key_and_their_own_data_keys_all_the_way_round() {
    for stale in [None, Some(Stale::Gone)] {
        let violations = simulate(async {
            let random = &mut Seeded::new(27);
            let (mut world, first) = protected(random).await;
            assert!(world.disk(Site::Primary).item(item(&world)).is_none(), "one store so far");
            moves(&mut world).await;
            if let Some(stale) = stale {
                world.stale_disks(stale, random).await;
            }
            world.reprotect_wholly(random).await;
            assert_shared(&world, &first);
            assert!(compared(&world) > 0, "nothing was the same in both stores");
            moves(&mut world).await;
            world.reprotect_wholly(random).await;
            assert_shared(&world, &first);
            assert!(compared(&world) > 0, "nothing was the same in both stores");
            world.settle().await;
            world.ledger.violations()
        });

        assert_eq!(violations, Vec::<String>::new(), "{stale:?}");
    }
}

/// A store that was lost gets the key from the other one: with the seed of the primary site's, in
/// its data session the recovery site's, which cannot dial.
#[test]
fn a_store_that_was_lost_gets_the_items_hash_key_again() {
    for lost in [Site::Primary, Site::Recovery] {
        simulate(async {
            let random = &mut Seeded::new(28);
            let (mut world, first) = protected(random).await;
            moves(&mut world).await;
            world.reprotect_wholly(random).await;
            // Live at the site whose store is not lost, which is not protected by it now.
            if lost == Site::Recovery {
                moves(&mut world).await;
            }
            let live = world.view().await.expect("it is protected").state.active;
            assert_ne!(live, lost);
            let before = keys(&world, lost);

            world.store_lost(lost).await;
            assert!(world.disk(lost).item(item(&world)).is_none());
            match lost {
                Site::Primary => {
                    // Protected: the next session finds it empty.
                    let control = world.control();
                    let resync = control.item_resync(item(&world)).await;
                    resync.expect("it is protected");
                }
                Site::Recovery => {
                    let control = world.control();
                    let job = control.item_reprotect(item(&world), ReprotectSpec::default()).await;
                    let job = job.expect("it is committed");
                    world.finish(job).await;
                }
            }
            let has_point = async |world: &World| {
                let reader = world.disk(lost).item(item(world));
                reader.is_some_and(|reader| !reader.state().points.is_empty())
            };
            world.until("the lost store has a point again", STEPS_MAX, has_point).await;

            assert_shared(&world, &first);
            assert!(keys(&world, lost).data != before.data, "a new part has a new data key");
            let is = async |world: &World| {
                let view = world.view().await.expect("it is protected");
                view.state.protection == Protection::Protected
            };
            world.until("the machine is protected", STEPS_MAX, is).await;
        });
    }
}
