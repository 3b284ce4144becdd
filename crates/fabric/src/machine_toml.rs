//! A host's machines as its owner describes them: `machines/NAME/machine.toml`.
//!
//! Parses, checks and lists; starts nothing. A machine that cannot be used is listed with its
//! obstacles, so that its owner sees why.

use crate::image::{self, FileIdentity, ImageError};
use leeward_model::{
    CPUS_MAX, Code, DiskFormat, DiskNumber, DiskSpec, Firmware, InstanceId, MACHINE_NAME_BYTES_MAX,
    MEMORY_MIB_MAX, MEMORY_MIB_MIN, MachineSpec, NETWORKS, NicSpec, Probe, machine_name_fits,
    nic_address_fits,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::{fs, io};

mod settled;
pub use settled::settled_text;

/// Longest serial number that a virtio disk takes, in bytes.
const SERIAL_BYTES_MAX: usize = 20;
/// Most disks of a machine: each takes a slot of the one PCI bus.
const DISKS_MAX: usize = 16;
/// Most network cards of a machine.
const NICS_MAX: usize = 8;
/// Most channels of a machine.
const CHANNELS_MAX: usize = 8;
/// Logical block size that our machines' guests see, in bytes.
const LOGICAL_BLOCK_BYTES: u32 = 512;

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineToml {
    memory_mib: u32,
    #[serde(default = "one")]
    cpus: u32,
    #[serde(default)]
    display: bool,
    #[serde(default = "bios")]
    firmware: String,
    #[serde(default)]
    autostart: bool,
    qmp: Option<PathBuf>,
    instance: Option<InstanceId>,
    disks: Vec<DiskToml>,
    #[serde(default)]
    nics: Vec<NicToml>,
    #[serde(default)]
    channels: Vec<ChannelToml>,
    #[serde(default)]
    probe: Probe,
}

fn one() -> u32 {
    1
}

fn bios() -> String {
    "bios".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskToml {
    id: String,
    path: PathBuf,
    format: DiskFormat,
    serial: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NicToml {
    mac: String,
    network: String,
    address: Option<Ipv4Addr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChannelToml {
    name: String,
    path: PathBuf,
}

/// A virtio-serial port between the guest and a unix socket on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Name that the guest sees.
    pub name: String,
    /// The socket; QEMU listens on it.
    pub path: PathBuf,
}

/// A machine's description, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What is needed to start it. Sizes of missing images are 0.
    pub spec: MachineSpec,
    /// Its folder.
    pub folder: PathBuf,
    /// QMP socket of a QEMU that the owner starts; none when we start it.
    pub qmp: Option<PathBuf>,
    /// The instance that this machine is: its process and its console are that one's.
    pub instance: Option<InstanceId>,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// Its channels.
    pub channels: Vec<Channel>,
    /// Why it cannot be used; empty when it can.
    pub obstacles: Vec<Obstacle>,
}

/// Why a machine cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Its code.
    pub code: Code,
    /// What is wrong with which field or file.
    pub what: String,
}

impl Obstacle {
    fn invalid(what: impl Into<String>) -> Self {
        Obstacle { code: Code::MACHINE_INVALID, what: what.into() }
    }
}

/// Why the machines could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("could not list the machines in {}", folder.display())]
pub struct DiscoverError {
    folder: PathBuf,
    source: io::Error,
}

/// Lists every machine of the folder `machines`, by name. Folders without a `machine.toml` and
/// names that start with a dot are not machines; a folder that is not there has none.
///
/// # Errors
/// [`DiscoverError`] when the folder itself cannot be read.
pub fn discover(machines: &Path) -> Result<Vec<Machine>, DiscoverError> {
    let failed = |source| DiscoverError { folder: machines.into(), source };
    let entries = match fs::read_dir(machines) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let folder = entry.map_err(failed)?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = folder.join("machine.toml");
        if name.starts_with('.') || fs::symlink_metadata(&file).is_err_and(is_absent) {
            continue;
        }
        found.push(read(&name, &folder, &file));
    }
    found.sort_by(|a, b| a.0.spec.name.cmp(&b.0.spec.name));
    note_images_given_twice(&mut found);
    Ok(found.into_iter().map(|(machine, _)| machine).collect())
}

fn is_absent(error: io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A machine, and which file each of its disks is.
type Found = (Machine, Vec<(String, FileIdentity)>);

fn read(name: &str, folder: &Path, file: &Path) -> Found {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            let what = format!("could not read {}: {error}", file.display());
            return (unusable(name, folder, Obstacle::invalid(what)), Vec::new());
        }
    };
    match parse(name, folder, &text) {
        Ok(mut machine) => {
            let files = look_at_images(&mut machine);
            (machine, files)
        }
        Err(what) => {
            let what = format!("{}: {what}", file.display());
            (unusable(name, folder, Obstacle::invalid(what)), Vec::new())
        }
    }
}

fn unusable(name: &str, folder: &Path, obstacle: Obstacle) -> Machine {
    let spec = MachineSpec {
        name: name.into(),
        memory_mib: 0,
        cpus: 0,
        firmware: Firmware::Bios,
        disks: Vec::new(),
        nics: Vec::new(),
        display: false,
        probe: Probe::default(),
    };
    Machine {
        spec,
        folder: folder.into(),
        qmp: None,
        instance: None,
        autostart: false,
        channels: Vec::new(),
        obstacles: vec![obstacle],
    }
}

/// Reads a description. Relative paths start at `folder`. Images are not looked at: sizes are 0.
///
/// # Errors
/// What is wrong with which field, in words.
pub fn parse(name: &str, folder: &Path, text: &str) -> Result<Machine, String> {
    let toml: MachineToml = toml::from_str(text).map_err(|error| error.to_string())?;
    check_name("the folder's name", name)?;
    check_range("memory_mib", toml.memory_mib, MEMORY_MIB_MIN..=MEMORY_MIB_MAX)?;
    check_range("cpus", toml.cpus, 1..=CPUS_MAX)?;
    check_range("the number of disks", toml.disks.len() as u32, 1..=DISKS_MAX as u32)?;
    check_range("the number of nics", toml.nics.len() as u32, 0..=NICS_MAX as u32)?;
    check_range("the number of channels", toml.channels.len() as u32, 0..=CHANNELS_MAX as u32)?;
    if toml.firmware != "bios" {
        return Err(format!("firmware: {:?} is not supported, only \"bios\"", toml.firmware));
    }
    let mut ids = BTreeSet::new();
    let mut disks = Vec::new();
    for (number, disk) in toml.disks.into_iter().enumerate() {
        check_name(&format!("disks[{number}].id"), &disk.id)?;
        if !ids.insert(disk.id.clone()) {
            return Err(format!("disks[{number}].id: {:?} is used twice", disk.id));
        }
        disks.push(disk_spec(number as u16, folder, disk)?);
    }
    for (number, nic) in toml.nics.iter().enumerate() {
        check_nic(number, nic)?;
    }
    for (number, channel) in toml.channels.iter().enumerate() {
        check_name(&format!("channels[{number}].name"), &channel.name)?;
    }
    let nics = toml.nics.into_iter().map(|nic| NicSpec {
        mac: nic.mac,
        network: nic.network,
        address: nic.address,
    });
    let channels = toml
        .channels
        .into_iter()
        .map(|channel| Channel { name: channel.name, path: folder.join(channel.path) });
    let spec = MachineSpec {
        name: name.into(),
        memory_mib: toml.memory_mib,
        cpus: toml.cpus,
        firmware: Firmware::Bios,
        disks,
        nics: nics.collect(),
        display: toml.display,
        probe: toml.probe,
    };
    Ok(Machine {
        spec,
        folder: folder.into(),
        qmp: toml.qmp.map(|qmp| folder.join(qmp)),
        instance: toml.instance,
        autostart: toml.autostart,
        channels: channels.collect(),
        obstacles: Vec::new(),
    })
}

fn disk_spec(number: u16, folder: &Path, disk: DiskToml) -> Result<DiskSpec, String> {
    let field = format!("disks[{number}]");
    let serial = disk.serial.unwrap_or_else(|| {
        disk.id.chars().take(SERIAL_BYTES_MAX).collect() // An id is ASCII.
    });
    check_name(&format!("{field}.serial"), &serial)?;
    if serial.len() > SERIAL_BYTES_MAX {
        return Err(format!("{field}.serial: longer than {SERIAL_BYTES_MAX} bytes"));
    }
    let path = folder.join(disk.path);
    let Some(path) = path.to_str() else {
        return Err(format!("{field}.path: not UTF-8"));
    };
    Ok(DiskSpec {
        number: DiskNumber(number),
        id: disk.id,
        serial,
        size: 0,
        block_bytes: LOGICAL_BLOCK_BYTES,
        format: disk.format,
        path: path.into(),
    })
}

/// Checks that a name can be part of a path, of a node name and of QEMU's command line.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MACHINE_NAME_BYTES_MAX {
        return Err(format!("{field}: {name:?} is not 1 to {MACHINE_NAME_BYTES_MAX} bytes long"));
    }
    if !machine_name_fits(name) {
        return Err(format!(
            "{field}: {name:?} may hold letters, digits, '.', '_' and '-' only, and starts with \
             a letter or a digit"
        ));
    }
    Ok(())
}

fn check_range(
    field: &str,
    value: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(format!("{field}: {value} is not within {} to {}", range.start(), range.end()))
}

fn check_nic(number: usize, nic: &NicToml) -> Result<(), String> {
    let parts: Vec<&str> = nic.mac.split(':').collect();
    let is_byte = |part: &&str| part.len() == 2 && u8::from_str_radix(part, 16).is_ok();
    if parts.len() != 6 || !parts.iter().all(is_byte) {
        return Err(format!("nics[{number}].mac: {:?} is not like 52:54:00:12:34:56", nic.mac));
    }
    if !NETWORKS.contains(&nic.network.as_str()) {
        let network = &nic.network;
        return Err(format!("nics[{number}].network: {network:?} is neither user nor isolated"));
    }
    if let Some(address) = nic.address.filter(|address| !nic_address_fits(*address)) {
        return Err(format!("nics[{number}].address: {address} is none that a network gives"));
    }
    Ok(())
}

/// Fills in the sizes, notes what is wrong, returns which file each disk is.
fn look_at_images(machine: &mut Machine) -> Vec<(String, FileIdentity)> {
    let mut files = Vec::new();
    for disk in &mut machine.spec.disks {
        match image::inspect(Path::new(&disk.path), disk.format) {
            Ok(image) => {
                disk.size = image.size;
                files.push((disk.id.clone(), image.identity));
            }
            Err(error) => {
                let code = match &error {
                    ImageError::Missing(_) => Code::DISK_MISSING,
                    ImageError::Read { .. } | ImageError::Format { .. } => Code::MACHINE_INVALID,
                };
                let cause = std::error::Error::source(&error);
                let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                let what = format!("disk {}: {error}{cause}", disk.id);
                machine.obstacles.push(Obstacle { code, what });
            }
        }
    }
    files
}

fn note_images_given_twice(found: &mut [Found]) {
    let mut users: BTreeMap<FileIdentity, Vec<(usize, String)>> = BTreeMap::new();
    for (index, (_, files)) in found.iter().enumerate() {
        for (disk, file) in files {
            users.entry(*file).or_default().push((index, disk.clone()));
        }
    }
    for users in users.into_values().filter(|users| users.len() > 1) {
        let named: Vec<String> = users
            .iter()
            .map(|(index, disk)| format!("{disk} of {}", found[*index].0.spec.name))
            .collect();
        let what = format!("one image is given as disk {}", named.join(" and as disk "));
        let machines: BTreeSet<usize> = users.iter().map(|(index, _)| *index).collect();
        for index in machines {
            let obstacle = Obstacle { code: Code::DISK_TWICE, what: what.clone() };
            found[index].0.obstacles.push(obstacle);
        }
    }
}

#[cfg(test)]
mod tests;
