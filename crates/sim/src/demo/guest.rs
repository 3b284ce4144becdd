//! The guest as a judge sees it: its console, its workload port, its disks. Never through the
//! product.

use anyhow::{Context as _, bail};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    process::Command,
};

/// The built guest: images and the ledger program.
#[derive(Clone)]
pub struct GuestImages {
    /// Folder of `boot.raw`, `data.raw`, `ledger`.
    pub folder: PathBuf,
    /// Folder of the scripts.
    pub scripts: PathBuf,
}

impl GuestImages {
    /// Builds the guest into `folder`, or takes what an earlier build of the same scripts left.
    ///
    /// # Errors
    /// When the build script fails; its words are in the error.
    pub async fn build(root: &Path, folder: &Path, data_size: &str) -> anyhow::Result<Self> {
        let scripts = root.join("guest");
        std::fs::create_dir_all(folder)?;
        let output = Command::new(scripts.join("build.sh"))
            // What an interrupted build leaves goes with the folder.
            .env("TMPDIR", folder)
            .arg(folder)
            .args(["--data-size", data_size])
            .output()
            .await
            .context("could not run guest/build.sh")?;
        if !output.status.success() {
            bail!("guest/build.sh failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self { folder: folder.to_owned(), scripts })
    }

    /// Judges two raw images without booting them.
    ///
    /// # Errors
    /// When the judge cannot run; a bad ledger is a value with `ok: false`.
    pub async fn judge(&self, boot: &Path, data: &Path) -> anyhow::Result<Value> {
        let output = Command::new(self.scripts.join("verify-image.sh"))
            .env("TMPDIR", &self.folder)
            .arg(boot)
            .arg(data)
            .arg("--ledger")
            .arg(self.folder.join("ledger"))
            .output()
            .await
            .context("could not run guest/verify-image.sh")?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .rev()
            .find_map(|line| serde_json::from_str(line.trim_start_matches("LEDGER ")).ok())
            .with_context(|| {
                format!("no verdict: {text} {}", String::from_utf8_lossy(&output.stderr))
            })
    }
}

/// Copies the overlays of a machine that is off, made from a point and whole by now, into raw
/// images in `folder`, which is made.
///
/// # Errors
/// When one cannot be read.
pub async fn disks_convert(overlays: &Path, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (number, image) in ["boot.raw", "data.raw"].into_iter().enumerate() {
        let converted = Command::new("qemu-img")
            .args(["convert", "-f", "qcow2", "-O", "raw"])
            .arg(overlays.join(format!("disk-{number}.qcow2")))
            .arg(folder.join(image))
            .output()
            .await?;
        if !converted.status.success() {
            bail!("could not read a disk: {}", String::from_utf8_lossy(&converted.stderr));
        }
    }
    Ok(())
}

/// What a console has shown so far.
#[derive(Clone, Debug, Default)]
pub struct ConsoleSeen {
    /// Whether the kernel has written anything.
    pub kernel: bool,
    /// What the ledger found on the disks at this boot.
    pub ledger: Option<Value>,
    /// The first new record after this boot.
    pub first: Option<u64>,
}

/// Reads a serial console's file.
pub fn console_read(path: &Path) -> ConsoleSeen {
    console_read_from(path, 0)
}

/// Reads what a serial console's file holds from byte `from` on: a machine that is started again
/// goes on behind what it wrote before.
fn console_read_from(path: &Path, from: usize) -> ConsoleSeen {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default());
    let json = |line: &str, head: &str| -> Option<Value> {
        serde_json::from_str(line.trim().strip_prefix(head)?).ok()
    };
    ConsoleSeen {
        kernel: text.contains("Linux version"),
        ledger: text.lines().rev().find_map(|line| json(line, "LEDGER ")),
        first: text.lines().rev().find_map(|line| json(line, "LEDGER-FIRST ")?["seq"].as_u64()),
    }
}

/// Instants at which a console first showed each thing.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootTimes {
    /// First output of the kernel.
    pub kernel: Option<Instant>,
    /// First new record.
    pub first_record: Option<Instant>,
}

/// Watches a console until the first new record or the deadline.
///
/// # Errors
/// When the deadline passes first.
pub async fn console_watch(
    path: &Path,
    deadline: Duration,
) -> anyhow::Result<(BootTimes, ConsoleSeen)> {
    console_watch_from(path, 0, deadline).await
}

/// As [`console_watch`], for a boot whose console begins at byte `from` of the file.
///
/// # Errors
/// When the deadline passes first.
pub async fn console_watch_from(
    path: &Path,
    from: usize,
    deadline: Duration,
) -> anyhow::Result<(BootTimes, ConsoleSeen)> {
    let begun = Instant::now();
    let mut times = BootTimes::default();
    loop {
        let seen = console_read_from(path, from);
        if seen.kernel {
            times.kernel.get_or_insert_with(Instant::now);
        }
        if seen.first.is_some() {
            times.first_record = Some(Instant::now());
            return Ok((times, seen));
        }
        if begun.elapsed() > deadline {
            bail!("the guest wrote no record within {} s: {seen:?}", deadline.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A connection to the workload port of the source guest.
pub struct Workload {
    stream: BufReader<UnixStream>,
    number: u64,
}

impl Workload {
    /// Connects to the port's socket.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path)
            .await
            .with_context(|| format!("could not connect to {}", path.display()))?;
        Ok(Self { stream: BufReader::new(stream), number: 0 })
    }

    /// Sends `words` and returns the answer.
    ///
    /// # Errors
    /// When there is none within 10 s.
    pub async fn ask(&mut self, words: &str) -> anyhow::Result<Value> {
        self.number += 1;
        let line = format!("{words} id={}\n", self.number);
        self.stream.get_mut().write_all(line.as_bytes()).await?;
        let answer = async {
            loop {
                let mut line = String::new();
                if self.stream.read_line(&mut line).await? == 0 {
                    bail!("the workload port was closed");
                }
                if let Ok(value) = serde_json::from_str::<Value>(&line)
                    && value["id"].as_u64() == Some(self.number)
                {
                    return Ok(value);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), answer)
            .await
            .context("the workload port did not answer")?
    }
}
