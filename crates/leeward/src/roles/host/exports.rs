//! Starts and finds again the export processes that running machines read their points through.
//!
//! An export is a process of its own, independent of every role, so that the death of this one
//! does not take a machine's disk away.

use crate::roles::place::StorePlace;
use async_trait::async_trait;
use leeward_fabric::process::{self, ProcessIdentity};
use leeward_model::{ItemId, PointId};
use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::net::UnixStream;

/// How long an export may take to answer after its start.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the end of a killed export may take to be seen.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportPlan {
    /// The item.
    pub item: ItemId,
    /// The point.
    pub point: PointId,
    /// The unix socket, at most 107 bytes; disk N is the export `disk-N`.
    pub socket: PathBuf,
    /// Where its mark and log are.
    pub folder: PathBuf,
    /// What its machine read first in the item's last test: see [`crate::export::boot_set`].
    pub boot_set: PathBuf,
    /// What becomes of that.
    pub boot_set_use: BootSetUse,
}

/// What an export does with the boot set, beside fetching it ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootSetUse {
    /// Leaves it as it is.
    Keep,
    /// Replaces it by what is read first this time.
    Record,
}

/// Runs exports. Every call may be repeated.
#[async_trait]
pub trait ExportLauncher: Send + Sync {
    /// Makes sure that the export runs and answers.
    async fn start(&self, plan: &ExportPlan) -> io::Result<()>;
    /// Whether it answers now.
    async fn answers(&self, plan: &ExportPlan) -> bool;
    /// Ends it and confirms that.
    async fn stop(&self, plan: &ExportPlan) -> io::Result<()>;
}

/// Runs `leeward export` processes.
pub struct ProcessLauncher {
    /// This program.
    pub program: PathBuf,
    /// The store.
    pub store: StorePlace,
}

impl ProcessLauncher {
    fn mark(plan: &ExportPlan) -> PathBuf {
        plan.folder.join("export.json")
    }

    fn running(plan: &ExportPlan) -> io::Result<Option<ProcessIdentity>> {
        let mark: Option<ProcessIdentity> =
            process::read_json(&Self::mark(plan)).map_err(io::Error::other)?;
        match mark {
            Some(mark) if mark.is_alive().map_err(io::Error::other)? => Ok(Some(mark)),
            _ => Ok(None),
        }
    }

    fn launch(&self, plan: &ExportPlan) -> io::Result<()> {
        let argument = |name: &str, value: &Path| [OsString::from(name), value.into()];
        let mut arguments = vec![OsString::from("export")];
        arguments.extend(self.store.export_words());
        arguments.extend(argument("--item", Path::new(&plan.item.to_string())));
        arguments.extend(argument("--point", Path::new(&plan.point.to_string())));
        arguments.extend(argument("--socket", &plan.socket));
        arguments.extend(argument("--boot-set", &plan.boot_set));
        if plan.boot_set_use == BootSetUse::Record {
            arguments.push(OsString::from("--record-boot-set"));
        }
        let program = self.program.to_string_lossy();
        let log = plan.folder.join("export.log");
        let (identity, mut child) = process::spawn_detached(&program, &arguments, &log)
            .map_err(|error| io::Error::other(error.to_string()))?;
        // Waited for, so that an export that ends while we live does not stay a zombie.
        tokio::spawn(async move { child.wait().await });
        process::write_json(&Self::mark(plan), &identity).map_err(io::Error::other)
    }
}

#[async_trait]
impl ExportLauncher for ProcessLauncher {
    async fn start(&self, plan: &ExportPlan) -> io::Result<()> {
        std::fs::create_dir_all(&plan.folder)?;
        if Self::running(plan)?.is_none() {
            self.launch(plan)?;
        }
        let begun = Instant::now();
        while !self.answers(plan).await {
            if Self::running(plan)?.is_none() {
                let log = std::fs::read_to_string(plan.folder.join("export.log"));
                let last = log.unwrap_or_default().lines().last().unwrap_or_default().to_owned();
                return Err(io::Error::other(format!("the export ended at once: {last}")));
            }
            if begun.elapsed() > START_TIMEOUT {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the export did not answer"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn answers(&self, plan: &ExportPlan) -> bool {
        let connect = UnixStream::connect(&plan.socket);
        matches!(tokio::time::timeout(Duration::from_millis(500), connect).await, Ok(Ok(_)))
    }

    async fn stop(&self, plan: &ExportPlan) -> io::Result<()> {
        if let Some(identity) = Self::running(plan)? {
            identity.kill(END_TIMEOUT).await.map_err(io::Error::other)?;
        }
        for path in [plan.socket.clone(), Self::mark(plan)] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
