//! Loads an item's world and stores it again: the only writer of protection state.

use crate::error::Result;
use crate::events::{EventView, Severity};
use crate::hosts::HostSight;
use crate::jobs::RunState;
use crate::networks::NetworkMaps;
use crate::store::{self, Conn, items::ItemRow};
use crate::world::{Family, HostFacts, World};
use crate::{Control, ControlError, jobs};
use leeward_model::{HostId, ItemId, JobId, Protection};
use std::collections::BTreeSet;

impl Control {
    /// The snapshot of an item that is stored, or that is about to be.
    pub(crate) async fn world_of(&self, conn: &mut Conn, item: ItemRow) -> Result<World> {
        let now = self.now();
        let policy = store::policies::find(conn, item.vault, &item.policy).await?;
        let primary = self.host_facts(conn, item.plan.primary.host).await?;
        let recovery = self.host_facts(conn, item.plan.recovery.host).await?;
        let mut left = Vec::new();
        for host in item.plan.left.iter().map(|left| left.host) {
            if store::hosts::find(conn, host).await?.is_some() {
                left.push(self.host_facts(conn, host).await?);
            }
        }
        let watch = store::jobs::watching(conn, item.id).await?;
        Ok(World {
            now,
            draw: self.ports().draw.clone(),
            networks: NetworkMaps::of_item(conn, &item).await?,
            item: Some(item),
            policy: policy.map(|row| row.spec.policy).unwrap_or_default(),
            primary,
            recovery,
            left,
            events: Vec::new(),
            notes: Vec::new(),
            jobs: Vec::new(),
            cancels: Vec::new(),
            migrated: false,
            reverse: None,
            watch,
            asked_by: self.asked_by(),
            family: Family::default(),
        })
    }

    /// The snapshot of an item by id; without an item when there is none any more.
    pub(crate) async fn world(&self, conn: &mut Conn, item: Option<ItemId>) -> Result<World> {
        let row = match item {
            Some(item) => store::items::find(conn, item).await?,
            None => None,
        };
        if let Some(row) = row {
            return self.world_of(conn, row).await;
        }
        let nobody = || HostFacts {
            id: HostId::from_u128(0),
            name: String::new(),
            data_address: None,
            generation: 0,
            sight: HostSight::default(),
        };
        Ok(World {
            now: self.now(),
            draw: self.ports().draw.clone(),
            item: None,
            policy: leeward_model::Policy::default(),
            networks: NetworkMaps::default(),
            primary: nobody(),
            recovery: nobody(),
            left: Vec::new(),
            events: Vec::new(),
            notes: Vec::new(),
            jobs: Vec::new(),
            cancels: Vec::new(),
            migrated: false,
            reverse: None,
            watch: None,
            asked_by: self.asked_by(),
            family: Family::default(),
        })
    }

    /// What is known of a host.
    pub(crate) async fn host_facts(&self, conn: &mut Conn, host: HostId) -> Result<HostFacts> {
        let row = store::hosts::find(conn, host).await?;
        let row = row.ok_or_else(|| ControlError::not_found(format!("there is no host {host}")))?;
        Ok(HostFacts {
            id: host,
            name: row.name,
            data_address: row.data_address,
            generation: row.generation,
            sight: self.hosts().sight(host, &self.now()),
        })
    }

    /// Changes an item in one transaction: what `change` does to the world is stored whole.
    pub(crate) async fn item_change<T>(
        &self,
        item: ItemId,
        change: impl FnOnce(&mut World, &Running) -> Result<T>,
    ) -> Result<T> {
        self.check_in_charge()?;
        let mut tx = self.store().begin().await?;
        let mut world = self.world(&mut tx, Some(item)).await?;
        let before = world.item.clone();
        let Some(row) = &before else {
            return Err(no_item(&mut tx, item).await);
        };
        let running = Running(store::jobs::running(&mut tx, row.id).await?);
        let value = change(&mut world, &running)?;
        let hosts = record(&mut tx, before.as_ref(), &world).await?;
        store::commit(tx).await?;
        self.publish(&hosts).await?;
        self.poke();
        Ok(value)
    }

    /// Makes one transition of a job and stores it with its effects.
    ///
    /// Returns none when the job is over or gone.
    pub(crate) async fn job_advance(&self, job: JobId) -> Result<Option<leeward_durable::Next>> {
        let mut tx = self.store().begin().await?;
        let Some(row) = store::jobs::find(&mut tx, job).await? else { return Ok(None) };
        if row.record.phase.is_final() {
            return Ok(None);
        }
        let mut world = self.world(&mut tx, row.facts.item).await?;
        if let Some(item) = row.facts.item.filter(|_| row.facts.lane == store::jobs::Lane::Main) {
            world.reverse = store::jobs::newest_reverse(&mut tx, item).await?;
        }
        world.family = self.family_of(&mut tx, &row).await?;
        let before = world.item.clone();
        let now_ms = world.now.wall_ms();
        let revision = row.record.revision;
        let advance = self.registry().advance(row.record.clone(), &mut world, now_ms);
        let advance = advance.map_err(|error| {
            ControlError::internal(format!("could not advance job {job}"), &error)
        })?;
        let asks = std::mem::take(&mut world.family.asks);
        let actions = std::mem::take(&mut world.family.actions);
        let effects = world.item != before
            || !world.notes.is_empty()
            || !world.jobs.is_empty()
            || !world.cancels.is_empty();
        if !advance.changed && !effects {
            drop(tx);
            self.ask_all(&row.facts, asks).await;
            self.actions_do(&row.facts, actions).await;
            return Ok(Some(advance.next));
        }
        let mut ended = None;
        if advance.record.phase.is_final() {
            let view = jobs::job_view(&jobs_row(&row, &advance.record));
            store::events::append(&mut tx, row.facts.vault, &ended_event(&view, &world)).await?;
            ended = Some(view);
        }
        let hosts = record(&mut tx, before.as_ref(), &world).await?;
        if advance.changed {
            store::jobs::update(&mut tx, job, revision, &advance.record).await?;
        }
        store::commit(tx).await?;
        ended.iter().for_each(|job| self.counters().job(job));
        self.publish(&hosts).await?;
        self.ask_all(&row.facts, asks).await;
        self.actions_do(&row.facts, actions).await;
        Ok(Some(advance.next))
    }
}

/// The refusal when there is no item of that id, or no more.
pub(crate) async fn no_item(conn: &mut Conn, item: ItemId) -> ControlError {
    match store::items::migrated(conn, item).await {
        Ok(Some(name)) => super::migrated(&name),
        Ok(None) => ControlError::not_found(format!("there is no item {item}")),
        Err(error) => error.into(),
    }
}

/// An item's jobs that are not over.
pub(crate) struct Running(pub(crate) Vec<store::jobs::JobRow>);

impl Running {
    /// Refuses when a job of `lanes` runs.
    pub(crate) fn refuse(&self, item: &str, lanes: &[store::jobs::Lane]) -> Result<()> {
        match self.0.iter().find(|row| lanes.contains(&row.facts.lane)) {
            Some(row) => Err(jobs::busy(item, row)),
            None => Ok(()),
        }
    }
}

fn jobs_row(row: &store::jobs::JobRow, record: &leeward_durable::Record) -> store::jobs::JobRow {
    store::jobs::JobRow { facts: row.facts.clone(), record: record.clone() }
}

fn ended_event(view: &jobs::JobView, world: &World) -> EventView {
    let (name, severity) = match view.state {
        RunState::Succeeded => ("JobSucceeded", Severity::Info),
        RunState::SucceededWithWarning => ("JobSucceededWithWarning", Severity::Warning),
        RunState::Cancelled => ("JobCancelled", Severity::Info),
        _ => ("JobFailed", Severity::Critical),
    };
    let scenario = view.scenario;
    EventView {
        seq: 0,
        at: world.now.wall,
        name: name.to_owned(),
        severity,
        text: format!("{scenario:?} of {} ended: {:?}", view.target_name, view.state),
        item: view.item,
        object: view.target_name.clone(),
        job: Some(view.id),
        problem: view.errors.last().cloned(),
    }
}

/// An item that ends leaves the plans that it is in.
async fn leave_plans(conn: &mut Conn, item: &ItemRow, world: &World) -> Result<()> {
    for plan in store::plans::leave(conn, item.vault, item.id).await? {
        let event = EventView {
            seq: 0,
            at: world.now.wall,
            name: "PlanMemberLeft".to_owned(),
            severity: Severity::Warning,
            text: format!(
                "{} is protected no longer and was taken out of recovery plan {plan}",
                item.name
            ),
            item: Some(item.id),
            object: plan,
            job: None,
            problem: None,
        };
        store::events::append(conn, item.vault, &event).await?;
    }
    Ok(())
}

/// Stores what changed in `world` since `before`, and says whose assignments are new.
///
/// # Errors
/// Internal when two machines would be permitted to write: nothing is stored then.
pub(crate) async fn record(
    conn: &mut Conn,
    before: Option<&ItemRow>,
    world: &World,
) -> Result<Vec<HostId>> {
    let mut hosts = BTreeSet::new();
    if let Some(item) = world.item.as_ref().filter(|item| Some(*item) != before) {
        if item.plan.writers() > 1 {
            let what = format!("two machines of {} would be permitted to write", item.name);
            return Err(ControlError::internal(what, &"refused by the plan's invariant"));
        }
        match before {
            _ if item.state.protection == Protection::Removed => {
                store::items::delete(conn, item).await?;
                leave_plans(conn, item, world).await?;
            }
            Some(_) => store::items::update(conn, item).await?,
            None => store::items::insert(conn, item).await?,
        }
        let (at, version) = (world.now.wall, item.version + 1);
        store::events::journal(conn, item.id, version, at, &world.events).await?;
        hosts.extend(item.plan.hosts());
        hosts.extend(before.iter().flat_map(|before| before.plan.hosts()));
        if world.migrated {
            store::items::note_migrated(conn, item, at).await?;
        }
        for host in &hosts {
            store::hosts::bump(conn, *host).await?;
        }
    }
    if let Some(item) = &world.item {
        for note in &world.notes {
            store::events::append(conn, item.vault, note).await?;
        }
    }
    for job in &world.cancels {
        let Some(mut row) = store::jobs::find(conn, *job).await? else { continue };
        let revision = row.record.revision;
        leeward_durable::request_cancel(&mut row.record);
        if row.record.revision != revision {
            store::jobs::update(conn, *job, revision, &row.record).await?;
        }
    }
    for job in &world.jobs {
        store::jobs::insert(conn, job).await?;
    }
    Ok(hosts.into_iter().collect())
}
