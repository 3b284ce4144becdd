//! The numbered manifests of an item: finding the newest, loading, and committing another one.
//!
//! A commit is one create-if-absent; there is no other way in which an item's state changes.

use crate::{
    StoreError,
    folder::{ItemFolder, read_whole},
    hint,
    manifest::{
        CHECKPOINT_EVERY, Change, ItemState, MANIFEST_BYTES_MAX, Manifest, ManifestKind,
        codec::{HEADER_BYTES, encode_change},
    },
    outline,
    storage::{Put, StorageError},
};
use leeward_model::{PointId, UnixMillis};
use leeward_wire::keys::mac;
use std::{collections::BTreeMap, sync::Arc};

/// So many of the newest manifests are never deleted.
const KEPT_MIN: u64 = 512;
/// No manifest younger than this is deleted, in milliseconds: a day.
const KEPT_MS: i64 = 86_400_000;

/// For so long checkpoints remember what was dropped, in milliseconds: two days, longer than any
/// blob waits for its deletion.
pub(crate) const DROPPED_MS: i64 = 2 * 86_400_000;

/// An item's state as of its newest known manifest.
#[derive(Clone)]
pub(crate) struct ManifestLog {
    folder: Arc<ItemFolder>,
    newest: u64,
    newest_mac: [u8; 32],
    stamped_at: UnixMillis,
    state: ItemState,
    /// When the checkpoints that are still there were stamped, as far as that was asked.
    checkpoints: BTreeMap<u64, UnixMillis>,
    since: Since,
}

/// What changed since the newest checkpoint, for the hint.
#[derive(Clone, Default)]
struct Since {
    checkpoint: u64,
    /// Encoded; at most a little more than a hint takes.
    changes: Vec<u8>,
}

impl Since {
    fn add(&mut self, changes: &[Change]) {
        for change in changes {
            if self.changes.len() <= hint::CHANGES_BYTES_MAX {
                encode_change(change, &mut self.changes);
            }
        }
    }
}

/// Which manifest of an item is the newest: what its load begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Newest {
    /// The highest that is listed: for a writer, which must not believe a hint.
    Listed,
    /// The hint says where to look from on; listed when it does not count.
    Hinted,
}

fn name(number: u64) -> String {
    format!("manifest/{number:016}")
}

impl ManifestLog {
    /// Loads the newest state there is.
    pub(crate) fn load(folder: Arc<ItemFolder>, newest: Newest) -> Result<ManifestLog, StoreError> {
        let hinted = match newest {
            Newest::Listed => None,
            Newest::Hinted => hint::read(&folder)?.map(|hint| hint.newest()),
        };
        let newest = match hinted {
            Some(hinted) => gallop(&folder, hinted)?,
            None => newest_listed(&folder)?,
        };
        let mut log = ManifestLog {
            folder,
            newest: 0,
            newest_mac: [0; 32],
            stamped_at: UnixMillis(i64::MIN),
            state: ItemState::default(),
            checkpoints: BTreeMap::new(),
            since: Since::default(),
        };
        let checkpoint = newest - newest % CHECKPOINT_EVERY;
        let names = (checkpoint.max(1)..=newest).map(|number| log.folder.path(&name(number)));
        log.folder.blobs.read_ahead(&names.collect::<Vec<_>>());
        if checkpoint > 0 {
            log.take_checkpoint(checkpoint)?;
        }
        for number in checkpoint + 1..=newest {
            log.take_delta(number)?;
        }
        Ok(log)
    }

    /// Takes what was committed since; gallops forward from the newest known manifest.
    pub(crate) fn refresh(&mut self) -> Result<(), StoreError> {
        if self.newest > 0 && !self.exists(self.newest)? {
            *self = ManifestLog::load(self.folder.clone(), Newest::Listed)?;
            return Ok(());
        }
        let known = gallop(&self.folder, self.newest)?;
        for number in self.newest + 1..=known {
            if number % CHECKPOINT_EVERY == 0 {
                self.take_checkpoint(number)?;
            } else {
                self.take_delta(number)?;
            }
        }
        Ok(())
    }

    /// The state without these points, in memory only: to see what would follow.
    pub(crate) fn forget_points(&mut self, points: &[PointId]) {
        for point in points {
            // A point that is not there is forgotten already.
            let _: Result<(), String> = self.state.apply(&Change::PointRemoved(*point));
        }
    }

    /// The stamp of the newest manifest: the store's clock was there.
    pub(crate) fn stamped_at(&self) -> UnixMillis {
        self.stamped_at
    }

    pub(crate) fn state(&self) -> &ItemState {
        &self.state
    }

    /// Commits `changes` as the next manifest.
    ///
    /// `Refused` leaves everything as it was. After any other error it is not known whether the
    /// manifest exists: the caller must load again.
    pub(crate) fn commit(
        &mut self,
        writer: [u8; 16],
        changes: Vec<Change>,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let stamped_at = now.max(self.stamped_at);
        let number = self.newest + 1;
        let checkpoint = number.is_multiple_of(CHECKPOINT_EVERY);
        let before = self.state.before(&changes);
        let put = self.put_next(writer, changes, stamped_at, number, checkpoint);
        match put {
            Ok(put) => {
                self.newest = number;
                self.newest_mac = put.tag;
                self.stamped_at = stamped_at;
                if checkpoint {
                    self.checkpoints.insert(number, stamped_at);
                    self.since = Since { checkpoint: number, changes: Vec::new() };
                    outline::put(&self.folder, &put.header, number, &self.state);
                } else {
                    self.since.add(&put.changes);
                }
                let Since { checkpoint, changes } = &self.since;
                if changes.len() <= hint::CHANGES_BYTES_MAX {
                    hint::put(&self.folder, *checkpoint, (&put.header, &put.tag), changes);
                }
                Ok(())
            }
            Err(error) => {
                self.state.restore(before);
                Err(error)
            }
        }
    }

    /// Applies changes and puts the manifest that makes them. After an error the state is anything.
    fn put_next(
        &mut self,
        writer: [u8; 16],
        changes: Vec<Change>,
        stamped_at: UnixMillis,
        number: u64,
        checkpoint: bool,
    ) -> Result<Committed, StoreError> {
        for change in &changes {
            let applied = self.state.apply_at(change, stamped_at);
            applied.map_err(|why| StoreError::refused("a change", why))?;
        }
        let kind = if checkpoint { ManifestKind::Checkpoint } else { ManifestKind::Delta };
        if checkpoint {
            // Whatever was dropped so long ago is gone, or deleted when the item is opened.
            self.state.dropped.retain(|_, at| at.0.saturating_add(DROPPED_MS) > stamped_at.0);
        }
        let manifest = Manifest {
            kind,
            number,
            vault: self.folder.owner.vault,
            item: self.folder.owner.item,
            generation: self.folder.generation,
            writer,
            predecessor: self.newest_mac,
            stamped_at,
            changes: if checkpoint { self.state.as_changes() } else { changes },
        };
        let bytes = manifest.encode(&self.folder.manifest_key);
        let path = self.folder.path(&name(number));
        // Ours after a lost reply: only this writer draws this nonce, so equal bytes are ours.
        if self.folder.blobs.put_new(&path, &bytes)? == Put::Exists
            && self.folder.read_whole(&path, MANIFEST_BYTES_MAX as usize)? != bytes
        {
            return Err(StoreError::Conflict { number });
        }
        let header = *bytes.first_chunk().expect("every manifest has a header");
        let tag = mac(&self.folder.manifest_key, &bytes);
        Ok(Committed { header, tag, changes: manifest.changes })
    }

    /// Puts what spares readers time, where it is not there or damaged: as after a crash, or in a
    /// store of an earlier program. A failure costs time only.
    pub(crate) fn put_indexes(&self) {
        let put = || -> Result<(), StoreError> {
            let header = |number| -> Result<Option<[u8; HEADER_BYTES]>, StoreError> {
                let path = self.folder.path(&name(number));
                Ok(self.folder.blobs.read_at(&path, 0, HEADER_BYTES)?.try_into().ok())
            };
            let Since { checkpoint, changes } = &self.since;
            if *checkpoint > 0
                && let (manifest, _) = self.read(*checkpoint)?
                && let (Some(header), Ok(state)) =
                    (header(*checkpoint)?, ItemState::of_checkpoint(manifest.changes))
            {
                outline::heal(&self.folder, &header, *checkpoint, &state)?;
            }
            if self.newest > 0
                && changes.len() <= hint::CHANGES_BYTES_MAX
                && let Some(header) = header(self.newest)?
            {
                hint::put(&self.folder, *checkpoint, (&header, &self.newest_mac), changes);
            }
            Ok(())
        };
        if let Err(error) = put() {
            tracing::warn!(%error, "hint and outline were not put");
        }
    }

    /// Deletes manifests that no reader needs any more, oldest first.
    pub(crate) fn trim(&mut self, now: UnixMillis) -> Result<(), StoreError> {
        let newest = self.newest.saturating_sub(KEPT_MIN) / CHECKPOINT_EVERY * CHECKPOINT_EVERY;
        let mut checkpoint = newest;
        // The newest that is old enough: where points come fast, many are not.
        while checkpoint > 0 && !self.is_old(checkpoint, now)? {
            checkpoint -= CHECKPOINT_EVERY;
        }
        if checkpoint == 0 || !self.exists(checkpoint - 1)? {
            return Ok(());
        }
        self.checkpoints.retain(|number, _| *number >= checkpoint);
        let folder = self.folder.path("manifest");
        for listed in self.folder.blobs.list(&folder)? {
            if listed.parse::<u64>().is_ok_and(|number| number < checkpoint) {
                self.folder.blobs.delete(&format!("{folder}/{listed}"))?;
            }
        }
        Ok(self.folder.blobs.sync_dir(&folder)?)
    }

    /// Whether a checkpoint, if it is there, may be the oldest manifest. Each is read once.
    fn is_old(&mut self, checkpoint: u64, now: UnixMillis) -> Result<bool, StoreError> {
        let known = self.checkpoints.get(&checkpoint).copied();
        let stamped_at = match known {
            Some(stamped_at) => stamped_at,
            // What was deleted was old enough.
            None if !self.exists(checkpoint)? => return Ok(true),
            None => self.read(checkpoint)?.0.stamped_at,
        };
        self.checkpoints.insert(checkpoint, stamped_at);
        Ok(stamped_at.0.saturating_add(KEPT_MS) <= now.0)
    }

    /// Reads and proves every manifest that is still there, and that each follows the one before
    /// it. Returns how many are good, and what is wrong with the others.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub(crate) fn audit(&self) -> Result<(u64, Vec<StoreError>), StoreError> {
        let (mut good, mut bad) = (0, Vec::new());
        let mut before: Option<(u64, [u8; 32])> = None;
        let names = self.folder.blobs.list(&self.folder.path("manifest"))?;
        for number in names.iter().filter_map(|name| name.parse::<u64>().ok()) {
            match self.read(number) {
                Ok((manifest, tag)) => {
                    let why = match before {
                        Some((last, _)) if last + 1 != number => {
                            Some("the one before it is missing")
                        }
                        Some((_, mac)) if manifest.predecessor != mac => {
                            Some("it does not follow the manifest before it")
                        }
                        _ => None,
                    };
                    match why {
                        Some(why) => {
                            bad.push(StoreError::damaged(&self.folder.path(&name(number)), why));
                        }
                        None => good += 1,
                    }
                    before = Some((number, tag));
                    bad.extend(self.audit_outline(number, manifest)?);
                }
                Err(error @ StoreError::Damaged { .. }) => {
                    bad.push(error);
                    before = None;
                }
                Err(error) => return Err(error),
            }
        }
        match hint::audit(&self.folder) {
            Err(error @ StoreError::Damaged { .. }) => bad.push(error),
            audited => audited?,
        }
        Ok((good, bad))
    }

    /// What is wrong with a checkpoint's outline.
    fn audit_outline(
        &self,
        number: u64,
        manifest: Manifest,
    ) -> Result<Option<StoreError>, StoreError> {
        if manifest.kind != ManifestKind::Checkpoint || !outline::is_put(&self.folder, number)? {
            return Ok(None);
        }
        let path = self.folder.path(&name(number));
        let header = self.folder.blobs.read_at(&path, 0, HEADER_BYTES)?;
        let (Ok(header), Ok(state)) =
            (header.try_into(), ItemState::of_checkpoint(manifest.changes))
        else {
            return Ok(Some(StoreError::damaged(&path, "its changes do not fit each other")));
        };
        Ok(outline::audit(&self.folder, &header, number, &state)?.err())
    }

    fn exists(&self, number: u64) -> Result<bool, StoreError> {
        exists(&self.folder, number)
    }

    fn read(&self, number: u64) -> Result<(Manifest, [u8; 32]), StoreError> {
        let missing = || {
            let path = self.folder.path(&name(number));
            StoreError::damaged(&path, "it is missing between others")
        };
        read_manifest(&self.folder, number)?.ok_or_else(missing)
    }

    fn take_checkpoint(&mut self, number: u64) -> Result<(), StoreError> {
        let (manifest, tag) = self.read(number)?;
        let path = self.folder.path(&name(number));
        if manifest.kind != ManifestKind::Checkpoint {
            return Err(StoreError::damaged(&path, "it should be a checkpoint"));
        }
        self.set_newest(&manifest, tag);
        self.since = Since { checkpoint: number, changes: Vec::new() };
        let state = ItemState::of_checkpoint(manifest.changes);
        self.state = state.map_err(|why| StoreError::damaged(&path, why))?;
        Ok(())
    }

    fn take_delta(&mut self, number: u64) -> Result<(), StoreError> {
        let (manifest, tag) = self.read(number)?;
        let path = self.folder.path(&name(number));
        if manifest.kind != ManifestKind::Delta || manifest.predecessor != self.newest_mac {
            return Err(StoreError::damaged(&path, "it does not follow the manifest before it"));
        }
        for change in &manifest.changes {
            let applied = self.state.apply_at(change, manifest.stamped_at);
            applied.map_err(|why| StoreError::damaged(&path, why))?;
        }
        self.set_newest(&manifest, tag);
        self.since.add(&manifest.changes);
        Ok(())
    }

    fn set_newest(&mut self, manifest: &Manifest, tag: [u8; 32]) {
        self.newest = manifest.number;
        self.newest_mac = tag;
        self.stamped_at = manifest.stamped_at;
    }
}

/// What a commit has put.
struct Committed {
    header: [u8; HEADER_BYTES],
    tag: [u8; 32],
    changes: Vec<Change>,
}

fn exists(folder: &ItemFolder, number: u64) -> Result<bool, StoreError> {
    Ok(folder.blobs.len(&folder.path(&name(number)))?.is_some())
}

/// Number of the newest manifest, from one that is there on.
fn gallop(folder: &ItemFolder, from: u64) -> Result<u64, StoreError> {
    let (mut known, mut step) = (from, 1);
    while exists(folder, known + step)? {
        known += step;
        step *= 2;
    }
    // The newest lies in known..known + step: manifests have no gaps at their upper end.
    while step > 1 {
        step /= 2;
        if exists(folder, known + step)? {
            known += step;
        }
    }
    Ok(known)
}

/// Reads and proves a manifest; with its MAC. `None` when it is not there.
///
/// # Errors
/// [`StoreError::Damaged`], [`StoreError::Storage`].
pub(crate) fn read_manifest(
    folder: &ItemFolder,
    number: u64,
) -> Result<Option<(Manifest, [u8; 32])>, StoreError> {
    let path = folder.path(&name(number));
    let bytes = match read_whole(&*folder.blobs, &path, MANIFEST_BYTES_MAX as usize) {
        Err(StoreError::Storage(StorageError::Absent { .. })) => return Ok(None),
        read => read?,
    };
    let key = &folder.manifest_key;
    let manifest = Manifest::decode(&bytes, key).map_err(|why| StoreError::damaged(&path, why))?;
    let owner = &folder.owner;
    if (manifest.number, manifest.vault, manifest.item) != (number, owner.vault, owner.item) {
        return Err(StoreError::damaged(&path, "it is another item's or another number"));
    }
    Ok(Some((manifest, mac(key, &bytes))))
}

fn newest_listed(folder: &ItemFolder) -> Result<u64, StoreError> {
    let names = folder.blobs.list(&folder.path("manifest"))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).max().unwrap_or(0))
}
