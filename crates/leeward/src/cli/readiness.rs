//! The verb that tells whether a failover would work.

use super::{
    CliError,
    session::{Session, missing, text, texts},
};
use serde_json::Value;

/// Which items to tell about.
#[derive(Clone, Debug, clap::Args)]
pub struct ReadinessOptions {
    /// Only this item, with everything that was looked at.
    pub item: Option<String>,
}

pub(super) async fn run(session: &Session, options: ReadinessOptions) -> Result<(), CliError> {
    let found = session.client.get("leewardReadiness").await?;
    match options.item {
        Some(name) => one(session, &found, &name),
        None => {
            all(session, &found);
            Ok(())
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn one(session: &Session, found: &Value, name: &str) -> Result<(), CliError> {
    let same = |item: &&Value| item["name"].as_str().is_some_and(|n| n.eq_ignore_ascii_case(name));
    let item = list(&found["properties"]["items"]).find(same);
    let item = item.ok_or_else(|| missing(format!("there is no protected item {name}")))?;
    session.show(item, &pairs(item));
    for check in list(&item["checks"]) {
        let (level, subject) = (text(&check["level"]), text(&check["subject"]));
        session.say(&format!("  {level:<9} {subject:<9} {}", text(&check["text"])));
    }
    Ok(())
}

fn pairs(item: &Value) -> Vec<(&'static str, String)> {
    vec![
        ("item", text(&item["name"])),
        ("ready", text(&item["level"])),
        ("last proven", proven(item)),
    ]
}

fn proven(of: &Value) -> String {
    match &of["lastProven"] {
        Value::Null => "never".to_owned(),
        at => text(at),
    }
}

/// What is not as it should be, one line each.
fn faults(item: &Value) -> String {
    let bad = list(&item["checks"]).filter(|check| check["level"] != "Normal");
    bad.map(|check| text(&check["text"])).collect::<Vec<_>>().join("; ")
}

fn all(session: &Session, found: &Value) {
    let properties = &found["properties"];
    let items: Vec<Value> = list(&properties["items"]).cloned().collect();
    if session.output == super::Output::Json {
        session.show(found, &[]);
        return;
    }
    session.list(&items, &["ITEM", "READY", "LAST PROVEN", "WHAT TO LOOK AT"], |item| {
        vec![text(&item["name"]), text(&item["level"]), proven(item), faults(item)]
    });
    for host in list(&properties["hosts"]) {
        let missing: Vec<_> = list(&host["wouldNotStart"]).collect();
        let (name, level, items) = (text(&host["name"]), text(&host["level"]), &host["items"]);
        let (needed, room) = (&host["memoryNeededMib"], &host["memoryRoomMib"]);
        let room = if room.is_null() { "?".to_owned() } else { text(room) };
        session.say(&format!(
            "\nhost {name}: {level}, {items} machines at once need {needed} MiB of memory of {room}"
        ));
        for one in missing {
            let (item, why) = (text(&one["name"]), text(&one["why"]));
            session.say(&format!("  would not start: {item}: {why}"));
        }
        for warning in list(&host["warnings"]) {
            session.say(&format!("  {}", text(warning)));
        }
    }
    for plan in list(&properties["plans"]) {
        let (name, level) = (text(&plan["name"]), text(&plan["level"]));
        session.say(&format!("\nplan {name}: {level}, last proven {}", proven(plan)));
        let not = texts(&plan["notReady"]);
        if !not.is_empty() {
            session.say(&format!("  not ready: {not}"));
        }
    }
    for need in list(&properties["dependencies"]) {
        session.say(&format!("\n{}: {}", text(&need["level"]), text(&need["text"])));
    }
}
