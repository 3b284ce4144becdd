//! Verbs of the audit log. Not the audits of stored data: `item show` tells those.

use super::{
    CliError,
    session::{Session, escape, text},
};
use clap::Subcommand;
use leeward_model::Problem;
use serde_json::Value;

/// Verbs of the audit log.
#[derive(Clone, Debug, Subcommand)]
pub enum AuditVerb {
    /// Lists who asked for what that changes something, oldest first.
    List {
        /// Only entries behind this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Only what this caller or host did.
        #[arg(long)]
        who: Option<String>,
    },
    /// Proves the whole log: exit code 1 when an entry is not as it was written.
    Verify {
        /// The end of the log as an earlier verify, or the server's own log, told it: finds an end
        /// that was cut off.
        #[arg(long, value_name = "NUMBER:HASH")]
        head: Option<String>,
    },
}

pub(super) async fn run(session: &Session, verb: AuditVerb) -> Result<(), CliError> {
    match verb {
        AuditVerb::List { after, who } => list(session, after, who.as_deref()).await,
        AuditVerb::Verify { head } => verify(session, head.as_deref()).await,
    }
}

async fn list(session: &Session, after: u64, who: Option<&str>) -> Result<(), CliError> {
    let mut path = format!("/leewardAuditLog?skipToken={after}");
    if let Some(who) = who {
        let filter = format!("who eq '{}'", who.replace('\'', "''"));
        path.push_str(&format!("&$filter={}", escape(&filter)));
    }
    let entries = session.client.list(&path).await?;
    let heads = ["NUMBER", "TIME", "WHO", "FROM", "ACTION", "OUTCOME", "OBJECT"];
    session.list(&entries, &heads, |entry| {
        let outcome = match entry["code"].as_str() {
            Some(code) if !code.is_empty() => format!("{} {code}", text(&entry["outcome"])),
            _ => text(&entry["outcome"]),
        };
        vec![
            text(&entry["number"]),
            text(&entry["time"]),
            text(&entry["who"]),
            text(&entry["from"]),
            text(&entry["action"]),
            outcome,
            text(&entry["object"]),
        ]
    });
    Ok(())
}

async fn verify(session: &Session, head: Option<&str>) -> Result<(), CliError> {
    let path = match head {
        Some(head) => format!("/leewardAuditLog/verify?head={}", escape(head)),
        None => "/leewardAuditLog/verify".to_owned(),
    };
    let verdict = session.client.get(&path).await?;
    let place = |anchor: &Value| match anchor {
        Value::Null => String::new(),
        anchor => format!("{}:{}", text(&anchor["number"]), text(&anchor["hash"])),
    };
    let intact = verdict["intact"] == true;
    let said = if intact { "intact" } else { "BROKEN" };
    let pairs = [
        ("audit log", said.to_owned()),
        ("entries", text(&verdict["entries"])),
        ("first", text(&verdict["first"])),
        ("head", place(&verdict["head"])),
        ("kept in the store", place(&verdict["keptInStore"])),
        ("first broken", text(&verdict["broken"]["number"])),
    ];
    session.show(&verdict, &pairs);
    if intact {
        return Ok(());
    }
    let problem: Result<Problem, _> = serde_json::from_value(verdict["problem"].clone());
    let fail = |error: serde_json::Error| CliError::Usage(format!("no verdict came: {error}"));
    Err(problem.map_err(fail)?.into())
}
