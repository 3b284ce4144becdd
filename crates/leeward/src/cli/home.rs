//! The verbs that move a machine between its sites with nothing lost: planned failover, its
//! completion, and reprotect. They are the same out and home.

use super::{
    CliError, follow,
    items::{Named, Verify, act, choice, wait_protected},
    session::{Session, escape, last_segment, text},
    table::bytes,
};
use clap::{Args, ValueEnum};
use leeward_model::Code;
use serde_json::{Map, Value, json};

/// How a job says that it waits for "Complete failover".
const WAITS: &str = "WaitingForFinalizeFailback";

/// What a planned failover may be told.
#[derive(Clone, Debug, Args)]
pub struct Planned {
    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields say it")]
    pub item: Named,
    /// A point's id or name, or latest-processed, instead of the final point: what was written
    /// after it does not come along.
    #[arg(long)]
    pub point: Option<String>,
    /// Stop before the shutdown, in step and with the machine running, until `item
    /// complete-failover`. With --wait: until then.
    #[arg(long)]
    pub wait_to_complete: bool,
    /// When the data are sent: before the shutdown when it is not given.
    #[arg(long = "data-sync", visible_alias = "sync", value_enum)]
    pub sync: Option<Synchronize>,
    /// Another host to go to, by name, of a machine that is not replicated yet.
    #[arg(long)]
    pub host: Option<String>,
    /// Change nothing: print which way it would go, and what either way of sending would cost.
    #[arg(long)]
    pub dry_run: bool,
}

/// When a planned failover synchronizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Synchronize {
    /// Before the shutdown, while the machine runs: the least downtime.
    ForDownTime,
    /// After the shutdown, without comparing: the least work when most data differ.
    ForSynchronization,
}

impl Planned {
    /// The request's own fields, beside those that choose a point.
    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("instanceType".into(), json!("HyperVReplicaAzureFailback"));
        fields.insert("leewardWaitToComplete".into(), json!(self.wait_to_complete));
        if let Some(sync) = self.sync {
            fields.insert("dataSyncOption".into(), json!(format!("{sync:?}")));
        }
        if let Some(host) = &self.host {
            fields.insert("leewardHost".into(), json!(host));
        }
        fields
    }
}

pub(super) async fn planned_failover(session: &Session, planned: &Planned) -> Result<(), CliError> {
    let found = planned.item.find(session).await?;
    if planned.dry_run {
        dry_run(session, &found, planned);
        return Ok(());
    }
    let mut details = planned.fields();
    if let Some(point) = &planned.point
        && let Value::Object(chosen) = choice(session, &found, point).await?
    {
        details.extend(chosen.into_iter().filter(|(name, _)| name != "instanceType"));
    }
    let properties = json!({
        "failoverDirection": found["properties"]["leewardNextDirection"],
        "providerSpecificDetails": details,
    });
    if !(session.wait && planned.wait_to_complete) {
        return act(session, &found, "plannedFailover", properties, "planned failover").await;
    }
    let path = format!("{}/plannedFailover", text(&found["id"]));
    let reply = session.client.post(&path, &json!({ "properties": properties })).await?;
    let job = reply.job.as_deref().map(last_segment).unwrap_or_default();
    let seen = follow::job(session, job).await?;
    if seen["properties"]["stateDescription"] != WAITS {
        return session.finish(&reply, &format!("planned failover of {}", planned.item.name)).await;
    }
    let todo = format!("leeward item complete-failover {}", planned.item.name);
    session.show(
        &seen,
        &[
            ("waits", text(&seen["properties"]["leewardQuestion"])),
            ("job", job.to_owned()),
            ("next", todo),
        ],
    );
    Ok(())
}

/// What a planned failover would do. Nothing is asked for, so nothing changes (F-088).
fn dry_run(session: &Session, item: &Value, planned: &Planned) {
    let properties = &item["properties"];
    let details = &properties["providerSpecificDetails"];
    let allowed = properties["allowedOperations"].as_array();
    let possible = allowed.is_some_and(|all| all.iter().any(|one| one == "PlannedFailover"));
    let (primary, recovery) = (
        text(&properties["primaryFabricFriendlyName"]),
        text(&properties["recoveryFabricFriendlyName"]),
    );
    let direction = &properties["leewardNextDirection"];
    let (from, to) = match direction.as_str() {
        Some("RecoveryToPrimary") => (recovery, primary),
        _ => (primary, recovery),
    };
    let takes = planned.sync.unwrap_or(Synchronize::ForDownTime);
    let shown = json!({
        "item": item["name"],
        "direction": direction,
        "from": from,
        "to": to,
        "liveAt": details["leewardLiveAt"],
        "possibleNow": possible,
        "dataSyncOption": format!("{takes:?}"),
        "dataSync": details["leewardDataSync"],
    });
    let possible = match possible {
        true => "yes".to_owned(),
        false => format!("no, it is {}", text(&properties["protectionStateDescription"])),
    };
    session.show(
        &shown,
        &[
            ("item", text(&item["name"])),
            ("direction", format!("{from} -> {to}")),
            ("live at", text(&details["leewardLiveAt"])),
            ("possible now", possible),
            ("data sync", format!("{takes:?}")),
        ],
    );
    say_options(session, &details["leewardDataSync"]);
    session.say("nothing was changed");
}

/// What both options of sending the data would cost, one line each.
pub(super) fn say_options(session: &Session, found: &Value) {
    for option in found["options"].as_array().into_iter().flatten() {
        session.say(&option_line(option, &found["proposed"]));
    }
}

fn option_line(option: &Value, proposed: &Value) -> String {
    let number = |name: &str| option[name].as_u64().unwrap_or(0);
    let mark = if option["option"] == *proposed { ", proposed" } else { "" };
    format!(
        "{}: {} to send, {} s in all, {} s of downtime{mark} ({})",
        text(&option["option"]),
        bytes(number("bytes") as f64),
        number("seconds"),
        number("downtimeSeconds"),
        text(&option["basis"])
    )
}

/// Says "Complete failover" to the job of the item that waits for it.
pub(super) async fn complete_failover(
    session: &Session,
    item: &Named,
    comment: Option<&str>,
) -> Result<(), CliError> {
    let found = item.find(session).await?;
    let scenario = &found["properties"]["currentScenario"];
    let job = last_segment(scenario["jobId"].as_str().unwrap_or_default()).to_owned();
    let none = || {
        let what = format!("{} has no planned failover that waits to be completed", item.name);
        CliError::Missing(Box::new(Code::NOT_POSSIBLE_NOW.problem(what)))
    };
    if scenario["scenarioName"] != "PlannedFailover" {
        return Err(none());
    }
    let path = format!("replicationJobs/{}", escape(&job));
    if session.client.get(&path).await?["properties"]["stateDescription"] != WAITS {
        return Err(none());
    }
    let body = json!({ "properties": { "comments": comment } });
    session.client.post(&format!("{path}/resume"), &body).await?;
    let what = format!("completion of the failover of {}", item.name);
    if session.wait {
        let status = format!("replicationOperationStatus/{}", escape(&job));
        let url = format!("{}/{status}", session.client.vault_path());
        follow::operation(session, &url, &job, &what).await?;
        let ended = session.client.get(&path).await?;
        session.show(&ended, &[("done", what), ("job", job)]);
        return Ok(());
    }
    session.show(&json!({ "job": job }), &[("started", what), ("job", job.clone())]);
    Ok(())
}

pub(super) async fn reprotect(
    session: &Session,
    item: &Named,
    host: Option<&str>,
    verify: Verify,
) -> Result<(), CliError> {
    let found = item.find(session).await?;
    let id = text(&found["id"]);
    let mut details = verify.fields();
    if let Some(host) = host {
        details["leewardHost"] = json!(host);
    }
    // The direction is left out: only one is possible, and the server knows it.
    let body = json!({ "properties": { "providerSpecificDetails": details } });
    let reply = session.client.post(&format!("{id}/reProtect"), &body).await?;
    if session.wait {
        wait_protected(session, &reply, &id, &item.name).await?;
    }
    session.finish(&reply, &format!("reprotect {}", item.name)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(wait_to_complete: bool, sync: Option<Synchronize>) -> Planned {
        let item = Named { name: "web01".into(), fabric: None };
        let (point, host, dry_run) = (None, None, false);
        Planned { item, point, wait_to_complete, sync, host, dry_run }
    }

    #[test]
    fn a_planned_failover_says_outright_whether_it_waits() {
        let plain = planned(false, None).fields();
        assert_eq!(plain["leewardWaitToComplete"], false);
        assert!(!plain.contains_key("dataSyncOption"));

        let told = planned(true, Some(Synchronize::ForSynchronization)).fields();
        assert_eq!(told["leewardWaitToComplete"], true);
        assert_eq!(told["dataSyncOption"], "ForSynchronization");
    }

    /// F-088, F-109.
    #[test]
    fn an_option_is_told_with_its_bytes_its_downtime_and_whether_it_is_proposed() {
        let option = json!({"option": "ForSynchronization", "bytes": 3 << 20, "seconds": 40,
            "downtimeSeconds": 35, "basis": "what its disks hold"});

        let line = option_line(&option, &json!("ForSynchronization"));
        assert!(
            line.contains("3.0 MiB to send, 40 s in all, 35 s of downtime, proposed"),
            "{line}"
        );
        assert!(!option_line(&option, &json!("ForDownTime")).contains("proposed"));
    }
}
