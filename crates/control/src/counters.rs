//! What is counted since the process began, for the metrics. Forgotten at a restart, as counters
//! are; decides nothing.

use crate::jobs::{JobView, RunState, Scenario};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Is what was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Jobs that ended, by scenario and outcome in the API's words.
    pub(crate) jobs: BTreeMap<(String, String), u64>,
    /// Failures and warnings of those jobs, by code.
    pub(crate) job_problems: BTreeMap<String, u64>,
    /// Answers of the API, by HTTP status.
    pub(crate) answers: BTreeMap<u16, u64>,
    /// Refusals of the API, by code.
    pub(crate) refusals: BTreeMap<String, u64>,
}

/// Is the counters of a config server.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<Counted>);

impl Counters {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn job_ended(&self, scenario: Scenario, state: RunState, codes: &[&str]) {
        let mut counted = self.lock();
        *counted.jobs.entry((format!("{scenario:?}"), format!("{state:?}"))).or_default() += 1;
        for code in codes {
            *counted.job_problems.entry((*code).to_owned()).or_default() += 1;
        }
    }

    /// Counts a job that is over.
    pub(crate) fn job(&self, job: &JobView) {
        let codes: Vec<_> = job.errors.iter().map(|problem| problem.code.as_str()).collect();
        self.job_ended(job.scenario, job.state, &codes);
    }

    /// Counts an answer; `code` is the refusal's. Codes and statuses are few and ours.
    pub(crate) fn answered(&self, status: u16, code: Option<&str>) {
        let mut counted = self.lock();
        *counted.answers.entry(status).or_default() += 1;
        if let Some(code) = code {
            *counted.refusals.entry(code.to_owned()).or_default() += 1;
        }
    }

    pub(crate) fn read(&self) -> Counted {
        self.lock().clone()
    }
}
