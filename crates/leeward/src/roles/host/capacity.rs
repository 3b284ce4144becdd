//! What this host has for machines, as the kernel tells it. Decides nothing.

use leeward_wire::capacity::HostCapacity;
use std::path::Path;

/// Network cards that are told at most; a host has a handful.
const MACS_MAX: usize = 64;

/// What the host has; none when the kernel does not tell.
pub(super) fn read(folder: &Path) -> Option<HostCapacity> {
    let (memory_mib, memory_available_mib) =
        memory(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let cpus = std::thread::available_parallelism().ok()?.get();
    let disk = rustix::fs::statvfs(folder).ok();
    Some(HostCapacity {
        memory_mib,
        memory_available_mib,
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        disk_free_bytes: disk.map(|seen| seen.f_bavail.saturating_mul(seen.f_frsize)),
        macs: macs(Path::new("/sys/class/net")),
    })
}

/// Total and available memory in MiB out of `/proc/meminfo`, whose unit is KiB.
fn memory(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 =
            line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib / 1024)
    };
    Some((field("MemTotal")?, field("MemAvailable")?))
}

/// Hardware addresses, sorted, without those of cards that have none.
fn macs(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let read =
        entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("address")).ok());
    let told = read.map(|text| text.trim().to_ascii_lowercase());
    let mut macs: Vec<String> =
        told.filter(|mac| mac.len() == 17 && mac != "00:00:00:00:00:00").collect();
    macs.sort();
    macs.dedup();
    macs.truncate(MACS_MAX);
    macs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_the_kernels_unit_and_what_is_missing_is_not_zero() {
        let text = "MemTotal:        2048000 kB\nMemFree: 1 kB\nMemAvailable:    1024000 kB\n";
        assert_eq!(memory(text), Some((2000, 1000)));
        assert_eq!(memory("MemTotal:        2048000 kB\n"), None);
        assert_eq!(memory("MemTotal: x kB\nMemAvailable: 1 kB\n"), None);
    }

    #[test]
    fn this_machine_tells_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let seen = read(folder.path()).unwrap();
        assert!(seen.memory_mib >= seen.memory_available_mib && seen.memory_available_mib > 0);
        assert!(seen.cpus > 0 && seen.disk_free_bytes.is_some());
        assert_eq!(macs(folder.path()), Vec::<String>::new());
        std::fs::create_dir(folder.path().join("eth0")).unwrap();
        std::fs::write(folder.path().join("eth0/address"), "52:54:00:AA:00:01\n").unwrap();
        std::fs::create_dir(folder.path().join("lo")).unwrap();
        std::fs::write(folder.path().join("lo/address"), "00:00:00:00:00:00\n").unwrap();
        assert_eq!(macs(folder.path()), ["52:54:00:aa:00:01"]);
    }
}
