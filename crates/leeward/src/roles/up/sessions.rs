//! Hosts' sessions at the config server: the control session, and the way to the door of this
//! host's own data sessions.

use super::listener::Doors;
use crate::roles::{
    host::{dial::Stream, door},
    session::{FrameReader, FrameWriter, SessionError},
};
use leeward_control::{Control, HostSession};
use leeward_model::{Code, HostId, Problem};
use leeward_wire::{
    data::{DataMessage, decode_control, encode_control},
    frame::{Frame, Kind},
    message::{Answer, HEARTBEAT_MS, HostHello, PROTOCOL_VERSION, SILENCE_MS, ToHost, ToServer},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

/// How long a host may take for its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Questions that wait for their answers at once; the oldest is given up beyond it.
const QUESTIONS_MAX: usize = 256;

type Reply = oneshot::Sender<Result<Answer, Problem>>;

/// Serves one session of the host `peer`, whose certificate was checked.
pub async fn serve<S: Stream + 'static>(doors: &Arc<Doors>, peer: HostId, stream: S) {
    let (read, write) = tokio::io::split(stream);
    let (mut reader, writer) = (FrameReader::new(read), FrameWriter::new(write));
    let first = match timeout(HELLO_TIMEOUT, reader.next()).await {
        Ok(Ok(frame)) => frame,
        _ => return,
    };
    match first.kind {
        Kind::Control => control_session(&doors.control, peer, first, reader, writer).await,
        Kind::DataHello => match DataMessage::from_frame(first) {
            Ok(DataMessage::Hello(hello)) => {
                door::serve(Arc::clone(&doors.host), peer, hello, reader, writer).await;
            }
            _ => tracing::warn!(%peer, "a data session began with an invalid hello"),
        },
        kind => tracing::warn!(%peer, %kind, "a session began with something else than a hello"),
    }
}

/// Serves a host's control session whose first frame was read, to its end.
pub async fn control_session<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    control: &Control,
    peer: HostId,
    first: Frame,
    mut reader: FrameReader<R>,
    mut writer: FrameWriter<W>,
) {
    let hello = match decode_control(&first) {
        Ok(ToServer::Hello(hello)) => hello,
        _ => return,
    };
    let mut session = match open(control, peer, &hello).await {
        Ok(session) => session,
        Err(problem) => {
            tracing::warn!(%peer, code = %problem.code, "a session was refused: {}", problem.what);
            // The host is told if it still listens.
            let _ = writer.send(&encode_control(&ToHost::Refused { problem })).await;
            writer.close().await;
            return;
        }
    };
    tracing::info!(host = %peer, name = %hello.name, "a host connected");
    let ended = converse(control, &mut session, &mut reader, &mut writer).await;
    control.host_closed(peer, session.number);
    tracing::info!(host = %peer, name = %hello.name, "a host's session ended: {ended}");
}

async fn open(control: &Control, peer: HostId, hello: &HostHello) -> Result<HostSession, Problem> {
    if hello.host != peer {
        return Err(Code::WRONG_CA.because(
            "the session was refused",
            "the hello names another host than the certificate",
        ));
    }
    if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
        return Err(Code::VERSION_MISMATCH.problem("the session was refused"));
    }
    control.host_hello(hello).await.map_err(|error| *error.problem)
}

async fn converse<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    control: &Control,
    session: &mut HostSession,
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
) -> SessionError {
    match converse_inner(control, session, reader, writer).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn converse_inner<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    control: &Control,
    session: &mut HostSession,
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
) -> Result<std::convert::Infallible, SessionError> {
    let send = |message: &ToHost| encode_control(message);
    let permit_key = control.permit_key();
    writer.send(&send(&ToHost::Welcome { version: PROTOCOL_VERSION, permit_key })).await?;
    writer.send(&send(&ToHost::Tick(control.now().stamp()))).await?;
    let assignment = session.assignments.borrow_and_update().clone();
    writer.send(&send(&ToHost::Assignment(Box::new((*assignment).clone())))).await?;
    let mut waiting: BTreeMap<u64, Reply> = BTreeMap::new();
    let mut asked = 0;
    let mut heartbeat = interval(Duration::from_millis(HEARTBEAT_MS));
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let silence = Duration::from_millis(SILENCE_MS);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            frame = reader.next() => {
                heard = Instant::now();
                let message = decode_control(&frame?)?;
                if let Some(reply) = take(control, session, message, &mut waiting).await {
                    writer.send(&send(&reply)).await?;
                }
            }
            changed = session.assignments.changed() => {
                if changed.is_err() {
                    // A newer session of the same host took its place.
                    return Err(SessionError::Closed);
                }
                let assignment = session.assignments.borrow_and_update().clone();
                writer.send(&send(&ToHost::Assignment(Box::new((*assignment).clone())))).await?;
            }
            question = session.queries.recv() => {
                let Some(question) = question else { return Err(SessionError::Closed) };
                asked += 1;
                waiting.insert(asked, question.reply);
                while waiting.len() > QUESTIONS_MAX {
                    waiting.pop_first();
                }
                writer.send(&send(&ToHost::Query { id: asked, query: question.query })).await?;
            }
            _ = heartbeat.tick() => {
                if heard.elapsed() > silence {
                    return Err(SessionError::Silent(silence));
                }
                writer.send(&send(&ToHost::Tick(control.now().stamp()))).await?;
            }
        }
    }
}

/// Takes a message; returns what is to be said to it.
async fn take(
    control: &Control,
    session: &HostSession,
    message: ToServer,
    waiting: &mut BTreeMap<u64, Reply>,
) -> Option<ToHost> {
    match message {
        ToServer::Observed(seen) => {
            let taken = control.host_observed(session.host, session.number, *seen).await;
            if let Err(error) = taken {
                tracing::error!(host = %session.host, %error, "an observation was not stored");
            }
        }
        ToServer::Answer { id, answer } => {
            if let Some(reply) = waiting.remove(&id) {
                // Whoever asked may have given up.
                let _ = reply.send(answer);
            }
        }
        ToServer::Notes { notes } => match control.host_notes(session.host, notes).await {
            Ok(ids) => return Some(ToHost::NotesTaken { ids }),
            Err(error) => tracing::error!(host = %session.host, %error, "notes were not stored"),
        },
        ToServer::Hello(_) => tracing::warn!(host = %session.host, "a second hello was ignored"),
    }
    None
}
