//! The description of an owner's machine that an instance has become.
//!
//! Pure: makes the text from the former one; `qemu/description.rs` puts it in place.

use super::{LOGICAL_BLOCK_BYTES, parse};
use leeward_model::{DiskNumber, Figure, InstanceId, MachineChanges, MachineSpec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// First line of such a description, for the owner.
const HEADING: &str = "# Written by Leeward: this machine was made from a recovery point. Its \
                       former description, if there was one, is beside this file.\n";

/// The description of machine `name` in `folder` whose disks are `overlays`, by number, and which
/// is `instance`. Everything else is the former description's, or `spec`'s without a former one,
/// but for what `changes` set, and for where the cards that both have are attached: that is as in
/// `spec`. A disk keeps the serial number that the former description gives its id.
///
/// # Errors
/// What is wrong with the former description, or why `spec` cannot be described, in words.
pub fn settled_text(
    (name, folder): (&str, &Path),
    former: Option<&str>,
    (spec, changes): (&MachineSpec, &MachineChanges),
    overlays: &BTreeMap<DiskNumber, PathBuf>,
    instance: InstanceId,
) -> Result<String, String> {
    let mut table = match former {
        Some(text) => {
            parse(name, folder, text)?;
            text.parse::<Table>().map_err(|error| error.to_string())?
        }
        None => table_of(spec)?,
    };
    change(&mut table, spec, changes);
    let disks = disks_of(&table, spec, overlays)?;
    table.remove("qmp"); // That of a QEMU that the owner started.
    table.insert("instance".into(), instance.to_string().into());
    table.insert("disks".into(), disks);
    let text = toml::to_string(&table).map_err(|error| error.to_string())?;
    parse(name, folder, &text)?;
    Ok(format!("{HEADING}{text}"))
}

/// Writes what was set, and where the cards are attached.
fn change(table: &mut Table, spec: &MachineSpec, changes: &MachineChanges) {
    for (field, figure) in [("memory_mib", changes.memory_mib), ("cpus", changes.cpus)] {
        if let Figure::Set(figure) = figure {
            table.insert(field.into(), i64::from(figure).into());
        }
    }
    let cards = table.get_mut("nics").and_then(Value::as_array_mut).into_iter().flatten();
    for card in cards.filter_map(Value::as_table_mut) {
        let mac = card.get("mac").and_then(Value::as_str).unwrap_or_default();
        let Some(nic) = spec.nics.iter().find(|nic| nic.mac.eq_ignore_ascii_case(mac)) else {
            continue;
        };
        card.insert("network".into(), nic.network.clone().into());
        match nic.address {
            Some(address) => card.insert("address".into(), address.to_string().into()),
            None => card.remove("address"),
        };
    }
}

fn table_of(spec: &MachineSpec) -> Result<Table, String> {
    let mut table = Table::new();
    table.insert("memory_mib".into(), i64::from(spec.memory_mib).into());
    table.insert("cpus".into(), i64::from(spec.cpus).into());
    table.insert("display".into(), spec.display.into());
    table.insert("autostart".into(), false.into());
    let nic = |nic: &leeward_model::NicSpec| {
        let mut table = Table::new();
        table.insert("mac".into(), nic.mac.clone().into());
        table.insert("network".into(), nic.network.clone().into());
        let address = nic.address.map(|address| address.to_string());
        table.extend(address.map(|address| ("address".to_owned(), address.into())));
        Value::Table(table)
    };
    if !spec.nics.is_empty() {
        table.insert("nics".into(), Value::Array(spec.nics.iter().map(nic).collect()));
    }
    let probe = Table::try_from(&spec.probe).map_err(|error| error.to_string())?;
    table.insert("probe".into(), Value::Table(probe));
    Ok(table)
}

fn disks_of(
    former: &Table,
    spec: &MachineSpec,
    overlays: &BTreeMap<DiskNumber, PathBuf>,
) -> Result<Value, String> {
    let known = former.get("disks").and_then(Value::as_array).into_iter().flatten();
    let known: Vec<&Table> = known.filter_map(Value::as_table).collect();
    let mut disks = Vec::new();
    for (place, (number, path)) in overlays.iter().enumerate() {
        if usize::from(number.0) != place {
            // A disk's number is its place in the description.
            return Err(format!("it has no disk {place} but a disk {number}"));
        }
        let described = spec.disks.iter().find(|disk| disk.number == *number);
        let id = described.map_or_else(|| format!("disk{number}"), |disk| disk.id.clone());
        if let Some(other) = described.filter(|disk| disk.block_bytes != LOGICAL_BLOCK_BYTES) {
            return Err(format!("disk {id} has blocks of {} bytes", other.block_bytes));
        }
        let before = known.iter().find(|disk| disk.get("id").and_then(Value::as_str) == Some(&id));
        let serial = match before {
            Some(before) => before.get("serial").cloned(),
            None => described.map(|disk| disk.serial.clone().into()),
        };
        let path = path.to_str().ok_or_else(|| format!("the path of disk {id} is not UTF-8"))?;
        let mut disk = Table::new();
        disk.insert("id".into(), id.into());
        disk.insert("path".into(), path.into());
        disk.insert("format".into(), "qcow2".into());
        disk.extend(serial.map(|serial| ("serial".to_owned(), serial)));
        disks.push(Value::Table(disk));
    }
    Ok(Value::Array(disks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::{DiskFormat, DiskSpec, Firmware, NicSpec, Probe};

    const INSTANCE: InstanceId = InstanceId::from_u128(7);
    const FORMER: &str = "memory_mib = 64\ncpus = 2\nautostart = true\nqmp = \"q\"\n\
        [[disks]]\nid = \"boot\"\npath = \"b.raw\"\nformat = \"raw\"\nserial = \"lw0\"\n\
        [[channels]]\nname = \"w\"\npath = \"w\"\n[probe]\nconsole_contains = \"ready\"\n";

    fn spec() -> MachineSpec {
        let disk = |number: u16, id: &str| DiskSpec {
            number: DiskNumber(number),
            id: id.into(),
            serial: format!("other{number}"),
            size: 1 << 20,
            block_bytes: 512,
            format: DiskFormat::Raw,
            path: "/elsewhere".into(),
        };
        MachineSpec {
            name: "web01".into(),
            memory_mib: 32,
            cpus: 1,
            firmware: Firmware::Bios,
            disks: vec![disk(0, "boot"), disk(1, "data")],
            nics: vec![NicSpec {
                mac: "52:54:00:00:00:01".into(),
                network: "user".into(),
                address: None,
            }],
            display: true,
            probe: Probe::default(),
        }
    }

    /// A machine of which nothing was set.
    fn as_is(spec: &MachineSpec) -> (&MachineSpec, &MachineChanges) {
        const NONE: &MachineChanges = &MachineChanges {
            memory_mib: Figure::Point,
            cpus: Figure::Point,
            nics: Vec::new(),
            networks: BTreeMap::new(),
            networks_home: BTreeMap::new(),
            test_network: None,
        };
        (spec, NONE)
    }

    fn overlays(numbers: &[u16]) -> BTreeMap<DiskNumber, PathBuf> {
        let path = |number: &u16| (DiskNumber(*number), format!("/i/disk-{number}.qcow2").into());
        numbers.iter().map(path).collect()
    }

    fn place() -> (&'static str, &'static Path) {
        ("web01", Path::new("/m/web01"))
    }

    #[test]
    fn what_still_applies_of_the_former_description_is_kept_and_a_new_disk_is_added() {
        let text =
            settled_text(place(), Some(FORMER), as_is(&spec()), &overlays(&[0, 1]), INSTANCE);
        let text = text.unwrap();
        let machine = parse("web01", Path::new("/m/web01"), &text).unwrap();

        assert_eq!((machine.instance, machine.qmp), (Some(INSTANCE), None));
        assert_eq!((machine.spec.memory_mib, machine.spec.cpus), (64, 2));
        assert!(machine.autostart && machine.spec.nics.is_empty());
        assert_eq!(machine.channels[0].path, Path::new("/m/web01/w"));
        assert_eq!(machine.spec.probe.console_contains.as_deref(), Some("ready"));
        let disks = machine.spec.disks.iter();
        let disks: Vec<_> = disks.map(|d| (&*d.id, &*d.serial, &*d.path, d.format)).collect();
        let expected = [
            ("boot", "lw0", "/i/disk-0.qcow2", DiskFormat::Qcow2),
            ("data", "other1", "/i/disk-1.qcow2", DiskFormat::Qcow2),
        ];
        assert_eq!(disks, expected);
    }

    /// F-051, F-052.
    #[test]
    fn what_was_set_and_where_the_cards_are_attached_is_written_over_the_former_description() {
        let former = format!(
            "{FORMER}\n[[nics]]\nmac = \"52:54:00:00:00:01\"\nnetwork = \"user\"\n\
             address = \"10.0.2.9\"\n[[nics]]\nmac = \"52:54:00:00:00:02\"\nnetwork = \"user\"\n"
        );
        let address = Some(std::net::Ipv4Addr::new(10, 9, 9, 50));
        let mut spec = spec();
        (spec.nics[0].network, spec.nics[0].address) = ("isolated".into(), address);
        let changes = MachineChanges { memory_mib: Figure::Set(48), ..MachineChanges::default() };

        let set = (&spec, &changes);
        let text = settled_text(place(), Some(&former), set, &overlays(&[0]), INSTANCE).unwrap();
        let machine = parse("web01", Path::new("/m/web01"), &text).unwrap();

        assert_eq!((machine.spec.memory_mib, machine.spec.cpus), (48, 2));
        let cards = machine.spec.nics.iter().map(|nic| (&*nic.network, nic.address));
        assert_eq!(cards.collect::<Vec<_>>(), [("isolated", address), ("user", None)]);
    }

    #[test]
    fn without_a_former_description_everything_comes_from_the_machine_itself() {
        let text =
            settled_text(place(), None, as_is(&spec()), &overlays(&[0, 1]), INSTANCE).unwrap();
        let machine = parse("web01", Path::new("/m/web01"), &text).unwrap();

        assert!(!machine.autostart);
        assert_eq!((machine.spec.memory_mib, machine.spec.display), (32, true));
        assert_eq!((&machine.spec.nics, machine.spec.probe), (&spec().nics, Probe::default()));
        assert_eq!(machine.spec.disks[1].serial, "other1");
    }

    #[test]
    fn disks_whose_numbers_are_not_their_places_cannot_be_described() {
        let gap = settled_text(place(), None, as_is(&spec()), &overlays(&[0, 2]), INSTANCE);
        let gap = gap.unwrap_err();
        assert!(gap.contains("it has no disk 1 but a disk 2"), "{gap}");
        let broken = settled_text(place(), Some("x"), as_is(&spec()), &overlays(&[0]), INSTANCE);
        assert!(broken.is_err());
    }
}
