//! Takes machines out of the plan that are gone or were handed over, as wanted.

use crate::world::World;
use leeward_durable::StepError;
use leeward_wire::message::Stage;

pub(super) fn reconcile(world: &mut World) -> Result<(), StepError> {
    let Some(item) = &world.item else { return Ok(()) };
    let doomed: Vec<_> = (item.plan.instances.iter())
        .filter(|plan| plan.stage == Stage::Absent)
        .map(|plan| plan.id)
        .collect();
    for id in doomed {
        world.instance_drop(id)?;
    }
    hand_over(world)
}

/// What its host took over as its own is an instance no longer.
fn hand_over(world: &mut World) -> Result<(), StepError> {
    let Some(item) = &world.item else { return Ok(()) };
    let done: Vec<_> = (item.plan.instances.iter())
        .filter(|plan| plan.stage == Stage::HandedOver)
        .map(|plan| plan.id)
        .filter(|id| world.instance_answer(*id).is_some_and(|seen| seen.stage == Stage::HandedOver))
        .collect();
    if !done.is_empty() {
        world.item_mut()?.plan.instances.retain(|plan| !done.contains(&plan.id));
    }
    Ok(())
}
