//! How jobs come into being: requests, new rows, and operations that are done at once.

use super::{InstantJob, Scenario, TargetKind};
use crate::error::Result;
use crate::items::{
    AwayHosts, DisableReason, EnableSpec, KeepPoints, PlannedSpec, ReprotectSpec, Shutdown,
};
use crate::plans::PlanAsk;
use crate::store::jobs::{JobFacts, JobRow, Lane};
use crate::world::{World, permanent};
use crate::{Control, ControlError};
use leeward_durable::{Forward, Job, Reversible, StepError, create};
use leeward_model::{Code, ItemId, JobId, PointChoice, PointId, VaultId};
use serde::{Deserialize, Serialize};

/// What was asked for, so that it can be asked for again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// [`Control::item_enable`]; the item of a failed one is gone.
    Enable { fabric: String, name: String, spec: EnableSpec },
    /// [`Control::item_test_failover`].
    TestFailover {
        choice: PointChoice,
        #[serde(default)]
        network: Option<String>,
    },
    /// [`Control::item_test_cleanup`].
    Cleanup { comments: String },
    /// [`Control::item_failover`].
    Failover { choice: PointChoice, shutdown: Shutdown },
    /// [`Control::item_failover_cancel`].
    CancelFailover,
    /// [`Control::item_change_point`].
    ChangePoint { point: PointId },
    /// [`Control::item_commit`].
    Commit,
    /// [`Control::item_disable`].
    Disable {
        keep: KeepPoints,
        #[serde(default)]
        reason: DisableReason,
        #[serde(default)]
        away: AwayHosts,
    },
    /// [`Control::item_planned_failover`].
    PlannedFailover { spec: PlannedSpec },
    /// [`Control::item_reprotect`].
    Reprotect { spec: ReprotectSpec },
    /// [`Control::item_resync`].
    Resync,
    /// [`Control::item_resync_full`].
    ResyncFull,
    /// [`Control::plan_start`]; of a plan, not of an item.
    Plan { ask: PlanAsk },
}

/// Is a job to be started.
pub(crate) struct NewJob {
    pub(crate) id: JobId,
    pub(crate) lane: Lane,
    pub(crate) scenario: Scenario,
    pub(crate) comments: String,
    pub(crate) request: Option<Request>,
}

impl NewJob {
    /// A job that nobody asked for.
    pub(crate) fn of_item(id: JobId, lane: Lane, scenario: Scenario) -> NewJob {
        NewJob { id, lane, scenario, comments: String::new(), request: None }
    }

    /// A job that `request` asked for.
    pub(crate) fn asked(id: JobId, lane: Lane, scenario: Scenario, request: Request) -> NewJob {
        NewJob { request: Some(request), ..NewJob::of_item(id, lane, scenario) }
    }
}

impl World {
    /// A new id.
    pub(crate) fn new_id<T: From<uuid::Uuid>>(&self) -> T {
        crate::clock::new_id(&*self.draw)
    }

    /// Starts a job on the item, with the transaction at hand.
    pub(crate) fn start_job<J: Job<Context = World>>(
        &mut self,
        new: NewJob,
        memory: &J,
    ) -> std::result::Result<(), StepError> {
        let item = self.item()?;
        let record = create(memory, self.now.wall_ms())
            .map_err(|error| permanent(Code::INTERNAL, error.to_string()))?;
        let facts = JobFacts {
            id: new.id,
            vault: item.vault,
            item: Some(item.id),
            lane: new.lane,
            scenario: new.scenario,
            target_kind: TargetKind::ProtectionEntity,
            target_id: item.id.to_string(),
            target_name: item.name.clone(),
            comments: new.comments,
            parent: new.request.as_ref().and(self.asked_by),
            request: new.request,
        };
        self.jobs.push(JobRow { facts, record });
        Ok(())
    }
}

/// An operation that was done before the job was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Instant {}

impl Job for Instant {
    type Context = World;
    const KIND: &'static str = "instant";
    const REVERSIBLE: &'static [Reversible<Self>] = &[];
    const FORWARD: &'static [Forward<Self>] = &[];
    const ABANDON: &'static [Forward<Self>] = &[];
}

/// The row of an operation that is done.
pub(crate) fn instant(
    id: JobId,
    vault: VaultId,
    instant: InstantJob,
    now_ms: u64,
) -> Result<JobRow> {
    let mut record = create(&Instant {}, now_ms)
        .map_err(|error| ControlError::internal("could not make a job", &error))?;
    record.phase = leeward_durable::Phase::Succeeded;
    record.ended_ms = Some(now_ms);
    let facts = JobFacts {
        id,
        vault,
        item: None,
        lane: Lane::Watch,
        scenario: instant.scenario,
        target_kind: instant.target_kind,
        target_id: instant.target_id,
        target_name: instant.target_name,
        comments: String::new(),
        request: None,
        parent: None,
    };
    Ok(JobRow { facts, record })
}

impl Control {
    /// Asks again for what a job was asked for.
    pub(crate) async fn request_repeat(
        &self,
        vault: VaultId,
        item: ItemId,
        request: Request,
    ) -> Result<JobId> {
        match request {
            Request::Enable { fabric, name, spec } => {
                Ok(self.item_enable(vault, &fabric, &name, spec).await?.job)
            }
            Request::TestFailover { choice, network } => {
                self.item_test_failover_in(item, choice, network).await
            }
            Request::Cleanup { comments } => self.item_test_cleanup(item, &comments).await,
            Request::Failover { choice, shutdown } => {
                self.item_failover(item, choice, shutdown).await
            }
            Request::CancelFailover => self.item_failover_cancel(item).await,
            Request::ChangePoint { point } => self.item_change_point(item, point).await,
            Request::Commit => self.item_commit(item).await,
            Request::Disable { keep, reason, away } => {
                self.item_end(item, keep, reason, away).await
            }
            Request::PlannedFailover { spec } => self.item_planned_failover(item, spec).await,
            Request::Reprotect { spec } => self.item_reprotect(item, spec).await,
            Request::Resync => self.item_resync(item).await,
            Request::ResyncFull => self.item_resync_full(item).await,
            Request::Plan { .. } => {
                Err(ControlError::bad_request("a recovery plan is not an item"))
            }
        }
    }
}
