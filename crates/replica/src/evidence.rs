//! Evidence: what tests of recovery points showed. Every test adds a record; none is overwritten.
//!
//! The record of the newest test counts, by the time its machine was started, whatever the order
//! in which records arrive: an old failure that is reported late does not hide a newer success.

use crate::{StoreError, folder::ItemFolder, keyring::hex, random::draw, storage::StorageError};
use leeward_model::{Evidence, PointId, Verification};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest picture in bytes: a screen of 4K pixels without compression is 25 MiB.
const PICTURE_BYTES_MAX: usize = 32 << 20;

/// Whether a test passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestOutcome {
    /// The machine booted and its probe passed.
    Passed,
    /// It did not.
    Failed,
}

#[derive(Serialize, Deserialize)]
struct EvidenceNote {
    point: PointId,
    verification: Verification,
}

/// Puts the picture, then the record that names it.
pub(crate) fn put(
    folder: &ItemFolder,
    point: PointId,
    outcome: TestOutcome,
    mut evidence: Evidence,
    picture: Option<&[u8]>,
) -> Result<Evidence, StoreError> {
    let unique = hex(&draw::<8>(folder.random.as_ref()));
    let name = format!("{point}-{unique}");
    evidence.picture = None;
    evidence.picture_hash = None;
    if let Some(picture) = picture {
        if picture.len() > PICTURE_BYTES_MAX {
            return Err(StoreError::refused("a picture", "it is larger than 32 MiB"));
        }
        folder.blobs.put_new(&folder.path(&format!("evidence/{name}.png")), picture)?;
        evidence.picture = Some(name.clone());
        evidence.picture_hash = Some(blake3::hash(picture).to_hex().to_string());
    }
    let verification = match outcome {
        TestOutcome::Passed => Verification::Verified(evidence.clone()),
        TestOutcome::Failed => Verification::Failed(evidence.clone()),
    };
    folder.put_note(&format!("evidence/{name}.json"), &EvidenceNote { point, verification })?;
    Ok(evidence)
}

/// The picture of this name.
pub(crate) fn picture(folder: &ItemFolder, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    match folder.read_whole(&folder.path(&format!("evidence/{name}.png")), PICTURE_BYTES_MAX) {
        Ok(bytes) => Ok(Some(bytes)),
        // A name that no picture of ours has is as good as absent.
        Err(StoreError::Storage(StorageError::Absent { .. } | StorageError::Name { .. })) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What a record of the evidence folder says.
pub(crate) fn of_note(folder: &ItemFolder, name: &str) -> Result<Option<Verification>, StoreError> {
    let note = folder.note::<EvidenceNote>(&format!("evidence/{name}"))?;
    Ok(note.map(|note| note.verification))
}

fn time(verification: &Verification) -> i64 {
    match verification {
        Verification::Untested => i64::MIN,
        Verification::Verified(evidence) | Verification::Failed(evidence) => evidence.booted_at.0,
    }
}

/// What the newest test of `point` showed; `names` are those in the evidence folder.
pub(crate) fn verification(
    folder: &ItemFolder,
    names: &[String],
    point: PointId,
) -> Result<Verification, StoreError> {
    let mut newest = Verification::Untested;
    let prefix = point.to_string();
    for name in names.iter().filter(|name| name.starts_with(&prefix) && name.ends_with(".json")) {
        if let Some(note) = folder.note::<EvidenceNote>(&format!("evidence/{name}"))?
            && note.point == point
            && time(&note.verification) >= time(&newest)
        {
            newest = note.verification;
        }
    }
    Ok(newest)
}

/// What the newest tests showed, of every point that was tested.
pub(crate) fn of_all(folder: &ItemFolder) -> Result<BTreeMap<PointId, Verification>, StoreError> {
    let mut tested: BTreeMap<PointId, Verification> = BTreeMap::new();
    for (_, note) in folder.notes::<EvidenceNote>("evidence", ".json")? {
        let known = tested.entry(note.point).or_default();
        if time(&note.verification) >= time(known) {
            *known = note.verification;
        }
    }
    Ok(tested)
}

pub(crate) fn names(folder: &ItemFolder) -> Result<Vec<String>, StoreError> {
    Ok(folder.blobs.list(&folder.path("evidence"))?)
}

/// Deletes what is kept of a point that is no longer listed.
pub(crate) fn delete(folder: &ItemFolder, point: PointId) -> Result<(), StoreError> {
    let prefix = point.to_string();
    for name in names(folder)?.iter().filter(|name| name.starts_with(&prefix)) {
        folder.blobs.delete(&folder.path(&format!("evidence/{name}")))?;
    }
    Ok(())
}
