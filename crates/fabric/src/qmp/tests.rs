//! The client against a scripted peer; QEMU itself is in `tests/`.

use super::*;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;

const DEADLINE: Duration = Duration::from_secs(10);

struct Peer {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    listener: UnixListener,
}

struct Session {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Peer {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("q");
        let listener = UnixListener::bind(&socket).unwrap();
        Peer { _folder: folder, socket, listener }
    }

    /// Greets the next client and answers its first command.
    async fn greet(&self) -> Session {
        let (stream, _) = self.listener.accept().await.unwrap();
        let (read, write) = stream.into_split();
        let mut session = Session { lines: BufReader::new(read).lines(), write };
        let greeting = json!({"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}}});
        session.say(&greeting).await;
        let (id, command) = session.hear().await;
        assert_eq!(command, "qmp_capabilities");
        session.say(&json!({"return": {}, "id": id})).await;
        session
    }

    async fn connected(&self) -> (Qmp, Session) {
        let (qmp, session) = tokio::join!(Qmp::connect(&self.socket, DEADLINE), self.greet());
        (qmp.unwrap(), session)
    }
}

impl Session {
    async fn say(&mut self, message: &Value) {
        self.write.write_all(format!("{message}\r\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> (u64, String) {
        let line = self.lines.next_line().await.unwrap().expect("the client is there");
        let message: Value = serde_json::from_str(&line).unwrap();
        let command = message["execute"].as_str().unwrap().to_owned();
        (message["id"].as_u64().unwrap(), command)
    }
}

#[tokio::test]
async fn answers_find_their_callers_although_events_come_in_between() {
    let peer = Peer::new();
    let (qmp, mut session) = peer.connected().await;
    assert_eq!(qmp.version(), (7, 2));
    assert_eq!(qmp.peer_pid(), Some(std::process::id()));

    let talk = async {
        let (first, _) = session.hear().await;
        let (second, _) = session.hear().await;
        session.say(&json!({"return": "b", "id": second})).await;
        session.say(&json!({"event": "STOP", "timestamp": {}})).await;
        session.say(&json!({"return": "a", "id": first})).await;
    };
    let (a, b, ()) = tokio::join!(
        qmp.call("first", json!({}), DEADLINE),
        qmp.call("second", json!({}), DEADLINE),
        talk
    );

    assert_eq!((a.unwrap(), b.unwrap()), (json!("a"), json!("b")));
}

#[tokio::test]
async fn a_refusal_carries_the_command_and_the_words_of_qemu() {
    let peer = Peer::new();
    let (qmp, mut session) = peer.connected().await;

    let talk = async {
        let (id, _) = session.hear().await;
        let error = json!({"class": "DeviceNotFound", "desc": "Cannot find device=x"});
        session.say(&json!({"error": error, "id": id})).await;
    };
    let (refused, ()) = tokio::join!(qmp.call("blockdev-del", json!({}), DEADLINE), talk);

    let text = refused.unwrap_err().to_string();
    assert_eq!(text, "QEMU refused blockdev-del: DeviceNotFound: Cannot find device=x");
}

#[tokio::test]
async fn a_call_without_answer_closes_the_connection_and_the_link_makes_a_new_one() {
    let peer = Peer::new();
    let link = Link::new(peer.socket.clone());
    let (first, session) = tokio::join!(link.qmp(DEADLINE), peer.greet());
    let first = first.unwrap();

    let silent = first.call("query-status", json!({}), Duration::from_millis(50)).await;
    assert!(matches!(silent, Err(QmpError::Deadline { .. })), "{silent:?}");
    let later = first.call("query-status", json!({}), DEADLINE).await;
    assert!(matches!(later, Err(QmpError::Closed(_))), "{later:?}");
    drop(session);

    let (second, _session) = tokio::join!(link.qmp(DEADLINE), peer.greet());
    assert!(!second.unwrap().is_closed());
}

#[tokio::test]
async fn an_event_is_found_after_its_mark_only() {
    let peer = Peer::new();
    let (qmp, mut session) = peer.connected().await;
    let start = qmp.events_now();
    session.say(&json!({"event": "SHUTDOWN", "data": {"guest": true}})).await;
    let is_shutdown = |event: &QmpEvent| event.name == "SHUTDOWN";

    let event = qmp.wait_event("a shutdown", start, is_shutdown, DEADLINE).await.unwrap();
    assert_eq!(event.data, json!({"guest": true}));

    let after = qmp.events_now();
    let none = qmp.wait_event("a shutdown", after, is_shutdown, Duration::from_millis(50)).await;
    assert!(matches!(none, Err(QmpError::NoEvent { .. })), "{none:?}");
}

#[tokio::test]
async fn events_nobody_takes_are_bounded() {
    let peer = Peer::new();
    let (qmp, mut session) = peer.connected().await;
    for number in 0..EVENTS_MAX + 10 {
        session.say(&json!({"event": "RTC_CHANGE", "data": number})).await;
    }
    session.say(&json!({"event": "LAST"})).await;
    let start = EventMark(0);
    qmp.wait_event("the last", start, |event| event.name == "LAST", DEADLINE).await.unwrap();

    assert_eq!(qmp.shared.inbox().events.len(), EVENTS_MAX);
}

#[tokio::test]
async fn a_peer_that_does_not_greet_is_given_up() {
    let peer = Peer::new();

    let silent = Qmp::connect(&peer.socket, Duration::from_millis(50)).await;

    assert!(matches!(silent, Err(QmpError::NoGreeting(_))));
}

#[tokio::test]
async fn a_caller_learns_that_qemu_ended() {
    let peer = Peer::new();
    let (qmp, mut session) = peer.connected().await;

    let talk = async {
        session.hear().await;
        drop(session);
    };
    let (gone, ()) = tokio::join!(qmp.call("quit", json!({}), DEADLINE), talk);

    assert!(matches!(gone, Err(QmpError::Closed(_))), "{gone:?}");
}
