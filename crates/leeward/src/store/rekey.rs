//! `leeward store rekey`: new data keys for items, and other recipients for the store.
//!
//! A new recovery key is durable in its file before it counts. How keys change without a moment
//! in which the store cannot be opened is in `leeward-replica`.

use super::{
    Failure, file_problem, find,
    init::beside,
    place::{Place, PlaceOptions},
    print, print_json, problem,
};
use crate::{cli::Output, folder::write_secret};
use leeward_model::{Code, ItemId};
use leeward_replica::{NewKeys, RekeyReport, Store};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Which keys to change.
#[derive(Clone, Debug, clap::Args)]
pub struct RekeyOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// Give items another data key: what comes is sealed with it, older points stay readable.
    /// May be done while a server uses the store; a source takes it with its next session.
    #[arg(long)]
    data_keys: bool,
    /// With --data-keys: only this item, by its machine's name or its id.
    #[arg(long, value_name = "NAME", requires = "data_keys")]
    item: Option<String>,
    /// Draw a new recovery key; every former one opens nothing any more.
    #[arg(long, conflicts_with = "another_recovery")]
    recovery: bool,
    /// Draw one more recovery key, for another person or place; the former ones stay.
    #[arg(long, conflicts_with = "new_key_file")]
    another_recovery: bool,
    /// Draw a new key file; the former one opens nothing any more. Only for a store in a folder.
    #[arg(long)]
    new_key_file: bool,
    /// File to write the new recovery key to; it must not exist. Without it: beside the store,
    /// for a bucket in the present folder.
    #[arg(long, value_name = "FILE")]
    new_recovery_key: Option<PathBuf>,
}

impl RekeyOptions {
    fn recipients(&self) -> Option<NewKeys> {
        match (self.recovery, self.new_key_file, self.another_recovery) {
            (_, _, true) => Some(NewKeys::AnotherRecovery),
            (true, true, _) => Some(NewKeys::Both),
            (true, false, _) => Some(NewKeys::Recovery),
            (false, true, _) => Some(NewKeys::KeyFile),
            (false, false, false) => None,
        }
    }
}

/// A data key that was made.
struct Rotated {
    item: ItemId,
    version: u32,
}

pub(super) fn run(options: &RekeyOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let recipients = options.recipients();
    if recipients.is_none() && !options.data_keys {
        let what = format!("no key of the store in {} was changed", place.store);
        let cause = "say which: --data-keys, --recovery, --another-recovery, --new-key-file";
        return Err(problem(Code::BAD_REQUEST, what, cause));
    }
    let mut changed = None;
    let store = match recipients {
        Some(what) => {
            keeps_its_key_file(options)?;
            let mut store = place.open_writer()?;
            changed = Some(change(options, what, &mut store)?);
            store
        }
        None => place.open()?,
    };
    let rotated = if options.data_keys { rotate(options, &store)? } else { Vec::new() };
    show(&store, changed.as_ref(), &rotated, output);
    Ok(())
}

/// The key file of a store in a bucket lies with its users: nobody knows how many have a copy.
fn keeps_its_key_file(options: &RekeyOptions) -> Result<(), Failure> {
    if options.new_key_file && matches!(options.place.place()?, Place::Objects(_)) {
        let what = format!("the key file of the store in {} stays", options.place.store);
        let cause = "a new key file of a store in a bucket is not built yet; --recovery is";
        return Err(problem(Code::NOT_SUPPORTED, what, cause));
    }
    Ok(())
}

fn change(
    options: &RekeyOptions,
    what: NewKeys,
    store: &mut Store,
) -> Result<(RekeyReport, Option<PathBuf>), Failure> {
    let place = &options.place;
    let fail = |error| place.failed("keeps its recipients", &error);
    let file = match what {
        NewKeys::KeyFile => None,
        NewKeys::Recovery | NewKeys::AnotherRecovery | NewKeys::Both => {
            Some(recovery_file(options, store.key_generation() + 1)?)
        }
    };
    let rekey = store.rekey_begin(what).map_err(fail)?;
    if let (Some(file), Some(secret)) = (&file, rekey.recovery()) {
        let text = format!("{}\n", secret.to_text());
        write_secret(file, text.as_bytes()).map_err(|error| {
            let what = format!("the recovery key could not be kept in {}", file.display());
            file_problem(what, &error)
        })?;
    }
    let done = store.rekey_finish(rekey);
    if done.is_err()
        && let Some(file) = &file
    {
        tracing::warn!(
            "the key in {} counts only if the store's recipients changed: compare \
             `leeward store stats`",
            file.display()
        );
    }
    Ok((done.map_err(fail)?, file))
}

/// Where the new recovery key goes: never over another key.
fn recovery_file(options: &RekeyOptions, generation: u32) -> Result<PathBuf, Failure> {
    let what = || format!("the recipients of the store in {} are as before", options.place.store);
    let file = match &options.new_recovery_key {
        Some(file) => file.clone(),
        None => {
            let place = options.place.place()?;
            beside(&options.place.store, &place, &format!(".recovery-key-{generation}.txt"))
        }
    };
    let file = std::path::absolute(file).map_err(|error| file_problem(what(), &error))?;
    if file.exists() {
        let cause = format!("{} exists, and a key is never overwritten", file.display());
        return Err(problem(Code::NAME_TAKEN, what(), cause));
    }
    if !file.parent().is_some_and(Path::is_dir) {
        let cause = format!("there is no folder for the recovery key {}", file.display());
        return Err(problem(Code::BAD_REQUEST, what(), cause));
    }
    Ok(file)
}

fn rotate(options: &RekeyOptions, store: &Store) -> Result<Vec<Rotated>, Failure> {
    let place = &options.place;
    let items = match &options.item {
        Some(name) => vec![find::item(place, store, name)?.reader.item()],
        None => store.items().map_err(|error| place.failed("cannot be listed", &error))?,
    };
    let mut rotated = Vec::new();
    for item in items {
        let version = store.item_rotate(item).map_err(|error| {
            let done = rotated.len();
            place.failed(&format!("gave {done} items a new data key, not item {item}"), &error)
        })?;
        rotated.push(Rotated { item, version });
    }
    Ok(rotated)
}

fn show(
    store: &Store,
    changed: Option<&(RekeyReport, Option<PathBuf>)>,
    rotated: &[Rotated],
    output: Output,
) {
    if output == Output::Json {
        let data = rotated.iter().map(|key| json!({"item": key.item, "version": key.version}));
        print_json(&json!({
            "store": store.identity().store,
            "keyGeneration": store.key_generation(),
            "recipients": store.recipients(),
            "rewrapped": changed.map(|(report, _)| {
                json!({"items": report.items, "keys": report.keys})
            }),
            "recoveryKeyFile": changed.and_then(|(_, file)| file.clone()),
            "dataKeys": data.collect::<Vec<_>>(),
        }));
        return;
    }
    let mut text = String::new();
    if let Some((report, file)) = changed {
        text += &format!(
            "{} keys of {} items are locked for the new recipients (key generation {})\n",
            report.keys, report.items, report.key_generation
        );
        if let Some(file) = file {
            text +=
                &format!("the recovery key is in {}: move it to a safe place\n", file.display());
        }
        text += "a recovery kit of before opens nothing: make and test another one\n";
    }
    for key in rotated {
        text += &format!("item {} has data key {}\n", key.item, key.version);
    }
    print(&text);
}
