//! A data key that is made while the item is being replicated (F-158): the session goes on with
//! the former one, the next session takes the new one, and every point stays readable.

use super::*;
use leeward_wire::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use std::collections::BTreeMap;

/// Segments in the home host's store, and the version of the data key that sealed each.
fn sealed_with(home: &End) -> BTreeMap<PathBuf, u32> {
    let folder = home.folder.path().join(format!("store/items/{ITEM}/segments"));
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        // One that was only just begun has no header yet.
        if let Some(head) = bytes.get(..SEGMENT_HEADER_BYTES) {
            found.insert(path, SegmentHeader::decode(head).unwrap().key_version);
        }
    }
    found
}

async fn next_point(home: &End, than: PointId) -> leeward_wire::message::NewestPoint {
    home.seen(|host| newest(host).filter(|point| point.point != than)).await
}

/// What `leeward store rekey --data-keys` does beside the running server.
fn rotate(home: &End) -> u32 {
    let blobs = Arc::new(LocalStore::open(home.folder.path().join("store")).unwrap());
    let store = Store::open(blobs, None, &Unlock::KeyFile, Arc::new(SystemRandom)).unwrap();
    store.item_rotate(ITEM).unwrap()
}

/// F-158.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_key_of_a_live_item_is_rotated_without_a_stop_and_old_points_stay_readable() {
    let (home, mut away, duty) = replicating().await;
    let machine = MachineRef::Owned(NAME.into());
    away.assign(1, Some(duty.clone()), None);
    let first = home.seen(newest).await;
    let at_first = away.content();
    assert!(home.stored(first.position) == at_first);

    assert_eq!(rotate(&home), 2);
    away.machines.guest_write(&machine, DISK, 0, &noise(BLOCK as usize)).unwrap();
    let second = next_point(&home, first.point).await;
    // The running session: nothing stopped, and nothing was sealed with a key it does not have.
    assert!(sealed_with(&home).values().all(|version| *version == 1));

    away.restart("boot");
    away.assign(2, Some(duty), None);
    let bytes = vec![0x6b; 3 * BLOCK as usize];
    away.machines.guest_write(&machine, DISK, 9 * BLOCK, &bytes).unwrap();
    let is_there = |content: &[u8]| content[9 * BLOCK as usize..][..bytes.len()] == bytes[..];
    let third = loop {
        let than = newest(&home.host).map_or(second.point, |point| point.point);
        let next = next_point(&home, than).await;
        if is_there(&home.stored(next.position)) {
            break next;
        }
    };

    let versions: BTreeSet<u32> = sealed_with(&home).into_values().collect();
    assert_eq!(versions, BTreeSet::from([1, 2]), "the new session seals with the new key");
    assert!(home.stored(third.position) == away.content(), "the replica is not the source");
    assert!(home.stored(first.position) == at_first, "an old point cannot be read any more");
    let sent = away.host.board.source_seen(ITEM).unwrap();
    assert_eq!(sent.resync_reason, None, "a rotation is no reason to compare");
}
