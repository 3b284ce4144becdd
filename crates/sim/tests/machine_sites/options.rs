//! Home by one request straight from a commit, with both options of what is sent before the
//! machine is off.

use crate::{
    AT_SOURCE, AT_TARGET,
    home::{away, stale_copy, unchanged},
    on_stage,
};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    api::job_wait,
    guest::disks_convert,
    judge::{differing_blocks, disks_judge, point_copy},
    progress::wait_for,
    stage::{Stage, StageOptions},
};
use serde_json::{Value, json};
use std::time::Duration;

const EVERY: Duration = Duration::from_millis(50);

/// Judges what the machine left behind, and compares it with the point that it went on from.
async fn nothing_lost(stage: &Stage, instance: &str) -> anyhow::Result<()> {
    let left = stage.sites.folder.join("left");
    let overlays = stage.sites.up_folder().join("instances").join(instance);
    disks_convert(&overlays, &left).await?;
    let verdict = disks_judge(&stage.images, &left).await?;
    ensure!(verdict["ok"] == true, "the disks that were left are bad: {verdict}");
    let newest = stage.details().await?["leewardNewestPoint"].clone();
    let id = newest["recoveryPointId"].as_str().context("there is no point")?;
    let point = stage.sites.folder.join("final");
    let (store, name) = (stage.sites.host_folder().join("store"), id.rsplit('/').next());
    let name = name.unwrap_or_default();
    point_copy(&stage.sites, &stage.site, &store, name, &point).await?;
    for image in ["boot.raw", "data.raw"] {
        let blocks = differing_blocks(&left.join(image), &point.join(image))?;
        ensure!(blocks == 0, "{blocks} blocks of {image} are not what the machine had written");
    }
    println!("home with all {} records", verdict["last_b"]);
    Ok(())
}

/// Asks for the planned failover and waits for its end; returns the job.
async fn home(stage: &Stage, option: &str) -> anyhow::Result<Value> {
    let asked = json!({"failoverDirection": "RecoveryToPrimary", "providerSpecificDetails":
                       {"dataSyncOption": option, "leewardWaitToComplete": false}});
    let job = stage.site.start("plannedFailover", asked).await?;
    let ended = job_wait(&stage.site.client, &job, stage.within(240)).await?;
    ensure!(ended["properties"]["state"] == "Succeeded", "{ended}");
    stage.running_wait(AT_SOURCE, stage.within(20)).await?;
    let item = stage.site.item().await?;
    ensure!(item["activeLocation"] == "Primary", "{item}");
    Ok(ended["properties"].clone())
}

/// Bytes that the estimates name, synchronized beforehand first, once they are as `wanted`: what
/// the hosts see of disks is some seconds old.
async fn estimated(stage: &Stage, wanted: impl Fn([u64; 2]) -> bool) -> anyhow::Result<[u64; 2]> {
    wait_for("the estimate", stage.within(30), EVERY, || async {
        let found = stage.details().await?["leewardDataSync"].clone();
        let bytes = |index: usize| found["options"][index]["bytes"].as_u64();
        let bytes = bytes(0).zip(bytes(1)).map(|(first, second)| [first, second]);
        let told = found["options"][1]["basis"].as_str().unwrap_or_default();
        let told = told.starts_with("what its disks hold");
        let there = bytes.filter(|bytes| told && wanted(*bytes));
        there.iter().for_each(|_| println!("estimate: {found}"));
        Ok(there)
    })
    .await
}

fn task_state(job: &Value, name: &str) -> Option<String> {
    let task = job["tasks"].as_array()?.iter().find(|task| task["name"] == name)?;
    Some(task["stateDescription"].as_str()?.to_owned())
}

/// F-109, F-140: the old disks are gone, and all of it is copied while the machine is off.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_old_disks_are_gone_is_copied_home_while_it_is_off() {
    on_stage(StageOptions::default(), async |stage| {
        let instance = away(stage).await?;
        for image in ["boot.raw", "data.raw"] {
            std::fs::remove_file(stage.machine_folder().join(image))?;
        }
        let [_, whole] = estimated(stage, |[some, whole]| some == whole).await?;

        let job = home(stage, "ForSynchronization").await?;

        let skipped = task_state(&job, "VmSynchronizeBeforeShutdown");
        ensure!(skipped.as_deref() == Some("Skipped"), "{job}");
        nothing_lost(stage, &instance).await?;
        let sent = stage.details().await?["leewardSentBytes"].as_u64().context("no figure")?;
        println!("sent {sent} bytes of {whole} estimated");
        ensure!(sent > 0 && sent <= whole + whole / 10, "{sent} bytes for {whole}");
        Ok(())
    })
    .await;
}

/// F-108, F-110: straight from the commit, compared with the old disks while the machine runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_committed_machine_goes_home_by_one_request_and_sends_what_differs() {
    on_stage(StageOptions::default(), async |stage| {
        let instance = away(stage).await?;
        let stale = stale_copy(stage)?;
        let [changed, whole] = estimated(stage, |[some, whole]| 0 < some && some < whole).await?;
        ensure!(stage.running() == AT_TARGET, "{:?} run", stage.running());

        home(stage, "ForDownTime").await?;

        nothing_lost(stage, &instance).await?;
        unchanged(stage, &stale)?;
        let sent = stage.details().await?["leewardSentBytes"].as_u64().context("no figure")?;
        println!("sent {sent} bytes of {changed} estimated");
        ensure!(sent < whole, "{sent} bytes were sent, as many as a full copy has");
        Ok(())
    })
    .await;
}
