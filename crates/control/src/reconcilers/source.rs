//! Follows what is known of the source machine, and ends the request to start it.

use crate::events::Severity;
use crate::plan::RunPlan;
use crate::world::World;
use leeward_durable::StepError;
use leeward_model::{MachineState, Protection, SourceState};

pub(super) fn reconcile(world: &mut World) -> Result<(), StepError> {
    left_hosts(world);
    let Some(item) = &world.item else { return Ok(()) };
    let site = item.source_site();
    let run = item.plan.end(site).run;
    if let RunPlan::Replicate { start: Some(job) } = run {
        let seen = world.source_now().and_then(|seen| seen.started.as_ref());
        if seen.is_some_and(|(by, result)| *by == job && result.is_ok()) {
            world.source_run(RunPlan::Replicate { start: None })?;
            return world.source_seen(SourceState::Running);
        }
        return Ok(());
    }
    if matches!(run, RunPlan::Replicate { .. }) {
        return match world.source_machine() {
            MachineState::Running => world.source_seen(SourceState::Running),
            MachineState::Paused | MachineState::Off | MachineState::Unknown => Ok(()),
        };
    }
    let left = matches!(
        item.state.protection,
        Protection::FailedOver { .. }
            | Protection::ChangingPoint { .. }
            | Protection::Committed { .. }
    );
    if !left || !matches!(run, RunPlan::Fenced | RunPlan::Unassigned) {
        return Ok(());
    }
    let known = item.state.source.clone();
    if world.source_is_off() {
        if !matches!(known, SourceState::ConfirmedOff { .. }) {
            let text = format!("the old machine of {} is off", item.name);
            world.note("OldMachineOff", Severity::Info, text);
        }
        return world.source_seen(world.confirmed_off(site));
    }
    if run == RunPlan::Unassigned {
        return Ok(());
    }
    match (world.source_machine(), known) {
        (MachineState::Running | MachineState::Paused, _) => {
            world.source_seen(SourceState::Running)
        }
        (MachineState::Unknown, SourceState::Running) => world.source_seen(SourceState::Unknown),
        (MachineState::Off | MachineState::Unknown, _) => Ok(()),
    }
}

/// Notes which machines on hosts that are no ends any more are off.
fn left_hosts(world: &mut World) {
    let Some(item) = &world.item else { return };
    let waits = item.plan.left.iter().filter(|left| !left.off).map(|left| left.host);
    let off: Vec<_> = waits.filter(|host| world.left_is_off(*host)).collect();
    let Some(item) = &mut world.item else { return };
    for left in item.plan.left.iter_mut().filter(|left| off.contains(&left.host)) {
        left.off = true;
    }
}
