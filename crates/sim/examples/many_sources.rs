//! Measures one process server: many sources whose churn is compared, packed, sealed, made durable
//! and committed as points, all at once. Prints one line of JSON; see `benches/many_sources.sh`.
//!
//! The sources' disks are patterns that cost a copy to read, as a page cache does; store and hash
//! files lie in the folder that is the argument. What is sealed is held and made durable as by the
//! sessions of a master target. There is no network and no TLS in it.

use async_trait::async_trait;
use bytes::Bytes;
use leeward::{
    intake::{Held, Intake, Seat},
    sealing::{Differing, KeyedHasher, Sealing},
};
use leeward_capture::{
    ByteRange, CaptureError, DiskFolder, DiskReader, HashFiles, PassInput, PassKind, Workers,
};
use leeward_model::{
    Branch, DiskEntry, DiskNumber, Epoch, Firmware, ItemId, Lsn, MachineSpec, Marker, PointId,
    PointKind, PointOrigin, Position, SegmentId, TimelineId, UnixMillis, VaultId,
};
use leeward_replica::{
    ItemStore, PointReceipt, Store, StoreIdentity, SystemRandom, Unlock, storage::LocalStore,
};
use leeward_wire::{
    seal::{Compression, Sealer},
    segment::SegmentHeader,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const DISK: DiskNumber = DiskNumber(0);
const MIB: u64 = 1 << 20;

/// A disk of which everything changes from point to point: half of it words, half repeated.
struct Pattern {
    bytes: Arc<Vec<u8>>,
    size: u64,
    salt: u64,
}

#[async_trait]
impl DiskReader for Pattern {
    async fn ranges(&self, _: DiskNumber) -> Result<Vec<ByteRange>, CaptureError> {
        Ok(vec![ByteRange { offset: 0, len: self.size }])
    }
    async fn read(&self, _: DiskNumber, offset: u64, len: u64) -> Result<Bytes, CaptureError> {
        let from = ((offset + self.salt * 4099) % (self.bytes.len() as u64 - len)) as usize;
        let mut bytes = self.bytes[from..from + len as usize].to_vec();
        // No block is like another one.
        for (number, block) in bytes.chunks_mut(4096).enumerate() {
            let mark = (self.salt << 40) ^ offset ^ (number as u64) << 12;
            block[..8].copy_from_slice(&mark.to_le_bytes());
        }
        Ok(bytes.into())
    }
}

/// Text-like bytes that zstd halves or better.
fn pattern() -> Arc<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(16 << 20);
    while bytes.len() < 16 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = state % 4096;
        bytes.extend_from_slice(
            format!("entry {word:04} of {:03x}; ", state >> 20 & 0xfff).as_bytes(),
        );
    }
    Arc::new(bytes)
}

/// One source: its part of the store, and where its log is.
struct Source {
    number: u64,
    item: ItemStore,
    hashes: Arc<HashFiles>,
    at: Lsn,
    timeline: TimelineId,
}

fn source(store: &Store, folder: &Path, number: u64, size: u64) -> anyhow::Result<Source> {
    let id = ItemId::from_u128(u128::from(number) + 1);
    let mut item = store.item_create(VaultId::from_u128(1), id, None)?;
    let timeline = TimelineId::from(Uuid::new_v4());
    item.open_branch(Branch { timeline, parent: None, epoch: Epoch(0) }, UnixMillis(0))?;
    let folder = folder.join("hashes").join(number.to_string());
    std::fs::create_dir_all(&folder)?;
    let hashes = Arc::new(HashFiles::new(Arc::new(DiskFolder::new(folder)), id));
    hashes.rebuild(Position { timeline, lsn: Lsn(0) }, &[(DISK, size)])?.finish()?;
    Ok(Source { number, item, hashes, at: Lsn(0), timeline })
}

fn disk(size: u64) -> DiskEntry {
    let (id, serial) = ("sda".to_owned(), "LW0".to_owned());
    DiskEntry { number: DISK, id, serial, size, block_bytes: 512 }
}

fn marker(size: u64) -> Marker {
    let machine = MachineSpec {
        name: "source".into(),
        memory_mib: 256,
        cpus: 1,
        firmware: Firmware::Bios,
        disks: Vec::new(),
        nics: Vec::new(),
        display: false,
        probe: Default::default(),
    };
    Marker {
        point: PointId::from(Uuid::new_v4()),
        kind: PointKind::CrashConsistent,
        cut_at: UnixMillis(0),
        disks: vec![disk(size)],
        machine,
    }
}

impl Source {
    /// Makes one point of a disk that changed altogether; returns the bytes that were sealed.
    async fn point(
        mut self,
        (bytes, sealing, size, round): (Arc<Vec<u8>>, Sealing, u64, u64),
        mut seat: Seat,
    ) -> anyhow::Result<(Source, u64)> {
        let keys = self.item.reader().keys();
        let (data, hash_key) = (keys.data.clone(), keys.hash.clone());
        let hasher = Arc::new(KeyedHasher::new(hash_key));
        let reader = Pattern { bytes, size, salt: round * 1000 + self.number };
        let input = PassInput {
            reader: Arc::new(reader),
            disks: vec![disk(size)],
            hashes: self.hashes.clone(),
            hasher,
            kind: PassKind::Delta,
            workers: sealing.workers.clone(),
            cancel: CancellationToken::new(),
        };
        let header = SegmentHeader {
            segment: SegmentId::from(Uuid::new_v4()),
            vault: self.item.reader().vault(),
            item: self.item.reader().item(),
            timeline: self.timeline,
            epoch: Epoch(0),
            key_version: 1,
            first_lsn: self.at.next(),
            created_at: UnixMillis(0),
        };
        let mut sealer = Sealer::new(&data, header.clone());
        self = blocking(self, move |source| Ok(source.item.begin_segment(&header)?)).await?;
        let mut pass = sealing.start(input, Arc::new(|_| {}));
        let mut sealed = 0;
        while let Some(batch) = pass.next().await? {
            for found in batch.found {
                let Differing::Ready(ready) = found else { continue };
                self.hashes.push(ready.disk, ready.extent, &ready.record)?;
                let Some(packed) = ready.packed else { continue };
                let record = sealer.seal_packed(sealer.next_lsn(), packed);
                sealed += record.len() as u64;
                self = self.keep(&mut seat, record).await?;
            }
        }
        let lsn = sealer.next_lsn();
        self = self.keep(&mut seat, sealer.seal_marker(lsn, &marker(size))).await?;
        let held = seat.take();
        self = blocking(self, move |source| source.commit(&held, lsn, size)).await?;
        Ok((self, sealed))
    }

    /// Holds a record, or makes durable what is held first, as a target's session does.
    async fn keep(mut self, seat: &mut Seat, record: Bytes) -> anyhow::Result<Source> {
        let refused = seat.push(record).err();
        if refused.is_some() || seat.is_full() {
            let held = seat.take();
            self = blocking(self, move |source| source.append(&held)).await?;
        }
        if let Some(record) = refused {
            seat.push(record).map_err(|_| anyhow::anyhow!("an empty seat refused a record"))?;
        }
        Ok(self)
    }

    fn commit(&mut self, held: &Held, lsn: Lsn, size: u64) -> anyhow::Result<()> {
        let place = Position { timeline: self.timeline, lsn };
        self.append(held)?;
        self.hashes.seal(place, &[(DISK, size)])?;
        let receipt = PointReceipt {
            origin: PointOrigin::Replicated,
            name: None,
            cut_server: None,
            received_at: UnixMillis(0),
            clock_offset_ms: Some(0),
        };
        self.item.commit_point(place, &receipt)?;
        self.item.seal()?;
        self.hashes.commit(place)?;
        self.at = lsn;
        Ok(())
    }

    fn append(&mut self, held: &Held) -> anyhow::Result<()> {
        let records: Vec<&[u8]> = held.records.iter().map(AsRef::as_ref).collect();
        self.item.append_all(&records)?;
        self.item.sync()?;
        Ok(())
    }
}

async fn blocking(
    mut source: Source,
    work: impl FnOnce(&mut Source) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Source> {
    tokio::task::spawn_blocking(move || {
        work(&mut source)?;
        Ok(source)
    })
    .await?
}

fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// The most memory that the process had, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

async fn measure(folder: PathBuf, sources: u64, mib: u64) -> anyhow::Result<()> {
    let identity = StoreIdentity { store: Uuid::new_v4(), owner: Uuid::new_v4(), generation: 1 };
    let blobs = Arc::new(LocalStore::open(folder.join("store"))?);
    Store::init(blobs.as_ref(), identity, &SystemRandom)?;
    let random = Arc::new(SystemRandom);
    let store = Store::open_writer(blobs, identity.owner, &Unlock::KeyFile, random)?;
    let (bytes, size) = (pattern(), mib * MIB);
    let made = (0..sources).map(|number| source(&store, &folder, number, size));
    let made = made.collect::<anyhow::Result<Vec<_>>>()?;
    let compression: Compression = std::env::var("COMPRESSION")
        .unwrap_or_else(|_| "adaptive".to_owned())
        .parse()
        .map_err(anyhow::Error::msg)?;
    let sealing = Sealing { workers: Workers::default(), compression };
    let before_mib = peak_mib();
    let intake = Intake::new(sealing.workers.memory().clone());
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let mut tasks = tokio::task::JoinSet::new();
    for source in made {
        let with = (Arc::clone(&bytes), sealing.clone(), size, 1);
        tasks.spawn(source.point(with, intake.seat()));
    }
    let mut sealed = 0;
    while let Some(done) = tasks.join_next().await {
        sealed += done??.1;
    }
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let raw = sources * size;
    let told = serde_json::json!({
        "sources": sources,
        "rawMb": raw as f64 / 1e6,
        "sealedMb": sealed as f64 / 1e6,
        "seconds": seconds,
        "mbPerSecond": raw as f64 / 1e6 / seconds,
        "cpuSeconds": cpu,
        "mbPerTwoCpuSeconds": raw as f64 / 1e6 / (cpu / 2.0),
        "peakMib": peak_mib(),
        "peakMibBefore": before_mib,
        "loadAverage": std::fs::read_to_string("/proc/loadavg")?.trim(),
    });
    println!("{told}");
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let sources = arguments.next().map_or(Ok(200), |text| text.parse())?;
    let mib = arguments.next().map_or(Ok(16), |text| text.parse())?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build()?.block_on(measure(folder, sources, mib))
}
