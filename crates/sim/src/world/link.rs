//! The primary site's link to the recovery site, which can be cut, and the doors behind it.

use super::tally::{Blocks, CrossingEnd, Crossings};
use async_trait::async_trait;
use leeward::roles::{
    host::{
        Host,
        dial::{BoxStream, Dialer},
        door,
    },
    session::{FrameReader, FrameWriter},
    up::sessions,
};
use leeward_control::Control;
use leeward_model::HostId;
use leeward_wire::{data::DataMessage, frame::Kind};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    task::JoinSet,
    time::Sleep,
};

/// Where hosts dial the config server.
pub const SERVER: &str = "config-server:1";
/// Where the recovery host is dialled for data, by whoever sends or receives them.
pub const STORE: &str = "replica-store:1";
/// What a connection holds in flight, in bytes.
const IN_FLIGHT: usize = 1 << 20;
/// As long as a real dialler waits for an answer that does not come.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How a link is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// It works.
    #[default]
    Open,
    /// Nothing passes and nobody is told.
    Hangs,
    /// Connections break and new ones are refused.
    Refuses,
}

/// What a connection takes at a time, in bytes, before it pauses for as long as that takes to pass.
const PACE_BYTES: usize = 16 << 10;

#[derive(Default)]
struct GateState {
    state: LinkState,
    /// Bytes that each connection carries in a second; none is as many as there are.
    pace: Option<u64>,
    /// What crosses connections for data, if anybody wants to know: it costs time.
    crossings: Option<Crossings>,
    /// Connections that were made before this count changed are broken.
    breaks: u64,
    wakers: Vec<Waker>,
}

/// A link between two sites.
#[derive(Clone, Default)]
pub struct Link {
    gate: Arc<Mutex<GateState>>,
}

impl Link {
    fn gate(&self) -> MutexGuard<'_, GateState> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the link.
    pub fn set(&self, state: LinkState) {
        let mut gate = self.gate();
        gate.state = state;
        if state == LinkState::Refuses {
            gate.breaks += 1;
        }
        gate.wakers.drain(..).for_each(Waker::wake);
    }

    /// How it is.
    pub fn state(&self) -> LinkState {
        self.gate().state
    }

    /// Lets each connection carry so many bytes in a second of the world's time.
    pub fn set_pace(&self, bytes_per_second: u64) {
        self.gate().pace = Some(bytes_per_second);
    }

    /// Counts the blocks that cross connections which are made from now on.
    pub fn count(&self) {
        self.gate().crossings.get_or_insert_default();
    }

    /// The blocks that crossed so far, and those of them that were not committed when their
    /// connection ended.
    pub fn crossed(&self) -> Blocks {
        self.gate().crossings.as_ref().map(Crossings::so_far).unwrap_or_default()
    }

    /// Both ends of a new connection, for data or not.
    fn wrap(&self, inner: (DuplexStream, DuplexStream), data: bool) -> (LinkStream, LinkStream) {
        let breaks = self.gate().breaks;
        let counted = self.gate().crossings.as_ref().filter(|_| data).map(Crossings::connection);
        let [near, far] = counted.map_or([None, None], |ends| ends.map(Some));
        let end = |inner, counted| {
            let link = self.clone();
            LinkStream { inner, link, breaks, counted, pause: None }
        };
        (end(inner.0, near), end(inner.1, far))
    }

    /// For how long a connection is busy with so many bytes.
    fn busy(&self, bytes: usize) -> Option<Duration> {
        let pace = self.gate().pace?;
        Some(Duration::from_micros(bytes as u64 * 1_000_000 / pace))
    }
}

/// One end of a connection over a link.
struct LinkStream {
    inner: DuplexStream,
    link: Link,
    breaks: u64,
    counted: Option<CrossingEnd>,
    /// Until then what was written before is on its way.
    pause: Option<Pin<Box<Sleep>>>,
}

impl LinkStream {
    fn passes(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut gate = self.link.gate();
        if gate.breaks != self.breaks {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !gate.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            gate.wakers.push(context.waker().clone());
        }
        match gate.state {
            LinkState::Open => Poll::Ready(Ok(())),
            LinkState::Hangs | LinkState::Refuses => Poll::Pending,
        }
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.passes(context))?;
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.passes(context))?;
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let some = &bytes[..bytes.len().min(PACE_BYTES)];
        let wrote = std::task::ready!(Pin::new(&mut self.inner).poll_write(context, some))?;
        if let Some(counted) = &mut self.counted {
            counted.wrote(&some[..wrote]);
        }
        let busy = self.link.busy(wrote);
        self.pause = busy.map(|busy| Box::pin(tokio::time::sleep(busy)));
        Poll::Ready(Ok(wrote))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.passes(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[derive(Default)]
struct Doors {
    server: Option<Control>,
    store: Option<Arc<Host>>,
    server_tasks: JoinSet<()>,
    store_tasks: JoinSet<()>,
}

/// What listens at the recovery site.
#[derive(Clone, Default)]
pub struct Net {
    doors: Arc<Mutex<Doors>>,
}

impl Net {
    fn doors(&self) -> MutexGuard<'_, Doors> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens or closes the config server's door. Closed, its sessions end where they are.
    pub fn server_set(&self, server: Option<Control>) {
        let mut doors = self.doors();
        doors.server_tasks = JoinSet::new();
        doors.server = server;
    }

    /// Opens or closes the store's door.
    pub fn store_set(&self, store: Option<Arc<Host>>) {
        let mut doors = self.doors();
        doors.store_tasks = JoinSet::new();
        doors.store = store;
    }

    fn connect(&self, peer: HostId, address: &str, link: &Link) -> io::Result<BoxStream> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (near, far) = link.wrap(duplex(IN_FLIGHT), address == STORE);
        let mut doors = self.doors();
        match address {
            SERVER => {
                let control = doors.server.clone().ok_or_else(refused)?;
                doors.server_tasks.spawn(serve_control(control, peer, far));
            }
            STORE => {
                let host = doors.store.clone().ok_or_else(refused)?;
                doors.store_tasks.spawn(serve_data(host, peer, far));
            }
            _ => return Err(io::ErrorKind::NotFound.into()),
        }
        Ok(Box::new(near))
    }
}

async fn serve_control(control: Control, peer: HostId, stream: LinkStream) {
    let (read, write) = tokio::io::split(stream);
    let (mut reader, writer) = (FrameReader::new(read), FrameWriter::new(write));
    if let Ok(first) = reader.next().await
        && first.kind == Kind::Control
    {
        sessions::control_session(&control, peer, first, reader, writer).await;
    }
}

async fn serve_data(host: Arc<Host>, peer: HostId, stream: LinkStream) {
    let (read, write) = tokio::io::split(stream);
    let (mut reader, writer) = (FrameReader::new(read), FrameWriter::new(write));
    let first = reader.next().await.ok().and_then(|frame| DataMessage::from_frame(frame).ok());
    if let Some(DataMessage::Hello(hello)) = first {
        door::serve(host, peer, hello, reader, writer).await;
    }
}

/// A host's dialler.
pub struct WorldDialer {
    /// The doors.
    pub net: Net,
    /// The link that it dials over.
    pub link: Link,
    /// Who dials.
    pub peer: HostId,
}

#[async_trait]
impl Dialer for WorldDialer {
    async fn dial(&self, address: &str) -> io::Result<BoxStream> {
        match self.link.state() {
            LinkState::Open => self.net.connect(self.peer, address, &self.link),
            LinkState::Refuses => Err(io::ErrorKind::ConnectionRefused.into()),
            LinkState::Hangs => {
                tokio::time::sleep(DIAL_TIMEOUT).await;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}
