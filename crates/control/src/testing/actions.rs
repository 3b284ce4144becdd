//! A world outside in which recovery plans act: a list of what was done there, with failures that
//! a test asks for.

use crate::plans::{Act, ActionEnd, ActionRun, ActionRunner, Task};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Carries actions out by noting them. What is done is set, what is taken back is as before.
#[derive(Debug, Default)]
pub struct ScriptedActions(Mutex<Outside>);

#[derive(Clone, Debug, Default)]
struct Outside {
    done: Vec<(String, Task)>,
    set: BTreeMap<String, String>,
    fails: BTreeSet<(String, Task)>,
    hangs: BTreeSet<String>,
    runs: Vec<ActionRun>,
}

impl ScriptedActions {
    fn with<T>(&self, change: impl FnOnce(&mut Outside) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same outside for another config server.
    pub fn copy(&self) -> ScriptedActions {
        ScriptedActions(Mutex::new(self.with(|outside| outside.clone())))
    }

    /// The runs by the action's name, in the order in which they ended.
    pub fn done(&self) -> Vec<(String, Task)> {
        self.with(|outside| outside.done.clone())
    }

    /// All runs with what they were told, in the order in which they began.
    pub fn runs(&self) -> Vec<ActionRun> {
        self.with(|outside| outside.runs.clone())
    }

    /// What is set outside, by the action that set it.
    pub fn set(&self) -> Vec<String> {
        self.with(|outside| outside.set.keys().cloned().collect())
    }

    /// Lets a task of an action fail, or not any more.
    pub fn fail(&self, action: &str, task: Task, fails: bool) {
        let key = (action.to_owned(), task);
        self.with(|outside| match fails {
            true => outside.fails.insert(key),
            false => outside.fails.remove(&key),
        });
    }

    /// Lets an action never end once it has done what it does.
    pub fn hang(&self, action: &str) {
        self.with(|outside| outside.hangs.insert(action.to_owned()));
    }
}

#[async_trait::async_trait]
impl ActionRunner for ScriptedActions {
    async fn run(&self, run: ActionRun) -> ActionEnd {
        let name = run.facts.action.clone();
        let hangs = self.with(|outside| {
            outside.runs.push(run.clone());
            if run.task == Task::Do {
                outside.set.insert(name.clone(), run.id.clone());
            }
            run.task == Task::Do && outside.hangs.contains(&name)
        });
        if hangs {
            std::future::pending::<()>().await;
        }
        self.with(|outside| {
            outside.done.push((name.clone(), run.task));
            if outside.fails.contains(&(name.clone(), run.task)) {
                return ActionEnd { code: Some(7), ..ActionEnd::failed("it said no") };
            }
            match run.task {
                Task::Look => ActionEnd { found: Some(json!("before")), ..ActionEnd::default() },
                Task::Do => ActionEnd { output: "done".to_owned(), ..ActionEnd::default() },
                Task::Undo => {
                    let looked = !matches!(run.act, Act::Dns { .. }) || run.found.is_some();
                    assert!(looked, "{name} is taken back without what was before");
                    outside.set.remove(&name);
                    ActionEnd::default()
                }
            }
        })
    }
}
