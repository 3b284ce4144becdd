//! Takes machines that are gone, as wanted, out of the plan.

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
    Ok(())
}
