//! Clients and servers that do not behave: bytes written by hand against each side.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use leeward_nbd::client::{Client, ClientError, Closed};
use leeward_nbd::memory::MemoryExport;
use leeward_nbd::protocol::negotiation::{
    ExportRequest, Info, MetaContextRequest, encode_greeting, encode_option, encode_option_reply,
};
use leeward_nbd::protocol::transmission::{Chunk, Request, SimpleReply};
use leeward_nbd::protocol::{CHUNK_DONE, Errno, client_flags, command, option, reply};
use leeward_nbd::server::{BlockSizes, Export, ExportError, Limits, Server};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::world::{DEADLINE, Numbers, options};

/// A stream to a fresh server of `export` as "disk".
fn served(export: Arc<dyn Export>) -> DuplexStream {
    let mut server = Server::new(Limits::default());
    server.add("disk", "", export).unwrap();
    let (ours, theirs) = duplex(1 << 16);
    tokio::spawn(async move {
        let (_stop, stopped) = watch::channel(false);
        let _ = server.serve_stream(theirs, stopped).await;
    });
    ours
}

async fn greeted(export: Arc<dyn Export>, flags: u32) -> DuplexStream {
    let mut stream = served(export);
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.unwrap();
    stream.write_u32(flags).await.unwrap();
    stream
}

const BOTH: u32 = client_flags::FIXED_NEWSTYLE | client_flags::NO_ZEROES;

/// Sends an option and gives the kinds of the replies up to the final one.
async fn ask(stream: &mut DuplexStream, option: u32, data: &[u8]) -> Vec<u32> {
    stream.write_all(&encode_option(option, data)).await.unwrap();
    replies(stream, option).await
}

async fn replies(stream: &mut DuplexStream, option: u32) -> Vec<u32> {
    let mut kinds = Vec::new();
    loop {
        assert_eq!(stream.read_u64().await.unwrap(), 0x0003_e889_0455_65a9);
        assert_eq!(stream.read_u32().await.unwrap(), option);
        let kind = stream.read_u32().await.unwrap();
        let len = stream.read_u32().await.unwrap();
        stream.read_exact(&mut vec![0; len as usize]).await.unwrap();
        kinds.push(kind);
        if kind == reply::ACK || kind & reply::ERROR_BIT != 0 {
            return kinds;
        }
    }
}

fn go(name: &str) -> Vec<u8> {
    ExportRequest { name: name.into(), wanted: vec![] }.encode()
}

/// Sends a request and gives the errno of the simple reply.
async fn errno(stream: &mut DuplexStream, request: Request, data: &[u8]) -> u32 {
    stream.write_all(&request.encode()).await.unwrap();
    stream.write_all(data).await.unwrap();
    assert_eq!(stream.read_u32().await.unwrap(), 0x6744_6698);
    let errno = stream.read_u32().await.unwrap();
    assert_eq!(stream.read_u64().await.unwrap(), request.cookie);
    errno
}

fn request(command: u16, offset: u64, len: u32) -> Request {
    Request { flags: 0, command, cookie: offset ^ 5, offset, len }
}

async fn closed(stream: &mut DuplexStream) -> bool {
    timeout(DEADLINE, stream.read_u8()).await.expect("it stays open").is_err()
}

#[tokio::test]
async fn options_are_refused_with_the_reply_the_protocol_names() {
    let mut stream = greeted(Arc::new(MemoryExport::new(4096)), BOTH).await;

    assert_eq!(ask(&mut stream, 77, b"what").await, [reply::ERR_UNSUP]);
    assert_eq!(ask(&mut stream, option::STARTTLS, b"").await, [reply::ERR_UNSUP]);
    assert_eq!(ask(&mut stream, option::GO, &go("none")).await, [reply::ERR_UNKNOWN]);
    assert_eq!(ask(&mut stream, option::GO, b"junk").await, [reply::ERR_INVALID]);
    assert_eq!(ask(&mut stream, option::LIST, b"junk").await, [reply::ERR_INVALID]);
    assert_eq!(ask(&mut stream, option::STRUCTURED_REPLY, b"x").await, [reply::ERR_INVALID]);
    let contexts = MetaContextRequest { export: "disk".into(), queries: vec![] }.encode();
    let early = ask(&mut stream, option::SET_META_CONTEXT, &contexts).await;
    assert_eq!(early, [reply::ERR_INVALID]);
    ask(&mut stream, option::STRUCTURED_REPLY, b"").await;
    let listed = ask(&mut stream, option::LIST_META_CONTEXT, &contexts).await;
    assert_eq!(listed, [reply::META_CONTEXT, reply::ACK]);
    assert_eq!(ask(&mut stream, option::SET_META_CONTEXT, &contexts).await, [reply::ACK]);
    let info = ask(&mut stream, option::INFO, &go("disk")).await;
    assert_eq!(info, [reply::INFO, reply::INFO, reply::ACK]);
    assert_eq!(ask(&mut stream, option::ABORT, b"").await, [reply::ACK]);
    assert!(closed(&mut stream).await);
}

#[tokio::test]
async fn a_long_option_is_skipped_and_an_endless_one_ends_the_session() {
    let mut stream = greeted(Arc::new(MemoryExport::new(4096)), BOTH).await;
    let mut long = encode_option(option::GO, b"");
    long[12..16].copy_from_slice(&100_000u32.to_be_bytes());
    long.resize(16 + 100_000, 0);
    stream.write_all(&long).await.unwrap();
    assert_eq!(replies(&mut stream, option::GO).await, [reply::ERR_TOO_BIG]);

    long[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    stream.write_all(&long[..16]).await.unwrap();
    assert!(closed(&mut stream).await);
}

#[tokio::test]
async fn the_old_option_gets_zeroes_unless_declined_and_no_error_reply() {
    for (flags, zeroes) in [(client_flags::FIXED_NEWSTYLE, 124), (BOTH, 0), (0, 124)] {
        let mut stream = greeted(Arc::new(MemoryExport::new(4096)), flags).await;
        stream.write_all(&encode_option(option::EXPORT_NAME, b"disk")).await.unwrap();
        assert_eq!(stream.read_u64().await.unwrap(), 4096);
        stream.read_u16().await.unwrap();
        stream.read_exact(&mut vec![0; zeroes]).await.unwrap();
        assert_eq!(errno(&mut stream, request(command::WRITE, 0, 3), b"abc").await, 0);
        assert_eq!(errno(&mut stream, request(command::READ, 0, 3), b"").await, 0);
        let mut data = [0; 3];
        stream.read_exact(&mut data).await.unwrap();
        assert_eq!(&data, b"abc");
    }
    let mut stream = greeted(Arc::new(MemoryExport::new(4096)), BOTH).await;
    stream.write_all(&encode_option(option::EXPORT_NAME, b"none")).await.unwrap();
    assert!(closed(&mut stream).await);
    let mut stream = greeted(Arc::new(MemoryExport::new(4096)), 1 << 7).await;
    assert!(closed(&mut stream).await);
}

#[tokio::test]
async fn bad_requests_get_an_errno_change_nothing_and_the_session_goes_on() {
    let disk = Arc::new(MemoryExport::new(64 << 20));
    let mut stream = greeted(disk.clone(), BOTH).await;
    ask(&mut stream, option::GO, &go("disk")).await;
    let size = disk.size();

    let past = [(size, 1), (size - 1, 2), (u64::MAX, 1), (u64::MAX, u32::MAX)];
    for (offset, len) in past {
        assert_eq!(errno(&mut stream, request(command::READ, offset, len), b"").await, 22);
        assert_eq!(errno(&mut stream, request(command::TRIM, offset, len), b"").await, 22);
        assert_eq!(errno(&mut stream, request(command::WRITE_ZEROES, offset, len), b"").await, 28);
    }
    assert_eq!(errno(&mut stream, request(command::WRITE, size - 1, 2), b"ab").await, 28);
    assert_eq!(errno(&mut stream, request(command::WRITE, u64::MAX, 2), b"ab").await, 28);
    assert_eq!(errno(&mut stream, request(command::READ, 0, (32 << 20) + 1), b"").await, 22);
    assert_eq!(errno(&mut stream, request(command::BLOCK_STATUS, 0, 512), b"").await, 22);
    assert_eq!(errno(&mut stream, request(99, 0, 512), b"").await, 22);
    let fast = Request { flags: 1 << 4, ..request(command::WRITE_ZEROES, 0, 1) };
    assert_eq!(errno(&mut stream, fast, b"").await, 22);
    assert_eq!(errno(&mut stream, request(command::READ, size, 0), b"").await, 0);

    assert!(disk.content().iter().all(|byte| *byte == 0));
    let endless = request(command::WRITE, 0, (32 << 20) + 1);
    stream.write_all(&endless.encode()).await.unwrap();
    assert!(closed(&mut stream).await);
}

#[tokio::test]
async fn a_read_only_export_refuses_writes_and_stays_in_step() {
    let mut stream = greeted(Arc::new(MemoryExport::read_only(&[7; 4096])), BOTH).await;
    ask(&mut stream, option::GO, &go("disk")).await;

    assert_eq!(errno(&mut stream, request(command::WRITE, 0, 4), b"evil").await, 1);
    assert_eq!(errno(&mut stream, request(command::TRIM, 0, 4), b"").await, 1);
    assert_eq!(errno(&mut stream, request(command::WRITE_ZEROES, 0, 4), b"").await, 1);
    assert_eq!(errno(&mut stream, request(command::FLUSH, 0, 0), b"").await, 0);
    assert_eq!(errno(&mut stream, request(command::READ, 0, 4), b"").await, 0);
    let mut data = [0; 4];
    stream.read_exact(&mut data).await.unwrap();
    assert_eq!(data, [7; 4]);
}

/// A disk whose every read is answered at once: a block is filled with its number.
struct AtHand;

const AT_HAND_BLOCK: u32 = 64 << 10;

#[async_trait]
impl Export for AtHand {
    fn size(&self) -> u64 {
        16 * u64::from(AT_HAND_BLOCK)
    }
    fn read_only(&self) -> bool {
        true
    }
    fn read_at_once(&self, offset: u64, len: u32) -> Option<Bytes> {
        Some(vec![(offset / u64::from(AT_HAND_BLOCK)) as u8; len as usize].into())
    }
    async fn read(&self, _: u64, _: u32) -> Result<Bytes, ExportError> {
        Err(ExportError::new(Errno::IO, "everything is at hand"))
    }
}

#[tokio::test]
async fn a_client_that_sends_everything_before_it_reads_gets_every_reply_whole() {
    let mut stream = greeted(Arc::new(AtHand), BOTH).await;
    ask(&mut stream, option::GO, &go("disk")).await;

    // More than the stream holds in either direction.
    let sent = async {
        for block in 0..16 {
            let offset = u64::from(block * AT_HAND_BLOCK);
            let read =
                Request { cookie: block.into(), ..request(command::READ, offset, AT_HAND_BLOCK) };
            stream.write_all(&read.encode()).await.unwrap();
        }
        let write = Request { cookie: 16, ..request(command::WRITE, 0, 4 * AT_HAND_BLOCK) };
        stream.write_all(&write.encode()).await.unwrap();
        stream.write_all(&vec![1; 4 * AT_HAND_BLOCK as usize]).await.unwrap();
    };
    timeout(DEADLINE, sent).await.expect("the server goes on reading");
    let mut answered = Vec::new();
    while answered.len() < 17 {
        assert_eq!(stream.read_u32().await.unwrap(), 0x6744_6698);
        let (errno, cookie) = (stream.read_u32().await.unwrap(), stream.read_u64().await.unwrap());
        assert_eq!(errno, if cookie == 16 { 1 } else { 0 });
        if cookie < 16 {
            let mut block = vec![0; AT_HAND_BLOCK as usize];
            stream.read_exact(&mut block).await.unwrap();
            assert!(block.iter().all(|byte| u64::from(*byte) == cookie));
        }
        answered.push(cookie);
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..17).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_the_block_sizes_is_told_to() {
    let blocks = BlockSizes { minimum: 512, preferred: 4096, maximum: 65_536 };
    let disk = MemoryExport::new(4096).with_block_sizes(blocks);
    let mut stream = greeted(Arc::new(disk), BOTH).await;

    let refused = ask(&mut stream, option::GO, &go("disk")).await;

    assert_eq!(refused, [reply::ERR_BLOCK_SIZE_REQD]);
    let asking = ExportRequest { name: "disk".into(), wanted: vec![3] }.encode();
    assert_eq!(*ask(&mut stream, option::GO, &asking).await.last().unwrap(), reply::ACK);
    assert_eq!(errno(&mut stream, request(command::READ, 1, 512), b"").await, 22);
}

#[tokio::test]
async fn a_silent_client_is_closed_at_the_handshake_deadline() {
    let limits = Limits { handshake_deadline: Duration::from_millis(50), ..Limits::default() };
    let server = Server::new(limits);
    let (_ours, theirs) = duplex(100);
    let (_stop, stopped) = watch::channel(false);

    let served = timeout(DEADLINE, server.serve_stream(theirs, stopped)).await.unwrap();

    assert!(served.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_neither_panic_nor_hang_a_server(
        bytes in prop::collection::vec(any::<u8>(), 0..300), stage in 0..3,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut server = Server::new(Limits::default());
            server.add("disk", "", Arc::new(MemoryExport::new(4096))).unwrap();
            let (mut ours, theirs) = duplex(1 << 16);
            let (_stop, stopped) = watch::channel(false);
            let serving = tokio::spawn(async move { server.serve_stream(theirs, stopped).await });
            if stage > 0 {
                ours.write_u32(BOTH).await.unwrap();
            }
            if stage > 1 {
                ours.write_all(&encode_option(option::GO, &go("disk"))).await.unwrap();
            }
            let _ = ours.write_all(&bytes).await;
            drop(ours);
            let ended = timeout(DEADLINE, serving).await.expect("the server hangs");
            prop_assert!(ended.is_ok(), "the server panicked");
            Ok(())
        })?;
    }

    #[test]
    fn arbitrary_bytes_neither_panic_nor_hang_a_client(
        bytes in prop::collection::vec(any::<u8>(), 0..300), negotiated: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = duplex(1 << 16);
            let writing = tokio::spawn(async move {
                if negotiated {
                    negotiate_by_hand(&mut theirs).await;
                }
                let _ = theirs.write_all(&bytes).await;
            });
            let outcome = timeout(DEADLINE, async {
                match Client::connect(ours, options(&[])).await {
                    Ok(client) => client.read(0, 512).await,
                    Err(error) => Err(error),
                }
            }).await.expect("the client hangs");
            prop_assert!(outcome.is_err());
            writing.await.unwrap();
            Ok(())
        })?;
    }
}

/// Plays a server that agrees to structured replies and an export of 1 MiB.
async fn negotiate_by_hand(stream: &mut DuplexStream) {
    stream.write_all(&encode_greeting(3)).await.unwrap();
    let ack = |option| encode_option_reply(option, reply::ACK, b"");
    stream.write_all(&ack(option::STRUCTURED_REPLY)).await.unwrap();
    let info = Info::Export { size: 1 << 20, flags: 1 }.encode();
    let info = encode_option_reply(option::GO, reply::INFO, &info);
    stream.write_all(&info).await.unwrap();
    stream.write_all(&ack(option::GO)).await.unwrap();
    // The client's flags, its two options, and the name and the one kind of information.
    stream.read_exact(&mut [0; 4 + 16 + 16 + 4 + 4 + 2 + 2]).await.unwrap();
}

/// Has a client read 8 bytes at 0 from a server that answers with `bytes`, then stays silent.
async fn read_answered_with(bytes: Vec<u8>) -> Result<Bytes, ClientError> {
    let (ours, mut theirs) = duplex(1 << 16);
    let server = tokio::spawn(async move {
        negotiate_by_hand(&mut theirs).await;
        theirs.read_exact(&mut [0; 28]).await.unwrap();
        theirs.write_all(&bytes).await.unwrap();
        theirs
    });
    let client = Client::connect(ours, options(&[])).await.unwrap();
    let outcome = timeout(DEADLINE, client.read(0, 8)).await.expect("it should not wait");
    drop(server.await.unwrap());
    outcome
}

fn chunk(chunk: Chunk, flags: u16) -> Vec<u8> {
    let (head, data) = chunk.encode(1, flags);
    [head, data].concat()
}

#[tokio::test]
async fn replies_that_break_the_protocol_end_the_connection_and_give_no_data() {
    let data =
        |offset, bytes: &'static [u8]| Chunk::Data { offset, data: Bytes::from_static(bytes) };
    let status = Chunk::Status {
        context: 1,
        extents: vec![leeward_nbd::protocol::transmission::Descriptor { len: 8, flags: 0 }],
    };
    let mut endless = chunk(data(0, b"12345678"), CHUNK_DONE);
    endless[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    let (other, _) = Chunk::None.encode(99, CHUNK_DONE);
    let wrong = [
        chunk(data(0, b"1234"), CHUNK_DONE),
        chunk(data(4, b"56789"), CHUNK_DONE),
        chunk(Chunk::None, CHUNK_DONE),
        chunk(Chunk::None, 0),
        chunk(status, CHUNK_DONE),
        SimpleReply { error: None, cookie: 1 }.encode().to_vec(),
        endless,
        other.to_vec(),
        b"this is no reply".to_vec(),
    ];
    for bytes in wrong {
        let error = read_answered_with(bytes.clone()).await.unwrap_err();
        let protocol = matches!(error, ClientError::Closed { source: Closed::Protocol(_), .. });
        assert!(protocol, "{bytes:?}: {error}");
    }
}

#[tokio::test]
async fn pieces_holes_and_errors_of_a_server_are_understood() {
    let pieces = [
        chunk(Chunk::Data { offset: 6, data: Bytes::from_static(b"gh") }, 0),
        chunk(Chunk::Hole { offset: 2, len: 4 }, 0),
        chunk(Chunk::Data { offset: 0, data: Bytes::from_static(b"ab") }, 0),
        chunk(Chunk::None, CHUNK_DONE),
    ];
    let read = read_answered_with(pieces.concat()).await.unwrap();
    assert_eq!(&read[..], b"ab\0\0\0\0gh");

    let failed = Chunk::Error { errno: Errno::IO, message: "worn".into(), offset: Some(3) };
    let error = read_answered_with(chunk(failed, CHUNK_DONE)).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { errno: Errno::IO, .. }), "{error}");
    let simple = SimpleReply { error: Some(Errno::NOMEM), cookie: 1 }.encode();
    let error = read_answered_with(simple.to_vec()).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { errno: Errno::NOMEM, .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_a_reply_is_an_error_at_every_byte() {
    let data = Bytes::from(Numbers::new(3).bytes(8));
    let whole = chunk(Chunk::Data { offset: 0, data }, CHUNK_DONE);
    for len in 0..whole.len() {
        let (ours, mut theirs) = duplex(1 << 16);
        let part = whole[..len].to_vec();
        let server = tokio::spawn(async move {
            negotiate_by_hand(&mut theirs).await;
            theirs.read_exact(&mut [0; 28]).await.unwrap();
            theirs.write_all(&part).await.unwrap();
        });
        let client = Client::connect(ours, options(&[])).await.unwrap();

        let error = timeout(DEADLINE, client.read(0, 8)).await.expect("a hang").unwrap_err();

        assert!(matches!(error, ClientError::Closed { source: Closed::ByServer, .. }), "{error}");
        server.await.unwrap();
    }
}
