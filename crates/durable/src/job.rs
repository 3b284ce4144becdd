//! Says what a job and its steps are, and what a step can answer. Runs nothing: see engine.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Milliseconds to wait after the first, second, … transient failure; the last one repeats.
///
/// 1, 2, 4, 8, 10 and then every 30 minutes.
pub const BACKOFF_DEFAULT_MS: &[u64] =
    &[60_000, 120_000, 240_000, 480_000, 600_000, 1_800_000, 1_800_000];

/// Is a kind of job. The value is the job's memory: all of it is journaled after each step.
///
/// Names within one list are unique. Lists change only together with a new [`Job::KIND`], or when
/// no unfinished job of the kind is left: records of other lists are refused.
pub trait Job: Serialize + DeserializeOwned + Sized + 'static {
    /// What steps see and change: a view of the owner's state that also collects effects.
    type Context;
    /// Names the kind in records and messages.
    const KIND: &'static str;
    /// Steps before the point of no return, in order; undone in reverse.
    const REVERSIBLE: &'static [Reversible<Self>];
    /// Steps after the point of no return, in order; never undone.
    const FORWARD: &'static [Forward<Self>];
    /// Steps of a cancel after the point of no return, in order; empty: none is offered.
    const ABANDON: &'static [Forward<Self>];
    /// Back-off in milliseconds by count of transient failures of a step; never empty.
    const BACKOFF_MS: &'static [u64] = BACKOFF_DEFAULT_MS;
    /// Transient failures of one step that are retried before the next counts as permanent.
    ///
    /// `None` retries for ever. The count starts anew with the next step and with an answer.
    const TRANSIENT_RETRIES_MAX: Option<u32> = None;
}

/// Is what a step, or its undo, consists of.
pub type Run<J> = fn(&mut J, &mut <J as Job>::Context, &Moment) -> Result<Outcome, StepError>;

/// Is a step before the point of no return.
pub struct Reversible<J: Job> {
    /// Names the step within its list.
    pub name: &'static str,
    /// Does the step; idempotent.
    pub run: Run<J>,
    /// Leaves nothing behind of the step, which may never have run, have half run or have failed.
    pub undo: Run<J>,
}

impl<J: Job> Reversible<J> {
    /// Makes a step; [`nothing`] serves as the undo of one that leaves nothing behind.
    pub const fn new(name: &'static str, run: Run<J>, undo: Run<J>) -> Self {
        Self { name, run, undo }
    }
}

/// Is a step that is never undone.
pub struct Forward<J: Job> {
    /// Names the step within its list.
    pub name: &'static str,
    /// Does the step; idempotent.
    pub run: Run<J>,
}

impl<J: Job> Forward<J> {
    /// Makes a step.
    pub const fn new(name: &'static str, run: Run<J>) -> Self {
        Self { name, run }
    }
}

/// Does nothing: the undo of a step that leaves nothing behind, such as a check.
///
/// # Errors
/// Never fails.
pub fn nothing<J: Job>(
    _job: &mut J,
    _context: &mut J::Context,
    _moment: &Moment,
) -> Result<Outcome, StepError> {
    Ok(Outcome::Done)
}

/// Tells a step when it runs and why it runs again. Times are the owner's clock, milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Now.
    pub now_ms: u64,
    /// First call of the step, or its first call after the last answer of an operator.
    pub step_started_ms: u64,
    /// First call of this attempt: equal to the above until a transient failure.
    pub attempt_started_ms: u64,
    /// Counts from 1 and grows after each failure; polls and questions count none.
    pub attempt: u32,
    /// Whether somebody asked for a cancel, be it the reason for this call or too late.
    pub cancel_requested: bool,
    /// Whether an operator has answered this step's last question.
    pub answered: bool,
    /// Text an operator replied to this step's last question.
    pub reply: Option<String>,
}

impl Moment {
    /// Milliseconds since `step_started_ms`; 0 if the clock went back.
    pub fn step_elapsed_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.step_started_ms)
    }

    /// Milliseconds since `attempt_started_ms`; 0 if the clock went back.
    pub fn attempt_elapsed_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.attempt_started_ms)
    }
}

/// Is how a call of a step ended when it did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The step is complete.
    Done,
    /// There was nothing to do, and why.
    Skipped(String),
    /// The step is complete as far as the job goes, but an operator should read this.
    DoneWithWarning(Problem),
    /// Something was asked of the world and is not there yet.
    Pending {
        /// What is missing, for the operator.
        waiting_for: String,
        /// Milliseconds from now after which the step wants to look again, if not poked before.
        poll_after_ms: u64,
    },
    /// The step goes on after an operator has answered; see [`Moment::reply`].
    WaitForOperator {
        /// What the operator reads.
        question: String,
    },
    /// The step asks an operator and looks by itself whether it still has to: it runs again after
    /// an answer, and at every poll before.
    AskAndLook {
        /// What the operator reads.
        question: String,
        /// Milliseconds from now after which the step wants to look again, if not poked before.
        poll_after_ms: u64,
    },
}

/// Is what an operator reads about a failure or a warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// Stable code, such as `LW-0312`.
    pub code: String,
    /// What happened to which object.
    pub what: String,
    /// Its likely cause.
    pub cause: String,
    /// What holds now and how the job goes on.
    pub now: String,
    /// What the operator should do.
    pub todo: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.code, self.what)?;
        writeln!(f, "  cause: {}", self.cause)?;
        writeln!(f, "  now:   {}", self.now)?;
        write!(f, "  do:    {}", self.todo)
    }
}

/// Is how a call of a step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// May work later: the step is retried after a back-off.
    #[error("{}: {}", .0.code, .0.what)]
    Transient(Problem),
    /// Retrying by itself is useless: the job goes back, or a person is asked.
    #[error("{}: {}", .0.code, .0.what)]
    Permanent(Problem),
}
