//! The roles behind the `leeward` command: config server, host, export. The command line itself
//! is in `main.rs` and `cli`.

pub mod cli;
pub mod client;
pub mod export;
pub mod folder;
pub mod roles;
pub mod trust;
