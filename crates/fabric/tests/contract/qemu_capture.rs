//! Points cut from a running QEMU: nothing is lost, whatever ends in the middle.

use crate::qemu_world::{DEADLINE, Disks, MIB, Monitor, QemuWorld, Random};
use leeward_capture::{Attached, CaptureError, ChangeSource, CutEnd, LiveRead};
use leeward_fabric::{Fabric, MachineRef, Shutdown};
use leeward_model::{DiskNumber, Lsn, MachineState, Position, TimelineId};
use serde_json::json;
use std::time::Duration;

fn at(lsn: u64) -> Position {
    Position { timeline: TimelineId::from_u128(0x1ee), lsn: Lsn(lsn) }
}

/// A running machine, what it holds, and the copy that a target has of it.
struct Captured {
    world: QemuWorld,
    machine: MachineRef,
    monitor: Monitor,
    truth: Disks,
    copy: Disks,
    random: Random,
}

impl Captured {
    async fn start(seed: u64) -> Captured {
        Self::start_in(QemuWorld::new().await, seed).await
    }

    async fn start_in(world: QemuWorld, seed: u64) -> Captured {
        let machine = world.add_machine("web01");
        world.fabric.machine_start("web01").await.unwrap();
        let monitor = world.monitor(&machine).await;
        let (truth, copy) = (Disks::zeroes(), Disks::zeroes());
        Captured { world, machine, monitor, truth, copy, random: Random::new(seed) }
    }

    async fn source(&self) -> Box<dyn ChangeSource> {
        self.world.fabric.capture(&self.machine).await.unwrap()
    }

    /// The guest writes a few blocks to both disks.
    async fn write_some(&mut self) {
        for _ in 0..4 {
            let disk = self.random.below(2) as u16;
            let blocks = [16 * MIB, 32 * MIB][disk as usize] / 4096;
            let offset = self.random.below(blocks) * 4096;
            let pattern = self.random.below(255) as u8 + 1;
            self.monitor.write(disk, offset, 4096, pattern).await;
            self.truth.write(disk, offset, 4096, pattern);
        }
    }

    /// Takes one point and commits it.
    async fn commit(&mut self, source: &mut dyn ChangeSource, lsn: u64) {
        let cut = source.cut().await.unwrap();
        self.copy.take(&*cut.reader).await.unwrap();
        source.close_cut(CutEnd::Committed(at(lsn))).await.unwrap();
    }

    /// Attaches for the first time and takes a first point at LSN 1.
    async fn first_point(&mut self) -> Box<dyn ChangeSource> {
        let mut source = self.source().await;
        let attached = source.attach(None).await.unwrap();
        assert!(matches!(attached, Attached::NeedsFullRead(_)), "{attached:?}");
        let live = source.open_live(LiveRead::Everything).await.unwrap();
        self.copy.take(&*live).await.unwrap();
        source.close_live().await.unwrap();
        self.commit(&mut *source, 1).await;
        source
    }
}

/// F-047, F-147: points of both disks at one instant, by deltas.
#[tokio::test(flavor = "multi_thread")]
async fn ten_points_over_two_disks_under_writes_are_what_the_disks_held_at_their_cuts() {
    let mut world = Captured::start(11).await;
    world.write_some().await;
    let mut source = world.first_point().await;
    world.copy.assert_is(&world.truth, "the first point");
    for lsn in 2..12 {
        world.write_some().await;

        let cut = source.cut().await.unwrap();
        assert!(cut.dirty_bytes > 0 && cut.dirty_bytes <= 8 * 65_536, "{}", cut.dirty_bytes);
        let at_the_cut = world.truth.clone();
        world.write_some().await; // Must not be in this point, and must be in the next.
        let bytes = world.copy.take(&*cut.reader).await.unwrap();
        assert_eq!(bytes, cut.dirty_bytes);
        world.copy.assert_is(&at_the_cut, &format!("point {lsn}"));
        source.close_cut(CutEnd::Committed(at(lsn))).await.unwrap();
        assert!(cut.pause.as_millis() < 2000, "the guest stood still for {:?}", cut.pause);
    }
    world.commit(&mut *source, 12).await;
    world.copy.assert_is(&world.truth, "the last point");
    assert_eq!(world.monitor.leftovers().await, [""; 0]);
    let state = world.world.fabric.machine_state(&world.machine).await.unwrap();
    assert_eq!(state, MachineState::Running);

    source.detach().await.unwrap();

    assert_eq!(world.monitor.bitmaps(0).await, [""; 0]);
    assert_eq!(world.monitor.bitmaps(1).await, [""; 0]);
}

/// F-149: the change map survives the role process; every phase of a cut is cut off once.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_process_killed_in_any_phase_of_a_cut_loses_no_change() {
    let mut world = Captured::start(12).await;
    let mut source = world.first_point().await;
    let mut committed = at(1);
    for phase in 0..5 {
        world.write_some().await;
        // What was left of each phase when the process ended.
        match phase {
            0 => {}
            1 => {
                let cut = source.cut().await.unwrap();
                world.write_some().await;
                drop(cut);
            }
            2 => {
                let cut = source.cut().await.unwrap();
                world.copy.take(&*cut.reader).await.unwrap();
                world.write_some().await;
            }
            3 => {
                // The target committed it, and the source never learned.
                let cut = source.cut().await.unwrap();
                world.copy.take(&*cut.reader).await.unwrap();
                world.write_some().await;
                committed = at(committed.lsn.0 + 1);
            }
            _ => {
                let live = source.open_live(LiveRead::Dirty).await.unwrap();
                world.copy.take(&*live).await.unwrap();
                world.write_some().await;
            }
        }
        drop(source);
        world.world.fabric = world.world.fabric_again();
        source = world.source().await;

        let attached = source.attach(Some(committed)).await.unwrap();

        assert_eq!(attached, Attached::Continues, "phase {phase}");
        assert_eq!(world.monitor.leftovers().await, [""; 0], "phase {phase}");
        world.write_some().await;
        committed = at(committed.lsn.0 + 1);
        world.commit(&mut *source, committed.lsn.0).await;
        world.copy.assert_is(&world.truth, &format!("after phase {phase}"));
        assert_eq!(world.monitor.bitmaps(0).await.len(), 1, "phase {phase}");
    }
}

/// A half-made cut: QEMU has the filters, but nothing was told to us any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_that_stopped_between_two_commands_is_cleaned_up_without_loss() {
    let mut world = Captured::start(13).await;
    let mut source = world.first_point().await;
    world.write_some().await;
    let scratch = world.world.path("half");
    let scratch = crate::qemu_world::text(&scratch);
    crate::qemu_world::run("qemu-img", &["create", "-q", "-f", "qcow2", scratch, "16M"]);
    let node = json!({"driver": "qcow2", "node-name": "lw-scr-0",
                      "file": {"driver": "file", "filename": scratch}});
    world.monitor.call("blockdev-add", node).await;
    let filter = json!({"driver": "copy-before-write", "node-name": "lw-cbw-0",
                        "file": "lw-disk-0", "target": "lw-scr-0"});
    world.monitor.call("blockdev-add", filter).await;
    world
        .monitor
        .call("block-dirty-bitmap-add", json!({"node": "lw-disk-0", "name": "lw-open"}))
        .await;
    world.write_some().await;
    drop(source);

    source = world.source().await;
    let attached = source.attach(Some(at(1))).await.unwrap();

    assert_eq!(attached, Attached::Continues);
    world.commit(&mut *source, 2).await;
    world.copy.assert_is(&world.truth, "after the half cut");
    assert_eq!(world.monitor.leftovers().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_cut_and_a_live_read_leave_their_changes_for_the_next_cut() {
    let mut world = Captured::start(14).await;
    let mut source = world.first_point().await;
    world.write_some().await;
    let dirty = source.dirty_bytes().await.unwrap();
    assert!(dirty > 0);

    let cut = source.cut().await.unwrap();
    drop(cut);
    source.close_cut(CutEnd::Abandoned).await.unwrap();
    assert_eq!(source.dirty_bytes().await.unwrap(), dirty);
    let live = source.open_live(LiveRead::Dirty).await.unwrap();
    assert_eq!(Disks::zeroes().take(&*live).await.unwrap(), dirty);
    source.close_live().await.unwrap();
    source.close_live().await.unwrap();
    source.close_cut(CutEnd::Abandoned).await.unwrap();

    assert_eq!(source.dirty_bytes().await.unwrap(), dirty);
    world.commit(&mut *source, 2).await;
    world.copy.assert_is(&world.truth, "the next cut");
}

/// F-150, F-152: scratch space is limited, and running out of it stops no guest.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_scratch_breaks_only_the_snapshot() {
    let small = QemuWorld::with(|config| config.scratch_bytes_max = Some(2 * MIB)).await;
    let mut world = Captured::start_in(small, 15).await;
    world.monitor.write(0, 0, 8 * MIB, 7).await;
    world.truth.write(0, 0, 8 * MIB, 7);
    let mut source = world.first_point().await;
    world.monitor.write(0, 0, 8 * MIB, 8).await;
    world.truth.write(0, 0, 8 * MIB, 8);

    let cut = source.cut().await.unwrap();
    world.monitor.write(0, 0, 8 * MIB, 9).await; // More than the scratch space takes.
    world.truth.write(0, 0, 8 * MIB, 9);
    let broken = world.copy.clone().take(&*cut.reader).await;

    assert!(matches!(broken, Err(CaptureError::SnapshotBroken)), "{broken:?}");
    assert!(world.monitor.reads_as(0, 0, 8 * MIB, 9).await);
    let state = world.world.fabric.machine_state(&world.machine).await.unwrap();
    assert_eq!(state, MachineState::Running);
    source.close_cut(CutEnd::Abandoned).await.unwrap();
    world.commit(&mut *source, 2).await;
    world.copy.assert_is(&world.truth, "the point after the broken one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_map_that_does_not_reach_back_to_the_base_asks_for_a_full_read() {
    let mut world = Captured::start(16).await;
    let mut source = world.first_point().await;
    world.write_some().await;
    world.commit(&mut *source, 5).await;

    let older = source.attach(Some(at(4))).await.unwrap();
    assert!(matches!(older, Attached::NeedsFullRead(_)), "{older:?}");
    let unfinished = source.attach(Some(at(5))).await.unwrap();
    assert!(matches!(unfinished, Attached::NeedsFullRead(_)), "the full read never ended");

    world.commit(&mut *source, 6).await;
    assert_eq!(source.attach(Some(at(6))).await.unwrap(), Attached::Continues);
    drop(source);
    world.world.fabric.machine_quit(&world.machine).await.unwrap();
    world.world.fabric.machine_start("web01").await.unwrap();
    let mut source = world.source().await;
    let restarted = source.attach(Some(at(6))).await.unwrap();
    assert_eq!(restarted, Attached::NeedsFullRead("QEMU was restarted".into()));
}

/// F-136: a returned source is stopped first, and what it wrote is noted.
#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_machine_is_off_and_what_it_wrote_since_the_last_point_is_known() {
    let mut world = Captured::start(17).await;
    let mut source = world.first_point().await;
    world.monitor.write(0, MIB, 4096, 5).await;
    let cut = source.cut().await.unwrap(); // Left open by a process that was killed.
    world.monitor.write(1, 2 * MIB, 4096, 6).await;
    drop((cut, source));
    let fabric = world.world.fabric_again();
    world.world.fabric = world.world.fabric_again();

    let changes = fabric.machine_fence(&world.machine).await.unwrap();

    let (first, second) = (changes.ranges(DiskNumber(0)), changes.ranges(DiskNumber(1)));
    let starts = |ranges: Option<Vec<leeward_capture::ByteRange>>| {
        ranges.unwrap().iter().map(|range| range.offset).collect::<Vec<_>>()
    };
    assert_eq!((starts(first), starts(second)), (vec![MIB], vec![2 * MIB]));
    assert_eq!(changes.dirty_bytes(), Some(2 * 65_536));
    assert_eq!(fabric.machine_state(&world.machine).await.unwrap(), MachineState::Off);
    assert_eq!(fabric.machine_fence(&world.machine).await.unwrap(), changes, "asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_answer_is_killed_when_it_is_fenced() {
    let world = Captured::start(18).await;
    let process = world.world.mark(&world.machine).process;
    let pid = rustix::process::Pid::from_raw(process.pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();

    let fabric = world.world.fabric_again();
    let fenced = fabric.machine_fence(&world.machine);
    let changes = tokio::time::timeout(DEADLINE, fenced).await.unwrap().unwrap();

    assert_eq!(changes.dirty_bytes(), None);
    assert!(!process.is_alive().unwrap());
}

/// A guest in one sector that switches itself off.
const POWER_OFF: [u8; 9] = [0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xeb, 0xfe];

/// F-086: after the guest is off its last changes are still there to be captured.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_off_can_still_be_captured_and_be_let_go_on() {
    let mut world = Captured::start(19).await;
    let patient = Duration::from_millis(300);
    let deaf = world.world.fabric.machine_shutdown(&world.machine, patient).await.unwrap();
    assert_eq!(deaf, Shutdown::NotInTime, "a guest without a system heeds no button");
    let mut source = world.first_point().await;
    for (at, byte) in POWER_OFF.iter().enumerate() {
        world.monitor.write(0, at as u64, 1, *byte).await;
        world.truth.write(0, at as u64, 1, *byte);
    }
    for (at, byte) in [(510, 0x55), (511, 0xaa)] {
        world.monitor.write(0, at, 1, byte).await;
        world.truth.write(0, at, 1, byte);
    }
    world.monitor.call("system_reset", json!({})).await;

    let off = world.world.fabric.machine_shutdown(&world.machine, DEADLINE).await.unwrap();
    assert_eq!(off, Shutdown::Done);
    assert_eq!(
        world.world.fabric.machine_state(&world.machine).await.unwrap(),
        MachineState::Paused
    );
    world.commit(&mut *source, 2).await;
    world.copy.assert_is(&world.truth, "the final point");

    world.world.fabric.machine_start("web01").await.unwrap();
    let again = world.world.fabric.machine_shutdown(&world.machine, DEADLINE).await.unwrap();
    assert_eq!(again, Shutdown::Done, "it booted again and switched itself off again");
    assert_eq!(source.attach(Some(at(2))).await.unwrap(), Attached::Continues);
}
