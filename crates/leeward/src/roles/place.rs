//! Where a role's replica store is: a folder of its own, another folder, or a place in a bucket.
//!
//! A folder holds its key file itself; that of a bucket lies in the role's folder, and never in
//! the bucket. Which place it is stays in the role's folder. What a store is, is not known here.

use crate::{
    folder,
    store::place::{Place, PlaceOptions},
};
use leeward_model::{Code, HostId, Problem};
use leeward_replica::{
    Generation, RecipientSecret, Store, StoreIdentity, SystemRandom, Unlock,
    storage::{BlobStore, Takeover},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// File of the role's folder with the name of its store, if that is not the folder `store`.
const PLACE_FILE: &str = "store.place";
/// File of the role's folder with the id by which it knows its own lease of a bucket.
const HOLDER_FILE: &str = "store.holder";
/// File of the role's folder with the key of a store in a bucket.
const KEY_FILE: &str = "store.key";

/// Where a role's store is to be, on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct StoreOptions {
    /// The replica store, if not DATA/store: another folder, s3://BUCKET/PREFIX or
    /// az://CONTAINER/PREFIX. Kept after the first start.
    #[arg(long, value_name = "STORE")]
    pub store: Option<String>,
    /// Start only if the bucket keeps what is put there: its own retention (object lock,
    /// compliance mode) is proved by a deletion that fails.
    #[arg(long)]
    pub object_lock: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct StorePlace {
    options: PlaceOptions,
    /// The role's folder.
    data: PathBuf,
}

/// Tells this role's folder from its copies and from all others.
fn holder(data: &Path) -> std::io::Result<uuid::Uuid> {
    let file = data.join(HOLDER_FILE);
    match std::fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().map_err(std::io::Error::other),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let drawn = uuid::Uuid::new_v4();
            folder::write_secret(&file, format!("{drawn}\n").as_bytes())?;
            Ok(drawn)
        }
        Err(error) => Err(error),
    }
}

impl StorePlace {
    /// The folder `store` of the role's folder.
    pub fn own(data: &Path) -> StorePlace {
        let options = data.join("store").to_string_lossy().into_owned().into();
        StorePlace { options, data: data.to_owned() }
    }

    /// The store that the role has, or else the one that `wanted` names, or its own folder.
    ///
    /// # Errors
    /// `STORE_FOREIGN` when it has another than `wanted`; `BAD_REQUEST` for what names none.
    pub fn of(data: &Path, wanted: Option<&str>) -> Result<StorePlace, Problem> {
        let wanted = wanted.map(|text| StorePlace::named(data, text)).transpose()?;
        let kept = std::fs::read_to_string(data.join(PLACE_FILE)).ok();
        let has = match kept {
            Some(text) => Some(StorePlace::named(data, text.trim())?),
            None if data.join("store").join("store.json").exists() => Some(StorePlace::own(data)),
            None => None,
        };
        match (has, wanted) {
            (Some(has), Some(wanted)) if has.name() != wanted.name() => {
                let what = format!("the store in {} is not this role's", wanted.name());
                let cause = format!("it has its store in {}", has.name());
                Err(Code::STORE_FOREIGN.because(what, cause))
            }
            (Some(has), _) => Ok(has),
            (None, wanted) => Ok(wanted.unwrap_or_else(|| StorePlace::own(data))),
        }
    }

    /// The store of that name: an absolute one, from wherever the role is started next.
    ///
    /// # Errors
    /// `BAD_REQUEST`.
    pub fn named(data: &Path, text: &str) -> Result<StorePlace, Problem> {
        let mut options = PlaceOptions::from(text.to_owned());
        match options.place().map_err(|problem| *problem)? {
            Place::Folder(folder) => {
                let whole = folder.canonicalize().or_else(|_| std::path::absolute(&folder));
                let whole = whole.unwrap_or(folder);
                options.store = whole.to_string_lossy().into_owned();
            }
            Place::Objects(_) => options.key_file = Some(data.join(KEY_FILE)),
        }
        Ok(StorePlace { options, data: data.to_owned() })
    }

    /// As `leeward store` names it.
    pub(crate) fn options(&self) -> &PlaceOptions {
        &self.options
    }

    /// As operators name it.
    pub fn name(&self) -> &str {
        &self.options.store
    }

    /// The file with its key, when it does not keep that itself.
    pub fn key_file(&self) -> Option<&Path> {
        self.options.key_file.as_deref()
    }

    /// Takes the lock of a bucket from a holder that is gone for good.
    pub fn take_over(&mut self) {
        self.options.force_takeover = true;
    }

    /// Refuses a bucket that does not keep what is put there.
    ///
    /// # Errors
    /// `NOT_SUPPORTED`, `STORE_IO`.
    pub fn prove_lock(&self) -> Result<(), Problem> {
        let proof = self.options.prove_lock().map_err(|problem| *problem)?;
        tracing::info!(
            store = self.name(),
            until = proof.until,
            "what is put into the store now cannot be deleted by anybody before: tried"
        );
        Ok(())
    }

    /// Keeps in the role's folder which store it has.
    ///
    /// # Errors
    /// `STORE_IO`.
    pub fn keep(&self, data: &Path) -> Result<(), Problem> {
        if self.name() == StorePlace::own(data).name() {
            return Ok(());
        }
        let file = data.join(PLACE_FILE);
        folder::write_whole(&file, format!("{}\n", self.name()).as_bytes()).map_err(|error| {
            Code::STORE_IO.because(format!("could not write {}", file.display()), error.to_string())
        })
    }

    fn what(&self) -> String {
        format!("the replica store in {} cannot be used", self.name())
    }

    /// Its blobs, for reading.
    ///
    /// # Errors
    /// What keeps them away.
    pub fn reading(&self) -> Result<Arc<dyn BlobStore>, Problem> {
        let place = self.options.place().map_err(|problem| *problem)?;
        self.options.reading(&place).map_err(|problem| *problem)
    }

    /// Its blobs, proved to be writable.
    ///
    /// # Errors
    /// What keeps them from that.
    pub fn writing(&self) -> Result<Arc<dyn BlobStore>, Problem> {
        let place = self.options.place().map_err(|problem| *problem)?;
        self.options.writing(&place).map_err(|problem| *problem)
    }

    /// With what the role unlocks it.
    ///
    /// # Errors
    /// `KEY_MISSING`.
    pub fn unlock(&self) -> Result<Unlock, Problem> {
        let secret = self.options.secret().map_err(|problem| *problem)?;
        Ok(secret.map_or(Unlock::KeyFile, Unlock::Secret))
    }

    /// The newest generation that the store says; none when there is no store yet.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub fn generation(&self) -> Result<Option<Generation>, Problem> {
        let place = self.options.place().map_err(|problem| *problem)?;
        if matches!(&place, Place::Folder(folder) if !folder.is_dir()) {
            return Ok(None);
        }
        let blobs = self.reading()?;
        Store::claimed_generation(blobs.as_ref()).map_err(|error| error.problem(self.what()))
    }

    /// Opens the store for `owner` to write, making it at the first start. What comes beside it is
    /// the recovery recipient's secret, once.
    ///
    /// # Errors
    /// When it belongs to another host or cannot be used.
    pub fn open_or_init(&self, owner: HostId) -> Result<(Store, Option<RecipientSecret>), Problem> {
        let fail = |error: leeward_replica::StoreError| error.problem(self.what());
        let owner = uuid::Uuid::from(owner);
        let place = self.options.place().map_err(|problem| *problem)?;
        let holder = holder(&self.data)
            .map_err(|error| Code::STORE_IO.because(self.what(), error.to_string()))?;
        // The role's folder is locked for this process: a lease of its own is of one that ended.
        let blobs = self.options.writing_as(&place, Takeover::Own(holder));
        let blobs = blobs.map_err(|problem| *problem)?;
        let secret = match Store::exists(blobs.as_ref()).map_err(fail)? {
            true => None,
            false => {
                self.options.check_not_deleted().map_err(|problem| *problem)?;
                let store = uuid::Uuid::new_v4();
                let identity = StoreIdentity { store, owner, generation: 1 };
                let random = &SystemRandom;
                let made = match self.key_file() {
                    None => Store::init(blobs.as_ref(), identity, random),
                    Some(file) => Store::init_apart(blobs.as_ref(), identity, random, &|text| {
                        folder::write_secret(file, format!("{text}\n").as_bytes())
                    }),
                };
                Some(made.map_err(fail)?)
            }
        };
        let unlock = self.unlock()?;
        let store = Store::open_writer(blobs, owner, &unlock, Arc::new(SystemRandom));
        Ok((store.map_err(fail)?, secret))
    }

    /// The words by which `leeward export` opens it.
    pub fn export_words(&self) -> Vec<std::ffi::OsString> {
        let mut words = vec!["--store".into(), self.name().into()];
        if let Some(file) = self.key_file() {
            words.extend(["--key-file".into(), PathBuf::from(file).into()]);
        }
        words
    }
}
