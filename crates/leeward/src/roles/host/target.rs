//! The master target: takes a source's session, makes what it sends durable, commits its points.
//!
//! It holds every session to its item's duty: the host, the timeline and the epoch must be those
//! that the config server named, and nothing below the fence is taken.

use super::{Host, board::Board, hash_key, head_view::HeadView, site_store::SiteStore};
use crate::{
    intake::Seat,
    roles::session::{FrameReader, FrameWriter, SessionError},
};
use leeward_model::{
    Code, DiskNumber, ExtentNumber, HostId, ItemId, Lsn, PointOrigin, Position, Problem, TimelineId,
};
use leeward_replica::StoreError;
use leeward_wire::{
    audit::{AuditWord, EXTENT_UNREADABLE, REREAD_MAX},
    credits::{CreditError, ReceiveWindow},
    data::{BlockHashes, Committed, DataHello, DataMessage, HashKeyWord, Hashes},
    message::{PROTOCOL_VERSION, SourceRun, TargetObserved},
    record::{RECORD_HEADER_BYTES, RecordHeader},
};
use std::{sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};

/// The window of a session, in bytes of records that are not durable yet: several times what it
/// holds before it makes that durable, so that the link does not stand still meanwhile. What is
/// beyond that waits in the connection: nothing is read then.
const CREDIT_BYTES: u64 = 32 << 20;
/// A source that says nothing for so long is away: points come at least every hour, and an idle
/// session costs nothing, so this is only against connections that hang for ever.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The session failed.
    #[error("the session failed")]
    Session(#[from] SessionError),
    /// The source went beyond its window.
    #[error("the source broke the rules of its window")]
    Credit(#[from] CreditError),
    /// The store refused or failed.
    #[error("the replica store could not take it")]
    Store(#[from] StoreError),
    /// It is not this source's turn.
    #[error("{0}")]
    Refused(Box<Problem>),
}

/// A data session at the store's end.
struct Session<'a> {
    host: &'a Host,
    store: &'a Arc<SiteStore>,
    hello: DataHello,
    /// Why the session's points exist.
    origin: PointOrigin,
    window: ReceiveWindow,
    /// Records that are not durable yet.
    seat: Seat,
    /// What the branch holds, for questions about hashes.
    view: Option<HeadView>,
}

/// Serves one data session of the source on `peer`, whose hello was read, to its end. Either end
/// may have dialled.
pub async fn serve<R, W>(
    host: Arc<Host>,
    peer: HostId,
    hello: DataHello,
    reader: FrameReader<R>,
    mut writer: FrameWriter<W>,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let item = hello.item;
    let seed = is_seed(&host, peer, &hello);
    let result = match &host.store {
        Some(store) => run(&host, store, peer, hello, reader, &mut writer).await,
        None => Err(refuse(Code::STORE_FOREIGN, "this host has no replica store")),
    };
    if !seed {
        connected(&host.board, item, false);
    }
    let error = match result {
        Ok(()) => return,
        Err(error) => error,
    };
    if matches!(error, TargetError::Session(SessionError::Closed)) {
        tracing::info!(%item, "the source ended its session");
        return;
    }
    let problem = problem_of(&error, item);
    tracing::warn!(%item, code = %problem.code, cause = %problem.cause, "{}", problem.what);
    if let TargetError::Store(StoreError::Storage(_)) = &error {
        host.board.target_fails(item, problem.clone());
    }
    // The source is told if it still listens; either way it comes again.
    let _ = writer.message(&DataMessage::Refused(problem)).await;
    writer.close().await;
}

fn refuse(code: Code, why: &str) -> TargetError {
    TargetError::Refused(Box::new(code.because("the source's session was refused", why)))
}

fn pauses(item: ItemId) -> String {
    format!("replication of item {item} pauses")
}

fn problem_of(error: &TargetError, item: ItemId) -> Problem {
    match error {
        TargetError::Refused(problem) => (**problem).clone(),
        TargetError::Store(error) => error.problem(pauses(item)),
        TargetError::Session(error) => Code::BAD_REQUEST
            .because(format!("the session of item {item} was ended"), error.to_string()),
        TargetError::Credit(error) => Code::BAD_REQUEST
            .because(format!("the session of item {item} was ended"), error.to_string()),
    }
}

/// Shows whether the item's source is connected.
pub fn connected(board: &Board, item: ItemId, now: bool) {
    board.target(item, |seen| {
        if let Some(seen) = seen {
            seen.connected = now;
        }
    });
}

/// Whether this is the host's own seed: its old disks, on the branch that its source duty names.
/// Where that branch begins is this store's own knowledge.
fn is_seed(host: &Host, peer: HostId, hello: &DataHello) -> bool {
    let own = peer == host.id && hello.host == host.id;
    let names = |branch: leeward_model::Branch| {
        (branch.timeline, branch.epoch) == (hello.branch.timeline, hello.branch.epoch)
    };
    let duty = own.then(|| host.source_duty(hello.item)).flatten();
    duty.is_some_and(|duty| {
        let epoch_fits = hello.epoch == duty.branch.epoch;
        matches!(duty.run, SourceRun::Seed { .. }) && names(duty.branch) && epoch_fits
    })
}

/// Whether this source may send now, by the item's duty.
fn check(host: &Host, peer: HostId, hello: &DataHello) -> Result<PointOrigin, TargetError> {
    if hello.host != peer {
        return Err(refuse(Code::WRONG_CA, "the hello names another host than the certificate"));
    }
    if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
        return Err(refuse(Code::VERSION_MISMATCH, "the source speaks another version"));
    }
    if is_seed(host, peer, hello) {
        return Ok(PointOrigin::Divergent);
    }
    let Some(duty) = host.target_duty(hello.item) else {
        return Err(refuse(Code::NOT_FOUND, "this host holds no replica of the item"));
    };
    if hello.epoch < duty.fence {
        return Err(refuse(Code::STORE_FENCED, "its epoch has ended"));
    }
    let expected = duty.receive && duty.source_host == peer && duty.branch == hello.branch;
    if !expected {
        return Err(refuse(Code::STORE_FENCED, "another source or timeline is expected"));
    }
    Ok(PointOrigin::Replicated)
}

async fn run<R, W>(
    host: &Host,
    store: &Arc<SiteStore>,
    peer: HostId,
    hello: DataHello,
    mut reader: FrameReader<R>,
    writer: &mut FrameWriter<W>,
) -> Result<(), TargetError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let origin = check(host, peer, &hello)?;
    let item = hello.item;
    if origin == PointOrigin::Replicated {
        need_part(host, store, peer, &hello, &mut reader, writer).await?;
    }
    let welcome = store.welcome(item, hello.branch, CREDIT_BYTES).await?;
    let base = welcome.durable.or(hello.branch.parent).map_or(Lsn(0), |position| position.lsn);
    writer.message(&DataMessage::Welcome(Box::new(welcome))).await?;
    if origin == PointOrigin::Replicated {
        connected(&host.board, item, true);
    }
    let window = ReceiveWindow::new(CREDIT_BYTES, base);
    let (seat, view) = (host.intake.seat(), None);
    let mut session = Session { host, store, hello, origin, window, seat, view };
    loop {
        let message = tokio::select! {
            message = reader.message(IDLE_TIMEOUT) => message?,
            () = session.seat.asked() => {
                session.flush(writer).await?;
                continue;
            }
        };
        // A duty that changed ends the session before anything more is taken.
        check(host, peer, &session.hello)?;
        session.take(message, writer).await?;
    }
}

/// Makes the item's part of the store if there is none: with the hash key that the source has in
/// its own store, or with one drawn here if it has none.
async fn need_part<R, W>(
    host: &Host,
    store: &Arc<SiteStore>,
    peer: HostId,
    hello: &DataHello,
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
) -> Result<(), TargetError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let item = hello.item;
    if store.hash_key(item).await?.is_some() {
        return Ok(());
    }
    writer.message(&DataMessage::HashKey(HashKeyWord::Missing)).await?;
    let hash = match reader.message(hash_key::WORD_TIMEOUT).await? {
        DataMessage::HashKey(HashKeyWord::Key { hash_key }) => Some(hash_key),
        DataMessage::HashKey(HashKeyWord::Missing) => None,
        _ => return Err(SessionError::OutOfTurn("no answer on the item's hash key").into()),
    };
    check(host, peer, hello)?;
    let Some(vault) = host.vault(item) else {
        return Err(refuse(Code::NOT_FOUND, "this host holds no replica of the item"));
    };
    Ok(hash_key::make_part(host, store, vault, item, hash).await?)
}

impl Session<'_> {
    fn timeline(&self) -> TimelineId {
        self.hello.branch.timeline
    }

    async fn take<W: AsyncWrite + Unpin>(
        &mut self,
        message: DataMessage,
        writer: &mut FrameWriter<W>,
    ) -> Result<(), TargetError> {
        let item = self.hello.item;
        match message {
            DataMessage::SegmentOpen(header) => {
                self.flush(writer).await?;
                let own = header.item == item
                    && header.timeline == self.timeline()
                    && header.epoch == self.hello.epoch;
                if !own {
                    return Err(refuse(Code::STORE_FENCED, "a segment of another epoch or item"));
                }
                self.store.begin_segment(item, header).await?;
            }
            DataMessage::Record(record) => self.take_record(record, writer).await?,
            DataMessage::Commit(commit) => {
                self.flush(writer).await?;
                let at = Position { timeline: self.timeline(), lsn: commit.lsn };
                let point = if commit.point {
                    let (origin, cut_server) = (self.origin.clone(), commit.cut_server);
                    Some(self.store.commit_point(item, at, origin, cut_server).await?)
                } else {
                    self.store.commit_progress(item, at).await?;
                    None
                };
                self.host.replica_changed(item).await;
                // Only this proves that the store works again; a session does not.
                self.host.board.target_mended(item, &pauses(item));
                let committed = Committed { lsn: commit.lsn, point };
                writer.message(&DataMessage::Committed(committed)).await?;
            }
            DataMessage::HashesRequest(request) => {
                let (disk, first_extent) = (request.disk, request.first_extent);
                let view = self.head_view().await?;
                let hashes = view.leaves(disk, first_extent, request.count).await?;
                let answer = Hashes { disk, first_extent, hashes };
                writer.message(&DataMessage::Hashes(answer)).await?;
            }
            DataMessage::BlockHashesRequest(request) => {
                let disk = request.disk;
                let view = self.head_view().await?;
                let hashes = view.blocks(disk, request.extents).await?;
                writer.message(&DataMessage::BlockHashes(BlockHashes { disk, hashes })).await?;
            }
            DataMessage::Audit(AuditWord::Ask) => {
                let extents = self.still_damaged().await?;
                writer.message(&DataMessage::Audit(AuditWord::Damaged { extents })).await?;
            }
            DataMessage::Audit(AuditWord::Reread { disk, first_extent, count }) => {
                if !(1..=REREAD_MAX).contains(&count) {
                    return Err(SessionError::OutOfTurn("a question about too much").into());
                }
                let view = self.head_view().await?;
                let hashes = view.reread(disk, first_extent, count).await?;
                let answer = Hashes { disk, first_extent, hashes };
                writer.message(&DataMessage::Hashes(answer)).await?;
            }
            DataMessage::Ping(number) => writer.message(&DataMessage::Pong(number)).await?,
            _ => return Err(SessionError::OutOfTurn("a message that a source never sends").into()),
        }
        Ok(())
    }

    async fn take_record<W: AsyncWrite + Unpin>(
        &mut self,
        record: bytes::Bytes,
        writer: &mut FrameWriter<W>,
    ) -> Result<(), TargetError> {
        let head = record.first_chunk::<RECORD_HEADER_BYTES>();
        let header = head.and_then(|head| RecordHeader::decode(head).ok());
        let Some(header) = header else {
            return Err(refuse(Code::BAD_REQUEST, "a record without a valid header"));
        };
        self.window.received(header.lsn, record.len())?;
        if let Err(record) = self.seat.push(record) {
            self.flush(writer).await?;
            self.seat.push(record).expect("an empty seat takes every record");
        }
        if self.seat.is_full() {
            self.flush(writer).await?;
        }
        Ok(())
    }

    /// What the branch holds, as committed last.
    async fn head_view(&mut self) -> Result<HeadView, TargetError> {
        let view = self.store.head_view(self.hello.item, self.timeline(), self.view.take()).await?;
        Ok(self.view.insert(view).clone())
    }

    /// Extents that were found damaged and still are: what was sent again is whole.
    async fn still_damaged(&mut self) -> Result<Vec<(DiskNumber, ExtentNumber)>, TargetError> {
        let known = self.store.damaged(self.hello.item);
        if known.is_empty() {
            return Ok(known);
        }
        let view = self.head_view().await?;
        let mut still = Vec::new();
        for (disk, extent) in known {
            if view.reread(disk, extent, 1).await? == [EXTENT_UNREADABLE] {
                still.push((disk, extent));
            }
        }
        self.store.damaged_set(self.hello.item, still.iter().copied().collect());
        Ok(still)
    }

    /// Makes what waits durable and acknowledges it.
    async fn flush<W: AsyncWrite + Unpin>(
        &mut self,
        writer: &mut FrameWriter<W>,
    ) -> Result<(), TargetError> {
        if self.seat.bytes() == 0 {
            return Ok(());
        }
        let durable = self.store.append(self.hello.item, self.seat.take()).await?;
        writer.message(&DataMessage::Ack(self.window.durable(durable))).await?;
        Ok(())
    }
}

/// A target entry before anything is known.
pub fn target_blank() -> TargetObserved {
    TargetObserved {
        fence: leeward_model::Epoch(0),
        connected: false,
        newest: None,
        durable: None,
        stored_bytes: 0,
        points: 0,
        audit: None,
        served: Vec::new(),
        problem: None,
        deleted: false,
    }
}
