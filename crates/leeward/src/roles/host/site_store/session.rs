//! What a data session asks of the store: where its source goes on, segments, records, commits. The
//! session itself is `target`'s.

use super::SiteStore;
use crate::{intake::Held, roles::host::clock::stamp};
use leeward_model::{Branch, ItemId, Lsn, PointId, PointOrigin, Position};
use leeward_replica::{ItemStore, PointReceipt, StoreError};
use leeward_wire::{data::DataWelcome, message::ServerStamp, segment::SegmentHeader};
use std::sync::Arc;

impl SiteStore {
    /// Opens the branch for writing and says where its source goes on.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn welcome(
        self: &Arc<Self>,
        item: ItemId,
        branch: Branch,
        credit_bytes: u64,
    ) -> Result<DataWelcome, StoreError> {
        let now = self.wall.now();
        self.with(item, move |store| {
            store.open_branch(branch, now)?;
            // A data key that was made since the item was opened is the new session's.
            store.reader_mut().refresh_keys()?;
            let reader = store.reader();
            let state = reader.state();
            let durable = goes_on(store, &branch)?;
            let head = durable.or(branch.parent);
            let lineage = head.map(|head| state.chain(head)).unwrap_or_default();
            let seen = |point: &&leeward_replica::PointRecord| {
                lineage.iter().any(|part| {
                    part.timeline == point.position.timeline && point.position.lsn <= part.lsn
                })
            };
            let newest = state.points.iter().rev().find(seen);
            let keys = reader.keys();
            Ok(DataWelcome {
                version: leeward_wire::message::PROTOCOL_VERSION,
                data_key: keys.data.clone(),
                hash_key: keys.hash.clone(),
                key_version: keys.version,
                durable,
                newest_point: newest.map(|point| (point.id, point.position)),
                credit_bytes,
            })
        })
        .await
    }

    /// Begins a segment.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn begin_segment(
        self: &Arc<Self>,
        item: ItemId,
        header: SegmentHeader,
    ) -> Result<(), StoreError> {
        self.with(item, move |store| store.begin_segment(&header)).await
    }

    /// Takes records in order, all or none, and makes them durable; returns the newest durable LSN.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn append(self: &Arc<Self>, item: ItemId, held: Held) -> Result<Lsn, StoreError> {
        self.with(item, move |store| {
            let records: Vec<&[u8]> = held.records.iter().map(AsRef::as_ref).collect();
            store.append_all(&records)?;
            let durable = store.sync()?;
            Ok(durable.map_or(Lsn(0), |position| position.lsn))
        })
        .await
    }

    /// Commits progress.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn commit_progress(
        self: &Arc<Self>,
        item: ItemId,
        at: Position,
    ) -> Result<(), StoreError> {
        let now = self.wall.now();
        self.with(item, move |store| store.commit_progress(at.timeline, at.lsn, now)).await
    }

    /// Commits a recovery point.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn commit_point(
        self: &Arc<Self>,
        item: ItemId,
        at: Position,
        origin: PointOrigin,
        cut_server: Option<ServerStamp>,
    ) -> Result<PointId, StoreError> {
        let received_at = self.wall.now();
        let name = match origin {
            PointOrigin::Replicated => None,
            PointOrigin::BeforeChange => Some(format!("before-change-{}", stamp(received_at))),
            PointOrigin::Divergent => Some(format!("divergent-{}", stamp(received_at))),
        };
        self.with(item, move |store| {
            let receipt =
                PointReceipt { origin, name, cut_server, received_at, clock_offset_ms: None };
            Ok(store.commit_point(at, &receipt)?.id)
        })
        .await
    }
}

/// The place that a source of `branch` goes on from: the newest that is committed on it, or where
/// it leaves a parent that is kept here. None when nothing of it is here, or it has ended.
pub(super) fn goes_on(store: &ItemStore, branch: &Branch) -> Result<Option<Position>, StoreError> {
    let reader = store.reader();
    let state = reader.state();
    if state.retired.contains(&branch.timeline) {
        return Ok(None);
    }
    let own = state.heads.get(&branch.timeline).map(|lsn| (branch.timeline, *lsn));
    if let Some((timeline, lsn)) = own {
        return Ok(Some(Position { timeline, lsn }));
    }
    // Of a seed the store may know another parent than its host was told.
    let parent = state.branch(branch.timeline).unwrap_or(branch).parent;
    match parent.filter(|parent| state.branch(parent.timeline).is_some()) {
        Some(parent) if reader.is_kept(parent)? => Ok(Some(parent)),
        Some(_) | None => Ok(None),
    }
}
