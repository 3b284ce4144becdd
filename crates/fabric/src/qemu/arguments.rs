//! QEMU's command line for a machine. Pure: starts nothing and looks at no file.

use super::blocks::{format_node, top_node};
use crate::accelerator::Accelerator;
use crate::machine_toml::Channel;
use leeward_model::{DiskFormat, DiskNumber, MachineSpec};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// What a disk's device does when its image fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnError {
    /// QEMU's own rule: a full file system stops the guest, other errors reach it.
    AsUsual,
    /// Every error stops the guest and none reaches it.
    Stop,
}

/// Where the networks lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Networks {
    /// Where the machine's description says.
    AsDescribed,
    /// Nowhere.
    Isolated,
}

/// Whether the guest runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// It does.
    Running,
    /// It stands still until QEMU is told otherwise.
    StandingStill,
}

/// An image to open.
#[derive(Clone, Debug)]
pub(crate) struct DiskImage {
    pub number: DiskNumber,
    pub serial: String,
    pub format: DiskFormat,
    pub path: PathBuf,
    /// Whether the path is a block device.
    pub is_device: bool,
}

/// Everything that a command line depends on.
pub(crate) struct Launch<'a> {
    pub spec: &'a MachineSpec,
    pub accelerator: Accelerator,
    pub disks: &'a [DiskImage],
    pub channels: &'a [Channel],
    pub qmp: &'a Path,
    pub console: &'a Path,
    pub on_error: OnError,
    pub networks: Networks,
    pub begin: Begin,
}

/// The arguments, without the program.
pub(crate) fn arguments(launch: &Launch<'_>) -> Vec<OsString> {
    let spec = launch.spec;
    let mut out: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: String| {
        out.push(option.into());
        out.push(value.into());
    };
    add("-name", escape(&spec.name));
    add("-machine", "q35".into());
    add("-accel", launch.accelerator.argument().into());
    add("-cpu", launch.accelerator.cpu().into());
    add("-m", format!("{}M", spec.memory_mib));
    add("-smp", spec.cpus.to_string());
    add("-display", "none".into());
    // A guest that shuts down leaves its QEMU, so that its last changes can be captured.
    add("-action", "shutdown=pause".into());
    add("-chardev", socket("lw-qmp", launch.qmp));
    add("-mon", "chardev=lw-qmp,mode=control".into());
    let console = escape(&launch.console.display().to_string());
    add("-chardev", format!("file,id=lw-console,append=on,path={console}"));
    add("-serial", "chardev:lw-console".into());
    if spec.display {
        add("-device", "VGA".into());
    }
    for (place, disk) in launch.disks.iter().enumerate() {
        add("-blockdev", block_node(disk).to_string());
        add("-device", disk_device(place, disk, launch.on_error));
    }
    for (number, nic) in spec.nics.iter().enumerate() {
        let restrict = match (launch.networks, nic.network.as_str()) {
            (Networks::AsDescribed, "user") => "off",
            (Networks::AsDescribed | Networks::Isolated, _) => "on",
        };
        let lease = nic.address.map(lease).unwrap_or_default();
        add("-netdev", format!("user,id=lw-net-{number},restrict={restrict}{lease}"));
        let mac = &nic.mac;
        add("-device", format!("virtio-net-pci,netdev=lw-net-{number},mac={mac},romfile="));
    }
    if !launch.channels.is_empty() {
        add("-device", "virtio-serial-pci,id=lw-vs".into());
    }
    for (number, channel) in launch.channels.iter().enumerate() {
        let id = format!("lw-ch-{number}");
        add("-chardev", socket(&id, &channel.path));
        add("-device", format!("virtserialport,chardev={id},name={}", escape(&channel.name)));
    }
    out.push("-nodefaults".into());
    out.push("-no-user-config".into());
    match launch.begin {
        Begin::Running => {}
        Begin::StandingStill => out.push("-S".into()),
    }
    out
}

/// The `/24` around an address, with that address as the first one that is given out: a network
/// has one card, which gets it.
fn lease(address: Ipv4Addr) -> String {
    let [a, b, c, _] = address.octets();
    format!(",net={a}.{b}.{c}.0/24,dhcpstart={address}")
}

fn block_node(disk: &DiskImage) -> Value {
    let driver = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let protocol = if disk.is_device { "host_device" } else { "file" };
    json!({
        "driver": "raw",
        "node-name": top_node(disk.number),
        "discard": "unmap",
        "file": {
            "driver": driver,
            "node-name": format_node(disk.number),
            "discard": "unmap",
            "file": {
                "driver": protocol,
                "node-name": format!("lw-file-{}", disk.number),
                "filename": disk.path,
                "discard": "unmap",
            },
        },
    })
}

fn disk_device(place: usize, disk: &DiskImage, on_error: OnError) -> String {
    let rule = match on_error {
        OnError::AsUsual => "",
        OnError::Stop => ",werror=stop,rerror=stop",
    };
    let (number, top) = (disk.number, top_node(disk.number));
    let serial = escape(&disk.serial);
    let order = place + 1;
    format!("virtio-blk-pci,id=lw-vd-{number},drive={top},serial={serial},bootindex={order}{rule}")
}

fn socket(id: &str, path: &Path) -> String {
    let path = escape(&path.display().to_string());
    format!("socket,id={id},server=on,wait=off,path={path}")
}

/// A value within a comma-separated list.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::{Firmware, NicSpec, Probe};

    fn text(networks: Networks, on_error: OnError, begin: Begin) -> String {
        let nic = |network: &str, address| NicSpec {
            mac: "52:54:00:0:0:1".into(),
            network: network.into(),
            address,
        };
        let spec = MachineSpec {
            name: "a,b".into(),
            memory_mib: 64,
            cpus: 1,
            firmware: Firmware::Bios,
            disks: Vec::new(),
            nics: vec![nic("user", None), nic("isolated", Some(Ipv4Addr::new(10, 7, 0, 50)))],
            display: true,
            probe: Probe::default(),
        };
        let disk = DiskImage {
            number: DiskNumber(3),
            serial: "s".into(),
            format: DiskFormat::Qcow2,
            path: "/d,e\"f".into(),
            is_device: false,
        };
        let launch = Launch {
            spec: &spec,
            accelerator: Accelerator::Tcg,
            disks: &[disk],
            channels: &[],
            qmp: Path::new("/r,un/q"),
            console: Path::new("/c"),
            on_error,
            networks,
            begin,
        };
        let words = arguments(&launch);
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn commas_and_quotes_in_names_and_paths_stay_within_their_value() {
        let line = text(Networks::AsDescribed, OnError::AsUsual, Begin::Running);

        assert!(line.contains("-name a,,b "), "{line}");
        assert!(line.contains("path=/r,,un/q"), "{line}");
        assert!(line.contains(r#""filename":"/d,e\"f""#), "{line}");
    }

    #[test]
    fn an_isolated_machine_has_no_network_with_a_way_out() {
        let described = text(Networks::AsDescribed, OnError::AsUsual, Begin::Running);
        let isolated = text(Networks::Isolated, OnError::AsUsual, Begin::Running);

        assert!(described.contains("lw-net-0,restrict=off"));
        assert!(described.contains("lw-net-1,restrict=on,net=10.7.0.0/24,dhcpstart=10.7.0.50"));
        assert!(!isolated.contains("restrict=off"));
    }

    #[test]
    fn an_instance_stands_still_at_first_and_its_guest_sees_no_disk_error() {
        let line = text(Networks::AsDescribed, OnError::Stop, Begin::StandingStill);

        assert!(line.contains("bootindex=1,werror=stop,rerror=stop"), "{line}");
        assert!(line.ends_with(" -S"), "{line}");
        assert!(line.contains("shutdown=pause"), "{line}");
    }
}
