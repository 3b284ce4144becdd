//! The break-glass account: a secret in a recovery kit that opens the API when the administrator's
//! token is gone. The config server has only its hash; every use is an alarm.
//!
//! A kit's own form is `leeward kit`'s.

use crate::{
    folder,
    trust::permits::{hex, unhex},
};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
};
use leeward_control::{
    Control,
    api::{AdminToken, Caller, Role, TokenCheck},
};
use leeward_model::UnixMillis;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use uuid::Uuid;

/// File of the site's folder with the hashes.
pub const FILE: &str = "break-glass.json";
/// What every secret begins with: other tokens cost no hash.
const PREFIX: &str = "lwbg1";
/// Kits whose accounts count: with the next one the oldest ends.
const ACCOUNTS_MAX: usize = 8;
/// Cost of a hash: 19 MiB, two passes. The secret has 256 bits and cannot be guessed anyway.
const COST: (u32, u32) = (19 << 10, 2);
/// Costs that are tried at all, by the same measures.
const COST_MAX: (u32, u32) = (256 << 10, 8);
/// Between two secrets that are not known: guessing must not take the machine's processors.
const PAUSE: Duration = Duration::from_millis(500);
/// An account in use is told again after this time.
const TOLD_EVERY: Duration = Duration::from_secs(600);

/// An account as the config server knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    /// The kit that holds the secret.
    kit: Uuid,
    created_at: UnixMillis,
    memory_kib: u32,
    passes: u32,
    salt: String,
    hash: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Accounts {
    accounts: Vec<Account>,
}

fn hash(secret: &str, salt: &[u8], (memory_kib, passes): (u32, u32)) -> Option<[u8; 32]> {
    let params = Params::new(memory_kib, passes, 1, Some(32)).ok()?;
    let mut out = [0; 32];
    let mut memory = vec![Block::default(); params.block_count()];
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into_with_memory(secret.as_bytes(), salt, &mut out, &mut memory).ok()?;
    Some(out)
}

impl Account {
    fn fits(&self, secret: &str) -> bool {
        let cost = (self.memory_kib, self.passes);
        let (Some(salt), Some(known)) = (unhex(&self.salt), unhex(&self.hash)) else {
            return false;
        };
        cost.0 <= COST_MAX.0
            && cost.1 <= COST_MAX.1
            && hash(secret, &salt, cost)
                .is_some_and(|found| verify_slices_are_equal(&found, &known).is_ok())
    }
}

fn read(data: &Path) -> io::Result<Accounts> {
    match std::fs::read(data.join(FILE)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Accounts::default()),
        Err(error) => Err(error),
    }
}

/// Makes the account of a kit: its hash goes into the site's folder, its secret is returned and
/// kept nowhere.
///
/// # Errors
/// Those of the file system and of the system's randomness.
pub fn make(data: &Path, kit: Uuid, created_at: UnixMillis) -> io::Result<String> {
    let none = || io::Error::other("the system has no random bytes");
    let (mut salt, mut bytes) = ([0; 16], [0; 32]);
    let random = SystemRandom::new();
    random.fill(&mut salt).and_then(|()| random.fill(&mut bytes)).map_err(|_| none())?;
    let secret = format!("{PREFIX}.{}.{}", kit.simple(), hex(&bytes));
    let hashed = hash(&secret, &salt, COST).ok_or_else(none)?;
    let mut all = read(data)?;
    let (memory_kib, passes) = COST;
    let (salt, hash) = (hex(&salt), hex(&hashed));
    all.accounts.push(Account { kit, created_at, memory_kib, passes, salt, hash });
    let extra = all.accounts.len().saturating_sub(ACCOUNTS_MAX);
    all.accounts.drain(..extra);
    folder::write_secret(&data.join(FILE), &serde_json::to_vec_pretty(&all)?)?;
    Ok(secret)
}

/// The kit whose account's secret this is, as the site's folder knows it.
///
/// # Errors
/// Those of the file system; a damaged file.
pub fn check(data: &Path, secret: &str) -> io::Result<Option<Uuid>> {
    let Some(kit) = kit_of(secret) else { return Ok(None) };
    let all = read(data)?;
    let mine = all.accounts.iter().find(|account| account.kit == kit);
    Ok(mine.filter(|account| account.fits(secret)).map(|account| account.kit))
}

fn kit_of(secret: &str) -> Option<Uuid> {
    let mut parts = secret.splitn(3, '.');
    (parts.next()? == PREFIX).then_some(())?;
    parts.next()?.parse().ok()
}

fn account_name(kit: Uuid) -> String {
    format!("break-glass account of kit {kit}")
}

/// Knows the administrator's token and the accounts of the kits.
pub struct Tokens {
    admin: AdminToken,
    data: PathBuf,
    control: Control,
    state: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Digest of a secret that was accepted, and what the file of accounts was then.
    known: Option<([u8; 32], Vec<u8>)>,
    refused: Option<Instant>,
    told: Option<Instant>,
}

impl Tokens {
    /// Takes the administrator's token; accounts are read when they are asked for, so that a kit
    /// made while the server runs counts at once.
    pub fn new(admin: &str, data: &Path, control: Control) -> Tokens {
        let state = Mutex::default();
        Tokens { admin: AdminToken::new(admin), data: data.to_owned(), control, state }
    }

    fn account(&self, token: &str) -> Option<Caller> {
        let kit = kit_of(token)?;
        let mut seen = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let file = std::fs::read(self.data.join(FILE)).ok()?;
        let own: [u8; 32] = digest(&SHA256, token.as_bytes()).as_ref().try_into().ok()?;
        let known = seen.known.as_ref().is_some_and(|(known, of)| *known == own && *of == file);
        if !known {
            if seen.refused.is_some_and(|at| at.elapsed() < PAUSE) {
                return None;
            }
            if check(&self.data, token).ok().flatten().is_none() {
                seen.refused = Some(Instant::now());
                tracing::warn!(%kit, "a break-glass account was tried with a wrong secret");
                return None;
            }
            seen.known = Some((own, file));
        }
        if seen.told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            seen.told = Some(Instant::now());
            self.tell(kit);
        }
        Some(Caller { name: account_name(kit), role: Role::Owner })
    }

    /// The alarm: an event in every vault and a line in the log.
    fn tell(&self, kit: Uuid) {
        tracing::error!(%kit, "the break-glass account of a recovery kit is in use");
        let text = format!(
            "the break-glass account of recovery kit {kit} is in use. If nobody of yours opened \
             the kit: make another kit, and delete this one's account"
        );
        let control = self.control.clone();
        tokio::spawn(async move {
            let who = account_name(kit);
            if let Err(error) = control.alarm(&who, "BreakGlassUsed", &text).await {
                tracing::error!(%error, "the use of a break-glass account is no event");
            }
        });
    }
}

impl TokenCheck for Tokens {
    fn check(&self, token: &str) -> Option<Caller> {
        self.admin.check(token).or_else(|| self.account(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_opens_with_its_secret_alone_and_the_folder_has_only_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        let (kit, other) = (Uuid::from_u128(1), Uuid::from_u128(2));

        let secret = make(dir.path(), kit, UnixMillis(1)).unwrap();
        let second = make(dir.path(), other, UnixMillis(2)).unwrap();

        assert_eq!(check(dir.path(), &secret).unwrap(), Some(kit));
        assert_eq!(check(dir.path(), &second).unwrap(), Some(other));
        let swapped = second.replace(&other.simple().to_string(), &kit.simple().to_string());
        let cut = &secret[..secret.len() - 1];
        for wrong in [swapped.as_str(), cut, "", "lwbg1", "lwbg1.x.y", PREFIX] {
            assert_eq!(check(dir.path(), wrong).unwrap(), None, "{wrong}");
        }
        let file = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(!file.contains(secret.rsplit('.').next().unwrap()));
    }

    #[test]
    fn the_oldest_account_ends_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let made: Vec<_> = (0..=ACCOUNTS_MAX as u128)
            .map(|kit| make(dir.path(), Uuid::from_u128(kit), UnixMillis(0)).unwrap())
            .collect();

        assert_eq!(check(dir.path(), &made[0]).unwrap(), None);
        assert!(made[1..].iter().all(|secret| check(dir.path(), secret).unwrap().is_some()));
    }
}
