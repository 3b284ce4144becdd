//! `leeward store pin`, `unpin` and `prune` as their users run them: what is kept, what goes, and
//! what is refused.

#![allow(clippy::unwrap_used)]

mod desk;

use desk::Desk;
use leeward_model::{ItemId, VaultId};
use leeward_replica::{
    Store, SystemRandom, Unlock,
    storage::{BlobStore as _, LocalStore},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

const DISK_BYTES: u64 = 8 << 20;

impl Desk {
    /// With one point for each of `fills`: the byte that then fills half of the disk.
    fn new(fills: &[u8]) -> Desk {
        let desk = Desk::empty("lwp", &["store"]);
        desk.good(&["init", &desk.store()]);
        for fill in fills {
            let disk = File::create(desk.path("disk.raw")).unwrap();
            disk.set_len(DISK_BYTES).unwrap();
            let half: Vec<u8> = (0..DISK_BYTES / 2)
                .map(|at| fill.wrapping_add((at.wrapping_mul(0x9e37_79b9) >> 13) as u8))
                .collect();
            disk.write_all_at(&half, 0).unwrap();
            let name = format!("sda={}", desk.text("disk.raw"));
            desk.good(&["capture", &desk.store(), "--item", "web01", "--disk", &name]);
        }
        desk
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.good(words)).unwrap()
    }

    /// Ids of the points, oldest first.
    fn points(&self) -> Vec<String> {
        let store = self.store();
        let listed = self.json(&["points", &store, "--item", "web01", "--output", "json"]);
        let ids = listed.as_array().unwrap().iter().rev();
        ids.map(|point| point["point"].as_str().unwrap().to_owned()).collect()
    }

    fn prune(&self, more: &[&str]) -> Value {
        let store = self.store();
        let mut words = vec!["prune", &store, "--output", "json"];
        words.extend(more);
        self.json(&words)[0].clone()
    }

    fn stats(&self) -> Value {
        self.json(&["stats", &self.store(), "--output", "json"])["items"][0].clone()
    }
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path, out: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else {
            out.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_pinned_point_survives_pruning_and_who_let_it_go_is_kept() {
    let desk = Desk::new(&[1, 7, 13]);
    let (store, points) = (desk.store(), desk.points());
    let of = |verb: &'static str, why: &str| {
        let words = [verb, &store, "--item", "web01", "--point", &points[0], "--why", why];
        words.map(str::to_owned)
    };
    let run = |words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        desk.good(&words)
    };
    run(&of("pin", "the auditors want it"));
    let stored = desk.stats()["storedBytes"].as_u64().unwrap();

    let pruned = desk.prune(&["--keep", "0s", "--nobody-is-reading"]);

    assert_eq!(pruned["points"].as_array().unwrap().len(), 1);
    assert_eq!(desk.points(), [points[0].clone(), points[2].clone()]);
    assert!(desk.stats()["pins"][0]["why"].as_str().unwrap().contains("auditors"));
    desk.refused(&["pin", &store, "--item", "web01", "--point", &points[1], "--why", "x"], 4, "");
    desk.refused(
        &["pin", &store, "--item", "web01", "--point", "latest", "--why", " "],
        2,
        "--why",
    );
    run(&of("unpin", "they have it"));
    let gone = &desk.stats()["unpinned"][0];
    assert_eq!(gone["point"].as_str(), Some(points[0].as_str()));
    assert_eq!(gone["why"].as_str(), Some("they have it"));
    assert!(gone["who"].as_str().unwrap().starts_with("person "));
    let again: Vec<String> = of("unpin", "again").to_vec();
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    desk.refused(&again, 4, "there is none");

    let pruned = desk.prune(&["--keep", "0s", "--nobody-is-reading"]);

    assert_eq!(pruned["points"][0].as_str(), Some(points[0].as_str()));
    assert!(pruned["freedBytes"].as_u64().unwrap() > 0, "{pruned}");
    assert!(desk.stats()["storedBytes"].as_u64().unwrap() * 2 < stored);
    let out = desk.text("out.raw");
    desk.good(&["restore", &store, "--item", "web01", "--point", "latest", "--disk", "sda", &out]);
    assert!(fs::read(&out).unwrap() == fs::read(desk.path("disk.raw")).unwrap(), "wrong bytes");
    desk.good(&["verify", &store]);
}

#[test]
fn a_pin_of_somebody_who_reads_is_only_taken_off_by_force() {
    let desk = Desk::new(&[1]);
    let store = desk.store();
    let blobs = Arc::new(LocalStore::open_reading(desk.path("store")));
    let opened = Store::open(blobs, None, &Unlock::KeyFile, Arc::new(SystemRandom)).unwrap();
    let mut reader = opened.item_read(opened.items().unwrap()[0]).unwrap();
    let point = reader.newest_point().unwrap().id;
    let now = leeward_model::UnixMillis(1);
    reader.pin(point, "instance 5", "runs from it", now).unwrap();
    let words =
        ["unpin", &store, "--item", "web01", "--point", "latest", "--why", "it hangs"].to_vec();

    desk.refused(&words, 4, "runs from it");
    assert_eq!(reader.pins().unwrap().len(), 1);
    desk.good(&[&words[..], &["--although-it-is-in-use"]].concat());

    assert!(reader.pins().unwrap().is_empty());
    assert_eq!(reader.unpinned().unwrap()[0].pin.who, "instance 5");
}

#[test]
fn a_dry_run_tells_what_would_go_and_changes_nothing() {
    let desk = Desk::new(&[1, 7, 13]);
    let mut before = BTreeMap::new();
    files(&desk.path("store"), &mut before);

    let plan = desk.prune(&["--keep", "0s", "--dry-run"]);

    let mut after = BTreeMap::new();
    files(&desk.path("store"), &mut after);
    assert!(before == after, "a dry run changed the store");
    assert_eq!(plan["points"].as_array().unwrap().len(), 2);
    assert_eq!(plan["left"], 1);
    let promised = plan["freedBytes"].as_u64().unwrap();
    let done = desk.prune(&["--keep", "0s", "--nobody-is-reading"]);
    let freed = done["freedBytes"].as_u64().unwrap();
    assert_eq!(done["points"], plan["points"]);
    assert!(promised > 0 && freed * 10 >= promised * 9, "promised {promised}, freed {freed}");
}

#[test]
fn without_the_word_that_nobody_reads_the_bytes_wait() {
    let desk = Desk::new(&[1, 7]);

    let pruned = desk.prune(&["--keep", "0s"]);

    assert_eq!(pruned["freedBytes"], 0, "{pruned}");
    assert!(pruned["waitingBytes"].as_u64().unwrap() > 0, "{pruned}");
    assert!(desk.stats()["waitingBytes"].as_u64().unwrap() > 0);
    desk.good(&["verify", &desk.store()]);
}

#[test]
fn a_store_that_a_server_keeps_is_not_pruned_by_the_way() {
    let desk = Desk::new(&[1, 7]);
    let store = desk.store();
    let blobs = Arc::new(LocalStore::open(desk.path("store")).unwrap());
    let lock = blobs.lock("store.lock").unwrap();
    let held = ["prune", &store, "--keep", "0s", "--i-know-a-server-owns-it"];
    desk.refused(&held, 4, "locked");
    drop(lock);
    let random = Arc::new(SystemRandom);
    let opened = Store::open(blobs.clone(), None, &Unlock::KeyFile, random.clone()).unwrap();
    let owner = opened.identity().owner;
    let writer = Store::open_writer(blobs, owner, &Unlock::KeyFile, random).unwrap();
    // A server's items have no label: the machine's name is in their points.
    drop(writer.item_create(VaultId::from_u128(1), ItemId::from_u128(2), None).unwrap());
    drop(writer);

    desk.refused(&["prune", &store, "--keep", "0s"], 4, "--i-know-a-server-owns-it");
    assert_eq!(desk.points().len(), 2, "something was pruned before the refusal");
    desk.good(&["prune", &store, "--keep", "0s", "--i-know-a-server-owns-it"]);

    assert_eq!(desk.points().len(), 1);
    desk.refused(&["prune", &store, "--keep", "14 days"], 2, "14d");
    desk.refused(&["prune", &store, "--thin", "2h:2m,1d:3m"], 2, "multiple");
}
