//! Judges a recovery point apart from the product's roles: copies its disks out of the store
//! through an export, and has the guest's own judge look at the copies. Boots nothing.

use super::{api::Site, guest::GuestImages, progress::wait_for, sites::Sites};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{process::Stdio, time::Duration};
use tokio::{net::UnixStream, process::Command};

/// The verdict on the point `name` of the site's item.
///
/// # Errors
/// When the point cannot be copied out; a bad ledger is a verdict, not an error.
pub async fn point_judge(
    sites: &Sites,
    images: &GuestImages,
    site: &Site,
    name: &str,
) -> anyhow::Result<Value> {
    let item = site.item().await?;
    let item_id = item["providerSpecificDetails"]["leewardItemId"].as_str();
    let folder = sites.folder.join("judge");
    std::fs::create_dir_all(&folder)?;
    let socket = folder.join("j.sock");
    let mut export = Command::new(sites.program())
        .args(["export", "--item", item_id.context("the item has no id")?])
        .args(["--point", name, "--store"])
        .arg(sites.up_folder().join("store"))
        .arg("--socket")
        .arg(&socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let look = || async { Ok(UnixStream::connect(&socket).await.ok().map(drop)) };
    wait_for("an export", Duration::from_secs(20), Duration::from_millis(10), look).await?;
    for (number, image) in ["boot.raw", "data.raw"].into_iter().enumerate() {
        let uri = format!("nbd+unix:///disk-{number}?socket={}", socket.display());
        let copied = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "raw", &uri])
            .arg(folder.join(image))
            .output()
            .await?;
        ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }
    export.kill().await?;
    let verdict = images.judge(&folder.join("boot.raw"), &folder.join("data.raw")).await?;
    std::fs::remove_dir_all(&folder)?;
    Ok(verdict)
}
