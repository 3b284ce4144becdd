//! How protection ends in random histories, wherever the machine lives, and how its owner has it
//! protected again.

use super::{World, ledger::PLACES, other, settle::STEPS_MAX};
use leeward_control::{
    items::{DisableReason, KeepPoints, ReprotectSpec},
    jobs::{JobAnswer, RunState},
};
use leeward_model::{DiskNumber, JobId, Site, TestState};
use leeward_replica::storage::Seeded;

/// An end of protection that was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    keep: KeepPoints,
    /// Where the machine lived.
    active: Site,
    /// Whether somebody insisted although the machine that was left was not known to be off.
    insisted: bool,
}

impl World {
    /// Protection ends, with or without its points; the machine may live at either site.
    pub(super) async fn disable_and_enable(&mut self, random: &mut Seeded) {
        let keep = [KeepPoints::Delete, KeepPoints::Keep][random.below(2) as usize];
        self.end(keep, DisableReason::Normal, random).await;
    }

    /// The machine stays where it was failed over to (F-005). Its owner may still go back by hand.
    pub(super) async fn complete_migration(&mut self, random: &mut Seeded) {
        let keep = [KeepPoints::Delete, KeepPoints::Keep][random.below(2) as usize];
        self.end(keep, DisableReason::MigrationComplete, random).await;
        let (Some(item), Some(control)) = (self.item, self.server.clone()) else { return };
        if self.ending.is_some() && self.view().await.is_none() {
            let again = control.item_reprotect(item, ReprotectSpec::default()).await;
            let refused = again.err().map(|error| error.to_string());
            if refused.as_ref().is_none_or(|why| !why.contains("migrated for good")) {
                let what = format!("a migrated item is reprotected or refused as {refused:?}");
                self.ledger.violated(what);
            }
        }
    }

    async fn end(&mut self, keep: KeepPoints, reason: DisableReason, random: &mut Seeded) {
        let Some(view) = self.view().await else { return };
        if view.state.test != TestState::None {
            return;
        }
        let (control, item, active) = (self.control(), view.id, view.state.active);
        let asked = match self.mistakes.forgets_what_is_kept {
            true => KeepPoints::Delete,
            false => keep,
        };
        if asked == KeepPoints::Delete {
            self.ledger.may_delete();
        }
        let started = self.ask(async move { control.item_disable(item, asked, reason).await });
        let Ok(job) = started.await else {
            self.ledger.may_not_delete();
            return;
        };
        self.ending = Some(Ending { keep, active, insisted: false });
        self.attend(job, random).await;
        if self.job(job).await.state == RunState::Suspended {
            self.answer_ending(job, random).await;
        }
    }

    /// A machine that was left is not known to be off: its host comes back, or somebody insists,
    /// or thinks better of it.
    async fn answer_ending(&mut self, job: JobId, random: &mut Seeded) {
        let control = self.control();
        match random.below(3) {
            0 => {
                let answer = JobAnswer::Reply("go-on".to_owned());
                // Its host may come back at this very moment.
                if control.job_resume(self.vault, job, answer).await.is_ok()
                    && let Some(ending) = &mut self.ending
                {
                    ending.insisted = true;
                }
            }
            1 => {
                let cancelled = control.job_cancel(self.vault, job).await;
                cancelled.expect("a cancel is always accepted");
            }
            _ => self.heal().await,
        }
        self.attend(job, random).await;
    }

    /// If the protection has ended, its machine runs on alone where it lived, what was to be kept
    /// is, and its owner has it protected again at the primary site.
    pub(super) async fn protect_again(&mut self, random: &mut Seeded) {
        let (Some(item), true) = (self.item, self.server.is_some()) else { return };
        if self.view().await.is_some() {
            return;
        }
        let Some(Ending { keep, active, insisted }) = self.ending.take() else { return };
        match keep {
            KeepPoints::Keep => self.ledger.replica_kept(item),
            KeepPoints::Delete => self.ledger.replica_ended(),
        }
        self.heal().await;
        match active {
            Site::Recovery => {
                self.check_released(active, insisted).await;
                self.owner_goes_back(random).await;
            }
            // Who insisted was told that the other machine may run, and sees to it.
            Site::Primary if insisted => {
                self.machines(Site::Recovery).kill_process(&self.owned(Site::Recovery));
            }
            Site::Primary => {}
        }
        self.protect(random).await;
    }

    /// A machine whose protection has ended is its owner's, and there is one.
    async fn check_released(&mut self, active: Site, insisted: bool) {
        let left = !insisted && self.is_running(other(active)).await;
        let owned = self.machines(active).disks(&self.owned(active)).is_some();
        if left || !owned {
            let what = format!(
                "protection ended at {active:?}: one is left: {owned}; the old one \
                                runs: {left}"
            );
            self.ledger.violated(what);
        }
    }

    /// The owner gives up what the machine has become at the recovery site, and switches the old
    /// one on again.
    async fn owner_goes_back(&mut self, random: &mut Seeded) {
        self.wait(random.below(2_000)).await;
        let machine = self.owned(Site::Recovery);
        self.machines(Site::Recovery).kill_process(&machine);
        if self.machines(Site::Primary).disks(&self.owned(Site::Primary)).is_none() {
            self.hosts_swap();
        }
        let machine = self.owned(Site::Primary);
        let Some(disks) = self.machines(Site::Primary).disks(&machine) else { return };
        // What is gone comes from a backup.
        [0, 1].into_iter().for_each(|disk| disks.set_present(DiskNumber(disk), true));
        self.ledger.moved(Site::Primary);
        self.ledger.lives_at(Site::Primary);
        self.owner_starts(Site::Primary).await;
        let found = async |world: &World| world.machine_found().await.is_some();
        self.reaches(STEPS_MAX, found).await;
    }

    /// Compares what was kept of ended protections with what was promised.
    pub(super) fn check_kept(&mut self) {
        for (item, promised) in self.ledger.kept() {
            for place in PLACES {
                let promised: Vec<_> = promised.iter().filter(|to| to.place == place).collect();
                match self.disk_of(place).and_then(|disk| disk.item(item)) {
                    Some(reader) => self.ledger.check_points(&promised, &reader),
                    None if promised.is_empty() => {}
                    None => self.ledger.violated(format!("I3: what was kept at {place:?} is gone")),
                }
            }
        }
    }
}
