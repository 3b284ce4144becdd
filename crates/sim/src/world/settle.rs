//! How the world comes to rest once nothing disturbs it any more, and what must hold then.

use super::{SITES, World};
use leeward_control::{
    items::{ItemView, LiveAt},
    jobs::{JobAnswer, RunState},
};
use leeward_fabric::{Fabric as _, memory::OnShutdown};
use leeward_model::{MachineState, Protection, Site};
use leeward_wire::message::{Purpose, Stage};
use std::collections::BTreeSet;

/// Steps within which everything comes to rest: over three minutes of the world's time, longer
/// than every limit that a step of a job has.
pub const STEPS_MAX: usize = 10_000;
/// After the primary host could not be asked, its absence may still be what is known of it.
pub const UNSURE_MS: u64 = 4_000;

impl World {
    /// Repairs everything, waits until the world is at rest, and checks all that must hold then.
    pub async fn settle(&mut self) {
        self.heal().await;
        self.guests_answer(OnShutdown::Obeys);
        self.strike = None;
        self.halted = None;
        self.owner_cares().await;
        self.jobs_end().await;
        self.owner_cares().await;
        let rests = async |world: &World| match world.view().await {
            None => true,
            Some(view) => match view.state.protection {
                Protection::FailedOver { .. } | Protection::Committed { .. } => {
                    view.live_at == LiveAt::Site(view.state.active) && world.writers() == 1
                }
                Protection::Protected => true,
                _ => false,
            },
        };
        if !self.reaches(STEPS_MAX, rests).await {
            let view = self.view().await;
            self.ledger.violated(format!("the world comes to no rest: {}", brief(view.as_ref())));
            return;
        }
        if let Some(view) = self.view().await {
            self.check_item(&view).await;
        }
        self.jobs_end().await;
        self.check().await;
    }

    /// The site where the item, if it is one, is live; the owner's machine is at the primary site.
    pub async fn active(&self) -> Option<Site> {
        match self.view().await {
            Some(view) => Some(view.state.active),
            None => self.item.is_none().then_some(Site::Primary),
        }
    }

    /// The owner starts a machine that is off and that nobody is at work on.
    pub async fn owner_cares(&mut self) {
        self.names_learn().await;
        let view = self.view().await;
        let idle = view.as_ref().is_none_or(|view| {
            matches!(
                view.state.protection,
                Protection::InitialReplication { .. }
                    | Protection::Protected
                    | Protection::Resynchronizing { .. }
                    | Protection::Committed { .. }
                    | Protection::Reprotecting { .. }
            )
        });
        let site = match &view {
            Some(view) => view.state.active,
            None => self.ledger.live_at().unwrap_or(Site::Primary),
        };
        let state = self.machines(site).machine_state(&self.owned(site)).await;
        // An instance that is to run is started by the item's host; one of an item that ended is
        // the owner's, though it may still read its disks from kept points.
        let tended = view.iter().flat_map(|view| &view.instances);
        let tended = tended
            .filter(|made| made.purpose == Purpose::Failover && made.wanted == Stage::Running);
        let tended = tended.map(|made| made.site).any(|there| there == site);
        if idle && !tended && matches!(state, Ok(MachineState::Off)) {
            self.ledger.moved(site);
            self.owner_starts(site).await;
        }
    }

    /// Every job ends; what waits for a person gets the answer that all is well again, and is
    /// cancelled when it asks once more (I6).
    async fn jobs_end(&mut self) {
        let steps = 500;
        let mut answered = BTreeSet::new();
        for _ in 0..STEPS_MAX / steps {
            let running = self.jobs_running().await;
            if running.is_empty() {
                return;
            }
            for job in running.iter().filter(|job| job.state == RunState::Suspended) {
                let control = self.control();
                let answer = match answered.insert(job.id) {
                    true => control.job_resume(self.vault, job.id, JobAnswer::Retry).await,
                    false => control.job_cancel(self.vault, job.id).await,
                };
                if let Err(error) = answer {
                    self.ledger.violated(format!("I6: a suspended job takes no answer: {error}"));
                }
            }
            self.owner_cares().await;
            let ended = async |world: &World| world.jobs_running().await.is_empty();
            self.reaches(steps, ended).await;
        }
        for job in self.jobs_running().await {
            let task = job.tasks.iter().find(|task| task.ended.is_none());
            let view = self.view().await;
            let what =
                format!("{:?} {:?} {task:?}; {}", job.scenario, job.state, brief(view.as_ref()));
            self.ledger.violated(format!("I6: a job does not end: {what}"));
        }
    }

    async fn check_item(&mut self, view: &ItemView) {
        self.names_learn().await;
        let writers = self.writers();
        if writers != 1 {
            self.ledger.violated(format!("{writers} machines run at rest: {}", brief(Some(view))));
        }
        for site in SITES {
            let runs = self.is_running(site).await;
            if runs != (view.state.active == site) {
                let view = brief(Some(view));
                self.ledger.violated(format!("the machine does not run where it is live: {view}"));
            }
        }
        if view.state.protection != Protection::Protected {
            return;
        }
        let begun = self.time.ms();
        let replicates = async |world: &World| {
            let newest = world.view().await.and_then(|view| view.newest);
            newest.and_then(|point| world.ledger.cut_ms(point.cut_at)).is_some_and(|at| at > begun)
        };
        if !self.reaches(STEPS_MAX, replicates).await {
            let view = self.view().await;
            self.ledger.violated(format!("no new point is made at rest: {}", brief(view.as_ref())));
        }
    }
}

/// What matters of an item when something is wrong with it.
pub fn brief(view: Option<&ItemView>) -> String {
    let Some(view) = view else { return "there is no item".to_owned() };
    let instances: Vec<String> = view
        .instances
        .iter()
        .map(|made| {
            let (wanted, stage, problem) = (made.wanted, made.stage, &made.problem);
            let problem = problem.as_ref().map(|problem| &problem.what);
            format!(
                "{} {:?} {stage:?}->{wanted:?} {:?} {problem:?}",
                made.id, made.purpose, made.machine
            )
        })
        .collect();
    let health: Vec<String> = view
        .health
        .iter()
        .map(|error| format!("{}: {}", error.problem.what, error.problem.cause))
        .collect();
    format!(
        "{:?} ends {:?} active {:?} source {:?} ({:?}) live at {:?} epoch {} branch {:?} \
         newest {:?} \
         rpo {:?} \
         resync {:?} instances {instances:?} health {health:?}",
        view.state.protection,
        view.ends,
        view.state.active,
        view.state.source,
        view.source_machine,
        view.live_at,
        view.epoch,
        view.branch,
        view.newest.as_ref().map(|newest| newest.position),
        view.rpo_seconds,
        view.resync_reason,
    )
}
