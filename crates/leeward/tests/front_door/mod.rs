//! A room for one test: its folders below /tmp, its processes of the product, and the way back to
//! an empty machine. What is asked of the product, and how its answers are judged, is in the
//! modules below.

pub mod adoption;
pub mod bucket;
pub mod line;
pub mod site;
pub mod stories;
pub mod way_home;
pub mod words;

use std::{
    fs::File,
    future::Future,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long anything here may take before the test gives up.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_leeward");

/// A folder with processes that end with it.
pub struct Room {
    folder: tempfile::TempDir,
}

/// A process of the product that runs until it is told to end.
pub struct Running {
    child: Child,
    /// What it said: standard output and standard error.
    pub log: PathBuf,
}

/// What a process that ended by itself left behind.
pub struct Ended {
    /// Whether it ended well.
    pub ok: bool,
    /// What it said on standard error.
    pub said: String,
    /// What it wrote to standard output.
    pub out: String,
}

impl Room {
    pub fn new() -> Room {
        // Short: paths of unix sockets hold 107 bytes.
        let folder = tempfile::Builder::new().prefix("lwd").tempdir_in("/tmp").unwrap();
        Room { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Starts the product in the background; its words go to `NAME.log`.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Running {
        self.start_with(name, Path::new(PROGRAM), arguments, &[])
    }

    /// As [`Self::start`], through another program or with more environment.
    pub fn start_with(
        &self,
        name: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Running {
        let log = self.path(&format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .process_group(0)
            .spawn()
            .unwrap();
        Running { child, log }
    }

    /// Runs the product until it ends by itself.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(arguments, &[]).await
    }

    /// As [`Self::run`], with more environment.
    pub async fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
        let mut command = tokio::process::Command::new(PROGRAM);
        command.args(arguments).envs(environment.iter().copied()).kill_on_drop(true);
        let output = tokio::time::timeout(DEADLINE, command.output()).await;
        let output = output.unwrap_or_else(|_| panic!("{arguments:?} did not end")).unwrap();
        Ended {
            ok: output.status.success(),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in files_below(self.folder.path(), ".log") {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<_> = text.lines().rev().take(25).collect();
                eprintln!("--- {}", log.display());
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        for pid in processes_of(self.folder.path()) {
            signal(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Option<bool> {
        self.child.try_wait().unwrap().map(|status| status.success())
    }

    /// Tells it to end and waits until it has, well.
    pub async fn end(mut self) {
        signal(self.pid(), rustix::process::Signal::TERM);
        let child = &mut self.child;
        let status = until("a process to end", || {
            let ended = child.try_wait().unwrap();
            async move { ended }
        })
        .await;
        assert!(status.success(), "ended with {:?} {:?}", status.code(), status.signal());
    }

    /// Ends it as a power cut does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is an answer.
pub async fn until<T, F, Fut>(what: &str, mut ask: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < DEADLINE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Processes whose command line names something below a folder of a test. Never this process.
pub fn processes_of(folder: &Path) -> Vec<u32> {
    let wanted = folder.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid.filter(|pid| *pid != std::process::id()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(wanted) {
            found.push(pid);
        }
    }
    found
}

/// The words by which a process was started.
pub fn arguments_of(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        // One that has ended meanwhile is fine.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Files below a folder whose name ends in `ending`.
pub fn files_below(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // Links are not followed: they may lead in circles.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Everything below a folder with its length, to see that nothing changed.
pub fn inventory(folder: &Path) -> Vec<(PathBuf, u64)> {
    let size = |path: PathBuf| {
        let length = std::fs::metadata(&path).map(|meta| meta.len()).unwrap_or_default();
        (path, length)
    };
    files_below(folder, "").into_iter().map(size).collect()
}
