//! Verbs of networks and their mappings: where the cards of a machine are attached that is made at
//! the other site.

use super::{
    CliError,
    session::{Session, escape, last_segment, text},
    setup::InFabric,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Verbs of networks.
#[derive(Clone, Debug, Subcommand)]
pub enum NetworkVerb {
    /// Lists the networks of a site's hosts, or of all.
    List(InFabric),
    /// Says which network at another site is the one of this site. Counts from the next machine
    /// that is made there on; the way home goes back by itself.
    Map {
        /// The network, as machine.toml names it.
        network: String,
        /// Its site.
        #[arg(long)]
        fabric: String,
        /// The network at the other site.
        #[arg(long)]
        to: String,
        /// The other site; the vault's recovery site when it is not given.
        #[arg(long)]
        target: Option<String>,
        /// Name of the mapping; network and site when it is not given.
        #[arg(long)]
        name: Option<String>,
    },
    /// Takes a mapping back. Machines that were made stay as they are.
    Unmap(Mapping),
    /// Lists the mappings.
    Mappings,
}

/// Names a mapping of networks.
#[derive(Clone, Debug, Args)]
pub struct Mapping {
    /// Its name.
    pub name: String,
}

pub(super) async fn run(session: &Session, verb: NetworkVerb) -> Result<(), CliError> {
    match verb {
        NetworkVerb::List(InFabric { fabric }) => list(session, fabric.as_deref()).await,
        NetworkVerb::Map { network, fabric, to, target, name } => {
            let target = match target {
                Some(target) => target,
                None => recovery_site(session).await?,
            };
            let name = name.unwrap_or_else(|| format!("{network}-{target}"));
            let base = session.client.vault_path();
            let body = json!({ "properties": {
                "recoveryFabricName": target,
                "recoveryNetworkId":
                    format!("{base}/replicationFabrics/{target}/replicationNetworks/{to}"),
                "fabricSpecificDetails": { "instanceType": "VmmToVmm" },
            } });
            let path = format!(
                "replicationFabrics/{}/replicationNetworks/{}/replicationNetworkMappings/{}",
                escape(&fabric),
                escape(&network),
                escape(&name)
            );
            let reply = session.client.put(&path, &body).await?;
            session.finish(&reply, &format!("map network {network} of {fabric}")).await
        }
        NetworkVerb::Unmap(Mapping { name }) => {
            let all = session.client.list("replicationNetworkMappings").await?;
            let named = |one: &&Value| text(&one["name"]).eq_ignore_ascii_case(&name);
            let mut found = all.iter().filter(named);
            let mapping = match (found.next(), found.next()) {
                (Some(only), None) => only,
                (None, _) => {
                    let what = format!("there is no network mapping {name}");
                    return Err(super::session::missing(what));
                }
                (Some(_), Some(_)) => {
                    let what = format!("several networks have a mapping {name}: rename one");
                    return Err(CliError::Usage(what));
                }
            };
            let id = text(&mapping["id"]);
            let reply = session.client.send(hyper::Method::DELETE, &id, None).await?;
            session.finish(&reply, &format!("remove network mapping {name}")).await
        }
        NetworkVerb::Mappings => {
            let mappings = session.client.list("replicationNetworkMappings").await?;
            session.list(&mappings, &["NAME", "SITE", "NETWORK", "TO SITE", "NETWORK"], |one| {
                let properties = &one["properties"];
                vec![
                    text(&one["name"]),
                    text(&properties["primaryFabricFriendlyName"]),
                    text(&properties["primaryNetworkFriendlyName"]),
                    text(&properties["recoveryFabricFriendlyName"]),
                    text(&properties["recoveryNetworkFriendlyName"]),
                ]
            });
            Ok(())
        }
    }
}

async fn recovery_site(session: &Session) -> Result<String, CliError> {
    let vault = session.client.get(session.client.vault_path()).await?;
    Ok(text(&vault["properties"]["leewardRecoverySite"]))
}

async fn list(session: &Session, fabric: Option<&str>) -> Result<(), CliError> {
    let path = match fabric {
        Some(fabric) => format!("replicationFabrics/{}/replicationNetworks", escape(fabric)),
        None => "replicationNetworks".into(),
    };
    let networks = session.client.list(&path).await?;
    session.list(&networks, &["NAME", "SITE", "KIND", "LEADS"], |network| {
        let id = text(&network["id"]);
        let fabric = id.split("/replicationNetworks/").next().unwrap_or_default();
        vec![
            text(&network["name"]),
            last_segment(fabric).to_owned(),
            text(&network["properties"]["networkType"]),
            text(&network["properties"]["leewardDescription"]),
        ]
    });
    Ok(())
}
