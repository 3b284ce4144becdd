//! The suite that every fabric passes, and what only real QEMU processes can show.
//!
//! QEMU runs emulated, one test at a time; no guest operating system is needed: writes go through
//! the devices of the machines, asked for at a second monitor.

mod qemu_capture;
mod qemu_instance;
mod qemu_world;
