//! Pins: what keeps a point's data while somebody reads them, in whatever process.
//!
//! A pin is put before anything is opened, and counts only if its point is still listed after
//! that. Collection lists pins after the removal of points is durable, so one of the two sees the
//! other. A pin that cannot be read stops collection: nothing is deleted on a guess.

use crate::{StoreError, folder::ItemFolder, random::draw_uuid, storage::Put};
use leeward_model::{PointId, Position, UnixMillis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Its id, drawn.
    pub id: Uuid,
    /// The point.
    pub point: PointId,
    /// Where the point lies.
    pub position: Position,
    /// Who pins it: an export, an instance, a job.
    pub who: String,
    /// Why, in words.
    pub why: String,
    /// When, by the pinning process's clock.
    pub created: UnixMillis,
}

/// A pin that a person took off, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpinned {
    /// The pin, as it was.
    pub pin: Pin,
    /// Who took it off.
    pub who: String,
    /// Why, in words.
    pub why: String,
    /// When, by that process's clock.
    pub at: UnixMillis,
}

/// Takes a pin off and leaves a record of that, which is durable first; false when there is no
/// such pin.
pub(crate) fn take_off(
    folder: &ItemFolder,
    id: Uuid,
    who: &str,
    why: &str,
    at: UnixMillis,
) -> Result<bool, StoreError> {
    let Some(pin) = folder.note::<Pin>(&format!("pins/{id}"))? else { return Ok(false) };
    let record = Unpinned { pin, who: who.into(), why: why.into(), at };
    // There already when an earlier call was cut short: the first reason stays.
    let _: Put = folder.put_note(&format!("unpinned/{id}"), &record)?;
    delete(folder, id)?;
    Ok(true)
}

pub(crate) fn taken_off(folder: &ItemFolder) -> Result<Vec<Unpinned>, StoreError> {
    let mut all: Vec<Unpinned> =
        folder.notes("unpinned", "")?.into_iter().map(|(_, record)| record).collect();
    all.sort_by_key(|record| record.at);
    Ok(all)
}

/// Pins a point; returns once the pin is durable and `listed`, asked after that, still has the
/// point. Collection lists pins after removals are durable: one of the two sees the other.
pub(crate) fn put(
    folder: &ItemFolder,
    (point, position): (PointId, Position),
    (who, why): (&str, &str),
    created: UnixMillis,
    listed: impl FnOnce() -> Result<(), StoreError>,
) -> Result<Pin, StoreError> {
    let id = draw_uuid(folder.random.as_ref());
    let pin = Pin { id, point, position, who: who.into(), why: why.into(), created };
    match folder.put_note(&format!("pins/{id}"), &pin)? {
        Put::Created => {}
        Put::Exists => return Err(StoreError::refused("a pin", "its id was drawn before")),
    }
    if let Err(error) = listed() {
        delete(folder, id)?;
        return Err(error);
    }
    Ok(pin)
}

pub(crate) fn delete(folder: &ItemFolder, pin: Uuid) -> Result<(), StoreError> {
    folder.delete(&format!("pins/{pin}"))
}

pub(crate) fn list(folder: &ItemFolder) -> Result<Vec<Pin>, StoreError> {
    Ok(folder.notes("pins", "")?.into_iter().map(|(_, pin)| pin).collect())
}
