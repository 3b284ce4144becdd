//! Verbs up to the moment a machine can be protected: vaults, sites, keys, hosts, policies,
//! mappings.

use super::{
    CliError,
    session::{Session, escape, text, texts},
    table::bytes,
};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

/// Verbs of vaults.
#[derive(Clone, Debug, Subcommand)]
pub enum VaultVerb {
    /// Makes the vault that --vault names, with its recovery site.
    Create {
        /// Any text that says where it is.
        #[arg(long, default_value = "here")]
        location: String,
    },
    /// Lists the vaults of the resource group.
    List,
    /// Shows the vault that --vault names.
    Show,
}

/// Verbs of fabrics.
#[derive(Clone, Debug, Subcommand)]
pub enum FabricVerb {
    /// Makes a site that hosts can join.
    Create {
        /// Its name.
        name: String,
    },
    /// Lists the sites.
    List,
}

/// Verbs of registration keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyVerb {
    /// Makes a key by which one host joins a site. It is shown once: standard output is the key and
    /// nothing else, to be kept in a file.
    Create {
        /// The site.
        #[arg(long)]
        fabric: String,
        /// How long it is valid, in minutes.
        #[arg(long, default_value_t = 60)]
        minutes: u32,
    },
}

/// Verbs of hosts.
#[derive(Clone, Debug, Subcommand)]
pub enum HostVerb {
    /// Lists the hosts of a site or of all.
    List(InFabric),
}

/// Verbs of machines.
#[derive(Clone, Debug, Subcommand)]
pub enum MachineVerb {
    /// Lists the machines of a site or of all.
    List(InFabric),
}

/// Narrows a list to one site.
#[derive(Clone, Debug, Args)]
pub struct InFabric {
    /// The site; all when it is not given.
    #[arg(long)]
    pub fabric: Option<String>,
}

/// Verbs of policies.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyVerb {
    /// Makes a policy, or sets an existing one anew.
    Create(PolicyNumbers),
    /// Lists the policies.
    List,
}

/// What a policy says. What is not given has the server's default.
#[derive(Clone, Debug, Args)]
pub struct PolicyNumbers {
    /// Its name.
    pub name: String,
    /// Seconds between recovery points, 1 to 3600; fractions are allowed.
    #[arg(long, value_name = "SECONDS")]
    pub interval: Option<f64>,
    /// Seconds for which points are kept.
    #[arg(long, value_name = "SECONDS")]
    pub retention: Option<u64>,
    /// An RPO above this, in seconds, is a health error.
    #[arg(long, value_name = "SECONDS")]
    pub rpo_threshold: Option<u64>,
    /// Seconds that a guest may take to shut down before a failover goes on without it.
    #[arg(long, value_name = "SECONDS")]
    pub shutdown_timeout: Option<u64>,
    /// Seconds for which points are kept after a commit.
    #[arg(long, value_name = "SECONDS")]
    pub keep_after_commit: Option<u64>,
    /// A planned failover goes on to protect the machine the other way by itself.
    #[arg(long)]
    pub auto_reverse: Option<bool>,
    /// More changed bytes than this share of the disks, in percent, 1 to 100, are compared with
    /// the replica instead of sent as a delta.
    #[arg(long, value_name = "PERCENT")]
    pub resync_threshold: Option<u8>,
    /// When a comparison that has become necessary may begin by itself: HH:MM-HH:MM in UTC, may
    /// go over midnight; `none` is at any time.
    #[arg(long, value_name = "WINDOW")]
    pub resync_window: Option<String>,
    /// Bytes a second that may be sent, and windows of the week with their own limit, in UTC:
    /// `BYTES|none[; DAYS HH:MM-HH:MM=BYTES|none]…`, as in `none; mon-fri 08:00-18:00=2000000`.
    #[arg(long, value_name = "LIMIT")]
    pub bandwidth: Option<String>,
}

/// Verbs of mappings.
#[derive(Clone, Debug, Subcommand)]
pub enum MappingVerb {
    /// Says that a site may be replicated under a policy.
    Create {
        /// Its name.
        name: String,
        /// The source site.
        #[arg(long)]
        fabric: String,
        /// The policy.
        #[arg(long)]
        policy: String,
        /// The target site; the vault's recovery site when it is not given.
        #[arg(long)]
        target: Option<String>,
    },
    /// Lists the mappings.
    List,
}

pub(super) async fn vault(session: &Session, verb: VaultVerb) -> Result<(), CliError> {
    let row = |vault: &Value| {
        vec![
            text(&vault["name"]),
            text(&vault["location"]),
            text(&vault["properties"]["leewardRecoverySite"]),
            text(&vault["properties"]["leewardProtectedItems"]),
        ]
    };
    let heads = ["NAME", "LOCATION", "RECOVERY SITE", "ITEMS"];
    match verb {
        VaultVerb::Create { location } => {
            let body = json!({
                "location": location,
                "sku": { "name": "RS0", "tier": "Standard" },
                "properties": {},
            });
            let reply = session.client.put(session.client.vault_path(), &body).await?;
            session.show(&reply.body, &[("made vault", session.vault.clone())]);
        }
        VaultVerb::List => {
            let vaults = session.client.list(&session.group).await?;
            session.list(&vaults, &heads, row);
        }
        VaultVerb::Show => {
            let vault = session.client.get(session.client.vault_path()).await?;
            let health = session.client.get("replicationVaultHealth").await?;
            let errors = health["properties"]["vaultErrors"].as_array().into_iter().flatten();
            let errors: Vec<_> = errors
                .map(|error| {
                    format!("{} {}", text(&error["errorCode"]), text(&error["summaryMessage"]))
                })
                .collect();
            let ready = if errors.is_empty() { "yes".to_owned() } else { errors.join("; ") };
            session.show(
                &vault,
                &[
                    ("name", text(&vault["name"])),
                    ("location", text(&vault["location"])),
                    ("recovery site", text(&vault["properties"]["leewardRecoverySite"])),
                    ("protected items", text(&vault["properties"]["leewardProtectedItems"])),
                    ("ready", ready),
                    ("id", text(&vault["id"])),
                ],
            );
        }
    }
    Ok(())
}

pub(super) async fn fabric(session: &Session, verb: FabricVerb) -> Result<(), CliError> {
    match verb {
        FabricVerb::Create { name } => {
            let path = format!("replicationFabrics/{}", escape(&name));
            let reply = session.client.put(&path, &json!({ "properties": {} })).await?;
            session.finish(&reply, &format!("make site {name}")).await
        }
        FabricVerb::List => {
            let fabrics = session.client.list("replicationFabrics").await?;
            session.list(&fabrics, &["NAME", "KIND", "HOSTS", "HEALTH"], |fabric| {
                let properties = &fabric["properties"];
                let details = &properties["customDetails"];
                let hosts = details["hyperVHosts"].as_array().into_iter().flatten();
                let hosts: Vec<_> = hosts.map(|host| text(&host["name"])).collect();
                vec![
                    text(&fabric["name"]),
                    text(&details["leewardKind"]),
                    hosts.join(", "),
                    text(&properties["health"]),
                ]
            });
            Ok(())
        }
    }
}

pub(super) async fn key(session: &Session, verb: KeyVerb) -> Result<(), CliError> {
    let KeyVerb::Create { fabric, minutes } = verb;
    let path = format!("certificates/{}", escape(&fabric));
    let body = json!({ "properties": { "leewardFabric": fabric, "leewardValidMinutes": minutes } });
    let reply = session.client.put(&path, &body).await?;
    let properties = &reply.body["properties"];
    session.show_secret(&reply.body, &text(&properties["leewardRegistrationKey"]));
    eprintln!(
        "admits one host to site {}, until {}: leeward host --join ADDRESS --key-file FILE",
        text(&properties["leewardFabric"]),
        text(&properties["validTo"]),
    );
    Ok(())
}

pub(super) async fn host(session: &Session, verb: HostVerb) -> Result<(), CliError> {
    let HostVerb::List(InFabric { fabric }) = verb;
    let path = match fabric {
        Some(fabric) => {
            format!("replicationFabrics/{}/replicationRecoveryServicesProviders", escape(&fabric))
        }
        None => "replicationRecoveryServicesProviders".into(),
    };
    let hosts = session.client.list(&path).await?;
    let heads =
        ["NAME", "SITE", "CONNECTION", "PROGRAM", "ACCEL", "MACHINES", "ITEMS", "STORE FREE"];
    session.list(&hosts, &heads, |host| {
        let properties = &host["properties"];
        vec![
            text(&host["name"]),
            text(&properties["fabricFriendlyName"]),
            text(&properties["connectionStatus"]),
            text(&properties["providerVersion"]),
            text(&properties["leewardAccelerator"]),
            text(&properties["leewardMachines"]),
            text(&properties["protectedItemCount"]),
            properties["leewardStoreFreeBytes"].as_f64().map(bytes).unwrap_or_default(),
        ]
    });
    Ok(())
}

pub(super) async fn machine(session: &Session, verb: MachineVerb) -> Result<(), CliError> {
    let MachineVerb::List(InFabric { fabric }) = verb;
    let path = match fabric {
        Some(fabric) => {
            format!("replicationFabrics/{}/replicationProtectionContainers", escape(&fabric))
        }
        None => "replicationProtectionContainers".into(),
    };
    let mut machines = Vec::new();
    for container in session.client.list(&path).await? {
        let id = text(&container["id"]);
        machines.extend(session.client.list(&format!("{id}/replicationProtectableItems")).await?);
    }
    let heads = ["NAME", "HOST", "STATE", "DISKS", "SIZE", "PROTECTION", "OBSTACLES"];
    session.list(&machines, &heads, |machine| {
        let properties = &machine["properties"];
        let details = &properties["customDetails"];
        let disks = details["diskDetails"].as_array().map_or(&[][..], Vec::as_slice);
        let size: u64 = disks.iter().filter_map(|disk| disk["leewardSizeBytes"].as_u64()).sum();
        vec![
            text(&properties["friendlyName"]),
            text(&details["leewardHost"]),
            text(&details["leewardMachineState"]),
            disks.len().to_string(),
            bytes(size as f64),
            text(&properties["protectionStatus"]),
            texts(&properties["protectionReadinessErrors"]),
        ]
    });
    Ok(())
}

pub(super) async fn policy(session: &Session, verb: PolicyVerb) -> Result<(), CliError> {
    match verb {
        PolicyVerb::Create(numbers) => {
            let mut input = Map::new();
            input.insert("instanceType".into(), json!("HyperVReplica2012R2"));
            for (name, value) in [
                ("leewardPointIntervalSeconds", numbers.interval.map(Value::from)),
                ("leewardRetentionSeconds", numbers.retention.map(Value::from)),
                ("leewardRpoThresholdSeconds", numbers.rpo_threshold.map(Value::from)),
                ("leewardShutdownTimeoutSeconds", numbers.shutdown_timeout.map(Value::from)),
                ("leewardKeepAfterCommitSeconds", numbers.keep_after_commit.map(Value::from)),
                ("leewardAutoReverse", numbers.auto_reverse.map(Value::from)),
                ("leewardResyncThresholdPercent", numbers.resync_threshold.map(Value::from)),
                ("leewardResyncWindow", numbers.resync_window.map(Value::from)),
                ("leewardBandwidth", numbers.bandwidth.map(Value::from)),
            ] {
                if let Some(value) = value {
                    input.insert(name.into(), value);
                }
            }
            let path = format!("replicationPolicies/{}", escape(&numbers.name));
            let body = json!({ "properties": { "providerSpecificInput": input } });
            let reply = session.client.put(&path, &body).await?;
            session.finish(&reply, &format!("make policy {}", numbers.name)).await
        }
        PolicyVerb::List => {
            let policies = session.client.list("replicationPolicies").await?;
            let heads =
                ["NAME", "INTERVAL", "RETENTION", "RPO THRESHOLD", "SHUTDOWN", "RESYNC", "ITEMS"];
            session.list(&policies, &heads, |policy| {
                let details = &policy["properties"]["providerSpecificDetails"];
                let seconds = |name: &str| format!("{} s", text(&details[name]));
                vec![
                    text(&policy["name"]),
                    seconds("leewardPointIntervalSeconds"),
                    seconds("leewardRetentionSeconds"),
                    seconds("leewardRpoThresholdSeconds"),
                    seconds("leewardShutdownTimeoutSeconds"),
                    resync(details),
                    text(&policy["properties"]["leewardProtectedItems"]),
                ]
            });
            Ok(())
        }
    }
}

/// Above which share of the disks, and when, a policy has source and target compared.
fn resync(details: &Value) -> String {
    let percent = text(&details["leewardResyncThresholdPercent"]);
    match details["leewardResyncWindow"].as_str() {
        None | Some("none") => format!("{percent} %"),
        Some(window) => format!("{percent} %, {window} UTC"),
    }
}

pub(super) async fn mapping(session: &Session, verb: MappingVerb) -> Result<(), CliError> {
    match verb {
        MappingVerb::Create { name, fabric, policy, target } => {
            let target = match target {
                Some(target) => Some(session.container(&target).await?),
                None => None,
            };
            let base = session.client.vault_path();
            let body = json!({ "properties": {
                "policyId": format!("{base}/replicationPolicies/{policy}"),
                "targetProtectionContainerId": target,
                "providerSpecificInput": {},
            } });
            let container = session.container(&fabric).await?;
            let name_in_path = escape(&name);
            let path = format!("{container}/replicationProtectionContainerMappings/{name_in_path}");
            let reply = session.client.put(&path, &body).await?;
            session.finish(&reply, &format!("make mapping {name}")).await
        }
        MappingVerb::List => {
            let path = "replicationProtectionContainerMappings";
            let mappings = session.client.list(path).await?;
            session.list(&mappings, &["NAME", "FROM", "TO", "POLICY"], |mapping| {
                let properties = &mapping["properties"];
                vec![
                    text(&mapping["name"]),
                    text(&properties["sourceFabricFriendlyName"]),
                    text(&properties["targetFabricFriendlyName"]),
                    text(&properties["policyFriendlyName"]),
                ]
            });
            Ok(())
        }
    }
}
