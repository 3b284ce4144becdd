//! The config server's clock, randomness and permit key, from the operating system.

use crate::{roles::host::clock, trust::permits::PermitKey};
use leeward_control::{Clock, Draw, Now, PermitSigner};
use std::io;

/// The machine's clocks.
pub struct SystemClock {
    boot: String,
}

impl SystemClock {
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn new() -> io::Result<Self> {
        Ok(SystemClock { boot: clock::boot_id()? })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { wall: clock::wall_now(), boottime_ms: clock::boottime_ms(), boot: self.boot.clone() }
    }
}

/// The system's randomness.
pub struct SystemDraw;

impl Draw for SystemDraw {
    fn draw(&self) -> u128 {
        uuid::Uuid::new_v4().as_u128()
    }
}

/// Signs with the key in the config server's folder.
pub struct FileSigner(pub PermitKey);

impl PermitSigner for FileSigner {
    fn sign(&self, bytes: &[u8]) -> String {
        self.0.sign_bytes(bytes)
    }
    fn public_key(&self) -> String {
        self.0.public_hex()
    }
}
