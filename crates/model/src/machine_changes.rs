//! How a machine that is made from a recovery point differs from the description in that point:
//! memory, processors, networks, addresses. Pure; who wants what is decided elsewhere.

use crate::{MachineSpec, NicSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Where a figure of the machine comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// The point's own description.
    #[default]
    Point,
    /// The description that the host has of the machine it replaces, if it has one: the machine
    /// comes home from a site for which something else was set.
    Home,
    /// It was set.
    Set(u32),
}

impl Figure {
    fn of(self, point: u32, home: Option<u32>) -> u32 {
        match self {
            Figure::Point => point,
            Figure::Home => home.unwrap_or(point),
            Figure::Set(figure) => figure,
        }
    }
}

/// What was set of one network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicChange {
    /// Its hardware address, compared without regard to case.
    pub mac: String,
    /// The network that it is attached to.
    pub network: Option<String>,
    /// The address that its network gives it.
    pub address: Option<Ipv4Addr>,
}

/// How a machine that is made from a point differs from the point's own description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineChanges {
    /// Memory in MiB.
    pub memory_mib: Figure,
    /// Virtual processors.
    pub cpus: Figure,
    /// What was set of single network cards; goes before everything below.
    pub nics: Vec<NicChange>,
    /// The network here by the network at the other site, as it was mapped.
    pub networks: BTreeMap<String, String>,
    /// The same the other way round: the way home of a mapping that leads away from here.
    pub networks_home: BTreeMap<String, String>,
    /// The network of a test machine: all its cards are attached to this one, with a way out if it
    /// has one. None: a test machine has no way out.
    pub test_network: Option<String>,
}

impl MachineChanges {
    /// The machine to make of the one in the point; `home` is what the host has of that name.
    pub fn apply(&self, point: MachineSpec, home: Option<&MachineSpec>) -> MachineSpec {
        let memory_mib = self.memory_mib.of(point.memory_mib, home.map(|home| home.memory_mib));
        let cpus = self.cpus.of(point.cpus, home.map(|home| home.cpus));
        let nics = point.nics.iter().map(|nic| self.nic(nic, home)).collect();
        MachineSpec { memory_mib, cpus, nics, ..point }
    }

    /// What becomes of one card.
    pub fn nic(&self, nic: &NicSpec, home: Option<&MachineSpec>) -> NicSpec {
        let same = |mac: &str| mac.eq_ignore_ascii_case(&nic.mac);
        let set = self.nics.iter().find(|known| same(&known.mac));
        let home = home.and_then(|home| home.nics.iter().find(|known| same(&known.mac)));
        let network = self
            .test_network
            .as_ref()
            .or_else(|| set?.network.as_ref())
            .or_else(|| self.networks.get(&nic.network))
            .or_else(|| home.map(|home| &home.network))
            .or_else(|| self.networks_home.get(&nic.network))
            .unwrap_or(&nic.network);
        // An address belongs to its network: it does not follow the card to another one.
        let stays = |known: &NicSpec| known.address.filter(|_| known.network == *network);
        let address =
            set.and_then(|set| set.address).or_else(|| home.and_then(stays)).or_else(|| stays(nic));
        NicSpec { mac: nic.mac.clone(), network: network.clone(), address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Firmware, Probe};

    fn nic(mac: &str, network: &str) -> NicSpec {
        NicSpec { mac: mac.into(), network: network.into(), address: None }
    }

    fn spec(memory_mib: u32, nics: Vec<NicSpec>) -> MachineSpec {
        MachineSpec {
            name: "web01".into(),
            memory_mib,
            cpus: 1,
            firmware: Firmware::Bios,
            disks: Vec::new(),
            nics,
            display: false,
            probe: Probe::default(),
        }
    }

    fn map(from: &str, to: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(from.into(), to.into())])
    }

    /// F-051.
    #[test]
    fn a_figure_is_the_points_unless_it_was_set_or_the_machine_comes_home_to_its_own() {
        let home = spec(64, Vec::new());
        for (figure, home, wanted) in [
            (Figure::Point, Some(&home), 128),
            (Figure::Home, Some(&home), 64),
            (Figure::Home, None, 128),
            (Figure::Set(32), Some(&home), 32),
        ] {
            let changes = MachineChanges { memory_mib: figure, ..MachineChanges::default() };
            assert_eq!(changes.apply(spec(128, Vec::new()), home).memory_mib, wanted);
        }
    }

    /// F-052: what was set of a card goes before a mapping, a mapping before what was there.
    #[test]
    fn a_card_goes_where_it_was_set_then_where_it_is_mapped_then_where_it_was() {
        let home = spec(64, vec![nic("A", "old")]);
        let set = NicChange { mac: "a".into(), network: Some("set".into()), address: None };
        let all = MachineChanges {
            nics: vec![set],
            networks: map("lan", "mapped"),
            networks_home: map("lan", "back"),
            ..MachineChanges::default()
        };
        let unset = MachineChanges { nics: Vec::new(), ..all.clone() };
        let unmapped = MachineChanges { networks: BTreeMap::new(), ..unset.clone() };
        let test = MachineChanges { test_network: Some("bubble".into()), ..all.clone() };
        for (changes, home, wanted) in [
            (&all, Some(&home), "set"),
            (&unset, Some(&home), "mapped"),
            (&unmapped, Some(&home), "old"),
            (&unmapped, None, "back"),
            (&MachineChanges::default(), None, "lan"),
            (&test, Some(&home), "bubble"),
        ] {
            assert_eq!(changes.nic(&nic("a", "lan"), home).network, wanted);
        }
    }

    /// F-052.
    #[test]
    fn an_address_stays_with_its_network_unless_it_was_set() {
        let own = Ipv4Addr::new(10, 0, 2, 9);
        let point = NicSpec { address: Some(own), ..nic("a", "lan") };
        let moved = MachineChanges { networks: map("lan", "other"), ..MachineChanges::default() };
        let new = Ipv4Addr::new(10, 0, 2, 50);
        let set = NicChange { mac: "A".into(), network: None, address: Some(new) };
        let set = MachineChanges { nics: vec![set], ..moved.clone() };

        assert_eq!(MachineChanges::default().nic(&point, None).address, Some(own));
        assert_eq!(moved.nic(&point, None).address, None);
        assert_eq!(set.nic(&point, None), NicSpec { address: Some(new), ..nic("a", "other") });
    }
}
