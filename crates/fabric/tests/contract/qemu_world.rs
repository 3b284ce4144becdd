//! A host with real QEMU processes: its folders, its machines, and a hand on their disks.

use leeward_fabric::MachineRef;
use leeward_fabric::accelerator::Accelerator;
use leeward_fabric::process::{self, Mark};
use leeward_fabric::qemu::{QemuConfig, QemuFabric};
use leeward_fabric::qmp::Qmp;
use leeward_model::{DiskNumber, InstanceId};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

pub const DEADLINE: Duration = Duration::from_secs(60);
pub const MIB: u64 = 1 << 20;

/// One QEMU test at a time: the machine has two processors and the tests measure nothing else.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

pub struct QemuWorld {
    _turn: MutexGuard<'static, ()>,
    folder: tempfile::TempDir,
    pub config: QemuConfig,
    pub fabric: QemuFabric,
}

impl QemuWorld {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut QemuConfig)) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let folder = tempfile::Builder::new().prefix("lwf").tempdir_in("/tmp").unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("m")).unwrap();
        fs::create_dir(at("r")).unwrap();
        // The fabric's own connection is the only one its monitor takes, so there is another.
        let program = at("qemu");
        let script = format!(
            "#!/bin/sh\nexec stdbuf -oL qemu-system-x86_64 \"$@\" \
             -qmp unix:{}/mon-$$,server=on,wait=off\n",
            folder.path().display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = QemuConfig::new(at("m"), at("r"), Accelerator::Tcg);
        config.program = program.to_str().unwrap().into();
        change(&mut config);
        QemuWorld { _turn: turn, fabric: QemuFabric::new(config.clone()), folder, config }
    }

    /// What a host has after its role process was killed: the same folders, nothing else.
    pub fn fabric_again(&self) -> QemuFabric {
        QemuFabric::new(self.config.clone())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds a machine with a raw disk of 16 MiB and a qcow2 disk of 32 MiB.
    pub fn add_machine(&self, name: &str) -> MachineRef {
        let folder = self.config.machines.join(name);
        fs::create_dir(&folder).unwrap();
        let toml = "memory_mib = 32\ndisplay = true\n\
                    [[disks]]\nid = \"boot\"\npath = \"boot.raw\"\nformat = \"raw\"\n\
                    [[disks]]\nid = \"data\"\npath = \"data.qcow2\"\nformat = \"qcow2\"\n\
                    [[nics]]\nmac = \"52:54:00:00:00:01\"\nnetwork = \"isolated\"\n";
        fs::write(folder.join("machine.toml"), toml).unwrap();
        fs::File::create(folder.join("boot.raw")).unwrap().set_len(16 * MIB).unwrap();
        run("qemu-img", &["create", "-q", "-f", "qcow2", text(&folder.join("data.qcow2")), "32M"]);
        MachineRef::Owned(name.into())
    }

    pub fn run_folder(&self, machine: &MachineRef) -> PathBuf {
        let settled = |name: &str| -> Option<InstanceId> {
            let toml = fs::read_to_string(self.config.machines.join(name).join("machine.toml"));
            let line = toml.ok()?.lines().find(|line| line.starts_with("instance = "))?.to_owned();
            line.split('"').nth(1)?.parse().ok()
        };
        let of_instance = |id: InstanceId| format!("i-{:032x}", id.as_u128());
        let name = match machine {
            MachineRef::Owned(name) => {
                settled(name).map_or_else(|| format!("m-{name}"), of_instance)
            }
            MachineRef::Instance(id) => of_instance(*id),
        };
        self.config.run.join(name)
    }

    pub fn mark(&self, machine: &MachineRef) -> Mark {
        let path = self.run_folder(machine).join("mark.json");
        process::read_json(&path).unwrap().expect("the machine was started")
    }

    /// A connection to the machine's second monitor.
    pub async fn monitor(&self, machine: &MachineRef) -> Monitor {
        let socket = self.path(&format!("mon-{}", self.mark(machine).process.pid));
        let qmp = Qmp::connect(&socket, DEADLINE).await.unwrap();
        Monitor { qmp, log: self.run_folder(machine).join("qemu.log") }
    }
}

impl Drop for QemuWorld {
    fn drop(&mut self) {
        let marks = fs::read_dir(&self.config.run).into_iter().flatten().flatten();
        for entry in marks {
            let mark = process::read_json::<Mark>(&entry.path().join("mark.json"));
            if let Ok(Some(mark)) = mark {
                let killed = std::thread::spawn(move || {
                    let mut runtime = tokio::runtime::Builder::new_current_thread();
                    runtime.enable_all().build().unwrap().block_on(mark.process.kill(DEADLINE))
                });
                let _ = killed.join();
            }
        }
    }
}

pub fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A hand on a machine's disks, as its guest has one.
pub struct Monitor {
    qmp: Qmp,
    /// QEMU's standard output, to which its qemu-io speaks.
    log: PathBuf,
}

impl Monitor {
    pub async fn call(&self, command: &str, arguments: Value) -> Value {
        self.qmp.call(command, arguments, DEADLINE).await.unwrap()
    }

    /// Runs a command of qemu-io on the disk's device and returns its words.
    pub async fn io(&self, disk: u16, command: &str) -> String {
        let device = format!("/machine/peripheral/lw-vd-{disk}/virtio-backend");
        let line = format!("qemu-io -d {device} \"{command}\"");
        let before = fs::metadata(&self.log).unwrap().len() as usize;
        let said = self.call("human-monitor-command", json!({"command-line": line})).await;
        let log = String::from_utf8_lossy(&fs::read(&self.log).unwrap()[before..]).into_owned();
        format!("{}{log}", said.as_str().unwrap_or(""))
    }

    pub async fn write(&self, disk: u16, offset: u64, len: u64, pattern: u8) {
        let said = self.io(disk, &format!("write -P {pattern} {offset} {len}")).await;
        assert!(said.contains(&format!("wrote {len}/{len}")), "{said}");
    }

    pub async fn reads_as(&self, disk: u16, offset: u64, len: u64, pattern: u8) -> bool {
        let said = self.io(disk, &format!("read -P {pattern} {offset} {len}")).await;
        said.contains(&format!("read {len}/{len}")) && !said.contains("Pattern verification failed")
    }

    /// Names of the block nodes and exports that a capture has added.
    pub async fn leftovers(&self) -> Vec<String> {
        let nodes = self.call("query-named-block-nodes", json!({"flat": true})).await;
        let exports = self.call("query-block-exports", json!({})).await;
        let nodes = nodes.as_array().unwrap().iter().map(|node| node["node-name"].clone());
        let exports = exports.as_array().unwrap().iter().map(|export| export["id"].clone());
        let names = nodes.chain(exports).filter_map(|name| name.as_str().map(str::to_owned));
        let ours = ["lw-cbw-", "lw-scr-", "lw-acc-", "lw-ex-"];
        names.filter(|name| ours.iter().any(|prefix| name.starts_with(prefix))).collect()
    }

    /// Names of the bitmaps of a disk.
    pub async fn bitmaps(&self, disk: u16) -> Vec<String> {
        let nodes = self.call("query-named-block-nodes", json!({"flat": true})).await;
        let name = format!("lw-disk-{disk}");
        let nodes = nodes.as_array().unwrap().clone();
        let node = nodes.into_iter().find(|node| node["node-name"] == *name).unwrap();
        let bitmaps = node["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        bitmaps.iter().map(|bitmap| bitmap["name"].as_str().unwrap().to_owned()).collect()
    }
}

/// What the disks hold, kept beside the machine by the test.
#[derive(Clone, PartialEq, Eq)]
pub struct Disks(pub Vec<Vec<u8>>);

impl Disks {
    pub fn zeroes() -> Self {
        Disks(vec![vec![0; 16 << 20], vec![0; 32 << 20]])
    }

    pub fn write(&mut self, disk: u16, offset: u64, len: u64, pattern: u8) {
        self.0[disk as usize][offset as usize..(offset + len) as usize].fill(pattern);
    }

    /// Takes everything that `reader` names.
    pub async fn take(
        &mut self,
        reader: &dyn leeward_capture::DiskReader,
    ) -> Result<u64, leeward_capture::CaptureError> {
        let mut bytes = 0;
        for disk in 0..self.0.len() {
            let number = DiskNumber(disk as u16);
            for range in reader.ranges(number).await? {
                let data = reader.read(number, range.offset, range.len).await?;
                let (start, end) = (range.offset as usize, range.end() as usize);
                self.0[disk][start..end].copy_from_slice(&data);
                bytes += range.len;
            }
        }
        Ok(bytes)
    }

    pub fn assert_is(&self, expected: &Disks, when: &str) {
        for (disk, (have, want)) in self.0.iter().zip(&expected.0).enumerate() {
            let differs = have.iter().zip(want).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{when}: disk {disk} differs first at this byte");
        }
    }
}

/// Small reproducible randomness (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Random(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
