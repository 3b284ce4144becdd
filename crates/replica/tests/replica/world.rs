//! A store on a disk in memory, a source that seals for it, and the model beside them. Every call
//! to the store is done to the model as well once it has returned.

use bytes::Bytes;
use leeward_model::{
    BLOCK_BYTES, BlockMask, Branch, Change, DiskEntry, DiskNumber, Epoch, ExtentNumber, Firmware,
    ItemId, Lsn, MachineSpec, Marker, PointId, PointKind, PointOrigin, Position, SegmentId,
    TimelineId, UnixMillis, VaultId,
};
use leeward_replica::{
    ItemReader, ItemStore, KeptRecord, PointReceipt, Random, RecipientSecret, Retention, Store,
    StoreError, StoreIdentity, Unlock, Upkeep, View,
    model::{ModelItem, ModelRecord},
    storage::{BlobStore, CrashDisk, Seeded},
};
use leeward_wire::{
    hash::{extent_and_block_hashes, extent_hash},
    seal::{Level, Sealer},
    segment::SegmentHeader,
};
use std::sync::{Arc, Mutex};
use uuid::Uuid;

pub const VAULT: VaultId = VaultId::from_u128(0x7a);
pub const ITEM: ItemId = ItemId::from_u128(0x17);
pub const OWNER: Uuid = Uuid::from_u128(0x0b);
/// Two disks of two extents each are all there is.
pub const DISKS: u16 = 2;
pub const EXTENTS: u32 = 2;
pub const DISK_BYTES: u64 = EXTENTS as u64 * 65_536;

/// Deletes without waiting; else as by default.
pub const AT_ONCE: Upkeep = Upkeep {
    layer_after: 8,
    layers_max: 8,
    rebuild_records_min: 4096,
    rewrite_below_percent: 50,
    rewrite_gain_min: 1 << 20,
    grace_ms: 0,
};

/// Makes layers of everything, and anew whenever one record of them is needed no more.
pub const EAGER: Upkeep = Upkeep {
    layer_after: 1,
    layers_max: 2,
    rebuild_records_min: 1,
    rewrite_gain_min: 1,
    ..AT_ONCE
};

/// Keys from a seed, so that a run can be repeated byte by byte.
pub struct SeededRandom(Mutex<Seeded>);

impl SeededRandom {
    pub fn new(seed: u64) -> Arc<SeededRandom> {
        Arc::new(SeededRandom(Mutex::new(Seeded::new(seed))))
    }
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        let mut seeded = self.0.lock().unwrap();
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&seeded.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The seed of this run, printed with its name.
pub fn seed(test: &str) -> u64 {
    let seed = std::env::var("LEEWARD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("{test}: seed {seed}; replay with LEEWARD_SEED={seed}");
    seed
}

pub fn identity() -> StoreIdentity {
    StoreIdentity { store: Uuid::from_u128(0x57), owner: OWNER, generation: 1 }
}

pub fn init(blobs: &dyn BlobStore) -> RecipientSecret {
    Store::init(blobs, identity(), SeededRandom::new(11).as_ref()).unwrap()
}

pub fn open_writer(blobs: Arc<dyn BlobStore>, seed: u64) -> Result<Store, StoreError> {
    Store::open_writer(blobs, OWNER, &Unlock::KeyFile, SeededRandom::new(seed))
}

pub fn machine() -> MachineSpec {
    MachineSpec {
        name: "web01".into(),
        memory_mib: 256,
        cpus: 1,
        firmware: Firmware::Bios,
        disks: Vec::new(),
        nics: Vec::new(),
        display: false,
        probe: Default::default(),
    }
}

pub fn disk_table() -> Vec<DiskEntry> {
    let entry = |number| DiskEntry {
        number: DiskNumber(number),
        id: format!("disk{number}"),
        serial: format!("LW{number}"),
        size: DISK_BYTES,
        block_bytes: 512,
    };
    (0..DISKS).map(entry).collect()
}

pub fn retention() -> Retention {
    Retention { keep_ms: 1_000, thinning: None, keep_until: None }
}

/// Keeps points so long and thins nothing out.
pub fn retention_of(keep_ms: u64) -> Retention {
    Retention { keep_ms, thinning: None, keep_until: None }
}

/// See the module.
pub struct World {
    pub blobs: Arc<dyn BlobStore>,
    pub store: Option<Store>,
    pub item: Option<ItemStore>,
    pub model: ModelItem,
    pub sealer: Option<Sealer>,
    pub branch: Branch,
    pub epoch: Epoch,
    pub received: Lsn,
    pub durable: Lsn,
    pub now: i64,
    pub drawn: u128,
    pub pins: Vec<(Uuid, PointId)>,
    pub upkeep: Upkeep,
    random: Seeded,
}

impl World {
    /// A store with one item, one open timeline and one point after three records.
    pub fn new(blobs: Arc<dyn BlobStore>, seed: u64) -> World {
        init(blobs.as_ref());
        let mut world = World::bare(blobs, seed).unwrap();
        world.open_branch(None).unwrap();
        for _ in 0..3 {
            world.append().unwrap();
        }
        world.commit_point().unwrap();
        world
    }

    /// Opens the store of `blobs`; its item exists afterwards, without a timeline.
    pub fn bare(blobs: Arc<dyn BlobStore>, seed: u64) -> Result<World, StoreError> {
        let store = open_writer(blobs.clone(), seed)?;
        let mut item = store.item_create(VAULT, ITEM, None)?;
        item.set_upkeep(AT_ONCE);
        let timeline = TimelineId::from_u128(0);
        Ok(World {
            blobs,
            store: Some(store),
            item: Some(item),
            model: ModelItem::default(),
            sealer: None,
            branch: Branch { timeline, parent: None, epoch: Epoch(0) },
            epoch: Epoch(0),
            received: Lsn(0),
            durable: Lsn(0),
            now: 1_000_000,
            drawn: u128::from(seed) << 64,
            pins: Vec::new(),
            upkeep: AT_ONCE,
            random: Seeded::new(seed),
        })
    }

    pub fn on_crash_disk(seed: u64) -> (CrashDisk, World) {
        let disk = CrashDisk::new();
        let world = World::new(Arc::new(disk.clone()), seed);
        (disk, world)
    }

    pub fn item(&mut self) -> &mut ItemStore {
        self.item.as_mut().unwrap()
    }

    pub fn reader(&self) -> &ItemReader {
        self.item.as_ref().unwrap().reader()
    }

    pub fn draw(&mut self) -> u128 {
        self.drawn += 1;
        self.drawn
    }

    pub fn tick(&mut self) -> UnixMillis {
        self.now += 400;
        UnixMillis(self.now)
    }

    pub fn place(&self, lsn: Lsn) -> Position {
        Position { timeline: self.branch.timeline, lsn }
    }

    /// Opens a timeline, from the newest committed place of the present one by default.
    pub fn open_branch(&mut self, parent: Option<Position>) -> Result<(), StoreError> {
        let timeline = TimelineId::from_u128(self.draw());
        let branch = Branch { timeline, parent, epoch: self.epoch };
        let now = self.tick();
        self.item().open_branch(branch, now)?;
        self.model.branches.push(branch);
        self.branch = branch;
        self.sealer = None;
        self.received = self.model.head(timeline);
        self.durable = self.received;
        Ok(())
    }

    pub fn branch_off(&mut self) -> Result<(), StoreError> {
        let parent = self.place(self.model.head(self.branch.timeline));
        self.open_branch(Some(parent))
    }

    /// Ends the present timeline; its source goes on from the newest point on another one.
    pub fn retire(&mut self) -> Result<(), StoreError> {
        let (timeline, now) = (self.branch.timeline, self.tick());
        self.item().retire_branch(timeline, now)?;
        self.lose_session();
        let parent = self.reader().newest_point().map(|point| point.position);
        self.open_branch(parent)
    }

    pub fn begin(&mut self) -> Result<(), StoreError> {
        let next = self.received.next();
        self.begin_at(next)
    }

    pub fn begin_at(&mut self, first_lsn: Lsn) -> Result<(), StoreError> {
        let header = SegmentHeader {
            segment: SegmentId::from_u128(self.draw()),
            vault: VAULT,
            item: ITEM,
            timeline: self.branch.timeline,
            epoch: self.epoch,
            key_version: self.reader().keys().version,
            first_lsn,
            created_at: UnixMillis(self.now),
        };
        self.item().begin_segment(&header)?;
        self.model.forget_from(self.branch.timeline, first_lsn);
        self.received = Lsn(first_lsn.0 - 1);
        self.durable = self.durable.min(self.received);
        self.sealer = Some(Sealer::new(&self.reader().keys().data.clone(), header));
        Ok(())
    }

    /// The next change of the source, and the model with it.
    pub fn next_change(&mut self) -> (Lsn, Change) {
        let lsn = self.received.next();
        let disk = DiskNumber(self.random.below(u64::from(DISKS)) as u16);
        let extent = ExtentNumber(self.random.below(u64::from(EXTENTS)) as u32);
        let mask = match self.random.below(4) {
            0 => BlockMask::ALL,
            _ => BlockMask((self.random.next_u64() as u16).max(1)),
        };
        let fill = self.random.below(6) as u8;
        let record = ModelRecord::Change { disk, extent, mask, fill };
        let mut model = self.model.clone();
        model.records.insert((self.branch.timeline, lsn), record);
        let whole = model.extent(self.place(lsn), disk, extent);
        let hash = extent_hash(&self.reader().keys().hash, &whole);
        let mut data = vec![fill; mask.blocks() as usize * BLOCK_BYTES as usize];
        if fill == 0 {
            data.clear();
        }
        self.model = model;
        (lsn, Change { disk, extent, mask, data: Bytes::from(data), hash })
    }

    pub fn append(&mut self) -> Result<Lsn, StoreError> {
        if self.sealer.is_none() {
            self.begin()?;
        }
        let before = self.model.clone();
        let (lsn, change) = self.next_change();
        let sealer = self.sealer.as_mut().unwrap();
        let record = sealer.seal_change(lsn, &change, Level::Zstd(1));
        let appended = self.item().append(&record);
        self.after_append(before, appended)
    }

    pub fn append_marker(&mut self) -> Result<PointId, StoreError> {
        if self.sealer.is_none() {
            self.begin()?;
        }
        let point = PointId::from_u128(self.draw());
        let before = self.model.clone();
        let lsn = self.received.next();
        let marker = Marker {
            point,
            kind: PointKind::CrashConsistent,
            cut_at: UnixMillis(self.now),
            disks: disk_table(),
            machine: machine(),
        };
        let record = self.sealer.as_mut().unwrap().seal_marker(lsn, &marker);
        let timeline = self.branch.timeline;
        self.model.records.insert((timeline, lsn), ModelRecord::Marker { point });
        let appended = self.item().append(&record);
        self.after_append(before, appended)?;
        Ok(point)
    }

    fn after_append(
        &mut self,
        before: ModelItem,
        appended: Result<Lsn, StoreError>,
    ) -> Result<Lsn, StoreError> {
        match appended {
            Ok(lsn) => {
                self.received = lsn;
                Ok(lsn)
            }
            Err(error) => {
                self.model = before;
                self.sealer = None;
                Err(error)
            }
        }
    }

    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.item().sync()?;
        self.durable = self.received;
        Ok(())
    }

    pub fn receipt(&mut self) -> PointReceipt {
        self.receipt_of(PointOrigin::Replicated, None)
    }

    pub fn receipt_of(&mut self, origin: PointOrigin, name: Option<&str>) -> PointReceipt {
        let (name, received_at) = (name.map(String::from), self.tick());
        PointReceipt { origin, name, cut_server: None, received_at, clock_offset_ms: Some(3) }
    }

    /// Marker, flush, commit.
    pub fn commit_point(&mut self) -> Result<PointId, StoreError> {
        let point = self.append_marker()?;
        let receipt = self.receipt();
        self.commit_marker(point, &receipt)
    }

    /// A point of what a left machine wrote.
    pub fn commit_divergent(&mut self, name: &str) -> Result<PointId, StoreError> {
        let point = self.append_marker()?;
        let receipt = self.receipt_of(PointOrigin::Divergent, Some(name));
        self.commit_marker(point, &receipt)
    }

    /// Flush and commit, of a marker that was appended.
    pub fn commit_marker(
        &mut self,
        point: PointId,
        receipt: &PointReceipt,
    ) -> Result<PointId, StoreError> {
        self.sync()?;
        let place = self.place(self.received);
        self.item().commit_point(place, receipt)?;
        self.model.commit(place);
        self.model.points.insert(point, place);
        Ok(point)
    }

    pub fn commit_progress(&mut self) -> Result<(), StoreError> {
        let (place, now) = (self.place(self.durable), self.tick());
        self.item().commit_progress(place.timeline, place.lsn, now)?;
        if place.lsn > self.model.head(place.timeline) {
            self.model.commit(place);
        }
        Ok(())
    }

    /// Raises the fence above the present writer, who goes on under the new epoch.
    pub fn raise_fence(&mut self) -> Result<(), StoreError> {
        let (epoch, now) = (self.epoch.next(), self.tick());
        self.item().raise_fence(epoch, now)?;
        self.epoch = epoch;
        self.model.fence = epoch;
        self.lose_session();
        Ok(())
    }

    /// What was not committed has to be sent again.
    pub fn lose_session(&mut self) {
        self.sealer = None;
        let head = self.model.head(self.branch.timeline);
        self.model.forget_from(self.branch.timeline, head.next());
        self.received = head;
        self.durable = head;
    }

    pub fn pin_newest(&mut self) -> Result<(), StoreError> {
        let Some(point) = self.reader().newest_point().map(|point| point.id) else {
            return Ok(());
        };
        let now = self.tick();
        let pin = self.item().reader_mut().pin(point, "test", "because", now)?;
        self.pins.push((pin.id, point));
        *self.model.pins.entry(point).or_default() += 1;
        Ok(())
    }

    pub fn add_kept(&mut self) -> Result<(), StoreError> {
        let Some(position) = self.reader().newest_point().map(|point| point.position) else {
            return Ok(());
        };
        let id = PointId::from_u128(self.draw());
        let record = kept(id, position, self.tick());
        self.item().add_kept(&record)?;
        self.model.kept.insert(id, position);
        Ok(())
    }

    pub fn expire(&mut self) -> Result<(), StoreError> {
        let now = self.tick();
        let expired = self.item().expire(now, &retention())?;
        for point in &expired.points {
            self.model.points.remove(point);
        }
        for record in &expired.kept {
            self.model.kept.remove(&record.id);
        }
        Ok(())
    }

    pub fn seal(&mut self) -> Result<(), StoreError> {
        self.item().seal()?;
        self.sealer = None;
        self.durable = self.received;
        Ok(())
    }

    /// Ends the process and starts it again, on the same disk and without a power cut.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        (self.item, self.store) = (None, None);
        let seed = self.draw() as u64;
        let store = open_writer(self.blobs.clone(), seed)?;
        let mut item = store.item_open(ITEM)?;
        item.set_upkeep(self.upkeep);
        self.item = Some(item);
        self.store = Some(store);
        self.lose_session();
        Ok(())
    }

    /// Works on the index as `upkeep` says, from now on.
    pub fn set_upkeep(&mut self, upkeep: Upkeep) {
        self.upkeep = upkeep;
        self.item().set_upkeep(upkeep);
    }

    /// Seals what is open, and makes and merges layers.
    pub fn index(&mut self) -> Result<usize, StoreError> {
        self.seal()?;
        let now = self.tick();
        self.item().merge_layers(now)
    }

    /// Checks every listed point and every head against the model.
    pub fn check_contents(&self) -> Result<(), String> {
        check_contents(self.reader(), &self.model)
    }
}

pub fn kept(id: PointId, position: Position, now: UnixMillis) -> KeptRecord {
    KeptRecord {
        id,
        name: format!("before-change-{id}"),
        origin: PointOrigin::BeforeChange,
        position,
        kind: PointKind::CrashConsistent,
        cut_at: now,
        received_at: now,
        disks: disk_table(),
        files: Vec::new(),
        machine: None,
    }
}

/// Whether every listed point, pin and kept work reads as the model says.
pub fn check_contents(reader: &ItemReader, model: &ModelItem) -> Result<(), String> {
    let mut places: Vec<Position> = reader.state().points.iter().map(|p| p.position).collect();
    places.extend(reader.pins().map_err(|error| error.to_string())?.iter().map(|p| p.position));
    places.extend(reader.kept().map_err(|error| error.to_string())?.iter().map(|k| k.position));
    places.sort_by_key(|place| (place.timeline, place.lsn));
    places.dedup();
    for place in places {
        check_place(reader, model, place)?;
    }
    Ok(())
}

/// Whether the block hashes of one place are those of what the model says.
pub fn check_block_hashes(
    reader: &ItemReader,
    model: &ModelItem,
    at: Position,
) -> Result<(), String> {
    let view = View::open(reader, at).map_err(|error| format!("{at:?}: {error}"))?;
    let key = &reader.keys().hash;
    // One disk and one extent more than there are: they read as zero.
    for disk in (0..=DISKS).map(DiskNumber) {
        for extent in (0..=EXTENTS).map(ExtentNumber) {
            let found = view.block_hashes(disk, extent);
            let found = found.map_err(|error| format!("{at:?}: {error}"))?;
            let expected = model.extent(at, disk, extent);
            let (_, expected) = extent_and_block_hashes(key, &expected);
            if found != expected {
                return Err(format!("{at:?}: wrong block hashes in {extent} of disk {disk}"));
            }
        }
    }
    Ok(())
}

/// Whether one place reads as the model says.
pub fn check_place(reader: &ItemReader, model: &ModelItem, at: Position) -> Result<(), String> {
    let view = View::open(reader, at).map_err(|error| format!("{at:?}: {error}"))?;
    for disk in (0..DISKS).map(DiskNumber) {
        for extent in (0..EXTENTS).map(ExtentNumber) {
            let read = view.read(disk, extent.offset(), 65_536);
            let read = read.map_err(|error| format!("{at:?}: {error}"))?;
            if read != model.extent(at, disk, extent) {
                return Err(format!("{at:?}: wrong bytes in extent {extent} of disk {disk}"));
            }
        }
    }
    Ok(())
}
