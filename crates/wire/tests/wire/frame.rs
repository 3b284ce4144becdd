//! Frames cut from a byte stream.

use crate::samples::cases;
use leeward_wire::frame::{Decoder, FRAME_HEADER_BYTES, Frame, FrameError, Kind, encode};
use proptest::prelude::*;

fn any_frame() -> impl Strategy<Value = (Kind, Vec<u8>)> {
    (prop::sample::select(Kind::ALL.to_vec()), any::<u8>(), 0..300_usize).prop_map(
        |(kind, fill, more)| {
            let length = kind.payload_max().min(kind.payload_min() + more);
            (kind, vec![fill; length])
        },
    )
}

fn pop_error(bytes: &[u8]) -> FrameError {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    decoder.pop().expect_err("the bytes are no frame")
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
        frames in proptest::collection::vec(any_frame(), 0..6),
        step in 1..5000_usize,
    ) {
        let stream: Vec<u8> =
            frames.iter().flat_map(|(kind, payload)| encode(*kind, payload)).collect();
        let mut decoder = Decoder::new();
        let mut found = Vec::new();
        for chunk in stream.chunks(step) {
            decoder.push(chunk);
            while let Some(Frame { kind, payload }) = decoder.pop().unwrap() {
                found.push((kind, payload.to_vec()));
            }
        }

        prop_assert_eq!(found, frames);
        prop_assert!(decoder.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic_the_decoder(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        with_magic in any::<bool>(),
    ) {
        let mut decoder = Decoder::new();
        if with_magic {
            decoder.push(b"LWF1");
        }
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.pop() {}
    }
}

#[test]
fn every_flipped_bit_of_a_frame_is_detected() {
    let good = encode(Kind::Ack, &[7; 16]);
    let follows = encode(Kind::Ping, &[1; 8]);
    for bit in 0..good.len() * 8 {
        let mut bytes = [&good[..], &follows[..]].concat();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);

        // A longer length of another kind may make it wait for more, never yield a frame.
        let found = decoder.pop();

        assert!(matches!(found, Err(_) | Ok(None)), "bit {bit}: {found:?}");
    }
}

#[test]
fn a_frame_cut_short_is_waited_for() {
    let whole = encode(Kind::Ping, &[1; 8]);
    for length in 0..whole.len() {
        let mut decoder = Decoder::new();
        decoder.push(&whole[..length]);

        assert_eq!(decoder.pop(), Ok(None), "{length} bytes");
        assert_eq!(decoder.is_empty(), length == 0);
    }
}

#[test]
fn peers_that_speak_something_else_are_told_so() {
    assert_eq!(pop_error(b"GET / HTTP/1.1\r\n"), FrameError::Http);
    assert_eq!(pop_error(b"POST"), FrameError::Http);
    assert_eq!(pop_error(b"HTTP/1.1 400 Bad Request"), FrameError::Http);
    assert_eq!(pop_error(&[0x16, 3, 1, 2, 0, 1]), FrameError::Tls);
    assert_eq!(pop_error(&[0x15, 3, 3, 0, 2]), FrameError::Tls);
    assert_eq!(pop_error(b"SSH-2.0"), FrameError::Magic { found: *b"SSH-" });
    assert_eq!(pop_error(b"LWF2"), FrameError::Magic { found: *b"LWF2" });
    let text = FrameError::Http.to_string();
    assert_eq!(text, "the peer speaks HTTP, this port takes Leeward sessions");
}

#[test]
fn a_length_outside_the_kind_is_refused_by_the_header_alone() {
    let header = |kind: u16, flags: u16, length: u32| {
        let mut bytes = b"LWF1".to_vec();
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        assert_eq!(bytes.len(), FRAME_HEADER_BYTES);
        bytes
    };
    for kind in Kind::ALL.iter().copied() {
        let (min, max) = (kind.payload_min() as u32, kind.payload_max() as u32);
        for length in [min - 1, max + 1, u32::MAX] {
            let error = pop_error(&header(kind as u16, 0, length));
            assert_eq!(error, FrameError::Length { kind, length });
        }
    }
    assert_eq!(pop_error(&header(2, 0, 8)), FrameError::Kind { number: 2 });
    let kind = Kind::Ping;
    assert_eq!(pop_error(&header(26, 1, 8)), FrameError::Flags { kind, flags: 1 });
}

#[test]
fn a_failed_decoder_stays_failed() {
    let mut decoder = Decoder::new();
    decoder.push(b"nonsense");
    let first = decoder.pop();

    decoder.push(&encode(Kind::Ping, &[1; 8]));

    assert_eq!(decoder.pop(), first);
    assert!(first.is_err());
}
