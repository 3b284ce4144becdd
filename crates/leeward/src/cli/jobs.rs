//! Verbs of jobs and events.

use super::{
    CliError, follow,
    session::{Session, escape, failure, text, texts},
};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

/// Verbs of jobs.
#[derive(Clone, Debug, Subcommand)]
pub enum JobVerb {
    /// Lists jobs, newest first.
    List {
        /// Only jobs in this state, for example InProgress or Failed.
        #[arg(long)]
        state: Option<String>,
    },
    /// Shows a job with its tasks.
    Show {
        /// The job's id.
        job: String,
    },
    /// Follows a job until it has ended or waits for a person.
    Watch {
        /// The job's id.
        job: String,
    },
    /// Asks a job to go back. With --wait: until it has.
    Cancel {
        /// The job's id.
        job: String,
    },
    /// Answers a job that waits for a person. Without an answer: completes a planned failover that
    /// waits for it, and makes any other job try its step again.
    #[command(visible_alias = "complete-failover")]
    Resume {
        /// The job's id.
        job: String,
        /// What the job asks for, for example power-off; `job show` says what it understands.
        #[arg(long, alias = "comments", value_name = "TEXT")]
        comment: Option<String>,
        /// What to answer, when neither a comment nor silence says it.
        #[arg(long, value_enum)]
        answer: Option<Answer>,
    },
    /// Starts a failed or cancelled job anew, as a new job.
    Restart {
        /// The job's id.
        job: String,
    },
}

/// What a person answers a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Answer {
    /// Try the step again.
    Retry,
    /// Go on, with the comments as the reply.
    Reply,
    /// Give the job up.
    Abandon,
}

/// Verbs of events.
#[derive(Clone, Debug, Subcommand)]
pub enum EventVerb {
    /// Lists events, oldest first.
    List {
        /// Only events behind this number: give the last one that was seen, and none is missed.
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
}

pub(super) async fn run(session: &Session, verb: JobVerb) -> Result<(), CliError> {
    let path = |job: &str| format!("replicationJobs/{}", escape(job));
    match verb {
        JobVerb::List { state } => list(session, state.as_deref()).await,
        JobVerb::Show { job } => {
            show(session, &session.client.get(&path(&job)).await?);
            Ok(())
        }
        JobVerb::Watch { job } => watch(session, &job).await,
        JobVerb::Cancel { job } => {
            let reply = session.client.post(&format!("{}/cancel", path(&job)), &json!({})).await?;
            if session.wait {
                let ended = follow::job(session, &job).await?;
                show(session, &ended);
            } else {
                show(session, &reply.body);
            }
            Ok(())
        }
        JobVerb::Resume { job, comment, answer } => {
            let answer = answer.map(|answer| format!("{answer:?}"));
            let body = json!({ "properties": { "leewardAnswer": answer, "comments": comment } });
            let reply = session.client.post(&format!("{}/resume", path(&job)), &body).await?;
            if session.wait {
                return watch(session, &job).await;
            }
            show(session, &reply.body);
            Ok(())
        }
        JobVerb::Restart { job } => {
            let reply = session.client.post(&format!("{}/restart", path(&job)), &json!({})).await?;
            let new = text(&reply.body["name"]);
            if session.wait {
                return watch(session, &new).await;
            }
            show(session, &reply.body);
            Ok(())
        }
    }
}

/// Follows a job; its failure or cancel is this verb's failure.
async fn watch(session: &Session, job: &str) -> Result<(), CliError> {
    let ended = follow::job(session, job).await?;
    show(session, &ended);
    match ended["properties"]["state"].as_str() {
        Some("Failed" | "Cancelled") => {
            let path = format!("replicationOperationStatus/{}", escape(job));
            Err(failure(&session.client.get(&path).await?["error"]))
        }
        _ => Ok(()),
    }
}

async fn list(session: &Session, state: Option<&str>) -> Result<(), CliError> {
    let path = match state {
        Some(state) => {
            let filter = format!("JobStatus eq '{}'", state.replace('\'', "''"));
            format!("replicationJobs?$filter={}", escape(&filter))
        }
        None => "replicationJobs".into(),
    };
    let jobs = session.client.list(&path).await?;
    let heads = ["ID", "STARTED", "OPERATION", "OBJECT", "STATE", "DESCRIPTION"];
    session.list(&jobs, &heads, |job| {
        let properties = &job["properties"];
        vec![
            text(&job["name"]),
            text(&properties["startTime"]),
            text(&properties["friendlyName"]),
            text(&properties["targetObjectName"]),
            text(&properties["state"]),
            text(&properties["stateDescription"]),
        ]
    });
    Ok(())
}

fn show(session: &Session, job: &Value) {
    let properties = &job["properties"];
    session.show(
        job,
        &[
            ("job", text(&job["name"])),
            ("operation", text(&properties["friendlyName"])),
            ("object", text(&properties["targetObjectName"])),
            ("state", text(&properties["state"])),
            ("description", text(&properties["stateDescription"])),
            ("started", text(&properties["startTime"])),
            ("ended", text(&properties["endTime"])),
            ("asks", text(&properties["leewardQuestion"])),
            ("allowed now", texts(&properties["allowedActions"])),
        ],
    );
    for choice in choices(&properties["customDetails"]["leewardQuestion"], &text(&job["name"])) {
        session.say(&choice);
    }
    for task in properties["tasks"].as_array().into_iter().flatten() {
        let message = text(&task["leewardMessage"]);
        let message = if message.is_empty() { message } else { format!(" ({message})") };
        let name = text(&task["friendlyName"]);
        session.say(&format!("  {:<12} {name}{message}", text(&task["state"])));
    }
    for error in properties["errors"].as_array().into_iter().flatten() {
        let details = &error["serviceErrorDetails"];
        session.say(&format!(
            "{}: {}\n  cause: {}\n  now:   {}\n  do:    {}",
            text(&details["code"]),
            text(&details["message"]),
            text(&details["possibleCauses"]),
            text(&error["leewardCurrentState"]),
            text(&details["recommendedAction"])
        ));
    }
}

/// What can be answered to a job's question, each as the command that does it.
fn choices(question: &Value, job: &str) -> Vec<String> {
    let choices = question["choices"].as_array().into_iter().flatten();
    choices
        .map(|choice| {
            let command = match (choice["leewardAnswer"].as_str(), choice["comments"].as_str()) {
                (Some("Abandon"), _) => format!("leeward job cancel {job}"),
                (_, Some(words)) if words.contains(' ') => {
                    format!("leeward job resume {job} --comment '{words}'")
                }
                (_, Some(words)) => format!("leeward job resume {job} --comment {words}"),
                (_, None) => format!("leeward job resume {job}"),
            };
            format!("  to {}:\n    {command}", text(&choice["does"]))
        })
        .collect()
}

pub(super) async fn events(session: &Session, verb: EventVerb) -> Result<(), CliError> {
    let EventVerb::List { after } = verb;
    let events = session.client.list(&format!("replicationEvents?skipToken={after}")).await?;
    session.list(&events, &["NUMBER", "TIME", "SEVERITY", "EVENT", "OBJECT", "TEXT"], |event| {
        let properties = &event["properties"];
        vec![
            text(&event["name"]),
            text(&properties["timeOfOccurrence"]),
            text(&properties["severity"]),
            text(&properties["eventCode"]),
            text(&properties["affectedObjectFriendlyName"]),
            text(&properties["description"]),
        ]
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_is_shown_as_the_command_that_makes_it() {
        let question = json!({ "code": "LW-0309", "text": "it is not off", "choices": [
            {"comments": null, "leewardAnswer": "Retry", "does": "ask again"},
            {"comments": "power-off", "leewardAnswer": "Reply", "does": "switch it off"},
            {"comments": "your words", "leewardAnswer": "Reply", "does": "go on"},
            {"comments": null, "leewardAnswer": "Abandon", "does": "go back"},
        ] });

        let shown = choices(&question, "7");

        assert_eq!(
            shown,
            [
                "  to ask again:\n    leeward job resume 7",
                "  to switch it off:\n    leeward job resume 7 --comment power-off",
                "  to go on:\n    leeward job resume 7 --comment 'your words'",
                "  to go back:\n    leeward job cancel 7",
            ]
        );
        assert!(choices(&Value::Null, "7").is_empty());
    }
}
