//! The replication protocol: frames, messages, sealing, versions. Sans-I/O: bytes in, bytes out.

pub mod message;
