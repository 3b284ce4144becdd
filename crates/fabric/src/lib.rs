//! The worlds that machines live in: finds, starts, stops and captures machines on this host.
//!
//! [`Fabric`] is what a host needs of such a world; [`qemu::QemuFabric`] is QEMU on this machine.
//! It decides nothing: who may start a machine, and when a point is cut, is the host role's
//! business.

pub mod accelerator;
mod fabric;
pub mod image;
pub mod machine_toml;
#[cfg(feature = "testing")]
pub mod memory;
pub mod process;
pub mod qemu;
pub mod qmp;
mod still;

pub use fabric::{
    ExportAnswers, Fabric, FabricError, FencedChanges, FencedDisk, InstanceDisk, InstancePlan,
    InstanceStatus, IoStop, MachineRef, Shutdown, Still,
};
