//! What becomes of the machine at one end: whose it is, who stops it, who starts it again, and
//! how one that was made from a point becomes its host's own.

use super::*;
use leeward_fabric::memory::OnShutdown;
use leeward_model::{InstanceId, PointId, PointKind};
use leeward_wire::message::{CapturePhase, Purpose, ShutdownOutcome, Stage};
use tokio_util::sync::CancellationToken;

const JOB: JobId = JobId::from_u128(7);
const OTHER: ItemId = ItemId::from_u128(2);

fn machine() -> MachineRef {
    MachineRef::Owned(NAME.into())
}

fn stays(run: SourceRun) -> Option<SourceDuty> {
    Some(duty(branch(21, None), AWAY, run))
}

/// F-122.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_machine_that_is_not_the_items_is_left_alone_whatever_is_wanted() {
    for owner in [None, Some(OTHER)] {
        let home = end(HOME, Site::Primary);
        home.machines.machine_start(NAME).await.unwrap();
        if let Some(owner) = owner {
            home.machines.machine_claim(NAME, owner).await.unwrap();
        }
        let off = SourceRun::ShutDown {
            job: JOB,
            timeout_ms: 1000,
            power_off: true,
            copy: false,
            needs_point: false,
        };
        let runs = [
            SourceRun::Fenced,
            SourceRun::Seed { job: JOB, base: None },
            off,
            SourceRun::Live { permit: home.permit(NAME, "boot"), start: Some(JOB) },
        ];
        for (run, generation) in runs.into_iter().zip(1..) {
            home.assign(generation, stays(run.clone()), None);
            let seen = home.seen(|host| {
                let seen = host.board.source_seen(ITEM)?;
                let done = match &run {
                    SourceRun::Fenced => seen.phase == CapturePhase::Fenced,
                    SourceRun::Seed { .. } => seen.seeded == Some((JOB, Ok(Seeded::Nothing))),
                    SourceRun::ShutDown { .. } => seen.shutdown.is_some(),
                    _ => matches!(seen.started, Some((JOB, Err(_)))),
                };
                (done && seen.problem.is_some()).then_some(seen)
            });
            let seen = seen.await;

            assert_eq!(seen.machine, MachineState::Off, "the item's is gone");
            let problem = seen.problem.unwrap();
            assert_eq!(problem.code, "LW-0211");
            assert!(problem.what.contains(NAME));
            assert_eq!(home.state().await, MachineState::Running, "{run:?}");
        }
        home.assign(9, stays(SourceRun::Release), None);
        let released = |host: &Host| {
            let seen = host.board.source_seen(ITEM)?;
            (seen.phase == CapturePhase::Released).then_some(())
        };
        home.seen(released).await;
        assert_eq!(home.state().await, MachineState::Running);
        assert_eq!(home.machines.machine_claimed(NAME).await.unwrap(), owner);
    }
}

/// F-122, and its counterpart: the item's own machine is fenced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_items_own_running_machine_is_fenced() {
    let home = end(HOME, Site::Primary);
    home.machines.machine_claim(NAME, ITEM).await.unwrap();
    home.machines.machine_start(NAME).await.unwrap();

    home.assign(1, stays(SourceRun::Fenced), None);

    let fenced = |host: &Host| {
        let seen = host.board.source_seen(ITEM)?;
        (seen.phase == CapturePhase::Fenced).then_some(seen)
    };
    assert_eq!(home.seen(fenced).await.problem, None);
    assert_eq!(home.state().await, MachineState::Off);
}

/// F-122: not a byte of it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_items_machine_is_not_replicated() {
    let home = end(HOME, Site::Primary);
    home.machines.machine_claim(NAME, OTHER).await.unwrap();
    home.machines.machine_start(NAME).await.unwrap();

    let duty = |item, source| ItemDuty {
        item,
        vault: VaultId::from_u128(1),
        name: NAME.to_owned(),
        epoch: EPOCH,
        source,
        target: None,
        instances: Vec::new(),
    };
    let run = SourceRun::Replicate { permit: None, start: None };
    let duties = vec![duty(ITEM, stays(run)), duty(OTHER, None)];
    home.host.assign(Assignment { generation: 1, duties });

    let problem = home.seen(|host| host.board.source_seen(ITEM)?.problem).await;
    assert_eq!(problem.code, "LW-0211");
    assert_eq!(home.machines.disks(&machine()).unwrap().bytes_read(), 0);
}

/// The machine lives here, and a job or a boot of the host starts it: with a permit only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_lives_here_is_started_with_a_permit_only() {
    let mut home = end(HOME, Site::Primary);
    home.machines.machine_claim(NAME, ITEM).await.unwrap();
    home.machines.set_autostart(&machine(), true);
    let live = |permit, start| stays(SourceRun::Live { permit, start });
    let started = |host: &Host| host.board.source_seen(ITEM)?.started;

    home.assign(1, live(None, Some(JOB)), None);
    let (_, outcome) = home.seen(started).await;
    assert_eq!(outcome.unwrap_err().code, "LW-0208");
    assert_eq!(home.state().await, MachineState::Off);
    home.assign(2, live(home.permit(NAME, "boot"), Some(JOB)), None);
    home.seen(|host| started(host).filter(|(_, outcome)| outcome.is_ok())).await.1.unwrap();
    assert_eq!(home.state().await, MachineState::Running);

    // Its owner switches it off: a job starts it once.
    home.machines.machine_quit(&machine()).await.unwrap();
    home.restart("boot");
    home.seen(|host| started(host).filter(|(_, outcome)| outcome.is_ok())).await.1.unwrap();
    assert_eq!(home.state().await, MachineState::Off);

    home.restart("later boot");
    home.machines.power_cut();
    let stop = CancellationToken::new();
    let (waits, until) = (Arc::clone(&home.host), stop.clone());
    let autostart = tokio::spawn(async move { waits.autostart(until).await });
    home.seen(|host| host.board.source_seen(ITEM)).await;
    assert_eq!(home.state().await, MachineState::Off, "its permit is of an earlier boot");
    home.assign(3, live(home.permit(NAME, "later boot"), None), None);
    tokio::time::timeout(PATIENCE, autostart).await.unwrap().unwrap();
    assert_eq!(home.state().await, MachineState::Running);
}

/// A source whose store has its first point.
async fn replicating() -> (End, End) {
    let (home, away) = (end(HOME, Site::Primary), end(AWAY, Site::Recovery));
    *home.way.to.lock().unwrap() = Some((HOME, Arc::clone(&away.host)));
    away.machines.disks(&machine()).unwrap().write(DISK, 0, &old_disk());
    away.machines.machine_start(NAME).await.unwrap();
    let goes = branch(21, None);
    home.assign(1, None, Some(receives(goes)));
    let run = SourceRun::Replicate { permit: None, start: None };
    away.assign(1, Some(duty(goes, HOME, run)), None);
    newest(&home, |_| true).await;
    let bytes = vec![0xbb; BLOCK as usize];
    away.machines.guest_write(&machine(), DISK, 5 * BLOCK, &bytes).unwrap();
    (home, away)
}

async fn newest(home: &End, is_it: impl Fn(PointKind) -> bool) -> Position {
    let look = |host: &Host| {
        let newest = host.board.items_seen().iter().find_map(|seen| seen.target.clone()?.newest)?;
        is_it(newest.kind).then_some(newest.position)
    };
    home.seen(look).await
}

/// F-110.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_powered_off_has_all_it_wrote_in_its_final_point() {
    let (home, away) = replicating().await;
    away.machines.set_on_shutdown(&machine(), OnShutdown::Ignores);

    let off = SourceRun::ShutDown {
        job: JOB,
        timeout_ms: 1,
        power_off: true,
        copy: false,
        needs_point: false,
    };
    away.assign(2, Some(duty(branch(21, None), HOME, off)), None);

    let done = |host: &Host| match host.board.source_seen(ITEM)?.shutdown? {
        (JOB, ShutdownOutcome::Done { point }) => Some(point),
        _ => None,
    };
    assert!(away.seen(done).await.is_some());
    assert_eq!(away.state().await, MachineState::Off);
    let at = newest(&home, |kind| kind == PointKind::Final).await;
    assert!(home.stored(at) == away.content());
}

/// F-086: the final point that was lost with the shutdown is taken from the disks, when asked anew.
#[tokio::test(start_paused = true)]
async fn a_final_point_that_was_lost_is_taken_from_the_disks_of_the_machine_that_is_off() {
    let (home, mut away) = replicating().await;
    let done = |by: JobId| {
        move |host: &Host| match host.board.source_seen(ITEM)?.shutdown? {
            (job, ShutdownOutcome::Done { point }) if job == by => Some(point),
            _ => None,
        }
    };
    // Nobody takes its last data.
    home.assign(2, None, None);
    away.assign(2, Some(duty(branch(21, None), HOME, off(JOB))), None);
    assert_eq!(away.seen(done(JOB)).await, None, "its last data could not be sent");
    assert_eq!(away.state().await, MachineState::Off);

    // Still nobody: it says so again, and nothing is made up.
    let second = JobId::from_u128(8);
    away.assign(3, Some(duty(branch(21, None), HOME, off(second))), None);
    assert_eq!(away.seen(done(second)).await, None);
    away.restart("boot");
    home.assign(3, None, Some(receives(branch(21, None))));
    *home.way.to.lock().unwrap() = Some((HOME, Arc::clone(&away.host)));
    let third = JobId::from_u128(9);
    away.assign(4, Some(duty(branch(21, None), HOME, off(third))), None);

    let taken = away.seen(done(third)).await;
    let problem = away.host.board.source_seen(ITEM).unwrap().problem;
    assert!(taken.is_some(), "{problem:?}");
    let at = newest(&home, |kind| kind == PointKind::Final).await;
    assert!(home.stored(at) == away.content());
    assert_eq!(away.state().await, MachineState::Off);
}

fn shut_down(by: JobId) -> impl Fn(&Host) -> Option<Option<PointId>> {
    move |host| match host.board.source_seen(ITEM)?.shutdown? {
        (job, ShutdownOutcome::Done { point }) if job == by => Some(point),
        _ => None,
    }
}

/// The guest is asked to shut down, and its last data are wished for.
fn off(job: JobId) -> SourceRun {
    SourceRun::ShutDown {
        job,
        timeout_ms: 60_000,
        power_off: false,
        copy: false,
        needs_point: false,
    }
}

/// F-086: an earlier job had it off and has its final point. Its owner ran it since, and this host
/// never heard that it lives here: that point is not taken for the last data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_an_earlier_job_had_off_is_compared_for_the_next_one() {
    let (home, away) = replicating().await;
    away.assign(2, Some(duty(branch(21, None), HOME, off(JOB))), None);
    let former = away.seen(shut_down(JOB)).await.unwrap();
    away.machines.machine_start(NAME).await.unwrap();
    let bytes = vec![0xcc; BLOCK as usize];
    away.machines.guest_write(&machine(), DISK, 9 * BLOCK, &bytes).unwrap();
    away.machines.machine_quit(&machine()).await.unwrap();

    let second = JobId::from_u128(8);
    away.assign(3, Some(duty(branch(21, None), HOME, off(second))), None);

    let point = away.seen(shut_down(second)).await;
    assert!(point.is_some_and(|point| point != former), "{point:?}");
    let newest = |host: &Host| {
        let newest = host.board.items_seen().iter().find_map(|seen| seen.target.clone()?.newest)?;
        (Some(newest.point) == point).then_some(newest.position)
    };
    let at = home.seen(newest).await;
    assert!(home.stored(at) == away.content());
}

/// F-110: once it lives here again an earlier shutdown counts no more, and nothing is read for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_is_forgotten_once_the_machine_is_replicated_again() {
    let (_home, away) = replicating().await;
    away.assign(2, Some(duty(branch(21, None), HOME, off(JOB))), None);
    assert!(away.seen(shut_down(JOB)).await.is_some());
    let run = SourceRun::Replicate { permit: None, start: None };
    away.assign(3, Some(duty(branch(21, None), HOME, run)), None);
    away.seen(|host| host.board.source_seen(ITEM)?.shutdown.is_none().then_some(())).await;
    let state = away.host.folder.join("items").join(ITEM.to_string()).join("source.json");
    let forgotten = async {
        // The board does not show it, and a file tells nobody that it changed.
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while !std::fs::read_to_string(&state).is_ok_and(|kept| kept.contains("_down\": null")) {
            look.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.expect("it is forgotten");
    let disks = away.machines.disks(&machine()).unwrap();
    disks.fail_read_after(0);

    let second = JobId::from_u128(8);
    away.assign(4, Some(duty(branch(21, None), HOME, off(second))), None);

    assert_eq!(away.seen(shut_down(second)).await, None);
    let problem = away.host.board.source_seen(ITEM).unwrap().problem;
    assert_eq!(problem, None, "it was not read");
}

/// Decision 16: a machine that was left is fenced at once when its host hears of it, also while the
/// source waits for a store that gives no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_does_not_wait_for_a_store_that_does_not_answer() {
    let away = end(AWAY, Site::Recovery);
    away.way.hangs.store(true, Ordering::Relaxed);
    away.machines.disks(&machine()).unwrap().write(DISK, 0, &old_disk());
    away.machines.machine_start(NAME).await.unwrap();
    let run = SourceRun::Replicate { permit: None, start: None };
    let address = Some("home:1".to_owned());
    let goes = SourceDuty { target_address: address, ..duty(branch(21, None), HOME, run) };
    away.assign(1, Some(goes.clone()), None);
    tokio::time::timeout(PATIENCE, away.way.waited.notified()).await.expect("it is dialled");

    away.assign(2, Some(SourceDuty { run: SourceRun::Fenced, ..goes }), None);

    let fenced = |host: &Host| {
        let seen = host.board.source_seen(ITEM)?;
        (seen.phase == CapturePhase::Fenced).then_some(seen.machine)
    };
    assert_eq!(away.seen(fenced).await, MachineState::Off);
    assert_eq!(away.state().await, MachineState::Off);
}

/// Decision 16: whatever was known of a machine, one that ran until it was fenced has written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_found_running_is_noted_each_time_also_after_its_final_point() {
    let (_home, away) = replicating().await;
    away.assign(2, Some(duty(branch(21, None), HOME, off(JOB))), None);
    assert!(away.seen(shut_down(JOB)).await.is_some());
    away.assign(3, Some(duty(branch(21, None), HOME, SourceRun::Fenced)), None);
    let fenced = |host: &Host| {
        let seen = host.board.source_seen(ITEM)?;
        (seen.phase == CapturePhase::Fenced).then_some(seen.divergent)
    };
    assert_eq!(away.seen(fenced).await, None, "its final point has all of it");

    away.machines.machine_start(NAME).await.unwrap();
    let note = |host: &Host| host.board.source_seen(ITEM)?.divergent;
    let first = away.seen(note).await;
    away.machines.machine_start(NAME).await.unwrap();
    let later = |host: &Host| note(host).filter(|note| note.stopped_at != first.stopped_at);
    let second = away.seen(later).await;

    assert_eq!(second.point, first.point, "all of it is one point");
    assert_eq!(away.state().await, MachineState::Off);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_switches_itself_off_leaves_a_last_point_and_stays_off() {
    let (home, mut away) = replicating().await;

    away.machines.guest_switches_off(&machine());

    let at = newest(&home, |kind| kind == PointKind::Final).await;
    assert!(home.stored(at) == away.content());
    let is_off = |host: &Host| {
        let seen = host.board.source_seen(ITEM)?;
        let idle = seen.phase == CapturePhase::Idle;
        (idle && seen.machine == MachineState::Off).then_some(())
    };
    away.seen(is_off).await;
    assert_eq!(away.state().await, MachineState::Off);
    away.restart("boot");
    away.seen(is_off).await;
    assert_eq!(away.state().await, MachineState::Off, "nobody but its owner starts it");
}

/// F-132.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_broke_off_halfway_goes_on_after_a_restart() {
    let mut home = end(HOME, Site::Primary);
    home.machines.machine_claim(NAME, ITEM).await.unwrap();
    let disks = home.machines.disks(&machine()).unwrap();
    disks.write(DISK, 0, &old_disk());
    disks.fail_read_after(2);
    let seed = SourceRun::Seed { job: JOB, base: None };
    home.assign(1, Some(duty(branch(20, None), AWAY, seed)), None);
    let (_, outcome) = home.seen(|host| host.board.source_seen(ITEM)?.seeded).await;
    assert!(outcome.is_err(), "{outcome:?}");

    home.restart("boot");
    disks.clear_faults();

    let stored = |host: &Host| match host.board.source_seen(ITEM)?.seeded? {
        (JOB, Ok(Seeded::Stored { position, .. })) => Some(position),
        _ => None,
    };
    let at = home.seen(stored).await;
    assert!(home.stored(at) == old_disk());
    assert_eq!(home.content(), old_disk());
}

/// F-131: an instance becomes its host's machine, through a restart of the host at every step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settled_machine_is_handed_over_and_nothing_of_it_is_lost_in_restarts() {
    let mut home = end(HOME, Site::Primary);
    home.machines.machine_claim(NAME, ITEM).await.unwrap();
    home.machines.disks(&machine()).unwrap().write(DISK, 0, &old_disk());
    let position = seeded(&home).await;
    let seen = home.host.board.source_seen(ITEM).unwrap().seeded.unwrap().1;
    let Ok(Seeded::Stored { point, .. }) = seen else { panic!("{seen:?}") };
    let id = InstanceId::from_u128(30);
    let made = |home: &End, stage| instance(home, id, (point, position), stage);
    let at = |stage: Stage| {
        move |host: &Host| {
            let seen = host.board.instance_seen(ITEM, id)?;
            let runs = seen.machine == MachineState::Running;
            (seen.stage == stage && runs).then_some(())
        }
    };

    home.assign_all(2, None, None, vec![made(&home, Stage::Running)]);
    home.seen(at(Stage::Running)).await;
    let bytes = vec![0xcc; BLOCK as usize];
    home.machines.guest_write(&machine(), DISK, 9 * BLOCK, &bytes).unwrap();
    home.restart("boot");
    home.seen(at(Stage::Running)).await;
    let live = || SourceRun::Live { permit: home.permit(NAME, "boot"), start: None };
    let source = stays(live());
    home.assign_all(3, source.clone(), None, vec![made(&home, Stage::HandedOver)]);
    home.seen(at(Stage::HandedOver)).await;
    home.restart("boot");
    home.seen(at(Stage::HandedOver)).await;
    assert!(home.machines.instances().await.unwrap().is_empty());
    home.assign_all(4, source.clone(), None, vec![made(&home, Stage::Absent)]);
    home.seen(|host| {
        let seen = host.board.instance_seen(ITEM, id)?;
        (seen.stage == Stage::Absent).then_some(())
    })
    .await;
    home.restart("boot");
    home.assign(5, source, None);
    home.seen(|host| {
        let seen = host.board.source_seen(ITEM)?;
        (seen.machine == MachineState::Running).then_some(())
    })
    .await;

    let mut wanted = old_disk();
    let (from, to) = (9 * BLOCK as usize, 10 * BLOCK as usize);
    wanted[from..to].copy_from_slice(&bytes);
    assert!(home.content() == wanted, "the machine has what its guest wrote");
    assert_eq!(home.machines.machine_claimed(NAME).await.unwrap(), Some(ITEM));
    assert_eq!(home.world.writers_most(NAME), 1);
}

fn instance(
    home: &End,
    id: InstanceId,
    (point, position): (PointId, Position),
    stage: Stage,
) -> InstanceDuty {
    InstanceDuty {
        instance: id,
        purpose: Purpose::Failover,
        point,
        position,
        timeline: TimelineId::from_u128(21),
        stage,
        permit: home.permit(&id.to_string(), "boot").filter(|_| stage == Stage::Running),
        probe: false,
        keep_as: None,
        settle_as: Some(NAME.into()),
        changes: leeward_model::MachineChanges::default(),
    }
}
