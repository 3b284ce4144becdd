//! Many sources that send to one host at once: what it holds in memory of what they send, and that
//! one which stands still does not keep it from the others.

use super::*;
use bytes::Bytes;
use leeward::intake::SESSION_BYTES_OWN;
use leeward_capture::MEMORY_BYTES;
use leeward_model::{BlockMask, Change, ExtentHash, ExtentNumber, Lsn, SegmentId, UnixMillis};
use leeward_wire::{
    data::{Commit, HashKeyWord},
    message::PROTOCOL_VERSION,
    seal::{Level, Sealer},
    segment::SegmentHeader,
};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

const VAULT: VaultId = VaultId::from_u128(1);
const OTHERS: u128 = 36;
/// Records of 64 KiB: below the 8 MiB that a session makes durable by itself.
const STILL_RECORDS: usize = 126;
/// 3 MiB from each of the others: more than there is memory for.
const OTHER_RECORDS: usize = 48;

/// A source's end of a session, which sends what it is told and waits for nothing.
struct Sender {
    reader: FrameReader<ReadHalf<DuplexStream>>,
    writer: FrameWriter<WriteHalf<DuplexStream>>,
    sealer: Sealer,
    sent: Lsn,
}

impl Sender {
    async fn open(store: &End, item: ItemId, goes: Branch) -> Sender {
        let hello = DataHello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            item,
            host: AWAY,
            host_boot: "boot".into(),
            role: Role::DialerSends,
            epoch: EPOCH,
            branch: goes,
        };
        let (near, far) = tokio::io::duplex(256 << 10);
        let host = Arc::clone(&store.host);
        tokio::spawn(async move {
            let (read, write) = tokio::io::split(far);
            door::serve(host, AWAY, hello, FrameReader::new(read), FrameWriter::new(write)).await;
        });
        let (read, write) = tokio::io::split(near);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        let welcome = loop {
            match reader.message(PATIENCE).await.unwrap() {
                DataMessage::HashKey(HashKeyWord::Missing) => {
                    let word = DataMessage::HashKey(HashKeyWord::Missing);
                    writer.message(&word).await.unwrap();
                }
                DataMessage::Welcome(welcome) => break welcome,
                other => panic!("{other:?} in place of a welcome"),
            }
        };
        let header = SegmentHeader {
            segment: SegmentId::from_u128(item.as_u128()),
            vault: VAULT,
            item,
            timeline: goes.timeline,
            epoch: EPOCH,
            key_version: welcome.key_version,
            first_lsn: Lsn(1),
            created_at: UnixMillis(0),
        };
        writer.message(&DataMessage::SegmentOpen(header.clone())).await.unwrap();
        let sealer = Sealer::new(&welcome.data_key, header);
        Sender { reader, writer, sealer, sent: Lsn(0) }
    }

    async fn send(&mut self, records: usize) {
        let data = Bytes::from(vec![0x5a; 64 << 10]);
        for _ in 0..records {
            let lsn = self.sent.next();
            let change = Change {
                disk: DISK,
                extent: ExtentNumber(lsn.0 as u32),
                mask: BlockMask::ALL,
                data: data.clone(),
                hash: ExtentHash([7; 32]),
            };
            let record = self.sealer.seal_change(lsn, &change, Level::Raw);
            self.writer.record(&record).await.unwrap();
            self.sent = lsn;
        }
    }

    /// Waits until everything sent is said to be durable.
    async fn durable(&mut self) {
        loop {
            match self.reader.message(PATIENCE).await.unwrap() {
                DataMessage::Ack(ack) if ack.durable_lsn == self.sent => return,
                DataMessage::Ack(_) => {}
                other => panic!("{other:?} in place of an acknowledgement"),
            }
        }
    }

    async fn commit(&mut self) {
        let (lsn, cut_server) = (self.sent, None);
        let commit = Commit { lsn, point: false, cut_server, final_progress: false };
        self.writer.message(&DataMessage::Commit(commit)).await.unwrap();
        loop {
            match self.reader.message(PATIENCE).await.unwrap() {
                DataMessage::Committed(done) => return assert_eq!(done.lsn, lsn),
                DataMessage::Ack(_) => {}
                other => panic!("{other:?} in place of a commit"),
            }
        }
    }
}

/// F-046: memory is bounded whatever the number of sessions; each gets on, and what a silent one
/// holds is made durable for the others' sake, without a word of its source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_hold_a_bounded_memory_and_a_silent_one_keeps_it_from_nobody() {
    let store = end(HOME, Site::Primary);
    let items: Vec<ItemId> = (0..=OTHERS).map(|number| ItemId::from_u128(100 + number)).collect();
    let goes = branch(21, None);
    let duty = |item: &ItemId| ItemDuty {
        item: *item,
        vault: VAULT,
        name: format!("{item}"),
        epoch: EPOCH,
        source: None,
        target: Some(TargetDuty { source_address: None, ..receives(goes) }),
        instances: Vec::new(),
    };
    let duties = items.iter().map(duty).collect();
    store.host.assign(Assignment { generation: 1, duties });
    let intake = store.host.intake.clone();

    let mut still = Sender::open(&store, items[0], goes).await;
    still.send(STILL_RECORDS).await;
    let mut most = 0;
    let mut others = Vec::new();
    for item in &items[1..] {
        let mut other = Sender::open(&store, *item, goes).await;
        other.send(OTHER_RECORDS).await;
        most = most.max(intake.bytes());
        others.push(other);
    }

    still.durable().await;
    for other in &mut others {
        most = most.max(intake.bytes());
        other.commit().await;
    }
    still.commit().await;

    let bound = MEMORY_BYTES + (1 + OTHERS as u64) * SESSION_BYTES_OWN;
    println!("{} MiB were held at most, of {} MiB", most >> 20, bound >> 20);
    assert!(most <= bound, "{most} bytes were held");
    assert!(most > MEMORY_BYTES, "it was never about the memory: {most} bytes");
    assert_eq!(intake.bytes(), 0, "all of it was given back");
    assert_eq!(store.host.sealing.workers.memory().free(), MEMORY_BYTES);
}
