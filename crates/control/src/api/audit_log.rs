//! The audit log as it is shown: entries, and the verdict on the chain. Changes nothing.

use super::{
    envelope::{Answer, Refusal},
    ids::time,
    request::Call,
};
use crate::{
    ControlError,
    audit_log::{AuditAnchor, AuditEntry, AuditVerdict},
};
use serde_json::{Value, json};

/// Properties that a list of entries can be filtered by.
const FILTERS: [&str; 5] = ["who", "action", "object", "outcome", "correlationid"];

fn view(entry: &AuditEntry) -> Value {
    let Some(record) = &entry.record else {
        return json!({ "number": entry.number, "hash": entry.hash, "readable": false });
    };
    json!({
        "number": entry.number,
        "hash": entry.hash,
        "readable": true,
        "time": time(record.at),
        "who": record.who,
        "role": record.role,
        "from": record.from,
        "action": record.action,
        "object": record.object,
        "outcome": record.outcome,
        "code": record.code,
        "jobs": record.jobs,
        "correlationId": record.correlation,
        "text": record.text,
    })
}

/// List, oldest first; the token of the next page is the last entry's number.
pub(super) async fn list(call: &Call) -> Result<Answer, Refusal> {
    let filter = call.filter(&FILTERS)?;
    let (after, size) = call.window()?;
    let entries = call.control.audit_list(after, size).await?;
    let is_full = entries.len() as u64 >= size;
    let next = entries.last().map(|entry| entry.number).filter(|_| is_full);
    let admitted = entries.iter().filter(|entry| {
        let Some(record) = &entry.record else { return true };
        let outcome = json!(record.outcome);
        filter.admits("who", &[&record.who])
            && filter.admits("action", &[&record.action])
            && filter.admits("object", &[&record.object])
            && filter.admits("outcome", &[outcome.as_str().unwrap_or_default()])
            && filter.admits("correlationid", &[&record.correlation])
    });
    let values = admitted.map(view).collect();
    Ok(Answer::Ok(call.list_body(values, next)))
}

/// `NUMBER:HASH` as an anchor.
fn anchor(text: &str) -> Result<AuditAnchor, ControlError> {
    let parsed = text.split_once(':').and_then(|(number, hash)| {
        let hex = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let hash = hash.to_ascii_lowercase();
        Some(AuditAnchor { number: number.parse().ok()?, hash }).filter(|_| hex)
    });
    parsed.ok_or_else(|| ControlError::bad_request(format!("head {text} is not NUMBER:HASH")))
}

/// The verdict; the query's `head` is an entry that the caller saw before.
pub(super) async fn verify(call: &Call) -> Result<Answer, Refusal> {
    let seen = call.query.get("head").map(anchor).transpose()?;
    let verdict = call.control.audit_verify(seen).await?;
    let problem = verdict.problem();
    let AuditVerdict { entries, first, head, kept, broken } = verdict;
    let place = |anchor: Option<AuditAnchor>| {
        anchor.map(|anchor| json!({ "number": anchor.number, "hash": anchor.hash }))
    };
    Ok(Answer::Ok(json!({
        "intact": broken.is_none(),
        "entries": entries,
        "first": first,
        "head": place(head),
        "keptInStore": place(kept),
        "broken": broken.map(|(number, why)| json!({ "number": number, "why": why })),
        "problem": problem,
    })))
}
