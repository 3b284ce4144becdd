//! The story of the demo: which steps there are and what they share. What happens in them, with
//! its checks, is in the modules below.

mod home;
mod outward;

use super::{
    api::Site,
    guest::{ConsoleSeen, GuestImages},
    progress::Screen,
    report::{Report, Step},
    sites::Sites,
};
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const MACHINE: &str = "ledger01";
const BOOT_DEADLINE: Duration = Duration::from_secs(240);
const JOB_DEADLINE: Duration = Duration::from_secs(300);
/// The machine's images, in the order of their numbers.
const DISKS: [&str; 2] = ["boot.raw", "data.raw"];

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
    /// End after the commit: the way home is not told.
    pub outward_only: bool,
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
        let step = self.step("Two sites and a machine");
        let outcome = self.prepare().await;
        self.ended(step, "start two sites and a machine", outcome)?;
        let step = self.step("Protect it");
        let outcome = self.protect().await;
        self.ended(step, "protect the machine", outcome)?;
        let step = self.step("Recovery points every 2 s");
        let outcome = self.replicate().await;
        let early = self.ended(step, "make recovery points", outcome)?;
        let step = self.step("Test failover");
        let outcome = self.test_failover(&early).await;
        self.ended(step, "test failover, and clean it up", outcome)?;
        let step = self.step("Disaster: machine and host are killed");
        let outcome = self.disaster().await;
        let lost = self.ended(step, "disaster", outcome)?;
        let step = self.step("Failover to Latest");
        let outcome = self.failover(&lost).await;
        let latest = self.ended(step, "failover to Latest", outcome)?;
        let step = self.step("Change of recovery point, and back");
        let outcome = self.change_points(&early, &latest).await;
        self.ended(step, "change of recovery point, and back", outcome)?;
        let step = self.step("Commit");
        let outcome = self.commit().await;
        self.ended(step, "commit", outcome)?;
        if self.options.outward_only {
            return Ok(());
        }
        self.home_again().await
    }

    fn step(&self, name: &str) -> Instant {
        self.screen.step(self.report.steps.len() + 1, name);
        Instant::now()
    }

    /// Notes a step that began at `begun` and how it ended.
    fn ended<T>(
        &mut self,
        begun: Instant,
        name: &str,
        outcome: anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let seconds = (begun.elapsed().as_secs_f64() * 100.0).round() / 100.0;
        self.report.steps.push(Step { name: name.to_owned(), seconds, ok: outcome.is_ok() });
        outcome
    }

    fn site(&self) -> &Site {
        self.site.as_ref().expect("protecting comes before")
    }

    fn images(&self) -> &GuestImages {
        self.images.as_ref().expect("building comes first")
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
