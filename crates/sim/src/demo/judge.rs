//! Judges disks and recovery points apart from the product's roles: copies a point's disks out of
//! the store through an export, has the guest's own judge look at copies, compares blocks. Boots
//! nothing.

use super::{api::Site, guest::GuestImages, progress::wait_for, sites::Sites};
use anyhow::{Context as _, ensure};
use rustix::fs::{SeekFrom, seek};
use serde_json::Value;
use std::{fs::File, os::unix::fs::FileExt as _, path::Path, process::Stdio, time::Duration};
use tokio::{net::UnixStream, process::Command};

/// The images of a copy, in the order of the disks' numbers.
const IMAGES: [&str; 2] = ["boot.raw", "data.raw"];
/// The blocks that are compared, in bytes.
const BLOCK_BYTES: usize = 4096;

/// The verdict on the point `name` of the site's item, in the recovery site's store.
///
/// # Errors
/// When the point cannot be copied out; a bad ledger is a verdict, not an error.
pub async fn point_judge(
    sites: &Sites,
    images: &GuestImages,
    site: &Site,
    name: &str,
) -> anyhow::Result<Value> {
    let folder = sites.folder.join("judge");
    point_copy(sites, site, &sites.up_folder().join("store"), name, &folder).await?;
    let verdict = disks_judge(images, &folder).await?;
    std::fs::remove_dir_all(&folder)?;
    Ok(verdict)
}

/// The verdict on the images in a folder.
///
/// # Errors
/// When the judge cannot run.
pub async fn disks_judge(images: &GuestImages, folder: &Path) -> anyhow::Result<Value> {
    images.judge(&folder.join(IMAGES[0]), &folder.join(IMAGES[1])).await
}

/// Copies the disks of the point `name` out of `store` into `folder`, which is made.
///
/// # Errors
/// When the point cannot be served or read.
pub async fn point_copy(
    sites: &Sites,
    site: &Site,
    store: &Path,
    name: &str,
    folder: &Path,
) -> anyhow::Result<()> {
    let item = site.item().await?;
    let item = item["providerSpecificDetails"]["leewardItemId"].as_str();
    item_point_copy(sites, item.context("the item has no id")?, store, name, folder).await
}

/// As [`point_copy`], of the item with this id, which may be protected no more.
///
/// # Errors
/// As there.
pub async fn item_point_copy(
    sites: &Sites,
    item: &str,
    store: &Path,
    name: &str,
    folder: &Path,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let socket = folder.join("j.sock");
    let mut export = Command::new(sites.program())
        .args(["export", "--item", item])
        .args(["--point", name, "--store"])
        .arg(store)
        .arg("--socket")
        .arg(&socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let look = || async { Ok(UnixStream::connect(&socket).await.ok().map(drop)) };
    wait_for("an export", Duration::from_secs(20), Duration::from_millis(10), look).await?;
    for (number, image) in IMAGES.into_iter().enumerate() {
        let uri = format!("nbd+unix:///disk-{number}?socket={}", socket.display());
        let copied = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "raw", &uri])
            .arg(folder.join(image))
            .output()
            .await?;
        ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }
    export.kill().await?;
    Ok(())
}

/// How many blocks of 4 KiB differ between two raw images. Holes of both are not read.
///
/// # Errors
/// Those of the file system; images of different sizes.
pub fn differing_blocks(one: &Path, other: &Path) -> anyhow::Result<u64> {
    let files = [File::open(one)?, File::open(other)?];
    let size = files[0].metadata()?.len();
    ensure!(size == files[1].metadata()?.len(), "{} has another size", other.display());
    let (mut at, mut differing) = (0, 0);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    while let Some(next) = next_data(&files, at)? {
        let start = next - next % BLOCK_BYTES as u64;
        let len = left.len().min((size - start) as usize);
        files[0].read_exact_at(&mut left[..len], start)?;
        files[1].read_exact_at(&mut right[..len], start)?;
        let pairs = left[..len].chunks(BLOCK_BYTES).zip(right[..len].chunks(BLOCK_BYTES));
        differing += pairs.filter(|(left, right)| left != right).count() as u64;
        at = start + len as u64;
    }
    Ok(differing)
}

/// The first byte at or behind `at` that is not in a hole of both files.
fn next_data(files: &[File; 2], at: u64) -> anyhow::Result<Option<u64>> {
    let mut first = None;
    for file in files {
        match seek(file, SeekFrom::Data(at)) {
            Ok(found) => first = Some(first.map_or(found, |known: u64| known.min(found))),
            Err(rustix::io::Errno::NXIO) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_differ_are_counted_and_holes_are_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let make = |path: &Path, writes: &[(u64, u8)]| {
            let file = File::create(path).unwrap();
            file.set_len(16 << 20).unwrap();
            for (offset, byte) in writes {
                file.write_all_at(&[*byte; 4096], *offset).unwrap();
            }
        };
        make(&one, &[(0, 1), (4096, 2), (9 << 20, 0)]);
        make(&other, &[(0, 1), (4096, 3), (12 << 20, 7)]);

        assert_eq!(differing_blocks(&one, &other).unwrap(), 2);
        assert_eq!(differing_blocks(&one, &one).unwrap(), 0);
    }
}
