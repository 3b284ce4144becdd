//! Carries out what a plan's job asks for, in its name. A request that is lost in a crash is made
//! again, as the job finds no job of that item; one that was refused is told to the job.

use crate::error::Result;
use crate::jobs::{Request, recovery_plan};
use crate::store::{self, Conn, jobs::JobFacts, jobs::JobRow};
use crate::world::Family;
use crate::{Control, ControlError};
use leeward_model::{ItemId, JobId, Problem};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Is what was refused to jobs of plans and not told them yet. A refusal that a crash loses is
/// met again, as the request is.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<JobId, Vec<(ItemId, Problem)>>>);

impl Refusals {
    fn add(&self, job: JobId, item: ItemId, problem: Problem) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(job).or_default().push((item, problem));
    }

    fn take(&self, job: JobId) -> Vec<(ItemId, Problem)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&job).unwrap_or_default()
    }
}

impl Control {
    /// What a job sees of the plan's job that it is part of, or of the jobs that are part of it.
    pub(crate) async fn family_of(&self, conn: &mut Conn, row: &JobRow) -> Result<Family> {
        // A plan's record is long: it is read only where a machine waits for its turn.
        let waits = row.record.current_log().is_some_and(|step| step.name == recovery_plan::TURN);
        let parent = match row.facts.parent.filter(|_| waits) {
            Some(parent) => store::jobs::find(conn, parent).await?,
            None => None,
        };
        if row.record.kind != recovery_plan::KIND {
            return Ok(Family { parent, ..Family::default() });
        }
        Ok(Family {
            parent,
            children: store::jobs::of_parent(conn, row.facts.id).await?,
            refused: self.refusals().take(row.facts.id),
            asks: Vec::new(),
            actions: self.actions_of(row.facts.id).await,
        })
    }

    /// Makes the requests of a plan's job, one after the other.
    pub(crate) async fn ask_all(&self, by: &JobFacts, asks: Vec<(ItemId, Request)>) {
        for (item, request) in asks {
            if let Err(error) = self.ask_one(by, item, request).await {
                tracing::warn!(job = %by.id, %item, %error, "a request of a recovery plan's job");
                self.refusals().add(by.id, item, *error.problem);
                self.poke();
            }
        }
    }

    async fn ask_one(&self, by: &JobFacts, item: ItemId, request: Request) -> Result<()> {
        let job = self.in_name_of(by.id).request_repeat(by.vault, item, request).await?;
        let mut tx = self.store().read().await?;
        let row = store::jobs::find(&mut tx, job).await?;
        if row.is_some_and(|row| row.facts.parent == Some(by.id)) {
            return Ok(());
        }
        Err(ControlError::not_now(format!("job {job}, which is not the plan's, does it already")))
    }
}
