//! Networks and storage classifications of fabrics, and their mappings. Both are one kind of
//! resource here: an object of a fabric that leads to one of another fabric.

use super::{
    Below,
    envelope::{Answer, Refusal},
    fabrics::FABRIC_TYPE,
    ids::{Ids, resource},
    request::{Fields, name_in_id},
    routes::Operation as Op,
};
use crate::{
    ControlError,
    jobs::{InstantJob, Scenario, TargetKind},
    networks::{MappingPlace, Resource, ResourceMappingView},
};
use serde_json::{Value, json};

/// The contract's words for a resource: its segment, that of its mappings, and the field of a
/// mapping's body that names where it leads.
struct Words {
    kind: &'static str,
    mappings: &'static str,
    leads_to: &'static str,
}

fn words(resource: Resource) -> Words {
    match resource {
        Resource::Network => Words {
            kind: "replicationNetworks",
            mappings: "replicationNetworkMappings",
            leads_to: "recoveryNetworkId",
        },
        Resource::Storage => Words {
            kind: "replicationStorageClassifications",
            mappings: "replicationStorageClassificationMappings",
            leads_to: "targetStorageClassificationId",
        },
    }
}

/// Id of a network or a storage classification.
pub(super) fn object_id(ids: &Ids, resource: Resource, fabric: &str, name: &str) -> String {
    format!("{}/{}/{name}", ids.fabric(fabric), words(resource).kind)
}

fn mapping_id(ids: &Ids, kind: Resource, mapping: &ResourceMappingView) -> String {
    let object = object_id(ids, kind, &mapping.source, &mapping.object);
    format!("{object}/{}/{}", words(kind).mappings, mapping.name)
}

/// What a network of a host is, for people.
fn network_words(name: &str) -> (&'static str, &'static str) {
    match name {
        "user" => ("Nat", "behind its host's own address, with a way out"),
        _ => ("Isolated", "without a way out"),
    }
}

fn object_view(ids: &Ids, kind: Resource, fabric: &str, name: &str) -> Value {
    let properties = match kind {
        Resource::Network => {
            let (network_type, description) = network_words(name);
            json!({
                "fabricType": FABRIC_TYPE,
                "friendlyName": name,
                "networkType": network_type,
                "subnets": [{ "name": name, "friendlyName": name, "addressList": [] }],
                "leewardDescription": description,
            })
        }
        Resource::Storage => json!({ "friendlyName": name }),
    };
    resource(&object_id(ids, kind, fabric, name), properties)
}

fn mapping_view(ids: &Ids, kind: Resource, mapping: &ResourceMappingView) -> Value {
    let leads_to = object_id(ids, kind, &mapping.target, &mapping.target_object);
    let properties = match kind {
        Resource::Network => json!({
            "state": "Paired",
            "primaryNetworkFriendlyName": mapping.object,
            "primaryNetworkId": object_id(ids, kind, &mapping.source, &mapping.object),
            "primaryFabricFriendlyName": mapping.source,
            "recoveryNetworkFriendlyName": mapping.target_object,
            "recoveryNetworkId": leads_to,
            "recoveryFabricArmId": ids.fabric(&mapping.target),
            "recoveryFabricFriendlyName": mapping.target,
            "fabricSpecificSettings": { "instanceType": "VmmToVmm" },
        }),
        Resource::Storage => json!({
            "targetStorageClassificationId": leads_to,
            "leewardEffect": "None: every host has one store, which takes its replicas",
        }),
    };
    resource(&mapping_id(ids, kind, mapping), properties)
}

fn kind_of(op: Op) -> Resource {
    match op {
        Op::StorageList
        | Op::StorageGet
        | Op::StorageMappingList
        | Op::StorageMappingGet
        | Op::StorageMappingPut
        | Op::StorageMappingRemove => Resource::Storage,
        _ => Resource::Network,
    }
}

/// The names of the fabrics that a list is of.
async fn fabrics(below: &Below<'_>) -> Result<Vec<String>, ControlError> {
    let (control, vault) = (below.control(), below.vault.id);
    Ok(match below.name("fabric") {
        "" => control.fabric_list(vault).await?.into_iter().map(|fabric| fabric.name).collect(),
        name => vec![control.fabric_get(vault, name).await?.name],
    })
}

/// Networks or storage of a fabric or of all.
pub(super) async fn list(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let kind = kind_of(op);
    let mut views = Vec::new();
    for fabric in fabrics(below).await? {
        let names = kind.names().iter();
        views.extend(names.map(|name| object_view(&below.ids, kind, &fabric, name)));
    }
    below.page(views)
}

/// One of them.
pub(super) async fn get(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let kind = kind_of(op);
    let name = kind.find(below.name("object"))?;
    let fabric = below.control().fabric_get(below.vault.id, below.name("fabric")).await?.name;
    Ok(Answer::Ok(object_view(&below.ids, kind, &fabric, name)))
}

fn place<'a>(below: &'a Below<'_>, kind: Resource) -> MappingPlace<'a> {
    let (fabric, object) = (below.name("fabric"), below.name("object"));
    MappingPlace { kind, fabric, object, name: below.name("mapping") }
}

/// Mappings of a network or storage classification, or all.
pub(super) async fn mapping_list(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let kind = kind_of(op);
    let mut mappings = below.control().resource_mapping_list(below.vault.id, kind).await?;
    if !below.name("object").is_empty() {
        let object = kind.find(below.name("object"))?;
        let fabric = below.control().fabric_get(below.vault.id, below.name("fabric")).await?.name;
        mappings.retain(|mapping| mapping.object == object && mapping.source == fabric);
    }
    below.page(mappings.iter().map(|one| mapping_view(&below.ids, kind, one)).collect())
}

async fn find(below: &Below<'_>, kind: Resource) -> Result<ResourceMappingView, ControlError> {
    below.control().resource_mapping_get(below.vault.id, place(below, kind)).await
}

/// GET of a mapping.
pub(super) async fn mapping_get(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let kind = kind_of(op);
    Ok(Answer::Ok(mapping_view(&below.ids, kind, &find(below, kind).await?)))
}

/// Where a body lets a mapping lead: fabric and object, as far as it says.
fn leads_to<'a>(
    properties: Fields<'a>,
    kind: Resource,
) -> Result<(Option<&'a str>, Option<&'a str>), ControlError> {
    let words = words(kind);
    let id = properties.text(words.leads_to)?;
    let wrong = |id: &str| {
        let (field, kind) = (words.leads_to, words.kind);
        ControlError::bad_request(format!("{field} {id} names none of the {kind}"))
    };
    let object = match id {
        None => None,
        Some(id) => Some(name_in_id(id, words.kind).ok_or_else(|| wrong(id))?),
    };
    let in_id = id.filter(|id| id.contains('/'));
    let in_id = in_id.and_then(|id| name_in_id(id, "replicationFabrics"));
    let named = properties.text("recoveryFabricName")?;
    let named = named.and_then(|text| name_in_id(text, "replicationFabrics"));
    if let (Some(one), Some(other)) = (named, in_id)
        && !one.eq_ignore_ascii_case(other)
    {
        let field = words.leads_to;
        let what = format!("recoveryFabricName is {one}, but {field} is of fabric {other}");
        return Err(ControlError::bad_request(what));
    }
    Ok((named.or(in_id), object))
}

/// PUT and PATCH of a mapping; a PATCH keeps what it does not name.
pub(super) async fn mapping_put(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let kind = kind_of(op);
    let properties = below.call.properties()?;
    properties.object("fabricSpecificDetails")?;
    let (fabric, object) = leads_to(properties, kind)?;
    let before = match op {
        Op::NetworkMappingPatch => Some(find(below, kind).await?),
        _ => None,
    };
    let missing = || {
        let field = words(kind).leads_to;
        ControlError::bad_request(format!("the field {field} is missing, or names no fabric"))
    };
    let fabric = fabric.or(before.as_ref().map(|known| known.target.as_str()));
    let object = object.or(before.as_ref().map(|known| known.target_object.as_str()));
    let target = fabric.zip(object).ok_or_else(missing)?;
    let control = below.control();
    let made = control.resource_mapping_put(below.vault.id, place(below, kind), target).await?;
    let scenario = match kind {
        Resource::Network => Scenario::MapNetworks,
        Resource::Storage => Scenario::MapStorage,
    };
    noted(below, scenario, kind, &made).await
}

/// DELETE of a mapping.
pub(super) async fn mapping_remove(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let kind = kind_of(op);
    let mapping = find(below, kind).await?;
    below.control().resource_mapping_remove(below.vault.id, place(below, kind)).await?;
    let scenario = match kind {
        Resource::Network => Scenario::UnmapNetworks,
        Resource::Storage => Scenario::UnmapStorage,
    };
    noted(below, scenario, kind, &mapping).await
}

async fn noted(
    below: &Below<'_>,
    scenario: Scenario,
    kind: Resource,
    mapping: &ResourceMappingView,
) -> Result<Answer, Refusal> {
    let fabric = below.control().fabric_get(below.vault.id, &mapping.source).await?;
    let instant = InstantJob {
        scenario,
        target_kind: TargetKind::Fabric,
        target_id: fabric.id.to_string(),
        target_name: mapping.name.clone(),
    };
    let job = below.control().job_note(below.vault.id, instant).await?;
    Ok(below.accepted(mapping_id(&below.ids, kind, mapping), job))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_mapping_leads_is_read_from_an_id_or_from_two_names() {
        let id = "/x/replicationFabrics/hill/replicationNetworks/user";
        for (body, wanted) in [
            (json!({"recoveryNetworkId": id}), (Some("hill"), Some("user"))),
            (
                json!({"recoveryNetworkId": "user", "recoveryFabricName": "hill"}),
                (Some("hill"), Some("user")),
            ),
            (json!({"recoveryNetworkId": "user"}), (None, Some("user"))),
            (json!({}), (None, None)),
        ] {
            assert_eq!(leads_to(Fields::new(&body), Resource::Network).unwrap(), wanted, "{body}");
        }
        for body in [
            json!({"recoveryNetworkId": "/x/y"}),
            json!({"recoveryNetworkId": 7}),
            json!({"recoveryNetworkId": id, "recoveryFabricName": "valley"}),
        ] {
            assert!(leads_to(Fields::new(&body), Resource::Network).is_err(), "{body}");
        }
    }
}
