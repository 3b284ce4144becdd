//! The final point of a machine that is off already: its disks are read where they lie, and what
//! differs from the newest point is sent. They are never written.

use super::{
    Goes, Open, RETRY, SourceError, SourceWork, SourceWorker, copy::changed,
    power::FINAL_DELTA_TRIES,
};
use crate::roles::host::data_link::DataLink;
use leeward_fabric::{FabricError, Still};
use leeward_model::{PointId, PointKind};
use tokio::sync::watch;

impl SourceWorker {
    /// Takes the final point by comparison; none when that does not work now, or when a disk is
    /// gone. The whole machine is read.
    pub(super) async fn still_point(
        &mut self,
        work: &SourceWork,
        changes: &watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<PointId>, SourceError> {
        for attempt in 1..=FINAL_DELTA_TRIES {
            self.open = None;
            let taken = self.still_point_take(work, changes).await;
            self.open = None;
            match taken {
                Err(SourceError::Changed) => return Err(SourceError::Changed),
                Err(error) => {
                    let problem = error.problem(&self.host, work);
                    let (item, name, cause) = (self.item, &work.duty.machine, &problem.cause);
                    tracing::warn!(
                        %item, attempt, %cause,
                        "could not take the last data of {name} from its disks"
                    );
                    // So that a person who is asked again sees why.
                    self.show(|seen| seen.problem = Some(problem));
                    tokio::time::sleep(RETRY).await;
                    if changed(work, changes) {
                        return Err(SourceError::Changed);
                    }
                }
                Ok(point) => return Ok(point),
            }
        }
        Ok(None)
    }

    async fn still_point_take(
        &mut self,
        work: &SourceWork,
        changes: &watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<PointId>, SourceError> {
        let name = &work.duty.machine;
        let found = self.host.fabric.discover().await?;
        let described = found.into_iter().map(|machine| machine.spec).find(|s| s.name == *name);
        let Some(described) = described else {
            return Err(FabricError::Unknown(Self::machine(work)).into());
        };
        let Some(Still { spec, mut source }) = self.old_disks(work).await? else {
            return Ok(None);
        };
        if spec.disks.len() != described.disks.len() {
            tracing::warn!(item = %self.item, "a disk of {name} is gone: no point without it");
            return Ok(None);
        }
        // It asks for a full read and has nothing else to say.
        source.attach(None).await?;
        let mut link = DataLink::open(&self.host, work, work.duty.branch).await?;
        let hashes = self.trusted_hashes(&mut link, &spec, self.hash_folder()).await?;
        let (key, goes, mapped, last_cut) = (Self::key(work), Goes::Out, false, None);
        self.open = Some(Open { link, source, hashes, spec, key, goes, mapped, last_cut });
        self.hurry();
        self.copy_everything(work, None, changes).await?;
        let (point, _) = self.cycle(work, PointKind::Final).await?;
        Ok(Some(point))
    }
}
