//! Shows a job's record in the API's words: scenarios, tasks, states.

use super::plan_tasks;
use super::recovery_plan::TURN;
use super::{JobAction, JobView, RunState, Scenario, TaskView};
use crate::store::jobs::JobRow;
use crate::world::model_problem;
use leeward_durable::{List, Phase, Question, Reason, Record, StepLog, StepState};
use leeward_model::{Code, Problem, UnixMillis};

pub(super) fn millis(ms: u64) -> UnixMillis {
    UnixMillis(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// The task of a planned failover in which it waits for a person to complete it.
const COMPLETE_TASK: &str = "VmWaitForCompleteFailover";

/// Whether a planned failover waits for a person to complete it (F-098).
pub(crate) fn waits_to_complete(job: &JobView) -> bool {
    let waits = |task: &TaskView| task.name == COMPLETE_TASK && task.state == RunState::Suspended;
    job.scenario == Scenario::PlannedFailover
        && job.state == RunState::Suspended
        && job.tasks.iter().any(waits)
}

/// The API's name of a step, and its name for people.
fn task_name(kind: &str, list: List, step: &str) -> (String, String) {
    if let Some((name, friendly)) = plan_tasks::name_of(kind, step) {
        return (name.to_owned(), friendly.to_owned());
    }
    let known = match (kind, list, step) {
        ("failover", List::Reversible, "check") => {
            ("VmUfoPrerequisitesCheck", "Prerequisites check for failover")
        }
        ("failover", _, "shut-down-source") => {
            ("VmShutdownVmOnPrimary", "Shut down the source machine")
        }
        ("failover", _, "final-delta") => {
            ("VmPrepareForUnPlannedFailover", "Synchronizing the latest changes")
        }
        ("failover", _, "fence") => ("VmFenceSource", "Fence the source"),
        ("failover", _, "choose-point") => ("VmChooseRecoveryPoint", "Choose the recovery point"),
        ("failover", _, "build-overlay") => ("VmFailover", "Start failover"),
        ("failover", _, "prepare-machine") => {
            ("VmPrepareVmOnSecondary", "Prepare the replica virtual machine")
        }
        ("failover", List::Forward, "start-machine") => {
            ("VmFoStartVmOnSecondary", "Start the replica virtual machine")
        }
        ("failover", List::Forward, "record") => ("VmCompleteFailover", "Complete failover"),
        ("test-failover", _, "check") => {
            ("VmTfoPrerequisitesCheck", "Prerequisites check for test failover")
        }
        ("test-failover", _, "build-overlay") => ("VmTestFailover", "Create test virtual machine"),
        ("test-failover", _, "start-machine") => {
            ("VmTfoStartVmOnSecondary", "Start the test virtual machine")
        }
        ("enable-protection", _, "check") => {
            ("VmEnablePrerequisitesCheck", "Prerequisites check for enabling protection")
        }
        ("enable-protection", _, "create-replica") => {
            ("VmCreateReplica", "Create the replica at the target")
        }
        ("enable-protection", _, "start-replication") => {
            ("VmStartInitialReplication", "Start initial replication")
        }
        ("planned-failover", List::Reversible, "check") => {
            ("VmPfoPrerequisitesCheck", "Prerequisites check for planned failover")
        }
        ("planned-failover", List::Forward, "record") => {
            ("VmCompleteFailover", "Complete failover")
        }
        ("reprotect", List::Reversible, "check") => (
            "VmReverseReplicationPrerequisitesCheck",
            "Prerequisites check for reverse replication",
        ),
        ("reprotect", List::Forward, "record") => ("UpdateDraState", "Update the hosts"),
        ("planned-failover" | "reprotect" | "finalize-reprotect", list, step) => {
            return turning_task(list, step);
        }
        ("change-point", List::Reversible, "check") => {
            ("VmChangePitPrerequisitesCheck", "Prerequisites check for changing the point")
        }
        ("commit", _, "commit") => ("VmCommit", "Commit failover"),
        _ => return plain_task(step),
    };
    (known.0.to_owned(), known.1.to_owned())
}

/// As [`task_name`], of the jobs that turn an item round.
fn turning_task(list: List, step: &str) -> (String, String) {
    let known = match (list, step) {
        (List::Reversible, "reprotect") => {
            ("VmReverseReplication", "Replicate the machine to the site that it left")
        }
        (_, "synchronize") => {
            ("VmSynchronizeBeforeShutdown", "Synchronizing while the machine runs")
        }
        (_, "complete") => (COMPLETE_TASK, "Wait for \"Complete failover\""),
        (_, "shut-down-source") => ("VmShutdownVmOnPrimary", "Shut down the source machine"),
        (_, "final-delta") => ("VmPrepareForPlannedFailover", "Synchronizing the latest changes"),
        (_, "fence") => ("VmFenceSource", "Fence the source"),
        (_, "choose-point") => ("VmChooseRecoveryPoint", "Choose the recovery point"),
        (_, "build-overlay") => ("VmFailover", "Start failover"),
        (_, "prepare-machine") => ("VmPrepareVmOnSecondary", "Prepare the replica virtual machine"),
        (List::Forward, "start-machine") => {
            ("VmFoStartVmOnSecondary", "Start the replica virtual machine")
        }
        (_, "hand-over") => ("VmHandOver", "Hand the machine over to its host"),
        (_, "fence-left-machine") => ("VmShutdownVmOnSecondary", "Fence the machine that was left"),
        (_, "seed") => ("VmPrepareForReverseReplication", "Read the disks that were left"),
        (_, "start-replication") => ("VmInitiateReverseReplication", "Start reverse replication"),
        (_, "wait-for-first-point") => {
            ("VmStartInitialReplication", "Compare, and send what differs")
        }
        _ => return plain_task(step),
    };
    (known.0.to_owned(), known.1.to_owned())
}

/// A step's own name in the API's style.
fn plain_task(step: &str) -> (String, String) {
    let words = step.replace('-', " ");
    let camel: String = words.split(' ').map(capital).collect();
    (format!("Vm{camel}"), capital(&words))
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn task(kind: &str, step: &StepLog) -> TaskView {
    let (name, friendly_name) = task_name(kind, step.list, &step.name);
    let problem = step.problem.as_ref().map(model_problem);
    let undo = step.undo.as_ref();
    // A shutdown that nobody could be asked for is a task that was skipped, with its reason.
    let away = problem.as_ref().is_some_and(|problem| problem.code == Code::SOURCE_AWAY.code);
    let state = match step.state {
        StepState::NotStarted => RunState::NotStarted,
        StepState::InProgress => RunState::InProgress,
        StepState::Waiting => RunState::Suspended,
        StepState::Skipped => RunState::Skipped,
        StepState::SucceededWithWarning if away => RunState::Skipped,
        StepState::Succeeded => RunState::Succeeded,
        StepState::SucceededWithWarning => RunState::SucceededWithWarning,
        StepState::Failed => RunState::Failed,
        StepState::Cancelled | StepState::Undone => RunState::Cancelled,
    };
    TaskView {
        name,
        friendly_name,
        state,
        started: step.started_ms.map(millis),
        ended: undo.and_then(|undo| undo.ended_ms).or(step.ended_ms).map(millis),
        message: undo.and_then(|undo| undo.message.clone()).or_else(|| step.message.clone()),
        problem: problem.or_else(|| undo.and_then(|u| u.problem.as_ref()).map(model_problem)),
        group: None,
    }
}

/// The state of a job.
pub(crate) fn state(record: &Record) -> RunState {
    let ended = |reason: &Reason| match reason {
        Reason::Cancelled => RunState::Cancelled,
        Reason::Failed(_) => RunState::Failed,
    };
    match &record.phase {
        Phase::Succeeded if record.warnings().next().is_some() => RunState::SucceededWithWarning,
        Phase::Succeeded => RunState::Succeeded,
        Phase::RolledBack { reason } | Phase::Abandoned { reason } => ended(reason),
        _ if record.question().is_some()
            && record.next() == leeward_durable::Next::WaitingForOperator =>
        {
            RunState::Suspended
        }
        Phase::Undoing { .. } | Phase::Abandoning { .. } => RunState::Cancelling,
        Phase::Reversible { .. } | Phase::Forward { .. } if record.cancel_requested => {
            RunState::Cancelling
        }
        Phase::Reversible { next: 0 }
            if record.log.first().is_some_and(|step| step.state == StepState::NotStarted) =>
        {
            RunState::NotStarted
        }
        Phase::Reversible { .. } | Phase::Forward { .. } => RunState::InProgress,
    }
}

fn errors(record: &Record) -> Vec<Problem> {
    let mut errors: Vec<Problem> = record
        .log
        .iter()
        .filter_map(|step| step.problem.as_ref())
        .chain(record.log.iter().filter_map(|step| step.undo.as_ref()?.problem.as_ref()))
        .map(model_problem)
        .collect();
    if let Phase::RolledBack { reason: Reason::Failed(problem) }
    | Phase::Abandoned { reason: Reason::Failed(problem) } = &record.phase
    {
        let problem = model_problem(problem);
        if !errors.contains(&problem) {
            errors.push(problem);
        }
    }
    errors
}

/// A job as operators see it.
pub(crate) fn view(row: &JobRow) -> JobView {
    let record = &row.record;
    let state = state(record);
    let allowed = match state {
        RunState::NotStarted | RunState::InProgress | RunState::Cancelling => {
            vec![JobAction::Cancel]
        }
        RunState::Suspended => vec![JobAction::Resume, JobAction::Cancel],
        RunState::Failed | RunState::Cancelled if row.facts.request.is_some() => {
            vec![JobAction::Restart]
        }
        RunState::Failed
        | RunState::Cancelled
        | RunState::Succeeded
        | RunState::SucceededWithWarning
        | RunState::Skipped => Vec::new(),
    };
    let question = record.question().map(|question| match question {
        Question::Asked(text) => text.clone(),
        Question::Failed(problem) => problem.to_string(),
    });
    // The way back is shown once it is taken.
    let shown = |step: &&StepLog| {
        let taken = step.list != List::Abandon || step.started_ms.is_some();
        // Only a plan makes a machine wait for its turn.
        taken && (step.name != TURN || row.facts.parent.is_some())
    };
    JobView {
        id: row.facts.id,
        vault: row.facts.vault,
        scenario: row.facts.scenario,
        state,
        started: millis(record.created_ms),
        ended: record.ended_ms.map(millis),
        tasks: record.log.iter().filter(shown).map(|step| task(&record.kind, step)).collect(),
        errors: errors(record),
        allowed,
        question,
        item: row.facts.item,
        target_kind: row.facts.target_kind,
        target_id: row.facts.target_id.clone(),
        target_name: row.facts.target_name.clone(),
        comments: row.facts.comments.clone(),
        parent: row.facts.parent,
    }
}
