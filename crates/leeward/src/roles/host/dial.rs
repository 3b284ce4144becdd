//! How a host reaches the config server and other hosts' stores. Nodes dial out only.

use crate::trust::{TrustError, authority::Identity, tls};
use async_trait::async_trait;
use leeward_model::{Code, Problem};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long a connection may take to come about. Twice the silence after which the other end
/// would be taken as dead leaves nothing to wait for.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection, whatever it runs over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A boxed connection.
pub type BoxStream = Box<dyn Stream>;

/// Makes connections to config servers and stores.
#[async_trait]
pub trait Dialer: Send + Sync {
    /// Connects to `address` (`host:port`) and authenticates both ends.
    async fn dial(&self, address: &str) -> io::Result<BoxStream>;
}

/// The real dialler: TCP and mutual TLS 1.3.
pub struct TlsDialer {
    connector: TlsConnector,
}

impl TlsDialer {
    /// Dials with a host's identity and accepts only this installation's certificates.
    ///
    /// # Errors
    /// When the identity or the CA cannot be used.
    pub fn new(identity: &Identity, ca_pem: &str) -> Result<Self, TrustError> {
        let config = tls::session_client_config(identity, ca_pem)?;
        Ok(Self { connector: TlsConnector::from(config) })
    }
}

#[async_trait]
impl Dialer for TlsDialer {
    async fn dial(&self, address: &str) -> io::Result<BoxStream> {
        let stream = connect_tls(&self.connector, address).await?;
        Ok(Box::new(stream))
    }
}

/// Connects over TCP, then TLS, checking the server by its fixed name.
///
/// # Errors
/// Those of TCP and TLS, and `TimedOut` after [`DIAL_TIMEOUT`].
pub async fn connect_tls(
    connector: &TlsConnector,
    address: &str,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        connector.connect(tls::server_name(), tcp).await
    };
    timeout(DIAL_TIMEOUT, connect)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")))?
}

/// What it means for the operator that `what` failed with `error`: strangers and plain text are
/// told from peers that are away.
pub fn connection_problem(what: String, error: &io::Error) -> Problem {
    use rustls::{AlertDescription as Alert, Error as Tls};
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    let cause = error.to_string();
    match tls {
        Some(Tls::InvalidCertificate(_)) => Code::WRONG_CA.because(what, cause),
        Some(Tls::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::DecryptError
            | Alert::CertificateRequired
            | Alert::CertificateUnknown,
        )) => Code::WRONG_CA.because(what, format!("the other end refused us: {cause}")),
        Some(Tls::InvalidMessage(_)) => {
            Code::PLAINTEXT.because(what, format!("the other end does not speak TLS: {cause}"))
        }
        _ => Code::ROLE_AWAY.because(what, cause),
    }
}

/// A dialler that many tasks share.
pub type SharedDialer = Arc<dyn Dialer>;
