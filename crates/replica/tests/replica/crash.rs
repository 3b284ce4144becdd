//! Power cuts: every short sequence of operations, cut at every step, against the model.

use crate::world::{AT_ONCE, EAGER, ITEM, World, check_contents, open_writer, seed};
use leeward_model::Epoch;
use leeward_replica::{
    ItemStore, Mutation, StoreError, Upkeep,
    model::ModelItem,
    storage::{CrashDisk, LostSync, Seeded},
};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Branch,
    Append,
    Sync,
    Point,
    Progress,
    Fence,
    Expire,
    Pin,
    Keep,
    Seal,
    Retire,
    Restart,
    Index,
}

const OPS: [Op; 12] = [
    Op::Branch,
    Op::Append,
    Op::Sync,
    Op::Point,
    Op::Progress,
    Op::Fence,
    Op::Expire,
    Op::Pin,
    Op::Keep,
    Op::Seal,
    Op::Retire,
    Op::Restart,
];

fn apply(world: &mut World, op: Op) -> Result<(), StoreError> {
    match op {
        Op::Branch => world.branch_off(),
        Op::Append => (0..2).try_for_each(|_| world.append().map(|_| ())),
        Op::Sync => world.sync(),
        Op::Point => world.commit_point().map(|_| ()),
        Op::Progress => world.commit_progress(),
        Op::Fence => world.raise_fence(),
        Op::Expire => world.expire(),
        Op::Pin => world.pin_newest(),
        Op::Keep => world.add_kept(),
        Op::Seal => world.seal(),
        Op::Retire => world.retire(),
        Op::Restart => world.restart(),
        Op::Index => world.index().map(|_| ()),
    }
}

/// What was acknowledged before the operation that was cut, and after it.
struct Bounds<'a> {
    before: &'a ModelItem,
    after: &'a ModelItem,
}

impl Bounds<'_> {
    fn check(&self, item: &ItemStore) -> Result<(), String> {
        let (reader, Bounds { before, after }) = (item.reader(), self);
        let state = reader.state();
        if state.fence < before.fence || state.fence > after.fence.max(before.fence) {
            return Err(format!("the fence is {}", state.fence));
        }
        for branch in &before.branches {
            if state.branch(branch.timeline) != Some(branch) {
                return Err(format!("timeline {} is lost", branch.timeline));
            }
            let committed = reader.committed(branch.timeline).unwrap_or_default();
            let (low, high) = (before.head(branch.timeline), after.head(branch.timeline));
            if committed < low || committed > high {
                return Err(format!("committed is {committed}, not {low} to {high}"));
            }
        }
        if state.branches.iter().any(|branch| after.branch(branch.timeline).is_none()) {
            return Err("a timeline came from nowhere".into());
        }
        for (id, place) in &before.points {
            let listed = state.point(*id).is_some_and(|point| point.position == *place);
            if !listed && after.points.contains_key(id) {
                return Err(format!("point {id} is lost"));
            }
        }
        for point in &state.points {
            let known = before.points.get(&point.id).or(after.points.get(&point.id));
            if known != Some(&point.position) {
                return Err(format!("point {} is half a point", point.id));
            }
        }
        let kept = reader.kept().map_err(|error| error.to_string())?;
        for id in before.kept.keys().filter(|id| after.kept.contains_key(id)) {
            if !kept.iter().any(|record| record.id == *id) {
                return Err(format!("kept work {id} is lost"));
            }
        }
        let pins = reader.pins().map_err(|error| error.to_string())?;
        for (id, count) in &before.pins {
            if pins.iter().filter(|pin| pin.point == *id).count() < *count {
                return Err(format!("a pin of {id} is lost"));
            }
        }
        // Records that are received again after a lost session differ; committed ones do not.
        check_contents(reader, after).map_err(|error| format!("contents: {error}"))
    }
}

/// Opens the store as a cut left it and checks it.
fn check_state(state: CrashDisk, bounds: &Bounds<'_>) -> Result<(), String> {
    let store = open_writer(Arc::new(state), 77).map_err(|error| format!("open: {error}"))?;
    let item = store.item_open(ITEM).map_err(|error| format!("open item: {error}"))?;
    bounds.check(&item)?;
    // A layer that is not as it was written would only be read around.
    let audit = item.reader().audit(&|_, _| ()).map_err(|error| format!("audit: {error}"))?;
    let layer = audit.damages.iter().find(|damage| damage.blob.contains("/layers/"));
    layer.map_or(Ok(()), |damage| Err(format!("{damage:?}")))
}

struct Tally {
    states: u64,
    failures: Vec<String>,
}

struct Harness {
    limit: usize,
    lost_sync: Option<usize>,
    random: Seeded,
    upkeep: Upkeep,
}

impl Harness {
    /// Runs `ops` and cuts at every step of the last one: earlier cuts are those of shorter
    /// sequences.
    fn run(&mut self, base: &CrashDisk, ops: &[Op], tally: &mut Tally) {
        self.run_with(base, ops, tally, ops.len() - 1);
    }

    fn run_with(&mut self, base: &CrashDisk, ops: &[Op], tally: &mut Tally, from: usize) {
        let (disk, mut world) = world_on(base);
        world.set_upkeep(self.upkeep);
        if let Some(nth) = self.lost_sync {
            disk.lose_sync(LostSync { nth: disk.syncs() + nth });
        }
        let mut acknowledged = vec![(disk.steps(), world.model.clone())];
        for op in ops {
            apply(&mut world, *op).unwrap_or_else(|error| panic!("{ops:?}: {op:?}: {error}"));
            acknowledged.push((disk.steps(), world.model.clone()));
        }
        for window in acknowledged[from..].windows(2) {
            let [(first, before), (last, after)] = window else { unreachable!("two each") };
            for cut in *first..=*last {
                // At the end of an operation it is acknowledged.
                let before = if cut == *last { after } else { before };
                let bounds = Bounds { before, after };
                for state in disk.after_power_cut(cut, self.limit, &mut self.random) {
                    tally.states += 1;
                    if let Err(why) = check_state(state, &bounds) {
                        tally.failures.push(format!("{ops:?} cut at {cut}: {why}"));
                    }
                }
            }
        }
    }
}

fn base_disk() -> CrashDisk {
    let (disk, world) = World::on_crash_disk(5);
    drop(world);
    disk
}

/// A world that goes on from `base`, on a disk whose present content is durable.
fn world_on(base: &CrashDisk) -> (CrashDisk, World) {
    let disk = CrashDisk::holding(base.blobs());
    // The same seed makes the same ids and contents, so the model can be made again.
    let (_, mut world) = World::on_crash_disk(5);
    (world.item, world.store) = (None, None);
    world.blobs = Arc::new(disk.clone());
    world.restart().unwrap();
    (disk, world)
}

fn harness(test: &str, limit: usize) -> Harness {
    Harness { limit, lost_sync: None, random: Seeded::new(seed(test)), upkeep: AT_ONCE }
}

/// E3: acknowledged data survive, no half point, the fence never goes back, no wrong byte.
#[test]
fn every_sequence_of_three_operations_survives_a_power_cut_at_every_step() {
    let mut harness = harness("crash states", 5);
    let base = base_disk();
    let mut tally = Tally { states: 0, failures: Vec::new() };

    for a in OPS {
        harness.run(&base, &[a], &mut tally);
        for b in OPS {
            harness.run(&base, &[a, b], &mut tally);
            for c in OPS {
                harness.run(&base, &[a, b, c], &mut tally);
            }
        }
    }

    println!("PROOF E3 crash_states={} sequences=every_up_to_3", tally.states);
    assert!(tally.failures.is_empty(), "{}: {:#?}", tally.failures.len(), &tally.failures[..1]);
    assert!(tally.states >= 20_000, "only {} states", tally.states);
}

/// Crash states of long sequences in a usual run, and in a long one.
const RANDOM_STATES: u64 = 5_000;
const RANDOM_STATES_LONG: u64 = 10_000_000;

/// E3: long sequences, drawn; the power goes at every step of every operation.
#[test]
fn random_sequences_of_operations_survive_a_power_cut_at_every_step() {
    let long = std::env::var_os("LONG").is_some();
    let states = if long { RANDOM_STATES_LONG } else { RANDOM_STATES };
    let seed = seed("random sequences");
    let base = base_disk();
    let share = |worker: u64| {
        let mut random = Seeded::new(seed.wrapping_mul(1_000_003).wrapping_add(worker));
        let mut harness = harness("random cuts", 4);
        let mut tally = Tally { states: 0, failures: Vec::new() };
        let mut sequences = 0_u64;
        while tally.states < states / WORKERS && tally.failures.is_empty() {
            let count = 4 + random.below(9) as usize;
            let ops: Vec<Op> =
                (0..count).map(|_| OPS[random.below(OPS.len() as u64) as usize]).collect();
            harness.run_with(&base, &ops, &mut tally, 0);
            sequences += 1;
        }
        (tally, sequences)
    };

    let shares = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..WORKERS).map(|worker| scope.spawn(move || share(worker))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });

    let states: u64 = shares.iter().map(|(tally, _)| tally.states).sum();
    let sequences: u64 = shares.iter().map(|(_, sequences)| sequences).sum();
    println!("PROOF E3 crash_states={states} sequences={sequences} seed={seed}");
    let failures: Vec<_> = shares.iter().flat_map(|(tally, _)| &tally.failures).collect();
    assert!(failures.is_empty(), "{}: {:#?}", failures.len(), failures[0]);
}

/// Threads that live through random sequences; a run's result depends on their number.
const WORKERS: u64 = 2;

/// E3 for the index: layers are made, merged and made anew, segments dropped, under a power cut at
/// every step of every short sequence; a layer is named only once it is durable.
#[test]
fn layers_and_what_they_stand_for_survive_a_power_cut_at_every_step() {
    const OPS: [Op; 7] =
        [Op::Append, Op::Point, Op::Expire, Op::Index, Op::Branch, Op::Pin, Op::Restart];
    let mut harness = harness("crash states of the index", 4);
    harness.upkeep = EAGER;
    let (disk, mut world) = world_on(&base_disk());
    world.set_upkeep(EAGER);
    for op in [Op::Append, Op::Point, Op::Index, Op::Append, Op::Point, Op::Index] {
        apply(&mut world, op).unwrap();
    }
    assert!(!world.item().layers().is_empty() && disk.steps() > 0);
    let mut tally = Tally { states: 0, failures: Vec::new() };

    for a in OPS {
        for b in OPS {
            harness.run(&base_disk(), &[Op::Point, Op::Index, a, b], &mut tally);
            harness.run(&base_disk(), &[Op::Point, Op::Index, a, b, Op::Index], &mut tally);
            harness.run(&base_disk(), &[Op::Point, Op::Index, a, b, Op::Expire], &mut tally);
        }
    }

    println!("{} crash states of the index checked", tally.states);
    assert!(tally.failures.is_empty(), "{}: {:#?}", tally.failures.len(), &tally.failures[..1]);
    assert!(tally.states >= 2_500, "only {} states", tally.states);
}

/// As for the data: of the flushes of layers and the manifests that name them, none can go.
#[test]
fn skipping_a_flush_of_the_index_is_noticed() {
    const STORY: [Op; 6] = [Op::Append, Op::Point, Op::Index, Op::Append, Op::Point, Op::Index];
    let base = base_disk();
    let (disk, mut world) = world_on(&base);
    world.set_upkeep(EAGER);
    let before = disk.syncs();
    for op in STORY {
        apply(&mut world, op).unwrap();
    }
    let flushes = disk.syncs() - before;
    let mut unnoticed = Vec::new();
    for nth in 0..flushes {
        let random = Seeded::new(1);
        let mut harness = Harness { limit: 6, lost_sync: Some(nth), random, upkeep: EAGER };
        let mut tally = Tally { states: 0, failures: Vec::new() };
        harness.run_with(&base, &STORY, &mut tally, 0);
        if tally.failures.is_empty() {
            unnoticed.push(nth);
        }
    }
    println!("of {flushes} skipped flushes not noticed: {unnoticed:?}");
    // Twice the footer's flush: without a footer a segment is scanned; and twice the name of the
    // manifest that adds a layer: without it there is one layer less.
    assert!(unnoticed.len() <= 4, "of {flushes} not noticed: {unnoticed:?}");
}

const STORY: [Op; 9] = [
    Op::Append,
    Op::Point,
    Op::Keep,
    Op::Fence,
    Op::Branch,
    Op::Append,
    Op::Point,
    Op::Expire,
    Op::Pin,
];

/// Decision 45: a flush that is skipped anywhere must turn the harness red, unless another one
/// covers it.
#[test]
fn skipping_a_flush_is_noticed() {
    let base = base_disk();
    let (disk, mut world) = world_on(&base);
    let before = disk.syncs();
    for op in STORY {
        apply(&mut world, op).unwrap();
    }
    let flushes = disk.syncs() - before;
    let layers = world.item().layers().len();

    let mut noticed = Vec::new();
    for nth in 0..flushes {
        let random = Seeded::new(1);
        let mut harness = Harness { limit: 6, lost_sync: Some(nth), random, upkeep: AT_ONCE };
        let mut tally = Tally { states: 0, failures: Vec::new() };
        harness.run_with(&base, &STORY, &mut tally, 0);
        if !tally.failures.is_empty() {
            noticed.push(nth);
        }
    }

    println!("{} of {flushes} skipped flushes noticed: {noticed:?}", noticed.len());
    // Not seen are those that a later flush of the same folder covers before anything is
    // acknowledged: within one expiry, the first of its manifests and the deletions; and for each
    // layer the name of the manifest that adds it, without which footers are read.
    assert!(noticed.len() + 3 + layers >= flushes, "of {flushes} only {noticed:?}");
}

#[test]
fn committing_what_is_not_flushed_is_noticed() {
    let base = base_disk();
    let (disk, mut world) = world_on(&base);
    world.item().set_mutation(Mutation::CommitUnflushed);
    world.append().unwrap();
    world.durable = world.received;
    world.commit_progress().unwrap();

    let bounds = Bounds { before: &world.model, after: &world.model };
    let states = disk.after_power_cut(disk.steps(), 16, &mut Seeded::new(1));
    let place = world.place(world.received);
    let red = states.into_iter().any(|state| {
        check_state(state.clone(), &bounds).is_err() || !reads(state, &world.model, place)
    });

    assert!(red, "no crash state showed the mistake");
}

fn reads(state: CrashDisk, model: &ModelItem, place: leeward_model::Position) -> bool {
    let store = open_writer(Arc::new(state), 78).unwrap();
    let Ok(item) = store.item_open(ITEM) else { return false };
    crate::world::check_place(item.reader(), model, place).is_ok()
}

/// Decision 45: ignoring the epoch must turn a test red.
#[test]
fn ignoring_the_epoch_is_noticed() {
    let refuses = |mutation: Option<Mutation>| {
        let (_, mut world) = World::on_crash_disk(9);
        if let Some(mutation) = mutation {
            world.item().set_mutation(mutation);
        }
        world.raise_fence().unwrap();
        world.epoch = Epoch(0);
        let begun = world.begin();
        matches!(begun, Err(StoreError::Fenced { .. }))
    };

    assert!(refuses(None));
    assert!(!refuses(Some(Mutation::IgnoreEpoch)), "the mutation has no effect");
}

#[test]
fn collecting_too_much_is_noticed() {
    let (_, mut world) = World::on_crash_disk(9);
    world.item().set_mutation(Mutation::CollectTooMuch);
    world.seal().unwrap();

    world.expire().unwrap();

    assert!(world.check_contents().is_err(), "the checker did not see the loss");
}

/// A store that a power cut left is not only right but usable.
#[test]
fn after_a_power_cut_replication_goes_on() {
    let base = base_disk();
    let mut random = Seeded::new(seed("forward progress"));
    let mut states = 0;
    for op in OPS {
        let (disk, mut world) = world_on(&base);
        apply(&mut world, Op::Append).unwrap();
        apply(&mut world, op).unwrap();
        for cut in 0..=disk.steps() {
            for state in disk.after_power_cut(cut, 3, &mut random) {
                states += 1;
                let mut next = world_after(state, &world);
                next.append().unwrap();
                next.commit_point().unwrap();
                next.check_contents().unwrap();
            }
        }
    }
    println!("{states} crash states gone on from");
}

/// A source that asks the recovered store where to go on, and does.
fn world_after(state: CrashDisk, world: &World) -> World {
    let mut next = World::bare(Arc::new(state), 99).unwrap();
    next.model = world.model.clone();
    next.drawn = 1 << 100;
    next.now = world.now;
    let reader = next.item.as_ref().unwrap().reader().clone();
    next.epoch = reader.fence();
    next.branch = *reader.branches().last().unwrap();
    next.model.branches = reader.branches().to_vec();
    next.model.committed = reader
        .branches()
        .iter()
        .map(|branch| (branch.timeline, reader.committed(branch.timeline).unwrap()))
        .collect();
    next.lose_session();
    if reader.state().retired.contains(&next.branch.timeline) {
        let place = reader.newest_point().unwrap().position;
        next.open_branch(Some(place)).unwrap();
    }
    next
}

/// A power cut while the store or the item is being made leaves something that can be made again.
#[test]
fn a_store_and_an_item_that_were_half_made_can_be_made_again() {
    use crate::world::{SeededRandom, VAULT, identity};
    use leeward_replica::Store;
    let disk = CrashDisk::new();
    crate::world::init(&disk);
    let made = disk.steps();
    let store = open_writer(Arc::new(disk.clone()), 1).unwrap();
    drop(store.item_create(VAULT, ITEM, None).unwrap());
    drop(store);
    let mut random = Seeded::new(seed("half made"));

    for cut in 0..=disk.steps() {
        for state in disk.after_power_cut(cut, 16, &mut random) {
            let there = Store::exists(&state).unwrap();
            assert!(there || cut < made, "an acknowledged store is lost");
            if !there {
                let again = Store::init(&state, identity(), SeededRandom::new(5).as_ref());
                again.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            }
            let store = open_writer(Arc::new(state.clone()), 2).unwrap();
            let known = store.items().unwrap().contains(&ITEM);
            assert!(known || cut < disk.steps(), "an acknowledged item is lost");
            store.item_create(VAULT, ITEM, None).unwrap();
        }
    }
}

/// What a killed writer put but did not flush is seen by the next one: it must be durable before
/// anything is said about it.
#[test]
fn what_a_restarted_writer_reports_survives_a_power_cut_after_a_kill() {
    let base = base_disk();
    let mut random = Seeded::new(seed("kill, then power cut"));
    for op in [Op::Fence, Op::Point, Op::Branch, Op::Keep, Op::Pin, Op::Retire] {
        let (disk, mut world) = world_on(&base);
        let before = disk.steps();
        apply(&mut world, op).unwrap();
        for kill in before..=disk.steps() {
            let killed = disk.after_kill(kill);
            let store = open_writer(Arc::new(killed.clone()), 60).unwrap();
            let item = store.item_open(ITEM).unwrap();
            let (state, reader) = (item.reader().state().clone(), item.reader());
            let kept = reader.kept().unwrap();
            let pins = reader.pins().unwrap();

            for left in killed.after_power_cut(killed.steps(), 16, &mut random) {
                let store = open_writer(Arc::new(left), 61).unwrap();
                let item = store.item_open(ITEM).unwrap();
                assert_eq!(item.reader().state(), &state, "{op:?} killed at {kill}");
                assert_eq!(item.reader().kept().unwrap(), kept, "{op:?} killed at {kill}");
                assert_eq!(item.reader().pins().unwrap(), pins, "{op:?} killed at {kill}");
            }
        }
    }
}
