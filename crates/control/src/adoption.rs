//! Makes a config server's database anew from a configuration that was kept outside its machine,
//! for another config server that takes over. Where it was kept is not known here.
//!
//! The other machine is taken to be gone: nothing that ran on it is started again without a
//! person's word. What it replicated, and every point, is as it was.

use crate::audit_log::{AuditMark, AuditRecord};
use crate::events::{EventView, Severity};
use crate::store::{self, Conn, Durability, Store, StoreError, items::ItemRow};
use leeward_model::{Epoch, HostId, ItemId, Protection, Site, TestState, UnixMillis, VaultId};
use leeward_wire::message::{Purpose, Stage};
use std::collections::BTreeMap;
use std::path::Path;

/// Hosts take any assignment that differs; this only shows in logs where the other server ended.
const GENERATIONS_SKIPPED: i64 = 1_000;

/// What is known about a takeover.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// The host of the server that is gone, whose place and store the new one has.
    pub host: HostId,
    /// Generation of the new server.
    pub generation: u64,
    /// The machine it runs on.
    pub by: String,
    /// Now.
    pub at: UnixMillis,
    /// The lowest epochs that the store takes, by item.
    pub fences: BTreeMap<ItemId, Epoch>,
}

/// What was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Protected items.
    pub items: u64,
    /// Of these, items whose machine ran on the machine that is gone.
    pub machines_lost: u64,
    /// Jobs that go on.
    pub jobs: u64,
}

/// Makes the database `path`, which must not exist, from `configuration`. All or nothing; when it
/// returns everything is in the file.
///
/// # Errors
/// [`StoreError::Malformed`] when `configuration` is none, or one of a newer program.
pub async fn restore(
    path: &Path,
    configuration: &[u8],
    adoption: &Adoption,
) -> Result<Adopted, StoreError> {
    let store = Store::open_empty(path, Durability::PowerCut).await?;
    let mut tx = store.begin().await?;
    store::snapshot::load(&mut tx, configuration).await?;
    let mut adopted = Adopted::default();
    store::hosts::skip_generations(&mut tx, GENERATIONS_SKIPPED).await?;
    store::jobs::forget_tests(&mut tx).await?;
    let mut vaults = BTreeMap::<VaultId, u64>::new();
    for vault in store::vaults::all_ids(&mut tx).await? {
        vaults.insert(vault, 0);
    }
    for id in store::items::all_ids(&mut tx).await? {
        let Some(mut item) = store::items::find(&mut tx, id).await? else { continue };
        adopted.items += 1;
        *vaults.entry(item.vault).or_default() += 1;
        if settle(&mut item, adoption) {
            adopted.machines_lost += 1;
            machine_lost_note(&mut tx, &item, adoption).await?;
        }
        store::items::update(&mut tx, &item).await?;
    }
    audit(&mut tx, adoption).await?;
    adopted.jobs = store::jobs::unfinished(&mut tx).await?.len() as u64;
    for (vault, items) in vaults {
        let text = format!(
            "{} adopted the store with {items} protected items (generation {})",
            adoption.by, adoption.generation
        );
        let event = event(adoption, "StoreAdopted", Severity::Warning, text);
        store::events::append(&mut tx, vault, &event).await?;
    }
    store::commit(tx).await?;
    store.close().await;
    Ok(adopted)
}

/// The former server's newest entries are here: the log goes on behind them.
async fn audit(conn: &mut Conn, adoption: &Adoption) -> Result<(), StoreError> {
    let first = store::audit_log::list(conn, 0, 1).await?;
    let generation = adoption.generation;
    let object = format!("generation {generation} of host {}", adoption.host);
    let mut record = AuditRecord::noted(adoption.at, &adoption.by, "StoreAdopted", &object);
    record.mark = first.first().map(|row| AuditMark::BeginsAt(row.number.unsigned_abs()));
    store::audit_log::append(conn, &record).await
}

fn event(adoption: &Adoption, name: &str, severity: Severity, text: String) -> EventView {
    EventView {
        seq: 0,
        at: adoption.at,
        name: name.to_owned(),
        severity,
        text,
        item: None,
        object: adoption.by.clone(),
        job: None,
        problem: None,
    }
}

/// Takes out of an item what the machine that is gone had of it; returns whether the protected
/// machine itself ran there.
fn settle(item: &mut ItemRow, adoption: &Adoption) -> bool {
    item.state.test = TestState::None;
    item.plan.instances.retain(|instance| instance.purpose != Purpose::Test);
    if let Some(fence) = adoption.fences.get(&item.id) {
        item.state.epoch = item.state.epoch.max(*fence);
    }
    // A failover under way goes on: its machine is what somebody asked for, here and now. One that
    // was over left a machine with work of its own, which is not here: nothing stands in for it
    // until a person says so.
    let under_way = matches!(item.state.protection, Protection::FailingOver { .. });
    let mut lost = !under_way && item.plan.end(item.state.active).host == adoption.host;
    let hosts = [item.plan.primary.host, item.plan.recovery.host];
    for instance in &mut item.plan.instances {
        let host = match instance.site {
            Site::Primary => hosts[0],
            Site::Recovery => hosts[1],
        };
        let ended = matches!(instance.stage, Stage::Absent | Stage::Stopped);
        if host == adoption.host && !under_way && !ended {
            instance.permitted = false;
            instance.stage = Stage::Stopped;
            lost = true;
        }
    }
    lost
}

async fn machine_lost_note(
    conn: &mut Conn,
    item: &ItemRow,
    adoption: &Adoption,
) -> Result<(), StoreError> {
    let text = format!(
        "{} ran on the machine of the former config server. It was not started here: fail over to \
         another point, or cancel the failover to go back to the old site",
        item.name
    );
    let mut event = event(adoption, "MachineNotHere", Severity::Critical, text);
    event.item = Some(item.id);
    event.object = item.name.clone();
    store::events::append(conn, item.vault, &event).await
}
