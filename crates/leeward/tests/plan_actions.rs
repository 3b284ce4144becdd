//! What recovery plans do outside, for real: scripts as processes without rights, webhooks to a
//! server of the test, a zone of BIND from Debian, ports that open late. All in loopback.
#![expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

use leeward::roles::up::actions::{ActionOptions, Outside};
use leeward_control::plans::{
    Act, ActionEnd, ActionFacts, ActionMachine, ActionRun, ActionRunner as _, DnsUpdate,
    KeyAlgorithm, Secret, Task, Verb,
};
use leeward_model::{Direction, ItemId, JobId, PointId, Site};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Of anything here; a loaded machine takes seconds for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

struct Place {
    folder: tempfile::TempDir,
    options: ActionOptions,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        // Scripts run as somebody else when the tests run as root.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let options = ActionOptions {
            scripts: folder.path().to_owned(),
            script_user: "nobody:nogroup".to_owned(),
            webhooks: Vec::new(),
            webhook_ca: None,
        };
        Place { folder, options }
    }

    fn script(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }

    async fn run(&self, act: Act, task: Task, found: Option<serde_json::Value>) -> ActionEnd {
        Outside::new(self.options.clone()).run(run(act, task, found)).await
    }

    async fn does(&self, act: Act) -> ActionEnd {
        self.run(act, Task::Do, None).await
    }
}

fn run(act: Act, task: Task, found: Option<serde_json::Value>) -> ActionRun {
    let machine = ActionMachine {
        name: "db01".to_owned(),
        item: ItemId::from_u128(1),
        site: Site::Recovery,
        host: "kvm-b".to_owned(),
        macs: vec!["52:54:00:00:00:01".to_owned()],
        point: Some(PointId::from_u128(5)),
    };
    let web = ActionMachine { name: "web 01".to_owned(), point: None, ..machine.clone() };
    let facts = ActionFacts {
        plan: "shop".to_owned(),
        job: JobId::from_u128(7),
        verb: Verb::UnplannedFailover,
        direction: Some(Direction::ToRecovery),
        group: "Group 1".to_owned(),
        action: "act".to_owned(),
        machines: vec![machine, web],
    };
    ActionRun { id: "run-1".to_owned(), attempt: 2, task, act, found, facts }
}

fn script(path: &str, timeout_s: u32) -> Act {
    Act::Script { path: path.to_owned(), timeout_s }
}

/// F-161: exit code, output, environment, and what is written to its input.
#[tokio::test]
async fn a_script_is_told_of_the_failover_and_its_output_is_kept() {
    let place = Place::new();
    let text = "#!/bin/sh\nenv\ncat\necho to the other >&2\nexit 3\n";
    place.script("tell.sh", text, 0o755);

    let end = place.does(script("tell.sh", 60)).await;

    assert_eq!(end.code, Some(3), "{end:?}");
    assert_eq!(end.failure.as_deref(), Some("tell.sh ended with exit code 3"));
    for line in [
        "LEEWARD_MODE=do\n",
        "LEEWARD_OPERATION=UnplannedFailover\n",
        "LEEWARD_DIRECTION=PrimaryToRecovery\n",
        "LEEWARD_PLAN=shop\n",
        "LEEWARD_GROUP=Group 1\n",
        "LEEWARD_ATTEMPT=2\n",
        "LEEWARD_RUN=run-1\n",
        "LEEWARD_MACHINES=db01\nweb 01\n",
        "LEEWARD_POINTS=00000000-0000-0000-0000-000000000005\n",
        "LEEWARD_ADDRESSES=52:54:00:00:00:01\n",
        "\"operation\":\"UnplannedFailover\",\"direction\":\"PrimaryToRecovery\"",
        "\"machines\":[{\"name\":\"db01\"",
        "to the other\n",
    ] {
        assert!(end.output.contains(line), "{line} in {}", end.output);
    }
    assert!(!end.output.contains("CARGO"), "nothing of our environment: {}", end.output);
    place.script("mode.sh", "#!/bin/sh\necho $LEEWARD_MODE\n", 0o755);
    let end = place.run(script("mode.sh", 60), Task::Undo, None).await;
    assert_eq!((end.failure, end.output.as_str()), (None, "undo\n"));
}

/// F-161: a script has no rights of ours, and can get none.
#[tokio::test]
async fn a_script_runs_without_rights() {
    let place = Place::new();
    place.script("who.sh", "#!/bin/sh\nid -u; id -G; grep NoNewPrivs /proc/self/status\n", 0o755);

    let end = place.does(script("who.sh", 60)).await;

    assert_eq!(end.failure, None, "{end:?}");
    assert!(end.output.ends_with("NoNewPrivs:\t1\n"), "{}", end.output);
    if rustix_is_root() {
        assert!(end.output.starts_with("65534\n65534\n"), "{}", end.output);
    }
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").map(|found| std::os::unix::fs::MetadataExt::uid(&found)).ok()
        == Some(0)
}

/// F-161: only files of the folder that nobody else can change.
#[tokio::test]
async fn what_others_can_change_is_not_run() {
    let place = Place::new();
    place.script("open.sh", "#!/bin/sh\n", 0o777);
    place.script("text.sh", "#!/bin/sh\n", 0o644);
    std::os::unix::fs::symlink("/bin/true", place.folder.path().join("link.sh")).unwrap();
    for (name, words) in [
        ("open.sh", "somebody else"),
        ("text.sh", "is no program"),
        ("link.sh", ""),
        ("none.sh", "No such file"),
    ] {
        let end = place.does(script(name, 60)).await;
        let why = end.failure.unwrap_or_else(|| panic!("{name} ran"));
        assert!(why.contains(words), "{name}: {why}");
    }
    std::fs::set_permissions(place.folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    place.script("tell.sh", "#!/bin/sh\n", 0o755);
    let end = place.does(script("tell.sh", 60)).await;
    assert!(end.failure.unwrap().contains("somebody else"));
}

fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// F-161: the time limit, and a run that is not wanted any more, end all that a script started.
#[tokio::test]
async fn a_script_ends_with_its_time_and_with_its_run() {
    let place = Place::new();
    let notes = place.folder.path().join("notes");
    std::fs::create_dir(&notes).unwrap();
    std::fs::set_permissions(&notes, PermissionsExt::from_mode(0o777)).unwrap();
    let text = format!(
        "#!/bin/sh\nsleep 1000 &\necho $! >{0}/new\nmv {0}/new {0}/pid\necho began\nwait\n",
        notes.display()
    );
    place.script("long.sh", &text, 0o755);
    let pid = || std::fs::read_to_string(notes.join("pid")).map(|pid| pid.trim().to_owned());

    let end = place.does(script("long.sh", 3)).await;
    assert_eq!(end.failure.as_deref(), Some("it was not over after 3 s"));
    if let Ok(pid) = pid() {
        until("the child of the late one ends", || !lives(&pid)).await;
        std::fs::remove_file(notes.join("pid")).unwrap();
    }

    let outside = Outside::new(place.options.clone());
    let wanted = run(script("long.sh", 1000), Task::Do, None);
    let running = tokio::spawn(async move { outside.run(wanted).await });
    until("it began", || pid().is_ok()).await;
    let child = pid().unwrap();
    assert!(lives(&child));
    running.abort();
    until("its child ends", || !lives(&child)).await;
}

/// F-161: of a long output the end is kept, and a child that stays does not hold the action up.
#[tokio::test]
async fn an_output_is_bounded_and_waits_for_nobody() {
    let place = Place::new();
    let text = "#!/bin/sh\nsleep 1000 &\nhead -c 300000 /dev/zero | tr '\\0' x\necho end\n";
    place.script("long.sh", text, 0o755);

    let end = place.does(script("long.sh", 500)).await;

    assert_eq!(end.failure, None);
    assert_eq!(end.output.len(), ActionEnd::OUTPUT_MAX);
    assert!(end.output.ends_with("xend\n"));
}

/// Is a request as a receiver sees it: head and body.
type Seen = Arc<Mutex<Vec<(String, String)>>>;

/// Answers each request with the next of the given statuses, and the last one again.
fn receiver(answers: &'static [&'static str]) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let told = seen.clone();
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let answer = answers[index.min(answers.len() - 1)];
            told.lock().unwrap().push(receive(stream.unwrap(), answer));
        }
    });
    (address, seen)
}

fn receive(mut stream: TcpStream, answer: &str) -> (String, String) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() <= 2 {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 4\r\nconnection: close\r\n\r\nhow?");
    stream.write_all(text.as_bytes()).unwrap();
    (head, String::from_utf8(body).unwrap())
}

fn webhook(address: SocketAddr, retries: u32) -> Act {
    let secret = Some(Secret::new("a secret of sixteen"));
    Act::Webhook { url: format!("http://{address}/tell"), timeout_s: 60, retries, secret }
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head.lines().find(|line| line.starts_with(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in {head}")).split_once(':').unwrap().1.trim()
}

/// F-161: signed, again after a failure that may pass, with the same id.
#[tokio::test]
async fn a_webhook_is_signed_and_sent_again() {
    let mut place = Place::new();
    let (address, seen) = receiver(&["503 Later", "200 OK"]);
    place.options.webhooks = vec![format!("http://{address}/")];

    let end = place.does(webhook(address, 3)).await;

    assert_eq!((end.failure, end.code, end.output.as_str()), (None, Some(200), "how?"));
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    for (head, body) in &seen {
        let (id, at) = (header(head, "webhook-id"), header(head, "webhook-timestamp"));
        assert!(head.starts_with("POST /tell ") && id == "run-1", "{head}");
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"a secret of sixteen");
        let tag = aws_lc_rs::hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes());
        use base64::Engine as _;
        let wanted = base64::engine::general_purpose::STANDARD.encode(tag);
        assert_eq!(header(head, "webhook-signature"), format!("v1,{wanted}"));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&body["mode"], &body["data"]["operation"]),
            (&"do".into(), &"UnplannedFailover".into())
        );
        assert_eq!(body["data"]["machines"][1]["name"], "web 01");
        assert!(!body.to_string().contains("secret of"), "{body}");
    }
}

/// F-161: what will not pass is not tried again; nobody there is; nobody else is asked.
#[tokio::test]
async fn a_webhook_that_is_refused_fails_and_only_allowed_ones_are_sent() {
    let mut place = Place::new();
    let (address, seen) = receiver(&["403 No"]);
    let end = place.does(webhook(address, 3)).await;
    assert!(end.failure.unwrap().contains("--webhook"));
    assert_eq!(seen.lock().unwrap().len(), 0);

    place.options.webhooks = vec![format!("http://{address}/")];
    let end = place.run(webhook(address, 3), Task::Undo, None).await;
    assert_eq!(end.failure.as_deref(), Some("it answered 403 Forbidden"));
    let (_, body) = seen.lock().unwrap()[0].clone();
    assert!(body.contains("\"mode\":\"undo\"") && seen.lock().unwrap().len() == 1);

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    place.options.webhooks = vec![format!("http://{nobody}/")];
    let end = place.does(webhook(nobody, 1)).await;
    assert!(end.failure.unwrap().contains("refused"));
    let (redirects, _) = receiver(&["302 Found"]);
    place.options.webhooks = vec![format!("http://{redirects}/")];
    assert_eq!(place.does(webhook(redirects, 0)).await.code, Some(302));
}

/// F-161: waits for TCP and for a good answer over HTTP, and no longer than it may.
#[tokio::test]
async fn it_is_waited_until_something_answers() {
    let place = Place::new();
    let wait = |url: String, timeout_s| Act::Wait { url, timeout_s };
    let (address, seen) = receiver(&["503 Booting", "200 OK"]);
    let end = place.does(wait(format!("http://{address}/health"), 60)).await;
    assert_eq!((end.failure, end.code), (None, Some(200)));
    assert_eq!(seen.lock().unwrap().len(), 2);

    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let end = place.does(wait(format!("tcp://{free}"), 2)).await;
    assert_eq!(end.failure.as_deref(), Some("it was not over after 2 s"));
    let outside = Outside::new(place.options.clone());
    let late = run(wait(format!("tcp://{free}"), 60), Task::Do, None);
    let waits = tokio::spawn(async move { outside.run(late).await });
    let _opened = TcpListener::bind(free).unwrap();
    assert_eq!(waits.await.unwrap().failure, None);
}

const KEY: &str = "bGVld2FyZC10ZXN0LWtleS0wMTIzNDU2Nzg5YWJjZGVm";

/// Is BIND with the zone `shop.example`, on a port of its own.
struct Bind {
    process: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Drop for Bind {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Bind {
    async fn start() -> Bind {
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let path = folder.path().display();
        let conf = format!(
            "key leeward {{ algorithm hmac-sha256; secret \"{KEY}\"; }};\n\
             options {{ directory \"{path}\"; pid-file none; session-keyfile none; \
             listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; \
             dnssec-validation no; empty-zones-enable no; }};\n\
             controls {{ }};\n\
             zone \"shop.example\" {{ type primary; file \"zone\"; \
             update-policy {{ grant leeward zonesub A AAAA; }}; }};\n",
            port = address.port()
        );
        let zone = "$TTL 300\n@ IN SOA ns admin 1 60 60 600 60\n@ IN NS ns\nns IN A 127.0.0.1\n\
                    db IN A 10.1.0.5\ndb IN AAAA fd00::5\nwww IN CNAME db\n";
        std::fs::write(folder.path().join("named.conf"), conf).unwrap();
        std::fs::write(folder.path().join("zone"), zone).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let process = Command::new(root.join("target/bind9/usr/sbin/named"))
            .args(["-g", "-n", "1", "-c"])
            .arg(folder.path().join("named.conf"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .expect("scripts/setup.sh --tests fetches BIND");
        let mut bind = Bind { process, folder, address };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = bind.process.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{}", bind.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bind
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn update(&self, addresses: &[&str]) -> DnsUpdate {
        DnsUpdate {
            server: self.address.to_string(),
            zone: "shop.example".to_owned(),
            name: "db.shop.example".to_owned(),
            ttl_s: 60,
            addresses: addresses.iter().map(|one| one.parse::<IpAddr>().unwrap()).collect(),
            key_name: "leeward".to_owned(),
            key_algorithm: KeyAlgorithm::HmacSha256,
            key: Some(Secret::new(KEY)),
        }
    }

    /// The addresses of a name, as our own signed question is answered.
    async fn addresses(&self, name: &str) -> String {
        let update = DnsUpdate { name: name.to_owned(), ..self.update(&[]) };
        let end = dns(update, Task::Look, None).await;
        assert_eq!(end.failure, None, "{}", self.log());
        end.output
    }
}

async fn dns(update: DnsUpdate, task: Task, found: Option<serde_json::Value>) -> ActionEnd {
    Place::new().run(Act::Dns { update, timeout_s: 60 }, task, found).await
}

/// F-161: RFC 2136 with TSIG against BIND: set, done twice, put back, put back twice.
#[tokio::test]
async fn a_name_gets_other_addresses_and_its_own_again() {
    let bind = Bind::start().await;
    let update = bind.update(&["10.2.0.5", "10.2.0.6"]);
    let before = dns(update.clone(), Task::Look, None).await;
    assert_eq!((before.failure, before.output.as_str()), (None, "10.1.0.5, fd00::5"));

    for _ in 0..2 {
        let end = dns(update.clone(), Task::Do, before.found.clone()).await;
        assert_eq!(end.failure, None, "{}", bind.log());
        assert_eq!(bind.addresses("db.shop.example").await, "10.2.0.5, 10.2.0.6");
    }
    for _ in 0..2 {
        let end = dns(update.clone(), Task::Undo, before.found.clone()).await;
        assert_eq!(end.failure, None, "{}", bind.log());
        assert_eq!(bind.addresses("db.shop.example").await, "10.1.0.5, fd00::5");
    }

    // A name that was not there is gone again.
    let new = DnsUpdate { name: "new.shop.example".to_owned(), ..update };
    let nothing = dns(new.clone(), Task::Look, None).await;
    assert_eq!(nothing.output, "no address");
    dns(new.clone(), Task::Do, nothing.found.clone()).await;
    assert_eq!(bind.addresses("new.shop.example").await, "10.2.0.5, 10.2.0.6");
    dns(new, Task::Undo, nothing.found).await;
    assert_eq!(bind.addresses("new.shop.example").await, "no address");
}

/// F-161: what somebody else has set since is not put back, and nothing is changed without a key
/// that the server knows.
#[tokio::test]
async fn a_name_that_others_changed_is_left_and_a_wrong_key_is_refused() {
    let bind = Bind::start().await;
    let ours = bind.update(&["10.2.0.5"]);
    let before = dns(ours.clone(), Task::Look, None).await;
    dns(ours.clone(), Task::Do, before.found.clone()).await;
    dns(bind.update(&["10.9.9.9"]), Task::Do, None).await;

    let end = dns(ours.clone(), Task::Undo, before.found).await;
    let why = end.failure.unwrap();
    assert!(why.contains("10.9.9.9 now, which this plan did not set"), "{why}");
    assert_eq!(bind.addresses("db.shop.example").await, "10.9.9.9");

    let stranger = DnsUpdate { key: Some(Secret::new("AAAA".repeat(8))), ..ours.clone() };
    let unknown = DnsUpdate { key_name: "nobody".to_owned(), ..ours.clone() };
    for (update, words) in [(stranger, "did not take the key"), (unknown, "did not take the key")] {
        let why = dns(update, Task::Do, None).await.failure.unwrap();
        assert!(why.contains(words), "{why}");
    }
    let alias = DnsUpdate { name: "www.shop.example".to_owned(), ..ours.clone() };
    let why = dns(alias, Task::Look, None).await.failure.unwrap();
    assert!(why.contains("is an alias"), "{why}");
    let zone = DnsUpdate { zone: "other.example".to_owned(), ..ours };
    let why = dns(zone, Task::Do, None).await.failure.unwrap();
    assert!(why.contains("refused the update"), "{why}");
    assert_eq!(bind.addresses("db.shop.example").await, "10.9.9.9");
}
