//! Who may talk to whom: the private CA, node certificates, TLS settings, permit signatures.
//! Tokens of the public API are not here: see the config server's role.

pub mod authority;
pub mod permits;
pub mod tls;

use std::path::PathBuf;

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A key or certificate could not be made.
    #[error("could not make {what}")]
    Make {
        /// What.
        what: &'static str,
        /// Why.
        source: rcgen::Error,
    },
    /// A key or certificate file could not be read or written.
    #[error("could not use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// TLS refused what it was given.
    #[error("could not set up TLS")]
    Tls(#[from] rustls::Error),
    /// A file does not hold what it should.
    #[error("{} does not hold {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// A signature or key has the wrong form.
    #[error("{0} is not valid")]
    Invalid(&'static str),
}
