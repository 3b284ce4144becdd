//! Home to another host of the primary site than the one that was left, where the machine never
//! was.

use crate::{
    AT_TARGET,
    home::{away, stale_copy, unchanged},
    on_stage,
};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    api::job_wait,
    guest::{console_watch, disks_convert},
    judge::disks_judge,
    progress::wait_for,
    sites::{SPARE, processes_below},
    stage::{MACHINE, Running, Stage, StageOptions},
};
use serde_json::json;
use std::time::Duration;

const EVERY: Duration = Duration::from_millis(50);

/// F-111, F-125, F-140: the machine is created there, all of it arrives, and the one that was left
/// stays off and as it was, also when its host starts again.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_home_to_a_host_that_never_had_it_and_the_old_one_stays_off() {
    on_stage(StageOptions::default(), async |stage| {
        let instance = away(stage).await?;
        let stale = stale_copy(stage)?;
        stage.spare_join().await?;
        let described = stage.sites.spare_folder().join("machines").join(MACHINE);
        ensure!(!described.exists(), "the other host has the machine already");

        let details = json!({"leewardHost": SPARE, "dataSyncOption": "ForDownTime",
            "leewardWaitToComplete": false});
        let asked = json!({"failoverDirection": "RecoveryToPrimary",
            "providerSpecificDetails": details});
        // The config server may have heard of the host and not yet what it has.
        let job = wait_for("the other host to be known", stage.within(20), EVERY, || async {
            match stage.site.start("plannedFailover", asked.clone()).await {
                Err(error) if error.to_string().contains("LW-0305") => Ok(None),
                started => started.map(Some),
            }
        })
        .await?;
        let ended = job_wait(&stage.site.client, &job, stage.within(240)).await?;
        ensure!(ended["properties"]["state"] == "Succeeded", "{ended}");

        ensure!(described.join("machine.toml").exists(), "it was not created there");
        ensure!(at_spare(stage) == 1, "{} machines run there", at_spare(stage));
        let nowhere = Running { source: 0, target: 0 };
        ensure!(stage.running() == nowhere, "{:?} run beside it", stage.running());
        nothing_lost(stage, &instance).await?;

        stage.sites.host_kill()?;
        stage.sites.host_start(&stage.endpoint, None)?;
        stage.sites.joined_wait().await?;
        let refused = stage.sites.machine_start(MACHINE).await;
        let words = refused.err().context("the machine that was left was started")?.to_string();
        ensure!(words.contains("LW-0208"), "{words}");
        unchanged(stage, &stale)?;

        let job = stage.site.start("failoverCommit", json!({})).await?;
        job_wait(&stage.site.client, &job, stage.within(60)).await?;
        let job = stage.site.start("reProtect", json!({})).await?;
        job_wait(&stage.site.client, &job, stage.within(120)).await?;
        stage.protected().await?;
        stage.newest_judge().await?;
        ensure!(at_spare(stage) == 1 && stage.running() == nowhere, "{:?} run", stage.running());
        ensure!(stage.running() != AT_TARGET, "it runs at the recovery site");
        Ok(())
    })
    .await;
}

fn at_spare(stage: &Stage) -> usize {
    processes_below(&stage.sites.spare_folder(), "qemu-system").len()
}

/// What the machine finds at its new place is at least what it had written at the old one.
async fn nothing_lost(stage: &Stage, instance: &str) -> anyhow::Result<()> {
    let left = stage.sites.folder.join("left");
    let overlays = stage.sites.up_folder().join("instances").join(instance);
    disks_convert(&overlays, &left).await?;
    let verdict = disks_judge(&stage.images, &left).await?;
    ensure!(verdict["ok"] == true, "the disks that were left are bad: {verdict}");
    let records = verdict["last_b"].as_u64().context("the verdict names no record")?;
    let made = stage.instance().await?;
    let path = made["consolePath"].as_str().context("no console path")?;
    let console = stage.sites.spare_folder().join(path);
    wait_for("its console", stage.within(20), EVERY, || async {
        Ok(console.exists().then_some(()))
    })
    .await?;
    let (_, seen) = console_watch(&console, stage.within(60)).await?;
    let ledger = seen.ledger.context("the console shows no ledger")?;
    ensure!(ledger["ok"] == true, "the ledger inside the machine is bad: {ledger}");
    ensure!(ledger["last_a"].as_u64() >= Some(records), "{records} were written, found {ledger}");
    println!("home on another host with all {records} records");
    Ok(())
}
