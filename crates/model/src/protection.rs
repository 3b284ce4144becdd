//! The states of a protected item and every legal move between them. Pure and total: one match.
//!
//! Direction is data. Failover, planned failover and failback are the same events; only the steps
//! of their jobs differ. The whole table is printed by [`crate::protection_table`].

use crate::{Epoch, InstanceId, JobId, PointId};
use serde::{Deserialize, Serialize};

/// One of the two sites of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Site {
    /// Where the machine lived when it was protected.
    Primary,
    /// Where it is replicated to.
    Recovery,
}

/// Which way data flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Primary to recovery.
    ToRecovery,
    /// Recovery to primary.
    ToPrimary,
}

impl Direction {
    /// The site that is written by the machine.
    pub fn source(self) -> Site {
        match self {
            Direction::ToRecovery => Site::Primary,
            Direction::ToPrimary => Site::Recovery,
        }
    }
    /// The site that receives.
    pub fn target(self) -> Site {
        self.reversed().source()
    }
    /// The other direction.
    pub fn reversed(self) -> Direction {
        match self {
            Direction::ToRecovery => Direction::ToPrimary,
            Direction::ToPrimary => Direction::ToRecovery,
        }
    }
    /// The direction whose target is `site`.
    pub fn towards(site: Site) -> Direction {
        match site {
            Site::Recovery => Direction::ToRecovery,
            Site::Primary => Direction::ToPrimary,
        }
    }
}

/// Which point a failover was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "point", rename_all = "kebab-case")]
pub enum PointChoice {
    /// Everything received is processed, then the newest complete point.
    Latest,
    /// The newest point that is complete now.
    LatestProcessed,
    /// This point.
    Custom(PointId),
}

/// Whether the other machine is known to be off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum SourceState {
    /// Nothing is known: both sides may be live.
    #[default]
    Unknown,
    /// Its host says that it runs.
    Running,
    /// Its host says that it is off, and holds no permit to start it.
    ConfirmedOff {
        /// Who said so.
        by: String,
        /// When, in milliseconds since 1970.
        at: i64,
    },
}

/// Where a failover came from, so that undoing it can return there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum FailoverOrigin {
    /// [`Protection::Protected`].
    Protected,
    /// [`Protection::Resynchronizing`].
    Resynchronizing {
        /// Its job.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// [`Protection::Committed`].
    Committed {
        /// Its machine.
        machine: InstanceId,
    },
    /// [`Protection::Reprotecting`]: everything is copied while the machine is off.
    Reprotecting {
        /// Its job.
        job: JobId,
    },
}

/// Whether a failover's job has fenced the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Fence {
    /// Not yet.
    Open,
    /// Yes; the direction before it is kept for the undo.
    Fenced {
        /// The item's direction before the fence.
        before: Direction,
    },
    /// It was fenced once and is not any more.
    Lifted,
}

/// Where an item is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Protection {
    /// The relation is being made.
    Enabling {
        /// Its job.
        job: JobId,
    },
    /// The first copy runs.
    InitialReplication {
        /// Its job.
        job: JobId,
    },
    /// Deltas flow and points are made.
    Protected,
    /// Source and target are compared; points before it stay usable.
    Resynchronizing {
        /// What asked for it.
        job: JobId,
        /// Why, in words.
        reason: String,
    },
    /// A failover runs.
    FailingOver {
        /// Its job.
        job: JobId,
        /// What was asked for.
        choice: PointChoice,
        /// The point, once it is known.
        point: Option<PointId>,
        /// The site that will run the machine.
        target: Site,
        /// Where to return when it is undone.
        from: FailoverOrigin,
        /// Whether the source is fenced.
        fence: Fence,
    },
    /// The machine runs at the target; the point may still be changed.
    FailedOver {
        /// The point it started from.
        point: PointId,
        /// The machine.
        machine: InstanceId,
    },
    /// The machine is being moved to another point.
    ChangingPoint {
        /// Its job.
        job: JobId,
        /// The point it ran from.
        from: PointId,
        /// The machine that ran.
        machine: InstanceId,
        /// The point asked for.
        to: PointId,
    },
    /// The failover is final.
    Committed {
        /// The machine.
        machine: InstanceId,
    },
    /// The other direction is being built up.
    Reprotecting {
        /// Its job.
        job: JobId,
    },
    /// Protection is being ended.
    Disabling {
        /// Its job.
        job: JobId,
    },
    /// There is no item any more.
    Removed,
}

/// Whether a failover still has to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Commit {
    /// Nothing to commit.
    Done,
    /// The failover to this point is not committed.
    Pending {
        /// The point.
        point: PointId,
    },
}

/// The test failover beside protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum TestState {
    /// None.
    None,
    /// Its job runs.
    Running {
        /// The job.
        job: JobId,
    },
    /// The test machine runs.
    Active {
        /// The test machine.
        machine: InstanceId,
    },
    /// The test machine is being removed.
    CleaningUp {
        /// The job.
        job: JobId,
        /// The test machine.
        machine: InstanceId,
    },
}

/// The life of a protected item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectedItem {
    /// Its state.
    pub protection: Protection,
    /// Which way data flow.
    pub direction: Direction,
    /// Who may write.
    pub epoch: Epoch,
    /// Whether a failover has to be committed.
    pub commit: Commit,
    /// The test failover beside it.
    pub test: TestState,
    /// Where the machine is confirmed to run.
    pub active: Site,
    /// Whether the machine that was left is off.
    pub source: SourceState,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each variant's fields are those of the state it leads to")]
pub enum Event {
    Prepared { job: JobId },
    PrepareFailed,
    Seeded,
    ResyncNeeded { job: JobId, reason: String },
    FailoverStarted { job: JobId, choice: PointChoice, target: Site },
    FullFailoverStarted { job: JobId },
    PointChosen { point: PointId },
    SourceFenced,
    SourceUnfenced { job: JobId },
    FailoverUndone { job: JobId },
    FailoverFinished { machine: InstanceId },
    FailoverAbandoned { job: JobId },
    PointChanged { job: JobId, to: PointId },
    ChangeFinished { machine: InstanceId },
    ChangeAbandoned,
    Committed,
    ReverseStarted { job: JobId },
    ReprotectStarted { job: JobId },
    ReprotectAbandoned { machine: InstanceId },
    DisableStarted { job: JobId },
    DisableFinished,
    TestStarted { job: JobId },
    TestReady { machine: InstanceId },
    TestUndone,
    TestCleanupStarted { job: JobId },
    TestCleaned,
    SourceSeen { source: SourceState },
}

/// An event that is not possible in the item's state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} is not possible while the item is {state}")]
pub struct Illegal {
    /// Name of the state.
    pub state: String,
    /// Name of the event.
    pub event: String,
}

impl ProtectedItem {
    /// An item whose job has just been made: epoch 1, machine at the primary site.
    pub fn new(job: JobId) -> Self {
        ProtectedItem {
            protection: Protection::Enabling { job },
            direction: Direction::ToRecovery,
            epoch: Epoch(1),
            commit: Commit::Done,
            test: TestState::None,
            active: Site::Primary,
            source: SourceState::Running,
        }
    }

    /// Returns the item after `event`.
    ///
    /// # Errors
    /// [`Illegal`] when the event is not possible now; the item is unchanged then.
    pub fn apply(&self, event: &Event) -> Result<ProtectedItem, Illegal> {
        let mut next = self.clone();
        let moved = match event {
            Event::TestStarted { .. }
            | Event::TestReady { .. }
            | Event::TestUndone
            | Event::TestCleanupStarted { .. }
            | Event::TestCleaned => next.apply_test(event),
            Event::SourceSeen { source } => {
                next.source = source.clone();
                next.protection != Protection::Removed
            }
            Event::FailoverStarted { .. }
            | Event::FullFailoverStarted { .. }
            | Event::PointChosen { .. }
            | Event::SourceFenced
            | Event::SourceUnfenced { .. }
            | Event::FailoverUndone { .. }
            | Event::FailoverFinished { .. }
            | Event::FailoverAbandoned { .. } => next.apply_failover(event),
            Event::PointChanged { .. }
            | Event::ChangeFinished { .. }
            | Event::ChangeAbandoned
            | Event::Committed => next.apply_after_failover(event),
            Event::ReverseStarted { .. }
            | Event::ReprotectStarted { .. }
            | Event::ReprotectAbandoned { .. } => next.apply_reprotect(event),
            Event::Prepared { .. }
            | Event::PrepareFailed
            | Event::Seeded
            | Event::ResyncNeeded { .. }
            | Event::DisableStarted { .. }
            | Event::DisableFinished => next.apply_replication(event),
        };
        if moved {
            Ok(next)
        } else {
            Err(Illegal { state: self.protection.name(), event: event.name() })
        }
    }

    fn apply_replication(&mut self, event: &Event) -> bool {
        use Protection as P;
        self.protection = match (&self.protection, event) {
            (P::Enabling { .. }, Event::Prepared { job }) => P::InitialReplication { job: *job },
            (P::Enabling { .. }, Event::PrepareFailed) => P::Removed,
            (
                P::InitialReplication { .. } | P::Resynchronizing { .. } | P::Reprotecting { .. },
                Event::Seeded,
            ) => P::Protected,
            (P::Protected, Event::ResyncNeeded { job, reason }) => {
                P::Resynchronizing { job: *job, reason: reason.clone() }
            }
            (P::Reprotecting { job }, Event::ResyncNeeded { .. }) => P::Reprotecting { job: *job },
            (
                P::FailingOver { .. } | P::ChangingPoint { .. } | P::Removed | P::Disabling { .. },
                Event::DisableStarted { .. },
            ) => return false,
            (_, Event::DisableStarted { job }) => P::Disabling { job: *job },
            (P::Disabling { .. }, Event::DisableFinished) => P::Removed,
            _ => return false,
        };
        true
    }

    fn apply_failover(&mut self, event: &Event) -> bool {
        if let Event::FailoverStarted { job, choice, target } = event {
            return self.start_failover(*job, *choice, *target);
        }
        if let Event::FullFailoverStarted { job } = event {
            return self.start_full_failover(*job);
        }
        if let (Protection::FailedOver { .. }, Event::FailoverAbandoned { job }) =
            (&self.protection, event)
        {
            self.abandon(*job);
            return true;
        }
        let Protection::FailingOver { job, point, target, from, fence, .. } = &mut self.protection
        else {
            return false;
        };
        let (owner, target) = (*job, *target);
        match (event, *fence, *point) {
            (Event::PointChosen { point: chosen }, _, None) => *point = Some(*chosen),
            (Event::PointChosen { point: chosen }, _, Some(known)) => return *chosen == known,
            (Event::SourceFenced, Fence::Open, _) => {
                *fence = Fence::Fenced { before: self.direction };
                self.direction = Direction::towards(target);
                self.epoch = self.epoch.next();
            }
            (Event::SourceUnfenced { job }, Fence::Fenced { before }, _) if *job == owner => {
                *fence = Fence::Lifted;
                self.direction = before;
                self.epoch = self.epoch.next();
            }
            (Event::FailoverUndone { job }, Fence::Open | Fence::Lifted, _) if *job == owner => {
                self.protection = from.clone().into_state();
            }
            (Event::FailoverFinished { machine }, Fence::Fenced { .. }, Some(point)) => {
                self.protection = Protection::FailedOver { point, machine: *machine };
                self.commit = Commit::Pending { point };
                self.active = target;
            }
            (Event::FailoverAbandoned { job }, Fence::Fenced { before }, _) => match from {
                // Nothing replicated the machine that was left, so there is nothing to compare.
                FailoverOrigin::Committed { machine } => {
                    self.protection = Protection::Committed { machine: *machine };
                    self.direction = before;
                    self.epoch = self.epoch.next();
                }
                FailoverOrigin::Protected
                | FailoverOrigin::Resynchronizing { .. }
                | FailoverOrigin::Reprotecting { .. } => self.abandon(*job),
            },
            _ => return false,
        }
        true
    }

    fn start_failover(&mut self, job: JobId, choice: PointChoice, target: Site) -> bool {
        let from = match &self.protection {
            Protection::Protected => FailoverOrigin::Protected,
            Protection::Resynchronizing { job, reason } => {
                FailoverOrigin::Resynchronizing { job: *job, reason: reason.clone() }
            }
            Protection::Committed { machine } => FailoverOrigin::Committed { machine: *machine },
            _ => return false,
        };
        let retained = matches!(from, FailoverOrigin::Committed { .. });
        // After a commit only a retained point will do: there is no newest one of this direction.
        if retained && !matches!(choice, PointChoice::Custom(_)) {
            return false;
        }
        let point = match choice {
            PointChoice::Custom(point) => Some(point),
            PointChoice::Latest | PointChoice::LatestProcessed => None,
        };
        let fence = Fence::Open;
        self.protection = Protection::FailingOver { job, choice, point, target, from, fence };
        true
    }

    /// A planned failover that waits for no point: all data are copied while the machine is off.
    /// Its final point is the first one, so no other failover may begin here.
    fn start_full_failover(&mut self, job: JobId) -> bool {
        let Protection::Reprotecting { job: reprotect } = self.protection else { return false };
        let from = FailoverOrigin::Reprotecting { job: reprotect };
        let (choice, target) = (PointChoice::Latest, self.direction.target());
        let (point, fence) = (None, Fence::Open);
        self.protection = Protection::FailingOver { job, choice, point, target, from, fence };
        true
    }

    fn abandon(&mut self, job: JobId) {
        let reason = "the failover was abandoned".to_owned();
        self.protection = Protection::Resynchronizing { job, reason };
        self.commit = Commit::Done;
        self.epoch = self.epoch.next();
        self.active = self.direction.source();
    }

    fn apply_after_failover(&mut self, event: &Event) -> bool {
        use Protection as P;
        match (&self.protection, event) {
            (P::FailedOver { point, machine }, Event::PointChanged { job, to }) => {
                let (from, machine) = (*point, *machine);
                self.protection = P::ChangingPoint { job: *job, from, machine, to: *to };
            }
            (P::ChangingPoint { to, .. }, Event::ChangeFinished { machine }) => {
                self.commit = Commit::Pending { point: *to };
                self.protection = P::FailedOver { point: *to, machine: *machine };
            }
            (P::ChangingPoint { from, machine, .. }, Event::ChangeAbandoned) => {
                self.protection = P::FailedOver { point: *from, machine: *machine };
            }
            (P::FailedOver { machine, .. }, Event::Committed) => {
                self.commit = Commit::Done;
                self.protection = P::Committed { machine: *machine };
            }
            (P::Reprotecting { .. } | P::Protected | P::Committed { .. }, Event::Committed)
                if self.commit != Commit::Done =>
            {
                self.commit = Commit::Done;
            }
            _ => return false,
        }
        true
    }

    fn apply_reprotect(&mut self, event: &Event) -> bool {
        use Protection as P;
        match (&self.protection, event) {
            (P::Committed { .. }, Event::ReprotectStarted { job })
            | (P::FailedOver { .. }, Event::ReverseStarted { job }) => {
                self.protection = P::Reprotecting { job: *job };
            }
            (P::Reprotecting { .. }, Event::ReprotectAbandoned { machine }) => {
                self.protection = P::Committed { machine: *machine };
            }
            _ => return false,
        }
        self.direction = self.direction.reversed();
        self.epoch = self.epoch.next();
        true
    }

    fn apply_test(&mut self, event: &Event) -> bool {
        self.test = match (self.test, event) {
            (TestState::None, Event::TestStarted { job })
                if self.protection == Protection::Protected =>
            {
                TestState::Running { job: *job }
            }
            (TestState::Running { .. }, Event::TestReady { machine }) => {
                TestState::Active { machine: *machine }
            }
            (TestState::Running { .. }, Event::TestUndone) => TestState::None,
            (TestState::Active { machine }, Event::TestCleanupStarted { job }) => {
                TestState::CleaningUp { job: *job, machine }
            }
            (TestState::CleaningUp { .. }, Event::TestCleaned) => TestState::None,
            _ => return false,
        };
        true
    }
}

impl FailoverOrigin {
    fn into_state(self) -> Protection {
        match self {
            FailoverOrigin::Protected => Protection::Protected,
            FailoverOrigin::Resynchronizing { job, reason } => {
                Protection::Resynchronizing { job, reason }
            }
            FailoverOrigin::Committed { machine } => Protection::Committed { machine },
            FailoverOrigin::Reprotecting { job } => Protection::Reprotecting { job },
        }
    }
}

fn tag(value: serde_json::Value, key: &str) -> String {
    value[key].as_str().expect("internally tagged enums have their tag").to_owned()
}

impl Protection {
    /// The state's name, `failing-over`.
    pub fn name(&self) -> String {
        tag(serde_json::to_value(self).expect("a plain enum serializes"), "state")
    }
}

impl Event {
    /// The event's name, `failover-started`.
    pub fn name(&self) -> String {
        tag(serde_json::to_value(self).expect("a plain enum serializes"), "event")
    }
}

#[cfg(test)]
mod tests;
