//! Drives jobs in memory and does to them what the world may: crashes, repeats, cancels.
//!
//! Is for tests of this and other crates only. The caller brings a [`World`]; [`run`] drives one
//! job in it under a [`Script`], [`crash_everywhere`] and [`cancel_everywhere`] enumerate scripts,
//! and [`Coverage`] tells which step of a [`Registry`] no run has ever called.
//!
//! A record and the effects of its step are one transaction, so a crash loses both or neither.
//! [`Calls::Twice`] is stricter: there the effects of a step land, and its record does not.

use std::collections::BTreeSet;

use crate::engine::EngineError;
use crate::operator::{Answer, AnswerError, CancelEffect, answer, request_cancel};
use crate::record::{Action, DecodeError, List, Next, Place, Record};
use crate::registry::Registry;

/// Transitions after which a run is taken for endless. The longest job has some dozens.
pub const ADVANCES_MAX: usize = 10_000;

/// Is what jobs act on: the owner's state and whatever lies outside.
pub trait World: Clone {
    /// The context of the jobs.
    type Context;
    /// Opens a transaction at `now_ms` (driver's clock, milliseconds). Dropping it rolls it back.
    fn begin(&self, now_ms: u64) -> Self::Context;
    /// Makes the effects of a transaction durable.
    fn commit(&mut self, context: Self::Context);
    /// Lets the outside act on what was committed, before each transition.
    fn settle(&mut self, _now_ms: u64) {}
    /// Loses what lives in the owner's memory only, as its death does.
    fn restart(&mut self) {}
}

/// Is one function of one kind that a job can have called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId {
    /// The kind.
    pub kind: &'static str,
    /// Its list, index and function.
    pub place: Place,
    /// The step's name.
    pub name: &'static str,
}

/// Lists every function of every kind: each step's run, and its undo in REVERSIBLE.
pub fn enumerate<C>(registry: &Registry<C>) -> Vec<StepId> {
    let mut all = Vec::new();
    for kind in registry.kinds() {
        let mut seen = 0;
        let mut list = List::Reversible;
        for step in registry.steps(kind).expect("the kind comes from the registry") {
            seen = if step.list == list { seen } else { 0 };
            list = step.list;
            let actions: &[Action] = match list {
                List::Reversible => &[Action::Run, Action::Undo],
                List::Forward | List::Abandon => &[Action::Run],
            };
            all.extend(actions.iter().map(|&action| {
                let place = Place { list, index: seen, action };
                StepId { kind, place, name: step.name }
            }));
            seen += 1;
        }
    }
    all
}

/// Is what becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is stored.
    Lands,
    /// The owner dies before: record and effects are as if the step had never run.
    Lost,
    /// It is stored, then the owner dies.
    LandsThenDies,
}

/// Is how often each step is called in its transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Calls {
    /// Once.
    #[default]
    Once,
    /// Twice, the second time with the record of the first and upon its effects.
    Twice,
}

/// Says why a run has no result.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The engine refused the record.
    #[error("could not advance the job")]
    Engine(#[from] EngineError),
    /// The stored record is none.
    #[error("could not read the stored record")]
    Decode(#[from] DecodeError),
    /// The script's answer does not fit.
    #[error("could not answer the job")]
    Answer(#[from] AnswerError),
    /// The job goes round in circles.
    #[error("job {kind} has not ended after {ADVANCES_MAX} transitions, it is {phase}")]
    Endless {
        /// The kind.
        kind: String,
        /// Its phase.
        phase: &'static str,
    },
}

/// Is one job in its world, driven transition by transition. Everything stored goes through JSON.
pub struct Driver<'a, W: World> {
    registry: &'a Registry<W::Context>,
    /// The world as committed.
    pub world: W,
    stored: String,
    /// The driver's clock, milliseconds; starts when the job was created.
    pub now_ms: u64,
    calls: Vec<Place>,
}

impl<'a, W: World> Driver<'a, W> {
    /// Stores a new job.
    pub fn new(registry: &'a Registry<W::Context>, world: W, record: &Record) -> Self {
        let stored = record.encode();
        Self { registry, world, stored, now_ms: record.created_ms, calls: Vec::new() }
    }

    /// Reads the stored record.
    ///
    /// # Errors
    /// [`DriveError::Decode`] when it does not survive storing.
    pub fn record(&self) -> Result<Record, DriveError> {
        Ok(Record::decode(&self.stored)?)
    }

    /// Returns the functions called by transactions that landed, in order.
    pub fn calls(&self) -> &[Place] {
        &self.calls
    }

    /// Makes one transition with the clock as it is.
    ///
    /// # Errors
    /// [`DriveError::Engine`] and [`DriveError::Decode`]; nothing was stored then.
    pub fn advance(&mut self, fate: Fate, calls: Calls) -> Result<Next, DriveError> {
        self.world.settle(self.now_ms);
        let before = self.record()?;
        let mut context = self.world.begin(self.now_ms);
        if calls == Calls::Twice {
            self.registry.advance(before.clone(), &mut context, self.now_ms)?;
        }
        let advance = self.registry.advance(before.clone(), &mut context, self.now_ms)?;
        if fate == Fate::Lost {
            drop(context);
            self.world.restart();
            return Ok(before.next());
        }
        self.calls.extend(called(&before, &advance.record));
        self.world.commit(context);
        if advance.changed {
            self.stored = advance.record.encode();
        }
        if fate == Fate::LandsThenDies {
            self.world.restart();
            return Ok(self.record()?.next());
        }
        Ok(advance.next)
    }

    /// Stores a cancel.
    ///
    /// # Errors
    /// [`DriveError::Decode`].
    pub fn cancel(&mut self) -> Result<CancelEffect, DriveError> {
        let mut record = self.record()?;
        let effect = request_cancel(&mut record);
        self.stored = record.encode();
        Ok(effect)
    }

    /// Stores an answer.
    ///
    /// # Errors
    /// [`DriveError::Answer`] when it was refused; nothing was stored then.
    pub fn answer(&mut self, given: Answer) -> Result<(), DriveError> {
        let mut record = self.record()?;
        answer(&mut record, given)?;
        self.stored = record.encode();
        Ok(())
    }

    /// Sets the clock to when `next` is due.
    pub fn wait_for(&mut self, next: Next) {
        self.now_ms = match next {
            Next::PollAt(at_ms) | Next::RetryAt(at_ms) => at_ms.max(self.now_ms),
            Next::Continue | Next::WaitingForOperator | Next::Finished => self.now_ms + 1,
        };
    }
}

/// Says which function a transition called: the current one, unless it turned or was not due.
fn called(before: &Record, after: &Record) -> Option<Place> {
    let not_due = match before.next() {
        Next::Finished | Next::WaitingForOperator => true,
        Next::RetryAt(_) => before == after,
        Next::Continue | Next::PollAt(_) => before.cancel_is_due(),
    };
    before.current().filter(|_| !not_due)
}

/// Is what befalls a run. Transitions are counted from 0; a lost one is not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The owner dies at this transition, in this way.
    pub crash: Option<(usize, Fate)>,
    /// A cancel is stored before each of these transitions.
    pub cancel_before: BTreeSet<usize>,
    /// Answers to the job's questions, in order; without one left the run ends waiting.
    pub answers: Vec<Answer>,
    /// How often each step is called.
    pub calls: Calls,
}

impl Script {
    /// The same script with a cancel before a transition.
    #[must_use]
    pub fn cancelled_before(mut self, transition: usize) -> Self {
        self.cancel_before.insert(transition);
        self
    }

    /// The same script with a crash at a transition.
    #[must_use]
    pub fn crashed_at(mut self, transition: usize, fate: Fate) -> Self {
        self.crash = Some((transition, fate));
        self
    }
}

/// Is how a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended<W> {
    /// The stored record: its job is over, or waits for an operator.
    pub record: Record,
    /// The world as committed.
    pub world: W,
    /// Transitions that landed.
    pub transitions: usize,
    /// The functions called by them, in order.
    pub calls: Vec<Place>,
}

/// Drives a job until it is over or waits for an answer that the script does not have.
///
/// # Errors
/// Any [`DriveError`].
pub fn run<W: World>(
    registry: &Registry<W::Context>,
    world: &W,
    record: &Record,
    script: &Script,
) -> Result<Ended<W>, DriveError> {
    let mut driver = Driver::new(registry, world.clone(), record);
    let mut answers = script.answers.iter();
    let mut crash = script.crash;
    let mut transitions = 0;
    loop {
        if script.cancel_before.contains(&transitions) {
            driver.cancel()?;
        }
        match driver.record()?.next() {
            Next::Finished => break,
            Next::WaitingForOperator => match answers.next() {
                Some(given) => driver.answer(given.clone())?,
                None => break,
            },
            Next::Continue | Next::PollAt(_) | Next::RetryAt(_) => {}
        }
        let fate = match crash.take_if(|(at, _)| *at == transitions) {
            Some((_, fate)) => fate,
            None => Fate::Lands,
        };
        let next = driver.advance(fate, script.calls)?;
        driver.wait_for(next);
        transitions += usize::from(fate != Fate::Lost);
        if transitions > ADVANCES_MAX {
            let record = driver.record()?;
            return Err(DriveError::Endless { kind: record.kind, phase: record.phase.name() });
        }
    }
    let record = driver.record()?;
    Ok(Ended { record, world: driver.world, transitions, calls: driver.calls })
}

/// Runs `script` once per transition and way to die, and hands each run with its script to `see`.
///
/// The first run handed over is the one without a crash; compare the others with it.
///
/// # Errors
/// Any [`DriveError`] of any run.
pub fn crash_everywhere<W: World>(
    registry: &Registry<W::Context>,
    world: &W,
    record: &Record,
    script: &Script,
    mut see: impl FnMut(&Script, Ended<W>),
) -> Result<(), DriveError> {
    let whole = run(registry, world, record, script)?;
    let transitions = whole.transitions;
    see(script, whole);
    for at in 0..transitions {
        for fate in [Fate::Lost, Fate::LandsThenDies] {
            let script = script.clone().crashed_at(at, fate);
            see(&script, run(registry, world, record, &script)?);
        }
    }
    Ok(())
}

/// Runs `script` once per transition with a cancel before it, and once with one after the last.
///
/// # Errors
/// Any [`DriveError`] of any run.
pub fn cancel_everywhere<W: World>(
    registry: &Registry<W::Context>,
    world: &W,
    record: &Record,
    script: &Script,
    mut see: impl FnMut(&Script, Ended<W>),
) -> Result<(), DriveError> {
    let transitions = run(registry, world, record, script)?.transitions;
    for before in 0..=transitions {
        let script = script.clone().cancelled_before(before);
        see(&script, run(registry, world, record, &script)?);
    }
    Ok(())
}

/// Collects which functions of which kinds have been called.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    called: BTreeSet<(String, Place)>,
}

impl Coverage {
    /// Adds the calls of a run.
    pub fn add<W>(&mut self, ended: &Ended<W>) {
        let kind = &ended.record.kind;
        self.called.extend(ended.calls.iter().map(|place| (kind.clone(), *place)));
    }

    /// Lists what no run has called. A test asserts that it is empty: no new step escapes.
    pub fn missing<C>(&self, registry: &Registry<C>) -> Vec<StepId> {
        let called = |step: &StepId| self.called.contains(&(step.kind.to_owned(), step.place));
        enumerate(registry).into_iter().filter(|step| !called(step)).collect()
    }
}
