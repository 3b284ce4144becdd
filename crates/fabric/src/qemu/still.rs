//! The disks of a machine that is off, served read-only by a `qemu-storage-daemon` of ours.
//!
//! The daemon locks the images as a reading QEMU does, so it starts beside no writer and none
//! starts beside it. It ends with the value that is read through; after a crash of ours the next
//! operation on the machine that needs its disks ends it.

use super::QemuFabric;
use super::blocks::{export_name, format_node};
use super::reader::{QemuReader, Source};
use super::vm::{END, Vm};
use crate::fabric::{FabricError, MachineRef, Still};
use crate::image::{self, ImageError};
use crate::process::{self, Mark, ProcessIdentity};
use crate::still::NamesNothing;
use async_trait::async_trait;
use leeward_capture::{Attached, CaptureError, ChangeSource, Cut, CutEnd, DiskReader, LiveRead};
use leeward_model::{DiskEntry, DiskFormat, DiskSpec, MachineState, Position};
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// For the daemon to serve: it opens the images first.
const START: Duration = Duration::from_secs(60);
/// Pause between two looks at whether it serves.
const POLL: Duration = Duration::from_millis(10);
/// Most connections: a cut and a live read of 16 disks each.
const CONNECTIONS_MAX: usize = 100;

impl Vm {
    fn still_mark(&self) -> PathBuf {
        self.run.join("still.json")
    }

    fn still_socket(&self) -> PathBuf {
        self.run.join("s")
    }

    /// Ends the daemon that reads this machine's disks, if there is one, and confirms it.
    pub async fn end_still(&self) -> Result<(), FabricError> {
        let failed = |error: process::ProcessError| self.failed("end the reading of", error);
        let mark: Option<Mark> = process::read_json(&self.still_mark()).map_err(failed)?;
        let Some(mark) = mark else { return Ok(()) };
        mark.process.kill(END).await.map_err(failed)?;
        self.forget_still();
        Ok(())
    }

    fn forget_still(&self) {
        for path in [self.still_socket(), self.still_mark()] {
            let _ = std::fs::remove_file(path); // Naming a process that ended, it means nothing.
        }
    }
}

impl QemuFabric {
    pub(super) async fn open_still(&self, name: &str) -> Result<Still, FabricError> {
        let machine = self.owned(name)?;
        let vm = self.owned_vm(&machine);
        if machine.spec.disks.is_empty()
            && let Some(first) = machine.obstacles.first()
        {
            let (code, what) = (Box::new(first.code), first.what.clone());
            return Err(FabricError::Unusable { machine: vm.machine, code, what });
        }
        match vm.state().await {
            MachineState::Off => {}
            MachineState::Running | MachineState::Paused => {
                return Err(vm.failed("read the disks of", "it is not off"));
            }
            MachineState::Unknown => {
                return Err(vm.failed("read the disks of", "its state is not known"));
            }
        }
        let mut spec = machine.spec;
        spec.disks.retain(|disk| {
            let found = image::inspect(Path::new(&disk.path), disk.format);
            !matches!(found, Err(ImageError::Missing(_)))
        });
        if spec.disks.is_empty() {
            return Err(FabricError::Unknown(MachineRef::Owned(name.into())));
        }
        vm.end_still().await?;
        let source = self.start_daemon(vm, &spec.disks).await?;
        Ok(Still { spec, source: Box::new(source) })
    }

    async fn start_daemon(
        &self,
        mut vm: Vm,
        disks: &[DiskSpec],
    ) -> Result<StillSource, FabricError> {
        vm.disks.retain(|entry| disks.iter().any(|disk| disk.number == entry.number));
        let vm = &vm;
        let failed = |reason: String| vm.failed("read the disks of", reason);
        let made = std::fs::create_dir_all(&vm.run);
        made.map_err(|error| vm.file("make the run folder", error))?;
        let socket = vm.still_socket();
        let _ = std::fs::remove_file(&socket); // That of one that was killed.
        let log = vm.run.join("still.log");
        let _ = std::fs::remove_file(&log); // Only the last one's words are of use.
        let program = &self.config.storage_daemon;
        let (process, mut child) =
            process::spawn_detached(program, &arguments(&socket, disks), &log)
                .map_err(|error| failed(error.to_string()))?;
        // From here on an error ends it.
        let source = StillSource { vm: vm.clone(), process: process.clone() };
        let mark = Mark { process, socket: socket.clone() };
        let marked = process::write_json(&vm.still_mark(), &mark);
        marked.map_err(|error| failed(error.to_string()))?;
        let end = Instant::now() + START;
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            if let Ok(Some(status)) = child.try_wait() {
                vm.forget_still();
                let words = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(failed(format!("{program} ended ({status}): {}", words.trim())));
            }
            if Instant::now() >= end {
                return Err(failed(format!("{program} does not serve")));
            }
            tokio::time::sleep(POLL).await;
        }
        // Whoever holds a Child reaps it; nobody else needs to know its end from here.
        tokio::spawn(async move { child.wait().await });
        Ok(source)
    }
}

fn arguments(socket: &Path, disks: &[DiskSpec]) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: String| out.extend([option.into(), value.into()]);
    for disk in disks {
        let driver = match disk.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        let is_device = std::fs::metadata(&disk.path)
            .is_ok_and(|metadata| metadata.file_type().is_block_device());
        let protocol = if is_device { "host_device" } else { "file" };
        let image = json!({"driver": protocol, "filename": disk.path, "read-only": true});
        let file = match disk.format {
            DiskFormat::Qcow2 => image,
            // Unlike qcow2, raw takes no lock against writers of the image; this driver, which
            // does nothing else here, takes it.
            DiskFormat::Raw => json!({"driver": "blkdebug", "read-only": true, "image": image,
                                      "unshare-child-perms": ["write", "resize"]}),
        };
        let name = format_node(disk.number);
        let node = json!({"driver": driver, "node-name": name, "read-only": true, "file": file});
        add("--blockdev", node.to_string());
    }
    let address = json!({"type": "unix", "path": socket});
    add("--nbd-server", json!({"addr": address, "max-connections": CONNECTIONS_MAX}).to_string());
    for disk in disks {
        let name = export_name(disk.number);
        let export = json!({"type": "nbd", "id": name, "name": name, "writable": false,
                            "node-name": format_node(disk.number)});
        add("--export", export.to_string());
    }
    out
}

/// Reads the disks of one machine that is off, for as long as it lives.
struct StillSource {
    vm: Vm,
    process: ProcessIdentity,
}

impl StillSource {
    async fn reader(&self) -> Result<Arc<dyn DiskReader>, CaptureError> {
        let disks = self.vm.disks.iter().map(|disk| (disk.number, None)).collect();
        let (socket, process) = (self.vm.still_socket(), self.process.clone());
        let reader = QemuReader::connect(&socket, disks, Source::Live, process).await?;
        Ok(Arc::new(reader))
    }
}

impl Drop for StillSource {
    fn drop(&mut self) {
        // The mark stays: the process may take a moment to end, and who needs it gone waits for it.
        if let Err(error) = self.process.signal_kill() {
            tracing::warn!(machine = %self.vm.machine, %error, "a storage daemon was left behind");
        }
    }
}

#[async_trait]
impl ChangeSource for StillSource {
    fn disks(&self) -> Vec<DiskEntry> {
        self.vm.disks.clone()
    }

    async fn attach(&mut self, _: Option<Position>) -> Result<Attached, CaptureError> {
        Ok(Attached::NeedsFullRead("the machine is off".into()))
    }

    async fn open_live(&mut self, which: LiveRead) -> Result<Arc<dyn DiskReader>, CaptureError> {
        let reader = self.reader().await?;
        Ok(match which {
            LiveRead::Everything => reader,
            LiveRead::Dirty => Arc::new(NamesNothing(reader)),
        })
    }

    async fn close_live(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    async fn dirty_bytes(&mut self) -> Result<u64, CaptureError> {
        Ok(0)
    }

    async fn cut(&mut self) -> Result<Cut, CaptureError> {
        let reader = Arc::new(NamesNothing(self.reader().await?));
        Ok(Cut { reader, pause: Duration::ZERO, dirty_bytes: 0 })
    }

    async fn close_cut(&mut self, _: CutEnd) -> Result<(), CaptureError> {
        Ok(())
    }

    async fn detach(&mut self) -> Result<(), CaptureError> {
        let what = || format!("end the reading of {}", self.vm.machine);
        let ended = self.process.kill(END).await;
        ended.map_err(|error| CaptureError::Refused { what: what(), detail: error.to_string() })?;
        let mark = process::read_json::<Mark>(&self.vm.still_mark());
        if mark.is_ok_and(|mark| mark.is_some_and(|mark| mark.process == self.process)) {
            self.vm.forget_still();
        }
        Ok(())
    }
}
