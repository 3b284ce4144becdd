//! Finds the steps of a record's kind when its type is not known. Runs nothing by itself.

use std::collections::BTreeMap;

use crate::engine::{Advance, EngineError, advance};
use crate::job::Job;
use crate::record::{List, Record};

/// Names one step of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepName {
    /// The step's list.
    pub list: List,
    /// The step's name within it.
    pub name: &'static str,
}

/// Lists all steps of a kind in the order of a record's log.
pub(crate) fn step_names<J: Job>() -> Vec<StepName> {
    let forward = |list| move |name| StepName { list, name };
    (J::REVERSIBLE.iter().map(|step| step.name).map(forward(List::Reversible)))
        .chain(J::FORWARD.iter().map(|step| step.name).map(forward(List::Forward)))
        .chain(J::ABANDON.iter().map(|step| step.name).map(forward(List::Abandon)))
        .collect()
}

type AdvanceKind<C> = fn(Record, &mut C, u64) -> Result<Advance, EngineError>;

struct Kind<C> {
    steps: Vec<StepName>,
    advance: AdvanceKind<C>,
}

/// Is the set of kinds that share the context `C`.
pub struct Registry<C> {
    kinds: BTreeMap<&'static str, Kind<C>>,
}

impl<C> Default for Registry<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> Registry<C> {
    /// Makes a registry without kinds.
    pub fn new() -> Self {
        Self { kinds: BTreeMap::new() }
    }

    /// Adds the kind `J`.
    ///
    /// # Panics
    /// When its name is taken, or two steps of one of its lists have the same name.
    #[must_use]
    pub fn with<J: Job<Context = C>>(mut self) -> Self {
        let steps = step_names::<J>();
        for (index, step) in steps.iter().enumerate() {
            let twice = steps[..index].contains(step);
            assert!(!twice, "job {} has two steps {}/{}", J::KIND, step.list.name(), step.name);
        }
        let before = self.kinds.insert(J::KIND, Kind { steps, advance: advance::<J> });
        assert!(before.is_none(), "two job kinds are named {}", J::KIND);
        self
    }

    /// Lists the kinds, sorted by name.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.kinds.keys().copied()
    }

    /// Lists the steps of a kind: REVERSIBLE, FORWARD, ABANDON, each in its order.
    pub fn steps(&self, kind: &str) -> Option<&[StepName]> {
        self.kinds.get(kind).map(|kind| kind.steps.as_slice())
    }

    /// Makes one transition, as [`advance`] does for the record's kind.
    ///
    /// # Errors
    /// [`EngineError::UnknownKind`] names the kinds that are known; others as in [`advance`].
    pub fn advance(
        &self,
        record: Record,
        context: &mut C,
        now_ms: u64,
    ) -> Result<Advance, EngineError> {
        match self.kinds.get(record.kind.as_str()) {
            Some(kind) => (kind.advance)(record, context, now_ms),
            None => {
                Err(EngineError::UnknownKind { kind: record.kind, known: self.kinds().collect() })
            }
        }
    }
}
