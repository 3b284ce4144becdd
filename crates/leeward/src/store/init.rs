//! `leeward store init`: a new store in an empty folder or an empty place of a bucket.

use super::{
    Failure, file_problem,
    place::{Place, PlaceOptions, usual_key_file},
    print, print_json, problem,
};
use crate::{cli::Output, folder::write_secret};
use leeward_model::Code;
use leeward_replica::{
    RecipientSecret, Store, StoreIdentity, SystemRandom,
    storage::{BlobStore, LockProof},
};
use serde_json::json;
use std::{
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// What to make.
#[derive(Clone, Debug, clap::Args)]
pub struct InitOptions {
    /// A folder, s3://BUCKET/PREFIX or az://CONTAINER/PREFIX: empty, or not there yet.
    #[arg(value_name = "STORE")]
    store: String,
    /// File to write the recovery key to; it must not exist. Without it: STORE.recovery-key.txt,
    /// for a bucket in the present folder.
    #[arg(long, value_name = "FILE")]
    recovery_key: Option<PathBuf>,
    /// File to write the key of a store in a bucket to; it must not exist. Without it a file of
    /// the store's id in the folder leeward/keys of the user's settings. A folder keeps its own.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Make the store beside what is there already. Nothing of that is changed.
    #[arg(long)]
    beside_other_files: bool,
    /// Refuse a bucket that does not keep what is put there: its own retention (object lock,
    /// compliance mode) is proved by a deletion that fails.
    #[arg(long)]
    object_lock: bool,
}

pub(super) fn run(options: &InitOptions, output: Output) -> Result<(), Failure> {
    let place = PlaceOptions::from(options.store.clone());
    let found = place.place()?;
    let identity = StoreIdentity { store: Uuid::new_v4(), owner: Uuid::new_v4(), generation: 1 };
    let what = || format!("no store was made in {}", options.store);
    let recovery = options
        .recovery_key
        .clone()
        .unwrap_or_else(|| beside(&options.store, &found, ".recovery-key.txt"));
    let recovery = free_file(&what(), "recovery key", recovery)?;
    let key_file = key_file(options, &found, identity.store, &what())?;
    check_empty_folder(options, &found, &what())?;
    let lock = options.object_lock.then(|| place.prove_lock()).transpose()?;
    let blobs = place.writing(&found)?;
    if !options.beside_other_files {
        place.check_not_deleted()?;
    }
    check_empty_bucket(options, &found, blobs.as_ref(), &what())?;
    let secret = make(&place, blobs.as_ref(), identity, key_file.as_deref())?;
    write_secret(&recovery, format!("{}\n", secret.to_text()).as_bytes()).map_err(|error| {
        file_problem(
            format!("the recovery key could not be kept in {}", recovery.display()),
            &error,
        )
    })?;
    match output {
        Output::Json => print_json(&json!({
            "store": identity.store, "folder": options.store, "recoveryKeyFile": recovery,
            "keyFile": key_file, "immutableUntil": lock.as_ref().map(|lock| &lock.until),
        })),
        Output::Table => {
            let key = key_file.map_or_else(String::new, |file| {
                format!("its key is in {}, not in the bucket: keep a copy\n", file.display())
            });
            let lock = lock.map_or_else(String::new, |lock| {
                let LockProof { object, until } = lock;
                format!("{object} could not be deleted, as nothing can that is put now: {until}\n")
            });
            print(&format!(
                "store {} is ready in {}\n{key}{lock}\
                 the recovery key is in {}: move it to a safe place\n",
                identity.store,
                options.store,
                recovery.display()
            ));
        }
    }
    Ok(())
}

/// Where the key of a store in a bucket goes; none for a folder.
fn key_file(
    options: &InitOptions,
    found: &Place,
    store: Uuid,
    what: &str,
) -> Result<Option<PathBuf>, Failure> {
    match (found, &options.key_file) {
        (Place::Folder(_), None) => Ok(None),
        (Place::Folder(_), Some(_)) => {
            let cause = "a store in a folder keeps its key file itself";
            Err(problem(Code::BAD_REQUEST, what, cause))
        }
        (Place::Objects(_), Some(file)) => free_file(what, "key", file.clone()).map(Some),
        (Place::Objects(_), None) => {
            let file = usual_key_file(store)?;
            let mut builder = std::fs::DirBuilder::new();
            let folder = file.parent().unwrap_or(Path::new("/"));
            let made = builder.recursive(true).mode(0o700).create(folder);
            made.map_err(|error| {
                file_problem(format!("could not make {}", folder.display()), &error)
            })?;
            free_file(what, "key", file).map(Some)
        }
    }
}

/// A file that can be made: a key is shown once, so there must be a place for it before there is
/// one.
fn free_file(what: &str, kind: &str, file: PathBuf) -> Result<PathBuf, Failure> {
    let file = std::path::absolute(file).map_err(|error| file_problem(what, &error))?;
    if file.exists() {
        let cause = format!("{} exists, and a key is never overwritten", file.display());
        return Err(problem(Code::NAME_TAKEN, what, cause));
    }
    if !file.parent().is_some_and(Path::is_dir) {
        let cause = format!("there is no folder for the {kind} {}", file.display());
        return Err(problem(Code::BAD_REQUEST, what, cause));
    }
    Ok(file)
}

/// Looks before anything is made: opening for writing makes the folder.
fn check_empty_folder(options: &InitOptions, found: &Place, what: &str) -> Result<(), Failure> {
    let Place::Folder(folder) = found else { return Ok(()) };
    if !folder.exists() || options.beside_other_files {
        return Ok(());
    }
    let mut entries = std::fs::read_dir(folder).map_err(|error| file_problem(what, &error))?;
    if entries.next().is_some() {
        let cause = "the folder is not empty; --beside-other-files makes it all the same";
        return Err(problem(Code::NAME_TAKEN, what, cause));
    }
    Ok(())
}

fn check_empty_bucket(
    options: &InitOptions,
    found: &Place,
    blobs: &dyn BlobStore,
    what: &str,
) -> Result<(), Failure> {
    if matches!(found, Place::Folder(_)) || options.beside_other_files {
        return Ok(());
    }
    let listed = blobs.list("");
    let listed =
        listed.map_err(|error| Box::new(leeward_replica::StoreError::from(error).problem(what)))?;
    // What a proof of object lock left is nobody's.
    match listed.iter().find(|name| !name.starts_with("lock-probe-")) {
        None => Ok(()),
        Some(name) => {
            let cause = format!(
                "{name} lies there already; --beside-other-files makes the store all the same"
            );
            Err(problem(Code::NAME_TAKEN, what, cause))
        }
    }
}

fn make(
    place: &PlaceOptions,
    blobs: &dyn BlobStore,
    identity: StoreIdentity,
    key_file: Option<&Path>,
) -> Result<RecipientSecret, Failure> {
    let made = match key_file {
        None => Store::init(blobs, identity, &SystemRandom),
        Some(file) => {
            let keep = |text: &str| -> io::Result<()> {
                write_secret(file, format!("{text}\n").as_bytes())
            };
            Store::init_apart(blobs, identity, &SystemRandom, &keep)
        }
    };
    made.map_err(|error| place.failed("cannot be made", &error))
}

/// A file for a recovery key beside the folder, not in it: whoever takes the store away does not
/// take its key along. For a bucket it is in the present folder.
pub(super) fn beside(store: &str, found: &Place, suffix: &str) -> PathBuf {
    match found {
        Place::Folder(folder) => {
            let mut name = folder.file_name().unwrap_or_else(|| "store".as_ref()).to_owned();
            name.push(suffix);
            folder.with_file_name(name)
        }
        Place::Objects(_) => {
            let name = store.split_once("://").map_or(store, |(_, name)| name);
            PathBuf::from(format!("{}{suffix}", name.trim_end_matches('/').replace('/', "-")))
        }
    }
}
