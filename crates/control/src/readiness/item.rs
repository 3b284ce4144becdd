//! How ready one item is: one check a subject, from its view and the hosts that it needs. Pure.

use super::{Check, HostRoom, Hosts, ItemReadiness, Subject, worst};
use crate::items::{EndView, ItemView, Level};
use leeward_model::{Protection, Site, UnixMillis};
use leeward_wire::message::{KitState, StoreRoom};

/// Days after which a test failover proves little: what runs there, and who knows how, has changed.
/// The original's dashboard recommends a test every six months.
const TEST_DAYS_MAX: i64 = 180;
const DAY_MS: i64 = 86_400_000;

fn end(item: &ItemView, site: Site) -> &EndView {
    match site {
        Site::Primary => &item.ends[0],
        Site::Recovery => &item.ends[1],
    }
}

/// Where the machine lives.
pub(super) fn live_end(item: &ItemView) -> &EndView {
    end(item, item.state.active)
}

/// Where a failover would take it.
pub(super) fn target_end(item: &ItemView) -> &EndView {
    end(item, crate::plan::other(item.state.active))
}

/// Whether nothing replicates it: then there is nothing to fail over to that is new.
fn is_left(item: &ItemView) -> bool {
    matches!(
        item.state.protection,
        Protection::FailedOver { .. }
            | Protection::ChangingPoint { .. }
            | Protection::Committed { .. }
    )
}

pub(super) fn readiness(
    item: &ItemView,
    hosts: &Hosts,
    rooms: &[HostRoom],
    now: UnixMillis,
) -> ItemReadiness {
    let parts = [
        (Subject::Point, point(item)),
        (Subject::Host, host(item)),
        (Subject::Tested, tested(item, now)),
        (Subject::Room, room(item, rooms)),
        (Subject::WayBack, way_back(item, hosts)),
        (Subject::Kit, kit(item, hosts)),
        (Subject::Health, health(item)),
    ];
    let checks = parts.map(|(subject, (level, text))| Check { subject, level, text });
    ItemReadiness {
        item: item.id,
        name: item.name.clone(),
        site: item.source_fabric_name.clone(),
        level: worst(checks.iter().map(|check| check.level)),
        last_proven: item.last_test,
        checks: checks.into(),
    }
}

type Found = (Level, String);

fn point(item: &ItemView) -> Found {
    if is_left(item) {
        let text = "it was failed over and nothing replicates it: reprotect it".to_owned();
        return (Level::Critical, text);
    }
    let wanted = item.policy.rpo_threshold_seconds;
    match (&item.newest, item.rpo_seconds) {
        (None, _) => (Level::Critical, "there is no recovery point yet".to_owned()),
        (Some(_), None) => {
            (Level::Warning, "there is a recovery point; nobody can tell how old".to_owned())
        }
        (Some(_), Some(rpo)) if rpo > wanted => {
            (Level::Warning, format!("the newest point is {rpo} s old, wanted {wanted}"))
        }
        (Some(_), Some(rpo)) => (Level::Normal, format!("the newest point is {rpo} s old")),
    }
}

fn host(item: &ItemView) -> Found {
    let end = target_end(item);
    let name = &end.host_name;
    match end.connected {
        true => (Level::Normal, format!("host {name} is connected")),
        false => (Level::Critical, format!("host {name}, where it would start, is not connected")),
    }
}

fn tested(item: &ItemView, now: UnixMillis) -> Found {
    let Some(at) = item.last_test else {
        return (Level::Warning, "it was never tested: run a test failover".to_owned());
    };
    // A clock that was set back makes no test younger than it is.
    let days = now.0.saturating_sub(at.0).max(0) / DAY_MS;
    let level = if days > TEST_DAYS_MAX { Level::Warning } else { Level::Normal };
    (level, format!("the last test failover that succeeded was {days} days ago"))
}

fn room(item: &ItemView, rooms: &[HostRoom]) -> Found {
    let end = target_end(item);
    let room = rooms.iter().find(|room| room.host == end.host).filter(|_| !is_left(item));
    let Some(room) = room else {
        return (Level::Normal, "no machine of it would be made now".to_owned());
    };
    let missing = room.not_fitting.iter().find(|missing| missing.item == item.id);
    match missing {
        Some(missing) => {
            let (host, why) = (&room.name, &missing.why);
            let text = format!("with all others of host {host} it would not start: {why}");
            (Level::Critical, text)
        }
        None if room.memory_room_mib.is_none() => {
            (Level::Warning, format!("host {} does not tell what room it has", room.name))
        }
        None => (Level::Normal, format!("it starts beside all others of host {}", room.name)),
    }
}

/// What the way back needs: the host that it lives on now, or was left, with a store of its own.
fn way_back(item: &ItemView, hosts: &Hosts) -> Found {
    let end = if is_left(item) { target_end(item) } else { live_end(item) };
    let name = &end.host_name;
    let Some(host) = hosts.get(&end.host) else {
        return (Level::Warning, format!("host {name}, to which it would return, is not known"));
    };
    let seen = host.observed.as_ref().filter(|_| end.connected);
    let Some(seen) = seen else {
        let text = format!("host {name}, to which it would return, is not connected");
        return (Level::Warning, text);
    };
    let size: u64 = item.spec.iter().flat_map(|spec| &spec.disks).map(|disk| disk.size).sum();
    match seen.store {
        StoreRoom::Absent => {
            let text = format!("host {name} has no store: it cannot return there");
            (Level::Warning, text)
        }
        StoreRoom::Free(free) if free < size => {
            let text = format!(
                "it may need up to {size} bytes in the store of host {name} to return, {free} are \
                 free"
            );
            (Level::Warning, text)
        }
        StoreRoom::Unknown | StoreRoom::Free(_) => {
            (Level::Normal, format!("host {name} has a store to return to"))
        }
    }
}

fn kit(item: &ItemView, hosts: &Hosts) -> Found {
    let end = target_end(item);
    let name = &end.host_name;
    match hosts.get(&end.host).map_or(KitState::Unknown, |host| host.view.kit) {
        KitState::Tested { .. } => {
            (Level::Normal, format!("a recovery kit of host {name}'s store was tested"))
        }
        KitState::NotNeeded => (Level::Normal, format!("host {name}'s store holds nothing")),
        KitState::Untested => {
            let text = format!("no recovery kit is known to open the store of host {name}");
            (Level::Warning, text)
        }
        KitState::Unknown => {
            let text = format!("host {name} does not tell whether a recovery kit opens its store");
            (Level::Warning, text)
        }
    }
}

fn health(item: &ItemView) -> Found {
    match item.health.first() {
        None => (Level::Normal, "its health says nothing".to_owned()),
        Some(error) => {
            let level = error.level.min(Level::Warning);
            (level, format!("{}: {}", error.problem.code, error.problem.what))
        }
    }
}
