//! What must hold once nothing disturbs the world any more, and while it is disturbed.

use super::{
    MACHINE, World,
    ledger::{Image, differs},
    owned,
};
use leeward_control::{
    items::{ItemView, LiveAt},
    jobs::{JobAnswer, RunState},
};
use leeward_fabric::{Fabric as _, MachineRef};
use leeward_model::{MachineState, Protection, Site};

/// Steps within which everything comes to rest: over three minutes of the world's time, longer
/// than every limit that a step of a job has.
pub const STEPS_MAX: usize = 10_000;
/// After the primary host could not be asked, its absence may still be what is known of it.
pub const UNSURE_MS: u64 = 4_000;

impl World {
    /// Repairs everything, waits until the world is at rest, and checks all that must hold then.
    pub async fn settle(&mut self) {
        self.heal().await;
        self.strike = None;
        self.halted = None;
        self.owner_cares().await;
        self.jobs_end().await;
        self.owner_cares().await;
        let rests = async |world: &World| match world.view().await {
            None => true,
            Some(view) => match view.state.protection {
                Protection::FailedOver { .. } | Protection::Committed { .. } => {
                    matches!(view.live_at, LiveAt::Site(Site::Recovery))
                        && world.all_machines().writers(MACHINE) == 1
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

    /// Whether the item, if it is one, is live at the primary site.
    pub async fn is_live_at_primary(&self) -> bool {
        match self.view().await {
            None => self.item.is_none(),
            Some(view) => view.state.active == Site::Primary,
        }
    }

    /// The owner starts a machine that is off and that nobody is at work on.
    pub async fn owner_cares(&mut self) {
        let state = self.primary_machines().machine_state(&owned()).await;
        let view = self.view().await;
        let idle = view.is_none_or(|view| {
            view.state.active == Site::Primary
                && matches!(
                    view.state.protection,
                    Protection::InitialReplication { .. }
                        | Protection::Protected
                        | Protection::Resynchronizing { .. }
                )
        });
        if idle && matches!(state, Ok(MachineState::Off)) {
            self.owner_starts().await;
        }
    }

    /// Every job ends; what waits for a person gets the answer that all is well again (I6).
    async fn jobs_end(&mut self) {
        let steps = 500;
        for _ in 0..STEPS_MAX / steps {
            let running = self.jobs_running().await;
            if running.is_empty() {
                return;
            }
            for job in running.iter().filter(|job| job.state == RunState::Suspended) {
                let control = self.control();
                let resumed = control.job_resume(self.vault, job.id, JobAnswer::Retry);
                if let Err(error) = resumed.await {
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
        let writers = self.all_machines().writers(MACHINE);
        if writers != 1 {
            self.ledger.violated(format!("{writers} machines run at rest: {}", brief(Some(view))));
        }
        let primary = self.primary_machines().machine_state(&owned()).await;
        let runs = matches!(primary, Ok(MachineState::Running));
        if runs != (view.state.active == Site::Primary) {
            let view = brief(Some(view));
            self.ledger.violated(format!("the machine does not run where it is live: {view}"));
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

    /// Checks what must hold at any time: points, promises, instances, the RPO.
    pub async fn check(&mut self) {
        self.check_rpo().await;
        if let Some(item) = self.item {
            match self.disk().item(item) {
                Some(reader) => self.ledger.check_replica(&reader),
                None if self.view().await.is_some_and(|view| view.newest.is_some()) => {
                    self.ledger.violated("I3: the replica cannot be opened");
                }
                None => {}
            }
        }
        for (instance, image) in self.ledger.instances() {
            self.check_instance(MachineRef::Instance(instance), &image).await;
        }
    }

    async fn check_instance(&self, machine: MachineRef, image: &Image) {
        let machines = self.recovery_machines();
        let MachineRef::Instance(id) = &machine else { return };
        let status = machines.instance_status(*id).await;
        let whole = status.is_ok_and(|status| status.hydrated_percent == 100);
        let Some(disks) = machines.disks(&machine).filter(|_| whole) else { return };
        for (number, bytes) in image {
            if let Some(offset) = differs(&disks.content(*number), bytes) {
                let what = format!("I1: disk {number} of {machine} differs at byte {offset}");
                self.ledger.violated(what);
            }
        }
    }

    /// The RPO that is shown is never below the truth (I8).
    pub async fn check_rpo(&self) {
        let now = self.time.ms();
        let Some(view) = self.view().await else { return };
        let (Some(newest), Some(rpo)) = (view.newest, view.rpo_seconds) else { return };
        let Some(cut) = self.ledger.cut_ms(newest.cut_at) else { return };
        let truth = now.saturating_sub(cut);
        if rpo * 1000 < truth {
            self.ledger.violated(format!("I8: the RPO is shown as {rpo} s and is {truth} ms"));
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
        "{:?} active {:?} source {:?} ({:?}) live at {:?} epoch {} branch {:?} newest {:?} \
         rpo {:?} \
         resync {:?} instances {instances:?} health {health:?}",
        view.state.protection,
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
