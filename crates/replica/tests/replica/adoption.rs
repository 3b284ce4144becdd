//! What a config server leaves in its store for the next one: generations, of which the highest
//! counts, and sealed configurations, of which the newest that opens does.

use crate::world::{OWNER, SeededRandom, World, identity, init, open_writer};
use leeward_model::{Code, UnixMillis};
use leeward_replica::{
    Generation, NewKeys, RecipientSecret, Store, StoreError, Unlock,
    storage::{BlobStore, CrashDisk, Put, Seeded},
};
use std::sync::Arc;

fn generation(number: u64) -> Generation {
    Generation {
        number,
        by: format!("server {number}"),
        at: UnixMillis(1_000 * number as i64),
        authority: "ab".repeat(32),
        address: "127.0.0.1:8943".into(),
        nonce: uuid::Uuid::from_u128(u128::from(number)),
    }
}

fn reader(disk: &CrashDisk, unlock: &Unlock) -> Result<Store, StoreError> {
    Store::open(Arc::new(disk.clone()), Some(OWNER), unlock, SeededRandom::new(5))
}

fn plain(store: &Store) -> Option<String> {
    let found = store.configuration().unwrap();
    found.map(|(_, bytes)| String::from_utf8(bytes).unwrap())
}

/// Of two config servers that adopt at once one wins, and everybody sees which.
#[test]
fn a_generation_is_put_once_and_the_highest_counts() {
    let disk = CrashDisk::new();
    init(&disk);
    let store = open_writer(Arc::new(disk.clone()), 1).unwrap();
    assert_eq!(store.generation().unwrap(), None);

    assert_eq!(store.generation_put(&generation(1)).unwrap(), Put::Created);
    assert_eq!(store.generation_put(&generation(2)).unwrap(), Put::Created);
    let late = Generation { by: "another".into(), ..generation(2) };
    assert_eq!(store.generation_put(&late).unwrap(), Put::Exists);

    assert_eq!(store.generation().unwrap(), Some(generation(2)));
    assert_eq!(Store::claimed_generation(&disk).unwrap(), Some(generation(2)));
    assert!(store.generation_is_signed(2).unwrap());
    let looks = reader(&disk, &Unlock::KeyFile).unwrap();
    let refused = looks.generation_put(&generation(3)).unwrap_err();
    assert_eq!(refused.code(), Code::BAD_REQUEST, "a reader takes nothing over");
    let mut blobs = disk.blobs();
    let note = blobs.get_mut("generation/0000000002").unwrap();
    let end = note.len() - 1;
    note.truncate(end);
    let damaged = Store::claimed_generation(&CrashDisk::holding(blobs)).unwrap_err();
    assert_eq!(damaged.code(), Code::STORE_DAMAGED);
}

/// E17: the power is cut at every step of taking a store over. The new server's note is there whole
/// or not at all, and stays once it was put; the same server that comes again is the second one
/// and no third.
#[test]
fn a_generation_that_a_power_cut_interrupts_is_there_or_not() {
    let disk = CrashDisk::new();
    init(&disk);
    let store = open_writer(Arc::new(disk.clone()), 1).unwrap();
    store.generation_put(&generation(1)).unwrap();
    let begin = disk.steps();
    assert_eq!(store.generation_put(&generation(2)).unwrap(), Put::Created);
    let end = disk.steps();
    let (mut random, mut seen) = (Seeded::new(17), [0, 0]);

    for step in begin..=end {
        for cut in disk.after_power_cut(step, 16, &mut random) {
            let found = Store::claimed_generation(&cut).unwrap().unwrap();
            assert!(found == generation(1) || found == generation(2), "step {step}: {found:?}");
            assert!(step < end || found == generation(2), "what was put is gone");
            seen[found.number as usize - 1] += 1;

            let again = open_writer(Arc::new(cut.clone()), 2).unwrap();
            let put = again.generation_put(&generation(2)).unwrap();
            let expected = if found.number == 1 { Put::Created } else { Put::Exists };
            assert_eq!(put, expected, "step {step}");
            assert_eq!(Store::claimed_generation(&cut).unwrap(), Some(generation(2)));
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

/// Sealed for the key file and the recovery key, and for nobody else; a few are kept.
#[test]
fn a_configuration_opens_with_either_key_and_old_ones_go() {
    let disk = CrashDisk::new();
    let recovery = init(&disk);
    let store = open_writer(Arc::new(disk.clone()), 2).unwrap();
    assert_eq!(plain(&store), None);

    for number in 1..=20 {
        store.configuration_put(1, format!("secret {number}").as_bytes()).unwrap();
    }
    store.configuration_put(2, b"secret of the next generation").unwrap();
    // A former server that has not noticed yet does not count.
    store.configuration_put(1, b"secret 21").unwrap();

    for unlock in [Unlock::KeyFile, Unlock::Secret(recovery)] {
        let opened = reader(&disk, &unlock).unwrap();
        assert_eq!(plain(&opened).unwrap(), "secret of the next generation");
    }
    let blobs = disk.blobs();
    let kept: Vec<_> = blobs.iter().filter(|(name, _)| name.starts_with("config/")).collect();
    assert_eq!(kept.len(), 8);
    let open = |bytes: &[u8]| bytes.windows(6).any(|part| part == b"secret");
    assert!(!kept.iter().any(|(_, bytes)| open(bytes)), "nothing is readable");
    let other = CrashDisk::new();
    let stranger = Store::init(&other, identity(), SeededRandom::new(12).as_ref()).unwrap();
    assert_eq!(reader(&disk, &Unlock::Secret(stranger)).err().unwrap().code(), Code::KEY_MISSING);
}

/// No changed bit is taken for a configuration: the one before it counts, or none does.
#[test]
fn a_damaged_configuration_is_not_believed() {
    let disk = CrashDisk::new();
    init(&disk);
    let store = open_writer(Arc::new(disk.clone()), 3).unwrap();
    let first = store.configuration_put(1, b"the first").unwrap();
    store.configuration_put(1, b"the second").unwrap();
    assert_eq!(first.number, 1);
    let blobs = disk.blobs();
    let newest = blobs.keys().rfind(|name| name.starts_with("config/")).unwrap().clone();

    for bit in 0..blobs[&newest].len() * 8 {
        let mut wrong = blobs.clone();
        wrong.get_mut(&newest).unwrap()[bit / 8] ^= 1 << (bit % 8);
        let found = reader(&CrashDisk::holding(wrong), &Unlock::KeyFile).unwrap();
        let text = plain(&found);
        // The entry of the recovery key is not looked at when the key file opens.
        assert!(
            text.as_deref() == Some("the first") || text.as_deref() == Some("the second"),
            "bit {bit}: {text:?}"
        );
    }
    let mut short = blobs.clone();
    for name in blobs.keys().filter(|name| name.starts_with("config/")) {
        short.get_mut(name).unwrap().truncate(40);
    }
    let none = reader(&CrashDisk::holding(short), &Unlock::KeyFile).unwrap().configuration();
    assert_eq!(none.unwrap_err().code(), Code::STORE_DAMAGED);
}

/// New recipients find the configuration at once, also when the power is cut in the middle of the
/// change; the former ones find nothing afterwards.
#[test]
fn a_change_of_keys_takes_the_configuration_along() {
    let (disk, mut world) = World::on_crash_disk(31);
    let old = {
        let text = String::from_utf8(disk.blobs()["store.key"].clone()).unwrap();
        Unlock::Secret(RecipientSecret::parse(&text).unwrap())
    };
    let store = world.store.as_mut().unwrap();
    store.configuration_put(1, b"what the server knows").unwrap();
    let begin = disk.steps();
    let rekey = store.rekey_begin(NewKeys::Both).unwrap();
    let recovery = Unlock::Secret(rekey.recovery().unwrap().clone());
    store.rekey_finish(rekey).unwrap();
    let end = disk.steps();

    let mut random = Seeded::new(31);
    for step in begin..=end {
        for cut in disk.after_power_cut(step, 8, &mut random) {
            let mut opened = 0;
            for unlock in [&old, &recovery] {
                let Ok(store) = reader(&cut, unlock) else { continue };
                assert_eq!(plain(&store).as_deref(), Some("what the server knows"), "step {step}");
                opened += 1;
            }
            assert!(opened > 0, "step {step}: nothing opens the store");
        }
    }
    assert!(reader(&disk, &old).is_err());
    let blobs = disk.blobs();
    let left = blobs.keys().filter(|name| name.starts_with("config/")).count();
    assert_eq!(left, 1, "none is left for the former keys");
    assert!(disk.list("config").is_ok());
}
