//! Container mappings: which site is replicated where, under which policy.

use super::{
    Below,
    envelope::{Answer, Refusal},
    fabrics::container,
    ids::{Ids, resource},
    request::name_in_id,
};
use crate::{
    ControlError,
    jobs::{InstantJob, Scenario, TargetKind},
    mappings::{MappingSpec, MappingView},
};
use serde_json::{Value, json};

/// What clients write for "the cloud": here the vault's recovery site.
const CLOUD: &str = "Microsoft Azure";

fn view(ids: &Ids, mapping: &MappingView) -> Value {
    let target = ids.container_of(mapping.target, &mapping.target_name);
    resource(
        &ids.mapping(mapping.source, &mapping.source_name, &mapping.name),
        json!({
            "targetProtectionContainerId": target,
            "targetProtectionContainerFriendlyName": mapping.target_name,
            "providerSpecificDetails": null,
            "health": "Normal",
            "healthErrorDetails": [],
            "policyId": ids.policy(&mapping.policy),
            "state": "Paired",
            "sourceProtectionContainerFriendlyName": mapping.source_name,
            "sourceFabricFriendlyName": mapping.source_name,
            "targetFabricFriendlyName": mapping.target_name,
            "policyFriendlyName": mapping.policy,
        }),
    )
}

async fn noted(
    below: &Below<'_>,
    scenario: Scenario,
    mapping: &MappingView,
) -> Result<Answer, Refusal> {
    let instant = InstantJob {
        scenario,
        target_kind: TargetKind::Fabric,
        target_id: mapping.source.to_string(),
        target_name: mapping.name.clone(),
    };
    let job = below.control().job_note(below.vault.id, instant).await?;
    let id = below.ids.mapping(mapping.source, &mapping.source_name, &mapping.name);
    Ok(below.accepted(id, job))
}

/// Mappings of a container or of all.
pub(super) async fn list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fabric = match below.name("fabric") {
        "" => None,
        _ => Some(container(below).await?.fabric_name),
    };
    let mappings = below.control().mapping_list(below.vault.id, fabric.as_deref()).await?;
    below.page(mappings.iter().map(|mapping| view(&below.ids, mapping)).collect())
}

pub(super) async fn find(below: &Below<'_>) -> Result<MappingView, ControlError> {
    let fabric = container(below).await?.fabric_name;
    below.control().mapping_get(below.vault.id, &fabric, below.name("mapping")).await
}

/// GET.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::Ok(view(&below.ids, &find(below).await?)))
}

/// PUT.
pub(super) async fn put(below: &Below<'_>) -> Result<Answer, Refusal> {
    let properties = below.call.properties()?;
    let policy = properties.required("policyId")?;
    let policy = name_in_id(policy, "replicationPolicies")
        .ok_or_else(|| ControlError::bad_request(format!("policyId {policy} names no policy")))?;
    let target = match properties.text("targetProtectionContainerId")? {
        None => None,
        Some(cloud) if cloud.eq_ignore_ascii_case(CLOUD) => None,
        Some(id) => Some(name_in_id(id, "replicationFabrics").ok_or_else(|| {
            let what = format!("targetProtectionContainerId {id} names no container");
            ControlError::bad_request(what)
        })?),
    };
    let spec = MappingSpec {
        target_fabric: target.map(str::to_owned),
        policy: policy.to_owned(),
        extra: Value::Null,
    };
    let fabric = container(below).await?.fabric_name;
    let (control, name) = (below.control(), below.name("mapping"));
    let mapping = control.mapping_put(below.vault.id, &fabric, name, spec).await?;
    noted(below, Scenario::PairClouds, &mapping).await
}

/// DELETE, and POST remove.
pub(super) async fn remove(below: &Below<'_>) -> Result<Answer, Refusal> {
    let mapping = find(below).await?;
    let control = below.control();
    control.mapping_remove(below.vault.id, &mapping.source_name, &mapping.name).await?;
    noted(below, Scenario::UnpairClouds, &mapping).await
}
