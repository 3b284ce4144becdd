//! `leeward store init`: a new store in an empty folder.

use super::{Failure, file_problem, place::PlaceOptions, print, print_json, problem};
use crate::{cli::Output, folder::write_secret};
use leeward_model::Code;
use leeward_replica::{Store, StoreIdentity, SystemRandom, storage::LocalStore};
use serde_json::json;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What to make.
#[derive(Clone, Debug, clap::Args)]
pub struct InitOptions {
    /// The folder: empty, or not there yet.
    #[arg(value_name = "STORE")]
    store: String,
    /// File to write the recovery key to; it must not exist. Without it: STORE.recovery-key.txt.
    #[arg(long, value_name = "FILE")]
    recovery_key: Option<PathBuf>,
    /// Make the store beside what is in the folder already. Nothing of that is changed.
    #[arg(long)]
    beside_other_files: bool,
}

pub(super) fn run(options: &InitOptions, output: Output) -> Result<(), Failure> {
    let place = PlaceOptions { store: options.store.clone(), recovery_key: None };
    let folder = place.folder()?;
    let what = || format!("no store was made in {}", folder.display());
    let key_file = options.recovery_key.clone().unwrap_or_else(|| beside(folder));
    let key_file = std::path::absolute(key_file).map_err(|error| file_problem(what(), &error))?;
    if key_file.exists() {
        let cause = format!("{} exists, and a key is never overwritten", key_file.display());
        return Err(problem(Code::NAME_TAKEN, what(), cause));
    }
    // Shown once, kept nowhere: there must be a place for it before there is a key.
    if !key_file.parent().is_some_and(Path::is_dir) {
        let cause = format!("there is no folder for the recovery key {}", key_file.display());
        return Err(problem(Code::BAD_REQUEST, what(), cause));
    }
    if folder.exists() && !options.beside_other_files {
        let mut entries =
            std::fs::read_dir(folder).map_err(|error| file_problem(what(), &error))?;
        if entries.next().is_some() {
            let cause = "the folder is not empty; --beside-other-files makes it all the same";
            return Err(problem(Code::NAME_TAKEN, what(), cause));
        }
    }
    let blobs =
        LocalStore::open(folder).map_err(|error| place.failed("cannot be made", &error.into()))?;
    let identity = StoreIdentity { store: Uuid::new_v4(), owner: Uuid::new_v4(), generation: 1 };
    let secret = Store::init(&blobs, identity, &SystemRandom)
        .map_err(|error| place.failed("cannot be made", &error))?;
    write_secret(&key_file, format!("{}\n", secret.to_text()).as_bytes()).map_err(|error| {
        file_problem(
            format!("the recovery key could not be kept in {}", key_file.display()),
            &error,
        )
    })?;
    match output {
        Output::Json => print_json(&json!({
            "store": identity.store, "folder": folder, "recoveryKeyFile": key_file,
        })),
        Output::Table => print(&format!(
            "store {} is ready in {}\nthe recovery key is in {}: move it to a safe place\n",
            identity.store,
            folder.display(),
            key_file.display()
        )),
    }
    Ok(())
}

/// Beside the folder, not in it: whoever takes the store away does not take its key along.
fn beside(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_else(|| "store".as_ref()).to_owned();
    name.push(".recovery-key.txt");
    folder.with_file_name(name)
}
