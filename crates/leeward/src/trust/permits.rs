//! Signs and checks start permits (Ed25519).

use super::TrustError;
use crate::folder;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use leeward_model::{PermitTerms, StartPermit};
use std::path::Path;

/// The config server's permit key.
pub struct PermitKey(Ed25519KeyPair);

impl PermitKey {
    /// Opens `permit.key` below `dir`, making it at the first start (0600).
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no key.
    pub fn open_or_create(dir: &Path) -> Result<Self, TrustError> {
        let path = dir.join("permit.key");
        let file = |source| TrustError::File { path: path.clone(), source };
        if !path.exists() {
            let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                .map_err(|_| TrustError::Invalid("the system's randomness"))?;
            folder::write_secret(&path, document.as_ref()).map_err(file)?;
        }
        let bytes = std::fs::read(&path).map_err(file)?;
        let key = Ed25519KeyPair::from_pkcs8(&bytes)
            .map_err(|_| TrustError::Content { path, what: "a permit key" })?;
        Ok(Self(key))
    }

    /// The public key, hexadecimal, 64 digits: hosts get it in the welcome.
    pub fn public_hex(&self) -> String {
        hex(self.0.public_key().as_ref())
    }

    /// Signs the bytes of a permit's terms; hexadecimal, 128 digits.
    pub fn sign_bytes(&self, bytes: &[u8]) -> String {
        hex(self.0.sign(bytes).as_ref())
    }

    /// Signs `terms`.
    pub fn sign(&self, terms: PermitTerms) -> StartPermit {
        let signature = self.sign_bytes(&terms.to_signed_bytes());
        StartPermit { terms, signature }
    }
}

/// Checks a permit against the config server's public key.
///
/// # Errors
/// [`TrustError::Invalid`] when the signature is not by that key over these terms.
pub fn permit_check(permit: &StartPermit, public_hex: &str) -> Result<(), TrustError> {
    let key = unhex(public_hex).ok_or(TrustError::Invalid("the permit key"))?;
    let signature = unhex(&permit.signature).ok_or(TrustError::Invalid("the permit"))?;
    UnparsedPublicKey::new(&ED25519, key)
        .verify(&permit.terms.to_signed_bytes(), &signature)
        .map_err(|_| TrustError::Invalid("the permit"))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads [`hex`]; none for anything else.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::{Epoch, HostId, ItemId, TimelineId};

    #[test]
    fn a_permit_holds_only_for_the_terms_it_was_signed_for() {
        let dir = tempfile::tempdir().unwrap();
        let key = PermitKey::open_or_create(dir.path()).unwrap();
        let terms = PermitTerms {
            item: ItemId::from_u128(1),
            timeline: TimelineId::from_u128(2),
            epoch: Epoch(3),
            machine: "web01".into(),
            host: HostId::from_u128(4),
            host_boot: "boot".into(),
        };

        let permit = key.sign(terms);

        let mut raised = permit.clone();
        raised.terms.epoch = Epoch(4);
        assert!(permit_check(&permit, &key.public_hex()).is_ok());
        assert!(permit_check(&raised, &key.public_hex()).is_err());
        let again = PermitKey::open_or_create(dir.path()).unwrap();
        assert!(permit_check(&permit, &again.public_hex()).is_ok(), "the key survives a restart");
    }
}
