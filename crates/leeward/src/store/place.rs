//! Where a store is, and opening it: for reading without a lock, for writing with the owner's.

use super::{Failure, problem};
use leeward_model::Code;
use leeward_replica::{
    RecipientSecret, Store, StoreError, SystemRandom, Unlock, storage::LocalStore,
};
use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Which store, and how to unlock it.
#[derive(Clone, Debug, clap::Args)]
pub struct PlaceOptions {
    /// The store: a folder.
    #[arg(value_name = "STORE")]
    pub store: String,
    /// File with the recovery key, if the store's key file is lost; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub recovery_key: Option<PathBuf>,
}

impl PlaceOptions {
    /// The store's folder.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` for a bucket.
    pub(super) fn folder(&self) -> Result<&Path, Failure> {
        if self.store.contains("://") {
            let cause = "stores in buckets (s3://, az://) are not built yet";
            return Err(problem(Code::NOT_SUPPORTED, format!("store {}", self.store), cause));
        }
        Ok(Path::new(&self.store))
    }

    fn unlock(&self) -> Result<Unlock, Failure> {
        Ok(self.secret()?.map_or(Unlock::KeyFile, Unlock::Secret))
    }

    /// The secret that was given in place of the key file, if one was.
    ///
    /// # Errors
    /// `KEY_MISSING`.
    pub(crate) fn secret(&self) -> Result<Option<RecipientSecret>, Failure> {
        let Some(file) = &self.recovery_key else { return Ok(None) };
        let what = || format!("the recovery key in {} cannot be used", file.display());
        let mut text = String::new();
        let read = if file == Path::new("-") {
            std::io::stdin().read_to_string(&mut text).map(drop)
        } else {
            std::fs::read_to_string(file).map(|read| text = read)
        };
        read.map_err(|error| problem(Code::KEY_MISSING, what(), error))?;
        let secret = RecipientSecret::parse(&text);
        Ok(Some(secret.map_err(|error| Box::new(error.problem(what())))?))
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
        let folder = self.folder()?;
        if !folder.is_dir() {
            let what = format!("there is no store in {}", folder.display());
            return Err(problem(Code::NOT_FOUND, what, "there is no such folder"));
        }
        let blobs = Arc::new(LocalStore::open_reading(folder));
        let unlock = secret.map_or(Unlock::KeyFile, Unlock::Secret);
        Store::open(blobs, None, &unlock, Arc::new(SystemRandom))
            .map_err(|error| self.failed("cannot be opened", &error))
    }

    /// Opens the store for writing, as its owner: refused while a server or another tool has it.
    ///
    /// # Errors
    /// What keeps it closed.
    pub(super) fn open_writer(&self) -> Result<Store, Failure> {
        let owner = self.open()?.identity().owner;
        let fail = |error: StoreError| self.failed("cannot be opened for writing", &error);
        let blobs = LocalStore::open(self.folder()?).map_err(|error| fail(error.into()))?;
        Store::open_writer(Arc::new(blobs), owner, &self.unlock()?, Arc::new(SystemRandom))
            .map_err(fail)
    }

    /// The problem of an error of the store.
    pub(crate) fn failed(&self, what: &str, error: &StoreError) -> Failure {
        Box::new(error.problem(format!("the store in {} {what}", self.store)))
    }
}
