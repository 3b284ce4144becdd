//! The old machine after a failover, and the right to start a protected machine.

use crate::{AT_SOURCE, AT_TARGET, on_stage};
use anyhow::{Context as _, ensure};
use leeward_sim::demo::{
    progress::wait_for,
    stage::{MACHINE, Running, Stage, StageOptions},
};
use serde_json::Value;
use std::time::{Duration, Instant};

/// F-070
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_machine_is_off_before_anything_else_and_its_work_is_kept_by_name() {
    on_stage(StageOptions::default(), async |stage| {
        stage.sites.host_kill()?;
        stage.failover("Required").await?;
        ensure!(stage.running() == Running { source: 1, target: 1 }, "{:?}", stage.running());
        let item = stage.site.item().await?;
        ensure!(has_code(&item, "LW-0304"), "two machines and no word of it: {item}");
        let before = stage.details().await?["leewardNewestPoint"].clone();

        stage.sites.host_start(&stage.endpoint, None)?;
        let returned = Instant::now();
        stage.running_wait(AT_TARGET, stage.within(10)).await?;
        println!("the old machine was off {:.2} s later", returned.elapsed().as_secs_f64());
        stays(stage, AT_TARGET, Duration::from_secs(3)).await?;

        let details = stage.details().await?;
        let note = &details["leewardDivergent"];
        let name = note["name"].as_str().context("its work has no name")?;
        ensure!(name.starts_with("divergent-"), "{note}");
        ensure!(note["dirtyBytes"].as_u64() > Some(0), "{note}");
        ensure!(details["leewardNewestPoint"] == before, "a point of the old epoch was taken");
        ensure!(details["leewardSourceState"]["state"] == "ConfirmedOff", "{details}");
        let (old, newest) = (stage.source_judge().await?, stage.newest_judge().await?);
        ensure!(old["last_b"].as_u64() > newest["last_b"].as_u64(), "its later records are gone");
        refused(stage).await?;

        take_back(stage).await
    })
    .await;
}

/// The failover is taken back: the target's work is kept, the source runs and is protected.
async fn take_back(stage: &mut Stage) -> anyhow::Result<()> {
    let epoch = stage.details().await?["leewardEpoch"].as_u64();
    stage.failover_cancel().await?;

    stage.running_wait(AT_SOURCE, stage.within(10)).await?;
    let points = stage.site.points().await?;
    let kept = points.iter().map(|point| &point["properties"]["providerSpecificDetails"]);
    let kept = kept.filter(|own| own["leewardOrigin"] == "Divergent");
    let names: Vec<_> = kept.filter_map(|own| own["leewardName"].as_str()).collect();
    ensure!(names.len() == 1 && names[0].starts_with("abandoned-"), "{names:?}");
    ensure!(stage.details().await?["leewardEpoch"].as_u64() > epoch, "the epoch is the old one");
    stage.newest_judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_in_a_new_boot_starts_no_protected_machine_before_it_has_reached_the_server() {
    on_stage(StageOptions::default(), async |stage| {
        let description = stage.machine_folder().join("machine.toml");
        let text = std::fs::read_to_string(&description)?;
        std::fs::write(&description, format!("autostart = true\n{text}"))?;
        stage.sites.disaster()?;
        stage.sites.up_kill()?;
        let boot = stage.sites.folder.join("boot_id");
        std::fs::write(&boot, "0f2c1c7e-2b44-4a3e-9a83-6d0f3f3f9f01\n")?;
        stage.sites.boot_id = Some(boot);

        stage.sites.host_start(&stage.endpoint, None)?;
        let log = stage.sites.folder.join("host.log");
        wait_for("the refusal", stage.within(20), Duration::from_millis(50), || async {
            let text = std::fs::read_to_string(&log)?;
            Ok(text.contains("LW-0208").then_some(()))
        })
        .await?;
        stays(stage, Running { source: 0, target: 0 }, Duration::from_secs(2)).await?;
        refused(stage).await?;
        stage.sites.machine_start_with(MACHINE, &["--i-am-sure"]).await?;
        ensure!(stage.running() == AT_SOURCE, "{:?} run", stage.running());

        stage.sites.up_start().await?;
        stage.protected().await?;
        stays(stage, AT_SOURCE, Duration::from_secs(1)).await
    })
    .await;
}

/// `leeward host start` refuses for want of a permit.
async fn refused(stage: &Stage) -> anyhow::Result<()> {
    let refused = stage.sites.machine_start(MACHINE).await;
    let words = refused.err().context("the machine was started without a permit")?.to_string();
    ensure!(words.contains("LW-0208"), "{words}");
    Ok(())
}

fn has_code(item: &Value, code: &str) -> bool {
    let errors = item["healthErrors"].as_array().into_iter().flatten();
    errors.into_iter().any(|error| error["errorCode"] == code)
}

/// Looks for `time` whether exactly these machines run.
async fn stays(stage: &Stage, wanted: Running, time: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        ensure!(stage.running() == wanted, "{:?} run, not {wanted:?}", stage.running());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
