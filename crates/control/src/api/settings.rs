//! Small answers of a vault: alert and vault settings, health, and kinds of objects that no vault
//! of ours has. What would have to be stored and acted on is refused, not pretended.

use super::{
    Below,
    envelope::{Answer, Refusal},
    fabrics::health_error,
    ids::resource,
    item_view::health as item_health,
};
use crate::{
    ControlError, ErrorKind,
    fabrics::{FabricView, HostView},
    items::Level,
};
use leeward_model::Code;
use leeward_wire::message::KitState;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The one alert setting of a vault.
const ALERT: &str = "defaultAlertSetting";
/// The one setting of a vault.
const SETTING: &str = "default";

fn alert(below: &Below<'_>) -> Value {
    resource(
        &below.ids.below("replicationAlertSettings", ALERT),
        json!({ "sendToOwners": "DoNotSend", "customEmailAddresses": [], "locale": "" }),
    )
}

fn only(below: &Below<'_>, key: &str, known: &str) -> Result<(), ControlError> {
    let name = below.name(key);
    if name.eq_ignore_ascii_case(known) {
        return Ok(());
    }
    Err(ControlError::not_found(format!("there is no setting {name}; {known} is")))
}

/// List of alert settings.
pub(super) fn alert_list(below: &Below<'_>) -> Result<Answer, Refusal> {
    below.page(vec![alert(below)])
}

/// GET of the alert setting.
pub(super) fn alert_get(below: &Below<'_>) -> Result<Answer, Refusal> {
    only(below, "alert", ALERT)?;
    Ok(Answer::Ok(alert(below)))
}

/// PUT of the alert setting: only "send nothing to nobody" is what Leeward does.
pub(super) fn alert_put(below: &Below<'_>) -> Result<Answer, Refusal> {
    only(below, "alert", ALERT)?;
    let properties = below.call.properties()?;
    let owners = properties.text("sendToOwners")?.unwrap_or("DoNotSend");
    let addresses = properties.raw("customEmailAddresses");
    let nobody = addresses.is_none_or(|list| list.as_array().is_some_and(Vec::is_empty));
    if nobody && owners.eq_ignore_ascii_case("DoNotSend") {
        return Ok(Answer::Ok(alert(below)));
    }
    Err(ControlError::not_supported("sending mail about alerts is not supported yet").into())
}

fn setting(below: &Below<'_>) -> Value {
    resource(
        &below.ids.below("replicationVaultSettings", SETTING),
        json!({ "migrationSolutionId": null, "vmwareToAzureProviderType": null }),
    )
}

/// List of vault settings.
pub(super) fn setting_list(below: &Below<'_>) -> Result<Answer, Refusal> {
    below.page(vec![setting(below)])
}

/// GET of the vault setting.
pub(super) fn setting_get(below: &Below<'_>) -> Result<Answer, Refusal> {
    only(below, "setting", SETTING)?;
    Ok(Answer::Ok(setting(below)))
}

/// PUT of the vault setting: it is about agents and migrations, of which there are none.
pub(super) fn setting_put(below: &Below<'_>) -> Result<Answer, Refusal> {
    only(below, "setting", SETTING)?;
    let properties = below.call.properties()?;
    for field in ["migrationSolutionId", "vmwareToAzureProviderType"] {
        if let Some(value) = properties.text(field)? {
            let what = format!("{field} {value}: machines of KVM hosts have no such setting");
            let code = Code::NOT_OF_THIS_PROVIDER;
            return Err(ControlError::new(ErrorKind::Conflict, code, what).into());
        }
    }
    setting_get(below)
}

fn summary(levels: &[Level]) -> Value {
    let count = |level: Level| levels.iter().filter(|one| **one == level).count();
    json!({
        "resourceCount": levels.len(),
        "issues": [],
        "categorizedResourceCounts": {
            "Normal": count(Level::Normal),
            "Warning": count(Level::Warning),
            "Critical": count(Level::Critical),
        },
    })
}

/// Hosts whose store holds items and that no recovery kit is known to open, each once.
fn without_kit(fabrics: &[FabricView]) -> impl Iterator<Item = &HostView> {
    let mut told = BTreeSet::new();
    let hosts = fabrics.iter().flat_map(|fabric| &fabric.hosts);
    hosts.filter(move |host| host.kit == KitState::Untested && told.insert(host.id))
}

/// GET, and POST refresh: health is worked out at every question, so there is nothing to refresh.
pub(super) async fn health(below: &Below<'_>) -> Result<Answer, Refusal> {
    let control = below.control();
    let fabrics = control.fabric_list(below.vault.id).await?;
    let items = control.item_list(below.vault.id, None).await?;
    let sites: Vec<_> = fabrics
        .iter()
        .map(|fabric| if fabric.health.is_empty() { Level::Normal } else { Level::Critical })
        .collect();
    let items: Vec<_> = items.iter().map(item_health).collect();
    let own = control.charge_problem().into_iter().map(|problem| {
        health_error(&problem, "Error", &below.control().config().local_host.id.to_string())
    });
    let errors = without_kit(&fabrics).map(|host| {
        let what = format!("the replica store of host {} has no tested recovery kit", host.name);
        let problem = Code::KIT_UNTESTED.problem(what);
        health_error(&problem, "Error", &host.id.to_string())
    });
    let errors: Vec<_> = own.chain(errors).collect();
    Ok(Answer::Ok(resource(
        &below.ids.below("replicationVaultHealth", "default"),
        json!({
            "vaultErrors": errors,
            "protectedItemsHealth": summary(&items),
            "fabricsHealth": summary(&sites),
            "containersHealth": summary(&sites),
        }),
    )))
}

/// A list of what no vault has: networks, storage, vCenters, appliances.
pub(super) async fn empty_list(below: &Below<'_>) -> Result<Answer, Refusal> {
    check_fabric(below).await?;
    below.page(Vec::new())
}

/// One of what no vault has.
pub(super) async fn empty_get(below: &Below<'_>) -> Result<Answer, Refusal> {
    check_fabric(below).await?;
    let name = below.name("object");
    Err(ControlError::not_found(format!("there is nothing called {name}")).into())
}

async fn check_fabric(below: &Below<'_>) -> Result<(), ControlError> {
    let name = below.name("fabric");
    if !name.is_empty() {
        below.control().fabric_get(below.vault.id, name).await?;
    }
    Ok(())
}
