//! What happened on this host and is to be an event at the config server: kept in files until that
//! has taken it. Any process of the host may add one; the role's process sends them.

use crate::folder;
use leeward_wire::message::{HostNote, NOTES_MAX};
use std::{
    io,
    path::{Path, PathBuf},
};
use uuid::Uuid;

fn notes_folder(data: &Path) -> PathBuf {
    data.join("notes")
}

/// Adds a note, durably, to the host whose folder is `data`.
///
/// # Errors
/// Those of the file system.
pub fn note_add(data: &Path, note: &HostNote) -> io::Result<()> {
    let notes = notes_folder(data);
    std::fs::create_dir_all(&notes)?;
    // Names sort by time.
    let name = format!("{:020}-{}.json", note.at.0.max(0), note.id);
    folder::write_whole(&notes.join(name), &serde_json::to_vec_pretty(note)?)
}

/// The oldest notes, at most as many as one message takes. What cannot be read is left alone.
pub fn notes_read(data: &Path) -> Vec<HostNote> {
    let Ok(entries) = std::fs::read_dir(notes_folder(data)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect();
    paths.sort();
    let notes = paths.iter().filter_map(|path| {
        let bytes = std::fs::read(path).ok()?;
        serde_json::from_slice(&bytes).ok()
    });
    notes.take(NOTES_MAX).collect()
}

/// Forgets notes that the config server has taken. One whose file stays comes again, and is known
/// there.
pub fn notes_drop(data: &Path, ids: &[Uuid]) {
    for note in notes_read(data).iter().filter(|note| ids.contains(&note.id)) {
        let name = format!("{:020}-{}.json", note.at.0.max(0), note.id);
        let _ = std::fs::remove_file(notes_folder(data).join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::UnixMillis;
    use leeward_wire::message::NoteKind;

    #[test]
    fn notes_stay_in_order_until_they_are_taken_and_come_by_the_message() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(notes_read(data.path()), []);
        let note = |at: u128| HostNote {
            id: Uuid::from_u128(at),
            at: UnixMillis(at as i64),
            kind: NoteKind::StartedByHand,
            item: None,
            object: "web01".into(),
            text: "it was started".into(),
        };
        let all = NOTES_MAX as u128 + 1;
        for at in (1..=all).rev() {
            note_add(data.path(), &note(at)).unwrap();
        }

        let first = notes_read(data.path());
        assert_eq!(first.len(), NOTES_MAX);
        assert_eq!(first[0], note(1));
        notes_drop(data.path(), &first.iter().map(|note| note.id).collect::<Vec<_>>());

        assert_eq!(notes_read(data.path()), [note(all)]);
    }
}
