//! Lets half-made copies go: one that no reprotect has gone on with for as long as points are kept
//! after a commit, and one on a host that was left for another, once the copy there is whole. Which
//! copy it is, and what is let go of it, say the plan and its store.

use crate::plan::Half;
use crate::world::World;
use leeward_durable::StepError;
use leeward_model::{Protection, Site};

pub(super) fn reconcile(world: &mut World) -> Result<(), StepError> {
    let Some(item) = &world.item else { return Ok(()) };
    let (target, plan) = (item.target_site(), &item.plan);
    // A reprotect that runs may be about to build on it, or may be given up and go back to it.
    let (idle, whole) = match item.state.protection {
        Protection::Committed { .. } => (true, false),
        Protection::Protected => (false, true),
        _ => return Ok(()),
    };
    let keep_ms = world.policy.keep_after_commit_seconds.saturating_mul(1000);
    let now_ms = world.now.wall_ms();
    let is_old = |half: &Half| idle && now_ms.saturating_sub(half.since_ms) > keep_ms;
    let sites = [Site::Primary, Site::Recovery];
    let ends = sites.map(|site| plan.end(site).half.as_ref().is_some_and(is_old));
    let left = plan.left.iter().map(|left| {
        let needless = |half: &Half| (whole && left.site == target) || is_old(half);
        left.half.as_ref().is_some_and(needless)
    });
    let left: Vec<bool> = left.collect();
    if !ends.into_iter().chain(left.iter().copied()).any(|goes| goes) {
        return Ok(());
    }
    let plan = &mut world.item_mut()?.plan;
    for (site, _) in sites.into_iter().zip(ends).filter(|(_, goes)| *goes) {
        plan.end_mut(site).forget_half();
    }
    for (one, _) in plan.left.iter_mut().zip(left).filter(|(_, goes)| *goes) {
        one.forget_half();
    }
    Ok(())
}
