//! Stores in buckets of moto with object lock and a default retention: they work, nobody deletes
//! them, and what somebody with the bucket's keys hides or covers is found and comes back.

use super::*;
use aws_lc_rs::digest;

const STORE: &str = "s3://locked/some/where";
/// Somebody with the keys of the bucket's owner; moto looks for no more than that.
const OWNER: &str = "Authorization: AWS4-HMAC-SHA256 Credential=owner/20261122/us-east-1/s3/\
                     aws4_request, SignedHeaders=host, Signature=0";

/// A bucket with object lock in this mode, for a day.
fn locked_bucket(port: u16, mode: &str) {
    let head = "PUT /locked HTTP/1.1\r\nx-amz-bucket-object-lock-enabled: true";
    assert!(ask(port, head, "").starts_with("HTTP/1.1 200"));
    let rule = format!(
        "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>\
         <DefaultRetention><Mode>{mode}</Mode><Days>1</Days></DefaultRetention></Rule>\
         </ObjectLockConfiguration>"
    );
    let set = ask(port, "PUT /locked?object-lock HTTP/1.1", &rule);
    assert!(set.starts_with("HTTP/1.1 200"), "{set}");
}

/// A desk, and a server with such a bucket.
fn desk(mode: &str) -> (Desk, Server) {
    let mut desk = Desk::new(STORE);
    let server = Server::moto(desk.folder.path());
    desk.s3(&format!("http://127.0.0.1:{}", server.port));
    locked_bucket(server.port, mode);
    (desk, server)
}

/// The texts of all elements of that name.
fn elements<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts = text.split(&open).skip(1);
    parts.map(|part| part.split(&close).next().unwrap()).collect()
}

/// The keys that are there, of the store.
fn keys(port: u16) -> Vec<String> {
    let listed = ask(port, "GET /locked?list-type=2 HTTP/1.1", "");
    elements(&listed, "Key").into_iter().map(str::to_owned).collect()
}

/// Deletes an object as anybody can who has the right to: a marker is put in front of it.
fn hide(port: u16, key: &str) {
    let answer = ask(port, &format!("DELETE /locked/{key} HTTP/1.1\r\n{OWNER}"), "");
    assert!(answer.starts_with("HTTP/1.1 204"), "{key}: {answer}");
}

/// Waits for the next second, because the bucket's times have no parts of one; returns the second
/// that is over.
fn next_second() -> String {
    let now = jiff::Timestamp::now().as_second();
    let begun = Instant::now();
    while jiff::Timestamp::now().as_second() == now {
        assert!(begun.elapsed() < DEADLINE, "the clock stands");
        thread::sleep(Duration::from_millis(5));
    }
    jiff::Timestamp::from_second(now).unwrap().to_string()
}

/// Changes a page of the disk and makes a point of it.
fn change(desk: &Desk, seed: u64) -> Value {
    let disk = File::options().write(true).open(desk.path("disk.raw")).unwrap();
    disk.write_all_at(&noise(seed, 4096), 30 << 20).unwrap();
    desk.capture(&[])
}

fn point(captured: &Value) -> &str {
    captured["point"].as_str().unwrap()
}

/// F-039: a store in a bucket in compliance mode is made, captured into, verified, restored from
/// and pruned; nobody deletes what it put, and pruning says that its room stays taken.
#[test]
fn a_bucket_that_retains_holds_a_store_that_nobody_deletes() {
    let (desk, server) = desk("COMPLIANCE");
    let made = desk.good(&["init", STORE, "--object-lock", "--output", "json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let until: jiff::Timestamp = made["immutableUntil"].as_str().unwrap().parse().unwrap();
    assert!(until.as_second() - jiff::Timestamp::now().as_second() > 86_000, "{made}");

    let first = desk.capture(&[]);
    let original = desk.disk();
    let second = change(&desk, 9);
    desk.good(&["verify", STORE]);
    assert!(desk.restore(point(&first), "1.raw", &[]) == original);
    assert!(desk.restore(point(&second), "2.raw", &[]) == desk.disk());
    desk.compare_served();

    // The owner's own deletions, with every right that there is.
    let versions = ask(server.port, "GET /locked?versions HTTP/1.1", "");
    let mut refused = 0;
    for version in elements(&versions, "Version") {
        let (key, id) = (elements(version, "Key")[0], elements(version, "VersionId")[0]);
        // moto gives no retention to what was put in several parts.
        if elements(version, "Size")[0].parse::<usize>().unwrap() > 8 << 20 {
            continue;
        }
        let head = format!("DELETE /locked/{key}?versionId={id} HTTP/1.1\r\n{OWNER}");
        for bypass in ["", "\r\nx-amz-bypass-governance-retention: true"] {
            let answer = ask(server.port, &format!("{head}{bypass}"), "");
            let by_lock = answer.starts_with("HTTP/1.1 403") && answer.contains("AccessDenied");
            assert!(by_lock, "{key}: {answer}");
        }
        refused += 1;
    }
    assert!(refused > 10, "{versions}");

    let prune = ["prune", STORE, "--keep", "0s", "--nobody-is-reading"];
    let said = desk.good(&prune);
    assert!(said.contains(point(&first)), "{said}");
    assert!(said.contains("keeps it for 1 days") && said.contains("COMPLIANCE"), "{said}");
    desk.good(&["verify", STORE]);
    let third = change(&desk, 10);
    assert!(desk.restore(point(&third), "3.raw", &[]) == desk.disk());
    let stats = desk.good(&["stats", STORE, "--object-lock"]);
    assert!(stats.contains("cannot be deleted by anybody until"), "{stats}");
}

/// In governance mode a store works as in any bucket, and is not taken for immutable: who may
/// bypass the mode deletes, and the proof does.
#[test]
fn a_bucket_in_governance_mode_is_used_and_not_taken_for_immutable() {
    let (desk, server) = desk("GOVERNANCE");
    desk.refused(&["init", STORE, "--object-lock"], 5, "in the mode GOVERNANCE");
    let versions = ask(server.port, "GET /locked?versions HTTP/1.1", "");
    assert_eq!(elements(&versions, "Version").len(), 0, "the probe was deleted: {versions}");

    desk.good(&["init", STORE]);
    let first = desk.capture(&[]);
    let original = desk.disk();
    change(&desk, 9);
    desk.good(&["verify", STORE]);
    assert!(desk.restore(point(&first), "1.raw", &[]) == original);
}

/// E9: somebody with the bucket's keys deletes everything. No command takes the place for an empty
/// one, each names the way back, and it leads back.
#[test]
fn a_store_that_was_deleted_behind_its_back_is_named_and_comes_back() {
    let (desk, server) = desk("COMPLIANCE");
    desk.good(&["init", STORE, "--object-lock"]);
    let first = desk.capture(&[]);
    let original = desk.disk();
    desk.good(&["prune", STORE, "--keep", "1d"]);
    let before = keys(server.port);
    let time = next_second();

    keys(server.port).iter().for_each(|key| hide(server.port, key));

    assert!(keys(server.port).is_empty());
    for words in [&["points", STORE][..], &["verify", STORE], &["stats", STORE]] {
        desk.refused(words, 1, "was deleted at");
        desk.refused(words, 1, "leeward store undelete");
    }
    let (key, recovery) = (desk.text("new.key"), desk.text("new.recovery"));
    let files = ["--key-file", &key, "--recovery-key", &recovery];
    desk.refused(&[&["init", STORE][..], &files].concat(), 1, "was deleted at");
    assert!(!desk.path("new.key").exists(), "no other store takes its place");

    assert!(desk.good(&["undelete", STORE]).contains("objects"));
    let shown = desk.good(&["undelete", STORE, "--as-of", &time]);
    assert!(shown.contains("store.json") && shown.contains("nothing was changed"), "{shown}");
    desk.refused(&["points", STORE], 1, "was deleted at");
    let done = desk.good(&["undelete", STORE, "--as-of", &time, "--yes-undelete"]);
    assert!(done.contains("came back"), "{done}");

    let is_lease = |key: &String| key.contains("/store.lock/") || key.contains("/keys.lock/");
    let expected: Vec<_> = before.into_iter().filter(|key| !is_lease(key)).collect();
    let mut after = keys(server.port);
    after.retain(|key| !is_lease(key));
    assert_eq!(after, expected);
    desk.good(&["verify", STORE]);
    assert!(desk.restore(point(&first), "1.raw", &[]) == original);
    let second = change(&desk, 11);
    assert!(desk.restore(point(&second), "2.raw", &[]) == desk.disk());
}

/// E9, a rolled back store: the newest manifests are hidden and a segment is covered with other
/// bytes. Verify names both; undelete finds both.
#[test]
fn newest_manifests_that_were_hidden_and_bytes_that_were_covered_are_named_and_come_back() {
    let (desk, server) = desk("COMPLIANCE");
    desk.good(&["init", STORE, "--object-lock"]);
    desk.capture(&[]);
    let second = change(&desk, 12);
    let last = desk.disk();
    let time = next_second();
    let there = keys(server.port);
    let manifest = |key: &&String| {
        let (folder, number) = key.rsplit_once('/').unwrap();
        folder.ends_with("/manifest") && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let newest = there.iter().filter(manifest).max().unwrap();
    let segment = there.iter().find(|key| key.contains("/segments/")).unwrap();

    hide(server.port, newest);
    let points = desk.good(&["points", STORE, "--item", "web01"]);
    assert!(!points.contains(point(&second)), "a rollback is not seen by its item: {points}");
    let newest = newest.strip_prefix("some/where/").unwrap();
    let said = desk.run(&["verify", STORE]);
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains(newest) && said.contains("newer than what is there"), "{said}");
    let covered = ask(
        server.port,
        &format!("PUT /locked/{segment} HTTP/1.1\r\n{OWNER}\r\nContent-MD5: unread"),
        "nothing of yours",
    );
    assert!(covered.starts_with("HTTP/1.1 200"), "{covered}");
    let said = String::from_utf8(desk.run(&["verify", STORE]).stdout).unwrap();
    assert!(said.contains(segment.rsplit('/').next().unwrap()), "{said}");
    assert!(said.contains("leeward store undelete s3://locked/some/where"), "{said}");

    let shown = desk.good(&["undelete", STORE, "--as-of", &time]);
    assert!(shown.contains("overwritten at") && shown.contains("2 objects"), "{shown}");
    desk.good(&["undelete", STORE, "--as-of", &time, "--yes-undelete"]);

    desk.good(&["verify", STORE]);
    assert!(desk.restore(point(&second), "1.raw", &[]) == last);
}

/// What somebody on the way sees: passes everything on, and keeps what was asked.
struct Listener {
    port: u16,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Listener {
    /// Listens before the server at `to`.
    fn before(to: u16) -> Listener {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let kept = asked.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", to)));
                let server = server.unwrap();
                let number = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(Vec::new());
                    kept.len() - 1
                };
                let (mut back, mut to_client) =
                    (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut back, &mut to_client));
                let kept = kept.clone();
                thread::spawn(move || pass_on(client, server, &kept, number));
            }
        });
        Listener { port, asked }
    }

    /// The heads of all requests so far, in lines.
    fn heads(&self) -> Vec<Vec<String>> {
        let asked = self.asked.lock().unwrap();
        asked.iter().flat_map(|connection| heads(connection)).collect()
    }
}

fn pass_on(
    mut client: TcpStream,
    mut server: TcpStream,
    kept: &Mutex<Vec<Vec<u8>>>,
    number: usize,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = client.read(&mut buffer) {
        kept.lock().unwrap()[number].extend_from_slice(&buffer[..read]);
        if server.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    let _ = server.shutdown(std::net::Shutdown::Write);
}

/// The heads of requests that came one after another.
fn heads(mut bytes: &[u8]) -> Vec<Vec<String>> {
    let mut heads = Vec::new();
    while let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let head: Vec<String> = head.lines().map(str::to_owned).collect();
        let len: usize = header(&head, "content-length").parse().unwrap_or(0);
        bytes = bytes.get(end + 4 + len..).unwrap_or_default();
        heads.push(head);
    }
    heads
}

fn header<'a>(head: &'a [String], name: &str) -> &'a str {
    let pairs = head.iter().filter_map(|line| line.split_once(':'));
    let mut found = pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    found.next().map_or("", |(_, value)| value.trim())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a request is signed as S3 wants it (signature version 4), by the desk's secret.
fn is_signed(head: &[String]) -> bool {
    let part = |name: &str| {
        let (_, rest) = header(head, "authorization").split_once(name).unwrap();
        rest.split(',').next().unwrap().trim().to_owned()
    };
    let (credential, names) = (part("Credential="), part("SignedHeaders="));
    let (_, scope) = credential.split_once('/').unwrap();
    let mut first = head[0].split(' ');
    let (method, target) = (first.next().unwrap(), first.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut query: Vec<&str> = query.split('&').collect();
    query.sort_unstable();
    let headers = names.split(';').map(|name| format!("{name}:{}\n", header(head, name)));
    let (headers, query) = (headers.collect::<String>(), query.join("&"));
    let body = header(head, "x-amz-content-sha256");
    let asked = format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{body}");
    let hash = hex(digest::digest(&digest::SHA256, asked.as_bytes()).as_ref());
    let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{hash}", header(head, "x-amz-date"));
    let sign = |key: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
    };
    let secret = b"AWS4a-secret-that-nobody-logs".to_vec();
    let key = scope.split('/').fold(secret, |key, part| sign(&key, part));
    part("Signature=") == hex(&sign(&key, &text))
}

/// What S3 asks of a put into such a bucket, whole objects and parts: a checksum, signed with the
/// rest. It is not sent to a server that did not ask for it.
#[test]
fn what_is_put_into_a_locked_bucket_has_a_checksum_under_a_good_signature() {
    let (mut desk, server) = desk("COMPLIANCE");
    let listener = Listener::before(server.port);
    desk.s3(&format!("http://127.0.0.1:{}", listener.port));
    desk.good(&["init", STORE]);
    desk.capture(&[]);

    let heads = listener.heads();
    let puts = heads.iter().filter(|head| head[0].starts_with("PUT "));
    let (with, without): (Vec<_>, Vec<_>) =
        puts.partition(|head| !header(head, "content-md5").is_empty());
    assert!(with.iter().any(|head| head[0].contains("partNumber=")), "no object has parts");
    assert!(without.len() < 4 && without.iter().all(|head| is_signed(head)), "{without:#?}");
    for head in with {
        let sum = STANDARD.decode(header(head, "content-md5")).unwrap();
        let signed = header(head, "authorization").contains("content-md5;");
        assert!(sum.len() == 16 && signed && is_signed(head), "{head:#?}");
    }

    assert!(ask(server.port, "PUT /plain HTTP/1.1", "").starts_with("HTTP/1.1 200"));
    desk.good(&["init", "s3://plain/store"]);
    let heads = listener.heads();
    let plain: Vec<_> = heads.iter().filter(|head| head[0].starts_with("PUT /plain")).collect();
    assert!(plain.len() > 2);
    assert!(plain.iter().all(|head| header(head, "content-md5").is_empty()), "nobody asked");
}
