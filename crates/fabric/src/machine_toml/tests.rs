//! Descriptions, right and wrong.

use super::*;

const WHOLE: &str = r#"
memory_mib = 256
cpus = 2
display = true
firmware = "bios"
autostart = true
qmp = "q"
[[disks]]
id = "boot"
path = "boot.raw"
format = "raw"
serial = "lw0"
[[disks]]
id = "data"
path = "/images/data.qcow2"
format = "qcow2"
[[nics]]
mac = "52:54:00:00:00:01"
network = "user"
[[channels]]
name = "leeward.workload"
path = "w"
[probe]
console_contains = "LEDGER"
timeout_seconds = 30
"#;

const SMALL: &str = "memory_mib = 64\n[[disks]]\nid = \"d\"\npath = \"d.raw\"\nformat = \"raw\"\n";

fn parsed(text: &str) -> Result<Machine, String> {
    parse("web01", Path::new("/m/web01"), text)
}

struct Machines(tempfile::TempDir);

impl Machines {
    fn new() -> Self {
        Machines(tempfile::tempdir().unwrap())
    }

    fn add(&self, name: &str, text: &str) -> PathBuf {
        let folder = self.0.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("machine.toml"), text).unwrap();
        fs::write(folder.join("d.raw"), [0; 1024]).unwrap();
        folder
    }

    fn found(&self) -> Vec<(String, Vec<Obstacle>)> {
        let machines = discover(self.0.path()).unwrap();
        machines.into_iter().map(|machine| (machine.spec.name, machine.obstacles)).collect()
    }
}

#[test]
fn a_whole_description_is_read() {
    let machine = parsed(WHOLE).unwrap();

    assert_eq!((machine.spec.memory_mib, machine.spec.cpus, machine.spec.display), (256, 2, true));
    assert_eq!(machine.qmp.as_deref(), Some(Path::new("/m/web01/q")));
    assert!(machine.autostart);
    assert_eq!(machine.spec.probe.timeout_seconds, 30);
    let disks: Vec<_> = machine.spec.disks.iter().map(|d| (&*d.path, &*d.serial)).collect();
    assert_eq!(disks, [("/m/web01/boot.raw", "lw0"), ("/images/data.qcow2", "data")]);
    assert_eq!(machine.spec.nics[0].network, "user");
    assert_eq!(machine.channels[0].path, Path::new("/m/web01/w"));
}

#[test]
fn an_error_names_its_field() {
    let wrong = [
        ("memory_mib = 256", "memory_mib = 1", "memory_mib: 1 is not within"),
        ("cpus = 2", "cpus = 0", "cpus: 0 is not within"),
        ("cpus = 2", "cpu = 2", "unknown field `cpu`"),
        ("memory_mib = 256", "", "missing field `memory_mib`"),
        ("firmware = \"bios\"", "firmware = \"uefi\"", "firmware: \"uefi\" is not supported"),
        ("id = \"data\"", "id = \"boot\"", "disks[1].id: \"boot\" is used twice"),
        ("id = \"data\"", "id = \"a,b\"", "disks[1].id: \"a,b\" may hold"),
        ("serial = \"lw0\"", "serial = \"123456789012345678901\"", "disks[0].serial: longer"),
        ("format = \"raw\"", "format = \"vmdk\"", "format = \"vmdk\""),
        ("52:54:00:00:00:01", "52:54:00:00:00", "nics[0].mac"),
        ("network = \"user\"", "network = \"lan\"", "nics[0].network: \"lan\" is neither"),
        ("name = \"leeward.workload\"", "name = \"\"", "channels[0].name"),
    ];
    for (right, replacement, says) in wrong {
        assert!(WHOLE.contains(right), "{right} is not in the text");
        let error = parsed(&WHOLE.replacen(right, replacement, 1)).unwrap_err();
        assert!(error.contains(says), "{replacement:?} gave {error:?}, not {says:?}");
    }
}

#[test]
fn the_folder_lists_its_machines_with_sizes_and_skips_what_is_none() {
    let machines = Machines::new();
    machines.add("b", SMALL);
    machines.add("a", SMALL);
    machines.add(".hidden", SMALL);
    fs::create_dir(machines.0.path().join("not-a-machine")).unwrap();
    fs::write(machines.0.path().join("file"), "").unwrap();

    let found = discover(machines.0.path()).unwrap();

    let names: Vec<_> = found.iter().map(|m| (&*m.spec.name, m.spec.disks[0].size)).collect();
    assert_eq!(names, [("a", 1024), ("b", 1024)]);
    assert!(found.iter().all(|machine| machine.obstacles.is_empty()));
    assert!(discover(Path::new("/nonexistent/machines")).unwrap().is_empty());
}

#[test]
fn a_missing_image_is_an_obstacle_with_its_code() {
    let machines = Machines::new();
    let folder = machines.add("a", SMALL);
    fs::remove_file(folder.join("d.raw")).unwrap();

    let found = machines.found();

    assert_eq!(found[0].1[0].code, Code::DISK_MISSING);
    assert!(found[0].1[0].what.contains("a/d.raw is missing"), "{}", found[0].1[0].what);
}

#[test]
fn an_image_given_twice_is_an_obstacle_of_every_machine_that_has_it() {
    let machines = Machines::new();
    machines.add("a", SMALL);
    let b = machines.add("b", SMALL);
    machines.add("c", SMALL);
    fs::remove_file(b.join("d.raw")).unwrap();
    fs::hard_link(machines.0.path().join("a/d.raw"), b.join("d.raw")).unwrap();

    let found = machines.found();

    let twice = |index: usize| found[index].1.iter().map(|o| o.code).collect::<Vec<_>>();
    assert_eq!(twice(0), [Code::DISK_TWICE]);
    assert_eq!(twice(1), [Code::DISK_TWICE]);
    assert_eq!(twice(2), []);
    assert_eq!(found[0].1[0].what, "one image is given as disk d of a and as disk d of b");
}

#[test]
fn an_image_given_twice_in_one_machine_is_one_obstacle() {
    let machines = Machines::new();
    let again = "[[disks]]\nid = \"e\"\npath = \"./d.raw\"\nformat = \"raw\"\n";
    machines.add("a", &format!("{SMALL}{again}"));

    let found = machines.found();

    assert_eq!(found[0].1.len(), 1);
    assert_eq!(found[0].1[0].code, Code::DISK_TWICE);
}

#[test]
fn a_description_that_cannot_be_used_is_listed_with_the_reason() {
    let machines = Machines::new();
    machines.add("bad", "memory_mib = \"much\"");
    machines.add("bad name", SMALL);
    let folder = machines.add("unreadable", SMALL);
    fs::remove_file(folder.join("machine.toml")).unwrap();
    fs::create_dir(folder.join("machine.toml")).unwrap();

    let found = machines.found();

    let whats: Vec<_> = found.iter().map(|(_, obstacles)| &*obstacles[0].what).collect();
    assert!(whats[0].contains("memory_mib"), "{}", whats[0]);
    assert!(whats[1].contains("the folder's name"), "{}", whats[1]);
    assert!(whats[2].contains("could not read"), "{}", whats[2]);
}
