//! Many worlds at once, on all cores.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

/// Worlds for each core: a world sleeps half of its time, waiting for its database's threads.
const WORLDS_PER_CORE: usize = 2;

/// Works on every case, each in a thread of its own with others beside it, until no case is left
/// or `enough` says so of the results. Results come in the order in which they were had.
pub fn crowd<C: Send, R: Send>(
    cases: impl IntoIterator<Item = C>,
    work: impl Fn(C) -> R + Sync,
    enough: impl Fn(&[R]) -> bool + Sync,
) -> Vec<R> {
    let cases: Mutex<VecDeque<C>> = Mutex::new(cases.into_iter().collect());
    let results = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores * WORLDS_PER_CORE {
            scope.spawn(|| {
                loop {
                    let case = cases.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(case) = case else { return };
                    let result = work(case);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    results.push(result);
                    if enough(&results) {
                        cases.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        return;
                    }
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}
