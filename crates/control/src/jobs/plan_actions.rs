//! The actions of a recovery plan's job: how far each is, and what comes next. Carries nothing
//! out: what it wants done, it asks for, and looks what came of it (`plans::outside`).

use super::recovery_plan::{RecoveryPlan, RunGroup};
use crate::plans::{
    Act, ActKey, Action, ActionAsk, ActionEnd, Actions, GroupKind, Task, Verb, What,
};
use crate::world::POLL_MS;
use leeward_durable::{Moment, Outcome};
use leeward_model::{Code, Direction, ItemId};
use serde::{Deserialize, Serialize};

/// The reply by which a planned failover goes on without an action that failed.
pub(crate) const GO_ON: &str = "go-on";

/// Is an action of a group and how far it is. Times are the config server's, milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunAction {
    pub(crate) name: String,
    /// Without its secret.
    #[serde(flatten)]
    pub(crate) what: What,
    pub(crate) asked_ms: Option<u64>,
    pub(crate) done_ms: Option<u64>,
    /// What a person answered.
    pub(crate) reply: Option<String>,
    /// How often it was done again after it failed.
    #[serde(default)]
    pub(crate) again: u32,
    /// Whether a person is asked what to do about its failure.
    #[serde(default)]
    pub(crate) asks: bool,
    /// What was there before.
    #[serde(default)]
    pub(crate) found: Option<serde_json::Value>,
    /// How its last attempt ended.
    #[serde(default)]
    pub(crate) end: Option<ActionEnd>,
    /// How it was taken back.
    #[serde(default)]
    pub(crate) back: Option<ActionEnd>,
}

/// Is an action of an earlier job that is taken back with the failover.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TakenBack {
    pub(crate) action: RunAction,
    pub(crate) group: String,
    /// The machines that it was done for: it stays while one of them stays.
    pub(crate) items: Vec<ItemId>,
    pub(crate) verb: Verb,
    pub(crate) direction: Option<Direction>,
}

/// Is what all actions of one side of a group have in common.
pub(crate) struct Side {
    pub(crate) verb: Verb,
    pub(crate) direction: Option<Direction>,
    /// `0 before`.
    pub(crate) place: String,
    pub(crate) group: String,
    pub(crate) items: Vec<ItemId>,
}

fn pending(waiting_for: String) -> Outcome {
    Outcome::Pending { waiting_for, poll_after_ms: POLL_MS }
}

impl RunAction {
    /// The action of a plan.
    pub(crate) fn of(action: &Action) -> RunAction {
        let what = match &action.what {
            What::Act { act } => What::Act { act: act.without_secrets() },
            What::Person { .. } => action.what.clone(),
        };
        RunAction::new(action.name.clone(), what)
    }

    /// A question to a person.
    pub(crate) fn question(name: String, description: String) -> RunAction {
        RunAction::new(name, What::Person { description })
    }

    fn new(name: String, what: What) -> RunAction {
        RunAction {
            name,
            what,
            asked_ms: None,
            done_ms: None,
            reply: None,
            again: 0,
            asks: false,
            found: None,
            end: None,
            back: None,
        }
    }

    /// Why it failed and is not done, as far as its last attempt goes.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.end.as_ref()?.failure.as_deref()
    }

    /// Whether it was begun by the config server and may have left something that is there still.
    pub(crate) fn is_to_take_back(&self) -> bool {
        let undone = match &self.what {
            What::Act { act } => !act.can_be_undone(),
            What::Person { .. } => true,
        };
        self.asked_ms.is_some() && self.back.is_none() && !undone
    }

    /// Does it, or waits for who does it; none when it is over.
    fn go(
        &mut self,
        side: &Side,
        index: usize,
        actions: &mut Actions,
        moment: &Moment,
    ) -> Option<Outcome> {
        match self.what.clone() {
            What::Person { description } => self.ask(&description, moment),
            What::Act { act } => self.act(&act, side, index, actions, moment),
        }
    }

    fn ask(&mut self, description: &str, moment: &Moment) -> Option<Outcome> {
        if self.asked_ms.is_some() && moment.answered {
            self.done_ms = Some(moment.now_ms);
            self.reply.clone_from(&moment.reply);
            return None;
        }
        self.asked_ms.get_or_insert(moment.now_ms);
        let question = format!("{}: {description}", self.name);
        Some(Outcome::WaitForOperator { question })
    }

    fn act(
        &mut self,
        act: &Act,
        side: &Side,
        index: usize,
        actions: &mut Actions,
        moment: &Moment,
    ) -> Option<Outcome> {
        if self.asks && !moment.answered {
            return Some(self.ask_about_failure());
        }
        if std::mem::take(&mut self.asks) {
            self.reply.clone_from(&moment.reply);
            if moment.reply.as_deref() == Some(GO_ON) {
                self.done_ms = Some(moment.now_ms);
                return None;
            }
            (self.again, self.end) = (self.again + 1, None);
        }
        self.asked_ms.get_or_insert(moment.now_ms);
        if act.looks_first() && self.found.is_none() {
            let end = match self.run(Task::Look, side, index, actions) {
                Ok(end) => end,
                Err(waits) => return Some(waits),
            };
            if end.failure.is_some() {
                return self.failed(end, side.verb, moment);
            }
            self.found = Some(end.found.unwrap_or_default());
        }
        let end = match self.run(Task::Do, side, index, actions) {
            Ok(end) => end,
            Err(waits) => return Some(waits),
        };
        if end.failure.is_some() {
            return self.failed(end, side.verb, moment);
        }
        self.end = Some(end);
        self.done_ms = Some(moment.now_ms);
        None
    }

    /// An unplanned failover and a test go on without it; a planned failover asks.
    fn failed(&mut self, end: ActionEnd, verb: Verb, moment: &Moment) -> Option<Outcome> {
        self.end = Some(end);
        if verb == Verb::PlannedFailover {
            self.asks = true;
            return Some(self.ask_about_failure());
        }
        self.done_ms = Some(moment.now_ms);
        None
    }

    fn ask_about_failure(&self) -> Outcome {
        let what = format!(
            "action {} failed (attempt {}): {}",
            self.name,
            self.again + 1,
            self.failure().unwrap_or_default()
        );
        Outcome::WaitForOperator { question: Code::PLAN_ACTION_FAILED.problem(what).to_string() }
    }

    /// The end of one of its runs, which is asked for if there is none.
    fn run(
        &self,
        task: Task,
        side: &Side,
        index: usize,
        actions: &mut Actions,
    ) -> Result<ActionEnd, Outcome> {
        let What::Act { act } = &self.what else { return Ok(ActionEnd::default()) };
        let place = format!("{} {index}", side.place);
        let key = ActKey { place, task, attempt: self.again + 1 };
        match actions.known.remove(&key) {
            Some(Some(end)) => {
                actions.forget.push(key);
                return Ok(end);
            }
            Some(None) => {}
            None => actions.asks.push(ActionAsk {
                key,
                name: self.name.clone(),
                act: act.clone(),
                found: self.found.clone(),
                verb: side.verb,
                direction: side.direction,
                group: side.group.clone(),
                items: side.items.clone(),
            }),
        }
        Err(pending(match task {
            Task::Look | Task::Do => format!("action {}", self.name),
            Task::Undo => format!("action {} to be taken back", self.name),
        }))
    }

    /// Takes it back; none when there is nothing more to do.
    pub(crate) fn take_back(
        &mut self,
        side: &Side,
        index: usize,
        actions: &mut Actions,
    ) -> Option<Outcome> {
        if !self.is_to_take_back() {
            return None;
        }
        // What still goes on ends first: a thing must not be done after it was taken back.
        let place = format!("{} {index}", side.place);
        let goes = |key: &&ActKey| key.place == place && key.task != Task::Undo;
        let going: Vec<_> = actions.known.keys().filter(goes).cloned().collect();
        if !going.is_empty() {
            actions.forget.extend(going);
            return Some(pending(format!("action {} to end", self.name)));
        }
        match self.run(Task::Undo, side, index, actions) {
            Ok(end) => {
                self.back = Some(end);
                None
            }
            Err(waits) => Some(waits),
        }
    }
}

/// Does what is not done yet, one after the other; none when all is over.
pub(crate) fn go_on(
    list: &mut [RunAction],
    side: &Side,
    actions: &mut Actions,
    moment: &Moment,
) -> Option<Outcome> {
    let open = list.iter_mut().enumerate().filter(|(_, action)| action.done_ms.is_none());
    for (index, action) in open {
        if let Some(waits) = action.go(side, index, actions, moment) {
            return Some(waits);
        }
    }
    None
}

impl RecoveryPlan {
    /// What it has begun and not taken back; the last first.
    pub(crate) fn left_to_take_back(self) -> Vec<TakenBack> {
        let everybody: Vec<_> = self.members.iter().map(|member| member.item).collect();
        let mut left: Vec<_> = Vec::new();
        for group in self.groups {
            let items = match group.kind {
                GroupKind::Boot => group.items,
                GroupKind::Shutdown | GroupKind::Failover => everybody.clone(),
            };
            left.extend(group.before.into_iter().chain(group.after).map(|action| TakenBack {
                action,
                group: group.name.clone(),
                items: items.clone(),
                verb: self.verb,
                direction: self.direction,
            }));
        }
        // A job that took back, or was to, has left what it did not come to, in its order.
        let earlier = self.taken_back.into_iter();
        let left = left.into_iter().rev().chain(earlier);
        left.filter(|one| one.action.is_to_take_back()).collect()
    }
}

/// What failed of the actions of groups, in words.
pub(crate) fn failures(groups: &[RunGroup]) -> Vec<String> {
    let all = groups.iter().flat_map(|group| group.before.iter().chain(&group.after));
    let failed = all.filter_map(|one| Some(format!("action {}: {}", one.name, one.failure()?)));
    failed.collect()
}

/// What could not be taken back, in words.
pub(crate) fn not_taken_back<'a>(all: impl Iterator<Item = &'a RunAction>) -> Vec<String> {
    let failed = all.filter_map(|one| {
        let why = one.back.as_ref()?.failure.as_ref()?;
        Some(format!("action {}: {why}", one.name))
    });
    failed.collect()
}
