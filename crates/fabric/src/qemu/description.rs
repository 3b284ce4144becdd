//! The files beside an owner's machine that are ours: the mark of its item, and the steps in which
//! its description changes to an instance's disks and back. A crash between any two steps leaves
//! the former description or the new one, never half of one and never none.
//!
//! Knows files only; `settle` knows when, and what the description says.

use crate::process::{self, sync_folder_of, write_whole};
use leeward_model::{InstanceId, ItemId};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The machine's mark.
const CLAIM: &str = ".leeward-item";

/// What the mark holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    item: ItemId,
}

/// The description of the machine in `folder`.
pub(crate) fn description(folder: &Path) -> PathBuf {
    folder.join("machine.toml")
}

/// What the description was before it named the disks of `instance`; an empty file says that there
/// was none. It is there exactly from settling until the settling is taken back or made final.
pub(crate) fn before(folder: &Path, instance: InstanceId) -> PathBuf {
    folder.join(format!("machine.toml.before-{instance}"))
}

/// The description of the owner's own disks, after the settling of `instance` was made final.
pub(crate) fn former(folder: &Path, instance: InstanceId) -> PathBuf {
    folder.join(format!("machine.toml.former-{instance}"))
}

/// The item that the machine in `folder` is marked for.
pub(crate) fn claimed(folder: &Path) -> io::Result<Option<ItemId>> {
    match fs::read(folder.join(CLAIM)) {
        // A mark that cannot be understood is somebody's all the same.
        Ok(bytes) => Ok(Some(serde_json::from_slice::<Claim>(&bytes)?.item)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Marks the machine in `folder`, durable.
pub(crate) fn claim(folder: &Path, item: ItemId) -> io::Result<()> {
    process::write_json(&folder.join(CLAIM), &Claim { item }).map_err(io::Error::other)
}

/// Takes the mark off, durable.
pub(crate) fn disclaim(folder: &Path) -> io::Result<()> {
    remove(&folder.join(CLAIM))
}

/// Removes a file, durable; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder_of(path),
        Err(error) if is_absent(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A step of settling. Each is atomic and may be repeated.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Makes the folder of a machine that did not exist.
    MakeFolder,
    /// Marks it for the item.
    Claim(ItemId),
    /// Keeps the present description, or that there is none.
    KeepFormer,
    /// Puts the new description in its place.
    Replace(String),
}

impl Step {
    /// Does the step for the machine in `folder`, durable on return.
    pub fn run(&self, folder: &Path, instance: InstanceId) -> io::Result<()> {
        let kept = before(folder, instance);
        match self {
            Step::MakeFolder => {
                fs::create_dir_all(folder)?;
                sync_folder_of(folder)
            }
            Step::Claim(item) => claim(folder, *item),
            Step::KeepFormer => match fs::read(description(folder)) {
                Ok(former) => write_whole(&kept, &former),
                Err(error) if is_absent(&error) => write_whole(&kept, b""),
                Err(error) => Err(error),
            },
            Step::Replace(text) => {
                let path = description(folder);
                let permissions = fs::metadata(&path).ok().map(|found| found.permissions());
                write_whole(&path, text.as_bytes())?;
                match permissions {
                    Some(permissions) => fs::set_permissions(&path, permissions),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The steps that make `text` the description of the machine in `folder`. They must run only
/// while the present one is not the instance's already.
pub(crate) fn settling(folder: &Path, item: ItemId, text: String) -> Vec<Step> {
    let replace = [Step::KeepFormer, Step::Replace(text)];
    match description(folder).exists() {
        true => replace.into(),
        // Marked before it is there: a machine of ours is never taken for its owner's.
        false => [Step::MakeFolder, Step::Claim(item)].into_iter().chain(replace).collect(),
    }
}

/// Puts the description back that was kept when `instance` settled, or removes the machine that
/// settling made. The present description must be the instance's.
pub(crate) fn restore(folder: &Path, instance: InstanceId) -> io::Result<()> {
    let kept = before(folder, instance);
    let made_by_us = match fs::metadata(&kept) {
        Ok(found) => found.len() == 0,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    if !made_by_us {
        let path = description(folder);
        if let Ok(present) = fs::metadata(&path) {
            fs::set_permissions(&kept, present.permissions())?;
        }
        fs::rename(&kept, &path)?;
        return sync_folder_of(&path);
    }
    // While the kept file is there, a repeated call comes here again.
    fs::remove_file(description(folder)).or_else(|error| match is_absent(&error) {
        true => Ok(()),
        false => Err(error),
    })?;
    File::open(folder)?.sync_all()?;
    remove(&kept)?;
    disclaim(folder)?;
    match fs::remove_dir(folder) {
        // Its owner has put something there.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if !is_absent(&error) => Err(error),
        Ok(()) | Err(_) => sync_folder_of(folder),
    }
}

/// Forgets settings of `instance` that were begun and replaced nothing: a crash before the last
/// step leaves the kept file beside the description that it is a copy of.
pub(crate) fn forget_unfinished(folder: &Path, instance: InstanceId) -> io::Result<()> {
    remove(&before(folder, instance))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const INSTANCE: InstanceId = InstanceId::from_u128(7);
    const ITEM: ItemId = ItemId::from_u128(8);
    const OLD: &str = "old";
    const NEW: &str = "new";

    /// Every file of a folder with its content.
    fn files(folder: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let file = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        };
        entries.map(file).collect()
    }

    fn present(folder: &Path) -> Option<String> {
        files(folder).remove("machine.toml")
    }

    /// A machine's folder whose settling was interrupted after `done` steps.
    fn interrupted(has_former: bool, done: usize) -> (tempfile::TempDir, PathBuf, usize) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("web01");
        if has_former {
            fs::create_dir(&folder).unwrap();
            fs::write(description(&folder), OLD).unwrap();
            claim(&folder, ITEM).unwrap();
        }
        let steps = settling(&folder, ITEM, NEW.into());
        for step in steps.iter().take(done) {
            step.run(&folder, INSTANCE).unwrap();
        }
        (root, folder, steps.len())
    }

    #[test]
    fn a_crash_after_any_step_leaves_the_old_or_the_new_description_and_the_rest_goes_on() {
        for has_former in [true, false] {
            let old = has_former.then(|| OLD.to_owned());
            let (_root, _, all) = interrupted(has_former, 0);
            for done in 0..=all {
                let (_root, folder, _) = interrupted(has_former, done);
                let expected = if done == all { Some(NEW.into()) } else { old.clone() };
                assert_eq!(present(&folder), expected, "after {done} of {all} steps");

                if done < all {
                    for step in settling(&folder, ITEM, NEW.into()) {
                        step.run(&folder, INSTANCE).unwrap();
                    }
                }

                assert_eq!(present(&folder).as_deref(), Some(NEW));
                assert_eq!(claimed(&folder).unwrap(), Some(ITEM));
                let kept = fs::read_to_string(before(&folder, INSTANCE)).unwrap();
                assert_eq!(kept, old.clone().unwrap_or_default());
                restore(&folder, INSTANCE).unwrap();
                restore(&folder, INSTANCE).unwrap();
                assert_eq!(present(&folder), old);
                assert_eq!(folder.exists(), has_former, "what was made is gone");
                assert_eq!(files(&folder).len(), if has_former { 2 } else { 0 });
            }
        }
    }

    #[test]
    fn a_machine_that_settling_made_is_removed_also_after_a_crash_within_the_removal() {
        let (_root, folder, _) = interrupted(false, 4);
        fs::remove_file(description(&folder)).unwrap();

        restore(&folder, INSTANCE).unwrap();

        assert!(!folder.exists());
    }

    #[test]
    fn a_file_of_the_owner_keeps_its_folder() {
        let (_root, folder, _) = interrupted(false, 4);
        fs::write(folder.join("notes"), "mine").unwrap();

        restore(&folder, INSTANCE).unwrap();

        assert_eq!(files(&folder).into_keys().collect::<Vec<_>>(), ["notes"]);
    }

    #[test]
    fn a_torn_mark_is_not_taken_for_none() {
        let (_root, folder, _) = interrupted(true, 0);
        fs::write(folder.join(CLAIM), "{").unwrap();

        assert!(claimed(&folder).is_err());
    }
}
