//! Being in charge of the site's store: this config server's generation, and the keeper that puts
//! its configuration there, sealed, after every change.
//!
//! Taking over from another config server is in `adopt`.

use crate::{
    folder,
    roles::{
        host::{clock::wall_now, site_store::SiteStore},
        place::StorePlace,
    },
    trust::permits::hex,
};
use async_trait::async_trait;
use leeward_control::{Control, KeepError, Keeper, Superseded};
use leeward_model::{Code, HostId, Problem, UnixMillis};
use leeward_replica::{Generation, Store, storage::Put};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// File of the site's folder with its own generation.
const FILE: &str = "generation.json";
/// How often a config server looks whether it is still in charge, beside every change.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A sign of life in the store at least this often: who adopts it waits five minutes for one.
const SIGN_EVERY: Duration = Duration::from_secs(120);
/// Version of the form of [`Configuration`].
const FORMAT: u32 = 1;

/// What a config server keeps in its store, sealed: all that another one needs to take over.
#[derive(Clone, Serialize, Deserialize)]
pub struct Configuration {
    /// Version of this form.
    pub format: u32,
    /// When it was written, by its server's clock.
    pub written_at: UnixMillis,
    /// The server's own host, whose store it is.
    pub host: HostId,
    /// Name of the recovery site's fabric.
    pub site: String,
    /// The installation's CA: certificate and key in PEM.
    pub ca_pem: String,
    /// See above.
    pub ca_key_pem: String,
    /// The key that signs start permits, PKCS 8 in hexadecimal.
    pub permit_key: String,
    /// What checks the break-glass account, if there is one.
    #[serde(default)]
    pub break_glass: Option<String>,
    /// Vaults, sites, hosts, policies, items and jobs, as `leeward-control` writes them.
    pub control: String,
}

impl Configuration {
    /// Reads a configuration.
    ///
    /// # Errors
    /// `VERSION_MISMATCH` for one of a newer program, or what is none.
    pub fn read(bytes: &[u8]) -> Result<Configuration, Problem> {
        let what = "the configuration in the store cannot be used";
        let read: Configuration = serde_json::from_slice(bytes)
            .map_err(|error| Code::STORE_DAMAGED.because(what, error.to_string()))?;
        match read.format {
            FORMAT => Ok(read),
            other => {
                let cause = format!("it has form {other}; this program reads {FORMAT}");
                Err(Code::VERSION_MISMATCH.because(what, cause))
            }
        }
    }
}

/// This site's own generation; none before its first start.
///
/// # Errors
/// When the file is damaged.
pub fn own(data: &Path) -> anyhow::Result<Option<Generation>> {
    match std::fs::read(data.join(FILE)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Keeps this site's own generation. Before it is put into the store: so that a start after a
/// crash knows its own.
///
/// # Errors
/// Those of the file system.
pub fn own_keep(data: &Path, generation: &Generation) -> std::io::Result<()> {
    folder::write_whole(&data.join(FILE), &serde_json::to_vec_pretty(generation)?)
}

/// What a config server on this machine says of itself.
pub fn generation(number: u64, by: &str, authority: String, address: &str) -> Generation {
    Generation {
        number,
        by: by.to_owned(),
        at: wall_now(),
        authority,
        address: address.to_owned(),
        nonce: uuid::Uuid::new_v4(),
    }
}

/// Who is in charge of the store instead of `own`, if that is another.
pub fn superseded(own: Option<&Generation>, newest: Option<Generation>) -> Option<Superseded> {
    let newest = newest?;
    let older = own.is_none_or(|own| {
        own.number < newest.number || (own.number == newest.number && own.nonce != newest.nonce)
    });
    older.then_some(Superseded {
        generation: newest.number,
        by: newest.by,
        at: newest.at,
        address: newest.address,
    })
}

/// Puts this site's generation into its store: the first one, or one that a crash left out.
///
/// # Errors
/// `SUPERSEDED` when another config server came first; `STORE_FOREIGN` for a store from before this
/// server took it over; those of the store.
pub fn begin(
    data: &Path,
    store: &Store,
    place: &StorePlace,
    own: Option<Generation>,
    first: impl FnOnce() -> Generation,
) -> anyhow::Result<Generation> {
    let fail = |error: leeward_replica::StoreError| {
        error.problem(format!("the replica store in {} could not be taken", place.name()))
    };
    let own = match own {
        Some(own) => own,
        None => {
            let first = first();
            own_keep(data, &first)?;
            first
        }
    };
    let newest = store.generation().map_err(fail)?;
    if newest.as_ref() == Some(&own) {
        return Ok(own);
    }
    // Nobody starts before the store has the generation, and a store does not lose one; a new
    // store in the place of one that is gone has none.
    if let Some(newest) = newest.as_ref().filter(|newest| newest.number < own.number) {
        return Err(older(place, &own, newest).into());
    }
    if newest.is_none() && store.generation_put(&own).map_err(fail)? == Put::Created {
        return Ok(own);
    }
    let what = format!("the replica store in {} belongs to another config server", place.name());
    Err(Code::SUPERSEDED.problem(what).into())
}

fn older(place: &StorePlace, own: &Generation, newest: &Generation) -> Problem {
    let what = format!("the replica store in {} was not opened", place.name());
    let cause = format!(
        "it is as it was before this config server took it over (generation {}, this one has \
         {}): an older copy was put in its place",
        newest.number, own.number
    );
    let todo = "put the store itself back; if this copy is all there is, adopt it in a new folder \
                with --adopt, and never start this one again"
        .to_owned();
    Problem { todo, ..Code::STORE_FOREIGN.because(what, cause) }
}

/// Keeps the configuration in the site's own store.
pub struct StoreKeeper {
    store: Arc<SiteStore>,
    own: Generation,
    /// Everything but the control's part and the time.
    rest: Configuration,
    data: PathBuf,
    last: Mutex<Option<Kept>>,
}

/// What was kept last.
#[derive(Clone)]
struct Kept {
    control: Vec<u8>,
    break_glass: Option<String>,
    at: Instant,
}

impl StoreKeeper {
    /// Takes what does not change while the server runs from its folder.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn new(
        data: &Path,
        store: Arc<SiteStore>,
        own: Generation,
        host: HostId,
        site: String,
    ) -> anyhow::Result<StoreKeeper> {
        let text = |name: &str| std::fs::read_to_string(data.join(name));
        let rest = Configuration {
            format: FORMAT,
            written_at: UnixMillis(0),
            host,
            site,
            ca_pem: text("ca.pem")?,
            ca_key_pem: text("ca.key")?,
            permit_key: hex(&std::fs::read(data.join("permit.key"))?),
            break_glass: None,
            control: String::new(),
        };
        Ok(StoreKeeper { store, own, rest, data: data.to_owned(), last: Mutex::default() })
    }

    /// What checks break-glass accounts now: a kit may be made at any time.
    fn break_glass(&self) -> Option<String> {
        std::fs::read_to_string(self.data.join(super::break_glass::FILE)).ok()
    }

    fn put(store: &Store, own: &Generation, bytes: &[u8]) -> Result<(), KeepError> {
        let what = "the config server's configuration could not be kept in its store";
        let fail = |error: leeward_replica::StoreError| KeepError::Failed(error.problem(what));
        let newest = store.generation().map_err(fail)?;
        if let Some(by) = superseded(Some(own), newest) {
            return Err(KeepError::Superseded(by));
        }
        store.configuration_put(own.number, bytes).map(drop).map_err(fail)
    }

    /// Looks whether this server is still in charge, and gives a sign of life when it is time.
    ///
    /// # Errors
    /// As [`Keeper::keep`].
    async fn look(&self) -> Result<(), KeepError> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(last) = last
            && (last.at.elapsed() >= SIGN_EVERY || last.break_glass != self.break_glass())
        {
            return self.keep(&last.control).await;
        }
        let (store, own) = (self.store.clone(), self.own.clone());
        let found = tokio::task::spawn_blocking(move || store.replica().generation()).await;
        match found {
            Ok(Ok(newest)) => {
                superseded(Some(&own), newest).map_or(Ok(()), |by| Err(KeepError::Superseded(by)))
            }
            // What cannot be read now says nothing; the next change of anything tells.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

#[async_trait]
impl Keeper for StoreKeeper {
    async fn keep(&self, configuration: &[u8]) -> Result<(), KeepError> {
        let control = String::from_utf8_lossy(configuration).into_owned();
        let break_glass = self.break_glass();
        let whole = Configuration {
            written_at: wall_now(),
            break_glass: break_glass.clone(),
            control,
            ..self.rest.clone()
        };
        let bytes = serde_json::to_vec(&whole).expect("a configuration is plain values");
        let (store, own) = (self.store.clone(), self.own.clone());
        let put =
            tokio::task::spawn_blocking(move || StoreKeeper::put(store.replica(), &own, &bytes));
        match put.await {
            Ok(done) => done?,
            Err(error) => {
                let what = "the configuration could not be kept";
                return Err(KeepError::Failed(Code::INTERNAL.because(what, error.to_string())));
            }
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(Kept { control: configuration.to_vec(), break_glass, at: Instant::now() });
        Ok(())
    }

    async fn kept(&self) -> Option<Vec<u8>> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.replica().configuration()).await;
        match read {
            // A former server's says nothing of this one's database: it may have written after it
            // was taken over.
            Ok(Ok(Some((stamp, bytes)))) if stamp.generation == self.own.number => {
                Configuration::read(&bytes).ok().map(|kept| kept.control.into_bytes())
            }
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "could not read the configuration that is kept");
                None
            }
            Err(_) => None,
        }
    }
}

/// Keeps what changes without telling a host anything, and looks who is in charge, until `stop`.
pub async fn watch(control: Control, keeper: Arc<StoreKeeper>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if let Err(KeepError::Superseded(by)) = keeper.look().await {
            control.supersede(by);
            return;
        }
        if let Err(error) = control.configuration_keep().await {
            tracing::warn!(%error, "the configuration was not kept");
            if control.superseded().is_some() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_higher_generation_or_another_server_of_the_same_one_is_in_charge_instead() {
        let own = generation(2, "here", "ab".into(), "127.0.0.1:1");
        let next = generation(3, "there", "ab".into(), "127.0.0.1:2");
        let twin = generation(2, "there", "ab".into(), "127.0.0.1:2");

        assert_eq!(superseded(Some(&own), None), None);
        assert_eq!(superseded(Some(&own), Some(own.clone())), None);
        assert_eq!(superseded(Some(&next), Some(own.clone())), None);
        assert_eq!(superseded(Some(&own), Some(next)).unwrap().generation, 3);
        assert_eq!(superseded(Some(&own), Some(twin)).unwrap().by, "there");
        assert_eq!(superseded(None, Some(own)).unwrap().generation, 2);
    }
}
