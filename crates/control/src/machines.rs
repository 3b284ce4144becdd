//! Machines found on hosts (protectable items). Their ids are given at first sight and stay.

use crate::fabrics::fabric_row;
use crate::store::{self, items::ItemRow, machines::MachineRow};
use crate::{Control, ControlError, Now, error::Result};
use leeward_model::{
    DiscoveredMachine, FabricId, HostId, ItemId, MachineSpec, MachineState, VaultId,
};
use leeward_wire::message::Observed;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Is a machine that a host found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineView {
    /// Its id; stable as long as its host keeps its name.
    pub id: Uuid,
    /// Its name on the host.
    pub name: String,
    /// The fabric.
    pub fabric: FabricId,
    /// The host.
    pub host: HostId,
    /// Name of the host.
    pub host_name: String,
    /// Its run state; unknown while the host is away.
    pub state: MachineState,
    /// Its description, as last seen.
    pub spec: MachineSpec,
    /// Why it cannot be protected, in words.
    pub obstacles: Vec<String>,
    /// The item that protects it.
    pub item: Option<ItemId>,
    /// Name of that item.
    pub item_name: Option<String>,
}

/// The newest point of an item is written down at most this often: it only serves after a restart.
const NOTE_EVERY_MS: u64 = 10_000;

impl Control {
    /// Lists the machines of a fabric by host and name.
    ///
    /// # Errors
    /// NotFound for the fabric.
    pub async fn machine_list(&self, vault: VaultId, fabric: &str) -> Result<Vec<MachineView>> {
        let mut tx = self.store().read().await?;
        let fabric = fabric_row(&mut tx, vault, fabric).await?;
        let items = store::items::of_vault(&mut tx, vault).await?;
        let hosts = store::hosts::of_fabric(&mut tx, fabric.id).await?;
        let now = self.now();
        let mut views = Vec::new();
        for row in store::machines::of_fabric(&mut tx, fabric.id).await? {
            let sight = self.hosts().sight(row.host, &now);
            let seen = sight.observed.as_ref().filter(|_| sight.connected);
            let seen = seen.and_then(|seen| {
                seen.machines.iter().find(|machine| machine.spec.name == row.spec.name)
            });
            let item = items.iter().find(|item| item.machine_id == row.id);
            let is_end = |known: &ItemRow| {
                let ends = [&known.plan.primary, &known.plan.recovery];
                ends.iter().any(|end| end.host == row.host && end.machine == row.spec.name)
            };
            if item.is_none() && items.iter().any(is_end) {
                // It is protected as the machine that it is a copy of.
                continue;
            }
            let host_name = hosts.iter().find(|host| host.id == row.host);
            views.push(MachineView {
                id: row.id,
                name: row.spec.name.clone(),
                fabric: row.fabric,
                host: row.host,
                host_name: host_name.map(|host| host.name.clone()).unwrap_or_default(),
                state: seen.map_or(MachineState::Unknown, |machine| machine.state),
                spec: row.spec,
                obstacles: row.obstacles,
                item: item.map(|item| item.id),
                item_name: item.map(|item| item.name.clone()),
            });
        }
        Ok(views)
    }

    /// Finds a machine by id, or by name if only one host has it.
    ///
    /// # Errors
    /// NotFound; BadRequest for a name that two hosts have.
    pub async fn machine_get(
        &self,
        vault: VaultId,
        fabric: &str,
        machine: &str,
    ) -> Result<MachineView> {
        let all = self.machine_list(vault, fabric).await?;
        let named: Vec<_> = all
            .into_iter()
            .filter(|known| known.name == machine || known.id.to_string() == machine)
            .collect();
        match <[MachineView; 1]>::try_from(named) {
            Ok([found]) => Ok(found),
            Err(several) if several.is_empty() => {
                Err(ControlError::not_found(format!("fabric {fabric} has no machine {machine}")))
            }
            Err(_) => Err(ControlError::bad_request(format!(
                "machine {machine} is on more than one host of {fabric}: use its id"
            ))),
        }
    }

    /// Writes down what a host found, in every fabric that it is a member of.
    pub(crate) async fn machines_seen(
        &self,
        host: HostId,
        seen: &[DiscoveredMachine],
    ) -> Result<()> {
        let mut tx = self.store().begin().await?;
        for fabric in store::hosts::fabrics(&mut tx, host).await? {
            let known = store::machines::of_fabric(&mut tx, fabric).await?;
            let known: Vec<_> = known.into_iter().filter(|row| row.host == host).collect();
            for machine in seen {
                let before = known.iter().find(|row| row.spec.name == machine.spec.name);
                let row = MachineRow {
                    id: before.map_or_else(|| self.new_id(), |row| row.id),
                    fabric,
                    host,
                    spec: machine.spec.clone(),
                    obstacles: machine.obstacles.clone(),
                };
                if before != Some(&row) {
                    store::machines::save(&mut tx, &row).await?;
                }
            }
            for row in known {
                if !seen.iter().any(|machine| machine.spec.name == row.spec.name) {
                    store::machines::remove_unprotected(&mut tx, row.id).await?;
                }
            }
        }
        store::commit(tx).await?;
        Ok(())
    }

    /// Writes down the newest points that a host reports, now and then.
    pub(crate) async fn newest_seen(&self, host: HostId, seen: &Observed, now: &Now) -> Result<()> {
        for item in &seen.items {
            let newest = item.target.as_ref().and_then(|target| target.newest.as_ref());
            let Some(newest) = newest else { continue };
            if !self.hosts().note_is_due(item.item, now, NOTE_EVERY_MS) {
                continue;
            }
            let mut tx = self.store().begin().await?;
            let row = store::items::find(&mut tx, item.item).await?;
            let known = store::machines::newest(&mut tx, item.item).await?;
            // The source's own store has points as well: they say nothing of what was replicated.
            let on_line = row.is_some_and(|row| {
                row.plan.end(row.target_site()).host == host && row.plan.on_line(newest.position)
            });
            if on_line && known.as_ref() != Some(newest) {
                store::machines::newest_save(&mut tx, item.item, newest).await?;
                store::commit(tx).await?;
            }
        }
        Ok(())
    }
}
