//! `leeward store capture`: a recovery point of disks, made without any server.
//!
//! What is here is the order of things; reading and comparing are `leeward-capture`'s, sealing is
//! `leeward-wire`'s, keeping is `leeward-replica`'s. Whether the disks are consistent is up to
//! whoever stopped or froze their user.

mod writer;

use super::{
    Failure, file_problem, find,
    place::PlaceOptions,
    print_json, problem,
    source::{self, SourceDisk, SourceReader},
};
use crate::{
    roles::host::clock::wall_now,
    sealing::{KeyedHasher, Ready, Sealing, SealingOptions, queue_depth},
};
use leeward_capture::{DiskFolder, HashFiles, Pass, PassFinish, PassInput, PassKind, Trust};
use leeward_model::{
    Branch, Code, DiskEntry, DiskFormat, DiskNumber, DiskSpec, Epoch, Firmware, MachineSpec,
    Marker, PointId, PointKind, Position, VaultId,
};
use leeward_replica::{ItemStore, Store, StoreError, View};
use leeward_wire::seal::Compression;
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use writer::{WriteError, Writer};

/// What to capture.
#[derive(Clone, Debug, clap::Args)]
pub struct CaptureOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// Name of the item; made at its first capture.
    #[arg(long, value_name = "NAME")]
    item: String,
    /// A disk: its name in the item, and a file, a block device or nbd+unix:///EXPORT?socket=PATH.
    #[arg(long = "disk", value_name = "ID=PATH", required = true, value_parser = pair)]
    disks: Vec<(String, String)>,
    /// The parts of a disk that changed since the newest point: a file with a JSON array of
    /// [offset, length] in bytes. Without it the disk is read and compared in full.
    #[arg(long = "changes", value_name = "ID=LIST.json", value_parser = pair)]
    changes: Vec<(String, String)>,
    #[command(flatten)]
    sealing: SealingOptions,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((id, path)) if !id.is_empty() && id.len() <= 64 && !path.is_empty() => {
            Ok((id.to_owned(), path.to_owned()))
        }
        _ => Err("it is written ID=PATH, with an ID of at most 64 bytes".to_owned()),
    }
}

pub(super) async fn run(options: CaptureOptions) -> Result<(), Failure> {
    let begun = Instant::now();
    let disks = sources(&options).await?;
    let store = options.place.open_writer()?;
    let item = open_item(&options, &store)?;
    let mut capture = Capture::begin(&options, &store, item, disks)?;
    let done = capture.all().await?;
    print_json(&json!({
        "point": done.point, "item": done.item,
        "bytes_read": capture.read.load(Ordering::Relaxed),
        "bytes_changed": done.bytes_changed, "bytes_sent": done.bytes_sent,
        "seconds": (begun.elapsed().as_secs_f64() * 1e3).round() / 1e3,
    }));
    Ok(())
}

/// Opens the disks, in the order in which they were named.
async fn sources(options: &CaptureOptions) -> Result<Vec<SourceDisk>, Failure> {
    let mut disks: Vec<SourceDisk> = Vec::new();
    for (id, path) in &options.disks {
        if disks.iter().any(|disk| disk.id == *id) {
            let cause = "every disk has an id of its own";
            return Err(problem(Code::BAD_REQUEST, format!("disk {id} is named twice"), cause));
        }
        disks.push(SourceDisk::open(id, path).await?);
    }
    for (id, list) in &options.changes {
        let Some(disk) = disks.iter_mut().find(|disk| disk.id == *id) else {
            let cause = "--changes names a disk that no --disk names";
            return Err(problem(Code::BAD_REQUEST, format!("disk {id}"), cause));
        };
        disk.changes = Some(source::changes(&PathBuf::from(list))?);
    }
    Ok(disks)
}

/// The item of that name that earlier captures made, or a new one.
fn open_item(options: &CaptureOptions, store: &Store) -> Result<ItemStore, Failure> {
    let place = &options.place;
    let fail = |error: StoreError| place.failed("cannot take a capture", &error);
    let name = &options.item;
    for known in find::items(place, store)? {
        if known.name != *name && known.reader.item().to_string() != *name {
            continue;
        }
        if known.reader.label().map_err(fail)?.is_none() {
            let cause = "a config server's host replicates it into this store";
            let what = format!("item {name} is not captured");
            return Err(problem(Code::NOT_POSSIBLE_NOW, what, cause));
        }
        return store.item_open(known.reader.item()).map_err(fail);
    }
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        let cause = "a name has 1 to 64 bytes and no control characters";
        return Err(problem(Code::BAD_REQUEST, "the item's name cannot be used", cause));
    }
    let vault = VaultId::from(store.identity().owner);
    let item = store.item_create(vault, Uuid::new_v4().into(), None).map_err(fail)?;
    item.reader().set_label(name).map_err(fail)?;
    Ok(item)
}

/// What came of it.
struct Done {
    point: PointId,
    item: leeward_model::ItemId,
    bytes_changed: u64,
    bytes_sent: u64,
}

struct Capture {
    name: String,
    store: String,
    writer: Writer,
    /// The item at its newest committed place before this capture.
    before: Arc<View>,
    sealing: Sealing,
    hashes: Arc<HashFiles>,
    hasher: Arc<KeyedHasher>,
    reader: Arc<SourceReader>,
    disks: Vec<DiskEntry>,
    /// Disks whose changes are known and whose earlier content the store has.
    delta: Vec<DiskNumber>,
    read: Arc<AtomicU64>,
}

impl Capture {
    fn begin(
        options: &CaptureOptions,
        store: &Store,
        mut item: ItemStore,
        sources: Vec<SourceDisk>,
    ) -> Result<Capture, Failure> {
        let fail = |error: StoreError| options.place.failed("cannot take a capture", &error);
        let (now, id) = (wall_now(), item.reader().item());
        let base = base(&mut item).map_err(fail)?;
        let before = View::open(item.reader(), base).map_err(fail)?;
        let numbered = number(before.disks(), &sources);
        let known = |disk: &DiskEntry| before.disks().iter().any(|old| old.number == disk.number);
        let delta = numbered.iter().zip(&sources);
        let delta = delta.filter(|(disk, source)| source.changes.is_some() && known(disk));
        let delta: Vec<_> = delta.map(|(disk, _)| disk.number).collect();
        let folder = cache_folder(store, id)?;
        let hashes = Arc::new(HashFiles::new(Arc::new(DiskFolder::new(folder)), id));
        let hasher = Arc::new(KeyedHasher::new(item.reader().keys().hash.clone()));
        let failed = |error: leeward_capture::HashError| {
            problem(Code::STORE_IO, "the hash files of the capture cannot be used", error)
        };
        if let Trust::Untrusted(reason) = hashes.reconcile(base).map_err(failed)? {
            tracing::info!(item = %id, %reason, "rebuilding the hash files from the store");
            rebuild(&hashes, base, &before).map_err(|error| match error {
                Rebuilding::Store(error) => fail(error),
                Rebuilding::Hashes(error) => failed(error),
            })?;
        }
        let mut by_number: BTreeMap<_, _> =
            numbered.iter().map(|disk| disk.number).zip(sources).collect();
        for (number, disk) in &mut by_number {
            if !delta.contains(number) {
                disk.changes = None;
            }
        }
        let read = Arc::new(AtomicU64::new(0));
        let reader = Arc::new(SourceReader::new(by_number, Arc::clone(&read)));
        let (writer, before) = (Writer::new(item, base, now), Arc::new(before));
        let (name, store) = (options.item.clone(), options.place.store.clone());
        let (disks, sealing) = (numbered, options.sealing.or(Compression::default()));
        #[rustfmt::skip]
        let capture = Capture {
            name, store, writer, before, sealing, hashes, hasher, reader, disks, delta, read,
        };
        Ok(capture)
    }

    async fn all(&mut self) -> Result<Done, Failure> {
        let cut_at = wall_now();
        let (delta, full): (Vec<_>, Vec<_>) =
            self.disks.clone().into_iter().partition(|disk| self.delta.contains(&disk.number));
        for (disks, kind) in [(full, PassKind::Full), (delta, PassKind::Delta)] {
            if !disks.is_empty() {
                self.pass(disks, kind).await?;
            }
        }
        self.reader.check_sizes()?;
        let point = PointId::from(Uuid::new_v4());
        let machine = machine(&self.name, &self.disks);
        let disks = self.disks.clone();
        let marker = Marker { point, kind: PointKind::CrashConsistent, cut_at, disks, machine };
        let writer = &mut self.writer;
        let what = format!("no point could be made in the store in {}", self.store);
        writer.finish(&self.hashes, &marker).map_err(|error| written(what, error))?;
        let item = writer.item();
        let (bytes_changed, bytes_sent) = writer.bytes();
        Ok(Done { point, item, bytes_changed, bytes_sent })
    }

    async fn pass(&mut self, disks: Vec<DiskEntry>, kind: PassKind) -> Result<(), Failure> {
        let input = PassInput {
            reader: self.reader.clone(),
            disks,
            hashes: self.hashes.clone(),
            hasher: self.hasher.clone(),
            kind,
            workers: self.sealing.workers.clone(),
            cancel: CancellationToken::new(),
        };
        let mut pass = Pass::start_with(input, Arc::new(|_| {}), self.finish());
        let what = || format!("the disks of {} could not be captured", self.name);
        loop {
            let next = pass.next().await;
            let next = next.map_err(|error| source::disk_problem(what(), chain(&error)))?;
            let Some(batch) = next else { break };
            let ready = batch.found.map_err(|error| written(what(), error.into()))?;
            let (writer, hashes) = (&mut self.writer, &self.hashes);
            let taken = tokio::task::block_in_place(|| writer.take(ready, hashes));
            taken.map_err(|error| written(what(), error))?;
        }
        tokio::task::block_in_place(|| self.writer.settle(&self.hashes))
            .map_err(|error| written(what(), error))
    }
    /// What the workers do with what the pass found: they ask the store about blocks that are not
    /// known, and pack.
    fn finish(&self) -> PassFinish<Result<Vec<Ready>, StoreError>> {
        let (before, sealing) = (Arc::clone(&self.before), self.sealing.clone());
        let hasher = Arc::clone(&self.hasher);
        Arc::new(move |found, depth| {
            let ready = |found: leeward_capture::Found| {
                let known = match found.blocks_known {
                    true => None,
                    false => Some(before.block_hashes(found.change.disk, found.change.extent)?),
                };
                Ok(sealing.ready(found, known.as_ref(), &*hasher, queue_depth(depth)))
            };
            found.into_iter().map(ready).collect()
        })
    }
}

/// The problem of what could not be written.
fn written(what: String, error: WriteError) -> Failure {
    match error {
        WriteError::Store(error) => Box::new(error.problem(what)),
        WriteError::Hashes(error) => problem(Code::STORE_IO, what, error),
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// Where the item's log goes on: its newest committed place. A new item gets its timeline here.
fn base(item: &mut ItemStore) -> Result<Position, StoreError> {
    let newest = item.reader().branches().last().map(|branch| branch.timeline);
    let timeline = match newest {
        Some(timeline) => timeline,
        None => {
            let timeline = Uuid::new_v4().into();
            let branch = Branch { timeline, parent: None, epoch: Epoch(1) };
            item.open_branch(branch, wall_now())?;
            timeline
        }
    };
    let lsn = item.reader().committed(timeline).unwrap_or_default();
    Ok(Position { timeline, lsn })
}

/// Gives the disks their numbers: a known id keeps its own, a new one gets one that none had.
fn number(before: &[DiskEntry], sources: &[SourceDisk]) -> Vec<DiskEntry> {
    let mut next = before.iter().map(|disk| disk.number.0 + 1).max().unwrap_or(0);
    let mut entry = |source: &SourceDisk| {
        let known = before.iter().find(|disk| disk.id == source.id);
        let number = known.map(|disk| disk.number).unwrap_or_else(|| {
            next += 1;
            DiskNumber(next - 1)
        });
        let (id, size) = (source.id.clone(), source.size);
        DiskEntry { number, id, serial: String::new(), size, block_bytes: 512 }
    };
    sources.iter().map(&mut entry).collect()
}

/// The machine as far as a capture of disks knows it: nobody can start it by this.
fn machine(name: &str, disks: &[DiskEntry]) -> MachineSpec {
    let disk = |entry: &DiskEntry| DiskSpec {
        number: entry.number,
        id: entry.id.clone(),
        serial: entry.serial.clone(),
        size: entry.size,
        block_bytes: entry.block_bytes,
        format: DiskFormat::Raw,
        path: String::new(),
    };
    MachineSpec {
        name: name.to_owned(),
        memory_mib: 0,
        cpus: 0,
        firmware: Firmware::Bios,
        disks: disks.iter().map(disk).collect(),
        nics: Vec::new(),
        display: false,
        probe: Default::default(),
    }
}

/// Where the hash files of an item's captures are kept between them: lost, they are rebuilt.
fn cache_folder(store: &Store, item: leeward_model::ItemId) -> Result<PathBuf, Failure> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(home).unwrap_or_else(std::env::temp_dir);
    let folder =
        cache.join("leeward").join(store.identity().store.to_string()).join(item.to_string());
    let made = std::fs::create_dir_all(&folder);
    made.map_err(|error| file_problem(format!("could not make {}", folder.display()), &error))?;
    Ok(folder)
}

enum Rebuilding {
    Store(StoreError),
    Hashes(leeward_capture::HashError),
}

/// Makes the hash files say what the store holds at `base`.
fn rebuild(hashes: &HashFiles, base: Position, view: &View) -> Result<(), Rebuilding> {
    let sizes: Vec<_> = view.disks().iter().map(|disk| (disk.number, disk.size)).collect();
    let mut rebuild = hashes.rebuild(base, &sizes).map_err(Rebuilding::Hashes)?;
    for leaf in view.leaves() {
        let (disk, extent, hash) = leaf.map_err(Rebuilding::Store)?;
        rebuild.leaf(disk, extent, hash).map_err(Rebuilding::Hashes)?;
    }
    rebuild.finish().map_err(Rebuilding::Hashes)
}
