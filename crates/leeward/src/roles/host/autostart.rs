//! Which of its owner's machines a host starts by itself, and which may be started at all.

use super::{DISCOVER_EVERY, Host, permits};
use crate::folder;
use leeward_model::{Code, ItemId, Problem};
use leeward_wire::message::{Assignment, ItemDuty, SourceDuty, SourceRun};
use std::{collections::BTreeSet, path::Path};
use tokio_util::sync::CancellationToken;

impl Host {
    /// Starts the machines that their owner wants started with the host. One that is protected
    /// and has no permit for this boot waits for it until `stop`: it comes with the first contact
    /// to the config server, unless the machine was failed over.
    pub async fn autostart(&self, stop: CancellationToken) {
        // Once a boot: a restart of this process alone must not start what its owner shut down.
        let mark = self.folder.join("autostart-boot");
        if std::fs::read_to_string(&mark).is_ok_and(|boot| boot.trim() == self.boot) {
            return;
        }
        let names = match self.fabric.autostart().await {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(%error, "could not read which machines start with the host");
                return;
            }
        };
        let mut waiting: BTreeSet<String> = names.into_iter().collect();
        let mut told = BTreeSet::new();
        loop {
            for name in waiting.clone() {
                let assignment = self.state().assignment.clone();
                let check = self.permit_check();
                match start_allowed(&self.folder, &assignment, &check, &name) {
                    Ok(()) => {
                        let started = self.fabric.machine_start(&name).await;
                        // One that still reads from the store needs its export, which is on its
                        // way then.
                        if started.is_ok() || !settles(&assignment, &name) {
                            waiting.remove(&name);
                        }
                        if let Err(error) = started
                            && told.insert(name.clone())
                        {
                            tracing::error!(machine = %name, "{}", error.problem());
                        }
                    }
                    Err(problem) => {
                        if told.insert(name.clone()) {
                            tracing::warn!(machine = %name, "{problem}");
                        }
                        if stays_off(&self.folder, &assignment, &name) {
                            waiting.remove(&name);
                        }
                    }
                }
            }
            if waiting.is_empty() {
                if let Err(error) = folder::write_whole(&mark, self.boot.as_bytes()) {
                    tracing::warn!(%error, "could not note that autostart is done");
                }
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(DISCOVER_EVERY) => {}
            }
        }
    }
}

/// The machine as a source: its item and duty.
fn source_of<'a>(assignment: &'a Assignment, name: &str) -> Option<(ItemId, &'a SourceDuty)> {
    let sources =
        assignment.duties.iter().filter_map(|duty| Some((duty.item, duty.source.as_ref()?)));
    sources.into_iter().find(|(_, source)| source.machine == name)
}

/// The item that the machine of this name is, or is made for.
pub fn item_of(assignment: &Assignment, name: &str) -> Option<ItemId> {
    let made = |duty: &&ItemDuty| {
        let mut instances = duty.instances.iter();
        instances.any(|instance| instance.settle_as.as_deref() == Some(name))
    };
    let source = source_of(assignment, name).map(|(item, _)| item);
    source.or_else(|| assignment.duties.iter().find(made).map(|duty| duty.item))
}

/// Whether the machine is failed over, or about to be: only a job may start it again.
fn is_taken_off(assignment: &Assignment, name: &str) -> bool {
    source_of(assignment, name).is_some_and(|(_, source)| match source.run {
        SourceRun::ShutDown { .. }
        | SourceRun::Fenced
        | SourceRun::Seed { .. }
        | SourceRun::Leave => true,
        SourceRun::Replicate { .. } | SourceRun::Live { .. } | SourceRun::Release => false,
    })
}

/// Whether no permit will come for the machine in this boot, but with a job that starts it.
fn stays_off(folder: &Path, assignment: &Assignment, name: &str) -> bool {
    let left = source_of(assignment, name).is_none() && permits::is_fenced(folder, name);
    left || is_taken_off(assignment, name)
}

/// Whether the machine is, or becomes, one that was made from a recovery point.
fn settles(assignment: &Assignment, name: &str) -> bool {
    let mut instances = assignment.duties.iter().flat_map(|duty| &duty.instances);
    instances.any(|instance| instance.settle_as.as_deref() == Some(name))
}

/// Whether the owner's machine `name` may be started by the host whose folder is `folder`.
///
/// # Errors
/// NO_PERMIT when it is protected and this host holds no permit for it in this boot, when it was
/// failed over, whatever became of its protection since, and while a job makes it anew.
pub fn start_allowed(
    folder: &Path,
    assignment: &Assignment,
    check: &permits::PermitCheck,
    name: &str,
) -> Result<(), Problem> {
    let refuse = |why: &str| {
        let what = format!("machine {name} was not started");
        Err(Code::NO_PERMIT.because(what, why))
    };
    if stays_off(folder, assignment, name) {
        return refuse("it was failed over to another site, or a job is shutting it down");
    }
    let Some((item, source)) = source_of(assignment, name) else {
        if settles(assignment, name) {
            return refuse("it is being made from a recovery point, which starts it");
        }
        return Ok(());
    };
    if source.run == SourceRun::Release {
        return Ok(());
    }
    // The branch's epoch: a host that is both ends of an item sees a later one as its target.
    match permits::permit_load(folder, name) {
        Some(permit) => permits::permit_allows(check, &permit, item, name, source.branch.epoch),
        None => refuse("it is protected, and this host holds no start permit for it"),
    }
}

#[cfg(test)]
mod tests;
