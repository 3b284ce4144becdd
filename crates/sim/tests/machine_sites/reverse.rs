//! Planned failovers of a policy that goes on to the other direction by itself: out and home
//! again by two requests and nothing else.

use crate::{AT_SOURCE, AT_TARGET, on_stage};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    api::job_wait,
    judge::{disks_judge, point_copy},
    stage::{Stage, StageOptions},
};
use serde_json::{Value, json};
use std::path::Path;

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
        let left = stage.source_judge().await?["last_b"].as_u64().context("no record")?;
        let sent = final_judge(stage, "Recovery", &stage.sites.up_folder()).await?;
        ensure!(sent == left, "{left} records were left, the final point has {sent}");
        protected_at(stage, "Recovery").await?;
        let home = stage.sites.host_folder();
        let verdict = stage.newest_judge_at(&home).await?;
        ensure!(verdict["last_b"].as_u64() >= Some(left), "records are missing: {verdict}");

        planned(stage, "RecoveryToPrimary").await?;
        stage.running_wait(AT_SOURCE, stage.within(20)).await?;
        final_judge(stage, "Primary", &home).await?;
        protected_at(stage, "Primary").await?;
        let verdict = stage.newest_judge().await?;
        ensure!(verdict["last_b"].as_u64() >= Some(left), "records are missing: {verdict}");

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

/// The last record of the newest final point that `site` holds in the store of `folder`.
async fn final_judge(stage: &Stage, site: &str, folder: &Path) -> anyhow::Result<u64> {
    let points = stage.site.points().await?;
    let is_final = |point: &&Value| {
        let own = &point["properties"]["providerSpecificDetails"];
        own["leewardHeldAt"] == site && own["leewardKind"] == "Final"
    };
    let found = points.iter().find(is_final).with_context(|| format!("no final point: {points:?}"));
    let name = found?["name"].as_str().context("no name")?.to_owned();
    let copy = stage.sites.folder.join("final");
    point_copy(&stage.sites, &stage.site, &folder.join("store"), &name, &copy).await?;
    let verdict = disks_judge(&stage.images, &copy).await?;
    std::fs::remove_dir_all(&copy)?;
    ensure!(verdict["ok"] == true, "the final point is bad: {verdict}");
    verdict["last_b"].as_u64().context("the verdict names no record")
}

async fn jobs_of_reverse(stage: &Stage) -> anyhow::Result<usize> {
    let jobs = stage.site.client.list("replicationJobs").await?;
    let reverse = |job: &&Value| job["properties"]["scenarioName"] == "ReverseReplication";
    Ok(jobs.iter().filter(reverse).count())
}
