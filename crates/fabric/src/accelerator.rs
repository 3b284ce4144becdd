//! Whether QEMU may use KVM here: found out by starting a tiny guest, not by looking at a device.
//!
//! A `/dev/kvm` that exists may be refused or hang; then machines run emulated (TCG).

use crate::process::{self, ProcessError};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// How QEMU runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By emulation.
    Tcg,
}

impl Accelerator {
    /// `kvm` or `tcg`.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    /// The value of QEMU's `-accel`.
    pub fn argument(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        }
    }

    /// The value of QEMU's `-cpu`: all of the host's, or the cheapest to emulate.
    pub fn cpu(self) -> &'static str {
        match self {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "qemu64",
        }
    }
}

/// A guest that works has ended by now: with KVM it takes 0.2 s.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);
/// How long a killed probe may take to go; one that hangs in the kernel is left behind.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// The probe's boot sector: writes 0x10 to the port of the debug exit device, then halts for
/// ever. QEMU then ends with the value 0x10 * 2 + 1.
const BOOT_CODE: [u8; 9] = [0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4, 0xeb, 0xfd];
const EXIT_VALUE: i32 = 0x10 * 2 + 1;

/// What is kept of a probe; another boot may have another kernel.
#[derive(Serialize, Deserialize)]
struct Cached {
    boot: String,
    accelerator: Accelerator,
}

/// KVM if a guest runs with it, TCG if not. The result is kept in the file `cache` for this boot.
///
/// # Errors
/// [`ProcessError`] when the probe's files cannot be written; a probe that fails is no error.
pub async fn probe(program: &str, cache: &Path) -> Result<Accelerator, ProcessError> {
    let boot = process::boot_id()?;
    if let Some(cached) = process::read_json::<Cached>(cache)?.filter(|known| known.boot == boot) {
        return Ok(cached.accelerator);
    }
    let accelerator = match Path::new("/dev/kvm").exists() {
        true if guest_runs(program, Accelerator::Kvm, cache, PROBE_DEADLINE).await? => {
            Accelerator::Kvm
        }
        true | false => Accelerator::Tcg,
    };
    process::write_json(cache, &Cached { boot, accelerator })?;
    Ok(accelerator)
}

/// Whether a tiny guest runs to its end within `deadline`. Its files lie beside `beside`.
async fn guest_runs(
    program: &str,
    accelerator: Accelerator,
    beside: &Path,
    deadline: Duration,
) -> Result<bool, ProcessError> {
    // Names of this process's own: another one may be probing beside it.
    let own = |kind: &str| beside.with_extension(format!("probe-{}.{kind}", std::process::id()));
    let (image, log) = (own("img"), own("log"));
    let mut sector = vec![0; 512];
    sector[..BOOT_CODE.len()].copy_from_slice(&BOOT_CODE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = |source| ProcessError::File { what: "write", path: image.clone(), source };
    std::fs::write(&image, sector).map_err(file)?;
    let drive =
        format!("if=ide,format=raw,file={}", image.display().to_string().replace(',', ",,"));
    let arguments: Vec<OsString> = [
        "-accel",
        accelerator.argument(),
        "-cpu",
        accelerator.cpu(),
        "-machine",
        "pc",
        "-m",
        "16",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=0x04",
        "-drive",
        &drive,
    ]
    .into_iter()
    .map(OsString::from)
    .collect();
    let runs = match process::spawn_detached(program, &arguments, &log) {
        Ok((identity, mut child)) => match tokio::time::timeout(deadline, child.wait()).await {
            Ok(Ok(status)) => status.code() == Some(EXIT_VALUE),
            Ok(Err(_)) | Err(_) => {
                if let Err(error) = identity.kill(KILL_DEADLINE).await {
                    tracing::warn!(%error, "the probe of the accelerator was left behind");
                }
                false
            }
        },
        Err(error) => {
            tracing::info!(%error, "the probe of the accelerator did not start");
            false
        }
    };
    for leftover in [&image, &log] {
        let _ = std::fs::remove_file(leftover); // It may never have been made.
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QEMU: &str = "qemu-system-x86_64";

    #[tokio::test]
    async fn the_probe_guest_runs_under_emulation_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("accelerator.json");
        let patient = Duration::from_secs(60);

        let runs = guest_runs(QEMU, Accelerator::Tcg, &cache, patient).await.unwrap();

        assert!(runs);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_guest_that_does_not_end_in_time_counts_as_not_running() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("accelerator.json");

        let runs = guest_runs(QEMU, Accelerator::Tcg, &cache, Duration::ZERO).await.unwrap();

        assert!(!runs);
    }

    #[tokio::test]
    async fn the_result_is_kept_for_this_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("accelerator.json");
        let keep = |boot: String, accelerator| {
            process::write_json(&cache, &Cached { boot, accelerator }).unwrap();
        };

        keep(process::boot_id().unwrap(), Accelerator::Kvm);
        assert_eq!(probe("false", &cache).await.unwrap(), Accelerator::Kvm);

        keep("another boot".into(), Accelerator::Kvm);
        assert_eq!(probe("false", &cache).await.unwrap(), Accelerator::Tcg);
        assert_eq!(probe("not a program", &cache).await.unwrap(), Accelerator::Tcg);
    }
}
