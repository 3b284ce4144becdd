//! The config server is gone and its store is left: real processes of the product, a host with a
//! machine that has disks and no guest, and another config server that takes over.

use super::{
    Room,
    site::Site,
    stories::{MACHINE, Pair, details, lsn},
    until,
    words::{assert_refused, refused},
};
use leeward_model::Code;
use serde_json::{Value, json};
use std::fs;

const PASSPHRASE: &str = "correct horse battery staple\n";

/// Makes and tests a kit of the site, as its owner does; returns kit and passphrase file.
async fn kit_make(room: &Room, site: &str) -> (String, String) {
    let (kit, passphrase) = (room.text("kit.txt"), room.text("passphrase"));
    fs::write(&passphrase, PASSPHRASE).unwrap();
    let words = ["kit", "create", "--store", site, "--passphrase-file", &passphrase, "--out", &kit];
    let made = room.run(&words).await;
    assert!(made.ok, "{}", made.said);
    let words = ["kit", "test", &kit, "--store", site, "--passphrase-file", &passphrase];
    let tested = room.run(&words).await;
    assert!(tested.ok, "{}", tested.said);
    (kit, passphrase)
}

/// Names of the item's points, newest first.
fn names(points: &[Value]) -> Vec<String> {
    points.iter().map(|point| point["name"].as_str().unwrap().to_owned()).collect()
}

/// A test machine runs from a point; without a guest no probe passes, so the job is ended.
async fn test_failover(site: &Site) {
    let started = site.operate(MACHINE, "testFailover", json!({})).await.unwrap();
    let job = started.job.unwrap();
    site.item_wait(MACHINE, "the test machine", |item| {
        let made = details(item, "leewardInstances").as_array().unwrap().clone();
        made.iter().any(|one| one["stage"] == "Running")
    })
    .await;
    site.client.post(&format!("{job}/cancel"), &json!({})).await.unwrap();
    let ended = site.job_wait(&job).await;
    assert_eq!(ended["properties"]["state"], "Cancelled", "{ended:#}");
}

/// A config server that is killed, another one on its store: the item and its points are there,
/// the host goes on with a delta, a test failover and a failover work, and the old server, started
/// again, only shows what it knew (E17).
#[tokio::test]
async fn a_store_is_adopted_and_the_former_config_server_is_read_only() {
    let mut pair = Pair::new("").await;
    pair.protect().await;
    pair.newer_point().await;
    let (kit, passphrase) = kit_make(&pair.room, &pair.site.data.to_string_lossy()).await;
    let store = pair.site.data.join("store").to_string_lossy().into_owned();
    let new = pair.room.text("new");
    let adopt = ["--adopt", &store, "--kit", &kit, "--passphrase-file", &passphrase];
    let up = ["up", "--data", &new, "--listen", "127.0.0.1:0"];

    // While its owner lives, and for some minutes after its end.
    let alive = pair.room.run(&[&up[..], &adopt[..]].concat()).await;
    assert_refused(&alive, Code::OWNER_ALIVE);
    let before = pair.site.points(MACHINE).await;
    let item = pair.site.item(MACHINE).await;
    let (sent, old) = (details(&item, "leewardSentBytes").as_u64().unwrap(), lsn(&item));
    pair.site.kill();
    let silent = pair.room.run(&[&up[..], &adopt[..]].concat()).await;
    assert_refused(&silent, Code::OWNER_ALIVE);
    // Another store's key opens nothing.
    let other = Site::start(&pair.room, "other").await;
    let wrong = other.data.join("recovery-key.txt").to_string_lossy().into_owned();
    let words = ["--adopt", &store, "--recovery-key", &wrong, "--force-takeover"];
    assert_refused(&pair.room.run(&[&up[..], &words[..]].concat()).await, Code::KEY_MISSING);
    assert!(!pair.room.path("new").join("control.db").exists());

    let words = [&adopt[..], &["--force-takeover"]].concat();
    let address = pair.site.address.clone();
    let site = Site::start_words(&pair.room, "new", &address, &[], &words).await;
    println!("adopted and ready after {:.2} s", site.took.as_secs_f64());
    let shown = site.item_wait(MACHINE, "its item", |item| item["protectionState"] == "Protected");
    shown.await;
    let points = until("its points", || async {
        let path = format!("{}/recoveryPoints", site.item_path(MACHINE).await);
        site.client.list(&path).await.ok()
    })
    .await;
    let (before, after) = (names(&before), names(&points));
    assert!(before.iter().all(|name| after.contains(name)), "{before:?} {after:?}");
    // The host knows this server by its CA, and goes on where it was: 20 MiB are not sent again.
    let item = site.item_wait(MACHINE, "a newer point", |item| lsn(item) > old + 1).await;
    let more = details(&item, "leewardSentBytes").as_u64().unwrap().abs_diff(sent);
    assert!(more < 1 << 20, "{more} bytes were sent for nothing that changed");
    test_failover(&site).await;

    old_server_is_read_only(&pair, &address).await;
    let site = again(&pair.room, site, &address, &words).await;
    failover(&site).await;
    let log = audit_log(&pair.room, &site).await;
    let adopted = log.iter().position(|entry| entry["action"] == "StoreAdopted").unwrap();
    assert!(log[..adopted].iter().any(|entry| entry["action"] == "ItemEnable"), "it goes on");
    assert!(log[adopted..].iter().any(|entry| entry["action"] == "ItemFailover"));
}

/// The former server, on another port: its own folder, its own database.
async fn old_server_is_read_only(pair: &Pair, address: &str) {
    let mut old = Site::start_at(&pair.room, "up", "127.0.0.1:0").await;
    assert_eq!(old.item(MACHINE).await["friendlyName"], MACHINE, "it still shows what it knew");
    let put = old.client.put("replicationPolicies/late", &json!({"properties": {}})).await;
    let problem = refused(put, 409, Code::SUPERSEDED);
    assert!(problem.what.contains(address), "it says where the other one is: {}", problem.what);
    let asked = json!({"properties": {}});
    let path = format!("{}/unplannedFailover", old.item_path(MACHINE).await);
    refused(old.client.post(&path, &asked).await, 409, Code::SUPERSEDED);
    let health = old.client.get("replicationVaultHealth").await.unwrap();
    let text = health.to_string();
    assert!(text.contains(Code::SUPERSEDED.code), "{text}");
    old.end().await;
}

/// A second start with the same words goes on.
async fn again(room: &Room, mut site: Site, address: &str, words: &[&str]) -> Site {
    let generation = site.file("generation.json");
    site.end().await;
    let site = Site::start_words(room, "new", address, &[], words).await;
    assert_eq!(site.file("generation.json"), generation, "nothing is adopted twice");
    site.item_wait(MACHINE, "protection", |item| item["protectionState"] == "Protected").await;
    site
}

async fn failover(site: &Site) {
    let asked = json!({"sourceSiteOperations": "NotRequired"});
    let started = site.operate(MACHINE, "unplannedFailover", asked).await.unwrap();
    let ended = site.job_wait(&started.job.unwrap()).await;
    assert_eq!(ended["properties"]["state"], "Succeeded", "{ended:#}");
    let item = site.item(MACHINE).await;
    let made = details(&item, "leewardInstances").as_array().unwrap().clone();
    assert!(made.iter().any(|one| one["stage"] == "Running"), "{made:?}");
}

/// The database alone is gone: a start says so instead of beginning anew, and adopting the folder's
/// own store brings everything back. Twice in a row, into two folders: the first one is over.
#[tokio::test]
async fn a_lost_database_comes_back_from_the_store_and_the_second_of_two_adopters_counts() {
    let mut pair = Pair::new("").await;
    pair.protect().await;
    let (kit, passphrase) = kit_make(&pair.room, &pair.site.data.to_string_lossy()).await;
    let (up, address) = (pair.room.text("up"), pair.site.address.clone());
    let store = pair.site.data.join("store").to_string_lossy().into_owned();
    pair.site.kill();
    for file in ["control.db", "control.db-wal", "control.db-shm"] {
        let _ = fs::remove_file(pair.site.data.join(file));
    }

    let lost = pair.room.run(&["up", "--data", &up, "--listen", &address]).await;
    assert_refused(&lost, Code::ADOPTION_UNFINISHED);
    let words = ["--adopt", store.as_str(), "--force-takeover"];
    let mut site = Site::start_words(&pair.room, "up", &address, &[], &words).await;
    site.item_wait(MACHINE, "protection", |item| item["protectionState"] == "Protected").await;
    site.end().await;

    let words = [&words[..], &["--kit", &kit, "--passphrase-file", &passphrase]].concat();
    let mut second = Site::start_words(&pair.room, "second", &address, &[], &words).await;
    second.item_wait(MACHINE, "protection", |item| item["protectionState"] == "Protected").await;
    let first = Site::start_at(&pair.room, "up", "127.0.0.1:0").await;
    let put = first.client.put("replicationPolicies/late", &json!({"properties": {}})).await;
    refused(put, 409, Code::SUPERSEDED);
    let generation = second.file("generation.json");
    assert!(generation.contains("\"number\": 2"));

    // A crash before the database was there: nothing else makes use of the folder, and the same
    // command goes on at once, under the generation that it has taken already.
    second.kill();
    for file in ["control.db", "control.db-wal", "control.db-shm"] {
        let _ = fs::remove_file(second.data.join(file));
    }
    fs::write(second.data.join("adoption.unfinished"), "").unwrap();
    fs::write(second.data.join("control.db.adopting"), "half").unwrap();
    let folder = pair.room.text("second");
    let half = pair.room.run(&["up", "--data", &folder, "--listen", &address]).await;
    assert_refused(&half, Code::ADOPTION_UNFINISHED);
    let words = ["--adopt", store.as_str()];
    let second = Site::start_words(&pair.room, "second", &address, &[], &words).await;
    assert_eq!(second.file("generation.json"), generation);
    second.item_wait(MACHINE, "protection", |item| item["protectionState"] == "Protected").await;
}

/// The kit's account opens the API of the server that it was made of, and of the one that adopts
/// its store; its use is an alarm, and another secret opens nothing.
#[tokio::test]
async fn a_break_glass_account_opens_the_api_and_raises_an_alarm() {
    let room = Room::new();
    let site = Site::start(&room, "up").await;
    site.prepare().await;
    let (kit, passphrase) = kit_make(&room, &site.data.to_string_lossy()).await;
    let token = room.text("account");
    let words = ["kit", "open", &kit, "--passphrase-file", &passphrase, "--account-to", &token];
    let opened = room.run(&words).await;
    assert!(opened.ok, "{}", opened.said);
    let secret = fs::read_to_string(&token).unwrap();
    let ca = site.file("ca.pem");
    let endpoint = format!("https://{}", site.address);
    let client = |token: &str| {
        let base = super::site::VAULT;
        leeward::client::ApiClient::new(&endpoint, &ca, token, base).unwrap()
    };

    let wrong = secret.trim().replace(&secret.trim()[secret.trim().len() - 4..], "0000");
    let put = client(&wrong).put("replicationPolicies/p", &json!({"properties": {}})).await;
    refused(put, 401, Code::UNAUTHORIZED);
    // After a wrong one the next is not tried at once.
    until("the account to open", || async { client(&secret).get("replicationFabrics").await.ok() })
        .await;
    let alarm = until("the alarm", || async {
        let events = site.client.list("replicationEvents").await.unwrap();
        events.into_iter().find(|event| event["properties"]["eventCode"] == "BreakGlassUsed")
    })
    .await;
    assert_eq!(alarm["properties"]["severity"], "Critical");
    let stored = site.file("break-glass.json");
    assert!(!stored.contains(secret.trim()), "only a hash is kept");

    let put = client(&secret).put("replicationPolicies/late", &json!({"properties": {}})).await;
    assert_eq!(put.unwrap().status, 202);
    let log = audit_log(&room, &site).await;
    let by_account =
        |entry: &&Value| entry["who"].as_str().unwrap().starts_with("break-glass account of kit ");
    let done: Vec<_> = log.iter().filter(by_account).collect();
    let actions: Vec<_> = done.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["BreakGlassUsed", "PolicyPut"], "a wrong secret is nobody's");
    assert_eq!((&done[1]["from"], &done[1]["role"]), (&json!("127.0.0.1"), &json!("Owner")));
    assert!(!Value::from(log).to_string().contains(secret.trim()));
}

/// The audit log, which the command line finds intact.
async fn audit_log(room: &Room, site: &Site) -> Vec<Value> {
    let folder = site.data.to_string_lossy().into_owned();
    let verified = room.run(&["audit", "verify", "--folder", &folder]).await;
    assert!(verified.ok && verified.out.contains("intact"), "{} {}", verified.out, verified.said);
    let head = verified.out.lines().find_map(|line| line.strip_prefix("head ")).unwrap().trim();
    let again = room.run(&["audit", "verify", "--folder", &folder, "--head", head]).await;
    assert!(again.ok, "{}", again.said);
    let other = format!("1:{}", "0".repeat(64));
    let broken = room.run(&["audit", "verify", "--folder", &folder, "--head", &other]).await;
    assert_refused(&broken, Code::AUDIT_LOG_BROKEN);
    site.client.list("/leewardAuditLog").await.unwrap()
}
