//! What this host sees, gathered from its workers and sent whole to the config server.

use leeward_model::{InstanceId, ItemId, Problem, TimelineId};
use leeward_wire::message::{
    CapturePhase, InstanceObserved, ItemObserved, SourceObserved, TargetObserved,
};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;

/// The board. Cheap to write; every write that changes something wakes the link.
#[derive(Default)]
pub struct Board {
    items: Mutex<BTreeMap<ItemId, Entry>>,
    changed: Notify,
    sessions: AtomicU64,
}

#[derive(Default)]
struct Entry {
    source: Option<SourceObserved>,
    target: Option<TargetObserved>,
    instances: BTreeMap<InstanceId, InstanceObserved>,
}

impl Board {
    fn items(&self) -> MutexGuard<'_, BTreeMap<ItemId, Entry>> {
        // A poisoned board means that a worker panicked while it held it: its parts are plain
        // values that are replaced whole, so they are still what some worker saw.
        self.items.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes the item's entry as source; `None` in `change` removes it.
    pub fn source(&self, item: ItemId, change: impl FnOnce(&mut Option<SourceObserved>)) {
        let mut items = self.items();
        let entry = items.entry(item).or_default();
        let before = entry.source.clone();
        change(&mut entry.source);
        if entry.source != before {
            self.changed.notify_one();
        }
    }

    /// Changes the item's entry as target; `None` in `change` removes it.
    pub fn target(&self, item: ItemId, change: impl FnOnce(&mut Option<TargetObserved>)) {
        let mut items = self.items();
        let entry = items.entry(item).or_default();
        let before = entry.target.clone();
        change(&mut entry.target);
        if entry.target != before {
            self.changed.notify_one();
        }
    }

    /// Shows what is wrong with the item's replica, until [`Self::target_mended`] names it.
    pub fn target_fails(&self, item: ItemId, problem: Problem) {
        self.target(item, |seen| {
            if let Some(seen) = seen {
                seen.problem = Some(problem);
            }
        });
    }

    /// What was shown of the item's replica in these words is over; anything else stays.
    pub fn target_mended(&self, item: ItemId, what: &str) {
        self.target(item, |seen| {
            if let Some(seen) = seen {
                seen.problem.take_if(|shown| shown.what == what);
            }
        });
    }

    /// Sets or removes what is seen of one machine made from a point.
    pub fn instance(&self, item: ItemId, instance: InstanceId, seen: Option<InstanceObserved>) {
        let mut items = self.items();
        let entry = items.entry(item).or_default();
        let before = entry.instances.get(&instance).cloned();
        if before == seen {
            return;
        }
        match seen {
            Some(seen) => entry.instances.insert(instance, seen),
            None => entry.instances.remove(&instance),
        };
        self.changed.notify_one();
    }

    /// What is seen of one machine made from a point.
    pub fn instance_seen(&self, item: ItemId, instance: InstanceId) -> Option<InstanceObserved> {
        self.items().get(&item)?.instances.get(&instance).cloned()
    }

    /// What is seen of the item as source.
    pub fn source_seen(&self, item: ItemId) -> Option<SourceObserved> {
        self.items().get(&item)?.source.clone()
    }

    /// All items, for the observed state.
    pub fn items_seen(&self) -> Vec<ItemObserved> {
        let items = self.items();
        let seen = items.iter().map(|(item, entry)| ItemObserved {
            item: *item,
            source: entry.source.clone(),
            target: entry.target.clone(),
            instances: entry.instances.values().cloned().collect(),
        });
        seen.filter(|seen| {
            seen.source.is_some() || seen.target.is_some() || !seen.instances.is_empty()
        })
        .collect()
    }

    /// Wakes the link although no item changed (the list of machines did).
    pub fn poke(&self) {
        self.changed.notify_one();
    }

    /// Counts a new session to the config server.
    pub fn session_began(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    /// How many sessions to the config server there have been.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Waits for the next change.
    pub async fn wait(&self) {
        self.changed.notified().await;
    }
}

/// A source entry before anything is known.
pub fn source_blank(timeline: TimelineId, epoch: leeward_model::Epoch) -> SourceObserved {
    SourceObserved {
        machine: leeward_model::MachineState::Unknown,
        epoch,
        timeline,
        phase: CapturePhase::Idle,
        resync_done: 0,
        resync_reason: None,
        shutdown: None,
        started: None,
        divergent: None,
        seeded: None,
        cycles: Vec::new(),
        sent_bytes: 0,
        audit: None,
        problem: None,
        spool: None,
    }
}
