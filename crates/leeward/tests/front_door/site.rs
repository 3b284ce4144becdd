//! A recovery site under test, hosts that join it, and machines that need no guest.

use super::{DEADLINE, PROGRAM, Room, Running, until};
use leeward::client::{ApiClient, ClientError, Reply};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The path of the tests' vault.
pub const VAULT: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/\
                         leeward/providers/Microsoft.RecoveryServices/vaults/front";
/// The site that hosts join.
pub const HILL: &str = "replicationFabrics/hill";

/// A running recovery site with a client of its API.
pub struct Site {
    pub data: PathBuf,
    pub process: Option<Running>,
    pub client: ApiClient,
    /// `127.0.0.1:port`.
    pub address: String,
    /// How long the start took.
    pub took: Duration,
}

impl Site {
    /// Starts a site in the room's folder `name` on a free port.
    pub async fn start(room: &Room, name: &str) -> Site {
        Site::start_at(room, name, "127.0.0.1:0").await
    }

    /// Starts a site, again at its old address if `listen` says so.
    pub async fn start_at(room: &Room, name: &str, listen: &str) -> Site {
        Site::start_with(room, name, listen, &[]).await
    }

    /// As [`Self::start_at`], with more environment.
    pub async fn start_with(
        room: &Room,
        name: &str,
        listen: &str,
        environment: &[(&str, &str)],
    ) -> Site {
        Site::start_words(room, name, listen, environment, &[]).await
    }

    /// As [`Self::start_with`], with more words for `leeward up`.
    pub async fn start_words(
        room: &Room,
        name: &str,
        listen: &str,
        environment: &[(&str, &str)],
        more: &[&str],
    ) -> Site {
        let data = room.path(name);
        let endpoint = data.join("endpoint");
        // Removed, so that its return says that the process is ready.
        let _ = fs::remove_file(&endpoint);
        let begun = Instant::now();
        let text = room.text(name);
        let words = [&["up", "--data", &text, "--listen", listen], more].concat();
        let mut process = room.start_with(name, Path::new(PROGRAM), &words, environment);
        let endpoint = until("the site's start", || {
            assert_eq!(process.ended(), None, "leeward up ended: {}", process.said());
            let text = fs::read_to_string(&endpoint).ok();
            async { text }
        })
        .await;
        let took = begun.elapsed();
        let endpoint = endpoint.trim();
        let client = ApiClient::from_folder(&data, endpoint, VAULT).unwrap();
        let address = endpoint.trim_start_matches("https://").to_owned();
        Site { data, process: Some(process), client, address, took }
    }

    pub async fn end(&mut self) {
        self.process.take().unwrap().end().await;
    }

    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.data.join(name)).unwrap().trim().to_owned()
    }

    /// Makes the vault and the site that hosts join.
    pub async fn prepare(&self) {
        let vault = json!({"location": "here", "sku": {"name": "RS0"}, "properties": {}});
        self.client.put(VAULT, &vault).await.unwrap();
        self.client.put(HILL, &json!({"properties": {}})).await.unwrap();
    }

    /// A registration key that is valid for some minutes, and when it ends.
    pub async fn key(&self, minutes: u32) -> (String, String) {
        let asked = json!({"properties": {"leewardFabric": "hill",
                                          "leewardValidMinutes": minutes}});
        let answer = self.client.put("certificates/front", &asked).await.unwrap().body;
        let text = |key: &str| answer["properties"][key].as_str().unwrap().to_owned();
        (text("leewardRegistrationKey"), text("validTo"))
    }

    /// Names of the hosts that joined.
    pub async fn hosts(&self) -> Vec<String> {
        let path = format!("{HILL}/replicationRecoveryServicesProviders");
        let hosts = self.client.list(&path).await.unwrap();
        hosts.iter().map(|host| host["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until a host's session is or is not there.
    pub async fn connection_wait(&self, host: &str, status: &str) {
        let path = format!("{HILL}/replicationRecoveryServicesProviders/{host}");
        until(&format!("{host} to be {status}"), || async {
            let host = self.client.get(&path).await.ok()?;
            (host["properties"]["connectionStatus"] == status).then_some(())
        })
        .await;
    }

    /// Path of the container in which the hosts' machines are.
    pub async fn container(&self) -> String {
        let path = format!("{HILL}/replicationProtectionContainers");
        let found = self.client.list(&path).await.unwrap();
        format!("{path}/{}", found[0]["name"].as_str().unwrap())
    }

    /// The machine as the API shows it, once it does.
    pub async fn machine(&self, name: &str) -> Value {
        let path = format!("{}/replicationProtectableItems", self.container().await);
        until(&format!("the discovery of {name}"), || async {
            let found = self.client.list(&path).await.unwrap();
            found.into_iter().find(|one| one["properties"]["friendlyName"] == name)
        })
        .await
    }

    /// Makes the policy (a point every second) and the mapping.
    pub async fn map(&self) {
        let policy = json!({"properties": {"providerSpecificInput": {
            "instanceType": "HyperVReplica2012R2", "leewardPointIntervalSeconds": 1,
            "leewardRetentionSeconds": 86400, "leewardRpoThresholdSeconds": 600,
            "leewardShutdownTimeoutSeconds": 5}}});
        self.client.put("replicationPolicies/quick", &policy).await.unwrap();
        let mapping = json!({"properties": {
            "policyId": format!("{VAULT}/replicationPolicies/quick"),
            "providerSpecificInput": {}}});
        let path =
            format!("{}/replicationProtectionContainerMappings/there", self.container().await);
        self.client.put(&path, &mapping).await.unwrap();
    }

    /// Asks for a machine's protection under `name`.
    pub async fn enable(&self, name: &str, machine: &str) -> Result<Reply, ClientError> {
        let path = self.item_path(name).await;
        let body = json!({"properties": {
            "policyId": format!("{VAULT}/replicationPolicies/quick"),
            "protectableItemId": machine, "providerSpecificDetails": {}}});
        self.client.put(&path, &body).await
    }

    pub async fn item_path(&self, name: &str) -> String {
        format!("{}/replicationProtectedItems/{name}", self.container().await)
    }

    pub async fn item(&self, name: &str) -> Value {
        self.client.get(&self.item_path(name).await).await.unwrap()["properties"].clone()
    }

    /// Waits until the item looks as `judge` says.
    pub async fn item_wait(&self, name: &str, what: &str, judge: impl Fn(&Value) -> bool) -> Value {
        let path = self.item_path(name).await;
        let begun = Instant::now();
        loop {
            let item = self.client.get(&path).await.unwrap()["properties"].clone();
            if judge(&item) {
                return item;
            }
            assert!(begun.elapsed() < DEADLINE, "waited in vain for {what}: {item:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks for an operation of an item.
    pub async fn operate(
        &self,
        item: &str,
        operation: &str,
        properties: Value,
    ) -> Result<Reply, ClientError> {
        let path = format!("{}/{operation}", self.item_path(item).await);
        self.client.post(&path, &json!({ "properties": properties })).await
    }

    /// Waits for a job's end and returns it.
    pub async fn job_wait(&self, job: &str) -> Value {
        until("the end of a job", || async {
            let job = self.client.get(job).await.unwrap();
            let state = job["properties"]["state"].as_str().unwrap().to_owned();
            let open = matches!(state.as_str(), "NotStarted" | "InProgress" | "Cancelling");
            (!open).then_some(job)
        })
        .await
    }

    /// The item's recovery points, newest first.
    pub async fn points(&self, item: &str) -> Vec<Value> {
        let path = format!("{}/recoveryPoints", self.item_path(item).await);
        self.client.list(&path).await.unwrap()
    }
}

/// Starts `leeward host` in the room's folder `name`, with a key at its first start.
pub fn host_start(room: &Room, name: &str, site: &str, key: Option<&str>) -> Running {
    let words = host_words(room, name, site, key);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    room.start(name, &words)
}

/// The words of [`host_start`]; the key goes into a file.
pub fn host_words(room: &Room, name: &str, site: &str, key: Option<&str>) -> Vec<String> {
    let mut words = vec!["host".into(), "--data".into(), room.text(name)];
    words.extend(["--join".into(), site.into(), "--name".into(), name.into()]);
    if let Some(key) = key {
        let file = room.path(&format!("{name}.key"));
        leeward::folder::write_secret(&file, format!("{key}\n").as_bytes()).unwrap();
        words.extend(["--key-file".into(), file.to_str().unwrap().into()]);
    }
    words
}

/// Describes a machine with raw disks; each is (id, path).
pub fn machine_make(host: &Path, name: &str, disks: &[(&str, &str)], more: &str) -> PathBuf {
    let folder = host.join("machines").join(name);
    fs::create_dir_all(&folder).unwrap();
    let mut text = format!("memory_mib = 32\n{more}\n");
    for (id, path) in disks {
        text += &format!("[[disks]]\nid = \"{id}\"\npath = \"{path}\"\nformat = \"raw\"\n");
    }
    fs::write(folder.join("machine.toml"), text).unwrap();
    folder
}

/// Makes an image whose first part holds bytes that no compression makes small.
pub fn image_make(path: &Path, size: u64, filled: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(filled);
    while bytes.len() < filled {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
    image_resize(path, size);
}

pub fn image_resize(path: &Path, size: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(size).unwrap();
}
