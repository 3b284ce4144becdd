//! Planned failovers of a policy that goes on to the other direction by itself: out and home
//! again by two requests and nothing else.

use crate::{AT_SOURCE, AT_TARGET, on_stage};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    api::job_wait,
    guest::disks_convert,
    judge::{differing_blocks, point_copy},
    stage::{Stage, StageOptions},
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// F-084, F-086: nobody commits or reprotects, nothing is lost, and the item ends up protected
/// the other way, each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_reverses_brings_a_machine_out_and_home_protected_by_two_requests() {
    on_stage(StageOptions::default(), async |stage| {
        stage.booted().await?;
        stage.auto_reverse(true).await?;
        let before = jobs_of_reverse(stage).await?;

        planned(stage, "PrimaryToRecovery").await?;
        stage.running_wait(AT_TARGET, stage.within(20)).await?;
        let (out, home) = (stage.sites.up_folder(), stage.sites.host_folder());
        final_is(stage, "Recovery", &out, &stage.machine_folder()).await?;
        protected_at(stage, "Recovery").await?;
        stage.newest_judge_at(&home).await?;

        planned(stage, "RecoveryToPrimary").await?;
        stage.running_wait(AT_SOURCE, stage.within(20)).await?;
        let left = stage.sites.folder.join("left");
        disks_convert(&instance_folder(&out)?, &left).await?;
        final_is(stage, "Primary", &home, &left).await?;
        protected_at(stage, "Primary").await?;
        stage.newest_judge().await?;

        let made = jobs_of_reverse(stage).await? - before;
        ensure!(made == 2, "{made} reprotects were made by two planned failovers");
        Ok(())
    })
    .await;
}

async fn planned(stage: &Stage, direction: &str) -> anyhow::Result<()> {
    let asked = json!({"failoverDirection": direction, "providerSpecificDetails": {}});
    let job = stage.site.start("plannedFailover", asked).await?;
    let ended = job_wait(&stage.site.client, &job, stage.within(120)).await?;
    ensure!(ended["properties"]["state"] == "Succeeded", "{ended}");
    Ok(())
}

/// Waits until the machine, which lives at `site`, is replicated to the other one.
async fn protected_at(stage: &Stage, site: &str) -> anyhow::Result<()> {
    stage.protected().await?;
    let item = stage.site.item().await?;
    ensure!(item["activeLocation"] == site, "it is not live at {site}: {item}");
    let live = stage.running();
    ensure!(live == AT_SOURCE || live == AT_TARGET, "{live:?} run");
    Ok(())
}

/// The newest final point that `site` holds in the store of `folder` is, to the byte, what the
/// machine left on its disks, of which `left` has the images.
async fn final_is(stage: &Stage, site: &str, folder: &Path, left: &Path) -> anyhow::Result<()> {
    let points = stage.site.points().await?;
    let is_final = |point: &&Value| {
        let own = &point["properties"]["providerSpecificDetails"];
        own["leewardHeldAt"] == site && own["leewardKind"] == "Final"
    };
    let found = points.iter().find(is_final).with_context(|| format!("no final point: {points:?}"));
    let name = found?["name"].as_str().context("no name")?.to_owned();
    let copy = stage.sites.folder.join("final");
    point_copy(&stage.sites, &stage.site, &folder.join("store"), &name, &copy).await?;
    for image in ["boot.raw", "data.raw"] {
        let blocks = differing_blocks(&copy.join(image), &left.join(image))?;
        ensure!(blocks == 0, "{blocks} blocks of {image} are not what the machine had written");
    }
    Ok(std::fs::remove_dir_all(&copy)?)
}

/// The folder of the one machine that was made at a site.
fn instance_folder(site: &Path) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(site.join("instances"))?;
    let mut folders = entries.filter_map(Result::ok).map(|entry| entry.path());
    folders.find(|path| path.is_dir()).context("no machine was made there")
}

async fn jobs_of_reverse(stage: &Stage) -> anyhow::Result<usize> {
    let jobs = stage.site.client.list("replicationJobs").await?;
    let reverse = |job: &&Value| job["properties"]["scenarioName"] == "ReverseReplication";
    Ok(jobs.iter().filter(reverse).count())
}
