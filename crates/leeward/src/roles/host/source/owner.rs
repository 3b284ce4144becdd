//! Whose the machine of the duty's name is. One that is not the item's is never touched (F-122).

use super::{SourceError, SourceWork, SourceWorker};
use leeward_fabric::FabricError;
use leeward_model::{Code, MachineState, Problem};

/// Whose the machine of the duty's name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The item's.
    Items,
    /// Nobody's: it has no description here.
    Gone,
    /// Not the item's: its owner made it under that name, or it is another item's.
    Other(Box<Problem>),
}

impl SourceWorker {
    /// Marks the machine as the item's before anything of it is touched.
    ///
    /// # Errors
    /// `Foreign` when it is another item's, or has lost its mark: then it is another machine.
    pub(super) async fn claim(&mut self, work: &SourceWork) -> Result<(), SourceError> {
        if self.claimed {
            return Ok(());
        }
        let (fabric, name) = (&self.host.fabric, &work.duty.machine);
        let mark = fabric.machine_claimed(name).await?;
        if self.state.marked && mark != Some(self.item) {
            let owner = mark.map_or("its owner".to_owned(), |item| format!("item {item}"));
            return Err(FabricError::Foreign { machine: Self::machine(work), owner }.into());
        }
        if let Some(former) = mark.filter(|former| *former != self.item)
            && !self.host.has_duty(former)
        {
            // Left by an item that ended while this host was away. This item, which is new here,
            // was enabled for this very machine.
            fabric.machine_disclaim(name).await?;
        }
        fabric.machine_claim(name, self.item).await?;
        self.note_marked()?;
        self.claimed = true;
        Ok(())
    }

    fn note_marked(&mut self) -> Result<(), SourceError> {
        if !self.state.marked {
            self.state.marked = true;
            self.state.store(&self.host.item_folder(self.item))?;
        }
        Ok(())
    }

    /// Looks whose the machine is, and touches nothing.
    pub(super) async fn whose(&mut self, work: &SourceWork) -> Result<Whose, SourceError> {
        let name = &work.duty.machine;
        let owner = match self.host.fabric.machine_claimed(name).await {
            Err(FabricError::Unknown(_)) => return Ok(Whose::Gone),
            owner => owner?,
        };
        let cause = match owner {
            Some(owner) if owner == self.item => return Ok(Whose::Items),
            Some(owner) => format!("it is protected as item {owner}"),
            // Nothing is hashed before the mark is written: a program that knew no marks did it.
            None if !self.state.marked && self.hash_folder().exists() => return Ok(Whose::Items),
            None => "its owner made it, or its folder came from elsewhere".to_owned(),
        };
        let what = format!("machine {name} on this host is not the item's, whose machine is gone");
        Ok(Whose::Other(Box::new(Code::MACHINE_FOREIGN.because(what, cause))))
    }

    /// Shows that the item's machine is gone, as another one has its name.
    pub(super) fn show_foreign(&self, problem: &Problem) {
        let (item, Problem { code, what, cause, .. }) = (self.item, problem);
        let before = self.host.board.source_seen(item).and_then(|seen| seen.problem);
        if before.as_ref() != Some(problem) {
            tracing::warn!(%item, %code, %cause, "{what}");
        }
        self.show(|seen| {
            seen.machine = MachineState::Off;
            seen.problem = Some(problem.clone());
        });
    }
}
