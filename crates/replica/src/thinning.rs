//! Which points a history does without: all of the last hours stay, then one a minute, one an
//! hour, one a day. Pure; what goes by age alone, and what is never let go, is `retention`'s.
//!
//! The rules:
//! 1. Time is cut into slots of each step's width, counted from the begin of each clock, so that
//!    they are the same in every run. A point is in the slot of its cut, by the clock that tells
//!    that: points that waited for the store come together and stay as if each had come at once.
//!    After a point was received the rest of its slot has to pass; once that is as long ago as the
//!    step says, the point is in that slot, until then in one of the step before, or, with the
//!    first step, it stays. Ages are by the store's clock: no other makes a point old.
//! 2. Of a slot the best point stays: by [`Worth`], then the one that was received first, then the
//!    one that was committed first.
//! 3. Exempt points stay and fill no slot.
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
    /// From this age in milliseconds on.
    pub after_ms: u64,
    /// Of this many milliseconds one point stays.
    pub every_ms: u64,
}

/// How a history is thinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinning {
    steps: Vec<ThinningStep>,
}

/// Why a plan of thinning cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThinningError {
    /// A width of nothing, or beyond what a clock counts.
    #[error("a step of {every_ms} ms cannot be used")]
    Width {
        /// The step.
        every_ms: u64,
    },
    /// Not a multiple of the step before it.
    #[error("a step of {every_ms} ms is no multiple of the one of {before_ms} ms before it")]
    NotNested {
        /// The step.
        every_ms: u64,
        /// The one before it.
        before_ms: u64,
    },
    /// Steps whose ages do not grow.
    #[error("a step from an age of {after_ms} ms on follows one that begins no earlier")]
    NotAscending {
        /// Where it begins.
        after_ms: u64,
    },
}

impl Thinning {
    /// A plan: all points, until the first step begins.
    ///
    /// # Errors
    /// See [`ThinningError`].
    pub fn new(steps: Vec<ThinningStep>) -> Result<Thinning, ThinningError> {
        let mut before: Option<ThinningStep> = None;
        for step in &steps {
            let ThinningStep { after_ms, every_ms } = *step;
            if every_ms == 0 || i64::try_from(every_ms).is_err() {
                return Err(ThinningError::Width { every_ms });
            }
            if let Some(before) = before {
                if !every_ms.is_multiple_of(before.every_ms) {
                    let before_ms = before.every_ms;
                    return Err(ThinningError::NotNested { every_ms, before_ms });
                }
                if after_ms <= before.after_ms {
                    return Err(ThinningError::NotAscending { after_ms });
                }
            }
            before = Some(*step);
        }
        Ok(Thinning { steps })
    }

    /// The slot of a point: its width, the clock that numbers it, its number.
    fn slot(&self, point: &Candidate, now: UnixMillis) -> Option<Slot> {
        self.steps.iter().rev().find_map(|step| {
            let width = step.every_ms as i64;
            let number = point.cut.at_ms.div_euclid(width);
            let rest = width - point.cut.at_ms.rem_euclid(width);
            let end = point.received_at.0.saturating_add(rest);
            let after = i64::try_from(step.after_ms).unwrap_or(i64::MAX);
            let is_old = end <= now.0.saturating_sub(after);
            is_old.then_some((step.every_ms, point.cut.clock, number))
        })
    }
}

impl Default for Thinning {
    /// All of the last 2 hours, then one a minute; one an hour after a day, one a day after a week.
    fn default() -> Thinning {
        let step = |after_ms, every_ms| ThinningStep { after_ms, every_ms };
        let steps =
            vec![step(2 * HOUR_MS, MINUTE_MS), step(DAY_MS, HOUR_MS), step(7 * DAY_MS, DAY_MS)];
        Thinning { steps }
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

/// The clock that tells when a point was cut: the store's own, or a boot of a config server. Points
/// of different clocks are never in one slot, as nobody knows how far apart they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CutClock {
    /// The store's: what it received was cut just then, as far as anybody knows.
    Store,
    /// The config server's time since its machine's boot, which no hand ever sets; the boots are
    /// numbered in any order.
    Server(u32),
}

/// When a point was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutTime {
    /// By which clock.
    pub clock: CutClock,
    /// Milliseconds since that clock's begin.
    pub at_ms: i64,
}

/// Width in milliseconds, clock, number.
type Slot = (u64, CutClock, i64);

/// A point that may be thinned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The point.
    pub id: PointId,
    /// When it was cut; never told by the source's own clock.
    pub cut: CutTime,
    /// When the store had it, by the store's clock.
    pub received_at: UnixMillis,
    /// What it is worth.
    pub worth: Worth,
    /// Stays whatever else there is.
    pub exempt: bool,
}

/// The points that go; `points` are in the order of their commits, and so is the result.
pub fn thinned_out(points: &[Candidate], now: UnixMillis, plan: &Thinning) -> Vec<PointId> {
    let mut best: BTreeMap<Slot, usize> = BTreeMap::new();
    let mut slots = Vec::with_capacity(points.len());
    for (order, point) in points.iter().enumerate() {
        let slot = plan.slot(point, now).filter(|_| !point.exempt);
        if let Some(slot) = slot {
            let chosen = best.entry(slot).or_insert(order);
            if is_better(point, &points[*chosen]) {
                *chosen = order;
            }
        }
        slots.push(slot);
    }
    let stays = |order: usize, slot: &Option<Slot>| {
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
        let step = |after_ms, every_ms| ThinningStep { after_ms, every_ms };
        Thinning::new(vec![step(20, 5), step(60, 15), step(200, 60)]).unwrap()
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
        // Most came at once; some waited, and were cut by another clock.
        let cut = prop_oneof![
            2 => Just((CutClock::Store, 0)),
            1 => (0..2_u32, 0..150_i64).prop_map(|(boot, ms)| (CutClock::Server(boot), ms)),
        ];
        let point = ((0..600_i64, cut), worths(), prop::bool::weighted(0.1));
        prop::collection::vec(point, 0..120).prop_map(|points| {
            let numbered = points.into_iter().enumerate();
            numbered
                .map(|(order, ((at, (clock, waited)), worth, exempt))| Candidate {
                    id: PointId::from_u128(order as u128 + 1),
                    cut: CutTime { clock, at_ms: at - 50 - waited },
                    received_at: UnixMillis(at - 50),
                    worth,
                    exempt,
                })
                .collect()
        })
    }

    /// The rules word by word: a point goes when another one of its slot is better.
    fn by_definition(points: &[Candidate], now: i64, plan: &Thinning) -> Vec<PointId> {
        let old = |at: i64, step: &ThinningStep| now - at >= step.after_ms as i64;
        let begin = |of: &Candidate, step: &ThinningStep| {
            let width = step.every_ms as i64;
            (0..).map(|n| n * width - 240).find(|at| at + width > of.cut.at_ms)
        };
        let goes = |point: &&Candidate| {
            let slot = |of: &Candidate| {
                let whole = |step: &&ThinningStep| {
                    let end = begin(of, step).map(|at| at + step.every_ms as i64);
                    end.is_some_and(|end| old(of.received_at.0 + end - of.cut.at_ms, step))
                };
                let step = plan.steps.iter().rfind(whole)?;
                Some((step.every_ms, of.cut.clock, begin(of, step)?))
            };
            let order = |of: &Candidate| (of.worth, -of.received_at.0, std::cmp::Reverse(of.id));
            let beats = |other: &Candidate| {
                !other.exempt && slot(other) == slot(point) && order(other) > order(point)
            };
            !point.exempt && slot(point).is_some() && points.iter().any(beats)
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
            cut: CutTime { clock: CutClock::Store, at_ms: now - order as i64 * 30_000 },
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
        assert!((expected - 3..=expected + 100).contains(&left), "{left} points are left");
        let none = Thinning::new(Vec::new()).unwrap();
        assert_eq!(thinned_out(&points, UnixMillis(now), &none), []);
    }

    /// Points of six hours, two a minute, that came at once.
    fn after_an_outage(now: i64) -> Vec<Candidate> {
        let point = |order: i64| Candidate {
            id: PointId::from_u128(order as u128 + 1),
            // The server's clock begins with its boot, and is nowhere near the store's.
            cut: CutTime { clock: CutClock::Server(0), at_ms: 7_000 + order * 30_000 },
            received_at: UnixMillis(now),
            worth: Worth::Plain,
            exempt: false,
        };
        (0..6 * 120).map(point).collect()
    }

    /// F-015, F-047: what waited for the store is thinned as if it had come at once: nothing in the
    /// first two hours, then to one a minute, then to one an hour.
    #[test]
    fn points_that_came_together_are_thinned_by_when_they_were_cut() {
        let came = 100 * DAY_MS as i64 + 17;
        let points = after_an_outage(came);
        let left_at = |age: u64| {
            let now = UnixMillis(came + age as i64);
            points.len() - thinned_out(&points, now, &Thinning::default()).len()
        };
        assert_eq!(left_at(2 * HOUR_MS - 1), 720);
        assert_eq!(left_at(3 * HOUR_MS), 360);
        assert_eq!(left_at(26 * HOUR_MS), 6);
    }

    /// Server boots have clocks of their own: one that began anew, or another server, thins nothing
    /// of what was cut by the former one.
    #[test]
    fn points_of_another_clock_are_never_in_the_same_slot() {
        let came = 100 * DAY_MS as i64;
        let mut points = after_an_outage(came);
        for point in &mut points[360..] {
            point.cut =
                CutTime { clock: CutClock::Server(1), at_ms: point.cut.at_ms - 360 * 30_000 };
        }
        let now = UnixMillis(came + 3 * HOUR_MS as i64);
        let left = points.len() - thinned_out(&points, now, &Thinning::default()).len();
        assert_eq!(left, 2 * 180);
    }

    #[test]
    fn steps_that_do_not_nest_are_refused() {
        let step = |after_ms, every_ms| ThinningStep { after_ms, every_ms };
        let refused = |steps| Thinning::new(steps).unwrap_err();
        assert_eq!(refused(vec![step(5, 0)]), ThinningError::Width { every_ms: 0 });
        let uneven = refused(vec![step(5, 4), step(9, 6)]);
        assert_eq!(uneven, ThinningError::NotNested { every_ms: 6, before_ms: 4 });
        let back = refused(vec![step(5, 4), step(5, 8)]);
        assert_eq!(back, ThinningError::NotAscending { after_ms: 5 });
    }
}
