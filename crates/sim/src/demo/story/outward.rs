//! The way out: protection, points, test failover, the disaster, failover, change of point, commit.

use super::*;
use crate::demo::{
    api::{self, VAULT, job_wait},
    guest::{BootTimes, Workload, console_watch},
    judge::point_judge,
    progress::wait_for,
};
use leeward::client::ApiClient;
use serde_json::json;
use std::time::SystemTime;

impl Story {
    pub(super) async fn prepare(&mut self) -> anyhow::Result<()> {
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

    pub(super) async fn protect(&mut self) -> anyhow::Result<()> {
        let client = self.site().client.clone();
        let site = api::machine_protect(&client, MACHINE, Duration::from_secs(30)).await?;
        self.screen.good("the machine was discovered, and its protection enabled");
        self.site = Some(site);
        self.initial_replication().await
    }

    async fn initial_replication(&mut self) -> anyhow::Result<()> {
        let last = self.protected_wait("first copy").await?;
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
        let fabric = self.site().client.get("replicationFabrics/primary-site").await?;
        self.report.accelerator = find_text(&fabric, "leewardAccelerator");
        Ok(())
    }

    /// Waits until the item is protected, with a bar for what is copied or compared.
    pub(super) async fn protected_wait(&self, what: &str) -> anyhow::Result<Value> {
        let bar = self.screen.bar(1, what);
        let site = self.site().clone();
        let (deadline, every) = (Duration::from_secs(600), Duration::from_millis(100));
        let last = wait_for("the end of a copy", deadline, every, || async {
            let item = site.item().await?;
            let copy = &item["providerSpecificDetails"]["leewardCopy"];
            if let (Some(done), Some(total)) =
                (copy["doneBytes"].as_u64(), copy["totalBytes"].as_u64())
            {
                bar.set_length(total);
                bar.set_position(done);
            }
            let state = item["protectionState"].as_str().unwrap_or_default().to_owned();
            ensure!(!state.ends_with("Failed"), "protection failed: {item}");
            Ok((state == "Protected").then_some(item))
        })
        .await?;
        bar.finish_and_clear();
        Ok(last)
    }

    /// Lets points come, and judges one of them apart from the product.
    pub(super) async fn replicate(&mut self) -> anyhow::Result<JudgedPoint> {
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

    pub(super) async fn test_failover(&mut self, early: &JudgedPoint) -> anyhow::Result<()> {
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

    /// The console file of an instance, at whichever site it is.
    pub(super) fn console(&self, instance: &Value) -> anyhow::Result<PathBuf> {
        let path = text(&instance["consolePath"])?;
        let sites = [self.sites.up_folder(), self.sites.host_folder()].map(|site| site.join(&path));
        let found = sites.iter().find(|console| console.exists());
        Ok(found.unwrap_or(&sites[0]).clone())
    }

    /// Kills the machine and its host in mid-write; returns the verdict on the source's disks.
    pub(super) async fn disaster(&mut self) -> anyhow::Result<Value> {
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

    pub(super) async fn failover(&mut self, lost: &Value) -> anyhow::Result<JudgedPoint> {
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
    pub(super) async fn hydration(&mut self) -> anyhow::Result<()> {
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

    pub(super) async fn change_points(
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

    pub(super) async fn commit(&mut self) -> anyhow::Result<()> {
        let site = self.site().clone();
        let job = site.start("failoverCommit", json!({})).await?;
        job_wait(&site.client, &job, JOB_DEADLINE).await?;
        let item = site.state_wait("UnplannedFailoverCommitted", Duration::from_secs(30)).await?;
        self.report.stored_bytes = item["providerSpecificDetails"]["leewardStoredBytes"].as_u64();
        self.screen.good("committed: the machine belongs to the recovery site now");
        Ok(())
    }
}
