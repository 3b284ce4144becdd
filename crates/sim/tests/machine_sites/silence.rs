//! A source that falls silent without closing anything, as behind a link that is cut.

use crate::{AT_TARGET, on_stage};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    progress::wait_for,
    sites::processes_below,
    stage::{Stage, StageOptions},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_falls_silent_is_found_dead_and_does_not_hold_up_its_failover() {
    on_stage(StageOptions::default(), async |stage| {
        // Silent from the moment at which the failover is accepted, its machine as well.
        machines_signal(stage, Signal::STOP)?;
        stage.sites.host_signal(Signal::STOP)?;
        let seconds = failover_without_shutdown(stage).await?;
        println!("silent at acceptance: runs after {seconds:.2} s");
        ensure!(seconds < stage.within(10).as_secs_f64(), "it ran after {seconds:.2} s");
        machines_signal(stage, Signal::CONT)?;
        stage.sites.host_signal(Signal::CONT)?;
        stage.running_wait(AT_TARGET, stage.within(20)).await?;
        stage.failover_cancel().await?;

        // Silent for as long as it takes to be found dead; its machine runs on.
        let begun = Instant::now();
        stage.sites.host_signal(Signal::STOP)?;
        let every = Duration::from_millis(20);
        wait_for("the host's being found dead", stage.within(10), every, || async {
            Ok((stage.details().await?["leewardSourceConnected"] == false).then_some(()))
        })
        .await?;
        let found = begun.elapsed().as_secs_f64();
        let seconds = failover_without_shutdown(stage).await?;
        println!("found dead after {found:.2} s; then runs after {seconds:.2} s");
        ensure!(found < 4.0, "it was found dead after {found:.2} s");
        ensure!(seconds < stage.within(6).as_secs_f64(), "it ran after {seconds:.2} s");
        stage.sites.host_signal(Signal::CONT)?;
        stage.running_wait(AT_TARGET, stage.within(20)).await
    })
    .await;
}

/// Fails over, first trying the shutdown; checks that it was skipped. Seconds until it ran.
async fn failover_without_shutdown(stage: &Stage) -> anyhow::Result<f64> {
    let (_, seconds) = stage.failover("Required").await?;
    let jobs = stage.site.client.list("replicationJobs").await?;
    let newest = jobs.iter().find(|job| job["properties"]["scenarioName"] == "UnplannedFailover");
    let id = newest.and_then(|job| job["id"].as_str()).context("there is no job")?;
    let job = stage.site.client.get(id).await?;
    let tasks = job["properties"]["tasks"].as_array().cloned().unwrap_or_default();
    let task = tasks.iter().find(|task| task["name"] == "VmShutdownVmOnPrimary");
    let task = task.cloned().unwrap_or(Value::Null);
    let code = &task["errors"][0]["serviceErrorDetails"]["code"];
    ensure!(code == "LW-0302", "the shutdown was not skipped for the source's silence: {task}");
    Ok(seconds)
}

fn machines_signal(stage: &Stage, signal: Signal) -> anyhow::Result<()> {
    for pid in processes_below(&stage.sites.host_folder(), "qemu-system") {
        let pid = Pid::from_raw(pid as i32).context("no process has the number 0")?;
        kill_process(pid, signal)?;
    }
    Ok(())
}
