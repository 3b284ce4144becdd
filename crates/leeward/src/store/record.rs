//! The note that a point is served or restored by hand: put into the store before anything is
//! opened, ended at the end. Whether a note's process still lives is told here as well, for the
//! server that shows it.

use crate::roles::host::clock::wall_now;
use leeward_fabric::process::ProcessIdentity;
use leeward_model::{DiskNumber, PointId};
use leeward_replica::{PointReader, Served, ServedAs, ServingProcess, StoreError};
use uuid::Uuid;

fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// This process, as notes name it.
fn this_process() -> ServingProcess {
    let pid = std::process::id();
    let identity = ProcessIdentity::of(pid).ok().flatten();
    let (boot, start_ticks) =
        identity.map_or_else(Default::default, |identity| (identity.boot, identity.start_time));
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    let user = user.unwrap_or_else(|_| rustix::process::getuid().as_raw().to_string());
    ServingProcess { machine: machine_name(), boot, pid, start_ticks, user }
}

/// Notes that this process begins to use a point.
///
/// # Errors
/// When the store cannot be written.
pub(super) fn begin(
    reader: &PointReader,
    point: PointId,
    disk: DiskNumber,
    served_as: ServedAs,
) -> Result<Served, StoreError> {
    let (id, process, since) = (Uuid::nil(), this_process(), wall_now());
    reader.serve_begins(Served { id, point, disk, served_as, process, since })
}

/// Who it is, for people.
pub(crate) fn who(process: &ServingProcess) -> String {
    format!("{} on {}, process {}", process.user, process.machine, process.pid)
}

/// Whether the process of a note has certainly ended. One of another machine is taken as living:
/// nobody here can tell.
pub(crate) fn is_stale(process: &ServingProcess) -> bool {
    if process.machine != machine_name() || process.boot.is_empty() {
        return false;
    }
    let ServingProcess { pid, start_ticks, boot, .. } = process.clone();
    let identity = ProcessIdentity { pid, start_time: start_ticks, boot };
    matches!(identity.is_alive(), Ok(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_lives_is_not_stale_and_one_that_ended_or_is_of_another_boot_is() {
        let mine = this_process();
        assert!(!is_stale(&mine));
        assert!(is_stale(&ServingProcess { start_ticks: mine.start_ticks + 1, ..mine.clone() }));
        assert!(is_stale(&ServingProcess { boot: "another".into(), ..mine.clone() }));
        assert!(!is_stale(&ServingProcess { machine: "elsewhere".into(), ..mine }));
    }
}
