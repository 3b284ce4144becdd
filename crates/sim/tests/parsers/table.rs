//! The parsers and their samples. A new parser of foreign bytes belongs here.

use bytes::Bytes;
use leeward_durable::Record;
use leeward_fabric::{
    machine_toml,
    qmp::{Line, LineCutter},
};
use leeward_model::{DiskFormat, ResyncWindow};
use leeward_nbd::protocol::{
    negotiation::{
        ExportRequest, Info, ListedExport, MetaContext, MetaContextRequest, decode_greeting,
        decode_option_header, decode_option_reply_header, encode_greeting, encode_option,
        encode_option_reply,
    },
    transmission::{Chunk, ReplyHeader, Request, SimpleReply},
};
use leeward_replica::{RecipientSecret, manifest::Manifest};
use leeward_wire::{
    data::{DataMessage, decode_control},
    frame::{Decoder, FRAME_HEADER_BYTES, Frame, Kind},
    keys::{DataKey, footer_mac_key, mac, manifest_mac_key},
    marker::decode_marker,
    message::{ToHost, ToServer},
    record::{RECORD_HEADER_BYTES, RecordHeader},
    segment::{SegmentHeader, decode_footer, footer_len, scan},
};
use std::path::{Path, PathBuf};

/// Whether the parser took the bytes.
type Parse = Box<dyn Fn(&[u8]) -> bool>;

/// A parser under its name, with samples of which the first is one that it takes.
pub struct Parser {
    pub name: &'static str,
    pub samples: Vec<Vec<u8>>,
    pub parse: Parse,
}

fn parser(
    name: &'static str,
    samples: Vec<Vec<u8>>,
    parse: impl Fn(&[u8]) -> bool + 'static,
) -> Parser {
    Parser { name, samples, parse: Box::new(parse) }
}

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A golden file of the wire's tests.
fn golden(name: &str) -> Vec<u8> {
    let path = crates().join("wire/tests/golden").join(name).with_extension("hex");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

/// All files below a folder of the golden replica store whose path has `part`, shortest first.
fn golden_blobs(part: &str) -> Vec<Vec<u8>> {
    let mut folders = vec![crates().join("replica/tests/golden/store-v1")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the golden store").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().is_some_and(|path| path.contains(part)) {
                found.push(std::fs::read(path).expect("a golden file"));
            }
        }
    }
    found.sort_by_key(Vec::len);
    assert!(!found.is_empty(), "no {part} in the golden store");
    found
}

pub fn parsers() -> Vec<Parser> {
    let mut all = wire();
    all.extend(frames());
    all.extend(store());
    all.extend(nbd());
    all.extend(texts());
    all.push(qmp());
    all
}

/// What QEMU says: greetings, answers, events, in one stream.
fn qmp() -> Parser {
    let lines = [
        r#"{"QMP":{"version":{"qemu":{"micro":1,"minor":2,"major":8}},"capabilities":[]}}"#,
        r#"{"return":{},"id":1}"#,
        r#"{"return":[{"device":"d0","dirty-bitmaps":[{"name":"x","count":65536}]}],"id":2}"#,
        r#"{"id":3,"error":{"class":"GenericError","desc":"no such node"}}"#,
        r#"{"timestamp":{"seconds":1},"event":"BLOCK_IO_ERROR","data":{"a":[null]}}"#,
    ];
    let mut samples: Vec<Vec<u8>> =
        lines.iter().map(|line| format!("{line}\r\n").into_bytes()).collect();
    samples.insert(0, samples.concat());
    parser("QMP stream", samples, |bytes| {
        let mut cutter = LineCutter::default();
        cutter.buffer().extend_from_slice(bytes);
        let mut taken = false;
        loop {
            match cutter.cut() {
                Line::Message(_) => taken = true,
                Line::More => return taken,
                Line::Broken => return false,
            }
        }
    })
}

fn wire() -> Vec<Parser> {
    let records = ["record-raw", "record-zero", "record-zstd", "record-marker"].map(golden);
    let mut segment = golden("segment-header");
    segment.extend_from_slice(&records[0]);
    let key = DataKey::from_bytes([7; 32]);
    let hash = SegmentHeader::decode(&golden("segment-header")).expect("a header").hash();
    vec![
        parser("record header", records.to_vec(), |bytes| {
            let head = bytes.first_chunk::<RECORD_HEADER_BYTES>();
            head.is_some_and(|head| RecordHeader::decode(head).is_ok())
        }),
        parser("segment header", vec![golden("segment-header")], |bytes| {
            SegmentHeader::decode(bytes).is_ok()
        }),
        parser("segment scan", vec![segment], |bytes| {
            scan(bytes).is_ok_and(|mut records| records.by_ref().count() > 0)
        }),
        // Behind its length only what is signed is looked at.
        parser("footer", vec![golden("footer")], move |bytes| {
            let trailer = bytes.last_chunk();
            let known = trailer.is_some_and(|trailer| footer_len(trailer).is_ok());
            let file = bytes.len() as u64 + 4096;
            let _ = decode_footer(bytes, file, &footer_mac_key(&key), &hash);
            known
        }),
        parser("marker", vec![golden("marker")], |bytes| decode_marker(bytes).is_ok()),
    ]
}

/// Every kind of message: the stream as it is, and the payload in a frame that fits it.
fn frames() -> Vec<Parser> {
    let names = [
        "ack",
        "audit",
        "block-hashes",
        "block-hashes-request",
        "commit",
        "committed",
        "data-hello",
        "data-refused",
        "data-welcome",
        "hash-key",
        "hashes",
        "hashes-request",
        "join-answer",
        "join-request",
        "ping",
        "segment-open",
        "record",
    ];
    let streams: Vec<_> = names.iter().map(|name| golden(&format!("frame-{name}"))).collect();
    let mut parsers = vec![parser("frame stream", streams.clone(), |bytes| {
        let mut decoder = Decoder::new();
        decoder.push(bytes);
        let mut taken = false;
        while let Ok(Some(_)) = decoder.pop() {
            taken = true;
        }
        taken
    })];
    for (name, stream) in names.into_iter().zip(&streams) {
        let mut decoder = Decoder::new();
        decoder.push(stream);
        let frame = decoder.pop().expect("a golden frame").expect("a whole frame");
        let kind = frame.kind;
        let payload = stream[FRAME_HEADER_BYTES..].to_vec();
        parsers.push(parser(name, vec![payload], move |bytes| payload_parses(kind, bytes)));
    }
    let control = golden("frame-control")[FRAME_HEADER_BYTES..].to_vec();
    let note = br#"{"type":"notes","notes":[{"id":"00000000-0000-0000-0000-000000000001","at":5,
        "kind":"started-by-hand","item":null,"object":"web01","text":"by hand"}]}"#;
    parsers.push(parser("control", vec![control, note.to_vec()], |bytes| {
        let frame = Frame { kind: Kind::Control, payload: Bytes::copy_from_slice(bytes) };
        let (to_host, to_server) =
            (decode_control::<ToHost>(&frame), decode_control::<ToServer>(&frame));
        to_host.is_ok() || to_server.is_ok()
    }));
    parsers
}

fn payload_parses(kind: Kind, bytes: &[u8]) -> bool {
    let frame = Frame { kind, payload: Bytes::copy_from_slice(bytes) };
    let fits = (kind.payload_min()..=kind.payload_max()).contains(&bytes.len());
    // The decoder lets only frames of their kind's length through.
    fits && DataMessage::from_frame(frame).is_ok()
}

fn store() -> Vec<Parser> {
    const MAC_BYTES: usize = 32;
    let key = manifest_mac_key(&DataKey::from_bytes([9; 32]));
    let unsigned = |blob: Vec<u8>| blob[..blob.len() - MAC_BYTES].to_vec();
    let manifests = golden_blobs("/manifest/").into_iter().map(unsigned).collect();
    vec![
        parser("manifest", manifests, move |bytes| {
            let mut signed = bytes.to_vec();
            signed.extend_from_slice(&mac(&key, bytes));
            Manifest::decode(&signed, &key).is_ok()
        }),
        parser("store key", golden_blobs("store.key"), |bytes| {
            std::str::from_utf8(bytes).is_ok_and(|text| RecipientSecret::parse(text).is_ok())
        }),
    ]
}

fn nbd() -> Vec<Parser> {
    let request = Request { flags: 0, command: 0, cookie: 7, offset: 4096, len: 512 };
    let export = ExportRequest { name: "disk".into(), wanted: vec![3] };
    let contexts = vec!["base:allocation".into(), "qemu:dirty-bitmap:x".into()];
    let meta = MetaContextRequest { export: "disk".into(), queries: contexts };
    let context = MetaContext { id: 1, name: "base:allocation".into() };
    let listed = ListedExport { name: "disk".into(), description: "a disk".into() };
    let info = Info::Export { size: 1 << 30, flags: 3 };
    let chunk =
        |kind: u16| move |bytes: &[u8]| Chunk::decode(kind, Bytes::copy_from_slice(bytes)).is_ok();
    let status = [&1_u32.to_be_bytes()[..], &4096_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
    let error = [&5_u32.to_be_bytes()[..], &2_u16.to_be_bytes(), b"no"].concat();
    vec![
        parser("nbd greeting", vec![encode_greeting(3)], |bytes| decode_greeting(bytes).is_ok()),
        parser("nbd option", vec![encode_option(7, b"disk")], |bytes| {
            decode_option_header(bytes.get(..16).unwrap_or(bytes)).is_ok()
        }),
        parser("nbd option reply", vec![encode_option_reply(7, 1, b"")], |bytes| {
            decode_option_reply_header(bytes.get(..20).unwrap_or(bytes)).is_ok()
        }),
        parser("nbd export request", vec![export.encode()], |bytes| {
            ExportRequest::decode(bytes).is_ok()
        }),
        parser("nbd contexts", vec![meta.encode()], |bytes| {
            MetaContextRequest::decode(bytes).is_ok()
        }),
        parser("nbd context", vec![context.encode()], |bytes| MetaContext::decode(bytes).is_ok()),
        parser("nbd listed", vec![listed.encode()], |bytes| ListedExport::decode(bytes).is_ok()),
        parser("nbd info", vec![info.encode()], |bytes| Info::decode(bytes).is_ok()),
        parser("nbd request", vec![request.encode().to_vec()], |bytes| {
            Request::decode(bytes).is_ok()
        }),
        parser("nbd reply", vec![simple_reply()], |bytes| {
            let known = bytes.first_chunk().map(|prefix| ReplyHeader::rest_len(*prefix));
            matches!(known, Some(Ok(_))) && ReplyHeader::decode(bytes).is_ok()
        }),
        parser("nbd data chunk", vec![[&[0; 8][..], b"data"].concat()], chunk(1)),
        parser("nbd hole chunk", vec![[&[0; 8][..], &[0, 0, 16, 0]].concat()], chunk(2)),
        parser("nbd status chunk", vec![status], chunk(5)),
        parser("nbd error chunk", vec![error], chunk(0x8001)),
    ]
}

fn simple_reply() -> Vec<u8> {
    SimpleReply { error: None, cookie: 7 }.encode().to_vec()
}

fn texts() -> Vec<Parser> {
    let toml = [
        "memory_mib = 64\ncpus = 2\nfirmware = \"bios\"\nqmp = \"q\"\n[[disks]]\nid = \"d\"\n",
        "path = \"d.raw\"\nformat = \"raw\"\nserial = \"lw0\"\n[[nics]]\n",
        "mac = \"52:54:00:00:00:01\"\nnetwork = \"user\"\n",
        "[probe]\nconsole_contains = \"ok\"\ntimeout_seconds = 30\n",
    ]
    .concat();
    let records = std::fs::read_to_string(crates().join("durable/golden/record-1.jsonl"));
    let records = records.expect("the golden records");
    let records: Vec<_> = records.lines().map(|line| line.as_bytes().to_vec()).collect();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let image = tempfile::NamedTempFile::new().expect("a temporary file");
    vec![
        parser("machine.toml", vec![toml.into_bytes()], move |bytes| {
            machine_toml::parse("web01", Path::new("/m/web01"), &text(bytes)).is_ok()
        }),
        parser("job record", records, move |bytes| Record::decode(&text(bytes)).is_ok()),
        parser("resync window", vec![b"22:00-06:00".to_vec()], move |bytes| {
            text(bytes).parse::<ResyncWindow>().is_ok()
        }),
        parser("qcow2 header", vec![qcow2()], move |bytes| {
            std::fs::write(image.path(), bytes).expect("the temporary file");
            leeward_fabric::image::inspect(image.path(), DiskFormat::Qcow2).is_ok()
        }),
    ]
}

/// The header of an image of 1 GiB without a backing file, filled up to 512 bytes.
fn qcow2() -> Vec<u8> {
    let mut out = b"QFI\xfb".to_vec();
    out.extend_from_slice(&3_u32.to_be_bytes());
    out.extend_from_slice(&[0; 12]);
    out.extend_from_slice(&16_u32.to_be_bytes());
    out.extend_from_slice(&(1_u64 << 30).to_be_bytes());
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&2_u32.to_be_bytes());
    out.extend_from_slice(&(3_u64 << 16).to_be_bytes());
    out.extend_from_slice(&(1_u64 << 16).to_be_bytes());
    out.extend_from_slice(&1_u32.to_be_bytes());
    out.extend_from_slice(&[0; 36]);
    out.extend_from_slice(&4_u32.to_be_bytes());
    out.extend_from_slice(&104_u32.to_be_bytes());
    out.resize(512, 0);
    out
}
