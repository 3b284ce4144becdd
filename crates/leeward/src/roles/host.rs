//! A host: capture, process server and master target of one machine that runs guests.
//!
//! It holds one session to the config server, gets the whole desired state, converges on it with
//! one worker per thing, and reports the whole observed state. It is never called. What it must
//! know after a restart lies in its folder; guests and exports live on without it and are found
//! again.

pub mod board;
pub mod clock;
pub mod data_link;
pub mod dial;
pub mod exports;
pub mod instances;
pub mod link;
pub mod permits;
pub mod site_store;
pub mod source;
pub mod target;

use crate::folder;
use board::Board;
use clock::{ServerClock, WallClock};
use instances::InstanceWork;
use leeward_fabric::Fabric;
use leeward_model::{DiscoveredMachine, HostId, InstanceId, ItemId};
use leeward_wire::message::{Assignment, ItemDuty, Observed, SourceRun, TargetDuty};
use site_store::SiteStore;
use source::SourceWork;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// How often the list of machines is read anew. Reading it opens every image.
const DISCOVER_EVERY: Duration = Duration::from_secs(2);
/// How often old points are let go.
const EXPIRE_EVERY: Duration = Duration::from_secs(30);
/// How often the store's figures are read when nothing is committed.
const FIGURES_EVERY: Duration = Duration::from_secs(5);

/// A host.
pub struct Host {
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
    /// Its replica store, when it is a target.
    pub store: Option<Arc<SiteStore>>,
    /// How it reaches others.
    pub dialer: dial::SharedDialer,
    /// How it serves points to its guests.
    pub exports: Arc<dyn exports::ExportLauncher>,
    /// What it sees.
    pub board: Board,
    /// The config server's clock.
    pub clock: ServerClock,
    /// Its own wall clock.
    pub wall: WallClock,
    tasks: Mutex<JoinSet<()>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    assignment: Assignment,
    permit_key: Option<String>,
    machines: Vec<DiscoveredMachine>,
    sources: BTreeMap<ItemId, watch::Sender<Option<SourceWork>>>,
    instances: BTreeMap<InstanceId, watch::Sender<Option<InstanceWork>>>,
    targets: BTreeMap<ItemId, watch::Sender<Option<ItemDuty>>>,
    /// Counts changes of instances' work.
    turn: u64,
    /// Instances whose worker has not yet acted on its newest work, and the turn of that work.
    untaken: BTreeMap<InstanceId, u64>,
    /// The newest assignment on which every instance's worker has acted.
    settled: u64,
}

/// The parts of a host that its owner chooses.
pub struct HostParts {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its boot id.
    pub boot: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Where its sockets are.
    pub run_folder: PathBuf,
    /// What runs its guests.
    pub accelerator: String,
    /// Its machines.
    pub fabric: Arc<dyn Fabric>,
    /// Its replica store.
    pub store: Option<Arc<SiteStore>>,
    /// How it reaches others.
    pub dialer: dial::SharedDialer,
    /// How it serves points to its guests.
    pub exports: Arc<dyn exports::ExportLauncher>,
    /// Its wall clock.
    pub wall: WallClock,
}

impl Host {
    /// Makes the host and takes up what it was assigned before its last end.
    pub fn new(parts: HostParts) -> Arc<Host> {
        let assignment = assignment_load(&parts.folder);
        let permit_key = std::fs::read_to_string(parts.folder.join("permit-key")).ok();
        let state = State { permit_key, ..State::default() };
        let HostParts { id, name, boot, folder, run_folder, accelerator, .. } = parts;
        let HostParts { fabric, store, dialer, exports, wall, .. } = parts;
        let host = Arc::new(Host {
            id,
            name,
            boot,
            folder,
            run_folder,
            accelerator,
            fabric,
            store,
            dialer,
            exports,
            board: Board::default(),
            clock: ServerClock::default(),
            wall,
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

    /// This host's duty as the item's target.
    pub fn target_duty(&self, item: ItemId) -> Option<TargetDuty> {
        let state = self.state();
        let duty = state.assignment.duties.iter().find(|duty| duty.item == item)?;
        duty.target.clone()
    }

    /// The whole observed state.
    pub fn observed(&self) -> Observed {
        let state = self.state();
        // An instance that its worker has not looked at must not pass for gone.
        let generation = match state.untaken.is_empty() {
            true => state.assignment.generation,
            false => state.settled,
        };
        Observed {
            generation,
            boot: self.boot.clone(),
            wall: self.wall.now(),
            machines: state.machines.clone(),
            items: self.board.items_seen(),
            store_free_bytes: self.store.as_ref().and_then(|store| store.free_bytes()),
            accelerator: self.accelerator.clone(),
        }
    }

    /// Takes a new assignment: keeps it over restarts, and gives each worker its part.
    pub fn assign(self: &Arc<Self>, assignment: Assignment) {
        let mut state = self.state();
        if state.assignment == assignment {
            return;
        }
        let path = self.folder.join("assignment.json");
        let bytes = serde_json::to_vec_pretty(&assignment).expect("plain values serialize");
        if let Err(error) = folder::write_secret(&path, &bytes) {
            tracing::error!(%error, "could not keep the assignment");
        }
        state.assignment = assignment;
        let duties = state.assignment.duties.clone();
        self.assign_sources(&mut state, &duties);
        self.assign_targets(&mut state, &duties);
        self.assign_instances(&mut state, &duties);
        if state.untaken.is_empty() {
            state.settled = state.assignment.generation;
        }
        drop(state);
        self.board.poke();
    }

    fn assign_sources(self: &Arc<Self>, state: &mut State, duties: &[ItemDuty]) {
        let work_of = |duty: &ItemDuty| {
            let source = duty.source.clone()?;
            // The branch's epoch, not the item's: a host that is both ends sees the item's.
            let (item, vault, epoch) = (duty.item, duty.vault, source.branch.epoch);
            Some((item, SourceWork { item, vault, epoch, duty: source }))
        };
        let wanted: BTreeMap<_, _> = duties.iter().filter_map(work_of).collect();
        state.sources.retain(|item, sender| {
            let keep = wanted.contains_key(item);
            if !keep {
                sender.send_replace(None);
            }
            keep
        });
        for (item, work) in wanted {
            match state.sources.get(&item) {
                Some(sender) => replace(sender, work),
                None => {
                    let (sender, receiver) = watch::channel(Some(work));
                    state.sources.insert(item, sender);
                    self.spawn(source::run(Arc::clone(self), item, receiver));
                }
            }
        }
    }

    fn assign_targets(self: &Arc<Self>, state: &mut State, duties: &[ItemDuty]) {
        let wanted: BTreeMap<_, _> = duties
            .iter()
            .filter(|duty| duty.target.is_some())
            .map(|duty| (duty.item, duty.clone()))
            .collect();
        state.targets.retain(|item, sender| {
            let keep = wanted.contains_key(item);
            if !keep {
                sender.send_replace(None);
            }
            keep
        });
        let Some(store) = &self.store else { return };
        for (item, work) in wanted {
            match state.targets.get(&item) {
                Some(sender) => replace(sender, work),
                None => {
                    let (sender, receiver) = watch::channel(Some(work));
                    state.targets.insert(item, sender);
                    self.spawn(tend_replica(Arc::clone(self), Arc::clone(store), item, receiver));
                }
            }
        }
    }

    fn assign_instances(self: &Arc<Self>, state: &mut State, duties: &[ItemDuty]) {
        let mut wanted = BTreeMap::new();
        for duty in duties {
            for instance in &duty.instances {
                let work = InstanceWork {
                    turn: 0,
                    item: duty.item,
                    name: duty.name.clone(),
                    epoch: duty.epoch,
                    duty: instance.clone(),
                };
                wanted.insert(instance.instance, work);
            }
        }
        let State { instances, untaken, .. } = &mut *state;
        instances.retain(|instance, sender| {
            let keep = wanted.contains_key(instance);
            if !keep {
                sender.send_replace(None);
                untaken.remove(instance);
            }
            keep
        });
        let Some(store) = &self.store else { return };
        for (instance, mut work) in wanted {
            state.turn += 1;
            work.turn = state.turn;
            match state.instances.get(&instance) {
                Some(sender) if sender.borrow().as_ref().is_some_and(|held| held.same(&work)) => {}
                Some(sender) => {
                    state.untaken.insert(instance, work.turn);
                    sender.send_replace(Some(work));
                }
                None => {
                    let item = work.item;
                    state.untaken.insert(instance, work.turn);
                    let (sender, receiver) = watch::channel(Some(work));
                    state.instances.insert(instance, sender);
                    let (host, store) = (Arc::clone(self), Arc::clone(store));
                    self.spawn(instances::run(host, store, item, instance, receiver));
                }
            }
        }
    }

    /// Notes that an instance's worker has acted on its work of this turn.
    pub fn instance_taken(&self, instance: InstanceId, turn: u64) {
        let mut state = self.state();
        if state.untaken.get(&instance).is_none_or(|newest| *newest > turn) {
            return;
        }
        state.untaken.remove(&instance);
        if state.untaken.is_empty() {
            state.settled = state.assignment.generation;
            drop(state);
            self.board.poke();
        }
    }

    /// Reads the item's replica anew for the board.
    pub async fn replica_changed(&self, item: ItemId) {
        let Some(store) = &self.store else { return };
        match store.figures(item).await {
            Ok(figures) => self.board.target(item, |seen| {
                if let Some(seen) = seen {
                    (seen.fence, seen.newest) = (figures.fence, figures.newest);
                    (seen.stored_bytes, seen.points) = (figures.stored_bytes, figures.points);
                }
            }),
            Err(error) => {
                let problem = error.problem(format!("the replica of item {item} cannot be read"));
                self.board.target(item, |seen| {
                    if let Some(seen) = seen {
                        seen.problem = Some(problem);
                    }
                });
            }
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

    /// Starts the machines that their owner wants started with the host. One that is protected
    /// and has no permit for this boot waits for it until `stop`: it comes with the first contact
    /// to the config server, unless the machine was failed over.
    pub async fn autostart(&self, stop: CancellationToken) {
        // Once a boot: a restart of this process alone must not start what its owner shut down.
        let mark = self.folder.join("autostart-boot");
        if std::fs::read_to_string(&mark).is_ok_and(|boot| boot.trim() == self.boot) {
            return;
        }
        let names = match self.fabric.autostart().await {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(%error, "could not read which machines start with the host");
                return;
            }
        };
        let mut waiting: BTreeSet<String> = names.into_iter().collect();
        let mut told = BTreeSet::new();
        loop {
            for name in waiting.clone() {
                let assignment = self.state().assignment.clone();
                let check = self.permit_check();
                match start_allowed(&self.folder, &assignment, &check, &name) {
                    Ok(()) => {
                        waiting.remove(&name);
                        if let Err(error) = self.fabric.machine_start(&name).await {
                            tracing::error!(machine = %name, "{}", error.problem());
                        }
                    }
                    Err(problem) => {
                        if told.insert(name.clone()) {
                            tracing::warn!(machine = %name, "{problem}");
                        }
                        if is_taken_off(&assignment, &name) {
                            waiting.remove(&name);
                        }
                    }
                }
            }
            if waiting.is_empty() {
                if let Err(error) = folder::write_whole(&mark, self.boot.as_bytes()) {
                    tracing::warn!(%error, "could not note that autostart is done");
                }
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(DISCOVER_EVERY) => {}
            }
        }
    }
}

/// Whether the machine is failed over, or about to be: only a job may start it again.
fn is_taken_off(assignment: &Assignment, name: &str) -> bool {
    let mut sources = assignment.duties.iter().filter_map(|duty| duty.source.as_ref());
    sources.any(|source| {
        source.machine == name
            && matches!(source.run, SourceRun::ShutDown { .. } | SourceRun::Fenced)
    })
}

/// Whether the owner's machine `name` may be started by the host whose folder is `folder`.
///
/// # Errors
/// NO_PERMIT when it is protected and this host holds no permit for it in this boot.
pub fn start_allowed(
    folder: &Path,
    assignment: &Assignment,
    check: &permits::PermitCheck,
    name: &str,
) -> Result<(), leeward_model::Problem> {
    let of_machine =
        |duty: &&ItemDuty| duty.source.as_ref().is_some_and(|source| source.machine == name);
    let Some(duty) = assignment.duties.iter().find(of_machine) else { return Ok(()) };
    match permits::permit_load(folder, name) {
        Some(permit) => permits::permit_allows(check, &permit, duty.item, name, duty.epoch),
        None => Err(leeward_model::Code::NO_PERMIT
            .problem(format!("machine {name} is protected and was not started"))),
    }
}

/// The assignment that a host's folder holds.
pub fn assignment_load(folder: &Path) -> Assignment {
    let kept = std::fs::read(folder.join("assignment.json")).unwrap_or_default();
    serde_json::from_slice(&kept).unwrap_or_default()
}

/// Gives a worker new work; equal work does not wake it.
fn replace<T: PartialEq>(sender: &watch::Sender<Option<T>>, work: T) {
    sender.send_if_modified(|held| {
        let changed = held.as_ref() != Some(&work);
        if changed {
            *held = Some(work);
        }
        changed
    });
}

/// Keeps an item's replica as its duty says: fence, retention, deletion, figures.
async fn tend_replica(
    host: Arc<Host>,
    store: Arc<SiteStore>,
    item: ItemId,
    mut work: watch::Receiver<Option<ItemDuty>>,
) {
    let mut expired = tokio::time::Instant::now();
    loop {
        let Some(duty) = work.borrow_and_update().clone() else {
            host.board.target(item, |seen| *seen = None);
            return;
        };
        host.board.target(item, |seen| {
            seen.get_or_insert_with(target::target_blank);
        });
        let Some(target) = duty.target else { return };
        let outcome = keep_replica(&host, &store, item, &target, duty.vault).await;
        if let Err(error) = outcome {
            let problem = error.problem(format!("the replica of item {item} could not be kept"));
            host.board.target(item, |seen| {
                if let Some(seen) = seen {
                    seen.problem = Some(problem);
                }
            });
        }
        if expired.elapsed() >= EXPIRE_EVERY && !target.delete {
            expired = tokio::time::Instant::now();
            if let Err(error) = store.expire(item, target.retention_seconds).await {
                tracing::warn!(%item, %error, "could not let old points go");
            }
        }
        let _ = tokio::time::timeout(FIGURES_EVERY, work.changed()).await;
    }
}

async fn keep_replica(
    host: &Host,
    store: &Arc<SiteStore>,
    item: ItemId,
    target: &TargetDuty,
    vault: leeward_model::VaultId,
) -> Result<(), leeward_replica::StoreError> {
    if target.delete {
        store.destroy(item).await?;
        host.board.target(item, |seen| {
            if let Some(seen) = seen {
                seen.deleted = true;
            }
        });
        return Ok(());
    }
    store.ensure(vault, item).await?;
    store.fence(item, target.fence).await?;
    host.replica_changed(item).await;
    Ok(())
}

/// Makes the folders that a host needs below `folder`.
///
/// # Errors
/// Those of the file system.
pub fn folders_make(folder: &Path) -> std::io::Result<()> {
    for name in ["items", "instances", "permits", "machines"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    Ok(())
}
