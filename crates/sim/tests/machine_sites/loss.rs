//! What a disaster costs, measured on the machine's own disks, against what was reported.

use crate::on_stage;
use anyhow::{Context as _, ensure};
use leeward_sim::demo::stage::{Stage, StageOptions};
use serde_json::Value;
use std::time::Duration;

/// The policy's interval.
const INTERVAL: Duration = Duration::from_secs(2);
/// Time between two records: a loss is measured from record to record.
const RECORD: f64 = 0.1;

/// When the machine is killed.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// So long after a point was seen committed.
    AfterPoint(Duration),
    /// While the next point is being made.
    InsideCut,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kill_costs_is_never_more_than_what_was_reported_at_any_phase_of_a_cycle() {
    on_stage(StageOptions::default(), async |stage| {
        let after = |ms| Phase::AfterPoint(Duration::from_millis(ms));
        let phases = [after(0), after(500), after(1_000), after(1_500), Phase::InsideCut];
        for (number, phase) in phases.into_iter().enumerate() {
            if number > 0 {
                stage.sites.host_start(&stage.endpoint, None)?;
                stage.source_start().await?;
                stage.protected().await?;
            }
            kill_and_judge(stage, phase).await.with_context(|| format!("{phase:?}"))?;
        }
        everything_dies_and_protection_goes_on(stage).await
    })
    .await;
}

async fn kill_and_judge(stage: &mut Stage, phase: Phase) -> anyhow::Result<()> {
    let point = stage.new_point(stage.within(30)).await?;
    let slowest = slowest_cycle(&stage.details().await?)?;
    match phase {
        Phase::AfterPoint(time) => tokio::time::sleep(time).await,
        Phase::InsideCut => {
            let cut_at: jiff::Timestamp = point["cutAt"].as_str().context("no time")?.parse()?;
            let passed = jiff::Timestamp::now().duration_since(cut_at).unsigned_abs();
            let middle = INTERVAL + Duration::from_secs_f64(slowest / 2.0);
            tokio::time::sleep(middle.saturating_sub(passed)).await;
        }
    }
    stage.sites.disaster()?;
    let reported = stage.details().await?["leewardRpoSeconds"].as_f64().context("no RPO")?;

    let (source, newest) = (stage.source_judge().await?, stage.newest_judge().await?);
    let wall = |verdict: &Value| verdict["last_wall_ns"].as_f64().context("no time of a record");
    let lost = (wall(&source)? - wall(&newest)?) / 1e9;
    println!("{phase:?}: {lost:.2} s lost, {reported} s reported, slowest cycle {slowest:.2} s");
    ensure!(lost <= reported, "{lost:.3} s were lost, but {reported} s reported");
    let bound = INTERVAL.as_secs_f64() + slowest + RECORD;
    ensure!(lost <= bound, "{lost:.3} s were lost, more than {bound:.3} s");
    Ok(())
}

/// The slowest of the last ten cycles, in seconds.
fn slowest_cycle(details: &Value) -> anyhow::Result<f64> {
    let cycles = details["leewardCycles"].as_array().context("no cycles")?;
    let times = cycles.iter().filter_map(|cycle| cycle["cycleMilliseconds"].as_f64());
    let slowest = times.fold(0.0, f64::max);
    ensure!(slowest > 0.0, "the cycles have no figures");
    Ok(slowest / 1e3)
}

/// The host and the machine are dead already; now the recovery site too.
async fn everything_dies_and_protection_goes_on(stage: &mut Stage) -> anyhow::Result<()> {
    stage.sites.up_kill()?;
    stage.sites.up_start().await?;
    stage.sites.host_start(&stage.endpoint, None)?;
    stage.source_start().await?;
    stage.protected().await?;
    stage.newest_judge().await?;
    Ok(())
}
