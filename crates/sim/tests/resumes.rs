//! Reprotect, planned failover and resync, interrupted at twenty places each: they go on where
//! they were. What is sent again is counted at the link and at the store's disk, in blocks.
//!
//! The bound: over all attempts there cross, and are written, at most the bytes of the same run
//! without an interruption, and what a store had not committed when a connection broke. So nothing
//! that was committed goes twice. And what was not committed is little: what went since the last
//! commit, for which it is time after 5 s, and a batch.

use leeward_control::{
    Control,
    items::{PlannedSpec, ReprotectSpec, Shutdown},
    jobs::{JobAnswer, RunState},
};
use leeward_fabric::Fabric as _;
use leeward_model::{DiskNumber, ItemId, MachineState, PointChoice, Protection, Site};
use leeward_replica::storage::Seeded;
use leeward_sim::world::{
    Mistakes, World, crowd::crowd, fabric::image_of, ledger::Image, link::LinkState, simulate,
    tally::Blocks,
};

/// What is written as a whole, in bytes.
const BLOCK: u64 = 4096;
/// Sizes of the disks.
const SIZES: [u64; 2] = [8 << 20, 256 << 10];
/// Bytes a second over the link: so that a whole copy takes over twenty seconds.
const LINK_PACE: u64 = 384 << 10;
/// The link's pace while nothing is measured.
const LINK_FAST: u64 = 64 << 20;
/// How long the left machine's disks take for a MiB, in milliseconds.
const READ_MS: u64 = 2_600;
/// Progress is committed after the batch in which this time has passed, in milliseconds.
const COMMIT_MS: u64 = 5_000;
/// A batch of what a pass found, in bytes.
const BATCH: u64 = 1 << 20;
/// Places at which each operation is interrupted.
const PLACES: u64 = 20;
/// Steps of the world within which a state comes about that nothing hinders.
const STEPS_MAX: usize = 8_000;
/// For how long a link is cut, a disk full, a role dead, in milliseconds.
const AWAY_MS: u64 = 1_500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// From the recovery site, whose machine is live, to the primary one.
    Reprotect,
    /// From the primary site.
    PlannedFailover,
    /// From the primary site, of a machine whose change map was lost.
    Resync,
}

const OPERATIONS: [Operation; 3] =
    [Operation::Reprotect, Operation::PlannedFailover, Operation::Resync];

impl Operation {
    /// Where the machine is live, and where its data go.
    fn sites(self) -> (Site, Site) {
        match self {
            Operation::Reprotect => (Site::Recovery, Site::Primary),
            Operation::PlannedFailover | Operation::Resync => (Site::Primary, Site::Recovery),
        }
    }

    /// How long it takes when nothing interrupts it, about, in milliseconds.
    fn takes_ms(self) -> u64 {
        match self {
            Operation::Reprotect => 48_000,
            Operation::PlannedFailover => 12_000,
            Operation::Resync => 24_000,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    KillServer,
    KillSource,
    KillTarget,
    Cancel,
    CutLink,
    FillDisk,
    RebootSource,
    RebootTarget,
}

const BLOWS: [Blow; 8] = [
    Blow::KillSource,
    Blow::KillTarget,
    Blow::CutLink,
    Blow::FillDisk,
    Blow::RebootTarget,
    Blow::KillServer,
    Blow::RebootSource,
    Blow::Cancel,
];

fn parts(world: &World) -> (Control, ItemId) {
    (world.control(), world.item.expect("it is protected"))
}

async fn state(world: &World) -> Option<Protection> {
    world.view().await.map(|view| view.state.protection)
}

/// The guest writes so many per mille of its blocks, all over its disks.
fn scatter(world: &World, random: &mut Seeded, per_mille: u64) -> u64 {
    let mut bytes = 0;
    for (number, size) in SIZES.into_iter().enumerate() {
        for block in (0..size / BLOCK).filter(|block| block * per_mille % 1000 < per_mille) {
            let words = (0..BLOCK / 8).flat_map(|_| random.next_u64().to_le_bytes());
            let words: Vec<u8> = words.collect();
            world.write_at(DiskNumber(number as u16), block * BLOCK, &words);
            bytes += BLOCK;
        }
    }
    bytes
}

async fn succeeds(world: &mut World, job: leeward_model::JobId) {
    let ended = world.finish(job).await;
    let well = matches!(ended.state, RunState::Succeeded | RunState::SucceededWithWarning);
    assert!(well, "{:?} ends as {:?}: {:?}", ended.scenario, ended.state, ended.errors);
}

/// What is counted of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    /// Over the link.
    crossed: Blocks,
    /// To the disk of the target's store.
    written: Blocks,
}

fn counted(world: &World, operation: Operation) -> Counted {
    let (_, target) = operation.sites();
    let item = world.item.expect("it is protected");
    Counted { crossed: world.link.crossed(), written: world.disk(target).written(item) }
}

fn since(before: Blocks, now: Blocks) -> Blocks {
    Blocks { all: now.all - before.all, lost: now.lost.saturating_sub(before.lost) }
}

/// The disks of the machine that was left, if one was.
fn old_disks(world: &World, operation: Operation) -> Option<Image> {
    match operation {
        Operation::Reprotect => {
            let old = world.machines(Site::Primary).disks(&world.owned(Site::Primary));
            Some(image_of(&old.expect("it was left there")))
        }
        Operation::PlannedFailover | Operation::Resync => None,
    }
}

/// A world in which the operation begins; returns the bytes of blocks that are due to be sent.
async fn begun(operation: Operation, random: &mut Seeded) -> (World, u64) {
    let mut world = World::sized(Mistakes::default(), SIZES).await;
    world.link.count();
    world.link.set_pace(LINK_FAST);
    world.read_pace(0);
    scatter(&world, random, 1000);
    world.protect(random).await;
    world.wait(2_500).await;
    if operation == Operation::Reprotect {
        let (control, item) = parts(&world);
        let job = control.item_failover(item, PointChoice::Latest, Shutdown::First).await;
        succeeds(&mut world, job.expect("it is protected")).await;
        let job = control.item_commit(item).await;
        succeeds(&mut world, job.expect("it is failed over")).await;
    }
    world.check_often().await;
    world.link.set_pace(LINK_PACE);
    world.read_pace(READ_MS);
    let due = match operation {
        Operation::Reprotect => scatter(&world, random, 1000),
        Operation::PlannedFailover => {
            // Below the share that is compared instead.
            let due = scatter(&world, random, 400);
            world.wait(100).await;
            due
        }
        Operation::Resync => {
            let due = scatter(&world, random, 1000);
            let machine = world.owned(Site::Primary);
            world.machines(Site::Primary).kill_process(&machine);
            world.ledger.moved(Site::Primary);
            world.owner_starts(Site::Primary).await;
            due
        }
    };
    (world, due)
}

async fn ask(world: &mut World, operation: Operation) {
    let (control, item) = parts(world);
    let asked = match operation {
        Operation::Reprotect => control.item_reprotect(item, ReprotectSpec::default()).await,
        Operation::PlannedFailover => {
            control.item_planned_failover(item, PlannedSpec::default()).await
        }
        Operation::Resync => control.item_resync(item).await,
    };
    asked.expect("the world is ready for it");
}

/// Whether what was asked for has come about.
async fn is_done(world: &World, operation: Operation) -> bool {
    match (operation, state(world).await) {
        (Operation::Reprotect | Operation::Resync, Some(Protection::Protected)) => {
            world.jobs_running().await.is_empty()
        }
        (Operation::PlannedFailover, Some(Protection::FailedOver { .. })) => true,
        _ => false,
    }
}

async fn strike(world: &mut World, operation: Operation, blow: Blow, random: &mut Seeded) {
    let (source, target) = operation.sites();
    match blow {
        Blow::KillServer => world.server_kill().await,
        Blow::KillSource => world.role_kill(source).await,
        Blow::KillTarget => world.role_kill(target).await,
        Blow::RebootSource => {
            world.must_run = None;
            world.power_cut(source, random).await;
        }
        Blow::RebootTarget => world.power_cut(target, random).await,
        Blow::CutLink => world.link_set(LinkState::Refuses),
        Blow::FillDisk => world.disk(target).set_full(true),
        Blow::Cancel => {
            for job in world.jobs_running().await {
                let cancelled = world.control().job_cancel(world.vault, job.id).await;
                cancelled.expect("a cancel is always accepted");
            }
        }
    }
    world.wait(AWAY_MS).await;
    world.heal().await;
}

/// Goes on until it is done, as a patient operator does: what asks is answered, what was
/// cancelled is asked for again.
async fn completes(world: &mut World, operation: Operation) -> bool {
    let steps = 250;
    let mut asked = std::collections::BTreeSet::new();
    for _ in 0..STEPS_MAX / steps {
        let done = async |world: &World| is_done(world, operation).await;
        if world.reaches(steps, done).await {
            return true;
        }
        world.owner_cares().await;
        let running = world.jobs_running().await;
        for job in running.iter().filter(|job| job.state == RunState::Suspended) {
            let (control, vault) = (world.control(), world.vault);
            let answered = match asked.insert(job.id) {
                true => control.job_resume(vault, job.id, JobAnswer::Retry).await.map(|_| ()),
                false => control.job_cancel(vault, job.id).await.map(|_| ()),
            };
            answered.expect("it waits for an answer");
        }
        let again = matches!(
            (operation, state(world).await),
            (Operation::Reprotect, Some(Protection::Committed { .. }))
                | (Operation::PlannedFailover, Some(Protection::Protected))
        );
        if again && running.is_empty() {
            ask(world, operation).await;
        }
    }
    false
}

/// What came of an operation.
struct Outcome {
    /// Bytes of the blocks that were due to be sent.
    due: u64,
    counted: Counted,
    struck: Option<Protection>,
    wrong: Vec<String>,
}

/// Lets the operation go to its end, interrupted by the blow at the place, if one is to fall.
async fn outcome(operation: Operation, fall: Option<(Blow, u64)>) -> Outcome {
    let random = &mut Seeded::new(fall.map_or(0, |(_, place)| place));
    let (mut world, due) = begun(operation, random).await;
    let old = old_disks(&world, operation);
    let before = counted(&world, operation);
    let (source, _) = operation.sites();
    world.must_run = (operation != Operation::PlannedFailover).then_some(source);
    ask(&mut world, operation).await;
    let mut struck = None;
    if let Some((blow, place)) = fall {
        world.wait(operation.takes_ms() * (2 * place + 1) / (2 * PLACES)).await;
        struck = state(&world).await;
        strike(&mut world, operation, blow, random).await;
        world.owner_cares().await;
    }
    if !completes(&mut world, operation).await {
        world.ledger.violated("it does not come to its end");
    }
    let after = counted(&world, operation);
    if let Some(old) = old {
        let machine = world.owned(Site::Primary);
        let state = world.machines(Site::Primary).machine_state(&machine).await;
        let there = old_disks(&world, operation).is_some_and(|now| now == old);
        if !there || !matches!(state, Ok(MachineState::Off)) {
            world
                .ledger
                .violated(format!("the old machine is {state:?}, its disks as before: {there}"));
        }
    }
    world.must_run = None;
    world.link.set_pace(LINK_FAST);
    world.read_pace(0);
    world.settle().await;
    let counted = Counted {
        crossed: since(before.crossed, after.crossed),
        written: since(before.written, after.written),
    };
    Outcome { due, counted, struck, wrong: world.ledger.violations() }
}

/// What the active machine writes over and over to show that it runs: one block, at the cut.
fn beats(operation: Operation) -> u64 {
    match operation {
        Operation::Reprotect | Operation::Resync => BLOCK,
        Operation::PlannedFailover => 0,
    }
}

/// The most that is lost with a connection, or with a process that writes a store: the time is
/// looked at after each batch.
fn tail_max(operation: Operation) -> Counted {
    let crossed = LINK_PACE * COMMIT_MS / 1000 + BATCH;
    let seed = match operation {
        Operation::Reprotect => COMMIT_MS * BATCH / READ_MS + BATCH,
        Operation::PlannedFailover | Operation::Resync => 0,
    };
    let most = |bytes| Blocks { all: 0, lost: bytes };
    Counted { crossed: most(crossed), written: most(crossed.max(seed)) }
}

/// F-079, F-112, E15.
#[test]
fn what_is_interrupted_goes_on_where_it_was() {
    let only = std::env::var("LEEWARD_PLACE").ok().and_then(|place| place.parse::<u64>().ok());
    let cases = OPERATIONS.into_iter().flat_map(|operation| {
        let place = move |place: u64| {
            let shift = operation as usize;
            (operation, Some((BLOWS[(place as usize + shift) % BLOWS.len()], place)))
        };
        let places = (0..PLACES).filter(|place| only.is_none_or(|only| only == *place));
        [(operation, None)].into_iter().chain(places.map(place)).collect::<Vec<_>>()
    });

    let run = |(operation, fall)| ((operation, fall), simulate(outcome(operation, fall)));
    let outcomes = crowd(cases, run, |_| false);

    let whole = |operation| {
        let mut found = outcomes.iter().filter(|(case, _)| *case == (operation, None));
        found.next().expect("each operation is let go to its end once").1.counted
    };
    let mut wrong = Vec::new();
    for ((operation, fall), Outcome { due, counted, struck, wrong: violations }) in &outcomes {
        let (all, most) = (whole(*operation), tail_max(*operation));
        let line = format!("{operation:?} {fall:?} in {struck:?}: due {due}, {counted:?}");
        eprintln!("{line}");
        let Counted { crossed, written } = counted;
        let once = crossed.all - crossed.lost <= all.crossed.all
            && written.all - written.lost <= all.written.all;
        let little = crossed.lost <= most.crossed.lost && written.lost <= most.written.lost;
        let sure = all.crossed == Blocks { all: due + beats(*operation), lost: 0 };
        if !once || !little || !sure || !violations.is_empty() {
            wrong.push(format!("{line}, of {all:?}, lost at most {most:?}: {violations:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
