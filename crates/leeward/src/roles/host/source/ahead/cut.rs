//! One cut that waits: what it names is read, and what differs from what was cut before goes to the
//! spool as a point. Knows nothing of the store; what becomes of a failure is the caller's.

use crate::{
    roles::host::{
        source::{
            SourceError,
            cycle::{CutTime, marker_of},
        },
        spool::{
            Spool,
            delta::{DeltaReader, DeltaWriter, Next, SpoolError, SpoolSeal, UnusableError},
            room::NoRoom,
        },
    },
    sealing::{Differing, KeyedHasher, Ready, Sealing},
};
use leeward_capture::{
    AheadHashes, CaptureError, Cut, HashFiles, KnownExtents, PassError, PassInput, PassKind,
};
use leeward_model::{DiskEntry, MachineSpec, PointKind};
use leeward_wire::seal::QueueDepth;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Why a point that was to wait was not made.
pub(super) enum Failed {
    NoRoom(NoRoom),
    OtherDisks,
    /// The capture cannot go on as it is.
    Gone(SourceError),
    /// The next one may work.
    Once(SourceError),
}

impl Failed {
    pub(super) fn of_cut(error: CaptureError) -> Failed {
        match error {
            CaptureError::MachineGone | CaptureError::Refused { .. } => Failed::Gone(error.into()),
            CaptureError::SnapshotBroken
            | CaptureError::Io { .. }
            | CaptureError::Timeout { .. } => Failed::Once(error.into()),
        }
    }
}

impl From<SpoolError> for Failed {
    fn from(error: SpoolError) -> Failed {
        match error {
            SpoolError::NoRoom(error) => Failed::NoRoom(error),
            SpoolError::Files(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                Failed::NoRoom(NoRoom::Reserve)
            }
            SpoolError::Files(error) => Failed::Once(error.into()),
            // What lies over says now what nobody sends: the source begins anew.
            SpoolError::Lost(error) => {
                Failed::Gone(std::io::Error::other(error.to_string()).into())
            }
        }
    }
}

/// Whether the disks are what they were at the store's newest point.
fn same_disks(hashes: &HashFiles, disks: &[DiskEntry]) -> bool {
    let same = |disk: &DiskEntry| hashes.size(disk.number) == Some(disk.size);
    disks.len() == hashes.disks() && disks.iter().all(same)
}

/// What a cut that waits is made of.
pub(super) struct Cutting {
    pub(super) spool: Arc<Spool>,
    pub(super) disks: Vec<DiskEntry>,
    pub(super) hashes: Arc<AheadHashes>,
    pub(super) hasher: Arc<KeyedHasher>,
    pub(super) seal: SpoolSeal,
    pub(super) spec: MachineSpec,
}

/// Reads what a cut names, and lets what differs from what was cut before wait as a point.
pub(super) async fn write_cut(
    sealing: Sealing,
    cutting: Cutting,
    cut: Cut,
    time: &CutTime,
) -> Result<(), Failed> {
    let Cutting { spool, disks, hashes, hasher, seal, spec } = cutting;
    if !same_disks(hashes.hashes(), &disks) {
        return Err(Failed::OtherDisks);
    }
    let known: Arc<dyn KnownExtents> = hashes.clone();
    let input = PassInput {
        reader: cut.reader,
        disks: disks.clone(),
        hashes: known,
        hasher: hasher.clone(),
        kind: PassKind::Delta,
        workers: sealing.workers.clone(),
        cancel: CancellationToken::new(),
    };
    let mut pass = sealing.start(input, Arc::new(|_| {}));
    let (writing, wall) = (Arc::clone(&spool), time.wall);
    let mut writer = off(move || Ok(writing.write(&seal, wall)?)).await?;
    loop {
        let batch = match pass.next().await {
            Ok(Some(batch)) => batch,
            Ok(None) => break,
            Err(PassError::Capture(error)) => return Err(Failed::of_cut(error)),
            Err(error) => return Err(Failed::Once(error.into())),
        };
        let (packer, hasher) = (sealing.clone(), Arc::clone(&hasher));
        writer = off(move || {
            for found in batch.found {
                let ready = match found {
                    Differing::Ready(ready) => ready,
                    // Nobody can be asked which of its blocks the store has.
                    Differing::Unknown(found) => {
                        packer.ready(found, None, &*hasher, QueueDepth::default())
                    }
                };
                add(&mut writer, ready)?;
            }
            Ok(writer)
        })
        .await?;
    }
    let marker = marker_of(&spec, &disks, PointKind::CrashConsistent, time.wall);
    let stamp = time.server.clone();
    off(move || Ok(spool.add(writer, &marker, stamp, |reader| lay_over(&hashes, reader))?)).await
}

/// Notes what a delta that will wait makes of the machine.
fn lay_over(hashes: &AheadHashes, mut reader: DeltaReader) -> Result<(), UnusableError> {
    loop {
        match reader.next_part()? {
            Next::Changes(changes) => {
                for change in changes {
                    hashes.put(change.disk(), change.extent(), &change.record)?;
                }
            }
            Next::End(_) => return Ok(()),
        }
    }
}

/// Runs file work off the async threads.
async fn off<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(Failed::Once(PassError::Stopped.into())))
}

fn add(writer: &mut DeltaWriter, ready: Ready) -> Result<(), SpoolError> {
    match ready.packed {
        Some(packed) => writer.add(packed, &ready.record),
        None => Ok(()),
    }
}
