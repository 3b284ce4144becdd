//! The disks that `leeward store capture` reads: files, block devices, NBD exports. They are opened
//! read-only, and that is asserted.

use super::{Failure, problem};
use async_trait::async_trait;
use bytes::Bytes;
use leeward_capture::{BlockingRead, ByteRange, CaptureError, DiskReader};
use leeward_model::{BLOCK_BYTES, Code, DiskNumber, Problem};
use leeward_nbd::{
    client::{Client, ConnectOptions, connect_unix},
    protocol::STATE_ZERO,
};
use rustix::fs::{Advice, OFlags, SeekFrom, fadvise, fcntl_getfl, seek};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Seek as _},
    num::NonZeroU64,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long an NBD server may take for one reply.
const NBD_DEADLINE: Duration = Duration::from_secs(60);
/// The metadata context that tells holes from data.
const ALLOCATION: &str = "base:allocation";

/// One disk, open for reading.
#[derive(Clone)]
enum Opened {
    File(Arc<File>),
    Nbd(Client),
}

/// A disk to be captured.
#[derive(Clone)]
pub(super) struct SourceDisk {
    /// Its name among the item's disks.
    pub(super) id: String,
    /// Where it lies, as it was given.
    pub(super) path: String,
    /// Bytes.
    pub(super) size: u64,
    /// The parts that changed since the newest point, when they are known.
    pub(super) changes: Option<Vec<ByteRange>>,
    opened: Opened,
}

impl SourceDisk {
    /// Opens a disk read-only: `nbd+unix:///NAME?socket=PATH`, or a file or block device.
    ///
    /// # Errors
    /// `DISK_MISSING` when it cannot be opened or is empty.
    pub(super) async fn open(id: &str, path: &str) -> Result<SourceDisk, Failure> {
        let fail = |cause: String| disk_problem(format!("disk {id} ({path})"), cause);
        let (opened, size) = match path.strip_prefix("nbd+unix:///") {
            Some(rest) => {
                let (name, socket) = rest.split_once("?socket=").ok_or_else(|| {
                    let cause = "an NBD disk is written nbd+unix:///NAME?socket=PATH";
                    problem(Code::BAD_REQUEST, format!("disk {id} ({path})"), cause)
                })?;
                let client = nbd(name, Path::new(socket)).await.map_err(&fail)?;
                let size = client.size();
                (Opened::Nbd(client), size)
            }
            None => {
                let file = File::open(path).map_err(|error| fail(error.to_string()))?;
                assert_read_only(&file).map_err(|error| fail(error.to_string()))?;
                let size = size_of(&file).map_err(|error| fail(error.to_string()))?;
                // Read from its beginning to its end: the kernel reads ahead further. A hint only.
                let _ = fadvise(&file, 0, None, Advice::Sequential);
                (Opened::File(Arc::new(file)), size)
            }
        };
        if size == 0 || !size.is_multiple_of(512) {
            return Err(fail(format!("it has {size} bytes, which no disk has")));
        }
        Ok(SourceDisk { id: id.into(), path: path.into(), size, changes: None, opened })
    }

    /// Its size now.
    fn size_now(&self) -> io::Result<u64> {
        match &self.opened {
            Opened::File(file) => size_of(file),
            Opened::Nbd(client) => Ok(client.size()),
        }
    }
}

/// The problem of a disk that cannot be read.
pub(super) fn disk_problem(what: String, cause: String) -> Failure {
    Box::new(Problem {
        now: "no point was made; the store's points are untouched".into(),
        todo: "correct the path or the disk, and run the command again".into(),
        ..Code::DISK_MISSING.because(what, cause)
    })
}

async fn nbd(name: &str, socket: &Path) -> Result<Client, String> {
    let options = |contexts: Vec<String>| ConnectOptions {
        export: name.to_owned(),
        contexts,
        call_deadline: NBD_DEADLINE,
    };
    match connect_unix(socket, options(vec![ALLOCATION.to_owned()])).await {
        Ok(client) => Ok(client),
        // A server without block status is read in full.
        Err(_) => {
            connect_unix(socket, options(Vec::new())).await.map_err(|error| error.to_string())
        }
    }
}

/// Whoever changes this file so that it opens sources for writing ends here.
fn assert_read_only(file: &File) -> io::Result<()> {
    let mode = fcntl_getfl(file)? & OFlags::RWMODE;
    match mode == OFlags::RDONLY {
        true => Ok(()),
        false => Err(io::Error::other("it was not opened read-only")),
    }
}

/// Bytes of a file or block device.
fn size_of(mut file: &File) -> io::Result<u64> {
    file.seek(io::SeekFrom::End(0))
}

/// Reads the disks of a capture.
pub(super) struct SourceReader {
    disks: BTreeMap<DiskNumber, SourceDisk>,
    read: Arc<AtomicU64>,
}

/// Reads one file or block device where it is called.
struct FileReader {
    /// What it does, for errors.
    what: String,
    file: Arc<File>,
    read: Arc<AtomicU64>,
}

impl BlockingRead for FileReader {
    fn announce(&self, offset: u64, len: u64) {
        // Only a hint: what the kernel makes of it shows in the speed alone.
        let _ = fadvise(&*self.file, offset, NonZeroU64::new(len), Advice::WillNeed);
    }

    fn read_into(&self, buffer: &mut [u8], offset: u64) -> Result<(), CaptureError> {
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let read = self.file.read_exact_at(buffer, offset);
        read.map_err(|source| CaptureError::Io { what: self.what.clone(), source })
    }
}

impl SourceReader {
    /// A reader of these disks; `read` counts the bytes.
    pub(super) fn new(disks: BTreeMap<DiskNumber, SourceDisk>, read: Arc<AtomicU64>) -> Self {
        SourceReader { disks, read }
    }

    /// Whether every disk still has the size that it had when it was opened.
    ///
    /// # Errors
    /// `DISK_RESIZED` names the one that has not.
    pub(super) fn check_sizes(&self) -> Result<(), Failure> {
        for disk in self.disks.values() {
            let what =
                || format!("disk {} ({}) changed its size while it was read", disk.id, disk.path);
            let now = disk.size_now().map_err(|error| disk_problem(what(), error.to_string()))?;
            if now != disk.size {
                let cause = format!("it had {} bytes and has {now}; no point was made", disk.size);
                return Err(problem(Code::DISK_RESIZED, what(), cause));
            }
        }
        Ok(())
    }

    fn disk(&self, disk: DiskNumber) -> Result<&SourceDisk, CaptureError> {
        self.disks.get(&disk).ok_or(CaptureError::MachineGone)
    }
}

fn io_error(disk: &SourceDisk, source: io::Error) -> CaptureError {
    CaptureError::Io { what: reading(disk), source }
}

fn reading(disk: &SourceDisk) -> String {
    format!("read disk {} ({})", disk.id, disk.path)
}

/// Whole blocks around `ranges`, merged.
fn whole_blocks(ranges: &[ByteRange], size: u64) -> Vec<ByteRange> {
    let mut sorted: Vec<_> = ranges.iter().filter(|range| range.len > 0).collect();
    sorted.sort_by_key(|range| range.offset);
    let mut out: Vec<ByteRange> = Vec::new();
    for range in sorted {
        let from = (range.offset / BLOCK_BYTES * BLOCK_BYTES).min(size);
        let end = range.end().next_multiple_of(BLOCK_BYTES).min(size);
        match out.last_mut() {
            Some(last) if from <= last.end() => last.len = last.len.max(end - last.offset),
            _ if from < end => out.push(ByteRange { offset: from, len: end - from }),
            _ => {}
        }
    }
    out
}

/// The parts of a file that are not holes. A block device, and a file system that does not tell,
/// has one part.
fn file_ranges(file: &File, size: u64) -> io::Result<Vec<ByteRange>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let hole = match seek(file, SeekFrom::Hole(data)) {
            Ok(hole) => hole.min(size),
            Err(rustix::io::Errno::INVAL) => size,
            Err(error) => return Err(error.into()),
        };
        ranges.push(ByteRange { offset: data, len: hole - data });
        at = hole;
    }
    Ok(whole_blocks(&ranges, size))
}

#[async_trait]
impl DiskReader for SourceReader {
    async fn ranges(&self, disk: DiskNumber) -> Result<Vec<ByteRange>, CaptureError> {
        let disk = self.disk(disk)?;
        if let Some(changes) = &disk.changes {
            return Ok(whole_blocks(changes, disk.size));
        }
        match &disk.opened {
            Opened::File(file) => {
                let (file, size) = (Arc::clone(file), disk.size);
                let ranges = tokio::task::spawn_blocking(move || file_ranges(&file, size)).await;
                let ranges =
                    ranges.unwrap_or_else(|error| Err(io::Error::other(error.to_string())));
                ranges.map_err(|error| io_error(disk, error))
            }
            Opened::Nbd(client) if client.details().contexts.is_empty() => {
                Ok(vec![ByteRange { offset: 0, len: disk.size }])
            }
            Opened::Nbd(client) => {
                let map = client.map_all(ALLOCATION).await;
                let map =
                    map.map_err(|error| io_error(disk, io::Error::other(error.to_string())))?;
                let data = map.iter().filter(|extent| extent.flags & STATE_ZERO == 0);
                let ranges: Vec<_> = data
                    .map(|extent| ByteRange { offset: extent.offset, len: extent.len })
                    .collect();
                Ok(whole_blocks(&ranges, disk.size))
            }
        }
    }

    async fn read(&self, disk: DiskNumber, offset: u64, len: u64) -> Result<Bytes, CaptureError> {
        let disk = self.disk(disk)?;
        let bytes = match &disk.opened {
            Opened::File(file) => {
                let file = Arc::clone(file);
                let read = tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; len as usize];
                    file.read_exact_at(&mut bytes, offset)?;
                    Ok(Bytes::from(bytes))
                });
                read.await.unwrap_or_else(|error| Err(io::Error::other(error.to_string())))
            }
            Opened::Nbd(client) => {
                let read = client.read(offset, len as u32).await;
                read.map_err(|error| io::Error::other(error.to_string()))
            }
        };
        self.read.fetch_add(len, Ordering::Relaxed);
        bytes.map_err(|error| io_error(disk, error))
    }

    fn blocking(&self, disk: DiskNumber) -> Option<Arc<dyn BlockingRead>> {
        let disk = self.disks.get(&disk)?;
        let Opened::File(file) = &disk.opened else { return None };
        let (file, read) = (Arc::clone(file), Arc::clone(&self.read));
        Some(Arc::new(FileReader { what: reading(disk), file, read }))
    }
}

/// Reads a list of changed parts: a JSON array of `[offset, length]` in bytes.
///
/// # Errors
/// `BAD_REQUEST` when it is no such list.
pub(super) fn changes(path: &PathBuf) -> Result<Vec<ByteRange>, Failure> {
    let what = || format!("the list of changes in {}", path.display());
    let text =
        std::fs::read_to_string(path).map_err(|error| problem(Code::BAD_REQUEST, what(), error))?;
    let pairs: Vec<(u64, u64)> =
        serde_json::from_str(&text).map_err(|error| problem(Code::BAD_REQUEST, what(), error))?;
    let range = |(offset, len): (u64, u64)| match offset.checked_add(len) {
        Some(_) => Ok(ByteRange { offset, len }),
        None => {
            Err(problem(Code::BAD_REQUEST, what(), format!("[{offset}, {len}] is beyond any disk")))
        }
    };
    pairs.into_iter().map(range).collect()
}
