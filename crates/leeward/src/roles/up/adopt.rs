//! `leeward up --adopt STORE`: a config server takes over a store whose own is gone, with the
//! store's key and nothing else.
//!
//! What is taken over: the CA, so that hosts know this server; the key of start permits; vaults,
//! sites, policies, items and unfinished jobs; the place of the host that owned the store. The
//! database is the last file made and says that all of it is there; before, only the same command
//! again makes use of the folder.

use super::charge::{self, Configuration};
use crate::{
    folder,
    kit::{self, PassphraseOptions},
    roles::{host::clock::wall_now, place::StorePlace, site},
    store::place::secret_read,
    trust::authority::Authority,
};
use leeward_control::{Adopted, Adoption};
use leeward_model::{Code, HostId, Problem};
use leeward_replica::{
    Generation, NewKeys, RecipientKind, RecipientSecret, Store, StoreError, SystemRandom, Unlock,
    storage::{Put, StorageError},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Says that an adoption is under way in this folder.
const MARK: &str = "adoption.unfinished";
/// The database, and its name until it is whole.
const DATABASE: &str = "control.db";
const DATABASE_HALF: &str = "control.db.adopting";
/// An owner that wrote within this time, in milliseconds, may still be there.
const OWNER_SILENT_MS: i64 = 5 * 60 * 1_000;

/// Which store to adopt, and with which key.
#[derive(Clone, Debug, clap::Args)]
pub struct AdoptOptions {
    /// Take over this store, whose config server is gone: a folder, s3://BUCKET/PREFIX or
    /// az://CONTAINER/PREFIX. Done once; a later start in the same folder goes on with it.
    #[arg(long, value_name = "STORE", conflicts_with = "store")]
    pub adopt: Option<String>,
    /// The recovery kit that opens the store to adopt, if its key file is not there.
    #[arg(long, value_name = "KIT", requires = "adopt", conflicts_with = "recovery_key")]
    pub kit: Option<PathBuf>,
    /// Where the kit's passphrase is.
    #[command(flatten)]
    pub passphrase: PassphraseOptions,
    /// File with the recovery key of the store to adopt.
    #[arg(long, value_name = "FILE", requires = "adopt")]
    pub recovery_key: Option<PathBuf>,
    /// File with the key of the store to adopt, if that does not keep it itself.
    #[arg(
        long,
        value_name = "FILE",
        requires = "adopt",
        conflicts_with_all = ["recovery_key", "kit"]
    )]
    pub store_key: Option<PathBuf>,
    /// Adopt a store whose owner wrote within the last five minutes: it is gone for good.
    #[arg(long, requires = "adopt")]
    pub force_takeover: bool,
}

/// Refuses a folder in which an adoption was begun and not finished. The database is the last that
/// is made: beside it the mark is what a crash left.
///
/// # Errors
/// `ADOPTION_UNFINISHED`; `STORE_IO`.
pub fn check_finished(data: &Path) -> Result<(), Problem> {
    let mark = data.join(MARK);
    if !mark.exists() {
        return Ok(());
    }
    if data.join(DATABASE).exists() {
        return std::fs::remove_file(mark).map_err(|error| file_fail(&error));
    }
    let what = format!("the adoption in {} was not finished", data.display());
    Err(Code::ADOPTION_UNFINISHED.problem(what))
}

fn file_fail(error: &std::io::Error) -> Problem {
    Code::STORE_IO.because("the adoption could not write into its own folder", error.to_string())
}

impl AdoptOptions {
    fn secret(&self) -> Result<Option<RecipientSecret>, Problem> {
        let fail = |error: StoreError| error.problem("the kit's recovery key cannot be used");
        match (&self.kit, &self.recovery_key, &self.store_key) {
            (Some(kit), _, _) => {
                let text = kit::recovery_key(kit, &self.passphrase).map_err(|problem| *problem)?;
                RecipientSecret::parse(&text).map(Some).map_err(fail)
            }
            (None, Some(file), _) => {
                secret_read(file, "recovery key").map(Some).map_err(|problem| *problem)
            }
            (None, None, Some(file)) => {
                secret_read(file, "key file").map(Some).map_err(|problem| *problem)
            }
            (None, None, None) => Ok(None),
        }
    }
}

/// Is asked before each write of an adoption, by what it writes; an error ends the adoption there,
/// as a crash would.
type Before<'a> = &'a dyn Fn(&str) -> std::io::Result<()>;

/// Where an adoption writes.
#[derive(Clone, Copy)]
struct Writing<'a> {
    data: &'a Path,
    place: &'a StorePlace,
    before: Before<'a>,
}

impl Writing<'_> {
    fn next(&self, what: &str) -> Result<(), Problem> {
        (self.before)(what).map_err(|error| file_fail(&error))
    }

    /// A secret file of the folder, whole or not there.
    fn file(&self, name: &str, bytes: &[u8]) -> Result<(), Problem> {
        self.next(name)?;
        folder::write_secret(&self.data.join(name), bytes).map_err(|error| file_fail(&error))
    }
}

/// Adopts the store, unless this folder has done so already. `reached` is where other sites reach
/// this server.
///
/// # Errors
/// What is in the way; then nothing was taken over, and the same command may be repeated.
pub fn run(data: &Path, options: &AdoptOptions, reached: &str) -> anyhow::Result<()> {
    run_watched(data, options, reached, &|_| Ok(()))
}

fn run_watched(
    data: &Path,
    options: &AdoptOptions,
    reached: &str,
    before: Before<'_>,
) -> anyhow::Result<()> {
    let Some(text) = &options.adopt else { return Ok(check_finished(data)?) };
    let mut place = StorePlace::named(data, text)?;
    if data.join(DATABASE).exists() {
        if StorePlace::of(data, None)?.name() == place.name() {
            return Ok(check_finished(data)?);
        }
        let what = format!("the store in {} was not adopted", place.name());
        let cause = format!("{} has a config server's database already", data.display());
        return Err(Code::NAME_TAKEN.because(what, cause).into());
    }
    if options.force_takeover {
        place.take_over();
    }
    let own = charge::own(data)?;
    let (store, configuration, newest) = open(&place, options, own.as_ref())?;
    let writing = Writing { data, place: &place, before };
    writing.file(MARK, b"")?;
    let own = own.filter(|own| newest.as_ref() == Some(own));
    let next = newest.map_or(0, |newest| newest.number) + 1;
    let adopted = take(writing, store, &configuration, (own, next, reached))?;
    writing.next("the end of the mark")?;
    std::fs::remove_file(data.join(MARK)).map_err(|error| file_fail(&error))?;
    println!(
        "adopted {}: {} protected items, {} jobs go on",
        place.name(),
        adopted.items,
        adopted.jobs
    );
    if adopted.machines_lost > 0 {
        println!(
            "{} of the machines ran on the server that is gone; they were not started here",
            adopted.machines_lost
        );
    }
    Ok(())
}

/// Opens the store for its owner, after it was found to be silent.
fn open(
    place: &StorePlace,
    options: &AdoptOptions,
    own: Option<&Generation>,
) -> Result<(Store, Configuration, Option<Generation>), Problem> {
    let what = || format!("the store in {} was not adopted", place.name());
    let fail = |error: StoreError| error.problem(what());
    let secret = options.secret()?;
    let unlock = match (&secret, place.key_file()) {
        (Some(secret), _) => Unlock::Secret(secret.clone()),
        (None, None) => Unlock::KeyFile,
        (None, Some(_)) => {
            let cause = "a bucket does not hold its key: give --kit, --recovery-key or --store-key";
            return Err(Code::KEY_MISSING.because(what(), cause));
        }
    };
    let blobs = place.reading()?;
    let read = Store::open(blobs, None, &unlock, Arc::new(SystemRandom)).map_err(fail)?;
    let found = read.configuration().map_err(fail)?;
    let (_, bytes) = found.ok_or_else(|| {
        let cause = "no config server wrote what it knew into it; `leeward store` serves and \
                     restores its points without one";
        Code::NOT_FOUND.because(what(), cause)
    })?;
    let configuration = Configuration::read(&bytes)?;
    let newest = read.generation().map_err(fail)?;
    // An adoption that was begun here has waited already.
    let mine = newest.is_some() && newest.as_ref() == own;
    if !options.force_takeover && !mine {
        check_silent(&read, &configuration, newest.as_ref(), &what())?;
    }
    let owner = read.identity().owner;
    drop(read);
    let store = Store::open_writer(place.writing()?, owner, &unlock, Arc::new(SystemRandom));
    let store = store.map_err(|error| match &error {
        StoreError::Storage(StorageError::Locked { .. }) => {
            Code::OWNER_ALIVE.because(what(), error.to_string())
        }
        _ => fail(error),
    })?;
    Ok((store, configuration, newest))
}

/// Refuses a store whose owner may still be there. A time that is still to come may be that of an
/// owner with a wrong clock.
fn check_silent(
    store: &Store,
    configuration: &Configuration,
    generation: Option<&Generation>,
    what: &str,
) -> Result<(), Problem> {
    let fail = |error: StoreError| error.problem(what);
    let mut newest = configuration.written_at;
    if let Some(generation) = generation {
        newest = newest.max(generation.at);
    }
    for item in store.items().map_err(fail)? {
        let reader = store.item_read(item).map_err(fail)?;
        newest = reader.state().points.iter().map(|point| point.received_at).fold(newest, Ord::max);
    }
    let ago = wall_now().0.saturating_sub(newest.0);
    if ago >= OWNER_SILENT_MS {
        return Ok(());
    }
    let cause = format!("its owner wrote {} s ago by the clocks of the two machines", ago / 1_000);
    Err(Code::OWNER_ALIVE.because(what, cause))
}

/// Becomes the store's config server: from the generation on the former one is not in charge.
fn take(
    writing: Writing<'_>,
    mut store: Store,
    configuration: &Configuration,
    (own, number, reached): (Option<Generation>, u64, &str),
) -> anyhow::Result<Adopted> {
    let fail = |error: StoreError| error.problem("the adoption could not be finished");
    let Writing { data, place, .. } = writing;
    writing.next("the store's key")?;
    key_keep(&mut store, place)?;
    writing.next("the store's place")?;
    place.keep(data)?;
    writing.file("ca.pem", configuration.ca_pem.as_bytes())?;
    writing.file("ca.key", configuration.ca_key_pem.as_bytes())?;
    let permit = crate::trust::permits::unhex(&configuration.permit_key);
    let permit = permit.ok_or_else(|| {
        Code::STORE_DAMAGED.problem("the key of start permits in the configuration is misspelt")
    })?;
    writing.file("permit.key", &permit)?;
    if let Some(text) = &configuration.break_glass {
        writing.file(super::break_glass::FILE, text.as_bytes())?;
    }
    let host = HostId::from(store.identity().owner);
    writing.file("host.id", format!("{host}\n").as_bytes())?;
    let authority = Authority::open_or_create(data)?.fingerprint()?;
    let by = site::machine_name();
    let own = match own {
        Some(own) => own,
        None => {
            let own = charge::generation(number, &by, authority, reached);
            writing.next("its own generation")?;
            charge::own_keep(data, &own)?;
            writing.next("the store's generation")?;
            if store.generation_put(&own).map_err(fail)? == Put::Exists {
                let what = format!("the store in {} was just adopted by another", place.name());
                return Err(Code::SUPERSEDED.problem(what).into());
            }
            own
        }
    };
    let adoption = Adoption {
        host: configuration.host,
        generation: own.number,
        by,
        at: own.at,
        fences: fences(&store)?,
    };
    database(writing, configuration, &adoption)
}

/// Makes sure that the store opens without the recovery key at the next start.
fn key_keep(store: &mut Store, place: &StorePlace) -> Result<(), Problem> {
    let fail = |error: StoreError| error.problem("the store could not be given a key file");
    match place.key_file() {
        Some(file) => {
            let text = format!("{}\n", store.unlocked_with().to_text());
            folder::write_secret(file, text.as_bytes()).map_err(|error| file_fail(&error))
        }
        None if store.unlocked_with().kind() == RecipientKind::Recovery
            && !store.has_key_file() =>
        {
            let rekey = store.rekey_begin(NewKeys::KeyFile).map_err(fail)?;
            store.rekey_finish(rekey).map(drop).map_err(fail)
        }
        None => Ok(()),
    }
}

/// The lowest epochs that the store takes: higher than the configuration's if that is older.
fn fences(store: &Store) -> Result<BTreeMap<leeward_model::ItemId, leeward_model::Epoch>, Problem> {
    let fail = |error: StoreError| error.problem("the items of the store could not be read");
    let mut fences = BTreeMap::new();
    for item in store.items().map_err(fail)? {
        fences.insert(item, store.item_read(item).map_err(fail)?.fence());
    }
    Ok(fences)
}

fn database(
    writing: Writing<'_>,
    configuration: &Configuration,
    adoption: &Adoption,
) -> anyhow::Result<Adopted> {
    let data = writing.data;
    let half = data.join(DATABASE_HALF);
    writing.next("the database")?;
    for suffix in ["", "-wal", "-shm"] {
        // Of an adoption that a crash ended.
        let _ = std::fs::remove_file(data.join(format!("{DATABASE_HALF}{suffix}")));
    }
    let bytes = configuration.control.as_bytes();
    let made = tokio::runtime::Handle::current()
        .block_on(leeward_control::restore(&half, bytes, adoption));
    let adopted = made.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let what = format!("the database could not be made: {error}");
        Code::STORE_DAMAGED.because(what, cause.unwrap_or_default())
    })?;
    std::fs::File::open(&half)?.sync_all()?;
    writing.next("the database's name")?;
    std::fs::rename(&half, data.join(DATABASE)).map_err(|error| file_fail(&error))?;
    std::fs::File::open(data)?.sync_all()?;
    Ok(adopted)
}

/// Whether a start without `--adopt` would forget what the store knows.
///
/// # Errors
/// `ADOPTION_UNFINISHED`, when there is a configuration in the store and no database beside it.
pub fn check_database(data: &Path, store: &Store, place: &StorePlace) -> Result<(), Problem> {
    if data.join(DATABASE).exists() {
        return Ok(());
    }
    let fail = |error: StoreError| error.problem("the store's configuration could not be read");
    match store.configuration().map_err(fail)? {
        None => Ok(()),
        Some((stamp, _)) => {
            let what = format!("{} has no database, and its store has one", data.display());
            let cause = format!(
                "control.db was lost; the store in {} holds configuration {} of generation {}",
                place.name(),
                stamp.number,
                stamp.generation
            );
            let todo = format!("start once with --adopt {}", place.name());
            Err(Problem { todo, ..Code::ADOPTION_UNFINISHED.because(what, cause) })
        }
    }
}

#[cfg(test)]
mod tests;
