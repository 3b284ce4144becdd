//! Processes that outlive us: named by pid, start time and boot, found again, ended for certain.
//!
//! Nothing here signals a process by its number alone: the number may belong to another one by
//! then. What runs in the process is not its business.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// Pause between two looks at a process that is about to end.
const END_POLL: Duration = Duration::from_millis(5);

/// Why a process could not be started, found or ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("could not start {program}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system does not tell about it.
    #[error("could not look at process {pid}")]
    Look {
        /// Its number.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// It still exists.
    #[error("could not confirm within {deadline:?} that process {pid} ended")]
    NotEnded {
        /// Its number.
        pid: u32,
        /// How long was waited.
        deadline: Duration,
    },
    /// A file could not be written or read.
    #[error("could not {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// One process, for ever: no other process of any boot has the same identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
    /// The boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
}

/// The kernel's id of this boot.
///
/// # Errors
/// [`ProcessError::File`].
pub fn boot_id() -> Result<String, ProcessError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path);
    let text =
        text.map_err(|source| ProcessError::File { what: "read", path: path.into(), source });
    Ok(text?.trim().to_owned())
}

/// Start time of a living process; none when there is none of that number or it is a zombie. A
/// zombie whose other threads have not ended yet still lives: they may hold files and sockets.
fn start_time(pid: u32) -> Result<Option<u64>, ProcessError> {
    let look = |source| ProcessError::Look { pid, source };
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(error) => return Err(look(error)),
    };
    // The name in brackets may hold anything, also brackets: fields are counted from the last one.
    let fields: Vec<&str> = match stat.rsplit_once(')') {
        Some((_, rest)) => rest.split_whitespace().collect(),
        None => Vec::new(),
    };
    let (Some(state), Some(threads), Some(start)) =
        (fields.first(), fields.get(17), fields.get(19))
    else {
        return Err(look(io::ErrorKind::InvalidData.into()));
    };
    if *state == "X" || (*state == "Z" && matches!(*threads, "0" | "1")) {
        return Ok(None);
    }
    start.parse().map(Some).map_err(|_| look(io::ErrorKind::InvalidData.into()))
}

impl ProcessIdentity {
    /// The living process that has number `pid` now; none when there is none.
    ///
    /// # Errors
    /// [`ProcessError::Look`] when the system does not tell.
    pub fn of(pid: u32) -> Result<Option<Self>, ProcessError> {
        let Some(start_time) = start_time(pid)? else { return Ok(None) };
        Ok(Some(ProcessIdentity { pid, start_time, boot: boot_id()? }))
    }

    /// Whether this very process still lives.
    ///
    /// # Errors
    /// [`ProcessError::Look`] when the system does not tell; then it must be taken as living.
    pub fn is_alive(&self) -> Result<bool, ProcessError> {
        Ok(ProcessIdentity::of(self.pid)?.as_ref() == Some(self))
    }

    /// A descriptor of this very process; none when it has ended.
    fn open(&self) -> Result<Option<rustix::fd::OwnedFd>, ProcessError> {
        let look = |source: io::Error| ProcessError::Look { pid: self.pid, source };
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(look(error.into())),
        };
        // Looked at after the descriptor was opened: if it is ours now, the descriptor is ours.
        Ok(self.is_alive()?.then_some(descriptor))
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// [`ProcessError::NotEnded`] after `deadline`.
    pub async fn wait_end(&self, deadline: Duration) -> Result<(), ProcessError> {
        let end = Instant::now() + deadline;
        while self.is_alive()? {
            if Instant::now() >= end {
                return Err(ProcessError::NotEnded { pid: self.pid, deadline });
            }
            sleep(END_POLL).await;
        }
        Ok(())
    }

    /// Sends SIGKILL to this very process and does not wait; no other is ever signalled. One that
    /// has ended already is fine.
    ///
    /// # Errors
    /// [`ProcessError::Look`].
    pub fn signal_kill(&self) -> Result<(), ProcessError> {
        let Some(descriptor) = self.open()? else { return Ok(()) };
        match pidfd_send_signal(&descriptor, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(ProcessError::Look { pid: self.pid, source: error.into() }),
        }
    }

    /// Kills this very process and waits until it has ended; as [`Self::signal_kill`].
    ///
    /// # Errors
    /// [`ProcessError::NotEnded`] after `deadline`: it may still run.
    pub async fn kill(&self, deadline: Duration) -> Result<(), ProcessError> {
        self.signal_kill()?;
        self.wait_end(deadline).await
    }
}

/// Starts a program that goes on when we are killed: in a process group of its own, without our
/// input and output; `log` takes its standard error, after what is in it.
///
/// Dropping the [`Child`] does not end the program.
///
/// # Errors
/// [`ProcessError::Start`], [`ProcessError::File`].
pub fn spawn_detached(
    program: &str,
    arguments: &[OsString],
    log: &Path,
) -> Result<(ProcessIdentity, Child), ProcessError> {
    let file = |source| ProcessError::File { what: "open", path: log.into(), source };
    let log_file = OpenOptions::new().create(true).append(true).open(log).map_err(file)?;
    let start = |source| ProcessError::Start { program: program.into(), source };
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log_file.try_clone().map_err(file)?)
        .stderr(log_file)
        .process_group(0)
        .kill_on_drop(false)
        .spawn()
        .map_err(start)?;
    let pid = child.id().ok_or_else(|| start(io::ErrorKind::NotFound.into()))?;
    // Our own child keeps its number until we wait for it, also as a zombie.
    let identity = ProcessIdentity::of(pid)?;
    let ended = || start(io::Error::other("it ended at once"));
    Ok((identity.ok_or_else(ended)?, child))
}

/// What is left on disk about a QEMU, so that the next role process finds it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The process.
    pub process: ProcessIdentity,
    /// Its QMP socket.
    pub socket: PathBuf,
}

/// Writes `value` as JSON to `path`, whole or not at all, durable on return.
///
/// # Errors
/// [`ProcessError::File`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ProcessError> {
    let file = |what| move |source| ProcessError::File { what, path: path.into(), source };
    let bytes =
        serde_json::to_vec_pretty(value).map_err(|error| file("write")(io::Error::other(error)))?;
    write_whole(path, &bytes).map_err(file("write"))
}

/// Writes `bytes` to `path`, whole or not at all, durable on return.
///
/// # Errors
/// What the system says.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A name of this process's own: another one may be writing the same file.
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let mut out = File::create(&fresh)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_folder_of(path)
}

/// Makes the directory entry of `path` durable.
///
/// # Errors
/// What the system says.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads what [`write_json`] wrote; none when the file is not there or is not this.
///
/// # Errors
/// [`ProcessError::File`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ProcessError> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ProcessError::File { what: "read", path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn sleeper(folder: &Path) -> (ProcessIdentity, Child) {
        spawn_detached("sleep", &["600".into()], &folder.join("log")).unwrap()
    }

    #[tokio::test]
    async fn a_kill_by_identity_ends_that_process_and_is_repeatable() {
        let folder = tempfile::tempdir().unwrap();
        let (identity, _child) = sleeper(folder.path());
        assert!(identity.is_alive().unwrap());

        identity.kill(DEADLINE).await.unwrap();

        assert!(!identity.is_alive().unwrap());
        identity.kill(DEADLINE).await.unwrap();
    }

    #[tokio::test]
    async fn a_kill_by_identity_never_ends_another_process_with_the_same_number() {
        let folder = tempfile::tempdir().unwrap();
        let (living, _child) = sleeper(folder.path());
        let older = ProcessIdentity { start_time: living.start_time - 1, ..living.clone() };
        let other_boot = ProcessIdentity { boot: "another boot".into(), ..living.clone() };

        older.kill(DEADLINE).await.unwrap();
        other_boot.kill(DEADLINE).await.unwrap();

        assert!(living.is_alive().unwrap(), "a process was killed by its number alone");
        living.kill(DEADLINE).await.unwrap();
    }

    #[tokio::test]
    async fn waiting_for_a_living_process_ends_with_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let (living, _child) = sleeper(folder.path());

        let waited = living.wait_end(Duration::from_millis(50)).await;

        assert!(matches!(waited, Err(ProcessError::NotEnded { .. })), "{waited:?}");
        living.kill(DEADLINE).await.unwrap();
    }

    #[test]
    fn a_mark_survives_and_a_torn_one_counts_as_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark.json");
        let process = ProcessIdentity { pid: 7, start_time: 8, boot: "b".into() };
        let mark = Mark { process, socket: "/run/q".into() };

        write_json(&path, &mark).unwrap();
        assert_eq!(read_json::<Mark>(&path).unwrap(), Some(mark));

        fs::write(&path, b"{\"process\":").unwrap();
        assert_eq!(read_json::<Mark>(&path).unwrap(), None);
    }
}
