//! Kept work: what a machine wrote after a recovery point, as files beside the store.
//!
//! A record names the files and the place they sit on; the files themselves are their owner's.
//! Records are put once and never changed.

use crate::{StoreError, folder::ItemFolder, storage::Put};
use leeward_model::{
    DiskEntry, DiskFormat, DiskNumber, MachineSpec, PointId, PointKind, PointOrigin, Position,
    UnixMillis,
};
use serde::{Deserialize, Serialize};

/// A file that holds the work of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    /// The disk.
    pub disk: DiskNumber,
    /// Absolute path on the store's host.
    pub path: String,
    /// Its format; a qcow2 overlay sits on the record's position.
    pub format: DiskFormat,
}

/// Kept work, listed among the points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// The point's id.
    pub id: PointId,
    /// The point's name, for example `before-change-2026-11-21T03:04:05Z`.
    pub name: String,
    /// [`PointOrigin::BeforeChange`] or [`PointOrigin::Divergent`].
    pub origin: PointOrigin,
    /// The place that the files sit on; its data are kept as long as the record.
    pub position: Position,
    /// How consistent the work is.
    pub kind: PointKind,
    /// When the machine was stopped, by its host's clock.
    pub cut_at: UnixMillis,
    /// When the record was made, by the store's clock.
    pub received_at: UnixMillis,
    /// Disks at that time.
    pub disks: Vec<DiskEntry>,
    /// The files.
    pub files: Vec<KeptFile>,
    /// The machine, when it is known.
    pub machine: Option<MachineSpec>,
}

pub(crate) fn put(folder: &ItemFolder, record: &KeptRecord) -> Result<(), StoreError> {
    let rest = format!("kept/{}.json", record.id);
    match folder.put_note(&rest, record)? {
        Put::Created => Ok(()),
        Put::Exists if folder.note::<KeptRecord>(&rest)?.as_ref() == Some(record) => Ok(()),
        Put::Exists => Err(StoreError::refused("kept work", "its point id is in use")),
    }
}

pub(crate) fn delete(folder: &ItemFolder, id: PointId) -> Result<(), StoreError> {
    folder.delete(&format!("kept/{id}.json"))
}

pub(crate) fn list(folder: &ItemFolder) -> Result<Vec<KeptRecord>, StoreError> {
    Ok(folder.notes("kept", ".json")?.into_iter().map(|(_, record)| record).collect())
}
