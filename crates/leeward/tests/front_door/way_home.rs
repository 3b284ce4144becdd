//! The way home with bad input and bad luck: reprotects that cannot be, a store and disks that are
//! somebody else's, a host that falls silent at the worst moment, clocks that are hours apart.

use super::{
    DEADLINE, Room, files_below,
    site::{Site, host_start, host_words, image_make, machine_make},
    stories::{HOST, MACHINE, MIB, Pair, copied, details, lsn},
    until,
    words::{assert_refused, refused},
};
use leeward_model::Code;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A host that never joined.
const NOWHERE: &str = "nowhere";

/// Waits for a job's end or question, longer than [`Site::job_wait`] does.
async fn job_rests(site: &Site, job: &str, limit: Duration) -> Value {
    let begun = Instant::now();
    loop {
        let job = site.client.get(job).await.unwrap();
        let state = job["properties"]["state"].as_str().unwrap().to_owned();
        if !matches!(state.as_str(), "NotStarted" | "InProgress" | "Cancelling") {
            return job;
        }
        assert!(begun.elapsed() < limit, "the job does not end: {job:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn succeeds(site: &Site, operation: &str, properties: Value) {
    let job = site.operate(MACHINE, operation, properties).await.unwrap().job.unwrap();
    let ended = job_rests(site, &job, 2 * DEADLINE).await;
    assert_eq!(ended["properties"]["state"], "Succeeded", "{operation}: {ended:#}");
}

/// Fails over without a shutdown, which nobody in these machines would hear.
async fn fails_over(pair: &Pair) {
    let asked = json!({"sourceSiteOperations": "NotRequired"});
    succeeds(&pair.site, "unplannedFailover", asked).await;
    let whole = |item: &Value| {
        let made = details(item, "leewardInstances").as_array().unwrap().clone();
        made.iter().any(|one| one["hydratedPercent"].as_f64() >= Some(100.0))
    };
    pair.site.item_wait(MACHINE, "all data at the recovery site", whole).await;
}

async fn commits(pair: &Pair) {
    succeeds(&pair.site, "failoverCommit", json!({})).await;
}

async fn protected(site: &Site) -> Value {
    site.item_wait(MACHINE, "protection", |item| item["protectionState"] == "Protected").await
}

/// Every file below a folder with its bytes.
fn bytes_below(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = files_below(folder, "").into_iter();
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// What must be as it was after a refusal.
async fn as_it_is(pair: &Pair) -> (Vec<Value>, Vec<(PathBuf, Vec<u8>)>, usize) {
    let item = pair.site.item(MACHINE).await;
    let ends = details(&item, "leewardEnds").as_array().unwrap().iter();
    let ends = ends.map(|end| json!([end["host"], end["machine"], end["run"]]));
    let parts = ["protectionState", "leewardDirection", "activeLocation", "allowedOperations"];
    let mut shown: Vec<Value> = parts.iter().map(|part| item[part].clone()).collect();
    shown.extend(["leewardEpoch", "leewardTimeline"].map(|part| details(&item, part).clone()));
    shown.extend(ends);
    let mut files = bytes_below(&pair.folder().join("machines"));
    files.extend(bytes_below(&pair.folder().join("store")));
    let jobs = pair.site.client.list("replicationJobs").await.unwrap().len();
    (shown, files, jobs)
}

fn to_host(host: &str) -> Value {
    json!({"providerSpecificDetails": {"leewardHost": host}})
}

/// Asks for it through the command line, which must refuse with `code`.
async fn refused_by_hand(pair: &Pair, words: &[&str], code: Code) -> String {
    let folder = pair.room.text("up");
    let words = [words, &["--folder", &folder, "--vault", "front"]].concat();
    let ended = pair.room.run(&words).await;
    assert_refused(&ended, code);
    ended.said
}

/// F-131, F-111, F-084: before the commit, to the live side, to a host that never joined.
#[tokio::test]
async fn a_reprotect_that_cannot_be_is_refused_and_changes_nothing() {
    let mut pair = Pair::new("").await;
    pair.protect().await;
    pair.newer_point().await;
    fails_over(&pair).await;
    // Nothing at the host changes from here on by itself: the left machine is off.
    until("the left machine's end", || async { pair.qemus().is_empty().then_some(()) }).await;
    let site = &pair.site;
    let live = details(&site.item(MACHINE).await, "leewardTargetHost").as_str().unwrap().to_owned();
    let nowhere_id = "00000000-0000-4000-8000-0000000000aa";

    let before = as_it_is(&pair).await;
    let problem =
        refused(site.operate(MACHINE, "reProtect", json!({})).await, 409, Code::NOT_POSSIBLE_NOW);
    assert!(problem.what.contains("commit the failover first"), "{problem}");
    let said = refused_by_hand(&pair, &["item", "reprotect", MACHINE], Code::NOT_POSSIBLE_NOW);
    assert!(said.await.contains("commit the failover first"));
    for host in [NOWHERE, nowhere_id] {
        let answer = site.operate(MACHINE, "reProtect", to_host(host)).await;
        let problem = refused(answer, 404, Code::NOT_FOUND);
        assert!(problem.what.contains(host) && problem.what.contains("join"), "{problem}");
    }
    let allowed = site.item(MACHINE).await["allowedOperations"].clone();
    assert!(!allowed.to_string().contains("ReverseReplicate"), "{allowed}");
    assert!(as_it_is(&pair).await == before, "a refusal changed something");

    commits(&pair).await;
    let before = as_it_is(&pair).await;
    let answer = site.operate(MACHINE, "reProtect", to_host(&live)).await;
    let problem = refused(answer, 409, Code::NOT_POSSIBLE_NOW);
    assert!(problem.what.contains(&format!("lives on host {live}")), "{problem}");
    let by_hand = ["item", "reprotect", MACHINE, "--host", &live];
    refused_by_hand(&pair, &by_hand, Code::NOT_POSSIBLE_NOW).await;
    refused(site.operate(MACHINE, "reProtect", to_host(NOWHERE)).await, 404, Code::NOT_FOUND);
    refused_by_hand(&pair, &["item", "reprotect", MACHINE, "--host", NOWHERE], Code::NOT_FOUND)
        .await;
    // A planned failover begins with a reprotect then, and is refused what that is refused.
    let answer = site.operate(MACHINE, "plannedFailover", to_host(&live)).await;
    let problem = refused(answer, 409, Code::NOT_POSSIBLE_NOW);
    assert!(problem.what.contains(&format!("lives on host {live}")), "{problem}");
    assert!(as_it_is(&pair).await == before, "a refusal changed something");

    a_store_of_another_vault_is_never_written(&mut pair).await;
}

/// The host's store folder is another installation's: the host does not start on it, the reprotect
/// fails, and not a byte of either changes.
async fn a_store_of_another_vault_is_never_written(pair: &mut Pair) {
    let other = Site::start(&pair.room, "other").await;
    other.prepare().await;
    let (key, _) = other.key(15).await;
    let stranger = host_start(&pair.room, "stranger", &other.address, Some(&key));
    other.connection_wait("stranger", "Connected").await;
    stranger.end().await;
    pair.host.take().unwrap().end().await;
    pair.site.connection_wait(HOST, "Disconnected").await;
    let (own, aside) = (pair.folder().join("store"), pair.folder().join("store.aside"));
    fs::rename(&own, &aside).unwrap();
    fs::rename(pair.room.path("stranger").join("store"), &own).unwrap();
    let before = (bytes_below(&pair.folder().join("machines")), bytes_below(&own));

    let address = pair.site.address.clone();
    let words = host_words(&pair.room, HOST, &address, None);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_refused(&pair.room.run(&words).await, Code::STORE_FOREIGN);
    let job = pair.site.operate(MACHINE, "reProtect", json!({})).await.unwrap().job.unwrap();
    let ended = job_rests(&pair.site, &job, 2 * DEADLINE).await;
    assert_eq!(ended["properties"]["state"], "Failed", "{ended:#}");
    assert!(ended.to_string().contains(Code::TARGET_AWAY.code), "{ended:#}");
    assert_refused(&pair.room.run(&words).await, Code::STORE_FOREIGN);
    let committed = |item: &Value| item["protectionState"] == "UnplannedFailoverCommitted";
    pair.site.item_wait(MACHINE, "the state before", committed).await;
    let after = (bytes_below(&pair.folder().join("machines")), bytes_below(&own));
    assert!(after == before, "something of the other vault's store or of the old disks changed");

    fs::remove_dir_all(&own).unwrap();
    fs::rename(&aside, &own).unwrap();
    pair.host = Some(host_start(&pair.room, HOST, &address, None));
    pair.site.connection_wait(HOST, "Connected").await;
    succeeds(&pair.site, "reProtect", json!({})).await;
    protected(&pair.site).await;
}

/// F-122, F-140: other machines with the left machine's name and serial numbers.
#[tokio::test]
async fn other_machines_of_the_same_name_and_serials_are_never_read_or_written() {
    let mut pair = Pair::new("").await;
    pair.protect().await;
    pair.newer_point().await;
    fails_over(&pair).await;
    commits(&pair).await;
    pair.host.take().unwrap().end().await;
    let left = pair.folder().join("machines").join(MACHINE);
    fs::rename(&left, pair.room.path("left")).unwrap();
    let disks = [("a", "a.raw"), ("b", "b.raw")];
    let twins = [MACHINE, "twin"].map(|name| {
        let folder = machine_make(&pair.folder(), name, &disks, "");
        image_make(&folder.join("a.raw"), 16 * MIB, 3 << 20);
        image_make(&folder.join("b.raw"), 8 * MIB, 2 << 20);
        folder
    });
    let before = twins.each_ref().map(|folder| bytes_below(folder));

    let address = pair.site.address.clone();
    pair.host = Some(host_start(&pair.room, HOST, &address, None));
    pair.site.connection_wait(HOST, "Connected").await;
    let says = |item: &Value| {
        let errors = item["healthErrors"].as_array().unwrap();
        errors.iter().any(|error| error["errorCode"] == Code::MACHINE_FOREIGN.code)
    };
    succeeds(&pair.site, "reProtect", json!({})).await;
    let item = protected(&pair.site).await;
    let origins: Vec<Value> = points_at(&pair, "Primary").await;
    let origins: Vec<_> =
        origins.iter().map(|own| details(&own["properties"], "leewardOrigin").clone()).collect();
    assert!(origins.iter().all(|one| one == "Replicated"), "its disks were read: {origins:?}");
    assert!(sent_whole(&item), "nothing was there to compare with: {item:#}");
    pair.site.item_wait(MACHINE, "LW-0211", says).await;

    // Home it cannot come while its name is taken: it stays where it is.
    let home =
        json!({"failoverDirection": "RecoveryToPrimary", "sourceSiteOperations": "Required"});
    let job = pair.site.operate(MACHINE, "unplannedFailover", home).await.unwrap().job.unwrap();
    until("the host's refusal", || async {
        let item = pair.site.item(MACHINE).await;
        let made = details(&item, "leewardInstances").to_string();
        let job = pair.site.client.get(&job).await.unwrap().to_string();
        [made, job].iter().any(|text| text.contains(Code::MACHINE_FOREIGN.code)).then_some(())
    })
    .await;
    pair.site.client.post(&format!("{job}/cancel"), &json!({})).await.unwrap();
    let ended = job_rests(&pair.site, &job, 2 * DEADLINE).await;
    assert_eq!(ended["properties"]["state"], "Cancelled", "{ended:#}");
    protected(&pair.site).await;
    assert!(pair.qemus().is_empty(), "a machine of the host's owner was started");
    let after = twins.each_ref().map(|folder| bytes_below(folder));
    assert!(after == before, "a machine that is not the item's was changed");
}

async fn points_at(pair: &Pair, site: &str) -> Vec<Value> {
    let points = pair.site.points(MACHINE).await.into_iter();
    points.filter(|one| details(&one["properties"], "leewardHeldAt") == site).collect()
}

/// Whether what was sent is at least what the disks hold.
fn sent_whole(item: &Value) -> bool {
    let sent = details(item, "leewardSentBytes").as_u64().unwrap_or(0);
    sent >= 5 << 20
}

/// Passes a host's control session on, until it is cut.
struct Wire {
    address: String,
    cut: Arc<AtomicBool>,
}

impl Wire {
    async fn to(site: &Site) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (cut, to) = (Arc::new(AtomicBool::new(false)), site.address.clone());
        let is_cut = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (to, is_cut) = (to.clone(), Arc::clone(&is_cut));
                tokio::spawn(pass(near, to, is_cut));
            }
        });
        Wire { address, cut }
    }
}

/// Both ways; what the host says while the wire is cut is lost.
async fn pass(near: TcpStream, to: String, cut: Arc<AtomicBool>) {
    if cut.load(Ordering::SeqCst) {
        return;
    }
    let Ok(far) = TcpStream::connect(&to).await else { return };
    let ((mut host, mut to_host), (mut server, mut to_server)) =
        (near.into_split(), far.into_split());
    let out = async move {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = host.read(&mut bytes).await {
            if !cut.load(Ordering::SeqCst) && to_server.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    };
    let back = async move {
        let _ = tokio::io::copy(&mut server, &mut to_host).await;
        let _ = to_host.shutdown().await;
    };
    tokio::join!(out, back);
}

/// F-086, F-108: the machine is off, and its host is not heard any more before it has said so.
#[tokio::test]
async fn a_shutdown_that_nobody_confirms_stops_a_planned_failover_until_the_host_is_back() {
    let mut pair = Pair::new("").await;
    pair.protect().await;
    let wire = Wire::to(&pair.site).await;
    pair.host.take().unwrap().end().await;
    pair.host = Some(host_start(&pair.room, HOST, &wire.address, None));
    pair.site.connection_wait(HOST, "Connected").await;
    pair.newer_point().await;
    let before = pair.site.item(MACHINE).await;

    let job = pair.site.operate(MACHINE, "plannedFailover", json!({})).await.unwrap();
    let job = job.job.unwrap();
    let asked = job_rests(&pair.site, &job, DEADLINE).await;
    assert_eq!(asked["properties"]["state"], "Suspended", "{asked:#}");
    assert!(asked.to_string().contains(Code::SOURCE_NOT_OFF.code), "{asked:#}");
    assert_eq!(pair.qemus().len(), 1, "a guest that does not listen was switched off");
    wire.cut.store(true, Ordering::SeqCst);
    let resume = format!("{job}/resume");
    let off = json!({"properties": {"comments": "power-off"}});
    pair.site.client.post(&resume, &off).await.unwrap();
    until("the machine's end", || async { pair.qemus().is_empty().then_some(()) }).await;
    let asked = job_rests(&pair.site, &job, 3 * DEADLINE).await;

    assert_eq!(asked["properties"]["state"], "Suspended", "{asked:#}");
    assert!(asked.to_string().contains("did not confirm that it is off"), "{asked:#}");
    let item = pair.site.item(MACHINE).await;
    let same = ["leewardEpoch", "leewardTimeline", "leewardInstances"];
    assert!(same.iter().all(|part| details(&item, part) == details(&before, part)), "{item:#}");
    assert_eq!(item["activeLocation"], before["activeLocation"]);
    let images = ["a", "b"].map(|disk| fs::read(pair.image(disk)).unwrap());

    wire.cut.store(false, Ordering::SeqCst);
    pair.site.connection_wait(HOST, "Connected").await;
    let again = json!({"properties": {"comments": "the host is back"}});
    pair.site.client.post(&resume, &again).await.unwrap();
    let ended = job_rests(&pair.site, &job, 2 * DEADLINE).await;
    assert_eq!(ended["properties"]["state"], "Succeeded", "{ended:#}");
    let last = pair.site.points(MACHINE).await.into_iter().next().unwrap();
    assert_eq!(details(&last["properties"], "leewardKind"), "Final");
    for (disk, image) in ["a", "b"].into_iter().zip(images) {
        assert!(copied(&pair, &last, disk).await == image, "disk {disk} is not what it was");
    }
    assert!(pair.qemus().is_empty());
    assert_eq!(pair.site.item(MACHINE).await["activeLocation"], "Recovery");
}

/// F-134: the new source's clock is five hours ahead of the new target's, then five behind.
#[tokio::test]
async fn clocks_hours_apart_change_neither_rpo_nor_the_order_of_points_on_the_way_home() {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten();
    let mut found = folders.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    let Some(library) = found.find(|path| path.exists()) else {
        println!("SKIPPED: Debian's package faketime is not installed; nothing was proved");
        return;
    };
    let off = |by| {
        let library = library.to_str().unwrap();
        [("LD_PRELOAD", library), ("FAKETIME", by), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]
    };
    let room = Room::new();
    let site = Site::start_with(&room, "up", "127.0.0.1:0", &off("+5h")).await;
    let mut pair = Pair::at(room, site, "").await;
    pair.protect().await;
    pair.newer_point().await;
    let out = names(&pair.site.points(MACHINE).await);
    fails_over(&pair).await;
    commits(&pair).await;
    succeeds(&pair.site, "reProtect", json!({})).await;
    protected(&pair.site).await;
    points_are_in_order(&pair, 5, &out).await;
    let ahead = names(&pair.site.points(MACHINE).await);

    let address = pair.site.address.clone();
    pair.site.kill();
    pair.site = Site::start_with(&pair.room, "up", &address, &off("-5h")).await;
    pair.site.connection_wait(HOST, "Connected").await;
    points_are_in_order(&pair, -5, &[out, ahead].concat()).await;
}

fn names(points: &[Value]) -> Vec<String> {
    points.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

fn seconds_off(time: &Value) -> i64 {
    let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
    time.as_second() - jiff::Timestamp::now().as_second()
}

/// New points of a source whose clock is `hours` off are the newest ones, of the right age, and
/// nothing that was there before is gone.
async fn points_are_in_order(pair: &Pair, hours: i64, before: &[String]) {
    for _ in 0..3 {
        let item = pair.newer_point().await;
        let rpo = details(&item, "leewardRpoSeconds").as_u64().unwrap();
        assert!(rpo <= 10, "the RPO is {rpo} s");
        let points = pair.site.points(MACHINE).await;
        let newest = &points[0]["properties"];
        assert_eq!(details(newest, "leewardHeldAt"), "Primary", "{newest}");
        let cut = seconds_off(&newest["recoveryPointTime"]);
        assert!((cut - hours * 3600).abs() < 60, "the source's clock was not off: {cut} s");
        let received = seconds_off(details(newest, "leewardReceivedAt"));
        assert!(received.abs() < 60, "the target's clock was off: {received} s");
        let lsns: Vec<u64> = points_at(pair, "Primary").await.iter().map(point_lsn).collect();
        assert!(lsns.is_sorted_by(|a, b| a > b), "{lsns:?}");
        assert!(point_lsn(&points[0]) >= lsn(&item), "the newest point is not the first");
        let names = names(&points);
        let gone: Vec<_> = before.iter().filter(|name| !names.contains(name)).collect();
        assert!(gone.is_empty(), "points are gone: {gone:?}");
    }
}

fn point_lsn(point: &Value) -> u64 {
    details(&point["properties"], "leewardPosition")["lsn"].as_u64().unwrap()
}

/// Points that a commit keeps say until when, in the API and on the command line, and go then; the
/// newest one stays, and an event says what went.
#[tokio::test]
async fn kept_points_say_when_they_expire_and_go_when_their_days_are_over() {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten();
    let mut found = folders.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    let Some(library) = found.find(|path| path.exists()) else {
        println!("SKIPPED: Debian's package faketime is not installed; nothing was proved");
        return;
    };
    let mut pair = Pair::new("").await;
    pair.protect().await;
    for _ in 0..3 {
        pair.newer_point().await;
    }
    fails_over(&pair).await;
    commits(&pair).await;
    let kept = expiring(&pair).await;
    let folder = pair.room.text("up");
    let listed = ["point", "list", MACHINE, "--vault", "front", "--folder", &folder];
    let listed = pair.room.run(&listed).await;
    assert!(listed.ok && listed.out.contains("EXPIRES"), "{}{}", listed.out, listed.said);
    for (name, expires) in &kept {
        let row = listed.out.lines().find(|line| line.contains(name.as_str())).unwrap();
        assert!(row.contains(expires), "{row} does not say {expires}");
    }

    let address = pair.site.address.clone();
    pair.site.kill();
    let later = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME", "+8d"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    pair.site = Site::start_with(&pair.room, "up", &address, &later).await;

    let begun = Instant::now();
    let left = loop {
        let left = names(&pair.site.points(MACHINE).await);
        if kept.iter().all(|(name, _)| !left.contains(name)) {
            break left;
        }
        assert!(begun.elapsed() < 3 * DEADLINE, "points stay for longer than they say: {left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(left.len(), 1, "the newest point stays: {left:?}");
    until("an event of what went", || async {
        let events = pair.site.client.list("replicationEvents").await.unwrap();
        events.iter().any(|event| event.to_string().contains("the time of these")).then_some(())
    })
    .await;
}

/// Names of the points that are shown with the end of the policy's seven days, and that end.
async fn expiring(pair: &Pair) -> Vec<(String, String)> {
    let points = pair.site.points(MACHINE).await;
    let own = |point: &Value, key: &str| details(&point["properties"], key).clone();
    assert!(own(&points[0], "leewardExpiresAt").is_null(), "the newest one has no end");
    let kept = points[1..].iter().map(|point| {
        let [expires, received] = ["leewardExpiresAt", "leewardReceivedAt"].map(|key| {
            let text = own(point, key).as_str().unwrap_or_default().to_owned();
            let at: jiff::Timestamp = text.parse().unwrap_or_else(|_| panic!("{key}: {point}"));
            (text, at.as_second())
        });
        assert_eq!(expires.1 - received.1, 7 * 86_400, "{point}");
        (point["name"].as_str().unwrap().to_owned(), expires.0)
    });
    let kept: Vec<_> = kept.collect();
    assert!(kept.len() >= 2, "{kept:?}");
    kept
}
