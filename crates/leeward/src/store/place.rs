//! Where a store is, and opening it: for reading without a lock, for writing with the owner's.
//!
//! A folder holds its key file itself. A bucket never does: whoever can read it must not be able
//! to unlock it, so its key file lies in a folder of the user's.

use super::{Failure, problem, time_text};
use leeward_model::{Code, Problem};
use leeward_replica::{
    Losses, RecipientSecret, Store, StoreError, SystemRandom, Unlock,
    storage::{
        AskError, BlobStore, History, Keeps, LocalStore, LockError, LockProof, ObjectBlobs,
        ObjectPlace, Takeover,
    },
};
use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

/// Which store, and how to unlock it.
#[derive(Clone, Debug, clap::Args)]
pub struct PlaceOptions {
    /// The store: a folder, s3://BUCKET/PREFIX or az://CONTAINER/PREFIX.
    #[arg(value_name = "STORE")]
    pub store: String,
    /// File with the recovery key, if the store's key file is lost; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    pub recovery_key: Option<PathBuf>,
    /// The store's key file, if it is not in its usual place.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Take the lock of a store in a bucket now, because its holder is gone for good. Only a verb
    /// that writes asks for the lock.
    #[arg(long)]
    pub force_takeover: bool,
}

impl From<String> for PlaceOptions {
    /// The store of that name, to be unlocked with its own key file.
    fn from(store: String) -> PlaceOptions {
        PlaceOptions { store, recovery_key: None, key_file: None, force_takeover: false }
    }
}

/// What STORE names.
pub(crate) enum Place {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A bucket or container.
    Objects(ObjectPlace),
}

impl PlaceOptions {
    /// What STORE names.
    ///
    /// # Errors
    /// `BAD_REQUEST` for what is neither a folder nor a place in a bucket.
    pub(crate) fn place(&self) -> Result<Place, Failure> {
        match ObjectPlace::parse(&self.store) {
            Ok(None) => Ok(Place::Folder(PathBuf::from(&self.store))),
            Ok(Some(place)) => Ok(Place::Objects(place)),
            Err(error) => Err(problem(Code::BAD_REQUEST, "the store's name cannot be used", error)),
        }
    }

    /// The secret that was given in place of the store's own key file, if one was.
    ///
    /// # Errors
    /// `KEY_MISSING`.
    pub(crate) fn secret(&self) -> Result<Option<RecipientSecret>, Failure> {
        match (&self.recovery_key, &self.key_file) {
            (Some(file), _) => secret_read(file, "recovery key").map(Some),
            (None, Some(file)) => secret_read(file, "key file").map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The key file that was to be put in the place of the one that is used, if there is one.
    fn next_secret(
        &self,
        place: &Place,
        blobs: &dyn BlobStore,
    ) -> Result<Option<RecipientSecret>, Failure> {
        if matches!(place, Place::Folder(_)) || self.recovery_key.is_some() {
            return Ok(None);
        }
        let file = match &self.key_file {
            Some(file) => file.clone(),
            None => {
                let identity = Store::claimed_identity(blobs);
                let identity = identity.map_err(|error| self.failed("cannot be opened", &error))?;
                usual_key_file(identity.store)?
            }
        };
        let next = next_key_file(&file);
        if next.exists() { secret_read(&next, "key file").map(Some) } else { Ok(None) }
    }

    /// With what the store is unlocked when no secret was given.
    fn usual_unlock(&self, place: &Place, blobs: &dyn BlobStore) -> Result<Unlock, Failure> {
        if let Place::Folder(_) = place {
            return Ok(Unlock::KeyFile);
        }
        let identity = Store::claimed_identity(blobs);
        let identity = identity.map_err(|error| self.failed("cannot be opened", &error))?;
        secret_read(&usual_key_file(identity.store)?, "key file").map(Unlock::Secret)
    }

    /// Proves that the bucket keeps what is put there: its owner's own deletion has to fail.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` when it does not, and for a folder and for Azure; `STORE_IO`.
    pub(crate) fn prove_lock(&self) -> Result<LockProof, Failure> {
        let what = || format!("the store in {} is not known to be immutable", self.store);
        let Place::Objects(place) = self.place()? else {
            let cause = "a folder has no object lock";
            return Err(problem(Code::NOT_SUPPORTED, what(), cause));
        };
        place.prove_lock().map_err(|error| {
            let code = match &error {
                LockError::NotSupported
                | LockError::NoVersions
                | LockError::NoRetention { .. }
                | LockError::Deleted { .. } => Code::NOT_SUPPORTED,
                LockError::Asked(_) => Code::STORE_IO,
            };
            problem(code, what(), error)
        })
    }

    /// What a bucket still has of deleted objects; none for what is not asked for that.
    pub(crate) fn history(&self) -> Option<Result<History, AskError>> {
        match self.place() {
            Ok(Place::Objects(place)) => match place.history() {
                Err(AskError::NotS3) => None,
                asked => Some(asked),
            },
            Ok(Place::Folder(_)) | Err(_) => None,
        }
    }

    /// Says that the store was deleted, when that is so and the bucket still has it: nothing may
    /// take its place unseen.
    ///
    /// # Errors
    /// `STORE_DAMAGED`, with how to bring it back.
    pub(crate) fn check_not_deleted(&self) -> Result<(), Failure> {
        let history = match self.history() {
            Some(Ok(history)) => history,
            // Keys that may not ask, and servers that keep no versions.
            Some(Err(error)) => {
                tracing::debug!(%error, "nobody knows whether a store was deleted here");
                return Ok(());
            }
            None => return Ok(()),
        };
        let Some(at) = Losses::of(&history).store else { return Ok(()) };
        let at = time_text(at);
        Err(Box::new(Problem {
            code: Code::STORE_DAMAGED.code.into(),
            what: format!("the store in {} was deleted at {at}", self.store),
            cause: "somebody with the right to delete in the bucket did it".into(),
            now: "the bucket keeps versions and still has what was deleted".into(),
            todo: format!(
                "keep the intruder out, then look at `leeward store undelete {}`: it brings the \
                 store back as it was at a time before that",
                self.store
            ),
        }))
    }

    /// What becomes of what was deleted just now, when the bucket keeps it.
    pub(crate) fn kept_words(&self) -> Option<String> {
        let Ok(Place::Objects(place)) = self.place() else { return None };
        let hidden = "the bucket hides what was deleted and keeps it";
        match place.keeps() {
            Ok(Keeps::Nothing) | Err(AskError::NotS3) => None,
            Ok(Keeps::Versions) => {
                Some(format!("{hidden} as old versions until those are deleted"))
            }
            Ok(Keeps::Locked { mode, days }) => Some(format!(
                "{hidden} for {days} days from when it was put (object lock, {mode}): its room \
                 comes back after that, when your lifecycle rule deletes old versions"
            )),
            Err(error) => Some(format!("whether the bucket keeps what was deleted: {error}")),
        }
    }

    /// The place, for reading.
    ///
    /// # Errors
    /// What keeps it from that.
    pub(crate) fn reading(&self, place: &Place) -> Result<Arc<dyn BlobStore>, Failure> {
        match place {
            Place::Folder(folder) if !folder.is_dir() => {
                let what = format!("there is no store in {}", folder.display());
                Err(problem(Code::NOT_FOUND, what, "there is no such folder"))
            }
            Place::Folder(folder) => Ok(Arc::new(LocalStore::open_reading(folder))),
            Place::Objects(place) => {
                let blobs = ObjectBlobs::open_reading(place);
                Ok(Arc::new(blobs.map_err(|error| self.failed("cannot be opened", &error.into()))?))
            }
        }
    }

    /// The place, proved to be one that can be written.
    ///
    /// # Errors
    /// What keeps it from that.
    pub(crate) fn writing(&self, place: &Place) -> Result<Arc<dyn BlobStore>, Failure> {
        let fail = |error: StoreError| self.failed("cannot be opened for writing", &error);
        match place {
            Place::Folder(folder) => {
                Ok(Arc::new(LocalStore::open(folder).map_err(|error| fail(error.into()))?))
            }
            Place::Objects(_) => {
                let takeover =
                    if self.force_takeover { Takeover::Forced } else { Takeover::WhenStale };
                self.writing_as(place, takeover)
            }
        }
    }

    /// As [`Self::writing`], with these rules for the lock of a bucket.
    ///
    /// # Errors
    /// As [`Self::writing`].
    pub(crate) fn writing_as(
        &self,
        place: &Place,
        takeover: Takeover,
    ) -> Result<Arc<dyn BlobStore>, Failure> {
        let Place::Objects(objects) = place else { return self.writing(place) };
        let blobs = ObjectBlobs::open(objects, takeover);
        let fail = |error: StoreError| self.failed("cannot be opened for writing", &error);
        Ok(Arc::new(blobs.map_err(|error| fail(error.into()))?))
    }

    /// Opens the store for reading: no lock, no write.
    ///
    /// # Errors
    /// What keeps it closed.
    pub(crate) fn open(&self) -> Result<Store, Failure> {
        self.open_with(self.secret()?)
    }

    /// As [`Self::open`], with `secret` if there is one, else with the key file.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_with(&self, secret: Option<RecipientSecret>) -> Result<Store, Failure> {
        self.opened(secret).map(|(store, _)| store)
    }

    fn opened(&self, secret: Option<RecipientSecret>) -> Result<(Store, Unlock), Failure> {
        let opened = self.opened_there(secret);
        if opened.as_ref().is_err_and(|failure| failure.code == Code::STORE_FOREIGN.code) {
            self.check_not_deleted()?;
        }
        opened
    }

    fn opened_there(&self, secret: Option<RecipientSecret>) -> Result<(Store, Unlock), Failure> {
        let place = self.place()?;
        let blobs = self.reading(&place)?;
        let unlock = match secret {
            Some(secret) => Unlock::Secret(secret),
            None => self.usual_unlock(&place, blobs.as_ref())?,
        };
        let open =
            |unlock: &Unlock| Store::open(Arc::clone(&blobs), None, unlock, Arc::new(SystemRandom));
        let failed = match open(&unlock) {
            Ok(store) => return Ok((store, unlock)),
            Err(error) => self.failed("cannot be opened", &error),
        };
        // A change of the key file that was cut short once it counted.
        let Some(next) = self.next_secret(&place, blobs.as_ref())? else { return Err(failed) };
        let next = Unlock::Secret(next);
        open(&next).map(|store| (store, next)).map_err(|_| failed)
    }

    /// Opens the store for writing, as its owner: refused while a server or another tool has it.
    ///
    /// # Errors
    /// What keeps it closed.
    pub(super) fn open_writer(&self) -> Result<Store, Failure> {
        let (store, unlock) = self.opened(self.secret()?)?;
        let blobs = self.writing(&self.place()?)?;
        Store::open_writer(blobs, store.identity().owner, &unlock, Arc::new(SystemRandom))
            .map_err(|error| self.failed("cannot be opened for writing", &error))
    }

    /// The problem of an error of the store.
    pub(crate) fn failed(&self, what: &str, error: &StoreError) -> Failure {
        Box::new(error.problem(format!("the store in {} {what}", self.store)))
    }
}

/// Where the key file of a store in a bucket lies, unless the user says otherwise.
///
/// # Errors
/// When the user has no folder for settings.
pub(super) fn usual_key_file(store: Uuid) -> Result<PathBuf, Failure> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|at| at.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME");
    let folder = folder.or_else(|| absolute("HOME").map(|home| home.join(".config")));
    let cause = "neither XDG_CONFIG_HOME nor HOME names a folder; --key-file FILE does";
    let what = "there is no place for the store's key file";
    let folder = folder.ok_or_else(|| problem(Code::KEY_MISSING, what, cause))?;
    Ok(folder.join("leeward").join("keys").join(format!("{store}.key")))
}

/// Where a new key file of a store in a bucket lies until it is put in the place of `file`.
pub(super) fn next_key_file(file: &Path) -> PathBuf {
    let mut next = file.as_os_str().to_owned();
    next.push(".next");
    PathBuf::from(next)
}

/// Reads a key from a file; `-` is standard input.
///
/// # Errors
/// `KEY_MISSING`.
pub(crate) fn secret_read(file: &Path, kind: &str) -> Result<RecipientSecret, Failure> {
    let what = || format!("the {kind} in {} cannot be used", file.display());
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    read.map_err(|error| problem(Code::KEY_MISSING, what(), error))?;
    RecipientSecret::parse(&text).map_err(|error| Box::new(error.problem(what())))
}
