//! What is set of the machines that an item makes at a site: name, memory, processors, networks,
//! addresses. Checked when it is set; it counts from the next machine that is made on.

use super::start::item;
use crate::error::Result;
use crate::events::Severity;
use crate::networks::Resource;
use crate::plan::{End, RunPlan, other};
use crate::store::{self, items::ItemRow};
use crate::world::{HostFacts, World};
use crate::{Control, ControlError, ErrorKind};
use leeward_model::{
    CPUS_MAX, Code, Figure, ItemId, MEMORY_MIB_MAX, MEMORY_MIB_MIN, MachineChanges, MachineSpec,
    NETWORKS, NicChange, NicSpec, Protection, Site, machine_name_fits, nic_address_fits,
};
use leeward_wire::message::Purpose;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// What is set of one network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NicSettings {
    /// Its hardware address.
    pub mac: String,
    /// The network that it is attached to.
    pub network: Option<String>,
    /// The address that its network gives it.
    pub address: Option<Ipv4Addr>,
    /// The address in a test failover; none: the same.
    pub test_address: Option<Ipv4Addr>,
}

/// What is set of the machines that are made at a site. Nothing: as the machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetSettings {
    /// Memory in MiB.
    pub memory_mib: Option<u32>,
    /// Virtual processors.
    pub cpus: Option<u32>,
    /// Network cards.
    pub nics: Vec<NicSettings>,
    /// The network of test machines; none: one without a way out.
    pub test_network: Option<String>,
}

/// What is changed of a setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// Nothing.
    #[default]
    Keep,
    /// It is as if it had never been set.
    Clear,
    /// It is this.
    Set(T),
}

impl<T> Change<T> {
    fn apply(self, setting: &mut Option<T>) {
        match self {
            Change::Keep => {}
            Change::Clear => *setting = None,
            Change::Set(value) => *setting = Some(value),
        }
    }

    fn value(&self) -> Option<&T> {
        match self {
            Change::Set(value) => Some(value),
            Change::Keep | Change::Clear => None,
        }
    }
}

/// What is changed of a network card's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicUpdate {
    /// Its hardware address; none: all cards of the machine.
    pub mac: Option<String>,
    /// The network that it is attached to.
    pub network: Change<String>,
    /// The address that its network gives it.
    pub address: Change<Ipv4Addr>,
    /// The address in a test failover.
    pub test_address: Change<Ipv4Addr>,
}

/// What is changed of an item's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsUpdate {
    /// The site whose machines are meant; none: the one that receives.
    pub site: Option<Site>,
    /// Name of the machine there.
    pub machine: Option<String>,
    /// Memory in MiB.
    pub memory_mib: Change<u32>,
    /// Virtual processors.
    pub cpus: Change<u32>,
    /// Network cards, in the order in which they are changed.
    pub nics: Vec<NicUpdate>,
    /// The network of test machines.
    pub test_network: Change<String>,
}

/// Is the machine that the next failover, or test failover, would make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetView {
    /// The site where it is made.
    pub site: Site,
    /// Its name.
    pub machine: String,
    /// What is set of it.
    pub settings: TargetSettings,
    /// Its memory in MiB, and its virtual processors; none while the machine is not known.
    pub size: Option<(u32, u32)>,
    /// Its network cards, each as it is and as it will be.
    pub nics: Vec<(NicSpec, NicSpec)>,
}

/// How a machine that is made at `site` differs from its point's own description.
/// `test_network` is what the request says; the item's setting counts if it says nothing.
pub(crate) fn changes_of(
    world: &World,
    (purpose, site): (Purpose, Site),
    test_network: Option<&str>,
) -> MachineChanges {
    let Some(row) = &world.item else { return MachineChanges::default() };
    let settings = &row.plan.end(site).settings;
    let away = &row.plan.end(other(site)).settings;
    let figure = |set: Option<u32>, away: Option<u32>| match (set, away) {
        (Some(set), _) => Figure::Set(set),
        // It is as it is for the other site's sake: at home it is as it was.
        (None, Some(_)) => Figure::Home,
        (None, None) => Figure::Point,
    };
    let nic = |nic: &NicSettings| NicChange {
        mac: nic.mac.clone(),
        network: nic.network.clone(),
        address: match purpose {
            Purpose::Test => nic.test_address.or(nic.address),
            Purpose::Failover => nic.address,
        },
    };
    let test_network = match purpose {
        Purpose::Test => test_network.or(settings.test_network.as_deref()),
        Purpose::Failover => None,
    };
    MachineChanges {
        memory_mib: figure(settings.memory_mib, away.memory_mib),
        cpus: figure(settings.cpus, away.cpus),
        nics: settings.nics.iter().map(nic).collect(),
        networks: world.networks.to(site).clone(),
        networks_home: world.networks.home_to(site),
        // Without a way out is what a test machine is anyway.
        test_network: test_network.filter(|name| *name != NETWORKS[1]).map(str::to_owned),
    }
}

/// The machine of the next failover, as far as it can be told.
pub(super) fn target_view(world: &World, row: &ItemRow, spec: Option<&MachineSpec>) -> TargetView {
    let site = row.target_site();
    let end = row.plan.end(site);
    let changes = changes_of(world, (Purpose::Failover, site), None);
    let home = machine_at(world.host(site), &end.machine).filter(|_| end.stale);
    // The machine as it is now where it runs; as it was found first while that cannot be seen.
    let source = row.plan.end(other(site));
    let seen = machine_at(world.host(other(site)), &source.machine).or(spec);
    let made = seen.map(|seen| changes.apply(seen.clone(), home));
    let nics = seen.map(|seen| seen.nics.iter()).into_iter().flatten();
    TargetView {
        site,
        machine: end.machine.clone(),
        settings: end.settings.clone(),
        size: made.as_ref().map(|made| (made.memory_mib, made.cpus)),
        nics: nics.map(|nic| (nic.clone(), changes.nic(nic, home))).collect(),
    }
}

fn machine_at<'a>(host: &'a HostFacts, name: &str) -> Option<&'a MachineSpec> {
    let seen = host.sight.observed.as_ref()?;
    seen.machines.iter().map(|found| &found.spec).find(|spec| spec.name == name)
}

impl Control {
    /// Changes what is set of the machines that are made of an item at a site (F-050 to F-053).
    ///
    /// # Errors
    /// BadRequest for a figure, name or address out of bounds and for a card that the machine has
    /// not; NotFound for a network; Conflict for a name that is taken or cannot change any more.
    pub async fn item_set(&self, id: ItemId, update: SettingsUpdate) -> Result<()> {
        check(&update)?;
        let mut tx = self.store().read().await?;
        let row = store::items::find(&mut tx, id).await?;
        let mut macs = Vec::new();
        let mut taken = Vec::new();
        if let Some(row) = &row {
            let found = store::machines::find(&mut tx, row.machine_id).await?;
            macs.extend(found.into_iter().flat_map(|found| found.spec.nics));
            for known in store::items::of_vault(&mut tx, row.vault).await? {
                let ends = [&known.plan.primary, &known.plan.recovery];
                taken.extend(ends.map(|end| (known.id, end.host, end.machine.clone())));
            }
        }
        drop(tx);
        self.item_change(id, |world, running| {
            let row = item(world)?;
            let site = update.site.unwrap_or(row.target_site());
            for site in [Site::Primary, Site::Recovery] {
                let seen = machine_at(world.host(site), &row.plan.end(site).machine);
                macs.extend(seen.into_iter().flat_map(|seen| seen.nics.clone()));
            }
            let end = row.plan.end(site);
            let name = update.machine.as_ref().filter(|name| **name != end.machine);
            if let Some(name) = name {
                running.refuse(&row.name, &[store::jobs::Lane::Main])?;
                check_rename(world, row, site, name)?;
                let other = taken.iter().any(|(known, host, machine)| {
                    *known != id && *host == end.host && machine == name
                });
                if other {
                    return Err(name_taken(name));
                }
            }
            let name = name.cloned();
            let settings = changed(&end.settings, &update, &macs)?;
            let text = format!("what is set of the machines of {} was changed", row.name);
            if let Some(row) = &mut world.item {
                let end = row.plan.end_mut(site);
                end.settings = settings;
                end.machine = name.unwrap_or_else(|| end.machine.clone());
            }
            world.note("ItemSettingsChanged", Severity::Info, text);
            Ok(())
        })
        .await
    }
}

fn name_taken(name: &str) -> ControlError {
    let what = format!("the host has, or will have, another machine {name}");
    ControlError::new(ErrorKind::Conflict, Code::NAME_TAKEN, what)
}

/// Checks what can be checked without the item.
fn check(update: &SettingsUpdate) -> Result<()> {
    let range = |field: &str, change: &Change<u32>, least: u32, most: u32| match change.value() {
        Some(value) if !(least..=most).contains(value) => Err(ControlError::bad_request(format!(
            "{field} is {value}; it may be {least} to {most}"
        ))),
        Some(_) | None => Ok(()),
    };
    range("the memory in MiB", &update.memory_mib, MEMORY_MIB_MIN, MEMORY_MIB_MAX)?;
    range("the number of processors", &update.cpus, 1, CPUS_MAX)?;
    if let Some(name) = update.machine.as_ref().filter(|name| !machine_name_fits(name)) {
        return Err(ControlError::bad_request(format!(
            "{name:?} cannot be a machine's name: it has 1 to 64 letters, digits, '.', '_' or '-' \
             and starts with a letter or digit"
        )));
    }
    let networks = update.nics.iter().map(|nic| &nic.network).chain([&update.test_network]);
    for network in networks.filter_map(Change::value) {
        Resource::Network.find(network)?;
    }
    let addresses = update.nics.iter().flat_map(|nic| [&nic.address, &nic.test_address]);
    for address in addresses.filter_map(Change::value) {
        if !nic_address_fits(*address) {
            return Err(ControlError::bad_request(format!(
                "{address} cannot be given to a machine: 4 to 254 end an address, and it is no \
                 loopback, link-local or multicast one"
            )));
        }
    }
    Ok(())
}

/// A machine can be given another name at a site where it never was.
fn check_rename(world: &World, row: &ItemRow, site: Site, name: &str) -> Result<()> {
    let end: &End = row.plan.end(site);
    let settled = matches!(row.state.protection, Protection::FailingOver { .. })
        || row
            .plan
            .instances
            .iter()
            .any(|plan| plan.site == site && plan.purpose == Purpose::Failover);
    if end.stale || end.run != RunPlan::Unassigned || settled || site != row.target_site() {
        let what = format!(
            "{} is, or was, a machine of that site and is called {} there: it cannot be given \
             another name",
            row.name, end.machine
        );
        return Err(ControlError::not_now(what));
    }
    match world.host(site).has_machine(name) {
        true => Err(name_taken(name)),
        false => Ok(()),
    }
}

/// The settings after an update; `cards` are those that the machine has or had lately.
fn changed(
    before: &TargetSettings,
    update: &SettingsUpdate,
    cards: &[NicSpec],
) -> Result<TargetSettings> {
    let mut after = before.clone();
    update.memory_mib.clone().apply(&mut after.memory_mib);
    update.cpus.clone().apply(&mut after.cpus);
    update.test_network.clone().apply(&mut after.test_network);
    for nic in &update.nics {
        let is_it = |known: &&NicSpec| {
            nic.mac.as_ref().is_none_or(|mac| mac.eq_ignore_ascii_case(&known.mac))
        };
        let mut meant: Vec<&NicSpec> = cards.iter().filter(is_it).collect();
        meant.dedup_by(|a, b| a.mac.eq_ignore_ascii_case(&b.mac));
        if let (Some(mac), true) = (&nic.mac, meant.is_empty()) {
            let all: Vec<&str> = cards.iter().map(|card| card.mac.as_str()).collect();
            let what = format!("the machine has no network card {mac}, only: {}", all.join(", "));
            return Err(ControlError::bad_request(what));
        }
        for card in meant {
            set_card(&mut after.nics, &card.mac, nic);
        }
    }
    let is_set = |nic: &NicSettings| {
        nic.network.is_some() || nic.address.is_some() || nic.test_address.is_some()
    };
    after.nics.retain(is_set);
    Ok(after)
}

fn set_card(nics: &mut Vec<NicSettings>, mac: &str, update: &NicUpdate) {
    let place = nics.iter().position(|known| known.mac.eq_ignore_ascii_case(mac));
    let place = place.unwrap_or_else(|| {
        nics.push(NicSettings { mac: mac.to_owned(), ..NicSettings::default() });
        nics.len() - 1
    });
    update.network.clone().apply(&mut nics[place].network);
    update.address.clone().apply(&mut nics[place].address);
    update.test_address.clone().apply(&mut nics[place].test_address);
}
