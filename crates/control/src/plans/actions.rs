//! What is done before and after the groups of a plan: by a person, or by the config server. Here
//! is what an action is and what may stand in one; `outside` carries them out.

use super::Verb;
use crate::ControlError;
use crate::error::Result;
use crate::vaults::check_name;
use leeward_model::Direction;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// The most actions before a group, and after it.
const ACTIONS_MAX: usize = 20;
/// The most letters of what a person is asked to do.
const DESCRIPTION_MAX: usize = 2_000;
/// The longest time that an action may be given, in seconds: 6 hours.
const TIMEOUT_MAX_S: u32 = 6 * 3_600;
/// The time that an action is given when nothing else is said, in seconds.
pub const TIMEOUT_S: u32 = 300;
/// The most repetitions of a webhook that is not answered.
const RETRIES_MAX: u32 = 10;
/// Repetitions of a webhook when nothing else is said.
pub const RETRIES: u32 = 3;
/// The most bytes of an address, a path, or a name in an action.
const TEXT_MAX: usize = 1_000;
/// Bytes of a webhook's secret: fewer can be guessed, more say nothing.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=256;
/// The most addresses that one name is given.
const ADDRESSES_MAX: usize = 16;
/// The longest that resolvers may keep an address, in seconds: a day.
const TTL_MAX_S: u32 = 86_400;

/// Is a secret of an action. It is stored with the plan and given to nobody but its receiver.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret in.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself, for its use alone.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// How a DNS update is signed (TSIG).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyAlgorithm {
    /// The one that every server has.
    HmacSha256,
    /// Longer.
    HmacSha384,
    /// The longest.
    HmacSha512,
}

impl KeyAlgorithm {
    /// All of them with their names on the wire.
    pub const ALL: [(KeyAlgorithm, &'static str); 3] = [
        (KeyAlgorithm::HmacSha256, "hmac-sha256"),
        (KeyAlgorithm::HmacSha384, "hmac-sha384"),
        (KeyAlgorithm::HmacSha512, "hmac-sha512"),
    ];
}

/// Is what becomes of a name in the DNS (RFC 2136).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsUpdate {
    /// The zone's primary server, `host:port`; asked over TCP.
    pub server: String,
    /// The zone.
    pub zone: String,
    /// The name; in the zone.
    pub name: String,
    /// How long resolvers may keep the answer, in seconds.
    pub ttl_s: u32,
    /// Its addresses from then on; those that it has are taken off.
    pub addresses: Vec<IpAddr>,
    /// Name of the key that signs.
    pub key_name: String,
    /// The key's algorithm.
    pub key_algorithm: KeyAlgorithm,
    /// The key, in base64; none where it is not to be known.
    pub key: Option<Secret>,
}

/// Is something that the config server does by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
pub enum Act {
    /// Runs a program of the folder of scripts.
    Script {
        /// Its file's name in the folder.
        path: String,
        /// How long it may run, in seconds.
        timeout_s: u32,
    },
    /// Sends a signed request.
    Webhook {
        /// Where to.
        url: String,
        /// How long all its attempts may take, in seconds.
        timeout_s: u32,
        /// How often it is repeated.
        retries: u32,
        /// What it is signed with; none where it is not to be known.
        secret: Option<Secret>,
    },
    /// Gives a name other addresses.
    Dns {
        /// Which.
        #[serde(flatten)]
        update: DnsUpdate,
        /// How long it may take, in seconds.
        timeout_s: u32,
    },
    /// Waits until something answers.
    Wait {
        /// `tcp://host:port`: a connection is taken; `http://…`, `https://…`: a 2xx is answered.
        url: String,
        /// How long, in seconds.
        timeout_s: u32,
    },
}

/// Is what an action does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum What {
    /// The config server does it.
    Act {
        /// What.
        #[serde(rename = "does")]
        act: Act,
    },
    /// A person does it; the job waits for an answer.
    Person {
        /// What the person has to do.
        description: String,
    },
}

/// Is something that is done before or after a group (F-161).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Its name; unique in its list.
    pub name: String,
    /// What it does.
    #[serde(flatten)]
    pub what: What,
    /// With which failovers.
    pub verbs: Vec<Verb>,
    /// In which directions.
    pub directions: Vec<Direction>,
}

impl Act {
    /// The same with nothing in it that nobody may know.
    pub fn without_secrets(&self) -> Act {
        let mut act = self.clone();
        if let Some(secret) = act.secret_mut() {
            *secret = None;
        }
        act
    }

    /// Where its secret is; none of one that needs none.
    fn secret_mut(&mut self) -> Option<&mut Option<Secret>> {
        match self {
            Act::Webhook { secret, .. } => Some(secret),
            Act::Dns { update, .. } => Some(&mut update.key),
            Act::Script { .. } | Act::Wait { .. } => None,
        }
    }

    /// How long it may take, in seconds.
    pub fn timeout_s(&self) -> u32 {
        match self {
            Act::Script { timeout_s, .. }
            | Act::Webhook { timeout_s, .. }
            | Act::Dns { timeout_s, .. }
            | Act::Wait { timeout_s, .. } => *timeout_s,
        }
    }

    /// Whether there is something to take back when the failover is.
    pub fn can_be_undone(&self) -> bool {
        !matches!(self, Act::Wait { .. })
    }

    /// Whether what is there is looked up, and kept, before it is changed.
    pub fn looks_first(&self) -> bool {
        matches!(self, Act::Dns { .. })
    }
}

impl Action {
    /// The action of the config server, if it is one.
    pub fn act(&self) -> Option<&Act> {
        match &self.what {
            What::Act { act } => Some(act),
            What::Person { .. } => None,
        }
    }

    /// Takes over the secret that it had before, when it was written again without one. Only where
    /// it goes to the same receiver: another one would learn it.
    pub(super) fn keep_secret(&mut self, before: &[&Action]) {
        let What::Act { act } = &mut self.what else { return };
        let same = before.iter().filter(|one| one.name.eq_ignore_ascii_case(&self.name));
        let same = same.filter_map(|one| one.act());
        let mut same = same.filter(|known| known.receiver() == act.receiver()).cloned();
        let kept = same.find_map(|mut known| known.secret_mut()?.take());
        if let Some(secret @ None) = act.secret_mut() {
            *secret = kept;
        }
    }
}

impl Act {
    /// Who gets what its secret makes.
    fn receiver(&self) -> (&str, &str) {
        match self {
            Act::Webhook { url, .. } => ("webhook", url),
            Act::Dns { update, .. } => ("dns", &update.server),
            Act::Script { path, .. } => ("script", path),
            Act::Wait { url, .. } => ("wait", url),
        }
    }
}

fn wrong<T>(what: impl Into<String>) -> Result<T> {
    Err(ControlError::bad_request(what))
}

/// Whether a text can be the name of a file of the folder of scripts.
fn is_script(path: &str) -> bool {
    (1..=100).contains(&path.len())
        && path.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !path.starts_with(['.', '-'])
}

/// Whether a text is an address of one of the schemes, with a host and nobody's password.
fn is_url(url: &str, schemes: &[&str]) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let plain = url.chars().all(|c| c.is_ascii_graphic()) && !host.contains('@');
    let ported = scheme != "tcp" || (is_place(host) && host == rest);
    let parsed = url.parse::<axum::http::Uri>().is_ok();
    schemes.contains(&scheme)
        && !host.is_empty()
        && url.len() <= TEXT_MAX
        && plain
        && ported
        && parsed
}

/// Whether a text is `host:port`.
fn is_place(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let name = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    !host.is_empty() && text.len() <= 300 && host.chars().all(name) && port.parse::<u16>().is_ok()
}

/// Whether a text can be a name in the DNS.
fn is_dns_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn dns(name: &str, update: &DnsUpdate) -> Result<()> {
    if !is_place(&update.server) {
        return wrong(format!("action {name}: the server {} is not host:port", update.server));
    }
    for one in [&update.zone, &update.name, &update.key_name] {
        if !is_dns_name(one) {
            return wrong(format!("action {name}: {one:?} is no name of the DNS"));
        }
    }
    let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    let (zone, whole) = (plain(&update.zone), plain(&update.name));
    if whole != zone && !whole.ends_with(&format!(".{zone}")) {
        return wrong(format!("action {name}: {} is not in zone {zone}", update.name));
    }
    if !(1..=ADDRESSES_MAX).contains(&update.addresses.len()) {
        return wrong(format!("action {name}: 1 to {ADDRESSES_MAX} addresses are possible"));
    }
    let distinct: BTreeSet<_> = update.addresses.iter().collect();
    if distinct.len() != update.addresses.len() {
        return wrong(format!("action {name}: an address stands there twice"));
    }
    if update.ttl_s > TTL_MAX_S {
        return wrong(format!("action {name}: a ttl of 0 to {TTL_MAX_S} seconds is possible"));
    }
    match update.key.as_ref().map(|key| key_bytes(key.reveal())) {
        Some(Some(_)) => Ok(()),
        Some(None) => wrong(format!("action {name}: the key is not 16 to 256 bytes in base64")),
        None => wrong(format!("action {name}: the update needs a key that signs it")),
    }
}

/// The bytes of a key, if they are enough to be one.
fn key_bytes(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    SECRET_BYTES.contains(&bytes.len()).then_some(bytes)
}

fn act(name: &str, act: &Act) -> Result<()> {
    if !(1..=TIMEOUT_MAX_S).contains(&act.timeout_s()) {
        return wrong(format!(
            "action {name}: a timeout of 1 to {TIMEOUT_MAX_S} seconds is possible"
        ));
    }
    match act {
        Act::Script { path, .. } if !is_script(path) => wrong(format!(
            "action {name}: the path {path:?} is not the name of a file in the folder of scripts \
             (letters, digits, - _ . alone)"
        )),
        Act::Script { .. } => Ok(()),
        Act::Webhook { url, .. } if !is_url(url, &["http", "https"]) => {
            wrong(format!("action {name}: {url:?} is no address of a webhook"))
        }
        Act::Webhook { retries, .. } if *retries > RETRIES_MAX => {
            wrong(format!("action {name}: at most {RETRIES_MAX} retries are possible"))
        }
        Act::Webhook { secret, .. } => match secret.as_ref().map(|one| one.reveal().len()) {
            Some(bytes) if SECRET_BYTES.contains(&bytes) => Ok(()),
            Some(_) => wrong(format!("action {name}: a secret has 16 to 256 bytes")),
            None => wrong(format!("action {name}: a webhook needs a secret that signs it")),
        },
        Act::Dns { update, .. } => dns(name, update),
        Act::Wait { url, .. } if !is_url(url, &["tcp", "http", "https"]) => {
            wrong(format!("action {name}: {url:?} is not tcp://host:port, http://… or https://…"))
        }
        Act::Wait { .. } => Ok(()),
    }
}

/// Checks the actions on one side of a group.
///
/// # Errors
/// BadRequest saying which action is wrong and why.
pub(super) fn check(group: usize, list: &[Action]) -> Result<()> {
    if list.len() > ACTIONS_MAX {
        return wrong(format!(
            "group {group} has {} actions on one side, {ACTIONS_MAX} at most are possible",
            list.len()
        ));
    }
    let mut names = BTreeSet::new();
    for action in list {
        check_name("action", &action.name)?;
        let name = &action.name;
        if !names.insert(name.to_lowercase()) {
            return wrong(format!("group {group} has two actions {name} on one side"));
        }
        match &action.what {
            What::Act { act: does } => act(name, does)?,
            What::Person { description } => {
                let letters = description.chars().count();
                if letters == 0 || letters > DESCRIPTION_MAX {
                    return wrong(format!(
                        "the description of action {name} has {letters} letters, 1 to \
                         {DESCRIPTION_MAX} are possible"
                    ));
                }
            }
        }
        if action.verbs.iter().any(|verb| !verb.boots()) {
            return wrong(format!(
                "action {name}: only TestFailover, PlannedFailover and UnplannedFailover have \
                 groups to act before or after"
            ));
        }
        if action.verbs.is_empty() || action.directions.is_empty() {
            return wrong(format!(
                "action {name} names no failover type or no direction, so it would never be done"
            ));
        }
    }
    Ok(())
}
