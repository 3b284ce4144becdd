//! What the audit log says of requests, over HTTP.

use super::*;

impl Api {
    async fn log(&self) -> Vec<Value> {
        let reply = self.get("/leewardAuditLog?$take=1000").await;
        assert_eq!(reply.status, StatusCode::OK);
        reply.body["value"].as_array().unwrap().clone()
    }
}

/// Everything that asks for a change is in the log with who, from where, what, of what and what
/// came of it; what only looks is not.
#[tokio::test]
async fn every_request_that_may_change_something_is_in_the_log_and_no_other() {
    let api = Api::new().await;
    let before = api.log().await.len();
    let policy = format!("{VAULT}/replicationPolicies/often");
    let site = format!("{VAULT}/replicationFabrics/hill");
    let gone = format!("{VAULT}/replicationPolicies/gone");

    let made = api.put(&policy, json!({"properties": {}})).await;
    api.get(&policy).await;
    let site = api.put(&site, json!({})).await;
    let refused = api.delete(&gone).await;
    let forbidden = api.send("Reader", HttpMethod::DELETE, &policy, vec![]).await;
    api.send("nobody", HttpMethod::DELETE, &policy, vec![]).await;
    let broken = api.send("Owner", HttpMethod::PUT, &policy, b"{".to_vec()).await;

    let log = api.log().await.split_off(before);
    let said: Vec<_> = log
        .iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().unwrap().to_owned();
            (text("who"), text("action"), text("outcome"), text("code"))
        })
        .collect();
    let want = [
        ("Owner", "PolicyPut", "changed", ""),
        ("Owner", "FabricPut", "changed", ""),
        ("Owner", "PolicyDelete", "refused", "LW-0103"),
        ("Reader", "PolicyDelete", "refused", "LW-0110"),
        ("Owner", "PolicyPut", "refused", "LW-0101"),
    ];
    let want = want.map(|(who, what, outcome, code)| {
        (who.to_owned(), what.to_owned(), outcome.to_owned(), code.to_owned())
    });
    assert_eq!(said, want);
    for (entry, reply) in log.iter().zip([&made, &site, &refused, &forbidden, &broken]) {
        assert_eq!(entry["correlationId"], reply.header("x-ms-correlation-request-id"));
        assert_eq!(entry["from"], "192.0.2.9");
    }
    assert_eq!(log[2]["object"], gone);
    let verdict = api.get("/leewardAuditLog/verify").await.body;
    assert_eq!((&verdict["intact"], &verdict["broken"]), (&json!(true), &Value::Null));
    assert_eq!(verdict["head"]["number"], log[4]["number"]);
    let mut mine = "/leewardAuditLog?$filter=who+eq+'Reader'".to_owned();
    assert_eq!(api.get(&mine).await.body["value"].as_array().unwrap().len(), 1);
    mine.push_str("+and+nothing+eq+'x'");
    assert_eq!(api.get(&mine).await.status, StatusCode::BAD_REQUEST);
}

/// Keys, tokens and what stands in bodies are nowhere in the log.
#[tokio::test]
async fn no_secret_is_in_the_log() {
    let api = Api::new().await;
    let site = format!("{VAULT}/replicationFabrics/hill");
    api.put(&site, json!({})).await;
    let certificate = format!("{VAULT}/certificates/kvm-a?secret=in-the-query");
    let key = api.put(&certificate, json!({"properties": {"word": "in-the-body"}})).await;
    let key = key.body["properties"]["leewardRegistrationKey"].as_str().unwrap().to_owned();

    let log = serde_json::to_string(&api.log().await).unwrap();

    assert!(log.contains("certificates/kvm-a"));
    for secret in [key.as_str(), key.rsplit('.').next().unwrap(), "in-the-query", "in-the-body"] {
        assert!(!log.contains(secret), "{secret}");
    }
}

/// A log is followed page by page, each entry once, while it grows.
#[tokio::test]
async fn the_log_is_followed_page_by_page_and_a_wrong_head_is_refused() {
    let api = Api::new().await;
    for number in 0..5 {
        api.put(&format!("{VAULT}/replicationPolicies/p{number}"), json!({})).await;
    }
    let all = api.log().await.len();
    let mut next = "/leewardAuditLog?$take=2".to_owned();
    let mut numbers = Vec::new();
    loop {
        let page = api.get(&next).await.body;
        let values = page["value"].as_array().unwrap();
        numbers.extend(values.iter().map(|entry| entry["number"].as_u64().unwrap()));
        match page["nextLink"].as_str() {
            Some(link) => next = local(link).to_owned(),
            None => break,
        }
    }

    assert_eq!(numbers, (1..=all as u64).collect::<Vec<_>>());
    let hash = "ab".repeat(32);
    let wrong = api.get(&format!("/leewardAuditLog/verify?head=3:{hash}")).await;
    assert_eq!(wrong.body["broken"]["number"], 3);
    assert_eq!(wrong.body["problem"]["code"], "LW-0801");
    for head in ["3", "x:1", "3:xy"] {
        let path = format!("/leewardAuditLog/verify?head={head}");
        assert_eq!(api.get(&path).await.status, StatusCode::BAD_REQUEST, "{head}");
    }
    assert_eq!(api.post("/leewardAuditLog", json!({})).await.status, 405);
}
