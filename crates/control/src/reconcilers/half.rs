//! Lets a half-made copy go that no reprotect has gone on with for as long as points are kept after
//! a commit. Which copy it is, and what is let go of it, say the plan and its store.

use crate::world::World;
use leeward_durable::StepError;
use leeward_model::{Protection, Site};

pub(super) fn reconcile(world: &mut World) -> Result<(), StepError> {
    let Some(item) = &world.item else { return Ok(()) };
    // A reprotect that runs may be about to build on it.
    if !matches!(item.state.protection, Protection::Committed { .. }) {
        return Ok(());
    }
    let keep_ms = world.policy.keep_after_commit_seconds.saturating_mul(1000);
    let now_ms = world.now.wall_ms();
    for site in [Site::Primary, Site::Recovery] {
        let half = world.end(site)?.half;
        if half.is_some_and(|half| now_ms.saturating_sub(half.since_ms) > keep_ms) {
            world.item_mut()?.plan.end_mut(site).forget_half();
        }
    }
    Ok(())
}
