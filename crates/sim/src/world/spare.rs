//! A second host of the primary site, to which a machine may come home instead of the first.
//!
//! The first and the spare host change places in the world: whichever is the item's end is the
//! primary site's, and what was left on the other one is looked at from here.

use super::{SITE, SKEWS_MS, World, fabric::image_of, roles::SiteFiles};
use leeward_control::{items::ReprotectSpec, machines::MachineView, registration::JoinRequest};
use leeward_fabric::Fabric as _;
use leeward_model::{MachineState, Site};
use leeward_replica::storage::Seeded;

/// By how much its wall clock is fast, in milliseconds.
pub(super) const SKEW_MS: i64 = 2 * SKEWS_MS[1];

/// The name of a host of the primary site.
const NAMES: [&str; 2] = ["kvm-a", "kvm-b"];

impl World {
    /// The spare host joins the primary site; nobody can dial it either.
    pub async fn spare_join(&mut self) {
        let control = self.control();
        let hour = std::time::Duration::from_secs(3600);
        let key = control.registration_key_create(self.vault, SITE, hour, "ab12").await;
        let join = JoinRequest { name: NAMES[1].to_owned(), data_address: None };
        let joined = control.registration_key_redeem(&key.expect("a key"), join).await;
        self.spare.id = joined.expect("a fresh key").host;
        self.has_spare = true;
        self.spare_start();
    }

    /// Starts the spare host's role, if there is such a host and the role is dead.
    pub(super) fn spare_start(&mut self) {
        if self.has_spare && self.spare.role.is_none() {
            self.spare.disk.set_full(false);
            let role = self.role_made(&self.spare);
            self.spare.role = role;
        }
    }

    /// The other direction is built up to the site's other host (F-111).
    pub(super) async fn reprotect_elsewhere(&mut self, random: &mut Seeded) {
        let away = self.view().await.is_some_and(|view| view.state.active == Site::Recovery);
        let (control, Some(item)) = (self.control(), self.item) else { return };
        if !self.has_spare || !away {
            return;
        }
        self.spare_start();
        let host = NAMES[usize::from(!self.is_swapped)].to_owned();
        let spec = ReprotectSpec { host: Some(host), ..ReprotectSpec::default() };
        let started = self.ask(async move { control.item_reprotect(item, spec).await });
        let Ok(job) = started.await else { return };
        self.hosts_swap();
        self.names_learn().await;
        self.attend(job, random).await;
    }

    /// The first and the spare host change places.
    pub(super) fn hosts_swap(&mut self) {
        std::mem::swap(&mut self.primary, &mut self.spare);
        self.is_swapped = !self.is_swapped;
        self.ledger.hosts_swap();
        let machines = self.primary.machines.clone();
        self.recovery.watch.others.set(machines);
        self.left = None;
    }

    /// The machines that were left on the host that is no end keep what they have on their disks.
    pub(super) async fn check_left(&mut self) {
        if !self.has_spare {
            return;
        }
        let machine = self.ledger.machine_left();
        let SiteFiles { machines, .. } = &self.spare;
        let state = machines.machine_state(&machine).await;
        let off = matches!(state, Ok(MachineState::Off));
        let disks = machines.disks(&machine).filter(|_| off);
        let image = disks.as_ref().map(image_of);
        if let (Some(before), Some(now)) = (&self.left, &image)
            && before != now
        {
            self.ledger.violated("the disks on the host that was left for another were changed");
        }
        self.left = image;
    }

    /// What was promised of the store of the host that is no end is there still.
    pub(super) fn check_former(&self) {
        let Some(item) = self.item.filter(|_| self.has_spare) else { return };
        if let Some(reader) = self.spare.disk.item(item) {
            self.ledger.check_replica(self.ledger.place_left(), &reader);
        }
    }

    /// The id of the machine of the primary site's host, once the config server knows it.
    pub(super) async fn machine_found(&self) -> Option<String> {
        let listed = self.server.clone()?.machine_list(self.vault, SITE).await.ok()?;
        let name = self.ledger.name(Site::Primary);
        let here = |known: &&MachineView| known.host == self.primary.id && known.name == name;
        let found = listed.iter().find(here);
        found.map(|known| known.id.to_string())
    }
}
