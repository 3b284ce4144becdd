//! Fabrics and their containers: a site of hosts is shown as a Hyper-V site.

use super::{
    Below,
    envelope::{Answer, Refusal},
    ids::{Ids, resource},
};
use crate::{
    ControlError,
    fabrics::{ContainerView, FabricKind, FabricView},
    jobs::{InstantJob, Scenario, TargetKind},
};
use leeward_model::{FabricId, Problem};
use serde_json::{Value, json};

/// The fabric type that sites are shown as.
pub(super) const FABRIC_TYPE: &str = "HyperVSite";

fn kind_name(kind: FabricKind) -> &'static str {
    match kind {
        FabricKind::Site => "site",
        FabricKind::Recovery => "recovery",
    }
}

/// A problem in the form of the contract's health errors.
pub(super) fn health_error(problem: &Problem, level: &str, entity: &str) -> Value {
    json!({
        "innerHealthErrors": [],
        "errorSource": "Leeward",
        "errorType": "Health",
        "errorLevel": level,
        "errorCategory": "Replication",
        "errorCode": problem.code,
        "summaryMessage": problem.what,
        "errorMessage": problem.what,
        "possibleCauses": problem.cause,
        "recommendedAction": problem.todo,
        "leewardCurrentState": problem.now,
        "entityId": entity,
        "errorId": format!("{}-{entity}", problem.code),
        "customerResolvability": "NotAllowed",
    })
}

fn view(ids: &Ids, fabric: &FabricView) -> Value {
    let hosts: Vec<_> = fabric
        .hosts
        .iter()
        .map(|host| {
            json!({
                "id": host.id,
                "name": host.name,
                "marsAgentVersion": host.program,
                "leewardConnected": host.connected,
                "leewardAccelerator": host.accelerator,
            })
        })
        .collect();
    let entity = fabric.id.to_string();
    let errors: Vec<_> =
        fabric.health.iter().map(|problem| health_error(problem, "Error", &entity)).collect();
    resource(
        &ids.fabric(&fabric.name),
        json!({
            "friendlyName": fabric.name,
            "internalIdentifier": fabric.id,
            "bcdrState": "Valid",
            "health": if errors.is_empty() { "Normal" } else { "Critical" },
            "healthErrorDetails": errors,
            "encryptionDetails": { "kekState": "None", "kekCertThumbprint": null },
            "rolloverEncryptionDetails": { "kekState": "None", "kekCertThumbprint": null },
            "customDetails": {
                "instanceType": FABRIC_TYPE,
                "hyperVHosts": hosts,
                "leewardPlatform": "kvm",
                "leewardKind": kind_name(fabric.kind),
            },
        }),
    )
}

pub(super) fn container_view(ids: &Ids, container: &ContainerView) -> Value {
    resource(
        &ids.container(&container.fabric_name, &container.name),
        json!({
            "fabricFriendlyName": container.fabric_name,
            "friendlyName": container.fabric_name,
            "fabricType": FABRIC_TYPE,
            "protectedItemCount": container.items,
            "pairingStatus": if container.paired { "Paired" } else { "NotPaired" },
            "role": if container.kind == FabricKind::Recovery { "Recovery" } else { "Primary" },
            "fabricSpecificDetails": {
                "instanceType": FABRIC_TYPE,
                "leewardKind": kind_name(container.kind),
            },
        }),
    )
}

/// Notes a done operation on a fabric as a job and answers with it.
async fn noted(
    below: &Below<'_>,
    scenario: Scenario,
    id: FabricId,
    name: &str,
) -> Result<Answer, Refusal> {
    let instant = InstantJob {
        scenario,
        target_kind: TargetKind::Fabric,
        target_id: id.to_string(),
        target_name: name.to_owned(),
    };
    let job = below.control().job_note(below.vault.id, instant).await?;
    Ok(below.accepted(below.ids.fabric(name), job))
}

/// List.
pub(super) async fn list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fabrics = below.control().fabric_list(below.vault.id).await?;
    below.page(fabrics.iter().map(|fabric| view(&below.ids, fabric)).collect())
}

/// GET.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fabric = below.control().fabric_get(below.vault.id, below.name("fabric")).await?;
    Ok(Answer::Ok(view(&below.ids, &fabric)))
}

/// PUT: makes a site. Without details, as a Hyper-V site, or with the base class it is one.
pub(super) async fn put(below: &Below<'_>) -> Result<Answer, Refusal> {
    let details = below.call.properties()?.object("customDetails")?;
    let kind = details.text("instanceType")?.unwrap_or(FABRIC_TYPE);
    let is_site = [FABRIC_TYPE, "FabricSpecificCreationInput", "FabricSpecificDetails"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(kind));
    if !is_site {
        let known = ["Azure", "VMM", "VMware", "VMwareV2", "InMageRcm"];
        let what = format!("a fabric of type {kind}");
        return Err(if known.iter().any(|name| name.eq_ignore_ascii_case(kind)) {
            ControlError::not_supported(format!("{what} is not supported yet"))
        } else {
            ControlError::bad_request(format!("{what} is not known; {FABRIC_TYPE} is"))
        }
        .into());
    }
    let name = below.name("fabric");
    let fabric = below.control().fabric_put(below.vault.id, name, Value::Null).await?;
    noted(below, Scenario::CreateSite, fabric.id, &fabric.name).await
}

/// DELETE, and POST remove.
pub(super) async fn remove(below: &Below<'_>) -> Result<Answer, Refusal> {
    let control = below.control();
    let fabric = control.fabric_get(below.vault.id, below.name("fabric")).await?;
    control.fabric_remove(below.vault.id, &fabric.name).await?;
    noted(below, Scenario::DeleteSite, fabric.id, &fabric.name).await
}

/// Containers of a fabric or of all.
pub(super) async fn container_list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fabric = Some(below.name("fabric")).filter(|fabric| !fabric.is_empty());
    let containers = below.control().container_list(below.vault.id, fabric).await?;
    below.page(containers.iter().map(|one| container_view(&below.ids, one)).collect())
}

/// The container in the path.
pub(super) async fn container(below: &Below<'_>) -> Result<ContainerView, ControlError> {
    let (fabric, container) = (below.name("fabric"), below.name("container"));
    below.control().container_get(below.vault.id, fabric, container).await
}

/// GET of a container.
pub(super) async fn container_get(below: &Below<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::Ok(container_view(&below.ids, &container(below).await?)))
}
