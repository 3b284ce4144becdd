//! Whether all machines that would go to a host fit there at once, and which would not start. Pure:
//! figures in, verdict out.

use super::{HostSeen, Hosts};
use crate::items::{ItemView, Level};
use crate::plans::PlanView;
use leeward_model::{HostId, ItemId, MachineSpec, MachineState, Protection};
use serde::{Deserialize, Serialize};

/// Memory that a machine takes beside its own, in MiB: QEMU 7.2 holds 37 before the first
/// instruction of its guest (measured); translated code, device buffers and the export come on top.
const OVERHEAD_MIB: u64 = 128;
/// Virtual processors on one real one from which on a warning is due. A rule of thumb.
const CPU_SHARE_MAX: u32 = 4;

/// Is a machine that would not start beside the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotFitting {
    /// The item.
    pub item: ItemId,
    /// Its name.
    pub name: String,
    /// What is missing.
    pub why: String,
}

/// Is a host with all machines that would go there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRoom {
    /// The host.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// Critical when a machine would not start, warning when it is tight or cannot be told.
    pub level: Level,
    /// Items that would go there.
    pub items: u64,
    /// Memory that they need, in MiB, with what their processes take.
    pub memory_needed_mib: u64,
    /// Memory for them; none when the host does not tell.
    pub memory_room_mib: Option<u64>,
    /// Virtual processors that they have.
    pub cpus_needed: u32,
    /// Processors of the host.
    pub cpus: Option<u32>,
    /// What their disks may grow to there, in bytes: never more than their sizes.
    pub disk_needed_bytes: u64,
    /// Free bytes for that.
    pub disk_free_bytes: Option<u64>,
    /// Free bytes below its store.
    pub store_free_bytes: Option<u64>,
    /// Who would not start: in the order of plans' boot groups, then of names, the last ones.
    pub not_fitting: Vec<NotFitting>,
    /// What else to look at, one sentence each.
    pub warnings: Vec<String>,
}

/// The rooms of all hosts that one of `items` would go to.
pub(super) fn rooms(items: &[&ItemView], plans: &[PlanView], hosts: &Hosts) -> Vec<HostRoom> {
    let mut going: Vec<&ItemView> = items.iter().copied().filter(|item| is_to_go(item)).collect();
    going.sort_by_key(|item| (group(item.id, plans), item.name.clone()));
    let mut targets: Vec<HostId> =
        going.iter().map(|item| super::item::target_end(item).host).collect();
    targets.sort();
    targets.dedup();
    let on = |host: HostId| -> Vec<&ItemView> {
        let there = |item: &&&ItemView| super::item::target_end(item).host == host;
        going.iter().filter(there).copied().collect()
    };
    let known = targets.iter().filter_map(|host| Some((hosts.get(host)?, on(*host))));
    known.map(|(host, items)| room(host, &items)).collect()
}

/// Whether a failover would make a machine of the item that does not run yet.
fn is_to_go(item: &ItemView) -> bool {
    match item.state.protection {
        Protection::Enabling { .. }
        | Protection::InitialReplication { .. }
        | Protection::Protected
        | Protection::Resynchronizing { .. }
        | Protection::Reprotecting { .. } => true,
        // Its machine is there already, or is being made there; or there will be none.
        Protection::FailingOver { .. }
        | Protection::FailedOver { .. }
        | Protection::ChangingPoint { .. }
        | Protection::Committed { .. }
        | Protection::Disabling { .. }
        | Protection::Removed => false,
    }
}

/// The earliest boot group of an item; items without a plan come last.
fn group(item: ItemId, plans: &[PlanView]) -> usize {
    let at = |plan: &PlanView| plan.groups.iter().position(|group| group.items.contains(&item));
    plans.iter().filter_map(at).min().unwrap_or(usize::MAX)
}

fn memory(spec: &MachineSpec) -> u64 {
    u64::from(spec.memory_mib) + OVERHEAD_MIB
}

/// Memory for machines that do not run yet: what the kernel says, and never more than what is left
/// once those that run have touched all of theirs.
fn memory_room(host: &HostSeen) -> Option<u64> {
    let seen = host.observed.as_ref()?;
    let capacity = seen.capacity.as_ref()?;
    let runs = |state| matches!(state, MachineState::Running | MachineState::Paused);
    let taken: u64 = seen.machines.iter().filter(|m| runs(m.state)).map(|m| memory(&m.spec)).sum();
    Some(capacity.memory_available_mib.min(capacity.memory_mib.saturating_sub(taken)))
}

fn room(host: &HostSeen, items: &[&ItemView]) -> HostRoom {
    let name = host.view.name.clone();
    let capacity = host.observed.as_ref().and_then(|seen| seen.capacity.as_ref());
    let memory_room_mib = memory_room(host);
    let cpus = capacity.map(|capacity| capacity.cpus);
    let disk_free_bytes = capacity.and_then(|capacity| capacity.disk_free_bytes);
    let specs = || items.iter().filter_map(|item| item.spec.as_ref());
    let memory_needed_mib = specs().map(memory).sum();
    let cpus_needed = specs().map(|spec| spec.cpus).sum();
    let disk_needed_bytes = specs().flat_map(|spec| &spec.disks).map(|disk| disk.size).sum();
    let not_fitting = memory_room_mib.map(|room| overflow(items, room)).unwrap_or_default();
    let mut warnings = Vec::new();
    if capacity.is_none() {
        warnings.push(format!("host {name} does not tell what memory and processors it has"));
    }
    for item in items.iter().filter(|item| item.spec.is_none()) {
        warnings.push(format!("nobody knows how large {} is", item.name));
    }
    if let Some(cpus) = cpus.filter(|cpus| cpus_needed > cpus.saturating_mul(CPU_SHARE_MAX)) {
        warnings.push(format!(
            "{cpus_needed} virtual processors would share {cpus}: all start, and are slow"
        ));
    }
    if let Some(free) = disk_free_bytes.filter(|free| disk_needed_bytes > *free) {
        warnings.push(format!(
            "their disks may grow to {disk_needed_bytes} bytes, {free} are free: all start, and \
             the host pauses those that find no more room"
        ));
    }
    warnings.extend(clashes(host, items));
    let level = match (not_fitting.is_empty(), warnings.is_empty()) {
        (false, _) => Level::Critical,
        (true, false) => Level::Warning,
        (true, true) => Level::Normal,
    };
    HostRoom {
        host: host.view.id,
        name,
        level,
        items: items.len() as u64,
        memory_needed_mib,
        memory_room_mib,
        cpus_needed,
        cpus,
        disk_needed_bytes,
        disk_free_bytes,
        store_free_bytes: host.view.store_free_bytes,
        not_fitting,
        warnings,
    }
}

/// Who would not start: each machine that finds less memory than it needs. One that does not fit
/// leaves its room to those behind it.
fn overflow(items: &[&ItemView], mut room: u64) -> Vec<NotFitting> {
    let mut missing = Vec::new();
    for item in items {
        let Some(spec) = &item.spec else { continue };
        let needed = memory(spec);
        match room.checked_sub(needed) {
            Some(left) => room = left,
            None => missing.push(NotFitting {
                item: item.id,
                name: item.name.clone(),
                why: format!("it needs {needed} MiB of memory with its process, {room} are left"),
            }),
        }
    }
    missing
}

/// Machines that would have one hardware address with another there.
fn clashes(host: &HostSeen, items: &[&ItemView]) -> Vec<String> {
    let mut seen: Vec<(String, &str)> = Vec::new();
    let there = host.observed.iter().flat_map(|observed| &observed.machines);
    let runs = there.filter(|machine| machine.state == MachineState::Running);
    for machine in runs {
        let macs = machine.spec.nics.iter().map(|nic| nic.mac.to_ascii_lowercase());
        seen.extend(macs.map(|mac| (mac, machine.spec.name.as_str())));
    }
    let mut found = Vec::new();
    for item in items {
        for nic in item.spec.iter().flat_map(|spec| &spec.nics) {
            let mac = nic.mac.to_ascii_lowercase();
            let other = seen.iter().find(|(known, name)| *known == mac && *name != item.name);
            if let Some((_, other)) = other {
                found.push(format!("{} and {other} have the hardware address {mac}", item.name));
            }
            seen.push((mac, &item.name));
        }
    }
    found
}
