//! Sees when a copy or comparison is complete, and when one has become necessary.

use crate::events::Severity;
use crate::jobs;
use crate::plan::RunPlan;
use crate::world::World;
use leeward_durable::StepError;
use leeward_model::{Event, Protection};
use leeward_wire::message::CapturePhase;

pub(super) fn reconcile(world: &mut World) -> Result<(), StepError> {
    let Some(item) = &world.item else { return Ok(()) };
    match item.state.protection {
        Protection::InitialReplication { .. }
        | Protection::Resynchronizing { .. }
        | Protection::Reprotecting { .. } => {
            if is_seeded(world) {
                world.apply(Event::Seeded)?;
                let text = format!("{} is protected", world.item()?.name);
                world.note("ItemProtected", Severity::Info, text);
            }
            Ok(())
        }
        Protection::Protected => {
            let seen = world.source_now().filter(|_| world.source_answered());
            let asked = item.plan.resync;
            let reason = seen.and_then(|seen| match &seen.resync_reason {
                Some(reason) => Some(reason.clone()),
                None if seen.resync_done < asked => Some("a way back asked for it".to_owned()),
                None => None,
            });
            let Some(reason) = reason.filter(|_| jobs::resync_can_be_shown(world)) else {
                return Ok(());
            };
            let job = world.new_id();
            world.apply(Event::ResyncNeeded { job, reason: reason.clone() })?;
            let text = format!("{} is compared with its replica: {reason}", world.item()?.name);
            world.note("ResyncNeeded", Severity::Warning, text);
            jobs::spawn_resync(world).map(drop)
        }
        Protection::Enabling { .. }
        | Protection::FailingOver { .. }
        | Protection::FailedOver { .. }
        | Protection::ChangingPoint { .. }
        | Protection::Committed { .. }
        | Protection::Disabling { .. }
        | Protection::Removed => Ok(()),
    }
}

/// Whether the replica has a complete point of the source's present timeline, and no comparison
/// that was asked for, or that the host found necessary, is outstanding.
fn is_seeded(world: &World) -> bool {
    let (Some(item), Some(source), Some(target)) =
        (&world.item, world.source_now(), world.target_now())
    else {
        return false;
    };
    let plan = &item.plan;
    world.source_answered()
        && matches!(plan.end(item.source_site()).run, RunPlan::Replicate { .. })
        && source.timeline == plan.branch.timeline
        && source.phase == CapturePhase::Delta
        && source.resync_reason.is_none()
        && source.resync_done >= plan.resync
        && target.newest.as_ref().is_some_and(|n| n.position.timeline == plan.branch.timeline)
}
