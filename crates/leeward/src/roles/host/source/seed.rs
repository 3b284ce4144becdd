//! Seeding: the disks of a machine that was left are read where they lie and sealed into this
//! host's own store, so that the way back has something to compare with. They are never written.

use super::{Goes, LOOK, Open, RETRY, SourceError, SourceWork, SourceWorker, Whose, copy::Basis};
use crate::roles::host::{
    data_link::DataLink,
    hash_key,
    site_store::{OwnBranch, SiteStore},
};
use leeward_capture::{CaptureError, ChangeSource, LiveRead};
use leeward_fabric::{FabricError, Still};
use leeward_model::{Branch, Code, JobId, PointKind, Position, Problem};
use leeward_wire::message::{CapturePhase, Seeded, SourceDuty};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;

impl SourceWorker {
    /// Seeds for `job`, once; the machine is fenced. What fails is reported and tried again.
    pub(super) async fn seed(
        &mut self,
        work: &SourceWork,
        job: JobId,
        base: Option<Position>,
        whose: Whose,
        changes: &watch::Receiver<Option<SourceWork>>,
    ) -> Result<Option<Duration>, SourceError> {
        let done = match self.state.seeded {
            Some((by, seeded)) if by == job => Ok(seeded),
            Some(_) | None if whose == Whose::Items => self.seed_disks(work, base, changes).await,
            Some(_) | None => Ok(Seeded::Nothing),
        };
        self.open = None;
        let outcome = match done {
            Ok(seeded) => {
                if self.state.seeded != Some((job, seeded)) {
                    self.state.seeded = Some((job, seeded));
                    self.state.store(&self.host.item_folder(self.item))?;
                    // Only space: a later seed begins with the store's own hashes.
                    let _ = std::fs::remove_dir_all(self.seed_folder());
                }
                Ok(seeded)
            }
            Err(SourceError::Changed) => return Err(SourceError::Changed),
            Err(error) => Err(self.seed_problem(work, &error)),
        };
        let pause = if outcome.is_ok() { LOOK } else { RETRY };
        self.show(|seen| {
            seen.phase = CapturePhase::Fenced;
            seen.problem = match &whose {
                Whose::Other(problem) => Some((**problem).clone()),
                Whose::Items | Whose::Gone => outcome.clone().err(),
            };
            seen.seeded = Some((job, outcome));
        });
        Ok(Some(pause))
    }

    fn seed_problem(&self, work: &SourceWork, error: &SourceError) -> Problem {
        let own = self.own_work(work);
        let problem = error.problem(&self.host, &own);
        let problem = match problem.code == Code::STORE_NO_SPACE.code {
            true => problem,
            false => {
                let what = format!("the old disks of {} could not be sealed", work.duty.machine);
                Code::SEED_FAILED.because(what, format!("{} ({})", problem.what, problem.cause))
            }
        };
        let Problem { code, what, cause, .. } = &problem;
        tracing::warn!(item = %self.item, %code, %cause, "{what}");
        problem
    }

    /// The hash files of a seed: of another store than those of the replication.
    fn seed_folder(&self) -> PathBuf {
        self.host.item_folder(self.item).join("seed-hashes")
    }

    /// The work as it is with this host as its own target.
    fn own_work(&self, work: &SourceWork) -> SourceWork {
        let (target_host, target_address) = (self.host.id, None);
        let duty = SourceDuty { target_host, target_address, ..work.duty.clone() };
        SourceWork { duty, ..work.clone() }
    }

    async fn seed_disks(
        &mut self,
        work: &SourceWork,
        base: Option<Position>,
        changes: &watch::Receiver<Option<SourceWork>>,
    ) -> Result<Seeded, SourceError> {
        let Some(still) = self.old_disks(work).await? else {
            let (item, name) = (self.item, &work.duty.machine);
            tracing::info!(%item, "there are no old disks of {name} to build on");
            return Ok(Seeded::Nothing);
        };
        let refuse = |problem: Problem| SourceError::Problem(Box::new(problem));
        let Some(store) = self.host.store.clone() else {
            return Err(refuse(Code::STORE_FOREIGN.problem("this host has no replica store")));
        };
        self.open_seed(work, &store, still, base).await?;
        self.copy_everything(work, None, changes).await?;
        let (point, position) = self.cycle(work, PointKind::CrashConsistent).await?;
        Ok(Seeded::Stored { point, position })
    }

    /// The machine's disks, if it has any; it is this item's.
    pub(super) async fn old_disks(
        &mut self,
        work: &SourceWork,
    ) -> Result<Option<Still>, SourceError> {
        let name = &work.duty.machine;
        match self.host.fabric.still(name).await {
            Err(FabricError::Unknown(_)) => Ok(None),
            still => Ok(Some(still?).filter(|still| !still.source.disks().is_empty())),
        }
    }

    /// Opens the session into this host's own store, on the branch that an interrupted seed began
    /// or, if the store has room, on a new one.
    async fn open_seed(
        &mut self,
        work: &SourceWork,
        store: &Arc<SiteStore>,
        still: Still,
        base: Option<Position>,
    ) -> Result<(), SourceError> {
        let Still { spec, mut source } = still;
        let failed = |error: leeward_replica::StoreError| {
            let what = format!("the seed of {} cannot be stored", work.duty.machine);
            SourceError::Problem(Box::new(error.problem(what)))
        };
        hash_key::ensure_part(&self.host, store, work.vault, self.item).await.map_err(|error| {
            let name = &work.duty.machine;
            let what =
                format!("the seed of {name} waits for the hash key of the item's other store");
            SourceError::Problem(Box::new(error.problem(what)))
        })?;
        let wanted = Branch { parent: base, ..work.duty.branch };
        // It asks for a full read and has nothing else to say.
        source.attach(None).await?;
        // Of the same machine, for a job that was given up: all that it holds needs no sealing.
        let former = match self.state.seeded {
            Some((_, Seeded::Stored { position, .. })) => Some(position),
            Some((_, Seeded::Nothing)) | None => None,
        };
        let own = store.own_branch(self.item, wanted, former).await;
        let branch = match own.map_err(failed)? {
            OwnBranch::Begun(branch) => branch,
            OwnBranch::New(branch) => {
                check_room(store, source.as_mut(), &work.duty.machine).await?;
                branch
            }
        };
        let mut link = DataLink::open(&self.host, &self.own_work(work), branch).await?;
        let (folder, basis) = (self.seed_folder(), Basis::Hashes);
        let hashes = self.trusted_hashes(&mut link, &spec, folder, basis).await?;
        let (key, goes, mapped, last_cut) = (Self::key(work), Goes::Within, false, None);
        let reread_for = 0;
        #[rustfmt::skip]
        let open = Open { link, source, hashes, spec, key, goes, mapped, reread_for, last_cut };
        self.open = Some(open);
        Ok(())
    }
}

/// Refuses a seed for which the store has no room.
async fn check_room(
    store: &SiteStore,
    source: &mut dyn ChangeSource,
    machine: &str,
) -> Result<(), SourceError> {
    let Some(free) = store.free_bytes() else { return Ok(()) };
    let needed = bytes_to_read(source).await?;
    if needed <= free {
        return Ok(());
    }
    let what = format!("the old disks of {machine} cannot be sealed");
    let cause = format!("they hold {needed} bytes, and the replica store has room for {free}");
    Err(SourceError::Problem(Box::new(Code::STORE_NO_SPACE.because(what, cause))))
}

/// Bytes of the disks that may differ from zero.
async fn bytes_to_read(source: &mut dyn ChangeSource) -> Result<u64, CaptureError> {
    let reader = source.open_live(LiveRead::Everything).await?;
    let mut bytes = 0;
    for disk in source.disks() {
        let ranges = reader.ranges(disk.number).await?;
        bytes += ranges.iter().map(|range| range.len).sum::<u64>();
    }
    drop(reader);
    source.close_live().await?;
    Ok(bytes)
}
