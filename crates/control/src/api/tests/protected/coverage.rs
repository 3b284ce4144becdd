//! Every operation of the contract that Leeward serves is asked once of objects that exist, with an
//! empty body: none is unknown, has no such method, or is "not yet".

use super::*;
use crate::api::routes;

/// The path of a row with the names of things that there are.
pub(super) fn real(path: &str, item: &str, names: &[(&str, String)]) -> String {
    let (container, name) = item.rsplit_once("/replicationProtectedItems/").unwrap();
    let mut path = path.to_owned();
    let head = "/subscriptions/{subscription}/resourceGroups/{group}\
                /providers/Microsoft.RecoveryServices/vaults/{vault}";
    path = path.replace(head, VAULT);
    path = path.replace("{subscription}", SUBSCRIPTION).replace("{group}", "leeward");
    path = path.replace("{fabric}", "hill").replace("{item}", name);
    path = path.replace("{container}", container.rsplit('/').next().unwrap());
    for (key, value) in names {
        path = path.replace(&format!("{{{key}}}"), value);
    }
    path
}

/// Names of things that there are, by what paths call them.
pub(super) async fn names(world: &mut World) -> Vec<(&'static str, String)> {
    let point = world.points().await[0].rsplit('/').next().unwrap().to_owned();
    let jobs = world.api.get(&format!("{VAULT}/replicationJobs")).await.body;
    let job = jobs["value"][0]["name"].as_str().unwrap().to_owned();
    let fixed = [
        ("host", "kvm-a"),
        ("machine", "web01"),
        ("policy", "often"),
        ("mapping", "m"),
        ("alert", "defaultAlertSetting"),
        ("setting", "default"),
        ("object", "user"),
        ("location", "here"),
        ("certificate", "c"),
        ("identity", "kvm-a"),
        ("plan", "p"),
        ("event", "1"),
    ];
    let fixed = fixed.map(|(key, name)| (key, name.to_owned()));
    fixed.into_iter().chain([("point", point), ("job", job)]).collect()
}

#[tokio::test]
async fn no_served_operation_is_unknown_or_not_yet() {
    let mut world = World::protected().await;
    let names = names(&mut world).await;
    let mut asked = 0;
    for (method, path, _) in routes::served() {
        let path = real(&path, &world.item, &names);
        assert!(!path.contains('{'), "{path} names something that the test does not know");
        let verb = HttpMethod::from_bytes(method.name().as_bytes()).unwrap();
        let body = match method {
            routes::Method::Get | routes::Method::Delete => Vec::new(),
            _ => b"{}".to_vec(),
        };
        // What ends or removes is asked without the right to it: it is known all the same.
        let removes = method == routes::Method::Delete || path.ends_with("/remove");
        let token = if removes { "Reader" } else { "Owner" };
        let request = exchange(world.api.router.clone(), token, verb, &path, body);

        let reply = world.api.fleet.during(request).await;

        let message = reply.body["error"]["message"].as_str().unwrap_or_default();
        assert!(!message.starts_with("there is nothing at"), "{method:?} {path}: {message}");
        assert!(![405, 500, 501].contains(&reply.status.as_u16()), "{method:?} {path}: {message}");
        assert_eq!(reply.status == 403, removes, "{method:?} {path}: {message}");
        asked += 1;
    }
    // The contract has 125 operations that are a must or a should; two are our own.
    assert!(asked >= 125, "{asked} operations are served");
}

#[tokio::test]
async fn what_belongs_to_other_products_says_so() {
    let api = Api::new().await;
    let fabric = format!("{VAULT}/replicationFabrics/f");
    for path in ["migratetoaad", "removeInfra"] {
        let reply = api.post(&format!("{fabric}/{path}"), json!({})).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (501, "LW-0102"));
        let message = reply.body["error"]["message"].as_str().unwrap();
        assert!(message.contains("is not supported: it belongs to other products"), "{message}");
    }
}

/// The small operations: what they say of what there is, and what they refuse.
#[tokio::test]
async fn what_needs_an_agent_or_a_gateway_is_refused_with_what_to_do_instead() {
    let world = World::protected().await;
    let api = &world.api;
    let container = world.item.rsplit_once("/replicationProtectedItems/").unwrap().0;
    let fabric = container.rsplit_once("/replicationProtectionContainers/").unwrap().0;
    let post = |path: String, properties: Value| async move {
        api.post(&path, json!({ "properties": properties })).await
    };
    let item = &world.item;
    let health = json!({"healthErrors": [{"healthErrorId": "x"}]});
    let other = json!({"sourceProcessServerId": "kvm-a", "targetProcessServerId": "kvm-z"});
    for (path, properties, status, code) in [
        (format!("{container}/discoverProtectableItem"), json!({"friendlyName": "WEB01"}), 200, ""),
        (
            format!("{container}/discoverProtectableItem"),
            json!({"friendlyName": "db"}),
            409,
            "LW-0112",
        ),
        (format!("{container}/discoverProtectableItem"), json!({}), 400, "LW-0101"),
        (format!("{container}/remove"), json!({}), 409, "LW-0112"),
        (format!("{fabric}/reassociateGateway"), other, 404, "LW-0103"),
        (
            format!("{fabric}/reassociateGateway"),
            json!({"sourceProcessServerId": "kvm-a",
            "targetProcessServerId": "KVM-A", "vmsToMigrate": ["web01"]}),
            200,
            "",
        ),
        (format!("{fabric}/checkConsistency"), json!({}), 200, ""),
        (format!("{fabric}/renewCertificate"), json!({}), 409, "LW-0112"),
        (format!("{item}/updateMobilityService"), json!({}), 409, "LW-0112"),
        (format!("{item}/reinstallMobilityService"), json!({}), 409, "LW-0112"),
        (format!("{item}/resolveHealthErrors"), json!({}), 200, ""),
        (format!("{item}/resolveHealthErrors"), health, 404, "LW-0103"),
        (format!("{item}/addDisks"), json!({}), 400, "LW-0101"),
        (
            format!("{item}/removeDisks"),
            json!({"providerSpecificDetails": {"vmDisksUris": ["z"]}}),
            404,
            "LW-0103",
        ),
    ] {
        let reply = post(path.clone(), properties.clone()).await;
        let found = (reply.status.as_u16(), reply.code());
        assert_eq!(found, (status, code), "{path} {properties}: {}", reply.body);
    }
    let usages = api.get(&format!("{VAULT}/replicationUsages")).await.body;
    assert_eq!(usages["value"][0]["protectedItemCount"], 1);
    let sizes = api.get(&format!("{item}/targetComputeSizes")).await.body;
    assert!(sizes["value"].as_array().unwrap().iter().any(|size| size["name"] == "1cpu-256mib"));
    let check =
        format!("{}/locations/here/checkNameAvailability", VAULT.rsplit_once("/vaults").unwrap().0);
    for (name, free) in [("DEFAULT", false), ("a/b", false), ("new", true)] {
        let reply = api.post(&check, json!({"name": name})).await;
        assert_eq!(reply.body["nameAvailable"], free, "{name}: {}", reply.body);
    }
    let operations = api.get("/providers/Microsoft.RecoveryServices/operations").await.body;
    assert!(operations["value"].as_array().unwrap().len() > 50);
    let identity = format!("{VAULT}/registeredIdentities/kvm-a");
    assert_eq!(api.delete(&identity).await.status, StatusCode::CONFLICT, "its items need it");
}

/// The exported list is the list of jobs that the answer's URL leads to.
#[tokio::test]
async fn exported_jobs_are_a_list_that_the_answer_leads_to() {
    let world = World::protected().await;
    let export = format!("{VAULT}/replicationJobs/export");
    let body = json!({"jobStatus": "Succeeded", "jobName": "EnableProtection, CreateSite",
        "jobOutputType": "Json", "timezoneOffset": 0});

    let reply = world.api.post(&export, body).await;

    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    let uri = reply.body["properties"]["customDetails"]["blobUri"].as_str().unwrap();
    let list = world.api.get(local(uri)).await.body;
    let names: Vec<_> = list["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["properties"]["scenarioName"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["EnableProtection", "CreateSite"]);
    for wrong in [
        json!({"jobOutputType": "Xml"}),
        json!({"jobStatus": "Tired"}),
        json!({"startTime": "x' or JobName eq 'y"}),
    ] {
        assert_eq!(world.api.post(&export, wrong).await.status, StatusCode::BAD_REQUEST);
    }
}

/// A purge waits for no host that is away; what such a host has is named.
#[tokio::test]
async fn an_item_is_purged_although_its_host_is_gone() {
    let mut world = World::protected().await;
    for host in &mut world.api.fleet.hosts {
        if host.name == "kvm-a" {
            host.temper = crate::testing::Temper::Dead;
        }
    }
    for _ in 0..20 {
        world.api.fleet.turn().await;
    }

    let gone = world.api.delete(&world.item.clone()).await;

    world.ends(&gone, "Succeeded").await;
    assert_eq!(world.api.get(&world.item).await.status, StatusCode::NOT_FOUND);
    let job = world.api.get(gone.header("x-ms-request-id")).await.body;
    assert_eq!(job["properties"]["errors"][0]["serviceErrorDetails"]["code"], "LW-0113", "{job}");
}
