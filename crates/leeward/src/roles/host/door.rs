//! Where data sessions come into a host: a source that dialled goes to the store, a store that
//! dialled waits in the lobby for its source; stores that share a hash key do so. And the way from
//! a host's source to its own store, which needs no network.

use super::{
    Host,
    dial::BoxStream,
    hash_key,
    lobby::{Lobby, Wanted},
    target,
};
use crate::roles::session::{FrameReader, FrameWriter};
use leeward_model::{Code, HostId, Problem};
use leeward_wire::{
    data::{DataHello, DataMessage, Role},
    message::PROTOCOL_VERSION,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, duplex, split},
    time::timeout,
};

/// How long a store may wait for its source; it gives up before that and dials again.
const STAY: Duration = Duration::from_secs(15);
/// Bytes in flight within the process: a record and a frame's head fit twice.
const WITHIN_BYTES: usize = 2 << 20;
/// How long this very process may take for its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one data session that `peer`, whose certificate was checked, dialled and whose hello
/// was read, to its end.
pub async fn serve<R, W>(
    host: Arc<Host>,
    peer: HostId,
    hello: DataHello,
    reader: FrameReader<R>,
    mut writer: FrameWriter<W>,
) where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    match hello.role {
        Role::DialerSends => target::serve(host, peer, hello, reader, writer).await,
        Role::HashKey => hash_key::serve(&host, peer, hello, reader, writer).await,
        Role::DialerReceives => match check_store(&host, peer, &hello) {
            Ok(()) => {
                let (item, wanted) = (hello.item, Wanted::of(&hello));
                let lobby = &host.lobby;
                let (number, over) = lobby.offer(item, wanted, reader.boxed(), writer.boxed());
                // Left, also when the listener ends this in the middle.
                let _place = PlaceGuard { lobby, item, number };
                if timeout(STAY, over.cancelled()).await.is_err() {
                    lobby.dismiss(item, number);
                    over.cancelled().await;
                }
            }
            Err(problem) => {
                let Problem { code, what, cause, .. } = &problem;
                tracing::warn!(%peer, item = %hello.item, %code, %cause, "{what}");
                // The store is told if it still listens; either way it comes again.
                let _ = writer.message(&DataMessage::Refused(problem)).await;
                writer.close().await;
            }
        },
    }
}

/// Frees a connection's place in the lobby.
struct PlaceGuard<'a> {
    lobby: &'a Lobby,
    item: leeward_model::ItemId,
    number: u64,
}

impl Drop for PlaceGuard<'_> {
    fn drop(&mut self) {
        self.lobby.forget(self.item, self.number);
    }
}

/// Whether this store may have the item's data, by this host's duty as its source.
fn check_store(host: &Host, peer: HostId, hello: &DataHello) -> Result<(), Problem> {
    let refuse = |code: Code, why: &str| {
        Err(code.because("the session of a replica store was refused", why))
    };
    if hello.host != peer {
        return refuse(Code::WRONG_CA, "the hello names another host than the certificate");
    }
    if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
        return refuse(Code::VERSION_MISMATCH, "the store speaks another version");
    }
    let Some(source) = host.source_duty(hello.item) else {
        return refuse(Code::NOT_FOUND, "this host does not replicate the item");
    };
    if source.target_host != peer || source.target_address.is_some() {
        return refuse(Code::STORE_FOREIGN, "another store is expected to dial, or none");
    }
    if source.branch != hello.branch || source.branch.epoch != hello.epoch {
        return refuse(Code::STORE_FENCED, "the item has another timeline or epoch here");
    }
    Ok(())
}

/// A connection to this host's own store, within the process.
pub fn within(host: &Arc<Host>) -> BoxStream {
    let (near, far) = duplex(WITHIN_BYTES);
    let serving = Arc::clone(host);
    host.spawn(async move {
        let (read, write) = split(far);
        let (mut reader, writer) = (FrameReader::new(read), FrameWriter::new(write));
        // Anything else than a hello is the end of a source that was taken away meanwhile.
        if let Ok(DataMessage::Hello(hello)) = reader.message(HELLO_TIMEOUT).await {
            let own = serving.id;
            target::serve(serving, own, hello, reader, writer).await;
        }
    });
    Box::new(near)
}
