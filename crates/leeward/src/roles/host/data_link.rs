//! The source's end of a data session: seals changes, sends them within the window, waits for
//! what is durable.

use super::{Host, source::SourceWork};
use crate::roles::session::{FrameReader, FrameWriter, SessionError};
use leeward_capture::Hasher;
use leeward_model::{Change, Code, ExtentHash, Lsn, Marker, PointId, Position, Problem, SegmentId};
use leeward_wire::{
    credits::{CreditError, SendWindow},
    data::{Commit, DataHello, DataMessage, DataWelcome, HashesRequest, Role},
    hash,
    keys::{DataKey, HashKey},
    message::PROTOCOL_VERSION,
    seal::{Level, Sealer},
    segment::SegmentHeader,
};
use std::{sync::Arc, time::Duration};
use tokio::io::{ReadHalf, WriteHalf};

/// How long the store may take for a commit before the session counts as dead. A disk that
/// stalls for longer is as good as away.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the store may take to welcome a session: it may have to open the item's log.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// Segments are closed at this size (decision: 32 MiB or 60 s).
const SEGMENT_BYTES_MAX: u64 = 32 << 20;
/// Segments are closed at this age.
const SEGMENT_AGE_MAX: Duration = Duration::from_secs(60);
/// The level for every record until the codec adapts to the link.
const LEVEL: Level = Level::Zstd(1);

/// Why a data session ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The session failed.
    #[error("the session to the replica store failed")]
    Session(#[from] SessionError),
    /// The connection could not be made.
    #[error("could not connect to the replica store")]
    Dial(#[from] std::io::Error),
    /// The store broke the rules of the window.
    #[error("the replica store acknowledged what it cannot have")]
    Credit(#[from] CreditError),
    /// The store refused.
    #[error("the replica store refused: {0}")]
    Refused(Box<Problem>),
}

impl LinkError {
    /// The operator's view.
    pub fn problem(&self, address: &str) -> Problem {
        match self {
            LinkError::Refused(problem) => (**problem).clone(),
            LinkError::Session(_) | LinkError::Dial(_) | LinkError::Credit(_) => {
                let cause = std::error::Error::source(self).map(ToString::to_string);
                let cause = cause.unwrap_or_else(|| self.to_string());
                Code::TARGET_AWAY
                    .because(format!("the replica store at {address} cannot be reached"), cause)
            }
        }
    }
}

/// The keyed hashes of an item, for the capture.
pub struct KeyedHasher(HashKey);

impl Hasher for KeyedHasher {
    fn extent(&self, bytes: &[u8]) -> ExtentHash {
        hash::extent_hash(&self.0, bytes)
    }
    fn block(&self, bytes: &[u8]) -> [u8; 16] {
        hash::block_hash(&self.0, bytes)
    }
}

/// An open data session.
pub struct DataLink {
    reader: FrameReader<ReadHalf<super::dial::BoxStream>>,
    writer: FrameWriter<WriteHalf<super::dial::BoxStream>>,
    window: SendWindow,
    sealer: Option<(Sealer, u64, tokio::time::Instant)>,
    header: SegmentHeader,
    data_key: DataKey,
    /// The item's hash functions.
    pub hasher: Arc<KeyedHasher>,
    /// The position that this source goes on from: durable and committed.
    pub base: Position,
    /// The newest complete point that the branch can see.
    pub newest_point: Option<(PointId, Position)>,
}

impl DataLink {
    /// Connects to the store that `work` names and says hello.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn open(host: &Host, work: &SourceWork) -> Result<Self, LinkError> {
        let stream =
            host.dialer.dial(work.duty.target_address.as_deref().unwrap_or_default()).await?;
        let (read, write) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        let hello = DataHello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            item: work.item,
            host: host.id,
            host_boot: host.boot.clone(),
            role: Role::DialerSends,
            epoch: work.epoch,
            branch: work.duty.branch,
        };
        writer.message(&DataMessage::Hello(hello)).await?;
        let welcome = match reader.message(WELCOME_TIMEOUT).await? {
            DataMessage::Welcome(welcome) => welcome,
            DataMessage::Refused(problem) => return Err(LinkError::Refused(Box::new(problem))),
            _ => return Err(SessionError::OutOfTurn("something else than a welcome").into()),
        };
        Self::welcomed(reader, writer, *welcome, work)
    }

    fn welcomed(
        reader: FrameReader<ReadHalf<super::dial::BoxStream>>,
        writer: FrameWriter<WriteHalf<super::dial::BoxStream>>,
        welcome: DataWelcome,
        work: &SourceWork,
    ) -> Result<Self, LinkError> {
        let branch = work.duty.branch;
        // The branch's own newest position, or the place where it leaves its parent.
        let base = welcome
            .durable
            .or(branch.parent)
            .unwrap_or(Position { timeline: branch.timeline, lsn: Lsn(0) });
        let header = SegmentHeader {
            segment: SegmentId::from_u128(0),
            vault: work.vault,
            item: work.item,
            timeline: branch.timeline,
            epoch: work.epoch,
            key_version: welcome.key_version,
            first_lsn: base.lsn.next(),
            created_at: super::clock::wall_now(),
        };
        Ok(DataLink {
            reader,
            writer,
            window: SendWindow::new(welcome.credit_bytes, base.lsn)?,
            sealer: None,
            header,
            data_key: welcome.data_key,
            hasher: Arc::new(KeyedHasher(welcome.hash_key)),
            base,
            newest_point: welcome.newest_point,
        })
    }

    /// The LSN that the next record will have.
    pub fn next_lsn(&self) -> Lsn {
        self.window.last_sent().next()
    }

    /// Seals and sends one change. Waits while the window is full, never for the guest's account.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn send(&mut self, change: &Change) -> Result<(), LinkError> {
        let lsn = self.next_lsn();
        let record = self.sealer(lsn).await?.seal_change(lsn, change, LEVEL);
        self.send_record(lsn, record).await
    }

    /// Seals and sends a marker.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn send_marker(&mut self, marker: &Marker) -> Result<Lsn, LinkError> {
        let lsn = self.next_lsn();
        let record = self.sealer(lsn).await?.seal_marker(lsn, marker);
        self.send_record(lsn, record).await?;
        Ok(lsn)
    }

    async fn sealer(&mut self, lsn: Lsn) -> Result<&mut Sealer, LinkError> {
        let full = self.sealer.as_ref().is_none_or(|(_, bytes, opened)| {
            *bytes >= SEGMENT_BYTES_MAX || opened.elapsed() >= SEGMENT_AGE_MAX
        });
        if full {
            let header = SegmentHeader {
                segment: SegmentId::from(uuid::Uuid::new_v4()),
                first_lsn: lsn,
                created_at: super::clock::wall_now(),
                ..self.header.clone()
            };
            self.writer.message(&DataMessage::SegmentOpen(header.clone())).await?;
            let sealer = Sealer::new(&self.data_key, header);
            self.sealer = Some((sealer, 0, tokio::time::Instant::now()));
        }
        let (sealer, _, _) = self.sealer.as_mut().expect("opened above when it was not there");
        Ok(sealer)
    }

    async fn send_record(&mut self, lsn: Lsn, record: bytes::Bytes) -> Result<(), LinkError> {
        while !self.window.can_send(record.len()) {
            match self.reader.message(COMMIT_TIMEOUT).await? {
                DataMessage::Ack(ack) => {
                    self.window.acked(ack)?;
                }
                DataMessage::Refused(problem) => {
                    return Err(LinkError::Refused(Box::new(problem)));
                }
                _ => return Err(SessionError::OutOfTurn("something else than an ack").into()),
            }
        }
        self.writer.record(&record).await?;
        self.window.sent(lsn, record.len());
        if let Some((_, bytes, _)) = &mut self.sealer {
            *bytes += record.len() as u64;
        }
        Ok(())
    }

    /// Asks for everything sent so far to be committed and waits for it.
    ///
    /// # Errors
    /// See [`LinkError`]; then it is not known whether the store committed it.
    pub async fn commit(&mut self, commit: Commit) -> Result<Position, LinkError> {
        let lsn = commit.lsn;
        self.writer.message(&DataMessage::Commit(commit)).await?;
        loop {
            match self.reader.message(COMMIT_TIMEOUT).await? {
                DataMessage::Ack(ack) => {
                    self.window.acked(ack)?;
                }
                DataMessage::Committed(done) if done.lsn == lsn => {
                    self.base = Position { timeline: self.header.timeline, lsn };
                    return Ok(self.base);
                }
                DataMessage::Refused(problem) => {
                    return Err(LinkError::Refused(Box::new(problem)));
                }
                _ => return Err(SessionError::OutOfTurn("something else than a commit").into()),
            }
        }
    }

    /// Asks for the extent hashes of what the store has of a part of a disk.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn hashes(&mut self, request: HashesRequest) -> Result<Vec<ExtentHash>, LinkError> {
        self.writer.message(&DataMessage::HashesRequest(request)).await?;
        loop {
            match self.reader.message(COMMIT_TIMEOUT).await? {
                DataMessage::Hashes(answer) => return Ok(answer.hashes),
                DataMessage::Ack(ack) => {
                    self.window.acked(ack)?;
                }
                DataMessage::Refused(problem) => {
                    return Err(LinkError::Refused(Box::new(problem)));
                }
                _ => return Err(SessionError::OutOfTurn("something else than hashes").into()),
            }
        }
    }

    /// Waits until the store ends the session; between points that is the only thing that it can
    /// say. Returns what it said.
    pub async fn ended(&mut self) -> LinkError {
        loop {
            match self.reader.next().await.map(DataMessage::from_frame) {
                Ok(Ok(DataMessage::Ack(ack))) => {
                    if let Err(error) = self.window.acked(ack) {
                        return error.into();
                    }
                }
                Ok(Ok(DataMessage::Refused(problem))) => {
                    return LinkError::Refused(Box::new(problem));
                }
                Ok(Ok(_)) => return SessionError::OutOfTurn("a message between points").into(),
                Ok(Err(error)) => return LinkError::Session(error.into()),
                Err(error) => return error.into(),
            }
        }
    }
}
