//! Whether this config server is in charge, and what it keeps outside its own machine so that
//! another one can take over: its configuration, whole, after every change.
//!
//! Where that is kept is the keeper's business. Points never are: they are in the stores.

use crate::{Control, ControlError, ErrorKind, error::Result, store};
use async_trait::async_trait;
use leeward_model::{Code, Problem, UnixMillis};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Who is in charge instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superseded {
    /// Its generation: higher than this server's.
    pub generation: u64,
    /// On which machine it runs.
    pub by: String,
    /// When it took over, by its own clock.
    pub at: UnixMillis,
    /// Where it is reached.
    pub address: String,
}

impl Superseded {
    fn problem(&self) -> Problem {
        let at = jiff::Timestamp::from_millisecond(self.at.0);
        let at = at.map(|time| time.to_string()).unwrap_or_default();
        let Superseded { generation, by, address, .. } = self;
        Code::SUPERSEDED.problem(format!(
            "{by} adopted this site's store at {at} (generation {generation}) and is in charge at \
             {address}"
        ))
    }
}

/// Why a configuration was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepError {
    /// Another config server is in charge.
    Superseded(Superseded),
    /// It may work later.
    Failed(Problem),
}

/// Keeps the configuration where another config server finds it.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// Keeps `configuration`; durable when it returns. Looks first whether this server is still
    /// in charge.
    ///
    /// # Errors
    /// See [`KeepError`].
    async fn keep(&self, configuration: &[u8]) -> std::result::Result<(), KeepError>;

    /// What this server kept there last, also before its present start; none when it kept nothing
    /// yet, or it cannot be read.
    async fn kept(&self) -> Option<Vec<u8>>;
}

/// Is what a config server knows of its being in charge.
#[derive(Default)]
pub(crate) struct Charge {
    superseded: OnceLock<Superseded>,
    keeper: OnceLock<Arc<dyn Keeper>>,
    /// Held while keeping: those who wait find it done.
    kept: tokio::sync::Mutex<Kept>,
    /// Why the newest configuration is kept nowhere.
    failure: Mutex<Option<Problem>>,
}

/// Is what was kept last.
#[derive(Default)]
struct Kept {
    configuration: Vec<u8>,
    /// Whether what an earlier start had kept was compared with the audit log.
    compared: bool,
    /// When the head of the audit log was told last, boot-time milliseconds.
    told_ms: Option<u64>,
}

impl Control {
    /// Says who keeps the configuration. Only the first one counts.
    pub fn keep_with(&self, keeper: Arc<dyn Keeper>) {
        // A second keeper is a mistake of ours that costs nothing.
        let _ = self.charge().keeper.set(keeper);
    }

    /// Another config server is in charge: from now on this one changes nothing.
    pub fn supersede(&self, by: Superseded) {
        if self.charge().superseded.set(by).is_ok() {
            let problem = self.superseded().map(Superseded::problem);
            tracing::error!("{}", problem.map(|problem| problem.to_string()).unwrap_or_default());
            self.hosts_dismiss();
        }
    }

    /// Who is in charge, when this server is not.
    pub fn superseded(&self) -> Option<&Superseded> {
        self.charge().superseded.get()
    }

    /// Refuses once another config server is in charge.
    ///
    /// # Errors
    /// Conflict with `SUPERSEDED`.
    pub(crate) fn check_in_charge(&self) -> Result<()> {
        match self.superseded() {
            None => Ok(()),
            Some(by) => {
                let problem = Box::new(by.problem());
                Err(ControlError { kind: ErrorKind::Conflict, problem })
            }
        }
    }

    /// The configuration as it is kept outside this machine; none when nobody keeps it.
    pub(crate) async fn kept_elsewhere(&self) -> Option<Vec<u8>> {
        self.charge().keeper.get()?.kept().await
    }

    /// What is wrong with this server's being in charge, for the health of every vault.
    pub(crate) fn charge_problem(&self) -> Option<Problem> {
        let failure = || {
            let failure = self.charge().failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.clone()
        };
        self.superseded().map(Superseded::problem).or_else(failure)
    }

    /// Keeps the configuration if it changed since it was kept last. That it could not be kept
    /// stops nobody: protection goes on, and the vaults' health says it.
    ///
    /// # Errors
    /// Conflict when another config server is in charge; those of the database.
    pub async fn configuration_keep(&self) -> Result<()> {
        self.check_in_charge()?;
        let Some(keeper) = self.charge().keeper.get() else { return Ok(()) };
        let mut kept = self.charge().kept.lock().await;
        if !kept.compared {
            // Before it is written over: it tells what the audit log was.
            if let Some(before) = keeper.kept().await {
                self.audit_resume(&before).await?;
            }
            kept.compared = true;
        }
        self.audit_tell(&mut kept.told_ms).await?;
        let mut tx = self.store().read().await?;
        let configuration = store::snapshot::dump(&mut tx).await?;
        drop(tx);
        if kept.configuration == configuration {
            return Ok(());
        }
        let failure = match keeper.keep(&configuration).await {
            Ok(()) => {
                kept.configuration = configuration;
                None
            }
            Err(KeepError::Superseded(by)) => {
                drop(kept);
                self.supersede(by);
                return self.check_in_charge();
            }
            Err(KeepError::Failed(problem)) => Some(problem),
        };
        let mut told = self.charge().failure.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = failure.as_ref().filter(|_| told.is_none()) {
            tracing::error!("the configuration is kept nowhere but here: {problem}");
        }
        *told = failure;
        Ok(())
    }
}
