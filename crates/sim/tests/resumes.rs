//! Reprotect, planned failover and resync, interrupted at twenty places each: they go on where
//! they were. What has to be sent again is measured at the link and at the store's disk.

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

/// What is measured of an operation, in bytes.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    /// Over the link.
    crossed: u64,
    /// To the disk of the target's store.
    appended: u64,
}

fn measured(world: &World, operation: Operation) -> Bytes {
    let (_, target) = operation.sites();
    Bytes { crossed: world.link.crossed(), appended: world.disk(target).appended() }
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

/// A world in which the operation begins; returns what is due to be sent.
async fn begun(operation: Operation, random: &mut Seeded) -> (World, u64) {
    let mut world = World::sized(Mistakes::default(), SIZES).await;
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

/// What came of an interruption.
struct Outcome {
    case: (Operation, Blow, u64),
    due: u64,
    sent: Bytes,
    struck: Option<Protection>,
    wrong: Vec<String>,
}

async fn interrupted(operation: Operation, blow: Blow, place: u64) -> Outcome {
    let random = &mut Seeded::new(place);
    let (mut world, due) = begun(operation, random).await;
    let old = old_disks(&world, operation);
    let before = measured(&world, operation);
    let (source, _) = operation.sites();
    world.must_run = (operation != Operation::PlannedFailover).then_some(source);
    ask(&mut world, operation).await;
    world.wait(operation.takes_ms() * (2 * place + 1) / (2 * PLACES)).await;
    let struck = state(&world).await;
    strike(&mut world, operation, blow, random).await;
    world.owner_cares().await;
    if !completes(&mut world, operation).await {
        world.ledger.violated("it does not come to its end");
    }
    let after = measured(&world, operation);
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
    let sent = Bytes {
        crossed: after.crossed - before.crossed,
        appended: after.appended - before.appended,
    };
    Outcome { case: (operation, blow, place), due, sent, struck, wrong: world.ledger.violations() }
}

/// F-112, E15.
#[test]
fn what_is_interrupted_goes_on_where_it_was() {
    let only = std::env::var("LEEWARD_PLACE").ok().and_then(|place| place.parse::<u64>().ok());
    let cases = OPERATIONS.into_iter().flat_map(|operation| {
        let place = move |place: u64| {
            let shift = operation as usize;
            (operation, BLOWS[(place as usize + shift) % BLOWS.len()], place)
        };
        (0..PLACES).map(place)
    });
    let cases = cases.filter(|(_, _, place)| only.is_none_or(|only| only == *place));

    let outcomes = crowd(
        cases,
        |(operation, blow, place)| simulate(interrupted(operation, blow, place)),
        |_| false,
    );

    let mut wrong = Vec::new();
    for Outcome { case, due, sent, struck, wrong: violations } in outcomes {
        let most = most(case.0, case.1, due);
        let line = format!("{case:?} in {struck:?}: due {due}, most {most:?}, {sent:?}");
        eprintln!("{line}");
        if sent.crossed > most.crossed || sent.appended > most.appended || !violations.is_empty() {
            wrong.push(format!("{line}: {violations:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What may be sent at most: all once, and once again what was not committed.
fn most(operation: Operation, blow: Blow, due: u64) -> Bytes {
    // A batch is sent whole before the time is looked at.
    let tail = LINK_PACE * COMMIT_MS / 1000 + BATCH;
    let seed_tail = COMMIT_MS * BATCH / READ_MS + BATCH;
    // Hashes, headers, manifests, heartbeats.
    let over = |bytes: u64| bytes + bytes / 50 + (64 << 10);
    let all: u64 = SIZES.iter().sum();
    match (operation, blow) {
        // What a person cancels is given up: its branch ends, and the next begins at the last
        // point. The old disks' seed is such a point once it is whole.
        (Operation::Reprotect, Blow::Cancel) => {
            Bytes { crossed: over(2 * due), appended: over(2 * due + all).max(over(due + 2 * all)) }
        }
        (Operation::Reprotect, _) => {
            Bytes { crossed: over(due) + tail, appended: over(due + all) + tail.max(seed_tail) }
        }
        (Operation::Resync, _) => Bytes { crossed: over(due) + tail, appended: over(due) + tail },
        // A delta is committed as a whole.
        (Operation::PlannedFailover, _) => {
            Bytes { crossed: over(2 * due), appended: over(2 * due) }
        }
    }
}
