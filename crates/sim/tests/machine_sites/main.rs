//! Real processes and real machines: what must hold when things are killed, cut off, cancelled
//! or full. Each test has two sites of its own; the test runner lets them run one at a time.

#![allow(clippy::unwrap_used)]

mod cancel;
mod demo;
mod ends;
mod home;
mod kills;
mod loss;
mod options;
mod other_host;
mod reverse;
mod silence;
mod space;
mod spool;
mod stale;

use leeward_sim::demo::stage::{Running, Stage, StageOptions};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The longest that a test may take before it is ended, with everything it started.
const LIMIT: Duration = Duration::from_secs(400);

/// The guest's slowest write under emulation on a busy machine, in milliseconds.
const IO_MS_MAX: f64 = 2_000.0;
/// The machine runs where it is protected, and nowhere else.
const AT_SOURCE: Running = Running { source: 1, target: 0 };
/// The machine runs at the recovery site, and nowhere else.
const AT_TARGET: Running = Running { source: 0, target: 1 };

/// The product's program: built beside this test, or the one that the environment names.
fn leeward_program() -> PathBuf {
    if let Some(program) = std::env::var_os("LEEWARD_PROGRAM") {
        return program.into();
    }
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("leeward")
}

/// The project's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Tells `story` on a stage and ends everything that it started, however it went.
async fn on_stage<F>(options: StageOptions, story: F)
where
    F: AsyncFnOnce(&mut Stage) -> anyhow::Result<()>,
{
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut stage = Stage::open(&root(), &leeward_program(), cache, options).await.unwrap();
    println!("reference boot: {:.1} s", stage.boot.as_secs_f64());

    let told = tokio::time::timeout(LIMIT, story(&mut stage)).await;

    let why = match told {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some(format!("it took longer than {} s", LIMIT.as_secs())),
    };
    let logs = stage.logs();
    let closed = stage.close();
    if let Some(why) = why {
        panic!("{why}\n{logs}");
    }
    closed.unwrap();
}
