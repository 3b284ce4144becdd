//! The contract of [`Fabric`]: each case runs against real QEMU processes and against the double.

use crate::qemu_world::{Disks, MIB, QemuWorld};
use crate::suite_settle::*;
use crate::{memory_world::MemoryHost, qemu_instance};
use leeward_capture::{Attached, CutEnd, LiveRead};
use leeward_fabric::{ExportAnswers, Fabric, InstancePlan, MachineRef, Shutdown};
use leeward_model::{Code, DiskNumber, Lsn, MachineState, Position, TimelineId};
use std::time::Duration;

/// A host with one owner's machine `web01` (disks of 16 and 32 MiB) and one served point of the
/// same size, all of it 0x55.
#[async_trait::async_trait]
pub trait Host {
    /// The host's fabric.
    fn fabric(&self) -> &dyn Fabric;
    /// As after the role process was killed and started again.
    fn restart_role(&mut self);
    /// How an instance is made from the served point.
    fn plan(&self) -> InstancePlan;
    /// A write of a machine's guest.
    async fn guest_write(&self, machine: &MachineRef, disk: u16, offset: u64, pattern: u8);
    /// Ends a machine's process.
    async fn kill_process(&self, machine: &MachineRef);
    /// Lets a machine's guest switch itself off; returns when it has.
    async fn guest_switches_off(&self, machine: &MachineRef);
    /// Takes the image of a disk of `web01` away.
    fn remove_image(&self, disk: u16);
}

pub const WEB01: &str = "web01";

pub fn web01() -> MachineRef {
    MachineRef::Owned(WEB01.into())
}

pub fn at(lsn: u64) -> Position {
    Position { timeline: TimelineId::from_u128(3), lsn: Lsn(lsn) }
}

pub async fn state(host: &dyn Host, machine: &MachineRef) -> MachineState {
    host.fabric().machine_state(machine).await.unwrap()
}

async fn a_machine_starts_once_and_its_end_is_certain(host: &mut dyn Host) {
    let found = host.fabric().discover().await.unwrap();
    assert_eq!((found.len(), &*found[0].spec.name), (1, WEB01));
    assert_eq!((found[0].state, found[0].obstacles.len()), (MachineState::Off, 0));

    host.fabric().machine_start(WEB01).await.unwrap();
    host.fabric().machine_start(WEB01).await.unwrap();
    assert_eq!(state(host, &web01()).await, MachineState::Running);
    host.fabric().machine_quit(&web01()).await.unwrap();
    host.fabric().machine_quit(&web01()).await.unwrap();

    assert_eq!(state(host, &web01()).await, MachineState::Off);
    let shutdown = host.fabric().machine_shutdown(&web01(), Duration::ZERO).await.unwrap();
    assert_eq!(shutdown, Shutdown::Done, "a machine that is off is shut down");
    assert!(host.fabric().capture(&web01()).await.is_err());
}

async fn an_unknown_machine_is_named_as_such(host: &mut dyn Host) {
    let nobody = MachineRef::Owned("nobody".into());

    let errors = [
        host.fabric().machine_state(&nobody).await.unwrap_err(),
        host.fabric().machine_start("nobody").await.unwrap_err(),
        host.fabric().machine_quit(&nobody).await.unwrap_err(),
        host.fabric().instance_prepare(host.plan().instance).await.unwrap_err(),
    ];

    assert!(errors.iter().all(|error| error.code() == Code::MACHINE_UNKNOWN), "{errors:?}");
    host.fabric().instance_delete(host.plan().instance).await.unwrap();
}

async fn a_machine_outlives_the_role_process_and_is_found_again(host: &mut dyn Host) {
    host.fabric().machine_start(WEB01).await.unwrap();

    host.restart_role();
    assert_eq!(state(host, &web01()).await, MachineState::Running);
    host.kill_process(&web01()).await;

    assert_eq!(state(host, &web01()).await, MachineState::Off);
    host.fabric().machine_start(WEB01).await.unwrap();
    assert_eq!(state(host, &web01()).await, MachineState::Running);
}

async fn changes_are_captured_over_a_restart_of_the_role(host: &mut dyn Host) {
    host.fabric().machine_start(WEB01).await.unwrap();
    let mut source = host.fabric().capture(&web01()).await.unwrap();
    assert!(matches!(source.attach(None).await.unwrap(), Attached::NeedsFullRead(_)));
    let live = source.open_live(LiveRead::Everything).await.unwrap();
    let mut copy = Disks::zeroes();
    copy.take(&*live).await.unwrap();
    source.close_live().await.unwrap();
    let cut = source.cut().await.unwrap();
    copy.take(&*cut.reader).await.unwrap();
    source.close_cut(CutEnd::Committed(at(1))).await.unwrap();
    host.guest_write(&web01(), 0, MIB, 0x11).await;
    let unread = source.cut().await.unwrap();
    host.guest_write(&web01(), 1, 2 * MIB, 0x22).await;
    drop((unread, source));
    host.restart_role();

    let mut source = host.fabric().capture(&web01()).await.unwrap();
    assert_eq!(source.attach(Some(at(1))).await.unwrap(), Attached::Continues);
    let cut = source.cut().await.unwrap();
    let dirty = cut.dirty_bytes;
    copy.take(&*cut.reader).await.unwrap();
    source.close_cut(CutEnd::Committed(at(2))).await.unwrap();

    let mut expected = Disks::zeroes();
    expected.write(0, MIB, 4096, 0x11);
    expected.write(1, 2 * MIB, 4096, 0x22);
    copy.assert_is(&expected, "after both cuts");
    assert_eq!(dirty, 2 * 65_536);
}

async fn a_fence_leaves_the_machine_off_and_tells_its_changes(host: &mut dyn Host) {
    host.fabric().machine_start(WEB01).await.unwrap();
    let mut source = host.fabric().capture(&web01()).await.unwrap();
    source.attach(None).await.unwrap();
    drop(source.cut().await.unwrap());
    source.close_cut(CutEnd::Committed(at(1))).await.unwrap();
    host.guest_write(&web01(), 1, 0, 0x33).await;
    drop(source);

    let changes = host.fabric().machine_fence(&web01()).await.unwrap();

    assert_eq!(state(host, &web01()).await, MachineState::Off);
    assert_eq!(changes.dirty_bytes(), Some(65_536));
    assert_eq!(changes.ranges(DiskNumber(1)).unwrap()[0].offset, 0);
    host.restart_role();
    assert_eq!(host.fabric().machine_fence(&web01()).await.unwrap(), changes);
    host.fabric().machine_start(WEB01).await.unwrap();
    let unknown = host.fabric().machine_fence(&web01()).await.unwrap();
    assert_eq!(unknown.dirty_bytes(), None, "it was not captured in this life");
}

async fn an_instance_goes_through_its_stages_and_each_may_be_repeated(host: &mut dyn Host) {
    let plan = host.plan();
    let (id, machine) = (plan.instance, MachineRef::Instance(plan.instance));
    assert!(host.fabric().instance_run(id).await.is_err());
    for _ in 0..2 {
        host.fabric().overlay_create(&plan).await.unwrap();
    }
    assert!(host.fabric().instance_run(id).await.is_err(), "it is not prepared");
    for _ in 0..2 {
        host.fabric().instance_prepare(id).await.unwrap();
        let status = host.fabric().instance_tend(id, ExportAnswers::Yes).await.unwrap();
        assert_eq!((status.state, status.hydrated_percent), (MachineState::Paused, 0));
    }
    for _ in 0..2 {
        host.fabric().instance_run(id).await.unwrap();
        assert_eq!(state(host, &machine).await, MachineState::Running);
    }
    host.guest_write(&machine, 0, MIB, 0x44).await;
    host.restart_role();
    assert_eq!(host.fabric().instances().await.unwrap(), [id]);
    assert!(host.fabric().instance_delete(id).await.is_err(), "it runs");

    let mut source = host.fabric().capture(&machine).await.unwrap();
    source.attach(None).await.unwrap();
    let live = source.open_live(LiveRead::Everything).await.unwrap();
    let mut copy = Disks::zeroes();
    copy.take(&*live).await.unwrap();
    source.close_live().await.unwrap();
    let mut expected = Disks::zeroes();
    expected.write(0, 0, 16 * MIB, 0x55);
    expected.write(1, 0, 32 * MIB, 0x55);
    expected.write(0, MIB, 4096, 0x44);
    copy.assert_is(&expected, "the instance");
    drop(source);

    for _ in 0..2 {
        host.fabric().instance_kill(id).await.unwrap();
    }
    assert_eq!(state(host, &machine).await, MachineState::Off);
    host.fabric().overlay_create(&plan).await.unwrap();
    host.fabric().instance_prepare(id).await.unwrap();
    host.fabric().instance_run(id).await.unwrap();
    assert_eq!(state(host, &machine).await, MachineState::Running, "a second life");
    host.fabric().machine_quit(&machine).await.unwrap();
    for _ in 0..2 {
        host.fabric().instance_delete(id).await.unwrap();
    }
    assert_eq!(host.fabric().instances().await.unwrap(), []);
}

macro_rules! contract {
    ($($case:ident)*) => {
        mod qemu {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let mut host = qemu_instance::QemuHost::new(QemuWorld::new().await);
                super::$case(&mut host).await;
            })*
        }
        mod memory {
            use super::*;
            $(#[tokio::test]
            async fn $case() {
                super::$case(&mut MemoryHost::new()).await;
            })*
        }
    };
}

contract! {
    a_machine_starts_once_and_its_end_is_certain
    an_unknown_machine_is_named_as_such
    a_machine_outlives_the_role_process_and_is_found_again
    changes_are_captured_over_a_restart_of_the_role
    a_fence_leaves_the_machine_off_and_tells_its_changes
    an_instance_goes_through_its_stages_and_each_may_be_repeated
    a_halted_machine_counts_as_shut_down_and_can_go_on
    a_guest_that_switches_itself_off_is_told_from_one_that_was_halted
    a_mark_belongs_to_one_item
    the_disks_of_a_machine_that_is_off_are_read_where_they_lie
    a_disk_that_is_gone_is_left_out_and_without_any_there_is_no_machine
    an_instance_settles_only_as_a_machine_of_its_item_that_is_off
    a_settling_is_taken_back_with_the_former_disks
    a_machine_that_was_handed_over_is_its_owners_only
    a_machine_that_does_not_exist_is_made_and_removed_again
}
