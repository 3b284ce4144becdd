//! Replication policies of a vault.

use crate::store::{self, Conn, policies::PolicyRow};
use crate::vaults::check_name;
use crate::{Control, ControlError, error::Result};
use leeward_model::{POINT_INTERVAL_MAX, POINT_INTERVAL_MIN, Policy, VaultId};
use serde::{Deserialize, Serialize};

/// What a caller sets of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicySpec {
    /// What it says.
    pub policy: Policy,
    /// Fields that only the API knows.
    pub extra: serde_json::Value,
}

/// Is a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyView {
    /// Its name, spelt as at its creation.
    pub name: String,
    /// Its vault.
    pub vault: VaultId,
    /// What the caller set.
    pub spec: PolicySpec,
    /// Items that follow it.
    pub items: u64,
}

/// A policy by name, or the refusal.
pub(crate) async fn policy_row(conn: &mut Conn, vault: VaultId, name: &str) -> Result<PolicyRow> {
    let row = store::policies::find(conn, vault, name).await?;
    row.ok_or_else(|| ControlError::not_found(format!("there is no policy {name}")))
}

fn check(policy: &Policy) -> Result<()> {
    let interval = u128::from(policy.point_interval_ms);
    let fits =
        (POINT_INTERVAL_MIN.as_millis()..=POINT_INTERVAL_MAX.as_millis()).contains(&interval);
    if !fits {
        let what = "the interval between recovery points must be 1 second to 1 hour";
        return Err(ControlError::bad_request(what));
    }
    if policy.retention_seconds.saturating_mul(1000) < policy.point_interval_ms {
        let what = "the retention must not be shorter than the interval between points";
        return Err(ControlError::bad_request(what));
    }
    Ok(())
}

async fn show(conn: &mut Conn, row: PolicyRow) -> Result<PolicyView> {
    let items = store::items::of_vault(conn, row.vault).await?;
    let follows = items.iter().filter(|item| item.policy.eq_ignore_ascii_case(&row.name));
    let items = follows.count() as u64;
    Ok(PolicyView { name: row.name, vault: row.vault, spec: row.spec, items })
}

impl Control {
    /// Makes or changes a policy; its items follow at once.
    ///
    /// # Errors
    /// BadRequest for values out of range.
    pub async fn policy_put(
        &self,
        vault: VaultId,
        name: &str,
        spec: PolicySpec,
    ) -> Result<PolicyView> {
        check_name("policy", name)?;
        check(&spec.policy)?;
        let mut tx = self.store().begin().await?;
        let known = store::policies::find(&mut tx, vault, name).await?;
        let name = known.map_or_else(|| name.to_owned(), |row| row.name);
        let row = PolicyRow { vault, name, spec };
        store::policies::save(&mut tx, &row).await?;
        let mut hosts = std::collections::BTreeSet::new();
        for item in store::items::of_vault(&mut tx, vault).await? {
            if item.policy.eq_ignore_ascii_case(&row.name) {
                hosts.extend(item.plan.hosts());
            }
        }
        for host in &hosts {
            store::hosts::bump(&mut tx, *host).await?;
        }
        let view = show(&mut tx, row).await?;
        store::commit(tx).await?;
        self.publish(&hosts.into_iter().collect::<Vec<_>>()).await?;
        Ok(view)
    }

    /// Finds a policy.
    ///
    /// # Errors
    /// NotFound.
    pub async fn policy_get(&self, vault: VaultId, name: &str) -> Result<PolicyView> {
        let mut tx = self.store().read().await?;
        let row = policy_row(&mut tx, vault, name).await?;
        show(&mut tx, row).await
    }

    /// Lists a vault's policies by name.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub async fn policy_list(&self, vault: VaultId) -> Result<Vec<PolicyView>> {
        let mut tx = self.store().read().await?;
        let mut views = Vec::new();
        for row in store::policies::list(&mut tx, vault).await? {
            views.push(show(&mut tx, row).await?);
        }
        Ok(views)
    }

    /// Removes a policy.
    ///
    /// # Errors
    /// Conflict while a mapping or an item uses it.
    pub async fn policy_delete(&self, vault: VaultId, name: &str) -> Result<()> {
        let mut tx = self.store().begin().await?;
        let row = policy_row(&mut tx, vault, name).await?;
        let mappings = store::fabrics::mappings(&mut tx, vault).await?;
        let mapped = mappings.iter().any(|m| m.policy.eq_ignore_ascii_case(&row.name));
        let view = show(&mut tx, row).await?;
        if mapped || view.items > 0 {
            let what = format!("policy {name} is used by mappings or items");
            return Err(ControlError::not_now(what));
        }
        store::policies::remove(&mut tx, vault, name).await?;
        store::commit(tx).await?;
        Ok(())
    }
}
