//! Both ways to bring a committed machine home by one request, in the simulated world: what differs
//! is sent while it runs, or all of it while it is off. The result is the same to the byte.
//!
//! What falls on them at every step is in `interruptions`.

use leeward_control::{
    items::{PlannedSpec, Shutdown, SyncOption},
    jobs::{JobView, RunState},
};
use leeward_fabric::Fabric as _;
use leeward_model::{DiskNumber, JobId, MachineState, PointChoice, Site};
use leeward_replica::storage::Seeded;
use leeward_sim::world::{World, crowd::crowd, history::Stale, link::LinkState, simulate};

/// What is written as a whole, in bytes.
const BLOCK: u64 = 4096;
/// Steps of the world within which a machine is off that nothing hinders.
const STEPS_MAX: usize = 5_000;
/// Instants at which the copy of a machine that is off is interrupted.
const INTERRUPTIONS: u64 = 60;

/// Both disks as they are.
type Disks = [Vec<u8>; 2];

fn disks(world: &World, site: Site) -> Disks {
    let disks = world.machines(site).disks(&world.owned(site)).expect("it is there");
    [0, 1].map(|number| disks.content(DiskNumber(number)))
}

fn went_well(ended: &JobView) {
    let well = matches!(ended.state, RunState::Succeeded | RunState::SucceededWithWarning);
    assert!(well, "{:?} ends as {:?}: {:?}", ended.scenario, ended.state, ended.errors);
}

/// Failed over and committed; then the machine has written, and its old disks are what they are.
async fn away(sizes: Option<[u64; 2]>, stale: Option<Stale>) -> World {
    let random = &mut Seeded::new(109);
    let mut world = World::replicated(sizes, random).await;
    let (control, item) = (world.control(), world.item.expect("it is protected"));
    let job = control.item_failover(item, PointChoice::Latest, Shutdown::First).await;
    went_well(&world.finish(job.expect("the world is ready for it")).await);
    let job = control.item_commit(item).await;
    went_well(&world.finish(job.expect("the world is ready for it")).await);
    (0..8).for_each(|_| world.write(random));
    if let Some(stale) = stale {
        world.stale_disks(stale, random).await;
    }
    world
}

async fn home(world: &World, sync: SyncOption) -> JobId {
    let (control, item) = (world.control(), world.item.expect("it is protected"));
    let spec = PlannedSpec { sync, ..PlannedSpec::default() };
    control.item_planned_failover(item, spec).await.expect("it is committed")
}

/// What came of one way home.
struct Came {
    /// The disks that the machine left, and those that it has now.
    disks: [Disks; 2],
    /// Bytes of blocks that the host it left has sent.
    sent: u64,
    violations: Vec<String>,
}

/// F-086, F-108, F-109: zero records lost, and the same disks, whatever became of the old ones.
#[test]
fn both_options_give_the_same_disks_and_lose_nothing() {
    let comes_home = |(stale, sync)| {
        simulate(async move {
            let mut world = away(None, stale).await;
            let job = home(&world, sync).await;
            let ended = world.finish(job).await;
            let left = disks(&world, Site::Recovery);
            went_well(&ended);
            let sent = world.view().await.and_then(|view| view.sent_bytes).unwrap_or(0);
            world.settle().await;
            let disks = [left, disks(&world, Site::Primary)];
            Came { disks, sent, violations: world.ledger.violations() }
        })
    };
    for stale in [None, Some(Stale::Gone), Some(Stale::OneGone), Some(Stale::Grown)] {
        let [synchronized, copied] = [SyncOption::ForDownTime, SyncOption::ForSynchronization]
            .map(|sync| comes_home((stale, sync)));

        for came in [&synchronized, &copied] {
            assert_eq!(came.violations, Vec::<String>::new(), "{stale:?}");
            assert!(came.disks[0] == came.disks[1], "{stale:?}: not what the machine had written");
        }
        assert!(synchronized.disks[1] == copied.disks[1], "{stale:?}: the options differ");
        // Bytes of a full copy are those of the blocks that hold anything, wherever the old disks.
        let blocks = copied.disks[0].iter().flat_map(|disk| disk.chunks(BLOCK as usize));
        let holding = blocks.filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64;
        assert_eq!(copied.sent, holding * BLOCK, "{stale:?}");
        assert!(synchronized.sent <= copied.sent, "{stale:?}: {}", synchronized.sent);
        if stale.is_none() {
            assert!(synchronized.sent < copied.sent, "what did not change was sent");
        }
    }
}

/// F-109, F-112. The guest is off for all of the copy, and a copy that is interrupted goes on.
#[test]
fn a_copy_of_a_machine_that_is_off_comes_to_its_end_however_it_is_interrupted() {
    let sizes = [4 << 20, 256 << 10];
    let interrupted = |after_ms: u64| {
        simulate(async move {
            let random = &mut Seeded::new(after_ms);
            let mut world = away(Some(sizes), Some(Stale::Gone)).await;
            let words = (0..sizes[0] / 8).flat_map(|_| random.next_u64().to_le_bytes());
            world.write_at(DiskNumber(0), 0, &words.collect::<Vec<u8>>());
            let job = home(&world, SyncOption::ForSynchronization).await;
            let is_off = async |world: &World| !world.is_running(Site::Recovery).await;
            world.until("the machine is off", STEPS_MAX, is_off).await;
            world.wait(after_ms).await;
            match after_ms / 20 % 4 {
                0 => world.link_set(LinkState::Refuses),
                1 => world.role_kill(Site::Recovery).await,
                2 => world.role_kill(Site::Primary).await,
                _ => world.server_kill().await,
            }
            for _ in 0..200 {
                world.step().await;
                if world.is_running(Site::Recovery).await {
                    world.ledger.violated("the guest that was off runs");
                }
            }
            world.heal().await;
            let ended = world.finish(job).await;
            let left = disks(&world, Site::Recovery);
            world.settle().await;
            // Once the hosts have been heard again, whoever was dead.
            let sent = world.view().await.and_then(|view| view.sent_bytes).unwrap_or(0);
            if left != disks(&world, Site::Primary) {
                world.ledger.violated("the machine does not have what it had written");
            }
            let machine = world.owned(Site::Recovery);
            let state = world.machines(Site::Recovery).machine_state(&machine).await;
            if !matches!(state, Ok(MachineState::Off)) {
                world.ledger.violated("the machine that was left is not off");
            }
            (after_ms, ended, sent, world.ledger.violations())
        })
    };

    let done = crowd((0..INTERRUPTIONS).map(|n| n * 20), interrupted, |_| false);

    for (after_ms, ended, sent, violations) in done {
        assert_eq!(violations, Vec::<String>::new(), "after {after_ms} ms");
        went_well(&ended);
        assert!(sent <= 2 * (sizes[0] + sizes[1]), "{sent} after {after_ms} ms");
    }
}
