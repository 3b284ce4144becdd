//! Takes the config server's turns one transition at a time, so that a test can strike at any
//! step of any job. It decides nothing: [`Control::tick`] does the same without the stops.

use crate::error::Result;
use crate::{Control, store};
use leeward_durable::testing::{StepId, enumerate};
use leeward_durable::{List, Next, Phase, Place, Record};
use leeward_model::JobId;

/// Transitions of one job in one turn, as in the product's own loop.
const TRANSITIONS_MAX: usize = 64;

/// Every function of every step of every kind of job.
pub fn steps() -> Vec<StepId> {
    enumerate(&crate::jobs::registry())
}

/// A job that is about to call a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtStep {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: String,
    /// The step's function.
    pub place: Place,
}

/// What a turn does at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// It calls the step.
    On,
    /// It ends before the call.
    Halt,
}

/// Whether the next transition only takes note of a cancel.
fn turns_back(record: &Record) -> bool {
    let abandon = record.log.iter().any(|step| step.list == List::Abandon);
    record.cancel_requested
        && match record.phase {
            Phase::Reversible { .. } => true,
            Phase::Forward { .. } => abandon,
            _ => false,
        }
}

async fn at_step(control: &Control, job: JobId) -> Result<Option<AtStep>> {
    let mut tx = control.store().read().await?;
    let Some(row) = store::jobs::find(&mut tx, job).await? else { return Ok(None) };
    let record = row.record;
    if record.phase.is_final() || turns_back(&record) {
        return Ok(None);
    }
    Ok(record.current().map(|place| AtStep { job, kind: record.kind, place }))
}

/// Whether the database is at work, in threads that no timer knows of.
pub fn is_at_work(control: &Control) -> bool {
    control.store().is_in_use()
}

/// Waits until something asks for a turn.
pub async fn poked(control: &Control) {
    control.poked().await;
}

/// Is asked before each call of a step.
pub type See<'a> = &'a mut (dyn FnMut(&AtStep) -> Go + Send);

/// Takes a turn; `see`, if anybody wants to see, is asked before each call of a step. Says whether
/// it went to its end.
///
/// # Errors
/// Those of the database.
pub async fn turn(control: &Control, mut see: Option<See<'_>>) -> Result<bool> {
    let mut tx = control.store().read().await?;
    let items = store::items::all_ids(&mut tx).await?;
    let jobs = store::jobs::unfinished(&mut tx).await?;
    drop(tx);
    for item in items {
        control.item_reconcile(item).await?;
    }
    for job in jobs {
        for _ in 0..TRANSITIONS_MAX {
            if let Some(see) = &mut see
                && let Some(at) = at_step(control, job).await?
                && see(&at) == Go::Halt
            {
                return Ok(false);
            }
            if control.job_advance(job).await? != Some(Next::Continue) {
                break;
            }
        }
    }
    Ok(true)
}
