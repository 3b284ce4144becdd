//! Turns what people type into an item, a point, a disk: by name, by id, or `latest`.

use super::{Failure, place::PlaceOptions, problem};
use leeward_model::{Code, DiskEntry, ItemId, PointId, Site};
use leeward_replica::{ItemReader, PointRecord, Store, View};

/// An item of a store.
pub(super) struct Known {
    /// Its label, or the machine's name at the newest point; empty while there is none.
    pub(super) name: String,
    /// Its committed state.
    pub(super) reader: ItemReader,
}

/// All items, by name.
///
/// # Errors
/// Those of the store, for the first item that cannot be opened.
pub(super) fn items(place: &PlaceOptions, store: &Store) -> Result<Vec<Known>, Failure> {
    let ids = store.items().map_err(|error| place.failed("cannot be listed", &error))?;
    let mut known = Vec::new();
    for id in ids {
        known.push(open(place, store, id)?);
    }
    known.sort_by(|a, b| (&a.name, a.reader.item()).cmp(&(&b.name, b.reader.item())));
    Ok(known)
}

fn open(place: &PlaceOptions, store: &Store, id: ItemId) -> Result<Known, Failure> {
    let fail = |error| place.failed(&format!("cannot open item {id}"), &error);
    let reader = store.item_read(id).map_err(fail)?;
    let newest = reader.newest_point().map(|point| point.id);
    let label = reader.label().map_err(fail)?;
    let name = match (label, newest) {
        (Some(label), _) => label,
        (None, Some(point)) => {
            // Which site the store stands for is only for display, and nothing here shows it.
            let found = reader.point(point, Site::Recovery).map_err(fail)?;
            found.and_then(|(_, machine)| machine).map_or_else(String::new, |machine| machine.name)
        }
        (None, None) => String::new(),
    };
    Ok(Known { name, reader })
}

/// The item that `text` names: an id, or the name of its machine.
///
/// # Errors
/// `NOT_FOUND` when there is none; `BAD_REQUEST` when there are several of that name.
pub(super) fn item(place: &PlaceOptions, store: &Store, text: &str) -> Result<Known, Failure> {
    let what = || format!("item {text} of the store in {}", place.store);
    if let Ok(id) = text.parse::<ItemId>() {
        return open(place, store, id);
    }
    let mut found = items(place, store)?;
    let all: Vec<String> = found.iter().map(Known::label).collect();
    found.retain(|known| known.name == text);
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => {
            let cause = format!("the store has these items: {}", all.join(", "));
            Err(problem(Code::NOT_FOUND, what(), cause))
        }
        _ => {
            let ids: Vec<_> = found.iter().map(|known| known.reader.item().to_string()).collect();
            let cause = format!("several items have that name, use an id: {}", ids.join(", "));
            Err(problem(Code::BAD_REQUEST, what(), cause))
        }
    }
}

impl Known {
    /// What to call it: its name, or its id while it has none.
    pub(super) fn label(&self) -> String {
        match self.name.as_str() {
            "" => self.reader.item().to_string(),
            name => name.to_owned(),
        }
    }

    /// The replicated point that `text` names: `latest`, an id, or its name for people.
    ///
    /// # Errors
    /// `NO_POINT`.
    pub(super) fn point(&self, text: &str) -> Result<PointRecord, Failure> {
        let points = &self.reader.state().points;
        let found = match text {
            "latest" => self.reader.newest_point(),
            _ => {
                let id = text.parse::<PointId>().ok();
                points.iter().find(|point| Some(point.id) == id || point.name == text)
            }
        };
        let what = || format!("point {text} of {}", self.label());
        if let Some(point) = found {
            return Ok(point.clone());
        }
        let kept = self.reader.kept().map_err(|error| Box::new(error.problem(what())))?;
        let kept = kept.iter().find(|work| work.id.to_string() == text || work.name == text);
        if let Some(work) = kept {
            let files: Vec<_> = work.files.iter().map(|file| file.path.clone()).collect();
            let cause = format!("its work is not in the store but in {}", files.join(", "));
            return Err(problem(Code::NO_POINT, what(), cause));
        }
        let cause =
            format!("the item has {} points; `leeward store points` lists them", points.len());
        Err(problem(Code::NO_POINT, what(), cause))
    }

    /// Opens the disks at a point.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) fn view(&self, point: &PointRecord) -> Result<View, Failure> {
        let what = || format!("point {} of {} cannot be read", point.id, self.label());
        View::open(&self.reader, point.position).map_err(|error| Box::new(error.problem(what())))
    }
}

/// The disk that `text` names: by id, serial number or number.
///
/// # Errors
/// `NOT_FOUND`, naming those that there are.
pub(super) fn disk(disks: &[DiskEntry], text: &str) -> Result<DiskEntry, Failure> {
    let by = |test: &dyn Fn(&DiskEntry) -> bool| disks.iter().find(|disk| test(disk)).cloned();
    by(&|disk| disk.id == text)
        .or_else(|| by(&|disk| !text.is_empty() && disk.serial == text))
        .or_else(|| by(&|disk| disk.number.to_string() == text))
        .ok_or_else(|| {
            let all: Vec<_> = disks.iter().map(|disk| disk.id.as_str()).collect();
            let cause = format!("the point has these disks: {}", all.join(", "));
            problem(Code::NOT_FOUND, format!("disk {text}"), cause)
        })
}
