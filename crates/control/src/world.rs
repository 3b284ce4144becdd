//! What a job step sees and changes: a snapshot in memory. Stored whole or not at all by items.

use crate::events::{EventView, Severity};
use crate::hosts::HostSight;
use crate::plan::{InstancePlan, RunPlan, TargetRun, rank};
use crate::store::items::ItemRow;
use crate::store::jobs::JobRow;
use crate::{Now, clock::Draw};
use leeward_durable::{Outcome, StepError};
use leeward_model::{
    Branch, Code, Event, HostId, InstanceId, JobId, MachineState, Policy, Problem, ProtectedItem,
    Protection, SourceState, TimelineId,
};
use leeward_wire::message::{
    CapturePhase, InstanceObserved, NewestPoint, SourceObserved, Stage, TargetObserved,
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
    /// The generation that its last observation answers.
    fn answered(&self) -> u64 {
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
    pub(crate) source: HostFacts,
    pub(crate) target: HostFacts,
    /// Effects: what was applied to the item.
    pub(crate) events: Vec<Event>,
    /// Effects: what operators read.
    pub(crate) notes: Vec<EventView>,
    /// Effects: jobs to start.
    pub(crate) jobs: Vec<JobRow>,
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

    /// What "its host says that it is off" is, now.
    pub(crate) fn confirmed_off(&self) -> SourceState {
        SourceState::ConfirmedOff { by: format!("host {}", self.source.name), at: self.now.wall.0 }
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

    /// What the source host sees of the item; none while it is away.
    pub(crate) fn source_now(&self) -> Option<&SourceObserved> {
        let item = self.item.as_ref()?;
        self.source.sight.connected.then(|| self.source.sight.item(item.id)?.source.as_ref())?
    }

    /// What the target host sees of the item; none while it is away.
    pub(crate) fn target_now(&self) -> Option<&TargetObserved> {
        let item = self.item.as_ref()?;
        self.target.sight.connected.then(|| self.target.sight.item(item.id)?.target.as_ref())?
    }

    /// What the target host sees of an instance; none while it is away.
    pub(crate) fn instance_now(&self, id: InstanceId) -> Option<&InstanceObserved> {
        let item = self.item.as_ref()?;
        let sight = self.target.sight.connected.then_some(&self.target.sight)?;
        sight.item(item.id)?.instances.iter().find(|seen| seen.instance == id)
    }

    /// Run state of the source machine as its host tells it now.
    pub(crate) fn source_machine(&self) -> MachineState {
        if let Some(seen) = self.source_now() {
            return seen.machine;
        }
        let observed = self.source.sight.observed.as_ref().filter(|_| self.source.sight.connected);
        let name = self.item.as_ref().map(|item| item.machine.as_str());
        let machine = observed
            .and_then(|seen| seen.machines.iter().find(|m| Some(m.spec.name.as_str()) == name));
        machine.map_or(MachineState::Unknown, |machine| machine.state)
    }

    /// The newest complete point of the line that the source continues.
    pub(crate) fn newest(&self) -> Option<&NewestPoint> {
        let plan = &self.item.as_ref()?.plan;
        self.target_now()?.newest.as_ref().filter(|newest| plan.on_line(newest.position))
    }

    /// Whether the source host has answered the present run plan.
    pub(crate) fn source_answered(&self) -> bool {
        let since = self.item.as_ref().map_or(0, |item| item.plan.source.since);
        self.source.sight.connected && self.source.answered() >= since
    }

    /// Whether the target host has answered the present replica plan.
    pub(crate) fn target_answered(&self) -> bool {
        let since = self.item.as_ref().map_or(0, |item| item.plan.target.since);
        self.target.sight.connected && self.target.answered() >= since
    }

    /// Wants `run` of the source machine.
    pub(crate) fn source_run(&mut self, run: RunPlan) -> Result<(), StepError> {
        let since = self.source.generation + 1;
        let plan = &mut self.item_mut()?.plan.source;
        if plan.run != run {
            (plan.run, plan.since) = (run, since);
        }
        Ok(())
    }

    /// Wants `wanted` of the replica.
    pub(crate) fn target_run(&mut self, wanted: TargetRun) -> Result<(), StepError> {
        let since = self.target.generation + 1;
        let plan = &mut self.item_mut()?.plan.target;
        if plan.wanted != wanted {
            (plan.wanted, plan.since) = (wanted, since);
        }
        Ok(())
    }

    /// Opens a new timeline for the source under the present epoch, from the fenced place.
    pub(crate) fn open_branch(&mut self, timeline: TimelineId) -> Result<(), StepError> {
        let item = self.item_mut()?;
        let old = item.plan.source.branch;
        if old.timeline != timeline {
            let parent = item.plan.fenced_at.map(|(_, position)| position).or(old.parent);
            item.plan.source.branch = Branch { timeline, parent, epoch: item.state.epoch };
        }
        Ok(())
    }

    /// Changes an instance; its present stage counts from the coming assignment on.
    pub(crate) fn instance_set(
        &mut self,
        id: InstanceId,
        change: impl FnOnce(&mut InstancePlan),
    ) -> Result<(), StepError> {
        let since = self.target.generation + 1;
        if let Some(plan) = self.item_mut()?.plan.instance_mut(id) {
            let before = plan.clone();
            change(plan);
            if *plan != before {
                plan.since = since;
            }
        }
        Ok(())
    }

    /// What the target host sees of an instance, if that answers its present plan.
    pub(crate) fn instance_answer(&self, id: InstanceId) -> Option<&InstanceObserved> {
        let plan = self.item.as_ref()?.plan.instance(id)?;
        self.instance_now(id).filter(|_| self.target.answered() >= plan.since)
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
        let name = self.target.name.clone();
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
        let answered = self.target.sight.connected && self.target.answered() >= plan.since;
        let gone = self.instance_now(id).is_none_or(|seen| seen.stage == Stage::Absent);
        if answered && gone {
            self.item_mut()?.plan.instances.retain(|plan| plan.id != id);
        }
        Ok(answered && gone)
    }

    /// Whether the source host says that the machine is fenced and off.
    pub(crate) fn source_is_fenced(&self) -> bool {
        self.source_answered()
            && self.source_now().is_some_and(|seen| {
                seen.phase == CapturePhase::Fenced && seen.machine == MachineState::Off
            })
    }

    /// Whether the item's state belongs to the job.
    pub(crate) fn failing_over(&self, by: JobId) -> bool {
        matches!(self.item.as_ref().map(|item| &item.state.protection),
            Some(Protection::FailingOver { job, .. }) if *job == by)
    }
}
