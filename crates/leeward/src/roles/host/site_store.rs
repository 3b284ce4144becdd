//! The host's replica store, as its async workers use it: every call runs off their threads, one
//! at a time for each item.

mod answers;
mod session;

use super::{by_hand, clock::WallClock, head_view::HeadView};
use leeward_model::{
    Branch, DiskEntry, DiskNumber, Epoch, Evidence, ExtentNumber, ItemId, MachineSpec, PointId,
    PointInfo, PointKind, PointOrigin, Position, Problem, Site, TimelineId, UnixMillis, VaultId,
};
use leeward_replica::{
    ItemReader, ItemStore, KeptFile, KeptRecord, Retention, Store, StoreError, TestOutcome,
    Thinning, View,
};
use leeward_wire::{
    audit::DAMAGED_MAX,
    keys::HashKey,
    message::{KeepAs, KitState, NewestPoint, ProbeResult, ServedPoint},
};
use session::goes_on;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often the notes on recovery kits are read.
const KIT_EVERY: Duration = Duration::from_secs(5);

/// The work of a stopped machine, to be kept as a point.
#[derive(Clone, Debug)]
pub struct KeptWork {
    /// Under which id, name and origin.
    pub keep: KeepAs,
    /// The timeline of the machine's own writes.
    pub timeline: TimelineId,
    /// The point's place that its overlays sit on.
    pub base: Position,
    /// Its overlays.
    pub overlays: Vec<(DiskNumber, PathBuf)>,
    /// When it was stopped.
    pub kept_at: UnixMillis,
    /// The machine.
    pub spec: MachineSpec,
}

/// What the board shows of an item's replica.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplicaFigures {
    /// The lowest epoch that is taken.
    pub fence: Epoch,
    /// The newest point.
    pub newest: Option<NewestPoint>,
    /// The place that the branch asked for would go on from; none when it has none here.
    pub durable: Option<Position>,
    /// Bytes of its segments.
    pub stored_bytes: u64,
    /// Number of its points.
    pub points: u64,
    /// Points that are served by hand.
    pub served: Vec<ServedPoint>,
}

/// The branch on which a host seals its own machine's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnBranch {
    /// It is in the store already: what was sealed before goes on.
    Begun(Branch),
    /// It is not.
    New(Branch),
}

/// Points that came to the end of their time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetGo {
    /// How many without a name: those that were replicated.
    pub unnamed: usize,
    /// Names of the others.
    pub named: Vec<String>,
}

/// The store.
pub struct SiteStore {
    store: Arc<Store>,
    site: Site,
    wall: WallClock,
    items: Mutex<BTreeMap<ItemId, Arc<Mutex<ItemStore>>>>,
    /// What was found of its recovery kit, and when.
    kit: Mutex<Option<(Instant, KitState)>>,
    /// Extents of the items' newest points that cannot be read, as the audit found them.
    damaged: Mutex<BTreeMap<ItemId, DamagedExtents>>,
}

/// Extents that cannot be read.
pub type DamagedExtents = BTreeSet<(DiskNumber, ExtentNumber)>;

impl SiteStore {
    /// Wraps an open store of the host at `site`.
    pub fn new(store: Store, site: Site, wall: WallClock) -> Self {
        SiteStore {
            store: Arc::new(store),
            site,
            wall,
            items: Mutex::default(),
            kit: Mutex::default(),
            damaged: Mutex::default(),
        }
    }

    /// The store itself, for what is no item's.
    pub fn replica(&self) -> &Arc<Store> {
        &self.store
    }

    /// Extents of the item's newest point that were found damaged and are not repaired.
    pub fn damaged(&self, item: ItemId) -> Vec<(DiskNumber, ExtentNumber)> {
        let held = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&item).into_iter().flatten().copied().take(DAMAGED_MAX).collect()
    }

    /// Notes what is damaged now.
    pub fn damaged_set(&self, item: ItemId, extents: DamagedExtents) {
        let mut held = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        match extents.is_empty() {
            true => held.remove(&item),
            false => held.insert(item, extents),
        };
    }

    /// A reader of the item that no writer waits for.
    ///
    /// # Errors
    /// Those of the store. Blocks.
    pub fn reader(&self, item: ItemId) -> Result<ItemReader, StoreError> {
        self.store.item_read(item)
    }

    /// Whether a recovery kit is known to open the store. Looked up at intervals: a test of a kit
    /// is another process's work.
    pub fn kit(&self) -> KitState {
        let mut held = self.kit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, kit)) = *held
            && at.elapsed() < KIT_EVERY
        {
            return kit;
        }
        let found = match (self.store.items(), self.store.kit_test()) {
            (Ok(items), Ok(_)) if items.is_empty() => KitState::NotNeeded,
            (Ok(_), Ok(Some(test))) => KitState::Tested { at: test.tested_at },
            (Ok(_), Ok(None)) => KitState::Untested,
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "could not see whether a recovery kit was tested");
                KitState::Unknown
            }
        };
        *held = Some((Instant::now(), found));
        found
    }

    fn opened(&self, item: ItemId) -> Result<Arc<Mutex<ItemStore>>, StoreError> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = items.get(&item) {
            return Ok(Arc::clone(open));
        }
        let open = Arc::new(Mutex::new(self.store.item_open(item)?));
        items.insert(item, Arc::clone(&open));
        Ok(open)
    }

    fn close(&self, item: ItemId) {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).remove(&item);
    }

    /// Runs `work` on the item's writer. A writer that says it is stale, or whose thread panicked,
    /// is opened again for the next call.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        item: ItemId,
        work: impl FnOnce(&mut ItemStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let this = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let open = this.opened(item)?;
            let result = match open.lock() {
                Ok(mut store) => work(&mut store),
                Err(_) => Err(StoreError::Stale { why: "an earlier call failed".into() }),
            };
            if let Err(StoreError::Stale { .. } | StoreError::Storage(_)) = &result {
                this.close(item);
            }
            result
        })
        .await;
        done.unwrap_or_else(|error| {
            self.close(item);
            Err(StoreError::Stale { why: error.to_string() })
        })
    }

    async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        item: ItemId,
        what: &str,
        work: impl FnOnce(&mut ItemStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        self.with(item, work).await.map_err(|error| error.problem(what))
    }

    /// The item's hash key; none when it has no part here.
    ///
    /// # Errors
    /// Those of the store: a part that cannot be read is there all the same.
    pub async fn hash_key(self: &Arc<Self>, item: ItemId) -> Result<Option<HashKey>, StoreError> {
        match self.with(item, |store| Ok(store.reader().keys().hash.clone())).await {
            Err(StoreError::NoItem { .. }) => Ok(None),
            key => key.map(Some),
        }
    }

    /// Makes sure that the item has a part here: a new one with the hash key `hash` that it has
    /// in another store, or with a key of its own. One that is there stays as it is.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn ensure(
        self: &Arc<Self>,
        vault: VaultId,
        item: ItemId,
        hash: Option<HashKey>,
    ) -> Result<(), StoreError> {
        let this = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let mut items = this.items.lock().unwrap_or_else(PoisonError::into_inner);
            if let Entry::Vacant(place) = items.entry(item) {
                let opened = match this.store.item_open(item) {
                    Err(StoreError::NoItem { .. }) => this.store.item_create(vault, item, hash)?,
                    opened => opened?,
                };
                place.insert(Arc::new(Mutex::new(opened)));
            }
            Ok(())
        })
        .await;
        done.unwrap_or_else(|error| Err(StoreError::Stale { why: error.to_string() }))
    }

    /// Destroys the item's replica, its key first.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn destroy(self: &Arc<Self>, item: ItemId) -> Result<(), StoreError> {
        self.close(item);
        let this = Arc::clone(self);
        let done =
            tokio::task::spawn_blocking(move || this.store.item_delete(item).map(drop)).await;
        done.unwrap_or_else(|error| Err(StoreError::Stale { why: error.to_string() }))
    }

    /// Free bytes below the store.
    pub fn free_bytes(&self) -> Option<u64> {
        self.store.free_bytes().ok().flatten()
    }

    /// What the board shows, with how far `branch` is. All of it is of one moment.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn figures(
        self: &Arc<Self>,
        item: ItemId,
        branch: Option<Branch>,
    ) -> Result<ReplicaFigures, StoreError> {
        let now = self.wall.now();
        self.with(item, move |store| {
            let reader = store.reader();
            let durable = branch.map(|branch| goes_on(store, &branch)).transpose()?.flatten();
            // What was sealed of an old machine's disks says nothing of how far the source is.
            let mut points = reader.state().points.iter().rev();
            let newest = points.find(|point| point.origin == PointOrigin::Replicated);
            let newest = newest.map(|point| NewestPoint {
                point: point.id,
                position: point.position,
                kind: point.kind,
                cut_at: point.cut_at,
                cut_server: point.cut_server.clone(),
                received_at: point.received_at,
            });
            Ok(ReplicaFigures {
                fence: reader.fence(),
                newest,
                durable,
                stored_bytes: reader.stored_bytes()?,
                points: reader.state().points.len() as u64,
                served: by_hand::served(reader, now),
            })
        })
        .await
    }

    /// Raises the fence; durable when it returns.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn fence(self: &Arc<Self>, item: ItemId, epoch: Epoch) -> Result<(), StoreError> {
        let now = self.wall.now();
        self.with(item, move |store| store.raise_fence(epoch, now)).await
    }

    /// The branch on which a host seals its own machine's disks: the one of `branch`'s timeline
    /// that is there already, or `branch` with one of `former` and its own parent as its parent:
    /// of those that are kept here the one whose timeline was opened last. Or with none.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn own_branch(
        self: &Arc<Self>,
        item: ItemId,
        branch: Branch,
        former: Option<Position>,
    ) -> Result<OwnBranch, StoreError> {
        self.with(item, move |store| {
            let reader = store.reader();
            if let Some(begun) = reader.state().branch(branch.timeline) {
                return Ok(OwnBranch::Begun(*begun));
            }
            let opened = |place: &Position| {
                reader.branches().iter().position(|known| known.timeline == place.timeline)
            };
            let mut kept = Vec::new();
            for place in branch.parent.into_iter().chain(former) {
                if reader.is_kept(place)? {
                    kept.push(place);
                }
            }
            let parent = kept.into_iter().max_by_key(opened);
            Ok(OwnBranch::New(Branch { parent, ..branch }))
        })
        .await
    }

    /// Whether the point's data are in the store, as a machine can be started from it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn is_sealed(
        self: &Arc<Self>,
        item: ItemId,
        point: PointId,
    ) -> Result<bool, Problem> {
        let what = "a recovery point could not be read";
        self.ask(item, what, move |store| Ok(store.reader().state().point(point).is_some())).await
    }

    /// What the timeline holds, as committed last; `held` when that is still it, because opening
    /// a view costs by the records stored.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn head_view(
        self: &Arc<Self>,
        item: ItemId,
        timeline: TimelineId,
        held: Option<HeadView>,
    ) -> Result<HeadView, StoreError> {
        self.with(item, move |store| HeadView::open(store, timeline, held)).await
    }

    /// Ends a timeline whose copy was given up; its points stay. Returns whether the store knew it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn retire(
        self: &Arc<Self>,
        item: ItemId,
        timeline: TimelineId,
    ) -> Result<bool, StoreError> {
        let now = self.wall.now();
        self.with(item, move |store| {
            let known = store.reader().state().branch(timeline).is_some();
            if known {
                store.retire_branch(timeline, now)?;
            }
            Ok(known)
        })
        .await
    }

    /// Lets old points go, and says which.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn expire(
        self: &Arc<Self>,
        item: ItemId,
        retention_seconds: u64,
    ) -> Result<LetGo, StoreError> {
        let now = self.wall.now();
        self.with(item, move |store| {
            let listed = store.reader().state().points.iter();
            let names: BTreeMap<_, _> =
                listed.map(|point| (point.id, point.name.clone())).collect();
            let keep_ms = retention_seconds * 1000;
            let thinning = Some(Thinning::default());
            let retention = Retention { keep_ms, thinning, keep_until: None };
            let expired = store.expire(now, &retention)?;
            for record in &expired.kept {
                for file in &record.files {
                    // Listed no more; a file that is left behind is only space.
                    let _ = std::fs::remove_file(&file.path);
                }
            }
            let gone = expired.points.iter().filter_map(|point| names.get(point)).cloned();
            let kept = expired.kept.into_iter().map(|record| record.name);
            let (named, plain): (Vec<_>, Vec<_>) =
                gone.chain(kept).partition(|name| !name.is_empty());
            Ok(LetGo { unnamed: plain.len(), named })
        })
        .await
    }

    /// Pins a point under `who`, once.
    ///
    /// # Errors
    /// NO_POINT when it is not there any more; those of the store.
    pub async fn pin(
        self: &Arc<Self>,
        item: ItemId,
        who: String,
        point: PointId,
        why: &'static str,
    ) -> Result<(), Problem> {
        let what = format!("recovery point {point} could not be pinned");
        let now = self.wall.now();
        self.ask(item, &what, move |store| {
            let pins = store.reader().pins()?;
            if !pins.iter().any(|pin| pin.who == who && pin.point == point) {
                store.reader_mut().pin(point, &who, why, now)?;
            }
            Ok(())
        })
        .await
    }

    /// Takes off every pin under `who`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn unpin(self: &Arc<Self>, item: ItemId, who: String) -> Result<(), Problem> {
        let done = self
            .with(item, move |store| {
                for pin in store.reader().pins()?.iter().filter(|pin| pin.who == who) {
                    store.reader().unpin(pin.id)?;
                }
                Ok(())
            })
            .await;
        match done {
            Ok(()) | Err(StoreError::NoItem { .. }) => Ok(()),
            Err(error) => Err(error.problem("a pin could not be taken off")),
        }
    }

    /// A point and the machine at its cut.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn point(
        self: &Arc<Self>,
        item: ItemId,
        point: PointId,
    ) -> Result<Option<(PointInfo, MachineSpec)>, Problem> {
        let site = self.site;
        self.ask(item, "a recovery point could not be read", move |store| {
            store.reader_mut().refresh()?;
            let found = store.reader().point(point, site)?;
            Ok(found.and_then(|(info, spec)| Some((info, spec?))))
        })
        .await
    }

    /// Keeps a stopped machine's work as a point.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn kept_add(self: &Arc<Self>, item: ItemId, work: KeptWork) -> Result<(), Problem> {
        self.ask(item, "the stopped machine's work could not be kept", move |store| {
            store.add_kept(&kept_record(work))
        })
        .await
    }

    /// Takes a kept point off the list: its machine runs again.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn kept_remove(
        self: &Arc<Self>,
        item: ItemId,
        point: PointId,
    ) -> Result<(), Problem> {
        self.ask(item, "kept work could not be taken off the list", move |store| {
            store.remove_kept(point)
        })
        .await
    }

    /// Keeps what a test showed as evidence of a point; returns it with the names of its picture
    /// and its content.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn verified(
        self: &Arc<Self>,
        item: ItemId,
        point: PointId,
        result: ProbeResult,
        picture: Option<Vec<u8>>,
    ) -> Result<ProbeResult, Problem> {
        self.ask(item, "the evidence of a test could not be kept", move |store| {
            let reader = store.reader();
            let view = View::open(reader, reader.position_of(point)?)?;
            let content_hash = Some(view.content_hash()?);
            let evidence = Evidence { content_hash, ..result.evidence };
            let outcome = if result.passed { TestOutcome::Passed } else { TestOutcome::Failed };
            let evidence = reader.put_evidence(point, outcome, evidence, picture.as_deref())?;
            Ok(ProbeResult { passed: result.passed, evidence })
        })
        .await
    }
}

fn kept_record(work: KeptWork) -> KeptRecord {
    let disks = work.spec.disks.iter().map(|disk| DiskEntry {
        number: disk.number,
        id: disk.id.clone(),
        serial: disk.serial.clone(),
        size: disk.size,
        block_bytes: disk.block_bytes,
    });
    let files = work.overlays.into_iter().map(|(disk, path)| KeptFile {
        disk,
        path: path.to_string_lossy().into_owned(),
        format: leeward_model::DiskFormat::Qcow2,
    });
    KeptRecord {
        id: work.keep.point,
        name: work.keep.name,
        origin: work.keep.origin,
        position: work.base,
        kind: PointKind::CrashConsistent,
        cut_at: work.kept_at,
        received_at: work.kept_at,
        disks: disks.collect(),
        files: files.collect(),
        machine: Some(work.spec),
    }
}
