//! `leeward store` over stores that others wrote: moto and SeaweedFS for S3, Azurite for Azure
//! Blob, on loopback, and a double of ours for a server that overwrites what was to be created.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

#[path = "object_stores/locked.rs"]
mod locked;

const PROGRAM: &str = env!("CARGO_BIN_EXE_leeward");
const DEADLINE: Duration = Duration::from_secs(120);
/// Long enough for a segment that is put in several parts.
const DISK_BYTES: u64 = 40 << 20;
/// The account that every Azurite has, with the key that its makers published.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A server of somebody else's, ended with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts it and waits until it says where it listens.
    fn start(folder: &Path, program: &Path, words: &[&str]) -> Server {
        assert!(program.exists(), "{} is missing: scripts/setup.sh --tests", program.display());
        let log = folder.join("server.log");
        let (out, err) = (File::create(&log).unwrap(), File::options().append(true).open(&log));
        let child = Command::new(program)
            .args(words)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err.unwrap())
            .spawn()
            .unwrap();
        let mut server = Server { child, port: 0 };
        let begun = Instant::now();
        while server.port == 0 {
            let said = fs::read_to_string(&log).unwrap_or_default();
            assert!(begun.elapsed() < DEADLINE, "the server does not listen: {said}");
            assert!(server.child.try_wait().unwrap().is_none(), "the server ended: {said}");
            // Its line has to be whole, else the port may be cut.
            let lines = said.lines().filter(|_| said.ends_with('\n'));
            let ports = lines.filter_map(|line| line.split_once("http://127.0.0.1:"));
            let mut ports = ports.filter_map(|(_, port)| port.trim().parse().ok());
            server.port = ports.next().unwrap_or(0);
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn moto(folder: &Path) -> Server {
        let python = root().join("target/python/bin/python");
        Server::start(folder, &python, &["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
    }

    /// SeaweedFS, with a bucket of the name and its files in `folder`: they stay when it ends.
    fn seaweed(folder: &Path, bucket: &str) -> Server {
        let weed = root().join("target/python/bin/weed");
        assert!(weed.exists(), "{} is missing: scripts/setup.sh --tests", weed.display());
        let parts = ["master", "volume", "filer", "admin", "s3"];
        let mut options: Vec<String> = ["webdav.port", "s3.port.iceberg", "s3.port.lance"]
            .into_iter()
            .map(str::to_owned)
            .chain(parts.iter().map(|part| format!("{part}.port.grpc")))
            .chain(parts.iter().map(|part| format!("{part}.port")))
            .collect();
        // All at once, so that no two are the same; S3's own is the last.
        let held: Vec<_> =
            options.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = held.iter().map(|held| held.local_addr().unwrap().port()).collect();
        drop(held);
        for (option, port) in options.iter_mut().zip(&ports) {
            *option = format!("-{option}={port}");
        }
        fs::create_dir_all(folder.join("seaweed")).unwrap();
        let child = Command::new(weed)
            .args(["mini", "-dir=seaweed", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
            .arg(format!("-bucket={bucket}"))
            .args(&options)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Server { child, port: *ports.last().unwrap() };
        let begun = Instant::now();
        while !server.has_bucket(bucket) {
            assert!(begun.elapsed() < DEADLINE, "SeaweedFS has no bucket");
            assert!(server.child.try_wait().unwrap().is_none(), "SeaweedFS ended");
            thread::sleep(Duration::from_millis(100));
        }
        server
    }

    fn has_bucket(&self, bucket: &str) -> bool {
        // Nobody listens at first.
        if TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            return false;
        }
        ask(self.port, &format!("GET /{bucket}?list-type=2 HTTP/1.1"), "").contains(" 200 ")
    }

    fn azurite(folder: &Path) -> Server {
        let azurite = root().join("target/node/node_modules/.bin/azurite-blob");
        let words = ["--disableTelemetry", "--silent", "--skipApiVersionCheck", "--blobPort", "0"];
        let more = ["--blobHost", "127.0.0.1", "--location", "azurite"];
        Server::start(folder, &azurite, &[&words[..], &more[..]].concat())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One plain request; returns the whole answer.
fn ask(port: u16, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let len = body.len();
    let host = format!("Host: 127.0.0.1:{port}\r\nContent-Length: {len}\r\nConnection: close");
    write!(stream, "{head}\r\n{host}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A disk, and the tool with the environment of one store.
struct Desk {
    folder: tempfile::TempDir,
    store: String,
    env: Vec<(&'static str, String)>,
}

impl Desk {
    fn new(store: &str) -> Desk {
        let folder = tempfile::Builder::new().prefix("lwo").tempdir_in("/tmp").unwrap();
        let desk = Desk { folder, store: store.to_owned(), env: Vec::new() };
        let disk = File::create(desk.path("disk.raw")).unwrap();
        disk.set_len(DISK_BYTES).unwrap();
        disk.write_all_at(&noise(1, 18 << 20), 1 << 20).unwrap();
        disk.write_all_at(&b"a line of a log\n".repeat(1 << 16), 24 << 20).unwrap();
        desk
    }

    fn s3(&mut self, endpoint: &str) {
        self.env = vec![
            ("AWS_ENDPOINT_URL", endpoint.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "reader".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "a-secret-that-nobody-logs".to_owned()),
        ];
    }

    fn azure(&mut self, port: u16, key: &str) {
        self.env = vec![
            ("AZURE_STORAGE_ENDPOINT", format!("http://127.0.0.1:{port}/{ACCOUNT}")),
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY", key.to_owned()),
        ];
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("store").args(words).current_dir(self.folder.path());
        command.env("XDG_CACHE_HOME", self.path("cache")).env("RUST_LOG", "trace");
        command.env("XDG_CONFIG_HOME", self.path("settings"));
        for variable in ["AWS_ALLOW_HTTP", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(variable);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        let output = self.command(words).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        for (name, value) in &self.env {
            let secret = name.contains("SECRET") || name.contains("KEY");
            assert!(!secret || value == "reader" || !said.contains(value), "{name} was logged");
        }
        output
    }

    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, words: &[&str], exit: i32, part: &str) {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{words:?}: {said}");
        assert!(said.contains(part), "{words:?}: {said}");
    }

    fn capture(&self, more: &[&str]) -> Value {
        let disk = format!("sda={}", self.text("disk.raw"));
        let words = ["capture", &self.store, "--item", "web01", "--disk", &disk];
        serde_json::from_str(&self.good(&[&words[..], more].concat())).unwrap()
    }

    fn restore(&self, point: &str, out: &str, more: &[&str]) -> Vec<u8> {
        let (words, out) = (["restore", &self.store, "--item", "web01"], self.text(out));
        let rest = ["--point", point, "--disk", "sda", &out];
        self.good(&[&words[..], &rest[..], more].concat());
        fs::read(out).unwrap()
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.path("disk.raw")).unwrap()
    }

    /// Serves the newest point and has `qemu-img` compare it with the disk.
    fn compare_served(&self) {
        let socket = self.text("sock");
        let words = ["serve", &self.store, "--item", "web01", "--point", "latest"];
        let mut command =
            self.command(&[&words[..], &["--disk", "sda", "--socket", &socket]].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let url = format!("nbd+unix:///?socket={socket}");
        let compared = Command::new("qemu-img")
            .args(["compare", "-f", "raw", "-F", "raw", &url, &self.text("disk.raw")])
            .output()
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(said.starts_with("serving disk sda"), "{said}");
        assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    }
}

/// Bytes that repeat nothing, from a seed (xorshift64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Everything that a store can be asked for; the first point is of the disk as it was made.
fn story(desk: &Desk) {
    let made: Value =
        serde_json::from_str(&desk.good(&["init", &desk.store, "--output", "json"])).unwrap();
    let key = PathBuf::from(made["keyFile"].as_str().unwrap());
    assert!(key.starts_with(desk.path("settings")), "{made}");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    desk.refused(&["init", &desk.store], 4, "exists");
    let again = desk.text("again.txt");
    desk.refused(&["init", &desk.store, "--recovery-key", &again], 4, "lies there already");

    let first = desk.capture(&[]);
    let original = desk.disk();
    let disk = File::options().write(true).open(desk.path("disk.raw")).unwrap();
    disk.write_all_at(&noise(9, 4096), 30 << 20).unwrap();
    let second = desk.capture(&[]);

    assert_eq!(second["bytes_changed"], 4096);
    let points = desk.good(&["points", &desk.store, "--item", "web01", "--output", "json"]);
    let points: Vec<Value> = serde_json::from_str(&points).unwrap();
    assert_eq!(points.len(), 2);
    desk.good(&["verify", &desk.store]);
    assert!(desk.restore(first["point"].as_str().unwrap(), "1.raw", &[]) == original);
    assert!(desk.restore("latest", "2.raw", &[]) == desk.disk());
    desk.compare_served();

    let recovery = fs::read_dir(desk.folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let recovery = recovery.filter(|path| path.to_str().unwrap().ends_with(".recovery-key.txt"));
    let recovery: Vec<PathBuf> = recovery.collect();
    let recovery = recovery[0].to_str().unwrap();
    let kept = desk.text("kept.key");
    fs::rename(&key, &kept).unwrap();
    desk.refused(&["points", &desk.store], 4, "LW-0406");
    desk.good(&["points", &desk.store, "--key-file", &kept]);
    assert!(desk.restore("latest", "3.raw", &["--recovery-key", recovery]) == desk.disk());
    fs::rename(&kept, &key).unwrap();
    new_key_file(desk, &key);
}

/// A new key file takes the place of the former one, which opens nothing any more; a change that
/// was cut short once it counted leaves a store that opens.
fn new_key_file(desk: &Desk, key: &Path) {
    let before = fs::read(key).unwrap();
    desk.good(&["rekey", &desk.store, "--new-key-file"]);
    let after = fs::read(key).unwrap();
    assert_ne!(after, before);
    assert!(desk.restore("latest", "4.raw", &[]) == desk.disk());
    let former = format!("{}.former-1", key.display());
    assert_eq!(fs::read(&former).unwrap(), before);
    desk.refused(&["points", &desk.store, "--key-file", &former], 4, "LW-0406");

    fs::rename(key, format!("{}.next", key.display())).unwrap();
    fs::write(key, &before).unwrap();
    desk.good(&["points", &desk.store]);
    fs::rename(format!("{}.next", key.display()), key).unwrap();
}

/// F-039.
#[test]
fn a_store_in_s3_does_what_one_in_a_folder_does() {
    let mut desk = Desk::new("s3://bucket/some/where");
    let server = Server::moto(desk.folder.path());
    desk.s3(&format!("http://127.0.0.1:{}", server.port));
    let missing = "there is no such bucket";
    desk.refused(&["init", &desk.store], 1, missing);
    desk.refused(&["points", &desk.store], 1, missing);
    assert!(ask(server.port, "PUT /bucket HTTP/1.1", "").starts_with("HTTP/1.1 200"));
    desk.refused(&["points", &desk.store], 4, "no store in this place");

    story(&desk);

    let listed = ask(server.port, "GET /bucket?list-type=2 HTTP/1.1", "");
    assert!(listed.contains("<Key>some/where/store.json</Key>"), "{listed}");
    assert!(!listed.contains("store.key"), "the key lies in the bucket: {listed}");
    assert!(!listed.contains(".parts/"), "parts of finished segments are left: {listed}");
    assert!(!listed.contains("probe-"), "a probe is left: {listed}");

    // Somebody else holds the lock, and does not answer.
    let lease = "PUT /bucket/some/where/store.lock/0000000000000099 HTTP/1.1";
    let note = r#"{"nonce":"n","host":"elsewhere","pid":77,"renewals":3,"let_go":false}"#;
    assert!(ask(server.port, lease, note).starts_with("HTTP/1.1 200"));
    let disk = format!("sda={}", desk.text("disk.raw"));
    let words = ["capture", &desk.store, "--item", "web01", "--disk", &disk];
    desk.refused(&words, 4, "process 77 on elsewhere");
    desk.good(&["points", &desk.store]);
    desk.capture(&["--force-takeover"]);
    desk.capture(&[]);
}

/// F-039, on a server that keeps its objects on a disk: also after it was killed and came back.
#[test]
fn a_store_in_seaweedfs_does_what_one_in_a_folder_does_and_survives_its_server() {
    let mut desk = Desk::new("s3://bucket/some/where");
    let server = Server::seaweed(desk.folder.path(), "bucket");
    desk.s3(&format!("http://127.0.0.1:{}", server.port));

    story(&desk);

    drop(server);
    let server = Server::seaweed(desk.folder.path(), "bucket");
    desk.s3(&format!("http://127.0.0.1:{}", server.port));
    desk.good(&["verify", &desk.store]);
    assert!(desk.restore("latest", "5.raw", &[]) == desk.disk());
    // The lock of the writer before may still be there.
    desk.capture(&["--force-takeover"]);
}

/// Makes a container, signed as Azure wants it.
fn make_container(port: u16, name: &str) {
    let date = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC);
    let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT");
    let headers = format!("x-ms-date:{date}\nx-ms-version:2021-08-06");
    let resource = format!("/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container");
    let text = format!("PUT{}{headers}\n{resource}", "\n".repeat(12));
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(ACCOUNT_KEY).unwrap());
    let signature = STANDARD.encode(hmac::sign(&key, text.as_bytes()));
    let head = format!(
        "PUT /{ACCOUNT}/{name}?restype=container HTTP/1.1\r\nx-ms-date: {date}\r\n\
         x-ms-version: 2021-08-06\r\nAuthorization: SharedKey {ACCOUNT}:{signature}"
    );
    let answer = ask(port, &head, "");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

/// F-039.
#[test]
fn a_store_in_azure_blob_does_what_one_in_a_folder_does() {
    let mut desk = Desk::new("az://box/some/where");
    let server = Server::azurite(desk.folder.path());
    desk.azure(server.port, ACCOUNT_KEY);
    desk.refused(&["init", &desk.store], 1, "there is no such bucket");
    make_container(server.port, "box");

    story(&desk);

    desk.azure(server.port, &STANDARD.encode([7; 64]));
    desk.refused(&["points", &desk.store], 1, "refuses these credentials");
}

/// A server that answers every put with yes.
fn overwriting_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let objects: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let objects = objects.clone();
            thread::spawn(move || answer(stream, &objects));
        }
    });
    port
}

fn answer(stream: TcpStream, objects: &Mutex<HashMap<String, Vec<u8>>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (method, path) = (line.split(' ').next()?.to_owned(), line.split(' ').nth(1)?.to_owned());
    let mut len = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            len = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    let mut objects = objects.lock().ok()?;
    let (status, body) = match method.as_str() {
        "PUT" => {
            objects.insert(path, body);
            ("200 OK", Vec::new())
        }
        "DELETE" => {
            objects.remove(&path);
            ("204 No Content", Vec::new())
        }
        _ if path.contains('?') => (
            "200 OK",
            b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>".to_vec(),
        ),
        _ => match objects.get(&path) {
            Some(body) => ("200 OK", body.clone()),
            None => ("404 Not Found", Vec::new()),
        },
    };
    let (len, date) = (body.len(), "Sat, 21 Nov 2026 00:00:00 GMT");
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nETag: \"1\"\r\nLast-Modified: {date}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    if method != "HEAD" {
        stream.write_all(&body).ok()?;
    }
    Some(())
}

#[test]
fn a_server_that_overwrites_is_refused_and_so_is_one_in_the_clear_on_a_network() {
    let mut desk = Desk::new("s3://bucket/x");
    let port = overwriting_server();
    desk.s3(&format!("http://127.0.0.1:{port}"));
    desk.refused(&["init", &desk.store], 1, "does not enforce create-if-absent");

    desk.s3("http://192.0.2.1:9000");
    desk.refused(&["points", &desk.store], 1, "AWS_ALLOW_HTTP");
    desk.refused(&["points", "gs://bucket/x"], 2, "there is no such kind of store");
}
