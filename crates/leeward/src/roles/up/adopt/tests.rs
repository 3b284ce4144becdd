//! An adoption that ends at any of its writes: it is not begun, or the same command goes on with
//! it, and at no moment are two config servers in charge.

use super::*;
use crate::{
    roles::up::{
        actions::{ActionOptions, Outside},
        ports::{FileSigner, SystemClock, SystemDraw},
    },
    trust::permits::{PermitKey, hex},
};
use leeward_control::{
    Config, Control, Durability, KeepError, Keeper, LocalHost, Ports,
    vaults::{VaultKey, VaultSpec},
};
use leeward_model::UnixMillis;
use leeward_replica::{StoreIdentity, storage::LocalStore};
use std::{
    cell::RefCell,
    sync::{Mutex, PoisonError},
};
use tempfile::TempDir;

const FORMER: HostId = HostId::from_u128(77);
const REACHED: &str = "127.0.0.1:1";

/// Keeps a configuration in memory.
#[derive(Default)]
struct Memory(Mutex<Vec<u8>>);

#[async_trait::async_trait]
impl Keeper for Memory {
    async fn keep(&self, configuration: &[u8]) -> Result<(), KeepError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = configuration.to_vec();
        Ok(())
    }
    async fn kept(&self) -> Option<Vec<u8>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(kept).filter(|kept| !kept.is_empty())
    }
}

/// What a config server with one vault keeps.
async fn control_part(data: &Path) -> String {
    let (script_user, webhooks) = ("nobody:nogroup".to_owned(), Vec::new());
    let actions =
        ActionOptions { scripts: data.join("none"), script_user, webhooks, webhook_ca: None };
    let ports = Ports {
        actions: Arc::new(Outside::new(actions)),
        clock: Arc::new(SystemClock::new().unwrap()),
        draw: Arc::new(SystemDraw),
        signer: Arc::new(FileSigner(PermitKey::open_or_create(data).unwrap())),
    };
    let local_host = LocalHost { id: FORMER, name: "former".into(), data_address: REACHED.into() };
    let config = Config { recovery_site: "recovery".into(), local_host };
    let path = data.join(DATABASE);
    let database = leeward_control::Store::open(&path, Durability::PowerCut).await.unwrap();
    let control = Control::open(database, config, ports).await.unwrap();
    let key =
        VaultKey { subscription: "s".into(), resource_group: "g".into(), name: "vault".into() };
    control.vault_put(&key, VaultSpec::default()).await.unwrap();
    let keeper = Arc::new(Memory::default());
    control.keep_with(keeper.clone());
    control.configuration_keep().await.unwrap();
    let kept = keeper.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    String::from_utf8(kept).unwrap()
}

/// A former config server's store, with what it kept there long ago.
struct Former {
    folder: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Former {
    fn new() -> Former {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let data = folder.path().join("former");
        std::fs::create_dir(&data).unwrap();
        let authority = Authority::open_or_create(&data).unwrap().fingerprint().unwrap();
        let text = |name: &str| std::fs::read_to_string(data.join(name)).unwrap();
        let control = runtime.block_on(control_part(&data));
        let configuration = Configuration {
            format: 1,
            written_at: UnixMillis(0),
            host: FORMER,
            site: "recovery".into(),
            ca_pem: text("ca.pem"),
            ca_key_pem: text("ca.key"),
            permit_key: hex(&std::fs::read(data.join("permit.key")).unwrap()),
            break_glass: Some("{}".into()),
            control,
        };
        let former = Former { folder, runtime };
        let owner = uuid::Uuid::from(FORMER);
        let identity = StoreIdentity { store: uuid::Uuid::from_u128(1), owner, generation: 1 };
        let blobs = Arc::new(LocalStore::open(former.path("store")).unwrap());
        Store::init(blobs.as_ref(), identity, &SystemRandom).unwrap();
        let random = Arc::new(SystemRandom);
        let store = Store::open_writer(blobs, owner, &Unlock::KeyFile, random).unwrap();
        let own = charge::generation(1, "former", authority, REACHED);
        store.generation_put(&Generation { at: UnixMillis(0), ..own }).unwrap();
        let bytes = serde_json::to_vec(&configuration).unwrap();
        store.configuration_put(1, &bytes).unwrap();
        former
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn newest(&self) -> Generation {
        let blobs = LocalStore::open_reading(self.path("store"));
        Store::claimed_generation(&blobs).unwrap().unwrap()
    }

    /// Adopts the store into the folder `name`; ends at write `cut`. Returns what was written.
    fn adopt(&self, name: &str, force: bool, cut: Option<usize>) -> (Vec<String>, bool) {
        let data = self.path(name);
        std::fs::create_dir_all(&data).unwrap();
        let options = AdoptOptions {
            adopt: Some(self.path("store").to_str().unwrap().to_owned()),
            kit: None,
            passphrase: PassphraseOptions::default(),
            recovery_key: None,
            store_key: None,
            force_takeover: force,
        };
        let written = RefCell::new(Vec::new());
        let before = |what: &str| {
            if cut == Some(written.borrow().len()) {
                return Err(std::io::Error::other("the power is gone"));
            }
            written.borrow_mut().push(what.to_owned());
            Ok(())
        };
        let _inside = self.runtime.enter();
        let done = run_watched(&data, &options, REACHED, &before).is_ok();
        (written.into_inner(), done)
    }

    fn has(&self, data: &str, file: &str) -> bool {
        self.path(data).join(file).exists()
    }
}

/// E17: the adoption ends at each of its writes, once. Until the store has its generation the
/// former server is in charge and this one starts nothing; from then on the former one is not, and
/// the same command finishes under the same generation.
#[test]
fn an_adoption_that_ends_at_any_write_is_not_begun_or_goes_on() {
    let (all, done) = Former::new().adopt("data", false, None);
    assert!(done && all.len() > 10, "{all:?}");
    let taken_by = all.iter().position(|what| what == "the store's generation").unwrap();

    for cut in 0..all.len() {
        let former = Former::new();
        let (written, done) = former.adopt("data", false, Some(cut));
        assert!(!done && written[..] == all[..cut], "{cut}: {written:?}");
        let at = format!("cut before {}", all[cut]);

        let taken = former.newest();
        assert_eq!(taken.number, if cut > taken_by { 2 } else { 1 }, "{at}");
        let named = former.has("data", DATABASE);
        assert!(!named || taken.number == 2, "{at}: two are in charge");
        let plain = check_finished(&former.path("data"));
        match (cut == 0, named) {
            (true, _) => assert!(plain.is_ok() && !former.has("data", "ca.key"), "{at}"),
            (false, false) => {
                assert_eq!(plain.unwrap_err().code, Code::ADOPTION_UNFINISHED.code, "{at}");
            }
            // All is there but for the mark, with which a plain start is done as well.
            (false, true) => assert!(plain.is_ok() && !former.has("data", MARK), "{at}"),
        }
        if all[cut] == "the database's name" {
            // What SQLite leaves when it is killed in the middle of it.
            for suffix in ["", "-wal", "-shm"] {
                let half = former.path("data").join(format!("{DATABASE_HALF}{suffix}"));
                std::fs::write(half, b"half a page").unwrap();
            }
        }

        assert!(former.adopt("data", false, None).1, "{at}: the same command does not go on");
        let now = former.newest();
        assert_eq!(now.number, 2, "{at}: a generation of its own each time");
        assert!(taken.number == 1 || taken == now, "{at}: it goes on under what it took");
        assert_eq!(charge::own(&former.path("data")).unwrap(), Some(now), "{at}");
        assert!(former.has("data", DATABASE) && !former.has("data", MARK), "{at}");
        assert!(former.adopt("data", false, None).0.is_empty(), "{at}: done is done");
    }
}

/// E17: another server adopts the store after the first one's adoption ended at each of its
/// writes. The first one does not go on by itself, nor is it in charge where it had ended.
#[test]
fn of_two_adoptions_the_one_that_was_cut_off_does_not_come_back_beside_the_other() {
    let (all, _) = Former::new().adopt("data", false, None);
    for cut in 0..all.len() {
        let former = Former::new();
        former.adopt("data", false, Some(cut));
        let before = former.newest().number;
        assert!(former.adopt("other", true, None).1, "{cut}");
        assert_eq!(former.newest().number, before + 1, "{cut}");

        let whole = former.has("data", DATABASE);
        let (written, done) = former.adopt("data", false, None);

        assert!(written.is_empty(), "{cut}: {written:?}");
        assert_eq!(done, whole, "{cut}: the owner wrote just now");
        let own = charge::own(&former.path("data")).unwrap();
        let by = charge::superseded(own.as_ref(), Some(former.newest()));
        assert!(by.is_some(), "{cut}: two are in charge");
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// An older copy of a store is not taken for the store: its config server refuses it.
#[test]
fn a_store_from_before_its_config_server_took_it_over_is_refused() {
    let former = Former::new();
    copy(&former.path("store"), &former.path("copy"));
    assert!(former.adopt("data", false, None).1);
    let data = former.path("data");
    let own = charge::own(&data).unwrap();
    let begin = |name: &str| {
        let place = StorePlace::named(&data, former.path(name).to_str().unwrap()).unwrap();
        let blobs = place.writing().unwrap();
        let random = Arc::new(SystemRandom);
        let store = Store::open_writer(blobs, FORMER.into(), &Unlock::KeyFile, random).unwrap();
        let first = || -> Generation { unreachable!("it has a generation") };
        charge::begin(&data, &store, &place, own.clone(), first)
    };

    assert_eq!(begin("store").unwrap().number, 2);
    let refused = begin("copy").unwrap_err().downcast::<Problem>().unwrap();
    assert_eq!(refused.code, Code::STORE_FOREIGN.code);
    assert!(refused.cause.contains("an older copy"), "{refused}");
}
