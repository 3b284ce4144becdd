//! The host's session to the config server: takes assignments, sends observations, answers
//! questions. It dials again for as long as the host lives.

use super::{Host, dial, notes};
use crate::roles::session::{FrameReader, FrameWriter, SessionError};
use leeward_model::{Code, Problem};
use leeward_wire::{
    data::{decode_control, encode_control},
    message::{HEARTBEAT_MS, HostHello, PROTOCOL_VERSION, Query, SILENCE_MS, ToHost, ToServer},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// Pause before the server is dialled again.
const REDIAL: Duration = Duration::from_millis(500);
/// Observations that come close together are sent as one.
const GATHER: Duration = Duration::from_millis(3);
/// Answers that wait to be sent.
const ANSWERS_MAX: usize = 64;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("could not reach the config server")]
    Dial(#[from] std::io::Error),
    #[error("the session to the config server failed")]
    Session(#[from] SessionError),
    #[error("the config server refused the session: {0}")]
    Refused(Box<Problem>),
}

impl LinkError {
    /// The operator's view.
    fn problem(&self, server: &str) -> Problem {
        let what = || format!("this host has no session to the config server at {server}");
        match self {
            LinkError::Dial(error) | LinkError::Session(SessionError::Io(error)) => {
                dial::connection_problem(what(), error)
            }
            LinkError::Session(error) => Code::ROLE_AWAY.because(what(), error.to_string()),
            LinkError::Refused(problem) => (**problem).clone(),
        }
    }
}

/// Keeps a session to the server until `stop`.
pub async fn run(host: Arc<Host>, server: String, stop: CancellationToken) {
    let mut told = false;
    while !stop.is_cancelled() {
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = session(&host, &server, &mut told) => outcome,
        };
        if let Err(error) = outcome
            && !told
        {
            tracing::warn!("{}", error.problem(&server));
            told = true;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REDIAL) => {}
        }
    }
}

async fn session(host: &Arc<Host>, server: &str, told: &mut bool) -> Result<(), LinkError> {
    let stream = host.dialer.dial(server).await?;
    let (read, write) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let hello = HostHello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        host: host.id,
        name: host.name.clone(),
        boot: host.boot.clone(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    writer.send(&encode_control(&ToServer::Hello(hello))).await?;
    let silence = Duration::from_millis(SILENCE_MS);
    let welcome = timeout(silence, reader.next()).await;
    let welcome = welcome.map_err(|_| SessionError::Silent(silence))??;
    match decode_control(&welcome).map_err(SessionError::from)? {
        ToHost::Welcome { permit_key, .. } => host.permit_key_set(&permit_key),
        ToHost::Refused { problem } => return Err(LinkError::Refused(Box::new(problem))),
        _ => return Err(SessionError::OutOfTurn("something else than a welcome").into()),
    }
    tracing::info!(%server, "connected to the config server");
    *told = false;
    host.board.session_began();
    converse(host, &mut reader, &mut writer).await
}

async fn converse<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    host: &Arc<Host>,
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
) -> Result<(), LinkError> {
    let (answers, mut answered) = mpsc::channel::<ToServer>(ANSWERS_MAX);
    let mut heartbeat = interval(Duration::from_millis(HEARTBEAT_MS));
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let silence = Duration::from_millis(SILENCE_MS);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            frame = reader.next() => {
                let frame = frame?;
                heard = Instant::now();
                let message = decode_control(&frame).map_err(SessionError::from)?;
                receive(host, message, heard, &answers);
            }
            _ = heartbeat.tick() => {
                if heard.elapsed() > silence {
                    return Err(SessionError::Silent(silence).into());
                }
                writer.send(&encode_control(&observed(host).await)).await?;
                let notes = notes::notes_read(&host.folder);
                if !notes.is_empty() {
                    writer.send(&encode_control(&ToServer::Notes { notes })).await?;
                }
            }
            () = host.board.wait() => {
                tokio::time::sleep(GATHER).await;
                writer.send(&encode_control(&observed(host).await)).await?;
            }
            Some(answer) = answered.recv() => writer.send(&encode_control(&answer)).await?,
        }
    }
}

async fn observed(host: &Host) -> ToServer {
    ToServer::Observed(Box::new(host.observed()))
}

fn receive(host: &Arc<Host>, message: ToHost, at: Instant, answers: &mpsc::Sender<ToServer>) {
    match message {
        ToHost::Tick(stamp) => host.clock.ticked(stamp, at),
        ToHost::Assignment(assignment) => host.assign(*assignment),
        ToHost::Query { id, query } => {
            let (asked, answers) = (Arc::clone(host), answers.clone());
            host.spawn(async move {
                let answer = answer(&asked, query).await;
                // A session that ended meanwhile asks again on the next one.
                let _ = answers.send(ToServer::Answer { id, answer }).await;
            });
        }
        ToHost::NotesTaken { ids } => notes::notes_drop(&host.folder, &ids),
        ToHost::Welcome { .. } | ToHost::Refused { .. } => {
            tracing::warn!("the config server sent a welcome out of turn");
        }
    }
}

async fn answer(host: &Host, query: Query) -> Result<leeward_wire::message::Answer, Problem> {
    match &host.store {
        Some(store) => {
            let item = query.item();
            let keeps = host.target_duty(item).map(|duty| duty.retention_seconds);
            store.answer(query, keeps).await
        }
        None => Err(Code::ROLE_AWAY.problem("this host has no replica store")),
    }
}
