//! The roles of the world: they start on their files, die where they stand, and come back.

use super::{
    Mistakes, SITES, SKEWS_MS, World,
    disk::{SiteDisk, WorldExports},
    fabric::{Watch, WatchedFabric},
    link::{Link, LinkState, Net, SERVER, STORE, WorldDialer},
    settle,
    time::ServerTime,
};
use leeward::{
    audit_pace::AuditPace,
    roles::{
        host::{
            Host, HostParts, clock::WallClock, folders_make, link as session,
            site_store::SiteStore, spool::room::SpoolRoom,
        },
        up::ports::FileSigner,
    },
    trust::permits::PermitKey,
};
use leeward_control::testing::ScriptedActions;
use leeward_control::{
    Config, Control, Durability, LocalHost, PermitSigner, Ports, Store as Database,
};
use leeward_fabric::memory::MemoryFabric;
use leeward_model::{HostId, Site};
use leeward_replica::{Store, StoreIdentity, SystemRandom, Unlock, storage::Seeded};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A role that runs.
pub(super) struct Role {
    pub(super) host: Arc<Host>,
    pub(super) store: Arc<SiteStore>,
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
    pub(super) disk: SiteDisk,
    pub(super) exports: WorldExports,
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
        let actions = Arc::new(ScriptedActions::default());
        let ports = Ports { clock, draw: self.draw.clone(), signer, actions };
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

    pub(super) fn files(&self, site: Site) -> &SiteFiles {
        match site {
            Site::Primary => &self.primary,
            Site::Recovery => &self.recovery,
        }
    }

    fn files_mut(&mut self, site: Site) -> &mut SiteFiles {
        match site {
            Site::Primary => &mut self.primary,
            Site::Recovery => &mut self.recovery,
        }
    }

    /// Starts the role of a site's host on its files.
    ///
    /// A store that cannot be opened is noted as a violation.
    pub fn role_start(&mut self, site: Site) {
        let Some(role) = self.role_made(self.files(site)) else { return };
        if site == Site::Recovery {
            self.net.store_set(Some(Arc::clone(&role.host)));
        }
        self.files_mut(site).role = Some(role);
    }

    /// A role on these files.
    pub(super) fn role_made(&self, files: &SiteFiles) -> Option<Role> {
        let store = match store_open(files) {
            Ok(store) => store,
            Err(what) => {
                self.ledger.violated(format!("I3: the store {what}"));
                return None;
            }
        };
        let wall = files.watch.wall.clone();
        let store = SiteStore::new(store, files.watch.site, WallClock::new(move || wall.read()));
        Some(role_run(files, Arc::new(store), &self.net, self.spool_bytes))
    }

    async fn role_end(&mut self, site: Site) {
        self.unsure(site);
        if site == Site::Recovery {
            self.net.store_set(None);
        }
        role_abort(self.files_mut(site)).await;
    }

    /// The role of a site's host dies; its machines and exports run on.
    pub async fn role_kill(&mut self, site: Site) {
        self.role_end(site).await;
        self.files(site).disk.kill();
    }

    /// A site's host loses its store and begins with an empty one.
    pub async fn store_lost(&mut self, site: Site) {
        self.role_kill(site).await;
        self.files(site).disk.replace();
        self.role_start(site);
    }

    /// A site's host loses its power: machines, exports and what was not flushed. It boots again,
    /// and its role is to be started.
    pub async fn power_cut(&mut self, site: Site, random: &mut Seeded) {
        self.role_end(site).await;
        let files = self.files_mut(site);
        files.disk.power_cut(random);
        files.exports.end_all();
        files.machines.power_cut();
        files.boots += 1;
    }

    /// A site's host boots again: machines and exports end, what is on its disk stays.
    pub async fn reboot(&mut self, site: Site) {
        self.role_end(site).await;
        let files = self.files_mut(site);
        files.disk.kill();
        files.exports.end_all();
        files.machines.power_cut();
        files.boots += 1;
    }

    /// Gives the hosts' spools so many bytes; their roles start anew.
    pub async fn spool_set(&mut self, bytes: u64) {
        self.spool_bytes = bytes;
        for site in SITES {
            self.role_kill(site).await;
            self.role_start(site);
        }
    }

    /// Starts every role that is dead and repairs the link and the disks.
    pub async fn heal(&mut self) {
        self.link_set(LinkState::Open);
        if self.server.is_none() {
            self.server_start().await;
        }
        for site in SITES {
            self.disk(site).set_full(false);
            if self.files(site).role.is_none() {
                self.role_start(site);
            }
        }
        self.spare_start();
    }

    /// Changes the link between the sites.
    pub fn link_set(&mut self, state: LinkState) {
        self.unsure(Site::Primary);
        for site in SITES {
            self.files(site).watch.trap.store(false, Ordering::Relaxed);
        }
        self.link.set(state);
    }

    /// Lets the link break in the middle of the next cut.
    pub fn link_breaks_at_cut(&self) {
        for site in SITES {
            self.files(site).watch.trap.store(true, Ordering::Relaxed);
        }
    }

    /// Whoever asks the host of a site now, or did a little before, may get no answer.
    pub(super) fn unsure(&self, site: Site) {
        self.ledger.unsure_until(site, self.time.ms() + settle::UNSURE_MS);
    }

    /// Whether the host of a site can be asked.
    pub fn answers(&self, site: Site) -> bool {
        let reached = site == Site::Recovery || self.link.state() == LinkState::Open;
        self.files(site).role.is_some() && reached
    }
}

fn store_open(files: &SiteFiles) -> Result<Store, String> {
    let owner = uuid::Uuid::from(files.id);
    let blobs = files.disk.process();
    if !Store::exists(blobs.as_ref()).unwrap_or(false) {
        let identity = StoreIdentity { store: owner, owner, generation: 1 };
        let made = Store::init(blobs.as_ref(), identity, &SystemRandom);
        made.map_err(|error| format!("cannot be made: {error}"))?;
    }
    let opened = Store::open_writer(blobs, owner, &Unlock::KeyFile, Arc::new(SystemRandom));
    opened.map_err(|error| format!("cannot be opened: {error}"))
}

fn role_run(site: &SiteFiles, store: Arc<SiteStore>, net: &Net, spool_bytes: u64) -> Role {
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
        store: Some(Arc::clone(&store)),
        dialer: Arc::new(dialer),
        exports: Arc::new(site.exports.clone()),
        wall: WallClock::new(move || wall.read()),
        sealing: leeward::sealing::Sealing::default(),
        audit: match site.watch.mistakes == Mistakes::default() {
            true => AuditPace::default(),
            false => AuditPace { bytes_per_second: 0 },
        },
        spool: SpoolRoom::new(spool_bytes, None),
    });
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    tasks.spawn(Arc::clone(&host).discover_loop(stop.clone()));
    tasks.spawn(session::run(Arc::clone(&host), SERVER.to_owned(), stop.clone()));
    let (started, ending) = (Arc::clone(&host), stop.clone());
    tasks.spawn(async move { started.autostart(ending).await });
    Role { host, store, tasks, stop }
}

async fn role_abort(site: &mut SiteFiles) {
    let Some(mut role) = site.role.take() else { return };
    role.tasks.abort_all();
    role.host.abort();
    drop(role.stop);
    drop(role.host);
    // What was aborted is dropped at its next turn.
    tokio::task::yield_now().await;
    while role.tasks.join_next().await.is_some() {}
}
