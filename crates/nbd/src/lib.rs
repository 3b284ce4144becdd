//! Network Block Device protocol: a client, a server, and the messages between them.
//!
//! It knows nothing of what the disks are for. It speaks fixed newstyle negotiation, simple and
//! structured replies, and block status (`base:allocation` as server; any metadata context, such
//! as `qemu:dirty-bitmap:NAME`, as client). It does not speak TLS, extended headers, or the
//! oldstyle handshake: it is meant for unix sockets and for streams that somebody else secured.
//!
//! - [`protocol`]: constants and pure encoders and decoders.
//! - [`client`]: [`client::Client`], a cloneable handle with several requests in flight.
//! - [`server`]: [`server::Server`], which serves any [`server::Export`].
//! - [`memory`]: [`memory::MemoryExport`], an export in memory for tests.

pub mod client;
pub mod memory;
pub mod protocol;
pub mod server;
