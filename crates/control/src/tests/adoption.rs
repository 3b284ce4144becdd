//! Another config server takes over at any moment: what is kept outside is enough, nothing runs
//! twice, and whoever is not in charge any more changes nothing.

use super::*;
use crate::{Adopted, Adoption, KeepError, Keeper, Superseded, restore};
use async_trait::async_trait;
use leeward_model::UnixMillis;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Keeps the newest configuration in memory, until another is in charge.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) newest: Mutex<Vec<u8>>,
    other: Mutex<Option<Superseded>>,
    puts: Mutex<usize>,
}

#[async_trait]
impl Keeper for Memory {
    async fn keep(&self, configuration: &[u8]) -> Result<(), KeepError> {
        if let Some(by) = self.other.lock().unwrap().clone() {
            return Err(KeepError::Superseded(by));
        }
        *self.newest.lock().unwrap() = configuration.to_vec();
        *self.puts.lock().unwrap() += 1;
        Ok(())
    }

    async fn kept(&self) -> Option<Vec<u8>> {
        let newest = self.newest.lock().unwrap().clone();
        Some(newest).filter(|newest| !newest.is_empty())
    }
}

fn other() -> Superseded {
    let (by, address) = ("there".to_owned(), "192.0.2.7:8943".to_owned());
    Superseded { generation: 2, by, at: UnixMillis(1_790_000_000_000), address }
}

pub(super) fn adoption() -> Adoption {
    Adoption {
        host: TARGET,
        generation: 2,
        by: "there".to_owned(),
        at: UnixMillis(1_790_000_000_000),
        fences: BTreeMap::new(),
    }
}

impl Pair {
    /// Another config server on `configuration`: the source's host is as it is, the recovery host
    /// is another machine with the store of the former one.
    async fn adopted(&self, configuration: &[u8]) -> (Pair, Adopted) {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("control.sqlite");
        let adopted = restore(&to, configuration, &adoption()).await.unwrap();
        let mut fleet = self.fleet.fork(&to).await;
        fleet.host(TARGET).replaced();
        (Pair { folder, fleet, vault: self.vault, source: self.source, item: self.item }, adopted)
    }
}

/// E17: the machine of the config server is lost before any turn of a failover. The next server
/// finishes it, or fails over anew, and never do two machines run as the protected one.
#[tokio::test]
async fn whenever_the_config_server_is_lost_the_next_one_can_fail_over() {
    let mut pair = Pair::protected().await;
    let keeper = Arc::new(Memory::default());
    pair.fleet.control.keep_with(keeper.clone());
    pair.fleet.control.configuration_keep().await.unwrap();
    let job = pair.failover(Shutdown::First).await;
    let (mut adoptions, mut went_on) = (0, 0);
    while pair.job(job).await.ended.is_none() {
        let configuration = keeper.newest.lock().unwrap().clone();
        let (mut next, adopted) = pair.adopted(&configuration).await;
        assert_eq!(adopted.items, 1);
        for _ in 0..8 {
            next.fleet.turn().await;
            assert!(next.live().len() <= 1, "two live machines: {:?}", next.live());
        }
        if adopted.jobs > 0 {
            next.finish(job).await;
            went_on += 1;
        }
        let view = next.view().await;
        if view.state.protection == Protection::Protected {
            let again = next.failover(Shutdown::First).await;
            next.succeeds(again).await;
        }
        let view = next.view().await;
        assert!(matches!(view.state.protection, Protection::FailedOver { .. }), "{view:#?}");
        assert_eq!(next.live().len(), 1, "{view:#?}");
        adoptions += 1;
        pair.fleet.turn().await;
    }
    println!("{adoptions} adoptions, {went_on} of them in the middle of the failover's job");
    assert!(went_on > 3);
}

/// A machine that had been failed over ran on the server that is lost. It is not started again by
/// itself; going back to the old site works, and so does another point.
#[tokio::test]
async fn a_machine_that_ran_on_the_lost_server_starts_only_when_a_person_says_so() {
    let pair = Pair::failed_over().await;
    let keeper = Arc::new(Memory::default());
    pair.fleet.control.keep_with(keeper.clone());
    pair.fleet.control.configuration_keep().await.unwrap();
    let configuration = keeper.newest.lock().unwrap().clone();

    let (mut next, adopted) = pair.adopted(&configuration).await;
    assert_eq!(adopted.machines_lost, 1);
    for _ in 0..20 {
        next.fleet.turn().await;
        assert_eq!(next.live(), Vec::<String>::new(), "nobody asked for it");
    }
    let events = next.fleet.control.event_list(next.vault, 0, 1000).await.unwrap();
    let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
    assert!(names.contains(&"MachineNotHere") && names.contains(&"StoreAdopted"), "{names:?}");

    let control = next.fleet.control.clone();
    let back = control.item_failover_cancel(next.item).await.unwrap();
    next.succeeds(back).await;
    next.is_protected().await;
    assert_eq!(next.live(), ["web01"]);
}

/// E17: a config server that is not in charge reads, and refuses every change by saying
/// who is. Its hosts' sessions end, and none begins.
#[tokio::test]
async fn a_superseded_config_server_changes_nothing() {
    let mut pair = Pair::protected().await;
    let keeper = Arc::new(Memory::default());
    pair.fleet.control.keep_with(keeper.clone());
    pair.fleet.control.configuration_keep().await.unwrap();
    // What was on its way to the hosts has arrived.
    pair.fleet.turn().await;
    pair.fleet.step().await;
    *keeper.other.lock().unwrap() = Some(other());

    // The step of a job is where it notices, before a host hears of it.
    let told = pair.fleet.host(TARGET).generation();
    let control = pair.fleet.control.clone();
    let refused = control.item_failover(pair.item, PointChoice::Latest, Shutdown::Leave).await;
    for _ in 0..8 {
        pair.fleet.step().await;
        pair.fleet.control.tick().await.unwrap();
    }

    let by = pair.fleet.control.superseded().unwrap();
    assert_eq!(by, &other());
    if let Err(error) = refused {
        assert_eq!((error.kind, error.problem.code.as_str()), (ErrorKind::Conflict, "LW-0711"));
    }
    assert_eq!(pair.fleet.host(TARGET).generation(), told, "no host was told anything");
    let view = pair.view().await;
    assert!(!view.source_connected && !view.target_connected, "no session lives on");
    let again = control.item_failover(pair.item, PointChoice::Latest, Shutdown::Leave).await;
    let error = again.unwrap_err();
    assert_eq!(error.problem.code, Code::SUPERSEDED.code);
    assert!(error.problem.what.contains("192.0.2.7:8943"), "{error}");
}

/// Points that come do not make the configuration another one; what is configured does.
#[tokio::test]
async fn points_cost_no_configuration() {
    let mut pair = Pair::protected().await;
    let keeper = Arc::new(Memory::default());
    pair.fleet.control.keep_with(keeper.clone());
    pair.fleet.control.configuration_keep().await.unwrap();
    let before = *keeper.puts.lock().unwrap();
    let newest = pair.view().await.newest;

    for _ in 0..30 {
        pair.fleet.turn().await;
        pair.fleet.control.configuration_keep().await.unwrap();
    }
    assert_ne!(pair.view().await.newest, newest, "points were made");
    assert_eq!(*keeper.puts.lock().unwrap(), before);

    let control = pair.fleet.control.clone();
    control.policy_put(pair.vault, "silver", PolicySpec::default()).await.unwrap();
    control.configuration_keep().await.unwrap();
    assert_eq!(*keeper.puts.lock().unwrap(), before + 1);
}

/// Nothing but a whole configuration of a known form makes a database, and a refused one leaves no
/// rows behind.
#[tokio::test]
async fn what_is_no_configuration_makes_no_database() {
    let pair = Pair::protected().await;
    let keeper = Arc::new(Memory::default());
    pair.fleet.control.keep_with(keeper.clone());
    pair.fleet.control.configuration_keep().await.unwrap();
    let good = String::from_utf8(keeper.newest.lock().unwrap().clone()).unwrap();
    let newer = good.replacen("\"schema\":", "\"schema\":9", 1);
    let folder = tempfile::tempdir().unwrap();

    for (number, bad) in ["", "{}", &newer, &good[..good.len() / 2]].iter().enumerate() {
        let to = folder.path().join(format!("{number}.sqlite"));
        assert!(restore(&to, bad.as_bytes(), &adoption()).await.is_err(), "{number}");
    }
    let to = folder.path().join("good.sqlite");
    assert_eq!(restore(&to, good.as_bytes(), &adoption()).await.unwrap().items, 1);
}
