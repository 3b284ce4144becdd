//! Jobs as operators see and steer them.

use super::{
    Below,
    envelope::{Answer, Refusal, encode_path},
    filter::Filter,
    ids::{Ids, read_time, resource, time, time_or_null},
    item_view::INSTANCE_TYPE,
    plan_view::group_details,
    questions,
    request::{Fields, name_in_id},
};
use crate::{
    ControlError,
    jobs::{InstantJob, JobAnswer, JobFilter, JobView, RunState, Scenario, TargetKind, TaskView},
};
use leeward_model::{Code, Problem};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Properties that a list of jobs can be filtered by. The last two only shape exports.
const FILTERS: [&str; 9] = [
    "starttime",
    "endtime",
    "jobstatus",
    "affectedobjecttypes",
    "fabricid",
    "jobname",
    "targetobjectid",
    "joboutputtype",
    "timezoneoffset",
];

/// State and description of a job or task.
pub(super) fn state(state: RunState) -> (&'static str, &'static str) {
    match state {
        RunState::NotStarted => ("NotStarted", "NotStarted"),
        RunState::InProgress => ("InProgress", "InProgress"),
        RunState::Succeeded => ("Succeeded", "Completed"),
        RunState::SucceededWithWarning => ("Succeeded", "CompletedWithInformation"),
        RunState::Failed => ("Failed", "Failed"),
        RunState::Cancelling => ("InProgress", "Cancelling"),
        RunState::Cancelled => ("Cancelled", "Cancelled"),
        RunState::Suspended => ("Suspended", "Suspended"),
        RunState::Skipped => ("Other", "Skipped"),
    }
}

/// A scenario for people.
pub(super) fn friendly(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::EnableProtection => "Enable protection",
        Scenario::PrimaryIrCompletion => "Finalize protection on the primary site",
        Scenario::TestFailover => "Test failover",
        Scenario::TestFailoverCleanup => "Test failover cleanup",
        Scenario::UnplannedFailover => "Failover",
        Scenario::CancelFailover => "Cancel failover",
        Scenario::ChangePit => "Change recovery point",
        Scenario::CommitFailover => "Commit",
        Scenario::DisableProtection => "Disable protection",
        Scenario::Resynchronize => "Resynchronize",
        Scenario::PlannedFailover => "Planned failover",
        Scenario::ReverseReplication => "Reverse replication",
        Scenario::SecondaryIrCompletion => "Finalize protection on the recovery site",
        Scenario::CompleteMigration => "Complete migration",
        Scenario::CreateSite => "Create a site",
        Scenario::DeleteSite => "Delete a site",
        Scenario::AddProtectionProfile => "Create replication policy",
        Scenario::UpdateProtectionProfile => "Update replication policy",
        Scenario::DeleteProtectionProfile => "Delete replication policy",
        Scenario::PairClouds => "Associate replication policy",
        Scenario::UnpairClouds => "Dissociate replication policy",
        Scenario::RegisterDra => "Register a host",
        Scenario::UnregisterDra => "Unregister a host",
        Scenario::SaveRecoveryPlan => "Save a recovery plan",
        Scenario::DeleteRecoveryPlan => "Delete a recovery plan",
        Scenario::MapNetworks => "Map networks",
        Scenario::UnmapNetworks => "Remove a network mapping",
        Scenario::MapStorage => "Map storage",
        Scenario::UnmapStorage => "Remove a storage mapping",
        Scenario::UpdateVmProperties => "Change the settings of a protected item",
        Scenario::ExportJobs => "Export jobs",
    }
}

fn error(problem: &Problem, job: &JobView, task: Option<&str>) -> Value {
    json!({
        "serviceErrorDetails": {
            "code": problem.code,
            "message": problem.what,
            "possibleCauses": problem.cause,
            "recommendedAction": problem.todo,
            "activityId": job.id,
        },
        "providerErrorDetails": null,
        "errorLevel": "Error",
        "creationTime": time(job.ended.unwrap_or(job.started)),
        "taskId": task,
        "leewardCurrentState": problem.now,
    })
}

fn task(ids: &Ids, job: &JobView, task: &TaskView) -> Value {
    let group = task.group.as_ref();
    let group = group.map(|one| group_details(ids, &task.name, &task.friendly_name, one));
    let (word, description) = state(task.state);
    let errors: Vec<_> =
        task.problem.iter().map(|problem| error(problem, job, Some(&task.name))).collect();
    json!({
        "taskId": task.name,
        "name": task.name,
        "friendlyName": task.friendly_name,
        "state": word,
        "stateDescription": description,
        "startTime": time_or_null(task.started),
        "endTime": time_or_null(task.ended),
        "allowedActions": [],
        "taskType": "TaskDetails",
        "customDetails": { "instanceType": "TaskDetails" },
        "groupTaskCustomDetails": group,
        "errors": errors,
        "leewardMessage": task.message,
    })
}

/// Whether a recovery plan went with some of its machines only.
fn is_partial(job: &JobView) -> bool {
    let partly = |problem: &Problem| problem.code == Code::PLAN_PARTLY.code;
    job.state == RunState::SucceededWithWarning && job.errors.iter().any(partly)
}

/// Whether the tasks are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tasks {
    Shown,
    LeftOut,
}

fn custom_details(job: &JobView) -> Value {
    let kind = match job.scenario {
        Scenario::TestFailover => "TestFailoverJobDetails",
        Scenario::UnplannedFailover | Scenario::PlannedFailover => "FailoverJobDetails",
        _ => "AsrJobDetails",
    };
    json!({
        "instanceType": kind,
        "affectedObjectDetails": {
            "PrimaryVmId": job.target_id,
            "PrimaryVmName": job.target_name,
            "PrimaryFabricProviderId": INSTANCE_TYPE,
            "RecoveryFabricProviderId": INSTANCE_TYPE,
        },
        "comments": job.comments,
        "leewardQuestion": questions::view(job),
    })
}

fn view(ids: &Ids, job: &JobView, tasks: Tasks) -> Value {
    let (word, description) = state(job.state);
    let description = if is_partial(job) { "PartiallySucceeded" } else { description };
    let description = questions::waits(job).map_or(description, questions::description);
    let shown: Vec<_> = match tasks {
        Tasks::Shown => job.tasks.iter().map(|one| task(ids, job, one)).collect(),
        Tasks::LeftOut => Vec::new(),
    };
    let asked = questions::problem(job);
    let errors = job.errors.iter().chain(&asked).map(|problem| error(problem, job, None));
    let errors: Vec<_> = errors.collect();
    let allowed: Vec<_> = job.allowed.iter().map(|action| format!("{action:?}")).collect();
    resource(
        &ids.job(job.id),
        json!({
            "activityId": job.id,
            "scenarioName": format!("{:?}", job.scenario),
            "friendlyName": friendly(job.scenario),
            "state": word,
            "stateDescription": description,
            "tasks": shown,
            "errors": errors,
            "startTime": time(job.started),
            "endTime": time_or_null(job.ended),
            "allowedActions": allowed,
            "targetObjectId": job.target_id,
            "targetObjectName": job.target_name,
            "targetInstanceType": format!("{:?}", job.target_kind),
            "customDetails": custom_details(job),
            "leewardQuestion": job.question,
            "leewardParentJob": job.parent.map(|parent| ids.job(parent)),
        }),
    )
}

/// The states that a word of a filter stands for.
fn states_of(word: &str) -> Result<Vec<RunState>, ControlError> {
    const ALL: [RunState; 8] = [
        RunState::NotStarted,
        RunState::InProgress,
        RunState::Cancelling,
        RunState::Succeeded,
        RunState::SucceededWithWarning,
        RunState::Failed,
        RunState::Cancelled,
        RunState::Suspended,
    ];
    let named = |one: &RunState| {
        let (name, description) = state(*one);
        name.eq_ignore_ascii_case(word) || description.eq_ignore_ascii_case(word)
    };
    let found: Vec<_> = ALL.into_iter().filter(named).collect();
    if found.is_empty() {
        let what = format!("JobStatus {word} is not a state of a job");
        return Err(ControlError::bad_request(what));
    }
    Ok(found)
}

/// List, newest first, without tasks.
pub(super) async fn list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let filter = below.call.filter(&FILTERS)?;
    let mut wanted = JobFilter::default();
    for clause in filter.of("jobstatus") {
        for (_, word) in &clause.any {
            wanted.states.extend(states_of(word)?);
        }
    }
    let moment = |name: &str| -> Result<_, ControlError> {
        let Some(text) = filter.single(name) else { return Ok(None) };
        let wrong = || ControlError::bad_request(format!("{name} {text} is not a time"));
        read_time(text).map(Some).ok_or_else(wrong)
    };
    wanted.since = moment("starttime")?;
    wanted.until = moment("endtime")?;
    let mut jobs = below.control().job_list(below.vault.id, &wanted).await?;
    jobs.retain(|job| {
        let (kind, scenario) = (format!("{:?}", job.target_kind), format!("{:?}", job.scenario));
        let id = job.id.to_string();
        filter.admits("affectedobjecttypes", &[&kind, short_kind(job.target_kind)])
            && filter.admits("jobname", &[&scenario, friendly(job.scenario), &id])
            && filter.admits("targetobjectid", &[&job.target_id])
    });
    if filter.has("fabricid") {
        let targets = targets_of_fabrics(below, &filter).await?;
        jobs.retain(|job| targets.contains(&job.target_id));
    }
    below.page(jobs.iter().map(|job| view(&below.ids, job, Tasks::LeftOut)).collect())
}

/// How clients also call a kind of object.
fn short_kind(kind: TargetKind) -> &'static str {
    match kind {
        TargetKind::ProtectionEntity => "ProtectedItem",
        TargetKind::ProtectionProfile => "Policy",
        TargetKind::Server => "Server",
        TargetKind::Fabric => "Fabric",
        TargetKind::RecoveryPlan => "RecoveryPlan",
    }
}

/// Ids of the objects that belong to the fabrics that a filter names by id or name.
async fn targets_of_fabrics(
    below: &Below<'_>,
    filter: &super::filter::Filter,
) -> Result<BTreeSet<String>, ControlError> {
    let control = below.control();
    let mut targets = BTreeSet::new();
    let names = |id: String, name: &str| {
        let named = |text: &str| {
            let text = name_in_id(text, "replicationFabrics").unwrap_or(text);
            text.eq_ignore_ascii_case(&id) || text.eq_ignore_ascii_case(name)
        };
        filter.of("fabricid").all(|clause| clause.any.iter().any(|(_, text)| named(text)))
    };
    for fabric in control.fabric_list(below.vault.id).await? {
        if names(fabric.id.to_string(), &fabric.name) {
            targets.insert(fabric.id.to_string());
            targets.extend(fabric.hosts.iter().map(|host| host.id.to_string()));
        }
    }
    for item in control.item_list(below.vault.id, None).await? {
        if names(item.source_fabric.to_string(), &item.source_fabric_name) {
            targets.insert(item.id.to_string());
        }
    }
    Ok(targets)
}

/// POST export: the answer names the list that has these jobs; nothing is stored for it.
pub(super) async fn export(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fields = Fields::new(&below.call.body);
    let output = fields.text("jobOutputType")?.unwrap_or("Json");
    if !output.eq_ignore_ascii_case("Json") {
        let what = format!("jobOutputType {output} is not supported yet; Json is");
        return Err(ControlError::bad_request(what).into());
    }
    fields.number("timezoneOffset")?;
    let mut clauses = Vec::new();
    for (field, property, operator) in [
        ("startTime", "StartTime", "ge"),
        ("endTime", "EndTime", "le"),
        ("fabricId", "FabricId", "eq"),
        ("affectedObjectTypes", "AffectedObjectTypes", "eq"),
        ("jobStatus", "JobStatus", "eq"),
        ("jobName", "JobName", "eq"),
    ] {
        let Some(text) = fields.text(field)? else { continue };
        let words = text
            .split(',')
            .map(|word| format!("{property} {operator} '{}'", word.trim().replace('\'', "''")));
        let words = words.collect::<Vec<_>>();
        clauses.push(match words.len() {
            1 => words.concat(),
            _ => format!("( {} )", words.join(" or ")),
        });
    }
    let filter = clauses.join(" and ");
    // Refused here and not only where the list is read.
    Filter::parse(&filter, &FILTERS)?;
    if let Some(text) = fields.text("jobStatus")? {
        for word in text.split(',') {
            states_of(word.trim())?;
        }
    }
    for field in ["startTime", "endTime"] {
        if let Some(text) = fields.text(field)?.filter(|text| read_time(text).is_none()) {
            return Err(ControlError::bad_request(format!("{field} {text} is not a time")).into());
        }
    }
    let instant = InstantJob {
        scenario: Scenario::ExportJobs,
        target_kind: TargetKind::Server,
        target_id: below.vault.id.to_string(),
        target_name: below.vault.key.name.clone(),
    };
    let control = below.control();
    let id = control.job_note(below.vault.id, instant).await?;
    let mut body = view(&below.ids, &control.job_get(below.vault.id, id).await?, Tasks::Shown);
    let list =
        encode_path(&below.ids.below("replicationJobs", "")).trim_end_matches('/').to_owned();
    let query = encode_path(&filter).replace('/', "%2F");
    body["properties"]["customDetails"] = json!({
        "instanceType": "ExportJobDetails",
        "blobUri": format!("{}{list}?%24filter={query}", below.call.origin),
        "sasToken": "",
    });
    Ok(Answer::Ok(body))
}

/// GET.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    let job = below.control().job_get(below.vault.id, below.call.job()?).await?;
    Ok(Answer::Ok(view(&below.ids, &job, Tasks::Shown)))
}

/// POST cancel: accepted at once; the job goes back by itself.
pub(super) async fn cancel(below: &Below<'_>) -> Result<Answer, Refusal> {
    let job = below.control().job_cancel(below.vault.id, below.call.job()?).await?;
    Ok(Answer::Ok(view(&below.ids, &job, Tasks::Shown)))
}

/// POST resume: comments are the reply to the job's question; without any, "Complete failover" is
/// said where a job waits for it, and else the step is tried again. `leewardAnswer` says it
/// outright.
pub(super) async fn resume(below: &Below<'_>) -> Result<Answer, Refusal> {
    let properties = below.call.properties()?;
    let comments = properties.text("comments")?;
    let (control, vault, id) = (below.control(), below.vault.id, below.call.job()?);
    let answer = match answer(properties.text("leewardAnswer")?, comments)? {
        Some(answer) => answer,
        None => questions::plain_answer(&control.job_get(vault, id).await?),
    };
    let job = control.job_resume(vault, id, answer).await?;
    Ok(Answer::Ok(view(&below.ids, &job, Tasks::Shown)))
}

/// The answer that a request gives; none when it says nothing but "go on".
fn answer(word: Option<&str>, comments: Option<&str>) -> Result<Option<JobAnswer>, ControlError> {
    match (word.map(str::to_ascii_lowercase).as_deref(), comments) {
        (None, None) => Ok(None),
        (Some("retry"), _) => Ok(Some(JobAnswer::Retry)),
        (Some("reply"), text) => Ok(Some(JobAnswer::Reply(text.unwrap_or_default().to_owned()))),
        (None, Some(text)) => Ok(Some(JobAnswer::Reply(text.to_owned()))),
        (Some("abandon"), _) => Ok(Some(JobAnswer::Abandon)),
        (Some(word), _) => Err(ControlError::bad_request(format!(
            "leewardAnswer {word} is not one of Retry, Reply, Abandon"
        ))),
    }
}

/// POST restart: answers with the new job.
pub(super) async fn restart(below: &Below<'_>) -> Result<Answer, Refusal> {
    let control = below.control();
    let new = control.job_restart(below.vault.id, below.call.job()?).await?;
    let job = control.job_get(below.vault.id, new).await?;
    Ok(Answer::Ok(view(&below.ids, &job, Tasks::Shown)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_states_by_word_or_description() {
        assert_eq!(
            states_of("succeeded").unwrap(),
            [RunState::Succeeded, RunState::SucceededWithWarning]
        );
        assert_eq!(states_of("InProgress").unwrap(), [RunState::InProgress, RunState::Cancelling]);
        assert_eq!(states_of("Cancelling").unwrap(), [RunState::Cancelling]);
        assert!(states_of("Tired").is_err());
    }

    #[test]
    fn comments_reply_and_silence_only_goes_on() {
        let reply = JobAnswer::Reply("it is off".into());
        assert_eq!(answer(None, None).unwrap(), None);
        assert_eq!(answer(None, Some("it is off")).unwrap(), Some(reply));
        assert_eq!(answer(Some("Abandon"), Some("x")).unwrap(), Some(JobAnswer::Abandon));
        assert_eq!(answer(Some("RETRY"), Some("x")).unwrap(), Some(JobAnswer::Retry));
        assert!(answer(Some("maybe"), None).is_err());
    }
}
