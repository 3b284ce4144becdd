//! How a protected item looks: the contract's Hyper-V replica, with our own fields beside its.

use super::{
    audit_view, direction,
    fabrics::health_error,
    hosts::{disk_view, machine_state},
    ids::{self, Ids, resource, time, time_or_null},
    item_settings,
};
use crate::{
    items::{
        DataSync, EndView, HealthError, InstanceView, ItemView, Level, LiveAt, Operation,
        SyncEstimate,
    },
    jobs::Scenario,
};
use leeward_model::{Code, Direction, JobId, Protection, Site, SourceState, TestState, UnixMillis};
use leeward_wire::message::NewestPoint;
use serde_json::{Value, json};

/// The provider that items of KVM hosts are shown as.
pub(super) const INSTANCE_TYPE: &str = "HyperVReplica2012R2";

/// The states that differ between planned and unplanned failovers.
fn failover_state(item: &ItemView) -> Option<(&'static str, &'static str)> {
    let planned =
        item.running.is_some_and(|(scenario, _, _)| scenario == Scenario::PlannedFailover);
    match &item.state.protection {
        Protection::FailingOver { .. } if item.allowed.contains(&Operation::FinalizeFailback) => {
            Some(("WaitingForFinalizeFailback", "Waiting for \"Complete failover\""))
        }
        Protection::FailingOver { .. } if planned => {
            Some(("PlannedFailoverInProgress", "Planned failover in progress"))
        }
        Protection::FailedOver { .. } if item.planned => {
            Some(("PlannedFailoverCommitRequired", "Planned failover finished"))
        }
        Protection::Committed { .. } if item.planned => {
            Some(("PlannedFailoverStatesBegin", "Planned failover committed"))
        }
        _ => None,
    }
}

/// The state in the contract's words, and for people.
pub(super) fn protection_state(item: &ItemView) -> (&'static str, &'static str) {
    if let Some(state) = failover_state(item) {
        return state;
    }
    match &item.state.protection {
        Protection::Enabling { .. } => ("EnablingProtection", "Enabling protection"),
        Protection::InitialReplication { .. } => {
            ("UnprotectedStatesBegin", "Initial replication in progress")
        }
        Protection::Protected => match item.state.test {
            TestState::Active { .. } => ("Protected", "Cleanup test failover pending"),
            TestState::None | TestState::Running { .. } | TestState::CleaningUp { .. } => {
                ("Protected", "Protected")
            }
        },
        Protection::Resynchronizing { .. } => {
            ("ResynchronizationInProgress", "Resynchronization in progress")
        }
        Protection::FailingOver { .. } => ("UnplannedFailoverInProgress", "Failover in progress"),
        Protection::FailedOver { .. } => {
            ("UnplannedFailoverCommitPendingStatesBegin", "Failover completed")
        }
        Protection::ChangingPoint { .. } => {
            ("ChangeRecoveryPointInProgress", "Change of recovery point in progress")
        }
        Protection::Committed { .. } => ("UnplannedFailoverCommitted", "Failover committed"),
        Protection::Reprotecting { .. } => ("ReprotectInProgress", "Reprotect in progress"),
        Protection::Disabling { .. } => ("DisablingProtection", "Disabling protection"),
        Protection::Removed => ("Unprotected", "Protection was ended"),
    }
}

fn test_state(test: &TestState) -> (&'static str, &'static str) {
    match test {
        TestState::None => ("None", "None"),
        TestState::Running { .. } => ("InProgress", "Test failover in progress"),
        TestState::Active { .. } => ("WaitingForCompletion", "Waiting for user input"),
        TestState::CleaningUp { .. } => ("MarkedForDeletion", "Cleaning up test environment"),
    }
}

pub(super) fn site(site: Site) -> &'static str {
    match site {
        Site::Primary => "Primary",
        Site::Recovery => "Recovery",
    }
}

pub(super) fn level(level: Level) -> &'static str {
    match level {
        Level::Normal => "Normal",
        Level::Warning => "Warning",
        Level::Critical => "Critical",
    }
}

fn live_at(item: &ItemView) -> String {
    match item.live_at {
        LiveAt::Site(where_to) => site(where_to).to_owned(),
        LiveAt::Nowhere => "NOWHERE".into(),
        LiveAt::Unknown => "UNKNOWN".into(),
        LiveAt::Both => "BOTH".into(),
    }
}

fn source_state(state: &SourceState) -> Value {
    match state {
        SourceState::Unknown => json!({ "state": "Unknown" }),
        SourceState::Running => json!({ "state": "Running" }),
        SourceState::ConfirmedOff { by, at } => json!({
            "state": "ConfirmedOff",
            "by": by,
            "at": time(leeward_model::UnixMillis(*at)),
        }),
    }
}

/// Worst health of the item's replication.
pub(super) fn health(item: &ItemView) -> Level {
    item.health.iter().map(|error| error.level).max().unwrap_or(Level::Normal)
}

/// Health of a failover: would one do well now?
fn failover_health(item: &ItemView) -> Level {
    let both = |error: &HealthError| error.problem.code == Code::BOTH_MAY_BE_LIVE.code;
    if item.health.iter().any(both) {
        Level::Critical
    } else if item.last_test.is_none() {
        Level::Warning
    } else {
        Level::Normal
    }
}

/// Percent of the first copy of a direction, as the text that the contract has for it.
fn copied_percent(item: &ItemView) -> String {
    let first_copy = matches!(
        item.state.protection,
        Protection::Enabling { .. }
            | Protection::InitialReplication { .. }
            | Protection::Reprotecting { .. }
    );
    let percent = match (&item.copy, first_copy) {
        (_, false) => 100,
        (Some(copy), true) if copy.total_bytes > 0 => {
            // 100 is kept for a copy that is complete.
            (copy.done_bytes.saturating_mul(100) / copy.total_bytes).min(99)
        }
        (_, true) => 0,
    };
    percent.to_string()
}

fn instance_view(instance: &InstanceView, ids: &Ids, item: &ItemView) -> Value {
    json!({
        "id": instance.id,
        "site": site(instance.site),
        "purpose": format!("{:?}", instance.purpose),
        "recoveryPointId": ids.point(item, instance.point),
        "wantedStage": format!("{:?}", instance.wanted),
        "stage": instance.stage.map(|stage| format!("{stage:?}")),
        "machineState": machine_state(instance.machine),
        "hydratedPercent": instance.hydrated_percent,
        "guestStartedAt": time_or_null(instance.guest_started_at),
        "probePassed": instance.evidence.as_ref().map(|result| result.passed),
        "probeSeen": instance.evidence.as_ref().map(|result| result.evidence.seen.clone()),
        "probeTookMilliseconds": instance.evidence.as_ref().map(|result| result.evidence.took_ms),
        "keptPointId": instance.kept.map(|point| ids.point(item, point)),
        "problem": instance.problem,
        "consolePath": instance.console_path,
    })
}

/// A complete point that is known of a store.
fn newest_view(ids: &Ids, item: &ItemView, newest: &NewestPoint) -> Value {
    json!({
        "recoveryPointId": ids.point(item, newest.point),
        "timeline": newest.position.timeline,
        "lsn": newest.position.lsn,
        "cutAt": time(newest.cut_at),
        "receivedAt": time(newest.received_at),
    })
}

/// What the item has at one of its sites.
fn end_view(ids: &Ids, item: &ItemView, end: &EndView) -> Value {
    json!({
        "site": site(end.site),
        "fabric": match end.site {
            Site::Primary => &item.source_fabric_name,
            Site::Recovery => &item.target_fabric_name,
        },
        "host": end.host_name,
        "connected": end.connected,
        "machine": end.machine,
        "run": format!("{:?}", end.run),
        "machineState": machine_state(end.machine_state),
        "newestPoint": end.newest.as_ref().map(|newest| newest_view(ids, item, newest)),
        "points": end.points,
        "storedBytes": end.stored_bytes,
    })
}

/// The direction of the next failover, or of the reprotect where nothing replicates the machine.
fn next_direction(item: &ItemView) -> Direction {
    match item.state.protection {
        Protection::FailedOver { .. }
        | Protection::ChangingPoint { .. }
        | Protection::Committed { .. } => item.state.direction.reversed(),
        Protection::Enabling { .. }
        | Protection::InitialReplication { .. }
        | Protection::Protected
        | Protection::Resynchronizing { .. }
        | Protection::FailingOver { .. }
        | Protection::Reprotecting { .. }
        | Protection::Disabling { .. }
        | Protection::Removed => item.state.direction,
    }
}

/// Our own fields.
fn extensions(ids: &Ids, item: &ItemView) -> Value {
    let instances: Vec<_> =
        item.instances.iter().map(|instance| instance_view(instance, ids, item)).collect();
    let cycles: Vec<_> = item
        .cycles
        .iter()
        .map(|cycle| {
            json!({
                "pauseMilliseconds": cycle.pause_ms,
                "cycleMilliseconds": cycle.cycle_ms,
                "dirtyBytes": cycle.dirty_bytes,
                "sentBytes": cycle.sent_bytes,
            })
        })
        .collect();
    json!({
        "leewardPlatform": "kvm",
        "leewardItemId": item.id,
        "leewardState": item.state.protection.name(),
        "leewardLiveAt": live_at(item),
        "leewardLiveEvidence": item.live_evidence,
        "leewardSourceState": source_state(&item.state.source),
        "leewardSourceMachineState": machine_state(item.source_machine),
        "leewardSourceHost": item.source_host_name,
        "leewardSourceConnected": item.source_connected,
        "leewardTargetHost": item.target_host_name,
        "leewardTargetConnected": item.target_connected,
        "leewardRpoSeconds": item.rpo_seconds,
        "leewardEpoch": item.epoch,
        "leewardTimeline": item.branch.timeline,
        "leewardNewestPoint":
            item.newest.as_ref().map(|newest| newest_view(ids, item, newest)),
        "leewardEnds":
            item.ends.iter().map(|end| end_view(ids, item, end)).collect::<Vec<_>>(),
        "leewardTarget": item_settings::target_view(ids, item),
        "leewardPoints": item.points,
        "leewardInstances": instances,
        "leewardCycles": cycles,
        "leewardSentBytes": item.sent_bytes,
        "leewardSpool": item.spool.map(|spool| json!({
            "points": spool.points,
            "bytes": spool.bytes,
            "roomBytes": spool.room_bytes,
            "bitmapOnly": spool.map_only,
        })),
        "leewardStoredBytes": item.stored_bytes,
        "leewardCopy": item.copy.map(|copy| json!({
            "doneBytes": copy.done_bytes,
            "totalBytes": copy.total_bytes,
            "sentBytes": copy.sent_bytes,
        })),
        "leewardEstimateSeconds": item.copy.and_then(|copy| copy.seconds_left),
        "leewardDataSync": item.data_sync.as_ref().map(data_sync_view),
        "leewardResyncReason": item.resync_reason,
        "leewardAudit": audit_view::audit(item.audit.as_ref()),
        "leewardStoreAudit": audit_view::audit(item.store_audit.as_ref()),
        "leewardServed": audit_view::served(&item.served),
        "leewardDivergent": item.divergent.as_ref().map(|note| json!({
            "recoveryPointId": ids.point(item, note.point),
            "name": note.name,
            "dirtyBytes": note.dirty_bytes,
            "stoppedAt": time(note.stopped_at),
        })),
        "leewardFencedAt": item.fenced_at.map(|position| json!({
            "timeline": position.timeline,
            "lsn": position.lsn,
        })),
    })
}

/// The estimates of a planned failover from here, by the contract's words for its options.
fn data_sync_view(found: &DataSync) -> Value {
    let option = |one: &SyncEstimate| {
        json!({
            "option": format!("{:?}", one.option),
            "bytes": one.bytes,
            "seconds": one.seconds,
            "downtimeSeconds": one.downtime_seconds,
            "basis": one.basis,
        })
    };
    let options: Vec<_> = found.options.iter().map(option).collect();
    json!({ "proposed": format!("{:?}", found.proposed), "options": options })
}

fn details(ids: &Ids, item: &ItemView) -> Value {
    let (state, description) = protection_state(item);
    let spec = item.spec.as_ref();
    let disks: Vec<_> =
        spec.map(|spec| spec.disks.iter().map(disk_view).collect()).unwrap_or_default();
    let mut body = json!({
        "instanceType": INSTANCE_TYPE,
        "lastReplicatedTime": time_or_null(item.newest.as_ref().map(|newest| newest.cut_at)),
        "vmId": item.machine_id,
        "vmProtectionState": state,
        "vmProtectionStateDescription": description,
        "initialReplicationDetails": {
            "initialReplicationType": "OverNetwork",
            "initialReplicationProgressPercentage": copied_percent(item),
        },
        "vMDiskDetails": disks,
        "vmNics": item_settings::nics_view(ids, item),
    });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), extensions(ids, item)) {
        body.extend(more);
    }
    body
}

/// What is being done with an item or a plan: the scenario, its job and since when.
pub(super) fn current_scenario(ids: &Ids, running: Option<(Scenario, JobId, UnixMillis)>) -> Value {
    match running {
        Some((scenario, job, began)) => json!({
            "scenarioName": format!("{scenario:?}"),
            "jobId": ids.job(job),
            "startTime": time(began),
        }),
        None => json!({
            "scenarioName": "None",
            "jobId": ids.below("replicationJobs", "None"),
            "startTime": null,
        }),
    }
}

fn health_errors(item: &ItemView) -> Vec<Value> {
    let entity = item.id.to_string();
    item.health
        .iter()
        .map(|error| {
            let word = if error.level == Level::Critical { "Error" } else { "Warning" };
            health_error(&error.problem, word, &entity)
        })
        .collect()
}

/// The item as a resource.
pub(super) fn view(ids: &Ids, item: &ItemView) -> Value {
    let (state, description) = protection_state(item);
    let (test, test_description) = test_state(&item.state.test);
    let allowed: Vec<_> = item.allowed.iter().map(|operation| format!("{operation:?}")).collect();
    let container = ids.container_of(item.source_fabric, &item.source_fabric_name);
    resource(
        &ids.item(item),
        json!({
            "friendlyName": item.name,
            "protectedItemType": "HyperVVirtualMachine",
            "protectableItemId":
                format!("{container}/replicationProtectableItems/{}", item.machine_id),
            "recoveryServicesProviderId":
                ids.host(&item.source_fabric_name, &item.source_host_name),
            "primaryFabricFriendlyName": item.source_fabric_name,
            "primaryFabricProvider": super::fabrics::FABRIC_TYPE,
            "recoveryFabricFriendlyName": item.target_fabric_name,
            "recoveryFabricId": ids.fabric(&item.target_fabric_name),
            "primaryProtectionContainerFriendlyName": item.source_fabric_name,
            "recoveryProtectionContainerFriendlyName": item.target_fabric_name,
            "recoveryContainerId": ids.container_of(item.target_fabric, &item.target_fabric_name),
            "protectionState": state,
            "protectionStateDescription": description,
            "activeLocation": site(item.state.active),
            "testFailoverState": test,
            "testFailoverStateDescription": test_description,
            "switchProviderState": "None",
            "allowedOperations": allowed,
            "replicationHealth": level(health(item)),
            "failoverHealth": level(failover_health(item)),
            "healthErrors": health_errors(item),
            "policyId": ids.policy(&item.policy_name),
            "policyFriendlyName": item.policy_name,
            "lastSuccessfulFailoverTime": time_or_null(item.last_failover),
            "lastSuccessfulTestFailoverTime": time_or_null(item.last_test),
            "currentScenario": current_scenario(ids, item.running.or(item.running_test)),
            "failoverRecoveryPointId": failover_point(ids, item),
            "eventCorrelationId": item.id,
            "leewardDirection": direction::word(item.state.direction),
            "leewardNextDirection": direction::word(next_direction(item)),
            "providerSpecificDetails": details(ids, item),
        }),
    )
}

/// The point that the machine at the target runs from, or is about to.
fn failover_point(ids: &Ids, item: &ItemView) -> Option<String> {
    let point = match &item.state.protection {
        Protection::FailingOver { point, .. } => (*point)?,
        Protection::FailedOver { point, .. } => *point,
        Protection::ChangingPoint { to, .. } => *to,
        Protection::Enabling { .. }
        | Protection::InitialReplication { .. }
        | Protection::Protected
        | Protection::Resynchronizing { .. }
        | Protection::Committed { .. }
        | Protection::Reprotecting { .. }
        | Protection::Disabling { .. }
        | Protection::Removed => return None,
    };
    Some(ids::Ids::point(ids, item, point))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{item, vault};
    use super::*;
    use leeward_model::{InstanceId, JobId, PointId, UnixMillis};
    use leeward_wire::message::CopyProgress;

    fn shown(item: &ItemView) -> Value {
        view(&Ids::of(&vault()), item)["properties"].clone()
    }

    #[test]
    fn every_state_has_the_word_that_clients_wait_for() {
        let (job, point, machine) =
            (JobId::from_u128(1), PointId::from_u128(2), InstanceId::from_u128(3));
        for (protection, word, runs) in [
            (Protection::Enabling { job }, "EnablingProtection", false),
            (Protection::InitialReplication { job }, "UnprotectedStatesBegin", false),
            (Protection::Protected, "Protected", false),
            (
                Protection::FailedOver { point, machine },
                "UnplannedFailoverCommitPendingStatesBegin",
                true,
            ),
            (Protection::Committed { machine }, "UnplannedFailoverCommitted", false),
            (Protection::Disabling { job }, "DisablingProtection", false),
        ] {
            let mut item = item();
            item.state.protection = protection;

            let shown = shown(&item);

            assert_eq!(shown["protectionState"], word);
            assert_eq!(shown["providerSpecificDetails"]["vmProtectionState"], word);
            assert_eq!(shown["failoverRecoveryPointId"].is_string(), runs, "{word}");
            // Clients stop waiting at words like these.
            assert!(!word.ends_with("Failed") && !word.starts_with("Cancel"));
        }
    }

    #[test]
    fn a_waiting_test_machine_shows_as_cleanup_pending() {
        let mut item = item();
        item.state.test = TestState::Active { machine: InstanceId::from_u128(3) };
        item.running_test = Some((Scenario::TestFailover, JobId::from_u128(9), UnixMillis(0)));

        let shown = shown(&item);

        assert_eq!(shown["protectionState"], "Protected");
        assert_eq!(shown["protectionStateDescription"], "Cleanup test failover pending");
        assert_eq!(shown["testFailoverState"], "WaitingForCompletion");
        assert_eq!(shown["currentScenario"]["scenarioName"], "TestFailover");
    }

    #[test]
    fn a_first_copy_never_shows_as_complete_before_it_is() {
        let mut item = item();
        item.state.protection = Protection::InitialReplication { job: JobId::from_u128(1) };
        for (done, total, shown) in [(0, 0, "0"), (5, 10, "50"), (10, 10, "99")] {
            item.copy =
                Some(CopyProgress { done_bytes: done, total_bytes: total, ..Default::default() });
            assert_eq!(copied_percent(&item), shown);
        }
        item.state.protection = Protection::Protected;
        assert_eq!(copied_percent(&item), "100");
    }

    /// F-086, F-098, F-105.
    #[test]
    fn a_planned_failover_shows_as_one_at_every_stage_and_so_does_the_way_back() {
        let (point, machine) = (PointId::from_u128(2), InstanceId::from_u128(3));
        let mut item = item();
        let job = JobId::from_u128(9);
        let choice = leeward_model::PointChoice::Latest;
        let started = leeward_model::Event::FailoverStarted { job, choice, target: Site::Recovery };
        item.state = item.state.apply(&started).unwrap();
        item.running = Some((Scenario::PlannedFailover, job, UnixMillis(0)));
        assert_eq!(shown(&item)["protectionState"], "PlannedFailoverInProgress");
        item.allowed = vec![Operation::CancelFailover, Operation::FinalizeFailback];
        let waiting = shown(&item);
        assert_eq!(waiting["protectionState"], "WaitingForFinalizeFailback");
        assert_eq!(waiting["allowedOperations"], json!(["CancelFailover", "FinalizeFailback"]));
        assert_eq!(waiting["activeLocation"], "Primary");

        (item.running, item.allowed, item.planned) = (None, Vec::new(), true);
        item.state.protection = Protection::FailedOver { point, machine };
        assert_eq!(shown(&item)["protectionState"], "PlannedFailoverCommitRequired");
        item.state.protection = Protection::Committed { machine };
        let committed = shown(&item);
        assert_eq!(committed["protectionState"], "PlannedFailoverStatesBegin");
        assert_eq!(committed["leewardDirection"], "PrimaryToRecovery");
        assert_eq!(committed["leewardNextDirection"], "RecoveryToPrimary");

        item.planned = false;
        item.state = item.state.apply(&leeward_model::Event::ReprotectStarted { job }).unwrap();
        item.copy = Some(CopyProgress { done_bytes: 1, total_bytes: 4, ..Default::default() });
        let turning = shown(&item);
        assert_eq!(turning["protectionState"], "ReprotectInProgress");
        assert_eq!(turning["leewardDirection"], "RecoveryToPrimary");
        let copied = &turning["providerSpecificDetails"]["initialReplicationDetails"];
        assert_eq!(copied["initialReplicationProgressPercentage"], "25");
    }

    #[test]
    fn both_ends_are_shown_with_what_is_wanted_and_what_is_there() {
        let mut item = item();
        item.ends[0].run = crate::items::RunView::Seed;
        item.ends[0].machine_state = leeward_model::MachineState::Off;
        item.ends[1].points = Some(7);

        let ends = shown(&item)["providerSpecificDetails"]["leewardEnds"].clone();

        assert_eq!((&ends[0]["site"], &ends[1]["site"]), (&json!("Primary"), &json!("Recovery")));
        assert_eq!((&ends[0]["fabric"], &ends[0]["host"]), (&json!("hill"), &json!("kvm-a")));
        assert_eq!((&ends[0]["run"], &ends[0]["machineState"]), (&json!("Seed"), &json!("Off")));
        assert_eq!((&ends[1]["points"], &ends[1]["newestPoint"]), (&json!(7), &Value::Null));
    }

    #[test]
    fn both_sides_live_is_a_critical_failover_health() {
        let mut item = item();
        item.last_test = Some(UnixMillis(1));
        assert_eq!(shown(&item)["failoverHealth"], "Normal");
        item.live_at = LiveAt::Both;
        item.health.push(HealthError {
            level: Level::Critical,
            problem: Code::BOTH_MAY_BE_LIVE.problem("web01 may run twice"),
        });

        let shown = shown(&item);

        assert_eq!(shown["failoverHealth"], "Critical");
        assert_eq!(shown["replicationHealth"], "Critical");
        assert_eq!(shown["healthErrors"][0]["errorCode"], "LW-0304");
        assert_eq!(shown["providerSpecificDetails"]["leewardLiveAt"], "BOTH");
    }
}
