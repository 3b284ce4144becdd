//! What a store in a bucket with versions lost through somebody who is not one of its writers.
//!
//! The bucket tells that an object was deleted, and not by whom. Writers of a store delete a lot;
//! what they never delete is the store's identity and the newest manifests of an item. An item of
//! which nothing is left was destroyed by its operator, or by somebody else: only people know.

use crate::{
    folder::ITEMS,
    identity::IDENTITY,
    storage::{History, Lost},
    store::{KEYS_LOCK, LOCK},
};
use leeward_model::{ItemId, UnixMillis};
use std::collections::BTreeMap;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// When the store itself was deleted; none while it is there, and where there never was one.
    pub store: Option<UnixMillis>,
    /// Manifests that are newer than all that an item has, with the time of their deletion.
    pub manifests: Vec<(String, UnixMillis)>,
    /// Items that had manifests and have none, with the time of the last deletion.
    pub items: Vec<(ItemId, UnixMillis)>,
}

impl Losses {
    /// Sorts out what is known of the store's objects.
    pub fn of(history: &History) -> Losses {
        let mut newest: BTreeMap<ItemId, u64> = BTreeMap::new();
        for (item, number) in history.present().filter_map(manifest) {
            let known = newest.entry(item).or_default();
            *known = number.max(*known);
        }
        let (mut losses, mut items) = (Losses::default(), BTreeMap::new());
        for (name, at) in history.deleted() {
            match (name, manifest(name)) {
                (IDENTITY, _) => losses.store = Some(at),
                (_, Some((item, number))) => match newest.get(&item) {
                    Some(there) if number > *there => losses.manifests.push((name.to_owned(), at)),
                    Some(_) => {}
                    None => {
                        let last = items.entry(item).or_insert(at);
                        *last = at.max(*last);
                    }
                },
                (_, None) => {}
            }
        }
        losses.items = items.into_iter().collect();
        losses
    }

    /// Whether anything was lost that no writer deletes.
    pub fn is_loss(&self) -> bool {
        self.store.is_some() || !self.manifests.is_empty()
    }
}

/// What a store had at a time, by the bucket's clock, and has not any more as it was. Locks and
/// probes are not of it: a former holder's must not come back.
pub fn lost_since(history: &History, at: UnixMillis) -> Vec<Lost> {
    let passing = |name: &str| {
        let first = name.split('/').next().unwrap_or_default();
        [LOCK, KEYS_LOCK].contains(&first) || first.starts_with("probe-")
    };
    history.lost_since(at).into_iter().filter(|lost| !passing(&lost.name)).collect()
}

/// The minutes in which objects were deleted that are not there, oldest first: the time of the
/// first one and how many. That helps to find the hour of an intruder.
pub fn deletions(history: &History) -> Vec<(UnixMillis, usize)> {
    let mut minutes: BTreeMap<i64, (UnixMillis, usize)> = BTreeMap::new();
    for (_, at) in history.deleted() {
        let (first, count) = minutes.entry(at.0.div_euclid(60_000)).or_insert((at, 0));
        *first = at.min(*first);
        *count += 1;
    }
    minutes.into_values().collect()
}

/// The item and the number, if a blob of this name is a manifest.
fn manifest(name: &str) -> Option<(ItemId, u64)> {
    let mut parts = name.split('/');
    let place = (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next());
    let (ITEMS, item, "manifest", number, None) = place else { return None };
    Some((item.parse().ok()?, number.parse().ok()?))
}
