//! Actions of recovery plans over scripted hosts and a scripted world outside: order, failures,
//! cancels, crashes, and what is taken back.

use super::plans::{Three, boot, input, parts_of, person};
use super::*;
use crate::jobs::{JobAnswer, PlanPart};
use crate::plans::{
    Act, Action, DnsUpdate, GroupInput, GroupKind, KeyAlgorithm, Secret, Task, Verb, What,
};
use crate::testing::ScriptedActions;
use leeward_model::Direction;

const SECRET: &str = "c2l4dGVlbiBieXRlcyBhdCBsZWFzdA==";

fn act(name: &str, act: Act) -> Action {
    Action { what: What::Act { act }, ..person(name) }
}

fn script(name: &str) -> Action {
    act(name, Act::Script { path: format!("{name}.sh"), timeout_s: 60 })
}

fn webhook(name: &str, secret: Option<Secret>) -> Action {
    let url = format!("https://hooks.example/{name}");
    act(name, Act::Webhook { url, timeout_s: 60, retries: 2, secret })
}

fn dns(name: &str, key: Option<Secret>) -> Action {
    let update = DnsUpdate {
        server: "127.0.0.1:53".to_owned(),
        zone: "shop.example".to_owned(),
        name: "db.shop.example".to_owned(),
        ttl_s: 60,
        addresses: vec!["10.2.0.5".parse().unwrap()],
        key_name: "leeward".to_owned(),
        key_algorithm: KeyAlgorithm::HmacSha256,
        key,
    };
    act(name, Act::Dns { update, timeout_s: 60 })
}

fn wait(name: &str) -> Action {
    act(name, Act::Wait { url: "tcp://10.2.0.5:5432".to_owned(), timeout_s: 60 })
}

fn key_of_it() -> Option<Secret> {
    Some(Secret::new(SECRET))
}

/// An action of each kind at each place where one can stand.
pub(super) fn add_to_groups(groups: &mut Vec<GroupInput>) {
    groups[0].after = vec![dns("name", key_of_it())];
    groups[1].before = vec![wait("up")];
    groups[1].after = vec![script("tell")];
    let whole = |kind| GroupInput { kind, ..boot(&[]) };
    let shutdown = GroupInput { before: vec![script("users")], ..whole(GroupKind::Shutdown) };
    let routes = vec![webhook("routes", key_of_it())];
    let failover = GroupInput { after: routes, ..whole(GroupKind::Failover) };
    groups.splice(0..0, [shutdown, failover]);
}

/// What was done for machines that went stays, what was done for machines that are back does not.
pub(super) fn check_what_stays(outside: &ScriptedActions, gone: &[String]) {
    let set: Vec<_> = outside.set().into_iter().filter(|name| name != "up").collect();
    let of = |name: &str| match name {
        "name" => gone.iter().any(|one| one == "db01"),
        "tell" => gone.iter().any(|one| one == "web01"),
        _ => !gone.is_empty(),
    };
    assert!(set.iter().all(|name| of(name)), "{gone:?} went, {set:?} stays");
    if gone.len() == 2 {
        assert_eq!(set, ["name", "routes", "tell", "users"]);
    }
}

/// `db01` and `web01` in two groups, with all kinds of actions around.
async fn with_actions() -> Three {
    let three = Three::protected().await;
    let mut groups = vec![boot(&["db01"]), boot(&["web01"])];
    add_to_groups(&mut groups);
    three.put(groups).await;
    three
}

fn order(outside: &ScriptedActions) -> Vec<String> {
    let name = |(name, task): (String, Task)| match task {
        Task::Look => format!("?{name}"),
        Task::Do => name,
        Task::Undo => format!("-{name}"),
    };
    outside.done().into_iter().map(name).collect()
}

const ALL: [&str; 6] = ["users", "routes", "?name", "name", "up", "tell"];

/// F-161: each at its place, and each is told what it is part of.
#[tokio::test]
async fn actions_are_done_in_order_and_told_of_the_failover() {
    let mut three = with_actions().await;
    let job = three.start(Verb::UnplannedFailover).await;
    let view = three.ends(job, RunState::Succeeded).await;

    assert_eq!(order(&three.fleet.actions), ALL);
    let runs = three.fleet.actions.runs();
    let first = &runs[0].facts;
    assert_eq!((first.plan.as_str(), first.job, first.verb), ("shop", job, runs[5].facts.verb));
    assert_eq!(first.direction, Some(Direction::ToRecovery));
    assert_eq!((first.machines.len(), first.machines[0].site), (2, Site::Primary));
    let last = &runs[5].facts;
    assert_eq!((last.group.as_str(), last.action.as_str()), ("Group 2", "tell"));
    let web = &last.machines[0];
    assert_eq!((web.name.as_str(), web.site), ("web01", Site::Recovery));
    assert!(web.point.is_some() && web.host == "recovery-host", "{web:?}");
    let Act::Dns { update, .. } = &runs[3].act else { panic!() };
    assert_eq!(update.key, key_of_it());
    assert_eq!(runs[3].found, Some(serde_json::json!("before")));

    let parts = parts_of(&view, "Group 2");
    let PlanPart::Act { output, .. } = &parts[2].part else { panic!("{parts:?}") };
    assert_eq!((output.as_str(), parts[2].task.state), ("done", RunState::Succeeded));
    // The secrets are with the plan alone.
    let mut tx = three.fleet.control.store().read().await.unwrap();
    let record = crate::store::jobs::find(&mut tx, job).await.unwrap().unwrap().record;
    assert!(!serde_json::to_string(&record).unwrap().contains(SECRET));
}

/// F-161: only with the failovers and in the directions that it names.
#[tokio::test]
async fn an_action_is_done_only_where_it_is_to_be() {
    let mut three = Three::protected().await;
    let test = Action { verbs: vec![Verb::TestFailover], ..script("test") };
    let home = Action { directions: vec![Direction::ToPrimary], ..script("home") };
    let group = GroupInput { after: vec![test, home, script("all")], ..boot(&["db01"]) };
    three.put(vec![group]).await;

    three.done(Verb::UnplannedFailover).await;
    assert_eq!(order(&three.fleet.actions), ["all"]);
    three.done(Verb::Commit).await;
    three.done(Verb::PlannedFailover).await;
    assert_eq!(order(&three.fleet.actions), ["all", "home", "all"]);
}

/// F-074, F-161: an unplanned failover goes on, and says what failed.
#[tokio::test]
async fn an_unplanned_failover_goes_on_without_an_action_that_fails() {
    let mut three = with_actions().await;
    three.fleet.actions.fail("routes", Task::Do, true);
    three.fleet.actions.fail("name", Task::Look, true);
    let job = three.start(Verb::UnplannedFailover).await;

    let view = three.ends(job, RunState::SucceededWithWarning).await;

    assert_eq!(order(&three.fleet.actions), ["users", "routes", "?name", "up", "tell"]);
    assert_eq!(view.errors[0].code, Code::PLAN_ACTION_FAILED.code);
    let what = &view.errors[0].what;
    assert!(what.contains("routes: it said no") && what.contains("name"), "{what}");
    let part = &parts_of(&view, "All groups failover")[0];
    assert_eq!(part.task.state, RunState::Failed);
    let PlanPart::Act { code, .. } = &part.part else { panic!() };
    assert_eq!(*code, Some(7));
    assert_eq!(three.item(2).await.live_at, LiveAt::Site(Site::Recovery));
}

/// F-074, F-161: a planned failover asks: again, without it, or back.
#[tokio::test]
async fn a_planned_failover_asks_about_an_action_that_fails() {
    let mut three = with_actions().await;
    let outside = three.fleet.actions.clone();
    outside.fail("routes", Task::Do, true);
    let job = three.start(Verb::PlannedFailover).await;
    let view = three.ends(job, RunState::Suspended).await;
    let question = view.question.unwrap();
    assert!(question.starts_with("LW-0334: action routes failed (attempt 1)"), "{question}");
    assert_ne!(three.item(0).await.live_at, LiveAt::Site(Site::Recovery));

    three.fleet.control.job_resume(three.vault, job, JobAnswer::Retry).await.unwrap();
    let view = three.ends(job, RunState::Suspended).await;
    assert!(view.question.unwrap().contains("(attempt 2)"));
    outside.fail("routes", Task::Do, false);
    outside.fail("tell", Task::Do, true);
    three.resume(job, "I have mended it").await;
    let view = three.ends(job, RunState::Suspended).await;
    assert!(view.question.unwrap().contains("action tell failed (attempt 1)"));
    three.resume(job, "go-on").await;

    let view = three.ends(job, RunState::SucceededWithWarning).await;
    assert!(view.errors[0].what.contains("tell") && !view.errors[0].what.contains("routes"));
    let attempts: Vec<_> = outside.runs().iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 1, 2, 3, 1, 1, 1, 1]);
}

/// F-161: a planned failover that is given up at an action takes back what was done before.
#[tokio::test]
async fn a_failover_that_is_given_up_takes_its_actions_back() {
    let mut three = with_actions().await;
    three.fleet.actions.fail("routes", Task::Do, true);
    let job = three.start(Verb::PlannedFailover).await;
    three.ends(job, RunState::Suspended).await;
    three.fleet.control.job_cancel(three.vault, job).await.unwrap();

    let view = three.ends(job, RunState::Cancelled).await;

    assert_eq!(order(&three.fleet.actions), ["users", "routes", "-routes", "-users"]);
    assert_eq!(three.fleet.actions.set(), [""; 0]);
    three.all_are(&Protection::Protected).await;
    let PlanPart::Act { taken_back, .. } = &parts_of(&view, "All groups shutdown")[0].part else {
        panic!("{view:#?}")
    };
    assert_eq!(*taken_back, Some(Ok(())));
}

/// F-161: an action that goes on ends before it is taken back.
#[tokio::test]
async fn an_action_that_goes_on_is_ended_by_a_cancel() {
    let mut three = with_actions().await;
    three.fleet.actions.hang("routes");
    let job = three.start(Verb::UnplannedFailover).await;
    let begun = async |fleet: &Fleet| fleet.actions.set().contains(&"routes".to_owned());
    three.fleet.until(TURNS_MAX, "it goes on", begun).await;
    three.fleet.control.job_cancel(three.vault, job).await.unwrap();

    three.ends(job, RunState::Cancelled).await;

    assert_eq!(order(&three.fleet.actions), ["users", "-routes", "-users"]);
    assert_eq!(three.fleet.actions.set(), [""; 0]);
}

/// F-161: a failover that is taken back later takes its actions along, the last first.
#[tokio::test]
async fn a_failover_that_is_taken_back_takes_its_actions_back() {
    let mut three = with_actions().await;
    three.done(Verb::UnplannedFailover).await;
    three.fleet.actions.fail("routes", Task::Undo, true);
    let job = three.start(Verb::CancelFailover).await;

    let view = three.ends(job, RunState::SucceededWithWarning).await;

    let back = ["-tell", "-name", "-routes", "-users"];
    assert_eq!(order(&three.fleet.actions)[ALL.len()..], back);
    assert_eq!(view.errors[0].code, Code::PLAN_ACTION_STAYS.code);
    assert!(view.errors[0].what.contains("routes: it said no"), "{view:#?}");
    assert_eq!(parts_of(&view, "All groups failover").len(), 4);
    let undone = &three.fleet.actions.runs()[ALL.len() + 1];
    assert_eq!(undone.facts.verb, Verb::UnplannedFailover);
    assert_eq!(undone.found, Some(serde_json::json!("before")));

    // The next one has nothing of it.
    three.all_are(&Protection::Protected).await;
    three.fleet.actions.fail("routes", Task::Undo, false);
    three.done(Verb::TestFailover).await;
    three.done(Verb::TestCleanup).await;
    let since = ALL.len() + back.len();
    assert_eq!(order(&three.fleet.actions)[since + ALL.len()..], back);
    assert_eq!(three.fleet.actions.set(), ["up"]);
}

/// F-161: what was done for a machine that stays where it went is not taken back.
#[tokio::test]
async fn a_cancel_leaves_the_actions_of_machines_that_stay() {
    let mut three = with_actions().await;
    three.fleet.actions.hang("up");
    let job = three.start(Verb::UnplannedFailover).await;
    let begun = async |fleet: &Fleet| fleet.actions.set().contains(&"up".to_owned());
    three.fleet.until(TURNS_MAX, "the second group waits", begun).await;
    three.fleet.control.job_cancel(three.vault, job).await.unwrap();

    three.ends(job, RunState::Cancelled).await;

    check_what_stays(&three.fleet.actions, &["db01".to_owned()]);
    assert!(three.fleet.actions.set().contains(&"name".to_owned()));
    // It goes with that machine.
    three.done(Verb::CancelFailover).await;
    assert_eq!(three.fleet.actions.set(), ["up"]);
}

/// The config server dies after every turn, and each action is there once in the end.
#[tokio::test]
async fn actions_go_on_after_every_restart() {
    let mut three = with_actions().await;
    let job = three.start(Verb::PlannedFailover).await;
    let path = three.folder.path().join("control.sqlite");
    for turn in 0..TURNS_MAX {
        if turn % 2 == 0 {
            three.fleet.restart(&path).await;
            three.fleet.step().await;
        }
        three.fleet.turn().await;
        three.alone();
        if three.job(job).await.ended.is_some() {
            break;
        }
    }
    assert_eq!(three.job(job).await.state, RunState::Succeeded);
    let gone = ["db01".to_owned(), "web01".to_owned()];
    check_what_stays(&three.fleet.actions, &gone);
    let ids: std::collections::BTreeMap<_, _> = three
        .fleet
        .actions
        .runs()
        .iter()
        .map(|r| ((r.facts.action.clone(), r.task), r.id.clone()))
        .collect();
    for run in three.fleet.actions.runs() {
        assert_eq!(ids[&(run.facts.action.clone(), run.task)], run.id, "a run keeps its id");
    }
}

/// F-161: a secret that is left out is kept, unless it would go to another receiver.
#[tokio::test]
async fn a_secret_is_kept_with_its_receiver_alone() {
    let three = Three::protected().await;
    let control = three.fleet.control.clone();
    let group = |action| vec![GroupInput { after: vec![action], ..boot(&["db01"]) }];
    let put = async |action| control.plan_put(three.vault, "shop", input(group(action))).await;
    let missing = put(webhook("tell", None)).await.unwrap_err();
    assert!(missing.problem.what.contains("needs a secret"), "{missing}");
    put(webhook("tell", key_of_it())).await.unwrap();

    let kept = put(webhook("tell", None)).await.unwrap();
    let What::Act { act: Act::Webhook { secret, .. } } = &kept.groups[2].after[0].what else {
        panic!()
    };
    assert_eq!(*secret, key_of_it());
    let other = Action { name: "tell".to_owned(), ..webhook("elsewhere", None) };
    assert_eq!(put(other).await.unwrap_err().kind, ErrorKind::BadRequest);
    put(dns("name", key_of_it())).await.unwrap();
    put(dns("name", None)).await.unwrap();
}

/// What no action can be is refused with what is wrong.
#[tokio::test]
async fn actions_that_cannot_be_are_refused() {
    let three = Three::protected().await;
    let changed = |change: fn(&mut DnsUpdate)| {
        let mut action = dns("name", key_of_it());
        if let What::Act { act: Act::Dns { update, .. } } = &mut action.what {
            change(update);
        }
        action
    };
    let runs = |path: &str, timeout_s| act("run", Act::Script { path: path.into(), timeout_s });
    let hook = |url: &str, retries| {
        let (url, secret) = (url.to_owned(), key_of_it());
        act("tell", Act::Webhook { url, timeout_s: 9, retries, secret })
    };
    let waits = |url: &str| act("up", Act::Wait { url: url.to_owned(), timeout_s: 9 });
    let cases = [
        (runs("../x", 9), "folder of scripts"),
        (runs("/bin/sh", 9), "folder of scripts"),
        (runs(".x", 9), "folder of scripts"),
        (runs("-x", 9), "folder of scripts"),
        (runs("x", 0), "timeout"),
        (runs("x", 21_601), "timeout"),
        (hook("ftp://x/", 1), "no address of a webhook"),
        (hook("http://me:pw@x/", 1), "no address of a webhook"),
        (hook("http://", 1), "no address of a webhook"),
        (hook("https://x/", 11), "retries"),
        (webhook("tell", Some(Secret::new("short"))), "16 to 256"),
        (waits("tcp://x"), "tcp://host:port"),
        (waits("tcp://x:1/y"), "tcp://host:port"),
        (waits("x:1"), "tcp://host:port"),
        (dns("name", None), "needs a key"),
        (dns("name", Some(Secret::new("no base64!"))), "base64"),
        (changed(|u| u.name = "db.other.example".into()), "not in zone"),
        (changed(|u| u.name = "xshop.example".into()), "not in zone"),
        (changed(|u| u.zone = "a b".into()), "no name of the DNS"),
        (changed(|u| u.server = "ns".into()), "host:port"),
        (changed(|u| u.addresses.clear()), "addresses"),
        (changed(|u| u.addresses.push(u.addresses[0])), "twice"),
        (changed(|u| u.ttl_s = 86_401), "ttl"),
    ];
    for (action, words) in cases {
        let group = GroupInput { before: vec![action.clone()], ..boot(&["db01"]) };
        let put = three.fleet.control.plan_put(three.vault, "shop", input(vec![group])).await;
        let error = put.unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadRequest, "{action:?}");
        assert!(error.problem.what.contains(words), "{error}: {words}");
    }
}
