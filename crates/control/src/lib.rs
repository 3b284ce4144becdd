//! The config server: vaults, protection, failover, jobs, health, and the public REST API.
//!
//! Hosts are never called: they get an assignment and report what they see. Job steps are pure;
//! one SQLite transaction stores what a step wants of the world together with the job's record.

mod adoption;
pub mod api;
mod assignment;
pub mod audit_log;
pub mod clock;
mod counters;
mod driver;
pub mod error;
pub mod events;
pub mod fabrics;
mod health;
mod hosts;
pub mod items;
#[allow(clippy::result_large_err, reason = "the engine defines what a step returns")]
pub mod jobs;
mod keeper;
pub mod machines;
pub mod mappings;
pub mod networks;
mod plan;
pub mod plans;
pub mod points;
pub mod policies;
pub mod readiness;
#[allow(clippy::result_large_err, reason = "the engine defines what a step returns")]
mod reconcilers;
pub mod registration;
mod rpo;
mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vaults;
#[allow(clippy::result_large_err, reason = "the engine defines what a step returns")]
mod world;

#[cfg(test)]
mod tests;

pub use adoption::{Adopted, Adoption, restore};
pub use clock::{Clock, Draw, Now, PermitSigner};
pub use driver::Turn;
pub use error::{ControlError, ErrorKind, Result};
pub use hosts::{HostQuery, HostSession};
pub use keeper::{KeepError, Keeper, Superseded};
pub use rpo::rpo_seconds;
pub use store::{Durability, Store, StoreError};

use leeward_durable::Registry;
use leeward_model::{HostId, JobId};
use std::sync::Arc;
use world::World;

/// Is the config server's own host: the recovery site of every vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalHost {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Where its store is dialled by sources, `address:port`.
    pub data_address: String,
}

/// Settings of the config server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the recovery site's fabric in every vault.
    pub recovery_site: String,
    /// Its own host.
    pub local_host: LocalHost,
}

impl Config {
    /// The default name of the recovery site's fabric.
    pub const RECOVERY_SITE: &'static str = "recovery-site";
}

/// Is what the config server takes from outside.
#[derive(Clone)]
pub struct Ports {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub draw: Arc<dyn Draw>,
    /// The key for start permits.
    pub signer: Arc<dyn PermitSigner>,
    /// Carries out what recovery plans do outside.
    pub actions: Arc<dyn plans::ActionRunner>,
}

/// The config server. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
    /// The database, in the name of whoever asks.
    store: Store,
    /// The plan's job in whose name requests are made.
    asked_by: Option<JobId>,
}

struct Inner {
    config: Config,
    ports: Ports,
    store: Store,
    hosts: hosts::Hosts,
    registry: Registry<World>,
    refusals: plans::Refusals,
    running_actions: plans::Running,
    poke: tokio::sync::Notify,
    charge: keeper::Charge,
    counters: counters::Counters,
}

impl Control {
    /// Starts the config server on its database. Nothing moves until [`Self::run`] or
    /// [`Self::tick`] is called.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub async fn open(store: Store, config: Config, ports: Ports) -> Result<Control> {
        let inner = Inner {
            config,
            ports,
            store,
            hosts: hosts::Hosts::default(),
            registry: jobs::registry(),
            refusals: plans::Refusals::default(),
            running_actions: plans::Running::default(),
            poke: tokio::sync::Notify::new(),
            charge: keeper::Charge::default(),
            counters: counters::Counters::default(),
        };
        let store = inner.store.clone();
        let control = Control { inner: Arc::new(inner), store, asked_by: None };
        control.local_host_save().await?;
        Ok(control)
    }

    /// The time by the config server's clocks.
    pub fn now(&self) -> Now {
        self.inner.ports.clock.now()
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Makes [`Self::run`] take a turn soon.
    pub fn poke(&self) {
        self.inner.poke.notify_one();
    }

    /// Closes the database; everything that was answered is stored.
    pub async fn close(&self) {
        self.inner.store.close().await;
    }

    async fn poked(&self) {
        self.inner.poke.notified().await;
    }

    fn ports(&self) -> &Ports {
        &self.inner.ports
    }

    fn charge(&self) -> &keeper::Charge {
        &self.inner.charge
    }

    fn store(&self) -> &Store {
        &self.store
    }

    /// The database in nobody's name.
    fn store_plain(&self) -> &Store {
        &self.inner.store
    }

    fn asked(&self) -> Option<&store::Asked> {
        self.store.asked()
    }

    /// The same config server, whose next change is `asked`'s.
    fn with_asked(&self, asked: Arc<store::Asked>) -> Control {
        Control { store: self.inner.store.asked_by(asked), ..self.clone() }
    }

    fn counters(&self) -> &counters::Counters {
        &self.inner.counters
    }

    fn hosts(&self) -> &hosts::Hosts {
        &self.inner.hosts
    }

    fn refusals(&self) -> &plans::Refusals {
        &self.inner.refusals
    }

    fn running_actions(&self) -> &plans::Running {
        &self.inner.running_actions
    }

    fn asked_by(&self) -> Option<JobId> {
        self.asked_by
    }

    /// The same config server, whose jobs are part of `parent` from now on.
    fn in_name_of(&self, parent: JobId) -> Control {
        Control { asked_by: Some(parent), ..self.clone() }
    }

    fn registry(&self) -> &Registry<World> {
        &self.inner.registry
    }

    fn new_id<T: From<uuid::Uuid>>(&self) -> T {
        clock::new_id(&*self.inner.ports.draw)
    }
}
