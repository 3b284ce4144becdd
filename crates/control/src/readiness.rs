//! Whether a failover would work now: of every item, of all of them at once, and of every plan.
//! Worked out from what is stored and what the hosts see; changes nothing, promises nothing.

mod item;
mod room;

use crate::fabrics::HostView;
use crate::items::{ItemView, Level};
use crate::plans::PlanView;
use crate::{Control, error::Result};
use leeward_model::{HostId, ItemId, UnixMillis, VaultId};
use leeward_wire::message::Observed;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

pub use room::{HostRoom, NotFitting};

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Its newest recovery point.
    Point,
    /// The host that it would go to.
    Host,
    /// Its last test failover.
    Tested,
    /// Whether it would start beside all others.
    Room,
    /// Whether it could come back afterwards.
    WayBack,
    /// The recovery kit of the store that it would start from.
    Kit,
    /// What else its health says.
    Health,
}

/// Is one thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub subject: Subject,
    /// Normal: fine. Warning: look at it, or it cannot be told. Critical: a failover would not
    /// work.
    pub level: Level,
    /// What was found, one sentence.
    pub text: String,
}

/// Is how ready an item is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemReadiness {
    /// The item.
    pub item: ItemId,
    /// Its name.
    pub name: String,
    /// Name of its primary site's fabric.
    pub site: String,
    /// The worst of its checks.
    pub level: Level,
    /// When its last test failover succeeded; none if it was never tested.
    pub last_proven: Option<UnixMillis>,
    /// All checks, in the order of [`Subject`].
    pub checks: Vec<Check>,
}

/// Is how ready a plan is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReadiness {
    /// Its name.
    pub name: String,
    /// The worst of its machines' and its own.
    pub level: Level,
    /// When its last test failover succeeded, in whole or in part.
    pub last_proven: Option<UnixMillis>,
    /// Names of its machines that are not ready.
    pub not_ready: Vec<String>,
    /// Its machines that would not start if nothing but the plan were failed over.
    pub not_fitting: Vec<NotFitting>,
}

/// Is how ready a vault is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The worst of all.
    pub level: Level,
    /// Its items, by name.
    pub items: Vec<ItemReadiness>,
    /// The hosts that they would go to, with all of them at once.
    pub hosts: Vec<HostRoom>,
    /// Its plans, by name.
    pub plans: Vec<PlanReadiness>,
    /// What the config server and the recovery hosts need that is itself protected here.
    pub dependencies: Vec<Check>,
}

/// Is a host as readiness sees it.
#[derive(Clone)]
pub(crate) struct HostSeen {
    pub(crate) view: HostView,
    pub(crate) observed: Option<Arc<Observed>>,
}

type Hosts = BTreeMap<HostId, HostSeen>;

fn worst(levels: impl IntoIterator<Item = Level>) -> Level {
    levels.into_iter().max().unwrap_or(Level::Normal)
}

fn plan_readiness(
    plan: &PlanView,
    items: &[ItemView],
    ready: &[ItemReadiness],
    hosts: &Hosts,
) -> PlanReadiness {
    let is_member = |id: ItemId| plan.members.iter().any(|member| member.item == id);
    let members: Vec<&ItemView> = items.iter().filter(|item| is_member(item.id)).collect();
    let rooms = room::rooms(&members, std::slice::from_ref(plan), hosts);
    let not_fitting: Vec<_> = rooms.into_iter().flat_map(|room| room.not_fitting).collect();
    let own = if plan.last_test.is_none() { Level::Warning } else { Level::Normal };
    // Room beside everything else is the vault's matter; beside the plan alone it is the plan's.
    let member = |one: &ItemReadiness| {
        let other = one.checks.iter().filter(|check| check.subject != Subject::Room);
        let alone = not_fitting.iter().any(|missing| missing.item == one.item);
        worst(other.map(|check| check.level).chain(alone.then_some(Level::Critical)))
    };
    let members = ready.iter().filter(|one| is_member(one.item));
    let not_ready = members.clone().filter(|one| member(one) == Level::Critical);
    PlanReadiness {
        name: plan.name.clone(),
        level: worst(members.clone().map(member).chain([own])),
        last_proven: plan.last_test,
        not_ready: not_ready.map(|one| one.name.clone()).collect(),
        not_fitting,
    }
}

/// What stands on something that is protected here: whoever needs it to fail over loses both.
fn dependencies(items: &[ItemView], hosts: &Hosts, own: HostId) -> Vec<Check> {
    let mut found = Vec::new();
    let mut add = |level, text| found.push(Check { subject: Subject::Host, level, text });
    let inside = |host: &HostSeen| {
        let macs = host.observed.as_ref().and_then(|seen| seen.capacity.as_ref()).map(|c| &c.macs);
        items.iter().find(|item| {
            let nics = item.spec.iter().flat_map(|spec| &spec.nics);
            nics.into_iter().any(|nic| macs.is_some_and(|macs| has(macs, &nic.mac)))
        })
    };
    for host in hosts.values() {
        let Some(item) = inside(host) else { continue };
        let (name, item) = (&host.view.name, &item.name);
        if host.view.id == own {
            let text = format!(
                "the config server runs inside the protected machine {item}: without {item} nobody \
                 fails it over. Run the config server at the recovery site, outside of what it \
                 protects"
            );
            add(Level::Critical, text);
        } else {
            let text = format!("host {name} is itself the protected machine {item}");
            add(Level::Warning, text);
        }
    }
    for item in items {
        let live = item::live_end(item);
        if live.host == own {
            let (name, host) = (&item.name, &live.host_name);
            let text = format!(
                "{name} lives on the config server's own host {host}: if that is lost, both are. \
                 Then another server has to take over first: leeward up --adopt"
            );
            add(Level::Warning, text);
        }
    }
    found
}

fn has(macs: &[String], mac: &str) -> bool {
    macs.iter().any(|known| known.eq_ignore_ascii_case(mac))
}

impl Control {
    /// How ready everything in a vault is.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub async fn readiness(&self, vault: VaultId) -> Result<Readiness> {
        let items = self.item_list(vault, None).await?;
        let hosts = self.host_list(vault, None).await?;
        self.readiness_of(vault, &items, &hosts).await
    }

    /// As [`Self::readiness`], from views that the caller has already.
    pub(crate) async fn readiness_of(
        &self,
        vault: VaultId,
        items: &[ItemView],
        hosts: &[HostView],
    ) -> Result<Readiness> {
        let now = self.now();
        let plans = self.plan_list(vault).await?;
        let hosts: Hosts = hosts
            .iter()
            .cloned()
            .map(|view| {
                let observed = self.hosts().sight(view.id, &now).observed;
                (view.id, HostSeen { view, observed })
            })
            .collect();
        let all: Vec<&ItemView> = items.iter().collect();
        let rooms = room::rooms(&all, &plans, &hosts);
        let ready: Vec<_> =
            items.iter().map(|item| item::readiness(item, &hosts, &rooms, now.wall)).collect();
        let of_plan = |plan: &PlanView| plan_readiness(plan, items, &ready, &hosts);
        let plans: Vec<_> = plans.iter().map(of_plan).collect();
        let dependencies = dependencies(items, &hosts, self.config().local_host.id);
        let levels = ready.iter().map(|one| one.level);
        let levels = levels.chain(plans.iter().map(|one| one.level));
        let levels = levels.chain(dependencies.iter().map(|one| one.level));
        let level = worst(levels.chain(rooms.iter().map(|room| room.level)));
        Ok(Readiness { level, items: ready, hosts: rooms, plans, dependencies })
    }
}
