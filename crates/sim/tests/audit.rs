//! The audits that nobody asked for, and the resync that trusts nothing, in the simulated world:
//! what changed by itself is found, told and repaired; where nothing did, nothing is found. And
//! what somebody does with a store by hand is seen by the store's owner.

use leeward_control::{
    items::{PlannedSpec, ReprotectSpec, ResyncTrust},
    jobs::RunState,
};
use leeward_model::{Code, DiskNumber, EXTENT_BYTES, ExtentNumber, ItemId, Protection, Site};
use leeward_replica::{
    ItemReader, Served, ServedAs, ServingProcess, View,
    storage::{BlobStore as _, Seeded},
};
use leeward_sim::world::{FIRST_DISK_BYTES, Mistakes, World, simulate};

/// Steps of the world within which a state comes about that nothing hinders.
const STEPS_MAX: usize = 8_000;
const DISK: DiskNumber = DiskNumber(0);
/// What the guest had on its disk before it was protected, in extents.
const FILLED: u64 = 6;

fn item(world: &World) -> ItemId {
    world.item.expect("it is protected")
}

fn reader(world: &World) -> ItemReader {
    world.disk(Site::Recovery).item(item(world)).expect("the recovery site has a replica")
}

/// The newest point, and the disk as it is there; none when it cannot be read whole.
fn newest(world: &World) -> Option<Vec<u8>> {
    let reader = reader(world);
    let place = reader.newest_point().expect("it has points").position;
    let view = View::open(&reader, place).expect("the newest point is kept");
    view.read(DISK, 0, FIRST_DISK_BYTES as usize).ok().map(Vec::from)
}

fn content(world: &World) -> Vec<u8> {
    let disks = world.machines(Site::Primary).disks(&world.owned(Site::Primary));
    disks.expect("the machine is at the primary site").content(DISK)
}

/// Protected, with something on its disk.
async fn protected(mistakes: Mistakes) -> World {
    let random = &mut Seeded::new(41);
    let mut world = World::new(mistakes).await;
    for extent in 0..FILLED {
        let bytes = vec![0x30 + extent as u8; EXTENT_BYTES as usize];
        world.write_at(DISK, extent * EXTENT_BYTES, &bytes);
    }
    world.protect(random).await;
    let is = async |world: &World| {
        world.view().await.is_some_and(|view| view.state.protection == Protection::Protected)
    };
    world.until("the machine is protected", STEPS_MAX, is).await;
    world
}

async fn has_problem(world: &World, code: Code) -> bool {
    let view = world.view().await.expect("it is protected");
    view.health.iter().any(|error| error.problem.code == code.code)
}

/// How often an event of that name came.
async fn events(world: &World, name: &str) -> usize {
    let events = world.control().event_list(world.vault, 0, 1000).await;
    events.expect("a page of events").iter().filter(|event| event.name == name).count()
}

/// How many whole rounds ended so far can only be told by their times.
async fn rounds(world: &World) -> Option<(i64, i64)> {
    let view = world.view().await?;
    Some((view.audit?.round_ended_at?.0, view.store_audit?.round_ended_at?.0))
}

/// E15: an audit beside a writing guest goes round and round, and finds nothing.
#[test]
fn a_healthy_pair_under_writes_is_audited_wholly_and_nothing_is_found() {
    let violations = simulate(async {
        let mut world = protected(Mistakes::default()).await;
        let random = &mut Seeded::new(42);
        world.until("a first round", STEPS_MAX, async |w| rounds(w).await.is_some()).await;
        let first = rounds(&world).await.expect("it was there just now");
        for _ in 0..60 {
            world.write(random);
            world.wait(500).await;
        }
        let later = rounds(&world).await.expect("it was there before");
        let view = world.view().await.expect("it is protected");

        assert!(later.0 > first.0 && later.1 > first.1, "no further rounds: {first:?} {later:?}");
        assert_eq!(view.audit.map(|audit| (audit.differences, audit.problem)), Some((0, None)));
        let stored = view.store_audit.map(|audit| (audit.differences, audit.problem));
        assert_eq!(stored, Some((0, None)));
        assert_eq!(events(&world, "AuditFound").await, 0);
        world.check().await;
        world.ledger.violations()
    });
    assert_eq!(violations, Vec::<String>::new());
}

/// F-150: bytes of the source that changed behind the change map's back are found, told, and in
/// the next point; the health error ends with a whole round that finds nothing.
#[test]
fn what_changed_by_itself_at_the_source_is_found_told_and_sent_again() {
    simulate(async {
        let mut world = protected(Mistakes::default()).await;
        let disks = world.machines(Site::Primary).disks(&world.owned(Site::Primary));
        let disks = disks.expect("the machine is at the primary site");
        disks.corrupt(DISK, 2 * EXTENT_BYTES + 4096, b"a silent difference");
        assert_ne!(newest(&world), Some(content(&world)), "nothing differs");

        let found = async |world: &World| has_problem(world, Code::REPLICA_DIFFERED).await;
        world.until("the difference is found", STEPS_MAX, found).await;
        let same = async |world: &World| newest(world) == Some(content(world));
        world.until("the next point has it", STEPS_MAX, same).await;
        let told = async |world: &World| events(world, "AuditFound").await == 1;
        world.until("it is told", STEPS_MAX, told).await;
        let over = async |world: &World| {
            !has_problem(world, Code::REPLICA_DIFFERED).await
                && events(world, "AuditRepaired").await == 1
        };
        world.until("a round finds nothing more", STEPS_MAX, over).await;
        let view = world.view().await.expect("it is protected");
        assert_eq!(view.audit.map(|audit| audit.differences), Some(1));
        assert_eq!(events(&world, "AuditFound").await, 1, "told once");
    });
}

/// Lets the segments so far be sealed: their sealer begins another after a minute.
async fn sealed(world: &mut World) {
    let before = reader(world).newest_point().expect("it has points").position;
    world.wait(65_000).await;
    world.write_at(DISK, 7 * EXTENT_BYTES, &[0x77; 4096]);
    let later = async |world: &World| {
        let newest = reader(world).newest_point().expect("it has points").position;
        newest.lsn > before.lsn && newest_is_same(world)
    };
    world.until("a later point", STEPS_MAX, later).await;
}

fn newest_is_same(world: &World) -> bool {
    newest(world) == Some(content(world))
}

/// Flips a bit of the sealed record that holds an extent of the newest point.
fn rot(world: &World, extent: u64) {
    let reader = reader(world);
    let place = reader.newest_point().expect("it has points").position;
    let folder = format!("items/{}/segments", item(world));
    let disk = world.disk(Site::Recovery).now();
    for name in disk.list(&folder).expect("the disk can be listed") {
        let name = format!("{folder}/{name}");
        let len = disk.len(&name).expect("it is there").expect("it is there");
        for offset in (0..len).step_by(8) {
            disk.flip(&name, offset as usize * 8);
            let opened = View::open(&reader, place);
            let Ok(view) = opened else {
                disk.flip(&name, offset as usize * 8);
                continue;
            };
            let all = (0..FILLED).map(|extent| view.is_readable(DISK, ExtentNumber(extent as u32)));
            let all: Vec<bool> = all.map(|read| read.expect("the disk can be read")).collect();
            if all.iter().filter(|read| !**read).count() == 1 && !all[extent as usize] {
                return;
            }
            disk.flip(&name, offset as usize * 8);
        }
    }
    panic!("no byte of extent {extent} was found in {folder}");
}

/// F-159 beside F-150: bit rot at rest is found by the store's own audit, told, and repaired from
/// the source, whose bytes did not change.
#[test]
fn what_rots_in_the_store_is_found_told_and_had_again_from_the_source() {
    simulate(async {
        let mut world = protected(Mistakes::default()).await;
        sealed(&mut world).await;
        rot(&world, 3);
        assert_eq!(newest(&world), None, "nothing is damaged");

        let found = async |world: &World| has_problem(world, Code::STORE_DAMAGED).await;
        world.until("the damage is found", STEPS_MAX, found).await;
        let told = async |world: &World| events(world, "AuditFound").await == 1;
        world.until("it is told", STEPS_MAX, told).await;
        let same = async |world: &World| newest(world) == Some(content(world));
        world.until("the newest point can be read again", STEPS_MAX, same).await;
        let is = world.view().await.expect("it is protected").state.protection;
        assert_eq!(is, Protection::Protected, "the repair is part of the replication");
    });
}

/// `--verify=full`: a resync by hashes believes the store's; one that trusts nothing reads what is
/// stored, finds what rotted, and has it sent again.
#[test]
fn a_resync_that_trusts_nothing_finds_what_a_resync_by_hashes_cannot() {
    simulate(async {
        let mut world = protected(Mistakes { no_audit: true, ..Mistakes::default() }).await;
        sealed(&mut world).await;
        rot(&world, 3);
        let control = world.control();

        let job = control.item_resync(item(&world)).await.expect("it is protected");
        assert_eq!(world.finish(job).await.state, RunState::Succeeded);
        assert_eq!(newest(&world), None, "a resync by hashes reads no stored bytes");
        let job = control.item_resync_full(item(&world)).await.expect("it is protected");
        assert_eq!(world.finish(job).await.state, RunState::Succeeded);

        assert_eq!(newest(&world), Some(content(&world)));
        assert!(world.view().await.expect("it is protected").audit.is_none(), "audits are off");
    });
}

/// Fails over to the other site without losing anything, and stays there.
async fn move_over(world: &mut World) {
    let (control, item) = (world.control(), item(world));
    let moved = control.item_planned_failover(item, PlannedSpec::default()).await;
    let moved = world.finish(moved.expect("it is protected")).await;
    assert_eq!(moved.state, RunState::Succeeded);
    let job = control.item_commit(item).await.expect("it is failed over");
    assert_eq!(world.finish(job).await.state, RunState::Succeeded);
}

/// After a whole circle the recovery site's store still has what it had, and some of it has rotted:
/// a reprotect has it sent again, with `--verify=full` and without.
#[test]
fn a_reprotect_has_what_rotted_in_the_old_replica_sent_again() {
    for trust in [ResyncTrust::Hashes, ResyncTrust::Nothing] {
        let same = simulate(async {
            let random = &mut Seeded::new(43);
            let mut world = protected(Mistakes { no_audit: true, ..Mistakes::default() }).await;
            sealed(&mut world).await;
            move_over(&mut world).await;
            world.reprotect_wholly(random).await;
            move_over(&mut world).await;
            rot(&world, 3);
            assert_eq!(newest(&world), None, "nothing is damaged");

            let spec = ReprotectSpec { trust, ..ReprotectSpec::default() };
            let job = world.control().item_reprotect(item(&world), spec).await;
            let job = world.finish(job.expect("it is committed")).await;
            assert_eq!(job.state, RunState::Succeeded);
            let is = async |world: &World| {
                let view = world.view().await.expect("it is protected");
                view.state.protection == Protection::Protected
            };
            world.until("the other direction is protected", STEPS_MAX, is).await;
            newest_is_same(&world)
        });
        assert!(same, "{trust:?}");
    }
}

/// Somebody begins to serve the newest point for writing, beside the server.
fn serves(world: &World, machine: &str, boot: &str) -> Served {
    let reader = reader(world);
    let point = reader.newest_point().expect("it has points").id;
    let machine = machine.trim().to_owned();
    let process =
        ServingProcess { machine, boot: boot.into(), pid: 1, start_ticks: 1, user: "eva".into() };
    let (id, since) = (uuid::Uuid::nil(), leeward_model::UnixMillis(1));
    let served = Served { id, point, disk: DISK, served_as: ServedAs::Writable, process, since };
    reader.serve_begins(served).expect("the disk can be written")
}

/// A writable serve is shown as long as it is open, and told once when it begins and when it ends;
/// what a process left that has ended is noted as ended.
#[test]
fn a_writable_serve_by_hand_is_shown_and_told_by_the_config_server_of_the_store() {
    simulate(async {
        let mut world = protected(Mistakes::default()).await;
        let served = serves(&world, "another machine", "its boot");
        let told = async |world: &World| {
            has_problem(world, Code::SERVED_WRITABLE).await
                && events(world, "PointServedWritable").await == 1
        };
        world.until("it is shown and told", STEPS_MAX, told).await;
        let view = world.view().await.expect("it is protected");
        assert_eq!((view.served.len(), view.served[0].point), (1, served.point));
        assert!(view.served[0].who.contains("eva"), "{:?}", view.served);

        let end = reader(&world).serve_ends(&served, leeward_model::UnixMillis(2), "it was ended");
        end.expect("the disk can be written");
        let over = async |world: &World| {
            !has_problem(world, Code::SERVED_WRITABLE).await
                && events(world, "PointServeEnded").await == 1
        };
        world.until("its end is told", STEPS_MAX, over).await;
        assert_eq!(events(&world, "PointServedWritable").await, 1);

        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        serves(&world, &name, "a boot before this one");
        let ended = async |world: &World| {
            let ended = reader(world).serves_ended().expect("the disk can be read");
            ended.iter().any(|ended| ended.how.contains("process has ended"))
        };
        world.until("what is stale is noted as ended", STEPS_MAX, ended).await;
        assert!(!has_problem(&world, Code::SERVED_WRITABLE).await);
    });
}
