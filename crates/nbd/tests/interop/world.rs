//! What the tests stand on: a scratch directory, servers, child processes that never stay behind.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leeward_nbd::client::{Client, ConnectOptions, connect_unix};
use leeward_nbd::server::{Export, Limits, RunningServer, Server};
use tokio::net::UnixListener;

/// Bound of every wait in these tests.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// A scratch directory, removed at the end.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        Scratch(tempfile::Builder::new().prefix("nbd-test-").tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// Serves `export` under the name "disk" at [`Scratch::socket`].
    pub fn serve(&self, export: Arc<dyn Export>) -> RunningServer {
        let mut server = Server::new(Limits::default());
        server.add("disk", "a disk for tests", export).unwrap();
        server.start(UnixListener::bind(self.socket()).unwrap())
    }

    pub async fn client(&self, contexts: &[&str]) -> Client {
        connect_unix(&self.socket(), options(contexts)).await.unwrap()
    }

    /// The address of "disk" for tools of others.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket().display())
    }
}

pub fn options(contexts: &[&str]) -> ConnectOptions {
    ConnectOptions {
        export: "disk".into(),
        contexts: contexts.iter().map(ToString::to_string).collect(),
        call_deadline: DEADLINE,
    }
}

/// Tells whether all `tools` are installed, and says which is not.
pub fn have(tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    for tool in tools {
        if !there(tool) {
            // Not by `eprintln!`, which the test runner hides when a test passes.
            let words = format!("SKIPPED: {tool} is not installed\n");
            let _ = std::io::stderr().write_all(words.as_bytes());
            return false;
        }
    }
    true
}

/// A child process, killed by its pid at the end.
pub struct Guard(Child);

impl Guard {
    pub fn start<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        Guard(command.spawn().unwrap())
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill(); // It may have ended by itself.
        let _ = self.0.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a tool to its end within [`DEADLINE`] and gives its output, whatever its status.
pub async fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Output {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(DEADLINE, command.output()).await.expect("a tool hangs").unwrap()
}

/// Runs a tool that must succeed and gives its standard output.
pub async fn run_ok<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> String {
    let output = run(program, arguments).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed: {said}{complained}");
    said
}

/// Waits until a server listens at `socket`.
pub async fn listening(socket: &Path) {
    let start = Instant::now();
    while tokio::net::UnixStream::connect(socket).await.is_err() {
        assert!(start.elapsed() < DEADLINE, "nobody listens at {}", socket.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A small generator of repeatable numbers (xorshift); its seed is printed.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        eprintln!("seed {seed}");
        Numbers(seed.max(1))
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// A disk with data, holes between, and an odd end.
pub fn sparse_content(len: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(7);
    let mut content = vec![0; len];
    for chunk in content.chunks_mut(65_536).step_by(3) {
        let data = numbers.bytes(chunk.len());
        chunk.copy_from_slice(&data);
    }
    content
}
