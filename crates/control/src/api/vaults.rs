//! Vaults, and the registration keys that their certificates resource hands out.

use super::{
    Below,
    envelope::{Answer, Refusal},
    ids::{Ids, resource, time},
    request::{Call, Fields},
};
use crate::{
    ControlError, ErrorKind,
    fabrics::FabricKind,
    vaults::{VaultSpec, VaultView},
};
use leeward_model::UnixMillis;
use serde_json::{Value, json};
use std::time::Duration;

/// Fields of a vault beside its location that are kept and returned.
const KEPT: [&str; 3] = ["sku", "tags", "identity"];
/// How long a registration key is valid unless the caller says otherwise, in minutes.
const KEY_MINUTES: f64 = 60.0;
/// The longest that a registration key may be valid: 30 days, in minutes.
const KEY_MINUTES_MAX: f64 = 43_200.0;

fn view(vault: &VaultView) -> Value {
    let ids = Ids::of(vault);
    let mut body = resource(
        ids.vault(),
        json!({
            "provisioningState": "Succeeded",
            "leewardVaultId": vault.id,
            "leewardRecoverySite": vault.recovery_fabric_name,
            "leewardProtectedItems": vault.items,
        }),
    );
    body["location"] = json!(vault.spec.location);
    body["etag"] = json!(vault.id);
    body["sku"] = json!({ "name": "RS0", "tier": "Standard" });
    for key in KEPT {
        if let Some(value) = vault.spec.extra.get(key) {
            body[key] = value.clone();
        }
    }
    body
}

/// What the body sets; `before` is what was set already.
fn spec(body: &Value, before: Option<&VaultSpec>) -> Result<VaultSpec, ControlError> {
    let fields = Fields::new(body);
    let mut extra = before.map_or(Value::Null, |spec| spec.extra.clone());
    if !extra.is_object() {
        extra = json!({});
    }
    for key in KEPT {
        fields.object(key)?;
        if let Some(value) = fields.raw(key) {
            extra[key] = value.clone();
        }
    }
    fields.object("properties")?;
    let old = before.map(|spec| spec.location.clone()).unwrap_or_default();
    let location = fields.text("location")?.map_or(old, str::to_owned);
    Ok(VaultSpec { location, extra })
}

/// GET.
pub(super) async fn get(call: &Call) -> Result<Answer, Refusal> {
    Ok(Answer::Ok(view(&call.control.vault_get(&call.vault_key()).await?)))
}

/// PUT: done at once, 201 the first time.
pub(super) async fn put(call: &Call) -> Result<Answer, Refusal> {
    let key = call.vault_key();
    let spec = spec(&call.body, None)?;
    let is_new = match call.control.vault_get(&key).await {
        Ok(_) => false,
        Err(error) if error.kind == ErrorKind::NotFound => true,
        Err(error) => return Err(error.into()),
    };
    let body = view(&call.control.vault_put(&key, spec).await?);
    Ok(if is_new { Answer::Created(body) } else { Answer::Ok(body) })
}

/// PATCH: done at once.
pub(super) async fn patch(call: &Call) -> Result<Answer, Refusal> {
    let key = call.vault_key();
    let before = call.control.vault_get(&key).await?;
    let spec = spec(&call.body, Some(&before.spec))?;
    Ok(Answer::Ok(view(&call.control.vault_put(&before.key, spec).await?)))
}

/// DELETE: done at once.
pub(super) async fn delete(call: &Call) -> Result<Answer, Refusal> {
    call.control.vault_delete(&call.vault_key()).await?;
    Ok(Answer::Empty)
}

/// Lists of a subscription or a resource group.
pub(super) async fn list(call: &Call) -> Result<Answer, Refusal> {
    let key = call.vault_key();
    let group = Some(key.resource_group.as_str()).filter(|group| !group.is_empty());
    let vaults = call.control.vault_list(&key.subscription, group).await?;
    Ok(Answer::Ok(call.page(vaults.iter().map(view).collect())?))
}

/// PUT of a certificate: the contract's exchange of registration credentials. It makes a key by
/// which one host joins a fabric.
pub(super) async fn certificate_put(below: &Below<'_>) -> Result<Answer, Refusal> {
    let properties = below.call.properties()?;
    let minutes = properties.number("leewardValidMinutes")?.unwrap_or(KEY_MINUTES);
    if !(1.0..=KEY_MINUTES_MAX).contains(&minutes) {
        let what = format!("leewardValidMinutes is {minutes}; it may be 1 to {KEY_MINUTES_MAX}");
        return Err(ControlError::bad_request(what).into());
    }
    let ttl = Duration::from_secs_f64(minutes * 60.0);
    let fabric = match properties.text("leewardFabric")? {
        Some(name) => name.to_owned(),
        None => only_site(below).await?,
    };
    let control = below.control();
    let ca = &below.call.ca_fingerprint;
    let key = control.registration_key_create(below.vault.id, &fabric, ttl, ca).await?;
    let now = control.now().wall;
    let end = UnixMillis(now.0.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)));
    let id = below.ids.below("certificates", below.name("certificate"));
    Ok(Answer::Ok(resource(
        &id,
        json!({
            "authType": "AccessControlService",
            "certificate": properties.text("certificate")?,
            "friendlyName": fabric,
            "resourceId": 0,
            "subject": fabric,
            "issuer": "Leeward",
            "thumbprint": ca,
            "validFrom": time(now),
            "validTo": time(end),
            "globalAcsNamespace": "",
            "globalAcsHostName": "",
            "globalAcsRPRealm": "",
            "leewardRegistrationKey": key,
            "leewardFabric": fabric,
        }),
    )))
}

/// The vault's only site that hosts join, for callers who cannot name one.
async fn only_site(below: &Below<'_>) -> Result<String, ControlError> {
    let fabrics = below.control().fabric_list(below.vault.id).await?;
    let mut sites = fabrics.into_iter().filter(|fabric| fabric.kind == FabricKind::Site);
    match (sites.next(), sites.next()) {
        (Some(only), None) => Ok(only.name),
        _ => Err(ControlError::bad_request(
            "the vault has not exactly one site; name the site in properties.leewardFabric",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_keeps_what_it_does_not_name() {
        let put = json!({"location": "hill", "sku": {"name": "RS0"}, "tags": {"a": "1"}});
        let before = spec(&put, None).unwrap();

        let after = spec(&json!({"tags": {"b": "2"}}), Some(&before)).unwrap();

        assert_eq!(after.location, "hill");
        assert_eq!(after.extra["sku"]["name"], "RS0");
        assert_eq!(after.extra["tags"], json!({"b": "2"}));
        assert!(spec(&json!({"tags": 7}), None).is_err());
        assert!(spec(&json!({"properties": []}), None).is_err());
    }
}
