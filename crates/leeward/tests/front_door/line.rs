//! Bytes on the line: requests that no decent client sends, plain text, old TLS.

use leeward::trust::tls;
use serde_json::Value;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(20);

/// An answer over HTTP.
pub struct Raw {
    pub status: u16,
    pub head: String,
    pub body: Value,
}

/// Reads what the other end says until it closes; what came before an error counts.
pub async fn rest<S: AsyncRead + Unpin>(stream: &mut S) -> (Vec<u8>, Option<io::Error>) {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    (bytes, read.expect("the other end hangs").err())
}

fn parse(bytes: &[u8]) -> Raw {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Raw {
        status: status.unwrap_or_else(|| panic!("no HTTP in {text:?}")),
        head: head.to_ascii_lowercase(),
        body: serde_json::from_str(body).unwrap_or(Value::Null),
    }
}

/// Sends bytes without TLS and returns what comes back.
pub async fn plain(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    rest(&mut stream).await.0
}

/// As [`plain`], for an HTTP answer.
pub async fn plain_http(address: &str, path: &str) -> Raw {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    parse(&plain(address, request.as_bytes()).await)
}

/// Sends an HTTP request byte for byte over TLS. A body that the server stops reading is cut off.
pub async fn request(address: &str, ca_pem: &str, head: &str, body: &[u8]) -> Raw {
    let connector = TlsConnector::from(tls::api_client_config(ca_pem).unwrap());
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = connector.connect(name, tcp).await.unwrap();
    exchange(&mut stream, address, head, body).await
}

async fn exchange<S>(stream: &mut S, address: &str, head: &str, body: &[u8]) -> Raw
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let head = format!(
        "{head}\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        // The server may answer and close before it has read everything.
        let _ = writer.write_all(body).await;
        let _ = writer.flush().await;
    };
    let (_, (bytes, _)) = tokio::join!(send, rest(&mut reader));
    parse(&bytes)
}

/// The hello of a client that speaks TLS 1.2 at most.
pub fn old_hello() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.extend([0]); // no session id
    hello.extend([0, 2, 0xc0, 0x2b]); // ECDHE-ECDSA-AES128-GCM-SHA256
    hello.extend([1, 0]); // no compression
    let extensions: [&[u8]; 3] = [
        &[0, 10, 0, 4, 0, 2, 0, 23], // groups: secp256r1
        &[0, 11, 0, 2, 1, 0],        // points: uncompressed
        &[0, 13, 0, 4, 0, 2, 4, 3],  // signatures: ECDSA-SHA256
    ];
    let extensions = extensions.concat();
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut handshake = vec![1, 0, 0, hello.len() as u8];
    handshake.extend(hello);
    let mut record = vec![0x16, 3, 1, 0, handshake.len() as u8];
    record.extend(handshake);
    record
}
