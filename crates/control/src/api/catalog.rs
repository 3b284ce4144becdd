//! Lists that clients look into before they begin: operations, free names, operating systems,
//! figures of a vault's use. Worked out anew at every question.

use super::{
    Below,
    access::Action,
    envelope::{Answer, Refusal},
    ids::resource,
    item_view::INSTANCE_TYPE,
    request::{Call, Fields},
    routes,
};
use crate::{
    ControlError,
    jobs::{JobFilter, RunState},
    vaults::{VaultKey, check_name},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The operations that are served, in the form in which rights are named.
pub(super) fn operations(call: &Call) -> Result<Answer, Refusal> {
    let mut all = BTreeMap::new();
    for (method, path, action) in routes::served() {
        let verb = match (method, action) {
            (_, Action::Read) => "read",
            (routes::Method::Delete, _) => "delete",
            (routes::Method::Post, _) => "action",
            _ => "write",
        };
        let kinds: Vec<&str> = path.split('/').filter(|part| !part.starts_with('{')).collect();
        let kinds = kinds.split(|part| *part == "Microsoft.RecoveryServices").next_back();
        let kinds = kinds.unwrap_or_default().join("/");
        let name = format!("Microsoft.RecoveryServices/{kinds}/{verb}");
        let display = json!({
            "provider": "Leeward",
            "resource": kinds,
            "operation": format!("{} {kinds}", method.name()),
            "description": format!("needs the right {action:?}"),
        });
        all.insert(name.clone(), json!({ "name": name, "display": display, "origin": "user" }));
    }
    Ok(Answer::Ok(call.page(all.into_values().collect())?))
}

/// POST checkNameAvailability: whether a vault of this name can be made in the resource group.
pub(super) async fn check_name_availability(call: &Call) -> Result<Answer, Refusal> {
    let fields = Fields::new(&call.body);
    let name = fields.required("name")?;
    let kind = fields.text("type")?.unwrap_or("Microsoft.RecoveryServices/Vaults");
    if !kind.eq_ignore_ascii_case("Microsoft.RecoveryServices/Vaults") {
        let what = format!("type {kind} is not Microsoft.RecoveryServices/Vaults");
        return Err(ControlError::bad_request(what).into());
    }
    let answer = |reason: Option<(&str, String)>| {
        let (reason, message) = reason.map_or((None, None), |(a, b)| (Some(a), Some(b)));
        let free = reason.is_none();
        Ok(Answer::Ok(json!({ "nameAvailable": free, "reason": reason, "message": message })))
    };
    if let Err(error) = check_name("vault", name) {
        return answer(Some(("Invalid", error.problem.what)));
    }
    let key = VaultKey { name: name.to_owned(), ..call.vault_key() };
    match call.control.vault_get(&key).await {
        Ok(_) => answer(Some(("AlreadyExists", format!("there is a vault {name}")))),
        Err(error) if error.kind == crate::ErrorKind::NotFound => answer(None),
        Err(error) => Err(error.into()),
    }
}

/// GET of the supported operating systems: disks are replicated as they are, whatever is on them.
pub(super) fn operating_systems(below: &Below<'_>) -> Answer {
    let wanted = below.call.query.get("instancetype").unwrap_or(INSTANCE_TYPE);
    let known = wanted.eq_ignore_ascii_case(INSTANCE_TYPE) || wanted.is_empty();
    let system = |kind: &str| {
        json!({
            "osName": "Any",
            "osType": kind,
            "osVersions": [{ "version": "Any", "servicePack": null }],
        })
    };
    let list = json!([{
        "instanceType": INSTANCE_TYPE,
        "supportedOs": [system("Linux"), system("Windows"), system("Other")],
    }]);
    let id = below.ids.below("replicationSupportedOperatingSystems", "default");
    let list = if known { list } else { json!([]) };
    Answer::Ok(resource(&id, json!({ "supportedOsList": list })))
}

/// Figures of a vault.
struct Figures {
    items: usize,
    plans: usize,
    hosts: usize,
    fabrics: usize,
    jobs: [usize; 3],
    unhealthy: usize,
}

async fn figures(below: &Below<'_>) -> Result<Figures, ControlError> {
    let (control, vault) = (below.control(), below.vault.id);
    let items = control.item_list(vault, None).await?;
    let fabrics = control.fabric_list(vault).await?;
    let jobs = control.job_list(vault, &JobFilter::default()).await?;
    let count = |states: &[RunState]| jobs.iter().filter(|job| states.contains(&job.state)).count();
    let unhealthy = |item: &&crate::items::ItemView| {
        super::item_view::health(item) == crate::items::Level::Critical
    };
    Ok(Figures {
        unhealthy: items.iter().filter(unhealthy).count(),
        items: items.len(),
        plans: control.plan_list(vault).await?.len(),
        hosts: fabrics.iter().map(|fabric| fabric.hosts.len()).sum(),
        fabrics: fabrics.len(),
        jobs: [
            count(&[RunState::Failed]),
            count(&[RunState::Suspended]),
            count(&[RunState::InProgress, RunState::Cancelling, RunState::NotStarted]),
        ],
    })
}

/// List of replication usages: one row, of the whole vault.
pub(super) async fn replication_usages(below: &Below<'_>) -> Result<Answer, Refusal> {
    let found = figures(below).await?;
    let [failed, suspended, running] = found.jobs;
    below.page(vec![json!({
        "monitoringSummary": {
            "unHealthyVmCount": found.unhealthy,
            "unHealthyProviderCount": 0,
            "eventsCount": 0,
            "deprecatedProviderCount": 0,
            "supportedProviderCount": found.hosts,
            "unsupportedProviderCount": 0,
        },
        "jobsSummary": {
            "failedJobs": failed, "suspendedJobs": suspended, "inProgressJobs": running,
        },
        "protectedItemCount": found.items,
        "recoveryPlanCount": found.plans,
        "registeredServersCount": found.hosts,
        "recoveryServicesProviderAuthType": 0,
    })])
}

/// List of usages. Leeward sets no limit of its own: -1.
pub(super) async fn usages(below: &Below<'_>) -> Result<Answer, Refusal> {
    let found = figures(below).await?;
    let row = |name: &str, words: &str, value: usize| -> Value {
        json!({
            "unit": "Count",
            "quotaPeriod": null,
            "nextResetTime": null,
            "currentValue": value,
            "limit": -1,
            "name": { "value": name, "localizedValue": words },
        })
    };
    below.page(vec![
        row("ProtectedItems", "Protected items", found.items),
        row("RecoveryPlans", "Recovery plans", found.plans),
        row("RegisteredServers", "Hosts", found.hosts),
        row("Fabrics", "Sites", found.fabrics),
    ])
}
