//! Makes one transition of a job: the only place where phases change. Stores nothing.

use crate::job::{Job, Moment, Outcome, Problem, Run, StepError};
use crate::operator::Answer;
use crate::record::{
    Action, FORMAT, List, Next, Phase, Place, Progress, Question, Reason, Record, StepLog,
    StepState, Waiting, Wake,
};
use crate::registry::{StepName, step_names};

/// Is the result of one transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// The job afterwards.
    pub record: Record,
    /// False: the record need not be stored (a poll that found nothing new, or nothing was due).
    /// Effects in the context, if the step left any, still must be.
    pub changed: bool,
    /// What to do with the job now.
    pub next: Next,
}

/// Says why a job could not be advanced. Nothing has happened and nothing must be stored.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Written by another version of the program.
    #[error("record of job {kind} has format {found}, this program knows only {FORMAT}")]
    UnknownFormat {
        /// The record's kind.
        kind: String,
        /// The record's format.
        found: u32,
    },
    /// No such kind is registered.
    #[error("job kind {kind} is unknown, known are: {}", known.join(", "))]
    UnknownKind {
        /// The record's kind.
        kind: String,
        /// All registered kinds.
        known: Vec<&'static str>,
    },
    /// The caller chose the wrong type.
    #[error("record is of job kind {found}, it cannot be run as {expected}")]
    WrongKind {
        /// The kind asked for.
        expected: &'static str,
        /// The record's kind.
        found: String,
    },
    /// The kind's steps are not those with which the job was created.
    #[error(
        "job {kind} was created with other steps than this program has: record [{}], program [{}]",
        recorded.join(", "), current.join(", ")
    )]
    OtherSteps {
        /// The kind.
        kind: &'static str,
        /// The record's steps as `list/name`.
        recorded: Vec<String>,
        /// The program's steps as `list/name`.
        current: Vec<String>,
    },
    /// The phase points outside its list.
    #[error("record of job {kind} is {phase:?}, which none of its steps matches")]
    NoSuchStep {
        /// The kind.
        kind: &'static str,
        /// The record's phase.
        phase: Box<Phase>,
    },
    /// The job's memory could not be read as its kind.
    #[error("could not read the memory of job {kind}")]
    Read {
        /// The kind.
        kind: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The job's memory could not be written as JSON.
    #[error("could not write the memory of job {kind}")]
    Write {
        /// The kind.
        kind: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Makes the first record of a job. The job exists once the owner has stored it.
///
/// # Errors
/// [`EngineError::Write`] when the job's memory is not expressible in JSON.
pub fn create<J: Job>(job: &J, now_ms: u64) -> Result<Record, EngineError> {
    let memory =
        serde_json::to_value(job).map_err(|source| EngineError::Write { kind: J::KIND, source })?;
    let log = step_names::<J>()
        .into_iter()
        .map(|StepName { list, name }| StepLog {
            list,
            name: name.to_owned(),
            state: StepState::NotStarted,
            started_ms: None,
            ended_ms: None,
            attempts: 0,
            message: None,
            problem: None,
            undo: None,
        })
        .collect();
    Ok(Record {
        format: FORMAT,
        revision: 1,
        kind: J::KIND.to_owned(),
        job: memory,
        phase: Phase::Reversible { next: 0 },
        cancel_requested: false,
        wake: Wake::Now,
        waiting: None,
        progress: Progress::default(),
        created_ms: now_ms,
        ended_ms: None,
        log,
    })
}

/// Makes exactly one transition: at most one call of one step.
///
/// Calls nothing and returns the record unchanged when the job is over, waits for an answer (and
/// its step does not look meanwhile), or backs off until later than `now_ms` (owner's clock,
/// milliseconds).
///
/// # Errors
/// Any [`EngineError`]: drop `context` and keep the stored record.
pub fn advance<J: Job>(
    record: Record,
    context: &mut J::Context,
    now_ms: u64,
) -> Result<Advance, EngineError> {
    const { assert!(!J::BACKOFF_MS.is_empty(), "a job kind needs a back-off") };
    check::<J>(&record)?;
    let mut after = record.clone();
    if record.cancel_is_due() {
        go_back(&mut after, Reason::Cancelled, now_ms);
    } else if is_due(&record, now_ms) {
        match record.current() {
            Some(place) => call::<J>(&mut after, place, context, now_ms)?,
            None => enter(&mut after, Phase::Succeeded, now_ms),
        }
    }
    let changed = must_be_stored(&record, &after);
    if changed {
        after.revision += 1;
    }
    Ok(Advance { next: after.next(), record: after, changed })
}

/// Refuses a record that was not written for exactly the steps of `J`.
fn check<J: Job>(record: &Record) -> Result<(), EngineError> {
    if record.format != FORMAT {
        let kind = record.kind.clone();
        return Err(EngineError::UnknownFormat { kind, found: record.format });
    }
    if record.kind != J::KIND {
        return Err(EngineError::WrongKind { expected: J::KIND, found: record.kind.clone() });
    }
    let current = step_names::<J>();
    let recorded = record.log.iter().map(|step| (step.list, step.name.as_str()));
    if !recorded.eq(current.iter().map(|step| (step.list, step.name))) {
        let list = |list: List, name: &str| format!("{}/{name}", list.name());
        return Err(EngineError::OtherSteps {
            kind: J::KIND,
            recorded: record.log.iter().map(|s| list(s.list, &s.name)).collect(),
            current: current.iter().map(|s| list(s.list, s.name)).collect(),
        });
    }
    let fits = match record.phase {
        Phase::Reversible { next } => next <= J::REVERSIBLE.len(),
        Phase::Forward { next } => next < J::FORWARD.len(),
        Phase::Undoing { left, .. } => (1..=J::REVERSIBLE.len()).contains(&left),
        Phase::Abandoning { next, .. } => next < J::ABANDON.len(),
        Phase::Succeeded | Phase::RolledBack { .. } | Phase::Abandoned { .. } => true,
    };
    if !fits {
        let phase = Box::new(record.phase.clone());
        return Err(EngineError::NoSuchStep { kind: J::KIND, phase });
    }
    Ok(())
}

fn is_due(record: &Record, now_ms: u64) -> bool {
    let looks = matches!(record.wake, Wake::Poll { .. });
    if record.phase.is_final() || (record.question().is_some() && !looks) {
        return false;
    }
    match record.wake {
        // A poke may come at any time, and the engine cannot tell it from the poll.
        Wake::Now | Wake::Poll { .. } => true,
        Wake::Retry { not_before_ms, delay_ms } => {
            let remaining = not_before_ms.saturating_sub(now_ms);
            remaining == 0 || remaining > delay_ms
        }
    }
}

/// Whether `after` differs in more than the time of the next poll, which is due after a restart.
fn must_be_stored(before: &Record, after: &Record) -> bool {
    match (before.wake, after.wake) {
        (Wake::Poll { .. }, Wake::Poll { .. }) => {
            *before != Record { wake: before.wake, ..after.clone() }
        }
        _ => before != after,
    }
}

/// Calls the step at `place` and notes how it ended.
fn call<J: Job>(
    record: &mut Record,
    place: Place,
    context: &mut J::Context,
    now_ms: u64,
) -> Result<(), EngineError> {
    let mut job: J = serde_json::from_value(record.job.clone())
        .map_err(|source| EngineError::Read { kind: J::KIND, source })?;
    if place.list == List::Forward && matches!(record.phase, Phase::Reversible { .. }) {
        record.phase = Phase::Forward { next: 0 };
    }
    let moment = begin(record, place, now_ms);
    let result = function::<J>(place)(&mut job, context, &moment);
    // Kept after a failure too: the undo may need what the step noted before it failed.
    record.job = serde_json::to_value(&job)
        .map_err(|source| EngineError::Write { kind: J::KIND, source })?;
    match result {
        Ok(Outcome::Done) => move_on(record, place, StepState::Succeeded, None, now_ms),
        Ok(Outcome::Skipped(why)) => {
            move_on(record, place, StepState::Skipped, None, now_ms);
            *notes(record, place).message = Some(why);
        }
        Ok(Outcome::DoneWithWarning(problem)) => {
            move_on(record, place, StepState::SucceededWithWarning, Some(problem), now_ms);
        }
        Ok(Outcome::Pending { waiting_for, poll_after_ms }) => {
            unask(record);
            *notes(record, place).message = Some(waiting_for);
            record.wake = Wake::Poll { at_ms: now_ms.saturating_add(poll_after_ms) };
        }
        Ok(Outcome::WaitForOperator { question }) => {
            wait(record, place, question, now_ms);
        }
        Ok(Outcome::AskAndLook { question, poll_after_ms }) => {
            wait(record, place, question, now_ms);
            record.wake = Wake::Poll { at_ms: now_ms.saturating_add(poll_after_ms) };
        }
        Err(StepError::Transient(problem)) => {
            unask(record);
            count_failure(record, place, &problem);
            let failures = record.progress.transient_failures.saturating_add(1);
            record.progress.transient_failures = failures;
            if J::TRANSIENT_RETRIES_MAX.is_some_and(|max| failures > max) {
                fail(record, place, problem, now_ms);
            } else {
                let delay_ms = backoff_ms::<J>(failures);
                let not_before_ms = now_ms.saturating_add(delay_ms);
                record.wake = Wake::Retry { not_before_ms, delay_ms };
            }
        }
        Err(StepError::Permanent(problem)) => {
            count_failure(record, place, &problem);
            fail(record, place, problem, now_ms);
        }
    }
    Ok(())
}

fn function<J: Job>(place: Place) -> Run<J> {
    match (place.list, place.action) {
        (List::Reversible, Action::Run) => J::REVERSIBLE[place.index].run,
        (List::Reversible, Action::Undo) => J::REVERSIBLE[place.index].undo,
        (List::Forward, Action::Run) => J::FORWARD[place.index].run,
        (List::Abandon, Action::Run) => J::ABANDON[place.index].run,
        (List::Forward | List::Abandon, Action::Undo) => unreachable!("only REVERSIBLE is undone"),
    }
}

fn backoff_ms<J: Job>(failures: u32) -> u64 {
    let rung = usize::try_from(failures).unwrap_or(usize::MAX).min(J::BACKOFF_MS.len());
    J::BACKOFF_MS[rung - 1]
}

/// Notes that the step at `place` is called and says when and why.
fn begin(record: &mut Record, place: Place, now_ms: u64) -> Moment {
    let position = record.position(place);
    let progress = &mut record.progress;
    let attempt = progress.failures.saturating_add(1);
    let step_started_ms = *progress.step_started_ms.get_or_insert(now_ms);
    let attempt_started_ms = *progress.attempt_started_ms.get_or_insert(now_ms);
    record.wake = Wake::Now;
    let log = &mut record.log[position];
    log.state = StepState::InProgress;
    match place.action {
        Action::Run => {
            log.started_ms.get_or_insert(now_ms);
            log.ended_ms = None;
            log.attempts = attempt;
        }
        Action::Undo => {
            let undo = log.undo.get_or_insert_default();
            undo.started_ms.get_or_insert(now_ms);
            undo.attempts = attempt;
        }
    }
    let reply = match &record.waiting {
        Some(Waiting { answer: Some(Answer::Reply(text)), .. }) => Some(text.clone()),
        _ => None,
    };
    let answered = record.waiting.as_ref().is_some_and(|waiting| waiting.answer.is_some());
    let cancel_requested = record.cancel_requested;
    Moment {
        now_ms,
        step_started_ms,
        attempt_started_ms,
        attempt,
        cancel_requested,
        answered,
        reply,
    }
}

/// Is where the notes about a run or an undo go.
struct Notes<'a> {
    message: &'a mut Option<String>,
    problem: &'a mut Option<Problem>,
    ended_ms: &'a mut Option<u64>,
}

fn notes(record: &mut Record, place: Place) -> Notes<'_> {
    let position = record.position(place);
    let StepLog { message, problem, ended_ms, undo, .. } = &mut record.log[position];
    match place.action {
        Action::Run => Notes { message, problem, ended_ms },
        Action::Undo => {
            let undo = undo.get_or_insert_default();
            Notes {
                message: &mut undo.message,
                problem: &mut undo.problem,
                ended_ms: &mut undo.ended_ms,
            }
        }
    }
}

/// Ends the step at `place` and makes its successor current, or ends the job.
fn move_on(
    record: &mut Record,
    place: Place,
    state: StepState,
    warning: Option<Problem>,
    now_ms: u64,
) {
    let position = record.position(place);
    let notes = notes(record, place);
    (*notes.message, *notes.problem, *notes.ended_ms) = (None, warning, Some(now_ms));
    let log = &mut record.log[position];
    log.state = match place.action {
        Action::Run => state,
        Action::Undo if log.started_ms.is_some() => StepState::Undone,
        Action::Undo => StepState::NotStarted,
    };
    let done = place.index + 1;
    let phase = match (place.action, &record.phase) {
        (Action::Undo, Phase::Undoing { reason, .. }) => undoing(place.index, reason.clone()),
        (Action::Run, Phase::Abandoning { reason, .. }) if done < record.len(List::Abandon) => {
            Phase::Abandoning { next: done, reason: reason.clone() }
        }
        (Action::Run, Phase::Abandoning { reason, .. }) => {
            Phase::Abandoned { reason: reason.clone() }
        }
        (Action::Run, Phase::Reversible { .. })
            if done < record.len(List::Reversible) || record.len(List::Forward) > 0 =>
        {
            Phase::Reversible { next: done }
        }
        (Action::Run, Phase::Forward { .. }) if done < record.len(List::Forward) => {
            Phase::Forward { next: done }
        }
        (Action::Run, Phase::Reversible { .. } | Phase::Forward { .. }) => Phase::Succeeded,
        (action, phase) => unreachable!("no {action:?} is called in {phase:?}"),
    };
    enter(record, phase, now_ms);
}

/// Is the phase with `left` steps to undo.
fn undoing(left: usize, reason: Reason) -> Phase {
    if left == 0 { Phase::RolledBack { reason } } else { Phase::Undoing { left, reason } }
}

/// Turns back: undoes from the current step on, or abandons after the point of no return.
fn go_back(record: &mut Record, reason: Reason, now_ms: u64) {
    let phase = match record.phase {
        // The current step may have run in part, so it is undone as well.
        Phase::Reversible { next } => undoing((next + 1).min(record.len(List::Reversible)), reason),
        Phase::Forward { .. } => Phase::Abandoning { next: 0, reason },
        ref phase => unreachable!("no way back from {phase:?}"),
    };
    if let Some(place) = record.current() {
        let position = record.position(place);
        let log = &mut record.log[position];
        if matches!(log.state, StepState::InProgress | StepState::Waiting) {
            log.state = StepState::Cancelled;
        }
        if log.started_ms.is_some() {
            log.ended_ms.get_or_insert(now_ms);
        }
    }
    enter(record, phase, now_ms);
}

/// Makes `phase` the job's phase, with nothing left of the step before.
fn enter(record: &mut Record, phase: Phase, now_ms: u64) {
    record.progress = Progress::default();
    record.waiting = None;
    record.wake = Wake::Now;
    if phase.is_final() {
        record.ended_ms = Some(now_ms);
    }
    record.phase = phase;
}

fn count_failure(record: &mut Record, place: Place, problem: &Problem) {
    record.progress.failures = record.progress.failures.saturating_add(1);
    record.progress.attempt_started_ms = None;
    let notes = notes(record, place);
    (*notes.message, *notes.problem) = (None, Some(problem.clone()));
}

/// Handles a failure that no retry by itself can mend.
fn fail(record: &mut Record, place: Place, problem: Problem, now_ms: u64) {
    let position = record.position(place);
    record.log[position].state = StepState::Failed;
    if matches!(record.phase, Phase::Reversible { .. }) {
        go_back(record, Reason::Failed(problem), now_ms);
    } else {
        ask(record, Question::Failed(problem), now_ms);
    }
}

/// Lets the step at `place` ask; what it asked before and nobody answered goes on being asked.
fn wait(record: &mut Record, place: Place, question: String, now_ms: u64) {
    *notes(record, place).message = Some(question.clone());
    let position = record.position(place);
    record.log[position].state = StepState::Waiting;
    let question = Question::Asked(question);
    if record.question() != Some(&question) {
        ask(record, question, now_ms);
    }
}

/// A step that looked by itself asks no more.
fn unask(record: &mut Record) {
    record.waiting.take_if(|waiting| waiting.answer.is_none());
}

/// Stops the job until an operator answers.
fn ask(record: &mut Record, question: Question, now_ms: u64) {
    record.waiting = Some(Waiting { question, since_ms: now_ms, answer: None });
}

impl List {
    /// Names the list in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            List::Reversible => "reversible",
            List::Forward => "forward",
            List::Abandon => "abandon",
        }
    }
}
