//! What a job step sees and changes: a snapshot in memory. Stored whole or not at all by items.

use crate::events::{EventView, Severity};
use crate::hosts::HostSight;
use crate::jobs::Request;
use crate::networks::NetworkMaps;
use crate::plan::{End, InstancePlan, RunPlan, TargetRun, other, rank};
use crate::plans::Actions;
use crate::store::items::ItemRow;
use crate::store::jobs::JobRow;
use crate::{Now, clock::Draw};
use leeward_durable::{Outcome, StepError};
use leeward_model::{
    Branch, Code, Event, HostId, InstanceId, ItemId, JobId, MachineState, Policy, Problem,
    ProtectedItem, Protection, Site, SourceState, TimelineId,
};
use leeward_wire::message::{
    CapturePhase, InstanceObserved, NewestPoint, Purpose, SourceObserved, Stage, TargetObserved,
};
use std::sync::Arc;

/// How soon a pending step looks again by itself, in milliseconds; observations poke it earlier.
pub(crate) const POLL_MS: u64 = 1_000;

/// What a step returns.
pub(crate) type Step = Result<Outcome, StepError>;

/// Is one host of the item.
#[derive(Clone, Debug)]
pub(crate) struct HostFacts {
    pub(crate) id: HostId,
    pub(crate) name: String,
    pub(crate) data_address: Option<String>,
    /// Generation of its assignment; the transaction at hand raises it by one at most.
    pub(crate) generation: u64,
    pub(crate) sight: HostSight,
}

impl HostFacts {
    /// Whether it showed a machine of this name when it was last heard.
    pub(crate) fn has_machine(&self, name: &str) -> bool {
        let seen = self.sight.observed.as_ref();
        seen.is_some_and(|seen| seen.machines.iter().any(|m| m.spec.name == name))
    }

    /// The generation that its last observation answers.
    pub(crate) fn answered(&self) -> u64 {
        self.sight.observed.as_ref().map_or(0, |seen| seen.generation)
    }
}

/// Is the snapshot. Everything but the effects is read only by convention of its methods.
pub(crate) struct World {
    pub(crate) now: Now,
    pub(crate) draw: Arc<dyn Draw>,
    /// None once the item is gone.
    pub(crate) item: Option<ItemRow>,
    pub(crate) policy: Policy,
    /// Which network at one of the item's sites is which one at the other.
    pub(crate) networks: NetworkMaps,
    pub(crate) primary: HostFacts,
    pub(crate) recovery: HostFacts,
    /// Hosts that are no end any more and keep a machine off.
    pub(crate) left: Vec<HostFacts>,
    /// The item's newest job of the other direction, for a job of the main lane that waits for it.
    pub(crate) reverse: Option<JobRow>,
    /// The item's job that only watches: another one can begin once it has ended.
    pub(crate) watch: Option<JobRow>,
    /// Effects: what was applied to the item.
    pub(crate) events: Vec<Event>,
    /// Effects: what operators read.
    pub(crate) notes: Vec<EventView>,
    /// Effects: jobs to start.
    pub(crate) jobs: Vec<JobRow>,
    /// Effects: jobs to ask to go back.
    pub(crate) cancels: Vec<JobId>,
    /// Effects: whether the item ends because its migration is complete.
    pub(crate) migrated: bool,
    /// The plan's job in whose name the item's jobs are asked for.
    pub(crate) asked_by: Option<JobId>,
    /// What a plan's job and the jobs of its machines know of one another.
    pub(crate) family: Family,
}

/// Is what a plan's job and the jobs of its machines know of one another.
#[derive(Default)]
pub(crate) struct Family {
    /// The plan's job that this job is part of.
    pub(crate) parent: Option<JobRow>,
    /// The jobs that are part of this one.
    pub(crate) children: Vec<JobRow>,
    /// This job's requests that were refused lately.
    pub(crate) refused: Vec<(ItemId, Problem)>,
    /// Effects: requests to be made in this job's name once its record is stored.
    pub(crate) asks: Vec<(ItemId, Request)>,
    /// What this job's actions outside have come to, and which are wanted.
    pub(crate) actions: Actions,
}

/// Turns a problem of the model into one of the engine.
pub(crate) fn engine_problem(problem: Problem) -> leeward_durable::Problem {
    let Problem { code, what, cause, now, todo } = problem;
    leeward_durable::Problem { code, what, cause, now, todo }
}

/// The other way round.
pub(crate) fn model_problem(problem: &leeward_durable::Problem) -> Problem {
    let leeward_durable::Problem { code, what, cause, now, todo } = problem.clone();
    Problem { code, what, cause, now, todo }
}

/// A step that fails for good.
pub(crate) fn permanent(code: Code, what: impl Into<String>) -> StepError {
    StepError::Permanent(engine_problem(code.problem(what)))
}

/// A step that is done, with a warning.
pub(crate) fn warning(code: Code, what: impl Into<String>) -> Outcome {
    Outcome::DoneWithWarning(engine_problem(code.problem(what)))
}

/// A step that waits.
pub(crate) fn pending(waiting_for: impl Into<String>) -> Step {
    Ok(Outcome::Pending { waiting_for: waiting_for.into(), poll_after_ms: POLL_MS })
}

impl World {
    /// The item, which jobs of the main lane know to exist.
    pub(crate) fn item(&self) -> Result<&ItemRow, StepError> {
        self.item.as_ref().ok_or_else(|| permanent(Code::NOT_FOUND, "the item is gone"))
    }

    pub(crate) fn item_mut(&mut self) -> Result<&mut ItemRow, StepError> {
        self.item.as_mut().ok_or_else(|| permanent(Code::NOT_FOUND, "the item is gone"))
    }

    pub(crate) fn state(&self) -> Result<&ProtectedItem, StepError> {
        self.item().map(|item| &item.state)
    }

    /// Applies an event of our own. That it is not possible is an error of ours.
    pub(crate) fn apply(&mut self, event: Event) -> Result<(), StepError> {
        let item = self.item_mut()?;
        match item.state.apply(&event) {
            Ok(next) => {
                item.state = next;
                self.events.push(event);
                Ok(())
            }
            Err(illegal) => {
                tracing::error!(%illegal, "a job's event does not fit its item");
                Err(permanent(Code::INTERNAL, illegal.to_string()))
            }
        }
    }

    /// Applies [`Event::SourceSeen`] if it says something new.
    pub(crate) fn source_seen(&mut self, source: SourceState) -> Result<(), StepError> {
        let same = match (&self.state()?.source, &source) {
            (SourceState::ConfirmedOff { .. }, SourceState::ConfirmedOff { .. }) => true,
            (known, seen) => known == seen,
        };
        if same { Ok(()) } else { self.apply(Event::SourceSeen { source }) }
    }

    /// The host of a site.
    pub(crate) fn host(&self, site: Site) -> &HostFacts {
        match site {
            Site::Primary => &self.primary,
            Site::Recovery => &self.recovery,
        }
    }

    /// The site that receives, or that a failover goes to.
    pub(crate) fn target_site(&self) -> Site {
        self.item.as_ref().map_or(Site::Recovery, ItemRow::target_site)
    }

    /// The other site: the one that the machine writes at, or is leaving.
    pub(crate) fn source_site(&self) -> Site {
        other(self.target_site())
    }

    /// The source's host.
    pub(crate) fn source(&self) -> &HostFacts {
        self.host(self.source_site())
    }

    /// The target's host.
    pub(crate) fn target(&self) -> &HostFacts {
        self.host(self.target_site())
    }

    /// The end at a site.
    pub(crate) fn end(&self, site: Site) -> Result<&End, StepError> {
        Ok(self.item()?.plan.end(site))
    }

    /// What "the host of `site` says that the machine is off" is, now.
    pub(crate) fn confirmed_off(&self, site: Site) -> SourceState {
        let by = format!("host {}", self.host(site).name);
        SourceState::ConfirmedOff { by, at: self.now.wall.0 }
    }

    /// Notes something for operators.
    pub(crate) fn note(&mut self, name: &str, severity: Severity, text: String) {
        let Some(item) = &self.item else { return };
        self.notes.push(EventView {
            seq: 0,
            at: self.now.wall,
            name: name.to_owned(),
            severity,
            text,
            item: Some(item.id),
            object: item.name.clone(),
            job: None,
            problem: None,
        });
    }

    /// What the host of `site` sees of the item's machine; none while it is away.
    pub(crate) fn machine_now(&self, site: Site) -> Option<&SourceObserved> {
        let item = self.item.as_ref()?;
        let sight = &self.host(site).sight;
        sight.connected.then(|| sight.item(item.id)?.source.as_ref())?
    }

    /// What the source host sees of the machine; none while it is away.
    pub(crate) fn source_now(&self) -> Option<&SourceObserved> {
        self.machine_now(self.source_site())
    }

    /// What the host of `site` sees of its replica; none while it is away.
    pub(crate) fn replica_now(&self, site: Site) -> Option<&TargetObserved> {
        let item = self.item.as_ref()?;
        let sight = &self.host(site).sight;
        sight.connected.then(|| sight.item(item.id)?.target.as_ref())?
    }

    /// What the target host sees of the replica; none while it is away.
    pub(crate) fn target_now(&self) -> Option<&TargetObserved> {
        self.replica_now(self.target_site())
    }

    /// What its host sees of an instance; none while it is away.
    pub(crate) fn instance_now(&self, id: InstanceId) -> Option<&InstanceObserved> {
        let item = self.item.as_ref()?;
        let site = item.plan.instance(id)?.site;
        let sight = Some(&self.host(site).sight).filter(|sight| sight.connected)?;
        sight.item(item.id)?.instances.iter().find(|seen| seen.instance == id)
    }

    /// The host that makes an instance.
    pub(crate) fn instance_host(&self, id: InstanceId) -> &HostFacts {
        let plan = self.item.as_ref().and_then(|item| item.plan.instance(id));
        self.host(plan.map_or(self.target_site(), |plan| plan.site))
    }

    /// Run state of the owner's machine of `site` as its host tells it now.
    pub(crate) fn machine_at(&self, site: Site) -> MachineState {
        let Some(item) = &self.item else { return MachineState::Unknown };
        if let Some(seen) = self.machine_now(site) {
            return seen.machine;
        }
        let host = self.host(site);
        let observed = host.sight.observed.as_ref().filter(|_| host.sight.connected);
        let name = &item.plan.end(site).machine;
        let machine = observed.and_then(|seen| seen.machines.iter().find(|m| m.spec.name == *name));
        machine.map_or(MachineState::Unknown, |machine| machine.state)
    }

    /// Run state of the source machine as its host tells it now.
    pub(crate) fn source_machine(&self) -> MachineState {
        self.machine_at(self.source_site())
    }

    /// The newest complete point of the line that the source continues.
    pub(crate) fn newest(&self) -> Option<&NewestPoint> {
        let plan = &self.item.as_ref()?.plan;
        self.target_now()?.newest.as_ref().filter(|newest| plan.on_line(newest.position))
    }

    /// Whether the host of `site` has answered the present plan for its machine.
    pub(crate) fn run_answered(&self, site: Site) -> bool {
        let since = self.item.as_ref().map_or(0, |item| item.plan.end(site).run_since);
        let host = self.host(site);
        host.sight.connected && host.answered() >= since
    }

    /// Whether the source host has answered the present run plan.
    pub(crate) fn source_answered(&self) -> bool {
        self.run_answered(self.source_site())
    }

    /// Whether the host of `site` has answered the present plan for its replica.
    pub(crate) fn replica_answered(&self, site: Site) -> bool {
        let since = self.item.as_ref().map_or(0, |item| item.plan.end(site).replica_since);
        let host = self.host(site);
        host.sight.connected && host.answered() >= since
    }

    /// Whether the target host has answered the present replica plan.
    pub(crate) fn target_answered(&self) -> bool {
        self.replica_answered(self.target_site())
    }

    /// Wants `run` of the machine at `site`.
    pub(crate) fn run_at(&mut self, site: Site, run: RunPlan) -> Result<(), StepError> {
        let since = self.host(site).generation + 1;
        let end = self.item_mut()?.plan.end_mut(site);
        if end.run != run {
            (end.run, end.run_since) = (run, since);
        }
        Ok(())
    }

    /// Wants `run` of the source machine.
    pub(crate) fn source_run(&mut self, run: RunPlan) -> Result<(), StepError> {
        self.run_at(self.source_site(), run)
    }

    /// Wants nothing of the machine at `site`, but that it stays off if it was left.
    pub(crate) fn rest_at(&mut self, site: Site) -> Result<(), StepError> {
        let rest = self.end(site)?.rest();
        self.run_at(site, rest)
    }

    /// Wants `wanted` of the replica at `site`.
    pub(crate) fn replica_at(&mut self, site: Site, wanted: TargetRun) -> Result<(), StepError> {
        let since = self.host(site).generation + 1;
        let end = self.item_mut()?.plan.end_mut(site);
        if end.replica != wanted {
            (end.replica, end.replica_since) = (wanted, since);
        }
        Ok(())
    }

    /// Wants `wanted` of the target's replica.
    pub(crate) fn target_run(&mut self, wanted: TargetRun) -> Result<(), StepError> {
        self.replica_at(self.target_site(), wanted)
    }

    /// Opens a new timeline for the source under the present epoch, from the fenced place.
    pub(crate) fn open_branch(&mut self, timeline: TimelineId) -> Result<(), StepError> {
        let item = self.item_mut()?;
        let plan = &mut item.plan;
        if plan.branch.timeline != timeline {
            let fenced_at = plan.fenced_at.map(|(_, position)| position);
            let parent = fenced_at.or(plan.branch.parent);
            plan.history = fenced_at.or(plan.history);
            plan.branch = Branch { timeline, parent, epoch: item.state.epoch };
        }
        Ok(())
    }

    /// Changes an instance; its present stage counts from the coming assignment on.
    pub(crate) fn instance_set(
        &mut self,
        id: InstanceId,
        change: impl FnOnce(&mut InstancePlan),
    ) -> Result<(), StepError> {
        let since = self.instance_host(id).generation + 1;
        if let Some(plan) = self.item_mut()?.plan.instance_mut(id) {
            let before = plan.clone();
            change(plan);
            if *plan != before {
                plan.since = since;
            }
        }
        Ok(())
    }

    /// What its host sees of an instance, if that answers its present plan.
    pub(crate) fn instance_answer(&self, id: InstanceId) -> Option<&InstanceObserved> {
        let plan = self.item.as_ref()?.plan.instance(id)?;
        self.instance_now(id).filter(|_| self.instance_host(id).answered() >= plan.since)
    }

    /// Wants an instance to be at least at `stage`, and waits for it.
    pub(crate) fn instance_reach(&mut self, id: InstanceId, stage: Stage, give_up: bool) -> Step {
        let permitted = stage == Stage::Running;
        self.instance_set(id, |plan| {
            if rank(plan.stage) < rank(stage) {
                plan.stage = stage;
            }
            plan.permitted |= permitted;
        })?;
        let name = self.instance_host(id).name.clone();
        let Some(seen) = self.instance_now(id) else {
            return pending(format!("host {name} to report machine {id}"));
        };
        let there = match stage {
            Stage::Running => seen.stage == stage && seen.machine == MachineState::Running,
            _ => rank(seen.stage) >= rank(stage) && seen.stage != Stage::Stopped,
        };
        match (&seen.problem, there) {
            (_, true) => Ok(Outcome::Done),
            (Some(problem), false) if give_up => {
                Err(StepError::Permanent(engine_problem(problem.clone())))
            }
            (Some(problem), false) => pending(format!("host {name}, which tries again: {problem}")),
            (None, false) => pending(format!("host {name} to make machine {id} {stage:?}")),
        }
    }

    /// Wants an instance away, and says whether it is; one that is gone leaves the plan.
    pub(crate) fn instance_drop(&mut self, id: InstanceId) -> Result<bool, StepError> {
        self.instance_set(id, |plan| {
            plan.stage = Stage::Absent;
            plan.permitted = false;
            plan.keep_as = None;
        })?;
        let Some(plan) = self.item()?.plan.instance(id) else { return Ok(true) };
        let host = self.instance_host(id);
        let answered = host.sight.connected && host.answered() >= plan.since;
        let gone = self.instance_now(id).is_none_or(|seen| seen.stage == Stage::Absent);
        if answered && gone {
            self.item_mut()?.plan.instances.retain(|plan| plan.id != id);
        }
        Ok(answered && gone)
    }

    /// Whether the host of `site` says that its machine is fenced and off.
    pub(crate) fn is_fenced(&self, site: Site) -> bool {
        self.run_answered(site)
            && self.machine_now(site).is_some_and(|seen| {
                seen.phase == CapturePhase::Fenced && seen.machine == MachineState::Off
            })
    }

    /// Whether a host that is no end any more says that the machine left there is fenced and off.
    pub(crate) fn left_is_off(&self, host: HostId) -> bool {
        let Some(item) = &self.item else { return false };
        let host = self.left.iter().find(|facts| facts.id == host && facts.sight.connected);
        let seen = host.and_then(|host| host.sight.item(item.id)?.source.as_ref());
        seen.is_some_and(|seen| {
            seen.phase == CapturePhase::Fenced && seen.machine == MachineState::Off
        })
    }

    /// Whether the source host says that nothing of the item runs there any more.
    pub(crate) fn source_is_off(&self) -> bool {
        let site = self.source_site();
        let Some(item) = &self.item else { return false };
        let mut made = item.plan.instances.iter().filter(|plan| {
            plan.site == site && plan.purpose == Purpose::Failover && plan.stage == Stage::Stopped
        });
        match item.plan.end(site).run {
            RunPlan::Fenced => self.is_fenced(site),
            _ => made.all(|plan| {
                self.instance_answer(plan.id).is_some_and(|seen| seen.machine == MachineState::Off)
            }),
        }
    }

    /// Whether the item's state belongs to the job.
    pub(crate) fn failing_over(&self, by: JobId) -> bool {
        matches!(self.item.as_ref().map(|item| &item.state.protection),
            Some(Protection::FailingOver { job, .. }) if *job == by)
    }
}
