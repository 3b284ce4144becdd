//! Protection that ends while the machine is away: it is its owner's at the recovery site, and
//! nothing of Leeward stays in it, beside it, or at the site that it left.

use crate::{
    AT_TARGET,
    home::{away, stale_copy, unchanged},
    on_stage,
};
use anyhow::{Context as _, ensure};
use leeward_fabric::{machine_toml, qmp::Qmp};
use leeward_sim::demo::{
    api::job_wait,
    guest::console_watch_from,
    judge::{disks_judge, item_point_copy},
    progress::wait_for,
    sites::{kill, processes_below},
    stage::{MACHINE, Running, Stage, StageOptions},
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

const EVERY: Duration = Duration::from_millis(50);
/// For QEMU to answer on a busy machine.
const ANSWER: Duration = Duration::from_secs(10);

/// The nodes that a QEMU which we start has for good, by the beginning of their names.
const OWN_NODES: [&str; 3] = ["lw-top-", "lw-disk-", "lw-file-"];

/// Nothing replicates the machine yet, and its points go.
#[tokio::test(flavor = "multi_thread")]
async fn protection_that_ends_for_a_committed_machine_leaves_no_trace_and_no_points() {
    on_stage(StageOptions::default(), async |stage| {
        let left = Left::of(stage).await?;
        ended(stage, false).await?;
        left.is_as_it_was(stage).await?;
        for store in stores(stage) {
            let found = named(&store, &left.item);
            ensure!(found.is_empty(), "the points were to go: {found:?}");
        }
        is_its_owners(stage, &left).await
    })
    .await;
}

/// It is replicated home, and its points stay.
#[tokio::test(flavor = "multi_thread")]
async fn protection_that_ends_for_a_machine_on_its_way_home_keeps_points_that_can_be_read() {
    on_stage(StageOptions::default(), async |stage| {
        let left = Left::of(stage).await?;
        let job = stage.site.start("reProtect", json!({})).await?;
        job_wait(&stage.site.client, &job, stage.within(120)).await?;
        stage.protected().await?;
        ended(stage, true).await?;
        left.is_as_it_was(stage).await?;
        for store in stores(stage) {
            let verdict = newest_kept(stage, &store, &left.item).await?;
            ensure!(verdict["ok"] == true, "a kept point in {store:?} is bad: {verdict}");
        }
        is_its_owners(stage, &left).await
    })
    .await;
}

/// What the machine left at the primary site, when it had gone.
struct Left {
    item: String,
    description: String,
    disks: PathBuf,
}

impl Left {
    /// Fails over and commits a machine that its owner wants started with either host.
    async fn of(stage: &mut Stage) -> anyhow::Result<Left> {
        let description = autostart_set(&stage.sites.host_folder())?;
        away(stage).await?;
        let item = stage.details().await?["leewardItemId"].clone();
        let item = item.as_str().context("the item has no id")?.to_owned();
        Ok(Left { item, description, disks: stale_copy(stage)? })
    }

    /// The machine that was left has its description, its autostart and its disks, and is off.
    async fn is_as_it_was(&self, stage: &Stage) -> anyhow::Result<()> {
        let now = std::fs::read_to_string(stage.machine_folder().join("machine.toml"))?;
        ensure!(now == self.description, "the old machine's description is another: {now}");
        unchanged(stage, &self.disks)?;
        ensure!(stage.running() == AT_TARGET, "{:?} run", stage.running());
        let by_hand = stage.sites.machine_start(MACHINE).await;
        let words = by_hand.err().context("the old machine was started")?.to_string();
        ensure!(words.contains("LW-0208"), "{words}");
        Ok(())
    }
}

fn stores(stage: &Stage) -> [PathBuf; 2] {
    [stage.sites.up_folder(), stage.sites.host_folder()].map(|site| site.join("store"))
}

fn description_of(site: &Path) -> PathBuf {
    site.join("machines").join(MACHINE).join("machine.toml")
}

/// The owner wants the machine started with its host; returns its description.
fn autostart_set(site: &Path) -> anyhow::Result<String> {
    let path = description_of(site);
    let text = std::fs::read_to_string(&path)?;
    let text = text.replace("autostart = false\n", "");
    let text = format!("autostart = true\n{text}");
    std::fs::write(&path, &text)?;
    Ok(text)
}

/// Ends protection and waits until both hosts have nothing more to do for the item.
async fn ended(stage: &Stage, keep: bool) -> anyhow::Result<()> {
    let asked = json!({"leewardKeepPoints": keep});
    let job = stage.site.start("remove", asked).await?;
    let ended = job_wait(&stage.site.client, &job, stage.within(120)).await?;
    ensure!(ended["properties"]["state"] == "Succeeded", "{ended}");
    ensure!(stage.site.item().await.is_err(), "the item is still there");
    let sites = [stage.sites.up_folder(), stage.sites.host_folder()];
    wait_for("hosts without a duty", stage.within(20), EVERY, || async {
        let idle = |site: &PathBuf| -> anyhow::Result<bool> {
            let text = std::fs::read_to_string(site.join("assignment.json"))?;
            let assignment: Value = serde_json::from_str(&text)?;
            Ok(assignment["duties"].as_array().is_some_and(Vec::is_empty))
        };
        Ok((idle(&sites[0])? && idle(&sites[1])?).then_some(()))
    })
    .await
}

/// Nothing of us is in or beside the live machine, and it needs nobody's permit.
async fn is_its_owners(stage: &mut Stage, left: &Left) -> anyhow::Result<()> {
    let up = stage.sites.up_folder();
    let exports = processes_below(&up.join("run"), "leeward");
    ensure!(exports.is_empty(), "an export still runs: {exports:?}");
    for site in [up.clone(), stage.sites.host_folder()] {
        let found = left_in(&site, &left.item);
        ensure!(found.is_empty(), "left behind at {}: {found:?}", site.display());
    }
    let live = processes_below(&up, "qemu-system");
    autostart_set(&up)?;
    stage.sites.up_kill()?;
    let [machine] = live[..] else { anyhow::bail!("not one machine runs: {live:?}") };
    nothing_in(machine).await?;
    kill(live)?;
    for image in images(&up)? {
        let bitmaps = bitmaps_in(&image).await?;
        ensure!(bitmaps.is_empty(), "bitmaps are left in {}: {bitmaps:?}", image.display());
    }

    // As after a boot of the host: whoever starts with it has not been started yet.
    std::fs::remove_file(up.join("autostart-boot"))?;
    let console = console_of(&up)?;
    let from = std::fs::metadata(&console)?.len() as usize;
    stage.sites.up_start().await?;
    stage.running_wait(Running { source: 0, target: 1 }, stage.within(20)).await?;
    println!("it started again; its console is {}", console.display());
    let (_, seen) = console_watch_from(&console, from, stage.within(60)).await?;
    ensure!(seen.ledger.is_some_and(|ledger| ledger["ok"] == true), "the machine is bad");
    Ok(())
}

/// What a site's folder has that is the item's, or of its machine's protection, but the points and
/// the machine itself, and the word that a machine which was left is not to be started.
fn left_in(site: &Path, item: &str) -> Vec<PathBuf> {
    let mut found = named(site, item);
    found.retain(|path| !path.starts_with(site.join("store")));
    let permit = site.join("permits").join(format!("{MACHINE}.json"));
    let machine = site.join("machines").join(MACHINE);
    let marks = [permit, machine.join(".leeward-item")];
    found.extend(marks.into_iter().filter(|path| path.exists()));
    found
}

/// Files and folders below `folder` whose name contains `name`, or, of small files, that name it.
fn named(folder: &Path, name: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(path);
            } else if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

/// The QEMU has no node, export, job or bitmap but what every machine of ours has for good.
async fn nothing_in(machine: u32) -> anyhow::Result<()> {
    let line =
        String::from_utf8_lossy(&std::fs::read(format!("/proc/{machine}/cmdline"))?).into_owned();
    let words = line.split('\0');
    let control = words.into_iter().find(|word| word.contains("id=lw-qmp")).context("no QMP")?;
    let path = control.split("path=").nth(1).context("no path")?.split(',').next();
    let qmp = Qmp::connect(Path::new(path.unwrap_or_default()), ANSWER).await?;
    let nodes = qmp.call("query-named-block-nodes", json!({"flat": true}), ANSWER).await?;
    for node in nodes.as_array().context("no nodes")? {
        let name = node["node-name"].as_str().unwrap_or_default();
        let ours = name.starts_with("lw-");
        ensure!(!ours || OWN_NODES.iter().any(|own| name.starts_with(own)), "node {name} is left");
        let bitmaps = node["dirty-bitmaps"].as_array().map_or(0, Vec::len);
        ensure!(bitmaps == 0, "node {name} has bitmaps: {}", node["dirty-bitmaps"]);
    }
    for question in ["query-block-exports", "query-block-jobs"] {
        let answer = qmp.call(question, json!({}), ANSWER).await?;
        ensure!(answer == json!([]), "{question} says {answer}");
    }
    qmp.close();
    Ok(())
}

/// The disks that the machine of a site has now.
fn images(site: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(description_of(site))?;
    let machine = machine_toml::parse(MACHINE, &site.join("machines").join(MACHINE), &text);
    let machine = machine.map_err(anyhow::Error::msg)?;
    Ok(machine.spec.disks.into_iter().map(|disk| disk.path.into()).collect())
}

async fn bitmaps_in(image: &Path) -> anyhow::Result<Vec<Value>> {
    let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(image).output().await?;
    ensure!(info.status.success(), "{}", String::from_utf8_lossy(&info.stderr));
    let info: Value = serde_json::from_slice(&info.stdout)?;
    ensure!(info["backing-filename"].is_null(), "{} leans on something: {info}", image.display());
    Ok(info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default())
}

/// The console file of the machine of a site.
fn console_of(site: &Path) -> anyhow::Result<PathBuf> {
    let mut found = named(site, "console.log");
    found.sort_by_key(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok());
    found.pop().context("there is no console")
}

/// The verdict on the newest point of the item that `store` has kept.
async fn newest_kept(stage: &Stage, store: &Path, item: &str) -> anyhow::Result<Value> {
    let program = stage.sites.program();
    let listed = Command::new(program)
        .args(["store", "points"])
        .arg(store)
        .args(["--item", item, "--output", "json"])
        .output()
        .await?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let points: Value = serde_json::from_slice(&listed.stdout)?;
    let newest = points.pointer("/0/point").and_then(Value::as_str);
    let newest = newest.with_context(|| format!("no point: {points}"))?;
    let copy = stage.sites.folder.join("kept");
    item_point_copy(&stage.sites, item, store, newest, &copy).await?;
    let verdict = disks_judge(&stage.images, &copy).await?;
    std::fs::remove_dir_all(&copy)?;
    Ok(verdict)
}
