//! Recovery points, asked from the host that holds the store. Nothing of them is kept here.

use crate::store::{self, items::ItemRow};
use crate::{Control, ControlError, error::Result};
use base64::Engine as _;
use leeward_model::{ItemId, MachineSpec, PointId, PointInfo};
use leeward_wire::message::{Answer, Query};

/// Is a page of an item's points, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct PointPage {
    /// The page.
    pub points: Vec<PointInfo>,
    /// Number of all points.
    pub total: u64,
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

impl Control {
    /// Lists points, newest first, without the `skip` newest; `limit` is 1 to 1000.
    ///
    /// # Errors
    /// Unavailable with `ROLE_AWAY` while the host that holds the store is not connected.
    pub async fn point_list(&self, item: ItemId, skip: u64, limit: u64) -> Result<PointPage> {
        if !(1..=1000).contains(&limit) {
            return Err(ControlError::bad_request("limit: 1 to 1000 points a page"));
        }
        match self.ask_target(item, Query::Points { item, skip, limit }).await? {
            Answer::Points { points, total } => Ok(PointPage { points, total }),
            Answer::Point { .. } | Answer::Picture { .. } => Err(other_answer("points")),
        }
    }

    /// Finds a point.
    ///
    /// # Errors
    /// As [`Self::point_list`]; NotFound when there is no such point.
    pub async fn point_get(&self, item: ItemId, point: PointId) -> Result<PointView> {
        match self.ask_target(item, Query::Point { item, point }).await? {
            Answer::Point { point: Some(point), machine } => {
                Ok(PointView { point: *point, machine: machine.map(|machine| *machine) })
            }
            Answer::Point { point: None, .. } => {
                Err(ControlError::not_found(format!("the item has no recovery point {point}")))
            }
            Answer::Points { .. } | Answer::Picture { .. } => Err(other_answer("point")),
        }
    }

    /// Fetches a picture that a point's evidence names: PNG bytes.
    ///
    /// # Errors
    /// As [`Self::point_list`].
    pub async fn point_picture(&self, item: ItemId, name: &str) -> Result<Vec<u8>> {
        match self.ask_target(item, Query::Picture { item, name: name.to_owned() }).await? {
            Answer::Picture { base64 } => {
                let engine = &base64::engine::general_purpose::STANDARD;
                engine.decode(base64).map_err(|error| {
                    ControlError::internal("could not read a picture from a host", &error)
                })
            }
            Answer::Points { .. } | Answer::Point { .. } => Err(other_answer("picture")),
        }
    }

    async fn ask_target(&self, item: ItemId, query: Query) -> Result<Answer> {
        let mut tx = self.store().read().await?;
        let row: ItemRow = store::items::find(&mut tx, item)
            .await?
            .ok_or_else(|| ControlError::not_found(format!("there is no item {item}")))?;
        let host = row.plan.target.host;
        let name = store::hosts::find(&mut tx, host).await?.map(|host| host.name);
        drop(tx);
        self.ask(host, &name.unwrap_or_default(), query).await
    }
}
