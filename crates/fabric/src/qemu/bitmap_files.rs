//! Change maps of ours in the image files of a machine that is off: found and taken out by
//! `qemu-img`, which locks an image as QEMU does. Data of an image are never touched.

use super::QemuFabric;
use super::bitmaps::is_ours;
use crate::fabric::{FabricError, MachineRef};
use crate::image::{self, ImageError};
use leeward_capture::ChangeSource as _;
use leeward_model::{DiskFormat, MachineState};
use serde_json::Value;
use std::path::Path;
use tokio::process::Command;

impl QemuFabric {
    pub(super) async fn forget_changes(&self, name: &str) -> Result<(), FabricError> {
        let machine = self.owned(name)?;
        let vm = self.owned_vm(&machine);
        let failed = |reason: String| vm.failed("take the change maps out of", reason);
        if vm.state().await != MachineState::Off {
            return Err(failed("it is not off".to_owned()));
        }
        vm.end_still().await?;
        // What the host noted of them goes first: without it they prove nothing.
        let mut source = self.change_source(&MachineRef::Owned(name.to_owned()))?;
        source.detach().await.map_err(|error| failed(error.to_string()))?;
        let mut left = Vec::new();
        for disk in machine.spec.disks.iter().filter(|disk| disk.format == DiskFormat::Qcow2) {
            if let Err(reason) = forget_in(Path::new(&disk.path)).await {
                left.push(format!("{}: {reason}", disk.path));
            }
        }
        if left.is_empty() { Ok(()) } else { Err(failed(left.join("; "))) }
    }
}

/// Takes our bitmaps out of one image.
async fn forget_in(image: &Path) -> Result<(), String> {
    match image::inspect(image, DiskFormat::Qcow2) {
        Err(ImageError::Missing(_)) => return Ok(()),
        Err(error) => return Err(error.to_string()),
        Ok(_) => {}
    }
    let mut info = Command::new("qemu-img");
    info.args(["info", "--output=json", "-f", "qcow2"]).arg(image);
    let info: Value = serde_json::from_slice(&said(info).await?).map_err(|e| e.to_string())?;
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array();
    let names = bitmaps.into_iter().flatten().filter_map(|bitmap| bitmap["name"].as_str());
    for name in names.filter(|name| is_ours(name)) {
        let mut remove = Command::new("qemu-img");
        remove.args(["bitmap", "--remove", "-f", "qcow2"]).arg(image).arg(name);
        said(remove).await?;
    }
    Ok(())
}

/// What a program says, or why it failed.
async fn said(mut command: Command) -> Result<Vec<u8>, String> {
    let output = command.kill_on_drop(true).output().await.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn img(words: &[&str], image: &Path, more: &[&str]) -> Vec<u8> {
        let mut command = Command::new("qemu-img");
        command.args(words).arg(image).args(more);
        said(command).await.unwrap()
    }

    async fn names(image: &Path) -> Vec<String> {
        let info = img(&["info", "--output=json"], image, &[]).await;
        let info: Value = serde_json::from_slice(&info).unwrap();
        let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
        let names = bitmaps.into_iter().flatten();
        names.map(|bitmap| bitmap["name"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn only_our_bitmaps_leave_an_image_and_its_data_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (image, raw) = (folder.path().join("a.qcow2"), folder.path().join("a.raw"));
        std::fs::write(&raw, [7; 1 << 20]).unwrap();
        let source = raw.to_str().unwrap();
        img(&["convert", "-f", "raw", "-O", "qcow2", source], &image, &[]).await;
        let point = format!("lw-pt-{:032x}-9", 7);
        for name in ["backup-0", &point, "lw-open"] {
            img(&["bitmap", "--add"], &image, &[name]).await;
        }

        forget_in(&image).await.unwrap();

        assert_eq!(names(&image).await, ["backup-0"]);
        img(&["compare", source], &image, &[]).await;
        forget_in(&folder.path().join("gone.qcow2")).await.unwrap();
        assert!(forget_in(&raw).await.is_err(), "it is no qcow2 image");
    }
}
