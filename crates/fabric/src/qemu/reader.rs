//! Reads a machine's disks through the NBD exports of its QEMU.
//!
//! Each disk has one connection, made when the read is opened; nothing is made again.

use super::blocks::export_name;
use crate::process::ProcessIdentity;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use leeward_capture::{ByteRange, CaptureError, DiskReader};
use leeward_model::{BLOCK_BYTES, DiskNumber};
use leeward_nbd::client::{Client, ClientError, ConnectOptions, connect_unix};
use leeward_nbd::protocol::PAYLOAD_BYTES_MAX;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

/// For one request. A disk that takes longer than this to read 1 MiB is as good as gone.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// The context that tells what may differ from zero.
const ALLOCATION: &str = "base:allocation";
/// In [`ALLOCATION`]: the extent reads as zero.
const READS_AS_ZERO: u32 = 2;
/// In a dirty bitmap's context: the extent was written.
const IS_DIRTY: u32 = 1;

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A snapshot, which may break.
    Snapshot,
    /// The disks themselves.
    Live,
}

/// A connection, and the context that names the disk's ranges.
struct Open {
    client: Client,
    context: String,
}

/// Open connections to the exports of some disks.
pub(crate) struct QemuReader {
    disks: BTreeMap<DiskNumber, Open>,
    source: Source,
    process: ProcessIdentity,
}

impl QemuReader {
    /// Connects to the exports of `disks`. The bitmap beside a disk names its ranges; without one
    /// they are what may differ from zero.
    pub async fn connect(
        socket: &Path,
        disks: Vec<(DiskNumber, Option<String>)>,
        source: Source,
        process: ProcessIdentity,
    ) -> Result<QemuReader, CaptureError> {
        let mut reader = QemuReader { disks: BTreeMap::new(), source, process };
        for (disk, bitmap) in disks {
            let context = match bitmap {
                Some(bitmap) => format!("qemu:dirty-bitmap:{bitmap}"),
                None => ALLOCATION.into(),
            };
            let options = ConnectOptions {
                export: export_name(disk),
                contexts: vec![context.clone()],
                call_deadline: REQUEST_DEADLINE,
            };
            let what = || format!("open disk {disk} for reading");
            let client = connect_unix(socket, options).await;
            let client = client.map_err(|error| reader.failed(what(), error))?;
            reader.disks.insert(disk, Open { client, context });
        }
        Ok(reader)
    }

    fn disk(&self, disk: DiskNumber) -> Result<&Open, CaptureError> {
        self.disks.get(&disk).ok_or_else(|| CaptureError::Refused {
            what: format!("read disk {disk}"),
            detail: "the machine has no such disk".into(),
        })
    }

    fn failed(&self, what: String, error: ClientError) -> CaptureError {
        match (&error, self.source) {
            // A snapshot that broke refuses every read; the disk below goes on.
            (ClientError::Refused { .. }, Source::Snapshot) => CaptureError::SnapshotBroken,
            (ClientError::Refused { .. } | ClientError::Invalid { .. }, _) => {
                CaptureError::Io { what, source: io::Error::other(error) }
            }
            (
                ClientError::Connect { .. }
                | ClientError::Negotiate { .. }
                | ClientError::Closed { .. },
                _,
            ) => match self.process.is_alive() {
                Ok(false) => CaptureError::MachineGone,
                Ok(true) | Err(_) => CaptureError::Io { what, source: io::Error::other(error) },
            },
        }
    }
}

#[async_trait]
impl DiskReader for QemuReader {
    async fn ranges(&self, disk: DiskNumber) -> Result<Vec<ByteRange>, CaptureError> {
        let Open { client, context } = self.disk(disk)?;
        let extents = client.map_all(context).await;
        let extents = extents
            .map_err(|error| self.failed(format!("list what to read of disk {disk}"), error))?;
        let counts = |flags: u32| match context == ALLOCATION {
            true => flags & READS_AS_ZERO == 0,
            false => flags & IS_DIRTY != 0,
        };
        let wanted = extents.into_iter().filter(|extent| counts(extent.flags));
        let ranges = wanted.map(|extent| ByteRange { offset: extent.offset, len: extent.len });
        Ok(whole_blocks(ranges, client.size()))
    }

    async fn read(&self, disk: DiskNumber, offset: u64, len: u64) -> Result<Bytes, CaptureError> {
        let Open { client, .. } = self.disk(disk)?;
        let step = u64::from(client.details().block_maximum.min(PAYLOAD_BYTES_MAX));
        let (mut at, end) = (offset, offset.saturating_add(len));
        let mut parts = Vec::new();
        while at < end {
            let part = (end - at).min(step);
            let read = client.read(at, part as u32).await; // At most the payload's maximum.
            let what = || format!("read {part} bytes at {at} of disk {disk}");
            parts.push(read.map_err(|error| self.failed(what(), error))?);
            at += part;
        }
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        let mut whole = BytesMut::with_capacity(len as usize);
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        Ok(whole.freeze())
    }
}

/// Widens ascending ranges to whole blocks and joins those that touch.
pub(crate) fn whole_blocks(
    ranges: impl IntoIterator<Item = ByteRange>,
    disk_bytes: u64,
) -> Vec<ByteRange> {
    let mut out: Vec<ByteRange> = Vec::new();
    for range in ranges {
        let start = range.offset - range.offset % BLOCK_BYTES;
        let end = range.end().div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES).min(disk_bytes);
        match out.last_mut() {
            Some(last) if last.end() >= start => last.len = end.max(last.end()) - last.offset,
            _ if end > start => out.push(ByteRange { offset: start, len: end - start }),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn widened_ranges_are_ascending_disjoint_aligned_and_cover_what_was_given(
            steps in proptest::collection::vec((0_u64..20_000, 1_u64..20_000), 0..20),
            tail in 0_u64..5000,
        ) {
            let mut at = 0;
            let mut given = Vec::new();
            for (gap, len) in steps {
                given.push(ByteRange { offset: at + gap, len });
                at += gap + len;
            }
            let size = at + tail;

            let wide = whole_blocks(given.clone(), size);

            for range in &wide {
                prop_assert_eq!(range.offset % BLOCK_BYTES, 0);
                prop_assert!(range.end() % BLOCK_BYTES == 0 || range.end() == size);
                prop_assert!(range.len > 0 && range.end() <= size);
            }
            prop_assert!(wide.windows(2).all(|pair| pair[0].end() < pair[1].offset));
            for range in given {
                let covers = |w: &ByteRange| w.offset <= range.offset && range.end() <= w.end();
                prop_assert!(wide.iter().any(covers));
            }
        }
    }
}
