//! Our client against our server, over a unix socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use leeward_nbd::client::{
    Client, ClientError, Closed, Durability, NegotiateError, Retry, connect_unix, list_unix,
};
use leeward_nbd::memory::MemoryExport;
use leeward_nbd::protocol::{BASE_ALLOCATION, Errno, transmission_flags};
use leeward_nbd::server::{BlockSizes, Export, ExportError, Limits, Server, ShutdownOutcome};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::world::{DEADLINE, Numbers, Scratch, options, sparse_content};

const KIB: u64 = 1024;

#[tokio::test]
async fn random_requests_match_an_oracle_byte_for_byte() {
    let size = 300 * KIB + 77;
    let scratch = Scratch::new();
    let disk = Arc::new(MemoryExport::new(size));
    let server = scratch.serve(disk.clone());
    let client = scratch.client(&[BASE_ALLOCATION]).await;
    let mut oracle = vec![0u8; size as usize];
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let mut numbers = Numbers::new(seed);

    for _ in 0..400 {
        let offset = numbers.below(size);
        let len = 1 + numbers.below((size - offset).min(40_000));
        let range = offset as usize..(offset + len) as usize;
        match numbers.below(6) {
            0 | 1 => {
                let data = numbers.bytes(len as usize);
                oracle[range].copy_from_slice(&data);
                client.write(offset, data.into(), Durability::AtFlush).await.unwrap();
            }
            2 => {
                oracle[range].fill(0);
                client.write_zeroes(offset, len as u32, Durability::BeforeReply).await.unwrap();
            }
            3 => {
                oracle[range].fill(0); // The memory export trims to zeroes.
                client.trim(offset, len as u32).await.unwrap();
            }
            4 => client.flush().await.unwrap(),
            _ => assert_eq!(client.read(offset, len as u32).await.unwrap(), oracle[range]),
        }
    }

    assert_eq!(client.read(0, size as u32).await.unwrap(), oracle);
    assert_eq!(disk.content(), oracle);
    assert!(disk.flushes() > 0);
    let map = client.map_all(BASE_ALLOCATION).await.unwrap();
    assert_eq!(map.iter().map(|extent| extent.len).sum::<u64>(), size);
    for extent in map.iter().filter(|extent| extent.flags != 0) {
        let range = extent.offset as usize..(extent.offset + extent.len) as usize;
        assert!(oracle[range].iter().all(|byte| *byte == 0));
    }
    client.disconnect().await;
    assert_eq!(server.shutdown(DEADLINE).await, ShutdownOutcome::Finished);
}

#[tokio::test]
async fn concurrent_reads_on_one_connection_each_get_their_own_bytes() {
    let content = sparse_content(4 << 20);
    let scratch = Scratch::new();
    let _server = scratch.serve(Arc::new(MemoryExport::read_only(&content)));
    let client = scratch.client(&[]).await;
    let mut reads = tokio::task::JoinSet::new();

    for number in 0..500usize {
        let (client, offset) = (client.clone(), (number * 7919) % (content.len() - 70_000));
        reads.spawn(async move { (offset, client.read(offset as u64, 65_537).await.unwrap()) });
    }

    while let Some(read) = reads.join_next().await {
        let (offset, data) = read.unwrap();
        assert_eq!(data, content[offset..offset + 65_537]);
    }
}

#[tokio::test]
async fn the_longest_read_and_write_go_through() {
    let size = 33 << 20;
    let scratch = Scratch::new();
    let disk = Arc::new(MemoryExport::new(size));
    let _server = scratch.serve(disk.clone());
    let client = scratch.client(&[]).await;
    let data = Bytes::from(vec![9u8; 32 << 20]);

    client.write(0, data.clone(), Durability::AtFlush).await.unwrap();

    assert_eq!(client.read(0, 32 << 20).await.unwrap(), data);
    let longer = client.read(0, (32 << 20) + 1).await;
    assert!(matches!(longer, Err(ClientError::Invalid { .. })));
}

#[tokio::test]
async fn the_client_sends_nothing_beyond_the_end_or_unaligned_or_to_a_read_only_export() {
    let blocks = BlockSizes { minimum: 512, preferred: 4096, maximum: 65_536 };
    let scratch = Scratch::new();
    let disk = MemoryExport::read_only(&[1; 8192]).with_block_sizes(blocks);
    let _server = scratch.serve(Arc::new(disk));
    let client = scratch.client(&[]).await;

    let attempts = [(8192, 512), (7680, 1024), (u64::MAX - 511, 512), (1, 512), (0, 100)];
    for (offset, len) in attempts {
        let error = client.read(offset, len).await.unwrap_err();
        assert!(matches!(error, ClientError::Invalid { .. }), "{error}");
        assert_eq!(error.retry(), Retry::Never);
    }
    assert_eq!(client.read(8192, 0).await.unwrap(), Bytes::new());
    let write = client.write(0, vec![0; 512].into(), Durability::AtFlush).await;
    assert!(matches!(write, Err(ClientError::Invalid { .. })));
    assert!(client.trim(0, 512).await.is_err());
    assert!(client.block_status(0, 512, BASE_ALLOCATION).await.is_err());
    assert_eq!(client.read(7680, 512).await.unwrap(), vec![1; 512]);
}

#[tokio::test]
async fn unknown_exports_and_contexts_are_errors_and_the_list_is_complete() {
    let scratch = Scratch::new();
    let _server = scratch.serve(Arc::new(MemoryExport::new(4096)));

    let mut wrong = options(&[]);
    wrong.export = "other".into();
    let error = connect_unix(&scratch.socket(), wrong).await.err().unwrap();
    let ClientError::Negotiate { source: NegotiateError::Refused { kind, .. }, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(kind, leeward_nbd::protocol::reply::ERR_UNKNOWN);

    let missing = connect_unix(&scratch.socket(), options(&["qemu:dirty-bitmap:none"])).await;
    let error = missing.err().unwrap();
    let ClientError::Negotiate { source: NegotiateError::Context { .. }, .. } = error else {
        panic!("{error}")
    };

    let listed = list_unix(&scratch.socket(), DEADLINE).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&*listed[0].name, &*listed[0].description), ("disk", "a disk for tests"));
}

#[tokio::test]
async fn only_a_flush_or_a_durable_change_flushes_the_export() {
    let scratch = Scratch::new();
    let disk = Arc::new(MemoryExport::new(65_536));
    let _server = scratch.serve(disk.clone());
    let client = scratch.client(&[]).await;
    let data = Bytes::from(vec![1; 512]);

    client.write(0, data.clone(), Durability::AtFlush).await.unwrap();
    client.write_zeroes(0, 512, Durability::AtFlush).await.unwrap();
    client.trim(0, 512).await.unwrap();
    assert_eq!(disk.flushes(), 0);
    client.write(0, data, Durability::BeforeReply).await.unwrap();
    assert_eq!(disk.flushes(), 1);
    client.write_zeroes(0, 512, Durability::BeforeReply).await.unwrap();
    assert_eq!(disk.flushes(), 2);
    client.flush().await.unwrap();
    assert_eq!(disk.flushes(), 3);
}

#[tokio::test]
async fn only_read_only_exports_invite_several_connections() {
    let flags = |export: MemoryExport| async move {
        let scratch = Scratch::new();
        let _server = scratch.serve(Arc::new(export));
        scratch.client(&[]).await.details().flags
    };

    let read_only = flags(MemoryExport::read_only(&[0; 4096])).await;
    let read_write = flags(MemoryExport::new(4096)).await;

    let multiple = transmission_flags::CAN_MULTI_CONN | transmission_flags::READ_ONLY;
    let changes = transmission_flags::SEND_TRIM | transmission_flags::SEND_WRITE_ZEROES;
    assert_eq!(read_only & (multiple | changes), multiple);
    assert_eq!(read_write & (multiple | changes), changes);
}

/// A disk whose reads wait for a permit; what each offset does else is told by its name.
struct Gated {
    gate: Semaphore,
    waiting: AtomicUsize,
}

/// Reads at this offset fail with EIO, at the next block panic, at the next give too little.
const FAILS: u64 = 1 << 20;

impl Gated {
    fn new() -> Arc<Self> {
        Arc::new(Gated { gate: Semaphore::new(0), waiting: AtomicUsize::new(0) })
    }

    async fn until_waiting(&self, count: usize) {
        let reached = async {
            while self.waiting.load(Ordering::SeqCst) < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, reached).await.expect("the reads do not arrive");
    }
}

#[async_trait]
impl Export for Gated {
    fn size(&self) -> u64 {
        2 << 20
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ExportError> {
        match offset {
            FAILS => return Err(ExportError::new(Errno::IO, "the medium is worn")),
            offset if offset == FAILS + 4096 => panic!("this export panics on purpose"),
            offset if offset == FAILS + 8192 => return Ok(Bytes::from_static(b"short")),
            _ => {}
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.expect("the gate is never closed").forget();
        Ok(vec![offset as u8; len as usize].into())
    }
}

#[tokio::test]
async fn an_export_that_fails_panics_or_gives_too_little_is_an_error_and_not_a_hang() {
    let scratch = Scratch::new();
    let _server = scratch.serve(Gated::new());
    let client = scratch.client(&[]).await;

    for offset in [FAILS, FAILS + 4096, FAILS + 8192] {
        let error = client.read(offset, 4096).await.unwrap_err();
        let ClientError::Refused { errno, .. } = &error else { panic!("{error}") };
        assert_eq!(*errno, Errno::IO);
        assert!(error.to_string().contains(&offset.to_string()), "{error}");
    }
    let error = client.read(FAILS, 4096).await.unwrap_err();
    assert!(error.to_string().contains("the medium is worn"), "{error}");
}

#[tokio::test]
async fn a_slow_read_delays_neither_other_reads_nor_other_connections() {
    let scratch = Scratch::new();
    let export = Gated::new();
    let _server = scratch.serve(export.clone());
    let (one, two) = (scratch.client(&[]).await, scratch.client(&[]).await);

    let slow = tokio::spawn({
        let one = one.clone();
        async move { one.read(0, 512).await }
    });
    export.until_waiting(1).await;
    for client in [one, two] {
        let failed = timeout(DEADLINE, client.read(FAILS, 512)).await.unwrap();
        assert!(matches!(failed, Err(ClientError::Refused { .. })));
    }

    assert!(!slow.is_finished());
    export.gate.add_permits(1);
    assert!(slow.await.unwrap().is_ok());
}

#[tokio::test]
async fn shutdown_finishes_the_reads_in_flight() {
    let scratch = Scratch::new();
    let export = Gated::new();
    let server = scratch.serve(export.clone());
    let client = scratch.client(&[]).await;
    let reads: Vec<_> = (1..5u64)
        .map(|offset| {
            let client = client.clone();
            tokio::spawn(async move { client.read(offset, 64).await })
        })
        .collect();
    export.until_waiting(4).await;

    let shutdown = tokio::spawn(server.shutdown(DEADLINE));
    while tokio::net::UnixStream::connect(scratch.socket()).await.is_ok() {
        tokio::task::yield_now().await; // Until it has stopped accepting, and so begun.
    }
    assert!(!shutdown.is_finished());
    export.gate.add_permits(4);

    assert_eq!(shutdown.await.unwrap(), ShutdownOutcome::Finished);
    for (number, read) in reads.into_iter().enumerate() {
        assert_eq!(read.await.unwrap().unwrap(), vec![number as u8 + 1; 64]);
    }
    let after = client.read(0, 64).await.unwrap_err();
    assert!(matches!(after, ClientError::Closed { source: Closed::ByServer, .. }), "{after}");
}

#[tokio::test]
async fn shutdown_cuts_off_after_its_deadline() {
    let scratch = Scratch::new();
    let export = Gated::new();
    let server = scratch.serve(export.clone());
    let client = scratch.client(&[]).await;
    let read = tokio::spawn(async move { client.read(0, 64).await });
    export.until_waiting(1).await;

    let outcome = server.shutdown(Duration::from_millis(50)).await;

    assert_eq!(outcome, ShutdownOutcome::CutOff);
    let error = timeout(DEADLINE, read).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.retry(), Retry::NewConnection);
}

#[tokio::test]
async fn a_call_without_answer_times_out_and_closes_the_connection_for_all() {
    let scratch = Scratch::new();
    let export = Gated::new();
    let _server = scratch.serve(export.clone());
    let mut hasty = options(&[]);
    hasty.call_deadline = Duration::from_millis(300);
    let client = connect_unix(&scratch.socket(), hasty).await.unwrap();

    let (first, second) = tokio::join!(client.read(0, 64), client.read(64, 64));

    for error in [first.unwrap_err(), second.unwrap_err()] {
        let timed_out =
            matches!(error, ClientError::Closed { source: Closed::TimedOut { .. }, .. });
        assert!(timed_out, "{error}");
    }
    let after = timeout(DEADLINE, client.read(0, 64)).await.unwrap();
    assert!(matches!(after, Err(ClientError::Closed { .. })));
}

#[tokio::test]
async fn reads_given_up_by_their_callers_free_their_place() {
    let scratch = Scratch::new();
    let export = Gated::new();
    let _server = scratch.serve(export.clone());
    let client = scratch.client(&[]).await;

    for _ in 0..3 {
        let mut reads = tokio::task::JoinSet::new();
        let before = export.waiting.load(Ordering::SeqCst);
        for _ in 0..60 {
            let client = client.clone();
            reads.spawn(async move { client.read(0, 64).await });
        }
        export.until_waiting(before + 60).await;
        reads.shutdown().await;
        export.gate.add_permits(60);
    }

    export.gate.add_permits(1);
    let read = timeout(DEADLINE, client.read(3, 64)).await.unwrap();
    assert_eq!(read.unwrap(), vec![3; 64]);
}

#[tokio::test]
async fn any_stream_can_be_served_and_stopping_ends_an_idle_client() {
    let mut server = Server::new(Limits::default());
    server.add("disk", "", Arc::new(MemoryExport::new(4096))).unwrap();
    let (ours, theirs) = tokio::io::duplex(1000);
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(async move { server.serve_stream(theirs, stopped).await });
    let client = Client::connect(ours, options(&[BASE_ALLOCATION])).await.unwrap();
    assert_eq!(client.read(0, 4096).await.unwrap(), vec![0; 4096]);

    stop.send(true).unwrap();

    assert!(timeout(DEADLINE, serving).await.unwrap().unwrap().is_ok());
    let after = timeout(DEADLINE, client.read(0, 1)).await.unwrap();
    assert!(matches!(after, Err(ClientError::Closed { .. })));
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_place_is_made_when_one_leaves() {
    let scratch = Scratch::new();
    let mut server = Server::new(Limits { connections_max: 1, ..Limits::default() });
    server.add("disk", "", Arc::new(MemoryExport::new(4096))).unwrap();
    let _server = server.start(UnixListener::bind(scratch.socket()).unwrap());
    let first = scratch.client(&[]).await;

    assert!(connect_unix(&scratch.socket(), options(&[])).await.is_err());
    assert!(first.read(0, 1).await.is_ok());
    first.disconnect().await;

    let again = async {
        while connect_unix(&scratch.socket(), options(&[])).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, again).await.unwrap();
}

#[test]
fn exports_that_cannot_be_served_right_are_not_added() {
    let mut server = Server::new(Limits::default());
    let disk = |size| MemoryExport::new(size);
    let blocks = |minimum, preferred, maximum| BlockSizes { minimum, preferred, maximum };

    server.add("a", "", Arc::new(disk(4096))).unwrap();
    assert!(server.add("a", "", Arc::new(disk(4096))).is_err());
    assert!(server.add("b\0", "", Arc::new(disk(4096))).is_err());
    assert!(server.add(&"b".repeat(4097), "", Arc::new(disk(4096))).is_err());
    assert!(server.add("b", "", Arc::new(disk(u64::MAX))).is_err());
    for sizes in [blocks(0, 512, 512), blocks(3, 4096, 4096), blocks(512, 256, 4096)] {
        let disk = Arc::new(disk(4096).with_block_sizes(sizes));
        assert!(server.add("b", "", disk).is_err(), "{sizes:?}");
    }
    let odd = Arc::new(disk(1000).with_block_sizes(blocks(512, 512, 4096)));
    assert!(server.add("b", "", odd).is_err());
}
