//! Processes that are killed in the middle of their work and started again.

use crate::{AT_SOURCE, AT_TARGET, on_stage};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    api::job_wait,
    guest::{console_read, console_watch},
    progress::wait_for,
    sites::{kill, processes_below},
    stage::{Stage, StageOptions},
};
use std::{
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::process::Command;

/// When the config server is killed.
#[derive(Clone, Copy, Debug)]
enum At {
    /// As soon as the failover was accepted.
    Acceptance,
    /// When the new machine's disks exist.
    Overlay,
    /// When its QEMU runs, its guest not yet or only just.
    Prepared,
    /// When its kernel has written its first line.
    Running,
}

/// F-079
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_whose_config_server_is_killed_at_any_moment_finishes_with_one_machine() {
    on_stage(StageOptions::default(), async |stage| {
        for at in [At::Acceptance, At::Overlay, At::Prepared, At::Running] {
            kill_in_failover(stage, at).await.with_context(|| format!("{at:?}"))?;
            stage.failover_cancel().await?;
            stage.running_wait(AT_SOURCE, stage.within(20)).await?;
        }
        Ok(())
    })
    .await;
}

async fn kill_in_failover(stage: &mut Stage, at: At) -> anyhow::Result<()> {
    let folders_before = instance_folders(stage);
    let job = stage.failover_start("NotRequired").await?;
    let look = || {
        let new = || instance_folders(stage).into_iter().find(|one| !folders_before.contains(one));
        let file = |name: &str| new().map(|folder| folder.join(name));
        match at {
            At::Acceptance => true,
            At::Overlay => file("disk-0.qcow2").is_some_and(|path| path.exists()),
            At::Prepared => stage.running().target > 0,
            At::Running => new()
                .and_then(|folder| find(&folder, "console.log"))
                .is_some_and(|console| std::fs::metadata(console).is_ok_and(|m| m.len() > 0)),
        }
    };
    let every = Duration::from_millis(2);
    wait_for("the moment", stage.within(30), every, || async { Ok(look().then_some(())) }).await?;
    stage.sites.up_kill()?;
    let left = stage.running();

    let begun = Instant::now();
    stage.sites.up_start().await?;
    job_wait(&stage.site.client, &job, stage.within(60)).await?;
    println!("{at:?}: killed with {left:?}; done {:.1} s after", begun.elapsed().as_secs_f64());
    let item = stage.site.item().await?;
    ensure!(item["protectionState"] == "UnplannedFailoverCommitPendingStatesBegin", "{item}");
    ensure!(stage.running() == AT_TARGET, "{:?} run", stage.running());
    let instance = stage.instance().await?;
    let (_, seen) = console_watch(&stage.instance_console(&instance)?, stage.within(60)).await?;
    ensure!(seen.ledger.is_some_and(|ledger| ledger["ok"] == true), "the ledger is bad");
    ensure!(stage.running() == AT_TARGET, "{:?} run", stage.running());
    Ok(())
}

fn instance_folders(stage: &Stage) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(stage.sites.up_folder().join("instances"));
    entries.into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path()).collect()
}

fn find(folder: &std::path::Path, name: &str) -> Option<PathBuf> {
    Some(folder.join(name)).filter(|path| path.exists())
}

/// MiB of random bytes on the third disk.
const EXTRA_MIB: u32 = 512;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_killed_in_the_first_copy_or_in_a_point_goes_on_without_copying_again() {
    let options =
        StageOptions { extra_disk_mib: EXTRA_MIB, unprotected: true, ..StageOptions::default() };
    on_stage(options, async |stage| {
        let whole = allocated(stage)?;
        let machines = processes_below(&stage.sites.host_folder(), "qemu-system");
        stage.protect().await?;
        let sent = || async {
            let sent = stage.details().await?["leewardSentBytes"].as_u64().unwrap_or_default();
            Ok((sent * 5 > whole * 2).then_some(sent))
        };
        let every = Duration::from_millis(5);
        let before = wait_for("two fifths of the copy", stage.within(60), every, sent).await?;
        let state = stage.site.item().await?["protectionState"].clone();
        ensure!(state != "Protected", "the first copy was over before the kill");
        stage.sites.host_kill()?;
        stage.sites.host_start(&stage.endpoint, None)?;
        stage.protected().await?;

        let after = sent_bytes(stage).await?;
        println!("first copy: {before} B at the kill, {after} B in all, of {whole} B");
        ensure!(after * 5 < whole * 6, "{after} B were sent for {whole} B");
        for delay in [0, 20, 60] {
            kill_in_point(stage, Duration::from_millis(delay), whole).await?;
        }
        ensure!(
            processes_below(&stage.sites.host_folder(), "qemu-system") == machines,
            "the machine was touched"
        );
        stage.newest_judge().await?;
        Ok(())
    })
    .await;
}

async fn sent_bytes(stage: &Stage) -> anyhow::Result<u64> {
    stage.details().await?["leewardSentBytes"].as_u64().context("no figure of bytes sent")
}

/// Kills the host `delay` after the next cut was due.
async fn kill_in_point(stage: &mut Stage, delay: Duration, whole: u64) -> anyhow::Result<()> {
    let point = stage.new_point(stage.within(30)).await?;
    let cut_at: jiff::Timestamp = point["cutAt"].as_str().context("no time")?.parse()?;
    let passed = jiff::Timestamp::now().duration_since(cut_at).unsigned_abs();
    tokio::time::sleep((Duration::from_secs(2) + delay).saturating_sub(passed)).await;
    stage.sites.host_kill()?;
    let before = sent_bytes(stage).await?;
    stage.sites.host_start(&stage.endpoint, None)?;

    stage.new_point(stage.within(30)).await?;
    let item = stage.site.item().await?;
    ensure!(item["protectionState"] == "Protected", "{}", item["protectionState"]);
    let sent = sent_bytes(stage).await?.saturating_sub(before);
    println!("killed {delay:?} into a point: {sent} B sent until the next one");
    ensure!(sent * 10 < whole, "{sent} B were sent after a kill");
    Ok(())
}

/// Bytes allocated in the machine's images.
fn allocated(stage: &Stage) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for image in ["boot.raw", "data.raw", "extra.raw"] {
        bytes += std::fs::metadata(stage.machine_folder().join(image))?.blocks() * 512;
    }
    Ok(bytes)
}

/// For how long the export is killed again and again.
const EXPORT_KILLS: Duration = Duration::from_secs(60);

/// Hydration is held back, so that the machine needs its export all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_survives_the_death_of_its_export_again_and_again_and_then_of_everything() {
    let throttled = |bytes: u64| vec![format!("--hydration-bytes-per-second={bytes}")];
    let options = StageOptions { up_words: throttled(100_000), ..StageOptions::default() };
    on_stage(options, async |stage| {
        stage.failover("NotRequired").await?;
        let instance = stage.instance().await?;
        let console = stage.instance_console(&instance)?;
        let machines = processes_below(&stage.sites.up_folder(), "qemu-system");
        let kills = kill_exports(stage).await?;
        ensure!(kills >= 20, "the export was killed only {kills} times");
        let percent = stage.instance().await?["hydratedPercent"].as_f64().unwrap_or(100.0);
        println!("{kills} kills; hydrated {percent} %");
        ensure!(percent < 100.0, "the machine did not need its export any more");
        ensure!(
            processes_below(&stage.sites.up_folder(), "qemu-system") == machines,
            "the machine was started again"
        );
        let (_, seen) = console_watch(&console, stage.within(60)).await?;
        no_error(&console)?;
        let first = seen.first.context("no new record")?;

        kill_everything(stage)?;
        stage.sites.up_words = throttled(0);
        stage.sites.up_start().await?;
        stage.sites.host_start(&stage.endpoint, None)?;
        stage.running_wait(AT_TARGET, stage.within(30)).await?;
        let again = first_after(&console, first, stage.within(60)).await?;
        println!("records went on at {first}, and at {again} after everything was killed");
        let item = stage.site.item().await?;
        ensure!(item["protectionState"] == "UnplannedFailoverCommitPendingStatesBegin", "{item}");
        hydrated(stage).await?;
        no_error(&console)?;
        kill_everything(stage)?;
        let last = judge_overlays(stage, &console).await?;
        ensure!(last >= again, "only {last} records are on the disks");
        Ok(())
    })
    .await;
}

/// Kills the export whenever it answers again; returns how often.
async fn kill_exports(stage: &Stage) -> anyhow::Result<u32> {
    let (begun, mut kills) = (Instant::now(), 0);
    while begun.elapsed() < EXPORT_KILLS {
        let exports = processes_below(&stage.sites.up_folder().join("run"), "leeward");
        kills += exports.len() as u32;
        kill(exports)?;
        // Long enough for the machine to get on a little before the next one.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }
    Ok(kills)
}

fn no_error(console: &std::path::Path) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(&std::fs::read(console)?).into_owned();
    let bad = |line: &&str| line.contains("LEDGER-ERROR") || line.contains("I/O error");
    let found = text.lines().find(bad);
    ensure!(found.is_none(), "the guest saw an error: {found:?}");
    Ok(())
}

fn kill_everything(stage: &mut Stage) -> anyhow::Result<()> {
    stage.sites.host_kill()?;
    stage.sites.up_kill()?;
    kill(processes_below(&stage.sites.folder, ""))
}

/// The first new record of a boot that goes on after record `before`.
async fn first_after(
    console: &std::path::Path,
    before: u64,
    deadline: Duration,
) -> anyhow::Result<u64> {
    wait_for("records after a new start", deadline, Duration::from_millis(50), || async {
        let seen = console_read(console);
        let good = seen.ledger.is_some_and(|ledger| ledger["ok"] == true);
        Ok(seen.first.filter(|first| good && *first > before))
    })
    .await
}

async fn hydrated(stage: &Stage) -> anyhow::Result<()> {
    wait_for("hydration", stage.within(60), Duration::from_millis(100), || async {
        let percent = stage.instance().await?["hydratedPercent"].as_f64();
        Ok(percent.filter(|percent| *percent >= 100.0).map(drop))
    })
    .await
}

/// Judges a machine's own disks, which lean on nothing any more; returns the last record.
async fn judge_overlays(stage: &Stage, console: &std::path::Path) -> anyhow::Result<u64> {
    let folder = console.parent().context("a console has a folder")?;
    let out = stage.sites.folder.join("overlays");
    std::fs::create_dir_all(&out)?;
    for (number, image) in ["boot.raw", "data.raw"].into_iter().enumerate() {
        let overlay = folder.join(format!("disk-{number}.qcow2"));
        let copied = Command::new("qemu-img")
            .args(["convert", "-O", "raw"])
            .args([overlay, out.join(image)])
            .output()
            .await?;
        ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }
    let verdict = stage.images.judge(&out.join("boot.raw"), &out.join("data.raw")).await?;
    ensure!(verdict["ok"] == true, "the machine's disks are bad: {verdict}");
    verdict["last_b"].as_u64().context("the verdict names no record")
}
