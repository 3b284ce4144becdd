//! A host: capture, process server and master target of one machine that runs guests.
//!
//! It holds one session to the config server, gets the whole desired state, converges on it with
//! one worker per thing, and reports the whole observed state. It is never called. What it must
//! know after a restart lies in its folder; guests and exports live on without it and are found
//! again.

pub mod assign;
pub mod autostart;
pub mod board;
pub mod by_hand;
mod capacity;
pub mod clock;
pub mod data_link;
pub mod dial;
pub mod door;
pub mod exports;
pub mod hash_key;
pub mod head_view;
pub mod instances;
pub mod link;
pub mod lobby;
pub mod notes;
pub mod pace;
pub mod permits;
pub mod receiver;
pub mod replica;
pub mod site_store;
pub mod source;
pub mod spool;
pub mod store_audit;
pub mod target;

use crate::{audit_pace::AuditPace, folder, intake::Intake, sealing::Sealing};
use assign::Workers;
pub use assign::assignment_load;
pub use autostart::start_allowed;
use board::Board;
use clock::{ServerClock, WallClock};
use leeward_fabric::Fabric;
use leeward_model::{Branch, DiscoveredMachine, Epoch, HostId, InstanceId, ItemId, VaultId};
use leeward_wire::{
    data::{DataHello, Role},
    message::{
        Assignment, ItemDuty, KitState, Observed, PROTOCOL_VERSION, SourceDuty, StoreRoom,
        TargetDuty,
    },
};
use lobby::Lobby;
use site_store::SiteStore;
use std::{
    collections::BTreeSet,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often the list of machines is read anew. Reading it opens every image.
const DISCOVER_EVERY: Duration = Duration::from_secs(2);

/// What a host is made of; its owner chooses it.
pub struct HostParts {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its boot id.
    pub boot: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Where its sockets are: short, as socket paths hold 107 bytes.
    pub run_folder: PathBuf,
    /// What runs its guests: `kvm` or `tcg`.
    pub accelerator: String,
    /// Its machines.
    pub fabric: Arc<dyn Fabric>,
    /// Its replica store.
    pub store: Option<Arc<SiteStore>>,
    /// How it reaches others.
    pub dialer: dial::SharedDialer,
    /// How it serves points to its guests.
    pub exports: Arc<dyn exports::ExportLauncher>,
    /// Its own wall clock.
    pub wall: WallClock,
    /// How it seals what its machines write.
    pub sealing: Sealing,
    /// How fast it audits its machines and its replicas.
    pub audit: AuditPace,
    /// The room for points that wait for their store.
    pub spool: spool::room::SpoolRoom,
}

/// A host: its parts, and what it has to do and sees.
pub struct Host {
    parts: HostParts,
    /// What it sees.
    pub board: Board,
    /// The config server's clock.
    pub clock: ServerClock,
    /// Stores that dialled this host for its machines' data.
    pub lobby: Lobby,
    /// How fast it may send.
    pub paces: pace::Paces,
    /// What its sessions may hold of what they bring.
    pub intake: Intake,
    tasks: Mutex<JoinSet<()>>,
    state: Mutex<State>,
}

impl Deref for Host {
    type Target = HostParts;

    fn deref(&self) -> &HostParts {
        &self.parts
    }
}

#[derive(Default)]
struct State {
    assignment: Assignment,
    permit_key: Option<String>,
    machines: Vec<DiscoveredMachine>,
    workers: Workers,
}

impl Host {
    /// Makes the host and takes up what it was assigned before its last end.
    pub fn new(parts: HostParts) -> Arc<Host> {
        let assignment = assignment_load(&parts.folder);
        let permit_key = std::fs::read_to_string(parts.folder.join("permit-key")).ok();
        let state = State { permit_key, ..State::default() };
        let intake = Intake::new(parts.sealing.workers.memory().clone());
        let host = Arc::new(Host {
            parts,
            board: Board::default(),
            clock: ServerClock::default(),
            lobby: Lobby::default(),
            paces: pace::Paces::default(),
            intake,
            tasks: Mutex::default(),
            state: Mutex::new(state),
        });
        host.assign(assignment);
        host
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a worker of this host.
    pub(crate) fn spawn(&self, worker: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(worker);
    }

    /// Ends every worker where it stands, as the end of the process does. Guests run on.
    pub fn abort(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// Folder of what is kept for an item as source.
    pub fn item_folder(&self, item: ItemId) -> PathBuf {
        self.folder.join("items").join(item.to_string())
    }

    /// Folder of a machine made from a point.
    pub fn instance_folder(&self, instance: InstanceId) -> PathBuf {
        self.folder.join("instances").join(instance.to_string())
    }

    /// Socket of an instance's export.
    pub fn export_socket(&self, instance: InstanceId) -> PathBuf {
        let text = instance.to_string().replace('-', "");
        self.run_folder.join(format!("x-{}.sock", &text[..16]))
    }

    /// What start permits are checked against here.
    pub fn permit_check(&self) -> permits::PermitCheck {
        let key = self.state().permit_key.clone();
        permits::PermitCheck { key, host: self.id, boot: self.boot.clone() }
    }

    /// Takes the config server's permit key, the first one for good: it came over a session that
    /// was authenticated by this installation's CA.
    pub fn permit_key_set(&self, key: &str) {
        let mut state = self.state();
        if state.permit_key.as_deref() != Some(key) {
            state.permit_key = Some(key.to_owned());
            if let Err(error) =
                folder::write_secret(&self.folder.join("permit-key"), key.as_bytes())
            {
                tracing::error!(%error, "could not keep the permit key");
            }
        }
    }

    /// This host's duty for the item.
    fn duty<T>(&self, item: ItemId, part: impl FnOnce(&ItemDuty) -> Option<T>) -> Option<T> {
        let state = self.state();
        state.assignment.duties.iter().find(|duty| duty.item == item).and_then(part)
    }

    /// Whether this host has anything to do for the item.
    pub fn has_duty(&self, item: ItemId) -> bool {
        self.duty(item, |_| Some(())).is_some()
    }

    /// What this host says first in a data session that it dials or answers as a sender.
    pub fn hello(&self, item: ItemId, role: Role, epoch: Epoch, branch: Branch) -> DataHello {
        DataHello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            item,
            host: self.id,
            host_boot: self.boot.clone(),
            role,
            epoch,
            branch,
        }
    }

    /// The vault of an item that this host has a duty for.
    pub fn vault(&self, item: ItemId) -> Option<VaultId> {
        self.duty(item, |duty| Some(duty.vault))
    }

    /// This host's duty as the item's target.
    pub fn target_duty(&self, item: ItemId) -> Option<TargetDuty> {
        self.duty(item, |duty| duty.target.clone())
    }

    /// This host's duty as the item's source.
    pub fn source_duty(&self, item: ItemId) -> Option<SourceDuty> {
        self.duty(item, |duty| duty.source.clone())
    }

    /// The whole observed state.
    pub fn observed(&self) -> Observed {
        let state = self.state();
        Observed {
            generation: state.workers.generation(&state.assignment),
            boot: self.boot.clone(),
            wall: self.wall.now(),
            machines: state.machines.clone(),
            items: self.board.items_seen(),
            store: match &self.store {
                None => StoreRoom::Absent,
                Some(store) => store.free_bytes().map_or(StoreRoom::Unknown, StoreRoom::Free),
            },
            kit: self.store.as_ref().map_or(KitState::NotNeeded, |store| store.kit()),
            accelerator: self.accelerator.clone(),
            capacity: capacity::read(&self.folder),
        }
    }

    /// Reads the list of machines at intervals until `stop`.
    pub async fn discover_loop(self: Arc<Self>, stop: CancellationToken) {
        let mut told = BTreeSet::new();
        loop {
            match self.fabric.discover().await {
                Ok(machines) => {
                    told.clear();
                    let mut state = self.state();
                    if state.machines != machines {
                        state.machines = machines;
                        drop(state);
                        self.board.poke();
                    }
                }
                Err(error) => {
                    if told.insert(error.to_string()) {
                        tracing::warn!(%error, "could not list the machines");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(DISCOVER_EVERY) => {}
            }
        }
    }
}

/// Makes the folders that a host needs below `folder`.
///
/// # Errors
/// Those of the file system.
pub fn folders_make(folder: &Path) -> std::io::Result<()> {
    for name in ["items", "instances", "permits", "machines", "notes"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    Ok(())
}
