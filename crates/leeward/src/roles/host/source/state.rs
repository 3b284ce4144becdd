//! What a source worker keeps over restarts of its process, beside the hash files.

use super::audit::AuditState;
use crate::folder;
use leeward_model::{JobId, PointId};
use leeward_wire::message::{DivergentNote, Seeded};
use serde::{Deserialize, Serialize};
use std::{io, path::Path};

/// The kept state, in `source.json`. Missing or damaged, it is as at the beginning: that costs a
/// comparison, never data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceState {
    /// Number of the newest resync request that is complete.
    pub resync_done: u64,
    /// Bytes of blocks sent, before compression.
    pub sent_bytes: u64,
    /// The machine was marked as the item's: one without the mark is another one.
    pub marked: bool,
    /// The job that had the machine shut down, and its final point.
    pub shut_down: Option<(JobId, Option<PointId>)>,
    /// The newest job that had the machine started.
    pub started: Option<JobId>,
    /// What the fenced machine wrote after the last common point.
    pub divergent: Option<DivergentNote>,
    /// The job that had the machine's disks sealed into this host's own store, and what came of
    /// it.
    pub seeded: Option<(JobId, Seeded)>,
    /// Where the comparison that always goes on is.
    pub audit: AuditState,
}

impl SourceState {
    /// Forgets that the machine had left; whether there was anything to forget.
    pub fn came_back(&mut self) -> bool {
        let left = self.shut_down.is_some() || self.divergent.is_some() || self.seeded.is_some();
        (self.shut_down, self.divergent, self.seeded) = (None, None, None);
        left
    }

    /// Reads the state of an item's folder.
    pub fn load(folder: &Path) -> SourceState {
        let bytes = std::fs::read(folder.join("source.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Writes it, whole and durable.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn store(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        folder::write_whole(&folder.join("source.json"), &serde_json::to_vec_pretty(self)?)
    }
}
