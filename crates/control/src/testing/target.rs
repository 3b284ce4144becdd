//! What a scripted host does with an item's replica: a list of points.

use super::host::ScriptedItem;
use super::source::Sent;
use crate::Now;
use crate::clock::{Draw, new_id};
use leeward_model::{
    Branch, Code, Epoch, ItemId, Lsn, PointId, PointInfo, PointKind, PointOrigin, Position,
    Problem, Site, Verification,
};
use leeward_wire::message::{
    Answer, ItemDuty, NewestPoint, Query, Seeded, ServerStamp, TargetDuty, TargetObserved,
};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(super) struct Target {
    duty: TargetDuty,
    fence: Epoch,
    points: Vec<Kept>,
    /// How far a copy is that has no point yet, if the test says so.
    copied: Option<Position>,
    deleted: bool,
}

/// Is a point and what the machine had written by then.
#[derive(Clone, Debug)]
struct Kept {
    info: PointInfo,
    stamp: Option<ServerStamp>,
    data: u64,
}

pub(super) fn target_step(known: &mut ScriptedItem, duty: &ItemDuty) {
    let Some(wanted) = &duty.target else { return };
    let target = known.target.get_or_insert_with(|| Target {
        duty: wanted.clone(),
        fence: wanted.fence,
        points: Vec::new(),
        copied: None,
        deleted: false,
    });
    assert!(wanted.fence >= target.fence, "a fence never falls");
    target.duty = wanted.clone();
    target.fence = wanted.fence;
    if wanted.delete {
        target.points.clear();
        target.deleted = true;
    }
}

impl Target {
    pub(super) fn is_deleted(&self) -> bool {
        self.deleted
    }

    pub(super) fn site(&self) -> Site {
        self.duty.site
    }

    /// A copy has come to `place` and has no point yet.
    pub(super) fn copied(&mut self, place: Position) {
        self.copied = Some(place);
    }

    /// Whether data of `branch` are taken.
    pub(super) fn takes(&self, branch: &Branch) -> bool {
        self.duty.receive
            && branch.epoch >= self.fence
            && self.duty.branch.timeline == branch.timeline
    }

    pub(super) fn next_position(&self, branch: &Branch) -> Position {
        let timeline = branch.timeline;
        let on_it = self.points.iter().map(|kept| kept.info.position);
        let newest = on_it.filter(|at| at.timeline == timeline).map(|at| at.lsn).max();
        let parent = branch.parent.map_or(Lsn(0), |parent| parent.lsn);
        Position { timeline, lsn: newest.unwrap_or(parent).next() }
    }

    /// Takes a point, unless the fence or the duty forbids it.
    pub(super) fn receive(&mut self, sent: &Sent, draw: &dyn Draw, now: &Now) -> Option<PointId> {
        if !self.takes(&sent.branch) {
            return None;
        }
        if let Some(parent) = sent.branch.parent {
            let mut known = self.points.iter().map(|kept| kept.info.position).chain(self.copied);
            let known = known.any(|place| place == parent);
            assert!(known, "a branch leaves from a place of this store, not from {parent:?}");
        }
        let id = new_id(draw);
        let position = self.next_position(&sent.branch);
        let info = point(id, position, (sent.kind, PointOrigin::Replicated), self.site(), now);
        self.points.push(Kept { info, stamp: Some(now.stamp()), data: sent.data });
        Some(id)
    }

    /// Keeps old disks as a point of a branch of their own.
    pub(super) fn seed(
        &mut self,
        branch: &Branch,
        data: u64,
        draw: &dyn Draw,
        now: &Now,
    ) -> Seeded {
        let position = self.next_position(branch);
        let id = new_id(draw);
        let what = (PointKind::CrashConsistent, PointOrigin::Divergent);
        let info = point(id, position, what, self.site(), now);
        self.keep(info, data);
        Seeded::Stored { point: id, position }
    }

    /// Lists what somebody wrote who was not replicated.
    pub(super) fn keep(&mut self, info: PointInfo, data: u64) {
        self.points.push(Kept { info, stamp: None, data });
    }

    /// What the machine had written by a point.
    pub(super) fn data(&self, point: PointId) -> u64 {
        let found = self.points.iter().find(|kept| kept.info.id == point);
        found.expect("a machine is made from a point of its host's own store").data
    }

    pub(super) fn observe(&self) -> TargetObserved {
        let newest = self.points.iter().max_by_key(|kept| kept.info.received_at);
        TargetObserved {
            fence: self.fence,
            connected: true,
            newest: newest.map(|Kept { info, stamp, .. }| NewestPoint {
                point: info.id,
                position: info.position,
                kind: info.kind,
                cut_at: info.cut_at,
                cut_server: stamp.clone(),
                received_at: info.received_at,
            }),
            durable: self.copied.or(newest.map(|kept| kept.info.position)),
            stored_bytes: 0,
            points: self.points.len() as u64,
            audit: None,
            served: Vec::new(),
            problem: None,
            deleted: self.deleted,
        }
    }
}

pub(super) fn answer(
    items: &BTreeMap<ItemId, ScriptedItem>,
    query: &Query,
) -> Result<Answer, Problem> {
    let points = |item: &ItemId| {
        let target = items.get(item).and_then(|known| known.target.as_ref());
        target.map(|target| &target.points).ok_or_else(|| Code::NOT_FOUND.problem("no replica"))
    };
    match query {
        Query::Points { item, skip, limit } => {
            let points = points(item)?;
            let page = points.iter().rev().skip(usize::try_from(*skip).unwrap_or(usize::MAX));
            let page = page.take(usize::try_from(*limit).unwrap_or(usize::MAX));
            let points_page = page.map(|kept| kept.info.clone()).collect();
            Ok(Answer::Points { points: points_page, total: points.len() as u64 })
        }
        Query::Point { item, point } => {
            let found = points(item)?.iter().find(|kept| kept.info.id == *point);
            let point = found.map(|kept| Box::new(kept.info.clone()));
            Ok(Answer::Point { point, machine: None })
        }
        Query::Picture { .. } => Ok(Answer::Picture { base64: "iVBORw==".to_owned() }),
    }
}

pub(super) fn point(
    id: PointId,
    position: Position,
    (kind, origin): (PointKind, PointOrigin),
    held_at: Site,
    now: &Now,
) -> PointInfo {
    PointInfo {
        id,
        name: String::new(),
        position,
        kind,
        origin,
        cut_at: now.wall,
        received_at: now.wall,
        epoch: Epoch(0),
        expires_at: None,
        held_at,
        disks: Vec::new(),
        pinned_by: Vec::new(),
        verification: Verification::Untested,
    }
}
