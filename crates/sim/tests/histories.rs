//! Random histories against the byte-exact oracle, the seeds that once failed, and the proof that
//! the oracle sees mistakes.
//!
//! `LEEWARD_SEED=n` lives through one history and tells it, `LEEWARD_SEEDS=m-n` through those from
//! m to n; `LONG=1` through many.

use leeward_capture::Mutation;
use leeward_control::{
    items::{DisableReason, KeepPoints, PlannedSpec, Shutdown},
    jobs::{JobAnswer, RunState},
};
use leeward_model::{DiskNumber, PointChoice, Protection, Site};
use leeward_replica::{Mutation as StoreMutation, storage::Seeded};
use leeward_sim::world::{
    Mistakes, SECOND_DISK_BYTES, World,
    history::{Told, live, live_all},
    simulate,
};

/// Histories of a usual run.
const HISTORIES: u64 = 200;
/// Histories of a long run.
const HISTORIES_LONG: u64 = 100_000;

/// The seeds to live through.
fn seeds() -> std::ops::RangeInclusive<u64> {
    if let Ok(text) = std::env::var("LEEWARD_SEEDS") {
        let range = text
            .split_once('-')
            .and_then(|(first, last)| Some(first.parse::<u64>().ok()?..=last.parse::<u64>().ok()?));
        return range.expect("LEEWARD_SEEDS is two numbers, as in 1000-1999");
    }
    match std::env::var_os("LONG") {
        Some(_) => 0..=HISTORIES_LONG - 1,
        None => 0..=HISTORIES - 1,
    }
}

/// Processor time of this process so far.
fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn tell(seed: u64, told: &Told) -> String {
    let deeds: Vec<String> =
        told.deeds.iter().map(|(ms, deed)| format!("  {ms:>7} ms {deed:?}")).collect();
    let violations = told.violations.join("\n  ");
    format!("LEEWARD_SEED={seed}\n{}\n violated:\n  {violations}", deeds.join("\n"))
}

/// E11.
#[test]
fn random_histories_keep_every_promise() {
    if let Ok(seed) = std::env::var("LEEWARD_SEED") {
        let seed = seed.parse().expect("LEEWARD_SEED is a number");
        let told = simulate(live(seed, Mistakes::default()));
        eprintln!("{}", tell(seed, &told));
        assert!(told.violations.is_empty(), "seed {seed}");
        return;
    }
    let seeds = seeds();
    let (begun, cpu) = (std::time::Instant::now(), cpu_seconds());

    let lived = live_all(seeds.clone(), |_| Mistakes::default(), 10);

    let (took, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let points: u64 = lived.iter().map(|(_, told)| told.points_checked).sum();
    let failed = lived.iter().filter(|(_, told)| !told.violations.is_empty());
    let mut jobs = std::collections::BTreeMap::<String, u32>::new();
    for (scenario, state, why) in lived.iter().flat_map(|(_, told)| &told.jobs) {
        let why = why.as_deref().unwrap_or_default();
        *jobs.entry(format!("{scenario:?} {state:?} {why}")).or_default() += 1;
    }
    eprintln!("jobs: {jobs:#?}");
    let each = cpu / lived.len() as f64;
    let lived_count = lived.len();
    eprintln!("{lived_count} of seeds {seeds:?}: {points} points in {took:.0} s");
    eprintln!("{each:.3} s of processor time for each history");
    let (first, last) = (seeds.start(), seeds.end());
    println!("PROOF E11 histories={lived_count} points={points} seeds={first}-{last}");
    let told: Vec<_> = failed.map(|(seed, told)| tell(*seed, told)).collect();
    assert!(told.is_empty(), "{} histories failed:\n{}", told.len(), told.join("\n\n"));
}

/// Seeds that once failed and are no longer among those of a usual run. What each has found is told
/// by the test that is named after it, in this file or beside it.
const ONCE_FAILED: [u64; 4] = [2017, 2168, 6988, 8014];

#[test]
fn seeds_that_once_failed_keep_every_promise() {
    let lived = live_all(ONCE_FAILED, |_| Mistakes::default(), ONCE_FAILED.len());

    let failed = lived.iter().filter(|(_, told)| !told.violations.is_empty());
    let told: Vec<_> = failed.map(|(seed, told)| tell(*seed, told)).collect();
    assert_eq!(lived.len(), ONCE_FAILED.len());
    assert!(told.is_empty(), "{}", told.join("\n\n"));
}

/// Histories within which a mistake must show.
const HISTORIES_MUTATION: u64 = 120;

/// How a mistake shows in the words of the oracle.
fn seen(mistakes: impl Fn(u64) -> Mistakes + Sync) -> Vec<String> {
    let lived = live_all(0..HISTORIES_MUTATION, mistakes, 1);
    let count = lived.len();
    let wrong = lived.into_iter().find(|(_, told)| !told.violations.is_empty());
    let (seed, told) = wrong.expect("the oracle sees the mistake");
    eprintln!("seen after {count} histories in seed {seed}: {:?}", told.violations);
    told.violations
}

fn capture(mutation: Mutation) -> impl Fn(u64) -> Mistakes {
    move |_| Mistakes { capture: Some(mutation), ..Mistakes::default() }
}

#[test]
fn a_dirty_bit_that_is_dropped_is_seen() {
    let violations = seen(capture(Mutation::DropOneDirtyBit));

    assert!(violations.iter().any(|what| what.starts_with("I1")));
}

#[test]
fn a_dirty_bit_that_is_dropped_on_the_way_home_is_seen() {
    let mistakes = Mistakes {
        capture: Some(Mutation::DropOneDirtyBit),
        capture_at: Some(Site::Recovery),
        ..Mistakes::default()
    };

    let violations = seen(|_| mistakes);

    assert!(violations.iter().any(|what| what.starts_with("I1")));
}

#[test]
fn bitmaps_that_are_cleared_early_are_seen() {
    let violations = seen(capture(Mutation::ClearBitmapsEarly));

    assert!(violations.iter().any(|what| what.starts_with("I1")));
}

#[test]
fn two_disks_that_are_swapped_are_seen() {
    let violations = seen(capture(Mutation::SwapTwoDisks));

    assert!(violations.iter().any(|what| what.starts_with("I1")));
}

#[test]
fn a_store_that_ignores_the_epoch_is_seen() {
    let ignores = |_| Mistakes { store: Some(StoreMutation::IgnoreEpoch), ..Mistakes::default() };

    let violations = seen(ignores);

    assert!(violations.iter().any(|what| what.starts_with("I5")));
}

#[test]
fn an_extent_that_a_reprotect_leaves_out_is_seen() {
    let mistakes = Mistakes {
        capture: Some(Mutation::SkipOneExtent),
        capture_at: Some(Site::Recovery),
        ..Mistakes::default()
    };

    let violations = seen(|_| mistakes);

    assert!(violations.iter().any(|what| what.starts_with("I1")));
}

#[test]
fn a_guest_that_writes_on_after_its_planned_end_is_seen() {
    let violations = seen(|_| Mistakes { shutdown_lies: true, ..Mistakes::default() });

    let lost = |what: &String| what.starts_with("lost by the planned failover");
    assert!(violations.iter().any(lost));
}

/// F-112.
#[test]
fn a_stale_disk_that_is_written_while_it_is_read_is_seen() {
    let violations = seen(|_| Mistakes { writes_stale_disks: true, ..Mistakes::default() });

    let changed = |what: &String| what.contains("disks") && what.contains("were changed");
    assert!(violations.iter().any(changed));
}

#[test]
fn points_that_are_deleted_although_they_are_to_be_kept_are_seen() {
    let violations = seen(|_| Mistakes { forgets_what_is_kept: true, ..Mistakes::default() });

    assert!(violations.iter().any(|what| what.starts_with("I3: what was kept")));
}

#[test]
fn a_flush_that_is_left_out_is_seen() {
    let violations = seen(|_| Mistakes { skip_a_flush: true, ..Mistakes::default() });

    assert!(violations.iter().any(|what| what.starts_with("I3") || what.starts_with("I1")));
}

/// Found by seed 14. The point's machine description was as old as the session, so the disks of a
/// machine made from a point after a disk had grown ended where the disk had ended before: the
/// bytes beyond were lost to it. Now the description has the sizes of the cut.
#[test]
fn a_machine_made_from_a_point_has_its_disks_as_large_as_they_were_at_the_cut() {
    let violations = simulate(async {
        let mut world = World::new(Mistakes::default()).await;
        world.protect(&mut Seeded::new(14)).await;
        world.grow();
        world.write_at(DiskNumber(1), SECOND_DISK_BYTES, &[7; 4096]);
        world.wait(5_000).await;

        let (control, item) = (world.control(), world.item.unwrap());
        let job = control.item_failover(item, PointChoice::Latest, Shutdown::First).await;
        world.finish(job.unwrap()).await;

        world.settle().await;
        world.ledger.violations()
    });

    assert_eq!(violations, Vec::<String>::new());
}

/// Found by seed 151. The mark of an item that ended while the primary host was away stayed with
/// the machine, and the machine could never be protected again. Now the mark of an item that the
/// host has nothing to do for gives way.
#[test]
fn a_machine_whose_protection_ended_while_its_host_was_away_can_be_protected_again() {
    let violations = simulate(async {
        let random = &mut Seeded::new(151);
        let mut world = World::new(Mistakes::default()).await;
        world.protect(random).await;
        world.role_kill(Site::Primary).await;
        world.wait(5_000).await;
        world.ledger.may_delete();
        let (control, item) = (world.control(), world.item.unwrap());
        let ended = control.item_disable(item, KeepPoints::Delete, DisableReason::Normal).await;
        world.finish(ended.unwrap()).await;
        world.ledger.replica_ended();
        world.heal().await;
        world.wait(2_000).await;

        world.protect(random).await;

        let state = world.view().await.map(|view| view.state.protection);
        assert_eq!(state, Some(Protection::Protected));
        world.settle().await;
        world.ledger.violations()
    });

    assert_eq!(violations, Vec::<String>::new());
}

/// Found by seed 7. A planned failover of a machine that was off waited for a point that could
/// not come. Now it asks, and the machine's owner may start it or cancel the job.
#[test]
fn a_planned_failover_of_a_machine_that_is_off_asks_its_owner() {
    let violations = simulate(async {
        let random = &mut Seeded::new(7);
        let mut world = World::new(Mistakes::default()).await;
        world.write(random);
        world.protect(random).await;
        let machine = world.owned(Site::Primary);
        world.machines(Site::Primary).kill_process(&machine);
        let (control, item) = (world.control(), world.item.unwrap());
        let job = control.item_planned_failover(item, PlannedSpec::default()).await.unwrap();

        assert_eq!(world.finish(job).await.state, RunState::Suspended);
        world.owner_starts(Site::Primary).await;
        let answered = control.job_resume(world.vault, job, JobAnswer::Retry).await;
        answered.unwrap();
        let ended = world.finish(job).await;

        assert_eq!(ended.state, RunState::Succeeded, "{:?}", ended.errors);
        world.settle().await;
        world.ledger.violations()
    });

    assert_eq!(violations, Vec::<String>::new());
}

/// Seed 6988 left a machine off whose protection ended and began again: nobody started it, and the
/// job that waits for the first point said nothing of it. Now the job says so, and its owner is
/// the one who starts it.
#[test]
fn a_machine_that_is_off_when_its_protection_begins_is_said_to_be_waited_for() {
    let violations = simulate(async {
        let mut world = World::new(Mistakes::default()).await;
        let machine = world.owned(Site::Primary);
        world.machines(Site::Primary).kill_process(&machine);
        world.enable().await.unwrap();
        let told = async |world: &World| {
            let running = world.jobs_running().await;
            let words = running.iter().flat_map(|job| &job.tasks);
            let mut words = words.filter_map(|task| task.message.as_deref());
            words.any(|words| words.contains("to be started: it is off"))
        };
        assert!(world.reaches(1_000, told).await, "{:?}", world.jobs_running().await);

        world.owner_starts(Site::Primary).await;
        let protected = async |world: &World| {
            let view = world.view().await;
            view.is_some_and(|view| view.state.protection == Protection::Protected)
        };
        assert!(world.reaches(2_000, protected).await);

        world.settle().await;
        world.ledger.violations()
    });

    assert_eq!(violations, Vec::<String>::new());
}
