//! What a job that waits for a person asks, and what can be answered. The answers' meaning is the
//! business of the job's step; here they are only named, so that no client has to guess.

use crate::jobs::{
    JobAction, JobAnswer, JobView, RunState, Scenario, TargetKind, waits_to_complete,
};
use leeward_model::{Code, Problem};
use serde_json::{Value, json};

/// What the reply to "Complete failover" is when the client sends none.
const COMPLETE: &str = "complete";
/// The reply by which a source that does not shut down is switched off.
const POWER_OFF: &str = "power-off";
/// The reply by which protection ends although the machine that was left may run.
const GO_ON: &str = "go-on";

/// What a suspended job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// For the end of a test.
    TestEnd,
    /// For "Complete failover": both sites are in step, the machine still runs (F-098).
    Completion,
    /// For an answer to a question with this code.
    Coded(Code),
    /// For a person to do what a recovery plan says, or to let it go on.
    Plan,
    /// For an answer to another question.
    Other,
}

/// What a job waits for; none unless it is suspended.
pub(super) fn waits(job: &JobView) -> Option<Waits> {
    if job.state != RunState::Suspended {
        return None;
    }
    let question = job.question.as_deref().unwrap_or_default();
    let code = Code::parse(first_line(question)).map(|(code, _)| code);
    if job.target_kind == TargetKind::RecoveryPlan {
        return Some(code.map_or(Waits::Plan, Waits::Coded));
    }
    if job.scenario == Scenario::TestFailover {
        return Some(Waits::TestEnd);
    }
    Some(match code {
        Some(code) => Waits::Coded(code),
        None if waits_to_complete(job) => Waits::Completion,
        None => Waits::Other,
    })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The description of a suspended job.
pub(super) fn description(waits: Waits) -> &'static str {
    match waits {
        Waits::TestEnd => "WaitingForStopTestFailover",
        Waits::Completion => "WaitingForFinalizeFailback",
        Waits::Coded(_) | Waits::Plan | Waits::Other => "Suspended",
    }
}

fn choice(comments: Option<&str>, answer: &str, does: &str) -> Value {
    json!({ "comments": comments, "leewardAnswer": answer, "does": does })
}

/// The question with its answers, for a job's details; null while nothing is asked.
pub(super) fn view(job: &JobView) -> Value {
    let (Some(text), Some(waits)) = (&job.question, waits(job)) else { return Value::Null };
    let mut choices = match waits {
        Waits::TestEnd => Vec::new(),
        Waits::Completion => {
            let does = "shut the machine down, send the rest, start it at the other site";
            vec![choice(Some(COMPLETE), "Reply", does)]
        }
        Waits::Plan => vec![choice(Some("your words"), "Reply", "it is done: the plan goes on")],
        Waits::Coded(Code::SOURCE_NOT_OFF) => vec![
            choice(None, "Retry", "ask the machine to shut down again"),
            choice(Some(POWER_OFF), "Reply", "switch the machine off; what it has written is sent"),
        ],
        Waits::Coded(Code::PLAN_ACTION_FAILED) => vec![
            choice(None, "Retry", "do the action again"),
            choice(Some(GO_ON), "Reply", "go on without the action"),
        ],
        Waits::Coded(Code::BOTH_MAY_BE_LIVE) => vec![
            choice(None, "Retry", "look again; a second time: end protection all the same"),
            choice(Some(GO_ON), "Reply", "end protection; nothing stops the old machine any more"),
        ],
        Waits::Coded(_) | Waits::Other => vec![
            choice(None, "Retry", "try the step again"),
            choice(Some("your words"), "Reply", "go on: what the question asks for is so"),
        ],
    };
    if job.allowed.contains(&JobAction::Cancel) {
        choices.push(choice(None, "Abandon", "go back, as a cancel of the job does"));
    }
    let code = match waits {
        Waits::Coded(code) => Some(code.code),
        Waits::TestEnd | Waits::Completion | Waits::Plan | Waits::Other => None,
    };
    json!({ "code": code, "text": text, "choices": choices })
}

/// The problem behind a question that has a code, unless the job's errors have it already.
pub(super) fn problem(job: &JobView) -> Option<Problem> {
    let Some(Waits::Coded(code)) = waits(job) else { return None };
    let known = |problem: &Problem| problem.code == code.code;
    if job.errors.iter().any(known) {
        return None;
    }
    let (_, what) = Code::parse(first_line(job.question.as_deref()?))?;
    Some(code.problem(what))
}

/// What a resume without any comment means: go on where "Complete failover" is waited for, else
/// try the step again.
pub(super) fn plain_answer(job: &JobView) -> JobAnswer {
    match waits(job) {
        Some(Waits::Completion) => JobAnswer::Reply(COMPLETE.to_owned()),
        Some(Waits::TestEnd | Waits::Coded(_) | Waits::Plan | Waits::Other) | None => {
            JobAnswer::Retry
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::TaskView;
    use leeward_model::{JobId, UnixMillis, VaultId};

    fn job(scenario: Scenario, task: &str, question: &str) -> JobView {
        let task = TaskView {
            name: task.into(),
            friendly_name: task.into(),
            state: RunState::Suspended,
            started: None,
            ended: None,
            message: None,
            problem: None,
            group: None,
        };
        JobView {
            id: JobId::from_u128(7),
            vault: VaultId::from_u128(1),
            scenario,
            state: RunState::Suspended,
            started: UnixMillis(0),
            ended: None,
            tasks: vec![task],
            errors: Vec::new(),
            allowed: vec![JobAction::Resume, JobAction::Cancel],
            question: Some(question.into()),
            item: None,
            target_kind: TargetKind::ProtectionEntity,
            target_id: String::new(),
            target_name: "web01".into(),
            comments: String::new(),
            parent: None,
        }
    }

    /// F-098, F-110.
    #[test]
    fn a_job_that_waits_for_complete_failover_says_so_and_goes_on_without_a_comment() {
        let job = job(
            Scenario::PlannedFailover,
            "VmWaitForCompleteFailover",
            "Complete failover: web01 runs on",
        );

        assert_eq!(waits(&job), Some(Waits::Completion));
        assert_eq!(description(Waits::Completion), "WaitingForFinalizeFailback");
        assert_eq!(plain_answer(&job), JobAnswer::Reply("complete".into()));
        let shown = view(&job);
        assert_eq!(shown["code"], Value::Null);
        assert_eq!(shown["choices"][0]["comments"], "complete");
        assert_eq!(shown["choices"][1]["leewardAnswer"], "Abandon");
        assert_eq!(problem(&job), None);
    }

    #[test]
    fn a_source_that_is_not_off_is_a_question_with_a_code_and_its_choices() {
        let asks = "LW-0309: the guest of web01 did not react. Resume the job to try again\n more";
        let mut job = job(Scenario::PlannedFailover, "VmShutdownVmOnPrimary", asks);

        assert_eq!(waits(&job), Some(Waits::Coded(Code::SOURCE_NOT_OFF)));
        assert_eq!(plain_answer(&job), JobAnswer::Retry);
        let shown = view(&job);
        assert_eq!((&shown["code"], &shown["text"]), (&json!("LW-0309"), &json!(asks)));
        let replies: Vec<_> =
            shown["choices"].as_array().unwrap().iter().map(|one| &one["comments"]).collect();
        assert_eq!(replies, [&Value::Null, &json!("power-off"), &Value::Null]);
        let problem = problem(&job).unwrap();
        assert_eq!(problem.code, "LW-0309");
        assert!(problem.what.starts_with("the guest of web01") && !problem.what.contains('\n'));
        job.errors.push(problem);
        assert_eq!(super::problem(&job), None, "it is told once");
    }

    #[test]
    fn an_old_machine_that_may_run_is_a_question_with_a_code_and_its_choices() {
        let asks = "LW-0304: the old machine on host kvm-a is not known to be off";
        let job = job(Scenario::DisableProtection, "VmOldMachineOff", asks);

        assert_eq!(waits(&job), Some(Waits::Coded(Code::BOTH_MAY_BE_LIVE)));
        assert_eq!(plain_answer(&job), JobAnswer::Retry);
        let shown = view(&job);
        assert_eq!(shown["code"], "LW-0304");
        let replies: Vec<_> =
            shown["choices"].as_array().unwrap().iter().map(|one| &one["comments"]).collect();
        assert_eq!(replies, [&Value::Null, &json!("go-on"), &Value::Null]);
    }

    #[test]
    fn other_questions_are_neither_and_a_running_job_asks_nothing() {
        let asks = "the machine is off, but its final point did not arrive";
        let mut job = job(Scenario::PlannedFailover, "VmPrepareForPlannedFailover", asks);
        assert_eq!(waits(&job), Some(Waits::Other));
        assert_eq!(description(Waits::Other), "Suspended");
        assert_eq!(plain_answer(&job), JobAnswer::Retry);

        job.scenario = Scenario::TestFailover;
        assert_eq!(waits(&job).map(description), Some("WaitingForStopTestFailover"));

        job.state = RunState::InProgress;
        assert_eq!((waits(&job), view(&job)), (None, Value::Null));
    }
}
