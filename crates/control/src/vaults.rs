//! Vaults: the API's unit of administration. What lies in them is in the other nouns' files.

use crate::fabrics::FabricKind;
use crate::store::{self, Conn, fabrics::FabricRow, hosts::HostRow, vaults::VaultRow};
use crate::{Control, ControlError, error::Result};
use leeward_model::{FabricId, VaultId};
use serde::{Deserialize, Serialize};

/// Names a vault as the API does. Compared without regard to case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VaultKey {
    /// The subscription, a UUID in text.
    pub subscription: String,
    /// The resource group.
    pub resource_group: String,
    /// The vault's name.
    pub name: String,
}

/// What a caller sets of a vault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VaultSpec {
    /// Any text; kept and returned.
    pub location: String,
    /// Fields that only the API knows; kept and returned.
    pub extra: serde_json::Value,
}

/// Is a vault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaultView {
    /// Its id.
    pub id: VaultId,
    /// Its names, spelt as at its creation.
    pub key: VaultKey,
    /// What the caller set.
    pub spec: VaultSpec,
    /// The fabric of the config server's own host.
    pub recovery_fabric: FabricId,
    /// Name of that fabric.
    pub recovery_fabric_name: String,
    /// Protected items in it.
    pub items: u64,
}

fn no_such(key: &VaultKey) -> ControlError {
    ControlError::not_found(format!("there is no vault {}", key.name))
}

/// Refuses names that the API cannot carry in a path.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let fits = (1..=128).contains(&name.len())
        && name.chars().all(|c| c.is_alphanumeric() || "-_. ()".contains(c))
        // A name of dots alone is a path to clients that tidy paths, and blanks at an end get lost.
        && name.chars().any(char::is_alphanumeric)
        && name.trim() == name;
    match fits {
        true => Ok(()),
        false => Err(ControlError::bad_request(format!(
            "{what} {name:?}: a name has 1 to 128 letters, digits, - _ . ( ) or spaces, one \
             letter or digit at least, and no space at its ends"
        ))),
    }
}

impl Control {
    /// Makes or changes a vault. A new one gets its recovery site at once.
    ///
    /// # Errors
    /// BadRequest for a name that cannot be used.
    pub async fn vault_put(&self, key: &VaultKey, spec: VaultSpec) -> Result<VaultView> {
        check_name("vault", &key.name)?;
        let mut tx = self.store().begin().await?;
        let row = match store::vaults::find(&mut tx, key).await? {
            Some(row) => VaultRow { spec, ..row },
            None => VaultRow {
                id: self.new_id(),
                key: key.clone(),
                spec,
                recovery_fabric: self.new_id(),
            },
        };
        store::vaults::save(&mut tx, &row).await?;
        let recovery = FabricRow {
            id: row.recovery_fabric,
            vault: row.id,
            name: self.config().recovery_site.clone(),
            kind: FabricKind::Recovery,
            extra: serde_json::Value::Null,
        };
        if store::fabrics::by_id(&mut tx, recovery.id).await?.is_none() {
            store::fabrics::save(&mut tx, &recovery).await?;
        }
        store::hosts::join(&mut tx, recovery.id, self.config().local_host.id).await?;
        let view = self.vault_show(&mut tx, row).await?;
        store::commit(tx).await?;
        Ok(view)
    }

    /// Finds a vault.
    ///
    /// # Errors
    /// NotFound.
    pub async fn vault_get(&self, key: &VaultKey) -> Result<VaultView> {
        let mut tx = self.store().read().await?;
        let row = store::vaults::find(&mut tx, key).await?.ok_or_else(|| no_such(key))?;
        self.vault_show(&mut tx, row).await
    }

    /// Lists a subscription's vaults, of one resource group or of all, by name.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub async fn vault_list(&self, sub: &str, group: Option<&str>) -> Result<Vec<VaultView>> {
        let mut tx = self.store().read().await?;
        let mut views = Vec::new();
        for row in store::vaults::list(&mut tx, sub).await? {
            if group.is_none_or(|group| group.eq_ignore_ascii_case(&row.key.resource_group)) {
                views.push(self.vault_show(&mut tx, row).await?);
            }
        }
        Ok(views)
    }

    /// Lists every vault.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub(crate) async fn vault_list_all(&self) -> Result<Vec<VaultView>> {
        let mut tx = self.store().read().await?;
        let mut views = Vec::new();
        for row in store::vaults::all(&mut tx).await? {
            views.push(self.vault_show(&mut tx, row).await?);
        }
        Ok(views)
    }

    /// Removes a vault with its fabrics, policies and mappings.
    ///
    /// # Errors
    /// Conflict while it has protected items.
    pub async fn vault_delete(&self, key: &VaultKey) -> Result<()> {
        let mut tx = self.store().begin().await?;
        let row = store::vaults::find(&mut tx, key).await?.ok_or_else(|| no_such(key))?;
        let items = store::items::of_vault(&mut tx, row.id).await?.len();
        if items > 0 {
            let what = format!("vault {} has {items} protected items", key.name);
            return Err(ControlError::not_now(what));
        }
        store::vaults::remove(&mut tx, row.id).await?;
        store::commit(tx).await?;
        Ok(())
    }

    async fn vault_show(&self, conn: &mut Conn, row: VaultRow) -> Result<VaultView> {
        let recovery = store::fabrics::by_id(conn, row.recovery_fabric).await?;
        let items = store::items::of_vault(conn, row.id).await?.len() as u64;
        Ok(VaultView {
            id: row.id,
            key: row.key,
            spec: row.spec,
            recovery_fabric: row.recovery_fabric,
            recovery_fabric_name: recovery.map(|fabric| fabric.name).unwrap_or_default(),
            items,
        })
    }

    /// Writes down the config server's own host, as it is configured now.
    pub(crate) async fn local_host_save(&self) -> Result<()> {
        let local = self.config().local_host.clone();
        let mut tx = self.store().begin().await?;
        let known = store::hosts::find(&mut tx, local.id).await?;
        let address = Some(local.data_address);
        let same =
            known.as_ref().is_some_and(|row| row.name == local.name && row.data_address == address);
        if !same {
            let boot = known.map(|row| row.boot).unwrap_or_default();
            let row = HostRow {
                id: local.id,
                name: local.name,
                boot,
                data_address: address,
                notes_taken: Vec::new(),
                generation: 0,
            };
            store::hosts::save(&mut tx, &row).await?;
            for item in store::items::of_host(&mut tx, local.id).await? {
                for host in [item.plan.primary.host, item.plan.recovery.host] {
                    store::hosts::bump(&mut tx, host).await?;
                }
            }
        }
        store::commit(tx).await?;
        Ok(())
    }
}
