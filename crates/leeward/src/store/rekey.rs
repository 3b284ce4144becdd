//! `leeward store rekey`: new data keys for items, and other recipients for the store.
//!
//! A new recovery key is durable in its file before it counts. How keys change without a moment
//! in which the store cannot be opened is in `leeward-replica`.

use super::{
    Failure, file_problem, find,
    init::beside,
    place::{Place, PlaceOptions, next_key_file, usual_key_file},
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
    /// Draw a new key file; the former one opens nothing any more. That of a store in a bucket is
    /// put in the place of the one that the store was opened with, which is kept beside it.
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

/// The key file of a store in a bucket, which lies with its users: first beside the one that
/// counts, then in its place. A cut between the two leaves both, and the store opens with the new
/// one.
struct NewKeyFile {
    file: PathBuf,
}

impl NewKeyFile {
    /// None when no key file changes, or the store keeps it itself.
    fn of(place: &PlaceOptions, what: NewKeys, store: &Store) -> Result<Option<Self>, Failure> {
        let changes = match what {
            NewKeys::KeyFile | NewKeys::Both => true,
            NewKeys::Recovery | NewKeys::AnotherRecovery => false,
        };
        if !changes || matches!(place.place()?, Place::Folder(_)) {
            return Ok(None);
        }
        let file = match &place.key_file {
            Some(file) => file.clone(),
            None => usual_key_file(store.identity().store)?,
        };
        Ok(Some(NewKeyFile { file }))
    }

    fn write(&self, text: &str) -> std::io::Result<()> {
        let next = next_key_file(&self.file);
        // Of a change that was cut short before it counted: the store opened with the other one.
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        write_secret(&next, text.as_bytes())
    }

    /// Puts it in its place; the former one stays, under the number of its keys.
    fn place(&self, generation: u32) -> Result<(), Failure> {
        let what = || {
            let next = next_key_file(&self.file);
            format!("the store's new key file counts, and is still called {}", next.display())
        };
        let mut former = self.file.as_os_str().to_owned();
        former.push(format!(".former-{}", generation - 1));
        // Linked, not moved: there is a key file at any time.
        match std::fs::hard_link(&self.file, former) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(file_problem(what(), &error)),
        }
        std::fs::rename(next_key_file(&self.file), &self.file)
            .map_err(|error| file_problem(what(), &error))
    }
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
    let key_file = NewKeyFile::of(place, what, store)?;
    let rekey = match &key_file {
        None => store.rekey_begin(what),
        Some(file) => store.rekey_begin_apart(what, &|text| file.write(text)),
    };
    let rekey = rekey.map_err(fail)?;
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
    let done = done.map_err(fail)?;
    if let Some(key_file) = key_file {
        key_file.place(done.key_generation)?;
    }
    Ok((done, file))
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
