//! The suite that every fabric passes, and what only real QEMU processes can show.
//!
//! QEMU runs emulated, one test at a time; no guest operating system is needed: writes go through
//! the devices of the machines, asked for at a second monitor.
#![cfg(feature = "testing")]
// Helpers of tests are tests: clippy's own exception knows only functions that carry #[test].
#![allow(clippy::unwrap_used)]

mod memory_world;
mod qemu_capture;
mod qemu_instance;
mod qemu_settle;
mod qemu_world;
mod suite;
mod suite_settle;
