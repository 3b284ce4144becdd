//! Hosts (the contract's providers) and the machines found on them (its protectable items).

use super::{
    Below,
    envelope::{Answer, Refusal},
    fabrics::{FABRIC_TYPE, container},
    ids::{Ids, resource, time_or_null},
};
use crate::{
    fabrics::{ContainerView, HostView},
    jobs::{InstantJob, Scenario, TargetKind},
    machines::MachineView,
};
use leeward_model::{DiskFormat, DiskSpec, MachineState};
use serde_json::{Value, json};

fn view(ids: &Ids, host: &HostView) -> Value {
    resource(
        &ids.host(&host.fabric_name, &host.name),
        json!({
            "fabricType": FABRIC_TYPE,
            "friendlyName": host.name,
            "providerVersion": host.program,
            "providerVersionState": "Current",
            "serverVersion": host.program,
            "fabricFriendlyName": host.fabric_name,
            "lastHeartBeat": time_or_null(host.last_heard),
            "connectionStatus": if host.connected { "Connected" } else { "Disconnected" },
            "protectedItemCount": host.items,
            "allowedScenarios": ["Refresh", "Remove"],
            "healthErrorDetails": [],
            "draIdentifier": host.id,
            "machineId": host.id,
            "machineName": host.name,
            "biosId": null,
            "leewardDataAddress": host.data_address,
            "leewardMachines": host.machines,
            "leewardStoreFreeBytes": host.store_free_bytes,
            "leewardAccelerator": host.accelerator,
            "leewardMemoryMib": host.capacity.as_ref().map(|has| has.memory_mib),
            "leewardMemoryAvailableMib": host.capacity.as_ref().map(|has| has.memory_available_mib),
            "leewardCpus": host.capacity.as_ref().map(|has| has.cpus),
            "leewardDiskFreeBytes": host.capacity.as_ref().map(|has| has.disk_free_bytes),
        }),
    )
}

/// The contract's names for image formats.
pub(super) fn disk_type(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// A disk as the contract's Hyper-V views show one; sizes in MiB are rounded up.
pub(super) fn disk_view(disk: &DiskSpec) -> Value {
    json!({
        "maxSizeMB": disk.size.div_ceil(1 << 20),
        "vhdType": disk_type(disk.format),
        "vhdId": disk.id,
        "vhdName": disk.path.rsplit('/').next().unwrap_or_default(),
        "leewardSizeBytes": disk.size,
        "leewardSerial": disk.serial,
        "leewardBlockBytes": disk.block_bytes,
    })
}

/// A run state in one word.
pub(super) fn machine_state(state: MachineState) -> &'static str {
    match state {
        MachineState::Running => "Running",
        MachineState::Paused => "Paused",
        MachineState::Off => "Off",
        MachineState::Unknown => "Unknown",
    }
}

fn machine_view(ids: &Ids, container: &ContainerView, machine: &MachineView) -> Value {
    let spec = &machine.spec;
    let item = machine
        .item_name
        .as_ref()
        .map(|name| ids.item_named(container.fabric, &container.fabric_name, name));
    resource(
        &ids.machine(container, machine.id),
        json!({
            "friendlyName": machine.name,
            "protectionStatus": if item.is_some() { "Protected" } else { "Unprotected" },
            "replicationProtectedItemId": item,
            "recoveryServicesProviderId": ids.host(&container.fabric_name, &machine.host_name),
            "protectionReadinessErrors": machine.obstacles,
            "supportedReplicationProviders": ["HyperVReplica2012R2"],
            "customDetails": {
                "instanceType": "HyperVVirtualMachine",
                "sourceItemId": machine.id,
                "generation": "1",
                "osDetails": null,
                "diskDetails": spec.disks.iter().map(disk_view).collect::<Vec<_>>(),
                "hasPhysicalDisk": "NotPresent",
                "hasFibreChannelAdapter": "NotPresent",
                "hasSharedVhd": "NotPresent",
                "hyperVHostId": machine.host,
                "leewardPlatform": "kvm",
                "leewardHost": machine.host_name,
                "leewardMachineState": machine_state(machine.state),
                "leewardMemoryMib": spec.memory_mib,
                "leewardCpus": spec.cpus,
            },
        }),
    )
}

/// Hosts of a fabric or of all.
pub(super) async fn list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let fabric = Some(below.name("fabric")).filter(|fabric| !fabric.is_empty());
    let hosts = below.control().host_list(below.vault.id, fabric).await?;
    below.page(hosts.iter().map(|host| view(&below.ids, host)).collect())
}

/// GET, and POST refreshProvider: hosts report every change by themselves, so what is shown is
/// fresh already.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    let (fabric, host) = (below.name("fabric"), below.name("host"));
    let host = below.control().host_get(below.vault.id, fabric, host).await?;
    Ok(Answer::Ok(view(&below.ids, &host)))
}

/// DELETE, and POST remove.
pub(super) async fn remove(below: &Below<'_>) -> Result<Answer, Refusal> {
    let control = below.control();
    let (fabric, host) = (below.name("fabric"), below.name("host"));
    let host = control.host_get(below.vault.id, fabric, host).await?;
    control.host_remove(below.vault.id, &host.fabric_name, &host.id.to_string()).await?;
    let instant = InstantJob {
        scenario: Scenario::UnregisterDra,
        target_kind: TargetKind::Server,
        target_id: host.id.to_string(),
        target_name: host.name.clone(),
    };
    let job = control.job_note(below.vault.id, instant).await?;
    Ok(below.accepted(below.ids.host(&host.fabric_name, &host.name), job))
}

/// Machines of a fabric; `$filter` may name `State` (Protected, Unprotected) and `Name`.
pub(super) async fn machine_list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let filter = below.call.filter(&["state", "name", "friendlyname"])?;
    let container = container(below).await?;
    let mut machines = below.control().machine_list(below.vault.id, &container.fabric_name).await?;
    machines.retain(|machine| {
        let state = if machine.item.is_some() { "Protected" } else { "Unprotected" };
        filter.admits("state", &[state])
            && filter.admits("name", &[&machine.name, &machine.id.to_string()])
            && filter.admits("friendlyname", &[&machine.name])
    });
    below.page(machines.iter().map(|one| machine_view(&below.ids, &container, one)).collect())
}

/// GET of a machine.
pub(super) async fn machine_get(below: &Below<'_>) -> Result<Answer, Refusal> {
    let container = container(below).await?;
    let (fabric, name) = (&container.fabric_name, below.name("machine"));
    let machine = below.control().machine_get(below.vault.id, fabric, name).await?;
    Ok(Answer::Ok(machine_view(&below.ids, &container, &machine)))
}
