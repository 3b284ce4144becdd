//! The boot set: which extents a machine read first in its last test, so that the next export of
//! the item has them decoded before its machine asks.
//!
//! It lies in the host's folder, not in the store: it is about this host's guests, it changes with
//! every test while a store's blobs never do, and it is worth nothing to anybody else. It is only a
//! hint. What is missing, damaged or of another item is as none, and never an error.

use leeward_model::{DiskNumber, EXTENT_BYTES, ExtentNumber, ItemId};
use leeward_replica::EXTENTS_AHEAD_MAX;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Version of the file.
const FORMAT: u32 = 1;
/// More bytes than any boot set's file has: 1024 extents of some 20 characters.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// For so long after its first read a machine counts as starting.
const WINDOW: Duration = Duration::from_secs(300);
/// Longer reads are not the guest's but hydration's, which reads 512 KiB at a time: Linux reads at
/// most 128 KiB ahead.
const GUEST_READ_BYTES_MAX: u32 = 256 << 10;

/// An extent of a disk.
pub type Place = (DiskNumber, ExtentNumber);

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    item: ItemId,
    /// Disk and extent, in the order of the first reads.
    extents: Vec<(u16, u32)>,
}

/// Where a host keeps the boot set of an item.
pub fn path(host_folder: &Path, item: ItemId) -> PathBuf {
    host_folder.join("boot-sets").join(format!("{item}.json"))
}

/// Deletes an item's boot set, as the item is destroyed.
pub fn forget(host_folder: &Path, item: ItemId) {
    // At the worst a hint stays that nobody reads.
    let _ = std::fs::remove_file(path(host_folder, item));
}

/// Reads a boot set; none when there is no good one.
pub fn load(path: &Path, item: ItemId) -> Vec<Place> {
    match read(path, item) {
        Ok(places) => places,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a boot set is left aside");
            Vec::new()
        }
    }
}

fn read(path: &Path, item: ItemId) -> io::Result<Vec<Place>> {
    if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("it is longer than any boot set"));
    }
    let stored: Stored = serde_json::from_slice(&std::fs::read(path)?)?;
    if (stored.format, stored.item) != (FORMAT, item) {
        return Err(io::Error::other("it is another item's, or of another version"));
    }
    let places = stored.extents.into_iter().take(EXTENTS_AHEAD_MAX);
    Ok(places.map(|(disk, extent)| (DiskNumber(disk), ExtentNumber(extent))).collect())
}

/// Writes a boot set, whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn save(path: &Path, item: ItemId, places: &[Place]) -> io::Result<()> {
    let extents = places.iter().map(|(disk, extent)| (disk.0, extent.0)).collect();
    let bytes = serde_json::to_vec(&Stored { format: FORMAT, item, extents })?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    crate::folder::write_secret(path, &bytes)
}

#[derive(Default)]
struct Seen {
    order: Vec<Place>,
    known: HashSet<Place>,
    begun: Option<Instant>,
    saved: usize,
}

/// Notes what a machine reads first.
#[derive(Default)]
pub struct Recorder {
    seen: Mutex<Seen>,
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a read.
    pub fn note(&self, disk: DiskNumber, offset: u64, len: u32) {
        if len == 0 || len > GUEST_READ_BYTES_MAX {
            return;
        }
        let mut seen = self.lock();
        let begun = *seen.begun.get_or_insert_with(Instant::now);
        if begun.elapsed() > WINDOW || seen.order.len() >= EXTENTS_AHEAD_MAX {
            return;
        }
        let last = offset.saturating_add(u64::from(len) - 1) / EXTENT_BYTES;
        for extent in offset / EXTENT_BYTES..=last {
            let Ok(extent) = u32::try_from(extent) else { break };
            let place = (disk, ExtentNumber(extent));
            if seen.order.len() < EXTENTS_AHEAD_MAX && seen.known.insert(place) {
                seen.order.push(place);
            }
        }
    }

    /// What is to be saved, if something was noted since the last time: the newest reads first in
    /// their order, then of `before` what was not read this time, as room is left.
    pub fn unsaved(&self, before: &[Place]) -> Option<Vec<Place>> {
        let mut seen = self.lock();
        if seen.order.len() == seen.saved {
            return None;
        }
        seen.saved = seen.order.len();
        let mut places = seen.order.clone();
        places.extend(before.iter().filter(|place| !seen.known.contains(place)));
        places.truncate(EXTENTS_AHEAD_MAX);
        Some(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEM: ItemId = ItemId::from_u128(7);

    fn place(extent: u32) -> Place {
        (DiskNumber(1), ExtentNumber(extent))
    }

    #[test]
    fn a_set_comes_back_and_a_bad_one_is_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path(), ITEM);
        assert_eq!(load(&path, ITEM), [], "there is none yet");
        let places = [place(3), place(1), (DiskNumber(0), ExtentNumber(u32::MAX))];
        save(&path, ITEM, &places).unwrap();
        assert_eq!(load(&path, ITEM), places);
        assert_eq!(load(&path, ItemId::from_u128(8)), [], "another item's");

        let good = std::fs::read(&path).unwrap();
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert_eq!(load(&path, ITEM), []);
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            assert!(load(&path, ITEM).len() <= places.len(), "bit {bit}");
        }
        std::fs::write(&path, vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(load(&path, ITEM), [], "too long");
        forget(folder.path(), ITEM);
        assert!(!path.exists());
    }

    #[tokio::test(start_paused = true)]
    async fn first_reads_are_noted_once_in_order_and_hydration_is_not() {
        let recorder = Recorder::default();
        let disk = DiskNumber(1);
        recorder.note(disk, 3 * EXTENT_BYTES + 4096, 4096);
        recorder.note(disk, 0, 2 * EXTENT_BYTES as u32);
        recorder.note(disk, 3 * EXTENT_BYTES, 512);
        recorder.note(disk, 9 * EXTENT_BYTES, GUEST_READ_BYTES_MAX + 512);
        recorder.note(disk, u64::MAX, 4096);

        let noted = recorder.unsaved(&[place(1), place(40)]).unwrap();

        assert_eq!(noted, [place(3), place(0), place(1), place(40)]);
        assert_eq!(recorder.unsaved(&[]), None, "nothing is new");
        tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
        recorder.note(disk, 50 * EXTENT_BYTES, 512);
        assert_eq!(recorder.unsaved(&[]), None, "it has started");
    }

    #[test]
    fn a_set_is_bounded() {
        let recorder = Recorder::default();
        for extent in 0..2 * EXTENTS_AHEAD_MAX as u64 {
            recorder.note(DiskNumber(0), extent * EXTENT_BYTES, 512);
        }
        assert_eq!(recorder.unsaved(&[place(1)]).unwrap().len(), EXTENTS_AHEAD_MAX);
    }
}
