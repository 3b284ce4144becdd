//! Which points a history does without: all of the last hours stay, then one a minute, one an
//! hour, one a day. Pure; what goes by age alone, and what is never let go, is `retention`'s.
//!
//! The rules:
//! 1. A point younger than [`Thinning::all_ms`] stays.
//! 2. Older ones fall into slots of a fixed width, counted from 1970, so that a slot is the same
//!    in every run. The width is that of the first step whose `until_ms` is not yet passed.
//! 3. Of a slot the best point stays: by [`Worth`], then the one that was received first, then the
//!    one that was committed first.
//! 4. Exempt points stay and fill no slot.
//!
//! The width of a step is a multiple of the one before it. The best of a slot is then the best of
//! the best of the narrower slots in it: however often this runs while points age, what is left is
//! what a single run at the end would have left.

use leeward_model::{PointId, UnixMillis};
use std::collections::BTreeMap;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// One width of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinningStep {
    /// Of this many milliseconds one point stays.
    pub every_ms: u64,
    /// For points up to this age in milliseconds; the last step goes on beyond it.
    pub until_ms: u64,
}

/// How a history is thinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinning {
    all_ms: u64,
    steps: Vec<ThinningStep>,
}

/// Why a plan of thinning cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThinningError {
    /// A width of nothing.
    #[error("a step of 0 ms has no points")]
    Empty,
    /// Not a multiple of the step before it.
    #[error("a step of {every_ms} ms is no multiple of the one of {before_ms} ms before it")]
    NotNested {
        /// The step.
        every_ms: u64,
        /// The one before it.
        before_ms: u64,
    },
    /// Steps whose ages do not grow.
    #[error("a step that ends at an age of {until_ms} ms follows one that ends no earlier")]
    NotAscending {
        /// Where it ends.
        until_ms: u64,
    },
}

impl Thinning {
    /// A plan: all points up to `all_ms`, then the steps.
    ///
    /// # Errors
    /// See [`ThinningError`].
    pub fn new(all_ms: u64, steps: Vec<ThinningStep>) -> Result<Thinning, ThinningError> {
        let (mut width, mut age) = (1, all_ms);
        for step in &steps {
            let ThinningStep { every_ms, until_ms } = *step;
            if every_ms == 0 {
                return Err(ThinningError::Empty);
            }
            if !every_ms.is_multiple_of(width) {
                return Err(ThinningError::NotNested { every_ms, before_ms: width });
            }
            if until_ms <= age {
                return Err(ThinningError::NotAscending { until_ms });
            }
            (width, age) = (every_ms, until_ms);
        }
        Ok(Thinning { all_ms, steps })
    }

    /// Points up to this age in milliseconds all stay.
    pub fn all_ms(&self) -> u64 {
        self.all_ms
    }

    /// Of how many milliseconds one point of this age stays; `None` when all do.
    fn every_ms(&self, age_ms: u64) -> Option<u64> {
        if age_ms <= self.all_ms {
            return None;
        }
        let due = self.steps.iter().find(|step| age_ms <= step.until_ms).or(self.steps.last());
        due.map(|step| step.every_ms)
    }
}

impl Default for Thinning {
    /// All of the last 2 hours, then one a minute up to a day, one an hour up to a week, then one
    /// a day.
    fn default() -> Thinning {
        let steps = vec![
            ThinningStep { every_ms: MINUTE_MS, until_ms: DAY_MS },
            ThinningStep { every_ms: HOUR_MS, until_ms: 7 * DAY_MS },
            ThinningStep { every_ms: DAY_MS, until_ms: u64::MAX },
        ];
        Thinning { all_ms: 2 * HOUR_MS, steps }
    }
}

/// What a point is worth beside others of its slot, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worth {
    /// A machine made from it did not start.
    Failed,
    /// Crash-consistent, never tested.
    Plain,
    /// A machine made from it has started.
    Verified,
    /// Application-consistent, or the last one of a machine that was shut down.
    Consistent,
}

/// A point that may be thinned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The point.
    pub id: PointId,
    /// When the store had it, by the store's clock.
    pub received_at: UnixMillis,
    /// What it is worth.
    pub worth: Worth,
    /// Stays whatever else there is.
    pub exempt: bool,
}

/// The points that go; `points` are in the order of their commits, and so is the result.
pub fn thinned_out(points: &[Candidate], now: UnixMillis, plan: &Thinning) -> Vec<PointId> {
    // A slot of each width, as slots of different widths overlap where one step meets the next.
    let mut best: BTreeMap<(u64, i64), usize> = BTreeMap::new();
    let mut slots = Vec::with_capacity(points.len());
    for (order, point) in points.iter().enumerate() {
        let age_ms = now.0.saturating_sub(point.received_at.0).max(0) as u64;
        let width = plan.every_ms(age_ms).filter(|_| !point.exempt);
        let slot = width.map(|every_ms| {
            let width = i64::try_from(every_ms).unwrap_or(i64::MAX);
            (every_ms, point.received_at.0.div_euclid(width))
        });
        if let Some(slot) = slot {
            let chosen = best.entry(slot).or_insert(order);
            if is_better(point, &points[*chosen]) {
                *chosen = order;
            }
        }
        slots.push(slot);
    }
    let stays = |order: usize, slot: &Option<(u64, i64)>| {
        slot.as_ref().is_none_or(|slot| best.get(slot) == Some(&order))
    };
    let gone = slots.iter().enumerate().filter(|(order, slot)| !stays(*order, slot));
    gone.map(|(order, _)| points[order].id).collect()
}

/// Whether a point that was committed later is better all the same.
fn is_better(later: &Candidate, earlier: &Candidate) -> bool {
    (later.worth, std::cmp::Reverse(later.received_at))
        > (earlier.worth, std::cmp::Reverse(earlier.received_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn plan() -> Thinning {
        let step = |every_ms, until_ms| ThinningStep { every_ms, until_ms };
        Thinning::new(20, vec![step(5, 60), step(15, 200), step(60, 400)]).unwrap()
    }

    fn worths() -> impl Strategy<Value = Worth> {
        prop_oneof![
            1 => Just(Worth::Failed),
            4 => Just(Worth::Plain),
            1 => Just(Worth::Verified),
            1 => Just(Worth::Consistent),
        ]
    }

    fn histories() -> impl Strategy<Value = Vec<Candidate>> {
        let point = (0..600_i64, worths(), prop::bool::weighted(0.1));
        prop::collection::vec(point, 0..120).prop_map(|points| {
            let numbered = points.into_iter().enumerate();
            numbered
                .map(|(order, (at, worth, exempt))| Candidate {
                    id: PointId::from_u128(order as u128 + 1),
                    received_at: UnixMillis(at - 50),
                    worth,
                    exempt,
                })
                .collect()
        })
    }

    /// The rules word by word: a point goes when another one of its slot is better.
    fn by_definition(points: &[Candidate], now: i64, plan: &Thinning) -> Vec<PointId> {
        let width = |point: &Candidate| {
            let age = now - point.received_at.0;
            let steps = plan.steps.iter().find(|step| age <= step.until_ms as i64);
            let step = steps.or(plan.steps.last()).map(|step| step.every_ms as i64);
            step.filter(|_| age > plan.all_ms as i64 && !point.exempt)
        };
        let goes = |point: &&Candidate| {
            let Some(own) = width(point) else { return false };
            points.iter().any(|other| {
                let slot = |of: &Candidate| of.received_at.0.div_euclid(own);
                let order = |of: &Candidate| (-(of.received_at.0), std::cmp::Reverse(of.id));
                width(other) == Some(own)
                    && slot(other) == slot(point)
                    && (other.worth, order(other)) > (point.worth, order(point))
            })
        };
        points.iter().filter(goes).map(|point| point.id).collect()
    }

    fn without(points: &[Candidate], gone: &[PointId]) -> Vec<Candidate> {
        let gone: BTreeSet<_> = gone.iter().collect();
        points.iter().filter(|point| !gone.contains(&point.id)).copied().collect()
    }

    proptest! {
        /// F-047.
        #[test]
        fn what_goes_is_what_the_rules_say(points in histories(), now in 0..1500_i64) {
            let gone = thinned_out(&points, UnixMillis(now), &plan());
            prop_assert_eq!(gone, by_definition(&points, now, &plan()));
        }

        /// However often it runs while points age and come, and whichever are exempt meanwhile,
        /// the last run leaves what a single run would have left.
        #[test]
        fn many_runs_remove_what_one_run_would(
            points in histories(),
            mut times in prop::collection::vec(0..1500_i64, 1..8),
            exempt in prop::collection::vec(any::<bool>(), 960),
        ) {
            times.sort_unstable();
            let last = *times.last().unwrap();
            let mut left: Vec<Candidate> = Vec::new();
            let mut came = 0;
            let mut in_order = points.clone();
            in_order.sort_by_key(|point| point.received_at);
            for (run, now) in times.iter().enumerate() {
                let due = in_order.partition_point(|point| point.received_at.0 <= *now);
                left.extend_from_slice(&in_order[came.min(due)..due]);
                came = came.max(due);
                let mut seen = left.clone();
                if *now != last {
                    for point in &mut seen {
                        point.exempt |= exempt[(run * 120 + point.id.as_u128() as usize) % 960];
                    }
                }
                left = without(&left, &thinned_out(&seen, UnixMillis(*now), &plan()));
            }
            let whole = &in_order[..came];
            let once = without(whole, &thinned_out(whole, UnixMillis(last), &plan()));
            prop_assert_eq!(left, once);
        }
    }

    #[test]
    fn the_plan_by_default_keeps_two_hours_then_minutes_hours_and_days() {
        let now = 100 * DAY_MS as i64;
        let point = |order: u64| Candidate {
            id: PointId::from_u128(u128::from(order) + 1),
            received_at: UnixMillis(now - order as i64 * 30_000),
            worth: Worth::Plain,
            exempt: false,
        };
        // One every 30 seconds for 30 days, the newest now.
        let mut points: Vec<Candidate> = (0..30 * 2880).map(point).collect();
        points.reverse();

        let gone = thinned_out(&points, UnixMillis(now), &Thinning::default());

        let left = points.len() - gone.len();
        let expected = 240 + 22 * 60 + 6 * 24 + 23;
        assert!((expected - 3..=expected + 6).contains(&left), "{left} points are left");
        assert_eq!(thinned_out(&points[points.len() - 241..], UnixMillis(now), &plan_none()), []);
    }

    fn plan_none() -> Thinning {
        Thinning::new(0, Vec::new()).unwrap()
    }

    #[test]
    fn steps_that_do_not_nest_are_refused() {
        let step = |every_ms, until_ms| ThinningStep { every_ms, until_ms };
        let refused = |steps| Thinning::new(10, steps).unwrap_err();
        assert_eq!(refused(vec![step(0, 20)]), ThinningError::Empty);
        let uneven = refused(vec![step(4, 20), step(6, 30)]);
        assert_eq!(uneven, ThinningError::NotNested { every_ms: 6, before_ms: 4 });
        let back = refused(vec![step(4, 20), step(8, 20)]);
        assert_eq!(back, ThinningError::NotAscending { until_ms: 20 });
    }
}
