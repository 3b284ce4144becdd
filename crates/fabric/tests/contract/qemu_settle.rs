//! What only real images and processes can show of machines at rest and of settling.

use crate::qemu_instance::QemuHost;
use crate::qemu_world::{DEADLINE, MIB, QemuWorld, run, text};
use crate::suite::{Host, WEB01, web01};
use crate::suite_settle::{ITEM, hydrate, settled};
use leeward_capture::LiveRead;
use leeward_fabric::process::{self, Mark, ProcessIdentity};
use leeward_fabric::{Fabric, InstancePlan, MachineRef};
use leeward_model::{DiskNumber, InstanceId, MachineState};
use serde_json::json;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

async fn host() -> QemuHost {
    let host = QemuHost::new(QemuWorld::new().await);
    let folder = folder(&host);
    for image in ["boot.raw", "data.qcow2"] {
        let format = image.rsplit_once('.').unwrap().1;
        let write = format!("write -P 17 {MIB} {}", 4 * MIB);
        run("qemu-io", &["-f", format, "-c", &write, text(&folder.join(image))]);
    }
    host
}

fn folder(host: &QemuHost) -> PathBuf {
    host.world.config.machines.join(WEB01)
}

/// Every file of a machine's folder: its bytes and when it was written last.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let file = |entry: fs::DirEntry| {
        let written = entry.metadata().unwrap().modified().unwrap();
        (entry.path(), fs::read(entry.path()).unwrap(), written)
    };
    let mut files: Vec<_> = entries.map(file).collect();
    files.sort();
    files
}

/// Whether QEMU's tools open the image for writing now.
fn can_write(image: &Path) -> bool {
    let format = text(image).rsplit_once('.').unwrap().1;
    let command = ["-f", format, "-c", "length", text(image)];
    Command::new("qemu-io").args(command).output().unwrap().status.success()
}

fn daemon(host: &QemuHost) -> ProcessIdentity {
    let path = host.world.run_folder(&web01()).join("still.json");
    process::read_json::<Mark>(&path).unwrap().expect("it is read").process
}

/// F-112, F-139: reading stale disks leaves every byte and date of them, also when it is cut short.
#[tokio::test(flavor = "multi_thread")]
async fn reading_a_machine_at_rest_changes_nothing_of_it_however_it_ends() {
    let host = host().await;
    let before = files(&folder(&host));

    let mut still = host.world.fabric.still(WEB01).await.unwrap();
    let reader = still.source.open_live(LiveRead::Everything).await.unwrap();
    for disk in [0, 1].map(DiskNumber) {
        let ranges = reader.ranges(disk).await.unwrap();
        assert!(ranges.iter().map(|range| range.len).sum::<u64>() >= 4 * MIB);
        reader.read(disk, MIB, MIB).await.unwrap();
    }
    for image in ["boot.raw", "data.qcow2"] {
        assert!(!can_write(&folder(&host).join(image)), "{image} can be written meanwhile");
    }
    let process = daemon(&host);
    drop(still);
    process.wait_end(DEADLINE).await.unwrap();
    assert!(reader.read(DiskNumber(0), MIB, MIB).await.is_err(), "its process ended");

    let mut whole = host.world.fabric.still(WEB01).await.unwrap();
    let reader = whole.source.open_live(LiveRead::Everything).await.unwrap();
    for disk in [0, 1].map(DiskNumber) {
        let bytes = reader.read(disk, MIB, 4 * MIB).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == 17));
    }
    whole.source.detach().await.unwrap();

    assert!(files(&folder(&host)) == before, "the machine's files changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_somebody_else_writes_are_not_read() {
    let host = host().await;
    for (image, format) in [("boot.raw", "raw"), ("data.qcow2", "qcow2")] {
        let socket = host.world.path("writer.s");
        let mut writer = Command::new("qemu-nbd")
            .args(["-t", "-f", format, "-k", text(&socket), text(&folder(&host).join(image))])
            .spawn()
            .unwrap();
        let end = Instant::now() + DEADLINE;
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < end, "qemu-nbd did not start");
            std::thread::sleep(Duration::from_millis(5));
        }

        let refused = host.world.fabric.still(WEB01).await.err().unwrap();

        writer.kill().unwrap();
        writer.wait().unwrap();
        assert!(refused.to_string().contains("lock"), "{image}: {refused}");
    }
    assert!(host.world.fabric.still(WEB01).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_that_a_crash_left_behind_is_ended_by_whoever_needs_the_disks() {
    let mut host = host().await;
    std::mem::forget(host.world.fabric.still(WEB01).await.unwrap());
    let left = daemon(&host);
    host.restart_role();

    let again = host.world.fabric.still(WEB01).await.unwrap();
    assert!(!left.is_alive().unwrap());
    let second = daemon(&host);
    std::mem::forget(again);
    host.restart_role();
    host.world.fabric.machine_start(WEB01).await.unwrap();
    assert!(!second.is_alive().unwrap());
}

/// F-100, F-111: the machine's description says at any time which disks it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_circle_leaves_the_newest_disks_and_the_owners_own() {
    let mut host = host().await;
    let folder = folder(&host);
    let own = |name: &str| fs::read(folder.join(name)).unwrap();
    let (toml, boot, data) = (own("machine.toml"), own("boot.raw"), own("data.qcow2"));
    host.world.fabric.machine_claim(WEB01, ITEM).await.unwrap();
    let first = host.plan();
    let second = InstancePlan {
        instance: InstanceId::from_u128(0xfedcba),
        folder: host.world.path("second"),
        ..first.clone()
    };
    let before = |plan: &InstancePlan| format!("machine.toml.before-{}", plan.instance);

    settled(&host, &first).await;
    assert_eq!(own(&before(&first)), toml);
    let described = fs::read_to_string(folder.join("machine.toml")).unwrap();
    for kept in ["memory_mib = 32", "52:54:00:00:00:01", &format!("\"{}\"", first.instance)] {
        assert!(described.contains(kept), "{kept} is not in {described}");
    }
    host.world.fabric.instance_run(first.instance).await.unwrap();
    hydrate(&host, first.instance).await;
    let monitor = host.world.monitor(&MachineRef::Instance(first.instance)).await;
    host.world.fabric.instance_hand_over(first.instance).await.unwrap();
    assert_eq!(monitor.bitmaps(0).await, [""; 0], "what only an instance needs is gone");
    assert!(!folder.join(before(&first)).exists());
    assert_eq!(own(&format!("machine.toml.former-{}", first.instance)), toml);
    let console = host.world.fabric.console_path(&web01()).unwrap();
    assert_eq!(console, first.folder.join("console.log"));

    // After a boot of the host: no process, no run folder.
    host.world.fabric.machine_quit(&web01()).await.unwrap();
    fs::remove_dir_all(&host.world.config.run).unwrap();
    host.restart_role();
    host.world.fabric.machine_start(WEB01).await.unwrap();
    assert_eq!(host.world.fabric.console_path(&web01()).unwrap(), console);
    host.world.fabric.machine_quit(&web01()).await.unwrap();

    settled(&host, &second).await;
    host.world.fabric.instance_run(second.instance).await.unwrap();
    hydrate(&host, second.instance).await;
    assert!(first.folder.join("disk-0.qcow2").exists(), "until the hand over");
    host.world.fabric.instance_hand_over(second.instance).await.unwrap();
    for disk in ["disk-0.qcow2", "disk-1.qcow2"] {
        assert!(!first.folder.join(disk).exists(), "{disk} of the first was left behind");
        assert!(second.folder.join(disk).exists());
    }
    assert!(!folder.join(before(&second)).exists());
    assert!((own("boot.raw"), own("data.qcow2")) == (boot, data), "the owner's images changed");
    let state = host.world.fabric.machine_state(&web01()).await.unwrap();
    assert_eq!(state, MachineState::Running);
    host.world.fabric.machine_quit(&web01()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_an_instances_overlay_survives_whatever_a_description_says() {
    let host = host().await;
    let folder = folder(&host);
    host.world.fabric.machine_claim(WEB01, ITEM).await.unwrap();
    let toml = fs::read_to_string(folder.join("machine.toml")).unwrap();
    let old = InstanceId::from_u128(5);
    fs::write(folder.join("machine.toml"), format!("instance = \"{old}\"\n{toml}")).unwrap();

    let plan = host.plan();
    settled(&host, &plan).await;
    host.world.fabric.instance_run(plan.instance).await.unwrap();
    hydrate(&host, plan.instance).await;
    host.world.fabric.instance_hand_over(plan.instance).await.unwrap();

    assert!(folder.join("boot.raw").exists() && folder.join("data.qcow2").exists());
    host.world.fabric.machine_quit(&web01()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_comes_home_has_its_channels_from_the_start() {
    let host = host().await;
    let toml = folder(&host).join("machine.toml");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, text + "[[channels]]\nname = \"leeward.test\"\npath = \"w\"\n").unwrap();
    let plan = InstancePlan { settle_as: Some(WEB01.into()), ..host.plan() };
    host.world.fabric.overlay_create(&plan).await.unwrap();

    host.world.fabric.instance_prepare(plan.instance).await.unwrap();

    let monitor = host.world.monitor(&MachineRef::Instance(plan.instance)).await;
    let devices = monitor.call("query-chardev", json!({})).await;
    let names = devices.as_array().unwrap().iter().map(|device| device["label"].as_str());
    assert_eq!(names.filter(|name| *name == Some("lw-ch-0")).count(), 1, "{devices}");
    assert!(folder(&host).join("w").exists());
}

/// A machine that settled and whose host lost its run folder goes on only as an instance.
#[tokio::test(flavor = "multi_thread")]
async fn a_settled_machine_that_still_needs_its_point_starts_only_as_an_instance() {
    let mut host = host().await;
    host.world.fabric.machine_claim(WEB01, ITEM).await.unwrap();
    let plan = host.plan();
    settled(&host, &plan).await;
    host.world.fabric.machine_quit(&web01()).await.unwrap();
    fs::remove_dir_all(&host.world.config.run).unwrap();
    host.restart_role();

    let refused = host.world.fabric.machine_start(WEB01).await.unwrap_err();
    assert!(refused.to_string().contains("prepare its instance first"), "{refused}");
    host.world.fabric.overlay_create(&plan).await.unwrap();
    host.world.fabric.machine_start(WEB01).await.unwrap();
    let status = host.world.fabric.instance_status(plan.instance).await.unwrap();
    assert_eq!(status.state, MachineState::Running);
    host.world.fabric.machine_quit(&web01()).await.unwrap();
    fs::remove_dir_all(&host.world.config.run).unwrap();
    host.restart_role();
    host.world.fabric.instance_unsettle(plan.instance).await.unwrap();
    assert_eq!(host.world.fabric.discover().await.unwrap()[0].spec.disks[0].id, "boot");
    let path = &host.world.fabric.discover().await.unwrap()[0].spec.disks[0].path;
    assert!(path.ends_with("boot.raw"), "{path}");
}
