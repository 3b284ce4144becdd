//! The form of a kit: a header, and JSON sealed with a key from the passphrase, as text that can
//! be printed and typed. Byte by byte: `docs/formats/kit.md`.

use super::passphrase::Passphrase;
use crate::store::{Failure, problem};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use leeward_model::{Code, UnixMillis};
use serde::{Deserialize, Serialize};
use std::{fs::File, io::Read as _, path::Path};
use uuid::Uuid;

const MAGIC: [u8; 4] = *b"LWRK";
const VERSION: u16 = 1;
/// Version of the sealed JSON.
pub(super) const CONTENTS_FORMAT: u32 = 1;
const HEADER_BYTES: usize = 48;
const BEGIN: &str = "-----BEGIN LEEWARD RECOVERY KIT-----";
const END: &str = "-----END LEEWARD RECOVERY KIT-----";
/// Largest kit in bytes that is read: its CA has at most 64 KiB.
const KIT_BYTES_MAX: u64 = 256 << 10;
/// Cost of a new kit's key: 64 MiB of memory, three passes; about 0.2 s on a processor of 2020.
const COST: Cost = Cost { memory_kib: 64 << 10, passes: 3, lanes: 1 };
/// Costs that are tried at all: a hostile header must not take this machine's memory.
const COST_MAX: Cost = Cost { memory_kib: 1 << 20, passes: 16, lanes: 4 };

/// What a kit holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KitContents {
    /// Version of this form.
    pub(super) format: u32,
    /// The kit's id.
    pub(super) kit: Uuid,
    /// When it was made.
    pub(super) created_at: UnixMillis,
    /// The store's id.
    pub(super) store: Uuid,
    /// Where the store was.
    pub(super) store_address: String,
    /// Generation of the store's recipients.
    pub(super) key_generation: u32,
    /// Fingerprints of these.
    pub(super) recipients: Vec<String>,
    /// The recovery secret, as text.
    pub(super) recovery_key: String,
    /// The config server's CA certificate, in PEM.
    pub(super) server_ca: Option<String>,
    /// Where the config server was.
    pub(super) server_endpoint: Option<String>,
    /// Token of the break-glass account, if the kit is of a config server.
    pub(super) break_glass_account: Option<String>,
    /// Version of the program that made it.
    pub(super) program: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    fn fits(&self) -> bool {
        let max = COST_MAX;
        (8..=max.memory_kib).contains(&self.memory_kib)
            && (1..=max.passes).contains(&self.passes)
            && (1..=max.lanes).contains(&self.lanes)
    }
}

fn key(passphrase: &Passphrase, salt: &[u8], cost: Cost) -> Option<LessSafeKey> {
    let Cost { memory_kib, passes, lanes } = cost;
    let params = Params::new(memory_kib, passes, lanes, Some(32)).ok()?;
    let mut memory = vec![Block::default(); params.block_count()];
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut key = [0; 32];
    argon.hash_password_into_with_memory(passphrase.bytes(), salt, &mut key, &mut memory).ok()?;
    let unbound = UnboundKey::new(&AES_256_GCM, &key).ok()?;
    key.fill(0);
    std::hint::black_box(&key);
    Some(LessSafeKey::new(unbound))
}

/// The kit as text.
pub(super) fn seal(contents: &KitContents, passphrase: &Passphrase) -> Result<String, Failure> {
    seal_at(contents, passphrase, COST)
}

fn seal_at(contents: &KitContents, passphrase: &Passphrase, cost: Cost) -> Result<String, Failure> {
    let internal = || problem(Code::INTERNAL, "the kit could not be sealed", "no random bytes");
    let (mut salt, mut nonce) = ([0; 16], [0; 12]);
    let random = SystemRandom::new();
    random.fill(&mut salt).and_then(|()| random.fill(&mut nonce)).map_err(|_| internal())?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&[0; 2]);
    for number in [cost.memory_kib, cost.passes, cost.lanes] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.extend_from_slice(&salt);
    header.extend_from_slice(&nonce);
    let mut bytes = serde_json::to_vec(contents).expect("the contents are plain JSON");
    key(passphrase, &salt, cost)
        .ok_or_else(internal)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&header),
            &mut bytes,
        )
        .map_err(|_| internal())?;
    let base64 = STANDARD.encode([header, bytes].concat());
    let mut text = format!("{BEGIN}\n");
    for line in base64.as_bytes().chunks(64) {
        text += std::str::from_utf8(line).expect("base64 is ASCII");
        text.push('\n');
    }
    Ok(text + END + "\n")
}

/// Reads a kit's text.
///
/// # Errors
/// `NOT_FOUND`, `BAD_REQUEST`.
pub(super) fn read(path: &Path) -> Result<String, Failure> {
    let what = || format!("the kit {} cannot be read", path.display());
    let file = File::open(path).map_err(|error| problem(Code::NOT_FOUND, what(), error))?;
    let mut text = String::new();
    let read = file.take(KIT_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| problem(Code::BAD_REQUEST, what(), error))?;
    if text.len() as u64 > KIT_BYTES_MAX {
        return Err(problem(Code::BAD_REQUEST, what(), "it is larger than any kit"));
    }
    Ok(text)
}

/// Opens a kit that was read from `path`.
///
/// # Errors
/// `BAD_REQUEST` when it is no kit, or one of another version; `KEY_MISSING` when it does not open.
pub(super) fn open(
    path: &Path,
    text: &str,
    passphrase: &Passphrase,
) -> Result<KitContents, Failure> {
    let what = || format!("the kit {} cannot be opened", path.display());
    let refuse = |cause: &str| problem(Code::BAD_REQUEST, what(), cause);
    let body = text.split_once(BEGIN).and_then(|(_, rest)| Some(rest.split_once(END)?.0));
    let body = body.ok_or_else(|| refuse("it is no recovery kit, or not a whole one"))?;
    let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    let bytes = STANDARD.decode(body).map_err(|_| refuse("its text is misspelt"))?;
    let (header, sealed) = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(|| refuse("it is shorter than a kit"))?;
    if header[..4] != MAGIC {
        return Err(refuse("it is no recovery kit"));
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != VERSION || header[6..8] != [0; 2] {
        return Err(refuse(&format!("it has version {version}; this program reads {VERSION}")));
    }
    let number = |at: usize| {
        u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes of the header"))
    };
    let cost = Cost { memory_kib: number(8), passes: number(12), lanes: number(16) };
    if !cost.fits() {
        return Err(refuse("its key costs more than any kit's"));
    }
    let nonce: [u8; 12] = header[36..48].try_into().expect("twelve bytes of the header");
    let key = key(passphrase, &header[20..36], cost)
        .ok_or_else(|| refuse("there is not enough memory for its key"))?;
    let mut sealed = sealed.to_vec();
    let plain = key
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(header), &mut sealed)
        .map_err(|_| {
            let cause = "the passphrase is another one, or the kit is damaged";
            problem(Code::KEY_MISSING, what(), cause)
        })?;
    let contents: KitContents =
        serde_json::from_slice(plain).map_err(|error| refuse(&error.to_string()))?;
    if contents.format != CONTENTS_FORMAT {
        return Err(refuse(&format!("its contents have format {}", contents.format)));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::passphrase::test_passphrase;

    const CHEAP: Cost = Cost { memory_kib: 32, passes: 1, lanes: 1 };

    fn contents() -> KitContents {
        KitContents {
            format: CONTENTS_FORMAT,
            kit: Uuid::from_u128(1),
            created_at: UnixMillis(2),
            store: Uuid::from_u128(3),
            store_address: "/srv/store".into(),
            key_generation: 4,
            recipients: vec!["aa".into()],
            recovery_key: "leeward-recovery-1-…".into(),
            server_ca: None,
            server_endpoint: None,
            break_glass_account: None,
            program: "0.1.0".into(),
        }
    }

    fn opened(text: &str, passphrase: &str) -> Result<KitContents, Failure> {
        open(Path::new("k"), text, &test_passphrase(passphrase))
    }

    #[test]
    fn a_kit_opens_with_its_passphrase_and_no_other() {
        let text = seal_at(&contents(), &test_passphrase("correct horse"), CHEAP).unwrap();

        let good = opened(&text, "correct horse").unwrap();
        let bad = opened(&text, "correct hors").unwrap_err();

        assert_eq!(good.recovery_key, contents().recovery_key);
        assert_eq!(bad.code, Code::KEY_MISSING.code);
        assert!(!text.contains("srv"), "nothing of it is readable");
    }

    #[test]
    fn a_kit_survives_being_typed_in_lines_of_another_length() {
        let text = seal_at(&contents(), &test_passphrase("correct horse"), CHEAP).unwrap();
        let mut typed = String::from("found on paper\r\n");
        typed += &text.replace('\n', " \r\n  ");

        assert_eq!(opened(&typed, "correct horse").unwrap().store, contents().store);
    }

    #[test]
    fn no_changed_bit_and_no_shorter_kit_opens() {
        let text = seal_at(&contents(), &test_passphrase("correct horse"), CHEAP).unwrap();
        let body: String =
            text.lines().filter(|line| !line.starts_with('-')).collect::<Vec<_>>().concat();
        let bytes = STANDARD.decode(body).unwrap();
        let wrap = |bytes: &[u8]| format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(bytes));
        assert!(opened(&wrap(&bytes), "correct horse").is_ok());

        for bit in 0..bytes.len() * 8 {
            // A flipped bit of the costs asks for work that is refused or only slow: not all of
            // it is done here.
            if (64..160).contains(&bit) && bit % 32 > 6 {
                continue;
            }
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(opened(&wrap(&wrong), "correct horse").is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(opened(&wrap(&bytes[..len]), "correct horse").is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_header_that_asks_for_too_much_is_refused_before_any_work() {
        for cost in [
            Cost { memory_kib: u32::MAX, ..CHEAP },
            Cost { passes: u32::MAX, ..CHEAP },
            Cost { lanes: 5, ..CHEAP },
            Cost { memory_kib: 0, ..CHEAP },
        ] {
            assert!(!cost.fits(), "{cost:?}");
        }
        assert!(COST.fits() && CHEAP.fits());
    }
}
