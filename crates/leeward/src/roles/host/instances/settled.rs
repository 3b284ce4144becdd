//! An instance becomes its host's machine: it settles with its first start, and is handed over
//! when it holds all its data.

use super::{InstanceWork, Stage, Worker, known, store_problem};
use crate::roles::host::permits;
use leeward_fabric::MachineRef;
use leeward_model::{Code, MachineState, Problem};
use leeward_wire::message::{CapturePhase, SourceRun};
use std::{path::PathBuf, time::Duration};

impl Worker {
    /// Whether this host's source worker has not yet let go of the machine that the instance
    /// becomes: what is started now would be fenced as well.
    ///
    /// # Errors
    /// NO_PERMIT when it is not to let go of it.
    pub(super) fn still_fenced(&self, work: &InstanceWork) -> Result<bool, Problem> {
        let Some(name) = &work.duty.settle_as else { return Ok(false) };
        let source = self.host.source_duty(self.item).filter(|duty| duty.machine == *name);
        let Some(source) = source else { return Ok(false) };
        match source.run {
            SourceRun::ShutDown { .. }
            | SourceRun::Fenced
            | SourceRun::Seed { .. }
            | SourceRun::Leave => {
                let what = format!("{name} was not started from its recovery point");
                Err(Code::NO_PERMIT.because(what, "this host keeps its machine of that name off"))
            }
            SourceRun::Replicate { .. } | SourceRun::Live { .. } | SourceRun::Release => {
                let seen = self.host.board.source_seen(self.item);
                Ok(seen.is_some_and(|seen| seen.phase == CapturePhase::Fenced))
            }
        }
    }

    /// Makes the instance the machine of its name, before its guest may write.
    pub(super) async fn settle(&self, work: &InstanceWork) -> Result<(), Problem> {
        let Some(name) = &work.duty.settle_as else { return Ok(()) };
        let settled = self.host.fabric.instance_settle(self.instance, name, self.item).await;
        settled.map_err(|error| error.problem())?;
        permits::fence_lift(&self.host.folder, name)
            .map_err(store_problem("the machine's fence could not be lifted"))
    }

    /// Gives the name back to the machine that had it before; the instance is off.
    pub(super) async fn unsettle(&self) -> Result<(), Problem> {
        known(self.host.fabric.instance_unsettle(self.instance).await)
    }

    /// Beside the instance's folder, which is the machine's own when this exists.
    fn handed_over_mark(&self) -> PathBuf {
        self.host.instance_folder(self.instance).with_extension("handed-over")
    }

    /// Whether it is an instance no longer. Its folder holds a machine's disks then.
    pub(super) async fn is_handed_over(&self) -> bool {
        if self.handed_over_mark().exists() {
            return true;
        }
        self.kept.handing_over && self.status().await.is_none()
    }

    /// Brings a settled instance to the end of its life as one: it takes over all its data while
    /// it runs, then the host's machine of its name is all there is.
    pub(super) async fn handed_over(
        &mut self,
        work: &InstanceWork,
    ) -> Result<Option<Duration>, Problem> {
        if self.handed_over_mark().exists() {
            let machine = self.settled_state(work).await;
            self.show(work, Stage::HandedOver, machine, None);
            return Ok(None);
        }
        if self.kept.guest_started_at.is_some() && !self.kept.hydrated {
            let pause = self.tend_settled(work).await?;
            if !self.kept.hydrated {
                return Ok(pause);
            }
        }
        if self.kept.hydrated {
            // Noted first: when the fabric has forgotten it, its folder must not be deleted.
            self.kept.handing_over = true;
            self.save()?;
            self.hydrated(&self.export_plan(work)).await?;
        }
        // One that the fabric does not know was handed over before.
        known(self.host.fabric.instance_hand_over(self.instance).await)?;
        let mark = self.handed_over_mark();
        crate::folder::write_whole(&mark, b"its files are its machine's\n")
            .map_err(store_problem("the end of an instance could not be noted"))?;
        permits::permit_forget(&self.host.folder, &self.instance.to_string());
        let own = self.host.instance_folder(self.instance).join("instance.json");
        match std::fs::remove_file(own) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(store_problem("the instance's own file could not be deleted")(error));
            }
            _ => {}
        }
        let machine = self.settled_state(work).await;
        self.show(work, Stage::HandedOver, machine, None);
        Ok(None)
    }

    /// Tends a machine that whoever may starts by its name. After a boot of the host the fabric
    /// has to be told of it, and its export is served again.
    pub(super) async fn tend_settled(
        &mut self,
        work: &InstanceWork,
    ) -> Result<Option<Duration>, Problem> {
        if self.status().await.is_none() {
            self.overlay(work).await?;
        }
        self.tend(work).await
    }

    /// The run state of the machine that the instance has become; later changes of it are its
    /// source worker's to show.
    async fn settled_state(&self, work: &InstanceWork) -> MachineState {
        let Some(name) = work.duty.settle_as.clone() else { return MachineState::Unknown };
        let state = self.host.fabric.machine_state(&MachineRef::Owned(name)).await;
        state.unwrap_or(MachineState::Unknown)
    }
}
