//! Recovery plans over HTTP, against scripted hosts.

use super::*;

const PLANS: &str = "replicationRecoveryPlans";

impl World {
    fn plan(&self) -> String {
        format!("{VAULT}/{PLANS}/shop")
    }

    /// A plan of the one item, with what is to be different.
    fn body(&self, more: &Value) -> Value {
        let mut properties = json!({
            "primaryFabricId": format!("{VAULT}/replicationFabrics/hill"),
            "recoveryFabricId": format!("{VAULT}/replicationFabrics/recovery-site"),
            "failoverDeploymentModel": "NotApplicable",
            "groups": [{
                "groupType": "Boot",
                "replicationProtectedItems": [{"id": self.item, "virtualMachineId": "x"}],
                "startGroupActions": [],
                "endGroupActions": [{
                    "actionName": "look",
                    "failoverTypes": ["UnplannedFailover", "TestFailover"],
                    "failoverDirections": ["PrimaryToRecovery"],
                    "customDetails": {
                        "instanceType": "ManualActionDetails",
                        "description": "see that the shop opens",
                    },
                }],
            }],
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            properties[name] = value.clone();
        }
        json!({ "properties": properties })
    }

    async fn put_plan(&mut self) {
        let reply = self.api.put(&self.plan(), self.body(&json!({}))).await;
        self.ends(&reply, "Succeeded").await;
        let result = self.api.get(local(reply.header("location"))).await;
        assert_eq!(result.body["id"], self.plan());
    }

    async fn run(&mut self, verb: &str, properties: Value) -> Reply {
        let body = json!({ "properties": properties });
        self.api.post(&format!("{}/{verb}", self.plan()), body).await
    }
}

/// F-055, F-160, F-161: as clients of the interface see a plan, its job, its groups and actions.
#[tokio::test]
async fn a_plan_is_made_run_committed_and_removed() {
    let mut world = World::protected().await;
    world.put_plan().await;
    let plan = world.api.get(&world.plan().to_uppercase()).await.body;
    assert_eq!(plan["id"], world.plan());
    assert_eq!(plan["type"], format!("Microsoft.RecoveryServices/vaults/{PLANS}"));
    let plan = &plan["properties"];
    let kinds: Vec<_> =
        plan["groups"].as_array().unwrap().iter().map(|group| &group["groupType"]).collect();
    assert_eq!(kinds, ["Shutdown", "Failover", "Boot"]);
    let member = &plan["groups"][2]["replicationProtectedItems"][0];
    assert_eq!(member["id"], world.item);
    assert_eq!(plan["currentScenario"]["scenarioName"], "None");
    assert_eq!(
        plan["allowedOperations"],
        json!(["TestFailover", "PlannedFailover", "UnplannedFailover"])
    );
    let list = world.api.get(&format!("{VAULT}/{PLANS}")).await.body;
    assert_eq!(list["value"].as_array().unwrap().len(), 1);

    let direction = json!({"failoverDirection": "PrimaryToRecovery",
        "providerSpecificDetails": [{"instanceType": "A2A", "recoveryPointType": "Latest"}]});
    let reply = world.run("unplannedFailover", direction).await;
    let job = world.until_job(&reply, "Suspended").await;
    assert_eq!(job["scenarioName"], "UnplannedFailover");
    assert_eq!(job["targetInstanceType"], "RecoveryPlan");
    assert_eq!(job["targetObjectName"], "shop");
    let tasks = job["tasks"].as_array().unwrap();
    let group = tasks.iter().find(|task| task["friendlyName"] == "Group 1").unwrap();
    let details = &group["groupTaskCustomDetails"];
    assert_eq!(details["instanceType"], "RecoveryPlanGroupTaskDetails");
    assert_eq!(details["rpGroupType"], "Boot");
    let machine = &details["childTasks"][0]["customDetails"];
    assert_eq!(machine["instanceType"], "VirtualMachineTaskDetails");
    let part = machine["jobTask"]["jobId"].as_str().unwrap();
    let part = world.api.get(part).await.body["properties"].clone();
    assert_eq!(part["leewardParentJob"], reply.header("x-ms-request-id"));
    let action = &details["childTasks"][1]["customDetails"];
    assert_eq!(action["instanceType"], "ManualActionTaskDetails");
    assert_eq!(action["instructions"], "see that the shop opens");
    let question = &job["customDetails"]["leewardQuestion"];
    assert_eq!(question["text"], "look: see that the shop opens");
    let busy = world.run("testFailover", json!({})).await;
    assert_eq!(busy.body["error"]["code"], "OperationInProgress");
    assert_eq!(busy.body["error"]["target"], reply.header("x-ms-request-id"));
    let resume = format!("{}/resume", reply.header("x-ms-request-id"));
    let said = json!({"properties": {"comments": "it does"}});
    assert_eq!(world.api.post(&resume, said).await.status, StatusCode::OK);
    world.ends(&reply, "Succeeded").await;

    let shown = world.api.get(&world.plan()).await.body["properties"].clone();
    assert!(shown["lastUnplannedFailoverTime"].is_string(), "{shown}");
    assert_eq!(shown["currentScenarioStatus"], "Succeeded");
    let commit = world.run("failoverCommit", json!({})).await;
    world.ends(&commit, "Succeeded").await;
    assert_eq!(world.show().await["protectionState"], "UnplannedFailoverCommitted");
    let again = world.run("failoverCommit", json!({})).await;
    assert_eq!((again.status, again.code()), (StatusCode::CONFLICT, "LW-0105"));
    let path = world.plan();
    let gone = world.ask(HttpMethod::DELETE, &path, Vec::new()).await;
    world.ends(&gone, "Succeeded").await;
    let result = world.api.get(local(gone.header("location"))).await;
    assert_eq!(result.status, StatusCode::NO_CONTENT);
    assert_eq!(world.api.get(&path).await.status, StatusCode::NOT_FOUND);
}

/// Every field that is wrong is a 4xx with a code, or said to be not supported; nothing is stored.
#[tokio::test]
async fn what_no_plan_can_be_is_refused_with_its_class() {
    let world = World::protected().await;
    let group = |more: Value| {
        let mut group = world.body(&json!({}))["properties"]["groups"][0].clone();
        for (name, value) in more.as_object().into_iter().flatten() {
            group[name] = value.clone();
        }
        json!({ "groups": [group] })
    };
    let member = |id: Value| group(json!({"replicationProtectedItems": [{ "id": id }]}));
    let action = |kind: &str, types: Value| {
        group(json!({"startGroupActions": [{
            "actionName": "a", "failoverTypes": types, "failoverDirections": ["PrimaryToRecovery"],
            "customDetails": {"instanceType": kind, "description": "d", "path": "/bin/true"},
        }]}))
    };
    let elsewhere = world.item.replace("/vaults/default", "/vaults/other");
    let types = || json!(["TestFailover"]);
    for (more, status, code) in [
        (json!({"primaryFabricId": null}), 400, "LW-0101"),
        (json!({"primaryFabricId": 7}), 400, "LW-0101"),
        (json!({"recoveryFabricId": "/a/replicationFabrics/nowhere"}), 404, "LW-0103"),
        (json!({"failoverDeploymentModel": "Cloudy"}), 400, "LW-0101"),
        (json!({"groups": null}), 400, "LW-0101"),
        (json!({"groups": "all"}), 400, "LW-0101"),
        (json!({"groups": [7]}), 400, "LW-0101"),
        (json!({"groups": []}), 400, "LW-0101"),
        (group(json!({"groupType": null})), 400, "LW-0101"),
        (group(json!({"groupType": "Floppy"})), 400, "LW-0101"),
        (group(json!({"groupType": "Shutdown"})), 400, "LW-0101"),
        (group(json!({"replicationProtectedItems": 1})), 400, "LW-0101"),
        (group(json!({"replicationProtectedItems": [{}]})), 400, "LW-0101"),
        (member(json!("/a/b")), 400, "LW-0101"),
        (member(json!("nobody")), 404, "LW-0103"),
        (member(json!("we%2fb;01é")), 404, "LW-0103"),
        (member(json!(elsewhere)), 404, "LW-0103"),
        (member(json!("00000000-0000-0000-0000-000000000001")), 404, "LW-0103"),
        (action("ManualActionDetails", json!("TestFailover")), 400, "LW-0101"),
        (action("ManualActionDetails", json!(["Dance"])), 400, "LW-0101"),
        (action("ManualActionDetails", json!(["Commit"])), 400, "LW-0101"),
        (action("ManualActionDetails", json!([])), 400, "LW-0101"),
        // A path is not a file of the folder of scripts; a runbook needs to be named.
        (action("ScriptActionDetails", types()), 400, "LW-0101"),
        (action("AutomationRunbookActionDetails", types()), 400, "LW-0101"),
        (action("Magic", types()), 400, "LW-0101"),
    ] {
        let reply = world.api.put(&world.plan(), world.body(&more)).await;
        let found = (reply.status.as_u16(), reply.code());
        assert_eq!(found, (status, code), "{more}: {}", reply.body);
    }
    for name in ["a%2fb", "a;b", "%C3%A9;", "..%20"] {
        let path = format!("{VAULT}/{PLANS}/{name}");
        let reply = world.api.put(&path, world.body(&json!({}))).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{name}: {}", reply.body);
    }
    let list = world.api.get(&format!("{VAULT}/{PLANS}")).await.body;
    assert_eq!(list["value"], json!([]));
    for verb in ["testFailover", "failoverCommit", "reProtect", "failoverCancel"] {
        let reply = world.api.post(&format!("{}/{verb}", world.plan()), json!({})).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (404, "LW-0103"), "{verb}");
    }
}

/// What cannot be asked of a plan is refused with its class; PATCH replaces all groups.
#[tokio::test]
async fn what_cannot_be_asked_of_a_plan_is_refused() {
    let mut world = World::protected().await;
    world.put_plan().await;
    let details = |details: Value| json!({"providerSpecificDetails": [details]});
    for (verb, properties, status, code) in [
        ("unplannedFailover", json!({"failoverDirection": "Up"}), 400, "LW-0101"),
        ("unplannedFailover", json!({"failoverDirection": "RecoveryToPrimary"}), 409, "LW-0105"),
        ("unplannedFailover", json!({"providerSpecificDetails": {}}), 400, "LW-0101"),
        ("unplannedFailover", details(json!({"recoveryPointType": "Best"})), 400, "LW-0101"),
        ("unplannedFailover", details(json!({"recoveryPointType": "LatestTag"})), 501, "LW-0102"),
        ("unplannedFailover", details(json!({"useMultiVmSyncPoint": "true"})), 501, "LW-0102"),
        (
            "unplannedFailover",
            details(json!({"recoveryPointId": "00000000-0000-0000-0000-000000000007"})),
            400,
            "LW-0101",
        ),
        ("testFailover", json!({"networkId": "/a/network"}), 400, "LW-0101"),
        ("testFailover", json!({"networkType": "VmNetworkAsInput"}), 400, "LW-0101"),
        ("plannedFailover", details(json!({"dataSyncOption": "Later"})), 400, "LW-0101"),
        ("plannedFailover", json!({"leewardWaitToComplete": true}), 501, "LW-0102"),
        ("plannedFailover", json!({"leewardReverseOrder": "perhaps"}), 400, "LW-0101"),
        ("testFailoverCleanup", json!({}), 409, "LW-0105"),
        ("failoverCommit", json!({}), 409, "LW-0105"),
        ("failoverCancel", json!({}), 409, "LW-0105"),
        ("reProtect", json!({}), 409, "LW-0105"),
    ] {
        let reply = world.run(verb, properties.clone()).await;
        let found = (reply.status.as_u16(), reply.code());
        assert_eq!(found, (status, code), "{verb} {properties}: {}", reply.body);
    }
    let boot = json!({"groupType": "boot", "replicationProtectedItems": [{"id": "WEB01"}]});
    let empty = json!({"groupType": "Boot"});
    let patch = json!({"properties": {"groups": [empty, boot]}}).to_string();
    let path = world.plan();
    let reply = world.ask(HttpMethod::PATCH, &path, patch.into_bytes()).await;
    world.ends(&reply, "Succeeded").await;
    let plan = world.api.get(&path).await.body["properties"].clone();
    assert_eq!(plan["groups"].as_array().unwrap().len(), 4);
    assert_eq!(plan["groups"][3]["endGroupActions"], json!([]));
    let nothing = world.ask(HttpMethod::PATCH, &path, b"{}".to_vec()).await;
    assert_eq!(nothing.status, StatusCode::BAD_REQUEST);
}

/// F-161: what is no runbook of ours is refused, and where it would run elsewhere.
#[tokio::test]
async fn a_runbook_is_a_webhook_or_one_of_ours() {
    let world = World::protected().await;
    let details = |more: Value| {
        let mut details = json!({"instanceType": "AutomationRunbookActionDetails"});
        for (name, value) in more.as_object().unwrap() {
            details[name] = value.clone();
        }
        let action = json!({"actionName": "a", "failoverTypes": ["TestFailover"],
            "failoverDirections": ["PrimaryToRecovery"], "customDetails": details});
        json!({"groups": [{"groupType": "Boot", "startGroupActions": [action],
            "replicationProtectedItems": [{"id": "web01"}]}]})
    };
    for (more, status, code) in [
        (details(json!({"runbookId": "/subscriptions/s/runbooks/r"})), 501, "LW-0102"),
        (details(json!({"runbookId": "https://h/"})), 400, "LW-0101"),
        (
            details(json!({"runbookId": "leeward:wait", "leewardUrl": "tcp://h:1",
                "fabricLocation": "Primary"})),
            501,
            "LW-0102",
        ),
        (details(json!({"runbookId": "leeward:dns-update", "leewardDns": []})), 400, "LW-0101"),
    ] {
        let reply = world.api.put(&world.plan(), world.body(&more)).await;
        let found = (reply.status.as_u16(), reply.code());
        assert_eq!(found, (status, code), "{more}: {}", reply.body);
    }
}

/// F-161: actions come back as they were written, but for their secrets, which are kept.
#[tokio::test]
async fn actions_are_written_and_read_again() {
    let world = World::protected().await;
    let action = |name: &str, details: Value| {
        json!({
            "actionName": name,
            "failoverTypes": ["UnplannedFailover"],
            "failoverDirections": ["PrimaryToRecovery"],
            "customDetails": details,
        })
    };
    let automation = |more: Value| {
        let mut details = json!({"instanceType": "AutomationRunbookActionDetails",
            "timeout": "PT1M", "fabricLocation": "Recovery"});
        for (name, value) in more.as_object().unwrap() {
            details[name] = value.clone();
        }
        details
    };
    let zone = json!({"server": "ns.shop.example:53", "zone": "shop.example",
        "name": "db.shop.example", "ttl": 30, "addresses": ["10.2.0.5", "fd00::5"],
        "keyName": "leeward", "keyAlgorithm": "hmac-sha512"});
    let script = json!({"instanceType": "ScriptActionDetails", "path": "tell.sh",
        "timeout": "PT1M", "fabricLocation": "Recovery"});
    let written = [
        action("script", script),
        action("hook", automation(json!({"runbookId": "https://h/x", "leewardRetries": 2}))),
        action("name", automation(json!({"runbookId": "leeward:dns-update", "leewardDns": zone}))),
        action("up", automation(json!({"runbookId": "leeward:wait", "leewardUrl": "tcp://h:1"}))),
    ];
    let body = |actions: &[Value]| {
        let item = json!([{"id": world.item}]);
        let group = json!({"groupType": "Boot", "replicationProtectedItems": item,
            "endGroupActions": actions});
        world.body(&json!({"groups": [group]}))
    };
    let mut secret = written.clone();
    secret[1]["customDetails"]["leewardSecret"] = json!("a secret of sixteen");
    secret[2]["customDetails"]["leewardDns"]["keySecret"] =
        json!("c2l4dGVlbiBieXRlcyBhdCBsZWFzdA==");
    for actions in [secret, written.clone()] {
        let body = body(&actions);
        let reply = world.api.put(&world.plan(), body).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{}", reply.body);
        let plan = world.api.get(&world.plan()).await.body;
        let mut read = plan["properties"]["groups"][2]["endGroupActions"].clone();
        for index in [1, 2] {
            let details = read[index]["customDetails"].as_object_mut().unwrap();
            assert_eq!(details.remove("leewardSecretKept"), Some(json!(true)));
        }
        assert_eq!(read, json!(written));
        assert!(!plan.to_string().contains("sixteen") && !plan.to_string().contains("c2l4"));
    }
}

#[test]
fn no_body_of_a_plan_makes_the_server_fail() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut world = runtime.block_on(World::protected());
    runtime.block_on(world.put_plan());
    let verbs = prop::sample::select(vec![
        "",
        "/testFailover",
        "/testFailoverCleanup",
        "/unplannedFailover",
        "/plannedFailover",
        "/failoverCommit",
        "/failoverCancel",
        "/reProtect",
    ]);
    let fields =
        prop::sample::select(vec!["groups", "providerSpecificDetails", "startGroupActions"]);

    proptest!(|(verb in verbs, field in fields, body in bodies())| {
        let path = format!("{}{verb}", world.plan());
        let listed = json!({"properties": { field: [body["properties"].clone()],
            "primaryFabricId": "hill", "recoveryFabricId": "recovery-site" }});
        for body in [body, listed] {
            let method = if verb.is_empty() { HttpMethod::PUT } else { HttpMethod::POST };
            let sent = body.to_string().into_bytes();
            let reply = runtime.block_on(world.api.send("Owner", method, &path, sent));
            let status = reply.status.as_u16();
            prop_assert!(status < 500 || status == 501 || status == 503, "{verb}: {}", reply.body);
        }
    });
}
