//! The way home: reprotect onto the stale disks, planned failover without a loss, the circle.

use super::*;
use crate::demo::{
    api::job_wait,
    guest::{console_watch, disks_convert},
    judge::{differing_blocks, disks_judge, point_copy},
    progress::wait_for,
};
use serde_json::json;

/// Bytes of the blocks that the product compares.
const BLOCK_BYTES: u64 = 4096;
/// Below this the bytes that the guest writes during the comparison outweigh the comparison.
const DIFFERING_BYTES_JUDGED: u64 = 4 << 20;

/// The stale machine's disks, as the disaster left them.
struct StaleDisks {
    machine: PathBuf,
    copy: PathBuf,
}

/// What a planned failover came to.
struct Moved {
    /// Records of the machine that was left.
    records: u64,
    /// Records of them that the new one does not have.
    lost: u64,
    /// From the start of the shutdown to the first output of the new kernel, in seconds.
    downtime: f64,
}

impl Story {
    /// The steps after the commit.
    pub(super) async fn home_again(&mut self) -> anyhow::Result<()> {
        let step = self.step("The old site returns: reprotect");
        let outcome = self.old_site_returns().await;
        let stale = self.ended(step, "reprotect onto the stale disks", outcome)?;
        let step = self.step("Planned failover home");
        let outcome = self.planned_home(&stale).await;
        self.ended(step, "planned failover home", outcome)?;
        let step = self.step("Commit and reprotect: as at the beginning");
        let outcome = self.as_at_the_beginning().await;
        self.ended(step, "commit, and reprotect", outcome)?;
        let step = self.step("The whole circle once more");
        let outcome = self.circle_again(&stale).await;
        self.report.circle_ok = Some(outcome.is_ok());
        self.ended(step, "the whole circle once more", outcome)
    }

    /// The primary host returns with its stale machine; it is compared with the live one.
    async fn old_site_returns(&mut self) -> anyhow::Result<StaleDisks> {
        let machine = self.sites.host_folder().join("machines").join(MACHINE);
        let stale = StaleDisks { copy: self.options.folder.join("stale"), machine };
        std::fs::create_dir_all(&stale.copy)?;
        for image in DISKS {
            copy_sparse(&stale.machine.join(image), &stale.copy.join(image)).await?;
        }
        let endpoint = std::fs::read_to_string(self.sites.up_folder().join("endpoint"))?;
        self.sites.host_start(endpoint.trim(), None)?;
        let site = self.site().clone();
        let off = |item: &Value| {
            item["providerSpecificDetails"]["leewardSourceState"]["state"] == "ConfirmedOff"
        };
        let every = Duration::from_millis(100);
        wait_for("the stale machine's fence", Duration::from_secs(60), every, || async {
            Ok(off(&site.item().await?).then_some(()))
        })
        .await?;
        self.screen.good("the old host is back; its stale machine is off and stays off");
        let item = self.reprotect("comparison with the stale disks").await?;
        let sent = item["providerSpecificDetails"]["leewardSentBytes"].as_u64();
        let sent = sent.context("no figure of bytes sent")?;
        let differing = self.differing_from(&stale).await?;
        self.report.reprotect_bytes_differing = Some(differing);
        self.report.reprotect_bytes_sent = Some(sent);
        self.screen.good(&format!(
            "protected towards the primary site: {:.2} MiB sent, {:.2} MiB differed",
            mib(sent),
            mib(differing)
        ));
        ensure!(
            differing < DIFFERING_BYTES_JUDGED || sent as f64 <= 1.1 * differing as f64,
            "{sent} bytes were sent for {differing} that differ"
        );
        self.stale_untouched(&stale).await?;
        Ok(stale)
    }

    /// Bytes of 4 KiB blocks that differ between the stale disks and the first point made of the
    /// comparison, by our own compare.
    async fn differing_from(&self, stale: &StaleDisks) -> anyhow::Result<u64> {
        let points = self.site().points().await?;
        let own = |point: &&Value| {
            let own = &point["properties"]["providerSpecificDetails"];
            own["leewardHeldAt"] == "Primary" && own["leewardOrigin"] == "Replicated"
        };
        let first = points.iter().rev().find(own).context("the primary site holds no point")?;
        let store = self.sites.host_folder().join("store");
        let folder = self.options.folder.join("compare");
        point_copy(&self.sites, self.site(), &store, &text(&first["name"])?, &folder).await?;
        let mut bytes = 0;
        for image in DISKS {
            let (copy, old) = (folder.join(image), stale.copy.join(image));
            let blocks =
                tokio::task::spawn_blocking(move || differing_blocks(&copy, &old)).await??;
            bytes += blocks * BLOCK_BYTES;
        }
        std::fs::remove_dir_all(&folder)?;
        Ok(bytes)
    }

    async fn stale_untouched(&self, stale: &StaleDisks) -> anyhow::Result<()> {
        for image in DISKS {
            let (now, then) = (stale.machine.join(image), stale.copy.join(image));
            let blocks =
                tokio::task::spawn_blocking(move || differing_blocks(&now, &then)).await??;
            ensure!(blocks == 0, "{blocks} blocks of the stale {image} were changed");
        }
        Ok(())
    }

    /// Protects the machine where it runs; returns the item when that is reached.
    async fn reprotect(&mut self, what: &str) -> anyhow::Result<Value> {
        let site = self.site().clone();
        let job = site.start("reProtect", json!({})).await?;
        job_wait(&site.client, &job, JOB_DEADLINE).await?;
        self.protected_wait(what).await
    }

    /// Moves the machine to the other site without losing a record.
    async fn planned(&mut self, direction: &str, wait_to_complete: bool) -> anyhow::Result<Moved> {
        let site = self.site().clone();
        let leaving = self.instances.last().cloned().context("no machine was made yet")?;
        let asked = json!({"failoverDirection": direction, "providerSpecificDetails":
                           {"leewardWaitToComplete": wait_to_complete}});
        let mut begun = Instant::now();
        let job = site.start("plannedFailover", asked).await?;
        if wait_to_complete {
            let waiting = job_wait(&site.client, &job, JOB_DEADLINE).await?;
            ensure!(waiting["properties"]["state"] == "Suspended", "it does not wait: {waiting}");
            self.screen.good("synchronized while it runs; the job waits for “complete failover”");
            begun = Instant::now();
            let words = json!({"properties": {"comments": ""}});
            site.client.post(&format!("{job}/resume"), &words).await?;
        }
        let instance = site.instance_wait("Failover", &self.instances, JOB_DEADLINE).await?;
        let console = self.console(&instance)?;
        let (boot, seen) = console_watch(&console, BOOT_DEADLINE).await?;
        let ledger = verified(&seen)?;
        job_wait(&site.client, &job, JOB_DEADLINE).await?;
        let left = self.options.folder.join("left");
        disks_convert(&self.instance_folder(&leaving)?, &left).await?;
        let verdict = disks_judge(self.images(), &left).await?;
        std::fs::remove_dir_all(&left)?;
        ensure!(verdict["ok"] == true, "the disks that were left are bad: {verdict}");
        let records = verdict["last_b"].as_u64().context("the verdict names no record")?;
        self.instances.push(text(&instance["id"])?);
        let kernel = boot.kernel.context("no kernel")?;
        let downtime = (kernel - begun).as_secs_f64();
        Ok(Moved { records, lost: records.saturating_sub(ledger), downtime })
    }

    async fn planned_home(&mut self, stale: &StaleDisks) -> anyhow::Result<()> {
        let moved = self.planned("RecoveryToPrimary", true).await?;
        self.report.records_lost_after_planned_failover = Some(moved.lost);
        self.report.planned_downtime_seconds = Some(moved.downtime);
        ensure!(moved.lost == 0, "{} records of {} were lost", moved.lost, moved.records);
        let item = self.site().item().await?;
        ensure!(item["activeLocation"] == "Primary", "the item does not say that it is home");
        self.screen.good(&format!(
            "home again with all {} records; it stood still for {:.1} s",
            moved.records, moved.downtime
        ));
        self.hydration().await?;
        self.stale_untouched(stale).await
    }

    async fn as_at_the_beginning(&mut self) -> anyhow::Result<()> {
        let site = self.site().clone();
        let job = site.start("failoverCommit", json!({})).await?;
        job_wait(&site.client, &job, JOB_DEADLINE).await?;
        let item = self.reprotect("comparison with the recovery site").await?;
        ensure!(item["activeLocation"] == "Primary", "the machine is not live at the primary site");
        self.screen.good("committed and protected towards the recovery site again");
        Ok(())
    }

    async fn circle_again(&mut self, stale: &StaleDisks) -> anyhow::Result<()> {
        for (direction, there) in [("PrimaryToRecovery", "out"), ("RecoveryToPrimary", "home")] {
            let moved = self.planned(direction, false).await?;
            ensure!(moved.lost == 0, "{} records were lost on the way {there}", moved.lost);
            self.hydration().await?;
            let site = self.site().clone();
            let job = site.start("failoverCommit", json!({})).await?;
            job_wait(&site.client, &job, JOB_DEADLINE).await?;
            self.reprotect("comparison").await?;
            let records = moved.records;
            self.screen.good(&format!("{there}, with all {records} records, and protected back"));
        }
        self.stale_untouched(stale).await
    }

    /// The folder of a machine that was made from a point, at whichever site it is.
    fn instance_folder(&self, instance: &str) -> anyhow::Result<PathBuf> {
        let sites = [self.sites.up_folder(), self.sites.host_folder()];
        let folders = sites.map(|site| site.join("instances").join(instance));
        let found = folders.into_iter().find(|folder| folder.exists());
        found.with_context(|| format!("machine {instance} has no folder"))
    }
}

async fn copy_sparse(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut copy = tokio::process::Command::new("cp");
    let copied = copy.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to).status();
    ensure!(copied.await?.success(), "could not copy {}", from.display());
    Ok(())
}
