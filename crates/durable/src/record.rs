//! Is the journal record of a job and its stored form. Changes nothing by itself: see engine.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::Problem;
use crate::operator::Answer;

/// Version of the stored form; a record of any other one is refused.
pub const FORMAT: u32 = 1;

/// Is all that is known about one job; what the owner stores after every change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Always [`FORMAT`] in a record that this program wrote.
    pub format: u32,
    /// Grows by one with every change, so that a store can refuse a writer that lost a race.
    pub revision: u64,
    /// The job's kind.
    pub kind: String,
    /// The job's memory as its kind serializes it.
    pub job: Value,
    /// Where the job is.
    pub phase: Phase,
    /// Somebody asked for a cancel and it was not a no-op.
    pub cancel_requested: bool,
    /// When the current step may or wants to run again.
    pub wake: Wake,
    /// The current step's question to the operator, until the step is over.
    pub waiting: Option<Waiting>,
    /// Clocks and counts of the current step.
    pub progress: Progress,
    /// When the job was created, owner's clock, milliseconds.
    pub created_ms: u64,
    /// When the job reached its last phase, owner's clock, milliseconds.
    pub ended_ms: Option<u64>,
    /// Every step of the kind as it was at creation: REVERSIBLE, then FORWARD, then ABANDON.
    pub log: Vec<StepLog>,
}

/// Is where a job is. Indexes count steps of the phase's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before the point of no return; `next` = length: all run, FORWARD has not begun.
    Reversible {
        /// The current step.
        next: usize,
    },
    /// After the point of no return.
    Forward {
        /// The current step.
        next: usize,
    },
    /// Going back before the point of no return.
    Undoing {
        /// Steps still to undo; the current one is `left - 1`.
        left: usize,
        /// Why.
        reason: Reason,
    },
    /// Going back after the point of no return.
    Abandoning {
        /// The current step.
        next: usize,
        /// Why.
        reason: Reason,
    },
    /// Over: all of FORWARD has run.
    Succeeded,
    /// Over: nothing of REVERSIBLE is left.
    RolledBack {
        /// Why.
        reason: Reason,
    },
    /// Over: all of ABANDON has run.
    Abandoned {
        /// Why.
        reason: Reason,
    },
}

impl Phase {
    /// Whether the job is over.
    pub fn is_final(&self) -> bool {
        match self {
            Phase::Succeeded | Phase::RolledBack { .. } | Phase::Abandoned { .. } => true,
            Phase::Reversible { .. }
            | Phase::Forward { .. }
            | Phase::Undoing { .. }
            | Phase::Abandoning { .. } => false,
        }
    }

    /// Names the phase in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Reversible { .. } => "reversible",
            Phase::Forward { .. } => "forward",
            Phase::Undoing { .. } => "undoing",
            Phase::Abandoning { .. } => "abandoning",
            Phase::Succeeded => "succeeded",
            Phase::RolledBack { .. } => "rolled back",
            Phase::Abandoned { .. } => "abandoned",
        }
    }
}

/// Is why a job goes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// An operator asked for it.
    Cancelled,
    /// A step failed for good before the point of no return.
    Failed(Problem),
}

/// Is when the current step may or wants to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wake {
    /// At once.
    Now,
    /// At `at_ms`, or earlier when poked.
    Poll {
        /// Owner's clock, milliseconds.
        at_ms: u64,
    },
    /// Not before `not_before_ms`; a cancel and the answer Retry go first.
    Retry {
        /// Owner's clock, milliseconds.
        not_before_ms: u64,
        /// The back-off; a longer remaining time means that the clock went back: due.
        delay_ms: u64,
    },
}

/// Is a question to the operator. The step does not run until it is answered, unless it looks
/// meanwhile ([`Wake::Poll`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// What is asked.
    pub question: Question,
    /// Since when, owner's clock, milliseconds.
    pub since_ms: u64,
    /// The answer, once given.
    pub answer: Option<Answer>,
}

/// Is what an operator is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The step itself asks.
    Asked(String),
    /// The step failed for good where the job cannot go back by itself: what now?
    Failed(Problem),
}

/// Is what the engine remembers of the current step only; starts anew with each step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// First call since the step became current or an operator answered.
    pub step_started_ms: Option<u64>,
    /// First call of the running attempt.
    pub attempt_started_ms: Option<u64>,
    /// Failures of the step so far, of both sorts.
    pub failures: u32,
    /// Transient failures since the step became current or an operator answered.
    pub transient_failures: u32,
}

/// Is which list a step belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum List {
    /// Before the point of no return.
    Reversible,
    /// After it.
    Forward,
    /// The way out after it.
    Abandon,
}

/// Is whether a step is done or undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// `run`.
    Run,
    /// `undo`, only in [`List::Reversible`].
    Undo,
}

/// Is one function that a kind can have called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The list.
    pub list: List,
    /// The step within it.
    pub index: usize,
    /// Which of its functions.
    pub action: Action,
}

/// Is what became of a step so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepLog {
    /// The step's list.
    pub list: List,
    /// The step's name.
    pub name: String,
    /// What it does now, or how it ended.
    pub state: StepState,
    /// First run, owner's clock, milliseconds.
    pub started_ms: Option<u64>,
    /// End of the last run, owner's clock, milliseconds.
    pub ended_ms: Option<u64>,
    /// Attempts to run it.
    pub attempts: u32,
    /// What it waits for, asks, or why it was skipped.
    pub message: Option<String>,
    /// Its warning or its last failure.
    pub problem: Option<Problem>,
    /// Its undo, if one began.
    pub undo: Option<UndoLog>,
}

/// Is what became of the undo of a step so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoLog {
    /// First undo, owner's clock, milliseconds.
    pub started_ms: Option<u64>,
    /// End of the undo, owner's clock, milliseconds.
    pub ended_ms: Option<u64>,
    /// Attempts to undo it.
    pub attempts: u32,
    /// What the undo waits for, asks, or why it was skipped.
    pub message: Option<String>,
    /// Its warning or its last failure.
    pub problem: Option<Problem>,
}

/// Is what a step does or how it ended. While an undo runs it tells about the undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Never called, or only its undo was, as a precaution.
    NotStarted,
    /// Runs, is pending, or backs off.
    InProgress,
    /// Asks the operator.
    Waiting,
    /// Had nothing to do.
    Skipped,
    /// Complete.
    Succeeded,
    /// Complete; see its problem.
    SucceededWithWarning,
    /// Failed for good; in FORWARD, ABANDON and undo an operator is asked.
    Failed,
    /// A cancel came before it was complete.
    Cancelled,
    /// Nothing of it is left.
    Undone,
}

/// Is what the owner should do with a job. Times are the owner's clock, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Advance again at once.
    Continue,
    /// Advance at this time, or earlier when poked.
    PollAt(u64),
    /// Advance at this time; earlier does nothing.
    RetryAt(u64),
    /// Advance after an answer or a cancel. Earlier does nothing, unless the step wants to look
    /// meanwhile: then when [`Record::wake`] says so, or when poked.
    WaitingForOperator,
    /// Never advance again.
    Finished,
}

/// Says why stored text is no record.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by another version of the program.
    #[error("job record has format {found}, this program knows only {FORMAT}")]
    UnknownFormat {
        /// The record's format.
        found: u64,
    },
    /// Not a record at all.
    #[error("could not read a job record of format {FORMAT}")]
    Malformed(#[from] serde_json::Error),
}

impl Record {
    /// Encodes the record as one line of JSON, the only stored form.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("a record has only string keys and plain values")
    }

    /// Decodes what [`Record::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError::UnknownFormat`] for any other format, before anything else is looked at.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let Head { format: found } = serde_json::from_str(text)?;
        if found != u64::from(FORMAT) {
            return Err(DecodeError::UnknownFormat { found });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// Says what the owner should do with the job, for example after loading it.
    pub fn next(&self) -> Next {
        if self.phase.is_final() {
            Next::Finished
        } else if self.cancel_is_due() {
            Next::Continue
        } else if self.question().is_some() {
            Next::WaitingForOperator
        } else {
            match self.wake {
                Wake::Now => Next::Continue,
                Wake::Poll { at_ms } => Next::PollAt(at_ms),
                Wake::Retry { not_before_ms, .. } => Next::RetryAt(not_before_ms),
            }
        }
    }

    /// Returns the question that no operator has answered yet.
    pub fn question(&self) -> Option<&Question> {
        self.waiting.as_ref().filter(|w| w.answer.is_none()).map(|w| &w.question)
    }

    /// Returns what the next call of a step will be, leaving aside a cancel; none at the end.
    pub fn current(&self) -> Option<Place> {
        let run = |list, index| Some(Place { list, index, action: Action::Run });
        match &self.phase {
            Phase::Reversible { next } if *next < self.len(List::Reversible) => {
                run(List::Reversible, *next)
            }
            Phase::Reversible { .. } if self.len(List::Forward) > 0 => run(List::Forward, 0),
            Phase::Forward { next } => run(List::Forward, *next),
            Phase::Abandoning { next, .. } => run(List::Abandon, *next),
            Phase::Undoing { left, .. } => left.checked_sub(1).map(|index| Place {
                list: List::Reversible,
                index,
                action: Action::Undo,
            }),
            Phase::Reversible { .. }
            | Phase::Succeeded
            | Phase::RolledBack { .. }
            | Phase::Abandoned { .. } => None,
        }
    }

    /// Returns the log of the current step.
    pub fn current_log(&self) -> Option<&StepLog> {
        self.current().and_then(|place| self.log.get(self.position(place)))
    }

    /// Returns the warnings of steps and undos, in the order of the log.
    pub fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.log.iter().flat_map(|step| {
            let run = step.problem.as_ref();
            let run = run.filter(|_| step.state == StepState::SucceededWithWarning);
            let undo = step.undo.as_ref().filter(|undo| undo.ended_ms.is_some());
            run.into_iter().chain(undo.and_then(|undo| undo.problem.as_ref()))
        })
    }

    /// Counts the steps of a list.
    pub(crate) fn len(&self, list: List) -> usize {
        self.log.iter().filter(|step| step.list == list).count()
    }

    /// Finds a step in the log, whose lists stand in the order of [`List`].
    pub(crate) fn position(&self, place: Place) -> usize {
        self.log.iter().filter(|step| step.list < place.list).count() + place.index
    }

    /// Whether the next transition is the turn that a cancel asked for.
    pub(crate) fn cancel_is_due(&self) -> bool {
        self.cancel_requested
            && match self.phase {
                Phase::Reversible { .. } => true,
                Phase::Forward { .. } => self.len(List::Abandon) > 0,
                Phase::Undoing { .. }
                | Phase::Abandoning { .. }
                | Phase::Succeeded
                | Phase::RolledBack { .. }
                | Phase::Abandoned { .. } => false,
            }
    }
}
