//! One source, one target in memory, and everything that may go wrong between them.

use super::*;
use crate::{
    crash_folder::CrashFolder,
    hash_file::Trust,
    record::{Hasher, TestHasher},
    source::{Attached, CutEnd, LiveRead},
};
use std::collections::BTreeMap;

/// How a replication ends.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// Well.
    Commit,
    /// The delta is given up before anybody was asked to commit.
    AbandonBeforeSeal,
    /// The link and the source process end after the seal; the target did not commit.
    LostBeforeCommit,
    /// They end after the target committed; the answer is lost.
    LostAfterCommit,
    /// The source's host loses power after so many file operations more.
    PowerCut { after: u64, seed: u64 },
    /// Scratch space runs out.
    BrokenSnapshot { reads: u64 },
    /// A read fails.
    ReadError { reads: u64 },
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Write {
        disk: u16,
        at: u64,
        len: u64,
        value: u8,
    },
    Discard {
        disk: u16,
        at: u64,
        len: u64,
    },
    Touch {
        disk: u16,
        at: u64,
        len: u64,
    },
    Resize {
        disk: u16,
        size: u64,
    },
    RestartMachine,
    RestartSource {
        seed: u64,
    },
    AddDisk,
    /// `during`: writes (disk, offset, length, value) between batches.
    Replicate {
        during: Vec<(u16, u64, u64, u8)>,
        ending: Ending,
    },
}

/// Why a replication stopped: a fault that was asked for, or a broken promise.
enum Stop {
    Fault,
    Wrong(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(_: E) -> Stop {
        Stop::Fault
    }
}

type Disks = BTreeMap<DiskNumber, Vec<u8>>;

pub(super) struct World {
    machine: MemoryMachine,
    source: Box<dyn ChangeSource>,
    folder: CrashFolder,
    files: Arc<HashFiles>,
    attached: bool,
    /// What the target holds. It never cuts a disk shorter: zeros must come as changes.
    target: Disks,
    target_at: Position,
    newest_point: Option<Position>,
    points: u64,
    lsn: u64,
}

fn item() -> ItemId {
    ItemId::from_u128(1)
}

/// Cuts a change anew as a role does, by the hashes of the blocks that `disks` hold, and checks
/// that it names exactly the blocks that differ.
fn recut(disks: &Disks, found: &Found) -> Result<Option<Found>, String> {
    if found.blocks_known {
        return Ok(Some(found.clone()));
    }
    let held = held_extent(disks, found.change.disk, found.change.extent);
    let (_, there) = TestHasher.extent_and_blocks(&held);
    let mut whole = disks.clone();
    replay(&mut whole, &found.change)?;
    let new = held_extent(&whole, found.change.disk, found.change.extent);
    let blocks = new.chunks(BLOCK_BYTES as usize).zip(held.chunks(BLOCK_BYTES as usize));
    let differing = (0..).zip(blocks).filter(|(_, (new, held))| new != held);
    let differing = differing.fold(BlockMask::NONE, |mask, (index, _)| mask.with(index));
    let recut = found.clone().recut(&there, &TestHasher);
    let named = recut.as_ref().map_or(BlockMask::NONE, |recut| recut.change.mask);
    if named == differing { Ok(recut) } else { Err(format!("{named:?}, not {differing:?}")) }
}

fn held_extent(disks: &Disks, disk: DiskNumber, extent: ExtentNumber) -> Vec<u8> {
    let from = extent.offset() as usize;
    let disk = disks.get(&disk).map_or(&[][..], Vec::as_slice);
    let held = disk.get(from..disk.len().min(from + EXTENT)).unwrap_or_default();
    [held, &vec![0; EXTENT - held.len()]].concat()
}

/// Applies a change as a target does, and checks that the extent is what the source hashed.
fn replay(disks: &mut Disks, change: &Change) -> Result<(), String> {
    if change.mask == BlockMask::NONE {
        return Err("an empty mask".into());
    }
    let disk = disks.entry(change.disk).or_default();
    let from = change.extent.offset() as usize;
    disk.resize(disk.len().max(from + EXTENT), 0);
    let block = BLOCK_BYTES as usize;
    for (nth, index) in change.mask.iter().enumerate() {
        let target = &mut disk[from + index as usize * block..][..block];
        match change.data.len() {
            0 => target.fill(0),
            _ => target.copy_from_slice(&change.data[nth * block..][..block]),
        }
    }
    if TestHasher.extent(&disk[from..from + EXTENT]) != change.hash {
        return Err(format!(
            "extent {} of disk {} is composed wrongly",
            change.extent, change.disk
        ));
    }
    Ok(())
}

impl World {
    pub(super) fn new(
        sizes: &[u64],
        source: impl Fn(MemoryMachine) -> Box<dyn ChangeSource>,
    ) -> World {
        let machine = MemoryMachine::new();
        for (number, size) in (0..).zip(sizes) {
            machine.add_disk(DiskNumber(number), *size);
        }
        let folder = CrashFolder::new();
        World {
            source: source(machine.clone()),
            machine,
            files: Arc::new(HashFiles::new(Arc::new(folder.clone()), item())),
            folder,
            attached: false,
            target: Disks::new(),
            target_at: at(0),
            newest_point: None,
            points: 0,
            lsn: 0,
        }
    }

    pub(super) fn points(&self) -> u64 {
        self.points
    }

    pub(super) fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for step in steps {
                self.step(step).await?;
            }
            Ok(())
        })
    }

    fn write(&self, disk: u16, at: u64, len: u64, act: impl Fn(DiskNumber, u64, u64)) {
        let disk = DiskNumber(disk);
        let size = self.machine.content(disk).len() as u64;
        let at = at % size;
        act(disk, at, len.min(size - at));
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Write { disk, at, len, value } => {
                self.write(*disk, *at, *len, |disk, at, len| {
                    self.machine.write(disk, at, &vec![*value; len as usize]);
                })
            }
            Step::Discard { disk, at, len } => self.write(*disk, *at, *len, |disk, at, len| {
                self.machine.discard(disk, at, len);
            }),
            Step::Touch { disk, at, len } => self.write(*disk, *at, *len, |disk, at, len| {
                self.machine.touch(disk, at, len);
            }),
            Step::Resize { disk, size } => self.machine.resize(DiskNumber(*disk), *size),
            Step::RestartMachine => {
                self.machine.restart();
                self.attached = false;
            }
            Step::RestartSource { seed } => self.restart_source(*seed),
            Step::AddDisk => self.add_disk(),
            Step::Replicate { during, ending } => {
                if let Err(Stop::Wrong(what)) = self.replicate(during, ending).await {
                    return Err(what);
                }
            }
        }
        Ok(())
    }

    /// Plugs in a third disk with content, once.
    fn add_disk(&mut self) {
        let number = DiskNumber(2);
        if ChangeSource::disks(&self.machine).iter().all(|disk| disk.number != number) {
            self.machine.add_disk(number, 150_000);
            self.machine.write(number, 66_000, &[9; 70_000]);
        }
    }

    /// The source's host comes back from a power cut; the machine (on shared ground) ran on.
    fn restart_source(&mut self, seed: u64) {
        self.folder = self.folder.after_cut(seed);
        self.files = Arc::new(HashFiles::new(Arc::new(self.folder.clone()), item()));
        self.attached = false;
    }

    fn sizes_at_target(&self) -> Vec<(DiskNumber, u64)> {
        self.target.iter().map(|(disk, bytes)| (*disk, bytes.len() as u64)).collect()
    }

    async fn attach(&mut self) -> Result<(), Stop> {
        if self.attached {
            return Ok(());
        }
        if let Trust::Untrusted(_) = self.files.reconcile(self.target_at)? {
            let mut rebuild = self.files.rebuild(self.target_at, &self.sizes_at_target())?;
            for (disk, bytes) in &self.target {
                for (extent, content) in (0..).zip(bytes.chunks(EXTENT)) {
                    if content.iter().any(|byte| *byte != 0) {
                        rebuild.leaf(*disk, ExtentNumber(extent), TestHasher.extent(content))?;
                    }
                }
            }
            rebuild.finish()?;
        }
        if let Attached::NeedsFullRead(_) = self.source.attach(self.newest_point).await? {
            self.newest_point = None;
        }
        self.attached = true;
        Ok(())
    }

    async fn replicate(
        &mut self,
        during: &[(u16, u64, u64, u8)],
        ending: &Ending,
    ) -> Result<(), Stop> {
        match ending {
            Ending::PowerCut { after, .. } => {
                self.folder.cut_after(self.folder.operations() + after);
            }
            Ending::BrokenSnapshot { reads } => self.machine.break_snapshot_after(*reads),
            Ending::ReadError { reads } => self.machine.fail_read_after(*reads),
            Ending::Commit
            | Ending::AbandonBeforeSeal
            | Ending::LostBeforeCommit
            | Ending::LostAfterCommit => {}
        }
        let outcome = self.replicate_with(during, ending).await;
        self.machine.clear_faults();
        if let Ending::PowerCut { seed, .. } = ending {
            self.restart_source(*seed);
        }
        if outcome.is_err() {
            // As a role does after any error: begin again from what is on disk.
            self.source.close_live().await.ok();
            self.source.close_cut(CutEnd::Abandoned).await.ok();
            self.files.abandon();
            self.attached = false;
        }
        match (&outcome, ending) {
            (Err(Stop::Fault), Ending::Commit) => Err(Stop::Wrong("an unannounced fault".into())),
            _ => outcome,
        }
    }

    async fn replicate_with(
        &mut self,
        during: &[(u16, u64, u64, u8)],
        ending: &Ending,
    ) -> Result<(), Stop> {
        self.attach().await?;
        let mut during = during.iter();
        if self.newest_point.is_none() {
            let reader = self.source.open_live(LiveRead::Everything).await?;
            self.live_pass(reader, &mut during).await?;
            self.source.close_live().await?;
        }
        let cut = self.source.cut().await?;
        let mut staged = self.target.clone();
        let mut pass = self.start(cut.reader, PassKind::Delta);
        while let Some(batch) = pass.next().await? {
            self.guest_writes(during.next());
            for found in &batch.found {
                if let Some(found) = recut(&staged, found).map_err(Stop::Wrong)? {
                    replay(&mut staged, &found.change).map_err(Stop::Wrong)?;
                }
                self.files.push(found.change.disk, found.change.extent, &found.record)?;
            }
        }
        self.end(staged, ending).await
    }

    fn start(&self, reader: Arc<dyn DiskReader>, kind: PassKind) -> Pass {
        let input = PassInput {
            reader,
            disks: self.source.disks(),
            hashes: self.files.clone(),
            hasher: Arc::new(TestHasher),
            kind,
            workers: Workers::default(),
            cancel: CancellationToken::new(),
        };
        Pass::start(input, Arc::new(|_| {}))
    }

    fn guest_writes(&self, write: Option<&(u16, u64, u64, u8)>) {
        if let Some((disk, at, len, value)) = write {
            self.write(*disk, *at, *len, |disk, at, len| {
                self.machine.write(disk, at, &vec![*value; len as usize]);
            });
        }
    }

    /// A pass on the running machine; every batch is committed as progress.
    async fn live_pass(
        &mut self,
        reader: Arc<dyn DiskReader>,
        during: &mut std::slice::Iter<'_, (u16, u64, u64, u8)>,
    ) -> Result<(), Stop> {
        let mut pass = self.start(reader, PassKind::Full);
        while let Some(batch) = pass.next().await? {
            self.guest_writes(during.next());
            let mut staged = self.target.clone();
            for found in &batch.found {
                if let Some(found) = recut(&staged, found).map_err(Stop::Wrong)? {
                    replay(&mut staged, &found.change).map_err(Stop::Wrong)?;
                }
                self.files.push(found.change.disk, found.change.extent, &found.record)?;
            }
            self.lsn += 1;
            self.files.seal_progress(at(self.lsn))?;
            (self.target, self.target_at) = (staged, at(self.lsn));
            self.files.commit(at(self.lsn))?;
        }
        Ok(())
    }

    async fn end(&mut self, staged: Disks, ending: &Ending) -> Result<(), Stop> {
        if matches!(ending, Ending::AbandonBeforeSeal) {
            self.files.abandon();
            self.source.close_cut(CutEnd::Abandoned).await?;
            return Ok(());
        }
        let disks: Vec<_> =
            self.source.disks().iter().map(|disk| (disk.number, disk.size)).collect();
        // Not a new position after a lost attempt: the target may give the same one again.
        let next = at(self.target_at.lsn.0 + 1);
        self.files.seal(next, &disks)?;
        if matches!(ending, Ending::LostBeforeCommit) {
            self.attached = false;
            return Ok(());
        }
        self.check(&staged, &disks).map_err(Stop::Wrong)?;
        (self.target, self.target_at) = (staged, next);
        self.lsn = next.lsn.0;
        self.newest_point = Some(next);
        self.points += 1;
        if matches!(ending, Ending::LostAfterCommit) {
            self.attached = false;
            return Ok(());
        }
        self.files.commit(next)?;
        self.source.close_cut(CutEnd::Committed(next)).await?;
        Ok(())
    }

    /// The oracle: the target's image is the machine at the cut, and zero beyond its end.
    fn check(&self, staged: &Disks, disks: &[(DiskNumber, u64)]) -> Result<(), String> {
        for (disk, size) in disks {
            let truth = self.machine.cut_content(*disk).ok_or("no open cut")?;
            let mut image = staged.get(disk).cloned().unwrap_or_default();
            image.resize(image.len().max(*size as usize), 0);
            let (inside, beyond) = image.split_at(*size as usize);
            if let Some(byte) = inside.iter().zip(&truth).position(|(image, truth)| image != truth)
            {
                return Err(format!("byte {byte} of disk {disk} is wrong"));
            }
            if beyond.iter().any(|byte| *byte != 0) {
                return Err(format!("disk {disk} holds data beyond its end"));
            }
        }
        Ok(())
    }
}
