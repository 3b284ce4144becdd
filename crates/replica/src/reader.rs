//! An item as readers see it: the committed state, points, pins, evidence. Writes nothing but pins,
//! evidence and a label, and needs no lock for those.

use crate::{
    ItemKeys, KeptRecord, Pin, PointRecord, StoreError, TestOutcome, Unpinned, evidence,
    folder::{ItemFolder, LABEL},
    kept,
    layers::{Layer, Live, layer_of},
    manifest::{ItemState, SegmentRange},
    manifest_log::{ManifestLog, Newest},
    pins,
    segments::{read_index, read_record},
    storage::Put,
};
use leeward_model::{
    Branch, Epoch, Evidence, ItemId, Lsn, MachineSpec, Marker, PointId, PointInfo, Position, Site,
    TimelineId, UnixMillis, VaultId,
};
use leeward_wire::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use serde::{Deserialize, Serialize};
use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// Most points that one page lists.
const PAGE_MAX: usize = 1000;

/// See the module. As of its last [`ItemReader::refresh`].
#[derive(Clone)]
pub struct ItemReader {
    pub(crate) folder: Arc<ItemFolder>,
    pub(crate) log: ManifestLog,
    /// The newest version.
    keys: ItemKeys,
}

/// A page of an item's points.
#[derive(Clone, Debug, PartialEq)]
pub struct PointPage {
    /// The points, newest first.
    pub points: Vec<PointInfo>,
    /// Number of all points.
    pub total: u64,
}

/// What an item takes of its store, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Segments.
    pub segment_bytes: u64,
    /// Records in them that something needs, as the layers knew when they were made; what no layer
    /// has yet counts as a whole.
    pub live_bytes: u64,
    /// Layers of the index.
    pub layers: u64,
    /// Their bytes.
    pub layer_bytes: u64,
    /// Segments that were dropped and wait for their deletion.
    pub waiting_bytes: u64,
}

enum Listed<'a> {
    Committed(&'a PointRecord),
    Kept(&'a KeptRecord),
}

impl ItemReader {
    pub(crate) fn load(folder: Arc<ItemFolder>) -> Result<ItemReader, StoreError> {
        ItemReader::load_from(folder, Newest::Hinted)
    }

    pub(crate) fn load_from(
        folder: Arc<ItemFolder>,
        newest: Newest,
    ) -> Result<ItemReader, StoreError> {
        let keys = folder.keys.newest();
        Ok(ItemReader { log: ManifestLog::load(folder.clone(), newest)?, folder, keys })
    }

    /// Takes what was committed since.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn refresh(&mut self) -> Result<(), StoreError> {
        self.log.refresh()
    }

    /// The item.
    pub fn item(&self) -> ItemId {
        self.folder.owner.item
    }

    /// The vault that the item is of.
    pub fn vault(&self) -> VaultId {
        self.folder.owner.vault
    }

    /// The newest version of the item's keys, for the sealer of its data; in memory only.
    pub fn keys(&self) -> &ItemKeys {
        &self.keys
    }

    /// Takes the data keys that were made since; a sealer asks before it begins.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::NoItem`].
    pub fn refresh_keys(&mut self) -> Result<(), StoreError> {
        self.folder.keys.refresh()?;
        self.keys = self.folder.keys.newest();
        Ok(())
    }

    /// Numbers of the item's data keys that can be opened, ascending.
    pub fn key_versions(&self) -> Vec<u32> {
        self.folder.keys.numbers()
    }

    /// The name that the item was given with [`Self::set_label`].
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn label(&self) -> Result<Option<String>, StoreError> {
        Ok(self.folder.note::<Label>(LABEL)?.map(|label| label.name))
    }

    /// Names the item, once: whoever makes items without a config server finds them again by it.
    /// The same name again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when it has another name; [`StoreError::Storage`].
    pub fn set_label(&self, name: &str) -> Result<(), StoreError> {
        let put = self.folder.put_note(LABEL, &Label { name: name.to_owned() })?;
        if put == Put::Exists && self.label()?.as_deref() != Some(name) {
            return Err(StoreError::refused("a label", "the item has another one"));
        }
        Ok(())
    }

    /// The committed state.
    pub fn state(&self) -> &ItemState {
        self.log.state()
    }

    /// The lowest epoch that is taken, durable.
    pub fn fence(&self) -> Epoch {
        self.state().fence
    }

    /// The timelines, in the order in which they were opened.
    pub fn branches(&self) -> &[Branch] {
        &self.state().branches
    }

    /// Newest committed LSN on a timeline; its start when nothing is committed on it, `None` when
    /// it is not known.
    pub fn committed(&self, timeline: TimelineId) -> Option<Lsn> {
        self.state().head(timeline)
    }

    /// The point that was committed last, on any timeline.
    pub fn newest_point(&self) -> Option<&PointRecord> {
        self.state().points.last()
    }

    /// Kept work.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn kept(&self) -> Result<Vec<KeptRecord>, StoreError> {
        kept::list(&self.folder)
    }

    /// All pins, of all processes.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        pins::list(&self.folder)
    }

    /// Pins a listed point; returns once the pin is durable and the point is known to be kept.
    ///
    /// # Errors
    /// [`StoreError::NoPoint`] when it is not listed (any more); nothing stays pinned then.
    pub fn pin(
        &mut self,
        point: PointId,
        who: &str,
        why: &str,
        now: UnixMillis,
    ) -> Result<Pin, StoreError> {
        self.refresh()?;
        let (folder, position) = (self.folder.clone(), self.position_of(point)?);
        pins::put(&folder, (point, position), (who, why), now, || {
            self.refresh()?;
            self.position_of(point).map(drop)
        })
    }

    /// Takes a pin off; an unknown one is fine.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn unpin(&self, pin: Uuid) -> Result<(), StoreError> {
        pins::delete(&self.folder, pin)
    }

    /// Takes a pin off for a person; who did it and why stays in the store. False when there is no
    /// such pin.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn take_off_pin(
        &self,
        pin: Uuid,
        who: &str,
        why: &str,
        now: UnixMillis,
    ) -> Result<bool, StoreError> {
        pins::take_off(&self.folder, pin, who, why, now)
    }

    /// Pins that people took off, in the order of time.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn unpinned(&self) -> Result<Vec<Unpinned>, StoreError> {
        pins::taken_off(&self.folder)
    }

    /// Place of a listed point.
    ///
    /// # Errors
    /// [`StoreError::NoPoint`].
    pub fn position_of(&self, point: PointId) -> Result<Position, StoreError> {
        if let Some(record) = self.state().point(point) {
            return Ok(record.position);
        }
        let kept = self.kept()?.into_iter().find(|record| record.id == point);
        kept.map(|record| record.position).ok_or(StoreError::NoPoint { point })
    }

    /// The points, newest first: leaves out `skip`, then at most `limit` (1000 at most).
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a marker does not open, [`StoreError::Storage`].
    pub fn points(&self, skip: u64, limit: u64, held_at: Site) -> Result<PointPage, StoreError> {
        let kept = self.kept()?;
        // A clock that was put back must not turn the order of the log round.
        let mut latest = UnixMillis(i64::MIN);
        let committed = self.state().points.iter().map(|point| {
            latest = latest.max(point.received_at);
            (latest, Listed::Committed(point))
        });
        let kept = kept.iter().map(|record| (record.received_at, Listed::Kept(record)));
        let mut all: Vec<_> = committed.chain(kept).enumerate().collect();
        all.sort_by_key(|(order, (received_at, _))| Reverse((*received_at, *order)));
        let total = all.len() as u64;
        let limit = usize::try_from(limit).unwrap_or(PAGE_MAX).min(PAGE_MAX);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let (pins, names) = (self.pins()?, evidence::names(&self.folder)?);
        let page = all.iter().skip(skip).take(limit);
        let points = page.map(|(_, (_, listed))| self.info(listed, &pins, &names, held_at));
        Ok(PointPage { points: points.collect::<Result<_, _>>()?, total })
    }

    /// One point and, when it is known, the machine at its cut.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn point(
        &self,
        id: PointId,
        held_at: Site,
    ) -> Result<Option<(PointInfo, Option<MachineSpec>)>, StoreError> {
        let (pins, names) = (self.pins()?, evidence::names(&self.folder)?);
        if let Some(record) = self.state().point(id) {
            let machine = self.marker(record)?.machine;
            let info = self.info(&Listed::Committed(record), &pins, &names, held_at)?;
            return Ok(Some((info, Some(machine))));
        }
        let Some(record) = self.kept()?.into_iter().find(|record| record.id == id) else {
            return Ok(None);
        };
        let info = self.info(&Listed::Kept(&record), &pins, &names, held_at)?;
        Ok(Some((info, record.machine)))
    }

    fn info(
        &self,
        listed: &Listed<'_>,
        pins: &[Pin],
        names: &[String],
        held_at: Site,
    ) -> Result<PointInfo, StoreError> {
        let epoch = |place: Position| {
            self.state().branch(place.timeline).map_or(Epoch(0), |branch| branch.epoch)
        };
        let mut info = match listed {
            Listed::Committed(record) => PointInfo {
                id: record.id,
                name: record.name.clone(),
                position: record.position,
                kind: record.kind,
                origin: record.origin.clone(),
                cut_at: record.cut_at,
                received_at: record.received_at,
                epoch: epoch(record.position),
                expires_at: None,
                held_at,
                disks: self.marker(record)?.disks,
                pinned_by: Vec::new(),
                verification: Default::default(),
            },
            Listed::Kept(record) => PointInfo {
                id: record.id,
                name: record.name.clone(),
                position: record.position,
                kind: record.kind,
                origin: record.origin.clone(),
                cut_at: record.cut_at,
                received_at: record.received_at,
                epoch: epoch(record.position),
                expires_at: None,
                held_at,
                disks: record.disks.clone(),
                pinned_by: Vec::new(),
                verification: Default::default(),
            },
        };
        let mine = pins.iter().filter(|pin| pin.point == info.id);
        info.pinned_by = mine.map(|pin| format!("{}: {}", pin.who, pin.why)).collect();
        info.verification = evidence::verification(&self.folder, names, info.id)?;
        Ok(info)
    }

    /// Adds what a test of a point showed; names and hashes the picture.
    ///
    /// # Errors
    /// [`StoreError::NoPoint`] when the point is not listed; [`StoreError::Storage`].
    pub fn put_evidence(
        &self,
        point: PointId,
        outcome: TestOutcome,
        evidence: Evidence,
        picture: Option<&[u8]>,
    ) -> Result<Evidence, StoreError> {
        self.position_of(point)?;
        evidence::put(&self.folder, point, outcome, evidence, picture)
    }

    /// The picture that a point's evidence names, as it was put.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn picture(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        evidence::picture(&self.folder, name)
    }

    /// Bytes of the item's segments.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn stored_bytes(&self) -> Result<u64, StoreError> {
        let folder = self.folder.path("segments");
        let names = self.folder.blobs.list(&folder)?;
        let lens = names.iter().map(|name| self.folder.blobs.len(&format!("{folder}/{name}")));
        lens.map(|len| Ok(len?.unwrap_or(0))).sum()
    }

    /// What the item takes, and how much of that is needed.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn space(&self) -> Result<Space, StoreError> {
        let mut space = Space::default();
        let state = self.state();
        for name in self.folder.blobs.list(&self.folder.path("segments"))? {
            let len = self.folder.blobs.len(&self.folder.path(&format!("segments/{name}")))?;
            let known = name.parse().is_ok_and(|id| state.segments.contains_key(&id));
            let of = if known { &mut space.segment_bytes } else { &mut space.waiting_bytes };
            *of += len.unwrap_or(0);
        }
        let mut layered = BTreeMap::new();
        for record in state.layers.values() {
            space.layers += 1;
            space.layer_bytes += record.bytes;
            match Layer::open(&self.folder, record).and_then(|layer| layer.accounts(&self.folder)) {
                Ok(accounts) => layered.extend(accounts),
                // The audit's business: this is for figures.
                Err(error) if layer_of(&error).is_some() => {}
                Err(error) => return Err(error),
            }
        }
        let live = |range: &SegmentRange| {
            let whole = range.bytes - SEGMENT_HEADER_BYTES as u64;
            layered.get(&range.segment).map_or(whole, |live: &Live| live.bytes)
        };
        space.live_bytes = state.segments.values().map(live).sum();
        Ok(space)
    }

    /// The places whose data must survive: listed points, pins, kept work, and the heads of
    /// timelines that are still written.
    pub(crate) fn roots(&self) -> Result<Vec<Position>, StoreError> {
        let state = self.state();
        let mut roots: Vec<Position> = state.points.iter().map(|point| point.position).collect();
        roots.extend(self.pins()?.iter().map(|pin| pin.position));
        roots.extend(self.kept()?.iter().map(|record| record.position));
        let written = state.branches.iter().filter(|b| !state.retired.contains(&b.timeline));
        roots.extend(written.filter_map(|branch| {
            Some(Position { timeline: branch.timeline, lsn: state.head(branch.timeline)? })
        }));
        Ok(roots)
    }

    /// Whether the data of a place are kept: a listed point, a pinned place, the base of kept
    /// work, or the head of a timeline that has not ended. Only such a place can be a parent of a
    /// timeline or be viewed. What expires in between is the caller's to keep out.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`]: a note could not be read, so it is not
    /// known.
    pub fn is_kept(&self, position: Position) -> Result<bool, StoreError> {
        let listed = self.state().point_at(position).is_some();
        Ok(listed || self.roots()?.contains(&position))
    }

    /// Checks that the data of a place are kept.
    pub(crate) fn check_kept(&self, position: Position) -> Result<(), StoreError> {
        if self.is_kept(position)? {
            return Ok(());
        }
        let place = format!("{} of timeline {}", position.lsn, position.timeline);
        Err(StoreError::NotKept { place })
    }

    /// Opens the marker of a point.
    pub(crate) fn marker(&self, record: &PointRecord) -> Result<Marker, StoreError> {
        point_marker(&self.folder, record)
    }

    /// The committed range that holds `lsn` of `timeline`.
    pub(crate) fn range_of(&self, timeline: TimelineId, lsn: Lsn) -> Option<&SegmentRange> {
        let before = self.state().ranges(timeline, Lsn(0), lsn).next_back();
        before.filter(|range| lsn <= range.last)
    }

    /// Header of the committed segment that holds `lsn`, and offset and length of its record.
    pub(crate) fn find_record(
        &self,
        timeline: TimelineId,
        lsn: Lsn,
    ) -> Result<Option<(SegmentHeader, u64, usize)>, StoreError> {
        let Some(range) = self.range_of(timeline, lsn) else { return Ok(None) };
        let index = read_index(&self.folder, range)?;
        let entry = index.entries.iter().find(|entry| entry.lsn == lsn);
        Ok(entry.map(|entry| {
            let len = crate::segments::record_end(entry) - u64::from(entry.offset);
            (index.header, u64::from(entry.offset), len as usize)
        }))
    }
}

/// The item's name, where no config server knows it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) name: String,
}

/// Opens the marker of a point.
pub(crate) fn point_marker(
    folder: &ItemFolder,
    record: &PointRecord,
) -> Result<Marker, StoreError> {
    let place = record.marker;
    let path = folder.segment_path(place.segment);
    let head = folder.blobs.read_at(&path, 0, SEGMENT_HEADER_BYTES)?;
    let header = SegmentHeader::decode(&head).map_err(|error| StoreError::damaged(&path, error))?;
    let marker = open_marker(folder, &header, place.offset, place.len as usize)?;
    if marker.point == record.id && header.timeline == record.position.timeline {
        Ok(marker)
    } else {
        Err(StoreError::damaged(&path, "its marker is another point's"))
    }
}

/// Opens the marker record at a place of a segment.
pub(crate) fn open_marker(
    folder: &ItemFolder,
    header: &SegmentHeader,
    offset: u64,
    len: usize,
) -> Result<Marker, StoreError> {
    let path = folder.segment_path(header.segment);
    let record = read_record(folder, &path, offset, len)?;
    let opener = folder.keys.opener(&path, header)?;
    let opened = opener.open_marker(&record.header, &record.header_bytes, &record.stored);
    opened.map_err(|error| StoreError::damaged(&path, error))
}
