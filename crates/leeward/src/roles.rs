//! The long-running roles. `up` is a host, the config server and the public API in one process.

pub mod host;
