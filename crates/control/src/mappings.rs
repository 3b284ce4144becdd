//! Container mappings: from which site to which, under which policy.

use crate::fabrics::{FabricKind, fabric_row};
use crate::policies::policy_row;
use crate::store::{self, Conn, fabrics::MappingRow};
use crate::vaults::check_name;
use crate::{Control, ControlError, error::Result};
use leeward_model::{FabricId, VaultId};
use serde::{Deserialize, Serialize};

/// What a caller sets of a mapping.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MappingSpec {
    /// Name of the target container's fabric; none: the vault's recovery site.
    pub target_fabric: Option<String>,
    /// Name of the policy.
    pub policy: String,
    /// Fields that only the API knows.
    pub extra: serde_json::Value,
}

/// Is a mapping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MappingView {
    /// Its name, spelt as at its creation.
    pub name: String,
    /// The source container's fabric.
    pub source: FabricId,
    /// Name of that fabric.
    pub source_name: String,
    /// The target container's fabric.
    pub target: FabricId,
    /// Name of that fabric.
    pub target_name: String,
    /// Name of the policy.
    pub policy: String,
    /// Fields that only the API knows.
    pub extra: serde_json::Value,
}

async fn show(conn: &mut Conn, row: MappingRow) -> Result<MappingView> {
    let mut name = async |fabric| -> Result<String> {
        let row = store::fabrics::by_id(&mut *conn, fabric).await?;
        Ok(row.map(|row| row.name).unwrap_or_default())
    };
    Ok(MappingView {
        source_name: name(row.source).await?,
        target_name: name(row.target).await?,
        name: row.name,
        source: row.source,
        target: row.target,
        policy: row.policy,
        extra: row.extra,
    })
}

impl Control {
    /// Makes or changes a mapping of the fabric's container.
    ///
    /// # Errors
    /// NotFound for a fabric or policy; BadRequest when source and target are one.
    pub async fn mapping_put(
        &self,
        vault: VaultId,
        fabric: &str,
        name: &str,
        spec: MappingSpec,
    ) -> Result<MappingView> {
        check_name("mapping", name)?;
        let mut tx = self.store().begin().await?;
        let source = fabric_row(&mut tx, vault, fabric).await?;
        let target = match &spec.target_fabric {
            Some(target) => fabric_row(&mut tx, vault, target).await?,
            None => {
                let all = store::fabrics::list(&mut tx, vault).await?;
                let own = all.into_iter().find(|fabric| fabric.kind == FabricKind::Recovery);
                own.ok_or_else(|| ControlError::not_found("the vault has no recovery site"))?
            }
        };
        if source.id == target.id {
            return Err(ControlError::bad_request("source and target must be two containers"));
        }
        let policy = policy_row(&mut tx, vault, &spec.policy).await?;
        let row = MappingRow {
            vault,
            name: name.to_owned(),
            source: source.id,
            target: target.id,
            policy: policy.name,
            extra: spec.extra,
        };
        store::fabrics::mapping_save(&mut tx, &row).await?;
        let view = show(&mut tx, row).await?;
        store::commit(tx).await?;
        Ok(view)
    }

    /// Finds a mapping.
    ///
    /// # Errors
    /// NotFound.
    pub async fn mapping_get(
        &self,
        vault: VaultId,
        fabric: &str,
        name: &str,
    ) -> Result<MappingView> {
        let all = self.mapping_list(vault, Some(fabric)).await?;
        all.into_iter().find(|mapping| mapping.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            ControlError::not_found(format!("fabric {fabric} has no mapping {name}"))
        })
    }

    /// Lists the mappings of one fabric or of all.
    ///
    /// # Errors
    /// NotFound for the fabric.
    pub async fn mapping_list(
        &self,
        vault: VaultId,
        fabric: Option<&str>,
    ) -> Result<Vec<MappingView>> {
        let mut tx = self.store().read().await?;
        let source = match fabric {
            Some(name) => Some(fabric_row(&mut tx, vault, name).await?.id),
            None => None,
        };
        let mut views = Vec::new();
        for row in store::fabrics::mappings(&mut tx, vault).await? {
            if source.is_none_or(|source| source == row.source) {
                views.push(show(&mut tx, row).await?);
            }
        }
        Ok(views)
    }

    /// Removes a mapping.
    ///
    /// # Errors
    /// Conflict while items of the source follow its policy.
    pub async fn mapping_remove(&self, vault: VaultId, fabric: &str, name: &str) -> Result<()> {
        let mapping = self.mapping_get(vault, fabric, name).await?;
        let mut tx = self.store().begin().await?;
        let items = store::items::of_vault(&mut tx, vault).await?;
        if items.iter().any(|item| {
            item.fabric == mapping.source
                && item.target_fabric == mapping.target
                && item.policy.eq_ignore_ascii_case(&mapping.policy)
        }) {
            let what = format!("mapping {name} is used by protected items");
            return Err(ControlError::not_now(what));
        }
        store::fabrics::mapping_remove(&mut tx, mapping.source, name).await?;
        store::commit(tx).await?;
        Ok(())
    }
}
