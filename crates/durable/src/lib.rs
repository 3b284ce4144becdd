//! Runs durable jobs: long operations that survive crashes, failures and changes of mind.
//!
//! Is not a scheduler and knows no machine, database, clock or thread. The owner (the config
//! server) loads a [`Record`], lets [`advance`] make exactly one transition, and stores the record
//! that comes back **in one transaction** with the effects that the step collected in its context.
//!
//! # A job
//!
//! A [`Job`] is a value (its memory) and three lists of steps:
//!
//! * `REVERSIBLE` runs first. A cancel or a permanent failure undoes it in reverse order.
//! * `FORWARD` follows the point of no return, which is the first call of its first step. Nothing
//!   of it is undone: steps are retried, or a person is asked.
//! * `ABANDON` is the way out after the point of no return. It is correct after any prefix of
//!   `FORWARD`, the empty one included. An empty list means that there is no way out: a cancel is
//!   remembered, reported as [`CancelEffect::GoesOn`], and the job goes on.
//!
//! ```text
//!            all run                    all run
//! Reversible --------> Forward ----------------> Succeeded
//!     |                   | cancel, or the answer Abandon
//!     | cancel,           +----------> Abandoning -----> Abandoned
//!     | permanent failure                        all run
//!     +-------------------> Undoing ----------> RolledBack
//!                                   all undone
//!
//! Within a phase, by what the step says:
//!   Done, Skipped, DoneWithWarning   the next step (undoing: the one before)
//!   Pending                          the same step when the poll is due or the owner is poked
//!   WaitForOperator                  the same step after an answer
//!   AskAndLook                       the same step after an answer, or when the poll is due
//!   Transient                        the same step after a back-off; too many: as Permanent
//!   Permanent                        Reversible: Undoing. Elsewhere: asks the operator
//! ```
//!
//! # Rules for steps
//!
//! 1. A step is a function of the job, its context and the [`Moment`]. What it wants from the
//!    world it puts into the context; the owner makes it durable together with the record.
//! 2. A step may run any number of times, so it is idempotent. Its undo may run any number of
//!    times as well and accepts that the step never ran, half ran, or failed.
//! 3. What a failing step put into the job and the context is kept: its undo may need it.
//! 4. `Pending` counts no attempt. A step decides on its own deadline from the [`Moment`].
//! 5. The undo of a step that a cancel found current always runs, even if the step never started.
//!
//! # Rules for the owner
//!
//! 1. A job exists once the record of [`create`] is stored. [`Record::encode`] and
//!    [`Record::decode`] are the only stored form.
//! 2. Load, [`advance`] (or [`request_cancel`], or [`answer`]) and store form one transaction; a
//!    store that lost the race is refused by [`Record::revision`]. A lost transaction is harmless:
//!    the step runs again.
//! 3. [`Advance::changed`] false and no effects in the context: nothing needs to be stored.
//! 4. An [`EngineError`] changes nothing: drop the context, tell the operator, keep the record.
//! 5. A cancel is accepted at any time, also while a step is pending, waits or backs off. A second
//!    one changes nothing. Both it and an answer make the job due at once.
//!
//! A record names all steps of its kind as they were when the job was created. If the lists of the
//! running program differ, the record is refused: running an index of another list would run the
//! wrong step. Feature `testing` adds the driver that crashes, cancels and repeats every step.

mod engine;
mod job;
mod operator;
mod record;
mod registry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod tests;

pub use engine::{Advance, EngineError, advance, create};
pub use job::{
    BACKOFF_DEFAULT_MS, Forward, Job, Moment, Outcome, Problem, Reversible, Run, StepError, nothing,
};
pub use operator::{Answer, AnswerError, CancelEffect, answer, request_cancel};
pub use record::{
    Action, DecodeError, FORMAT, List, Next, Phase, Place, Progress, Question, Reason, Record,
    StepLog, StepState, UndoLog, Waiting, Wake,
};
pub use registry::{Registry, StepName};
