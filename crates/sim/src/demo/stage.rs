//! What tests with real processes stand on: two sites, a machine that writes a ledger, protected.
//!
//! The product is driven through its API and judged by disks, consoles and the process list.
//! Whatever happens in a test, every process is ended and every folder deleted.

use super::{
    api::{self, Site, VAULT, job_wait},
    guest::{GuestImages, Workload, console_watch_from},
    judge::{disks_judge, point_copy},
    progress::wait_for,
    sites::{Sites, kill, processes_below},
};
use anyhow::{Context as _, bail, ensure};
use leeward::client::ApiClient;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant, SystemTime},
};

/// The machine's name.
pub const MACHINE: &str = "ledger01";
/// What a boot of the guest takes on an idle machine with two cores, under emulation.
const BOOT_REFERENCE: Duration = Duration::from_secs(6);
/// The longest that a boot may take before the tests give up.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// Tells the stages of one process apart.
static STAGES: AtomicU32 = AtomicU32::new(0);

/// What a stage may be told.
#[derive(Clone, Debug, Default)]
pub struct StageOptions {
    /// MiB of a third disk full of random bytes; 0 for none.
    pub extra_disk_mib: u32,
    /// MiB of the recovery site's own file system; 0 for the common one.
    pub up_disk_mib: u32,
    /// Further words of the command line of `leeward up`.
    pub up_words: Vec<String>,
    /// Further words of the command line of `leeward host`.
    pub host_words: Vec<String>,
    /// Whether protection is left to the test.
    pub unprotected: bool,
}

/// How many machines run where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Below the primary site's folder.
    pub source: usize,
    /// Below the recovery site's folder.
    pub target: usize,
}

/// Two sites and a machine.
pub struct Stage {
    /// The processes.
    pub sites: Sites,
    /// The API, seen from the machine's item.
    pub site: Site,
    /// The guest's images and its judge.
    pub images: GuestImages,
    /// Address of the API.
    pub endpoint: String,
    /// How long the source machine took from its start to its first record.
    pub boot: Duration,
}

impl Stage {
    /// Builds everything and waits until the machine is protected.
    ///
    /// `root` is the project's folder, `program` the product, `cache` a folder for the guest's
    /// images that stays.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn open(
        root: &Path,
        program: &Path,
        cache: &Path,
        options: StageOptions,
    ) -> anyhow::Result<Stage> {
        let images = guest_cached(root, cache).await?;
        // Not below the usual temporary folder: sockets need short paths.
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(format!("/tmp/lw-m{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let mut sites = Sites::new(folder, program.to_owned(), false);
        (sites.up_words, sites.host_words) = (options.up_words, options.host_words);
        if options.up_disk_mib > 0 {
            sites.up_on_small_disk(options.up_disk_mib)?;
        }
        let endpoint = sites.up_start().await?;
        let client = ApiClient::from_folder(&sites.up_folder(), &endpoint, VAULT)?;
        let key = api::vault_make(&client).await?;
        sites.host_start(&endpoint, Some(&key))?;
        sites.machine_make(&images, MACHINE, options.extra_disk_mib)?;
        sites.joined_wait().await?;
        let site = Site { client, item: String::new() };
        let boot = Duration::ZERO;
        let mut stage = Stage { sites, site, images, endpoint, boot };
        stage.begin(options.unprotected).await.with_context(|| stage.logs())?;
        Ok(stage)
    }

    async fn begin(&mut self, unprotected: bool) -> anyhow::Result<()> {
        self.boot = self.source_start().await?;
        if !unprotected {
            self.protect().await?;
            self.protected().await?;
        }
        Ok(())
    }

    /// Enables protection; the first copy goes on behind it.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn protect(&mut self) -> anyhow::Result<()> {
        let deadline = self.within(20);
        self.site = api::machine_protect(&self.site.client, MACHINE, deadline).await?;
        Ok(())
    }

    /// `seconds` on an idle machine, stretched by what the reference boot took here.
    pub fn within(&self, seconds: u64) -> Duration {
        let slow = self.boot.as_secs_f64() / BOOT_REFERENCE.as_secs_f64();
        Duration::from_secs(seconds).mul_f64(slow.max(1.0))
    }

    /// The source machine's folder.
    pub fn machine_folder(&self) -> PathBuf {
        self.sites.host_folder().join("machines").join(MACHINE)
    }

    /// The source machine's console file.
    pub fn source_console(&self) -> PathBuf {
        super::story::find_file(&self.sites.host_folder(), "console.log").unwrap_or_default()
    }

    /// Starts the source machine by hand and waits for its first record.
    ///
    /// # Errors
    /// When the product refuses, or the guest does not come up.
    pub async fn source_start(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let before = std::fs::metadata(self.source_console()).map_or(0, |file| file.len());
        self.sites.machine_start(MACHINE).await?;
        let (console, from) = (self.source_console(), before as usize);
        let (_, seen) = console_watch_from(&console, from, BOOT_DEADLINE).await?;
        ensure!(seen.ledger.is_some_and(|ledger| ledger["ok"] == true), "the source is bad");
        Ok(begun.elapsed())
    }

    /// The source guest's workload port.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn workload(&self) -> anyhow::Result<Workload> {
        Workload::connect(&self.machine_folder().join("workload.sock")).await
    }

    /// Waits until the source guest's ledger is at work: it answers the power button from then on.
    ///
    /// # Errors
    /// When that takes longer than a boot may.
    pub async fn booted(&self) -> anyhow::Result<()> {
        let every = Duration::from_millis(200);
        wait_for("the source guest's answer", BOOT_DEADLINE, every, || async {
            let Ok(mut workload) = self.workload().await else { return Ok(None) };
            Ok(workload.ask("state").await.ok().map(drop))
        })
        .await
    }

    /// Waits until the item is protected and a point newer than this call is there.
    ///
    /// # Errors
    /// When that takes longer than a minute (stretched).
    pub async fn protected(&self) -> anyhow::Result<Value> {
        self.site.state_wait("Protected", self.within(60)).await?;
        self.new_point(self.within(60)).await
    }

    /// The API's fields of the item that only Leeward has.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn details(&self) -> anyhow::Result<Value> {
        Ok(self.site.item().await?["providerSpecificDetails"].clone())
    }

    /// Waits for a point that is cut after now; returns it as the item shows it.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn new_point(&self, deadline: Duration) -> anyhow::Result<Value> {
        let now = jiff::Timestamp::now();
        wait_for("a new point", deadline, Duration::from_millis(10), || async {
            let newest = self.details().await?["leewardNewestPoint"].clone();
            let cut_at = newest["cutAt"].as_str().and_then(|text| text.parse().ok());
            Ok(cut_at.is_some_and(|at: jiff::Timestamp| at > now).then_some(newest))
        })
        .await
    }

    /// Gives guests only so many seconds to shut down.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn shutdown_timeout(&self, seconds: u32) -> anyhow::Result<()> {
        let policy = api::policy(seconds);
        api::put(&self.site.client, "replicationPolicies/every-2-s", &policy).await
    }

    /// A planned failover goes on to a reprotect by itself from now on, or not (F-084).
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn auto_reverse(&self, reverses: bool) -> anyhow::Result<()> {
        let mut policy = api::policy(60);
        policy["properties"]["providerSpecificInput"]["leewardAutoReverse"] = reverses.into();
        api::put(&self.site.client, "replicationPolicies/every-2-s", &policy).await
    }

    /// Starts another host at the primary site and waits until it has joined.
    ///
    /// # Errors
    /// When the server refuses it, or it does not come up.
    pub async fn spare_join(&mut self) -> anyhow::Result<()> {
        let key = api::registration_key(&self.site.client).await?;
        self.sites.spare_start(&self.endpoint, &key)?;
        self.sites.spare_joined_wait().await
    }

    /// The verdict on the source's own disks. The machine must be off.
    ///
    /// # Errors
    /// When the judge cannot run or finds them bad.
    pub async fn source_judge(&self) -> anyhow::Result<Value> {
        let folder = self.machine_folder();
        let verdict = self.images.judge(&folder.join("boot.raw"), &folder.join("data.raw")).await?;
        ensure!(verdict["ok"] == true, "the source's own disks are bad: {verdict}");
        Ok(verdict)
    }

    /// The verdict on the newest replicated point.
    ///
    /// # Errors
    /// When it cannot be copied out or is bad.
    pub async fn newest_judge(&self) -> anyhow::Result<Value> {
        self.newest_judge_at(&self.sites.up_folder()).await
    }

    /// As [`Self::newest_judge`], with the store of the site whose folder is `site`.
    ///
    /// # Errors
    /// As there.
    pub async fn newest_judge_at(&self, site: &Path) -> anyhow::Result<Value> {
        let newest = self.details().await?["leewardNewestPoint"].clone();
        let id = newest["recoveryPointId"].as_str().context("there is no point")?;
        let name = id.rsplit('/').next().unwrap_or_default();
        let folder = self.sites.folder.join("judge");
        point_copy(&self.sites, &self.site, &site.join("store"), name, &folder).await?;
        let verdict = disks_judge(&self.images, &folder).await?;
        std::fs::remove_dir_all(&folder)?;
        ensure!(verdict["ok"] == true, "point {name} is no moment of the machine: {verdict}");
        Ok(verdict)
    }

    /// Machines that run now, by the process list.
    pub fn running(&self) -> Running {
        Running {
            source: processes_below(&self.sites.host_folder(), "qemu-system").len(),
            target: processes_below(&self.sites.up_folder(), "qemu-system").len(),
        }
    }

    /// Waits until exactly these machines run.
    ///
    /// # Errors
    /// When it does not come to that in time.
    pub async fn running_wait(&self, wanted: Running, deadline: Duration) -> anyhow::Result<()> {
        let what = format!("{wanted:?}");
        wait_for(&what, deadline, POLL, || async { Ok((self.running() == wanted).then_some(())) })
            .await
            .with_context(|| format!("{:?} run", self.running()))
    }

    /// Kills the source machine's QEMU with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// As [`kill`].
    pub fn source_kill(&self) -> anyhow::Result<()> {
        kill(processes_below(&self.sites.host_folder(), "qemu-system"))
    }

    /// Accepts a failover to Latest, with the source shut down first or left; returns its job.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn failover_start(&self, source: &str) -> anyhow::Result<String> {
        let asked = json!({"failoverDirection": "PrimaryToRecovery",
                           "sourceSiteOperations": source, "providerSpecificDetails": {}});
        self.site.start("unplannedFailover", asked).await
    }

    /// Fails over; returns the instance that runs now, as the item shows it, and the seconds from
    /// acceptance until its guest was let run.
    ///
    /// # Errors
    /// When the job does not end well.
    pub async fn failover(&self, source: &str) -> anyhow::Result<(Value, f64)> {
        let accepted = SystemTime::now();
        let job = self.failover_start(source).await?;
        job_wait(&self.site.client, &job, self.within(120)).await?;
        let instance = self.instance().await?;
        let started = instance["guestStartedAt"].as_str().context("no start")?;
        let started: jiff::Timestamp = started.parse()?;
        let accepted = accepted.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        Ok((instance, started.as_millisecond() as f64 / 1e3 - accepted))
    }

    /// The one instance of a failover that is wanted running.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub async fn instance(&self) -> anyhow::Result<Value> {
        let details = self.details().await?;
        let all = details["leewardInstances"].as_array().cloned().unwrap_or_default();
        let mut wanted = all.into_iter().filter(|one| one["wantedStage"] == "Running");
        match (wanted.next(), wanted.next()) {
            (Some(one), None) => Ok(one),
            (first, second) => bail!("not one instance is wanted running: {first:?} {second:?}"),
        }
    }

    /// The console file of an instance.
    ///
    /// # Errors
    /// When the item does not show it.
    pub fn instance_console(&self, instance: &Value) -> anyhow::Result<PathBuf> {
        let path = instance["consolePath"].as_str().context("no console path")?;
        Ok(self.sites.up_folder().join(path))
    }

    /// Takes a finished failover back and waits until the item is protected again.
    ///
    /// # Errors
    /// When the job does not end well.
    pub async fn failover_cancel(&self) -> anyhow::Result<Value> {
        let job = self.site.start("failoverCancel", json!({})).await?;
        let job = job_wait(&self.site.client, &job, self.within(120)).await?;
        self.protected().await?;
        Ok(job)
    }

    /// The last lines of both roles' logs.
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.sites.folder.join(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(25)..].join("\n"))
        };
        ["up.log", "host.log", "spare.log"].map(tail).concat()
    }

    /// Ends everything and says whether something was left behind.
    ///
    /// # Errors
    /// Names what is still there.
    pub fn close(mut self) -> anyhow::Result<()> {
        self.sites.clean();
        let left = processes_below(&self.sites.folder, "");
        ensure!(left.is_empty(), "processes are left behind: {left:?}");
        ensure!(!self.sites.folder.exists(), "{} is left behind", self.sites.folder.display());
        Ok(())
    }
}

const POLL: Duration = Duration::from_millis(20);

/// The guest's images, built once for all tests and again when their sources change.
async fn guest_cached(root: &Path, cache: &Path) -> anyhow::Result<GuestImages> {
    let newest = |folder: PathBuf| -> anyhow::Result<SystemTime> {
        let mut newest = SystemTime::UNIX_EPOCH;
        for entry in std::fs::read_dir(folder)? {
            newest = newest.max(entry?.metadata()?.modified()?);
        }
        Ok(newest)
    };
    let scripts = root.join("guest");
    let sources = newest(scripts.clone())?
        .max(newest(scripts.join("files"))?)
        .max(newest(scripts.join("ledger"))?);
    let (folder, mark) = (cache.join("guest"), cache.join("guest.built"));
    let built = std::fs::metadata(&mark).and_then(|mark| mark.modified());
    if built.is_ok_and(|built| built > sources) {
        return Ok(GuestImages { folder, scripts });
    }
    let images = GuestImages::build(root, &folder, "64M").await?;
    std::fs::write(mark, "")?;
    Ok(images)
}
