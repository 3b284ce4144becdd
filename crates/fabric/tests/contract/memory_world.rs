//! The double as a host of the suite, and what only a double can do.

use crate::qemu_world::MIB;
use crate::suite::Host;
use bytes::Bytes;
use leeward_fabric::memory::{MemoryFabric, MemoryWorld, OnShutdown};
use leeward_fabric::{
    ExportAnswers, Fabric, FabricError, InstanceDisk, InstancePlan, IoStop, MachineRef, Shutdown,
};
use leeward_model::{
    DiskFormat, DiskNumber, DiskSpec, Firmware, InstanceId, ItemId, MachineSpec, MachineState,
    Probe,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub struct MemoryHost {
    world: Arc<MemoryWorld>,
    fabric: MemoryFabric,
}

const INSTANCE: InstanceId = InstanceId::from_u128(9);

fn spec() -> MachineSpec {
    let disk = |number: u16, size: u64| DiskSpec {
        number: DiskNumber(number),
        id: format!("disk{number}"),
        serial: format!("s{number}"),
        size,
        block_bytes: 512,
        format: DiskFormat::Raw,
        path: format!("/disk{number}"),
    };
    MachineSpec {
        name: "web01".into(),
        memory_mib: 32,
        cpus: 1,
        firmware: Firmware::Bios,
        disks: vec![disk(0, 16 * MIB), disk(1, 32 * MIB)],
        nics: Vec::new(),
        display: false,
        probe: Probe::default(),
    }
}

impl MemoryHost {
    pub fn new() -> Self {
        let world = MemoryWorld::new();
        let fabric = MemoryFabric::new(world.clone());
        fabric.add_machine(spec());
        let host = MemoryHost { world, fabric };
        host.serve();
        host
    }

    fn serve(&self) {
        let full = Arc::new(|_, _, len| Ok(Bytes::from(vec![0x55; len as usize])));
        self.world.serve(Path::new("/export"), "pt", full);
    }
}

#[async_trait::async_trait]
impl Host for MemoryHost {
    fn fabric(&self) -> &dyn Fabric {
        &self.fabric
    }

    fn restart_role(&mut self) {
        self.fabric = self.fabric.clone();
    }

    fn plan(&self) -> InstancePlan {
        let spec = spec();
        let disk = |disk: &DiskSpec| InstanceDisk {
            number: disk.number,
            size: disk.size,
            socket: "/export".into(),
            export: "pt".into(),
        };
        let disks = spec.disks.iter().map(disk).collect();
        InstancePlan {
            instance: INSTANCE,
            folder: "/i".into(),
            spec,
            disks,
            isolated: false,
            changes: leeward_model::MachineChanges::default(),
            settle_as: None,
        }
    }

    async fn guest_write(&self, machine: &MachineRef, disk: u16, offset: u64, pattern: u8) {
        let bytes = [pattern; 4096];
        self.fabric.guest_write(machine, DiskNumber(disk), offset, &bytes).unwrap();
    }

    async fn kill_process(&self, machine: &MachineRef) {
        self.fabric.kill_process(machine);
    }

    async fn guest_switches_off(&self, machine: &MachineRef) {
        self.fabric.guest_switches_off(machine);
    }

    fn remove_image(&self, disk: u16) {
        let machine = MachineRef::Owned("web01".into());
        self.fabric.disks(&machine).unwrap().set_present(DiskNumber(disk), false);
    }
}

#[tokio::test]
async fn two_machines_of_one_item_that_run_at_the_same_time_are_seen() {
    let host = MemoryHost::new();
    let machine = MachineRef::Owned("web01".into());
    let other_site = MemoryFabric::new(host.world.clone());
    other_site.overlay_create(&host.plan()).await.unwrap();
    other_site.instance_prepare(INSTANCE).await.unwrap();

    host.fabric.machine_start("web01").await.unwrap();
    host.fabric.machine_fence(&machine).await.unwrap();
    other_site.instance_run(INSTANCE).await.unwrap();
    assert_eq!((host.world.writers("web01"), host.world.writers_most("web01")), (1, 1));

    host.fabric.machine_start("web01").await.unwrap();
    assert_eq!((host.world.writers("web01"), host.world.writers_most("web01")), (2, 2));
    host.fabric.power_cut();
    assert_eq!((host.world.writers("web01"), host.world.writers_most("web01")), (1, 2));
}

#[tokio::test]
async fn an_isolated_machine_is_no_second_writer() {
    let host = MemoryHost::new();
    let plan = InstancePlan { isolated: true, ..host.plan() };
    host.fabric.machine_start("web01").await.unwrap();
    host.fabric.overlay_create(&plan).await.unwrap();
    host.fabric.instance_prepare(INSTANCE).await.unwrap();

    host.fabric.instance_run(INSTANCE).await.unwrap();

    assert_eq!(host.world.writers_most("web01"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_guest_may_be_slow_or_deaf_when_it_is_asked_to_shut_down() {
    let host = MemoryHost::new();
    let machine = MachineRef::Owned("web01".into());
    host.fabric.machine_start("web01").await.unwrap();
    let minute = Duration::from_secs(60);

    host.fabric.set_on_shutdown(&machine, OnShutdown::Ignores);
    let deaf = host.fabric.machine_shutdown(&machine, minute).await.unwrap();
    assert_eq!(deaf, Shutdown::NotInTime);
    host.fabric.set_on_shutdown(&machine, OnShutdown::After(minute));
    let slow = host.fabric.machine_shutdown(&machine, 2 * minute).await.unwrap();

    assert_eq!(slow, Shutdown::Done);
    assert_eq!(host.fabric.machine_state(&machine).await.unwrap(), MachineState::Paused);
}

#[tokio::test]
async fn a_silent_machine_is_unknown_and_ends_when_fenced_unless_it_cannot_be_killed() {
    let host = MemoryHost::new();
    let machine = MachineRef::Owned("web01".into());
    host.fabric.machine_start("web01").await.unwrap();
    host.fabric.set_silent(&machine, true);
    host.fabric.set_unkillable(&machine, true);

    assert_eq!(host.fabric.machine_state(&machine).await.unwrap(), MachineState::Unknown);
    let unsure = host.fabric.machine_fence(&machine).await;
    assert!(matches!(unsure, Err(FabricError::NotConfirmedOff { .. })), "{unsure:?}");
    host.fabric.set_unkillable(&machine, false);
    host.fabric.machine_fence(&machine).await.unwrap();

    assert_eq!(host.fabric.machine_state(&machine).await.unwrap(), MachineState::Off);
}

#[tokio::test]
async fn a_guest_without_its_point_stops_and_goes_on_when_the_point_is_back() {
    let host = MemoryHost::new();
    let machine = MachineRef::Instance(INSTANCE);
    host.fabric.overlay_create(&host.plan()).await.unwrap();
    host.fabric.instance_prepare(INSTANCE).await.unwrap();
    host.fabric.instance_run(INSTANCE).await.unwrap();

    host.world.stop_serving(Path::new("/export"), "pt");
    assert!(host.fabric.guest_read(&machine, DiskNumber(0), 0, 512).is_err());
    let left = host.fabric.instance_tend(INSTANCE, ExportAnswers::No).await.unwrap();
    assert_eq!(left.io_stop, Some(IoStop::Backing));
    host.serve();
    let tended = host.fabric.instance_tend(INSTANCE, ExportAnswers::Yes).await.unwrap();

    assert_eq!((tended.state, tended.hydrated_percent), (MachineState::Running, 100));
    let read = host.fabric.guest_read(&machine, DiskNumber(0), 0, 512).unwrap();
    assert_eq!(read, [0x55; 512]);
}

#[tokio::test]
async fn an_instance_that_settled_is_one_writer_under_its_two_names() {
    let host = MemoryHost::new();
    let (machine, item) = (MachineRef::Owned("web01".into()), ItemId::from_u128(1));
    host.fabric.overlay_create(&host.plan()).await.unwrap();
    host.fabric.instance_prepare(INSTANCE).await.unwrap();
    host.fabric.machine_claim("web01", item).await.unwrap();
    host.fabric.instance_settle(INSTANCE, "web01", item).await.unwrap();

    host.fabric.machine_start("web01").await.unwrap();
    host.fabric.instance_run(INSTANCE).await.unwrap();
    assert_eq!(host.world.writers("web01"), 1);
    host.fabric.instance_tend(INSTANCE, ExportAnswers::Yes).await.unwrap();
    host.fabric.instance_hand_over(INSTANCE).await.unwrap();
    assert_eq!(host.world.writers("web01"), 1);
    host.fabric.machine_quit(&machine).await.unwrap();

    assert_eq!((host.world.writers("web01"), host.world.writers_most("web01")), (0, 1));
}
