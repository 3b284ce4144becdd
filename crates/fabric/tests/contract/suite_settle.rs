//! The part of the suite about machines that stand still, their marks, and instances that become
//! an owner's machine.

use crate::qemu_world::{Disks, MIB};
use crate::suite::{Host, WEB01, at, state, web01};
use leeward_capture::{Attached, CutEnd, LiveRead};
use leeward_fabric::{ExportAnswers, FabricError, InstancePlan, MachineRef, Shutdown};
use leeward_model::{Code, DiskNumber, InstanceId, ItemId, MachineState};
use std::time::{Duration, Instant};

pub const ITEM: ItemId = ItemId::from_u128(1);
pub const OTHER: ItemId = ItemId::from_u128(2);

/// Attaches to a machine whose change map is not there yet and commits its first point.
pub async fn commit_first_point(host: &dyn Host, machine: &MachineRef) {
    let mut source = host.fabric().capture(machine).await.unwrap();
    source.attach(None).await.unwrap();
    drop(source.cut().await.unwrap());
    source.close_cut(CutEnd::Committed(at(1))).await.unwrap();
}

/// What the machine's disks hold, read while it runs.
async fn content(host: &dyn Host, machine: &MachineRef) -> Disks {
    let mut source = host.fabric().capture(machine).await.unwrap();
    source.attach(None).await.unwrap();
    let mut copy = Disks::zeroes();
    copy.take(&*source.open_live(LiveRead::Everything).await.unwrap()).await.unwrap();
    source.close_live().await.unwrap();
    source.detach().await.unwrap();
    copy
}

/// What the disks of `web01`, which is off, hold.
pub async fn content_at_rest(host: &dyn Host) -> Disks {
    let mut still = host.fabric().still(WEB01).await.unwrap();
    let attached = still.source.attach(Some(at(1))).await.unwrap();
    assert!(matches!(attached, Attached::NeedsFullRead(_)));
    let mut copy = Disks::zeroes();
    copy.take(&*still.source.open_live(LiveRead::Everything).await.unwrap()).await.unwrap();
    still.source.detach().await.unwrap();
    copy
}

/// The served point, which is 0x55 all over.
fn point() -> Disks {
    let mut disks = Disks::zeroes();
    disks.write(0, 0, 16 * MIB, 0x55);
    disks.write(1, 0, 32 * MIB, 0x55);
    disks
}

pub async fn hydrate(host: &dyn Host, instance: InstanceId) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let tended = host.fabric().instance_tend(instance, ExportAnswers::Yes).await.unwrap();
        if tended.hydrated_percent == 100 {
            return;
        }
        assert!(Instant::now() < end, "it does not hydrate: {tended:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes `plan`'s instance and settles it as `web01` of [`ITEM`], before its first start.
pub async fn settled(host: &dyn Host, plan: &InstancePlan) -> MachineRef {
    host.fabric().overlay_create(plan).await.unwrap();
    host.fabric().instance_prepare(plan.instance).await.unwrap();
    for _ in 0..2 {
        host.fabric().instance_settle(plan.instance, WEB01, ITEM).await.unwrap();
    }
    MachineRef::Instance(plan.instance)
}

pub async fn a_halted_machine_counts_as_shut_down_and_can_go_on(host: &mut dyn Host) {
    host.fabric().machine_halt(&web01()).await.unwrap();
    host.fabric().machine_start(WEB01).await.unwrap();
    commit_first_point(host, &web01()).await;
    host.guest_write(&web01(), 0, MIB, 0x11).await;

    for _ in 0..2 {
        host.fabric().machine_halt(&web01()).await.unwrap();
        assert_eq!(state(host, &web01()).await, MachineState::Paused);
    }
    host.restart_role();
    let shutdown = host.fabric().machine_shutdown(&web01(), Duration::ZERO).await.unwrap();
    assert_eq!(shutdown, Shutdown::Done, "it stands still already");
    let mut source = host.fabric().capture(&web01()).await.unwrap();
    assert_eq!(source.attach(Some(at(1))).await.unwrap(), Attached::Continues);
    let cut = source.cut().await.unwrap();
    let mut copy = Disks::zeroes();
    assert_eq!(copy.take(&*cut.reader).await.unwrap(), 65_536);
    assert_eq!(copy.0[0][MIB as usize], 0x11);
    source.close_cut(CutEnd::Committed(at(2))).await.unwrap();

    host.fabric().machine_start(WEB01).await.unwrap();
    assert_eq!(state(host, &web01()).await, MachineState::Running);
    host.fabric().machine_halt(&web01()).await.unwrap();
    host.fabric().machine_quit(&web01()).await.unwrap();
    assert_eq!(state(host, &web01()).await, MachineState::Off);
}

pub async fn a_guest_that_switches_itself_off_is_told_from_one_that_was_halted(
    host: &mut dyn Host,
) {
    assert!(!host.fabric().machine_guest_off(&web01()).await.unwrap(), "it is off as a whole");
    host.fabric().machine_start(WEB01).await.unwrap();
    assert!(!host.fabric().machine_guest_off(&web01()).await.unwrap());
    host.fabric().machine_halt(&web01()).await.unwrap();
    assert!(!host.fabric().machine_guest_off(&web01()).await.unwrap());
    host.fabric().machine_start(WEB01).await.unwrap();

    host.guest_switches_off(&web01()).await;

    assert!(host.fabric().machine_guest_off(&web01()).await.unwrap());
    assert_eq!(state(host, &web01()).await, MachineState::Paused);
    assert!(host.fabric().capture(&web01()).await.is_ok(), "its last point");
    host.kill_process(&web01()).await;
    assert!(!host.fabric().machine_guest_off(&web01()).await.unwrap());
    let nobody = MachineRef::Owned("nobody".into());
    let unknown = host.fabric().machine_guest_off(&nobody).await.unwrap_err();
    assert_eq!(unknown.code(), Code::MACHINE_UNKNOWN);
}

pub async fn a_mark_belongs_to_one_item(host: &mut dyn Host) {
    assert_eq!(host.fabric().machine_claimed(WEB01).await.unwrap(), None);
    for _ in 0..2 {
        host.fabric().machine_claim(WEB01, ITEM).await.unwrap();
    }
    host.restart_role();

    assert_eq!(host.fabric().machine_claimed(WEB01).await.unwrap(), Some(ITEM));
    let foreign = host.fabric().machine_claim(WEB01, OTHER).await.unwrap_err();
    assert_eq!(foreign.code(), Code::MACHINE_FOREIGN);
    assert_eq!(host.fabric().discover().await.unwrap().len(), 1);
    for _ in 0..2 {
        host.fabric().machine_disclaim(WEB01).await.unwrap();
    }
    host.fabric().machine_claim(WEB01, OTHER).await.unwrap();

    host.fabric().machine_disclaim("nobody").await.unwrap();
    for error in [
        host.fabric().machine_claim("nobody", ITEM).await.unwrap_err(),
        host.fabric().machine_claimed("nobody").await.unwrap_err(),
        host.fabric().machine_claim("../m/web01", ITEM).await.unwrap_err(),
    ] {
        assert_eq!(error.code(), Code::MACHINE_UNKNOWN, "{error}");
    }
}

pub async fn the_disks_of_a_machine_that_is_off_are_read_where_they_lie(host: &mut dyn Host) {
    host.fabric().machine_start(WEB01).await.unwrap();
    host.guest_write(&web01(), 0, MIB, 0x11).await;
    host.guest_write(&web01(), 1, 3 * MIB, 0x22).await;
    assert!(host.fabric().still(WEB01).await.is_err(), "it runs");
    host.fabric().machine_halt(&web01()).await.unwrap();
    assert!(host.fabric().still(WEB01).await.is_err(), "it stands still");
    host.fabric().machine_quit(&web01()).await.unwrap();
    let mut expected = Disks::zeroes();
    expected.write(0, MIB, 4096, 0x11);
    expected.write(1, 3 * MIB, 4096, 0x22);

    let mut still = host.fabric().still(WEB01).await.unwrap();
    let sizes = |disks: Vec<u64>| assert_eq!(disks, [16 * MIB, 32 * MIB]);
    sizes(still.spec.disks.iter().map(|disk| disk.size).collect());
    sizes(still.source.disks().iter().map(|disk| disk.size).collect());
    let attached = still.source.attach(Some(at(1))).await.unwrap();
    assert!(matches!(attached, Attached::NeedsFullRead(_)));
    let dirty = still.source.open_live(LiveRead::Dirty).await.unwrap();
    assert_eq!(dirty.ranges(DiskNumber(0)).await.unwrap(), []);
    still.source.close_live().await.unwrap();
    let live = still.source.open_live(LiveRead::Everything).await.unwrap();
    let mut copy = Disks::zeroes();
    let read = copy.take(&*live).await.unwrap();
    copy.assert_is(&expected, "at rest");
    assert!(read < MIB, "{read} bytes were read of what is allocated");
    still.source.close_live().await.unwrap();
    let cut = still.source.cut().await.unwrap();
    assert_eq!((cut.pause, cut.dirty_bytes), (Duration::ZERO, 0));
    assert_eq!(cut.reader.ranges(DiskNumber(1)).await.unwrap(), []);
    let bytes = cut.reader.read(DiskNumber(1), 3 * MIB, 4096).await.unwrap();
    assert_eq!(bytes, [0x22; 4096][..]);
    still.source.close_cut(CutEnd::Committed(at(2))).await.unwrap();

    host.fabric().machine_start(WEB01).await.unwrap();
    assert!(cut.reader.read(DiskNumber(1), 0, 4096).await.is_err(), "it is somebody's to write");
    host.fabric().machine_quit(&web01()).await.unwrap();
    still.source.detach().await.unwrap();
    assert!(still.source.open_live(LiveRead::Everything).await.is_err(), "it is over");
    drop(still);
    content_at_rest(host).await.assert_is(&expected, "a second reading");
}

pub async fn a_disk_that_is_gone_is_left_out_and_without_any_there_is_no_machine(
    host: &mut dyn Host,
) {
    host.remove_image(0);
    let still = host.fabric().still(WEB01).await.unwrap();
    let left: Vec<DiskNumber> = still.source.disks().iter().map(|disk| disk.number).collect();
    assert_eq!(left, [DiskNumber(1)]);
    assert_eq!(still.spec.disks.len(), 1);
    assert_eq!(still.spec.disks[0].number, DiskNumber(1));
    drop(still);

    host.remove_image(1);
    for name in [WEB01, "nobody"] {
        let gone = host.fabric().still(name).await.err().unwrap();
        assert_eq!(gone.code(), Code::MACHINE_UNKNOWN, "{name}: {gone}");
    }
}

pub async fn an_instance_settles_only_as_a_machine_of_its_item_that_is_off(host: &mut dyn Host) {
    let plan = host.plan();
    let settle = host.fabric().instance_settle(plan.instance, WEB01, ITEM).await;
    assert_eq!(settle.unwrap_err().code(), Code::MACHINE_UNKNOWN, "there is no instance");
    host.fabric().overlay_create(&plan).await.unwrap();

    let owners = host.fabric().instance_settle(plan.instance, WEB01, ITEM).await.unwrap_err();
    assert_eq!(owners.code(), Code::MACHINE_FOREIGN, "{owners}");
    host.fabric().machine_claim(WEB01, OTHER).await.unwrap();
    let others = host.fabric().instance_settle(plan.instance, WEB01, ITEM).await.unwrap_err();
    assert!(matches!(others, FabricError::Foreign { .. }), "{others}");
    host.fabric().machine_disclaim(WEB01).await.unwrap();
    host.fabric().machine_claim(WEB01, ITEM).await.unwrap();
    host.fabric().machine_start(WEB01).await.unwrap();
    let runs = host.fabric().instance_settle(plan.instance, WEB01, ITEM).await.unwrap_err();
    assert_eq!(runs.code(), Code::STOP_NOT_CONFIRMED, "{runs}");
    assert!(host.fabric().instance_hand_over(plan.instance).await.is_err(), "it has not settled");
    host.fabric().instance_unsettle(plan.instance).await.unwrap();

    assert_eq!(state(host, &web01()).await, MachineState::Running, "nothing was touched");
    host.fabric().machine_quit(&web01()).await.unwrap();
}

pub async fn a_settling_is_taken_back_with_the_former_disks(host: &mut dyn Host) {
    host.fabric().machine_start(WEB01).await.unwrap();
    host.guest_write(&web01(), 0, MIB, 0x11).await;
    host.fabric().machine_quit(&web01()).await.unwrap();
    host.fabric().machine_claim(WEB01, ITEM).await.unwrap();
    let before = host.fabric().discover().await.unwrap();
    let plan = host.plan();
    let machine = settled(host, &plan).await;
    host.fabric().machine_start(WEB01).await.unwrap();
    host.guest_write(&web01(), 1, 0, 0x44).await;
    assert_eq!(state(host, &machine).await, MachineState::Running, "they are one machine");
    host.fabric().machine_halt(&web01()).await.unwrap();
    let tended = host.fabric().instance_tend(plan.instance, ExportAnswers::Yes).await.unwrap();
    assert_eq!(tended.state, MachineState::Paused, "who halted it lets it go on");
    host.fabric().machine_start(WEB01).await.unwrap();
    hydrate(host, plan.instance).await;
    let found = host.fabric().discover().await.unwrap();
    assert_eq!((found.len(), found[0].state), (1, MachineState::Running));
    assert_eq!(found[0].obstacles, [""; 0]);

    host.fabric().machine_quit(&web01()).await.unwrap();
    for _ in 0..2 {
        host.fabric().instance_unsettle(plan.instance).await.unwrap();
    }

    assert_eq!(host.fabric().discover().await.unwrap(), before);
    let mut expected = Disks::zeroes();
    expected.write(0, MIB, 4096, 0x11);
    content_at_rest(host).await.assert_is(&expected, "the former disks");
    host.fabric().instance_settle(plan.instance, WEB01, ITEM).await.unwrap();
    host.fabric().instance_delete(plan.instance).await.unwrap();
    assert_eq!(host.fabric().discover().await.unwrap(), before, "the deleted left nothing behind");
    assert_eq!(host.fabric().machine_claimed(WEB01).await.unwrap(), Some(ITEM));
}

pub async fn a_machine_that_was_handed_over_is_its_owners_only(host: &mut dyn Host) {
    host.fabric().machine_claim(WEB01, ITEM).await.unwrap();
    let plan = host.plan();
    let (id, machine) = (plan.instance, settled(host, &plan).await);
    let early = host.fabric().instance_hand_over(id).await.unwrap_err();
    assert!(matches!(early, FabricError::Hypervisor { .. }), "{early}");
    host.fabric().instance_run(id).await.unwrap();
    hydrate(host, id).await;
    commit_first_point(host, &machine).await;
    host.guest_write(&machine, 0, MIB, 0x44).await;

    for _ in 0..2 {
        host.fabric().instance_hand_over(id).await.unwrap();
        host.restart_role();
    }

    assert_eq!(host.fabric().instances().await.unwrap(), []);
    for gone in [
        host.fabric().instance_status(id).await.err(),
        host.fabric().instance_prepare(id).await.err(),
        host.fabric().instance_kill(id).await.err(),
        host.fabric().instance_unsettle(id).await.err(),
        host.fabric().instance_settle(id, WEB01, ITEM).await.err(),
        host.fabric().instance_delete(id).await.err(),
        host.fabric().overlay_create(&plan).await.err(),
        host.fabric().machine_state(&machine).await.err(),
    ] {
        assert_eq!(gone.map(|error| error.code()), Some(Code::MACHINE_UNKNOWN));
    }
    assert_eq!(state(host, &web01()).await, MachineState::Running);
    assert_eq!(host.fabric().discover().await.unwrap().len(), 1);
    let mut source = host.fabric().capture(&web01()).await.unwrap();
    assert_eq!(source.attach(Some(at(1))).await.unwrap(), Attached::Continues);
    let cut = source.cut().await.unwrap();
    assert_eq!(cut.dirty_bytes, 65_536);
    drop(cut);
    source.close_cut(CutEnd::Abandoned).await.unwrap();
    drop(source);

    host.kill_process(&web01()).await;
    assert_eq!(state(host, &web01()).await, MachineState::Off);
    host.fabric().machine_start(WEB01).await.unwrap();
    let mut expected = point();
    expected.write(0, MIB, 4096, 0x44);
    content(host, &web01()).await.assert_is(&expected, "after its own start");
    host.fabric().machine_fence(&web01()).await.unwrap();
    assert_eq!(state(host, &web01()).await, MachineState::Off);
    content_at_rest(host).await.assert_is(&expected, "at rest");
}

pub async fn a_machine_that_does_not_exist_is_made_and_removed_again(host: &mut dyn Host) {
    let plan = host.plan();
    host.fabric().overlay_create(&plan).await.unwrap();

    host.fabric().instance_settle(plan.instance, "web02", ITEM).await.unwrap();
    let found = host.fabric().discover().await.unwrap();
    let names: Vec<&str> = found.iter().map(|machine| &*machine.spec.name).collect();
    assert_eq!(names, [WEB01, "web02"]);
    assert_eq!(host.fabric().machine_claimed("web02").await.unwrap(), Some(ITEM));
    assert_eq!(host.fabric().autostart().await.unwrap(), [""; 0]);
    let made = MachineRef::Owned("web02".into());
    assert_eq!(state(host, &made).await, MachineState::Off);

    host.fabric().instance_unsettle(plan.instance).await.unwrap();
    assert_eq!(host.fabric().discover().await.unwrap().len(), 1);
    let gone = host.fabric().machine_state(&made).await.unwrap_err();
    assert_eq!(gone.code(), Code::MACHINE_UNKNOWN);
}
