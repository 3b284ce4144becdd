//! How the actions of recovery plans are written and how they look. The contract has three kinds:
//! manual actions, scripts, and runbooks, which here are webhooks and what Leeward does itself.

use super::{direction::word, plan_view::verb_name, request::Fields};
use crate::{
    ControlError,
    plans::{Act, Action, DnsUpdate, KeyAlgorithm, RETRIES, Secret, TIMEOUT_S, Verb, What},
};
use jiff::SignedDuration;
use leeward_model::Direction;
use serde_json::{Value, json};

/// The contract's names of the kinds.
const MANUAL: &str = "ManualActionDetails";
const SCRIPT: &str = "ScriptActionDetails";
const AUTOMATION: &str = "AutomationRunbookActionDetails";
/// `runbookId` of a DNS update.
const DNS: &str = "leeward:dns-update";
/// `runbookId` of an action that waits until something answers.
const WAIT: &str = "leeward:wait";
/// How long resolvers keep an address when nothing else is said, in seconds: a failover is to be
/// seen soon.
const TTL_S: u32 = 60;

fn wrong<T>(what: impl Into<String>) -> Result<T, ControlError> {
    Err(ControlError::bad_request(what))
}

/// The texts of a list that each are one of `known`.
fn words<T: Copy>(
    fields: Fields<'_>,
    name: &str,
    known: &[(T, &'static str)],
) -> Result<Vec<T>, ControlError> {
    let all = texts(fields, name)?;
    all.into_iter().map(|text| one_of(name, text, known)).collect()
}

fn one_of<T: Copy>(name: &str, text: &str, known: &[(T, &'static str)]) -> Result<T, ControlError> {
    let found = known.iter().find(|(_, word)| word.eq_ignore_ascii_case(text));
    found.map(|(one, _)| *one).ok_or_else(|| {
        let words: Vec<_> = known.iter().map(|(_, word)| *word).collect();
        let what = format!("{name} has {text:?}, which is not one of {}", words.join(", "));
        ControlError::bad_request(what)
    })
}

/// The texts of a list; none when the field is absent.
fn texts<'a>(fields: Fields<'a>, name: &str) -> Result<Vec<&'a str>, ControlError> {
    let Some(value) = fields.raw(name) else { return Ok(Vec::new()) };
    let Some(values) = value.as_array() else {
        return wrong(format!("the field {name} is not a list"));
    };
    let of = |value: &'a Value| match value.as_str() {
        Some(text) => Ok(text),
        None => wrong(format!("{name} has {value}, which is not a text")),
    };
    values.iter().map(of).collect()
}

/// A whole number, or what stands for it when it is absent.
fn whole(fields: Fields<'_>, name: &str, else_: u32) -> Result<u32, ControlError> {
    let Some(number) = fields.number(name)? else { return Ok(else_) };
    if number.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&number) {
        return wrong(format!("{name} is not a whole number"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "looked at above")]
    Ok(number as u32)
}

/// A time as the contract's clients write it: seconds, `PT5M`, or `00:05:00`.
fn timeout(details: Fields<'_>) -> Result<u32, ControlError> {
    let Some(text) = details.text("timeout")? else { return Ok(TIMEOUT_S) };
    let seconds = match text.parse::<u32>() {
        Ok(seconds) => Some(seconds),
        Err(_) => text.parse::<SignedDuration>().ok().and_then(|d| d.as_secs().try_into().ok()),
    };
    seconds.map_or_else(
        || wrong(format!("timeout {text:?} is neither seconds nor a time such as PT5M")),
        Ok,
    )
}

/// Where the contract has an action run; here it is always the config server's machine.
fn location(name: &str, details: Fields<'_>) -> Result<(), ControlError> {
    match details.text("fabricLocation")? {
        None => Ok(()),
        Some(text) if text.eq_ignore_ascii_case("Recovery") => Ok(()),
        Some(text) if text.eq_ignore_ascii_case("Primary") => {
            Err(ControlError::not_supported(format!(
                "action {name}: actions are done by the config server, at the recovery site, in \
                 both directions: fabricLocation Primary is not supported"
            )))
        }
        Some(text) => wrong(format!("fabricLocation {text} is not one of Primary, Recovery")),
    }
}

fn secret(fields: Fields<'_>, name: &str) -> Result<Option<Secret>, ControlError> {
    Ok(fields.text(name)?.map(Secret::new))
}

fn dns(details: Fields<'_>) -> Result<DnsUpdate, ControlError> {
    let fields = details.object("leewardDns")?;
    let address = |text: &str| match text.parse() {
        Ok(address) => Ok(address),
        Err(_) => wrong(format!("addresses has {text:?}, which is no IP address")),
    };
    let algorithm = fields.text("keyAlgorithm")?.unwrap_or("hmac-sha256");
    Ok(DnsUpdate {
        server: fields.required("server")?.to_owned(),
        zone: fields.required("zone")?.to_owned(),
        name: fields.required("name")?.to_owned(),
        ttl_s: whole(fields, "ttl", TTL_S)?,
        addresses: texts(fields, "addresses")?
            .into_iter()
            .map(address)
            .collect::<Result<_, _>>()?,
        key_name: fields.required("keyName")?.to_owned(),
        key_algorithm: one_of("keyAlgorithm", algorithm, &KeyAlgorithm::ALL)?,
        key: secret(fields, "keySecret")?,
    })
}

/// What the contract calls a runbook.
fn automation(name: &str, details: Fields<'_>) -> Result<Act, ControlError> {
    location(name, details)?;
    let timeout_s = timeout(details)?;
    let id = details.required("runbookId")?;
    if id.eq_ignore_ascii_case(DNS) {
        return Ok(Act::Dns { update: dns(details)?, timeout_s });
    }
    if id.eq_ignore_ascii_case(WAIT) {
        let url = details.required("leewardUrl")?.to_owned();
        return Ok(Act::Wait { url, timeout_s });
    }
    if ["http://", "https://"].iter().any(|scheme| id.starts_with(scheme)) {
        let (url, secret) = (id.to_owned(), secret(details, "leewardSecret")?);
        let retries = whole(details, "leewardRetries", RETRIES)?;
        return Ok(Act::Webhook { url, timeout_s, retries, secret });
    }
    Err(ControlError::not_supported(format!(
        "action {name}: runbooks of a cloud are not supported: runbookId is the http(s) address \
         of a webhook, {DNS} or {WAIT}"
    )))
}

/// Reads an action.
pub(super) fn read(fields: Fields<'_>) -> Result<Action, ControlError> {
    let name = fields.required("actionName")?.to_owned();
    let details = fields.object("customDetails")?;
    let kind = details.text("instanceType")?.unwrap_or(MANUAL);
    let what = if kind.eq_ignore_ascii_case(MANUAL) {
        What::Person { description: details.required("description")?.to_owned() }
    } else if kind.eq_ignore_ascii_case(SCRIPT) {
        location(&name, details)?;
        let path = details.required("path")?.to_owned();
        What::Act { act: Act::Script { path, timeout_s: timeout(details)? } }
    } else if kind.eq_ignore_ascii_case(AUTOMATION) {
        What::Act { act: automation(&name, details)? }
    } else {
        return wrong(format!("action {name}: instanceType {kind} is no kind of action"));
    };
    let verbs = Verb::ALL.map(|verb| (verb, verb_name(verb)));
    let directions = [Direction::ToRecovery, Direction::ToPrimary].map(|one| (one, word(one)));
    Ok(Action {
        name,
        what,
        verbs: words(fields, "failoverTypes", &verbs)?,
        directions: words(fields, "failoverDirections", &directions)?,
    })
}

fn dns_view(update: &DnsUpdate) -> Value {
    let algorithm = KeyAlgorithm::ALL.iter().find(|(known, _)| *known == update.key_algorithm);
    json!({
        "server": update.server,
        "zone": update.zone,
        "name": update.name,
        "ttl": update.ttl_s,
        "addresses": update.addresses,
        "keyName": update.key_name,
        "keyAlgorithm": algorithm.map(|(_, word)| *word),
    })
}

/// `runbookId` of what Leeward does outside of scripts.
pub(super) fn automation_id(act: &Act) -> &str {
    match act {
        Act::Webhook { url, .. } => url,
        Act::Dns { .. } => DNS,
        Act::Wait { .. } => WAIT,
        Act::Script { path, .. } => path,
    }
}

fn act_view(act: &Act) -> Value {
    let timeout = SignedDuration::from_secs(i64::from(act.timeout_s())).to_string();
    let mut details = json!({
        "instanceType": AUTOMATION,
        "runbookId": automation_id(act),
        "timeout": timeout,
        "fabricLocation": "Recovery",
    });
    match act {
        Act::Script { path, .. } => {
            details = json!({
                "instanceType": SCRIPT,
                "path": path,
                "timeout": timeout,
                "fabricLocation": "Recovery",
            });
        }
        Act::Webhook { retries, secret, .. } => {
            details["leewardRetries"] = json!(retries);
            details["leewardSecretKept"] = json!(secret.is_some());
        }
        Act::Dns { update, .. } => {
            details["leewardDns"] = dns_view(update);
            details["leewardSecretKept"] = json!(update.key.is_some());
        }
        Act::Wait { url, .. } => details["leewardUrl"] = json!(url),
    }
    details
}

/// How an action looks; without its secret.
pub(super) fn view(action: &Action) -> Value {
    let details = match &action.what {
        What::Person { description } => {
            json!({ "instanceType": MANUAL, "description": description })
        }
        What::Act { act } => act_view(act),
    };
    json!({
        "actionName": action.name,
        "failoverTypes": action.verbs.iter().map(|one| verb_name(*one)).collect::<Vec<_>>(),
        "failoverDirections": action.directions.iter().map(|one| word(*one)).collect::<Vec<_>>(),
        "customDetails": details,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(timeout: Value) -> Value {
        json!({
            "actionName": "tell",
            "failoverTypes": ["TestFailover"],
            "failoverDirections": ["PrimaryToRecovery"],
            "customDetails": {
                "instanceType": "AutomationRunbookActionDetails",
                "runbookId": "https://tell.example/x",
                "timeout": timeout,
                "fabricLocation": "Recovery",
                "leewardSecret": "sixteen bytes or more",
            },
        })
    }

    /// F-161: as the contract's clients write times.
    #[test]
    fn a_timeout_is_seconds_or_a_time() {
        for (text, seconds) in
            [(json!("90"), 90), (json!("PT5M"), 300), (json!("00:01:30"), 90), (json!(null), 300)]
        {
            let body = webhook(text.clone());
            let action = read(Fields::new(&body)).unwrap();
            assert_eq!(action.act().unwrap().timeout_s(), seconds, "{text}");
        }
        for text in ["soon", "-PT5M", "1.5"] {
            assert!(read(Fields::new(&webhook(json!(text)))).is_err(), "{text}");
        }
    }

    /// F-161: a secret is taken and never shown.
    #[test]
    fn a_secret_is_shown_nowhere() {
        let action = read(Fields::new(&webhook(json!(null)))).unwrap();
        let shown = format!("{} {action:?}", view(&action));
        assert!(!shown.contains("sixteen"), "{shown}");
        assert!(view(&action)["customDetails"]["leewardSecretKept"] == true);
    }
}
