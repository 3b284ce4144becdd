//! Takes a new assignment: keeps it over restarts, and gives each worker its part.

use super::{
    Host, State,
    instances::{self, InstanceWork},
    receiver, replica,
    source::{self, SourceWork},
};
use crate::folder;
use leeward_model::{InstanceId, ItemId};
use leeward_wire::message::{Assignment, ItemDuty};
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tokio::sync::watch;

/// What each worker has to do.
#[derive(Default)]
pub(super) struct Workers {
    sources: BTreeMap<ItemId, watch::Sender<Option<SourceWork>>>,
    instances: BTreeMap<InstanceId, watch::Sender<Option<InstanceWork>>>,
    targets: BTreeMap<ItemId, watch::Sender<Option<ItemDuty>>>,
    /// Counts changes of instances' work.
    turn: u64,
    /// Instances whose worker has not yet acted on its newest work, and the turn of that work.
    untaken: BTreeMap<InstanceId, u64>,
    /// The newest assignment on which every instance's worker has acted.
    settled: u64,
}

impl Workers {
    /// The newest assignment that the board answers: an instance that its worker has not looked
    /// at must not pass for gone.
    pub(super) fn generation(&self, assignment: &Assignment) -> u64 {
        if self.untaken.is_empty() { assignment.generation } else { self.settled }
    }
}

impl Host {
    /// Takes a new assignment: keeps it over restarts, and gives each worker its part.
    pub fn assign(self: &Arc<Self>, assignment: Assignment) {
        let mut state = self.state();
        if state.assignment == assignment {
            return;
        }
        let path = self.folder.join("assignment.json");
        let bytes = serde_json::to_vec_pretty(&assignment).expect("plain values serialize");
        if let Err(error) = folder::write_secret(&path, &bytes) {
            tracing::error!(%error, "could not keep the assignment");
        }
        state.assignment = assignment;
        let duties = state.assignment.duties.clone();
        let State { workers, assignment, .. } = &mut *state;
        self.assign_sources(workers, &duties);
        self.assign_targets(workers, &duties);
        self.assign_instances(workers, &duties);
        workers.settled = workers.generation(assignment);
        drop(state);
        self.board.poke();
    }

    fn assign_sources(self: &Arc<Self>, workers: &mut Workers, duties: &[ItemDuty]) {
        let work_of = |duty: &ItemDuty| {
            let source = duty.source.clone()?;
            // The branch's epoch, not the item's: a host that is both ends sees the item's.
            let (item, vault, epoch) = (duty.item, duty.vault, source.branch.epoch);
            Some((item, SourceWork { item, vault, epoch, duty: source }))
        };
        let wanted: BTreeMap<_, _> = duties.iter().filter_map(work_of).collect();
        workers.sources.retain(|item, sender| {
            let keep = wanted.contains_key(item);
            if !keep {
                sender.send_replace(None);
            }
            keep
        });
        for (item, work) in wanted {
            match workers.sources.get(&item) {
                Some(sender) => replace(sender, work),
                None => {
                    let (sender, receiver) = watch::channel(Some(work));
                    workers.sources.insert(item, sender);
                    self.spawn(source::run(Arc::clone(self), item, receiver));
                }
            }
        }
    }

    fn assign_targets(self: &Arc<Self>, workers: &mut Workers, duties: &[ItemDuty]) {
        let wanted: BTreeMap<_, _> = duties
            .iter()
            .filter(|duty| duty.target.is_some())
            .map(|duty| (duty.item, duty.clone()))
            .collect();
        workers.targets.retain(|item, sender| {
            let keep = wanted.contains_key(item);
            if !keep {
                sender.send_replace(None);
            }
            keep
        });
        let Some(store) = &self.store else { return };
        for (item, work) in wanted {
            match workers.targets.get(&item) {
                Some(sender) => replace(sender, work),
                None => {
                    let (sender, receiver) = watch::channel(Some(work));
                    workers.targets.insert(item, sender);
                    self.spawn(receiver::run(Arc::clone(self), item, receiver.clone()));
                    self.spawn(replica::run(Arc::clone(self), Arc::clone(store), item, receiver));
                }
            }
        }
    }

    fn assign_instances(self: &Arc<Self>, workers: &mut Workers, duties: &[ItemDuty]) {
        let mut wanted = BTreeMap::new();
        for duty in duties {
            for instance in &duty.instances {
                let work = InstanceWork {
                    turn: 0,
                    item: duty.item,
                    name: duty.name.clone(),
                    epoch: duty.epoch,
                    duty: instance.clone(),
                };
                wanted.insert(instance.instance, work);
            }
        }
        let Workers { instances, untaken, .. } = &mut *workers;
        instances.retain(|instance, sender| {
            let keep = wanted.contains_key(instance);
            if !keep {
                sender.send_replace(None);
                untaken.remove(instance);
            }
            keep
        });
        let Some(store) = &self.store else { return };
        for (instance, mut work) in wanted {
            workers.turn += 1;
            work.turn = workers.turn;
            match workers.instances.get(&instance) {
                Some(sender) if sender.borrow().as_ref().is_some_and(|held| held.same(&work)) => {}
                Some(sender) => {
                    workers.untaken.insert(instance, work.turn);
                    sender.send_replace(Some(work));
                }
                None => {
                    let item = work.item;
                    workers.untaken.insert(instance, work.turn);
                    let (sender, receiver) = watch::channel(Some(work));
                    workers.instances.insert(instance, sender);
                    let (host, store) = (Arc::clone(self), Arc::clone(store));
                    self.spawn(instances::run(host, store, item, instance, receiver));
                }
            }
        }
    }

    /// Notes that an instance's worker has acted on its work of this turn.
    pub fn instance_taken(&self, instance: InstanceId, turn: u64) {
        let mut state = self.state();
        let State { workers, assignment, .. } = &mut *state;
        if workers.untaken.get(&instance).is_none_or(|newest| *newest > turn) {
            return;
        }
        workers.untaken.remove(&instance);
        if workers.untaken.is_empty() {
            workers.settled = assignment.generation;
            drop(state);
            self.board.poke();
        }
    }
}

/// The assignment that a host's folder holds.
pub fn assignment_load(folder: &Path) -> Assignment {
    let kept = std::fs::read(folder.join("assignment.json")).unwrap_or_default();
    serde_json::from_slice(&kept).unwrap_or_default()
}

/// Gives a worker new work; equal work does not wake it.
fn replace<T: PartialEq>(sender: &watch::Sender<Option<T>>, work: T) {
    sender.send_if_modified(|held| {
        let changed = held.as_ref() != Some(&work);
        if changed {
            *held = Some(work);
        }
        changed
    });
}
