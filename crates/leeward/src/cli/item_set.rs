//! `item set`: what is set of the machines that are made of an item.

use super::{
    CliError,
    items::Named,
    session::{Session, text},
};
use clap::Args;
use serde_json::{Map, Value, json};

/// What is set. What is not given stays as it is; an empty value takes a setting back.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields say it")]
    pub item: Named,
    /// The site whose machines are meant; the one that receives when it is not given.
    #[arg(long, value_parser = ["primary", "recovery"])]
    pub site: Option<String>,
    /// Name of the machine there: letters, digits, `.`, `_`, `-`, at most 64.
    #[arg(long)]
    pub name_there: Option<String>,
    /// Memory in MiB, 16 to 4194304.
    #[arg(long, value_name = "MIB")]
    pub memory: Option<String>,
    /// Virtual processors, 1 to 255.
    #[arg(long)]
    pub cpus: Option<String>,
    /// The network of all cards, or with --nic of that one.
    #[arg(long)]
    pub network: Option<String>,
    /// The card, by its hardware address, that --network, --address and --test-address mean.
    #[arg(long, value_name = "MAC")]
    pub nic: Option<String>,
    /// The address that the network gives the card when its guest asks by DHCP.
    #[arg(long, requires = "nic")]
    pub address: Option<String>,
    /// The same in a test failover.
    #[arg(long, requires = "nic")]
    pub test_address: Option<String>,
    /// The network of test machines; `isolated`, or an empty value, has no way out.
    #[arg(long)]
    pub test_network: Option<String>,
}

/// The body that says it.
fn body(set: &Settings) -> Value {
    let mut properties = Map::new();
    for (field, value) in [
        ("leewardSite", &set.site),
        ("recoveryAzureVMName", &set.name_there),
        ("leewardTargetMemoryMib", &set.memory),
        ("leewardTargetCpus", &set.cpus),
        ("selectedTfoAzureNetworkId", &set.test_network),
        ("selectedSourceNicId", &set.nic),
        ("selectedRecoveryAzureNetworkId", &set.network),
    ] {
        if let Some(value) = value {
            properties.insert(field.into(), json!(value));
        }
    }
    let addresses = set.address.is_some() || set.test_address.is_some();
    if let Some(nic) = set.nic.as_ref().filter(|_| addresses) {
        let config = json!({
            "ipConfigName": "ipConfig1",
            "isPrimary": true,
            "recoveryStaticIPAddress": set.address,
            "tfoStaticIPAddress": set.test_address,
        });
        properties.insert("vmNics".into(), json!([{ "nicId": nic, "ipConfigs": [config] }]));
    }
    json!({ "properties": properties })
}

pub(super) async fn run(session: &Session, set: Settings) -> Result<(), CliError> {
    let found = set.item.find(session).await?;
    let id = text(&found["id"]);
    let reply = session.client.send(hyper::Method::PATCH, &id, Some(&body(&set))).await?;
    session.finish(&reply, &format!("settings of {}", text(&found["name"]))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_sent_and_an_empty_value_is() {
        let item = Named { name: "web01".into(), fabric: None };
        let none = Settings {
            item,
            site: None,
            name_there: None,
            memory: None,
            cpus: None,
            network: None,
            nic: None,
            address: None,
            test_address: None,
            test_network: None,
        };
        assert_eq!(body(&none), json!({"properties": {}}));

        let some = Settings {
            memory: Some(String::new()),
            nic: Some("52:54:00:00:00:01".into()),
            address: Some("10.0.2.50".into()),
            ..none
        };
        let body = body(&some);
        assert_eq!(body["properties"]["leewardTargetMemoryMib"], "");
        let nic = &body["properties"]["vmNics"][0];
        assert_eq!(nic["ipConfigs"][0]["recoveryStaticIPAddress"], "10.0.2.50");
        assert_eq!(nic["ipConfigs"][0]["tfoStaticIPAddress"], Value::Null);
    }
}
