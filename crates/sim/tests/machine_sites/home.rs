//! The way home with real machines: reprotect interrupted, a guest that does not shut down, the
//! second disaster, migration.

use crate::{AT_SOURCE, AT_TARGET, on_stage};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    api::job_wait,
    judge::differing_blocks,
    progress::wait_for,
    sites::{kill, processes_below},
    stage::{Stage, StageOptions},
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

const EVERY: Duration = Duration::from_millis(50);
const DISKS: [&str; 2] = ["boot.raw", "data.raw"];

/// F-112, F-136, F-139: a reprotect that is cancelled, then one whose hosts are killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_reprotect_cancelled_and_killed_leaves_the_stale_disks_alone_and_goes_on() {
    on_stage(StageOptions { extra_disk_mib: 192, ..StageOptions::default() }, async |stage| {
        away(stage).await?;
        let stale = stale_copy(stage)?;

        let job = stage.site.start("reProtect", json!({})).await?;
        seeding(stage, &job).await?;
        stage.site.client.post(&format!("{job}/cancel"), &json!({})).await?;
        let ended = ended(stage, &job).await?;
        ensure!(ended == "Cancelled", "the cancelled reprotect ended as {ended}");
        stage.site.state_wait("UnplannedFailoverCommitted", stage.within(30)).await?;
        ensure!(stage.running() == AT_TARGET, "{:?} run", stage.running());
        unchanged(stage, &stale)?;

        let job = stage.site.start("reProtect", json!({})).await?;
        seeding(stage, &job).await?;
        stage.sites.host_kill()?;
        unchanged(stage, &stale)?;
        stage.sites.host_start(&stage.endpoint, None)?;
        let seen = stage.details().await?["leewardCopy"].clone();
        println!("killed in the seed; copy {seen}");
        stage.sites.up_kill()?;
        stage.sites.up_start().await?;
        job_wait(&stage.site.client, &job, stage.within(120)).await?;
        stage.protected().await?;
        ensure!(stage.running() == AT_TARGET, "{:?} run", stage.running());
        unchanged(stage, &stale)?;
        stage.newest_judge_at(&stage.sites.host_folder()).await?;
        Ok(())
    })
    .await;
}

/// F-086: nothing irreversible happens before the machine is off, and people are asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ignores_a_planned_shutdown_is_left_running_or_powered_off_by_word() {
    on_stage(StageOptions::default(), async |stage| {
        stage.booted().await?;
        stage.shutdown_timeout(3).await?;
        stage.workload().await?.ask("deaf").await?;
        let job = stage.site.start("plannedFailover", json!({})).await?;
        let asked = job_wait(&stage.site.client, &job, stage.within(60)).await?;
        ensure!(asked["properties"]["state"] == "Suspended", "nobody was asked: {asked}");
        ensure!(asked.to_string().contains("LW-0309"), "the question has no code: {asked}");
        ensure!(stage.running() == AT_SOURCE, "{:?} run", stage.running());

        stage.site.client.post(&format!("{job}/cancel"), &json!({})).await?;
        ensure!(ended(stage, &job).await? == "Cancelled", "the job was not cancelled");
        stage.protected().await?;
        ensure!(stage.running() == AT_SOURCE, "{:?} run", stage.running());

        let job = stage.site.start("plannedFailover", json!({})).await?;
        job_wait(&stage.site.client, &job, stage.within(60)).await?;
        let words = json!({"properties": {"comments": "power-off"}});
        stage.site.client.post(&format!("{job}/resume"), &words).await?;
        job_wait(&stage.site.client, &job, stage.within(120)).await?;
        stage.running_wait(AT_TARGET, stage.within(10)).await?;
        let (old, new) = (stage.source_judge().await?, stage.newest_judge().await?);
        println!("switched off at record {}; the point has {}", old["last_b"], new["last_b"]);
        ensure!(old["last_b"] == new["last_b"], "a record was lost by a planned failover");
        Ok(())
    })
    .await;
}

/// Decision 14: the live machine and its disks are gone in the middle of a reprotect.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_disaster_during_a_reprotect_is_answered_from_the_points_of_both_sides() {
    on_stage(StageOptions { extra_disk_mib: 192, ..StageOptions::default() }, async |stage| {
        let instance = away(stage).await?;
        stage.site.start("reProtect", json!({})).await?;
        copying(stage).await?;
        kill(processes_below(&stage.sites.up_folder(), "qemu-system"))?;
        let overlays = stage.sites.up_folder().join("instances").join(&instance);
        std::fs::remove_dir_all(overlays)?;

        let points = stage.site.points().await?;
        let own = |point: &Value| point["properties"]["providerSpecificDetails"].clone();
        let at = |site, point: &&Value| {
            own(point)["leewardHeldAt"] == site && own(point)["leewardOrigin"] == "Replicated"
        };
        let half = points.iter().find(|point| at("Primary", point));
        ensure!(half.is_none(), "a half-made copy is offered as a point: {half:?}");
        let newest = points.iter().find(|point| at("Recovery", point));
        let newest = newest.context("no replicated point is retained")?;
        let asked = json!({"providerSpecificDetails": {"recoveryPointId": newest["id"]}});
        let failover = stage.site.start("unplannedFailover", asked).await?;
        job_wait(&stage.site.client, &failover, stage.within(120)).await?;
        stage.running_wait(AT_TARGET, stage.within(20)).await?;
        let item = stage.site.item().await?;
        ensure!(item["protectionState"] != "Protected", "the way home pretends to be done: {item}");
        ensure!(item["activeLocation"] == "Recovery", "{item}");
        Ok(())
    })
    .await;
}

/// F-005
#[tokio::test(flavor = "multi_thread")]
async fn a_completed_migration_leaves_the_old_machine_off_and_whole_and_has_no_way_back() {
    on_stage(StageOptions::default(), async |stage| {
        stage.booted().await?;
        let job = stage.site.start("plannedFailover", json!({})).await?;
        job_wait(&stage.site.client, &job, stage.within(120)).await?;
        let stale = stale_copy(stage)?;
        let ending = json!({"disableProtectionReason": "MigrationComplete"});
        let job = stage.site.start("remove", ending).await?;
        job_wait(&stage.site.client, &job, stage.within(120)).await?;
        ensure!(stage.running() == AT_TARGET, "{:?} run", stage.running());
        unchanged(stage, &stale)?;

        let refused = stage.site.start("reProtect", json!({})).await;
        let words = refused.err().context("a migrated machine was protected back")?.to_string();
        ensure!(words.contains("LW-0111"), "{words}");
        stage.sites.host_kill()?;
        stage.sites.host_start(&stage.endpoint, None)?;
        let by_hand = stage.sites.machine_start("ledger01").await;
        ensure!(by_hand.is_err(), "the migrated machine's old self was started");
        ensure!(stage.running() == AT_TARGET, "{:?} run", stage.running());
        Ok(())
    })
    .await;
}

/// Fails over, commits, and waits until the machine holds its data; returns its instance's id.
pub(crate) async fn away(stage: &mut Stage) -> anyhow::Result<String> {
    stage.booted().await?;
    let (instance, _) = stage.failover("Required").await?;
    let id = instance["id"].as_str().context("no id")?.to_owned();
    let whole = wait_for("hydration", stage.within(120), EVERY, || async {
        let percent = stage.instance().await?["hydratedPercent"].as_f64().unwrap_or(0.0);
        Ok((percent >= 100.0).then_some(()))
    });
    whole.await?;
    let job = stage.site.start("failoverCommit", json!({})).await?;
    job_wait(&stage.site.client, &job, stage.within(60)).await?;
    Ok(id)
}

/// Waits until the stale disks are being read.
async fn seeding(stage: &Stage, job: &str) -> anyhow::Result<()> {
    wait_for("the seed", stage.within(60), Duration::from_millis(5), || async {
        let tasks = stage.site.client.get(job).await?["properties"]["tasks"].clone();
        let seed = tasks.as_array().into_iter().flatten();
        let seed = seed.into_iter().find(|task| task["name"] == "VmPrepareForReverseReplication");
        let running = seed.is_some_and(|task| task["state"] == "InProgress");
        Ok(running.then_some(()))
    })
    .await
}

/// Waits until the comparison of the live machine is under way.
async fn copying(stage: &Stage) -> anyhow::Result<()> {
    wait_for("the comparison", stage.within(120), Duration::from_millis(5), || async {
        let done = stage.details().await?["leewardCopy"]["doneBytes"].as_u64();
        let item = stage.site.item().await?;
        Ok((done.is_some() && item["protectionState"] != "Protected").then_some(()))
    })
    .await
}

async fn ended(stage: &Stage, job: &str) -> anyhow::Result<String> {
    wait_for("the job's end", stage.within(60), EVERY, || async {
        let job = stage.site.client.get(job).await?["properties"].clone();
        let over = !job["endTime"].is_null();
        Ok(over.then(|| job["state"].as_str().unwrap_or_default().to_owned()))
    })
    .await
}

/// Copies the primary site's images, to be compared later.
pub(crate) fn stale_copy(stage: &Stage) -> anyhow::Result<PathBuf> {
    let folder = stage.sites.folder.join("stale");
    std::fs::create_dir_all(&folder)?;
    for image in DISKS {
        let copied = std::process::Command::new("cp")
            .arg("--sparse=always")
            .arg(stage.machine_folder().join(image))
            .arg(folder.join(image))
            .status()?;
        ensure!(copied.success(), "could not copy {image}");
    }
    Ok(folder)
}

pub(crate) fn unchanged(stage: &Stage, copy: &Path) -> anyhow::Result<()> {
    for image in DISKS {
        let blocks = differing_blocks(&stage.machine_folder().join(image), &copy.join(image))?;
        ensure!(blocks == 0, "{blocks} blocks of the old {image} were changed");
    }
    Ok(())
}
