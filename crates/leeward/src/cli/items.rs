//! Verbs of protected items.

use super::{
    CliError,
    follow::Patience,
    points,
    session::{Session, escape, is_not_found, missing, text, texts},
    table::bytes,
};
use crate::client::Reply;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Verbs of protected items.
#[derive(Clone, Debug, Subcommand)]
pub enum ItemVerb {
    /// Protects a machine. With --wait: until it is Protected.
    Enable {
        /// Name of the new item.
        name: String,
        /// The site of the machine.
        #[arg(long)]
        fabric: String,
        /// The machine, by name or id; the item's name when it is not given.
        #[arg(long)]
        machine: Option<String>,
        /// The policy; a mapping of the site must name it.
        #[arg(long)]
        policy: String,
    },
    /// Shows everything about an item.
    Show(Named),
    /// Lists the items.
    List,
    /// Ends protection.
    Disable {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// Keep the recovery points in the store.
        #[arg(long)]
        keep_points: bool,
        /// Forget the item without asking its hosts.
        #[arg(long, conflicts_with = "keep_points")]
        purge: bool,
    },
    /// Starts a test machine in a network with no way out. With --wait: until it runs.
    TestFailover {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// latest, latest-processed, or a point's id or name.
        #[arg(long, default_value = "latest-processed")]
        point: String,
    },
    /// Removes the test machine.
    TestCleanup {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// What the test showed.
        #[arg(long, default_value = "")]
        comments: String,
    },
    /// Fails over: the machine starts at the other site.
    #[command(visible_alias = "unplanned-failover")]
    Failover {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// latest, latest-processed, or a point's id or name.
        #[arg(long, default_value = "latest")]
        point: String,
        /// Leave the source machine alone instead of shutting it down first.
        #[arg(long)]
        no_shutdown: bool,
    },
    /// Takes a failover back.
    FailoverCancel(Named),
    /// Moves a failed-over machine to another point; its work is kept as a point.
    ChangePoint {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// The point, by id or name.
        #[arg(long)]
        point: String,
    },
    /// Makes a failover final.
    Commit(Named),
    /// Compares source and target and sends what differs.
    Resync(Named),
    /// Fails over without loss while both sites are up.
    PlannedFailover(Named),
    /// Replicates back to where the machine came from.
    #[command(visible_alias = "reverse-replicate")]
    Reprotect(Named),
}

/// Names a protected item.
#[derive(Clone, Debug, Args)]
pub struct Named {
    /// Name of the item.
    pub name: String,
    /// Its site, when several sites have an item of this name.
    #[arg(long)]
    pub fabric: Option<String>,
}

impl Named {
    /// The item as the server shows it.
    pub(super) async fn find(&self, session: &Session) -> Result<Value, CliError> {
        session.item(&self.name, self.fabric.as_deref()).await
    }
}

pub(super) async fn run(session: &Session, verb: ItemVerb) -> Result<(), CliError> {
    match verb {
        ItemVerb::Enable { name, fabric, machine, policy } => {
            let machine = machine.as_deref().unwrap_or(&name).to_owned();
            enable(session, &name, &fabric, &machine, &policy).await
        }
        ItemVerb::Show(item) => {
            show(session, &item.find(session).await?);
            Ok(())
        }
        ItemVerb::List => list(session).await,
        ItemVerb::Disable { item, keep_points, purge } => {
            disable(session, &item, keep_points, purge).await
        }
        ItemVerb::TestFailover { item, point } => {
            let found = item.find(session).await?;
            let details = choice(session, &found, &point).await?;
            let body = json!({
                "failoverDirection": found["properties"]["leewardDirection"],
                "providerSpecificDetails": details,
            });
            act(session, &found, "testFailover", body, "test failover").await
        }
        ItemVerb::TestCleanup { item, comments } => {
            let found = item.find(session).await?;
            let body = json!({ "comments": comments });
            act(session, &found, "testFailoverCleanup", body, "clean up the test").await
        }
        ItemVerb::Failover { item, point, no_shutdown } => {
            let found = item.find(session).await?;
            let details = choice(session, &found, &point).await?;
            let body = json!({
                "failoverDirection": found["properties"]["leewardDirection"],
                "sourceSiteOperations": if no_shutdown { "NotRequired" } else { "Required" },
                "providerSpecificDetails": details,
            });
            act(session, &found, "unplannedFailover", body, "failover").await
        }
        ItemVerb::ChangePoint { item, point } => {
            let found = item.find(session).await?;
            let point = points::find(session, &found, &point).await?;
            let body = json!({
                "recoveryPointId": point["id"],
                "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" },
            });
            act(session, &found, "applyRecoveryPoint", body, "change of point").await
        }
        ItemVerb::FailoverCancel(item) => plain(session, &item, "failoverCancel").await,
        ItemVerb::Commit(item) => plain(session, &item, "failoverCommit").await,
        ItemVerb::Resync(item) => plain(session, &item, "repairReplication").await,
        ItemVerb::PlannedFailover(item) => plain(session, &item, "plannedFailover").await,
        ItemVerb::Reprotect(item) => plain(session, &item, "reProtect").await,
    }
}

/// A verb that says nothing but its name.
async fn plain(session: &Session, item: &Named, verb: &str) -> Result<(), CliError> {
    let found = item.find(session).await?;
    act(session, &found, verb, json!({}), verb).await
}

async fn act(
    session: &Session,
    item: &Value,
    verb: &str,
    properties: Value,
    what: &str,
) -> Result<(), CliError> {
    let path = format!("{}/{verb}", text(&item["id"]));
    let reply = session.client.post(&path, &json!({ "properties": properties })).await?;
    session.finish(&reply, &format!("{what} of {}", text(&item["name"]))).await
}

/// The fields that choose a point.
async fn choice(session: &Session, item: &Value, point: &str) -> Result<Value, CliError> {
    // The input's type is advisory: the server reads the fields.
    let kind = "HyperVReplicaAzure";
    Ok(match point.to_ascii_lowercase().as_str() {
        "latest" => json!({ "instanceType": kind, "recoveryPointType": "Latest" }),
        "latest-processed" => {
            json!({ "instanceType": kind, "recoveryPointType": "LatestProcessed" })
        }
        _ => {
            let point = points::find(session, item, point).await?;
            json!({ "instanceType": kind, "recoveryPointId": point["id"] })
        }
    })
}

async fn enable(
    session: &Session,
    name: &str,
    fabric: &str,
    machine: &str,
    policy: &str,
) -> Result<(), CliError> {
    let container = session.container(fabric).await?;
    let machines = session.client.list(&format!("{container}/replicationProtectableItems")).await?;
    let same =
        |value: &Value| value.as_str().is_some_and(|value| value.eq_ignore_ascii_case(machine));
    let mut found = machines
        .iter()
        .filter(|one| same(&one["name"]) || same(&one["properties"]["friendlyName"]));
    let machine = match (found.next(), found.next()) {
        (Some(only), None) => only,
        (None, _) => return Err(missing(format!("site {fabric} has no machine {machine}"))),
        (Some(_), Some(_)) => {
            let what = format!("several machines are called {machine}; give one's id");
            return Err(CliError::Usage(what));
        }
    };
    let base = session.client.vault_path();
    let body = json!({ "properties": {
        "policyId": format!("{base}/replicationPolicies/{policy}"),
        "protectableItemId": machine["id"],
        "providerSpecificDetails": {},
    } });
    let path = format!("{container}/replicationProtectedItems/{}", escape(name));
    let reply = session.client.put(&path, &body).await?;
    if session.wait {
        wait_protected(session, &reply, &path, name).await?;
    }
    session.finish(&reply, &format!("protect {name}")).await
}

/// Waits for the first copy, which goes on after the job that enables has ended.
async fn wait_protected(
    session: &Session,
    reply: &Reply,
    path: &str,
    name: &str,
) -> Result<(), CliError> {
    session.settle(reply, &format!("protecting {name}")).await?;
    let mut patience = Patience::of(session);
    let mut told = String::new();
    loop {
        let item = session.client.get(path).await?;
        let properties = &item["properties"];
        if properties["protectionState"] == "Protected" {
            return Ok(());
        }
        let details = &properties["providerSpecificDetails"]["initialReplicationDetails"];
        let percent = text(&details["initialReplicationProgressPercentage"]);
        let line =
            format!("{name}: {} {percent} %", text(&properties["protectionStateDescription"]));
        if line != told {
            session.say(&line);
            told = line;
        }
        patience.pause(&format!("the first copy of {name}")).await?;
    }
}

async fn disable(
    session: &Session,
    item: &Named,
    keep_points: bool,
    purge: bool,
) -> Result<(), CliError> {
    let found = item.find(session).await?;
    let id = text(&found["id"]);
    let what = format!("end the protection of {}", item.name);
    let reply = if purge {
        session.client.send(hyper::Method::DELETE, &id, None).await?
    } else {
        let body = json!({ "properties": {
            "disableProtectionReason": "NotSpecified",
            "leewardKeepPoints": keep_points,
        } });
        session.client.post(&format!("{id}/remove"), &body).await?
    };
    match session.finish(&reply, &what).await {
        Err(CliError::Client(error)) if session.wait && is_not_found(&error) => Ok(()),
        other => other,
    }
}

async fn list(session: &Session) -> Result<(), CliError> {
    let items = session.client.list("replicationProtectedItems").await?;
    let heads = ["NAME", "FROM", "TO", "STATE", "LIVE AT", "RPO", "POINTS", "HEALTH", "POLICY"];
    session.list(&items, &heads, |item| {
        let properties = &item["properties"];
        let details = &properties["providerSpecificDetails"];
        vec![
            text(&item["name"]),
            text(&properties["primaryFabricFriendlyName"]),
            text(&properties["recoveryFabricFriendlyName"]),
            text(&properties["protectionStateDescription"]),
            text(&details["leewardLiveAt"]),
            rpo(details),
            text(&details["leewardPoints"]),
            text(&properties["replicationHealth"]),
            text(&properties["policyFriendlyName"]),
        ]
    });
    Ok(())
}

fn rpo(details: &Value) -> String {
    details["leewardRpoSeconds"].as_u64().map(|seconds| format!("{seconds} s")).unwrap_or_default()
}

fn show(session: &Session, item: &Value) {
    let properties = &item["properties"];
    let details = &properties["providerSpecificDetails"];
    let size = |name: &str| details[name].as_f64().map(bytes).unwrap_or_default();
    let state = format!(
        "{} ({})",
        text(&properties["protectionState"]),
        text(&properties["protectionStateDescription"])
    );
    let copied = &details["initialReplicationDetails"]["initialReplicationProgressPercentage"];
    let newest = &details["leewardNewestPoint"];
    session.show(
        item,
        &[
            ("name", text(&item["name"])),
            ("state", state),
            ("live at", text(&details["leewardLiveAt"])),
            ("because", text(&details["leewardLiveEvidence"])),
            ("source", text(&details["leewardSourceState"]["state"])),
            ("source host", text(&details["leewardSourceHost"])),
            ("target host", text(&details["leewardTargetHost"])),
            ("test failover", text(&properties["testFailoverStateDescription"])),
            ("replication", text(&properties["replicationHealth"])),
            ("failover", text(&properties["failoverHealth"])),
            ("copied", format!("{} %", text(copied))),
            (
                "estimate",
                details["leewardEstimateSeconds"].as_u64().map(seconds).unwrap_or_default(),
            ),
            ("RPO", rpo(details)),
            ("newest point", text(&newest["cutAt"])),
            ("points", text(&details["leewardPoints"])),
            ("sent", size("leewardSentBytes")),
            ("stored", size("leewardStoredBytes")),
            ("policy", text(&properties["policyFriendlyName"])),
            ("epoch", text(&details["leewardEpoch"])),
            ("allowed now", texts(&properties["allowedOperations"])),
        ],
    );
    for instance in details["leewardInstances"].as_array().into_iter().flatten() {
        let percent = instance["hydratedPercent"].as_f64();
        let runs = percent.filter(|percent| *percent < 100.0);
        let runs = runs.map(|percent| format!(", runs from the store: {percent:.0} %"));
        session.say(&format!(
            "{} machine: {}{}",
            text(&instance["purpose"]),
            text(&instance["machineState"]),
            runs.unwrap_or_default()
        ));
    }
    for error in properties["healthErrors"].as_array().into_iter().flatten() {
        session.say(&format!(
            "{}: {}\n  cause: {}\n  now:   {}\n  do:    {}",
            text(&error["errorCode"]),
            text(&error["errorMessage"]),
            text(&error["possibleCauses"]),
            text(&error["leewardCurrentState"]),
            text(&error["recommendedAction"])
        ));
    }
}

fn seconds(count: u64) -> String {
    format!("{count} s")
}
