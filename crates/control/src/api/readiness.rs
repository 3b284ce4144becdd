//! How ready a vault is, as it is shown. Decides nothing.

use super::{
    Below,
    envelope::{Answer, Refusal},
    ids::{resource, time_or_null},
    item_view::level,
};
use crate::readiness::{Check, HostRoom, ItemReadiness, NotFitting, PlanReadiness};
use serde_json::{Value, json};

fn check(check: &Check) -> Value {
    json!({ "subject": check.subject, "level": level(check.level), "text": check.text })
}

fn item(item: &ItemReadiness) -> Value {
    json!({
        "item": item.item,
        "name": item.name,
        "site": item.site,
        "level": level(item.level),
        "lastProven": time_or_null(item.last_proven),
        "checks": item.checks.iter().map(check).collect::<Vec<_>>(),
    })
}

fn missing(missing: &NotFitting) -> Value {
    json!({ "item": missing.item, "name": missing.name, "why": missing.why })
}

fn host(room: &HostRoom) -> Value {
    json!({
        "host": room.host,
        "name": room.name,
        "level": level(room.level),
        "items": room.items,
        "memoryNeededMib": room.memory_needed_mib,
        "memoryRoomMib": room.memory_room_mib,
        "cpusNeeded": room.cpus_needed,
        "cpus": room.cpus,
        "diskNeededBytes": room.disk_needed_bytes,
        "diskFreeBytes": room.disk_free_bytes,
        "storeFreeBytes": room.store_free_bytes,
        "wouldNotStart": room.not_fitting.iter().map(missing).collect::<Vec<_>>(),
        "warnings": room.warnings,
    })
}

fn plan(plan: &PlanReadiness) -> Value {
    json!({
        "name": plan.name,
        "level": level(plan.level),
        "lastProven": time_or_null(plan.last_proven),
        "notReady": plan.not_ready,
        "wouldNotStart": plan.not_fitting.iter().map(missing).collect::<Vec<_>>(),
    })
}

/// GET.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    let found = below.control().readiness(below.vault.id).await?;
    Ok(Answer::Ok(resource(
        &below.ids.below("leewardReadiness", "default"),
        json!({
            "level": level(found.level),
            "items": found.items.iter().map(item).collect::<Vec<_>>(),
            "hosts": found.hosts.iter().map(host).collect::<Vec<_>>(),
            "plans": found.plans.iter().map(plan).collect::<Vec<_>>(),
            "dependencies": found.dependencies.iter().map(check).collect::<Vec<_>>(),
        }),
    )))
}
