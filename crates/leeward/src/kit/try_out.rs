//! The test of a kit: another process of this program, in an empty folder and with an empty
//! environment, opens the store with nothing but what is in the kit.

use crate::store::{Failure, file_problem, problem};
use leeward_model::Code;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};
use uuid::Uuid;

/// What the kit alone showed.
pub(super) struct Seen {
    /// Points that were listed, each by opening its marker.
    pub(super) points: u64,
    /// Items that they are of.
    pub(super) items: u64,
}

/// An empty folder that goes when it is dropped.
struct Empty(PathBuf);

impl Drop for Empty {
    fn drop(&mut self) {
        // What is left is an empty folder below the system's temporary one.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Lists the points of `store` with `recovery_key`, and with nothing else of this machine.
///
/// # Errors
/// The other process's own words when it is refused.
pub(super) fn points(store: &str, recovery_key: &str) -> Result<Seen, Failure> {
    let what = || format!("the kit did not open the store in {store}");
    let failed = |error: std::io::Error| file_problem(what(), &error);
    let folder = Empty(std::env::temp_dir().join(format!("leeward-kit-test-{}", Uuid::new_v4())));
    std::fs::DirBuilder::new().mode(0o700).create(&folder.0).map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command
        .args(["store", "points", store, "--recovery-key", "-", "--output", "json"])
        .env_clear()
        .env("HOME", &folder.0)
        .env("XDG_CACHE_HOME", folder.0.join("cache"))
        .current_dir(&folder.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if store.contains("://") {
        // Who may read a bucket is not in a kit.
        let of_bucket = |name: &str| name.starts_with("AWS_") || name.starts_with("AZURE_");
        command.envs(std::env::vars().filter(|(name, _)| of_bucket(name)));
    }
    let mut child = command.spawn().map_err(failed)?;
    let mut input = child.stdin.take().expect("it was asked for above");
    // A process that ends before it has read the key says itself why.
    let _ = input.write_all(format!("{recovery_key}\n").as_bytes());
    drop(input);
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let code = said.split(':').next().unwrap_or_default();
        let cause = said.trim().to_owned();
        let known =
            Code::parse(said.trim()).map(|(code, _)| code).filter(|known| known.code == code);
        return Err(problem(known.unwrap_or(Code::KEY_MISSING), what(), cause));
    }
    let listed: Vec<Value> = serde_json::from_slice(&output.stdout)
        .map_err(|error| problem(Code::INTERNAL, what(), error))?;
    let items: BTreeSet<&str> = listed.iter().filter_map(|point| point["item"].as_str()).collect();
    Ok(Seen { points: listed.len() as u64, items: items.len() as u64 })
}
