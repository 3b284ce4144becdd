//! Extents that a view keeps decoded, those that were fetched ahead apart from the others, and how
//! often that helped.

use bytes::Bytes;
use leeward_model::{DiskNumber, ExtentNumber};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Extents kept decoded: 16 MiB. Sequential reads of less than an extent then open it once.
const EXTENTS_MAX: usize = 256;
/// Extents fetched ahead that are kept beside these: 64 MiB. What comes beyond is not kept.
pub(super) const AHEAD_MAX: usize = 1024;

/// Of what a view was asked to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Extents that were decoded already, because of an earlier read.
    pub kept: u64,
    /// Extents that were decoded already, because they were fetched ahead.
    pub ahead: u64,
    /// Extents that had to be decoded.
    pub decoded: u64,
}

impl ReadCounts {
    /// Share of extents that were decoded already, in percent; 0 before the first read.
    pub fn hit_percent(&self) -> f64 {
        let hits = self.kept + self.ahead;
        match hits + self.decoded {
            0 => 0.0,
            all => hits as f64 * 100.0 / all as f64,
        }
    }
}

type Place = (DiskNumber, ExtentNumber);

#[derive(Default)]
struct Kept {
    extents: HashMap<Place, Bytes>,
    /// The oldest first.
    order: VecDeque<Place>,
    ahead: HashMap<Place, Bytes>,
}

/// See the module. From any thread; nothing is done while the lock is held.
#[derive(Default)]
pub(super) struct ExtentCache {
    kept: Mutex<Kept>,
    hits: AtomicU64,
    ahead_hits: AtomicU64,
    decoded: AtomicU64,
}

impl ExtentCache {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The extent, if it is kept; counted if it is.
    pub(super) fn get(&self, place: Place) -> Option<Bytes> {
        let kept = self.lock();
        if let Some(found) = kept.extents.get(&place) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Some(found.clone());
        }
        let found = kept.ahead.get(&place).cloned();
        self.ahead_hits.fetch_add(u64::from(found.is_some()), Ordering::Relaxed);
        found
    }

    /// Whether the extent is not kept yet, and there is room for it.
    pub(super) fn is_wanted_ahead(&self, place: Place) -> bool {
        let kept = self.lock();
        let known = kept.extents.contains_key(&place) || kept.ahead.contains_key(&place);
        !known && kept.ahead.len() < AHEAD_MAX
    }

    /// Keeps what was fetched ahead.
    pub(super) fn keep_ahead(&self, place: Place, bytes: Bytes) {
        let mut kept = self.lock();
        if kept.ahead.len() < AHEAD_MAX {
            kept.ahead.insert(place, bytes);
        }
    }

    /// Counts an extent that was decoded and is not kept.
    pub(super) fn count_decoded(&self) {
        self.decoded.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps what was just decoded, in the place of the oldest.
    pub(super) fn keep(&self, place: Place, bytes: Bytes) {
        self.decoded.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.lock();
        if kept.extents.insert(place, bytes).is_none() {
            kept.order.push_back(place);
        }
        if kept.order.len() > EXTENTS_MAX
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.extents.remove(&oldest);
        }
    }

    pub(super) fn counts(&self) -> ReadCounts {
        ReadCounts {
            kept: self.hits.load(Ordering::Relaxed),
            ahead: self.ahead_hits.load(Ordering::Relaxed),
            decoded: self.decoded.load(Ordering::Relaxed),
        }
    }
}
