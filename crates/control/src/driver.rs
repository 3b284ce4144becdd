//! Moves jobs and reconcilers on: one turn at a time, and the loop that takes turns.

use crate::error::Result;
use crate::{Control, store};
use leeward_durable::Next;
use leeward_model::JobId;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Transitions of one job in one turn; a job with more goes on in the next.
const TRANSITIONS_MAX: usize = 64;
/// The loop takes a turn at least this often: a host's silence pokes nobody.
const TURN_MAX: Duration = Duration::from_millis(500);

/// Is what a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Transitions of jobs, and items that reconcilers changed.
    pub changes: usize,
}

impl Control {
    /// Lets every job that is due, and every reconciler, do what it can do now.
    ///
    /// Deterministic: the order is that of creation, the time comes from the clock port.
    ///
    /// # Errors
    /// Those of the database. A job or item that fails by itself is logged and left as it was.
    pub async fn tick(&self) -> Result<Turn> {
        let mut turn = Turn::default();
        if self.superseded().is_some() {
            return Ok(turn);
        }
        let mut tx = self.store().read().await?;
        let items = store::items::all_ids(&mut tx).await?;
        let jobs = store::jobs::unfinished(&mut tx).await?;
        drop(tx);
        for item in items {
            match self.item_reconcile(item).await {
                Ok(changed) => turn.changes += usize::from(changed),
                Err(error) => tracing::error!(%item, %error, "could not reconcile the item"),
            }
        }
        for job in jobs {
            match self.job_turn(job).await {
                Ok(changes) => turn.changes += changes,
                Err(error) => tracing::error!(%job, %error, "could not advance the job"),
            }
        }
        Ok(turn)
    }

    async fn job_turn(&self, job: JobId) -> Result<usize> {
        for changes in 0..TRANSITIONS_MAX {
            match self.job_advance(job).await? {
                Some(Next::Continue) => {}
                None
                | Some(
                    Next::PollAt(_) | Next::RetryAt(_) | Next::WaitingForOperator | Next::Finished,
                ) => return Ok(changes),
            }
        }
        Ok(TRANSITIONS_MAX)
    }

    /// Takes turns until `stop`: at every poke, and at least every half second.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.tick().await {
                tracing::error!(%error, "could not take a turn");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.poked() => {}
                () = tokio::time::sleep(TURN_MAX) => {}
            }
        }
    }
}
