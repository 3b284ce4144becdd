//! Both roles with their replica stores in buckets of a server that others wrote (moto): points,
//! kills, a restart, an adoption, a failover.

use super::{
    PROGRAM, Room, Running,
    site::{Site, host_words, image_make, machine_make},
    stories::{HOST, MACHINE, MIB, details, lsn},
    until,
    words::assert_refused,
};
use leeward_model::Code;
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Starts moto and makes a bucket; returns it and the environment of its clients.
async fn moto(room: &Room) -> (Running, u16, Vec<(&'static str, String)>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join("target/python/bin/python");
    assert!(python.exists(), "{} is missing: scripts/setup.sh --tests", python.display());
    let words = ["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"];
    let server = room.start_with("moto", &python, &words, &[]);
    let port = until("moto's port", || {
        let said = server.said();
        let port = said.lines().find_map(|line| {
            let (_, port) = line.split_once("http://127.0.0.1:")?;
            port.trim().parse::<u16>().ok()
        });
        async move { port.filter(|_| said.ends_with('\n')) }
    })
    .await;
    let made = put(port, "/bucket", "", "").await;
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    let environment = vec![
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "writer".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "a-secret-that-nobody-logs".to_owned()),
    ];
    (server, port, environment)
}

/// One plain request; returns the whole answer.
async fn put(port: u16, path: &str, header: &str, body: &str) -> String {
    let len = body.len();
    let request = format!(
        "PUT {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{header}Content-Length: {len}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn host(room: &Room, site: &str, key: Option<&str>, environment: &[(&str, &str)]) -> Running {
    let mut words = host_words(room, HOST, site, key);
    words.extend(["--store".to_owned(), "s3://bucket/host".to_owned()]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    room.start_with(HOST, Path::new(PROGRAM), &words, environment)
}

async fn newer_point(site: &Site, than: u64) -> Value {
    site.item_wait(MACHINE, "a newer point", |item| lsn(item) > than).await
}

/// Points every second into a bucket; the role that is killed goes on at once when it is started
/// again, another config server adopts the bucket, and a machine runs from it.
#[tokio::test]
async fn both_roles_keep_their_stores_in_buckets() {
    let room = Room::new();
    let (_moto, _, environment) = moto(&room).await;
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let words = ["--store", "s3://bucket/site"];
    let mut site = Site::start_words(&room, "up", "127.0.0.1:0", &environment, &words).await;
    site.prepare().await;
    site.map().await;
    let address = site.address.clone();
    let (key, _) = site.key(15).await;
    let running = host(&room, &address, Some(&key), &environment);
    site.connection_wait(HOST, "Connected").await;
    let folder = room.path(HOST);
    let machine = machine_make(&folder, MACHINE, &[("a", "a.raw")], "");
    image_make(&machine.join("a.raw"), 16 * MIB, 4 << 20);
    let started = room.run(&["host", "start", MACHINE, "--data", &room.text(HOST)]).await;
    assert!(started.ok, "{}", started.said);
    let found = site.machine(MACHINE).await;
    site.enable(MACHINE, found["id"].as_str().unwrap()).await.unwrap();
    let item =
        site.item_wait(MACHINE, "protection", |item| item["protectionState"] == "Protected").await;
    let item = newer_point(&site, lsn(&item)).await;
    assert!(!site.data.join("store").exists(), "nothing of the store is in the folder");
    assert!(!site.file("store.key").is_empty());

    // The same folder, at once: its own lease is no obstacle, and the key is in the folder.
    site.kill();
    let mut site = Site::start_with(&room, "up", &address, &environment).await;
    let item = newer_point(&site, lsn(&item)).await;
    // And the host.
    running.kill();
    let _running = host(&room, &address, None, &environment);
    let item = newer_point(&site, lsn(&item)).await;
    let sent = details(&item, "leewardSentBytes").as_u64().unwrap();

    let kit = kit(&room, &site, &environment).await;
    site.kill();
    let adopt = ["--adopt", "s3://bucket/site", "--force-takeover", "--kit", &kit.0];
    let adopt = [&adopt[..], &["--passphrase-file", &kit.1]].concat();
    let site = Site::start_words(&room, "new", &address, &environment, &adopt).await;
    let item = newer_point(&site, lsn(&item)).await;
    let more = details(&item, "leewardSentBytes").as_u64().unwrap().abs_diff(sent);
    assert!(more < 1 << 20, "{more} bytes were sent for nothing that changed");

    let asked = json!({"sourceSiteOperations": "NotRequired"});
    let started = site.operate(MACHINE, "unplannedFailover", asked).await.unwrap();
    let ended = site.job_wait(&started.job.unwrap()).await;
    assert_eq!(ended["properties"]["state"], "Succeeded", "{ended:#}");
    for log in ["up.log", "new.log", "slope.log"] {
        let said = fs::read_to_string(room.path(log)).unwrap();
        assert!(!said.contains("a-secret-that-nobody-logs"), "{log}");
    }
}

/// Makes and tests a kit; returns it and the file with its passphrase.
async fn kit(room: &Room, site: &Site, environment: &[(&str, &str)]) -> (String, String) {
    let (kit, passphrase) = (room.text("kit.txt"), room.text("passphrase"));
    fs::write(&passphrase, "correct horse battery staple\n").unwrap();
    let data = site.data.to_string_lossy().into_owned();
    let create =
        ["kit", "create", "--store", &data, "--passphrase-file", &passphrase, "--out", &kit];
    let test = ["kit", "test", &kit, "--store", &data, "--passphrase-file", &passphrase];
    for words in [&create[..], &test[..]] {
        let ended = room.run_with(words, environment).await;
        assert!(ended.ok, "{words:?}: {}", ended.said);
    }
    (kit, passphrase)
}

/// Without object lock, and with object lock that retains nothing, the owner's own deletion works:
/// no store is made.
#[tokio::test]
async fn a_bucket_whose_owner_can_delete_is_not_taken_for_immutable() {
    let room = Room::new();
    let (_moto, port, environment) = moto(&room).await;
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let lock = "x-amz-bucket-object-lock-enabled: true\r\n";
    assert!(put(port, "/idle", lock, "").await.starts_with("HTTP/1.1 200"));
    let (key, recovery) = (room.text("key"), room.text("recovery"));
    let files = ["--key-file", &key, "--recovery-key", &recovery, "--object-lock"];

    for store in ["s3://bucket/store", "s3://idle/store"] {
        let words = [&["store", "init", store], &files[..]].concat();
        let refused = room.run_with(&words, &environment).await;
        assert_refused(&refused, Code::NOT_SUPPORTED);
    }
    let folder = room.text("folder");
    let words = ["store", "init", &folder, "--object-lock"];
    assert_refused(&room.run_with(&words, &environment).await, Code::NOT_SUPPORTED);
    assert!(!room.path("key").exists() && !room.path("folder").exists(), "nothing was made");
}
