//! The writer of one item: takes records, makes them durable, commits points, lets points go.
//!
//! There is one writer of a store at a time. After a failure that leaves unknown what is durable
//! it answers [`StoreError::Stale`] to everything until the item is opened again.

use crate::{
    ItemReader, KeptRecord, PointRecord, StoreError, Upkeep,
    deletes::leftovers,
    folder::ItemFolder,
    kept,
    manifest::{BlobId, Change, MarkerPlace},
    manifest_log::Newest,
    random::draw,
    reader::open_marker,
    segments::OpenSegment,
    storage::StorageError,
};
use leeward_model::{Branch, Epoch, Lsn, PointId, PointOrigin, Position, TimelineId, UnixMillis};
use leeward_wire::{message::ServerStamp, segment::SegmentHeader};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

/// Most bytes of a point's name: beyond what any listing shows.
const NAME_BYTES_MAX: usize = 255;

/// What the target knows of a point beside its marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointReceipt {
    /// Why the point exists.
    pub origin: PointOrigin,
    /// Its name, for example `divergent-2026-11-21T03:04:05Z`, 1 to 255 bytes; none for a
    /// replicated point, and only for that.
    pub name: Option<String>,
    /// When it was cut, by the config server's clock.
    pub cut_server: Option<ServerStamp>,
    /// When the store had it, by the store's clock.
    pub received_at: UnixMillis,
    /// Source clock minus store clock, in milliseconds.
    /// None takes it from the marker and `cut_server`: both stamp the same cut, and the config
    /// server is on the store's machine; 0 when there is no stamp either.
    pub clock_offset_ms: Option<i64>,
}

impl PointReceipt {
    fn check_name(&self) -> Result<(), StoreError> {
        let fits = match (&self.origin, &self.name) {
            (PointOrigin::Replicated, name) => name.is_none(),
            (PointOrigin::BeforeChange | PointOrigin::Divergent, name) => {
                name.as_ref().is_some_and(|name| (1..=NAME_BYTES_MAX).contains(&name.len()))
            }
        };
        let why = "replicated points have no name, all others one of 1 to 255 bytes";
        if fits { Ok(()) } else { Err(StoreError::refused("a point", why)) }
    }
}

/// Deliberate mistakes, to show that the tests would notice them.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Takes data of every epoch.
    IgnoreEpoch,
    /// Deletes segments without asking whether a point needs them.
    CollectTooMuch,
    /// Commits what was received but not flushed.
    CommitUnflushed,
}

/// See the module.
pub struct ItemStore {
    pub(crate) reader: ItemReader,
    writer: [u8; 16],
    /// Segments with data that no manifest has yet, all of one timeline, oldest first. Only the
    /// last one may be open.
    pub(crate) pending: Vec<OpenSegment>,
    /// Epoch of the segment that a raised fence took away, until another one begins.
    fenced: Option<Epoch>,
    pub(crate) upkeep: Upkeep,
    /// Dropped blobs that are not deleted yet, and when they were dropped.
    pub(crate) waiting: BTreeMap<BlobId, UnixMillis>,
    /// Whether something was let go since the last collection.
    pub(crate) collect_due: bool,
    pub(crate) collected_at: Option<UnixMillis>,
    /// Pins at the last collection; `None` before the first.
    pub(crate) pins_seen: Option<BTreeSet<Uuid>>,
    stale: Option<String>,
    #[cfg(feature = "testing")]
    pub(crate) mutation: Option<Mutation>,
}

impl ItemStore {
    /// Loads the item for writing. What an ended writer had put but maybe not flushed is flushed
    /// first, and segments that no manifest names are deleted: their data were never committed.
    pub(crate) fn load(folder: Arc<ItemFolder>) -> Result<ItemStore, StoreError> {
        for part in ["manifest", "segments", "layers", "pins", "unpinned", "kept", "evidence"] {
            folder.blobs.sync_dir(&folder.path(part))?;
        }
        let reader = ItemReader::load_from(folder.clone(), Newest::Listed)?;
        reader.log.put_indexes();
        let waiting = leftovers(&folder, reader.state())?;
        Ok(ItemStore {
            writer: draw(folder.random.as_ref()),
            reader,
            upkeep: Upkeep::default(),
            waiting,
            collect_due: true,
            collected_at: None,
            pending: Vec::new(),
            fenced: None,
            pins_seen: None,
            stale: None,
            #[cfg(feature = "testing")]
            mutation: None,
        })
    }

    /// Makes this writer wrong in one way.
    #[cfg(feature = "testing")]
    pub fn set_mutation(&mut self, mutation: Mutation) {
        self.mutation = Some(mutation);
    }

    /// The committed state, points, pins, evidence. A clone stays as it is until refreshed.
    pub fn reader(&self) -> &ItemReader {
        &self.reader
    }

    /// As [`Self::reader`], for pinning.
    pub fn reader_mut(&mut self) -> &mut ItemReader {
        &mut self.reader
    }

    /// Raises the lowest epoch that is taken; durable when it returns. A lower one than there is
    /// changes nothing. Data of a lower epoch that are not committed are dropped.
    ///
    /// # Errors
    /// [`StoreError::Storage`]; whether it was raised is then not known.
    pub fn raise_fence(&mut self, epoch: Epoch, now: UnixMillis) -> Result<(), StoreError> {
        if epoch <= self.reader.fence() {
            return self.check_stale();
        }
        self.commit(vec![Change::FenceRaised(epoch)], now)?;
        if !self.ignores_epoch() {
            let below = self.pending.iter().map(|segment| segment.header.epoch);
            self.fenced = below.filter(|theirs| *theirs < epoch).max().or(self.fenced);
            self.pending.retain(|segment| segment.header.epoch >= epoch);
        }
        Ok(())
    }

    /// Opens a timeline; durable when it returns. The same branch again changes nothing. When its
    /// parent is not in this store, a whole copy has to follow: what is below reads as zero. A
    /// parent whose timeline is in this store has to be kept: see [`ItemReader::is_kept`].
    ///
    /// Until it has a point, its newest committed place keeps its own data and its parent's, as
    /// long as no other timeline is opened and [`Self::retire_branch`] does not end it.
    ///
    /// # Errors
    /// [`StoreError::Fenced`]; [`StoreError::Refused`] when the id stands for another branch or
    /// its start is not committed.
    pub fn open_branch(&mut self, branch: Branch, now: UnixMillis) -> Result<(), StoreError> {
        self.check_stale()?;
        if self.reader.state().branch(branch.timeline) == Some(&branch) {
            return Ok(());
        }
        self.check_epoch(branch.epoch)?;
        if let Some(parent) = branch.parent
            && self.reader.state().branch(parent.timeline).is_some()
        {
            self.reader.check_kept(parent)?;
        }
        self.commit(vec![Change::BranchOpened(branch)], now)
    }

    /// Begins a segment, sealing the one before it.
    ///
    /// `header.first_lsn` is at most one beyond what was received and beyond what is committed;
    /// records received from there on are forgotten, as they come again in this segment.
    ///
    /// # Errors
    /// [`StoreError::Fenced`]; [`StoreError::Refused`] when the segment does not continue the log.
    pub fn begin_segment(&mut self, header: &SegmentHeader) -> Result<(), StoreError> {
        self.check_stale()?;
        let refuse = |why: String| Err(StoreError::refused("a segment", why));
        self.check_epoch(header.epoch)?;
        let owner = self.reader.folder.owner;
        if (header.vault, header.item) != (owner.vault, owner.item) {
            return refuse(format!("it is of item {} in vault {}", header.item, header.vault));
        }
        if !self.reader.folder.keys.takes(header.key_version)? {
            let why = "is not the newest data key, nor the one before it";
            return refuse(format!("key version {} {why}", header.key_version));
        }
        let state = self.reader.state();
        let Some(branch) = state.branch(header.timeline) else {
            return refuse(format!("timeline {} is not open", header.timeline));
        };
        if state.retired.contains(&header.timeline) {
            return refuse(format!("timeline {} has ended", header.timeline));
        }
        if header.epoch < branch.epoch && !self.ignores_epoch() {
            return Err(StoreError::Fenced { epoch: header.epoch, fence: branch.epoch });
        }
        let committed = state.head(header.timeline).expect("the branch is known");
        let received = self.received(header.timeline).unwrap_or(committed);
        if header.first_lsn <= committed || header.first_lsn > received.next() {
            let due = format!("{} to {}", committed.next(), received.next());
            return refuse(format!("it begins at {}, due is {due}", header.first_lsn));
        }
        self.make_room(header)?;
        let created = OpenSegment::create(&self.reader.folder, header.clone());
        let segment = self.checked(created)?;
        self.pending.push(segment);
        self.fenced = None;
        Ok(())
    }

    /// Seals what is open and forgets what `header` begins anew.
    fn make_room(&mut self, header: &SegmentHeader) -> Result<(), StoreError> {
        self.seal()?;
        let same = |segment: &OpenSegment| segment.header.timeline == header.timeline;
        for segment in self.pending.iter_mut().filter(|segment| same(segment)) {
            if segment.last() >= header.first_lsn {
                segment.cut_before(header.first_lsn);
            }
        }
        self.pending.retain(|segment| same(segment) && segment.range(Lsn(u64::MAX)).is_some());
        Ok(())
    }

    /// Takes one whole record; it is durable after [`Self::sync`].
    ///
    /// # Errors
    /// [`StoreError::Refused`] when it is damaged or not the next one, and nothing was taken;
    /// [`StoreError::Fenced`]; [`StoreError::Storage`] ends the segment.
    pub fn append(&mut self, record: &[u8]) -> Result<Lsn, StoreError> {
        self.append_all(&[record])
    }

    /// As [`Self::append`], of several records in a row: all of them, or none. Returns the last
    /// one's LSN.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_all(&mut self, records: &[&[u8]]) -> Result<Lsn, StoreError> {
        self.check_stale()?;
        self.check_not_fenced()?;
        if let Some(epoch) = self.pending.last().map(|segment| segment.header.epoch) {
            self.check_epoch(epoch)?;
        }
        let Some(segment) = self.pending.last_mut().filter(|segment| segment.is_open()) else {
            return Err(StoreError::refused("a record", "no segment is open"));
        };
        let appended = segment.append(records);
        if matches!(appended, Err(StoreError::Storage(_))) {
            return self.checked(appended);
        }
        appended
    }

    /// Makes everything received durable and returns the newest durable place; `None` when no
    /// timeline holds anything uncommitted and none was committed to.
    ///
    /// # Errors
    /// [`StoreError::Storage`]; nothing may be acknowledged then, and the flush is not repeated.
    pub fn sync(&mut self) -> Result<Option<Position>, StoreError> {
        self.check_stale()?;
        let folder = self.reader.folder.clone();
        for index in 0..self.pending.len() {
            let synced = self.pending[index].sync(&folder);
            self.checked(synced)?;
        }
        Ok(self.durable())
    }

    /// The newest durable place of the timeline that was written last.
    pub fn durable(&self) -> Option<Position> {
        if let Some(segment) = self.pending.last() {
            let timeline = segment.header.timeline;
            return Some(Position { timeline, lsn: segment.durable() });
        }
        let timeline = self.reader.branches().last()?.timeline;
        Some(Position { timeline, lsn: self.reader.committed(timeline)? })
    }

    /// Ends the open segment with its footer, durably; does nothing when none is open.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn seal(&mut self) -> Result<(), StoreError> {
        self.check_stale()?;
        let folder = self.reader.folder.clone();
        let Some(segment) = self.pending.last_mut() else { return Ok(()) };
        let sealed = segment.seal(&folder);
        self.checked(sealed)?;
        self.forget_committed();
        Ok(())
    }

    /// Commits everything up to `lsn` without making a point, so that a first copy or a comparison
    /// continues there after a restart. What is committed already stays so.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when `lsn` is not durable; [`StoreError::Fenced`].
    pub fn commit_progress(
        &mut self,
        timeline: TimelineId,
        lsn: Lsn,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        self.check_stale()?;
        let changes = self.range_changes(Position { timeline, lsn })?;
        if changes.is_empty() { Ok(()) } else { self.commit(changes, now) }
    }

    /// Commits everything up to the marker at `position` and makes its point; the same point again
    /// changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the record is not durable, not a marker, its point id is in
    /// use, or its name does not go with its origin; [`StoreError::Fenced`];
    /// [`StoreError::Damaged`] when it does not open.
    pub fn commit_point(
        &mut self,
        position: Position,
        receipt: &PointReceipt,
    ) -> Result<PointRecord, StoreError> {
        self.check_stale()?;
        receipt.check_name()?;
        // What lies before the newest committed place may have been let go, unless it is kept.
        if self.reader.committed(position.timeline).is_some_and(|head| position.lsn < head) {
            self.reader.check_kept(position)?;
        }
        let mut changes = self.range_changes(position)?;
        let (header, offset, len) = self.locate(position)?;
        let marker = open_marker(&self.reader.folder, &header, offset, len)?;
        if let Some(known) = self.reader.state().point(marker.point) {
            if known.position == position {
                return Ok(known.clone());
            }
            let why = format!("point {} lies at {}", marker.point, known.position.lsn);
            return Err(StoreError::refused("a point", why));
        }
        let stamped = receipt.cut_server.as_ref().map(|stamp| stamp.wall.0);
        let measured = stamped.map_or(0, |wall| marker.cut_at.0.saturating_sub(wall));
        let segment = header.segment;
        let record = PointRecord {
            id: marker.point,
            position,
            kind: marker.kind,
            origin: receipt.origin.clone(),
            name: receipt.name.clone().unwrap_or_default(),
            cut_at: marker.cut_at,
            received_at: receipt.received_at,
            clock_offset_ms: receipt.clock_offset_ms.unwrap_or(measured),
            cut_server: receipt.cut_server.clone(),
            marker: MarkerPlace { segment, offset, len: len as u32 },
        };
        changes.push(Change::PointAdded(record.clone()));
        self.commit(changes, receipt.received_at)?;
        Ok(record)
    }

    /// Lists kept work; durable when it returns. The same record again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NotKept`] when the data below it are not kept; [`StoreError::Refused`] when
    /// its id is in use.
    pub fn add_kept(&mut self, record: &KeptRecord) -> Result<(), StoreError> {
        self.check_stale()?;
        if self.reader.state().point(record.id).is_some() {
            return Err(StoreError::refused("kept work", "its point id is in use"));
        }
        if record.origin == PointOrigin::Replicated {
            return Err(StoreError::refused(
                "kept work",
                "replicated points come by their markers",
            ));
        }
        self.reader.check_kept(record.position)?;
        kept::put(&self.reader.folder, record)
    }

    /// Takes kept work off the list: its machine runs again and writes to the same files. An
    /// unknown one is fine.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn remove_kept(&mut self, id: PointId) -> Result<(), StoreError> {
        self.check_stale()?;
        kept::delete(&self.reader.folder, id)
    }

    fn received(&self, timeline: TimelineId) -> Option<Lsn> {
        let last = self.pending.last().filter(|open| open.header.timeline == timeline);
        last.map(OpenSegment::last)
    }

    /// The changes that commit everything up to `place`; none when that is committed already.
    fn range_changes(&self, place: Position) -> Result<Vec<Change>, StoreError> {
        let refuse = |why: &str| Err(StoreError::refused("a commit", why));
        let Some(committed) = self.reader.committed(place.timeline) else {
            return refuse("its timeline is not open");
        };
        if place.lsn <= committed {
            return Ok(Vec::new());
        }
        let mut changes = Vec::new();
        let mut reached = committed;
        for segment in self.pending.iter().filter(|s| s.header.timeline == place.timeline) {
            let Some(range) = segment.range(place.lsn) else { continue };
            if range.last <= committed {
                continue;
            }
            self.check_epoch(segment.header.epoch)?;
            if range.last > segment.durable() && !self.commits_unflushed() {
                return refuse("it is not durable yet");
            }
            reached = range.last;
            changes.push(Change::SegmentCommitted(range));
        }
        if reached == place.lsn {
            return Ok(changes);
        }
        self.check_not_fenced()?;
        refuse("it was not received")
    }

    /// Segment header, offset and length of the record at `place`.
    fn locate(&self, place: Position) -> Result<(SegmentHeader, u64, usize), StoreError> {
        let mine = self.pending.iter().filter(|s| s.header.timeline == place.timeline);
        for segment in mine {
            if let Some(entry) = segment.entry(place.lsn) {
                let len = crate::segments::record_end(entry) - u64::from(entry.offset);
                return Ok((segment.header.clone(), u64::from(entry.offset), len as usize));
            }
        }
        let found = self.reader.find_record(place.timeline, place.lsn)?;
        found.ok_or_else(|| StoreError::refused("a point", "there is no record at its place"))
    }

    pub(crate) fn commit(
        &mut self,
        changes: Vec<Change>,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        self.check_stale()?;
        let dropped: Vec<BlobId> = changes.iter().filter_map(dropped_blob).collect();
        let committed = self.reader.log.commit(self.writer, changes, now);
        if !matches!(committed, Err(StoreError::Refused { .. })) {
            self.checked(committed)?;
            self.forget_committed();
            let stamped_at = self.reader.log.stamped_at();
            self.waiting.extend(dropped.into_iter().map(|blob| (blob, stamped_at)));
            return Ok(());
        }
        committed
    }

    /// Sealed segments whose data are committed are readers' business only.
    fn forget_committed(&mut self) {
        let reader = &self.reader;
        self.pending.retain(|segment| {
            let committed = reader.committed(segment.header.timeline);
            segment.is_open() || committed.is_none_or(|committed| segment.last() > committed)
        });
    }

    fn check_epoch(&self, epoch: Epoch) -> Result<(), StoreError> {
        let fence = self.reader.fence();
        if epoch < fence && !self.ignores_epoch() {
            return Err(StoreError::Fenced { epoch, fence });
        }
        Ok(())
    }

    /// Refuses what belongs to a segment that the fence took away.
    fn check_not_fenced(&self) -> Result<(), StoreError> {
        self.fenced.map_or(Ok(()), |epoch| self.check_epoch(epoch))
    }

    fn ignores_epoch(&self) -> bool {
        #[cfg(feature = "testing")]
        return self.mutation == Some(Mutation::IgnoreEpoch);
        #[cfg(not(feature = "testing"))]
        false
    }

    fn commits_unflushed(&self) -> bool {
        #[cfg(feature = "testing")]
        return self.mutation == Some(Mutation::CommitUnflushed);
        #[cfg(not(feature = "testing"))]
        false
    }

    pub(crate) fn check_stale(&self) -> Result<(), StoreError> {
        match &self.stale {
            Some(why) => Err(StoreError::Stale { why: why.clone() }),
            None => Ok(()),
        }
    }

    /// Notes a failure after which it is not known what is durable.
    fn checked<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && !matches!(error, StoreError::Storage(StorageError::Exists { .. }))
        {
            self.stale = Some(error.to_string());
        }
        result
    }
}

/// The blob that a change makes dispensable.
fn dropped_blob(change: &Change) -> Option<BlobId> {
    match change {
        Change::SegmentDropped(id) => Some(BlobId::Segment(*id)),
        Change::LayerDropped(id) => Some(BlobId::Layer(*id)),
        Change::BranchOpened(_)
        | Change::SegmentCommitted(_)
        | Change::FenceRaised(_)
        | Change::PointAdded(_)
        | Change::PointRemoved(_)
        | Change::BranchRetired(_)
        | Change::HeadReached(_)
        | Change::LayerAdded(_)
        | Change::BlobDropped(..)
        | Change::MarkerMoved(..) => None,
    }
}
