//! Takes what people decide about a job: cancel and answers. Only notes it: advance acts on it.

use serde::{Deserialize, Serialize};

use crate::record::{List, Phase, Record, Wake};

/// Is what an operator answers to a question or a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Run the step again. Also ends a back-off early.
    Retry,
    /// Run the step again, with this text in its moment.
    Reply(String),
    /// Give the job up: the same as a cancel.
    Abandon,
}

/// Is what a cancel leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelEffect {
    /// Everything will be undone.
    Undoes,
    /// The kind's ABANDON list will run.
    Abandons,
    /// Too late, and the kind has no way out: remembered, the job goes on.
    GoesOn,
    /// The job is going back already; nothing changed.
    GoingBack,
    /// The job is over; nothing changed.
    Finished,
}

/// Says why an answer was refused; the record is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Nobody asked, or somebody answered already.
    #[error("job {kind} waits for no answer, it is {phase}")]
    NotWaiting {
        /// The job's kind.
        kind: String,
        /// Its phase.
        phase: &'static str,
    },
    /// There is no way back from here.
    #[error("job {kind} cannot be abandoned while it is {phase}")]
    CannotAbandon {
        /// The job's kind.
        kind: String,
        /// Its phase.
        phase: &'static str,
    },
}

/// Notes a cancel; the next advance acts on it, whatever the job waits for.
///
/// A second one changes nothing and tells the same. Store the record if its revision grew.
pub fn request_cancel(record: &mut Record) -> CancelEffect {
    let effect = cancel_effect(record);
    match effect {
        CancelEffect::GoingBack | CancelEffect::Finished => {}
        CancelEffect::Undoes | CancelEffect::Abandons | CancelEffect::GoesOn => {
            if !record.cancel_requested {
                record.cancel_requested = true;
                record.revision += 1;
            }
        }
    }
    effect
}

/// Notes an operator's answer to the current question, or ends a back-off early with Retry.
///
/// # Errors
/// [`AnswerError::NotWaiting`] when no question is open; [`AnswerError::CannotAbandon`] when the
/// job goes back already or its kind has no ABANDON list. The record is then as it was.
pub fn answer(record: &mut Record, answer: Answer) -> Result<(), AnswerError> {
    let kind = record.kind.clone();
    let phase = record.phase.name();
    let backs_off = matches!(record.wake, Wake::Retry { .. });
    if record.phase.is_final() || record.cancel_is_due() {
        return Err(AnswerError::NotWaiting { kind, phase });
    }
    if record.question().is_none() {
        if !(backs_off && answer == Answer::Retry) {
            return Err(AnswerError::NotWaiting { kind, phase });
        }
        record.wake = Wake::Now;
        record.revision += 1;
        return Ok(());
    }
    if answer == Answer::Abandon {
        match cancel_effect(record) {
            CancelEffect::Undoes | CancelEffect::Abandons => record.cancel_requested = true,
            CancelEffect::GoesOn | CancelEffect::GoingBack | CancelEffect::Finished => {
                return Err(AnswerError::CannotAbandon { kind, phase });
            }
        }
    }
    let waiting = record.waiting.as_mut().expect("an open question is part of waiting");
    waiting.answer = Some(answer);
    record.wake = Wake::Now;
    // The operator's time is not the step's: its deadline and its retries start anew.
    record.progress.step_started_ms = None;
    record.progress.attempt_started_ms = None;
    record.progress.transient_failures = 0;
    record.revision += 1;
    Ok(())
}

fn cancel_effect(record: &Record) -> CancelEffect {
    match record.phase {
        Phase::Reversible { .. } => CancelEffect::Undoes,
        Phase::Forward { .. } if record.len(List::Abandon) > 0 => CancelEffect::Abandons,
        Phase::Forward { .. } => CancelEffect::GoesOn,
        Phase::Undoing { .. } | Phase::Abandoning { .. } => CancelEffect::GoingBack,
        Phase::Succeeded | Phase::RolledBack { .. } | Phase::Abandoned { .. } => {
            CancelEffect::Finished
        }
    }
}
