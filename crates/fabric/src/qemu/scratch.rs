//! Scratch files of cuts: where a guest's overwritten blocks go until a cut has been read.
//!
//! A file is an empty qcow2 image of the disk's size within a capped, sparse file. QEMU makes one
//! per disk size; after that its few bytes are written again instead of running a program.

use leeward_model::DiskNumber;
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tokio::process::Command;

/// Least cap of a disk's scratch space, in bytes: also small disks may be overwritten as a whole.
const CAP_BYTES_MIN: u64 = 64 << 20;
/// Largest empty image that is kept in memory, in bytes; an empty one of 8 TiB has 200 KiB.
const PRISTINE_BYTES_MAX: u64 = 4 << 20;

/// The scratch files of one machine.
pub(crate) struct Scratch {
    folder: PathBuf,
    cap_bytes: Option<u64>,
    /// Empty images by disk size.
    pristine: Mutex<HashMap<u64, Vec<u8>>>,
}

impl Scratch {
    /// Files lie in `folder`; `cap_bytes` caps each, by default 10 % of its disk but at least
    /// 64 MiB.
    pub fn new(folder: PathBuf, cap_bytes: Option<u64>) -> Self {
        Scratch { folder, cap_bytes, pristine: Mutex::default() }
    }

    /// Most bytes that the scratch file of a disk of `disk_bytes` takes.
    pub fn cap(&self, disk_bytes: u64) -> u64 {
        let cap = self.cap_bytes.unwrap_or(CAP_BYTES_MIN.max(disk_bytes / 10));
        cap.next_multiple_of(65_536)
    }

    fn path(&self, disk: DiskNumber) -> PathBuf {
        self.folder.join(format!("scratch-{disk}.qcow2"))
    }

    /// Makes the empty scratch file of a disk.
    pub async fn make(&self, disk: DiskNumber, disk_bytes: u64) -> io::Result<PathBuf> {
        let path = self.path(disk);
        let kept = self.lock().get(&disk_bytes).cloned();
        let pristine = match kept {
            Some(pristine) => pristine,
            None => {
                let pristine = create(&path, disk_bytes).await?;
                self.lock().insert(disk_bytes, pristine.clone());
                pristine
            }
        };
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
        file.write_all(&pristine)?;
        file.set_len(self.cap(disk_bytes).max(pristine.len() as u64))?;
        Ok(path)
    }

    /// Gives the space back; what is not there is fine, and a file that stays only takes space.
    pub fn clear(&self, disks: &[DiskNumber]) {
        for disk in disks {
            match fs::remove_file(self.path(*disk)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%disk, %error, "a scratch file was left behind");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Vec<u8>>> {
        self.pristine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn create(path: &Path, disk_bytes: u64) -> io::Result<Vec<u8>> {
    let size = disk_bytes.to_string();
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(size).kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("qemu-img: {}", words.trim())));
    }
    match fs::metadata(path)?.len() {
        len if len <= PRISTINE_BYTES_MAX => fs::read(path),
        len => Err(io::Error::other(format!("an empty image has {len} bytes"))),
    }
}
