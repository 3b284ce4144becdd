//! A double of a running machine: disks in memory whose writes are tracked as a hypervisor does.
//!
//! Implements [`ChangeSource`] truthfully, faults included. It is no hypervisor: nothing here says
//! how QEMU behaves.

use crate::source::{
    Attached, ByteRange, CaptureError, ChangeSource, Cut, CutEnd, DiskReader, LiveRead,
};
use async_trait::async_trait;
use bytes::Bytes;
use leeward_model::{DiskEntry, DiskNumber, Position};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Granularity of the change map in bytes: QEMU's default for bitmaps.
const GRANULE: u64 = 65_536;
/// What [`Cut::pause`] says; nothing waits that long.
const PAUSE: Duration = Duration::from_micros(400);

type Granules = BTreeSet<u64>;

#[derive(Clone)]
struct Disk {
    entry: DiskEntry,
    content: Arc<Vec<u8>>,
    allocated: Granules,
    present: bool,
    was_shrunk: bool,
    /// Written since the last cut, or since the attach.
    dirty: Granules,
    /// Named by the open cut.
    frozen: Granules,
}

struct OpenCut {
    disks: BTreeMap<DiskNumber, Arc<Vec<u8>>>,
    broken: bool,
}

#[derive(Default)]
struct State {
    disks: BTreeMap<DiskNumber, Disk>,
    /// Grows with every start of the machine's process.
    process: u64,
    /// The process whose change map exists, and the committed position that it starts at.
    tracked: Option<(u64, Option<Position>)>,
    live: bool,
    cut: Option<OpenCut>,
    reads_until_break: Option<u64>,
    reads_until_error: Option<u64>,
    bytes_read: u64,
}

/// A machine in memory. Clones are handles to the same machine: one may write while another is
/// read as a [`ChangeSource`].
#[derive(Clone, Default)]
pub struct MemoryMachine {
    state: Arc<Mutex<State>>,
}

fn granules(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / GRANULE..(offset + len).div_ceil(GRANULE)
}

fn ranges_of(granules: &Granules, size: u64) -> Vec<ByteRange> {
    let mut ranges: Vec<ByteRange> = Vec::new();
    for offset in granules.iter().map(|granule| granule * GRANULE).filter(|at| *at < size) {
        let len = GRANULE.min(size - offset);
        match ranges.last_mut() {
            Some(last) if last.end() == offset => last.len += len,
            _ => ranges.push(ByteRange { offset, len }),
        }
    }
    ranges
}

fn refused(what: impl Into<String>, detail: &str) -> CaptureError {
    CaptureError::Refused { what: what.into(), detail: detail.into() }
}

impl State {
    fn disk(&mut self, disk: DiskNumber) -> &mut Disk {
        self.disks.get_mut(&disk).expect("the test named a disk that the machine has")
    }

    fn is_tracked(&self) -> Result<(), CaptureError> {
        match self.tracked {
            Some((process, _)) if process == self.process => Ok(()),
            Some(_) => Err(CaptureError::MachineGone),
            None => Err(refused("read the change map", "not attached")),
        }
    }

    fn merge_cut(&mut self) {
        self.cut = None;
        for disk in self.disks.values_mut() {
            let mut frozen = std::mem::take(&mut disk.frozen);
            disk.dirty.append(&mut frozen);
        }
    }

    /// Counts a read and lets the injected faults happen.
    fn count_read(&mut self, disk: DiskNumber, len: u64) -> Result<(), CaptureError> {
        if count_down(&mut self.reads_until_break)
            && let Some(cut) = &mut self.cut
        {
            cut.broken = true;
        }
        if count_down(&mut self.reads_until_error) {
            let source = io::Error::other("injected");
            return Err(CaptureError::Io { what: format!("read disk {disk}"), source });
        }
        self.bytes_read += len;
        Ok(())
    }
}

fn count_down(left: &mut Option<u64>) -> bool {
    let Some(count) = left else { return false };
    if *count > 0 {
        *count -= 1;
        return false;
    }
    *left = None;
    true
}

impl MemoryMachine {
    /// A machine without disks, running.
    pub fn new() -> MemoryMachine {
        MemoryMachine::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs in a disk of `size` bytes that reads zero and has nothing allocated.
    pub fn add_disk(&self, number: DiskNumber, size: u64) {
        let entry = DiskEntry {
            number,
            id: format!("disk{number}"),
            serial: format!("SERIAL{number}"),
            size,
            block_bytes: 512,
        };
        let disk = Disk {
            entry,
            content: Arc::new(vec![0; size as usize]),
            allocated: Granules::new(),
            present: true,
            was_shrunk: false,
            dirty: Granules::new(),
            frozen: Granules::new(),
        };
        self.lock().disks.insert(number, disk);
    }

    /// A guest's write. Panics beyond the disk's end, as no guest can do that.
    pub fn write(&self, disk: DiskNumber, offset: u64, bytes: &[u8]) {
        let mut state = self.lock();
        let disk = state.disk(disk);
        let content = Arc::make_mut(&mut disk.content);
        content[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        let written = granules(offset, bytes.len() as u64);
        disk.allocated.extend(written.clone());
        disk.dirty.extend(written);
    }

    /// Changes bytes that nobody wrote, behind the change map's back, as a failing disk does.
    pub fn corrupt(&self, disk: DiskNumber, offset: u64, bytes: &[u8]) {
        let mut state = self.lock();
        let disk = state.disk(disk);
        let content = Arc::make_mut(&mut disk.content);
        content[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        disk.allocated.extend(granules(offset, bytes.len() as u64));
    }

    /// A guest's discard: the bytes read zero; granules that lie wholly inside become holes.
    pub fn discard(&self, disk: DiskNumber, offset: u64, len: u64) {
        self.write(disk, offset, &vec![0; len as usize]);
        let mut state = self.lock();
        let end = (offset + len) / GRANULE;
        let first = offset.div_ceil(GRANULE);
        state.disk(disk).allocated.retain(|granule| *granule < first || *granule >= end);
    }

    /// Makes granules of a disk dirty without changing a byte, as a rewrite of equal data does.
    pub fn touch(&self, disk: DiskNumber, offset: u64, len: u64) {
        self.lock().disk(disk).dirty.extend(granules(offset, len));
    }

    /// Resizes a disk. New bytes read zero. The change map does not name them, except where the
    /// disk was shorter once: bytes that were cut off and came back as zeros have changed.
    pub fn resize(&self, disk: DiskNumber, size: u64) {
        let mut state = self.lock();
        let disk = state.disk(disk);
        Arc::make_mut(&mut disk.content).resize(size as usize, 0);
        let before = std::mem::replace(&mut disk.entry.size, size);
        disk.was_shrunk |= size < before;
        if disk.was_shrunk && size > before {
            disk.dirty.extend(granules(before, size - before));
        }
        let inside = |granule: &u64| granule * GRANULE < size;
        disk.allocated.retain(inside);
    }

    /// Ends the machine's process and starts it again: change maps and an open cut are lost.
    pub fn restart(&self) {
        let mut state = self.lock();
        state.process += 1;
        state.cut = None;
        state.live = false;
        for disk in state.disks.values_mut() {
            disk.dirty.clear();
            disk.frozen.clear();
        }
    }

    /// Takes a disk's image away, or brings it back: reads of it fail meanwhile.
    pub fn set_present(&self, disk: DiskNumber, present: bool) {
        self.lock().disk(disk).present = present;
    }

    /// Lets the next cut's, or the open cut's, scratch space be full after `reads` more reads.
    pub fn break_snapshot_after(&self, reads: u64) {
        self.lock().reads_until_break = Some(reads);
    }

    /// Lets one read fail after `reads` more reads.
    pub fn fail_read_after(&self, reads: u64) {
        self.lock().reads_until_error = Some(reads);
    }

    /// Takes back faults that were asked for and have not happened.
    pub fn clear_faults(&self) {
        let mut state = self.lock();
        state.reads_until_break = None;
        state.reads_until_error = None;
    }

    /// What the disk holds now.
    pub fn content(&self, disk: DiskNumber) -> Vec<u8> {
        self.lock().disk(disk).content.to_vec()
    }

    /// What the disk held at the open cut; none when no cut is open.
    pub fn cut_content(&self, disk: DiskNumber) -> Option<Vec<u8>> {
        Some(self.lock().cut.as_ref()?.disks.get(&disk)?.to_vec())
    }

    /// Bytes that readers have read so far.
    pub fn bytes_read(&self) -> u64 {
        self.lock().bytes_read
    }

    fn reader(&self, view: View, process: u64) -> Arc<dyn DiskReader> {
        Arc::new(MemoryReader { machine: self.clone(), view, process })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    Live(LiveRead),
    Cut,
}

struct MemoryReader {
    machine: MemoryMachine,
    view: View,
    process: u64,
}

impl MemoryReader {
    fn check(&self, state: &State, disk: DiskNumber) -> Result<(), CaptureError> {
        if state.process != self.process {
            return Err(CaptureError::MachineGone);
        }
        if self.view == View::Cut && state.cut.as_ref().is_none_or(|cut| cut.broken) {
            return Err(CaptureError::SnapshotBroken);
        }
        match state.disks.get(&disk) {
            Some(disk) if disk.present => Ok(()),
            _ => Err(refused(format!("read disk {disk}"), "its image is missing")),
        }
    }
}

#[async_trait]
impl DiskReader for MemoryReader {
    async fn ranges(&self, disk: DiskNumber) -> Result<Vec<ByteRange>, CaptureError> {
        let mut state = self.machine.lock();
        self.check(&state, disk)?;
        let at_cut = state.cut.as_ref().and_then(|cut| cut.disks.get(&disk)).map(|all| all.len());
        let disk = state.disk(disk);
        let size = disk.entry.size;
        Ok(match self.view {
            View::Live(LiveRead::Everything) => ranges_of(&disk.allocated, size),
            View::Live(LiveRead::Dirty) => ranges_of(&disk.dirty, size),
            View::Cut => ranges_of(&disk.frozen, at_cut.unwrap_or(0) as u64),
        })
    }

    async fn read(&self, disk: DiskNumber, offset: u64, len: u64) -> Result<Bytes, CaptureError> {
        // Lets a workload run between any two reads.
        tokio::task::yield_now().await;
        let mut state = self.machine.lock();
        state.count_read(disk, len)?;
        self.check(&state, disk)?;
        let content = match (self.view, &state.cut) {
            (View::Cut, Some(cut)) => cut.disks.get(&disk),
            (View::Cut, None) => return Err(CaptureError::SnapshotBroken),
            (View::Live(_), _) => state.disks.get(&disk).map(|disk| &disk.content),
        };
        let from = offset as usize;
        let bytes = content.and_then(|content| content.get(from..from + len as usize));
        bytes
            .map(Bytes::copy_from_slice)
            .ok_or_else(|| refused(format!("read disk {disk}"), "beyond its end"))
    }
}

#[async_trait]
impl ChangeSource for MemoryMachine {
    fn disks(&self) -> Vec<DiskEntry> {
        let state = self.lock();
        let mut disks: Vec<_> = state.disks.values().map(|disk| disk.entry.clone()).collect();
        if let Some(cut) = &state.cut {
            disks.retain(|disk| cut.disks.contains_key(&disk.number));
            for disk in &mut disks {
                disk.size = cut.disks[&disk.number].len() as u64;
            }
        }
        disks
    }

    async fn attach(&mut self, base: Option<Position>) -> Result<Attached, CaptureError> {
        let mut state = self.lock();
        state.live = false;
        state.merge_cut();
        let why = match (state.tracked, base) {
            (_, None) => "no committed point to start from",
            (None, _) => "there is no change map",
            (Some((process, _)), _) if process != state.process => {
                "the machine's process is another one"
            }
            (Some((_, None)), _) => "no point was committed since the change map began",
            (Some((_, Some(since))), Some(base))
                if since.timeline == base.timeline && since.lsn <= base.lsn =>
            {
                return Ok(Attached::Continues);
            }
            (Some((_, Some(_))), Some(_)) => "the change map starts at another position",
        };
        state.tracked = Some((state.process, None));
        state.disks.values_mut().for_each(|disk| disk.dirty.clear());
        Ok(Attached::NeedsFullRead(why.into()))
    }

    async fn open_live(&mut self, which: LiveRead) -> Result<Arc<dyn DiskReader>, CaptureError> {
        let mut state = self.lock();
        state.is_tracked()?;
        if state.live || state.cut.is_some() {
            return Err(refused("open the machine for reading", "something is open already"));
        }
        state.live = true;
        let process = state.process;
        drop(state);
        Ok(self.reader(View::Live(which), process))
    }

    async fn close_live(&mut self) -> Result<(), CaptureError> {
        self.lock().live = false;
        Ok(())
    }

    async fn dirty_bytes(&mut self) -> Result<u64, CaptureError> {
        let state = self.lock();
        state.is_tracked()?;
        let dirty = |disk: &Disk| ranges_of(&disk.dirty, disk.entry.size);
        Ok(state.disks.values().flat_map(dirty).map(|range| range.len).sum())
    }

    async fn cut(&mut self) -> Result<Cut, CaptureError> {
        let mut state = self.lock();
        state.is_tracked()?;
        if state.live || state.cut.is_some() {
            return Err(refused("cut the machine", "something is open already"));
        }
        let mut dirty_bytes = 0;
        let mut disks = BTreeMap::new();
        for (number, disk) in &mut state.disks {
            disk.frozen = std::mem::take(&mut disk.dirty);
            let named = ranges_of(&disk.frozen, disk.entry.size);
            dirty_bytes += named.iter().map(|range| range.len).sum::<u64>();
            disks.insert(*number, Arc::clone(&disk.content));
        }
        state.cut = Some(OpenCut { disks, broken: false });
        let process = state.process;
        drop(state);
        Ok(Cut { reader: self.reader(View::Cut, process), pause: PAUSE, dirty_bytes })
    }

    async fn close_cut(&mut self, end: CutEnd) -> Result<(), CaptureError> {
        let mut state = self.lock();
        if state.cut.is_none() {
            return Ok(());
        }
        match end {
            CutEnd::Abandoned => state.merge_cut(),
            CutEnd::Committed(at) => {
                state.cut = None;
                state.disks.values_mut().for_each(|disk| disk.frozen.clear());
                if state.is_tracked().is_ok() {
                    state.tracked = Some((state.process, Some(at)));
                }
            }
        }
        Ok(())
    }

    async fn detach(&mut self) -> Result<(), CaptureError> {
        let mut state = self.lock();
        state.merge_cut();
        state.live = false;
        state.tracked = None;
        Ok(())
    }
}
