//! The way home between two hosts in one process, on machines in memory: the stale disks are
//! sealed where they lie, then only blocks that differ are sent, over a connection that the store
//! dialled.
#![expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

#[path = "two_ends/keys.rs"]
mod keys;
#[path = "two_ends/last_data.rs"]
mod last_data;
#[path = "two_ends/life.rs"]
mod life;
#[path = "two_ends/many_sessions.rs"]
mod many_sessions;
#[path = "two_ends/rotation.rs"]
mod rotation;

use async_trait::async_trait;
use leeward::roles::{
    host::{
        Host, HostParts,
        clock::WallClock,
        dial::{BoxStream, Dialer},
        door,
        exports::{ExportLauncher, ExportPlan},
        folders_make,
        site_store::SiteStore,
    },
    session::{FrameReader, FrameWriter},
    site,
};
use leeward::trust::permits::PermitKey;
use leeward_fabric::{
    Fabric as _, MachineRef,
    memory::{MemoryFabric, MemoryWorld},
};
use leeward_model::{
    Branch, Code, DiskFormat, DiskNumber, DiskSpec, Epoch, Firmware, HostId, ItemId, JobId,
    MachineSpec, MachineState, PermitTerms, PointId, PointOrigin, Position, Probe, Site,
    StartPermit, TimelineId, VaultId,
};
use leeward_replica::{
    Store, SystemRandom, Unlock, View,
    storage::{LocalStore, RoomStore},
};
use leeward_wire::{
    data::{DataHello, DataMessage, Role},
    message::{
        Assignment, CapturePhase, InstanceDuty, ItemDuty, Seeded, SourceDuty, SourceRun, TargetDuty,
    },
};
use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, time::Instant};

const ITEM: ItemId = ItemId::from_u128(1);
const NAME: &str = "web01";
const DISK: DiskNumber = DiskNumber(0);
const SIZE: u64 = 4 << 20;
const BLOCK: u64 = 4096;
const EPOCH: Epoch = Epoch(2);
const HOME: HostId = HostId::from_u128(10);
const AWAY: HostId = HostId::from_u128(11);
/// Far beyond what anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects to the door of another host; which one comes later.
#[derive(Default)]
struct Way {
    to: Mutex<Option<(HostId, Arc<Host>)>>,
    /// A connection breaks after this many bytes.
    breaks_after: Mutex<Option<u64>>,
    /// No connection comes about, and none is refused either.
    hangs: AtomicBool,
    /// Such a connection is waited for.
    waited: tokio::sync::Notify,
    /// When a connection was asked for over which a hello came.
    dials: Arc<Mutex<Vec<Instant>>>,
    /// A cut that comes in the middle of what is sent.
    cut: Arc<last_data::Cut>,
}

#[async_trait]
impl Dialer for Way {
    async fn dial(&self, _: &str) -> io::Result<BoxStream> {
        let dialled = Instant::now();
        if self.hangs.load(Ordering::Relaxed) {
            self.waited.notify_one();
            return std::future::pending().await;
        }
        self.cut.dial()?;
        let breaks_after = *self.breaks_after.lock().unwrap();
        let to = self.to.lock().unwrap().clone();
        let (peer, host) = to.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (near, far) = tokio::io::duplex(1 << 20);
        let (dials, cut) = (Arc::clone(&self.dials), Arc::clone(&self.cut));
        tokio::spawn(async move {
            let (read, write) = tokio::io::split(far);
            let read = cut.over(read.take(breaks_after.unwrap_or(u64::MAX)));
            let (mut reader, writer) = (FrameReader::new(read), FrameWriter::new(write));
            if let Ok(DataMessage::Hello(hello)) = reader.message(PATIENCE).await {
                dials.lock().unwrap().push(dialled);
                door::serve(host, peer, hello, reader, writer).await;
            }
        });
        Ok(Box::new(near))
    }
}

/// Serves points of a store to machines in memory.
struct Exports {
    world: Arc<MemoryWorld>,
    store: PathBuf,
    served: Mutex<BTreeSet<PathBuf>>,
}

#[async_trait]
impl ExportLauncher for Exports {
    async fn start(&self, plan: &ExportPlan) -> io::Result<()> {
        let blobs = Arc::new(LocalStore::open_reading(&self.store));
        let store = Store::open(blobs, None, &Unlock::KeyFile, Arc::new(SystemRandom)).unwrap();
        let reader = store.item_read(plan.item).unwrap();
        let point = reader.state().points.iter().find(|point| point.id == plan.point).unwrap();
        let view = View::open(&reader, point.position).unwrap();
        let read = move |disk, offset, len: u64| {
            view.read(disk, offset, len as usize).map_err(io::Error::other)
        };
        self.world.serve(&plan.socket, "disk-0", Arc::new(read));
        self.served.lock().unwrap().insert(plan.socket.clone());
        Ok(())
    }
    async fn answers(&self, plan: &ExportPlan) -> bool {
        self.served.lock().unwrap().contains(&plan.socket)
    }
    async fn stop(&self, plan: &ExportPlan) -> io::Result<()> {
        self.world.stop_serving(&plan.socket, "disk-0");
        self.served.lock().unwrap().remove(&plan.socket);
        Ok(())
    }
}

struct End {
    id: HostId,
    host: Arc<Host>,
    machines: MemoryFabric,
    world: Arc<MemoryWorld>,
    store: Arc<SiteStore>,
    way: Arc<Way>,
    key: PermitKey,
    folder: TempDir,
}

fn end(id: HostId, at: Site) -> End {
    end_in(id, at, tempfile::tempdir().unwrap(), None)
}

/// With a store of which `room` says how many bytes are free.
fn end_in(id: HostId, at: Site, folder: TempDir, room: Option<Arc<AtomicU64>>) -> End {
    folders_make(folder.path()).unwrap();
    let (mut store, _) = site::store_open(folder.path(), id).unwrap();
    if let Some(room) = room {
        drop(store);
        let blobs = Arc::new(LocalStore::open(folder.path().join("store")).unwrap());
        let blobs = Arc::new(RoomStore::new(blobs, room));
        let random = Arc::new(SystemRandom);
        store = Store::open_writer(blobs, id.into(), &Unlock::KeyFile, random).unwrap();
    }
    let store = site::site_store(store, at);
    let world = MemoryWorld::new();
    let machines = MemoryFabric::new(Arc::clone(&world));
    machines.add_machine(spec());
    let way = Arc::new(Way::default());
    let key = PermitKey::open_or_create(folder.path()).unwrap();
    let host = host(id, "boot", &folder, (&machines, &world), &store, &way);
    host.permit_key_set(&key.public_hex());
    End { id, host, machines, world, store, way, key, folder }
}

fn host(
    id: HostId,
    boot: &str,
    folder: &TempDir,
    (machines, world): (&MemoryFabric, &Arc<MemoryWorld>),
    store: &Arc<SiteStore>,
    way: &Arc<Way>,
) -> Arc<Host> {
    let exports = Exports {
        world: Arc::clone(world),
        store: folder.path().join("store"),
        served: Mutex::default(),
    };
    Host::new(HostParts {
        id,
        name: "host".into(),
        boot: boot.into(),
        folder: folder.path().to_owned(),
        run_folder: folder.path().join("run"),
        accelerator: "tcg".into(),
        fabric: Arc::new(machines.clone()),
        store: Some(Arc::clone(store)),
        dialer: Arc::clone(way) as Arc<dyn Dialer>,
        exports: Arc::new(exports),
        wall: WallClock::system(),
        sealing: leeward::sealing::Sealing::default(),
        audit: leeward::audit_pace::AuditPace::default(),
        spool: leeward::roles::host::spool::room::SpoolRoom::off(),
    })
}

fn spec() -> MachineSpec {
    let disk = DiskSpec {
        number: DISK,
        id: "root".into(),
        serial: "root".into(),
        size: SIZE,
        block_bytes: 512,
        format: DiskFormat::Raw,
        path: "root.img".into(),
    };
    MachineSpec {
        name: NAME.into(),
        memory_mib: 64,
        cpus: 1,
        firmware: Firmware::Bios,
        disks: vec![disk],
        nics: Vec::new(),
        display: false,
        probe: Probe::default(),
    }
}

impl End {
    /// The role's process ends and starts anew; the machines run on.
    fn restart(&mut self, boot: &str) {
        self.host.abort();
        let machines = (&self.machines, &self.world);
        self.host = host(self.id, boot, &self.folder, machines, &self.store, &self.way);
    }

    fn permit(&self, machine: &str, boot: &str) -> Option<StartPermit> {
        Some(self.key.sign(PermitTerms {
            item: ITEM,
            timeline: TimelineId::from_u128(21),
            epoch: EPOCH,
            machine: machine.into(),
            host: self.id,
            host_boot: boot.into(),
        }))
    }

    async fn state(&self) -> MachineState {
        self.machines.machine_state(&MachineRef::Owned(NAME.into())).await.unwrap()
    }

    fn assign(&self, generation: u64, source: Option<SourceDuty>, target: Option<TargetDuty>) {
        self.assign_all(generation, source, target, Vec::new());
    }

    fn assign_all(
        &self,
        generation: u64,
        source: Option<SourceDuty>,
        target: Option<TargetDuty>,
        instances: Vec<InstanceDuty>,
    ) {
        let name = NAME.to_owned();
        let vault = VaultId::from_u128(1);
        let duty = ItemDuty { item: ITEM, vault, name, epoch: EPOCH, source, target, instances };
        self.host.assign(Assignment { generation, duties: vec![duty] });
    }

    /// Waits until the board shows what is looked for.
    async fn seen<T>(&self, look: impl Fn(&Host) -> Option<T>) -> T {
        self.seen_within(PATIENCE, look).await
    }

    async fn seen_within<T>(&self, limit: Duration, look: impl Fn(&Host) -> Option<T>) -> T {
        let seen = async {
            loop {
                if let Some(found) = look(&self.host) {
                    return found;
                }
                self.host.board.wait().await;
            }
        };
        let seen = tokio::time::timeout(limit, seen).await;
        seen.unwrap_or_else(|_| panic!("never seen: {:#?}", self.host.board.items_seen()))
    }

    fn content(&self) -> Vec<u8> {
        self.machines.disks(&MachineRef::Owned(NAME.into())).unwrap().content(DISK)
    }

    fn stored(&self, at: Position) -> Vec<u8> {
        let blobs = Arc::new(LocalStore::open_reading(self.folder.path().join("store")));
        let store = Store::open(blobs, None, &Unlock::KeyFile, Arc::new(SystemRandom)).unwrap();
        let view = View::open(&store.item_read(ITEM).unwrap(), at).unwrap();
        view.read(DISK, 0, SIZE as usize).unwrap().to_vec()
    }
}

fn duty(branch: Branch, target_host: HostId, run: SourceRun) -> SourceDuty {
    SourceDuty {
        machine: NAME.into(),
        site: Site::Recovery,
        branch,
        target_host,
        target_address: None,
        point_interval_ms: 60_000,
        run,
        resync: 0,
        resync_full: 0,
        resync_threshold_percent: 50,
        resync_allowed: true,
        bandwidth: leeward_model::Bandwidth::default(),
    }
}

fn receives(branch: Branch) -> TargetDuty {
    TargetDuty {
        site: Site::Primary,
        source_host: AWAY,
        source_address: Some("away:1".into()),
        branch,
        fence: EPOCH,
        receive: true,
        retention_seconds: 3600,
        delete: false,
        other_store: None,
        retired: Vec::new(),
    }
}

fn branch(timeline: u128, parent: Option<Position>) -> Branch {
    Branch { timeline: TimelineId::from_u128(timeline), parent, epoch: EPOCH }
}

/// A disk of which two thirds hold data.
fn old_disk() -> Vec<u8> {
    let block = |number: u64| match number % 3 {
        0 => vec![0; BLOCK as usize],
        _ => vec![(number % 251 + 1) as u8; BLOCK as usize],
    };
    (0..SIZE / BLOCK).flat_map(block).collect()
}

async fn seeded(home: &End) -> Position {
    let job = JobId::from_u128(7);
    let seed = SourceRun::Seed { job, base: None };
    home.assign(1, Some(duty(branch(20, None), AWAY, seed)), None);
    let outcome = home.seen(|host| host.board.source_seen(ITEM)?.seeded).await;
    let (by, outcome) = outcome;
    assert_eq!(by, job);
    match outcome.unwrap() {
        Seeded::Stored { position, .. } => position,
        Seeded::Nothing => panic!("the old disks were not found"),
    }
}

/// F-132, F-133, F-136: the way home.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_disks_are_sealed_where_they_lie_and_only_blocks_that_differ_are_sent() {
    let (home, away) = (end(HOME, Site::Primary), end(AWAY, Site::Recovery));
    *home.way.to.lock().unwrap() = Some((HOME, Arc::clone(&away.host)));
    let machine = MachineRef::Owned(NAME.into());
    home.machines.disks(&machine).unwrap().write(DISK, 0, &old_disk());
    home.machines.machine_claim(NAME, ITEM).await.unwrap();
    away.machines.disks(&machine).unwrap().write(DISK, 0, &old_disk());
    away.machines.machine_start(NAME).await.unwrap();
    // Two blocks of one extent, one of another, one that becomes zero, one that was zero.
    let changed = [(17, 0xa1), (18, 0xa2), (400, 0xa3), (700, 0), (900, 0xa5)];
    for (block, fill) in changed {
        let bytes = vec![fill; BLOCK as usize];
        away.machines.guest_write(&machine, DISK, block * BLOCK, &bytes).unwrap();
    }

    let seed = seeded(&home).await;
    let next = branch(21, Some(seed));
    home.assign(2, None, Some(receives(next)));
    let run = SourceRun::Replicate { permit: None, start: None };
    away.assign(1, Some(duty(next, HOME, run)), None);
    let point = home.seen(|host| {
        let seen = host.board.items_seen();
        seen.iter().find_map(|seen| seen.target.clone()?.newest)
    });
    let point = point.await;

    assert_eq!(home.content(), old_disk(), "the stale disks stay as they were");
    assert_eq!(home.stored(seed), old_disk());
    assert_eq!(point.position.timeline, next.timeline, "a seed is no progress of the source");
    assert!(home.stored(point.position) == away.content(), "the replica is not the source");
    let sent = away.host.board.source_seen(ITEM).unwrap().sent_bytes;
    let with_bytes = changed.iter().filter(|(_, fill)| *fill != 0).count() as u64;
    assert_eq!(sent, with_bytes * BLOCK, "a block that became zero is sent without bytes");
    let page = home.host.store.as_ref().unwrap();
    let query = leeward_wire::message::Query::Points { item: ITEM, skip: 0, limit: 10 };
    let leeward_wire::message::Answer::Points { points, .. } =
        page.answer(query, Some(3600)).await.unwrap()
    else {
        panic!("another answer");
    };
    let of_seed = points.iter().find(|point| point.position == seed).unwrap();
    assert_eq!((&of_seed.origin, of_seed.held_at), (&PointOrigin::Divergent, Site::Primary));
}

/// F-140, F-122: nothing is read of a machine that is not the item's, or that is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_of_the_same_name_that_is_not_the_items_is_no_seed() {
    let home = end(HOME, Site::Primary);
    let job = JobId::from_u128(8);
    let seed = SourceRun::Seed { job, base: None };

    home.assign(1, Some(duty(branch(20, None), AWAY, seed)), None);

    let seen = home.seen(|host| host.board.source_seen(ITEM)?.seeded).await;
    assert_eq!(seen, (job, Ok(Seeded::Nothing)));
    let problem = home.host.board.source_seen(ITEM).unwrap().problem.unwrap();
    assert_eq!(problem.code, "LW-0211");
}

/// A store that no duty of this host expects does not get the item's data.
#[tokio::test]
async fn a_store_that_is_not_the_duties_is_refused_at_the_door() {
    let away = end(AWAY, Site::Recovery);
    let run = SourceRun::Live { permit: None, start: None };
    away.assign(1, Some(duty(branch(21, None), HOME, run)), None);
    let stranger = HostId::from_u128(99);
    let cases = [
        (stranger, stranger, branch(21, None), "LW-0403"),
        (HOME, stranger, branch(21, None), "LW-0502"),
        (HOME, HOME, branch(22, None), "LW-0404"),
    ];
    for (peer, host, branch, code) in cases {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(far);
        let hello = DataHello {
            version_min: 1,
            version_max: 1,
            item: ITEM,
            host,
            host_boot: "boot".into(),
            role: Role::DialerReceives,
            epoch: EPOCH,
            branch,
        };
        let (reader, writer) = (FrameReader::new(read), FrameWriter::new(write));
        door::serve(Arc::clone(&away.host), peer, hello, reader, writer).await;
        match FrameReader::new(near).message(PATIENCE).await.unwrap() {
            DataMessage::Refused(problem) => assert_eq!(problem.code, code),
            other => panic!("{other:?}"),
        }
    }
}

/// Two hosts whose away machine, full of noise, is to be replicated home; the source dials.
async fn replicating() -> (End, End, SourceDuty) {
    let (home, away) = (end(HOME, Site::Primary), end(AWAY, Site::Recovery));
    *away.way.to.lock().unwrap() = Some((AWAY, Arc::clone(&home.host)));
    let machine = MachineRef::Owned(NAME.into());
    away.machines.disks(&machine).unwrap().write(DISK, 0, &noise(SIZE as usize));
    away.machines.machine_start(NAME).await.unwrap();
    let run = SourceRun::Replicate { permit: None, start: None };
    let duty = SourceDuty {
        target_address: Some("home:1".into()),
        point_interval_ms: 1_000,
        ..duty(branch(21, None), HOME, run)
    };
    let target = TargetDuty { source_address: None, ..receives(duty.branch) };
    home.assign(1, None, Some(target));
    (home, away, duty)
}

/// Bytes that no compression makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(bytes).collect()
}

fn newest(host: &Host) -> Option<leeward_wire::message::NewestPoint> {
    host.board.items_seen().iter().find_map(|seen| seen.target.clone()?.newest)
}

/// F-152, F-154: the threshold asks for a comparison, which waits until it may begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_changes_than_a_delta_may_carry_are_compared_when_that_is_allowed() {
    let (home, away, allowed) = replicating().await;
    let closed = SourceDuty { resync_allowed: false, ..allowed.clone() };
    let machine = MachineRef::Owned(NAME.into());
    away.assign(1, Some(allowed.clone()), None);
    home.seen(newest).await;
    away.assign(2, Some(closed), None);

    let half = vec![0x77; (SIZE / 2 + BLOCK) as usize];
    away.machines.guest_write(&machine, DISK, 0, &half).unwrap();
    let waits = away.seen(|host| {
        let seen = host.board.source_seen(ITEM)?;
        seen.problem.filter(|_| seen.phase == CapturePhase::Paused)
    });
    let problem = waits.await;
    assert_eq!(problem.code, Code::RESYNC_NEEDED.code);
    assert!(problem.cause.contains("more than 50 %"), "{problem}");
    away.machines.guest_write(&machine, DISK, SIZE - BLOCK, &noise(BLOCK as usize)).unwrap();
    let before = newest(&home.host).unwrap();

    away.assign(3, Some(allowed), None);
    let after = home.seen(|host| newest(host).filter(|point| point.point != before.point)).await;

    assert!(home.stored(after.position) == away.content(), "the replica is not the source");
    let ends = |host: &Host| {
        let seen = host.board.source_seen(ITEM)?;
        (seen.resync_reason.is_none() && seen.problem.is_none()).then_some(())
    };
    away.seen(ends).await;
    away.machines.guest_write(&machine, DISK, 0, &noise(BLOCK as usize)).unwrap();
    let next = home.seen(|host| newest(host).filter(|point| point.point != after.point)).await;
    assert!(home.stored(next.position).len() as u64 == SIZE, "deltas go on");
}

/// F-156: a first copy whose link breaks again and again.
#[tokio::test(start_paused = true)]
async fn a_broken_copy_climbs_the_ladder_until_the_link_is_back() {
    let (home, away, duty) = replicating().await;
    *away.way.breaks_after.lock().unwrap() = Some(SIZE / 4);

    away.assign(1, Some(duty), None);
    let pauses = || {
        let dials = away.way.dials.lock().unwrap();
        let pauses = dials.windows(2).map(|pair| (pair[1] - pair[0]).as_secs());
        // Those at the very beginning, while the other end may be coming up, are short.
        pauses.skip_while(|seconds| *seconds < 60).collect::<Vec<_>>()
    };
    let hours = Duration::from_secs(6 * 3600);
    away.seen_within(hours, |_| (pauses().len() == 7).then_some(())).await;
    for (seconds, minutes) in pauses().into_iter().zip([1, 2, 4, 8, 10, 30, 30]) {
        assert!((minutes * 60..minutes * 60 + 5).contains(&seconds), "{:?}", pauses());
    }

    *away.way.breaks_after.lock().unwrap() = None;
    let back = Instant::now();
    away.host.board.session_began();
    home.seen(newest).await;

    assert!(back.elapsed() < Duration::from_secs(10), "it went on at once");
}

/// F-156: the store's host was away and is back, in the middle of a long pause.
#[tokio::test(start_paused = true)]
async fn a_dialled_store_that_returns_wakes_a_copy_that_waits_for_its_next_attempt() {
    let (home, away, duty) = replicating().await;
    *away.way.breaks_after.lock().unwrap() = Some(SIZE / 4);
    away.assign(1, Some(duty), None);
    let tries = || away.way.dials.lock().unwrap().len();
    let hours = Duration::from_secs(6 * 3600);
    let paused = |host: &Host| {
        let seen = host.board.source_seen(ITEM)?;
        (tries() > 10 && seen.phase == CapturePhase::Paused).then_some(())
    };
    away.seen_within(hours, paused).await;

    let to = away.way.to.lock().unwrap().take();
    tokio::time::sleep(Duration::from_secs(60)).await;
    *away.way.breaks_after.lock().unwrap() = None;
    *away.way.to.lock().unwrap() = to;
    let back = Instant::now();
    home.seen(newest).await;

    assert!(back.elapsed() < Duration::from_secs(30), "it took {:?}", back.elapsed());
}

/// F-132, LW-0401: a seed for which the store has no room writes nothing, says the figures, and
/// goes on by itself when there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_for_which_there_is_no_room_is_refused_with_the_figures_before_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let room = Arc::new(AtomicU64::new(1 << 20));
    let home = end_in(HOME, Site::Primary, folder, Some(Arc::clone(&room)));
    let machine = MachineRef::Owned(NAME.into());
    home.machines.disks(&machine).unwrap().write(DISK, 0, &old_disk());
    home.machines.machine_claim(NAME, ITEM).await.unwrap();
    let job = JobId::from_u128(7);
    let seed = SourceRun::Seed { job, base: None };

    home.assign(1, Some(duty(branch(20, None), AWAY, seed)), None);
    let (by, outcome) = home.seen(|host| host.board.source_seen(ITEM)?.seeded).await;
    let problem = outcome.unwrap_err();

    assert_eq!((by, problem.code.as_str()), (job, "LW-0401"));
    assert!(problem.what.contains(NAME), "{problem}");
    let needed = format!("they hold {SIZE} bytes");
    assert!(problem.cause.contains(&needed) && problem.cause.contains("1048576"), "{problem}");
    let segments = home.folder.path().join("store/items").join(ITEM.to_string()).join("segments");
    let written = || std::fs::read_dir(&segments).map_or(0, |entries| entries.count());
    assert_eq!(written(), 0, "something was written");
    room.store(1 << 30, Ordering::SeqCst);
    let stored = |host: &Host| match host.board.source_seen(ITEM)?.seeded? {
        (_, Ok(Seeded::Stored { position, .. })) => Some(position),
        _ => None,
    };
    let at = home.seen(stored).await;
    assert!(home.stored(at) == old_disk());
    assert!(written() > 0, "the test looks in the wrong place");
    assert_eq!(home.content(), old_disk());
}

/// F-079: the timeline of a copy that was given up is ended in its store, which gives its bytes
/// back (see the replica's tests of half-made copies), and the points that were there stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_given_up_is_ended_in_its_store_and_touches_no_point() {
    let (home, away, duty) = replicating().await;
    let machine = MachineRef::Owned(NAME.into());
    home.machines.disks(&machine).unwrap().write(DISK, 0, &old_disk());
    home.machines.machine_claim(NAME, ITEM).await.unwrap();
    let seed = seeded(&home).await;
    let next = branch(21, Some(seed));
    let takes = TargetDuty { source_address: None, ..receives(next) };
    home.assign(2, None, Some(takes.clone()));
    let segments = home.folder.path().join("store/items").join(ITEM.to_string()).join("segments");
    let on_disk = || {
        let files = std::fs::read_dir(&segments).unwrap().flatten();
        files.map(|file| file.metadata().map_or(0, |meta| meta.len())).sum::<u64>()
    };
    let before = on_disk();
    *away.way.breaks_after.lock().unwrap() = Some(SIZE / 2);
    away.assign(1, Some(SourceDuty { branch: next, ..duty }), None);
    let broke = |host: &Host| host.board.source_seen(ITEM)?.problem;
    away.seen(broke).await;
    away.host.abort();

    let gives_up = TargetDuty { receive: false, retired: vec![next.timeline], ..takes };
    home.assign(3, None, Some(gives_up));

    let store = home.host.store.clone().unwrap();
    let ended = || {
        let timeline = next.timeline;
        store.with(ITEM, move |store| Ok(store.reader().state().retired.contains(&timeline)))
    };
    let end = Instant::now() + PATIENCE;
    while !ended().await.unwrap() {
        assert!(Instant::now() < end, "the timeline was never ended");
        home.host.board.wait().await;
    }
    // Only the footer that closed the seed's segment has come to it.
    assert!(on_disk() < before + (8 << 10), "its bytes stay: {}", on_disk() - before);
    assert!(home.stored(seed) == old_disk(), "the seed's point is whole");
}
