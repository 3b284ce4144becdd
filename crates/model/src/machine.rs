//! Machines as a host describes them: disks, network cards, firmware, memory.

use crate::DiskNumber;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Format of a disk image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Plain bytes.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Number within the item: the order of the machine's description, from 0.
    pub number: DiskNumber,
    /// Name in the machine's description; stable, unique within the machine, at most 64 bytes.
    pub id: String,
    /// Serial number that the guest sees; at most 20 bytes.
    pub serial: String,
    /// Size that the guest sees, in bytes; 0 when the image is missing.
    pub size: u64,
    /// Logical block size that the guest sees, in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// Format of the image on its own host.
    pub format: DiskFormat,
    /// Path of the image on its own host.
    pub path: String,
}

/// A network card of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Hardware address, `52:54:00:…`.
    pub mac: String,
    /// Name of the network on its own host; `user` is QEMU's built-in one.
    pub network: String,
    /// The address that its network gives the guest when that asks by DHCP; none: as the network
    /// likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
}

/// The networks that every host has: with a way out, and without one.
pub const NETWORKS: [&str; 2] = ["user", "isolated"];
/// Longest name of a machine, in bytes.
pub const MACHINE_NAME_BYTES_MAX: usize = 64;
/// Least memory of a machine, in MiB.
pub const MEMORY_MIB_MIN: u32 = 16;
/// Most memory of a machine, in MiB: 4 TiB.
pub const MEMORY_MIB_MAX: u32 = 1 << 22;
/// Most virtual processors of a machine: what QEMU's q35 takes without more.
pub const CPUS_MAX: u32 = 255;

/// Whether a name can be part of a path, of a node name and of a hypervisor's command line: 1 to
/// [`MACHINE_NAME_BYTES_MAX`] ASCII letters, digits, `.`, `_` and `-`, a letter or digit first.
pub fn machine_name_fits(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let first = name.bytes().next();
    name.len() <= MACHINE_NAME_BYTES_MAX
        && first.is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(fits)
}

/// Whether a network of a host can give a guest this address. Its network is the `/24` around it,
/// of which 0 to 3 and 255 are the network's own: the network, the host, the name server.
pub fn nic_address_fits(address: Ipv4Addr) -> bool {
    let last = address.octets()[3];
    (4..=254).contains(&last)
        && !address.is_loopback()
        && !address.is_multicast()
        && !address.is_link_local()
        && (1..=223).contains(&address.octets()[0])
}

/// How a machine starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS, from the machine's first disk.
    Bios,
}

/// What a booted machine must show before a recovery point counts as verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probe {
    /// Text that must appear on a line of the serial console, for example a health report.
    pub console_contains: Option<String>,
    /// Text that makes the probe fail when the same line has it.
    pub console_must_not_contain: Option<String>,
    /// How long to wait for it after the start, in seconds.
    pub timeout_seconds: u32,
}

/// A machine, as far as it is needed to start it again elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Name, unique on its host: the folder's name. At most 64 bytes.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// How it starts.
    pub firmware: Firmware,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<DiskSpec>,
    /// Network cards.
    pub nics: Vec<NicSpec>,
    /// Whether it has a display.
    pub display: bool,
    /// What proves that it works.
    pub probe: Probe,
}

/// How much the disks of a machine hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Bytes that the images of its disks take: at least the blocks that hold anything.
    pub allocated_bytes: u64,
    /// Bytes that its guest changed since a failover started it; none when no map tells.
    pub changed_bytes: Option<u64>,
}

/// What a host knows of a machine's run state. Unknown is not absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// The guest runs.
    Running,
    /// QEMU runs, the guest's CPUs do not.
    Paused,
    /// No process of this machine exists.
    Off,
    /// It could not be found out.
    Unknown,
}

/// A machine that a host found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoveredMachine {
    /// Its description.
    pub spec: MachineSpec,
    /// Its run state.
    pub state: MachineState,
    /// Why it cannot be protected: `LW-NNNN: words` each; empty when it can.
    pub obstacles: Vec<String>,
}
