//! TLS 1.3 settings of every listener and dialler. One port serves the public API, the hosts'
//! sessions and the joining of hosts; ALPN tells them apart.

use super::{TrustError, authority::Identity, authority::SERVER_NAME};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use std::{path::PathBuf, sync::Arc};

/// ALPN name of the public API.
pub const ALPN_HTTP: &[u8] = b"http/1.1";
/// ALPN name of hosts' sessions; needs a host certificate.
pub const ALPN_SESSION: &[u8] = b"leeward/1";
/// ALPN name of joining; needs a registration key.
pub const ALPN_JOIN: &[u8] = b"leeward-join/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Reads all certificates of a PEM text.
///
/// # Errors
/// When the text holds none.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect();
    if all.is_empty() { Err(TrustError::Invalid("the certificate")) } else { Ok(all) }
}

/// SHA-256 of the first certificate of a PEM text, hexadecimal.
///
/// # Errors
/// When the text holds none.
pub fn fingerprint_of_pem(pem: &str) -> Result<String, TrustError> {
    Ok(fingerprint(&certificates(pem)?[0]))
}

fn fingerprint(der: &[u8]) -> String {
    let digest = aws_lc_rs_digest(der);
    super::permits::hex(&digest)
}

fn aws_lc_rs_digest(bytes: &[u8]) -> Vec<u8> {
    use ::aws_lc_rs::digest::{SHA256, digest};
    digest(&SHA256, bytes).as_ref().to_vec()
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TrustError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| TrustError::Content {
        path: PathBuf::from("the key file"),
        what: "a private key in PEM",
    })
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, TrustError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(ca_pem)? {
        store.add(certificate)?;
    }
    Ok(Arc::new(store))
}

/// The config server's listener: API clients show no certificate, hosts show theirs.
///
/// # Errors
/// When the identity or the CA cannot be used.
pub fn server_config(identity: &Identity, ca_pem: &str) -> Result<Arc<ServerConfig>, TrustError> {
    // No hints: an API client with certificates of its own must not be asked to pick one.
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider())
        .clear_root_hint_subjects()
        .allow_unauthenticated()
        .build()
        .map_err(|_| TrustError::Invalid("the CA"))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&identity.chain_pem)?, private_key(&identity.key_pem)?)?;
    config.alpn_protocols = vec![ALPN_HTTP.to_vec(), ALPN_SESSION.to_vec(), ALPN_JOIN.to_vec()];
    Ok(Arc::new(config))
}

/// A host's dialler: it shows its certificate and accepts only this installation's server.
///
/// # Errors
/// When the identity or the CA cannot be used.
pub fn session_client_config(
    identity: &Identity,
    ca_pem: &str,
) -> Result<Arc<ClientConfig>, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_auth_cert(
            certificates(&identity.chain_pem)?,
            private_key(&identity.key_pem)?,
        )?;
    config.alpn_protocols = vec![ALPN_SESSION.to_vec()];
    Ok(Arc::new(config))
}

/// The CLI's dialler: checks the server by the CA's certificate and the dialled name.
///
/// # Errors
/// When the CA cannot be used.
pub fn api_client_config(ca_pem: &str) -> Result<Arc<ClientConfig>, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(ca_pem)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
    Ok(Arc::new(config))
}

/// A joining host's dialler: it knows the CA only by the fingerprint in its registration key.
///
/// # Errors
/// Never in practice; TLS 1.3 is always there.
pub fn join_client_config(ca_fingerprint: &str) -> Result<Arc<ClientConfig>, TrustError> {
    let verifier = PinnedAuthority { fingerprint: ca_fingerprint.to_owned(), provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    Ok(Arc::new(config))
}

/// The name that hosts check in the server's certificate.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("a constant DNS name is valid")
}

/// Accepts a server whose chain ends in the certificate with this fingerprint, and nothing else.
#[derive(Debug)]
struct PinnedAuthority {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let authority = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.fingerprint)
            .ok_or_else(unknown)?;
        let mut store = RootCertStore::empty();
        store.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), self.provider.clone())
            .build()
            .map_err(|_| unknown())?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
