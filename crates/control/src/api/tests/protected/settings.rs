//! Network mappings and settings of items over HTTP, down to what hosts are told to make.

use super::*;
use crate::testing::{NIC, TARGET};
use leeward_model::{Figure, MachineChanges, NicSpec, Site};
use leeward_wire::message::Purpose;

impl World {
    fn fabric(&self, name: &str) -> String {
        format!("{VAULT}/replicationFabrics/{name}")
    }

    fn network(&self, fabric: &str, name: &str) -> String {
        format!("{}/replicationNetworks/{name}", self.fabric(fabric))
    }

    async fn patch(&mut self, properties: Value) -> Reply {
        let body = json!({"properties": properties}).to_string();
        self.api.send("Owner", HttpMethod::PATCH, &self.item, body.into()).await
    }

    /// What the host of a site was told last of a machine that it makes, and as what it settles.
    fn told(&mut self, site: Site, purpose: Purpose) -> (MachineChanges, Option<String>) {
        let hosts = self.api.fleet.hosts.iter();
        let host = hosts.filter(|host| (host.id == TARGET) == (site == Site::Recovery));
        let made =
            host.flat_map(|host| host.items.values()).flat_map(|item| item.instances.values());
        let mut made = made.map(|made| made.duty()).filter(|duty| duty.purpose == purpose);
        let duty = made.next_back().expect("a machine is made there");
        (duty.changes.clone(), duty.settle_as.clone())
    }
}

fn card(network: &str) -> NicSpec {
    NicSpec { mac: NIC.into(), network: network.into(), address: None }
}

#[tokio::test]
async fn a_network_is_mapped_once_to_each_fabric_and_can_be_changed_listed_and_removed() {
    let world = World::protected().await;
    let api = &world.api;
    let mapping = format!("{}/replicationNetworkMappings/m", world.network("hill", "user"));
    let to = |name: &str| {
        json!({"properties": {"recoveryNetworkId":
        world.network("recovery-site", name), "recoveryFabricName": "Recovery-Site"}})
    };

    let made = api.put(&mapping, to("isolated")).await;
    assert_eq!(made.status, StatusCode::ACCEPTED, "{}", made.body);
    let shown = api.get(local(made.header("location"))).await.body;
    assert_eq!(shown["id"], mapping);
    let properties = &shown["properties"];
    assert_eq!(properties["primaryNetworkId"], world.network("hill", "user"));
    assert_eq!(properties["recoveryNetworkId"], world.network("recovery-site", "isolated"));
    assert_eq!(properties["recoveryFabricFriendlyName"], "recovery-site");
    for (name, body, status, code) in [
        ("other", to("user"), 409, "LW-0108"),
        ("m", json!({}), 400, "LW-0101"),
        ("m", to("lan"), 404, "LW-0103"),
        (
            "m",
            json!({"properties": {"recoveryNetworkId": world.network("hill", "user")}}),
            400,
            "LW-0101",
        ),
        ("a/b", to("user"), 404, "LW-0103"),
        ("a%2fb", to("user"), 400, "LW-0101"),
    ] {
        let path = format!("{}/{name}", mapping.strip_suffix("/m").unwrap());
        let reply = api.put(&path, body.clone()).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (status, code), "{name} {body}");
    }
    let patch = json!({"properties": {"recoveryNetworkId": "user"}}).to_string();
    let patched = api.send("Owner", HttpMethod::PATCH, &mapping, patch.into()).await;
    assert_eq!(patched.status, StatusCode::ACCEPTED, "{}", patched.body);
    let list = api.get(&format!("{VAULT}/replicationNetworkMappings")).await.body;
    assert_eq!(list["value"][0]["properties"]["recoveryNetworkFriendlyName"], "user");
    let networks = api.get(&format!("{}/replicationNetworks", world.fabric("hill"))).await.body;
    assert_eq!(networks["value"].as_array().unwrap().len(), 2);

    let gone = api.delete(&mapping).await;
    assert_eq!(api.get(local(gone.header("location"))).await.status, StatusCode::NO_CONTENT);
    assert_eq!(api.get(&mapping).await.status, StatusCode::NOT_FOUND);
    assert_eq!(api.delete(&mapping).await.status, StatusCode::NOT_FOUND);
}

/// F-050 to F-053: what is set and mapped is what the next machine is made with, and what the
/// machine that comes home is not made with.
#[tokio::test]
async fn what_is_set_and_mapped_counts_at_the_next_failover_and_not_at_home() {
    let mut world = World::protected().await;
    let mapping = format!("{}/replicationNetworkMappings/m", world.network("hill", "user"));
    let to = world.network("recovery-site", "isolated");
    world.api.put(&mapping, json!({"properties": {"recoveryNetworkId": to}})).await;
    let set = world
        .patch(json!({
            "recoveryAzureVMName": "web01-dr", "recoveryAzureVMSize": "2cpu-128mib",
            "vmNics": [{"nicId": NIC, "ipConfigs": [{"recoveryStaticIPAddress": "10.7.0.50"}]}]}))
        .await;
    world.ends(&set, "Succeeded").await;
    let shown = world.show().await["providerSpecificDetails"].clone();
    assert_eq!(shown["leewardTarget"]["name"], "web01-dr");
    assert_eq!(shown["leewardTarget"]["size"], "2cpu-128mib");
    assert_eq!(shown["vmNics"][0]["recoveryVMNetworkId"], to);
    assert_eq!(shown["vmNics"][0]["ipConfigs"][0]["recoveryStaticIPAddress"], "10.7.0.50");

    world.done("unplannedFailover", json!({"sourceSiteOperations": "Required"})).await;

    let (changes, name) = world.told(Site::Recovery, Purpose::Failover);
    assert_eq!(name.as_deref(), Some("web01-dr"));
    assert_eq!((changes.memory_mib, changes.cpus), (Figure::Set(128), Figure::Set(2)));
    let made = changes.nic(&card("user"), None);
    assert_eq!(made.network, "isolated");
    assert_eq!(made.address, Some("10.7.0.50".parse().unwrap()));
    let renamed =
        world.patch(json!({"recoveryAzureVMName": "other", "leewardSite": "Recovery"})).await;
    assert_eq!((renamed.status.as_u16(), renamed.code()), (409, "LW-0105"), "{}", renamed.body);

    world.done("failoverCommit", json!({})).await;
    world.done("reProtect", json!({})).await;
    world.until_state("Protected").await;
    world.done("plannedFailover", json!({"failoverDirection": "RecoveryToPrimary"})).await;

    let (changes, name) = world.told(Site::Primary, Purpose::Failover);
    assert_eq!(name.as_deref(), Some("web01"));
    assert_eq!((changes.memory_mib, changes.cpus), (Figure::Home, Figure::Home));
    assert_eq!(changes.nic(&card("isolated"), None).network, "user", "the mapping the other way");
}

/// F-091: with a network, and without.
#[tokio::test]
async fn a_test_machine_is_attached_where_it_is_asked_or_set_and_else_has_no_way_out() {
    let mut world = World::protected().await;
    let user = world.network("recovery-site", "user");
    for (set, asked, wanted) in [
        (json!(""), json!({}), None),
        (json!(""), json!({"networkType": "VmNetworkAsInput", "networkId": user}), Some("user")),
        (json!(user), json!({}), Some("user")),
        (json!(user), json!({"networkType": "NoNetworkAttachAsInput"}), None),
        (json!(user), json!({"networkId": "isolated"}), None),
    ] {
        let reply = world.patch(json!({"selectedTfoAzureNetworkId": set})).await;
        world.ends(&reply, "Succeeded").await;
        world.done("testFailover", asked.clone()).await;

        let (changes, _) = world.told(Site::Recovery, Purpose::Test);

        assert_eq!(changes.test_network.as_deref(), wanted, "{set} {asked}");
        world.done("testFailoverCleanup", json!({})).await;
    }
}

#[tokio::test]
async fn settings_out_of_bounds_are_refused_and_change_nothing() {
    let mut world = World::protected().await;
    let before = world.show().await;
    for (properties, status, code) in [
        (json!({"recoveryAzureVMName": "a/b"}), 400, "LW-0101"),
        (json!({"recoveryAzureVMName": "x".repeat(65)}), 400, "LW-0101"),
        (json!({"leewardTargetMemoryMib": 15}), 400, "LW-0101"),
        (json!({"leewardTargetCpus": 256}), 400, "LW-0101"),
        (json!({"recoveryAzureVMSize": "0cpu-64mib"}), 400, "LW-0101"),
        (json!({"selectedTfoAzureNetworkId": "lan"}), 404, "LW-0103"),
        (
            json!({"vmNics": [{"nicId": "52:54:00:00:00:02", "leewardNetworkId": "user"}]}),
            400,
            "LW-0101",
        ),
        (
            json!({"vmNics": [{"nicId": NIC, "ipConfigs": [{"recoveryStaticIPAddress":
            "127.0.0.1"}]}]}),
            400,
            "LW-0101",
        ),
        (json!({"recoveryAzureVMName": "other", "leewardSite": "Primary"}), 409, "LW-0105"),
    ] {
        let reply = world.patch(properties.clone()).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (status, code), "{properties}");
    }
    let after = world.show().await;
    for field in ["leewardTarget", "vmNics"] {
        let of = |shown: &Value| shown["providerSpecificDetails"][field].clone();
        assert_eq!(of(&after), of(&before));
    }

    let cleared = world.patch(json!({"leewardTargetMemoryMib": 64})).await;
    world.ends(&cleared, "Succeeded").await;
    let cleared = world.patch(json!({"leewardTargetMemoryMib": "", "vmNics": []})).await;
    world.ends(&cleared, "Succeeded").await;
    assert_eq!(
        world.show().await["providerSpecificDetails"]["leewardTarget"]["memoryIsSet"],
        false
    );
}
