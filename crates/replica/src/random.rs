//! Randomness as an argument. Draws for keys, ids of pins and writer nonces; nothing else.

use rustix::rand::{GetRandomFlags, getrandom};
use uuid::Uuid;

/// A source of unpredictable bytes.
pub trait Random: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// The system's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    /// # Panics
    /// When the system has no randomness: keys cannot be made then, and nothing may go on.
    fn fill(&self, bytes: &mut [u8]) {
        // The kernel's own, which waits until it is seeded. The crypto library's collects jitter of
        // the processor at its first use: 40 ms, more than an emergency's first read may take.
        let mut filled = 0;
        while filled < bytes.len() {
            match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("the system's random generator does not work: {error}"),
            }
        }
    }
}

pub(crate) fn draw<const N: usize>(random: &dyn Random) -> [u8; N] {
    let mut bytes = [0; N];
    random.fill(&mut bytes);
    bytes
}

pub(crate) fn draw_uuid(random: &dyn Random) -> Uuid {
    uuid::Builder::from_random_bytes(draw(random)).into_uuid()
}
