//! The installation's private certificate authority, made at the config server's first start.

use super::TrustError;
use crate::folder;
use leeward_model::HostId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::{net::IpAddr, path::Path};

/// The name in the config server's certificate that hosts check, whatever address they dialled.
pub const SERVER_NAME: &str = "config-server.leeward.internal";

/// A certificate with its chain and its key, in PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, then the CA's.
    pub chain_pem: String,
    /// The private key.
    pub key_pem: String,
}

/// The private CA.
pub struct Authority {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn made(what: &'static str) -> impl FnOnce(rcgen::Error) -> TrustError {
    move |source| TrustError::Make { what, source }
}

fn base_params(names: Vec<String>, common_name: &str) -> Result<CertificateParams, TrustError> {
    let mut params = CertificateParams::new(names).map_err(made("a certificate"))?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    // Wide limits: a disaster is no time for expiry, and a host's clock may be hours off.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2046, 1, 1);
    Ok(params)
}

impl Authority {
    /// Opens the CA below `folder`, making it at the first start (`ca.pem`, `ca.key` 0600).
    ///
    /// # Errors
    /// When the files cannot be read or written, or do not belong together.
    pub fn open_or_create(dir: &Path) -> Result<Self, TrustError> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        if !key_path.exists() {
            let key = KeyPair::generate().map_err(made("the CA's key"))?;
            let mut params = base_params(Vec::new(), "Leeward private CA")?;
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let cert = params.self_signed(&key).map_err(made("the CA's certificate"))?;
            // The key last: it is what says that the CA exists.
            let file = |path: &Path, text: &str| {
                folder::write_secret(path, text.as_bytes())
                    .map_err(|source| TrustError::File { path: path.into(), source })
            };
            file(&cert_path, &cert.pem())?;
            file(&key_path, &key.serialize_pem())?;
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| TrustError::File { path: path.into(), source })
        };
        let (ca_pem, key_pem) = (read(&cert_path)?, read(&key_path)?);
        let key = KeyPair::from_pem(&key_pem).map_err(made("the CA's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(made("the CA"))?;
        Ok(Self { ca_pem, issuer })
    }

    /// The CA's certificate in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// SHA-256 of the CA's certificate, hexadecimal: registration keys carry it.
    ///
    /// # Errors
    /// When the certificate is not PEM.
    pub fn fingerprint(&self) -> Result<String, TrustError> {
        super::tls::fingerprint_of_pem(&self.ca_pem)
    }

    /// Makes the config server's identity, valid for `addresses` and `names` as well as for
    /// [`SERVER_NAME`] and the loopback.
    ///
    /// # Errors
    /// When a name has no valid form.
    pub fn issue_server(
        &self,
        addresses: &[IpAddr],
        names: &[String],
    ) -> Result<Identity, TrustError> {
        let mut all = vec![SERVER_NAME.to_owned(), "localhost".to_owned()];
        all.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
        all.extend(addresses.iter().map(ToString::to_string));
        all.extend(names.iter().cloned());
        all.sort();
        all.dedup();
        let key = KeyPair::generate().map_err(made("the server's key"))?;
        let mut params = base_params(all, "leeward config server")?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let cert =
            params.signed_by(&key, &self.issuer).map_err(made("the server's certificate"))?;
        Ok(Identity {
            chain_pem: format!("{}{}", cert.pem(), self.ca_pem),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs a host's request; the certificate speaks for `host` only, whatever the request says.
    ///
    /// # Errors
    /// When the request is not a valid signing request.
    pub fn issue_host(&self, csr_pem: &str, host: HostId) -> Result<String, TrustError> {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(made("the host's certificate"))?;
        let mut params = base_params(vec![host_name(host)], &host.to_string())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        csr.params = params;
        let cert = csr.signed_by(&self.issuer).map_err(made("the host's certificate"))?;
        Ok(format!("{}{}", cert.pem(), self.ca_pem))
    }
}

/// The DNS name that a host's certificate carries.
fn host_name(host: HostId) -> String {
    format!("{host}.host.leeward.internal")
}

/// Reads the host id out of a verified host certificate (DER); `None` for other certificates.
pub fn host_of_certificate(der: &[u8]) -> Option<HostId> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => {
            name.strip_suffix(".host.leeward.internal")?.parse().ok()
        }
        _ => None,
    })
}

/// Makes a host's key and signing request: (key in PEM, request in PEM). The key never leaves
/// the host.
///
/// # Errors
/// When the system has no randomness.
pub fn host_request() -> Result<(String, String), TrustError> {
    let key = KeyPair::generate().map_err(made("the host's key"))?;
    let params = base_params(Vec::new(), "leeward host")?;
    let csr = params.serialize_request(&key).map_err(made("the host's request"))?;
    Ok((key.serialize_pem(), csr.pem().map_err(made("the host's request"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_certificate_speaks_for_the_host_that_the_server_named() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let (_, csr) = host_request().unwrap();
        let host = HostId::from_u128(7);

        let chain = authority.issue_host(&csr, host).unwrap();

        let der = crate::trust::tls::certificates(&chain).unwrap();
        assert_eq!(host_of_certificate(&der[0]), Some(host));
        assert_eq!(host_of_certificate(&der[1]), None, "the CA is no host");
    }

    #[test]
    fn a_second_start_finds_the_same_authority() {
        let dir = tempfile::tempdir().unwrap();

        let first = Authority::open_or_create(dir.path()).unwrap().fingerprint().unwrap();
        let second = Authority::open_or_create(dir.path()).unwrap().fingerprint().unwrap();

        assert_eq!(first, second);
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    }
}
