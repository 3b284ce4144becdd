//! The final point of a machine that is off already: its disks are read where they lie, and what
//! differs from the newest point is sent. They are never written.

use super::{Goes, Open, SourceError, SourceWork, SourceWorker, copy::Basis, tries::Tries};
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
        mut tries: Tries,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<PointId>, SourceError> {
        loop {
            self.open = None;
            let taken = self.still_point_take(work, changes).await;
            self.open = None;
            match taken {
                Ok(point) => return Ok(point),
                Err(SourceError::Changed) => return Err(SourceError::Changed),
                Err(error) => match self.try_again(work, error, &mut tries, changes).await {
                    Ok(()) => {}
                    Err(SourceError::Changed) => return Err(SourceError::Changed),
                    Err(_) => return Ok(None),
                },
            }
        }
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
        let (folder, basis) = (self.hash_folder(), Basis::Hashes);
        let hashes = self.trusted_hashes(&mut link, &spec, folder, basis).await?;
        let (key, goes, mapped, last_cut) = (Self::key(work), Goes::Out, false, None);
        let reread_for = 0;
        #[rustfmt::skip]
        let open = Open { link, source, hashes, spec, key, goes, mapped, reread_for, last_cut };
        self.open = Some(open);
        self.hurry();
        self.copy_everything(work, None, changes).await?;
        let (point, _) = self.cycle(work, PointKind::Final).await?;
        Ok(Some(point))
    }
}
