//! Puts an answer together from the parts in which a server sends it, and checks all of them.
//!
//! Pure: it reads no stream. A server can make it neither panic, nor hold more than a constant
//! times what was asked for, nor return data with a gap.

use std::mem;

use bytes::{Bytes, BytesMut};

use crate::protocol::transmission::{Chunk, Descriptor};
use crate::protocol::{Errno, META_CHUNK_BYTES_MAX, WireError, chunk_kind};

/// Most parts of one read: one for each sector of the longest, twice over.
const PARTS_MAX: usize = 128 * 1024;

/// A complete answer of a server that did as asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The data of a read, as many bytes as asked for.
    Data(Bytes),
    /// For each context asked about: its number and extents, never past the range asked for.
    Status(Vec<(u32, Vec<Descriptor>)>),
    /// Nothing but success.
    Done,
}

/// An answer, or the server's error number and words.
pub(super) type Outcome = Result<Answer, (Errno, String)>;

enum Part {
    Data(Bytes),
    Zeroes(u32),
}

/// What is expected of a reply, and what has come of it.
pub(super) struct Expected {
    kind: Kind,
    error: Option<(Errno, String)>,
}

enum Kind {
    Read { offset: u64, len: u32, held: u64, parts: Vec<(u64, Part)> },
    Status { contexts: Vec<u32>, len: u32, told: Vec<(u32, Vec<Descriptor>)> },
    Done,
}

fn wrong(problem: impl Into<String>) -> WireError {
    WireError::Value { message: "a reply", problem: problem.into() }
}

impl Expected {
    pub(super) fn read(offset: u64, len: u32) -> Self {
        Expected { kind: Kind::Read { offset, len, held: 0, parts: Vec::new() }, error: None }
    }

    pub(super) fn status(contexts: Vec<u32>, len: u32) -> Self {
        Expected { kind: Kind::Status { contexts, len, told: Vec::new() }, error: None }
    }

    pub(super) fn done() -> Self {
        Expected { kind: Kind::Done, error: None }
    }

    /// Tells how many bytes of data follow a simple reply without error.
    pub(super) fn simple_len(&self) -> u32 {
        match self.kind {
            Kind::Read { len, .. } => len,
            Kind::Status { .. } | Kind::Done => 0,
        }
    }

    /// Tells how long the payload of a chunk of this kind may be, before it is read.
    pub(super) fn payload_max(&self, kind: u16) -> u32 {
        match (kind, &self.kind) {
            (chunk_kind::OFFSET_DATA, Kind::Read { len, .. }) => len.saturating_add(8),
            (chunk_kind::OFFSET_DATA, _) => 0,
            _ => META_CHUNK_BYTES_MAX,
        }
    }

    /// Turns a simple reply, with data as long as [`Expected::simple_len`], into an answer.
    pub(super) fn simple(self, error: Option<Errno>, data: Bytes) -> Result<Outcome, WireError> {
        match (error, self.kind) {
            (Some(errno), _) => Ok(Err((errno, String::new()))),
            (None, Kind::Read { .. }) => Ok(Ok(Answer::Data(data))),
            (None, Kind::Done) => Ok(Ok(Answer::Done)),
            (None, Kind::Status { .. }) => Err(wrong("a block status without extents")),
        }
    }

    /// Takes one chunk.
    pub(super) fn add(&mut self, chunk: Chunk) -> Result<(), WireError> {
        match (chunk, &mut self.kind) {
            (Chunk::None, _) => Ok(()),
            (Chunk::Error { errno, message, .. }, _) => {
                self.error.get_or_insert((errno, message));
                Ok(())
            }
            (Chunk::Data { offset, data }, Kind::Read { .. }) => {
                self.add_part(offset, data.len() as u64, Part::Data(data))
            }
            (Chunk::Hole { offset, len }, Kind::Read { .. }) => {
                self.add_part(offset, len.into(), Part::Zeroes(len))
            }
            (Chunk::Status { context, extents }, Kind::Status { contexts, len, told }) => {
                if !contexts.contains(&context) || told.iter().any(|(id, _)| *id == context) {
                    return Err(wrong(format!("context {context} is unknown or told twice")));
                }
                told.push((context, clamp(extents, *len)?));
                Ok(())
            }
            _ => Err(wrong("a chunk that does not belong to the request")),
        }
    }

    fn add_part(&mut self, at: u64, part_len: u64, part: Part) -> Result<(), WireError> {
        let Kind::Read { offset, len, held, parts } = &mut self.kind else {
            unreachable!("only a read takes parts")
        };
        let start = at.checked_sub(*offset);
        let inside = start
            .and_then(|start| start.checked_add(part_len))
            .is_some_and(|end| end <= u64::from(*len));
        // What is held may not exceed the range, else some of it overlaps.
        if !inside || *held + part_len > u64::from(*len) || parts.len() == PARTS_MAX {
            return Err(wrong("data outside the range asked for, twice, or in too many parts"));
        }
        *held += part_len;
        parts.push((at, part));
        Ok(())
    }

    /// Ends a structured reply.
    pub(super) fn finish(self) -> Result<Outcome, WireError> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        match self.kind {
            Kind::Read { offset, len, parts, .. } => {
                Ok(Ok(Answer::Data(joined(offset, len, parts)?)))
            }
            Kind::Status { contexts, told, .. } if told.len() == contexts.len() => {
                Ok(Ok(Answer::Status(told)))
            }
            Kind::Status { .. } => Err(wrong("a metadata context is missing")),
            Kind::Done => Ok(Ok(Answer::Done)),
        }
    }
}

fn joined(offset: u64, len: u32, mut parts: Vec<(u64, Part)>) -> Result<Bytes, WireError> {
    let gap = || wrong("the data has a gap or overlaps");
    if let [(at, Part::Data(data))] = &mut parts[..] {
        // Nearly always all in one piece, which then need not be copied.
        let whole = *at == offset && data.len() == len as usize;
        return if whole { Ok(mem::take(data)) } else { Err(gap()) };
    }
    parts.sort_by_key(|(at, _)| *at);
    let mut out = BytesMut::with_capacity(len as usize);
    for (at, part) in parts {
        if at != offset + out.len() as u64 {
            return Err(gap());
        }
        match part {
            Part::Data(data) => out.extend_from_slice(&data),
            Part::Zeroes(count) => out.resize(out.len() + count as usize, 0),
        }
    }
    if out.len() != len as usize {
        return Err(gap());
    }
    Ok(out.freeze())
}

/// Cuts the last extent to the range asked for; only that one may go beyond.
fn clamp(mut extents: Vec<Descriptor>, len: u32) -> Result<Vec<Descriptor>, WireError> {
    let mut left = len;
    for extent in &mut extents {
        if left == 0 {
            return Err(wrong("an extent after the range asked for"));
        }
        extent.len = extent.len.min(left);
        left -= extent.len;
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(offset: u64, bytes: &[u8]) -> Chunk {
        Chunk::Data { offset, data: Bytes::copy_from_slice(bytes) }
    }

    #[test]
    fn parts_in_any_order_become_one_piece() {
        let mut expected = Expected::read(100, 8);

        expected.add(data(106, b"gh")).unwrap();
        expected.add(Chunk::Hole { offset: 102, len: 4 }).unwrap();
        expected.add(data(100, b"ab")).unwrap();

        let whole = Bytes::from_static(b"ab\0\0\0\0gh");
        assert_eq!(expected.finish(), Ok(Ok(Answer::Data(whole))));
    }

    #[test]
    fn gaps_overlaps_and_data_outside_are_refused() {
        let mut gap = Expected::read(100, 8);
        gap.add(data(100, b"abcd")).unwrap();
        assert!(gap.finish().is_err());

        let mut overlap = Expected::read(100, 8);
        overlap.add(data(100, b"abcd")).unwrap();
        overlap.add(data(102, b"abcd")).unwrap();
        assert!(overlap.finish().is_err());

        assert!(Expected::read(100, 8).finish().is_err());
        assert!(Expected::read(100, 8).add(data(99, b"a")).is_err());
        assert!(Expected::read(100, 8).add(data(107, b"ab")).is_err());
        assert!(Expected::read(100, 8).add(Chunk::Hole { offset: u64::MAX, len: 9 }).is_err());
    }

    #[test]
    fn an_error_chunk_wins_over_data() {
        let mut expected = Expected::read(0, 2);

        expected.add(data(0, b"ab")).unwrap();
        expected
            .add(Chunk::Error { errno: Errno::IO, message: "bad".into(), offset: Some(1) })
            .unwrap();

        assert_eq!(expected.finish(), Ok(Err((Errno::IO, "bad".into()))));
    }

    #[test]
    fn the_last_extent_is_cut_and_one_after_the_range_refused() {
        let extent = |len| Descriptor { len, flags: 1 };
        let status = |extents| Chunk::Status { context: 7, extents };

        let mut expected = Expected::status(vec![7], 100);
        expected.add(status(vec![extent(60), extent(60)])).unwrap();
        let told = vec![(7, vec![extent(60), extent(40)])];
        assert_eq!(expected.finish(), Ok(Ok(Answer::Status(told))));

        let mut expected = Expected::status(vec![7], 100);
        assert!(expected.add(status(vec![extent(100), extent(1)])).is_err());
        assert!(Expected::status(vec![7], 100).finish().is_err());
        assert!(Expected::status(vec![8], 100).add(status(vec![extent(1)])).is_err());
    }

    proptest! {
        #[test]
        fn whatever_chunks_come_a_read_returns_all_bytes_or_an_error(
            chunks in prop::collection::vec(
                (90..120u64, 1..12u32, any::<bool>()), 0..6
            )
        ) {
            let mut expected = Expected::read(100, 10);
            let mut seen = [0u8; 10];
            let mut refused = false;
            for (offset, len, hole) in chunks {
                let chunk = if hole {
                    Chunk::Hole { offset, len }
                } else {
                    data(offset, &vec![1; len as usize])
                };
                match expected.add(chunk) {
                    Ok(()) => {
                        let start = (offset - 100) as usize;
                        seen[start..start + len as usize].iter_mut().for_each(|n| *n += 1);
                    }
                    Err(_) => { refused = true; break }
                }
            }
            if !refused {
                let exact = seen.iter().all(|count| *count == 1);
                let outcome = expected.finish();
                prop_assert_eq!(outcome.is_ok(), exact);
                if let Ok(Ok(Answer::Data(bytes))) = outcome {
                    prop_assert_eq!(bytes.len(), 10);
                }
            }
        }
    }
}
