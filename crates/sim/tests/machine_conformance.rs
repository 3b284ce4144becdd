//! The product driven by clients that others wrote: the official Python SDKs of the contract,
//! against `leeward up`, `leeward host` and a real guest.
#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not right")]

use leeward_sim::demo::{guest::GuestImages, progress::wait_for, sites::Sites};
use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};
use tokio::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The Python with the SDKs that `scripts/setup.sh --tests` makes.
fn python() -> PathBuf {
    let python = root().join("target/python/bin/python");
    assert!(python.exists(), "run scripts/setup.sh --tests first: there is no {python:?}");
    python
}

fn client(script: &str, sites: &Sites, endpoint: &str) -> Command {
    let mut command = Command::new(python());
    command
        .arg(root().join("conformance").join(script))
        .args(["--endpoint", endpoint, "--ca"])
        .arg(sites.up_folder().join("ca.pem"))
        .arg("--token-file")
        .arg(sites.up_folder().join("admin.token"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn passed(script: &str, output: &Output) {
    let shown = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{script}\n{shown}");
    assert!(output.status.success(), "{script} failed\n{shown}\n{errors}");
    assert!(shown.lines().count() >= 5, "{script} did nothing:\n{shown}");
}

fn leeward_program() -> PathBuf {
    // The test binary lies in target/<profile>/deps, the product's program one folder up.
    let own = std::env::current_exe().unwrap();
    let program = own.parent().unwrap().parent().unwrap().join("leeward");
    assert!(program.exists(), "build the workspace first: there is no {program:?}");
    program
}

/// Whether a file below `folder` that is called `name` has `line` in it.
fn holds(folder: &Path, name: &str, line: &str) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| match path.is_dir() {
        true => holds(&path, name, line),
        false => {
            path.file_name().is_some_and(|found| found == name)
                && String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).contains(line)
        }
    })
}

/// Looks below `folder` until what the story sets has become true of the machine made there: the
/// guest tells the address that it was given, and its description the memory.
async fn settings_are_used(folder: PathBuf) {
    let wanted = [
        ("console.log", "LEDGER-NET eth0 10.7.0.50/24"),
        ("machine.toml", "address = \"10.7.0.50\""),
        ("machine.toml", "memory_mib = 288"),
    ];
    for (name, line) in wanted {
        while !holds(&folder, name, line) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// F-021, F-051, F-052, F-053.
/// F-044, F-046, F-047, F-050, F-056, F-069, F-091, F-096, F-097, F-100, F-101.
#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_drives_the_whole_story() {
    let folder = PathBuf::from(format!("/tmp/lw-sdk-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut sites = Sites::new(folder.clone(), leeward_program(), false);
    let endpoint = sites.up_start().await.unwrap();

    let mut vault = client("vault_scenario.py", &sites, &endpoint);
    vault.args(["--vault", "scenario"]);
    passed("vault_scenario.py", &vault.output().await.unwrap());

    let images = GuestImages::build(&root(), &folder.join("guest"), "64M").await.unwrap();
    let key_file = folder.join("story.key");
    let mut story = client("story.py", &sites, &endpoint);
    story
        .args(["--fabric", "primary-site", "--machine", "ledger01", "--interval", "2"])
        .args(["--timeout", "240", "--disable", "--key-file"])
        .arg(&key_file);
    let story = story.spawn().unwrap();
    let used = tokio::spawn(settings_are_used(sites.up_folder()));
    let key = wait_for(
        "the registration key",
        Duration::from_secs(60),
        Duration::from_millis(50),
        || async { Ok(std::fs::read_to_string(&key_file).ok()) },
    );
    let key = key.await.unwrap();
    sites.host_start(&endpoint, Some(&key)).unwrap();
    sites.machine_make(&images, "ledger01", 0).unwrap();
    let joined = sites.host_folder().join("host.json");
    wait_for("the join", Duration::from_secs(30), Duration::from_millis(50), || async {
        Ok(joined.exists().then_some(()))
    })
    .await
    .unwrap();
    sites.machine_start("ledger01").await.unwrap();

    passed("story.py", &story.wait_with_output().await.unwrap());
    assert!(used.is_finished(), "what was set was not used");
    used.await.unwrap();
    sites.clean();
    assert!(!folder.exists());
}
