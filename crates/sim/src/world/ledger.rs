//! The oracle: what every disk held at every cut, byte by byte, what was promised, and what was
//! found to be otherwise. It knows nothing of how the product does it.

use leeward_model::{DiskNumber, InstanceId, Position, UnixMillis};
use leeward_replica::{ItemReader, View};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The content of a machine's disks.
pub type Image = BTreeMap<DiskNumber, Arc<Vec<u8>>>;

/// A machine's disks at a cut.
#[derive(Clone, Debug)]
pub struct CutImage {
    /// The bytes.
    pub image: Image,
    /// When, in milliseconds of the world's time.
    pub at_ms: u64,
}

/// The present life of a replica: a new one begins when protection has ended.
#[derive(Default)]
struct State {
    /// By the source's clock, which never shows a time twice.
    cuts: BTreeMap<UnixMillis, CutImage>,
    /// Commits that the source was told of.
    promised: Vec<(Position, UnixMillis)>,
    exported: BTreeMap<PathBuf, UnixMillis>,
    instances: BTreeMap<InstanceId, Image>,
    /// Instances that ran for a failover: their work must be kept.
    worked: BTreeSet<InstanceId>,
    may_delete: bool,
    /// Until then a machine may be started although the other side may still run: nobody could
    /// be asked.
    unsure_until_ms: u64,
    violations: Vec<String>,
    points_checked: u64,
}

/// See the module. Clones are the same ledger.
#[derive(Clone, Default)]
pub struct Ledger {
    state: Arc<Mutex<State>>,
}

impl Ledger {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a violation.
    pub fn violated(&self, what: impl Into<String>) {
        self.state().violations.push(what.into());
    }

    /// What was violated so far.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Points whose every byte was compared so far.
    pub fn points_checked(&self) -> u64 {
        self.state().points_checked
    }

    /// A machine was cut.
    pub fn cut(&self, at: UnixMillis, image: Image, at_ms: u64) {
        self.state().cuts.insert(at, CutImage { image, at_ms });
    }

    /// When a cut was, in milliseconds of the world's time.
    pub fn cut_ms(&self, at: UnixMillis) -> Option<u64> {
        self.state().cuts.get(&at).map(|cut| cut.at_ms)
    }

    /// The source was told that its cut is a committed point.
    pub fn promised(&self, position: Position, cut_at: UnixMillis) {
        self.state().promised.push((position, cut_at));
    }

    /// The replica was deleted as wanted: its points are no longer promised.
    pub fn replica_ended(&self) {
        let mut state = self.state();
        state.promised.clear();
        state.may_delete = false;
    }

    /// From now on kept work may go: protection ends without keeping it.
    pub fn may_delete(&self) {
        self.state().may_delete = true;
    }

    /// Until `ms` of the world's time it cannot be known what runs at the other site.
    pub fn unsure_until(&self, ms: u64) {
        let mut state = self.state();
        state.unsure_until_ms = state.unsure_until_ms.max(ms);
    }

    /// Whether it can be known at `ms` what runs at the other site.
    pub fn is_sure(&self, ms: u64) -> bool {
        self.state().unsure_until_ms <= ms
    }

    /// A point is served at a socket.
    pub fn exported(&self, socket: &Path, cut_at: UnixMillis) {
        self.state().exported.insert(socket.into(), cut_at);
    }

    /// Overlays of an instance were made above what is served at a socket.
    pub fn instance_made(&self, instance: InstanceId, socket: &Path) {
        let mut state = self.state();
        if state.instances.contains_key(&instance) {
            return;
        }
        let cut_at = state.exported.get(socket).copied();
        match cut_at.and_then(|at| state.cuts.get(&at)).map(|cut| cut.image.clone()) {
            Some(image) => {
                state.instances.insert(instance, image);
            }
            None => {
                let what = format!("I1: instance {instance} is made from a point nobody cut");
                state.violations.push(what);
            }
        }
    }

    /// An instance began to run.
    pub fn instance_ran(&self, instance: InstanceId, isolated: bool) {
        if !isolated {
            self.state().worked.insert(instance);
        }
    }

    /// A guest of an instance wrote.
    pub fn instance_wrote(&self, instance: InstanceId, disk: DiskNumber, offset: u64, data: &[u8]) {
        let mut state = self.state();
        let image = state.instances.get_mut(&instance).and_then(|image| image.get_mut(&disk));
        if let Some(image) = image {
            let image = Arc::make_mut(image);
            let from = offset as usize;
            if let Some(part) = image.get_mut(from..from + data.len()) {
                part.copy_from_slice(data);
            }
        }
    }

    /// An instance's disks were deleted.
    pub fn instance_deleted(&self, instance: InstanceId) {
        let mut state = self.state();
        state.instances.remove(&instance);
        if state.worked.remove(&instance) && !state.may_delete {
            let what = format!("work lost: the disks of instance {instance}, which ran, are gone");
            state.violations.push(what);
        }
    }

    /// What every instance's disks must hold.
    pub fn instances(&self) -> BTreeMap<InstanceId, Image> {
        self.state().instances.clone()
    }

    /// Compares every point of a replica with what was cut (I1), and looks for every point that
    /// was promised (I3).
    pub fn check_replica(&self, reader: &ItemReader) {
        let (cuts, promised) = {
            let state = self.state();
            (state.cuts.clone(), state.promised.clone())
        };
        let points = &reader.state().points;
        for (position, cut_at) in &promised {
            if !points.iter().any(|point| point.position == *position && point.cut_at == *cut_at) {
                self.violated(format!("I3: the committed point at {position:?} is gone"));
            }
        }
        for point in points {
            let Some(cut) = cuts.get(&point.cut_at) else {
                self.violated(format!("I1: nobody cut point {}", point.id));
                continue;
            };
            if let Err(what) = compare(reader, point.position, &cut.image) {
                self.violated(format!("I1: point {}: {what}", point.id));
            }
            self.state().points_checked += 1;
        }
    }
}

fn compare(reader: &ItemReader, at: Position, image: &Image) -> Result<(), String> {
    let view = View::open(reader, at).map_err(|error| format!("cannot be opened: {error}"))?;
    let sizes: BTreeMap<_, _> = view.disks().iter().map(|disk| (disk.number, disk.size)).collect();
    let wanted: BTreeMap<_, _> =
        image.iter().map(|(number, bytes)| (*number, bytes.len() as u64)).collect();
    if sizes != wanted {
        return Err(format!("its disks are {sizes:?}, they were {wanted:?}"));
    }
    for (number, bytes) in image {
        let read = view.read(*number, 0, bytes.len());
        let read = read.map_err(|error| format!("disk {number} cannot be read: {error}"))?;
        if let Some(offset) = differs(&read, bytes) {
            return Err(format!("disk {number} differs at byte {offset}"));
        }
    }
    Ok(())
}

/// The first byte that differs, if one does.
pub fn differs(seen: &[u8], wanted: &[u8]) -> Option<usize> {
    if seen == wanted {
        return None;
    }
    let common = seen.iter().zip(wanted).position(|(seen, wanted)| seen != wanted);
    Some(common.unwrap_or(seen.len().min(wanted.len())))
}
