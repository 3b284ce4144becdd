//! Randomness as an argument. Draws for keys, ids of pins and writer nonces; nothing else.

use aws_lc_rs::rand::SecureRandom as _;
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
        aws_lc_rs::rand::SystemRandom::new()
            .fill(bytes)
            .expect("the system's random generator works");
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
