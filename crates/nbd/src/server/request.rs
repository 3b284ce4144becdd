//! Decides what a request asks for and whether it may: pure, and strict about every edge.
//!
//! Does not perform anything; see connection.

use super::export::{BlockSizes, Export, ExportExtent, HoleRule};
use crate::protocol::transmission::{Descriptor, Request};
use crate::protocol::{Errno, command, command_flags};

/// What the checks need to know about an export and what was negotiated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub size: u64,
    pub access: Access,
    pub blocks: BlockSizes,
    pub replies: Replies,
    pub status: Status,
}

/// Whether an export takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

impl Access {
    pub(super) fn of(export: &dyn Export) -> Self {
        if export.read_only() { Access::ReadOnly } else { Access::ReadWrite }
    }
}

/// The form of replies that was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replies {
    Simple,
    Structured,
}

/// Whether `base:allocation` was negotiated for this export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Available,
    Unavailable,
}

/// How many extents a status request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extents {
    One,
    Several,
}

/// When a change must be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durable {
    AtFlush,
    BeforeReply,
}

/// A request that passed every check. Ranges are not empty and lie within the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Succeeds without doing anything: an empty range.
    Nothing,
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        durable: Durable,
    },
    Flush,
    Trim {
        offset: u64,
        len: u32,
        durable: Durable,
    },
    WriteZeroes {
        offset: u64,
        len: u32,
        hole: HoleRule,
        durable: Durable,
    },
    Status {
        offset: u64,
        len: u32,
        extents: Extents,
    },
}

/// Why a request is refused.
pub(super) type Refusal = (Errno, &'static str);

/// Checks `request` (anything but a disconnect) against `rules`.
pub(super) fn check(request: &Request, rules: &Rules) -> Result<Action, Refusal> {
    check_flags(request, rules)?;
    let writes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if writes && rules.access == Access::ReadOnly {
        return Err((Errno::PERM, "the export is read-only"));
    }
    let Request { offset, len, flags, .. } = *request;
    if request.command == command::FLUSH {
        return match (offset, len) {
            (0, 0) => Ok(Action::Flush),
            _ => Err((Errno::INVAL, "a flush concerns no range")),
        };
    }
    check_range(request, rules)?;
    let durable = match flags & command_flags::FUA {
        0 => Durable::AtFlush,
        _ => Durable::BeforeReply,
    };
    match request.command {
        command::BLOCK_STATUS if rules.status == Status::Unavailable => {
            Err((Errno::INVAL, "no metadata context was negotiated"))
        }
        command::BLOCK_STATUS if len == 0 => Err((Errno::INVAL, "the range is empty")),
        _ if len == 0 => Ok(Action::Nothing),
        command::READ => Ok(Action::Read { offset, len }),
        command::WRITE => Ok(Action::Write { offset, durable }),
        command::TRIM => Ok(Action::Trim { offset, len, durable }),
        command::WRITE_ZEROES => {
            let hole = match flags & command_flags::NO_HOLE {
                0 => HoleRule::MayPunch,
                _ => HoleRule::KeepAllocated,
            };
            Ok(Action::WriteZeroes { offset, len, hole, durable })
        }
        command::BLOCK_STATUS => {
            let extents = match flags & command_flags::REQ_ONE {
                0 => Extents::Several,
                _ => Extents::One,
            };
            Ok(Action::Status { offset, len, extents })
        }
        _ => Err((Errno::INVAL, "the command is not known")),
    }
}

fn check_flags(request: &Request, rules: &Rules) -> Result<(), Refusal> {
    let own = match (request.command, rules.replies) {
        (command::READ, Replies::Structured) => command_flags::DF,
        (command::WRITE_ZEROES, _) => command_flags::NO_HOLE,
        (command::BLOCK_STATUS, _) => command_flags::REQ_ONE,
        (command::READ | command::WRITE | command::FLUSH | command::TRIM, _) => 0,
        _ => return Err((Errno::INVAL, "the command is not known")),
    };
    // FUA is offered, so it is valid, if without effect, on every command.
    if request.flags & !(own | command_flags::FUA) != 0 {
        return Err((Errno::INVAL, "a flag is not valid for this command"));
    }
    Ok(())
}

fn check_range(request: &Request, rules: &Rules) -> Result<(), Refusal> {
    let Request { offset, len, command, .. } = *request;
    let end = offset.checked_add(len.into());
    if end.is_none_or(|end| end > rules.size) {
        return match command {
            command::WRITE | command::WRITE_ZEROES => Err((Errno::NOSPC, "beyond the end")),
            _ => Err((Errno::INVAL, "beyond the end")),
        };
    }
    let minimum = rules.blocks.minimum;
    if !offset.is_multiple_of(minimum.into()) || !len.is_multiple_of(minimum) {
        return Err((Errno::INVAL, "not aligned to the minimum block size"));
    }
    if matches!(command, command::READ | command::WRITE) && len > rules.blocks.maximum {
        return Err((Errno::INVAL, "more than the maximum block size"));
    }
    Ok(())
}

/// Most extents in one reply: 512 KiB of descriptors; clients ask again from where it ends.
const EXTENTS_MAX: usize = 65_536;

/// Turns the extents an export told for a range of `len` bytes into descriptors for the wire.
///
/// Neighbours of the same state become one. Never empty, never longer than `len`.
pub(super) fn descriptors(told: &[ExportExtent], len: u32, extents: Extents) -> Vec<Descriptor> {
    let most = match extents {
        Extents::One => 1,
        Extents::Several => EXTENTS_MAX,
    };
    let mut out: Vec<Descriptor> = Vec::new();
    let mut left = len;
    for extent in told {
        if left == 0 || extent.len == 0 {
            break;
        }
        let len = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        let flags = extent.allocation.flags();
        let full = out.len() == most;
        match out.last_mut() {
            // Cannot overflow: all lengths together are at most the length of the request.
            Some(last) if last.flags == flags => last.len += len,
            _ if full => break,
            _ => out.push(Descriptor { len, flags }),
        }
        left -= len;
    }
    if out.is_empty() {
        out.push(Descriptor { len, flags: 0 });
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::server::Allocation;

    const SIZE: u64 = 1 << 20;

    fn rules() -> Rules {
        Rules {
            size: SIZE,
            access: Access::ReadWrite,
            blocks: BlockSizes { minimum: 512, preferred: 4096, maximum: 65_536 },
            replies: Replies::Structured,
            status: Status::Available,
        }
    }

    fn ask(command: u16, flags: u16, offset: u64, len: u32) -> Result<Action, u32> {
        let request = Request { flags, command, cookie: 1, offset, len };
        check(&request, &rules()).map_err(|(errno, _)| errno.0)
    }

    #[test]
    fn ranges_that_overflow_or_pass_the_end_are_refused() {
        for (offset, len) in
            [(u64::MAX, 512), (u64::MAX - 511, 512), (SIZE, 512), (SIZE - 512, 1024)]
        {
            assert_eq!(ask(command::READ, 0, offset, len), Err(22));
            assert_eq!(ask(command::TRIM, 0, offset, len), Err(22));
            assert_eq!(ask(command::BLOCK_STATUS, 0, offset, len), Err(22));
            assert_eq!(ask(command::WRITE, 0, offset, len), Err(28));
            assert_eq!(ask(command::WRITE_ZEROES, 0, offset, len), Err(28));
        }
        let last = SIZE - 512;
        assert_eq!(ask(command::READ, 0, last, 512), Ok(Action::Read { offset: last, len: 512 }));
    }

    #[test]
    fn empty_ranges_do_nothing_and_empty_status_is_refused() {
        assert_eq!(ask(command::READ, 0, SIZE, 0), Ok(Action::Nothing));
        assert_eq!(ask(command::WRITE, 0, 0, 0), Ok(Action::Nothing));
        assert_eq!(ask(command::TRIM, 0, 0, 0), Ok(Action::Nothing));
        assert_eq!(ask(command::WRITE_ZEROES, 0, 0, 0), Ok(Action::Nothing));
        assert_eq!(ask(command::READ, 0, SIZE + 512, 0), Err(22));
        assert_eq!(ask(command::BLOCK_STATUS, 0, 0, 0), Err(22));
    }

    #[test]
    fn unaligned_and_too_long_requests_are_refused() {
        assert_eq!(ask(command::READ, 0, 1, 512), Err(22));
        assert_eq!(ask(command::READ, 0, 0, 511), Err(22));
        assert_eq!(ask(command::WRITE, 0, 100, 512), Err(22));
        assert_eq!(ask(command::READ, 0, 0, 65_536 + 512), Err(22));
        assert_eq!(ask(command::WRITE, 0, 0, 65_536 + 512), Err(22));
        assert!(ask(command::TRIM, 0, 0, SIZE as u32).is_ok());
        assert!(ask(command::BLOCK_STATUS, 0, 0, SIZE as u32).is_ok());
    }

    #[test]
    fn flags_are_refused_where_they_mean_nothing() {
        assert_eq!(ask(command::WRITE, command_flags::DF, 0, 512), Err(22));
        assert_eq!(ask(command::READ, command_flags::REQ_ONE, 0, 512), Err(22));
        assert_eq!(ask(command::READ, 1 << 15, 0, 512), Err(22));
        assert_eq!(ask(command::WRITE_ZEROES, 1 << 4, 0, 512), Err(22));
        assert!(ask(command::READ, command_flags::DF | command_flags::FUA, 0, 512).is_ok());
        let simple = Rules { replies: Replies::Simple, ..rules() };
        let request = Request { flags: 4, command: 0, cookie: 1, offset: 0, len: 512 };
        assert!(check(&request, &simple).is_err());
    }

    #[test]
    fn a_read_only_export_refuses_every_change() {
        let rules = Rules { access: Access::ReadOnly, ..rules() };
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            let request = Request { flags: 0, command, cookie: 1, offset: 0, len: 0 };
            assert_eq!(check(&request, &rules).map_err(|refusal| refusal.0), Err(Errno::PERM));
        }
    }

    #[test]
    fn unknown_commands_flush_with_a_range_and_status_without_context_are_refused() {
        assert_eq!(ask(5, 0, 0, 512), Err(22));
        assert_eq!(ask(u16::MAX, 0, 0, 512), Err(22));
        assert_eq!(ask(command::FLUSH, 0, 512, 0), Err(22));
        assert_eq!(ask(command::FLUSH, 0, 0, 0), Ok(Action::Flush));
        let rules = Rules { status: Status::Unavailable, ..rules() };
        let request = Request { flags: 0, command: 7, cookie: 1, offset: 0, len: 512 };
        assert!(check(&request, &rules).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_within_the_export(
            flags: u16, command in 0..9u16, len: u32,
            offset in prop_oneof![any::<u64>(), 0..2 * SIZE],
        ) {
            let request = Request { flags, command, cookie: 1, offset, len };
            if let Ok(action) = check(&request, &rules()) && action != Action::Flush {
                prop_assert!(u128::from(offset) + u128::from(len) <= u128::from(SIZE));
                prop_assert!(offset % 512 == 0 && len % 512 == 0);
            }
        }

        #[test]
        fn descriptors_never_exceed_the_request_nor_claim_zeroes_where_none_were_told(
            told in prop::collection::vec((0..100u64, 0..3u8), 0..12), len in 1..400u32,
        ) {
            let told: Vec<_> = told.into_iter().map(|(len, kind)| ExportExtent {
                len,
                allocation: [Allocation::Data, Allocation::Zero, Allocation::Hole][kind as usize],
            }).collect();
            let truth: Vec<u32> = told.iter().take_while(|extent| extent.len > 0)
                .flat_map(|extent| vec![extent.allocation.flags(); extent.len as usize]).collect();

            for extents in [Extents::One, Extents::Several] {
                let out = descriptors(&told, len, extents);

                let flat: Vec<u32> = out.iter()
                    .flat_map(|extent| vec![extent.flags; extent.len as usize]).collect();
                prop_assert!(!flat.is_empty() && flat.len() <= len as usize);
                prop_assert!(out.iter().all(|extent| extent.len > 0));
                prop_assert!(extents == Extents::Several || out.len() == 1);
                if !truth.is_empty() {
                    prop_assert_eq!(&flat[..], &truth[..flat.len()]);
                } else {
                    prop_assert!(flat.iter().all(|flags| *flags == 0));
                }
            }
        }
    }
}
