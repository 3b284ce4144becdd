//! One QEMU process of ours, or one that we adopted: found, started, asked, ended.
//!
//! Knows processes, sockets and run states. Not disks (see `blocks`) and not what a machine is
//! for.

use crate::fabric::{FabricError, MachineRef};
use crate::process::{self, Mark, ProcessError, ProcessIdentity};
use crate::qmp::{Link, Qmp, QmpError};
use leeward_model::{DiskEntry, MachineState};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// For a question that QEMU answers without touching a disk.
pub(crate) const QUICK: Duration = Duration::from_secs(5);
/// For a command that drains or opens disks. Measured at most 1 s on a loaded machine.
pub(crate) const CHANGE: Duration = Duration::from_secs(30);
/// For QEMU to greet after its start: 0.2 s idle, seconds on a loaded machine. Then once more.
const START: Duration = Duration::from_secs(30);
/// For a process that was told to end, or was killed.
pub(crate) const END: Duration = Duration::from_secs(10);
/// Pause between two looks at something that tells nobody when it changes.
const POLL: Duration = Duration::from_millis(20);
/// End of QEMU's log that an error carries, in bytes.
const LOG_TAIL_BYTES: usize = 600;

/// A machine's QEMU, running or not.
#[derive(Clone)]
pub(crate) struct Vm {
    pub machine: MachineRef,
    /// Folder of its sockets, mark and log.
    pub run: PathBuf,
    /// The connection to it.
    pub link: Arc<Link>,
    /// Its serial console's file.
    pub console: PathBuf,
    /// Its disks.
    pub disks: Vec<DiskEntry>,
}

/// What QEMU says about its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    Running,
    /// The guest switched itself off; its CPUs stand still.
    Shutdown,
    /// A disk error stopped it.
    IoError,
    /// It stands still for any other reason.
    Paused,
}

impl Vm {
    pub fn mark_path(&self) -> PathBuf {
        self.run.join("mark.json")
    }

    pub fn nbd_socket(&self) -> PathBuf {
        self.run.join("n")
    }

    pub fn log_path(&self) -> PathBuf {
        self.run.join("qemu.log")
    }

    pub async fn qmp(&self) -> Result<Qmp, QmpError> {
        self.link.qmp(QUICK).await
    }

    pub async fn call(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.qmp().await?.call(command, arguments, deadline).await
    }

    /// An error of this machine.
    pub fn failed(&self, what: &'static str, reason: impl ToString) -> FabricError {
        FabricError::Hypervisor { machine: self.machine.clone(), what, reason: reason.to_string() }
    }

    pub fn file(&self, what: &str, source: io::Error) -> FabricError {
        FabricError::File { machine: self.machine.clone(), what: what.into(), source }
    }

    /// Its living process; none when it certainly has none.
    ///
    /// # Errors
    /// Why it is not known.
    pub async fn process(&self) -> Result<Option<ProcessIdentity>, String> {
        let known = |error: ProcessError| error.to_string();
        let mark: Option<Mark> = process::read_json(&self.mark_path()).map_err(known)?;
        if let Some(mark) = mark
            && mark.process.is_alive().map_err(known)?
        {
            return Ok(Some(mark.process));
        }
        // Its owner started it, or we were killed between starting it and writing the mark.
        match self.qmp().await {
            Ok(qmp) => {
                let pid = qmp.peer_pid().ok_or("the system does not tell who listens")?;
                let process = ProcessIdentity::of(pid).map_err(known)?;
                if let Some(process) = &process {
                    self.write_mark(process).map_err(known)?;
                }
                Ok(process)
            }
            Err(QmpError::Connect { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn write_mark(&self, process: &ProcessIdentity) -> Result<(), ProcessError> {
        let socket = self.link.socket().to_path_buf();
        process::write_json(&self.mark_path(), &Mark { process: process.clone(), socket })
    }

    /// What QEMU says about its guest.
    pub async fn guest(&self) -> Result<Guest, QmpError> {
        let status = self.call("query-status", json!({}), QUICK).await?;
        Ok(match status["status"].as_str() {
            Some("running") => Guest::Running,
            Some("shutdown") => Guest::Shutdown,
            Some("io-error") => Guest::IoError,
            _ => Guest::Paused,
        })
    }

    pub async fn state(&self) -> MachineState {
        match self.process().await {
            Ok(None) => MachineState::Off,
            Err(error) => {
                tracing::debug!(machine = %self.machine, error, "its state is not known");
                MachineState::Unknown
            }
            Ok(Some(process)) => match self.guest().await {
                Ok(Guest::Running) => MachineState::Running,
                Ok(Guest::Shutdown | Guest::IoError | Guest::Paused) => MachineState::Paused,
                Err(_) if matches!(process.is_alive(), Ok(false)) => MachineState::Off,
                Err(_) => MachineState::Unknown,
            },
        }
    }

    /// Starts QEMU and waits until it takes commands. One that does not start leaves nothing.
    ///
    /// One that neither ends nor listens is killed, confirmed, and started once more: seen twice
    /// in a few thousand starts on a loaded machine, with an empty log.
    pub async fn spawn(&self, program: &str, arguments: &[OsString]) -> Result<(), FabricError> {
        std::fs::create_dir_all(&self.run).map_err(|error| self.file("make the folder", error))?;
        self.end_still().await?; // It would keep QEMU from locking the images.
        let start = |reason: String| FabricError::Start { machine: self.machine.clone(), reason };
        match self.spawn_once(program, arguments).await.map_err(start)? {
            Spawned::Up => return Ok(()),
            Spawned::Silent(why) => {
                let machine = &self.machine;
                tracing::warn!(%machine, why, "QEMU did not listen; starting it again");
            }
        }
        match self.spawn_once(program, arguments).await.map_err(start)? {
            Spawned::Up => Ok(()),
            Spawned::Silent(why) => Err(start(why)),
        }
    }

    /// One try; what it leaves is dead.
    async fn spawn_once(&self, program: &str, arguments: &[OsString]) -> Result<Spawned, String> {
        let log_start = std::fs::metadata(self.log_path()).map_or(0, |log| log.len());
        let (process, mut child) = process::spawn_detached(program, arguments, &self.log_path())
            .map_err(|error| error.to_string())?;
        self.write_mark(&process).map_err(|error| error.to_string())?;
        let end = Instant::now() + START;
        loop {
            let error = match self.link.qmp(QUICK).await {
                Ok(_) => {
                    // Whoever holds a Child reaps it; nobody else needs to know its end from here.
                    tokio::spawn(async move { child.wait().await });
                    return Ok(Spawned::Up);
                }
                Err(error) => error,
            };
            let log = || tail_after(&self.log_path(), log_start);
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("QEMU ended at once ({status}): {}", log()));
            }
            if Instant::now() >= end {
                let seconds = START.as_secs();
                let below = std::error::Error::source(&error).map(ToString::to_string);
                let below = below.unwrap_or_default();
                let why = format!("{error}: {below}; it did not listen in {seconds} s: {}", log());
                process.kill(END).await.map_err(|error| format!("{why}; {error}"))?;
                return Ok(Spawned::Silent(why));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends the process, politely if it answers and is not known to hang, and confirms it.
    pub async fn quit(&self) -> Result<(), FabricError> {
        let Some(process) = self.process().await.map_err(|error| self.not_off(error))? else {
            return self.end_still().await;
        };
        match self.call("quit", json!({}), QUICK).await {
            Ok(_) | Err(QmpError::Closed(_)) => {
                if process.wait_end(END).await.is_ok() {
                    return Ok(());
                }
            }
            Err(error) => tracing::info!(machine = %self.machine, %error, "it did not quit"),
        }
        process.kill(END).await.map_err(|error| self.not_off(error))
    }

    /// Kills the process and confirms it.
    pub async fn kill(&self) -> Result<(), FabricError> {
        match self.process().await.map_err(|error| self.not_off(error))? {
            Some(process) => process.kill(END).await.map_err(|error| self.not_off(error)),
            None => Ok(()),
        }
    }

    pub fn not_off(&self, reason: impl ToString) -> FabricError {
        let (machine, reason) = (self.machine.clone(), reason.to_string());
        FabricError::NotConfirmedOff { machine, reason }
    }
}

/// What became of a start that did not fail.
enum Spawned {
    /// It takes commands.
    Up,
    /// It did not listen in time, and is dead; with what is known of it.
    Silent(String),
}

/// The end of what a log got after its first `start` bytes, on one line.
fn tail_after(log: &Path, start: u64) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let fresh = &bytes[bytes.len().min(start as usize)..];
    let tail = &fresh[fresh.len().saturating_sub(LOG_TAIL_BYTES)..];
    String::from_utf8_lossy(tail).split_whitespace().collect::<Vec<_>>().join(" ")
}
