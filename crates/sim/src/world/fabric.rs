//! A site's machines as the host role sees them: the fabric double, watched by the oracle.

use super::{
    Mistakes,
    ledger::{Image, Ledger},
    link::{Link, LinkState},
    other,
    time::{SiteWall, WorldTime},
};
use async_trait::async_trait;
use bytes::Bytes;
use leeward_capture::{
    Attached, ByteRange, CaptureError, ChangeSource, Cut, CutEnd, DiskReader, LiveRead,
    MemoryMachine, MutantSource,
};
use leeward_fabric::{
    ExportAnswers, Fabric, FabricError, FencedChanges, InstancePlan, InstanceStatus, MachineRef,
    Shutdown, Still,
    memory::{MemoryFabric, MemoryWorld},
};
use leeward_model::{
    DiscoveredMachine, DiskEntry, DiskNumber, InstanceId, ItemId, MachineSpec, MachineState,
    Position, Site, UnixMillis,
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// What a guest that was said to be off writes before it is ended.
const LAST_BYTES: usize = 4096;

/// The machines of the host that is the other end now.
#[derive(Clone)]
pub struct Others(Arc<Mutex<MemoryFabric>>);

impl Others {
    /// Those of a host.
    pub fn new(machines: MemoryFabric) -> Others {
        Others(Arc::new(Mutex::new(machines)))
    }

    /// From now on those of another host.
    pub fn set(&self, machines: MemoryFabric) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = machines;
    }

    fn disks(&self, machine: &MachineRef) -> Option<MemoryMachine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).disks(machine)
    }
}

/// What the oracle needs to judge what a host does with its machines.
#[derive(Clone)]
pub struct Watch {
    /// The site.
    pub site: Site,
    /// The oracle.
    pub ledger: Ledger,
    /// The world's time.
    pub time: WorldTime,
    /// The machines of all sites.
    pub machines: Arc<MemoryWorld>,
    /// The machines of the other site.
    pub others: Others,
    /// The site's wall clock.
    pub wall: SiteWall,
    /// The link that breaks at the next cut, once the trap is set.
    pub link: Link,
    /// The trap.
    pub trap: Arc<AtomicBool>,
    /// How long the machines' disks take for a MiB, in milliseconds of the world's time.
    pub read_ms: Arc<AtomicU64>,
    /// Deliberate mistakes.
    pub mistakes: Mistakes,
}

/// See the module.
pub struct WatchedFabric {
    inner: MemoryFabric,
    watch: Watch,
}

/// The content of all disks of a machine that are there.
pub fn image_of(disks: &MemoryMachine) -> Image {
    let content = |disk: &DiskEntry| (disk.number, Arc::new(disks.content(disk.number)));
    disks.disks().iter().map(content).collect()
}

impl WatchedFabric {
    /// Watches a site's machines.
    pub fn new(inner: MemoryFabric, watch: Watch) -> WatchedFabric {
        WatchedFabric { inner, watch }
    }

    fn writers(&self) -> usize {
        self.watch.ledger.writers(&self.watch.machines)
    }

    /// Invariant I4: our own doing never makes two machines of an item run, unless the other
    /// site could not be asked and the operator was told so.
    fn started(&self, before: usize, what: &MachineRef) {
        let Watch { site, ledger, time, .. } = &self.watch;
        let (now, ms) = (self.writers(), time.ms());
        if now <= before {
            return;
        }
        ledger.moved(*site);
        // Where it is live it may be started anew, whatever the other site does unasked.
        let may = matches!(what, MachineRef::Instance(_)) || ledger.live_at() == Some(*site);
        let sure_from = ledger.sure_from_ms(other(*site));
        let excused = may && ms < sure_from;
        if now > 1 && !excused {
            ledger.violated(format!(
                "I4: {what} was started beside another at {ms} ms, known from {sure_from} ms on"
            ));
        }
        ledger.lives_at(*site);
    }

    fn watched(
        &self,
        inner: Box<dyn ChangeSource>,
        machine: &MachineRef,
        to: Option<Site>,
    ) -> Result<Box<dyn ChangeSource>, FabricError> {
        let disks = self.inner.disks(machine);
        let disks = disks.ok_or_else(|| FabricError::Unknown(machine.clone()))?;
        let watch = self.watch.clone();
        Ok(Box::new(WatchedSource { inner, disks, watch, to, pending: None }))
    }
}

/// The double does not write a grown disk into its machine's description.
fn sizes_set(spec: &mut MachineSpec, disks: &[DiskEntry]) {
    for disk in &mut spec.disks {
        let entry = disks.iter().find(|entry| entry.number == disk.number);
        disk.size = entry.map_or(disk.size, |entry| entry.size);
    }
}

/// Reads at the pace of a machine's disks.
struct PacedReader {
    inner: Arc<dyn DiskReader>,
    read_ms: Arc<AtomicU64>,
    /// Held by the read that the disks are busy with.
    busy: tokio::sync::Mutex<()>,
}

#[async_trait]
impl DiskReader for PacedReader {
    async fn ranges(&self, disk: DiskNumber) -> Result<Vec<ByteRange>, CaptureError> {
        self.inner.ranges(disk).await
    }
    async fn read(&self, disk: DiskNumber, offset: u64, len: u64) -> Result<Bytes, CaptureError> {
        let busy = self.busy.lock().await;
        let ms = (self.read_ms.load(Ordering::Relaxed) * len) >> 20;
        tokio::time::sleep(Duration::from_millis(ms)).await;
        drop(busy);
        self.inner.read(disk, offset, len).await
    }
}

struct WatchedSource {
    inner: Box<dyn ChangeSource>,
    disks: MemoryMachine,
    watch: Watch,
    /// The site whose store is promised what is cut; none for disks that lie still, which are read
    /// for a store of this site, as a seed, or for the other site's, as a last point.
    to: Option<Site>,
    pending: Option<UnixMillis>,
}

impl WatchedSource {
    fn image(&self) -> Image {
        if self.to.is_none() {
            // Disks that lie still never change, so there is nothing else to read.
            let there = self.inner.disks();
            let mut image = image_of(&self.disks);
            image.retain(|number, _| there.iter().any(|disk| disk.number == *number));
            return image;
        }
        let content = |disk: &DiskEntry| {
            let bytes = self.disks.cut_content(disk.number)?;
            Some((disk.number, Arc::new(bytes)))
        };
        self.inner.disks().iter().filter_map(content).collect()
    }
}

#[async_trait]
impl ChangeSource for WatchedSource {
    fn disks(&self) -> Vec<DiskEntry> {
        self.inner.disks()
    }
    async fn attach(&mut self, base: Option<Position>) -> Result<Attached, CaptureError> {
        self.inner.attach(base).await
    }
    async fn open_live(
        &mut self,
        which: LiveRead,
    ) -> Result<Arc<dyn leeward_capture::DiskReader>, CaptureError> {
        let inner = self.inner.open_live(which).await?;
        let (read_ms, busy) = (Arc::clone(&self.watch.read_ms), tokio::sync::Mutex::default());
        Ok(Arc::new(PacedReader { inner, read_ms, busy }))
    }
    async fn close_live(&mut self) -> Result<(), CaptureError> {
        self.inner.close_live().await
    }
    async fn dirty_bytes(&mut self) -> Result<u64, CaptureError> {
        self.inner.dirty_bytes().await
    }
    async fn cut(&mut self) -> Result<Cut, CaptureError> {
        // The source reads its clock just before it cuts, and the marker carries that reading.
        let at = self.watch.wall.last();
        let cut = self.inner.cut().await?;
        self.watch.ledger.cut(at, self.image(), self.watch.time.ms());
        self.pending = Some(at);
        if self.watch.trap.swap(false, Ordering::Relaxed) {
            self.watch.link.set(LinkState::Refuses);
        }
        Ok(cut)
    }
    async fn close_cut(&mut self, end: CutEnd) -> Result<(), CaptureError> {
        if let (CutEnd::Committed(position), Some(at)) = (end, self.pending.take()) {
            match self.to {
                Some(to) => self.watch.ledger.promised(to, position, at),
                None => self.watch.ledger.promised_somewhere(position, at),
            }
        }
        self.inner.close_cut(end).await
    }
    async fn detach(&mut self) -> Result<(), CaptureError> {
        self.inner.detach().await
    }
}

#[async_trait]
impl Fabric for WatchedFabric {
    async fn discover(&self) -> Result<Vec<DiscoveredMachine>, FabricError> {
        let mut found = self.inner.discover().await?;
        for machine in &mut found {
            let disks = self.inner.disks(&MachineRef::Owned(machine.spec.name.clone()));
            sizes_set(&mut machine.spec, &disks.map(|disks| disks.disks()).unwrap_or_default());
        }
        Ok(found)
    }
    async fn autostart(&self) -> Result<Vec<String>, FabricError> {
        self.inner.autostart().await
    }
    async fn instances(&self) -> Result<Vec<InstanceId>, FabricError> {
        self.inner.instances().await
    }
    async fn machine_state(&self, machine: &MachineRef) -> Result<MachineState, FabricError> {
        self.inner.machine_state(machine).await
    }
    async fn machine_start(&self, name: &str) -> Result<(), FabricError> {
        let before = self.writers();
        let started = self.inner.machine_start(name).await;
        self.started(before, &MachineRef::Owned(name.to_owned()));
        started
    }
    async fn machine_shutdown(
        &self,
        machine: &MachineRef,
        timeout: Duration,
    ) -> Result<Shutdown, FabricError> {
        if self.watch.mistakes.shutdown_lies {
            return Ok(Shutdown::Done);
        }
        self.inner.machine_shutdown(machine, timeout).await
    }
    async fn machine_quit(&self, machine: &MachineRef) -> Result<(), FabricError> {
        if self.watch.mistakes.shutdown_lies {
            let last = [0xfe; LAST_BYTES];
            // A guest that does not run writes nothing.
            let _ = self.inner.guest_write(machine, DiskNumber(0), 0, &last);
        }
        self.inner.machine_quit(machine).await
    }
    async fn machine_fence(&self, machine: &MachineRef) -> Result<FencedChanges, FabricError> {
        self.inner.machine_fence(machine).await
    }
    async fn machine_halt(&self, machine: &MachineRef) -> Result<(), FabricError> {
        self.inner.machine_halt(machine).await
    }
    async fn machine_guest_off(&self, machine: &MachineRef) -> Result<bool, FabricError> {
        self.inner.machine_guest_off(machine).await
    }
    async fn machine_claim(&self, name: &str, item: ItemId) -> Result<(), FabricError> {
        self.inner.machine_claim(name, item).await
    }
    async fn machine_claimed(&self, name: &str) -> Result<Option<ItemId>, FabricError> {
        self.inner.machine_claimed(name).await
    }
    async fn machine_disclaim(&self, name: &str) -> Result<(), FabricError> {
        self.inner.machine_disclaim(name).await
    }
    async fn machine_forget_changes(&self, name: &str) -> Result<(), FabricError> {
        self.inner.machine_forget_changes(name).await
    }
    async fn still(&self, name: &str) -> Result<Still, FabricError> {
        let Still { spec, source } = self.inner.still(name).await?;
        let machine = MachineRef::Owned(name.to_owned());
        if self.watch.mistakes.writes_stale_disks {
            let disks = self.inner.disks(&machine);
            disks.inspect(|disks| disks.write(DiskNumber(0), 0, &[0xfd; LAST_BYTES]));
        }
        let source = self.watched(source, &machine, None)?;
        Ok(Still { spec, source })
    }
    async fn capture(&self, machine: &MachineRef) -> Result<Box<dyn ChangeSource>, FabricError> {
        let plain = self.inner.capture(machine).await?;
        let Mistakes { capture, capture_at, .. } = self.watch.mistakes;
        let here = capture_at.is_none_or(|site| site == self.watch.site);
        let inner = match (capture.filter(|_| here), self.inner.disks(machine)) {
            (Some(mutation), Some(disks)) => Box::new(MutantSource::new(disks, mutation)),
            _ => plain,
        };
        self.watched(inner, machine, Some(other(self.watch.site)))
    }
    async fn machine_screenshot(&self, machine: &MachineRef) -> Result<Vec<u8>, FabricError> {
        self.inner.machine_screenshot(machine).await
    }
    async fn console_tail(
        &self,
        machine: &MachineRef,
        bytes_max: u64,
    ) -> Result<Vec<u8>, FabricError> {
        self.inner.console_tail(machine, bytes_max).await
    }
    async fn overlay_create(&self, plan: &InstancePlan) -> Result<(), FabricError> {
        self.inner.overlay_create(plan).await?;
        if let Some(disk) = plan.disks.first() {
            self.watch.ledger.instance_made(plan.instance, self.watch.site, &disk.socket);
        }
        Ok(())
    }
    async fn instance_prepare(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.inner.instance_prepare(instance).await
    }
    async fn instance_run(&self, instance: InstanceId) -> Result<(), FabricError> {
        let before = self.writers();
        self.inner.instance_run(instance).await?;
        let machine = MachineRef::Instance(instance);
        let now = self.writers();
        self.started(before, &machine);
        // An isolated machine is nobody's second writer, and so it is not counted.
        if now > before {
            let machine = self.watch.ledger.machine(other(self.watch.site));
            let left = self.watch.others.disks(&machine);
            let left = left.as_ref().map(image_of);
            self.watch.ledger.instance_ran(instance, left, self.watch.time.ms());
        }
        self.inner.say(&machine, super::READY);
        Ok(())
    }
    async fn instance_status(&self, instance: InstanceId) -> Result<InstanceStatus, FabricError> {
        self.inner.instance_status(instance).await
    }
    async fn instance_tend(
        &self,
        instance: InstanceId,
        export: ExportAnswers,
    ) -> Result<InstanceStatus, FabricError> {
        self.inner.instance_tend(instance, export).await
    }
    async fn instance_kill(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.inner.instance_kill(instance).await
    }
    async fn instance_settle(
        &self,
        instance: InstanceId,
        name: &str,
        item: ItemId,
    ) -> Result<(), FabricError> {
        self.inner.instance_settle(instance, name, item).await?;
        // The config server may be asked for the name only after the handing over.
        self.watch.ledger.name_set(self.watch.site, name);
        self.watch.ledger.settled(self.watch.site, instance);
        Ok(())
    }
    async fn instance_unsettle(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.inner.instance_unsettle(instance).await?;
        self.watch.ledger.unsettled(self.watch.site, instance);
        Ok(())
    }
    async fn instance_hand_over(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.inner.instance_hand_over(instance).await?;
        let owned = self.watch.ledger.machine(self.watch.site);
        let image = self.inner.disks(&owned).as_ref().map(image_of);
        self.watch.ledger.handed_over(self.watch.site, instance, image.as_ref());
        Ok(())
    }
    async fn instance_delete(&self, instance: InstanceId) -> Result<(), FabricError> {
        self.inner.instance_delete(instance).await?;
        self.watch.ledger.instance_deleted(instance);
        Ok(())
    }
}
