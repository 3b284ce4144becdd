//! Machines on overlays over an export: hydration, points meanwhile, and an export that goes away.

use crate::qemu_world::{DEADLINE, Disks, MIB, Monitor, QemuWorld, run, text};
use leeward_capture::{Attached, CutEnd, LiveRead};
use leeward_fabric::process::ProcessIdentity;
use leeward_fabric::{
    ExportAnswers, Fabric, InstanceDisk, InstancePlan, InstanceStatus, IoStop, MachineRef,
};
use leeward_model::{
    DiskFormat, DiskNumber, DiskSpec, Firmware, InstanceId, Lsn, MachineSpec, MachineState,
    Position, Probe, TimelineId,
};
use leeward_nbd::memory::MemoryExport;
use leeward_nbd::protocol::Errno;
use leeward_nbd::server::{Export, ExportError, ExportExtent, Limits, RunningServer, Server};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const INSTANCE: InstanceId = InstanceId::from_u128(0xabcdef);
const MACHINE: MachineRef = MachineRef::Instance(INSTANCE);

/// A guest in one sector: reads and writes back sector after sector of its disk for ever, and
/// says `.` on the serial line for each, or `E` when its disk gave it an error.
const LOAD: [u8; 61] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0x88, 0x16, 0x60, 0x7c,
    0xbe, 0x64, 0x7c, 0xb4, 0x42, 0x8a, 0x16, 0x60, 0x7c, 0xcd, 0x13, 0x72, 0x1c, 0xbe, 0x64, 0x7c,
    0xb8, 0x00, 0x43, 0x8a, 0x16, 0x60, 0x7c, 0xcd, 0x13, 0x72, 0x0e, 0xb0, 0x2e, 0xba, 0xf8, 0x03,
    0xee, 0x66, 0x83, 0x06, 0x6c, 0x7c, 0x01, 0xeb, 0xd7, 0xb0, 0x45, 0xeb, 0xf0,
];
/// Its disk address packet, at byte 0x64: one sector to 0000:8000, from sector 0 on.
const LOAD_PACKET: [u8; 8] = [0x10, 0, 1, 0, 0x00, 0x80, 0, 0];
/// Size of its disk: large enough that it does not come round within a test.
const LOAD_DISK: u64 = 128 * MIB;

fn load_sector() -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[..LOAD.len()].copy_from_slice(&LOAD);
    sector[0x64..0x6c].copy_from_slice(&LOAD_PACKET);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Exports of raw files by qemu-nbd, a process each.
struct Exports(Vec<Child>);

impl Exports {
    fn serve(world: &QemuWorld, files: &[&str]) -> Exports {
        let serve = |file: &&str| {
            let (socket, path) = (world.path(&format!("{file}.s")), world.path(file));
            let _ = fs::remove_file(&socket); // A killed server leaves it behind.
            let child = Command::new("qemu-nbd")
                .args(["-r", "-t", "-e", "8", "-f", "raw", "-x", "pt", "-k"])
                .args([&socket, &path])
                .spawn()
                .unwrap();
            let end = Instant::now() + DEADLINE;
            while !socket.exists() {
                assert!(Instant::now() < end, "qemu-nbd did not start");
                std::thread::sleep(Duration::from_millis(5));
            }
            child
        };
        Exports(files.iter().map(serve).collect())
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn plan(world: &QemuWorld, disks: &[(&str, u64)]) -> InstancePlan {
    let disk = |(number, (file, size)): (usize, &(&str, u64))| InstanceDisk {
        number: DiskNumber(number as u16),
        size: *size,
        socket: world.path(&format!("{file}.s")),
        export: "pt".into(),
    };
    InstancePlan {
        instance: INSTANCE,
        folder: world.path("instance"),
        spec: MachineSpec {
            name: "web01".into(),
            memory_mib: 32,
            cpus: 1,
            firmware: Firmware::Bios,
            disks: Vec::new(),
            nics: Vec::new(),
            display: true,
            probe: Probe::default(),
        },
        disks: disks.iter().enumerate().map(disk).collect(),
        isolated: true,
        changes: leeward_model::MachineChanges::default(),
        settle_as: None,
    }
}

async fn status_until(
    world: &QemuWorld,
    what: &str,
    wanted: impl Fn(&InstanceStatus) -> bool,
) -> InstanceStatus {
    let end = Instant::now() + DEADLINE;
    loop {
        let status = world.fabric.instance_status(INSTANCE).await.unwrap();
        if wanted(&status) {
            return status;
        }
        assert!(Instant::now() < end, "waited for {what}, got {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A point of two disks with content, served, and the instance made from it, prepared.
async fn prepared(hydration: u64) -> (QemuWorld, Exports, Monitor, Disks) {
    let world = QemuWorld::with(|config| config.hydration_bytes_per_second = hydration).await;
    let mut truth = Disks::zeroes();
    for (disk, file) in ["a", "b"].iter().enumerate() {
        for extent in 0..32 {
            truth.write(disk as u16, extent * 8 * 65_536 % (16 * MIB), 65_536, extent as u8 + 1);
        }
        fs::write(world.path(file), &truth.0[disk]).unwrap();
    }
    let exports = Exports::serve(&world, &["a", "b"]);
    let plan = plan(&world, &[("a", 16 * MIB), ("b", 32 * MIB)]);
    world.fabric.overlay_create(&plan).await.unwrap();
    world.fabric.overlay_create(&plan).await.unwrap();
    world.fabric.instance_prepare(INSTANCE).await.unwrap();
    let monitor = world.monitor(&MACHINE).await;
    (world, exports, monitor, truth)
}

/// F-078, F-095: a machine runs from a point at once and needs the store no longer afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_runs_from_its_point_and_then_holds_everything_itself() {
    let (world, exports, monitor, mut truth) = prepared(0).await;
    let still = world.fabric.instance_status(INSTANCE).await.unwrap();
    assert_eq!((still.state, still.hydrated_percent), (MachineState::Paused, 0));
    let tended = world.fabric.instance_tend(INSTANCE, ExportAnswers::Yes).await.unwrap();
    assert_eq!(tended.state, MachineState::Paused, "only a run may start it");

    world.fabric.instance_run(INSTANCE).await.unwrap();
    monitor.write(0, 0, 65_536, 99).await;
    truth.write(0, 0, 65_536, 99);
    let done = status_until(&world, "hydration", |status| status.hydrated_percent == 100).await;

    assert_eq!((done.state, done.io_stop), (MachineState::Running, None));
    drop(exports);
    world.fabric.instance_run(INSTANCE).await.unwrap();
    let mut source = world.fabric.capture(&MACHINE).await.unwrap();
    source.attach(None).await.unwrap();
    let mut copy = Disks::zeroes();
    let live = source.open_live(LiveRead::Everything).await.unwrap();
    copy.take(&*live).await.unwrap();
    copy.assert_is(&truth, "after hydration");
    source.close_live().await.unwrap();
    source.detach().await.unwrap();
    assert_eq!(monitor.bitmaps(0).await, ["lw-since-failover"]);
    let nodes = monitor.call("query-named-block-nodes", json!({"flat": true})).await;
    let node = nodes.as_array().unwrap().iter().find(|node| node["node-name"] == "lw-disk-0");
    let bytes = &node.unwrap()["dirty-bitmaps"][0]["count"];
    assert_eq!(*bytes, json!(65_536), "hydration counted as the guest's writes");

    let picture = world.fabric.machine_screenshot(&MACHINE).await.unwrap();
    assert!(picture.starts_with(b"\x89PNG"));
    let refused = world.fabric.instance_delete(INSTANCE).await;
    assert!(refused.is_err(), "a running instance was deleted");
    world.fabric.instance_kill(INSTANCE).await.unwrap();
    assert_eq!(world.fabric.instance_status(INSTANCE).await.unwrap().hydrated_percent, 100);
    assert_eq!(world.fabric.instances().await.unwrap(), [INSTANCE]);
    world.fabric.instance_delete(INSTANCE).await.unwrap();
    assert_eq!(world.fabric.instances().await.unwrap(), []);
    assert!(!world.path("instance").exists());
}

/// QEMU keeps the maps of what it streamed in memory until somebody flushes: a guest that has not
/// come that far does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_holds_everything_loses_nothing_by_a_kill() {
    let (world, exports, _monitor, truth) = prepared(0).await;
    world.fabric.instance_run(INSTANCE).await.unwrap();
    status_until(&world, "hydration", |status| status.hydrated_percent == 100).await;

    world.fabric.instance_kill(INSTANCE).await.unwrap();

    drop(exports);
    for (disk, wanted) in truth.0.iter().enumerate() {
        let (overlay, copy) = (format!("instance/disk-{disk}.qcow2"), world.path("copy"));
        run("qemu-img", &["convert", "-O", "raw", text(&world.path(&overlay)), text(&copy)]);
        assert!(fs::read(&copy).unwrap() == *wanted, "disk {disk} has lost what it held");
    }
}

/// A stream that ended within a point made QEMU 7.2 abort when the filter sat on the stream's.
#[tokio::test(flavor = "multi_thread")]
async fn hydration_that_ends_within_a_point_disturbs_neither() {
    let (world, _exports, monitor, mut truth) = prepared(65_536).await;
    world.fabric.instance_run(INSTANCE).await.unwrap();
    let mut source = world.fabric.capture(&MACHINE).await.unwrap();
    let attached = source.attach(None).await.unwrap();
    assert!(matches!(attached, Attached::NeedsFullRead(_)));
    let mut copy = Disks::zeroes();
    let live = source.open_live(LiveRead::Everything).await.unwrap();
    copy.take(&*live).await.unwrap();
    source.close_live().await.unwrap();
    monitor.write(1, 20 * MIB, 65_536, 77).await;
    truth.write(1, 20 * MIB, 65_536, 77);
    let before = world.fabric.instance_status(INSTANCE).await.unwrap();
    assert!(before.hydrated_percent < 100, "hydration was too quick for this test");

    let cut = source.cut().await.unwrap();
    monitor.write(1, 20 * MIB, 65_536, 78).await;
    for disk in 0..2 {
        let speed = json!({"device": format!("lw-hydrate-{disk}"), "speed": 0});
        monitor.call("block-job-set-speed", speed).await;
    }
    status_until(&world, "hydration", |status| status.hydrated_percent == 100).await;
    copy.take(&*cut.reader).await.unwrap();
    copy.assert_is(&truth, "the point during which hydration ended");
    let place = Position { timeline: TimelineId::from_u128(7), lsn: Lsn(1) };
    source.close_cut(CutEnd::Committed(place)).await.unwrap();

    let cut = source.cut().await.unwrap();
    copy.take(&*cut.reader).await.unwrap();
    source.close_cut(CutEnd::Committed(Position { lsn: Lsn(2), ..place })).await.unwrap();
    truth.write(1, 20 * MIB, 65_536, 78);
    copy.assert_is(&truth, "the point after hydration");
    assert_eq!(monitor.leftovers().await, [""; 0]);
    let state = world.fabric.machine_state(&MACHINE).await.unwrap();
    assert_eq!(state, MachineState::Running);
}

async fn console(world: &QemuWorld) -> Vec<u8> {
    world.fabric.console_tail(&MACHINE, MIB).await.unwrap()
}

/// Waits until the guest has said `more` sectors more than now.
async fn goes_on(world: &QemuWorld, more: usize) {
    let (start, end) = (console(world).await.len(), Instant::now() + DEADLINE);
    while console(world).await.len() < start + more {
        assert!(Instant::now() < end, "the guest does not go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the guest has said nothing for half a second.
async fn stands_still(world: &QemuWorld) {
    let end = Instant::now() + DEADLINE;
    let mut last = usize::MAX;
    loop {
        let now = console(world).await.len();
        if now == last {
            return;
        }
        last = now;
        assert!(Instant::now() < end, "the guest goes on without its disk");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn assert_no_error_reached_the_guest(world: &QemuWorld) {
    assert!(!console(world).await.contains(&b'E'), "the guest saw an I/O error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_waits_for_an_export_that_was_killed_and_goes_on_by_itself() {
    let slow = 65_536;
    let world = QemuWorld::with(|config| config.hydration_bytes_per_second = slow).await;
    fs::write(world.path("c"), load_sector()).unwrap();
    run("truncate", &["-s", &LOAD_DISK.to_string(), text(&world.path("c"))]);
    let exports = Exports::serve(&world, &["c"]);
    world.fabric.overlay_create(&plan(&world, &[("c", LOAD_DISK)])).await.unwrap();
    world.fabric.instance_prepare(INSTANCE).await.unwrap();
    world.fabric.instance_run(INSTANCE).await.unwrap();
    goes_on(&world, 100).await;

    drop(exports);
    stands_still(&world).await;
    let waiting = world.fabric.instance_tend(INSTANCE, ExportAnswers::No).await.unwrap();
    assert_eq!(waiting.io_stop, None);
    let _exports = Exports::serve(&world, &["c"]);

    goes_on(&world, 1000).await;
    let status = world.fabric.instance_tend(INSTANCE, ExportAnswers::Yes).await.unwrap();
    assert_eq!((status.state, status.io_stop), (MachineState::Running, None));
    assert_no_error_reached_the_guest(&world).await;
}

/// F-079's opposite: a killed process ends for certain, also while its disk hangs.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_export_is_away_can_be_killed_at_once() {
    let world = QemuWorld::with(|config| config.hydration_bytes_per_second = 65_536).await;
    fs::write(world.path("c"), load_sector()).unwrap();
    run("truncate", &["-s", &LOAD_DISK.to_string(), text(&world.path("c"))]);
    let exports = Exports::serve(&world, &["c"]);
    world.fabric.overlay_create(&plan(&world, &[("c", LOAD_DISK)])).await.unwrap();
    world.fabric.instance_prepare(INSTANCE).await.unwrap();
    world.fabric.instance_run(INSTANCE).await.unwrap();
    goes_on(&world, 100).await;
    drop(exports);
    stands_still(&world).await;
    let process: ProcessIdentity = world.mark(&MACHINE).process;

    let start = Instant::now();
    world.fabric_again().instance_kill(INSTANCE).await.unwrap();

    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(!process.is_alive().unwrap());
}

/// An export that fails on demand.
struct Failing {
    disk: MemoryExport,
    /// 0: serves; else the error it answers reads with.
    error: AtomicU8,
}

const FAILS: u8 = 1;
const IS_FULL: u8 = 2;

#[async_trait::async_trait]
impl Export for Failing {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_only(&self) -> bool {
        true
    }
    async fn read(&self, offset: u64, len: u32) -> Result<bytes::Bytes, ExportError> {
        match self.error.load(Ordering::SeqCst) {
            0 => self.disk.read(offset, len).await,
            FAILS => Err(ExportError::new(Errno::IO, "told to fail")),
            _ => Err(ExportError::new(Errno::NOSPC, "told to be full")),
        }
    }
    async fn write(&self, _: u64, _: bytes::Bytes) -> Result<(), ExportError> {
        Err(ExportError::new(Errno::PERM, "read-only"))
    }
    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }
    async fn status(&self, offset: u64, len: u32) -> Result<Vec<ExportExtent>, ExportError> {
        self.disk.status(offset, len).await
    }
}

fn serve_failing(socket: PathBuf) -> (Arc<Failing>, RunningServer) {
    let mut content = load_sector();
    content.resize(LOAD_DISK as usize, 0);
    content.iter_mut().skip(512).step_by(4096).for_each(|byte| *byte = 1); // No holes.
    let failing =
        Arc::new(Failing { disk: MemoryExport::read_only(&content), error: AtomicU8::new(0) });
    let mut server = Server::new(Limits::default());
    server.add("pt", "", failing.clone()).unwrap();
    (failing, server.start(tokio::net::UnixListener::bind(socket).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_stopped_by_a_disk_error_goes_on_when_the_export_answers_unless_space_was_short() {
    let world = QemuWorld::with(|config| config.hydration_bytes_per_second = 65_536).await;
    let (export, _server) = serve_failing(world.path("c.s"));
    world.fabric.overlay_create(&plan(&world, &[("c", LOAD_DISK)])).await.unwrap();
    world.fabric.instance_prepare(INSTANCE).await.unwrap();
    world.fabric.instance_run(INSTANCE).await.unwrap();
    goes_on(&world, 100).await;
    let monitor = world.monitor(&MACHINE).await;

    export.error.store(FAILS, Ordering::SeqCst);
    let stopped = status_until(&world, "the stop", |status| status.io_stop.is_some()).await;
    assert_eq!((stopped.state, stopped.io_stop), (MachineState::Paused, Some(IoStop::Backing)));
    let left = world.fabric.instance_tend(INSTANCE, ExportAnswers::No).await.unwrap();
    assert_eq!(left.io_stop, Some(IoStop::Backing), "it was not left alone");
    export.error.store(0, Ordering::SeqCst);
    let tended = world.fabric.instance_tend(INSTANCE, ExportAnswers::Yes).await.unwrap();
    assert_eq!(tended.io_stop, None);
    goes_on(&world, 100).await;

    export.error.store(IS_FULL, Ordering::SeqCst);
    status_until(&world, "the stop", |status| status.io_stop == Some(IoStop::NoSpace)).await;
    export.error.store(0, Ordering::SeqCst);
    let left = world.fabric.instance_tend(INSTANCE, ExportAnswers::Yes).await.unwrap();
    assert_eq!(left.io_stop, Some(IoStop::NoSpace), "only a person makes space");
    world.fabric.instance_run(INSTANCE).await.unwrap();
    goes_on(&world, 100).await;

    assert_no_error_reached_the_guest(&world).await;
    world.fabric.instance_tend(INSTANCE, ExportAnswers::Yes).await.unwrap();
    let jobs = monitor.call("query-block-jobs", json!({})).await;
    assert_eq!(jobs[0]["status"], "running", "hydration did not go on: {jobs}");
}

/// Real QEMU as a host of the suite.
pub struct QemuHost {
    pub world: QemuWorld,
    _exports: Exports,
}

impl QemuHost {
    pub fn new(world: QemuWorld) -> Self {
        world.add_machine("web01");
        fs::write(world.path("a"), vec![0x55; 16 << 20]).unwrap();
        fs::write(world.path("b"), vec![0x55; 32 << 20]).unwrap();
        let _exports = Exports::serve(&world, &["a", "b"]);
        QemuHost { world, _exports }
    }
}

#[async_trait::async_trait]
impl crate::suite::Host for QemuHost {
    fn fabric(&self) -> &dyn Fabric {
        &self.world.fabric
    }

    fn restart_role(&mut self) {
        self.world.fabric = self.world.fabric_again();
    }

    fn plan(&self) -> InstancePlan {
        let mut plan = plan(&self.world, &[("a", 16 * MIB), ("b", 32 * MIB)]);
        let ids = ["boot", "data"];
        let disk = |disk: &InstanceDisk| DiskSpec {
            number: disk.number,
            id: ids[usize::from(disk.number.0)].into(),
            serial: ids[usize::from(disk.number.0)].into(),
            size: disk.size,
            block_bytes: 512,
            format: DiskFormat::Raw,
            path: "/elsewhere".into(),
        };
        plan.spec.disks = plan.disks.iter().map(disk).collect();
        plan
    }

    async fn guest_write(&self, machine: &MachineRef, disk: u16, offset: u64, pattern: u8) {
        self.world.monitor(machine).await.write(disk, offset, 4096, pattern).await;
    }

    async fn kill_process(&self, machine: &MachineRef) {
        self.world.mark(machine).process.kill(DEADLINE).await.unwrap();
    }

    async fn guest_switches_off(&self, machine: &MachineRef) {
        // What a guest's reset is taken for; without a guest, somebody else must ask for it.
        let monitor = self.world.monitor(machine).await;
        monitor.call("set-action", json!({"reboot": "shutdown"})).await;
        monitor.call("system_reset", json!({})).await;
        let end = Instant::now() + DEADLINE;
        while monitor.call("query-status", json!({})).await["status"] != "shutdown" {
            assert!(Instant::now() < end, "the guest did not switch itself off");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn remove_image(&self, disk: u16) {
        let folder = self.world.config.machines.join("web01");
        fs::remove_file(folder.join(["boot.raw", "data.qcow2"][usize::from(disk)])).unwrap();
    }
}
