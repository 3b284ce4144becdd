//! Overlays: qcow2 images over the export of a recovery point, made durable before they are used.
//!
//! The export does not have to answer while an overlay is made. Nothing is written to it here.

use crate::fabric::InstanceDisk;
use crate::image::{self, BACKING_BYTES_MAX, ImageError};
use crate::process::sync_folder_of;
use crate::qmp::SOCKET_PATH_BYTES_MAX;
use leeward_model::DiskFormat;
use serde_json::json;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use tokio::process::Command;

/// How long QEMU waits for an export that went away before a request fails, in seconds.
const RECONNECT_SECONDS: u32 = 3600;

/// Why an overlay could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OverlayError {
    #[error("the path of the export's socket is longer than 107 bytes: {0}")]
    SocketPath(String),
    #[error("the backing string is longer than 1023 bytes: {0}")]
    Backing(String),
    #[error("{path} is an overlay of something else: {found}")]
    OfSomethingElse { path: String, found: String },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("qemu-img: {0}")]
    Program(String),
    #[error("{0}")]
    File(#[from] io::Error),
}

/// The backing string of a disk's overlay.
pub(crate) fn backing(disk: &InstanceDisk) -> Result<String, OverlayError> {
    let socket = disk.socket.display().to_string();
    if socket.len() > SOCKET_PATH_BYTES_MAX {
        return Err(OverlayError::SocketPath(socket));
    }
    let server = json!({"type": "unix", "path": socket});
    let export = json!({"driver": "nbd", "server": server, "export": disk.export,
                        "reconnect-delay": RECONNECT_SECONDS});
    let backing = format!("json:{}", json!({"driver": "raw", "file": export}));
    match backing.len() {
        len if len > BACKING_BYTES_MAX => Err(OverlayError::Backing(backing)),
        _ => Ok(backing),
    }
}

/// Makes the overlay of `disk` at `path`, durable. One that exists is kept if it is that overlay,
/// or one that holds the whole disk already.
pub(crate) async fn create(path: &Path, disk: &InstanceDisk) -> Result<(), OverlayError> {
    let backing = backing(disk)?;
    match image::inspect(path, DiskFormat::Qcow2) {
        Ok(found) if found.size != disk.size => {
            return Err(something_else(path, format!("its size is {}", found.size)));
        }
        Ok(found) => match found.backing {
            None => return Ok(()),
            Some(other) if other == backing => return Ok(()),
            Some(other) => return Err(something_else(path, other)),
        },
        Err(ImageError::Missing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    // Half an overlay never has the name of one.
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    let mut command = Command::new("qemu-img");
    // Unchecked (-u): the export may not serve yet.
    command.args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", &backing]);
    command.arg(&fresh).arg(disk.size.to_string()).kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        return Err(OverlayError::Program(String::from_utf8_lossy(&output.stderr).trim().into()));
    }
    File::open(&fresh)?.sync_all()?;
    fs::rename(&fresh, path)?;
    Ok(sync_folder_of(path)?)
}

fn something_else(path: &Path, found: String) -> OverlayError {
    OverlayError::OfSomethingElse { path: path.display().to_string(), found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::DiskNumber;

    fn disk(export: &str) -> InstanceDisk {
        let (number, size) = (DiskNumber(0), 1 << 20);
        InstanceDisk { number, size, socket: "/run/e".into(), export: export.into() }
    }

    #[tokio::test]
    async fn an_overlay_is_made_once_and_one_of_another_point_is_never_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.qcow2");

        create(&path, &disk("a")).await.unwrap();
        let first = fs::metadata(&path).unwrap().modified().unwrap();
        create(&path, &disk("a")).await.unwrap();

        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), first);
        let found = image::inspect(&path, DiskFormat::Qcow2).unwrap();
        assert_eq!((found.size, found.backing), (1 << 20, Some(backing(&disk("a")).unwrap())));
        let other = create(&path, &disk("b")).await.unwrap_err();
        assert!(matches!(other, OverlayError::OfSomethingElse { .. }), "{other}");
        let grown = create(&path, &InstanceDisk { size: 2 << 20, ..disk("a") }).await;
        assert!(grown.is_err());
    }

    #[test]
    fn names_that_do_not_fit_are_refused_before_anything_is_made() {
        let long = "x".repeat(1000);
        assert!(matches!(backing(&disk(&long)), Err(OverlayError::Backing(_))));
        let far = InstanceDisk { socket: format!("/{long}").into(), ..disk("a") };
        assert!(matches!(backing(&far), Err(OverlayError::SocketPath(_))));
    }
}
