//! Networks and storage of fabrics, and the mappings between them: where the network cards of a
//! machine are attached that is made at the other site. Storage can be mapped, too, but every host
//! has one store: that changes nothing and says so.

use crate::fabrics::fabric_row;
use crate::store::resource_mappings::{self, Mapped, ResourceMappingRow};
use crate::store::{self, Conn, items::ItemRow};
use crate::vaults::check_name;
use crate::{Control, ControlError, ErrorKind, error::Result};
use leeward_model::{Code, FabricId, NETWORKS, Site, VaultId};
use std::collections::BTreeMap;

/// The one class of storage of a fabric: what its hosts keep replicas in.
pub const STORAGE: &str = "replica-store";

/// What can be mapped between fabrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Networks of hosts.
    Network,
    /// Storage of replicas.
    Storage,
}

impl Resource {
    fn mapped(self) -> Mapped {
        match self {
            Resource::Network => Mapped::Network,
            Resource::Storage => Mapped::Storage,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Resource::Network => "network",
            Resource::Storage => "storage classification",
        }
    }

    /// Those of every fabric: all its hosts have the same.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Resource::Network => &NETWORKS,
            Resource::Storage => &[STORAGE],
        }
    }

    /// The one that is called so, in its one spelling.
    ///
    /// # Errors
    /// NotFound, with the names that there are.
    pub fn find(self, name: &str) -> Result<&'static str> {
        let found = self.names().iter().find(|known| known.eq_ignore_ascii_case(name));
        found.copied().ok_or_else(|| {
            let (word, all) = (self.word(), self.names().join(", "));
            ControlError::not_found(format!("there is no {word} {name}; there are: {all}"))
        })
    }
}

/// Is a mapping as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceMappingView {
    /// Its name, spelt as at its creation.
    pub name: String,
    /// The fabric that it is a mapping of.
    pub source: String,
    /// What is mapped there.
    pub object: String,
    /// Name of the other fabric.
    pub target: String,
    /// What it is there.
    pub target_object: String,
}

/// Names one mapping, or the place of one.
#[derive(Clone, Copy, Debug)]
pub struct MappingPlace<'a> {
    /// What is mapped.
    pub kind: Resource,
    /// The fabric that it is a mapping of.
    pub fabric: &'a str,
    /// What is mapped there.
    pub object: &'a str,
    /// The mapping.
    pub name: &'a str,
}

async fn show(conn: &mut Conn, row: &ResourceMappingRow) -> Result<ResourceMappingView> {
    let mut name = async |fabric: FabricId| -> Result<String> {
        let row = store::fabrics::by_id(&mut *conn, fabric).await?;
        Ok(row.map(|row| row.name).unwrap_or_default())
    };
    Ok(ResourceMappingView {
        source: name(row.fabric).await?,
        target: name(row.target).await?,
        name: row.name.clone(),
        object: row.object.clone(),
        target_object: row.target_object.clone(),
    })
}

async fn found(
    conn: &mut Conn,
    vault: VaultId,
    place: MappingPlace<'_>,
) -> Result<ResourceMappingRow> {
    let fabric = fabric_row(conn, vault, place.fabric).await?;
    let object = place.kind.find(place.object)?;
    let all = resource_mappings::of_vault(conn, vault, place.kind.mapped()).await?;
    let is_it = |row: &ResourceMappingRow| {
        row.fabric == fabric.id && row.object == object && row.name.eq_ignore_ascii_case(place.name)
    };
    all.into_iter().find(is_it).ok_or_else(|| {
        let (word, name) = (place.kind.word(), place.name);
        ControlError::not_found(format!("{word} {object} of {} has no mapping {name}", fabric.name))
    })
}

impl Control {
    /// Makes a mapping, or changes where it leads: from now on machines that are made in `target`
    /// of machines of the place's fabric are attached to `target_object` there.
    ///
    /// # Errors
    /// NotFound for a fabric or object; BadRequest when both fabrics are one or the name cannot be
    /// used; Conflict with `NAME_TAKEN` when another mapping leads from there to that fabric.
    pub async fn resource_mapping_put(
        &self,
        vault: VaultId,
        place: MappingPlace<'_>,
        (target, target_object): (&str, &str),
    ) -> Result<ResourceMappingView> {
        check_name("mapping", place.name)?;
        let object = place.kind.find(place.object)?;
        let target_object = place.kind.find(target_object)?;
        let mut tx = self.store().begin().await?;
        let fabric = fabric_row(&mut tx, vault, place.fabric).await?;
        let target = fabric_row(&mut tx, vault, target).await?;
        if fabric.id == target.id {
            let what = format!("source and target must be two fabrics, both are {}", fabric.name);
            return Err(ControlError::bad_request(what));
        }
        let kind = place.kind.mapped();
        let all = resource_mappings::of_vault(&mut tx, vault, kind).await?;
        let here = || all.iter().filter(|row| row.fabric == fabric.id && row.object == object);
        let named = here().find(|row| row.name.eq_ignore_ascii_case(place.name));
        let other = here()
            .find(|row| row.target == target.id && !row.name.eq_ignore_ascii_case(place.name));
        if let Some(other) = other {
            let (word, other) = (place.kind.word(), &other.name);
            let what =
                format!("mapping {other} leads from {word} {object} to {} already", target.name);
            return Err(ControlError::new(ErrorKind::Conflict, Code::NAME_TAKEN, what));
        }
        let name = named.map_or_else(|| place.name.to_owned(), |row| row.name.clone());
        let row = ResourceMappingRow {
            vault,
            kind,
            fabric: fabric.id,
            object: object.to_owned(),
            name,
            target: target.id,
            target_object: target_object.to_owned(),
        };
        resource_mappings::save(&mut tx, &row).await?;
        let view = show(&mut tx, &row).await?;
        store::commit(tx).await?;
        Ok(view)
    }

    /// Finds a mapping.
    ///
    /// # Errors
    /// NotFound.
    pub async fn resource_mapping_get(
        &self,
        vault: VaultId,
        place: MappingPlace<'_>,
    ) -> Result<ResourceMappingView> {
        let mut tx = self.store().read().await?;
        let row = found(&mut tx, vault, place).await?;
        show(&mut tx, &row).await
    }

    /// Lists the mappings of a vault, by fabric, object and name.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub async fn resource_mapping_list(
        &self,
        vault: VaultId,
        kind: Resource,
    ) -> Result<Vec<ResourceMappingView>> {
        let mut tx = self.store().read().await?;
        let mut views = Vec::new();
        for row in resource_mappings::of_vault(&mut tx, vault, kind.mapped()).await? {
            views.push(show(&mut tx, &row).await?);
        }
        Ok(views)
    }

    /// Removes a mapping. Machines that were made stay as they are.
    ///
    /// # Errors
    /// NotFound.
    pub async fn resource_mapping_remove(
        &self,
        vault: VaultId,
        place: MappingPlace<'_>,
    ) -> Result<()> {
        let mut tx = self.store().begin().await?;
        let row = found(&mut tx, vault, place).await?;
        resource_mappings::remove(&mut tx, &row).await?;
        store::commit(tx).await?;
        Ok(())
    }
}

/// Is which network at one of an item's sites is which one at the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NetworkMaps {
    to_primary: BTreeMap<String, String>,
    to_recovery: BTreeMap<String, String>,
}

impl NetworkMaps {
    /// Those between the sites of an item.
    pub(crate) async fn of_item(conn: &mut Conn, item: &ItemRow) -> Result<NetworkMaps> {
        let mut maps = NetworkMaps::default();
        for row in resource_mappings::of_vault(conn, item.vault, Mapped::Network).await? {
            let map = match (row.fabric, row.target) {
                (from, to) if (from, to) == (item.fabric, item.target_fabric) => {
                    &mut maps.to_recovery
                }
                (from, to) if (from, to) == (item.target_fabric, item.fabric) => {
                    &mut maps.to_primary
                }
                _ => continue,
            };
            map.insert(row.object, row.target_object);
        }
        Ok(maps)
    }

    /// For machines made at `site`: the network there by the network at the other site.
    pub(crate) fn to(&self, site: Site) -> &BTreeMap<String, String> {
        match site {
            Site::Primary => &self.to_primary,
            Site::Recovery => &self.to_recovery,
        }
    }

    /// The way back of the mappings that lead away from `site`: only where one network leads to
    /// another one alone can it be told which one it was.
    pub(crate) fn home_to(&self, site: Site) -> BTreeMap<String, String> {
        let away = self.to(crate::plan::other(site));
        let alone = |to: &str| away.values().filter(|known| *known == to).count() == 1;
        let back = away.iter().filter(|(_, to)| alone(to));
        back.map(|(from, to)| (to.clone(), from.clone())).collect()
    }
}
