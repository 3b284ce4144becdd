//! Client and server against each other and against tools of others: qemu-img, qemu-io, qemu-nbd,
//! nbdinfo, nbdcopy. A test whose tool is not installed says so on standard error and passes.

#![allow(clippy::unwrap_used)] // All of it is tests; clippy sees only functions marked so.

#[path = "interop/foreign_client.rs"]
mod foreign_client;
#[path = "interop/foreign_server.rs"]
mod foreign_server;
#[path = "interop/own.rs"]
mod own;
#[path = "interop/raw.rs"]
mod raw;
#[path = "interop/world.rs"]
mod world;
