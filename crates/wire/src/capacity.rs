//! What a host tells of its own machine: what it has for guests. JSON, inside the observed state.
//! How it is read is the host's business.

use serde::{Deserialize, Serialize};

/// What a host has for machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCapacity {
    /// Memory of the whole host, in MiB.
    pub memory_mib: u64,
    /// Memory that can be taken now without swapping, as the kernel estimates it, in MiB.
    pub memory_available_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// Free bytes where the disks of machines made from points lie.
    pub disk_free_bytes: Option<u64>,
    /// Hardware addresses of the host's own network cards: tell whether it is itself a machine.
    pub macs: Vec<String>,
}
