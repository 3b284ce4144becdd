//! `leeward store` as its users run it: the program, files on a disk, and `qemu-img` as a second
//! opinion. No server runs here.

#![allow(clippy::unwrap_used)]

mod desk;

use desk::Desk;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(60);
/// 24 MiB and one sector: the last extent is short, and a VHD of it has to be padded.
const DISK_BYTES: u64 = (24 << 20) + 512;

impl Desk {
    /// With a store and a disk that has data, zeros and holes.
    fn new() -> Desk {
        let desk = Desk::empty("lws", &["store"]);
        desk.good(&["init", &desk.store()]);
        desk.fill(1);
        desk
    }

    /// Makes `disk.raw` anew: seeded noise in places, text that compresses, zeros that are written.
    fn fill(&self, seed: u64) {
        let disk = File::create(self.path("disk.raw")).unwrap();
        disk.set_len(DISK_BYTES).unwrap();
        disk.write_all_at(&noise(seed, 3 << 20), 1 << 20).unwrap();
        disk.write_all_at(&b"a line of a log\n".repeat(1 << 16), 8 << 20).unwrap();
        disk.write_all_at(&vec![0; 1 << 20], 12 << 20).unwrap();
        disk.write_all_at(&noise(seed + 1, 512), DISK_BYTES - 512).unwrap();
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let disk = File::options().write(true).open(self.path("disk.raw")).unwrap();
        disk.write_all_at(bytes, offset).unwrap();
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.path("disk.raw")).unwrap()
    }

    fn capture(&self, more: &[&str]) -> Value {
        let (store, disk) = (self.store(), format!("sda={}", self.text("disk.raw")));
        let mut words = vec!["capture", &store, "--item", "web01", "--disk", &disk];
        words.extend(more);
        serde_json::from_str(&self.good(&words)).unwrap()
    }

    fn points(&self) -> Vec<Value> {
        let text = self.good(&["points", &self.store(), "--item", "web01", "--output", "json"]);
        serde_json::from_str(&text).unwrap()
    }

    fn restore(&self, point: &str, out: &str, more: &[&str]) -> Vec<u8> {
        let (store, out) = (self.store(), self.text(out));
        let mut words = vec!["restore", &store, "--item", "web01", "--point", point];
        words.extend(["--disk", "sda", &out]);
        words.extend(more);
        self.good(&words);
        fs::read(&out).unwrap()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let items = self.path("store/items");
        let item = fs::read_dir(items).unwrap().next().unwrap().unwrap().path();
        let names = fs::read_dir(item.join("segments")).unwrap();
        names.map(|entry| entry.unwrap().path()).collect()
    }
}

/// Bytes that repeat nothing, from a seed (xorshift64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(len);
    bytes
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < DEADLINE, "{what} did not come in {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn end(mut child: Child) -> Output {
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    until("the tool's end", || child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn a_store_is_made_once_and_its_recovery_key_is_kept_beside_it() {
    let desk = Desk::new();
    let key = fs::metadata(desk.path("store.recovery-key.txt")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    assert!(!desk.path("store/store.recovery-key.txt").exists());

    desk.refused(&["init", &desk.store(), "--recovery-key", &desk.text("k")], 4, "LW-0108");
    fs::create_dir(desk.path("full")).unwrap();
    fs::write(desk.path("full/letter.txt"), "mine").unwrap();
    desk.refused(&["init", &desk.text("full")], 4, "--beside-other-files");
    assert_eq!(fs::read_dir(desk.path("full")).unwrap().count(), 1, "something was made");
    desk.good(&["init", &desk.text("full"), "--beside-other-files"]);
    assert_eq!(fs::read(desk.path("full/letter.txt")).unwrap(), b"mine");

    let lost = desk.text("nowhere/key.txt");
    desk.refused(&["init", &desk.text("new"), "--recovery-key", &lost], 2, "no folder");
    assert!(!desk.path("new").exists(), "a store was made whose recovery key nobody has");
    desk.refused(&["init", "ftp://bucket/prefix"], 2, "LW-0101");
}

/// F-046, F-150.
#[test]
fn captured_disks_come_back_byte_by_byte_and_only_what_changed_is_stored_again() {
    let desk = Desk::new();
    let before = fs::metadata(desk.path("disk.raw")).unwrap().modified().unwrap();
    let first = desk.capture(&[]);
    let original = desk.disk();
    desk.write((2 << 20) + 5, b"five");
    desk.write(20 << 20, &noise(9, 4096));
    let second = desk.capture(&[]);
    desk.write(1 << 20, &[0; 65_536]);
    fs::write(desk.path("list.json"), format!("[[{}, 65536]]", 1 << 20)).unwrap();
    let third = desk.capture(&["--changes", &format!("sda={}", desk.text("list.json"))]);
    let fourth = desk.capture(&[]);

    assert_eq!(desk.restore(text(&first["point"]), "1.raw", &[]), original);
    assert_eq!(desk.restore("latest", "4.raw", &[]), desk.disk());
    assert!(fs::metadata(desk.path("disk.raw")).unwrap().modified().unwrap() > before);
    let of = |done: &Value, what: &str| done[what].as_u64().unwrap();
    assert_eq!(of(&second, "bytes_changed"), 2 * 4096);
    assert!(of(&third, "bytes_read") <= 2 * 65_536, "{third}");
    assert_eq!(of(&third, "bytes_changed"), 0, "zeros carry no bytes: {third}");
    assert_eq!(of(&fourth, "bytes_changed"), 0);
    assert_eq!(desk.points().len(), 4);
    let sparse = fs::metadata(desk.path("4.raw")).unwrap();
    let allocated = std::os::unix::fs::MetadataExt::blocks(&sparse) * 512;
    assert!(allocated < 8 << 20, "holes became data: {allocated} bytes are allocated");

    let (one, four) = (text(&first["point"]).to_owned(), text(&fourth["point"]).to_owned());
    let words = ["diff", &desk.store(), "--item", "web01", "--from", &one, "--to", &four];
    let found: Value =
        serde_json::from_str(&desk.good(&[&words[..], &["--output", "json"]].concat())).unwrap();
    let ranges = serde_json::json!([[1 << 20, 65_536], [2 << 20, 4096], [20 << 20, 4096]]);
    assert_eq!(found[0]["ranges"], ranges);
}

/// F-046: what a first copy stores depends on the compression that was asked for, never on how many
/// threads there are or in which order they end.
#[test]
fn threads_and_compression_change_no_byte_of_a_disk() {
    let sent = |words: &[&str]| {
        let desk = Desk::new();
        let done = desk.capture(words);
        assert_eq!(desk.restore("latest", "out.raw", &["--workers", "3"]), desk.disk());
        done["bytes_sent"].as_u64().unwrap()
    };

    let alone = sent(&["--workers", "1"]);
    let together = sent(&["--workers", "7", "--compression", "1"]);
    let adapted = sent(&["--compression", "adaptive"]);
    let raw = sent(&["--compression", "raw"]);

    assert_eq!(alone, together);
    assert!(raw > alone + (900 << 10), "1 MiB of text is in it: {raw} after {alone}");
    assert!((alone / 2..raw).contains(&adapted), "{adapted}");
    let desk = Desk::new();
    let disk = format!("sda={}", desk.text("disk.raw"));
    let words = ["capture", &desk.store(), "--item", "web01", "--disk", &disk];
    desk.refused(
        &[&words[..], &["--compression", "2"]].concat(),
        2,
        "adaptive, raw, -7, -5, 1 or 3",
    );
    desk.refused(&[&words[..], &["--workers", "0"]].concat(), 2, "--workers");
}

/// Hash files that are lost, and those of a store that went on without them, are rebuilt.
#[test]
fn a_capture_without_its_cache_stores_no_more_than_one_with_it() {
    let desk = Desk::new();
    desk.capture(&[]);
    fs::remove_dir_all(desk.path("cache")).unwrap();
    desk.write(3 << 20, &noise(5, 4096));

    let done = desk.capture(&[]);

    assert_eq!(done["bytes_changed"], 4096, "{done}");
    assert_eq!(desk.restore("latest", "out.raw", &[]), desk.disk());
}

#[test]
fn a_disk_that_grows_and_a_disk_that_joins_are_captured_whole() {
    let desk = Desk::new();
    desk.capture(&[]);
    let disk = File::options().write(true).open(desk.path("disk.raw")).unwrap();
    disk.set_len(DISK_BYTES + (2 << 20)).unwrap();
    disk.write_all_at(b"the new end", DISK_BYTES + (2 << 20) - 4096).unwrap();
    fs::write(desk.path("second.raw"), noise(77, 1 << 20)).unwrap();
    fs::write(desk.path("none.json"), "[]").unwrap();
    let (second, none) = (desk.text("second.raw"), desk.text("none.json"));

    desk.capture(&[
        "--changes",
        &format!("sda={none}"),
        "--disk",
        &format!("sdb={second}"),
        "--changes",
        &format!("sdb={none}"),
    ]);

    assert_eq!(desk.restore("latest", "a.raw", &[]), desk.disk());
    let out = desk.text("b.raw");
    let words = ["restore", &desk.store(), "--item", "web01", "--point", "latest"];
    desk.good(&[&words[..], &["--disk", "sdb", &out]].concat());
    assert_eq!(fs::read(out).unwrap(), fs::read(second).unwrap());
}

/// Promise: a kill at any moment loses nothing and leaves nothing half.
#[test]
fn a_killed_capture_goes_on_where_it_was_and_leaves_no_half_point() {
    let desk = Desk::new();
    let disk = File::options().write(true).open(desk.path("disk.raw")).unwrap();
    disk.set_len(160 << 20).unwrap();
    disk.write_all_at(&noise(3, 128 << 20), 0).unwrap();
    let (store, disk) = (desk.store(), format!("sda={}", desk.text("disk.raw")));
    let words = ["capture", &store, "--item", "web01", "--disk", &disk];
    let mut child =
        desk.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let items = desk.path("store/items");
    let committed = || {
        let item = fs::read_dir(&items).ok()?.next()?.ok()?.path();
        let names = fs::read_dir(item.join("manifest")).ok()?.flatten();
        // What is still being put, and the hint beside the manifests, have other names.
        let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        Some(names.filter(|name| is_number(&name.file_name().to_string_lossy())).count())
    };
    // The timeline's manifest, and one of progress.
    until("committed progress", || committed().is_some_and(|count| count >= 2));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(desk.points().is_empty(), "half a capture is offered as a point");

    let done = desk.capture(&[]);

    assert!(done["bytes_changed"].as_u64().unwrap() < 120 << 20, "it began anew: {done}");
    assert_eq!(desk.restore("latest", "out.raw", &[]), desk.disk());
    desk.good(&["verify", &store]);
}

#[test]
fn without_the_key_file_only_the_recovery_key_opens_the_store() {
    let desk = Desk::new();
    desk.capture(&[]);
    fs::remove_file(desk.path("store/store.key")).unwrap();

    desk.refused(&["points", &desk.store()], 4, "LW-0406");
    let key = desk.text("store.recovery-key.txt");
    let other = Desk::new();
    let wrong = other.text("store.recovery-key.txt");
    desk.refused(&["points", &desk.store(), "--recovery-key", &wrong], 4, "LW-0406");
    assert_eq!(desk.restore("latest", "out.raw", &["--recovery-key", &key]), desk.disk());
    let mut child = desk
        .command(&["points", &desk.store(), "--recovery-key", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(&key).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("web01"));
}

/// E9.
#[test]
fn verify_names_the_bad_byte_and_its_points_and_a_restore_over_it_leaves_no_file() {
    let desk = Desk::new();
    let good = desk.capture(&[]);
    assert!(desk.good(&["verify", &desk.store()]).contains("good"));
    let known = desk.segments();
    desk.write(2 << 20, &noise(8, 1 << 20));
    let bad = desk.capture(&[]);
    let segment = desk.segments().into_iter().find(|path| !known.contains(path)).unwrap();
    let at = 4096 + 64 + 100;
    let file = File::options().read(true).write(true).open(&segment).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();

    let said = desk.run(&["verify", &desk.store(), "--output", "json"]);

    assert_eq!(said.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&said.stdout).unwrap();
    let damage = &found[0]["damages"][0];
    assert!(text(&damage["blob"]).ends_with(segment.file_name().unwrap().to_str().unwrap()));
    let from = damage["bytes"]["offset"].as_u64().unwrap();
    let len = damage["bytes"]["length"].as_u64().unwrap();
    assert!((from..from + len).contains(&at), "{damage}");
    assert_eq!(damage["points"], serde_json::json!([bad["point"]]));
    assert_eq!(damage["disk"]["offset"], 2 << 20);
    let out = desk.text("out.raw");
    let words = ["restore", &desk.store(), "--item", "web01", "--disk", "sda", &out];
    desk.refused(&[&words[..], &["--point", "latest"]].concat(), 1, "LW-0402");
    let left: Vec<_> = fs::read_dir(desk.path("")).unwrap().collect();
    let left = left.into_iter().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!left.into_iter().any(|name| name.contains("out.raw")), "half a file is left");
    desk.good(&[&words[..], &["--point", text(&good["point"])]].concat());
}

#[test]
fn a_restore_touches_no_existing_file_unless_told_so_in_words() {
    let desk = Desk::new();
    desk.capture(&[]);
    fs::write(desk.path("mine.raw"), "mine").unwrap();
    let (store, mine) = (desk.store(), desk.text("mine.raw"));
    let words = ["restore", &store, "--item", "web01", "--point", "latest", "--disk", "sda"];

    desk.refused(&[&words[..], &[&mine]].concat(), 4, "--replace-existing-file");
    assert_eq!(fs::read(&mine).unwrap(), b"mine");
    std::os::unix::fs::symlink(desk.path("elsewhere"), desk.path("link")).unwrap();
    let link = desk.text("link");
    desk.refused(&[&words[..], &[&link, "--replace-existing-file"]].concat(), 4, "no plain file");
    desk.good(&[&words[..], &[&mine, "--replace-existing-file"]].concat());
    assert_eq!(fs::read(&mine).unwrap(), desk.disk());
}

#[test]
fn every_image_format_holds_the_disk_as_qemu_img_reads_it() {
    let desk = Desk::new();
    desk.capture(&[]);
    for (word, format, unit) in [
        ("qcow2", "qcow2", 512),
        ("vmdk", "vmdk", 65_536),
        ("vhdx", "vhdx", 512),
        ("vhd", "vpc", 1 << 20),
    ] {
        desk.restore("latest", word, &["--format", word]);
        let back = desk.text("back.raw");
        let words = ["convert", "-f", format, "-O", "raw", &desk.text(word), &back];
        let done = Command::new("qemu-img").args(words).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let (mut bytes, disk) = (fs::read(&back).unwrap(), desk.disk());
        assert!(bytes.len() < disk.len() + unit, "{word} has {} bytes", bytes.len());
        if word == "vhd" {
            assert_eq!(bytes.len() % unit, 0, "Azure refuses a part of a MiB");
        }
        assert!(bytes[disk.len()..].iter().all(|byte| *byte == 0));
        bytes.truncate(disk.len());
        assert!(bytes == disk, "{word} holds another disk");
    }
}

#[test]
fn a_served_disk_reads_as_it_was_and_is_pinned_as_long_as_it_is_served() {
    let desk = Desk::new();
    desk.capture(&[]);
    let (store, socket) = (desk.store(), desk.text("disk.sock"));
    let words = ["serve", &store, "--item", "web01", "--point", "latest", "--disk", "sda"];
    let words = [&words[..], &["--socket", &socket]].concat();
    let mut child = desk.command(&words).stdout(Stdio::piped()).spawn().unwrap();
    until("the socket", || Path::new(&socket).exists());
    let pinned = desk.points()[0]["pinnedBy"].clone();
    assert!(text(&pinned[0]).contains("served"), "{pinned}");
    let uri = format!("nbd+unix:///?socket={socket}");
    let out = desk.text("served.raw");
    let copied =
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", &uri, &out]).output();
    assert!(copied.unwrap().status.success());
    assert_eq!(fs::read(&out).unwrap(), desk.disk());
    let mut said = String::new();
    let stdout = child.stdout.take().unwrap();
    assert!(end(child).status.success());
    std::io::BufReader::new(stdout).read_to_string(&mut said).unwrap();
    assert!(said.contains(&uri), "{said}");
    assert!(!Path::new(&socket).exists(), "the socket is left");
    assert_eq!(desk.points()[0]["pinnedBy"], serde_json::json!([]), "the pin is left");
}

#[test]
fn what_cannot_be_captured_is_refused_and_leaves_the_store_as_it_was() {
    let desk = Desk::new();
    desk.capture(&[]);
    let (store, disk) = (desk.store(), format!("sda={}", desk.text("disk.raw")));
    let words = ["capture", &store, "--item", "web01"];
    let all = |more: &[&'static str]| -> Vec<String> {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .chain(more.iter().map(|w| (*w).into()))
            .collect()
    };
    let refused = |words: Vec<String>, exit, code| {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        desk.refused(&words, exit, code);
    };
    refused(all(&["--disk", "sda=/nowhere/disk.raw"]), 1, "LW-0202");
    refused(all(&["--disk", "sda=/dev/null"]), 1, "LW-0202");
    refused(all(&["--disk", "=x"]), 2, "ID=PATH");
    let twice = [all(&["--disk"]), vec![disk.clone(), "--disk".into(), disk.clone()]].concat();
    refused(twice, 2, "LW-0101");
    fs::write(desk.path("odd.raw"), [1; 1000]).unwrap();
    let odd = format!("sda={}", desk.text("odd.raw"));
    refused([all(&["--disk"]), vec![odd]].concat(), 1, "LW-0202");
    fs::write(desk.path("list.json"), "[[0]]").unwrap();
    let list = format!("sda={}", desk.text("list.json"));
    let changes = vec![disk.clone(), "--changes".into(), list];
    refused([all(&["--disk"]), changes].concat(), 2, "LW-0101");
    refused(
        vec![
            "capture".into(),
            store.clone(),
            "--item".into(),
            String::new(),
            "--disk".into(),
            disk.clone(),
        ],
        2,
        "LW-0101",
    );
    refused(vec!["points".into(), desk.text("nothing")], 4, "LW-0103");
    refused(vec!["points".into(), store.clone(), "--item".into(), "web02".into()], 4, "web01");
    assert_eq!(desk.points().len(), 1);
    desk.good(&["verify", &store]);
}

/// Two writers of one store.
#[test]
fn a_store_with_a_live_owner_takes_no_capture_but_can_be_read() {
    let desk = Desk::new();
    desk.capture(&[]);
    let lock = File::open(desk.path("store/store.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (store, disk) = (desk.store(), format!("sda={}", desk.text("disk.raw")));

    let words = ["capture", &store, "--item", "web01", "--disk", &disk];
    desk.refused(&words, 4, "LW-0701");

    assert_eq!(desk.points().len(), 1);
    assert_eq!(desk.restore("latest", "out.raw", &[]), desk.disk());
    drop(lock);
    desk.good(&words);
}
