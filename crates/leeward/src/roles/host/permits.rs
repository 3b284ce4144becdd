//! The start permits that this host holds. A permit allows restarts within one boot of this host.

use crate::{folder, trust::permits::permit_check};
use leeward_model::{Code, Epoch, HostId, ItemId, Problem, StartPermit};
use std::path::{Path, PathBuf};

fn path_of(dir: &Path, machine: &str) -> PathBuf {
    dir.join("permits").join(format!("{machine}.json"))
}

/// What a permit is checked against.
#[derive(Clone, Debug)]
pub struct PermitCheck {
    /// The config server's public key; none before the first contact.
    pub key: Option<String>,
    /// This host.
    pub host: HostId,
    /// Its boot id.
    pub boot: String,
}

/// Checks that `permit` lets this host start `machine` of `item` in this boot, in `epoch`.
///
/// # Errors
/// NO_PERMIT with the reason.
pub fn permit_allows(
    check: &PermitCheck,
    permit: &StartPermit,
    item: ItemId,
    machine: &str,
    epoch: Epoch,
) -> Result<(), Problem> {
    let terms = &permit.terms;
    let refuse = |why: &str| {
        Err(Code::NO_PERMIT.because(format!("machine {machine} may not be started here"), why))
    };
    let Some(key) = &check.key else {
        return refuse("the config server was not reached yet, so no permit can be checked");
    };
    if permit_check(permit, key).is_err() {
        return refuse("the permit is not signed by this installation's config server");
    }
    if terms.host != check.host || terms.host_boot != check.boot {
        return refuse("the permit is for another host or for an earlier boot of this one");
    }
    if terms.item != item || terms.machine != machine {
        return refuse("the permit is for another machine");
    }
    if terms.epoch < epoch {
        return refuse("the permit is of an epoch that has ended");
    }
    Ok(())
}

/// Keeps a permit over restarts of this process.
///
/// # Errors
/// Those of the file system.
pub fn permit_store(dir: &Path, permit: &StartPermit) -> std::io::Result<()> {
    std::fs::create_dir_all(dir.join("permits"))?;
    let text = serde_json::to_vec_pretty(permit)?;
    folder::write_secret(&path_of(dir, &permit.terms.machine), &text)
}

/// The kept permit of a machine.
pub fn permit_load(dir: &Path, machine: &str) -> Option<StartPermit> {
    serde_json::from_slice(&std::fs::read(path_of(dir, machine)).ok()?).ok()
}

/// Forgets the permit of a machine: it was fenced.
pub fn permit_forget(dir: &Path, machine: &str) {
    // A file that is not there is forgotten already; one that cannot be removed is void anyway
    // from the next contact, because its epoch has ended.
    let _ = std::fs::remove_file(path_of(dir, machine));
}

fn fence_path(dir: &Path, machine: &str) -> PathBuf {
    dir.join("permits").join(format!("{machine}.fenced"))
}

/// Notes that a machine was failed over: it is not started here any more, also when its
/// protection has ended since.
///
/// # Errors
/// Those of the file system.
pub fn fence_note(dir: &Path, machine: &str) -> std::io::Result<()> {
    let path = fence_path(dir, machine);
    if path.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(dir.join("permits"))?;
    folder::write_whole(&path, b"failed over to another site\n")
}

/// Forgets that a machine was failed over: it is replicated from here again.
///
/// # Errors
/// Those of the file system.
pub fn fence_lift(dir: &Path, machine: &str) -> std::io::Result<()> {
    match std::fs::remove_file(fence_path(dir, machine)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a machine was failed over and may not be started here.
pub fn is_fenced(dir: &Path, machine: &str) -> bool {
    fence_path(dir, machine).exists()
}
