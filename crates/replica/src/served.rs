//! Notes of points that somebody serves or restores by hand: who, when, which, and until when. A
//! note is there before anything is opened, and is moved among the ended ones at the end, so that
//! whoever owns the store sees that a machine may run from a point that no job made it from.
//!
//! Whether the process of a note still lives is not known here: the note says which one it is.

use crate::{
    ItemReader, PointReader, StoreError, folder::ItemFolder, random::draw_uuid, storage::Put,
};
use leeward_model::{DiskNumber, PointId, UnixMillis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What is done with a point by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "use", rename_all = "kebab-case")]
pub enum ServedAs {
    /// A disk is served, and cannot be written.
    ReadOnly,
    /// A disk is served, and what is written goes to an overlay beside it.
    Writable,
    /// A disk is written to a new file.
    Restored {
        /// The file.
        target: String,
    },
}

/// The process that does it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServingProcess {
    /// The machine's name.
    pub machine: String,
    /// Its boot id.
    pub boot: String,
    /// The process's number.
    pub pid: u32,
    /// When it started, in clock ticks since that boot: a number that is used again is another
    /// process.
    pub start_ticks: u64,
    /// The user, for people.
    pub user: String,
}

/// One use of a point by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Its id, drawn.
    pub id: Uuid,
    /// The point.
    pub point: PointId,
    /// The disk.
    pub disk: DiskNumber,
    /// What is done.
    #[serde(flatten)]
    pub served_as: ServedAs,
    /// Who does it.
    pub process: ServingProcess,
    /// Since when, by that process's clock.
    pub since: UnixMillis,
}

/// A use that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeEnded {
    /// What it was.
    pub served: Served,
    /// When it ended, or was seen to have ended, by the clock of whoever noted that.
    pub ended: UnixMillis,
    /// How it ended, in words.
    pub how: String,
}

impl PointReader {
    /// Notes a use of a point, durably, before it begins. `served.id` is drawn here.
    ///
    /// # Errors
    /// [`StoreError::Storage`], as of a store that cannot be written.
    pub fn serve_begins(&self, served: Served) -> Result<Served, StoreError> {
        begins(self.folder(), served)
    }

    /// As [`ItemReader::serve_ends`].
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn serve_ends(&self, served: &Served, at: UnixMillis, how: &str) -> Result<(), StoreError> {
        ends(self.folder(), served, at, how)
    }
}

impl ItemReader {
    /// As [`PointReader::serve_begins`].
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn serve_begins(&self, served: Served) -> Result<Served, StoreError> {
        begins(&self.folder, served)
    }

    /// Notes that a use is over; who did what and until when stays in the store. Again is fine.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn serve_ends(&self, served: &Served, at: UnixMillis, how: &str) -> Result<(), StoreError> {
        ends(&self.folder, served, at, how)
    }

    /// Uses that were begun and whose end was not noted, in the order of time.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn served(&self) -> Result<Vec<Served>, StoreError> {
        let mut all: Vec<Served> = notes(&self.folder, "served")?;
        all.sort_by_key(|served| (served.since, served.id));
        Ok(all)
    }

    /// Uses that are over, in the order of their ends.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn serves_ended(&self) -> Result<Vec<ServeEnded>, StoreError> {
        let mut all: Vec<ServeEnded> = notes(&self.folder, "serve-ended")?;
        all.sort_by_key(|ended| (ended.ended, ended.served.id));
        Ok(all)
    }
}

fn begins(folder: &ItemFolder, served: Served) -> Result<Served, StoreError> {
    let served = Served { id: draw_uuid(folder.random.as_ref()), ..served };
    match folder.put_note(&format!("served/{}", served.id), &served)? {
        Put::Created => Ok(served),
        Put::Exists => Err(StoreError::refused("a note", "its id was drawn before")),
    }
}

fn ends(folder: &ItemFolder, served: &Served, at: UnixMillis, how: &str) -> Result<(), StoreError> {
    let ended = ServeEnded { served: served.clone(), ended: at, how: how.to_owned() };
    // There already when an earlier call was cut short: the first end stays.
    let _: Put = folder.put_note(&format!("serve-ended/{}", served.id), &ended)?;
    folder.delete(&format!("served/{}", served.id))
}

fn notes<T: serde::de::DeserializeOwned>(
    folder: &ItemFolder,
    part: &str,
) -> Result<Vec<T>, StoreError> {
    Ok(folder.notes(part, "")?.into_iter().map(|(_, note)| note).collect())
}
