//! What the config server asks of the store: points, a point, a picture.

use super::SiteStore;
use leeward_model::{Code, ItemId, PointInfo, Problem, UnixMillis};
use leeward_replica::ItemStore;
use leeward_wire::message::{Answer, Query, RETENTION_FROZEN_SECONDS};
use std::sync::Arc;

impl SiteStore {
    async fn is_absent(self: &Arc<Self>, item: ItemId, what: &str) -> Result<bool, Problem> {
        let key = self.hash_key(item).await.map_err(|error| error.problem(what))?;
        Ok(key.is_none())
    }

    /// Answers a question of the config server; `keeps` is how long points are kept, in seconds.
    ///
    /// # Errors
    /// What the operator reads.
    pub async fn answer(
        self: &Arc<Self>,
        query: Query,
        keeps: Option<u64>,
    ) -> Result<Answer, Problem> {
        let site = self.site;
        let what = "the replica store could not be asked";
        // A part that waits for its hash key holds nothing yet.
        match &query {
            Query::Points { item, .. } if self.is_absent(*item, what).await? => {
                return Ok(Answer::Points { points: Vec::new(), total: 0 });
            }
            Query::Point { item, .. } if self.is_absent(*item, what).await? => {
                return Ok(Answer::Point { point: None, machine: None });
            }
            Query::Points { .. } | Query::Point { .. } | Query::Picture { .. } => {}
        }
        match query {
            Query::Points { item, skip, limit } => {
                let page = self.ask(item, what, move |store| {
                    store.reader_mut().refresh()?;
                    let mut page = store.reader().points(skip, limit, site)?;
                    page.points.iter_mut().for_each(|point| set_expiry(store, point, keeps));
                    Ok(page)
                });
                let page = page.await?;
                Ok(Answer::Points { points: page.points, total: page.total })
            }
            Query::Point { item, point } => {
                let found = self.ask(item, what, move |store| {
                    store.reader_mut().refresh()?;
                    let mut found = store.reader().point(point, site)?;
                    if let Some((point, _)) = &mut found {
                        set_expiry(store, point, keeps);
                    }
                    Ok(found)
                });
                let (point, machine) = match found.await? {
                    Some((info, machine)) => (Some(Box::new(info)), machine.map(Box::new)),
                    None => (None, None),
                };
                Ok(Answer::Point { point, machine })
            }
            Query::Picture { item, name } => {
                let wanted = name.clone();
                let picture = self.ask(item, what, move |store| store.reader().picture(&wanted));
                let picture = picture.await?.ok_or_else(|| {
                    Code::NOT_FOUND.problem(format!("there is no picture {name}"))
                })?;
                use base64::Engine as _;
                let base64 = base64::engine::general_purpose::STANDARD.encode(picture);
                Ok(Answer::Picture { base64 })
            }
        }
    }
}

/// Says when `expire` lets the point go, if nothing changes.
fn set_expiry(store: &ItemStore, point: &mut PointInfo, keeps: Option<u64>) {
    let keeps = keeps.filter(|seconds| *seconds < RETENTION_FROZEN_SECONDS);
    let newest = store.reader().newest_point().map(|newest| newest.id);
    if newest == Some(point.id) || !point.pinned_by.is_empty() {
        return;
    }
    point.expires_at = keeps.and_then(|seconds| {
        let ms = i64::try_from(seconds.checked_mul(1000)?).ok()?;
        Some(UnixMillis(point.received_at.0.checked_add(ms)?))
    });
}
