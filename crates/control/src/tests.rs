//! Tests of the core against scripted hosts: the whole story, its rules, and every interruption.

mod adoption;
mod again;
mod audit_log;
mod circle;
mod enumeration;
mod home;
mod lanes;
mod left_behind;
mod plan_actions;
mod plans;
mod readiness;
mod resync;
mod rules;
mod story;
mod straight;
mod told;

use crate::items::{
    DisableReason, EnableSpec, ItemView, KeepPoints, LiveAt, Operation, PlannedSpec, ReprotectSpec,
    RunView, Shutdown, SyncOption,
};
use crate::jobs::{JobView, RunState};
use crate::mappings::MappingSpec;
use crate::policies::PolicySpec;
use crate::registration::JoinRequest;
use crate::testing::{Fleet, ScriptedHost, TARGET, Temper};
use crate::vaults::{VaultKey, VaultSpec};
use crate::{ControlError, ErrorKind};
use leeward_model::{
    Code, HostId, ItemId, JobId, PointChoice, PointId, Protection, Site, SourceState, TestState,
    VaultId,
};
use std::path::PathBuf;
use std::time::Duration;

/// Turns within which everything in these tests is over; each is half a second of scripted time.
const TURNS_MAX: usize = 400;

/// Is one protected machine `web01` between two scripted hosts.
struct Pair {
    folder: tempfile::TempDir,
    fleet: Fleet,
    vault: VaultId,
    source: HostId,
    item: ItemId,
}

fn key() -> VaultKey {
    VaultKey {
        subscription: "00000000-0000-0000-0000-000000000001".to_owned(),
        resource_group: "group".to_owned(),
        name: "vault".to_owned(),
    }
}

/// A vault whose primary site's host has joined and shows these machines, ready for protection.
async fn fleet_joined(folder: &tempfile::TempDir, machines: &[&str]) -> (Fleet, VaultId, HostId) {
    let mut fleet = Fleet::new(&folder.path().join("control.sqlite")).await;
    let control = fleet.control.clone();
    let vault = control.vault_put(&key(), VaultSpec::default()).await.unwrap().id;
    control.fabric_put(vault, "site-a", serde_json::Value::Null).await.unwrap();
    let ttl = Duration::from_secs(3600);
    let key = control.registration_key_create(vault, "site-a", ttl, "ab12").await.unwrap();
    let join = JoinRequest { name: "kvm-a".to_owned(), data_address: None };
    let source = control.registration_key_redeem(&key, join).await.unwrap().host;
    fleet.hosts.push(ScriptedHost::new(source, "kvm-a", machines));
    fleet.step().await;
    control.policy_put(vault, "gold", PolicySpec::default()).await.unwrap();
    let mapping = MappingSpec { policy: "gold".to_owned(), ..MappingSpec::default() };
    control.mapping_put(vault, "site-a", "a-to-recovery", mapping).await.unwrap();
    (fleet, vault, source)
}

impl Pair {
    /// The hosts have joined and the machine is found; nothing is protected.
    async fn joined() -> Pair {
        let folder = tempfile::tempdir().unwrap();
        let (fleet, vault, source) = fleet_joined(&folder, &["web01", "db01"]).await;
        Pair { folder, fleet, vault, source, item: ItemId::from_u128(0) }
    }

    async fn enable(&mut self) -> JobId {
        let spec = EnableSpec {
            policy: "gold".to_owned(),
            machine: "web01".to_owned(),
            extra: serde_json::Value::Null,
        };
        let control = self.fleet.control.clone();
        let started = control.item_enable(self.vault, "site-a", "web01", spec).await.unwrap();
        self.item = started.item;
        started.job
    }

    /// The machine is protected and has points.
    async fn protected() -> Pair {
        let mut pair = Pair::joined().await;
        pair.enable().await;
        pair.until("protected", |view| view.state.protection == Protection::Protected).await;
        pair
    }

    /// As it is, on a copy of the database.
    async fn fork(&self) -> Pair {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("control.sqlite");
        self.fleet.control.store().copy_to(&to).await;
        let fleet = self.fleet.fork(&to).await;
        Pair { folder, fleet, vault: self.vault, source: self.source, item: self.item }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("control.sqlite")
    }

    async fn restart(&mut self) {
        let path = self.path();
        self.fleet.restart(&path).await;
    }

    async fn view(&self) -> ItemView {
        self.fleet.control.item_find(self.item).await.unwrap()
    }

    async fn job(&self, job: JobId) -> JobView {
        self.fleet.control.job_get(self.vault, job).await.unwrap()
    }

    async fn until(&mut self, what: &str, done: impl Fn(&ItemView) -> bool) {
        let item = self.item;
        let there = async |fleet: &Fleet| done(&fleet.control.item_find(item).await.unwrap());
        self.fleet.until(TURNS_MAX, what, there).await;
    }

    /// Takes turns until the job is over or waits for a person.
    async fn finish(&mut self, job: JobId) -> JobView {
        for _ in 0..TURNS_MAX {
            let view = self.job(job).await;
            if view.ended.is_some() || view.state == RunState::Suspended {
                return view;
            }
            self.fleet.turn().await;
        }
        panic!("job does not end: {:#?}", self.job(job).await);
    }

    async fn succeeds(&mut self, job: JobId) -> JobView {
        let view = self.finish(job).await;
        assert_eq!(view.state, RunState::Succeeded, "{view:#?}");
        view
    }

    async fn failover(&mut self, shutdown: Shutdown) -> JobId {
        let control = self.fleet.control.clone();
        control.item_failover(self.item, PointChoice::Latest, shutdown).await.unwrap()
    }

    async fn failed_over() -> Pair {
        let mut pair = Pair::protected().await;
        let job = pair.failover(Shutdown::First).await;
        pair.succeeds(job).await;
        pair
    }

    async fn planned(&mut self) -> JobId {
        let control = self.fleet.control.clone();
        control.item_planned_failover(self.item, PlannedSpec::default()).await.unwrap()
    }

    /// A planned failover with this option, of a machine that need not be replicated.
    async fn straight(&mut self, sync: SyncOption) -> JobId {
        let control = self.fleet.control.clone();
        let spec = PlannedSpec { sync, ..PlannedSpec::default() };
        control.item_planned_failover(self.item, spec).await.unwrap()
    }

    async fn commit(&mut self) {
        let control = self.fleet.control.clone();
        let job = control.item_commit(self.item).await.unwrap();
        self.succeeds(job).await;
    }

    async fn reprotect(&mut self) -> JobId {
        let control = self.fleet.control.clone();
        control.item_reprotect(self.item, ReprotectSpec::default()).await.unwrap()
    }

    async fn is_protected(&mut self) {
        self.until("protected", |view| view.state.protection == Protection::Protected).await;
    }

    async fn committed() -> Pair {
        let mut pair = Pair::failed_over().await;
        pair.commit().await;
        pair
    }

    /// Replication runs from the recovery site to the primary one.
    async fn reversed() -> Pair {
        let mut pair = Pair::committed().await;
        let job = pair.reprotect().await;
        pair.succeeds(job).await;
        pair.is_protected().await;
        pair
    }

    /// Host `kvm-b` joins the primary site.
    async fn another_host(&mut self) -> HostId {
        let control = self.fleet.control.clone();
        let ttl = Duration::from_secs(3600);
        let key = control.registration_key_create(self.vault, "site-a", ttl, "ab12").await.unwrap();
        let join = JoinRequest { name: "kvm-b".to_owned(), data_address: None };
        let other = control.registration_key_redeem(&key, join).await.unwrap().host;
        self.fleet.hosts.push(ScriptedHost::new(other, "kvm-b", &[]));
        self.fleet.turn().await;
        other
    }

    /// What the one live machine has written so far.
    fn data(&self) -> u64 {
        let mut live = self.fleet.hosts.iter().filter(|host| !host.live(self.item).is_empty());
        live.next().expect("it is live").data(self.item)
    }

    async fn tested() -> Pair {
        let mut pair = Pair::protected().await;
        let control = pair.fleet.control.clone();
        let job = control.item_test_failover(pair.item, PointChoice::Latest).await.unwrap();
        pair.succeeds(job).await;
        pair
    }

    async fn change_point(&mut self, point: PointId) -> Result<JobId, ControlError> {
        let control = self.fleet.control.clone();
        self.fleet.during(control.item_change_point(self.item, point)).await
    }

    /// Fails over to a point that is retained.
    async fn retained(&mut self, point: PointId) -> Result<JobId, ControlError> {
        let control = self.fleet.control.clone();
        let choice = PointChoice::Custom(point);
        self.fleet.during(control.item_failover(self.item, choice, Shutdown::First)).await
    }

    async fn host_at(&mut self, site: Site) -> &mut ScriptedHost {
        let ends = self.view().await.ends;
        let host = ends.iter().find(|end| end.site == site).unwrap().host;
        self.fleet.host(host)
    }

    /// All points, newest first.
    async fn points(&mut self) -> Vec<leeward_model::PointInfo> {
        let control = self.fleet.control.clone();
        self.fleet.during(control.point_list(self.item, 0, 1000)).await.unwrap().points
    }

    /// Who runs as the protected machine right now, over both hosts.
    fn live(&self) -> Vec<String> {
        self.fleet.hosts.iter().flat_map(|host| host.live(self.item)).collect()
    }
}
