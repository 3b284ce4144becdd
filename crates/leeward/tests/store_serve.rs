//! `leeward store serve --writable`, and the verbs that are refused beside a live owner, as their
//! users run them: the program, files on a disk, and `qemu-io` as the client. No server runs here.

#![allow(clippy::unwrap_used)]

mod desk;

use desk::Desk;
use leeward_replica::{Store, SystemRandom, Unlock, storage::LocalStore};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = (4 << 20) + 512;

/// With a store, a disk, and one point of it.
fn desk() -> Desk {
    let desk = Desk::empty("lwo", &["store"]);
    desk.good(&["init", &desk.store()]);
    let disk = File::create(desk.path("disk.raw")).unwrap();
    disk.set_len(DISK_BYTES).unwrap();
    disk.write_all_at(&vec![0x11; 1 << 20], 1 << 20).unwrap();
    disk.write_all_at(&[0x22; 512], DISK_BYTES - 512).unwrap();
    let source = format!("sda={}", desk.text("disk.raw"));
    desk.good(&["capture", &desk.store(), "--item", "web01", "--disk", &source]);
    desk
}

fn stats(desk: &Desk) -> Value {
    let said = desk.good(&["stats", &desk.store(), "--output", "json"]);
    let stats: Value = serde_json::from_str(&said).unwrap();
    stats["items"][0].clone()
}

/// Serves the newest point for writing; returns once it answers.
fn serve(desk: &Desk) -> Child {
    let (store, socket) = (desk.store(), desk.text("disk.sock"));
    let words = ["serve", &store, "--item", "web01", "--point", "latest", "--disk", "sda"];
    let words = [&words[..], &["--socket", &socket, "--writable"]].concat();
    let child = desk.command(&words).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !Path::new(&socket).exists() {
        assert!(begun.elapsed() < DEADLINE, "no socket");
        std::thread::yield_now();
    }
    child
}

fn kill(child: &mut Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
    child.wait().unwrap();
}

fn qemu_io(desk: &Desk, orders: &[&str]) {
    let uri = format!("nbd+unix:///?socket={}", desk.text("disk.sock"));
    let orders = orders.iter().flat_map(|order| ["-c", order]);
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", "-t", "none"]).args(orders).arg(&uri);
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(!said.contains("failed"), "{said}");
}

/// What is written is read again, also by another client, as long as the serve lives; the point
/// stays as it was, and the store knows who served it and until when.
#[test]
fn a_writable_serve_takes_writes_never_changes_the_point_and_is_noted() {
    let desk = desk();
    let mut child = serve(&desk);
    let stat = stats(&desk);
    assert_eq!(stat["served"].as_array().unwrap().len(), 1, "{stat}");
    assert_eq!(
        (&stat["served"][0]["use"], &stat["served"][0]["stale"]),
        (&json!("writable"), &json!(false))
    );
    assert_eq!(stat["pins"].as_array().unwrap().len(), 1, "{stat}");

    qemu_io(&desk, &["read -P 0x11 1M 1M", "write -P 0x33 1049088 1024", "flush"]);
    let last = format!("read -P 0x22 {} 512", DISK_BYTES - 512);
    let orders = ["read -P 0x33 1049088 1024", "read -P 0x11 1M 512", "write -z 1M 64k", &last];
    qemu_io(&desk, &orders);
    qemu_io(&desk, &["read -P 0 1M 64k", "read -P 0x11 1114112 64k"]);
    kill(&mut child, Signal::TERM);

    let stat = stats(&desk);
    assert_eq!((&stat["served"], &stat["pins"]), (&json!([]), &json!([])));
    let ended = &stat["servesEnded"][0];
    assert_eq!((&ended["use"], &ended["how"]), (&json!("writable"), &json!("it was ended")));
    let out = desk.text("out.raw");
    let words = ["restore", &desk.store(), "--item", "web01", "--point", "latest", "--disk", "sda"];
    desk.good(&[&words[..], &[&out]].concat());
    assert!(
        fs::read(&out).unwrap() == fs::read(desk.path("disk.raw")).unwrap(),
        "the point changed"
    );
    let ended = stats(&desk)["servesEnded"].clone();
    let restored = ended.as_array().unwrap().iter().find(|ended| ended["use"] == "restored");
    assert_eq!(restored.unwrap()["target"], json!(out));
    desk.good(&["verify", &desk.store()]);
}

/// The note of a process that was killed says that it is stale.
#[test]
fn a_killed_serve_leaves_a_note_that_is_known_to_be_stale() {
    let desk = desk();
    let mut child = serve(&desk);
    kill(&mut child, Signal::KILL);

    let stat = stats(&desk);

    assert_eq!(stat["served"][0]["stale"], json!(true), "{stat}");
    desk.good(&["verify", &desk.store()]);
}

/// Beside a live owner nothing writes: not by any word. Reading goes on.
#[test]
fn verbs_that_write_are_refused_while_the_store_has_a_live_owner() {
    let desk = desk();
    let (store, out) = (desk.store(), desk.text("web01.export"));
    desk.good(&["export", &store, "--item", "web01", &out]);
    let blobs = || Arc::new(LocalStore::open(desk.path("store")).unwrap());
    let random = || Arc::new(SystemRandom);
    let owner = Store::open(blobs(), None, &Unlock::KeyFile, random()).unwrap().identity().owner;
    let held = Store::open_writer(blobs(), owner, &Unlock::KeyFile, random()).unwrap();

    let disk = format!("sda={}", desk.text("disk.raw"));
    for words in [
        &["prune", &store, "--keep", "1s"][..],
        &["prune", &store, "--keep", "1s", "--i-know-a-server-owns-it", "--nobody-is-reading"],
        &["repair", &store, "--yes-repair"],
        &["rekey", &store, "--recovery"],
        &["rekey", &store, "--new-key-file"],
        &["import", &out, &store],
        &["shred", &store, "--item", "web01", "--yes-destroy", "web01"],
        &["capture", &store, "--item", "web01", "--disk", &disk],
    ] {
        desk.refused(words, 4, "LW-0701");
    }
    for words in [
        &["points", &store, "--item", "web01"][..],
        &["verify", &store],
        &["repair", &store],
        &["prune", &store, "--keep", "1s", "--dry-run"],
    ] {
        desk.good(words);
    }
    drop(held);
    desk.good(&["rekey", &store, "--recovery"]);
    desk.refused(&["init", &store], 4, "LW-0108");
}
