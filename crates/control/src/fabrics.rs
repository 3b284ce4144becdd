//! Fabrics (sites), their one container each, and the hosts that joined them.

use crate::store::{self, Conn, fabrics::FabricRow, hosts::HostRow, items::ItemRow};
use crate::vaults::check_name;
use crate::{Control, ControlError, error::Result};
use leeward_model::{Code, FabricId, HostId, Problem, UnixMillis, VaultId};
use leeward_wire::capacity::HostCapacity;
use leeward_wire::message::KitState;
use serde::{Deserialize, Serialize};

/// What sort of site a fabric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FabricKind {
    /// A site that hosts join with a registration key.
    Site,
    /// The site of the config server's own host, one a vault, made with it.
    Recovery,
}

/// Is a fabric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FabricView {
    /// Its id.
    pub id: FabricId,
    /// Its vault.
    pub vault: VaultId,
    /// Its name, spelt as at its creation.
    pub name: String,
    /// Its sort.
    pub kind: FabricKind,
    /// Its one container.
    pub container: ContainerView,
    /// Its hosts, by name.
    pub hosts: Vec<HostView>,
    /// What is wrong with it: hosts that are away.
    pub health: Vec<Problem>,
    /// Fields that only the API knows.
    pub extra: serde_json::Value,
}

/// Is the container of a fabric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerView {
    /// Its name, `cloud_` and the fabric's id.
    pub name: String,
    /// Its fabric.
    pub fabric: FabricId,
    /// Name of its fabric.
    pub fabric_name: String,
    /// Sort of its fabric.
    pub kind: FabricKind,
    /// Protected items whose source it is.
    pub items: u64,
    /// Whether it is in a mapping, as either side.
    pub paired: bool,
}

/// Is a host, as a member of one fabric (the API's provider).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// The fabric.
    pub fabric: FabricId,
    /// The fabric's name.
    pub fabric_name: String,
    /// Whether it is connected and not silent.
    pub connected: bool,
    /// Whether a recovery kit is known to open its store.
    pub kit: KitState,
    /// When it was last heard since the config server started, by the server's wall clock.
    pub last_heard: Option<UnixMillis>,
    /// Version of its program; empty while it never connected to this server process.
    pub program: String,
    /// Where its store is dialled, `address:port`.
    pub data_address: Option<String>,
    /// Machines found on it.
    pub machines: u64,
    /// Free bytes below its store.
    pub store_free_bytes: Option<u64>,
    /// `kvm` or `tcg`; empty while unknown.
    pub accelerator: String,
    /// Protected items that it is the source or target of.
    pub items: u64,
    /// What it has for machines, when it told.
    pub capacity: Option<HostCapacity>,
}

/// A fabric by name, or the refusal.
pub(crate) async fn fabric_row(conn: &mut Conn, vault: VaultId, name: &str) -> Result<FabricRow> {
    let row = store::fabrics::find(conn, vault, name).await?;
    row.ok_or_else(|| ControlError::not_found(format!("there is no fabric {name}")))
}

/// The name of a fabric's one container.
fn container_name(fabric: FabricId) -> String {
    format!("cloud_{fabric}")
}

fn uses(item: &ItemRow, host: leeward_model::HostId) -> bool {
    item.plan.primary.host == host || item.plan.recovery.host == host
}

impl Control {
    /// Makes a site with its container, or changes what only the API knows of it.
    ///
    /// # Errors
    /// BadRequest for a name that cannot be used.
    pub async fn fabric_put(
        &self,
        vault: VaultId,
        name: &str,
        extra: serde_json::Value,
    ) -> Result<FabricView> {
        check_name("fabric", name)?;
        let mut tx = self.store().begin().await?;
        let row = match store::fabrics::find(&mut tx, vault, name).await? {
            Some(row) => FabricRow { extra, ..row },
            None => {
                let kind = FabricKind::Site;
                FabricRow { id: self.new_id(), vault, name: name.to_owned(), kind, extra }
            }
        };
        store::fabrics::save(&mut tx, &row).await?;
        let view = self.fabric_show(&mut tx, row).await?;
        store::commit(tx).await?;
        Ok(view)
    }

    /// Finds a fabric by name.
    ///
    /// # Errors
    /// NotFound.
    pub async fn fabric_get(&self, vault: VaultId, name: &str) -> Result<FabricView> {
        let mut tx = self.store().read().await?;
        let row = fabric_row(&mut tx, vault, name).await?;
        self.fabric_show(&mut tx, row).await
    }

    /// Lists a vault's fabrics by name.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub async fn fabric_list(&self, vault: VaultId) -> Result<Vec<FabricView>> {
        let mut tx = self.store().read().await?;
        let mut views = Vec::new();
        for row in store::fabrics::list(&mut tx, vault).await? {
            views.push(self.fabric_show(&mut tx, row).await?);
        }
        Ok(views)
    }

    /// Removes a site and its hosts.
    ///
    /// # Errors
    /// Conflict for the recovery site and while items or mappings use it.
    pub async fn fabric_remove(&self, vault: VaultId, name: &str) -> Result<()> {
        let mut tx = self.store().begin().await?;
        let row = fabric_row(&mut tx, vault, name).await?;
        if row.kind == FabricKind::Recovery {
            let what = format!("{name} is the vault's own recovery site");
            return Err(ControlError::not_now(what));
        }
        let items = store::items::of_vault(&mut tx, vault).await?;
        let mappings = store::fabrics::mappings(&mut tx, vault).await?;
        if items.iter().any(|item| item.fabric == row.id || item.target_fabric == row.id)
            || mappings.iter().any(|m| m.source == row.id || m.target == row.id)
        {
            let what = format!("fabric {name} is used by items or mappings");
            return Err(ControlError::not_now(what));
        }
        store::fabrics::remove(&mut tx, row.id).await?;
        store::commit(tx).await?;
        Ok(())
    }

    /// Lists the containers of one fabric or of all.
    ///
    /// # Errors
    /// NotFound for the fabric.
    pub async fn container_list(
        &self,
        vault: VaultId,
        fabric: Option<&str>,
    ) -> Result<Vec<ContainerView>> {
        let fabrics = match fabric {
            Some(name) => vec![self.fabric_get(vault, name).await?],
            None => self.fabric_list(vault).await?,
        };
        Ok(fabrics.into_iter().map(|fabric| fabric.container).collect())
    }

    /// Finds a container by its fabric's name and its own.
    ///
    /// # Errors
    /// NotFound.
    pub async fn container_get(
        &self,
        vault: VaultId,
        fabric: &str,
        name: &str,
    ) -> Result<ContainerView> {
        let container = self.fabric_get(vault, fabric).await?.container;
        match container.name.eq_ignore_ascii_case(name) {
            true => Ok(container),
            false => {
                let what = format!("fabric {fabric} has no container {name}");
                Err(ControlError::not_found(what))
            }
        }
    }

    /// Lists the hosts of one fabric or of all.
    ///
    /// # Errors
    /// NotFound for the fabric.
    pub async fn host_list(&self, vault: VaultId, fabric: Option<&str>) -> Result<Vec<HostView>> {
        let fabrics = match fabric {
            Some(name) => vec![self.fabric_get(vault, name).await?],
            None => self.fabric_list(vault).await?,
        };
        Ok(fabrics.into_iter().flat_map(|fabric| fabric.hosts).collect())
    }

    /// Finds a host by name or id.
    ///
    /// # Errors
    /// NotFound.
    pub async fn host_get(&self, vault: VaultId, fabric: &str, host: &str) -> Result<HostView> {
        let hosts = self.fabric_get(vault, fabric).await?.hosts;
        let named = |known: &HostView| {
            known.name.eq_ignore_ascii_case(host) || known.id.to_string().eq_ignore_ascii_case(host)
        };
        hosts
            .into_iter()
            .find(named)
            .ok_or_else(|| ControlError::not_found(format!("fabric {fabric} has no host {host}")))
    }

    /// Takes a host out of a fabric.
    ///
    /// # Errors
    /// Conflict for the config server's own host and while items use it.
    pub async fn host_remove(&self, vault: VaultId, fabric: &str, host: &str) -> Result<()> {
        let found = self.host_get(vault, fabric, host).await?;
        let mut tx = self.store().begin().await?;
        let items = store::items::of_vault(&mut tx, vault).await?;
        let used = items.iter().any(|item| uses(item, found.id));
        if used || found.id == self.config().local_host.id {
            let what = format!("host {host} is used by items, or is the config server's own");
            return Err(ControlError::not_now(what));
        }
        store::hosts::leave(&mut tx, found.fabric, found.id).await?;
        store::commit(tx).await?;
        Ok(())
    }

    async fn fabric_show(&self, conn: &mut Conn, row: FabricRow) -> Result<FabricView> {
        let items = store::items::of_vault(conn, row.vault).await?;
        let mappings = store::fabrics::mappings(conn, row.vault).await?;
        let hosts: Vec<HostView> = store::hosts::of_fabric(conn, row.id)
            .await?
            .into_iter()
            .map(|host| self.host_show(&row, host, &items))
            .collect();
        let away = hosts.iter().filter(|host| !host.connected);
        let health = away
            .map(|host| Code::ROLE_AWAY.problem(format!("host {} is not connected", host.name)))
            .collect();
        let container = ContainerView {
            name: container_name(row.id),
            fabric: row.id,
            fabric_name: row.name.clone(),
            kind: row.kind,
            items: items.iter().filter(|item| item.fabric == row.id).count() as u64,
            paired: mappings.iter().any(|m| m.source == row.id || m.target == row.id),
        };
        Ok(FabricView {
            id: row.id,
            vault: row.vault,
            name: row.name,
            kind: row.kind,
            container,
            hosts,
            health,
            extra: row.extra,
        })
    }

    fn host_show(&self, fabric: &FabricRow, host: HostRow, items: &[ItemRow]) -> HostView {
        let sight = self.hosts().sight(host.id, &self.now());
        let seen = sight.observed.as_ref();
        HostView {
            id: host.id,
            name: host.name,
            fabric: fabric.id,
            fabric_name: fabric.name.clone(),
            connected: sight.connected,
            kit: seen.map(|seen| seen.kit).unwrap_or_default(),
            last_heard: sight.heard,
            program: sight.program,
            data_address: host.data_address,
            machines: seen.map_or(0, |seen| seen.machines.len() as u64),
            store_free_bytes: seen.and_then(|seen| seen.store.free_bytes()),
            accelerator: seen.map(|seen| seen.accelerator.clone()).unwrap_or_default(),
            items: items.iter().filter(|item| uses(item, host.id)).count() as u64,
            capacity: seen.and_then(|seen| seen.capacity.clone()),
        }
    }
}
