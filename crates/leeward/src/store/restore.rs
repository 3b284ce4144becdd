//! `leeward store restore`: one disk of a point as a new file. It comes into being under its name
//! only when it is whole and durable. Images of other formats are made, checked and compared by
//! `qemu-img`, which reads the disk over NBD.

use super::{
    Failure, blocking, file_problem, print, problem,
    serve::{self, DiskOptions, OpenDisk, Unnoted},
};
use crate::cli::table::bytes;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use indicatif::{ProgressBar, ProgressStyle};
use leeward_model::{Code, DiskNumber, EXTENT_BYTES};
use leeward_nbd::server::{Allocation, Export, ExportError, ExportExtent};
use leeward_replica::{PointExport, RunKind, ServedAs, StoreError, View};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    fs::File,
    num::NonZeroUsize,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// A fixed VHD of Azure has a whole number of these.
const VHD_ALIGNMENT: u64 = 1 << 20;
/// How much one thread reads and writes at a time: what was unpacked is written while it lies in
/// the processor's own cache.
const PIECE: u64 = 256 << 10;
/// How long requests in flight may take at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// The form of the new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// Plain bytes, with holes.
    Raw,
    /// QEMU copy-on-write 3.
    Qcow2,
    /// VMDK, streamOptimized, for an OVA.
    Vmdk,
    /// VHDX.
    Vhdx,
    /// Fixed VHD, a whole number of MiB, as Azure takes it.
    Vhd,
}

impl Form {
    /// What `qemu-img` calls it, and its options.
    fn image(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Form::Raw => None,
            Form::Qcow2 => Some(("qcow2", &[])),
            Form::Vmdk => Some(("vmdk", &["-o", "subformat=streamOptimized"])),
            Form::Vhdx => Some(("vhdx", &[])),
            Form::Vhd => Some(("vpc", &["-o", "subformat=fixed,force_size=on"])),
        }
    }

    /// Whether `qemu-img check` knows it.
    fn can_be_checked(self) -> bool {
        matches!(self, Form::Qcow2 | Form::Vmdk | Form::Vhdx)
    }
}

/// What to restore, and to where.
#[derive(Clone, Debug, clap::Args)]
pub struct RestoreOptions {
    #[command(flatten)]
    disk: DiskOptions,
    /// The file to make. It must not exist.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Its form.
    #[arg(long, value_enum, default_value = "raw")]
    format: Form,
    /// Put the new file in the place of an existing one, which is lost.
    #[arg(long)]
    replace_existing_file: bool,
    /// Threads that decrypt and unpack at once, for a raw file [default: one a processor].
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
}

pub(super) async fn run(options: RestoreOptions) -> Result<(), Failure> {
    let begun = Instant::now();
    check_target(&options)?;
    let disk = options.disk.clone();
    let target = std::path::absolute(&options.out).unwrap_or_else(|_| options.out.clone());
    let served_as = ServedAs::Restored { target: target.to_string_lossy().into_owned() };
    let open = move || OpenDisk::open(&disk, "restored", served_as, Unnoted::GoesOn);
    let open = blocking(open).await?;
    let partial = partial_of(&options.out)?;
    // What an interrupted restore left there is of no use to anybody.
    let _ = std::fs::remove_file(&partial);
    let made = match options.format.image() {
        None => raw(&open, &partial, options.workers).await,
        Some((format, words)) => image(&open, &partial, options.format, format, words).await,
    };
    let placed = match made {
        Ok(()) => place(&partial, &options),
        Err(failure) => Err(failure),
    };
    if placed.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    placed?;
    print(&format!(
        "disk {} ({}) is in {}, after {:.1} s\n",
        open.disk.id,
        bytes(open.disk.size as f64),
        options.out.display(),
        begun.elapsed().as_secs_f64()
    ));
    blocking(move || {
        drop(open);
        Ok(())
    })
    .await
}

/// Refuses a target that is there, before anything is read.
fn check_target(options: &RestoreOptions) -> Result<(), Failure> {
    let out = options.out.display();
    let Ok(found) = std::fs::symlink_metadata(&options.out) else { return Ok(()) };
    if !found.is_file() {
        let cause = "it is there and no plain file; restore to a new file, or serve the disk and \
                     copy it from there";
        return Err(problem(Code::NAME_TAKEN, format!("{out} is not written"), cause));
    }
    if !options.replace_existing_file {
        let cause = "the file exists; --replace-existing-file puts the disk in its place";
        return Err(problem(Code::NAME_TAKEN, format!("{out} is not written"), cause));
    }
    if let Some(device) = loop_device(&options.out, Path::new("/sys/block")) {
        let cause = format!(
            "{device} holds it, and what is mounted from there would go on with \
                             the former bytes; take that off first"
        );
        return Err(problem(Code::NAME_TAKEN, format!("{out} is not written"), cause));
    }
    Ok(())
}

/// The loop device whose bytes the file is, if there is one: it may be mounted.
fn loop_device(file: &Path, devices: &Path) -> Option<String> {
    let file = file.canonicalize().ok()?;
    let entries = std::fs::read_dir(devices).ok()?.filter_map(Result::ok);
    let mut holding = entries.filter(|entry| {
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| Path::new(backing.trim_end()) == file)
    });
    holding.next().map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy()))
}

fn partial_of(out: &Path) -> Result<PathBuf, Failure> {
    let name = out.file_name().ok_or_else(|| {
        problem(Code::BAD_REQUEST, format!("{} is not written", out.display()), "it names no file")
    })?;
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(".partial");
    Ok(out.with_file_name(partial))
}

/// Gives the whole and durable file its name.
fn place(partial: &Path, options: &RestoreOptions) -> Result<(), Failure> {
    let what = || format!("{} could not be finished", options.out.display());
    let flags = match options.replace_existing_file {
        true => RenameFlags::empty(),
        false => RenameFlags::NOREPLACE,
    };
    let moved = renameat_with(CWD, partial, CWD, &options.out, flags);
    moved.map_err(|error| file_problem(what(), &error.into()))?;
    let folder = options.out.parent().filter(|parent| *parent != Path::new(""));
    let folder = File::open(folder.unwrap_or(Path::new(".")));
    folder.and_then(|folder| folder.sync_all()).map_err(|error| file_problem(what(), &error))
}

async fn raw(
    open: &OpenDisk,
    partial: &Path,
    workers: Option<NonZeroUsize>,
) -> Result<(), Failure> {
    let (view, disk, path) = (Arc::clone(&open.view), open.disk.clone(), partial.to_owned());
    blocking(move || {
        let what = || format!("{} could not be written", path.display());
        let pieces = pieces(&view, disk.number, disk.size)
            .map_err(|error| Box::new(error.problem(format!("disk {} cannot be read", disk.id))))?;
        let file = File::options().write(true).create_new(true).open(&path);
        let file = file.map_err(|error| file_problem(what(), &error))?;
        file.set_len(disk.size).map_err(|error| file_problem(what(), &error))?;
        copy((&view, disk.number), &pieces, &file, workers).map_err(|error| match error {
            CopyError::Store(error) => {
                Box::new(error.problem(format!("disk {} cannot be read", disk.id)))
            }
            CopyError::File(error) => file_problem(what(), &error),
        })?;
        file.sync_all().map_err(|error| file_problem(what(), &error))
    })
    .await
}

/// The parts of a disk that hold data, at most [`PIECE`] bytes each.
fn pieces(view: &View, disk: DiskNumber, size: u64) -> Result<Vec<(u64, usize)>, StoreError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    for run in view.status(disk, 0, size)? {
        let end = at + run.len;
        while run.kind == RunKind::Data && at < end {
            let len = (PIECE - at % PIECE).min(end - at);
            pieces.push((at, len as usize));
            at += len;
        }
        at = end;
    }
    Ok(pieces)
}

enum CopyError {
    Store(StoreError),
    File(std::io::Error),
}

/// Copies the pieces on `workers` threads, or on all processors.
/// What costs is opening and unpacking them.
fn copy(
    (view, disk): (&View, DiskNumber),
    pieces: &[(u64, usize)],
    file: &File,
    workers: Option<NonZeroUsize>,
) -> Result<(), CopyError> {
    let bar = bar(pieces.iter().map(|(_, len)| *len as u64).sum());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((offset, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let end = offset + *len as u64;
            let mut at = *offset;
            while at < end {
                let len = (EXTENT_BYTES - at % EXTENT_BYTES).min(end - at);
                let bytes = view.read_once(disk, at, len as usize).map_err(CopyError::Store)?;
                if let Some(bytes) = bytes {
                    file.write_all_at(&bytes, at).map_err(CopyError::File)?;
                }
                at += len;
            }
            bar.inc(*len as u64);
        }
        Ok(())
    };
    let threads = workers.or_else(|| std::thread::available_parallelism().ok());
    let threads = threads.map_or(1, NonZeroUsize::get);
    let copied = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    });
    bar.finish_and_clear();
    copied
}

fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// A disk that reads as zeros behind its end, up to a whole number of some unit.
struct Padded {
    inner: PointExport,
    size: u64,
}

#[async_trait]
impl Export for Padded {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at_once(&self, offset: u64, len: u32) -> Option<Bytes> {
        let inside = offset.checked_add(len.into()).is_some_and(|end| end <= self.inner.size());
        if inside { self.inner.read_at_once(offset, len) } else { None }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ExportError> {
        let inside = self.inner.size().saturating_sub(offset).min(len.into()) as u32;
        if inside == len {
            return self.inner.read(offset, len).await;
        }
        let mut out = BytesMut::zeroed(len as usize);
        if inside > 0 {
            let bytes = self.inner.read(offset, inside).await?;
            out[..bytes.len()].copy_from_slice(&bytes);
        }
        Ok(out.freeze())
    }

    async fn status(&self, offset: u64, len: u32) -> Result<Vec<ExportExtent>, ExportError> {
        let inside = self.inner.size().saturating_sub(offset).min(len.into()) as u32;
        let mut extents = match inside {
            0 => Vec::new(),
            inside => self.inner.status(offset, inside).await?,
        };
        if inside < len {
            let len = u64::from(len - inside);
            extents.push(ExportExtent { len, allocation: Allocation::Hole });
        }
        Ok(extents)
    }
}

/// Makes, checks and compares an image with `qemu-img`.
async fn image(
    open: &OpenDisk,
    partial: &Path,
    form: Form,
    format: &str,
    words: &[&str],
) -> Result<(), Failure> {
    let unit = if form == Form::Vhd { VHD_ALIGNMENT } else { 512 };
    let size = open.disk.size.next_multiple_of(unit);
    let folder = tempfile_folder()?;
    let socket = folder.0.join("disk.sock");
    let running = serve::listen(Arc::new(Padded { inner: open.export()?, size }), &socket)?;
    let source = format!("nbd+unix:///?socket={}", socket.display());
    let partial = partial.to_string_lossy().into_owned();
    let mut convert = vec!["convert", "-f", "raw", "-O", format];
    convert.extend(words);
    convert.extend([source.as_str(), partial.as_str()]);
    let compare = ["compare", "-f", "raw", "-F", format, source.as_str(), partial.as_str()];
    let check = ["check", "-f", format, partial.as_str()];
    let made = async {
        qemu_img(&convert).await?;
        if form.can_be_checked() {
            qemu_img(&check).await?;
        }
        qemu_img(&compare).await?;
        let made = File::open(&partial).and_then(|file| file.sync_all());
        made.map_err(|error| file_problem(format!("{partial} could not be finished"), &error))
    };
    let made = made.await;
    running.shutdown(DRAIN).await;
    made
}

async fn qemu_img(words: &[&str]) -> Result<(), Failure> {
    let what = || format!("qemu-img {} failed", words[0]);
    let output = tokio::process::Command::new("qemu-img").args(words).kill_on_drop(true).output();
    let output = output.await.map_err(|error| {
        problem(
            Code::INSTANCE_FAILED,
            what(),
            format!("it could not be started ({error}); install qemu-utils, or restore as raw"),
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Box::new(leeward_model::Problem {
        now: "no file was made; the store was not changed".into(),
        todo: "read the cause; restore as raw if the format is the trouble".into(),
        ..Code::INTERNAL.because(what(), said)
    }))
}

/// A folder for one socket, deleted at the end.
struct SocketFolder(PathBuf);

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tempfile_folder() -> Result<SocketFolder, Failure> {
    let path = std::env::temp_dir().join(format!("leeward-restore-{}", std::process::id()));
    let made = std::fs::DirBuilder::new();
    let mut made = made;
    std::os::unix::fs::DirBuilderExt::mode(&mut made, 0o700);
    made.create(&path)
        .map_err(|error| file_problem(format!("could not make {}", path.display()), &error))?;
    Ok(SocketFolder(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_loop_device_holds_is_known_by_the_devices_own_word() {
        let folder = tempfile::tempdir().unwrap();
        let (file, devices) = (folder.path().join("disk.raw"), folder.path().join("block"));
        std::fs::write(&file, b"bytes").unwrap();
        std::fs::create_dir_all(devices.join("sda")).unwrap();
        std::fs::create_dir_all(devices.join("loop3/loop")).unwrap();
        assert_eq!(loop_device(&file, &devices), None);

        let real = file.canonicalize().unwrap();
        let backing = devices.join("loop3/loop/backing_file");
        std::fs::write(backing, format!("{}\n", real.display())).unwrap();
        assert_eq!(loop_device(&file, &devices), Some("/dev/loop3".to_owned()));
        assert_eq!(loop_device(&folder.path().join("other.raw"), &devices), None);
    }
}
