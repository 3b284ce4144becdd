//! Runs a recovery plan: asks for a job for each machine, lets the boot groups take their turns,
//! and reports. Touches no item itself: what it wants done, it asks for in its own name.
//!
//! The machines' own jobs prepare everything and then wait for their group ([`await_turn`]). An
//! unplanned failover goes on whatever happens to one machine (F-074). A planned failover moves
//! all machines together or none: no group begins before all are ready.

use super::Request;
use super::RunState;
use super::plan_actions::{RunAction, Side, TakenBack, failures, go_on, not_taken_back};
use super::view::state;
use crate::plans::{Actions, GroupKind, Verb};
use crate::store::jobs::JobRow;
use crate::world::{Step, World, engine_problem, pending, permanent};
use leeward_durable::{
    Forward, Job, Moment, Next, Outcome, Phase, Problem, Reason, Record, Reversible, nothing,
};
use leeward_model::{Code, Direction, ItemId, JobId, PointId};
use serde::{Deserialize, Serialize};

/// The kind.
pub(crate) const KIND: &str = "recovery-plan";
/// The step in which a machine's job waits until its group has its turn.
pub(crate) const TURN: &str = "await-boot-turn";

/// Is the job's memory: the plan as it was when the job began, and how far it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RecoveryPlan {
    pub(crate) name: String,
    pub(crate) verb: Verb,
    /// What is asked of each item.
    pub(crate) request: Request,
    /// Shutdown, Failover, then the boot groups in the order in which they are taken.
    pub(crate) groups: Vec<RunGroup>,
    pub(crate) members: Vec<Member>,
    /// Where to, of a failover.
    #[serde(default)]
    pub(crate) direction: Option<Direction>,
    /// Actions of the job that this one takes back, the last first.
    #[serde(default)]
    pub(crate) taken_back: Vec<TakenBack>,
}

/// Is a group and how far it is. Times are the config server's, milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunGroup {
    pub(crate) kind: GroupKind,
    pub(crate) name: String,
    pub(crate) items: Vec<ItemId>,
    pub(crate) before: Vec<RunAction>,
    pub(crate) after: Vec<RunAction>,
    /// Whether to go on without machines of it that were given up; asked of a planned failover.
    pub(crate) go_on: Vec<RunAction>,
    pub(crate) started_ms: Option<u64>,
    /// Whether its machines may start.
    pub(crate) opened: bool,
    pub(crate) ended_ms: Option<u64>,
}

/// Is a machine of the plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) item: ItemId,
    pub(crate) name: String,
    pub(crate) progress: Progress,
}

/// How far a machine is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(crate) enum Progress {
    /// It takes no part.
    LeftOut { why: String },
    /// Its job is asked for.
    Wanted,
    /// Its job runs.
    Running { job: JobId },
    /// Its job did it, perhaps with a warning.
    Went { job: JobId, warning: Option<Problem> },
    /// Its job was refused, failed or was given up.
    Failed { job: Option<JobId>, problem: Problem },
}

impl RunGroup {
    pub(crate) fn new(
        kind: GroupKind,
        name: String,
        before: Vec<RunAction>,
        after: Vec<RunAction>,
    ) -> RunGroup {
        RunGroup {
            kind,
            name,
            items: Vec::new(),
            before,
            after,
            go_on: Vec::new(),
            started_ms: None,
            opened: false,
            ended_ms: None,
        }
    }
}

impl Member {
    /// Its name and why it takes no part, if it does not.
    pub(crate) fn why_left_out(&self) -> Option<String> {
        match &self.progress {
            Progress::LeftOut { why } => Some(format!("{}: {why}", self.name)),
            Progress::Wanted
            | Progress::Running { .. }
            | Progress::Went { .. }
            | Progress::Failed { .. } => None,
        }
    }

    fn failure(&self) -> Option<&Problem> {
        match &self.progress {
            Progress::Failed { problem, .. } => Some(problem),
            _ => None,
        }
    }
}

/// Whether a machine's job has come to its turn, or is past it.
fn is_ready(record: &Record) -> bool {
    let waits = record
        .current_log()
        .is_some_and(|step| step.name == TURN && matches!(record.phase, Phase::Reversible { .. }));
    let stays = waits && !record.cancel_requested;
    stays || matches!(record.phase, Phase::Forward { .. } | Phase::Succeeded)
}

/// What a machine's job came to.
fn progress(row: &JobRow) -> Progress {
    let job = row.facts.id;
    let given_up = |why: &str| {
        let what = format!("job {job} {why}");
        engine_problem(Code::PLAN_PARTLY.problem(what))
    };
    match (&row.record.phase, state(&row.record)) {
        (Phase::Succeeded, _) => {
            Progress::Went { job, warning: row.record.warnings().last().cloned() }
        }
        (
            Phase::RolledBack { reason: Reason::Failed(problem) }
            | Phase::Abandoned { reason: Reason::Failed(problem) },
            _,
        ) => Progress::Failed { job: Some(job), problem: problem.clone() },
        (_, RunState::Cancelled) => {
            Progress::Failed { job: Some(job), problem: given_up("was cancelled") }
        }
        _ => Progress::Running { job },
    }
}

impl Job for RecoveryPlan {
    type Context = World;
    const KIND: &'static str = KIND;
    const REVERSIBLE: &'static [Reversible<Self>] = &[
        Reversible::new("before", Self::before, Self::undo_before),
        Reversible::new("start-members", Self::start_members, Self::take_back),
        Reversible::new("gather", Self::gather, nothing),
        Reversible::new("run-groups", Self::run_groups, nothing),
        Reversible::new("report", Self::report, nothing),
    ];
    const FORWARD: &'static [Forward<Self>] = &[];
    const ABANDON: &'static [Forward<Self>] = &[];
}

impl RecoveryPlan {
    /// What the group of an item is called, while its machines may not start.
    fn closed_group(&self, item: ItemId) -> Option<&str> {
        let group = self.groups.iter().find(|group| group.items.contains(&item))?;
        (!group.opened).then_some(group.name.as_str())
    }

    /// Takes over what became of the machines' jobs.
    fn look(&mut self, world: &World) {
        for member in &mut self.members {
            let family = &world.family;
            let child = family.children.iter().find(|row| row.facts.item == Some(member.item));
            let refused = family.refused.iter().find(|(item, _)| *item == member.item);
            match (&member.progress, child, refused) {
                (Progress::Wanted | Progress::Running { .. }, Some(row), _) => {
                    member.progress = progress(row);
                }
                (Progress::Wanted, None, Some((_, problem))) => {
                    let problem = engine_problem(problem.clone());
                    member.progress = Progress::Failed { job: None, problem };
                }
                _ => {}
            }
        }
    }

    /// Whether nothing more is to be expected of a machine by itself. An unplanned failover does
    /// not wait for a person who has to care for one of them.
    fn is_settled(&self, member: &Member, world: &World) -> bool {
        match &member.progress {
            Progress::Wanted => false,
            Progress::Running { job } => {
                self.verb != Verb::PlannedFailover
                    && child(world, *job)
                        .is_some_and(|row| row.record.next() == Next::WaitingForOperator)
            }
            Progress::LeftOut { .. } | Progress::Went { .. } | Progress::Failed { .. } => true,
        }
    }

    /// What the actions on one side of a group have in common.
    fn side(&self, index: usize, word: &str) -> Side {
        let group = &self.groups[index];
        let items = match group.kind {
            GroupKind::Boot => group.items.clone(),
            GroupKind::Shutdown | GroupKind::Failover => {
                self.members.iter().map(|member| member.item).collect()
            }
        };
        Side {
            verb: self.verb,
            direction: self.direction,
            place: format!("{index} {word}"),
            group: group.name.clone(),
            items,
        }
    }

    /// Does what is to be done before a group; none when all is over.
    fn act_before(&mut self, index: usize, world: &mut World, at: &Moment) -> Option<Outcome> {
        let side = self.side(index, "before");
        go_on(&mut self.groups[index].before, &side, &mut world.family.actions, at)
    }

    /// The same after a group.
    fn act_after(&mut self, index: usize, world: &mut World, at: &Moment) -> Option<Outcome> {
        let side = self.side(index, "after");
        go_on(&mut self.groups[index].after, &side, &mut world.family.actions, at)
    }

    fn place_of(&self, kind: GroupKind) -> Option<usize> {
        self.groups.iter().position(|group| group.kind == kind)
    }

    fn before(&mut self, world: &mut World, moment: &Moment) -> Step {
        let Some(index) = self.place_of(GroupKind::Shutdown) else { return Ok(Outcome::Done) };
        if self.groups[index].before.is_empty() {
            return Ok(Outcome::Skipped("the plan has nothing to do before".to_owned()));
        }
        self.groups[index].started_ms.get_or_insert(moment.now_ms);
        if let Some(waits) = self.act_before(index, world, moment) {
            return Ok(waits);
        }
        self.groups[index].ended_ms = Some(moment.now_ms);
        Ok(Outcome::Done)
    }

    /// The last undo.
    fn undo_before(&mut self, world: &mut World, _: &Moment) -> Step {
        Ok(self.undo_actions(world, |kind| kind == GroupKind::Shutdown))
    }

    /// Takes the actions of some groups back, the last first. Those of machines that stay where
    /// they went stay as well.
    fn undo_actions(&mut self, world: &mut World, which: fn(GroupKind) -> bool) -> Outcome {
        let went = |member: &&Member| matches!(member.progress, Progress::Went { .. });
        let went: Vec<_> = self.members.iter().filter(went).map(|member| member.item).collect();
        let indices: Vec<_> =
            (0..self.groups.len()).rev().filter(|index| which(self.groups[*index].kind)).collect();
        for index in &indices {
            for word in ["after", "before"] {
                let side = self.side(*index, word);
                if side.items.iter().any(|item| went.contains(item)) {
                    continue;
                }
                let group = &mut self.groups[*index];
                let list = if word == "after" { &mut group.after } else { &mut group.before };
                for (place, action) in list.iter_mut().enumerate().rev() {
                    let actions: &mut Actions = &mut world.family.actions;
                    if let Some(waits) = action.take_back(&side, place, actions) {
                        return waits;
                    }
                }
            }
        }
        let groups = indices.iter().map(|index| &self.groups[*index]);
        let stays =
            not_taken_back(groups.flat_map(|group| group.before.iter().chain(&group.after)));
        self.told_of(&stays)
    }

    /// The end of a step that took actions back.
    fn told_of(&self, stays: &[String]) -> Outcome {
        if stays.is_empty() {
            return Outcome::Done;
        }
        let what = format!("recovery plan {}: {}", self.name, stays.join("; "));
        crate::world::warning(Code::PLAN_ACTION_STAYS, what)
    }

    /// Takes back what an earlier job did, now that its machines are back.
    fn undo_earlier(&mut self, world: &mut World, moment: &Moment) -> Option<Outcome> {
        let lost: Vec<_> = self.members.iter().filter(|one| one.failure().is_some()).collect();
        let lost: Vec<_> = lost.into_iter().map(|member| member.item).collect();
        let group = self.place_of(GroupKind::Failover).filter(|_| !self.taken_back.is_empty());
        if let Some(index) = group {
            self.groups[index].started_ms.get_or_insert(moment.now_ms);
        }
        for (index, earlier) in self.taken_back.iter_mut().enumerate() {
            if earlier.items.iter().any(|item| lost.contains(item)) {
                continue;
            }
            let side = Side {
                verb: earlier.verb,
                direction: earlier.direction,
                place: "earlier".to_owned(),
                group: earlier.group.clone(),
                items: earlier.items.clone(),
            };
            let actions = &mut world.family.actions;
            let waits = earlier.action.take_back(&side, index, actions);
            if waits.is_some() {
                return waits;
            }
        }
        if let Some(index) = group {
            self.groups[index].ended_ms = Some(moment.now_ms);
        }
        None
    }

    fn start_members(&mut self, world: &mut World, _: &Moment) -> Step {
        self.look(world);
        let wanted = self.members.iter().filter(|member| member.progress == Progress::Wanted);
        let asks: Vec<_> = wanted.map(|member| (member.item, self.request.clone())).collect();
        if asks.is_empty() {
            return Ok(Outcome::Done);
        }
        let count = asks.len();
        world.family.asks = asks;
        pending(format!("{count} machines to begin"))
    }

    /// What runs goes back, and what has ended stays as it is. Then the actions between go back.
    fn take_back(&mut self, world: &mut World, _: &Moment) -> Step {
        self.look(world);
        let running = world.family.children.iter().filter(|row| !row.record.phase.is_final());
        let running: Vec<_> = running.collect();
        let names: Vec<_> = running.iter().map(|row| row.facts.target_name.as_str()).collect();
        let names = names.join(", ");
        let cancels = running.iter().filter(|row| !row.record.cancel_requested);
        world.cancels = cancels.map(|row| row.facts.id).collect();
        match names.is_empty() {
            true => Ok(self.undo_actions(world, |kind| kind != GroupKind::Shutdown)),
            false => pending(format!("the jobs of {names} to go back")),
        }
    }

    /// A planned failover waits until all machines are ready; others only for an action that
    /// belongs between.
    fn gather(&mut self, world: &mut World, moment: &Moment) -> Step {
        self.look(world);
        let planned = self.verb == Verb::PlannedFailover;
        let failed = self.members.iter().find_map(|one| Some((&one.name, one.failure()?)));
        if let Some((name, problem)) = failed.filter(|_| planned) {
            let what = format!(
                "{name} could not be made ready, so no machine of recovery plan {} was moved: \
                 {}: {}",
                self.name, problem.code, problem.what
            );
            return Err(permanent(Code::PLAN_TURNED_BACK, what));
        }
        let group = self.place_of(GroupKind::Failover);
        let acts = group.is_some_and(|index| !self.groups[index].after.is_empty());
        if !planned && !acts {
            let why = "each group begins as soon as it has its turn";
            return Ok(Outcome::Skipped(why.to_owned()));
        }
        let missing = self.members.iter().filter(|member| match &member.progress {
            Progress::Running { job } if !self.is_settled(member, world) => {
                !child(world, *job).is_some_and(|row| is_ready(&row.record))
            }
            _ => false,
        });
        let missing: Vec<_> = missing.map(|member| self.waits_for(member, world)).collect();
        if !missing.is_empty() {
            return pending(missing.join("; "));
        }
        let Some(index) = group else { return Ok(Outcome::Done) };
        self.groups[index].started_ms.get_or_insert(moment.now_ms);
        if let Some(waits) = self.act_after(index, world, moment) {
            return Ok(waits);
        }
        self.groups[index].ended_ms = Some(moment.now_ms);
        Ok(Outcome::Done)
    }

    /// What a machine's job waits for, in words.
    fn waits_for(&self, member: &Member, world: &World) -> String {
        let running = match &member.progress {
            Progress::Running { job } => child(world, *job),
            _ => None,
        };
        let step = running.and_then(|row| row.record.current_log());
        match step {
            Some(step) => {
                let text = step.message.as_deref().unwrap_or(&step.name);
                format!("{}: {text}", member.name)
            }
            None => member.name.clone(),
        }
    }

    fn run_groups(&mut self, world: &mut World, moment: &Moment) -> Step {
        self.look(world);
        let lost = |member: &Member| {
            member.failure().is_some() || matches!(member.progress, Progress::LeftOut { .. })
        };
        if self.members.iter().all(lost) {
            return Ok(Outcome::Skipped("no machine of the plan is left".to_owned()));
        }
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let due = group.kind == GroupKind::Boot && group.ended_ms.is_none();
            if let Some(waits) = due.then(|| self.run_group(index, world, moment)).flatten() {
                return waits;
            }
        }
        Ok(self.undo_earlier(world, moment).unwrap_or(Outcome::Done))
    }

    /// Runs one group; none when it is through.
    fn run_group(&mut self, index: usize, world: &mut World, moment: &Moment) -> Option<Step> {
        self.groups[index].started_ms.get_or_insert(moment.now_ms);
        if let Some(waits) = self.act_before(index, world, moment) {
            return Some(Ok(waits));
        }
        self.groups[index].opened = true;
        let group = &self.groups[index];
        let members = self.members.iter().filter(|member| group.items.contains(&member.item));
        let waits = members.clone().filter(|member| !self.is_settled(member, world));
        let waits: Vec<_> = waits.map(|member| self.waits_for(member, world)).collect();
        if !waits.is_empty() {
            return Some(pending(format!("{}: {}", group.name, waits.join("; "))));
        }
        let lost: Vec<_> = members.filter(|one| one.failure().is_some()).collect();
        let ask = self.verb == Verb::PlannedFailover && !lost.is_empty();
        let names: Vec<_> = lost.iter().map(|member| member.name.clone()).collect();
        let group = &mut self.groups[index];
        if ask && group.go_on.is_empty() {
            let what = format!(
                "{} did not start, and the next groups wait. Resume the job to go on without, or \
                 cancel it: what has not started then stays where it was",
                names.join(", ")
            );
            group.go_on.push(RunAction::question(group.name.clone(), what));
        }
        let side = self.side(index, "go-on");
        let actions = &mut world.family.actions;
        let asks = go_on(&mut self.groups[index].go_on, &side, actions, moment);
        if let Some(waits) = asks.or_else(|| self.act_after(index, world, moment)) {
            return Some(Ok(waits));
        }
        self.groups[index].ended_ms = Some(moment.now_ms);
        None
    }

    fn report(&mut self, world: &mut World, _: &Moment) -> Step {
        self.look(world);
        let (mut went, mut waits, mut failed) = (0, Vec::new(), Vec::new());
        let mut warned = None;
        for member in &self.members {
            let name = &member.name;
            match &member.progress {
                Progress::Went { warning, .. } => {
                    went += 1;
                    warned = warned.or(warning.as_ref().map(|problem| (name, problem)));
                }
                Progress::Failed { problem, .. } => {
                    failed.push(format!("{name}: {}: {}", problem.code, problem.what));
                }
                Progress::Wanted | Progress::Running { .. } => {
                    waits.push(format!("{}, and a person has to see to it", {
                        self.waits_for(member, world)
                    }));
                }
                Progress::LeftOut { .. } => {}
            }
        }
        let all = went + waits.len() + failed.len();
        let acts = failures(&self.groups);
        let stays = not_taken_back(self.taken_back.iter().map(|earlier| &earlier.action));
        let what = waits.iter().chain(&failed).cloned().collect::<Vec<_>>().join("; ");
        let plan = &self.name;
        if went == 0 && waits.is_empty() {
            let what = format!("none of the {all} machines of recovery plan {plan} went: {what}");
            return Err(permanent(Code::PLAN_FAILED, what));
        }
        if went < all {
            let what = [what].into_iter().chain(acts).chain(stays).collect::<Vec<_>>().join("; ");
            let what = format!("{went} of {all} machines of recovery plan {plan} went: {what}");
            return Ok(crate::world::warning(Code::PLAN_PARTLY, what));
        }
        if !acts.is_empty() {
            let what = format!("recovery plan {plan}: {}", acts.join("; "));
            return Ok(crate::world::warning(Code::PLAN_ACTION_FAILED, what));
        }
        if !stays.is_empty() {
            return Ok(self.told_of(&stays));
        }
        match warned {
            Some((name, problem)) => {
                let what = format!("{name}: {}", problem.what);
                Ok(Outcome::DoneWithWarning(Problem { what, ..problem.clone() }))
            }
            None => Ok(Outcome::Done),
        }
    }
}

fn child(world: &World, job: JobId) -> Option<&JobRow> {
    world.family.children.iter().find(|row| row.facts.id == job)
}

/// The point that a machine's job starts it from, once it is chosen.
pub(crate) fn point_of(record: &Record) -> Option<PointId> {
    // A planned failover has what a failover remembers within its own memory.
    let memory = record.job.get("failover").unwrap_or(&record.job);
    serde_json::from_value(memory.get("point")?.get(0)?.clone()).ok()
}

/// The step of a machine's job in which it waits for its group. A plan's job that is over or gone
/// holds nobody up.
pub(crate) fn await_turn(world: &World) -> Step {
    let parent = world.family.parent.as_ref().filter(|row| !row.record.phase.is_final());
    let Some(parent) = parent else {
        return Ok(Outcome::Skipped("no recovery plan holds it up".to_owned()));
    };
    let item = world.item()?.id;
    let plan: Result<RecoveryPlan, _> = serde_json::from_value(parent.record.job.clone());
    let Ok(plan) = plan else {
        return Ok(Outcome::Skipped("its recovery plan's job cannot be read".to_owned()));
    };
    match plan.closed_group(item) {
        None => Ok(Outcome::Done),
        Some(group) => pending(format!("{group} of recovery plan {} to begin", plan.name)),
    }
}
