//! Bad requests, generated over the whole table of routes: every field that a body may have, of
//! every wrong type; names that paths cannot carry; ids of another vault; two callers at once. Each
//! is refused with a code that a client can act on, and nothing is left half made.

use super::coverage::{names, real};
use super::*;
use crate::api::routes::{self, Method};

/// Wrong values that each field of each row meets: it bounds the number of requests, and so the
/// time.
const VALUES_EACH: usize = 2;

/// Fields that bodies of the contract have, each with a value that is right or nearly right.
fn fields() -> Vec<(&'static str, Value)> {
    vec![
        ("policyId", json!("often")),
        ("protectableItemId", json!("web01")),
        ("targetProtectionContainerId", json!("Microsoft Azure")),
        ("recoveryNetworkId", json!("user")),
        ("recoveryFabricName", json!("recovery-site")),
        ("targetStorageClassificationId", json!("replica-store")),
        ("friendlyName", json!("x")),
        ("sourceProcessServerId", json!("kvm-a")),
        ("targetProcessServerId", json!("kvm-a")),
        ("vmsToMigrate", json!(["a"])),
        ("recoveryAzureVMName", json!("x")),
        ("recoveryAzureVMSize", json!("1cpu-64mib")),
        ("selectedRecoveryAzureNetworkId", json!("user")),
        ("selectedTfoAzureNetworkId", json!("user")),
        ("vmNics", json!([{"nicId": "x"}])),
        ("networkId", json!("user")),
        ("failoverDirection", json!("PrimaryToRecovery")),
        ("sourceSiteOperations", json!("Required")),
        ("recoveryPointId", json!("00000000-0000-0000-0000-000000000009")),
        ("replicationProtectedItemName", json!("nobody")),
        ("disableProtectionReason", json!("NotSpecified")),
        ("healthErrors", json!([])),
        ("comments", json!("x")),
        ("primaryFabricId", json!("hill")),
        ("recoveryFabricId", json!("recovery-site")),
        ("groups", json!([])),
        ("providerSpecificDetails", json!({})),
        ("providerSpecificInput", json!({})),
        ("replicationProviderSettings", json!({})),
        ("customDetails", json!({})),
        ("sendToOwners", json!("DoNotSend")),
        ("encryptionKey", json!("x")),
        ("leewardTargetMemoryMib", json!(64)),
        ("leewardSite", json!("Recovery")),
    ]
}

/// Values that none, or few, of the fields take.
fn wrong_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(1e300),
        json!([]),
        json!([7]),
        json!({}),
        json!({"a": {"b": []}}),
        json!("x".repeat(5000)),
        json!("a/b"),
        json!("/x/replicationFabrics//replicationNetworks/"),
        json!("%2f;'\"\u{0}"),
        json!("\u{202e}\u{1f600}"),
    ]
}

/// Names that a path may carry and no object has.
const NAMES: [&str; 7] = ["a%2fb", "a;b", "%00", "..%2f..", "%F0%9F%98%80", "'", "a%25b"];

fn is_answer(reply: &Reply, what: &str) {
    let status = reply.status.as_u16();
    // 501 only says that a value asks for something which Leeward does not have.
    assert!(status < 500 || (status == 501 && reply.code() == "LW-0102"), "{what}: {status}");
    if status >= 400 {
        let code = reply.code();
        assert!(code.starts_with("LW-"), "{what}: {status} without a code: {}", reply.body);
    }
}

/// A path of the table with `name` wherever it has a name below the vault.
fn path_with(path: &str, name: &str) -> String {
    let head = "/subscriptions/{subscription}/resourceGroups/{group}\
                /providers/Microsoft.RecoveryServices/vaults/{vault}";
    let path = path.replace(head, VAULT);
    let path = path.replace("{subscription}", SUBSCRIPTION).replace("{group}", "leeward");
    let parts = path.split('/').map(|part| if part.starts_with('{') { name } else { part });
    parts.collect::<Vec<_>>().join("/")
}

/// What there is of a vault, to be compared with what there was.
async fn all(world: &World) -> Value {
    let mut all = Vec::new();
    for list in [
        "replicationFabrics",
        "replicationPolicies",
        "replicationProtectionContainerMappings",
        "replicationNetworkMappings",
        "replicationRecoveryPlans",
    ] {
        all.push(world.api.get(&format!("{VAULT}/{list}")).await.body["value"].clone());
    }
    let shown = world.show().await["providerSpecificDetails"]["leewardTarget"].clone();
    all.push(shown);
    Value::Array(all)
}

#[tokio::test]
async fn no_name_in_any_path_makes_more_than_a_refusal() {
    let world = World::protected().await;
    let before = all(&world).await;
    for (method, path, _) in routes::served() {
        // A vault of any name can be made.
        if !path.contains("{vault}/") {
            continue;
        }
        for name in NAMES {
            let path = path_with(&path, name);
            let verb = HttpMethod::from_bytes(method.name().as_bytes()).unwrap();
            let reply = world.api.send("Owner", verb, &path, b"{}".to_vec()).await;

            is_answer(&reply, &format!("{method:?} {path}"));
            let makes = method == Method::Put && path.contains(name);
            // Only the registration key takes any name: it is not stored under it.
            let key = path.contains("/certificates/");
            assert!(!makes || key || reply.status.as_u16() >= 400, "{path}: {}", reply.body);
        }
    }
    assert_eq!(all(&world).await, before, "nothing was made");
}

#[tokio::test]
async fn no_field_of_any_body_makes_more_than_a_refusal() {
    let mut world = World::protected().await;
    let names = names(&mut world).await;
    let takes = |method: Method| matches!(method, Method::Put | Method::Patch | Method::Post);
    let rows: Vec<_> = routes::served().filter(|(method, ..)| takes(*method)).collect();
    let (fields, values) = (fields(), wrong_values());
    let mut asked = 0;
    for (number, (method, path, _)) in rows.iter().enumerate() {
        let path = real(path, &world.item, &names);
        if is_destructive(&path) {
            continue;
        }
        for (place, (field, _)) in fields.iter().enumerate() {
            // Each field of each row meets some of the values, and each value other fields.
            for step in 0..VALUES_EACH {
                let value = &values[(number * 5 + place * 3 + step * 4) % values.len()];
                let good = fields.iter().map(|(name, good)| ((*name).to_owned(), good.clone()));
                let mut body: serde_json::Map<String, Value> = good.collect();
                body.insert((*field).to_owned(), value.clone());
                let body = json!({ "properties": body }).to_string();
                let verb = HttpMethod::from_bytes(method.name().as_bytes()).unwrap();
                let reply = world.ask(verb, &path, body.clone().into()).await;
                is_answer(&reply, &format!("{method:?} {path} {body}"));
                asked += 1;
            }
        }
    }
    assert!(asked > 3000, "{asked} requests");
    // The item still answers, and what became of it is a state like any other.
    assert!(world.show().await["protectionState"].is_string());
}

/// What would end the item, so that the rest would only meet 404.
fn is_destructive(path: &str) -> bool {
    path.ends_with("/remove")
}

#[tokio::test]
async fn an_id_of_another_vault_leads_nowhere() {
    let world = World::protected().await;
    let other = VAULT.replace("/vaults/default", "/vaults/other");
    world.api.put(&other, json!({"location": "x"})).await;
    let item = world.item.replace("/vaults/default", "/vaults/other");
    let job = world.api.get(&format!("{VAULT}/replicationJobs")).await.body["value"][0]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    for path in [
        item.clone(),
        format!("{item}/testFailover"),
        format!("{other}/replicationJobs/{job}"),
        format!("{other}/replicationJobs/{job}/cancel"),
        format!("{other}/replicationOperationStatus/{job}"),
        format!("{other}/replicationPolicies/often"),
    ] {
        let verb =
            if path.ends_with("cancel") || path.ends_with("Failover") { "POST" } else { "GET" };
        let verb = HttpMethod::from_bytes(verb.as_bytes()).unwrap();
        let reply = world.api.send("Owner", verb, &path, Vec::new()).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (404, "LW-0103"), "{path}");
    }
}

#[tokio::test]
async fn of_two_callers_at_once_one_is_served_and_the_other_told_who_is() {
    let world = World::protected().await;
    let failover = format!("{}/unplannedFailover", world.item);
    let ask = || {
        let router = world.api.router.clone();
        exchange(router, "Owner", HttpMethod::POST, &failover, b"{}".to_vec())
    };

    let (one, two) = tokio::join!(ask(), ask());

    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [202, 409]);
    let refused = if one.status == 409 { &one } else { &two };
    let served = if one.status == 409 { &two } else { &one };
    assert_eq!(refused.body["error"]["target"], served.header("x-ms-request-id"));

    let policy = format!("{VAULT}/replicationPolicies/new");
    let put = || world.api.put(&policy, json!({"properties": {}}));
    let (one, two, three) = tokio::join!(put(), put(), put());
    for reply in [one, two, three] {
        assert_eq!(reply.status, StatusCode::ACCEPTED, "a replay is the same once more");
    }
}
