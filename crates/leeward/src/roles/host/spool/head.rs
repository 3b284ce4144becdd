//! The spool's own note: which deltas wait, on which place of the target's log they build, and for
//! whom they are. Two files that are written in turn: a torn one leaves the other.

use leeward_capture::Folder;
use leeward_model::{Branch, Epoch, HostId, ItemId, Position};
use serde::{Deserialize, Serialize};
use std::io;

const DIGEST_BYTES: usize = 32;
const NOTE_BYTES_MAX: u64 = 64 << 10;
const NAMES: [&str; 2] = ["head-0", "head-1"];

/// Whose data they are, and for which store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolOwner {
    /// The item.
    pub item: ItemId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The branch that is written.
    pub branch: Branch,
    /// The store's host.
    pub target: HostId,
    /// Number of the data key that they are sealed with.
    pub key_version: u32,
}

/// A commit that was asked for and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Where the target is if it did it.
    pub at: Position,
    /// Whether the first delta that waits is at the target then, whole.
    pub whole: bool,
}

/// The note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Grows with every writing: the higher one counts.
    pub generation: u64,
    /// Drawn anew whenever a spool begins: each delta names it.
    pub chain: uuid::Uuid,
    /// Whose it is.
    pub owner: SpoolOwner,
    /// Number of the first delta that waits. Numbers are never used again.
    pub first: u64,
    /// Where the target is known to be.
    pub confirmed: Position,
    /// Where it may be instead.
    pub asked: Option<Asked>,
}

fn read(folder: &dyn Folder, name: &str) -> io::Result<Option<Head>> {
    let Some(file) = folder.open(name)? else { return Ok(None) };
    let len = file.len()?;
    if !(DIGEST_BYTES as u64..=NOTE_BYTES_MAX).contains(&len) {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], done as u64)? {
            0 => return Ok(None),
            count => done += count,
        }
    }
    let (digest, text) = bytes.split_at(DIGEST_BYTES);
    let whole = blake3::hash(text).as_bytes()[..] == *digest;
    Ok(if whole { serde_json::from_slice(text).ok() } else { None })
}

impl Head {
    /// The newest note; none when there is none that is whole.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn load(folder: &dyn Folder) -> io::Result<Option<Head>> {
        let [one, other] = NAMES.map(|name| read(folder, name));
        let heads = [one?, other?].into_iter().flatten();
        Ok(heads.max_by_key(|head| head.generation))
    }

    /// Writes it, durable, beside the one before.
    ///
    /// # Errors
    /// Those of the file system; then the former one counts, or this one.
    pub fn store(&mut self, folder: &dyn Folder) -> io::Result<()> {
        self.generation += 1;
        let text = serde_json::to_vec(self)?;
        let mut bytes = blake3::hash(&text).as_bytes().to_vec();
        bytes.extend_from_slice(&text);
        let file = folder.create(NAMES[(self.generation % 2) as usize])?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        folder.sync()
    }
}
