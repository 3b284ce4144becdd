//! One hash key per item in the stores of two hosts (decision 27), whoever dials, whichever comes
//! first, and what does not pass for a way to get or to give one.

use super::*;
use leeward::roles::session::SessionError;
use leeward_replica::ItemKeys;
use leeward_wire::{
    data::HashKeyWord,
    keys::HashKey,
    message::{NewestPoint, OtherStore, PROTOCOL_VERSION},
};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

const JOB: JobId = JobId::from_u128(7);
const STRANGER: HostId = HostId::from_u128(99);

fn machine() -> MachineRef {
    MachineRef::Owned(NAME.into())
}

fn other(host: HostId, address: Option<&str>) -> Option<OtherStore> {
    Some(OtherStore { host, address: address.map(str::to_owned), waits: false })
}

/// The recovery host's store, which keeps what it has; the first of the item if there is no other.
fn holds(other_store: Option<OtherStore>) -> TargetDuty {
    TargetDuty {
        site: Site::Recovery,
        source_host: HOME,
        source_address: None,
        receive: false,
        other_store,
        ..receives(branch(21, None))
    }
}

fn target(other_store: Option<OtherStore>, goes: Branch) -> Option<TargetDuty> {
    Some(TargetDuty { other_store, ..receives(goes) })
}

fn dialled_by_source(other_store: Option<OtherStore>) -> Option<TargetDuty> {
    Some(TargetDuty { source_address: None, other_store, ..receives(branch(21, None)) })
}

impl End {
    fn keys(&self) -> Option<ItemKeys> {
        let blobs = Arc::new(LocalStore::open_reading(self.folder.path().join("store")));
        let store = Store::open(blobs, None, &Unlock::KeyFile, Arc::new(SystemRandom)).unwrap();
        store.item_read(ITEM).ok().map(|reader| reader.keys().clone())
    }

    async fn has_part(&self) -> ItemKeys {
        let fenced = |host: &Host| {
            let seen = host.board.items_seen();
            seen.iter()
                .any(|seen| seen.target.as_ref().is_some_and(|t| t.fence >= EPOCH))
                .then_some(())
        };
        self.seen(fenced).await;
        self.keys().unwrap()
    }

    /// The same host with an empty store and nothing else of the item.
    fn without_store(self, at: Site) -> (End, TempDir) {
        let End { id, host: old, machines, world, way, key, folder: lost, .. } = self;
        old.abort();
        let folder = tempfile::tempdir().unwrap();
        folders_make(folder.path()).unwrap();
        let (store, _) = site::store_open(folder.path(), id).unwrap();
        let store = site::site_store(store, at);
        let host = host(id, "boot", &folder, (&machines, &world), &store, &way);
        (End { id, host, machines, world, store, way, key, folder }, lost)
    }
}

/// Each can dial the other; the item's first store is away's.
async fn ends() -> (End, End, ItemKeys) {
    let (home, away) = (end(HOME, Site::Primary), end(AWAY, Site::Recovery));
    *home.way.to.lock().unwrap() = Some((HOME, Arc::clone(&away.host)));
    *away.way.to.lock().unwrap() = Some((AWAY, Arc::clone(&home.host)));
    for end in [&home, &away] {
        end.machines.disks(&machine()).unwrap().write(DISK, 0, &old_disk());
        end.machines.machine_claim(NAME, ITEM).await.unwrap();
    }
    away.machines.machine_start(NAME).await.unwrap();
    away.assign(1, None, Some(holds(None)));
    let keys = away.has_part().await;
    (home, away, keys)
}

fn newest_of(host: &Host) -> Option<NewestPoint> {
    host.board.items_seen().iter().find_map(|seen| seen.target.clone()?.newest)
}

fn replicates(goes: Branch, address: Option<&str>) -> Option<SourceDuty> {
    let run = SourceRun::Replicate { permit: None, start: None };
    let target_address = address.map(str::to_owned);
    Some(SourceDuty { target_address, ..duty(goes, HOME, run) })
}

fn assert_shared(end: &End, first: &ItemKeys) {
    let keys = end.keys().expect("it has a part");
    assert!(keys.hash == first.hash, "the item has two hash keys");
    assert!(keys.data != first.data, "two stores have one data key");
}

/// F-111: a host that never had the item, in a data session that either end dialled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_store_gets_the_items_hash_key_in_its_first_session_whoever_dials() {
    for store_dials in [true, false] {
        let (home, away, first) = ends().await;
        let goes = branch(21, None);
        let from = other(AWAY, None);
        let duty = if store_dials { target(from, goes) } else { dialled_by_source(from) };
        home.assign(1, None, duty);
        let address = (!store_dials).then_some("home:1");
        let to_home = other(HOME, address);
        away.assign(2, replicates(goes, address), Some(holds(to_home)));

        let point = home.seen(newest_of).await;

        assert_shared(&home, &first);
        assert!(home.stored(point.position) == away.content());
    }
}

async fn seed_of(home: &End) -> Result<Seeded, leeward_model::Problem> {
    home.seen(|host| host.board.source_seen(ITEM)?.seeded).await.1
}

async fn seed_stored(home: &End) -> Position {
    let stored = |host: &Host| match host.board.source_seen(ITEM)?.seeded?.1 {
        Ok(Seeded::Stored { position, .. }) => Some(position),
        _ => None,
    };
    home.seen(stored).await
}

fn seeds() -> Option<SourceDuty> {
    let run = SourceRun::Seed { job: JOB, base: None };
    Some(duty(branch(20, None), AWAY, run))
}

/// F-132: a seed comes before any session with the live side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_waits_for_the_hash_key_and_asks_for_it() {
    let (home, away, first) = ends().await;
    away.assign(2, None, Some(holds(other(HOME, None))));
    let way = home.way.to.lock().unwrap().take();

    home.assign(1, seeds(), target(other(AWAY, Some("away:1")), branch(20, None)));
    let problem = seed_of(&home).await.unwrap_err();
    assert_eq!(problem.code, Code::SEED_FAILED.code);
    assert!(problem.cause.contains("hash key"), "{problem}");
    assert_eq!(home.keys(), None, "no part with a key of its own");
    *home.way.to.lock().unwrap() = way;

    let at = seed_stored(&home).await;
    assert_shared(&home, &first);
    assert_eq!(home.stored(at), old_disk());
}

/// The live host cannot be dialled: it offers the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_cannot_ask_is_offered_the_hash_key() {
    let (home, away, first) = ends().await;
    home.assign(1, seeds(), target(other(AWAY, None), branch(20, None)));
    assert!(seed_of(&home).await.is_err());
    assert_eq!(home.keys(), None);

    let to = OtherStore { host: HOME, address: Some("home:1".into()), waits: true };
    away.assign(2, None, Some(holds(Some(to))));

    let at = seed_stored(&home).await;
    assert_shared(&home, &first);
    assert_eq!(home.stored(at), old_disk());
}

/// The other store may have been lost as well: then whoever needs a part draws.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_draws_a_hash_key_when_the_other_store_has_none() {
    let (home, away, _) = ends().await;
    let (away, _lost) = away.without_store(Site::Recovery);
    *home.way.to.lock().unwrap() = Some((HOME, Arc::clone(&away.host)));
    away.assign(2, None, Some(holds(other(HOME, None))));

    home.assign(1, seeds(), target(other(AWAY, Some("away:1")), branch(20, None)));

    seed_stored(&home).await;
    assert!(home.keys().is_some());
    assert_eq!(away.keys(), None, "it has nothing of the item, and asks in its turn");
}

/// A store that was lost has the item's hash key again, and none of its data: what the source
/// remembers of it is of no use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_lost_gets_the_same_key_and_every_block_again() {
    let (home, away, first) = ends().await;
    away.assign(2, None, Some(holds(other(HOME, None))));
    home.assign(1, seeds(), target(other(AWAY, Some("away:1")), branch(20, None)));
    let seed = seed_stored(&home).await;
    assert_shared(&home, &first);
    let goes = branch(21, Some(seed));
    // The source knows what the seed holds, and comes no further.
    let disks = away.machines.disks(&machine()).unwrap();
    disks.fail_read_after(0);
    home.assign(2, None, target(other(AWAY, None), goes));
    away.assign(3, replicates(goes, None), Some(holds(other(HOME, None))));
    let failed = away.seen(|host| host.board.source_seen(ITEM)?.problem).await;
    assert_eq!(failed.code, Code::CAPTURE_FAILED.code, "{failed}");

    let (home, _lost) = home.without_store(Site::Primary);
    home.assign(1, None, target(other(AWAY, None), goes));
    disks.clear_faults();
    away.host.board.session_began();

    let point = home.seen(newest_of).await;
    assert_shared(&home, &first);
    assert!(home.stored(point.position) == away.content(), "blocks are missing");
}

/// Two stores whose parts were made before there was one key go on with two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_with_different_hash_keys_keep_them_and_work() {
    let (home, away, first) = ends().await;
    home.assign(1, None, Some(TargetDuty { receive: false, ..receives(branch(21, None)) }));
    let own = home.has_part().await;
    assert!(own.hash != first.hash);
    let goes = branch(21, None);

    home.assign(2, None, target(other(AWAY, None), goes));
    away.assign(2, replicates(goes, None), Some(holds(other(HOME, None))));

    let point = home.seen(newest_of).await;
    assert!(home.stored(point.position) == away.content());
    assert_eq!((home.keys(), away.keys()), (Some(own), Some(first)));
}

type Talk = (FrameReader<ReadHalf<DuplexStream>>, FrameWriter<WriteHalf<DuplexStream>>);

/// Comes to the door of `end` as `peer`, and says hello as `host`.
async fn talk(end: &End, role: Role, peer: HostId, host: HostId) -> Talk {
    let (near, far) = tokio::io::duplex(1 << 20);
    let at = Arc::clone(&end.host);
    let hello = DataHello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        item: ITEM,
        host,
        host_boot: "boot".into(),
        role,
        epoch: EPOCH,
        branch: branch(21, None),
    };
    tokio::spawn(async move {
        let (read, write) = tokio::io::split(far);
        let (reader, writer) = (FrameReader::new(read), FrameWriter::new(write));
        door::serve(at, peer, hello, reader, writer).await;
    });
    let (read, write) = tokio::io::split(near);
    (FrameReader::new(read), FrameWriter::new(write))
}

async fn heard(talk: &mut Talk) -> DataMessage {
    talk.0.message(PATIENCE).await.unwrap()
}

async fn say(talk: &mut Talk, word: HashKeyWord) {
    // A door that refused may have closed already; what it said is heard all the same.
    let _ = talk.1.message(&DataMessage::HashKey(word)).await;
}

async fn refused(talk: &mut Talk, code: Code) {
    match heard(talk).await {
        DataMessage::Refused(problem) => assert_eq!(problem.code, code.code, "{problem}"),
        message => panic!("{message:?}"),
    }
    assert!(matches!(talk.0.message(PATIENCE).await, Err(SessionError::Closed)));
}

fn key(byte: u8) -> HashKeyWord {
    HashKeyWord::Key { hash_key: HashKey::from_bytes([byte; 32]) }
}

/// A frame of a word whose key is too short by a byte.
async fn say_garbled(talk: &mut Talk) {
    let text = br#"{"word":"key","hash_key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg=="}"#;
    talk.1
        .send(&leeward_wire::frame::encode(leeward_wire::frame::Kind::HashKey, text))
        .await
        .unwrap();
}

#[tokio::test]
async fn nobody_but_the_host_of_the_other_store_is_told_the_hash_key() {
    let (home, away, first) = ends().await;
    let cases = [
        (holds(None), HOME, HOME, Code::STORE_FOREIGN),
        (holds(other(HOME, None)), STRANGER, STRANGER, Code::STORE_FOREIGN),
        (holds(other(HOME, None)), STRANGER, HOME, Code::WRONG_CA),
        (TargetDuty { delete: true, ..holds(other(HOME, None)) }, HOME, HOME, Code::NOT_FOUND),
    ];
    let mut told = talk(&away, Role::HashKey, HOME, HOME).await;
    refused(&mut told, Code::STORE_FOREIGN).await;
    away.assign(2, None, Some(holds(other(HOME, None))));
    let mut told = talk(&away, Role::HashKey, HOME, HOME).await;
    say(&mut told, HashKeyWord::Missing).await;
    let word = HashKeyWord::Key { hash_key: first.hash.clone() };
    assert!(heard(&mut told).await == DataMessage::HashKey(word));

    for ((duty, peer, host, code), generation) in cases.into_iter().zip(3..) {
        away.assign(generation, None, Some(duty));
        let mut told = talk(&away, Role::HashKey, peer, host).await;
        say(&mut told, HashKeyWord::Missing).await;
        refused(&mut told, code).await;
    }
    let mut told = talk(&home, Role::HashKey, AWAY, AWAY).await;
    say(&mut told, HashKeyWord::Missing).await;
    refused(&mut told, Code::NOT_FOUND).await;
}

#[tokio::test]
async fn a_hash_key_is_taken_once_and_only_where_it_is_missed() {
    let (home, away, first) = ends().await;
    away.assign(2, None, Some(holds(other(HOME, None))));
    home.assign(1, None, dialled_by_source(other(AWAY, None)));

    // Unasked.
    let mut told = talk(&home, Role::HashKey, AWAY, AWAY).await;
    say(&mut told, key(1)).await;
    refused(&mut told, Code::BAD_REQUEST).await;
    // Of the wrong length, and no key at all.
    for garbled in [true, false] {
        let mut told = talk(&home, Role::HashKey, AWAY, AWAY).await;
        say(&mut told, HashKeyWord::Held).await;
        assert_eq!(heard(&mut told).await, DataMessage::HashKey(HashKeyWord::Missing));
        match garbled {
            true => say_garbled(&mut told).await,
            false => say(&mut told, HashKeyWord::Missing).await,
        }
        refused(&mut told, Code::BAD_REQUEST).await;
    }
    // By a host that has not the other store.
    let mut told = talk(&home, Role::HashKey, STRANGER, STRANGER).await;
    say(&mut told, HashKeyWord::Held).await;
    refused(&mut told, Code::STORE_FOREIGN).await;
    assert_eq!(home.keys(), None, "nothing of this made a part");

    // As it should be; a second one is too late.
    let mut told = talk(&home, Role::HashKey, AWAY, AWAY).await;
    say(&mut told, HashKeyWord::Held).await;
    assert_eq!(heard(&mut told).await, DataMessage::HashKey(HashKeyWord::Missing));
    say(&mut told, key(1)).await;
    assert_eq!(heard(&mut told).await, DataMessage::HashKey(HashKeyWord::Held));
    say(&mut told, key(2)).await;
    assert!(matches!(told.0.message(PATIENCE).await, Err(SessionError::Closed)));
    assert!(home.keys().unwrap().hash == HashKey::from_bytes([1; 32]));
    // Where there is a part.
    let mut told = talk(&away, Role::HashKey, HOME, HOME).await;
    say(&mut told, HashKeyWord::Held).await;
    assert_eq!(heard(&mut told).await, DataMessage::HashKey(HashKeyWord::Held));
    say(&mut told, key(3)).await;
    assert!(matches!(told.0.message(PATIENCE).await, Err(SessionError::Closed)));
    assert_eq!(away.keys(), Some(first));
}

/// The same in a data session: the key comes from the item's source, once, before the welcome.
#[tokio::test]
async fn a_data_session_takes_the_hash_key_from_the_items_source_before_its_welcome_only() {
    let home = end(HOME, Site::Primary);
    home.assign(1, None, dialled_by_source(other(AWAY, None)));

    let mut told = talk(&home, Role::DialerSends, STRANGER, STRANGER).await;
    refused(&mut told, Code::STORE_FENCED).await;
    for garbled in [true, false] {
        let mut told = talk(&home, Role::DialerSends, AWAY, AWAY).await;
        assert_eq!(heard(&mut told).await, DataMessage::HashKey(HashKeyWord::Missing));
        match garbled {
            true => say_garbled(&mut told).await,
            false => say(&mut told, HashKeyWord::Held).await,
        }
        refused(&mut told, Code::BAD_REQUEST).await;
    }
    assert_eq!(home.keys(), None);

    let mut told = talk(&home, Role::DialerSends, AWAY, AWAY).await;
    assert_eq!(heard(&mut told).await, DataMessage::HashKey(HashKeyWord::Missing));
    say(&mut told, key(1)).await;
    let DataMessage::Welcome(welcome) = heard(&mut told).await else { panic!("no welcome") };
    assert!(welcome.hash_key == HashKey::from_bytes([1; 32]));
    say(&mut told, key(2)).await;
    refused(&mut told, Code::BAD_REQUEST).await;

    let mut told = talk(&home, Role::DialerSends, AWAY, AWAY).await;
    let DataMessage::Welcome(welcome) = heard(&mut told).await else { panic!("no welcome") };
    assert!(welcome.hash_key == HashKey::from_bytes([1; 32]), "it is asked for once");
}
