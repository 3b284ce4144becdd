//! Keys of a store and the recovery kit, as their users handle them: the program and files on a
//! disk. No server runs here.

#![allow(clippy::unwrap_used)]

mod desk;

use desk::Desk;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

const DISK_BYTES: u64 = 4 << 20;

impl Desk {
    /// With a store and a disk.
    fn new() -> Desk {
        let desk = Desk::empty("lwk", &[]);
        desk.good(&["store", "init", &desk.store()]);
        File::create(desk.path("disk.raw")).unwrap().set_len(DISK_BYTES).unwrap();
        desk
    }

    fn json(&self, words: &[&str]) -> Value {
        let words: Vec<&str> = words.iter().copied().chain(["--output", "json"]).collect();
        serde_json::from_str(&self.good(&words)).unwrap()
    }

    /// Writes `fill` over a part of the disk and makes a point of it; returns its id.
    fn capture(&self, fill: u8) -> String {
        let disk = File::options().write(true).open(self.path("disk.raw")).unwrap();
        disk.write_all_at(&vec![fill; 1 << 18], u64::from(fill) << 16).unwrap();
        let source = format!("sda={}", self.text("disk.raw"));
        let words = ["store", "capture", &self.store(), "--item", "web01", "--disk", &source];
        let done: Value = serde_json::from_str(&self.good(&words)).unwrap();
        fs::copy(self.path("disk.raw"), self.path(&format!("after-{fill}"))).unwrap();
        done["point"].as_str().unwrap().to_owned()
    }

    /// Whether the point that was captured with `fill` reads as its disk was, with `more` options.
    fn check(&self, point: &str, fill: u8, more: &[&str]) {
        let (store, out) = (self.store(), self.text("out.raw"));
        let mut words = vec!["store", "restore", &store, "--item", "web01", "--point", point];
        words.extend(["--disk", "sda", &out, "--replace-existing-file"]);
        words.extend(more);
        self.good(&words);
        let expected = fs::read(self.path(&format!("after-{fill}"))).unwrap();
        assert!(fs::read(&out).unwrap() == expected, "point {point} reads otherwise");
    }

    fn item(&self) -> PathBuf {
        let mut items = fs::read_dir(self.path("store/items")).unwrap();
        items.next().unwrap().unwrap().path()
    }

    fn passphrase(&self, text: &str) -> String {
        fs::write(self.path("passphrase"), text).unwrap();
        self.text("passphrase")
    }
}

/// Every file below `folder`.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                all.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    all
}

/// F-159: new data keys for what comes, old points as before.
#[test]
fn old_points_stay_readable_through_new_data_keys() {
    let desk = Desk::new();
    let first = desk.capture(1);
    let store = desk.store();

    let made = desk.json(&["store", "rekey", &store, "--data-keys"]);
    let second = desk.capture(2);
    desk.good(&["store", "rekey", &store, "--data-keys", "--item", "web01"]);
    let third = desk.capture(3);

    assert_eq!(made["dataKeys"][0]["version"], 2);
    assert_eq!(made["keyGeneration"], 1);
    for (point, fill) in [(&first, 1), (&second, 2), (&third, 3)] {
        desk.check(point, fill, &[]);
    }
    desk.good(&["store", "verify", &store]);
    let recovery = desk.text("store.recovery-key.txt");
    desk.check(&second, 2, &["--recovery-key", &recovery]);
    // Without the second version, exactly what was sealed with it is closed, and is named.
    fs::remove_file(desk.item().join("keyring/0000000002-0000000001")).unwrap();
    desk.check(&first, 1, &[]);
    let said = desk.good_or_damaged(&["store", "verify", &store]);
    assert!(said.contains("data key 2") && said.contains(&second), "{said}");
    assert!(!said.contains(&format!("need it: {first}")), "{said}");
}

impl Desk {
    fn good_or_damaged(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "it is damaged");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// F-159: recipients change; who is left out opens nothing, everybody else everything.
#[test]
fn a_replaced_recovery_key_and_key_file_open_nothing() {
    let desk = Desk::new();
    let point = desk.capture(1);
    let store = desk.store();
    let old = desk.text("store.recovery-key.txt");
    let old_file = fs::read(desk.path("store/store.key")).unwrap();

    let done = desk.json(&["store", "rekey", &store, "--recovery", "--new-key-file"]);

    let new = desk.text("store.recovery-key-2.txt");
    assert_eq!(done["recoveryKeyFile"], new.as_str());
    assert_eq!(done["rewrapped"]["keys"], 1);
    assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o600);
    desk.check(&point, 1, &[]);
    desk.check(&point, 1, &["--recovery-key", &new]);
    desk.refused(&["store", "points", &store, "--recovery-key", &old], 4, "LW-0406");
    let second = desk.capture(2);
    desk.check(&second, 2, &["--recovery-key", &new]);
    // The former key file, put back by somebody who kept it, is deleted by the next writer and
    // opens nothing: not by its place, not by its content.
    fs::write(desk.path("store/store.key"), &old_file).unwrap();
    desk.check(&second, 2, &[]);
    fs::write(desk.path("former"), &old_file).unwrap();
    let former = desk.text("former");
    desk.refused(&["store", "points", &store, "--recovery-key", &former], 4, "LW-0406");

    // The key file is lost: the recovery key makes another.
    fs::remove_file(desk.path("store/store.key.0000000002")).unwrap();
    desk.refused(&["store", "points", &store], 4, "LW-0406");
    desk.good(&["store", "rekey", &store, "--new-key-file", "--recovery-key", &new]);
    desk.check(&point, 1, &[]);
    desk.check(&second, 2, &["--recovery-key", &new]);
}

#[test]
fn a_second_recovery_key_opens_as_the_first_one_does() {
    let desk = Desk::new();
    let point = desk.capture(1);
    let (store, other) = (desk.store(), desk.text("other.txt"));

    let words = ["store", "rekey", &store, "--another-recovery", "--new-recovery-key", &other];
    let done = desk.json(&words);

    assert_eq!(done["recipients"].as_array().unwrap().len(), 3);
    for key in [desk.text("store.recovery-key.txt"), other.clone()] {
        desk.check(&point, 1, &["--recovery-key", &key]);
    }
    let said = desk.refused(&words, 4, "LW-0108");
    assert!(said.contains("never overwritten"), "{said}");
}

#[test]
fn rekey_says_what_it_needs_and_leaves_a_store_in_use_alone() {
    let desk = Desk::new();
    desk.capture(1);
    let store = desk.store();
    desk.refused(&["store", "rekey", &store], 2, "LW-0101");
    let before = files(&desk.path("store"));
    let lock = File::options().write(true).open(desk.path("store/store.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();

    desk.refused(&["store", "rekey", &store, "--recovery"], 4, "LW-0701");
    desk.refused(&["store", "shred", &store, "--item", "web01"], 4, "LW-0701");
    assert!(before == files(&desk.path("store")), "nothing was changed");
    assert!(!desk.path("store.recovery-key-2.txt").exists());
    // A data key is put beside the others: that may be done beside a server.
    desk.good(&["store", "rekey", &store, "--data-keys"]);
}

/// F-158: an item's keys are destroyed first, and with them everything that anybody kept of it.
#[test]
fn a_shredded_item_is_gone_also_from_a_copy_of_its_data() {
    let desk = Desk::new();
    desk.capture(1);
    let store = desk.store();
    desk.good(&["store", "rekey", &store, "--data-keys"]);
    desk.capture(2);
    let item = desk.item();
    let copy: BTreeMap<_, _> = files(&item)
        .into_iter()
        .filter(|(path, _)| !path.ends_with("keys") && !path.to_string_lossy().contains("keyring"))
        .collect();
    assert!(copy.len() >= 4, "{:?}", copy.keys());

    let words = ["store", "shred", &store, "--item", "web01"];
    let said = desk.refused(&words, 2, "LW-0101");
    assert!(said.contains("--yes-destroy web01"), "{said}");
    let wrong: Vec<_> = words.iter().copied().chain(["--yes-destroy", "web02"]).collect();
    desk.refused(&wrong, 2, "LW-0101");
    assert_eq!(files(&item).len(), copy.len() + 2, "nothing is gone yet");
    let right: Vec<_> = words.iter().copied().chain(["--yes-destroy", "web01"]).collect();
    let done = desk.json(&right);

    assert_eq!((&done["wrappedKeys"], &done["points"]), (&2.into(), &2.into()));
    assert!(done["bytes"].as_u64().unwrap() > 8192);
    assert!(done["mayAlsoBeIn"].as_array().unwrap().len() >= 3);
    assert!(!item.exists());
    for (path, bytes) in copy {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let recovery = desk.text("store.recovery-key.txt");
    let id = item.file_name().unwrap().to_str().unwrap().to_owned();
    for name in ["web01", &id] {
        let serve = ["store", "points", &store, "--item", name, "--recovery-key", &recovery];
        desk.refused(&serve, 4, "LW-0103");
        desk.refused(&["store", "points", &store, "--item", name], 4, "LW-0103");
    }
    // What is left of it can be cleaned up by its id, without any key.
    desk.good(&["store", "shred", &store, "--item", &id, "--yes-destroy", &id]);
    assert!(!item.exists());
}

/// Decision 5: the kit and its passphrase open the store, with everything else gone.
#[test]
fn a_kit_alone_opens_the_store() {
    let desk = Desk::new();
    let point = desk.capture(1);
    let (store, kit) = (desk.store(), desk.text("kit.txt"));
    let secret = desk.passphrase("three plain words\n");
    let with = ["--passphrase-file", &secret];
    let create = ["kit", "create", "--store", &store, "--out", &kit, with[0], with[1]];

    let made = desk.json(&create);
    desk.refused(&create, 4, "LW-0108");

    let recovery = fs::read_to_string(desk.path("store.recovery-key.txt")).unwrap();
    let page = fs::read_to_string(desk.path("kit.txt.html")).unwrap();
    let text = fs::read_to_string(&kit).unwrap();
    for shown in [&page, &text] {
        assert!(!shown.contains(recovery.trim()), "no secret in the clear");
        assert!(!shown.contains("leeward-recovery-1"), "no secret in the clear");
    }
    let fingerprint = made["recoveryKeyFingerprint"].as_str().unwrap();
    assert!(page.contains(&store) && page.contains(fingerprint), "{page}");
    assert!(page.contains("leeward store restore"), "{page}");
    assert!(page.contains("Break-glass account</th><td>none: the kit was not made"), "{page}");
    assert_eq!(page.matches("<li>").count(), 3 + 10, "what to do first, and ten commands");
    assert_eq!(fs::metadata(&kit).unwrap().permissions().mode() & 0o777, 0o600);

    let tested = desk.json(&["kit", "test", &kit, "--store", &store, with[0], with[1]]);
    assert_eq!((&tested["points"], &tested["recorded"]), (&1.into(), &true.into()));

    // Everything else is gone: the key file, the printed key, the cache. The page will do.
    fs::remove_file(desk.path("store/store.key")).unwrap();
    fs::remove_file(desk.path("store.recovery-key.txt")).unwrap();
    fs::remove_file(&kit).unwrap();
    let (page, key) = (desk.text("kit.txt.html"), desk.text("key.txt"));
    desk.good(&["kit", "open", &page, "--recovery-key-to", &key, with[0], with[1]]);
    desk.check(&point, 1, &["--recovery-key", &key]);
    desk.refused(
        &["kit", "open", &page, "--recovery-key-to", &key, with[0], with[1]],
        4,
        "LW-0108",
    );
}

/// A kit of before a change of keys does not pass, and one that cannot be opened changes nothing.
#[test]
fn a_kit_of_before_a_change_of_keys_is_worthless_and_says_so() {
    let desk = Desk::new();
    desk.capture(1);
    let (store, kit) = (desk.store(), desk.text("kit.txt"));
    let secret = desk.passphrase("three plain words");
    let with = ["--passphrase-file", &secret];
    desk.good(&["kit", "create", "--store", &store, "--out", &kit, with[0], with[1]]);
    let test = ["kit", "test", &kit, "--store", &store, with[0], with[1]];
    // New data keys are opened by it too.
    desk.good(&["store", "rekey", &store, "--data-keys"]);
    desk.capture(2);
    assert_eq!(desk.json(&test)["points"], 2);

    desk.good(&["store", "rekey", &store, "--recovery"]);
    let said = desk.refused(&test, 4, "LW-0406");
    assert!(said.contains("not one of those that it is locked for"), "{said}");

    let other = desk.text("kit2.txt");
    desk.good(&["kit", "create", "--store", &store, "--out", &other, with[0], with[1]]);
    desk.good(&["kit", "test", &other, with[0], with[1]]);
    desk.passphrase("three other words");
    desk.refused(&["kit", "test", &other, with[0], with[1]], 4, "LW-0406");
    desk.passphrase("short");
    let third = desk.text("kit3.txt");
    let create = ["kit", "create", "--store", &store, "--out", &third, with[0], with[1]];
    let said = desk.refused(&create, 2, "LW-0101");
    assert!(said.contains("12 characters"), "{said}");
    assert!(!desk.path("kit3.txt").exists());
}

/// Offline seeding: a file and its key carry an item to another store, and later what is new.
#[test]
fn an_exported_item_is_imported_into_another_store_and_continued() {
    let desk = Desk::new();
    let (store, file, item) = (desk.store(), desk.text("item.lwx"), "web01");
    let first = desk.capture(1);
    desk.good(&["store", "rekey", &store, "--data-keys"]);
    let second = desk.capture(2);
    let made = desk.json(&["store", "export", &store, "--item", item, &file]);
    assert_eq!((&made["points"], &made["segments"]), (&2.into(), &2.into()));
    desk.refused(&["store", "export", &store, "--item", item, &file], 4, "LW-0108");
    let third = desk.capture(3);
    let more = desk.text("more.lwx");
    let words = ["store", "export", &store, "--item", item, "--since", &second, &more];
    assert_eq!(desk.json(&words)["segments"], 1);

    // The other site: another store, another key file.
    let there = desk.text("there");
    desk.good(&["store", "init", &there]);
    desk.refused(&["store", "import", &more, &there], 2, "LW-0101");
    let lost = desk.text("store.recovery-key.txt");
    desk.refused(&["store", "import", &file, "--key", &lost, &there], 4, "LW-0406");
    assert_eq!(desk.json(&["store", "points", &there]), serde_json::json!([]));
    let done = desk.json(&["store", "import", &file, &there]);
    assert_eq!((&done["points"], &done["segments"]), (&2.into(), &2.into()));
    assert_eq!(desk.json(&["store", "import", &file, &there])["points"], 0, "again is nothing");
    let done = desk.json(&["store", "import", &more, &there]);
    assert_eq!((&done["points"], &done["segments"]), (&1.into(), &1.into()));

    desk.good(&["store", "verify", &there]);
    fs::rename(desk.path("store"), desk.path("gone")).unwrap();
    fs::rename(&there, desk.path("store")).unwrap();
    for (point, fill) in [(&first, 1), (&second, 2), (&third, 3)] {
        desk.check(point, fill, &[]);
    }
    desk.check(&third, 3, &["--recovery-key", &desk.text("there.recovery-key.txt")]);
    // It goes on there, and then what comes from the first store is another history.
    desk.capture(4);
    fs::rename(desk.path("gone"), &there).unwrap();
    let last = desk.text("last.lwx");
    let source = format!("sda={}", desk.text("disk.raw"));
    fs::write(desk.path("disk.raw"), vec![9; DISK_BYTES as usize]).unwrap();
    desk.good(&["store", "capture", &there, "--item", item, "--disk", &source]);
    desk.good(&["store", "export", &there, "--item", item, &last]);
    let said = desk.refused(&["store", "import", &last, &store], 2, "LW-0101");
    assert!(said.contains("written to by itself"), "{said}");
    desk.good(&["store", "verify", &store]);
}

/// A damaged or shortened export changes nothing.
#[test]
fn an_export_that_is_not_whole_is_refused_and_leaves_nothing() {
    let desk = Desk::new();
    let (store, file, there) = (desk.store(), desk.text("item.lwx"), desk.text("there"));
    desk.capture(1);
    desk.good(&["store", "export", &store, "--item", "web01", &file]);
    desk.good(&["store", "init", &there]);
    let before = files(&desk.path("there"));
    let whole = fs::read(&file).unwrap();
    let mut wrong = Vec::new();
    for at in (0..whole.len()).step_by(whole.len() / 17 + 1).chain([0, 5, 79, 90, 300]) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        wrong.push(flipped);
        wrong.push(whole[..at].to_vec());
    }
    wrong.push([whole.as_slice(), b"x"].concat());
    wrong.push(whole[..whole.len() - 1].to_vec());

    for (number, bytes) in wrong.iter().enumerate() {
        fs::write(&file, bytes).unwrap();
        let output = desk.run(&["store", "import", &file, &there]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "case {number} was taken");
        assert!(said.contains("LW-0402") || said.contains("LW-0406"), "case {number}: {said}");
        let after: Vec<_> = files(&desk.path("there")).into_keys().collect();
        let extra: Vec<_> = after
            .into_iter()
            .filter(|path| !before.contains_key(path) && !path.to_string_lossy().ends_with("lock"))
            .collect();
        assert!(extra.is_empty(), "case {number} left {extra:?}");
    }
    fs::write(&file, &whole).unwrap();
    desk.good(&["store", "import", &file, &there]);
}

/// A store of three segments, ascending, each damaged in another way, and a copy of it in which
/// the first two are good.
struct Damaged {
    desk: Desk,
    points: Vec<String>,
    segments: Vec<PathBuf>,
}

impl Damaged {
    fn new() -> Damaged {
        let desk = Desk::new();
        let (store, copy) = (desk.store(), desk.text("copy"));
        let points: Vec<String> = (1..=3).map(|fill| desk.capture(fill)).collect();
        desk.good(&["store", "rekey", &store, "--data-keys"]);
        assert!(Command::new("cp").args(["-a", &store, &copy]).status().unwrap().success());
        let all = files(&desk.path("store/items")).into_iter();
        let segments = all.filter(|(_, bytes)| bytes.starts_with(b"LWSEGMNT"));
        let segments: Vec<PathBuf> = segments.map(|(path, _)| path).collect();
        assert_eq!(segments.len(), 3);
        // In one the last byte, which is the footer's; in the others a byte of the first record.
        flip(&segments[0], true);
        flip(&segments[1], false);
        flip(&segments[2], false);
        let damaged = Damaged { desk, points, segments };
        flip(&damaged.in_copy(2), false);
        damaged
    }

    fn in_copy(&self, segment: usize) -> PathBuf {
        let below = self.segments[segment].strip_prefix(self.desk.path("store")).unwrap();
        self.desk.path("copy").join(below)
    }
}

fn flip(path: &Path, from_end: bool) {
    let mut bytes = fs::read(path).unwrap();
    let at = if from_end { bytes.len() - 1 } else { 4096 + 100 };
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// What is damaged is put right from a copy or dropped by name, and only when told so.
#[test]
fn a_damaged_segment_is_mended_from_a_copy_or_its_points_are_dropped() {
    let damaged = Damaged::new();
    let Damaged { desk, points, segments } = &damaged;
    let (store, copy) = (desk.store(), desk.text("copy"));
    let litter = desk.path("store/items/.new-1-2");
    fs::write(&litter, "half").unwrap();
    let before = files(&desk.path("store"));

    let shown = desk.run(&["store", "repair", &store, "--from", &copy, "--output", "json"]);
    assert_eq!(shown.status.code(), Some(1), "there is damage");
    assert!(before == files(&desk.path("store")), "it only looked");
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let mut words: Vec<&str> = shown["items"][0]["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|segment| segment["records"].as_str().unwrap())
        .collect();
    words.sort_unstable();
    assert_eq!(words, ["footer only", "good in the copy", "not found"]);
    assert_eq!(shown["temporaryFiles"], 1);
    let lost = shown["items"][0]["lostPoints"].as_array().unwrap().clone();
    assert!(!lost.is_empty());

    let mend = ["store", "repair", &store, "--from", &copy, "--yes-repair"];
    assert_eq!(desk.run(&mend).status.code(), Some(1), "one segment stays damaged");
    assert!(!litter.exists() && !segments[0].exists() && !segments[1].exists());
    for (point, fill) in points.iter().zip(1..) {
        if !lost.contains(&point.as_str().into()) {
            desk.check(point, fill, &[]);
        }
    }
    let order: Vec<Value> = desk
        .json(&["store", "points", &store])
        .as_array()
        .unwrap()
        .iter()
        .map(|point| point["point"].clone())
        .collect();
    let newest_first: Vec<Value> = points.iter().rev().map(|id| id.as_str().into()).collect();
    assert_eq!(order, newest_first, "the order of the points is as before");

    let drop = [&mend[..], &["--drop-damaged-points"]].concat();
    desk.run(&drop);
    let left = desk.json(&["store", "points", &store]);
    assert_eq!(left.as_array().unwrap().len(), points.len() - lost.len());
    // The last copy puts everything else right.
    flip(&damaged.in_copy(2), false);
    desk.good(&mend);
    desk.good(&["store", "verify", &store]);
    assert!(desk.good(&["store", "repair", &store]).contains("good"));
}

#[test]
fn what_is_no_kit_is_refused() {
    let desk = Desk::new();
    let secret = desk.passphrase("three plain words");
    let with = ["--passphrase-file", &secret];
    let armour = |body: &str| {
        format!(
            "-----BEGIN LEEWARD RECOVERY KIT-----\n{body}\n-----END LEEWARD RECOVERY KIT-----\n"
        )
    };
    let none = desk.text("none");
    desk.refused(&["kit", "open", &none, with[0], with[1]], 4, "LW-0103");
    for text in ["", "a letter", &armour(""), &armour("AAAA"), &armour("!"), &"x".repeat(300_000)] {
        let path = desk.text("no-kit");
        fs::write(&path, text).unwrap();
        desk.refused(&["kit", "open", &path, with[0], with[1]], 2, "LW-0101");
    }
}
