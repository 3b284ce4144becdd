//! A machine that is not replicated: fenced, living here alone, or no longer protected.

use super::{LOOK, SourceError, SourceWork, SourceWorker, Whose, state::SourceState};
use crate::roles::host::{clock, permits};
use leeward_fabric::{FabricError, FencedChanges};
use leeward_model::{Code, JobId, MachineState, PointId, StartPermit};
use leeward_wire::message::{CapturePhase, DivergentNote};
use std::time::Duration;

/// What becomes of the word that a machine is not to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// It may be started.
    Lifted,
    /// It was failed over, and lives elsewhere.
    Kept,
}

impl SourceWorker {
    /// Makes sure that a machine that was failed over does not write, and notes what it wrote.
    pub(super) async fn fence(&mut self, work: &SourceWork) -> Result<Whose, SourceError> {
        (self.open, self.claimed) = (None, false);
        let name = &work.duty.machine;
        permits::permit_forget(&self.host.folder, name);
        let whose = self.whose(work).await?;
        if let Whose::Other(problem) = &whose {
            let note = self.state.divergent.clone();
            self.show_foreign(problem);
            self.show(|seen| {
                seen.phase = CapturePhase::Fenced;
                (seen.divergent, seen.shutdown) = (note, None);
            });
            return Ok(whose);
        }
        permits::fence_note(&self.host.folder, name)?;
        let machine = Self::machine(work);
        let before = self.machine_state(work).await?;
        let fabric = &self.host.fabric;
        let changes = match fabric.machine_fence(&machine).await {
            // Its description is gone: there is nothing that could be started or read.
            Err(FabricError::Unknown(_)) => FencedChanges::Unknown,
            changes => changes?,
        };
        let stopped_at = self.host.wall.now();
        match fabric.machine_quit(&machine).await {
            Ok(()) | Err(FabricError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
        // A machine that was shut down and drained has nothing that the point does not have, but
        // one that ran has, whatever was known of it before.
        let ran = matches!(before, MachineState::Running | MachineState::Paused);
        let drained = matches!(self.state.shut_down, Some((_, Some(_))));
        let known = self.state.divergent.clone();
        if ran || (known.is_none() && !drained) {
            let (point, name) = match known {
                Some(known) => (known.point, known.name),
                None => {
                    let name = format!("divergent-{}", clock::stamp(stopped_at));
                    (PointId::from(uuid::Uuid::new_v4()), name)
                }
            };
            let dirty_bytes = changes.dirty_bytes();
            self.state.divergent = Some(DivergentNote { point, name, dirty_bytes, stopped_at });
            self.state.shut_down = None;
            self.state.store(&self.host.item_folder(self.item))?;
            if before != MachineState::Off {
                let code = Code::STALE_MACHINE_FENCED.code;
                let (item, name) = (self.item, &work.duty.machine);
                tracing::warn!(%item, code, "{name} was running and is fenced");
            }
        }
        let note = self.state.divergent.clone();
        self.show(|seen| {
            (seen.machine, seen.phase) = (MachineState::Off, CapturePhase::Fenced);
            (seen.divergent, seen.problem, seen.shutdown) = (note, None, None);
        });
        Ok(whose)
    }

    /// Looks after a machine that lives here and that nothing replicates.
    pub(super) async fn live(
        &mut self,
        work: &SourceWork,
        permit: Option<&StartPermit>,
        start: Option<JobId>,
    ) -> Result<Option<Duration>, SourceError> {
        (self.open, self.claimed) = (None, false);
        if let Whose::Other(problem) = self.whose(work).await? {
            self.show_foreign(&problem);
            self.show(|seen| {
                seen.phase = CapturePhase::Idle;
                seen.started = start.map(|job| (job, Err(*problem)));
            });
            return Ok(Some(LOOK));
        }
        self.belongs_here(work, permit)?;
        if let Some(job) = start {
            self.start_again(work, permit, job).await?;
        }
        let machine = self.machine_state(work).await?;
        self.show(|seen| {
            (seen.machine, seen.phase, seen.problem) = (machine, CapturePhase::Idle, None);
            seen.resync_reason = None;
        });
        Ok(Some(LOOK))
    }

    /// Gives the machine back to its owner: nothing of us stays with it, or only that word.
    pub(super) async fn release(
        &mut self,
        work: &SourceWork,
        fence: Fence,
    ) -> Result<Option<Duration>, SourceError> {
        let machine = Self::machine(work);
        let name = &work.duty.machine;
        (self.open, self.claimed) = (None, false);
        let whose = self.whose(work).await?;
        let mut state = self.machine_state(work).await?;
        let mut foreign = None;
        match whose {
            Whose::Items => {
                if matches!(state, MachineState::Running | MachineState::Paused) {
                    self.host.fabric.capture(&machine).await?.detach().await?;
                } else if let Err(error) = self.host.fabric.machine_forget_changes(name).await {
                    // They cost some bytes and harm nobody; protection does not go on for them.
                    let (item, problem) = (self.item, error.problem());
                    tracing::warn!(%item, cause = %problem.cause, "change maps stay in {name}");
                }
                self.host.fabric.machine_disclaim(name).await?;
            }
            Whose::Other(problem) if self.state.marked => {
                self.show_foreign(&problem);
                (state, foreign) = (MachineState::Off, Some(*problem));
            }
            // One that was never marked is what it always was: its owner's.
            Whose::Other(_) => {}
            Whose::Gone => self.host.fabric.machine_disclaim(name).await?,
        }
        permits::permit_forget(&self.host.folder, name);
        if fence == Fence::Lifted {
            permits::fence_lift(&self.host.folder, name)?;
        }
        match std::fs::remove_dir_all(self.host.item_folder(self.item)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.state = SourceState::default();
        self.show(|seen| {
            (seen.machine, seen.phase) = (state, CapturePhase::Released);
            (seen.problem, seen.divergent, seen.seeded) = (foreign, None, None);
        });
        Ok(None)
    }
}
