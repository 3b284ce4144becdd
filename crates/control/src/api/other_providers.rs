//! Operations that are about agents, appliances or gateways, which machines of KVM hosts have not.
//! Each says what is so and what to do instead; none pretends. Where nothing is left to do, it is
//! done.

use super::{
    Below,
    envelope::{Answer, Refusal},
    fabrics::{self, container},
    hosts,
    items::{self, find},
    mappings,
    request::{Fields, list, name_in_id},
    routes::Operation as Op,
};
use crate::{ControlError, ErrorKind, items::ItemView};
use leeward_model::Code;
use serde_json::Value;

/// The refusal of what has no meaning for machines of KVM hosts.
fn not_here(what: impl Into<String>) -> Refusal {
    ControlError::new(ErrorKind::Conflict, Code::NOT_OF_THIS_PROVIDER, what).into()
}

/// Texts of a list of texts.
fn texts<'a>(fields: Fields<'a>, name: &str) -> Result<Vec<&'a str>, ControlError> {
    let wrong = || ControlError::bad_request(format!("the field {name} is not a list of texts"));
    let Some(value) = fields.raw(name) else { return Ok(Vec::new()) };
    let all = value.as_array().ok_or_else(wrong)?;
    all.iter().map(|one| one.as_str().ok_or_else(wrong)).collect()
}

/// POST discoverProtectableItem: hosts find their machines by themselves.
pub(super) async fn discover(below: &Below<'_>) -> Result<Answer, Refusal> {
    let container = container(below).await?;
    let properties = below.call.properties()?;
    let name = properties.required("friendlyName")?;
    for field in ["ipAddress", "osType"] {
        properties.text(field)?;
    }
    let (control, fabric) = (below.control(), &container.fabric_name);
    let machines = control.machine_list(below.vault.id, fabric).await?;
    if machines.iter().any(|machine| machine.name.eq_ignore_ascii_case(name)) {
        return fabrics::container_get(below).await;
    }
    Err(not_here(format!(
        "{name} is no machine of a host of {fabric}: machines are found by their host, and one \
         without a host cannot be announced"
    )))
}

/// POST reassociateGateway: every host sends its own machines' data and takes no other's.
pub(super) async fn reassociate(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fabric = below.control().fabric_get(below.vault.id, below.name("fabric")).await?;
    let properties = below.call.properties()?;
    for field in ["containerName", "updateType"] {
        properties.text(field)?;
    }
    texts(properties, "vmsToMigrate")?;
    let host = |field: &str| -> Result<&crate::fabrics::HostView, ControlError> {
        let id = properties.required(field)?;
        let name = name_in_id(id, "replicationRecoveryServicesProviders").unwrap_or(id);
        let named = |host: &&crate::fabrics::HostView| {
            host.name.eq_ignore_ascii_case(name) || host.id.to_string().eq_ignore_ascii_case(name)
        };
        fabric.hosts.iter().find(named).ok_or_else(|| {
            ControlError::not_found(format!("fabric {} has no host {name}", fabric.name))
        })
    };
    let (from, to) = (host("sourceProcessServerId")?, host("targetProcessServerId")?);
    if from.id == to.id {
        return fabrics::get(below).await;
    }
    Err(not_here(format!(
        "the machines of {} cannot be sent by {}: a host sends its own machines. Another host of \
         the other site is chosen with a planned failover or a reprotect (leewardHost)",
        from.name, to.name
    )))
}

/// POST checkConsistency: hosts tell every change by themselves, so what is shown is consistent.
pub(super) async fn check_consistency(below: &Below<'_>) -> Result<Answer, Refusal> {
    fabrics::get(below).await
}

/// POST renewCertificate: fabrics have no certificate, only hosts have.
pub(super) async fn renew_certificate(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fabric = below.control().fabric_get(below.vault.id, below.name("fabric")).await?;
    below.call.properties()?.text("renewCertificateType")?;
    Err(not_here(format!(
        "fabric {} has no certificate of its own: each of its hosts has one, which is renewed \
         between that host and the config server",
        fabric.name
    )))
}

/// PUT of a host: one joins by a registration key, not by being described.
pub(super) async fn host_put(below: &Below<'_>) -> Result<Answer, Refusal> {
    let control = below.control();
    let fabric = control.fabric_get(below.vault.id, below.name("fabric")).await?;
    let properties = below.call.properties()?;
    for field in ["machineName", "machineId", "biosId"] {
        properties.text(field)?;
    }
    let name = below.name("host");
    match control.host_get(below.vault.id, &fabric.name, name).await {
        Ok(_) => hosts::get(below).await,
        Err(error) if error.kind == ErrorKind::NotFound => Err(not_here(format!(
            "{name} is not a host of {}: a host joins by itself with a registration key (PUT \
             certificates)",
            fabric.name
        ))),
        Err(error) => Err(error.into()),
    }
}

/// DELETE of a registered identity: the host of that name or id leaves every fabric that it is in.
pub(super) async fn identity_remove(below: &Below<'_>) -> Result<Answer, Refusal> {
    let (control, name) = (below.control(), below.name("identity"));
    let hosts = control.host_list(below.vault.id, None).await?;
    let named = hosts.iter().filter(|host| {
        host.name.eq_ignore_ascii_case(name) || host.id.to_string().eq_ignore_ascii_case(name)
    });
    let named: Vec<_> = named.collect();
    if named.is_empty() {
        return Err(ControlError::not_found(format!("there is no host {name}")).into());
    }
    for host in named {
        control.host_remove(below.vault.id, &host.fabric_name, &host.id.to_string()).await?;
    }
    Ok(Answer::Empty)
}

/// PUT of a container: a fabric has one, made with it.
pub(super) async fn container_put(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fabric = below.control().fabric_get(below.vault.id, below.name("fabric")).await?;
    list(below.call.properties()?, "providerSpecificInput")?;
    if fabric.container.name.eq_ignore_ascii_case(below.name("container")) {
        return fabrics::container_get(below).await;
    }
    let (own, fabric) = (&fabric.container.name, &fabric.name);
    Err(not_here(format!("fabric {fabric} has one container, {own}, and can have no other")))
}

/// POST remove of a container: it goes with its fabric.
pub(super) async fn container_remove(below: &Below<'_>) -> Result<Answer, Refusal> {
    let container = container(below).await?;
    let what = format!("container {} goes with its fabric: remove that", container.name);
    Err(not_here(format!("{what} ({})", container.fabric_name)))
}

/// PATCH of a container mapping: it has nothing that can be changed but agents' updates.
pub(super) async fn mapping_patch(below: &Below<'_>) -> Result<Answer, Refusal> {
    let input = below.call.properties()?.object("providerSpecificInput")?;
    let status = input.text("agentAutoUpdateStatus")?.unwrap_or("Disabled");
    let mapping = mappings::find(below).await?;
    match status.to_ascii_lowercase().as_str() {
        "disabled" => mappings::get(below).await,
        "enabled" => Err(not_here(format!(
            "mapping {} has no agents to update: machines of KVM hosts need none",
            mapping.name
        ))),
        _ => {
            let what = format!("agentAutoUpdateStatus {status} is not one of Enabled, Disabled");
            Err(ControlError::bad_request(what).into())
        }
    }
}

/// PUT of a vCenter.
pub(super) async fn vcenter_put(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fabric = below.control().fabric_get(below.vault.id, below.name("fabric")).await?;
    let properties = below.call.properties()?;
    for field in ["friendlyName", "ipAddress", "port", "processServerId", "runAsAccountId"] {
        properties.text(field)?;
    }
    let what = "vCenter servers are not supported yet: a fabric has KVM hosts, which join it by";
    Err(not_here(format!("fabric {}: {what} themselves", fabric.name)))
}

/// The verbs on an item that are about agents and single disks.
pub(super) async fn item(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let item = find(below).await?;
    let properties = below.call.properties()?;
    let name = &item.name;
    match op {
        Op::ItemAddDisks => add_disks(below, &item, properties).await,
        Op::ItemRemoveDisks => {
            disks_named(&item, properties)?;
            Err(not_here(format!(
                "no disk of {name} can be left out: a recovery point is always of all its disks. \
                 Take the disk out of the machine instead"
            )))
        }
        Op::ItemResolveHealth => resolve(below, &item, properties).await,
        Op::ItemUpdateAgent => {
            properties.text("runAsAccountId")?;
            Err(not_here(format!("{name} has no agent to update: its host captures it")))
        }
        _ => Err(not_here(format!("{name} has no agent to install: its host captures it"))),
    }
}

/// Ids of disks in the fields that the contract's inputs have for them.
fn disks_named(item: &ItemView, properties: Fields<'_>) -> Result<Vec<String>, ControlError> {
    let details = properties.object("providerSpecificDetails")?;
    let mut named = Vec::new();
    for field in ["disks", "vmDisks", "vmManagedDisks"] {
        for disk in list(details, field)? {
            for key in ["diskId", "diskUri"] {
                named.extend(disk.text(key)?.map(str::to_owned));
            }
        }
    }
    for field in ["vmDisksUris", "vmManagedDisksIds"] {
        named.extend(texts(details, field)?.into_iter().map(str::to_owned));
    }
    if named.is_empty() {
        return Err(ControlError::bad_request("providerSpecificDetails name no disk"));
    }
    let Some(spec) = &item.spec else { return Ok(named) };
    let known = |id: &String| spec.disks.iter().any(|disk| disk.id.eq_ignore_ascii_case(id));
    match named.iter().find(|id| !known(id)) {
        None => Ok(named),
        Some(id) => {
            let name = &item.name;
            Err(ControlError::not_found(format!("{name} has no disk {id}")))
        }
    }
}

/// Every disk of the machine is replicated from the start: one that it has is there already.
async fn add_disks(
    below: &Below<'_>,
    item: &ItemView,
    properties: Fields<'_>,
) -> Result<Answer, Refusal> {
    disks_named(item, properties)?;
    items::get(below).await
}

/// A health error goes when its cause does, and not before.
async fn resolve(
    below: &Below<'_>,
    item: &ItemView,
    properties: Fields<'_>,
) -> Result<Answer, Refusal> {
    let named = list(properties, "healthErrors")?;
    for error in &named {
        let id = error.required("healthErrorId")?;
        let is_it = |code: &str| id.eq_ignore_ascii_case(&format!("{code}-{}", item.id));
        if !item.health.iter().any(|known| is_it(&known.problem.code)) {
            let name = &item.name;
            return Err(ControlError::not_found(format!("{name} has no health error {id}")).into());
        }
    }
    match named.is_empty() {
        true => items::get(below).await,
        false => Err(not_here(format!(
            "what is wrong with {} is not resolved by a word: it is gone as soon as its cause is",
            item.name
        ))),
    }
}

/// GET of the extended information: Leeward keeps no key with a vault.
pub(super) fn extended_get(below: &Below<'_>) -> Answer {
    let id = format!("{}/extendedInformation/vaultExtendedInfo", below.ids.vault());
    let mut body = super::ids::resource(
        &id,
        serde_json::json!({
            "integrityKey": null,
            "encryptionKey": null,
            "encryptionKeyThumbprint": null,
            "algorithm": "None",
            "leewardEffect": "None: no key is kept with a vault, stores have their own",
        }),
    );
    body["etag"] = Value::from(below.vault.id.to_string());
    Answer::Ok(body)
}

/// PUT and PATCH of it: keys of clients are not taken, and say so in the answer.
pub(super) fn extended_put(below: &Below<'_>) -> Result<Answer, Refusal> {
    let properties = below.call.properties()?;
    for field in ["integrityKey", "encryptionKeyThumbprint"] {
        properties.text(field)?;
    }
    let algorithm = properties.text("algorithm")?.unwrap_or("None");
    let key = properties.text("encryptionKey")?;
    if key.is_none() && algorithm.eq_ignore_ascii_case("None") {
        return Ok(extended_get(below));
    }
    Err(not_here("a vault takes no encryption key: each store encrypts with keys of its own"))
}
