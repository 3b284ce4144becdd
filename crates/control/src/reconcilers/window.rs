//! Opens and closes the window in which a comparison may begin by itself, by the wall clock.

use crate::world::World;
use leeward_durable::StepError;
use leeward_model::Protection;

/// Runs last: what the others made of the state counts at once.
pub(super) fn reconcile(world: &mut World) -> Result<(), StepError> {
    let Some(item) = &world.item else { return Ok(()) };
    // A first copy and a reprotect were asked for, and so they never wait.
    let follows = match item.state.protection {
        Protection::Protected | Protection::Resynchronizing { .. } => true,
        Protection::Enabling { .. }
        | Protection::InitialReplication { .. }
        | Protection::FailingOver { .. }
        | Protection::FailedOver { .. }
        | Protection::ChangingPoint { .. }
        | Protection::Committed { .. }
        | Protection::Reprotecting { .. }
        | Protection::Disabling { .. }
        | Protection::Removed => false,
    };
    let closed = world.policy.resync_window.is_some_and(|w| !w.contains(world.now.wall));
    let waits = follows && closed;
    if item.plan.resync_waits != waits {
        world.item_mut()?.plan.resync_waits = waits;
    }
    Ok(())
}
