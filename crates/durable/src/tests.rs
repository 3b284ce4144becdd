//! Tests the engine on small kinds whose steps do what a script in their memory says.

mod crashes;
mod failures;
mod operators;
mod random;
mod records;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::testing::{Calls, Driver, Ended, Fate, Script, World, run};
use crate::{
    Action, Forward, Job, List, Moment, Outcome, Phase, Place, Problem, Reason, Record, Registry,
    Reversible, StepError, StepLog, StepState, create,
};

/// What a call of a step does instead of succeeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    Pend,
    Transient,
    Permanent,
    Ask,
    Look,
    Skip,
    Warn,
}

/// Memory of all kinds: what each step does at its first, second, … call, and how far it came.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    script: BTreeMap<String, Vec<Act>>,
    used: BTreeMap<String, usize>,
}

impl Memory {
    fn doing(script: &[(&str, &[Act])]) -> Self {
        let script = script.iter().map(|(name, acts)| ((*name).to_owned(), acts.to_vec()));
        Self { script: script.collect(), used: BTreeMap::new() }
    }

    fn act(&mut self, name: &str) -> Result<Outcome, StepError> {
        let used = self.used.entry(name.to_owned()).or_default();
        let act = self.script.get(name).and_then(|acts| acts.get(*used));
        *used += 1;
        match act {
            None => Ok(Outcome::Done),
            Some(Act::Pend) => {
                Ok(Outcome::Pending { waiting_for: format!("{name} to end"), poll_after_ms: 500 })
            }
            Some(Act::Transient) => Err(StepError::Transient(problem(name))),
            Some(Act::Permanent) => Err(StepError::Permanent(problem(name))),
            Some(Act::Ask) => Ok(Outcome::WaitForOperator { question: format!("{name}?") }),
            Some(Act::Look) => {
                Ok(Outcome::AskAndLook { question: format!("{name}?"), poll_after_ms: 500 })
            }
            Some(Act::Skip) => Ok(Outcome::Skipped(format!("{name} is not needed"))),
            Some(Act::Warn) => Ok(Outcome::DoneWithWarning(problem(name))),
        }
    }

    /// Acts on the site before it says how it went: a failing step has half run.
    fn run(&mut self, name: &str, site: &mut Site, now: &Moment) -> Result<Outcome, StepError> {
        site.moments.push((name.to_owned(), now.clone()));
        match name {
            "machine" => {
                site.wanted.insert(name.to_owned());
                if !site.real.contains(name) {
                    let waiting_for = "the machine to exist".to_owned();
                    return Ok(Outcome::Pending { waiting_for, poll_after_ms: 250 });
                }
            }
            "stop" => site.facts.retain(|fact| fact != "start" && fact != "record"),
            "resync" => {
                site.facts.clear();
                site.wanted.clear();
                site.facts.insert(name.to_owned());
            }
            _ => {
                site.facts.insert(name.to_owned());
            }
        }
        self.act(name)
    }

    fn undo(&mut self, name: &str, site: &mut Site, now: &Moment) -> Result<Outcome, StepError> {
        let undo = format!("undo {name}");
        site.moments.push((undo.clone(), now.clone()));
        site.facts.remove(name);
        site.wanted.remove(name);
        if site.real.contains(name) {
            let waiting_for = format!("{name} to go away");
            return Ok(Outcome::Pending { waiting_for, poll_after_ms: 250 });
        }
        self.act(&undo)
    }
}

fn problem(name: &str) -> Problem {
    Problem {
        code: "LW-9999".into(),
        what: format!("could not do {name}"),
        cause: "the script says so".into(),
        now: "nothing".into(),
        todo: "read the script".into(),
    }
}

/// The world, its own transaction, and a record of every call that was committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    facts: BTreeSet<String>,
    /// Asked of the outside, which makes it real later.
    wanted: BTreeSet<String>,
    real: BTreeSet<String>,
    /// How often the outside made something real.
    made: usize,
    moments: Vec<(String, Moment)>,
}

impl World for Site {
    type Context = Site;
    fn begin(&self, _now_ms: u64) -> Site {
        self.clone()
    }
    fn commit(&mut self, context: Site) {
        *self = context;
    }
    fn settle(&mut self, _now_ms: u64) {
        self.made += self.wanted.difference(&self.real).count();
        self.real.clone_from(&self.wanted);
    }
}

impl Site {
    fn visible(&self) -> (&BTreeSet<String>, &BTreeSet<String>, usize) {
        (&self.facts, &self.real, self.made)
    }
    fn has(&self, facts: &[&str]) -> bool {
        self.facts.iter().map(String::as_str).eq(facts.iter().copied())
    }
    fn is_empty(&self) -> bool {
        self.facts.is_empty() && self.wanted.is_empty() && self.real.is_empty()
    }
    fn moments_of(&self, name: &str) -> Vec<&Moment> {
        self.moments.iter().filter(|(n, _)| n == name).map(|(_, moment)| moment).collect()
    }
}

macro_rules! reversible {
    ($name:literal) => {
        Reversible::new(
            $name,
            |job, site, now| job.0.run($name, site, now),
            |job, site, now| job.0.undo($name, site, now),
        )
    };
}

macro_rules! forward {
    ($name:literal) => {
        Forward::new($name, |job, site, now| job.0.run($name, site, now))
    };
}

use {forward, reversible};

/// A kind with all three lists.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Failover(Memory);

impl Job for Failover {
    type Context = Site;
    const KIND: &'static str = "failover";
    const REVERSIBLE: &'static [Reversible<Self>] =
        &[reversible!("check"), reversible!("point"), reversible!("machine")];
    const FORWARD: &'static [Forward<Self>] = &[forward!("start"), forward!("record")];
    const ABANDON: &'static [Forward<Self>] = &[forward!("stop"), forward!("resync")];
}

/// A kind without a way out, with a short ladder and a limit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Enable(Memory);

impl Job for Enable {
    type Context = Site;
    const KIND: &'static str = "enable";
    const REVERSIBLE: &'static [Reversible<Self>] = &[reversible!("check")];
    const FORWARD: &'static [Forward<Self>] = &[forward!("relate"), forward!("copy")];
    const ABANDON: &'static [Forward<Self>] = &[];
    const BACKOFF_MS: &'static [u64] = &[10, 20];
    const TRANSIENT_RETRIES_MAX: Option<u32> = Some(3);
}

/// A kind that begins after the point of no return.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Commit(Memory);

impl Job for Commit {
    type Context = Site;
    const KIND: &'static str = "commit";
    const REVERSIBLE: &'static [Reversible<Self>] = &[];
    const FORWARD: &'static [Forward<Self>] = &[forward!("prune")];
    const ABANDON: &'static [Forward<Self>] = &[forward!("keep")];
}

/// A kind that never leaves the reversible list.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Probe(Memory);

impl Job for Probe {
    type Context = Site;
    const KIND: &'static str = "probe";
    const REVERSIBLE: &'static [Reversible<Self>] = &[reversible!("look")];
    const FORWARD: &'static [Forward<Self>] = &[];
    const ABANDON: &'static [Forward<Self>] = &[];
}

fn registry() -> Registry<Site> {
    Registry::new().with::<Failover>().with::<Enable>().with::<Commit>().with::<Probe>()
}

fn failover(script: &[(&str, &[Act])]) -> Record {
    create(&Failover(Memory::doing(script)), 1_000).unwrap()
}

fn enable(script: &[(&str, &[Act])]) -> Record {
    create(&Enable(Memory::doing(script)), 1_000).unwrap()
}

fn run_with(record: &Record, script: &Script) -> Ended<Site> {
    run(&registry(), &Site::default(), record, script).unwrap()
}

/// Advances without faults until the job is at `place`; panics if it never is.
fn drive_to(driver: &mut Driver<'_, Site>, place: Place) {
    for _ in 0..100 {
        if driver.record().unwrap().current() == Some(place) {
            return;
        }
        step(driver);
    }
    panic!("the job never came to {place:?}");
}

fn step(driver: &mut Driver<'_, Site>) {
    let next = driver.advance(Fate::Lands, Calls::Once).unwrap();
    driver.wait_for(next);
}

fn drive_to_end(driver: &mut Driver<'_, Site>) -> Record {
    for _ in 0..100 {
        let record = driver.record().unwrap();
        if matches!(record.next(), crate::Next::Finished | crate::Next::WaitingForOperator) {
            return record;
        }
        step(driver);
    }
    panic!("the job never ended");
}

fn at(list: List, index: usize) -> Place {
    Place { list, index, action: Action::Run }
}

fn log<'a>(record: &'a Record, name: &str) -> &'a StepLog {
    record.log.iter().find(|step| step.name == name).unwrap()
}

fn states(record: &Record) -> Vec<StepState> {
    record.log.iter().map(|step| step.state).collect()
}

fn cancelled() -> Phase {
    Phase::RolledBack { reason: Reason::Cancelled }
}

fn abandoned() -> Phase {
    Phase::Abandoned { reason: Reason::Cancelled }
}
