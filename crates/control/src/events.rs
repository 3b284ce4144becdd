//! What operators read about what happened. Protection events (the journal of states) are in items.

use crate::audit_log::AuditRecord;
use crate::{Control, ControlError, error::Result, store};
use leeward_model::{ItemId, JobId, Problem, UnixMillis, VaultId};
use serde::{Deserialize, Serialize};

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// All is well.
    Info,
    /// Odd, went on.
    Warning,
    /// A person must act.
    Critical,
}

/// Is an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Its number: grows, never reused; also the cursor.
    pub seq: u64,
    /// When, by the config server's clock.
    pub at: UnixMillis,
    /// A short name in one word: `JobSucceeded`, `ItemProtected`.
    pub name: String,
    /// How much it matters.
    pub severity: Severity,
    /// One sentence.
    pub text: String,
    /// The item.
    pub item: Option<ItemId>,
    /// Name of the item, or of what else it is about.
    pub object: String,
    /// The job.
    pub job: Option<JobId>,
    /// What went wrong.
    pub problem: Option<Problem>,
}

impl Control {
    /// Notes in every vault, and in the audit log, what `who` did and a person must look at now.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub async fn alarm(&self, who: &str, name: &str, text: &str) -> Result<()> {
        let mut tx = self.store().begin().await?;
        let own = &self.config().local_host.name;
        let mut record = AuditRecord::noted(self.now().wall, who, name, own);
        record.text = text.to_owned();
        store::audit_log::append(&mut tx, &record).await?;
        for vault in store::vaults::all_ids(&mut tx).await? {
            let event = EventView {
                seq: 0,
                at: self.now().wall,
                name: name.to_owned(),
                severity: Severity::Critical,
                text: text.to_owned(),
                item: None,
                object: self.config().local_host.name.clone(),
                job: None,
                problem: None,
            };
            store::events::append(&mut tx, vault, &event).await?;
        }
        Ok(store::commit(tx).await?)
    }

    /// Lists events after number `after`, oldest first, at most `limit` (1 to 1000).
    ///
    /// # Errors
    /// BadRequest for another limit.
    pub async fn event_list(
        &self,
        vault: VaultId,
        after: u64,
        limit: u64,
    ) -> Result<Vec<EventView>> {
        if !(1..=1000).contains(&limit) {
            return Err(ControlError::bad_request("limit: 1 to 1000 events a page"));
        }
        let mut tx = self.store().read().await?;
        Ok(store::events::list(&mut tx, vault, after, limit).await?)
    }

    /// Finds an event by number.
    ///
    /// # Errors
    /// NotFound.
    pub async fn event_get(&self, vault: VaultId, seq: u64) -> Result<EventView> {
        let found = self.event_list(vault, seq.saturating_sub(1), 1).await?;
        found
            .into_iter()
            .find(|event| event.seq == seq)
            .ok_or_else(|| ControlError::not_found(format!("there is no event {seq}")))
    }
}
