//! Tests of the interface over HTTP messages, and the objects that the views are tested with.

use super::*;
use crate::{
    items::{EndView, ItemView, LiveAt, RunView},
    testing::Fleet,
    vaults::{VaultKey, VaultSpec, VaultView},
};
use axum::http::{Method as HttpMethod, StatusCode};
use leeward_model::{
    Branch, Epoch, FabricId, HostId, ItemId, JobId, MachineState, Policy, ProtectedItem,
    Protection, Site, TimelineId, VaultId,
};
use proptest::prelude::*;
use serde_json::json;
use tower::ServiceExt as _;

mod audit_log;
mod events;
mod metrics;
mod protected;

const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000001";
const VAULT: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/leeward\
                     /providers/Microsoft.RecoveryServices/vaults/default";

/// A vault without a config server behind it.
pub(super) fn vault() -> VaultView {
    VaultView {
        id: VaultId::from_u128(1),
        key: VaultKey {
            subscription: SUBSCRIPTION.into(),
            resource_group: "leeward".into(),
            name: "default".into(),
        },
        spec: VaultSpec::default(),
        recovery_fabric: FabricId::from_u128(2),
        recovery_fabric_name: "recovery-site".into(),
        items: 0,
    }
}

fn end(site: Site) -> EndView {
    let (host, host_name, run) = match site {
        Site::Primary => (HostId::from_u128(8), "kvm-a", RunView::Replicate),
        Site::Recovery => (HostId::from_u128(9), "kvm-b", RunView::None),
    };
    EndView {
        site,
        host,
        host_name: host_name.into(),
        connected: true,
        machine: "web01".into(),
        run,
        machine_state: MachineState::Unknown,
        newest: None,
        points: None,
        stored_bytes: None,
    }
}

/// A healthy protected item without a config server behind it.
pub(super) fn item() -> ItemView {
    let timeline = TimelineId::from_u128(5);
    let mut state = ProtectedItem::new(JobId::from_u128(4));
    state.protection = Protection::Protected;
    ItemView {
        id: ItemId::from_u128(3),
        vault: VaultId::from_u128(1),
        name: "web01".into(),
        extra: Value::Null,
        machine_id: uuid::Uuid::from_u128(6),
        machine: "web01".into(),
        spec: None,
        source_machine: MachineState::Running,
        state,
        branch: Branch { timeline, parent: None, epoch: Epoch(1) },
        allowed: Vec::new(),
        health: Vec::new(),
        rpo_seconds: Some(1),
        live_at: LiveAt::Site(Site::Primary),
        live_evidence: "its host says so".into(),
        policy_name: "often".into(),
        policy: Policy::default(),
        source_fabric: FabricId::from_u128(7),
        source_fabric_name: "hill".into(),
        target_fabric: FabricId::from_u128(2),
        target_fabric_name: "recovery-site".into(),
        source_host: HostId::from_u128(8),
        source_host_name: "kvm-a".into(),
        source_connected: true,
        target_host: HostId::from_u128(9),
        target_host_name: "kvm-b".into(),
        target_connected: true,
        copy: None,
        resync_reason: None,
        newest: None,
        points: None,
        cycles: Vec::new(),
        sent_bytes: None,
        spool: None,
        stored_bytes: None,
        divergent: None,
        data_sync: None,
        audit: None,
        store_audit: None,
        served: Vec::new(),
        target: crate::items::TargetView {
            site: Site::Recovery,
            machine: "web01".into(),
            settings: crate::items::TargetSettings::default(),
            size: None,
            nics: Vec::new(),
        },
        ends: [end(Site::Primary), end(Site::Recovery)],
        instances: Vec::new(),
        running: None,
        running_test: None,
        planned: false,
        last_failover: None,
        last_test: None,
        fenced_at: None,
        epoch: Epoch(1),
    }
}

/// Knows one token for each role, called like the role.
struct RoleTokens;

impl TokenCheck for RoleTokens {
    fn check(&self, token: &str) -> Option<Caller> {
        let role = Role::ALL.into_iter().find(|role| format!("{role:?}") == token)?;
        Some(Caller { name: token.to_owned(), role })
    }
}

/// The interface over a config server with scripted hosts, whose folder goes with it.
struct Api {
    router: Router,
    fleet: Fleet,
    _folder: tempfile::TempDir,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
    fn code(&self) -> &str {
        self.body["error"]["details"][0]["code"].as_str().unwrap_or_default()
    }
}

/// Sends one request and reads the answer.
async fn exchange(
    router: Router,
    token: &str,
    method: HttpMethod,
    path: &str,
    body: Vec<u8>,
) -> Reply {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "server:4443")
        .header("authorization", format!("Bearer {token}"))
        .header("x-ms-client-request-id", "mine")
        .extension(Peer([192, 0, 2, 9].into()))
        .body(Body::from(body))
        .unwrap();
    let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Reply { status: parts.status, headers: parts.headers, body }
}

impl Api {
    async fn new() -> Api {
        let settings =
            ApiSettings { tokens: Arc::new(RoleTokens), ca_fingerprint: "ab".repeat(32) };
        let folder = tempfile::tempdir().unwrap();
        let fleet = Fleet::new(&folder.path().join("control.db")).await;
        let router = router(fleet.control.clone(), settings);
        let api = Api { router, fleet, _folder: folder };
        let made = api.put(VAULT, json!({"location": "here"})).await;
        assert_eq!(made.status, StatusCode::CREATED);
        api
    }

    async fn send(&self, token: &str, method: HttpMethod, path: &str, body: Vec<u8>) -> Reply {
        exchange(self.router.clone(), token, method, path, body).await
    }
    async fn get(&self, path: &str) -> Reply {
        self.send("Owner", HttpMethod::GET, path, Vec::new()).await
    }
    async fn put(&self, path: &str, body: Value) -> Reply {
        self.send("Owner", HttpMethod::PUT, path, body.to_string().into()).await
    }
    async fn post(&self, path: &str, body: Value) -> Reply {
        self.send("Owner", HttpMethod::POST, path, body.to_string().into()).await
    }
    async fn delete(&self, path: &str) -> Reply {
        self.send("Owner", HttpMethod::DELETE, path, Vec::new()).await
    }
}

#[tokio::test]
async fn a_request_without_a_valid_token_learns_nothing() {
    let api = Api::new().await;
    for path in [VAULT, "/nowhere", "/subscriptions/%zz"] {
        let reply = api.send("wrong", HttpMethod::GET, path, Vec::new()).await;

        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(reply.code(), "LW-0106");
        assert_eq!(reply.header("www-authenticate"), "Bearer");
    }
}

#[tokio::test]
async fn a_role_gets_no_further_than_its_rights() {
    let api = Api::new().await;
    let policy = format!("{VAULT}/replicationPolicies/p");
    let cancel = format!("{VAULT}/replicationJobs/{}/cancel", uuid::Uuid::nil());
    for (role, put_vault, put_policy, post_cancel) in [
        ("Owner", 200, 202, 404),
        ("Contributor", 403, 202, 404),
        ("Operator", 403, 403, 404),
        ("Reader", 403, 403, 403),
    ] {
        let put = HttpMethod::PUT;
        assert_eq!(api.send(role, put.clone(), VAULT, vec![]).await.status, put_vault, "{role}");
        assert_eq!(api.send(role, put, &policy, vec![]).await.status, put_policy, "{role}");
        let reply = api.send(role, HttpMethod::POST, &cancel, vec![]).await;
        assert_eq!(reply.status, post_cancel, "{role}");
        let reply = api.send(role, HttpMethod::GET, VAULT, vec![]).await;
        assert_eq!(reply.status, 200, "{role}");
    }
}

#[tokio::test]
async fn every_refusal_has_its_class_and_says_what_to_do() {
    let api = Api::new().await;
    let fabric = format!("{VAULT}/replicationFabrics/gone");
    for (reply, status, code, own) in [
        (api.get("/nowhere").await, 404, "ResourceNotFound", "LW-0103"),
        (api.get(&fabric).await, 404, "ResourceNotFound", "LW-0103"),
        (api.post(VAULT, json!({})).await, 405, "MethodNotAllowed", "LW-0101"),
        (api.put(VAULT, json!([])).await, 400, "BadRequest", "LW-0101"),
        (
            api.send("Owner", HttpMethod::PUT, VAULT, b"{".to_vec()).await,
            400,
            "BadRequest",
            "LW-0101",
        ),
        (
            api.send("Owner", HttpMethod::PUT, VAULT, vec![b' '; BODY_BYTES_MAX + 1]).await,
            413,
            "RequestEntityTooLarge",
            "LW-0101",
        ),
        (
            api.post(&format!("{VAULT}/replicationFabrics/f/removeInfra"), json!({})).await,
            501,
            "NotSupported",
            "LW-0102",
        ),
    ] {
        assert_eq!(reply.status.as_u16(), status, "{}", reply.body);
        assert_eq!(reply.body["error"]["code"], code);
        assert_eq!(reply.code(), own);
        let detail = &reply.body["error"]["details"][0];
        for field in ["message", "possibleCauses", "currentState", "recommendedAction"] {
            assert!(detail[field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
        }
        assert_eq!(reply.header("content-type"), "application/json; charset=utf-8");
        assert_eq!(reply.header("x-ms-client-request-id"), "mine");
        assert!(!reply.header("x-ms-request-id").is_empty());
    }
}

#[tokio::test]
async fn paths_match_in_any_spelling_and_ids_come_back_in_one() {
    let api = Api::new().await;
    for path in [VAULT.to_uppercase(), format!("{VAULT}/"), VAULT.replace("vaults", "VAULTS")] {
        for version in ["2025-08-01", "1999-01-01-preview", ""] {
            let reply = api.get(&format!("{path}?api-version={version}")).await;

            assert_eq!(reply.status, StatusCode::OK, "{path}");
            assert_eq!(reply.body["id"], VAULT);
            assert_eq!(reply.body["properties"]["provisioningState"], "Succeeded");
        }
    }
}

/// The path and query of an absolute URL of ours.
fn local(url: &str) -> &str {
    url.strip_prefix("https://server:4443").expect("the URL is not absolute, or not of this host")
}

#[tokio::test]
async fn an_operation_that_ends_at_once_is_polled_like_any_other() {
    let api = Api::new().await;
    let fabric = format!("{VAULT}/replicationFabrics/hill");

    let reply = api.put(&format!("{fabric}?api-version=2024-01-01"), json!({})).await;

    assert_eq!(reply.status, StatusCode::ACCEPTED);
    assert_eq!(reply.body, Value::Null);
    assert_eq!(reply.header("content-length"), "0");
    assert_eq!(reply.header("retry-after"), "1");
    let (location, status) = (reply.header("location"), reply.header("azure-asyncoperation"));
    let job = reply.header("x-ms-request-id").rsplit('/').next().unwrap();
    assert_eq!(local(location), format!("{fabric}/operationresults/{job}?api-version=2024-01-01"));
    assert_eq!(
        local(status),
        format!("{VAULT}/replicationOperationStatus/{job}?api-version=2024-01-01")
    );
    let status = api.get(local(status)).await;
    assert_eq!((status.status, &status.body["status"]), (StatusCode::OK, &json!("Succeeded")));
    assert_eq!(status.body["name"], job);
    let result = api.get(local(location)).await;
    assert_eq!(result.status, StatusCode::OK);
    assert_eq!(result.body["id"], fabric);
    let job = api.get(reply.header("x-ms-request-id")).await;
    assert_eq!(job.body["properties"]["scenarioName"], "CreateSite");
    assert_eq!(job.body["properties"]["state"], "Succeeded");
}

#[tokio::test]
async fn a_removal_ends_with_nothing_left() {
    let api = Api::new().await;
    let fabric = format!("{VAULT}/replicationFabrics/hill");
    for remove in ["post", "delete"] {
        assert_eq!(api.put(&fabric, json!({})).await.status, StatusCode::ACCEPTED);

        let reply = match remove {
            "post" => api.post(&format!("{fabric}/remove"), json!({})).await,
            _ => api.delete(&fabric).await,
        };

        assert_eq!(reply.status, StatusCode::ACCEPTED);
        let location = local(reply.header("location")).to_owned();
        assert!(location.starts_with(&format!("{fabric}/operationresults/")), "{location}");
        assert_eq!(api.get(&location).await.status, StatusCode::NO_CONTENT);
        assert_eq!(api.get(&fabric).await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_list_is_followed_page_by_page_to_its_end() {
    let api = Api::new().await;
    for number in 0..5 {
        let path = format!("{VAULT}/replicationPolicies/p{number}");
        assert_eq!(api.put(&path, json!({})).await.status, StatusCode::ACCEPTED);
    }
    let mut next = format!("{VAULT}/replicationPolicies?api-version=2024-01-01&$take=2");
    let mut sizes = Vec::new();
    let mut names = Vec::new();

    loop {
        let page = api.get(&next).await;
        assert_eq!(page.status, StatusCode::OK);
        let values = page.body["value"].as_array().unwrap();
        sizes.push(values.len());
        names.extend(values.iter().map(|value| value["name"].as_str().unwrap().to_owned()));
        match page.body["nextLink"].as_str() {
            Some(link) => next = local(link).to_owned(),
            None => break,
        }
        assert!(next.contains("api-version=2024-01-01") && next.contains("$take=2"), "{next}");
    }

    assert_eq!(sizes, [2, 2, 1]);
    assert_eq!(names, ["p0", "p1", "p2", "p3", "p4"]);
    for wrong in ["$take=0", "$take=1001", "$take=x", "skipToken=x"] {
        let reply = api.get(&format!("{VAULT}/replicationPolicies?{wrong}")).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn a_policy_comes_back_as_it_was_sent_and_a_mapping_points_at_it() {
    let api = Api::new().await;
    let site = format!("{VAULT}/replicationFabrics/hill");
    assert_eq!(api.put(&site, json!({"properties": {}})).await.status, StatusCode::ACCEPTED);
    let policy = format!("{VAULT}/replicationPolicies/often");
    let input = json!({"properties": {"providerSpecificInput": {
        "instanceType": "HyperVReplica2012R2", "replicationFrequencyInSeconds": 30,
        "recoveryPoints": 2, "leewardRpoThresholdSeconds": 20}}});
    assert_eq!(api.put(&policy, input).await.status, StatusCode::ACCEPTED);
    let containers = api.get(&format!("{site}/replicationProtectionContainers")).await;
    let container = containers.body["value"][0]["id"].as_str().unwrap().to_owned();
    let mapping = format!("{container}/replicationProtectionContainerMappings/m");

    let wrong = api.put(&mapping, json!({"properties": {}})).await;
    let made = api
        .put(
            &mapping,
            json!({"properties": {"policyId": policy.to_uppercase(),
                "targetProtectionContainerId": "Microsoft Azure"}}),
        )
        .await;

    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert_eq!(made.status, StatusCode::ACCEPTED);
    let shown = api.get(&mapping).await.body;
    assert_eq!(shown["properties"]["policyId"], policy);
    assert_eq!(shown["properties"]["targetFabricFriendlyName"], "recovery-site");
    let details = api.get(&policy).await.body["properties"]["providerSpecificDetails"].clone();
    assert_eq!(details["replicationFrequencyInSeconds"], 30);
    assert_eq!(details["leewardPointIntervalSeconds"], 30.0);
    assert_eq!(details["leewardRetentionSeconds"], 7200);
    assert_eq!(details["leewardRpoThresholdSeconds"], 20);
    assert_eq!(api.delete(&policy).await.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_registration_key_is_made_for_the_named_or_the_only_site() {
    let api = Api::new().await;
    let certificate = format!("{VAULT}/certificates/host1");
    let nowhere = api.put(&certificate, json!({"properties": {}})).await;
    api.put(&format!("{VAULT}/replicationFabrics/hill"), json!({})).await;
    let named = json!({"properties": {"leewardFabric": "hill", "leewardValidMinutes": 5}});

    let named = api.put(&certificate, named).await;
    let only = api.put(&certificate, json!({"properties": {}})).await;
    let forever = json!({"properties": {"leewardValidMinutes": 1e9}});
    let forever = api.put(&certificate, forever).await;

    assert_eq!(nowhere.status, StatusCode::BAD_REQUEST);
    for reply in [&named, &only] {
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        let key = reply.body["properties"]["leewardRegistrationKey"].as_str().unwrap();
        assert!(key.starts_with(&format!("lwk1.{}.", "ab".repeat(32))), "{key}");
    }
    assert_ne!(named.body["properties"], only.body["properties"]);
    assert_eq!(forever.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn what_no_vault_has_is_an_empty_list_and_what_is_not_done_is_not_pretended() {
    let api = Api::new().await;
    for list in ["replicationAppliances", "replicationvCenters", "replicationRecoveryPlans"] {
        let reply = api.get(&format!("{VAULT}/{list}")).await;
        assert_eq!(reply.body, json!({"value": [], "nextLink": null}), "{list}");
    }
    let alert = format!("{VAULT}/replicationAlertSettings/defaultAlertSetting");
    let quiet = api.put(&alert, json!({"properties": {"sendToOwners": "DoNotSend"}})).await;
    let loud = json!({"properties": {"customEmailAddresses": ["a@example.org"]}});
    assert_eq!(quiet.status, StatusCode::OK);
    assert_eq!(api.put(&alert, loud).await.status, StatusCode::NOT_IMPLEMENTED);
    let health = api.get(&format!("{VAULT}/replicationVaultHealth")).await;
    assert_eq!(health.body["properties"]["protectedItemsHealth"]["resourceCount"], 0);
}

/// Decision 5: a vault is red until a recovery kit of each store that holds items was tested.
#[tokio::test]
async fn a_vault_names_the_stores_that_no_tested_kit_opens() {
    use leeward_wire::message::KitState;
    let mut api = Api::new().await;
    let local = api.fleet.control.config().local_host.id;
    let health = format!("{VAULT}/replicationVaultHealth");
    for (kit, red) in [
        (KitState::Unknown, 0),
        (KitState::Untested, 1),
        (KitState::Tested { at: leeward_model::UnixMillis(7) }, 0),
        (KitState::NotNeeded, 0),
    ] {
        api.fleet.host(local).kit = kit;
        api.fleet.turn().await;
        let body = api.get(&health).await.body;
        let errors = body["properties"]["vaultErrors"].as_array().unwrap().clone();
        assert_eq!(errors.len(), red, "{kit:?}: {errors:?}");
        assert!(errors.iter().all(|error| error["errorCode"] == "LW-0407"), "{errors:?}");
    }
}

/// Paths with a body, below the vault.
const TAKERS: [(&str, &str); 13] = [
    ("PUT", ""),
    ("PATCH", ""),
    ("PUT", "/certificates/c"),
    ("PUT", "/replicationFabrics/other"),
    ("PUT", "/replicationPolicies/p"),
    ("PATCH", "/replicationPolicies/p"),
    ("PUT", "{C}/replicationProtectionContainerMappings/m"),
    ("PUT", "{C}/replicationProtectedItems/i"),
    ("POST", "{C}/replicationProtectedItems/i/testFailover"),
    ("POST", "{C}/replicationProtectedItems/i/unplannedFailover"),
    ("POST", "{C}/switchprotection"),
    ("POST", "/replicationJobs/00000000-0000-0000-0000-000000000001/resume"),
    ("PUT", "/replicationAlertSettings/defaultAlertSetting"),
];

/// Bodies made of the contract's own field names with values of any type.
fn bodies() -> impl Strategy<Value = Value> {
    let field = prop::sample::select(vec![
        "policyId",
        "protectableItemId",
        "targetProtectionContainerId",
        "instanceType",
        "recoveryPoints",
        "leewardPointIntervalSeconds",
        "leewardRetentionSeconds",
        "location",
        "replicationFrequencyInSeconds",
        "recoveryPointId",
        "recoveryPointType",
        "comments",
        "failoverDirection",
        "sourceSiteOperations",
        "leewardFabric",
        "leewardValidMinutes",
        "customDetails",
        "providerSpecificDetails",
        "tags",
        "sku",
        "sendToOwners",
        "leewardAnswer",
        "dataSyncOption",
        "leewardWaitToComplete",
        "leewardHost",
        "hvHostVmId",
        "replicationProtectedItemName",
        "disableProtectionReason",
        "leewardAutoReverse",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z0-9/é ]{0,24}".prop_map(Value::from),
        Just(json!("hill")),
        Just(json!("/a/replicationPolicies/p/replicationFabrics/hill")),
    ];
    let value = leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((field.clone(), inner), 0..6).prop_map(|pairs| {
                let map = pairs.into_iter().map(|(name, value)| (name.to_owned(), value));
                Value::Object(map.collect())
            }),
        ]
    });
    let wrap = ["properties", "providerSpecificInput", "providerSpecificDetails"];
    (value, 0..=wrap.len()).prop_map(move |(value, depth)| {
        let outer = |inner: Value, name: &&str| json!({ *name: inner });
        match depth {
            0 => value,
            1 => json!({ "properties": value }),
            _ => json!({ "properties": outer(value, &wrap[depth - 1]) }),
        }
    })
}

#[test]
fn no_body_makes_the_server_fail() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let api = runtime.block_on(Api::new());
    let site = format!("{VAULT}/replicationFabrics/hill");
    runtime.block_on(api.put(&site, json!({})));
    let containers = runtime.block_on(api.get(&format!("{VAULT}/replicationProtectionContainers")));
    let all = containers.body["value"].as_array().unwrap().clone();
    let own = all.iter().find(|one| one["properties"]["friendlyName"] == "hill").unwrap();
    let container = own["id"].as_str().unwrap().to_owned();

    proptest!(|(taker in 0..TAKERS.len(), body in bodies())| {
        let (method, path) = TAKERS[taker];
        let path = match path.strip_prefix("{C}") {
            Some(rest) => format!("{container}{rest}"),
            None => format!("{VAULT}{path}"),
        };
        let method = HttpMethod::from_bytes(method.as_bytes()).unwrap();
        let sent = body.to_string().into_bytes();
        let reply = runtime.block_on(api.send("Owner", method.clone(), &path, sent));
        let status = reply.status.as_u16();
        prop_assert!(
            status < 500 || status == 501 || status == 503,
            "{method} {path} {body}: {status} {}", reply.body
        );
    });
}
