//! Operations that owners' machines and instances share: shut down, quit, fence, look at.
//!
//! Starting differs and is in `owned` and `instance`.

use super::capture::QemuCapture;
use super::vm::{CHANGE, END, Guest, QUICK, Vm};
use crate::fabric::{FabricError, FencedChanges, FencedDisk, Shutdown};
use crate::process::{self, ProcessIdentity};
use leeward_model::MachineState;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// A machine that must not write stands still, or is killed, after this long.
const FENCE_DEADLINE: Duration = Duration::from_secs(2);
/// For reading the bitmaps of a machine that stands still.
const NOTE_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at whether the guest is off, in case the event was missed.
const SHUTDOWN_POLL: Duration = Duration::from_millis(500);
/// Longest console tail that is returned, in bytes.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;

/// What is kept of a fence: which process must never go on, and what it had written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FenceNote {
    process: ProcessIdentity,
    changes: FencedChanges,
}

/// Which process was told to stand still until it is told otherwise.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HaltNote {
    process: ProcessIdentity,
}

impl Vm {
    fn fence_path(&self) -> PathBuf {
        self.run.join("fenced.json")
    }

    /// Whether this process was fenced: it must never go on.
    pub fn is_fenced(&self, process: &ProcessIdentity) -> Result<bool, FabricError> {
        let note: Option<FenceNote> = process::read_json(&self.fence_path())
            .map_err(|error| self.failed("look for a fence of", error))?;
        Ok(note.is_some_and(|note| note.process == *process))
    }

    /// Forgets an earlier fence: a new process is about to start, which the permit allows.
    pub fn forget_fence(&self) -> Result<(), FabricError> {
        match std::fs::remove_file(self.fence_path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.file("forget the fence", error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn halt_path(&self) -> PathBuf {
        self.run.join("halted.json")
    }

    /// Stops the guest where it stands, and notes that this was asked for: it counts as shut down.
    pub async fn halt(&self) -> Result<(), FabricError> {
        let living = self.process().await.map_err(|reason| self.failed("halt", reason))?;
        let Some(process) = living else { return Ok(()) };
        let stopped = self.call("stop", json!({}), CHANGE).await;
        stopped.map_err(|error| self.failed("halt", error))?;
        let note = HaltNote { process };
        process::write_json(&self.halt_path(), &note).map_err(|error| self.failed("halt", error))
    }

    /// Whether this process was halted and has not been let go on since.
    pub fn is_halted(&self, process: &ProcessIdentity) -> Result<bool, FabricError> {
        let note: Option<HaltNote> = process::read_json(&self.halt_path())
            .map_err(|error| self.failed("look at the halt of", error))?;
        Ok(note.is_some_and(|note| note.process == *process))
    }

    /// Forgets a halt: the guest is about to go on.
    pub fn forget_halt(&self) -> Result<(), FabricError> {
        match std::fs::remove_file(self.halt_path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.file("forget the halt", error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether the guest switched itself off and the process still exists.
    pub async fn guest_off(&self) -> Result<bool, FabricError> {
        let living = self.process().await.map_err(|reason| self.failed("look at", reason))?;
        let Some(process) = living else { return Ok(false) };
        match self.guest().await {
            Ok(guest) => Ok(guest == Guest::Shutdown),
            Err(_) if matches!(process.is_alive(), Ok(false)) => Ok(false),
            Err(error) => Err(self.failed("look at", error)),
        }
    }

    pub async fn shutdown(&self, patience: Duration) -> Result<Shutdown, FabricError> {
        if self.state().await == MachineState::Off {
            return Ok(Shutdown::Done);
        }
        let end = Instant::now() + patience;
        let ask = |error: crate::qmp::QmpError| self.failed("shut down", error);
        let qmp = self.qmp().await.map_err(ask)?;
        let before = qmp.events_now();
        let guest = self.guest().await.map_err(ask)?;
        let living = self.process().await.map_err(|reason| self.failed("shut down", reason))?;
        if let Some(process) = living
            && guest != Guest::Running
            && self.is_halted(&process)?
        {
            return Ok(Shutdown::Done);
        }
        if guest != Guest::Shutdown {
            qmp.call("system_powerdown", json!({}), QUICK).await.map_err(ask)?;
        }
        loop {
            if self.guest().await.map_err(ask)? == Guest::Shutdown {
                return Ok(Shutdown::Done);
            }
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(Shutdown::NotInTime);
            }
            let is_off = |event: &crate::qmp::QmpEvent| event.name == "SHUTDOWN";
            let pause = rest.min(SHUTDOWN_POLL);
            // Only a reason to look again: the run state decides.
            let _ = qmp.wait_event("a shutdown", before, is_off, pause).await;
        }
    }

    /// Stops the guest within 2 s, notes what it wrote through `capture`, ends the process.
    pub async fn fence(&self, capture: &QemuCapture) -> Result<FencedChanges, FabricError> {
        let path = self.fence_path();
        let noted: Option<FenceNote> = process::read_json(&path).unwrap_or_default();
        let process = self.process().await.map_err(|error| self.not_off(error))?;
        let Some(process) = process else {
            self.end_still().await?;
            return Ok(noted.map_or(FencedChanges::Unknown, |note| note.changes));
        };
        let mut note = FenceNote { process: process.clone(), changes: FencedChanges::Unknown };
        let stop = async {
            let qmp = self.link.qmp(FENCE_DEADLINE).await?;
            qmp.call("stop", json!({}), FENCE_DEADLINE).await
        };
        // First the guest stands still, then the note is written: a crash in between leaves it
        // standing still, and nothing but this function touches a machine that must be fenced.
        let stopped = matches!(timeout(FENCE_DEADLINE, stop).await, Ok(Ok(_)));
        if let Err(error) = process::write_json(&path, &note) {
            tracing::warn!(machine = %self.machine, %error, "the fence could not be noted");
        }
        if stopped {
            match timeout(NOTE_DEADLINE, capture.note_changes()).await {
                Ok(Ok(disks)) => {
                    let disk = |(disk, ranges): (_, Vec<leeward_capture::ByteRange>)| {
                        let ranges = ranges.iter().map(|r| (r.offset, r.len)).collect();
                        FencedDisk { disk, ranges }
                    };
                    let disks = disks.into_iter().map(disk).collect();
                    note.changes = FencedChanges::Noted { disks };
                    if let Err(error) = process::write_json(&path, &note) {
                        tracing::warn!(machine = %self.machine, %error, "changes were not kept");
                    }
                }
                Ok(Err(error)) => {
                    tracing::info!(machine = %self.machine, %error, "its changes are not known");
                }
                Err(_) => tracing::info!(machine = %self.machine, "its changes were not told"),
            }
            self.quit().await?;
        } else {
            process.kill(END).await.map_err(|error| self.not_off(error))?;
        }
        Ok(note.changes)
    }

    pub async fn screenshot(&self) -> Result<Vec<u8>, FabricError> {
        if self.state().await == MachineState::Off {
            return Err(FabricError::Off { machine: self.machine.clone(), what: "picture" });
        }
        let path = self.run.join("screen.png");
        let arguments = json!({"filename": path, "format": "png"});
        let taken = self.call("screendump", arguments, CHANGE).await;
        taken.map_err(|error| self.failed("picture", error))?;
        let picture = std::fs::read(&path).map_err(|error| self.file("read the picture", error));
        let _ = std::fs::remove_file(&path); // The next picture overwrites it anyway.
        picture
    }

    pub fn console_tail(&self, bytes_max: u64) -> Result<Vec<u8>, FabricError> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = match std::fs::File::open(&self.console) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                file => file?,
            };
            let wanted = bytes_max.min(CONSOLE_BYTES_MAX);
            let start = file.metadata()?.len().saturating_sub(wanted);
            file.seek(SeekFrom::Start(start))?;
            let mut tail = Vec::new();
            file.take(wanted).read_to_end(&mut tail)?;
            Ok(tail)
        };
        read().map_err(|error| self.file("read the console", error))
    }
}
