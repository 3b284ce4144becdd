//! The one port: TLS 1.3 in front of the public API, the hosts' sessions and the joining of
//! hosts. ALPN tells them apart; everything else is refused.

use super::{join, sessions};
use crate::{
    roles::host::Host,
    trust::{authority::Authority, authority::host_of_certificate, tls},
};
use axum::{Extension, Router};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use leeward_control::{Control, api::Peer};
use leeward_model::Code;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an API client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// The first byte of every TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the listener hands connections to.
pub struct Doors {
    /// The config server.
    pub control: Control,
    /// The public API.
    pub api: Router,
    /// This machine's host role: it takes data sessions.
    pub host: Arc<Host>,
    /// The CA, for joining hosts.
    pub authority: Arc<Authority>,
}

/// Accepts connections until `stop`.
pub async fn run(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    doors: Arc<Doors>,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (acceptor, doors, stop) = (acceptor.clone(), Arc::clone(&doors), stop.clone());
        match accepted {
            Ok((stream, _)) => {
                tasks.spawn(async move {
                    let _place = place;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        outcome = serve(stream, acceptor, &doors) => {
                            if let Err(error) = outcome {
                                tracing::debug!(%error, "a connection ended");
                            }
                        }
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: others have to end first.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, doors: &Arc<Doors>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    let peeked = timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await??;
    if peeked == 0 {
        return Ok(());
    }
    if first[0] != TLS_HANDSHAKE {
        return refuse_plaintext(stream).await;
    }
    let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let (_, connection) = stream.get_ref();
    let peer = connection.peer_certificates().and_then(|chain| host_of_certificate(chain.first()?));
    match connection.alpn_protocol() {
        Some(protocol) if protocol == tls::ALPN_SESSION => match peer {
            Some(peer) => sessions::serve(doors, peer, stream).await,
            None => tracing::warn!("a session without a host certificate was refused"),
        },
        Some(protocol) if protocol == tls::ALPN_JOIN => join::serve(doors, stream).await,
        _ => return http(doors, stream).await,
    }
    Ok(())
}

async fn http(doors: &Arc<Doors>, stream: TlsStream<TcpStream>) -> io::Result<()> {
    let peer = stream.get_ref().0.peer_addr()?.ip();
    let service = TowerToHyperService::new(doors.api.clone().layer(Extension(Peer(peer))));
    hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

/// Tells a client that speaks plain HTTP to a TLS port what is wrong, and nothing else.
async fn refuse_plaintext(mut stream: TcpStream) -> io::Result<()> {
    let problem = Code::PLAINTEXT.problem("this port speaks TLS only");
    let body = serde_json::json!({"error": {
        "code": "PlaintextRefused",
        "message": problem.what,
        "details": [{
            "code": problem.code,
            "message": problem.what,
            "possibleCauses": problem.cause,
            "currentState": problem.now,
            "recommendedAction": problem.todo,
        }],
    }})
    .to_string();
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
