//! The source's end of a data session: seals changes, sends them within the window, waits for
//! what is durable.

use super::{
    Host,
    dial::{BoxStream, connection_problem},
    door, hash_key,
    lobby::Wanted,
    pace::Pace,
    source::SourceWork,
    spool::delta::SpoolSeal,
};
use crate::{
    roles::session::{BoxReader, BoxWriter, FrameReader, FrameWriter, SessionError},
    sealing::KeyedHasher,
};
use leeward_model::{
    Branch, Code, DiskNumber, ExtentHash, ExtentNumber, HostId, Lsn, Marker, PointId, Position,
    Problem, SegmentId,
};
use leeward_replica::StoreError;
use leeward_wire::{
    audit::AuditWord,
    credits::{CreditError, SendWindow},
    data::{
        BlockHashesRequest, Commit, DataHello, DataMessage, DataWelcome, ExtentBlockHashes,
        HashKeyWord, HashesRequest, Role,
    },
    keys::DataKey,
    seal::{PackedChange, Sealer},
    segment::SegmentHeader,
};
use std::{fmt, sync::Arc, time::Duration};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long the store may take for a commit before the session counts as dead. A disk that
/// stalls for longer is as good as away.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the store may take to welcome a session: it may have to open the item's log.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a store that has to dial this host is waited for. One that is there dials again at
/// once; while nobody waits it stays in the lobby for longer than this worker's pauses.
const STORE_WAIT: Duration = Duration::from_secs(5);
/// Segments are closed at this size (decision: 32 MiB or 60 s).
const SEGMENT_BYTES_MAX: u64 = 32 << 20;
/// Segments are closed at this age.
const SEGMENT_AGE_MAX: Duration = Duration::from_secs(60);

/// The store at the other end of a data session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEnd {
    /// It is dialled at this address.
    Dialled(String),
    /// It is this host's own.
    Own,
    /// That host cannot be dialled: it dials this one.
    Dials(HostId),
}

impl StoreEnd {
    /// The store that `work` names.
    pub fn of(host: &Host, work: &SourceWork) -> StoreEnd {
        match &work.duty.target_address {
            Some(address) => StoreEnd::Dialled(address.clone()),
            None if work.duty.target_host == host.id => StoreEnd::Own,
            None => StoreEnd::Dials(work.duty.target_host),
        }
    }
}

impl fmt::Display for StoreEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreEnd::Dialled(address) => write!(f, "the replica store at {address}"),
            StoreEnd::Own => f.write_str("this host's own replica store"),
            StoreEnd::Dials(host) => write!(f, "the replica store of host {host}"),
        }
    }
}

/// Why a data session ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The session failed.
    #[error("the session to the replica store failed")]
    Session(#[from] SessionError),
    /// The connection could not be made.
    #[error("could not connect to the replica store")]
    Dial(#[from] std::io::Error),
    /// The store's host has to dial this one and did not, or its connections broke at once.
    #[error("the host of the replica store has not dialled this one")]
    NotDialled,
    /// The store's host has dialled again.
    #[error("the host of the replica store gave this connection up and made another")]
    Replaced,
    /// The store broke the rules of the window.
    #[error("the replica store acknowledged what it cannot have")]
    Credit(#[from] CreditError),
    /// This host's own store, which may have the item's hash key, failed.
    #[error("this host's own replica store could not be read")]
    OwnStore(#[source] StoreError),
    /// The store refused.
    #[error("the replica store refused: {0}")]
    Refused(Box<Problem>),
}

impl LinkError {
    /// The operator's view.
    pub fn problem(&self, store: &StoreEnd) -> Problem {
        match self {
            LinkError::Refused(problem) => (**problem).clone(),
            LinkError::OwnStore(error) => {
                error.problem("the item's hash key could not be read from this host's own store")
            }
            LinkError::Dial(error) | LinkError::Session(SessionError::Io(error)) => {
                let what = format!("{store} cannot be reached");
                let problem = connection_problem(what.clone(), error);
                match problem.code == Code::ROLE_AWAY.code {
                    true => Code::TARGET_AWAY.because(what, problem.cause),
                    false => problem,
                }
            }
            LinkError::Session(_)
            | LinkError::NotDialled
            | LinkError::Replaced
            | LinkError::Credit(_) => {
                let cause = std::error::Error::source(self).map(ToString::to_string);
                let cause = cause.unwrap_or_else(|| self.to_string());
                Code::TARGET_AWAY.because(format!("{store} cannot be reached"), cause)
            }
        }
    }
}

/// An open data session.
pub struct DataLink {
    connection: Connection,
    window: SendWindow,
    sealer: Option<(Sealer, u64, tokio::time::Instant)>,
    header: SegmentHeader,
    data_key: DataKey,
    /// How fast it may send; none without a limit.
    pace: Option<Pace>,
    /// The item's hash functions.
    pub hasher: Arc<KeyedHasher>,
    /// The position that this source goes on from: durable and committed.
    pub base: Position,
    /// The newest complete point that the branch can see.
    pub newest_point: Option<(PointId, Position)>,
    /// Whether the store has nothing that the branch can see, also not what `base` names: as one
    /// that was lost and begins anew.
    pub is_blank: bool,
}

/// A connection to a store, whoever dialled.
struct Connection {
    reader: BoxReader,
    writer: BoxWriter,
    /// Of one that the store dialled: cancelled when it has dialled again.
    replaced: CancellationToken,
    /// Of one that the store dialled: tells the door that it is over.
    _over: Option<DropGuard>,
}

impl Connection {
    fn over(stream: BoxStream) -> Connection {
        let (read, write) = tokio::io::split(stream);
        let (reader, writer) = (FrameReader::new(read).boxed(), FrameWriter::new(write).boxed());
        Connection { reader, writer, replaced: CancellationToken::new(), _over: None }
    }

    /// The next message, within `limit`.
    async fn message(&mut self, limit: Duration) -> Result<DataMessage, LinkError> {
        tokio::select! {
            message = self.reader.message(limit) => Ok(message?),
            () = self.replaced.cancelled() => Err(LinkError::Replaced),
        }
    }

    /// Says hello and waits for the welcome. A store that has no part of the item yet is given the
    /// hash key of this host's own part, if there is one; once.
    async fn greet(&mut self, host: &Host, hello: DataHello) -> Result<DataWelcome, LinkError> {
        let item = hello.item;
        self.writer.message(&DataMessage::Hello(hello)).await?;
        let mut message = self.message(WELCOME_TIMEOUT).await?;
        if message == DataMessage::HashKey(HashKeyWord::Missing) {
            let word = hash_key::answer(host, item).await.map_err(LinkError::OwnStore)?;
            self.writer.message(&DataMessage::HashKey(word)).await?;
            message = self.message(WELCOME_TIMEOUT).await?;
        }
        match message {
            DataMessage::Welcome(welcome) => Ok(*welcome),
            DataMessage::Refused(problem) => Err(LinkError::Refused(Box::new(problem))),
            _ => Err(SessionError::OutOfTurn("something else than a welcome").into()),
        }
    }
}

/// Takes the connection of a store that dialled and says hello; one that broke while it waited is
/// passed over for the next.
async fn greet_guest(
    host: &Host,
    store: HostId,
    hello: &DataHello,
) -> Result<(Connection, DataWelcome), LinkError> {
    let wanted = Wanted { host: store, epoch: hello.epoch, branch: hello.branch };
    let end = tokio::time::Instant::now() + STORE_WAIT;
    loop {
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        let guest = host.lobby.take(hello.item, wanted, left).await;
        let guest = guest.ok_or(LinkError::NotDialled)?;
        let super::lobby::Guest { reader, writer, replaced, over } = guest;
        let mut connection = Connection { reader, writer, replaced, _over: Some(over) };
        match connection.greet(host, hello.clone()).await {
            Ok(welcome) => return Ok((connection, welcome)),
            Err(LinkError::Session(_) | LinkError::Replaced) => {}
            Err(error) => return Err(error),
        }
    }
}

impl DataLink {
    /// Reaches the store that `work` names and says hello for `branch`.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn open(
        host: &Arc<Host>,
        work: &SourceWork,
        branch: Branch,
    ) -> Result<Self, LinkError> {
        let end = StoreEnd::of(host, work);
        let role = match end {
            StoreEnd::Dialled(_) | StoreEnd::Own => Role::DialerSends,
            StoreEnd::Dials(_) => Role::DialerReceives,
        };
        let hello = host.hello(work.item, role, work.epoch, branch);
        let paced = end != StoreEnd::Own;
        let stream = match end {
            StoreEnd::Dialled(address) => host.dialer.dial(&address).await?,
            StoreEnd::Own => door::within(host),
            StoreEnd::Dials(store) => {
                let (connection, welcome) = greet_guest(host, store, &hello).await?;
                let mut link = Self::welcomed(connection, welcome, work, branch)?;
                link.pace_set(host, work);
                return Ok(link);
            }
        };
        let mut connection = Connection::over(stream);
        let welcome = connection.greet(host, hello).await?;
        let mut link = Self::welcomed(connection, welcome, work, branch)?;
        if paced {
            link.pace_set(host, work);
        }
        Ok(link)
    }

    /// Sends from now on as fast as `work` lets it.
    pub fn pace_set(&mut self, host: &Host, work: &SourceWork) {
        self.pace = host.paces.pace(Some(&work.duty.bandwidth), &host.wall);
    }

    /// Sends as fast as it can from now on: everybody waits for it.
    pub fn pace_lift(&mut self) {
        self.pace = None;
    }

    fn welcomed(
        connection: Connection,
        welcome: DataWelcome,
        work: &SourceWork,
        branch: Branch,
    ) -> Result<Self, LinkError> {
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
            connection,
            window: SendWindow::new(welcome.credit_bytes, base.lsn)?,
            sealer: None,
            header,
            data_key: welcome.data_key,
            pace: None,
            hasher: Arc::new(KeyedHasher::new(welcome.hash_key)),
            base,
            is_blank: welcome.durable.is_none() && welcome.newest_point.is_none(),
            newest_point: welcome.newest_point,
        })
    }

    /// What a delta that is to wait for a session is sealed with.
    pub fn spool_seal(&self) -> SpoolSeal {
        SpoolSeal { data_key: self.data_key.clone(), header: self.header.clone() }
    }

    /// Number of the store's data key.
    pub fn key_version(&self) -> u32 {
        self.header.key_version
    }

    /// The LSN that the next record will have.
    pub fn next_lsn(&self) -> Lsn {
        self.window.last_sent().next()
    }

    /// Seals and sends one packed change. Waits while the window is full, never for the guest's
    /// account.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn send(&mut self, packed: PackedChange) -> Result<(), LinkError> {
        let lsn = self.next_lsn();
        let record = self.sealer(lsn).await?.seal_packed(lsn, packed);
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
            self.connection.writer.message(&DataMessage::SegmentOpen(header.clone())).await?;
            let sealer = Sealer::new(&self.data_key, header);
            self.sealer = Some((sealer, 0, tokio::time::Instant::now()));
        }
        let (sealer, _, _) = self.sealer.as_mut().expect("opened above when it was not there");
        Ok(sealer)
    }

    async fn send_record(&mut self, lsn: Lsn, record: bytes::Bytes) -> Result<(), LinkError> {
        while !self.window.can_send(record.len()) {
            match self.connection.message(COMMIT_TIMEOUT).await? {
                DataMessage::Ack(ack) => {
                    self.window.acked(ack)?;
                }
                DataMessage::Refused(problem) => {
                    return Err(LinkError::Refused(Box::new(problem)));
                }
                _ => return Err(SessionError::OutOfTurn("something else than an ack").into()),
            }
        }
        if let Some(pace) = &mut self.pace {
            pace.wait(record.len() as u64).await;
        }
        self.connection.writer.record(&record).await?;
        self.window.sent(lsn, record.len());
        if let Some((_, bytes, _)) = &mut self.sealer {
            *bytes += record.len() as u64;
        }
        Ok(())
    }

    /// Asks something and waits for the answer; takes what is acknowledged meanwhile.
    async fn ask(&mut self, question: DataMessage) -> Result<DataMessage, LinkError> {
        self.connection.writer.message(&question).await?;
        loop {
            match self.connection.message(COMMIT_TIMEOUT).await? {
                DataMessage::Ack(ack) => {
                    self.window.acked(ack)?;
                }
                DataMessage::Refused(problem) => {
                    return Err(LinkError::Refused(Box::new(problem)));
                }
                answer => return Ok(answer),
            }
        }
    }

    /// Asks for everything sent so far to be committed and waits for it.
    ///
    /// # Errors
    /// See [`LinkError`]; then it is not known whether the store committed it.
    pub async fn commit(&mut self, commit: Commit) -> Result<Position, LinkError> {
        let lsn = commit.lsn;
        match self.ask(DataMessage::Commit(commit)).await? {
            DataMessage::Committed(done) if done.lsn == lsn => {
                self.base = Position { timeline: self.header.timeline, lsn };
                Ok(self.base)
            }
            _ => Err(SessionError::OutOfTurn("something else than a commit").into()),
        }
    }

    /// Asks for the extent hashes of what the store has of a part of a disk.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn hashes(&mut self, request: HashesRequest) -> Result<Vec<ExtentHash>, LinkError> {
        match self.ask(DataMessage::HashesRequest(request)).await? {
            DataMessage::Hashes(answer) => Ok(answer.hashes),
            _ => Err(SessionError::OutOfTurn("something else than hashes").into()),
        }
    }

    /// Asks which extents of what the branch holds the store cannot read.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn damaged(&mut self) -> Result<Vec<(DiskNumber, ExtentNumber)>, LinkError> {
        match self.ask(DataMessage::Audit(AuditWord::Ask)).await? {
            DataMessage::Audit(AuditWord::Damaged { extents }) => Ok(extents),
            _ => Err(SessionError::OutOfTurn("something else than what is damaged").into()),
        }
    }

    /// Asks for extent hashes that the store takes anew of what it has stored: at most
    /// [`leeward_wire::audit::REREAD_MAX`] at once.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn reread(&mut self, request: HashesRequest) -> Result<Vec<ExtentHash>, LinkError> {
        let HashesRequest { disk, first_extent, count } = request;
        let word = AuditWord::Reread { disk, first_extent, count };
        match self.ask(DataMessage::Audit(word)).await? {
            DataMessage::Hashes(answer) if answer.hashes.len() == count as usize => {
                Ok(answer.hashes)
            }
            _ => Err(SessionError::OutOfTurn("something else than hashes").into()),
        }
    }

    /// Asks for the hashes of single blocks of what the store has committed, for each extent.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn block_hashes(
        &mut self,
        request: BlockHashesRequest,
    ) -> Result<Vec<ExtentBlockHashes>, LinkError> {
        let wanted = request.extents.len();
        match self.ask(DataMessage::BlockHashesRequest(request)).await? {
            DataMessage::BlockHashes(answer) if answer.hashes.len() == wanted => Ok(answer.hashes),
            _ => Err(SessionError::OutOfTurn("something else than block hashes").into()),
        }
    }

    /// Waits until the store ends the session; between points that is the only thing that it can
    /// say. Returns what it said.
    pub async fn ended(&mut self) -> LinkError {
        loop {
            let next = tokio::select! {
                frame = self.connection.reader.next() => frame,
                () = self.connection.replaced.cancelled() => return LinkError::Replaced,
            };
            match next.map(DataMessage::from_frame) {
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
