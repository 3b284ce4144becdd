//! The messages of a data session and of joining, and their frames. Who may send what when is the
//! session's business.

use crate::{
    audit::AuditWord,
    bytes_in::BytesIn,
    frame::{BLOCK_HASHES_MAX, Frame, HASHES_MAX, Kind, encode},
    keys::{DataKey, HashKey},
    message::ServerStamp,
    segment::{SegmentError, SegmentHeader},
};
use bytes::Bytes;
use leeward_model::{
    Branch, DiskNumber, Epoch, ExtentHash, ExtentNumber, HostId, ItemId, Lsn, PointId, Position,
    Problem,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt;
use thiserror::Error;

/// Which end of a data session sends the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The end that dialled has the source; the other end has the store and welcomes it.
    DialerSends,
    /// The end that dialled has the store; it sends the welcome after the other end's hello.
    DialerReceives,
    /// No data are sent: both ends have a store of the item, and see to it that both parts have
    /// the same hash key.
    HashKey,
}

/// The first message of a data session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataHello {
    /// The lowest protocol version it speaks.
    pub version_min: u16,
    /// The highest.
    pub version_max: u16,
    /// The item whose data are to be sent.
    pub item: ItemId,
    /// The host that says hello; must be the one in its certificate.
    pub host: HostId,
    /// Its boot id.
    pub host_boot: String,
    /// Who sends the data.
    pub role: Role,
    /// The epoch that it acts under.
    pub epoch: Epoch,
    /// The timeline of the data.
    pub branch: Branch,
}

/// The store's end takes the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataWelcome {
    /// The version that both will speak.
    pub version: u16,
    /// What the sender derives segment keys from. In memory only.
    #[serde(with = "data_key_base64")]
    pub data_key: DataKey,
    /// What the sender hashes with. In memory only.
    #[serde(with = "hash_key_base64")]
    pub hash_key: HashKey,
    /// Number of the data key, for segment headers.
    pub key_version: u32,
    /// The newest durable committed position that this source may go on from; none when the
    /// branch has nothing here, and the first LSN is the one after the parent's.
    pub durable: Option<Position>,
    /// The newest complete point that the branch can see here.
    pub newest_point: Option<(PointId, Position)>,
    /// The window: bytes of records that may be unacknowledged at once.
    pub credit_bytes: u64,
}

/// What an end says of the item's hash key in its own store. The key goes out only as the answer to
/// [`HashKeyWord::Missing`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub enum HashKeyWord {
    /// It has none: its store has no part for the item yet.
    Missing,
    /// It has one and needs no other.
    Held,
    /// It has this one. In memory only.
    Key {
        /// The key; hidden in `Debug`.
        #[serde(with = "hash_key_base64")]
        hash_key: HashKey,
    },
}

/// Everything up to `lsn` is to become durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The last record sent.
    pub lsn: Lsn,
    /// Whether that record is a marker that makes a point. Else it is progress only: the position
    /// is committed, so that a broken session goes on behind it.
    pub point: bool,
    /// With a point: a config server's stamp not later than the cut.
    pub cut_server: Option<ServerStamp>,
    /// Whether this is the last progress of a pass over the whole machine.
    pub final_progress: bool,
}

/// What is durable at the store, sent whenever it grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Every record up to here is durable; it never goes back.
    pub durable_lsn: Lsn,
    /// The window from now on: bytes of records behind `durable_lsn` that may be on their way.
    pub credit_bytes: u64,
}

/// A [`Commit`] is done: its manifest is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The commit's LSN.
    pub lsn: Lsn,
    /// The point that it made.
    pub point: Option<PointId>,
}

/// Asks for the extent hashes of the store's newest durable state of the branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashesRequest {
    /// The disk.
    pub disk: DiskNumber,
    /// The first extent.
    pub first_extent: ExtentNumber,
    /// How many, 1 to [`HASHES_MAX`].
    pub count: u32,
}

/// The answer to a [`HashesRequest`], as many as were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// The disk.
    pub disk: DiskNumber,
    /// The first extent.
    pub first_extent: ExtentNumber,
    /// One an extent; [`crate::hash::EXTENT_ABSENT`] for one that reads as zero.
    pub hashes: Vec<ExtentHash>,
}

/// Asks for the hashes of single blocks, where extents were found to differ: so that only blocks
/// that differ are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHashesRequest {
    /// The disk.
    pub disk: DiskNumber,
    /// The extents, 1 to [`BLOCK_HASHES_MAX`], ascending.
    pub extents: Vec<ExtentNumber>,
}

/// The keyed hashes of an extent's 16 blocks; that of a zero block is of 4096 zeros in its place.
pub type ExtentBlockHashes = [[u8; 16]; 16];

/// The answer to a [`BlockHashesRequest`], in its order, of the same state as [`Hashes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHashes {
    /// The disk.
    pub disk: DiskNumber,
    /// One an extent.
    pub hashes: Vec<ExtentBlockHashes>,
}

/// A host asks to be taken into a fabric.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The secret that the fabric's owner gave it. Hidden in `Debug`.
    pub registration_key: String,
    /// Certificate signing request, PEM.
    pub csr_pem: String,
    /// The host's name for people.
    pub host_name: String,
    /// Its boot id.
    pub boot: String,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("host_name", &self.host_name)
            .field("boot", &self.boot)
            .finish_non_exhaustive()
    }
}

/// The host was taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The host's certificate, PEM.
    pub certificate_pem: String,
    /// The certificate authority's, PEM.
    pub ca_pem: String,
    /// The id that the host has from now on.
    pub host: HostId,
    /// Name of the fabric.
    pub fabric: String,
}

/// Any message but those of the control session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataMessage {
    /// First, from the end that dialled.
    Hello(DataHello),
    /// From the store's end.
    Welcome(Box<DataWelcome>),
    /// From the store's end, which then closes. Also the answer to a join that is refused.
    Refused(Problem),
    /// From the sender: records that follow are of this segment.
    SegmentOpen(SegmentHeader),
    /// From the sender: a sealed record.
    Record(Bytes),
    /// From the sender.
    Commit(Commit),
    /// From the store's end.
    Ack(Ack),
    /// From the store's end.
    Committed(Committed),
    /// From the sender.
    HashesRequest(HashesRequest),
    /// From the store's end.
    Hashes(Hashes),
    /// From the sender.
    BlockHashesRequest(BlockHashesRequest),
    /// From the store's end.
    BlockHashes(BlockHashes),
    /// From the store's end in place of the welcome, answered by the sender; or from either end of
    /// a session of [`Role::HashKey`].
    HashKey(HashKeyWord),
    /// From either end: a question of the sender, the store's answer.
    Audit(AuditWord),
    /// From either end.
    Ping(u64),
    /// The answer, with the ping's number.
    Pong(u64),
    /// From a host that joins.
    JoinRequest(JoinRequest),
    /// From the config server.
    JoinAnswer(Box<JoinAnswer>),
}

/// Why a frame's payload is not its message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DataError {
    /// The JSON does not parse. The text of the payload is not repeated: it may hold keys.
    #[error("the JSON of a {kind} frame does not parse at line {line}, column {column}")]
    Json {
        /// The frame's kind.
        kind: Kind,
        /// Where in the JSON.
        line: usize,
        /// Where in the line.
        column: usize,
    },
    /// The segment header is not one.
    #[error("could not read the header of a new segment")]
    Segment(#[from] SegmentError),
    /// A length or a count does not fit.
    #[error("the fields of a {kind} frame do not fit one another")]
    Shape {
        /// The frame's kind.
        kind: Kind,
    },
    /// A frame of another session.
    #[error("a {kind} frame does not belong here")]
    Unexpected {
        /// The frame's kind.
        kind: Kind,
    },
}

impl DataMessage {
    /// The whole frame.
    ///
    /// # Panics
    /// When the message is outside its kind's bounds, for example a text of 64 KiB.
    pub fn to_frame(&self) -> Bytes {
        match self {
            DataMessage::Hello(message) => encode_json(Kind::DataHello, message),
            DataMessage::Welcome(message) => encode_json(Kind::DataWelcome, message),
            DataMessage::Refused(message) => encode_json(Kind::DataRefused, message),
            DataMessage::SegmentOpen(header) => encode(Kind::SegmentOpen, &header.encode()),
            DataMessage::Record(record) => encode(Kind::Record, record),
            DataMessage::Commit(message) => encode_json(Kind::Commit, message),
            DataMessage::Ack(ack) => encode(Kind::Ack, &ack.encode()),
            DataMessage::Committed(message) => encode_json(Kind::Committed, message),
            DataMessage::HashesRequest(request) => encode(Kind::HashesRequest, &request.encode()),
            DataMessage::Hashes(hashes) => encode(Kind::Hashes, &hashes.encode()),
            DataMessage::BlockHashesRequest(request) => {
                encode(Kind::BlockHashesRequest, &request.encode())
            }
            DataMessage::BlockHashes(hashes) => encode(Kind::BlockHashes, &hashes.encode()),
            DataMessage::Ping(number) => encode(Kind::Ping, &number.to_le_bytes()),
            DataMessage::Pong(number) => encode(Kind::Pong, &number.to_le_bytes()),
            DataMessage::HashKey(word) => encode_json(Kind::HashKey, word),
            DataMessage::Audit(word) => encode_json(Kind::Audit, word),
            DataMessage::JoinRequest(message) => encode_json(Kind::JoinRequest, message),
            DataMessage::JoinAnswer(message) => encode_json(Kind::JoinAnswer, message),
        }
    }

    /// Reads a frame's message.
    ///
    /// # Errors
    /// See [`DataError`]. A record is only checked for its length; whoever stores it scans it.
    pub fn from_frame(frame: Frame) -> Result<DataMessage, DataError> {
        let shape = DataError::Shape { kind: frame.kind };
        let number = |frame: &Frame| BytesIn(&frame.payload).u64().ok();
        Ok(match frame.kind {
            Kind::Control => return Err(DataError::Unexpected { kind: frame.kind }),
            Kind::DataHello => DataMessage::Hello(decode_json(&frame)?),
            Kind::DataWelcome => DataMessage::Welcome(decode_json(&frame)?),
            Kind::DataRefused => DataMessage::Refused(decode_json(&frame)?),
            Kind::SegmentOpen => DataMessage::SegmentOpen(SegmentHeader::decode(&frame.payload)?),
            Kind::Record => DataMessage::Record(frame.payload),
            Kind::Commit => DataMessage::Commit(decode_json(&frame)?),
            Kind::Ack => DataMessage::Ack(Ack::decode(&frame.payload).ok_or(shape)?),
            Kind::Committed => DataMessage::Committed(decode_json(&frame)?),
            Kind::HashesRequest => {
                DataMessage::HashesRequest(HashesRequest::decode(&frame.payload).ok_or(shape)?)
            }
            Kind::Hashes => DataMessage::Hashes(Hashes::decode(&frame.payload).ok_or(shape)?),
            Kind::BlockHashesRequest => {
                let request = BlockHashesRequest::decode(&frame.payload);
                DataMessage::BlockHashesRequest(request.ok_or(shape)?)
            }
            Kind::BlockHashes => {
                DataMessage::BlockHashes(BlockHashes::decode(&frame.payload).ok_or(shape)?)
            }
            Kind::Ping => DataMessage::Ping(number(&frame).ok_or(shape)?),
            Kind::Pong => DataMessage::Pong(number(&frame).ok_or(shape)?),
            Kind::HashKey => DataMessage::HashKey(decode_json(&frame)?),
            Kind::Audit => DataMessage::Audit(decode_json(&frame)?),
            Kind::JoinRequest => DataMessage::JoinRequest(decode_json(&frame)?),
            Kind::JoinAnswer => DataMessage::JoinAnswer(decode_json(&frame)?),
        })
    }
}

/// The frame of a control message: of [`crate::message::ToHost`] or [`crate::message::ToServer`].
///
/// # Panics
/// When it is longer than a control frame may be: the caller pages what can grow.
pub fn encode_control<T: Serialize>(message: &T) -> Bytes {
    encode_json(Kind::Control, message)
}

/// Reads a control message.
///
/// # Errors
/// [`DataError::Unexpected`] for another kind of frame, [`DataError::Json`].
pub fn decode_control<T: DeserializeOwned>(frame: &Frame) -> Result<T, DataError> {
    match frame.kind {
        Kind::Control => decode_json(frame),
        kind => Err(DataError::Unexpected { kind }),
    }
}

fn encode_json<T: Serialize>(kind: Kind, message: &T) -> Bytes {
    encode(kind, &serde_json::to_vec(message).expect("our messages serialize"))
}

fn decode_json<T: DeserializeOwned>(frame: &Frame) -> Result<T, DataError> {
    serde_json::from_slice(&frame.payload).map_err(|error| DataError::Json {
        kind: frame.kind,
        line: error.line(),
        column: error.column(),
    })
}

impl Ack {
    /// 16 bytes: durable LSN, window.
    pub fn encode(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.durable_lsn.0.to_le_bytes());
        out[8..].copy_from_slice(&self.credit_bytes.to_le_bytes());
        out
    }

    /// Reads the form of [`Self::encode`]; none when the length is another.
    pub fn decode(bytes: &[u8]) -> Option<Ack> {
        let mut fields = BytesIn(bytes);
        let ack = Ack { durable_lsn: Lsn(fields.u64().ok()?), credit_bytes: fields.u64().ok()? };
        fields.0.is_empty().then_some(ack)
    }
}

impl HashesRequest {
    /// 12 bytes: disk, two zeros, first extent, count.
    ///
    /// # Panics
    /// When the count is 0 or above [`HASHES_MAX`], or extents beyond the last number are asked.
    pub fn encode(&self) -> [u8; 12] {
        assert!(self.is_within_bounds(), "1 to {HASHES_MAX} extents are asked for at once");
        let mut out = [0; 12];
        out[0..2].copy_from_slice(&self.disk.0.to_le_bytes());
        out[4..8].copy_from_slice(&self.first_extent.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.count.to_le_bytes());
        out
    }

    /// Reads the form of [`Self::encode`]; none when it is not one.
    pub fn decode(bytes: &[u8]) -> Option<HashesRequest> {
        let mut fields = BytesIn(bytes);
        let (disk, zero) = (DiskNumber(fields.u16().ok()?), fields.u16().ok()?);
        let (first_extent, count) = (ExtentNumber(fields.u32().ok()?), fields.u32().ok()?);
        let request = HashesRequest { disk, first_extent, count };
        (fields.0.is_empty() && zero == 0 && request.is_within_bounds()).then_some(request)
    }

    fn is_within_bounds(&self) -> bool {
        let last = self.count.checked_sub(1).and_then(|more| self.first_extent.0.checked_add(more));
        last.is_some() && self.count <= HASHES_MAX
    }
}

impl Hashes {
    /// The form of the request with the count of the hashes, then the hashes.
    ///
    /// # Panics
    /// As [`HashesRequest::encode`].
    pub fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.hashes.len()).unwrap_or(u32::MAX);
        let (disk, first_extent) = (self.disk, self.first_extent);
        let mut out = HashesRequest { disk, first_extent, count }.encode().to_vec();
        out.reserve_exact(self.hashes.len() * 32);
        for hash in &self.hashes {
            out.extend_from_slice(&hash.0);
        }
        out
    }

    /// Reads the form of [`Self::encode`]; none when it is not one.
    pub fn decode(bytes: &[u8]) -> Option<Hashes> {
        let (request, rest) = bytes.split_at_checked(12)?;
        let HashesRequest { disk, first_extent, count } = HashesRequest::decode(request)?;
        let (hashes, more) = rest.as_chunks::<32>();
        let hashes: Vec<ExtentHash> = hashes.iter().copied().map(ExtentHash).collect();
        let whole = hashes.len() == count as usize && more.is_empty();
        whole.then_some(Hashes { disk, first_extent, hashes })
    }
}

/// Disk, two zeros, count: what both block hash messages begin with.
fn counted(disk: DiskNumber, count: usize) -> Vec<u8> {
    let count = u32::try_from(count).unwrap_or(0);
    assert!((1..=BLOCK_HASHES_MAX).contains(&count), "1 to {BLOCK_HASHES_MAX} extents at once");
    let mut out = vec![0; 8];
    out[0..2].copy_from_slice(&disk.0.to_le_bytes());
    out[4..8].copy_from_slice(&count.to_le_bytes());
    out
}

/// Reads what [`counted`] wrote; returns the disk, the count and the rest.
fn uncounted(bytes: &[u8]) -> Option<(DiskNumber, usize, &[u8])> {
    let mut fields = BytesIn(bytes);
    let (disk, zero, count) =
        (DiskNumber(fields.u16().ok()?), fields.u16().ok()?, fields.u32().ok()?);
    let good = zero == 0 && (1..=BLOCK_HASHES_MAX).contains(&count);
    good.then_some((disk, count as usize, fields.0))
}

impl BlockHashesRequest {
    /// 8 bytes: disk, two zeros, count; then the extents.
    ///
    /// # Panics
    /// When no extents or more than [`BLOCK_HASHES_MAX`] are asked for.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = counted(self.disk, self.extents.len());
        self.extents.iter().for_each(|extent| out.extend_from_slice(&extent.0.to_le_bytes()));
        out
    }

    /// Reads the form of [`Self::encode`]; none when it is not one.
    pub fn decode(bytes: &[u8]) -> Option<BlockHashesRequest> {
        let (disk, count, rest) = uncounted(bytes)?;
        let (extents, more) = rest.as_chunks::<4>();
        let extents: Vec<_> =
            extents.iter().map(|e| ExtentNumber(u32::from_le_bytes(*e))).collect();
        let ascending = extents.windows(2).all(|pair| pair[0] < pair[1]);
        let whole = extents.len() == count && more.is_empty() && ascending;
        whole.then_some(BlockHashesRequest { disk, extents })
    }
}

impl BlockHashes {
    /// 8 bytes as in the request, then 256 for each extent.
    ///
    /// # Panics
    /// As [`BlockHashesRequest::encode`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = counted(self.disk, self.hashes.len());
        self.hashes.iter().for_each(|blocks| out.extend_from_slice(blocks.as_flattened()));
        out
    }

    /// Reads the form of [`Self::encode`]; none when it is not one.
    pub fn decode(bytes: &[u8]) -> Option<BlockHashes> {
        let (disk, count, rest) = uncounted(bytes)?;
        let (blocks, more) = rest.as_chunks::<16>();
        let (extents, odd) = blocks.as_chunks::<16>();
        let whole = extents.len() == count && odd.is_empty() && more.is_empty();
        whole.then(|| BlockHashes { disk, hashes: extents.to_vec() })
    }
}

macro_rules! key_base64 {
    ($module:ident, $key:ident) => {
        mod $module {
            use crate::keys::$key;
            use base64::{Engine as _, prelude::BASE64_STANDARD};
            use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

            pub(super) fn serialize<S: Serializer>(key: &$key, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&BASE64_STANDARD.encode(key.expose()))
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<$key, D::Error> {
                let text = String::deserialize(from)?;
                let bytes = BASE64_STANDARD.decode(text).ok();
                let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
                let bytes = bytes.ok_or_else(|| D::Error::custom("a key is 32 bytes in base64"))?;
                Ok($key::from_bytes(bytes))
            }
        }
    };
}

key_base64!(data_key_base64, DataKey);
key_base64!(hash_key_base64, HashKey);
