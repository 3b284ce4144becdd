//! The verbs that move a machine between its sites with nothing lost: planned failover, its
//! completion, and reprotect. They are the same out and home.

use super::{
    CliError, follow,
    items::{Named, act, choice, wait_protected},
    session::{Session, escape, last_segment, text},
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
    /// When the sites are brought in step; the server's choice when it is not given.
    #[arg(long, value_enum)]
    pub sync: Option<Synchronize>,
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
        fields
    }
}

pub(super) async fn planned_failover(session: &Session, planned: &Planned) -> Result<(), CliError> {
    let found = planned.item.find(session).await?;
    let mut details = planned.fields();
    if let Some(point) = &planned.point
        && let Value::Object(chosen) = choice(session, &found, point).await?
    {
        details.extend(chosen.into_iter().filter(|(name, _)| name != "instanceType"));
    }
    let properties = json!({
        "failoverDirection": found["properties"]["leewardDirection"],
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
) -> Result<(), CliError> {
    let found = item.find(session).await?;
    let id = text(&found["id"]);
    let details = match host {
        Some(host) => json!({ "leewardHost": host }),
        None => json!({}),
    };
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
        Planned { item, point: None, wait_to_complete, sync }
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
}
