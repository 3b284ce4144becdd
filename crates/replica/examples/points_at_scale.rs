//! Measures whether the number of points and the size of a disk show when a point is opened, and
//! whether the number of layers shows when it is read. Prints one line of JSON; see
//! `benches/points_at_scale.sh`.
//!
//! Makes its stores through the store's public face, with the upkeep of a host, in the folder that
//! is its argument. It is no test: nothing is asserted about time.

use leeward_model::{
    BLOCK_BYTES, BlockMask, Branch, Change, DiskEntry, DiskNumber, EXTENT_BYTES, Epoch,
    ExtentNumber, Firmware, ItemId, Lsn, MachineSpec, Marker, PointId, PointKind, PointOrigin,
    Position, SegmentId, TimelineId, UnixMillis, VaultId,
};
use leeward_replica::{
    ItemReader, ItemStore, PointReader, PointReceipt, Retention, Store, StoreError, StoreIdentity,
    SystemRandom, Unlock, View, storage::LocalStore,
};
use leeward_wire::{
    hash::extent_hash,
    seal::{Level, Sealer},
    segment::SegmentHeader,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use uuid::Uuid;

const DISK: DiskNumber = DiskNumber(0);
const GIB: u64 = 1 << 30;
/// Extents that the first copy brings: 1 GiB, wherever it lies on the disk.
const FIRST_EXTENTS: u64 = 16_384;
/// Extents that change from point to point.
const CHANGED_EXTENTS: u64 = 4;
const ROUNDS: usize = 31;
const READS: usize = 4000;

/// Numbers that repeat nothing (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A source that writes at scattered places of one disk.
struct Writer {
    item: ItemStore,
    branch: Branch,
    sealer: Option<Sealer>,
    at: Lsn,
    numbers: Numbers,
    disk_bytes: u64,
    extents: Vec<ExtentNumber>,
    now: i64,
}

impl Writer {
    fn branch_off(&mut self) -> Result<(), StoreError> {
        self.item.seal()?;
        self.sealer = None;
        let parent = Position { timeline: self.branch.timeline, lsn: self.at };
        let timeline = TimelineId::from(Uuid::new_v4());
        self.branch = Branch { timeline, parent: Some(parent), epoch: Epoch(0) };
        self.item.open_branch(self.branch, UnixMillis(self.now))
    }

    fn sealer(&mut self) -> Result<&mut Sealer, StoreError> {
        let full = self.sealer.as_ref().is_none_or(|sealer| sealer.next_lsn() > Lsn(u64::MAX / 2));
        if full {
            let reader = self.item.reader();
            let header = SegmentHeader {
                segment: SegmentId::from(Uuid::new_v4()),
                vault: reader.vault(),
                item: reader.item(),
                timeline: self.branch.timeline,
                epoch: Epoch(0),
                key_version: 1,
                first_lsn: self.at.next(),
                created_at: UnixMillis(self.now),
            };
            let data = reader.keys().data.clone();
            self.item.begin_segment(&header)?;
            self.sealer = Some(Sealer::new(&data, header));
        }
        Ok(self.sealer.as_mut().expect("it was just made"))
    }

    fn write(&mut self, extent: ExtentNumber) -> Result<(), StoreError> {
        let fill = (self.numbers.next() % 255) as u8 + 1;
        let data = bytes::Bytes::from(vec![fill; EXTENT_BYTES as usize]);
        let hash = extent_hash(&self.item.reader().keys().hash, &data);
        let lsn = self.at.next();
        let change = Change { disk: DISK, extent, mask: BlockMask::ALL, data, hash };
        let record = self.sealer()?.seal_change(lsn, &change, Level::Zstd(-7));
        self.item.append(&record)?;
        self.at = lsn;
        Ok(())
    }

    /// A point, and a segment's end: as when points are minutes apart.
    fn point(&mut self) -> Result<(), StoreError> {
        self.now += 30_000;
        let lsn = self.at.next();
        let size = self.disk_bytes;
        let (id, serial) = ("sda".to_owned(), "LW0".to_owned());
        let marker = Marker {
            point: PointId::from(Uuid::new_v4()),
            kind: PointKind::CrashConsistent,
            cut_at: UnixMillis(self.now),
            disks: vec![DiskEntry { number: DISK, id, serial, size, block_bytes: 512 }],
            machine: machine(),
        };
        let record = self.sealer()?.seal_marker(lsn, &marker);
        self.item.append(&record)?;
        self.at = lsn;
        self.item.sync()?;
        let receipt = PointReceipt {
            origin: PointOrigin::Replicated,
            name: None,
            cut_server: None,
            received_at: UnixMillis(self.now),
            clock_offset_ms: Some(0),
        };
        let place = Position { timeline: self.branch.timeline, lsn };
        self.item.commit_point(place, &receipt)?;
        self.item.seal()?;
        self.sealer = None;
        Ok(())
    }

    fn upkeep(&mut self) -> Result<(), StoreError> {
        let retention = Retention { keep_ms: u64::MAX, thinning: None, keep_until: None };
        self.item.expire(UnixMillis(self.now), &retention).map(drop)
    }

    fn write_somewhere(&mut self) -> Result<(), StoreError> {
        let extent = (self.numbers.next() % (self.disk_bytes / EXTENT_BYTES)) as u32;
        self.extents.push(ExtentNumber(extent));
        self.write(ExtentNumber(extent))
    }
}

fn machine() -> MachineSpec {
    MachineSpec {
        name: "scale".into(),
        memory_mib: 256,
        cpus: 1,
        firmware: Firmware::Bios,
        disks: Vec::new(),
        nics: Vec::new(),
        display: false,
        probe: Default::default(),
    }
}

const ITEM: ItemId = ItemId::from_u128(1);

fn writer(folder: &Path, disk_bytes: u64) -> Result<Writer, StoreError> {
    let identity = StoreIdentity { store: Uuid::new_v4(), owner: Uuid::new_v4(), generation: 1 };
    let blobs = Arc::new(LocalStore::open(folder)?);
    Store::init(blobs.as_ref(), identity, &SystemRandom)?;
    let random = Arc::new(SystemRandom);
    let store = Store::open_writer(blobs, identity.owner, &Unlock::KeyFile, random)?;
    let mut item = store.item_create(VaultId::from_u128(1), ITEM, None)?;
    let timeline = TimelineId::from(Uuid::new_v4());
    let branch = Branch { timeline, parent: None, epoch: Epoch(0) };
    item.open_branch(branch, UnixMillis(0))?;
    let (at, numbers) = (Lsn(0), Numbers(7));
    let (sealer, extents) = (None, Vec::new());
    Ok(Writer { item, branch, sealer, at, numbers, disk_bytes, extents, now: 1_000_000 })
}

/// A store of one disk with so many points; returns extents that hold data.
fn make(folder: &Path, bytes: u64, points: usize) -> Result<Vec<ExtentNumber>, StoreError> {
    let mut writer = writer(folder, bytes)?;
    for _ in 0..FIRST_EXTENTS {
        writer.write_somewhere()?;
    }
    writer.point()?;
    for number in 1..points {
        for _ in 0..CHANGED_EXTENTS {
            writer.write_somewhere()?;
        }
        writer.point()?;
        if number % 10 == 0 {
            writer.upkeep()?;
        }
    }
    writer.upkeep()?;
    Ok(writer.extents)
}

/// The same data in one layer, or in one layer each of so many timelines.
fn make_layers(folder: &Path, timelines: u64) -> Result<Vec<ExtentNumber>, StoreError> {
    let mut writer = writer(folder, 16 * GIB)?;
    let upkeep = leeward_replica::Upkeep { layer_after: 1, ..leeward_replica::Upkeep::default() };
    writer.item.set_upkeep(upkeep);
    for timeline in 0..timelines {
        if timeline > 0 {
            writer.branch_off()?;
        }
        for _ in 0..FIRST_EXTENTS / timelines {
            writer.write_somewhere()?;
        }
        writer.point()?;
        writer.upkeep()?;
    }
    Ok(writer.extents)
}

fn store(folder: &Path) -> Result<Store, StoreError> {
    let blobs = Arc::new(LocalStore::open_reading(folder));
    Store::open(blobs, None, &Unlock::KeyFile, Arc::new(SystemRandom))
}

/// Opens a point from nothing and reads 4 KiB of it.
fn cold(folder: &Path, at: ExtentNumber) -> Result<PointReader, StoreError> {
    let mut reader = store(folder)?.point_read(ITEM)?;
    let newest = reader.newest_point()?.expect("there are points");
    // As an export does, which is told the point's id.
    let point = reader.point(newest.id)?.expect("it is listed");
    reader.view(&point)?.read(DISK, at.offset(), BLOCK_BYTES as usize)?;
    Ok(reader)
}

/// The same in a process of its own; milliseconds from its start to its end.
fn cold_process(folder: &Path, at: ExtentNumber) -> Result<f64, Box<dyn std::error::Error>> {
    let begun = Instant::now();
    let mut process = std::process::Command::new(std::env::current_exe()?);
    let ended = process.arg("open").arg(folder).arg(at.0.to_string()).status()?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    if ended.success() { Ok(took) } else { Err("a process could not open a point".into()) }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or_default()
}

fn first_read(reader: &ItemReader, at: ExtentNumber) -> Result<View, StoreError> {
    let newest = reader.newest_point().expect("there are points").position;
    let view = View::open(reader, newest)?;
    view.read(DISK, at.offset(), BLOCK_BYTES as usize)?;
    Ok(view)
}

struct Figures {
    lists_ms: f64,
    cold_ms: f64,
    process_ms: f64,
    outlined: bool,
    open_ms: f64,
    read_us: f64,
    layers: usize,
    resident_mib: f64,
}

fn measure(folder: &Path, extents: &[ExtentNumber]) -> Result<Figures, Box<dyn std::error::Error>> {
    let (mut lists, mut opens) = (Vec::new(), Vec::new());
    let (mut colds, mut processes, mut outlined) = (Vec::new(), Vec::new(), true);
    let mut numbers = Numbers(3);
    let mut pick = || extents[numbers.next() as usize % extents.len()];
    let ms = |begun: Instant| begun.elapsed().as_secs_f64() * 1e3;
    for _ in 0..ROUNDS {
        processes.push(cold_process(folder, pick())?);
        let at = pick();
        let begun = Instant::now();
        outlined &= cold(folder, at)?.is_outlined();
        colds.push(ms(begun));
        let begun = Instant::now();
        let reader = store(folder)?.item_read(ITEM)?;
        lists.push(ms(begun));
        let begun = Instant::now();
        first_read(&reader, pick())?;
        opens.push(ms(begun));
    }
    let reader = store(folder)?.item_read(ITEM)?;
    let view = first_read(&reader, pick())?;
    for _ in 0..READS {
        view.read(DISK, pick().offset(), BLOCK_BYTES as usize)?;
    }
    let mut reads = Vec::new();
    for _ in 0..READS {
        let at = pick().offset();
        let begun = Instant::now();
        view.read(DISK, at, BLOCK_BYTES as usize)?;
        reads.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let layers = reader.state().layers.len();
    let resident_mib = resident_mib();
    Ok(Figures {
        lists_ms: median(lists),
        cold_ms: median(colds),
        process_ms: median(processes),
        outlined,
        open_ms: median(opens),
        read_us: median(reads),
        layers,
        resident_mib,
    })
}

/// Memory of this process now, in MiB.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

fn json(figures: &Figures) -> serde_json::Value {
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    serde_json::json!({
        "coldMs": round(figures.cold_ms), "coldProcessMs": round(figures.process_ms),
        "withoutLists": figures.outlined, "loadListsMs": round(figures.lists_ms),
        "openAndFirstReadMs": round(figures.open_ms),
        "random4KiBUs": round(figures.read_us), "layers": figures.layers,
        "residentMiB": round(figures.resident_mib),
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("the folder to work in is missing")?);
    if folder.as_os_str() == "open" {
        let (folder, at) = (std::env::args().nth(2), std::env::args().nth(3));
        let (folder, at) = folder.zip(at).ok_or("folder and extent are missing")?;
        cold(Path::new(&folder), ExtentNumber(at.parse()?))?;
        return Ok(());
    }
    let points: usize = std::env::args().nth(2).map_or(Ok(10_000), |text| text.parse())?;
    let place = |name: &str| folder.join(name);
    let few = make(&place("few"), GIB, 2)?;
    let one = make_layers(&place("one-layer"), 1)?;
    let deep = make_layers(&place("deep"), 32)?;
    let begun = Instant::now();
    let many = make(&place("many"), 1024 * GIB, points)?;
    let made_s = begun.elapsed().as_secs_f64();
    let few = measure(&place("few"), &few)?;
    let one = measure(&place("one-layer"), &one)?;
    let deep = measure(&place("deep"), &deep)?;
    let many = measure(&place("many"), &many)?;
    let figures = serde_json::json!({
        "points": points, "madeSeconds": made_s,
        "few": json(&few), "many": json(&many), "oneLayer": json(&one), "layers32": json(&deep),
        "openRatio": many.open_ms / few.open_ms,
        "coldRatio": many.cold_ms / few.cold_ms,
        "coldProcessRatio": many.process_ms / few.process_ms,
        "layersRatio": deep.read_us / one.read_us,
    });
    println!("{figures}");
    Ok(())
}
