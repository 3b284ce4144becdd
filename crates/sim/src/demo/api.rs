//! The story's operations as calls of the public API, with the waits between them.

use super::progress::wait_for;
use anyhow::{Context as _, bail};
use leeward::client::ApiClient;
use serde_json::{Value, json};
use std::time::Duration;

/// How often a job or an item is asked for.
const POLL: Duration = Duration::from_millis(100);

/// The public API, seen from one item.
#[derive(Clone)]
pub struct Site {
    /// The client.
    pub client: ApiClient,
    /// Path of the item below the vault.
    pub item: String,
}

/// The path of the demo's vault.
pub const VAULT: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/\
                         leeward/providers/Microsoft.RecoveryServices/vaults/default";

/// Waits until the job of an accepted operation has ended.
///
/// # Errors
/// When it failed or was cancelled, with what the operator reads; when the deadline passes.
pub async fn job_wait(client: &ApiClient, job: &str, deadline: Duration) -> anyhow::Result<Value> {
    let ended = wait_for("the end of a job", deadline, POLL, || async {
        let job = client.get(job).await?;
        let state = job["properties"]["state"].as_str().unwrap_or_default().to_owned();
        let open = matches!(state.as_str(), "NotStarted" | "InProgress" | "Cancelling");
        Ok((!open).then_some(job))
    })
    .await?;
    let properties = &ended["properties"];
    match properties["state"].as_str() {
        Some("Succeeded" | "Suspended") => Ok(ended),
        state => bail!(
            "{} ended as {}: {}",
            properties["friendlyName"],
            state.unwrap_or("unknown"),
            properties["errors"]
        ),
    }
}

/// Starts an operation and returns its job's path.
///
/// # Errors
/// When the server refuses it.
pub async fn start(client: &ApiClient, path: &str, body: &Value) -> anyhow::Result<String> {
    let reply = client.post(path, body).await?;
    reply.job.with_context(|| format!("{path} was accepted without a job"))
}

/// Puts a resource and waits for its job, when there is one.
///
/// # Errors
/// When the server refuses it or the job fails.
pub async fn put(client: &ApiClient, path: &str, body: &Value) -> anyhow::Result<()> {
    let reply = client.put(path, body).await?;
    if reply.status == 202
        && let Some(job) = reply.job
    {
        job_wait(client, &job, Duration::from_secs(60)).await?;
    }
    Ok(())
}

/// Makes the vault and the primary site's fabric; returns a registration key for its host.
///
/// # Errors
/// When the server refuses one of them.
pub async fn vault_make(client: &ApiClient) -> anyhow::Result<String> {
    let vault = json!({"location": "here", "sku": {"name": "RS0", "tier": "Standard"},
                       "properties": {}});
    put(client, VAULT, &vault).await?;
    put(client, "replicationFabrics/primary-site", &json!({"properties": {}})).await?;
    registration_key(client).await
}

/// A registration key for a host of the primary site.
///
/// # Errors
/// When the server refuses.
pub async fn registration_key(client: &ApiClient) -> anyhow::Result<String> {
    let asked = json!({"properties": {"leewardFabric": "primary-site", "leewardValidMinutes": 15}});
    let answer = client.put("certificates/demo", &asked).await?.body;
    let key = answer["properties"]["leewardRegistrationKey"].as_str();
    Ok(key.context("the answer has no registration key")?.to_owned())
}

/// The policy of the demo and the tests: a point every 2 s.
pub fn policy(shutdown_timeout_seconds: u32) -> Value {
    json!({"properties": {"providerSpecificInput": {
        "instanceType": "HyperVReplica2012R2", "replicationFrequencyInSeconds": 30,
        "leewardPointIntervalSeconds": 2, "leewardRetentionSeconds": 86400,
        "leewardRpoThresholdSeconds": 15,
        "leewardShutdownTimeoutSeconds": shutdown_timeout_seconds}}})
}

async fn container(client: &ApiClient, fabric: &str) -> anyhow::Result<String> {
    let path = format!("replicationFabrics/{fabric}/replicationProtectionContainers");
    let found = client.list(&path).await?;
    let name = found.first().and_then(|one| one["name"].as_str().map(str::to_owned));
    name.with_context(|| format!("{fabric} has no container"))
}

/// Protects a machine of the primary site with a point every 2 s, and returns at once when that
/// is accepted.
///
/// # Errors
/// When the machine is not discovered within `deadline`, or the server refuses.
pub async fn machine_protect(
    client: &ApiClient,
    name: &str,
    deadline: Duration,
) -> anyhow::Result<Site> {
    let primary = container(client, "primary-site").await?;
    let recovery = container(client, "recovery-site").await?;
    let base = format!("replicationFabrics/primary-site/replicationProtectionContainers/{primary}");
    let machine = wait_for("the machine's discovery", deadline, POLL, || async {
        let found = client.list(&format!("{base}/replicationProtectableItems")).await?;
        let mine = |one: &&Value| one["properties"]["friendlyName"].as_str() == Some(name);
        Ok(found.iter().find(mine).cloned())
    })
    .await?;
    put(client, "replicationPolicies/every-2-s", &policy(60)).await?;
    let mapping = json!({"properties": {
        "policyId": format!("{VAULT}/replicationPolicies/every-2-s"),
        "targetProtectionContainerId": format!(
            "{VAULT}/replicationFabrics/recovery-site/replicationProtectionContainers/{recovery}"
        ),
        "providerSpecificInput": {}}});
    let path = format!("{base}/replicationProtectionContainerMappings/to-recovery");
    put(client, &path, &mapping).await?;
    let item = format!("{base}/replicationProtectedItems/{name}");
    let enable = json!({"properties": {
        "policyId": format!("{VAULT}/replicationPolicies/every-2-s"),
        "protectableItemId": machine["id"],
        "providerSpecificDetails": {}}});
    client.put(&item, &enable).await?;
    Ok(Site { client: client.clone(), item })
}

impl Site {
    /// The item's properties.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn item(&self) -> anyhow::Result<Value> {
        Ok(self.client.get(&self.item).await?["properties"].clone())
    }

    /// Waits until the item's state is `state`.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn state_wait(&self, state: &str, deadline: Duration) -> anyhow::Result<Value> {
        wait_for(&format!("the state {state}"), deadline, POLL, || async {
            let item = self.item().await?;
            let reached = item["protectionState"] == state;
            Ok(reached.then_some(item))
        })
        .await
    }

    /// Starts an operation of the item.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn start(&self, operation: &str, properties: Value) -> anyhow::Result<String> {
        let body = json!({ "properties": properties });
        start(&self.client, &format!("{}/{operation}", self.item), &body).await
    }

    /// The item's recovery points, newest first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn points(&self) -> anyhow::Result<Vec<Value>> {
        Ok(self.client.list(&format!("{}/recoveryPoints", self.item)).await?)
    }

    /// The instance of a purpose (`Test`, `Failover`) that is wanted running.
    ///
    /// # Errors
    /// When the item cannot be asked or none comes within the deadline.
    pub async fn instance_wait(
        &self,
        purpose: &str,
        but_not: &[String],
        deadline: Duration,
    ) -> anyhow::Result<Value> {
        wait_for(&format!("a {purpose} machine"), deadline, Duration::from_millis(30), || async {
            let item = self.item().await?;
            let found = item["providerSpecificDetails"]["leewardInstances"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|instance| {
                    let id = instance["id"].as_str().unwrap_or_default();
                    instance["purpose"] == purpose
                        && !instance["guestStartedAt"].is_null()
                        && !but_not.iter().any(|old| old == id)
                })
                .cloned();
            Ok(found)
        })
        .await
    }
}
