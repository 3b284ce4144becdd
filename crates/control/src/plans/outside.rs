//! Carries out the actions that the config server does by itself, each beside the jobs, and keeps
//! what came of it until the plan's job has stored that. Nothing here is durable: an action that a
//! crash ended is asked for again by its job, with the same id.

use super::{Act, Verb, What};
use crate::error::Result;
use crate::jobs::recovery_plan;
use crate::store::{self, Conn, jobs::JobFacts, jobs::JobRow};
use crate::{Control, ControlError};
use leeward_model::{Direction, ItemId, JobId, PointId, Site};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio::task::JoinHandle;

/// What is wanted of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Look up what is there before it is changed. Changes nothing.
    Look,
    /// Do it. Done twice it has the effect of once.
    Do,
    /// Take it back, also if it was done in part or not at all.
    Undo,
}

/// Is how an action ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionEnd {
    /// Why it failed; none when it did not.
    pub failure: Option<String>,
    /// A program's exit code, or the status of an HTTP answer.
    pub code: Option<i32>,
    /// What a program wrote, or what was answered: its end, at most [`ActionEnd::OUTPUT_MAX`].
    pub output: String,
    /// What [`Task::Look`] found; [`Task::Undo`] is given it.
    pub found: Option<serde_json::Value>,
}

impl ActionEnd {
    /// The most bytes of output that are kept: it is written with each step of the job.
    pub const OUTPUT_MAX: usize = 4_096;

    /// A failure with nothing else to tell.
    pub fn failed(why: impl Into<String>) -> ActionEnd {
        ActionEnd { failure: Some(why.into()), ..ActionEnd::default() }
    }
}

/// Is a machine of the plan as an action sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionMachine {
    /// The item's name.
    pub name: String,
    /// The item.
    pub item: ItemId,
    /// The site where it is live now.
    pub site: Site,
    /// Name of the host that it is on there.
    pub host: String,
    /// Hardware addresses of its network cards, in their order.
    pub macs: Vec<String>,
    /// The point that it is started from, once that is chosen.
    pub point: Option<PointId>,
}

/// Is what an action is told of the failover that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionFacts {
    /// The plan.
    pub plan: String,
    /// Its job.
    pub job: JobId,
    /// The failover that the action was, or is, part of.
    pub verb: Verb,
    /// Where to; none where that is not known any more.
    pub direction: Option<Direction>,
    /// The group: `All groups shutdown`, `Group 1`.
    pub group: String,
    /// The action's name.
    pub action: String,
    /// The machines of its group; of an action around all groups, all.
    pub machines: Vec<ActionMachine>,
}

/// Is one run of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionRun {
    /// The same at every attempt and after a crash; another one for each task.
    pub id: String,
    /// Counts from 1 and grows when the action is done again after it failed.
    pub attempt: u32,
    /// What is wanted.
    pub task: Task,
    /// The action, with its secret.
    pub act: Act,
    /// What a look found before.
    pub found: Option<serde_json::Value>,
    /// What it is part of.
    pub facts: ActionFacts,
}

/// Carries out actions on the config server's machine and from there. The real one lives in the
/// binary.
#[async_trait::async_trait]
pub trait ActionRunner: Send + Sync + 'static {
    /// Carries one out and says how it ended, within the action's timeout. Dropped when it is not
    /// wanted any more: nothing of it goes on then.
    async fn run(&self, run: ActionRun) -> ActionEnd;
}

/// Names one run of an action of a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ActKey {
    /// `0 before 2`: the group, the side, the place in the list.
    pub(crate) place: String,
    pub(crate) task: Task,
    pub(crate) attempt: u32,
}

/// Is a run that a job asks for.
#[derive(Clone, Debug)]
pub(crate) struct ActionAsk {
    pub(crate) key: ActKey,
    pub(crate) name: String,
    /// Without its secret.
    pub(crate) act: Act,
    pub(crate) found: Option<serde_json::Value>,
    pub(crate) verb: Verb,
    pub(crate) direction: Option<Direction>,
    pub(crate) group: String,
    pub(crate) items: Vec<ItemId>,
}

/// Is what a plan's job sees of its runs, and what it wants of them.
#[derive(Default)]
pub(crate) struct Actions {
    /// Its runs; without an end, those that go on.
    pub(crate) known: BTreeMap<ActKey, Option<ActionEnd>>,
    /// Effects: runs to start once the job's record is stored, unless they are known.
    pub(crate) asks: Vec<ActionAsk>,
    /// Effects: runs that the job has stored, or wants ended.
    pub(crate) forget: Vec<ActKey>,
}

#[derive(Debug)]
enum Run {
    Goes(JoinHandle<ActionEnd>),
    Ended(ActionEnd),
}

/// Is all runs of all jobs. What a crash takes of them is asked for again.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<BTreeMap<(JobId, ActKey), Run>>);

impl Running {
    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<(JobId, ActKey), Run>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The runs of a job.
    async fn of(&self, job: JobId) -> BTreeMap<ActKey, Option<ActionEnd>> {
        let over = |run: &Run| matches!(run, Run::Goes(handle) if handle.is_finished());
        let ended = self.with(|all| {
            let of_job = |(key, run): (&(JobId, ActKey), &mut Run)| key.0 == job && over(run);
            all.extract_if(.., |key, run| of_job((key, run))).collect::<Vec<_>>()
        });
        for (key, run) in ended {
            let Run::Goes(handle) = run else { continue };
            let end = handle.await.unwrap_or_else(|error| {
                tracing::error!(%job, %error, "an action of a recovery plan broke off");
                ActionEnd::failed("it broke off; the log of the config server says why")
            });
            self.with(|all| all.insert(key, Run::Ended(end)));
        }
        self.with(|all| {
            let of_job = all.iter().filter(|((of, _), _)| *of == job);
            let seen = of_job.map(|((_, key), run)| match run {
                Run::Goes(_) => (key.clone(), None),
                Run::Ended(end) => (key.clone(), Some(end.clone())),
            });
            seen.collect()
        })
    }

    fn forget(&self, job: JobId, keys: Vec<ActKey>) {
        for key in keys {
            if let Some(Run::Goes(handle)) = self.with(|all| all.remove(&(job, key))) {
                handle.abort();
            }
        }
    }

    fn has(&self, job: JobId, key: &ActKey) -> bool {
        self.with(|all| all.contains_key(&(job, key.clone())))
    }
}

impl Control {
    /// The runs of a plan's job.
    pub(crate) async fn actions_of(&self, job: JobId) -> Actions {
        Actions { known: self.running_actions().of(job).await, ..Actions::default() }
    }

    /// Ends and starts the runs that a plan's job wants ended and started.
    pub(crate) async fn actions_do(&self, by: &JobFacts, actions: Actions) {
        self.running_actions().forget(by.id, actions.forget);
        for ask in actions.asks {
            if self.running_actions().has(by.id, &ask.key) {
                continue;
            }
            let key = (by.id, ask.key.clone());
            let run = match self.action_run(by, ask).await {
                Ok(run) => {
                    let (runner, control) = (self.ports().actions.clone(), self.clone());
                    Run::Goes(tokio::spawn(async move {
                        let end = runner.run(run).await;
                        control.poke();
                        end
                    }))
                }
                Err(error) => Run::Ended(ActionEnd::failed(error.problem.what)),
            };
            self.running_actions().with(|all| all.insert(key, run));
        }
    }

    /// A run with all that it needs to know.
    async fn action_run(&self, by: &JobFacts, ask: ActionAsk) -> Result<ActionRun> {
        let mut tx = self.store().read().await?;
        let act = with_secret(&mut tx, by, &ask).await?;
        let parts = store::jobs::of_parent(&mut tx, by.id).await?;
        let mut machines = Vec::new();
        for item in ask.items {
            machines.extend(machine(&mut tx, item, &parts).await?);
        }
        let ActKey { place, task, attempt } = ask.key;
        Ok(ActionRun {
            id: format!("{} {place} {task:?}", by.id).replace(' ', "-").to_lowercase(),
            attempt,
            task,
            act,
            found: ask.found,
            facts: ActionFacts {
                plan: by.target_name.clone(),
                job: by.id,
                verb: ask.verb,
                direction: ask.direction,
                group: ask.group,
                action: ask.name,
                machines,
            },
        })
    }
}

/// The action of an ask with the secret that the plan has for it: no job's record has one.
async fn with_secret(conn: &mut Conn, by: &JobFacts, ask: &ActionAsk) -> Result<Act> {
    let gone = || {
        ControlError::not_found(format!(
            "recovery plan {} has no action {} any more that is like it was",
            by.target_name, ask.name
        ))
    };
    let id = by.target_id.parse().map_err(|_| gone())?;
    let plan = store::plans::by_id(conn, id).await?.ok_or_else(gone)?;
    let all = plan.groups.iter().flat_map(|group| group.before.iter().chain(&group.after));
    let known =
        all.filter(|action| action.name == ask.name).find_map(|action| match &action.what {
            What::Act { act } => Some(act).filter(|act| act.without_secrets() == ask.act),
            What::Person { .. } => None,
        });
    known.cloned().ok_or_else(gone)
}

async fn machine(conn: &mut Conn, item: ItemId, parts: &[JobRow]) -> Result<Option<ActionMachine>> {
    let Some(item) = store::items::find(conn, item).await? else { return Ok(None) };
    let site = item.state.active;
    let host = store::hosts::find(conn, item.plan.end(site).host).await?;
    let machine = store::machines::find(conn, item.machine_id).await?;
    let nics = machine.map(|machine| machine.spec.nics).unwrap_or_default();
    let part = parts.iter().find(|row| row.facts.item == Some(item.id));
    Ok(Some(ActionMachine {
        item: item.id,
        site,
        host: host.map(|host| host.name).unwrap_or_default(),
        macs: nics.into_iter().map(|nic| nic.mac).collect(),
        point: part.and_then(|row| recovery_plan::point_of(&row.record)),
        name: item.name,
    }))
}
