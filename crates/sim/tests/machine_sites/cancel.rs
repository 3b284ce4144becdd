//! Cancelling a failover whose source is alive, at every step of its job.

use crate::{AT_SOURCE, on_stage};
use anyhow::{Context as _, bail, ensure};
use leeward_sim::demo::{
    progress::wait_for,
    stage::{Stage, StageOptions},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Tasks as the API names them.
const SHUTDOWN: &str = "VmShutdownVmOnPrimary";
const START: &str = "VmFoStartVmOnSecondary";
const RECORD: &str = "VmCompleteFailover";

/// F-079: the item is protected again by itself, whatever the job had done.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_cancelled_at_any_step_leaves_one_machine_and_a_protected_item() {
    on_stage(StageOptions::default(), async |stage| {
        let mut hit = Vec::new();
        // Without a shutdown the source keeps running up to the last step but one.
        for step in [
            "VmUfoPrerequisitesCheck",
            "VmFenceSource",
            "VmChooseRecoveryPoint",
            "VmFailover",
            "VmPrepareVmOnSecondary",
            START,
            RECORD,
        ] {
            hit.push(cancel_at(stage, "NotRequired", step).await.context(step)?);
        }
        for step in [SHUTDOWN, "VmPrepareForUnPlannedFailover"] {
            // A guest in the middle of its boot does not hear the power button.
            stage.booted().await?;
            hit.push(cancel_at(stage, "Required", step).await.context(step)?);
        }
        hit.sort();
        hit.dedup();
        println!("steps that a cancel hit: {hit:?}");
        // The steps of some milliseconds may be over before a request is there.
        for step in [SHUTDOWN, "VmFailover", "VmPrepareVmOnSecondary", START] {
            ensure!(hit.iter().any(|one| one == step), "no cancel hit {step}: {hit:?}");
        }
        Ok(())
    })
    .await;
}

/// Cancels a failover as soon as `step` or a later one is at work; returns the step that it hit.
async fn cancel_at(stage: &mut Stage, source: &str, step: &str) -> anyhow::Result<String> {
    let job = stage.failover_start(source).await?;
    let every = Duration::from_millis(1);
    let client = &stage.site.client;
    let hit = wait_for(step, stage.within(60), every, || async {
        let job = client.get(&job).await?;
        ensure!(job["properties"]["endTime"].is_null(), "the job had ended");
        Ok(reached(&job, step))
    })
    .await;
    let hit = match hit {
        Ok(hit) => hit,
        // Too short to be seen: the job was over. That is a case too, but not of a cancel.
        Err(error) => {
            let job = client.get(&job).await?;
            ensure!(job["properties"]["state"] == "Succeeded", "{error}: {job}");
            stage.failover_cancel().await?;
            stage.running_wait(AT_SOURCE, stage.within(20)).await?;
            return Ok("ended".to_owned());
        }
    };
    let asked = Instant::now();
    client.post(&format!("{job}/cancel"), &json!({})).await?;
    let state = wait_for("the job's end", stage.within(60), every, || async {
        let job = client.get(&job).await?["properties"].clone();
        Ok((!job["endTime"].is_null()).then(|| job["state"].as_str().unwrap_or("").to_owned()))
    })
    .await?;
    match state.as_str() {
        "Cancelled" => {}
        // The last step was done when the cancel came.
        "Succeeded" if hit == RECORD || hit == START => {
            stage.failover_cancel().await?;
            stage.running_wait(AT_SOURCE, stage.within(20)).await?;
            return Ok("ended".to_owned());
        }
        state => bail!("the cancelled job ended as {state}"),
    }
    let ended = asked.elapsed().as_secs_f64();
    stage.site.state_wait("Protected", stage.within(60)).await?;
    stage.new_point(stage.within(60)).await?;
    let point = asked.elapsed().as_secs_f64();
    ensure!(stage.running() == AT_SOURCE, "{:?} run", stage.running());
    println!("{step}: hit {hit}; job ended {ended:.1} s, new point {point:.1} s after the cancel");
    Ok(hit)
}

/// The first task that has not ended, when it is `step` or comes later.
fn reached(job: &Value, step: &str) -> Option<String> {
    let tasks = job["properties"]["tasks"].as_array()?;
    let at = tasks.iter().position(|task| task["name"] == step)?;
    let now = tasks.iter().position(|task| task["endTime"].is_null())?;
    let begun = !tasks[now]["startTime"].is_null() || now > 0;
    (now >= at && begun).then(|| tasks[now]["name"].as_str().unwrap_or_default().to_owned())
}
