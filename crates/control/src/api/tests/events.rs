//! Events over HTTP: whoever follows them misses none.

use super::protected::World;
use super::*;

/// A follower that gives the number of the last event that it saw gets every event once, in their
/// order, however pages and new events fall.
#[tokio::test]
async fn whoever_follows_events_by_their_numbers_misses_none_while_more_come() {
    let mut world = World::protected().await;
    let list = format!("{VAULT}/replicationEvents");
    let (mut cursor, mut followed) = ("0".to_owned(), Vec::new());
    for round in 0..60 {
        if round % 20 == 5 {
            let path = format!("{}/repairReplication", world.item);
            world.api.post(&path, json!({})).await;
        }
        world.api.fleet.turn().await;
        let size = 1 + round % 3;
        let page = world.api.get(&format!("{list}?$take={size}&skipToken={cursor}")).await.body;
        for event in page["value"].as_array().unwrap() {
            cursor = event["name"].as_str().unwrap().to_owned();
            followed.push(cursor.clone());
        }
    }

    let all = world.api.get(&format!("{list}?$take=1000")).await.body;
    let all: Vec<_> =
        all["value"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert!(all.len() > 6, "events came while they were followed: {all:?}");
    assert_eq!(followed, all);
}
