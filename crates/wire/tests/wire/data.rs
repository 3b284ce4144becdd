//! Messages of data sessions and of joining.

use crate::samples::{any_header, cases, data_key, hash_key, header};
use bytes::Bytes;
use leeward_model::{
    Branch, DiskNumber, Epoch, ExtentHash, ExtentNumber, HostId, ItemId, Lsn, PointId, Position,
    TimelineId, UnixMillis,
};
use leeward_wire::{
    audit::AuditWord,
    data::{
        Ack, BlockHashes, BlockHashesRequest, Commit, Committed, DataError, DataHello, DataMessage,
        DataWelcome, HashKeyWord, Hashes, HashesRequest, JoinAnswer, JoinRequest, Role,
        decode_control, encode_control,
    },
    frame::{BLOCK_HASHES_MAX, Decoder, Frame, HASHES_MAX, Kind},
    hash::{EXTENT_ABSENT, extent_and_block_hashes},
    message::{HEARTBEAT_MS, HostHello, ServerStamp, ToServer},
};
use proptest::prelude::*;

pub fn stamp() -> ServerStamp {
    ServerStamp {
        boot: "5e1f9a52-0000-4000-8000-000000000001".into(),
        ms: 123_456_789,
        wall: UnixMillis(1_763_700_002_789),
    }
}

/// A question for two extents' blocks and its answer: one is zero but for its second block, the
/// other is zero.
fn block_hashes() -> (BlockHashesRequest, BlockHashes) {
    let disk = DiskNumber(1);
    let mut extent = vec![0; 65_536];
    let (_, zero) = extent_and_block_hashes(&hash_key(), &extent);
    extent[4096..8192].fill(0x5a);
    let (_, one) = extent_and_block_hashes(&hash_key(), &extent);
    let extents = vec![ExtentNumber(500), ExtentNumber(70_000)];
    (BlockHashesRequest { disk, extents }, BlockHashes { disk, hashes: vec![one, zero] })
}

fn joining() -> (JoinRequest, JoinAnswer) {
    let join = JoinRequest {
        registration_key: "lwk1-secret".into(),
        csr_pem: "-----BEGIN CERTIFICATE REQUEST-----\n".into(),
        host_name: "kvm-a".into(),
        boot: "5e1f9a52-0000-4000-8000-000000000002".into(),
    };
    let answer = JoinAnswer {
        certificate_pem: "-----BEGIN CERTIFICATE-----\n".into(),
        ca_pem: "-----BEGIN CERTIFICATE-----\n".into(),
        host: HostId::from_u128(0x61),
        fabric: "site-a".into(),
    };
    (join, answer)
}

/// One message of every kind, with the kind's name for files.
pub fn every_message() -> Vec<(&'static str, DataMessage)> {
    let timeline = TimelineId::from_u128(0x31);
    let position = |lsn| Position { timeline, lsn: Lsn(lsn) };
    let hello = DataHello {
        version_min: 1,
        version_max: 1,
        item: ItemId::from_u128(0x21),
        host: HostId::from_u128(0x61),
        host_boot: "5e1f9a52-0000-4000-8000-000000000002".into(),
        role: Role::DialerSends,
        epoch: Epoch(3),
        branch: Branch { timeline, parent: None, epoch: Epoch(3) },
    };
    let welcome = DataWelcome {
        version: 1,
        data_key: data_key(),
        hash_key: hash_key(),
        key_version: 1,
        durable: Some(position(999)),
        newest_point: Some((PointId::from_u128(0x51), position(990))),
        credit_bytes: 64 << 20,
    };
    let commit =
        Commit { lsn: Lsn(1004), point: true, cut_server: Some(stamp()), final_progress: false };
    let place = (DiskNumber(1), ExtentNumber(500));
    let request = HashesRequest { disk: place.0, first_extent: place.1, count: 2 };
    let hashes = vec![ExtentHash([0xcd; 32]), EXTENT_ABSENT];
    let hashes = Hashes { disk: place.0, first_extent: place.1, hashes };
    let (block_request, blocks) = block_hashes();
    let (join, answer) = joining();
    let refused = leeward_model::Problem {
        code: "LW-0000".into(),
        what: "what".into(),
        cause: "cause".into(),
        now: "now".into(),
        todo: "todo".into(),
    };
    vec![
        ("data-hello", DataMessage::Hello(hello)),
        ("data-welcome", DataMessage::Welcome(Box::new(welcome))),
        ("data-refused", DataMessage::Refused(refused)),
        ("segment-open", DataMessage::SegmentOpen(header())),
        ("record", DataMessage::Record(Bytes::from(vec![0x77; 80]))),
        ("commit", DataMessage::Commit(commit)),
        ("ack", DataMessage::Ack(Ack { durable_lsn: Lsn(1004), credit_bytes: 64 << 20 })),
        (
            "committed",
            DataMessage::Committed(Committed {
                lsn: Lsn(1004),
                point: Some(PointId::from_u128(0x52)),
            }),
        ),
        ("hashes-request", DataMessage::HashesRequest(request)),
        ("hashes", DataMessage::Hashes(hashes)),
        ("ping", DataMessage::Ping(0x0102_0304_0506_0708)),
        ("pong", DataMessage::Pong(0x0102_0304_0506_0708)),
        ("block-hashes-request", DataMessage::BlockHashesRequest(block_request)),
        ("block-hashes", DataMessage::BlockHashes(blocks)),
        ("hash-key", DataMessage::HashKey(HashKeyWord::Key { hash_key: hash_key() })),
        (
            "audit",
            DataMessage::Audit(AuditWord::Damaged {
                extents: vec![(DiskNumber(0), ExtentNumber(7)), (DiskNumber(1), ExtentNumber(0))],
            }),
        ),
        ("join-request", DataMessage::JoinRequest(join)),
        ("join-answer", DataMessage::JoinAnswer(Box::new(answer))),
    ]
}

/// A control message, with its frame.
pub fn control() -> (ToServer, Bytes) {
    let hello = ToServer::Hello(HostHello {
        version_min: 1,
        version_max: 1,
        host: HostId::from_u128(0x61),
        name: "kvm-a".into(),
        boot: "5e1f9a52-0000-4000-8000-000000000002".into(),
        program: "0.1.0".into(),
    });
    let frame = encode_control(&hello);
    (hello, frame)
}

fn only_frame(bytes: &[u8]) -> Frame {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    decoder.pop().expect("frames of ours").expect("a whole frame")
}

#[test]
fn every_message_comes_back_as_it_was() {
    let mut kinds = Vec::new();
    for (name, message) in every_message() {
        let frame = only_frame(&message.to_frame());
        kinds.push(frame.kind);

        assert_eq!(DataMessage::from_frame(frame), Ok(message), "{name}");
    }
    assert_eq!(kinds, Kind::ALL[1..], "every kind but control has a message");
}

#[test]
fn a_control_message_comes_back_and_is_no_data_message() {
    let (hello, bytes) = control();
    let frame = only_frame(&bytes);
    let unexpected = DataError::Unexpected { kind: Kind::Control };
    let ping = only_frame(&DataMessage::Ping(HEARTBEAT_MS).to_frame());

    assert_eq!(decode_control(&frame), Ok(hello));
    assert_eq!(DataMessage::from_frame(frame), Err(unexpected));
    let wrong = decode_control::<ToServer>(&ping);
    assert_eq!(wrong, Err(DataError::Unexpected { kind: Kind::Ping }));
}

#[test]
fn every_problem_of_the_registry_fits_a_refusal() {
    for code in leeward_model::CODES {
        let message = DataMessage::Refused(code.problem("web01"));

        let back = DataMessage::from_frame(only_frame(&message.to_frame()));

        assert_eq!(back, Ok(message));
    }
}

#[test]
fn no_secret_of_a_message_shows_in_a_log() {
    let shown: String =
        every_message().iter().map(|(_, message)| format!("{message:?}\n")).collect();
    let key_base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let hash_key_base64 = "gIGCg4SFhoeIiYqLjI2Oj5CRkpOUlZaXmJmam5ydnp8=";
    let welcome = every_message().remove(1).1.to_frame();
    let word = DataMessage::HashKey(HashKeyWord::Key { hash_key: hash_key() });

    assert!(String::from_utf8_lossy(&welcome).contains(key_base64), "it is in the frame");
    assert!(String::from_utf8_lossy(&word.to_frame()).contains(hash_key_base64));
    assert!(shown.contains("data_key: DataKey(hidden)"));
    assert!(shown.contains("HashKey(Key { hash_key: HashKey(hidden) })"));
    assert!(!shown.contains(key_base64) && !shown.contains("lwk1-secret"));
    assert!(!shown.contains(hash_key_base64) && !shown.contains("128, 129, 130"));
}

/// Decision 27: a key is 32 bytes, and words that hold none have a form of their own.
#[test]
fn words_on_the_hash_key_are_read_and_garbled_ones_refused() {
    let read = |json: &str| {
        let payload = Bytes::copy_from_slice(json.as_bytes());
        DataMessage::from_frame(Frame { kind: Kind::HashKey, payload })
    };
    let key = "gIGCg4SFhoeIiYqLjI2Oj5CRkpOUlZaXmJmam5ydnp8=";
    let whole = format!(r#"{{"word":"key","hash_key":"{key}"}}"#);
    let hash_key = hash_key();

    for (json, word) in [
        (r#"{"word":"missing"}"#, HashKeyWord::Missing),
        (r#"{"word":"held","later":1}"#, HashKeyWord::Held),
        (&whole, HashKeyWord::Key { hash_key }),
    ] {
        assert_eq!(read(json), Ok(DataMessage::HashKey(word)), "{json}");
    }
    for json in [
        r#"{}"#.to_owned(),
        r#"{"word":"other"}"#.to_owned(),
        r#"{"word":"key"}"#.to_owned(),
        r#"{"word":"key","hash_key":null}"#.to_owned(),
        r#"{"word":"key","hash_key":""}"#.to_owned(),
        whole.replace("np8=", ""),
        whole.replace(key, &format!("gIGC{key}")),
        whole.replace("np8=", "n*8="),
        format!(r#"{{"word":"key","hash_key":"{key}","hash_key":"{key}"}}"#),
        whole[..whole.len() - 1].to_owned(),
    ] {
        let error = read(&json).expect_err(&json);
        assert!(matches!(error, DataError::Json { kind: Kind::HashKey, .. }), "{json}");
        assert!(!error.to_string().contains("gIGC"), "{error}");
    }
}

#[test]
fn a_json_error_does_not_repeat_the_payload() {
    let payload = Bytes::from_static(b"{\"version\":1,\"data_key\":\"c2VjcmV0\"}");

    let error = DataMessage::from_frame(Frame { kind: Kind::DataWelcome, payload }).unwrap_err();

    assert!(matches!(error, DataError::Json { kind: Kind::DataWelcome, .. }));
    assert!(!error.to_string().contains("c2VjcmV0"));
}

#[test]
fn hashes_out_of_bounds_are_refused() {
    let request = |first: u32, count: u32| {
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes
    };

    assert!(HashesRequest::decode(&request(0, HASHES_MAX)).is_some());
    assert!(HashesRequest::decode(&request(u32::MAX, 1)).is_some());
    assert_eq!(HashesRequest::decode(&request(0, 0)), None);
    assert_eq!(HashesRequest::decode(&request(0, HASHES_MAX + 1)), None);
    assert_eq!(HashesRequest::decode(&request(u32::MAX, 2)), None);
    assert_eq!(Hashes::decode(&[&request(0, 2)[..], &[0; 32]].concat()), None);
    assert_eq!(Hashes::decode(&[&request(0, 1)[..], &[0; 33]].concat()), None);
    let mut reserved = request(0, 1);
    reserved[2] = 1;
    assert_eq!(HashesRequest::decode(&reserved), None);
}

#[test]
fn block_hashes_out_of_bounds_or_order_are_refused() {
    let request = |count: u32, extents: &[u32]| {
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend_from_slice(&count.to_le_bytes());
        extents.iter().for_each(|extent| bytes.extend_from_slice(&extent.to_le_bytes()));
        bytes
    };
    let most: Vec<u32> = (0..=BLOCK_HASHES_MAX).collect();
    let decode = |bytes: &[u8]| BlockHashesRequest::decode(bytes);

    assert!(decode(&request(BLOCK_HASHES_MAX, &most[1..])).is_some());
    assert!(decode(&request(1, &[u32::MAX])).is_some());
    assert_eq!(decode(&request(BLOCK_HASHES_MAX + 1, &most)), None);
    assert_eq!(decode(&request(0, &[])), None);
    assert_eq!(decode(&request(2, &[7])), None, "fewer than counted");
    assert_eq!(decode(&request(1, &[7, 8])), None, "more than counted");
    assert_eq!(decode(&request(2, &[8, 7])), None, "descending");
    assert_eq!(decode(&request(2, &[7, 7])), None, "twice");
    assert_eq!(decode(&[&request(1, &[7])[..], &[0]].concat()), None);
    let mut reserved = request(1, &[7]);
    reserved[2] = 1;
    assert_eq!(decode(&reserved), None);

    let answer = |count: u32, bytes: usize| [request(count, &[]), vec![9; bytes]].concat();
    assert!(BlockHashes::decode(&answer(2, 512)).is_some());
    assert_eq!(BlockHashes::decode(&answer(0, 0)), None);
    assert_eq!(BlockHashes::decode(&answer(2, 256)), None);
    assert_eq!(BlockHashes::decode(&answer(1, 256 + 16)), None, "blocks of half an extent");
    assert_eq!(BlockHashes::decode(&answer(1, 256 + 1)), None);
    assert_eq!(BlockHashes::decode(&[1, 0, 0, 0]), None);
}

#[test]
fn a_full_question_for_block_hashes_and_its_answer_fit_their_frames() {
    let disk = DiskNumber(0);
    let extents = (0..BLOCK_HASHES_MAX).map(ExtentNumber).collect();
    let hashes = vec![[[1; 16]; 16]; BLOCK_HASHES_MAX as usize];
    for message in [
        DataMessage::BlockHashesRequest(BlockHashesRequest { disk, extents }),
        DataMessage::BlockHashes(BlockHashes { disk, hashes }),
    ] {
        let back = DataMessage::from_frame(only_frame(&message.to_frame()));

        assert!(back == Ok(message));
    }
}

#[test]
fn a_full_answer_with_hashes_fits_its_frame() {
    let hashes = vec![ExtentHash([1; 32]); HASHES_MAX as usize];
    let hashes = Hashes { disk: DiskNumber(0), first_extent: ExtentNumber(0), hashes };
    let message = DataMessage::Hashes(hashes);

    let back = DataMessage::from_frame(only_frame(&message.to_frame()));

    assert!(back == Ok(message));
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn binary_messages_come_back_as_they_were(
        (durable, credit) in any::<(u64, u64)>(),
        (disk, first, count) in (any::<u16>(), any::<u32>(), 1..=50_u32),
        number in any::<u64>(),
        segment in any_header(),
        extents in proptest::collection::btree_set(any::<u32>(), 1..50),
    ) {
        let first = first.min(u32::MAX - count);
        let (disk, first_extent) = (DiskNumber(disk), ExtentNumber(first));
        let hashes = (0..count).map(|at| ExtentHash([at as u8; 32])).collect();
        let blocks = extents.iter().map(|extent| [[*extent as u8; 16]; 16]).collect();
        let extents = extents.into_iter().map(ExtentNumber).collect();
        for message in [
            DataMessage::Ack(Ack { durable_lsn: Lsn(durable), credit_bytes: credit }),
            DataMessage::HashesRequest(HashesRequest { disk, first_extent, count }),
            DataMessage::Hashes(Hashes { disk, first_extent, hashes }),
            DataMessage::BlockHashesRequest(BlockHashesRequest { disk, extents }),
            DataMessage::BlockHashes(BlockHashes { disk, hashes: blocks }),
            DataMessage::Ping(number),
            DataMessage::Pong(number),
            DataMessage::SegmentOpen(segment),
        ] {
            let back = DataMessage::from_frame(only_frame(&message.to_frame()));
            prop_assert_eq!(back, Ok(message));
        }
    }

    #[test]
    fn arbitrary_payloads_never_panic(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let frame = Frame { kind, payload: Bytes::from(payload) };
        prop_assert!(decode_control::<ToServer>(&frame).is_err());
        let _ = DataMessage::from_frame(frame);
    }

    #[test]
    fn changed_messages_never_panic(
        which in 0..17_usize,
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut frame = only_frame(&every_message()[which].1.to_frame());
        let mut payload = frame.payload.to_vec();
        let at = at.index(payload.len());
        payload[at] = byte;
        frame.payload = Bytes::from(payload);
        let _ = DataMessage::from_frame(frame);
    }
}
