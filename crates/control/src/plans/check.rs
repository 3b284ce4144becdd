//! What a caller may write into a recovery plan. Reads the database, changes nothing.

use super::{Action, Group, GroupKind, actions};
use crate::ControlError;
use crate::error::Result;
use crate::fabrics::fabric_row;
use crate::store::{self, Conn, items::ItemRow};
use leeward_model::{FabricId, ItemId, VaultId};
use std::collections::BTreeSet;

/// The most boot groups of a plan, as in the contract.
const BOOT_GROUPS_MAX: usize = 7;
/// The most machines of a plan: what its job remembers is written with each of its steps.
const MEMBERS_MAX: usize = 500;

/// Names an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemRef {
    /// By its id.
    Id(ItemId),
    /// By its name, and that of its primary site's fabric when it was given.
    Named {
        /// The fabric.
        fabric: Option<String>,
        /// The item.
        name: String,
    },
}

/// Is a group as a caller writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupInput {
    /// What it is.
    pub kind: GroupKind,
    /// Its machines.
    pub items: Vec<ItemRef>,
    /// What is done before it.
    pub before: Vec<Action>,
    /// What is done after it.
    pub after: Vec<Action>,
}

/// Is a plan as a caller writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanInput {
    /// Name of the primary site's fabric.
    pub primary: String,
    /// Name of the recovery site's fabric.
    pub recovery: String,
    /// Its groups.
    pub groups: Vec<GroupInput>,
    /// Fields that only the API knows.
    pub extra: serde_json::Value,
}

fn wrong<T>(what: impl Into<String>) -> Result<T> {
    Err(ControlError::bad_request(what))
}

/// The two sites of a plan.
///
/// # Errors
/// NotFound for a fabric; BadRequest when both are one.
pub(super) async fn fabrics(
    conn: &mut Conn,
    vault: VaultId,
    input: &PlanInput,
) -> Result<(FabricId, FabricId)> {
    let primary = fabric_row(conn, vault, &input.primary).await?.id;
    let recovery = fabric_row(conn, vault, &input.recovery).await?.id;
    match primary == recovery {
        true => wrong(format!("both sites of the plan are {}", input.primary)),
        false => Ok((primary, recovery)),
    }
}

/// What is peculiar to the two groups that stand for all machines.
fn whole(number: usize, group: &GroupInput) -> Result<()> {
    if group.kind == GroupKind::Boot {
        return Ok(());
    }
    let kind = group.kind;
    if !group.items.is_empty() {
        return wrong(format!(
            "group {number} is {kind:?}, which stands for all machines: name them in boot groups"
        ));
    }
    let (side, other) = match kind {
        GroupKind::Shutdown => (&group.after, "before"),
        GroupKind::Failover | GroupKind::Boot => (&group.before, "after"),
    };
    match side.is_empty() {
        true => Ok(()),
        false => Err(ControlError::not_supported(format!(
            "group {number} is {kind:?}: an action on that side of it is not supported yet, only \
             one {other} it"
        ))),
    }
}

fn add_missing(groups: &mut Vec<GroupInput>) {
    for (place, kind) in [GroupKind::Shutdown, GroupKind::Failover].into_iter().enumerate() {
        if !groups.iter().any(|group| group.kind == kind) {
            let (items, before, after) = (Vec::new(), Vec::new(), Vec::new());
            groups.insert(place, GroupInput { kind, items, before, after });
        }
    }
}

/// Secrets are never shown, so a plan that is read and written again comes without them.
fn keep_secrets(input: &mut [GroupInput], before: &[Group]) {
    let known = before.iter().flat_map(|group| group.before.iter().chain(&group.after));
    let known: Vec<_> = known.collect();
    for group in input {
        let actions = group.before.iter_mut().chain(&mut group.after);
        actions.for_each(|action| action.keep_secret(&known));
    }
}

fn order(groups: &[GroupInput]) -> Result<()> {
    let count = |kind| groups.iter().filter(|group| group.kind == kind).count();
    let place = |kind| groups.iter().position(|group| group.kind == kind);
    for (wanted, kind) in [GroupKind::Shutdown, GroupKind::Failover].into_iter().enumerate() {
        if count(kind) > 1 || place(kind) != Some(wanted) {
            return wrong("the groups are at most one Shutdown, one Failover, then Boot groups");
        }
    }
    match count(GroupKind::Boot) {
        0 => wrong("a plan needs one Boot group at least"),
        1..=BOOT_GROUPS_MAX => Ok(()),
        found => wrong(format!(
            "the plan has {found} Boot groups, {BOOT_GROUPS_MAX} at most are possible"
        )),
    }
}

/// The item that is meant, out of a vault's items.
async fn resolve<'a>(
    conn: &mut Conn,
    vault: VaultId,
    items: &'a [ItemRow],
    wanted: &ItemRef,
) -> Result<&'a ItemRow> {
    let (found, name) = match wanted {
        ItemRef::Id(id) => {
            (items.iter().filter(|item| item.id == *id).collect::<Vec<_>>(), id.to_string())
        }
        ItemRef::Named { fabric, name } => {
            let fabric = match fabric {
                Some(fabric) => Some(fabric_row(conn, vault, fabric).await?.id),
                None => None,
            };
            let named = |item: &&ItemRow| {
                item.name.eq_ignore_ascii_case(name) && fabric.is_none_or(|id| id == item.fabric)
            };
            (items.iter().filter(named).collect(), name.clone())
        }
    };
    match found.as_slice() {
        [item] => Ok(item),
        [] => Err(ControlError::not_found(format!(
            "the vault has no protected item {name} to put into the plan"
        ))),
        _ => wrong(format!("several protected items are called {name}: name one by its id")),
    }
}

/// The groups of a plan between two sites, complete and in order. Secrets that are left out are
/// those of `before`, the groups that it has.
///
/// # Errors
/// BadRequest saying which group is wrong and why; NotFound for an item; NotSupported for an
/// action at a place that Leeward does not have yet.
pub(super) async fn groups(
    conn: &mut Conn,
    vault: VaultId,
    (primary, recovery): (FabricId, FabricId),
    mut input: Vec<GroupInput>,
    before: &[Group],
) -> Result<Vec<Group>> {
    add_missing(&mut input);
    keep_secrets(&mut input, before);
    order(&input)?;
    let items = store::items::of_vault(conn, vault).await?;
    let (mut groups, mut taken) = (Vec::new(), BTreeSet::new());
    for (index, group) in input.into_iter().enumerate() {
        let number = index + 1;
        whole(number, &group)?;
        actions::check(number, &group.before)?;
        actions::check(number, &group.after)?;
        let mut members = Vec::new();
        for wanted in &group.items {
            let item = resolve(conn, vault, &items, wanted).await?;
            if item.fabric != primary || item.target_fabric != recovery {
                return wrong(format!("{} is protected between other sites", item.name));
            }
            if !taken.insert(item.id) {
                return wrong(format!("{} is in the plan twice", item.name));
            }
            members.push(item.id);
        }
        let (before, after) = (group.before, group.after);
        groups.push(Group { kind: group.kind, items: members, before, after });
    }
    match taken.len() {
        0 => wrong("a plan needs one machine at least"),
        1..=MEMBERS_MAX => Ok(groups),
        found => {
            wrong(format!("the plan has {found} machines, {MEMBERS_MAX} at most are possible"))
        }
    }
}
