//! Samples with changes that parsers mind: flipped bits, extreme numbers, cuts, repeats, splices.
//! Knows nothing of formats.

use leeward_replica::storage::Seeded;

/// Numbers at which arithmetic goes wrong.
const EXTREMES: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX >> 1, u64::MAX];
/// Most changes of one sample.
const CHANGES_MAX: u64 = 4;
/// Longest changed sample in bytes.
const BYTES_MAX: usize = 256 << 10;

/// Draws changed samples, the same ones for the same seed.
pub struct Changed<'a> {
    samples: &'a [Vec<u8>],
    random: Seeded,
}

impl<'a> Changed<'a> {
    pub fn new(samples: &'a [Vec<u8>], random: Seeded) -> Changed<'a> {
        Changed { samples, random }
    }

    pub fn draw(&mut self) -> Vec<u8> {
        let mut bytes = self.sample().to_vec();
        for _ in 0..=self.below(CHANGES_MAX as usize) {
            self.change(&mut bytes);
        }
        bytes.truncate(BYTES_MAX);
        bytes
    }

    fn sample(&mut self) -> &'a [u8] {
        let at = self.below(self.samples.len());
        &self.samples[at]
    }

    /// A number below `end`, 0 when that is 0.
    fn below(&mut self, end: usize) -> usize {
        self.random.below(end.max(1) as u64) as usize
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        match self.below(8) {
            0 if !bytes.is_empty() => {
                let bit = self.below(8);
                bytes[at] ^= 1 << bit;
            }
            1 => {
                let pick = self.below(EXTREMES.len());
                let width = [1, 2, 4, 8][self.below(4)];
                let number = EXTREMES[pick].to_le_bytes();
                for (byte, new) in bytes[at..].iter_mut().zip(&number[..width]) {
                    *byte = *new;
                }
            }
            2 => bytes.truncate(at),
            3 => {
                let from = self.below(at + 1);
                let copy = bytes[from..at].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let until = at + self.below(bytes.len() - at);
                bytes.drain(at..until);
            }
            5 => {
                let other = self.sample();
                let cut = self.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[cut..]);
            }
            6 => {
                // A digit of JSON or TOML becomes a number that nobody writes.
                let pick = self.below(EXTREMES.len());
                let number = format!("-{}e9", EXTREMES[pick]);
                let from = self.below(2);
                bytes.splice(at..at, number.bytes().skip(from));
            }
            _ => {
                let word = self.random.next_u64().to_le_bytes();
                bytes.splice(at..at, word);
            }
        }
    }
}
