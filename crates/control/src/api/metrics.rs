//! The figures that Prometheus collects, worked out anew for every question from what the views
//! show. Counts nothing itself.

mod text;

use super::{
    envelope::{Answer, Refusal},
    item_view::{health, protection_state},
    request::Call,
};
use crate::{
    fabrics::HostView,
    items::{ItemView, Level},
    vaults::VaultView,
};
use leeward_model::{HostId, UnixMillis};
use leeward_wire::{audit::AuditSeen, message::CycleFigures};
use std::collections::BTreeSet;
use text::{Family, Page};

fn seconds(at: UnixMillis) -> f64 {
    at.0 as f64 / 1000.0
}

/// GET.
pub(super) async fn get(call: &Call) -> Result<Answer, Refusal> {
    let control = &call.control;
    let mut page = Page::default();
    page.add(Family::INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.add(Family::IN_CHARGE, &[], f64::from(u8::from(control.superseded().is_none())));
    let kept = control.charge_problem().is_none();
    page.add(Family::CONFIGURATION_KEPT, &[], f64::from(u8::from(kept)));
    page.add(Family::AUDIT_LOG_ENTRIES, &[], control.audit_head().await? as f64);
    let mut told = BTreeSet::new();
    for vault in control.vault_list_all().await? {
        let items = control.item_list(vault.id, None).await?;
        let hosts = control.host_list(vault.id, None).await?;
        let ready = control.readiness_of(vault.id, &items, &hosts).await?;
        for (item, ready) in items.iter().zip(&ready.items) {
            of_item(&mut page, &vault, item, control.item_point_age(item));
            page.add(Family::ITEM_READINESS, &labels(&vault, item), number(ready.level));
        }
        for host in &hosts {
            of_host(&mut page, host, &mut told);
        }
        for room in &ready.hosts {
            let (group, name) = (vault.key.resource_group.as_str(), vault.key.name.as_str());
            let labels = [("group", group), ("vault", name), ("host", room.name.as_str())];
            page.add(Family::HOST_NOT_FITTING, &labels, room.not_fitting.len() as f64);
        }
    }
    for ((scenario, state), count) in control.jobs_running().await? {
        let labels = [("scenario", scenario.as_str()), ("state", state.as_str())];
        page.add(Family::JOBS_RUNNING, &labels, count as f64);
    }
    counted(&mut page, call);
    Ok(Answer::Text(page.finish()))
}

fn counted(page: &mut Page, call: &Call) {
    let counted = call.control.counters().read();
    for ((scenario, outcome), count) in &counted.jobs {
        let labels = [("scenario", scenario.as_str()), ("outcome", outcome.as_str())];
        page.add(Family::JOBS_ENDED, &labels, *count as f64);
    }
    for (code, count) in &counted.job_problems {
        page.add(Family::JOB_PROBLEMS, &[("code", code)], *count as f64);
    }
    for (status, count) in &counted.answers {
        page.add(Family::API_ANSWERS, &[("status", &status.to_string())], *count as f64);
    }
    for (code, count) in &counted.refusals {
        page.add(Family::API_REFUSALS, &[("code", code)], *count as f64);
    }
}

/// The labels that every figure of an item has.
fn labels<'a>(vault: &'a VaultView, item: &'a ItemView) -> [(&'static str, &'a str); 4] {
    [
        ("group", &vault.key.resource_group),
        ("vault", &vault.key.name),
        ("site", &item.source_fabric_name),
        ("item", &item.name),
    ]
}

fn number(level: Level) -> f64 {
    match level {
        Level::Normal => 0.0,
        Level::Warning => 1.0,
        Level::Critical => 2.0,
    }
}

fn of_item(page: &mut Page, vault: &VaultView, item: &ItemView, age: Option<u64>) {
    let labels = labels(vault, item);
    let with = |name: &'static str, value: &str| {
        let mut all: Vec<(&str, String)> =
            labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        all.push((name, value.to_owned()));
        all
    };
    let mut add = |family: Family, value: Option<f64>| {
        if let Some(value) = value {
            page.add(family, &labels, value);
        }
    };
    add(Family::ITEM_HEALTH, Some(number(health(item))));
    add(Family::ITEM_RPO, item.rpo_seconds.map(|rpo| rpo as f64));
    add(Family::ITEM_RPO_THRESHOLD, Some(item.policy.rpo_threshold_seconds as f64));
    add(Family::ITEM_POINT_AGE, age.map(|age| age as f64));
    add(Family::ITEM_POINTS, item.points.map(|points| points as f64));
    add(Family::ITEM_STORED, item.stored_bytes.map(|bytes| bytes as f64));
    add(Family::ITEM_SENT, item.sent_bytes.map(|bytes| bytes as f64));
    let newest = item.cycles.last();
    add(Family::ITEM_CHANGED, newest.map(|cycle| cycle.dirty_bytes as f64));
    add(Family::ITEM_PAUSE, newest.map(|cycle| cycle.pause_ms / 1000.0));
    add(Family::ITEM_CHURN, churn(&item.cycles, item.policy.point_interval_ms));
    let spool = item.spool.as_ref();
    add(Family::ITEM_SPOOL_POINTS, spool.map(|spool| spool.points as f64));
    add(Family::ITEM_SPOOL_BYTES, spool.map(|spool| spool.bytes as f64));
    add(Family::ITEM_SPOOL_ROOM, spool.map(|spool| spool.room_bytes as f64));
    add(Family::ITEM_TESTED, item.last_test.map(seconds));
    let mut add = |family: Family, more: Vec<(&str, String)>, value: f64| {
        let labels: Vec<_> = more.iter().map(|(name, value)| (*name, value.as_str())).collect();
        page.add(family, &labels, value);
    };
    add(Family::ITEM_STATE, with("state", protection_state(item).0), 1.0);
    let codes: BTreeSet<_> = item.health.iter().map(|error| error.problem.code.as_str()).collect();
    for code in codes {
        add(Family::ITEM_PROBLEM, with("code", code), 1.0);
    }
    for (of, audit) in [("machine", &item.audit), ("store", &item.store_audit)] {
        let Some(audit) = audit else { continue };
        add(Family::ITEM_AUDITED, with("of", of), share(audit));
        add(Family::ITEM_DIFFERENCES, with("of", of), audit.differences as f64);
    }
}

fn share(audit: &AuditSeen) -> f64 {
    match audit.total_bytes {
        0 => 0.0,
        total => audit.done_bytes.min(total) as f64 / total as f64,
    }
}

/// Bytes a second that the change maps reported. A point is begun once an interval at most, and
/// not before the one before is through.
fn churn(cycles: &[CycleFigures], interval_ms: u64) -> Option<f64> {
    let time = |cycle: &CycleFigures| cycle.cycle_ms.max(interval_ms as f64);
    let ms: f64 = cycles.iter().map(time).sum();
    let bytes: u64 = cycles.iter().map(|cycle| cycle.dirty_bytes).sum();
    (ms > 0.0).then(|| bytes as f64 * 1000.0 / ms)
}

/// A host is told once, though its site may be in several vaults.
fn of_host(page: &mut Page, host: &HostView, told: &mut BTreeSet<HostId>) {
    if !told.insert(host.id) {
        return;
    }
    let id = host.id.to_string();
    let labels = [("host", host.name.as_str()), ("id", id.as_str())];
    let mut add = |family: Family, value: Option<f64>| {
        if let Some(value) = value {
            page.add(family, &labels, value);
        }
    };
    add(Family::HOST_CONNECTED, Some(f64::from(u8::from(host.connected))));
    add(Family::HOST_HEARD, host.last_heard.map(seconds));
    add(Family::HOST_STORE_FREE, host.store_free_bytes.map(|bytes| bytes as f64));
    add(Family::HOST_MACHINES, Some(host.machines as f64));
    let capacity = host.capacity.as_ref();
    let bytes = |mib: u64| mib as f64 * f64::from(1 << 20);
    add(Family::HOST_MEMORY, capacity.map(|has| bytes(has.memory_mib)));
    add(Family::HOST_MEMORY_AVAILABLE, capacity.map(|has| bytes(has.memory_available_mib)));
    let free = capacity.and_then(|has| has.disk_free_bytes);
    add(Family::HOST_DISK_FREE, free.map(|bytes| bytes as f64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn churn_is_never_told_as_faster_than_points_come() {
        let cycle = |dirty_bytes, cycle_ms| CycleFigures {
            dirty_bytes,
            cycle_ms,
            ..CycleFigures::default()
        };

        assert_eq!(churn(&[], 1000), None);
        assert_eq!(churn(&[cycle(3000, 10.0), cycle(1000, 10.0)], 1000), Some(2000.0));
        assert_eq!(churn(&[cycle(4000, 4000.0)], 1000), Some(1000.0));
    }
}
