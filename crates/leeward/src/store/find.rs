//! Turns what people type into an item, a point, a disk: by name, by id, or `latest`.

use super::{Failure, place::PlaceOptions, problem};
use leeward_model::{Code, DiskEntry, ItemId, PointId};
use leeward_replica::{ItemReader, PointReader, PointRecord, Store, StoreError, View};

/// An item of a store.
pub(super) struct Known {
    /// Its label, or the machine's name at the newest point; empty while there is none.
    pub(super) name: String,
    /// Its committed state.
    pub(super) reader: ItemReader,
}

/// An item of which one point is wanted: its lists are not read.
pub(super) struct Lean {
    /// As of [`Known`].
    name: String,
    /// Its points, looked up.
    pub(super) reader: PointReader,
}

/// All items, by name.
///
/// # Errors
/// Those of the store, for the first item that cannot be opened.
pub(super) fn items(place: &PlaceOptions, store: &Store) -> Result<Vec<Known>, Failure> {
    lean_items(place, store)?.into_iter().map(|lean| lean.into_known(place)).collect()
}

fn lean_items(place: &PlaceOptions, store: &Store) -> Result<Vec<Lean>, Failure> {
    let ids = store.items().map_err(|error| place.failed("cannot be listed", &error))?;
    let mut known = Vec::new();
    for id in ids {
        known.push(open(place, store, id)?);
    }
    known.sort_by(|a, b| (&a.name, a.reader.item()).cmp(&(&b.name, b.reader.item())));
    Ok(known)
}

fn open(place: &PlaceOptions, store: &Store, id: ItemId) -> Result<Lean, Failure> {
    let fail = |error| place.failed(&format!("cannot open item {id}"), &error);
    let mut reader = store.point_read(id).map_err(fail)?;
    let name = name_of(&mut reader).map_err(fail)?;
    Ok(Lean { name, reader })
}

fn name_of(reader: &mut PointReader) -> Result<String, StoreError> {
    if let Some(label) = reader.label()? {
        return Ok(label);
    }
    let newest = reader.newest_point()?;
    let machine = newest.map(|point| reader.machine(&point)).transpose()?;
    Ok(machine.map_or_else(String::new, |machine| machine.name))
}

/// The item that `text` names: an id, or the name of its machine.
///
/// # Errors
/// `NOT_FOUND` when there is none; `BAD_REQUEST` when there are several of that name.
pub(super) fn item(place: &PlaceOptions, store: &Store, text: &str) -> Result<Known, Failure> {
    lean_item(place, store, text)?.into_known(place)
}

/// As [`item`], for whoever wants one point of it.
///
/// # Errors
/// As [`item`].
pub(super) fn lean_item(place: &PlaceOptions, store: &Store, text: &str) -> Result<Lean, Failure> {
    let what = || format!("item {text} of the store in {}", place.store);
    if let Ok(id) = text.parse::<ItemId>() {
        return open(place, store, id);
    }
    let mut found = lean_items(place, store)?;
    let all: Vec<String> = found.iter().map(|lean| label(&lean.name, lean.reader.item())).collect();
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

/// What to call an item: its name, or its id while it has none.
fn label(name: &str, id: ItemId) -> String {
    if name.is_empty() { id.to_string() } else { name.to_owned() }
}

impl Lean {
    /// What to call it: see [`label`].
    fn label(&self) -> String {
        label(&self.name, self.reader.item())
    }

    fn into_known(self, place: &PlaceOptions) -> Result<Known, Failure> {
        let what = format!("cannot open item {}", self.reader.item());
        let reader = self.reader.into_whole().map_err(|error| place.failed(&what, &error))?;
        Ok(Known { name: self.name, reader })
    }

    /// As [`Known::point`]. Only a name, and what is wrong, is looked for in the lists.
    ///
    /// # Errors
    /// `NO_POINT`.
    pub(super) fn point(&mut self, text: &str) -> Result<PointRecord, Failure> {
        let label = self.label();
        let fail = |error: StoreError| Box::new(error.problem(format!("point {text} of {label}")));
        let found = match (text, text.parse::<PointId>()) {
            ("latest", _) => self.reader.newest_point().map_err(fail)?,
            (_, Ok(id)) => self.reader.point(id).map_err(fail)?,
            (_, Err(_)) => None,
        };
        match found {
            Some(point) => Ok(point),
            None => listed_point(self.reader.whole().map_err(fail)?, &label, text),
        }
    }

    /// Opens the disks at a point.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) fn view(&mut self, point: &PointRecord) -> Result<View, Failure> {
        let what = format!("point {} of {} cannot be read", point.id, self.label());
        self.reader.view(point).map_err(|error| Box::new(error.problem(what)))
    }
}

impl Known {
    /// What to call it: see [`label`].
    pub(super) fn label(&self) -> String {
        label(&self.name, self.reader.item())
    }

    /// The replicated point that `text` names: `latest`, an id, or its name for people.
    ///
    /// # Errors
    /// `NO_POINT`.
    pub(super) fn point(&self, text: &str) -> Result<PointRecord, Failure> {
        listed_point(&self.reader, &self.label(), text)
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

fn listed_point(reader: &ItemReader, label: &str, text: &str) -> Result<PointRecord, Failure> {
    let points = &reader.state().points;
    let found = match text {
        "latest" => reader.newest_point(),
        _ => {
            let id = text.parse::<PointId>().ok();
            points.iter().find(|point| Some(point.id) == id || point.name == text)
        }
    };
    let what = || format!("point {text} of {label}");
    if let Some(point) = found {
        return Ok(point.clone());
    }
    let kept = reader.kept().map_err(|error| Box::new(error.problem(what())))?;
    let kept = kept.iter().find(|work| work.id.to_string() == text || work.name == text);
    if let Some(work) = kept {
        let files: Vec<_> = work.files.iter().map(|file| file.path.clone()).collect();
        let cause = format!("its work is not in the store but in {}", files.join(", "));
        return Err(problem(Code::NO_POINT, what(), cause));
    }
    let cause = format!("the item has {} points; `leeward store points` lists them", points.len());
    Err(problem(Code::NO_POINT, what(), cause))
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
