//! What guests and their owners do in the world, and what happens to disks that lie still.

use super::{FIRST_DISK_BYTES, SECOND_DISK_BYTES, SITES, World, history::Stale, other};
use leeward_fabric::MachineRef;
use leeward_model::{DiskNumber, Protection, Site};
use leeward_replica::storage::Seeded;

/// What is written as a whole, in bytes.
const BLOCK: u64 = 4096;

impl World {
    /// The guest of every machine that runs writes a little.
    pub fn write(&self, random: &mut Seeded) {
        for _ in 0..3 {
            let number = random.below(2) as u16;
            let size = [FIRST_DISK_BYTES, SECOND_DISK_BYTES][usize::from(number)];
            let blocks = 1 + random.below(6);
            let offset = random.below(size / BLOCK - blocks) * BLOCK;
            let pattern = random.next_u64().to_le_bytes();
            let bytes = pattern.iter().copied().cycle().take((blocks * BLOCK) as usize);
            self.write_at(DiskNumber(number), offset, &bytes.collect::<Vec<u8>>());
        }
    }

    /// The guest of every machine that runs writes these bytes.
    pub fn write_at(&self, disk: DiskNumber, offset: u64, bytes: &[u8]) {
        let instances = self.ledger.instances();
        for site in SITES.into_iter().filter(|site| !self.ledger.has_instance(*site)) {
            // A guest that does not run writes nothing.
            let _ = self.machines(site).guest_write(&self.owned(site), disk, offset, bytes);
        }
        for (instance, made) in instances {
            let machine = MachineRef::Instance(instance);
            let wrote = self.machines(made.site).guest_write(&machine, disk, offset, bytes);
            if wrote.is_ok() {
                self.ledger.instance_wrote(instance, disk, offset, bytes);
            }
        }
    }

    /// The sites whose host runs a machine that is no instance any more.
    fn owned_guests(&self) -> impl Iterator<Item = Site> {
        SITES.into_iter().filter(|site| {
            let machines = self.machines(*site);
            let runs = machines.guest_read(&self.owned(*site), DiskNumber(1), 0, 512).is_ok();
            runs && !self.ledger.has_instance(*site)
        })
    }

    /// The guests of machines that are no instances discard something of the second disk.
    pub(super) fn trim(&self, random: &mut Seeded) {
        let (offset, len) = (random.below(2) * 65_536, (1 + random.below(2)) * 65_536);
        for site in self.owned_guests() {
            if let Some(disks) = self.machines(site).disks(&self.owned(site)) {
                disks.discard(DiskNumber(1), offset, len);
            }
        }
    }

    /// The second disk of machines that are no instances grows by a little over an extent.
    pub fn grow(&self) {
        for site in self.owned_guests() {
            if let Some(disks) = self.machines(site).disks(&self.owned(site)) {
                let size = disks.content(DiskNumber(1)).len() as u64;
                disks.resize(DiskNumber(1), size + 65_536 + 4_096);
            }
        }
    }

    /// The process of the active machine ends, and its owner starts it again.
    pub(super) async fn restart_machine(&mut self, random: &mut Seeded) {
        let Some(site) = self.active().await else { return };
        let mine = !self.ledger.has_instance(site) && self.jobs_running().await.is_empty();
        if !mine || self.machines(site).disks(&self.owned(site)).is_none() {
            return;
        }
        self.machines(site).kill_process(&self.owned(site));
        self.wait(random.below(3_000)).await;
        self.owner_cares().await;
    }

    /// Somebody does something to the disks of the machine that was left for good.
    pub async fn stale_disks(&mut self, what: Stale, random: &mut Seeded) {
        let Some(view) = self.view().await else { return };
        let left_for_good = match view.state.protection {
            Protection::Committed { .. } => true,
            // The way back of a failover would start it.
            _ => false,
        };
        let site = other(view.state.active);
        let runs = self.machines(site).guest_read(&self.owned(site), DiskNumber(1), 0, 512).is_ok();
        let idle = self.jobs_running().await.is_empty();
        let Some(disks) = self.machines(site).disks(&self.owned(site)) else { return };
        if !left_for_good || runs || !idle {
            return;
        }
        self.ledger.moved(site);
        match what {
            Stale::Gone => [0, 1].map(|number| disks.set_present(DiskNumber(number), false)),
            Stale::OneGone => [1, 1].map(|number| disks.set_present(DiskNumber(number), false)),
            Stale::Replaced => [0, 1].map(|number| {
                let offset = random.below(SECOND_DISK_BYTES / BLOCK - 8) * BLOCK;
                let bytes = random.next_u64().to_le_bytes().repeat(BLOCK as usize);
                disks.write(DiskNumber(number), offset, &bytes);
            }),
            Stale::Older => {
                for (number, bytes) in self.ledger.old_image(random).into_iter().flatten() {
                    disks.resize(number, bytes.len() as u64);
                    disks.write(number, 0, &bytes);
                }
                [(), ()]
            }
            Stale::Grown => [1, 1].map(|number| {
                let size = disks.content(DiskNumber(number)).len() as u64;
                disks.resize(DiskNumber(number), size + 65_536);
            }),
        };
    }
}
