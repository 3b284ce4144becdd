//! Out and home again in the simulated world: planned failovers that lose nothing, reprotects that
//! send what differs, and disasters in the middle of them.
//!
//! What random histories and interruptions cannot pin down: exact amounts, and named situations.

use leeward_control::{
    Control, ControlError,
    items::{DisableReason, KeepPoints, PlannedSpec, ReprotectSpec, Shutdown},
    jobs::{JobAnswer, RunState},
};
use leeward_fabric::{Fabric as _, MachineRef, memory::OnShutdown};
use leeward_model::{
    DiskNumber, ItemId, JobId, MachineState, PointChoice, Protection, Site, TestState,
};
use leeward_replica::storage::Seeded;
use leeward_sim::world::{
    Mistakes, World,
    crowd::crowd,
    history::{Asked, Deed},
    ledger::HostPlace,
    link::LinkState,
    simulate,
};
use std::time::Duration;

/// What is written as a whole, in bytes.
const BLOCK: u64 = 4096;
/// Planned failovers in a row (F-086).
const FAILOVERS: usize = 100;
/// Steps of the world within which a state comes about that nothing hinders.
const STEPS_MAX: usize = 5_000;

type Started = Result<JobId, ControlError>;

async fn done(world: &mut World, started: Started) {
    let ended = world.finish(started.expect("the world is ready for it")).await;
    let well = matches!(ended.state, RunState::Succeeded | RunState::SucceededWithWarning);
    assert!(well, "{:?} ends as {:?}: {:?}", ended.scenario, ended.state, ended.errors);
}

fn parts(world: &World) -> (Control, ItemId) {
    (world.control(), world.item.expect("it is protected"))
}

async fn planned(world: &mut World) {
    let (control, item) = parts(world);
    let started = control.item_planned_failover(item, PlannedSpec::default()).await;
    done(world, started).await;
}

async fn commit(world: &mut World) {
    let (control, item) = parts(world);
    let started = control.item_commit(item).await;
    done(world, started).await;
}

async fn failover(world: &mut World, choice: PointChoice, shutdown: Shutdown) {
    let (control, item) = parts(world);
    let started = world.ask(async move { control.item_failover(item, choice, shutdown).await });
    let started = started.await;
    done(world, started).await;
}

async fn state(world: &World) -> Protection {
    world.view().await.expect("it is protected").state.protection
}

async fn protected(world: &mut World) {
    let is = async |world: &World| state(world).await == Protection::Protected;
    world.until("the machine is protected", STEPS_MAX, is).await;
}

/// Failed over and committed, with points of the first direction.
async fn committed_at_recovery(sizes: Option<[u64; 2]>, random: &mut Seeded) -> World {
    let mut world = World::replicated(sizes, random).await;
    failover(&mut world, PointChoice::Latest, Shutdown::First).await;
    commit(&mut world).await;
    world
}

/// F-086, F-105.
#[test]
fn a_hundred_planned_failovers_back_and_forth_lose_nothing() {
    let violations = simulate(async {
        let random = &mut Seeded::new(86);
        let mut world = World::new(Mistakes::default()).await;
        world.write(random);
        world.protect(random).await;
        for turn in 0..FAILOVERS {
            let from = world.view().await.expect("it is protected").state.active;
            (0..4).for_each(|_| world.write(random));
            world.wait(random.below(2_500)).await;
            world.write(random);
            // A turn that wrote more than half of the disks is compared first (F-152).
            protected(&mut world).await;
            planned(&mut world).await;
            world.write(random);
            let view = world.view().await.expect("it is protected");
            assert_ne!(view.state.active, from, "turn {turn}");
            commit(&mut world).await;
            world.reprotect_wholly(random).await;
            world.check_often().await;
            let violations = world.ledger.violations();
            assert!(violations.is_empty(), "turn {turn}: {violations:?}");
        }
        world.settle().await;
        world.ledger.violations()
    });

    assert_eq!(violations, Vec::<String>::new());
}

/// Sizes of the disks in the tests of amounts: 1088 blocks.
const SIZES: [u64; 2] = [4 << 20, 256 << 10];

/// By how much disks diverge in the tests of amounts.
const PER_MILLE: [u64; 5] = [0, 1, 10, 500, 1000];

/// Blocks by which the live machine's disks differ from the ones that it left.
fn differing_blocks(world: &World) -> u64 {
    let [old, live] = [Site::Primary, Site::Recovery]
        .map(|site| world.machines(site).disks(&world.owned(site)).expect("both are there"));
    let differing = |number| {
        let (old, live) = (old.content(DiskNumber(number)), live.content(DiskNumber(number)));
        let (old, live) = (old.chunks(BLOCK as usize), live.chunks(BLOCK as usize));
        old.zip(live).filter(|(old, live)| old != live).count() as u64
    };
    differing(0) + differing(1)
}

/// Lets the live machine write to so many per mille of its blocks, all over its disks.
fn diverge(world: &World, sizes: [u64; 2], per_mille: u64) {
    let mut random = Seeded::new(per_mille);
    for (number, size) in sizes.into_iter().enumerate() {
        for block in (0..size / BLOCK).filter(|block| block * per_mille % 1000 < per_mille) {
            let words = (0..BLOCK / 8).flat_map(|_| random.next_u64().to_le_bytes());
            let bytes: Vec<u8> = words.collect();
            world.write_at(DiskNumber(number as u16), block * BLOCK, &bytes);
        }
    }
}

/// Bytes of blocks that the recovery host has sent so far.
async fn sent_bytes(world: &World) -> u64 {
    world.view().await.and_then(|view| view.sent_bytes).unwrap_or(0)
}

/// Lets a reprotect begin, without waiting for anything.
async fn reprotect(world: &mut World) -> JobId {
    let (control, item) = parts(world);
    let started = control.item_reprotect(item, ReprotectSpec::default()).await;
    started.expect("the world is ready for it")
}

/// E15, F-133.
#[test]
fn a_reprotect_sends_the_blocks_that_differ_and_no_others() {
    for per_mille in PER_MILLE {
        let (differing, sent, violations) = simulate(async {
            let random = &mut Seeded::new(15);
            let mut world = committed_at_recovery(Some(SIZES), random).await;
            diverge(&world, SIZES, per_mille);
            let differing = differing_blocks(&world) * BLOCK;
            let job = reprotect(&mut world).await;
            world.finish(job).await;
            protected(&mut world).await;
            let sent = sent_bytes(&world).await;
            world.settle().await;
            (differing, sent, world.ledger.violations())
        });

        assert_eq!(violations, Vec::<String>::new(), "at {per_mille} per mille");
        assert!(differing >= SIZES[0] * per_mille / 1000, "{differing} at {per_mille} per mille");
        assert!(sent >= differing, "{sent} for {differing} at {per_mille} per mille");
        assert!(sent * 20 <= differing * 21, "{sent} for {differing} at {per_mille} per mille");
    }
}

/// Instants at which a reprotect is interrupted, a fifth of them at each divergence.
const INTERRUPTIONS: u64 = 100;
/// The link's pace then, in bytes a second, and how long the old disks take for a MiB.
const PACE: u64 = 256 << 10;
const READ_MS: u64 = 500;
/// The most that is sent again: what went in the 5 s after which progress is committed, and the
/// rest of a batch.
const TAIL: u64 = 5 * PACE + (1 << 20);

/// E15, F-112. What was committed is not sent again; points, stale disks and the active machine
/// are as in every test.
#[test]
fn a_reprotect_that_is_interrupted_anywhere_goes_on_where_it_was() {
    let interrupted = |n: u64| {
        simulate(async {
            let random = &mut Seeded::new(16);
            let mut world = committed_at_recovery(Some(SIZES), random).await;
            diverge(&world, SIZES, PER_MILLE[n as usize % PER_MILLE.len()]);
            let differing = differing_blocks(&world) * BLOCK;
            world.link.set_pace(PACE);
            world.read_pace(READ_MS);
            world.link.count();
            world.must_run = Some(Site::Recovery);
            reprotect(&mut world).await;
            // Some time for the jobs, the reading of the old disks, the copy.
            let takes_ms = 2_000 + 5 * READ_MS + differing * 1000 / PACE;
            world.wait(takes_ms * n / INTERRUPTIONS).await;
            match n / PER_MILLE.len() as u64 % 4 {
                0 => world.link_set(LinkState::Refuses),
                1 => world.role_kill(Site::Primary).await,
                2 => world.role_kill(Site::Recovery).await,
                _ => world.power_cut(Site::Primary, random).await,
            }
            world.wait(200).await;
            world.heal().await;
            protected(&mut world).await;
            let crossed = world.link.crossed();
            world.must_run = None;
            world.settle().await;
            (n, differing, crossed, world.ledger.violations())
        })
    };

    let done = crowd(0..INTERRUPTIONS, interrupted, |_| false);
    println!("PROOF E15 interruptions={INTERRUPTIONS} per_mille={PER_MILLE:?}");

    for (n, differing, crossed, violations) in done {
        assert_eq!(violations, Vec::<String>::new(), "interruption {n}");
        assert!(crossed.lost <= TAIL, "{crossed:?} for {differing}, interruption {n}");
        let once = crossed.all - crossed.lost;
        // The active machine writes a little in each point, to show that it runs.
        let most = differing + differing / 20 + (256 << 10);
        assert!(once <= most, "{crossed:?} for {differing}, interruption {n}");
        let again = differing.min(TAIL);
        assert!(crossed.all <= most + again, "{crossed:?} for {differing}, interruption {n}");
    }
}

/// The points that are offered, with the site whose store has each.
async fn offered(world: &mut World) -> Vec<leeward_model::PointInfo> {
    let (control, item) = parts(world);
    let page = world.ask(async move { control.point_list(item, 0, 1000).await }).await;
    page.expect("the stores are asked").points
}

/// Sizes of the disks where a copy takes its time.
const SIZES_LARGE: [u64; 2] = [24 << 20, 256 << 10];
/// Writes of the store by which the copy is under way: some records of its first third.
const PART_WRITES: usize = 64;

/// Decision 14. The active machine and its overlay are destroyed while the other direction is
/// being built up: each side's retained points are offered, none of them half-made, and work.
#[test]
fn a_second_disaster_in_a_reprotect_leaves_the_retained_points_of_both_sides() {
    for held_at in [Site::Recovery, Site::Primary] {
        let violations = simulate(async {
            let random = &mut Seeded::new(14);
            let mut world = committed_at_recovery(Some(SIZES_LARGE), random).await;
            // Home again, so that each side has points of its own.
            world.reprotect_wholly(random).await;
            planned(&mut world).await;
            commit(&mut world).await;
            diverge(&world, SIZES_LARGE, 1000);
            let job = reprotect(&mut world).await;
            while world.job(job).await.ended.is_none() {
                world.step().await;
            }
            let seeded = world.disk(Site::Recovery).now().steps();
            for _ in 0..STEPS_MAX {
                if world.disk(Site::Recovery).now().steps() >= seeded + PART_WRITES {
                    break;
                }
                world.step().await;
            }
            assert!(matches!(state(&world).await, Protection::Reprotecting { .. }));

            let lost = world.owned(Site::Primary);
            world.machines(Site::Primary).kill_process(&lost);
            let disks = world.machines(Site::Primary).disks(&lost).expect("it was live");
            [0, 1].into_iter().for_each(|disk| disks.set_present(DiskNumber(disk), false));
            let offered = offered(&mut world).await;
            world.check().await;
            let point = offered.iter().find(|point| point.held_at == held_at);
            let point = point.unwrap_or_else(|| panic!("no point of {held_at:?}: {offered:?}")).id;
            failover(&mut world, PointChoice::Custom(point), Shutdown::Leave).await;

            let view = world.view().await.expect("it is protected");
            assert_eq!(view.state.active, held_at);
            world.settle().await;
            world.ledger.violations()
        });

        assert_eq!(violations, Vec::<String>::new(), "to a point of {held_at:?}");
    }
}

/// Decision 14. The failover is accepted while the drill runs, the drill's machine is nobody's
/// second writer, and its removal touches neither side.
#[test]
fn a_drill_that_runs_when_the_disaster_comes_is_in_nobodys_way() {
    let violations = simulate(async {
        let random = &mut Seeded::new(5);
        let mut world = World::new(Mistakes::default()).await;
        world.write(random);
        world.protect(random).await;
        world.wait(2_500).await;
        let (control, item) = parts(&world);
        let test = control.item_test_failover(item, PointChoice::Latest).await;
        done(&mut world, test).await;
        let view = world.view().await.expect("it is protected");
        let TestState::Active { machine } = view.state.test else { panic!("no test machine") };
        world.write(random);

        world.power_cut(Site::Primary, random).await;
        let (asked_ms, asked) = (world.time.ms(), control.clone());
        let started = world.ask(async move {
            asked.item_failover(item, PointChoice::Latest, Shutdown::First).await
        });
        let started = started.await;
        let accepted_ms = world.time.ms() - asked_ms;
        done(&mut world, started).await;
        world.heal().await;
        let live = world.owned(Site::Recovery);
        let before = world.machines(Site::Recovery).disks(&live).expect("it is live here");
        let before = before.content(DiskNumber(0));
        assert_eq!(world.writers(), 1);
        let cleanup = control.item_test_cleanup(item, "").await;
        done(&mut world, cleanup).await;

        assert!(accepted_ms <= 5_000, "{accepted_ms} ms");
        let machines = world.machines(Site::Recovery);
        assert!(machines.disks(&MachineRef::Instance(machine)).is_none(), "it is removed");
        let state = machines.machine_state(&live).await;
        assert!(matches!(state, Ok(MachineState::Running)), "{state:?}");
        let after = machines.disks(&live).expect("it is live here").content(DiskNumber(0));
        assert_eq!(before, after);
        world.settle().await;
        world.ledger.violations()
    });

    assert_eq!(violations, Vec::<String>::new());
}

/// F-098, F-110. The job waits for as long as it takes, also over the config server's death.
#[test]
fn a_planned_failover_waits_for_a_persons_word_with_the_machine_running() {
    let violations = simulate(async {
        let random = &mut Seeded::new(98);
        let mut world = World::new(Mistakes::default()).await;
        world.protect(random).await;
        let (control, item) = parts(&world);
        let spec = PlannedSpec { wait_to_complete: true, ..PlannedSpec::default() };
        let job = control.item_planned_failover(item, spec).await.expect("it is protected");
        assert_eq!(world.finish(job).await.state, RunState::Suspended);
        world.must_run = Some(Site::Primary);
        drop(control);
        world.server_kill().await;
        world.wait(10_000).await;
        world.heal().await;
        world.write(random);
        world.wait(10_000).await;
        world.write(random);
        assert_eq!(world.job(job).await.state, RunState::Suspended);
        world.must_run = None;

        let resumed = world.control().job_resume(world.vault, job, JobAnswer::Retry).await;
        resumed.expect("it waits for that");
        let ended = world.finish(job).await;

        assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.errors);
        world.settle().await;
        world.ledger.violations()
    });

    assert_eq!(violations, Vec::<String>::new());
}

/// How long the guest takes to shut down, in milliseconds: it writes meanwhile.
const SHUTS_DOWN_MS: u64 = 3_000;

/// Lets the guest write more while it shuts down than the link carries in a second, and returns
/// when its last data are under way.
async fn last_data_begin(world: &mut World, from: Site, job: JobId) {
    let shuts_down = async |world: &World| {
        let tasks = world.job(job).await.tasks;
        let mut of_shutdown = tasks.iter().filter(|task| task.name == "VmShutdownVmOnPrimary");
        of_shutdown.any(|task| task.state == RunState::InProgress)
    };
    world.until("the guest is asked to shut down", STEPS_MAX, shuts_down).await;
    world.link.set_pace(PACE);
    let (before, machine) = (world.link.crossed(), world.owned(from));
    let mut random = Seeded::new(3);
    let some = |_| random.next_u64().to_le_bytes();
    let bytes: Vec<u8> = (0..SIZES[0] / 4 / 8).flat_map(some).collect();
    let written = world.machines(from).guest_write(&machine, DiskNumber(0), 0, &bytes);
    written.expect("the guest still runs");
    world.ledger.moved(from);
    let under_way = async |world: &World| {
        world.link.crossed().all > before.all + BLOCK && !world.is_running(from).await
    };
    world.until("the last data are under way", STEPS_MAX, under_way).await;
}

/// F-086, F-079. The link is cut while the last data are sent, to the config server as well: the
/// job ends by itself, nobody is asked, and nothing is lost or sent as a whole again.
#[test]
fn a_link_that_is_cut_under_the_last_data_asks_nobody_and_loses_nothing() {
    let cases = [Site::Primary, Site::Recovery].into_iter().flat_map(|from| {
        let states = [LinkState::Refuses, LinkState::Hangs];
        states.into_iter().flat_map(move |state| [1_500, 20_000].map(|ms| (from, state, ms)))
    });
    let run = |(from, state, away_ms)| {
        let case = format!("from {from:?}, {state:?} for {away_ms} ms");
        simulate(async {
            let random = &mut Seeded::new(away_ms);
            let mut world = World::replicated(Some(SIZES), random).await;
            if from == Site::Recovery {
                planned(&mut world).await;
                commit(&mut world).await;
                world.reprotect_wholly(random).await;
            }
            // Connections are counted that are made from now on.
            world.link.count();
            world.link_set(LinkState::Refuses);
            world.wait(100).await;
            world.heal().await;
            protected(&mut world).await;
            let machine = world.owned(from);
            let slow = OnShutdown::After(Duration::from_millis(SHUTS_DOWN_MS));
            world.machines(from).set_on_shutdown(&machine, slow);
            let (control, item) = parts(&world);
            let job = control.item_planned_failover(item, PlannedSpec::default()).await;
            let job = job.expect("it is protected");
            last_data_begin(&mut world, from, job).await;

            world.link_set(state);
            for _ in 0..away_ms / 500 {
                world.wait(500).await;
                assert_eq!(world.job(job).await.state, RunState::InProgress, "{case}");
                assert!(!world.is_running(from).await, "{case}: the guest runs again");
            }
            world.heal().await;
            let ended = world.finish(job).await;

            assert_eq!(ended.state, RunState::Succeeded, "{case}: {:?}", ended.errors);
            let crossed = world.link.crossed();
            assert!(crossed.all - crossed.lost < SIZES[0], "{case}: {crossed:?}");
            assert!(state == LinkState::Hangs || crossed.lost > 0, "{case}: {crossed:?}");
            world.settle().await;
            (case, world.ledger.violations())
        })
    };

    for (case, violations) in crowd(cases, run, |_| false) {
        assert_eq!(violations, Vec::<String>::new(), "{case}");
    }
}

/// Decision 39, F-140. Whatever became of the old disks, the other direction is built up.
#[test]
fn a_reprotect_takes_the_old_disks_as_it_finds_them() {
    use leeward_sim::world::history::Stale;
    for stale in [Stale::Gone, Stale::OneGone, Stale::Replaced, Stale::Grown] {
        let violations = simulate(async {
            let random = &mut Seeded::new(39);
            let mut world = committed_at_recovery(None, random).await;
            world.write(random);
            world.stale_disks(stale, random).await;
            world.reprotect_wholly(random).await;
            world.write(random);
            planned(&mut world).await;
            world.settle().await;
            world.ledger.violations()
        });

        assert_eq!(violations, Vec::<String>::new(), "{stale:?}");
    }
}

/// What seed 8014 came upon. Protection ends at home, while the machine that was left still runs
/// and its host cannot be asked; begun anew, the machine goes out under another name, as its own
/// is taken there (F-005, F-122).
#[test]
fn who_goes_out_anew_gets_another_name_while_the_one_that_was_left_holds_it() {
    let violations = simulate(async {
        let random = &mut Seeded::new(8014);
        let mut world = committed_at_recovery(None, random).await;
        world.reprotect_wholly(random).await;
        world.role_kill(Site::Recovery).await;
        failover(&mut world, PointChoice::Latest, Shutdown::First).await;
        let (control, item) = parts(&world);
        let reason = DisableReason::MigrationComplete;
        let ends = control.item_disable(item, KeepPoints::Keep, reason).await.unwrap();
        assert_eq!(world.finish(ends).await.state, RunState::Suspended);
        let words = JobAnswer::Reply("go-on".to_owned());
        control.job_resume(world.vault, ends, words).await.unwrap();
        assert_eq!(world.finish(ends).await.state, RunState::SucceededWithWarning);
        world.ledger.replica_kept(item);
        // Its owner was told that it may run, and switches it off.
        let former = world.owned(Site::Recovery);
        world.machines(Site::Recovery).kill_process(&former);
        world.heal().await;

        world.protect(random).await;
        protected(&mut world).await;
        world.policy_set(true).await;
        world.write(random);
        planned(&mut world).await;
        world.write(random);
        protected(&mut world).await;
        commit(&mut world).await;
        world.check_often().await;

        assert_ne!(world.owned(Site::Recovery), former);
        assert!(world.is_running(Site::Recovery).await);
        let before = world.machines(Site::Recovery).machine_state(&former).await;
        assert_eq!(before.unwrap(), MachineState::Off);
        world.settle().await;
        world.ledger.violations()
    });

    assert_eq!(violations, Vec::<String>::new());
}

/// Protection that ends without its points leaves none on a host either that was left for another
/// one long ago.
#[test]
fn an_end_without_points_leaves_none_on_a_host_that_was_left_for_another() {
    let violations = simulate(async {
        let random = &mut Seeded::new(105);
        let mut world = committed_at_recovery(None, random).await;
        world.reprotect_wholly(random).await;
        planned(&mut world).await;
        commit(&mut world).await;
        world.reprotect_wholly(random).await;
        planned(&mut world).await;
        commit(&mut world).await;
        let (control, item) = parts(&world);
        assert!(world.disk_of(HostPlace::First).and_then(|disk| disk.item(item)).is_some());
        world.spare_join().await;
        // It is refused until the new host was heard.
        while matches!(state(&world).await, Protection::Committed { .. }) {
            world.enact(Deed::Ask(Asked::ReprotectElsewhere), random).await;
            world.wait(200).await;
        }
        protected(&mut world).await;

        world.ledger.may_delete();
        let reason = DisableReason::Normal;
        let ended = control.item_disable(item, KeepPoints::Delete, reason).await;
        done(&mut world, ended).await;

        world.ledger.replica_ended();
        for place in [HostPlace::First, HostPlace::Spare, HostPlace::Recovery] {
            let left = world.disk_of(place).and_then(|disk| disk.item(item));
            assert!(left.is_none(), "points are left at {place:?}");
        }
        world.ledger.violations()
    });

    assert_eq!(violations, Vec::<String>::new());
}
