//! The simulated world: two sites in one process, with the product's own config server, hosts,
//! sessions and store, on machines, a disk, a link and clocks that a test commands.
//!
//! Only what lies outside the product is a double: hypervisor, disk, network, time. Whatever is
//! checked is checked by the [`ledger`], which knows the truth from outside.

pub mod crowd;
pub mod disk;
mod ending;
pub mod fabric;
mod guests;
pub mod history;
mod judge;
pub mod ledger;
pub mod link;
mod operators;
mod roles;
mod settle;
mod spare;
pub mod tally;
pub mod time;

use disk::{SiteDisk, WorldExports};
use ending::Ending;
use fabric::{Others, Watch};
use ledger::{HostPlace, Image, Ledger};
use leeward::roles::host::site_store::SiteStore;
use leeward_capture::MemoryMachine;
use leeward_control::{
    Control,
    items::{EnableSpec, ItemView},
    jobs::{JobFilter, JobView, RunState},
    mappings::MappingSpec,
    policies::PolicySpec,
    registration::JoinRequest,
    testing::{
        CountingDraw,
        steps::{self, AtStep, Go},
    },
    vaults::{VaultKey, VaultSpec},
};
use leeward_durable::Place;
use leeward_fabric::{
    MachineRef,
    memory::{MemoryFabric, MemoryWorld},
};
use leeward_model::{
    Bandwidth, DiskFormat, DiskNumber, DiskSpec, Firmware, HostId, ItemId, JobId, MachineSpec,
    NicSpec, Policy, Probe, Site, VaultId,
};
use leeward_replica::Mutation as StoreMutation;
use link::{Link, Net};
use roles::SiteFiles;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use time::{SiteWall, WorldTime};

/// What a machine's console shows once its guest is up.
pub const READY: &str = "GUEST READY";
/// The protected machine.
pub const MACHINE: &str = "web01";
/// Hardware address of its one network card.
pub const NIC: &str = "52:54:00:00:00:01";
/// Both sites.
pub const SITES: [Site; 2] = [Site::Primary, Site::Recovery];
/// The folder of the primary site's other host.
const SPARE: &str = "spare";
/// The primary site's fabric.
const SITE: &str = "site-a";
/// The config server takes a turn at least this often, in milliseconds.
const TURN_MAX_MS: u64 = 500;
/// And not more often than this: its database is slower than its world.
const TURN_MIN_MS: u64 = 100;
/// Steps between two looks at what is waited for, at least and at most.
const LOOK_STEPS: usize = 10;
const LOOK_STEPS_MAX: usize = 50;
/// Bytes a second that a connection between the sites carries, and how long the machines' disks
/// take for a MiB, in milliseconds: so that a copy of such small disks takes some steps.
const LINK_PACE: u64 = 2 << 20;
const READ_MS: u64 = 200;
/// Bytes of its first disk: not a whole number of extents.
pub const FIRST_DISK_BYTES: u64 = 8 * 65_536 + 8_192;
/// Bytes of its second disk.
pub const SECOND_DISK_BYTES: u64 = 4 * 65_536;
/// The recovery host's wall clock is four hours slow, the primary's three hours fast, the config
/// server's one day fast: nothing may depend on them.
const SKEWS_MS: [i64; 3] = [-4 * 3_600_000, 3 * 3_600_000, 86_400_000];

/// Deliberate mistakes, to show that the oracle sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mistakes {
    /// Of the capture.
    pub capture: Option<leeward_capture::Mutation>,
    /// The only site whose capture makes it; none is both.
    pub capture_at: Option<Site>,
    /// Guests that are said to be off run on, and write until they are ended.
    pub shutdown_lies: bool,
    /// Of the store.
    pub store: Option<StoreMutation>,
    /// What is said to be kept when protection ends is deleted.
    pub forgets_what_is_kept: bool,
    /// Whoever reads the disks that a machine left writes to them.
    pub writes_stale_disks: bool,
    /// Of the stores' disks: before each power cut they leave out one flush.
    pub skip_a_flush: bool,
    /// No host audits anything. Nor do they beside any other mistake: that is for the oracle to
    /// see, not for an audit to mend.
    pub no_audit: bool,
}

/// Where the next turn of the config server shall halt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// The job's kind.
    pub kind: String,
    /// The step's function.
    pub place: Place,
}

/// See the module.
pub struct World {
    /// The oracle.
    pub ledger: Ledger,
    /// The time.
    pub time: WorldTime,
    /// The vault.
    pub vault: VaultId,
    /// The item, once it was enabled.
    pub item: Option<ItemId>,
    /// Where the config server halts.
    pub strike: Option<Strike>,
    /// The job that it halted at; taken by who strikes.
    pub halted: Option<AtStep>,
    /// The link between the sites.
    pub link: Link,
    /// The active machine of this site must not stop, as long as this is set.
    pub must_run: Option<Site>,
    machines: Arc<MemoryWorld>,
    /// The disks that the owner's machine had at first, and what is on them while it is replaced.
    owners_disks: MemoryMachine,
    owners_image: Option<Image>,
    /// Planned failovers that were judged.
    planned: BTreeSet<JobId>,
    net: Net,
    server: Option<Control>,
    draw: Arc<CountingDraw>,
    primary: SiteFiles,
    recovery: SiteFiles,
    /// The primary site's other host, if it has joined, and what lies still there.
    spare: SiteFiles,
    has_spare: bool,
    is_swapped: bool,
    left: Option<Image>,
    read_ms: Arc<AtomicU64>,
    /// The end of protection that was asked for.
    ending: Option<Ending>,
    /// A planned failover goes on to a reprotect (F-084).
    auto_reverse: bool,
    /// Steps in which a machine must not have stopped.
    beats: u64,
    turned_ms: u64,
    /// Turns that the config servers took so far.
    turns: u64,
    mistakes: Mistakes,
    /// What may be sent.
    bandwidth: Bandwidth,
    /// Bytes that each host's spool may take.
    spool_bytes: u64,
    folder: tempfile::TempDir,
}

impl Drop for World {
    /// Doors hold who listens behind them, and those hold the doors: without this a world would
    /// leave its memory and its database's threads.
    fn drop(&mut self) {
        self.net.server_set(None);
        self.net.store_set(None);
    }
}

/// Runs a test in a world of its own.
pub fn simulate<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build();
    runtime.expect("the system has a timer").block_on(test)
}

fn spec(sizes: [u64; 2]) -> MachineSpec {
    let disk = |number: u16, size: u64| DiskSpec {
        number: DiskNumber(number),
        id: format!("disk{number}"),
        serial: format!("SERIAL{number}"),
        size,
        block_bytes: 512,
        format: DiskFormat::Raw,
        path: format!("/disk{number}"),
    };
    MachineSpec {
        name: MACHINE.into(),
        memory_mib: 32,
        cpus: 1,
        firmware: Firmware::Bios,
        disks: vec![disk(0, sizes[0]), disk(1, sizes[1])],
        nics: vec![NicSpec { mac: NIC.into(), network: "user".into(), address: None }],
        display: false,
        probe: Probe {
            console_contains: Some(READY.into()),
            console_must_not_contain: None,
            timeout_seconds: 5,
        },
    }
}

/// A folder in memory, where there is such a thing: thousands of worlds are made.
fn folder_made() -> tempfile::TempDir {
    let shm = std::path::Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("leeward-world-");
    let folder = if shm.is_dir() { builder.tempdir_in(shm) } else { builder.tempdir() };
    folder.expect("a folder for temporary files")
}

/// What a host has before its role starts for the first time.
fn site_files(
    (id, name): (HostId, &'static str),
    folder: &std::path::Path,
    machines: MemoryFabric,
    watch: Watch,
    link: Link,
) -> SiteFiles {
    let disk = SiteDisk::default();
    let world = Arc::clone(&watch.machines);
    let exports = WorldExports::new(watch.site, disk.clone(), world, watch.ledger.clone());
    let folder = folder.join(name);
    SiteFiles { id, name, folder, machines, watch, exports, disk, link, boots: 1, role: None }
}

/// The other of two sites.
pub fn other(site: Site) -> Site {
    match site {
        Site::Primary => Site::Recovery,
        Site::Recovery => Site::Primary,
    }
}

/// The first byte that differs, if one does.
pub fn differs(seen: &[u8], wanted: &[u8]) -> Option<usize> {
    if seen == wanted {
        return None;
    }
    let common = seen.iter().zip(wanted).position(|(seen, wanted)| seen != wanted);
    Some(common.unwrap_or(seen.len().min(wanted.len())))
}

impl World {
    /// Both sites run, the machine runs and was found; nothing is protected.
    pub async fn new(mistakes: Mistakes) -> World {
        World::sized(mistakes, [FIRST_DISK_BYTES, SECOND_DISK_BYTES]).await
    }

    /// As [`Self::new`], with a machine whose two disks have these sizes in bytes.
    pub async fn sized(mistakes: Mistakes, sizes: [u64; 2]) -> World {
        let time = WorldTime::begin();
        let folder = folder_made();
        let (machines, ledger, link) = (MemoryWorld::new(), Ledger::default(), Link::default());
        let read_ms = Arc::new(AtomicU64::new(READ_MS));
        let fabrics = SITES.map(|_| MemoryFabric::new(Arc::clone(&machines)));
        let fabric = |site: Site| fabrics[usize::from(site == Site::Recovery)].clone();
        let watch = |site, skew_ms| Watch {
            site,
            ledger: ledger.clone(),
            time,
            machines: Arc::clone(&machines),
            others: Others::new(fabric(other(site))),
            wall: SiteWall::new(time, skew_ms),
            link: link.clone(),
            trap: Arc::default(),
            read_ms: Arc::clone(&read_ms),
            mistakes,
        };
        let files = |site, id, name, skew_ms, link| {
            let spare = name == SPARE;
            let own = || MemoryFabric::new(Arc::clone(&machines));
            let machines = if spare { own() } else { fabric(site) };
            site_files((id, name), folder.path(), machines, watch(site, skew_ms), link)
        };
        let at_recovery = HostId::from_u128(0x7a);
        let recovery = files(Site::Recovery, at_recovery, "recovery", SKEWS_MS[0], Link::default());
        // It gets its id when it joins.
        let primary =
            files(Site::Primary, HostId::from_u128(0), "primary", SKEWS_MS[1], link.clone());
        link.set_pace(LINK_PACE);
        let nobody = HostId::from_u128(1);
        let spare = files(Site::Primary, nobody, SPARE, spare::SKEW_MS, link.clone());
        let mut world = World {
            ledger,
            time,
            vault: VaultId::from_u128(0),
            item: None,
            strike: None,
            halted: None,
            link,
            must_run: None,
            machines,
            owners_disks: MemoryMachine::default(),
            owners_image: None,
            planned: BTreeSet::new(),
            net: Net::default(),
            server: None,
            draw: Arc::default(),
            primary,
            recovery,
            spare,
            has_spare: false,
            is_swapped: false,
            left: None,
            read_ms,
            ending: None,
            auto_reverse: false,
            beats: 0,
            turned_ms: 0,
            turns: 0,
            mistakes,
            bandwidth: Bandwidth::default(),
            spool_bytes: 0,
            folder,
        };
        world.begin(sizes).await;
        world
    }

    async fn begin(&mut self, sizes: [u64; 2]) {
        self.server_start().await;
        let control = self.control();
        let key = VaultKey {
            subscription: "00000000-0000-0000-0000-000000000001".to_owned(),
            resource_group: "group".to_owned(),
            name: "vault".to_owned(),
        };
        let made = control.vault_put(&key, VaultSpec::default()).await;
        self.vault = made.expect("a new vault").id;
        let vault = self.vault;
        let site = control.fabric_put(vault, SITE, serde_json::Value::Null).await;
        site.expect("a new site");
        let hour = std::time::Duration::from_secs(3600);
        let key = control.registration_key_create(vault, SITE, hour, "ab12").await;
        // Nobody can dial the primary host.
        let join = JoinRequest { name: "kvm-a".to_owned(), data_address: None };
        let joined = control.registration_key_redeem(&key.expect("a key"), join).await;
        self.primary.id = joined.expect("a fresh key").host;
        self.policy_set(false).await;
        let mapping = MappingSpec { policy: "gold".to_owned(), ..MappingSpec::default() };
        let mapped = control.mapping_put(vault, SITE, "to-recovery", mapping).await;
        mapped.expect("a valid mapping");
        let machine = self.primary.machines.add_machine(spec(sizes));
        let disks = self.primary.machines.disks(&machine);
        self.owners_disks = disks.expect("it was added just now");
        self.owner_starts(Site::Primary).await;
        SITES.into_iter().for_each(|site| self.role_start(site));
        self.until("the machine is found", 400, async |world| {
            world.control().machine_get(world.vault, SITE, MACHINE).await.is_ok()
        })
        .await;
    }

    /// Sets the policy of the machine; whether a planned failover goes on to a reprotect (F-084).
    pub async fn policy_set(&mut self, auto_reverse: bool) {
        self.auto_reverse = auto_reverse;
        self.policy_put().await;
    }

    /// Sets how many bytes a second may be sent (F-046).
    pub async fn bandwidth_set(&mut self, bandwidth: Bandwidth) {
        self.bandwidth = bandwidth;
        self.policy_put().await;
    }

    async fn policy_put(&self) {
        let policy = Policy {
            point_interval_ms: 2_000,
            shutdown_timeout_seconds: 5,
            auto_reverse_planned: self.auto_reverse,
            bandwidth: self.bandwidth.clone(),
            ..Policy::default()
        };
        let policy = PolicySpec { policy, extra: serde_json::Value::Null };
        self.control().policy_put(self.vault, "gold", policy).await.expect("a valid policy");
    }

    /// The config server.
    ///
    /// # Panics
    /// While it is dead.
    pub fn control(&self) -> Control {
        self.server.clone().expect("the test asks a config server that runs")
    }

    /// A site's machines.
    pub fn machines(&self, site: Site) -> &MemoryFabric {
        &self.files(site).machines
    }

    /// The protected machine at a site.
    pub fn owned(&self, site: Site) -> MachineRef {
        self.ledger.machine(site)
    }

    /// How many machines of the item run.
    pub fn writers(&self) -> usize {
        self.ledger.writers(&self.machines)
    }

    /// A site's disk.
    pub fn disk(&self, site: Site) -> &SiteDisk {
        &self.files(site).disk
    }

    /// A host's disk; none of a host that has not joined.
    pub fn disk_of(&self, place: HostPlace) -> Option<&SiteDisk> {
        match (place, self.is_swapped) {
            (HostPlace::Recovery, _) => Some(&self.recovery.disk),
            (HostPlace::First, false) | (HostPlace::Spare, true) => Some(&self.primary.disk),
            (HostPlace::First, true) | (HostPlace::Spare, false) => {
                Some(&self.spare.disk).filter(|_| self.has_spare)
            }
        }
    }

    /// Lets the machines' disks take so many milliseconds for a MiB.
    pub fn read_pace(&self, ms: u64) {
        self.read_ms.store(ms, Ordering::Relaxed);
    }

    /// The store as a site's role uses it.
    pub fn store(&self, site: Site) -> Option<Arc<SiteStore>> {
        self.files(site).role.as_ref().map(|role| Arc::clone(&role.store))
    }

    /// The owner switches the machine of a site on.
    pub async fn owner_starts(&self, site: Site) {
        use leeward_fabric::Fabric as _;
        let started = self.machines(site).machine_start(&self.ledger.name(site)).await;
        started.expect("the double starts what it is told to");
    }

    /// Lets a little time pass, with a turn of the config server when one is due.
    pub async fn step(&mut self) {
        let server = self.server.clone();
        time::pass(|| server.as_ref().is_some_and(steps::is_at_work)).await;
        drop(server);
        for site in SITES.into_iter().filter(|site| !self.answers(*site)) {
            self.unsure(site);
        }
        self.check_runs().await;
        let Some(control) = self.server.clone().filter(|_| self.halted.is_none()) else { return };
        let since = self.time.ms() - self.turned_ms;
        // What asks for a turn meanwhile is noted there.
        if since < TURN_MIN_MS {
            return;
        }
        let poked = tokio::select! {
            biased;
            () = steps::poked(&control) => true,
            () = std::future::ready(()) => false,
        };
        if !poked && since < TURN_MAX_MS {
            return;
        }
        self.turned_ms = self.time.ms();
        self.turns += 1;
        let (strike, halted) = (self.strike.clone(), &mut self.halted);
        let mut see = |at: &AtStep| {
            let here = strike.as_ref().is_some_and(|s| s.kind == at.kind && s.place == at.place);
            if here {
                *halted = Some(at.clone());
                return Go::Halt;
            }
            Go::On
        };
        let see: Option<steps::See<'_>> = match &strike {
            Some(_) => Some(&mut see),
            None => None,
        };
        let turned = steps::turn(&control, see);
        if let Err(error) = turned.await {
            self.ledger.violated(format!("the config server's turn failed: {error}"));
        }
    }

    /// Lets time pass.
    pub async fn wait(&mut self, ms: u64) {
        let end = self.time.ms() + ms;
        while self.time.ms() < end {
            self.step().await;
        }
    }

    /// Lets time pass until `done`; says whether it came to that within `steps_max` steps.
    ///
    /// Looking costs transactions, and what is looked for comes about in the config server's turns:
    /// it is looked for after a turn, not more often than every few steps, and rarely without one.
    pub async fn reaches(&mut self, steps_max: usize, done: impl AsyncFn(&World) -> bool) -> bool {
        let (mut looked_at, mut looked_after) = (0, None);
        for step in 0..steps_max {
            let since = step - looked_at;
            let due = since >= LOOK_STEPS && looked_after != Some(self.turns);
            if looked_after.is_none() || due || since >= LOOK_STEPS_MAX {
                (looked_at, looked_after) = (step, Some(self.turns));
                if done(self).await {
                    return true;
                }
            }
            self.step().await;
        }
        done(self).await
    }

    /// Lets time pass until `done`.
    ///
    /// # Panics
    /// After `steps_max` steps.
    pub async fn until(
        &mut self,
        what: &str,
        steps_max: usize,
        done: impl AsyncFn(&World) -> bool,
    ) {
        assert!(self.reaches(steps_max, done).await, "not in time: {what}");
    }

    /// Asks the config server, while time passes.
    pub async fn ask<T: Send + 'static>(
        &mut self,
        request: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let asked = tokio::spawn(request);
        while !asked.is_finished() {
            self.step().await;
        }
        asked.await.expect("a request neither panics nor is cancelled")
    }

    /// The item as it is shown; none when it is gone or the config server is dead.
    pub async fn view(&self) -> Option<ItemView> {
        let control = self.server.clone()?;
        control.item_find(self.item?).await.ok()
    }

    /// A job as it is shown.
    ///
    /// # Panics
    /// When there is none, or the config server is dead.
    pub async fn job(&self, job: JobId) -> JobView {
        self.control().job_get(self.vault, job).await.expect("jobs are never forgotten")
    }

    /// Jobs that are not over.
    pub async fn jobs_running(&self) -> Vec<JobView> {
        let listed = self.control().job_list(self.vault, &JobFilter::default()).await;
        let mut jobs = listed.expect("the database works");
        jobs.retain(|job| job.ended.is_none());
        jobs
    }

    /// Lets time pass until the job is over or waits for a person.
    pub async fn finish(&mut self, job: JobId) -> JobView {
        let over = async |world: &World| {
            let view = world.job(job).await;
            view.ended.is_some() || view.state == RunState::Suspended
        };
        if !self.reaches(settle::STEPS_MAX, over).await {
            self.ledger
                .violated(format!("I6: a job does not end in time: {:?}", self.job(job).await));
        }
        self.job(job).await
    }

    /// Protects the machine and returns the job that does it.
    pub async fn enable(&mut self) -> Option<JobId> {
        let (control, vault) = (self.control(), self.vault);
        let machine = self.machine_found().await?;
        let started = self.ask(async move {
            let extra = serde_json::Value::Null;
            let spec = EnableSpec { policy: "gold".to_owned(), machine, extra };
            control.item_enable(vault, SITE, MACHINE, spec).await
        });
        let started = started.await.ok()?;
        self.item = Some(started.item);
        self.names_learn().await;
        Some(started.job)
    }

    /// Learns how the machine is called at its ends.
    pub(crate) async fn names_learn(&self) {
        for end in self.view().await.map(|view| view.ends).into_iter().flatten() {
            self.ledger.name_set(end.site, &end.machine);
        }
    }
}
