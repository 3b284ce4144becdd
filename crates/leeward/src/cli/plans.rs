//! Verbs of recovery plans: which machines go together, in which order, and all of them at once.
//! Groups with actions are written as the API takes them, in a file.

use super::{
    CliError,
    session::{Session, escape, text, texts},
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

/// Verbs of recovery plans.
#[derive(Clone, Debug, Subcommand)]
pub enum PlanVerb {
    /// Makes a plan or replaces it.
    Create {
        /// Its name.
        name: String,
        /// The site where its machines are protected.
        #[arg(long)]
        primary: String,
        /// The site that they go to.
        #[arg(long, default_value = "recovery-site")]
        recovery: String,
        /// A boot group: items with commas. Again for the next group, up to 7.
        #[arg(long = "group", required = true, value_name = "ITEM,ITEM")]
        groups: Vec<String>,
    },
    /// Replaces all groups of a plan by those of a JSON file: a list, as the API takes it.
    SetGroups {
        /// Its name.
        name: String,
        /// The file; - for standard input.
        file: std::path::PathBuf,
    },
    /// Lists the plans.
    List,
    /// Shows a plan with its groups and actions.
    Show(OfPlan),
    /// Removes a plan; its machines stay as they are.
    Delete(OfPlan),
    /// Starts test machines of all items, group by group.
    TestFailover(Run),
    /// Removes the test machines.
    TestCleanup {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        plan: OfPlan,
        /// What the test showed.
        #[arg(long, default_value = "")]
        comments: String,
    },
    /// Fails all items over, group by group; goes on when one fails.
    #[command(visible_alias = "unplanned-failover")]
    Failover {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        run: Run,
        /// Leave the source machines alone instead of shutting them down first.
        #[arg(long)]
        no_shutdown: bool,
    },
    /// Moves all items to the other site with nothing lost, or none of them.
    PlannedFailover(Run),
    /// Takes a failover back; one that runs is cancelled.
    FailoverCancel(OfPlan),
    /// Makes the failover of all items final.
    Commit(OfPlan),
    /// Replicates all items back to where they came from.
    #[command(visible_alias = "reverse-replicate")]
    Reprotect(OfPlan),
}

/// Names a plan.
#[derive(Clone, Debug, Args)]
pub struct OfPlan {
    /// The plan's name.
    pub name: String,
}

/// How a plan is run.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// The plan's name.
    pub name: String,
    /// Where to; needed when its machines run at both sites.
    #[arg(long, value_enum)]
    pub direction: Option<Way>,
    /// Which point of each item; a planned failover starts from the final ones.
    #[arg(long, value_enum)]
    pub point: Option<Point>,
    /// Take the boot groups from the last to the first.
    #[arg(long)]
    pub reverse_order: bool,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// From the primary to the recovery site.
    PrimaryToRecovery,
    /// Home.
    RecoveryToPrimary,
}

/// A choice of a point that every item has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Point {
    /// Everything received, then the newest one.
    Latest,
    /// The newest one that is complete already.
    LatestProcessed,
}

impl Run {
    fn properties(&self) -> Map<String, Value> {
        let mut properties = Map::new();
        if let Some(way) = self.direction {
            properties.insert("failoverDirection".into(), json!(format!("{way:?}")));
        }
        if let Some(point) = self.point {
            let details = json!([{ "recoveryPointType": format!("{point:?}") }]);
            properties.insert("providerSpecificDetails".into(), details);
        }
        properties.insert("leewardReverseOrder".into(), json!(self.reverse_order));
        properties
    }
}

fn path(name: &str) -> String {
    format!("replicationRecoveryPlans/{}", escape(name))
}

/// The groups of a plan as they are sent.
fn boot_groups(groups: &[String]) -> Vec<Value> {
    let group = |names: &String| {
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        let items: Vec<_> = names.map(|name| json!({ "id": name })).collect();
        json!({ "groupType": "Boot", "replicationProtectedItems": items })
    };
    groups.iter().map(group).collect()
}

pub(super) async fn run(session: &Session, verb: PlanVerb) -> Result<(), CliError> {
    match verb {
        PlanVerb::Create { name, primary, recovery, groups } => {
            let body = json!({ "properties": {
                "primaryFabricId": primary,
                "recoveryFabricId": recovery,
                "groups": boot_groups(&groups),
            } });
            let reply = session.client.put(&path(&name), &body).await?;
            session.finish(&reply, &format!("make recovery plan {name}")).await
        }
        PlanVerb::SetGroups { name, file } => {
            let body = json!({ "properties": { "groups": groups_of(&file)? } });
            let reply =
                session.client.send(hyper::Method::PATCH, &path(&name), Some(&body)).await?;
            session.finish(&reply, &format!("set the groups of recovery plan {name}")).await
        }
        PlanVerb::List => list(session).await,
        PlanVerb::Show(plan) => show(session, &plan.name).await,
        PlanVerb::Delete(plan) => {
            let reply = session.client.send(hyper::Method::DELETE, &path(&plan.name), None).await?;
            session.finish(&reply, &format!("remove recovery plan {}", plan.name)).await
        }
        PlanVerb::TestFailover(run) => {
            let properties = run.properties();
            act(session, &run.name, "testFailover", properties, "test failover").await
        }
        PlanVerb::TestCleanup { plan, comments } => {
            let mut properties = Map::new();
            properties.insert("comments".into(), json!(comments));
            act(session, &plan.name, "testFailoverCleanup", properties, "test cleanup").await
        }
        PlanVerb::Failover { run, no_shutdown } => {
            let mut properties = run.properties();
            let shutdown = if no_shutdown { "NotRequired" } else { "Required" };
            properties.insert("sourceSiteOperations".into(), json!(shutdown));
            act(session, &run.name, "unplannedFailover", properties, "failover").await
        }
        PlanVerb::PlannedFailover(run) => {
            let properties = run.properties();
            act(session, &run.name, "plannedFailover", properties, "planned failover").await
        }
        PlanVerb::FailoverCancel(plan) => plain(session, &plan, "failoverCancel").await,
        PlanVerb::Commit(plan) => plain(session, &plan, "failoverCommit").await,
        PlanVerb::Reprotect(plan) => plain(session, &plan, "reProtect").await,
    }
}

/// The groups that a file has.
fn groups_of(file: &std::path::Path) -> Result<Value, CliError> {
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let told = |error: &dyn std::fmt::Display| {
        CliError::Usage(format!("{} has no groups: {error}", file.display()))
    };
    let text = text.map_err(|error| told(&error))?;
    serde_json::from_str(&text).map_err(|error| told(&error))
}

/// What an action does, in a few words.
fn action_line(action: &Value) -> String {
    let details = &action["customDetails"];
    let dns = &details["leewardDns"];
    let what = match details["instanceType"].as_str() {
        Some("ScriptActionDetails") => format!("script {}", text(&details["path"])),
        Some("AutomationRunbookActionDetails") => match details["runbookId"].as_str() {
            Some("leeward:dns-update") => {
                format!("DNS: {} gets {}", text(&dns["name"]), texts(&dns["addresses"]))
            }
            Some("leeward:wait") => format!("wait for {}", text(&details["leewardUrl"])),
            _ => format!("webhook {}", text(&details["runbookId"])),
        },
        _ => text(&details["description"]),
    };
    format!("{} ({what})", text(&action["actionName"]))
}

async fn plain(session: &Session, plan: &OfPlan, verb: &str) -> Result<(), CliError> {
    act(session, &plan.name, verb, Map::new(), verb).await
}

async fn act(
    session: &Session,
    name: &str,
    verb: &str,
    properties: Map<String, Value>,
    what: &str,
) -> Result<(), CliError> {
    let path = format!("{}/{verb}", path(name));
    let reply = session.client.post(&path, &json!({ "properties": properties })).await?;
    session.finish(&reply, &format!("{what} of recovery plan {name}")).await
}

/// The groups with machines, as they are shown: `1: db01 | 2: app01, web01`.
fn groups_line(plan: &Value) -> String {
    let groups = plan["properties"]["groups"].as_array().into_iter().flatten();
    let boots = groups.filter(|group| group["groupType"] == "Boot").enumerate();
    let line = |(index, group): (usize, &Value)| {
        let items = group["replicationProtectedItems"].as_array().into_iter().flatten();
        let names: Vec<_> =
            items.map(|item| super::session::last_segment(&text(&item["id"])).to_owned()).collect();
        format!("{}: {}", index + 1, names.join(", "))
    };
    boots.map(line).collect::<Vec<_>>().join(" | ")
}

async fn list(session: &Session) -> Result<(), CliError> {
    let plans = session.client.list("replicationRecoveryPlans").await?;
    session.list(&plans, &["NAME", "FROM", "TO", "GROUPS", "LAST RUN"], |plan| {
        let properties = &plan["properties"];
        vec![
            text(&plan["name"]),
            text(&properties["primaryFabricFriendlyName"]),
            text(&properties["recoveryFabricFriendlyName"]),
            groups_line(plan),
            text(&properties["currentScenarioStatusDescription"]),
        ]
    });
    Ok(())
}

async fn show(session: &Session, name: &str) -> Result<(), CliError> {
    let plan = session.client.get(&path(name)).await?;
    let properties = &plan["properties"];
    let fields = [
        ("name", text(&plan["name"])),
        ("from", text(&properties["primaryFabricFriendlyName"])),
        ("to", text(&properties["recoveryFabricFriendlyName"])),
        ("groups", groups_line(&plan)),
        ("possible now", texts(&properties["allowedOperations"])),
        ("running", text(&properties["currentScenario"]["scenarioName"])),
        ("last run", text(&properties["currentScenarioStatusDescription"])),
        ("last test", text(&properties["lastTestFailoverTime"])),
        ("last planned failover", text(&properties["lastPlannedFailoverTime"])),
        ("last failover", text(&properties["lastUnplannedFailoverTime"])),
    ];
    session.show(&plan, &fields);
    for group in properties["groups"].as_array().into_iter().flatten() {
        for (side, key) in [("before", "startGroupActions"), ("after", "endGroupActions")] {
            for action in group[key].as_array().into_iter().flatten() {
                let kind = text(&group["groupType"]);
                session.say(&format!("{side} {kind}: {}", action_line(action)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-160.
    #[test]
    fn groups_are_sent_and_shown_in_their_order() {
        let groups = boot_groups(&["db01".into(), "app01, web01".into()]);
        assert_eq!(
            groups[1]["replicationProtectedItems"],
            json!([{"id": "app01"}, {"id": "web01"}])
        );
        let plan = json!({"properties": {"groups": [
            {"groupType": "Shutdown"},
            {"groupType": "Boot", "replicationProtectedItems": [{"id": "/x/db01"}]},
            {"groupType": "Boot", "replicationProtectedItems": [{"id": "/x/a"}, {"id": "/x/b"}]},
        ]}});
        assert_eq!(groups_line(&plan), "1: db01 | 2: a, b");
    }

    /// F-161.
    #[test]
    fn an_action_is_shown_in_a_few_words() {
        let runbook = |details: Value| json!({"actionName": "x", "customDetails": details});
        let automation = "AutomationRunbookActionDetails";
        for (details, shown) in [
            (json!({"instanceType": "ManualActionDetails", "description": "do it"}), "x (do it)"),
            (json!({"instanceType": "ScriptActionDetails", "path": "a.sh"}), "x (script a.sh)"),
            (
                json!({"instanceType": automation, "runbookId": "https://h/"}),
                "x (webhook https://h/)",
            ),
            (
                json!({"instanceType": automation, "runbookId": "leeward:wait",
                    "leewardUrl": "tcp://h:1"}),
                "x (wait for tcp://h:1)",
            ),
            (
                json!({"instanceType": automation, "runbookId": "leeward:dns-update",
                    "leewardDns": {"name": "db.example", "addresses": ["10.2.0.5"]}}),
                "x (DNS: db.example gets 10.2.0.5)",
            ),
        ] {
            assert_eq!(action_line(&runbook(details)), shown);
        }
    }

    /// F-088.
    #[test]
    fn a_run_names_its_direction_only_when_it_was_given() {
        let mut run =
            Run { name: "shop".into(), direction: None, point: None, reverse_order: false };
        assert!(!run.properties().contains_key("failoverDirection"));
        run.direction = Some(Way::RecoveryToPrimary);
        run.point = Some(Point::LatestProcessed);
        let properties = run.properties();
        assert_eq!(properties["failoverDirection"], "RecoveryToPrimary");
        let details = &properties["providerSpecificDetails"][0];
        assert_eq!(details["recoveryPointType"], "LatestProcessed");
    }
}
