//! The public REST interface: the contract of Azure Site Recovery over the config server's own
//! operations. It has no state and takes no decisions; listening and TLS are not here.
//!
//! `routes` says which paths there are, `access` who may use them, `envelope` what answers look
//! like; the other modules are the nouns. `docs/api.md` is the reference for users.

mod access;
mod audit_log;
mod audit_view;
mod catalog;
mod direction;
mod envelope;
mod events;
mod fabrics;
mod filter;
mod hosts;
mod ids;
mod item_settings;
mod item_view;
mod items;
mod jobs;
mod mappings;
mod metrics;
mod networks;
mod operations;
mod other_providers;
mod plan_actions;
mod plan_view;
mod plans;
mod points;
mod policies;
mod questions;
mod readiness;
mod request;
mod routes;
mod settings;
mod vaults;
mod wont;

#[cfg(test)]
mod tests;

pub use access::{Action, AdminToken, Caller, Role, TokenCheck, authorize};

use crate::audit_log::{AuditCaller, AuditOutcome};
use crate::{Control, ControlError};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Response, header, request::Parts},
};
use envelope::{Answer, Echo, Refusal, respond};
use ids::Ids;
use request::{Call, Query};
use routes::{Found, Method, Operation as Op, Target};
use serde_json::Value;
use std::sync::Arc;

/// The largest body of a request, in bytes; a larger one is refused with 413.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// What the interface takes from outside.
#[derive(Clone)]
pub struct ApiSettings {
    /// Knows the bearer tokens.
    pub tokens: Arc<dyn TokenCheck>,
    /// Fingerprint of the CA's certificate, hexadecimal: goes into registration keys.
    pub ca_fingerprint: String,
}

/// The network address of a request's client; an extension that whoever serves the interface sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub std::net::IpAddr);

struct Shared {
    control: Control,
    settings: ApiSettings,
}

/// The interface as a service. Whoever serves it speaks TLS and nothing else.
pub fn router(control: Control, settings: ApiSettings) -> Router {
    Router::new().fallback(handle).with_state(Arc::new(Shared { control, settings }))
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let echo = Echo {
        origin: origin(&parts.headers),
        api_version: query.api_version().to_owned(),
        client_request: parts.headers.get("x-ms-client-request-id").cloned(),
        request: uuid::Uuid::new_v4().to_string(),
    };
    let span = tracing::debug_span!("request", id = %echo.request, method = %parts.method,
        path = parts.uri.path());
    let work = admit(&shared, &parts, body, query, &echo);
    let result = tracing::Instrument::instrument(work, span).await;
    let code = result.as_ref().err().map(|refusal| refusal.problem.code.clone());
    let response = respond(result, &echo);
    shared.control.counters().answered(response.status().as_u16(), code.as_deref());
    response
}

/// Checks who asks for what and does it; what may change something goes into the audit log.
async fn admit(
    shared: &Shared,
    parts: &Parts,
    body: Body,
    query: Query,
    echo: &Echo,
) -> Result<Answer, Refusal> {
    let token = bearer(&parts.headers).ok_or_else(Refusal::unauthorized)?;
    let caller = shared.settings.tokens.check(token).ok_or_else(Refusal::unauthorized)?;
    let path = parts.uri.path();
    let (target, names) = target_of(parts)?;
    let (op, action) = match target {
        Target::Served(op, action) => (op, action),
        Target::Wont => return Err(unsupported(parts.method.as_str(), path).into()),
    };
    let asked = |control: Control| Call {
        control,
        ca_fingerprint: shared.settings.ca_fingerprint.clone(),
        origin: echo.origin.clone(),
        path: path.to_owned(),
        names,
        query,
        body: Value::Null,
    };
    let allowed = authorize(caller.role, action);
    if action == Action::Read {
        let call = asked(shared.control.clone());
        return if allowed {
            perform(call, body, op).await
        } else {
            Err(forbidden(&caller).into())
        };
    }
    if allowed {
        shared.control.check_in_charge()?;
    }
    let from = parts.extensions.get::<Peer>().map(|peer| peer.0.to_string());
    let who = AuditCaller {
        who: caller.name.clone(),
        role: format!("{:?}", caller.role),
        from: from.unwrap_or_default(),
        correlation: echo.request.clone(),
    };
    let control = shared.control.audited(who, &format!("{op:?}"), path);
    let answer = match allowed {
        true => perform(asked(control.clone()), body, op).await,
        false => Err(forbidden(&caller).into()),
    };
    let refused = answer.as_ref().err().map(|refusal| (outcome(refusal), &*refusal.problem.code));
    if control.audit_close(refused).await {
        // What was answered is kept. That it could not be says the vault's health.
        if let Err(error) = control.configuration_keep().await {
            tracing::warn!(%error, "a change was made, and is kept nowhere else");
        }
    }
    answer
}

/// Reads the body, and does what is asked.
async fn perform(mut call: Call, body: Body, op: Op) -> Result<Answer, Refusal> {
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|_| Refusal::too_large(BODY_BYTES_MAX))?;
    call.body = read_body(&bytes)?;
    dispatch(&call, op).await
}

fn forbidden(caller: &Caller) -> ControlError {
    let what = format!("{} is {:?}, which does not include this", caller.name, caller.role);
    ControlError::new(crate::ErrorKind::Forbidden, leeward_model::Code::FORBIDDEN, what)
}

fn outcome(refusal: &Refusal) -> AuditOutcome {
    if refusal.status.is_server_error() { AuditOutcome::Failed } else { AuditOutcome::Refused }
}

fn target_of(parts: &Parts) -> Result<(Target, routes::Names), Refusal> {
    let path = parts.uri.path();
    let nothing = || ControlError::not_found(format!("there is nothing at {path}"));
    let segments = routes::split(path).ok_or_else(nothing)?;
    let method = Method::of(&parts.method);
    let found = match (method, operations::split_results(&segments)) {
        (Some(Method::Get), Some((resource, job))) => operations::find_results(resource, job),
        (Some(method), _) => routes::find(method, &segments),
        (None, _) => routes::find(Method::Get, &segments),
    };
    match found {
        Found::Route(target, names) if method.is_some() => Ok((target, names)),
        Found::Route(_, _) => Err(Refusal::method(parts.method.as_str(), "GET".into())),
        Found::OtherMethods(methods) => {
            let names: Vec<_> = methods.into_iter().map(Method::name).collect();
            Err(Refusal::method(parts.method.as_str(), names.join(", ")))
        }
        Found::Nothing => Err(nothing().into()),
    }
}

fn unsupported(method: &str, path: &str) -> ControlError {
    let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    ControlError::not_supported(format!(
        "{method} … /{last} is not supported: it belongs to other products"
    ))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Scheme, host and port as the client sees them. A made-up header only misleads who made it up.
fn origin(headers: &HeaderMap) -> String {
    let first = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        let value = value.split(',').next().unwrap_or_default().trim();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:-_[]".contains(&byte);
        (!value.is_empty() && value.bytes().all(plain)).then(|| value.to_owned())
    };
    let scheme = first("x-forwarded-proto").filter(|scheme| scheme == "http");
    let host = first("x-forwarded-host").or_else(|| first("host"));
    let host = host.unwrap_or_else(|| "localhost".into());
    format!("{}://{host}", scheme.as_deref().unwrap_or("https"))
}

fn read_body(bytes: &[u8]) -> Result<Value, ControlError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    match serde_json::from_slice(bytes) {
        Ok(body @ (Value::Object(_) | Value::Null)) => Ok(body),
        Ok(_) => Err(ControlError::bad_request("the body is not a JSON object")),
        Err(error) => Err(ControlError::bad_request(format!("the body is not JSON: {error}"))),
    }
}

/// Does an operation. Everything below a vault begins with finding the vault.
async fn dispatch(call: &Call, op: Op) -> Result<Answer, Refusal> {
    match op {
        Op::VaultGet => return vaults::get(call).await,
        Op::VaultPut => return vaults::put(call).await,
        Op::VaultPatch => return vaults::patch(call).await,
        Op::VaultDelete => return vaults::delete(call).await,
        Op::VaultListSubscription | Op::VaultListGroup => return vaults::list(call).await,
        Op::ProviderOperations => return catalog::operations(call),
        Op::NameAvailable => return catalog::check_name_availability(call).await,
        Op::AuditLogList => return audit_log::list(call).await,
        Op::AuditLogVerify => return audit_log::verify(call).await,
        Op::MetricsGet => return metrics::get(call).await,
        _ => {}
    }
    let vault = call.control.vault_get(&call.vault_key()).await?;
    let below = Below { call, ids: Ids::of(&vault), vault };
    if call.names.is_results() {
        return operations::results(&below, op).await;
    }
    below.dispatch(op).await
}

/// Is a request below a vault that exists.
struct Below<'a> {
    call: &'a Call,
    vault: crate::vaults::VaultView,
    ids: Ids,
}

impl Below<'_> {
    fn control(&self) -> &Control {
        &self.call.control
    }
    fn name(&self, key: &str) -> &str {
        self.call.names.get(key)
    }
    /// A page of a list.
    fn page(&self, all: Vec<Value>) -> Result<Answer, Refusal> {
        Ok(Answer::Ok(self.call.page(all)?))
    }
    /// The answer to what `job` does to `resource`.
    fn accepted(&self, resource: String, job: leeward_model::JobId) -> Answer {
        Answer::Accepted(envelope::Accepted { vault: self.ids.vault().to_owned(), resource, job })
    }

    async fn dispatch(&self, op: Op) -> Result<Answer, Refusal> {
        match op {
            Op::VaultGet | Op::VaultPut | Op::VaultPatch | Op::VaultDelete => {
                vaults::get(self.call).await
            }
            Op::VaultListSubscription | Op::VaultListGroup => vaults::list(self.call).await,
            Op::CertificatePut => vaults::certificate_put(self).await,
            Op::FabricList => fabrics::list(self).await,
            Op::FabricGet => fabrics::get(self).await,
            Op::FabricPut => fabrics::put(self).await,
            Op::FabricRemove => fabrics::remove(self).await,
            Op::HostListVault | Op::HostList => hosts::list(self).await,
            Op::HostGet | Op::HostRefresh => hosts::get(self).await,
            Op::HostRemove => hosts::remove(self).await,
            Op::ContainerListVault | Op::ContainerList => fabrics::container_list(self).await,
            Op::ContainerGet => fabrics::container_get(self).await,
            Op::MachineList => hosts::machine_list(self).await,
            Op::MachineGet => hosts::machine_get(self).await,
            Op::PolicyList => policies::list(self).await,
            Op::PolicyGet => policies::get(self).await,
            Op::PolicyPut => policies::put(self).await,
            Op::PolicyPatch => policies::patch(self).await,
            Op::PolicyDelete => policies::delete(self).await,
            Op::MappingListVault | Op::MappingList => mappings::list(self).await,
            Op::MappingGet => mappings::get(self).await,
            Op::MappingPut => mappings::put(self).await,
            Op::MappingRemove => mappings::remove(self).await,
            Op::ItemListVault | Op::ItemList => items::list(self).await,
            Op::ItemGet => items::get(self).await,
            Op::ItemEnable => items::enable(self).await,
            op => self.dispatch_rest(op).await,
        }
    }

    async fn dispatch_rest(&self, op: Op) -> Result<Answer, Refusal> {
        match op {
            Op::PointList => points::list(self).await,
            Op::PointGet => points::get(self).await,
            Op::PointPicture => points::picture(self).await,
            Op::JobList => jobs::list(self).await,
            Op::JobGet => jobs::get(self).await,
            Op::JobCancel => jobs::cancel(self).await,
            Op::JobResume => jobs::resume(self).await,
            Op::JobRestart => jobs::restart(self).await,
            Op::EventList => events::list(self).await,
            Op::EventGet => events::get(self).await,
            Op::AlertList => settings::alert_list(self),
            Op::AlertGet => settings::alert_get(self),
            Op::AlertPut => settings::alert_put(self),
            Op::SettingList => settings::setting_list(self),
            Op::SettingGet => settings::setting_get(self),
            Op::HealthGet | Op::HealthRefresh => settings::health(self).await,
            Op::ReadinessGet => readiness::get(self).await,
            Op::EmptyList => settings::empty_list(self).await,
            Op::EmptyGet => settings::empty_get(self).await,
            Op::PlanList => plans::list_all(self).await,
            Op::PlanGet => plans::get(self).await,
            Op::PlanPut => plans::put(self).await,
            Op::PlanPatch => plans::patch(self).await,
            Op::PlanDelete => plans::delete(self).await,
            Op::PlanTestFailover
            | Op::PlanTestCleanup
            | Op::PlanPlannedFailover
            | Op::PlanFailover
            | Op::PlanCommit
            | Op::PlanCancel
            | Op::PlanReprotect => plans::operate(self, op).await,
            Op::StatusGet => operations::status(self).await,
            Op::SwitchProtection => items::switch_protection(self).await,
            // On the heap: what is rarely asked does not make every request larger.
            op => Box::pin(self.dispatch_small(op)).await,
        }
    }

    /// Mappings of networks and storage, and what clients look at around them.
    async fn dispatch_small(&self, op: Op) -> Result<Answer, Refusal> {
        match op {
            Op::ItemPatch => item_settings::patch(self).await,
            Op::ItemSizes => item_settings::sizes(self).await,
            Op::NetworkList | Op::StorageList => networks::list(self, op).await,
            Op::NetworkGet | Op::StorageGet => networks::get(self, op).await,
            Op::NetworkMappingList | Op::StorageMappingList => {
                networks::mapping_list(self, op).await
            }
            Op::NetworkMappingGet | Op::StorageMappingGet => networks::mapping_get(self, op).await,
            Op::NetworkMappingPut | Op::NetworkMappingPatch | Op::StorageMappingPut => {
                networks::mapping_put(self, op).await
            }
            Op::NetworkMappingRemove | Op::StorageMappingRemove => {
                networks::mapping_remove(self, op).await
            }
            Op::UsageList => catalog::usages(self).await,
            Op::ReplicationUsageList => catalog::replication_usages(self).await,
            Op::SystemsGet => Ok(catalog::operating_systems(self)),
            Op::ProviderOperations => catalog::operations(self.call),
            Op::NameAvailable => catalog::check_name_availability(self.call).await,
            Op::SettingPut => settings::setting_put(self),
            Op::ExtendedGet => Ok(other_providers::extended_get(self)),
            Op::ExtendedPut => other_providers::extended_put(self),
            Op::JobExport => jobs::export(self).await,
            op => Box::pin(self.dispatch_other_providers(op)).await,
        }
    }

    async fn dispatch_other_providers(&self, op: Op) -> Result<Answer, Refusal> {
        match op {
            Op::FabricCheck => other_providers::check_consistency(self).await,
            Op::FabricRenew => other_providers::renew_certificate(self).await,
            Op::FabricReassociate => other_providers::reassociate(self).await,
            Op::HostPut => other_providers::host_put(self).await,
            Op::IdentityRemove => other_providers::identity_remove(self).await,
            Op::ContainerPut => other_providers::container_put(self).await,
            Op::ContainerRemove => other_providers::container_remove(self).await,
            Op::MachineDiscover => other_providers::discover(self).await,
            Op::MappingPatch => other_providers::mapping_patch(self).await,
            Op::VcenterPut => other_providers::vcenter_put(self).await,
            Op::ItemAddDisks
            | Op::ItemRemoveDisks
            | Op::ItemResolveHealth
            | Op::ItemUpdateAgent
            | Op::ItemReinstallAgent => other_providers::item(self, op).await,
            op => items::operate(self, op).await,
        }
    }
}
