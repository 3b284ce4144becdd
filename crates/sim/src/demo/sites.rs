//! The two sites of the demo: real processes of the product on this machine, in one folder. The
//! primary site may have another host beside the first one.

use super::{guest::GuestImages, progress::wait_for};
use anyhow::{Context as _, bail, ensure};
use leeward_fabric::process::ProcessIdentity;
use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Name and folder of the primary site's other host.
pub const SPARE: &str = "spare";
/// How long processes may take to end once they are killed.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// The recovery site's and the primary site's processes.
pub struct Sites {
    /// Everything lies below it.
    pub folder: PathBuf,
    program: PathBuf,
    up: Option<Child>,
    host: Option<Child>,
    spare: Option<Child>,
    keep: bool,
    /// Further words of the command line of `leeward up`.
    pub up_words: Vec<String>,
    /// Further words of the command line of `leeward host`, for every host.
    pub host_words: Vec<String>,
    /// A file that stands in for the primary site's boot id: a boot of its machine, played.
    pub boot_id: Option<PathBuf>,
    mounted: Option<PathBuf>,
}

impl Sites {
    /// Sites below a fresh folder, run with the product's program.
    pub fn new(folder: PathBuf, program: PathBuf, keep: bool) -> Self {
        let (up_words, host_words) = (Vec::new(), Vec::new());
        Sites {
            folder,
            program,
            up: None,
            host: None,
            spare: None,
            keep,
            up_words,
            host_words,
            boot_id: None,
            mounted: None,
        }
    }

    /// Leaves everything as it is when this is dropped, or not.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// Puts the recovery site's folder on a file system of its own with `mib` MiB. Needs root.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn up_on_small_disk(&mut self, mib: u32) -> anyhow::Result<()> {
        let folder = self.up_folder();
        std::fs::create_dir_all(&folder)?;
        let size = format!("size={mib}m");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "leeward-test"])
            .arg(&folder)
            .status()?;
        if !mount.success() {
            bail!("could not mount a tmpfs on {}", folder.display());
        }
        self.mounted = Some(folder);
        Ok(())
    }

    /// The product's program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Folder of the recovery site.
    pub fn up_folder(&self) -> PathBuf {
        self.folder.join("up")
    }

    /// Folder of the primary site.
    pub fn host_folder(&self) -> PathBuf {
        self.folder.join("host")
    }

    fn spawn(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{name}.log")))?;
        let own_boot = self.boot_id.as_ref().filter(|_| arguments.first() == Some(&"host"));
        let mut command = match own_boot {
            None => Command::new(&self.program),
            Some(boot_id) => in_boot(boot_id, &self.program),
        };
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("could not start {}", self.program.display()))
    }

    /// Starts the recovery site and waits until it is ready; returns its endpoint.
    ///
    /// # Errors
    /// When it ends or is not ready within 20 s.
    pub async fn up_start(&mut self) -> anyhow::Result<String> {
        let data = self.up_folder();
        let endpoint = data.join("endpoint");
        let before = std::fs::read_to_string(&endpoint).unwrap_or_default();
        let listen = match before.trim().strip_prefix("https://") {
            Some(address) => address.to_owned(),
            None => "127.0.0.1:0".to_owned(),
        };
        // Removed, so that its return says that the process is ready.
        let _ = std::fs::remove_file(&endpoint);
        let data = data.to_string_lossy().into_owned();
        let mut words = vec!["up", "--data", &data, "--listen", &listen];
        words.extend(self.up_words.iter().map(String::as_str));
        let mut child = self.spawn("up", &words)?;
        let ready = wait_for(
            "the recovery site's start",
            Duration::from_secs(20),
            Duration::from_millis(10),
            || {
                let ended = child.try_wait();
                let text = std::fs::read_to_string(&endpoint).ok();
                async move {
                    if let Some(status) = ended? {
                        bail!("leeward up ended with {status}");
                    }
                    Ok(text.map(|text| text.trim().to_owned()))
                }
            },
        )
        .await;
        self.up = Some(child);
        ready
    }

    /// Starts the primary site's host, joining with `key` at the first start.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn host_start(&mut self, endpoint: &str, key: Option<&str>) -> anyhow::Result<()> {
        self.host = Some(self.host_spawn(&self.host_folder(), "primary", endpoint, key)?);
        Ok(())
    }

    /// Folder of the primary site's other host.
    pub fn spare_folder(&self) -> PathBuf {
        self.folder.join(SPARE)
    }

    /// Starts the primary site's other host, [`SPARE`], joining with `key`.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spare_start(&mut self, endpoint: &str, key: &str) -> anyhow::Result<()> {
        self.spare = Some(self.host_spawn(&self.spare_folder(), SPARE, endpoint, Some(key))?);
        Ok(())
    }

    /// The host's log has the name of its folder.
    fn host_spawn(
        &self,
        folder: &Path,
        name: &str,
        endpoint: &str,
        key: Option<&str>,
    ) -> anyhow::Result<Child> {
        let data = folder.to_string_lossy().into_owned();
        let server = endpoint.trim_start_matches("https://");
        let mut arguments = vec!["host", "--data", &data, "--join", server, "--name", name];
        let key_file = self.folder.join(format!("{name}.key"));
        let key_path = key_file.to_string_lossy().into_owned();
        if let Some(key) = key {
            leeward::folder::write_secret(&key_file, key.as_bytes())?;
            arguments.extend(["--key-file", &key_path]);
        }
        arguments.extend(self.host_words.iter().map(String::as_str));
        let log = folder.file_name().unwrap_or_default().to_string_lossy();
        self.spawn(&log, &arguments)
    }

    /// Waits until the primary site's host has joined and found out what can run its guests.
    ///
    /// # Errors
    /// When that takes longer than 40 s.
    pub async fn joined_wait(&self) -> anyhow::Result<()> {
        joined_wait(&self.host_folder()).await
    }

    /// As [`Self::joined_wait`], for the site's other host.
    ///
    /// # Errors
    /// As there.
    pub async fn spare_joined_wait(&self) -> anyhow::Result<()> {
        joined_wait(&self.spare_folder()).await
    }

    /// Puts the guest's images and description into the primary site's folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn machine_make(
        &self,
        images: &GuestImages,
        name: &str,
        extra_disk_mib: u32,
    ) -> anyhow::Result<PathBuf> {
        let folder = self.host_folder().join("machines").join(name);
        std::fs::create_dir_all(&folder)?;
        for image in ["boot.raw", "data.raw"] {
            let copied = Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .arg(images.folder.join(image))
                .arg(folder.join(image))
                .status()?;
            if !copied.success() {
                bail!("could not copy {image}");
            }
        }
        let extra = match extra_disk_mib {
            0 => "",
            mib => {
                random_disk(&folder.join("extra.raw"), mib)?;
                "[[disks]]\nid = \"extra\"\npath = \"extra.raw\"\nformat = \"raw\"\n\n"
            }
        };
        let port = folder.join("workload.sock");
        let text = format!(
            "memory_mib = 256\ncpus = 1\ndisplay = true\n\n\
             [[disks]]\nid = \"boot\"\npath = \"boot.raw\"\nformat = \"raw\"\n\n\
             [[disks]]\nid = \"data\"\npath = \"data.raw\"\nformat = \"raw\"\n\n{extra}\
             [[nics]]\nmac = \"52:54:00:4c:57:01\"\nnetwork = \"isolated\"\n\n\
             [[channels]]\nname = \"leeward.workload\"\npath = \"{}\"\n\n\
             [probe]\nconsole_contains = \"LEDGER-FIRST {{\"\ntimeout_seconds = 180\n",
            port.display()
        );
        std::fs::write(folder.join("machine.toml"), text)?;
        Ok(folder)
    }

    /// Starts a machine by hand, as its owner does.
    ///
    /// # Errors
    /// When the product refuses.
    pub async fn machine_start(&self, name: &str) -> anyhow::Result<()> {
        self.machine_start_with(name, &[]).await
    }

    /// As [`Self::machine_start`], with more words on the command line.
    ///
    /// # Errors
    /// What the product says when it refuses.
    pub async fn machine_start_with(&self, name: &str, words: &[&str]) -> anyhow::Result<()> {
        let command = match &self.boot_id {
            None => Command::new(&self.program),
            Some(boot_id) => in_boot(boot_id, &self.program),
        };
        let mut command = tokio::process::Command::from(command);
        let output = command
            .args(["host", "start", name, "--data"])
            .arg(self.host_folder())
            .args(words)
            .output()
            .await?;
        if !output.status.success() {
            bail!("could not start {name}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Kills the host's process and the source's QEMU with SIGKILL, the host first.
    ///
    /// # Errors
    /// When the machine's process is not known.
    pub fn disaster(&mut self) -> anyhow::Result<()> {
        let qemus = processes_below(&self.host_folder(), "qemu-system");
        if qemus.is_empty() {
            bail!("no QEMU of the primary site was found");
        }
        self.host_kill()?;
        kill(qemus)
    }

    /// Kills the host's process with SIGKILL.
    ///
    /// # Errors
    /// When it was not running.
    pub fn host_kill(&mut self) -> anyhow::Result<()> {
        let mut host = self.host.take().context("the host was not running")?;
        host.kill()?;
        host.wait()?;
        Ok(())
    }

    /// Sends a signal to the host's process: SIGSTOP makes it fall silent without a word.
    ///
    /// # Errors
    /// When it does not run.
    pub fn host_signal(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        let host = self.host.as_ref().context("the host is not running")?;
        Ok(rustix::process::kill_process(pid_of(host.id())?, signal)?)
    }

    /// Makes the recovery site's process fall silent with SIGSTOP, as behind a link that is cut.
    ///
    /// # Errors
    /// When it does not run.
    pub fn up_silence(&self) -> anyhow::Result<()> {
        let up = self.up.as_ref().context("the recovery site is not running")?;
        Ok(rustix::process::kill_process(pid_of(up.id())?, rustix::process::Signal::STOP)?)
    }

    /// Kills the recovery site's process with SIGKILL.
    ///
    /// # Errors
    /// When it was not running.
    pub fn up_kill(&mut self) -> anyhow::Result<()> {
        let mut up = self.up.take().context("the recovery site was not running")?;
        up.kill()?;
        up.wait()?;
        Ok(())
    }

    /// Ends everything that runs below the demo's folder and deletes it.
    pub fn clean(&mut self) {
        for child in [self.spare.take(), self.host.take(), self.up.take()].into_iter().flatten() {
            let mut child = child;
            // One that has ended already is fine.
            let _ = child.kill();
            let _ = child.wait();
        }
        // Those that were just being started may start others: until none is left.
        let begun = Instant::now();
        loop {
            let left = processes_below(&self.folder, "");
            if left.is_empty() || begun.elapsed() > END_TIMEOUT {
                break;
            }
            // What cannot be ended is seen by whoever asks what was left behind.
            let _ = kill(left);
        }
        if let Some(folder) = self.mounted.take() {
            // What cannot be unmounted is seen by whoever asks what was left behind.
            let _ = Command::new("umount").arg("-l").arg(&folder).status();
        }
        for data in [self.up_folder(), self.host_folder(), self.spare_folder()] {
            if data.exists()
                && let Ok(run) = leeward::roles::site::run_folder(&data)
                && !run.starts_with(&self.folder)
            {
                let _ = std::fs::remove_dir_all(run);
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        if !self.keep {
            self.clean();
        }
    }
}

async fn joined_wait(folder: &Path) -> anyhow::Result<()> {
    let files = ["host.json", "accelerator.json"].map(|name| folder.join(name));
    let (deadline, every) = (Duration::from_secs(40), Duration::from_millis(20));
    wait_for("the host's joining", deadline, every, || async {
        Ok(files.iter().all(|file| file.exists()).then_some(()))
    })
    .await
}

/// Processes of this machine whose command line names something below `folder` and whose program
/// begins with `program`. Never this process.
pub fn processes_below(folder: &Path, program: &str) -> Vec<u32> {
    let wanted = folder.to_string_lossy().into_owned();
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return found };
    for entry in entries.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split('\0');
        let first = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        if pid != std::process::id() && first.starts_with(program) && names(&line, &wanted) {
            found.push(pid);
        }
    }
    found
}

/// Whether a command line names `folder` or something in it, and not one with a longer name.
fn names(line: &str, folder: &str) -> bool {
    let ends = |at: usize| {
        let next = line[at + folder.len()..].chars().next();
        next.is_none_or(|next| !next.is_alphanumeric() && !matches!(next, '-' | '_' | '.'))
    };
    line.match_indices(folder).any(|(at, _)| ends(at))
}

/// A disk whose every byte has to be sent: nothing in it repeats or compresses.
fn random_disk(path: &Path, mib: u32) -> anyhow::Result<()> {
    let bytes = u64::from(mib) << 20;
    std::io::copy(
        &mut std::io::Read::take(File::open("/dev/urandom")?, bytes),
        &mut File::create(path)?,
    )?;
    Ok(())
}

/// The program in a mount namespace of its own where the kernel's boot id is another one.
fn in_boot(boot_id: &Path, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(boot_id).arg(program);
    command
}

fn pid_of(number: u32) -> anyhow::Result<rustix::process::Pid> {
    rustix::process::Pid::from_raw(number as i32).context("no process has the number 0")
}

/// Kills processes with SIGKILL, all before the first is waited for, and waits until each has ended
/// and let go of its files: a dying QEMU has no command line any more while it still holds the
/// locks of its images.
///
/// # Errors
/// When one has not ended after 10 s.
pub fn kill(pids: impl IntoIterator<Item = u32>) -> anyhow::Result<()> {
    let mut ending = Vec::new();
    for pid in pids {
        // One that has ended meanwhile is fine.
        let Some(process) = ProcessIdentity::of(pid)? else { continue };
        process.signal_kill()?;
        ending.push(process);
    }
    let begun = Instant::now();
    for process in ending {
        while process.is_alive()? {
            ensure!(begun.elapsed() < END_TIMEOUT, "process {} does not end", process.pid);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}
