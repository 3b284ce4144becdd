//! Recovery points, asked from the hosts that hold the stores. Nothing of them is kept here.

use crate::store::{self, items::ItemRow};
use crate::{Control, ControlError, ErrorKind, error::Result};
use base64::Engine as _;
use leeward_model::{Epoch, HostId, ItemId, MachineSpec, PointId, PointInfo, UnixMillis};
use leeward_wire::message::{Answer, Query};

/// Points that are asked for at once.
const PAGE_MAX: u64 = 1000;

/// Is a page of an item's points, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct PointPage {
    /// The page.
    pub points: Vec<PointInfo>,
    /// Number of all points of the stores that answered.
    pub total: u64,
    /// Names of hosts whose points are missing because they did not answer.
    pub missing: Vec<String>,
}

/// Is one point with the machine as it was.
#[derive(Clone, Debug, PartialEq)]
pub struct PointView {
    /// The point.
    pub point: PointInfo,
    /// The machine at the cut, when the store has it.
    pub machine: Option<MachineSpec>,
}

fn other_answer(query: &str) -> ControlError {
    ControlError::internal(
        format!("a host answered another question than {query}"),
        &"protocol error",
    )
}

/// Is a host whose store may have points of an item.
struct Holder {
    host: HostId,
    name: String,
}

impl Control {
    /// Lists the points of both sites' stores, newest first, without the `skip` newest; `limit` is
    /// 1 to 1000. Newest is by epoch, then by the time at which a store had it: the clocks of two
    /// hosts may be hours apart. Each store that answers is in.
    ///
    /// # Errors
    /// Unavailable with `ROLE_AWAY` while no host that holds a store is connected.
    pub async fn point_list(&self, item: ItemId, skip: u64, limit: u64) -> Result<PointPage> {
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(ControlError::bad_request("limit: 1 to 1000 points a page"));
        }
        let mut page = PointPage { points: Vec::new(), total: 0, missing: Vec::new() };
        let (mut failed, mut answered) = (None, false);
        for holder in self.holders(item).await? {
            match self.newest_points(&holder, item, skip.saturating_add(limit)).await {
                Ok((points, total)) => {
                    answered = true;
                    page.points = merge(page.points, points);
                    page.total += total;
                }
                Err(error) => {
                    page.missing.push(holder.name);
                    failed.get_or_insert(error);
                }
            }
        }
        // Unknown is not absent: with no store heard there is no answer at all.
        if let Some(error) = failed.filter(|_| !answered) {
            return Err(error);
        }
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        page.points = page.points.into_iter().skip(skip).take(limit).collect();
        Ok(page)
    }

    /// The `count` newest points of one store, and how many it has.
    async fn newest_points(
        &self,
        holder: &Holder,
        item: ItemId,
        count: u64,
    ) -> Result<(Vec<PointInfo>, u64)> {
        let mut found: Vec<PointInfo> = Vec::new();
        loop {
            let skip = found.len() as u64;
            let limit = count.saturating_sub(skip).clamp(1, PAGE_MAX);
            let query = Query::Points { item, skip, limit };
            let (points, total) = match self.ask(holder.host, &holder.name, query).await {
                Ok(Answer::Points { points, total }) => (points, total),
                Ok(Answer::Point { .. } | Answer::Picture { .. }) => {
                    return Err(other_answer("points"));
                }
                // A store that the item has not come to yet.
                Err(error) if error.kind == ErrorKind::NotFound => (Vec::new(), 0),
                Err(error) => return Err(error),
            };
            let last = points.is_empty();
            found.extend(points);
            if last || found.len() as u64 >= count.min(total) {
                return Ok((found, total));
            }
        }
    }

    /// Finds a point in either store.
    ///
    /// # Errors
    /// NotFound when there is no such point; Unavailable with `ROLE_AWAY` when a host that may
    /// have it is not connected.
    pub async fn point_get(&self, item: ItemId, point: PointId) -> Result<PointView> {
        let mut failed = None;
        for holder in self.holders(item).await? {
            match self.ask(holder.host, &holder.name, Query::Point { item, point }).await {
                Ok(Answer::Point { point: Some(point), machine }) => {
                    return Ok(PointView { point: *point, machine: machine.map(|m| *m) });
                }
                Ok(Answer::Point { point: None, .. }) => {}
                Ok(Answer::Points { .. } | Answer::Picture { .. }) => {
                    return Err(other_answer("point"));
                }
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        let absent = || ControlError::not_found(format!("the item has no recovery point {point}"));
        Err(failed.unwrap_or_else(absent))
    }

    /// Fetches a picture that a point's evidence names: PNG bytes.
    ///
    /// # Errors
    /// As [`Self::point_get`].
    pub async fn point_picture(&self, item: ItemId, name: &str) -> Result<Vec<u8>> {
        let mut failed = None;
        for holder in self.holders(item).await? {
            let query = Query::Picture { item, name: name.to_owned() };
            match self.ask(holder.host, &holder.name, query).await {
                Ok(Answer::Picture { base64 }) => {
                    let engine = &base64::engine::general_purpose::STANDARD;
                    return engine.decode(base64).map_err(|error| {
                        ControlError::internal("could not read a picture from a host", &error)
                    });
                }
                Ok(Answer::Points { .. } | Answer::Point { .. }) => {
                    return Err(other_answer("picture"));
                }
                Err(error) if error.kind == ErrorKind::NotFound && failed.is_some() => {}
                Err(error) => failed = Some(error),
            }
        }
        let absent = || ControlError::not_found(format!("the item has no picture {name}"));
        Err(failed.unwrap_or_else(absent))
    }

    /// The hosts whose stores may have points of the item, the target's first.
    async fn holders(&self, item: ItemId) -> Result<Vec<Holder>> {
        let mut tx = self.store().read().await?;
        let Some(row): Option<ItemRow> = store::items::find(&mut tx, item).await? else {
            return Err(crate::items::no_item(&mut tx, item).await);
        };
        let mut holders: Vec<Holder> = Vec::new();
        for site in [row.target_site(), row.source_site()] {
            let end = row.plan.end(site);
            if !end.has_store() || holders.iter().any(|holder| holder.host == end.host) {
                continue;
            }
            let name = store::hosts::find(&mut tx, end.host).await?.map(|host| host.name);
            holders.push(Holder { host: end.host, name: name.unwrap_or_default() });
        }
        Ok(holders)
    }
}

/// What grows from point to point, over both stores: a store takes nothing of an older epoch.
fn age(point: &PointInfo) -> (Epoch, UnixMillis) {
    (point.epoch, point.received_at)
}

/// Puts two lists, each newest first, into one.
fn merge(a: Vec<PointInfo>, b: Vec<PointInfo>) -> Vec<PointInfo> {
    let mut merged = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some(one), Some(other)) if age(one) >= age(other) => a.next(),
            (_, Some(_)) => b.next(),
            (_, None) => a.next(),
        };
        match next {
            Some(point) => merged.push(point),
            None => return merged,
        }
    }
}
