//! A recovery site whose disk is full.

use crate::{IO_MS_MAX, on_stage};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    progress::wait_for,
    stage::{Stage, StageOptions},
};
use serde_json::Value;
use std::{fs::File, io::Write as _, path::Path, time::Duration};

/// MiB of the recovery site's file system.
const DISK_MIB: u32 = 160;

/// Needs root for a file system of its own; says so and proves nothing without.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_at_the_target_pauses_replication_with_a_word_and_never_the_guest() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: mounting a small file system needs root");
        return;
    }
    let options = StageOptions { up_disk_mib: DISK_MIB, ..StageOptions::default() };
    on_stage(options, async |stage| {
        let mut workload = stage.workload().await?;
        let before = workload.ask("reset").await?;
        let filler = stage.sites.up_folder().join("filler");
        fill(&filler)?;
        let every = Duration::from_millis(200);
        wait_for("LW-0401 on the item", stage.within(60), every, || async {
            // Put back at once whatever the product frees: the disk stays full.
            fill(&filler)?;
            Ok(says_full(stage).await?.then_some(()))
        })
        .await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        ensure!(says_full(stage).await?, "the item says no more that the disk is full");
        let full = workload.ask("state").await?;

        std::fs::remove_file(&filler)?;
        stage.new_point(stage.within(60)).await?;
        wait_for("a healthy item", stage.within(30), every, || async {
            Ok((!says_full(stage).await?).then_some(()))
        })
        .await?;
        let after = workload.ask("state").await?;
        stage.newest_judge().await?;
        let number = |state: &Value, name: &str| state[name].as_f64().context("no such figure");
        let (records, slowest) =
            (number(&full, "seq_b")? - number(&before, "seq_b")?, number(&after, "max_io_ms")?);
        println!("{records} records while the disk was full; slowest write {slowest:.0} ms");
        ensure!(records > 50.0, "the guest wrote only {records} records");
        ensure!(slowest < IO_MS_MAX, "a write of the guest took {slowest} ms");
        Ok(())
    })
    .await;
}

async fn says_full(stage: &Stage) -> anyhow::Result<bool> {
    let item = stage.site.item().await?;
    let mut errors = item["healthErrors"].as_array().into_iter().flatten();
    Ok(errors.any(|error| error["errorCode"] == "LW-0401"))
}

/// Writes to `path` until the file system takes no more.
fn fill(path: &Path) -> anyhow::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    for block in [vec![1; 1 << 20], vec![1; 4096]] {
        while file.write_all(&block).is_ok() {}
    }
    Ok(())
}
