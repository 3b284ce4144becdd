//! `leeward export` notes what a machine read first, and the next one has it decoded before it is
//! asked: as its users run it, without a server.

#![allow(clippy::unwrap_used)]

use leeward_nbd::client::{ConnectOptions, connect_unix};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_leeward");
const DEADLINE: Duration = Duration::from_secs(60);
const EXTENT: u64 = 65_536;
/// Extents that the machine reads first, in its order.
const READS: [u64; 4] = [9, 2, 40, 3];

struct Desk {
    folder: tempfile::TempDir,
    item: String,
    point: String,
}

/// An export process, ended with the test.
struct Export {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Desk {
    fn new() -> Desk {
        let folder = tempfile::Builder::new().prefix("lwb").tempdir_in("/tmp").unwrap();
        let store = folder.path().join("store");
        let disk = folder.path().join("disk.raw");
        let line = |number: u64| format!("line {number} of a log\n");
        let mut lines = (0..400_000).map(line).collect::<String>().into_bytes();
        lines.truncate(lines.len() / 512 * 512);
        fs::write(&disk, lines).unwrap();
        let run = |words: &[&str]| {
            let output = Command::new(PROGRAM).arg("store").args(words).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let store_text = store.to_str().unwrap();
        run(&["init", store_text]);
        let disk = format!("sda={}", disk.display());
        let made = run(&["capture", store_text, "--item", "web01", "--disk", &disk]);
        let made: Value = serde_json::from_str(&made).unwrap();
        let mut items = fs::read_dir(store.join("items")).unwrap();
        let item = items.next().unwrap().unwrap().file_name().into_string().unwrap();
        Desk { folder, item, point: made["point"].as_str().unwrap().to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn boot_set(&self) -> PathBuf {
        self.path("boot-sets/set.json")
    }

    fn export(&self, name: &str, more: &[&str]) -> Export {
        let (socket, log) = (self.path(&format!("{name}.sock")), self.path(name));
        let mut command = Command::new(PROGRAM);
        command.arg("export").arg("--store").arg(self.path("store"));
        command.args(["--item", &self.item, "--point", &self.point, "--socket"]).arg(&socket);
        command.arg("--boot-set").arg(self.boot_set()).args(more);
        command.env("RUST_LOG", "info").stdin(Stdio::null());
        let log_file = fs::File::create(&log).unwrap();
        command.stdout(log_file.try_clone().unwrap()).stderr(log_file);
        let child = command.spawn().unwrap();
        wait_for("the socket", || socket.exists().then_some(()));
        Export { child, socket, log }
    }

    fn noted(&self) -> Vec<u64> {
        let Ok(bytes) = fs::read(self.boot_set()) else { return Vec::new() };
        let stored: Value = serde_json::from_slice(&bytes).unwrap();
        let extents = stored["extents"].as_array().unwrap().iter();
        extents.map(|place| place[1].as_u64().unwrap()).collect()
    }
}

fn log(path: &Path) -> String {
    // Without the codes of colours that the log has on a terminal and elsewhere.
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut plain = String::new();
    let mut inside = false;
    for letter in text.chars() {
        match letter {
            '\u{1b}' => inside = true,
            'm' if inside => inside = false,
            _ if inside => {}
            letter => plain.push(letter),
        }
    }
    plain
}

/// The reads of a machine that starts: a piece of each extent, and one of another extent.
async fn start_machine(export: &Export) {
    let (export_name, call_deadline) = ("disk-0".to_owned(), DEADLINE);
    let options = ConnectOptions { export: export_name, contexts: Vec::new(), call_deadline };
    let client = connect_unix(&export.socket, options).await.unwrap();
    for extent in READS {
        let read = client.read(extent * EXTENT + 8192, 4096).await.unwrap();
        assert!(String::from_utf8_lossy(&read).contains(" of a log\n"));
    }
    client.disconnect().await;
}

/// Ends an export and returns what its log says of the extents that were read.
fn end(mut export: Export) -> String {
    kill_process(Pid::from_child(&export.child), Signal::TERM).unwrap();
    assert!(export.child.wait().unwrap().success());
    let text = log(&export.log);
    let told = text.lines().rfind(|line| line.contains("extents read"));
    told.unwrap_or_else(|| panic!("no figures in: {text}")).to_owned()
}

/// Decision 37: what the last test's machine read is decoded before the next machine asks.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_test_read_first_is_decoded_before_the_next_machine_asks() {
    let desk = Desk::new();
    let test = desk.export("test", &["--record-boot-set"]);
    start_machine(&test).await;
    wait_for("the boot set", || (desk.noted() == READS).then_some(()));
    assert!(end(test).contains("ahead=0 decoded=4"), "nothing was known before the first test");

    let failover = desk.export("failover", &[]);
    wait_for("the boot set", || log(&failover.log).contains("fetched=4").then_some(()));
    start_machine(&failover).await;
    let told = end(failover);
    assert!(told.contains("ahead=4 decoded=0") && told.contains("hit_percent=100"), "{told}");
    assert_eq!(desk.noted(), READS, "a failover changes nothing of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_boot_set_is_no_error() {
    let desk = Desk::new();
    fs::create_dir_all(desk.path("boot-sets")).unwrap();
    let beyond = format!(
        "{{\"format\":1,\"item\":\"{}\",\"extents\":[[0,4000000000],[7,1],[0,9]]}}",
        desk.item
    );
    let other = beyond.replace(&desk.item, &"0".repeat(desk.item.len()));
    for (name, content) in [("torn", &beyond[..30]), ("other", &other), ("noise", "\u{0}\u{ff}")] {
        fs::write(desk.boot_set(), content).unwrap();
        let export = desk.export(name, &[]);
        start_machine(&export).await;
        assert!(end(export).contains("ahead=0 decoded=4"), "{name}");
    }
    // Places that the point does not have are left out.
    fs::write(desk.boot_set(), beyond).unwrap();
    let export = desk.export("beyond", &[]);
    wait_for("what exists", || log(&export.log).contains("fetched=1").then_some(()));
    start_machine(&export).await;
    assert!(end(export).contains("ahead=1 decoded=3"));
}
