//! Events: what operators read about what happened.

use super::{
    Below,
    envelope::{Answer, Refusal},
    fabrics::health_error,
    ids::{Ids, read_time, resource, time},
    item_view::INSTANCE_TYPE,
};
use crate::{
    ControlError,
    events::{EventView, Severity},
};
use serde_json::{Value, json};

/// Properties that a list of events can be filtered by.
const FILTERS: [&str; 6] =
    ["eventcode", "eventtype", "severity", "affectedobjectfriendlyname", "starttime", "endtime"];

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "Info",
        Severity::Warning => "Warning",
        Severity::Critical => "Critical",
    }
}

fn event_type(event: &EventView) -> &'static str {
    if event.job.is_some() { "JobStatus" } else { "VmHealth" }
}

fn view(ids: &Ids, event: &EventView) -> Value {
    let entity = event.item.map(|item| item.to_string()).unwrap_or_default();
    let errors: Vec<_> = event
        .problem
        .iter()
        .map(|problem| {
            let level = if event.severity == Severity::Critical { "Error" } else { "Warning" };
            health_error(problem, level, &entity)
        })
        .collect();
    let specific = event.job.map(|job| {
        json!({
            "instanceType": "JobStatus",
            "jobId": ids.job(job),
            "jobFriendlyName": event.name,
            "jobStatus": event.name.strip_prefix("Job").unwrap_or(&event.name),
            "affectedObjectType": match event.item {
                Some(_) => "ProtectionEntity",
                None => "RecoveryPlan",
            },
        })
    });
    resource(
        &ids.below("replicationEvents", &event.seq.to_string()),
        json!({
            "eventCode": event.name,
            "description": event.text,
            "eventType": event_type(event),
            "affectedObjectFriendlyName": event.object,
            "affectedObjectCorrelationId": event.item,
            "severity": severity(event.severity),
            "timeOfOccurrence": time(event.at),
            "fabricId": null,
            "providerSpecificDetails": { "instanceType": INSTANCE_TYPE },
            "eventSpecificDetails": specific,
            "healthErrors": errors,
        }),
    )
}

/// List, oldest first; the token of the next page is the last event's number.
pub(super) async fn list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let filter = below.call.filter(&FILTERS)?;
    let moment = |name: &str| -> Result<_, ControlError> {
        let Some(text) = filter.single(name) else { return Ok(None) };
        let wrong = || ControlError::bad_request(format!("{name} {text} is not a time"));
        read_time(text).map(Some).ok_or_else(wrong)
    };
    let (since, until) = (moment("starttime")?, moment("endtime")?);
    let (after, size) = below.call.window()?;
    let events = below.control().event_list(below.vault.id, after, size).await?;
    let is_full = events.len() as u64 >= size;
    let next = events.last().map(|event| event.seq).filter(|_| is_full);
    let values = events
        .iter()
        .filter(|event| {
            since.is_none_or(|since| event.at >= since)
                && until.is_none_or(|until| event.at <= until)
                && filter.admits("eventcode", &[&event.name])
                && filter.admits("eventtype", &[event_type(event)])
                && filter.admits("severity", &[severity(event.severity)])
                && filter.admits("affectedobjectfriendlyname", &[&event.object])
        })
        .map(|event| view(&below.ids, event))
        .collect();
    Ok(Answer::Ok(below.call.list_body(values, next)))
}

/// GET.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    let name = below.name("event");
    let seq =
        name.parse().map_err(|_| ControlError::not_found(format!("there is no event {name}")))?;
    Ok(Answer::Ok(view(&below.ids, &below.control().event_get(below.vault.id, seq).await?)))
}
