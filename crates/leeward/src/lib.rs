//! The roles behind the `leeward` command: config server, host, export; and `store`, the tool that
//! needs none of them. The command line itself is in `main.rs` and `cli`.

pub mod audit_pace;
pub mod cli;
pub mod client;
pub mod export;
pub mod folder;
pub mod intake;
pub mod kit;
pub mod roles;
pub mod sealing;
pub mod store;
pub mod trust;
