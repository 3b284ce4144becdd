//! Tells operators when an item's points become older than its policy allows, and when they are
//! not any more. The item's health says it at every moment; this makes events of it.

use crate::events::Severity;
use crate::world::World;
use crate::{health, rpo::rpo_seconds};
use leeward_durable::StepError;

/// So long it counts as late at least: points that come just too seldom are told this often, not
/// with each point.
const LATE_MS_MIN: i64 = 10 * 60 * 1000;

pub(super) fn reconcile(world: &mut World) -> Result<(), StepError> {
    let Some(item) = &world.item else { return Ok(()) };
    let (name, since) = (item.name.clone(), item.plan.told.late_since);
    let now = world.now.wall;
    if !health::is_replicating(&item.state.protection) {
        if since.is_some() {
            world.item_mut()?.plan.told.late_since = None;
        }
        return Ok(());
    }
    // A host that is away told the truth when it was last heard; it only gets older.
    let target = world.target().sight.item(item.id).and_then(|seen| seen.target.as_ref());
    let newest = target.and_then(|seen| seen.newest.as_ref());
    let newest = newest.filter(|newest| item.plan.on_line(newest.position));
    // What nobody can tell is no news: neither late nor in time.
    let Some(rpo) = newest.and_then(|newest| rpo_seconds(newest, &world.now)) else {
        return Ok(());
    };
    match (health::rpo_excess(world, Some(rpo)), since) {
        (Some(problem), None) => {
            world.item_mut()?.plan.told.late_since = Some(now);
            world.note("RpoExceeded", Severity::Critical, problem.what.clone());
            if let Some(note) = world.notes.last_mut() {
                note.problem = Some(problem);
            }
        }
        (None, Some(since)) if now.0.saturating_sub(since.0) >= LATE_MS_MIN => {
            world.item_mut()?.plan.told.late_since = None;
            let text = format!("{name} is not late any more: its newest point is {rpo} s old");
            world.note("RpoMet", Severity::Info, text);
        }
        (Some(_), Some(_)) | (None, _) => {}
    }
    Ok(())
}
