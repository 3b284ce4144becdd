//! Points of this host's store that somebody serves by hand (`leeward store serve`): seen by the
//! notes that such a process leaves in the store, shown on the board, and told to the config server
//! when they can be written. Serving is that process's own doing.

use super::{Host, notes};
use crate::store::record;
use leeward_model::{ItemId, UnixMillis};
use leeward_replica::{ItemReader, ServedAs};
use leeward_wire::message::{HostNote, NoteKind, ServedPoint};
use std::collections::BTreeMap;

/// What is served by hand; what was left by processes that ended is noted as over.
pub fn served(reader: &ItemReader, now: UnixMillis) -> Vec<ServedPoint> {
    let noted = reader.served().unwrap_or_else(|error| {
        tracing::warn!(item = %reader.item(), %error, "could not see what is served by hand");
        Vec::new()
    });
    let mut open = Vec::new();
    for served in noted {
        if record::is_stale(&served.process) {
            // If it fails, it is tried again at the next look.
            let _ = reader.serve_ends(&served, now, "its process has ended");
            continue;
        }
        let writable = match served.served_as {
            ServedAs::Writable => true,
            ServedAs::ReadOnly | ServedAs::Restored { .. } => false,
        };
        let (id, point, since) = (served.id, served.point, served.since);
        open.push(ServedPoint { id, point, who: record::who(&served.process), since, writable });
    }
    open
}

/// Points that are served for writing by hand, of which it was told.
#[derive(Default)]
pub struct ByHand(BTreeMap<uuid::Uuid, ServedPoint>);

impl ByHand {
    /// Tells of those that began and of those that ended, once each: the note's id is drawn by
    /// whoever serves.
    pub fn tell(&mut self, host: &Host, item: ItemId, name: &str) {
        let items = host.board.items_seen().into_iter();
        let seen = items.filter(|seen| seen.item == item).find_map(|seen| seen.target);
        let writable = seen.into_iter().flat_map(|seen| seen.served).filter(|one| one.writable);
        let now: BTreeMap<_, _> = writable.map(|served| (served.id, served)).collect();
        let before = std::mem::take(&mut self.0);
        for (id, served) in now.iter().filter(|(id, _)| !before.contains_key(id)) {
            let (point, who) = (served.point, &served.who);
            let text = format!(
                "a writable serve of point {point} of {name} is open, by {who}: a machine may run \
                 from it that nothing here knows or fences"
            );
            note_by_hand(host, (item, name), NoteKind::ServedWritable, *id, text);
        }
        for (id, served) in before.iter().filter(|(id, _)| !now.contains_key(id)) {
            let (point, who) = (served.point, &served.who);
            let text = format!("the writable serve of point {point} of {name} by {who} has ended");
            let id = uuid::Uuid::from_u128(id.as_u128() ^ 1);
            note_by_hand(host, (item, name), NoteKind::ServeEnded, id, text);
        }
        self.0 = now;
    }
}

fn note_by_hand(
    host: &Host,
    (item, name): (ItemId, &str),
    kind: NoteKind,
    id: uuid::Uuid,
    text: String,
) {
    let (at, object) = (host.wall.now(), name.to_owned());
    let note = HostNote { id, at, kind, item: Some(item), object, text };
    if let Err(error) = notes::note_add(&host.folder, &note) {
        tracing::warn!(%item, %error, "could not note what is served by hand");
    }
}
