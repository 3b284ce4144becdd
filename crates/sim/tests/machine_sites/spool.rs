//! A store that is cut off for longer than the spool has room, and the guest's writes meanwhile.

use crate::{IO_MS_MAX, on_stage};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    progress::wait_for,
    stage::{Stage, StageOptions},
};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};

/// Room of the spool: some points of what the guest's ledger writes in an interval.
const SPOOL_BYTES: u64 = 4 << 20;

/// F-015: the link is cut without a word, points wait, the spool is full, the store's process is
/// gone, and comes back: whatever of it the guest writes in, it never waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_never_waits_for_a_spool_that_fills_is_full_or_is_sent() {
    let words = vec!["--spool-bytes".to_owned(), SPOOL_BYTES.to_string()];
    let options = StageOptions { host_words: words, ..StageOptions::default() };
    on_stage(options, async |stage| {
        let mut workload = stage.workload().await?;
        let before = workload.ask("reset").await?;

        stage.sites.up_silence()?;
        // A store that says nothing is given up after 30 s.
        let every = Duration::from_millis(100);
        let deadline = Duration::from_secs(40) + stage.within(20);
        wait_for("points in the spool", deadline, every, || async {
            Ok((deltas(&stage.sites.host_folder())? > 0).then_some(()))
        })
        .await?;
        let filling = workload.ask("state").await?;
        wait_for("LW-0604 in the host's log", stage.within(90), every, || async {
            let log = fs::read_to_string(stage.sites.folder.join("host.log"))?;
            Ok(log.contains("LW-0604").then_some(()))
        })
        .await?;
        stage.sites.up_kill()?;
        let full = workload.ask("state").await?;
        records_from(&full, &mut workload, 30.0, stage).await?;
        let waited = deltas(&stage.sites.host_folder())?;

        stage.sites.up_start().await?;
        stage.new_point(stage.within(60)).await?;
        wait_for("an empty spool", stage.within(30), every, || async {
            Ok((deltas(&stage.sites.host_folder())? == 0).then_some(()))
        })
        .await?;
        let after = workload.ask("state").await?;
        stage.newest_judge().await?;
        let slowest = |state: &Value| figure(state, "max_io_ms");
        println!(
            "slowest write: {:.0} ms while points began to wait, {:.0} ms when the spool was full \
             with {waited} points, {:.0} ms in all",
            slowest(&filling)?,
            slowest(&full)?,
            slowest(&after)?
        );
        let records = figure(&after, "seq_b")? - figure(&before, "seq_b")?;
        ensure!(records > 100.0, "the guest wrote only {records} records");
        let slowest = slowest(&after)?;
        ensure!(slowest < IO_MS_MAX, "a write of the guest took {slowest} ms");
        Ok(())
    })
    .await;
}

/// Waits until the guest has written so many records more.
async fn records_from(
    before: &Value,
    workload: &mut leeward_sim::demo::guest::Workload,
    more: f64,
    stage: &Stage,
) -> anyhow::Result<()> {
    let wanted = figure(before, "seq_b")? + more;
    let end = tokio::time::Instant::now() + stage.within(30);
    while figure(&workload.ask("state").await?, "seq_b")? < wanted {
        ensure!(tokio::time::Instant::now() < end, "the guest writes no more");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn figure(state: &Value, name: &str) -> anyhow::Result<f64> {
    state[name].as_f64().context("no such figure")
}

/// Points that wait below a host's folder.
fn deltas(host: &Path) -> anyhow::Result<usize> {
    let mut deltas = 0;
    for item in fs::read_dir(host.join("items"))? {
        let Ok(files) = fs::read_dir(item?.path().join("spool")) else { continue };
        for file in files {
            deltas += usize::from(file?.file_name().to_string_lossy().starts_with("delta-"));
        }
    }
    Ok(deltas)
}
