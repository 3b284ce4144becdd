//! Bad input and bad luck, through the front door: real processes of the product, its folders, its
//! port and its public API. Every refusal has a code, a cause, the present state and what to do;
//! nothing is lost, and nothing half made is left behind.
//!
//! The machines have disks but no guest. What a guest lives through is not here: see the demo.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod front_door;

use front_door::{
    Room, arguments_of, files_below, inventory, line, processes_of,
    site::{HILL, Site, VAULT, host_start, host_words},
    until,
    words::{assert_envelope, assert_refused, assert_says, refused},
};
use leeward::client::{ApiClient, ClientError};
use leeward_model::Code;
use serde_json::json;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};
use tokio::io::AsyncWriteExt as _;

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

// ---------------------------------------------------------------------------------------------
// Folders and starts

#[tokio::test]
async fn a_second_start_goes_on_where_the_first_one_was_and_other_folders_are_left_alone() {
    let room = Room::new();
    let mut site = Site::start(&room, "up").await;
    println!("leeward up was ready after {:.2} s", site.took.as_secs_f64());
    assert!(site.took < Duration::from_secs(5), "wanted within 2 s, took {:?}", site.took);
    for secret in ["admin.token", "ca.key", "permit.key", "recovery-key.txt"] {
        let mode = fs::metadata(site.data.join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    assert!(site.file("ca.pem").contains("BEGIN CERTIFICATE"));
    site.prepare().await;

    // While it runs, its folder and its port are taken; whoever comes second changes nothing.
    let up = room.text("up");
    let before = inventory(&site.data);
    let again = room.run(&["up", "--data", &up, "--listen", "127.0.0.1:0"]).await;
    assert_refused(&again, Code::FOLDER_IN_USE);
    let other = room.text("other");
    let taken = room.run(&["up", "--data", &other, "--listen", &site.address]).await;
    assert_refused(&taken, Code::PORT_IN_USE);
    let left: Vec<_> = files_below(Path::new(&other), "");
    assert!(
        left.iter().all(|path| path.ends_with("leeward.role") || path.ends_with("leeward.lock")),
        "a start without its port made {left:?}"
    );
    foreign_folders_are_refused(&room, &up).await;
    let database = |path: &Path| path.to_string_lossy().contains("control.db");
    let quiet = |list: Vec<(std::path::PathBuf, u64)>| -> Vec<_> {
        list.into_iter().filter(|(path, _)| !database(path)).collect()
    };
    assert_eq!(quiet(inventory(&site.data)), quiet(before));

    let (token, address) = (site.file("admin.token"), site.address.clone());
    site.end().await;
    let site = Site::start_at(&room, "up", &address).await;
    assert_eq!(site.file("admin.token"), token);
    assert_eq!(site.client.get(VAULT).await.unwrap()["name"], "front");
    assert_eq!(site.client.get(HILL).await.unwrap()["name"], "hill");
}

async fn foreign_folders_are_refused(room: &Room, up: &str) {
    let as_host = ["host", "--data", up, "--join", "127.0.0.1:1", "--key-file", "/dev/null"];
    assert_refused(&room.run(&as_host).await, Code::STORE_FOREIGN);
    let home = room.path("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("thesis.txt"), "dear").unwrap();
    let home_text = room.text("home");
    for arguments in [
        ["up", "--data", &home_text, "--listen", "127.0.0.1:0"],
        ["host", "--data", &home_text, "--join", "127.0.0.1:1"],
        ["host", "start", "web01", "--data", &home_text],
    ] {
        assert_refused(&room.run(&arguments).await, Code::STORE_FOREIGN);
        assert_eq!(inventory(&home), [(home.join("thesis.txt"), 4)], "{arguments:?}");
        assert_eq!(fs::read_dir(&home).unwrap().count(), 1, "{arguments:?}");
    }
    // The reverse: a host's folder is no config server's.
    let host = room.path("lonely");
    drop(leeward::folder::lock(&host, "host").unwrap());
    let lonely = room.text("lonely");
    let before = inventory(&host);
    let as_up = room.run(&["up", "--data", &lonely, "--listen", "127.0.0.1:0"]).await;
    assert_refused(&as_up, Code::STORE_FOREIGN);
    assert_eq!(inventory(&host), before);
    // And a second host process on it is told so.
    let _held = leeward::folder::lock(&host, "host").unwrap();
    let second = room.run(&["host", "--data", &lonely, "--join", "127.0.0.1:1"]).await;
    assert_refused(&second, Code::FOLDER_IN_USE);
}

// ---------------------------------------------------------------------------------------------
// Callers

#[tokio::test]
async fn callers_without_the_right_token_certificate_or_encryption_are_told_so() {
    let room = Room::new();
    let site = Site::start(&room, "up").await;
    site.prepare().await;
    let endpoint = format!("https://{}", site.address);
    let ca = site.file("ca.pem");

    let wrong = ApiClient::new(&endpoint, &ca, "wrong", VAULT).unwrap();
    refused(wrong.send(hyper::Method::GET, VAULT, None).await, 401, Code::UNAUTHORIZED);
    let vault = json!({"location": "x"});
    refused(wrong.put(&VAULT.replace("front", "thief"), &vault).await, 401, Code::UNAUTHORIZED);
    let get = format!("GET {VAULT}?api-version=2025-08-01 HTTP/1.1");
    for head in [
        get.clone(),
        format!("{get}\r\nAuthorization: Bearer "),
        format!("{get}\r\nAuthorization: Basic YWRtaW46YWRtaW4="),
        format!("{get}\r\nAuthorization: Bearer {}x", site.file("admin.token")),
    ] {
        let answer = line::request(&site.address, &ca, &head, b"").await;
        assert_eq!(answer.status, 401, "{head}");
        assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
        assert_envelope(&answer.body, Code::UNAUTHORIZED);
    }
    encryption_is_a_must(&site).await;
    other_installations_are_refused(&room, &site).await;
    let vaults = VAULT.trim_end_matches("/front");
    assert_eq!(site.client.list(vaults).await.unwrap().len(), 1, "only the owner's vault is there");
}

async fn encryption_is_a_must(site: &Site) {
    let answer = line::plain_http(&site.address, VAULT).await;
    assert_eq!(answer.status, 400);
    assert_envelope(&answer.body, Code::PLAINTEXT);
    assert!(answer.head.contains("connection: close"));
    // What a session or a joining host would say first, without TLS.
    let frames: [&[u8]; 2] = [b"LWF1\0\0\0\0hello", &[0, 0, 0, 40, 1, 0, 0, 0]];
    for bytes in frames {
        let said = line::plain(&site.address, bytes).await;
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(Code::PLAINTEXT.code), "{said}");
        assert!(!said.contains("lwk1"), "{said}");
    }
    let alert = line::plain(&site.address, &line::old_hello()).await;
    assert_eq!(alert[0], 0x15, "no TLS alert: {alert:?}");
    assert_eq!(alert[5..7], [2, 70], "not a fatal protocol_version: {alert:?}");
}

/// Clients, joining hosts and joined hosts of another installation.
async fn other_installations_are_refused(room: &Room, site: &Site) {
    let other = Site::start(room, "other").await;
    other.prepare().await;
    let endpoint = format!("https://{}", site.address);
    let mistaken =
        ApiClient::new(&endpoint, &other.file("ca.pem"), &site.file("admin.token"), VAULT).unwrap();
    match mistaken.get(VAULT).await {
        Err(error @ ClientError::Setup(_)) => assert_says(&error.to_string(), Code::WRONG_CA),
        other => panic!("a client of another CA got {other:?}"),
    }
    // A key of the one at the door of the other: its secret is not even sent.
    let (key, _) = other.key(15).await;
    let words = host_words(room, "stray", &site.address, Some(&key));
    assert_refused(&room.run(&strs(&words)).await, Code::WRONG_CA);
    assert!(!room.path("stray").join("host.json").exists());
    let joins = host_start(room, "stray", &other.address, Some(&key));
    other.connection_wait("stray", "Connected").await;
    joins.end().await;
    // Joined there, it dials here: it trusts nobody here.
    let strays = host_start(room, "stray", &site.address, None);
    said_wait(&strays, Code::WRONG_CA).await;
    strays.end().await;
    // It is made to trust this CA, but its certificate is the other's.
    let kept = fs::read(room.path("stray").join("ca.pem")).unwrap();
    fs::copy(site.data.join("ca.pem"), room.path("stray").join("ca.pem")).unwrap();
    fs::remove_file(room.path("stray.log")).unwrap();
    let strays = host_start(room, "stray", &site.address, None);
    said_wait(&strays, Code::WRONG_CA).await;
    strays.end().await;
    assert_eq!(site.hosts().await, [""; 0], "the stranger's host is in the list");
    // Put right again it is welcome where it belongs.
    fs::write(room.path("stray").join("ca.pem"), kept).unwrap();
    let _back = host_start(room, "stray", &other.address, None);
    other.connection_wait("stray", "Connected").await;
}

async fn said_wait(process: &front_door::Running, code: Code) {
    let said = until(&format!("{} in the log", code.code), || async {
        let said = process.said();
        (said.contains(code.code) && said.contains("do:")).then_some(said)
    })
    .await;
    assert_says(&said, code);
}

// ---------------------------------------------------------------------------------------------
// Requests

#[tokio::test]
async fn requests_that_are_too_large_too_deep_or_unknown_change_nothing() {
    let room = Room::new();
    let site = Site::start(&room, "up").await;
    site.prepare().await;

    let large = format!("{{\"properties\": {{\"x\": \"{}\"}}}}", "y".repeat(8 << 20));
    let answer = put(&site, &fabric("large"), large.into_bytes()).await;
    assert_eq!(answer.status, 413);
    assert_envelope(&answer.body, Code::BAD_REQUEST);
    let deep = format!("{{\"properties\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let wide = "{\"properties\": {\"customDetails\": 7}}";
    for body in [deep.as_str(), "{\"properties\": ", "[]", "\u{0}", wide, "\u{feff}{}"] {
        let answer = put(&site, &fabric("deep"), body.as_bytes().to_vec()).await;
        assert_eq!(answer.status, 400, "{:.40}", body);
        assert_envelope(&answer.body, Code::BAD_REQUEST);
    }
    assert_eq!(site.client.list("replicationFabrics").await.unwrap().len(), 2);
    unbuilt_and_unknown_things_are_named(&site).await;
    two_hundred_at_once_are_served(&site).await;
}

#[tokio::test]
async fn names_that_are_paths_or_cannot_be_spoken_of_are_refused() {
    let room = Room::new();
    let site = Site::start(&room, "up").await;
    site.prepare().await;
    let before = inventory(room.path("").as_path()).len();
    let long = "n".repeat(4000);
    let odd = [
        "..",
        "%2e%2e",
        "%2E.",
        ".",
        "a%00b",
        "%00",
        "..%2f..%2fetc",
        "a%2fb",
        "%ff",
        "%zz",
        "a%0ab",
        "a%5cb",
        "%20",
        "a;b",
        "~",
        &long,
    ];
    let mut accepted = Vec::new();
    for name in odd {
        for path in [
            fabric(name),
            format!("{VAULT}/replicationPolicies/{name}?api-version=2025-08-01"),
            format!("{}/{name}?api-version=2025-08-01", VAULT.trim_end_matches("/front")),
            format!("{HILL_FULL}/{CONTAINERS}/{name}/replicationProtectedItems/{name}"),
        ] {
            let answer = put(&site, &path, b"{\"properties\": {}}".to_vec()).await;
            if !matches!(answer.status, 400 | 404) {
                accepted.push(format!("{} for {path:.200}", answer.status));
                continue;
            }
            let code = if answer.status == 400 { Code::BAD_REQUEST } else { Code::NOT_FOUND };
            assert_envelope(&answer.body, code);
        }
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
    assert_eq!(site.client.list("replicationFabrics").await.unwrap().len(), 2);
    assert_eq!(site.client.list("replicationPolicies").await.unwrap().len(), 0);
    assert_eq!(inventory(room.path("").as_path()).len(), before, "files appeared");
}

/// The path of a fabric of any name.
fn fabric(name: &str) -> String {
    format!("{VAULT}/replicationFabrics/{name}?api-version=2025-08-01")
}

/// PUTs bytes to a path as it stands.
async fn put(site: &Site, path: &str, body: Vec<u8>) -> line::Raw {
    let head = format!(
        "PUT {path} HTTP/1.1\r\nAuthorization: Bearer {}\r\nContent-Type: application/json",
        site.file("admin.token")
    );
    line::request(&site.address, &site.file("ca.pem"), &head, &body).await
}

const CONTAINERS: &str = "replicationProtectionContainers";
const HILL_FULL: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/\
                         leeward/providers/Microsoft.RecoveryServices/vaults/front/\
                         replicationFabrics/hill";

async fn unbuilt_and_unknown_things_are_named(site: &Site) {
    let client = &site.client;
    let empty = json!({"properties": {}});
    for path in ["replicationFabrics/nowhere", "replicationPolicies/none", "replicationJobs/x"] {
        refused(client.send(hyper::Method::GET, path, None).await, 404, Code::NOT_FOUND);
    }
    let other = client.post("replicationFabrics/hill/removeInfra", &empty).await;
    refused(other, 501, Code::NOT_SUPPORTED);
    let plan = client.put("replicationRecoveryPlans/all", &empty).await;
    refused(plan, 400, Code::BAD_REQUEST);
    let delete = client.send(hyper::Method::DELETE, "replicationPolicies", None).await;
    refused(delete, 405, Code::BAD_REQUEST);
    let nobody = site.enable("ghost", "no-such-machine").await;
    refused(nobody, 404, Code::NOT_FOUND);
    assert!(client.list("replicationProtectedItems").await.unwrap().is_empty());
    let recovery = json!({"properties": {"leewardFabric": "recovery-site"}});
    refused(client.put("certificates/x", &recovery).await, 400, Code::BAD_REQUEST);
}

async fn two_hundred_at_once_are_served(site: &Site) {
    let begun = Instant::now();
    let asked: Vec<_> = (0..200)
        .map(|number| {
            let client = site.client.clone();
            tokio::spawn(async move {
                if number % 4 == 0 {
                    let path = format!("replicationFabrics/crowd-{}", number % 20);
                    client.put(&path, &json!({"properties": {}})).await.map(|reply| reply.status)
                } else {
                    client
                        .send(hyper::Method::GET, "replicationFabrics", None)
                        .await
                        .map(|reply| reply.status)
                }
            })
        })
        .collect();
    for one in asked {
        let status = one.await.unwrap().unwrap();
        assert!(matches!(status, 200 | 202), "{status}");
    }
    println!("200 requests at once took {:.2} s", begun.elapsed().as_secs_f64());
    // Two names and the five of the crowd: 0, 4, 8, 12, 16.
    assert_eq!(site.client.list("replicationFabrics").await.unwrap().len(), 7);
}

// ---------------------------------------------------------------------------------------------
// Registration keys

#[tokio::test]
async fn a_registration_key_admits_exactly_one_host_and_its_secret_stays_secret() {
    let room = Room::new();
    let site = Site::start(&room, "up").await;
    site.prepare().await;
    let (key, _) = site.key(15).await;
    let (stem, secret) = key.rsplit_once('.').unwrap();

    let zeros = format!("{stem}.{}", "0".repeat(secret.len()));
    for wrong in [zeros.as_str(), "hello", "", "lwk1.", &key[..key.len() - 1]] {
        let words = host_words(&room, "guess", &site.address, Some(wrong));
        assert_refused(&room.run(&strs(&words)).await, Code::WRONG_KEY);
        nothing_joined(&room.path("guess"));
    }
    let words = host_words(&room, "guess", &site.address, None);
    assert_refused(&room.run(&strs(&words)).await, Code::WRONG_KEY);
    let missing = [&words[..], &["--key-file".into(), room.text("gone.key")]].concat();
    assert_refused(&room.run(&strs(&missing)).await, Code::WRONG_KEY);
    nothing_joined(&room.path("guess"));
    let nobody = host_words(&room, "guess", "127.0.0.1:1", Some(&key));
    assert_refused(&room.run(&strs(&nobody)).await, Code::ROLE_AWAY);
    a_server_without_tls_gets_no_secret(&room, &key).await;
    nothing_joined(&room.path("guess"));
    assert_eq!(site.hosts().await, [""; 0]);

    // Two at once with the same key: one of them joins.
    let mut pair = ["left", "right"].map(|name| host_start(&room, name, &site.address, Some(&key)));
    let loser = until("one of two to be refused", || {
        let ended = pair.iter_mut().position(|process| process.ended().is_some());
        async move { ended }
    })
    .await;
    let (winner_name, loser_name) = [("right", "left"), ("left", "right")][loser];
    assert_eq!(pair[loser].ended(), Some(false));
    assert_says(&pair[loser].said(), Code::WRONG_KEY);
    nothing_joined(&room.path(loser_name));
    site.connection_wait(winner_name, "Connected").await;
    assert_eq!(site.hosts().await, [winner_name]);
    assert!(room.path(winner_name).join("host.json").exists());
    // And later the used key is worth nothing.
    let words = host_words(&room, loser_name, &site.address, Some(&key));
    assert_refused(&room.run(&strs(&words)).await, Code::WRONG_KEY);
    assert_eq!(site.hosts().await, [winner_name]);
    secrets_are_nowhere(&room, &site, &key);
}

/// As the README has it: what the command writes is the key file, and a host joins with it.
#[tokio::test]
async fn what_registration_key_create_writes_is_a_key_file_and_tells_the_rest_beside_it() {
    let room = Room::new();
    let site = Site::start(&room, "up").await;
    site.prepare().await;
    let folder = room.text("up");
    let words = ["registration-key", "create", "--fabric", "hill", "--folder", &folder];
    let made = room.run(&[&words[..], &["--vault", "front"]].concat()).await;
    assert!(made.ok, "{}", made.said);
    assert!(made.said.contains("site hill, until 20"), "{}", made.said);
    let key_file = room.path("written.key");
    fs::write(&key_file, &made.out).unwrap();

    let words = host_words(&room, "joiner", &site.address, None);
    let words = [&words[..], &["--key-file".into(), room.text("written.key")]].concat();
    let _host = room.start("joiner", &strs(&words));
    site.connection_wait("joiner", "Connected").await;
}

async fn a_server_without_tls_gets_no_secret(room: &Room, key: &str) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        line::rest(&mut stream).await.0
    });
    let words = host_words(room, "guess", &address, Some(key));
    assert_refused(&room.run(&strs(&words)).await, Code::PLAINTEXT);
    let heard = String::from_utf8_lossy(&server.await.unwrap()).into_owned();
    assert!(!heard.contains(key.rsplit('.').next().unwrap()), "the key was sent in the open");
}

/// The folder holds no identity, whole or half.
fn nothing_joined(host: &Path) {
    for name in ["host.json", "host.pem", "host.key", "ca.pem"] {
        assert!(!host.join(name).exists(), "{name} was left in {}", host.display());
    }
    let temporary = files_below(host, ".tmp");
    assert!(temporary.is_empty(), "{temporary:?}");
}

/// Logs and words of processes hold no secret.
fn secrets_are_nowhere(room: &Room, site: &Site, key: &str) {
    let recovery = site.file("recovery-key.txt");
    let line = |text: &str| text.lines().nth(1).unwrap_or_default().to_owned();
    let ca_key = line(&site.file("ca.key"));
    assert!(ca_key.len() > 20, "the CA's key is not as expected");
    let secrets = [site.file("admin.token"), key.to_owned(), recovery, ca_key];
    let mut texts: Vec<(String, String)> = files_below(&room.path(""), ".log")
        .into_iter()
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap()))
        .collect();
    let running = processes_of(&room.path(""));
    texts.extend(running.iter().map(|pid| (pid.to_string(), arguments_of(*pid))));
    assert!(texts.len() >= 4, "too little was looked at: {texts:?}");
    for (place, text) in texts {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "a secret stands in {place}: {text}");
        }
        assert!(!text.contains("PRIVATE KEY"), "a key stands in {place}: {text}");
    }
}
