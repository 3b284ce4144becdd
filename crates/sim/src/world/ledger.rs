//! The oracle: what every disk held at every cut, byte by byte, what was promised, and what was
//! found to be otherwise. It knows nothing of how the product does it.

use super::{MACHINE, differs};
use leeward_fabric::{MachineRef, memory::MemoryWorld};
use leeward_model::{DiskNumber, InstanceId, ItemId, Position, Site, UnixMillis};
use leeward_replica::{ItemReader, View, storage::Seeded};
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

/// A machine made from a point.
#[derive(Clone, Debug)]
pub struct Made {
    /// Where.
    pub site: Site,
    /// What its disks must hold now.
    pub image: Image,
    /// What they held before its guest wrote.
    base: Image,
}

/// The first start of a machine made from a point that is nobody's test.
#[derive(Clone, Debug)]
struct Start {
    at_ms: u64,
    base: Image,
    /// What the machine at the other site held then, if there was one.
    left: Option<Image>,
}

/// A host, whatever it is for at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPlace {
    /// The recovery site's.
    Recovery,
    /// The primary site's first one.
    #[default]
    First,
    /// The primary site's other one.
    Spare,
}

/// All hosts.
pub const PLACES: [HostPlace; 3] = [HostPlace::Recovery, HostPlace::First, HostPlace::Spare];

/// A commit that a source was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The host of the store.
    pub place: HostPlace,
    /// Where the store may be instead, as long as that was not looked at: disks that lie still are
    /// read for either site's.
    pub or: Option<HostPlace>,
    /// The point's place in the log.
    pub position: Position,
    /// Its time, by which the cut is known.
    pub cut_at: UnixMillis,
}

/// What is known of the machine of a site, whoever it belongs to.
#[derive(Default)]
struct SiteState {
    /// Its name there, once it is known to have another one.
    name: Option<String>,
    /// Until then a machine may be started at the other site although this one's may still run:
    /// nobody could be asked.
    unsure_until_ms: u64,
    /// The instances that became the host's machine, in order; some were handed over.
    settled: Vec<InstanceId>,
    /// Counts what makes its disks other disks, or lets a guest write them.
    moves: u64,
    /// What its disks held when they were last looked at, and the count then.
    still: Option<(u64, Image)>,
}

/// The present life of a replica: a new one begins when protection has ended.
#[derive(Default)]
struct State {
    /// By the source's clock, which never shows a time twice.
    cuts: BTreeMap<UnixMillis, CutImage>,
    promised: Vec<Promise>,
    /// What was promised of replicas whose protection ended, and which are kept.
    kept: BTreeMap<ItemId, Vec<Promise>>,
    /// The present host of the primary site.
    primary_place: HostPlace,
    /// What is known of the machine on the primary site's other host.
    left: SiteState,
    /// Every name that the machine ever had.
    names: BTreeSet<String>,
    exported: BTreeMap<PathBuf, UnixMillis>,
    instances: BTreeMap<InstanceId, Made>,
    /// Instances that ran for a failover: their work must be kept.
    worked: BTreeSet<InstanceId>,
    starts: Vec<Start>,
    live_at: Option<Site>,
    primary: SiteState,
    recovery: SiteState,
    may_delete: bool,
    violations: Vec<String>,
    points_checked: u64,
}

impl State {
    fn site(&mut self, site: Site) -> &mut SiteState {
        match site {
            Site::Primary => &mut self.primary,
            Site::Recovery => &mut self.recovery,
        }
    }

    fn place(&self, site: Site) -> HostPlace {
        match site {
            Site::Primary => self.primary_place,
            Site::Recovery => HostPlace::Recovery,
        }
    }
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
    pub fn cut(&self, at: UnixMillis, mut image: Image, at_ms: u64) {
        let mut state = self.state();
        let before = state.cuts.range(..at).next_back();
        for (number, bytes) in &mut image {
            // What did not change is kept once.
            let same = before.and_then(|(_, cut)| cut.image.get(number));
            if let Some(same) = same.filter(|same| *same == bytes) {
                *bytes = Arc::clone(same);
            }
        }
        state.cuts.insert(at, CutImage { image, at_ms });
    }

    /// When a cut was, in milliseconds of the world's time.
    pub fn cut_ms(&self, at: UnixMillis) -> Option<u64> {
        self.state().cuts.get(&at).map(|cut| cut.at_ms)
    }

    /// The source was told that its cut is a committed point of the store of `site`.
    pub fn promised(&self, site: Site, position: Position, cut_at: UnixMillis) {
        let mut state = self.state();
        let place = state.place(site);
        state.promised.push(Promise { place, or: None, position, cut_at });
    }

    /// As [`Self::promised`], of a store of one of both sites.
    pub fn promised_somewhere(&self, position: Position, cut_at: UnixMillis) {
        let mut state = self.state();
        let (place, or) = (state.place(Site::Primary), Some(state.place(Site::Recovery)));
        state.promised.push(Promise { place, or, position, cut_at });
    }

    /// Finds out whether what was promised of some store was promised of the one at `place`.
    fn promises_settle(&self, place: HostPlace, reader: &ItemReader) {
        let points = &reader.state().points;
        for promise in &mut self.state().promised {
            let mine = promise.place == place || promise.or == Some(place);
            let there = points
                .iter()
                .any(|point| point.position == promise.position && point.cut_at == promise.cut_at);
            match (promise.or, mine, there) {
                (Some(_), true, true) => (promise.place, promise.or) = (place, None),
                (Some(or), true, false) => {
                    let other = if promise.place == place { or } else { promise.place };
                    (promise.place, promise.or) = (other, None);
                }
                _ => {}
            }
        }
    }

    /// Whether the store of `site` must have points.
    pub fn has_promised(&self, site: Site) -> bool {
        let state = self.state();
        let place = state.place(site);
        state.promised.iter().any(|promise| promise.place == place && promise.or.is_none())
    }

    /// The primary site's hosts change places.
    pub fn hosts_swap(&self) {
        let state = &mut *self.state();
        state.primary_place = match state.primary_place {
            HostPlace::First => HostPlace::Spare,
            HostPlace::Spare | HostPlace::Recovery => HostPlace::First,
        };
        std::mem::swap(&mut state.primary, &mut state.left);
        // What happened there meanwhile was not noted.
        state.primary.still = None;
    }

    /// The present host of a site.
    pub fn place(&self, site: Site) -> HostPlace {
        self.state().place(site)
    }

    /// The primary site's other host.
    pub fn place_left(&self) -> HostPlace {
        match self.state().primary_place {
            HostPlace::First => HostPlace::Spare,
            HostPlace::Spare | HostPlace::Recovery => HostPlace::First,
        }
    }

    /// As [`Self::is_superseded`], of the primary site's other host.
    pub fn is_superseded_left(&self) -> bool {
        !self.state().left.settled.is_empty()
    }

    /// The machine on the primary site's other host.
    pub fn machine_left(&self) -> MachineRef {
        let name = self.state().left.name.clone();
        MachineRef::Owned(name.unwrap_or_else(|| MACHINE.to_owned()))
    }

    /// The replica's protection has ended and it is kept.
    pub fn replica_kept(&self, item: ItemId) {
        let mut state = self.state();
        let mut promised = std::mem::take(&mut state.promised);
        // Whose store it was is not found out any more.
        promised.retain(|promise| promise.or.is_none());
        state.kept.insert(item, promised);
        state.may_delete = false;
    }

    /// What was promised of every replica that was kept.
    pub fn kept(&self) -> BTreeMap<ItemId, Vec<Promise>> {
        self.state().kept.clone()
    }

    /// The replica was deleted as wanted: its points are no longer promised.
    pub fn replica_ended(&self) {
        let mut state = self.state();
        state.promised.clear();
        state.may_delete = false;
    }

    /// Protection does not end after all.
    pub fn may_not_delete(&self) {
        self.state().may_delete = false;
    }

    /// From now on kept work may go: protection ends without keeping it.
    pub fn may_delete(&self) {
        self.state().may_delete = true;
    }

    /// The machine has this name at `site` from now on.
    pub fn name_set(&self, site: Site, name: &str) {
        let mut state = self.state();
        state.names.insert(name.to_owned());
        let known = state.site(site);
        if known.name.as_deref().unwrap_or(MACHINE) != name {
            known.name = Some(name.to_owned());
            (known.moves, known.settled) = (known.moves + 1, Vec::new());
        }
    }

    /// The name of the machine at `site`.
    pub fn name(&self, site: Site) -> String {
        let name = self.state().site(site).name.clone();
        name.unwrap_or_else(|| MACHINE.to_owned())
    }

    /// The machine of `site`.
    pub fn machine(&self, site: Site) -> MachineRef {
        MachineRef::Owned(self.name(site))
    }

    /// How many machines of the item run, on all hosts and under all its names.
    pub fn writers(&self, machines: &MemoryWorld) -> usize {
        let state = self.state();
        let names = state.names.iter().map(String::as_str).filter(|name| *name != MACHINE);
        names.chain([MACHINE]).map(|name| machines.writers(name)).sum()
    }

    /// Until `ms` of the world's time it cannot be known what runs at `site`.
    pub fn unsure_until(&self, site: Site, ms: u64) {
        let mut state = self.state();
        let known = state.site(site);
        known.unsure_until_ms = known.unsure_until_ms.max(ms);
    }

    /// From when on it can be known what runs at `site`, in milliseconds of the world's time.
    pub fn sure_from_ms(&self, site: Site) -> u64 {
        self.state().site(site).unsure_until_ms
    }

    /// The site where a machine was started last.
    pub fn live_at(&self) -> Option<Site> {
        self.state().live_at
    }

    /// A machine was started there.
    pub fn lives_at(&self, site: Site) {
        self.state().live_at = Some(site);
    }

    /// The disks of the machine of `site` may change from now on, or are others.
    pub fn moved(&self, site: Site) {
        self.state().site(site).moves += 1;
    }

    /// The disks of the machine of `site`, which is off, hold this: it must be what they held
    /// when it was looked at before, if nothing has happened to them in between.
    pub fn lies_still(&self, site: Site, image: Image) {
        let mut state = self.state();
        let known = state.site(site);
        let now = known.moves;
        let before = known.still.replace((now, image.clone()));
        let before = before.filter(|(then, _)| *then == now);
        if let Some(what) = before.and_then(|(_, before)| image_differs(&image, &before)) {
            let what = format!("the stale disks at {site:?} were changed: {what}");
            state.violations.push(what);
        }
    }

    /// What the machine's disks held at one of its oldest cuts.
    pub fn old_image(&self, random: &mut Seeded) -> Option<Image> {
        let state = self.state();
        let few = state.cuts.len().div_ceil(2) as u64;
        let drawn = if few == 0 { 0 } else { random.below(few) };
        state.cuts.values().nth(drawn as usize).map(|cut| cut.image.clone())
    }

    /// Whether an instance stands for the machine of `site`, handed over or not.
    pub fn is_superseded(&self, site: Site) -> bool {
        !self.state().site(site).settled.is_empty()
    }

    /// A point is served at a socket.
    pub fn exported(&self, socket: &Path, cut_at: UnixMillis) {
        self.state().exported.insert(socket.into(), cut_at);
    }

    /// Overlays of an instance were made at `site` above what is served at a socket.
    pub fn instance_made(&self, instance: InstanceId, site: Site, socket: &Path) {
        let mut state = self.state();
        if state.instances.contains_key(&instance) {
            return;
        }
        let cut_at = state.exported.get(socket).copied();
        match cut_at.and_then(|at| state.cuts.get(&at)).map(|cut| cut.image.clone()) {
            Some(image) => {
                let made = Made { site, base: image.clone(), image };
                state.instances.insert(instance, made);
            }
            None => {
                let what = format!("I1: instance {instance} is made from a point nobody cut");
                state.violations.push(what);
            }
        }
    }

    /// An instance that is nobody's test began to run, while the machine at the other site held
    /// `left`.
    pub fn instance_ran(&self, instance: InstanceId, left: Option<Image>, at_ms: u64) {
        let mut state = self.state();
        if !state.worked.insert(instance) {
            return;
        }
        if let Some(base) = state.instances.get(&instance).map(|made| made.base.clone()) {
            state.starts.push(Start { at_ms, base, left });
        }
    }

    /// A planned failover has started its machine, at the latest at `until_ms`: it must hold what
    /// the machine that it replaced held at its end.
    pub fn nothing_lost(&self, until_ms: u64) {
        let mut state = self.state();
        let start = state.starts.iter().rev().find(|start| start.at_ms <= until_ms);
        let Some(Start { base, left, at_ms }) = start else {
            state.violations.push("a planned failover has started nothing".to_owned());
            return;
        };
        let what = match left {
            None => Some("there is no machine that was left".to_owned()),
            Some(left) => image_differs(base, left),
        };
        if let Some(what) = what {
            let what = format!("lost by the planned failover at {at_ms} ms: {what}");
            state.violations.push(what);
        }
    }

    /// A guest of an instance wrote.
    pub fn instance_wrote(&self, instance: InstanceId, disk: DiskNumber, offset: u64, data: &[u8]) {
        let mut state = self.state();
        let made = state.instances.get_mut(&instance);
        if let Some(image) = made.and_then(|made| made.image.get_mut(&disk)) {
            let image = Arc::make_mut(image);
            let from = offset as usize;
            if let Some(part) = image.get_mut(from..from + data.len()) {
                part.copy_from_slice(data);
            }
        }
    }

    /// An instance became the machine of its host.
    pub fn settled(&self, site: Site, instance: InstanceId) {
        let mut state = self.state();
        let known = state.site(site);
        if !known.settled.contains(&instance) {
            known.settled.push(instance);
            known.moves += 1;
        }
    }

    /// The machine of the host is the former one again.
    pub fn unsettled(&self, site: Site, instance: InstanceId) {
        let mut state = self.state();
        let known = state.site(site);
        known.settled.retain(|settled| *settled != instance);
        known.moves += 1;
    }

    /// From now on the instance is its host's machine alone, whose disks hold `image`.
    pub fn handed_over(&self, site: Site, instance: InstanceId, image: Option<&Image>) {
        let mut state = self.state();
        state.site(site).moves += 1;
        state.worked.remove(&instance);
        // Asked again after a crash, it was noted before.
        let Some(made) = state.instances.remove(&instance) else { return };
        let what = match image {
            None => Some("the host has no such machine".to_owned()),
            Some(image) => image_differs(image, &made.image),
        };
        if let Some(what) = what {
            state.violations.push(format!("I1: instance {instance} is not handed over: {what}"));
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
    pub fn instances(&self) -> BTreeMap<InstanceId, Made> {
        self.state().instances.clone()
    }

    /// Whether the machine of `site` is an instance that was not handed over.
    pub fn has_instance(&self, site: Site) -> bool {
        let mut state = self.state();
        let last = state.site(site).settled.last().copied();
        last.is_some_and(|instance| state.instances.contains_key(&instance))
    }

    /// Compares every point of a host's replica with what was cut (I1), and looks for every point
    /// that was promised (I3).
    pub fn check_replica(&self, place: HostPlace, reader: &ItemReader) {
        self.promises_settle(place, reader);
        let promised = self.state().promised.clone();
        let promised: Vec<_> = promised.iter().filter(|promise| promise.place == place).collect();
        self.check_points(&promised, reader);
    }

    /// As [`Self::check_replica`], of a replica of which `promised` was promised.
    pub fn check_points(&self, promised: &[&Promise], reader: &ItemReader) {
        let cuts = self.state().cuts.clone();
        let points = &reader.state().points;
        for Promise { position, cut_at, .. } in promised {
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
    let mut seen = Image::new();
    for disk in view.disks() {
        let read = view.read(disk.number, 0, disk.size as usize);
        let read = read.map_err(|error| format!("disk {} cannot be read: {error}", disk.number))?;
        seen.insert(disk.number, Arc::new(read.into()));
    }
    image_differs(&seen, image).map_or(Ok(()), Err)
}

/// Where `seen` is not `wanted`, in words.
fn image_differs(seen: &Image, wanted: &Image) -> Option<String> {
    let sizes = |image: &Image| -> BTreeMap<DiskNumber, usize> {
        image.iter().map(|(number, bytes)| (*number, bytes.len())).collect()
    };
    let (are, were) = (sizes(seen), sizes(wanted));
    if are != were {
        return Some(format!("its disks are {are:?}, they were {were:?}"));
    }
    wanted.iter().find_map(|(number, bytes)| {
        let offset = differs(&seen[number], bytes)?;
        Some(format!("disk {number} differs at byte {offset}"))
    })
}
