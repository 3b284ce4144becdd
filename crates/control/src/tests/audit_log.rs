//! The audit log's chain: whatever somebody changes in it behind the server's back is found, also
//! when the end is cut off, and a takeover goes on with it.

use super::adoption::{Memory, adoption};
use super::*;
use crate::audit_log::{AuditAnchor, AuditCaller, AuditOutcome};
use crate::{Store, restore};
use std::sync::Arc;

/// Entries in the logs of these tests.
const ENTRIES: u64 = 12;

fn caller() -> AuditCaller {
    let (who, role) = ("alice".to_owned(), "Owner".to_owned());
    AuditCaller { who, role, from: "192.0.2.1".to_owned(), correlation: "c".to_owned() }
}

/// A config server whose log has [`ENTRIES`] entries.
async fn logged() -> Pair {
    let pair = Pair::joined().await;
    let before = newest(&pair).await;
    for number in before..ENTRIES {
        let asked = pair.fleet.control.audited(caller(), "PolicyPut", &format!("policy {number}"));
        asked.policy_put(pair.vault, "gold", PolicySpec::default()).await.unwrap();
        assert!(asked.audit_close(None).await);
    }
    assert_eq!(newest(&pair).await, ENTRIES);
    pair
}

async fn newest(pair: &Pair) -> u64 {
    let all = pair.fleet.control.audit_list(0, 1000).await.unwrap();
    all.last().map_or(0, |entry| entry.number)
}

/// The first broken entry, if any.
async fn broken(pair: &Pair) -> Option<u64> {
    let verdict = pair.fleet.control.audit_verify(None).await.unwrap();
    assert_eq!(verdict.problem().is_some(), verdict.broken.is_some());
    verdict.broken.map(|(number, _)| number)
}

async fn change(pair: &Pair, sql: &str) {
    let store: &Store = pair.fleet.control.store_plain();
    store.execute(sql).await;
}

/// Each single change of the table is found, and the entry that is named is the first that is not
/// as it was written.
#[tokio::test]
async fn whatever_is_changed_removed_or_moved_the_first_broken_entry_is_named() {
    let sound = logged().await;
    assert_eq!(broken(&sound).await, None);
    for at in 1..=ENTRIES {
        let alone = format!("WHERE number = {at}");
        let body = format!("UPDATE audit_log SET body = replace(body, 'e', 'E') {alone}");
        let hash = format!("UPDATE audit_log SET hash = upper(hash) {alone}");
        let gone = format!("DELETE FROM audit_log {alone}");
        let words = format!("UPDATE audit_log SET body = 'x' {alone}");
        for sql in [&body, &hash, &gone, &words] {
            // A removed end is what only an anchor can tell.
            if at == ENTRIES && sql == &gone {
                continue;
            }
            let pair = sound.fork().await;
            change(&pair, sql).await;
            let found = broken(&pair).await.unwrap_or_else(|| panic!("not found: {sql}"));
            // A hash that is another one shows at the entry itself, the first one included.
            assert_eq!(found, at, "{sql}");
        }
        if at < ENTRIES {
            let pair = sound.fork().await;
            let next = at + 1;
            change(
                &pair,
                &format!(
                    "UPDATE audit_log SET number = -1 WHERE number = {at}; \
                     UPDATE audit_log SET number = {at} WHERE number = {next}; \
                     UPDATE audit_log SET number = {next} WHERE number = -1"
                ),
            )
            .await;
            assert_eq!(broken(&pair).await, Some(at), "{at} and {next} were swapped");
        }
    }
}

/// A head that somebody noted finds an end that was cut off, and one that was written anew with
/// good hashes.
#[tokio::test]
async fn a_head_that_was_noted_elsewhere_finds_an_end_that_was_cut_off() {
    let pair = logged().await;
    let head = pair.fleet.control.audit_verify(None).await.unwrap().head.unwrap();
    change(&pair, &format!("DELETE FROM audit_log WHERE number >= {}", ENTRIES - 2)).await;
    let verify = async |seen: &AuditAnchor| {
        let verdict = pair.fleet.control.audit_verify(Some(seen.clone())).await.unwrap();
        verdict.broken.map(|(number, _)| number)
    };

    assert_eq!(broken(&pair).await, None, "the chain alone cannot know");
    assert_eq!(verify(&head).await, Some(ENTRIES));
    while newest(&pair).await < ENTRIES {
        let asked = pair.fleet.control.audited(caller(), "PolicyPut", "another");
        asked.audit_close(None).await;
    }
    assert_eq!(broken(&pair).await, None);
    assert_eq!(verify(&head).await, Some(ENTRIES), "as many entries, and not the same");
}

/// The configuration that is kept in the store anchors the log: a server that starts on a database
/// with a shorter log says so, for good, and goes on.
#[tokio::test]
async fn a_start_on_a_database_with_a_shorter_log_is_told_and_stays_told() {
    let mut pair = logged().await;
    let keeper = Arc::new(Memory::default());
    pair.fleet.control.keep_with(keeper.clone());
    pair.fleet.control.configuration_keep().await.unwrap();
    let lost = ENTRIES - 3;
    change(&pair, &format!("DELETE FROM audit_log WHERE number >= {lost}")).await;
    assert_eq!(broken(&pair).await, Some(lost), "what is kept tells it at once");

    pair.restart().await;
    pair.fleet.control.keep_with(keeper.clone());
    pair.fleet.control.configuration_keep().await.unwrap();

    assert_eq!(broken(&pair).await, Some(lost), "also once the kept one is the short one");
    let events = pair.fleet.control.event_list(pair.vault, 0, 1000).await.unwrap();
    let told: Vec<_> = events.iter().filter(|event| event.name == "AuditLogBroken").collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].problem.as_ref().unwrap().code, "LW-0801");
    pair.restart().await;
    pair.fleet.control.keep_with(keeper.clone());
    pair.fleet.control.configuration_keep().await.unwrap();
    let events = pair.fleet.control.event_list(pair.vault, 0, 1000).await.unwrap();
    assert_eq!(events.iter().filter(|event| event.name == "AuditLogBroken").count(), 1);
}

/// E17: another config server goes on behind the entries that were kept, and says so.
#[tokio::test]
async fn a_config_server_that_takes_over_goes_on_with_the_log() {
    let mut pair = logged().await;
    // More than what is kept of a log, so that the new one begins later than the old one.
    for number in 0..300 {
        let asked = pair.fleet.control.audited(caller(), "ItemGet", &format!("{number}"));
        asked.audit_close(Some((AuditOutcome::Refused, "LW-0103"))).await;
    }
    let keeper = Arc::new(Memory::default());
    pair.fleet.control.keep_with(keeper.clone());
    pair.fleet.control.configuration_keep().await.unwrap();
    let head = pair.fleet.control.audit_verify(None).await.unwrap().head.unwrap();
    let configuration = keeper.newest.lock().unwrap().clone();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("control.sqlite");
    restore(&to, &configuration, &adoption()).await.unwrap();
    pair.fleet = pair.fleet.fork(&to).await;

    let verdict = pair.fleet.control.audit_verify(Some(head.clone())).await.unwrap();
    assert_eq!(verdict.broken, None);
    assert!(verdict.first > 1, "only the newest entries were kept");
    assert_eq!(verdict.head.unwrap().number, head.number + 1);
    let all = pair.fleet.control.audit_list(head.number, 1000).await.unwrap();
    let record = all[0].record.as_ref().unwrap();
    assert_eq!((record.action.as_str(), record.who.as_str()), ("StoreAdopted", "there"));
    change(&pair, &format!("DELETE FROM audit_log WHERE number = {}", verdict.first)).await;
    assert_eq!(broken(&pair).await, Some(verdict.first), "its beginning is protected too");
}

/// No change without its entry: while the log cannot be written, nothing is changed.
#[tokio::test]
async fn a_change_and_its_entry_are_stored_together_or_not_at_all() {
    let pair = logged().await;
    change(&pair, "ALTER TABLE audit_log RENAME TO gone").await;

    let asked = pair.fleet.control.audited(caller(), "PolicyPut", "policy silver");
    asked.policy_put(pair.vault, "silver", PolicySpec::default()).await.unwrap_err();

    let policies = pair.fleet.control.policy_list(pair.vault).await.unwrap();
    assert_eq!(policies.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>(), ["gold"]);
    change(&pair, "ALTER TABLE gone RENAME TO audit_log").await;
    assert_eq!((broken(&pair).await, newest(&pair).await), (None, ENTRIES));
}
