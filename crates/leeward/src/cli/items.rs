//! Verbs of protected items. Moving a machine and bringing it home is in `home`, how items are
//! shown in `item_show`.

use super::{
    CliError,
    follow::Patience,
    home::{self, Planned},
    item_set, item_show, points,
    session::{Session, escape, is_not_found, missing, text},
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
    /// Sets what the machines that are made of the item are like: name, memory, processors,
    /// networks, addresses. Counts from the next failover or test failover on.
    Set(item_set::Settings),
    /// Ends protection.
    Disable {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// Keep the recovery points in the store.
        #[arg(long)]
        keep_points: bool,
        /// Wait for no host that is away: what it has of the item stays there.
        #[arg(long, conflicts_with = "keep_points")]
        purge: bool,
        /// The machine stays where it is for good: there is no way back in this item. The old
        /// machine is left off and is not deleted.
        #[arg(long, conflicts_with = "purge")]
        migration_complete: bool,
    },
    /// Starts a test machine, in a network with no way out unless another one is asked for or set.
    /// With --wait: until it runs.
    TestFailover {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// latest, latest-processed, or a point's id or name.
        #[arg(long, default_value = "latest-processed")]
        point: String,
        /// The network of all its cards.
        #[arg(long)]
        network: Option<String>,
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
    Resync {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// What the comparison goes by: the hashes that both ends keep, or nothing: then the store
        /// reads and hashes anew all that it holds of the machine.
        #[arg(long, value_enum, default_value_t)]
        verify: Verify,
    },
    /// Moves the machine to the other site, out or home, with nothing lost.
    ///
    /// While it runs, the sites are brought in step. Then it is shut down, the rest is sent, and
    /// it starts at the other site. A committed machine that nothing replicates is reprotected
    /// first, by the same request; cancelled in that, it ends protected the other way. A machine
    /// that does not shut down is left running, and the job
    /// asks: `job resume` to try again, `job resume --comment power-off` to switch it off,
    /// `job cancel` to leave everything as it was.
    PlannedFailover(Planned),
    /// Lets a planned failover that waits for it shut the machine down and finish.
    CompleteFailover {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// What is noted in the job.
        #[arg(long)]
        comment: Option<String>,
    },
    /// Replicates a failed-over machine back to where it came from. With --wait: until Protected.
    ///
    /// An old machine there is fenced first; its disks are compared where they lie and never
    /// written, and only what differs is sent. Without old disks everything is sent.
    #[command(visible_alias = "reverse-replicate")]
    Reprotect {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// Another host to replicate to, by name; it must have joined a site.
        #[arg(long)]
        host: Option<String>,
        /// What source and target are compared by.
        #[arg(long, value_enum, default_value_t)]
        verify: Verify,
    },
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
            item_show::show(session, &item.find(session).await?);
            Ok(())
        }
        ItemVerb::List => item_show::list(session).await,
        ItemVerb::Set(settings) => item_set::run(session, settings).await,
        ItemVerb::Disable { item, keep_points, purge, migration_complete } => {
            if purge {
                return disable(session, &item, End::Purged).await;
            }
            disable(session, &item, End::Asked { keep_points, migration_complete }).await
        }
        ItemVerb::TestFailover { item, point, network } => {
            test_failover(session, &item, &point, network.as_deref()).await
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
        ItemVerb::Resync { item, verify } => {
            let found = item.find(session).await?;
            let properties = verify.fields();
            act(session, &found, "repairReplication", properties, "repairReplication").await
        }
        ItemVerb::PlannedFailover(planned) => home::planned_failover(session, &planned).await,
        ItemVerb::CompleteFailover { item, comment } => {
            home::complete_failover(session, &item, comment.as_deref()).await
        }
        ItemVerb::Reprotect { item, host, verify } => {
            home::reprotect(session, &item, host.as_deref(), verify).await
        }
    }
}

/// What a comparison goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Verify {
    /// The hashes of what was replicated.
    #[default]
    Hashes,
    /// Nothing that was hashed before.
    Full,
}

impl Verify {
    /// The fields of a request that say it.
    pub(super) fn fields(self) -> Value {
        match self {
            Verify::Hashes => json!({}),
            Verify::Full => json!({ "leewardVerify": "full" }),
        }
    }
}

async fn test_failover(
    session: &Session,
    item: &Named,
    point: &str,
    network: Option<&str>,
) -> Result<(), CliError> {
    let found = item.find(session).await?;
    let details = choice(session, &found, point).await?;
    let body = json!({
        "failoverDirection": found["properties"]["leewardDirection"],
        "networkType": network.map(|_| "VmNetworkAsInput"),
        "networkId": network,
        "providerSpecificDetails": details,
    });
    act(session, &found, "testFailover", body, "test failover").await
}

/// A verb that says nothing but its name.
async fn plain(session: &Session, item: &Named, verb: &str) -> Result<(), CliError> {
    let found = item.find(session).await?;
    act(session, &found, verb, json!({}), verb).await
}

pub(super) async fn act(
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
pub(super) async fn choice(
    session: &Session,
    item: &Value,
    point: &str,
) -> Result<Value, CliError> {
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

/// Waits for the copy or comparison, which goes on after the job that asked for it has ended.
pub(super) async fn wait_protected(
    session: &Session,
    reply: &Reply,
    path: &str,
    name: &str,
) -> Result<(), CliError> {
    session.settle(reply, &format!("the job that protects {name}")).await?;
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
        patience.pause(&format!("{name} to be Protected")).await?;
    }
}

/// How protection ends.
enum End {
    /// Without asking the hosts.
    Purged,
    /// By the hosts.
    Asked { keep_points: bool, migration_complete: bool },
}

async fn disable(session: &Session, item: &Named, end: End) -> Result<(), CliError> {
    let found = item.find(session).await?;
    let id = text(&found["id"]);
    let what = format!("end the protection of {}", item.name);
    let reply = match end {
        End::Purged => session.client.send(hyper::Method::DELETE, &id, None).await?,
        End::Asked { keep_points, migration_complete } => {
            let reason = if migration_complete { "MigrationComplete" } else { "NotSpecified" };
            let body = json!({ "properties": {
                "disableProtectionReason": reason,
                "leewardKeepPoints": keep_points,
            } });
            session.client.post(&format!("{id}/remove"), &body).await?
        }
    };
    match session.finish(&reply, &what).await {
        Err(CliError::Client(error)) if session.wait && is_not_found(&error) => Ok(()),
        other => other,
    }
}
