//! Shows a recovery plan's job: a task for each of its groups, with the machines and the actions.

use super::plan_actions::RunAction;
use super::recovery_plan::{KIND, Member, Progress, RecoveryPlan, RunGroup, TURN};
use super::view::{self, millis};
use super::{JobView, RunState, Scenario, TaskView};
use crate::plans::{Act, GroupKind, What};
use crate::store::jobs::JobRow;
use crate::world::model_problem;
use leeward_durable::Record;
use leeward_model::{Code, ItemId, JobId};
use serde::{Deserialize, Serialize};

/// Is a group of a recovery plan as part of its job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupTask {
    /// What it is.
    pub kind: GroupKind,
    /// Its machines and actions, in the order in which they are taken.
    pub parts: Vec<PartTask>,
}

/// Is a machine or an action of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartTask {
    /// How far it is; has no group itself.
    pub task: TaskView,
    /// What it is.
    pub part: PlanPart,
}

/// Is what a part of a group stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "kebab-case")]
pub enum PlanPart {
    /// A machine.
    Machine {
        /// The item.
        item: ItemId,
        /// Its name.
        name: String,
        /// Its job and that one's scenario, once there is one.
        job: Option<(JobId, Scenario)>,
        /// Why it takes no part.
        skipped: Option<String>,
    },
    /// Something that a person does.
    Action {
        /// What.
        instructions: String,
        /// What the person said afterwards.
        reply: Option<String>,
    },
    /// Something that the config server does by itself.
    Act {
        /// What; without a secret.
        act: Act,
        /// A program's exit code, or the status of an HTTP answer.
        code: Option<i32>,
        /// The end of what it wrote.
        output: String,
        /// Whether it was taken back: without an error, or with one.
        taken_back: Option<Result<(), String>>,
    },
}

/// The API's name of a step that belongs to plans, and its name for people.
pub(super) fn name_of(kind: &str, step: &str) -> Option<(&'static str, &'static str)> {
    match (kind, step) {
        (_, TURN) => Some(("VmWaitForBootGroup", "Wait for the turn of its group")),
        (KIND, "start-members") => Some(("RecoveryPlanStart", "Start with all machines")),
        (KIND, "report") => Some(("RecoveryPlanReport", "Report")),
        (KIND, "before") => Some(("RecoveryPlanBefore", "Before all machines")),
        (KIND, "gather") => Some(("RecoveryPlanGather", "Wait until all machines are ready")),
        (KIND, "run-groups") => Some(("RecoveryPlanGroups", "All groups")),
        _ => None,
    }
}

/// The state of a plan's job.
pub(crate) fn state(record: &Record) -> RunState {
    view::state(record)
}

/// The view of a plan's job with its groups, given the jobs of its machines. A memory that cannot
/// be read shows the steps alone.
pub(super) fn with_groups(mut job: JobView, row: &JobRow, parts: &[JobRow]) -> JobView {
    let memory = serde_json::from_value(row.record.job.clone());
    let Ok::<RecoveryPlan, _>(memory) = memory else { return job };
    let groups: Vec<_> = memory
        .groups
        .iter()
        .map(|group| group_task(&memory, group, parts, job.ended.is_some()))
        .collect();
    let shown = |name: &str| {
        let found = job.tasks.iter().find(|task| task.name == name);
        found.cloned()
    };
    let first = shown("RecoveryPlanStart");
    let last = shown("RecoveryPlanReport");
    job.tasks = first.into_iter().chain(groups).chain(last).collect();
    job
}

fn group_task(memory: &RecoveryPlan, group: &RunGroup, jobs: &[JobRow], over: bool) -> TaskView {
    let members = memory.members.iter().filter(|member| group.items.contains(&member.item));
    let machines = members.map(|member| machine(memory, member, jobs));
    let actions = |list: &[RunAction]| list.iter().map(action).collect::<Vec<_>>();
    let mut parts = actions(&group.before);
    parts.extend(machines);
    parts.extend(actions(&group.go_on));
    parts.extend(actions(&group.after));
    if group.kind == GroupKind::Failover {
        parts.extend(memory.taken_back.iter().map(|earlier| action(&earlier.action)));
    }
    let any = |state| parts.iter().any(|part| part.task.state == state);
    let state = match (group.started_ms, group.ended_ms) {
        (None, _) if group.kind != GroupKind::Boot && parts.is_empty() => RunState::Skipped,
        (None, _) => RunState::NotStarted,
        (Some(_), Some(_)) if any(RunState::Failed) => RunState::SucceededWithWarning,
        (Some(_), Some(_)) => RunState::Succeeded,
        (Some(_), None) if over => RunState::Cancelled,
        (Some(_), None) if any(RunState::Suspended) => RunState::Suspended,
        (Some(_), None) => RunState::InProgress,
    };
    let name = group.name.replace(' ', "");
    TaskView {
        name: format!("RecoveryPlan{name}"),
        friendly_name: group.name.clone(),
        state,
        started: group.started_ms.map(millis),
        ended: group.ended_ms.map(millis),
        message: None,
        problem: None,
        group: Some(GroupTask { kind: group.kind, parts }),
    }
}

fn action(action: &RunAction) -> PartTask {
    let failed = action.failure().is_some();
    let state = match (action.asked_ms, action.done_ms) {
        _ if action.back.is_some() => RunState::Cancelled,
        (_, Some(_)) if failed => RunState::Failed,
        (_, Some(_)) => RunState::Succeeded,
        (Some(_), None) if action.asks => RunState::Suspended,
        (Some(_), None) if matches!(action.what, What::Act { .. }) => RunState::InProgress,
        (Some(_), None) => RunState::Suspended,
        (None, None) => RunState::NotStarted,
    };
    let name = match &action.what {
        What::Person { .. } => "RecoveryPlanManualAction",
        What::Act { act: Act::Script { .. } } => "RecoveryPlanScriptAction",
        What::Act { .. } => "RecoveryPlanAutomationRunbookAction",
    };
    let problem = action.failure().map(|why| {
        Code::PLAN_ACTION_FAILED.problem(format!("action {} failed: {why}", action.name))
    });
    let task = TaskView {
        name: name.to_owned(),
        friendly_name: action.name.clone(),
        state,
        started: action.asked_ms.map(millis),
        ended: action.done_ms.map(millis),
        message: None,
        problem,
        group: None,
    };
    let end = action.end.clone().unwrap_or_default();
    let back = action.back.as_ref();
    let part = match &action.what {
        What::Person { description } => {
            PlanPart::Action { instructions: description.clone(), reply: action.reply.clone() }
        }
        What::Act { act } => PlanPart::Act {
            act: act.clone(),
            code: end.code,
            output: end.output,
            taken_back: back.map(|back| back.failure.clone().map_or(Ok(()), Err)),
        },
    };
    PartTask { task, part }
}

fn machine(memory: &RecoveryPlan, member: &Member, jobs: &[JobRow]) -> PartTask {
    let child = jobs.iter().find(|row| row.facts.item == Some(member.item));
    let (state, problem, skipped) = match (&member.progress, child) {
        (Progress::LeftOut { why }, _) => (RunState::Skipped, None, Some(why.clone())),
        (Progress::Failed { problem, .. }, _) => {
            (RunState::Failed, Some(model_problem(problem)), None)
        }
        (_, Some(row)) => (view::state(&row.record), None, None),
        (_, None) => (RunState::NotStarted, None, None),
    };
    let task = TaskView {
        name: format!("RecoveryPlan{:?}", memory.verb),
        friendly_name: member.name.clone(),
        state,
        started: child.map(|row| millis(row.record.created_ms)),
        ended: child.and_then(|row| row.record.ended_ms).map(millis),
        message: skipped.clone(),
        problem,
        group: None,
    };
    let part = PlanPart::Machine {
        item: member.item,
        name: member.name.clone(),
        job: child.map(|row| (row.facts.id, row.facts.scenario)),
        skipped,
    };
    PartTask { task, part }
}
