//! Long-running operations as clients poll them: the status document and the result.
//!
//! The job is the operation: its id stands in both URLs.

use super::{
    Below,
    envelope::{Answer, Refusal, error_body},
    ids,
    routes::{self, Found, Method, Operation as Op},
};
use crate::{
    ControlError,
    jobs::{JobView, RunState, Scenario},
};
use axum::http::StatusCode;
use leeward_model::{Code, Problem, TestState};
use serde_json::{Value, json};

/// The error code of an operation that failed.
const FAILED: &str = "OperationFailed";
/// The error code of an operation that was cancelled.
const CANCELED: &str = "OperationCanceled";

/// Splits `…/operationresults/{job}` into the resource's segments and the job.
pub(super) fn split_results(segments: &[String]) -> Option<(&[String], &str)> {
    let (job, rest) = segments.split_last()?;
    let (word, resource) = rest.split_last()?;
    word.eq_ignore_ascii_case("operationresults").then_some((resource, job.as_str()))
}

/// What asking for the result of `job` on a resource leads to: the resource, marked.
pub(super) fn find_results(resource: &[String], job: &str) -> Found {
    match routes::find(Method::Get, resource) {
        Found::Route(target, names) => Found::Route(target, names.with_results(job)),
        other => other,
    }
}

/// How an operation went, in the words of the status document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It runs, or waits for a person.
    InProgress,
    /// It is done.
    Succeeded,
    /// It failed.
    Failed,
    /// It was cancelled. The document has one l, the job two: clients know only these.
    Canceled,
}

/// How the operation of `job` went; `test_is_up` says that its test machine runs and waits.
pub(super) fn outcome(job: &JobView, test_is_up: bool) -> Outcome {
    match job.state {
        RunState::Succeeded | RunState::SucceededWithWarning | RunState::Skipped => {
            Outcome::Succeeded
        }
        RunState::Failed => Outcome::Failed,
        RunState::Cancelled => Outcome::Canceled,
        RunState::NotStarted
        | RunState::InProgress
        | RunState::Cancelling
        | RunState::Suspended => {
            if job.scenario == Scenario::TestFailover && test_is_up {
                Outcome::Succeeded
            } else {
                Outcome::InProgress
            }
        }
    }
}

/// The job, and how its operation went.
async fn look(below: &Below<'_>, name: &str) -> Result<(JobView, Outcome), ControlError> {
    let id = name
        .parse()
        .map_err(|_| ControlError::not_found(format!("there is no operation {name}")))?;
    let job = below.control().job_get(below.vault.id, id).await?;
    let item = match (job.scenario, job.item) {
        (Scenario::TestFailover, Some(item)) => below.control().item_find(item).await.ok(),
        _ => None,
    };
    let test_is_up = item.is_some_and(|item| matches!(item.state.test, TestState::Active { .. }));
    let outcome = outcome(&job, test_is_up);
    Ok((job, outcome))
}

/// `replicationOperationStatus/{job}`: always 200.
pub(super) async fn status(below: &Below<'_>) -> Result<Answer, Refusal> {
    let (job, outcome) = look(below, below.name("job")).await?;
    let id = below.ids.below("replicationOperationStatus", &job.id.to_string());
    let body = status_body(&id, &job, outcome);
    Ok(Answer::Status { body, running: outcome == Outcome::InProgress })
}

fn status_body(id: &str, job: &JobView, outcome: Outcome) -> Value {
    let mut body = json!({
        "id": id,
        "name": job.id,
        "status": format!("{outcome:?}"),
        "startTime": ids::time(job.started),
        "properties": {},
    });
    if outcome != Outcome::InProgress {
        body["endTime"] = ids::time_or_null(job.ended.or(Some(job.started)));
    }
    match outcome {
        Outcome::Failed => body["error"] = error_body(FAILED, &failure(job), None),
        Outcome::Canceled => body["error"] = error_body(CANCELED, &canceled(job), None),
        Outcome::InProgress | Outcome::Succeeded => {}
    }
    body
}

/// `{resource}/operationresults/{job}`: 202 while it runs, then the resource, or why not.
pub(super) async fn results(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let (job, outcome) = look(below, below.call.names.results_job()).await?;
    let refuse = |code, problem| Refusal {
        status: StatusCode::CONFLICT,
        code,
        problem: Box::new(problem),
        target: Some(below.ids.job(job.id)),
        allow: None,
    };
    match outcome {
        Outcome::InProgress => {
            let segments = routes::split(&below.call.path).unwrap_or_default();
            let resource = split_results(&segments).map_or(&[][..], |(resource, _)| resource);
            Ok(below.accepted(format!("/{}", resource.join("/")), job.id))
        }
        Outcome::Succeeded if removes(job.scenario) => Ok(Answer::Empty),
        Outcome::Succeeded => below.dispatch(op).await,
        Outcome::Failed => Err(refuse(FAILED, failure(&job))),
        Outcome::Canceled => Err(refuse(CANCELED, canceled(&job))),
    }
}

/// Whether the resource is gone after a success.
fn removes(scenario: Scenario) -> bool {
    matches!(
        scenario,
        Scenario::DisableProtection
            | Scenario::CompleteMigration
            | Scenario::DeleteSite
            | Scenario::DeleteProtectionProfile
            | Scenario::UnpairClouds
            | Scenario::UnregisterDra
            | Scenario::DeleteRecoveryPlan
            | Scenario::UnmapNetworks
            | Scenario::UnmapStorage
    )
}

fn failure(job: &JobView) -> Problem {
    let failed = job.tasks.iter().rev().find(|task| task.state == RunState::Failed);
    let problem = failed.and_then(|task| task.problem.clone());
    problem
        .or_else(|| job.errors.last().cloned())
        .unwrap_or_else(|| Code::INTERNAL.problem(format!("job {} failed", job.id)))
}

fn canceled(job: &JobView) -> Problem {
    Problem {
        code: CANCELED.into(),
        what: format!("job {} on {} was cancelled", job.id, job.target_name),
        cause: "somebody cancelled it, or it was given up".into(),
        now: "what it had done is undone".into(),
        todo: "look at the job's tasks; start it again when you want it".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::TargetKind;
    use leeward_model::{JobId, UnixMillis, VaultId};

    fn job(scenario: Scenario, state: RunState) -> JobView {
        JobView {
            id: JobId::from_u128(7),
            vault: VaultId::from_u128(1),
            scenario,
            state,
            started: UnixMillis(0),
            ended: None,
            tasks: Vec::new(),
            errors: vec![Code::NO_POINT.problem("there is no point")],
            allowed: Vec::new(),
            question: None,
            item: None,
            target_kind: TargetKind::ProtectionEntity,
            target_id: String::new(),
            target_name: "web01".into(),
            comments: String::new(),
            parent: None,
        }
    }

    #[test]
    fn an_operation_uses_the_words_that_clients_know() {
        for (state, word) in [
            (RunState::NotStarted, "InProgress"),
            (RunState::InProgress, "InProgress"),
            (RunState::Cancelling, "InProgress"),
            (RunState::Suspended, "InProgress"),
            (RunState::Succeeded, "Succeeded"),
            (RunState::SucceededWithWarning, "Succeeded"),
            (RunState::Failed, "Failed"),
            (RunState::Cancelled, "Canceled"),
        ] {
            let job = job(Scenario::UnplannedFailover, state);
            let body = status_body("/x", &job, outcome(&job, true));

            assert_eq!(body["status"], word, "{state:?}");
            let ends_badly = word == "Failed" || word == "Canceled";
            assert_eq!(body.get("error").is_some(), ends_badly);
            assert_eq!(body.get("endTime").is_some(), word != "InProgress");
        }
        let failed = job(Scenario::UnplannedFailover, RunState::Failed);
        let body = status_body("/x", &failed, Outcome::Failed);
        assert_eq!(body["error"]["details"][0]["code"], "LW-0303");
    }

    #[test]
    fn a_test_failover_is_done_for_its_caller_once_its_machine_is_up() {
        let waiting = job(Scenario::TestFailover, RunState::Suspended);
        assert_eq!(outcome(&waiting, true), Outcome::Succeeded);
        assert_eq!(outcome(&waiting, false), Outcome::InProgress);

        let other = job(Scenario::UnplannedFailover, RunState::Suspended);
        assert_eq!(outcome(&other, true), Outcome::InProgress);
    }
}
