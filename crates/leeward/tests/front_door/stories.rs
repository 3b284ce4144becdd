//! Bad luck of protected machines: disks that are missing, shared or resized, jobs in each other's
//! way, restarts of either end, a reboot without contact, clocks that are an hour off.

use super::{
    Room, Running, arguments_of, files_below, processes_of, signal,
    site::{Site, host_start, host_words, image_make, image_resize, machine_make},
    until,
    words::{assert_refused, assert_says, assert_whole, refused},
};
use leeward::trust::permits::PermitKey;
use leeward_model::{Code, Problem, StartPermit};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

pub const MIB: u64 = 1 << 20;
pub const HOST: &str = "slope";
pub const MACHINE: &str = "web01";
/// A point that never was.
const NO_POINT: &str = "00000000-0000-4000-8000-00000000dead";

/// A recovery site and a host with a running machine of two disks, not protected yet.
pub struct Pair {
    pub room: Room,
    pub site: Site,
    pub host: Option<Running>,
}

impl Pair {
    pub async fn new(more: &str) -> Pair {
        let room = Room::new();
        let site = Site::start(&room, "up").await;
        Pair::at(room, site, more).await
    }

    /// As [`Self::new`], at a site that runs already.
    pub async fn at(room: Room, site: Site, more: &str) -> Pair {
        site.prepare().await;
        site.map().await;
        let (key, _) = site.key(15).await;
        let host = host_start(&room, HOST, &site.address, Some(&key));
        site.connection_wait(HOST, "Connected").await;
        let pair = Pair { room, site, host: Some(host) };
        let folder = pair.folder();
        let machine = machine_make(&folder, MACHINE, &[("a", "a.raw"), ("b", "b.raw")], more);
        image_make(&machine.join("a.raw"), 16 * MIB, 4 << 20);
        image_make(&machine.join("b.raw"), 8 * MIB, 1 << 20);
        pair.machine_start().await;
        pair
    }

    pub fn folder(&self) -> std::path::PathBuf {
        self.room.path(HOST)
    }

    pub fn image(&self, disk: &str) -> std::path::PathBuf {
        self.folder().join("machines").join(MACHINE).join(format!("{disk}.raw"))
    }

    pub async fn machine_start(&self) {
        let folder = self.room.text(HOST);
        let ended = self.room.run(&["host", "start", MACHINE, "--data", &folder]).await;
        assert!(ended.ok, "{}", ended.said);
    }

    /// Processes of QEMU that run the host's own machines.
    pub fn qemus(&self) -> Vec<u32> {
        let all = processes_of(&self.folder());
        all.into_iter().filter(|pid| arguments_of(*pid).starts_with("qemu-system")).collect()
    }

    /// Cuts the machine's power.
    pub async fn machine_kill(&self) {
        for pid in self.qemus() {
            signal(pid, Signal::KILL);
        }
        until("QEMU's end", || async { self.qemus().is_empty().then_some(()) }).await;
    }

    pub async fn protect(&self) -> Value {
        let machine = self.site.machine(MACHINE).await;
        let id = machine["id"].as_str().unwrap();
        assert_eq!(self.site.enable(MACHINE, id).await.unwrap().status, 202);
        self.site
            .item_wait(MACHINE, "protection", |item| item["protectionState"] == "Protected")
            .await
    }

    /// Waits until a point is committed that is newer than now.
    pub async fn newer_point(&self) -> Value {
        let item = self.site.item(MACHINE).await;
        let before = lsn(&item);
        self.site.item_wait(MACHINE, "a newer point", |item| lsn(item) > before).await
    }
}

pub fn details<'a>(item: &'a Value, key: &str) -> &'a Value {
    &item["providerSpecificDetails"][key]
}

pub fn lsn(item: &Value) -> u64 {
    details(item, "leewardNewestPoint")["lsn"].as_u64().unwrap_or(0)
}

fn sent(item: &Value) -> u64 {
    details(item, "leewardSentBytes").as_u64().unwrap()
}

fn sizes(point: &Value) -> Vec<u64> {
    let disks = details(&point["properties"], "leewardDisks").as_array().unwrap().clone();
    disks.iter().map(|disk| disk["sizeBytes"].as_u64().unwrap()).collect()
}

/// The problem by which a job failed.
fn failure(job: &Value) -> Problem {
    assert_eq!(job["properties"]["state"], "Failed", "{job:#}");
    let error = &job["properties"]["errors"][0];
    let details = &error["serviceErrorDetails"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Problem {
        code: text(&details["code"]),
        what: text(&details["message"]),
        cause: text(&details["possibleCauses"]),
        now: text(&error["leewardCurrentState"]),
        todo: text(&details["recommendedAction"]),
    }
}

// ---------------------------------------------------------------------------------------------

/// F-096
#[tokio::test]
async fn machines_that_cannot_be_used_are_listed_refused_and_never_half_started() {
    let pair = Pair::new("").await;
    let (site, folder) = (&pair.site, pair.folder());
    machine_make(&folder, "lost", &[("a", "gone.raw")], "");
    let twin = machine_make(&folder, "twin", &[("a", "t.raw"), ("b", "../twin/t.raw")], "");
    image_make(&twin.join("t.raw"), MIB, 0);
    let left = machine_make(&folder, "left", &[("a", "shared.raw")], "");
    image_make(&left.join("shared.raw"), MIB, 0);
    machine_make(&folder, "right", &[("a", "../left/shared.raw")], "");
    machine_make(&folder, "broken", &[], "cpus = \"many\"");
    let running = pair.qemus();
    let data = pair.room.text(HOST);
    for (name, code) in [
        ("lost", Code::DISK_MISSING),
        ("twin", Code::DISK_TWICE),
        ("left", Code::DISK_TWICE),
        ("right", Code::DISK_TWICE),
        ("broken", Code::MACHINE_INVALID),
        ("nobody", Code::MACHINE_UNKNOWN),
        ("../web01", Code::MACHINE_UNKNOWN),
        ("..", Code::MACHINE_UNKNOWN),
    ] {
        let ended = pair.room.run(&["host", "start", name, "--data", &data]).await;
        assert_refused(&ended, code);
        let sure = ["host", "start", name, "--data", &data, "--i-am-sure"];
        assert_refused(&pair.room.run(&sure).await, code);
        assert_eq!(pair.qemus(), running, "{name} left a process behind");
        assert!(!folder.join("permits").join(format!("{name}.json")).exists());
    }
    for (name, code) in [
        ("lost", Code::DISK_MISSING),
        ("twin", Code::DISK_TWICE),
        ("left", Code::DISK_TWICE),
        ("right", Code::DISK_TWICE),
        ("broken", Code::MACHINE_INVALID),
    ] {
        let machine = site.machine(name).await;
        let obstacles = machine["properties"]["protectionReadinessErrors"].as_array().unwrap();
        assert!(obstacles[0].as_str().unwrap().starts_with(code.code), "{machine}");
        let enabled = site.enable(name, machine["id"].as_str().unwrap()).await.unwrap();
        let job = site.job_wait(&enabled.job.unwrap()).await;
        assert_whole(&failure(&job), code);
    }
    until("the refused items to be gone", || async {
        site.client.list("replicationProtectedItems").await.unwrap().is_empty().then_some(())
    })
    .await;
    assert!(fs::read_dir(folder.join("items")).unwrap().next().is_none());
    let replicas = files_below(&site.data.join("store"), "");
    assert!(
        !replicas.iter().any(|path| path.to_string_lossy().contains("manifest")),
        "{replicas:?}"
    );
    // A machine that goes away is no longer listed.
    fs::remove_dir_all(folder.join("machines/lost")).unwrap();
    let path = format!("{}/replicationProtectableItems", site.container().await);
    until("the lost machine to be gone", || async {
        let found = site.client.list(&path).await.unwrap();
        found.iter().all(|one| one["properties"]["friendlyName"] != "lost").then_some(())
    })
    .await;
}

// ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_the_state_of_an_item_does_not_allow_is_refused_and_names_what_is_in_the_way() {
    let more = "[probe]\nconsole_contains = \"never said\"\ntimeout_seconds = 170\n";
    let pair = Pair::new(more).await;
    let site = &pair.site;
    let machine = site.machine(MACHINE).await;
    let id = machine["id"].as_str().unwrap().to_owned();
    site.enable(MACHINE, &id).await.unwrap();
    for name in [MACHINE, "other"] {
        refused(site.enable(name, &id).await, 409, Code::NAME_TAKEN);
    }
    let early = site.operate(MACHINE, "unplannedFailover", json!({})).await;
    let first = match early {
        Err(leeward::client::ClientError::Refused { problem, .. }) => problem,
        other => panic!("a failover without any point was accepted: {other:?}"),
    };
    let known = [Code::NO_POINT, Code::NOT_POSSIBLE_NOW, Code::ITEM_BUSY];
    let code = known.into_iter().find(|code| code.code == first.code);
    assert_whole(&first, code.unwrap_or_else(|| panic!("{first}")));
    println!("a failover before the first point: {}", first.code);
    site.item_wait(MACHINE, "protection", |item| item["protectionState"] == "Protected").await;
    assert_eq!(site.client.list("replicationProtectedItems").await.unwrap().len(), 1);

    for (operation, properties) in [
        ("unplannedFailover", json!({"providerSpecificDetails": {"recoveryPointId": NO_POINT}})),
        ("testFailover", json!({"providerSpecificDetails": {"recoveryPointId": NO_POINT}})),
        ("applyRecoveryPoint", json!({"recoveryPointId": NO_POINT})),
    ] {
        refused(site.operate(MACHINE, operation, properties).await, 404, Code::NO_POINT);
    }
    let point = site.points(MACHINE).await[0]["id"].clone();
    for (operation, properties) in [
        ("failoverCommit", json!({})),
        ("failoverCancel", json!({})),
        ("testFailoverCleanup", json!({})),
        ("applyRecoveryPoint", json!({"recoveryPointId": point})),
    ] {
        refused(site.operate(MACHINE, operation, properties).await, 409, Code::NOT_POSSIBLE_NOW);
    }
    let item = site.item(MACHINE).await;
    let allowed = item["allowedOperations"].as_array().unwrap();
    assert!(!allowed.is_empty() && !allowed.contains(&json!("Commit")), "{allowed:?}");
    refused(site.operate(MACHINE, "reProtect", json!({})).await, 409, Code::NOT_POSSIBLE_NOW);
    let nowhere = json!({"providerSpecificDetails": {"leewardHost": "nowhere"}});
    for operation in ["plannedFailover", "reProtect"] {
        refused(site.operate(MACHINE, operation, nowhere.clone()).await, 404, Code::NOT_FOUND);
    }
    let later = json!({"providerSpecificDetails": {"dataSyncOption": "Later"}});
    refused(site.operate(MACHINE, "plannedFailover", later).await, 400, Code::BAD_REQUEST);
    for (operation, properties) in [
        ("unplannedFailover", json!({"failoverDirection": "Sideways"})),
        ("unplannedFailover", json!({"sourceSiteOperations": "Maybe"})),
        ("unplannedFailover", json!({"providerSpecificDetails": {"recoveryPointId": "x/y"}})),
        ("unplannedFailover", json!({"providerSpecificDetails": 7})),
        ("testFailover", json!({"providerSpecificDetails": {"recoveryPointType": "Best"}})),
    ] {
        refused(site.operate(MACHINE, operation, properties).await, 400, Code::BAD_REQUEST);
    }
    let network = json!({"networkId": "/x/replicationNetworks/lan"});
    refused(site.operate(MACHINE, "testFailover", network).await, 404, Code::NOT_FOUND);
    assert_eq!(site.item(MACHINE).await["protectionState"], "Protected");
    busy_items_say_so(&pair).await;
}

/// A test machine whose probe never passes keeps its job at work.
async fn busy_items_say_so(pair: &Pair) {
    let site = &pair.site;
    let started = site.operate(MACHINE, "testFailover", json!({})).await.unwrap();
    let job = started.job.unwrap();
    for (operation, properties) in
        [("testFailover", json!({})), ("remove", json!({})), ("testFailover", json!({}))]
    {
        let path = format!("{}/{operation}", site.item_path(MACHINE).await);
        let body = json!({ "properties": properties });
        let raw = super::line::request(
            &site.address,
            &site.file("ca.pem"),
            &format!(
                "POST {}/{path}?api-version=2025-08-01 HTTP/1.1\r\nAuthorization: Bearer {}",
                super::site::VAULT,
                site.file("admin.token")
            ),
            body.to_string().as_bytes(),
        )
        .await;
        assert_eq!(raw.status, 409, "{operation}: {}", raw.body);
        super::words::assert_envelope(&raw.body, Code::ITEM_BUSY);
        assert_eq!(raw.body["error"]["target"], job.as_str(), "{operation}");
    }
    // The one that runs goes on; cancelled, it takes its machine away.
    pair.newer_point().await;
    site.client.post(&format!("{job}/cancel"), &json!({})).await.unwrap();
    let ended = site.job_wait(&job).await;
    assert_eq!(ended["properties"]["state"], "Cancelled", "{ended:#}");
    let item = site.item_wait(MACHINE, "the test's end", |item| {
        item["testFailoverState"] == "None"
            && details(item, "leewardInstances").as_array().unwrap().is_empty()
    });
    item.await;
    let left = fs::read_dir(site.data.join("instances")).unwrap().count();
    assert_eq!(left, 0, "the cancelled test left files");
    let up = processes_of(&site.data);
    let qemus: Vec<_> =
        up.iter().filter(|pid| arguments_of(**pid).contains("qemu-system")).collect();
    assert!(qemus.is_empty(), "the cancelled test left {qemus:?}");
}

// ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn restarts_resized_disks_and_a_reboot_without_contact_lose_nothing() {
    let mut pair = Pair::new("autostart = true").await;
    let (old_key, valid_to) = pair.site.key(1).await;
    let protected = pair.protect().await;
    the_config_server_comes_back(&mut pair, &protected).await;
    disks_change_while_the_machine_is_off(&pair).await;
    a_reboot_without_contact(&mut pair).await;
    disabling_deletes_the_replica(&pair).await;

    let end: jiff::Timestamp = valid_to.parse().unwrap();
    let left = end.as_millisecond() - jiff::Timestamp::now().as_millisecond();
    println!("waiting {left} ms for a key to expire");
    tokio::time::sleep(Duration::from_millis(left.max(0) as u64 + 200)).await;
    let words = host_words(&pair.room, "late", &pair.site.address, Some(&old_key));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_refused(&pair.room.run(&words).await, Code::WRONG_KEY);
    assert!(!pair.room.path("late").join("host.json").exists());
    assert_eq!(pair.site.hosts().await, [HOST]);
}

async fn the_config_server_comes_back(pair: &mut Pair, protected: &Value) {
    pair.newer_point().await;
    let before = pair.site.item(MACHINE).await;
    let (points, address) = (pair.site.points(MACHINE).await, pair.site.address.clone());
    pair.site.kill();
    pair.site = Site::start_at(&pair.room, "up", &address).await;
    pair.site.connection_wait(HOST, "Connected").await;
    let now = pair.site.item_wait(MACHINE, "points again", |item| {
        let copies = [details(item, "leewardCopy"), details(item, "leewardResyncReason")];
        assert!(copies.iter().all(|copy| copy.is_null()), "the disks are read again: {copies:?}");
        lsn(item) > lsn(&before) + 1
    });
    let now = now.await;
    assert_eq!(now["protectionState"], "Protected");
    assert_eq!(sent(&now), sent(&before), "something was copied again");
    assert_eq!(details(&now, "leewardTimeline"), details(protected, "leewardTimeline"));
    let names = |list: &[Value]| -> Vec<String> {
        list.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    let later = names(&pair.site.points(MACHINE).await);
    for name in names(&points) {
        assert!(later.contains(&name), "point {name} is gone");
    }
    let said = pair.host.as_ref().unwrap().said();
    let rebuilt = said.matches("rebuilding the hash files").count();
    assert_eq!(rebuilt, 1, "only the first copy finds no hash files: {said}");
    assert_says(&said, Code::ROLE_AWAY);
}

async fn disks_change_while_the_machine_is_off(pair: &Pair) {
    let site = &pair.site;
    let old = site.points(MACHINE).await.into_iter().next().unwrap();
    assert_eq!(sizes(&old), [16 * MIB, 8 * MIB]);
    let before = site.item(MACHINE).await;
    let image = fs::read(pair.image("a")).unwrap();
    pair.machine_kill().await;
    image_resize(&pair.image("a"), 24 * MIB);
    image_resize(&pair.image("b"), 4 * MIB);
    pair.machine_start().await;
    let wanted = [24 * MIB, 4 * MIB];
    until("a point with the new sizes", || async {
        let points = site.points(MACHINE).await;
        points.iter().any(|point| sizes(point) == wanted).then_some(())
    })
    .await;
    let after = site.item_wait(MACHINE, "protection again", |item| {
        item["protectionState"] == "Protected" && item["healthErrors"] == json!([])
    });
    let after = after.await;
    println!("sent for two resized disks: {} bytes", sent(&after) - sent(&before));
    assert!(sent(&after) - sent(&before) < MIB, "the unchanged parts were sent again");
    let path = old["id"].as_str().unwrap();
    let kept = site.client.get(path).await.unwrap();
    assert_eq!(sizes(&kept), [16 * MIB, 8 * MIB], "an earlier point changed");
    let copy = copied(pair, &old, "a").await;
    assert_eq!(copy.len(), image.len());
    assert!(copy == image, "the earlier point holds other bytes than the disk did");
    let newest = site.points(MACHINE).await.into_iter().next().unwrap();
    let copy = copied(pair, &newest, "a").await;
    assert!(copy == fs::read(pair.image("a")).unwrap(), "the newest point is not the disk");
}

/// A point's disk, read from the store without any server.
pub async fn copied(pair: &Pair, point: &Value, disk: &str) -> Vec<u8> {
    let item = pair.site.item(MACHINE).await;
    let item = details(&item, "leewardItemId").as_str().unwrap().to_owned();
    let (socket, store) = (pair.room.text("x.sock"), pair.room.text("up/store"));
    let name = point["name"].as_str().unwrap();
    let words =
        ["export", "--item", &item, "--point", name, "--store", &store, "--socket", &socket];
    let export = pair.room.start("export", &words);
    until("the export", || async { tokio::net::UnixStream::connect(&socket).await.ok() }).await;
    let copy = pair.room.path("copy.raw");
    let disks = details(&point["properties"], "leewardDisks").as_array().unwrap().clone();
    let number = disks.iter().find(|one| one["id"] == disk).unwrap()["number"].clone();
    let uri = format!("nbd+unix:///disk-{number}?socket={socket}");
    let converted = tokio::process::Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "raw", &uri])
        .arg(&copy)
        .output()
        .await
        .unwrap();
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    export.kill();
    let _ = fs::remove_file(&socket);
    fs::read(copy).unwrap()
}

/// What a reboot leaves: no process, and a permit of the boot before.
async fn a_reboot_without_contact(pair: &mut Pair) {
    let (address, data) = (pair.site.address.clone(), pair.room.text(HOST));
    pair.newer_point().await;
    let before = pair.site.points(MACHINE).await.len();
    pair.host.take().unwrap().kill();
    pair.machine_kill().await;
    pair.site.end().await;
    permits_of_an_earlier_boot(&pair.folder(), &pair.site.data);
    let log = pair.room.path(&format!("{HOST}.log"));
    fs::rename(&log, pair.room.path("before.log")).unwrap();
    let host = host_start(&pair.room, HOST, &address, None);
    let said = until("the refused autostart", || async {
        let said = host.said();
        said.contains(Code::NO_PERMIT.code).then_some(said)
    })
    .await;
    assert_says(&said, Code::NO_PERMIT);
    let start = ["host", "start", MACHINE, "--data", &data];
    assert_refused(&pair.room.run(&start).await, Code::NO_PERMIT);
    assert!(pair.qemus().is_empty(), "a machine without a permit runs");
    let sure = pair.room.run(&[&start[..], &["--i-am-sure"]].concat()).await;
    assert!(sure.ok, "{}", sure.said);
    assert!(sure.said.contains(Code::NO_PERMIT.code), "nothing was noted: {}", sure.said);
    assert_eq!(pair.qemus().len(), 1);
    let audit = fs::read_to_string(pair.folder().join("audit.log")).unwrap();
    assert!(audit.contains("web01 was started by hand without a permit"), "{audit}");
    // Off again: with contact the permit of this boot comes, and the machine with it.
    pair.machine_kill().await;
    pair.host = Some(host);
    pair.site = Site::start_at(&pair.room, "up", &address).await;
    pair.site.connection_wait(HOST, "Connected").await;
    until("the machine's autostart", || async { (pair.qemus().len() == 1).then_some(()) }).await;
    pair.newer_point().await;
    let item =
        pair.site.item_wait(MACHINE, "protection", |item| item["protectionState"] == "Protected");
    item.await;
    assert!(pair.site.points(MACHINE).await.len() > before, "points were lost");
}

/// Signs this host's permits anew for a boot that has ended, as they would lie there.
fn permits_of_an_earlier_boot(host: &Path, up: &Path) {
    let key = PermitKey::open_or_create(up).unwrap();
    let aged = |permit: Value| -> Value {
        let permit: StartPermit = serde_json::from_value(permit).unwrap();
        let mut terms = permit.terms;
        terms.host_boot = "00000000-0000-4000-8000-000000000b00".into();
        serde_json::to_value(key.sign(terms)).unwrap()
    };
    let path = host.join("permits").join(format!("{MACHINE}.json"));
    let permit = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::write(&path, aged(permit).to_string()).unwrap();
    fs::write(host.join("autostart-boot"), "00000000-0000-4000-8000-000000000b00").unwrap();
    let path = host.join("assignment.json");
    let mut kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut count = 0;
    fn walk(value: &mut Value, aged: &dyn Fn(Value) -> Value, count: &mut u32) {
        match value {
            Value::Object(map) => {
                for (name, inner) in map.iter_mut() {
                    if name == "permit" && inner.is_object() {
                        *inner = aged(inner.take());
                        *count += 1;
                    } else {
                        walk(inner, aged, count);
                    }
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|inner| walk(inner, aged, count)),
            _ => {}
        }
    }
    walk(&mut kept, &aged, &mut count);
    assert_eq!(count, 1, "{kept:#}");
    fs::write(&path, kept.to_string()).unwrap();
}

async fn disabling_deletes_the_replica(pair: &Pair) {
    let site = &pair.site;
    let item = site.item(MACHINE).await;
    let id = details(&item, "leewardItemId").as_str().unwrap().to_owned();
    let of_item = |folder: &Path| -> Vec<_> {
        let all = files_below(folder, "").into_iter();
        all.filter(|path| path.to_string_lossy().contains(&id)).collect()
    };
    assert!(!of_item(&site.data.join("store")).is_empty(), "the test looks in the wrong place");
    let asked = json!({"disableProtectionReason": "NotSpecified"});
    let job = site.operate(MACHINE, "remove", asked).await.unwrap().job.unwrap();
    assert_eq!(site.job_wait(&job).await["properties"]["state"], "Succeeded");
    let path = site.item_path(MACHINE).await;
    let gone = site.client.send(hyper::Method::GET, &path, None).await;
    refused(gone, 404, Code::NOT_FOUND);
    let left = of_item(&site.data.join("store"));
    assert!(left.is_empty(), "the replica was left: {left:?}");
    let left = of_item(&pair.folder().join("items"));
    assert!(left.is_empty(), "the host kept {left:?}");
    assert!(!pair.folder().join("permits").join(format!("{MACHINE}.json")).exists());
    assert_eq!(pair.qemus().len(), 1, "the machine was not left alone");
    // Its owner has it back: no permit is asked for.
    pair.machine_kill().await;
    until("the host to let go", || async {
        let data = pair.room.text(HOST);
        let started = pair.room.run(&["host", "start", MACHINE, "--data", &data]).await;
        started.ok.then_some(())
    })
    .await;
}

// ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_clock_that_is_an_hour_off_changes_neither_rpo_nor_trust() {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten();
    let mut found = folders.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    let Some(library) = found.find(|path| path.exists()) else {
        println!("SKIPPED: Debian's package faketime is not installed; nothing was proved");
        return;
    };
    let library = library.to_str().unwrap();
    let room = Room::new();
    let site = Site::start(&room, "up").await;
    site.prepare().await;
    site.map().await;
    let (key, _) = site.key(15).await;
    let mut pair = Pair { room, site, host: None };
    let ahead = host_off(&pair, library, "+1h", Some(&key));
    pair.site.connection_wait(HOST, "Connected").await;
    let machine = machine_make(&pair.folder(), MACHINE, &[("a", "a.raw")], "");
    image_make(&machine.join("a.raw"), 4 * MIB, 1 << 20);
    pair.machine_start().await;
    pair.host = Some(ahead);
    pair.protect().await;
    rpo_is_right(&pair, 3600).await;
    let last = pair.site.points(MACHINE).await[0]["name"].clone();
    pair.host.take().unwrap().kill();
    let cut_off = Instant::now();
    pair.site
        .item_wait(MACHINE, "the RPO to grow", |item| {
            details(item, "leewardRpoSeconds").as_u64() >= Some(5)
        })
        .await;
    assert!(cut_off.elapsed() < Duration::from_secs(6), "the RPO grows too slowly");
    pair.host = Some(host_off(&pair, library, "-1h", None));
    pair.site.connection_wait(HOST, "Connected").await;
    pair.newer_point().await;
    rpo_is_right(&pair, -3600).await;
    // A clock that went back two hours does not mix up the order of points.
    let points = pair.site.points(MACHINE).await;
    assert_ne!(points[0]["name"], last, "the newest point is not the first");
    let position =
        |point: &Value| details(&point["properties"], "leewardPosition")["lsn"].as_u64().unwrap();
    assert!(points.windows(2).all(|pair| position(&pair[0]) > position(&pair[1])));
    assert!(points.iter().any(|point| point["name"] == last), "an earlier point is gone");
}

fn host_off(pair: &Pair, library: &str, offset: &str, key: Option<&str>) -> Running {
    let words = host_words(&pair.room, HOST, &pair.site.address, key);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let environment =
        [("LD_PRELOAD", library), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    pair.room.start_with(HOST, Path::new(super::PROGRAM), &words, &environment)
}

/// The RPO is that of a machine with a point every second, though its host's clock is off.
async fn rpo_is_right(pair: &Pair, offset_seconds: i64) {
    for _ in 0..3 {
        let item = pair.newer_point().await;
        let rpo = details(&item, "leewardRpoSeconds").as_u64().unwrap();
        assert!(rpo <= 10, "the RPO is {rpo} s");
        let cut = details(&item, "leewardNewestPoint")["cutAt"].as_str().unwrap();
        let cut: jiff::Timestamp = cut.parse().unwrap();
        let off = cut.as_second() - jiff::Timestamp::now().as_second();
        assert!((off - offset_seconds).abs() < 60, "the host's clock was not off: {off} s");
    }
}
