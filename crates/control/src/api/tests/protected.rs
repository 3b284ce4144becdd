//! The verbs of a protected item over HTTP, against scripted hosts.

use super::*;
use crate::{registration::JoinRequest, testing::ScriptedHost};

mod bad_input;
mod coverage;
mod plans;
mod settings;

/// Turns after which a job of the scripted hosts must be over.
const TURNS_MAX: usize = 400;

/// A vault with a site, a host, a policy, a mapping, and the machine `web01` protected.
pub(super) struct World {
    pub(super) api: Api,
    pub(super) item: String,
}

impl World {
    pub(super) async fn protected() -> World {
        let mut api = Api::new().await;
        let site = format!("{VAULT}/replicationFabrics/hill");
        api.put(&site, json!({})).await;
        let certificate = format!("{VAULT}/certificates/kvm-a");
        let key =
            api.put(&certificate, json!({})).await.body["properties"]["leewardRegistrationKey"]
                .as_str()
                .unwrap()
                .to_owned();
        let join = JoinRequest { name: "kvm-a".into(), data_address: None };
        let host = api.fleet.control.registration_key_redeem(&key, join).await.unwrap().host;
        api.fleet.hosts.push(ScriptedHost::new(host, "kvm-a", &["web01"]));
        api.fleet.turn().await;
        let policy = format!("{VAULT}/replicationPolicies/often");
        api.put(&policy, json!({})).await;
        let list = format!("{site}/replicationProtectionContainers");
        let container = api.get(&list).await.body["value"][0]["id"].as_str().unwrap().to_owned();
        let mapping = format!("{container}/replicationProtectionContainerMappings/m");
        api.put(&mapping, json!({"properties": {"policyId": policy}})).await;
        let machines = api.get(&format!("{container}/replicationProtectableItems")).await;
        let machine = machines.body["value"][0]["id"].clone();
        let item = format!("{container}/replicationProtectedItems/web01");
        let mut world = World { api, item };
        let body = json!({"properties": {"policyId": policy, "protectableItemId": machine}});
        let enable = world.api.put(&world.item, body).await;
        world.ends(&enable, "Succeeded").await;
        world.until_state("Protected").await;
        world
    }

    pub(super) async fn show(&self) -> Value {
        self.api.get(&self.item).await.body["properties"].clone()
    }

    async fn until_state(&mut self, state: &str) {
        for _ in 0..TURNS_MAX {
            if self.show().await["protectionState"] == state {
                return;
            }
            self.api.fleet.turn().await;
        }
        panic!("the item does not become {state}: {}", self.show().await["protectionState"]);
    }

    /// Sends a request while the hosts answer the questions that it leads to.
    async fn ask(&mut self, method: HttpMethod, path: &str, body: Vec<u8>) -> Reply {
        let request = exchange(self.api.router.clone(), "Owner", method, path, body);
        self.api.fleet.during(request).await
    }

    async fn act(&mut self, verb: &str, properties: Value) -> Reply {
        let body = json!({"properties": properties}).to_string();
        self.ask(HttpMethod::POST, &format!("{}/{verb}", self.item), body.into()).await
    }

    /// Polls an accepted operation as clients do, until it has ended in this way.
    async fn ends(&mut self, reply: &Reply, outcome: &str) {
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{}", reply.body);
        let status = local(reply.header("azure-asyncoperation")).to_owned();
        for _ in 0..TURNS_MAX {
            let document = self.api.get(&status).await;
            assert_eq!(document.status, StatusCode::OK);
            if document.body["status"] != "InProgress" {
                assert_eq!(document.body["status"], outcome, "{}", document.body);
                return;
            }
            assert_eq!(document.header("retry-after"), "1");
            let result = self.api.get(local(reply.header("location"))).await;
            assert_eq!(result.status, StatusCode::ACCEPTED, "the result of a running operation");
            self.api.fleet.turn().await;
        }
        panic!("an operation does not end");
    }

    async fn done(&mut self, verb: &str, properties: Value) -> Value {
        let reply = self.act(verb, properties).await;
        self.ends(&reply, "Succeeded").await;
        self.api.get(local(reply.header("location"))).await.body
    }

    async fn points(&mut self) -> Vec<String> {
        let path = format!("{}/recoveryPoints", self.item);
        let reply = self.ask(HttpMethod::GET, &path, Vec::new()).await;
        let values = reply.body["value"].as_array().unwrap();
        values.iter().map(|point| point["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// F-096, F-070, F-091, F-100, F-101 as clients of the interface see them.
#[tokio::test]
async fn an_item_lives_through_test_failover_failover_change_of_point_and_commit() {
    let mut world = World::protected().await;
    let id = world.item.clone();

    let item = world.done("testFailover", json!({"failoverDirection": "PrimaryToRecovery"})).await;
    assert_eq!(item["id"], id);
    assert_eq!(item["properties"]["testFailoverState"], "WaitingForCompletion");
    let item = world.done("testFailoverCleanup", json!({"comments": "fine"})).await;
    assert_eq!(item["properties"]["testFailoverState"], "None");

    let item = world.done("unplannedFailover", json!({"sourceSiteOperations": "Required"})).await;
    let state = &item["properties"]["protectionState"];
    assert_eq!(state, "UnplannedFailoverCommitPendingStatesBegin");
    assert_eq!(item["properties"]["activeLocation"], "Recovery");
    assert_eq!(item["id"], id);
    let other = world.points().await.pop().unwrap();
    let item = world.done("applyRecoveryPoint", json!({"recoveryPointId": other})).await;
    assert_eq!(item["properties"]["failoverRecoveryPointId"], other);
    let item = world.done("failoverCommit", json!({})).await;
    assert_eq!(item["properties"]["protectionState"], "UnplannedFailoverCommitted");

    let gone = world.act("remove", json!({"disableProtectionReason": "NotSpecified"})).await;
    world.ends(&gone, "Succeeded").await;
    let result = world.api.get(local(gone.header("location"))).await;
    assert_eq!(result.status, StatusCode::NO_CONTENT);
    assert_eq!(world.api.get(&id).await.status, StatusCode::NOT_FOUND);
}

impl World {
    /// Turns until the job of an accepted request is in a state, and shows the job.
    async fn until_job(&mut self, reply: &Reply, state: &str) -> Value {
        let job = reply.header("x-ms-request-id").to_owned();
        for _ in 0..TURNS_MAX {
            let shown = self.api.get(&job).await.body["properties"].clone();
            if shown["state"] == state {
                return shown;
            }
            self.api.fleet.turn().await;
        }
        panic!("the job does not become {state}: {}", self.api.get(&job).await.body);
    }

    fn switch(&self) -> String {
        self.item.replace("/replicationProtectedItems/web01", "/switchprotection")
    }
}

/// F-086, F-098, F-105, F-110, F-131 to F-133: there and back, as clients see it.
#[tokio::test]
async fn an_item_is_reprotected_comes_home_in_two_phases_and_goes_out_again() {
    let mut world = World::protected().await;
    let id = world.item.clone();
    world.done("unplannedFailover", json!({})).await;
    world.done("failoverCommit", json!({})).await;
    let wrong = world.act("reProtect", json!({"failoverDirection": "PrimaryToRecovery"})).await;
    assert_eq!((wrong.status.as_u16(), wrong.code()), (400, "LW-0101"));

    world.done("reProtect", json!({"failoverDirection": "RecoveryToPrimary"})).await;
    world.until_state("Protected").await;
    let item = world.show().await;
    assert_eq!(item["leewardDirection"], "RecoveryToPrimary");
    assert_eq!(item["activeLocation"], "Recovery");
    assert_eq!(item["providerSpecificDetails"]["leewardLiveAt"], "Recovery");
    let allowed = item["allowedOperations"].as_array().unwrap();
    assert!(allowed.contains(&json!("PlannedFailover")), "{allowed:?}");

    let home = world
        .act(
            "plannedFailover",
            json!({"failoverDirection": "RecoveryToPrimary", "providerSpecificDetails": {
                "instanceType": "HyperVReplicaAzureFailback", "dataSyncOption": "ForDownTime"}}),
        )
        .await;
    let job = world.until_job(&home, "Suspended").await;
    assert_eq!(job["stateDescription"], "WaitingForFinalizeFailback");
    assert_eq!(job["scenarioName"], "PlannedFailover");
    assert_eq!(job["allowedActions"], json!(["Resume", "Cancel"]));
    let item = world.show().await;
    assert_eq!(item["protectionState"], "WaitingForFinalizeFailback");
    assert!(item["allowedOperations"].as_array().unwrap().contains(&json!("FinalizeFailback")));
    assert_eq!(item["activeLocation"], "Recovery");
    let resume = format!("{}/resume", home.header("x-ms-request-id"));
    assert_eq!(world.api.post(&resume, json!({})).await.status, StatusCode::OK);
    world.ends(&home, "Succeeded").await;
    let item = world.show().await;
    assert_eq!(item["protectionState"], "PlannedFailoverCommitRequired");
    assert_eq!(item["activeLocation"], "Primary");

    world.done("failoverCommit", json!({})).await;
    assert_eq!(world.show().await["protectionState"], "PlannedFailoverStatesBegin");
    let path = world.switch();
    let body = json!({"properties": {"replicationProtectedItemName": "web01"}});
    let reply = world.api.post(&path, body).await;
    world.ends(&reply, "Succeeded").await;
    let container = path.strip_suffix("/switchprotection").unwrap();
    assert_eq!(world.api.get(local(reply.header("location"))).await.body["id"], container);
    world.until_state("Protected").await;
    let item = world.show().await;
    assert_eq!(item["leewardDirection"], "PrimaryToRecovery");
    assert_eq!(item["providerSpecificDetails"]["leewardLiveAt"], "Primary");
    assert_eq!(world.api.get(&id).await.body["id"], id);
}

/// A planned failover never goes on with a source that is not off: it asks, and says what can be
/// answered.
#[tokio::test]
async fn a_guest_that_ignores_the_shutdown_is_a_question_with_its_choices() {
    let mut world = World::protected().await;
    let host = world.api.fleet.hosts[1].id;
    world.api.fleet.host(host).temper = crate::testing::Temper::GuestIgnoresShutdown;

    let reply = world.act("plannedFailover", json!({})).await;
    let job = world.until_job(&reply, "Suspended").await;

    let question = &job["customDetails"]["leewardQuestion"];
    assert_eq!(question["code"], "LW-0309");
    let comments: Vec<_> =
        question["choices"].as_array().unwrap().iter().map(|one| &one["comments"]).collect();
    assert_eq!(comments, [&Value::Null, &json!("power-off"), &Value::Null]);
    let codes: Vec<_> = job["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| &error["serviceErrorDetails"]["code"])
        .collect();
    assert_eq!(codes, ["LW-0309"]);
    assert_eq!(job["stateDescription"], "Suspended");
    assert_eq!(world.show().await["protectionState"], "PlannedFailoverInProgress");
    let job = reply.header("x-ms-request-id").to_owned();
    let resume = json!({"properties": {"comments": "power-off"}});
    assert_eq!(world.api.post(&format!("{job}/resume"), resume).await.status, StatusCode::OK);
    world.ends(&reply, "Succeeded").await;
    assert_eq!(world.show().await["activeLocation"], "Recovery");
}

/// F-005.
#[tokio::test]
async fn a_completed_migration_ends_the_item_and_later_requests_learn_why() {
    let mut world = World::protected().await;
    world.done("unplannedFailover", json!({})).await;
    let gone = world.act("remove", json!({"disableProtectionReason": "MigrationComplete"})).await;
    world.ends(&gone, "Succeeded").await;
    let result = world.api.get(local(gone.header("location"))).await;
    assert_eq!(result.status, StatusCode::NO_CONTENT);

    let reply = world.act("reProtect", json!({})).await;

    assert_eq!((reply.status, reply.code()), (StatusCode::NOT_FOUND, "LW-0111"));
}

#[tokio::test]
async fn a_busy_item_names_the_job_in_the_way_and_a_cancelled_one_says_so() {
    let mut world = World::protected().await;
    let first = world.act("unplannedFailover", json!({})).await;
    let job = first.header("x-ms-request-id").to_owned();

    let second = world.act("unplannedFailover", json!({})).await;
    let cancel = world.api.post(&format!("{job}/cancel"), json!({})).await;

    assert_eq!(second.status, StatusCode::CONFLICT);
    assert_eq!(second.body["error"]["code"], "OperationInProgress");
    assert_eq!(second.body["error"]["target"], job);
    assert_eq!(cancel.status, StatusCode::OK);
    world.ends(&first, "Canceled").await;
    let result = world.api.get(local(first.header("location"))).await;
    assert_eq!(result.status, StatusCode::CONFLICT);
    assert_eq!(result.body["error"]["code"], "OperationCanceled");
    assert_eq!(world.api.get(&job).await.body["properties"]["state"], "Cancelled");
    world.until_state("Protected").await;
}

fn details(details: Value) -> Value {
    json!({ "providerSpecificDetails": details })
}

#[tokio::test]
async fn what_cannot_be_asked_of_an_item_is_refused_with_its_class() {
    let mut world = World::protected().await;
    for (verb, properties, status, code) in [
        ("unplannedFailover", json!({"failoverDirection": "RecoveryToPrimary"}), 400, "LW-0101"),
        ("unplannedFailover", json!({"failoverDirection": "Up"}), 400, "LW-0101"),
        ("testFailover", json!({"networkId": "/a/network"}), 400, "LW-0101"),
        ("testFailover", json!({"networkId": "lan"}), 404, "LW-0103"),
        ("testFailover", json!({"networkType": "VmNetworkAsInput"}), 400, "LW-0101"),
        ("applyRecoveryPoint", json!({}), 400, "LW-0101"),
        ("failoverCommit", json!({}), 409, "LW-0105"),
        ("plannedFailover", json!({"failoverDirection": "RecoveryToPrimary"}), 400, "LW-0101"),
        ("plannedFailover", details(json!({"dataSyncOption": "Later"})), 400, "LW-0101"),
        ("plannedFailover", details(json!({"leewardHost": "nobody"})), 404, "LW-0103"),
        // The replica is on the recovery host: another one has to be reprotected to first.
        (
            "plannedFailover",
            details(json!({"providerIdForAlternateRecovery": "KVM-A"})),
            409,
            "LW-0105",
        ),
        ("reProtect", json!({}), 409, "LW-0105"),
        ("reProtect", details(json!({"masterTargetId": "nobody"})), 404, "LW-0103"),
        ("reProtect", details(json!({"leewardVerify": "maybe"})), 400, "LW-0101"),
        ("reProtect", details(json!({"leewardVerify": "full"})), 409, "LW-0105"),
        ("repairReplication", json!({"leewardVerify": "maybe"}), 400, "LW-0101"),
        ("remove", json!({"disableProtectionReason": "Boredom"}), 400, "LW-0101"),
        ("remove", json!({"disableProtectionReason": "MigrationComplete"}), 409, "LW-0105"),
    ] {
        let reply = world.act(verb, properties.clone()).await;
        let found = (reply.status.as_u16(), reply.code());
        assert_eq!(found, (status, code), "{verb} {properties}: {}", reply.body);
    }
    let switch = world.switch();
    for (name, status) in [(Value::Null, 400), (json!("nobody"), 404), (json!("WEB01"), 409)] {
        let body = json!({"properties": {"replicationProtectedItemName": name}});
        let reply = world.api.post(&switch, body).await;
        assert_eq!(reply.status.as_u16(), status, "{name}: {}", reply.body);
    }
    let elsewhere = world.item.replace("/cloud_", "/clown_");
    assert_eq!(world.api.get(&elsewhere).await.status, StatusCode::NOT_FOUND);
}

#[test]
fn no_body_of_a_verb_makes_the_server_fail() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::protected());
    let verbs = prop::sample::select(vec![
        "testFailover",
        "testFailoverCleanup",
        "unplannedFailover",
        "applyRecoveryPoint",
        "failoverCommit",
        "failoverCancel",
        "repairReplication",
        "plannedFailover",
        "reProtect",
        "remove",
    ]);

    proptest!(|(verb in verbs, body in bodies())| {
        let reply = runtime.block_on(world.api.post(&format!("{}/{verb}", world.item), body));
        let status = reply.status.as_u16();
        prop_assert!(status < 500 || status == 501 || status == 503, "{verb}: {}", reply.body);
    });
}
