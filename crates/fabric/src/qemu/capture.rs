//! The change source of a QEMU: dirty bitmaps, and points cut by copy-before-write filters that
//! one `blockdev-reopen` puts under all disks at once, without stopping the guest.
//!
//! Which bitmap means what is decided in `bitmaps`; the bytes are read in `reader`.

use super::bitmaps::{self, DiskBitmaps, LIVE, OPEN};
use super::blocks::{self, Node};
use super::reader::{QemuReader, Source, whole_blocks};
use super::scratch::Scratch;
use super::vm::Vm;
use crate::process::{self, ProcessIdentity};
use crate::qmp::{Qmp, QmpError};
use async_trait::async_trait;
use leeward_capture::{
    Attached, ByteRange, CaptureError, ChangeSource, Cut, CutEnd, DiskReader, LiveRead,
};
use leeward_model::{DiskEntry, DiskFormat, DiskNumber, Position};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After this long a write that waits for its block's copy goes on and the snapshot breaks.
const COPY_SECONDS_MAX: u32 = 5;
/// The oldest QEMU with `snapshot-access` and `cbw-timeout`.
const VERSION_MIN: (u32, u32) = (7, 1);

/// Which process the bitmaps were made in. Bitmaps of another one prove nothing.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaptureMark {
    process: ProcessIdentity,
}

/// The change source of one machine.
pub(crate) struct QemuCapture {
    vm: Vm,
    formats: BTreeMap<DiskNumber, DiskFormat>,
    scratch: Scratch,
}

impl QemuCapture {
    pub fn new(vm: Vm, formats: BTreeMap<DiskNumber, DiskFormat>, scratch: Scratch) -> Self {
        QemuCapture { vm, formats, scratch }
    }

    fn mark_path(&self) -> PathBuf {
        self.vm.run.join("capture.json")
    }

    fn numbers(&self) -> Vec<DiskNumber> {
        self.vm.disks.iter().map(|disk| disk.number).collect()
    }

    async fn process(&self) -> Result<ProcessIdentity, CaptureError> {
        match self.vm.process().await {
            Ok(Some(process)) => Ok(process),
            Ok(None) => Err(CaptureError::MachineGone),
            Err(detail) => {
                let what = format!("find the process of {}", self.vm.machine);
                Err(CaptureError::Refused { what, detail })
            }
        }
    }

    async fn qmp(&self) -> Result<Qmp, CaptureError> {
        let what = || format!("reach {}", self.vm.machine);
        let qmp = self.vm.qmp().await.map_err(|error| self.failed(what(), error))?;
        if qmp.version() < VERSION_MIN {
            let detail = format!("QEMU is {:?}, 7.1 is needed", qmp.version());
            return Err(CaptureError::Refused { what: what(), detail });
        }
        Ok(qmp)
    }

    fn failed(&self, what: String, error: QmpError) -> CaptureError {
        match error {
            QmpError::Refused { .. } | QmpError::PathTooLong(_) => {
                CaptureError::Refused { what, detail: error.to_string() }
            }
            QmpError::Deadline { .. } | QmpError::NoEvent { .. } => CaptureError::Timeout { what },
            QmpError::Connect { .. } | QmpError::NoGreeting(_) | QmpError::Closed(_) => {
                let mark = process::read_json::<process::Mark>(&self.vm.mark_path());
                match mark {
                    Ok(Some(mark)) if matches!(mark.process.is_alive(), Ok(true)) => {
                        CaptureError::Timeout { what }
                    }
                    Ok(_) | Err(_) => CaptureError::MachineGone,
                }
            }
        }
    }

    /// Runs one part of the work and says what it was if it fails.
    async fn part<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, QmpError>>,
    ) -> Result<T, CaptureError> {
        let what = || format!("{what} of {}", self.vm.machine);
        work.await.map_err(|error| self.failed(what(), error))
    }

    /// The captured disks' bitmaps as they are now.
    async fn bitmaps(&self, qmp: &Qmp) -> Result<Vec<DiskBitmaps>, QmpError> {
        let nodes = blocks::nodes(qmp).await?;
        let of = |disk: &DiskEntry| DiskBitmaps {
            disk: disk.number,
            format: self.formats.get(&disk.number).copied().unwrap_or(DiskFormat::Raw),
            bitmaps: find(&nodes, &blocks::format_node(disk.number))
                .map(|node| node.bitmaps.clone())
                .unwrap_or_default(),
        };
        Ok(self.vm.disks.iter().map(of).collect())
    }

    /// Checks that the machine has our nodes, and takes over the disks' present sizes.
    async fn look_at_disks(&mut self, qmp: &Qmp) -> Result<(), CaptureError> {
        let nodes = self.part("list the disks", blocks::nodes(qmp)).await?;
        for disk in &mut self.vm.disks {
            for name in [blocks::top_node(disk.number), blocks::format_node(disk.number)] {
                let Some(node) = find(&nodes, &name) else {
                    let what = format!("capture disk {}", disk.id);
                    let detail = format!("its QEMU has no node {name}");
                    return Err(CaptureError::Refused { what, detail });
                };
                disk.size = node.size;
            }
        }
        Ok(())
    }

    /// Removes everything of an open cut or live read but the bitmaps, whatever there is of it.
    async fn close_nodes(&self, qmp: &Qmp) -> Result<(), QmpError> {
        blocks::delete_exports(qmp).await?;
        let nodes = blocks::nodes(qmp).await?;
        let there = |name: &str| find(&nodes, name).is_some();
        let numbers = self.numbers();
        let of = |node: fn(DiskNumber) -> String| numbers.iter().copied().map(node);
        for name in of(blocks::access_node).filter(|name| there(name)) {
            blocks::delete_node(qmp, &name).await?;
        }
        let filtered = numbers.iter().filter(|disk| there(&blocks::filter_node(**disk)));
        // Onto the format node, also while a stream runs: its filter may be gone any moment.
        let plain = filtered.map(|disk| (*disk, blocks::format_node(*disk)));
        blocks::reopen_tops(qmp, plain).await?;
        let left = of(blocks::filter_node).chain(of(blocks::scratch_node));
        for name in left.filter(|name| there(name)) {
            blocks::delete_node(qmp, &name).await?;
        }
        self.scratch.clear(&numbers);
        Ok(())
    }

    /// Ends whatever is open so that everything it named counts as written again.
    async fn abandon(&self, qmp: &Qmp) -> Result<(), QmpError> {
        self.close_nodes(qmp).await?;
        let disks = self.bitmaps(qmp).await?;
        if disks.iter().any(|disk| disk.has(OPEN) || disk.has(LIVE)) {
            blocks::transaction(qmp, bitmaps::merge_all(&disks)).await?;
        }
        Ok(())
    }

    /// Puts the filters in, at one instant for all disks; returns how long that took.
    async fn insert_filters(&self, qmp: &Qmp, scratch: &[PathBuf]) -> Result<Duration, QmpError> {
        for (disk, file) in self.vm.disks.iter().zip(scratch) {
            let number = disk.number;
            let target = blocks::scratch_node(number);
            let file = json!({"driver": "file", "filename": file});
            let capped = json!({"driver": "raw", "size": self.scratch.cap(disk.size),
                                "file": file});
            let node = json!({"driver": "qcow2", "node-name": target, "file": capped});
            blocks::add_node(qmp, node).await?;
            let filter = json!({
                "driver": "copy-before-write",
                "node-name": blocks::filter_node(number),
                "file": blocks::format_node(number),
                "target": target,
                "on-cbw-error": "break-snapshot",
                "cbw-timeout": COPY_SECONDS_MAX,
            });
            blocks::add_node(qmp, filter).await?;
        }
        let before = self.bitmaps(qmp).await?;
        // First the new bitmaps, then the cut, then the old ones stand still: a write in between
        // is in both, so it is sent now or with the next point, or twice, but never not at all.
        blocks::transaction(qmp, bitmaps::add_open(&before)).await?;
        let tops = self.numbers().into_iter().map(|disk| (disk, blocks::filter_node(disk)));
        let start = Instant::now();
        blocks::reopen_tops(qmp, tops).await?;
        let pause = start.elapsed();
        blocks::transaction(qmp, bitmaps::disable_points(&before)).await?;
        Ok(pause)
    }

    async fn open_cut(&self, qmp: &Qmp) -> Result<Cut, CaptureError> {
        let process = self.process().await?;
        let mut scratch = Vec::new();
        for disk in &self.vm.disks {
            let made = self.scratch.make(disk.number, disk.size).await;
            let what = || format!("make scratch space for disk {}", disk.id);
            scratch.push(made.map_err(|source| CaptureError::Io { what: what(), source })?);
        }
        let pause = self.part("cut the disks", self.insert_filters(qmp, &scratch)).await?;
        let disks = self.part("list the bitmaps", self.bitmaps(qmp)).await?;
        let mut dirty_bytes = 0;
        let mut named = Vec::new();
        for disk in &disks {
            let Some((bitmap, _)) = disk.oldest_point() else {
                let what = format!("cut disk {}", disk.disk);
                return Err(CaptureError::Refused { what, detail: "it has no bitmap".into() });
            };
            dirty_bytes += bitmap.bytes;
            named.push((disk.disk, Some(bitmap.name.clone())));
            let access = blocks::access_node(disk.disk);
            let node = json!({"driver": "snapshot-access", "node-name": access,
                              "file": blocks::filter_node(disk.disk)});
            self.part("open the cut", blocks::add_node(qmp, node)).await?;
            let export = blocks::add_export(qmp, disk.disk, &access, Some(&bitmap.name));
            self.part("export the cut", export).await?;
        }
        let reader = self.connect(named, Source::Snapshot, process).await?;
        Ok(Cut { reader: Arc::new(reader), pause, dirty_bytes })
    }

    async fn connect(
        &self,
        disks: Vec<(DiskNumber, Option<String>)>,
        source: Source,
        process: ProcessIdentity,
    ) -> Result<QemuReader, CaptureError> {
        QemuReader::connect(&self.vm.nbd_socket(), disks, source, process).await
    }

    async fn open_live_exports(
        &self,
        qmp: &Qmp,
        which: LiveRead,
    ) -> Result<QemuReader, CaptureError> {
        let process = self.process().await?;
        let bitmap = match which {
            LiveRead::Everything => None,
            LiveRead::Dirty => {
                // QEMU exports no recording bitmap beside a writer, so a copy of it stands still.
                let disks = self.part("list the bitmaps", self.bitmaps(qmp)).await?;
                let copy = blocks::transaction(qmp, bitmaps::copy_for_reading(&disks));
                self.part("copy the bitmaps", copy).await?;
                Some(LIVE)
            }
        };
        let mut named = Vec::new();
        for disk in self.numbers() {
            named.push((disk, bitmap.map(str::to_owned)));
            // Through the top node, a stream would copy into the overlay whatever is read.
            let node = blocks::format_node(disk);
            let export = blocks::add_export(qmp, disk, &node, bitmap);
            self.part("export the disks", export).await?;
        }
        self.connect(named, Source::Live, process).await
    }

    /// What was written since the newest committed point, for a machine whose guest stands still.
    /// Leaves the bitmaps as they are; exports of an open cut end.
    pub async fn note_changes(&self) -> Result<Vec<(DiskNumber, Vec<ByteRange>)>, CaptureError> {
        let qmp = self.qmp().await?;
        let known: Option<CaptureMark> = process::read_json(&self.mark_path()).unwrap_or_default();
        if known != Some(CaptureMark { process: self.process().await? }) {
            let what = format!("note the changes of {}", self.vm.machine);
            return Err(CaptureError::Refused { what, detail: "it was not captured".into() });
        }
        self.part("start to read", blocks::start_nbd_server(&qmp, &self.vm.nbd_socket())).await?;
        self.part("end the cut", self.abandon(&qmp)).await?;
        let disks = self.part("list the bitmaps", self.bitmaps(&qmp)).await?;
        let nowhere = |disk: &DiskBitmaps| {
            disk.oldest_point()
                .is_none_or(|(bitmap, place)| bitmap.inconsistent || place.timeline.as_u128() == 0)
        };
        if disks.iter().any(nowhere) {
            let what = format!("note the changes of {}", self.vm.machine);
            let detail = "its bitmaps do not start at a recovery point".into();
            return Err(CaptureError::Refused { what, detail });
        }
        let reader = self.open_live_exports(&qmp, LiveRead::Dirty).await?;
        let mut noted = Vec::new();
        for disk in &self.vm.disks {
            let ranges = whole_blocks(reader.ranges(disk.number).await?, disk.size);
            noted.push((disk.number, ranges));
        }
        Ok(noted)
    }
}

fn find<'a>(nodes: &'a [Node], name: &str) -> Option<&'a Node> {
    nodes.iter().find(|node| node.name == name)
}

#[async_trait]
impl ChangeSource for QemuCapture {
    fn disks(&self) -> Vec<DiskEntry> {
        self.vm.disks.clone()
    }

    async fn attach(&mut self, base: Option<Position>) -> Result<Attached, CaptureError> {
        let qmp = self.qmp().await?;
        self.look_at_disks(&qmp).await?;
        self.part("start to read", blocks::start_nbd_server(&qmp, &self.vm.nbd_socket())).await?;
        self.part("end an earlier cut", self.close_nodes(&qmp)).await?;
        let disks = self.part("list the bitmaps", self.bitmaps(&qmp)).await?;
        let mark = CaptureMark { process: self.process().await? };
        let file = |source: process::ProcessError| CaptureError::Io {
            what: format!("keep the mark of the bitmaps of {}", self.vm.machine),
            source: io::Error::other(source),
        };
        let known: Option<CaptureMark> = process::read_json(&self.mark_path()).map_err(file)?;
        let gap = match known {
            Some(known) if known == mark => bitmaps::gap(&disks, base),
            Some(_) => Some("QEMU was restarted".into()),
            None => Some("the machine was not captured before".into()),
        };
        let Some(reason) = gap else {
            let merge = blocks::transaction(&qmp, bitmaps::merge_all(&disks));
            self.part("merge the bitmaps", merge).await?;
            return Ok(Attached::Continues);
        };
        // Without its mark nothing counts, so a crash between these steps ends here again.
        let removed = std::fs::remove_file(self.mark_path());
        if let Err(source) = removed
            && source.kind() != io::ErrorKind::NotFound
        {
            let what = format!("forget the bitmaps of {}", self.vm.machine);
            return Err(CaptureError::Io { what, source });
        }
        let fresh = async {
            blocks::transaction(&qmp, bitmaps::remove_all(&disks)).await?;
            blocks::transaction(&qmp, bitmaps::add_fresh(&disks)).await
        };
        self.part("add the bitmaps", fresh).await?;
        process::write_json(&self.mark_path(), &mark).map_err(file)?;
        Ok(Attached::NeedsFullRead(reason))
    }

    async fn open_live(&mut self, which: LiveRead) -> Result<Arc<dyn DiskReader>, CaptureError> {
        let qmp = self.qmp().await?;
        Ok(Arc::new(self.open_live_exports(&qmp, which).await?))
    }

    async fn close_live(&mut self) -> Result<(), CaptureError> {
        let qmp = self.qmp().await?;
        self.part("end the live read", self.abandon(&qmp)).await
    }

    async fn dirty_bytes(&mut self) -> Result<u64, CaptureError> {
        let qmp = self.qmp().await?;
        let disks = self.part("list the bitmaps", self.bitmaps(&qmp)).await?;
        let points = disks.iter().filter_map(|disk| disk.oldest_point());
        Ok(points.map(|(bitmap, _)| bitmap.bytes).sum())
    }

    async fn cut(&mut self) -> Result<Cut, CaptureError> {
        let qmp = self.qmp().await?;
        let opened = self.open_cut(&qmp).await;
        if opened.is_err()
            && let Err(error) = self.abandon(&qmp).await
        {
            tracing::warn!(machine = %self.vm.machine, %error, "a failed cut was left open");
        }
        opened
    }

    async fn close_cut(&mut self, end: CutEnd) -> Result<(), CaptureError> {
        let qmp = self.qmp().await?;
        match end {
            CutEnd::Abandoned => self.part("abandon the cut", self.abandon(&qmp)).await,
            CutEnd::Committed(position) => {
                let commit = async {
                    self.close_nodes(&qmp).await?;
                    let disks = self.bitmaps(&qmp).await?;
                    blocks::transaction(&qmp, bitmaps::commit(&disks, position)).await
                };
                self.part("close the cut", commit).await
            }
        }
    }

    async fn detach(&mut self) -> Result<(), CaptureError> {
        let removed = std::fs::remove_file(self.mark_path());
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            let what = format!("forget the bitmaps of {}", self.vm.machine);
            return Err(CaptureError::Io { what, source: error });
        }
        let qmp = match self.qmp().await {
            Err(CaptureError::MachineGone) => return Ok(()), // Everything went with the process.
            qmp => qmp?,
        };
        let remove = async {
            self.close_nodes(&qmp).await?;
            let disks = self.bitmaps(&qmp).await?;
            blocks::transaction(&qmp, bitmaps::remove_all(&disks)).await
        };
        self.part("end the capture", remove).await
    }
}
