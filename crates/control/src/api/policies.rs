//! Replication policies: any of the contract's policy inputs, read by field name, becomes one
//! neutral policy; what was sent is kept and shown again.

use super::{
    Below,
    envelope::{Answer, Refusal},
    ids::{Ids, resource},
    request::Fields,
};
use crate::{
    ControlError,
    jobs::{InstantJob, Scenario, TargetKind},
    policies::{PolicySpec, PolicyView},
};
use leeward_model::{NoBandwidth, POINT_INTERVAL_MAX, POINT_INTERVAL_MIN, Policy, ResyncWindow};
use serde_json::{Map, Value, json};

/// The input that is meant when none is named.
const DEFAULT_TYPE: &str = "HyperVReplica2012R2";
/// Policy inputs of the contract. The first three are shown with their numbers as they are now.
const TYPES: [&str; 9] = [
    "HyperVReplica2012R2",
    "HyperVReplica2012",
    "HyperVReplicaAzure",
    "InMage",
    "InMageAzureV2",
    "InMageRcm",
    "InMageRcmFailback",
    "A2A",
    "VMwareCbt",
];
/// Longest retention, in seconds: ten years.
const SECONDS_MAX: f64 = 10.0 * 365.0 * 86_400.0;
/// The interval between recovery points in seconds, with the unit of each field in seconds.
const INTERVAL: [(&str, f64); 4] = [
    ("leewardPointIntervalSeconds", 1.0),
    ("replicationFrequencyInSeconds", 1.0),
    ("replicationInterval", 1.0),
    ("crashConsistentFrequencyInMinutes", 60.0),
];
/// How long points are kept. `recoveryPoints` counts hourly ones.
const RETENTION: [(&str, f64); 6] = [
    ("leewardRetentionSeconds", 1.0),
    ("recoveryPointHistoryInMinutes", 60.0),
    ("recoveryPointHistory", 60.0),
    ("recoveryPointHistoryDuration", 3600.0),
    ("recoveryPointHistoryDurationInHours", 3600.0),
    ("recoveryPoints", 3600.0),
];
/// Above which RPO an item is unwell.
const THRESHOLD: [(&str, f64); 2] =
    [("leewardRpoThresholdSeconds", 1.0), ("recoveryPointThresholdInMinutes", 60.0)];
/// How long points are kept after a commit.
const AFTER_COMMIT: [(&str, f64); 1] = [("leewardKeepAfterCommitSeconds", 1.0)];
/// How long a guest may take to shut down.
const SHUTDOWN: [(&str, f64); 1] = [("leewardShutdownTimeoutSeconds", 1.0)];
/// Whether a planned failover goes on to reprotect by itself (F-084).
const AUTO_REVERSE: &str = "leewardAutoReverse";
/// How many bytes a second may be sent, and when (F-046).
const BANDWIDTH: &str = "leewardBandwidth";
/// Above which share of the disks a delta becomes a comparison, in percent (F-152).
const RESYNC_THRESHOLD: &str = "leewardResyncThresholdPercent";
/// When a comparison may begin by itself: `HH:MM-HH:MM` in UTC, or [`ANY_TIME`] (F-154).
const RESYNC_WINDOW: &str = "leewardResyncWindow";
/// The word for no window.
const ANY_TIME: &str = "none";

/// The first of `names` that is there, in seconds.
fn seconds(fields: Fields<'_>, names: &[(&str, f64)]) -> Result<Option<f64>, ControlError> {
    for (name, unit) in names {
        let Some(number) = fields.number(name)? else { continue };
        let value = number * unit;
        if value > SECONDS_MAX {
            let what = format!("the field {name} is {number}, which is more than ten years");
            return Err(ControlError::bad_request(what));
        }
        return Ok(Some(value));
    }
    Ok(None)
}

/// Whole seconds, rounded up; the numbers are bounded by [`SECONDS_MAX`].
fn whole(value: f64) -> u64 {
    value.ceil() as u64
}

fn read(fields: Fields<'_>, before: &Policy) -> Result<Policy, ControlError> {
    let mut policy = before.clone();
    if let Some(interval) = seconds(fields, &INTERVAL)? {
        let (least, most) = (POINT_INTERVAL_MIN.as_secs_f64(), POINT_INTERVAL_MAX.as_secs_f64());
        if !(least..=most).contains(&interval) {
            let what = format!(
                "the interval between recovery points is {interval} s; it may be {least} to {most}"
            );
            return Err(ControlError::bad_request(what));
        }
        policy.point_interval_ms = (interval * 1000.0).round() as u64;
    }
    if let Some(value) = seconds(fields, &RETENTION)? {
        // Zero is the contract's way to keep only the newest: one hour keeps it.
        policy.retention_seconds = if value == 0.0 { 3600 } else { whole(value) };
    }
    if let Some(value) = seconds(fields, &THRESHOLD)? {
        policy.rpo_threshold_seconds = whole(value).max(1);
    }
    if let Some(value) = seconds(fields, &AFTER_COMMIT)? {
        policy.keep_after_commit_seconds = whole(value);
    }
    if let Some(value) = seconds(fields, &SHUTDOWN)? {
        policy.shutdown_timeout_seconds = whole(value);
    }
    if let Some(reverse) = fields.flag(AUTO_REVERSE)? {
        policy.auto_reverse_planned = reverse;
    }
    if let Some(percent) = fields.number(RESYNC_THRESHOLD)? {
        if !(1.0..=100.0).contains(&percent) || percent.fract() != 0.0 {
            let what = format!("{RESYNC_THRESHOLD} is {percent}; it may be 1 to 100, whole");
            return Err(ControlError::bad_request(what));
        }
        policy.resync_threshold_percent = percent as u8;
    }
    if let Some(window) = fields.text(RESYNC_WINDOW)? {
        policy.resync_window = read_window(window)?;
    }
    if let Some(text) = fields.text(BANDWIDTH)? {
        policy.bandwidth = text.parse().map_err(|error: NoBandwidth| {
            ControlError::bad_request(format!("{BANDWIDTH} is {text}: {error}"))
        })?;
    }
    Ok(policy)
}

fn read_window(text: &str) -> Result<Option<ResyncWindow>, ControlError> {
    if text.eq_ignore_ascii_case(ANY_TIME) {
        return Ok(None);
    }
    let window = text.parse::<ResyncWindow>().map_err(|error| {
        let what = format!("{RESYNC_WINDOW} is {text}: {error}; {ANY_TIME} is at any time");
        ControlError::bad_request(what)
    })?;
    Ok(Some(window))
}

fn type_of(fields: Fields<'_>, before: &str) -> Result<String, ControlError> {
    let Some(name) = fields.text("instanceType")? else { return Ok(before.to_owned()) };
    if name.eq_ignore_ascii_case("PolicyProviderSpecificInput") {
        return Ok(before.to_owned());
    }
    let known = TYPES.iter().find(|known| known.eq_ignore_ascii_case(name));
    match known {
        Some(known) => Ok((*known).to_owned()),
        None => {
            let what = format!("instanceType {name} is not one of: {}", TYPES.join(", "));
            Err(ControlError::bad_request(what))
        }
    }
}

/// What the body sets under `key`; what it does not name stays as in `before`.
fn spec(below: &Below<'_>, key: &str, before: &PolicySpec) -> Result<PolicySpec, ControlError> {
    let fields = below.call.properties()?.object(key)?;
    merge(fields, below.call.properties()?.raw(key), before)
}

fn merge(
    fields: Fields<'_>,
    sent: Option<&Value>,
    before: &PolicySpec,
) -> Result<PolicySpec, ControlError> {
    let old_type = before.extra["instanceType"].as_str().unwrap_or(DEFAULT_TYPE);
    let instance_type = type_of(fields, old_type)?;
    let policy = read(fields, &before.policy)?;
    let mut input = before.extra["input"].as_object().cloned().unwrap_or_default();
    for (name, value) in sent.and_then(Value::as_object).into_iter().flatten() {
        if !value.is_null() && !name.eq_ignore_ascii_case("instanceType") {
            input.insert(name.clone(), value.clone());
        }
    }
    Ok(PolicySpec { policy, extra: json!({ "instanceType": instance_type, "input": input }) })
}

/// The contract's numbers of a policy, under the names of its type.
fn numbers(instance_type: &str, policy: &Policy) -> Map<String, Value> {
    let interval = policy.point_interval_ms.div_ceil(1000);
    let (retention, threshold) = (policy.retention_seconds, policy.rpo_threshold_seconds);
    let body = match instance_type {
        "HyperVReplica2012R2" | "HyperVReplica2012" => json!({
            "replicationFrequencyInSeconds": interval,
            "recoveryPoints": retention.div_ceil(3600),
            "applicationConsistentSnapshotFrequencyInHours": 0,
        }),
        "HyperVReplicaAzure" => json!({
            "replicationInterval": interval,
            "recoveryPointHistoryDurationInHours": retention.div_ceil(3600),
            "applicationConsistentSnapshotFrequencyInHours": 0,
        }),
        "InMageRcm" => json!({
            "recoveryPointHistoryInMinutes": retention.div_ceil(60),
            "crashConsistentFrequencyInMinutes": interval.div_ceil(60),
            "appConsistentFrequencyInMinutes": 0,
            "enableMultiVmSync": "false",
        }),
        "InMageRcmFailback" => json!({
            "crashConsistentFrequencyInMinutes": interval.div_ceil(60),
            "appConsistentFrequencyInMinutes": 0,
        }),
        _ => json!({
            "recoveryPointThresholdInMinutes": threshold.div_ceil(60),
            "recoveryPointHistory": retention.div_ceil(60),
            "crashConsistentFrequencyInMinutes": interval.div_ceil(60),
            "appConsistentFrequencyInMinutes": 0,
            "multiVmSyncStatus": "Disabled",
        }),
    };
    body.as_object().cloned().unwrap_or_default()
}

/// A field of the input under the name and in the spelling that the view has for it.
fn shown(name: &str, value: &Value) -> (String, Value) {
    let value = match (name, value.as_str()) {
        ("multiVmSyncStatus", Some("Enable")) => json!("Enabled"),
        ("multiVmSyncStatus", Some("Disable")) => json!("Disabled"),
        _ => value.clone(),
    };
    let name = match name {
        "recoveryPointHistoryDuration" => "recoveryPointHistoryDurationInHours",
        "replicaDeletion" => "replicaDeletionOption",
        other => other,
    };
    (name.to_owned(), value)
}

fn view(ids: &Ids, policy: &PolicyView) -> Value {
    let spec = &policy.spec;
    let instance_type = spec.extra["instanceType"].as_str().unwrap_or(DEFAULT_TYPE);
    let mut details = Map::new();
    details.insert("instanceType".into(), json!(instance_type));
    details.extend(numbers(instance_type, &spec.policy));
    let input = spec.extra["input"].as_object().cloned().unwrap_or_default();
    details.extend(input.iter().map(|(name, value)| shown(name, value)));
    let policy_now = &spec.policy;
    let window = policy_now.resync_window.map_or(ANY_TIME.to_owned(), |window| window.to_string());
    details.extend([
        (INTERVAL[0].0.into(), json!(policy_now.point_interval_ms as f64 / 1000.0)),
        (RETENTION[0].0.into(), json!(policy_now.retention_seconds)),
        (THRESHOLD[0].0.into(), json!(policy_now.rpo_threshold_seconds)),
        (AFTER_COMMIT[0].0.into(), json!(policy_now.keep_after_commit_seconds)),
        (SHUTDOWN[0].0.into(), json!(policy_now.shutdown_timeout_seconds)),
        (AUTO_REVERSE.into(), json!(policy_now.auto_reverse_planned)),
        (RESYNC_THRESHOLD.into(), json!(policy_now.resync_threshold_percent)),
        (RESYNC_WINDOW.into(), json!(window)),
        (BANDWIDTH.into(), json!(policy_now.bandwidth.to_string())),
    ]);
    resource(
        &ids.policy(&policy.name),
        json!({
            "friendlyName": policy.name,
            "providerSpecificDetails": details,
            "leewardProtectedItems": policy.items,
        }),
    )
}

async fn noted(below: &Below<'_>, scenario: Scenario, name: &str) -> Result<Answer, Refusal> {
    let instant = InstantJob {
        scenario,
        target_kind: TargetKind::ProtectionProfile,
        target_id: name.to_owned(),
        target_name: name.to_owned(),
    };
    let job = below.control().job_note(below.vault.id, instant).await?;
    Ok(below.accepted(below.ids.policy(name), job))
}

/// List.
pub(super) async fn list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let policies = below.control().policy_list(below.vault.id).await?;
    below.page(policies.iter().map(|policy| view(&below.ids, policy)).collect())
}

/// GET.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    let policy = below.control().policy_get(below.vault.id, below.name("policy")).await?;
    Ok(Answer::Ok(view(&below.ids, &policy)))
}

/// PUT: the whole policy; what is not named has its default.
pub(super) async fn put(below: &Below<'_>) -> Result<Answer, Refusal> {
    let spec = spec(below, "providerSpecificInput", &PolicySpec::default())?;
    let policy = below.control().policy_put(below.vault.id, below.name("policy"), spec).await?;
    noted(below, Scenario::AddProtectionProfile, &policy.name).await
}

/// PATCH: what is not named stays.
pub(super) async fn patch(below: &Below<'_>) -> Result<Answer, Refusal> {
    let control = below.control();
    let before = control.policy_get(below.vault.id, below.name("policy")).await?;
    let spec = spec(below, "replicationProviderSettings", &before.spec)?;
    let policy = control.policy_put(below.vault.id, &before.name, spec).await?;
    noted(below, Scenario::UpdateProtectionProfile, &policy.name).await
}

/// DELETE.
pub(super) async fn delete(below: &Below<'_>) -> Result<Answer, Refusal> {
    let control = below.control();
    let policy = control.policy_get(below.vault.id, below.name("policy")).await?;
    control.policy_delete(below.vault.id, &policy.name).await?;
    noted(below, Scenario::DeleteProtectionProfile, &policy.name).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::VaultId;

    fn put(input: Value) -> Result<PolicySpec, ControlError> {
        merge(Fields::new(&input), Some(&input), &PolicySpec::default())
    }

    fn shown_of(spec: PolicySpec) -> Value {
        let vault = super::super::tests::vault();
        let policy = PolicyView { name: "p".into(), vault: VaultId::from_u128(1), spec, items: 0 };
        view(&Ids::of(&vault), &policy)["properties"]["providerSpecificDetails"].clone()
    }

    #[test]
    fn every_family_of_inputs_sets_the_same_policy_by_field_name() {
        let hyper_v = put(json!({"replicationFrequencyInSeconds": 30, "recoveryPoints": 4}));
        let agent = put(json!({"instanceType": "InMage", "recoveryPointHistory": 240,
            "recoveryPointThresholdInMinutes": 15, "multiVmSyncStatus": "Disable"}));
        let ours = put(json!({"instanceType": "hypervreplica2012r2",
            "leewardPointIntervalSeconds": 1.5, "leewardRetentionSeconds": 90,
            "leewardRpoThresholdSeconds": 10, "leewardShutdownTimeoutSeconds": 5,
            "leewardAutoReverse": "true"}));

        let hyper_v = hyper_v.unwrap().policy;
        assert_eq!((hyper_v.point_interval_ms, hyper_v.retention_seconds), (30_000, 14_400));
        let agent = agent.unwrap();
        assert_eq!(agent.policy.retention_seconds, 14_400);
        assert_eq!(agent.policy.rpo_threshold_seconds, 900);
        assert_eq!(shown_of(agent)["multiVmSyncStatus"], "Disabled");
        let ours = ours.unwrap();
        assert_eq!(ours.policy.point_interval_ms, 1500);
        assert_eq!(ours.policy.retention_seconds, 90);
        assert_eq!(ours.policy.shutdown_timeout_seconds, 5);
        let view = shown_of(ours);
        assert_eq!(view["instanceType"], "HyperVReplica2012R2");
        assert_eq!(view["leewardPointIntervalSeconds"], 1.5);
        assert_eq!(view["leewardRpoThresholdSeconds"], 10);
        assert_eq!(view["leewardAutoReverse"], true);
    }

    #[test]
    fn a_change_keeps_the_type_and_what_it_does_not_name() {
        let first = json!({"instanceType": "InMageRcm", "recoveryPointHistoryInMinutes": 60,
            "crashConsistentFrequencyInMinutes": 5, "enableMultiVmSync": "true"});
        let before = put(first).unwrap();
        let change = json!({"recoveryPointHistoryInMinutes": 120, "enableMultiVmSync": null});

        let after = merge(Fields::new(&change), Some(&change), &before).unwrap();

        assert_eq!(after.policy.retention_seconds, 7200);
        assert_eq!(after.policy.point_interval_ms, 300_000);
        let view = shown_of(after);
        assert_eq!(view["instanceType"], "InMageRcm");
        assert_eq!(view["recoveryPointHistoryInMinutes"], 120);
        assert_eq!(view["enableMultiVmSync"], "true");
    }

    /// F-152, F-154.
    #[test]
    fn the_threshold_and_the_window_of_a_resync_are_set_shown_and_taken_back() {
        let input = json!({"leewardResyncThresholdPercent": 30,
            "leewardResyncWindow": "18:30-06:30"});
        let first = put(input).unwrap();
        assert_eq!(first.policy.resync_threshold_percent, 30);
        let view = shown_of(first.clone());
        assert_eq!(view["leewardResyncThresholdPercent"], 30);
        assert_eq!(view["leewardResyncWindow"], "18:30-06:30");

        let change = json!({"leewardResyncWindow": "none"});
        let after = merge(Fields::new(&change), Some(&change), &first).unwrap();

        assert_eq!(after.policy.resync_window, None);
        assert_eq!(after.policy.resync_threshold_percent, 30);
        assert_eq!(shown_of(after)["leewardResyncWindow"], "none");
    }

    /// F-046.
    #[test]
    fn a_bandwidth_limit_is_set_shown_and_taken_back() {
        let text = "none; mon,tue 08:00-18:00=2000000";
        let first = put(json!({ "leewardBandwidth": text })).unwrap();
        assert_eq!(first.policy.bandwidth.windows.len(), 1);
        assert_eq!(shown_of(first.clone())["leewardBandwidth"], text);

        let change = json!({"leewardBandwidth": "none"});
        let after = merge(Fields::new(&change), Some(&change), &first).unwrap();

        assert!(after.policy.bandwidth.is_unlimited());
        assert_eq!(shown_of(after)["leewardBandwidth"], "none");
    }

    #[test]
    fn an_impossible_policy_is_a_bad_request() {
        for input in [
            json!({"leewardPointIntervalSeconds": 0.5}),
            json!({"leewardAutoReverse": "perhaps"}),
            json!({"leewardResyncThresholdPercent": 0}),
            json!({"leewardResyncThresholdPercent": 101}),
            json!({"leewardResyncThresholdPercent": 50.5}),
            json!({"leewardResyncWindow": "at night"}),
            json!({"leewardBandwidth": "10M"}),
            json!({"leewardBandwidth": "1000"}),
            json!({"leewardBandwidth": "none; mon 08:00-18:00"}),
            json!({"leewardResyncWindow": "18:30-18:30"}),
            json!({"replicationFrequencyInSeconds": 3601}),
            json!({"recoveryPoints": "many"}),
            json!({"leewardRetentionSeconds": 1e300}),
            json!({"instanceType": "Floppy"}),
            json!({"instanceType": 7}),
        ] {
            let error = put(input.clone()).unwrap_err();
            assert_eq!(error.kind, crate::ErrorKind::BadRequest, "{input}");
        }
    }
}
