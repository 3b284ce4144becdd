//! Recovery plans over scripted hosts: order, errors, persons, cancels, restarts, refusals.

use super::*;
use crate::jobs::{JobAnswer, JobFilter, PartTask, PlanPart};
use crate::plans::{
    Action, Group, GroupInput, GroupKind, ItemRef, PlanAsk, PlanInput, PlanView, Verb, What,
};
use leeward_model::Direction;

/// Is a vault with three protected machines, `db01` before `app01` before `web01`.
pub(super) struct Three {
    pub(super) folder: tempfile::TempDir,
    pub(super) fleet: Fleet,
    pub(super) vault: VaultId,
    pub(super) source: HostId,
    pub(super) items: Vec<ItemId>,
}

const NAMES: [&str; 3] = ["db01", "app01", "web01"];

pub(super) fn boot(names: &[&str]) -> GroupInput {
    let named = |name: &&str| ItemRef::Named { fabric: None, name: (*name).to_owned() };
    GroupInput {
        kind: GroupKind::Boot,
        items: names.iter().map(named).collect(),
        before: Vec::new(),
        after: Vec::new(),
    }
}

pub(super) fn input(groups: Vec<GroupInput>) -> PlanInput {
    PlanInput {
        primary: "site-a".to_owned(),
        recovery: "recovery-site".to_owned(),
        groups,
        extra: serde_json::Value::Null,
    }
}

pub(super) fn person(name: &str) -> Action {
    Action {
        name: name.to_owned(),
        what: What::Person { description: format!("do {name}") },
        verbs: vec![Verb::UnplannedFailover, Verb::PlannedFailover, Verb::TestFailover],
        directions: vec![Direction::ToRecovery, Direction::ToPrimary],
    }
}

impl Three {
    pub(super) async fn protected() -> Three {
        let folder = tempfile::tempdir().unwrap();
        let (fleet, vault, source) = fleet_joined(&folder, &NAMES).await;
        let control = fleet.control.clone();
        let mut items = Vec::new();
        for name in NAMES {
            let (policy, machine) = ("gold".to_owned(), name.to_owned());
            let spec = EnableSpec { policy, machine, extra: serde_json::Value::Null };
            items.push(control.item_enable(vault, "site-a", name, spec).await.unwrap().item);
        }
        let mut three = Three { folder, fleet, vault, source, items };
        three.all_are(&Protection::Protected).await;
        three
    }

    /// With the plan `shop`: one machine in each group.
    pub(super) async fn planned() -> Three {
        let three = Three::protected().await;
        three.put(NAMES.iter().map(|name| boot(&[name])).collect()).await;
        three
    }

    pub(super) async fn put(&self, groups: Vec<GroupInput>) -> PlanView {
        self.fleet.control.plan_put(self.vault, "shop", input(groups)).await.unwrap()
    }

    pub(super) async fn item(&self, index: usize) -> ItemView {
        self.fleet.control.item_find(self.items[index]).await.unwrap()
    }

    pub(super) async fn all_are(&mut self, wanted: &Protection) {
        let items = self.items.clone();
        let there = async |fleet: &Fleet| {
            for item in &items {
                let now = fleet.control.item_find(*item).await.unwrap().state.protection;
                if now != *wanted {
                    return false;
                }
            }
            true
        };
        self.fleet.until(TURNS_MAX, "all items in one state", there).await;
    }

    pub(super) async fn ask(&self, ask: PlanAsk) -> Result<JobId, ControlError> {
        self.fleet.control.plan_start(self.vault, "shop", ask).await
    }

    pub(super) async fn start(&self, verb: Verb) -> JobId {
        self.ask(PlanAsk::new(verb)).await.unwrap()
    }

    pub(super) async fn job(&self, job: JobId) -> JobView {
        self.fleet.control.job_get(self.vault, job).await.unwrap()
    }

    /// The jobs that are part of a plan's job, by the name of their item.
    pub(super) async fn parts(&self, job: JobId) -> std::collections::BTreeMap<String, JobView> {
        let all = self.fleet.control.job_list(self.vault, &JobFilter::default()).await.unwrap();
        let of = all.into_iter().filter(|one| one.parent == Some(job));
        of.map(|one| (one.target_name.clone(), one)).collect()
    }

    /// Takes turns until the job is over or waits for a person. No group begins too early.
    pub(super) async fn finish(&mut self, job: JobId) -> JobView {
        for _ in 0..TURNS_MAX {
            let view = self.job(job).await;
            if view.ended.is_some() || view.state == RunState::Suspended {
                return view;
            }
            self.fleet.turn().await;
            self.alone();
        }
        panic!("the plan does not end: {:#?}", self.job(job).await);
    }

    pub(super) async fn ends(&mut self, job: JobId, wanted: RunState) -> JobView {
        let view = self.finish(job).await;
        assert_eq!(view.state, wanted, "{view:#?}");
        view
    }

    pub(super) async fn done(&mut self, verb: Verb) -> JobView {
        let job = self.start(verb).await;
        self.ends(job, RunState::Succeeded).await
    }

    pub(super) async fn resume(&self, job: JobId, words: &str) {
        let reply = JobAnswer::Reply(words.to_owned());
        self.fleet.control.job_resume(self.vault, job, reply).await.unwrap();
    }

    /// No machine runs twice.
    pub(super) fn alone(&self) {
        for item in &self.items {
            let live: Vec<_> = self.fleet.hosts.iter().flat_map(|host| host.live(*item)).collect();
            assert!(live.len() <= 1, "{item} runs twice: {live:?}");
        }
    }

    /// When a machine's job began to start it, and when it was through.
    async fn boot_times(&self, job: JobId) -> Vec<(u64, u64)> {
        let parts = self.parts(job).await;
        let times = |name: &&str| {
            let part = &parts[*name];
            let step = |task: &&crate::jobs::TaskView| {
                ["VmFoStartVmOnSecondary", "VmTfoStartVmOnSecondary"].contains(&task.name.as_str())
            };
            let start = part.tasks.iter().find(step).unwrap();
            let ms = |at: Option<leeward_model::UnixMillis>| at.unwrap().0.unsigned_abs();
            (ms(start.started), ms(part.ended))
        };
        NAMES.iter().map(times).collect()
    }
}

pub(super) fn parts_of(view: &JobView, group: &str) -> Vec<PartTask> {
    let found = view.tasks.iter().find(|task| task.friendly_name == group);
    found.unwrap_or_else(|| panic!("no {group}: {view:#?}")).group.clone().unwrap().parts
}

/// F-055, F-160: the machines of a group start when all of the group before are through.
#[tokio::test]
async fn groups_start_one_after_the_other() {
    for verb in [Verb::UnplannedFailover, Verb::PlannedFailover, Verb::TestFailover] {
        let mut three = Three::planned().await;

        let job = three.start(verb).await;
        let view = three.ends(job, RunState::Succeeded).await;

        let times = three.boot_times(job).await;
        for pair in times.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{verb:?}: {times:?}");
        }
        assert_eq!(view.target_name, "shop");
        for (index, name) in NAMES.iter().enumerate() {
            let parts = parts_of(&view, &format!("Group {}", index + 1));
            let PlanPart::Machine { name: found, job, .. } = &parts[0].part else { panic!() };
            assert_eq!((found.as_str(), parts.len()), (*name, 1));
            assert_eq!(job.unwrap().1, verb.scenario());
        }
        let plan = three.fleet.control.plan_get(three.vault, "shop").await.unwrap();
        let last = match verb {
            Verb::TestFailover => plan.last_test,
            Verb::PlannedFailover => plan.last_planned,
            _ => plan.last_unplanned,
        };
        assert_eq!(last, view.ended);
    }
}

/// F-160: the machines of one group start together, and those of the next are prepared meanwhile.
#[tokio::test]
async fn machines_of_one_group_start_together() {
    let mut three = Three::protected().await;
    three.put(vec![boot(&["app01", "db01"]), boot(&["web01"])]).await;

    let job = three.start(Verb::UnplannedFailover).await;
    three.ends(job, RunState::Succeeded).await;

    let times = three.boot_times(job).await;
    assert!(times[0].0 < times[1].1 && times[1].0 < times[0].1, "{times:?}");
    assert!(times[2].0 >= times[0].1.max(times[1].1), "{times:?}");
    let parts = three.parts(job).await;
    let prepared = |task: &&crate::jobs::TaskView| task.name == "VmPrepareVmOnSecondary";
    let ready = parts["web01"].tasks.iter().find(prepared).unwrap().ended.unwrap();
    assert!(ready.0.unsigned_abs() <= times[0].1, "{ready:?} {times:?}");
}

/// F-162: home again as a planned failover of the whole plan, in the reverse order if wanted.
#[tokio::test]
async fn a_plan_goes_out_and_comes_home_in_the_reverse_order() {
    let mut three = Three::planned().await;
    three.done(Verb::UnplannedFailover).await;
    let early = three.ask(PlanAsk::new(Verb::Reprotect)).await.unwrap_err();
    assert_eq!(early.kind, ErrorKind::Conflict);
    three.done(Verb::Commit).await;
    three.done(Verb::Reprotect).await;
    three.all_are(&Protection::Protected).await;

    let home = PlanAsk { reverse_order: true, ..PlanAsk::new(Verb::PlannedFailover) };
    let job = three.ask(home).await.unwrap();
    three.ends(job, RunState::Succeeded).await;

    let times = three.boot_times(job).await;
    assert!(times[2].1 <= times[1].0 && times[1].1 <= times[0].0, "{times:?}");
    for index in 0..3 {
        assert_eq!(three.item(index).await.live_at, LiveAt::Site(Site::Primary));
    }
}

/// F-162: from committed, with the reprotect that each machine needs first.
#[tokio::test]
async fn a_plan_comes_home_straight_from_committed() {
    let mut three = Three::planned().await;
    three.done(Verb::PlannedFailover).await;
    three.done(Verb::Commit).await;

    three.done(Verb::PlannedFailover).await;

    for index in 0..3 {
        assert_eq!(three.item(index).await.live_at, LiveAt::Site(Site::Primary));
    }
}

/// F-074: the rest comes up, and the job says who did not.
#[tokio::test]
async fn an_unplanned_failover_goes_on_without_a_machine_that_fails() {
    let mut three = Three::planned().await;
    let job = three.start(Verb::UnplannedFailover).await;
    three.fleet.turn().await;
    let db = three.parts(job).await["db01"].id;
    three.fleet.control.job_cancel(three.vault, db).await.unwrap();

    let view = three.ends(job, RunState::SucceededWithWarning).await;

    assert_eq!(view.errors[0].code, Code::PLAN_PARTLY.code);
    assert!(view.errors[0].what.contains("2 of 3") && view.errors[0].what.contains("db01"));
    assert_eq!(parts_of(&view, "Group 1")[0].task.state, RunState::Failed);
    assert_eq!(three.item(1).await.live_at, LiveAt::Site(Site::Recovery));
    assert_eq!(three.item(2).await.live_at, LiveAt::Site(Site::Recovery));
    let back = three.item(0).await;
    assert_eq!(back.live_at, LiveAt::Site(Site::Primary));
}

/// F-074: a machine that is busy is refused, and that is told; all of them is a failure.
#[tokio::test]
async fn a_refused_machine_is_told_and_a_plan_of_refused_ones_fails() {
    let mut three = Three::planned().await;
    let control = three.fleet.control.clone();
    let busy =
        control.item_failover(three.items[2], PointChoice::Latest, Shutdown::First).await.unwrap();
    let job = three.start(Verb::UnplannedFailover).await;
    let view = three.ends(job, RunState::SucceededWithWarning).await;
    assert!(view.errors[0].what.contains(Code::ITEM_BUSY.code), "{view:#?}");
    let part = &parts_of(&view, "Group 3")[0];
    assert_eq!(part.task.problem.as_ref().unwrap().code, Code::ITEM_BUSY.code);
    assert!(control.job_get(three.vault, busy).await.unwrap().ended.is_some());

    three.put(vec![boot(&["web01"])]).await;
    control.item_commit(three.items[2]).await.unwrap();
    let job = three.ask(PlanAsk::new(Verb::Commit)).await.unwrap();
    let view = three.ends(job, RunState::Failed).await;
    assert_eq!(view.errors[0].code, Code::PLAN_FAILED.code);
}

/// F-074, F-086: no machine starts before all are ready, and one that fails takes all back.
#[tokio::test]
async fn a_planned_failover_moves_all_or_none() {
    let mut three = Three::planned().await;
    let job = three.start(Verb::PlannedFailover).await;
    let ready = |task: &crate::jobs::TaskView| {
        task.name == "VmWaitForBootGroup" && task.state == RunState::InProgress
    };
    // All are ready; in the last moment a person gives one of them up.
    for _ in 0..TURNS_MAX {
        three.fleet.turn().await;
        three.alone();
        let parts = three.parts(job).await;
        let waits = |name: &str| {
            parts.get(name).is_some_and(|part| {
                let view = part.tasks.iter().any(ready);
                assert!(part.ended.is_none(), "{name} went alone");
                view
            })
        };
        if waits("db01") {
            break;
        }
    }
    let web = three.parts(job).await["web01"].id;
    three.fleet.control.job_cancel(three.vault, web).await.unwrap();

    let view = three.ends(job, RunState::Failed).await;

    assert_eq!(view.errors.last().unwrap().code, Code::PLAN_TURNED_BACK.code);
    three.all_are(&Protection::Protected).await;
    for index in 0..3 {
        assert_eq!(three.item(index).await.live_at, LiveAt::Site(Site::Primary));
    }
    for part in three.parts(job).await.values() {
        assert_eq!(part.state, RunState::Cancelled, "{part:#?}");
    }
}

/// F-074: once groups have begun, a machine that is given up is a question to a person.
#[tokio::test]
async fn a_planned_failover_that_has_begun_asks_before_it_goes_on_without_a_machine() {
    let mut three = Three::planned().await;
    let job = three.start(Verb::PlannedFailover).await;
    for _ in 0..TURNS_MAX {
        three.fleet.turn().await;
        three.alone();
        let parts = three.parts(job).await;
        if parts.get("db01").is_some_and(|part| part.ended.is_some()) {
            break;
        }
    }
    let app = three.parts(job).await["app01"].id;
    three.fleet.control.job_cancel(three.vault, app).await.unwrap();

    let asks = three.ends(job, RunState::Suspended).await;

    assert!(asks.question.as_ref().unwrap().contains("app01 did not start"), "{asks:#?}");
    assert!(three.parts(job).await["web01"].ended.is_none());
    three.resume(job, "go on").await;
    let view = three.ends(job, RunState::SucceededWithWarning).await;
    assert!(view.errors[0].what.contains("2 of 3"), "{view:#?}");
    assert_eq!(three.item(1).await.live_at, LiveAt::Site(Site::Primary));
    assert_eq!(three.item(2).await.live_at, LiveAt::Site(Site::Recovery));
}

/// F-074: a source that does not shut down holds all machines, and its own job asks what to do.
#[tokio::test]
async fn a_planned_failover_waits_for_the_answer_of_one_machine() {
    let mut three = Three::planned().await;
    let source = three.source;
    three.fleet.host(source).temper = Temper::GuestIgnoresShutdown;
    let job = three.start(Verb::PlannedFailover).await;
    for _ in 0..TURNS_MAX {
        three.fleet.turn().await;
        let parts = three.parts(job).await;
        if parts.len() == 3 && parts.values().all(|part| part.state == RunState::Suspended) {
            break;
        }
    }
    assert_eq!(three.job(job).await.state, RunState::InProgress);
    for part in three.parts(job).await.values() {
        three.resume(part.id, "power-off").await;
    }

    three.ends(job, RunState::Succeeded).await;
}

/// F-161: the job waits for a person before and after groups, and only where it is to.
#[tokio::test]
async fn a_person_is_waited_for_in_order() {
    let mut three = Three::protected().await;
    let whole = |kind, before, after| GroupInput { kind, items: Vec::new(), before, after };
    let test_only = Action { verbs: vec![Verb::TestFailover], ..person("never") };
    let first = GroupInput {
        before: vec![person("storage"), test_only],
        after: vec![person("check"), person("tell")],
        ..boot(&["db01"])
    };
    three
        .put(vec![
            whole(GroupKind::Shutdown, vec![person("users")], Vec::new()),
            whole(GroupKind::Failover, Vec::new(), vec![person("routes")]),
            first,
            boot(&["app01", "web01"]),
        ])
        .await;

    let job = three.start(Verb::UnplannedFailover).await;
    for name in ["users", "routes", "storage", "check", "tell"] {
        let view = three.ends(job, RunState::Suspended).await;
        assert_eq!(view.question.as_deref(), Some(format!("{name}: do {name}").as_str()));
        assert_eq!(three.parts(job).await.is_empty(), name == "users");
        let runs = three.item(0).await.live_at == LiveAt::Site(Site::Recovery);
        assert_eq!(runs, ["check", "tell"].contains(&name), "{name}");
        three.resume(job, "done").await;
    }
    let view = three.ends(job, RunState::Succeeded).await;

    let parts = parts_of(&view, "Group 1");
    let names: Vec<_> = parts.iter().map(|part| part.task.friendly_name.as_str()).collect();
    assert_eq!(names, ["storage", "db01", "check", "tell"]);
    let PlanPart::Action { reply, .. } = &parts[0].part else { panic!() };
    assert_eq!(reply.as_deref(), Some("done"));
}

/// A cancel at any time ends the jobs of all machines, and each machine runs once.
#[tokio::test]
async fn a_cancel_at_any_time_takes_the_machines_jobs_along() {
    let base = Three::planned().await;
    for verb in [Verb::UnplannedFailover, Verb::PlannedFailover, Verb::TestFailover] {
        for turns in 0..24 {
            let folder = tempfile::tempdir().unwrap();
            let to = folder.path().join("control.sqlite");
            base.fleet.control.store().copy_to(&to).await;
            let fleet = base.fleet.fork(&to).await;
            let (vault, source, items) = (base.vault, base.source, base.items.clone());
            let mut three = Three { folder, fleet, vault, source, items };
            three.fleet.step().await;
            let job = three.start(verb).await;
            for _ in 0..turns {
                three.fleet.turn().await;
            }
            let over = three.job(job).await.ended.is_some();
            three.fleet.control.job_cancel(vault, job).await.unwrap();
            let wanted = if over { RunState::Succeeded } else { RunState::Cancelled };
            three.ends(job, wanted).await;
            for part in three.parts(job).await.values() {
                assert!(part.ended.is_some(), "{verb:?} {turns}: {part:#?}");
            }
            for _ in 0..40 {
                three.fleet.turn().await;
                three.alone();
            }
            for index in 0..3 {
                let live = three.item(index).await.live_at;
                assert!(matches!(live, LiveAt::Site(_)), "{verb:?} {turns}: {live:?}");
            }
        }
    }
}

/// The config server dies after every turn of a plan's run, and nothing is done twice or lost.
#[tokio::test]
async fn a_plan_goes_on_after_every_restart() {
    let mut three = Three::planned().await;
    let job = three.start(Verb::PlannedFailover).await;
    let path = three.folder.path().join("control.sqlite");
    for _ in 0..TURNS_MAX {
        three.fleet.restart(&path).await;
        three.fleet.step().await;
        three.fleet.turn().await;
        three.alone();
        if three.job(job).await.ended.is_some() {
            break;
        }
    }
    assert_eq!(three.job(job).await.state, RunState::Succeeded);
    assert_eq!(three.parts(job).await.len(), 3);
}

/// F-072, F-088: who is there already is left out, and mixed sites need a direction.
#[tokio::test]
async fn a_plan_with_machines_at_both_sites_needs_a_direction() {
    let mut three = Three::planned().await;
    let control = three.fleet.control.clone();
    let first =
        control.item_failover(three.items[0], PointChoice::Latest, Shutdown::First).await.unwrap();
    three
        .fleet
        .until(TURNS_MAX, "failed over", async |fleet: &Fleet| {
            fleet.control.job_get(three_vault(fleet).await, first).await.unwrap().ended.is_some()
        })
        .await;

    let mixed = three.ask(PlanAsk::new(Verb::UnplannedFailover)).await.unwrap_err();
    assert_eq!(mixed.kind, ErrorKind::BadRequest);
    assert!(mixed.problem.what.contains("app01, web01 at the primary, db01 at the recovery"));
    let direction = Some(Direction::ToRecovery);
    let ask = PlanAsk { direction, ..PlanAsk::new(Verb::UnplannedFailover) };
    let job = three.ask(ask.clone()).await.unwrap();
    let view = three.ends(job, RunState::Succeeded).await;

    let part = &parts_of(&view, "Group 1")[0];
    assert_eq!(part.task.state, RunState::Skipped);
    assert_eq!(part.task.message.as_deref(), Some("it runs at the recovery site already"));
    assert_eq!(three.parts(job).await.len(), 2);
    let nobody = three.ask(ask).await.unwrap_err();
    assert_eq!(nobody.kind, ErrorKind::Conflict);
}

async fn three_vault(fleet: &Fleet) -> VaultId {
    fleet.control.vault_get(&key()).await.unwrap().id
}

/// One job at a time runs a plan, which is not changed meanwhile; failoverCancel of a running one
/// cancels it.
#[tokio::test]
async fn a_plan_that_runs_is_neither_run_changed_nor_deleted() {
    let mut three = Three::planned().await;
    let control = three.fleet.control.clone();
    let job = three.start(Verb::UnplannedFailover).await;
    three.fleet.turn().await;

    let again = three.ask(PlanAsk::new(Verb::TestFailover)).await.unwrap_err();
    let put = control.plan_put(three.vault, "shop", input(vec![boot(&["db01"])])).await;
    let patch = control.plan_groups(three.vault, "SHOP", vec![boot(&["db01"])]).await;
    let delete = control.plan_delete(three.vault, "shop").await;
    for error in [again, put.unwrap_err(), patch.unwrap_err(), delete.unwrap_err()] {
        assert_eq!(error.problem.code, Code::ITEM_BUSY.code);
        assert!(error.problem.what.contains(&job.to_string()), "{error}");
    }
    let plan = control.plan_get(three.vault, "shop").await.unwrap();
    assert_eq!(plan.allowed, [Verb::CancelFailover]);
    assert_eq!(plan.running.unwrap().1, job);
    assert_eq!(three.start(Verb::CancelFailover).await, job);
    three.ends(job, RunState::Cancelled).await;
    three.all_are(&Protection::Protected).await;
    control.plan_delete(three.vault, "shop").await.unwrap();
    let gone = control.plan_get(three.vault, "shop").await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound);
}

/// Test failover and its cleanup, a failover taken back, and a job that is started again.
#[tokio::test]
async fn tests_are_cleaned_up_and_failovers_taken_back() {
    let mut three = Three::planned().await;
    three.done(Verb::TestFailover).await;
    three.done(Verb::TestCleanup).await;
    three.done(Verb::UnplannedFailover).await;
    three.done(Verb::CancelFailover).await;
    three.all_are(&Protection::Protected).await;

    let job = three.start(Verb::PlannedFailover).await;
    three.fleet.control.job_cancel(three.vault, job).await.unwrap();
    three.ends(job, RunState::Cancelled).await;
    let again = three.fleet.control.job_restart(three.vault, job).await.unwrap();
    three.ends(again, RunState::Succeeded).await;
}

/// An item whose protection ends leaves its plans, and an event says so.
#[tokio::test]
async fn an_item_that_ends_leaves_its_plans() {
    let mut three = Three::planned().await;
    let control = three.fleet.control.clone();
    let item = three.items[1];
    control.item_disable(item, KeepPoints::Delete, DisableReason::Normal).await.unwrap();
    let gone = async |fleet: &Fleet| fleet.control.item_find(item).await.is_err();
    three.fleet.until(TURNS_MAX, "the item is gone", gone).await;

    let plan = control.plan_get(three.vault, "shop").await.unwrap();

    let names: Vec<_> = plan.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["db01", "web01"]);
    let events = control.event_list(three.vault, 0, 1000).await.unwrap();
    let left = events.iter().find(|event| event.name == "PlanMemberLeft").unwrap();
    assert!(left.text.contains("app01") && left.text.contains("shop"), "{left:?}");
    three.items.remove(1);
    three.done(Verb::UnplannedFailover).await;
}

/// The missing groups are put in front, and names are compared without regard to case.
#[tokio::test]
async fn a_plan_is_completed_and_replaced() {
    let three = Three::planned().await;
    let control = three.fleet.control.clone();
    let kinds =
        |plan: &PlanView| plan.groups.iter().map(|group: &Group| group.kind).collect::<Vec<_>>();
    let plan = control.plan_put(three.vault, "SHOP", input(vec![boot(&["WEB01"])])).await.unwrap();

    assert_eq!((plan.name.as_str(), plan.members.len()), ("shop", 1));
    assert_eq!(kinds(&plan), [GroupKind::Shutdown, GroupKind::Failover, GroupKind::Boot]);
    let listed = control.plan_list(three.vault).await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&plan));
    let by_id = GroupInput { items: vec![ItemRef::Id(three.items[0])], ..boot(&[]) };
    let changed = control.plan_groups(three.vault, "shop", vec![boot(&[]), by_id]).await.unwrap();
    assert_eq!((changed.id, changed.groups.len()), (plan.id, 4));
    assert_eq!(changed.members[0].name, "db01");
}

/// What no plan can be is refused with what is wrong, and nothing is stored.
#[tokio::test]
async fn what_cannot_be_in_a_plan_is_refused() {
    let three = Three::protected().await;
    let control = three.fleet.control.clone();
    let whole = |kind| GroupInput { kind, ..boot(&[]) };
    let twice = GroupInput { before: vec![person("a"), person("A")], ..boot(&["web01"]) };
    let never = Action { directions: Vec::new(), ..person("a") };
    let commit = Action { verbs: vec![Verb::Commit], ..person("a") };
    let what = What::Person { description: String::new() };
    let silent = Action { what, ..person("a") };
    let slash = person("a/b");
    let with = |action: Action| vec![GroupInput { after: vec![action], ..boot(&["web01"]) }];
    let between = GroupInput { after: vec![person("a")], ..whole(GroupKind::Shutdown) };
    let cases: Vec<(Vec<GroupInput>, ErrorKind, &str)> = vec![
        (Vec::new(), ErrorKind::BadRequest, "one Boot group at least"),
        (vec![boot(&[])], ErrorKind::BadRequest, "one machine at least"),
        (vec![boot(&["web01"]); 8], ErrorKind::BadRequest, "8 Boot groups"),
        (vec![boot(&["web01", "web01"])], ErrorKind::BadRequest, "web01 is in the plan twice"),
        (vec![boot(&["web01"]), boot(&["WEB01"])], ErrorKind::BadRequest, "twice"),
        (vec![boot(&["nobody"])], ErrorKind::NotFound, "no protected item nobody"),
        (
            vec![boot(&["web01"]), whole(GroupKind::Shutdown)],
            ErrorKind::BadRequest,
            "at most one Shutdown",
        ),
        (
            vec![GroupInput { kind: GroupKind::Failover, ..boot(&["web01"]) }, boot(&["db01"])],
            ErrorKind::BadRequest,
            "stands for all machines",
        ),
        (vec![between, boot(&["web01"])], ErrorKind::NotSupported, "not supported yet"),
        (vec![twice], ErrorKind::BadRequest, "two actions A"),
        (with(never), ErrorKind::BadRequest, "never be done"),
        (with(commit), ErrorKind::BadRequest, "only TestFailover"),
        (with(silent), ErrorKind::BadRequest, "0 letters"),
        (with(slash), ErrorKind::BadRequest, "a/b"),
    ];
    for (groups, kind, words) in cases {
        let error = control.plan_put(three.vault, "shop", input(groups)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.problem.what.contains(words), "{error}: {words}");
    }
    let one = || vec![boot(&["web01"])];
    let same = PlanInput { recovery: "SITE-A".to_owned(), ..input(one()) };
    let nowhere = PlanInput { primary: "site-x".to_owned(), ..input(one()) };
    let turned = PlanInput {
        primary: "recovery-site".to_owned(),
        recovery: "site-a".to_owned(),
        ..input(one())
    };
    for (plan, kind) in [
        (same, ErrorKind::BadRequest),
        (nowhere, ErrorKind::NotFound),
        (turned, ErrorKind::BadRequest),
    ] {
        assert_eq!(control.plan_put(three.vault, "shop", plan).await.unwrap_err().kind, kind);
    }
    for name in ["", "a/b", "..", " a", "a;b"] {
        let refused = control.plan_put(three.vault, name, input(one())).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::BadRequest, "{name:?}");
    }
    assert_eq!(control.plan_list(three.vault).await.unwrap(), []);
    let point = PointChoice::Custom(PointId::from_u128(1));
    let chosen = PlanAsk { choice: point, ..PlanAsk::new(Verb::UnplannedFailover) };
    assert_eq!(three.ask(chosen).await.unwrap_err().kind, ErrorKind::BadRequest);
    let unknown = three.ask(PlanAsk::new(Verb::Commit)).await.unwrap_err();
    assert_eq!(unknown.kind, ErrorKind::NotFound);
}
