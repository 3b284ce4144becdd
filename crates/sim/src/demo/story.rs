//! The story of the demo, step by step, with its checks.

use super::{
    api::{self, Site, VAULT, job_wait},
    guest::{BootTimes, ConsoleSeen, GuestImages, Workload, console_watch},
    judge::point_judge,
    progress::{Screen, wait_for},
    report::{Report, Step},
    sites::Sites,
};
use anyhow::{Context as _, bail, ensure};
use leeward::client::ApiClient;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

const MACHINE: &str = "ledger01";
const BOOT_DEADLINE: Duration = Duration::from_secs(240);
const JOB_DEADLINE: Duration = Duration::from_secs(300);

/// What the demo may be told.
pub struct Options {
    /// Leave both sites running.
    pub keep: bool,
    /// The project's folder.
    pub root: PathBuf,
    /// The product's program.
    pub program: PathBuf,
    /// Folder of the run.
    pub folder: PathBuf,
    /// Size of the guest's data disk.
    pub data_size: String,
    /// Milliseconds to wait, after the last point before the disaster, until the kill.
    pub kill_after_ms: u64,
}

/// Runs the story.
pub struct Story {
    options: Options,
    screen: Screen,
    /// What was measured.
    pub report: Report,
    sites: Sites,
    images: Option<GuestImages>,
    site: Option<Site>,
    instances: Vec<String>,
    pauses: Vec<f64>,
}

/// A point whose content was judged apart from the product.
struct JudgedPoint {
    id: String,
    last: u64,
}

impl Story {
    /// A story that has not begun.
    pub fn new(options: Options) -> Self {
        let sites = Sites::new(options.folder.clone(), options.program.clone(), options.keep);
        Story {
            options,
            screen: Screen::default(),
            report: Report::default(),
            sites,
            images: None,
            site: None,
            instances: Vec::new(),
            pauses: Vec::new(),
        }
    }

    /// Runs every step; the first that fails ends it.
    pub async fn run(&mut self) -> bool {
        let outcome = self.steps().await;
        if let Err(error) = &outcome {
            self.screen.bad(&format!("{error:#}"));
        }
        self.report.ok = outcome.is_ok();
        outcome.is_ok()
    }

    async fn steps(&mut self) -> anyhow::Result<()> {
        let begun = self.step("Two sites and a machine");
        let outcome = self.prepare().await;
        self.ended(begun, "start two sites and a machine", &outcome);
        outcome?;
        let begun = self.step("Protect it");
        let outcome = self.protect().await;
        self.ended(begun, "protect the machine", &outcome);
        outcome?;
        let begun = self.step("Recovery points every 2 s");
        let outcome = self.replicate().await;
        self.ended(begun, "make recovery points", &outcome);
        let early = outcome?;
        let begun = self.step("Test failover");
        let outcome = self.test_failover(&early).await;
        self.ended(begun, "test failover, and clean it up", &outcome);
        outcome?;
        let begun = self.step("Disaster: machine and host are killed");
        let outcome = self.disaster().await;
        self.ended(begun, "disaster", &outcome);
        let lost = outcome?;
        let begun = self.step("Failover to Latest");
        let outcome = self.failover(&lost).await;
        self.ended(begun, "failover to Latest", &outcome);
        let latest = outcome?;
        let begun = self.step("Change of recovery point, and back");
        let outcome = self.change_points(&early, &latest).await;
        self.ended(begun, "change of recovery point, and back", &outcome);
        outcome?;
        let begun = self.step("Commit");
        let outcome = self.commit().await;
        self.ended(begun, "commit", &outcome);
        outcome
    }

    fn step(&self, name: &str) -> Instant {
        self.screen.step(self.report.steps.len() + 1, name);
        Instant::now()
    }

    fn ended<T>(&mut self, begun: Instant, name: &str, outcome: &anyhow::Result<T>) {
        let seconds = (begun.elapsed().as_secs_f64() * 100.0).round() / 100.0;
        self.report.steps.push(Step { name: name.to_owned(), seconds, ok: outcome.is_ok() });
    }

    fn site(&self) -> &Site {
        self.site.as_ref().expect("protecting comes before")
    }

    fn images(&self) -> &GuestImages {
        self.images.as_ref().expect("building comes first")
    }

    async fn prepare(&mut self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.options.folder)?;
        let folder = self.options.folder.join("guest");
        let images =
            GuestImages::build(&self.options.root, &folder, &self.options.data_size).await?;
        self.screen.good("a Linux guest with a ledger on two disks was built");
        let begun = Instant::now();
        let endpoint = self.sites.up_start().await?;
        self.screen.good(&format!(
            "the recovery site is ready at {endpoint} after {:.2} s",
            begun.elapsed().as_secs_f64()
        ));
        let client = ApiClient::from_folder(&self.sites.up_folder(), &endpoint, VAULT)?;
        let key = api::vault_make(&client).await?;
        self.sites.host_start(&endpoint, Some(&key))?;
        let machine = self.sites.machine_make(&images, MACHINE, 0)?;
        self.sites.joined_wait().await?;
        self.sites.machine_start(MACHINE).await?;
        self.screen.good("the primary site's host has joined with a single-use key");
        let (_, seen) = console_watch(&source_console(&self.sites.host_folder())?, BOOT_DEADLINE)
            .await
            .context("the machine did not start")?;
        ensure!(seen.ledger.is_some_and(|ledger| ledger["ok"] == true), "a fresh ledger is bad");
        self.screen.good("the machine runs and writes records");
        self.images = Some(images);
        self.site = Some(Site { client, item: String::new() });
        self.report.initial_bytes_allocated =
            Some(allocated(&machine.join("boot.raw"))? + allocated(&machine.join("data.raw"))?);
        Ok(())
    }

    async fn protect(&mut self) -> anyhow::Result<()> {
        let client = self.site().client.clone();
        let site = api::machine_protect(&client, MACHINE, Duration::from_secs(30)).await?;
        self.screen.good("the machine was discovered, and its protection enabled");
        self.site = Some(site);
        self.initial_replication().await
    }

    async fn initial_replication(&mut self) -> anyhow::Result<()> {
        let bar = self.screen.bar(1, "first copy");
        let site = self.site().clone();
        let last = wait_for(
            "the end of the first copy",
            Duration::from_secs(600),
            Duration::from_millis(100),
            || async {
                let item = site.item().await?;
                let copy = &item["providerSpecificDetails"]["leewardCopy"];
                if let (Some(done), Some(total)) =
                    (copy["doneBytes"].as_u64(), copy["totalBytes"].as_u64())
                {
                    bar.set_length(total);
                    bar.set_position(done);
                }
                let state = item["protectionState"].as_str().unwrap_or_default().to_owned();
                ensure!(!state.ends_with("Failed"), "enabling protection failed: {item}");
                Ok((state == "Protected").then_some(item))
            },
        )
        .await?;
        bar.finish_and_clear();
        let details = &last["providerSpecificDetails"];
        let sent = details["leewardSentBytes"].as_u64().context("no figure of bytes sent")?;
        self.report.initial_bytes_sent = Some(sent);
        let allocated = self.report.initial_bytes_allocated.unwrap_or_default();
        self.screen.good(&format!(
            "protected: {:.1} MiB of blocks sent, of {:.1} MiB allocated",
            mib(sent),
            mib(allocated)
        ));
        // What the guest wrote during the copy is sent too; holes and zeros are not.
        ensure!(sent < allocated + (16 << 20), "holes or zeros were sent: {sent} bytes");
        let fabric = site.client.get("replicationFabrics/primary-site").await?;
        self.report.accelerator = find_text(&fabric, "leewardAccelerator");
        Ok(())
    }

    /// Lets points come, and judges one of them apart from the product.
    async fn replicate(&mut self) -> anyhow::Result<JudgedPoint> {
        let site = self.site().clone();
        let before = site.points().await?.len();
        wait_for(
            "five more points",
            Duration::from_secs(120),
            Duration::from_millis(250),
            || async { Ok((site.points().await?.len() >= before + 5).then_some(())) },
        )
        .await?;
        self.note_pauses().await?;
        let points = site.points().await?;
        let early = self.judge(points.first().context("there are no points")?).await?;
        self.screen.good(&format!(
            "{} points; the newest holds {} records, judged without a boot",
            points.len(),
            early.last
        ));
        Ok(early)
    }

    async fn note_pauses(&mut self) -> anyhow::Result<()> {
        let item = self.site().item().await?;
        let cycles = item["providerSpecificDetails"]["leewardCycles"].as_array().cloned();
        for cycle in cycles.unwrap_or_default() {
            self.pauses.extend(cycle["pauseMilliseconds"].as_f64());
        }
        self.pauses.sort_by(f64::total_cmp);
        self.report.guest_pause_ms_median = self.pauses.get(self.pauses.len() / 2).copied();
        self.report.guest_pause_ms_worst = self.pauses.last().copied();
        Ok(())
    }

    async fn judge(&self, point: &Value) -> anyhow::Result<JudgedPoint> {
        let (id, name) = (text(&point["id"])?, text(&point["name"])?);
        let verdict = point_judge(&self.sites, self.images(), self.site(), &name).await?;
        ensure!(
            verdict["ok"] == true,
            "the point {name} is not a moment of the machine: {verdict}"
        );
        let last = verdict["last_a"].as_u64().context("the verdict names no record")?;
        Ok(JudgedPoint { id, last })
    }

    async fn test_failover(&mut self, early: &JudgedPoint) -> anyhow::Result<()> {
        let site = self.site().clone();
        wait_for("a newer point", Duration::from_secs(60), Duration::from_millis(100), || async {
            let newest =
                site.points().await?.first().and_then(|one| one["id"].as_str().map(str::to_owned));
            Ok((newest.as_deref() != Some(&early.id)).then_some(()))
        })
        .await?;
        let (first, times) = self.test_once(None).await?;
        self.report.test_failover_accepted_to_first_record_seconds = Some(times);
        let (second, _) = self.test_once(Some(early)).await?;
        ensure!(first != second, "two different points gave the same picture");
        self.screen.good("two different points gave two different pictures");
        Ok(())
    }

    /// One test failover with its cleanup; returns the picture and the time to the first record.
    async fn test_once(&mut self, point: Option<&JudgedPoint>) -> anyhow::Result<(Vec<u8>, f64)> {
        let site = self.site().clone();
        let before = site.points().await?.len();
        let details = match point {
            Some(point) => json!({"instanceType": "HyperVReplicaAzure",
                                  "recoveryPointId": point.id}),
            None => json!({}),
        };
        let asked = json!({"failoverDirection": "PrimaryToRecovery", "networkType": "NoNetwork",
                           "providerSpecificDetails": details});
        let accepted = Instant::now();
        let job = site.start("testFailover", asked).await?;
        let instance = site.instance_wait("Test", &self.instances, BOOT_DEADLINE).await?;
        let console = self.console(&instance)?;
        let (boot, seen) = console_watch(&console, BOOT_DEADLINE).await?;
        let ledger = verified(&seen)?;
        if let Some(point) = point {
            ensure!(ledger == point.last, "the test machine holds {ledger}, not {}", point.last);
        }
        job_wait(&site.client, &job, JOB_DEADLINE).await?;
        let instance_id = text(&instance["id"])?;
        let point_id = text(&instance["recoveryPointId"])?;
        let shown = site.client.get(&point_id).await?;
        let evidence = &shown["properties"]["providerSpecificDetails"]["leewardVerification"];
        ensure!(evidence["state"] == "Verified", "the point is not verified: {evidence}");
        let picture =
            site.client.get(&format!("{point_id}/leewardPicture?encoding=base64")).await?;
        let picture = decode_png(&text(&picture["base64"])?)?;
        self.screen.good(&format!(
            "the test machine booted with {ledger} records; its point is verified, with a picture"
        ));
        let during = site.points().await?.len();
        ensure!(during > before, "no point was made while the test ran");
        self.instances.push(instance_id);
        let job = site.start("testFailoverCleanup", json!({"comments": "demo"})).await?;
        job_wait(&site.client, &job, JOB_DEADLINE).await?;
        ensure!(!console.exists(), "the cleanup left the test machine's files behind");
        self.screen.good(&format!("cleaned up; {} points were made meanwhile", during - before));
        let first = boot.first_record.context("no first record")?;
        Ok((picture, (first - accepted).as_secs_f64()))
    }

    /// The console file of an instance at the recovery site.
    fn console(&self, instance: &Value) -> anyhow::Result<PathBuf> {
        Ok(self.sites.up_folder().join(text(&instance["consolePath"])?))
    }

    /// Kills the machine and its host in mid-write; returns the verdict on the source's disks.
    async fn disaster(&mut self) -> anyhow::Result<Value> {
        let site = self.site().clone();
        let machine = self.sites.host_folder().join("machines").join(MACHINE);
        let mut workload = Workload::connect(&machine.join("workload.sock")).await?;
        let newest =
            |item: &Value| item["providerSpecificDetails"]["leewardNewestPoint"]["lsn"].as_u64();
        let before = newest(&site.item().await?);
        wait_for("a new point", Duration::from_secs(60), Duration::from_millis(20), || async {
            Ok((newest(&site.item().await?) != before).then_some(()))
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(self.options.kill_after_ms)).await;
        let state = workload.ask("state").await?;
        self.note_pauses().await?;
        self.sites.disaster()?;
        let item = site.item().await?;
        let reported = item["providerSpecificDetails"]["leewardRpoSeconds"].as_f64();
        self.report.reported_rpo_seconds_at_kill = reported;
        let verdict =
            self.images().judge(&machine.join("boot.raw"), &machine.join("data.raw")).await?;
        ensure!(verdict["ok"] == true, "the killed machine's own disks are bad: {verdict}");
        self.report.records_written = verdict["last_b"].as_u64();
        self.screen.good(&format!(
            "killed at record {} (the port had seen {}); reported RPO {} s",
            verdict["last_b"],
            state["seq_b"],
            reported.unwrap_or(f64::NAN)
        ));
        Ok(verdict)
    }

    async fn failover(&mut self, lost: &Value) -> anyhow::Result<JudgedPoint> {
        let site = self.site().clone();
        let asked = json!({"failoverDirection": "PrimaryToRecovery",
                           "sourceSiteOperations": "Required", "providerSpecificDetails": {}});
        let job = site.start("unplannedFailover", asked).await?;
        let (accepted, accepted_wall) = (Instant::now(), SystemTime::now());
        let instance = site.instance_wait("Failover", &self.instances, JOB_DEADLINE).await?;
        let (boot, seen) = console_watch(&self.console(&instance)?, BOOT_DEADLINE).await?;
        let ledger = verified(&seen)?;
        self.times(accepted, accepted_wall, &instance, &boot)?;
        job_wait(&site.client, &job, JOB_DEADLINE).await?;
        self.losses(lost, &seen, ledger)?;
        let item = site
            .state_wait("UnplannedFailoverCommitPendingStatesBegin", Duration::from_secs(30))
            .await?;
        ensure!(item["activeLocation"] == "Recovery", "the item does not say where it is live");
        self.instances.push(text(&instance["id"])?);
        self.hydration().await?;
        Ok(JudgedPoint { id: text(&instance["recoveryPointId"])?, last: ledger })
    }

    fn times(
        &mut self,
        accepted: Instant,
        accepted_wall: SystemTime,
        instance: &Value,
        boot: &BootTimes,
    ) -> anyhow::Result<()> {
        let started: jiff::Timestamp = text(&instance["guestStartedAt"])?.parse()?;
        let wall = accepted_wall.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        let running = (started.as_millisecond() as f64 / 1e3 - wall).max(0.0);
        let after = |instant: Option<Instant>| instant.map(|at| (at - accepted).as_secs_f64());
        self.report.failover_accepted_to_qemu_running_seconds = Some(running);
        self.report.failover_accepted_to_kernel_seconds = after(boot.kernel);
        self.report.failover_accepted_to_first_record_seconds = after(boot.first_record);
        self.screen.good(&format!("the machine runs at the recovery site after {running:.2} s"));
        Ok(())
    }

    fn losses(&mut self, lost: &Value, seen: &ConsoleSeen, ledger: u64) -> anyhow::Result<()> {
        let written = lost["last_b"].as_u64().context("no number of records")?;
        let records = written.saturating_sub(ledger);
        let wall = |value: &Value| value["last_wall_ns"].as_u64();
        let recovered =
            seen.ledger.as_ref().and_then(wall).context("no time of the last record")?;
        let at_kill = wall(lost).context("no time of the last record at the kill")?;
        let seconds = at_kill.saturating_sub(recovered) as f64 / 1e9;
        self.report.records_lost_after_kill = Some(records);
        self.report.true_loss_seconds_at_kill = Some(seconds);
        let reported = self.report.reported_rpo_seconds_at_kill.context("no RPO was reported")?;
        ensure!(
            seconds <= reported,
            "{seconds:.2} s were lost, but the API had reported an RPO of {reported} s"
        );
        self.screen.good(&format!(
            "{records} records lost, {seconds:.2} s of work; the API had said at most {reported} s"
        ));
        Ok(())
    }

    /// Waits until the machine no longer needs the store.
    async fn hydration(&mut self) -> anyhow::Result<()> {
        let site = self.site().clone();
        let last = self.instances.last().cloned().unwrap_or_default();
        let bar = self.screen.percent_bar("hydration");
        wait_for("hydration", Duration::from_secs(600), Duration::from_millis(200), || async {
            let item = site.item().await?;
            let instances = item["providerSpecificDetails"]["leewardInstances"].as_array();
            let mine = instances.into_iter().flatten().find(|one| one["id"] == last.as_str());
            let percent = mine.and_then(|one| one["hydratedPercent"].as_f64()).unwrap_or(0.0);
            bar.set_position(percent as u64);
            Ok((percent >= 100.0).then_some(()))
        })
        .await?;
        bar.finish_and_clear();
        self.screen.good("hydrated while it ran: it needs the store no more");
        Ok(())
    }

    async fn change_points(
        &mut self,
        early: &JudgedPoint,
        latest: &JudgedPoint,
    ) -> anyhow::Result<()> {
        let kept_before = self.kept_points().await?;
        for (point, what) in [(early, "an earlier point"), (latest, "the failover's own point")] {
            let site = self.site().clone();
            let asked = json!({"recoveryPointId": point.id, "providerSpecificDetails":
                               {"instanceType": "HyperVReplicaAzure"}});
            let job = site.start("applyRecoveryPoint", asked).await?;
            let instance = site.instance_wait("Failover", &self.instances, JOB_DEADLINE).await?;
            let (_, seen) = console_watch(&self.console(&instance)?, BOOT_DEADLINE).await?;
            let ledger = verified(&seen)?;
            job_wait(&site.client, &job, JOB_DEADLINE).await?;
            ensure!(ledger == point.last, "{what} holds {ledger} records, not {}", point.last);
            self.screen.good(&format!("{what}: exactly its {ledger} records"));
            self.instances.push(text(&instance["id"])?);
        }
        let kept = self.kept_points().await?;
        ensure!(kept == kept_before + 2, "{kept} points of the work in between are kept, not 2");
        self.screen.good("the work in between is kept as two named points");
        Ok(())
    }

    async fn kept_points(&self) -> anyhow::Result<usize> {
        let points = self.site().points().await?;
        let kept = |point: &&Value| {
            point["properties"]["providerSpecificDetails"]["leewardOrigin"] == "BeforeChange"
        };
        Ok(points.iter().filter(kept).count())
    }

    async fn commit(&mut self) -> anyhow::Result<()> {
        let site = self.site().clone();
        let job = site.start("failoverCommit", json!({})).await?;
        job_wait(&site.client, &job, JOB_DEADLINE).await?;
        let item = site.state_wait("UnplannedFailoverCommitted", Duration::from_secs(30)).await?;
        self.report.stored_bytes = item["providerSpecificDetails"]["leewardStoredBytes"].as_u64();
        self.screen.good("committed: the machine belongs to the recovery site now");
        Ok(())
    }

    /// Ends both sites and deletes the run's folder, also when it was to be kept.
    pub fn clean(&mut self) {
        self.sites.keep(false);
        self.sites.clean();
    }

    /// Shows what the run was and measured.
    pub fn show_table(&self) {
        self.screen.table(&self.report.table());
    }

    /// What `--keep` tells the person.
    pub fn look_around(&self) -> String {
        let up = self.sites.up_folder();
        let program = self.options.program.display();
        format!(
            "Both sites are still there, below {}:\n\
             \x20 {program} item show {MACHINE} --fabric primary-site --folder {}\n\
             \x20 {program} point list {MACHINE} --fabric primary-site --folder {}\n\
             To end them and delete the folder: ./demo --clean {}",
            self.options.folder.display(),
            up.display(),
            up.display(),
            self.options.folder.display(),
        )
    }
}

fn source_console(host: &Path) -> anyhow::Result<PathBuf> {
    find_file(host, "console.log").context("the machine has no console file")
}

/// The first file of that name below a folder.
pub(super) fn find_file(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_file(&path, name) {
                return Some(found);
            }
        } else if entry.file_name() == name {
            return Some(path);
        }
    }
    None
}

/// Number of records of a console whose ledger is good.
fn verified(seen: &ConsoleSeen) -> anyhow::Result<u64> {
    let ledger = seen.ledger.as_ref().context("the console shows no ledger")?;
    ensure!(ledger["ok"] == true, "the ledger inside the machine is bad: {ledger}");
    ledger["last_a"].as_u64().context("the ledger names no record")
}

fn text(value: &Value) -> anyhow::Result<String> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => bail!("{value} is no text"),
    }
}

fn find_text(value: &Value, key: &str) -> Option<String> {
    match value {
        Value::Object(map) => map
            .get(key)
            .and_then(|found| found.as_str().map(str::to_owned))
            .or_else(|| map.values().find_map(|inner| find_text(inner, key))),
        Value::Array(list) => list.iter().find_map(|inner| find_text(inner, key)),
        _ => None,
    }
}

fn allocated(path: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn decode_png(base64: &str) -> anyhow::Result<Vec<u8>> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64)?;
    ensure!(bytes.starts_with(b"\x89PNG\r\n"), "the picture is no PNG");
    Ok(bytes)
}
