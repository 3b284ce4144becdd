//! How recovery plans and the tasks of their jobs look.

use super::{
    ids::{Ids, resource, time_or_null},
    item_view::{INSTANCE_TYPE, current_scenario},
    jobs::{friendly, state},
    plan_actions::{self, automation_id},
};
use crate::{
    jobs::{GroupTask, PartTask, PlanPart},
    plans::{Act, Group, GroupKind, PlanView, Verb},
};
use serde_json::{Value, json};

/// The contract's name of an operation.
pub(super) fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::TestFailover => "TestFailover",
        Verb::TestCleanup => "TestFailoverCleanup",
        Verb::PlannedFailover => "PlannedFailover",
        Verb::UnplannedFailover => "UnplannedFailover",
        Verb::Commit => "Commit",
        Verb::CancelFailover => "CancelFailover",
        Verb::Reprotect => "ReverseReplicate",
    }
}

fn group(ids: &Ids, plan: &PlanView, group: &Group) -> Value {
    let members = group.items.iter().filter_map(|item| {
        let member = plan.members.iter().find(|member| member.item == *item)?;
        Some(json!({
            "id": ids.item_named(member.fabric, &member.fabric_name, &member.name),
            "virtualMachineId": member.machine,
        }))
    });
    json!({
        "groupType": format!("{:?}", group.kind),
        "replicationProtectedItems": members.collect::<Vec<_>>(),
        "startGroupActions": group.before.iter().map(plan_actions::view).collect::<Vec<_>>(),
        "endGroupActions": group.after.iter().map(plan_actions::view).collect::<Vec<_>>(),
    })
}

/// A plan.
pub(super) fn view(ids: &Ids, plan: &PlanView) -> Value {
    let groups: Vec<_> = plan.groups.iter().map(|one| group(ids, plan, one)).collect();
    let current = current_scenario(ids, plan.running);
    let status = plan.last_state.map_or(("None", "None"), state);
    resource(
        &ids.plan(&plan.name),
        json!({
            "friendlyName": plan.name,
            "primaryFabricId": ids.fabric(&plan.primary_name),
            "primaryFabricFriendlyName": plan.primary_name,
            "recoveryFabricId": ids.fabric(&plan.recovery_name),
            "recoveryFabricFriendlyName": plan.recovery_name,
            "failoverDeploymentModel": plan.extra["failoverDeploymentModel"],
            "replicationProviders": [INSTANCE_TYPE],
            "allowedOperations": plan.allowed.iter().map(|one| verb_name(*one)).collect::<Vec<_>>(),
            "lastPlannedFailoverTime": time_or_null(plan.last_planned),
            "lastUnplannedFailoverTime": time_or_null(plan.last_unplanned),
            "lastTestFailoverTime": time_or_null(plan.last_test),
            "currentScenario": current,
            "currentScenarioStatus": status.0,
            "currentScenarioStatusDescription": status.1,
            "groups": groups,
            "providerSpecificDetails": [],
            "leewardPlanId": plan.id,
        }),
    )
}

/// What the contract shows of something that was done without a person.
fn act_details(name: &str, act: &Act, output: &str) -> Value {
    match act {
        Act::Script { path, .. } => json!({
            "instanceType": "ScriptActionTaskDetails",
            "name": name,
            "path": path,
            "output": output,
            "isPrimarySideScript": false,
        }),
        Act::Webhook { .. } | Act::Dns { .. } | Act::Wait { .. } => json!({
            "instanceType": "AutomationRunbookTaskDetails",
            "name": name,
            "runbookId": automation_id(act),
            "runbookName": automation_id(act),
            "jobOutput": output,
            "isPrimarySideScript": false,
        }),
    }
}

fn part(ids: &Ids, index: usize, part: &PartTask) -> Value {
    let (word, description) = state(part.task.state);
    let details = match &part.part {
        PlanPart::Machine { item, name, job, skipped } => json!({
            "instanceType": "VirtualMachineTaskDetails",
            "skippedReason": skipped.as_ref().map(|_| "LeewardNotPartOfThisRun"),
            "skippedReasonString": skipped,
            "jobTask": job.map(|(job, scenario)| json!({
                "jobId": ids.job(job),
                "jobFriendlyName": friendly(scenario),
                "targetObjectId": item,
                "targetObjectName": name,
                "targetInstanceType": "ProtectionEntity",
                "jobScenarioName": format!("{scenario:?}"),
            })),
        }),
        PlanPart::Action { instructions, reply } => json!({
            "instanceType": "ManualActionTaskDetails",
            "name": part.task.friendly_name,
            "instructions": instructions,
            "observation": reply,
        }),
        PlanPart::Act { act, code, output, taken_back } => {
            let name = &part.task.friendly_name;
            let mut details = act_details(name, act, output);
            details["leewardExitCode"] = json!(code);
            details["leewardTakenBack"] = json!(taken_back.as_ref().map(Result::is_ok));
            details["leewardTakeBackError"] =
                json!(taken_back.as_ref().and_then(|back| back.as_ref().err()));
            details
        }
    };
    let kind = details["instanceType"].clone();
    let errors = part.task.problem.iter().map(|problem| {
        json!({
            "serviceErrorDetails": {
                "code": problem.code,
                "message": problem.what,
                "possibleCauses": problem.cause,
                "recommendedAction": problem.todo,
            },
            "providerErrorDetails": null,
            "errorLevel": "Error",
        })
    });
    json!({
        "taskId": format!("{}-{index}", part.task.name),
        "name": part.task.name,
        "friendlyName": part.task.friendly_name,
        "state": word,
        "stateDescription": description,
        "startTime": time_or_null(part.task.started),
        "endTime": time_or_null(part.task.ended),
        "allowedActions": [],
        "taskType": kind,
        "customDetails": details,
        "groupTaskCustomDetails": null,
        "errors": errors.collect::<Vec<_>>(),
        "leewardMessage": part.task.message,
    })
}

/// The details of a task that is a group of a plan.
pub(super) fn group_details(ids: &Ids, task: &str, name: &str, group: &GroupTask) -> Value {
    let kind = match group.kind {
        GroupKind::Shutdown => "RecoveryPlanShutdownGroupTaskDetails",
        GroupKind::Failover | GroupKind::Boot => "RecoveryPlanGroupTaskDetails",
    };
    let children: Vec<_> =
        group.parts.iter().enumerate().map(|(index, one)| part(ids, index, one)).collect();
    json!({
        "instanceType": kind,
        "name": name,
        "groupId": task,
        "rpGroupType": format!("{:?}", group.kind),
        "childTasks": children,
    })
}
