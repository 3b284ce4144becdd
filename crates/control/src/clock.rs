//! Time and randomness as arguments. The real versions live in the binary.

use leeward_model::UnixMillis;
use leeward_wire::message::ServerStamp;

/// Is an instant by both clocks of the config server's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall time, milliseconds since 1970: for people, job records and expiry.
    pub wall: UnixMillis,
    /// Milliseconds since the machine's boot (CLOCK_BOOTTIME): for silence and RPO.
    pub boottime_ms: u64,
    /// The machine's boot id; boot-times of different boots cannot be compared.
    pub boot: String,
}

impl Now {
    /// Wall time as the unsigned number that job records use; 0 before 1970.
    pub fn wall_ms(&self) -> u64 {
        u64::try_from(self.wall.0).unwrap_or(0)
    }
    /// The instant as it is sent to hosts.
    pub fn stamp(&self) -> ServerStamp {
        ServerStamp { boot: self.boot.clone(), ms: self.boottime_ms, wall: self.wall }
    }
}

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// The present instant.
    fn now(&self) -> Now;
}

/// Draws random numbers.
pub trait Draw: Send + Sync + 'static {
    /// 128 bits that nobody can guess and that never come twice.
    fn draw(&self) -> u128;
}

/// Signs start permits with the config server's Ed25519 key.
pub trait PermitSigner: Send + Sync + 'static {
    /// Signature of `bytes`, in hexadecimal, 128 digits.
    fn sign(&self, bytes: &[u8]) -> String;
    /// The public key, in hexadecimal, 64 digits.
    fn public_key(&self) -> String;
}

/// A new id of any kind, from 128 drawn bits made to look like a version 4 UUID.
pub(crate) fn new_id<T: From<uuid::Uuid>>(draw: &dyn Draw) -> T {
    uuid::Builder::from_random_bytes(draw.draw().to_be_bytes()).into_uuid().into()
}
