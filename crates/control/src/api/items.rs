//! Protected items: enable, disable, and every failover verb. How an item looks is in `item_view`.

use super::{
    Below, direction,
    envelope::{Answer, Refusal},
    fabrics::container,
    ids,
    item_settings::network_name,
    item_view::view,
    request::{Fields, id_in, name_in_id},
    routes::Operation as Op,
};
use crate::{
    ControlError, ErrorKind,
    items::{EnableSpec, ItemView, KeepPoints, ResyncTrust, Shutdown},
};
use leeward_model::{Code, JobId, PointChoice};
use serde_json::Value;

/// The network without a way out.
const ISOLATED: &str = leeward_model::NETWORKS[1];

/// Properties that a list of items can be filtered by.
const FILTERS: [&str; 6] =
    ["sourcefabricname", "sourcefabriclocation", "instancetype", "name", "friendlyname", "state"];

/// Items of a container or of all.
pub(super) async fn list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let filter = below.call.filter(&FILTERS)?;
    let fabric = match below.name("fabric") {
        "" => None,
        _ => Some(container(below).await?.fabric_name),
    };
    let mut items = below.control().item_list(below.vault.id, fabric.as_deref()).await?;
    items.retain(|item| {
        let state = super::item_view::protection_state(item).0;
        filter.admits("sourcefabricname", &[&item.source_fabric_name])
            && filter.admits("sourcefabriclocation", &["", "Primary"])
            && filter.admits("instancetype", &[super::item_view::INSTANCE_TYPE])
            && filter.admits("name", &[&item.name])
            && filter.admits("friendlyname", &[&item.name])
            && filter.admits("state", &[state])
    });
    below.page(items.iter().map(|item| view(&below.ids, item)).collect())
}

/// The item in the path. Its container must be the one that the path names.
pub(super) async fn find(below: &Below<'_>) -> Result<ItemView, ControlError> {
    find_named(below, below.name("item")).await
}

/// An item of the container in the path.
async fn find_named(below: &Below<'_>, name: &str) -> Result<ItemView, ControlError> {
    let fabric = below.name("fabric");
    let item = below.control().item_get(below.vault.id, fabric, name).await?;
    if !ids::container_name(item.source_fabric).eq_ignore_ascii_case(below.name("container")) {
        let what = format!("the fabric {fabric} has no container {}", below.name("container"));
        return Err(ControlError::not_found(what));
    }
    Ok(item)
}

/// GET.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::Ok(view(&below.ids, &find(below).await?)))
}

/// PUT: starts protecting a machine.
pub(super) async fn enable(below: &Below<'_>) -> Result<Answer, Refusal> {
    let properties = below.call.properties()?;
    let policy = properties.required("policyId")?;
    let policy = name_in_id(policy, "replicationPolicies")
        .ok_or_else(|| ControlError::bad_request(format!("policyId {policy} names no policy")))?;
    let machine = properties.required("protectableItemId")?;
    let machine = name_in_id(machine, "replicationProtectableItems").ok_or_else(|| {
        ControlError::bad_request(format!("protectableItemId {machine} names no machine"))
    })?;
    properties.object("providerSpecificDetails")?;
    let spec =
        EnableSpec { policy: policy.to_owned(), machine: machine.to_owned(), extra: Value::Null };
    let container = container(below).await?;
    let (control, name) = (below.control(), below.name("item"));
    let started = control.item_enable(below.vault.id, &container.fabric_name, name, spec).await?;
    let id = below.ids.item_named(container.fabric, &container.fabric_name, name);
    Ok(below.accepted(id, started.job))
}

/// The verbs on an item that exists.
pub(super) async fn operate(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let item = find(below).await?;
    match start(below, op, &item).await {
        Ok(job) => Ok(below.accepted(below.ids.item(&item), job)),
        Err(error) => Err(refused(below, &item, error).await),
    }
}

/// POST switchprotection on the container: a reprotect of the item that the body names.
pub(super) async fn switch_protection(below: &Below<'_>) -> Result<Answer, Refusal> {
    let name = below.call.properties()?.required("replicationProtectedItemName")?;
    let name = name_in_id(name, "replicationProtectedItems").unwrap_or(name);
    let item = find_named(below, name).await?;
    match start(below, Op::SwitchProtection, &item).await {
        Ok(job) => {
            let container = below.ids.container_of(item.source_fabric, &item.source_fabric_name);
            Ok(below.accepted(container, job))
        }
        Err(error) => Err(refused(below, &item, error).await),
    }
}

/// A refusal that names the running job when one is in the way.
pub(super) async fn refused(below: &Below<'_>, item: &ItemView, error: ControlError) -> Refusal {
    let is_busy = error.kind == ErrorKind::Conflict && error.problem.code == Code::ITEM_BUSY.code;
    let mut refusal = Refusal::from(error);
    if is_busy && let Ok(now) = below.control().item_find(item.id).await {
        let running = now.running.or(now.running_test);
        refusal.target = running.map(|(_, job, _)| below.ids.job(job));
    }
    refusal
}

async fn start(below: &Below<'_>, op: Op, item: &ItemView) -> Result<JobId, ControlError> {
    let control = below.control();
    let properties = below.call.properties()?;
    let details = properties.object("providerSpecificDetails")?;
    match op {
        Op::ItemPurge => control.item_purge(item.id).await,
        Op::ItemDisable => {
            let (keep, reason) = (keep_points(properties)?, direction::disable_reason(properties)?);
            control.item_disable(item.id, keep, reason).await
        }
        Op::ItemTestFailover => {
            direction::check(properties, item)?;
            let network = test_network(properties)?;
            let choice = choice(properties, details)?;
            control.item_test_failover_in(item.id, choice, network).await
        }
        Op::ItemTestCleanup => {
            let comments = properties.text("comments")?.unwrap_or_default();
            control.item_test_cleanup(item.id, comments).await
        }
        Op::ItemFailover => {
            let choice = choice(properties, details)?;
            direction::check_failover(properties, item, choice)?;
            control.item_failover(item.id, choice, shutdown(properties, details)?).await
        }
        Op::ItemFailoverCancel => control.item_failover_cancel(item.id).await,
        Op::ItemChangePoint => {
            let field = "recoveryPointId";
            let point = id_in(properties.required(field)?, "recoveryPoints", field)?;
            control.item_change_point(item.id, point).await
        }
        Op::ItemCommit => control.item_commit(item.id).await,
        Op::ItemResync => match direction::trust(properties, details)? {
            ResyncTrust::Hashes => control.item_resync(item.id).await,
            ResyncTrust::Nothing => control.item_resync_full(item.id).await,
        },
        Op::ItemPlannedFailover => {
            let spec = direction::planned(below, properties, item).await?;
            control.item_planned_failover(item.id, spec).await
        }
        Op::ItemReprotect | Op::SwitchProtection => {
            let spec = direction::reprotect(below, properties, item).await?;
            control.item_reprotect(item.id, spec).await
        }
        other => Err(ControlError::not_supported(format!("{other:?} is not supported yet"))),
    }
}

/// Whether points stay when protection ends: by our field, or by the contract's for replicas.
fn keep_points(properties: Fields<'_>) -> Result<KeepPoints, ControlError> {
    let input = properties.object("replicationProviderInput")?;
    if let Some(keep) = properties.flag("leewardKeepPoints")? {
        return Ok(if keep { KeepPoints::Keep } else { KeepPoints::Delete });
    }
    match input.text("replicaVmDeletionStatus")? {
        None => Ok(KeepPoints::Delete),
        Some(word) if word.eq_ignore_ascii_case("Delete") => Ok(KeepPoints::Delete),
        Some(word) if word.eq_ignore_ascii_case("Retain") => Ok(KeepPoints::Keep),
        Some(word) => {
            let what = format!("replicaVmDeletionStatus {word} is not one of Delete, Retain");
            Err(ControlError::bad_request(what))
        }
    }
}

/// The network that a test machine is attached to; none when the request does not say: then as it
/// is set for the item.
pub(super) fn test_network(properties: Fields<'_>) -> Result<Option<String>, ControlError> {
    let kind = properties.text("networkType")?.unwrap_or_default();
    match properties.text("networkId")? {
        Some(network) => network_name(network, "networkId").map(Some),
        None if kind.eq_ignore_ascii_case("VmNetworkAsInput") => {
            Err(ControlError::bad_request("networkType VmNetworkAsInput needs a networkId"))
        }
        None if kind.to_ascii_lowercase().starts_with("nonetwork") => Ok(Some(ISOLATED.to_owned())),
        None => Ok(None),
    }
}

/// The point that is asked for, by field name; the input's type does not matter.
pub(super) fn choice(
    properties: Fields<'_>,
    details: Fields<'_>,
) -> Result<PointChoice, ControlError> {
    let field = "recoveryPointId";
    let id = details.text(field)?.or(properties.text(field)?);
    let kind = details.text("recoveryPointType")?.or(properties.text("recoveryPointType")?);
    if let Some(id) = id {
        return Ok(PointChoice::Custom(id_in(id, "recoveryPoints", field)?));
    }
    let kind = kind.unwrap_or("Latest");
    match kind.to_ascii_lowercase().as_str() {
        "latest" | "latesttime" => Ok(PointChoice::Latest),
        "latestprocessed" | "latestcrashconsistent" | "crashconsistent" => {
            Ok(PointChoice::LatestProcessed)
        }
        "latestapplicationconsistent" | "latesttag" | "applicationconsistent" => {
            let what = format!("recoveryPointType {kind} is not supported yet");
            Err(ControlError::not_supported(what))
        }
        "custom" => {
            Err(ControlError::bad_request("recoveryPointType Custom needs a recoveryPointId"))
        }
        _ => Err(ControlError::bad_request(format!(
            "recoveryPointType {kind} is not one of Latest, LatestProcessed, Custom"
        ))),
    }
}

/// Whether the source is shut down first. It is, unless the caller says no: that is the safe way.
pub(super) fn shutdown(
    properties: Fields<'_>,
    details: Fields<'_>,
) -> Result<Shutdown, ControlError> {
    let perform = details.flag("performShutdown")?;
    let word = properties.text("sourceSiteOperations")?;
    match (word.map(str::to_ascii_lowercase).as_deref(), perform) {
        (Some("required"), _) | (None, None | Some(true)) => Ok(Shutdown::First),
        (Some("notrequired"), _) | (None, Some(false)) => Ok(Shutdown::Leave),
        (Some(word), _) => Err(ControlError::bad_request(format!(
            "sourceSiteOperations {word} is not one of Required, NotRequired"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::PointId;
    use serde_json::json;

    #[test]
    fn a_point_is_chosen_by_field_name_whatever_the_input_is_called() {
        let id = "00000000-0000-0000-0000-000000000007";
        let long = format!("/x/replicationProtectedItems/i/recoveryPoints/{id}");
        let custom = PointChoice::Custom(PointId::from_u128(7));
        for (details, wanted) in [
            (json!({}), PointChoice::Latest),
            (
                json!({"instanceType": "InMage", "recoveryPointType": "LatestTime"}),
                PointChoice::Latest,
            ),
            (json!({"recoveryPointType": "latestprocessed"}), PointChoice::LatestProcessed),
            (json!({"instanceType": "HyperVReplicaAzure", "recoveryPointId": long}), custom),
            (json!({"instanceType": "A2A", "recoveryPointId": id}), custom),
        ] {
            let found = choice(Fields::new(&Value::Null), Fields::new(&details)).unwrap();
            assert_eq!(found, wanted, "{details}");
        }
        for details in [
            json!({"recoveryPointType": "Custom"}),
            json!({"recoveryPointType": "Best"}),
            json!({"recoveryPointId": "seven"}),
        ] {
            let error = choice(Fields::new(&Value::Null), Fields::new(&details)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::BadRequest, "{details}");
        }
        let tag = json!({"recoveryPointType": "LatestTag"});
        let error = choice(Fields::new(&tag), Fields::new(&Value::Null)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotSupported);
    }

    #[test]
    fn the_source_is_shut_down_first_unless_the_caller_says_no() {
        for (properties, details, wanted) in [
            (json!({}), json!({}), Shutdown::First),
            (json!({"sourceSiteOperations": "Required"}), json!({}), Shutdown::First),
            (json!({"sourceSiteOperations": "NotRequired"}), json!({}), Shutdown::Leave),
            (json!({}), json!({"performShutdown": "false"}), Shutdown::Leave),
            (json!({}), json!({"performShutdown": "true"}), Shutdown::First),
        ] {
            let found = shutdown(Fields::new(&properties), Fields::new(&details)).unwrap();
            assert_eq!(found, wanted, "{properties} {details}");
        }
        assert!(
            shutdown(Fields::new(&json!({"sourceSiteOperations": "?"})), Fields::new(&Value::Null))
                .is_err()
        );
    }

    #[test]
    fn points_are_deleted_with_their_item_unless_the_caller_keeps_them() {
        for (properties, wanted) in [
            (json!({}), KeepPoints::Delete),
            (json!({"leewardKeepPoints": true}), KeepPoints::Keep),
            (
                json!({"replicationProviderInput": {"replicaVmDeletionStatus": "Retain"}}),
                KeepPoints::Keep,
            ),
            (json!({"disableProtectionReason": "NotSpecified"}), KeepPoints::Delete),
        ] {
            assert_eq!(keep_points(Fields::new(&properties)).unwrap(), wanted, "{properties}");
        }
    }
}
