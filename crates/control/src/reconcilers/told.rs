//! Tells operators, once each, where the machine is live and which work was kept as a point.

use crate::events::Severity;
use crate::items::{LiveAt, live_at};
use crate::plan::TOLD_POINTS_MAX;
use crate::world::World;
use leeward_durable::StepError;
use leeward_model::{PointId, Site};

pub(super) fn reconcile(world: &mut World) -> Result<(), StepError> {
    if world.item.is_none() {
        return Ok(());
    }
    tell_live(world)?;
    for (point, severity, text) in kept(world) {
        let told = &mut world.item_mut()?.plan.told.points;
        if told.contains(&point) {
            continue;
        }
        told.push(point);
        let extra = told.len().saturating_sub(TOLD_POINTS_MAX);
        told.drain(..extra);
        world.note("WorkKept", severity, text);
    }
    Ok(())
}

/// That nobody can tell for a moment, as in every restart, is no news: the item shows it.
fn tell_live(world: &mut World) -> Result<(), StepError> {
    let (live, because) = live_at(world);
    let item = world.item_mut()?;
    if item.plan.told.live == Some(live) {
        return Ok(());
    }
    let name = item.name.clone();
    let (severity, text) = match live {
        LiveAt::Site(site) => (Severity::Info, format!("{name} is live at {}", word(site))),
        LiveAt::Both => (Severity::Critical, format!("{name} is live on both sides")),
        LiveAt::Nowhere | LiveAt::Unknown => return Ok(()),
    };
    item.plan.told.live = Some(live);
    world.note("LiveAtChanged", severity, format!("{text}: {because}"));
    Ok(())
}

fn word(site: Site) -> &'static str {
    match site {
        Site::Primary => "the primary site",
        Site::Recovery => "the recovery site",
    }
}

/// Work that hosts keep as points: of stale machines, and of stopped ones.
fn kept(world: &World) -> Vec<(PointId, Severity, String)> {
    let Some(item) = &world.item else { return Vec::new() };
    let sites = [Site::Primary, Site::Recovery].into_iter();
    let stale = sites.filter_map(|site| {
        let note = world.machine_now(site)?.divergent.clone()?;
        let (name, at) = (&item.name, word(site));
        let text = format!("what {name} wrote at {at} on its own is kept as point {}", note.name);
        Some((note.point, Severity::Warning, text))
    });
    let stopped = item.plan.instances.iter().filter_map(|plan| {
        let kept = world.instance_now(plan.id)?.kept?;
        let keep = plan.keep_as.as_ref().filter(|keep| keep.point == kept)?;
        let text = format!("the work of {} is kept as point {}", item.name, keep.name);
        Some((kept, Severity::Info, text))
    });
    stale.chain(stopped).collect()
}
