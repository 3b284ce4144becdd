//! The roles of the world: they start on their files, die where they stand, and come back.

use super::{
    SKEWS_MS, World,
    disk::WorldExports,
    fabric::{Watch, WatchedFabric},
    link::{Link, LinkState, Net, SERVER, STORE, WorldDialer},
    settle,
    time::ServerTime,
};
use leeward::{
    roles::{
        host::{
            Host, HostParts, clock::WallClock, folders_make, link as session, site_store::SiteStore,
        },
        up::ports::FileSigner,
    },
    trust::permits::PermitKey,
};
use leeward_control::{
    Config, Control, Durability, LocalHost, PermitSigner, Ports, Store as Database,
};
use leeward_fabric::memory::MemoryFabric;
use leeward_model::{HostId, Site};
use leeward_replica::{
    Store, StoreIdentity, SystemRandom, Unlock,
    storage::{BlobStore, Seeded},
};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A role that runs.
pub(super) struct Role {
    pub(super) host: Arc<Host>,
    pub(super) store: Option<Arc<SiteStore>>,
    pub(super) tasks: JoinSet<()>,
    pub(super) stop: CancellationToken,
}

/// What a role leaves when it dies.
pub(super) struct SiteFiles {
    pub(super) id: HostId,
    pub(super) name: &'static str,
    pub(super) folder: PathBuf,
    pub(super) machines: MemoryFabric,
    pub(super) watch: Watch,
    pub(super) link: Link,
    pub(super) boots: u32,
    pub(super) role: Option<Role>,
}

impl World {
    /// Starts the config server on its files.
    pub async fn server_start(&mut self) {
        let path = self.folder.path().join("control.db");
        let database = Database::open(&path, Durability::ProcessEnd).await;
        let local = LocalHost {
            id: self.recovery.id,
            name: "recovery-host".to_owned(),
            data_address: STORE.to_owned(),
        };
        let config = Config { recovery_site: Config::RECOVERY_SITE.to_owned(), local_host: local };
        let key = PermitKey::open_or_create(self.folder.path()).expect("a folder of our own");
        let signer: Arc<dyn PermitSigner> = Arc::new(FileSigner(key));
        let clock = Arc::new(ServerTime::new(self.time, SKEWS_MS[2]));
        let ports = Ports { clock, draw: self.draw.clone(), signer };
        let control = Control::open(database.expect("a database of our own"), config, ports).await;
        let control = control.expect("a database of our own");
        self.net.server_set(Some(control.clone()));
        self.server = Some(control);
    }

    /// The config server dies where it stands.
    pub async fn server_kill(&mut self) {
        self.net.server_set(None);
        if let Some(control) = self.server.take() {
            // Lets what was aborted give its connections back; nothing more is written.
            tokio::task::yield_now().await;
            control.close().await;
        }
    }

    /// Starts the primary host's role on its files.
    pub fn primary_start(&mut self) {
        let role = role_start(&self.primary, None, &self.net, &self.exports);
        self.primary.role = Some(role);
    }

    /// Starts the recovery host's role on its files.
    ///
    /// A store that cannot be opened is noted as a violation.
    pub fn recovery_start(&mut self) {
        let owner = uuid::Uuid::from(self.recovery.id);
        let blobs: Arc<dyn BlobStore> = Arc::new(self.disk.now());
        if !Store::exists(blobs.as_ref()).unwrap_or(false) {
            let identity = StoreIdentity { store: uuid::Uuid::from_u128(5), owner, generation: 1 };
            if let Err(error) = Store::init(blobs.as_ref(), identity, &SystemRandom) {
                self.ledger.violated(format!("I3: the store cannot be made: {error}"));
            }
        }
        let random = Arc::new(SystemRandom);
        let store = match Store::open_writer(blobs, owner, &Unlock::KeyFile, random) {
            Ok(store) => store,
            Err(error) => {
                self.ledger.violated(format!("I3: the store cannot be opened: {error}"));
                return;
            }
        };
        let wall = self.recovery.watch.wall.clone();
        let store = SiteStore::new(store, Site::Recovery, WallClock::new(move || wall.read()));
        let role = role_start(&self.recovery, Some(Arc::new(store)), &self.net, &self.exports);
        self.net.store_set(Some(Arc::clone(&role.host)));
        self.recovery.role = Some(role);
    }

    /// The primary host's role dies; its machines run on.
    pub async fn primary_kill(&mut self) {
        self.unsure();
        role_kill(&mut self.primary).await;
    }

    /// The recovery host's role dies; its machines and exports run on.
    pub async fn recovery_kill(&mut self) {
        self.net.store_set(None);
        role_kill(&mut self.recovery).await;
        self.disk.kill();
    }

    /// The recovery host loses its power: machines, exports and what was not flushed.
    pub async fn recovery_power_cut(&mut self, random: &mut Seeded) {
        self.net.store_set(None);
        role_kill(&mut self.recovery).await;
        self.disk.power_cut(random);
        self.exports.end_all();
        self.recovery.machines.power_cut();
        self.recovery.boots += 1;
    }

    /// The primary host loses its power and boots again; its role is to be started.
    pub async fn primary_power_cut(&mut self) {
        self.unsure();
        role_kill(&mut self.primary).await;
        self.primary.machines.power_cut();
        self.primary.boots += 1;
    }

    /// Starts every role that is dead and repairs the link.
    pub async fn heal(&mut self) {
        self.link_set(LinkState::Open);
        if self.server.is_none() {
            self.server_start().await;
        }
        if self.recovery.role.is_none() {
            self.recovery_start();
        }
        if self.primary.role.is_none() {
            self.primary_start();
        }
    }

    /// Changes the link between the sites.
    pub fn link_set(&mut self, state: LinkState) {
        self.unsure();
        self.primary.watch.trap.store(false, Ordering::Relaxed);
        self.link.set(state);
    }

    /// Lets the link break in the middle of the next cut.
    pub fn link_breaks_at_cut(&self) {
        self.primary.watch.trap.store(true, Ordering::Relaxed);
    }

    /// Whoever asks the primary host now, or did a little before, may get no answer.
    pub(super) fn unsure(&self) {
        self.ledger.unsure_until(self.time.ms() + settle::UNSURE_MS);
    }

    /// Whether the primary host can be asked.
    pub fn primary_answers(&self) -> bool {
        self.primary.role.is_some() && self.link.state() == LinkState::Open
    }
}

fn role_start(
    site: &SiteFiles,
    store: Option<Arc<SiteStore>>,
    net: &Net,
    exports: &WorldExports,
) -> Role {
    folders_make(&site.folder).expect("a folder of our own");
    let dialer = WorldDialer { net: net.clone(), link: site.link.clone(), peer: site.id };
    let wall = site.watch.wall.clone();
    let host = Host::new(HostParts {
        id: site.id,
        name: site.name.to_owned(),
        boot: format!("boot-{}-of-{}", site.boots, site.name),
        folder: site.folder.clone(),
        run_folder: PathBuf::from("/run").join(site.name),
        accelerator: "tcg".to_owned(),
        fabric: Arc::new(WatchedFabric::new(site.machines.clone(), site.watch.clone())),
        store: store.clone(),
        dialer: Arc::new(dialer),
        exports: Arc::new(exports.clone()),
        wall: WallClock::new(move || wall.read()),
    });
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    tasks.spawn(Arc::clone(&host).discover_loop(stop.clone()));
    tasks.spawn(session::run(Arc::clone(&host), SERVER.to_owned(), stop.clone()));
    let (started, ending) = (Arc::clone(&host), stop.clone());
    tasks.spawn(async move { started.autostart(ending).await });
    Role { host, store, tasks, stop }
}

async fn role_kill(site: &mut SiteFiles) {
    let Some(mut role) = site.role.take() else { return };
    role.tasks.abort_all();
    role.host.abort();
    drop(role.stop);
    drop(role.host);
    // What was aborted is dropped at its next turn.
    tokio::task::yield_now().await;
    while role.tasks.join_next().await.is_some() {}
}
