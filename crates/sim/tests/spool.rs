//! A source whose store is away or slow: points are cut all the same, wait sealed at the source,
//! and reach the store in order and with their own times; and nothing depends on any of it.

#![allow(clippy::unwrap_used)]

use leeward_model::{Code, DiskNumber, Protection, Site, UnixMillis};
use leeward_replica::storage::Seeded;
use leeward_sim::world::{FIRST_DISK_BYTES, Mistakes, World, link::LinkState, simulate};

/// Room for every point of a test.
const ROOMY: u64 = 1 << 30;
/// Points come every 2 s.
const INTERVAL_MS: u64 = 2_000;
const AWAY_MS: u64 = 20_000;
/// Writes that a full store may refuse in that time: a session every 2 s, each with a segment, its
/// records, and the manifest's hint; and the keeping of the replica every 5 s.
const REFUSALS_MAX: u64 = 30;

/// A protected machine at rest, on hosts with so much room for what waits.
async fn begun(spool_bytes: u64, random: &mut Seeded) -> World {
    let mut world = World::new(Mistakes::default()).await;
    world.spool_set(spool_bytes).await;
    world.write(random);
    world.protect(random).await;
    let state = world.view().await.map(|view| view.state.protection);
    assert_eq!(state, Some(Protection::Protected));
    world.wait(5_000).await;
    world
}

/// Lets so many milliseconds pass while the guest writes.
async fn busy(world: &mut World, random: &mut Seeded, ms: u64) {
    let end = world.time.ms() + ms;
    while world.time.ms() < end {
        world.write(random);
        world.wait(500).await;
    }
}

/// When the points of the recovery site's store were cut, in milliseconds of the world's time; in
/// the order of the log.
fn cuts(world: &World) -> Vec<u64> {
    let reader = world.disk(Site::Recovery).item(world.item.unwrap()).unwrap();
    let mut points: Vec<(u64, UnixMillis)> =
        reader.state().points.iter().map(|point| (point.position.lsn.0, point.cut_at)).collect();
    points.sort_unstable();
    points.into_iter().filter_map(|(_, cut_at)| world.ledger.cut_ms(cut_at)).collect()
}

fn cut_within(world: &World, from: u64, to: u64) -> usize {
    cuts(world).into_iter().filter(|at| (from..to).contains(at)).count()
}

async fn rests_well(mut world: World) {
    world.settle().await;
    assert_eq!(world.ledger.violations(), Vec::<String>::new());
}

/// F-015: the uplink is cut, points wait, and afterwards the store has them with their own times.
/// Meanwhile the RPO shown is that of what the store has.
#[test]
fn points_that_were_cut_without_the_store_reach_it_in_order_with_their_own_times() {
    simulate(async {
        let random = &mut Seeded::new(15);
        for state in [LinkState::Refuses, LinkState::Hangs] {
            let mut world = begun(ROOMY, random).await;
            let before = world.time.ms();
            world.link_set(state);
            // A connection that hangs is given up after 30 s.
            let noticed = if state == LinkState::Hangs { 35_000 } else { 0 };
            busy(&mut world, random, noticed + AWAY_MS).await;
            let after = world.time.ms();
            let rpo = world.view().await.unwrap().rpo_seconds.unwrap();
            assert!(rpo * 1_000 + INTERVAL_MS >= after - before, "{rpo} s is too good");

            world.link_set(LinkState::Open);
            busy(&mut world, random, 10_000).await;

            let waited = cut_within(&world, before + noticed, after);
            assert!(waited as u64 >= AWAY_MS / INTERVAL_MS - 2, "{waited} points, {state:?}");
            let cuts = cuts(&world);
            assert!(cuts.is_sorted(), "{cuts:?}");
            assert!(cut_within(&world, after + 3_000, u64::MAX) > 0, "points come again");
            rests_well(world).await;
        }
    });
}

/// F-015: without a spool nothing waits, and no point of the time in between comes about.
#[test]
fn without_a_spool_the_time_without_the_store_has_no_points() {
    simulate(async {
        let random = &mut Seeded::new(15);
        let mut world = begun(0, random).await;
        let before = world.time.ms();
        world.link_set(LinkState::Refuses);
        busy(&mut world, random, AWAY_MS).await;
        let after = world.time.ms();

        world.link_set(LinkState::Open);
        busy(&mut world, random, 10_000).await;

        assert_eq!(cut_within(&world, before + INTERVAL_MS, after), 0);
        rests_well(world).await;
    });
}

/// F-015: the source's process ends while points wait; they are forwarded by the next one, once the
/// store gives it the key.
#[test]
fn what_waits_outlives_the_process_that_cut_it() {
    simulate(async {
        let random = &mut Seeded::new(16);
        let mut world = begun(ROOMY, random).await;
        let before = world.time.ms();
        world.link_set(LinkState::Refuses);
        busy(&mut world, random, 10_000).await;
        let killed = world.time.ms();
        world.role_kill(Site::Primary).await;
        world.role_start(Site::Primary);
        busy(&mut world, random, 10_000).await;

        world.link_set(LinkState::Open);
        busy(&mut world, random, 15_000).await;

        assert!(cut_within(&world, before + INTERVAL_MS, killed) >= 3, "{:?}", cuts(&world));
        rests_well(world).await;
    });
}

/// Whether the item's health has an error of that code.
async fn has_problem(world: &World, code: Code) -> bool {
    let health = world.view().await.map(|view| view.health).unwrap_or_default();
    health.iter().any(|error| error.problem.code == code.code)
}

/// F-015, F-150: a spool that is full is said to be full; changes are noted, and points come again
/// by themselves. The store is away and the config server is not, so it can be told.
#[test]
fn a_full_spool_is_told_and_costs_points_and_nothing_else() {
    simulate(async {
        let random = &mut Seeded::new(17);
        let mut world = begun(24 << 10, random).await;
        world.role_kill(Site::Recovery).await;
        let told = async |world: &World| has_problem(world, Code::SPOOL_FULL).await;
        let mut full = false;
        for _ in 0..60 {
            busy(&mut world, random, 1_000).await;
            full |= told(&world).await;
        }
        assert!(full, "nobody is told");
        let back = world.time.ms();

        world.role_start(Site::Recovery);
        busy(&mut world, random, 20_000).await;

        assert!(!told(&world).await, "it is over");
        assert!(cut_within(&world, back + 5_000, u64::MAX) >= 3, "{:?}", cuts(&world));
        rests_well(world).await;
    });
}

/// F-015, LW-0604: a spool that is smaller than one delta is said to be full until the store is
/// back.
#[test]
fn a_spool_too_small_for_one_delta_is_told_without_a_break() {
    simulate(async {
        let random = &mut Seeded::new(19);
        let mut world = begun(1 << 10, random).await;
        world.role_kill(Site::Recovery).await;
        let told = async |world: &World| has_problem(world, Code::SPOOL_FULL).await;
        let before = world.time.ms();
        world.write(random);
        world.until("somebody is told", 2_000, told).await;
        while world.time.ms() < before + AWAY_MS {
            world.write(random);
            world.wait(100).await;
            assert!(told(&world).await, "it is said no more at {} ms", world.time.ms());
        }

        world.role_start(Site::Recovery);
        busy(&mut world, random, 15_000).await;

        assert!(!told(&world).await, "it is over");
        rests_well(world).await;
    });
}

/// F-015, LW-0401: a store without space is said to be without space until it takes data again,
/// and is asked at a pace that costs nothing; meanwhile points are cut, and wait.
#[test]
fn a_full_store_is_told_without_a_break_and_asked_seldom_while_points_wait() {
    simulate(async {
        let random = &mut Seeded::new(18);
        let mut world = begun(ROOMY, random).await;
        let disk = world.disk(Site::Recovery).clone();
        let told = async |world: &World| has_problem(world, Code::STORE_NO_SPACE).await;
        let (before, refused) = (world.time.ms(), disk.refusals());
        disk.set_full(true);
        world.write(random);
        world.until("somebody is told", 500, told).await;
        while world.time.ms() < before + AWAY_MS {
            world.write(random);
            world.wait(100).await;
            assert!(told(&world).await, "it is said no more at {} ms", world.time.ms());
        }
        let after = world.time.ms();
        let refused = disk.refusals() - refused;
        assert!(refused <= REFUSALS_MAX, "{refused} writes were refused in {AWAY_MS} ms");

        disk.set_full(false);
        busy(&mut world, random, 15_000).await;

        assert!(!told(&world).await, "it is over");
        let waited = cut_within(&world, before, after);
        assert!(waited as u64 >= AWAY_MS / INTERVAL_MS - 3, "{waited} points: {:?}", cuts(&world));
        rests_well(world).await;
    });
}

/// The lowest limit there is.
const LIMIT: u64 = 64 << 10;
/// Less than the half of the disks above which they are compared, and seconds on its way.
const DELTA_BYTES: u64 = 6 * (64 << 10);

/// The guest fills so much of its first disk with what no compression makes smaller.
fn fill(world: &World, random: &mut Seeded, len: u64) -> u64 {
    let bytes: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
    world.write_at(DiskNumber(0), 0, &bytes);
    len
}

/// F-046: a policy's limit holds for a first copy, to within one burst, and is taken back.
#[test]
fn no_more_is_sent_than_the_policy_lets() {
    simulate(async {
        let random = &mut Seeded::new(46);
        let mut world = World::new(Mistakes::default()).await;
        world.bandwidth_set(LIMIT.to_string().parse().unwrap()).await;
        let bytes = fill(&world, random, FIRST_DISK_BYTES / 4096 * 4096);
        let begun = world.time.ms();

        world.protect(random).await;
        let replicated =
            async |world: &World| world.view().await.is_some_and(|view| view.newest.is_some());
        world.until("the first point", 3_000, replicated).await;

        let took = world.time.ms() - begun;
        let least = (bytes - LIMIT / 4) * 1_000 / LIMIT;
        assert!(took >= least, "{bytes} bytes in {took} ms");
        world.bandwidth_set("none".parse().unwrap()).await;
        world.wait(3_000).await;
        let begun = world.time.ms();
        fill(&world, random, bytes);
        let newer = async |world: &World| cut_within(world, begun, u64::MAX) > 0;
        world.until("a point without a limit", 500, newer).await;
        let took = world.time.ms() - begun;
        assert!(took < least, "{bytes} bytes in {took} ms");
        rests_well(world).await;
    });
}

/// F-015, F-046: a link that is slower than the machine writes does not keep points from being cut.
#[test]
fn points_wait_for_a_slow_link_as_for_one_that_is_away() {
    simulate(async {
        let random = &mut Seeded::new(47);
        let mut world = begun(ROOMY, random).await;
        world.bandwidth_set(LIMIT.to_string().parse().unwrap()).await;
        let (before, mut most) = (world.time.ms(), 0);
        for _ in 0..15 {
            fill(&world, random, DELTA_BYTES);
            world.wait(INTERVAL_MS).await;
            let spool = world.view().await.and_then(|view| view.spool);
            most = most.max(spool.map_or(0, |spool| spool.points));
        }
        let after = world.time.ms();
        assert!(most >= 2, "{most} points waited at most");

        world.bandwidth_set("none".parse().unwrap()).await;
        busy(&mut world, random, 15_000).await;

        let within = cut_within(&world, before, after);
        assert!(within >= 6, "{within} points: {:?}", cuts(&world));
        assert_eq!(world.view().await.unwrap().spool, None, "nothing waits any more");
        rests_well(world).await;
    });
}
